//! A store in a local directory.

use super::{Backend, Listed, Pending};
use crate::error::Unsynced;
use crate::observe::{Event, Observer, Silent};
use crate::random;
use crate::text::Displayed;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest wait for a lease. The kernel lets a client keep it for 45 seconds by default.
const LEASE_WAIT: Duration = Duration::from_secs(60);
const LEASE_PAUSE: Duration = Duration::from_millis(20);

/// Directory of files that are not published yet.
const UNPUBLISHED: &str = "tmp";

/// Magic numbers of file systems that several machines can use at once: NFS, SMB (three), FUSE, 9p,
/// Ceph, AFS (two), Coda, OCFS2, GFS2, Lustre and GPFS.
const REMOTE_FILE_SYSTEMS: [u64; 14] = [
    0x6969,
    0x517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x6573_5546,
    0x0102_1997,
    0x00C3_6400,
    0x5346_414F,
    0x6B41_4653,
    0x7375_7245,
    0x7461_636F,
    0x0116_1970,
    0x0BD0_0BD0,
    0x4750_4653,
];

/// File that every store has. Where it was and is no more, the store is not mounted.
const STORE_FILE: &str = "store.json";

/// Maximum number of files kept open for reading.
const OPEN_FILES_MAX: usize = 16;

/// Permission bits of everything created in a store, independent of the umask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Bits of files.
    pub file: u32,
    /// Bits of directories.
    pub dir: u32,
}

impl Modes {
    /// Only the owner reads the store.
    pub const PRIVATE: Modes = Modes { file: 0o600, dir: 0o700 };
    /// The group of the store's directories reads it, too. New files inherit that group.
    pub const GROUP: Modes = Modes { file: 0o640, dir: 0o2750 };
}

/// A store in a local directory.
///
/// Files are written under `tmp/`, synced and renamed, and the directory of the new name is synced.
/// The writer locks an unpublished file. This distinguishes files of running writers from those
/// that a killed run left behind. Clones share their open files.
#[derive(Clone)]
pub struct Local(Arc<Place>);

struct Place {
    root: PathBuf,
    modes: Modes,
    observer: Arc<dyn Observer>,
    /// True if the directory had a store at first.
    was_store: bool,
    /// True if the observer was warned that directories cannot be synced here.
    has_warned: AtomicBool,
    /// Open files, most recently used last.
    open: Mutex<Vec<(String, Arc<File>)>>,
}

impl Local {
    /// Returns a backend for directory `root`, which need not exist yet. Only its owner may read
    /// it.
    pub fn new(root: impl Into<PathBuf>) -> Local {
        Local::with(root, Modes::PRIVATE, Arc::new(Silent::default()))
    }

    /// Returns a backend for directory `root`. New files and directories get `modes`; the observer
    /// receives warnings.
    pub fn with(root: impl Into<PathBuf>, modes: Modes, observer: Arc<dyn Observer>) -> Local {
        let (root, has_warned, open) = (root.into(), AtomicBool::new(false), Mutex::default());
        let was_store = root.join(STORE_FILE).exists();
        Local(Arc::new(Place { root, modes, observer, was_store, has_warned, open }))
    }

    /// Returns the directory.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Creates the directories of an empty store.
    pub fn make_directories<'a>(&self, names: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let Place { root, modes, .. } = &*self.0;
        if let Some(parent) = root.parent() {
            fs::create_dir_all(parent)?;
        }
        // An existing directory keeps its mode, because it may be a mount point.
        if !root.exists() {
            make_dir(root, modes.dir)?;
        }
        for name in names.chain([UNPUBLISHED]) {
            let mut path = root.clone();
            for part in name.split('/') {
                path.push(part);
                make_dir(&path, modes.dir)?;
                give_to_owner(&File::open(&path)?, root);
            }
        }
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.0.sync_dir(&entry.path())?;
            }
        }
        self.0.sync_dir(root)?;
        sync_above(root)
    }

    /// Removes unpublished files that killed runs left behind, and returns their number.
    ///
    /// Files of running writers are locked and stay. A file that cannot be removed stays, with a
    /// warning.
    pub fn remove_unpublished(&self) -> io::Result<usize> {
        let path = self.0.root.join(UNPUBLISHED);
        if path.is_symlink() {
            // Files of somebody else lie behind it. The writer makes a directory instead.
            fs::remove_file(&path)?;
            let text = "removed a symbolic link from the store: its tmp must be a directory";
            self.0.observer.event(Event::Warning(text.into()));
        }
        let dir = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            dir => dir?,
        };
        let (mut removed, mut left) = (0, Vec::new());
        for entry in dir {
            let entry = entry?;
            if !is_unpublished_name(&entry.file_name()) {
                left.push((entry.file_name(), io::Error::other("forgekeep did not create it")));
                continue;
            }
            match remove_unlocked(&entry.path()) {
                Ok(is_removed) => removed += usize::from(is_removed),
                Err(error) => left.push((entry.file_name(), error)),
            }
        }
        if let Some((name, error)) = left.first() {
            let name = Path::new(UNPUBLISHED).join(name);
            let others = match left.len() {
                1 => String::new(),
                all => format!(" (and {} more)", all - 1),
            };
            let name = name.displayed();
            let text = format!("left {name}{others} in the store: {error}");
            self.0.observer.event(Event::Warning(format!("{text}; remove it by hand")));
        }
        Ok(removed)
    }

    /// Returns true if users beyond [`Modes`] can read the store. Another program may have created
    /// it, or its permissions were changed.
    pub fn is_exposed(&self) -> bool {
        let Place { root, modes, .. } = &*self.0;
        let has = |name: &str, bits: u32| {
            let path = if name.is_empty() { root.clone() } else { root.join(name) };
            fs::metadata(path).is_ok_and(|found| found.mode() & bits & !modes.dir & 0o077 != 0)
        };
        let is_open = [("segments", 0o011), ("snapshots", 0o011), ("index.sqlite", 0o044)];
        // A user who may write in the directory can put another store in its place.
        let is_sticky = fs::metadata(root).is_ok_and(|found| found.mode() & 0o1000 != 0);
        let is_writable = has("", 0o002) && !is_sticky;
        is_writable || has("", 0o011) && is_open.into_iter().any(|(name, bits)| has(name, bits))
    }

    /// Creates an unnamed scratch file in the store.
    pub(crate) fn scratch(&self) -> io::Result<File> {
        let dir = self.0.root.join(UNPUBLISHED);
        self.0.with_parent(&dir.join("scratch"), || tempfile::tempfile_in(&dir))
    }

    /// Writes a small file that does not exist yet. Fails with `AlreadyExists` if another process
    /// was first; its file then stays.
    pub(crate) fn write_new(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut pending = self.pending()?;
        pending.write(bytes)?;
        pending.sync()?;
        pending.publish_new(name)
    }

    /// Writes a small file and returns it, locked until the result is dropped. The lock shows other
    /// processes of this machine that this one runs, see [`Local::is_held`].
    pub(crate) fn write_held(&self, name: &str, bytes: &[u8]) -> io::Result<File> {
        let mut pending = self.pending()?;
        pending.write(bytes)?;
        pending.sync()?;
        // A duplicate shares the lock.
        let held = pending.file.try_clone()?;
        Box::new(pending).publish(name)?;
        Ok(held)
    }

    /// Returns true if a process holds the lock of a file, and `None` if the file system does not
    /// tell. Fails with `NotFound` if the file is missing.
    pub(crate) fn is_held(&self, name: &str) -> io::Result<Option<bool>> {
        let path = self.0.root.join(name);
        let file = open_regular(&path, OFlags::RDONLY | OFlags::NOFOLLOW)?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(false)),
            Err(Errno::WOULDBLOCK) => Ok(Some(true)),
            Err(error) if is_without_locks(error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns true if other machines may use the file system, so that listings may be stale.
    pub(crate) fn is_remote(&self) -> io::Result<bool> {
        let found = rustix::fs::statfs(&self.0.root)?;
        Ok(REMOTE_FILE_SYSTEMS.contains(&(found.f_type as u64 & 0xFFFF_FFFF)))
    }

    fn pending(&self) -> io::Result<LocalPending> {
        let place = Arc::clone(&self.0);
        let dir = place.root.join(UNPUBLISHED);
        let (path, file) = loop {
            let path = dir.join(format!("{:016x}", u64::from_le_bytes(random::bytes()?)));
            let mut options = File::options();
            options.write(true).create_new(true).mode(place.modes.file);
            let file = place.with_parent(&path, || options.open(&path))?;
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => {}
                // A file system without locks: unpublished files are never removed there.
                Err(error) if is_without_locks(error) => {}
                Err(error) => return Err(error.into()),
            }
            let made = file.metadata()?;
            if made.mode() & 0o777 != place.modes.file {
                file.set_permissions(Permissions::from_mode(place.modes.file))?;
            }
            give_to_owner(&file, &place.root);
            // Another run may have found the file before it was locked, and removed it.
            if made.nlink() > 0 {
                break (path, file);
            }
        };
        Ok(LocalPending { place, path: Some(path), file })
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut open = self.0.open.lock();
        let file = match open.iter().position(|(known, _)| known == name) {
            Some(at) => open.remove(at).1,
            None => Arc::new(open_regular(&self.0.root.join(name), OFlags::RDONLY)?),
        };
        if open.len() >= OPEN_FILES_MAX {
            open.remove(0);
        }
        open.push((name.to_owned(), Arc::clone(&file)));
        Ok(file)
    }
}

impl Place {
    /// Keeps an answer, unless it says that an object is missing because the store was unmounted.
    fn of_store<T>(&self, answer: io::Result<T>) -> io::Result<T> {
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match answer {
            Err(error) if is_missing(&error) && self.was_store && !self.is_store() => {
                let text =
                    "the directory no longer contains a store; its file system may be unmounted";
                Err(io::Error::new(io::ErrorKind::StaleNetworkFileHandle, text))
            }
            answer => answer,
        }
    }

    fn is_store(&self) -> bool {
        self.root.join(STORE_FILE).exists()
    }

    fn forget(&self, name: &str) {
        self.open.lock().retain(|(known, _)| known != name);
    }

    /// Makes the names in a directory durable, or warns once that the file system cannot do so.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if !sync_dir(dir)? && !self.has_warned.swap(true, Relaxed) {
            let text = "cannot sync directories of the store: \
                        a power loss may lose the newest files; keep a second copy";
            self.observer.event(Event::Warning(text.into()));
        }
        Ok(())
    }

    fn sync_parent(&self, path: &Path) -> io::Result<()> {
        self.sync_dir(path.parent().unwrap_or(Path::new("")))
    }

    /// Creates `path` and its directory if that is missing. Programs that copy only files omit
    /// empty directories of a store. Nothing is created in the mount point of a store that was
    /// unmounted since.
    fn with_parent<T>(&self, path: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let parent = path.parent().unwrap_or(Path::new("."));
        match make() {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && (!self.was_store || self.is_store()) => {}
            made => return made,
        }
        make_dir(parent, self.modes.dir)?;
        give_to_owner(&File::open(parent)?, &self.root);
        self.sync_parent(parent)?;
        make()
    }
}

impl Backend for Local {
    fn place(&self) -> String {
        self.0.root.displayed()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in self.0.of_store(fs::read_dir(self.0.root.join(dir)))? {
            let entry = entry?;
            let mut metadata = match entry.metadata() {
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_symlink() {
                metadata = fs::metadata(entry.path()).unwrap_or(metadata);
            }
            // Other objects than files are listed, too: they cannot be read, and skipping them
            // would hide missing data. Names that are not text are not ours.
            if let Ok(name) = entry.file_name().into_string()
                && is_visible(&name)
            {
                let len = if metadata.is_dir() { 0 } else { metadata.len() };
                listed.push(Listed { name, len });
            }
        }
        listed.sort();
        Ok(listed)
    }

    fn names(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in self.0.of_store(fs::read_dir(self.0.root.join(dir)))? {
            names.extend(entry?.file_name().into_string().ok().filter(|name| is_visible(name)));
        }
        Ok(names)
    }

    fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.of_store(self.file(name))?.read_exact_at(out, offset)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.0.of_store(fs::metadata(self.0.root.join(name)))?.len())
    }

    fn create(&self) -> io::Result<Box<dyn Pending>> {
        Ok(Box::new(self.pending()?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.forget(name);
        let path = self.0.root.join(name);
        self.0.of_store(fs::remove_file(&path))?;
        self.0.sync_parent(&path)
    }

    fn settle(&self, dir: &str) -> io::Result<()> {
        self.0.sync_dir(&self.0.root.join(dir))
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        let space = rustix::fs::statvfs(&self.0.root)?;
        // Some network and FUSE file systems report sizes of 0.
        let is_known = space.f_blocks != 0;
        Ok(is_known.then(|| space.f_bavail.saturating_mul(space.f_frsize)))
    }
}

/// Returns false for names such as `.nfs…` and `.fuse_hidden…`, which file systems give to a deleted
/// file that is still open.
fn is_visible(name: &str) -> bool {
    !name.starts_with('.')
}

struct LocalPending {
    place: Arc<Place>,
    /// `None` once the file is published.
    path: Option<PathBuf>,
    file: File,
}

impl LocalPending {
    /// Gives the synced file its name unless that name exists; see [`Pending::publish`].
    fn publish_new(mut self, name: &str) -> io::Result<()> {
        let target = self.place.root.join(name);
        if let Some(path) = &self.path {
            rename_new(path, &target, &self.file)?;
        }
        self.path = None;
        self.place.sync_parent(&target).map_err(Unsynced::wrap)
    }
}

impl Pending for LocalPending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn publish(mut self: Box<Self>, name: &str) -> io::Result<()> {
        let target = self.place.root.join(name);
        if let Some(path) = &self.path {
            self.place.with_parent(&target, || fs::rename(path, &target))?;
        }
        self.path = None;
        self.place.forget(name);
        self.place.sync_parent(&target).map_err(Unsynced::wrap)
    }
}

impl Drop for LocalPending {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Best effort: the next run that writes removes a remaining file.
            let _ = fs::remove_file(path);
        }
    }
}

/// Renames a file; fails with `AlreadyExists` if the new name exists.
fn rename_new(from: &Path, to: &Path, file: &File) -> io::Result<()> {
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags) {
        Err(error) if is_without_operation(error) => link_new(from, to, file),
        renamed => Ok(renamed?),
    }
}

/// Renames a file with a hard link, as NFS needs it.
fn link_new(from: &Path, to: &Path, file: &File) -> io::Result<()> {
    let linked = rustix::fs::link(from, to);
    match linked {
        Ok(()) => {}
        // NFS may answer so to a repeated request whose first answer was lost.
        Err(Errno::EXIST) if is_same_file(file, to) => {}
        Err(error) if is_without_operation(error) => {
            // A file system with neither operation. Two processes that come here at the same
            // moment can both succeed.
            if to.symlink_metadata().is_ok() {
                return Err(Errno::EXIST.into());
            }
            return fs::rename(from, to);
        }
        Err(error) => return Err(error.into()),
    }
    // Best effort: the next run that writes removes a remaining name.
    let _ = fs::remove_file(from);
    Ok(())
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(mine), Ok(other)) = (file.metadata(), path.symlink_metadata()) else { return false };
    (mine.dev(), mine.ino()) == (other.dev(), other.ino())
}

/// Returns true if a file system or kernel does not know an operation on names.
fn is_without_operation(error: Errno) -> bool {
    // FAT answers PERM to hard links; MLINK is the answer of some FUSE file systems.
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM | Errno::MLINK)
}

/// Opens a regular file; a new one is private. Fails for anything else, and does not wait for a
/// pipe.
pub(crate) fn open_regular(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let began = Instant::now();
    let open = || loop {
        match rustix::fs::open(path, flags, rustix::fs::Mode::from_raw_mode(0o600)) {
            // A client of a file server has a lease. The attempt itself asks for it.
            Err(Errno::AGAIN) if began.elapsed() < LEASE_WAIT => std::thread::sleep(LEASE_PAUSE),
            opened => return opened,
        }
    };
    let file = match open() {
        Err(Errno::LOOP) if flags.contains(OFlags::NOFOLLOW) => {
            return Err(io::Error::other("it is a symbolic link"));
        }
        Err(Errno::ISDIR) => return Err(io::Error::other("it is a directory")),
        file => File::from(file?),
    };
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other("it is not a regular file"))
}

/// Returns true if a writer may have given this name to a file: sixteen hexadecimal digits.
fn is_unpublished_name(name: &OsStr) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == 16 && name.as_encoded_bytes().iter().all(is_digit)
}

/// Removes an unpublished file unless its writer runs; returns whether it did.
fn remove_unlocked(path: &Path) -> io::Result<bool> {
    let file = match open_regular(path, OFlags::RDONLY | OFlags::NOFOLLOW) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    match fs::remove_file(path) {
        // Published since the directory was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Syncs the directories above a new directory, because they may be new, too. Stops at one that
/// cannot be opened: this user cannot have created directories below it.
fn sync_above(path: &Path) -> io::Result<()> {
    for dir in fs::canonicalize(path)?.ancestors().skip(1) {
        match File::open(dir).map(|dir| dir.sync_all()) {
            Ok(Err(error)) if !is_without_sync(&error) => return Err(error),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    Ok(())
}

/// Creates a directory unless it exists, with these permission bits independent of the umask.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    remove_acl(path);
    let found = fs::metadata(path)?;
    // A directory inherits setgid from its parent and keeps it.
    let wanted = mode | (found.mode() & 0o2000);
    if found.is_dir() && found.mode() & 0o7777 != wanted {
        fs::set_permissions(path, Permissions::from_mode(wanted))?;
    }
    Ok(())
}

/// Removes an ACL that a directory inherited: it would let users in whom its mode does not name.
fn remove_acl(dir: &Path) {
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        // Most have none, and many file systems know none.
        let _ = rustix::fs::removexattr(dir, name);
    }
}

/// Gives a new file to the group of the store's directory and, if root made it, to the owner. They
/// could not read it otherwise.
pub(crate) fn give_to_owner(file: &File, root: &Path) {
    let (Ok(wanted), Ok(found)) = (fs::metadata(root), file.metadata()) else { return };
    let uid = (rustix::process::geteuid().is_root() && found.uid() != wanted.uid())
        .then_some(wanted.uid());
    let gid = (found.gid() != wanted.gid()).then_some(wanted.gid());
    // Best effort: some file systems support one owner only, and only root may set any group.
    for (uid, gid) in [(uid, None), (None, gid)] {
        if uid.is_some() || gid.is_some() {
            let _ = std::os::unix::fs::fchown(file, uid, gid);
        }
    }
}

/// Makes the names in a directory durable. Returns false if the file system cannot do so.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<bool> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    match File::open(dir)?.sync_all() {
        Err(error) if is_without_sync(&error) => Ok(false),
        synced => synced.map(|()| true),
    }
}

/// Returns true if an error of `fsync` says that directories cannot be synced here, as on some
/// network and FUSE file systems.
fn is_without_sync(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::INVAL | Errno::BADF | Errno::NOTSUP | Errno::NOSYS))
}

/// Returns true if `flock` failed because the file system has no locks, such as NFS without a lock
/// server.
pub(crate) fn is_without_locks(error: Errno) -> bool {
    matches!(error, Errno::NOLCK | Errno::NOSYS | Errno::NOTSUP | Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_created_in_the_mount_point_of_an_unmounted_store() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("store");
        for name in ["", "segments", "snapshots"] {
            fs::create_dir(root.join(name)).expect("makes");
        }
        fs::write(root.join(STORE_FILE), "").expect("writes");
        let local = Local::new(&root);
        // Programs that copy only files leave out empty directories.
        local.write_new("snapshots/a", b"a").expect("makes tmp");
        fs::rename(&root, dir.path().join("unmounted")).expect("moves");
        fs::create_dir(&root).expect("makes");
        local.write_new("snapshots/b", b"b").expect_err("is not mounted");
        local.scratch().expect_err("is not mounted");
        assert_eq!(fs::read_dir(&root).expect("lists").count(), 0);
    }

    #[test]
    fn names_that_file_systems_give_to_deleted_files_are_not_listed() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("sessions")).expect("makes");
        for name in [".nfs0000001", ".fuse_hidden0001", "a"] {
            fs::write(dir.path().join("sessions").join(name), "").expect("writes");
        }
        let local = Local::new(dir.path());
        assert_eq!(local.names("sessions").expect("lists"), ["a"]);
        let listed = local.list("sessions").expect("lists");
        assert_eq!(listed, [Listed { name: "a".into(), len: 0 }]);
    }

    #[test]
    fn nothing_counts_as_deleted_because_the_store_was_unmounted() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("store");
        fs::create_dir_all(root.join("segments")).expect("makes");
        fs::write(root.join(STORE_FILE), "").expect("writes");
        let local = Local::new(&root);
        let kinds = || {
            let mut byte = [0];
            [
                local.list("snapshots").map(drop),
                local.names("snapshots").map(drop),
                local.read("snapshots/a", 0, &mut byte),
                local.len("segments/a").map(drop),
                local.remove("segments/a"),
            ]
            .map(|answer| answer.expect_err("is missing").kind())
        };
        assert_eq!(kinds(), [io::ErrorKind::NotFound; 5]);
        fs::rename(&root, dir.path().join("unmounted")).expect("moves");
        fs::create_dir(&root).expect("makes");
        assert_eq!(kinds(), [io::ErrorKind::StaleNetworkFileHandle; 5]);
    }

    #[test]
    fn a_new_name_never_replaces_a_file() {
        type Rename = fn(&Path, &Path, &File) -> io::Result<()>;
        for rename in [rename_new as Rename, link_new] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = |name: &str| dir.path().join(name);
            for name in ["a", "b"] {
                fs::write(path(name), name).expect("writes");
            }
            let open = |name: &str| File::open(path(name)).expect("opens");
            rename(&path("a"), &path("new"), &open("a")).expect("renames");
            let error = rename(&path("b"), &path("new"), &open("b")).expect_err("exists");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(path("new")).expect("reads"), "a");
            assert!(!path("a").exists() && path("b").exists());
        }
    }

    #[test]
    fn a_link_whose_first_answer_was_lost_counts_as_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, "a").expect("writes");
        fs::hard_link(&from, &to).expect("links");
        link_new(&from, &to, &File::open(&from).expect("opens")).expect("it is the same file");
        assert!(!from.exists() && to.exists());
    }
}
