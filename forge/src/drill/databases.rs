//! Loads restored dumps into a scratch PostgreSQL server.
//!
//! The server and its clients run as the unprivileged user. A dump can run any program as them.

use super::{Scratch, as_argument};
use crate::check::{Check, Verdict};
use crate::error::{Error, Result};
use crate::manifest::Dumped;
use crate::process::{Command, Running, Stdin, installed};
use crate::service::Reach;
use crate::service::postgres::{Connection, MAINTENANCE, Rows, Server};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::observe::Progress;

/// Directories with one directory for each installed version.
const PLACES: [&str; 2] = ["/usr/lib/postgresql", "/opt/gitlab/embedded/postgresql"];
/// Programs that a drill needs.
const PROGRAMS: [&str; 5] = ["initdb", "postgres", "psql", "createdb", "pg_restore"];
/// Superuser of the scratch server; no role of an instance has this name.
const SUPERUSER: &str = "forgekeep_drill";
/// Longest path of the directory of a socket in bytes: the kernel allows 107 with the file name.
const SOCKET_DIR_MAX: usize = 90;
/// Start of a dump in the custom format.
pub(crate) const MAGIC: &[u8] = b"PGDMP";
/// Time for the server to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Settings of the server. Its data may be lost.
const SETTINGS: [&str; 10] = [
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "autovacuum=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_wal_size=256MB",
    "logging_collector=off",
];
/// Runs a command with its errors on standard output, and prints its exit code last.
const WITH_ERRORS: &str = "\"$@\" 2>&1; echo \"exit $?\"";

/// Programs of an installed PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Installed {
    /// Major version.
    pub major: u32,
    bin: PathBuf,
}

impl Installed {
    /// Finds the newest server that is at least of this major version.
    pub fn newest(at_least: u32) -> Option<Installed> {
        let all = PLACES.iter().flat_map(|place| Installed::below(Path::new(place)));
        all.max().filter(|newest| newest.major >= at_least)
    }

    fn below(place: &Path) -> Vec<Installed> {
        let dirs = std::fs::read_dir(place).into_iter().flatten().flatten();
        let installed = dirs.filter_map(|dir| {
            let (major, bin) = (dir.file_name().to_str()?.parse().ok()?, dir.path().join("bin"));
            let is_whole = PROGRAMS.iter().all(|program| bin.join(program).exists());
            is_whole.then_some(Installed { major, bin })
        });
        installed.collect()
    }
}

/// Returns the major version at the start of a server's version.
pub fn major(version: &str) -> Option<u32> {
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// A server in scratch space, which ends when it is dropped.
pub struct ScratchServer<'a> {
    running: Running,
    server: Server,
    installed: Installed,
    scratch: &'a Scratch,
    user: Option<&'a str>,
    progress: &'a Progress,
    /// Number of databases made so far.
    made: usize,
    /// Names of the loaded databases in the snapshot, and here.
    loaded: Vec<[String; 2]>,
}

impl Drop for ScratchServer<'_> {
    fn drop(&mut self) {
        // Its processes end at once; a kill of the first one would leave the others.
        self.running.end_by(Signal::QUIT, PATIENCE);
    }
}

impl<'a> ScratchServer<'a> {
    /// Makes a cluster and starts its server.
    pub fn start(
        installed: &Installed,
        scratch: &'a Scratch,
        progress: &'a Progress,
    ) -> Result<ScratchServer<'a>> {
        let (data, sockets) = (scratch.path().join("cluster"), scratch.path().join("s"));
        if sockets.as_os_str().len() > SOCKET_DIR_MAX {
            let reason = "this path is too long for a socket; give a shorter --scratch".into();
            return Err(Error::Malformed { path: sockets, reason });
        }
        let make =
            DirBuilder::new().mode(0o700).create(&sockets).and_then(|()| scratch.give(&sockets));
        make.map_err(|source| Error::Write { path: sockets.clone(), source })?;
        let program = |name: &str| installed.bin.join(name);
        let (initdb, data) = (program("initdb"), as_argument(&data)?.to_owned());
        let words = [as_argument(&initdb)?, "-D", &data, "-U", SUPERUSER, "-A", "trust"];
        let more = ["-E", "UTF8", "--locale=C.UTF-8", "--no-sync"];
        let user = scratch.user();
        Command::new(words.into_iter().chain(more)).by(user).output(progress)?;
        let host = as_argument(&sockets)?.to_owned();
        let directory = format!("unix_socket_directories={host}");
        // The server ends with this process, even if it is killed.
        let setpriv = installed_setpriv();
        let postgres = program("postgres");
        let words =
            setpriv.iter().map(String::as_str).chain([as_argument(&postgres)?, "-D", &data]);
        let settings = SETTINGS.iter().copied().chain([&directory[..]]);
        let words = words.chain(settings.flat_map(|setting| ["-c", setting]));
        let mut running = Command::new(words).by(user).start(Stdin::Nothing)?;
        let reach = Reach {
            into: Vec::new(),
            bin: vec![installed.bin.clone()],
            user: user.map(Into::into),
        };
        let server =
            Server { reach, host: Some(host), role: Some(SUPERUSER.into()), ..Server::default() };
        match server.connect(MAINTENANCE, progress).map(drop) {
            Ok(()) => {}
            Err(error) if error.is_interrupted() => {
                running.end_by(Signal::QUIT, PATIENCE);
                return Err(error);
            }
            Err(_) => return Err(running.failure()),
        }
        let installed = installed.clone();
        Ok(ScratchServer {
            running,
            server,
            installed,
            scratch,
            user,
            progress,
            made: 0,
            loaded: Vec::new(),
        })
    }

    /// Loads roles. Returns the errors that are not harmless.
    pub fn load_globals(&self, file: &Path, limit: Duration) -> Result<Vec<String>> {
        // A tablespace lies outside of the scratch space: in the directory of the instance itself.
        let roles = file.with_file_name("roles.sql");
        let write = || {
            let text = without_tablespaces(&std::fs::read(file)?);
            std::fs::write(&roles, text)?;
            self.scratch.give(&roles)
        };
        write().map_err(|source| Error::Write { path: roles.clone(), source })?;
        Ok(self.load_sql(&roles, MAINTENANCE, limit)?.errors)
    }

    /// Loads a dump into a database of its own, and compares its rows with those that the backup
    /// counted.
    pub fn load(&mut self, dumped: &Dumped, file: &Path, limit: Duration) -> Result<Check> {
        let name = format!("database-{}", dumped.name);
        let length = std::fs::symlink_metadata(file).map_or(0, |found| found.len());
        if length != dumped.bytes {
            return Ok(Check::new(&name, Verdict::Failed, "its dump could not be restored"));
        }
        let database = format!("drill{}", self.made);
        self.made += 1;
        let words = ["--template=template0", "--encoding=UTF8", "--", &database[..]];
        self.command("createdb", &words)?.output(self.progress)?;
        let loaded = match starts_with(file, MAGIC)? {
            true => {
                let target = format!("--dbname={database}");
                let words = ["--no-tablespaces", "--jobs=2", &target, as_argument(file)?];
                self.answer("pg_restore", &words, limit)
            }
            false => self.load_sql(file, &database, limit),
        };
        let loaded = match loaded {
            Err(Error::TooSlow { .. }) => {
                return Ok(Check::new(&name, Verdict::Unknown, "the time limit was reached"));
            }
            loaded => loaded?,
        };
        let rows = self.server.connect(&database, self.progress)?.count_rows()?;
        self.loaded.push([dumped.name.clone(), database]);
        Ok(judge(&name, &loaded, &dumped.tables, &rows))
    }

    /// Returns the server, for questions.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Connects to all loaded databases, under their names in the snapshot. No question may take
    /// longer than the limit.
    pub fn connect(&self, limit: Duration) -> Result<Vec<Connection<'a>>> {
        // 0 would be no limit.
        let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1);
        let set = format!("select set_config('statement_timeout', '{limit}', false)");
        let connect = |[name, here]: &[String; 2]| {
            let mut connection = self.server.connect(here, self.progress)?;
            connection.rows::<serde_json::Value>(&set)?;
            connection.export_snapshot()?;
            connection.database.clone_from(name);
            Ok(connection)
        };
        self.loaded.iter().map(connect).collect()
    }

    fn load_sql(&self, file: &Path, database: &str, limit: Duration) -> Result<Loaded> {
        let target = format!("--dbname={database}");
        let words = ["--no-psqlrc", "--quiet", "--output=/dev/null", &target, "--file"];
        let words: Vec<&str> = words.into_iter().chain([as_argument(file)?]).collect();
        self.answer("psql", &words, limit)
    }

    fn answer(&self, program: &str, words: &[&str], limit: Duration) -> Result<Loaded> {
        let command = with_errors(self.command(program, words)?).within(limit);
        let output = command.output(self.progress)?;
        Ok(Loaded::parse(&String::from_utf8_lossy(&output)))
    }

    fn command(&self, program: &str, words: &[&str]) -> Result<Command> {
        let program = self.installed.bin.join(program);
        let host = format!("--host={}", self.server.host.as_deref().unwrap_or_default());
        let role = format!("--username={SUPERUSER}");
        let first = [as_argument(&program)?, &host, &role, "--no-password"];
        Ok(Command::new(first.into_iter().chain(words.iter().copied())).by(self.user))
    }
}

/// Makes a command print its errors on standard output, and its exit code last.
pub(crate) fn with_errors(mut command: Command) -> Command {
    let shell = ["sh", "-c", WITH_ERRORS, "sh"].map(String::from);
    command.argv.splice(0..0, shell);
    command
}

/// Removes the statements about tablespaces, each of which is a line, from a dump of roles.
fn without_tablespaces(text: &[u8]) -> Vec<u8> {
    let is_other = |line: &&[u8]| {
        let line = String::from_utf8_lossy(line);
        let verbs = ["CREATE TABLESPACE ", "ALTER TABLESPACE ", "COMMENT ON TABLESPACE "];
        let is_right = line.starts_with("GRANT ") || line.starts_with("REVOKE ");
        let is_setting = line.starts_with("ALTER ROLE ") && line.contains("default_tablespace");
        !(verbs.iter().any(|verb| line.starts_with(verb))
            || is_right && line.contains(" ON TABLESPACE ")
            || is_setting)
    };
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(is_other).collect();
    lines.join(&b'\n')
}

/// Returns the start of a command line that ends a program with this process.
fn installed_setpriv() -> Vec<String> {
    let words = ["--pdeathsig", "QUIT", "--"].map(String::from);
    installed("setpriv").map_or_else(Vec::new, |setpriv| {
        std::iter::once(setpriv.display().to_string()).chain(words).collect()
    })
}

fn starts_with(file: &Path, magic: &[u8]) -> Result<bool> {
    let mut start = Vec::new();
    let read = std::fs::File::open(file)
        .and_then(|open| open.take(magic.len() as u64).read_to_end(&mut start));
    read.map_err(|source| Error::Read { path: file.to_owned(), source })?;
    Ok(start == magic)
}

/// Result of loading a dump.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// Errors that count.
    pub(crate) errors: Vec<String>,
    /// Number of harmless errors.
    pub(crate) harmless: u64,
}

impl Loaded {
    /// Collects the errors in the output of a client.
    pub(crate) fn parse(output: &str) -> Loaded {
        let mut loaded = Loaded::default();
        let mut exit = "no exit code";
        for line in output.lines() {
            if let Some(code) = line.strip_prefix("exit ") {
                exit = code;
            }
            let is_error = ["ERROR:", "FATAL:", "error:"].iter().any(|word| line.contains(word));
            if is_error && is_harmless(line) {
                loaded.harmless += 1;
            } else if is_error {
                loaded.errors.push(line.trim().to_owned());
            }
        }
        // pg_restore has exit code 1 after any error, and psql 3.
        if exit != "0" && loaded.errors.is_empty() && loaded.harmless == 0 {
            let last = output.lines().rev().nth(1).unwrap_or_default();
            loaded.errors.push(format!("exit code {exit}: {last}"));
        }
        loaded
    }
}

/// Returns true for an error about a role that exists, or about a comment on an extension of another
/// owner.
fn is_harmless(line: &str) -> bool {
    line.contains("must be owner of extension")
        || line.contains("role \"") && line.contains("already exists")
}

/// Returns true for an error that tells what this machine lacks: an extension, a locale, or a file
/// of the server.
fn is_of_machine(error: &str) -> bool {
    let lacks = [
        "could not create locale",
        "could not open collator for locale",
        "could not access file \"$libdir/",
        "could not open extension control file",
        "could not open dictionary file",
    ];
    error.contains("extension") && error.contains("not available")
        || lacks.iter().any(|words| error.contains(words))
}

/// Compares a loaded database with the counts of the backup.
pub(crate) fn judge(name: &str, loaded: &Loaded, counted: &[Rows], rows: &[Rows]) -> Check {
    let found: BTreeMap<&str, u64> = rows.iter().map(|of| (&of.table[..], of.rows)).collect();
    let mut wrong = Vec::new();
    for Rows { table, rows } in counted {
        match found.get(&table[..]) {
            None => wrong.push(format!("{table}: missing, {rows} rows in the backup")),
            Some(here) if here != rows => {
                wrong.push(format!("{table}: {here} rows, {rows} in the backup"));
            }
            Some(_) => {}
        }
    }
    let total: u64 = rows.iter().map(|of| of.rows).sum();
    let mut text = format!("{} tables with {total} rows loaded", rows.len());
    if counted.is_empty() {
        text += "; the backup counted no rows";
    }
    if loaded.harmless > 0 {
        text += &format!("; {} harmless errors about roles and extensions", loaded.harmless);
    }
    if !wrong.is_empty() {
        text += &format!("; {} of {} tables differ from the backup", wrong.len(), counted.len());
    }
    if !loaded.errors.is_empty() {
        text += &format!("; {} errors", loaded.errors.len());
    }
    let verdict = match (wrong.is_empty(), loaded.errors.is_empty()) {
        (true, true) => Verdict::Ok,
        _ if loaded.errors.iter().any(|error| is_of_machine(error)) => Verdict::Unknown,
        _ => Verdict::Failed,
    };
    Check::new(name, verdict, text).with_examples(loaded.errors.iter().cloned().chain(wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_servers_of_the_version_are_used() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, programs) in [("13", 5), ("15", 5), ("17", 4), ("lib", 5)] {
            let bin = dir.path().join(name).join("bin");
            std::fs::create_dir_all(&bin).expect("directories");
            for program in PROGRAMS.iter().take(programs) {
                std::fs::write(bin.join(program), "").expect("writes");
            }
        }
        let mut all: Vec<u32> =
            Installed::below(dir.path()).iter().map(|installed| installed.major).collect();
        all.sort_unstable();
        assert_eq!(all, [13, 15]);
        assert!(Installed::newest(1000).is_none());
    }

    #[test]
    fn tablespaces_of_the_instance_are_not_made() {
        let text = b"CREATE ROLE a;\nCREATE TABLESPACE t OWNER a LOCATION '/srv/t';\n\
                     GRANT ALL ON TABLESPACE t TO b;\nALTER TABLESPACE t SET (x='1');\n\
                     ALTER ROLE a SET default_tablespace TO 't';\nGRANT a TO b;\n";
        assert_eq!(without_tablespaces(text), b"CREATE ROLE a;\nGRANT a TO b;\n");
    }

    #[test]
    fn harmless_errors_are_counted() {
        let output = "pg_restore: error: could not execute query: ERROR:  must be owner of \
                      extension pg_trgm\nCommand was: COMMENT ON EXTENSION\n\
                      pg_restore: warning: errors ignored on restore: 1\nexit 1\n";
        assert_eq!(Loaded::parse(output), Loaded { errors: Vec::new(), harmless: 1 });
        let loaded = Loaded::parse("psql:x:1: ERROR:  relation \"a\" does not exist\nexit 3\n");
        assert_eq!(loaded.errors.len(), 1);
        let loaded = Loaded::parse("ERROR:  role \"git\" already exists\nexit 3\n");
        assert_eq!(loaded, Loaded { errors: Vec::new(), harmless: 1 });
        let loaded = Loaded::parse("ERROR:  relation \"a\" already exists\nexit 3\n");
        assert_eq!(loaded.errors.len(), 1);
        assert_eq!(Loaded::parse("Killed\nexit 137\n").errors, ["exit code 137: Killed"]);
        assert_eq!(Loaded::parse("exit 0\n"), Loaded::default());
    }

    #[test]
    fn what_this_machine_lacks_is_no_fault_of_the_backup() {
        let judged = |error: &str| {
            let loaded = Loaded::parse(&format!("pg_restore: error: ERROR:  {error}\nexit 1\n"));
            judge("database-x", &loaded, &[], &[]).verdict
        };
        for error in [
            "extension \"vector\" is not available",
            "could not create locale \"de_DE.UTF-8\": No such file or directory",
            "could not access file \"$libdir/plpython3\": No such file or directory",
        ] {
            assert_eq!(judged(error), Verdict::Unknown, "{error}");
        }
        assert_eq!(judged("relation \"a\" does not exist"), Verdict::Failed);
    }

    #[test]
    fn rows_are_compared_with_those_of_the_backup() {
        let row = |table: &str, rows| Rows { table: table.into(), rows };
        let counted = [row("a", 1), row("b", 2), row("c", 0)];
        let of = |loaded: &Loaded, rows: &[Rows]| judge("database-x", loaded, &counted, rows);
        let fine = Loaded::default();
        assert_eq!(of(&fine, &counted).verdict, Verdict::Ok);
        let check = of(&fine, &[row("a", 1), row("b", 1)]);
        assert_eq!(check.verdict, Verdict::Failed);
        assert_eq!(
            check.examples,
            ["b: 1 rows, 2 in the backup", "c: missing, 0 rows in the backup"]
        );
        let absent = "ERROR:  extension \"amcheck\" is not available";
        let absent = Loaded { errors: vec![absent.into()], harmless: 0 };
        assert_eq!(of(&absent, &[row("a", 1)]).verdict, Verdict::Unknown);
        assert_eq!(major("16.3 (Debian 16.3-1)"), Some(16));
        assert_eq!(major("unknown"), None);
    }
}
