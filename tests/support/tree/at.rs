//! Reaching the files of a tree from a handle on its top directory.
//!
//! Paths in here are bytes relative to that top, with `/` between the names;
//! the empty path is the top itself. They may be longer than the kernel takes
//! in one call, so they are walked name by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

/// The most the kernel gives back for one attribute, or for a list of names.
const XATTR_MAX: usize = 65_536;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the top directory of a tree, which may be named through a symbolic
/// link: only below it are links never followed.
pub(super) fn open_top(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens the directory `path` below `top` for reading.
pub(super) fn open_dir(top: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let (parent, name) = open_parent(top, path)?;
    Ok(rustix::fs::openat(&parent, name, DIRECTORY | OFlags::RDONLY, Mode::empty())?)
}

/// Opens the directory that holds `path`, and gives the last name of `path`
/// (`.` for the top directory). The handle serves for `…at` calls only.
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

/// `O_PATH` asks for no read permission on the directories on the way.
fn step(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, DIRECTORY | OFlags::PATH, Mode::empty())?)
}

/// Opens a regular file for reading.
pub(super) fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    // Without NONBLOCK, a FIFO that took the file's place would hang the test.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?.into())
}

/// The names in a directory, without `.` and `..`.
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

/// The metadata of whatever has this name, a symbolic link included.
pub(super) fn metadata(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Metadata> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    File::from(handle).metadata()
}

/// The target of a symbolic link, byte for byte.
pub(super) fn link_target(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Removes one name that is not a directory.
pub(super) fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// All extended attributes of a file of any kind; none where the file system
/// does not have them.
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

/// A short path to a name in an open directory, for the calls that have no
/// `…at` form.
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

/// The path of `name` in the directory `dir`.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, b"/", name].concat()
}

/// A path for people: printable whatever bytes it has, `.` for the top.
pub(super) fn show(path: &[u8]) -> String {
    if path.is_empty() {
        return ".".to_owned();
    }
    path.escape_ascii().to_string()
}
