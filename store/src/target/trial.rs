//! Tries out on unnamed files which metadata file systems accept, so that a dry run reports it.
//!
//! Servers and file systems refuse owners, modes, attributes and symbolic links for reasons that no
//! rule foresees: NFS with `root_squash`, CIFS, FAT.

use super::metadata::{ACCESS_ACL, DEFAULT_ACL};
use super::unfinished_name;
use crate::source::{self, Stat};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, fchmod, fchown,
    fremovexattr, fsetxattr, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Unnamed files, by device. `None` on a file system that has none.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    files: HashMap<u64, Option<(OwnedFd, Stat)>>,
    /// Known results, by device, user and group.
    owners: HashMap<(u64, u32, u32), bool>,
    /// Known errors of symbolic links, by device.
    links: HashMap<u64, Option<Errno>>,
}

impl Trials {
    /// Returns true if the file system of a directory refuses or ignores this owner.
    pub fn refuses_owner(&mut self, dir: BorrowedFd<'_>, owner: (u32, u32)) -> bool {
        let Ok(device) = source::stat_open(dir).map(|stat| stat.device) else { return false };
        if let Some(is_refused) = self.owners.get(&(device, owner.0, owner.1)) {
            return *is_refused;
        }
        let Some((file, stat)) = self.file(dir, device) else { return false };
        let give = |(uid, gid)| fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let has = |stat: Stat| (stat.uid, stat.gid) == owner;
        let is_refused = give(owner).is_err() || !source::stat_open(file).is_ok_and(has);
        // The next trial begins with a file of this user again.
        let _ = give((stat.uid, stat.gid));
        self.owners.insert((device, owner.0, owner.1), is_refused);
        is_refused
    }

    /// Sets the mode of a new file in the file system of a directory.
    pub fn set_mode(&mut self, dir: BorrowedFd<'_>, mode: u32) -> rustix::io::Result<()> {
        let Ok(device) = source::stat_open(dir).map(|stat| stat.device) else { return Ok(()) };
        let Some((file, stat)) = self.file(dir, device) else { return Ok(()) };
        if stat.mode == mode {
            return Ok(());
        }
        let set = fchmod(file, Mode::from_raw_mode(mode));
        let _ = fchmod(file, Mode::from_raw_mode(stat.mode));
        set
    }

    /// Makes a symbolic link in a directory and removes it.
    pub fn make_symlink(&mut self, dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let Ok(device) = source::stat_open(dir).map(|stat| stat.device) else { return Ok(()) };
        let try_out = || {
            // File systems that have unnamed files have symbolic links. No link is made there.
            if tmpfile(dir).is_ok() {
                return None;
            }
            let name = unfinished_name().ok()?;
            let tried = with_times_kept(dir, || {
                symlinkat(c"trial", dir, &name[..])?;
                unlinkat(dir, &name[..], AtFlags::empty())
            });
            // Other errors are of this directory or of this user.
            tried.err().filter(|error| [Errno::PERM, Errno::NOTSUP, Errno::NOSYS].contains(error))
        };
        self.links.entry(device).or_insert_with(try_out).map_or(Ok(()), Err)
    }

    /// Sets or removes an attribute of a file in the file system of a directory.
    pub fn change_xattr(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        value: Option<&[u8]>,
    ) -> rustix::io::Result<()> {
        let Ok(device) = source::stat_open(dir).map(|stat| stat.device) else { return Ok(()) };
        let Some((file, _)) = self.file(dir, device) else { return Ok(()) };
        // Only directories have this one.
        let name = if name == DEFAULT_ACL.as_bytes() { ACCESS_ACL.as_bytes() } else { name };
        let name = OsStr::from_bytes(name);
        let set = value.map(|value| fsetxattr(file, name, value, XattrFlags::empty()));
        let removed = match fremovexattr(file, name) {
            Err(Errno::NODATA) => Ok(()),
            removed => removed,
        };
        set.unwrap_or(removed)
    }

    fn file(&mut self, dir: BorrowedFd<'_>, device: u64) -> Option<&(OwnedFd, Stat)> {
        let make = || {
            let file = unnamed_file(dir).ok()?;
            let stat = source::stat_open(&file).ok()?;
            Some((file, stat))
        };
        self.files.entry(device).or_insert_with(make).as_ref()
    }
}

const OPEN: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC);
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

fn tmpfile(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    openat(dir, c".", OPEN | OFlags::TMPFILE, PRIVATE)
}

/// Creates a file without a name in a directory. Where the file system needs a name, the name is
/// removed at once, and the directory gets its times back.
fn unnamed_file(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    match tmpfile(dir) {
        Err(Errno::NOTSUP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        opened => return opened,
    }
    let name = unfinished_name().map_err(|_| Errno::IO)?;
    with_times_kept(dir, || {
        let file = openat(dir, &name[..], OPEN | OFlags::CREATE | OFlags::EXCL, PRIVATE)?;
        unlinkat(dir, &name[..], AtFlags::empty())?;
        Ok(file)
    })
}

/// Does some work in a directory and gives it its times back. Fails if that is not allowed.
fn with_times_kept<T>(
    dir: BorrowedFd<'_>,
    work: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let is_own = |stat: &Stat| stat.uid == rustix::process::geteuid().as_raw();
    let before = source::stat_open(dir).ok().filter(is_own).ok_or(Errno::ACCESS)?;
    let done = work()?;
    let mtime = before.mtime;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
    };
    utimensat(dir, c".", &times, AtFlags::empty())?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn trials_leave_no_trace_and_know_what_the_kernel_refuses() {
        let dir = tempfile::tempdir().expect("a directory");
        let stat = |path| {
            let found = fs::metadata(path).expect("is there");
            (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec())
        };
        let before = stat(dir.path());
        let open = source::open_dir(dir.path()).expect("opens");
        let mut trials = Trials::default();
        let own = source::stat_open(&open).expect("is open");
        for _ in 0..2 {
            assert!(!trials.refuses_owner(open.as_fd(), (own.uid, own.gid)));
            for value in [Some(&b"1"[..]), None] {
                assert!(trials.change_xattr(open.as_fd(), b"unknown.x", value).is_err());
            }
            assert!(trials.change_xattr(open.as_fd(), b"user.x", Some(b"1")).is_ok());
            assert!(trials.change_xattr(open.as_fd(), b"user.x", None).is_ok());
        }
        assert!(trials.set_mode(open.as_fd(), 0o4755).is_ok());
        assert!(trials.make_symlink(open.as_fd()).is_ok());
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(trials.refuses_owner(open.as_fd(), (own.uid + 1, own.gid)), !is_root);
        assert_eq!(before, stat(dir.path()));
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
    }
}
