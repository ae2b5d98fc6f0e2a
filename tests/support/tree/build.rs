//! Creates files of every kind, and records those that could not be created.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::{at, map};

/// Result of building a tree.
#[derive(Debug)]
pub struct Expected {
    /// Relative paths of all files below the top directory.
    pub paths: BTreeSet<PathBuf>,
    /// Objects that this user may not create, or that this file system cannot store.
    pub skipped: Vec<Skipped>,
}

/// An object that is missing from a tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Skipped {
    /// Description of the object.
    pub what: String,
    /// Reason why it is missing.
    pub reason: String,
}

impl Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

impl Expected {
    /// Panics with a list of the skipped objects, if there are any.
    pub fn assert_nothing_skipped(&self) {
        let list: Vec<String> = self.skipped.iter().map(Skipped::to_string).collect();
        assert!(list.is_empty(), "not in the tree:\n{}", list.join("\n"));
    }
}

/// Seconds since 1970, and nanoseconds counted forwards.
pub(super) type Time = (i64, u32);

/// Builds a tree step by step, below an existing directory.
///
/// A step that is not permitted or not supported is recorded as skipped. Steps that need its result
/// then do nothing. All other failures are errors.
///
/// Steps must come in this order: first the content of a directory, then owner, mode, attributes
/// and ACLs of each file. A change of owner drops special bits and capabilities, and an ACL
/// modifies the mode. Modification times are set last, by [`finish`](Self::finish).
pub(super) struct Builder {
    top: OwnedFd,
    /// The created paths, each with its final modification time.
    times: BTreeMap<Vec<u8>, Time>,
    skipped: Vec<Skipped>,
}

impl Builder {
    pub(super) fn new(top: &Path) -> io::Result<Self> {
        Ok(Builder {
            top: at::open_top(top).map_err(|error| explain(&top.display(), error))?,
            times: BTreeMap::from([(Vec::new(), time_for(b""))]),
            skipped: Vec::new(),
        })
    }

    /// Sets the modification times and returns the result.
    pub(super) fn finish(mut self) -> io::Result<Expected> {
        // Backwards, so that every directory follows its content.
        for (path, time) in self.times.clone().into_iter().rev() {
            self.set_time(&path, time)?;
        }
        self.times.remove(&b""[..]);
        let paths = self.times.into_keys().map(OsString::from_vec);
        Ok(Expected { paths: paths.map(PathBuf::from).collect(), skipped: self.skipped })
    }

    pub(super) fn dir(&mut self, path: &[u8]) -> io::Result<()> {
        self.make("directory", path, Some(0o755), |dir, name| {
            rustix::fs::mkdirat(dir, name, Mode::RWXU)
        })
    }

    pub(super) fn file(&mut self, path: &[u8], content: &[u8]) -> io::Result<()> {
        self.file_with("file", path, |file| file.write_all(content))
    }

    /// Creates a file of this size from pieces of data, each with its offset. The rest are holes.
    pub(super) fn sparse(
        &mut self,
        path: &[u8],
        size: u64,
        data: &[(u64, Vec<u8>)],
    ) -> io::Result<()> {
        self.file_with("sparse file", path, |file| {
            file.set_len(size)?;
            data.iter().try_for_each(|(offset, bytes)| file.write_all_at(bytes, *offset))
        })?;
        if self.has(path) && !self.has_hole(path, size)? {
            self.skip("hole", path, "the file system keeps none");
        }
        Ok(())
    }

    pub(super) fn symlink(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        // Links have no mode of their own.
        self.make("symbolic link", path, None, |dir, name| rustix::fs::symlinkat(target, dir, name))
    }

    pub(super) fn fifo(&mut self, path: &[u8]) -> io::Result<()> {
        self.node("FIFO", path, FileType::Fifo, 0)
    }

    pub(super) fn socket(&mut self, path: &[u8]) -> io::Result<()> {
        self.node("socket", path, FileType::Socket, 0)
    }

    pub(super) fn character_device(&mut self, path: &[u8], number: u64) -> io::Result<()> {
        self.node("character device", path, FileType::CharacterDevice, number)
    }

    pub(super) fn block_device(&mut self, path: &[u8], number: u64) -> io::Result<()> {
        self.node("block device", path, FileType::BlockDevice, number)
    }

    /// Adds another name to a file that is not a directory.
    pub(super) fn hard_link(&mut self, existing: &[u8], path: &[u8]) -> io::Result<()> {
        if !self.has(existing) {
            return Ok(());
        }
        let (from, old) = at::open_parent(self.top.as_fd(), existing)?;
        self.make("hard link", path, None, |dir, new| {
            rustix::fs::linkat(&from, old, dir, new, AtFlags::empty())
        })?;
        // Both names share one modification time.
        if let (true, Some(time)) = (self.has(path), self.times.get(existing)) {
            self.times.insert(path.to_vec(), *time);
        }
        Ok(())
    }

    pub(super) fn mode(&mut self, path: &[u8], mode: u32) -> io::Result<()> {
        let what = format!("mode {mode:04o}");
        let done = self.change(&what, path, |dir, name| {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())
        })?;
        // Without privileges, special bits can get lost without an error.
        if done && self.metadata(path)?.mode() & 0o7777 != mode {
            self.skip(&what, path, "not taken over");
        }
        Ok(())
    }

    pub(super) fn owner(&mut self, path: &[u8], user: u32, group: u32) -> io::Result<()> {
        self.change(&format!("owner {user}:{group}"), path, |dir, name| {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
            rustix::fs::chownat(dir, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
        })?;
        Ok(())
    }

    pub(super) fn xattr(&mut self, path: &[u8], xattr: &[u8], value: &[u8]) -> io::Result<()> {
        let what = format!("xattr {}", at::show(xattr));
        self.change(&what, path, |dir, name| {
            let path = at::proc_path(dir.as_fd(), name);
            match rustix::fs::lsetxattr(path, xattr, value, XattrFlags::empty()) {
                // The space for attributes is full, not the disk.
                Err(Errno::NOSPC) => Err(Errno::TOOBIG),
                result => result,
            }
        })?;
        Ok(())
    }

    /// Sets the final modification time of `path`. Without this call, the time depends only on the
    /// path. Must be called before `path` gets more names.
    pub(super) fn time(&mut self, path: &[u8], time: Time) {
        if let Some(planned) = self.times.get_mut(path) {
            *planned = time;
        }
    }

    /// Records that an object is not in the tree.
    pub(super) fn skip(&mut self, what: &str, path: &[u8], reason: &str) {
        self.skipped.push(Skipped {
            what: format!("{}: {what}", at::show(path)),
            reason: reason.to_owned(),
        });
    }

    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.times.contains_key(path)
    }

    fn file_with(
        &mut self,
        what: &str,
        path: &[u8],
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut made = None;
        self.make(what, path, None, |dir, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            made = Some(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
            Ok(())
        })?;
        let Some(made) = made else { return Ok(()) };
        let filled = fill(&mut made.into());
        if self.check(what, path, filled)? {
            return self.mode(path, 0o644);
        }
        self.times.remove(path);
        let (dir, name) = at::open_parent(self.top.as_fd(), path)?;
        at::unlink(dir.as_fd(), name)
    }

    fn node(&mut self, what: &str, path: &[u8], kind: FileType, device: u64) -> io::Result<()> {
        self.make(what, path, Some(0o644), |dir, name| {
            rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device)
        })
    }

    /// Creates a name. A given mode is set regardless of the umask.
    fn make(
        &mut self,
        what: &str,
        path: &[u8],
        mode: Option<u32>,
        make: impl FnOnce(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        if !self.has(at::split(path).0) {
            return Ok(());
        }
        let (dir, name) = at::open_parent(self.top.as_fd(), path)?;
        if !self.check(what, path, make(&dir, name).map_err(io::Error::from))? {
            return Ok(());
        }
        self.times.insert(path.to_vec(), time_for(path));
        match mode {
            Some(mode) => self.mode(path, mode),
            None => Ok(()),
        }
    }

    /// Changes a file if it was created. Returns true if it did.
    fn change(
        &mut self,
        what: &str,
        path: &[u8],
        change: impl FnOnce(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> io::Result<bool> {
        if !self.has(path) {
            return Ok(false);
        }
        let (dir, name) = at::open_parent(self.top.as_fd(), path)?;
        let result = change(&dir, name).map_err(io::Error::from);
        self.check(what, path, result)
    }

    /// Returns true if a step was done. Otherwise records it as skipped.
    fn check(&mut self, what: &str, path: &[u8], result: io::Result<()>) -> io::Result<bool> {
        match result {
            Ok(()) => Ok(true),
            Err(error) if is_refusal(&error) => {
                self.skip(what, path, &error.to_string());
                Ok(false)
            }
            Err(error) => Err(explain(&format!("{}: {what}", at::show(path)), error)),
        }
    }

    fn set_time(&mut self, path: &[u8], time: Time) -> io::Result<()> {
        let what = format!("mtime of {} s {} ns", time.0, time.1);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: time.0, tv_nsec: time.1.into() },
        };
        let done = self.change(&what, path, |dir, name| {
            rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        })?;
        if !done {
            return Ok(());
        }
        // A time out of range becomes the nearest possible one, without an error.
        let metadata = self.metadata(path)?;
        if (metadata.mtime(), metadata.mtime_nsec()) != (time.0, time.1.into()) {
            self.skip(&what, path, "the file system cannot store it");
        }
        Ok(())
    }

    fn metadata(&self, path: &[u8]) -> io::Result<std::fs::Metadata> {
        let (dir, name) = at::open_parent(self.top.as_fd(), path)?;
        at::metadata(dir.as_fd(), name)
    }

    fn has_hole(&self, path: &[u8], size: u64) -> io::Result<bool> {
        let (dir, name) = at::open_parent(self.top.as_fd(), path)?;
        let file = at::open_file(dir.as_fd(), name)?;
        Ok(map::has_hole(&map::data_ranges(&file, size)?, size))
    }
}

/// Returns true if an error means that something is not allowed or not supported here. Other errors
/// are faults that must stop the test.
fn is_refusal(error: &io::Error) -> bool {
    // This includes ids that a user namespace lacks (INVAL), names that are not text (ILSEQ) and
    // attributes that are too large (2BIG, RANGE).
    const REFUSALS: [Errno; 10] = [
        Errno::PERM,
        Errno::ACCESS,
        Errno::NOTSUP,
        Errno::NOSYS,
        Errno::INVAL,
        Errno::ILSEQ,
        Errno::NAMETOOLONG,
        Errno::FBIG,
        Errno::TOOBIG,
        Errno::RANGE,
    ];
    Errno::from_io_error(error).is_some_and(|errno| REFUSALS.contains(&errno))
}

fn explain(what: &dyn Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Returns a time between 2001 and 2023 that depends only on the path, so that two builds have
/// equal times. Never a whole second.
fn time_for(path: &[u8]) -> Time {
    const FIRST: u64 = 1_000_000_000;
    const SPAN: u64 = 700_000_000;
    let hash = hash(path);
    let seconds = FIRST + hash % SPAN;
    let nanoseconds = 1 + (hash >> 32) % 999_999_999;
    (seconds as i64, nanoseconds as u32)
}

/// 64-bit FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
