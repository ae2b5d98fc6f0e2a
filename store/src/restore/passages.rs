//! Directories that a restore only passes through.
//!
//! Such directories lead to restored paths without being restored themselves. They are above the
//! paths that were backed up, or above the paths that `--include` selects. The administrator may
//! have replaced one by a link to a larger disk, or changed its mode. A restore keeps both.

use super::{Options, Restore, join};
use crate::entry::{Displayed, Entry, EntryKind, is_within};
use crate::glob::{Globs, ends};
use crate::observe::{Event, Observer};
use crate::source::{self, Stat};
use crate::target::{self, Metadata};
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Distinguishes passed-through directories from restored ones, by paths of the tree.
#[derive(Debug, Clone)]
pub(super) struct Passages {
    /// Directories above the paths that were backed up, unless these contain them, too.
    above_sources: HashSet<Vec<u8>>,
    include: Globs,
}

impl Passages {
    pub(super) fn of(options: &Options) -> Passages {
        let is_source = |path: &[u8]| options.sources.iter().any(|of| is_within(path, of));
        let above = options.sources.iter().flat_map(|path| ends(path).map(|end| &path[..end]));
        let above_sources = above.filter(|path| !is_source(path)).map(<[u8]>::to_vec).collect();
        Passages { above_sources, include: options.include.clone() }
    }

    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.above_sources.contains(path) || !self.include.is_empty() && !self.include.covers(path)
    }
}

/// Returns the reason why nothing is restored below a path that is only passed through.
pub(super) fn not_replaced(kind: EntryKind) -> String {
    format!(
        "{} is here instead of a directory that only leads to restored paths; \
         restore the directory below it with SNAPSHOT:PATH, or move it away",
        kind.name()
    )
}

/// Returns true if a passed-through directory gets the metadata of its entry. It does if a killed
/// restore made it, or if it is empty and belongs to this user.
pub(super) fn gets_metadata(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let names = source::names(source::open_dir_below(dir, b"")?.as_fd())?;
    if names.iter().any(|(name, _)| target::is_mark(name)) {
        return Ok(true);
    }
    let user = rustix::process::geteuid();
    let is_ours = user.is_root() || user.as_raw() == source::stat_open(dir)?.uid;
    Ok(is_ours && names.is_empty())
}

/// Notes that a directory keeps an owner or a mode other than that of its entry.
pub(super) fn note_kept(observer: &dyn Observer, path: &Path, entry: &Entry, stat: &Stat) {
    if !Metadata::of(entry).has_owner_and_mode(stat) {
        let path = path.displayed();
        let note = format!("{path} existed before the restore; keeping its owner and mode");
        observer.event(Event::Note(note));
    }
}

impl Restore<'_> {
    /// Returns true if something else is in the place of a directory that leads to this entry, so
    /// that the entry is not restored.
    pub(super) fn is_blocked(&mut self, entry: &Entry, path: &[u8]) -> bool {
        if self.blocked.as_ref().is_some_and(|dir| is_within(path, dir)) {
            super::add_up(&self.counts.failed, 1);
            return true;
        }
        if entry.kind != EntryKind::Directory || !self.passages.has(&entry.path) {
            return false;
        }
        match self.target.kind_of(path) {
            None | Some(EntryKind::Directory) => false,
            Some(_) if self.ends_at_write_errors => {
                self.end(path, Errno::NOTDIR.into());
                true
            }
            Some(kind) => {
                self.failed(path, not_replaced(kind));
                self.blocked = Some(path.to_vec());
                true
            }
        }
    }

    /// Makes a directory that is only passed through, or decides if an existing one keeps its
    /// metadata. Returns true if it was made.
    pub(super) fn make_passage(&self, path: &[u8]) -> io::Result<bool> {
        let is_made = self.target.make_passage(path)?;
        if is_made {
            self.target.mark(path);
        } else if !self
            .target
            .dir_at(path)
            .and_then(|dir| gets_metadata(dir.as_fd()))
            .unwrap_or(false)
        {
            self.kept_passages.lock().insert(path.to_vec());
        }
        Ok(is_made)
    }

    /// Returns true if a directory that existed before keeps its metadata.
    pub(super) fn is_kept(&self, path: &[u8]) -> bool {
        self.kept_passages.lock().contains(path)
    }

    /// Prepares a directory for its metadata: removes the mark of one that is only passed through.
    pub(super) fn unmark_passage(&self, path: &[u8]) {
        if !self.passages.has(&join(&self.prefix, path)) {
            return;
        }
        if let Err(error) = self.target.unmark(path) {
            self.not_deleted(&join(path, target::MARK.as_bytes()), &error);
        }
    }

    /// Notes that a directory keeps an owner or a mode other than that of its entry.
    pub(super) fn note_kept(&self, path: &[u8], entry: &Entry) {
        let stat = self.target.dir_at(path).and_then(source::stat_open);
        if let Ok(stat) = stat {
            note_kept(self.store.observer(), &self.shown(path), entry, &stat);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_above_sources_and_selected_paths_are_passages() {
        let globs = |patterns: &[&[u8]]| Globs::new(patterns.iter().copied()).expect("globs");
        let with = |sources: &[&[u8]], include: &[&[u8]]| {
            Passages::of(&Options {
                include: globs(include),
                include_each: Vec::new(),
                exclude: globs(&[]),
                delete: false,
                sources: sources.iter().map(|path| path.to_vec()).collect(),
                keep: Default::default(),
                owners: Default::default(),
                owner_record: None,
                ends_at_write_errors: false,
                is_dry: false,
            })
        };
        let passages = with(&[b"srv/data/x", b"etc", b"etc/project"], &[]);
        for (path, is_one) in [
            ("srv", true),
            ("srv/data", true),
            ("srv/data/x", false),
            ("srv/data/x/y", false),
            ("etc", false),
            ("etc/project", false),
        ] {
            assert_eq!(passages.has(path.as_bytes()), is_one, "{path}");
        }
        let passages = with(&[b"srv"], &[b"/srv/a/b"]);
        for (path, is_one) in [("srv", true), ("srv/a", true), ("srv/a/b", false)] {
            assert_eq!(passages.has(path.as_bytes()), is_one, "{path}");
        }
    }
}
