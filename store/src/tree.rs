//! The tree: all entries of a snapshot in path order, cut into pages.
//!
//! The hash of a path decides whether a page begins at it. The same entries therefore give the same
//! pages, even if the rest of the tree changes. Leaf pages hold entries. Index pages list pages and
//! are cut by the same rule with more bits, up to one root.

use crate::acl::{self, AclNames, Subject};
use crate::chunks::{Chunks, PutMetadata};
use crate::entry::{
    Decoded, Entry, EntryFault, EntryKind, Owner, display_path, is_within, is_within_reach,
    path_cmp,
};
use crate::error::{Error, Result};
use crate::glob::{Globs, ends};
use crate::id::ChunkId;
use crate::limits;
use minicbor::{Decoder, Encoder, decode};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// First element of every page.
const TAG: &str = "tree";
/// One entry in 2^7 begins a leaf.
const LEAF_BITS: u32 = 7;
/// One page in 2^6 begins a page of the next level.
const LEVEL_BITS: u32 = 6;
/// Size in bytes at which a page is full, even if no path ends it. With the largest possible entry,
/// its owner and the names in its ACLs, the page still fits into a chunk.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Maximum bytes of an item in an index page, without its path.
const CHILD_BYTES: usize = 64;
/// Maximum bytes of an owner, without its names.
const OWNER_BYTES: usize = 32;

/// Returns the number that decides which pages begin with this path.
fn mark(path: &[u8]) -> u64 {
    let hash = blake3::hash(path);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 of 32 bytes"))
}

/// Returns true if a page of this level begins at an item with this mark.
fn begins_page(mark: u64, level: usize) -> bool {
    let bits = (LEAF_BITS + LEVEL_BITS * level as u32).min(63);
    mark.trailing_zeros() >= bits
}

/// A page as listed in the page above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Path of the first entry in the page or below it.
    pub first: Vec<u8>,
    /// Id of the page.
    pub page: ChunkId,
    /// Number of entries in the page and below it.
    pub entries: u64,
    /// Sum of the sizes of their files in bytes.
    pub bytes: u64,
}

/// Writes entries, given in path order, as pages.
#[derive(Default)]
pub struct TreeWriter {
    leaf: OpenLeaf,
    /// Pages not yet listed in an index page: one list per level, lowest level first.
    levels: Vec<OpenLevel>,
}

#[derive(Default)]
struct OpenLeaf {
    first: Vec<u8>,
    last: Vec<u8>,
    /// True if other entries can be below the last one.
    is_last_dir: bool,
    encoded: Vec<u8>,
    owners: HashMap<Arc<Owner>, u32>,
    owner_order: Vec<Arc<Owner>>,
    /// Maximum bytes of all owners in the page.
    owner_bytes: usize,
    /// Names of all users and groups in ACLs of the page; `None` if its entries have no name.
    names: BTreeMap<Subject, Option<Arc<[u8]>>>,
    /// Maximum bytes of all names in the page.
    name_bytes: usize,
    entries: u64,
    bytes: u64,
}

#[derive(Default)]
struct OpenLevel {
    children: Vec<Child>,
    /// Maximum bytes of all children in a page.
    bytes: usize,
}

impl TreeWriter {
    /// Appends an entry.
    ///
    /// Fails with [`Error::Unfit`] if a reader would refuse the entry; the writer stays usable. The
    /// reader refuses an entry in three cases:
    ///
    /// - the entry itself is invalid,
    /// - its path does not follow the previous path,
    /// - the entry above it is not a directory.
    pub fn push(&mut self, entry: &Entry, out: &dyn PutMetadata) -> Result<()> {
        self.leaf.check(entry).map_err(|fault| {
            let path = format!("/{}", display_path(&entry.path));
            Error::Unfit { path, reason: fault.to_string() }
        })?;
        let begins = || begins_page(mark(&entry.path), 0) || self.leaf.contradicts(entry);
        if !self.leaf.is_empty() && (self.leaf.is_full() || begins()) {
            self.close_leaf(out)?;
        }
        self.leaf.push(entry);
        Ok(())
    }

    /// Closes all pages and returns the root. A tree without entries is one empty leaf.
    pub fn finish(mut self, out: &dyn PutMetadata) -> Result<ChunkId> {
        if !self.leaf.is_empty() || self.levels.is_empty() {
            self.close_leaf(out)?;
        }
        let mut level = 0;
        while level + 1 < self.levels.len() || self.levels[level].children.len() > 1 {
            if !self.levels[level].children.is_empty() {
                self.close_level(level, out)?;
            }
            level += 1;
        }
        Ok(self.levels[level].children[0].page)
    }

    fn close_leaf(&mut self, out: &dyn PutMetadata) -> Result<()> {
        let leaf = std::mem::take(&mut self.leaf);
        let page = out.put_metadata(&leaf.page())?;
        let OpenLeaf { first, last, is_last_dir, entries, bytes, .. } = leaf;
        // Kept to check the order of the next entry.
        (self.leaf.last, self.leaf.is_last_dir) = (last, is_last_dir);
        self.list(0, Child { first, page, entries, bytes }, out)
    }

    /// Lists a page of level `level` in the open page above it.
    fn list(&mut self, level: usize, child: Child, out: &dyn PutMetadata) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(OpenLevel::default());
        }
        let open = &self.levels[level];
        let begins = open.is_full() || begins_page(mark(&child.first), level + 1);
        if !open.children.is_empty() && begins {
            self.close_level(level, out)?;
        }
        self.levels[level].push(child);
        Ok(())
    }

    fn close_level(&mut self, level: usize, out: &dyn PutMetadata) -> Result<()> {
        let children = std::mem::take(&mut self.levels[level]).children;
        let page = out.put_metadata(&index_page(level + 1, &children))?;
        let parent = Child {
            first: children[0].first.clone(),
            page,
            entries: children.iter().map(|child| child.entries).sum(),
            bytes: children.iter().fold(0, |sum, child| sum.saturating_add(child.bytes)),
        };
        self.list(level + 1, parent, out)
    }
}

impl OpenLevel {
    fn is_full(&self) -> bool {
        self.children.len() >= limits::PAGE_ITEMS_MAX / 2 || self.bytes >= PAGE_BYTES_MAX
    }

    fn push(&mut self, child: Child) {
        self.bytes += child.first.len() + CHILD_BYTES;
        self.children.push(child);
    }
}

impl OpenLeaf {
    /// Checks that a reader would accept the entry after the previous ones.
    fn check(&self, entry: &Entry) -> Result<(), EntryFault> {
        entry.check()?;
        check_order(&self.last, self.is_last_dir, &entry.path)
    }

    fn is_empty(&self) -> bool {
        self.entries == 0
    }

    fn is_full(&self) -> bool {
        self.entries as usize >= limits::PAGE_ITEMS_MAX / 2
            || self.encoded.len() + self.owner_bytes + self.name_bytes >= PAGE_BYTES_MAX
    }

    /// Returns true if the entry and a previous one have different names for a user or group. The
    /// table of a page has only one.
    fn contradicts(&self, entry: &Entry) -> bool {
        let differs =
            |(subject, name)| self.names.get(&subject).is_some_and(|known| *known != name);
        names(entry).any(differs)
    }

    fn push(&mut self, entry: &Entry) {
        for (subject, name) in names(entry) {
            let bytes = name.as_deref().map_or(0, acl::name_bytes);
            if self.names.insert(subject, name).is_none() {
                self.name_bytes += bytes;
            }
        }
        let owner = self.owner(&entry.owner);
        if self.is_empty() {
            self.first = entry.path.clone();
            self.last.clear();
        }
        entry.encode(&self.last, owner, &mut self.encoded);
        self.last.clone_from(&entry.path);
        self.is_last_dir = entry.kind == EntryKind::Directory;
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.size);
    }

    /// Returns the row of an owner and adds the owner if necessary.
    fn owner(&mut self, owner: &Arc<Owner>) -> u32 {
        if let Some(row) = self.owners.get(owner) {
            return *row;
        }
        let row = self.owner_order.len() as u32;
        let names = [&owner.user, &owner.group].into_iter().flatten();
        self.owner_bytes += OWNER_BYTES + names.map(Vec::len).sum::<usize>();
        self.owners.insert(Arc::clone(owner), row);
        self.owner_order.push(Arc::clone(owner));
        row
    }

    fn page(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(self.encoded.len() + 64);
        let mut out = Encoder::new(&mut page);
        let names: Vec<(Subject, &[u8])> =
            self.names.iter().filter_map(|(of, name)| Some((*of, name.as_deref()?))).collect();
        (|| {
            out.array(4 + u64::from(!names.is_empty()))?.str(TAG)?.u8(0)?;
            out.array(self.owner_order.len() as u64)?;
            self.owner_order.iter().try_for_each(|owner| owner.encode(&mut out))?;
            out.array(self.entries)?;
            out.writer_mut().extend_from_slice(&self.encoded);
            if !names.is_empty() {
                out.array(names.len() as u64)?;
                names.iter().try_for_each(|(of, name)| acl::encode_row(*of, name, &mut out))?;
            }
            Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
        })()
        .expect("writing to memory cannot fail");
        page
    }
}

/// Returns the users and groups in the ACLs of an entry with their names.
fn names(entry: &Entry) -> impl Iterator<Item = (Subject, Option<Arc<[u8]>>)> {
    let name = |subject| entry.acl_names.as_ref()?.get(subject).cloned();
    acl::subjects(&entry.xattrs).into_iter().map(move |subject| (subject, name(subject)))
}

/// Checks that an entry with this path can follow the entry `last`. `is_last_dir` is true if that
/// one is a directory.
fn check_order(last: &[u8], is_last_dir: bool, path: &[u8]) -> Result<(), EntryFault> {
    if last.is_empty() {
        return Ok(());
    }
    if path_cmp(last, path) != Ordering::Less {
        return Err(EntryFault::Order);
    }
    if !is_last_dir && is_within(path, last) {
        return Err(EntryFault::BelowFile(display_path(last)));
    }
    Ok(())
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

/// A page at its position in a tree. The same page can be wrong in another position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The page as listed in the page above. The root is not listed; its counts are 0.
    pub child: Child,
    /// First path of the next page; `None` for the last page.
    pub until: Option<Vec<u8>>,
    /// Level that the page must have. `None` for the root, which may have any level.
    level: Option<u8>,
}

impl Place {
    /// The root page of a tree.
    pub(crate) fn root(page: &ChunkId) -> Place {
        let child = Child { first: Vec::new(), page: *page, entries: 0, bytes: 0 };
        Place { child, until: None, level: None }
    }

    /// Returns a hash that is equal only for the same page in the same place.
    pub fn key(&self) -> u128 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.child.page.as_bytes()).update(&[self.level.map_or(255, |level| level)]);
        hasher.update(&(self.child.first.len() as u64).to_le_bytes()).update(&self.child.first);
        if let Some(until) = &self.until {
            hasher.update(b"/").update(until);
        }
        let hash = hasher.finalize();
        u128::from_le_bytes(hash.as_bytes()[..16].try_into().expect("16 of 32 bytes"))
    }

    /// Reads the page.
    ///
    /// The children of an index page must ascend and lie in its range. Two parts of a tree
    /// therefore never share an index page. A walk always ends, however pages refer to each other.
    fn open(&self, chunks: &dyn Chunks) -> Result<Page> {
        let page = Page::open(&self.child.page, self.level, chunks)?;
        if let Page::Index { children, .. } = &page {
            let ascends = |a: &[u8], b: &[u8]| path_cmp(a, b) == Ordering::Less;
            let is_sorted = children.is_sorted_by(|a, b| ascends(&a.first, &b.first));
            let begins = children.first().is_some_and(|first| {
                self.child.first.is_empty() || first.first == self.child.first
            });
            let ends = self
                .until
                .as_ref()
                .is_none_or(|until| children.last().is_none_or(|last| ascends(&last.first, until)));
            if !(is_sorted && begins && ends) {
                let error = decode::Error::message("it lists pages outside its range");
                return Err(malformed_page(&self.child.page, error));
            }
        }
        Ok(page)
    }

    /// Returns the pages that an index page lists, in path order; `None` for a leaf. Reads the page
    /// unless it must be a leaf.
    pub(crate) fn children(&self, chunks: &dyn Chunks) -> Result<Option<Vec<Place>>> {
        if self.level == Some(0) {
            return Ok(None);
        }
        Ok(match self.open(chunks)? {
            Page::Leaf(_) => None,
            Page::Index { level, children } => Some(places(level, children, self.until.clone())),
        })
    }

    /// All of it, lost for this reason.
    pub fn lost(&self, error: Error) -> Lost {
        let (from, until) = (self.child.first.clone(), self.until.clone());
        let entries = (self.child.entries > 0).then_some(self.child.entries);
        Lost { error, span: Span::Range { from, until }, entries }
    }
}

/// Returns the places of an index page's children. `until` is the end of that page.
fn places(level: u8, children: Vec<Child>, until: Option<Vec<u8>>) -> Vec<Place> {
    let firsts = children.iter().skip(1).map(|child| Some(child.first.clone()));
    let untils: Vec<_> = firsts.chain([until]).collect();
    let place = |(child, until)| Place { child, until, level: Some(level - 1) };
    children.into_iter().zip(untils).map(place).collect()
}

/// A decoded page.
enum Page {
    Leaf(OpenedLeaf),
    Index { level: u8, children: Vec<Child> },
}

/// A leaf being read.
struct OpenedLeaf {
    bytes: Vec<u8>,
    /// `None` for an owner that no file can have.
    owners: Vec<Option<Arc<Owner>>>,
    /// Names of users and groups in the ACLs of its entries.
    names: AclNames,
    /// Byte offset of the next entry.
    at: usize,
    /// Number of entries not yet read.
    left: u64,
}

impl Page {
    /// Reads a page, which must be of `level` if that is given.
    fn open(id: &ChunkId, level: Option<u8>, chunks: &dyn Chunks) -> Result<Page> {
        let bytes = chunks.get(id)?;
        Page::decode(bytes, level).map_err(|error| malformed_page(id, error))
    }

    fn decode(bytes: Vec<u8>, wanted: Option<u8>) -> Result<Page, decode::Error> {
        let bad = decode::Error::message;
        let mut input = Decoder::new(&bytes);
        let fields = input.array()?;
        if input.str()? != TAG {
            return Err(bad("it is not a tree page"));
        }
        let level = input.u8()?;
        if level > limits::TREE_LEVELS_MAX || wanted.is_some_and(|wanted| wanted != level) {
            return Err(bad("its level is wrong"));
        }
        let is_known = if level > 0 { fields == Some(3) } else { matches!(fields, Some(4 | 5)) };
        if !is_known {
            return Err(bad("its number of fields is wrong"));
        }
        if level > 0 {
            let count = items(&mut input)?;
            let children = (0..count).map(|_| child(&mut input)).collect::<Result<_, _>>()?;
            return Ok(Page::Index { level, children });
        }
        let count = items(&mut input)?;
        let owners = (0..count).map(|_| Owner::decode(&mut input)).collect::<Result<_, _>>()?;
        let left = items(&mut input)?;
        let at = input.position();
        // Only leaves with names have a fifth field.
        let has_names = fields == Some(5) && (0..left).all(|_| input.skip().is_ok());
        let names = if has_names { AclNames::decode(&mut input) } else { AclNames::default() };
        Ok(Page::Leaf(OpenedLeaf { bytes, owners, names, at, left }))
    }
}

fn malformed_page(id: &ChunkId, error: decode::Error) -> Error {
    Error::Malformed { what: format!("tree page {id}"), reason: error.to_string() }
}

fn items(input: &mut Decoder<'_>) -> Result<u64, decode::Error> {
    let count = input.array()?.filter(|count| *count <= limits::PAGE_ITEMS_MAX as u64);
    count.ok_or_else(|| decode::Error::message("it has too many items"))
}

fn child(input: &mut Decoder<'_>) -> Result<Child, decode::Error> {
    if input.array()? != Some(4) {
        return Err(decode::Error::message("a listed page does not have four fields"));
    }
    let first = input.bytes()?;
    if !crate::entry::is_valid_path(first) {
        return Err(decode::Error::message("a listed page begins with an invalid path"));
    }
    let page = ChunkId::from_slice(input.bytes()?)
        .ok_or_else(|| decode::Error::message("a page id is not 32 bytes long"))?;
    Ok(Child { first: first.to_vec(), page, entries: input.u64()?, bytes: input.u64()? })
}

/// An unreadable part of a tree.
#[derive(Debug)]
pub struct Lost {
    /// Cause.
    pub error: Error,
    /// Position in the tree.
    pub span: Span,
    /// Number of lost entries, if a readable page lists it.
    pub entries: Option<u64>,
}

/// Position of a loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    /// One entry, with this path.
    Entry(Vec<u8>),
    /// Entries from one path up to another.
    Range {
        /// First path that may be lost.
        from: Vec<u8>,
        /// First path after the loss; `None` if it reaches the end.
        until: Option<Vec<u8>>,
    },
}

impl Span {
    /// Returns the first path that may be lost.
    pub fn from(&self) -> &[u8] {
        match self {
            Span::Entry(path) | Span::Range { from: path, .. } => path,
        }
    }

    /// Returns true if `path` or a later path may be lost.
    pub fn may_reach(&self, path: &[u8]) -> bool {
        let last = match self {
            Span::Entry(lost) => Some(lost),
            Span::Range { until, .. } => until.as_ref(),
        };
        last.is_none_or(|last| path_cmp(path, last) != Ordering::Greater)
    }

    /// Returns true if the entry with this path may be lost.
    pub fn may_be(&self, path: &[u8]) -> bool {
        match self {
            Span::Entry(lost) => lost == path,
            Span::Range { .. } => self.may_be_within(path),
        }
    }

    /// Returns true if an entry at or below `path` may be lost.
    pub fn may_be_within(&self, path: &[u8]) -> bool {
        match self {
            Span::Entry(lost) => is_within(lost, path),
            Span::Range { from, until } => is_within_reach(path, from, until.as_deref()),
        }
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Users give paths of this form to other commands.
        let shown = |path: &[u8]| format!("/{}", display_path(path));
        match self {
            Span::Entry(path) => write!(out, "{}", shown(path)),
            Span::Range { from, until: None } if from.is_empty() => write!(out, "/"),
            Span::Range { from, until: Some(until) } => {
                write!(out, "{} up to {}", shown(from), shown(until))
            }
            Span::Range { from, until: None } => {
                write!(out, "{} and all later paths", shown(from))
            }
        }
    }
}

/// Reads the entries of a tree, or of one path in it, in path order.
///
/// An unreadable page or entry is one [`Lost`]; reading continues after it.
pub struct TreeReader<'a> {
    chunks: &'a dyn Chunks,
    within: Vec<u8>,
    /// Patterns of the wanted paths.
    globs: Option<&'a Globs>,
    /// Pages to read: one list per level, each in reverse order.
    stack: Vec<Vec<Place>>,
    leaf: Option<(Place, OpenedLeaf)>,
    /// Path of the last good entry, to check the order.
    last: Vec<u8>,
    is_last_dir: bool,
    previous: Previous,
}

/// Path of the previous entry in a leaf, whose prefix the next entry may share.
enum Previous {
    /// Path of the last good entry.
    Last,
    /// Another path.
    Path(Vec<u8>),
    Unknown,
}

impl<'a> TreeReader<'a> {
    /// Reads all entries of the tree with this root.
    pub fn new(root: &ChunkId, chunks: &'a dyn Chunks) -> TreeReader<'a> {
        TreeReader::within(root, b"", chunks)
    }

    /// Reads the entry `path` and everything below it. Does not read the pages before it.
    pub fn within(root: &ChunkId, path: &[u8], chunks: &'a dyn Chunks) -> TreeReader<'a> {
        TreeReader { within: path.to_vec(), ..TreeReader::at(Place::root(root), chunks) }
    }

    /// Does not read pages in which neither a path that matches `globs`, nor a path below one, nor a
    /// directory above one can be.
    pub fn only_near(self, globs: &'a Globs) -> TreeReader<'a> {
        TreeReader { globs: Some(globs), ..self }
    }

    /// Reads the entries of one page and of the pages below it.
    pub fn at(place: Place, chunks: &'a dyn Chunks) -> TreeReader<'a> {
        TreeReader {
            chunks,
            within: Vec::new(),
            globs: None,
            stack: vec![vec![place]],
            leaf: None,
            last: Vec::new(),
            is_last_dir: true,
            previous: Previous::Last,
        }
    }

    /// Opens the next page. Returns `None` at the end.
    fn step(&mut self) -> Option<Result<(), Lost>> {
        let place = loop {
            match self.stack.last_mut()?.pop() {
                Some(place) => break place,
                None => drop(self.stack.pop()),
            }
        };
        // Skip whole pages before and after the requested part.
        if !self.within.is_empty() {
            let first = &place.child.first;
            if path_cmp(first, &self.within) == Ordering::Greater && !is_within(first, &self.within)
            {
                self.stack.clear();
                return None;
            }
            let ends = |until: &Vec<u8>| path_cmp(until, &self.within) != Ordering::Greater;
            if place.until.as_ref().is_some_and(ends) {
                return Some(Ok(()));
            }
        }
        let is_near =
            |globs: &Globs| globs.may_cover_between(&place.child.first, place.until.as_deref());
        if !self.globs.is_none_or(is_near) {
            return Some(Ok(()));
        }
        match place.open(self.chunks) {
            Ok(Page::Leaf(leaf)) => {
                self.previous = Previous::Path(Vec::new());
                self.leaf = Some((place, leaf));
                Some(Ok(()))
            }
            Ok(Page::Index { level, children }) => {
                let mut places = places(level, children, place.until);
                places.reverse();
                self.stack.push(places);
                Some(Ok(()))
            }
            Err(error) => Some(Err(place.lost(error))),
        }
    }

    /// Returns the next entry of the open leaf.
    fn entry(&mut self) -> Option<Result<Entry, Lost>> {
        let (place, leaf) = self.leaf.as_mut()?;
        if leaf.left == 0 {
            self.leaf = None;
            return None;
        }
        let previous = match &self.previous {
            Previous::Last => Some(&self.last[..]),
            Previous::Path(path) => Some(&path[..]),
            Previous::Unknown => None,
        };
        let mut input = Decoder::new(&leaf.bytes);
        input.set_position(leaf.at);
        let decoded = Entry::decode(previous, &leaf.owners, &mut input);
        let Decoded { path, result } = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                let left = leaf.left;
                let lost = self.lost(None, left, error.to_string());
                self.leaf = None;
                return Some(Err(lost));
            }
        };
        (leaf.at, leaf.left) = (input.position(), leaf.left - 1);
        let fits = |entry: &Entry| {
            check_order(&self.last, self.is_last_dir, &entry.path)?;
            place.check(entry)
        };
        match result.and_then(|entry| fits(&entry).map(|()| entry)) {
            Ok(mut entry) => {
                entry.acl_names = leaf.names.within(&entry.xattrs);
                self.last.clone_from(&entry.path);
                self.is_last_dir = entry.kind == EntryKind::Directory;
                self.previous = Previous::Last;
                Some(Ok(entry))
            }
            Err(fault) => {
                let lost = self.lost(path.clone(), 1, fault.to_string());
                self.previous = path.map_or(Previous::Unknown, Previous::Path);
                Some(Err(lost))
            }
        }
    }

    /// Returns the loss of entries in the open leaf: the one with this path, or some after the last
    /// good entry.
    fn lost(&self, path: Option<Vec<u8>>, entries: u64, reason: String) -> Lost {
        let place = self.leaf.as_ref().map(|(place, _)| place);
        let page = place.map_or_else(String::new, |place| place.child.page.to_string());
        let error = Error::Malformed { what: format!("an entry of tree page {page}"), reason };
        let span = match path {
            Some(path) => Span::Entry(path),
            None => {
                let until = place.and_then(|place| place.until.clone());
                Span::Range { from: self.last.clone(), until }
            }
        };
        Lost { error, span, entries: Some(entries) }
    }
}

impl Place {
    /// Checks that an entry belongs to this leaf. If entries below a file begin the next leaf, the
    /// file is refused.
    fn check(&self, entry: &Entry) -> Result<(), EntryFault> {
        let path = &entry.path;
        let begins = path_cmp(path, &self.child.first) != Ordering::Less;
        let ends = |until: &Vec<u8>| path_cmp(path, until) == Ordering::Less;
        if !begins || !self.until.as_ref().is_none_or(ends) {
            return Err(EntryFault::OtherPage);
        }
        let has_content = |until: &Vec<u8>| is_within(until, path);
        if entry.kind != EntryKind::Directory && self.until.as_ref().is_some_and(has_content) {
            return Err(EntryFault::NotDirectory);
        }
        Ok(())
    }
}

/// Looks up paths in path order. Reads only pages that may contain them.
pub struct Lookup<'a> {
    reader: TreeReader<'a>,
    next: Option<Entry>,
}

impl<'a> Lookup<'a> {
    /// Looks up paths in the tree with this root.
    pub fn new(root: &ChunkId, chunks: &'a dyn Chunks) -> Lookup<'a> {
        Lookup { reader: TreeReader::new(root, chunks), next: None }
    }

    /// Returns the entry with this path. Calls must ask for paths in path order.
    ///
    /// Fails if the entry may be among unreadable ones.
    pub fn at(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        let mut trouble = None;
        loop {
            if let Some(next) = &self.next {
                match path_cmp(&next.path, path) {
                    Ordering::Less => self.next = None,
                    // Kept, because the caller may ask for the same path again.
                    Ordering::Equal => return Ok(self.next.clone()),
                    Ordering::Greater => break,
                }
            }
            self.reader.skip_to(path);
            match self.reader.next() {
                None => break,
                Some(Ok(entry)) => self.next = Some(entry),
                Some(Err(lost)) if lost.span.may_be(path) => {
                    trouble.get_or_insert(lost.error);
                }
                Some(Err(_)) => {}
            }
        }
        trouble.map_or(Ok(None), Err)
    }
}

impl TreeReader<'_> {
    /// Skips whole pages that end before `path`.
    pub(crate) fn skip_to(&mut self, path: &[u8]) {
        self.skip(&|first| path_cmp(first, path) != Ordering::Greater);
    }

    /// Skips whole pages of entries below `dir`, at or below which the last entry is.
    pub(crate) fn skip_below(&mut self, dir: &[u8]) {
        self.skip(&|first| is_within(first, dir));
    }

    /// Skips everything before the last page that begins with a path for which `is_not_after`
    /// returns true. Of the paths to come, these are the first ones.
    fn skip(&mut self, is_not_after: &dyn Fn(&[u8]) -> bool) {
        let is_not_after = |place: &Place| is_not_after(&place.child.first);
        // The remaining pages of lower levels all precede those of upper levels.
        let Some(level) =
            self.stack.iter().position(|places| places.last().is_some_and(is_not_after))
        else {
            return;
        };
        self.stack.truncate(level + 1);
        self.leaf = None;
        let places = &mut self.stack[level];
        while places.len() >= 2 && is_not_after(&places[places.len() - 2]) {
            places.pop();
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
                Some(Err(lost)) if !lost.span.may_be_within(&self.within) => {}
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

/// Returns the first symbolic link among a path and the directories above it, and the path to which
/// the whole path leads. The tree need not have that one.
pub fn link_on(root: &ChunkId, path: &[u8], chunks: &dyn Chunks) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut lookup = Lookup::new(root, chunks);
    for end in ends(path) {
        let Ok(Some(entry)) = lookup.at(&path[..end]) else { continue };
        if entry.kind != EntryKind::Symlink {
            continue;
        }
        let parent = entry.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let above = if entry.target.starts_with(b"/") { b"" } else { &entry.path[..parent] };
        let mut names: Vec<&[u8]> = Vec::new();
        for name in
            [above, &entry.target, &path[end..]].iter().flat_map(|p| p.split(|b| *b == b'/'))
        {
            match name {
                b"" | b"." => {}
                b".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        return Some((entry.path.clone(), names.join(&b'/')));
    }
    None
}

/// Reads the entries directly in a directory, in path order. Reads few of the pages below its
/// subdirectories. The root of the tree has an empty path.
pub fn children<'a>(
    root: &ChunkId,
    dir: &'a [u8],
    chunks: &'a dyn Chunks,
) -> impl Iterator<Item = Result<Entry, Lost>> + 'a {
    let mut reader = TreeReader::within(root, dir, chunks);
    std::iter::from_fn(move || {
        loop {
            let item = reader.next()?;
            let Ok(entry) = &item else { return Some(item) };
            if is_child(&entry.path, dir) {
                reader.skip_below(&entry.path);
                return Some(item);
            }
        }
    })
}

/// Returns true if a path is directly in `dir`.
fn is_child(path: &[u8], dir: &[u8]) -> bool {
    let name = match dir {
        [] => Some(path),
        dir => path.strip_prefix(dir).and_then(|rest| rest.strip_prefix(b"/")),
    };
    name.is_some_and(|name| !name.is_empty() && !name.contains(&b'/'))
}

/// A part of a tree, as returned by [`outline`].
#[derive(Debug)]
pub enum OutlinePart {
    /// A leaf, not read.
    Leaf,
    /// A known page, not opened.
    Known,
    /// An unreadable index page; everything below it is lost.
    Lost(Error),
}

/// Returns all leaves of a tree in order without reading them, and the unreadable index pages. Does
/// not open pages for which `is_known` returns true. Calls `entered` for each index page that it
/// opened.
pub fn outline(
    root: &ChunkId,
    chunks: &dyn Chunks,
    is_known: &dyn Fn(&Place) -> bool,
    entered: &mut dyn FnMut(&Place),
) -> Vec<(Place, OutlinePart)> {
    let mut parts = Vec::new();
    let mut stack = vec![Place::root(root)];
    while let Some(place) = stack.pop() {
        let part = if is_known(&place) {
            OutlinePart::Known
        } else {
            match place.children(chunks) {
                Ok(None) => OutlinePart::Leaf,
                Ok(Some(children)) => {
                    entered(&place);
                    stack.extend(children.into_iter().rev());
                    continue;
                }
                Err(error) => OutlinePart::Lost(error),
            }
        };
        parts.push((place, part));
    }
    parts
}

/// Returns the number of entries and the sum of file sizes in bytes, as the root page lists them.
/// Returns `None` if the root is a leaf.
pub fn totals(root: &ChunkId, chunks: &dyn Chunks) -> Result<Option<(u64, u64)>> {
    let Page::Index { children, .. } = Page::open(root, None, chunks)? else { return Ok(None) };
    let sum = |of: fn(&Child) -> u64| children.iter().map(of).fold(0, u64::saturating_add);
    Ok(Some((sum(|child| child.entries), sum(|child| child.bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{
        self, Change, MemoryChunks as Pages, cases, changed, changes, noise, path, paths,
    };
    use crate::entry::{Content, EntryKind, Time};
    use crate::recipe::{Extent, Recipe};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    impl Pages {
        fn of(entries: &[Entry]) -> (Pages, ChunkId) {
            let pages = Pages::default();
            let root = pages.write(entries);
            (pages, root)
        }

        /// Like [`Pages::of`], for entries that the writer would refuse.
        fn unchecked(entries: &[Entry]) -> (Pages, ChunkId) {
            let pages = Pages::default();
            let mut writer = TreeWriter::default();
            for entry in entries {
                let begins = begins_page(mark(&entry.path), 0) || writer.leaf.contradicts(entry);
                if !writer.leaf.is_empty() && begins {
                    writer.close_leaf(&pages).expect("puts");
                }
                writer.leaf.push(entry);
            }
            let root = writer.finish(&pages).expect("puts");
            (pages, root)
        }

        fn write(&self, entries: &[Entry]) -> ChunkId {
            let mut writer = TreeWriter::default();
            entries.iter().for_each(|entry| writer.push(entry, self).expect("puts"));
            writer.finish(self).expect("puts")
        }

        fn read(&self, root: &ChunkId, path: &[u8]) -> Vec<Entry> {
            TreeReader::within(root, path, self).map(|entry| entry.expect("reads")).collect()
        }

        /// Returns the number of pages that `other` does not have.
        fn beyond(&self, other: &Pages) -> usize {
            let known = other.0.lock();
            self.0.lock().keys().filter(|id| !known.contains_key(*id)).count()
        }

        /// Replaces the bytes of the page chosen by `which`.
        fn replace(&self, which: Index, bytes: impl FnOnce(Vec<u8>) -> Vec<u8>) {
            let mut pages = self.0.lock();
            let at = which.index(pages.len());
            let page = pages.values_mut().nth(at).expect("an index within bounds");
            *page = bytes(std::mem::take(page));
        }
    }

    /// Entries in order: few samples under many paths.
    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        (paths(400), vec(arbitrary::entry(), 1..6)).prop_map(|(paths, samples)| {
            let samples = samples.iter().cycle();
            let entries = paths.into_iter().zip(samples);
            let mut entries: Vec<Entry> =
                entries.map(|(path, e)| Entry { path, ..e.clone() }).collect();
            for at in 1..entries.len() {
                if is_within(&entries[at].path, &entries[at - 1].path) {
                    entries[at - 1] = directory(entries[at - 1].path.clone());
                }
            }
            entries
        })
    }

    fn directory(path: Vec<u8>) -> Entry {
        Entry::new(path, EntryKind::Directory, 0o755)
    }

    /// Enough entries for a root, index pages below it, and their leaves.
    fn many(count: usize) -> Vec<Entry> {
        (0..count).map(|n| directory(format!("d{n:05}").into_bytes())).collect()
    }

    #[test]
    fn the_children_of_a_directory_are_read_without_the_entries_below_them() {
        let mut entries = vec![directory(b"a".to_vec())];
        for n in 0..20_u32 {
            entries.push(directory(format!("a/{n:02}").into()));
            let below = (0..2000).map(|m| directory(format!("a/{n:02}/{m:04}").into()));
            entries.extend(below);
        }
        entries.push(directory(b"b".to_vec()));
        let (pages, root) = Pages::of(&entries);
        let read = AtomicUsize::new(0);
        let counted = |id: &ChunkId| {
            read.fetch_add(1, Relaxed);
            pages.get(id)
        };
        let found: Vec<Entry> =
            children(&root, b"a", &counted).map(|entry| entry.expect("reads")).collect();
        let wanted = entries.iter().filter(|entry| is_child(&entry.path, b"a"));
        assert!(found.iter().eq(wanted) && found.len() == 20);
        let (read, all) = (read.into_inner(), pages.0.lock().len());
        // The ends of each subdirectory, and the pages above them.
        assert!(4 * read < all, "{read} of {all} pages");
    }

    proptest! {
        #![proptest_config(cases(40))]

        #[test]
        fn any_entries_are_read_as_written(entries in entries()) {
            let (pages, root) = Pages::of(&entries);
            prop_assert_eq!(&pages.read(&root, b""), &entries);
            prop_assert_eq!(pages.write(&entries), root);
            let leaves = outline(&root, &pages, &|_| false, &mut |_| {});
            prop_assert!(leaves.iter().all(|(_, part)| matches!(part, OutlinePart::Leaf)));
            prop_assert!(leaves.len() <= entries.len().max(1));
            let sum = (entries.len() as u64, entries.iter().map(|entry| entry.size).sum());
            let totals = totals(&root, &pages).expect("reads");
            prop_assert_eq!(totals, (leaves.len() > 1).then_some(sum));
        }

        #[test]
        fn reading_within_a_path_yields_the_entries_below_it(entries in entries(), path in path(), at: Index) {
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
                let found: Vec<Entry> =
                    children(&root, &path, &pages).map(|entry| entry.expect("reads")).collect();
                prop_assert!(found.iter().eq(entries.iter().filter(|e| is_child(&e.path, &path))));
            }
        }

        #[test]
        fn reading_any_pages_terminates(
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

    proptest! {
        #![proptest_config(cases(60))]

        #[test]
        fn source_entries_are_read_as_written_or_refused(
            paths in vec(arbitrary::found_path(), 0..60),
            samples in vec(arbitrary::found(), 1..6),
        ) {
            let samples = samples.iter().cycle();
            let mut entries: Vec<Entry> =
                paths.into_iter().zip(samples).map(|(path, e)| Entry { path, ..e.clone() }).collect();
            entries.sort_by(|a, b| path_cmp(&a.path, &b.path));
            for entry in &mut entries {
                entry.amend();
            }
            let pages = Pages::default();
            let (mut writer, mut kept) = (TreeWriter::default(), Vec::new());
            for entry in entries {
                match writer.push(&entry, &pages) {
                    Ok(()) => kept.push(entry),
                    Err(Error::Unfit { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            let root = writer.finish(&pages).expect("puts");
            prop_assert_eq!(pages.read(&root, b""), kept);
        }

        #[test]
        fn an_unreadable_entry_loses_only_itself(
            entries in entries(),
            bad in vec((any::<Index>(), 0..BAD_KINDS), 1..5),
        ) {
            let mut written = entries.clone();
            let mut lost: Vec<usize> = Vec::new();
            for (at, kind) in bad.iter().filter(|_| !entries.is_empty()) {
                let at = at.index(entries.len());
                // The content of a directory is read even if the directory's entry is not.
                spoil(&mut written[at], *kind);
                lost.push(at);
            }
            let (pages, root) = Pages::unchecked(&written);
            let (mut good, mut spans) = (Vec::new(), Vec::new());
            for item in TreeReader::new(&root, &pages) {
                match item {
                    Ok(entry) => good.push(entry),
                    Err(lost) => {
                        prop_assert_eq!(lost.entries, Some(1));
                        spans.push(lost.span);
                    }
                }
            }
            lost.sort_unstable();
            lost.dedup();
            let is_kept = |at: &usize| !lost.contains(at);
            let kept: Vec<Entry> =
                (0..entries.len()).filter(is_kept).map(|at| entries[at].clone()).collect();
            let named: Vec<Span> =
                lost.iter().map(|at| Span::Entry(entries[*at].path.clone())).collect();
            prop_assert_eq!((&good, &spans), (&kept, &named));
            // Each entry can be looked up, whatever its neighbours are.
            for (at, entry) in entries.iter().enumerate() {
                let found = Lookup::new(&root, &pages).at(&entry.path);
                match is_kept(&at) {
                    true => prop_assert_eq!(found.expect("reads"), Some(entry.clone())),
                    false => prop_assert!(found.is_err()),
                }
            }
        }
    }

    const BAD_KINDS: usize = 7;

    /// Makes an entry invalid for readers, without changing its path.
    fn spoil(entry: &mut Entry, kind: usize) {
        match kind {
            0 => entry.mtime = Some(Time { seconds: 0, nanoseconds: 1_000_000_000 }),
            1 => entry.mode = 0o10000,
            2 => entry.size = entry.size.wrapping_add(1),
            3 => entry.xattrs = vec![(Vec::new(), Vec::new())],
            4 => entry.owner = Arc::new(Owner { uid: u32::MAX, ..Owner::default() }),
            5 => (entry.kind, entry.target) = (EntryKind::Symlink, Vec::new()),
            _ => entry.device = Some((u32::MAX, 0)),
        }
    }

    /// Returns an entry whose ACL has these users and groups, and their names.
    fn shared(path: &str, names: &[(Subject, Option<&str>)]) -> Entry {
        let subjects: Vec<Subject> = names.iter().map(|(subject, _)| *subject).collect();
        let xattrs = vec![(b"system.posix_acl_access".to_vec(), arbitrary::acl(&subjects))];
        let name = |subject| {
            let (_, name) = names.iter().find(|(of, _)| *of == subject)?;
            name.map(|name| name.as_bytes().into())
        };
        let (acl_names, _) = AclNames::of(&xattrs, name);
        Entry { xattrs, acl_names, ..Entry::new(path.into(), EntryKind::File, 0o640) }
    }

    /// Returns the first bytes of all pages, each an array.
    fn page_heads(pages: &Pages) -> Vec<u8> {
        pages.0.lock().values().map(|page| page[0]).collect()
    }

    const U5: Subject = Subject::User(5);
    const G5: Subject = Subject::Group(5);

    #[test]
    fn only_leaves_with_names_have_a_table_of_names() {
        let nameless = [shared("a", &[(U5, None)]), directory(b"b".to_vec())];
        let (pages, root) = Pages::of(&nameless);
        assert_eq!((page_heads(&pages), pages.read(&root, b"")), (vec![0x84], nameless.into()));
        let named = [shared("a", &[(U5, Some("u")), (G5, None)]), directory(b"b".to_vec())];
        let (pages, root) = Pages::of(&named);
        assert_eq!((page_heads(&pages), pages.read(&root, b"")), (vec![0x85], named.into()));
        // The table follows everything else: [[false, 5, 'u']].
        let page = pages.0.lock().values().next().expect("one").clone();
        assert_eq!(page[page.len() - 6..], [0x81, 0x83, 0xF4, 5, 0x41, b'u']);
    }

    #[test]
    fn an_entry_has_only_the_names_in_its_own_acls() {
        let (user, group) = ((U5, Some("user")), (G5, Some("group")));
        let entries = [
            shared("a", &[user, group]),
            shared("b", &[user]),
            shared("c", &[]),
            shared("d", &[group]),
        ];
        let (pages, root) = Pages::of(&entries);
        assert_eq!(pages.read(&root, b""), entries);
        assert_eq!(page_heads(&pages), [0x85]);
    }

    #[test]
    fn entries_with_different_names_for_one_number_are_in_different_leaves() {
        let names = ["old", "old", "new", "new"].map(Some);
        for names in [names, [Some("old"), Some("old"), None, None]] {
            let path = |n: usize| format!("p{n}");
            let entries = [0, 1, 2, 3].map(|n| shared(&path(n), &[(U5, names[n])]));
            let (pages, root) = Pages::of(&entries);
            assert_eq!(pages.read(&root, b""), entries);
            assert_eq!(page_heads(&pages).len(), 3, "two leaves and their root");
            // Another number does not count.
            let other = shared("p1", &[(G5, names[3])]);
            let (pages, _) = Pages::of(&[entries[0].clone(), other]);
            assert_eq!(page_heads(&pages).len(), 1);
        }
    }

    /// Returns the names of the only entry of a leaf that has this table of names.
    fn names_from(table: &[u8]) -> Vec<(Subject, Vec<u8>)> {
        let subjects = [1, 2, 3, 4, u32::MAX].map(Subject::User);
        let entry = shared("a", &subjects.map(|subject| (subject, None)));
        let mut leaf = OpenLeaf::default();
        leaf.push(&entry);
        let mut page = leaf.page();
        assert_eq!(page[0], 0x84);
        page[0] = 0x85;
        page.extend_from_slice(table);
        let read: Vec<Entry> =
            TreeReader::new(&ChunkId::of(&page), &|_: &ChunkId| Ok(page.clone()))
                .map(|entry| entry.expect("a table never costs an entry"))
                .collect();
        assert_eq!(read.len(), 1);
        assert_eq!(Entry { acl_names: None, ..read[0].clone() }, entry);
        let names = read[0].acl_names.iter().flat_map(|names| names.iter());
        names.map(|(subject, name)| (subject, name.to_vec())).collect()
    }

    #[test]
    fn a_malformed_row_costs_only_its_own_name() {
        let row = |id: u32, name: &[u8]| {
            let mut row = Vec::new();
            acl::encode_row(Subject::User(id), name, &mut Encoder::new(&mut row)).expect("grows");
            row
        };
        let table = |rows: &[Vec<u8>]| [vec![0x80 | rows.len() as u8], rows.concat()].concat();
        let (one, three) = ((Subject::User(1), b"x".to_vec()), (Subject::User(3), b"y".to_vec()));
        let longest = row(2, &[b'n'; limits::OWNER_NAME_BYTES_MAX]);
        assert_eq!(names_from(&table(&[row(1, b"x"), longest, row(3, b"y")])).len(), 3);
        let bad: [Vec<u8>; 12] = [
            row(2, &[b'n'; limits::OWNER_NAME_BYTES_MAX + 1]),
            row(1, b"again"),
            row(0, b"out of order"),
            row(u32::MAX, b"no number"),
            vec![0x82, 0xF4, 2],                   // two fields
            vec![0x84, 0xF4, 2, 0x41, b'z', 0xF6], // four fields
            vec![0x83, 0xF4, 2, 0x61, b'z'],       // text
            vec![0x83, 0xF4, 2, 0xF6],             // null
            vec![0x83, 1, 2, 0x41, b'z'],          // a number instead of a boolean
            vec![0x83, 0xF4, 0x1B, 1, 0, 0, 0, 0, 0, 0, 2, 0x41, b'z'], // 64 bits
            vec![0x9F, 0xF4, 2, 0x41, b'z', 0xFF], // indefinite length
            vec![0xF6],
        ];
        for bad in bad {
            let found = names_from(&table(&[row(1, b"x"), bad.clone(), row(3, b"y")]));
            assert_eq!(found, [one.clone(), three.clone()], "{bad:?}");
        }
        let good = table(&[row(1, b"x"), row(3, b"y")]);
        for len in 0..good.len() {
            assert!(names_from(&good[..len]).len() < 2, "{len}");
        }
        let many = u32::try_from(limits::PAGE_NAMES_MAX).expect("small") + 1;
        let head = [&[0x9A][..], &many.to_be_bytes()].concat();
        assert_eq!(names_from(&[head, row(1, b"x")].concat()), []);
        assert_eq!(names_from(&[vec![0x9F], row(1, b"x"), vec![0xFF]].concat()), []);
    }

    #[test]
    fn entries_before_an_endless_one_are_read_without_names() {
        let mut leaf = OpenLeaf::default();
        for path in ["a", "b"] {
            leaf.push(&shared(path, &[(U5, Some("u"))]));
        }
        let page = leaf.page();
        let cut = page[..page.len() - 12].to_vec();
        let get = |_: &ChunkId| Ok(cut.clone());
        let mut items = TreeReader::new(&ChunkId::of(&cut), &get);
        let first = items.next().expect("two").expect("is complete");
        assert_eq!((first.path, first.acl_names), (b"a".to_vec(), None));
        assert_eq!(items.next().expect("two").expect_err("is cut").entries, Some(1));
        assert!(items.next().is_none());
    }

    #[test]
    fn the_largest_entries_fit_their_pages() {
        let xattrs: Vec<(Vec<u8>, Vec<u8>)> =
            (0..80).map(|n| (format!("user.k{n:02}").into_bytes(), vec![n; 64 << 10])).collect();
        let mut dir = vec![vec![b'd'; 255]; 31].join(&b'/');
        let owner = |n: u32| {
            let name = || Some(format!("{n:0255}").into_bytes());
            Arc::new(Owner { uid: n, gid: n, user: name(), group: name() })
        };
        let mut entries = vec![];
        for n in 0..600u32 {
            let path = [&dir[..], format!("/{n:0200}").as_bytes()].concat();
            let entry = Entry { owner: owner(n), ..Entry::new(path, EntryKind::Symlink, 0o777) };
            entries.push(Entry { target: vec![b't'; limits::TARGET_BYTES_MAX], ..entry });
        }
        for entry in &mut entries[200..204] {
            entry.xattrs = xattrs.clone();
            let amendment = entry.amend();
            assert_eq!(amendment.xattrs_dropped + entry.xattrs.len(), 80);
            assert_eq!(entry.xattrs.len(), 15, "what fits a mebibyte is kept");
        }
        let (pages, root) = Pages::of(&entries);
        assert!(pages.read(&root, b"") == entries);
        // Index pages list paths without a common prefix.
        let pages = Pages::default();
        let mut writer = TreeWriter::default();
        for n in 0..2000 {
            dir[..8].copy_from_slice(format!("{n:08}").as_bytes());
            let child = Child { first: dir.clone(), page: root, entries: 1, bytes: 0 };
            writer.levels.resize_with(1, OpenLevel::default);
            // As if no path began a page.
            if writer.levels[0].is_full() {
                writer.close_level(0, &pages).expect("puts");
                writer.levels.truncate(1);
            }
            writer.levels[0].push(child);
        }
        assert!(pages.0.lock().len() > 10);
    }

    #[test]
    fn the_most_names_fit_a_page() {
        let named = |path: &str, users: std::ops::Range<u32>| {
            let subjects: Vec<Subject> = users.map(Subject::User).collect();
            let acl = (b"system.posix_acl_access".to_vec(), arbitrary::acl(&subjects));
            let name = |subject| Some(format!("{subject:?}{:0255}", 0).as_bytes()[..255].into());
            let (acl_names, _) = AclNames::of(std::slice::from_ref(&acl), name);
            Entry { xattrs: vec![acl], acl_names, ..Entry::new(path.into(), EntryKind::File, 0) }
        };
        // The first leaf is nearly full.
        let mut entries = [named("a", 0..3700), named("b", 10_000..18_000), named("c", 5..6)];
        let filler = |n: u8| (vec![b'v', b'a' + n], vec![n; 65_000]);
        entries[1].xattrs.extend((0..15).map(filler));
        assert_eq!(entries[1].amend(), crate::entry::Amendment::default());
        let name_bytes = entries[1].acl_names.as_ref().expect("has names").bytes();
        assert!(name_bytes > limits::ACL_NAMES_BYTES_MAX - 300);
        let (pages, root) = Pages::of(&entries);
        assert!(pages.read(&root, b"") == entries);
        let largest = pages.0.lock().values().map(Vec::len).max().expect("pages");
        assert!(largest > 3_000_000, "{largest}");
        assert_eq!(pages.0.lock().len(), 3, "two leaves and their root");
    }

    #[test]
    fn a_lost_path_loses_the_entries_that_share_it() {
        let mut leaf = OpenLeaf::default();
        for path in ["a/1", "a/2", "a/3", "b"] {
            leaf.push(&directory(path.into()));
        }
        // Turn the path of the second entry into a number.
        let at = leaf.encoded.windows(2).position(|two| two == [0x41, b'2']).expect("its suffix");
        leaf.encoded.splice(at..at + 2, [0x18, b'2']);
        let page = leaf.page();
        let get = |_: &ChunkId| Ok(page.clone());
        let (mut good, mut lost) = (Vec::new(), Vec::new());
        for item in TreeReader::new(&ChunkId::of(&page), &get) {
            match item {
                Ok(entry) => good.push(entry.path),
                Err(one) => lost.push((one.span, one.entries)),
            }
        }
        assert_eq!(good, [&b"a/1"[..], b"b"]);
        let range = || Span::Range { from: b"a/1".to_vec(), until: None };
        assert_eq!(lost, [(range(), Some(1)), (range(), Some(1))]);
    }

    #[test]
    fn an_unreadable_page_reports_its_number_of_entries() {
        let entries = many(3000);
        let (pages, root) = Pages::of(&entries);
        let parts = outline(&root, &pages, &|_| false, &mut |_| {});
        let gone = parts[parts.len() / 2].0.clone();
        pages.0.lock().remove(&gone.child.page);
        let lost: Vec<Lost> =
            TreeReader::new(&root, &pages).filter_map(std::result::Result::err).collect();
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].entries, Some(gone.child.entries));
        let left = TreeReader::new(&root, &pages).flatten().count() as u64;
        assert_eq!(left + gone.child.entries, 3000);
    }

    #[test]
    fn entries_below_a_file_are_refused_on_any_page() {
        let file = |path: &str| Entry::new(path.into(), EntryKind::File, 0o600);
        let mut writer = TreeWriter::default();
        let put = |bytes: &[u8]| Ok(ChunkId::of(bytes));
        writer.push(&file("a"), &put).expect("fits");
        let refused = writer.push(&file("a/b"), &put);
        assert!(matches!(refused, Err(Error::Unfit { .. })), "{refused:?}");
        for (first, second) in
            [(&[file("a")][..], &[file("a/b")][..]), (&[file("a"), file("c")], &[file("b")])]
        {
            let pages = Pages::default();
            let child = |entries: &[Entry]| {
                let mut leaf = OpenLeaf::default();
                entries.iter().for_each(|entry| leaf.push(entry));
                let page = pages.put_metadata(&leaf.page()).expect("puts");
                Child { first: leaf.first, page, entries: leaf.entries, bytes: 0 }
            };
            let children = [child(first), child(second)];
            let root = pages.put_metadata(&index_page(1, &children)).expect("puts");
            assert_eq!(
                TreeReader::new(&root, &pages).filter(std::result::Result::is_err).count(),
                1
            );
            // Reading page by page, as a check does, gives the same result.
            let parts = outline(&root, &pages, &|_| false, &mut |_| {});
            let lost = parts.into_iter().flat_map(|(place, _)| TreeReader::at(place, &pages));
            assert_eq!(lost.filter(std::result::Result::is_err).count(), 1);
        }
    }

    /// Walks a tree with arbitrary damage.
    fn walk_all(pages: &Pages, root: &ChunkId, path: &[u8]) -> Result<(), TestCaseError> {
        for path in [b"", path] {
            let mut last = Vec::new();
            for entry in TreeReader::within(root, path, pages).flatten() {
                prop_assert!(last.is_empty() || path_cmp(&last, &entry.path) == Ordering::Less);
                prop_assert!(is_within(&entry.path, path));
                last = entry.path;
            }
        }
        let _ = outline(root, pages, &|_| false, &mut |_| {});
        let _ = totals(root, pages);
        Ok(())
    }

    proptest! {
        #![proptest_config(cases(6))]

        #[test]
        fn a_new_entry_changes_only_the_pages_above_it(at in 0..20_000usize, name: [u8; 8]) {
            let without = many(20_000);
            let (old, old_root) = Pages::of(&without);
            let mut with = without.clone();
            let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
            with.insert(at + 1, directory(format!("d{at:05}/{name}").into_bytes()));
            let (new, new_root) = Pages::of(&with);
            // The entry may begin a page on each of three levels and thereby split one.
            prop_assert!(new_root != old_root && new.beyond(&old) <= 6);
            prop_assert_eq!(new.write(&without), old_root);
        }

        #[test]
        fn reading_a_damaged_large_tree_terminates(
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
    fn sums_of_sizes_saturate() {
        let mut entries = many(3000);
        for entry in &mut entries {
            let extents = vec![Extent::Hole { len: i64::MAX as u64 }];
            entry.kind = EntryKind::File;
            entry.size = i64::MAX as u64;
            entry.content = Content::Recipe(Recipe { level: 0, extents });
        }
        let (pages, root) = Pages::of(&entries);
        let totals = totals(&root, &pages).expect("reads");
        assert_eq!(totals, Some((3000, u64::MAX)));
    }
}
