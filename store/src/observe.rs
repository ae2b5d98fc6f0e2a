//! Reports of a running operation to its caller: counters to read at any time, and events as they
//! happen. Libraries never print; they report through this module.

use crate::error::{Error, Result};
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// An event worth a line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A source path could not be read; it is not in the snapshot. Changes the exit code.
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The reason.
        reason: Reason,
    },
    /// Metadata of a path could not be read; everything else of the path is in the snapshot.
    /// Changes the exit code.
    MetadataUnreadable {
        /// The path.
        path: PathBuf,
        /// The missing metadata and the reason.
        reason: Reason,
    },
    /// A file changed while it was read; the bytes that were read are stored.
    ChangedWhileRead(PathBuf),
    /// A file could not be compared with the previous snapshot, because it is not of the expected
    /// format. It is stored like any other file.
    StoredPlainly {
        /// Path of the file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// An unchanged file is stored again, because the store lost a part of it. The report contains
    /// the total.
    StoredAgain(PathBuf),
    /// A path could not be restored completely. Changes the exit code.
    NotRestored {
        /// The path.
        path: PathBuf,
        /// The reason.
        reason: Reason,
    },
    /// A path that the snapshot lacks could not be removed. Changes the exit code.
    NotDeleted {
        /// The path.
        path: PathBuf,
        /// The reason.
        reason: Reason,
    },
    /// A path was restored with its content, but some of its metadata was refused. Changes
    /// the exit code.
    MetadataRefused {
        /// The path.
        path: PathBuf,
        /// The rejected metadata and the reason.
        reason: Reason,
    },
    /// A problem that does not end this run.
    Warning(String),
    /// Other information for the user.
    Note(String),
}

/// Reason why something could not be read, restored or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Description.
    pub text: String,
    /// Cause, if it may concern many paths.
    pub cause: Cause,
}

/// Cause that may concern many paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cause {
    /// This user may not write there, or the file system is read-only.
    Denied,
    /// The restore could not create a directory above.
    DirectoryNotCreated,
    /// The process or the machine has no file descriptor left.
    OutOfFiles,
    /// Any other cause.
    #[default]
    Other,
}

impl From<&io::Error> for Cause {
    fn from(error: &io::Error) -> Cause {
        match Errno::from_io_error(error) {
            Some(Errno::ACCESS | Errno::ROFS) => Cause::Denied,
            Some(Errno::MFILE | Errno::NFILE) => Cause::OutOfFiles,
            _ => Cause::Other,
        }
    }
}

impl From<&io::Error> for Reason {
    fn from(error: &io::Error) -> Reason {
        Reason { text: error.to_string(), cause: error.into() }
    }
}

impl From<&Error> for Reason {
    fn from(error: &Error) -> Reason {
        let cause = match error {
            Error::StoreRead { source, .. } if Cause::from(source) == Cause::OutOfFiles => {
                Cause::OutOfFiles
            }
            _ => Cause::Other,
        };
        Reason { text: error.to_string(), cause }
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Reason {
        Reason { text, cause: Cause::Other }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Reason {
        text.to_owned().into()
    }
}

/// Counters of a running operation. They only grow.
#[derive(Debug, Default)]
pub struct Progress {
    /// Number of files and other entries processed.
    pub entries_done: AtomicU64,
    /// Plain bytes processed.
    pub bytes_done: AtomicU64,
    /// Expected number of entries; 0 if unknown.
    pub entries_total: AtomicU64,
    /// Expected number of bytes; 0 if unknown.
    pub bytes_total: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Asks the operation to end soon with [`Error::Interrupted`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Fails if [`stop`](Self::stop) was called.
    pub fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Adds processed entries and bytes.
    pub fn add(&self, entries: u64, bytes: u64) {
        self.entries_done.fetch_add(entries, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets the expected numbers of entries and bytes.
    pub fn expect(&self, entries: u64, bytes: u64) {
        self.entries_total.store(entries, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
    }
}

/// Receives events from several threads at once.
pub trait Observer: Send + Sync {
    /// Called for each event. Must return soon.
    fn event(&self, event: Event);
    /// Returns the counters of this operation.
    fn progress(&self) -> &Progress;
    /// Returns true if computing totals in advance is worth some work.
    fn wants_totals(&self) -> bool {
        false
    }
}

/// Ignores all events.
#[derive(Debug, Default)]
pub struct Silent(Progress);

impl Observer for Silent {
    fn event(&self, _: Event) {}
    fn progress(&self) -> &Progress {
        &self.0
    }
}
