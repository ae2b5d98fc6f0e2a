//! The index: chunk → segment, offset, lengths, in SQLite.
//!
//! The index is never the only copy: every row is also in a segment's table. A missing row costs a
//! chunk stored twice or another read of the tables. An extra row would lose data. Rows of a
//! damaged segment therefore never prove that a chunk exists.
//!
//! Beside the chunks, the index keeps the order of the snapshots, and the properties by which
//! commands choose one.

mod builder;
mod records;
mod scan;

pub use builder::{Builder, remove_unfinished};
pub use records::{Header, Position};
pub use scan::RowSum;

use crate::error::{Error, Result};
use crate::id::{ChunkId, SegmentId, SnapshotId};
use crate::segment::{Row, SegmentKind};
use parking_lot::{Condvar, Mutex};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use schemars::JsonSchema;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Version of the tables below. An index of another version is rebuilt.
const SCHEMA_VERSION: i64 = 7;

/// Values of `segments.healthy`.
const DAMAGED: i64 = 0;
const HEALTHY: i64 = 1;
/// The segment is intact, but a prune will delete it. New copies of its chunks replace its rows.
const CONDEMNED: i64 = 2;

/// Version that marks a damaged index.
const BROKEN_VERSION: i64 = 0;

/// Page cache of one connection in KiB.
const CACHE_KIB: i64 = 8 << 10;

/// Minimum block size in bytes of a file system for a write-ahead log. SQLite maps the log's shared
/// memory from a file and first touches one byte in each 4 KiB of it. Smaller blocks leave holes
/// there. On a full disk a write to a hole kills the process.
const WAL_BLOCK_BYTES_MIN: u64 = 4 << 10;

/// SQLite's files beside a database: write-ahead log, its shared memory, rollback journal.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

const SCHEMA: &str = "
    CREATE TABLE store (id BLOB NOT NULL);
    CREATE TABLE segments (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        name BLOB NOT NULL UNIQUE,
        kind INTEGER NOT NULL,
        len INTEGER NOT NULL,
        healthy INTEGER NOT NULL,
        rows INTEGER NOT NULL
    );
    CREATE TABLE chunks (
        id BLOB PRIMARY KEY,
        segment INTEGER NOT NULL,
        at INTEGER NOT NULL,
        stored_len INTEGER NOT NULL,
        plain_len INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE whole (snapshot BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE heeded (checks BLOB NOT NULL);
    CREATE TABLE records (
        seconds INTEGER NOT NULL,
        nanoseconds INTEGER NOT NULL,
        id BLOB NOT NULL,
        source INTEGER NOT NULL,
        tags INTEGER NOT NULL,
        PRIMARY KEY (seconds, nanoseconds, id)
    ) WITHOUT ROWID;
    CREATE TABLE record_values (number INTEGER PRIMARY KEY, value BLOB NOT NULL UNIQUE);
    CREATE TABLE removals (number INTEGER NOT NULL, is_over INTEGER NOT NULL);
    INSERT INTO removals VALUES (0, 1);
";

/// A removal of segments from the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    number: i64,
    /// False as long as the index may lack rows of other copies of the removed chunks.
    pub is_over: bool,
}

/// Location of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Id of the segment.
    pub segment: SegmentId,
    /// Kind of the segment's chunks.
    pub kind: SegmentKind,
    /// True if the segment was intact when last examined, and no prune is known to delete it.
    pub is_healthy: bool,
    /// True if a prune is going to delete the segment.
    pub is_condemned: bool,
    /// Byte offset in the segment.
    pub offset: u32,
    /// Stored length in bytes.
    pub stored_len: u32,
    /// Plain length in bytes.
    pub plain_len: u32,
}

/// A segment in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Id of the segment.
    pub id: SegmentId,
    /// Kind of its chunks.
    pub kind: SegmentKind,
    /// Length of its file in bytes.
    pub len: u64,
    /// True if its table was intact.
    pub is_healthy: bool,
}

/// Totals of the chunks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
pub struct Totals {
    /// Number of segments.
    pub segments: u64,
    /// Bytes of their files.
    pub segment_bytes: u64,
    /// Number of different chunks.
    pub chunks: u64,
    /// Plain bytes of the chunks.
    pub plain_bytes: u64,
    /// Stored bytes of the chunks.
    pub stored_bytes: u64,
}

/// An open index. Methods may be called from several threads at once.
pub struct Index {
    path: PathBuf,
    /// Device and inode of the file. Another file at the same path is another index.
    file: (u64, u64),
    is_read_only: bool,
    /// True if readers do not keep writers waiting.
    has_log: bool,
    /// Number of changes by this process.
    changes: AtomicU64,
    idle: Mutex<Vec<Connection>>,
    /// Notified when a connection becomes idle.
    returned: Condvar,
}

/// Look-ups in one read transaction. More would keep SQLite from reusing its write-ahead log.
const LOOKUPS_MAX: u32 = 4096;

thread_local! {
    /// The read transaction of this thread, within a [`Reading`].
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
}

/// A connection in a read transaction.
struct Reader {
    /// Address of the index.
    index: usize,
    connection: Connection,
    /// Number of changes of the index that the transaction sees.
    changes: u64,
    /// Look-ups so far.
    lookups: u32,
}

/// While it exists, the look-ups of this thread share read transactions: begin and end of one cost
/// more system calls than the look-up itself.
pub struct Reading<'a> {
    index: &'a Index,
    /// False if the transaction belongs to an outer value, or if there is none.
    is_owner: bool,
    /// The transaction belongs to a thread.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let reader = if self.is_owner { READER.take() } else { None };
        if let Some(reader) = reader
            && reader.end().is_ok()
        {
            self.index.idle.lock().push(reader.connection);
            self.index.returned.notify_one();
        }
    }
}

impl Reader {
    fn begin(&mut self, changes: u64) -> Result<()> {
        self.connection.prepare_cached("BEGIN")?.execute([])?;
        (self.changes, self.lookups) = (changes, 0);
        Ok(())
    }

    fn end(&self) -> Result<()> {
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Finds a chunk. Begins a new transaction if this process changed the index meanwhile.
    fn find(&mut self, id: &ChunkId, changes: u64) -> Result<Option<Location>> {
        if self.changes != changes || self.lookups >= LOOKUPS_MAX {
            self.end()?;
            self.begin(changes)?;
        }
        self.lookups += 1;
        find(&self.connection, id)
    }
}

fn find(connection: &Connection, id: &ChunkId) -> Result<Option<Location>> {
    let mut statement = connection.prepare_cached(FIND)?;
    Ok(statement.query_row([id.as_bytes()], location).optional()?)
}

/// A borrowed connection; returned when dropped.
struct Loan<'a> {
    index: &'a Index,
    connection: Option<Connection>,
}

impl Loan<'_> {
    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.index.idle.lock().extend(self.connection.take());
        self.index.returned.notify_one();
    }
}

impl Index {
    /// Opens an existing index. Returns `None` if there is no index, or one of another store or of
    /// another version of the tables.
    pub fn open(path: &Path, store_id: &[u8; 16]) -> Result<Option<Index>> {
        let Some(file) = identity(path) else { return Ok(None) };
        if !can_have_log(path) && has_log(path) {
            return Ok(None);
        }
        let (connection, is_read_only) = match connect(path) {
            Err(error) if error.is_index_denied() => (connect_read_only(path)?, true),
            connection => (connection?, false),
        };
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != SCHEMA_VERSION {
            return Ok(None);
        }
        let id: Option<Vec<u8>> =
            connection.query_row("SELECT id FROM store", [], |row| row.get(0)).optional()?;
        if id.as_deref() != Some(store_id) {
            return Ok(None);
        }
        let has_log = !is_read_only && can_have_log(path);
        let (path, idle) = (path.to_owned(), Mutex::new(vec![connection]));
        let (changes, returned) = (AtomicU64::new(0), Condvar::new());
        Ok(Some(Index { path, file, is_read_only, has_log, changes, idle, returned }))
    }

    /// Returns true if this user may not write the index. Concurrent writes by others are then not
    /// seen reliably.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Returns an idle connection, a new one, or the next that becomes idle. If the file was
    /// removed, open connections continue to use it. No new one is opened then, because it would
    /// start another index.
    fn lend(&self) -> Loan<'_> {
        let idle = self.idle.lock().pop();
        let connection = idle.or_else(|| self.connect_again()).unwrap_or_else(|| {
            let mut idle = self.idle.lock();
            loop {
                match idle.pop() {
                    Some(connection) => return connection,
                    None => self.returned.wait(&mut idle),
                }
            }
        });
        Loan { index: self, connection: Some(connection) }
    }

    fn connect_again(&self) -> Option<Connection> {
        let is_same = || identity(&self.path) == Some(self.file);
        if !is_same() {
            return None;
        }
        let connect = if self.is_read_only { connect_read_only } else { connect };
        connect(&self.path).ok().filter(|_| is_same())
    }

    /// Changes the index. Read transactions of this process see it at the next look-up.
    fn change<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let changed = self.with(work);
        self.changes.fetch_add(1, Ordering::Release);
        changed
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let mut loan = self.lend();
        let result = work(loan.connection());
        if result.as_ref().is_err_and(Error::is_index_broken) {
            self.mark_broken(loan.connection());
        }
        result
    }

    /// Marks the index, so that the next process that opens it rebuilds it.
    pub fn give_up(&self) {
        self.mark_broken(self.lend().connection());
    }

    /// Best effort: the error that led here is reported.
    fn mark_broken(&self, connection: &Connection) {
        let marked = connection.pragma_update(None, "user_version", BROKEN_VERSION);
        if marked.is_err() && !self.is_read_only && identity(&self.path) == Some(self.file) {
            remove(&self.path);
        }
    }

    /// Returns the location of a chunk, if any segment has it.
    pub fn find(&self, id: &ChunkId) -> Result<Option<Location>> {
        let changes = self.changes.load(Ordering::Acquire);
        let shared = READER.with_borrow_mut(|reader| {
            let reader = reader.as_mut().filter(|reader| reader.index == self.address())?;
            let found = reader.find(id, changes);
            if found.as_ref().is_err_and(Error::is_index_broken) {
                self.mark_broken(&reader.connection);
            }
            Some(found)
        });
        shared.unwrap_or_else(|| self.with(|connection| find(connection, id)))
    }

    /// Lets the look-ups of this thread share read transactions while the result exists. Other
    /// threads and changes by this process are seen at once; those of other processes later.
    pub fn reading(&self) -> Reading<'_> {
        Reading { index: self, is_owner: self.begin_reading(), _not_send: PhantomData }
    }

    fn begin_reading(&self) -> bool {
        // Without a write-ahead log, a reader would keep the writer waiting.
        if !self.has_log || READER.with_borrow(Option::is_some) {
            return false;
        }
        // One connection stays for short loans: if the file was removed, no new one can be opened.
        let idle =
            Some(self.idle.lock()).filter(|idle| idle.len() > 1).and_then(|mut idle| idle.pop());
        let Some(connection) = idle.or_else(|| self.connect_again()) else { return false };
        let mut reader = Reader { index: self.address(), connection, changes: 0, lookups: 0 };
        let is_begun = reader.begin(self.changes.load(Ordering::Acquire)).is_ok();
        if is_begun {
            READER.set(Some(reader));
        }
        is_begun
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Returns the locations of all copies of a chunk, those in healthy segments first. Only an
    /// index of all copies has more than one.
    pub fn find_all(&self, id: &ChunkId) -> Result<Vec<Location>> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached(FIND)?;
            let found = statement.query_map([id.as_bytes()], location)?;
            let mut found: Vec<Location> = found.collect::<Result<_, _>>()?;
            found.sort_by_key(|location| !location.is_healthy);
            Ok(found)
        })
    }

    /// Returns the highest segment number; 0 if there is none.
    pub fn last_number(&self) -> Result<i64> {
        self.with(|connection| {
            let last = "SELECT coalesce(max(number), 0) FROM segments";
            Ok(connection.query_row(last, [], |row| row.get(0))?)
        })
    }

    /// Returns the number of a segment, if the index has it.
    pub fn number(&self, segment: &SegmentId) -> Result<Option<i64>> {
        self.with(|connection| {
            let number = connection
                .prepare_cached("SELECT number FROM segments WHERE name = ?1")?
                .query_row([segment.as_bytes()], |row| row.get(0))
                .optional()?;
            Ok(number)
        })
    }

    /// Returns the numbers of all segments with their ids.
    pub fn numbers(&self) -> Result<HashMap<i64, SegmentId>> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT number, name FROM segments")?;
            let numbers = statement
                .query_map([], |row| Ok((row.get(0)?, SegmentId::from_bytes(row.get(1)?))))?;
            Ok(numbers.collect::<Result<_, _>>()?)
        })
    }

    /// Returns true if a healthy segment has the chunk. It need not be stored again then.
    pub fn has(&self, id: &ChunkId) -> Result<bool> {
        Ok(self.find(id)?.is_some_and(|location| location.is_healthy))
    }

    /// Adds a segment with all its chunks, in one transaction.
    ///
    /// Rows that point to a healthy segment do not change.
    pub fn add(&self, segment: &Segment, rows: &[Row]) -> Result<()> {
        self.add_all(&[(segment, rows)])
    }

    /// Like [`add`](Self::add), for many segments. Costs less than adding each by itself: the names
    /// of the chunks are hashes, so that few rows change as many pages as many rows.
    pub fn add_all(&self, segments: &[(&Segment, &[Row])]) -> Result<()> {
        self.change(|connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let mut all = Vec::with_capacity(segments.iter().map(|(_, rows)| rows.len()).sum());
            for (segment, rows) in segments {
                let number = insert_segment(&transaction, segment, rows.len())?;
                all.extend(rows.iter().map(|row| (row, number, segment.is_healthy)));
            }
            insert_rows(&transaction, all)?;
            Ok(transaction.commit()?)
        })
    }

    /// Adds the rows of a segment that the index lacks. The state of the segment stays.
    pub fn complete(&self, segment: &SegmentId, rows: &[Row]) -> Result<()> {
        self.change(|connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let found = "SELECT number, healthy FROM segments WHERE name = ?1";
            let found = transaction
                .query_row(found, [segment.as_bytes()], |row| {
                    Ok((row.get(0)?, row.get::<_, i64>(1)? == HEALTHY))
                })
                .optional()?;
            if let Some((number, is_healthy)) = found {
                let rows = rows.iter().map(|row| (row, number, is_healthy)).collect();
                insert_rows(&transaction, rows)?;
            }
            Ok(transaction.commit()?)
        })
    }

    /// Returns all segments, sorted by id. One query costs less than one a shard.
    pub fn segments(&self) -> Result<Vec<Segment>> {
        self.with(|connection| {
            let query = "SELECT name, kind, len, healthy FROM segments ORDER BY name";
            let mut statement = connection.prepare_cached(query)?;
            let rows = statement.query_map([], |row| {
                Ok(Segment {
                    id: SegmentId::from_bytes(row.get(0)?),
                    kind: kind(row.get(1)?),
                    len: row.get::<_, i64>(2)? as u64,
                    is_healthy: row.get::<_, i64>(3)? == HEALTHY,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Returns the ids of all segments, sorted.
    pub fn segment_ids(&self) -> Result<Vec<SegmentId>> {
        self.with(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT name FROM segments ORDER BY name")?;
            let ids = statement.query_map([], |row| row.get(0))?;
            Ok(ids.map(|id| id.map(SegmentId::from_bytes)).collect::<Result<_, _>>()?)
        })
    }

    /// Returns true if every chunk of this snapshot was found in a healthy segment, and no segment
    /// was lost since.
    pub fn is_whole(&self, snapshot: &SnapshotId) -> Result<bool> {
        self.with(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT 1 FROM whole WHERE snapshot = ?1")?;
            Ok(statement.exists([snapshot.as_bytes()])?)
        })
    }

    /// Returns the segments known to be damaged.
    pub fn damaged(&self) -> Result<HashSet<SegmentId>> {
        self.with(|connection| damaged(connection))
    }

    /// Marks a snapshot as whole, unless damage beyond `known` was found. The snapshot may depend
    /// on a chunk in a segment found damaged since.
    pub fn set_whole(&self, snapshot: &SnapshotId, known: &HashSet<SegmentId>) -> Result<()> {
        self.change(|connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            if damaged(&transaction)?.is_subset(known) {
                transaction
                    .execute("INSERT OR IGNORE INTO whole VALUES (?1)", [snapshot.as_bytes()])?;
            }
            Ok(transaction.commit()?)
        })
    }

    /// Clears the set of whole snapshots, because some of their data is lost.
    pub fn forget_whole(&self) -> Result<()> {
        self.change(|connection| {
            connection.execute("DELETE FROM whole", [])?;
            Ok(())
        })
    }

    /// Marks a segment as damaged. New backups treat its chunks as missing and store them again. No
    /// snapshot remains whole.
    pub fn set_damaged(&self, segment: &SegmentId) -> Result<()> {
        self.change(|connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let name = segment.as_bytes();
            transaction.execute("UPDATE segments SET healthy = 0 WHERE name = ?1", [name])?;
            transaction.execute("DELETE FROM whole", [])?;
            Ok(transaction.commit()?)
        })
    }

    /// Returns the name of the set of check records whose damage is marked here.
    pub fn heeded_checks(&self) -> Result<Option<Vec<u8>>> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT checks FROM heeded")?;
            Ok(statement.query_row([], |row| row.get(0)).optional()?)
        })
    }

    /// Marks segments as damaged, like [`Index::set_damaged`]. Returns true if one was not marked.
    pub fn mark_damaged(&self, segments: &HashSet<SegmentId>) -> Result<bool> {
        self.change(|connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let mut marked = 0;
            for segment in segments {
                let mark = "UPDATE segments SET healthy = 0 WHERE name = ?1 AND healthy != 0";
                marked += transaction.execute(mark, [segment.as_bytes()])?;
            }
            if marked > 0 {
                transaction.execute("DELETE FROM whole", [])?;
            }
            transaction.commit()?;
            Ok(marked > 0)
        })
    }

    /// Sets the name of the set of check records whose damage is marked here.
    pub fn set_heeded_checks(&self, name: &[u8]) -> Result<()> {
        self.change(|connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            transaction.execute("DELETE FROM heeded", [])?;
            transaction.execute("INSERT INTO heeded (checks) VALUES (?1)", [name])?;
            Ok(transaction.commit()?)
        })
    }

    /// Marks a segment as healthy after all of its bytes were read and found intact.
    pub fn set_healthy(&self, segment: &SegmentId) -> Result<()> {
        self.change(|connection| {
            let healthy = "UPDATE segments SET healthy = 1 WHERE name = ?1";
            connection.execute(healthy, [segment.as_bytes()])?;
            Ok(())
        })
    }

    /// Marks exactly these segments as condemned. New copies of their chunks then replace their rows.
    /// Damaged segments stay damaged.
    pub fn set_condemned(&self, segments: &HashSet<SegmentId>) -> Result<()> {
        self.change(|connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            transaction.execute("UPDATE segments SET healthy = 1 WHERE healthy = 2", [])?;
            {
                let mut mark = transaction.prepare_cached(
                    "UPDATE segments SET healthy = ?2 WHERE name = ?1 AND healthy = 1",
                )?;
                for segment in segments {
                    mark.execute(params![segment.as_bytes(), CONDEMNED])?;
                }
            }
            Ok(transaction.commit()?)
        })
    }

    /// Returns true if a segment is marked as condemned.
    pub fn has_condemned(&self) -> Result<bool> {
        self.with(|connection| {
            let marked = "SELECT 1 FROM segments WHERE healthy = ?1 LIMIT 1";
            Ok(connection.prepare_cached(marked)?.exists([CONDEMNED])?)
        })
    }

    /// Removes segments and all their rows, in one transaction that is durable on return.
    ///
    /// Rows of other copies of their chunks do not come back by themselves, see
    /// [`Index::incomplete`]. The removal is over when the result is passed to
    /// [`end_removal`](Self::end_removal).
    pub fn remove(&self, segments: &[SegmentId]) -> Result<Removal> {
        self.change(|connection| {
            // The files are deleted next. The rows must not reappear after a power loss.
            connection.pragma_update(None, "synchronous", "FULL")?;
            let removed = remove_segments(connection, segments);
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            removed
        })
    }

    /// Ends a removal whose other copies have their rows, unless another one began since.
    pub fn end_removal(&self, removal: Removal) -> Result<()> {
        self.change(|connection| {
            let over = "UPDATE removals SET is_over = 1 WHERE number = ?1";
            connection.execute(over, [removal.number])?;
            Ok(())
        })
    }

    /// Returns the last removal.
    pub fn last_removal(&self) -> Result<Removal> {
        self.with(|connection| last_removal(connection))
    }

    /// Returns the segments of whose tables the index lacks rows, because it locates other copies of
    /// their chunks, or did so until those were removed.
    pub fn incomplete(&self) -> Result<Vec<Segment>> {
        let numbers: HashSet<i64> = self.with(|connection| {
            let mut rows: HashMap<i64, i64> = HashMap::new();
            let mut statement = connection.prepare_cached("SELECT number, rows FROM segments")?;
            let mut found = statement.query([])?;
            while let Some(row) = found.next()? {
                rows.insert(row.get(0)?, row.get(1)?);
            }
            let mut statement = connection
                .prepare_cached("SELECT segment, count(*) FROM chunks GROUP BY segment")?;
            let mut found = statement.query([])?;
            while let Some(row) = found.next()? {
                if let Some(rows) = rows.get_mut(&row.get(0)?) {
                    *rows -= row.get::<_, i64>(1)?;
                }
            }
            Ok(rows.into_iter().filter(|(_, left)| *left > 0).map(|(number, _)| number).collect())
        })?;
        if numbers.is_empty() {
            return Ok(Vec::new());
        }
        let mut incomplete = Vec::new();
        for segment in self.segments()? {
            if self.number(&segment.id)?.is_some_and(|number| numbers.contains(&number)) {
                incomplete.push(segment);
            }
        }
        Ok(incomplete)
    }

    /// Makes the read transactions of this process see the changes of other processes at their next
    /// look-up.
    pub fn refresh(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Returns the number of different chunks.
    pub fn chunk_count(&self) -> Result<u64> {
        self.with(|connection| {
            let count: i64 =
                connection.query_row("SELECT count(*) FROM chunks", [], |row| row.get(0))?;
            Ok(count as u64)
        })
    }

    /// Returns the totals of one kind of chunks. Reads the whole index.
    pub fn totals(&self, kind: SegmentKind) -> Result<Totals> {
        self.with(|connection| {
            let kind = kind as i64;
            let (segments, segment_bytes) = connection.query_row(
                "SELECT count(*), coalesce(sum(len), 0) FROM segments WHERE kind = ?1",
                [kind],
                |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)),
            )?;
            let totals = connection.query_row(
                "SELECT count(*), coalesce(sum(c.plain_len), 0), coalesce(sum(c.stored_len), 0)
                 FROM chunks c JOIN segments s ON s.number = c.segment WHERE s.kind = ?1",
                [kind],
                |row| {
                    Ok(Totals {
                        segments,
                        segment_bytes,
                        chunks: row.get::<_, i64>(0)? as u64,
                        plain_bytes: row.get::<_, i64>(1)? as u64,
                        stored_bytes: row.get::<_, i64>(2)? as u64,
                    })
                },
            )?;
            Ok(totals)
        })
    }
}

/// Query for the locations of a chunk.
const FIND: &str = "SELECT s.name, s.kind, s.healthy, c.at, c.stored_len, c.plain_len
    FROM chunks c JOIN segments s ON s.number = c.segment WHERE c.id = ?1";

fn location(row: &rusqlite::Row<'_>) -> rusqlite::Result<Location> {
    let name: [u8; 32] = row.get(0)?;
    Ok(Location {
        segment: SegmentId::from_bytes(name),
        kind: kind(row.get(1)?),
        is_healthy: row.get::<_, i64>(2)? == HEALTHY,
        is_condemned: row.get::<_, i64>(2)? == CONDEMNED,
        offset: row.get(3)?,
        stored_len: row.get(4)?,
        plain_len: row.get(5)?,
    })
}

/// Returns device and inode of a file, if it exists.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Returns true if an index at this path may have a write-ahead log.
fn can_have_log(path: &Path) -> bool {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::statvfs(dir).map_or(true, |found| found.f_frsize >= WAL_BLOCK_BYTES_MIN)
}

/// Returns true if bytes 18 and 19 of the database header declare a write-ahead log.
fn has_log(path: &Path) -> bool {
    let mut header = [0; 20];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header[18..] == [2, 2]
}

fn kind(number: i64) -> SegmentKind {
    if number == SegmentKind::Metadata as i64 { SegmentKind::Metadata } else { SegmentKind::Data }
}

/// Opens an existing database.
fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(60))?;
    if can_have_log(path) {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // Rows lost by a power loss are read from the segment tables again.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
    } else {
        connection.pragma_update(None, "journal_mode", "TRUNCATE")?;
    }
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // Use one plan for every id. Otherwise SQLite plans each look-up again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

/// Opens an index that this user may not write.
fn connect_read_only(path: &Path) -> Result<Connection> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            _ => uri += &format!("%{byte:02x}"),
        }
    }
    if !with_suffix(path, "-wal").exists() {
        // Without a log, SQLite would create one, but this user may not write.
        uri += "?immutable=1";
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

fn damaged(connection: &Connection) -> Result<HashSet<SegmentId>> {
    let mut statement = connection.prepare_cached("SELECT name FROM segments WHERE healthy = 0")?;
    let mut rows = statement.query([])?;
    let mut found = HashSet::new();
    while let Some(row) = rows.next()? {
        found.extend(SegmentId::from_slice(&row.get::<_, Vec<u8>>(0)?));
    }
    Ok(found)
}

/// Adds a segment with this number of rows in its table, and returns its number in the index.
fn insert_segment(connection: &Connection, segment: &Segment, rows: usize) -> Result<i64> {
    connection
        .prepare_cached(
            "INSERT INTO segments (name, kind, len, healthy, rows) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (name) DO UPDATE SET len = ?3, healthy = ?4, rows = ?5",
        )?
        .execute(params![
            segment.id.as_bytes(),
            segment.kind as i64,
            segment.len as i64,
            if segment.is_healthy { HEALTHY } else { DAMAGED },
            rows as i64
        ])?;
    Ok(connection
        .prepare_cached("SELECT number FROM segments WHERE name = ?1")?
        .query_row([segment.id.as_bytes()], |row| row.get(0))?)
}

/// Inserts rows, each with the number of its segment and true if that one is healthy. They replace
/// those of segments that are not.
fn insert_rows(connection: &Connection, mut rows: Vec<(&Row, i64, bool)>) -> Result<()> {
    rows.sort_unstable_by_key(|(row, number, _)| (row.id, *number));
    let mut insert = connection.prepare_cached(
        "INSERT INTO chunks VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (id) DO UPDATE
         SET segment = ?2, at = ?3, stored_len = ?4, plain_len = ?5
         WHERE segment = ?2 OR
            (SELECT healthy FROM segments WHERE number = chunks.segment) IS NOT 1",
    )?;
    let mut insert_damaged =
        connection.prepare_cached("INSERT OR IGNORE INTO chunks VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (row, number, is_healthy) in rows {
        let insert = if is_healthy { &mut insert } else { &mut insert_damaged };
        let (at, stored, plain) = (row.offset, row.stored_len, row.plain_len);
        insert.execute(params![row.id.as_bytes(), number, at, stored, plain])?;
    }
    Ok(())
}

fn remove_segments(connection: &mut Connection, segments: &[SegmentId]) -> Result<Removal> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut numbers: Vec<i64> = Vec::new();
    for segment in segments {
        let mut number =
            transaction.prepare_cached("SELECT number FROM segments WHERE name = ?1")?;
        numbers
            .extend(number.query_row([segment.as_bytes()], |row| row.get::<_, i64>(0)).optional()?);
    }
    if numbers.is_empty() {
        return last_removal(&transaction);
    }
    // One pass over all rows: an index of the chunks by segment would cost every backup.
    transaction
        .execute_batch("CREATE TEMP TABLE IF NOT EXISTS gone (number INTEGER PRIMARY KEY)")?;
    for number in &numbers {
        transaction.execute("INSERT OR IGNORE INTO gone VALUES (?1)", [number])?;
    }
    transaction.execute("DELETE FROM chunks WHERE segment IN (SELECT number FROM gone)", [])?;
    transaction.execute("DELETE FROM segments WHERE number IN (SELECT number FROM gone)", [])?;
    transaction.execute("DELETE FROM gone", [])?;
    transaction.execute("UPDATE removals SET number = number + 1, is_over = 0", [])?;
    let removal = last_removal(&transaction)?;
    transaction.commit()?;
    Ok(removal)
}

fn last_removal(connection: &Connection) -> Result<Removal> {
    let last = "SELECT number, is_over FROM removals";
    Ok(connection
        .query_row(last, [], |row| Ok(Removal { number: row.get(0)?, is_over: row.get(1)? }))?)
}

fn failed(source: io::Error) -> Error {
    Error::StoreWrite { name: "index.sqlite".into(), source }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Best effort: a file that cannot be removed fails the next step.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index_with_a_segment(dir: &Path) -> (Index, SegmentId) {
        let builder = Builder::new(&dir.join("index.sqlite"), 0o600, &[1; 16]).expect("begins");
        let index = builder.finish(true, &[1; 16]).expect("builds");
        let id = SegmentId::of(b"segment");
        let segment = Segment { id, kind: SegmentKind::Data, len: 100, is_healthy: true };
        index.add(&segment, &[]).expect("adds");
        (index, id)
    }

    #[test]
    fn damage_found_during_a_backup_keeps_a_snapshot_unmarked() {
        let dir = tempfile::tempdir().expect("a directory");
        let (index, segment) = index_with_a_segment(dir.path());
        let snapshot = SnapshotId::of(b"snapshot");
        let known = index.damaged().expect("asks");
        assert!(known.is_empty());
        index.set_damaged(&segment).expect("marks");
        index.set_whole(&snapshot, &known).expect("asks");
        assert!(!index.is_whole(&snapshot).expect("asks"));

        let known = index.damaged().expect("asks");
        assert_eq!(known, HashSet::from([segment]));
        index.set_whole(&snapshot, &known).expect("marks");
        assert!(index.is_whole(&snapshot).expect("asks"));
        index.forget_whole().expect("forgets");
        assert!(!index.is_whole(&snapshot).expect("asks"));
    }

    #[test]
    fn an_index_is_read_without_being_written() {
        let dir = tempfile::tempdir().expect("a directory with % and ?");
        let path = dir.path().join("odd ?%#");
        std::fs::create_dir(&path).expect("makes");
        let (index, segment) = index_with_a_segment(&path);
        drop(index);
        let connection = connect_read_only(&path.join("index.sqlite")).expect("opens");
        assert!(damaged(&connection).expect("asks").is_empty());
        let path = path.join("index.sqlite");
        let file = identity(&path).expect("is there");
        let idle = Mutex::new(vec![connection]);
        let (changes, returned) = (AtomicU64::new(0), Condvar::new());
        let is_read_only = true;
        let index = Index { path, file, is_read_only, has_log: false, changes, idle, returned };
        let error = index.set_damaged(&segment).expect_err("must not write");
        assert!(error.is_index_denied(), "{error}");
    }

    #[test]
    fn rows_move_only_from_damaged_to_healthy_segments() {
        let dir = tempfile::tempdir().expect("a directory");
        let (index, _) = index_with_a_segment(dir.path());
        let id = ChunkId::of(b"chunk");
        let row = Row { id, offset: 10, stored_len: 20, plain_len: 30 };
        let segment = |name: &[u8], is_healthy| Segment {
            id: SegmentId::of(name),
            kind: SegmentKind::Data,
            len: 100,
            is_healthy,
        };
        let place = || index.find(&id).expect("asks").expect("is there").segment;
        index.add(&segment(b"a", true), &[row]).expect("adds");
        index.add(&segment(b"b", true), &[row]).expect("adds");
        assert_eq!(place(), SegmentId::of(b"a"));
        index.set_damaged(&SegmentId::of(b"a")).expect("marks");
        index.add(&segment(b"c", false), &[row]).expect("adds");
        assert_eq!(place(), SegmentId::of(b"a"));
        index.add(&segment(b"b", true), &[row]).expect("adds again");
        assert_eq!(place(), SegmentId::of(b"b"));
        // Segment a is written again and healthy; the row stays with b.
        index.add(&segment(b"a", true), &[row]).expect("adds");
        assert_eq!(place(), SegmentId::of(b"b"));
    }

    #[test]
    fn look_ups_in_one_transaction_see_the_changes_of_other_threads() {
        let dir = tempfile::tempdir().expect("a directory");
        let (index, _) = index_with_a_segment(dir.path());
        let row = |byte| Row { id: ChunkId::of(&[byte]), offset: 9, stored_len: 1, plain_len: 1 };
        let add = |byte: u8| {
            let id = SegmentId::of(&[byte]);
            let segment = Segment { id, kind: SegmentKind::Data, len: 99, is_healthy: true };
            index.add(&segment, &[row(byte)]).expect("added");
        };
        let has = |byte| index.has(&row(byte).id).expect("can be read");
        let _outer = index.reading();
        {
            let _inner = index.reading();
            assert!(!has(77));
        }
        std::thread::scope(|scope| scope.spawn(|| add(77)).join().expect("added"));
        assert!(has(77) && !has(78));
        // A removed index cannot be opened again; the transaction keeps no connection from others.
        std::fs::remove_file(dir.path().join("index.sqlite")).expect("removed");
        add(78);
        assert!(has(78));
    }

    #[test]
    fn connections_survive_a_removed_or_replaced_index() {
        let dir = tempfile::tempdir().expect("a directory");
        let (index, segment) = index_with_a_segment(dir.path());
        let path = dir.path().join("index.sqlite");
        let ask = || index.damaged().expect("asks").contains(&segment);
        let replaced = std::fs::read(&path).expect("reads");
        std::fs::remove_file(&path).expect("removes");
        index.set_damaged(&segment).expect("marks");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| assert!(ask())));
            }
        });
        assert!(!path.exists());
        std::fs::write(&path, replaced).expect("writes");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| assert!(ask())));
            }
        });
    }

    #[test]
    fn an_abandoned_index_is_never_half_built() {
        let dir = tempfile::tempdir().expect("a directory");
        let (index, _) = index_with_a_segment(dir.path());
        let path = dir.path().join("index.sqlite");
        let names = || {
            let entries = std::fs::read_dir(dir.path()).expect("lists");
            let mut names: Vec<_> =
                entries.map(|entry| entry.expect("lists").file_name()).collect();
            names.sort();
            names
        };
        index.give_up();
        drop(index);
        assert!(Index::open(&path, &[1; 16]).expect("opens").is_none());
        let builder = Builder::new(&path, 0o640, &[1; 16]).expect("begins");
        assert!(path.with_extension("sqlite.new").exists());
        drop(builder);
        assert_eq!(names(), ["index.sqlite"]);
        // The old index's files are removed with it.
        for suffix in COMPANIONS {
            std::fs::write(with_suffix(&path, suffix), "of the old one").expect("writes");
        }
        let builder = Builder::new(&path, 0o640, &[1; 16]).expect("begins");
        drop(builder.finish(true, &[1; 16]).expect("finishes"));
        assert_eq!(names(), ["index.sqlite"]);
        let mode = std::fs::metadata(&path).expect("is there").mode();
        assert_eq!(mode & 0o777, 0o640);
    }
}
