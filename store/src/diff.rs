//! What differs between two trees, without reading what they share.

use crate::entry::{Entry, path_cmp};
use crate::error::Result;
use crate::id::ChunkId;
use crate::store::Store;
use crate::tree::{self, TreeReader};
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

/// Calls `each` for every path that differs, in path order.
///
/// Leaves that both trees have are the same in both and are not read.
pub fn diff(
    store: &Store,
    first: &ChunkId,
    second: &ChunkId,
    each: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<()> {
    let get = |id: &ChunkId| store.chunk(id);
    let (left, right) = (tree::leaves(first, &get)?, tree::leaves(second, &get)?);
    let shared: HashSet<ChunkId> = {
        let left: HashSet<ChunkId> = left.iter().copied().collect();
        right.iter().copied().filter(|page| left.contains(page)).collect()
    };
    let mut left = entries(left, &shared, &get).peekable();
    let mut right = entries(right, &shared, &get).peekable();
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return Ok(()),
            (Some(Ok(a)), Some(Ok(b))) => path_cmp(&a.path, &b.path),
            (Some(_), None) | (Some(Err(_)), _) => Ordering::Less,
            (None, Some(_)) | (_, Some(Err(_))) => Ordering::Greater,
        };
        let change = match order {
            Ordering::Less => left.next().transpose()?.map(Change::Removed),
            Ordering::Greater => right.next().transpose()?.map(Change::Added),
            Ordering::Equal => match (left.next().transpose()?, right.next().transpose()?) {
                (Some(a), Some(b)) => compare(a, b),
                _ => None,
            },
        };
        if let Some(change) = change {
            each(change)?;
        }
    }
}

fn compare(a: Entry, b: Entry) -> Option<Change> {
    let same_thing = (a.kind, &a.target, a.device) == (b.kind, &b.target, b.device);
    if !same_thing || a.content != b.content {
        return Some(Change::Modified(a, b));
    }
    let metadata =
        |entry: &Entry| (entry.mode, entry.owner.clone(), entry.mtime, entry.xattrs.clone());
    (metadata(&a) != metadata(&b)).then_some(Change::Metadata(a, b))
}

fn entries<'a>(
    leaves: Vec<ChunkId>,
    shared: &'a HashSet<ChunkId>,
    get: &'a dyn Fn(&ChunkId) -> Result<Vec<u8>>,
) -> impl Iterator<Item = Result<Entry>> + 'a {
    leaves
        .into_iter()
        .filter(|page| !shared.contains(page))
        .flat_map(move |page| TreeReader::new(&page, get))
        .map(|item| item.map_err(|lost| lost.error))
}
