//! Order of the snapshots and the properties by which commands choose one, so that choosing does not
//! read every record.

use super::Index;
use crate::error::Result;
use crate::id::SnapshotId;
use crate::snapshot::{Snapshot, SnapshotSource};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::collections::HashMap;
use std::sync::Arc;

/// Position of a snapshot in the order of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Start of the snapshot in seconds since 1970, UTC.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
    /// Id of the snapshot.
    pub id: SnapshotId,
}

/// Properties by which commands choose a snapshot. Snapshots of one source share them in memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Header {
    /// Position in the order of snapshots.
    pub position: Position,
    /// Origin of the snapshot.
    pub source: Arc<SnapshotSource>,
    /// Labels of the snapshot.
    pub tags: Arc<Vec<String>>,
}

impl Header {
    /// Returns the header of a snapshot.
    pub fn of(id: SnapshotId, snapshot: &Snapshot) -> Header {
        let (seconds, nanoseconds) = (snapshot.start.seconds, snapshot.start.nanoseconds);
        Header {
            position: Position { seconds, nanoseconds, id },
            source: Arc::new(snapshot.source()),
            tags: Arc::new(snapshot.tags.clone()),
        }
    }
}

impl Index {
    /// Returns the headers of all known snapshots, oldest first. Omits rows that cannot be read.
    pub fn headers(&self) -> Result<Vec<Header>> {
        self.with(|connection| {
            let (mut sources, mut tags) = (HashMap::new(), HashMap::new());
            {
                // Each value is decoded once, however many snapshots have it.
                let mut values =
                    connection.prepare_cached("SELECT number, value FROM record_values")?;
                let mut rows = values.query([])?;
                while let Some(row) = rows.next()? {
                    let (number, value): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
                    if let Ok(source) = minicbor::decode::<SnapshotSource>(&value) {
                        sources.insert(number, Arc::new(source));
                    } else if let Ok(of_one) = minicbor::decode::<Vec<String>>(&value) {
                        tags.insert(number, Arc::new(of_one));
                    }
                }
            }
            let mut statement = connection.prepare_cached(
                "SELECT seconds, nanoseconds, id, source, tags FROM records
                 ORDER BY seconds, nanoseconds, id",
            )?;
            let mut rows = statement.query([])?;
            let mut headers = Vec::new();
            while let Some(row) = rows.next()? {
                let (source, of_one): (i64, i64) = (row.get(3)?, row.get(4)?);
                let id = SnapshotId::from_bytes(row.get(2)?);
                let position = Position { seconds: row.get(0)?, nanoseconds: row.get(1)?, id };
                if let (Some(source), Some(tags)) = (sources.get(&source), tags.get(&of_one)) {
                    let (source, tags) = (Arc::clone(source), Arc::clone(tags));
                    headers.push(Header { position, source, tags });
                }
            }
            Ok(headers)
        })
    }

    /// Removes headers and adds others, in one transaction. A snapshot that is gone does not stay
    /// whole: its chunks may go.
    pub fn change_headers(&self, gone: &[Header], new: &[Header]) -> Result<()> {
        self.with(|connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut delete = transaction.prepare_cached(
                    "DELETE FROM records WHERE seconds = ?1 AND nanoseconds = ?2 AND id = ?3",
                )?;
                let mut not_whole =
                    transaction.prepare_cached("DELETE FROM whole WHERE snapshot = ?1")?;
                for Header { position: Position { seconds, nanoseconds, id }, .. } in gone {
                    delete.execute(params![seconds, nanoseconds, id.as_bytes()])?;
                    not_whole.execute([id.as_bytes()])?;
                }
                let mut insert = transaction
                    .prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2, ?3, ?4, ?5)")?;
                for Header { position, source, tags } in new {
                    let Position { seconds, nanoseconds, id } = position;
                    let source = number(&transaction, &encoded(&**source))?;
                    let tags = number(&transaction, &encoded(&**tags))?;
                    insert.execute(params![seconds, nanoseconds, id.as_bytes(), source, tags])?;
                }
            }
            if !gone.is_empty() {
                transaction.execute(
                    "DELETE FROM record_values WHERE number NOT IN
                         (SELECT source FROM records UNION SELECT tags FROM records)",
                    [],
                )?;
            }
            Ok(transaction.commit()?)
        })
    }
}

fn encoded(value: &impl minicbor::Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to memory cannot fail")
}

/// Returns the number of a value, and stores the value if it is new.
fn number(connection: &Connection, value: &[u8]) -> Result<i64> {
    let mut known =
        connection.prepare_cached("SELECT number FROM record_values WHERE value = ?1")?;
    if let Some(number) = known.query_row([value], |row| row.get(0)).optional()? {
        return Ok(number);
    }
    connection.prepare_cached("INSERT INTO record_values (value) VALUES (?1)")?.execute([value])?;
    Ok(connection.last_insert_rowid())
}
