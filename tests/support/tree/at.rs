//! Access to the files of a tree through an open top directory.
//!
//! Paths are bytes relative to that directory, with `/` between the names; the empty path is the
//! directory itself. They may be longer than the kernel accepts in one call, so each name is opened
//! separately.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Limit of the kernel for one attribute, and for a list of names, in bytes.
const XATTR_MAX: usize = 65_536;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the top directory of a tree. Its path may contain symbolic links; links below it are never
/// followed.
pub(super) fn open_top(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens the directory `path` below `top` for reading.
pub(super) fn open_dir(top: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let (parent, name) = open_parent(top, path)?;
    Ok(rustix::fs::openat(&parent, name, DIRECTORY | OFlags::RDONLY, Mode::empty())?)
}

/// Opens the directory that holds `path`, and returns the last name of `path` (`.` for the top
/// directory). The handle is only valid for `…at` calls.
pub(super) fn open_parent<'p>(
    top: BorrowedFd<'_>,
    path: &'p [u8],
) -> io::Result<(OwnedFd, &'p [u8])> {
    let (parent, name) = split(path);
    let mut dir = step(top, b".")?;
    for name in parent.split(|&byte| byte == b'/') {
        if !name.is_empty() {
            dir = step(dir.as_fd(), name)?;
        }
    }
    Ok((dir, name))
}

/// Opens the next directory. `O_PATH` requires no read permission on it.
fn step(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, DIRECTORY | OFlags::PATH, Mode::empty())?)
}

/// Opens a regular file for reading.
pub(super) fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    // Without NONBLOCK, a FIFO that replaced the file would hang the test.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?.into())
}

/// Returns the names in a directory, without `.` and `..`.
pub(super) fn names(dir: BorrowedFd<'_>) -> io::Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(name.to_vec());
        }
    }
    Ok(names)
}

/// Returns the metadata of an object, without following a symbolic link.
pub(super) fn metadata(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Metadata> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    File::from(handle).metadata()
}

/// Returns the target of a symbolic link, byte for byte.
pub(super) fn link_target(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Removes one name that is not a directory.
pub(super) fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Returns all extended attributes of a file of any kind; none if the file system does not support
/// them.
pub(super) fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = proc_path(dir, name);
    let mut list = vec![0; XATTR_MAX];
    let length = match rustix::fs::llistxattr(&path, &mut list[..]) {
        Err(Errno::NOTSUP) => 0,
        length => length?,
    };
    let mut xattrs = BTreeMap::new();
    for xattr in list[..length].split(|&byte| byte == 0) {
        if !xattr.is_empty() {
            xattrs.insert(xattr.to_vec(), xattr_value(&path, xattr)?);
        }
    }
    Ok(xattrs)
}

fn xattr_value(path: &[u8], xattr: &[u8]) -> io::Result<Vec<u8>> {
    let mut value = vec![0; XATTR_MAX];
    let length = rustix::fs::lgetxattr(path, xattr, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// Returns a short path to a name in an open directory, for calls without an `…at` form.
pub(super) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Splits a path into the directory it is in and its last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None if path.is_empty() => (b"", b"."),
        None => (b"", path),
    }
}

/// Returns the path of `name` in the directory `dir`.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, b"/", name].concat()
}

/// Formats a path for people: printable with any bytes, `.` for the top.
pub(super) fn show(path: &[u8]) -> String {
    if path.is_empty() {
        return ".".to_owned();
    }
    path.escape_ascii().to_string()
}
