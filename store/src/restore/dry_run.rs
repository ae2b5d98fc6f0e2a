//! What a restore would do.

use super::content::has_content;
use super::delete::extra;
use super::{Options, Report, relative, selected};
use crate::entry::{Entry, Kind};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::observe::Event;
use crate::source;
use crate::store::Store;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Counts what a restore would do.
pub(super) fn dry_run(
    store: &Store,
    root: &ChunkId,
    from: &[u8],
    prefix: &[u8],
    target: &Path,
    options: &Options,
) -> Result<Report> {
    let get = |id: &ChunkId| store.chunk(id);
    let mut report = Report::default();
    // A target that is not there, or cannot be looked into, has nothing yet.
    let dir = source::open_dir(target).ok();
    let is_there = |entry: &Entry| {
        let path = relative(&entry.path, prefix);
        dir.as_ref()
            .is_some_and(|dir| has_content(store, dir.as_fd(), path, entry).unwrap_or(false))
    };
    for item in selected(root, from, options, &get) {
        match item {
            Ok(entry) if entry.path == prefix => {}
            Ok(entry) => match entry.kind {
                Kind::File if is_there(&entry) => report.files_unchanged += 1,
                Kind::File => {
                    report.files_restored += 1;
                    report.bytes_restored = report.bytes_restored.saturating_add(entry.size);
                }
                Kind::Directory => report.dirs += 1,
                _ => report.others += 1,
            },
            Err(lost) => {
                report.failed += 1;
                let path = target.join(OsStr::from_bytes(relative(&lost.from, prefix)));
                let reason = lost.error.to_string();
                store.observer().event(Event::NotRestored { path, reason });
            }
        }
    }
    if options.delete && target.exists() && report.failed == 0 {
        let failed = |source| Error::Target { path: target.to_owned(), source };
        let dir = source::open_dir(target).map_err(failed)?;
        for path in extra(target, dir.as_fd(), store, root, prefix, options)? {
            report.deleted += 1;
            let path = target.join(OsStr::from_bytes(&path));
            store.observer().event(Event::Note(format!("would delete {}", path.display())));
        }
    }
    Ok(report)
}
