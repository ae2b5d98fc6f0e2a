//! Git repositories that borrow objects from others.
//!
//! `objects/info/alternates` names the directories of borrowed objects. A restore of such a
//! repository alone, or to another place, gives one that git cannot read.

use super::{Options, join, relative};
use crate::content::{ChunkCache, ContentReader};
use crate::entry::{Content, Entry, EntryKind, is_within};
use crate::git;
use crate::id::ChunkId;
use crate::store::Store;
use crate::tree::Lookup;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 64 << 10;

/// Repositories whose borrowed objects are missing after a restore, with the same pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Borrowers {
    /// First of them, as a path of the tree.
    pub first: Vec<u8>,
    /// Place of the first in the target.
    pub first_in_target: PathBuf,
    /// Number of them.
    pub count: u64,
    /// Place where git looks for the pool: the repository with the borrowed objects.
    pub wanted: PathBuf,
    /// Path of the pool in the tree, if the snapshot has it.
    pub pool: Option<Vec<u8>>,
    /// True if git finds the pool by its place relative to the borrower.
    pub is_relative: bool,
}

/// Restored files that name borrowed objects: paths of repositories in the tree, with the lines.
#[derive(Debug, Default)]
pub(super) struct Alternates(Vec<(Vec<u8>, Vec<Vec<u8>>)>);

impl Alternates {
    /// Notes the file of a repository.
    pub(super) fn note(&mut self, entry: &Entry, store: &Store) {
        let Some(git_dir) = entry.path.strip_suffix(git::ALTERNATES) else { return };
        let is_name = git_dir.is_empty() || git_dir.ends_with(b"/");
        if !is_name || entry.kind != EntryKind::File || entry.size > BYTES_MAX {
            return;
        }
        let content = match &entry.content {
            Content::Empty => return,
            Content::Inline(bytes) => bytes.to_vec(),
            Content::Recipe(recipe) => {
                let cache = ChunkCache::new(BYTES_MAX as usize);
                let mut bytes = vec![0; entry.size as usize];
                let reader = ContentReader::new(store, &cache, recipe, entry.size);
                // The restore reports an unreadable file.
                let Ok(len) = reader.read_at(0, &mut bytes) else { return };
                bytes.truncate(len);
                bytes
            }
        };
        let lines = git::alternates(&content).map(Cow::into_owned);
        let git_dir = git_dir.strip_suffix(b"/").unwrap_or(git_dir);
        self.0.push((git_dir.to_vec(), lines.collect()));
    }

    /// Returns the repositories whose borrowed objects are missing, one item for each pool.
    pub(super) fn unmet(
        &self,
        target: &Path,
        store: &Store,
        root: &ChunkId,
        from: &[u8],
        prefix: &[u8],
        options: &Options,
    ) -> Vec<Borrowers> {
        let target = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
        let mut lookup = Lookup::new(root, store);
        let mut unmet: BTreeMap<Vec<u8>, Borrowers> = BTreeMap::new();
        for (git_dir, lines) in &self.0 {
            let place = target_path(&target, relative(git_dir, prefix));
            for line in lines {
                let wanted = resolved(&join(&place, b"objects"), line);
                let wanted_path = Path::new(OsStr::from_bytes(&wanted));
                let in_tree = resolved(&join(git_dir, b"objects"), line)[1..].to_vec();
                let known = lookup.at(&in_tree).ok().flatten();
                let is_known = known.is_some_and(|entry| entry.kind == EntryKind::Directory);
                let will_be_there = options.is_dry
                    && is_known
                    && is_within(&in_tree, from)
                    && options.selects(&in_tree)
                    && target_path(&target, relative(&in_tree, prefix)) == wanted;
                if will_be_there || wanted_path.is_dir() {
                    continue;
                }
                let repository =
                    |objects: &[u8]| objects.strip_suffix(b"/objects").unwrap_or(objects).to_vec();
                unmet.entry(wanted.clone()).and_modify(|pool| pool.count += 1).or_insert_with(
                    || Borrowers {
                        first: git_dir.clone(),
                        first_in_target: OsStr::from_bytes(&place).into(),
                        count: 1,
                        wanted: OsStr::from_bytes(&repository(&wanted)).into(),
                        pool: is_known.then(|| repository(&in_tree)),
                        is_relative: !line.starts_with(b"/"),
                    },
                );
            }
        }
        unmet.into_values().collect()
    }
}

fn target_path(target: &Path, path: &[u8]) -> Vec<u8> {
    resolved(target.as_os_str().as_bytes(), path)
}

/// Resolves a path below a directory, without looking at links. The result begins with a slash.
fn resolved(dir: &[u8], path: &[u8]) -> Vec<u8> {
    let dir = if path.starts_with(b"/") { b"" } else { dir };
    let mut names: Vec<&[u8]> = Vec::new();
    for name in [dir, path].iter().flat_map(|path| path.split(|byte| *byte == b'/')) {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    [b"/", &names.join(&b'/')[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrowed_objects_are_found_as_git_finds_them() {
        for (dir, line, wanted) in [
            ("/a/b.git/objects", "../../c.git/objects", "/a/c.git/objects"),
            ("a/b.git/objects", "../../c.git/objects", "/a/c.git/objects"),
            ("/b.git/objects", "../../../../c.git/objects", "/c.git/objects"),
            ("/a/objects", "/srv//c.git/./objects/", "/srv/c.git/objects"),
        ] {
            assert_eq!(resolved(dir.as_bytes(), line.as_bytes()), wanted.as_bytes(), "{line}");
        }
    }
}
