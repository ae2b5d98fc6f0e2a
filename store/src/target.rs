//! Making files below a directory, and nowhere else.
//!
//! Every path is opened step by step from the target directory without following
//! a symbolic link, whatever a tree says and whoever swaps directories meanwhile.

use crate::entry::{Entry, Kind, Time};
use crate::source;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, chmod, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, renameat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Names of files that are not complete yet begin with this. A hash of the final name
/// follows, so that whoever restores the same file again replaces what a killed run left.
const UNFINISHED: &str = ".forgekeep-unfinished-";

/// The attribute that holds an ACL.
const ACCESS_ACL: &str = "system.posix_acl_access";
/// The attribute that holds the ACL of what is made in a directory.
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// A directory into which something is restored.
pub struct Target {
    dir: OwnedFd,
    uid: u32,
    gid: u32,
    /// Whether some directory gives an ACL to what is made in it.
    gives_acl: AtomicBool,
    /// Entries whose owner could not be set.
    pub owner_denied: AtomicU64,
    /// Attributes that could not be set here.
    pub xattr_denied: AtomicU64,
}

/// A file being written.
pub struct Unfinished {
    file: File,
    parent: OwnedFd,
    /// Name it is written under.
    name: Vec<u8>,
    /// Name it gets when it is finished, unless that is the same.
    rename_to: Option<Vec<u8>>,
    /// Whether the directory it is in gives it another group.
    may_inherit: bool,
    /// It has its metadata and its name; until then dropping removes it.
    is_finished: bool,
}

impl Target {
    /// Everything is made below `dir`.
    pub fn new(dir: OwnedFd) -> Target {
        Target {
            gives_acl: AtomicBool::new(has_default_acl(&dir)),
            dir,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            owner_denied: AtomicU64::new(0),
            xattr_denied: AtomicU64::new(0),
        }
    }

    /// The directory itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    fn parent<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            None => (&b""[..], path),
            Some(at) => (&path[..at], &path[at + 1..]),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok((source::open_below(self.dir(), parent, flags)?, name))
    }

    /// Makes a directory that only we can enter; false if there is one already.
    /// Anything else of that name is replaced.
    pub fn make_dir(&self, path: &[u8]) -> io::Result<bool> {
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        if source::stat_at(parent.as_fd(), name)?.kind == Kind::Directory {
            if source::open_dir_below(parent.as_fd(), name).is_ok_and(has_default_acl) {
                self.gives_acl.store(true, Ordering::Relaxed);
            }
            return Ok(false);
        }
        unlinkat(&parent, name, AtFlags::empty())?;
        mkdirat(&parent, name, Mode::RWXU)?;
        Ok(true)
    }

    /// Begins a file. It is written under another name until it is complete, unless it
    /// is in a fresh directory and written at once: then a part of it is shorter than it.
    pub fn begin(&self, path: &[u8], is_fresh: bool, at_once: bool) -> io::Result<Unfinished> {
        let (parent, name) = self.parent(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let (may_inherit, is_finished) = (!is_fresh, false);
        if is_fresh && at_once {
            match openat(&parent, name, flags, mode) {
                Ok(file) => {
                    let (file, name, rename_to) = (file.into(), name.to_vec(), None);
                    return Ok(Unfinished {
                        file,
                        parent,
                        name,
                        rename_to,
                        may_inherit,
                        is_finished,
                    });
                }
                Err(Errno::EXIST) => {} // somebody else made it just now
                Err(error) => return Err(error.into()),
            }
        }
        let hash = blake3::hash(name).to_hex();
        let temporary = format!("{UNFINISHED}{}", &hash[..16]).into_bytes();
        let file = match openat(&parent, &temporary[..], flags, mode) {
            Err(Errno::EXIST) => {
                unlinkat(&parent, &temporary[..], AtFlags::empty())?;
                openat(&parent, &temporary[..], flags, mode)?
            }
            file => file?,
        };
        let (file, name, rename_to) = (file.into(), temporary, Some(name.to_vec()));
        Ok(Unfinished { file, parent, name, rename_to, may_inherit, is_finished })
    }

    /// Gives a written file its metadata and its name.
    pub fn finish(&self, mut unfinished: Unfinished, entry: &Entry) -> io::Result<()> {
        self.metadata_open(&unfinished.file, entry, unfinished.may_inherit, 0o600)?;
        if let Some(name) = &unfinished.rename_to {
            renameat(&unfinished.parent, &unfinished.name[..], &unfinished.parent, &name[..])?;
        }
        unfinished.is_finished = true;
        Ok(())
    }

    /// Gives an existing directory its metadata.
    pub fn finish_dir(&self, path: &[u8], entry: &Entry, is_fresh: bool) -> io::Result<()> {
        let dir = source::open_dir_below(self.dir(), path)?;
        let mode = if is_fresh { 0o700 } else { u32::MAX };
        self.metadata_open(&dir, entry, !is_fresh, mode)
    }

    /// Gives an existing file that already has the right content its metadata.
    pub fn refresh_file(&self, path: &[u8], entry: &Entry) -> io::Result<()> {
        // Attributes that the entry does not have would stay; so the file is made anew
        // only where its content differs.
        let file = source::open_file_below(self.dir(), path)?;
        for (name, _) in source::xattrs_open(&file)? {
            if !entry.xattrs.iter().any(|(wanted, _)| *wanted == name) {
                self.note_xattr(rustix::fs::fremovexattr(&file, OsStr::from_bytes(&name)))?;
            }
        }
        self.metadata_open(&file, entry, true, u32::MAX)
    }

    /// Makes a symbolic link, FIFO, socket or device.
    pub fn make_other(&self, path: &[u8], entry: &Entry, is_fresh: bool) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        if !is_fresh {
            match unlinkat(&parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mode = Mode::from_raw_mode(entry.mode);
        let make = |kind, device| mknodat(&parent, name, kind, mode, device);
        let device = entry.device.map_or(0, |(major, minor)| makedev(major, minor));
        match entry.kind {
            Kind::Symlink => symlinkat(&entry.target[..], &parent, name)?,
            Kind::Fifo => make(FileType::Fifo, 0)?,
            Kind::Socket => make(FileType::Socket, 0)?,
            Kind::CharDevice => make(FileType::CharacterDevice, device)?,
            Kind::BlockDevice => make(FileType::BlockDevice, device)?,
            Kind::File | Kind::Directory => unreachable!("made elsewhere"),
        }
        let (uid, gid) = (entry.owner.uid, entry.owner.gid);
        if !is_fresh || (uid, gid) != (self.uid, self.gid) {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            self.note_owner(chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        }
        // No call takes a directory and a name; the kernel's own view of the open directory does.
        let seen = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
        let seen = CString::new(seen).map_err(io::Error::other)?;
        if entry.kind != Kind::Symlink {
            set_mode(parent.as_fd(), name, entry.kind, mode)?;
            if !is_fresh || self.gives_acl.load(Ordering::Relaxed) {
                // Where there is none, there is nothing to remove.
                let _ = rustix::fs::lremovexattr(&seen, ACCESS_ACL);
            }
        }
        for (name, value) in &entry.xattrs {
            let name = OsStr::from_bytes(name);
            self.note_xattr(rustix::fs::lsetxattr(&seen, name, value, XattrFlags::empty()))?;
        }
        if let Some(mtime) = entry.mtime {
            utimensat(&parent, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Makes `path` another name of `first`, both below the target.
    pub fn make_link(&self, first: &[u8], path: &[u8], is_fresh: bool) -> io::Result<()> {
        let (from, from_name) = self.parent(first)?;
        let (to, to_name) = self.parent(path)?;
        if !is_fresh {
            if let (Ok(a), Ok(b)) =
                (source::stat_at(from.as_fd(), from_name), source::stat_at(to.as_fd(), to_name))
                && (a.device, a.inode) == (b.device, b.inode)
            {
                return Ok(());
            }
            match unlinkat(&to, to_name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(linkat(&from, from_name, &to, to_name, AtFlags::empty())?)
    }

    /// Removes a path with everything below it.
    pub fn remove(&self, path: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let device = source::stat_at(parent.as_fd(), name)?.device;
        remove_all(parent.as_fd(), name, device)
    }

    /// Owner, mode, attributes, times: in this order, since each of the first
    /// undoes parts of the next ones.
    fn metadata_open(
        &self,
        file: impl AsFd,
        entry: &Entry,
        may_inherit: bool,
        mode: u32,
    ) -> io::Result<()> {
        let file = file.as_fd();
        let (uid, gid) = (entry.owner.uid, entry.owner.gid);
        let is_ours = !may_inherit && (uid, gid) == (self.uid, self.gid);
        if !is_ours {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            self.note_owner(fchown(file, uid, gid))?;
        }
        if entry.mode != mode {
            fchmod(file, Mode::from_raw_mode(entry.mode))?;
        }
        if may_inherit || self.gives_acl.load(Ordering::Relaxed) {
            self.remove_inherited(file, entry)?;
        }
        for (name, value) in &entry.xattrs {
            let name = OsStr::from_bytes(name);
            self.note_xattr(fsetxattr(file, name, value, XattrFlags::empty()))?;
        }
        if let Some(mtime) = entry.mtime {
            futimens(file, &times(mtime))?;
        }
        Ok(())
    }

    /// Takes away the ACLs that the directory gave, or that were there, and the entry has not.
    fn remove_inherited(&self, file: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        for (name, _) in source::xattrs_open(file)? {
            let is_acl = name == ACCESS_ACL.as_bytes() || name == DEFAULT_ACL.as_bytes();
            if is_acl && !entry.xattrs.iter().any(|(wanted, _)| *wanted == name) {
                self.note_xattr(rustix::fs::fremovexattr(file, OsStr::from_bytes(&name)))?;
            }
        }
        Ok(())
    }

    fn note_owner(&self, result: rustix::io::Result<()>) -> io::Result<()> {
        note(result, &self.owner_denied)
    }

    fn note_xattr(&self, result: rustix::io::Result<()>) -> io::Result<()> {
        note(result, &self.xattr_denied)
    }
}

/// What this user or file system does not allow is counted, not an error for each file.
fn note(result: rustix::io::Result<()>, denied: &AtomicU64) -> io::Result<()> {
    match result {
        Err(Errno::PERM | Errno::NOTSUP | Errno::INVAL | Errno::ACCESS) => {
            denied.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        result => Ok(result?),
    }
}

impl Unfinished {
    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // Best effort: the reason why it is removed is being reported.
            let _ = unlinkat(&self.parent, &self.name[..], AtFlags::empty());
        }
    }
}

fn has_default_acl(dir: impl AsFd) -> bool {
    rustix::fs::fgetxattr(dir, DEFAULT_ACL, &mut [0_u8; 0][..]).is_ok()
}

/// Sets the mode of what was just made, and of nothing that took its place meanwhile.
fn set_mode(parent: BorrowedFd<'_>, name: &[u8], kind: Kind, mode: Mode) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(parent, name, flags, Mode::empty())?;
    if source::stat_open(&made)?.kind != kind {
        return Err(io::Error::other("something else took its place"));
    }
    Ok(chmod(format!("/proc/self/fd/{}", made.as_raw_fd()), mode)?)
}

fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
    }
}

/// Removes what is on this device; a file system mounted in it is not entered.
fn remove_all(parent: BorrowedFd<'_>, name: &[u8], device: u64) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let dir = source::open_dir_below(parent, name)?;
    if source::stat_open(&dir)?.device != device {
        return Err(Errno::XDEV.into());
    }
    for (inner, _) in source::names(dir.as_fd())? {
        remove_all(dir.as_fd(), &inner, device)?;
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}
