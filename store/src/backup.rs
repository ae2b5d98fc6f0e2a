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
//!
//! A backup may be made of several passes, one after the other, each over other paths; what
//! they leave is merged into one tree in the end.

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

/// What to back up and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Absolute paths without symbolic links in them.
    pub paths: Vec<PathBuf>,
    /// Globs of what to leave out.
    pub excludes: Vec<Vec<u8>>,
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
    /// What the parent has and the snapshot does not; `None` without a parent, after a dry run,
    /// and where the parent's tree cannot be read.
    pub removed: Option<Removed>,
    /// Source paths that could not be read.
    pub unreadable_count: u64,
    /// Snapshot records that were passed over when the parent was looked for: unreadable ones,
    /// and those from the future.
    pub doubtful_records: u64,
    /// Files that were not what they seem and were stored like any other, by reason.
    pub doubts: BTreeMap<&'static str, u64>,
    /// Damage of older snapshots that was met. The new one does not count on what is damaged.
    pub damage: Option<Damage>,
    /// Whether there is nothing in it but the named directories and those above them.
    pub is_empty: bool,
}

/// Numbers of entries that a snapshot no longer has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
}

/// Backs up directories and files.
pub fn backup(store: &Store, options: &Options) -> Result<Report> {
    let (paths, excludes) = (outside(store, &options.paths)?, options.excludes.clone());
    let names = paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
    let mut backup = Backup::begin(store, options, Likeness::Paths(names))?;
    backup.paths(&Sources { paths, excludes, ..Sources::default() })?;
    backup.finish(None)
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
    let mut backup = Backup::begin(store, options, Likeness::Paths(vec![name.to_vec()]))?;
    backup.stream(name, input).map_err(|error| match error {
        Error::Source { source, .. } => Error::Source { path: "standard input".into(), source },
        other => other,
    })?;
    confirm()?;
    backup.finish(None)
}

/// A source path.
struct Root {
    /// Path in the tree.
    path: Vec<u8>,
    stat: Stat,
}

/// These paths without the store and what lies in it, which is left out with a warning. Fails
/// if nothing else is left.
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
        let text = format!("left out: {} is the store itself or lies in it", path.display());
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
    /// Where walks begin, in tree order.
    tops: Vec<Root>,
    /// Those that lie below others.
    named: Named,
    /// Those that cannot be looked at, and why.
    refused: Vec<(PathBuf, io::Error)>,
}

/// Looks at the source paths; fails if none of them can be looked at.
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

/// An absolute path as a path in a tree.
pub fn tree_path(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let parts = bytes.split(|b| *b == b'/').filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(&b'/')
}
