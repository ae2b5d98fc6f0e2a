//! The previous snapshot, read alongside the source.

use super::run::FileSystems;
use crate::chunks::Chunks;
use crate::damage::DamageLog;
use crate::entry::{Content, Entry, EntryKind, Owner, Time, is_within, path_cmp};
use crate::error::Result;
use crate::id::ChunkId;
use crate::observe::Event;
use crate::recipe::{Extent, Extents, Recent};
use crate::source::{Owners, Stat};
use crate::store::Store;
use crate::tree::TreeReader;
use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Period of the clock from which timestamps are taken.
const TICK_NANOSECONDS: i128 = 20_000_000;
/// File systems with whole seconds may store only every other second.
const COARSE_NANOSECONDS: i128 = 2_000_000_000;

/// Criteria for an unchanged file.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// Compare the time of the last inode change.
    pub ctime: bool,
    /// Compare the inode number.
    pub inode: bool,
    /// Start and end of the previous snapshot. A file that changed in between may have changed
    /// again unnoticed.
    pub started: Time,
    pub ended: Time,
}

impl Comparison {
    /// Returns true if `entry` still describes an object with the metadata `stat` completely.
    pub fn is_unchanged(&self, stat: &Stat, entry: &Entry) -> bool {
        let shares = stat.names > 1 && stat.kind != EntryKind::Directory;
        let names = shares.then_some(stat.names);
        let size = if stat.kind == EntryKind::File { stat.size } else { 0 };
        entry.kind == stat.kind
            && entry.size == size
            && entry.mtime == Some(stat.mtime.clamped())
            && entry.ctime.is_some_and(|ctime| !self.ctime || ctime == stat.ctime.clamped())
            && (!self.inode || entry.inode == stat.inode)
            && (entry.mode, entry.owner.uid, entry.owner.gid) == (stat.mode, stat.uid, stat.gid)
            && entry.hard_link.map(|link| link.names) == names
            && !self.is_racy(stat)
    }

    /// Returns true if the file may have changed again within the clock tick of its last change.
    ///
    /// A change during the previous run leaves a time within that run. A later time was set by a
    /// user or a wrong clock: a change would have replaced it.
    fn is_racy(&self, stat: &Stat) -> bool {
        let (started, ended) = (nanoseconds(self.started), nanoseconds(self.ended));
        // A clock that was set back during the run may have shown any time.
        let ended = if ended < started { i128::MAX / 2 } else { ended };
        let started = started.min(nanoseconds(self.ended));
        let is_of_run = |time: Time| {
            let tick = if time.nanoseconds == 0 { COARSE_NANOSECONDS } else { TICK_NANOSECONDS };
            (started - tick..=ended + tick).contains(&nanoseconds(time))
        };
        is_of_run(stat.mtime) || (self.ctime && is_of_run(stat.ctime))
    }
}

/// Returns true if something with this time changed after `start`, or within a clock tick before.
pub fn is_recent(time: Time, start: Time) -> bool {
    let tick = if time.nanoseconds == 0 { COARSE_NANOSECONDS } else { TICK_NANOSECONDS };
    nanoseconds(time) >= nanoseconds(start) - tick
}

fn nanoseconds(time: Time) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

/// Decides if an entry of the previous snapshot can be taken over.
pub struct Recheck<'a> {
    pub store: &'a Store,
    /// `None` if everything must be read again.
    pub comparison: Option<Comparison>,
    /// True if the previous snapshot is whole.
    pub is_whole: bool,
    /// Root of the previous snapshot's tree.
    pub root: Option<ChunkId>,
    pub file_systems: &'a FileSystems,
    pub owners: &'a Owners,
}

impl<'a> Recheck<'a> {
    /// Returns a reader for the entries of the previous snapshot at and below `path`. It reads only
    /// pages that may hold a wanted path.
    pub fn previous_within(&self, path: &[u8]) -> Previous<'a> {
        let entries = self.root.map(|root| TreeReader::within(&root, path, self.store));
        Previous { skips_pages: true, ..Previous::new(entries, &self.store.damage) }
    }

    /// Returns true if `previous` still describes an object with the metadata `stat` completely,
    /// and the store has all of its content.
    pub fn is_unchanged(&self, stat: &Stat, previous: &Entry) -> Result<bool> {
        let looks_same = self.comparison.is_some_and(|with| with.is_unchanged(stat, previous));
        if !looks_same {
            return Ok(false);
        }
        match self.availability(previous)? {
            Availability::Whole => return Ok(true),
            Availability::Passing => return Ok(false),
            Availability::Damaged => {}
        }
        self.store.damage.file(&previous.path);
        let path = super::absolute(&previous.path);
        self.store.observer().event(Event::StoredAgain(path));
        Ok(false)
    }

    /// Adapts an entry of the previous snapshot to this one, which numbers file systems again. Accounts
    /// may have other names by now; a name that is unknown today stays. A file with several names
    /// loses it, because names that it gets later have none, and one file has one owner.
    pub fn refreshed(&self, stat: &Stat, mut entry: Entry) -> Entry {
        let warn = |text| self.store.observer().event(Event::Warning(text));
        let stays = entry.hard_link.is_none();
        let then = |name: &Option<Vec<u8>>| name.clone().filter(|_| stays);
        let today = self.owners.get(stat.uid, stat.gid, warn);
        let user = today.user.clone().or_else(|| then(&entry.owner.user));
        let group = today.group.clone().or_else(|| then(&entry.owner.group));
        if (&user, &group) != (&entry.owner.user, &entry.owner.group) {
            entry.owner = Arc::new(Owner { user, group, ..*entry.owner });
        }
        if !entry.xattrs.is_empty() {
            let then = entry.acl_names.as_deref().filter(|_| stays);
            entry.acl_names = self.owners.acl_names_now(&entry.xattrs, then, warn);
        }
        if let Some(link) = &mut entry.hard_link {
            link.file_system = self.file_systems.number(stat.device);
        }
        entry
    }

    /// Returns whether all chunks of an entry are known to be in healthy segments that stay.
    ///
    /// After a loss of segments, files that used their chunks are read again.
    fn availability(&self, entry: &Entry) -> Result<Availability> {
        let Content::Recipe(recipe) = &entry.content else { return Ok(Availability::Whole) };
        if self.is_whole && !self.store.damage.has_segments() {
            return Ok(Availability::Whole);
        }
        let mut there = Recent::default();
        let recipes = RecipeChunks { store: self.store, is_passing: AtomicBool::new(false) };
        for extent in Extents::new(recipe, &recipes) {
            match extent {
                Ok(Extent::Hole { .. }) => {}
                Ok(Extent::Slice { chunk, .. }) if there.get(&chunk).is_some() => {}
                Ok(Extent::Slice { chunk, .. }) => match self.store.index.find(&chunk)? {
                    Some(location) if self.store.trusts(&location) => there.insert(chunk, ()),
                    Some(location) if !self.store.is_lasting(&location) => {
                        return Ok(Availability::Passing);
                    }
                    found => {
                        let segment = found.map(|location| location.segment);
                        self.store.damage.chunk(&chunk, segment);
                        return Ok(Availability::Damaged);
                    }
                },
                Err(error) if error.is_of_one_object() => {
                    self.store.damage.error(&error);
                    return Ok(Availability::Damaged);
                }
                Err(error) => return Err(error),
            }
        }
        match recipes.is_passing.into_inner() {
            false => Ok(Availability::Whole),
            true => Ok(Availability::Passing),
        }
    }
}

/// Reads the recipe chunks of an entry, and notes if a prune is going to delete one.
struct RecipeChunks<'a> {
    store: &'a Store,
    is_passing: AtomicBool,
}

impl Chunks for RecipeChunks<'_> {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        if self.store.index.find(id)?.is_some_and(|location| !self.store.is_lasting(&location)) {
            self.is_passing.store(true, Relaxed);
        }
        self.store.get_into(id, plain)
    }
}

/// State of the content of an entry.
enum Availability {
    /// All chunks are in healthy segments that stay.
    Whole,
    /// A prune is going to delete a chunk, because no listed snapshot needs it.
    Passing,
    /// A chunk is missing or damaged.
    Damaged,
}

/// Reads entries of the previous snapshot on demand.
pub struct Previous<'a> {
    entries: Option<TreeReader<'a>>,
    /// Next entry, if it was read.
    next: Option<Entry>,
    damage: &'a DamageLog,
    /// True if pages without a wanted path are not read. Their damage is then not found.
    skips_pages: bool,
}

/// Content of a directory in the previous snapshot.
pub enum Below {
    /// All entries, in path order.
    All(Vec<Entry>),
    /// More entries than requested.
    TooMany,
}

/// A git directory in the previous snapshot.
pub struct PreviousGitDir {
    /// Its own entry.
    pub own: Option<Entry>,
    /// Its content.
    pub below: Below,
}

impl<'a> Previous<'a> {
    /// Creates a reader. `entries` is `None` if there is no previous snapshot.
    pub fn new(entries: Option<TreeReader<'a>>, damage: &'a DamageLog) -> Previous<'a> {
        Previous { entries, next: None, damage, skips_pages: false }
    }

    /// Returns the entry with this path. Calls must ask for paths in path order.
    pub fn at(&mut self, path: &[u8]) -> Option<Entry> {
        self.at_after(path, |_| ())
    }

    /// Like [`Previous::at`], and calls `passed` with each entry before this path.
    pub fn at_after(&mut self, path: &[u8], mut passed: impl FnMut(&Entry)) -> Option<Entry> {
        loop {
            match path_cmp(&self.peek()?.path, path) {
                Ordering::Less => {
                    self.next.take().iter().for_each(&mut passed);
                    if let (true, Some(entries)) = (self.skips_pages, &mut self.entries) {
                        entries.skip_to(path);
                    }
                }
                Ordering::Equal => return self.next.take(),
                Ordering::Greater => return None,
            }
        }
    }

    /// Calls `passed` with each remaining entry before this path, at it, and below it.
    pub fn pass(&mut self, path: &[u8], mut passed: impl FnMut(&Entry)) {
        let is_of =
            |entry: &Entry| path_cmp(&entry.path, path).is_lt() || is_within(&entry.path, path);
        while self.peek().is_some_and(is_of) {
            self.next.take().iter().for_each(&mut passed);
        }
    }

    /// Returns the next entry without taking it.
    fn peek(&mut self) -> Option<&Entry> {
        while self.next.is_none() {
            // Files of an unreadable page have no entries, so they are read again.
            match self.entries.as_mut()?.next()? {
                Err(lost) => self.damage.error(&lost.error),
                Ok(entry) => self.next = Some(entry),
            }
        }
        self.next.as_ref()
    }

    /// Returns the entries below this path, which must be the path of the last call of
    /// [`Previous::at`], if there are at most `max`.
    pub fn below(&mut self, path: &[u8], max: usize) -> Below {
        let mut below = Vec::new();
        while self.peek().is_some_and(|entry| is_within(&entry.path, path)) {
            if below.len() == max {
                if let Some(entries) = &mut self.entries {
                    entries.skip_below(path);
                }
                return Below::TooMany;
            }
            below.extend(self.next.take());
        }
        Below::All(below)
    }
}

/// All remaining entries.
impl Iterator for Previous<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        self.peek()?;
        self.next.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::HardLink;

    const HOUR: i64 = 3600;

    fn at(seconds: i64) -> Time {
        Time { seconds, nanoseconds: 500 }
    }

    /// Comparison with a previous run that took an hour.
    fn comparison() -> Comparison {
        Comparison { ctime: true, inode: true, started: at(100 * HOUR), ended: at(101 * HOUR) }
    }

    fn stat(mtime: Time, ctime: Time) -> Stat {
        Stat {
            kind: EntryKind::File,
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: 0,
            allocated_bytes: 0,
            mtime,
            ctime,
            inode: 7,
            device: 1,
            names: 1,
            node: (0, 0),
        }
    }

    fn entry(stat: &Stat) -> Entry {
        let owner = crate::entry::Owner { uid: stat.uid, gid: stat.gid, ..Default::default() };
        Entry {
            owner: std::sync::Arc::new(owner),
            mtime: Some(stat.mtime),
            ctime: Some(stat.ctime),
            inode: stat.inode,
            ..Entry::new(b"a".to_vec(), stat.kind, stat.mode)
        }
    }

    #[test]
    fn only_times_of_the_previous_run_count_as_changed() {
        let is_unchanged = |comparison: Comparison, mtime, ctime| {
            let stat = stat(mtime, ctime);
            comparison.is_unchanged(&stat, &entry(&stat))
        };
        let old = at(99 * HOUR);
        let just_before = Time { seconds: 100 * HOUR, nanoseconds: 400 };
        for (mtime, ctime, unchanged) in [
            (old, old, true),
            (old, just_before, false),
            (old, at(100 * HOUR + 1800), false),
            (old, at(101 * HOUR), false),
            (at(100 * HOUR + 1800), old, false),
            // Set by a user, or by a wrong clock.
            (at(500_000 * HOUR), old, true),
            (old, at(500_000 * HOUR), true),
            (at(102 * HOUR), at(102 * HOUR), true),
            // A file system that stores every other second.
            (old, Time { seconds: 100 * HOUR - 1, nanoseconds: 0 }, false),
            (old, at(100 * HOUR - 1), true),
        ] {
            assert_eq!(is_unchanged(comparison(), mtime, ctime), unchanged, "{mtime:?} {ctime:?}");
        }
        let without_ctime = Comparison { ctime: false, ..comparison() };
        assert!(is_unchanged(without_ctime, old, just_before));
        // The clock was set back during the run, from an unknown time.
        let set_back = Comparison { ended: at(90 * HOUR), ..comparison() };
        assert!(is_unchanged(set_back, at(89 * HOUR), at(89 * HOUR)));
        for late in [91, 99, 100, 102, 500_000] {
            assert!(!is_unchanged(set_back, at(89 * HOUR), at(late * HOUR)), "{late}");
        }
    }

    #[test]
    fn a_link_count_marks_a_change_but_a_device_number_does_not() {
        let old = at(9);
        let stat = Stat { names: 2, ..stat(old, old) };
        let link = HardLink { file_system: 0, names: 2 };
        let entry = Entry { hard_link: Some(link), ..entry(&stat) };
        assert!(comparison().is_unchanged(&Stat { device: 99, ..stat }, &entry));
        assert!(!comparison().is_unchanged(&Stat { names: 3, ..stat }, &entry));
        assert!(!comparison().is_unchanged(&Stat { names: 1, ..stat }, &entry));
    }

    #[test]
    fn an_entry_that_lacks_metadata_is_read_again() {
        let stat = stat(at(9), at(9));
        let entry = Entry { ctime: None, ..entry(&stat) };
        for ctime in [true, false] {
            let comparison = Comparison { ctime, ..comparison() };
            assert!(!comparison.is_unchanged(&stat, &entry));
        }
    }

    #[test]
    fn file_systems_are_numbered_in_order_of_appearance() {
        let file_systems = FileSystems::default();
        let numbers = [70, 30, 70, 50, 30].map(|device| file_systems.number(device));
        assert_eq!(numbers, [0, 1, 0, 2, 1]);
    }
}
