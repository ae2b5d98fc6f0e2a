//! Counts what a backup will read, for observers that show progress.

use super::roots::Source;
use crate::entry::EntryKind;
use crate::observe::Progress;
use crate::walk::{Rules, Step, Walk};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Adds up everything at and below `sources` and reports it to `progress`, unless `is_over` is set
/// first.
///
/// Skips unreadable paths, because the backup itself reports them.
pub fn survey(sources: &[Source], rules: &Rules, progress: &Progress, is_over: &AtomicBool) {
    let (mut entries, mut bytes) = (0, 0u64);
    let rules = Rules { git_dirs: false, scan_git_dirs: false, ..rules.clone() };
    for source in sources {
        if source.stat.kind != EntryKind::Directory {
            entries += 1;
            bytes = bytes.saturating_add(source.stat.size);
            continue;
        }
        let Ok(root) = source.open(&rules.exclude.named) else { continue };
        for step in Walk::new(root, source.stat, rules.clone(), 0) {
            if is_over.load(Relaxed) {
                return;
            }
            if let Step::Found(found) = step {
                entries += 1;
                let size = if found.stat.kind == EntryKind::File { found.stat.size } else { 0 };
                // Sparse files may have any size.
                bytes = bytes.saturating_add(size);
            }
        }
    }
    progress.expect(entries, bytes);
}
