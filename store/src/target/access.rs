//! Predicts which writes below a target the system refuses.

use super::{Rights, is};
use crate::access;
use crate::source::{self, Stat, split};
use rustix::fs::{
    AtFlags, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags, fstatvfs, statx,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Returns the error of making or removing a name in the directory `path` below `root`. Returns
/// `None` if the system permits it, and if the directory is missing.
fn refusal(root: BorrowedFd<'_>, path: &[u8]) -> Option<io::Error> {
    match source::open_below(root, path, DIR) {
        Ok(dir) => refusal_in(&dir),
        // The nearest directory that can be opened forbids entering those below it.
        Err(error) if is(&error, Errno::ACCESS) && !path.is_empty() => refusal(root, split(path).0),
        Err(_) => None,
    }
}

/// Returns the error in an open directory of the target.
fn refusal_in(dir: &OwnedFd) -> Option<io::Error> {
    let error = access::refusal_in(dir)?;
    let is_own = || source::stat_open(dir).is_ok_and(|stat| is_own(&stat));
    (error != Errno::ACCESS || !is_own()).then(|| error.into())
}

/// Returns true for objects of this user. A restore makes its own directories writable for a time.
fn is_own(stat: &Stat) -> bool {
    stat.uid == geteuid().as_raw()
}

/// Like [`refusal`], of removing or replacing the object at `path`, if there is one.
pub(crate) fn removal_refusal(root: BorrowedFd<'_>, path: &[u8]) -> Option<io::Error> {
    let (parent, name) = split(path);
    if let Some(error) = refusal(root, parent) {
        return Some(error);
    }
    let dir = source::open_below(root, parent, DIR).ok()?;
    let (above, stat) = (source::stat_open(&dir).ok()?, source::stat_at(dir.as_fd(), name).ok()?);
    let user = geteuid();
    // Only owners remove names in a directory such as /tmp.
    let is_sticky = above.mode & 0o1000 != 0 && !user.is_root();
    let is_kept = is_sticky && ![above.uid, stat.uid].contains(&user.as_raw());
    if is_kept || is_immutable(dir.as_fd(), name) {
        return Some(Errno::PERM.into());
    }
    source::is_mount_root(dir.as_fd(), name).then(|| Errno::BUSY.into())
}

/// Returns the error of removing the object at `path` with everything below it.
pub(crate) fn tree_removal_refusal(root: BorrowedFd<'_>, path: &[u8]) -> Option<io::Error> {
    if let Some(error) = removal_refusal(root, path) {
        return Some(error);
    }
    let dir = match source::open_dir_below(root, path) {
        Err(error) if is(&error, Errno::ACCESS) => {
            let (parent, name) = split(path);
            let above = source::open_below(root, parent, DIR).ok()?;
            let is_own = source::stat_at(above.as_fd(), name).is_ok_and(|stat| is_own(&stat));
            return (!is_own).then_some(error);
        }
        dir => dir.ok()?,
    };
    let names = source::names(dir.as_fd()).ok()?;
    names.iter().find_map(|(name, _)| tree_removal_refusal(dir.as_fd(), name))
}

/// Returns the error of changing mode or times of the object at `path`.
pub(crate) fn metadata_refusal(
    root: BorrowedFd<'_>,
    path: &[u8],
    stat: &Stat,
    rights: &Rights,
) -> Option<Errno> {
    let open = source::open_below(root, path, OFlags::PATH).ok()?;
    let is_read_only =
        fstatvfs(&open).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    if is_read_only {
        return Some(Errno::ROFS);
    }
    (!rights.owns(stat.uid) || is_immutable(open.as_fd(), b"")).then_some(Errno::PERM)
}

/// Returns true if not even root may change the object of this name, or the open object.
fn is_immutable(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let found = statx(dir, name, flags, StatxFlags::empty());
    found.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::IMMUTABLE))
}
