//! Caches of git repositories that a restore makes stale.
//!
//! A multi-pack-index names offsets in packs, bitmaps and reverse indexes belong to the bytes of
//! one pack, and commit-graphs name commits. After such a pack or object was removed or replaced,
//! git would still use a cache that describes missing data.

use super::{Options, join, relative};
use crate::entry::{EntryKind, is_within, path_cmp};
use crate::git;
use crate::id::ChunkId;
use crate::source;
use crate::store::Store;
use crate::tree::TreeReader;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};

/// Changed git directories, by their paths in the tree.
#[derive(Debug, Default)]
pub(super) struct GitCaches(BTreeMap<Vec<u8>, Changes>);

/// Changes of a git directory that make caches stale.
#[derive(Debug, Default)]
struct Changes {
    /// Packs that were removed or replaced.
    pack_stems: HashSet<Vec<u8>>,
}

/// Returns true if a file of a directory, given by name, is a stale cache.
type IsStale<'a> = dyn Fn(&[u8]) -> bool + 'a;

impl GitCaches {
    /// Returns true if replacing the file at this path of the tree may make caches stale.
    pub(super) fn depend_on(path: &[u8]) -> bool {
        split(path).is_some_and(|(_, inner)| changed_pack(inner).is_some())
    }

    /// Records that another file replaced the file at this path.
    pub(super) fn replaced(&mut self, path: &[u8]) {
        if let Some((git_dir, inner)) = split(path)
            && let Some(stem) = changed_pack(inner)
        {
            self.changes(git_dir).pack_stems.insert(stem.to_vec());
        }
    }

    /// Records that a path was removed with everything below it.
    pub(super) fn removed(&mut self, path: &[u8]) {
        self.replaced(path);
        if let Some((git_dir, inner)) = split(path)
            && matches!(git::Phase::of(inner), git::Phase::LooseObjects | git::Phase::Packs)
        {
            self.changes(git_dir);
        }
    }

    fn changes(&mut self, git_dir: &[u8]) -> &mut Changes {
        self.0.entry(git_dir.to_vec()).or_default()
    }

    /// Returns stale caches in the target that the selected part of the snapshot lacks, as paths in
    /// the target. A directory includes everything in it.
    pub(super) fn stale(
        &self,
        target: BorrowedFd<'_>,
        store: &Store,
        root: &ChunkId,
        prefix: &[u8],
        options: &Options,
    ) -> Vec<Vec<u8>> {
        let is_restored = |path: &[u8]| {
            let first = TreeReader::within(root, path, store).next();
            // If the tree is unreadable here, the entry may exist.
            first.is_some_and(|first| first.map_or(true, |entry| entry.path == path))
                && options.selects(path)
        };
        let mut stale = Vec::new();
        let none = Changes::default();
        let borrowers: Vec<Vec<u8>> = match self.0.is_empty() {
            true => Vec::new(),
            // Their commit-graphs may name commits that were removed from another repository.
            false => TreeReader::within(root, prefix, store)
                .flatten()
                .filter(|entry| {
                    entry.path.ends_with(git::ALTERNATES) && options.selects(&entry.path)
                })
                .filter_map(|entry| Some(split(&entry.path)?.0.to_vec()))
                .filter(|git_dir| !self.0.contains_key(git_dir))
                .collect(),
        };
        let borrowers = borrowers.iter().map(|git_dir| (git_dir, &none));
        for (git_dir, changes) in self.0.iter().chain(borrowers) {
            let packs: &IsStale<'_> = &|name| {
                let is_midx = name.starts_with(b"multi-pack-index");
                !changes.pack_stems.is_empty() && is_midx || changes.outdate(name)
            };
            let graphs: &IsStale<'_> = &|name| name.starts_with(b"commit-graph");
            for (dir, is_stale) in [(&b"objects/pack"[..], packs), (b"objects/info", graphs)] {
                let dir = join(git_dir, dir);
                if is_within(&dir, prefix) {
                    find(target, relative(&dir, prefix), is_stale, &mut stale);
                }
            }
        }
        stale.retain(|path| !is_restored(&join(prefix, path)));
        stale.sort_by(|a, b| path_cmp(a, b));
        stale.dedup_by(|inner, outer| is_within(inner, outer));
        stale
    }
}

impl Changes {
    /// Returns true if a file is a cache of a removed or replaced pack and can be recreated.
    fn outdate(&self, name: &[u8]) -> bool {
        let is_cache = [&b".bitmap"[..], b".rev", b".mtimes"].iter().any(|end| name.ends_with(end));
        is_cache && git::pack_stem(name).is_some_and(|stem| self.pack_stems.contains(stem))
    }
}

/// Finds stale files and subdirectories in a directory, and everything below the latter.
fn find(target: BorrowedFd<'_>, dir: &[u8], is_stale: &IsStale<'_>, found: &mut Vec<Vec<u8>>) {
    // A missing directory has no caches.
    let Ok(open) = source::open_dir_below(target, dir) else { return };
    for (name, stat) in source::list(open.as_fd(), is_stale).0 {
        let path = join(dir, &name);
        let Ok(stat) = stat else { continue };
        if stat.kind == EntryKind::Directory {
            find(target, &path, &|_| true, found);
        }
        found.push(path);
    }
}

/// Returns the git directory of a path and the path in it, if it is a path of git objects.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let name = b"objects";
    let is_name = |at: usize| {
        path[at..].starts_with(name)
            && (at == 0 || path[at - 1] == b'/')
            && path.get(at + name.len()).is_none_or(|next| *next == b'/')
    };
    let at = (0..path.len()).rev().find(|at| is_name(*at))?;
    Some((&path[..at.saturating_sub(1)], &path[at..]))
}

/// Returns the pack whose content a file of `objects/pack` is, or whose objects it lists.
fn changed_pack(inner: &[u8]) -> Option<&[u8]> {
    let name = inner.strip_prefix(b"objects/pack/")?;
    let is_content = name.ends_with(b".pack") || name.ends_with(b".idx");
    is_content.then(|| git::pack_stem(name)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_directories_are_recognised_in_paths() {
        for (path, git_dir, inner) in [
            ("a.git/objects/pack/pack-1.idx", "a.git", "objects/pack/pack-1.idx"),
            ("objects/0a", "", "objects/0a"),
            ("a/objects/modules/b/objects", "a/objects/modules/b", "objects"),
        ] {
            let expected = Some((git_dir.as_bytes(), inner.as_bytes()));
            assert_eq!(split(path.as_bytes()), expected, "{path}");
        }
        assert_eq!(split(b"a/my-objects/pack"), None);
        assert_eq!(split(b"a/objects.d/pack"), None);
    }

    #[test]
    fn only_packs_and_their_indexes_make_caches_stale_when_replaced() {
        for (path, is_so) in [
            ("a.git/objects/pack/pack-1.idx", true),
            ("a.git/objects/pack/pack-1.pack", true),
            ("a.git/objects/pack/pack-1.bitmap", false),
            ("a.git/objects/pack/multi-pack-index", false),
            ("a.git/objects/0a/1f", false),
            ("a.git/HEAD", false),
        ] {
            assert_eq!(GitCaches::depend_on(path.as_bytes()), is_so, "{path}");
        }
    }

    #[test]
    fn removing_a_pack_outdates_only_its_own_caches() {
        let mut caches = GitCaches::default();
        caches.removed(b"a.git/objects/pack/pack-1.pack");
        let changes = &caches.0[&b"a.git"[..]];
        for name in ["pack-1.bitmap", "pack-1.rev", "pack-1.mtimes"] {
            assert!(changes.outdate(name.as_bytes()), "{name}");
        }
        for name in ["pack-2.bitmap", "pack-1.keep", "pack-1.pack"] {
            assert!(!changes.outdate(name.as_bytes()), "{name}");
        }
    }
}
