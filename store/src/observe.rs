//! What a running operation tells its caller: counters to look at any time, and
//! events as they happen. Libraries never print; this is how they speak.

use crate::error::{Error, Result};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Something worth a line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A source path could not be read; it is not in the snapshot. Changes the exit code.
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Metadata of a path could not be read; all else of it is in the snapshot. Changes the
    /// exit code.
    MetadataUnreadable {
        /// Which one.
        path: PathBuf,
        /// Which metadata, and why.
        reason: String,
    },
    /// A file changed while it was read; what is stored is what was read.
    ChangedWhileRead(PathBuf),
    /// A file that could not be compared with the snapshot before for not being what it
    /// seems. It is stored like any other.
    StoredPlainly {
        /// Which one.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An unchanged file is stored again because the store lost some of it. The report sums
    /// that up.
    StoredAgain(PathBuf),
    /// A path could not be restored completely. Changes the exit code.
    NotRestored {
        /// Which one.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A path that the snapshot lacks could not be removed. Changes the exit code.
    NotDeleted {
        /// Which one.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A path was restored with its content, but some of its metadata was refused. Changes
    /// the exit code.
    MetadataRefused {
        /// Which one.
        path: PathBuf,
        /// What was refused, and why.
        reason: String,
    },
    /// Something is not as it should be, though this run goes on.
    Warning(String),
    /// Anything else a person may want to know.
    Note(String),
}

/// Counters of a running operation. All of them only grow.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files and other entries dealt with.
    pub entries_done: AtomicU64,
    /// Plain bytes dealt with.
    pub bytes_done: AtomicU64,
    /// Entries to expect; 0 while unknown.
    pub entries_total: AtomicU64,
    /// Bytes to expect; 0 while unknown.
    pub bytes_total: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Asks the operation to end soon with [`Error::Interrupted`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Fails once [`stop`](Self::stop) was called.
    pub fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Counts dealt-with things.
    pub fn add(&self, entries: u64, bytes: u64) {
        self.entries_done.fetch_add(entries, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Says what to expect.
    pub fn expect(&self, entries: u64, bytes: u64) {
        self.entries_total.store(entries, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
    }
}

/// Hears events, from several threads at once.
pub trait Observer: Send + Sync {
    /// Called as it happens. Must return soon.
    fn event(&self, event: Event);
    /// The counters of this operation.
    fn progress(&self) -> &Progress;
    /// Whether it is worth some work to know beforehand how much there will be.
    fn wants_totals(&self) -> bool {
        false
    }
}

/// Hears nothing.
#[derive(Debug, Default)]
pub struct Silent(Progress);

impl Observer for Silent {
    fn event(&self, _: Event) {}
    fn progress(&self) -> &Progress {
        &self.0
    }
}
