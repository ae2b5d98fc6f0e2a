//! Consistency points of databases, and dumps at these points.

use super::{DIR, Dumped};
use crate::error::{Error, Result};
use crate::plan::{Absent, Plan};
use crate::process::{Output, Patience, Running};
use crate::service::Reach;
use crate::service::postgres::{Connection, Server};
use std::io::{BufRead, BufReader};
use store::backup::Backup;
use store::observe::Progress;

/// Connections to the databases, which can be held at a consistency point.
pub struct ConsistencyPoint<'a> {
    progress: &'a Progress,
    source: Option<Source<'a>>,
}

/// A server and everything needed to dump it.
struct Source<'a> {
    server: &'a Server,
    client: Reach,
    version: String,
    reads_passwords: bool,
    connections: Vec<Connection<'a>>,
    /// Reasons why other databases of the server are not dumped.
    notes: Vec<String>,
    /// Names of the exported snapshots, in the order of the connections.
    names: Vec<String>,
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
        let mut connections = Vec::new();
        for name in &there {
            let is_listed = server.databases.as_ref().is_some_and(|listed| listed.contains(name));
            if is_listed || named.contains(&name.as_str()) {
                connections.push(server.connect(name, progress)?);
                continue;
            }
            match server.connect_to_other(name, progress)? {
                Ok(connection) => connections.push(connection),
                Err(not_dumped) => notes.push(not_dumped.to_string()),
            }
        }
        let source = Some(Source {
            server,
            client,
            version,
            reads_passwords,
            connections,
            notes,
            names: Vec::new(),
        });
        Ok((ConsistencyPoint { progress, source }, missing))
    }

    /// Exports a snapshot of every database, one directly after the other.
    pub fn take(&mut self) -> Result<()> {
        if let Some(source) = &mut self.source {
            let names = source.connections.iter_mut().map(Connection::export_snapshot);
            source.names = names.collect::<Result<_>>()?;
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
        for (connection, exported) in source.connections.iter_mut().zip(&source.names) {
            let name = connection.database.clone();
            // A database name may contain characters that are not valid in a path.
            let path =
                format!("{DIR}/databases/{}.dump", name.replace('%', "%25").replace('/', "%2F"));
            // Every dump opens a connection of its own.
            let (running, mut output) = source.server.when_free(progress, || {
                let running = source.server.dump(&source.client, &name, exported)?;
                begun(running, &name, progress)
            })?;
            let stored = backup.stream(path.as_bytes(), &mut output);
            let bytes = stored.map_err(|error| match error {
                store::Error::Source { source, .. } => running.unread(source, progress),
                other => other.into(),
            })?;
            // A dump that ends early is useless, and so is its backup.
            running.end(progress)?;
            let tables =
                if source.server.counts_rows { connection.count_rows()? } else { Vec::new() };
            dumped.push(Dumped { name, path, bytes, tables });
        }
        Ok(dumped)
    }
}

/// Waits for the first bytes of a dump. Returns its process and its output.
fn begun<'a>(
    mut running: Running,
    database: &str,
    progress: &'a Progress,
) -> Result<(Running, BufReader<Output<'a>>)> {
    let mut output = BufReader::new(running.stdout(progress, Patience::Silence));
    match output.fill_buf().map(<[u8]>::is_empty) {
        Ok(false) => Ok((running, output)),
        Ok(true) => {
            running.end(progress)?;
            let (service, reason) = (format!("database {database}"), "its dump is empty".into());
            Err(Error::Service { service, reason })
        }
        Err(error) => Err(running.unread(error, progress)),
    }
}
