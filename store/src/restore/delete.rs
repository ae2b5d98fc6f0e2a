//! Removes paths of the target that the snapshot lacks.

use super::git_caches::GitCaches;
use super::similar_names::are_similar;
use super::{Options, Restore, join, relative, selected};
use crate::entry::{Displayed, Entry, EntryKind, is_within, path_cmp};
use crate::error::{Error, Result};
use crate::git;
use crate::glob::ends;
use crate::id::ChunkId;
use crate::observe::{Event, Reason};
use crate::source::{self, Stat, split};
use crate::store::Store;
use crate::target::{self, Metadata, is_absent};
use crate::tree::{Lookup, TreeReader};
use crate::walk::{Excluded, Found, Root, Rules, Step, Walk, is_cache, is_open_git_dir};
use rustix::fs::OFlags;
use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Paths of the target that the snapshot lacks.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// Paths to remove, in path order. A directory includes everything in it.
    pub(super) paths: Vec<Vec<u8>>,
    /// Directories, as paths of the tree, in place of which the snapshot has another type, and
    /// whose whole content will be removed.
    giving_way: HashSet<Vec<u8>>,
    /// Mount points, as paths of the tree, below which the snapshot has entries. They are not searched.
    pub(super) mounts: Vec<Vec<u8>>,
    /// Unreadable paths, below which extra paths cannot be found, with the reason.
    pub(super) unseen: Vec<(Vec<u8>, Reason)>,
    /// True if a part of the snapshot's tree could not be read. It may hold any path, so that there
    /// are no paths to remove.
    pub(super) is_lost: bool,
}

/// Reason why extra paths stay.
pub(super) const LOST: &str =
    "nothing was deleted, because parts of the snapshot's tree cannot be read";

impl Extra {
    /// Warns of mount points with newer files that may stay.
    pub(super) fn warn_of_mounts(&self, store: &Store, shown: &Path, prefix: &[u8]) {
        for path in &self.mounts {
            let place = shown.join(OsStr::from_bytes(relative(path, prefix)));
            let text = format!(
                "{} is mounted separately, so --delete keeps newer files there; to remove them, \
                 restore SNAPSHOT:/{} into it",
                place.displayed(),
                crate::entry::display_path(path)
            );
            store.observer().event(Event::Warning(text));
        }
    }

    /// Returns true if a directory, as a path of the tree, will be empty and can be replaced.
    pub(super) fn gives_way(&self, path: &[u8]) -> bool {
        self.giving_way.contains(path)
    }
}

impl Restore<'_> {
    /// Finds extra paths. Removes those that block entries and returns the others.
    pub(super) fn clear_the_way(
        &mut self,
        root: &ChunkId,
        options: &Options,
    ) -> Result<Vec<Vec<u8>>> {
        let (shown, dir) = (&self.root, self.target.dir());
        let search = || extra(shown, dir, self.store, root, &self.prefix, options);
        let mut found = search()?;
        // Directories of this user that deny access are made accessible for a time.
        let is_searched = |path: &[u8]| {
            let path = join(&self.prefix, path);
            !options.keep.covers(&path) && !options.exclude.covers(&path)
        };
        let open =
            |(path, _): &(Vec<u8>, Reason)| self.target.make_accessible_below(path, &is_searched);
        if found.unseen.iter().filter(|unseen| open(unseen)).count() > 0 {
            found = search()?;
        }
        found.warn_of_mounts(self.store, shown, &self.prefix);
        let Extra { paths, giving_way, unseen, is_lost, .. } = found;
        self.lost |= is_lost;
        for (path, reason) in unseen {
            self.count_not_deleted(&path, reason);
        }
        let is_in_the_way = |path: &Vec<u8>| {
            let path = join(&self.prefix, path);
            giving_way.iter().any(|dir| is_within(&path, dir))
        };
        let (now, later): (Vec<_>, Vec<_>) = paths.into_iter().partition(is_in_the_way);
        self.remove_all(now);
        Ok(later)
    }

    fn remove_all(&self, paths: Vec<Vec<u8>>) {
        for path in paths {
            match self.target.remove(&path) {
                Ok(count) => {
                    self.counts.deleted.fetch_add(count, Relaxed);
                    self.git_caches.lock().removed(&join(&self.prefix, &path));
                }
                // It was removed together with a replaced object.
                Err(error) if is_absent(&error) => {}
                Err(error) => self.not_deleted(&path, &error),
            }
        }
    }

    pub(super) fn not_deleted(&self, path: &[u8], error: &io::Error) {
        self.count_not_deleted(path, self.reason(path, error));
    }

    fn count_not_deleted(&self, path: &[u8], reason: impl Into<Reason>) {
        self.counts.not_deleted.fetch_add(1, Relaxed);
        let (path, reason) = (self.shown(path), reason.into());
        self.store.observer().event(Event::NotDeleted { path, reason });
    }

    /// Notes that a file is about to take the place of another one.
    pub(super) fn note_replaced(&self, path: &[u8]) {
        let tree_path = join(&self.prefix, path);
        if GitCaches::depend_on(&tree_path) && self.target.kind_of(path).is_some() {
            self.git_caches.lock().replaced(&tree_path);
        }
    }

    /// Removes extra paths and stale git caches.
    pub(super) fn delete(
        &mut self,
        extra: Vec<Vec<u8>>,
        root: &ChunkId,
        from: &[u8],
        options: &Options,
    ) -> Result<()> {
        if self.lost && options.delete {
            self.count_not_deleted(b"", LOST);
            return Ok(());
        }
        self.remove_all(extra);
        let caches = std::mem::take(&mut *self.git_caches.lock());
        let dir = self.target.dir();
        self.remove_all(caches.stale(dir, self.store, root, &self.prefix, options));
        if self.counts.deleted.load(Relaxed) == 0 {
            return Ok(());
        }
        // Removal changed the times of directories that were right before. Refused metadata was
        // reported and counted before.
        let denied = [&self.target.owner_denied, &self.target.xattr_denied];
        let counts = denied.map(|count| count.load(Relaxed));
        let dirs = selected(root, from, options, self.store).flatten();
        for mut entry in dirs.filter(|entry| entry.kind == EntryKind::Directory) {
            self.owners.apply_uncounted(&mut entry);
            let path = relative(&entry.path, &self.prefix).to_vec();
            if !path.is_empty() && !self.is_kept(&path) {
                let _ = self.target.finish_dir(&path, &Metadata::of(&entry)).map(drop);
            }
        }
        denied.into_iter().zip(counts).for_each(|(count, before)| count.store(before, Relaxed));
        Ok(())
    }
}

/// Returns paths below the target that the selected part of the tree lacks. A directory includes
/// everything in it.
///
/// Looks only below the paths that were backed up. Content that a backup never reads is not extra,
/// and neither is a directory that holds some of it.
pub(super) fn extra(
    shown: &Path,
    dir: BorrowedFd<'_>,
    store: &Store,
    root: &ChunkId,
    prefix: &[u8],
    options: &Options,
) -> Result<Extra> {
    let failed = |source| Error::Target { path: shown.to_owned(), source };
    let mut all = Extra::default();
    for top in tops(prefix, options) {
        let is_mounted = is_mounted_at(dir, relative(&top, prefix));
        let dir = match source::open_dir_below(dir, relative(&top, prefix)) {
            Ok(dir) => dir,
            // The path is missing, or not a directory.
            Err(error) if is_absent(&error) => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                all.unseen.push((relative(&top, prefix).to_vec(), not_searched(&error)));
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        let stat = source::stat_open(&dir).map_err(failed)?;
        let found = extra_below(Root { tree_path: top.clone(), dir }, stat, store, root, options)?;
        all.paths.extend(found.paths.iter().map(|path| relative(path, prefix).to_vec()));
        let giving_way = found.giving_way.into_iter();
        all.giving_way.extend(giving_way.filter(|path| *path != top || !is_mounted));
        all.mounts.extend(found.mounts);
        all.is_lost |= found.is_lost;
        let unseen = found.unseen.into_iter();
        all.unseen.extend(unseen.map(|(path, reason)| (relative(&path, prefix).to_vec(), reason)));
    }
    Ok(all)
}

/// Returns true if something is mounted at a path below a directory, or if that is unknown.
fn is_mounted_at(dir: BorrowedFd<'_>, path: &[u8]) -> bool {
    let (parent, name) = split(path);
    let parent = source::open_below(dir, parent, OFlags::PATH);
    name.is_empty() || !parent.is_ok_and(|dir| !source::is_mount_root(dir.as_fd(), name))
}

/// Returns the directories to search, none of them inside another.
fn tops(prefix: &[u8], options: &Options) -> Vec<Vec<u8>> {
    if options.sources.iter().any(|dir| is_within(prefix, dir)) {
        return vec![prefix.to_vec()];
    }
    let mut tops: Vec<Vec<u8>> =
        options.sources.iter().filter(|dir| is_within(dir, prefix)).cloned().collect();
    tops.sort_by(|a, b| path_cmp(a, b));
    tops.dedup_by(|inner, outer| is_within(inner, outer));
    tops
}

fn extra_below(
    open_root: Root,
    stat: Stat,
    store: &Store,
    root: &ChunkId,
    options: &Options,
) -> Result<Extra> {
    let open_root = Arc::new(open_root);
    let rules = Rules {
        exclude: Excluded { other_file_systems: true, ..Excluded::default() },
        scan_git_dirs: false,
        git_dirs: false,
        has_named_roots: true,
    };
    let is_lost = Cell::new(false);
    let mut tree = TreeReader::within(root, &open_root.tree_path, store)
        .filter_map(|item| item.map_err(|_| is_lost.set(true)).ok())
        .peekable();
    let caches = options.keep.has_caches();
    let mut skipped = SkippedHere::new(Arc::clone(&open_root), &stat, store, root, caches)?;
    let (mut extra, mut kept) = (Vec::new(), HashSet::new());
    let mut in_the_way: Vec<Vec<u8>> = Vec::new();
    let mut unseen = Vec::new();
    let mut similar = Similar { open_root: &open_root, root, store, dir: None, known: None };
    for step in Walk::new(Arc::clone(&open_root), stat, rules, 1) {
        let found = match step {
            Step::Found(found) | Step::GitDir(found, _) => found,
            Step::Failed(path, error) => {
                // Nothing is removed below a skipped path.
                let is_searched = !options.keep.covers(&path) && !options.exclude.covers(&path);
                if is_searched {
                    unseen.push((path.clone(), not_searched(&error)));
                }
                keep(&path, &mut kept);
                continue;
            }
            Step::Vanished(path, _) => {
                keep(&path, &mut kept);
                continue;
            }
        };
        while tree.next_if(|entry| path_cmp(&entry.path, &found.path) == Ordering::Less).is_some() {
        }
        let known = tree.peek().filter(|entry| entry.path == found.path).map(|entry| entry.kind);
        let is_top = found.path == open_root.tree_path;
        let kind = found.stat.kind;
        let is_other_type = known.is_some_and(|known| known != kind);
        let gives_way = in_the_way.iter().any(|dir| is_within(&found.path, dir));
        let is_known = !gives_way && !is_other_type && (is_top || known.is_some());
        let is_skipped = skipped.has(&found, is_known, gives_way);
        let path = found.path;
        if is_top {
            // The path itself may have become a file.
            in_the_way.extend(known.filter(|known| *known != kind).map(|_| path));
            continue;
        }
        if kind == EntryKind::Directory && is_other_type {
            if is_skipped {
                keep(&path, &mut kept);
            } else if options.selects(&path) {
                in_the_way.push(path.clone());
            }
        }
        let may_go = !is_skipped
            && !options.exclude.covers(&path)
            && !options.keep.covers(&path)
            && (options.include.is_empty() || options.include.covers(&path));
        match (known.is_some(), may_go) {
            (true, _) => {}
            (false, true) if similar.is_known(&path) => {}
            (false, true) => extra.push(path),
            (false, false) => keep(&path, &mut kept),
        }
    }
    tree.for_each(drop);
    let has_entries = |path: &Vec<u8>| TreeReader::within(root, path, store).nth(1).is_some();
    let mut mounts = std::mem::take(&mut skipped.mounts);
    mounts.retain(|path| options.selects(path) && !options.keep.covers(path) && has_entries(path));
    if is_lost.get() {
        return Ok(Extra { is_lost: true, ..Extra::default() });
    }
    extra.retain(|path| !kept.contains(path));
    extra.dedup_by(|inner, outer| is_within(inner, outer));
    in_the_way.retain(|dir| !kept.contains(dir));
    let giving_way = in_the_way.into_iter().collect();
    Ok(Extra { paths: extra, giving_way, mounts, unseen, is_lost: false })
}

/// Recognises objects of names that the tree has in a similar form, on a file system that does not
/// distinguish them.
struct Similar<'a> {
    open_root: &'a Root,
    root: &'a ChunkId,
    store: &'a Store,
    /// The last directory, and true if it does not distinguish similar names.
    dir: Option<(Vec<u8>, bool)>,
    /// The last recognised path. Nothing below it is removed.
    known: Option<Vec<u8>>,
}

impl Similar<'_> {
    /// Returns true if the object at a path, which the tree lacks, is that of a path in the tree.
    fn is_known(&mut self, path: &[u8]) -> bool {
        let (parent, name) = split(path);
        if self.known.as_ref().is_some_and(|known| is_within(path, known)) {
            return true;
        }
        if self.dir.as_ref().is_none_or(|(dir, _)| dir != parent) {
            self.dir = Some((parent.to_vec(), self.merges(parent, name)));
        }
        let merges = self.dir.as_ref().is_some_and(|(_, merges)| *merges);
        // A lost entry may be the one.
        let is_this = |entry: &Entry| are_similar(split(&entry.path).1, name);
        let mut known = crate::tree::children(self.root, parent, self.store);
        if merges && known.any(|entry| entry.map_or(true, |entry| is_this(&entry))) {
            self.known = Some(path.to_vec());
        }
        self.known.as_deref() == Some(path)
    }

    /// Returns true if a name in a directory also leads to its object in the other case, without
    /// being listed so.
    fn merges(&self, parent: &[u8], name: &[u8]) -> bool {
        let switch = |byte: &u8| match byte.is_ascii_lowercase() {
            true => byte.to_ascii_uppercase(),
            false => byte.to_ascii_lowercase(),
        };
        let switched: Vec<u8> = name.iter().map(switch).collect();
        let dir = self.open_root.relative(parent);
        let Ok(dir) = source::open_dir_below(self.open_root.dir.as_fd(), dir) else { return false };
        let is_listed = |names: Vec<(Box<[u8]>, u64)>| names.iter().any(|(n, _)| **n == switched);
        switched != name
            && source::stat_at(dir.as_fd(), &switched).is_ok()
            && source::names(dir.as_fd()).is_ok_and(|names| !is_listed(names))
    }
}

fn not_searched(error: &io::Error) -> Reason {
    let text = format!("cannot search it for paths to delete: {error}");
    Reason { text, cause: error.into() }
}

/// Records that a path and the directories above it stay.
fn keep(path: &[u8], kept: &mut HashSet<Vec<u8>>) {
    let mut path = path;
    while kept.insert(path.to_vec()) {
        let Some(at) = path.iter().rposition(|b| *b == b'/') else { return };
        path = &path[..at];
    }
}

/// Recognises content that a backup skips by itself. Paths must come in path order.
struct SkippedHere<'a> {
    backing: &'a Store,
    /// Root of the snapshot's tree.
    root: ChunkId,
    open_root: Arc<Root>,
    device: u64,
    /// Device and inode of the store's directories, and of a link that leads to it.
    store: Vec<(u64, u64)>,
    /// True if the backup skipped the content of directories marked as caches.
    caches: bool,
    /// The store, a mount point or a cache, whose content is not inspected.
    unseen: Option<Vec<u8>>,
    /// Mount points at directories that the snapshot has.
    mounts: Vec<Vec<u8>>,
    /// Git directories that contain the current path. The second value is true if the snapshot has
    /// a git directory there, as far as that is known.
    git_dirs: Vec<(Vec<u8>, Option<bool>)>,
}

impl<'a> SkippedHere<'a> {
    fn new(
        open_root: Arc<Root>,
        top: &Stat,
        backing: &'a Store,
        root: &ChunkId,
        caches: bool,
    ) -> Result<SkippedHere<'a>> {
        let mut store = backing.directories().to_vec();
        let link = backing
            .root()
            .map(|root| source::stat_at(rustix::fs::CWD, root.as_os_str().as_bytes()));
        store.extend(link.and_then(io::Result::ok).map(|link| (link.device, link.inode)));
        Ok(SkippedHere {
            backing,
            root: *root,
            open_root,
            device: top.device,
            store,
            caches,
            unseen: None,
            mounts: Vec::new(),
            git_dirs: Vec::new(),
        })
    }

    /// Returns true if a backup skips the object. `is_known` is true if the snapshot has the
    /// path. Caches of a git directory that `gives_way` to a file have no further use.
    fn has(&mut self, found: &Found, is_known: bool, gives_way: bool) -> bool {
        let (path, stat) = (&found.path, &found.stat);
        if self.is_being_written(path) {
            return true;
        }
        if self.unseen.as_ref().is_some_and(|unseen| is_within(path, unseen)) {
            return true;
        }
        let is_dir = stat.kind == EntryKind::Directory;
        let is_store = self.store.contains(&(stat.device, stat.inode));
        // On layered file systems, the device of a file is that of its layer.
        let is_elsewhere = is_dir && stat.device != self.device;
        if is_store || is_elsewhere || (is_dir || !is_known) && self.is_mount_root(path) {
            self.unseen = Some(path.clone());
            if is_dir && is_known && !is_store {
                self.mounts.push(path.clone());
            }
            return true;
        }
        self.git_dirs.retain(|(dir, _)| is_within(path, dir));
        let is_skipped = !gives_way && self.is_remade(path);
        if is_dir {
            self.enter(path, is_known);
        }
        is_skipped || self.unseen.as_ref() == Some(path)
    }

    /// Returns true if backups may skip a path because it is in a git directory that the
    /// snapshot has, and git recreates it. A newer git directory has no such paths.
    fn is_remade(&mut self, path: &[u8]) -> bool {
        let (store, root) = (self.backing, &self.root);
        self.git_dirs.iter_mut().any(|(dir, was_one)| {
            is_remade(relative(path, dir))
                && *was_one.get_or_insert_with(|| was_git_dir(store, root, dir))
        })
    }

    fn is_mount_root(&self, path: &[u8]) -> bool {
        let (parent, name) = split(self.open_root.relative(path));
        !name.is_empty()
            && source::open_below(self.open_root.dir.as_fd(), parent, OFlags::PATH)
                .is_ok_and(|dir| source::is_mount_root(dir.as_fd(), name))
    }

    /// Returns true if another restore is writing this very file.
    fn is_being_written(&self, path: &[u8]) -> bool {
        let (parent, name) = split(self.open_root.relative(path));
        if parent.is_empty() && target::is_mark(name) {
            return true;
        }
        target::is_unfinished(name)
            && source::open_dir_below(self.open_root.dir.as_fd(), parent)
                .is_ok_and(|dir| target::is_being_written(dir.as_fd(), name))
    }

    fn enter(&mut self, path: &[u8], is_known: bool) {
        let Ok(dir) =
            source::open_dir_below(self.open_root.dir.as_fd(), self.open_root.relative(path))
        else {
            return;
        };
        if self.caches && is_cache(dir.as_fd()) {
            self.unseen = Some(path.to_vec());
        }
        // The backup skipped nothing of a git directory that is newer than it.
        if is_known && is_open_git_dir(dir.as_fd()) {
            self.git_dirs.push((path.to_vec(), None));
        }
    }
}

/// Returns true if a tree has a git directory at this path, or may have one.
fn was_git_dir(store: &Store, root: &ChunkId, path: &[u8]) -> bool {
    let mut tree = Lookup::new(root, store);
    let mut has = |name: &[u8], kinds: &[EntryKind]| match tree.at(&join(path, name)) {
        Ok(entry) => entry.is_some_and(|entry| kinds.contains(&entry.kind)),
        Err(_) => true,
    };
    // In path order.
    has(b"HEAD", &[EntryKind::File, EntryKind::Symlink])
        && has(b"objects", &[EntryKind::Directory])
        && has(b"refs", &[EntryKind::Directory])
}

/// Returns true if backups may skip a path of a git directory because git recreates it.
fn is_remade(path: &[u8]) -> bool {
    // A push keeps its objects in a directory with such a name until it is accepted.
    ends(path).any(|end| git::is_transient(&path[..end]) || git::is_cache(&path[..end]))
}
