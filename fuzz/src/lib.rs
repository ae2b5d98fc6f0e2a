//! Code shared by the fuzz targets: inputs in parts, and files in memory.

use chunker::delta::{DeltaError, FormatError, Reference, Sink, Source};
use std::convert::Infallible;
use std::ops::Range;

/// An input that is consumed from the front.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Returns the next byte; 0 after the last.
    pub fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// Returns the next two bytes as a little-endian number.
    pub fn number(&mut self) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    /// Returns the next part: a two-byte length, then that number of bytes.
    pub fn part(&mut self) -> &'a [u8] {
        let len = self.number().min(self.0.len());
        let (part, rest) = self.0.split_at(len);
        self.0 = rest;
        part
    }
}

/// Encodes bytes for [`Input::part`].
pub fn part(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("inputs are short");
    [&len.to_le_bytes(), bytes].concat()
}

/// A file in memory with a hole that is unreadable in a reference.
#[derive(Debug, Clone)]
pub struct Memory {
    pub bytes: Vec<u8>,
    pub hole: Range<usize>,
}

impl Memory {
    pub fn new(bytes: &[u8]) -> Memory {
        Memory { bytes: bytes.to_vec(), hole: 0..0 }
    }

    fn readable(&self, offset: u64) -> &[u8] {
        let Ok(offset) = usize::try_from(offset) else { return &[] };
        let end = match offset < self.hole.end {
            true => self.hole.start.min(self.bytes.len()),
            false => self.bytes.len(),
        };
        self.bytes.get(offset..end).unwrap_or_default()
    }
}

impl Reference for Memory {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
        self.readable(offset).iter().zip(with).take_while(|(a, b)| a == b).count()
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        let readable = self.readable(offset);
        let len = readable.len().min(buffer.len());
        buffer[..len].copy_from_slice(&readable[..len]);
        len
    }
}

impl Source<Infallible> for Memory {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Infallible> {
        buffer.copy_from_slice(&self.bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

/// A sink that compares its input with the new file.
pub struct Checked<'a> {
    new: &'a [u8],
    references: Vec<&'a [u8]>,
    received: usize,
    pub copies: usize,
}

impl<'a> Checked<'a> {
    pub fn new(new: &'a [u8], references: Vec<&'a [u8]>) -> Checked<'a> {
        Checked { new, references, received: 0, copies: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        assert!(self.new[self.received..].starts_with(bytes), "not the file");
        self.received += bytes.len();
    }

    /// Asserts that the sink received the whole file, or nothing if the format failed.
    pub fn finish(&self, done: Result<(), DeltaError<Infallible>>) -> Option<FormatError> {
        match done {
            Ok(()) => assert_eq!(self.received, self.new.len(), "not all of the file"),
            Err(DeltaError::Failed(error)) => match error {},
            Err(DeltaError::Format(error)) => {
                assert_eq!(self.received, 0, "a format error after output");
                return Some(error);
            }
        }
        None
    }
}

impl Sink<Infallible> for Checked<'_> {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        assert!(!bytes.is_empty());
        self.take(bytes);
        Ok(())
    }

    fn copy(&mut self, reference: usize, offset: u64, len: u64) -> Result<(), Infallible> {
        assert!(len > 0);
        self.copies += 1;
        let bytes = &self.references[reference][offset as usize..][..len as usize];
        self.take(bytes);
        Ok(())
    }
}
