//! Backup: source directories in, one snapshot out.
//!
//! ```text
//! walk ─▶ merge with the snapshot before ─▶ jobs (any order) ─▶ tree (path order) ─▶ snapshot
//!                                             │ read, cut, hash, compress
//!                                             └▶ packer ─▶ segments ─▶ index
//! ```
//!
//! The merge sends every batch of entries down two ways: to the workers, which
//! fill in what was read, and to the tree, which takes the batches in the order
//! in which they were sent. Both ways are bounded, and with them memory.

mod git_dir;
mod intake;
mod previous;
mod survey;

use crate::entry::{Entry, Kind, Time, path_cmp};
use crate::error::{Error, Result};
use crate::glob::Globs;
use crate::id::{ChunkId, SegmentId, SnapshotId};
use crate::limits;
use crate::observe::Event;
use crate::packer::Packer;
use crate::reuse::Allowance;
use crate::snapshot::{self, Id, Snapshot, Statistics};
use crate::source::{self, Stat};
use crate::store::{Named, Store};
use crate::tree::{TreeReader, TreeWriter};
use crate::walk::{Base, Excluded, Found, Rules, Step, Walk};
use intake::{Intake, Taken, absolute};
use parking_lot::Mutex;
use previous::{Comparison, Previous, Recheck};
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Entries of a batch.
const BATCH_ENTRIES: usize = 256;
/// Files of a batch that have to be read.
const BATCH_FILES: usize = 32;
/// Bytes of a batch that have to be read.
const BATCH_BYTES: u64 = 4 << 20;
/// Batches on their way to the tree.
const BATCHES_AHEAD: usize = 128;

/// What to back up and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Absolute paths without symbolic links in them.
    pub paths: Vec<PathBuf>,
    /// Globs of what to leave out.
    pub excludes: Vec<String>,
    /// Stay on the file systems of the paths.
    pub one_file_system: bool,
    /// Leave out the content of directories marked as caches.
    pub exclude_caches: bool,
    /// Take along what git can make again: commit-graphs, bitmaps, reverse and multi-pack indexes.
    pub git_caches: bool,
    /// Take a file as unchanged whatever its ctime says.
    pub ignore_ctime: bool,
    /// Take a file as unchanged whatever its inode number is.
    pub ignore_inode: bool,
    /// Read every file again, changed or not.
    pub force: bool,
    /// Store nothing.
    pub is_dry: bool,
    /// Threads that look at files ahead of the reading.
    pub walk_threads: usize,
    /// What the record says of the run.
    pub about: About,
}

/// What the record says of a run.
#[derive(Debug, Clone)]
pub struct About {
    /// Name of the machine.
    pub host: String,
    /// Name of the user.
    pub user: String,
    /// Words to find the snapshot by.
    pub tags: Vec<String>,
    /// Version of the program.
    pub program: String,
    /// Tells the time.
    pub clock: fn() -> Time,
}

/// What a backup did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The new snapshot, unless the run was dry.
    pub snapshot: Option<SnapshotId>,
    /// The snapshot that unchanged files were taken from.
    pub parent: Option<SnapshotId>,
    /// Figures.
    pub statistics: Statistics,
    /// Source paths that could not be read.
    pub unreadable_count: u64,
    /// Files that were not what they seem and were stored like any other, by reason.
    pub doubts: BTreeMap<&'static str, u64>,
}

/// Counted while a backup runs.
#[derive(Debug, Default)]
struct Counters {
    files_new: AtomicU64,
    files_changed: AtomicU64,
    files_unmodified: AtomicU64,
    dirs_new: AtomicU64,
    dirs_changed: AtomicU64,
    dirs_unmodified: AtomicU64,
    others: AtomicU64,
    changed_while_read: AtomicU64,
    unreadable: AtomicU64,
    bytes_read: AtomicU64,
    found_by_chunk: AtomicU64,
    found_by_extent: AtomicU64,
    copied_forward: AtomicU64,
    /// Files that were not what they seem, by reason.
    doubts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    fn count(&self, entry: &Entry, previous: Option<&Entry>) {
        match (entry.kind, previous.is_some()) {
            (Kind::File, false) => &self.files_new,
            (Kind::File, true) => &self.files_changed,
            (Kind::Directory, false) => &self.dirs_new,
            (Kind::Directory, true) => &self.dirs_changed,
            _ => &self.others,
        }
        .fetch_add(1, Relaxed);
    }

    fn unchanged(&self, entry: &Entry) {
        match entry.kind {
            Kind::File => &self.files_unmodified,
            Kind::Directory => &self.dirs_unmodified,
            _ => &self.others,
        }
        .fetch_add(1, Relaxed);
    }
}

/// Entries that follow each other, some of which have to be read first.
struct Batch {
    items: Vec<Item>,
    files: usize,
    bytes: u64,
}

enum Item {
    Ready(Entry),
    Read(Found, Option<Entry>),
}

enum Job {
    Batch(Arc<Base>, Batch),
    GitDir(Arc<Base>, Found, Vec<Entry>),
}

/// A place in the tree's order, filled now or later.
enum Slot {
    Filled(Vec<Entry>),
    Later(Receiver<Vec<Entry>>),
}

/// Backs up directories and files.
pub fn backup(store: &Store, options: &Options) -> Result<Report> {
    let globs = Globs::new(options.excludes.iter().map(String::as_str))?;
    let exclude = Excluded { globs, git_caches: !options.git_caches };
    check_record(options)?;
    let roots = roots(&options.paths)?;
    let wanted: Vec<&[u8]> = options.paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
    let host = &options.about.host;
    let parent = if options.force { None } else { parent(store, host, &wanted)? };
    let start = (options.about.clock)();
    let damaged = store.index.damaged()?;
    let parent_closed = match &parent {
        Some((id, _)) => store.index.is_closed(id)?,
        None => false,
    };
    if let Some((_, parent)) = &parent {
        let statistics = &parent.statistics;
        store.observer().progress().expect(statistics.entries, statistics.bytes);
    }
    let get = |id: &ChunkId| store.chunk(id);
    let entries = parent.as_ref().map(|(_, parent)| TreeReader::new(&parent.root.chunk(), &get));
    let previous = Previous::new(entries);
    let comparison = parent.as_ref().map(|(_, parent)| Comparison {
        ctime: !options.ignore_ctime,
        inode: !options.ignore_inode,
        started: parent.start.into(),
    });
    let counters = Counters::default();
    let packer = Packer::new(store, options.is_dry);
    let allowance = allowance(parent.as_ref());
    let intake = Intake::new(store, &packer, &counters, &exclude, &allowance)?;
    let recheck = Recheck { store, comparison, is_closed: parent_closed };
    let rules = Rules {
        exclude: exclude.clone(),
        one_file_system: options.one_file_system,
        exclude_caches: options.exclude_caches,
        never: store.root().and_then(device_and_inode).into_iter().collect(),
        git_dirs: true,
        scan_git_dirs: parent.is_some(),
    };
    let produce = |merge: &mut Merge<'_, '_>| {
        let mut ancestors = Vec::new();
        let mut refused = Vec::new();
        for root in &roots {
            merge.ancestors(root, &mut ancestors)?;
            match merge.root(root, rules.clone(), options.walk_threads) {
                Err(Error::Source { path, source }) => refused.push((path, source)),
                done => done?,
            }
        }
        if refused.len() == roots.len() {
            return refused
                .pop()
                .map_or(Ok(()), |(path, source)| Err(Error::Source { path, source }));
        }
        for (path, error) in &refused {
            merge.intake.unreadable(&tree_path(path), error);
        }
        Ok(())
    };
    let is_over = AtomicBool::new(false);
    let (root, totals) = std::thread::scope(|scope| {
        let observer = store.observer();
        if parent.is_none() && observer.wants_totals() {
            scope.spawn(|| survey::survey(&roots, &rules, observer.progress(), &is_over));
        }
        let done = run_pipeline(&intake, &recheck, previous, produce);
        is_over.store(true, Relaxed);
        done
    })?;
    let parent_id = parent.map(|(id, _)| id);
    let trusted = parent_id.filter(|_| parent_closed);
    let paths = options.paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
    let seal = Sealing {
        packer: &packer,
        counters: &counters,
        about: &options.about,
        start,
        damaged,
        trusted,
    };
    seal.finish(store, root, totals, parent_id, paths, options)
}

/// Refuses at once what would be refused when everything was read.
fn check_record(options: &Options) -> Result<()> {
    let texts = options.excludes.iter().chain(&options.about.tags).map(String::len);
    let paths = options.paths.iter().map(|path| path.as_os_str().len());
    // Each has a length in front of it.
    let bytes = texts.chain(paths).map(|len| len + 9).sum();
    let max = limits::RECORD_BYTES_MAX / 2;
    if bytes > max { Err(Error::RecordTooLong { bytes, max }) } else { Ok(()) }
}

/// Backs up one stream as one file named `name`, which is also its path.
///
/// `input` is read to its end; `confirm` then says whether what was read is all
/// there should be, and without its consent there is no snapshot.
pub fn backup_stream(
    store: &Store,
    name: &[u8],
    input: &mut dyn Read,
    confirm: &mut dyn FnMut() -> Result<()>,
    options: &Options,
) -> Result<Report> {
    let damaged = store.index.damaged()?;
    let start = (options.about.clock)();
    let counters = Counters::default();
    let packer = Packer::new(store, options.is_dry);
    let exclude = Globs::new([])?.into();
    let host = &options.about.host;
    let parent = if options.force { None } else { parent(store, host, &[name])? };
    let before = match &parent {
        Some((_, parent)) => entry_at(store, &parent.root.chunk(), name),
        None => None,
    };
    let allowance = allowance(parent.as_ref());
    let intake = Intake::new(store, &packer, &counters, &exclude, &allowance)?;
    let taken = intake.stream(input, before.as_ref()).map_err(|trouble| match trouble {
        intake::Trouble::Store(error) => error,
        intake::Trouble::Source(source) => Error::Source { path: "standard input".into(), source },
    })?;
    confirm()?;
    let mut tree = TreeWriter::default();
    let mut put = |bytes: &[u8]| intake.put_metadata(bytes);
    let parts: Vec<&[u8]> = name.split(|b| *b == b'/').collect();
    for depth in 1..parts.len() {
        let dir = Entry::new(parts[..depth].join(&b'/'), Kind::Directory, 0o755);
        tree.push(&dir, &mut put)?;
    }
    let file = Entry::new(name.to_vec(), Kind::File, 0o600);
    let Taken { content, size, unused } = taken;
    let file = Entry { mtime: Some(start), content, size, unused, ..file };
    counters.count(&file, before.as_ref());
    tree.push(&file, &mut put)?;
    let root = tree.finish(&mut put)?;
    let seal = Sealing {
        packer: &packer,
        counters: &counters,
        about: &options.about,
        start,
        damaged,
        trusted: None,
    };
    let parent = parent.map(|(id, _)| id);
    let totals = Totals { entries: parts.len() as u64, bytes: size, unused };
    seal.finish(store, root, totals, parent, vec![name.to_vec()], options)
}

/// What the chunks of a snapshot after `parent` may hold without need.
fn allowance(parent: Option<&Named>) -> Allowance {
    parent.map_or_else(Allowance::default, |(_, parent)| {
        Allowance::of(parent.statistics.bytes, parent.statistics.unused)
    })
}

/// The entry at a path, if that can be read.
fn entry_at(store: &Store, root: &ChunkId, path: &[u8]) -> Option<Entry> {
    let get = |id: &ChunkId| store.chunk(id);
    Previous::new(Some(TreeReader::new(root, &get))).at(path)
}

/// What a tree amounts to.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    entries: u64,
    /// Of files.
    bytes: u64,
    /// Bytes of chunks that files refer to without needing them.
    unused: u64,
}

/// The end of a backup: everything durable, then the record.
struct Sealing<'a> {
    packer: &'a Packer<'a>,
    counters: &'a Counters,
    about: &'a About,
    start: Time,
    /// The segments known to be damaged when the backup began.
    damaged: HashSet<SegmentId>,
    /// The snapshot that was closed then, so that none of its chunks was looked up.
    trusted: Option<SnapshotId>,
}

impl Sealing<'_> {
    fn finish(
        self,
        store: &Store,
        root: ChunkId,
        Totals { entries, bytes, unused }: Totals,
        parent: Option<SnapshotId>,
        paths: Vec<Vec<u8>>,
        options: &Options,
    ) -> Result<Report> {
        self.packer.finish()?;
        let (counters, added) = (self.counters, self.packer.added());
        let statistics = Statistics {
            files_new: counters.files_new.load(Relaxed),
            files_changed: counters.files_changed.load(Relaxed),
            files_unmodified: counters.files_unmodified.load(Relaxed),
            dirs_new: counters.dirs_new.load(Relaxed),
            dirs_changed: counters.dirs_changed.load(Relaxed),
            dirs_unmodified: counters.dirs_unmodified.load(Relaxed),
            others: counters.others.load(Relaxed),
            entries,
            bytes,
            chunks_new: added.chunks.load(Relaxed),
            added_bytes: added.plain_bytes.load(Relaxed),
            added_stored_bytes: added.stored_bytes.load(Relaxed),
            changed_while_read: counters.changed_while_read.load(Relaxed),
            bytes_read: counters.bytes_read.load(Relaxed),
            found_by_chunk: counters.found_by_chunk.load(Relaxed),
            found_by_extent: counters.found_by_extent.load(Relaxed),
            copied_forward: counters.copied_forward.load(Relaxed),
            unused,
        };
        let doubts = std::mem::take(&mut *counters.doubts.lock());
        let unreadable_count = counters.unreadable.load(Relaxed);
        store.observer().progress().check()?;
        let record = Snapshot {
            version: snapshot::VERSION,
            start: self.start.into(),
            end: (self.about.clock)().into(),
            host: self.about.host.clone(),
            user: self.about.user.clone(),
            paths: paths.into_iter().map(Into::into).collect(),
            tags: self.about.tags.clone(),
            root: Id(*root.as_bytes()),
            parent: parent.map(|id| Id(*id.as_bytes())),
            program: self.about.program.clone(),
            statistics,
            unreadable_count,
            excludes: options.excludes.clone(),
        };
        let snapshot = if options.is_dry {
            None
        } else {
            let id = record.write(&*store.backend)?;
            // The snapshot is there and good; without this mark the next backup looks closer.
            if let Err(error) = self.close(store, &id) {
                store.observer().event(Event::Warning(error.to_string()));
            }
            Some(id)
        };
        Ok(Report { snapshot, parent, statistics, unreadable_count, doubts })
    }

    /// Marks the snapshot as closed, unless something was found missing of the one it
    /// relies on.
    fn close(&self, store: &Store, snapshot: &SnapshotId) -> Result<()> {
        match &self.trusted {
            Some(trusted) if !store.index.is_closed(trusted)? => Ok(()),
            _ => store.index.set_closed(snapshot, &self.damaged),
        }
    }
}

/// Runs the threads of a backup around `produce`; returns the root of the tree, and
/// what it amounts to.
fn run_pipeline(
    intake: &Intake<'_>,
    recheck: &Recheck<'_>,
    previous: Previous<'_>,
    produce: impl FnOnce(&mut Merge<'_, '_>) -> Result<()>,
) -> Result<(ChunkId, Totals)> {
    let failure = Failure::default();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let (job_sender, jobs) = sync_channel::<Asked>(2 * workers);
    let (slot_sender, slots) = sync_channel::<Slot>(BATCHES_AHEAD);
    let jobs = Mutex::new(jobs);
    let tree = std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| work(&jobs, intake, recheck, &failure));
        }
        let tree = scope.spawn(|| write_tree(slots, intake, &failure));
        let mut merge = Merge {
            intake,
            recheck,
            previous,
            failure: &failure,
            jobs: job_sender,
            slots: slot_sender,
            batch: Batch::new(),
        };
        let produced = produce(&mut merge);
        failure.note(produced);
        drop(merge);
        tree.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match failure.error.into_inner() {
        Some(error) => Err(error),
        None => tree,
    }
}

/// The first error of any thread; the others see that there is one and end.
#[derive(Default)]
struct Failure {
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Failure {
    fn note<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let mut first = self.error.lock();
                // Whoever was only stopped by another's error does not know the reason.
                if matches!(*first, None | Some(Error::Interrupted)) {
                    *first = Some(error);
                }
                drop(first);
                self.failed.store(true, Relaxed);
                None
            }
        }
    }

    fn is_noted(&self) -> bool {
        self.failed.load(Relaxed)
    }
}

/// A job, and where its entries go.
type Asked = (Job, SyncSender<Vec<Entry>>);

/// A worker: jobs until there are no more.
fn work(
    jobs: &Mutex<Receiver<Asked>>,
    intake: &Intake<'_>,
    recheck: &Recheck<'_>,
    failure: &Failure,
) {
    loop {
        let next = jobs.lock().recv();
        let Ok((job, reply)) = next else { return };
        if failure.is_noted() {
            continue; // emptying the queue, so that nobody waits for a place in it
        }
        let done = match job {
            Job::Batch(base, batch) => batch.read(&base, intake),
            Job::GitDir(base, found, previous) => {
                git_dir::read(intake, recheck, &base, &found, previous)
            }
        };
        if let Some(entries) = failure.note(done) {
            // Nobody listens only after another thread failed.
            let _ = reply.send(entries);
        }
    }
}

/// Takes the batches in order and writes the tree.
fn write_tree(
    slots: Receiver<Slot>,
    intake: &Intake<'_>,
    failure: &Failure,
) -> Result<(ChunkId, Totals)> {
    let mut tree = TreeWriter::default();
    let mut put = |bytes: &[u8]| intake.put_metadata(bytes);
    let mut totals = Totals::default();
    for slot in slots {
        let entries = match slot {
            Slot::Filled(entries) => entries,
            Slot::Later(receiver) => receiver.recv().unwrap_or_default(),
        };
        if failure.is_noted() {
            continue;
        }
        for entry in entries {
            totals.entries += 1;
            // A sparse file can be so large that a few of them exceed every number.
            totals.bytes = totals.bytes.saturating_add(entry.size);
            totals.unused = totals.unused.saturating_add(entry.unused);
            if failure.note(tree.push(&entry, &mut put)).is_none() {
                break;
            }
        }
    }
    if failure.is_noted() {
        return Err(Error::Interrupted); // the noted error is the one that is returned
    }
    Ok((tree.finish(&mut put)?, totals))
}

impl Batch {
    fn new() -> Batch {
        Batch { items: Vec::new(), files: 0, bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.items.len() >= BATCH_ENTRIES || self.files >= BATCH_FILES || self.bytes >= BATCH_BYTES
    }

    fn is_read(&self) -> bool {
        self.files == 0
    }

    fn read(self, base: &Base, intake: &Intake<'_>) -> Result<Vec<Entry>> {
        let mut entries = Vec::with_capacity(self.items.len());
        for item in self.items {
            match item {
                Item::Ready(entry) => entries.push(entry),
                Item::Read(found, previous) => {
                    intake.observer().progress().check()?;
                    entries.extend(intake.entry(base, &found, previous.as_ref())?);
                }
            }
        }
        Ok(entries)
    }
}

/// A source path.
struct Root {
    /// Path in the tree.
    path: Vec<u8>,
    stat: Stat,
}

/// The source paths in tree order, without those that lie in others.
fn roots(paths: &[PathBuf]) -> Result<Vec<Root>> {
    let mut roots: Vec<Root> = Vec::new();
    for path in paths {
        let fail = |source| Error::Source { path: path.clone(), source };
        let stat = source::open_dir(Path::new("/"))
            .and_then(|top| {
                let relative = tree_path(path);
                if relative.is_empty() {
                    source::stat_open(&top)
                } else {
                    let flags = rustix::fs::OFlags::PATH;
                    source::stat_open(source::open_below(top.as_fd(), &relative, flags)?)
                }
            })
            .map_err(fail)?;
        roots.push(Root { path: tree_path(path), stat });
    }
    roots.sort_by(|a, b| path_cmp(&a.path, &b.path));
    roots.dedup_by(|later, earlier| crate::entry::is_within(&later.path, &earlier.path));
    Ok(roots)
}

/// An absolute path as a path in a tree.
pub fn tree_path(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let parts = bytes.split(|b| *b == b'/').filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(&b'/')
}

fn device_and_inode(path: &Path) -> Option<(u64, u64)> {
    let stat = source::stat_open(source::open_dir(path).ok()?).ok()?;
    Some((stat.device, stat.inode))
}

/// The snapshot to take unchanged files from: the newest of this machine with the
/// same paths, else the newest that shares one.
fn parent(store: &Store, host: &str, wanted: &[&[u8]]) -> Result<Option<Named>> {
    let (snapshots, damaged) = store.snapshots()?;
    for error in damaged {
        store.observer().event(Event::Warning(error.to_string()));
    }
    let of_host = || snapshots.iter().rev().filter(|(_, snapshot)| snapshot.host == host);
    let same = |snapshot: &Snapshot| {
        snapshot.paths.len() == wanted.len()
            && snapshot.paths.iter().all(|path| wanted.contains(&path.as_slice()))
    };
    let shares =
        |snapshot: &Snapshot| snapshot.paths.iter().any(|path| wanted.contains(&path.as_slice()));
    let found = of_host()
        .find(|(_, snapshot)| same(snapshot))
        .or_else(|| of_host().find(|(_, snapshot)| shares(snapshot)));
    Ok(found.cloned())
}

/// Walks beside the snapshot before and sends batches down both ways.
struct Merge<'a, 'p> {
    intake: &'a Intake<'a>,
    recheck: &'a Recheck<'a>,
    previous: Previous<'p>,
    failure: &'a Failure,
    jobs: SyncSender<Asked>,
    slots: SyncSender<Slot>,
    batch: Batch,
}

impl Merge<'_, '_> {
    /// Sends the directories above a root that were not sent yet.
    fn ancestors(&mut self, root: &Root, sent: &mut Vec<Vec<u8>>) -> Result<()> {
        let ends = root.path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for path in ends.map(|end| root.path[..end].to_vec()) {
            if sent.contains(&path) {
                continue;
            }
            let fail = |source| Error::Source { path: absolute(&path), source };
            let (stat, xattrs) = match source::open_dir(&absolute(&path)) {
                Ok(dir) => (source::stat_open(&dir), source::xattrs_open(&dir)),
                // It may be passed through, but not listed.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let dir = source::open_dir(Path::new("/")).map_err(fail)?;
                    let flags = rustix::fs::OFlags::PATH;
                    let opened = source::open_below(dir.as_fd(), &path, flags);
                    let xattrs = source::xattrs_below(dir.as_fd(), &path);
                    (opened.and_then(source::stat_open), xattrs)
                }
                Err(error) => return Err(fail(error)),
            };
            let (stat, xattrs) = (stat.map_err(fail)?, xattrs.map_err(fail)?);
            let entry = self.intake.ancestor(&path, &stat, xattrs);
            self.batch.items.push(Item::Ready(entry));
            sent.push(path);
        }
        self.flush_ready()
    }

    /// Sends a root and everything below.
    fn root(&mut self, root: &Root, rules: Rules, walk_threads: usize) -> Result<()> {
        let fail = |source| Error::Source { path: absolute(&root.path), source };
        if root.stat.kind == Kind::Directory {
            let dir = source::open_dir(&absolute(&root.path)).map_err(fail)?;
            let base = Arc::new(Base { path: root.path.clone(), dir });
            for step in Walk::new(Arc::clone(&base), root.stat, rules, walk_threads) {
                if self.failure.is_noted() {
                    return Ok(());
                }
                self.intake.observer().progress().check()?;
                self.step(&base, step)?;
            }
            return self.flush(&base);
        }
        let parent = root.path.iter().rposition(|b| *b == b'/').map_or(0, |at| at);
        let parent = root.path[..parent].to_vec();
        let dir = source::open_dir(&absolute(&parent)).map_err(fail)?;
        let base = Arc::new(Base { path: parent, dir });
        self.step(&base, Step::Found(Found { path: root.path.clone(), stat: root.stat }))?;
        self.flush(&base)
    }

    fn step(&mut self, base: &Arc<Base>, step: Step) -> Result<()> {
        match step {
            Step::Failed(path, error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.intake.unreadable(&path, &error);
                }
                Ok(())
            }
            // `/` itself has no name to be kept under.
            Step::Found(found) if found.path.is_empty() => Ok(()),
            Step::Found(found) => self.found(base, found),
            Step::GitDir(found, content) => self.git_dir(base, found, content),
        }
    }

    fn found(&mut self, base: &Arc<Base>, found: Found) -> Result<()> {
        let previous = self.previous.at(&found.path);
        match previous {
            Some(entry) if self.recheck.is_unchanged(&found.stat, &entry)? => {
                self.unchanged(entry);
            }
            previous => {
                self.batch.files += 1;
                self.batch.bytes += found.stat.size;
                self.batch.items.push(Item::Read(found, previous));
            }
        }
        if self.batch.is_full() { self.flush(base) } else { Ok(()) }
    }

    fn unchanged(&mut self, entry: Entry) {
        self.intake.counters.unchanged(&entry);
        self.intake.observer().progress().add(1, entry.size);
        self.batch.items.push(Item::Ready(entry));
    }

    fn git_dir(
        &mut self,
        base: &Arc<Base>,
        found: Found,
        content: Option<Vec<Found>>,
    ) -> Result<()> {
        let own = self.previous.at(&found.path);
        let below = self.previous.below(&found.path);
        let previous: Vec<Entry> = own.into_iter().chain(below).collect();
        let is_unchanged = match &content {
            Some(content) => self.is_unchanged_git_dir(&found, content, &previous)?,
            None => false,
        };
        if is_unchanged {
            for entry in previous {
                self.unchanged(entry);
            }
            return if self.batch.is_full() { self.flush(base) } else { Ok(()) };
        }
        self.flush(base)?;
        let (reply, later) = sync_channel(1);
        self.send_slot(Slot::Later(later))?;
        self.send_job(Job::GitDir(Arc::clone(base), found, previous), reply)
    }

    /// Whether a look at all of a git directory, in the order of its phases,
    /// found nothing but what the snapshot before has.
    fn is_unchanged_git_dir(
        &self,
        dir: &Found,
        content: &[Found],
        previous: &[Entry],
    ) -> Result<bool> {
        if previous.len() != content.len() + 1 {
            return Ok(false);
        }
        for (found, entry) in std::iter::once(dir).chain(content).zip(previous) {
            if found.path != entry.path || !self.recheck.is_unchanged(&found.stat, entry)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn flush_ready(&mut self) -> Result<()> {
        let batch = std::mem::replace(&mut self.batch, Batch::new());
        let ready = batch.items.into_iter().filter_map(|item| match item {
            Item::Ready(entry) => Some(entry),
            Item::Read(..) => None,
        });
        self.send_slot(Slot::Filled(ready.collect()))
    }

    fn flush(&mut self, base: &Arc<Base>) -> Result<()> {
        if self.batch.items.is_empty() {
            return Ok(());
        }
        if self.batch.is_read() {
            return self.flush_ready();
        }
        let batch = std::mem::replace(&mut self.batch, Batch::new());
        let (reply, later) = sync_channel(1);
        self.send_slot(Slot::Later(later))?;
        self.send_job(Job::Batch(Arc::clone(base), batch), reply)
    }

    fn send_slot(&self, slot: Slot) -> Result<()> {
        // The tree's thread ends before the sender only by a panic, which is passed on.
        self.slots.send(slot).map_err(|_| Error::Interrupted)
    }

    fn send_job(&self, job: Job, reply: SyncSender<Vec<Entry>>) -> Result<()> {
        self.jobs.send((job, reply)).map_err(|_| Error::Interrupted)
    }
}
