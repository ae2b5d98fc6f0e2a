//! Paths that went away after they were listed, and that are looked for again.
//!
//! A directory that is replaced while it is read is gone for a moment. What was listed is then not
//! found, and what takes its place was not listed.

use super::previous::is_recent;
use super::run::Counters;
use crate::entry::{Entry, EntryKind, Time, is_within};
use crate::glob::ends;
use crate::source::{Stat, split};
use crate::walk::{Above, Root, join};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of names of a directory that are noted.
const NAMES_MAX: usize = 64;
/// Error of an object that exists and is not found by its name.
pub const MISSING: &str = "it exists, but the file system does not find it when it is read";
/// Pause for an object that is being replaced.
pub const REPLACED_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of such pauses for one directory.
pub const REPLACED_PAUSES: usize = 5;
/// Maximum number of such pauses for all directories of a pass.
const PAUSES_MAX: usize = 20;
/// Maximum number of directories that are noted.
const DIRS_MAX: usize = 10_000;

/// Paths that went away, by directory in the tree.
#[derive(Debug, Default)]
pub struct Vanished(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    dirs: BTreeMap<Vec<u8>, Gone>,
    /// True if there are more of them.
    is_cut: bool,
    /// Paths of the previous snapshot that went away before the backup began.
    absent: Vec<Vec<u8>>,
}

/// What went away from a directory.
#[derive(Debug, Default)]
struct Gone {
    /// The directory when it was listed.
    dir: Option<Arc<Above>>,
    names: BTreeSet<Vec<u8>>,
    /// True if more names went away.
    is_cut: bool,
}

impl Noted {
    fn add(&mut self, path: &[u8], dir: Option<&Arc<Above>>, change: impl FnOnce(&mut Gone)) {
        if self.dirs.len() >= DIRS_MAX && !self.dirs.contains_key(path) {
            self.is_cut = true;
            return;
        }
        let gone = self.dirs.entry(path.to_vec()).or_default();
        gone.dir = gone.dir.take().or_else(|| dir.cloned());
        change(gone);
    }

    fn add_path(&mut self, path: &[u8], dir: Option<&Arc<Above>>) {
        let (parent, name) = split(path);
        self.add(parent, dir, |gone| {
            if gone.names.len() < NAMES_MAX {
                gone.names.insert(name.to_vec());
            } else {
                gone.is_cut = true;
            }
        });
    }
}

impl Vanished {
    /// Notes a path, and the directory in which it was listed.
    pub fn note(&self, path: &[u8], dir: Option<&Arc<Above>>) {
        self.0.lock().add_path(path, dir);
    }

    /// Notes that something went away from the directory at a path, which may be missed if another
    /// directory takes its place.
    pub fn note_dir(&self, path: &[u8], dir: &Arc<Above>) {
        self.0.lock().add(path, Some(dir), |_| ());
    }

    /// Returns true if something that went away is missing now. It may have moved to a directory
    /// that was listed before.
    pub fn misses_something(&self) -> bool {
        let Ok(root) = Root::of_machine() else { return false };
        let is_missing = |path: &[u8]| root.stat(path).is_err();
        let noted = self.0.lock();
        let misses = |(dir, gone): (&Vec<u8>, &Gone)| {
            let mut names = gone.names.iter();
            gone.is_cut || is_missing(dir) || names.any(|name| is_missing(&join(dir, name)))
        };
        noted.is_cut || noted.dirs.iter().any(misses)
    }

    /// Returns true if nothing went away.
    pub fn is_empty(&self) -> bool {
        self.0.lock().dirs.is_empty()
    }

    /// Returns the paths to read again: the paths that are there again, and directories in whose
    /// place another object is. These are told by their inode numbers, unless the file system
    /// `has_no_inodes` that last. Returns all of `tops` if too many paths went away.
    ///
    /// Waits first until the directories stop to change: paths that went away may be on their way
    /// back.
    pub fn found_again(&self, tops: &[Vec<u8>], has_no_inodes: bool) -> Vec<Vec<u8>> {
        let Ok(root) = Root::of_machine() else { return Vec::new() };
        let is_there = |path: &Vec<u8>| root.stat(path).is_ok();
        let mut noted = self.0.lock();
        for path in std::mem::take(&mut noted.absent).into_iter().filter(is_there) {
            noted.add_path(&path, None);
        }
        let Noted { dirs, is_cut, .. } = &*noted;
        if *is_cut {
            return tops.to_vec();
        }
        let mut again = BTreeSet::new();
        await_quiet(&root, dirs.keys());
        for (path, gone) in dirs {
            let replaced = (!has_no_inodes).then(|| replaced(&root, path, &gone.dir)).flatten();
            if let Some(replaced) = replaced {
                again.insert(replaced);
            } else if gone.is_cut {
                again.extend(Some(path.clone()).filter(is_there));
            } else {
                again.extend(gone.names.iter().map(|name| join(path, name)).filter(is_there));
            }
        }
        without_inner(again)
    }
}

/// Notes entries of the previous snapshot that a walk does not find, although they may only be away
/// while the directory above is listed.
pub struct MissingEntries<'a> {
    vanished: &'a Vanished,
    counters: &'a Counters,
    /// Start of the backup.
    start: Time,
    machine: Option<Root>,
    /// Source path that is walked.
    top: Vec<u8>,
    /// Path at and below which missing entries are ignored, or were noted with it.
    covered: Option<Vec<u8>>,
    /// The last directory in which an entry was missing, and true if it changed since the start.
    dir: Option<(Vec<u8>, bool)>,
}

impl<'a> MissingEntries<'a> {
    pub fn new(vanished: &'a Vanished, counters: &'a Counters, start: Time) -> MissingEntries<'a> {
        let machine = Root::of_machine().ok();
        let (top, covered, dir) = Default::default();
        MissingEntries { vanished, counters, start, machine, top, covered, dir }
    }

    /// Begins a walk from this path.
    pub fn begin(&mut self, top: &[u8]) {
        (self.top, self.covered) = (top.to_vec(), None);
    }

    /// Ignores what is missing below this path.
    pub fn cover(&mut self, path: &[u8]) {
        self.covered = Some(path.to_vec());
    }

    /// Takes an entry that the walk did not find, in path order.
    pub fn note(&mut self, entry: &Entry) {
        let path = &entry.path[..];
        let is_covered = self.covered.as_ref().is_some_and(|covered| is_within(path, covered));
        let Some(root) = self.machine.as_ref().filter(|_| is_within(path, &self.top)) else {
            return;
        };
        if is_covered || path == self.top {
            return;
        }
        self.covered = Some(path.to_vec());
        if self.counters.is_unreadable(path) {
            return;
        }
        let dir = split(path).0;
        let has_changed = match &self.dir {
            Some((of, has_changed)) if of == dir => *has_changed,
            _ => root.stat(dir).is_ok_and(|stat| is_recent(stat.mtime, self.start)),
        };
        self.dir = Some((dir.to_vec(), has_changed));
        let mut noted = self.vanished.0.lock();
        if has_changed || root.stat(path).is_ok() {
            noted.add_path(path, None);
        } else if noted.absent.len() < DIRS_MAX {
            noted.absent.push(path.to_vec());
        }
    }
}

/// Waits until these directories are as they were a moment before, for a limited time.
fn await_quiet<'p>(root: &Root, dirs: impl Iterator<Item = &'p Vec<u8>> + Clone) {
    let look = || {
        let state = |path: &Vec<u8>| root.stat(path).ok().map(|stat| (stat.inode, stat.mtime));
        dirs.clone().map(state).collect::<Vec<_>>()
    };
    let mut before = look();
    for _ in 0..PAUSES_MAX {
        if before.is_empty() {
            return;
        }
        std::thread::sleep(REPLACED_PAUSE);
        let now = look();
        if now == before {
            return;
        }
        before = now;
    }
}

/// Returns the uppermost of the directories at and above a path in whose place another object is.
fn replaced(root: &Root, path: &[u8], dir: &Option<Arc<Above>>) -> Option<Vec<u8>> {
    let mut replaced = None;
    let mut dir = dir.as_deref();
    let mut above: Vec<usize> = ends(path).collect();
    while let (Some(listed), Some(end)) = (dir, above.pop()) {
        let is_another = |now: Stat| now.kind != EntryKind::Directory || now.inode != listed.inode;
        if root.stat(&path[..end]).is_ok_and(is_another) {
            replaced = Some(path[..end].to_vec());
        }
        dir = listed.above.as_deref();
    }
    replaced
}

/// Returns the paths that are not below others.
pub fn without_inner(paths: BTreeSet<Vec<u8>>) -> Vec<Vec<u8>> {
    let is_inner =
        |path: &[u8]| ends(path).any(|end| end < path.len() && paths.contains(&path[..end]));
    paths.iter().filter(|path| !is_inner(path)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tree_path;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    /// Returns the directories down to a path, as a walk finds them.
    fn listed(top: &Path, path: &Path) -> Option<Arc<Above>> {
        let above = if path == top { None } else { listed(top, path.parent().expect("a parent")) };
        let inode = fs::metadata(path).expect("is there").ino();
        Some(Arc::new(Above { inode, above }))
    }

    /// Creates `a/b` in a temporary directory, notes these names in it, and runs `change`. Returns
    /// the paths to read again, relative to that directory.
    fn found_again(names: &[&str], has_no_inodes: bool, change: fn(&Path)) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path().canonicalize().expect("is there");
        let inner = top.join("a/b");
        fs::create_dir_all(&inner).expect("makes");
        let above = listed(&top, &inner);
        let vanished = Vanished::default();
        names.iter().for_each(|name| vanished.note(&tree_path(&inner.join(name)), above.as_ref()));
        change(&top);
        let tops = [tree_path(&top)];
        let again = vanished.found_again(&tops, has_no_inodes).into_iter();
        let relative =
            |path: Vec<u8>| String::from_utf8(path[tops[0].len()..].to_vec()).expect("UTF-8");
        again.map(relative).collect()
    }

    #[test]
    fn what_a_walk_misses_is_looked_for_until_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path().canonicalize().expect("is there");
        fs::create_dir(top.join("a")).expect("makes");
        let entry = |path: &str, kind| Entry::new(tree_path(&top.join(path)), kind, 0o700);
        let missed = |start: i64, covered: Option<&str>| {
            let (vanished, counters) = (Vanished::default(), Counters::default());
            let start = Time { seconds: start, nanoseconds: 0 };
            let mut missing = MissingEntries::new(&vanished, &counters, start);
            missing.begin(&tree_path(&top));
            covered.iter().for_each(|path| missing.cover(&tree_path(&top.join(path))));
            missing.note(&Entry::new(b"elsewhere".to_vec(), EntryKind::File, 0o600));
            missing.note(&entry("a/b", EntryKind::Directory));
            missing.note(&entry("a/b/c", EntryKind::File));
            drop(missing);
            vanished
        };
        let (long_ago, never) = (0, i64::from(u32::MAX) * 2);
        let again = |vanished: &Vanished| vanished.found_again(&[], false);
        for start in [long_ago, never] {
            let vanished = missed(start, None);
            assert_eq!(vanished.misses_something(), start == long_ago);
            fs::create_dir(top.join("a/b")).expect("comes back");
            assert_eq!(again(&vanished), [tree_path(&top.join("a/b"))], "{start}");
            assert!(!vanished.misses_something());
            assert!(again(&missed(start, Some("a"))).is_empty());
            fs::remove_dir(top.join("a/b")).expect("goes");
            assert!(again(&vanished).is_empty());
        }
    }

    fn write(path: std::path::PathBuf) {
        fs::write(path, "").expect("writes");
    }

    fn replace(old: std::path::PathBuf, new: std::path::PathBuf) {
        fs::create_dir_all(new.join("b")).expect("makes");
        fs::remove_dir_all(&old).expect("removes");
        fs::rename(new, old).expect("renames");
    }

    #[test]
    fn only_what_is_there_again_is_read_again() {
        assert!(found_again(&["x", "y"], false, |_| ()).is_empty());
        assert_eq!(found_again(&["x", "y"], false, |top| write(top.join("a/b/y"))), ["/a/b/y"]);
        let gone = |top: &Path| fs::remove_dir_all(top.join("a")).expect("removes");
        assert!(found_again(&["x"], false, gone).is_empty());
    }

    #[test]
    fn the_uppermost_replaced_directory_is_read_again() {
        let inner = |top: &Path| replace(top.join("a/b"), top.join("new"));
        assert_eq!(found_again(&["x"], false, inner), ["/a/b"]);
        let outer = |top: &Path| replace(top.join("a"), top.join("new"));
        assert_eq!(found_again(&["x"], false, outer), ["/a"]);
        assert!(found_again(&["x"], true, outer).is_empty());
    }

    #[test]
    fn memory_for_any_number_of_paths_is_bounded() {
        let names: Vec<String> = (0..2 * NAMES_MAX).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(found_again(&names, false, |_| ()), ["/a/b"]);
        let vanished = Vanished::default();
        for n in 0..2 * DIRS_MAX {
            vanished.note(format!("{n}/x").as_bytes(), None);
        }
        assert_eq!(vanished.0.lock().dirs.len(), DIRS_MAX);
        assert_eq!(vanished.found_again(&[b"top".to_vec()], false), [b"top".to_vec()]);
    }
}
