//! What a backup reads again, because it changed while it was read.

use super::{Backup, Before, PassRead, Places, Replaced};
use crate::backup::absolute;
use crate::backup::lenders::{self, Borrowed};
use crate::backup::roots::{Roots, Source};
use crate::backup::vanished::MISSING;
use crate::entry::is_within;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::observe::Event;
use crate::store::Store;
use crate::text::Displayed;
use crate::tree::Lookup;
use crate::walk::{self, Excluded};
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

/// Maximum length of a chain of git directories that borrow from each other.
const LENDERS_DEPTH_MAX: usize = 10;
/// Maximum number of times that paths which went away are looked for.
const LOOKS_MAX: usize = 5;
/// Maximum number of entries of a pass that is read again as a whole because a directory may have
/// moved.
const MOVED_ENTRIES_MAX: u64 = 1_000_000;

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
            let may_rewalk = looks == 1 && read.tree.1.entries <= MOVED_ENTRIES_MAX;
            if may_rewalk && vanished.misses_dir() {
                again.clone_from(&all);
            } else if looks == 1
                && let Some(moved) = vanished.missing_dir()
            {
                if may_rewalk {
                    // It may be at a place that was listed before.
                    again.clone_from(&all);
                } else {
                    let text = format!(
                        "{} went away while it was read; if it moved, some of its files may be \
                         missing from the snapshot",
                        absolute(&moved).displayed()
                    );
                    self.run.store.observer().event(Event::Warning(text));
                }
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
         a restored copy cannot be used"
    );
    store.observer().event(Event::Warning(text));
}
