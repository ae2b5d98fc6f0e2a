//! Everything that snapshots need: one walk for checks and prunes.

use crate::chunks::Chunks;
use crate::entry::{Content, Entry};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::limits;
use crate::observe::Progress;
use crate::recipe::{Extent, Extents};
use crate::tree::{self, OutlinePart, Place, TreeReader};
use rayon::prelude::*;
use std::collections::HashSet;

/// Receives what snapshots need. Calls come from several threads.
pub trait Visitor: Sync {
    /// A page of a tree, or a recipe chunk.
    fn metadata(&self, id: &ChunkId) -> Result<()>;

    /// A chunk of which the first `end` bytes are needed.
    fn slice(&self, id: &ChunkId, end: u32) -> Result<()>;
}

/// Visits everything below the root of a tree, except the pages in `known`, and adds the visited
/// pages to them. Fails if anything cannot be read.
pub fn reach(
    root: &ChunkId,
    chunks: &dyn Chunks,
    known: &mut HashSet<u128>,
    visitor: &dyn Visitor,
    progress: &Progress,
) -> Result<()> {
    let chunks = &Visited { chunks, visitor };
    pages(root, chunks, known, progress, &|place, lost| visit_page(place, lost, chunks)).map(drop)
}

/// Like [`reach`], and adds nothing to `known`.
pub fn reach_beside(
    root: &ChunkId,
    chunks: &dyn Chunks,
    known: &HashSet<u128>,
    visitor: &dyn Visitor,
    progress: &Progress,
) -> Result<()> {
    let chunks = &Visited { chunks, visitor };
    let examine = |place, lost| visit_page(place, lost, chunks);
    new_pages(root, chunks, known, progress, &examine).map(drop)
}

fn visit_page(place: Place, lost: Option<Error>, chunks: &Visited<'_>) -> Result<bool> {
    if let Some(error) = lost {
        return Err(error);
    }
    for entry in TreeReader::at(place, chunks) {
        visit(&entry.map_err(|lost| lost.error)?, chunks)?;
    }
    Ok(true)
}

fn visit(entry: &Entry, chunks: &Visited<'_>) -> Result<()> {
    let Content::Recipe(recipe) = &entry.content else { return Ok(()) };
    for extent in Extents::new(recipe, chunks) {
        if let Extent::Slice { chunk, offset, len } = extent? {
            let end = u64::from(offset).checked_add(len).and_then(|end| end.try_into().ok());
            let end = end.filter(|end: &u32| *end as usize <= limits::CHUNK_BYTES_MAX);
            let end = end.ok_or_else(|| Error::Malformed {
                what: format!("a slice of chunk {chunk}"),
                reason: "it exceeds the maximum chunk size".into(),
            })?;
            chunks.visitor.slice(&chunk, end)?;
        }
    }
    Ok(())
}

/// Examines the leaves and the unreadable index pages of a tree, except `known` ones. `examine` gets
/// the error of an unreadable page, and returns true if a page is whole. Adds whole pages to `known`.
/// Returns true if all are whole.
pub fn pages(
    root: &ChunkId,
    chunks: &dyn Chunks,
    known: &mut HashSet<u128>,
    progress: &Progress,
    examine: &(dyn Fn(Place, Option<Error>) -> Result<bool> + Sync),
) -> Result<bool> {
    let (are_all_whole, whole) = new_pages(root, chunks, known, progress, examine)?;
    known.extend(whole);
    Ok(are_all_whole)
}

/// Like [`pages`]. Returns true if all pages are whole, and the whole ones.
fn new_pages(
    root: &ChunkId,
    chunks: &dyn Chunks,
    known: &HashSet<u128>,
    progress: &Progress,
    examine: &(dyn Fn(Place, Option<Error>) -> Result<bool> + Sync),
) -> Result<(bool, Vec<u128>)> {
    let mut entered = Vec::new();
    let parts = tree::outline(root, chunks, &|place| known.contains(&place.key()), &mut |place| {
        entered.push(place.key())
    });
    let examined: Vec<(u128, bool)> = parts
        .into_par_iter()
        .map(|(place, part)| {
            progress.check()?;
            let key = place.key();
            let is_whole = match part {
                OutlinePart::Known => true,
                OutlinePart::Leaf => examine(place, None)?,
                OutlinePart::Lost(error) => examine(place, Some(error))?,
            };
            Ok((key, is_whole))
        })
        .collect::<Result<_>>()?;
    let are_all_whole = examined.iter().all(|(_, is_whole)| *is_whole);
    let whole = examined.into_iter().filter(|(_, is_whole)| *is_whole).map(|(key, _)| key);
    let mut whole: Vec<u128> = whole.collect();
    if are_all_whole {
        // Index pages above a damaged page are opened again for the next snapshot.
        whole.extend(entered);
    }
    Ok((are_all_whole, whole))
}

/// Reads chunks, and passes their ids to the visitor.
struct Visited<'a> {
    chunks: &'a dyn Chunks,
    visitor: &'a dyn Visitor,
}

impl Chunks for Visited<'_> {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        self.visitor.metadata(id)?;
        self.chunks.get_into(id, plain)
    }
}
