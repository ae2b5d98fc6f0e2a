//! The recipe of a file: byte ranges of chunks, in file order.

mod columns;

use crate::chunks::{Chunks, PutMetadata};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::limits;
use minicbor::{Decoder, Encoder, decode};
use std::collections::HashMap;

/// Maximum number of extents stored in a tree entry.
const INLINE_EXTENTS_MAX: usize = 48;
/// Minimum number of extents in a recipe chunk, except the last.
const GROUP_EXTENTS_MIN: usize = 256;
/// Zero bits that end a group: one whole chunk in 1024, one other slice in 16,384.
const WHOLE_END_BITS: u32 = 10;
const PART_END_BITS: u32 = 14;

/// A run of bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// A slice of a chunk's plain bytes.
    Slice {
        /// Id of the chunk.
        chunk: ChunkId,
        /// Byte offset in the chunk.
        offset: u32,
        /// Length in bytes.
        len: u64,
    },
    /// Zeros without stored bytes.
    Hole {
        /// Length in bytes.
        len: u64,
    },
}

impl Extent {
    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        match *self {
            Extent::Slice { len, .. } | Extent::Hole { len } => len,
        }
    }

    /// Returns true if the length is 0. Stored extents are never empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The extents of a file.
///
/// At level 0 the extents form the file. At higher levels they list chunks that hold recipes of the
/// level below. The length of each extent is then that of its part of the *file*.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipe {
    /// Number of levels above the extents of the file.
    pub level: u8,
    /// Extents in file order.
    pub extents: Vec<Extent>,
}

pub(crate) fn encode_extents(extents: &[Extent], out: &mut Encoder<&mut Vec<u8>>) {
    let written = (|| {
        out.array(extents.len() as u64)?;
        for extent in extents {
            match *extent {
                Extent::Hole { len } => out.array(1)?.u64(len)?,
                Extent::Slice { chunk, offset: 0, len } => {
                    out.array(2)?.bytes(chunk.as_bytes())?.u64(len)?
                }
                Extent::Slice { chunk, offset, len } => {
                    out.array(3)?.bytes(chunk.as_bytes())?.u64(len)?.u32(offset)?
                }
            };
        }
        Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
    })();
    written.expect("writing to memory cannot fail");
}

pub(crate) fn decode_extents(input: &mut Decoder<'_>) -> Result<Vec<Extent>, decode::Error> {
    let count = input.array()?.ok_or_else(|| decode::Error::message("indefinite length"))?;
    if count > limits::RECIPE_EXTENTS_MAX as u64 {
        return Err(decode::Error::message("a recipe chunk has too many extents"));
    }
    let mut extents = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let fields = input.array()?;
        let extent = if fields == Some(1) {
            Extent::Hole { len: input.u64()? }
        } else {
            let chunk = ChunkId::from_slice(input.bytes()?)
                .ok_or_else(|| decode::Error::message("a chunk id is not 32 bytes long"))?;
            let len = input.u64()?;
            let offset = match fields {
                Some(2) => 0,
                Some(3) => input.u32()?,
                _ => return Err(decode::Error::message("an extent does not have 1 to 3 fields")),
            };
            Extent::Slice { chunk, offset, len }
        };
        if extent.is_empty() {
            return Err(decode::Error::message("an extent is empty"));
        }
        extents.push(extent);
    }
    Ok(extents)
}

/// Collects extents while a file is read. Extents that exceed an entry go to recipe chunks.
///
/// The content of an extent decides whether it ends a group. An insertion near the start of a large
/// file therefore leaves later groups unchanged.
#[derive(Debug, Default)]
pub struct RecipeWriter {
    /// The last extent; the next one may continue it.
    last: Option<Extent>,
    /// One open group per level, lowest first.
    levels: Vec<Group>,
    len: u64,
}

/// Extents of one recipe chunk.
#[derive(Debug, Default)]
struct Group {
    extents: Vec<Extent>,
    /// True if some slices start inside their chunk. The group is then encoded in columns.
    has_parts: bool,
}

impl Group {
    fn push(&mut self, extent: Extent) {
        self.has_parts |= is_part(&extent);
        self.extents.push(extent);
    }

    /// Returns true if `last`, the most recent extent, ends the group.
    fn ends(&self, last: &Extent) -> bool {
        let most = match self.has_parts {
            true => limits::RECIPE_COLUMNS_MAX,
            false => limits::RECIPE_EXTENTS_MAX,
        };
        let count = self.extents.len();
        count >= most || (count >= GROUP_EXTENTS_MIN && ends_group(last))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let out = &mut Encoder::new(&mut bytes);
        match self.has_parts {
            true => columns::encode(&self.extents, out),
            false => encode_extents(&self.extents, out),
        }
        bytes
    }
}

impl RecipeWriter {
    /// Appends a hole or a slice within its chunk. `out` stores recipe chunks.
    pub fn push(&mut self, extent: Extent, out: &dyn PutMetadata) -> Result<()> {
        if extent.is_empty() {
            return Ok(());
        }
        self.len += extent.len();
        if let Some(last) = &mut self.last
            && let Some(both) = joined(last, &extent)
        {
            *last = both;
            return Ok(());
        }
        match self.last.replace(extent) {
            Some(last) => self.push_at(0, last, out),
            None => Ok(()),
        }
    }

    /// Returns the number of bytes of the file so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push_at(&mut self, level: usize, extent: Extent, out: &dyn PutMetadata) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Group::default());
        }
        let group = &mut self.levels[level];
        group.push(extent);
        if group.ends(&extent) { self.close(level, out) } else { Ok(()) }
    }

    /// Stores the open group of `level` and adds it to the next level.
    fn close(&mut self, level: usize, out: &dyn PutMetadata) -> Result<()> {
        let group = std::mem::take(&mut self.levels[level]);
        let len = group.extents.iter().map(Extent::len).sum();
        let chunk = out.put_metadata(&group.encode())?;
        self.push_at(level + 1, Extent::Slice { chunk, offset: 0, len }, out)
    }

    /// Returns the recipe of everything pushed.
    pub fn finish(mut self, out: &dyn PutMetadata) -> Result<Recipe> {
        if let Some(last) = self.last.take() {
            self.push_at(0, last, out)?;
        }
        let mut level = 0;
        while level < self.levels.len() {
            let is_top = level + 1 == self.levels.len();
            let extents = &self.levels[level].extents;
            if is_top && extents.len() <= INLINE_EXTENTS_MAX {
                break;
            }
            if !extents.is_empty() {
                self.close(level, out)?;
            }
            level += 1;
        }
        let extents = self.levels.pop().unwrap_or_default().extents;
        Ok(Recipe { level: level as u8, extents })
    }
}

/// Joins two extents if the second continues the first.
fn joined(first: &Extent, second: &Extent) -> Option<Extent> {
    match (*first, *second) {
        (Extent::Hole { len }, Extent::Hole { len: more }) => {
            Some(Extent::Hole { len: len + more })
        }
        (
            Extent::Slice { chunk, offset, len },
            Extent::Slice { chunk: other, offset: begin, len: more },
        ) if chunk == other && u64::from(offset).checked_add(len) == Some(u64::from(begin)) => {
            Some(Extent::Slice { chunk, offset, len: len + more })
        }
        _ => None,
    }
}

/// Returns true for a slice that starts inside its chunk. Files that were cut into chunks have no
/// such slices.
fn is_part(extent: &Extent) -> bool {
    matches!(extent, Extent::Slice { offset, .. } if *offset > 0)
}

/// Returns true if a group may end after this extent. Where the same few chunks repeat, the chunk
/// alone must not decide that for slices.
fn ends_group(extent: &Extent) -> bool {
    let Extent::Slice { chunk, offset, len } = *extent else { return false };
    let (number, _) = chunk.as_bytes().split_first_chunk().expect("an id has more bytes");
    let number = u64::from_le_bytes(*number);
    if offset == 0 {
        return number.trailing_zeros() >= WHOLE_END_BITS;
    }
    // An odd number, 2^64 divided by the golden ratio, carries every bit up to the first ones.
    let mixed = (number ^ u64::from(offset) << 32 ^ len).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed.leading_zeros() >= PART_END_BITS
}

/// Decodes a recipe chunk in either encoding.
fn decode_group(bytes: &[u8]) -> Result<Vec<Extent>, decode::Error> {
    let mut input = Decoder::new(bytes);
    match columns::are_next(&input) {
        true => columns::decode(&mut input),
        false => decode_extents(&mut input),
    }
}

/// Iterates over the extents of a file and reads recipe chunks as needed.
pub struct Extents<'a> {
    chunks: &'a dyn Chunks,
    /// Level and remaining extents of each group in progress, top first.
    stack: Vec<(u8, std::vec::IntoIter<Extent>)>,
}

impl<'a> Extents<'a> {
    /// Returns an iterator over `recipe`; `chunks` has its recipe chunks.
    pub fn new(recipe: &Recipe, chunks: &'a dyn Chunks) -> Extents<'a> {
        Extents { chunks, stack: vec![(recipe.level, recipe.extents.clone().into_iter())] }
    }

    fn descend(&mut self, level: u8, extent: Extent) -> Result<()> {
        let Extent::Slice { chunk, len, .. } = extent else {
            return Err(malformed("a recipe", "a list of recipe chunks contains a hole"));
        };
        if level > limits::RECIPE_LEVELS_MAX {
            return Err(malformed(format!("recipe chunk {chunk}"), "it has too many levels"));
        }
        let extents = read_group(&chunk, len, &self.chunks.get(&chunk)?)?;
        self.stack.push((level - 1, extents.into_iter()));
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        loop {
            let (level, group) = self.stack.last_mut()?;
            let level = *level;
            match group.next() {
                None => drop(self.stack.pop()),
                Some(extent) if level == 0 => return Some(Ok(extent)),
                Some(extent) => {
                    if let Err(error) = self.descend(level, extent) {
                        self.stack.clear();
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

/// Returns the extents of recipe chunk `chunk`, which cover `len` bytes of a file.
pub(crate) fn read_group(chunk: &ChunkId, len: u64, bytes: &[u8]) -> Result<Vec<Extent>> {
    let what = || format!("recipe chunk {chunk}");
    let extents = decode_group(bytes).map_err(|error| malformed(what(), error.to_string()))?;
    let sum = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.len()));
    if sum != Some(len) {
        return Err(malformed(what(), "its lengths do not add up"));
    }
    Ok(extents)
}

/// Cache of a result per chunk, shared by all slices of the chunk. It is cleared when full, so it
/// cannot grow.
pub struct Recent<T>(HashMap<ChunkId, T>);

/// Maximum number of cached chunks.
const RECENT_MAX: usize = 4096;

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent(HashMap::new())
    }
}

impl<T> Recent<T> {
    /// Returns the cached result of a chunk.
    pub fn get(&self, chunk: &ChunkId) -> Option<&T> {
        self.0.get(chunk)
    }

    /// Caches a result for a chunk.
    pub fn insert(&mut self, chunk: ChunkId, value: T) {
        if self.0.len() >= RECENT_MAX {
            self.0.clear();
        }
        self.0.insert(chunk, value);
    }
}

fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Malformed { what: what.into(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{MemoryChunks, cases, changed, changes, extent, noise};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn extents(count: usize) -> Vec<Extent> {
        (0..count)
            .map(|n| {
                let chunk = ChunkId::of(&n.to_le_bytes());
                match n % 7 {
                    6 => Extent::Hole { len: 5 },
                    5 => Extent::Slice { chunk, offset: 9, len: n as u64 + 1 },
                    _ => Extent::Slice { chunk, offset: 0, len: n as u64 + 1 },
                }
            })
            .collect()
    }

    #[test]
    fn any_number_of_extents_is_read_as_written() {
        for count in [0, 1, 48, 49, 255, 256, 257, 4096, 5000, 30_000, 400_000] {
            let chunks = MemoryChunks::default();
            let wanted = extents(count);
            let mut writer = RecipeWriter::default();
            for extent in &wanted {
                writer.push(*extent, &chunks).expect("puts");
            }
            assert_eq!(writer.len(), wanted.iter().map(Extent::len).sum::<u64>());
            let recipe = writer.finish(&chunks).expect("puts");
            assert!(recipe.extents.len() <= INLINE_EXTENTS_MAX, "{count}");
            assert_eq!(recipe.level > 0, count > INLINE_EXTENTS_MAX, "{count}");
            let got: Vec<Extent> =
                Extents::new(&recipe, &chunks).map(|e| e.expect("reads")).collect();
            assert_eq!(got, wanted, "{count}");
        }
    }

    /// Slices of a repacked file: two new bytes, then a slice of an old chunk, a little after the
    /// previous one.
    fn fragments(count: u32) -> Vec<Extent> {
        let chunk = |n: u32| ChunkId::of(&n.to_le_bytes());
        let offset = |n: u32, step: u32| n % 600 * step;
        let slice = |n: u32| match n % 2 {
            0 => Extent::Slice { chunk: chunk(0), offset: offset(n / 2, 2), len: 2 },
            _ => {
                let len = u64::from(100 + n * 37 % 200);
                Extent::Slice { chunk: chunk(1 + n / 1200), offset: offset(n / 2, 320), len }
            }
        };
        (0..count).map(slice).collect()
    }

    #[test]
    fn many_slices_of_few_chunks_are_stored_compactly() {
        for count in [49, 255, 257, 20_000, 200_000] {
            let (chunks, wanted) = (MemoryChunks::default(), fragments(count));
            let recipe = chunks.recipe_of(&wanted);
            let got: Vec<Extent> =
                Extents::new(&recipe, &chunks).map(|e| e.expect("reads")).collect();
            assert_eq!(got, wanted, "{count}");
            let bytes: usize = chunks.0.lock().values().map(Vec::len).sum();
            assert!(bytes < 6 * count as usize + 300, "{bytes} bytes for {count}");
            let groups = chunks.0.lock().len();
            let most = 1 + count as usize / 4096;
            assert!(groups <= most, "{groups} groups of {count}");
        }
    }

    #[test]
    fn an_insertion_changes_few_groups() {
        let fragments = fragments(400_000);
        let chunks = MemoryChunks::default();
        chunks.recipe_of(&fragments);
        let before = chunks.0.lock().len();
        let inserted = Extent::Slice { chunk: ChunkId::of(b"new"), offset: 1, len: 7 };
        chunks.recipe_of(&[&fragments[..9], &[inserted], &fragments[9..]].concat());
        let new = chunks.0.lock().len() - before;
        assert!(before > 10 && new <= 3, "{new} new groups beside {before}");
    }

    /// The ends of groups and their encoding decide whether a store already has them.
    #[test]
    fn the_encoding_of_recipes_is_stable() {
        let whole = |n: u32| Extent::Slice {
            // Some chunks repeat.
            chunk: ChunkId::of(&(n / 3 * 3).to_le_bytes()),
            offset: 0,
            len: u64::from(n % 3 + 1),
        };
        let whole: Vec<Extent> = (0..20_000).map(whole).collect();
        for (extents, id) in [
            (whole, "e500a9bc30ec528d680c455215c616424bf193a0c416dfeeb4b757a5adecae83"),
            (
                fragments(100_000),
                "0c5efa87cfa81d8bddd9d0b18f60d8020a0ba198d254655ac39b1582249d87c4",
            ),
        ] {
            let recipe = MemoryChunks::default().recipe_of(&extents);
            let mut bytes = vec![recipe.level];
            encode_extents(&recipe.extents, &mut Encoder::new(&mut bytes));
            assert_eq!(ChunkId::of(&bytes).to_string(), id);
        }
    }

    #[test]
    fn adjacent_slices_become_one() {
        let put = |_: &[u8]| unreachable!("short recipes stay in the entry");
        let [a, b] = [b"a", b"b"].map(|name| ChunkId::of(name));
        let slice = |chunk, offset, len| Extent::Slice { chunk, offset, len };
        let mut writer = RecipeWriter::default();
        for (chunk, offset, len) in
            [(a, 0, 5), (a, 5, 1), (a, 6, 2), (a, 9, 1), (b, 10, 1), (b, 0, 9), (b, 0, 9)]
        {
            writer.push(slice(chunk, offset, len), &put).expect("pushes");
        }
        let recipe = writer.finish(&put).expect("finishes");
        let wanted =
            [slice(a, 0, 8), slice(a, 9, 1), slice(b, 10, 1), slice(b, 0, 9), slice(b, 0, 9)];
        assert_eq!(recipe.extents, wanted);
    }

    #[test]
    fn adjacent_holes_become_one_and_empty_extents_vanish() {
        let put = |_: &[u8]| unreachable!("short recipes stay in the entry");
        let mut writer = RecipeWriter::default();
        for len in [3, 0, 4] {
            writer.push(Extent::Hole { len }, &put).expect("pushes");
        }
        let recipe = writer.finish(&put).expect("finishes");
        assert_eq!(recipe.extents, [Extent::Hole { len: 7 }]);
    }

    #[test]
    fn false_lengths_and_levels_are_refused() {
        let mut bytes = Vec::new();
        encode_extents(&[Extent::Hole { len: 5 }], &mut Encoder::new(&mut bytes));
        let chunk = ChunkId::of(&bytes);
        let get = |_: &ChunkId| Ok(bytes.clone());
        for (level, len) in [(1, 6), (1, u64::MAX), (200, 5), (2, 5)] {
            let recipe = Recipe { level, extents: vec![Extent::Slice { chunk, offset: 0, len }] };
            let last = Extents::new(&recipe, &get).last().expect("yields");
            assert!(last.is_err(), "level {level} len {len}");
        }
    }

    #[test]
    fn too_many_extents_are_refused() {
        for (count, is_fine) in [(4096, true), (4097, false)] {
            let mut bytes = Vec::new();
            encode_extents(&extents(count), &mut Encoder::new(&mut bytes));
            assert_eq!(decode_extents(&mut Decoder::new(&bytes)).is_ok(), is_fine, "{count}");
        }
    }

    /// Joins extents that continue each other.
    fn all_joined(extents: &[Extent]) -> Vec<Extent> {
        let mut all: Vec<Extent> = Vec::new();
        for extent in extents {
            match all.last().and_then(|last| joined(last, extent)) {
                Some(both) => *all.last_mut().expect("there is one") = both,
                None => all.push(*extent),
            }
        }
        all
    }

    impl MemoryChunks {
        fn recipe_of(&self, extents: &[Extent]) -> Recipe {
            let mut writer = RecipeWriter::default();
            extents.iter().for_each(|extent| writer.push(*extent, self).expect("puts"));
            writer.finish(self).expect("puts")
        }
    }

    proptest! {
        #![proptest_config(cases(60))]

        #[test]
        fn any_extents_are_read_as_written(few in vec(extent(), 1..60), times in 1..150usize) {
            let wanted = few.repeat(times);
            let chunks = MemoryChunks::default();
            let recipe = chunks.recipe_of(&wanted);
            let got: Result<Vec<Extent>> = Extents::new(&recipe, &chunks).collect();
            prop_assert_eq!(got.expect("reads"), all_joined(&wanted));
        }

        #[test]
        fn any_bytes_are_extents_or_an_error(
            few in vec(extent(), 49..60),
            noise in noise(),
            changes in changes(),
            level: u8,
        ) {
            let _ = decode_group(&noise);
            let chunks = MemoryChunks::default();
            let recipe = chunks.recipe_of(&few.repeat(7));
            for bytes in chunks.0.lock().values_mut() {
                *bytes = changed(std::mem::take(bytes), &changes);
                let extents = decode_group(bytes).unwrap_or_default();
                prop_assert!(!extents.iter().any(Extent::is_empty));
            }
            for level in [recipe.level, level] {
                let recipe = Recipe { level, ..recipe.clone() };
                prop_assert!(Extents::new(&recipe, &chunks).count() <= few.len() * 7 + 1);
            }
        }
    }
}
