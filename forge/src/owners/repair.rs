//! Sets owners and modes on this machine.

use super::{Visited, owner_and_mode};
use crate::error::Result;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, XattrFlags, chmod, chownat, fstat, lgetxattr, openat, setxattr,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use store::backup::tree_path;
use store::entry::{Entry, EntryKind};
use store::owner_map::{OwnerAndMode, OwnerMap, RecordFile, SystemAccounts, Unmatched, acl_lines};
use store::source::Owners;

/// Setuid and setgid bits.
const SET_IDS: u32 = 0o6000;

/// Changed paths that are named.
const NAMED: usize = 10;

/// Changes of a repair.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Number of paths that were looked at.
    pub looked_at: u64,
    /// Number of paths whose owner or mode was changed, or would be.
    pub changed: u64,
    /// The first of them, with old and new owner and mode.
    pub examples: Vec<String>,
    /// Paths that could not be changed, with reasons.
    pub failed: Vec<(PathBuf, io::Error)>,
    /// Number of directories that could not be listed.
    pub unlisted: u64,
    /// Names of files with several names.
    pub(super) names: LinkNames,
}

/// Files with several names, by device and inode.
#[derive(Debug, Default)]
pub(super) struct LinkNames(HashMap<(u64, u64), Names>);

/// Names of a file that were met.
#[derive(Debug)]
struct Names {
    count: u64,
    /// Owner and mode that the first of them needs.
    wanted: OwnerAndMode,
    /// False if another one needs something else.
    agree: bool,
}

impl LinkNames {
    fn key(metadata: &Metadata) -> (u64, u64) {
        (metadata.dev(), metadata.ino())
    }

    /// Adds a name of a file.
    fn add(&mut self, metadata: &Metadata, wanted: OwnerAndMode) {
        let new = Names { count: 0, wanted, agree: true };
        let names = self.0.entry(Self::key(metadata)).or_insert(new);
        names.count += 1;
        names.agree &= names.wanted == wanted;
    }

    /// Returns the reason why a file cannot change. Its names may need different owners.
    fn refusal(&self, metadata: &Metadata) -> Option<&'static str> {
        let names = self.0.get(&Self::key(metadata));
        let met = names.map_or(0, |names| names.count);
        if metadata.is_dir() || metadata.nlink() == 1 {
            None
        } else if metadata.nlink() > met.max(1) {
            Some("it has another name outside of these directories")
        } else if names.is_some_and(|names| !names.agree) {
            Some(
                "it has another name in a part with another owner or mode; replace one of the names \
                 by a copy",
            )
        } else {
            None
        }
    }
}

/// A repair under way. Every pass looks at the same paths.
pub(super) struct Repair<'a> {
    /// Rules that replace the needs of the product.
    rules: Option<&'a OwnerMap>,
    /// Names of users and groups.
    known: Owners,
    pass: Pass,
    /// Names that an earlier pass met; empty in the first pass.
    names: LinkNames,
    pub(super) repaired: Repaired,
}

/// Purpose of a pass.
pub(super) enum Pass {
    /// Counts the changes.
    Count,
    /// Writes rules that undo the changes to a file.
    Record(PathBuf, RecordFile),
    /// Makes the changes.
    Change,
}

impl Pass {
    /// Begins a pass that creates the file.
    pub(super) fn record(file: &Path) -> Result<Pass> {
        Ok(Pass::Record(file.to_owned(), RecordFile::create_whole(file, Path::new("/"))?))
    }
}

impl<'a> Repair<'a> {
    pub(super) fn begin(rules: Option<&'a OwnerMap>, pass: Pass, names: LinkNames) -> Repair<'a> {
        Repair { rules, known: Owners::default(), pass, names, repaired: Repaired::default() }
    }

    /// Handles a path. Parents come before their content.
    pub(super) fn visit(&mut self, visited: &Visited<'_>) -> Result<()> {
        let before = owner_and_mode(visited.metadata);
        let acls = acls(visited);
        let (mut wanted, mut wanted_acls) = match self.rules {
            Some(rules) => by_rules(rules, &self.known, visited, before, &acls),
            None => (visited.wanted, acls.clone()),
        };
        self.repaired.looked_at += 1;
        if !visited.metadata.is_dir() && visited.metadata.nlink() > 1 {
            self.repaired.names.add(visited.metadata, wanted);
        }
        let is_right = |wanted, wanted_acls: &Acls| before == wanted && acls == *wanted_acls;
        if !is_right(wanted, &wanted_acls)
            && let Some(reason) = self.names.refusal(visited.metadata)
        {
            (wanted, wanted_acls) = (before, acls.clone());
            self.repaired.failed.push((visited.path.to_owned(), io::Error::other(reason)));
        }
        if let Pass::Record(_, record) = &mut self.pass {
            let (path, kind) = (tree_path(visited.path), kind(visited));
            let lines = acl_lines(&acls);
            match visited.is_alone {
                true => record.add_alone(&path, kind, before, wanted, &lines)?,
                false => record.add(&path, kind, before, wanted, &lines)?,
            }
        }
        if is_right(wanted, &wanted_acls) {
            return Ok(());
        }
        // A change of the mode changes an ACL, too.
        let changes = if acls == wanted_acls { &Acls::new() } else { &wanted_acls };
        if matches!(self.pass, Pass::Change)
            && let Err(error) = set(visited, wanted, changes)
        {
            self.repaired.failed.push((visited.path.to_owned(), error));
            return Ok(());
        }
        self.repaired.changed += 1;
        if self.repaired.examples.len() < NAMED {
            let path = crate::view::shown(visited.path);
            self.repaired.examples.push(format!("{path}: {} → {}", shown(before), shown(wanted)));
        }
        Ok(())
    }

    /// Ends the pass. A record is on disk then, or gone if there is nothing to undo.
    pub(super) fn finish(self) -> Result<Repaired> {
        if let Pass::Record(file, record) = self.pass {
            record.finish()?;
            if self.repaired.changed == 0 {
                std::fs::remove_file(&file)
                    .map_err(|source| store::Error::OwnerRecord { file, source })?;
            }
        }
        Ok(self.repaired)
    }
}

fn kind(visited: &Visited<'_>) -> EntryKind {
    match visited.metadata {
        metadata if metadata.is_dir() => EntryKind::Directory,
        metadata if metadata.is_symlink() => EntryKind::Symlink,
        _ => EntryKind::File,
    }
}

/// Returns the owner and mode that rules give to a path. A number without a name matches no rule for
/// a name.
fn by_rules(
    rules: &OwnerMap,
    names: &Owners,
    visited: &Visited<'_>,
    is: OwnerAndMode,
    acls: &Acls,
) -> (OwnerAndMode, Acls) {
    let owner = names.get(is.uid, is.gid, |_| {});
    let path = tree_path(visited.path);
    let xattrs = acls.clone();
    let mut entry = Entry { owner, xattrs, ..Entry::new(path, kind(visited), is.mode) };
    rules.apply(&mut entry);
    (OwnerAndMode::of(&entry), entry.xattrs)
}

/// ACLs by the names of their attributes, in the order of these names.
type Acls = Vec<(Vec<u8>, Vec<u8>)>;

/// Attributes with ACLs, ascending.
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Bytes that most ACLs fit into.
const FEW_BYTES: usize = 512;
/// Largest value of an attribute, in bytes.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Returns the ACLs of a path.
fn acls(visited: &Visited<'_>) -> Acls {
    if visited.metadata.is_symlink() {
        return Acls::new();
    }
    let read = |name: &&str| {
        let mut few = [0; FEW_BYTES];
        let value = match lgetxattr(visited.path, *name, &mut few[..]) {
            Ok(length) => few.get(..length)?.to_vec(),
            Err(Errno::RANGE) => {
                let mut many = vec![0; XATTR_BYTES_MAX];
                let length = lgetxattr(visited.path, *name, &mut many[..]).ok()?;
                many.truncate(length);
                many
            }
            Err(_) => return None,
        };
        Some((name.as_bytes().to_vec(), value))
    };
    ACLS.iter().filter_map(read).collect()
}

/// Sets owner and mode of a path, if it is still the object that was looked at.
///
/// A user who may write to the directories above could put a link into its place meanwhile. So no
/// link is followed below the top of the part.
fn set(visited: &Visited<'_>, wanted: OwnerAndMode, acls: &Acls) -> io::Result<()> {
    let above = visited.top.parent().unwrap_or(Path::new("/"));
    let name = visited.path.strip_prefix(above).unwrap_or(Path::new(""));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, above, flags, Mode::empty())?;
    let node = store::source::open_below(dir.as_fd(), name.as_os_str().as_bytes(), OFlags::PATH)?;
    let stat = fstat(&node)?;
    if (stat.st_dev, stat.st_ino) != (visited.metadata.dev(), visited.metadata.ino()) {
        return Err(io::Error::other("it was replaced meanwhile"));
    }
    let (uid, gid) = (Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)));
    if (stat.st_uid, stat.st_gid) != (wanted.uid, wanted.gid) {
        chownat(&node, c"", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    // Some file systems ignore owners and modes without an error.
    let now = fstat(&node)?;
    let has_owner = (now.st_uid, now.st_gid) == (wanted.uid, wanted.gid);
    // A change of owner clears setuid and setgid.
    if !visited.metadata.is_symlink() {
        let path = format!("/proc/self/fd/{}", node.as_raw_fd());
        // These bits would give the rights of the wrong owner.
        let is_safe = has_owner || visited.metadata.is_dir();
        let mode = wanted.mode & if is_safe { !0 } else { !SET_IDS };
        chmod(&path, Mode::from_raw_mode(mode))?;
        for (name, value) in acls {
            setxattr(&path, &name[..], value, XattrFlags::empty())?;
        }
        if fstat(&node)?.st_mode & 0o7777 != mode {
            return Err(io::Error::other("this file system ignores or changes its mode"));
        }
    }
    match has_owner {
        true => Ok(()),
        false => Err(io::Error::other("this file system ignores or changes its owner")),
    }
}

fn shown(state: OwnerAndMode) -> String {
    let OwnerAndMode { uid, gid, mode } = state;
    format!("{}:{} {mode:04o}", super::user(uid), super::group(gid))
}

/// Returns rules without a default: paths that no rule names keep their numbers.
pub fn rules(name: &str, text: &[u8]) -> Result<OwnerMap> {
    let mut map = OwnerMap::new(Unmatched::ByNumber, Box::new(SystemAccounts));
    map.add_file(name, text)?;
    Ok(map)
}
