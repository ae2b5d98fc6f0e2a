//! Rights of this process to set metadata.

use super::Metadata;
use crate::entry::{Entry, EntryKind};
use crate::source::Stat;
use crate::user_namespace::Numbers;
use rustix::process::{Gid, getegid, geteuid, getgroups};
use std::path::Path;

/// Capabilities, as bits of `CapEff` in `/proc/self/status`.
const CHOWN: u64 = 1 << 0;
const FOWNER: u64 = 1 << 3;
const FSETID: u64 = 1 << 4;
const MKNOD: u64 = 1 << 27;

/// Rights of this user to set metadata.
///
/// Root lacks some of them in most containers: without capabilities, or in a user namespace that
/// knows only some numbers.
#[derive(Debug)]
pub struct Rights {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Effective capabilities, as bits.
    capabilities: u64,
    /// Users that this user namespace knows.
    known_users: Numbers,
    /// Groups that this user namespace knows.
    known_groups: Numbers,
}

impl Rights {
    /// Returns the rights of this process.
    pub fn of_process() -> Rights {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        // Without the list, only the group of the process counts.
        let groups = getgroups().unwrap_or_default().into_iter().map(Gid::as_raw);
        let status = std::fs::read_to_string("/proc/self/status").ok();
        let capabilities = status.as_deref().and_then(effective_capabilities);
        Rights {
            uid,
            gid,
            groups: groups.chain([gid]).collect(),
            // Without `/proc`, only root has capabilities.
            capabilities: capabilities.unwrap_or(if uid == 0 { u64::MAX } else { 0 }),
            known_users: Numbers::read(Path::new("/proc/self/uid_map")),
            known_groups: Numbers::read(Path::new("/proc/self/gid_map")),
        }
    }

    fn has(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    /// Returns true if the capabilities of this process apply to objects of this owner.
    fn knows(&self, owner: (u32, u32)) -> bool {
        self.known_users.has(owner.0) && self.known_groups.has(owner.1)
    }

    /// Returns true if this user may set mode and times of an object with this owner.
    pub fn owns(&self, owner: (u32, u32)) -> bool {
        self.uid == owner.0 || self.has(FOWNER) && self.knows(owner)
    }

    /// Returns true if this user may make the device, link, FIFO or socket of an entry.
    pub fn may_make(&self, entry: &Entry) -> bool {
        match entry.kind {
            // The mark of a removed name in layered file systems.
            EntryKind::CharDevice if entry.device.unwrap_or_default() == (0, 0) => true,
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                self.has(MKNOD) && self.known_users.are_all()
            }
            _ => true,
        }
    }

    /// Returns user and group of a new object in a directory.
    pub fn new_owner(&self, dir: Option<&Stat>) -> (u32, u32) {
        let gid = dir.filter(|dir| dir.mode & 0o2000 != 0).map(|dir| dir.gid);
        (self.uid, gid.unwrap_or(self.gid))
    }

    /// Returns user and group of an object after a restore gave it this owner. They differ from
    /// the wanted ones if this user may not set them.
    pub fn given_owner(&self, is: (u32, u32), metadata: &Metadata<'_>) -> (u32, u32) {
        let wanted = metadata.wanted_owner(is);
        let may_set_all = self.has(CHOWN) && self.knows(is);
        if is == wanted || may_set_all && self.knows(wanted) {
            return wanted;
        }
        let may_set_group = may_set_all && self.known_groups.has(wanted.1)
            || is.0 == self.uid && self.groups.contains(&wanted.1);
        (is.0, if may_set_group { wanted.1 } else { is.1 })
    }

    /// Returns the mode of an object that has this user and group.
    ///
    /// The kernel drops setgid without an error if this user is not in the group. Another attempt
    /// would only change the ctime.
    pub fn given_mode(&self, owner: (u32, u32), metadata: &Metadata<'_>) -> u32 {
        let may_set_group = self.has(FSETID) && self.knows(owner) || self.groups.contains(&owner.1);
        metadata.safe_mode(owner) & if may_set_group { !0 } else { !0o2000 }
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Owner;
    use std::sync::Arc;

    /// Root with these capabilities in a namespace with users and groups 0 to `count` − 1.
    fn root(capabilities: u64, count: u32) -> Rights {
        let known = || Numbers::first(count);
        let (known_users, known_groups) = (known(), known());
        Rights { uid: 0, gid: 0, groups: vec![0], capabilities, known_users, known_groups }
    }

    fn entry(kind: EntryKind, uid: u32) -> Entry {
        let owner = Arc::new(Owner { uid, gid: uid, user: None, group: None });
        Entry { owner, device: Some((1, 3)), ..Entry::new(b"a".to_vec(), kind, 0o6755) }
    }

    #[test]
    fn root_without_capabilities_or_in_a_namespace_may_not_set_all_owners() {
        let given = |rights: &Rights, uid| {
            rights.given_owner((0, 0), &Metadata::of(&entry(EntryKind::File, uid)))
        };
        assert_eq!(given(&root(u64::MAX, u32::MAX), 1000), (1000, 1000));
        assert_eq!(given(&root(0, u32::MAX), 1000), (0, 0));
        assert_eq!(given(&root(u64::MAX, 1), 1000), (0, 0));
        assert_eq!(given(&root(u64::MAX, 65536), 1000), (1000, 1000));
        assert!(!root(u64::MAX, 1000).owns((1000, 1000)));
        assert!(!root(0, u32::MAX).owns((1000, 1000)));
        assert!(root(0, u32::MAX).owns((0, 7)));
    }

    #[test]
    fn root_without_capabilities_or_in_a_namespace_may_not_make_devices() {
        let device = entry(EntryKind::CharDevice, 0);
        assert!(root(u64::MAX, u32::MAX).may_make(&device));
        assert!(!root(!MKNOD, u32::MAX).may_make(&device));
        assert!(!root(u64::MAX, 65536).may_make(&device));
        assert!(root(0, 1).may_make(&Entry { device: Some((0, 0)), ..device }));
        assert!(root(0, 1).may_make(&entry(EntryKind::Fifo, 0)));
    }

    #[test]
    fn capabilities_are_read_as_the_kernel_prints_them() {
        let status = "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
