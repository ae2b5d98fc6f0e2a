//! Consistency points of databases, and dumps at these points.

use super::{DIR, Dumped};
use crate::error::{Error, Result};
use crate::plan::{Absent, Plan};
use crate::process::{Output, Patience, Running};
use crate::service::Reach;
use crate::service::postgres::{Connection, Server};
use std::io::{self, BufRead, BufReader, Read};
use store::backup::Backup;
use store::observe::Progress;

/// Connections to the databases, which can be held at a consistency point.
pub struct ConsistencyPoint<'a> {
    progress: &'a Progress,
    source: Option<Source<'a>>,
}

/// A database that the plan does not require, and that cannot be dumped.
pub struct Undumped {
    /// Name of the database.
    pub name: String,
    /// Error of the server or of its client.
    pub reason: Error,
}

impl Undumped {
    /// Describes the loss and the next step.
    pub fn text(&self) -> String {
        format!(
            "database {} is not dumped: {}; repair it, or list the databases to dump in \
             `postgres.databases`",
            self.name, self.reason
        )
    }
}

/// A server and everything needed to dump it.
struct Source<'a> {
    plan: &'a Plan,
    server: &'a Server,
    client: Reach,
    version: String,
    reads_passwords: bool,
    connections: Vec<Connection<'a>>,
    /// Reasons why other databases of the server are not dumped.
    notes: Vec<String>,
    /// Names of the exported snapshots, in the order of the connections.
    names: Vec<String>,
    undumped: Vec<Undumped>,
}

impl Source<'_> {
    fn may_pass_over(&self, name: &str, reason: &Error) -> bool {
        let is_of_database =
            matches!(reason, Error::Failed { .. } | Error::Service { .. } | Error::TooSlow { .. });
        is_of_database && !is_required(self.plan, self.server, name)
    }

    /// Passes over a database that is not required and has a fault. Any other error is returned.
    fn pass_over(&mut self, name: &str, reason: Error) -> Result<()> {
        if !self.may_pass_over(name, &reason) {
            return Err(reason);
        }
        self.undumped.push(Undumped { name: name.to_owned(), reason });
        Ok(())
    }
}

/// Returns true if a backup needs this database, because the plan or the settings name it.
fn is_required(plan: &Plan, server: &Server, name: &str) -> bool {
    let planned = plan.databases.iter().find(|planned| planned.name == name);
    let is_listed = || server.databases.as_ref().is_some_and(|all| all.iter().any(|of| of == name));
    planned.map_or_else(is_listed, |planned| planned.is_required)
}

impl<'a> ConsistencyPoint<'a> {
    /// Connects to every database to be dumped. Also returns the planned databases that the server
    /// lacks.
    pub fn open(
        plan: &'a Plan,
        progress: &'a Progress,
    ) -> Result<(ConsistencyPoint<'a>, Vec<Absent>)> {
        let Some(server) = &plan.postgres else {
            return Ok((ConsistencyPoint { progress, source: None }, Vec::new()));
        };
        let named: Vec<&str> =
            plan.databases.iter().map(|database| database.name.as_str()).collect();
        let mut first = server.connect_first(&named, progress)?;
        let (major, version) = server.version(&mut first)?;
        let client = server.client(major, progress)?;
        let reads_passwords = server.reads_passwords(&mut first)?;
        let (there, mut notes) = server.databases(&mut first, &named)?;
        drop(first);
        let wanted = plan.databases.iter().filter(|wanted| !there.contains(&wanted.name));
        let missing = wanted.map(|wanted| Absent {
            part: wanted.part(),
            looked_for: format!("database {}", wanted.name),
            is_required: wanted.is_required,
        });
        let missing = missing.collect();
        let mut source = Source {
            plan,
            server,
            client,
            version,
            reads_passwords,
            connections: Vec::new(),
            notes: Vec::new(),
            names: Vec::new(),
            undumped: Vec::new(),
        };
        for name in &there {
            let is_listed = server.databases.as_ref().is_some_and(|listed| listed.contains(name));
            let connected = match is_listed || named.contains(&name.as_str()) {
                true => server.connect(name, progress).map(Ok),
                false => server.connect_to_other(name, progress),
            };
            match connected {
                Ok(Ok(connection)) => source.connections.push(connection),
                Ok(Err(not_dumped)) => notes.push(not_dumped.to_string()),
                Err(error) => source.pass_over(name, error)?,
            }
        }
        source.notes = notes;
        let source = Some(source);
        Ok((ConsistencyPoint { progress, source }, missing))
    }

    /// Exports a snapshot of every database, one directly after the other.
    pub fn take(&mut self) -> Result<()> {
        let Some(source) = &mut self.source else { return Ok(()) };
        for mut connection in std::mem::take(&mut source.connections) {
            match connection.export_snapshot() {
                Ok(name) => {
                    source.names.push(name);
                    source.connections.push(connection);
                }
                Err(error) => source.pass_over(&connection.database, error)?,
            }
        }
        Ok(())
    }

    /// Connections, each in the transaction of its exported snapshot after [`take`](Self::take).
    pub fn connections(&mut self) -> &mut [Connection<'a>] {
        self.source.as_mut().map_or(&mut [], |source| &mut source.connections)
    }

    /// Reasons why databases of the server are not dumped.
    pub fn notes(&self) -> &[String] {
        self.source.as_ref().map_or(&[], |source| &source.notes)
    }

    /// Databases that the plan does not require and that cannot be dumped, as far as known.
    pub fn undumped(&self) -> &[Undumped] {
        self.source.as_ref().map_or(&[], |source| &source.undumped)
    }

    /// Returns true if the dump contains the passwords of roles.
    pub fn reads_passwords(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.reads_passwords)
    }

    /// Version of the server.
    pub fn version(&self) -> Option<String> {
        self.source.as_ref().map(|source| source.version.clone())
    }

    /// Dumps roles, tablespaces and all databases into the store.
    pub fn dump(&mut self, backup: &mut Backup<'_>) -> Result<Vec<Dumped>> {
        let progress = self.progress;
        let Some(source) = &mut self.source else { return Ok(Vec::new()) };
        let globals = source.server.globals(&source.client, source.reads_passwords, progress)?;
        backup.bytes(&format!("{DIR}/databases/globals.sql"), &globals)?;
        let mut dumped = Vec::new();
        let connections = std::mem::take(&mut source.connections);
        for (mut connection, exported) in connections.into_iter().zip(source.names.clone()) {
            match source.dump(&mut connection, &exported, backup, progress) {
                Ok(dump) => dumped.push(dump),
                Err(error) => source.pass_over(&connection.database, error)?,
            }
        }
        Ok(dumped)
    }
}

impl Source<'_> {
    /// Dumps a database and counts its rows.
    fn dump(
        &self,
        connection: &mut Connection<'_>,
        exported: &str,
        backup: &mut Backup<'_>,
        progress: &Progress,
    ) -> Result<Dumped> {
        let name = connection.database.clone();
        // A database name may contain characters that are not valid in a path.
        let path = format!("{DIR}/databases/{}.dump", name.replace('%', "%25").replace('/', "%2F"));
        // Every dump opens a connection of its own.
        let mut dump = self.server.when_free(progress, || {
            let running = self.server.dump(&self.client, &name, exported)?;
            Dump::begin(running, &name, progress)
        })?;
        let bytes = match backup.stream(path.as_bytes(), &mut dump) {
            Ok(bytes) => bytes,
            Err(store::Error::Source { source, .. }) => {
                return Err(dump.failure.unwrap_or_else(|| failed(&name, source.to_string())));
            }
            Err(error) => return Err(error.into()),
        };
        let tables = match self.server.counts_rows.then(|| connection.count_rows()) {
            // The dump is there.
            Some(Err(error)) if self.may_pass_over(&name, &error) => Vec::new(),
            counted => counted.transpose()?.unwrap_or_default(),
        };
        Ok(Dumped { name, path, bytes, tables })
    }
}

fn failed(database: &str, reason: String) -> Error {
    Error::Service { service: format!("database {database}"), reason }
}

/// Output of `pg_dump`. Reading fails at its end unless the process succeeded: a dump that ends early
/// must not become a file of the snapshot.
struct Dump<'a> {
    /// `None` after its end.
    running: Option<Running>,
    output: BufReader<Output<'a>>,
    progress: &'a Progress,
    /// Reason why reading failed.
    failure: Option<Error>,
}

impl<'a> Dump<'a> {
    /// Waits for the first bytes.
    fn begin(mut running: Running, database: &str, progress: &'a Progress) -> Result<Dump<'a>> {
        let mut output = BufReader::new(running.stdout(progress, Patience::Silence));
        match output.fill_buf().map(<[u8]>::is_empty) {
            Ok(false) => Ok(Dump { running: Some(running), output, progress, failure: None }),
            Ok(true) => {
                running.end(progress)?;
                Err(failed(database, "its dump is empty".into()))
            }
            Err(error) => Err(running.unread(error, progress)),
        }
    }
}

impl Read for Dump<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let failure = match self.output.read(into) {
            Ok(0) if !into.is_empty() => match self.running.take() {
                Some(running) => match running.end(self.progress) {
                    Ok(()) => return Ok(0),
                    Err(error) => error,
                },
                None => return Ok(0),
            },
            Ok(len) => return Ok(len),
            Err(error) => match &self.running {
                Some(running) => running.unread(error, self.progress),
                None => return Err(error),
            },
        };
        self.failure = Some(failure);
        Err(io::Error::other("the dump failed"))
    }
}
