//! Windows: consecutive entries in path order that are processed together.

use super::output::Output;
use super::passages::note_kept;
use super::runs::Runs;
use super::{Restore, join, relative};
use crate::entry::{Content, Displayed, Entry, EntryKind, LinkKey, Owner, is_within, path_cmp};
use crate::error::Result;
use crate::observe::Event;
use crate::owner_map::{OwnerAndMode, acl_lines};
use crate::recipe::Extent;
use crate::source::split;
use crate::target::{MARK, Made, Metadata, Refused};
use rayon::prelude::*;
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Maximum number of entries in a window.
const WINDOW_ENTRIES: usize = 8192;
/// Approximate limit of memory for the entries of a window, in bytes.
const WINDOW_BYTES: usize = 32 << 20;
/// Maximum number of files in a window with several runs, because all may be open at once.
const WINDOW_OPEN_FILES: usize = 400;

/// A directory of the tree.
pub(super) struct Dir {
    entry: Entry,
    /// Path in the target.
    path: Vec<u8>,
    /// True if its entry is lost: an existing directory keeps its metadata.
    is_lost: bool,
    /// True if this restore created it, so that it was empty. Known once it was created.
    is_fresh: Arc<AtomicBool>,
}

/// Entries that are processed together.
#[derive(Default)]
pub(super) struct EntryWindow {
    pub(super) entries: usize,
    /// Approximate memory of the entries in bytes.
    pub(super) bytes: usize,
    /// Directories to create.
    pub(super) dirs: Vec<(Vec<u8>, Arc<AtomicBool>)>,
    /// Directories that will receive nothing more.
    pub(super) done_dirs: Vec<Dir>,
    pub(super) files: Vec<Arc<Output>>,
    pub(super) runs: Runs,
    /// Number of files with several runs.
    pub(super) open_files: usize,
    pub(super) others: Vec<(Entry, Vec<u8>)>,
    pub(super) links: Vec<OtherName>,
}

/// A further name of an object restored before.
pub(super) struct OtherName {
    entry: Entry,
    /// Path of the first name.
    first: Vec<u8>,
    path: Vec<u8>,
    is_fresh: Arc<AtomicBool>,
}

impl Restore<'_> {
    /// Adds the next entry of the tree to the window.
    pub(super) fn take(&mut self, mut entry: Entry) -> Result<()> {
        let before = OwnerAndMode::of(&entry);
        let is_recorded = self.owner_record.is_some();
        let acls = if is_recorded { acl_lines(&entry.xattrs) } else { Vec::new() };
        self.owners.apply(&mut entry);
        if let Some(record) = &mut self.owner_record {
            let path = relative(&entry.path, &self.prefix);
            record.add(path, entry.kind, before, OwnerAndMode::of(&entry), &acls)?;
        }
        if entry.path == self.prefix {
            self.open_top(entry);
            return Ok(());
        }
        let path = relative(&entry.path, &self.prefix).to_vec();
        self.leave_dirs(&path);
        if self.store_place.as_ref() == Some(&path) {
            // The store itself, which holds nothing of the snapshot.
            return Ok(());
        }
        if self.is_blocked(&entry, &path) {
            return Ok(());
        }
        let Some(is_fresh) = self.enter_parent(&path) else {
            self.failed(&path, "its parent in the snapshot is not a directory");
            return Ok(());
        };
        self.similar_names.take(&entry.path);
        self.alternates.note(&entry, self.store);
        self.window.entries += 1;
        self.window.bytes += weight(&entry);
        if entry.kind == EntryKind::Directory {
            self.open_dir(entry, path, false);
        } else if let Some(first) = self.linked(&entry, &path) {
            self.window.links.push(OtherName { entry, first, path, is_fresh });
        } else if entry.kind == EntryKind::File {
            self.open_file(entry, path, is_fresh)?;
        } else {
            self.window.others.push((entry, path));
        }
        let window = &self.window;
        if window.entries >= WINDOW_ENTRIES
            || window.bytes >= WINDOW_BYTES
            || window.open_files >= WINDOW_OPEN_FILES
            || window.runs.are_many()
        {
            self.flush(false)?;
        }
        Ok(())
    }

    /// Handles the directory whose content is restored: it is the target itself.
    fn open_top(&mut self, entry: Entry) {
        if entry.kind != EntryKind::Directory {
            return;
        }
        if self.top.gets_metadata {
            let is_fresh = Arc::new(AtomicBool::new(self.top.is_empty));
            self.open_dirs.push(Dir { entry, path: Vec::new(), is_lost: false, is_fresh });
        } else {
            note_kept(self.store.observer(), &self.root, &entry, &self.top.stat);
        }
    }

    /// Closes directories that do not contain `path`.
    fn leave_dirs(&mut self, path: &[u8]) {
        while self.open_dirs.last().is_some_and(|dir| !is_within(path, &dir.path)) {
            self.window.done_dirs.extend(self.open_dirs.pop());
        }
    }

    /// Returns the freshness flag of the parent of `path`. Creates directories whose entries are
    /// lost. Returns `None` if another object is in their place.
    fn enter_parent(&mut self, path: &[u8]) -> Option<Arc<AtomicBool>> {
        let parent = split(path).0;
        if let Some(dir) = self.open_dirs.last()
            && dir.path == parent
        {
            return Some(Arc::clone(&dir.is_fresh));
        }
        if parent.is_empty() {
            return Some(Arc::new(AtomicBool::new(self.top.is_empty)));
        }
        let is_taken = |taken: &[u8]| is_within(path, taken);
        let files = self.window.files.iter().map(|file| &file.path);
        let others = self.window.others.iter().map(|(_, path)| path);
        if files.chain(others).any(|taken| is_taken(taken)) {
            return None;
        }
        self.enter_parent(parent)?;
        let tree_path = join(&self.prefix, parent);
        self.open_dir(nameless_dir(tree_path), parent.to_vec(), true);
        self.open_dirs.last().map(|dir| Arc::clone(&dir.is_fresh))
    }

    fn open_dir(&mut self, entry: Entry, path: Vec<u8>, is_lost: bool) {
        let is_fresh = Arc::new(AtomicBool::new(false));
        self.window.dirs.push((path.clone(), Arc::clone(&is_fresh)));
        self.open_dirs.push(Dir { entry, path, is_lost, is_fresh });
    }

    /// Returns the restored path of which this entry is another name.
    fn linked(&mut self, entry: &Entry, path: &[u8]) -> Option<Vec<u8>> {
        let (link, key) = (entry.hard_link?, entry.link_key()?);
        match self.links.get_mut(&key) {
            None => {
                self.links.insert(key, (path.to_vec(), link.names.saturating_sub(1)));
                None
            }
            Some((first, to_come)) => {
                let first = first.clone();
                *to_come = to_come.saturating_sub(1);
                if *to_come == 0 {
                    self.links.remove(&key);
                }
                Some(first)
            }
        }
    }

    /// Processes everything in the window.
    pub(super) fn flush(&mut self, is_end: bool) -> Result<()> {
        if is_end {
            self.leave_dirs_all();
        }
        let window = std::mem::take(&mut self.window);
        self.make_dirs(&window.dirs);
        self.check()?;
        window.files.par_iter().for_each(|output| self.compare(output));
        self.write(window.runs);
        window.files.par_iter().for_each(|output| self.finish_without_chunks(output));
        window.others.par_iter().for_each(|(entry, path)| self.make_other(entry, path));
        for link in window.links {
            self.make_link(link)?;
        }
        // Removes unfinished files before their directories get modes that forbid it.
        drop(window.files);
        if is_end
            && self.top.gets_metadata
            && let Err(error) = self.target.unmark(b"")
        {
            self.not_deleted(MARK.as_bytes(), &error);
        }
        self.finish_dirs(window.done_dirs);
        self.check()
    }

    fn make_other(&self, entry: &Entry, path: &[u8]) {
        let made = self.target.make_other(path, entry, &Metadata::of(entry));
        if made.is_err() {
            self.miss(entry);
        }
        match made {
            // Some file systems have no links, and some containers may not make devices.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                self.failed(path, self.reason(path, &error));
            }
            made => self.count_made(path, made, &self.counts.others),
        }
    }

    /// Makes another name of a file, or a copy if that fails.
    fn make_link(&mut self, link: OtherName) -> Result<()> {
        let OtherName { entry, first, path, is_fresh } = link;
        let key = entry.link_key();
        let mut is_unplaced = key.is_some_and(|key| self.unplaced_links.lock().remove(&key));
        if self.is_lost(&entry) {
            // Its own extents may be whole, or the target may have its content.
            key.map(|key| self.lost_links.lock().remove(&key));
            is_unplaced = true;
        }
        let copy = key.and_then(|key| self.copies.get(&key)).cloned();
        let names = entry.hard_link.map_or(1, |link| link.names);
        if let (Some(key), None, false, EntryKind::File) = (key, &copy, is_unplaced, entry.kind)
            && self.target.has_other_name(&first, &path, names)
        {
            return self.part_from_other_names(entry, key, &first, path, is_fresh);
        }
        let mut reasons = Vec::new();
        // Without a name to link to, this one gets the content.
        for first in copy.into_iter().chain((!is_unplaced).then_some(first)) {
            let error = match self.target.make_link(&first, &path) {
                Ok(()) => {
                    self.count_made(&path, Ok(Refused::default()), &self.counts.others);
                    if let Some(key) = key.filter(|_| names > 2) {
                        let linked = self.linked_names.entry(key).or_default();
                        linked.push(path);
                        if linked.len() as u64 + 1 == names {
                            self.linked_names.remove(&key);
                        }
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            if error.kind() == io::ErrorKind::DirectoryNotEmpty {
                self.failed_io(&path, &error);
                return Ok(());
            }
            // The file system may permit a copy if it forbids a link; if not, the copy reports it.
            reasons.push(error);
        }
        let copied = path.clone();
        if entry.kind == EntryKind::File {
            self.open_file(entry, path, is_fresh)?;
            self.flush(false)?;
        } else {
            self.make_other(&entry, &path);
        }
        let is_made = |key: &LinkKey| {
            !self.unplaced_links.lock().contains(key) && !self.lost_links.lock().contains(key)
        };
        if let Some(key) = key.filter(is_made) {
            reasons.iter().for_each(|error| self.note_copy(&copied, error));
            self.copies.insert(key, copied);
        }
        Ok(())
    }

    /// Writes a new file for all names of an entry. The file at its first name also has a name
    /// outside of the target, and stays as it is.
    fn part_from_other_names(
        &mut self,
        entry: Entry,
        key: LinkKey,
        first: &[u8],
        path: Vec<u8>,
        is_fresh: Arc<AtomicBool>,
    ) -> Result<()> {
        self.open_file(entry, path.clone(), is_fresh)?;
        self.flush(false)?;
        if self.lost_links.lock().contains(&key) || self.unplaced_links.lock().contains(&key) {
            return Ok(());
        }
        for earlier in self
            .linked_names
            .remove(&key)
            .unwrap_or_default()
            .iter()
            .map(Vec::as_slice)
            .chain([first])
        {
            if let Err(error) = self.target.make_link(&path, earlier) {
                self.note_copy(earlier, &error);
            }
        }
        self.copies.insert(key, path);
        Ok(())
    }

    /// Reports that a name gets a copy of the content because of this error.
    fn note_copy(&self, path: &[u8], error: &io::Error) {
        if is_link_impossible(error) {
            let shown = self.shown(path);
            let note =
                format!("{}: restored a copy instead of a hard link: {error}", shown.displayed());
            self.store.observer().event(Event::Note(note));
        } else {
            let mut refused = Refused::default();
            refused.note("a copy instead of a hard link", error);
            self.refused(path, &refused);
        }
    }

    /// Returns the error that ends the restore, if any.
    pub(super) fn check(&self) -> Result<()> {
        match self.fatal.lock().take() {
            Some(error) => Err(error),
            None => self.store.observer().progress().check(),
        }
    }

    fn leave_dirs_all(&mut self) {
        while let Some(dir) = self.open_dirs.pop() {
            self.window.done_dirs.push(dir);
        }
    }

    /// Creates directories, all of one depth in parallel.
    fn make_dirs(&self, dirs: &[(Vec<u8>, Arc<AtomicBool>)]) {
        let depth = |path: &[u8]| path.iter().filter(|b| **b == b'/').count();
        let mut by_depth: Vec<Vec<&(Vec<u8>, Arc<AtomicBool>)>> = Vec::new();
        for dir in dirs {
            let depth = depth(&dir.0);
            by_depth.resize_with(by_depth.len().max(depth + 1), Vec::new);
            by_depth[depth].push(dir);
        }
        for dirs in by_depth {
            dirs.par_iter().for_each(|(path, is_fresh)| match self.make_dir(path) {
                Ok(made) => is_fresh.store(made, Relaxed),
                Err(error) => {
                    self.failed_io(path, &error);
                    self.unmade_dirs.lock().insert(path.clone());
                }
            });
        }
    }

    /// Makes a directory. Returns true if it was not there.
    fn make_dir(&self, path: &[u8]) -> io::Result<bool> {
        if self.passages.has(&join(&self.prefix, path)) {
            return self.make_passage(path);
        }
        let made = self.target.make_dir(path)?;
        if let Made::Replacing(kind) = made {
            let (shown, kind) = (self.shown(path), kind.name());
            let note = format!("{}: replaced {kind} by a directory", shown.displayed());
            self.store.observer().event(Event::Note(note));
        }
        Ok(made != Made::Found)
    }

    /// Sets metadata of directories, innermost first, because a directory's mode may forbid
    /// entering it.
    fn finish_dirs(&self, mut dirs: Vec<Dir>) {
        dirs.retain(|dir| !self.unmade_dirs.lock().contains(&dir.path));
        dirs.sort_by(|a, b| path_cmp(&b.path, &a.path));
        let finish = |dir: &Dir| {
            let is_kept = self.is_kept(&dir.path);
            let keeps_metadata = dir.is_lost && !dir.is_fresh.load(Relaxed) || is_kept;
            let done = if keeps_metadata {
                Ok(Refused::default())
            } else {
                self.unmark_passage(&dir.path);
                self.target.finish_dir(&dir.path, &Metadata::of(&dir.entry))
            };
            if is_kept && !dir.is_lost {
                self.note_kept(&dir.path, &dir.entry);
            }
            self.count_made(&dir.path, done, &self.counts.dirs);
        };
        if rustix::process::geteuid().is_root() {
            dirs.par_iter().for_each(finish);
        } else {
            dirs.iter().for_each(finish);
        }
    }
}

/// Returns true if the file system does not support hard links here, or has reached their limit.
fn is_link_impossible(error: &io::Error) -> bool {
    [Errno::PERM, Errno::MLINK, Errno::XDEV, Errno::NOTSUP, Errno::NOSYS, Errno::NOENT]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Returns the approximate bytes of memory that a waiting entry takes.
fn weight(entry: &Entry) -> usize {
    let content = match &entry.content {
        Content::Empty => 0,
        Content::Inline(bytes) => bytes.len(),
        // Once in the entry, once in the recipe that is iterated.
        Content::Recipe(recipe) => 2 * recipe.extents.len() * size_of::<Extent>(),
    };
    // Many short attributes take more memory for their vectors than for their bytes.
    let place = size_of::<(Vec<u8>, Vec<u8>)>();
    let xattrs = entry.xattrs.iter().map(|(name, value)| place + name.len() + value.len());
    let names = entry.acl_names.as_ref().map_or(0, |names| names.bytes());
    2 * entry.path.len() + entry.target.len() + content + xattrs.sum::<usize>() + names
}

/// Returns a substitute for a directory whose entry is lost.
fn nameless_dir(path: Vec<u8>) -> Entry {
    let owner = Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        user: None,
        group: None,
    };
    Entry { owner: Arc::new(owner), ..Entry::new(path, EntryKind::Directory, 0o700) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_of_an_entry_includes_its_attributes() {
        let entry = nameless_dir(b"a".to_vec());
        let light = weight(&entry);
        let xattrs = vec![(b"a".to_vec(), Vec::new()); 1000];
        let heavy = weight(&Entry { xattrs, ..entry });
        assert!(heavy - light >= 1000 * size_of::<(Vec<u8>, Vec<u8>)>(), "{heavy}");
    }
}
