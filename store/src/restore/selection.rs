//! Selects the entries that a restore processes.

use super::Options;
use super::passages::Passages;
use crate::chunks::Chunks;
use crate::entry::{Entry, EntryKind, is_within};
use crate::error::{Error, Result};
use crate::glob::Globs;
use crate::id::ChunkId;
use crate::observe::{Event, Observer};
use crate::source;
use crate::tree::{Lost, TreeReader};

/// Returns the part of every path that is not recreated, and true if the target may get that
/// directory's metadata.
pub(super) fn prefix(root: &ChunkId, from: &[u8], chunks: &dyn Chunks) -> Result<(Vec<u8>, bool)> {
    if from.is_empty() {
        return Ok((Vec::new(), false));
    }
    match TreeReader::within(root, from, chunks).next() {
        Some(Ok(entry)) if entry.path == from && entry.kind != EntryKind::Directory => {
            Ok((source::split(from).0.to_vec(), false))
        }
        // The entry of a directory may be lost while that of a path in it is not.
        Some(first) => Ok((from.to_vec(), first.is_ok_and(|entry| entry.path == from))),
        None => Err(Error::NoSuchPath(crate::entry::display_path(from))),
    }
}

impl Options {
    /// Returns true if a path of the tree itself is selected.
    pub(super) fn selects(&self, path: &[u8]) -> bool {
        !self.exclude.covers(path) && (self.include.is_empty() || self.include.covers(path))
    }
}

/// Returns entries that match the options, and the directories above them.
pub(super) fn selected<'a>(
    root: &ChunkId,
    from: &[u8],
    options: &'a Options,
    chunks: &'a dyn Chunks,
) -> impl Iterator<Item = Result<Entry, Lost>> + 'a {
    let mut held: Vec<Entry> = Vec::new();
    let all = TreeReader::within(root, from, chunks);
    let near = if options.include.is_empty() { all } else { all.only_near(&options.include) };
    near.flat_map(move |item| {
        let entry = match item {
            Ok(entry) => entry,
            lost => return vec![lost],
        };
        held.retain(|dir| is_within(&entry.path, &dir.path));
        if options.exclude.covers(&entry.path) {
            return Vec::new();
        }
        if !options.include.is_empty() && !options.include.covers(&entry.path) {
            if entry.kind == EntryKind::Directory {
                held.push(entry);
            }
            return Vec::new();
        }
        held.drain(..).chain([entry]).map(Ok).collect()
    })
}

/// Returns the number of entries and bytes to restore. Warns of patterns that match no entry.
pub(super) fn totals(
    root: &ChunkId,
    from: &[u8],
    options: &Options,
    chunks: &dyn Chunks,
    observer: &dyn Observer,
) -> Result<(u64, u64)> {
    if from.is_empty() && options.include.is_empty() && options.exclude.is_empty() {
        // The restore itself reports an unreadable root. A root that claims to be empty is not
        // believed.
        if let Ok(Some(totals)) = crate::tree::totals(root, chunks)
            && totals.0 > 0
        {
            return Ok(totals);
        }
    }
    let mut unmatched: Vec<&(String, Globs)> = options.include_each.iter().collect();
    let (mut entries, mut bytes) = (0, 0u64);
    let (passages, mut has_only_passages) = (Passages::of(options), true);
    for item in selected(root, from, options, chunks) {
        entries += 1;
        has_only_passages &= item.as_ref().is_ok_and(|entry| passages.has(&entry.path));
        if let Ok(entry) = item {
            bytes = bytes.saturating_add(entry.size);
            unmatched.retain(|(_, globs)| !globs.covers(&entry.path));
        }
    }
    let has_match = |globs: &Globs| {
        let mut near = TreeReader::within(root, from, chunks).only_near(globs).flatten();
        !options.exclude.is_empty() && near.any(|entry| globs.covers(&entry.path))
    };
    for (pattern, globs) in unmatched {
        let text = match has_match(globs) {
            true => format!("--exclude skips every path that matches {pattern}"),
            false => format!("no path of the snapshot matches {pattern}"),
        };
        observer.event(Event::Warning(text));
    }
    // Directories above excluded source paths serve no purpose.
    Ok(if has_only_passages { (0, 0) } else { (entries, bytes) })
}
