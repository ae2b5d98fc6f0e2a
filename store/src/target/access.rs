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
pub(crate) fn removal_refusal(
    root: BorrowedFd<'_>,
    path: &[u8],
    rights: &Rights,
) -> Option<io::Error> {
    let (parent, name) = split(path);
    if let Some(error) = refusal(root, parent) {
        let is_about_attributes = is(&error, Errno::PERM);
        return is_about_attributes.then(|| protection(root, path)).flatten().or(Some(error));
    }
    let dir = source::open_below(root, parent, DIR).ok()?;
    let (above, stat) = (source::stat_open(&dir).ok()?, source::stat_at(dir.as_fd(), name).ok()?);
    // Only owners remove names in a directory such as /tmp.
    let is_kept = above.mode & 0o1000 != 0 && !is_own(&above) && !rights.owns((stat.uid, stat.gid));
    if is_kept {
        return Some(Errno::PERM.into());
    }
    if let Some(error) = protection(root, path) {
        return Some(error);
    }
    source::is_mount_root(dir.as_fd(), name).then(|| Errno::BUSY.into())
}

/// Returns the number of paths that removing the object at `path` with everything below it removes, or
/// the error.
pub(crate) fn tree_removal(root: BorrowedFd<'_>, path: &[u8], rights: &Rights) -> io::Result<u64> {
    if let Some(error) = removal_refusal(root, path, rights) {
        return Err(error);
    }
    let dir = match source::open_dir_below(root, path) {
        Err(error) if is(&error, Errno::ACCESS) => {
            let (parent, name) = split(path);
            let above = source::open_below(root, parent, DIR);
            let is_own = above.is_ok_and(|above| {
                source::stat_at(above.as_fd(), name).is_ok_and(|stat| is_own(&stat))
            });
            // What is in it is not known before it is made accessible.
            return if is_own { Ok(1) } else { Err(error) };
        }
        Err(_) => return Ok(1),
        Ok(dir) => dir,
    };
    let mut count = 1;
    for (name, _) in source::names(dir.as_fd()).unwrap_or_default() {
        count += tree_removal(dir.as_fd(), &name, rights)?;
    }
    Ok(count)
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
    let is_refused = !rights.owns((stat.uid, stat.gid)) || attribute(open.as_fd(), b"").is_some();
    is_refused.then_some(Errno::PERM)
}

/// Returns the error of an attribute that keeps even root from changing or replacing the object at
/// `path`: one of the object, or of its directory.
pub(crate) fn protection(root: BorrowedFd<'_>, path: &[u8]) -> Option<io::Error> {
    let (parent, name) = split(path);
    let dir = source::open_below(root, parent, DIR).ok()?;
    let on = |name, whose| Some((attribute(dir.as_fd(), name)?, whose));
    let ((attribute, flag), whose) = on(name, "it").or_else(|| on(b"", "its directory"))?;
    let text = format!(
        "Operation not permitted: {whose} has the attribute {attribute}; remove it with chattr -{flag}"
    );
    Some(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Returns true if an attribute keeps even root from changing the object at `path`, and from making
/// another name of it.
pub(crate) fn is_protected(root: BorrowedFd<'_>, path: &[u8]) -> bool {
    let (parent, name) = split(path);
    let dir = source::open_below(root, parent, DIR);
    dir.is_ok_and(|dir| attribute(dir.as_fd(), name).is_some())
}

/// Returns the attribute that keeps even root from changing an object, with its letter. An empty
/// name means the open object itself.
fn attribute(dir: BorrowedFd<'_>, name: &[u8]) -> Option<(&'static str, char)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let has = statx(dir, name, flags, StatxFlags::empty()).ok()?.stx_attributes;
    let attributes = [
        (StatxAttributes::IMMUTABLE, "immutable", 'i'),
        (StatxAttributes::APPEND, "append-only", 'a'),
    ];
    attributes.into_iter().find(|(bit, ..)| has.contains(*bit)).map(|(_, name, flag)| (name, flag))
}

/// Returns true for a directory in which names can be made, but neither removed nor replaced. A
/// file cannot get its final name there.
pub(crate) fn is_append_only(dir: BorrowedFd<'_>) -> bool {
    attribute(dir, b"").is_some_and(|(_, flag)| flag == 'a')
}
