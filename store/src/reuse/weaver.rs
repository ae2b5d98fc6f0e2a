//! From what a format says of a file to its recipe.

use super::spool::{Piece, Spool};
use super::{Allowance, BaseFile, Loom, Reader, UNUSED_PART, Woven};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::packer::Packer;
use crate::recipe::{Extent, RecipeWriter};
use crate::segment::Kind;
use chunker::Cutter;
use chunker::format::Sink;
use std::collections::HashMap;

/// Chunks referred to and made before a stretch of the file is concluded.
const STRETCH_CHUNKS: usize = 256 << 10;

/// How much of a file came from where, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reused {
    /// Slices of chunks of the snapshot before.
    pub by_extent: u64,
    /// New chunks that the store had nevertheless.
    pub by_chunk: u64,
    /// Of the slices, those that were copied forward into new chunks.
    pub copied_forward: u64,
}

/// Takes what a format says and makes a recipe of it.
pub struct Weaver<'a> {
    packer: &'a Packer<'a>,
    allowance: &'a Allowance,
    reader: &'a Reader<'a>,
    bases: Vec<BaseFile<'a>>,
    recipe: RecipeWriter,
    literals: Literals<'a>,
    spool: Spool<'a>,
    /// Chunks of the bases that this stretch refers to.
    chunks: Vec<Referred>,
    numbers: HashMap<ChunkId, u32>,
    /// The number that was asked for last.
    last: Option<u32>,
    reused: Reused,
    /// Bytes of chunks that the stretches before do not need.
    unused: u64,
}

/// A chunk of a base.
struct Referred {
    id: ChunkId,
    len: u64,
    /// Bytes of it that the file consists of.
    used: u64,
    is_copied_forward: bool,
}

/// Bytes that no base has, cut into chunks as they come.
struct Literals<'a> {
    packer: &'a Packer<'a>,
    cutter: Cutter,
    pending: Vec<u8>,
    /// The chunks made, and where each ends.
    chunks: Vec<(u64, ChunkId)>,
    len: u64,
    by_chunk: u64,
}

impl<'a> Weaver<'a> {
    /// A weaver whose copies are of `bases`, by number, and which cuts with `cutter`.
    pub fn new(
        loom: &Loom<'a>,
        reader: &'a Reader<'a>,
        bases: Vec<BaseFile<'a>>,
        cutter: Cutter,
    ) -> Weaver<'a> {
        let packer = loom.packer;
        let (pending, chunks) = (Vec::new(), Vec::new());
        let literals = Literals { packer, cutter, pending, chunks, len: 0, by_chunk: 0 };
        Weaver {
            packer,
            allowance: loom.allowance,
            reader,
            bases,
            recipe: RecipeWriter::default(),
            literals,
            spool: Spool::new(packer.backend()),
            chunks: Vec::new(),
            numbers: HashMap::new(),
            last: None,
            reused: Reused::default(),
            unused: 0,
        }
    }

    /// The recipe of everything told.
    pub fn finish(mut self) -> Result<Woven> {
        self.conclude()?;
        let (len, packer) = (self.recipe.len(), self.packer);
        let recipe = self.recipe.finish(&mut |bytes| put_metadata(packer, bytes))?;
        let reused = Reused { by_chunk: self.literals.by_chunk, ..self.reused };
        Ok(Woven { recipe, len, reused, unused: self.unused })
    }

    fn refer(&mut self, id: ChunkId, offset: u32, len: u64) -> Result<()> {
        let number = match self.last.filter(|n| self.chunks[*n as usize].id == id) {
            Some(number) => number,
            None => self.number(id)?,
        };
        self.last = Some(number);
        self.chunks[number as usize].used += len;
        // A slice is no longer than a chunk.
        self.spool.push(Piece::Slice { chunk: number, offset, len: len as u32 })
    }

    /// The number of a chunk of a base; a new one gets the next.
    fn number(&mut self, id: ChunkId) -> Result<u32> {
        if let Some(number) = self.numbers.get(&id) {
            return Ok(*number);
        }
        let number = self.chunks.len() as u32;
        let len = self.reader.plain_len(&id)?;
        self.chunks.push(Referred { id, len, used: 0, is_copied_forward: false });
        self.numbers.insert(id, number);
        Ok(number)
    }

    /// Writes the recipe of what was told since the last conclusion.
    fn conclude(&mut self) -> Result<()> {
        self.choose();
        self.copy_forward()?;
        self.literals.cut(true)?;
        let Weaver { packer, recipe, literals, spool, chunks, .. } = self;
        let mut put = |bytes: &[u8]| put_metadata(packer, bytes);
        let forward_at = literals.len - forwarded(chunks);
        let mut told = Cursor::new(literals.chunks.iter().copied(), 0);
        let mut forward = Cursor::new(literals.chunks.iter().copied(), forward_at);
        spool.replay(|piece| match piece {
            Piece::Literal { len } => told.take(u64::from(len), &mut |e| recipe.push(e, &mut put)),
            Piece::Slice { chunk, offset, len } => {
                let referred = &chunks[chunk as usize];
                let len = u64::from(len);
                if referred.is_copied_forward {
                    return forward.take(len, &mut |extent| recipe.push(extent, &mut put));
                }
                recipe.push(Extent::Slice { chunk: referred.id, offset, len }, &mut put)
            }
        })?;
        self.spool.clear();
        self.chunks.clear();
        self.numbers.clear();
        self.last = None;
        self.literals.chunks.clear();
        self.literals.len = 0;
        Ok(())
    }

    /// Chooses the chunks whose slices are copied forward, the least used first.
    fn choose(&mut self) {
        // A chunk can be used twice.
        let unused_of = |chunk: &Referred| chunk.len.saturating_sub(chunk.used);
        let used: u64 = self.chunks.iter().map(|chunk| chunk.used).sum();
        let mut unused: u64 = self.chunks.iter().map(unused_of).sum();
        let own = (used + self.literals.len) / UNUSED_PART;
        let limit = own + self.allowance.take(unused.saturating_sub(own));
        let mut order: Vec<usize> = (0..self.chunks.len()).collect();
        let share = |chunk: &Referred| (chunk.used << 16) / chunk.len.max(1);
        order.sort_by_key(|n| share(&self.chunks[*n]));
        for n in order {
            if unused <= limit {
                break;
            }
            let chunk = &mut self.chunks[n];
            chunk.is_copied_forward = true;
            unused -= unused_of(chunk);
        }
        self.unused += unused;
    }

    fn copy_forward(&mut self) -> Result<()> {
        let bytes = forwarded(&self.chunks);
        if bytes == 0 {
            return Ok(());
        }
        self.reused.copied_forward += bytes;
        let Weaver { reader, literals, spool, chunks, .. } = self;
        spool.replay(|piece| {
            let Piece::Slice { chunk, offset, len } = piece else { return Ok(()) };
            let referred = &chunks[chunk as usize];
            if !referred.is_copied_forward {
                return Ok(());
            }
            let plain = reader.plain(&referred.id)?;
            literals.push(&plain[offset as usize..][..len as usize])
        })
    }
}

/// Bytes of slices that are copied forward.
fn forwarded(chunks: &[Referred]) -> u64 {
    chunks.iter().filter(|chunk| chunk.is_copied_forward).map(|chunk| chunk.used).sum()
}

fn put_metadata(packer: &Packer<'_>, bytes: &[u8]) -> Result<ChunkId> {
    Ok(packer.put(Kind::Metadata, bytes)?.id)
}

impl<E: From<Error>> Sink<E> for Weaver<'_> {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.literals.push(bytes)?;
        for part in bytes.chunks(u32::MAX as usize) {
            self.spool.push(Piece::Literal { len: part.len() as u32 })?;
        }
        Ok(self.end_stretch()?)
    }

    fn copy(&mut self, base: usize, offset: u64, len: u64) -> Result<(), E> {
        self.reused.by_extent += len;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let extent = self.bases[base].extent_at(at)?;
            let Some((Extent::Slice { chunk, offset, len }, into)) = extent else {
                let (what, reason) =
                    ("a file of the snapshot before", "it changed while it was read");
                return Err(Error::Malformed { what: what.into(), reason: reason.into() }.into());
            };
            let len = (len - into).min(end - at);
            self.refer(chunk, offset + into as u32, len)?;
            at += len;
        }
        Ok(self.end_stretch()?)
    }
}

impl Weaver<'_> {
    fn end_stretch(&mut self) -> Result<()> {
        let chunks = self.chunks.len() + self.literals.chunks.len();
        if chunks < STRETCH_CHUNKS { Ok(()) } else { self.conclude() }
    }
}

impl Literals<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(self.cutter.max_len()) {
            self.pending.extend_from_slice(part);
            self.len += part.len() as u64;
            if self.pending.len() >= 4 * self.cutter.max_len() {
                self.cut(false)?;
            }
        }
        Ok(())
    }

    fn cut(&mut self, is_last: bool) -> Result<()> {
        let mut start = 0;
        let mut at = self.len - self.pending.len() as u64;
        for end in self.cutter.cut(&self.pending, is_last) {
            let chunk = &self.pending[start..end];
            let stored = self.packer.put(Kind::Data, chunk)?;
            if !stored.is_new {
                self.by_chunk += chunk.len() as u64;
            }
            at += chunk.len() as u64;
            self.chunks.push((at, stored.id));
            start = end;
        }
        self.pending.drain(..start);
        Ok(())
    }
}

/// Goes through chunks that hold bytes one after the other.
struct Cursor<I: Iterator<Item = (u64, ChunkId)>> {
    chunks: std::iter::Peekable<I>,
    /// Where the first chunk begins.
    start: u64,
    at: u64,
}

impl<I: Iterator<Item = (u64, ChunkId)>> Cursor<I> {
    fn new(chunks: I, at: u64) -> Cursor<I> {
        let mut cursor = Cursor { chunks: chunks.peekable(), start: 0, at };
        cursor.pass();
        cursor
    }

    /// Passes over chunks that end before the present place.
    fn pass(&mut self) {
        while let Some((end, _)) = self.chunks.next_if(|(end, _)| *end <= self.at) {
            self.start = end;
        }
    }

    /// Calls `each` with the slices of the next `len` bytes.
    fn take(&mut self, len: u64, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        let until = self.at + len;
        while self.at < until {
            let Some((end, id)) = self.chunks.peek().copied() else {
                unreachable!("all literals were cut before they are referred to")
            };
            let len = end.min(until) - self.at;
            each(Extent::Slice { chunk: id, offset: (self.at - self.start) as u32, len })?;
            self.at += len;
            self.pass();
        }
        Ok(())
    }
}
