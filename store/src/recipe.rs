//! The recipe: which bytes of which chunks make up a file.

use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::limits;
use minicbor::{Decoder, Encoder, decode};

/// Most extents that stand in a tree entry itself.
const INLINE_EXTENTS_MAX: usize = 48;
/// Least and most extents of a recipe chunk.
const GROUP_EXTENTS: std::ops::RangeInclusive<usize> = 256..=limits::RECIPE_EXTENTS_MAX;

/// A run of bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// A slice of a chunk's plain bytes.
    Slice {
        /// Which chunk.
        chunk: ChunkId,
        /// First byte of the chunk that is used.
        offset: u32,
        /// Bytes.
        len: u64,
    },
    /// Zeros that take no space.
    Hole {
        /// Bytes.
        len: u64,
    },
}

impl Extent {
    /// Bytes of the file that this extent makes up.
    pub fn len(&self) -> u64 {
        match *self {
            Extent::Slice { len, .. } | Extent::Hole { len } => len,
        }
    }

    /// Whether it makes up nothing. Stored extents never do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a file is put together.
///
/// At level 0 the extents make up the file. At level n they make up a list of
/// chunks which hold recipes of level n - 1, and each extent's length is that of
/// the part of the *file* below it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipe {
    /// Steps down to the extents of the file.
    pub level: u8,
    /// In file order.
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
        return Err(decode::Error::message("more extents than a recipe chunk has"));
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
                _ => return Err(decode::Error::message("an extent has 1 to 3 fields")),
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

/// Collects extents as a file is read; what does not fit an entry goes to chunks.
///
/// Groups end where a chunk's id says so, so that an insertion near the begin
/// of a large file leaves the later groups as they were.
#[derive(Debug, Default)]
pub struct RecipeWriter {
    /// One open group a level, the lowest first.
    levels: Vec<Vec<Extent>>,
    len: u64,
}

impl RecipeWriter {
    /// Appends an extent. `put` stores a metadata chunk.
    pub fn push(
        &mut self,
        extent: Extent,
        put: &mut dyn FnMut(&[u8]) -> Result<ChunkId>,
    ) -> Result<()> {
        if extent.is_empty() {
            return Ok(());
        }
        self.len += extent.len();
        if let (Extent::Hole { len }, Some(Extent::Hole { len: last })) =
            (extent, self.levels.first_mut().and_then(|group| group.last_mut()))
        {
            *last += len;
            return Ok(());
        }
        self.push_at(0, extent, put)
    }

    /// Bytes of the file so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was pushed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push_at(
        &mut self,
        level: usize,
        extent: Extent,
        put: &mut dyn FnMut(&[u8]) -> Result<ChunkId>,
    ) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        self.levels[level].push(extent);
        let count = self.levels[level].len();
        if count >= *GROUP_EXTENTS.end() || (count >= *GROUP_EXTENTS.start() && ends_group(&extent))
        {
            self.close(level, put)?;
        }
        Ok(())
    }

    /// Stores the open group of `level` and names it one level up.
    fn close(&mut self, level: usize, put: &mut dyn FnMut(&[u8]) -> Result<ChunkId>) -> Result<()> {
        let group = std::mem::take(&mut self.levels[level]);
        let len = group.iter().map(Extent::len).sum();
        let mut bytes = Vec::new();
        encode_extents(&group, &mut Encoder::new(&mut bytes));
        let chunk = put(&bytes)?;
        self.push_at(level + 1, Extent::Slice { chunk, offset: 0, len }, put)
    }

    /// The recipe of everything pushed.
    pub fn finish(mut self, put: &mut dyn FnMut(&[u8]) -> Result<ChunkId>) -> Result<Recipe> {
        let mut level = 0;
        while level < self.levels.len() {
            let is_top = level + 1 == self.levels.len();
            if is_top && self.levels[level].len() <= INLINE_EXTENTS_MAX {
                break;
            }
            if !self.levels[level].is_empty() {
                self.close(level, put)?;
            }
            level += 1;
        }
        let extents = self.levels.pop().unwrap_or_default();
        Ok(Recipe { level: level as u8, extents })
    }
}

/// One chunk in 1024 ends a group.
fn ends_group(extent: &Extent) -> bool {
    match extent {
        Extent::Slice { chunk, .. } => {
            u16::from_le_bytes([chunk.as_bytes()[0], chunk.as_bytes()[1]]) & 0x3FF == 0
        }
        Extent::Hole { .. } => false,
    }
}

/// Walks over the extents of a file, reading recipe chunks as it comes to them.
pub struct Extents<'a> {
    get: &'a dyn Fn(&ChunkId) -> Result<Vec<u8>>,
    /// Groups being walked: their level and what is left of them, the top first.
    stack: Vec<(u8, std::vec::IntoIter<Extent>)>,
}

impl<'a> Extents<'a> {
    /// The extents of `recipe`; `get` reads metadata chunks.
    pub fn new(recipe: &Recipe, get: &'a dyn Fn(&ChunkId) -> Result<Vec<u8>>) -> Extents<'a> {
        Extents { get, stack: vec![(recipe.level, recipe.extents.clone().into_iter())] }
    }

    fn descend(&mut self, level: u8, extent: Extent) -> Result<()> {
        let Extent::Slice { chunk, len, .. } = extent else {
            return Err(malformed("a recipe", "a hole where recipe chunks are listed"));
        };
        if level > limits::RECIPE_LEVELS_MAX {
            return Err(malformed(format!("recipe chunk {chunk}"), "too many levels"));
        }
        let extents = read_group(&chunk, len, &(self.get)(&chunk)?)?;
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

/// The extents in the recipe chunk `chunk`, which make up `len` bytes of a file.
pub(crate) fn read_group(chunk: &ChunkId, len: u64, bytes: &[u8]) -> Result<Vec<Extent>> {
    let what = || format!("recipe chunk {chunk}");
    let extents = decode_extents(&mut Decoder::new(bytes))
        .map_err(|error| malformed(what(), error.to_string()))?;
    let sum = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.len()));
    if sum != Some(len) {
        return Err(malformed(what(), "its lengths do not add up"));
    }
    Ok(extents)
}

fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Malformed { what: what.into(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, changed, changes, extent, noise};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::collections::HashMap;

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
    fn any_number_of_extents_comes_back() {
        for count in [0, 1, 48, 49, 255, 256, 257, 4096, 5000, 30_000, 400_000] {
            let chunks: RefCell<HashMap<ChunkId, Vec<u8>>> = RefCell::default();
            let mut put = |bytes: &[u8]| {
                let id = ChunkId::of(bytes);
                chunks.borrow_mut().insert(id, bytes.to_vec());
                Ok(id)
            };
            let wanted = extents(count);
            let mut writer = RecipeWriter::default();
            for extent in &wanted {
                writer.push(*extent, &mut put).expect("puts");
            }
            assert_eq!(writer.len(), wanted.iter().map(Extent::len).sum::<u64>());
            let recipe = writer.finish(&mut put).expect("puts");
            assert!(recipe.extents.len() <= INLINE_EXTENTS_MAX, "{count}");
            assert_eq!(recipe.level > 0, count > INLINE_EXTENTS_MAX, "{count}");
            let get =
                |id: &ChunkId| chunks.borrow().get(id).cloned().ok_or(Error::ChunkMissing(*id));
            let got: Vec<Extent> = Extents::new(&recipe, &get).map(|e| e.expect("reads")).collect();
            assert_eq!(got, wanted, "{count}");
        }
    }

    #[test]
    fn adjacent_holes_become_one_and_empty_extents_vanish() {
        let mut put = |_: &[u8]| unreachable!("short recipes stay in the entry");
        let mut writer = RecipeWriter::default();
        for len in [3, 0, 4] {
            writer.push(Extent::Hole { len }, &mut put).expect("pushes");
        }
        let recipe = writer.finish(&mut put).expect("finishes");
        assert_eq!(recipe.extents, [Extent::Hole { len: 7 }]);
    }

    #[test]
    fn lies_about_lengths_and_levels_are_refused() {
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
    fn more_extents_than_are_ever_written_are_refused() {
        for (count, is_fine) in [(4096, true), (4097, false)] {
            let mut bytes = Vec::new();
            encode_extents(&extents(count), &mut Encoder::new(&mut bytes));
            assert_eq!(decode_extents(&mut Decoder::new(&bytes)).is_ok(), is_fine, "{count}");
        }
    }

    /// Extents with holes that touch made one.
    fn joined(extents: &[Extent]) -> Vec<Extent> {
        let mut joined: Vec<Extent> = Vec::new();
        for extent in extents {
            match (joined.last_mut(), extent) {
                (Some(Extent::Hole { len }), Extent::Hole { len: more }) => *len += more,
                _ => joined.push(*extent),
            }
        }
        joined
    }

    /// Chunks in memory, under names that nothing checks.
    #[derive(Default)]
    struct Chunks(RefCell<HashMap<ChunkId, Vec<u8>>>);

    impl Chunks {
        fn put(&self, bytes: &[u8]) -> Result<ChunkId> {
            let id = ChunkId::of(bytes);
            self.0.borrow_mut().insert(id, bytes.to_vec());
            Ok(id)
        }

        fn get(&self, id: &ChunkId) -> Result<Vec<u8>> {
            self.0.borrow().get(id).cloned().ok_or(Error::ChunkMissing(*id))
        }

        fn write(&self, extents: &[Extent]) -> Recipe {
            let mut put = |bytes: &[u8]| self.put(bytes);
            let mut writer = RecipeWriter::default();
            extents.iter().for_each(|extent| writer.push(*extent, &mut put).expect("puts"));
            writer.finish(&mut put).expect("puts")
        }
    }

    proptest! {
        #![proptest_config(cases(60))]

        #[test]
        fn any_extents_come_back(few in vec(extent(), 1..60), times in 1..150usize) {
            let wanted = few.repeat(times);
            let chunks = Chunks::default();
            let recipe = chunks.write(&wanted);
            let get = |id: &ChunkId| chunks.get(id);
            let got: Result<Vec<Extent>> = Extents::new(&recipe, &get).collect();
            prop_assert_eq!(joined(&got.expect("reads")), joined(&wanted));
        }

        #[test]
        fn any_bytes_are_extents_or_an_error(
            few in vec(extent(), 49..60),
            noise in noise(),
            changes in changes(),
            level: u8,
        ) {
            let _ = decode_extents(&mut Decoder::new(&noise));
            let chunks = Chunks::default();
            let recipe = chunks.write(&few.repeat(7));
            for bytes in chunks.0.borrow_mut().values_mut() {
                *bytes = changed(std::mem::take(bytes), &changes);
                let extents = decode_extents(&mut Decoder::new(bytes)).unwrap_or_default();
                prop_assert!(!extents.iter().any(Extent::is_empty));
            }
            let get = |id: &ChunkId| chunks.get(id);
            for level in [recipe.level, level] {
                let recipe = Recipe { level, ..recipe.clone() };
                prop_assert!(Extents::new(&recipe, &get).count() <= few.len() * 7 + 1);
            }
        }
    }
}
