//! Backup: source directories in, one snapshot out.
//!
//! ```text
//! walk ─▶ merge with the previous snapshot ─▶ jobs (any order) ─▶ tree (path order) ─▶ snapshot
//!                                             │ read, cut, hash, compress
//!                                             └▶ packer ─▶ segments ─▶ index
//! ```
//!
//! The merge sends every batch of entries two ways. Workers fill in the content they read. The tree
//! takes the batches in the order in which they were sent. Both queues are bounded, which bounds
//! memory.
//!
//! A backup may consist of several passes, one after the other, each over other paths. Their
//! results are merged into one tree at the end.

mod assembly;
mod failure;
mod gate;
mod git_dir;
mod ingest;
mod merge;
mod passes;
mod pipeline;
mod previous;
mod run;
mod survey;

pub use passes::{Backup, Likeness, Sources};

use crate::damage::Damage;
use crate::entry::{Time, is_within, path_cmp};
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::observe::Event;
use crate::snapshot::Statistics;
use crate::source::{self, Stat};
use crate::store::Store;
use crate::walk::Named;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Options of a backup.
#[derive(Debug, Clone)]
pub struct Options {
    /// Absolute paths without symbolic links in them.
    pub paths: Vec<PathBuf>,
    /// Globs of skipped paths.
    pub excludes: Vec<Vec<u8>>,
    /// Stay on the file systems of the paths.
    pub one_file_system: bool,
    /// Skip the content of directories marked as caches.
    pub exclude_caches: bool,
    /// Include files that git can recreate: commit-graphs, bitmaps, reverse and multi-pack indexes.
    pub git_caches: bool,
    /// Treat a file as unchanged even if its ctime differs.
    pub ignore_ctime: bool,
    /// Treat a file as unchanged even if its inode number differs.
    pub ignore_inode: bool,
    /// Read every file, changed or not.
    pub force: bool,
    /// Store nothing.
    pub is_dry: bool,
    /// Number of threads that walk ahead of reading.
    pub walk_threads: usize,
    /// Description of the run for the record.
    pub about: About,
}

/// Description of a run in its record.
#[derive(Debug, Clone)]
pub struct About {
    /// Name of the machine.
    pub host: String,
    /// Name of the user.
    pub user: String,
    /// Labels for finding the snapshot.
    pub tags: Vec<String>,
    /// Version of the program.
    pub program: String,
    /// Random id of the run, which the snapshots of several machines may share.
    pub run: Option<[u8; 16]>,
    /// Returns the current time.
    pub clock: fn() -> Time,
}

/// Result of a backup.
#[derive(Debug, Clone)]
pub struct Report {
    /// The new snapshot, unless the run was dry.
    pub snapshot: Option<SnapshotId>,
    /// Snapshot with which files were compared.
    pub parent: Option<SnapshotId>,
    /// Statistics.
    pub statistics: Statistics,
    /// Entries that the parent has and the snapshot does not. `None` without a parent, or
    /// if the parent's tree is unreadable.
    pub removed: Option<Removed>,
    /// Number of source paths that could not be read.
    pub unreadable_count: u64,
    /// Number of snapshot records that the search for a parent skipped: unreadable ones, and those
    /// from the future.
    pub skipped_records: u64,
    /// Number of files, by reason, that looked special but were stored like any other file.
    pub stored_plainly: BTreeMap<&'static str, u64>,
    /// Damage found in older snapshots. The new snapshot does not use damaged chunks.
    pub damage: Option<Damage>,
    /// True if the snapshot holds only the named directories and those above them.
    pub is_empty: bool,
}

/// Numbers of entries that the parent has and the snapshot does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
}

/// Backs up directories and files.
pub fn backup(store: &Store, options: &Options) -> Result<Report> {
    let mut wanted: Vec<PathBuf> = Vec::new();
    for path in &options.paths {
        if !wanted.iter().any(|known| named(known) == named(path)) {
            wanted.push(path.clone());
        }
    }
    let (paths, excludes) = (outside(store, &wanted)?, options.excludes.clone());
    let names = paths.iter().map(|path| named(path)).collect();
    let mut backup = Backup::begin(store, options, Likeness::Paths(names))?;
    backup.paths(&Sources { paths, excludes, ..Sources::default() })?;
    backup.finish(None)
}

/// Backs up one stream as one file named `name`, which is also its path.
///
/// Reads `input` to its end, then calls `confirm`. If `confirm` fails because the input is
/// incomplete, no snapshot is created, and its error is returned.
pub fn backup_stream<E: From<Error>>(
    store: &Store,
    name: &[u8],
    input: &mut dyn Read,
    confirm: &mut dyn FnMut() -> Result<(), E>,
    options: &Options,
) -> Result<Report, E> {
    let mut backup = Backup::begin(store, options, Likeness::Paths(vec![name.to_vec()]))?;
    backup.stream(name, input).map_err(|error| match error {
        Error::Source { source, .. } => Error::Source { path: "standard input".into(), source },
        other => other,
    })?;
    confirm()?;
    Ok(backup.finish(None)?)
}

/// A source path.
struct Root {
    /// Path in the tree.
    path: Vec<u8>,
    stat: Stat,
}

/// Returns these paths without the store and paths in it, which are skipped with a warning. Fails
/// if no other path remains.
fn outside(store: &Store, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let Some(root) = store.root().and_then(device_and_inode) else { return Ok(paths.to_vec()) };
    let is_inside =
        |path: &PathBuf| path.ancestors().any(|dir| device_and_inode(dir) == Some(root));
    let (inside, outside): (Vec<PathBuf>, Vec<PathBuf>) =
        paths.iter().cloned().partition(is_inside);
    for path in inside {
        if outside.is_empty() {
            return Err(Error::SourceIsStore(path));
        }
        let text = format!("skipped {}: it is the store or inside the store", path.display());
        store.observer().event(Event::Warning(text));
    }
    Ok(outside)
}

fn device_and_inode(path: &Path) -> Option<(u64, u64)> {
    let stat = source::stat_open(source::open_dir(path).ok()?).ok()?;
    Some((stat.device, stat.inode))
}

/// The source paths of a pass.
struct Roots {
    /// Roots of walks, in tree order.
    tops: Vec<Root>,
    /// Paths below other source paths.
    named: Named,
    /// Paths whose metadata cannot be read, with the error.
    refused: Vec<(PathBuf, io::Error)>,
}

/// Looks at the source paths. Fails if none of them can be read.
fn roots(paths: &[PathBuf]) -> Result<Roots> {
    let (mut roots, mut refused): (Vec<Root>, Vec<_>) = Default::default();
    for path in paths {
        match look_at_root(path) {
            Ok(stat) => roots.push(Root { path: tree_path(path), stat }),
            Err(source) => refused.push((path.clone(), source)),
        }
    }
    if roots.is_empty()
        && let Some((path, source)) = refused.pop()
    {
        return Err(Error::Source { path, source });
    }
    roots.sort_by(|a, b| path_cmp(&a.path, &b.path));
    let mut inner = HashSet::new();
    roots.dedup_by(|later, earlier| {
        let is_inner = is_within(&later.path, &earlier.path);
        if is_inner && later.path != earlier.path {
            inner.insert(std::mem::take(&mut later.path));
        }
        is_inner
    });
    Ok(Roots { tops: roots, named: Named::new(inner), refused })
}

fn look_at_root(path: &Path) -> io::Result<Stat> {
    let top = source::open_dir(Path::new("/"))?;
    let relative = tree_path(path);
    if relative.is_empty() {
        return source::stat_open(&top);
    }
    let flags = rustix::fs::OFlags::PATH;
    source::stat_open(source::open_below(top.as_fd(), &relative, flags)?)
}

/// Returns an absolute path as a record names it: `//a/b/` is `/a/b`.
fn named(path: &Path) -> Vec<u8> {
    [b"/", &tree_path(path)[..]].concat()
}

/// Returns an absolute path as a path in a tree.
pub fn tree_path(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let parts = bytes.split(|b| *b == b'/').filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(&b'/')
}
