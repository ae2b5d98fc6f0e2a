//! The lock between processes that use the same store.
//!
//! | operation | lock |
//! |---|---|
//! | reading or adding | shared |
//! | deleting, and building the index | exclusive |
//!
//! The operating system holds the lock and releases it when the process ends. There are no stale
//! locks and there is nothing to unlock by hand.

use crate::backend::local::{give_to_owner, is_without_locks, open_regular};
use crate::error::{Error, Result};
use crate::text::Displayed;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
        let place = root.displayed();
        let writable = OFlags::RDWR | OFlags::CREATE;
        let file = match open(&path, writable) {
            Ok(file) => {
                give_to_owner(&file, root);
                Some(file)
            }
            Err(error) if is_read_only(&error) => open(&path, OFlags::RDONLY).ok(),
            Err(error) => return Err(Error::store_write(FILE)(error)),
        };
        let lock = Lock { file, place, unsupported: OnceLock::new() };
        lock.change(mode)?;
        Ok(lock)
    }

    /// Takes the lock for reading. Without a usable lock file, reading goes on without the lock.
    pub fn take_to_read(root: &Path) -> Result<Lock> {
        match Lock::take(root, Mode::Shared) {
            Err(Error::StoreWrite { source, .. } | Error::StoreRead { source, .. }) => {
                let place = root.displayed();
                Ok(Lock { file: None, place, unsupported: source.into() })
            }
            taken => taken,
        }
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
            Err(Errno::WOULDBLOCK) => {
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

/// Opens a lock file. Its owner and mode are set later, so a link or a device in its place must not
/// be opened: they would be those of a file outside the store.
fn open(path: &Path, access: OFlags) -> io::Result<File> {
    open_regular(path, access | OFlags::NOFOLLOW).map_err(|error| match error.kind() {
        io::ErrorKind::Other => io::Error::other(format!("{error}; remove it")),
        _ => error,
    })
}

/// Returns true if a write failed because the file system or this user may not write.
pub fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_never_changes_a_file_outside_the_store() {
        let dir = tempfile::tempdir().expect("a directory");
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "x").expect("writes");
        std::fs::set_permissions(&outside, Permissions::from_mode(0o644)).expect("sets");
        let root = dir.path().join("store");
        std::fs::create_dir(&root).expect("creates");
        std::os::unix::fs::symlink(&outside, root.join(FILE)).expect("links");
        let error = Lock::take(&root, Mode::Shared).expect_err("a link");
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert_eq!(outside.metadata().expect("there").mode() & 0o777, 0o644);

        std::fs::remove_file(root.join(FILE)).expect("removes");
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join(FILE), 0o600.into()).expect("a pipe");
        let error = Lock::take(&root, Mode::Shared).expect_err("a pipe");
        assert!(error.to_string().contains("not a regular file"), "{error}");

        std::fs::remove_file(root.join(FILE)).expect("removes");
        Lock::take(&root, Mode::Exclusive).expect("a new file");
    }
}
