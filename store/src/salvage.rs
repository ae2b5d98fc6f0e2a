//! Finds the chunks of a segment whose table is lost.
//!
//! Chunks are consecutive standard zstd frames. The magic number locates them, and their content
//! gives their ids.

use crate::backend::Backend;
use crate::codec::Codec;
use crate::id::SegmentId;
use crate::limits;
use crate::segment::{self, Row};

/// First four bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// Bytes read at once, where a read of more failed: a bad sector costs the chunks that it is in.
const READ_BYTES: [usize; 3] = [512 << 10, 64 << 10, 4 << 10];

/// All chunks that can be found in a segment of `len` bytes, whatever happened to it.
///
/// Never fails: unreadable parts are treated as empty.
pub fn rows(backend: &dyn Backend, codec: Codec, id: &SegmentId, len: u64) -> Vec<Row> {
    let name = segment::file_name(id);
    let len = len.min(limits::SEGMENT_BYTES_MAX) as usize;
    let mut plain = Vec::new();
    let mut window = ScanWindow { bytes: Vec::new(), start: 0, len };
    let mut rows = Vec::new();
    let mut at = 0;
    while at + ZSTD_MAGIC.len() <= len && rows.len() < limits::SEGMENT_CHUNKS_MAX {
        window.move_to(backend, &name, at);
        let bytes = window.from(at);
        let Some(skip) = bytes.windows(4).position(|four| four == ZSTD_MAGIC) else {
            at += bytes.len().saturating_sub(3).max(1);
            continue;
        };
        if skip > 0 {
            at += skip;
            continue;
        }
        let chunk = codec.recover(bytes, &mut plain);
        let row = chunk.map(|(id, stored_len, plain_len)| Row {
            id,
            offset: at as u32,
            stored_len: stored_len as u32,
            plain_len: plain_len as u32,
        });
        at += row.map_or(1, |row| row.stored_len as usize);
        rows.extend(row);
    }
    rows
}

/// The part of the file in memory.
struct ScanWindow {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl ScanWindow {
    /// Makes sure that a whole chunk from `at` on is in memory, with zeros for bytes that cannot
    /// be read.
    fn move_to(&mut self, backend: &dyn Backend, name: &str, at: usize) {
        let wanted = (at + limits::STORED_BYTES_MAX).min(self.len);
        if at >= self.start && wanted <= self.start + self.bytes.len() {
            return;
        }
        let end = (at + 2 * limits::STORED_BYTES_MAX).min(self.len);
        self.start = at;
        self.bytes.resize(end - at, 0);
        read_around_errors(backend, name, at, &mut self.bytes, &READ_BYTES);
    }

    fn from(&self, at: usize) -> &[u8] {
        &self.bytes[at - self.start..]
    }
}

/// Reads bytes, in smaller steps where that fails; bytes that cannot be read become zeros.
fn read_around_errors(
    backend: &dyn Backend,
    name: &str,
    at: usize,
    bytes: &mut [u8],
    steps: &[usize],
) {
    if backend.read(name, at as u64, bytes).is_ok() {
        return;
    }
    let Some((step, smaller)) = steps.split_first() else {
        bytes.fill(0);
        return;
    };
    for (number, part) in bytes.chunks_mut(*step).enumerate() {
        read_around_errors(backend, name, at + number * step, part, smaller);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Memory, faulty::Faulty, write_all};
    use crate::codec::FrameEncoder;
    use crate::id::ChunkId;

    #[test]
    fn a_bad_sector_loses_only_its_own_chunk() {
        let (mut encoder, mut frame) = (FrameEncoder::new(1), Vec::new());
        let (mut file, mut chunks) = (Vec::new(), Vec::new());
        for seed in 0..40_u32 {
            let mut plain = vec![0; 20_000];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut plain);
            encoder.encode(&plain, &mut frame);
            chunks.push((file.len(), ChunkId::of(&plain)));
            file.extend_from_slice(&frame);
        }
        let id = SegmentId::of(&file);
        let memory = Memory::default();
        write_all(&memory, &segment::file_name(&id), &file).expect("writes");
        let bad = chunks[20].0 + 9_000;
        let bad = (bad - bad % 4096) as u64;
        let faulty = Faulty::with_bad_bytes(memory, bad..bad + 512);
        let found: Vec<ChunkId> = rows(&faulty, Codec::new(1), &id, file.len() as u64)
            .into_iter()
            .map(|row| row.id)
            .collect();
        let wanted: Vec<ChunkId> = chunks.iter().map(|(_, id)| *id).collect();
        // A frame of raw bytes is decoded with zeros in it, under a name that nobody asks for.
        let found: Vec<ChunkId> = found.into_iter().filter(|id| wanted.contains(id)).collect();
        assert_eq!(found, [&wanted[..20], &wanted[21..]].concat());
    }
}
