//! Tries out on unnamed files which metadata file systems accept, so that a dry run reports it.
//!
//! Servers and file systems refuse owners and attributes for reasons that no rule foresees: NFS
//! with `root_squash`, CIFS, FAT.

use super::metadata::{ACCESS_ACL, DEFAULT_ACL};
use super::unfinished_name;
use crate::source::{self, Stat};
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, fchown, fremovexattr,
    fsetxattr, openat, unlinkat, utimensat,
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
}

impl Trials {
    /// Returns true if the file system of a directory refuses this owner.
    pub fn refuses_owner(&mut self, dir: BorrowedFd<'_>, owner: (u32, u32)) -> bool {
        let Ok(device) = source::stat_open(dir).map(|stat| stat.device) else { return false };
        if let Some(is_refused) = self.owners.get(&(device, owner.0, owner.1)) {
            return *is_refused;
        }
        let Some((file, stat)) = self.file(dir, device) else { return false };
        let give = |(uid, gid)| fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let is_refused = give(owner).is_err();
        // The next trial begins with a file of this user again.
        let _ = give((stat.uid, stat.gid));
        self.owners.insert((device, owner.0, owner.1), is_refused);
        is_refused
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

/// Creates a file without a name in a directory. Where the file system needs a name, the name is
/// removed at once, and the directory gets its times back.
fn unnamed_file(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match openat(dir, c".", flags | OFlags::TMPFILE, mode) {
        Err(Errno::NOTSUP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        opened => return opened,
    }
    let is_own = |stat: &Stat| stat.uid == rustix::process::geteuid().as_raw();
    let before = source::stat_open(dir).ok().filter(is_own).ok_or(Errno::PERM)?;
    let name = unfinished_name().map_err(|_| Errno::IO)?;
    let file = openat(dir, &name[..], flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    unlinkat(dir, &name[..], AtFlags::empty())?;
    let mtime = before.mtime;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
    };
    utimensat(dir, c".", &times, AtFlags::empty())?;
    Ok(file)
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
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(trials.refuses_owner(open.as_fd(), (own.uid + 1, own.gid)), !is_root);
        assert_eq!(before, stat(dir.path()));
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
    }
}
