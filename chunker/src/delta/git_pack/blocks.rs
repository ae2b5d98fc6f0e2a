//! Cached reads of short pieces that cluster in a few places of a file.

use crate::delta::Source;

const BLOCK_BYTES: u64 = 16 << 10;
/// Number of cached blocks. A reference mostly leads to a few places of the pack by turns.
const BLOCKS: u64 = 256;
/// Reads of at least this many bytes bypass the cache.
const LONG_BYTES: usize = 2 * BLOCK_BYTES as usize;

/// Direct-mapped cache of file blocks.
pub struct Blocks(Vec<Option<Block>>);

struct Block {
    number: u64,
    bytes: Vec<u8>,
}

impl Blocks {
    /// Returns an empty cache.
    pub fn new() -> Blocks {
        Blocks((0..BLOCKS).map(|_| None).collect())
    }

    /// Fills the buffer from `offset` on. The range must lie within the file.
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
