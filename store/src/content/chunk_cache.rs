//! Decoded chunks and recipe groups, kept for repeated reads.

use crate::chunks::Chunks;
use crate::error::Result;
use crate::id::ChunkId;
use crate::recipe::{self, Extent};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Memory overhead of a cached item in bytes.
const HELD_BYTES: usize = 192;

/// Decoded chunks and recipe groups, least recently used removed first. Threads may share it.
pub struct ChunkCache {
    held: Mutex<AllHeld>,
    bytes_max: usize,
}

#[derive(Default)]
struct AllHeld {
    items: HashMap<ChunkId, Held>,
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
    Plain(Arc<Vec<u8>>),
    Group(Arc<Group>),
}

/// Consecutive extents and the offset of each within the group.
pub(super) struct Group {
    starts: Vec<u64>,
    extents: Vec<Extent>,
}

impl Group {
    pub(super) fn new(extents: Vec<Extent>) -> Group {
        let mut at = 0u64;
        let starts = extents.iter().map(|extent| {
            let start = at;
            at = at.saturating_add(extent.len());
            start
        });
        Group { starts: starts.collect(), extents }
    }

    /// Returns the extent at `offset` and the offset into the extent. Tries the extent with index
    /// `last` and the one after it first.
    pub(super) fn at(&self, offset: u64, last: &mut usize) -> Option<(Extent, u64)> {
        let into = |n: usize| {
            let into = offset.checked_sub(*self.starts.get(n)?)?;
            (into < self.extents[n].len()).then_some(into)
        };
        for n in [*last, *last + 1] {
            if let Some(into) = into(n) {
                *last = n;
                return Some((self.extents[n], into));
            }
        }
        let n = self.starts.partition_point(|start| *start <= offset).checked_sub(1)?;
        *last = n;
        Some((self.extents[n], into(n)?))
    }

    /// Returns the extents from this index on.
    pub(super) fn from(&self, index: usize) -> &[Extent] {
        &self.extents[index..]
    }
}

impl AllHeld {
    fn get(&mut self, id: &ChunkId) -> Option<Item> {
        self.clock += 1;
        let held = self.items.get_mut(id)?;
        held.used = self.clock;
        Some(held.item.clone())
    }

    fn put(&mut self, id: ChunkId, item: Item, bytes: usize, bytes_max: usize) {
        let bytes = bytes + HELD_BYTES;
        while self.bytes + bytes > bytes_max {
            let oldest = self.items.iter().min_by_key(|(_, held)| held.used).map(|(id, _)| *id);
            let Some(removed) = oldest.and_then(|id| self.items.remove(&id)) else { break };
            self.bytes -= removed.bytes;
        }
        self.bytes += bytes;
        let replaced = self.items.insert(id, Held { item, bytes, used: self.clock });
        self.bytes -= replaced.map_or(0, |held| held.bytes);
    }
}

impl ChunkCache {
    /// Returns a cache of up to `bytes_max` bytes, but at least one chunk.
    pub fn new(bytes_max: usize) -> ChunkCache {
        ChunkCache { held: Mutex::default(), bytes_max }
    }

    /// Returns the plain bytes of a chunk. Reads it from `chunks` if it is not cached.
    pub fn plain(&self, id: &ChunkId, chunks: &dyn Chunks) -> Result<Arc<Vec<u8>>> {
        if let Some(Item::Plain(plain)) = self.held.lock().get(id) {
            return Ok(plain);
        }
        let plain = Arc::new(chunks.get(id)?);
        let item = Item::Plain(Arc::clone(&plain));
        self.held.lock().put(*id, item, plain.capacity(), self.bytes_max);
        Ok(plain)
    }

    /// Returns the extents in a recipe chunk, which cover `len` bytes of a file.
    pub(super) fn group(&self, id: &ChunkId, len: u64, chunks: &dyn Chunks) -> Result<Arc<Group>> {
        if let Some(Item::Group(group)) = self.held.lock().get(id) {
            return Ok(group);
        }
        let group = Arc::new(Group::new(recipe::read_group(id, len, &chunks.get(id)?)?));
        let bytes = group.extents.len() * (size_of::<Extent>() + size_of::<u64>());
        self.held.lock().put(*id, Item::Group(Arc::clone(&group)), bytes, self.bytes_max);
        Ok(group)
    }
}
