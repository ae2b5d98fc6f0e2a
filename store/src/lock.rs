//! The lock between processes that use the same store.
//!
//! | operation | lock |
//! |---|---|
//! | reading or adding | shared |
//! | deleting, and building the index | exclusive |
//!
//! The operating system holds the lock and releases it when the process ends. There are no stale
//! locks and there is nothing to unlock by hand.

use crate::backend::local::{give_to_owner, is_without_locks};
use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::OnceLock;

/// Name of the file in the store.
pub const FILE: &str = "lock";

/// Mode of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Compatible with other shared locks.
    Shared,
    /// Excludes all other processes.
    Exclusive,
}

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    /// `None` if this user can neither write nor read the lock file.
    file: Option<File>,
    place: String,
    /// Error of a file system without locks.
    unsupported: OnceLock<io::Error>,
}

impl Lock {
    /// Takes the lock of the store in directory `root`, or fails with [`Error::Locked`].
    pub fn take(root: &Path, mode: Mode) -> Result<Lock> {
        let path = root.join(FILE);
        let place = root.display().to_string();
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = match options.open(&path) {
            Ok(file) => {
                give_to_owner(&file, root);
                Some(file)
            }
            Err(error) if is_read_only(&error) => File::open(&path).ok(),
            Err(error) => return Err(Error::store_write(FILE)(error)),
        };
        let lock = Lock { file, place, unsupported: OnceLock::new() };
        lock.change(mode)?;
        Ok(lock)
    }

    /// Returns the error of a file system without locks. The lock then excludes nobody.
    pub fn unsupported(&self) -> Option<&io::Error> {
        self.unsupported.get()
    }

    /// Sets the permission bits of the file, if this user may do so.
    pub fn set_permissions(&self, mode: u32) {
        let Some(file) = &self.file else { return };
        if file.metadata().is_ok_and(|found| found.mode() & 0o777 != mode) {
            // Best effort: users who may not read the file run without a lock.
            let _ = file.set_permissions(Permissions::from_mode(mode));
        }
    }

    /// Changes the mode of a held lock. On failure the lock stays shared.
    pub fn change(&self, mode: Mode) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let operation = match mode {
            Mode::Shared => FlockOperation::NonBlockingLockShared,
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(file, operation) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                // A failed change may have released the lock.
                let _ = flock(file, FlockOperation::NonBlockingLockShared);
                let holder = match mode {
                    Mode::Shared => "another process holds an exclusive lock",
                    Mode::Exclusive => "another process uses the store",
                };
                Err(Error::Locked { place: self.place.clone(), holder })
            }
            // Running without a lock is better than not running; the caller warns.
            Err(error) if is_without_locks(error) => {
                self.unsupported.get_or_init(|| error.into());
                Ok(())
            }
            Err(error) => Err(Error::store_read(FILE)(error.into())),
        }
    }
}

/// Returns true if a write failed because the file system or this user may not write.
pub fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}
