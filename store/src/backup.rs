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

mod failure;
mod git_dir;
mod intake;
mod merge;
mod pipeline;
mod previous;
mod run;
mod survey;

use crate::entry::{Entry, Kind, Time, is_within, path_cmp};
use crate::error::{Error, Result};
use crate::glob::Globs;
use crate::id::{ChunkId, SnapshotId};
use crate::limits;
use crate::snapshot::Statistics;
use crate::source::{self, Stat};
use crate::store::Store;
use crate::tree::{TreeReader, TreeWriter};
use crate::walk::{Excluded, Rules};
use intake::{Intake, Taken, Trouble};
use previous::{Comparison, Previous, Recheck};
use run::{Run, Totals};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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

/// Backs up directories and files.
pub fn backup(store: &Store, options: &Options) -> Result<Report> {
    let globs = Globs::new(options.excludes.iter().map(String::as_str))?;
    let exclude = Excluded { globs, git_caches: !options.git_caches };
    check_record(options)?;
    let roots = roots(&options.paths)?;
    let paths = options.paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
    let run = Run::begin(store, options, paths)?;
    let parent = run.parent.as_ref();
    let trusted = match parent {
        Some((id, _)) if store.index.is_closed(id)? => Some(*id),
        _ => None,
    };
    if let Some((_, parent)) = parent {
        let statistics = &parent.statistics;
        store.observer().progress().expect(statistics.entries, statistics.bytes);
    }
    let get = |id: &ChunkId| store.chunk(id);
    let entries = parent.map(|(_, parent)| TreeReader::new(&parent.root.chunk(), &get));
    let comparison = parent.map(|(_, parent)| Comparison {
        ctime: !options.ignore_ctime,
        inode: !options.ignore_inode,
        started: parent.start.into(),
    });
    let recheck = Recheck { store, comparison, is_closed: trusted.is_some() };
    let intake = Intake::new(&run, &exclude)?;
    let rules = Rules {
        exclude: exclude.clone(),
        one_file_system: options.one_file_system,
        exclude_caches: options.exclude_caches,
        never: store.root().and_then(device_and_inode).into_iter().collect(),
        git_dirs: true,
        scan_git_dirs: parent.is_some(),
    };
    let is_over = AtomicBool::new(false);
    let (root, totals) = std::thread::scope(|scope| {
        let observer = store.observer();
        if parent.is_none() && observer.wants_totals() {
            scope.spawn(|| survey::survey(&roots, &rules, observer.progress(), &is_over));
        }
        let done = pipeline::run(&intake, &recheck, Previous::new(entries), |merge| {
            merge.roots(&roots, &rules, options.walk_threads)
        });
        is_over.store(true, Relaxed);
        done
    })?;
    run.finish(root, totals, trusted)
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
    let exclude = Globs::new([])?.into();
    let run = Run::begin(store, options, vec![name.to_vec()])?;
    let root = run.parent.as_ref().map(|(_, parent)| parent.root.chunk());
    let before = root.and_then(|root| entry_at(store, &root, name));
    let intake = Intake::new(&run, &exclude)?;
    let taken = intake.stream(input, before.as_ref()).map_err(|trouble| match trouble {
        Trouble::Store(error) => error,
        Trouble::Source(source) => Error::Source { path: "standard input".into(), source },
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
    let file = Entry { mtime: Some(run.start), content, size, unused, ..file };
    run.counters.count(&file, before.as_ref());
    tree.push(&file, &mut put)?;
    let root = tree.finish(&mut put)?;
    let totals = Totals { entries: parts.len() as u64, bytes: size, unused };
    run.finish(root, totals, None)
}

/// The entry at a path, if that can be read.
fn entry_at(store: &Store, root: &ChunkId, path: &[u8]) -> Option<Entry> {
    let get = |id: &ChunkId| store.chunk(id);
    Previous::new(Some(TreeReader::new(root, &get))).at(path)
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
    roots.dedup_by(|later, earlier| is_within(&later.path, &earlier.path));
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
