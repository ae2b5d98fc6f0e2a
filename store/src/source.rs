//! Access to files on this machine, always relative to an open directory.
//!
//! Paths may be longer than a system call accepts. Any process may replace a directory by a
//! symbolic link at any time; nothing here follows links below the open directory.

use crate::acl::{AclNames, Subject};
use crate::entry::{EntryKind, Owner, Time, Xattrs, display_path};
use crate::owner_map::{Class, name_of};
use crate::user_namespace;
use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxAttributes, StatxFlags,
    openat, openat2, statx,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest path passed to one system call, in bytes.
const STEP_BYTES: usize = 3000;
/// Limit of Linux for a list of attribute names and for one attribute, in bytes.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// Bytes of a directory listing read at once.
const LISTING_BYTES: usize = 32 << 10;

/// Longest wait for a lease. By default the kernel ends one sooner.
const LEASE_PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for all leases of this process. A client that does not answer may hold any number.
const LEASES_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Wait for a lease after others were waited for in vain, as long as [`LEASE_PATIENCE`] in all.
const LEASE_PATIENCE_LEFT: Duration = Duration::from_millis(200);
/// Milliseconds that this process waited in vain. File systems that answer so for another reason
/// would otherwise cost the whole time for each file.
static WAITED_IN_VAIN: AtomicU64 = AtomicU64::new(0);
/// Milliseconds that this process waited for leases.
static WAITED: AtomicU64 = AtomicU64::new(0);
/// Pause between two attempts.
const LEASE_PAUSE: Duration = Duration::from_millis(20);

/// Result of one look at a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Type.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Bytes on disk.
    pub allocated_bytes: u64,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Inode number.
    pub inode: u64,
    /// Device of the inode.
    pub device: u64,
    /// Number of names of the inode.
    pub names: u64,
    /// Major and minor number of a device node.
    pub node: (u32, u32),
}

impl Stat {
    fn new(stat: &Statx) -> io::Result<Stat> {
        let mode = u32::from(stat.stx_mode);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            _ => return Err(io::Error::other("its file type is unknown")),
        };
        let time =
            |t: &rustix::fs::StatxTimestamp| Time { seconds: t.tv_sec, nanoseconds: t.tv_nsec };
        Ok(Stat {
            kind,
            mode: mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            allocated_bytes: stat.stx_blocks.saturating_mul(512),
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
            inode: stat.stx_ino,
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            names: u64::from(stat.stx_nlink),
            node: (stat.stx_rdev_major, stat.stx_rdev_minor),
        })
    }

    /// Returns true if a file has the same content as in `other`, as far as metadata shows that.
    pub fn is_same_content(&self, other: &Stat) -> bool {
        (self.size, self.mtime, self.ctime, self.inode)
            == (other.size, other.mtime, other.ctime, other.inode)
    }
}

/// Reads the metadata of `name` in an open directory, without following a symbolic link.
pub fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Stat::new(&statx(dir, name, flags, StatxFlags::BASIC_STATS)?)
}

/// Returns true if the kernel reports a mount point at `name` (Linux 5.8). Device numbers show
/// mounts only for directories: layered file systems give files the device of the lower layer.
pub fn is_mount_root(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let looked = statx(dir, name, flags, StatxFlags::empty());
    looked.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Reads the metadata of an open file.
pub fn stat_open(file: impl AsFd) -> io::Result<Stat> {
    Stat::new(&statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?)
}

/// Opens a path of any length below an open directory. Fails if any component is a symbolic link.
pub fn open_below(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if path.is_empty() {
        return match openat(dir, c".", flags, Mode::empty()) {
            // This user may not enter the directory, but can still change its mode.
            Err(Errno::ACCESS) if flags.contains(OFlags::PATH) => Ok(dir.try_clone_to_owned()?),
            opened => Ok(opened?),
        };
    }
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    while !rest.is_empty() {
        let (step, after) = next_step(rest);
        let flags = if after.is_empty() { flags } else { STEP };
        at = Some(open_step(at.as_ref().map_or(dir, AsFd::as_fd), step, flags)?);
        rest = after;
    }
    Ok(at.expect("a path has at least one part"))
}

/// Flags for the directories between the steps of a long path.
const STEP: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Splits a path after as many components as the kernel accepts at once, or after the first.
fn next_step(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= STEP_BYTES {
        return (path, b"");
    }
    let is_slash = |byte: &u8| *byte == b'/';
    let end = path[..=STEP_BYTES].iter().rposition(is_slash);
    match end.or_else(|| path.iter().position(is_slash)) {
        Some(end) => (&path[..end], &path[end + 1..]),
        None => (path, b""),
    }
}

/// Opens a path that the kernel accepts at once.
fn open_step(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(dir, path, flags, Mode::empty(), resolve) {
        // Kernels before 5.6, and sandboxes that refuse the call.
        Err(Errno::NOSYS | Errno::PERM) => {}
        result => return Ok(result?),
    }
    let mut at: Option<OwnedFd> = None;
    let mut parts = path.split(|b| *b == b'/').peekable();
    while let Some(part) = parts.next() {
        let from = at.as_ref().map_or(dir, AsFd::as_fd);
        let flags = if parts.peek().is_some() { STEP } else { flags };
        at = Some(openat(from, part, flags, Mode::empty())?);
    }
    Ok(at.expect("a path has at least one part"))
}

/// Opens a file for reading without leaving a trace in its access time, where that is allowed.
/// A lease that a file server gave to a client is not waited for: `WouldBlock`.
pub fn open_file_below(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<File> {
    // A FIFO that replaced the file must not block.
    let open = |flags| open_below(dir, path, OFlags::RDONLY | OFlags::NONBLOCK | flags);
    without_trace(open).map(File::from)
}

/// The same, but waits for a lease, for as long as the kernel lets the client keep it
/// (`/proc/sys/fs/lease-break-time`, 45 seconds) or until `is_over`.
pub fn open_file_waiting(
    dir: BorrowedFd<'_>,
    path: &[u8],
    is_over: impl Fn() -> bool,
) -> io::Result<File> {
    let began = Instant::now();
    let waited = |sum: &AtomicU64| Duration::from_millis(sum.load(Ordering::Relaxed));
    let patience = patience(waited(&WAITED_IN_VAIN), waited(&WAITED));
    let mut has_waited = false;
    loop {
        match open_file_below(dir, path) {
            // The attempt itself asks the client to give the lease back.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if began.elapsed() >= patience || is_over() {
                    let waited = began.elapsed().as_millis() as u64;
                    WAITED_IN_VAIN.fetch_add(waited, Ordering::Relaxed);
                    WAITED.fetch_add(waited, Ordering::Relaxed);
                    return Err(error);
                }
                has_waited = true;
                std::thread::sleep(LEASE_PAUSE);
            }
            opened => {
                if has_waited {
                    WAITED.fetch_add(began.elapsed().as_millis() as u64, Ordering::Relaxed);
                }
                return opened;
            }
        }
    }
}

/// Returns the longest wait for a lease after this long was waited in vain, and this long in all.
fn patience(in_vain: Duration, in_all: Duration) -> Duration {
    let left = LEASE_PATIENCE.saturating_sub(in_vain);
    left.min(LEASES_PATIENCE.saturating_sub(in_all)).max(LEASE_PATIENCE_LEFT)
}

/// Opens with `NOATIME`, or without it if only the owner may use that flag.
fn without_trace(open: impl Fn(OFlags) -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    match open(OFlags::NOATIME) {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            open(OFlags::empty())
        }
        result => result,
    }
}

/// Opens a directory for listing.
pub fn open_dir_below(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    open_below(dir, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a directory by its path, following symbolic links.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// A name in a directory and its inode number.
type Name = (Box<[u8]>, u64);

/// Returns all names in an open directory with their inode numbers, in no order.
pub fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Name>> {
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.into(), entry.ino()));
        }
    }
    Ok(names)
}

/// Names in a directory, sorted and without duplicates, in few bytes each.
#[derive(Debug, Default)]
pub struct Names {
    /// All names, one after the other.
    bytes: Vec<u8>,
    rows: Vec<NameRow>,
}

/// A name in [`Names`].
#[derive(Debug, Clone, Copy)]
struct NameRow {
    /// Offset of the name, and its length in the lowest 16 bits.
    place: u64,
    inode: u64,
}

impl NameRow {
    fn name(self, bytes: &[u8]) -> &[u8] {
        &bytes[(self.place >> 16) as usize..][..(self.place & 0xffff) as usize]
    }
}

/// Result of reading the names in a directory.
#[derive(Debug, Default)]
pub struct NamesRead {
    /// The names.
    pub names: Names,
    /// Error that ended the listing early.
    pub error: Option<io::Error>,
    /// True if the directory has more names than requested.
    pub has_more: bool,
}

impl Names {
    /// Reads the wanted names in an open directory. Ends at more than `max` of them.
    pub fn read(
        dir: BorrowedFd<'_>,
        max: usize,
        mut is_wanted: impl FnMut(&[u8]) -> bool,
    ) -> NamesRead {
        let mut buffer = Vec::with_capacity(LISTING_BYTES);
        let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
        // Enough for most directories.
        let names = Names { bytes: Vec::with_capacity(1024), rows: Vec::with_capacity(64) };
        let mut read = NamesRead { names, ..NamesRead::default() };
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    read.error = Some(error.into());
                    break;
                }
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || !is_wanted(name) {
                continue;
            }
            if read.names.len() == max {
                read.has_more = true;
                break;
            }
            read.names.push(name, entry.ino());
        }
        read.names.sort();
        read
    }

    /// Adds names that are missing.
    pub fn add<'n>(&mut self, names: impl Iterator<Item = &'n [u8]>) {
        // The inode number decides only the order of reading.
        names.for_each(|name| self.push(name, 0));
        self.sort();
    }

    fn push(&mut self, name: &[u8], inode: u64) {
        // The kernel gives the length of a whole row in 16 bits.
        let place = (self.bytes.len() as u64) << 16 | name.len() as u64 & 0xffff;
        self.rows.push(NameRow { place, inode });
        self.bytes.extend_from_slice(name);
    }

    fn sort(&mut self) {
        let Names { bytes, rows } = self;
        rows.sort_unstable_by(|a, b| a.name(bytes).cmp(b.name(bytes)));
        // Some file systems list a name twice while the directory changes.
        rows.dedup_by(|a, b| a.name(bytes) == b.name(bytes));
    }

    /// Returns the number of names.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns true if it contains no names.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the name at a position.
    pub fn get(&self, at: usize) -> &[u8] {
        self.rows[at].name(&self.bytes)
    }

    /// Returns the position of a name.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.rows.binary_search_by(|row| row.name(&self.bytes).cmp(name)).ok()
    }

    /// Reads the metadata of the names at these positions in their open directory.
    ///
    /// Reads in order of inode numbers, which on a cold disk is the order of the inode tables. Names
    /// that vanished after the listing have an error of kind `NotFound`.
    pub fn stats(&self, dir: BorrowedFd<'_>, range: Range<usize>) -> Vec<io::Result<Stat>> {
        let mut order: Vec<usize> = range.clone().collect();
        order.sort_unstable_by_key(|at| self.rows[*at].inode);
        let mut stats = Vec::new();
        stats.resize_with(range.len(), || Err(io::ErrorKind::NotFound.into()));
        for at in order {
            stats[at - range.start] = stat_at(dir, self.get(at));
        }
        stats
    }
}

/// A name in a directory and its metadata.
pub type Listed = (Box<[u8]>, io::Result<Stat>);

/// Reads the metadata of everything in an open directory whose name is wanted. The result is sorted
/// by name without duplicates. Also returns the error that ended the listing early, if any.
pub fn list(
    dir: BorrowedFd<'_>,
    is_wanted: impl Fn(&[u8]) -> bool,
) -> (Vec<Listed>, Option<io::Error>) {
    let NamesRead { names, error, .. } = Names::read(dir, usize::MAX, is_wanted);
    let stats = names.stats(dir, 0..names.len()).into_iter().enumerate();
    (stats.map(|(at, stat)| (names.get(at).into(), stat)).collect(), error)
}

/// Returns the target of a symbolic link.
pub fn read_link(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<Vec<u8>> {
    let (parent, name) = parent_and_name(dir, path)?;
    let parent = parent.as_ref().map_or(dir, AsFd::as_fd);
    Ok(rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes())
}

/// Removes `.` and `..` from a path without reading the file system.
pub fn lexically(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    clean
}

/// Splits a relative path into its parent, which may be empty, and its last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        None => (b"", path),
        Some(at) => (&path[..at], &path[at + 1..]),
    }
}

/// Returns the last component of a path and its open parent. The parent is `None` if it is `dir`
/// itself.
fn parent_and_name<'p>(
    dir: BorrowedFd<'_>,
    path: &'p [u8],
) -> io::Result<(Option<OwnedFd>, &'p [u8])> {
    let (parent, name) = split(path);
    if parent.is_empty() {
        return Ok((None, name));
    }
    Ok((Some(open_below(dir, parent, OFlags::PATH | OFlags::DIRECTORY)?), name))
}

/// Extended attributes of one object.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Readable attributes, sorted by name.
    pub found: Xattrs,
    /// First error of the others, with the name of the attribute.
    pub error: Option<io::Error>,
}

impl Attributes {
    fn failed(error: io::Error) -> Attributes {
        let error = io::Error::new(error.kind(), format!("extended attributes: {error}"));
        Attributes { found: Vec::new(), error: Some(error) }
    }
}

/// Returns all extended attributes of an open file or directory, sorted by name.
pub fn xattrs_open(file: impl AsFd) -> io::Result<Xattrs> {
    let Attributes { found, error } = attributes_open(file);
    error.map_or(Ok(found), Err)
}

/// Returns the readable extended attributes of an open file or directory.
pub fn attributes_open(file: impl AsFd) -> Attributes {
    let file = file.as_fd();
    attributes(
        |buffer| rustix::fs::flistxattr(file, buffer),
        |name, buffer| rustix::fs::fgetxattr(file, name, buffer),
    )
}

/// Returns all extended attributes of an object that cannot be opened, sorted by name.
pub fn xattrs_below(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<Xattrs> {
    let Attributes { found, error } = attributes_below(dir, path);
    error.map_or(Ok(found), Err)
}

/// Returns the readable extended attributes of an object that cannot be opened: a link, FIFO,
/// socket or device.
///
/// A missing object has an error of kind `NotFound`.
pub fn attributes_below(dir: BorrowedFd<'_>, path: &[u8]) -> Attributes {
    let (parent, name) = match parent_and_name(dir, path) {
        Ok(place) => place,
        Err(error) => return Attributes::failed(error),
    };
    let parent = parent.as_ref().map_or(dir, AsFd::as_fd);
    // No system call takes a directory and a name. A path through `/proc` reaches the open
    // directory.
    let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
    let path = match CString::new(path) {
        Ok(path) => path,
        Err(error) => return Attributes::failed(io::Error::other(error)),
    };
    let read = attributes(
        |buffer| rustix::fs::llistxattr(&path, buffer),
        |name, buffer| rustix::fs::lgetxattr(&path, name, buffer),
    );
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    if read.error.as_ref().is_some_and(is_gone) && stat_at(parent, name).is_ok() {
        return Attributes::failed(io::Error::other("/proc is not mounted"));
    }
    read
}

/// Prefix of attributes with which XFS shows root its ACLs a second time.
pub(crate) const XFS_ACLS: &[u8] = b"trusted.SGI_ACL_";

fn attributes(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&OsStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> Attributes {
    let mut names = vec![0; 1024];
    let mut len = list(&mut names);
    if len == Err(Errno::RANGE) {
        names.resize(XATTR_BYTES_MAX, 0);
        len = list(&mut names);
    }
    match len {
        Ok(0) | Err(Errno::NOTSUP) => return Attributes::default(),
        Ok(len) => names.truncate(len),
        Err(error) => return Attributes::failed(error.into()),
    }
    let mut value = vec![0; XATTR_BYTES_MAX];
    let mut read = Attributes::default();
    let is_kept = |name: &&[u8]| !name.is_empty() && !name.starts_with(XFS_ACLS);
    for name in names.split(|b| *b == 0).filter(is_kept) {
        match get(OsStr::from_bytes(name), &mut value) {
            Ok(len) => read.found.push((name.to_vec(), value[..len].to_vec())),
            // Removed since the listing.
            Err(Errno::NODATA) => {}
            Err(error) => {
                let error = io::Error::from(error);
                let text = format!("extended attribute {}: {error}", display_path(name));
                read.error.get_or_insert(io::Error::new(error.kind(), text));
            }
        }
    }
    read.found.sort();
    read
}

/// Returns the data between `from` and `to` of a sparse file: ranges `[begin, end)` in order. The
/// rest are holes.
///
/// The last range ends at `to` at most. File systems without support for holes report everything as
/// data.
pub fn data_runs(
    file: &File,
    from: u64,
    to: u64,
) -> impl Iterator<Item = io::Result<(u64, u64)>> + '_ {
    use rustix::fs::{SeekFrom, seek};
    let mut at = from;
    std::iter::from_fn(move || {
        if at >= to {
            return None;
        }
        let begin = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return None,
            Ok(begin) => begin,
            Err(error) => {
                at = to;
                return Some(Err(error.into()));
            }
        };
        let end = match seek(file, SeekFrom::Hole(begin)) {
            Ok(end) => end.min(to),
            Err(_) => to,
        };
        at = end;
        (begin < to).then_some(Ok((begin, end)))
    })
}

/// Returns true if a file of `len` bytes has no holes.
pub fn is_all_data(file: &File, len: u64) -> io::Result<bool> {
    let first = data_runs(file, 0, len).next().transpose()?;
    Ok(first == Some((0, len)))
}

/// Reads until the buffer is full or the file ends. Returns the number of bytes read.
pub fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    fill(buffer, |filled, space| {
        let offset = offset + filled as u64;
        match file.read_at(space, offset) {
            // Some file systems must fetch the bytes first and honour `O_NONBLOCK`.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let flags = rustix::fs::fcntl_getfl(file)?;
                rustix::fs::fcntl_setfl(file, flags - OFlags::NONBLOCK)?;
                file.read_at(space, offset)
            }
            result => result,
        }
    })
}

/// Like [`read_full`], from a stream.
pub fn read_stream(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    fill(buffer, |_, space| input.read(space))
}

/// Returns true if a file has a byte at `offset`.
pub fn has_more(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    matches!(file.read_at(&mut byte, offset), Ok(1))
}

fn fill(
    buffer: &mut [u8],
    mut read: impl FnMut(usize, &mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read(filled, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            // A signal is not a failure.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads a file in larger steps than requested.
pub struct Ahead<'a> {
    file: &'a File,
    len: u64,
    /// Minimum bytes per read, unless the file ends earlier.
    step: usize,
    /// Offset of `bytes` in the file.
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Ahead<'a> {
    /// Creates a reader for a file of `len` bytes that reads `step` bytes at once.
    pub fn new(file: &'a File, len: u64, step: usize) -> Ahead<'a> {
        Ahead { file, len, step, at: 0, bytes: Vec::new() }
    }

    /// Returns `len` bytes from `at` on. Fewer bytes are an error.
    pub fn read(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let is_there = self.at <= at && at + len as u64 <= self.at + self.bytes.len() as u64;
        if !is_there {
            let more = (self.step as u64).min(self.len.saturating_sub(at)) as usize;
            self.bytes.resize(len.max(more), 0);
            self.at = at;
            if let Err(error) = self.file.read_exact_at(&mut self.bytes, at) {
                self.bytes.clear();
                return Err(error);
            }
        }
        Ok(&self.bytes[(at - self.at) as usize..][..len])
    }
}

/// Names of users and groups; each is looked up once.
#[derive(Debug, Default)]
pub struct Owners {
    known: Mutex<Known>,
}

/// Results of lookups.
#[derive(Debug, Default)]
struct Known {
    /// True if an owner was found that this user namespace does not know.
    has_unmapped: bool,
    owners: HashMap<(u32, u32), Arc<Owner>>,
    /// `None` for a user or group without a name.
    names: HashMap<Subject, Option<Arc<[u8]>>>,
}

impl Owners {
    /// Returns the owner with these numbers, with the names known on this machine.
    ///
    /// Calls `failed` once per user and group with the reason why a name could not be looked up, and
    /// once if the number itself is unknown.
    pub fn get(&self, uid: u32, gid: u32, failed: impl Fn(String)) -> Arc<Owner> {
        let Known { owners, names, has_unmapped } = &mut *self.known.lock();
        let owner = owners.entry((uid, gid)).or_insert_with(|| {
            if !*has_unmapped && user_namespace::may_hide((uid, gid)) {
                *has_unmapped = true;
                failed(format!(
                    "this user namespace does not know some owners; storing {uid}:{gid} instead of \
                     them, and a restore will set that"
                ));
            }
            let mut name = |subject| known_name(names, subject, &failed).map(|name| name.to_vec());
            let (user, group) = (name(Subject::User(uid)), name(Subject::Group(gid)));
            Arc::new(Owner { uid, gid, user, group })
        });
        Arc::clone(owner)
    }

    /// Returns the names known on this machine for the users and groups in the POSIX ACLs among
    /// these attributes. Also returns the number of names that exceed the limits.
    ///
    /// Calls `failed` like [`Owners::get`].
    pub fn acl_names(
        &self,
        xattrs: &Xattrs,
        failed: impl Fn(String),
    ) -> (Option<Arc<AclNames>>, usize) {
        AclNames::of(xattrs, |subject| known_name(&mut self.known.lock().names, subject, &failed))
    }

    /// Like [`Owners::acl_names`]; names that are unknown today stay as they were.
    pub fn acl_names_now(
        &self,
        xattrs: &Xattrs,
        then: Option<&AclNames>,
        failed: impl Fn(String),
    ) -> Option<Arc<AclNames>> {
        let name = |subject| {
            let now = known_name(&mut self.known.lock().names, subject, &failed);
            now.or_else(|| then?.get(subject).cloned())
        };
        AclNames::of(xattrs, name).0
    }
}

/// Returns the name of a user or group, and looks it up if necessary.
fn known_name(
    names: &mut HashMap<Subject, Option<Arc<[u8]>>>,
    subject: Subject,
    failed: &impl Fn(String),
) -> Option<Arc<[u8]>> {
    let name = names.entry(subject).or_insert_with(|| look_up(subject, failed).map(Arc::from));
    name.clone()
}

fn look_up(subject: Subject, failed: &impl Fn(String)) -> Option<Vec<u8>> {
    let (class, id) = match subject {
        Subject::User(id) => (Class::User, id),
        Subject::Group(id) => (Class::Group, id),
    };
    name_of(class, id).unwrap_or_else(|error| {
        let what = class.word();
        failed(format!("cannot look up the name of {what} {id}: {error}; storing only its number"));
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads attributes that are listed as `names` and whose values `get` returns.
    fn read(names: &[u8], get: impl Fn(&str) -> rustix::io::Result<usize>) -> Attributes {
        let list = |buffer: &mut [u8]| {
            let space = buffer.get_mut(..names.len()).ok_or(Errno::RANGE)?;
            space.copy_from_slice(names);
            Ok(names.len())
        };
        attributes(list, |name, _| get(name.to_str().expect("text")))
    }

    #[test]
    fn leases_are_waited_for_only_for_a_time() {
        let seconds = Duration::from_secs;
        let none = Duration::ZERO;
        assert_eq!(patience(none, none), LEASE_PATIENCE);
        assert_eq!(patience(seconds(40), seconds(40)), seconds(20));
        assert_eq!(patience(none, LEASES_PATIENCE - seconds(5)), seconds(5));
        for waited in [LEASE_PATIENCE, LEASES_PATIENCE, seconds(10_000)] {
            assert_eq!(patience(waited, waited), LEASE_PATIENCE_LEFT);
        }
        assert_eq!(patience(none, LEASES_PATIENCE), LEASE_PATIENCE_LEFT);
    }

    #[test]
    fn an_unreadable_attribute_loses_only_itself() {
        let names = b"user.c\0user.gone\0user.a\0user.bad\0";
        let read = read(names, |name| match name {
            "user.gone" => Err(Errno::NODATA),
            "user.bad" => Err(Errno::IO),
            _ => Ok(1),
        });
        let found: Vec<&[u8]> = read.found.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(found, [b"user.a", b"user.c"]);
        let error = read.error.expect("one failed").to_string();
        assert!(error.starts_with("extended attribute user.bad: "), "{error}");
    }

    #[test]
    fn unsupported_attributes_are_not_an_error() {
        assert!(read(b"user.a\0", |_| Err(Errno::NODATA)).error.is_none());
        // A file system that lists an attribute has it.
        assert!(read(b"user.a\0", |_| Err(Errno::NOTSUP)).error.is_some());
        let none = attributes(|_| Err(Errno::NOTSUP), |_, _| Ok(0));
        assert!(none.found.is_empty() && none.error.is_none());
        assert!(attributes(|_| Err(Errno::IO), |_, _| Ok(0)).error.is_some());
    }

    #[test]
    fn each_user_and_group_is_looked_up_once() {
        use crate::arbitrary::acl;
        let owners = Owners::default();
        let failed = |text: String| panic!("{text}");
        let subjects = [Subject::User(0), Subject::User(4_000_000_000), Subject::Group(0)];
        let xattrs = vec![(b"system.posix_acl_access".to_vec(), acl(&subjects))];
        let (names, skipped) = owners.acl_names(&xattrs, failed);
        let names = names.expect("root has a name");
        let found: Vec<_> = names.iter().collect();
        let root = &b"root"[..];
        assert_eq!(found, [(Subject::User(0), root), (Subject::Group(0), root)]);
        assert_eq!(skipped, 0);
        let user = owners.get(0, 4_000_000_000, failed);
        assert_eq!((user.user.as_deref(), &user.group), (Some(root), &None));
        let known = owners.known.lock();
        assert_eq!(known.names.len(), 4, "{known:?}");
    }

    #[test]
    fn a_long_list_of_attributes_is_read_in_two_calls() {
        let names: Vec<u8> = (0..500).flat_map(|n| format!("user.{n:03}\0").into_bytes()).collect();
        assert!(names.len() > 1024);
        assert_eq!(read(&names, |_| Ok(2)).found.len(), 500);
    }
}
