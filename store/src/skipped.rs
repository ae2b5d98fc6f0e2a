//! Content that a backup skips: recorded while it runs, stored in the snapshot, and spared by
//! a restore that deletes files.

use crate::error::Result;
use crate::glob::{Globs, SourceGlobs, ends};
use crate::limits;
use crate::snapshot::Skipped;
use minicbor::bytes::ByteVec;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashSet};

/// Limit for bytes of paths and patterns in a record, besides the user's own patterns.
const BYTES_MAX: usize = limits::RECORD_BYTES_MAX / 4;
/// Maximum overhead of a path or pattern in bytes.
const HEAD_BYTES: usize = 9;

/// Content skipped so far, recorded by several threads.
#[derive(Debug, Default)]
pub struct Noted(Mutex<Lists>);

#[derive(Debug, Default)]
struct Lists {
    patterns: BTreeSet<Vec<u8>>,
    /// Paths of the tree, with everything below.
    paths: BTreeSet<Vec<u8>>,
    /// One of the skipped files that a restore has not finished.
    unfinished: Option<Vec<u8>>,
    bytes: usize,
    /// True if something did not fit.
    is_cut: bool,
}

impl Lists {
    /// Reserves `len` bytes and returns true if they fit.
    fn takes(&mut self, len: usize) -> bool {
        let bytes = self.bytes + len + HEAD_BYTES;
        self.is_cut |= bytes > BYTES_MAX;
        if bytes <= BYTES_MAX {
            self.bytes = bytes;
        }
        bytes <= BYTES_MAX
    }
}

impl Noted {
    /// Records a pattern that applies.
    pub fn pattern(&self, pattern: &[u8]) {
        let mut lists = self.0.lock();
        if !lists.patterns.contains(pattern) && lists.takes(pattern.len()) {
            lists.patterns.insert(pattern.to_vec());
        }
    }

    /// Records a skipped path of the tree, with everything below or with its content alone.
    pub fn path(&self, path: &[u8]) {
        let mut lists = self.0.lock();
        if !lists.paths.contains(path) && lists.takes(path.len()) {
            lists.paths.insert(path.to_vec());
        }
    }

    /// Notes a skipped file that a restore has not finished. Records do not list such files, because
    /// the next restore removes them.
    pub fn unfinished(&self, path: &[u8]) {
        let first = &mut self.0.lock().unfinished;
        if first.as_ref().is_none_or(|first| path < &first[..]) {
            *first = Some(path.to_vec());
        }
    }

    /// Returns the first path of those files.
    pub fn first_unfinished(&self) -> Option<Vec<u8>> {
        self.0.lock().unfinished.clone()
    }

    /// Returns true if nothing was recorded.
    pub fn is_empty(&self) -> bool {
        let lists = self.0.lock();
        lists.patterns.is_empty() && lists.paths.is_empty() && !lists.is_cut
    }

    /// Returns everything for a record that already lists `excludes`. Omits the paths in `named`:
    /// one pass may skip a path that another pass reads.
    pub fn record(&self, excludes: &[String], named: &HashSet<Vec<u8>>) -> Skipped {
        let lists = self.0.lock();
        let is_listed = |pattern: &[u8]| excludes.iter().any(|known| known.as_bytes() == pattern);
        let patterns = lists.patterns.iter().filter(|pattern| !is_listed(pattern));
        let paths = lists.paths.iter().filter(|path| !named.contains(*path));
        Skipped {
            patterns: patterns.cloned().map(ByteVec::from).collect(),
            paths: paths.cloned().map(ByteVec::from).collect(),
            is_cut: lists.is_cut,
            ..Skipped::default()
        }
    }
}

/// Content that a restore must not delete, because the backup skipped it.
#[derive(Debug, Clone, Default)]
pub struct Spared {
    globs: SourceGlobs,
    paths: HashSet<Vec<u8>>,
    /// Paths that were named sources of the backup, even below skipped paths.
    named: HashSet<Vec<u8>>,
    /// True if the backup skipped the content of directories marked as caches.
    caches: bool,
}

impl From<Globs> for Spared {
    fn from(globs: Globs) -> Spared {
        Spared { globs: globs.into(), ..Spared::default() }
    }
}

impl Spared {
    /// Reads it from a record. `named` are the record's source paths, as paths of its tree.
    pub fn of(
        excludes: &[String],
        skipped: &Skipped,
        named: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Spared> {
        let patterns = skipped.patterns.iter().map(|pattern| &pattern[..]);
        let globs = SourceGlobs::new(excludes.iter().map(String::as_bytes), patterns)?;
        let paths = skipped.paths.iter().map(|path| path.to_vec()).collect();
        Ok(Spared { globs, paths, named: named.into_iter().collect(), caches: skipped.caches })
    }

    /// Returns true if the backup skipped the content of directories marked as caches.
    pub fn has_caches(&self) -> bool {
        self.caches
    }

    /// Returns true if the backup skipped this path of its tree or a directory above it.
    pub fn covers(&self, path: &[u8]) -> bool {
        let above = |end: &usize| self.named.contains(&path[..*end]);
        let from = if self.named.is_empty() { None } else { ends(path).filter(above).last() };
        let is_skipped = |end: usize| {
            let path = &path[..end];
            self.globs.matches(path, || from.unwrap_or(0)) || self.paths.contains(path)
        };
        ends(path).filter(|end| from.is_none_or(|from| *end > from)).any(is_skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spared(patterns: &[&str], paths: &[&str], named: &[&str]) -> Spared {
        let excludes: Vec<String> = patterns.iter().map(|pattern| (*pattern).into()).collect();
        let noted = Noted::default();
        paths.iter().for_each(|path| noted.path(path.as_bytes()));
        let named: HashSet<Vec<u8>> = named.iter().map(|path| path.as_bytes().to_vec()).collect();
        let record = noted.record(&excludes, &named);
        Spared::of(&excludes, &record, named).expect("patterns")
    }

    #[test]
    fn skipped_paths_are_spared_except_for_named_paths() {
        let spared =
            spared(&["big", "*.tmp"], &["src/mnt", "other"], &["src", "src/big/in", "other"]);
        for (path, is_spared) in [
            ("src/f", false),
            ("src/big", true),
            ("src/big/out", true),
            ("src/big/in", false),
            ("src/big/in/f", false),
            ("src/big/in/a.tmp/f", true),
            ("src/mnt", true),
            ("src/mnt/f", true),
            ("src/mntx", false),
            // One pass left it out, another one read it.
            ("other", false),
            ("other/f", false),
        ] {
            assert_eq!(spared.covers(path.as_bytes()), is_spared, "{path}");
        }
        assert!(!Spared::default().covers(b"src/f"));
    }

    #[test]
    fn a_pattern_of_a_source_path_spares_nothing_in_another_one_below() {
        let pattern = crate::glob::within(std::path::Path::new("/w"), b"cache");
        let noted = Noted::default();
        noted.pattern(&pattern);
        let named: HashSet<Vec<u8>> = [b"w".to_vec(), b"w/pages".to_vec()].into();
        let spared = Spared::of(&[], &noted.record(&[], &named), named).expect("patterns");
        assert!(spared.covers(b"w/a/cache/f") && !spared.covers(b"w/pages/cache/f"));
    }

    #[test]
    fn a_full_record_is_marked_as_cut() {
        let noted = Noted::default();
        assert!(noted.is_empty());
        let count = 3 * BYTES_MAX / 2000;
        for n in 0..count {
            noted.path(format!("{n:01000}").as_bytes());
            // Recording a path twice takes no space.
            noted.path(format!("{n:01000}").as_bytes());
        }
        let record = noted.record(&[], &HashSet::new());
        assert!(record.is_cut && record.paths.len() < count);
        assert!(record.paths.len() > BYTES_MAX / 1100);
        let bytes = minicbor::to_vec(&record).expect("writing to memory cannot fail").len();
        assert!(bytes < BYTES_MAX + 100, "{bytes}");
    }
}
