//! Chunks by id. Trees, recipes and contents are read and written through these traits, so they do
//! not depend on a store.

use crate::error::Result;
use crate::id::ChunkId;
use std::ops::ControlFlow;

/// Reads chunks. A [`Store`](crate::store::Store) does; tests and fuzzers use closures.
pub trait Chunks: Sync {
    /// Reads the plain bytes of a chunk, verified against its id, into a buffer whose memory is
    /// reused.
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()>;

    /// Returns the plain bytes of a chunk, verified against its id.
    fn get(&self, id: &ChunkId) -> Result<Vec<u8>> {
        let mut plain = Vec::new();
        self.get_into(id, &mut plain)?;
        Ok(plain)
    }

    /// Reads each of these chunks once, in the fastest order, and passes it to `each` with its
    /// number in `ids`. Calls come from several threads. A `Break` ends the reading.
    fn get_many(&self, ids: &[ChunkId], each: &Each<'_>) {
        let mut plain = Vec::new();
        for (number, id) in ids.iter().enumerate() {
            let read = self.get_into(id, &mut plain);
            if each(number, read.map(|()| &plain[..])).is_break() {
                return;
            }
        }
    }
}

/// Receives the chunks of [`Chunks::get_many`]: number and plain bytes.
pub type Each<'e> = dyn Fn(usize, Result<&[u8]>) -> ControlFlow<()> + Sync + 'e;

/// Stores metadata chunks: tree pages and recipe chunks.
pub trait PutMetadata {
    /// Stores a metadata chunk and returns its id.
    fn put_metadata(&self, plain: &[u8]) -> Result<ChunkId>;
}

impl<F: Fn(&ChunkId) -> Result<Vec<u8>> + Sync> Chunks for F {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        *plain = self(id)?;
        Ok(())
    }
}

impl<F: Fn(&[u8]) -> Result<ChunkId>> PutMetadata for F {
    fn put_metadata(&self, plain: &[u8]) -> Result<ChunkId> {
        self(plain)
    }
}
