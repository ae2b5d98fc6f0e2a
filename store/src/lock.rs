//! Who may work on a store beside whom.
//!
//! | runs | lock |
//! |---|---|
//! | everything that reads or adds | shared |
//! | what deletes, and building the index | exclusive |
//!
//! The lock is the operating system's and dies with its process: there is no
//! stale lock and nothing to unlock by hand.

use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::path::Path;

/// Name of the file in the store.
pub const FILE: &str = "lock";

/// How much of the store a process needs for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Beside others of this mode.
    Shared,
    /// Alone.
    Exclusive,
}

/// A held lock; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    /// `None` where the store lies on a medium that cannot be written.
    file: Option<File>,
    place: String,
}

impl Lock {
    /// Takes the lock of the store in directory `root`, or says who has it.
    pub fn take(root: &Path, mode: Mode) -> Result<Lock> {
        let path = root.join(FILE);
        let place = root.display().to_string();
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match file {
            Ok(file) => Some(file),
            Err(error) if is_read_only(&error) => File::open(&path).ok(),
            Err(error) => return Err(Error::store_write(FILE)(error)),
        };
        let lock = Lock { file, place };
        lock.change(mode)?;
        Ok(lock)
    }

    /// Changes the mode of a held lock, or leaves it held as shared.
    pub fn change(&self, mode: Mode) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let operation = match mode {
            Mode::Shared => FlockOperation::NonBlockingLockShared,
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(file, operation) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                // A failed change may have let go of what was held.
                let _ = flock(file, FlockOperation::NonBlockingLockShared);
                let holder = match mode {
                    Mode::Shared => "another process needs it alone",
                    Mode::Exclusive => "another process uses it",
                };
                Err(Error::Locked { place: self.place.clone(), holder })
            }
            // A file system without locks has no second process to tell of either.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => Ok(()),
            Err(error) => Err(Error::store_read(FILE)(error.into())),
        }
    }
}

/// Whether writing failed because this place or this user may not be written by.
pub fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}
