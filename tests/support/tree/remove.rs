//! Removes a tree with any depth and any permissions.

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode};

use super::at;

/// Deletes the directory `root` and everything below it.
///
/// Makes directories readable, writable and searchable first, because a tree may deny that to its
/// owner. Removes symbolic links and never follows them. A missing `root` is not an error.
///
/// # Errors
///
/// The first failure to list, change or remove something.
pub fn make_writable_and_remove(root: &Path) -> io::Result<()> {
    match root.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
        Ok(_) => std::fs::set_permissions(root, PermissionsExt::from_mode(0o700))?,
    }
    let top = at::open_top(root)?;
    let directories = open_up(top.as_fd())?;
    // In reverse order, each directory follows all those inside it.
    for directory in directories.iter().rev() {
        empty(top.as_fd(), directory)?;
    }
    std::fs::remove_dir(root)
}

/// Gives the owner all permissions on every directory, and returns them, each before those inside
/// it.
fn open_up(top: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut directories = vec![Vec::new()];
    let mut next = 0;
    while let Some(path) = directories.get(next).cloned() {
        next += 1;
        let dir = at::open_dir(top, &path)?;
        for name in at::names(dir.as_fd())? {
            if is_directory(dir.as_fd(), &name)? {
                rustix::fs::chmodat(&dir, &name[..], Mode::RWXU, AtFlags::empty())?;
                directories.push(at::join(&path, &name));
            }
        }
    }
    Ok(directories)
}

/// Removes the content of a directory whose subdirectories are already empty.
fn empty(top: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
    let dir = at::open_dir(top, path)?;
    for name in at::names(dir.as_fd())? {
        let flags = match is_directory(dir.as_fd(), &name)? {
            true => AtFlags::REMOVEDIR,
            false => AtFlags::empty(),
        };
        rustix::fs::unlinkat(&dir, &name[..], flags)?;
    }
    Ok(())
}

fn is_directory(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    at::metadata(dir, name).map(|metadata: Metadata| metadata.is_dir())
}
