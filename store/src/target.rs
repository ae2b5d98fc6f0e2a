//! Creates files below a directory, and nowhere else.
//!
//! Every path is opened step by step from the target directory without following symbolic links. A
//! tree or a process that swaps directories cannot lead it elsewhere. Several restores may write
//! into one directory: each removes and renames only files that are provably its own.

mod access;
mod metadata;
mod rights;
mod trial;

pub(crate) use access::{
    is_append_only, is_protected, metadata_refusal, protection, removal_refusal, tree_removal,
};
pub(crate) use metadata::is_held;
pub use metadata::{Metadata, Refused};
pub use rights::Rights;
pub(crate) use trial::Trials;
pub(crate) use unfinished::{MARK, is_mark, is_unfinished};

use crate::entry::{Entry, EntryKind, is_within, path_cmp};
use crate::glob::ends;
use crate::random;
use crate::source::{self, Stat, split};
use crate::unfinished;
use metadata::{DEFAULT_ACL, Node, OWNER_ALL};
use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, StatxFlags, flock, linkat,
    makedev, mkdirat, mknodat, openat, readlinkat, renameat, renameat_with, statx, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Maximum attempts at an operation that other processes may disturb.
const TRIES: usize = 8;

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
    /// Devices on which an owner, mode or time was found as it was set. Others may ignore it.
    heeded: Mutex<HashSet<(u64, Setting)>>,
    /// True if each user and group is read again after it was set for the first time.
    verifies_owners: bool,
}

/// A setting that some file systems ignore without an error, such as CIFS and FAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Setting {
    Owner,
    /// This user and group.
    OwnerOf(u32, u32),
    Mode,
    Time,
}

/// Origin of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// The directory existed before.
    Found,
    /// Nothing had its name.
    New,
    /// An object of this kind was removed for it.
    Replacing(EntryKind),
}

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
            heeded: Mutex::default(),
            verifies_owners: false,
        };
        target.meet_dir(b"");
        target
    }

    /// Reads each user and group again after it was set for the first time on a file system, instead
    /// of only the first owner of all.
    pub fn verify_owners(&mut self) {
        self.verifies_owners = true;
    }

    /// Marks a directory as one that gets the metadata of an entry when all below it is restored.
    pub fn mark(&self, dir: &[u8]) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // Best effort: without it a restore that is taken up again leaves the mode alone.
        if let Ok(dir) = self.dir_at(dir) {
            let _ = openat(dir, MARK, flags, Mode::RUSR | Mode::WUSR);
        }
    }

    /// Removes the mark of a directory, if it has one.
    pub fn unmark(&self, dir: &[u8]) -> io::Result<()> {
        let dir = self.dir_at(dir)?;
        // A read-only file system refuses to remove even a missing name.
        match source::stat_at(dir.as_fd(), MARK.as_bytes()) {
            Err(error) if is(&error, Errno::NOENT) => Ok(()),
            _ => ignore_missing(unlinkat(dir, MARK, AtFlags::empty())),
        }
    }

    /// Brings everything written to stable storage, so that an error of the disk, or of a server
    /// that was asked late, is reported. Returns the first error since the target was opened.
    pub fn sync(&self) -> io::Result<()> {
        match rustix::fs::syncfs(&self.dir) {
            Err(Errno::NOSYS | Errno::NOTSUP | Errno::INVAL) => Ok(()),
            synced => Ok(synced?),
        }
    }

    /// Rights of this process.
    pub fn rights(&self) -> &Rights {
        &self.rights
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

    /// Runs `work` in the directory `dir`. If a directory owned by this user denies access, makes
    /// it writable and retries; its mode is restored later.
    fn work_in<T>(&self, dir: &[u8], mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if is(&error, Errno::ACCESS) && self.open_up(dir) => work(),
            result => result,
        }
    }

    /// Makes a directory and those above it writable for this user. Returns true if that changed
    /// any of them, now or before.
    fn open_up(&self, dir: &[u8]) -> bool {
        // Another thread may have done it first.
        self.make_accessible(dir) || self.opened_up.lock().keys().any(|path| is_within(dir, path))
    }

    /// Gives this user all rights to a directory and those above it, until their modes are put
    /// back. Returns true if that changed any of them.
    pub fn make_accessible(&self, dir: &[u8]) -> bool {
        let mut is_changed = false;
        for end in std::iter::once(0).chain(ends(dir)) {
            let path = &dir[..end];
            let Ok(opened) = self.dir_at(path) else { return is_changed };
            let Ok(stat) = source::stat_open(&opened) else { return is_changed };
            if !can_be_opened_up(&stat) {
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
        is_changed
    }

    /// Like [`Target::make_accessible`], and also for each directory of its file system below that
    /// `is_wanted` selects.
    pub fn make_accessible_below(&self, dir: &[u8], is_wanted: &dyn Fn(&[u8]) -> bool) -> bool {
        let mut is_changed = false;
        let mut dirs = vec![dir.to_vec()];
        while let Some(dir) = dirs.pop() {
            is_changed |= self.make_accessible(&dir);
            let Ok(open) = source::open_dir_below(self.dir(), &dir) else { continue };
            let Ok(stat) = source::stat_open(&open) else { continue };
            for (name, found) in source::list(open.as_fd(), |_| true).0 {
                let path = crate::walk::join(&dir, &name);
                let is_dir = found.is_ok_and(|found| {
                    (found.kind, found.device) == (EntryKind::Directory, stat.device)
                });
                if is_dir && is_wanted(&path) {
                    dirs.push(path);
                }
            }
        }
        is_changed
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
        // The unfinished file would stay.
        if is_append_only(parent.as_fd()) {
            return Err(Errno::PERM.into());
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

    /// Sets the metadata and the final name of a written file. Fails only if its content was not
    /// written or the name cannot be set.
    pub fn finish(
        &self,
        mut unfinished: Unfinished,
        path: &[u8],
        metadata: &Metadata<'_>,
    ) -> io::Result<Refused> {
        // Network and FUSE file systems write when a file is closed. This comes first, because they
        // may set the time then.
        nix::unistd::close(unfinished.file.try_clone()?)?;
        let node = Node { fd: unfinished.file.as_fd(), at: None };
        let refused = self.give_metadata(node, &unfinished.stat, metadata, true);
        if unfinished.rename_to.is_some() {
            self.work_in(split(path).0, || unfinished.publish())?;
        }
        unfinished.is_finished = true;
        Ok(refused)
    }

    /// Sets the metadata of an existing directory.
    pub fn finish_dir(&self, path: &[u8], metadata: &Metadata<'_>) -> io::Result<Refused> {
        let dir = self.work_in(split(path).0, || self.dir_at(path))?;
        let stat = source::stat_open(&dir)?;
        let readable = source::open_dir_below(dir.as_fd(), b"");
        let node = match &readable {
            Ok(open) => Node { fd: open.as_fd(), at: None },
            // This user may not list it.
            Err(_) => Node { fd: dir.as_fd(), at: Some((self.dir(), path)) },
        };
        let refused = self.give_metadata(node, &stat, metadata, false);
        self.opened_up.lock().remove(path);
        Ok(refused)
    }

    /// Sets the metadata of an open file that already has the right content.
    pub fn refresh_file(&self, file: &File, stat: &Stat, metadata: &Metadata<'_>) -> Refused {
        self.give_metadata(Node { fd: file.as_fd(), at: None }, stat, metadata, false)
    }

    /// Sets the metadata of a file that already has the right content and that this user may not
    /// open.
    pub fn refresh_closed(
        &self,
        path: &[u8],
        stat: &Stat,
        metadata: &Metadata<'_>,
    ) -> io::Result<Refused> {
        let (parent, name) = self.parent(path)?;
        let file = source::open_below(parent.as_fd(), name, OFlags::PATH)?;
        let node = Node { fd: file.as_fd(), at: Some((parent.as_fd(), name)) };
        Ok(self.give_metadata(node, stat, metadata, false))
    }

    /// Creates a symbolic link, FIFO, socket or device, unless it already exists.
    pub fn make_other(
        &self,
        path: &[u8],
        entry: &Entry,
        metadata: &Metadata<'_>,
    ) -> io::Result<Refused> {
        self.work_in(split(path).0, || self.try_make_other(path, entry, metadata))
    }

    fn try_make_other(
        &self,
        path: &[u8],
        entry: &Entry,
        metadata: &Metadata<'_>,
    ) -> io::Result<Refused> {
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
                return Ok(self.give_metadata(node, &stat, metadata, is_new));
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

    /// Returns true if the file `first`, which is to have as many names in the target as `names`, has
    /// another one: all names are taken, and `path` is not one of them.
    pub fn has_other_name(&self, first: &[u8], path: &[u8], names: u64) -> bool {
        let stat = |path| {
            let (parent, name) = self.parent(path)?;
            source::stat_at(parent.as_fd(), name)
        };
        let is_it = |first: &Stat| stat(path).is_ok_and(|found| is_same_inode(&found, first));
        stat(first).is_ok_and(|first| first.names >= names && !is_it(&first))
    }

    /// Returns the type of the object at a path, or `None`.
    pub fn kind_of(&self, path: &[u8]) -> Option<EntryKind> {
        let (parent, name) = self.parent(path).ok()?;
        Some(source::stat_at(parent.as_fd(), name).ok()?.kind)
    }

    /// Removes a path with everything below it. Returns the number of removed paths.
    pub fn remove(&self, path: &[u8]) -> io::Result<u64> {
        self.work_in(split(path).0, || {
            let (parent, name) = self.parent(path)?;
            let device = source::stat_at(parent.as_fd(), name)?.device;
            remove_all(parent.as_fd(), name, device, self.uid)
        })
    }
}

/// Returns true for a directory of this user that denies access to it by its mode.
pub(crate) fn can_be_opened_up(dir: &Stat) -> bool {
    dir.kind == EntryKind::Directory
        && dir.uid == geteuid().as_raw()
        && dir.mode & OWNER_ALL != OWNER_ALL
}

impl Drop for Target {
    fn drop(&mut self) {
        self.put_modes_back();
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

/// Returns true if a path is on another file system than the target directory `root`.
pub fn is_on_other_device(root: BorrowedFd<'_>, path: &[u8]) -> bool {
    nearest_dir(root, path).is_some_and(|dir| device(dir.as_fd()) != device(root))
}

/// Returns true for an error after which the same attempt may succeed once someone has mended its
/// cause: made space, or removed a protection. Others last, because the file system cannot hold such
/// a name or content.
pub fn is_mendable(error: Errno) -> bool {
    !matches!(
        error,
        Errno::NAMETOOLONG
            | Errno::INVAL
            | Errno::ILSEQ
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::FBIG
            | Errno::OVERFLOW
            | Errno::MLINK
            | Errno::NXIO
            | Errno::NODEV
    )
}

/// Returns true if a path is on another mount than the target directory `root`. Each mount of a
/// file system is read-only by itself.
pub fn is_on_other_mount(root: BorrowedFd<'_>, path: &[u8]) -> bool {
    nearest_dir(root, path).is_some_and(|dir| mount(dir.as_fd()) != mount(root))
}

/// Returns true if no file can have both paths: a hard link does not cross mounts.
pub(crate) fn are_on_different_mounts(root: BorrowedFd<'_>, a: &[u8], b: &[u8]) -> bool {
    let mount = |path| nearest_dir(root, path).map(|dir| mount(dir.as_fd()));
    mount(a) != mount(b)
}

fn device(dir: BorrowedFd<'_>) -> Option<u64> {
    Some(source::stat_open(dir).ok()?.device)
}

/// Returns what distinguishes the mount of an open directory.
fn mount(dir: BorrowedFd<'_>) -> (Option<u64>, Option<u64>) {
    // Older kernels report 0 for all mounts.
    let mount = statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok();
    (mount.map(|found| found.stx_mnt_id), device(dir))
}

/// Returns the nearest existing directory above a path.
fn nearest_dir(root: BorrowedFd<'_>, path: &[u8]) -> Option<OwnedFd> {
    let mut dir = split(path).0;
    loop {
        match source::open_below(root, dir, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(open) => return Some(open),
            Err(_) if dir.is_empty() => return None,
            Err(_) => dir = split(dir).0,
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
    Ok(unfinished::name(u64::from_le_bytes(random::bytes()?)))
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

fn has_default_acl(dir: impl AsFd) -> bool {
    rustix::fs::fgetxattr(dir, DEFAULT_ACL, &mut [0_u8; 0][..]).is_ok()
}

/// Removes everything on this device. Does not enter mounted file systems. Returns the number of
/// removed paths.
fn remove_all(parent: BorrowedFd<'_>, name: &[u8], device: u64, uid: u32) -> io::Result<u64> {
    if is_being_written(parent, name) {
        return Err(io::Error::other("another restore is writing it"));
    }
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => return Ok(1),
        Err(Errno::NOENT) => return Ok(0),
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
    let mut count = 1;
    for (inner, _) in source::names(dir.as_fd())? {
        count += remove_all(dir.as_fd(), &inner, device, uid)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(count)
}
