//! Files of the previous snapshot, read to compare others with them.

use crate::chunks::Chunks;
use crate::content::{ChunkCache, ContentReader, Cursor};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::index::Location;
use crate::recipe::{Extent, Recipe};
use crate::store::Store;
use chunker::delta::Reference;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;

/// Bytes of decoded chunks and recipe groups that a reader caches.
const CACHE_BYTES: usize = 24 << 20;

/// Chunks of the previous snapshot, read for a new one.
struct ReferenceChunks<'a> {
    store: &'a Store,
    /// Unreadable chunks, so that none is tried twice.
    lost: Arc<Mutex<HashSet<ChunkId>>>,
    /// True to accept an intact chunk in a damaged segment. A new snapshot must not depend on it.
    is_compared: bool,
}

impl Chunks for ReferenceChunks<'_> {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        let location = self.location(id)?;
        let is_usable = location.is_healthy && self.store.is_lasting(&location);
        if !is_usable && !self.is_compared {
            // The code that found the damage reported it.
            return Err(Error::ChunkMissing(*id));
        }
        self.store.read_location(id, &location, plain).inspect_err(|error| {
            self.lost.lock().insert(*id);
            // The chunks of this segment are stored again when they occur next.
            let _ = self.store.index.set_damaged(&location.segment);
            self.store.damage.error(error);
        })
    }
}

impl ReferenceChunks<'_> {
    /// Returns the location of a chunk, unless the chunk is known to be lost.
    fn location(&self, id: &ChunkId) -> Result<Location> {
        if self.lost.lock().contains(id) {
            return Err(Error::ChunkMissing(*id));
        }
        match self.store.index.find(id)? {
            Some(location) => Ok(location),
            None => {
                let error = Error::ChunkMissing(*id);
                self.lost.lock().insert(*id);
                let _ = self.store.index.forget_whole();
                self.store.damage.error(&error);
                Err(error)
            }
        }
    }
}

/// Decodes chunks of references and caches the most recent ones.
pub struct Reader<'a> {
    cache: ChunkCache,
    /// Chunks that a new snapshot may depend on.
    healthy: ReferenceChunks<'a>,
    /// All intact chunks, for bytes that were already compared.
    compared: ReferenceChunks<'a>,
}

impl<'a> Reader<'a> {
    /// Returns a reader of this store.
    pub fn new(store: &'a Store) -> Reader<'a> {
        let lost = Arc::default();
        let compared = ReferenceChunks { store, lost: Arc::clone(&lost), is_compared: true };
        let healthy = ReferenceChunks { store, lost, is_compared: false };
        Reader { cache: ChunkCache::new(CACHE_BYTES), healthy, compared }
    }

    /// Returns the verified plain bytes of a chunk whose bytes were already compared.
    pub fn plain(&self, id: &ChunkId) -> Result<Arc<Vec<u8>>> {
        self.cache.plain(id, &self.compared)
    }

    /// Returns the length of a chunk that was read before, or `None` if its segment has been found
    /// damaged since.
    pub fn plain_len(&self, id: &ChunkId) -> Result<Option<u64>> {
        let location = self.compared.location(id)?;
        let is_usable = location.is_healthy && self.compared.store.is_lasting(&location);
        Ok(is_usable.then_some(u64::from(location.plain_len)))
    }
}

/// A file of the previous snapshot.
#[derive(Clone)]
pub struct ReferenceFile<'a> {
    reader: &'a Reader<'a>,
    content: Cursor<'a>,
}

impl<'a> ReferenceFile<'a> {
    /// Returns the file with this recipe and length in bytes.
    pub fn new(reader: &'a Reader<'a>, recipe: &Recipe, len: u64) -> ReferenceFile<'a> {
        let content = ContentReader::new(&reader.healthy, &reader.cache, recipe, len);
        ReferenceFile { reader, content: Cursor::new(content) }
    }

    /// Returns the same file for locating bytes that were already compared.
    pub fn compared(self) -> ReferenceFile<'a> {
        ReferenceFile { content: self.content.with_chunks(&self.reader.compared), ..self }
    }

    /// Returns the extent that contains the byte at `offset`, and the offset into the extent.
    pub fn extent_at(&mut self, offset: u64) -> Result<Option<(Extent, u64)>> {
        self.content.extent_at(offset)
    }
}

/// Unreadable bytes were reported when they were found.
impl Reference for ReferenceFile<'_> {
    fn len(&self) -> u64 {
        self.content.len()
    }

    fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
        self.content.common_prefix(offset, with)
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        self.content.read(offset, buffer)
    }
}
