//! Pieces of a file, kept until the whole file is known.
//!
//! The end of a file decides which slices are worth a reference. Until then its pieces and its
//! literal bytes wait here, most of them in unnamed scratch files.

use crate::error::{Error, Result};
use crate::workspace::Workspace;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

/// Maximum number of pieces in memory.
const MEMORY_PIECES: usize = 64 << 10;
/// Maximum bytes of literal pieces in memory.
const LITERAL_MEMORY_BYTES: usize = 1 << 20;
/// Bytes per piece in the scratch file.
const PIECE_BYTES: usize = 12;

/// A run of bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A slice of the chunk with this number.
    Slice { chunk: u32, offset: u32, len: u32 },
    /// The next literal bytes.
    Literal { len: u32 },
}

/// Chunk number that marks a literal.
const LITERAL: u32 = u32::MAX;

impl Piece {
    /// Length in bytes.
    pub fn len(self) -> u64 {
        match self {
            Piece::Slice { len, .. } | Piece::Literal { len } => u64::from(len),
        }
    }

    fn to_bytes(self) -> [u8; PIECE_BYTES] {
        let (chunk, offset, len) = match self {
            Piece::Slice { chunk, offset, len } => (chunk, offset, len),
            Piece::Literal { len } => (LITERAL, 0, len),
        };
        let mut bytes = [0; PIECE_BYTES];
        bytes[..4].copy_from_slice(&chunk.to_le_bytes());
        bytes[4..8].copy_from_slice(&offset.to_le_bytes());
        bytes[8..].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; PIECE_BYTES]) -> Piece {
        let number = |n: usize| u32::from_le_bytes(bytes[4 * n..4 * n + 4].try_into().expect("4"));
        match number(0) {
            LITERAL => Piece::Literal { len: number(2) },
            chunk => Piece::Slice { chunk, offset: number(1), len: number(2) },
        }
    }

    /// Appends the next piece to this one and returns true if both are contiguous.
    fn join(&mut self, next: Piece) -> bool {
        let (len, more) = match (&mut *self, next) {
            (
                Piece::Slice { chunk, offset, len },
                Piece::Slice { chunk: of, offset: at, len: more },
            ) if *chunk == of && *offset + *len == at => (len, more),
            (Piece::Literal { len }, Piece::Literal { len: more }) => (len, more),
            _ => return false,
        };
        match len.checked_add(more) {
            Some(sum) => {
                *len = sum;
                true
            }
            None => false,
        }
    }
}

/// Pieces in order.
pub struct Spool<'a> {
    workspace: Option<&'a Workspace>,
    file: Option<BufWriter<File>>,
    memory: Vec<Piece>,
    /// Number of pieces in the file and in memory.
    pieces: u64,
    /// Scratch file with the first bytes of the literal pieces.
    literal_file: Option<File>,
    /// Bytes of the literal pieces after those in `literal_file`.
    literal_memory: Vec<u8>,
}

impl<'a> Spool<'a> {
    /// Returns an empty spool. Scratch files are created in the workspace, or else in the directory of
    /// temporary files.
    pub fn new(workspace: Option<&'a Workspace>) -> Spool<'a> {
        let (file, literal_file) = (None, None);
        let (memory, literal_memory) = (Vec::new(), Vec::new());
        Spool { workspace, file, memory, pieces: 0, literal_file, literal_memory }
    }

    /// Returns the number of pieces in a replay.
    pub fn pieces(&self) -> u64 {
        self.pieces
    }

    /// Appends a slice of the chunk with this number.
    pub fn slice(&mut self, chunk: u32, offset: u32, len: u32) -> Result<()> {
        self.push(Piece::Slice { chunk, offset, len }).map_err(scratch_full())
    }

    /// Appends literal bytes.
    pub fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(LITERAL_MEMORY_BYTES) {
            if self.literal_memory.len() + part.len() > LITERAL_MEMORY_BYTES {
                self.spill_literals().map_err(scratch_full())?;
            }
            self.literal_memory.extend_from_slice(part);
            self.push(Piece::Literal { len: part.len() as u32 }).map_err(scratch_full())?;
        }
        Ok(())
    }

    fn push(&mut self, piece: Piece) -> io::Result<()> {
        if self.memory.last_mut().is_some_and(|last| last.join(piece)) {
            return Ok(());
        }
        if self.memory.len() >= MEMORY_PIECES {
            self.spill()?;
        }
        self.memory.push(piece);
        self.pieces += 1;
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::new(scratch(self.workspace)?)),
        };
        for piece in self.memory.drain(..) {
            file.write_all(&piece.to_bytes())?;
        }
        Ok(())
    }

    fn spill_literals(&mut self) -> io::Result<()> {
        let file = match &mut self.literal_file {
            Some(file) => file,
            none => none.insert(scratch(self.workspace)?),
        };
        file.write_all(&self.literal_memory)?;
        self.literal_memory.clear();
        Ok(())
    }

    /// Calls `each` for all pieces in order.
    pub fn replay<E: From<Error>>(
        &mut self,
        mut each: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(file) = &mut self.file {
            file.flush().map_err(scratch_full())?;
            let file = file.get_mut();
            let len = file.stream_position().map_err(scratch_full())?;
            file.rewind().map_err(scratch_full())?;
            let mut reader = BufReader::new(&mut *file);
            let mut bytes = [0; PIECE_BYTES];
            for _ in 0..len / PIECE_BYTES as u64 {
                reader.read_exact(&mut bytes).map_err(scratch_full())?;
                each(Piece::from_bytes(bytes))?;
            }
        }
        self.memory.iter().try_for_each(|piece| each(*piece))
    }

    /// Same as [`replay`](Self::replay), with a reader of the literal bytes from the first on.
    pub fn replay_with_literals<E: From<Error>>(
        &mut self,
        mut each: impl FnMut(Piece, &mut dyn Read) -> Result<(), E>,
    ) -> Result<(), E> {
        let memory = std::mem::take(&mut self.literal_memory);
        let mut file = self.literal_file.take();
        if let Some(file) = &mut file {
            file.rewind().map_err(scratch_full())?;
        }
        let spilled: Box<dyn Read> = match &mut file {
            Some(file) => Box::new(BufReader::with_capacity(LITERAL_MEMORY_BYTES, file)),
            None => Box::new(io::empty()),
        };
        let mut literals = spilled.chain(&memory[..]);
        self.replay(|piece| each(piece, &mut literals))?;
        drop(literals);
        (self.literal_file, self.literal_memory) = (file, memory);
        Ok(())
    }

    /// Removes all pieces.
    pub fn clear(&mut self) {
        (self.file, self.literal_file) = (None, None);
        self.memory.clear();
        self.pieces = 0;
        self.literal_memory.clear();
    }
}

/// Creates a scratch file in the workspace, or else in the directory of temporary files.
pub fn scratch(workspace: Option<&Workspace>) -> io::Result<File> {
    workspace.map_or_else(tempfile::tempfile, Workspace::scratch)
}

/// Converts an I/O error of scratch space.
pub fn scratch_full() -> impl FnOnce(io::Error) -> Error {
    Error::store_write("scratch space in tmp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_returned_in_order_and_joined() {
        let dir = tempfile::tempdir().expect("a directory");
        let workspace = Workspace::below(dir.path(), &[7; 16]).expect("a workspace");
        for workspace in [None, Some(&workspace)] {
            check_pieces(&mut Spool::new(workspace));
        }
    }

    fn check_pieces(spool: &mut Spool<'_>) {
        let count = 3 * MEMORY_PIECES as u32 + 5;
        let last = count - 1;
        for n in 0..count {
            spool.slice(n % 7, n, 3).expect("scratch space");
        }
        spool.slice(last % 7, last + 3, 4).expect("scratch space");
        let noise: Vec<u8> =
            (0..3 * LITERAL_MEMORY_BYTES + 9).map(|n| ((n * n) >> 7) as u8).collect();
        for part in [&noise[..5], &noise[5..LITERAL_MEMORY_BYTES], &noise[LITERAL_MEMORY_BYTES..]] {
            spool.literal(part).expect("scratch space");
        }
        for _ in 0..2 {
            let (mut found, mut bytes) = (Vec::new(), Vec::new());
            let collect = |piece: Piece, literals: &mut dyn Read| {
                if let Piece::Literal { len } = piece {
                    literals.take(u64::from(len)).read_to_end(&mut bytes).expect("reads");
                }
                found.push(piece);
                Ok::<(), Error>(())
            };
            spool.replay_with_literals(collect).expect("reads");
            assert_eq!(found.len() as u32, count + 1);
            assert_eq!(found.len() as u64, spool.pieces());
            let is_slice = |(n, piece): (u32, &Piece)| {
                *piece == Piece::Slice { chunk: n % 7, offset: n, len: 3 }
            };
            assert!((0..last).zip(&found).all(is_slice));
            let joined = Piece::Slice { chunk: last % 7, offset: last, len: 7 };
            assert_eq!(found[last as usize], joined);
            assert!(bytes == noise);
        }
        spool.clear();
        assert_eq!(spool.pieces(), 0);
        spool.replay::<Error>(|_| panic!("nothing is left")).expect("reads");
    }
}
