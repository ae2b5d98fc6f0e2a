//! Loads the roles and databases of a snapshot into the server of the instance.
//!
//! A database that is there keeps its content under another name. One that a killed call began to
//! load is dropped and loaded again.

use super::record::{Loading, Record};
use super::roles::{self, Chosen};
use crate::check::Check;
use crate::drill::databases::{Loaded, MAGIC, judge, major, with_errors};
use crate::error::{Error, Result};
use crate::manifest::{DIR, Dumped, Manifest, NO_ROLE_PASSWORDS};
use crate::private_dir::{OF_REBUILD, PrivateDir};
use crate::process::{Command, Patience, Stdin};
use crate::service::Reach;
use crate::service::postgres::{
    Connection, LOAD_OPTIONS, MAINTENANCE, Server, identifier, literal,
};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::entry::Entry;
use store::id::ChunkId;
use store::observe::Progress;
use store::store::Store;
use store::tree::Lookup;

/// Time limit of loading one database. Clients print nothing while they load a large table.
const LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time limit of a statement that waits for the end of connections.
const RENAME_TRIES: u32 = 20;
const RENAME_PAUSE: Duration = Duration::from_millis(250);
/// Errors while the server still works for a client that was killed, or another one connects.
const IN_MOTION: [&str; 2] = ["being accessed by other users", "pg_database_datname_index"];
/// Further attempts to load a database after such an error, and the pause before each.
const RELOADS: u32 = 5;
const RELOAD_PAUSE: Duration = Duration::from_secs(2);
/// Longest name of a database in bytes.
const NAME_BYTES_MAX: usize = 63;
/// Largest output of a client that is kept, in bytes.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
/// Largest dump of roles in bytes.
const GLOBALS_BYTES_MAX: u64 = 256 << 20;
/// Pause between two looks whether the server has made a database.
const WATCH_PAUSE: Duration = Duration::from_millis(20);
/// Dump of roles, in the directory of dumps.
const GLOBALS: &str = "databases/globals.sql";

/// A server into which dumps are loaded.
pub struct Loader<'a> {
    /// The store and the root of the snapshot.
    pub store: &'a Store,
    pub root: ChunkId,
    pub server: &'a Server,
    client: Reach,
    progress: &'a Progress,
    /// Directory for dumps that several processes load at once.
    scratch: &'a Path,
    manifest: &'a Manifest,
}

impl<'a> Loader<'a> {
    /// Connects to the server. Fails if it is older than that of the snapshot, or if the role may not
    /// create databases.
    pub fn connect(
        store: &'a Store,
        root: ChunkId,
        server: &'a Server,
        manifest: &'a Manifest,
        scratch: &'a Path,
    ) -> Result<(Loader<'a>, String)> {
        #[derive(Deserialize)]
        struct Role {
            name: String,
            may_create: bool,
            is_standby: bool,
        }
        let progress = store.observer().progress();
        let mut connection = server.connect(MAINTENANCE, progress)?;
        let (here, version) = server.version(&mut connection)?;
        let then = manifest.postgres.as_deref().and_then(major);
        if let Some(then) = then.filter(|then| *then > here) {
            return Err(Error::OlderServer { then, here });
        }
        let query = "select rolname as name, rolsuper or rolcreatedb as may_create, \
                     pg_is_in_recovery() as is_standby from pg_roles where rolname = current_user";
        let role: Role = connection.one(query)?;
        if role.is_standby {
            return Err(Error::Standby);
        }
        if !role.may_create {
            return Err(Error::MayNotCreate { role: role.name });
        }
        let client = server.client(here, progress)?;
        Ok((Loader { store, root, server, client, progress, scratch, manifest }, version))
    }

    /// Chooses from the dump of roles what this server gets; `None` without one. Roles that own
    /// something in the dumps belong to the instance.
    pub fn roles(&self) -> Result<Option<Chosen>> {
        #[derive(Deserialize)]
        struct Role {
            name: String,
            is_ours: bool,
        }
        let Some(entry) = self.entry(&format!("{DIR}/{GLOBALS}"))? else { return Ok(None) };
        let query = "select rolname as name, rolname = current_user as is_ours from pg_roles";
        let here: Vec<Role> = self.server.connect(MAINTENANCE, self.progress)?.rows(query)?;
        let connected = here.iter().find(|role| role.is_ours);
        let connected = connected.map_or("", |role| &role.name[..]);
        let existing: BTreeSet<String> = here.iter().map(|role| role.name.clone()).collect();
        let mut own = BTreeSet::new();
        for dumped in &self.manifest.databases {
            let Some(entry) = self.entry(&dumped.path)? else { continue };
            if self.is_archive(&entry)? {
                let listed = self.listed(&entry)?;
                own.extend(owners(&listed, &existing));
            }
        }
        let path = || PathBuf::from("/").join(DIR).join(GLOBALS);
        if entry.size > GLOBALS_BYTES_MAX {
            return Err(Error::Malformed { path: path(), reason: "it is too large".into() });
        }
        let mut text = Vec::new();
        store::dump::dump(self.store, &entry, &mut text)?
            .map_err(|source| Error::Read { path: path(), source })?;
        let text = String::from_utf8_lossy(&text);
        let has_passwords = !self.manifest.notes.iter().any(|note| note == NO_ROLE_PASSWORDS);
        Ok(Some(roles::choose(&text, &existing, &own, connected, has_passwords)))
    }

    /// Loads roles. Returns the errors that count, and the number of harmless ones.
    pub fn load_roles(&self, roles: &Chosen) -> Result<Loaded> {
        let words = ["--no-psqlrc", "--quiet", "--output=/dev/null", "--file=-"];
        let command = self.server.tool(&self.client, "psql", &words, MAINTENANCE)?;
        let output = self.feed(with_errors(command), |input| {
            // The output of a client that stopped reading tells why.
            let _ = input.write_all(roles.sql.as_bytes());
            Ok(())
        })?;
        Ok(Loaded::parse(&output))
    }

    /// Returns the number of a database (oid); `None` if there is none of this name.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        number(&mut self.server.connect(MAINTENANCE, self.progress)?, name)
    }

    /// Returns the databases with content that have a name of the snapshot's, and that the rebuild did
    /// not make.
    pub fn foreign(&self, record: &Record) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Content {
            has: bool,
        }
        let mut foreign = Vec::new();
        for Dumped { name, .. } in &self.manifest.databases {
            let number = self.number(name)?;
            let made = record.loading(name).and_then(|known| known.made);
            if number.is_none() || number == made {
                continue;
            }
            let query = "select exists (select from pg_class c join pg_namespace n \
                         on n.oid = c.relnamespace where n.nspname !~ '^pg_' \
                         and n.nspname <> 'information_schema' and c.relkind in ('r', 'p', 'm', 'f', 'v', 'S') \
                         and not exists (select from pg_depend d where d.deptype = 'e' \
                         and d.classid = 'pg_class'::regclass and d.objid = c.oid)) as has";
            let asked = self
                .server
                .connect(name, self.progress)
                .and_then(|mut connection| connection.one::<Content>(query));
            match asked {
                Ok(Content { has: false }) => {}
                Err(error) if error.is_interrupted() => return Err(error),
                // Nobody knows what a database has that lets nobody in.
                Ok(_) | Err(_) => foreign.push(name.clone()),
            }
        }
        Ok(foreign)
    }

    /// Returns true if a database exists.
    pub fn has(&self, name: &str) -> Result<bool> {
        has(&mut self.server.connect(MAINTENANCE, self.progress)?, name)
    }

    /// Returns a new name for a database, which none has.
    fn free_name(&self, name: &str, suffix: &str) -> Result<String> {
        let mut free = aside(name, suffix);
        for number in 2.. {
            if !self.has(&free)? {
                break;
            }
            free = aside(name, &format!("{suffix}_{number}"));
        }
        Ok(free)
    }

    /// Loads a database, unless the record says that it was loaded. Returns the comparison of its rows
    /// with those that the backup counted, which the record keeps.
    pub fn load(&self, dumped: &Dumped, record: &mut Record) -> Result<Check> {
        let name = &dumped.name;
        let title = format!("database-{name}");
        let known = record.loading(name).cloned();
        if known.as_ref().is_some_and(|known| known.is_loaded) {
            let kept = record.checks().iter().find(|check| check.name == title);
            let unknown = || Check::ok(&title, "loaded by an earlier call");
            return Ok(kept.cloned().unwrap_or_else(unknown));
        }
        let mut loading =
            known.unwrap_or_else(|| Loading { name: name.clone(), ..Loading::default() });
        self.make_way(&mut loading, record)?;
        let entry = self.entry(&dumped.path)?.filter(|entry| entry.size == dumped.bytes);
        let Some(entry) = entry else {
            let path = PathBuf::from("/").join(&dumped.path);
            let reason = "it is missing in the snapshot, or has another size".into();
            return Err(Error::Malformed { path, reason });
        };
        let mut loaded = self.load_watched(&mut loading, record, &entry)?;
        for _ in 0..RELOADS {
            // The server may still create the database for a client that was killed.
            if !loaded.errors.iter().any(|error| IN_MOTION.iter().any(|text| error.contains(text)))
            {
                break;
            }
            std::thread::sleep(RELOAD_PAUSE);
            self.make_way(&mut loading, record)?;
            loaded = self.load_watched(&mut loading, record, &entry)?;
        }
        if !self.has(name)? {
            let reason = loaded.errors.first().cloned().unwrap_or_default();
            return Err(Error::NotCreated { database: name.clone(), reason });
        }
        let mut connection = self.server.connect(name, self.progress)?;
        let rows = connection.count_rows()?;
        let check = judge(&title, &loaded, &dumped.tables, &rows);
        let is_whole = dumped.tables.iter().all(|counted| rows.contains(counted));
        let lacks_extension =
            loaded.errors.iter().any(|error| error.contains("extension") && is_absent(error));
        if !is_whole || lacks_extension || rows.is_empty() && !loaded.errors.is_empty() {
            return Err(Error::NotLoaded {
                database: name.clone(),
                text: check.text,
                examples: check.examples,
            });
        }
        connection.execute("analyze")?;
        // First, so that a database that counts as loaded has its result.
        record.keep(check.clone())?;
        loading.is_loaded = true;
        record.set_loading(loading)?;
        Ok(check)
    }

    /// Makes way for a database. Drops one that a rebuild made, and renames any other.
    fn make_way(&self, loading: &mut Loading, record: &mut Record) -> Result<()> {
        let name = loading.name.clone();
        let mut connection = self.server.connect(beside(&name), self.progress)?;
        match number(&mut connection, &name)? {
            None => {}
            made if made == loading.made => {
                disconnect(&mut connection, &name)?;
                connection.execute(&format!("drop database {}", identifier(&name)))?;
            }
            Some(_) => {
                drop(connection);
                let aside = self.free_name(&name, record.suffix())?;
                if !loading.aside.contains(&aside) {
                    loading.aside.push(aside.clone());
                }
                record.set_loading(loading.clone())?;
                self.rename(&name, &aside)?;
            }
        }
        loading.made = None;
        record.set_loading(loading.clone())
    }

    /// Loads a dump into a new database, and records its number as soon as it is there.
    fn load_watched(
        &self,
        loading: &mut Loading,
        record: &mut Record,
        entry: &Entry,
    ) -> Result<Loaded> {
        let name = loading.name.clone();
        let mut watching = self.server.connect(beside(&name), self.progress)?;
        let loaded = std::thread::scope(|scope| {
            let work = scope.spawn(|| self.load_dump(&name, entry));
            while !work.is_finished() {
                std::thread::sleep(WATCH_PAUSE);
                if loading.made.is_none() {
                    loading.made = number(&mut watching, &name)?;
                    if loading.made.is_some() {
                        record.set_loading(loading.clone())?;
                    }
                }
            }
            work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if loading.made.is_none() {
            loading.made = number(&mut watching, &name)?;
            record.set_loading(loading.clone())?;
        }
        loaded
    }

    /// Loads a dump of either format into a new database of this name.
    fn load_dump(&self, name: &str, entry: &Entry) -> Result<Loaded> {
        if !self.is_archive(entry)? {
            let create = format!("create database {} template template0", identifier(name));
            self.server.connect(beside(name), self.progress)?.execute(&create)?;
            let words = ["--no-psqlrc", "--quiet", "--output=/dev/null", "--file=-"];
            return self.load_from(self.loading("psql", &words, name)?, entry);
        }
        // The dump creates the database with its owner, encoding and settings.
        let mut words = vec!["--create"];
        let Some(file) = self.file(entry)? else {
            return self.load_from(self.loading("pg_restore", &words, beside(name))?, entry);
        };
        let jobs =
            format!("--jobs={}", std::thread::available_parallelism().map_or(1, usize::from));
        words.extend([&jobs[..], file.argument()]);
        let command = self.loading("pg_restore", &words, beside(name))?;
        let output = with_errors(command).within(LIMIT).output(self.progress)?;
        Ok(Loaded::parse(&String::from_utf8_lossy(&output)))
    }

    /// Returns a command that loads into a database.
    fn loading(&self, program: &str, words: &[&str], database: &str) -> Result<Command> {
        let command = self.server.tool(&self.client, program, words, database)?;
        Ok(command.env("PGOPTIONS", LOAD_OPTIONS))
    }

    /// Puts a dump into a file that the client can read, so that it can load tables in parallel.
    /// Returns `None` if the client is in a container, or the scratch directory has no space.
    fn file(&self, entry: &Entry) -> Result<Option<DumpFile>> {
        let failed = |source| Error::Write { path: self.scratch.to_owned(), source };
        let free = rustix::fs::statvfs(self.scratch).map_err(|error| failed(error.into()))?;
        let has_space =
            free.f_bavail.saturating_mul(free.f_frsize) > entry.size.saturating_add(64 << 20);
        if !self.client.into.is_empty() || !has_space {
            return Ok(None);
        }
        // The next call removes what a killed one leaves, which may be large.
        let dir = PrivateDir::make(self.scratch, OF_REBUILD).map_err(failed)?;
        let path = dir.path().join("dump");
        let Some(text) = path.to_str().map(str::to_owned) else { return Ok(None) };
        let file = dir.open_for(self.client.user.as_deref(), &path).map_err(failed)?;
        let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
        let dumped = store::dump::dump(self.store, entry, &mut file)?;
        dumped.and_then(|()| file.flush()).map_err(failed)?;
        Ok(Some(DumpFile { _dir: dir, path: text }))
    }

    /// Fails if the server lacks extensions that a database needs. Dumps as text do not list them.
    pub fn expect_extensions(&self, dumped: &Dumped) -> Result<()> {
        #[derive(Deserialize)]
        struct Available {
            name: String,
        }
        let Some(entry) = self.entry(&dumped.path)? else { return Ok(()) };
        if !self.is_archive(&entry)? {
            return Ok(());
        }
        let listed = self.listed(&entry)?;
        let query = "select name from pg_available_extensions";
        let available: Vec<Available> =
            self.server.connect(MAINTENANCE, self.progress)?.rows(query)?;
        let is_available = |name: &&str| available.iter().any(|one| one.name == *name);
        let lacking: Vec<&str> = extensions(&listed).filter(|name| !is_available(name)).collect();
        match lacking.is_empty() {
            true => Ok(()),
            false => Err(Error::NoExtension {
                database: dumped.name.clone(),
                extensions: lacking.join(", "),
            }),
        }
    }

    /// Fails if the server lacks the locale of a database. Dumps as text do not name it.
    pub fn expect_locales(&self, dumped: &Dumped) -> Result<()> {
        let Some(entry) = self.entry(&dumped.path)? else { return Ok(()) };
        if !self.is_archive(&entry)? {
            return Ok(());
        }
        // As text, without a server.
        let words = ["--create", "--schema-only", "--file=-"];
        let command = self.client.command("pg_restore", words);
        let script = self.feed(command, |input| self.dump(&entry, input))?;
        let create = script.lines().find(|line| line.starts_with("CREATE DATABASE "));
        let Some(create) = create else { return Ok(()) };
        let mut connection = self.server.connect(MAINTENANCE, self.progress)?;
        for locale in locales(create) {
            connection.execute("begin")?;
            // The message is compared; ordinary roles may not choose its language.
            connection.execute(
                "do $$ begin perform set_config('lc_messages', 'C', true); \
                 exception when others then null; end $$",
            )?;
            let probe = format!("create collation pg_temp.forgekeep_probe (locale = {locale})");
            let made = connection.execute(&probe);
            if let Err(Error::Failed { output, .. }) = made {
                // The connection ended with the error. Others are about this database only.
                if output.contains("could not create locale") {
                    let reason = format!("the server does not know locale {locale}");
                    return Err(Error::NotCreated { database: dumped.name.clone(), reason });
                }
                connection = self.server.connect(MAINTENANCE, self.progress)?;
                continue;
            }
            made?;
            connection.execute("rollback")?;
        }
        Ok(())
    }

    /// Returns the list of an archive's objects.
    fn listed(&self, entry: &Entry) -> Result<String> {
        let words = ["--list", "--create"];
        let command = self.server.tool(&self.client, "pg_restore", &words, MAINTENANCE)?;
        self.feed(command, |input| self.dump(entry, input))
    }

    /// Returns true for a dump in the format of archives, false for one as text.
    fn is_archive(&self, entry: &Entry) -> Result<bool> {
        let mut start = Start { bytes: Vec::new() };
        // Ends with the error of a full buffer.
        let _ = store::dump::dump(self.store, entry, &mut start)?;
        Ok(start.bytes == MAGIC)
    }

    /// Loads what a client reads from its standard input.
    fn load_from(&self, command: Command, entry: &Entry) -> Result<Loaded> {
        let output = self.feed(with_errors(command), |input| self.dump(entry, input))?;
        Ok(Loaded::parse(&output))
    }

    /// Writes a dump to a client.
    fn dump(&self, entry: &Entry, input: &mut dyn Write) -> Result<()> {
        // The output of a client that stopped reading tells why.
        let _ = store::dump::dump(self.store, entry, input)?;
        Ok(())
    }

    /// Gives a client its standard input. Returns the output.
    fn feed(
        &self,
        command: Command,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<String> {
        let mut running = command.within(LIMIT).start(Stdin::Piped)?;
        let mut output = running.stdout(self.progress, Patience::Silence);
        let mut input = running.stdin.take();
        let (written, output) = std::thread::scope(|scope| {
            // A client that reports errors must not wait for their reader.
            let reader = scope.spawn(move || {
                let mut text = Vec::new();
                let kept = (&mut output).take(OUTPUT_BYTES_MAX).read_to_end(&mut text);
                kept.and_then(|_| std::io::copy(&mut output, &mut std::io::sink())).map(|_| text)
            });
            let written = input.as_mut().map(|input| write(input));
            drop(input.take());
            (written, reader.join())
        });
        written.unwrap_or(Ok(()))?;
        let text = match output {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return Err(running.unread(error, self.progress)),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        running.end(self.progress)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Renames a database. Does nothing if an earlier call has renamed it.
    fn rename(&self, name: &str, aside: &str) -> Result<()> {
        let mut tries = 0;
        loop {
            let mut connection = self.server.connect(beside(name), self.progress)?;
            if !has(&mut connection, name)? {
                return Ok(());
            }
            disconnect(&mut connection, name)?;
            let rename =
                format!("alter database {} rename to {}", identifier(name), identifier(aside));
            match connection.execute(&rename) {
                // A program connected again.
                Err(Error::Failed { output, .. })
                    if tries < RENAME_TRIES
                        && IN_MOTION.iter().any(|text| output.contains(text)) => {}
                renamed => return renamed,
            }
            tries += 1;
            self.progress.check()?;
            std::thread::sleep(RENAME_PAUSE);
        }
    }

    fn entry(&self, path: &str) -> Result<Option<Entry>> {
        Ok(Lookup::new(&self.root, self.store).at(path.as_bytes())?)
    }
}

/// A dump for one client, removed when it is dropped.
struct DumpFile {
    _dir: PrivateDir,
    path: String,
}

impl DumpFile {
    fn argument(&self) -> &str {
        &self.path
    }
}

/// Keeps the first bytes, as many as the magic number has.
struct Start {
    bytes: Vec<u8>,
}

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let wanted = MAGIC.len() - self.bytes.len();
        if wanted == 0 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend(bytes.iter().take(wanted));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns the database to connect to while another one is renamed or created.
fn beside(name: &str) -> &'static str {
    if name == MAINTENANCE { "template1" } else { MAINTENANCE }
}

/// Returns the extensions in a list of `pg_restore`, such as `2; 3079 16385 EXTENSION - pg_trgm`.
fn extensions(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter(|line| !line.starts_with(';')).filter_map(|line| {
        let mut words = line.split_whitespace().skip(3);
        (words.next() == Some("EXTENSION")).then(|| words.nth(1)).flatten()
    })
}

/// Returns the roles of a server that own something in a list of `pg_restore`, whose lines end with
/// the owner.
fn owners<'r>(list: &'r str, roles: &'r BTreeSet<String>) -> impl Iterator<Item = String> + 'r {
    let lines = list.lines().filter(|line| !line.starts_with(';'));
    let ends: BTreeSet<&str> = lines.clone().filter_map(|line| line.rsplit(' ').next()).collect();
    let with_spaces: Vec<&String> = roles.iter().filter(|role| role.contains(' ')).collect();
    let owns_by_line = move |role: &String| {
        with_spaces.contains(&role) && lines.clone().any(|line| line.ends_with(&format!(" {role}")))
    };
    roles.iter().filter(move |role| ends.contains(&role[..]) || owns_by_line(role)).cloned()
}

/// Returns the locales of a statement that creates a database, as they are written there. Only those
/// of the operating system may be missing.
fn locales(create: &str) -> impl Iterator<Item = &str> {
    let is_of_system = !create.contains("LOCALE_PROVIDER = icu");
    [" LOCALE = ", " LC_COLLATE = ", " LC_CTYPE = "].into_iter().filter_map(move |word| {
        let (_, rest) = create.split_once(word).filter(|_| is_of_system)?;
        let end = rest.strip_prefix('\'')?.find('\'')?;
        rest.get(..end + 2)
    })
}

/// Returns true for an error about something that is not installed.
fn is_absent(error: &str) -> bool {
    error.contains("is not available") || error.contains("could not open extension control file")
}

fn has(connection: &mut Connection<'_>, name: &str) -> Result<bool> {
    Ok(number(connection, name)?.is_some())
}

/// Returns the number of a database (oid); `None` if there is none of this name.
fn number(connection: &mut Connection<'_>, name: &str) -> Result<Option<u64>> {
    #[derive(Deserialize)]
    struct Row {
        number: u64,
    }
    let query =
        format!("select oid::bigint as number from pg_database where datname = {}", literal(name));
    Ok(connection.rows::<Row>(&query)?.pop().map(|row| row.number))
}

/// Ends all other connections to a database.
fn disconnect(connection: &mut Connection<'_>, name: &str) -> Result<()> {
    let query = format!(
        "select pg_terminate_backend(pid) as ended from pg_stat_activity \
         where datname = {} and pid <> pg_backend_pid()",
        literal(name)
    );
    connection.rows::<serde_json::Value>(&query).map(drop)
}

/// Returns the new name of a database.
fn aside(name: &str, suffix: &str) -> String {
    let suffix = suffix.replace('-', "_");
    let mut end = name.len().min(NAME_BYTES_MAX.saturating_sub(suffix.len() + 1));
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{suffix}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names_of_databases_are_short_enough() {
        assert_eq!(aside("gitlab", "before-1"), "gitlab_before_1");
        let long = aside(&"ä".repeat(40), "before-rebuild-20260102T030405Z");
        assert!(long.len() <= NAME_BYTES_MAX && long.ends_with("_before_rebuild_20260102T030405Z"));
    }

    #[test]
    fn extensions_are_found_in_a_list() {
        let list = ";\n; Archive created at 2026-01-02\n;     dbname: EXTENSION\n\
                    2; 3079 16385 EXTENSION - pg_trgm \n3527; 0 0 COMMENT - EXTENSION pg_trgm \n\
                    3; 3079 16466 EXTENSION - uuid-ossp postgres\n\
                    215; 1259 16467 TABLE public EXTENSION wiki\n";
        assert_eq!(extensions(list).collect::<Vec<_>>(), ["pg_trgm", "uuid-ossp"]);
    }

    #[test]
    fn owners_and_locales_are_found() {
        let list = "; Owner: x\n215; 1259 16467 TABLE public EXTENSION wiki\n\
                    216; 1259 16468 TABLE public a b role with spaces\n";
        let roles = ["wiki", "x", "role with spaces", "spaces", "other"].map(String::from).into();
        let found: Vec<String> = owners(list, &roles).collect();
        assert_eq!(found, ["role with spaces", "spaces", "wiki"]);
        let of = |text: &'static str| locales(text).collect::<Vec<_>>();
        let libc = "CREATE DATABASE w WITH TEMPLATE = template0 ENCODING = 'UTF8' \
                    LOCALE_PROVIDER = libc LOCALE = 'de_DE.UTF-8';";
        assert_eq!(of(libc), ["'de_DE.UTF-8'"]);
        assert_eq!(of("CREATE DATABASE w WITH LC_COLLATE = 'C' LC_CTYPE = 'x';"), ["'C'", "'x'"]);
        let icu = "CREATE DATABASE w WITH LOCALE_PROVIDER = icu LOCALE = 'x' ICU_LOCALE = 'y';";
        assert!(of(icu).is_empty());
    }

    #[test]
    fn only_the_start_of_a_dump_is_read() {
        let mut start = Start { bytes: Vec::new() };
        start.write_all(b"PG").expect("keeps");
        start.write_all(b"DMP and more").expect("keeps a part");
        assert_eq!(start.bytes, MAGIC);
        assert!(start.write_all(b"more").is_err());
    }
}
