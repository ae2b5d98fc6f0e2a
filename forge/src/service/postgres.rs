//! PostgreSQL: what databases there are, one moment of each, dumps of that moment.
//!
//! Everything goes through PostgreSQL's own clients, run as the user and in the place that
//! the product itself runs them: the server tells users apart by who connects to its
//! socket, so nobody else could connect in our stead.

use super::{Password, Reach};
use crate::error::{Error, Result};
use crate::run::{Command, Output, Patience, Running, Stdin};
use crate::secret::Secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use store::observe::Progress;

/// How long a server that is starting is waited for, if nobody says otherwise.
pub const WAIT: Duration = Duration::from_secs(60);
/// How long a dump may say nothing: a large table may be locked for a while.
pub const SILENCE: Duration = Duration::from_secs(30 * 60);
/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(10 * 60);
/// Variables of the clients that mean something in a container as well.
pub const VARIABLES: &[&str] = &["PGPASSWORD", "PGCONNECT_TIMEOUT", "PGAPPNAME", "PGOPTIONS"];
/// Told to the server when a connection begins: nothing that takes long is to be cut off, as
/// GitLab's package sets after a minute. A pooler does not hand on what it does not know, and so
/// betrays itself by the last one.
const OPTIONS: &str = "-c statement_timeout=0 -c lock_timeout=0 -c forgekeep.direct=on";
/// What a pooler says that refuses such options.
const NO_OPTIONS: &str = "unsupported startup parameter";
/// `psql` could not connect.
const NOT_CONNECTED: &str = "exit code 2";
/// Ends every answer; no row of ours looks like it.
const END: &str = "-- end of answer";
/// Stands after the rows of a question that may fail; it fails with it.
const ANSWERED: &str = "-- answered";
/// Stands before the reason of a failure.
const SAID: &str = "-- said ";
/// What dumps hold in place of a random key.
const RESTRICT_KEY: &str = "forgekeep";
/// The database that every server has from its beginning, to connect to.
pub const MAINTENANCE: &str = "postgres";
/// Bytes of a row as text; the largest are lists of paths.
const ROW_BYTES_MAX: u64 = 16 << 20;

/// A database server and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where the clients run.
    pub reach: Reach,
    /// Host name, or directory of the socket.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// The role to connect as.
    pub role: Option<String>,
    /// File of passwords for the clients.
    pub passfile: Option<PathBuf>,
    /// Where its password is, if the settings say so.
    pub secret: Option<Secret>,
    /// Its password otherwise, where the instance's own configuration has it.
    pub password: Option<Password>,
    /// How connections are encrypted, as variables of the clients.
    pub encryption: BTreeMap<&'static str, String>,
    /// Databases to save; without it, all that the server has.
    pub databases: Option<Vec<String>>,
    /// Whether it serves others as well, so that only databases that are named are saved.
    pub is_shared: bool,
    /// Databases that are left out on purpose.
    pub skipped: Vec<String>,
    /// How long to wait for it while it is starting.
    pub wait: Duration,
    /// How long a dump may say nothing.
    pub silence: Duration,
    /// Whether rows are counted.
    pub counts_rows: bool,
}

/// Rows of a table at the moment of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Its name with that of its schema.
    pub table: String,
    /// How many.
    pub rows: u64,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            reach: Reach::default(),
            host: None,
            port: 5432,
            role: None,
            passfile: None,
            secret: None,
            password: None,
            encryption: BTreeMap::new(),
            databases: None,
            is_shared: false,
            skipped: Vec::new(),
            wait: WAIT,
            silence: SILENCE,
            counts_rows: true,
        }
    }
}

impl Server {
    /// Connects to a database, waiting for a server that is starting.
    pub fn connect<'a>(&self, database: &str, progress: &'a Progress) -> Result<Connection<'a>> {
        let (started, mut was_ready) = (Instant::now(), false);
        loop {
            match Connection::open(self, database, progress) {
                Err(Error::Failed { said, .. }) if said.contains(NO_OPTIONS) => {
                    return Err(self.pooler());
                }
                // It may have become ready between our trying and our asking.
                Err(Error::Failed { status, .. })
                    if status == NOT_CONNECTED && started.elapsed() < self.wait && !was_ready =>
                {
                    was_ready = self.is_ready(progress)?;
                }
                other => return other,
            }
            if !was_ready {
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }

    /// Whether it takes connections, though not ours.
    fn is_ready(&self, progress: &Progress) -> Result<bool> {
        let command =
            self.reach.command("pg_isready", ["--quiet".into()].into_iter().chain(self.address()));
        match self.with_environment(command)?.output(progress) {
            Ok(_) => Ok(true),
            Err(error) if error.is_interrupted() => Err(error),
            // Without that program we wait.
            Err(_) => Ok(false),
        }
    }

    fn pooler(&self) -> Error {
        let host = self.host.as_deref().unwrap_or("the default socket");
        Error::Pooler { place: format!("{host}, port {}", self.port) }
    }

    /// Version of the server: its major number and all of it.
    pub fn version(&self, connection: &mut Connection<'_>) -> Result<(u32, String)> {
        #[derive(Deserialize)]
        struct Version {
            number: String,
            text: String,
        }
        let version: Version = connection.one(
            "select current_setting('server_version_num') as number, \
             current_setting('server_version') as text",
        )?;
        let number: u32 = version.number.parse().map_err(|_| Error::Service {
            service: "PostgreSQL".into(),
            reason: format!("its version is `{}`", version.number),
        })?;
        self.refuse_pooler(connection, number)?;
        Ok((number / 10_000, version.text))
    }

    /// Fails if what we told the server did not get to it.
    fn refuse_pooler(&self, connection: &mut Connection<'_>, number: u32) -> Result<()> {
        #[derive(Deserialize)]
        struct Told {
            direct: Option<String>,
        }
        // An older one fails where it was told nothing.
        let or_null = if number >= 90_600 { ", true" } else { "" };
        let query = format!("select current_setting('forgekeep.direct'{or_null}) as direct");
        match connection.one::<Told>(&query) {
            Ok(Told { direct: Some(direct) }) if direct == "on" => Ok(()),
            Ok(_) | Err(Error::Failed { .. }) => Err(self.pooler()),
            Err(error) => Err(error),
        }
    }

    /// Connects to any database, to ask what there is: to the one that is there for that, or
    /// else to one of `wanted`.
    pub fn connect_first<'a>(
        &self,
        wanted: &[&str],
        progress: &'a Progress,
    ) -> Result<Connection<'a>> {
        let first = match self.connect(MAINTENANCE, progress) {
            Err(first @ Error::Failed { .. }) => first,
            other => return other,
        };
        for database in wanted {
            match self.connect(database, progress) {
                Err(Error::Failed { .. }) => {}
                other => return other,
            }
        }
        Err(first)
    }

    /// Whether the role we connect as may read the passwords of roles.
    pub fn reads_passwords(&self, connection: &mut Connection<'_>) -> Result<bool> {
        #[derive(Deserialize)]
        struct May {
            read: bool,
        }
        let query = "select has_table_privilege('pg_authid', 'select') as read";
        Ok(connection.one::<May>(query)?.read)
    }

    /// The databases to save, of which the plan names some, and why others are not.
    pub fn databases(
        &self,
        connection: &mut Connection<'_>,
        planned: &[&str],
    ) -> Result<(Vec<String>, Vec<String>)> {
        #[derive(Deserialize)]
        struct Listed {
            name: String,
            may_connect: bool,
        }
        let all: Vec<Listed> = connection.rows(
            "select datname as name, has_database_privilege(datname, 'CONNECT') as may_connect \
             from pg_database where datallowconn and not datistemplate order by 1",
        )?;
        let (mut names, mut notes) = (Vec::new(), Vec::new());
        for Listed { name, may_connect } in all {
            let is_planned = planned.contains(&name.as_str());
            let is_wanted = self.databases.as_ref().map(|wanted| wanted.contains(&name));
            if self.skipped.contains(&name) || is_wanted == Some(false) {
                continue;
            }
            if is_planned || is_wanted == Some(true) {
                names.push(name);
            } else if name == MAINTENANCE {
                // That one is there to connect to.
            } else if self.is_shared {
                notes.push(not_dumped(&name, "it is none of this instance's"));
            } else if !may_connect {
                notes.push(not_dumped(&name, "the role of the backup may not connect to it"));
            } else {
                names.push(name);
            }
        }
        Ok((names, notes))
    }

    /// Connects to a database of which the instance need not have anything; or why it cannot be
    /// dumped.
    pub fn connect_to_other<'a>(
        &self,
        name: &str,
        progress: &'a Progress,
    ) -> Result<std::result::Result<Connection<'a>, String>> {
        #[derive(Deserialize)]
        struct Closed {
            count: u64,
        }
        let mut connection = match self.connect(name, progress) {
            Ok(connection) => connection,
            Err(Error::Failed { said, .. }) => return Ok(Err(not_dumped(name, said.trim()))),
            Err(error) => return Err(error),
        };
        // What is locked or read by a dump.
        let closed: Closed = connection.one(
            "select count(*) as count from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind in ('r', 'p', 'S') and n.nspname !~ '^pg_' \
             and n.nspname <> 'information_schema' and not (has_schema_privilege(n.oid, 'usage') \
             and has_table_privilege(c.oid, 'select'))",
        )?;
        Ok(match closed.count {
            0 => Ok(connection),
            count => {
                let reason = format!("the role of the backup may not read {count} of its tables");
                Err(not_dumped(name, &reason))
            }
        })
    }

    /// The client that can dump a server of this major version: its own directory, or the
    /// place in which it is run.
    pub fn client(&self, server: u32, progress: &Progress) -> Result<Reach> {
        let own = PathBuf::from(format!("/usr/lib/postgresql/{server}/bin"));
        let mut newest = None;
        let mut candidates: Vec<Reach> =
            self.reach.bin.iter().map(|dir| self.reach_with(vec![dir.clone()])).collect();
        if self.reach.into.is_empty() {
            candidates.push(self.reach_with(vec![own]));
        }
        candidates.push(self.reach_with(Vec::new()));
        for reach in candidates {
            if reach.into.is_empty() && reach.bin.iter().any(|dir| !dir.join("pg_dump").exists()) {
                continue;
            }
            match reach.command("pg_dump", ["--version"]).output(progress) {
                Ok(output) => {
                    let client = major(&String::from_utf8_lossy(&output));
                    if client >= Some(server) {
                        return Ok(reach);
                    }
                    newest = newest.max(client);
                }
                Err(Error::Start { .. } | Error::Failed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match newest {
            Some(client) => Err(Error::ClientTooOld { client, server }),
            None => {
                let places = self.reach.bin.iter().map(|dir| dir.display().to_string());
                let places =
                    places.chain([format!("/usr/lib/postgresql/{server}/bin"), "PATH".into()]);
                Err(Error::NoProgram { program: "pg_dump".into(), places: places.collect() })
            }
        }
    }

    fn reach_with(&self, bin: Vec<PathBuf>) -> Reach {
        Reach { bin, ..self.reach.clone() }
    }

    /// Dumps a database as of a moment that [`Connection::moment`] gave, uncompressed and in
    /// the custom format, which `pg_restore` reads.
    pub fn dump(&self, client: &Reach, database: &str, moment: &str) -> Result<Running> {
        let words = ["--format=custom", "--compress=0", "--no-password"].map(String::from);
        let words = words.into_iter().chain([format!("--snapshot={moment}")]);
        let words = words.chain(self.address()).chain([database_word(database)]);
        self.with_environment(client.command("pg_dump", words))?
            .within(self.silence)
            .start(Stdin::Nothing)
    }

    /// Roles with their settings, and tablespaces, as SQL; with the passwords of roles, if
    /// the role we connect as may read them.
    pub fn globals(
        &self,
        client: &Reach,
        reads_passwords: bool,
        progress: &Progress,
    ) -> Result<Vec<u8>> {
        let help = client.command("pg_dumpall", ["--help"]).output(progress)?;
        let knows_key = String::from_utf8_lossy(&help).contains("--restrict-key");
        let key = knows_key.then(|| format!("--restrict-key={RESTRICT_KEY}"));
        let without = (!reads_passwords).then(|| "--no-role-passwords".to_owned());
        let words = ["--globals-only", "--no-password"].map(String::from).into_iter();
        let words = words.chain(key).chain(without).chain(self.address());
        let command = self.with_environment(client.command("pg_dumpall", words))?;
        command.within(QUESTION).output(progress)
    }

    fn address(&self) -> impl Iterator<Item = String> {
        let host = self.host.iter().map(|host| format!("--host={host}"));
        let role = self.role.iter().map(|role| format!("--username={role}"));
        host.chain(role).chain([format!("--port={}", self.port)]).collect::<Vec<_>>().into_iter()
    }

    fn with_environment(&self, command: Command) -> Result<Command> {
        let mut command = command
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGAPPNAME", "forgekeep")
            .env("PGOPTIONS", OPTIONS);
        for (name, value) in &self.encryption {
            command = command.env(name, value);
        }
        if let Some(secret) = &self.secret {
            command = command.env("PGPASSWORD", secret.read().map_err(Error::Secret)?.reveal());
        } else if let Some(Password(password)) = &self.password {
            command = command.env("PGPASSWORD", password);
        }
        Ok(match &self.passfile {
            Some(file) => command.env("PGPASSFILE", file.display().to_string()),
            None => command,
        })
    }
}

/// An open connection to one database: a `psql` that is asked one thing after the other.
#[derive(Debug)]
pub struct Connection<'a> {
    running: Running,
    output: BufReader<Output<'a>>,
    /// Name of the database.
    pub database: String,
}

impl<'a> Connection<'a> {
    fn open(server: &Server, database: &str, progress: &'a Progress) -> Result<Connection<'a>> {
        let words = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password"];
        let words = words.map(String::from).into_iter();
        // A result is fetched in pieces, so that psql stays small.
        let words =
            words.chain(["--set=ON_ERROR_STOP=1", "--set=FETCH_COUNT=1000"].map(String::from));
        let words = words.chain(server.address()).chain([database_word(database)]);
        let command = server.with_environment(server.reach.command("psql", words))?;
        let mut running = command.within(QUESTION).start(Stdin::Piped)?;
        let output = BufReader::new(running.stdout(progress, Patience::Silence));
        let mut connection = Connection { running, output, database: database.to_owned() };
        // Older servers do not know all of them.
        connection.rows::<serde_json::Value>(
            "select set_config(name, '0', false) from pg_settings where name in \
             ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')",
        )?;
        // Where there is no encoding, nothing can be converted.
        connection.rows::<serde_json::Value>(
            "select set_config('client_encoding', case current_setting('server_encoding') \
             when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end, false)",
        )?;
        Ok(connection)
    }

    /// Begins to see one moment of the database, and gives it the name that dumps can be
    /// told. It lasts as long as the connection.
    pub fn moment(&mut self) -> Result<String> {
        #[derive(Deserialize)]
        struct Moment {
            name: String,
        }
        // Paths have the days of GitLab's times, which are those of UTC.
        self.tell("set time zone 'UTC'")?;
        self.tell("begin transaction isolation level repeatable read, read only")?;
        let moment: Moment = self.one("select pg_export_snapshot() as name")?;
        Ok(moment.name)
    }

    /// How many rows each table has.
    pub fn count_rows(&mut self) -> Result<Vec<Rows>> {
        // The first query writes the queries that count.
        self.tell_and_read(
            "select format('select json_build_object(''table'', %L, ''rows'', count(*)) from %s', \
             c.oid::regclass, c.oid::regclass) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and c.relpersistence = 'p' \
             and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' order by c.oid::regclass::text \\gexec",
        )
    }

    /// The columns of a table that is found by its name alone; none if there is no such table.
    pub fn columns(&mut self, table: &str) -> Result<Columns> {
        #[derive(Deserialize)]
        struct Column {
            name: String,
        }
        let columns: Vec<Column> = self.rows(&format!(
            "select attname as name from pg_attribute \
             where attrelid = to_regclass({}) and attnum > 0 and not attisdropped order by attnum",
            literal(table)
        ))?;
        Ok(Columns(columns.into_iter().map(|column| column.name).collect()))
    }

    /// The only row of a query.
    pub fn one<T: DeserializeOwned>(&mut self, query: &str) -> Result<T> {
        let mut rows = self.rows(query)?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(self.odd("one row was expected")),
        }
    }

    /// All rows of a query, each as an object of its columns.
    pub fn rows<T: DeserializeOwned>(&mut self, query: &str) -> Result<Vec<T>> {
        self.tell_and_read(&format!("select row_to_json(answer) from ({query}) answer;"))
    }

    /// All rows of a query that may fail, or why it did. A connection that is lost is still an
    /// error. Only for one that has begun to see its moment: what a failed statement would end
    /// with it is kept by a savepoint.
    pub fn attempt<T: DeserializeOwned>(
        &mut self,
        query: &str,
    ) -> Result<std::result::Result<Vec<T>, String>> {
        // After a failure the server refuses everything up to the rollback, also the mark. Clients
        // before 11 do not know the variable with the reason, so it is given a value first.
        let text = format!(
            "\\set LAST_ERROR_MESSAGE 'the server refused it'\n\
             savepoint question;\n\
             \\set ON_ERROR_STOP 0\n\
             select row_to_json(answer) from ({query}) answer;\n\
             \\set said :LAST_ERROR_MESSAGE\n\
             select '{ANSWERED}';\n\
             rollback to savepoint question;\n\
             \\set ON_ERROR_STOP 1\n\
             release savepoint question;\n\
             select '{SAID}' || :'said';"
        );
        let (mut rows, mut said, mut is_answered) = (Ok(Vec::new()), None, false);
        self.ask(&text, |line| {
            if line == ANSWERED.as_bytes() {
                is_answered = true;
            } else if let Some(reason) = line.strip_prefix(SAID.as_bytes()) {
                said = Some(String::from_utf8_lossy(reason).into_owned());
            } else if said.is_none() {
                take(&mut rows, line);
            }
        })?;
        Ok(if is_answered { rows } else { Err(said.unwrap_or_default()) })
    }

    /// Runs a statement without rows.
    fn tell(&mut self, statement: &str) -> Result<()> {
        self.tell_and_read::<serde_json::Value>(&format!("{statement};")).map(drop)
    }

    fn tell_and_read<T: DeserializeOwned>(&mut self, text: &str) -> Result<Vec<T>> {
        let mut rows = Ok(Vec::new());
        self.ask(text, |line| take(&mut rows, line))?;
        rows.map_err(|reason| self.odd(&reason))
    }

    /// Hands on each line of an answer, all of which is read whatever is in it.
    fn ask(&mut self, text: &str, mut take: impl FnMut(&[u8])) -> Result<()> {
        self.running.write(format!("{text}\nselect '{END}';\n").as_bytes())?;
        loop {
            let mut line = Vec::new();
            let mut row = std::io::Read::take(&mut self.output, ROW_BYTES_MAX);
            match row.read_until(b'\n', &mut line) {
                Ok(0) => return Err(self.running.failure()),
                Ok(_) if line.last() != Some(&b'\n') => return Err(self.odd("a row is too long")),
                Ok(_) if line.trim_ascii() == END.as_bytes() => return Ok(()),
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => take(line.trim_ascii()),
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    return Err(self.running.failure());
                }
                Err(error) => {
                    self.output.get_ref().progress().check()?;
                    return Err(self.odd(&error.to_string()));
                }
            }
        }
    }

    fn odd(&self, reason: &str) -> Error {
        Error::Service { service: format!("database {}", self.database), reason: reason.into() }
    }
}

/// Adds a row, unless one before it made no sense.
fn take<T: DeserializeOwned>(rows: &mut std::result::Result<Vec<T>, String>, line: &[u8]) {
    if let Ok(known) = rows {
        // A database without an encoding may answer anything.
        match serde_json::from_str(&String::from_utf8_lossy(line)) {
            Ok(row) => known.push(row),
            Err(error) => *rows = Err(error.to_string()),
        }
    }
}

/// Names of the columns of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns(Vec<String>);

impl Columns {
    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|column| column == name)
    }

    /// Whether there is no such table.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn not_dumped(name: &str, reason: &str) -> String {
    format!(
        "database {name} is not dumped: {reason}; `postgres.databases` names it if it should be"
    )
}

/// A database as an argument: a plain name with `=` in it would be taken for something else.
fn database_word(name: &str) -> String {
    format!("--dbname=dbname='{}'", name.replace('\\', r"\\").replace('\'', r"\'"))
}

/// A text as SQL wants it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The major version in `pg_dump (PostgreSQL) 15.18 (Debian …)`.
fn major(version: &str) -> Option<u32> {
    let number =
        version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found() {
        assert_eq!(major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major("pg_dump (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("nothing"), None);
    }

    #[test]
    fn texts_are_quoted() {
        assert_eq!(literal("it's"), "'it''s'");
    }
}
