//! Writes the content of one file as a stream.

use crate::content::{ChunkCache, ContentReader, Cursor};
use crate::entry::{Content, Entry};
use crate::error::Result;
use crate::observe::Progress;
use crate::recipe::Extent;
use crate::store::Store;
use std::io::{self, Write};

/// Bytes read at once. The bytes of an old file are scattered, so each step decodes chunks that
/// other steps also need.
const STEP_BYTES: usize = 28 << 20;
/// Bytes of recipe chunks kept for the next steps.
const CACHE_BYTES: usize = 4 << 20;
/// Bytes written at once.
const WRITE_BYTES: usize = 1 << 20;
/// Zeros written at once for a long hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes the content of `entry`. Every byte is verified before it is written.
///
/// The outer error is the store's; the inner one is that of `out`.
pub fn dump(store: &Store, entry: &Entry, out: &mut dyn Write) -> Result<io::Result<()>> {
    let recipe = match &entry.content {
        Content::Empty => return Ok(Ok(())),
        Content::Inline(bytes) => return Ok(out.write_all(bytes)),
        Content::Recipe(recipe) => recipe,
    };
    let progress = store.observer().progress();
    let cache = ChunkCache::new(CACHE_BYTES);
    let content = ContentReader::new(store, &cache, recipe, entry.size);
    let mut extents = Cursor::new(content.clone());
    let mut step = vec![0; usize::try_from(entry.size).unwrap_or(usize::MAX).min(STEP_BYTES)];
    let mut at = 0;
    while at < content.len() {
        let left_of_hole = match extents.extent_at(at)? {
            Some((Extent::Hole { len }, into)) => len - into,
            _ => 0,
        };
        let written = if left_of_hole >= step.len() as u64 {
            at += left_of_hole;
            zeros(left_of_hole, progress, out)?
        } else {
            let len = content.read_at(at, &mut step)?;
            at += len as u64;
            write(&step[..len], progress, out)?
        };
        if written.is_err() {
            return Ok(written);
        }
    }
    Ok(out.flush())
}

fn write(bytes: &[u8], progress: &Progress, out: &mut dyn Write) -> Result<io::Result<()>> {
    for bytes in bytes.chunks(WRITE_BYTES) {
        progress.check()?;
        if let Err(error) = out.write_all(bytes) {
            return Ok(Err(error));
        }
        progress.add(0, bytes.len() as u64);
    }
    Ok(Ok(()))
}

fn zeros(mut len: u64, progress: &Progress, out: &mut dyn Write) -> Result<io::Result<()>> {
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        let written = write(&ZEROS[..now as usize], progress, out)?;
        if written.is_err() {
            return Ok(written);
        }
        len -= now;
    }
    Ok(Ok(()))
}
