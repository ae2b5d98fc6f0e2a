//! Check: finds missing or changed data in a store and lists the resulting losses.
//!
//! There are three passes:
//!
//! 1. the small files,
//! 2. the segments: their tables, and all bytes of those that are read completely,
//! 3. the trees, down to every chunk they name.

mod references;

use crate::backend;
use crate::chunks::Chunks;
use crate::condemned;
use crate::config;
use crate::entry::{Content, Entry};
use crate::error::{Error, Result, is_transient};
use crate::id::{ChunkId, SegmentId, SnapshotId};
use crate::index::RowSum;
use crate::limits;
use crate::observe::Event;
use crate::reach;
use crate::recipe::{Extent, Extents, Recent};
use crate::segment::{self, Row, Table};
use crate::sessions;
use crate::snapshot::{self, Snapshot, Stamp};
use crate::store::shard_dir;
use crate::store::{SEGMENTS_DIR, Store};
use crate::tree::{Lost, Place, Span, TreeReader};
use crate::workspace::INDEX_FILE;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Stored bytes read at once. They stay in a core's cache while they are hashed, decoded and hashed
/// again.
const READ_BYTES: usize = 1 << 20;
/// Maximum number of damaged chunks kept by name. All are counted, and segments are always named.
const DAMAGES_MAX: usize = 10_000;
/// Approximate limit of memory for lost paths, in bytes. All are counted.
const LOSS_BYTES_MAX: usize = 24 << 20;

/// Segments to read completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadData {
    /// Only tables.
    None,
    /// All.
    All,
    /// Part `n` of `of` parts, counted from 1. All parts together cover all segments.
    Part {
        /// Number of the part.
        n: u32,
        /// Number of parts.
        of: u32,
    },
    /// A share of the segments, chosen by `seed` and rounded up to whole segments.
    Share {
        /// Segments per million.
        per_million: u32,
        /// Each seed chooses other segments.
        seed: u64,
    },
}

/// [`ReadData`], resolved for the listed segments.
enum Picked {
    None,
    All,
    Part {
        n: u32,
        of: u32,
    },
    /// Segments whose rank for `seed` is at most `limit`.
    Ranked {
        seed: u64,
        limit: u64,
    },
}

impl Picked {
    fn of<'a>(read_data: ReadData, all: impl Iterator<Item = &'a SegmentId>) -> Picked {
        match read_data {
            ReadData::None => Picked::None,
            ReadData::All => Picked::All,
            ReadData::Part { n, of } => Picked::Part { n, of },
            ReadData::Share { per_million, seed } => {
                let mut ranks: Vec<u64> = all.map(|id| rank(seed, id)).collect();
                let share = ranks.len() as u128 * u128::from(per_million.min(1_000_000));
                match (share.div_ceil(1_000_000) as usize).checked_sub(1) {
                    None => Picked::None,
                    Some(last) => {
                        let (_, limit, _) = ranks.select_nth_unstable(last);
                        Picked::Ranked { seed, limit: *limit }
                    }
                }
            }
        }
    }

    fn has(&self, id: &SegmentId) -> bool {
        let number = u32::from_le_bytes(id.as_bytes()[..4].try_into().expect("4 bytes"));
        match *self {
            Picked::None => false,
            Picked::All => true,
            Picked::Part { n, of } => number % of == n - 1,
            Picked::Ranked { seed, limit } => rank(seed, id) <= limit,
        }
    }
}

/// Returns a segment's position in an order that depends on the seed.
fn rank(seed: u64, id: &SegmentId) -> u64 {
    let hash = blake3::hash(&[&seed.to_le_bytes()[..], id.as_bytes()].concat());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 bytes"))
}

/// An object of the store that can be damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// `store.json`.
    Config,
    /// A snapshot record.
    Snapshot(SnapshotId),
    /// The directory of all segments.
    Segments,
    /// A directory of segments.
    Shard(u8),
    /// A segment.
    Segment(SegmentId),
    /// A chunk in a segment.
    Chunk(ChunkId, SegmentId),
    /// The index.
    Index,
}

impl Object {
    /// Returns the segment that is the object or contains it.
    pub fn segment(&self) -> Option<&SegmentId> {
        match self {
            Object::Segment(segment) | Object::Chunk(_, segment) => Some(segment),
            _ => None,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Config => f.write_str(config::FILE),
            Object::Snapshot(id) => f.write_str(&snapshot::file_name(id)),
            Object::Segments => f.write_str(SEGMENTS_DIR),
            Object::Shard(shard) => f.write_str(&shard_dir(*shard)),
            Object::Segment(id) => f.write_str(&segment::file_name(id)),
            Object::Chunk(chunk, segment) => {
                write!(f, "chunk {chunk} in {}", segment::file_name(segment))
            }
            Object::Index => f.write_str(INDEX_FILE),
        }
    }
}

/// A damaged object of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The object.
    pub object: Object,
    /// Fault.
    pub reason: String,
}

/// An entry or range of entries that can no longer be restored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// Affected snapshot.
    pub snapshot: SnapshotId,
    /// Path in the tree, readable; or a range of paths.
    pub path: String,
    /// Number of lost paths.
    pub entries: u64,
    /// Cause.
    pub reason: String,
}

/// Result of a check.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Number of snapshots checked.
    pub snapshots: u64,
    /// The snapshots with the times of their starts, oldest first.
    pub examined: Vec<(SnapshotId, Stamp)>,
    /// Snapshots of a newer version of the program, which were not checked.
    pub newer: Vec<SnapshotId>,
    /// Number of segments checked.
    pub segments: u64,
    /// Number of segments read completely.
    pub segments_read: u64,
    /// Bytes of segments read completely.
    pub bytes_read: u64,
    /// Number of chunks in tables.
    pub chunks: u64,
    /// Damage found, up to a limit.
    pub damages: Vec<Damage>,
    /// Number of all damages, including those not in `damages`.
    pub damage_count: u64,
    /// Resulting losses, up to a limit.
    pub losses: Vec<Loss>,
    /// Number of all lost paths, including those not in `losses`.
    pub loss_count: u64,
    /// Number of losses not in `losses`.
    pub losses_unnamed: u64,
    /// Damaged segments that no snapshot needs, because other segments have the same content. They
    /// do not count as damage. Empty if anything is lost.
    pub superseded: Vec<Damage>,
}

impl Report {
    /// Returns true if the check found no damage and no loss.
    pub fn is_clean(&self) -> bool {
        self.damage_count == 0 && self.loss_count == 0
    }
}

/// Checks a store.
pub fn check(store: &Store, read_data: ReadData) -> Result<Report> {
    check_some(store, read_data, None)
}

/// Like [`check()`], but of all trees only those of some snapshots, if these are given.
pub fn check_some(
    store: &Store,
    read_data: ReadData,
    only: Option<&HashSet<SnapshotId>>,
) -> Result<Report> {
    let mut check = Check::new(store, read_data);
    check.config()?;
    check.markers();
    let mut snapshots = check.snapshots()?;
    if let Some(only) = only {
        snapshots.retain(|(id, _)| only.contains(id));
        check.has_other_snapshots = true;
    }
    check.report.snapshots = snapshots.len() as u64;
    check.report.examined = snapshots.iter().map(|(id, of)| (*id, of.start)).collect();
    check.segments()?;
    check.foreign_segments();
    check.trees(&snapshots)?;
    while check.has_losses_of_forgotten(&mut snapshots)? {
        check.trees(&snapshots)?;
    }
    check.missing_chunks();
    check.lacking_rows()?;
    if check.losses.lock().count > 0 {
        // Regardless of the index, the next backup must look at every chunk.
        check.to_index(store.index.forget_whole())?;
    }
    let report = check.finish();
    if report.damages.iter().any(|damage| damage.object == Object::Index) {
        store.index.give_up();
    }
    Ok(report)
}

struct Check<'a> {
    store: &'a Store,
    read_data: ReadData,
    picked: Picked,
    damages: Mutex<Vec<Damage>>,
    damage_count: AtomicU64,
    losses: Mutex<Losses>,
    bad_chunks: Mutex<HashSet<ChunkId>>,
    /// Chunks that snapshots need and no segment has, up to a limit.
    missing_chunks: Mutex<HashSet<ChunkId>>,
    /// Segments that the index called damaged when the check began.
    marked: HashSet<SegmentId>,
    /// Damaged segments.
    bad_segments: Mutex<HashSet<SegmentId>>,
    /// Those from which a snapshot still needs an intact chunk.
    needed: Mutex<HashSet<SegmentId>>,
    chunks: AtomicU64,
    /// Last segment in the index when the check began, because others may be added meanwhile.
    /// `None` if the index is not compared.
    last: Option<i64>,
    /// Rows of each of its segments in the index, by the number of the segment.
    row_sums: HashMap<i64, RowSum>,
    /// Number of table rows, of segments up to `last`, that the index locates.
    indexed: AtomicU64,
    /// Numbers of the segments whose tables were compared with the index.
    compared: Mutex<HashSet<i64>>,
    lacking: Mutex<Lacking>,
    bytes_read: AtomicU64,
    segments_read: AtomicU64,
    /// Number of segments with a different copy of `store.json`.
    foreign: AtomicU64,
    /// One of them.
    a_foreign: Mutex<Option<SegmentId>>,
    /// True if snapshots may exist whose trees are not checked.
    has_other_snapshots: bool,
    /// Number of entries of each snapshot, according to its record.
    entries: HashMap<SnapshotId, u64>,
    report: Report,
}

/// Chunks in tables that the index does not locate.
#[derive(Default)]
struct Lacking {
    kept: Vec<(SegmentId, ChunkId)>,
    /// Number of those not kept.
    more: u64,
}

impl Lacking {
    fn push(&mut self, segment: SegmentId, chunk: ChunkId) {
        match self.kept.len() < DAMAGES_MAX {
            true => self.kept.push((segment, chunk)),
            false => self.more += 1,
        }
    }
}

/// Losses found.
#[derive(Default)]
struct Losses {
    kept: Vec<Loss>,
    /// Number of lost paths, including those not kept.
    count: u64,
    skipped: u64,
    /// Approximate memory of all losses, including those not kept, in bytes.
    bytes: usize,
}

thread_local! {
    /// Stored and plain bytes of the chunks that this thread reads.
    static BUFFERS: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Reason why content cannot be restored.
#[derive(Debug, thiserror::Error)]
enum Flaw {
    /// A chunk is missing or damaged.
    #[error("{0}")]
    Damage(Error),
    /// A slice of this chunk ends beyond the longest chunk.
    #[error("a slice of chunk {0} exceeds the maximum chunk size")]
    TooLong(ChunkId),
    /// A slice of this chunk ends beyond it.
    #[error("chunk {0} is too short for its slice")]
    TooShort(ChunkId),
}

impl<'a> Check<'a> {
    fn new(store: &'a Store, read_data: ReadData) -> Check<'a> {
        Check {
            store,
            read_data,
            picked: Picked::None,
            damages: Mutex::default(),
            damage_count: AtomicU64::new(0),
            losses: Mutex::default(),
            bad_chunks: Mutex::default(),
            missing_chunks: Mutex::default(),
            marked: HashSet::new(),
            bad_segments: Mutex::default(),
            needed: Mutex::default(),
            chunks: AtomicU64::new(0),
            last: None,
            row_sums: HashMap::new(),
            indexed: AtomicU64::new(0),
            compared: Mutex::default(),
            lacking: Mutex::default(),
            bytes_read: AtomicU64::new(0),
            segments_read: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            a_foreign: Mutex::default(),
            has_other_snapshots: false,
            entries: HashMap::new(),
            report: Report::default(),
        }
    }
}

impl Check<'_> {
    fn damage(&self, object: Object, reason: impl ToString) {
        let damage = Damage { object, reason: reason.to_string() };
        self.damage_count.fetch_add(1, Relaxed);
        let mut damages = self.damages.lock();
        if damages.len() < DAMAGES_MAX {
            damages.push(damage);
        }
    }

    fn lost(&self, loss: Loss) {
        let mut losses = self.losses.lock();
        losses.count = losses.count.saturating_add(loss.entries);
        losses.bytes += size_of::<Loss>() + loss.path.len() + loss.reason.len();
        if losses.bytes <= LOSS_BYTES_MAX {
            losses.kept.push(loss);
        } else {
            losses.skipped += 1;
        }
    }

    fn config(&self) -> Result<()> {
        let backend = &*self.store.backend;
        match backend::read_all(backend, config::FILE, limits::RECORD_BYTES_MAX) {
            Ok(bytes) if bytes == self.store.config_bytes => {}
            Ok(_) => {
                self.damage(Object::Config, "its content differs from the copy in the segments")
            }
            Err(error) if is_transient(&error) => {
                return Err(Error::store_read(config::FILE)(error));
            }
            Err(error) => self.damage(Object::Config, error),
        }
        Ok(())
    }

    /// Warns of objects of backups and prunes that cannot be read. They concern no snapshot.
    fn markers(&self) {
        let (backend, local) = (&*self.store.backend, self.store.workspace.local());
        let condemned = condemned::list(backend, local).map(drop);
        let sessions = sessions::list(backend).and_then(|sessions| {
            sessions.keys().try_for_each(|id| sessions::life(backend, local, id).map(drop))
        });
        for error in [condemned, sessions].into_iter().filter_map(std::result::Result::err) {
            let text = format!(
                "{error}; backups or prunes refuse the store; delete this file while none of them runs"
            );
            self.store.observer().event(Event::Warning(text));
        }
    }

    fn snapshots(&mut self) -> Result<Vec<(SnapshotId, Snapshot)>> {
        let backend = &*self.store.backend;
        let mut snapshots = Vec::new();
        for id in self.store.snapshot_ids()? {
            let object = Object::Snapshot(id);
            match Snapshot::read(backend, self.store.codec, &id) {
                Ok((snapshot, is_whole)) => {
                    if !is_whole {
                        self.damage(object, "one of the two copies of its record is damaged");
                    }
                    self.entries.insert(id, snapshot.statistics.entries);
                    snapshots.push((id, snapshot));
                }
                Err(_) if !self.store.snapshot_ids()?.contains(&id) => {} // removed meanwhile
                Err(error) if error.is_transient() => return Err(error),
                Err(Error::Newer { .. }) => self.report.newer.push(id),
                Err(error) => {
                    self.damage(object, &error);
                    let (path, reason) = ("/".to_owned(), error.to_string());
                    self.lost(Loss { snapshot: id, path, entries: 1, reason });
                }
            }
        }
        snapshots.sort_by_key(|(id, snapshot)| (snapshot.start, *id));
        Ok(snapshots)
    }

    fn segments(&mut self) -> Result<()> {
        let progress = self.store.observer().progress();
        self.store.heed_checks(false)?;
        self.marked = self.of_index(self.store.index.damaged())?.unwrap_or_default();
        // Before the listing: all segments of the index are then listed.
        //
        // A user who may not write the index cannot lock it, and could see half of a change.
        if !self.store.index.is_read_only() {
            let index = &self.store.index;
            let found = index.last_number().and_then(|last| Ok((last, index.row_sums(last)?)));
            if let Some((last, row_sums)) = self.of_index(found)? {
                (self.last, self.row_sums) = (Some(last), row_sums);
            }
        }
        let list = |shard| match self.store.list_shard(shard) {
            Ok(listed) => {
                if self.store.unlisted.contains(&shard) {
                    let reason = "listing it failed when the store was opened";
                    self.damage(Object::Shard(shard), reason);
                }
                Ok(listed)
            }
            Err(error) if error.is_transient() => Err(error),
            // One error concerns all directories in it.
            Err(Error::StoreRead { name, source }) if name == SEGMENTS_DIR => {
                if shard == 0 {
                    self.damage(
                        Object::Segments,
                        format!("{source}; all segments count as missing"),
                    );
                }
                Ok(Vec::new())
            }
            Err(error) => {
                self.damage(
                    Object::Shard(shard),
                    format!("{error}; its segments count as missing"),
                );
                Ok(Vec::new())
            }
        };
        let shards: Vec<Vec<(SegmentId, u64)>> = (0..=255).map(list).collect::<Result<_>>()?;
        let ids = shards.iter().flatten().map(|(id, _)| id);
        self.picked = Picked::of(self.read_data, ids);
        let picked = |id: &SegmentId, len: u64| if self.picked.has(id) { len } else { 0 };
        let count = shards.iter().map(|shard| shard.len() as u64).sum();
        let bytes = shards.iter().flatten().map(|(id, len)| picked(id, *len)).sum();
        progress.expect(count, bytes);
        self.report.segments = count;
        shards.par_iter().flatten().try_for_each(|(id, len)| -> Result<()> {
            progress.check()?;
            self.segment(id, *len)?;
            progress.add(1, 0);
            Ok(())
        })?;
        self.rows_too_many()?;
        self.row_sums = HashMap::new();
        Ok(())
    }

    /// Compares the number of rows in the index with the number that the tables led to.
    fn rows_too_many(&self) -> Result<()> {
        let Some(ids) = self.of_index(self.store.index.numbers())? else { return Ok(()) };
        let Some(has_condemned) = self.of_index(self.store.index.has_condemned())? else {
            return Ok(());
        };
        let are_all_left = self.row_sums.keys().all(|number| ids.contains_key(number));
        if has_condemned || !are_all_left {
            // A prune moved rows to other segments meanwhile.
            return Ok(());
        }
        let compared = self.compared.lock();
        let mut in_index: u64 = 0;
        for (number, sum) in &self.row_sums {
            // An index of this process keeps rows of segments that a prune deletes.
            let is_compared = compared.contains(number);
            if is_compared || ids.get(number).is_some_and(|id| self.has_file(id)) {
                in_index += sum.rows;
            }
        }
        let too_many = in_index.saturating_sub(self.indexed.load(Relaxed));
        let is_unlisted = |damage: &Damage| {
            matches!(damage.object, Object::Segment(_) | Object::Segments | Object::Shard(_))
        };
        if too_many > 0 && !self.damages.lock().iter().any(is_unlisted) {
            let reason = format!("it lists {too_many} of {in_index} chunks in wrong places");
            self.damage(Object::Index, reason);
        }
        Ok(())
    }

    fn segment(&self, id: &SegmentId, len: u64) -> Result<()> {
        let table = match self.store.table(id, len) {
            Ok(table) => table,
            Err(_) if self.is_removed(id)? => return Ok(()),
            Err(error @ Error::Newer { .. }) => return Err(error),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                self.bad_segment(id, &error)?;
                if self.picked.has(id) {
                    self.store.observer().progress().add(0, len);
                }
                return Ok(());
            }
        };
        if table.header.config != self.store.config_bytes {
            self.foreign.fetch_add(1, Relaxed);
            *self.a_foreign.lock() = Some(*id);
        }
        self.chunks.fetch_add(table.rows.len() as u64, Relaxed);
        self.index_rows(id, &table.rows)?;
        if self.picked.has(id) {
            self.read_segment(id, len, &table)?;
            self.segments_read.fetch_add(1, Relaxed);
            self.bytes_read.fetch_add(len, Relaxed);
        }
        Ok(())
    }

    /// Returns true unless a segment does not exist.
    fn has_file(&self, id: &SegmentId) -> bool {
        let len = self.store.backend.len(&segment::file_name(id));
        !len.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    /// Returns true if a segment was removed after it was listed. The trees show the resulting
    /// loss.
    fn is_removed(&self, id: &SegmentId) -> Result<bool> {
        let name = segment::file_name(id);
        match self.store.backend.len(&name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let listed = self.store.list_shard(id.as_bytes()[0])?;
                Ok(listed.iter().all(|(other, _)| other != id))
            }
            _ => Ok(false),
        }
    }

    /// Reports segments of another store: every segment holds a copy of its store's `store.json`.
    fn foreign_segments(&self) {
        let Some(one) = *self.a_foreign.lock() else { return };
        let (foreign, all) = (self.foreign.load(Relaxed), self.report.segments);
        let reason =
            format!("{foreign} of {all} segments, such as {one}, contain a different copy");
        self.damage(Object::Config, reason);
    }

    fn bad_segment(&self, id: &SegmentId, reason: &dyn ToString) -> Result<()> {
        self.damage_count.fetch_add(1, Relaxed);
        let (object, reason) = (Object::Segment(*id), reason.to_string());
        self.damages.lock().push(Damage { object, reason });
        self.bad_segments.lock().insert(*id);
        self.to_index(self.store.index.set_damaged(id))?;
        Ok(())
    }

    /// Returns the index's answer. Returns `None` if the index is damaged, which is reported once.
    fn of_index<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_index_broken() => {
                let mut damages = self.damages.lock();
                let (object, reason) = (Object::Index, error.to_string());
                let damage = Damage { object, reason };
                if !damages.contains(&damage) {
                    self.damage_count.fetch_add(1, Relaxed);
                    damages.push(damage);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Handles the result of a write to the index. A full disk is not a damage.
    fn to_index(&self, result: Result<()>) -> Result<()> {
        match self.of_index(result) {
            Err(error @ Error::Index(_)) => {
                let text = format!("cannot record the damage in the index: {error}");
                self.store.observer().event(Event::Warning(text));
                Ok(())
            }
            done => done.map(drop),
        }
    }

    /// Compares the rows of a table with the index.
    fn index_rows(&self, id: &SegmentId, rows: &[Row]) -> Result<()> {
        let Some(last) = self.last else { return Ok(()) };
        let Some(number) = self.of_index(self.store.index.number(id))? else { return Ok(()) };
        let Some(number) = number.filter(|number| *number <= last) else {
            // Published after the check began: its writer adds it to the index.
            return Ok(());
        };
        self.compared.lock().insert(number);
        if self.row_sums.get(&number).copied().unwrap_or_default() == RowSum::of(rows) {
            self.indexed.fetch_add(rows.len() as u64, Relaxed);
            return Ok(());
        }
        for row in rows {
            let Some(found) = self.of_index(self.store.index.find(&row.id))? else {
                return Ok(());
            };
            match found {
                Some(found) if found.segment == *id && found.offset == row.offset => {
                    if (found.stored_len, found.plain_len) != (row.stored_len, row.plain_len) {
                        let reason = format!("it has wrong lengths for chunk {}", row.id);
                        self.damage(Object::Index, reason);
                    }
                    self.indexed.fetch_add(1, Relaxed);
                }
                // The index has this chunk in another segment. It is counted there.
                Some(_) => {}
                None => self.lacking.lock().push(*id, row.id),
            }
        }
        Ok(())
    }

    /// Reports the chunks that the index lacks. Those are looked up again: a prune or a backup removes
    /// rows of segments before it adds those of other copies.
    fn lacking_rows(&self) -> Result<()> {
        let lacking = std::mem::take(&mut *self.lacking.lock());
        if lacking.kept.is_empty() {
            return Ok(());
        }
        let index = &self.store.index;
        let look = || -> Result<_> {
            let before = index.last_removal()?;
            index.refresh();
            let mut still = Vec::new();
            for (segment, chunk) in &lacking.kept {
                if index.find(chunk)?.is_none() && self.has_file(segment) {
                    still.push((segment, chunk));
                }
            }
            let is_changing = !before.is_over || before != index.last_removal()?;
            Ok(if is_changing { Vec::new() } else { still })
        };
        let still = self.of_index(look())?.unwrap_or_default();
        for (segment, chunk) in &still {
            self.damage(Object::Index, format!("it lacks chunk {chunk} of segment {segment}"));
        }
        if !still.is_empty() {
            self.damage_count.fetch_add(lacking.more, Relaxed);
        }
        Ok(())
    }

    /// Reads every byte of a segment. Verifies each chunk and the whole file against their ids.
    fn read_segment(&self, id: &SegmentId, len: u64, table: &Table) -> Result<()> {
        let name = segment::file_name(id);
        let mut whole = blake3::Hasher::new();
        let body = table.rows.first().map_or(len, |row| u64::from(row.offset));
        let body_end = table.rows.last().map_or(body, Row::end);
        let mut is_bad = false;
        let result = BUFFERS.with_borrow_mut(|(stored, plain)| -> std::io::Result<()> {
            self.hash_range(&name, 0, body, &mut whole, stored)?;
            let mut rows = &table.rows[..];
            while let Some(first) = rows.first() {
                let is_near = |row: &&Row| row.end() - u64::from(first.offset) <= READ_BYTES as u64;
                let count = rows.iter().take_while(is_near).count().max(1);
                let (batch, rest) = rows.split_at(count);
                rows = rest;
                let bytes = (batch[count - 1].end() - u64::from(first.offset)) as usize;
                stored.resize(bytes, 0);
                self.store.backend.read(&name, u64::from(first.offset), stored)?;
                whole.update(stored);
                for row in batch {
                    let from = (row.offset - first.offset) as usize;
                    let frame = &stored[from..from + row.stored_len as usize];
                    if let Err(reason) =
                        self.store.codec.decode(&row.id, frame, row.plain_len as usize, plain)
                    {
                        is_bad = true;
                        self.damage(Object::Chunk(row.id, *id), reason);
                        self.bad_chunks.lock().insert(row.id);
                    }
                }
                self.store.observer().progress().add(0, bytes as u64);
            }
            self.hash_range(&name, body_end, len - body_end, &mut whole, stored)
        });
        match result {
            Err(error) if is_transient(&error) => Err(Error::store_read(name)(error)),
            // By a prune, since its table was read.
            Err(_) if self.is_removed(id)? => Ok(()),
            Err(error) => self.bad_segment(id, &error),
            Ok(()) if SegmentId::from_bytes(whole.finalize().into()) != *id => {
                self.bad_segment(id, &"its content does not match its id")
            }
            Ok(()) if is_bad => self.bad_segment(id, &"its table does not match its chunks"),
            // An earlier read may have failed because of the connection to the disk.
            Ok(()) if self.marked.contains(id) => self.to_index(self.store.index.set_healthy(id)),
            Ok(()) => Ok(()),
        }
    }

    fn hash_range(
        &self,
        name: &str,
        from: u64,
        len: u64,
        hasher: &mut blake3::Hasher,
        buffer: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        let mut at = from;
        while at < from + len {
            let step = (from + len - at).min(READ_BYTES as u64);
            buffer.resize(step as usize, 0);
            self.store.backend.read(name, at, buffer)?;
            hasher.update(buffer);
            at += step;
        }
        self.store.observer().progress().add(0, len);
        Ok(())
    }

    /// Returns true if all tables agree with the index, and no damage is known.
    fn is_undamaged(&self) -> bool {
        self.last.is_some()
            && self.damage_count.load(Relaxed) == 0
            && self.store.index.damaged().is_ok_and(|damaged| damaged.is_empty())
    }

    /// Records a chunk that a snapshot needs and that cannot be read.
    fn unreadable_chunk(&self, error: &Error) -> Result<()> {
        match error {
            Error::ChunkDamaged { chunk, segment, reason }
                if self.bad_chunks.lock().insert(*chunk) =>
            {
                self.damage(Object::Chunk(*chunk, *segment), reason);
                self.to_index(self.store.index.set_damaged(segment))?;
            }
            Error::ChunkMissing(chunk) => {
                let mut missing = self.missing_chunks.lock();
                if missing.len() < DAMAGES_MAX {
                    missing.insert(*chunk);
                }
            }
            Error::StoreRead { name, source } if error.is_damage() => {
                let id = segment::id_of(name);
                if let Some(id) = id.filter(|id| !self.bad_segments.lock().contains(id))
                    && !self.is_removed(&id)?
                {
                    self.bad_segment(&id, source)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Reports the chunks that no segment has: a segment file is gone.
    fn missing_chunks(&self) {
        let missing = self.missing_chunks.lock().len();
        if missing > 0 {
            let more = if missing < DAMAGES_MAX { "" } else { "more than " };
            let reason = format!(
                "{more}{missing} chunks that snapshots need are in no segment; a file is missing"
            );
            self.damage(Object::Segments, reason);
        }
    }

    /// Walks the pages of all snapshots. Pages found whole are checked only once.
    fn trees(&mut self, snapshots: &[(SnapshotId, Snapshot)]) -> Result<()> {
        if self.is_undamaged() && references::are_all_sound(self, snapshots)? {
            return Ok(());
        }
        let mut whole_pages: HashSet<u128> = HashSet::new();
        for (id, snapshot) in snapshots {
            let of_others = self.losses.lock().kept.len();
            let examine = |place: Place, lost| match lost {
                None => self.leaf(id, &place),
                Some(error) if Error::is_damage(&error) => {
                    self.page_lost(id, &place, error.to_string());
                    Ok(false)
                }
                Some(error) => Err(error),
            };
            let progress = self.store.observer().progress();
            reach::pages(&snapshot.root.chunk(), self, &mut whole_pages, progress, &examine)?;
            self.losses.lock().kept[of_others..].sort_by(|a, b| a.path.cmp(&b.path));
        }
        Ok(())
    }

    /// If some paths are lost, drops the snapshots that were forgotten meanwhile: a prune may have
    /// deleted what they needed. Returns true if there were any. The losses are unknown then.
    fn has_losses_of_forgotten(&self, snapshots: &mut Vec<(SnapshotId, Snapshot)>) -> Result<bool> {
        if self.losses.lock().count == 0 {
            return Ok(false);
        }
        let (listed, before) = (self.store.snapshot_ids()?, snapshots.len());
        snapshots.retain(|(id, _)| listed.binary_search(id).is_ok());
        if snapshots.len() == before {
            return Ok(false);
        }
        *self.losses.lock() = Losses::default();
        self.missing_chunks.lock().clear();
        Ok(true)
    }

    /// Returns the damage that makes a chunk unreadable, or `None`.
    fn trouble(&self, chunk: &ChunkId) -> Result<Option<Error>> {
        let location = match self.store.locate(chunk) {
            Ok(location) => location,
            Err(error) if error.is_damage() => {
                self.unreadable_chunk(&error)?;
                return Ok(Some(error));
            }
            Err(error) => return Err(error),
        };
        let is_suspect = !location.is_healthy
            || self.bad_chunks.lock().contains(chunk)
            || self.bad_segments.lock().contains(&location.segment);
        if !is_suspect {
            return Ok(None);
        }
        match self.get(chunk) {
            Ok(_) => Ok(None),
            Err(error) if error.is_damage() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// Returns true if all entries of a leaf can be restored. Reports the others as lost.
    fn leaf(&self, id: &SnapshotId, place: &Place) -> Result<bool> {
        if let Some(error) = self.trouble(&place.child.page)? {
            self.page_lost(id, place, error.to_string());
            return Ok(false);
        }
        let mut is_whole = true;
        for item in TreeReader::at(place.clone(), self) {
            let loss = match item {
                Ok(entry) => match self.entry(&entry)? {
                    None => continue,
                    Some(flaw) => {
                        let path = Span::Entry(entry.path.clone()).to_string();
                        Loss { snapshot: *id, path, entries: 1, reason: flaw.to_string() }
                    }
                },
                Err(Lost { error, .. }) if !error.is_damage() => return Err(error),
                Err(Lost { error, span, entries }) => {
                    let (path, entries) = (span.to_string(), entries.unwrap_or(1));
                    Loss { snapshot: *id, path, entries, reason: error.to_string() }
                }
            };
            self.lost(loss);
            is_whole = false;
        }
        Ok(is_whole)
    }

    /// Reports the loss of a page and everything below it.
    fn page_lost(&self, snapshot: &SnapshotId, place: &Place, reason: String) {
        let (from, until) = (place.child.first.clone(), place.until.clone());
        let path = Span::Range { from, until }.to_string();
        let is_all = place.child.first.is_empty() && place.until.is_none();
        let known = if is_all { self.entries.get(snapshot) } else { Some(&place.child.entries) };
        let entries = known.copied().unwrap_or(1).max(1);
        self.lost(Loss { snapshot: *snapshot, path, entries, reason });
    }

    /// Returns the first flaw in the content of an entry, or `None`.
    fn entry(&self, entry: &Entry) -> Result<Option<Flaw>> {
        let Content::Recipe(recipe) = &entry.content else { return Ok(None) };
        let mut sound = Recent::default();
        for extent in Extents::new(recipe, self) {
            let flaw = match extent {
                Ok(Extent::Hole { .. }) => None,
                Ok(Extent::Slice { chunk, offset, len }) => {
                    self.slice(&chunk, offset, len, &mut sound)?
                }
                Err(error) if error.is_damage() => Some(Flaw::Damage(error)),
                Err(error) => return Err(error),
            };
            if flaw.is_some() {
                return Ok(flaw);
            }
        }
        Ok(None)
    }

    /// Returns the flaw that makes a slice unreadable, or `None`. `sound` holds the plain lengths of
    /// readable chunks.
    fn slice(
        &self,
        chunk: &ChunkId,
        offset: u32,
        len: u64,
        sound: &mut Recent<u64>,
    ) -> Result<Option<Flaw>> {
        let Some(end) = u64::from(offset).checked_add(len) else {
            return Ok(Some(Flaw::TooLong(*chunk)));
        };
        if sound.get(chunk).is_some_and(|plain_len| end <= *plain_len) {
            return Ok(None);
        }
        if let Some(error) = self.trouble(chunk)? {
            return Ok(Some(Flaw::Damage(error)));
        }
        let mut plain_len = u64::from(self.store.locate(chunk)?.plain_len);
        if end > plain_len {
            // The index may be wrong about the length; the chunk itself is not.
            plain_len = match self.get(chunk) {
                Ok(plain) => plain.len() as u64,
                Err(error) if error.is_damage() => return Ok(Some(Flaw::Damage(error))),
                Err(error) => return Err(error),
            };
        }
        sound.insert(*chunk, plain_len);
        Ok((end > plain_len).then_some(Flaw::TooShort(*chunk)))
    }

    fn finish(self) -> Report {
        let mut report = self.report;
        report.chunks = self.chunks.into_inner();
        report.bytes_read = self.bytes_read.into_inner();
        report.segments_read = self.segments_read.into_inner();
        let losses = self.losses.into_inner();
        (report.losses, report.loss_count) = (losses.kept, losses.count);
        report.losses_unnamed = losses.skipped;
        report.damage_count = self.damage_count.into_inner();
        report.damages = self.damages.into_inner();
        sort(&mut report.damages);
        // Snapshots that were not checked may need a damaged segment.
        if report.loss_count == 0 && report.snapshots > 0 && !self.has_other_snapshots {
            let needed = self.needed.into_inner();
            let superseded = self.bad_segments.into_inner().into_iter();
            set_aside(&mut report, &superseded.filter(|id| !needed.contains(id)).collect());
        }
        report
    }
}

/// Sorts damage by the names of the objects.
fn sort(damages: &mut [Damage]) {
    damages.sort_by_cached_key(|damage| (damage.object.to_string(), damage.reason.clone()));
}

/// Moves the damage of superseded segments out of the damage that counts.
fn set_aside(report: &mut Report, superseded: &HashSet<SegmentId>) {
    let all = std::mem::take(&mut report.damages);
    let is_aside =
        |damage: &Damage| damage.object.segment().is_some_and(|id| superseded.contains(id));
    let (aside, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(is_aside);
    let is_complete = report.damage_count == (aside.len() + kept.len()) as u64;
    if !is_complete && !kept.is_empty() {
        // Some damaged chunks were only counted. Nobody knows whose they are.
        report.damages = aside;
        report.damages.extend(kept);
        sort(&mut report.damages);
        return;
    }
    report.damage_count = kept.len() as u64;
    report.damages = kept;
    let is_segment = |damage: &Damage| matches!(damage.object, Object::Segment(_));
    report.superseded = aside.into_iter().filter(is_segment).collect();
}

/// Reads the chunks of trees and recipes, and records the damaged segments that hold them.
impl Chunks for Check<'_> {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        let segment = match self.store.read(id, plain) {
            Ok(segment) => segment,
            Err(error) => {
                self.unreadable_chunk(&error)?;
                return Err(error);
            }
        };
        if self.bad_segments.lock().contains(&segment) {
            self.needed.lock().insert(segment);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::faulty::{Faulty, Operation};
    use crate::backend::{Memory, write_all};
    use crate::config::Config;
    use crate::observe::Silent;
    use crate::packer::Packer;
    use crate::segment::SegmentKind;
    use crate::store::Purpose;
    use crate::workspace::Workspace;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    /// A store in memory with some chunks in it.
    struct Beside {
        memory: Memory,
        workspaces: tempfile::TempDir,
    }

    impl Beside {
        fn new() -> Beside {
            let memory = Memory::default();
            let config = Config::new([7; 16], chunker::Parameters::DEFAULT, 1);
            write_all(&memory, config::FILE, &config.to_bytes()).expect("writes");
            let beside = Beside { memory, workspaces: tempfile::tempdir().expect("a directory") };
            beside.put(beside.workspaces(), &[b"one", b"two"]);
            beside
        }

        fn workspaces(&self) -> &Path {
            self.workspaces.path()
        }

        fn index_path(&self) -> PathBuf {
            let workspace = Workspace::below(self.workspaces(), &[7; 16]);
            workspace.expect("a workspace").index_path()
        }

        fn open(&self, workspaces: &Path, purpose: Purpose) -> Store {
            let backend = Arc::new(self.memory.clone());
            Store::open_backend(backend, workspaces, purpose, Arc::new(Silent::default()))
                .expect("opens")
        }

        /// Stores a segment as another process, and adds it to the index in this directory of workspaces.
        fn put(&self, workspaces: &Path, chunks: &[&[u8]]) {
            put(&self.memory, workspaces, chunks);
        }

        /// Runs a check. Calls `does` before the first use of the file or directory `when`.
        fn check_while(
            &self,
            when: &'static str,
            does: impl Fn() + Send + Sync + 'static,
        ) -> Report {
            let is_done = AtomicBool::new(false);
            let store = self.open_then(move |_, name| {
                if name == when && !is_done.swap(true, Relaxed) {
                    does();
                }
                Ok(())
            });
            check(&store, ReadData::All).expect("checks")
        }

        /// Opens the store for reading. From then on, calls `fault` before every operation.
        fn open_then(
            &self,
            fault: impl Fn(Operation, &str) -> io::Result<()> + Send + Sync + 'static,
        ) -> Store {
            let is_begun = Arc::new(AtomicBool::new(false));
            let begun = Arc::clone(&is_begun);
            let fault = move |operation: Operation, name: &str| {
                if begun.load(Relaxed) { fault(operation, name) } else { Ok(()) }
            };
            let backend = Arc::new(Faulty::new(self.memory.clone(), Arc::new(fault)));
            let observer = Arc::new(Silent::default());
            let store = Store::open_backend(backend, self.workspaces(), Purpose::Read, observer);
            let store = store.expect("opens");
            is_begun.store(true, Relaxed);
            store
        }

        /// Opens the store for reading. From then on, every read of a segment fails.
        fn unreadable(&self, errno: rustix::io::Errno) -> Store {
            self.open_then(move |operation, name| {
                let is_hit = operation == Operation::Read && name.starts_with("segments/");
                if is_hit { Err(errno.into()) } else { Ok(()) }
            })
        }
    }

    fn put(memory: &Memory, workspaces: &Path, chunks: &[&[u8]]) {
        let (backend, observer) = (Arc::new(memory.clone()), Arc::new(Silent::default()));
        let store =
            Store::open_backend(backend, workspaces, Purpose::Write, observer).expect("opens");
        let packer = Packer::new(&store, false);
        for chunk in chunks {
            packer.put(SegmentKind::Data, chunk).expect("puts");
        }
        packer.finish().expect("finishes");
    }

    #[test]
    fn a_snapshot_of_a_newer_version_is_not_damage() {
        let beside = Beside::new();
        let store = beside.open(beside.workspaces(), Purpose::Read);
        let newer = Snapshot { version: snapshot::VERSION + 1, ..snapshot::example() };
        let id = newer.write(&beside.memory, store.codec).expect("writes");
        let report = check(&store, ReadData::All).expect("checks");
        assert!(report.is_clean() && report.newer == [id], "{report:?}");
    }

    #[test]
    fn a_damaged_segment_with_the_only_copy_is_needed() {
        let beside = Beside::new();
        let store = beside.open(beside.workspaces(), Purpose::Write);
        let packer = Packer::new(&store, false);
        let chunk = packer.put(SegmentKind::Data, b"content").expect("puts").id;
        let mut file = Entry::new(b"file".to_vec(), crate::entry::EntryKind::File, 0o644);
        let extents = vec![Extent::Slice { chunk, offset: 0, len: 7 }];
        file.size = 7;
        file.content = Content::Recipe(crate::recipe::Recipe { level: 0, extents });
        let mut tree = crate::tree::TreeWriter::default();
        tree.push(&file, &packer).expect("pushes");
        let root = tree.finish(&packer).expect("finishes");
        packer.finish().expect("finishes");
        let record = Snapshot { root: snapshot::Id(*root.as_bytes()), ..snapshot::example() };
        record.write(&beside.memory, store.codec).expect("writes");
        // A byte is missing before the chunks. Only a search finds them then.
        let names: Vec<String> = beside.memory.with_files(|files| {
            files.keys().filter(|name| name.starts_with("segments/")).cloned().collect()
        });
        for name in names {
            let whole = beside.memory.with_files(|files| files[&name].clone());
            let cut = [&whole[..40], &whole[41..]].concat();
            beside.memory.with_files(|files| files.insert(name.clone(), cut));
            let store = beside.open_then(|_, _| Ok(()));
            let is_used = store.get(&chunk).is_ok() && store.get(&root).is_ok();
            let report = check(&store, ReadData::None).expect("checks");
            let is_aside = !report.superseded.is_empty();
            beside.memory.with_files(|files| files.remove(&name));
            let store = beside.open_then(|_, _| Ok(()));
            let is_lost = store.get(&chunk).is_err() || store.get(&root).is_err();
            assert!(!(is_used && is_lost && is_aside), "{name}: {report:?}");
            beside.memory.with_files(|files| files.insert(name.clone(), whole));
        }
    }

    #[test]
    fn a_segment_published_during_a_check_is_not_damage() {
        for when in ["snapshots", "segments/00", "segments/ff"] {
            // In the index, not yet in the index, and with a chunk that already exists.
            for (is_told, chunks) in [(true, [b"new"]), (false, [b"new"]), (false, [b"two"])] {
                let beside = Beside::new();
                let other = tempfile::tempdir().expect("a directory");
                let workspaces =
                    if is_told { beside.workspaces() } else { other.path() }.to_owned();
                let memory = beside.memory.clone();
                let report = beside.check_while(when, move || {
                    if is_told {
                        put(&memory, &workspaces, &[chunks[0]]);
                    } else {
                        // A store without other segments, so that nothing is reused.
                        let alone = Memory::default();
                        let config = memory.with_files(|files| files[config::FILE].clone());
                        write_all(&alone, config::FILE, &config).expect("writes");
                        put(&alone, &workspaces, &[chunks[0]]);
                        let files = alone.with_files(|files| files.clone());
                        memory.with_files(|all| all.extend(files));
                    }
                });
                assert!(report.is_clean(), "{when} {is_told}: {report:?}");
            }
        }
    }

    #[test]
    fn chunks_moved_during_a_check_are_not_index_damage() {
        let beside = Beside::new();
        let store = beside.open(beside.workspaces(), Purpose::Write);
        for segment in store.index.segments().expect("lists") {
            store.index.set_damaged(&segment.id).expect("marks");
        }
        drop(store);
        let (memory, workspaces) = (beside.memory.clone(), beside.workspaces().to_owned());
        let report =
            beside.check_while("segments/ff", move || put(&memory, &workspaces, &[b"two"]));
        assert!(report.is_clean(), "{report:?}");
    }

    #[test]
    fn a_wrong_index_is_reported_and_rebuilt() {
        let wrongs = [
            "DELETE FROM chunks WHERE id = (SELECT min(id) FROM chunks)",
            "UPDATE chunks SET at = at + 1",
            "UPDATE chunks SET stored_len = stored_len + 1",
            "INSERT INTO chunks SELECT randomblob(32), segment, at, 1, 1 FROM chunks LIMIT 1",
        ];
        for wrong in wrongs {
            let beside = Beside::new();
            let connection = rusqlite::Connection::open(beside.index_path()).expect("opens");
            connection.execute(wrong, []).expect("changes");
            drop(connection);
            let report = check(&beside.open(beside.workspaces(), Purpose::Read), ReadData::None);
            let report = report.expect("checks");
            assert!(!report.is_clean(), "{wrong}");
            assert!(report.damages.iter().all(|damage| damage.object == Object::Index), "{wrong}");
            let report = check(&beside.open(beside.workspaces(), Purpose::Read), ReadData::None);
            assert!(report.expect("checks").is_clean(), "{wrong}");
        }
    }

    #[test]
    fn an_index_removed_during_a_check_is_not_damage() {
        let beside = Beside::new();
        let index = beside.index_path();
        let remove = move || std::fs::remove_file(&index).expect("removes");
        let report = beside.check_while("segments/00", remove);
        assert!(report.is_clean(), "{report:?}");
        assert!(!beside.index_path().exists(), "a reader began another index");
    }

    /// Runs a check in which every read of a segment fails.
    fn check_unreadable(errno: rustix::io::Errno, read_data: ReadData) -> (Store, Result<Report>) {
        let beside = Beside::new();
        let store = beside.unreadable(errno);
        let report = check(&store, read_data);
        (store, report)
    }

    #[test]
    fn a_lack_of_resources_does_not_count_as_damage() {
        use rustix::io::Errno;
        let (_, report) = check_unreadable(Errno::IO, ReadData::All);
        assert_eq!(report.expect("checks").damage_count, 1);
        for errno in [Errno::MFILE, Errno::NOMEM] {
            let (store, report) = check_unreadable(errno, ReadData::All);
            assert!(report.is_err_and(|error| error.is_transient()), "{errno}");
            assert_eq!(store.index().damaged().expect("reads").len(), 0);
        }
    }

    #[test]
    fn an_intact_copy_in_any_segment_is_found() {
        let beside = Beside::new();
        let plain = b"a chunk that two segments contain";
        // Another store stores it again.
        for _ in 0..2 {
            let (alone, other) = (Memory::default(), tempfile::tempdir().expect("a directory"));
            let config = beside.memory.with_files(|files| files[config::FILE].clone());
            write_all(&alone, config::FILE, &config).expect("writes");
            put(&alone, other.path(), &[plain]);
            let files = alone.with_files(|files| files.clone());
            beside.memory.with_files(|all| all.extend(files));
        }
        let place = |bytes: &[u8]| bytes.windows(plain.len()).position(|part| part == plain);
        let copies: Vec<(String, usize)> = beside.memory.with_files(|files| {
            let found =
                files.iter().filter_map(|(name, bytes)| Some((name.clone(), place(bytes)?)));
            found.collect()
        });
        assert_eq!(copies.len(), 2);
        for (name, at) in copies {
            let flip =
                || beside.memory.with_files(|files| files.get_mut(&name).expect("file")[at] ^= 1);
            flip();
            // The table of the segment is intact, so a new index may locate the damaged copy.
            let workspaces = tempfile::tempdir().expect("a directory");
            let store = beside.open(workspaces.path(), Purpose::Read);
            let id = ChunkId::of(plain);
            assert!(store.get(&id).expect("reads") == plain);
            store.get_many(&[id], &|_, read| {
                assert!(read.expect("reads") == plain);
                std::ops::ControlFlow::Continue(())
            });
            let report = check(&store, ReadData::All).expect("checks");
            let of_segment = report.damages.iter().all(|damage| damage.object.segment().is_some());
            assert!(report.damage_count > 0 && of_segment, "{report:?}");
            flip();
        }
    }

    #[test]
    fn a_failed_search_for_copies_is_not_damage() {
        let beside = Beside::new();
        let connection = rusqlite::Connection::open(beside.index_path()).expect("opens");
        connection.execute("DELETE FROM chunks", []).expect("changes");
        drop(connection);
        let store = beside.unreadable(rustix::io::Errno::MFILE);
        let error = store.get(&ChunkId::of(b"one")).expect_err("cannot search");
        assert!(matches!(&error, Error::CopiesUnknown { source, .. } if source.is_transient()));
        assert!(!error.is_damage(), "{error}");
        let missing = beside.open(beside.workspaces(), Purpose::Read).get(&ChunkId::of(b"none"));
        assert!(missing.is_err_and(|error| error.is_damage()));
    }

    #[test]
    fn unreadable_segments_outside_the_share_do_not_count_as_read() {
        let part = ReadData::Part { n: 1, of: u32::MAX };
        let (store, report) = check_unreadable(rustix::io::Errno::IO, part);
        assert_eq!(report.expect("checks").damage_count, 1);
        let progress = store.observer().progress();
        assert_eq!(progress.bytes_done.load(Relaxed), progress.bytes_total.load(Relaxed));
    }

    #[test]
    fn shares_are_rounded_up_and_seeds_reach_every_segment() {
        let ids: Vec<SegmentId> = (0..10u8).map(|n| SegmentId::from_bytes([n; 32])).collect();
        let read = |per_million, seed| {
            let picked = Picked::of(ReadData::Share { per_million, seed }, ids.iter());
            ids.iter().filter(|id| picked.has(id)).copied().collect::<Vec<_>>()
        };
        for (per_million, wanted) in
            [(1, 1), (50_000, 1), (100_000, 1), (100_001, 2), (999_999, 10), (1_000_000, 10)]
        {
            assert_eq!(read(per_million, 7).len(), wanted, "{per_million}");
        }
        let all: HashSet<SegmentId> = (0..200).flat_map(|seed| read(50_000, seed)).collect();
        assert_eq!(all.len(), ids.len());
        let none = Picked::of(ReadData::Share { per_million: 50_000, seed: 1 }, [].iter());
        assert!(!none.has(&ids[0]));
    }
}
