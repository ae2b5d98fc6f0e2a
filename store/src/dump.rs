//! Writes the content of one file as a stream.

use crate::chunk_cache::ChunkCache;
use crate::entry::{Content, Entry};
use crate::error::{Error, Result};
use crate::recipe::{Extent, Extents};
use crate::store::Store;
use std::io::{self, BufWriter, Write};

/// Plain bytes of chunks kept for later slices.
const OPENED_BYTES: usize = 32 << 20;
/// Zeros written at once for a hole.
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
    let mut opened = ChunkCache::new(store, OPENED_BYTES);
    // Collects small slices. Slices longer than the buffer bypass it.
    let mut out = BufWriter::with_capacity(ZEROS.len(), out);
    for extent in Extents::new(recipe, store) {
        store.observer().progress().check()?;
        let extent = extent?;
        let written = match extent {
            Extent::Hole { len } => zeros(len, &mut out),
            Extent::Slice { chunk, offset, len } => {
                let bytes = opened.slice(&chunk, offset, len)?;
                let too_short = || Error::Malformed {
                    what: crate::entry::display_path(&entry.path),
                    reason: format!("chunk {chunk} is too short"),
                };
                out.write_all(bytes.ok_or_else(too_short)?)
            }
        };
        if written.is_err() {
            return Ok(written);
        }
        store.observer().progress().add(0, extent.len());
    }
    Ok(out.flush())
}

fn zeros(mut len: u64, out: &mut dyn Write) -> io::Result<()> {
    while len > 0 {
        let step = len.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..step as usize])?;
        len -= step;
    }
    Ok(())
}
