//! Names that a file system may not distinguish, such as `README` and `readme`.
//!
//! FAT, CIFS and directories of ext4 with `casefold` have one object for both. A restore would
//! replace one by the other.

use super::relative;
use crate::entry::is_within;
use crate::source;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd};

/// Reason why a path is not restored as it was.
pub(super) const MERGED: &str = "another name in its directory is so similar that this file \
                                 system has only one object for both; restore to another file system";

/// Finds similar names among the entries of a tree, which come in path order.
#[derive(Default)]
pub(super) struct SimilarNames {
    /// Open directories, each with hashes of its names in folded form.
    dirs: Vec<(Vec<u8>, HashSet<u64>)>,
    /// Paths whose names are similar to an earlier one.
    found: Vec<Vec<u8>>,
}

impl SimilarNames {
    /// Takes the path of the next entry.
    pub(super) fn take(&mut self, path: &[u8]) {
        let (parent, name) = source::split(path);
        while self.dirs.last().is_some_and(|(dir, _)| !is_within(parent, dir)) {
            self.dirs.pop();
        }
        if self.dirs.last().is_none_or(|(dir, _)| dir != parent) {
            self.dirs.push((parent.to_vec(), HashSet::new()));
        }
        if let Some((_, names)) = self.dirs.last_mut()
            && !names.insert(folded(name))
        {
            self.found.push(path.to_vec());
        }
    }

    /// Returns the paths, in the tree, whose objects in the target are those of similar names.
    pub(super) fn merged(&self, target: BorrowedFd<'_>, prefix: &[u8]) -> Vec<&[u8]> {
        let mut merged = Vec::new();
        for dir in self.found.chunk_by(|a, b| source::split(a).0 == source::split(b).0) {
            let parent = source::split(&dir[0]).0;
            let Ok(open) = source::open_dir_below(target, relative(parent, prefix)) else {
                continue;
            };
            let Ok(names) = source::names(open.as_fd()) else { continue };
            let there: Vec<u64> = names.iter().map(|(name, _)| folded(name)).collect();
            let count = |path: &[u8]| {
                let wanted = folded(source::split(path).1);
                there.iter().filter(|folded| **folded == wanted).count()
            };
            merged.extend(dir.iter().map(Vec::as_slice).filter(|path| count(path) == 1));
        }
        merged
    }
}

/// Returns true if a file system may not distinguish two names.
pub(super) fn are_similar(a: &[u8], b: &[u8]) -> bool {
    folded(a) == folded(b)
}

/// Returns a hash of a name without case and without the ends that FAT drops.
fn folded(name: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(name).to_lowercase();
    let mut hasher = DefaultHasher::new();
    text.trim_end_matches(['.', ' ']).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_merged_names_are_reported() {
        let mut names = SimilarNames::default();
        let paths = [
            "a",
            "a/FILE",
            "a/Straße",
            "a/b",
            "a/b/file",
            "a/b/ünder",
            "a/file",
            "a/x.",
            "b",
            "b/x",
        ];
        for path in paths.map(str::as_bytes) {
            names.take(path);
        }
        assert_eq!(names.found, [b"a/file"]);
        let dir = tempfile::tempdir().expect("a directory");
        let target = source::open_dir(dir.path()).expect("opens");
        std::fs::create_dir(dir.path().join("a")).expect("creates");
        std::fs::write(dir.path().join("a/FILE"), "").expect("writes");
        assert_eq!(names.merged(target.as_fd(), b""), [b"a/file"]);
        let inner = source::open_dir(&dir.path().join("a")).expect("opens");
        assert_eq!(names.merged(inner.as_fd(), b"a"), [b"a/file"]);
        std::fs::write(dir.path().join("a/file"), "").expect("writes");
        assert!(names.merged(target.as_fd(), b"").is_empty());
    }
}
