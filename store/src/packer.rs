//! Packs chunks into segments.
//!
//! Any thread may put a chunk; each is stored once. One thread receives full segments. It first
//! makes them durable and then adds them to the index.

use crate::backend::Pending;
use crate::chunks::{Chunks, PutMetadata};
use crate::error::{Error, Result};
use crate::id::{ChunkId, SegmentId};
use crate::index::{Index, Reading, Segment};
use crate::limits;
use crate::random;
use crate::segment::{self, Header, Row, SegmentKind, Trailer};
use crate::store::Store;
use crate::threads;
use crate::workspace::Workspace;
use parking_lot::{Mutex, MutexGuard};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use tempfile::SpooledTempFile;

/// Bytes buffered before they are hashed and written.
const WRITE_BYTES: usize = 1 << 20;

/// Maximum number of full segments waiting to become durable. They are files already, so only their
/// tables take memory.
const WAITING_SEGMENTS: usize = 16;

/// Number of rows that enter the index in one transaction. Each transaction rewrites most pages of
/// the index, because the rows are in the order of hashes. Rows that wait take some 100 bytes each.
const ROWS_AT_ONCE: usize = 1 << 18;

/// A dry run removes nothing from the set of claimed chunks; it is cleared at this size.
const SEEN_MAX: usize = 1 << 20;

/// Bytes of metadata that a dry run keeps in memory; more of them go to a temporary file.
const KEPT_IN_MEMORY: usize = 8 << 20;

/// Result of [`Packer::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Id of the chunk.
    pub id: ChunkId,
    /// True if the store did not have the chunk.
    pub is_new: bool,
}

/// Counters of added chunks.
#[derive(Debug, Default)]
pub struct Added {
    /// Number of chunks that the store did not have.
    pub chunks: AtomicU64,
    /// Plain bytes of the chunks.
    pub plain_bytes: AtomicU64,
    /// Stored bytes of the chunks.
    pub stored_bytes: AtomicU64,
}

/// Stores chunks from any thread.
pub struct Packer<'a> {
    store: &'a Store,
    is_dry: bool,
    /// New metadata of a dry run, if it is read again.
    kept: Option<Mutex<KeptChunks>>,
    /// Chunks not in the index yet. One thread stores a claimed chunk; the others skip it.
    claimed: Arc<Mutex<HashSet<ChunkId>>>,
    data: Mutex<Option<OpenSegment>>,
    metadata: Mutex<Option<OpenSegment>>,
    /// `None` once it has ended.
    finisher: Mutex<Option<Result<Finisher>>>,
    added: Added,
}

/// A segment that still receives chunks.
struct OpenSegment {
    kind: SegmentKind,
    pending: Box<dyn Pending>,
    header: Vec<u8>,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    rows: Vec<Row>,
    len: u64,
}

/// A segment whose bytes are all written.
struct FullSegment {
    id: SegmentId,
    kind: SegmentKind,
    len: u64,
    pending: Box<dyn Pending>,
    rows: Vec<Row>,
}

struct Finisher {
    queue: SyncSender<FullSegment>,
    thread: JoinHandle<Result<()>>,
}

impl Finisher {
    fn start(store: &Store, claimed: &Arc<Mutex<HashSet<ChunkId>>>) -> Result<Finisher> {
        let (queue, full) = sync_channel(WAITING_SEGMENTS);
        let (index, claims) = (Arc::clone(&store.index), Arc::clone(claimed));
        let thread = threads::spawn(move || publish_all(&full, &index, &claims))?;
        Ok(Finisher { queue, thread })
    }
}

thread_local! {
    /// Encoded bytes of the chunk that this thread stores.
    static ENCODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<'a> Packer<'a> {
    /// Returns a packer for this store. A dry packer stores nothing, but counts what it would
    /// store.
    pub fn new(store: &'a Store, is_dry: bool) -> Packer<'a> {
        let claimed = Arc::<Mutex<HashSet<ChunkId>>>::default();
        let finisher = Finisher::start(store, &claimed);
        Packer {
            store,
            is_dry,
            kept: None,
            claimed,
            data: Mutex::default(),
            metadata: Mutex::default(),
            finisher: Mutex::new(Some(finisher)),
            added: Added::default(),
        }
    }

    /// Returns a dry packer that also keeps new metadata until it is dropped, so that trees can be
    /// read.
    pub fn dry_with_trees(store: &'a Store) -> Packer<'a> {
        let mut packer = Packer::new(store, true);
        packer.kept = Some(Mutex::new(KeptChunks::new()));
        packer
    }

    /// Returns the place of scratch files: the workspace, unless the run must not write to it.
    pub(crate) fn workspace(&self) -> Option<&'a Workspace> {
        (!self.is_dry).then_some(&self.store.workspace)
    }

    /// Returns the counters of added chunks.
    pub fn added(&self) -> &Added {
        &self.added
    }

    /// Lets the look-ups of this thread share read transactions while the result exists.
    pub fn share_look_ups(&self) -> Reading<'_> {
        self.store.index.reading()
    }

    /// Stores a chunk unless the store has it. Durable only after [`finish`](Self::finish).
    pub fn put(&self, kind: SegmentKind, plain: &[u8]) -> Result<Stored> {
        let id = self.store.codec.id_of(plain);
        {
            let mut claimed = self.claimed.lock();
            if self.is_dry && claimed.len() >= SEEN_MAX {
                claimed.clear();
            }
            if !claimed.insert(id) {
                return Ok(Stored { id, is_new: false });
            }
        }
        if self.is_stored(&id)? {
            self.claimed.lock().remove(&id);
            return Ok(Stored { id, is_new: false });
        }
        ENCODED.with_borrow_mut(|frame| {
            self.store.codec.encode(plain, frame);
            if let (Some(kept), SegmentKind::Metadata) = (&self.kept, kind) {
                kept.lock().put(id, frame, plain.len())?;
            }
            if !self.is_dry {
                self.append(kind, id, frame, plain.len())?;
            }
            self.added.chunks.fetch_add(1, Ordering::Relaxed);
            self.added.plain_bytes.fetch_add(plain.len() as u64, Ordering::Relaxed);
            self.added.stored_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
            Ok(Stored { id, is_new: true })
        })
    }

    /// Stores a chunk that is encoded already, such as one of another segment. The caller knows its id
    /// and its plain length. Durable only after [`finish`](Self::finish).
    pub(crate) fn copy_frame(
        &self,
        kind: SegmentKind,
        id: ChunkId,
        frame: &[u8],
        plain_len: usize,
    ) -> Result<()> {
        self.append(kind, id, frame, plain_len)?;
        self.added.chunks.fetch_add(1, Ordering::Relaxed);
        self.added.stored_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Returns true if a segment has the chunk in which no damage is known.
    fn is_stored(&self, id: &ChunkId) -> Result<bool> {
        let Some(location) = self.store.index.find(id)? else { return Ok(false) };
        let is_trusted = self.store.trusts(&location);
        if location.is_healthy && self.store.damage.has(&location.segment) && !self.is_dry {
            // The rows of the new copy replace those of a damaged segment only.
            self.store.index.set_damaged(&location.segment)?;
        }
        Ok(is_trusted)
    }

    fn slot(&self, kind: SegmentKind) -> MutexGuard<'_, Option<OpenSegment>> {
        match kind {
            SegmentKind::Data => self.data.lock(),
            SegmentKind::Metadata => self.metadata.lock(),
        }
    }

    fn append(&self, kind: SegmentKind, id: ChunkId, frame: &[u8], plain_len: usize) -> Result<()> {
        let mut slot = self.slot(kind);
        let open = match &mut *slot {
            Some(open) => open,
            none => none.insert(self.begin(kind)?),
        };
        open.append(id, frame, plain_len)?;
        if open.is_full() {
            let full = slot.take();
            drop(slot);
            if kind == SegmentKind::Metadata {
                // Metadata never becomes durable before the data it refers to.
                self.close(SegmentKind::Data)?;
            }
            self.hand_over(full)?;
        }
        Ok(())
    }

    fn begin(&self, kind: SegmentKind) -> Result<OpenSegment> {
        let store = self.store;
        let salt = random::bytes().map_err(Error::store_write("a new segment"))?;
        let config = store.config_bytes.clone();
        let header = Header { kind, store_id: store.store_id, salt, config };
        let pending = store.backend.create().map_err(Error::store_write("a new segment"))?;
        let header = header.to_frame();
        Ok(OpenSegment {
            kind,
            pending,
            hasher: blake3::Hasher::new(),
            buffer: header.clone(),
            len: header.len() as u64,
            header,
            rows: Vec::new(),
        })
    }

    fn close(&self, kind: SegmentKind) -> Result<()> {
        let open = self.slot(kind).take();
        self.hand_over(open)
    }

    fn hand_over(&self, open: Option<OpenSegment>) -> Result<()> {
        let Some(open) = open else { return Ok(()) };
        let full = open.finish()?;
        let queue = match &*self.finisher.lock() {
            Some(Ok(finisher)) => Some(finisher.queue.clone()),
            _ => None,
        };
        match queue.map(|queue| queue.send(full)) {
            Some(Ok(())) => Ok(()),
            // The thread has failed or never began; `join` returns the error.
            _ => self.join(),
        }
    }

    /// Ends the publishing thread and returns its result.
    fn join(&self) -> Result<()> {
        let Some(finisher) = self.finisher.lock().take() else {
            // The first caller gets the reason.
            return Err(Error::Abandoned);
        };
        let Finisher { queue, thread } = finisher?;
        drop(queue);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Makes everything durable and adds it to the index, data before metadata.
    pub fn finish(&self) -> Result<()> {
        self.close(SegmentKind::Data)?;
        self.close(SegmentKind::Metadata)?;
        self.join()
    }
}

impl PutMetadata for Packer<'_> {
    fn put_metadata(&self, plain: &[u8]) -> Result<ChunkId> {
        Ok(self.put(SegmentKind::Metadata, plain)?.id)
    }
}

/// Reads chunks of the store, and those that a dry run keeps.
impl Chunks for Packer<'_> {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        let kept = self.kept.as_ref().map(|kept| kept.lock().get(id));
        match kept.transpose()?.flatten() {
            None => self.store.get_into(id, plain),
            Some((frame, len)) => {
                let decoded = self.store.codec.decode(id, &frame, len, plain);
                decoded.map_err(|fault| Error::Malformed {
                    what: "a temporary file".into(),
                    reason: fault.to_string(),
                })
            }
        }
    }
}

/// Chunks in memory, or in an unnamed temporary file if they are many.
struct KeptChunks {
    file: SpooledTempFile,
    len: u64,
    /// Offset, stored length and plain length of each chunk.
    places: HashMap<ChunkId, (u64, usize, usize)>,
}

impl KeptChunks {
    fn new() -> KeptChunks {
        KeptChunks { file: SpooledTempFile::new(KEPT_IN_MEMORY), len: 0, places: HashMap::new() }
    }

    fn put(&mut self, id: ChunkId, frame: &[u8], plain_len: usize) -> Result<()> {
        let written =
            self.file.seek(SeekFrom::Start(self.len)).and_then(|_| self.file.write_all(frame));
        written.map_err(Error::temporary)?;
        self.places.insert(id, (self.len, frame.len(), plain_len));
        self.len += frame.len() as u64;
        Ok(())
    }

    /// Returns the frame of a chunk and its plain length.
    fn get(&mut self, id: &ChunkId) -> Result<Option<(Vec<u8>, usize)>> {
        let Some(&(offset, len, plain_len)) = self.places.get(id) else { return Ok(None) };
        let mut frame = vec![0; len];
        let read = self.file.seek(SeekFrom::Start(offset));
        read.and_then(|_| self.file.read_exact(&mut frame)).map_err(Error::temporary)?;
        Ok(Some((frame, plain_len)))
    }
}

impl Drop for Packer<'_> {
    fn drop(&mut self) {
        // Full segments are kept for the next run.
        if let Some(Ok(Finisher { queue, thread })) = self.finisher.lock().take() {
            drop(queue);
            let _ = thread.join();
        }
    }
}

impl OpenSegment {
    fn append(&mut self, id: ChunkId, frame: &[u8], plain_len: usize) -> Result<()> {
        self.rows.push(Row {
            id,
            offset: self.len as u32,
            stored_len: frame.len() as u32,
            plain_len: plain_len as u32,
        });
        self.write(frame)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        self.pending.write(&self.buffer).map_err(Error::store_write("a new segment"))?;
        self.buffer.clear();
        Ok(())
    }

    fn is_full(&self) -> bool {
        let target = match self.kind {
            SegmentKind::Data => limits::DATA_SEGMENT_BYTES,
            SegmentKind::Metadata => limits::METADATA_SEGMENT_BYTES,
        };
        self.len >= target || self.rows.len() >= limits::SEGMENT_CHUNKS_MAX
    }

    /// Writes table and trailer.
    fn finish(mut self) -> Result<FullSegment> {
        let table = segment::table_frame(&self.rows);
        let trailer = Trailer {
            table_offset: self.len as u32,
            rows: self.rows.len() as u32,
            hash: segment::frame_hash(&self.header, &table),
        };
        self.write(&table)?;
        self.write(&trailer.to_frame())?;
        self.flush()?;
        let id = SegmentId::from_bytes(*self.hasher.finalize().as_bytes());
        let OpenSegment { kind, pending, rows, len, .. } = self;
        Ok(FullSegment { id, kind, len, pending, rows })
    }
}

/// Makes segments durable, then adds them to the index.
fn publish_all(
    queue: &Receiver<FullSegment>,
    index: &Index,
    claimed: &Mutex<HashSet<ChunkId>>,
) -> Result<()> {
    let mut published: Vec<(Segment, Vec<Row>)> = Vec::new();
    let done = queue.iter().try_for_each(|full| {
        published.push(publish(full)?);
        let rows: usize = published.iter().map(|(_, rows)| rows.len()).sum();
        if rows >= ROWS_AT_ONCE { add(&mut published, index, claimed) } else { Ok(()) }
    });
    // Segments that are durable are of use to the next run, whatever became of the others.
    done.and(add(&mut published, index, claimed))
}

/// Makes a segment durable.
fn publish(full: FullSegment) -> Result<(Segment, Vec<Row>)> {
    let FullSegment { id, kind, len, mut pending, rows } = full;
    let name = segment::file_name(&id);
    pending.sync().map_err(Error::store_write(name.clone()))?;
    pending.publish(&name).map_err(Error::store_write(name))?;
    Ok((Segment { id, kind, len, is_healthy: true }, rows))
}

/// Moves published segments to the index. Their chunks need no claim from then on.
fn add(
    published: &mut Vec<(Segment, Vec<Row>)>,
    index: &Index,
    claimed: &Mutex<HashSet<ChunkId>>,
) -> Result<()> {
    if published.is_empty() {
        return Ok(());
    }
    let segments: Vec<(&Segment, &[Row])> =
        published.iter().map(|(segment, rows)| (segment, &rows[..])).collect();
    index.add_all(&segments)?;
    let mut claimed = claimed.lock();
    for row in published.drain(..).flat_map(|(_, rows)| rows) {
        claimed.remove(&row.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::recording::{Log, Recording, Step};
    use crate::backend::{Memory, write_all};
    use crate::config::{self, Config};
    use crate::observe::Silent;
    use crate::store::Purpose;

    /// A store in memory, with a log of all writes.
    fn recorded(dir: &tempfile::TempDir) -> (Store, Log) {
        let memory = Memory::default();
        let config = Config::new([7; 16], chunker::Parameters::DEFAULT, 1);
        write_all(&memory, config::FILE, &config.to_bytes()).expect("writes");
        let backend = Recording::new(memory);
        let log = backend.log();
        let observer = Arc::new(Silent::default());
        let store = Store::open_backend(Arc::new(backend), dir.path(), Purpose::Write, observer);
        (store.expect("opens"), log)
    }

    /// An incompressible chunk of 1 MiB, different for each number.
    fn large(number: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_dry_run_reads_its_own_metadata_and_writes_no_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, log) = recorded(&dir);
        let before = log.steps().len();
        let packer = Packer::dry_with_trees(&store);
        // More than is kept in memory.
        let ids: Vec<ChunkId> =
            (0..12).map(|n| packer.put_metadata(&large(n)).expect("puts")).collect();
        packer.put(SegmentKind::Data, b"data").expect("puts");
        for (n, id) in ids.iter().enumerate() {
            assert!(packer.get(id).expect("reads") == large(n as u64));
        }
        let missing = packer.get(&ChunkId::of(b"data"));
        assert!(matches!(missing, Err(Error::ChunkMissing(_))), "{missing:?}");
        assert_eq!(log.steps().len(), before);
    }

    /// Returns the kinds of the segments in the order of publication.
    fn published_kinds(store: &Store, log: &Log) -> Vec<SegmentKind> {
        let mut kinds = HashMap::new();
        for segment in store.index().segments().expect("asks") {
            kinds.insert(segment::file_name(&segment.id), segment.kind);
        }
        let steps = log.steps();
        let names = steps.iter().filter_map(|step| match step {
            Step::Publish(_, name) => kinds.get(name).copied(),
            _ => None,
        });
        names.collect()
    }

    #[test]
    fn a_segment_is_synced_before_it_is_published() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, log) = recorded(&dir);
        let packer = Packer::new(&store, false);
        for number in 0..70 {
            packer.put(SegmentKind::Data, &large(number)).expect("puts");
        }
        packer.put(SegmentKind::Metadata, b"page").expect("puts");
        packer.finish().expect("finishes");
        let mut unsynced: HashMap<usize, bool> = HashMap::new();
        let mut published = 0;
        for step in log.steps() {
            match step {
                Step::Create(file) | Step::Write(file, _) => drop(unsynced.insert(file, true)),
                Step::Sync(file) => drop(unsynced.insert(file, false)),
                Step::Publish(file, name) => {
                    assert_eq!(unsynced.get(&file), Some(&false), "{name} is not synced");
                    published += 1;
                }
                _ => {}
            }
        }
        assert_eq!(published, 3, "two data segments and one of metadata");
    }

    #[test]
    fn data_is_published_before_later_metadata() {
        for pages in [1, 40] {
            let dir = tempfile::tempdir().expect("a directory");
            let (store, log) = recorded(&dir);
            let packer = Packer::new(&store, false);
            packer.put(SegmentKind::Data, b"content").expect("puts");
            for number in 0..pages {
                packer.put(SegmentKind::Metadata, &large(number)).expect("puts");
            }
            packer.put(SegmentKind::Data, b"more content").expect("puts");
            packer.finish().expect("finishes");
            let kinds = published_kinds(&store, &log);
            let mut expected = vec![SegmentKind::Data, SegmentKind::Metadata];
            if pages > 1 {
                // Full segments of metadata, then the rest in the usual order.
                expected.extend([SegmentKind::Metadata, SegmentKind::Data, SegmentKind::Metadata]);
            }
            assert_eq!(kinds, expected, "{pages} pages");
        }
    }

    #[test]
    fn a_chunk_is_counted_once_in_a_dry_run_too() {
        for is_dry in [false, true] {
            let dir = tempfile::tempdir().expect("a directory");
            let (store, _) = recorded(&dir);
            let packer = Packer::new(&store, is_dry);
            let is_new = |plain: &[u8]| packer.put(SegmentKind::Data, plain).expect("puts").is_new;
            assert_eq!(
                [&b"one"[..], b"one", b"three", b"one"].map(is_new),
                [true, false, true, false]
            );
            let added = packer.added();
            assert_eq!(added.chunks.load(Ordering::Relaxed), 2, "dry: {is_dry}");
            assert_eq!(added.plain_bytes.load(Ordering::Relaxed), 8, "dry: {is_dry}");
        }
    }

    #[test]
    fn small_chunks_are_written_in_large_pieces() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, log) = recorded(&dir);
        let packer = Packer::new(&store, false);
        let chunks = 5 * WRITE_BYTES / 1000;
        for number in 0..chunks as u64 {
            packer.put(SegmentKind::Data, &large(number)[..1000]).expect("puts");
        }
        packer.finish().expect("finishes");
        let steps = log.steps();
        let lens: Vec<usize> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Write(_, bytes) => Some(bytes.len()),
                _ => None,
            })
            .collect();
        let (last, full) = lens.split_last().expect("writes");
        let table_bytes_max = 64 * chunks;
        assert!(*last < WRITE_BYTES + table_bytes_max, "{lens:?}");
        assert!(full.iter().all(|len| *len >= WRITE_BYTES), "{lens:?}");
        assert!(lens.len() >= 4, "{lens:?}");
    }

    #[test]
    fn full_segments_of_a_failed_run_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, log) = recorded(&dir);
        let packer = Packer::new(&store, false);
        for number in 0..70 {
            packer.put(SegmentKind::Data, &large(number)).expect("puts");
        }
        drop(packer);
        assert_eq!(published_kinds(&store, &log), [SegmentKind::Data]);
    }
}
