//! Mount points that this process sees.

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// List of the kernel.
const LIST: &str = "/proc/self/mountinfo";

/// A mounted file system, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Number of the device, as text.
    device: Vec<u8>,
    /// Directory of the file system that is mounted.
    root: PathBuf,
    /// Path at which it is mounted.
    pub path: PathBuf,
}

/// Returns all mount points.
pub fn all() -> Result<Vec<MountPoint>> {
    let path = Path::new(LIST);
    let text = std::fs::read(path);
    let text = text.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(read).collect())
}

/// Returns the paths of all mount points.
pub fn paths() -> Result<BTreeSet<PathBuf>> {
    Ok(all()?.into_iter().map(|mount| mount.path).collect())
}

/// Reads a line of the list: number, number of the parent, device, root, path and other fields.
fn read(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ').skip(2);
    let device = fields.next()?.to_owned();
    let [root, path] = [fields.next()?, fields.next()?].map(unescaped);
    Some(MountPoint { device, root, path })
}

/// Replaces the octal numbers that stand for blanks.
fn unescaped(mut left: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    while let Some((first, rest)) = left.split_first() {
        let number = rest.get(..3).filter(|_| *first == b'\\');
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                left = &rest[3..];
            }
            None => {
                bytes.push(*first);
                left = rest;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// A directory or file of a file system, whatever the paths that lead there.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    device: Vec<u8>,
    path: PathBuf,
}

impl Place {
    /// Returns the place of an absolute path without links. The last of several mounts at one path
    /// hides the others.
    pub fn of(path: &Path, mounts: &[MountPoint]) -> Option<Place> {
        let depth = |mount: &&MountPoint| mount.path.components().count();
        let mount =
            mounts.iter().filter(|mount| path.starts_with(&mount.path)).max_by_key(depth)?;
        let inner = path.strip_prefix(&mount.path).ok()?;
        Some(Place { device: mount.device.clone(), path: mount.root.join(inner) })
    }

    /// Returns true if the place is `outer` or below it.
    pub fn is_within(&self, outer: &Place) -> bool {
        self.device == outer.device && self.path.starts_with(&outer.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_the_same_behind_bind_mounts() {
        let lines = [
            &b"20 1 8:1 / / rw - ext4 /dev/sda1 rw"[..],
            b"36 20 8:1 /srv/a\\040b /mnt rw,noatime master:1 - ext4 /dev/sda1 rw",
            b"37 20 8:2 / /srv rw - ext4 /dev/sdb1 rw",
            b"",
        ];
        let mounts: Vec<MountPoint> = lines.iter().copied().filter_map(read).collect();
        assert_eq!(mounts[1].path, Path::new("/mnt"));
        let of = |path: &str| Place::of(Path::new(path), &mounts).expect("mounted");
        assert_eq!(of("/mnt/x"), Place { device: b"8:1".into(), path: "/srv/a b/x".into() });
        assert!(of("/mnt/x").is_within(&of("/mnt")) && !of("/mnt").is_within(&of("/mnt/x")));
        assert!(!of("/srv/x").is_within(&of("/")));
        let mounts = all().expect("lists");
        assert!(mounts.iter().any(|mount| mount.path == Path::new("/proc")));
    }
}
