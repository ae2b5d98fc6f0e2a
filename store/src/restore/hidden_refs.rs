//! References of git repositories that newer files hide.
//!
//! git prefers a file below `refs/` to a line of `packed-refs`. A restore over a newer repository
//! leaves such files in place unless it deletes extra paths.

use super::{join, relative};
use crate::git;
use crate::id::ChunkId;
use crate::source;
use crate::store::Store;
use crate::tree::TreeReader;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};

/// Longest line of `packed-refs` that is read, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Longest reference file that is read, in bytes: an id and a line end.
const REF_BYTES_MAX: u64 = 256;

/// Restored files with packed references, by their paths in the tree.
#[derive(Debug, Default)]
pub(super) struct PackedRefs(Mutex<BTreeSet<Vec<u8>>>);

/// A git directory, as a path of the tree, with the names of its hidden references.
pub(super) type Hidden = (Vec<u8>, Vec<Vec<u8>>);

impl PackedRefs {
    /// Records that a path of the tree has the content of the snapshot.
    pub(super) fn restored(&self, path: &[u8]) {
        if path == b"packed-refs" || path.ends_with(b"/packed-refs") {
            self.0.lock().insert(path.to_vec());
        }
    }

    /// Returns packed references for which the target has a file with another value and the
    /// snapshot has no file.
    pub(super) fn hidden(
        &self,
        target: BorrowedFd<'_>,
        store: &Store,
        root: &ChunkId,
        prefix: &[u8],
    ) -> Vec<Hidden> {
        let all = std::mem::take(&mut *self.0.lock());
        let hidden = all.iter().filter_map(|path| {
            let git_dir = path.strip_suffix(b"packed-refs").expect("noted for its end");
            let git_dir = git_dir.strip_suffix(b"/").unwrap_or(git_dir);
            // If this user cannot read it, git cannot use it either.
            let refs = hidden_in(target, store, root, prefix, git_dir).unwrap_or_default();
            (!refs.is_empty()).then(|| (git_dir.to_vec(), refs))
        });
        hidden.collect()
    }
}

fn hidden_in(
    target: BorrowedFd<'_>,
    store: &Store,
    root: &ChunkId,
    prefix: &[u8],
    git_dir: &[u8],
) -> io::Result<Vec<Vec<u8>>> {
    let dir = source::open_dir_below(target, relative(git_dir, prefix))?;
    let mut loose = BTreeMap::new();
    loose_refs(dir.as_fd(), b"refs", &mut loose);
    if loose.is_empty() {
        return Ok(Vec::new());
    }
    let refs = join(git_dir, b"refs");
    for entry in TreeReader::within(root, &refs, store).flatten() {
        loose.remove(relative(&entry.path, git_dir));
    }
    let packed = source::open_file_below(dir.as_fd(), b"packed-refs")?;
    differing(packed, &loose)
}

/// Adds the values of all files below a directory that may be references.
fn loose_refs(git_dir: BorrowedFd<'_>, below: &[u8], found: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let Ok(dir) = source::open_dir_below(git_dir, below) else { return };
    for (name, _) in source::names(dir.as_fd()).unwrap_or_default() {
        let path = join(below, &name);
        if git::is_transient(&path) {
            continue;
        }
        // A directory can be opened like a file, but not read like one.
        let mut value = Vec::new();
        let Ok(file) = source::open_file_below(dir.as_fd(), &name) else { continue };
        match file.take(REF_BYTES_MAX).read_to_end(&mut value) {
            Ok(_) => drop(found.insert(path, value.trim_ascii().to_vec())),
            Err(_) => loose_refs(git_dir, &path, found),
        }
    }
}

/// Returns the names of packed references that have another value in `loose`.
fn differing(packed: File, loose: &BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<Vec<Vec<u8>>> {
    let (mut packed, mut line) = (BufReader::new(packed), Vec::new());
    let mut names = HashSet::new();
    while packed.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? > 0 {
        // `# pack-refs with: …` and `^<peeled>` do not contain such a name.
        if let Some(at) = line.iter().position(|b| *b == b' ') {
            let (id, name) = (&line[..at], line[at + 1..].trim_ascii_end());
            if loose.get(name).is_some_and(|value| value != id) {
                names.insert(name.to_vec());
            }
        }
        line.clear();
    }
    let mut names: Vec<Vec<u8>> = names.into_iter().collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    #[test]
    fn packed_references_with_another_loose_value_are_found() {
        let mut packed = tempfile::tempfile().expect("a file");
        let text = "# pack-refs with: peeled fully-peeled sorted \n\
                    1111 refs/heads/main\n2222 refs/heads/same\n3333 refs/tags/v1\n^4444\n";
        packed.write_all(text.as_bytes()).expect("written");
        packed.rewind().expect("rewound");
        let loose =
            [("refs/heads/main", "9999"), ("refs/heads/same", "2222"), ("refs/heads/x", "1")];
        let bytes = |text: &str| text.as_bytes().to_vec();
        let loose = loose.iter().map(|(name, id)| (bytes(name), bytes(id))).collect();
        assert_eq!(differing(packed, &loose).expect("readable"), [b"refs/heads/main"]);
    }
}
