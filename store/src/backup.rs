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
mod entry_runs;
mod failure;
mod gate;
mod git_dir;
mod guard;
mod ingest;
mod lenders;
mod merge;
mod named_objects;
mod passes;
mod pipeline;
mod previous;
mod roots;
mod run;
mod survey;
mod vanished;

pub use guard::{Guard, MaxLoss, WrongShare};
pub use passes::{Backup, Likeness, Sources};

use crate::damage::Damage;
use crate::entry::{Displayed, Time};
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::observe::Event;
use crate::snapshot::{Emptied, Statistics};
use crate::source;
use crate::store::Store;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Options of a backup.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// Globs of skipped paths, in every pass.
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
    /// Losses that are accepted.
    pub guard: Guard,
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
    /// Damage found in older snapshots. The new snapshot does not use damaged chunks, except those
    /// of `lost` entries.
    pub damage: Option<Damage>,
    /// True if the snapshot holds only the named directories and those above them.
    pub is_empty: bool,
    /// Sources that lost most of their files, or their mount, since the last good snapshot. With any
    /// of them, the snapshot is marked.
    pub emptied: Vec<Emptied>,
}

/// Numbers of entries that the parent has and the snapshot does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
}

/// Returns these paths without the store and paths in it, which are skipped with a warning. Fails
/// if no other path remains.
fn outside(store: &Store, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let is_inside = inside_of(store);
    let (inside, outside): (Vec<PathBuf>, Vec<PathBuf>) =
        paths.iter().cloned().partition(|path| is_inside(path));
    for path in inside {
        if outside.is_empty() {
            return Err(Error::SourceIsStore(path));
        }
        let text = format!("skipped {}: it is the store or inside the store", path.displayed());
        store.observer().event(Event::Warning(text));
    }
    Ok(outside)
}

/// Returns a test whether an absolute path is the directory of the store, or inside it.
fn inside_of(store: &Store) -> impl Fn(&Path) -> bool + '_ {
    let is_in = |found| store.directories().binary_search(&found).is_ok();
    move |path| path.ancestors().filter_map(device_and_inode).any(&is_in)
}

fn device_and_inode(path: &Path) -> Option<(u64, u64)> {
    let stat = source::stat_open(source::open_dir(path).ok()?).ok()?;
    Some((stat.device, stat.inode))
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

/// Returns a tree path as a path on this machine.
fn absolute(path: &[u8]) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path))
}
