//! Formats whose content comes back in other places, or nearly the same.
//!
//! A format compares a new file with *references*, files of the snapshot before, and says
//! which runs of its bytes a reference has too. One file per format: what is recognised,
//! what the units are, how they are matched. Whatever a unit is called in its format,
//! only bytes that were compared are ever reported as the same, so that a mistake in
//! understanding a file costs space and nothing else.

pub mod dump;
pub mod git_idx;
pub mod git_pack;

use std::fmt;
use std::ops::Range;

/// A file of the snapshot before.
pub trait Reference {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes from `offset` on are those that `with` begins with. Bytes
    /// beyond the end, or that cannot be read, are like none.
    fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize;

    /// Reads bytes from `offset` on; returns how many: fewer than asked for at the
    /// end, and where bytes cannot be read.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize;
}

/// The file that is backed up. `E` is its reader's error.
pub trait Source<E> {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the buffer from `offset` on; an error where there is less.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), E>;
}

/// Takes a file in order, each run of bytes as what it was found to be.
pub trait Sink<E> {
    /// The next bytes, which no reference has.
    fn literal(&mut self, bytes: &[u8]) -> Result<(), E>;

    /// The next `len` bytes are those of the reference numbered `reference` from `offset` on.
    fn copy(&mut self, reference: usize, offset: u64, len: u64) -> Result<(), E>;
}

/// Why a file is not taken for what its name says. It is then cut like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FormatError {
    /// It does not begin as such a file does.
    Magic,
    /// A version of the format that is not known.
    Version,
    /// It is shorter than it says.
    Truncated,
    /// It is longer than it says.
    Trailing,
    /// Its index is missing, or of another pack.
    IndexDisagrees,
    /// The index lists objects at impossible places, or not in order.
    IndexDisorder,
}

impl FormatError {
    /// A word for it that never changes.
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
            FormatError::Magic => "does not begin as its name says",
            FormatError::Version => "is of an unknown version",
            FormatError::Truncated => "is shorter than it says",
            FormatError::Trailing => "is longer than it says",
            FormatError::IndexDisagrees => "is not what its index speaks of",
            FormatError::IndexDisorder => "has an index that is out of order",
        })
    }
}

/// Why a format gives a file up before it said anything about its bytes.
#[derive(Debug)]
pub enum DeltaError<E> {
    /// It is not what it seems.
    Format(FormatError),
    /// It cannot be read.
    Failed(E),
}

impl<E> From<FormatError> for DeltaError<E> {
    fn from(error: FormatError) -> DeltaError<E> {
        DeltaError::Format(error)
    }
}

/// How many bytes two runs have in common at their beginnings.
pub fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 64;
    let steps = a.chunks(STEP).zip(b.chunks(STEP)).take_while(|(a, b)| a == b).count();
    let from = (steps * STEP).min(a.len()).min(b.len());
    from + a[from..].iter().zip(&b[from..]).take_while(|(a, b)| a == b).count()
}

/// Tells a sink a file, in order. Copies that go on where the one before ended are told as one.
struct CopyMerger<'a, E> {
    sink: &'a mut dyn Sink<E>,
    /// How many bytes of the file were told.
    emitted: u64,
    /// The last copy, of this reference and these bytes of it. The sink hears of it once it is known
    /// where it ends.
    copy: Option<(usize, Range<u64>)>,
    /// Most bytes of the file that are read at once.
    batch_bytes: u64,
}

impl<'a, E> CopyMerger<'a, E> {
    fn new(sink: &'a mut dyn Sink<E>, batch_bytes: u64) -> CopyMerger<'a, E> {
        CopyMerger { sink, emitted: 0, copy: None, batch_bytes }
    }

    /// Whether the last that was told is a copy of what stands before `offset` in this reference.
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

    /// Tells what was not told of the file up to `end` as it is.
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

    /// To be called when all of the file was told.
    fn finish(mut self) -> Result<(), E> {
        self.end_copy()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::convert::Infallible;

    /// A reference, or a source, in memory.
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

    /// A reference in which some ranges cannot be read.
    #[derive(Debug, Clone)]
    pub struct Damaged {
        pub reference: Memory,
        pub holes: Vec<Range<usize>>,
        pub reads: usize,
    }

    impl Damaged {
        /// How many bytes from `offset` on can be read.
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

    /// A source that can be read so many times and then no more.
    #[derive(Debug)]
    pub struct Failing {
        pub bytes: Vec<u8>,
        pub reads_left: usize,
    }

    /// What it fails with.
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

    /// Puts a file together again as a sink was told to.
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
