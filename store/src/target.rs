//! Creates files below a directory, and nowhere else.
//!
//! Every path is opened step by step from the target directory without following symbolic links. A
//! tree or a process that swaps directories cannot lead it elsewhere. Several restores may write
//! into one directory: each removes and renames only files that are provably its own.

use crate::entry::{Entry, EntryKind, Time, is_within, path_cmp};
use crate::random;
use crate::source::{self, Stat, split};
use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT,
    XattrFlags, chmod, chownat, fchmod, flock, fremovexattr, fsetxattr, futimens, linkat, makedev,
    mkdirat, mknodat, openat, readlinkat, removexattr, renameat, renameat_with, setxattr,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Prefix of the names of incomplete files; random digits follow. The writer holds a lock on its
/// file, so a killed restore left any unlocked one.
const UNFINISHED: &str = ".forgekeep-unfinished-";

/// Stands in a target that gets the metadata of a directory, until it has them: a restore that
/// ends early leaves it, and the next one goes on.
pub const MARK: &str = ".forgekeep-unfinished-restore";

/// The attribute that holds an ACL.
const ACCESS_ACL: &str = "system.posix_acl_access";
/// Attribute that holds the ACL for objects created in a directory.
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Seconds since 1970 that every file system can hold: FAT begins in 1980, and signed 32 bits end
/// in 2038.
const TIMES_HELD_EVERYWHERE: std::ops::RangeInclusive<i64> = 315_532_800..=i32::MAX as i64;

/// First and last times of file systems, in seconds since 1970: of FAT, of signed and unsigned 32
/// bits, of ext4, of XFS. A time beyond one of them is stored as that.
const FIRST_TIMES: [i64; 3] = [i32::MIN as i64, 0, 315_532_800];
const LAST_TIMES: [i64; 5] =
    [i32::MAX as i64, u32::MAX as i64, 4_354_819_198, 15_032_385_535, 16_299_260_424];

/// Steps of the times of file systems, in nanoseconds: of NTFS, of UDF, of exFAT, of old ext4 and
/// HFS+, of FAT.
const TIME_STEPS: [i128; 5] = [100, 1_000, 10_000_000, 1_000_000_000, 2_000_000_000];

/// Maximum attempts at an operation that other processes may disturb.
const TRIES: usize = 8;

/// Permissions that an owner needs to work in a directory.
const OWNER_ALL: u32 = 0o700;

/// A directory into which a restore writes.
pub struct Target {
    dir: OwnedFd,
    uid: u32,
    rights: Rights,
    /// True if a directory here gives an ACL to objects created in it.
    gives_acl: AtomicBool,
    /// Original modes of directories that were made writable.
    opened_up: Mutex<HashMap<Vec<u8>, u32>>,
    /// Number of entries whose owner could not be set.
    pub owner_denied: AtomicU64,
    /// Number of attributes that could not be set here.
    pub xattr_denied: AtomicU64,
}

/// Rights of this user to set metadata.
pub struct Rights {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Rights {
    /// Returns the rights of this process.
    pub fn of_process() -> Rights {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        // Without the list, only the group of the process counts.
        let groups = getgroups().unwrap_or_default().into_iter().map(Gid::as_raw);
        Rights { uid, gid, groups: groups.chain([gid]).collect() }
    }

    /// Returns true for root, who may set everything.
    pub fn are_all(&self) -> bool {
        self.uid == 0
    }

    /// Returns true if this user may set mode and times of an object with this owner.
    pub fn owns(&self, uid: u32) -> bool {
        self.are_all() || self.uid == uid
    }

    /// Returns user and group of a new object in a directory.
    pub fn new_owner(&self, dir: Option<&Stat>) -> (u32, u32) {
        let gid = dir.filter(|dir| dir.mode & 0o2000 != 0).map(|dir| dir.gid);
        (self.uid, gid.unwrap_or(self.gid))
    }

    /// Returns user and group of an object after the restore of an entry gave it its owner. They
    /// differ from those of the entry if this user may not set them.
    pub fn given_owner(&self, is: (u32, u32), entry: &Entry) -> (u32, u32) {
        let wanted = (entry.owner.uid, entry.owner.gid);
        if is == wanted || self.are_all() {
            return wanted;
        }
        let may_set_group = is.0 == self.uid && self.groups.contains(&wanted.1);
        (is.0, if may_set_group { wanted.1 } else { is.1 })
    }

    /// Returns the mode for an entry whose object has this user and group.
    ///
    /// The kernel drops setgid without an error if this user is not in the group. Another attempt
    /// would only change the ctime.
    pub fn given_mode(&self, owner: (u32, u32), entry: &Entry) -> u32 {
        let may_set_group = self.are_all() || self.groups.contains(&owner.1);
        safe_mode(entry, owner) & if may_set_group { !0 } else { !0o2000 }
    }
}

/// How a directory came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It existed before.
    Found,
    /// Nothing had its name.
    New,
    /// An object of this kind was removed for it.
    Replacing(EntryKind),
}

/// Metadata that could not be set on an entry, with reasons. The content is complete.
#[derive(Debug, Default)]
#[must_use]
pub struct Refused(Vec<String>);

/// A file being written.
pub struct Unfinished {
    file: File,
    /// State of the file right after its creation.
    stat: Stat,
    parent: OwnedFd,
    /// Name while it is written.
    name: Vec<u8>,
    /// Final name, unless it is the same.
    rename_to: Option<Vec<u8>>,
    /// True if it has its metadata and its final name. Until then, dropping removes the file.
    is_finished: bool,
}

/// An open object whose metadata is set.
#[derive(Clone, Copy)]
struct Node<'a> {
    fd: BorrowedFd<'a>,
    /// Directory and name of an object that can only be opened with `O_PATH`.
    at: Option<(BorrowedFd<'a>, &'a [u8])>,
}

impl Refused {
    /// Returns true if everything was set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn note(&mut self, what: &str, error: &io::Error) {
        self.0.push(format!("{what}: {error}"));
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl Target {
    /// Creates a target for files below `dir`. Removes files that killed restores left there.
    pub fn new(dir: OwnedFd) -> Target {
        let target = Target {
            gives_acl: AtomicBool::new(false),
            dir,
            uid: geteuid().as_raw(),
            rights: Rights::of_process(),
            opened_up: Mutex::default(),
            owner_denied: AtomicU64::new(0),
            xattr_denied: AtomicU64::new(0),
        };
        target.meet_dir(b"");
        target
    }

    /// Marks a directory as one that gets the metadata of an entry when all below it is restored.
    pub fn mark(&self, dir: &[u8]) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // Best effort: without it a restore that is taken up again leaves the mode alone.
        if let Ok(dir) = self.dir_at(dir) {
            let _ = openat(dir, MARK, flags, Mode::RUSR | Mode::WUSR);
        }
    }

    /// Removes the mark of a directory.
    pub fn unmark(&self, dir: &[u8]) -> io::Result<()> {
        ignore_missing(unlinkat(self.dir_at(dir)?, MARK, AtFlags::empty()))
    }

    /// Brings everything written to stable storage, so that an error of the disk, or of a server
    /// that was asked late, is reported. Returns the first error since the target was opened.
    pub fn sync(&self) -> io::Result<()> {
        match rustix::fs::syncfs(&self.dir) {
            Err(Errno::NOSYS | Errno::NOTSUP | Errno::INVAL) => Ok(()),
            synced => Ok(synced?),
        }
    }

    /// The directory itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    fn parent<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = split(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok((source::open_below(self.dir(), parent, flags)?, name))
    }

    /// Returns true if a path is on another file system than the target directory.
    pub fn is_elsewhere(&self, path: &[u8]) -> bool {
        let device = |dir: BorrowedFd<'_>| source::stat_open(dir).ok().map(|stat| stat.device);
        let mut dir = split(path).0;
        loop {
            match source::open_below(self.dir(), dir, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(open) => return device(open.as_fd()) != device(self.dir()),
                Err(_) if dir.is_empty() => return false,
                Err(_) => dir = split(dir).0,
            }
        }
    }

    /// Runs `work` in the directory `dir`. If a directory owned by this user denies access, makes
    /// it writable and retries; its mode is restored later.
    fn work_in<T>(&self, dir: &[u8], mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if is(&error, Errno::ACCESS) && self.open_up(dir) => work(),
            result => result,
        }
    }

    /// Makes a directory and those above it writable for this user. Returns true if that changed
    /// any of them.
    fn open_up(&self, dir: &[u8]) -> bool {
        let ends = dir.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        let mut is_changed = false;
        for end in [0].into_iter().chain(ends).chain([dir.len()]) {
            let path = &dir[..end];
            let Ok(opened) = self.dir_at(path) else { return is_changed };
            let Ok(stat) = source::stat_open(&opened) else { return is_changed };
            if stat.uid != self.uid || stat.mode & OWNER_ALL == OWNER_ALL {
                continue;
            }
            let node = Node { fd: opened.as_fd(), at: Some((self.dir(), path)) };
            // Locked, so that modes are not put back between the change and its record.
            let mut opened_up = self.opened_up.lock();
            if node.chmod(stat.mode | OWNER_ALL).is_ok() {
                opened_up.entry(path.to_vec()).or_insert(stat.mode);
                is_changed = true;
            }
        }
        // Another thread may have done it first.
        is_changed || self.opened_up.lock().keys().any(|path| is_within(dir, path))
    }

    /// Opens a directory below the target, for the system calls that take a path below it.
    pub fn dir_at(&self, path: &[u8]) -> io::Result<OwnedFd> {
        source::open_below(self.dir(), path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Restores the modes of directories that were made writable for a time.
    pub fn put_modes_back(&self) {
        let mut dirs: Vec<(Vec<u8>, u32)> = self.opened_up.lock().drain().collect();
        dirs.sort_by(|(a, _), (b, _)| path_cmp(b, a));
        for (path, mode) in dirs {
            if let Ok(dir) = self.dir_at(&path) {
                // Best effort: another process may have taken away the right meanwhile.
                let _ = Node { fd: dir.as_fd(), at: Some((self.dir(), &path)) }.chmod(mode);
            }
        }
    }

    /// Creates a directory that only this user can enter, unless it exists. Replaces any other
    /// object of that name.
    pub fn make_dir(&self, path: &[u8]) -> io::Result<Made> {
        self.work_in(split(path).0, || self.try_make_dir(path))
    }

    /// Creates a directory that only this user can enter. Returns false if it already exists. Never
    /// replaces another object.
    pub fn make_passage(&self, path: &[u8]) -> io::Result<bool> {
        let made = self.work_in(split(path).0, || {
            let (parent, name) = self.parent(path)?;
            Ok(mkdirat(&parent, name, Mode::RWXU)?)
        });
        match made {
            Err(error) if is(&error, Errno::EXIST) => {
                self.dir_at(path)?;
                self.meet_dir(path);
                Ok(false)
            }
            made => made.map(|()| true),
        }
    }

    fn try_make_dir(&self, path: &[u8]) -> io::Result<Made> {
        let (parent, name) = self.parent(path)?;
        let mut replaced = None;
        for _ in 0..TRIES {
            match mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) => return Ok(replaced.map_or(Made::New, Made::Replacing)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            match source::stat_at(parent.as_fd(), name) {
                Ok(stat) if stat.kind == EntryKind::Directory => {
                    self.meet_dir(path);
                    return Ok(Made::Found);
                }
                Ok(stat) => {
                    ignore_missing(unlinkat(&parent, name, AtFlags::empty()))?;
                    replaced = Some(stat.kind);
                }
                Err(error) if is(&error, Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST.into())
    }

    /// Inspects a directory that already existed.
    fn meet_dir(&self, path: &[u8]) {
        // If it cannot be listed, the first write to it reports the error.
        let Ok(dir) = source::open_dir_below(self.dir(), path) else { return };
        if has_default_acl(&dir) {
            self.gives_acl.store(true, Ordering::Relaxed);
        }
        // Best effort: abandoned files take space but do no harm.
        let _ = self.work_in(path, || remove_abandoned(dir.as_fd()));
    }

    /// Begins a file. It has a temporary name until it is complete, with one exception: this
    /// restore created its directory and writes the file at once. An incomplete file is then
    /// shorter than its entry, and another restore that finds it replaces it.
    pub fn begin(&self, path: &[u8], is_fresh: bool, at_once: bool) -> io::Result<Unfinished> {
        self.work_in(split(path).0, || self.try_begin(path, is_fresh && at_once))
    }

    fn try_begin(&self, path: &[u8], directly: bool) -> io::Result<Unfinished> {
        let (parent, name) = self.parent(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let create = |name: &[u8]| openat(&parent, name, flags, Mode::RUSR | Mode::WUSR);
        if directly {
            match create(name) {
                Ok(file) => return Unfinished::new(file.into(), parent, name.to_vec(), None),
                Err(Errno::EXIST) => {} // another restore created it
                Err(error) => return Err(error.into()),
            }
        }
        for _ in 0..TRIES {
            let temporary = unfinished_name()?;
            let file = create(&temporary)?;
            match flock(&file, FlockOperation::LockExclusive) {
                // On a file system without locks, files are never cleaned up.
                Ok(()) | Err(Errno::NOSYS | Errno::NOTSUP | Errno::NOLCK | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
            let begun =
                Unfinished::new(file.into(), parent.try_clone()?, temporary, Some(name.to_vec()))?;
            // Another restore may have found and removed it before it was locked.
            if begun.stat.names > 0 {
                return Ok(begun);
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Sets the metadata and the final name of a written file. Fails only if the name cannot be
    /// set.
    pub fn finish(
        &self,
        mut unfinished: Unfinished,
        path: &[u8],
        entry: &Entry,
    ) -> io::Result<Refused> {
        let node = Node { fd: unfinished.file.as_fd(), at: None };
        let refused = self.give_metadata(node, &unfinished.stat, entry, true);
        if unfinished.rename_to.is_some() {
            self.work_in(split(path).0, || unfinished.publish())?;
        }
        unfinished.is_finished = true;
        Ok(refused)
    }

    /// Sets the metadata of an existing directory.
    pub fn finish_dir(&self, path: &[u8], entry: &Entry) -> io::Result<Refused> {
        let dir = self.work_in(split(path).0, || self.dir_at(path))?;
        let stat = source::stat_open(&dir)?;
        let readable = source::open_dir_below(dir.as_fd(), b"");
        let node = match &readable {
            Ok(open) => Node { fd: open.as_fd(), at: None },
            // This user may not list it.
            Err(_) => Node { fd: dir.as_fd(), at: Some((self.dir(), path)) },
        };
        let refused = self.give_metadata(node, &stat, entry, false);
        self.opened_up.lock().remove(path);
        Ok(refused)
    }

    /// Sets the metadata of an open file that already has the right content.
    pub fn refresh_file(&self, file: &File, stat: &Stat, entry: &Entry) -> Refused {
        self.give_metadata(Node { fd: file.as_fd(), at: None }, stat, entry, false)
    }

    /// Sets the metadata of a file that already has the right content and that this user may not
    /// open.
    pub fn refresh_closed(&self, path: &[u8], stat: &Stat, entry: &Entry) -> io::Result<Refused> {
        let (parent, name) = self.parent(path)?;
        let file = source::open_below(parent.as_fd(), name, OFlags::PATH)?;
        let node = Node { fd: file.as_fd(), at: Some((parent.as_fd(), name)) };
        Ok(self.give_metadata(node, stat, entry, false))
    }

    /// Creates a symbolic link, FIFO, socket or device, unless it already exists.
    pub fn make_other(&self, path: &[u8], entry: &Entry) -> io::Result<Refused> {
        self.work_in(split(path).0, || self.try_make_other(path, entry))
    }

    fn try_make_other(&self, path: &[u8], entry: &Entry) -> io::Result<Refused> {
        let (parent, name) = self.parent(path)?;
        for _ in 0..TRIES {
            let is_new = match mknod(&parent, name, entry) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(error.into()),
            };
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = match openat(&parent, name, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                made => made?,
            };
            let stat = source::stat_open(&made)?;
            if is_same_thing(&made, &stat, entry) {
                let node = Node { fd: made.as_fd(), at: Some((parent.as_fd(), name)) };
                return Ok(self.give_metadata(node, &stat, entry, is_new));
            }
            remove_other(parent.as_fd(), name, stat.kind)?;
        }
        Err(Errno::BUSY.into())
    }

    /// Makes `path` another name of `first`, both below the target.
    pub fn make_link(&self, first: &[u8], path: &[u8]) -> io::Result<()> {
        self.work_in(split(path).0, || self.try_make_link(first, path))
    }

    fn try_make_link(&self, first: &[u8], path: &[u8]) -> io::Result<()> {
        let (from, from_name) = self.parent(first)?;
        let (to, to_name) = self.parent(path)?;
        let is_first = |name: &[u8]| match (
            source::stat_at(from.as_fd(), from_name),
            source::stat_at(to.as_fd(), name),
        ) {
            (Ok(a), Ok(b)) => is_same_inode(&a, &b),
            _ => false,
        };
        for _ in 0..TRIES {
            if is_first(to_name) {
                return Ok(());
            }
            match linkat(&from, from_name, &to, to_name, AtFlags::empty()) {
                Err(Errno::EXIST) => {}
                result => return Ok(result?),
            }
            // Under a temporary name first: if no link can be made, the existing object stays.
            let temporary = unfinished_name()?;
            linkat(&from, from_name, &to, &temporary[..], AtFlags::empty())?;
            let renamed = rename_over(to.as_fd(), &temporary, to_name);
            // Renaming one name of a file to another name of the same file does nothing.
            if is_first(&temporary) {
                ignore_missing(unlinkat(&to, &temporary[..], AtFlags::empty()))?;
            }
            match renamed {
                // Another restore removed it as abandoned.
                Err(error) if is(&error, Errno::NOENT) => {}
                result => return result,
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Returns the type of the object at a path, or `None`.
    pub fn kind_of(&self, path: &[u8]) -> Option<EntryKind> {
        let (parent, name) = self.parent(path).ok()?;
        Some(source::stat_at(parent.as_fd(), name).ok()?.kind)
    }

    /// Removes a path with everything below it.
    pub fn remove(&self, path: &[u8]) -> io::Result<()> {
        self.work_in(split(path).0, || {
            let (parent, name) = self.parent(path)?;
            let device = source::stat_at(parent.as_fd(), name)?.device;
            remove_all(parent.as_fd(), name, device, self.uid)
        })
    }

    /// Sets owner, attributes, mode and times, in this order, because each may undo parts of the
    /// later ones. Sets only values that differ.
    fn give_metadata(&self, node: Node<'_>, stat: &Stat, entry: &Entry, is_new: bool) -> Refused {
        let mut refused = Refused::default();
        let owner = self.give_owner(node, stat, entry, &mut refused);
        // A change of owner clears bits of the mode.
        let mut mode = Some(stat.mode).filter(|_| owner == (stat.uid, stat.gid));
        let may_have_xattrs = !is_new || self.gives_acl.load(Ordering::Relaxed);
        if may_have_xattrs || !entry.xattrs.is_empty() {
            self.give_xattrs(node, entry, may_have_xattrs, &mut mode, &mut refused);
        }
        let wanted = self.rights.given_mode(owner, entry);
        if entry.kind != EntryKind::Symlink && mode != Some(wanted) {
            node.chmod(wanted).unwrap_or_else(|error| refused.note("mode", &error));
        }
        if let Some(mtime) = entry.mtime.filter(|mtime| is_new || !is_held(*mtime, stat)) {
            // Another attempt would only change the ctime.
            let is_limit = !is_new && is_limited(mtime, stat);
            let held = stat.mtime.seconds;
            let set = if is_limit { Err(not_held(mtime, held)) } else { node.set_mtime(mtime) };
            set.unwrap_or_else(|error| refused.note("time", &error));
        }
        refused
    }

    /// Sets the owner as far as this user may. Returns the resulting user and group.
    fn give_owner(
        &self,
        node: Node<'_>,
        stat: &Stat,
        entry: &Entry,
        refused: &mut Refused,
    ) -> (u32, u32) {
        let (is, wanted) = ((stat.uid, stat.gid), (entry.owner.uid, entry.owner.gid));
        if is == wanted {
            return wanted;
        }
        match node.chown(Some(wanted.0), wanted.1) {
            Ok(()) => return wanted,
            // Numbers unknown to a user namespace are invalid.
            Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL) => {
                self.owner_denied.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => refused.note("owner", &error.into()),
        }
        let has_group = is.1 == wanted.1 || node.chown(None, wanted.1).is_ok();
        (is.0, if has_group { wanted.1 } else { is.1 })
    }

    /// Sets attributes that differ. With `may_have_others`, removes attributes that the entry
    /// lacks.
    fn give_xattrs(
        &self,
        node: Node<'_>,
        entry: &Entry,
        may_have_others: bool,
        mode: &mut Option<u32>,
        refused: &mut Refused,
    ) {
        // The entry lacks attributes that the backup could not read.
        let may_have_others = may_have_others && entry.has_all_metadata();
        let present = match may_have_others.then(|| node.xattrs()).transpose() {
            Ok(present) => present.unwrap_or_default(),
            Err(error) => {
                refused.note("attributes", &error);
                return;
            }
        };
        let has = |list: &[(Vec<u8>, Vec<u8>)], name: &[u8]| list.iter().any(|(n, _)| n == name);
        let gone = present.iter().filter(|(name, _)| is_ours_to_remove(name));
        let gone = gone.filter(|(name, _)| !has(&entry.xattrs, name)).map(|(name, _)| (name, None));
        let set = entry.xattrs.iter().filter(|xattr| !present.contains(xattr));
        let changes = gone.chain(set.map(|(name, value)| (name, Some(value))));
        for (name, value) in changes {
            let mut changed = node.set_xattr(name, value.map(|value| &value[..]));
            if matches!(changed, Err(Errno::ACCESS)) && entry.kind != EntryKind::Symlink {
                // `user.` attributes require write permission; the mode is set afterwards.
                let writable = mode.unwrap_or(entry.mode) | OWNER_ALL;
                if node.chmod(writable & 0o777).is_ok() {
                    *mode = None;
                    changed = node.set_xattr(name, value.map(|value| &value[..]));
                }
            }
            if name == ACCESS_ACL.as_bytes() {
                *mode = None;
            }
            self.note_xattr(name, changed, refused);
        }
    }

    /// Returns true if a refusal concerns this file, not the user or the file system. Root may set
    /// `user.` attributes wherever the file system supports them.
    fn is_about_the_file(&self, name: &[u8], error: Errno) -> bool {
        self.uid == 0 && name.starts_with(b"user.") && error != Errno::NOTSUP
    }

    /// Handles the result of setting an attribute. Counts attributes that this user or file system
    /// does not allow.
    fn note_xattr(&self, name: &[u8], result: rustix::io::Result<()>, refused: &mut Refused) {
        let what = format!("attribute {}", crate::entry::display_path(name));
        match result {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error @ (Errno::PERM | Errno::NOTSUP | Errno::ACCESS))
                if !self.is_about_the_file(name, error) =>
            {
                self.xattr_denied.fetch_add(1, Ordering::Relaxed);
            }
            Err(Errno::NOSPC | Errno::DQUOT | Errno::RANGE | Errno::TOOBIG) => {
                refused
                    .0
                    .push(format!("{what}: too large for this file system, or the disk is full"));
            }
            Err(error) => refused.note(&what, &error.into()),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.put_modes_back();
    }
}

impl Node<'_> {
    /// Returns the path of the open object in `/proc`, for calls that do not accept `O_PATH`
    /// descriptors.
    fn link(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    fn chown(&self, uid: Option<u32>, gid: u32) -> rustix::io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), Some(Gid::from_raw(gid)));
        chownat(self.fd, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        let done = if self.at.is_some() { chmod(self.link(), mode) } else { fchmod(self.fd, mode) };
        Ok(done?)
    }

    fn set_mtime(&self, mtime: Time) -> io::Result<()> {
        let times = times(mtime);
        if self.at.is_none() {
            futimens(self.fd, &times)?;
        } else {
            match utimensat(self.fd, c"", &times, AtFlags::EMPTY_PATH) {
                // Kernels before 5.8.
                Err(Errno::INVAL) => {
                    utimensat(rustix::fs::CWD, self.link(), &times, AtFlags::empty())?;
                }
                done => done?,
            }
        }
        // Some file systems clamp other times without an error.
        if !TIMES_HELD_EVERYWHERE.contains(&mtime.seconds) {
            let held = source::stat_open(self.fd)?.mtime.seconds;
            if held != mtime.seconds {
                return Err(not_held(mtime, held));
            }
        }
        Ok(())
    }

    fn xattrs(&self) -> io::Result<crate::entry::Xattrs> {
        match self.at {
            Some((dir, name)) => source::xattrs_below(dir, name),
            None => source::xattrs_open(self.fd),
        }
    }

    /// Sets or removes an attribute.
    fn set_xattr(&self, name: &[u8], value: Option<&[u8]>) -> rustix::io::Result<()> {
        let (name, flags) = (OsStr::from_bytes(name), XattrFlags::empty());
        match (self.at, value) {
            (None, Some(value)) => fsetxattr(self.fd, name, value, flags),
            (None, None) => fremovexattr(self.fd, name),
            (Some(_), Some(value)) => setxattr(self.link(), name, value, flags),
            (Some(_), None) => removexattr(self.link(), name),
        }
    }
}

impl Unfinished {
    fn new(
        file: File,
        parent: OwnedFd,
        name: Vec<u8>,
        rename_to: Option<Vec<u8>>,
    ) -> io::Result<Unfinished> {
        let stat = source::stat_open(&file)?;
        Ok(Unfinished { file, stat, parent, name, rename_to, is_finished: false })
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn is_under(&self, name: &[u8]) -> bool {
        source::stat_at(self.parent.as_fd(), name)
            .is_ok_and(|found| is_same_inode(&found, &self.stat))
    }

    /// Gives the file its final name.
    fn publish(&self) -> io::Result<()> {
        let Some(name) = &self.rename_to else { return Ok(()) };
        if !self.is_under(&self.name) {
            return Err(io::Error::other("another program moved or removed the unfinished file"));
        }
        rename_over(self.parent.as_fd(), &self.name, name)
    }

    /// Removes the file, but never an object that replaced it.
    fn remove(&self) -> io::Result<()> {
        if !self.is_under(&self.name) {
            return Ok(());
        }
        if self.rename_to.is_some() {
            return Ok(unlinkat(&self.parent, &self.name[..], AtFlags::empty())?);
        }
        // Another restore may give this name to a complete file at any time. The object is
        // therefore moved aside, checked, and moved back if it is another one.
        let aside = unfinished_name()?;
        renameat(&self.parent, &self.name[..], &self.parent, &aside[..])?;
        if self.is_under(&aside) {
            return Ok(unlinkat(&self.parent, &aside[..], AtFlags::empty())?);
        }
        let (dir, flags) = (&self.parent, RenameFlags::NOREPLACE);
        Ok(renameat_with(dir, &aside[..], dir, &self.name[..], flags)?)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // Best effort: the cause of the removal is already being reported.
            let _ = self.remove();
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Returns true if an error means that nothing is at a path, or that something other than a
/// directory is above it.
pub fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory) || is(error, Errno::LOOP)
}

fn is_same_inode(a: &Stat, b: &Stat) -> bool {
    (a.device, a.inode) == (b.device, b.inode)
}

fn ignore_missing(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

/// Returns a name that no other restore uses.
fn unfinished_name() -> io::Result<Vec<u8>> {
    Ok(format!("{UNFINISHED}{:016x}", u64::from_le_bytes(random::bytes()?)).into_bytes())
}

/// Returns true for names of incomplete files.
pub fn is_unfinished(name: &[u8]) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits = name.strip_prefix(UNFINISHED.as_bytes());
    digits.is_some_and(|digits| digits.len() == 16 && digits.iter().all(is_digit))
}

/// Returns true if this is the name of the mark of a target.
pub fn is_mark(name: &[u8]) -> bool {
    name == MARK.as_bytes()
}

/// Returns true if another restore is writing this file.
pub fn is_being_written(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let is_file = || source::stat_at(dir, name).is_ok_and(|stat| stat.kind == EntryKind::File);
    is_unfinished(name) && is_file() && hold_abandoned(dir, name).is_none()
}

/// Opens and locks an unfinished file whose writer is gone. Returns `None` if that cannot be
/// proved.
fn hold_abandoned(dir: BorrowedFd<'_>, name: &[u8]) -> Option<OwnedFd> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |access| openat(dir, name, flags | access, Mode::empty());
    // Its mode may already be final.
    let file = open(OFlags::RDONLY).or_else(|_| open(OFlags::WRONLY)).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    let (open, found) = (source::stat_open(&file).ok()?, source::stat_at(dir, name).ok()?);
    (open.kind == EntryKind::File && is_same_inode(&open, &found)).then_some(file)
}

/// Removes unfinished files of killed restores.
fn remove_abandoned(dir: BorrowedFd<'_>) -> io::Result<()> {
    // Listing continues where the previous listing of a descriptor ended, so each uses its own.
    let listed = source::open_dir_below(dir, b"")?;
    for (name, _) in source::names(listed.as_fd())? {
        if is_unfinished(&name)
            && let Some(_held) = hold_abandoned(dir, &name)
        {
            ignore_missing(unlinkat(dir, &name[..], AtFlags::empty()))?;
        }
    }
    Ok(())
}

/// Renames within a directory. Replaces an empty directory; a directory with content is an error of
/// kind `DirectoryNotEmpty`.
fn rename_over(dir: BorrowedFd<'_>, from: &[u8], to: &[u8]) -> io::Result<()> {
    match renameat(dir, from, dir, to) {
        Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
            ignore_missing(unlinkat(dir, to, AtFlags::REMOVEDIR))?;
            Ok(renameat(dir, from, dir, to)?)
        }
        result => Ok(result?),
    }
}

/// Removes the object of this name; a directory only if it is empty.
fn remove_other(dir: BorrowedFd<'_>, name: &[u8], kind: EntryKind) -> io::Result<()> {
    let is_dir = kind == EntryKind::Directory;
    let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    ignore_missing(unlinkat(dir, name, flags))
}

fn mknod(parent: &OwnedFd, name: &[u8], entry: &Entry) -> rustix::io::Result<()> {
    // Accessible only to this user until the owner is set.
    let make = |kind, device| mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device);
    let device = entry.device.map_or(0, |(major, minor)| makedev(major, minor));
    match entry.kind {
        EntryKind::Symlink => symlinkat(&entry.target[..], parent, name),
        EntryKind::Fifo => make(FileType::Fifo, 0),
        EntryKind::Socket => make(FileType::Socket, 0),
        EntryKind::CharDevice => make(FileType::CharacterDevice, device),
        EntryKind::BlockDevice => make(FileType::BlockDevice, device),
        EntryKind::File | EntryKind::Directory => unreachable!("made elsewhere"),
    }
}

/// Returns true if an open object is the link, FIFO, socket or device of an entry, and not also
/// another name of a different object.
pub(crate) fn is_same_thing(thing: &OwnedFd, stat: &Stat, entry: &Entry) -> bool {
    let is_alone = stat.names == 1 || entry.hard_link.is_some();
    let is_alike = match entry.kind {
        EntryKind::Symlink => {
            readlinkat(thing, c"", Vec::new()).is_ok_and(|target| target.to_bytes() == entry.target)
        }
        EntryKind::CharDevice | EntryKind::BlockDevice => {
            stat.node == entry.device.unwrap_or_default()
        }
        _ => true,
    };
    stat.kind == entry.kind && is_alone && is_alike
}

/// Returns the mode for an entry. If its owner or group could not be set, drops setuid or setgid so
/// that no one else gets those rights.
fn safe_mode(entry: &Entry, owner: (u32, u32)) -> u32 {
    let (uid, gid) = (entry.owner.uid, entry.owner.gid);
    let mut mode = entry.mode;
    // On a directory these bits grant no rights.
    if entry.kind != EntryKind::Directory {
        mode &= if owner.0 == uid { !0 } else { !0o4000 };
        mode &= if owner.1 == gid { !0 } else { !0o2000 };
    }
    mode
}

/// Returns true for attributes that users set. Systems set the others by themselves.
fn is_ours_to_remove(name: &[u8]) -> bool {
    let is_acl = name == ACCESS_ACL.as_bytes() || name == DEFAULT_ACL.as_bytes();
    is_acl || !(name.starts_with(b"system.") || name == b"security.selinux")
}

/// Returns true if a file has this time, as far as its file system can hold it.
///
/// Some file systems hold times in larger steps and round down. The ctime, which no user can set,
/// shows if this is one of them.
pub(crate) fn is_held(wanted: Time, stat: &Stat) -> bool {
    let number =
        |time: Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let (wanted, held, ctime) = (number(wanted), number(stat.mtime), number(stat.ctime));
    let is_rounded =
        |step: &i128| ctime.rem_euclid(*step) == 0 && held == wanted - wanted.rem_euclid(*step);
    held == wanted || TIME_STEPS.iter().any(is_rounded)
}

/// Returns true if a file has the first or last time of its file system instead of one beyond.
fn is_limited(wanted: Time, stat: &Stat) -> bool {
    let held = stat.mtime.seconds;
    stat.mtime.nanoseconds == 0
        && (FIRST_TIMES.contains(&held) && wanted.seconds < held
            || LAST_TIMES.contains(&held) && wanted.seconds > held)
}

fn not_held(wanted: Time, held: i64) -> io::Error {
    let wanted = wanted.seconds;
    io::Error::other(format!(
        "this file system cannot store {wanted} s since 1970; it stored {held} s"
    ))
}

fn has_default_acl(dir: impl AsFd) -> bool {
    rustix::fs::fgetxattr(dir, DEFAULT_ACL, &mut [0_u8; 0][..]).is_ok()
}

fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
    }
}

/// Removes everything on this device. Does not enter mounted file systems.
fn remove_all(parent: BorrowedFd<'_>, name: &[u8], device: u64, uid: u32) -> io::Result<()> {
    if is_being_written(parent, name) {
        return Err(io::Error::other("another restore is writing it"));
    }
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(error @ (Errno::ISDIR | Errno::PERM)) => {
            // It may be immutable. Only a directory has content to remove.
            if source::stat_at(parent, name)?.kind != EntryKind::Directory {
                return Err(error.into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    let dir = source::open_below(parent, name, OFlags::PATH | OFlags::DIRECTORY)?;
    let stat = source::stat_open(&dir)?;
    if stat.device != device {
        return Err(Errno::XDEV.into());
    }
    if stat.uid == uid && stat.mode & OWNER_ALL != OWNER_ALL {
        // The directory will be removed.
        Node { fd: dir.as_fd(), at: Some((parent, name)) }.chmod(stat.mode | OWNER_ALL)?;
    }
    let dir = source::open_dir_below(dir.as_fd(), b"")?;
    for (inner, _) in source::names(dir.as_fd())? {
        remove_all(dir.as_fd(), &inner, device, uid)?;
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}
