//! Mount points that this process sees.

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
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

/// Returns the mount points that a process sees.
pub fn of_process(process: u32) -> Result<Vec<MountPoint>> {
    let path = PathBuf::from(format!("/proc/{process}/mountinfo"));
    let text = std::fs::read(&path).map_err(|source| Error::Read { path, source })?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(read).collect())
}

/// Returns the numbers of all processes.
pub fn processes() -> Vec<u32> {
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Returns the mount points of all namespaces that this process may look at, its own first.
pub fn of_all_namespaces() -> Result<Vec<MountPoint>> {
    let mut seen = BTreeSet::new();
    let mut found = all()?;
    seen.extend(std::fs::read_link("/proc/self/ns/mnt").ok());
    for process in processes() {
        // Processes end, and some belong to others.
        let Ok(namespace) = std::fs::read_link(format!("/proc/{process}/ns/mnt")) else { continue };
        if seen.insert(namespace) {
            found.extend(of_process(process).unwrap_or_default());
        }
    }
    Ok(found)
}

/// Returns the directories at or below a path without links that are mounted elsewhere, too. Such a
/// mount follows a directory that is renamed. `mounts` are those of all namespaces, and `own` those of
/// this process.
pub fn seen_elsewhere(path: &Path, own: &[MountPoint], mounts: &[MountPoint]) -> Vec<PathBuf> {
    let Some(place) = Place::of(path, own) else { return Vec::new() };
    let followed = mounts.iter().filter(|mount| mount.device == place.device).filter_map(|mount| {
        let inner = mount.root.strip_prefix(&place.path).ok()?;
        let inner: PathBuf = path.join(inner).components().collect();
        (mount.path != inner).then_some(inner)
    });
    let followed: BTreeSet<PathBuf> = followed.filter(|path| path.is_dir()).collect();
    followed.into_iter().collect()
}

/// Returns a text by which a directory is known again as long as it exists, also after a restart of
/// the machine: its number, and the time at which it was made or else the number of its file system.
/// `None` for anything but a directory.
pub fn identity(dir: &Path) -> Option<String> {
    let metadata = dir.symlink_metadata().ok().filter(std::fs::Metadata::is_dir)?;
    let made = metadata.created().ok();
    let made = made.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let which = match made.filter(|time| !time.is_zero()) {
        Some(made) => format!("made at {}", made.as_nanos()),
        None => format!("on {:x}", rustix::fs::statvfs(dir).ok()?.f_fsid),
    };
    Some(format!("{} {which}", metadata.ino()))
}

/// Returns the paths of all mount points.
pub fn paths() -> Result<BTreeSet<PathBuf>> {
    Ok(all()?.into_iter().map(|mount| mount.path).collect())
}

/// Returns true if a mount point shows other data than the directory below. Services have mounts of
/// their own that do not.
pub fn shows_other_data(path: &Path, mounts: &[MountPoint]) -> bool {
    let is_other = |mount: &&MountPoint| mount.path != path;
    let below: Vec<MountPoint> = mounts.iter().filter(is_other).cloned().collect();
    Place::of(path, mounts) != Place::of(path, &below)
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

    /// Returns the path from `outer` to the place, if it is there or below.
    pub fn below<'p>(&'p self, outer: &Place) -> Option<&'p Path> {
        if self.device != outer.device {
            return None;
        }
        self.path.strip_prefix(&outer.path).ok()
    }

    /// Returns true if the place is `outer` or below it.
    pub fn is_within(&self, outer: &Place) -> bool {
        self.below(outer).is_some()
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
        let more =
            [&b"38 37 8:2 /x /srv/x rw - ext4 /dev/sdb1 rw"[..], b"39 37 8:2 / /srv rw - e /d rw"];
        let stacked: Vec<MountPoint> = lines.into_iter().chain(more).filter_map(read).collect();
        let shows = ["/", "/mnt", "/srv", "/srv/x", "/none"]
            .map(|path| shows_other_data(Path::new(path), &stacked));
        assert_eq!(shows, [true, true, true, false, false]);
        // The mount follows the directory, but not one beside it.
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().canonicalize().expect("resolves");
        let inner = dir.join("inner");
        std::fs::create_dir(&inner).expect("a directory");
        let mount = |root: &Path, path: &Path| MountPoint {
            device: b"8:1".into(),
            root: root.to_owned(),
            path: path.to_owned(),
        };
        let own = [mount(Path::new("/"), Path::new("/"))];
        let elsewhere = [mount(&inner, Path::new("/elsewhere"))];
        let followed = |path: &Path| seen_elsewhere(path, &own, &elsewhere);
        assert_eq!((followed(&dir), followed(&inner)), (vec![inner.clone()], vec![inner.clone()]));
        assert!(followed(&dir.join("other")).is_empty() && followed(&inner.join("x")).is_empty());
        assert!(seen_elsewhere(&dir, &own, &own).is_empty());
        let known = identity(&inner);
        std::fs::rename(&inner, dir.join("renamed")).expect("renames");
        std::fs::create_dir(&inner).expect("a directory");
        assert!(known.is_some() && identity(&inner) != known);
        assert_eq!((identity(&dir.join("renamed")), identity(Path::new("/absent"))), (known, None));
        let mounts = all().expect("lists");
        assert!(mounts.iter().any(|mount| mount.path == Path::new("/proc")));
    }
}
