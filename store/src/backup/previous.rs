//! The snapshot before, walked beside the source.

use crate::entry::{Content, Entry, HardLink, Kind, Time, is_within, path_cmp};
use crate::error::Result;
use crate::id::ChunkId;
use crate::recipe::{Extent, Extents, Recent};
use crate::source::Stat;
use crate::store::Store;
use crate::tree::TreeReader;
use std::cmp::Ordering;
use std::iter::Peekable;

/// Timestamps are taken from a clock that ticks this often.
const TICK_NANOSECONDS: i128 = 20_000_000;
/// File systems that know whole seconds only may know every other second only.
const COARSE_NANOSECONDS: i128 = 2_000_000_000;

/// When a file counts as unchanged.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// Look at the time the inode changed.
    pub ctime: bool,
    /// Look at the inode number.
    pub inode: bool,
    /// When the snapshot before began: what changed since may have changed again unseen.
    pub started: Time,
}

impl Comparison {
    /// Whether `entry` still says everything about a thing that looks like `stat`.
    pub fn is_unchanged(&self, stat: &Stat, entry: &Entry) -> bool {
        let shares = stat.names > 1 && stat.kind != Kind::Directory;
        let hard_link = shares.then_some(HardLink { device: stat.device, names: stat.names });
        let size = if stat.kind == Kind::File { stat.size } else { 0 };
        entry.kind == stat.kind
            && entry.size == size
            && entry.mtime == Some(stat.mtime)
            && (!self.ctime || entry.ctime == Some(stat.ctime))
            && (!self.inode || entry.inode == stat.inode)
            && (entry.mode, entry.owner.uid, entry.owner.gid) == (stat.mode, stat.uid, stat.gid)
            && entry.hard_link == hard_link
            && !self.is_racy(stat)
    }

    /// Whether it may have changed once more within the clock tick of its last change.
    fn is_racy(&self, stat: &Stat) -> bool {
        let at =
            |time: Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
        let tick = if stat.mtime.nanoseconds == 0 { COARSE_NANOSECONDS } else { TICK_NANOSECONDS };
        let is_late = |time: Time, tick| at(time) + tick >= at(self.started);
        is_late(stat.mtime, tick) || (self.ctime && is_late(stat.ctime, TICK_NANOSECONDS))
    }
}

/// Decides whether an entry of the snapshot before can be taken as it is.
pub struct Recheck<'a> {
    pub store: &'a Store,
    /// `None` when everything is to be read again.
    pub comparison: Option<Comparison>,
    /// Whether every chunk of that snapshot is known to be there.
    pub is_closed: bool,
}

impl Recheck<'_> {
    /// Whether `previous` still says everything about a thing that looks like
    /// `stat`, and the store has all of its content.
    pub fn is_unchanged(&self, stat: &Stat, previous: &Entry) -> Result<bool> {
        let looks_same = self.comparison.is_some_and(|with| with.is_unchanged(stat, previous));
        Ok(looks_same && self.is_whole(previous)?)
    }

    /// Whether all chunks of an entry are there.
    ///
    /// After segments were lost, files whose chunks went with them are read again.
    fn is_whole(&self, entry: &Entry) -> Result<bool> {
        let Content::Recipe(recipe) = &entry.content else { return Ok(true) };
        if self.is_closed {
            return Ok(true);
        }
        let get = |id: &ChunkId| self.store.chunk(id);
        let mut there = Recent::default();
        for extent in Extents::new(recipe, &get) {
            match extent {
                Ok(Extent::Hole { .. }) => {}
                Ok(Extent::Slice { chunk, .. }) if there.get(&chunk).is_some() => {}
                Ok(Extent::Slice { chunk, .. }) if self.store.index.has(&chunk)? => {
                    there.insert(chunk, ());
                }
                Ok(Extent::Slice { .. }) => return Ok(false),
                Err(error) if error.is_damage() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Reads the entries of the snapshot before, as far as they are asked for.
pub struct Previous<'a> {
    entries: Option<Peekable<TreeReader<'a>>>,
}

impl<'a> Previous<'a> {
    /// Nothing was before where `entries` is `None`.
    pub fn new(entries: Option<TreeReader<'a>>) -> Previous<'a> {
        Previous { entries: entries.map(Iterator::peekable) }
    }

    /// The entry with this path. Paths must be asked for in path order.
    pub fn at(&mut self, path: &[u8]) -> Option<Entry> {
        let entries = self.entries.as_mut()?;
        loop {
            // A page that cannot be read holds no entries: their files are read again.
            match entries.peek()? {
                Err(_) => drop(entries.next()),
                Ok(entry) => match path_cmp(&entry.path, path) {
                    Ordering::Less => drop(entries.next()),
                    Ordering::Equal => return entries.next()?.ok(),
                    Ordering::Greater => return None,
                },
            }
        }
    }

    /// All entries below this path, which was asked for just before.
    pub fn below(&mut self, path: &[u8]) -> Vec<Entry> {
        let mut below = Vec::new();
        let Some(entries) = &mut self.entries else { return below };
        while let Some(item) =
            entries.next_if(|item| item.as_ref().map_or(true, |entry| is_within(&entry.path, path)))
        {
            below.extend(item.ok());
        }
        below
    }
}
