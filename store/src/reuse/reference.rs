//! Random access to files of the previous snapshot in bounded memory.

use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::index::Location;
use crate::limits;
use crate::recipe::{self, Extent, Recipe};
use crate::store::Store;
use chunker::delta::{Reference, common_prefix};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::rc::{Rc, Weak};

/// Bytes of decoded chunks and recipe groups that a reader caches.
const CACHE_BYTES: usize = 24 << 20;
/// Memory overhead of a cached item in bytes.
const HELD_BYTES: usize = 192;

/// Decodes chunks of the store and caches the most recent ones.
pub struct Reader<'a> {
    store: &'a Store,
    cache: RefCell<Cache>,
    /// Unreadable chunks, so that none is tried twice.
    lost: RefCell<HashSet<ChunkId>>,
}

#[derive(Default)]
struct Cache {
    held: HashMap<ChunkId, Held>,
    bytes: usize,
    clock: u64,
}

struct Held {
    item: Item,
    bytes: usize,
    used: u64,
}

#[derive(Clone)]
enum Item {
    Plain(Rc<Vec<u8>>),
    Group(Rc<Group>),
}

/// Consecutive extents and the offset of each within the group.
struct Group {
    starts: Vec<u64>,
    extents: Vec<Extent>,
}

impl Group {
    fn new(extents: Vec<Extent>) -> Group {
        let mut at = 0u64;
        let starts = extents.iter().map(|extent| {
            let start = at;
            at = at.saturating_add(extent.len());
            start
        });
        Group { starts: starts.collect(), extents }
    }

    /// Returns the extent at `offset` and the offset into the extent.
    fn at(&self, offset: u64) -> Option<(Extent, u64)> {
        let n = self.starts.partition_point(|start| *start <= offset).checked_sub(1)?;
        let into = offset - self.starts[n];
        (into < self.extents[n].len()).then_some((self.extents[n], into))
    }
}

impl Cache {
    fn get(&mut self, id: &ChunkId) -> Option<Item> {
        self.clock += 1;
        let held = self.held.get_mut(id)?;
        held.used = self.clock;
        Some(held.item.clone())
    }

    fn put(&mut self, id: ChunkId, item: Item, bytes: usize) {
        let bytes = bytes + HELD_BYTES;
        while self.bytes + bytes > CACHE_BYTES {
            let oldest = self.held.iter().min_by_key(|(_, held)| held.used).map(|(id, _)| *id);
            let Some(removed) = oldest.and_then(|id| self.held.remove(&id)) else { break };
            self.bytes -= removed.bytes;
        }
        self.bytes += bytes;
        let replaced = self.held.insert(id, Held { item, bytes, used: self.clock });
        self.bytes -= replaced.map_or(0, |held| held.bytes);
    }
}

impl<'a> Reader<'a> {
    /// Returns a reader of this store.
    pub fn new(store: &'a Store) -> Reader<'a> {
        Reader { store, cache: RefCell::default(), lost: RefCell::default() }
    }

    /// Returns the verified plain bytes of a chunk. With `is_compared`, a chunk in a damaged
    /// segment is accepted if the chunk itself is intact.
    pub fn plain(&self, id: &ChunkId, is_compared: bool) -> Result<Rc<Vec<u8>>> {
        if let Some(Item::Plain(plain)) = self.cache.borrow_mut().get(id) {
            return Ok(plain);
        }
        let plain = Rc::new(self.chunk(id, is_compared)?);
        self.cache.borrow_mut().put(*id, Item::Plain(Rc::clone(&plain)), plain.len());
        Ok(plain)
    }

    fn group(&self, id: &ChunkId, len: u64, is_compared: bool) -> Result<Rc<Group>> {
        if let Some(Item::Group(group)) = self.cache.borrow_mut().get(id) {
            return Ok(group);
        }
        let plain = self.chunk(id, is_compared)?;
        let group = Rc::new(Group::new(recipe::read_group(id, len, &plain)?));
        let bytes = group.extents.len() * (size_of::<Extent>() + size_of::<u64>());
        self.cache.borrow_mut().put(*id, Item::Group(Rc::clone(&group)), bytes);
        Ok(group)
    }

    /// Returns the length of a chunk that was read before, or `None` if its segment has been found
    /// damaged since.
    pub fn plain_len(&self, id: &ChunkId) -> Result<Option<u64>> {
        let location = self.location(id)?;
        Ok(location.is_healthy.then_some(u64::from(location.plain_len)))
    }

    fn chunk(&self, id: &ChunkId, is_compared: bool) -> Result<Vec<u8>> {
        let location = self.location(id)?;
        if !location.is_healthy && !is_compared {
            // A new snapshot must not depend on it. The code that found the damage reported it.
            return Err(Error::ChunkMissing(*id));
        }
        let mut plain = Vec::new();
        match self.store.read_location(id, &location, &mut plain) {
            Ok(()) => Ok(plain),
            Err(error) => {
                self.lost.borrow_mut().insert(*id);
                // The chunks of this segment are stored again when they occur next.
                let _ = self.store.index.set_damaged(&location.segment);
                self.store.damage.error(&error);
                Err(error)
            }
        }
    }

    /// Returns the location of a chunk, unless the chunk is known to be lost.
    fn location(&self, id: &ChunkId) -> Result<Location> {
        if self.lost.borrow().contains(id) {
            return Err(Error::ChunkMissing(*id));
        }
        match self.store.index.find(id)? {
            Some(location) => Ok(location),
            None => {
                let error = Error::ChunkMissing(*id);
                self.lost.borrow_mut().insert(*id);
                let _ = self.store.index.forget_whole();
                self.store.damage.error(&error);
                Err(error)
            }
        }
    }
}

/// A file of the previous snapshot.
#[derive(Clone)]
pub struct ReferenceFile<'a> {
    reader: &'a Reader<'a>,
    level: u8,
    top: Rc<Group>,
    len: u64,
    /// True if only bytes that were already compared are requested.
    is_compared: bool,
    /// Most recent position; the next one is mostly near. The cache owns the bytes there. The file
    /// itself keeps nothing in memory.
    leaf: Option<Leaf>,
    spot: Option<Spot>,
}

/// One group of extents in the recipe of a file.
#[derive(Clone)]
struct Leaf {
    /// Byte range in the file.
    range: Range<u64>,
    group: Weak<Group>,
}

/// An extent of a file whose chunk is decoded.
#[derive(Clone)]
struct Spot {
    /// Byte range in the file.
    range: Range<u64>,
    /// Byte offset in the chunk of the start of the range.
    offset: usize,
    plain: Weak<Vec<u8>>,
}

/// Bytes of a chunk.
struct ChunkSlice {
    plain: Rc<Vec<u8>>,
    range: Range<usize>,
}

impl ChunkSlice {
    fn bytes(&self) -> &[u8] {
        &self.plain[self.range.clone()]
    }
}

impl Spot {
    /// Returns the bytes from file offset `offset` on, if the chunk is still in memory.
    fn part(&self, offset: u64) -> Option<ChunkSlice> {
        if !self.range.contains(&offset) {
            return None;
        }
        let plain = self.plain.upgrade()?;
        let into = |at: u64| usize::try_from(at - self.range.start).ok()?.checked_add(self.offset);
        let range = into(offset)?..into(self.range.end)?.min(plain.len());
        (!range.is_empty()).then_some(ChunkSlice { plain, range })
    }
}

impl<'a> ReferenceFile<'a> {
    /// Returns the file with this recipe and length in bytes.
    pub fn new(reader: &'a Reader<'a>, recipe: &Recipe, len: u64) -> ReferenceFile<'a> {
        let top = Rc::new(Group::new(recipe.extents.clone()));
        let (level, is_compared, leaf, spot) = (recipe.level, false, None, None);
        ReferenceFile { reader, level, top, len, is_compared, leaf, spot }
    }

    /// Returns the same file for locating bytes that were already compared.
    pub fn compared(mut self) -> ReferenceFile<'a> {
        self.is_compared = true;
        self
    }

    /// Returns the extent that contains the byte at `offset`, and the offset into the extent.
    pub fn extent_at(&mut self, offset: u64) -> Result<Option<(Extent, u64)>> {
        let last = self.leaf.as_ref().filter(|leaf| leaf.range.contains(&offset));
        if let Some((group, leaf)) = last.and_then(|leaf| Some((leaf.group.upgrade()?, leaf))) {
            return Ok(group.at(offset - leaf.range.start));
        }
        let mut group = Rc::clone(&self.top);
        let mut range = 0..self.len;
        for _ in 0..self.level.min(limits::RECIPE_LEVELS_MAX) {
            let found = group.at(offset - range.start);
            let Some((Extent::Slice { chunk, len, .. }, into)) = found else { return Ok(None) };
            let start = offset - into;
            group = self.reader.group(&chunk, len, self.is_compared)?;
            range = start..start.saturating_add(len);
        }
        let found = group.at(offset - range.start);
        self.leaf = Some(Leaf { range, group: Rc::downgrade(&group) });
        Ok(found)
    }

    /// Returns the contiguous bytes from `offset` on. Returns `None` for holes and for unreadable
    /// bytes. These were reported when they were found.
    fn part_at(&mut self, offset: u64) -> Option<ChunkSlice> {
        if let Some(part) = self.spot.as_ref().and_then(|spot| spot.part(offset)) {
            return Some(part);
        }
        let Ok(Some((Extent::Slice { chunk, offset: in_chunk, len }, into))) =
            self.extent_at(offset)
        else {
            return None;
        };
        let (start, plain) = (offset - into, self.reader.plain(&chunk, self.is_compared).ok()?);
        let range = start..start.saturating_add(len);
        let spot = Spot { range, offset: in_chunk as usize, plain: Rc::downgrade(&plain) };
        self.spot.insert(spot).part(offset)
    }
}

impl Reference for ReferenceFile<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
        let mut same = 0;
        while same < with.len() {
            let rest = &with[same..];
            let Some(part) = self.part_at(offset + same as u64) else { break };
            let bytes = part.bytes();
            let len = bytes.len().min(rest.len());
            let equal = common_prefix(&bytes[..len], &rest[..len]);
            same += equal;
            if equal < len {
                break;
            }
        }
        same
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < buffer.len() {
            let space = &mut buffer[filled..];
            let Some(part) = self.part_at(offset + filled as u64) else { break };
            let bytes = part.bytes();
            let len = bytes.len().min(space.len());
            space[..len].copy_from_slice(&bytes[..len]);
            filled += len;
        }
        filled
    }
}
