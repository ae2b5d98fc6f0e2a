//! What a backup reads again, because it changed while it was read.

use super::{Backup, Before, PassRead, Places, Replaced};
use crate::backup::absolute;
use crate::backup::lenders::{self, Borrowed};
use crate::backup::previous::is_recent;
use crate::backup::roots::{Roots, Source};
use crate::backup::vanished::{MISSING, without_inner};
use crate::entry::{Entry, EntryKind, is_within};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::observe::Event;
use crate::source::Stat;
use crate::store::Store;
use crate::text::Displayed;
use crate::tree::{Lookup, TreeReader};
use crate::walk::{self, Excluded, Root};
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

/// Maximum length of a chain of git directories that borrow from each other.
const LENDERS_DEPTH_MAX: usize = 10;
/// Maximum number of times that paths which went away are looked for.
const LOOKS_MAX: usize = 5;
/// Maximum number of times that directories which changed are read again, because something may have
/// moved there.
const MOVED_LOOKS_MAX: usize = 2;

/// Result of another reading of some paths.
enum Again {
    /// All are gone, or a path cannot be read, which was reported.
    Nothing,
    /// The tree of the backup has the same entries.
    Same(PassRead),
    /// The tree was added to the backup.
    Changed(PassRead),
}

impl Backup<'_> {
    /// Reads paths again that went away while they were read and that are there again. Adds the git
    /// directories among them to `read`.
    pub(super) fn read_vanished(
        &mut self,
        read: &mut PassRead,
        tops: &[Source],
        exclude: &Excluded,
    ) -> Result<()> {
        if self.options.is_dry {
            return Ok(()); // nobody can compare with its tree
        }
        let all: Vec<Vec<u8>> = tops.iter().map(|top| top.path.clone()).collect();
        let mut vanished = std::mem::take(&mut read.vanished);
        for looks in 1..=LOOKS_MAX {
            let mut again = vanished.found_again(&all, self.options.ignore_inode);
            if looks <= MOVED_LOOKS_MAX && vanished.misses_something() {
                again.extend(self.changed_dirs()?);
                again = without_inner(again.into_iter().collect());
            }
            again.retain(|path| takes(tops, exclude, path));
            if again.is_empty() {
                break;
            }
            if looks == LOOKS_MAX {
                let error = io::Error::other(MISSING);
                for path in again {
                    let counters = &self.run.counters;
                    counters.report_unreadable(self.run.store.observer(), &path, &error);
                }
                break;
            }
            let dirs = again.iter().cloned().collect();
            let replaced = Replaced { dirs, but_objects: false, exclude: exclude.clone() };
            match self.read_again(again, replaced)? {
                Again::Nothing => {} // may come back
                Again::Same(of) | Again::Changed(of) => {
                    vanished = of.vanished;
                    read.borrowed.extend(of.borrowed);
                }
            }
        }
        Ok(())
    }

    /// Returns the directories outside of git directories that changed since the backup began,
    /// without those below others.
    fn changed_dirs(&mut self) -> Result<Vec<Vec<u8>>> {
        let root = self.tree()?;
        let Ok(machine) = Root::of_machine() else { return Ok(Vec::new()) };
        let (ignore_inode, ignore_ctime) = (self.options.ignore_inode, self.options.ignore_ctime);
        let start = self.run.start;
        let has_changed = |entry: &Entry, now: &Stat| {
            let is_another = !ignore_inode && entry.inode != now.inode;
            let is_recent =
                is_recent(now.mtime, start) || !ignore_ctime && is_recent(now.ctime, start);
            is_another || is_recent || entry.mtime != Some(now.mtime)
        };
        let (mut changed, mut last): (Vec<Vec<u8>>, Option<Vec<u8>>) = Default::default();
        for entry in TreeReader::new(&root, self.run.store) {
            let entry = entry.map_err(|lost| lost.error)?;
            let is_covered = last.as_ref().is_some_and(|last| is_within(&entry.path, last));
            // A directory above a source path has no times.
            if is_covered || entry.kind != EntryKind::Directory || entry.mtime.is_none() {
                continue;
            }
            self.run.store.observer().progress().check()?;
            let Ok(now) = machine.stat(&entry.path) else { continue };
            if now.kind != EntryKind::Directory || !has_changed(&entry, &now) {
                continue;
            }
            match walk::git_dir_around(&machine, &entry.path) {
                // It has an order of its own.
                Some(git_dir) => last = Some(git_dir),
                None => {
                    last = Some(entry.path.clone());
                    changed.push(entry.path);
                }
            }
        }
        Ok(changed)
    }

    /// Reads the places again from which git directories borrow objects, if they changed since.
    /// Theirs are needed as they were after the last borrower. Also reads borrowers again that have
    /// other lenders by then.
    pub(super) fn read_lenders(
        &mut self,
        PassRead { borrowed, .. }: PassRead,
        tops: &[Source],
        exclude: &Excluded,
    ) -> Result<()> {
        if self.options.is_dry {
            return Ok(()); // nobody can compare with its tree
        }
        let Borrowed { mut lenders, mut object_dirs, mut borrowers, unchanged } = borrowed;
        self.lenders.extend(unchanged);
        for _ in 0..LENDERS_DEPTH_MAX {
            for places in [&mut lenders, &mut object_dirs] {
                self.lenders.extend(places.iter().map(|(path, of)| (path.clone(), of.clone())));
                // Another pass may read those that were left out.
                places.retain(|path, _| takes(tops, exclude, path));
            }
            let mut again: Vec<Vec<u8>> =
                lenders.keys().chain(object_dirs.keys()).cloned().collect();
            let mut git_dirs: HashSet<Vec<u8>> = std::mem::take(&mut lenders).into_keys().collect();
            if again.is_empty() {
                again = lenders::changed(&borrowers);
                git_dirs.extend(again.iter().cloned());
            }
            if again.is_empty() {
                return Ok(());
            }
            borrowers.retain(|path, _| !again.contains(path));
            let replaced = Replaced { dirs: git_dirs, but_objects: true, exclude: exclude.clone() };
            let dirs = std::mem::take(&mut object_dirs);
            match self.read_again(again, replaced)? {
                Again::Nothing => {}
                Again::Same(read) => borrowers.extend(read.borrowed.borrowers),
                Again::Changed(read) => {
                    borrowers.extend(read.borrowed.borrowers);
                    lenders = read.borrowed.lenders;
                    object_dirs = read.borrowed.object_dirs;
                    if !read.vanished.is_empty() {
                        // Objects may have moved to a pack that was not listed.
                        object_dirs.extend(dirs);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads these paths, and compares with what the backup has so far. Entries of `replaced` count
    /// only if they are read now.
    fn read_again(&mut self, paths: Vec<Vec<u8>>, replaced: Replaced) -> Result<Again> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| absolute(path)).collect();
        let Ok(Roots { tops, .. }) = Roots::look(&paths) else {
            return Ok(Again::Nothing); // gone, and in the tree
        };
        let root = self.tree()?;
        let (started, ended) = (self.run.start, (self.options.about.clock)());
        let before = Before { root, started, ended, is_taken_over: true, is_whole: true };
        let counters = &self.run.counters;
        let (changes, unreadable) = (counters.changes.load(Relaxed), self.unreadable_count());
        let done = self.pass(&tops, &replaced.exclude, Some(before), true);
        let counters = &self.run.counters;
        let read = match done {
            Err(Error::Source { source, .. }) if walk::is_gone(&source) => {
                return Ok(Again::Nothing);
            }
            Err(Error::Source { path, source }) => {
                let path = crate::backup::tree_path(&path);
                counters.report_unreadable(self.run.store.observer(), &path, &source);
                return Ok(Again::Nothing);
            }
            done => done?,
        };
        if counters.changes.load(Relaxed) == changes {
            return Ok(Again::Same(read));
        }
        let is_named = |top: &&Source| counters.sources.lock().contains(&top.path);
        self.has_content |= read.tree.1.kinds.sum() > tops.iter().filter(is_named).count() as u64;
        self.trees.push(read.tree.clone());
        if self.unreadable_count() == unreadable {
            self.replaced = replaced;
            self.tree()?;
            self.replaced = Replaced::default();
        }
        Ok(Again::Changed(read))
    }
}

/// Returns true if a path at or below one of `tops` is read according to the rules of the pass.
fn takes(tops: &[Source], exclude: &Excluded, path: &[u8]) -> bool {
    let mut around = tops.iter().filter(|top| is_within(path, &top.path));
    around.any(|top| exclude.takes(&top.path, top.stat.device, path))
}

/// Warns of git directories whose objects are in places that the tree `root` lacks.
pub fn warn_of_lenders(lenders: &Places, root: &ChunkId, store: &Store) {
    let mut tree = Lookup::new(root, store);
    let mut lacks = |path: &[u8]| matches!(tree.at(path), Ok(None));
    let mut missing = lenders.iter().filter(|(path, _)| lacks(path));
    let Some((place, borrower)) = missing.next() else { return };
    let (place, borrower) = (absolute(place), absolute(borrower));
    let (place, borrower) = (place.displayed(), borrower.displayed());
    let more = match missing.count() {
        0 => String::new(),
        count => format!(" ({count} more places like this)"),
    };
    let text = format!(
        "{borrower} needs objects of {place}, which is not in this backup{more}: without it, \
         a restored copy may lack objects"
    );
    store.observer().event(Event::Warning(text));
}
