//! Builds a tree in which every path with entries below it is a directory.
//!
//! A backup lists directories at different times. One path can be a file at one time and a
//! directory at another. The tree then keeps the directory with its content and drops the file.

use super::gate::Gate;
use super::run::Totals;
use crate::chunks::PutMetadata;
use crate::entry::{Entry, EntryKind, is_within};
use crate::error::Result;
use crate::id::ChunkId;
use std::io;
use std::sync::Arc;

/// Takes entries in path order and writes the tree.
pub struct Assembly<'a> {
    gate: Gate<'a>,
    /// Last entry, unless it is a directory. It is dropped if an entry below it follows.
    held: Option<Entry>,
    /// Paths of the directories that lead to the last entry, outermost first.
    dirs: Vec<Vec<u8>>,
}

/// Returns the error for a path that was dropped in favour of a directory.
pub fn was_also_a_directory() -> io::Error {
    io::Error::other("it was a directory in another pass of this backup; storing the directory")
}

impl<'a> Assembly<'a> {
    /// Creates an empty tree that is written through a gate.
    pub fn new(gate: Gate<'a>) -> Assembly<'a> {
        Assembly { gate, held: None, dirs: Vec::new() }
    }

    /// Takes an entry. Reports the previous one if a directory replaces it.
    pub fn push(&mut self, entry: Entry, out: &dyn PutMetadata) -> Result<()> {
        if let Some(held) = self.held.take() {
            if is_within(&entry.path, &held.path) {
                self.gate.report_unreadable(&held.path, &was_also_a_directory());
            } else {
                self.gate.push(held, out)?;
            }
        }
        while self.dirs.last().is_some_and(|dir| !is_within(&entry.path, dir)) {
            self.dirs.pop();
        }
        self.make_parents(&entry, out)?;
        if entry.kind != EntryKind::Directory {
            self.held = Some(entry);
        } else if self.dirs.last() != Some(&entry.path) {
            self.dirs.push(entry.path.clone());
            self.gate.push(entry, out)?;
        }
        Ok(())
    }

    /// Closes the tree and returns its root and totals.
    pub fn finish(mut self, out: &dyn PutMetadata) -> Result<(ChunkId, Totals)> {
        if let Some(held) = self.held.take() {
            self.gate.push(held, out)?;
        }
        self.gate.finish(out)
    }

    /// Writes missing directories above an entry. They vanished, or were of another type when they
    /// were read.
    fn make_parents(&mut self, entry: &Entry, out: &dyn PutMetadata) -> Result<()> {
        let known = self.dirs.last().map_or(0, Vec::len);
        let ends = entry.path.iter().enumerate().skip(known + 1).filter(|(_, b)| **b == b'/');
        for (end, _) in ends {
            let path = entry.path[..end].to_vec();
            let owner = Arc::clone(&entry.owner);
            let dir = Entry { owner, ..Entry::new(path, EntryKind::Directory, 0o700) };
            self.dirs.push(dir.path.clone());
            self.gate.push(dir, out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::Counters;
    use super::*;
    use crate::arbitrary::MemoryChunks;
    use crate::entry::path_cmp;
    use crate::observe::{Event, Observer, Progress};
    use crate::tree::TreeReader;
    use parking_lot::Mutex;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Collects the paths that are reported missing.
    #[derive(Default)]
    struct Missing(Mutex<Vec<String>>, Progress);

    impl Observer for Missing {
        fn event(&self, event: Event) {
            if let Event::Unreadable { path, .. } = event {
                self.0.lock().push(path.to_string_lossy()[1..].to_owned());
            }
        }

        fn progress(&self) -> &Progress {
            &self.1
        }
    }

    /// Returns the tree's content and the paths that were dropped.
    fn assembled(entries: Vec<Entry>) -> (Vec<(String, EntryKind)>, Vec<String>, Totals) {
        let pages = MemoryChunks::default();
        let text = |path: &[u8]| String::from_utf8(path.to_vec()).expect("text");
        let (counters, missing) = (Counters::default(), Missing::default());
        let mut assembly = Assembly::new(Gate::new(&counters, &missing));
        for entry in entries {
            assembly.push(entry, &pages).expect("pushes");
        }
        let (root, totals) = assembly.finish(&pages).expect("finishes");
        let read = TreeReader::new(&root, &pages).map(|entry| {
            let entry = entry.expect("reads");
            (text(&entry.path), entry.kind)
        });
        (read.collect(), missing.0.into_inner(), totals)
    }

    fn entry(path: &str, kind: EntryKind) -> Entry {
        let mode = if kind == EntryKind::Directory { 0o755 } else { 0o644 };
        Entry::new(path.as_bytes().to_vec(), kind, mode)
    }

    #[test]
    fn a_file_with_paths_below_it_becomes_a_directory() {
        let (tree, gone, totals) = assembled(vec![
            entry("a", EntryKind::Directory),
            entry("a/b", EntryKind::File),
            entry("a/b/c", EntryKind::Symlink),
            entry("a/b/c/d", EntryKind::File),
            entry("a/b.c", EntryKind::File),
            entry("e/f/g", EntryKind::Fifo),
        ]);
        let of = |path: &str, kind| (path.to_owned(), kind);
        let wanted = [
            of("a", EntryKind::Directory),
            of("a/b", EntryKind::Directory),
            of("a/b/c", EntryKind::Directory),
            of("a/b/c/d", EntryKind::File),
            of("a/b.c", EntryKind::File),
            of("e", EntryKind::Directory),
            of("e/f", EntryKind::Directory),
            of("e/f/g", EntryKind::Fifo),
        ];
        assert_eq!(tree, wanted);
        assert_eq!(gone, ["a/b", "a/b/c"]);
        assert_eq!(totals.entries, 8);
    }

    proptest! {
        #![proptest_config(crate::arbitrary::cases(200))]

        #[test]
        fn every_parent_is_a_directory_and_other_entries_stay(
            paths in proptest::collection::btree_map("[ab](/[ab.]){0,3}", any::<bool>(), 0..12),
        ) {
            let is_path = |path: &&String| path.split('/').all(|part| part != ".");
            let mut paths: Vec<(String, EntryKind)> = paths
                .iter()
                .filter(|(path, _)| is_path(path))
                .map(|(path, is_dir)| {
                    (path.clone(), if *is_dir { EntryKind::Directory } else { EntryKind::File })
                })
                .collect();
            paths.sort_by(|(a, _), (b, _)| path_cmp(a.as_bytes(), b.as_bytes()));
            let entries = paths.iter().map(|(path, kind)| entry(path, *kind)).collect();
            let (tree, gone, _) = assembled(entries);
            let dirs: BTreeSet<&str> = tree
                .iter()
                .filter(|(_, kind)| *kind == EntryKind::Directory)
                .map(|(path, _)| &path[..])
                .collect();
            for (path, _) in &tree {
                let parent = path.rsplit_once('/').map(|(parent, _)| parent);
                prop_assert!(parent.is_none_or(|parent| dirs.contains(parent)), "{path}");
            }
            for item in &paths {
                prop_assert!(tree.contains(item) != gone.contains(&item.0), "{item:?}");
            }
        }
    }
}
