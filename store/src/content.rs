//! Content of files: random access in bounded memory.
//!
//! A [`ContentReader`] finds the extents of a file by their offsets. A request decodes every chunk
//! once, whatever the order of its slices. Small requests keep chunks in a [`ChunkCache`].

mod chunk_cache;

pub use chunk_cache::ChunkCache;

use crate::chunks::Chunks;
use crate::counting_sort::by_number;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::limits;
use crate::recipe::{Extent, Recipe};
use chunk_cache::Group;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Weak};

/// Longer requests, in bytes, do not go through the cache.
const CACHED_BYTES_MAX: usize = 1 << 20;
/// Maximum number of bytes read at once.
const REQUEST_BYTES_MAX: usize = 1 << 30;
/// Maximum number of slices read at once.
const SLICES_MAX: usize = 256 << 10;
/// Maximum number of chunks read at once.
const CHUNKS_MAX: usize = 4 << 10;
/// Bytes of a large request that threads fill one at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Random access to the content of a file that is stored in chunks.
#[derive(Clone)]
pub struct ContentReader<'a> {
    chunks: &'a dyn Chunks,
    cache: &'a ChunkCache,
    level: u8,
    top: Arc<Group>,
    len: u64,
}

impl<'a> ContentReader<'a> {
    /// Returns a reader of the file with this recipe and length in bytes.
    pub fn new(
        chunks: &'a dyn Chunks,
        cache: &'a ChunkCache,
        recipe: &Recipe,
        len: u64,
    ) -> ContentReader<'a> {
        let top = Arc::new(Group::new(recipe.extents.clone()));
        ContentReader { chunks, cache, level: recipe.level, top, len }
    }

    /// Returns the same content, read from other chunks.
    pub fn with_chunks(self, chunks: &'a dyn Chunks) -> ContentReader<'a> {
        ContentReader { chunks, ..self }
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads bytes from `offset` on and returns their number. Every byte is verified.
    ///
    /// Returns fewer bytes than requested at the end of the file, before an unreadable byte, and
    /// after very many bytes, slices or chunks. Returns 0 only at the end.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = wanted.min(buffer.len()).min(REQUEST_BYTES_MAX);
        let (mut slices, mut filled) = (Slices::default(), 0);
        while filled < wanted && !slices.are_many() {
            let (leaf, into) = match self.leaf_at(offset + filled as u64) {
                Ok(found) => found.ok_or_else(|| malformed("its recipe is shorter"))?,
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error),
            };
            let mut into = into;
            for extent in leaf.group.from(leaf.last) {
                let step = usize::try_from(extent.len() - into).unwrap_or(usize::MAX);
                let step = step.min(wanted - filled);
                match *extent {
                    Extent::Hole { .. } => buffer[filled..filled + step].fill(0),
                    Extent::Slice { chunk, offset, .. } => {
                        let from = u32::try_from(u64::from(offset) + into).unwrap_or(u32::MAX);
                        slices.push(chunk, from, filled as u32, step as u32);
                    }
                }
                filled += step;
                if filled == wanted || slices.are_many() {
                    break;
                }
                into = 0;
            }
        }
        let cache = (filled <= CACHED_BYTES_MAX).then_some(self.cache);
        slices.read(self.chunks, cache, &mut buffer[..filled])
    }

    /// Finds the extent that contains the byte at `offset`, and the offset into the extent.
    fn leaf_at(&self, offset: u64) -> Result<Option<(FoundLeaf, u64)>> {
        if self.level > limits::RECIPE_LEVELS_MAX {
            return Err(malformed("its recipe has too many levels"));
        }
        let (mut group, mut range, mut last) = (Arc::clone(&self.top), 0..self.len, 0);
        for _ in 0..self.level {
            let (chunk, len, into) = match group.at(offset - range.start, &mut last) {
                None => return Ok(None),
                Some((Extent::Hole { .. }, _)) => {
                    return Err(malformed("a list of recipe chunks contains a hole"));
                }
                Some((Extent::Slice { chunk, len, .. }, into)) => (chunk, len, into),
            };
            let start = offset - into;
            group = self.cache.group(&chunk, len, self.chunks)?;
            (range, last) = (start..start.saturating_add(len), 0);
        }
        let found = group.at(offset - range.start, &mut last);
        Ok(found.map(|(_, into)| (FoundLeaf { range, group, last }, into)))
    }
}

/// A group of extents in the recipe of a file.
struct FoundLeaf {
    /// Byte range in the file.
    range: Range<u64>,
    group: Arc<Group>,
    /// Index of the extent that was looked up.
    last: usize,
}

/// Slices of one request, in the order of the file.
#[derive(Default)]
struct Slices {
    slices: Vec<Slice>,
    chunks: Vec<ChunkId>,
    /// Indexes of the chunks.
    numbers: HashMap<ChunkId, u32>,
}

#[derive(Clone, Copy)]
struct Slice {
    /// Index of the chunk.
    chunk: u32,
    /// First byte in the chunk.
    from: u32,
    /// First byte in the buffer.
    to: u32,
    len: u32,
}

impl Slices {
    fn push(&mut self, chunk: ChunkId, from: u32, to: u32, len: u32) {
        let chunks = &mut self.chunks;
        let number = *self.numbers.entry(chunk).or_insert_with(|| {
            chunks.push(chunk);
            chunks.len() as u32 - 1
        });
        self.slices.push(Slice { chunk: number, from, to, len });
    }

    fn are_many(&self) -> bool {
        self.slices.len() >= SLICES_MAX || self.chunks.len() >= CHUNKS_MAX
    }

    /// Fills the buffer chunk by chunk, up to the first unreadable slice.
    fn read(
        mut self,
        chunks: &dyn Chunks,
        cache: Option<&ChunkCache>,
        buffer: &mut [u8],
    ) -> Result<usize> {
        let order = by_number(self.slices.iter().map(|slice| slice.chunk), self.chunks.len());
        self.slices = order.iter().map(|place| self.slices[*place as usize]).collect();
        let groups: Vec<&[Slice]> = self.slices.chunk_by(|a, b| a.chunk == b.chunk).collect();
        let len = buffer.len();
        let pieces: Vec<Mutex<&mut [u8]>> =
            buffer.chunks_mut(PIECE_BYTES).map(Mutex::new).collect();
        let failed: Mutex<Option<(u32, Error)>> = Mutex::default();
        let each = |number: usize, plain: Result<&[u8]>| {
            if let Err(failure) = place(&pieces, &self.chunks[number], groups[number], plain) {
                let mut failed = failed.lock();
                if failed.as_ref().is_none_or(|earliest| failure.0 < earliest.0) {
                    *failed = Some(failure);
                }
            }
            ControlFlow::Continue(())
        };
        match cache {
            None => chunks.get_many(&self.chunks, &each),
            Some(cache) => self.chunks.iter().enumerate().for_each(|(number, id)| {
                let _ = match cache.plain(id, chunks) {
                    Ok(plain) => each(number, Ok(&plain)),
                    Err(error) => each(number, Err(error)),
                };
            }),
        }
        match failed.into_inner() {
            None => Ok(len),
            Some((0, error)) => Err(error),
            Some((at, _)) => Ok(at as usize),
        }
    }
}

/// Copies the slices of one chunk to their places. An error comes with the first place that lacks
/// its bytes.
fn place(
    pieces: &[Mutex<&mut [u8]>],
    id: &ChunkId,
    slices: &[Slice],
    plain: Result<&[u8]>,
) -> Result<(), (u32, Error)> {
    let plain = plain.map_err(|error| (slices[0].to, error))?;
    let mut held = (0, pieces[0].lock());
    for slice in slices {
        let mut bytes = slice.of(id, plain).map_err(|error| (slice.to, error))?;
        let mut to = slice.to as usize;
        while !bytes.is_empty() {
            if held.0 != to / PIECE_BYTES {
                drop(held);
                held = (to / PIECE_BYTES, pieces[to / PIECE_BYTES].lock());
            }
            let space = &mut held.1[to % PIECE_BYTES..];
            let (now, rest) = bytes.split_at(bytes.len().min(space.len()));
            space[..now.len()].copy_from_slice(now);
            (to, bytes) = (to + now.len(), rest);
        }
    }
    Ok(())
}

impl Slice {
    /// Returns the bytes of the slice.
    fn of<'p>(&self, id: &ChunkId, plain: &'p [u8]) -> Result<&'p [u8]> {
        let bytes = plain.get(self.from as usize..).and_then(|rest| rest.get(..self.len as usize));
        bytes.ok_or_else(|| malformed(&format!("chunk {id} is too short")))
    }
}

fn malformed(reason: &str) -> Error {
    Error::Malformed { what: "the content of a file".into(), reason: reason.into() }
}

/// A position in a file. Requests near the last one are fast.
///
/// A cursor keeps nothing in memory: the cache owns the bytes near the position.
#[derive(Clone)]
pub struct Cursor<'a> {
    reader: ContentReader<'a>,
    leaf: Option<Leaf>,
    spot: Option<Spot>,
}

/// One group of extents in the recipe of a file.
#[derive(Clone)]
struct Leaf {
    /// Byte range in the file.
    range: Range<u64>,
    group: Weak<Group>,
    /// Index of the extent found last.
    last: usize,
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
pub struct ChunkSlice {
    plain: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl ChunkSlice {
    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
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

impl<'a> Cursor<'a> {
    /// Returns a cursor for this file.
    pub fn new(reader: ContentReader<'a>) -> Cursor<'a> {
        Cursor { reader, leaf: None, spot: None }
    }

    /// Returns the same position of the same content, read from other chunks.
    pub fn with_chunks(self, chunks: &'a dyn Chunks) -> Cursor<'a> {
        Cursor { reader: self.reader.with_chunks(chunks), ..self }
    }

    /// Returns the length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.reader.len
    }

    /// Returns true if the file is empty.
    pub fn is_empty(&self) -> bool {
        self.reader.is_empty()
    }

    /// Returns the extent that contains the byte at `offset`, and the offset into the extent.
    pub fn extent_at(&mut self, offset: u64) -> Result<Option<(Extent, u64)>> {
        if let Some(leaf) = self.leaf.as_mut().filter(|leaf| leaf.range.contains(&offset))
            && let Some(group) = leaf.group.upgrade()
        {
            return Ok(group.at(offset - leaf.range.start, &mut leaf.last));
        }
        let Some((leaf, into)) = self.reader.leaf_at(offset)? else { return Ok(None) };
        let FoundLeaf { range, group, last } = leaf;
        self.leaf = Some(Leaf { range, group: Arc::downgrade(&group), last });
        Ok(group.from(last).first().map(|extent| (*extent, into)))
    }

    /// Returns the contiguous bytes from `offset` on. Returns `None` for a hole, at the end, and if
    /// the chunk is too short.
    pub fn slice_at(&mut self, offset: u64) -> Result<Option<ChunkSlice>> {
        if let Some(part) = self.spot.as_ref().and_then(|spot| spot.part(offset)) {
            return Ok(Some(part));
        }
        let Some((Extent::Slice { chunk, offset: in_chunk, len }, into)) =
            self.extent_at(offset)?
        else {
            return Ok(None);
        };
        let start = offset - into;
        let plain = self.reader.cache.plain(&chunk, self.reader.chunks)?;
        let range = start..start.saturating_add(len);
        let spot = Spot { range, offset: in_chunk as usize, plain: Arc::downgrade(&plain) };
        Ok(self.spot.insert(spot).part(offset))
    }

    /// Returns the number of bytes that `with` and the file have in common from `offset` on.
    /// Unreadable bytes and holes differ from all others.
    pub fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
        let mut same = 0;
        while same < with.len() {
            let rest = &with[same..];
            let Ok(Some(part)) = self.slice_at(offset + same as u64) else { break };
            let bytes = part.bytes();
            let len = bytes.len().min(rest.len());
            let equal = chunker::delta::common_prefix(&bytes[..len], &rest[..len]);
            same += equal;
            if equal < len {
                break;
            }
        }
        same
    }

    /// Reads bytes from `offset` on, up to a hole or an unreadable byte, and returns their number.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < buffer.len() {
            let space = &mut buffer[filled..];
            let Ok(Some(part)) = self.slice_at(offset + filled as u64) else { break };
            let bytes = part.bytes();
            let len = bytes.len().min(space.len());
            space[..len].copy_from_slice(&bytes[..len]);
            filled += len;
        }
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{MemoryChunks, cases};
    use crate::chunks::PutMetadata;
    use crate::recipe::RecipeWriter;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn is_shared<T: Send + Sync>(_: &T) {}

    /// A stored file and its bytes.
    struct Stored {
        chunks: MemoryChunks,
        recipe: Recipe,
        bytes: Vec<u8>,
    }

    /// Stores a file of slices (chunk, offset, length) and holes (chunk 0, length) of 20 chunks.
    fn store(parts: &[(usize, usize, usize)], times: usize) -> Stored {
        let chunks = MemoryChunks::default();
        let plain: Vec<Vec<u8>> =
            (0..20u8).map(|n| (0..9000).map(|at| (at / 7) as u8 ^ n).collect()).collect();
        let ids: Vec<ChunkId> =
            plain.iter().map(|plain| chunks.put_metadata(plain).expect("puts")).collect();
        let (mut recipe, mut bytes) = (RecipeWriter::default(), Vec::new());
        for (n, offset, len) in parts.iter().cycle().take(parts.len() * times) {
            let (n, offset) = (n % 20, offset % 9000);
            let len = (1 + len % 5000).min(9000 - offset);
            let extent = match n {
                0 => Extent::Hole { len: len as u64 },
                n => Extent::Slice { chunk: ids[n], offset: offset as u32, len: len as u64 },
            };
            recipe.push(extent, &chunks).expect("pushes");
            match n {
                0 => bytes.resize(bytes.len() + len, 0),
                n => bytes.extend_from_slice(&plain[n][offset..offset + len]),
            }
        }
        let recipe = recipe.finish(&chunks).expect("finishes");
        Stored { chunks, recipe, bytes }
    }

    proptest! {
        #![proptest_config(cases(30))]

        #[test]
        fn any_range_is_read_as_written(
            parts in vec((any::<usize>(), any::<usize>(), any::<usize>()), 1..80),
            times in prop_oneof![1..4usize, Just(40)],
            ranges in vec((any::<usize>(), any::<usize>()), 1..20),
            cache_bytes in prop_oneof![Just(0), Just(1 << 20)],
        ) {
            let Stored { chunks, recipe, bytes } = store(&parts, times);
            let cache = ChunkCache::new(cache_bytes);
            let file = ContentReader::new(&chunks, &cache, &recipe, bytes.len() as u64);
            is_shared(&file);
            let mut cursor = Cursor::new(file.clone());
            let all = (0, bytes.len() + 1);
            for (from, len) in ranges.into_iter().chain([all]) {
                let from = from % bytes.len();
                let wanted = &bytes[from..bytes.len().min(from + len % (bytes.len() + 2))];
                let mut found = vec![0xEE; wanted.len()];
                let filled = file.read_at(from as u64, &mut found).expect("reads");
                prop_assert_eq!(filled, wanted.len());
                prop_assert!(found == wanted);
                let readable = cursor.read(from as u64, &mut found);
                prop_assert!(found[..readable] == wanted[..readable]);
                prop_assert_eq!(cursor.common_prefix(from as u64, wanted), readable);
            }
            prop_assert_eq!(file.read_at(bytes.len() as u64, &mut [0; 9]).expect("reads"), 0);
        }
    }

    #[test]
    fn bytes_before_an_unreadable_chunk_are_read() {
        // Short and long, without and with recipe chunks.
        for (before, times) in [(3, 1), (400, 2)] {
            let parts: Vec<_> = (0..before).map(|n| (1 + n % 18, n, 3999)).collect();
            let Stored { chunks, recipe, bytes } =
                store(&[&parts[..], &[(19, 5, 99)]].concat(), times);
            let lost = chunks
                .0
                .lock()
                .iter()
                .find(|(_, plain)| plain.first() == Some(&19))
                .map(|(id, _)| *id);
            chunks.0.lock().remove(&lost.expect("was put"));
            let cache = ChunkCache::new(1 << 20);
            let file = ContentReader::new(&chunks, &cache, &recipe, bytes.len() as u64);
            let mut found = vec![0; bytes.len()];
            let good = before * 4000;
            assert_eq!(file.read_at(0, &mut found).expect("reads"), good);
            assert!(found[..good] == bytes[..good]);
            let error = file.read_at(good as u64, &mut found);
            assert!(matches!(error, Err(Error::ChunkMissing(id)) if Some(id) == lost));
        }
    }

    #[test]
    fn slices_beyond_their_chunk_are_errors() {
        let chunks = MemoryChunks::default();
        let chunk = chunks.put_metadata(&[7; 100]).expect("puts");
        for (offset, len, is_good) in [(0, 100, true), (1, 100, false), (200, 1, false)] {
            let recipe = Recipe { level: 0, extents: vec![Extent::Slice { chunk, offset, len }] };
            let cache = ChunkCache::new(1 << 20);
            let file = ContentReader::new(&chunks, &cache, &recipe, len);
            assert_eq!(file.read_at(0, &mut [0; 100]).is_ok(), is_good, "{offset} {len}");
            let same = Cursor::new(file).common_prefix(0, &[7; 100]);
            assert_eq!(same == len as usize, is_good, "{offset} {len}");
        }
    }
}
