//! Who may work on a store beside whom.
//!
//! | runs | lock |
//! |---|---|
//! | everything that reads or adds | shared |
//! | what deletes, and building the index | exclusive |
//!
//! The lock is the operating system's and dies with its process: there is no
//! stale lock and nothing to unlock by hand.

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
    /// Why this file system has no locks, if it has none.
    unsupported: OnceLock<io::Error>,
}

impl Lock {
    /// Takes the lock of the store in directory `root`, or says who has it.
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

    /// Why there are no locks here, if that turned out. Nobody is kept away then.
    pub fn unsupported(&self) -> Option<&io::Error> {
        self.unsupported.get()
    }

    /// Gives the file these permission bits, if that is for this user to do.
    pub fn set_permissions(&self, mode: u32) {
        let Some(file) = &self.file else { return };
        if file.metadata().is_ok_and(|found| found.mode() & 0o777 != mode) {
            // Best effort: who may not read the file goes on without a lock.
            let _ = file.set_permissions(Permissions::from_mode(mode));
        }
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
            // Better without a lock than not at all; the caller warns.
            Err(error) if is_without_locks(error) => {
                self.unsupported.get_or_init(|| error.into());
                Ok(())
            }
            Err(error) => Err(Error::store_read(FILE)(error.into())),
        }
    }
}

/// Whether writing failed because this place or this user may not be written by.
pub fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}
