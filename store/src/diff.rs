//! Compares two trees without reading the pages that they share.

use crate::chunks::Chunks;
use crate::entry::{Entry, path_cmp};
use crate::error::Result;
use crate::id::ChunkId;
use crate::tree::{self, Lost, OutlinePart, Place, Span, TreeReader};
use std::cmp::Ordering;
use std::collections::HashSet;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Only in the second tree.
    Added(Entry),
    /// Only in the first tree.
    Removed(Entry),
    /// In both, with other content, target, kind or device.
    Modified(Entry, Entry),
    /// In both, with other metadata only.
    Metadata(Entry, Entry),
}

/// Calls `each` for every path that differs, in path order, and for every lost part. Ends with the
/// first error of `each`.
///
/// Leaves that both trees contain are equal and are not read.
pub fn diff<E>(
    chunks: &dyn Chunks,
    first: &ChunkId,
    second: &ChunkId,
    each: &mut dyn FnMut(Result<Change, Lost>) -> Result<(), E>,
) -> Result<(), E> {
    let outline = |root| tree::outline(root, chunks, &|_| false, &mut |_| {});
    let (left, right) = (outline(first), outline(second));
    let shared: HashSet<ChunkId> = {
        let pages = |parts: &[(Place, OutlinePart)]| -> HashSet<ChunkId> {
            parts.iter().map(|(place, _)| place.child.page).collect()
        };
        pages(&left).intersection(&pages(&right)).copied().collect()
    };
    let mut left = entries(left, &shared, chunks).peekable();
    let mut right = entries(right, &shared, chunks).peekable();
    let mut lost_parts: Vec<Span> = Vec::new();
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            // A lost part precedes an entry, because it may hold the entry's path.
            (Some(a), Some(b)) => {
                path_cmp(first_path(a), first_path(b)).then_with(|| a.is_ok().cmp(&b.is_ok()))
            }
        };
        let change = match order {
            Ordering::Less => left.next().transpose().map(|entry| entry.map(Change::Removed)),
            Ordering::Greater => right.next().transpose().map(|entry| entry.map(Change::Added)),
            Ordering::Equal => match (left.next(), right.next()) {
                (Some(Ok(a)), Some(Ok(b))) => Ok(compare(a, b)),
                // Lost in both trees: report it once.
                (Some(Err(lost)), _) | (_, Some(Err(lost))) => Err(lost),
                _ => Ok(None),
            },
        };
        match change {
            Ok(None) => {}
            Ok(Some(change)) => {
                let path = change.path();
                lost_parts.retain(|part| part.may_reach(path));
                if !lost_parts.iter().any(|part| part.may_be(path)) {
                    each(Ok(change))?;
                }
            }
            Err(lost) => {
                lost_parts.push(lost.span.clone());
                each(Err(lost))?;
            }
        }
    }
}

impl Change {
    /// Returns the path that differs.
    pub fn path(&self) -> &[u8] {
        match self {
            Change::Added(entry)
            | Change::Removed(entry)
            | Change::Modified(_, entry)
            | Change::Metadata(_, entry) => &entry.path,
        }
    }
}

fn first_path(item: &Result<Entry, Lost>) -> &[u8] {
    match item {
        Ok(entry) => &entry.path,
        Err(lost) => lost.span.from(),
    }
}

fn compare(a: Entry, b: Entry) -> Option<Change> {
    if !is_same_thing(&a, &b) {
        return Some(Change::Modified(a, b));
    }
    (!has_same_metadata(&a, &b)).then_some(Change::Metadata(a, b))
}

/// Returns true if two entries of one path do not differ.
pub(crate) fn is_same(a: &Entry, b: &Entry) -> bool {
    is_same_thing(a, b) && has_same_metadata(a, b)
}

fn is_same_thing(a: &Entry, b: &Entry) -> bool {
    let thing = |entry: &Entry| (entry.kind, entry.device);
    thing(a) == thing(b) && a.target == b.target && a.content == b.content
}

fn has_same_metadata(a: &Entry, b: &Entry) -> bool {
    let times = |entry: &Entry| (entry.mode, entry.mtime);
    times(a) == times(b) && a.owner == b.owner && a.xattrs == b.xattrs && a.acl_names == b.acl_names
}

fn entries<'a>(
    parts: Vec<(Place, OutlinePart)>,
    shared: &'a HashSet<ChunkId>,
    chunks: &'a dyn Chunks,
) -> impl Iterator<Item = Result<Entry, Lost>> + 'a {
    let parts = parts.into_iter().filter(|(place, _)| !shared.contains(&place.child.page));
    parts.flat_map(move |(place, part)| {
        let (lost, leaf) = match part {
            OutlinePart::Lost(error) => (Some(place.lost(error)), None),
            OutlinePart::Leaf | OutlinePart::Known => (None, Some(TreeReader::at(place, chunks))),
        };
        lost.map(Err).into_iter().chain(leaf.into_iter().flatten())
    })
}
