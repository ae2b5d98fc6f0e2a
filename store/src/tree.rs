//! The tree: all entries of a snapshot in path order, cut into pages.
//!
//! Where a page begins depends on the path of its first entry only, so the same
//! entries give the same pages wherever the rest of the tree changed. Pages of
//! entries are leaves; pages above them list pages, cut by the same rule with
//! more bits, up to one root.

use crate::entry::{Entry, Owner, is_within, path_cmp};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::limits;
use minicbor::{Decoder, Encoder, decode};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

/// First element of every page.
const TAG: &str = "tree";
/// One entry in 2^7 begins a leaf.
const LEAF_BITS: u32 = 7;
/// One page in 2^6 begins a page of the level above.
const LEVEL_BITS: u32 = 6;
/// A page is closed at this size wherever its paths would have cut it.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// Stores a metadata chunk.
pub type Put<'a> = &'a mut dyn FnMut(&[u8]) -> Result<ChunkId>;
/// Reads a metadata chunk.
pub type Get<'a> = &'a dyn Fn(&ChunkId) -> Result<Vec<u8>>;

/// The number that decides which pages begin with this path.
fn mark(path: &[u8]) -> u64 {
    let hash = blake3::hash(path);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
}

/// Whether a page of this level begins at an item with this mark.
fn begins_page(mark: u64, level: usize) -> bool {
    let bits = (LEAF_BITS + LEVEL_BITS * level as u32).min(63);
    mark.trailing_zeros() >= bits
}

/// A page as the page above knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Path of the first entry below.
    pub first: Vec<u8>,
    /// The page.
    pub page: ChunkId,
    /// Entries below.
    pub entries: u64,
    /// Sum of the sizes of the files below.
    pub bytes: u64,
}

/// Takes entries in path order and makes pages of them.
#[derive(Default)]
pub struct TreeWriter {
    leaf: OpenLeaf,
    /// Pages not yet listed by a page above, one list a level, the lowest first.
    levels: Vec<Vec<Child>>,
}

#[derive(Default)]
struct OpenLeaf {
    first: Vec<u8>,
    last: Vec<u8>,
    encoded: Vec<u8>,
    owners: HashMap<Arc<Owner>, u32>,
    owner_order: Vec<Arc<Owner>>,
    entries: u64,
    bytes: u64,
}

impl TreeWriter {
    /// Appends an entry, whose path must come after all before it.
    pub fn push(&mut self, entry: &Entry, put: Put<'_>) -> Result<()> {
        let leaf = &self.leaf;
        assert!(
            leaf.last.is_empty() || path_cmp(&leaf.last, &entry.path) == Ordering::Less,
            "entries come in path order"
        );
        let is_full = leaf.entries as usize >= limits::PAGE_ITEMS_MAX / 2
            || leaf.encoded.len() >= PAGE_BYTES_MAX;
        if leaf.entries > 0 && (is_full || begins_page(mark(&entry.path), 0)) {
            self.close_leaf(put)?;
        }
        self.leaf.push(entry);
        Ok(())
    }

    /// Closes all pages; returns the root. A tree without entries is one empty leaf.
    pub fn finish(mut self, put: Put<'_>) -> Result<ChunkId> {
        if self.leaf.entries > 0 || self.levels.is_empty() {
            self.close_leaf(put)?;
        }
        let mut level = 0;
        while level + 1 < self.levels.len() || self.levels[level].len() > 1 {
            if !self.levels[level].is_empty() {
                self.close_level(level, put)?;
            }
            level += 1;
        }
        Ok(self.levels[level][0].page)
    }

    fn close_leaf(&mut self, put: Put<'_>) -> Result<()> {
        let leaf = std::mem::take(&mut self.leaf);
        let page = put(&leaf.page())?;
        let OpenLeaf { first, last, entries, bytes, .. } = leaf;
        self.leaf.last = last; // for the order, not for its bytes
        self.list(0, Child { first, page, entries, bytes }, put)
    }

    /// Lists a page of level `level` in the open page above it.
    fn list(&mut self, level: usize, child: Child, put: Put<'_>) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        let open = self.levels[level].len();
        let is_full = open >= limits::PAGE_ITEMS_MAX / 2;
        if open > 0 && (is_full || begins_page(mark(&child.first), level + 1)) {
            self.close_level(level, put)?;
        }
        self.levels[level].push(child);
        Ok(())
    }

    fn close_level(&mut self, level: usize, put: Put<'_>) -> Result<()> {
        let children = std::mem::take(&mut self.levels[level]);
        let page = put(&index_page(level + 1, &children))?;
        let parent = Child {
            first: children[0].first.clone(),
            page,
            entries: children.iter().map(|child| child.entries).sum(),
            bytes: children.iter().fold(0, |sum, child| sum.saturating_add(child.bytes)),
        };
        self.list(level + 1, parent, put)
    }
}

impl OpenLeaf {
    fn push(&mut self, entry: &Entry) {
        let owner = match self.owners.get(&entry.owner) {
            Some(row) => *row,
            None => {
                let row = self.owner_order.len() as u32;
                self.owners.insert(Arc::clone(&entry.owner), row);
                self.owner_order.push(Arc::clone(&entry.owner));
                row
            }
        };
        if self.entries == 0 {
            self.first = entry.path.clone();
            self.last.clear();
        }
        entry.encode(&self.last, owner, &mut self.encoded);
        self.last.clone_from(&entry.path);
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size);
    }

    fn page(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(self.encoded.len() + 64);
        let mut out = Encoder::new(&mut page);
        (|| {
            out.array(4)?.str(TAG)?.u8(0)?;
            out.array(self.owner_order.len() as u64)?;
            for owner in &self.owner_order {
                out.array(4)?.u32(owner.uid)?.u32(owner.gid)?;
                for name in [&owner.user, &owner.group] {
                    match name {
                        Some(name) => out.bytes(name)?,
                        None => out.null()?,
                    };
                }
            }
            out.array(self.entries)?;
            Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
        })()
        .expect("writing to memory cannot fail");
        page.extend_from_slice(&self.encoded);
        page
    }
}

fn index_page(level: usize, children: &[Child]) -> Vec<u8> {
    let mut page = Vec::with_capacity(children.len() * 100);
    let mut out = Encoder::new(&mut page);
    (|| {
        out.array(3)?.str(TAG)?.u8(level as u8)?.array(children.len() as u64)?;
        for child in children {
            out.array(4)?.bytes(&child.first)?.bytes(child.page.as_bytes())?;
            out.u64(child.entries)?.u64(child.bytes)?;
        }
        Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
    })()
    .expect("writing to memory cannot fail");
    page
}

/// A page, opened.
enum Page {
    Leaf { bytes: Vec<u8>, owners: Vec<Arc<Owner>>, at: usize, left: u64 },
    Index { level: u8, children: Vec<Child> },
}

impl Page {
    /// Reads a page which must be of `level`, if that is known.
    fn open(id: &ChunkId, level: Option<u8>, get: Get<'_>) -> Result<Page> {
        let bytes = get(id)?;
        Page::decode(bytes, level).map_err(|error| malformed_page(id, error))
    }

    /// The same for a page that is listed as `child`, before one that begins at `until`.
    ///
    /// What an index page lists must lie in that range and ascend. So no two
    /// parts of a tree share an index page, and walking over it comes to an end however
    /// pages refer to each other.
    fn open_listed(
        child: &Child,
        until: Option<&[u8]>,
        level: Option<u8>,
        get: Get<'_>,
    ) -> Result<Page> {
        let page = Page::open(&child.page, level, get)?;
        if let Page::Index { children, .. } = &page {
            let ascends = |a: &[u8], b: &[u8]| path_cmp(a, b) == Ordering::Less;
            let is_sorted = children.is_sorted_by(|a, b| ascends(&a.first, &b.first));
            let begins = child.first.is_empty()
                || children.first().is_some_and(|first| first.first == child.first);
            let ends = until
                .is_none_or(|until| children.last().is_none_or(|last| ascends(&last.first, until)));
            if !(is_sorted && begins && ends) {
                let error = decode::Error::message("it lists pages that do not belong into it");
                return Err(malformed_page(&child.page, error));
            }
        }
        Ok(page)
    }

    fn decode(bytes: Vec<u8>, wanted: Option<u8>) -> Result<Page, decode::Error> {
        let bad = decode::Error::message;
        let mut input = Decoder::new(&bytes);
        input.array()?;
        if input.str()? != TAG {
            return Err(bad("not a tree page"));
        }
        let level = input.u8()?;
        if level > limits::TREE_LEVELS_MAX || wanted.is_some_and(|wanted| wanted != level) {
            return Err(bad("a page of another level"));
        }
        if level > 0 {
            let count = items(&mut input)?;
            let children = (0..count).map(|_| child(&mut input)).collect::<Result<_, _>>()?;
            return Ok(Page::Index { level, children });
        }
        let count = items(&mut input)?;
        let owners = (0..count).map(|_| owner(&mut input)).collect::<Result<_, _>>()?;
        let left = items(&mut input)?;
        let at = input.position();
        Ok(Page::Leaf { bytes, owners, at, left })
    }
}

fn malformed_page(id: &ChunkId, error: decode::Error) -> Error {
    Error::Malformed { what: format!("tree page {id}"), reason: error.to_string() }
}

fn items(input: &mut Decoder<'_>) -> Result<u64, decode::Error> {
    let count = input.array()?.filter(|count| *count <= limits::PAGE_ITEMS_MAX as u64);
    count.ok_or_else(|| decode::Error::message("more items than a page has"))
}

fn child(input: &mut Decoder<'_>) -> Result<Child, decode::Error> {
    input.array()?;
    let first = input.bytes()?;
    if !crate::entry::is_valid_path(first) {
        return Err(decode::Error::message("a page begins with a path that no entry can have"));
    }
    let page = ChunkId::from_slice(input.bytes()?)
        .ok_or_else(|| decode::Error::message("a page id is not 32 bytes long"))?;
    Ok(Child { first: first.to_vec(), page, entries: input.u64()?, bytes: input.u64()? })
}

fn owner(input: &mut Decoder<'_>) -> Result<Arc<Owner>, decode::Error> {
    input.array()?;
    let (uid, gid) = (input.u32()?, input.u32()?);
    if uid == u32::MAX || gid == u32::MAX {
        return Err(decode::Error::message("an owner that no file can have"));
    }
    let mut name = || -> Result<Option<Vec<u8>>, decode::Error> {
        if input.datatype()? == minicbor::data::Type::Null {
            input.null()?;
            return Ok(None);
        }
        Ok(Some(input.bytes()?.to_vec()))
    };
    Ok(Arc::new(Owner { uid, gid, user: name()?, group: name()? }))
}

/// A part of a tree that cannot be read.
#[derive(Debug)]
pub struct Lost {
    /// Why.
    pub error: Error,
    /// The first path that is lost, if it is known.
    pub from: Vec<u8>,
    /// The first path after it that is not lost; `None` up to the end.
    pub until: Option<Vec<u8>>,
}

/// The entries of a tree, or of what lies in one path of it, in path order.
///
/// A page that cannot be read is one [`Lost`], after which reading goes on.
pub struct TreeReader<'a> {
    get: Get<'a>,
    within: Vec<u8>,
    /// Index pages on the way down; each with its level and the children to come, last first.
    stack: Vec<(u8, Vec<Child>)>,
    leaf: Option<OpenedLeaf>,
    /// Path of the entry before, to check the order.
    last: Vec<u8>,
    is_first_in_leaf: bool,
}

struct OpenedLeaf {
    id: ChunkId,
    bytes: Vec<u8>,
    owners: Vec<Arc<Owner>>,
    at: usize,
    left: u64,
}

impl<'a> TreeReader<'a> {
    /// All entries of the tree with this root.
    pub fn new(root: &ChunkId, get: Get<'a>) -> TreeReader<'a> {
        TreeReader::within(root, b"", get)
    }

    /// The entry `path` and what is below it. Pages before it are not read.
    pub fn within(root: &ChunkId, path: &[u8], get: Get<'a>) -> TreeReader<'a> {
        let root = Child { first: Vec::new(), page: *root, entries: 0, bytes: 0 };
        TreeReader {
            get,
            within: path.to_vec(),
            stack: vec![(limits::TREE_LEVELS_MAX + 1, vec![root])],
            leaf: None,
            last: Vec::new(),
            is_first_in_leaf: false,
        }
    }

    /// The path at which the next page of any open level begins.
    fn next_page(&self) -> Option<Vec<u8>> {
        self.stack.iter().rev().find_map(|(_, children)| children.last()).map(|c| c.first.clone())
    }

    fn lost(&self, error: Error, from: Vec<u8>) -> Lost {
        Lost { error, from, until: self.next_page() }
    }

    /// Opens the next page; `None` when there is no more.
    fn step(&mut self) -> Option<Result<(), Lost>> {
        let (level, child) = loop {
            let (level, children) = self.stack.last_mut()?;
            let level = *level;
            match children.pop() {
                Some(child) => break (level, child),
                None => drop(self.stack.pop()),
            }
        };
        // Whole pages before and after the part asked for.
        if !self.within.is_empty() {
            let is_after = |path: &[u8]| {
                path_cmp(path, &self.within) == Ordering::Greater && !is_within(path, &self.within)
            };
            if is_after(&child.first) {
                self.stack.clear();
                return None;
            }
            let next = self.next_page();
            if next.is_some_and(|next| path_cmp(&next, &self.within) != Ordering::Greater) {
                return Some(Ok(()));
            }
        }
        // The root may have any level; every page below has the one before its parent's.
        let wanted = (level <= limits::TREE_LEVELS_MAX).then(|| level - 1);
        let until = self.next_page();
        match Page::open_listed(&child, until.as_deref(), wanted, self.get) {
            Ok(Page::Leaf { bytes, owners, at, left }) => {
                self.leaf = Some(OpenedLeaf { id: child.page, bytes, owners, at, left });
                self.is_first_in_leaf = true;
                Some(Ok(()))
            }
            Ok(Page::Index { level, mut children }) => {
                children.reverse();
                self.stack.push((level, children));
                Some(Ok(()))
            }
            Err(error) => Some(Err(self.lost(error, child.first))),
        }
    }

    /// The next entry of the open leaf.
    fn entry(&mut self) -> Option<Result<Entry, Lost>> {
        let leaf = self.leaf.as_mut()?;
        if leaf.left == 0 {
            self.leaf = None;
            return None;
        }
        let previous: &[u8] = if self.is_first_in_leaf { b"" } else { &self.last };
        let mut input = Decoder::new(&leaf.bytes);
        input.set_position(leaf.at);
        let decoded = Entry::decode(previous, &leaf.owners, &mut input).and_then(|entry| {
            let in_order =
                self.last.is_empty() || path_cmp(&self.last, &entry.path) == Ordering::Less;
            if in_order { Ok(entry) } else { Err(decode::Error::message("entries out of order")) }
        });
        match decoded {
            Ok(entry) => {
                leaf.at = input.position();
                leaf.left -= 1;
                self.is_first_in_leaf = false;
                self.last.clone_from(&entry.path);
                Some(Ok(entry))
            }
            Err(error) => {
                let what = format!("tree page {}", leaf.id);
                let error = Error::Malformed { what, reason: error.to_string() };
                self.leaf = None;
                Some(Err(self.lost(error, self.last.clone())))
            }
        }
    }
}

/// Looks up paths in path order, reading only the pages that may have them.
pub struct Lookup<'a> {
    reader: TreeReader<'a>,
    next: Option<Entry>,
}

impl<'a> Lookup<'a> {
    /// For the tree with this root.
    pub fn new(root: &ChunkId, get: Get<'a>) -> Lookup<'a> {
        Lookup { reader: TreeReader::new(root, get), next: None }
    }

    /// The entry with this path. Paths must be asked for in path order.
    pub fn at(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        loop {
            if let Some(next) = &self.next {
                match path_cmp(&next.path, path) {
                    Ordering::Less => self.next = None,
                    // Kept, for whoever asks twice.
                    Ordering::Equal => return Ok(self.next.clone()),
                    Ordering::Greater => return Ok(None),
                }
            }
            self.reader.skip_to(path);
            match self.reader.next() {
                None => return Ok(None),
                Some(entry) => self.next = Some(entry.map_err(|lost| lost.error)?),
            }
        }
    }
}

impl TreeReader<'_> {
    /// Passes over whole pages that end before `path`.
    fn skip_to(&mut self, path: &[u8]) {
        let is_not_after = |child: &Child| path_cmp(&child.first, path) != Ordering::Greater;
        // Pages of upper levels come after all that is left of lower ones.
        let Some(level) =
            self.stack.iter().position(|(_, children)| children.last().is_some_and(is_not_after))
        else {
            return;
        };
        self.stack.truncate(level + 1);
        self.leaf = None;
        let children = &mut self.stack[level].1;
        while children.len() >= 2 && is_not_after(&children[children.len() - 2]) {
            children.pop();
        }
    }
}

impl Iterator for TreeReader<'_> {
    type Item = Result<Entry, Lost>;

    fn next(&mut self) -> Option<Result<Entry, Lost>> {
        loop {
            match self.entry() {
                Some(Ok(entry)) if !is_within(&entry.path, &self.within) => {
                    if path_cmp(&entry.path, &self.within) == Ordering::Greater {
                        self.leaf = None;
                        self.stack.clear();
                        return None;
                    }
                }
                Some(item) => return Some(item),
                None => {
                    if let Err(lost) = self.step()? {
                        return Some(Err(lost));
                    }
                }
            }
        }
    }
}

/// A part of a tree, as [`outline`] finds it.
#[derive(Debug)]
pub enum Part {
    /// A leaf, not read.
    Leaf,
    /// A page that need not be looked into.
    Known,
    /// A page above leaves that cannot be read; all below it is lost.
    Lost(Error),
}

/// All leaves of a tree in order, found without reading them, with the pages above
/// them that could not be read. Pages that are known are not looked into; pages
/// that were are told to `entered`.
pub fn outline(
    root: &ChunkId,
    get: Get<'_>,
    is_known: &dyn Fn(&ChunkId) -> bool,
    entered: &mut dyn FnMut(&ChunkId),
) -> Vec<(Child, Part)> {
    let mut parts = Vec::new();
    let root = Child { first: Vec::new(), page: *root, entries: 0, bytes: 0 };
    let mut stack = vec![(root, None::<u8>)];
    while let Some((child, level)) = stack.pop() {
        let part = if is_known(&child.page) {
            Part::Known
        } else if level == Some(0) {
            Part::Leaf
        } else {
            // Pages stand on the stack in order: the next one begins where this one ends.
            let until = stack.last().map(|(next, _)| &next.first[..]);
            match Page::open_listed(&child, until, level, get) {
                Ok(Page::Leaf { .. }) => Part::Leaf,
                Ok(Page::Index { level, children }) => {
                    entered(&child.page);
                    stack.extend(children.into_iter().rev().map(|child| (child, Some(level - 1))));
                    continue;
                }
                Err(error) => Part::Lost(error),
            }
        };
        parts.push((child, part));
    }
    parts
}

/// Entries and the sum of file sizes below a root, as its own page tells; `None`
/// where the root is a leaf.
pub fn totals(root: &ChunkId, get: Get<'_>) -> Result<Option<(u64, u64)>> {
    let Page::Index { children, .. } = Page::open(root, None, get)? else { return Ok(None) };
    let sum = |of: fn(&Child) -> u64| children.iter().map(of).fold(0, u64::saturating_add);
    Ok(Some((sum(|child| child.entries), sum(|child| child.bytes))))
}

/// The leaves of a tree, in order, not read.
pub fn leaves(root: &ChunkId, get: Get<'_>) -> Result<Vec<ChunkId>> {
    let parts = outline(root, get, &|_| false, &mut |_| {});
    let leaf = |(child, part): (Child, Part)| match part {
        Part::Lost(error) => Err(error),
        Part::Leaf | Part::Known => Ok(child.page),
    };
    parts.into_iter().map(leaf).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{self, Change, cases, changed, changes, noise, path, paths};
    use crate::entry::{Content, Kind};
    use crate::recipe::{Extent, Recipe};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    /// Pages in memory, under names that nothing checks.
    #[derive(Default)]
    struct Pages(RefCell<BTreeMap<ChunkId, Vec<u8>>>);

    impl Pages {
        fn of(entries: &[Entry]) -> (Pages, ChunkId) {
            let pages = Pages::default();
            let root = pages.write(entries);
            (pages, root)
        }

        fn write(&self, entries: &[Entry]) -> ChunkId {
            let mut put = |bytes: &[u8]| {
                let id = ChunkId::of(bytes);
                self.0.borrow_mut().insert(id, bytes.to_vec());
                Ok(id)
            };
            let mut writer = TreeWriter::default();
            entries.iter().for_each(|entry| writer.push(entry, &mut put).expect("puts"));
            writer.finish(&mut put).expect("puts")
        }

        fn get(&self, id: &ChunkId) -> Result<Vec<u8>> {
            self.0.borrow().get(id).cloned().ok_or(Error::ChunkMissing(*id))
        }

        fn read(&self, root: &ChunkId, path: &[u8]) -> Vec<Entry> {
            let get = |id: &ChunkId| self.get(id);
            TreeReader::within(root, path, &get).map(|entry| entry.expect("reads")).collect()
        }

        /// How many pages are not among those of `other`.
        fn beyond(&self, other: &Pages) -> usize {
            let known = other.0.borrow();
            self.0.borrow().keys().filter(|id| !known.contains_key(*id)).count()
        }

        /// Puts other bytes in the place of the page chosen by `which`.
        fn replace(&self, which: Index, bytes: impl FnOnce(Vec<u8>) -> Vec<u8>) {
            let mut pages = self.0.borrow_mut();
            let at = which.index(pages.len());
            let page = pages.values_mut().nth(at).expect("an index within bounds");
            *page = bytes(std::mem::take(page));
        }
    }

    /// Entries in order; few kinds of them under many paths.
    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        (paths(400), vec(arbitrary::entry(), 1..6)).prop_map(|(paths, samples)| {
            let samples = samples.iter().cycle();
            paths.into_iter().zip(samples).map(|(path, e)| Entry { path, ..e.clone() }).collect()
        })
    }

    fn directory(path: Vec<u8>) -> Entry {
        Entry::new(path, Kind::Directory, 0o755)
    }

    /// Enough entries for a root, pages below it, and their leaves.
    fn many(count: usize) -> Vec<Entry> {
        (0..count).map(|n| directory(format!("d{n:05}").into_bytes())).collect()
    }

    proptest! {
        #![proptest_config(cases(40))]

        #[test]
        fn any_entries_come_back(entries in entries()) {
            let (pages, root) = Pages::of(&entries);
            prop_assert_eq!(&pages.read(&root, b""), &entries);
            prop_assert_eq!(pages.write(&entries), root);
            let get = |id: &ChunkId| pages.get(id);
            let leaves = leaves(&root, &get).expect("walks");
            prop_assert!(leaves.len() <= entries.len().max(1));
            let sum = (entries.len() as u64, entries.iter().map(|entry| entry.size).sum());
            let totals = totals(&root, &get).expect("reads");
            prop_assert_eq!(totals, (leaves.len() > 1).then_some(sum));
        }

        #[test]
        fn within_a_path_is_what_lies_below_it(entries in entries(), path in path(), at: Index) {
            let (pages, root) = Pages::of(&entries);
            let mut asked = vec![Vec::new(), path];
            if !entries.is_empty() {
                let path = &entries[at.index(entries.len())].path;
                asked.extend(path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(
                    |(end, _)| path[..end].to_vec(),
                ));
                asked.push(path.clone());
            }
            for path in asked {
                let below = entries.iter().filter(|entry| is_within(&entry.path, &path));
                prop_assert_eq!(pages.read(&root, &path), below.cloned().collect::<Vec<_>>());
            }
        }

        #[test]
        fn any_pages_are_read_to_their_end(
            entries in entries(),
            damages in vec((any::<Index>(), changes()), 0..4),
            swaps in vec(any::<(Index, Index)>(), 0..3),
            foreign in proptest::option::of((any::<Index>(), noise())),
            path in path(),
        ) {
            let (pages, root) = Pages::of(&entries);
            for (which, changes) in &damages {
                pages.replace(*which, |page| changed(page, changes));
            }
            for (from, to) in swaps {
                let mut bytes = Vec::new();
                pages.replace(from, |page| { bytes.clone_from(&page); page });
                pages.replace(to, |_| bytes);
            }
            if let Some((which, noise)) = foreign {
                pages.replace(which, |_| noise);
            }
            walk_all(&pages, &root, &path)?;
        }
    }

    /// Walks over a tree that may be damaged in every way there is.
    fn walk_all(pages: &Pages, root: &ChunkId, path: &[u8]) -> Result<(), TestCaseError> {
        let get = |id: &ChunkId| pages.get(id);
        for path in [b"", path] {
            let mut last = Vec::new();
            for entry in TreeReader::within(root, path, &get).flatten() {
                prop_assert!(last.is_empty() || path_cmp(&last, &entry.path) == Ordering::Less);
                prop_assert!(is_within(&entry.path, path));
                last = entry.path;
            }
        }
        let _ = outline(root, &get, &|_| false, &mut |_| {});
        let _ = totals(root, &get);
        Ok(())
    }

    proptest! {
        #![proptest_config(cases(6))]

        #[test]
        fn a_new_entry_touches_only_the_pages_above_it(at in 0..20_000usize, name: [u8; 8]) {
            let without = many(20_000);
            let (old, old_root) = Pages::of(&without);
            let mut with = without.clone();
            let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
            with.insert(at + 1, directory(format!("d{at:05}/{name}").into_bytes()));
            let (new, new_root) = Pages::of(&with);
            // It may begin a page on each of three levels, and so divide one.
            prop_assert!(new_root != old_root && new.beyond(&old) <= 6);
            prop_assert_eq!(new.write(&without), old_root);
        }

        #[test]
        fn damage_of_a_large_tree_is_read_to_its_end(
            damages in vec((any::<Index>(), changes()), 1..9),
            path in path(),
        ) {
            let (pages, root) = Pages::of(&many(20_000));
            let change = |(which, changes): &(Index, Vec<Change>)| {
                pages.replace(*which, |page| changed(page, changes));
            };
            damages.iter().for_each(change);
            walk_all(&pages, &root, &path)?;
        }
    }

    #[test]
    fn sums_of_sizes_stay_at_the_largest_number() {
        let mut entries = many(3000);
        for entry in &mut entries {
            let extents = vec![Extent::Hole { len: i64::MAX as u64 }];
            entry.kind = Kind::File;
            entry.size = i64::MAX as u64;
            entry.content = Content::Recipe(Recipe { level: 0, extents });
        }
        let (pages, root) = Pages::of(&entries);
        let totals = totals(&root, &|id: &ChunkId| pages.get(id)).expect("reads");
        assert_eq!(totals, Some((3000, u64::MAX)));
    }
}
