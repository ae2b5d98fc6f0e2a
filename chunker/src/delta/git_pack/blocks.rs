//! Reading short pieces of a file that are near each other, now here and now there.

use crate::delta::Source;

const BLOCK_BYTES: u64 = 16 << 10;
/// Blocks that are kept. A reference mostly leads to a few places of the pack by turns.
const BLOCKS: u64 = 256;
/// So much is read as it is asked for.
const LONG_BYTES: usize = 2 * BLOCK_BYTES as usize;

/// Blocks of a file that were read, each in the one slot for its number.
pub struct Blocks(Vec<Option<Block>>);

struct Block {
    number: u64,
    bytes: Vec<u8>,
}

impl Blocks {
    /// Of a file of which nothing was read.
    pub fn new() -> Blocks {
        Blocks((0..BLOCKS).map(|_| None).collect())
    }

    /// Fills the buffer from `offset` on; the file has so much.
    pub fn read<E>(
        &mut self,
        file: &mut dyn Source<E>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), E> {
        if buffer.len() >= LONG_BYTES {
            return file.read(offset, buffer);
        }
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset + filled as u64;
            let block = self.block(file, at / BLOCK_BYTES)?;
            let bytes = &block[(at % BLOCK_BYTES) as usize..];
            let len = bytes.len().min(buffer.len() - filled);
            buffer[filled..][..len].copy_from_slice(&bytes[..len]);
            filled += len;
        }
        Ok(())
    }

    fn block<E>(&mut self, file: &mut dyn Source<E>, number: u64) -> Result<&[u8], E> {
        let slot = &mut self.0[(number % BLOCKS) as usize];
        let block = match slot.take() {
            Some(block) if block.number == number => block,
            other => {
                let mut bytes = other.map(|block| block.bytes).unwrap_or_default();
                let start = number * BLOCK_BYTES;
                bytes.resize(BLOCK_BYTES.min(file.len() - start) as usize, 0);
                file.read(start, &mut bytes)?;
                Block { number, bytes }
            }
        };
        Ok(&slot.insert(block).bytes)
    }
}
