//! Converts the output of a format into a recipe.
//!
//! A file is reused in two steps. While the format runs, the pieces are only recorded. Once all of
//! them are known, or very many, they are *concluded*:
//!
//! 1. Slices that are not worth a reference are selected.
//! 2. These slices and the new bytes are cut into chunks in file order.
//! 3. The recipe is written.

use super::parts::{Parts, Survey, Thinning, Until};
use super::spool::{Piece, Spool, scratch_full};
use super::{Allowance, Reader, ReferenceFile, Reuse, ReuseError, Reused, UNUSED_PART};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::packer::Packer;
use crate::recipe::{Extent, RecipeWriter};
use crate::segment::SegmentKind;
use chunker::Cutter;
use chunker::delta::Sink;
use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::ops::Range;

/// Maximum number of referenced chunks in a stretch, the part of a file that is concluded at once.
const STRETCH_CHUNKS: usize = 256 << 10;
/// Maximum bytes of a stretch found in no reference.
const STRETCH_LITERAL_BYTES: u64 = 512 << 20;
/// Maximum bytes of a stretch.
const STRETCH_BYTES: u64 = 16 << 30;
/// Maximum bytes copied forward at once.
const FORWARD_BYTES: usize = 8 << 20;
/// Maximum number of slices copied forward at once.
const WANTED_MAX: usize = 64 << 10;

/// Bytes of a file by origin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReusedBytes {
    /// Bytes in slices of chunks of the previous snapshot.
    pub by_extent: u64,
    /// Other bytes in chunks that were already in the store.
    pub by_chunk: u64,
    /// The part of `by_extent` that was copied forward into new chunks.
    pub copied_forward: u64,
}

/// Receives the output of a format and builds a recipe.
pub struct RecipeBuilder<'a> {
    packer: &'a Packer<'a>,
    allowance: &'a Allowance,
    reader: &'a Reader<'a>,
    references: Vec<ReferenceFile<'a>>,
    recipe: RecipeWriter,
    cutter: Cutter,
    thinning: Thinning,
    spool: Spool<'a>,
    /// Bytes in this stretch, and the literals among them.
    len: u64,
    literal_len: u64,
    /// Chunks of the references that this stretch refers to.
    chunks: Vec<Referred>,
    numbers: HashMap<ChunkId, u32>,
    /// Number of the chunk referenced last.
    last: Option<u32>,
    reused: ReusedBytes,
    /// Unused bytes in chunks of the concluded stretches.
    unused: u64,
    /// Maximum number of chunks of a stretch.
    stretch_chunks: usize,
}

/// A chunk of a reference.
struct Referred {
    id: ChunkId,
    len: u64,
    /// Number of its bytes used by the file.
    used: u64,
    is_copied_forward: bool,
}

/// The new bytes of a stretch, cut into chunks as they arrive.
struct NewBytes<'a> {
    packer: &'a Packer<'a>,
    reader: &'a Reader<'a>,
    cutter: Cutter,
    /// Bytes not cut yet.
    pending: Vec<u8>,
    /// Slices still to be copied into `pending`.
    wanted: Vec<Wanted>,
    /// Stored chunks with the end offset of each.
    chunks: Vec<(u64, ChunkId)>,
    len: u64,
    /// Ranges copied forward among the uncut bytes, as offsets in the new bytes of the stretch.
    forwarded: VecDeque<Range<u64>>,
    /// Number of other bytes in chunks that were already in the store.
    by_chunk: u64,
}

/// A slice to copy forward.
struct Wanted {
    chunk: ChunkId,
    offset: u32,
    len: u32,
    /// Byte offset in the pending bytes.
    at: usize,
}

impl<'a> RecipeBuilder<'a> {
    /// Returns a builder that resolves copies in `references`, by number, and cuts with `cutter`.
    pub fn new(
        reuse: &Reuse<'a>,
        reader: &'a Reader<'a>,
        references: Vec<ReferenceFile<'a>>,
        cutter: Cutter,
        thinning: Thinning,
    ) -> RecipeBuilder<'a> {
        let packer = reuse.packer;
        RecipeBuilder {
            packer,
            allowance: reuse.allowance,
            reader,
            references: references.into_iter().map(ReferenceFile::compared).collect(),
            recipe: RecipeWriter::default(),
            cutter,
            thinning,
            spool: Spool::new(packer.workspace()),
            len: 0,
            literal_len: 0,
            chunks: Vec::new(),
            numbers: HashMap::new(),
            last: None,
            reused: ReusedBytes::default(),
            unused: 0,
            stretch_chunks: STRETCH_CHUNKS,
        }
    }

    /// Sets the number of chunks after which a stretch is concluded.
    #[cfg(test)]
    pub fn set_stretch_chunks(&mut self, chunks: usize) {
        self.stretch_chunks = chunks;
    }

    /// Returns the recipe of everything received.
    pub fn finish(mut self) -> Result<Reused, ReuseError> {
        self.conclude()?;
        let len = self.recipe.len();
        let recipe = self.recipe.finish(self.packer)?;
        Ok(Reused { recipe, len, reused: self.reused, unused: self.unused })
    }

    fn refer(&mut self, id: ChunkId, offset: u32, len: u64) -> Result<(), ReuseError> {
        let number = match self.last.filter(|n| self.chunks[*n as usize].id == id) {
            Some(number) => Some(number),
            None => self.number(id).map_err(ReuseError::Lost)?,
        };
        let Some(number) = number else {
            // Its segment is damaged elsewhere. A stream cannot be read a second time.
            let plain = self.reader.plain(&id).map_err(ReuseError::Lost)?;
            return self.append(&plain[offset as usize..][..len as usize]);
        };
        self.reused.by_extent += len;
        self.last = Some(number);
        self.chunks[number as usize].used += len;
        self.len += len;
        // A slice is no longer than a chunk.
        Ok(self.spool.slice(number, offset, len as u32)?)
    }

    /// Adds bytes found in no reference, or only in one that a new snapshot must not depend on.
    fn append(&mut self, bytes: &[u8]) -> Result<(), ReuseError> {
        self.len += bytes.len() as u64;
        self.literal_len += bytes.len() as u64;
        Ok(self.spool.literal(bytes)?)
    }

    /// Returns the number of a chunk of a reference; a new chunk gets the next number. Returns
    /// `None` if a new snapshot must not depend on the chunk.
    fn number(&mut self, id: ChunkId) -> Result<Option<u32>> {
        if let Some(number) = self.numbers.get(&id) {
            return Ok(Some(*number));
        }
        let number = self.chunks.len() as u32;
        let Some(len) = self.reader.plain_len(&id)? else { return Ok(None) };
        self.chunks.push(Referred { id, len, used: 0, is_copied_forward: false });
        self.numbers.insert(id, number);
        Ok(Some(number))
    }

    fn end_stretch(&mut self) -> Result<(), ReuseError> {
        let is_long = self.chunks.len() >= self.stretch_chunks
            || self.literal_len >= STRETCH_LITERAL_BYTES
            || self.len >= STRETCH_BYTES;
        if is_long { self.conclude() } else { Ok(()) }
    }

    /// Writes the chunks and recipe of everything received since the last conclusion.
    fn conclude(&mut self) -> Result<(), ReuseError> {
        let parts = self.choose_parts()?;
        self.choose_chunks();
        let own = self.cut(parts.as_ref())?;
        let RecipeBuilder { packer, recipe, spool, chunks, .. } = self;
        let mut own_slices = Cursor::new(own.chunks.iter().copied());
        let mut at = 0;
        spool.replay::<Error>(|piece| {
            let begin = at;
            at += piece.len();
            match piece {
                Piece::Slice { chunk, offset, len }
                    if !is_own(begin, &piece, chunks, parts.as_ref()) =>
                {
                    let (chunk, len) = (chunks[chunk as usize].id, u64::from(len));
                    recipe.push(Extent::Slice { chunk, offset, len }, *packer)
                }
                _ => own_slices.take(piece.len(), &mut |extent| recipe.push(extent, *packer)),
            }
        })?;
        self.reused.by_chunk += own.by_chunk;
        self.spool.clear();
        self.chunks.clear();
        self.numbers.clear();
        (self.len, self.literal_len) = (0, 0);
        self.last = None;
        Ok(())
    }

    /// Selects the parts in which short slices are copied forward. Returns `None` if no pieces need
    /// to be saved.
    fn choose_parts(&mut self) -> Result<Option<Parts>> {
        let RecipeBuilder { spool, chunks, .. } = self;
        let excess = match self.thinning.until {
            Until::Cost(_) => spool.pieces(),
            Until::Average(bytes) => spool.pieces().saturating_sub(self.len / bytes),
        };
        if excess == 0 {
            return Ok(None);
        }
        let mut survey = Survey::new(self.len, self.thinning.part_bytes);
        let mut at = 0;
        spool.replay::<Error>(|piece| {
            survey.add(at, &piece);
            at += piece.len();
            Ok(())
        })?;
        let parts = match self.thinning.until {
            Until::Cost(bytes) => survey.up_to(bytes),
            Until::Average(_) => survey.save(excess),
        };
        let mut at = 0;
        spool.replay::<Error>(|piece| {
            if let Piece::Slice { chunk, len, .. } = piece
                && parts.have(at, &piece)
            {
                let chunk = &mut chunks[chunk as usize];
                chunk.used = chunk.used.saturating_sub(u64::from(len));
            }
            at += piece.len();
            Ok(())
        })?;
        Ok(Some(parts))
    }

    /// Selects the chunks whose slices are copied forward, least used first.
    fn choose_chunks(&mut self) {
        // A chunk can be used twice.
        let unused_of = |chunk: &Referred| chunk.len.saturating_sub(chunk.used);
        let referred = self.chunks.iter().filter(|chunk| chunk.used > 0);
        let mut unused: u64 = referred.map(unused_of).sum();
        let own = self.len / UNUSED_PART;
        let taken = self.allowance.take(unused.saturating_sub(own));
        let limit = own + taken;
        let mut order: Vec<usize> =
            (0..self.chunks.len()).filter(|n| self.chunks[*n].used > 0).collect();
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
        // Slices are copied forward by whole chunks, so some of the allowance may be left.
        self.allowance.give_back(taken.min(limit.saturating_sub(unused)));
        self.unused += unused;
    }

    /// Cuts new and forwarded bytes into chunks.
    fn cut(&mut self, parts: Option<&Parts>) -> Result<NewBytes<'a>, ReuseError> {
        let (pending, made) = (Vec::new(), Vec::new());
        let (packer, reader, cutter) = (self.packer, self.reader, self.cutter);
        let (wanted, forwarded) = (Vec::new(), VecDeque::new());
        let mut own = NewBytes {
            packer,
            reader,
            cutter,
            pending,
            wanted,
            chunks: made,
            len: 0,
            forwarded,
            by_chunk: 0,
        };
        let RecipeBuilder { spool, chunks, reused, .. } = self;
        let mut at = 0;
        spool.replay_with_literals::<ReuseError>(|piece, literals| {
            let begin = at;
            at += piece.len();
            match piece {
                Piece::Literal { len } => own.read(literals, len as usize),
                Piece::Slice { chunk, offset, len } => {
                    if !is_own(begin, &piece, chunks, parts) {
                        return Ok(());
                    }
                    reused.copied_forward += u64::from(len);
                    own.forward(chunks[chunk as usize].id, offset, len)
                }
            }
        })?;
        own.cut(true)?;
        Ok(own)
    }
}

/// Returns true if a piece that begins at `at` is stored in the file's new chunks.
fn is_own(at: u64, piece: &Piece, chunks: &[Referred], parts: Option<&Parts>) -> bool {
    let of_chunk = match piece {
        Piece::Slice { chunk, .. } => chunks[*chunk as usize].is_copied_forward,
        Piece::Literal { .. } => true,
    };
    of_chunk || parts.is_some_and(|parts| parts.have(at, piece))
}

impl Sink<ReuseError> for RecipeBuilder<'_> {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), ReuseError> {
        self.append(bytes)?;
        self.end_stretch()
    }

    fn copy(&mut self, reference: usize, offset: u64, len: u64) -> Result<(), ReuseError> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let extent = self.references[reference].extent_at(at).map_err(ReuseError::Lost)?;
            let Some((Extent::Slice { chunk, offset, len }, into)) = extent else {
                let (what, reason) =
                    ("a file of the previous snapshot", "it changed while it was read");
                let lost = Error::Malformed { what: what.into(), reason: reason.into() };
                return Err(ReuseError::Lost(lost));
            };
            let len = (len - into).min(end - at);
            self.refer(chunk, offset + into as u32, len)?;
            at += len;
            // One copy can be a whole file of any length.
            self.end_stretch()?;
        }
        Ok(())
    }
}

impl NewBytes<'_> {
    fn read(&mut self, from: &mut dyn Read, len: usize) -> Result<(), ReuseError> {
        let mut left = len;
        while left > 0 {
            let step = left.min(self.cutter.max_len());
            let begin = self.pending.len();
            self.pending.resize(begin + step, 0);
            from.read_exact(&mut self.pending[begin..]).map_err(scratch_full())?;
            self.added(step)?;
            left -= step;
        }
        Ok(())
    }

    fn forward(&mut self, chunk: ChunkId, offset: u32, len: u32) -> Result<(), ReuseError> {
        self.forwarded.push_back(self.len..self.len + u64::from(len));
        let at = self.pending.len();
        self.wanted.push(Wanted { chunk, offset, len, at });
        self.pending.resize(at + len as usize, 0);
        self.added(len as usize)
    }

    fn added(&mut self, len: usize) -> Result<(), ReuseError> {
        self.len += len as u64;
        let is_enough = match self.wanted.len() {
            0 => self.pending.len() >= 4 * self.cutter.max_len(),
            wanted => wanted >= WANTED_MAX || self.pending.len() >= FORWARD_BYTES,
        };
        if is_enough { self.cut(false) } else { Ok(()) }
    }

    /// Copies the wanted slices, chunk by chunk. A file with moved parts takes many slices from few
    /// chunks.
    fn copy_forward(&mut self) -> Result<(), ReuseError> {
        self.wanted.sort_unstable_by_key(|wanted| (wanted.chunk, wanted.at));
        for slices in self.wanted.chunk_by(|a, b| a.chunk == b.chunk) {
            let plain = self.reader.plain(&slices[0].chunk).map_err(ReuseError::Lost)?;
            for Wanted { offset, len, at, .. } in slices {
                let slice = &plain[*offset as usize..][..*len as usize];
                self.pending[*at..][..*len as usize].copy_from_slice(slice);
            }
        }
        self.wanted.clear();
        Ok(())
    }

    fn cut(&mut self, is_last: bool) -> Result<(), ReuseError> {
        self.copy_forward()?;
        let mut start = 0;
        let mut at = self.len - self.pending.len() as u64;
        for end in self.cutter.cut(&self.pending, is_last) {
            let chunk = &self.pending[start..end];
            let stored = self.packer.put(SegmentKind::Data, chunk)?;
            let len = chunk.len() as u64;
            at += len;
            let forwarded = self.forwarded_up_to(at);
            if !stored.is_new {
                self.by_chunk += len - forwarded;
            }
            self.chunks.push((at, stored.id));
            start = end;
        }
        self.pending.drain(..start);
        Ok(())
    }

    /// Returns the number of bytes copied forward since the end of the last call. These are already
    /// counted in `by_extent`.
    fn forwarded_up_to(&mut self, end: u64) -> u64 {
        let mut bytes = 0;
        while let Some(range) = self.forwarded.front_mut().filter(|range| range.start < end) {
            let stop = range.end.min(end);
            bytes += stop - range.start;
            range.start = stop;
            if range.is_empty() {
                self.forwarded.pop_front();
            }
        }
        bytes
    }
}

/// Walks through consecutive chunks.
struct Cursor<I: Iterator<Item = (u64, ChunkId)>> {
    chunks: std::iter::Peekable<I>,
    /// Offset of the start of the first chunk.
    start: u64,
    at: u64,
}

impl<I: Iterator<Item = (u64, ChunkId)>> Cursor<I> {
    fn new(chunks: I) -> Cursor<I> {
        Cursor { chunks: chunks.peekable(), start: 0, at: 0 }
    }

    /// Passes chunks that end at or before the current offset.
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
                unreachable!("all of it was cut before it is referred to")
            };
            let len = end.min(until) - self.at;
            each(Extent::Slice { chunk: id, offset: (self.at - self.start) as u32, len })?;
            self.at += len;
            self.pass();
        }
        Ok(())
    }
}
