//! Finding the chunks of a segment whose table is gone.
//!
//! Chunks are standard zstd frames one after the other, so they can be found by
//! what they begin with and named by what they contain.

use crate::backend::Backend;
use crate::codec::{FrameDecoder, claimed_plain_len, frame_len};
use crate::id::{ChunkId, SegmentId};
use crate::limits;
use crate::segment::{self, Row};

/// First four bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// All chunks that can be found in a segment of `len` bytes, whatever happened to it.
///
/// Never fails: what cannot be read holds no chunks.
pub fn rows(backend: &dyn Backend, id: &SegmentId, len: u64) -> Vec<Row> {
    let name = segment::file_name(id);
    let len = len.min(limits::SEGMENT_BYTES_MAX) as usize;
    let (mut decoder, mut plain) = (FrameDecoder::new(), Vec::new());
    let mut window = ScanWindow { bytes: Vec::new(), start: 0, len };
    let mut rows = Vec::new();
    let mut at = 0;
    while at + ZSTD_MAGIC.len() <= len && rows.len() < limits::SEGMENT_CHUNKS_MAX {
        if window.move_to(backend, &name, at).is_err() {
            // A bad sector: go on behind it.
            at += 4096;
            continue;
        }
        let bytes = window.from(at);
        let Some(skip) = bytes.windows(4).position(|four| four == ZSTD_MAGIC) else {
            at += bytes.len().saturating_sub(3).max(1);
            continue;
        };
        if skip > 0 {
            at += skip;
            continue;
        }
        let row = frame_len(bytes).and_then(|stored_len| {
            let frame = &bytes[..stored_len];
            decoder.decode_unnamed(frame, claimed_plain_len(frame)?, &mut plain).ok()?;
            Some(Row {
                id: ChunkId::of(&plain),
                offset: at as u32,
                stored_len: stored_len as u32,
                plain_len: plain.len() as u32,
            })
        });
        at += row.map_or(1, |row| row.stored_len as usize);
        rows.extend(row);
    }
    rows
}

/// The part of the file that is in memory.
struct ScanWindow {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl ScanWindow {
    /// Makes sure that a whole chunk from `at` on is in memory.
    fn move_to(&mut self, backend: &dyn Backend, name: &str, at: usize) -> std::io::Result<()> {
        let wanted = (at + limits::STORED_BYTES_MAX).min(self.len);
        if at >= self.start && wanted <= self.start + self.bytes.len() {
            return Ok(());
        }
        let end = (at + 2 * limits::STORED_BYTES_MAX).min(self.len);
        self.start = at;
        self.bytes.resize(end - at, 0);
        let read = backend.read(name, at as u64, &mut self.bytes);
        if read.is_err() {
            self.bytes.clear();
        }
        read
    }

    fn from(&self, at: usize) -> &[u8] {
        &self.bytes[at - self.start..]
    }
}
