//! Counts what a backup will read, for observers that show progress.

use super::Root;
use super::ingest::absolute;
use crate::entry::EntryKind;
use crate::observe::Progress;
use crate::source;
use crate::walk::{OpenRoot, Rules, Step, Walk};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Adds up everything below `roots` and reports it to `progress`, unless `is_over` is set first.
///
/// Skips unreadable paths, because the backup itself reports them.
pub fn survey(roots: &[Root], rules: &Rules, progress: &Progress, is_over: &AtomicBool) {
    let (mut entries, mut bytes) = (0, 0u64);
    let rules = Rules { git_dirs: false, scan_git_dirs: false, ..rules.clone() };
    for root in roots {
        if root.stat.kind != EntryKind::Directory {
            entries += 1;
            bytes = bytes.saturating_add(root.stat.size);
            continue;
        }
        let Ok(dir) = source::open_dir(&absolute(&root.path)) else { continue };
        let open_root = Arc::new(OpenRoot { path: root.path.clone(), dir });
        for step in Walk::new(open_root, root.stat, rules.clone(), 0) {
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
