//! Metadata that a restore gives to objects in the target.

use super::{Setting, Target};
use crate::entry::{Entry, EntryKind, Time, Xattrs};
use crate::observe::{Cause, Reason};
use crate::owner_map::UNCHANGED;
use crate::source::{self, Stat};
use rustix::fs::{
    AtFlags, Mode, Timespec, Timestamps, UTIME_OMIT, XattrFlags, chmod, chownat, fchmod,
    fremovexattr, fsetxattr, futimens, removexattr, setxattr, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

/// The attribute that holds an ACL.
pub(super) const ACCESS_ACL: &str = "system.posix_acl_access";
/// Attribute that holds the ACL for objects created in a directory.
pub(super) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Seconds since 1970 that every file system can hold: FAT begins in 1980, and signed 32 bits end
/// in 2038.
const TIMES_HELD_EVERYWHERE: std::ops::RangeInclusive<i64> = 315_532_800..=i32::MAX as i64;

/// Steps of the times of file systems, in nanoseconds: of NTFS, of UDF, of exFAT, of old ext4 and
/// HFS+, of FAT.
const TIME_STEPS: [i128; 5] = [100, 1_000, 10_000_000, 1_000_000_000, 2_000_000_000];

/// Prefixes of attributes that a kernel or a file system sets by itself, or that new files inherit.
const OF_SYSTEMS: [&[u8]; 10] = [
    b"system.",
    b"security.selinux",
    b"security.ima",
    b"security.evm",
    b"btrfs.",
    b"trusted.lov",
    b"trusted.lma",
    b"trusted.link",
    b"trusted.gfid",
    b"trusted.glusterfs.",
];

/// Permissions that an owner needs to work in a directory.
pub(super) const OWNER_ALL: u32 = 0o700;

/// Metadata that an object of the target gets.
///
/// This value stands between an entry and the disk: a restore and its dry run ask only this value
/// for owner and mode.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    /// Type of the object.
    pub kind: EntryKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// User and group; [`UNCHANGED`] leaves one as it is.
    pub owner: (u32, u32),
    /// Modification time; `None` leaves it as it is.
    pub mtime: Option<Time>,
    /// Extended attributes, by name.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// False if the backup could not read all attributes. Others then stay.
    pub is_complete: bool,
}

impl<'a> Metadata<'a> {
    /// Returns the metadata for the object of an entry.
    pub fn of(entry: &'a Entry) -> Metadata<'a> {
        Metadata {
            kind: entry.kind,
            mode: entry.mode,
            owner: (entry.owner.uid, entry.owner.gid),
            mtime: entry.mtime,
            xattrs: &entry.xattrs,
            is_complete: entry.has_all_metadata(),
        }
    }

    /// Returns the user and group that an object with this owner gets.
    pub fn wanted_owner(&self, is: (u32, u32)) -> (u32, u32) {
        let of = |wanted, is| if wanted == UNCHANGED { is } else { wanted };
        (of(self.owner.0, is.0), of(self.owner.1, is.1))
    }

    /// Returns true if an object has this owner and mode.
    pub fn has_owner_and_mode(&self, stat: &Stat) -> bool {
        let owner = (stat.uid, stat.gid);
        self.wanted_owner(owner) == owner && stat.mode == self.safe_mode(owner)
    }

    /// Returns the changes of attributes that an object with the attributes `present` needs: values
    /// to set, and `None` for attributes to remove.
    pub fn xattr_changes<'m>(
        &'m self,
        present: &'m Xattrs,
    ) -> impl Iterator<Item = (&'m [u8], Option<&'m [u8]>)> {
        let has = |list: &[(Vec<u8>, Vec<u8>)], name: &[u8]| list.iter().any(|(n, _)| n == name);
        // The metadata lacks attributes that the backup could not read.
        let gone = present.iter().filter(move |(name, _)| {
            self.is_complete && is_ours_to_remove(name) && !has(self.xattrs, name)
        });
        // Other programs and older snapshots may have stored these.
        let wanted = self.xattrs.iter().filter(|(name, _)| !name.starts_with(source::XFS_ACLS));
        let set = wanted.filter(|xattr| !present.contains(xattr));
        let set = set.map(|(name, value)| (&name[..], Some(&value[..])));
        gone.map(|(name, _)| (&name[..], None)).chain(set)
    }

    /// Returns the mode for an object that got this user and group. If they are not the wanted ones,
    /// drops setuid or setgid so that no one else gets those rights.
    pub(super) fn safe_mode(&self, owner: (u32, u32)) -> u32 {
        let mut mode = self.mode;
        // On a directory these bits grant no rights.
        if self.kind != EntryKind::Directory {
            mode &= if owner.0 == self.owner.0 { !0 } else { !0o4000 };
            mode &= if owner.1 == self.owner.1 { !0 } else { !0o2000 };
        }
        mode
    }
}

/// Metadata that could not be set on an entry, with reasons. The content is complete.
#[derive(Debug, Default)]
#[must_use]
pub struct Refused {
    texts: Vec<String>,
    cause: Cause,
    /// Error of a disk that is full or fails.
    lack: Option<Errno>,
}

/// An open object whose metadata is set.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) fd: BorrowedFd<'a>,
    /// Directory and name of an object that can only be opened with `O_PATH`.
    pub(super) at: Option<(BorrowedFd<'a>, &'a [u8])>,
}

impl Refused {
    /// Returns true if everything was set.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    pub(crate) fn note(&mut self, what: &str, error: &io::Error) {
        self.texts.push(format!("{what}: {error}"));
        self.cause = error.into();
        let is_lack = |errno: &Errno| {
            matches!(*errno, Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::NOMEM | Errno::ROFS)
        };
        self.lack = Errno::from_io_error(error).filter(is_lack).or(self.lack);
    }

    /// Returns the error of a disk that is full or fails, if it is among the reasons.
    pub(crate) fn lack(&self) -> Option<Errno> {
        self.lack
    }

    /// Notes the error of setting an attribute. Returns false if this user or file system does not
    /// allow such attributes: that concerns many files and is only counted.
    pub(crate) fn note_xattr(&mut self, name: &[u8], error: Errno, is_root: bool) -> bool {
        let what = format!("attribute {}", crate::entry::display_path(name));
        // Root may set `user.` attributes wherever the file system supports them.
        let is_about_the_file = is_root && name.starts_with(b"user.") && error != Errno::NOTSUP;
        match error {
            Errno::NODATA => {}
            Errno::PERM | Errno::NOTSUP | Errno::ACCESS if !is_about_the_file => return false,
            Errno::NOSPC | Errno::DQUOT | Errno::RANGE | Errno::TOOBIG => {
                self.texts
                    .push(format!("{what}: too large for this file system, or the disk is full"));
            }
            error => self.note(&what, &error.into()),
        }
        true
    }

    /// Returns all reasons as one. `protection` is the error of an attribute that is the cause.
    pub(crate) fn reason(&self, protection: Option<&io::Error>) -> Reason {
        let protection = protection.map(ToString::to_string);
        let texts: Vec<String> = self.texts.iter().cloned().chain(protection).collect();
        Reason { text: texts.join("; "), cause: self.cause }
    }
}

impl Target {
    /// Sets owner, attributes, mode and times, in this order, because each may undo parts of the
    /// later ones. Sets only values that differ.
    pub(super) fn give_metadata(
        &self,
        node: Node<'_>,
        stat: &Stat,
        metadata: &Metadata<'_>,
        is_new: bool,
    ) -> Refused {
        let mut refused = Refused::default();
        let given = self.give_owner(node, stat, metadata, &mut refused);
        let owner = self.resulting_owner(node, stat, metadata, given);
        // A change of owner clears bits of the mode.
        let mut mode = Some(stat.mode).filter(|_| given == (stat.uid, stat.gid));
        let may_have_xattrs = !is_new || self.gives_acl.load(Ordering::Relaxed);
        if may_have_xattrs || !metadata.xattrs.is_empty() {
            self.give_xattrs(node, metadata, may_have_xattrs, &mut mode, &mut refused);
        }
        let wanted = self.rights.given_mode(owner, metadata);
        if metadata.kind != EntryKind::Symlink && mode != Some(wanted) {
            match node.chmod(wanted) {
                Ok(()) => self.check_heeded(Setting::Mode, node, stat, |now| {
                    // The kernel may drop setgid for a user outside of the group.
                    let is_set = now.mode & 0o777 == wanted & 0o777;
                    if !is_set {
                        let ignored = io::Error::other("this file system ignores it");
                        refused.note("mode", &ignored);
                    }
                    is_set
                }),
                Err(error) => refused.note("mode", &error),
            }
        }
        // A time that looks rounded or limited by the file system may be another one.
        if let Some(mtime) = metadata.mtime.filter(|mtime| is_new || *mtime != stat.mtime) {
            match node.set_mtime(mtime) {
                Ok(()) if node.at.is_none() => {
                    self.check_heeded(Setting::Time, node, stat, |now| {
                        let is_set = is_about(mtime, now);
                        // libfuse 2 sets nothing unless it gets both times.
                        if !is_set && let Err(error) = node.set_both_times(mtime) {
                            refused.note("time", &error);
                        }
                        is_set
                    });
                }
                Ok(()) => {}
                Err(error) => refused.note("time", &error),
            }
        }
        refused
    }

    /// Looks at an object after a setting, unless its file system is known to heed that one.
    fn check_heeded(
        &self,
        setting: Setting,
        node: Node<'_>,
        stat: &Stat,
        is_set: impl FnOnce(&Stat) -> bool,
    ) {
        let key = (stat.device, setting);
        if !self.heeded.lock().contains(&key)
            && source::stat_open(node.fd).is_ok_and(|now| is_set(&now))
        {
            self.heeded.lock().insert(key);
        }
    }

    /// Returns user and group of an object that `given` was set on. Some file systems ignore it
    /// without an error.
    ///
    /// An owner is read again once for each file system. A file with setuid or setgid always is, so
    /// that no one else gets those rights.
    fn resulting_owner(
        &self,
        node: Node<'_>,
        stat: &Stat,
        metadata: &Metadata<'_>,
        given: (u32, u32),
    ) -> (u32, u32) {
        let is = (stat.uid, stat.gid);
        if given == is {
            return is;
        }
        let setting = match self.verifies_owners {
            true => Setting::OwnerOf(given.0, given.1),
            false => Setting::Owner,
        };
        let key = (stat.device, setting);
        let is_file = !matches!(metadata.kind, EntryKind::Directory | EntryKind::Symlink);
        let gives_rights = is_file && metadata.mode & 0o6000 != 0;
        if !gives_rights && self.heeded.lock().contains(&key) {
            return given;
        }
        let now = source::stat_open(node.fd).map_or(is, |now| (now.uid, now.gid));
        if now == given {
            self.heeded.lock().insert(key);
        } else if given == metadata.wanted_owner(is) {
            self.owner_denied.fetch_add(1, Ordering::Relaxed);
        }
        now
    }

    /// Sets the owner as far as this user may. Returns user and group, as chown(2) reported them.
    fn give_owner(
        &self,
        node: Node<'_>,
        stat: &Stat,
        metadata: &Metadata<'_>,
        refused: &mut Refused,
    ) -> (u32, u32) {
        let is = (stat.uid, stat.gid);
        let wanted = metadata.wanted_owner(is);
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

    /// Sets attributes that differ. With `may_have_others`, removes attributes that the metadata
    /// lacks and users set.
    fn give_xattrs(
        &self,
        node: Node<'_>,
        metadata: &Metadata<'_>,
        may_have_others: bool,
        mode: &mut Option<u32>,
        refused: &mut Refused,
    ) {
        let present = match may_have_others.then(|| node.xattrs()).transpose() {
            Ok(present) => present.unwrap_or_default(),
            Err(_) if !metadata.is_complete => Vec::new(),
            Err(error) => {
                refused.note("attributes", &error);
                return;
            }
        };
        for (name, value) in metadata.xattr_changes(&present) {
            let mut changed = node.set_xattr(name, value);
            if matches!(changed, Err(Errno::ACCESS)) && metadata.kind != EntryKind::Symlink {
                // `user.` attributes require write permission; the mode is set afterwards.
                let writable = mode.unwrap_or(metadata.mode) | OWNER_ALL;
                if node.chmod(writable & 0o777).is_ok() {
                    *mode = None;
                    changed = node.set_xattr(name, value);
                }
            }
            if name == ACCESS_ACL.as_bytes() && changed.is_ok() {
                *mode = None;
            }
            self.note_xattr(name, changed, refused);
        }
    }

    fn note_xattr(&self, name: &[u8], result: rustix::io::Result<()>, refused: &mut Refused) {
        if let Err(error) = result
            && !refused.note_xattr(name, error, self.uid == 0)
        {
            self.xattr_denied.fetch_add(1, Ordering::Relaxed);
        }
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

    pub(super) fn chmod(&self, mode: u32) -> io::Result<()> {
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

    /// Sets the time of the last access, too. Fails if the time of the last change is another one
    /// then.
    fn set_both_times(&self, mtime: Time) -> io::Result<()> {
        let times = times(mtime);
        futimens(self.fd, &Timestamps { last_access: times.last_modification, ..times })?;
        match is_about(mtime, &source::stat_open(self.fd)?) {
            true => Ok(()),
            false => Err(io::Error::other("this file system ignores it")),
        }
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

/// Returns true for attributes that users set. Systems set the others by themselves.
fn is_ours_to_remove(name: &[u8]) -> bool {
    let is_acl = name == ACCESS_ACL.as_bytes() || name == DEFAULT_ACL.as_bytes();
    is_acl || !OF_SYSTEMS.iter().any(|prefix| name.starts_with(prefix))
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

/// Returns true if a file has this time, up to the coarsest rounding of file systems.
fn is_about(wanted: Time, stat: &Stat) -> bool {
    stat.mtime.seconds.abs_diff(wanted.seconds) <= 2
}

fn not_held(wanted: Time, held: i64) -> io::Error {
    let wanted = wanted.seconds;
    io::Error::other(format!(
        "this file system cannot store {wanted} s since 1970; it stored {held} s"
    ))
}

fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
    }
}
