//! Order of the snapshots, so that choosing one does not read every record.

use super::Index;
use crate::error::Result;
use crate::id::SnapshotId;
use rusqlite::{TransactionBehavior, params};

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

impl Index {
    /// Returns the positions of all known snapshots, oldest first.
    pub fn positions(&self) -> Result<Vec<Position>> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT seconds, nanoseconds, id FROM records ORDER BY seconds, nanoseconds, id",
            )?;
            let positions = statement.query_map([], |row| {
                let id = SnapshotId::from_bytes(row.get(2)?);
                Ok(Position { seconds: row.get(0)?, nanoseconds: row.get(1)?, id })
            })?;
            Ok(positions.collect::<Result<_, _>>()?)
        })
    }

    /// Removes positions and adds others, in one transaction.
    pub fn change_positions(&self, gone: &[Position], new: &[Position]) -> Result<()> {
        self.with(|connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut delete = transaction.prepare_cached(
                    "DELETE FROM records WHERE seconds = ?1 AND nanoseconds = ?2 AND id = ?3",
                )?;
                for Position { seconds, nanoseconds, id } in gone {
                    delete.execute(params![seconds, nanoseconds, id.as_bytes()])?;
                }
                let mut insert = transaction
                    .prepare_cached("INSERT OR IGNORE INTO records VALUES (?1, ?2, ?3)")?;
                for Position { seconds, nanoseconds, id } in new {
                    insert.execute(params![seconds, nanoseconds, id.as_bytes()])?;
                }
            }
            Ok(transaction.commit()?)
        })
    }
}
