//! The chunks opened last, for those who want slices of the same ones again and again.

use crate::error::Result;
use crate::id::ChunkId;
use crate::store::Store;
use std::mem::take;

/// Most chunks that are kept, however small they are.
const CHUNKS_MAX: usize = 256;

/// Reads slices of chunks.
pub struct ChunkCache<'a> {
    store: &'a Store,
    /// The one used last stands last. Slices come back to the same few, so it is soon found.
    chunks: Vec<(ChunkId, Vec<u8>)>,
    bytes: usize,
    bytes_max: usize,
    /// A chunk that nothing more is wanted of, or memory for the next one.
    spare: Vec<u8>,
}

impl<'a> ChunkCache<'a> {
    /// Keeps up to so many bytes, and always one chunk.
    pub fn new(store: &'a Store, bytes_max: usize) -> ChunkCache<'a> {
        ChunkCache { store, chunks: Vec::new(), bytes: 0, bytes_max, spare: Vec::new() }
    }

    /// A slice of a chunk, verified; `None` if the chunk is too short.
    pub fn slice(&mut self, chunk: &ChunkId, offset: u32, len: u64) -> Result<Option<&[u8]>> {
        let is_known = self.chunks.iter().rposition(|(known, _)| known == chunk);
        match is_known {
            Some(at) => self.chunks[at..].rotate_left(1),
            None => {
                self.store.chunk_into(chunk, &mut self.spare)?;
                if offset == 0 && self.spare.len() as u64 == len {
                    // Nothing is left of it to come back to.
                    return Ok(Some(&self.spare));
                }
                self.keep(chunk);
            }
        }
        let plain = self.chunks.last().map_or(&[][..], |(_, plain)| plain);
        let end = u64::from(offset).checked_add(len).and_then(|end| usize::try_from(end).ok());
        Ok(end.and_then(|end| plain.get(offset as usize..end)))
    }

    /// Keeps what was just read, instead of what was not used for the longest time.
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
