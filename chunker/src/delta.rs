//! Formats whose content reappears elsewhere, unchanged or nearly so.
//!
//! A format module compares a new file with *references*, files of the previous snapshot. It
//! reports which runs of its bytes also occur in a reference. There is one file per format. It
//! defines how the format is recognised, what its units are and how they are matched. Only compared
//! bytes are ever reported as equal, so misreading a file costs space and nothing else.

pub mod dump;
pub mod git_idx;
pub mod git_pack;

use std::fmt;
use std::ops::Range;

/// A file of the previous snapshot.
pub trait Reference {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Returns true if the file is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of bytes from `offset` on that equal the beginning of `with`. Bytes
    /// beyond the end and unreadable bytes equal nothing.
    fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize;

    /// Reads bytes from `offset` on and returns their number. Returns fewer than requested at the
    /// end of the file and before unreadable bytes.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize;
}

/// The file being backed up. `E` is the error of its reader.
pub trait Source<E> {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Returns true if the file is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the buffer from `offset` on. Fails if the file ends before the buffer is full.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), E>;
}

/// Receives a file in order, as literals and copies.
pub trait Sink<E> {
    /// The next bytes, found in no reference.
    fn literal(&mut self, bytes: &[u8]) -> Result<(), E>;

    /// The next `len` bytes equal those from `offset` on in reference number `reference`.
    fn copy(&mut self, reference: usize, offset: u64, len: u64) -> Result<(), E>;
}

/// Reason why a file is not of the format that its name suggests. It is then chunked like any other
/// file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FormatError {
    /// The magic number is wrong.
    Magic,
    /// The version of the format is unknown.
    Version,
    /// The file is shorter than its header declares.
    Truncated,
    /// The file is longer than its header declares.
    Trailing,
    /// The index is missing or belongs to another pack.
    IndexDisagrees,
    /// The index lists objects at impossible offsets or out of order.
    IndexDisorder,
}

impl FormatError {
    /// Returns a stable identifier.
    pub fn name(self) -> &'static str {
        match self {
            FormatError::Magic => "magic",
            FormatError::Version => "version",
            FormatError::Truncated => "truncated",
            FormatError::Trailing => "trailing",
            FormatError::IndexDisagrees => "index_disagrees",
            FormatError::IndexDisorder => "index_disorder",
        }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FormatError::Magic => "lacks the magic number of its format",
            FormatError::Version => "has an unknown version",
            FormatError::Truncated => "is shorter than its header states",
            FormatError::Trailing => "is longer than its header states",
            FormatError::IndexDisagrees => "does not match its index",
            FormatError::IndexDisorder => "has an index that is out of order",
        })
    }
}

/// Reason why a format module rejects a file.
#[derive(Debug)]
pub enum DeltaError<E> {
    /// The file is not of this format.
    Format(FormatError),
    /// The file cannot be read.
    Failed(E),
}

impl<E> From<FormatError> for DeltaError<E> {
    fn from(error: FormatError) -> DeltaError<E> {
        DeltaError::Format(error)
    }
}

/// Returns the length in bytes of the common prefix.
pub fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 64;
    let steps = a.chunks(STEP).zip(b.chunks(STEP)).take_while(|(a, b)| a == b).count();
    let from = (steps * STEP).min(a.len()).min(b.len());
    from + a[from..].iter().zip(&b[from..]).take_while(|(a, b)| a == b).count()
}

/// Passes a file to a sink in order and merges adjacent copies.
struct CopyMerger<'a, E> {
    sink: &'a mut dyn Sink<E>,
    /// Number of bytes of the file received so far.
    emitted: u64,
    /// Last copy: reference number and byte range in it. Passed to the sink once its end is known.
    copy: Option<(usize, Range<u64>)>,
    /// Maximum number of bytes of the file read at once.
    batch_bytes: u64,
}

impl<'a, E> CopyMerger<'a, E> {
    fn new(sink: &'a mut dyn Sink<E>, batch_bytes: u64) -> CopyMerger<'a, E> {
        CopyMerger { sink, emitted: 0, copy: None, batch_bytes }
    }

    /// Returns true if the pending copy is from this reference and ends at `offset`.
    fn goes_on(&self, reference: usize, offset: u64) -> bool {
        self.copy.as_ref().is_some_and(|(of, range)| *of == reference && range.end == offset)
    }

    fn copy(&mut self, reference: usize, offset: u64, len: u64) -> Result<(), E> {
        if len == 0 {
            return Ok(());
        }
        self.emitted += len;
        match &mut self.copy {
            Some((of, range)) if *of == reference && range.end == offset => range.end += len,
            _ => {
                self.end_copy()?;
                self.copy = Some((reference, offset..offset + len));
            }
        }
        Ok(())
    }

    fn literal(&mut self, bytes: &[u8]) -> Result<(), E> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.end_copy()?;
        self.emitted += bytes.len() as u64;
        self.sink.literal(bytes)
    }

    /// Emits the bytes up to `end` that were not emitted yet, as literals.
    fn literal_to(&mut self, end: u64, file: &mut dyn Source<E>) -> Result<(), E> {
        let mut buffer = Vec::new();
        while self.emitted < end {
            buffer.resize(self.batch_bytes.min(end - self.emitted) as usize, 0);
            file.read(self.emitted, &mut buffer)?;
            self.literal(&buffer)?;
        }
        Ok(())
    }

    fn end_copy(&mut self) -> Result<(), E> {
        match self.copy.take() {
            Some((reference, range)) => {
                self.sink.copy(reference, range.start, range.end - range.start)
            }
            None => Ok(()),
        }
    }

    /// Emits the pending copy. Call after the last byte of the file.
    fn finish(mut self) -> Result<(), E> {
        self.end_copy()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::convert::Infallible;

    /// A reference or a source in memory.
    #[derive(Debug, Clone)]
    pub struct Memory(pub Vec<u8>);

    impl Reference for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
            let here = self.0.get(offset as usize..).unwrap_or_default();
            here.iter().zip(with).take_while(|(a, b)| a == b).count()
        }

        fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
            let here = self.0.get(offset as usize..).unwrap_or_default();
            let len = here.len().min(buffer.len());
            buffer[..len].copy_from_slice(&here[..len]);
            len
        }
    }

    impl Source<Infallible> for Memory {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Infallible> {
            buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
            Ok(())
        }
    }

    /// A reference with unreadable ranges.
    #[derive(Debug, Clone)]
    pub struct Damaged {
        pub reference: Memory,
        pub holes: Vec<Range<usize>>,
        pub reads: usize,
    }

    impl Damaged {
        /// Number of readable bytes from `offset` on.
        fn readable(&self, offset: u64) -> usize {
            let offset = offset as usize;
            let ends = self.holes.iter().filter(|hole| !hole.is_empty() && hole.end > offset);
            ends.map(|hole| hole.start.saturating_sub(offset)).min().unwrap_or(usize::MAX)
        }
    }

    impl Reference for Damaged {
        fn len(&self) -> u64 {
            self.reference.0.len() as u64
        }

        fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
            self.reads += 1;
            let readable = self.readable(offset).min(with.len());
            self.reference.common_prefix(offset, &with[..readable])
        }

        fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
            self.reads += 1;
            let readable = self.readable(offset).min(buffer.len());
            Reference::read(&mut self.reference, offset, &mut buffer[..readable])
        }
    }

    /// A source that fails after a number of reads.
    #[derive(Debug)]
    pub struct Failing {
        pub bytes: Vec<u8>,
        pub reads_left: usize,
    }

    /// Error of [`Failing`].
    #[derive(Debug, PartialEq, Eq)]
    pub struct Gone;

    impl Source<Gone> for Failing {
        fn len(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Gone> {
            self.reads_left = self.reads_left.checked_sub(1).ok_or(Gone)?;
            buffer.copy_from_slice(&self.bytes[offset as usize..][..buffer.len()]);
            Ok(())
        }
    }

    /// A sink that rebuilds the file.
    #[derive(Debug, Default)]
    pub struct Rebuilt {
        pub references: Vec<Vec<u8>>,
        pub bytes: Vec<u8>,
        pub literal_bytes: usize,
        pub copies: usize,
    }

    impl Rebuilt {
        pub fn from(references: &[Memory]) -> Rebuilt {
            let references = references.iter().map(|reference| reference.0.clone()).collect();
            Rebuilt { references, ..Rebuilt::default() }
        }
    }

    impl<E> Sink<E> for Rebuilt {
        fn literal(&mut self, bytes: &[u8]) -> Result<(), E> {
            self.literal_bytes += bytes.len();
            self.bytes.extend_from_slice(bytes);
            Ok(())
        }

        fn copy(&mut self, reference: usize, offset: u64, len: u64) -> Result<(), E> {
            self.copies += 1;
            self.bytes
                .extend_from_slice(&self.references[reference][offset as usize..][..len as usize]);
            Ok(())
        }
    }
}
