//! A file that a restore writes.

use crate::entry::Entry;
use crate::target::Unfinished;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// A file to restore.
pub(super) struct Output {
    pub(super) entry: Entry,
    pub(super) path: Vec<u8>,
    pub(super) is_fresh: Arc<AtomicBool>,
    /// Number of outstanding runs, plus one until all runs are known.
    pub(super) remaining: AtomicUsize,
    pub(super) file: Mutex<Option<Unfinished>>,
    /// True if it already has the right content or has failed: nothing more is written.
    pub(super) is_settled: AtomicBool,
}

impl Output {
    /// Adds one outstanding run.
    pub(super) fn expect_run(&self) {
        self.remaining.fetch_add(1, Relaxed);
    }

    /// Returns true if nothing more will be written to the file.
    pub(super) fn is_finished(&self) -> bool {
        self.is_settled.load(Relaxed)
    }
}
