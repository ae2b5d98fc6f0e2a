//! An open store: its configuration, lock and index, and access to chunks.

use crate::access;
use crate::backend::{self, Backend, Local, Memory, Modes};
use crate::chunks::{Chunks, Each};
use crate::codec::Codec;
use crate::condemned;
use crate::config::{self, Config};
use crate::damage::DamageLog;
use crate::error::{Error, Result};
use crate::id::{ChunkId, SegmentId};
use crate::index::{Builder, Index, Location, Segment};
use crate::limits;
use crate::lock::{self, FILE as LOCK_FILE, Lock, Mode};
use crate::observe::{Event, Observer, Silent};
use crate::salvage;
use crate::segment::{self, Fault, Row, SKIPPABLE_HEAD_LEN, TRAILER_LEN, Table, Trailer};
use crate::sessions::{Reliance, Session};
use crate::snapshot;
use crate::threads;
use crate::workspace::{self, INDEX_FILE, Workspace};
use parking_lot::{Mutex, RwLock};
use rayon::prelude::*;
use rustix::fs::{major, minor};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Directory of the segments, which are in its subdirectories `00` to `ff`.
pub const SEGMENTS_DIR: &str = "segments";

/// Bytes read from the end of a segment at once: the trailer and a table of usual size.
const TAIL_BYTES: u64 = 32 << 10;

/// Threads that read tables while an index is built. A table can take 12 MiB as stored and as much
/// again when decoded. The threads are therefore few, and none reads far ahead.
///
/// The threads are not rayon's: the thread that finds the index wrong may be a rayon job. While it
/// waits here, it must not start another one.
const LOADERS: usize = 4;

/// Maximum wait for a lock. It covers building the index of a new store, which several first
/// backups may attempt at once.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Shortest pause between two attempts to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Intended use of an open store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Reading and restoring. Works on read-only media.
    Read,
    /// Adding snapshots.
    Write,
    /// Deleting snapshots and data. Works on a full disk.
    Delete,
    /// Rebuilding the index under an exclusive lock.
    Rebuild,
}

impl Purpose {
    /// Returns true if snapshots or data are added or deleted.
    fn is_change(self) -> bool {
        matches!(self, Purpose::Write | Purpose::Delete)
    }
}

/// Levels of directories below that of a store: `segments/xx`.
const DIRECTORY_DEPTH: u32 = 2;

/// Reason to read all tables: another process may have stored the chunk after this index was read.
const LACKS: &str = "the index lacks a chunk";

/// Index of the tables of all segments, and its directory.
type Copies = Result<(TempDir, Index), Arc<Error>>;

/// An open store.
pub struct Store {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) config: Config,
    /// Names, encodes and decodes all chunks.
    pub(crate) codec: Codec,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) store_id: [u8; 16],
    pub(crate) index: Arc<Index>,
    pub(crate) workspace: Workspace,
    pub(crate) observer: Arc<dyn Observer>,
    /// Damage found while files were compared and stored.
    pub(crate) damage: DamageLog,
    root: Option<PathBuf>,
    /// Device and inode of its directories, sorted.
    directories: OnceLock<Vec<(u64, u64)>>,
    _lock: Option<Lock>,
    /// Holds an index that could not be kept in the store.
    _private: Option<TempDir>,
    /// Shards whose directories could not be listed when the store was opened.
    pub(crate) unlisted: BTreeSet<u8>,
    /// Index of all copies, read from the segment tables after the store's index proved wrong.
    copies: Mutex<Option<Arc<Copies>>>,
    /// Session of the backup that runs.
    session: RwLock<Option<Arc<Session>>>,
}

/// Creates an empty store in directory `root`.
///
/// The directory may exist if it is empty or holds only the remains of an interrupted `init`.
pub fn init(root: &Path, config: &Config) -> Result<()> {
    let backend = Local::with(root, config.modes(), Arc::new(Silent::default()));
    let place = backend.place();
    let write = |source| Error::StoreWrite { name: place.clone(), source };
    check_empty(root, &backend)?;
    let shards: Vec<String> = (0..=255u8).map(shard_dir).collect();
    let dirs = shards.iter().map(String::as_str).chain([snapshot::DIR]);
    backend.make_directories(dirs).map_err(write)?;
    // Several processes may find an empty directory at the same moment. One creates the store.
    backend.write_new(config::FILE, &config.to_bytes()).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::StoreExists(place),
        _ => Error::store_write(config::FILE)(error),
    })?;
    if let Ok(lock) = Lock::take(root, Mode::Shared) {
        lock.set_permissions(config.modes().file);
    }
    Ok(())
}

/// Returns an empty store in memory, for a dry run without a store. Fails if [`init`] cannot create
/// a store in directory `root`.
pub fn init_dry(root: &Path, config: &Config, observer: Arc<dyn Observer>) -> Result<Store> {
    let local = Local::new(root);
    check_empty(root, &local)?;
    let refused = match access::open_nearest_dir(root) {
        Ok(dir) => access::refusal_in(dir).map(io::Error::from),
        Err(error) => Some(error),
    };
    if let Some(source) = refused {
        return Err(Error::StoreWrite { name: local.place(), source });
    }
    let memory = Memory::default();
    backend::write_all(&memory, config::FILE, &config.to_bytes())
        .map_err(Error::store_write(config::FILE))?;
    let dir = Workspace::temporary()?;
    let store = Store::open_backend(Arc::new(memory), dir.path(), Purpose::Write, observer)?;
    Ok(Store { _private: Some(dir), ..store })
}

/// Fails unless a store can be created in directory `root`.
fn check_empty(root: &Path, backend: &Local) -> Result<()> {
    let place = backend.place();
    match find(root, backend)? {
        Place::Store => return Err(Error::StoreExists(place)),
        Place::Other => return Err(Error::NotEmpty(place)),
        Place::Empty => {}
    }
    // The outer store would mistake the inner store's files for its own.
    let above = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    if above.ancestors().skip(1).any(|dir| dir.join(config::FILE).is_file()) {
        return Err(Error::NotAStore { place, reason: "it is inside another store" });
    }
    workspace::check_length(root)
}

/// Content found at the path of a store.
enum Place {
    /// A store, possibly without its `store.json`.
    Store,
    /// Nothing, or a directory in which a store can be created.
    Empty,
    /// A directory with other content.
    Other,
}

/// Looks at the path of a store. An error never counts as an empty place, because a caller that
/// finds no store creates one.
fn find(root: &Path, backend: &dyn Backend) -> Result<Place> {
    let place = || backend.place();
    let unreachable = |source| Error::Unreachable { place: place(), source };
    let other = |reason| Err(Error::NotAStore { place: place(), reason });
    match std::fs::metadata(root) {
        Ok(metadata) if !metadata.is_dir() => return other("it is not a directory"),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return other("a part of the path is not a directory");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match root.symlink_metadata() {
                Ok(found) if found.is_symlink() => other("it is a link to a missing path"),
                // Another process has just created it.
                Ok(_) => find(root, backend),
                Err(_) => Ok(Place::Empty),
            };
        }
        Err(error) => return Err(unreachable(error)),
    }
    if root.join(config::FILE).try_exists().map_err(unreachable)? {
        return Ok(Place::Store);
    }
    // Left by an interrupted `init`, or present in a new file system.
    let harmless = [SEGMENTS_DIR, snapshot::DIR, "tmp", "lost+found"];
    let mut is_other = false;
    for entry in std::fs::read_dir(root).map_err(unreachable)? {
        let name = entry.map_err(unreachable)?.file_name();
        is_other |= !harmless.iter().any(|known| name == *known);
    }
    if is_other && root.join(config::FILE).try_exists().map_err(unreachable)? {
        // Another process has just created the store.
        return Ok(Place::Store);
    }
    let has_snapshots = backend.list(snapshot::DIR).is_ok_and(|files| !files.is_empty());
    Ok(match is_other {
        _ if has_snapshots || segments_exist(backend) => Place::Store,
        true => Place::Other,
        false => Place::Empty,
    })
}

fn segments_exist(backend: &dyn Backend) -> bool {
    (0..=255u8).any(|shard| backend.list(&shard_dir(shard)).is_ok_and(|files| !files.is_empty()))
}

pub(crate) fn shard_dir(shard: u8) -> String {
    format!("{SEGMENTS_DIR}/{shard:02x}")
}

impl Store {
    /// Opens the store in directory `root`.
    ///
    /// Rebuilds the index if it is missing or does not match the segments.
    pub fn open(root: &Path, purpose: Purpose, observer: Arc<dyn Observer>) -> Result<Store> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let opened = Store::open_now(root, purpose, Arc::clone(&observer));
            let is_locked = matches!(opened, Err(Error::Locked { .. }));
            if !is_locked || Instant::now() >= deadline {
                return opened;
            }
            observer.progress().check()?;
            // Processes that want an exclusive lock at the same time must not collide again.
            let jitter = u64::from(std::process::id() % 64);
            std::thread::sleep(LOCK_PAUSE + Duration::from_millis(jitter));
        }
    }

    fn open_now(root: &Path, purpose: Purpose, observer: Arc<dyn Observer>) -> Result<Store> {
        let local = Local::new(root);
        match find(root, &local)? {
            Place::Store => {}
            Place::Empty => return Err(Error::NoStore(local.place())),
            Place::Other => {
                let reason = "the directory is not empty and has no store.json";
                return Err(Error::NotAStore { place: local.place(), reason });
            }
        }
        let lock = match purpose {
            Purpose::Read => Lock::take_to_read(root),
            Purpose::Write | Purpose::Delete => Lock::take(root, Mode::Shared),
            Purpose::Rebuild => Lock::take(root, Mode::Exclusive),
        }?;
        if let Some(reason) = lock.unsupported() {
            observer.event(Event::Warning(format!(
                "cannot lock {LOCK_FILE} of the store: {reason}; \
                 let only one process write to the store at a time"
            )));
        }
        let stored = StoredConfig::read(&local, &*observer)?;
        let modes = stored.config.modes();
        let local = Local::with(root, modes, Arc::clone(&observer));
        if purpose != Purpose::Read {
            lock.set_permissions(modes.file);
            if local.is_exposed() {
                let (place, others) =
                    (local.place(), if stored.config.group_readable { "o=" } else { "go=" });
                let text = format!(
                    "other users can read or change {place}; run `chmod -R {others} {place}`"
                );
                observer.event(Event::Warning(text));
            }
        }
        if purpose.is_change() {
            local.remove_unpublished().map_err(Error::store_write("tmp"))?;
        }
        let workspace = Workspace::inside(&local);
        if purpose.is_change() && lock.unsupported().is_none() {
            // An index is built in the store only under the exclusive lock.
            crate::index::remove_unfinished(&workspace.index_path());
        }
        let root = Some(root.to_owned());
        Store::assemble(Arc::new(local), stored, workspace, purpose, observer, Some(lock), root)
    }

    /// Opens a store on any backend, with a workspace below the directory `workspaces` of this
    /// machine.
    pub fn open_backend(
        backend: Arc<dyn Backend>,
        workspaces: &Path,
        purpose: Purpose,
        observer: Arc<dyn Observer>,
    ) -> Result<Store> {
        let stored = StoredConfig::read(&*backend, &*observer)?;
        let workspace = Workspace::below(workspaces, &stored.store_id())
            .map_err(Error::store_write("the workspace"))?;
        Store::assemble(backend, stored, workspace, purpose, observer, None, None)
    }

    fn assemble(
        backend: Arc<dyn Backend>,
        stored: StoredConfig,
        workspace: Workspace,
        purpose: Purpose,
        observer: Arc<dyn Observer>,
        lock: Option<Lock>,
        root: Option<PathBuf>,
    ) -> Result<Store> {
        let features = stored.config.features.clone().with_later_ones(&*backend)?;
        features.check(purpose == Purpose::Read)?;
        if purpose != Purpose::Read {
            workspace.check_length()?;
            stored.mend(&*backend)?;
        }
        let store_id = stored.store_id();
        let StoredConfig { config, bytes: config_bytes, .. } = stored;
        let (mode, codec) = (config.modes().file, Codec::new(config.compression.level));
        let opening = Opening {
            backend: &*backend,
            store_id,
            codec,
            mode,
            observer: &*observer,
            is_shared: workspace.local().is_some(),
            unlisted: Mutex::default(),
            last_warning: Mutex::default(),
        };
        let (index, private) = opening.index(&workspace, purpose, lock.as_ref())?;
        let unlisted = opening.unlisted.into_inner();
        Ok(Store {
            codec,
            config,
            config_bytes,
            store_id,
            index: Arc::new(index),
            workspace,
            observer,
            damage: DamageLog::default(),
            root,
            directories: OnceLock::new(),
            _lock: lock,
            _private: private,
            unlisted,
            copies: Mutex::default(),
            session: RwLock::default(),
            backend,
        })
    }

    /// Returns the place of the store, for messages.
    pub fn place(&self) -> String {
        self.backend.place()
    }

    /// Returns the directory of a store on this machine.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Returns device and inode of all directories of a store on this machine, sorted. A bind mount
    /// may lead to any of them.
    pub fn directories(&self) -> &[(u64, u64)] {
        self.directories.get_or_init(|| self.find_directories())
    }

    fn find_directories(&self) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut dirs: Vec<(PathBuf, u32)> =
            self.root().map(|root| (root.to_owned(), 0)).into_iter().collect();
        while let Some((dir, depth)) = dirs.pop() {
            // The path of the store may be a link.
            let Ok(stat) = std::fs::metadata(&dir) else { continue };
            let [major, minor] = [major(stat.dev()), minor(stat.dev())];
            found.push((u64::from(major) << 32 | u64::from(minor), stat.ino()));
            if depth < DIRECTORY_DEPTH {
                let inner = std::fs::read_dir(&dir).into_iter().flatten().flatten();
                let inner = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                dirs.extend(inner.map(|entry| (entry.path(), depth + 1)));
            }
        }
        found.sort_unstable();
        found
    }

    /// Returns true if a directory of segments could not be read when the store was opened.
    pub fn has_unlisted_segments(&self) -> bool {
        !self.unlisted.is_empty()
    }

    /// Returns the content of `store.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the observer that receives this store's events.
    pub fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// Returns how many bytes the store can still take, or `None` if that is unknown.
    pub fn free_bytes(&self) -> io::Result<Option<u64>> {
        self.backend.free_bytes()
    }

    /// Returns the index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Reads the plain bytes of a chunk at a location that the index returned, verified against its
    /// id. Reads another copy of the chunk if this location fails or is `None`. Returns the segment
    /// that was read.
    fn chunk_at(
        &self,
        id: &ChunkId,
        location: Option<&Location>,
        plain: &mut Vec<u8>,
    ) -> Result<SegmentId> {
        let error = match location {
            Some(location) => match self.read_location(id, location, plain) {
                Ok(()) => return Ok(location.segment),
                Err(error) => error,
            },
            None => Error::ChunkMissing(*id),
        };
        if is_not_found(&error) {
            // A prune moved the chunk since the index was read.
            self.index.refresh();
            let again = self.index.find(id).ok().flatten();
            if let Some(again) = again.filter(|again| Some(again) != location)
                && self.read_location(id, &again, plain).is_ok()
            {
                return Ok(again.segment);
            }
        }
        let fault = match location {
            // Often it was a prune.
            Some(_) if is_not_found(&error) => "a segment is gone",
            Some(_) => "a chunk is damaged, or the index lists a wrong place for it",
            None => LACKS,
        };
        let mut copies = self.copies(fault);
        for is_last in [false, true] {
            let mut is_stale = false;
            for other in find_copies(&copies, id)? {
                let is_gone = match location {
                    Some(location) if *location == other => is_not_found(&error),
                    _ => match self.read_location(id, &other, plain) {
                        Ok(()) => return Ok(other.segment),
                        Err(error) => is_not_found(&error),
                    },
                };
                is_stale |= is_gone;
            }
            if is_last || !is_stale {
                break;
            }
            // A prune moved the chunk since all tables were read.
            copies = self.newer_copies(&copies, fault);
        }
        Err(error)
    }

    /// Reads a chunk. Returns the segment that was read.
    pub(crate) fn read(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<SegmentId> {
        // An unreadable index counts as an index without the chunk.
        let location = self.index.find(id).ok().flatten();
        self.chunk_at(id, location.as_ref(), plain)
    }

    /// Returns true if a new snapshot may rely on a location: no damage is known in its segment, and
    /// no prune deletes it while the session of the backup runs.
    pub(crate) fn trusts(&self, location: &Location) -> bool {
        location.is_healthy && !self.damage.has(&location.segment) && self.is_lasting(location)
    }

    /// Returns true unless a prune may delete the segment of a location.
    pub(crate) fn is_lasting(&self, location: &Location) -> bool {
        if location.is_condemned {
            return false;
        }
        let session = self.session.read().clone();
        match session.as_ref().map(|session| session.reliance(&location.segment)) {
            None | Some(Reliance::Safe) => true,
            Some(Reliance::Condemned) => false,
            Some(Reliance::Gone) => {
                let condemned = session.map(|session| session.condemned().clone());
                let gone = [location.segment];
                let _ =
                    drop_rows(&*self.backend, &self.index, &gone, condemned.unwrap_or_default());
                let _ = self.index.forget_whole();
                false
            }
        }
    }

    /// Begins the session of a backup on the machine `host`. It ends when the result is dropped.
    pub(crate) fn begin_session(&self, host: &str) -> Result<RunningSession<'_>> {
        let backend = Arc::clone(&self.backend);
        let session = Arc::new(Session::begin(backend, self.workspace.local(), host)?);
        if !session.condemned().is_empty() || self.index.has_condemned()? {
            self.index.set_condemned(session.condemned())?;
        }
        *self.session.write() = Some(Arc::clone(&session));
        Ok(RunningSession { store: self, session })
    }

    /// Finds a chunk. Searches the segment tables if the index does not have it.
    pub fn locate(&self, id: &ChunkId) -> Result<Location> {
        match self.index.find(id) {
            Ok(Some(location)) => Ok(location),
            Ok(None) | Err(_) => {
                let found = find_copies(&self.copies(LACKS), id)?;
                found.first().copied().ok_or(Error::ChunkMissing(*id))
            }
        }
    }

    /// Reads the tables of all healthy segments again, so that the index locates no chunk in a damaged
    /// segment that a healthy one has.
    pub(crate) fn locate_again(&self) -> Result<()> {
        for segment in self.index.segments()?.into_iter().filter(|segment| segment.is_healthy) {
            self.observer.progress().check()?;
            // One that cannot be read now keeps its rows.
            if let Ok(table) = read_table(&*self.backend, &segment.id, segment.len) {
                self.index.add(&segment, &table.rows)?;
            }
        }
        Ok(())
    }

    /// Returns the index of the tables of all segments. `fault` says why it is needed.
    fn copies(&self, fault: &str) -> Arc<Copies> {
        let mut copies = self.copies.lock();
        Arc::clone(copies.get_or_insert_with(|| Arc::new(self.read_copies(fault))))
    }

    /// Returns the segments in which a chunk is damaged.
    pub(crate) fn damaged_copies(&self, id: &ChunkId) -> Result<BTreeSet<SegmentId>> {
        let (mut plain, mut damaged) = (Vec::new(), BTreeSet::new());
        for copy in find_copies(&self.copies("a chunk is damaged"), id)? {
            let read = self.read_location(id, &copy, &mut plain);
            if let Err(Error::ChunkDamaged { segment, .. }) = read {
                damaged.insert(segment);
            }
        }
        Ok(damaged)
    }

    /// Like [`copies`](Self::copies), read after `old` was.
    fn newer_copies(&self, old: &Arc<Copies>, fault: &str) -> Arc<Copies> {
        let mut copies = self.copies.lock();
        copies.take_if(|copies| Arc::ptr_eq(copies, old));
        Arc::clone(copies.get_or_insert_with(|| Arc::new(self.read_copies(fault))))
    }

    fn read_copies(&self, fault: &str) -> Copies {
        let text = format!("{fault}; reading the tables of all segments");
        self.observer.event(Event::Warning(text));
        let opening = Opening {
            backend: &*self.backend,
            store_id: self.store_id,
            codec: self.codec,
            mode: Modes::PRIVATE.file,
            observer: &Silent::default(),
            is_shared: false,
            unlisted: Mutex::default(),
            last_warning: Mutex::default(),
        };
        let built = opening.build_temporary(Purpose::Read, Builder::with_all_copies);
        built.map(|(index, dir)| (dir, index)).map_err(Arc::new)
    }

    /// Reads a chunk at the given location.
    pub(crate) fn read_location(
        &self,
        id: &ChunkId,
        location: &Location,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        let damaged =
            |reason: String| Error::ChunkDamaged { chunk: *id, segment: location.segment, reason };
        if location.stored_len as usize > limits::STORED_BYTES_MAX {
            return Err(damaged("its length is invalid".into()));
        }
        let name = segment::file_name(&location.segment);
        STORED.with_borrow_mut(|stored| {
            stored.resize(location.stored_len as usize, 0);
            match self.backend.read(&name, u64::from(location.offset), stored) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(damaged("the segment is truncated".into()));
                }
                result => result.map_err(Error::store_read(name))?,
            }
            let decoded = self.codec.decode(id, stored, location.plain_len as usize, plain);
            decoded.map_err(|fault| damaged(fault.to_string()))
        })
    }

    /// Returns the segments of one shard with their lengths in bytes, as the backend lists them.
    pub(crate) fn list_shard(&self, shard: u8) -> Result<Vec<(SegmentId, u64)>> {
        list_shard(&*self.backend, shard)
    }

    /// Returns the checked table of a segment.
    pub(crate) fn table(&self, id: &SegmentId, len: u64) -> Result<Table> {
        read_table(&*self.backend, id, len)
    }
}

/// The session of a backup of this store.
pub(crate) struct RunningSession<'a> {
    store: &'a Store,
    session: Arc<Session>,
}

impl std::ops::Deref for RunningSession<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Drop for RunningSession<'_> {
    fn drop(&mut self) {
        *self.store.session.write() = None;
    }
}

impl Chunks for Store {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        self.read(id, plain).map(drop)
    }

    /// Reads segments from front to back, on all cores.
    fn get_many(&self, ids: &[ChunkId], each: &Each<'_>) {
        let located = ids.par_iter().enumerate();
        let located = located.map(|(number, id)| (number, self.locate(id).ok()));
        let mut located: Vec<(usize, Option<Location>)> = located.collect();
        located.par_sort_unstable_by_key(|(number, location)| {
            (location.map(|location| (location.segment, location.offset)), *number)
        });
        let is_over = AtomicBool::new(false);
        located.par_iter().for_each(|(number, location)| {
            if is_over.load(Relaxed) {
                return;
            }
            PLAIN.with_borrow_mut(|plain| {
                let read = self.chunk_at(&ids[*number], location.as_ref(), plain);
                if each(*number, read.map(|_| &plain[..])).is_break() {
                    is_over.store(true, Relaxed);
                }
            });
        });
    }
}

thread_local! {
    /// Stored bytes of the chunk that this thread reads.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Plain bytes of the chunk that this thread reads with many others.
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn list_shard(backend: &dyn Backend, shard: u8) -> Result<Vec<(SegmentId, u64)>> {
    let files = look_into_shard(backend, shard, |dir| backend.list(dir))?;
    let ids =
        files.iter().filter_map(|file| Some((SegmentId::from_hex(&file.name).ok()?, file.len)));
    Ok(ids.filter(|(id, _)| id.as_bytes()[0] == shard).collect())
}

/// Returns the slice of segments in one shard. `id` returns the id that they are sorted by.
fn of_shard<T>(sorted: &[T], shard: u8, id: impl Fn(&T) -> &SegmentId) -> &[T] {
    let shard_of = |segment: &T| id(segment).as_bytes()[0];
    let start = sorted.partition_point(|segment| shard_of(segment) < shard);
    let len = sorted[start..].partition_point(|segment| shard_of(segment) == shard);
    &sorted[start..start + len]
}

/// Returns the ids of the segments of one shard, sorted.
fn segment_ids(backend: &dyn Backend, shard: u8) -> Result<Vec<SegmentId>> {
    let names = look_into_shard(backend, shard, |dir| backend.names(dir))?;
    let ids = names.iter().filter_map(|name| SegmentId::from_hex(name).ok());
    let mut ids: Vec<SegmentId> = ids.filter(|id| id.as_bytes()[0] == shard).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Lists the directory of a shard with `list`.
fn look_into_shard<T>(
    backend: &dyn Backend,
    shard: u8,
    list: impl Fn(&str) -> io::Result<Vec<T>>,
) -> Result<Vec<T>> {
    let dir = shard_dir(shard);
    match list(&dir) {
        // Copies made by tools that know only files lack empty directories. A missing directory
        // counts as empty only if its parent can be read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            backend.list(SEGMENTS_DIR).map_err(Error::store_read(SEGMENTS_DIR))?;
            Ok(Vec::new())
        }
        // One error of the directory above is the cause of all.
        Err(error) => {
            backend.list(SEGMENTS_DIR).map_err(Error::store_read(SEGMENTS_DIR))?;
            Err(Error::store_read(dir)(error))
        }
        Ok(files) => Ok(files),
    }
}

/// Returns the segments that condemnations name now. Those that cannot be read are the concern of
/// backups and prunes.
fn condemned_now(backend: &dyn Backend) -> HashSet<SegmentId> {
    condemned::list(backend, None).map(|all| condemned::named(&all)).unwrap_or_default()
}

/// Returns the locations of a chunk in the tables of all segments, those in healthy segments first.
fn find_copies(copies: &Copies, id: &ChunkId) -> Result<Vec<Location>> {
    let failed = |source| Error::CopiesUnknown { chunk: *id, source };
    match copies {
        Ok((_, index)) => index.find_all(id).map_err(|error| failed(Arc::new(error))),
        Err(error) => Err(failed(Arc::clone(error))),
    }
}

/// Returns true if an object was deleted before it was read.
pub(crate) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::StoreRead { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Adds the rows that an index lacks because it located other copies of their chunks.
pub(crate) fn complete(backend: &dyn Backend, index: &Index) -> Result<()> {
    let mut segments = index.incomplete()?;
    segments.sort_by_key(|segment| !segment.is_healthy);
    for segment in segments {
        // One that cannot be read now keeps its rows.
        if let Ok(table) = read_table(backend, &segment.id, segment.len) {
            index.complete(&segment.id, &table.rows)?;
        }
    }
    Ok(())
}

/// Removes segments with their rows from an index. The rows of other copies of their chunks come
/// first, so that the index always locates one. `condemned` are the segments that condemnations name.
pub(crate) fn drop_rows(
    backend: &dyn Backend,
    index: &Index,
    segments: &[SegmentId],
    mut condemned: HashSet<SegmentId>,
) -> Result<()> {
    condemned.extend(segments);
    index.set_condemned(&condemned)?;
    complete(backend, index)?;
    remove_rows(backend, index, segments)
}

/// Removes segments with their rows from an index, and adds the rows of other copies of their chunks.
fn remove_rows(backend: &dyn Backend, index: &Index, segments: &[SegmentId]) -> Result<()> {
    let removal = index.remove(segments)?;
    // Another process may have changed the marks meanwhile.
    complete(backend, index)?;
    index.end_removal(removal)
}

/// Reads and checks header, table and trailer of a segment of `len` bytes.
fn read_table(backend: &dyn Backend, id: &SegmentId, len: u64) -> Result<Table> {
    let damaged = |reason: String| Error::SegmentDamaged { segment: *id, reason };
    let name = segment::file_name(id);
    let read = |offset: u64, len: u64| -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        backend.read(&name, offset, &mut bytes).map_err(Error::store_read(name.clone()))?;
        Ok(bytes)
    };
    if len > limits::SEGMENT_BYTES_MAX || len < TRAILER_LEN as u64 {
        return Err(damaged(format!("its length of {len} bytes is invalid")));
    }
    let tail_len = len.min(TAIL_BYTES);
    let tail = read(len - tail_len, tail_len)?;
    let trailer = Trailer::read(&tail[tail.len() - TRAILER_LEN..], len);
    let trailer = trailer.map_err(|fault| damaged(fault.to_string()))?;
    let table_end = len - TRAILER_LEN as u64;
    let table_len = table_end - u64::from(trailer.table_offset);
    let tail_offset = len - tail_len;
    let table = if u64::from(trailer.table_offset) >= tail_offset {
        let from = (u64::from(trailer.table_offset) - tail_offset) as usize;
        tail[from..tail.len() - TRAILER_LEN].to_vec()
    } else {
        read(u64::from(trailer.table_offset), table_len)?
    };
    let mut header = read(0, u64::from(trailer.table_offset).min(1024))?;
    let header_len = segment::skippable_len(&header)
        .filter(|len| *len <= trailer.table_offset as usize && *len >= SKIPPABLE_HEAD_LEN)
        .ok_or_else(|| damaged("its header is not a frame".into()))?;
    if header_len > header.len() {
        header = read(0, header_len as u64)?;
    }
    Table::read(&header[..header_len], &table, &trailer).map_err(|fault| match fault {
        Fault::Damaged(reason) => damaged(reason),
        Fault::Newer(reason) => Error::Newer { what: format!("segment {id}"), reason },
    })
}

/// Content of `store.json` as read.
struct StoredConfig {
    config: Config,
    bytes: Vec<u8>,
    /// True if it was read from a segment, because the file is lost or damaged.
    is_copy: bool,
}

impl StoredConfig {
    /// Reads `store.json`, or its copy in a segment's header.
    fn read(backend: &dyn Backend, observer: &dyn Observer) -> Result<StoredConfig> {
        let read = backend::read_all(backend, config::FILE, limits::RECORD_BYTES_MAX)
            .map_err(Error::store_read(config::FILE))
            .and_then(|bytes| Ok((Config::from_bytes(&bytes)?, bytes)));
        let error = match read {
            Ok((config, bytes)) => return Ok(StoredConfig { config, bytes, is_copy: false }),
            Err(error @ Error::Newer { .. }) => return Err(error),
            // The copy replaces a lost file, not one whose access is denied.
            Err(Error::StoreRead { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                return Err(Error::Unreachable { place: backend.place(), source });
            }
            Err(error) => error,
        };
        for shard in 0..=255 {
            for (id, len) in list_shard(backend, shard)? {
                let Ok(table) = read_table(backend, &id, len) else { continue };
                let Ok(config) = Config::from_bytes(&table.header.config) else { continue };
                let note = format!("{error}; using the copy in segment {id}");
                observer.event(Event::Warning(note));
                return Ok(StoredConfig { config, bytes: table.header.config, is_copy: true });
            }
        }
        Err(error)
    }

    fn store_id(&self) -> [u8; 16] {
        self.config.store_id_bytes().expect("checked when it was read")
    }

    /// Rewrites `store.json` if it is lost or damaged.
    fn mend(&self, backend: &dyn Backend) -> Result<()> {
        if !self.is_copy {
            return Ok(());
        }
        backend::write_all(backend, config::FILE, &self.bytes)
            .map_err(Error::store_write(config::FILE))
    }
}

/// Inputs for opening or building an index.
struct Opening<'a> {
    backend: &'a dyn Backend,
    store_id: [u8; 16],
    codec: Codec,
    /// Permission bits of an index built in the store.
    mode: u32,
    observer: &'a dyn Observer,
    /// True if the store holds the index, so that every prune knows it.
    is_shared: bool,
    /// Shards that a reader does without.
    unlisted: Mutex<BTreeSet<u8>>,
    /// Last warning about them, because one error may concern all of them.
    last_warning: Mutex<String>,
}

/// Reason why an intact index does not match the store.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// There is none, or that of another store.
    #[error("it is missing or belongs to another store")]
    Foreign,
    /// The index has rows of a segment that is missing or was changed.
    #[error("segment {0} is missing or was changed")]
    Surplus(SegmentId),
}

impl Opening<'_> {
    fn index(
        &self,
        workspace: &Workspace,
        purpose: Purpose,
        lock: Option<&Lock>,
    ) -> Result<(Index, Option<TempDir>)> {
        let has_locks = lock.is_none_or(|lock| lock.unsupported().is_none());
        if !has_locks {
            // Without locks, no other process may use the same index.
            let (index, dir) = self.build_aside(purpose)?;
            return Ok((index, Some(dir)));
        }
        if purpose == Purpose::Read {
            if workspace.odd_file().is_some() {
                let (index, dir) = self.build_aside(purpose)?;
                return Ok((index, Some(dir)));
            }
        } else {
            workspace.remove_odd_files()?;
        }
        let path = &workspace.index_path();
        if purpose == Purpose::Delete && workspace.is_nearly_full() {
            let (index, dir) = self.build_aside(purpose)?;
            // Its space is enough for what a prune writes before it deletes.
            if path.exists() {
                workspace.remove_index();
                let text = format!(
                    "the disk of the store is full: removed {INDEX_FILE}, which another command \
                     builds again"
                );
                self.observer.event(Event::Warning(text));
            }
            return Ok((index, Some(dir)));
        }
        let why = match purpose {
            Purpose::Rebuild => "asked for".to_owned(),
            _ => match self.open(path, purpose) {
                Ok(Ok(index)) => return Ok((index, None)),
                Ok(Err(unusable)) => unusable.to_string(),
                Err(error @ Error::Index(_)) if error.is_out_of_space() || workspace.is_full() => {
                    if purpose.is_change() {
                        // A new one would need even more space.
                        let source = io::ErrorKind::StorageFull.into();
                        return Err(Error::StoreWrite { name: INDEX_FILE.into(), source });
                    }
                    "the disk of the store is full".to_owned()
                }
                Err(error @ Error::Index(_)) => match std::fs::File::open(path) {
                    // SQLite does not tell the reason.
                    Err(reason) => format!("cannot read {INDEX_FILE}: {reason}"),
                    Ok(_) => error.to_string(),
                },
                Err(error) => return Err(error),
            },
        };
        // An empty store has no index because nobody needed one yet.
        let is_said = Cell::new(false);
        let say = || {
            if is_said.replace(true) {
                return;
            }
            if purpose != Purpose::Rebuild && segments_exist(self.backend) {
                self.observer.event(Event::Note(format!("building the index: {why}")));
            }
        };
        let built = self.build_alone(path, purpose, lock, &say);
        match built {
            Ok(index) => Ok((index, None)),
            // Another process builds the index, or this place is not writable. A reader then builds
            // an index of its own.
            Err(Error::Locked { .. } | Error::Index(_) | Error::StoreWrite { .. })
                if purpose == Purpose::Read =>
            {
                say();
                let (index, dir) = self.build_aside(purpose)?;
                Ok((index, Some(dir)))
            }
            Err(error) => Err(error),
        }
    }

    /// Builds an index for this process only, in a temporary directory.
    fn build_aside(&self, purpose: Purpose) -> Result<(Index, TempDir)> {
        self.build_temporary(purpose, Ok)
    }

    /// Like [`build_aside`](Self::build_aside). `prepare` changes the empty index.
    fn build_temporary(
        &self,
        purpose: Purpose,
        prepare: fn(Builder) -> Result<Builder>,
    ) -> Result<(Index, TempDir)> {
        let dir = Workspace::temporary()?;
        let built = Builder::new(&dir.path().join(INDEX_FILE), self.mode, &self.store_id)
            .and_then(prepare)
            .and_then(|builder| self.fill(builder, purpose, purpose != Purpose::Read))
            .and_then(|builder| builder.finish(false, &self.store_id));
        let index = built.map_err(|error| match error.is_out_of_space() {
            true => Error::temporary(io::ErrorKind::StorageFull.into()),
            false => error,
        })?;
        Ok((index, dir))
    }

    /// Returns the index at `path`, or the reason why this store cannot use it.
    fn open(&self, path: &Path, purpose: Purpose) -> Result<Result<Index, Unusable>> {
        let Some(index) = Index::open(path, &self.store_id)? else {
            return Ok(Err(Unusable::Foreign));
        };
        let removal = index.last_removal()?;
        if !removal.is_over && !index.is_read_only() {
            // The process that removed rows still runs, or was killed.
            complete(self.backend, &index)?;
            index.end_removal(removal)?;
        }
        match self.reconcile(&index, purpose)? {
            None => Ok(Ok(index)),
            Some(lost) => {
                let unusable = Unusable::Surplus(lost);
                let advice = "`forgekeep check` lists the affected paths";
                self.observer.event(Event::Warning(format!("{unusable}; {advice}")));
                Ok(Err(unusable))
            }
        }
    }

    /// Compares the index with the listed segments, takes up the new ones, and removes the rows of
    /// those that are gone. Returns a segment with another length: the index has rows too many.
    ///
    /// A reader does without a directory that cannot be listed. It compares lengths only if the
    /// ids differ, because it verifies every chunk that it reads.
    fn reconcile(&self, index: &Index, purpose: Purpose) -> Result<Option<SegmentId>> {
        // The index is read before the listings: a segment published in between is new, not missing.
        let ids = if purpose == Purpose::Read { index.segment_ids()? } else { Vec::new() };
        let (mut segments, mut gone, mut condemned) = (None, Vec::new(), None);
        for shard in 0..=255 {
            if purpose == Purpose::Read {
                let listed = segment_ids(self.backend, shard);
                match self.without_unlisted(shard, purpose, listed)? {
                    Some(listed) if listed != of_shard(&ids, shard, |id| id) => {}
                    _ => continue,
                }
            }
            let segments = match &mut segments {
                Some(segments) => segments,
                unread => unread.insert(index.segments()?),
            };
            let known = of_shard(segments, shard, |segment| &segment.id);
            let Some(listed) = self.list_shard(shard, purpose)? else { continue };
            let is_there = |segment: &&Segment| {
                let at = listed.binary_search_by_key(&segment.id, |(id, _)| *id);
                at.is_ok_and(|at| listed[at].1 == segment.len) || self.is_whole_file(segment)
            };
            for segment in known.iter().filter(|segment| !is_there(segment)) {
                match self.is_removed(&segment.id)? {
                    true => gone.push(segment.id),
                    false => return Ok(Some(segment.id)),
                }
            }
            let is_new = |(id, _): &&(SegmentId, u64)| {
                known.binary_search_by_key(id, |segment| segment.id).is_err()
            };
            if listed.iter().any(|segment| is_new(&segment)) {
                self.settle(shard)?;
            }
            if condemned.is_none() && listed.iter().any(|segment| is_new(&segment)) {
                condemned = Some(condemned_now(self.backend));
            }
            // No snapshot needs those that a prune is going to delete.
            let is_wanted = |(id, _): &&(SegmentId, u64)| {
                condemned.as_ref().is_none_or(|condemned| !condemned.contains(id))
            };
            for (id, len) in listed.iter().filter(is_new).filter(is_wanted) {
                if let Some((segment, rows)) = self.load(id, *len)? {
                    index.add(&segment, &rows)?;
                    if self.is_removed(id)? {
                        // A prune removed its rows before this process added them.
                        remove_rows(self.backend, index, &[*id])?;
                    }
                }
            }
        }
        self.without(index, gone)
    }

    /// Removes the rows of segments that are gone from an index. Returns one of them if this process
    /// cannot do so.
    fn without(&self, index: &Index, gone: Vec<SegmentId>) -> Result<Option<SegmentId>> {
        if gone.is_empty() {
            return Ok(None);
        }
        // Listed before the index is asked: a prune withdraws its condemnation last.
        let condemned = condemned_now(self.backend);
        let mut lost = Vec::new();
        for id in gone {
            // A prune removes the rows before the segment.
            if index.number(&id)?.is_some() {
                lost.push(id);
            }
        }
        let Some(first) = lost.first().copied() else { return Ok(None) };
        if index.is_read_only() {
            return Ok(Some(first));
        }
        // A prune that was killed may have left rows. Prunes elsewhere do not know this index.
        let unexplained = lost.iter().find(|id| self.is_shared && !condemned.contains(id));
        if let Some(id) = unexplained {
            let unusable = Unusable::Surplus(*id);
            let advice = "`forgekeep check` lists the affected paths";
            self.observer.event(Event::Warning(format!("{unusable}; {advice}")));
        }
        drop_rows(self.backend, index, &lost, condemned)?;
        // The next backup looks up every chunk.
        index.forget_whole()?;
        Ok(None)
    }

    /// Returns true if a segment does not exist.
    fn is_removed(&self, id: &SegmentId) -> Result<bool> {
        let name = segment::file_name(id);
        match self.backend.len(&name) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(Error::store_read(name)(error)),
        }
    }

    /// Checks a segment that is missing in a listing. Some network file systems return stale
    /// listings.
    fn is_whole_file(&self, segment: &Segment) -> bool {
        let len = self.backend.len(&segment::file_name(&segment.id));
        len.is_ok_and(|len| len == segment.len)
    }

    /// Returns the segments of a shard, or `None` to a reader if its directory cannot be listed.
    fn list_shard(&self, shard: u8, purpose: Purpose) -> Result<Option<Vec<(SegmentId, u64)>>> {
        self.without_unlisted(shard, purpose, list_shard(self.backend, shard))
    }

    /// Returns a listing. Turns a failure into a warning and `None` for a reader.
    fn without_unlisted<T>(
        &self,
        shard: u8,
        purpose: Purpose,
        listed: Result<Vec<T>>,
    ) -> Result<Option<Vec<T>>> {
        match listed {
            Err(error) if purpose == Purpose::Read => {
                let text = format!("{error}; its segments count as missing");
                let mut last = self.last_warning.lock();
                if *last != text {
                    self.observer.event(Event::Warning(text.clone()));
                    *last = text;
                }
                self.unlisted.lock().insert(shard);
                Ok(None)
            }
            listed => listed.map(Some),
        }
    }

    /// A snapshot may refer to these segments from now on.
    fn settle(&self, shard: u8) -> Result<()> {
        let dir = shard_dir(shard);
        self.backend.settle(&dir).map_err(Error::store_write(dir))
    }

    /// Returns a segment's chunks from its table, or salvages them if the segment is damaged; `None` if
    /// a prune deleted it since it was listed. Fails if a newer program wrote it.
    fn load(&self, id: &SegmentId, len: u64) -> Result<Option<(Segment, Vec<Row>)>> {
        match read_table(self.backend, id, len) {
            Ok(Table { header, rows }) => {
                Ok(Some((Segment { id: *id, kind: header.kind, len, is_healthy: true }, rows)))
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error @ Error::Newer { .. }) => Err(error),
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                let rows = salvage::rows(self.backend, self.codec, id, len);
                let found = rows.len();
                let note = format!("{error}; intact chunks found in it: {found}");
                self.observer.event(Event::Warning(note));
                let kind = segment::SegmentKind::Data;
                Ok(Some((Segment { id: *id, kind, len, is_healthy: false }, rows)))
            }
        }
    }

    fn build_alone(
        &self,
        path: &Path,
        purpose: Purpose,
        lock: Option<&Lock>,
        say: &dyn Fn(),
    ) -> Result<Index> {
        if let Some(lock) = lock {
            lock.change(Mode::Exclusive)?;
        }
        say();
        let built = Builder::new(path, self.mode, &self.store_id)
            .and_then(|builder| self.fill(builder, purpose, true))
            .and_then(|builder| builder.finish(true, &self.store_id));
        if let Some(lock) = lock {
            lock.change(Mode::Shared)?;
        }
        built
    }

    /// Fills an index from the segments' tables. New snapshots may count on one for `writers`.
    fn fill(&self, mut builder: Builder, purpose: Purpose, writers: bool) -> Result<Builder> {
        let mut shards = Vec::new();
        for shard in 0..=255 {
            let listed = self.list_shard(shard, purpose)?.unwrap_or_default();
            if writers && !listed.is_empty() {
                self.settle(shard)?;
            }
            shards.push(listed);
        }
        let count = shards.iter().map(|shard| shard.len() as u64).sum();
        let bytes = shards.iter().flatten().map(|(_, len)| len).sum();
        self.observer.progress().expect(count, bytes);
        let (segments, next) = (shards.concat(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let (sender, loaded) = sync_channel(1);
            let loader = || {
                let (sender, segments, next) = (sender.clone(), &segments, &next);
                move || {
                    while let Some((id, len)) = segments.get(next.fetch_add(1, Relaxed)) {
                        if sender.send(self.load(id, *len)).is_err() {
                            break; // building the index failed
                        }
                    }
                }
            };
            threads::spawn_workers(scope, LOADERS, loader)?;
            drop(sender);
            for loaded in loaded {
                self.observer.progress().check()?;
                let Some((segment, rows)) = loaded? else { continue };
                builder.add(&segment, &rows)?;
                self.observer.progress().add(1, segment.len);
            }
            Ok::<_, Error>(())
        })?;
        Ok(builder)
    }
}

/// Returns true if an error means that this user cannot write to a place.
pub fn is_read_only(error: &io::Error) -> bool {
    lock::is_read_only(error)
}
