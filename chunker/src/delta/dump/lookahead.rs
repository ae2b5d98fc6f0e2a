//! Buffer over the new file, which is read once, and output to the sink.

use super::super::Sink;
use super::marks::{ANCHOR_BYTES, ANCHOR_MASK, marks};
use std::collections::VecDeque;

/// Bytes requested from the stream at once. Small enough to stay in cache for the comparison.
const READ: usize = 256 << 10;
/// Literal bytes held back, because a match found later may begin in them.
const HISTORY: usize = 1 << 20;
const BUFFER: usize = 2 * HISTORY + READ;
/// Buffers the new file and passes literals and copies to the sink.
pub struct Lookahead<'a, E> {
    new: &'a mut dyn FnMut(&mut [u8]) -> Result<usize, E>,
    sink: &'a mut dyn Sink<E>,
    buffer: Vec<u8>,
    /// Offset in the file of the first byte of `buffer`.
    start: u64,
    /// Index in `buffer`. Earlier bytes were emitted or belong to the pending copy.
    emitted: usize,
    /// Index in `buffer` of the next byte to compare. Bytes from `emitted` to here are literals
    /// unless a later match covers them.
    here: usize,
    end: usize,
    /// True if the end of the file has been read.
    pub is_all_read: bool,
    /// End offsets and hashes of the anchors ahead, as far as they were searched.
    pub anchors: VecDeque<(u64, u64)>,
    /// Offset in the file up to which anchors have been searched.
    searched: u64,
    /// Offset and length of the pending copy, which may still grow.
    copy: Option<(u64, u64)>,
}

impl<'a, E> Lookahead<'a, E> {
    pub fn new(
        new: &'a mut dyn FnMut(&mut [u8]) -> Result<usize, E>,
        sink: &'a mut dyn Sink<E>,
    ) -> Lookahead<'a, E> {
        Lookahead {
            new,
            sink,
            buffer: vec![0; BUFFER],
            start: 0,
            emitted: 0,
            here: 0,
            end: 0,
            is_all_read: false,
            anchors: VecDeque::new(),
            searched: 0,
            copy: None,
        }
    }

    /// Offset in the file of the next byte.
    pub fn position(&self) -> u64 {
        self.start + self.here as u64
    }

    /// Returns the next bytes.
    pub fn ahead(&self) -> &[u8] {
        &self.buffer[self.here..self.end]
    }

    /// Returns the literal bytes held back before the next byte.
    pub fn behind(&self) -> &[u8] {
        &self.buffer[self.emitted..self.here]
    }

    /// Returns true if the last output is a copy that ends at `offset` of the reference.
    pub fn is_copied_up_to(&self, offset: u64) -> bool {
        self.emitted == self.here && self.copy.is_some_and(|(from, len)| from + len == offset)
    }

    /// Reads until at least `len` bytes are ahead or the file ends.
    pub fn fill(&mut self, len: usize) -> Result<(), E> {
        while self.end - self.here < len && !self.is_all_read {
            self.make_room()?;
            let read = (self.new)(&mut self.buffer[self.end..self.end + READ])?;
            self.is_all_read = read == 0;
            self.end += read;
        }
        Ok(())
    }

    /// Frees buffer space for a read. Emits literals too old for any match.
    fn make_room(&mut self) -> Result<(), E> {
        if self.emitted < self.end && self.end + READ <= self.buffer.len() {
            return Ok(());
        }
        let old = (self.here - self.emitted).saturating_sub(HISTORY);
        self.emit_literals(old)?;
        self.buffer.copy_within(self.emitted..self.end, 0);
        self.start += self.emitted as u64;
        self.here -= self.emitted;
        self.end -= self.emitted;
        self.emitted = 0;
        Ok(())
    }

    /// Finds the anchors that end in the next `len` bytes.
    pub fn find_anchors(&mut self, len: usize) {
        let position = self.position();
        while self.anchors.front().is_some_and(|(end, _)| *end <= position) {
            self.anchors.pop_front();
        }
        self.searched = self.searched.max(position);
        let from = (self.searched - self.start) as usize;
        let to = self.end.min(self.here + len);
        if from >= to {
            return;
        }
        let warm = from.saturating_sub(ANCHOR_BYTES - 1);
        marks(&self.buffer[warm..to], ANCHOR_MASK, ANCHOR_BYTES, |end, hash| {
            let end = self.start + (warm + end) as u64;
            // Repetitive content may have one at every other byte.
            if self.anchors.back().is_none_or(|(last, _)| end - last >= ANCHOR_BYTES as u64) {
                self.anchors.push_back((end, hash));
            }
            true
        });
        self.searched = self.start + to as u64;
    }

    /// Treats the next `len` bytes as literals, unless a later match covers them.
    pub fn pass(&mut self, len: usize) {
        self.here += len;
    }

    /// Records a copy: the last `before` literals and the next `len` bytes equal the reference from
    /// `offset` on.
    pub fn copy(&mut self, offset: u64, before: usize, len: usize) -> Result<(), E> {
        let literals = self.here - before - self.emitted;
        let added = (before + len) as u64;
        match &mut self.copy {
            Some((from, len)) if literals == 0 && *from + *len == offset => *len += added,
            _ => {
                self.emit_literals(literals)?;
                self.tell_copy()?;
                self.copy = Some((offset, added));
            }
        }
        self.here += len;
        self.emitted = self.here;
        Ok(())
    }

    /// Emits the pending copy and then the first `len` literals held back.
    fn emit_literals(&mut self, len: usize) -> Result<(), E> {
        if len > 0 {
            self.tell_copy()?;
            self.sink.literal(&self.buffer[self.emitted..self.emitted + len])?;
            self.emitted += len;
        }
        Ok(())
    }

    fn tell_copy(&mut self) -> Result<(), E> {
        match self.copy.take() {
            Some((offset, len)) if len > 0 => self.sink.copy(0, offset, len),
            _ => Ok(()),
        }
    }

    /// Emits the remaining literals and the pending copy.
    pub fn finish(mut self) -> Result<(), E> {
        self.emit_literals(self.here - self.emitted)?;
        self.tell_copy()
    }
}
