//! Cache of decoded chunks, for repeated reads of slices of the same chunks.

use crate::chunks::Chunks;
use crate::error::Result;
use crate::id::ChunkId;
use crate::store::Store;
use std::mem::take;

/// Maximum number of cached chunks of any size.
const CHUNKS_MAX: usize = 256;

/// Reads slices of chunks.
pub struct ChunkCache<'a> {
    store: &'a Store,
    /// Least recently used first. Slices mostly repeat the same few chunks, so a search from the
    /// end is short.
    chunks: Vec<(ChunkId, Vec<u8>)>,
    bytes: usize,
    bytes_max: usize,
    /// A chunk that is no longer needed; its memory serves the next one.
    spare: Vec<u8>,
}

impl<'a> ChunkCache<'a> {
    /// Returns a cache of up to `bytes_max` bytes, but at least one chunk.
    pub fn new(store: &'a Store, bytes_max: usize) -> ChunkCache<'a> {
        ChunkCache { store, chunks: Vec::new(), bytes: 0, bytes_max, spare: Vec::new() }
    }

    /// Returns a verified slice of a chunk; `None` if the chunk is too short.
    pub fn slice(&mut self, chunk: &ChunkId, offset: u32, len: u64) -> Result<Option<&[u8]>> {
        let is_known = self.chunks.iter().rposition(|(known, _)| known == chunk);
        match is_known {
            Some(at) => self.chunks[at..].rotate_left(1),
            None => {
                self.store.get_into(chunk, &mut self.spare)?;
                if offset == 0 && self.spare.len() as u64 == len {
                    // The slice is the whole chunk, so nothing of it remains to cache.
                    return Ok(Some(&self.spare));
                }
                self.keep(chunk);
            }
        }
        let plain = self.chunks.last().map_or(&[][..], |(_, plain)| plain);
        let end = u64::from(offset).checked_add(len).and_then(|end| usize::try_from(end).ok());
        Ok(end.and_then(|end| plain.get(offset as usize..end)))
    }

    /// Returns true if these bytes are a slice of a chunk. An unreadable chunk has no slices.
    pub fn is_slice(&mut self, chunk: &ChunkId, offset: u32, bytes: &[u8]) -> bool {
        // Hashing a whole chunk is cheaper than reading it.
        (offset == 0 && self.store.codec.id_of(bytes) == *chunk)
            || self.slice(chunk, offset, bytes.len() as u64).is_ok_and(|plain| plain == Some(bytes))
    }

    /// Caches the chunk just read and evicts the least recently used ones.
    fn keep(&mut self, chunk: &ChunkId) {
        let plain = take(&mut self.spare);
        self.bytes += plain.capacity();
        self.chunks.push((*chunk, plain));
        let is_much = |this: &Self| this.bytes > this.bytes_max || this.chunks.len() > CHUNKS_MAX;
        while is_much(self) && self.chunks.len() > 1 {
            let (_, old) = self.chunks.remove(0);
            self.bytes -= old.capacity();
            self.spare = old;
        }
    }
}
