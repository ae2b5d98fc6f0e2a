//! Small stores created through the library.

use chunker::Parameters;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use store::backend::Local;
use store::backup::{About, Backup, BackupOptions, Guard, Likeness, Report, Sources};
use store::config::Config;
use store::entry::Time;
use store::id::{ChunkId, SnapshotId};
use store::observe::{Event, Observer, Progress, Silent};
use store::packer::Packer;
use store::segment::SegmentKind;
use store::snapshot::{Id, Snapshot, Stamp, Statistics, VERSION};
use store::store::{Purpose, Store, init};

/// Smallest possible chunks.
pub const SMALL: Parameters = Parameters { min_bytes: 64, avg_bytes: 256, max_bytes: 1024 };

/// Creates an empty store with small chunks.
pub fn init_small(root: &Path) {
    init(root, &Config::new([7; 16], SMALL, 3)).expect("init");
}

/// Opens a store and ignores its events.
pub fn open(root: &Path, purpose: Purpose) -> Store {
    Store::open(root, purpose, Arc::new(Silent::default())).expect("the store opens")
}

/// Options for a backup of everything.
pub fn backup_options() -> BackupOptions {
    BackupOptions {
        excludes: Vec::new(),
        one_file_system: false,
        exclude_caches: false,
        git_caches: true,
        ignore_ctime: false,
        ignore_inode: false,
        force: false,
        is_dry: false,
        walk_threads: 1,
        guard: Guard::default(),
        about: About {
            host: "host".into(),
            user: "user".into(),
            tags: Vec::new(),
            program: "test".into(),
            run: None,
            clock: || Time { seconds: 4_000_000_000, nanoseconds: 0 },
        },
    }
}

/// Backs up these paths in one pass.
pub fn back_up(store: &Store, paths: &[&Path], options: &BackupOptions) -> store::Result<Report> {
    let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    let mut backup = Backup::begin(store, options, Likeness::of_paths(&paths))?;
    backup.paths(&Sources { paths, ..Sources::default() })?;
    backup.finish(None)
}

/// Backs up into the store at `root`.
pub fn backup(root: &Path, paths: &[&Path]) -> store::Result<SnapshotId> {
    let store = Store::open(root, Purpose::Write, Arc::new(Silent::default()))?;
    let report = back_up(&store, paths, &backup_options())?;
    Ok(report.snapshot.expect("the run is not dry"))
}

/// Options for a restore of everything.
pub fn restore_options() -> store::restore::Options {
    let none = || store::glob::Globs::new([]).expect("no globs");
    store::restore::Options {
        include: none(),
        include_each: Vec::new(),
        exclude: none(),
        delete: false,
        sources: Vec::new(),
        keep: none().into(),
        owners: Default::default(),
        owner_record: None,
        ends_at_write_errors: false,
        is_dry: false,
    }
}

/// Records events.
#[derive(Default)]
pub struct Listener {
    pub events: Mutex<Vec<Event>>,
    progress: Progress,
}

impl Observer for Listener {
    fn event(&self, event: Event) {
        self.events.lock().expect("no test panics here").push(event);
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// Adds a snapshot to the store at `root`. `make` gets a function that stores chunks and returns
/// the root page.
pub fn craft(
    root: &Path,
    make: impl FnOnce(&dyn Fn(SegmentKind, &[u8]) -> ChunkId) -> ChunkId,
) -> SnapshotId {
    let store = open(root, Purpose::Write);
    let packer = Packer::new(&store, false);
    let put = |kind, bytes: &[u8]| packer.put(kind, bytes).expect("puts").id;
    let page = make(&put);
    packer.finish().expect("finishes");
    record(root, page)
}

/// Writes a snapshot record for a root page.
pub fn record(root: &Path, page: ChunkId) -> SnapshotId {
    let at = Stamp { seconds: 4_000_000_000, nanoseconds: 0 };
    let snapshot = Snapshot {
        version: VERSION,
        start: at,
        end: at,
        host: "host".into(),
        user: "user".into(),
        paths: vec![b"/".to_vec().into()],
        tags: Vec::new(),
        root: Id(*page.as_bytes()),
        parent: None,
        program: "test".into(),
        statistics: Statistics::default(),
        unreadable_count: 0,
        excludes: Vec::new(),
        instance: None,
        skipped: store::snapshot::Skipped::default(),
        run: None,
        sources: Vec::new(),
        emptied: Vec::new(),
        is_loss_allowed: false,
    };
    snapshot.write(&Local::new(root), store::codec::Codec::new(3)).expect("writes the record")
}
