//! Builds a new index.

use super::{
    CACHE_KIB, COMPANIONS, Index, SCHEMA, SCHEMA_VERSION, Segment, failed, insert_segment, remove,
    with_suffix,
};
use crate::backend::local::{give_to_owner, sync_dir};
use crate::error::Result;
use crate::segment::Row;
use rusqlite::{Connection, OpenFlags, params};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces the table of chunks in an index that locates every copy of a chunk.
const SCHEMA_OF_COPIES: &str = "
    DROP TABLE chunks;
    CREATE TABLE chunks (
        id BLOB NOT NULL,
        segment INTEGER NOT NULL,
        at INTEGER NOT NULL,
        stored_len INTEGER NOT NULL,
        plain_len INTEGER NOT NULL,
        PRIMARY KEY (id, segment, at)
    ) WITHOUT ROWID;
";

/// Removes the unfinished index of a killed process. No process may be building one at this path.
pub fn remove_unfinished(path: &Path) {
    let unfinished = with_suffix(path, ".new");
    remove(&with_suffix(&unfinished, "-journal"));
    remove(&unfinished);
}

/// Builds a new index beside the old one and replaces it.
///
/// Rows are collected in a temporary file and sorted there, so that millions of them are inserted
/// in order and in bounded memory.
pub struct Builder {
    connection: Option<Connection>,
    path: PathBuf,
    unfinished: PathBuf,
}

impl Builder {
    /// Starts a new index for `path` with the permission bits `mode`.
    pub fn new(path: &Path, mode: u32, store_id: &[u8; 16]) -> Result<Builder> {
        let unfinished = with_suffix(path, ".new");
        remove_unfinished(path);
        create(&unfinished, mode).map_err(failed)?;
        // From here on, dropping the builder removes the file unless it is finished.
        let mut builder = Builder { connection: None, path: path.to_owned(), unfinished };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&builder.unfinished, flags)?;
        let connection = builder.connection.insert(connection);
        connection.pragma_update(None, "journal_mode", "OFF")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.pragma_update(None, "cache_size", -4 * CACHE_KIB)?;
        connection.execute_batch(SCHEMA)?;
        connection.execute("INSERT INTO store VALUES (?1)", [store_id])?;
        connection.execute_batch(
            "ATTACH '' AS staging;
             PRAGMA staging.journal_mode = OFF;
             CREATE TABLE staging.rows (id, segment, at, stored_len, plain_len, healthy);
             BEGIN",
        )?;
        Ok(builder)
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("open until it is finished")
    }

    /// Makes the index locate every copy of a chunk instead of one. Such an index is only read.
    pub fn with_all_copies(self) -> Result<Builder> {
        self.connection().execute_batch(SCHEMA_OF_COPIES)?;
        Ok(self)
    }

    /// Adds a segment with all its chunks.
    pub fn add(&mut self, segment: &Segment, rows: &[Row]) -> Result<()> {
        let number = insert_segment(self.connection(), segment, rows.len())?;
        let mut insert = self
            .connection()
            .prepare_cached("INSERT INTO staging.rows VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
        for row in rows {
            let (at, stored, plain) = (row.offset, row.stored_len, row.plain_len);
            let healthy = segment.is_healthy;
            insert.execute(params![row.id.as_bytes(), number, at, stored, plain, healthy])?;
        }
        Ok(())
    }

    /// Sorts the rows and replaces the index at the path.
    ///
    /// No other process may have the old index open. A temporary index need not be durable.
    pub fn finish(mut self, is_durable: bool, store_id: &[u8; 16]) -> Result<Index> {
        self.connection().execute_batch(&format!(
            "INSERT OR IGNORE INTO chunks
                 SELECT id, segment, at, stored_len, plain_len FROM staging.rows
                 ORDER BY id, healthy DESC;
             COMMIT;
             DETACH staging;
             PRAGMA user_version = {SCHEMA_VERSION}"
        ))?;
        if let Some(connection) = self.connection.take() {
            connection.close().map_err(|(_, error)| error)?;
        }
        self.publish(is_durable).map_err(failed)?;
        let index = Index::open(&self.path, store_id)?;
        index.ok_or_else(|| failed(io::Error::other("the new file cannot be read back")))
    }

    /// Syncs the file and renames it to its final path.
    fn publish(&self, is_durable: bool) -> io::Result<()> {
        if !is_durable {
            return fs::rename(&self.unfinished, &self.path);
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(&self.unfinished)?.sync_all()?;
        // SQLite would replay the old index's log into the new one. The old index is wrong without
        // its log, so the old index is removed first.
        remove(&self.path);
        for suffix in COMPANIONS {
            remove(&with_suffix(&self.path, suffix));
        }
        // Nothing of the old index may reappear after a power loss.
        sync_dir(dir)?;
        fs::rename(&self.unfinished, &self.path)?;
        sync_dir(dir).map(drop)
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        self.connection = None;
        remove(&self.unfinished);
    }
}

/// Creates an empty file with these permission bits, independent of the umask.
fn create(path: &Path, mode: u32) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    give_to_owner(&file, path.parent().unwrap_or(Path::new(".")));
    file.set_permissions(Permissions::from_mode(mode))
}
