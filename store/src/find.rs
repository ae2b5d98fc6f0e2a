//! Finds paths in many trees at once.
//!
//! The trees are read together in path order. A page that several trees share is read once, and
//! pages in which no pattern can match are not read. Memory holds the pages and matches around one
//! path, so it does not grow with the number of matches.

use crate::chunks::Chunks;
use crate::diff::is_same_by;
use crate::entry::{Entry, path_cmp};
use crate::glob::Globs;
use crate::id::ChunkId;
use crate::tree::{Lost, Place, TreeReader};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

/// A result of the search.
#[derive(Debug)]
pub enum Found {
    /// A path and its versions in the order of the trees.
    Path(Vec<Version>),
    /// An unreadable part of some trees.
    Lost(Lost, Trees),
}

/// Equal entries of one path in trees with consecutive numbers.
#[derive(Debug, Clone)]
pub struct Version {
    /// The entry in the last of these trees.
    pub entry: Entry,
    /// Number of the first tree.
    pub first: u32,
    /// Number of the last tree.
    pub last: u32,
}

/// Numbers of trees, as ranges of a first and a last number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trees(Vec<(u32, u32)>);

impl Trees {
    /// Returns the smallest number, the largest number and their count.
    pub fn span(&self) -> (u32, u32, u32) {
        let first = self.0.iter().map(|range| range.0).min().unwrap_or(0);
        let last = self.0.iter().map(|range| range.1).max().unwrap_or(0);
        (first, last, self.0.iter().map(|(first, last)| last - first + 1).sum())
    }

    /// Adds numbers that are not in it yet.
    fn extend(&mut self, ranges: &[(u32, u32)]) {
        for (first, last) in ranges {
            match self.0.last_mut() {
                Some(before) if before.1.checked_add(1) == Some(*first) => before.1 = *last,
                _ => self.0.push((*first, *last)),
            }
        }
    }
}

/// A path that sorts as in a tree.
#[derive(PartialEq, Eq)]
struct TreePath(Vec<u8>);

impl Ord for TreePath {
    fn cmp(&self, other: &TreePath) -> Ordering {
        path_cmp(&self.0, &other.0)
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &TreePath) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Pages that begin with the same path, in the order in which they were added.
#[derive(Default)]
struct Pages {
    pages: Vec<(Place, Trees)>,
    /// Position of each page by its key.
    positions: HashMap<u128, usize>,
}

impl Pages {
    fn add(&mut self, place: Place, trees: &Trees) {
        let at = *self.positions.entry(place.key()).or_insert(self.pages.len());
        if at == self.pages.len() {
            self.pages.push((place, Trees::default()));
        }
        self.pages[at].1.extend(&trees.0);
    }
}

/// A search in progress.
struct Search<'a> {
    chunks: &'a dyn Chunks,
    globs: &'a Globs,
    has_same_content: SameContent<'a>,
    /// Pages that are not read yet, by their first paths.
    pages: BTreeMap<TreePath, Pages>,
    /// Matches that may occur in more trees.
    matches: BTreeMap<TreePath, Vec<(Entry, Trees)>>,
}

/// Returns true if two files have the same content.
type SameContent<'a> = &'a dyn Fn(&Entry, &Entry) -> bool;

/// Calls `each` for every path that matches, in path order, and for every unreadable part. Ends
/// with the first error of `each`.
///
/// Each tree is given by its number and root page, in ascending order of the numbers. Versions of a
/// path extend over trees with consecutive numbers. `has_same_content` compares two files, such as
/// [`crate::diff::has_same_content`].
pub fn find<E>(
    chunks: &dyn Chunks,
    trees: impl IntoIterator<Item = (u32, ChunkId)>,
    globs: &Globs,
    has_same_content: SameContent<'_>,
    each: &mut dyn FnMut(Found) -> Result<(), E>,
) -> Result<(), E> {
    let (pages, matches) = Default::default();
    let mut search = Search { chunks, globs, has_same_content, pages, matches };
    for (number, root) in trees {
        search.add(Place::root(&root), &Trees(vec![(number, number)]));
    }
    while let Some((first, group)) = search.pages.pop_first() {
        while let Some(entry) = search.matches.first_entry().filter(|entry| *entry.key() < first) {
            each(Found::Path(versions(entry.remove(), has_same_content)))?;
        }
        for (place, trees) in group.pages {
            search.read(place, &trees, each)?;
        }
    }
    let mut left = search.matches.into_values();
    left.try_for_each(|matches| each(Found::Path(versions(matches, has_same_content))))
}

impl Search<'_> {
    fn add(&mut self, place: Place, trees: &Trees) {
        if self.globs.may_match_between(&place.child.first, place.until.as_deref()) {
            let first = TreePath(place.child.first.clone());
            self.pages.entry(first).or_default().add(place, trees);
        }
    }

    /// Reads a page: adds the pages that it lists, or its matches.
    fn read<E>(
        &mut self,
        place: Place,
        trees: &Trees,
        each: &mut dyn FnMut(Found) -> Result<(), E>,
    ) -> Result<(), E> {
        match place.children(self.chunks) {
            Ok(Some(children)) => {
                children.into_iter().for_each(|child| self.add(child, trees));
                return Ok(());
            }
            Ok(None) => {}
            Err(error) => return each(Found::Lost(place.lost(error), trees.clone())),
        }
        for item in TreeReader::at(place, self.chunks) {
            match item {
                Ok(entry) if self.globs.matches(&entry.path) => self.take(entry, trees),
                Ok(_) => {}
                Err(lost) => each(Found::Lost(lost, trees.clone()))?,
            }
        }
        Ok(())
    }

    /// Keeps a match, with the last one of the same path if they do not differ.
    fn take(&mut self, entry: Entry, trees: &Trees) {
        let path = TreePath(entry.path.clone());
        let versions = self.matches.entry(path).or_default();
        match versions.last_mut() {
            Some((known, of)) if is_same_by(known, &entry, self.has_same_content) => {
                of.extend(&trees.0);
            }
            _ => versions.push((entry, trees.clone())),
        }
    }
}

/// Returns the versions of one path, of which each extends as far as possible.
fn versions(matches: Vec<(Entry, Trees)>, has_same_content: SameContent<'_>) -> Vec<Version> {
    let ranges = |at: usize, trees: &Trees| -> Vec<(u32, u32, usize)> {
        trees.0.iter().map(|(first, last)| (*first, *last, at)).collect()
    };
    let mut ranges: Vec<_> =
        matches.iter().enumerate().flat_map(|(at, (_, trees))| ranges(at, trees)).collect();
    ranges.sort_unstable();
    let mut versions: Vec<Version> = Vec::new();
    for (first, last, at) in ranges {
        let entry = &matches[at].0;
        match versions.last_mut() {
            Some(version)
                if version.last.checked_add(1) == Some(first)
                    && is_same_by(&version.entry, entry, has_same_content) =>
            {
                version.last = last;
            }
            _ => versions.push(Version { entry: entry.clone(), first, last }),
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{MemoryChunks, cases, paths};
    use crate::chunks::PutMetadata;
    use crate::entry::EntryKind;
    use crate::error::Result;
    use crate::tree::TreeWriter;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Chunks that count how often they are read.
    #[derive(Default)]
    struct Counted(MemoryChunks, AtomicUsize);

    impl Chunks for Counted {
        fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
            self.1.fetch_add(1, Relaxed);
            self.0.get_into(id, plain)
        }
    }

    fn write(entries: &[Entry], chunks: &dyn PutMetadata) -> ChunkId {
        let mut writer = TreeWriter::default();
        entries.iter().for_each(|entry| writer.push(entry, chunks).expect("puts"));
        writer.finish(chunks).expect("puts")
    }

    fn file(path: &[u8], mode: u32) -> Entry {
        Entry::new(path.to_vec(), EntryKind::File, mode)
    }

    fn search(chunks: &Counted, trees: &[ChunkId], pattern: &str) -> Vec<(Vec<u8>, u32, u32, u32)> {
        let globs = Globs::new([pattern.as_bytes()]).expect("a pattern");
        let mut found = Vec::new();
        let alike = crate::diff::is_stored_alike;
        let Ok(()) =
            find::<Infallible>(
                chunks,
                (0..).zip(trees.iter().copied()),
                &globs,
                &alike,
                &mut |item| {
                    let Found::Path(versions) = item else { panic!("{item:?}") };
                    found.extend(versions.into_iter().map(|Version { entry, first, last }| {
                        (entry.path, entry.mode, first, last)
                    }));
                    Ok(())
                },
            );
        found
    }

    proptest! {
        #![proptest_config(cases(64))]

        #[test]
        fn a_search_finds_what_each_tree_holds(
            paths in paths(40), nights in vec(vec((any::<prop::sample::Index>(), 0..3u32), 0..4), 1..12),
        ) {
            let mut modes: BTreeMap<Vec<u8>, Option<u32>> =
                paths.iter().map(|path| (path.clone(), Some(0))).collect();
            let (chunks, mut roots, mut expected) = (Counted::default(), Vec::new(), BTreeMap::new());
            for (night, changes) in (0u32..).zip(&nights) {
                for (at, mode) in changes {
                    if let Some(path) = paths.get(at.index(paths.len().max(1))) {
                        modes.insert(path.clone(), (*mode < 2).then_some(*mode));
                    }
                }
                let entry = |path: &Vec<u8>| {
                    modes[path].map(|mode| Entry::new(path.clone(), EntryKind::Directory, mode))
                };
                let entries: Vec<Entry> = paths.iter().filter_map(entry).collect();
                for entry in &entries {
                    expected.insert((entry.path.clone(), night), entry.mode);
                }
                roots.push(write(&entries, &chunks.0));
            }
            let found = search(&chunks, &roots, "*");
            let mut all = BTreeMap::new();
            for (path, mode, first, last) in &found {
                for night in *first..=*last {
                    prop_assert_eq!(all.insert((path.clone(), night), *mode), None);
                }
            }
            prop_assert_eq!(all, expected);
            for pair in found.windows(2) {
                let same = pair[0].0 == pair[1].0;
                let joins = same && pair[0].1 == pair[1].1 && pair[0].3 + 1 == pair[1].2;
                prop_assert!(!joins && path_cmp(&pair[0].0, &pair[1].0) != Ordering::Greater);
            }
        }
    }

    #[test]
    fn shared_pages_are_read_once_and_others_only_where_a_pattern_can_match() {
        let path = |n: usize| format!("srv/{:02}/{n:05}", n % 20).into_bytes();
        let mut paths: Vec<Vec<u8>> = (0..20_000).map(path).collect();
        paths.sort_by(|a, b| path_cmp(a, b));
        let chunks = Counted::default();
        let night = |night: u32| {
            let mode = |path: &[u8]| if path == b"srv/07/00007" { night } else { 0 };
            let entries: Vec<_> = paths.iter().map(|path| file(path, mode(path))).collect();
            write(&entries, &chunks.0)
        };
        let roots: Vec<ChunkId> = (0..50).map(night).collect();
        let pages = chunks.0.0.lock().len();
        assert_eq!(search(&chunks, &roots, "0000[78]").len(), 51);
        // The range of a page ends where the next page begins, which may differ between trees.
        assert!(chunks.1.swap(0, Relaxed) <= pages + 50, "of {pages} pages");
        assert_eq!(search(&chunks, &roots, "/srv/07/00007").len(), 50);
        assert!(chunks.1.swap(0, Relaxed) <= 50 * 4, "anchored");
        assert_eq!(search(&chunks, &roots[..1], "/srv/08/*").len(), 1000);
        assert!(chunks.1.swap(0, Relaxed) <= 20, "below a directory");
    }
}
