//! Removing what the target has and the snapshot has not.

use super::{Options, Restore, relative, selected};
use crate::entry::{Kind, is_within, path_cmp};
use crate::error::{Error, Result};
use crate::glob::Globs;
use crate::id::ChunkId;
use crate::observe::Event;
use crate::source;
use crate::tree::TreeReader;
use crate::walk::{Base, Rules, Step, Walk};
use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

impl Restore<'_> {
    /// Removes what the target has and the snapshot has not.
    pub(super) fn delete(
        &mut self,
        root: &ChunkId,
        from: &[u8],
        options: &Options,
        get: &dyn Fn(&ChunkId) -> Result<Vec<u8>>,
    ) -> Result<()> {
        if self.lost {
            let note = "nothing was deleted: parts of the snapshot's tree cannot be read";
            self.store.observer().event(Event::Note(note.into()));
            return Ok(());
        }
        for path in extra(&self.root, self.target.dir(), root, from, &self.prefix, options, get)? {
            match self.target.remove(&path) {
                Ok(()) => drop(self.counts.deleted.fetch_add(1, Relaxed)),
                Err(error) => self.failed_io(&path, &error),
            }
        }
        if self.counts.deleted.load(Relaxed) == 0 {
            return Ok(());
        }
        // Removing changed the times of directories that were right before.
        let dirs = selected(root, from, options, get).flatten();
        for entry in dirs.filter(|entry| entry.kind == Kind::Directory) {
            let path = relative(&entry.path, &self.prefix).to_vec();
            if !path.is_empty() {
                let _ = self.target.finish_dir(&path, &entry, false);
            }
        }
        Ok(())
    }
}

/// Paths below the target that the selected part of the tree does not have; a
/// directory stands for everything in it.
pub(super) fn extra(
    shown: &Path,
    dir: std::os::fd::BorrowedFd<'_>,
    root: &ChunkId,
    from: &[u8],
    prefix: &[u8],
    options: &Options,
    get: &dyn Fn(&ChunkId) -> Result<Vec<u8>>,
) -> Result<Vec<Vec<u8>>> {
    let failed = |source| Error::Target { path: shown.to_owned(), source };
    let dir = dir.try_clone_to_owned().map_err(failed)?;
    let stat = source::stat_open(&dir).map_err(failed)?;
    let base = Arc::new(Base { path: prefix.to_vec(), dir });
    let rules = Rules {
        exclude: Globs::new([])?,
        one_file_system: false,
        exclude_caches: false,
        never: Vec::new(),
        scan_git_dirs: false,
        git_dirs: false,
    };
    let mut tree = TreeReader::within(root, from, get).flatten().peekable();
    let mut extra: Vec<Vec<u8>> = Vec::new();
    for step in Walk::new(base, stat, rules, 1) {
        let Step::Found(found) = step else { continue };
        let path = found.path;
        if extra.last().is_some_and(|last| is_within(&path, last)) || path == prefix {
            continue;
        }
        while tree.next_if(|entry| path_cmp(&entry.path, &path) == Ordering::Less).is_some() {}
        let is_known = tree.peek().is_some_and(|entry| entry.path == path);
        let may_go = options.delete_below.iter().any(|dir| path != *dir && is_within(&path, dir))
            && !options.exclude.covers(&path)
            && !options.keep.covers(&path)
            && (options.include.is_empty() || options.include.covers(&path));
        if !is_known && may_go {
            extra.push(path);
        }
    }
    Ok(extra.iter().map(|path| relative(path, prefix).to_vec()).collect())
}
