//! What a file was found to be, kept until all of it is known.
//!
//! Which slices are worth referring to is seen at the end of a file; until then
//! its pieces wait here, most of them in a nameless file of the store.

use crate::backend::Backend;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};

/// Pieces in memory.
const MEMORY_PIECES: usize = 64 << 10;
/// Bytes of a piece in the file.
const PIECE_BYTES: usize = 12;

/// A run of bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A slice of the chunk with this number.
    Slice { chunk: u32, offset: u32, len: u32 },
    /// The next bytes of what no base has.
    Literal { len: u32 },
}

/// The number of no chunk.
const LITERAL: u32 = u32::MAX;

impl Piece {
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

    /// Joins the next piece to this one, if they are one.
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
    room: Option<&'a dyn Backend>,
    file: Option<BufWriter<File>>,
    memory: Vec<Piece>,
}

impl<'a> Spool<'a> {
    /// An empty one, which may need room in the store, or else on this machine.
    pub fn new(room: Option<&'a dyn Backend>) -> Spool<'a> {
        Spool { room, file: None, memory: Vec::new() }
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: Piece) -> Result<()> {
        if self.memory.last_mut().is_some_and(|last| last.join(piece)) {
            return Ok(());
        }
        if self.memory.len() >= MEMORY_PIECES {
            self.spill().map_err(Error::store_write("scratch space in tmp"))?;
        }
        self.memory.push(piece);
        Ok(())
    }

    fn spill(&mut self) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = self.room.map_or_else(tempfile::tempfile, Backend::scratch)?;
                none.insert(BufWriter::new(file))
            }
        };
        for piece in self.memory.drain(..) {
            file.write_all(&piece.to_bytes())?;
        }
        Ok(())
    }

    /// Calls `each` for all pieces in order.
    pub fn replay<E: From<Error>>(
        &mut self,
        mut each: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(file) = &mut self.file {
            let fail = |error| Error::store_write("scratch space in tmp")(error);
            file.flush().map_err(fail)?;
            let file = file.get_mut();
            let len = file.stream_position().map_err(fail)?;
            file.rewind().map_err(fail)?;
            let mut reader = BufReader::new(&mut *file);
            let mut bytes = [0; PIECE_BYTES];
            for _ in 0..len / PIECE_BYTES as u64 {
                reader.read_exact(&mut bytes).map_err(fail)?;
                each(Piece::from_bytes(bytes))?;
            }
        }
        self.memory.iter().try_for_each(|piece| each(*piece))
    }

    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.file = None;
        self.memory.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Memory;

    #[test]
    fn pieces_come_back_in_order_and_joined() {
        let backend = Memory::default();
        for room in [None, Some(&backend as &dyn Backend)] {
            let mut spool = Spool::new(room);
            let slice = |n: u32| Piece::Slice { chunk: n % 7, offset: n, len: 3 };
            let count = 3 * MEMORY_PIECES as u32 + 5;
            for n in 0..count {
                spool.push(slice(n)).expect("room");
            }
            spool
                .push(Piece::Slice { offset: count + 2, len: 4, chunk: (count - 1) % 7 })
                .expect("room");
            spool.push(Piece::Literal { len: 5 }).expect("room");
            spool.push(Piece::Literal { len: 6 }).expect("room");
            for _ in 0..2 {
                let mut found = Vec::new();
                let collect = |piece| {
                    found.push(piece);
                    Ok::<(), Error>(())
                };
                spool.replay(collect).expect("reads");
                assert_eq!(found.len() as u32, count + 1);
                assert!(
                    found
                        .iter()
                        .take(count as usize - 1)
                        .enumerate()
                        .all(|(n, p)| *p == slice(n as u32))
                );
                assert_eq!(
                    found[count as usize - 1],
                    Piece::Slice { chunk: (count - 1) % 7, offset: count - 1, len: 7 }
                );
                assert_eq!(found[count as usize], Piece::Literal { len: 11 });
            }
            spool.clear();
            spool.replay::<Error>(|_| panic!("nothing is left")).expect("reads");
        }
    }
}
