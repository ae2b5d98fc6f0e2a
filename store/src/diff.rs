//! Compares two trees without reading the pages that they share.

use crate::chunks::Chunks;
use crate::content::{ChunkCache, ContentReader};
use crate::entry::{Content, Entry, path_cmp};
use crate::error::Result;
use crate::id::ChunkId;
use crate::recipe::{Extent, Extents};
use crate::tree::{self, Lost, OutlinePart, Place, Span, TreeReader};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Only in the second tree.
    Added(Entry),
    /// Only in the first tree.
    Removed(Entry),
    /// In both, with other content, target, kind or device.
    Modified(Entry, Entry),
    /// In both, with other metadata only, or as a name of another file.
    Metadata(Entry, Entry),
}

/// Calls `each` for every path that differs, in path order, and for every lost part. Ends with the
/// first error of `each`.
///
/// Leaves that both trees contain are equal and are not read. `has_same_content` compares two
/// objects of one type: [`has_same_content`], or whether both are stored alike.
pub fn diff<E>(
    chunks: &dyn Chunks,
    first: &ChunkId,
    second: &ChunkId,
    has_same_content: &dyn Fn(&Entry, &Entry) -> bool,
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
    let mut links = Links::default();
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
                (Some(Ok(a)), Some(Ok(b))) => Ok(compare(a, b, &mut links, has_same_content)),
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

fn compare(
    a: Entry,
    b: Entry,
    links: &mut Links,
    has_same_content: &dyn Fn(&Entry, &Entry) -> bool,
) -> Option<Change> {
    if !has_same_description(&a, &b) || !has_same_content(&a, &b) {
        return Some(Change::Modified(a, b));
    }
    let has_same_names = links.pair(&a, &b);
    (!has_same_metadata(&a, &b) || !has_same_names).then_some(Change::Metadata(a, b))
}

/// Files of two trees that have the same names. Inode numbers may differ throughout.
#[derive(Debug, Default)]
struct Links {
    seconds: HashMap<Inode, Inode>,
    firsts: HashMap<Inode, Inode>,
}

/// What names of one file share within a tree: number of the file system and of the inode, or the
/// path of a file with one name.
type Inode = Result<(u64, u64), Vec<u8>>;

fn inode(entry: &Entry) -> Inode {
    let of_link = entry.hard_link.map(|link| (link.file_system, entry.inode));
    of_link.ok_or_else(|| entry.path.clone())
}

impl Links {
    /// Pairs the files of one path. Returns false if one of them is paired with another file.
    fn pair(&mut self, a: &Entry, b: &Entry) -> bool {
        if a.hard_link.is_none() && b.hard_link.is_none() {
            return true;
        }
        let (a, b) = (inode(a), inode(b));
        match (self.seconds.get(&a), self.firsts.get(&b)) {
            (None, None) => {
                self.firsts.insert(b.clone(), a.clone());
                self.seconds.insert(a, b);
                true
            }
            (second, first) => second == Some(&b) && first == Some(&a),
        }
    }
}

/// Returns true if two entries of one path do not differ, and are stored alike.
pub(crate) fn is_same(a: &Entry, b: &Entry) -> bool {
    is_same_by(a, b, &is_stored_alike)
}

/// Returns true if two entries of one path do not differ. `has_same_content` compares files.
pub(crate) fn is_same_by(
    a: &Entry,
    b: &Entry,
    has_same_content: &dyn Fn(&Entry, &Entry) -> bool,
) -> bool {
    has_same_description(a, b) && has_same_metadata(a, b) && has_same_content(a, b)
}

fn has_same_description(a: &Entry, b: &Entry) -> bool {
    let thing = |entry: &Entry| (entry.kind, entry.device, entry.size);
    thing(a) == thing(b) && a.target == b.target
}

/// Returns true if two files consist of the same extents.
pub(crate) fn is_stored_alike(a: &Entry, b: &Entry) -> bool {
    a.content == b.content
}

/// Returns true if two files have the same bytes. Where they consist of different extents, rows of a
/// dump may have moved, or a hole became zeros; such bytes are read. Unreadable bytes differ, and all
/// bytes once `is_over` returns true.
pub fn has_same_content(
    a: &Entry,
    b: &Entry,
    chunks: &dyn Chunks,
    is_over: &dyn Fn() -> bool,
) -> bool {
    a.size == b.size && (is_stored_alike(a, b) || has_same_bytes(a, b, chunks, is_over))
}

/// Bytes of decoded chunks that are kept for each of two compared files.
const CACHE_BYTES: usize = 32 << 20;
/// Bytes of two files compared at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Compares two files of one size, in bounded memory.
fn has_same_bytes(a: &Entry, b: &Entry, chunks: &dyn Chunks, is_over: &dyn Fn() -> bool) -> bool {
    let (left, right) = match (&a.content, &b.content) {
        (Content::Recipe(left), Content::Recipe(right)) => (left, right),
        (Content::Inline(bytes), Content::Recipe(recipe))
        | (Content::Recipe(recipe), Content::Inline(bytes)) => {
            let cache = ChunkCache::new(CACHE_BYTES);
            let mut found = vec![0; bytes.len()];
            let read = ContentReader::new(chunks, &cache, recipe, a.size).read_at(0, &mut found);
            return read.is_ok_and(|count| count == bytes.len() && found == *bytes);
        }
        _ => return false,
    };
    let caches = [ChunkCache::new(CACHE_BYTES), ChunkCache::new(CACHE_BYTES)];
    let left_bytes = ContentReader::new(chunks, &caches[0], left, a.size);
    let right_bytes = ContentReader::new(chunks, &caches[1], right, b.size);
    let mut buffers = [Vec::new(), Vec::new()];
    let mut has_same_range = |mut from: u64, end: u64| {
        while from < end {
            let len = (end - from).min(PIECE_BYTES) as usize;
            for (buffer, content) in buffers.iter_mut().zip([&left_bytes, &right_bytes]) {
                buffer.resize(len, 0);
                let mut filled = 0;
                while filled < len {
                    match content.read_at(from + filled as u64, &mut buffer[filled..]) {
                        Ok(count) if count > 0 => filled += count,
                        _ => return false,
                    }
                }
            }
            if buffers[0] != buffers[1] || is_over() {
                return false;
            }
            from += len as u64;
        }
        true
    };
    let mut extents = [Extents::new(left, chunks), Extents::new(right, chunks)];
    // The rest of the current extent of each file.
    let mut rests: [Option<Extent>; 2] = [None, None];
    // Start of the bytes that are not known to be equal, up to `at`.
    let (mut unknown_from, mut at) = (None, 0);
    while at < a.size {
        for (rest, extents) in rests.iter_mut().zip(&mut extents) {
            if rest.is_none() {
                *rest = extents.next().and_then(Result::ok);
            }
        }
        let [Some(left), Some(right)] = rests else { return false };
        let len = left.len().min(right.len());
        if len == 0 {
            return false;
        }
        if !is_same_start(&left, &right) {
            unknown_from.get_or_insert(at);
        } else if let Some(from) = unknown_from.take()
            && !has_same_range(from, at)
        {
            return false;
        }
        at += len;
        rests = rests.map(|rest| rest.and_then(|rest| without_start(rest, len)));
        if let Some(from) = unknown_from.filter(|from| at - from >= PIECE_BYTES) {
            if !has_same_range(from, at) {
                return false;
            }
            unknown_from = None;
        }
    }
    unknown_from.is_none_or(|from| has_same_range(from, at))
}

/// Returns true if two extents begin with the same bytes of the same chunk, or are holes.
fn is_same_start(a: &Extent, b: &Extent) -> bool {
    match (a, b) {
        (Extent::Hole { .. }, Extent::Hole { .. }) => true,
        (Extent::Slice { chunk, offset, .. }, Extent::Slice { chunk: other, offset: from, .. }) => {
            (chunk, offset) == (other, from)
        }
        _ => false,
    }
}

/// Returns an extent without its first bytes; `None` if nothing is left.
fn without_start(extent: Extent, start: u64) -> Option<Extent> {
    let rest = extent.len().checked_sub(start).filter(|rest| *rest > 0)?;
    Some(match extent {
        Extent::Hole { .. } => Extent::Hole { len: rest },
        Extent::Slice { chunk, offset, .. } => {
            let offset = u32::try_from(u64::from(offset).saturating_add(start)).unwrap_or(u32::MAX);
            Extent::Slice { chunk, offset, len: rest }
        }
    })
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
