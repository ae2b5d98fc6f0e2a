//! PostgreSQL: lists databases, exports snapshots and dumps at these snapshots.
//!
//! All access uses PostgreSQL's own clients, as the user and in the environment in which the
//! product runs them. The server may authenticate users by the peer of its socket, so another user
//! could not connect.

use super::{Password, Reach};
use crate::error::{Error, Result};
use crate::process::{Command, Output, Patience, Running, Stdin};
use crate::secret::Secret;
use crate::set_aside;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use store::observe::Progress;

/// Default time to wait for a server that is starting.
pub const WAIT: Duration = Duration::from_secs(60);
/// Default longest time that a dump may print nothing: a large table may be locked for a while.
pub const SILENCE: Duration = Duration::from_secs(30 * 60);
/// Time limit of one question.
const QUESTION: Duration = Duration::from_secs(10 * 60);
/// Client variables that must also be set in a container.
pub const VARIABLES: &[&str] = &["PGPASSWORD", "PGCONNECT_TIMEOUT", "PGAPPNAME", "PGOPTIONS"];
/// Server options of every connection. They disable timeouts, because GitLab's package cancels
/// statements after a minute. A pooler does not pass on unknown options, so the last one detects a
/// pooler.
const OPTIONS: &str = "-c statement_timeout=0 -c lock_timeout=0 -c forgekeep.direct=on";
/// The same for loading, also into a database that its settings make read-only.
pub const LOAD_OPTIONS: &str = "-c statement_timeout=0 -c lock_timeout=0 -c forgekeep.direct=on \
                                -c default_transaction_read_only=off";
/// Error text of a pooler that rejects such options.
const NO_OPTIONS: &str = "unsupported startup parameter";
/// Error texts of a server, or of a pooler, that has no free connection.
const NO_FREE_CONNECTION: [&str; 4] = [
    "too many clients",
    "too many connections",
    "remaining connection slots",
    "no more connections allowed",
];
/// Pause before another try to get a connection.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// Error text of a client that may not reach the socket, which waiting does not change.
const DENIED: &str = "Permission denied";
/// Error texts of a server that cannot read the files of a database.
const DAMAGE: [&str; 5] =
    ["could not open", "could not read", "invalid page", "cache lookup failed", "subdirectory"];
/// Exit status of `psql` if it could not connect.
const NOT_CONNECTED: &str = "exit code 2";
/// Marks the end of an answer; no row of ours equals it.
const END: &str = "-- end of answer";
/// Follows the rows of a question that may fail; missing if the question failed.
const ANSWERED: &str = "-- answered";
/// Prefix of the reason for a failure.
const REASON: &str = "-- reason ";
/// Replaces the random restrict key in the dump of roles.
const RESTRICT_KEY: &str = "forgekeep";
/// Database for connections that every server has from the start.
pub const MAINTENANCE: &str = "postgres";
/// Longest row in bytes, as text; the largest rows are lists of paths.
const ROW_BYTES_MAX: u64 = 16 << 20;

/// A database server and the access to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Environment in which the clients run.
    pub reach: Reach,
    /// Host name, or directory of the socket.
    pub host: Option<String>,
    /// Port of the server.
    pub port: u16,
    /// The role to connect as.
    pub role: Option<String>,
    /// Password file for the clients.
    pub passfile: Option<PathBuf>,
    /// Source of the password, if the settings name one.
    pub secret: Option<Secret>,
    /// Otherwise the password from the instance's own configuration.
    pub password: Option<Password>,
    /// Encryption of connections, as variables of the clients.
    pub encryption: BTreeMap<&'static str, String>,
    /// Databases to dump; all databases of the server if not given.
    pub databases: Option<Vec<String>>,
    /// True if the server also serves others, so that only named databases are dumped.
    pub is_shared: bool,
    /// Databases that are excluded on purpose.
    pub skipped: Vec<String>,
    /// Time to wait for the server while it starts.
    pub wait: Duration,
    /// Longest time that a dump may print nothing.
    pub silence: Duration,
    /// True if the rows of each table are counted.
    pub counts_rows: bool,
}

/// Identity of a running server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its address.
    pub address: String,
    /// Number that its data directory got when it was made, unless the role may not ask for it.
    pub system: Option<String>,
    /// Time at which it was started.
    pub started: Option<String>,
}

impl Identity {
    /// Returns true if both are one server. A copy of a data directory has the number of the original,
    /// so address or start must be the same as well.
    pub fn is_same(&self, other: &Identity) -> bool {
        let is_known = self.system.is_some() && other.system.is_some();
        if is_known && self.system != other.system {
            return false;
        }
        self.address == other.address || is_known && self.started == other.started
    }
}

/// Number of rows of a table at the consistency point of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rows {
    /// Name of the table with its schema.
    pub table: String,
    /// Number of rows.
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
    /// Connects to a database. Waits for a server that is starting or has no free connection.
    pub fn connect<'a>(&self, database: &str, progress: &'a Progress) -> Result<Connection<'a>> {
        self.when_free(progress, || self.connect_when_started(database, progress))
    }

    /// Repeats an attempt as long as the server has no free connection, up to the time limit.
    pub fn when_free<T>(
        &self,
        progress: &Progress,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let started = Instant::now();
        let is_busy = |output: &str| NO_FREE_CONNECTION.iter().any(|text| output.contains(text));
        loop {
            match attempt() {
                Err(Error::Failed { output, .. })
                    if is_busy(&output) && started.elapsed() < self.wait => {}
                other => return other,
            }
            progress.check()?;
            std::thread::sleep(BUSY_PAUSE);
        }
    }

    fn connect_when_started<'a>(
        &self,
        database: &str,
        progress: &'a Progress,
    ) -> Result<Connection<'a>> {
        let (started, mut was_ready) = (Instant::now(), false);
        loop {
            match Connection::open(self, database, progress) {
                Err(Error::Failed { output, .. }) if output.contains(NO_OPTIONS) => {
                    return Err(self.pooler());
                }
                Err(error @ Error::Failed { .. }) if is_denied(&error) => return Err(error),
                // The server may have become ready between this failure and the next question.
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

    /// Returns true if the server accepts connections, though it refused ours.
    fn is_ready(&self, progress: &Progress) -> Result<bool> {
        let command =
            self.reach.command("pg_isready", ["--quiet".into()].into_iter().chain(self.address()));
        match self.with_environment(command)?.output(progress) {
            Ok(_) => Ok(true),
            Err(error) if error.is_interrupted() => Err(error),
            // Without `pg_isready`, wait.
            Err(_) => Ok(false),
        }
    }

    /// Formats the address: the host or the directory of the socket, and the port. The container in
    /// which the clients run comes first.
    pub fn shown(&self) -> String {
        let host = self.host.as_deref().unwrap_or("socket");
        format!("{}{host}:{}", self.reach.place(), self.port)
    }

    /// Asks a server who it is.
    pub fn identity(&self, progress: &Progress) -> Result<Identity> {
        #[derive(Deserialize)]
        struct Text {
            text: Option<String>,
        }
        let mut connection = self.connect_first(&["template1"], progress)?;
        let mut ask = |query: &str| match connection.one::<Text>(query) {
            Ok(answer) => Ok(answer.text),
            Err(error) if error.is_interrupted() => Err(error),
            // A connection ends with its first error.
            Err(_) => Ok(None),
        };
        let started = ask("select pg_postmaster_start_time()::text as text")?;
        let may =
            ask("select has_function_privilege(to_regprocedure('pg_control_system()')::oid, \
             'execute')::text as text")?;
        let system = match may.as_deref() {
            Some("true") => ask("select system_identifier::text as text from pg_control_system()")?,
            _ => None,
        };
        Ok(Identity { address: self.shown(), system, started })
    }

    fn pooler(&self) -> Error {
        let host = self.host.as_deref().unwrap_or("the default socket");
        Error::Pooler { place: format!("{host}, port {}", self.port) }
    }

    /// Returns the major version of the server and its full version. Fails if a pooler answers.
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
            reason: format!("its version `{}` is not a number", version.number),
        })?;
        self.refuse_pooler(connection, number)?;
        Ok((number / 10_000, version.text))
    }

    /// Fails if the options of the connection did not reach the server.
    fn refuse_pooler(&self, connection: &mut Connection<'_>, number: u32) -> Result<()> {
        #[derive(Deserialize)]
        struct Setting {
            direct: Option<String>,
        }
        // Older servers have no second argument and fail if the option is missing.
        let or_null = if number >= 90_600 { ", true" } else { "" };
        let query = format!("select current_setting('forgekeep.direct'{or_null}) as direct");
        match connection.one::<Setting>(&query) {
            Ok(Setting { direct: Some(direct) }) if direct == "on" => Ok(()),
            Ok(_) | Err(Error::Failed { .. }) => Err(self.pooler()),
            Err(error) => Err(error),
        }
    }

    /// Connects to any database to query the server: to [`MAINTENANCE`], or else to one of
    /// `wanted`.
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

    /// Returns true if the role of the connection may read the passwords of roles.
    pub fn reads_passwords(&self, connection: &mut Connection<'_>) -> Result<bool> {
        #[derive(Deserialize)]
        struct May {
            read: bool,
        }
        let query = "select has_table_privilege('pg_authid', 'select') as read";
        Ok(connection.one::<May>(query)?.read)
    }

    /// Returns the names of the databases to dump, and notes on those that are not dumped.
    pub fn databases(
        &self,
        connection: &mut Connection<'_>,
        planned: &[&str],
    ) -> Result<(Vec<String>, Vec<String>)> {
        #[derive(Deserialize)]
        struct DatabaseRow {
            name: String,
            is_open: bool,
            is_invalid: bool,
            may_connect: bool,
        }
        let all: Vec<DatabaseRow> = connection.rows(
            "select datname as name, datallowconn as is_open, datconnlimit = -2 as is_invalid, \
             has_database_privilege(datname, 'CONNECT') as may_connect \
             from pg_database where datname not in ('template0', 'template1') order by 1",
        )?;
        let (mut names, mut notes) = (Vec::new(), Vec::new());
        for DatabaseRow { name, is_open, is_invalid, may_connect } in all {
            let is_planned = planned.contains(&name.as_str());
            let is_wanted = self.databases.as_ref().map(|wanted| wanted.contains(&name));
            if self.skipped.contains(&name) || is_wanted == Some(false) {
                continue;
            }
            if is_invalid {
                let reason = "an interrupted `drop database` has left it invalid";
                let next = "it cannot be dumped: drop it, or restore it from an older snapshot";
                notes.push(not_dumped(&name, reason, next).to_string());
            } else if !is_open {
                notes.push(format!("database {name} is not dumped: it allows no connections"));
            } else if is_planned || is_wanted == Some(true) {
                names.push(name);
            } else if name == MAINTENANCE {
                // This database exists only for connections.
            } else if set_aside::is_database(&name) {
                let reason = "a rebuild has set it aside";
                let next = "drop it once it is not needed any more";
                notes.push(not_dumped(&name, reason, next).to_string());
            } else if self.is_shared {
                let reason = "it does not belong to this instance";
                let next = "to dump it, list it in `postgres.databases`";
                notes.push(not_dumped(&name, reason, next).to_string());
            } else if !may_connect {
                let reason = "the role of the backup may not connect to it";
                let next = "to dump it, grant CONNECT on it to that role";
                notes.push(not_dumped(&name, reason, next).to_string());
            } else {
                names.push(name);
            }
        }
        Ok((names, notes))
    }

    /// Connects to a database that is not in the plan. The inner error says why the role of the backup
    /// cannot dump it; any other error is a fault of the database or the server.
    pub fn connect_to_other<'a>(
        &self,
        name: &str,
        progress: &'a Progress,
    ) -> Result<std::result::Result<Connection<'a>, NotDumped>> {
        #[derive(Deserialize)]
        struct Closed {
            count: u64,
        }
        let mut connection = match self.connect(name, progress) {
            Ok(connection) => connection,
            Err(Error::Failed { status, output, .. })
                if status == NOT_CONNECTED && !DAMAGE.iter().any(|text| output.contains(text)) =>
            {
                let next = "to dump it, let the role of the backup connect to it";
                return Ok(Err(not_dumped(name, output.trim(), next)));
            }
            Err(error) => return Err(error),
        };
        // Counts the tables and sequences that a dump could not read.
        let closed: Closed = connection.one(
            "select count(*) as count from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind in ('r', 'p', 'S') and n.nspname !~ '^pg_' \
             and n.nspname <> 'information_schema' and not (has_schema_privilege(n.oid, 'usage') \
             and has_table_privilege(c.oid, 'select'))",
        )?;
        // A damaged catalogue fails here rather than among the questions about the instance.
        connection.columns("projects")?;
        Ok(match closed.count {
            0 => Ok(connection),
            count => {
                let reason = format!("the role of the backup may not read {count} of its tables");
                Err(not_dumped(name, &reason, "to dump it, grant SELECT on them to that role"))
            }
        })
    }

    /// Finds a client that can dump a server of this major version: in the set directories, in that
    /// version's own directory, or in `PATH`.
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

    /// Dumps a database at the snapshot that [`Connection::export_snapshot`] exported. The output is
    /// uncompressed, in the custom format of `pg_restore`.
    pub fn dump(&self, client: &Reach, database: &str, exported: &str) -> Result<Running> {
        let words = ["--format=custom", "--compress=0", "--no-password"].map(String::from);
        let words = words.into_iter().chain([format!("--snapshot={exported}")]);
        let words = words.chain(self.address()).chain([database_word(database)]);
        self.with_environment(client.command("pg_dump", words))?
            .within(self.silence)
            .start(Stdin::Nothing)
    }

    /// Dumps roles with their settings, and tablespaces, as SQL. Includes the passwords of roles if
    /// the role of the connection may read them.
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
        let command = self.with_environment(client.command("pg_dumpall", words))?.within(QUESTION);
        self.when_free(progress, || command.output(progress))
    }

    /// Makes a command that runs a client program on a database of the server.
    pub fn tool(
        &self,
        client: &Reach,
        program: &str,
        words: &[&str],
        database: &str,
    ) -> Result<Command> {
        let words = words.iter().map(|word| (*word).to_owned()).chain(["--no-password".into()]);
        let words = words.chain(self.address()).chain([database_word(database)]);
        self.with_environment(client.command(program, words))
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
            command = command.env("PGPASSWORD", secret.read()?.reveal());
        } else if let Some(Password(password)) = &self.password {
            command = command.env("PGPASSWORD", password);
        }
        Ok(match &self.passfile {
            Some(file) => command.env("PGPASSFILE", file.display().to_string()),
            None => command,
        })
    }
}

/// An open connection to one database: a `psql` that answers one question at a time.
#[derive(Debug)]
pub struct Connection<'a> {
    running: Running,
    output: BufReader<Output<'a>>,
    /// Name of the database.
    pub database: String,
    /// Tables whose rows do not count.
    hidden: BTreeSet<String>,
}

impl<'a> Connection<'a> {
    fn open(server: &Server, database: &str, progress: &'a Progress) -> Result<Connection<'a>> {
        let words = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password"];
        let words = words.map(String::from).into_iter();
        // Fetches results in pieces, so that psql needs little memory.
        let words =
            words.chain(["--set=ON_ERROR_STOP=1", "--set=FETCH_COUNT=1000"].map(String::from));
        let words = words.chain(server.address()).chain([database_word(database)]);
        let command = server.with_environment(server.reach.command("psql", words))?;
        let mut running = command.within(QUESTION).start(Stdin::Piped)?;
        let output = BufReader::new(running.stdout(progress, Patience::Silence));
        let mut connection =
            Connection { running, output, database: database.to_owned(), hidden: BTreeSet::new() };
        // Older servers do not know all of these settings.
        connection.rows::<serde_json::Value>(
            "select set_config(name, '0', false) from pg_settings where name in \
             ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')",
        )?;
        // The role may have another path, on which GitLab's tables are not.
        connection.rows::<serde_json::Value>(
            "select set_config('search_path', coalesce(nullif(current_setting('search_path'), '') \
             || ', ', '') || 'public', false)",
        )?;
        // A database without an encoding cannot convert its text.
        connection.rows::<serde_json::Value>(
            "select set_config('client_encoding', case current_setting('server_encoding') \
             when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end, false)",
        )?;
        Ok(connection)
    }

    /// Begins a read-only transaction and exports its snapshot. Returns the name of the snapshot
    /// for dumps. The snapshot lasts as long as the connection.
    pub fn export_snapshot(&mut self) -> Result<String> {
        #[derive(Deserialize)]
        struct Exported {
            name: String,
        }
        // Paths contain dates in UTC, which is GitLab's time zone.
        self.execute("set time zone 'UTC'")?;
        self.execute("begin transaction isolation level repeatable read, read only")?;
        let exported: Exported = self.one("select pg_export_snapshot() as name")?;
        Ok(exported.name)
    }

    /// Counts the rows of every table. The names do not depend on the search path: those of the schema
    /// `public` stand alone.
    pub fn count_rows(&mut self) -> Result<Vec<Rows>> {
        // The first query generates the counting queries.
        self.execute_and_read(
            "select format('select json_build_object(''table'', %L, ''rows'', count(*)) from %I.%I', \
             t.name, t.nspname, t.relname) from (select n.nspname, c.relname, \
             case n.nspname when 'public' then '' else quote_ident(n.nspname) || '.' end \
             || quote_ident(c.relname) as name \
             from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname !~ '^pg_' \
             and n.nspname <> 'information_schema' and not exists (select from pg_depend d \
             where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')) t \
             order by t.name \\gexec",
        )
    }

    /// Hides tables from questions about columns. Dumps have them all the same.
    pub fn hide(&mut self, tables: BTreeSet<String>) {
        self.hidden = tables;
    }

    /// Returns true if a table is hidden.
    pub fn hides(&self, table: &str) -> bool {
        self.hidden.contains(table)
    }

    /// Returns the columns of the table that the search path finds under this name. Returns none for
    /// a missing or hidden table.
    pub fn columns(&mut self, table: &str) -> Result<Columns> {
        if self.hides(table) {
            return Ok(Columns(Vec::new()));
        }
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

    /// Runs a query that has exactly one row.
    pub fn one<T: DeserializeOwned>(&mut self, query: &str) -> Result<T> {
        let mut rows = self.rows(query)?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(self.odd("the query did not return exactly one row")),
        }
    }

    /// Runs a query. Each row is an object of its columns.
    pub fn rows<T: DeserializeOwned>(&mut self, query: &str) -> Result<Vec<T>> {
        self.execute_and_read(&format!("select row_to_json(answer) from ({query}) answer;"))
    }

    /// Runs a query that may fail. Returns its rows or the reason of the failure; a lost connection
    /// is still an error. Requires an open transaction, which a savepoint protects from the failed
    /// statement.
    pub fn attempt<T: DeserializeOwned>(
        &mut self,
        query: &str,
    ) -> Result<std::result::Result<Vec<T>, QueryError>> {
        // After a failure the server rejects everything up to the rollback, including the mark.
        // Clients before 11 do not set the variable with the reason, so it gets a value first.
        let text = format!(
            "\\set LAST_ERROR_MESSAGE 'the server refused it'\n\
             savepoint question;\n\
             \\set ON_ERROR_STOP 0\n\
             select row_to_json(answer) from ({query}) answer;\n\
             \\set reason :LAST_ERROR_MESSAGE\n\
             select '{ANSWERED}';\n\
             rollback to savepoint question;\n\
             \\set ON_ERROR_STOP 1\n\
             release savepoint question;\n\
             select '{REASON}' || :'reason';"
        );
        let (mut rows, mut message, mut is_answered) = (Ok(Vec::new()), None, false);
        self.ask(&text, |line| {
            if line == ANSWERED.as_bytes() {
                is_answered = true;
            } else if let Some(reason) = line.strip_prefix(REASON.as_bytes()) {
                message = Some(String::from_utf8_lossy(reason).into_owned());
            } else if message.is_none() {
                take(&mut rows, line);
            }
        })?;
        Ok(if is_answered {
            rows.map_err(QueryError::Row)
        } else {
            Err(QueryError::Refused(message.unwrap_or_default()))
        })
    }

    /// Runs a statement without rows.
    pub fn execute(&mut self, statement: &str) -> Result<()> {
        self.execute_and_read::<serde_json::Value>(&format!("{statement};")).map(drop)
    }

    fn execute_and_read<T: DeserializeOwned>(&mut self, text: &str) -> Result<Vec<T>> {
        let mut rows = Ok(Vec::new());
        self.ask(text, |line| take(&mut rows, line))?;
        rows.map_err(|error| self.odd(&error.to_string()))
    }

    /// Passes each line of an answer to `take`. Always reads the whole answer.
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

/// Adds a row, unless an earlier row was invalid.
fn take<T: DeserializeOwned>(rows: &mut serde_json::Result<Vec<T>>, line: &[u8]) {
    if let Ok(known) = rows {
        // A database without an encoding may return any bytes.
        match serde_json::from_str(&String::from_utf8_lossy(line)) {
            Ok(row) => known.push(row),
            Err(error) => *rows = Err(error),
        }
    }
}

/// Column names of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns(Vec<String>);

impl Columns {
    /// Returns true if the table has this column.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|column| column == name)
    }

    /// Returns true if there is no such table.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn not_dumped(name: &str, reason: &str, next: &'static str) -> NotDumped {
    NotDumped { name: name.to_owned(), reason: reason.to_owned(), next }
}

/// A database that is not in the plan and cannot be dumped.
#[derive(Debug, thiserror::Error)]
#[error("database {name} is not dumped: {reason}; {next}")]
pub struct NotDumped {
    name: String,
    reason: String,
    next: &'static str,
}

/// Reason why a query has no rows.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The server refused it, for this reason.
    #[error("{0}")]
    Refused(String),
    /// A row has an unexpected form.
    #[error("{0}")]
    Row(serde_json::Error),
}

/// Formats a database name as an argument. The client would parse a plain name with `=` as a
/// connection string.
fn database_word(name: &str) -> String {
    format!("--dbname=dbname='{}'", name.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Quotes the name of a database as an SQL identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text as an SQL literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn is_denied(error: &Error) -> bool {
    matches!(error, Error::Failed { status, output, .. }
        if status == NOT_CONNECTED && output.contains(DENIED))
}

/// Parses the major version in `pg_dump (PostgreSQL) 15.18 (Debian …)`.
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
    fn a_copy_of_a_server_is_another_one() {
        let of = |address: &str, system: Option<&str>, started: &str| Identity {
            address: address.into(),
            system: system.map(str::to_owned),
            started: Some(started.into()),
        };
        let one = of("a:1", Some("7"), "now");
        for (other, is_same) in [
            (of("a:1", Some("7"), "later"), true),
            (of("b:1", Some("7"), "now"), true),
            (of("b:1", Some("7"), "later"), false),
            (of("a:1", Some("8"), "now"), false),
            (of("a:1", None, "later"), true),
            (of("b:1", None, "now"), false),
        ] {
            assert_eq!(one.is_same(&other), is_same, "{other:?}");
        }
    }

    #[test]
    fn sql_texts_are_quoted() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
