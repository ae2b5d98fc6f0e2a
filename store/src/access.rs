//! Predicts which writes the system refuses, so that a dry run reports them without writing.

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, openat};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Opens the nearest directory at or above a path. Fails if the system refuses to make the
/// directories that are missing below it.
pub(crate) fn open_nearest_dir(path: &Path) -> io::Result<OwnedFd> {
    let mut is_missing = false;
    for dir in path.ancestors() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, dir, flags, Mode::empty()) {
            Err(Errno::NOENT) if dir.symlink_metadata().is_err() => is_missing = true,
            // Another object, or a link to a missing one, has the name.
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::EXIST.into()),
            Err(error) => return Err(error.into()),
            Ok(open) => {
                let refusal = if is_missing { refusal_in(&open) } else { None };
                return refusal.map_or(Ok(open), |error| Err(error.into()));
            }
        }
    }
    Err(Errno::NOENT.into())
}

/// Returns the error of making or removing a name in an open directory; `None` if the system
/// permits it.
pub(crate) fn refusal_in(dir: impl AsFd) -> Option<Errno> {
    let access = Access::WRITE_OK | Access::EXEC_OK;
    accessat(dir, c".", access, AtFlags::EACCESS).err()
}
