//! Checks that files on this machine have owners and modes with which the product can work.
//!
//! A copy by `cp -R`, or an archive that another user unpacked, has all content and wrong owners.

mod bare;
mod hooks;
mod leftovers;
mod modes;
mod named_places;
mod repair;
mod rules;

pub use bare::{Files, OwnersAs};
pub use leftovers::leftovers;
pub use repair::{Repaired, rules as rules_of_file};
pub use rules::{Above, main_account, rules};

use crate::check::{Check, EXAMPLES, Verdict};
use crate::error::{Error, Result};
use crate::plan::{Part, Phase, Plan};
use crate::process::quoted_path;
use crate::view::shown;
use hooks::Hooks;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use repair::{LinkNames, Pass, Repair};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use store::observe::Progress;
use store::owner_map::{OwnerAndMode, OwnerMap};

/// Name of the check.
const NAME: &str = "owners";
/// Cases of each fault that are named.
const EACH: usize = EXAMPLES / 3;

/// Bits that an owner needs in a directory.
const DIR_MODE: u32 = 0o700;
/// Setgid bit: new entries get the directory's group.
const SETGID: u32 = 0o2000;
/// Sticky bit: only owners may remove entries of a directory.
const STICKY: u32 = 0o1000;
/// The bit by which anybody may write.
const ANYBODY_WRITES: u32 = 0o002;

/// Part with the generated configuration.
const GENERATED: &str = "generated";

/// Ends of the names of generated files that GitLab reads.
const READ_BY_GITLAB: [&str; 5] = [".yml", ".toml", ".rb", ".key", "_secret"];

/// Parts of unknown owners that have private keys.
const WITH_KEYS: [&str; 2] = ["ssh-host-keys", "certs"];

/// Parts whose group is that of another service.
const OTHER_GROUP: [&str; 3] = ["pages", REGISTRY, "redis"];

/// Part with the images. GitLab reaches it by its own group, and the registry's programs have another.
const REGISTRY: &str = "registry";

/// Part with GitLab's own archives. Admins let other accounts fetch them.
const ARCHIVES: &str = "backups";

/// Part with the keys of users.
const SSH: &str = "ssh";

/// Parts with uploaded files of Mattermost.
const UPLOADS: [&str; 2] = ["data", "mattermost-data"];

/// A fault of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// A directory above a part.
    Above,
    Owner,
    Mode,
    Setgid,
}

/// The user, and in repositories the group, that a part belongs to.
#[derive(Clone)]
struct Expected {
    uid: u32,
    gid: Option<u32>,
    /// Groups of the owner; `None` if it is an account of a container.
    groups: Option<Vec<u32>>,
    /// Owner in the notation of `chown`.
    name: String,
    /// Group of `name`; `None` if a part keeps its group.
    owning_gid: Option<u32>,
    /// Group in place of that of root, in a part that otherwise keeps its groups.
    instead_of_root: Option<u32>,
    /// True if directories must pass their group on to new entries.
    is_storage: bool,
    /// True if all paths must belong to the user; false if access is enough.
    is_strict: bool,
}

/// A path that was looked at.
struct Visited<'a> {
    /// Path of its part, below which no link is followed.
    top: &'a Path,
    path: &'a Path,
    metadata: &'a Metadata,
    /// Owner and mode that the product needs.
    wanted: OwnerAndMode,
    /// True if the content of a directory is not visited after it.
    is_alone: bool,
}

#[derive(Default)]
struct Faults<'r, 'm> {
    /// Repair of what is wrong, if it is not only reported.
    repair: Option<&'r mut Repair<'m>>,
    /// True while a part is walked.
    is_in_part: bool,
    looked_at: u64,
    unreadable: u64,
    /// The first directory that could not be listed.
    first_unreadable: Option<PathBuf>,
    counts: BTreeMap<Fault, u64>,
    examples: BTreeMap<Fault, Vec<String>>,
    /// Commands that mend them, without doubles, in their order.
    commands: Vec<String>,
    /// Device and inode of this program's own files and directories.
    own: BTreeSet<(u64, u64)>,
    /// Directories above parts that were looked at, each for one user.
    entered: BTreeSet<(PathBuf, u32)>,
    unknown: Vec<String>,
    hooks: Hooks,
}

/// Looks at all parts whose owner is known, on this machine.
pub fn check(plan: &Plan, progress: &Progress) -> Result<Option<Check>> {
    Ok(look(plan, progress, None)?.check())
}

/// Gives all parts the owners and modes that the product needs, or those of rules.
///
/// Writes rules that undo the changes to a new file before it makes them. Without a file, changes
/// nothing.
pub fn repair(
    plan: &Plan,
    progress: &Progress,
    rules: Option<&OwnerMap>,
    undo: Option<&Path>,
) -> Result<(Option<Check>, Repaired)> {
    let pass = |pass, names| {
        let mut repair = Repair::begin(rules, pass, names);
        let faults = look(plan, progress, Some(&mut repair))?;
        let unlisted = faults.unreadable;
        let check = faults.check();
        Ok::<_, Error>((check, Repaired { unlisted, ..repair.finish()? }))
    };
    // The first pass counts the names of each file.
    let counted = pass(Pass::Count, LinkNames::default())?.1.names;
    let Some(undo) = undo else { return pass(Pass::Count, counted) };
    let mut recorded = pass(Pass::record(undo)?, counted)?;
    if recorded.1.changed == 0 {
        return Ok(recorded);
    }
    pass(Pass::Change, std::mem::take(&mut recorded.1.names))
}

fn look<'r, 'm>(
    plan: &Plan,
    progress: &Progress,
    repair: Option<&'r mut Repair<'m>>,
) -> Result<Faults<'r, 'm>> {
    // Whatever the paths that lead there, such as a bind mount.
    let own = plan.own.iter().filter_map(|path| path.metadata().ok());
    let own = own.map(|found| (found.dev(), found.ino())).collect();
    let mut faults = Faults { repair, own, ..Faults::default() };
    // Inner parts come before outer ones, as in rules.
    let mut parts: Vec<&Part> = plan.parts.iter().chain(&plan.servers).collect();
    let depth = |part: &&Part| part.paths.iter().map(|path| path.components().count()).max();
    parts.sort_by_key(|part| std::cmp::Reverse(depth(part)));
    for part in parts {
        faults.hooks.part(part);
        let Some(owner) = part.owner.as_deref() else {
            if part.name == GENERATED {
                faults.generated(plan, part)?;
            } else if WITH_KEYS.contains(&&*part.name) {
                for path in &part.paths {
                    faults.keys(part, path)?;
                }
            }
            continue;
        };
        let Some(expected) = Expected::in_plan(plan, part, owner) else {
            if part.is_there() && !faults.unknown.iter().any(|known| known == owner) {
                faults.unknown.push(owner.to_owned());
            }
            continue;
        };
        if part.phase == Phase::RedisFiles {
            faults.directory_of_files(plan, &expected)?;
        }
        if part.name == SSH {
            for path in &part.paths {
                faults.home(plan, path, owner, &expected)?;
            }
        }
        // The service also passes the directories that lead to a link.
        for path in part.paths.iter().chain(&part.links).filter(|_| is_in_use(part)) {
            faults.above(plan, path, owner, &expected)?;
        }
        faults.is_in_part = true;
        for path in &part.paths {
            faults.part(plan, part, path, &expected, progress)?;
        }
        faults.is_in_part = false;
    }
    Ok(faults)
}

/// Returns GitLab's group, which the registry's directory has.
fn registry_group(parts: &[Part]) -> Option<u32> {
    let owner = main_account(parts)?;
    let main = parts.iter().find(|part| part.owner.as_ref() == Some(&owner))?;
    let Expected { owning_gid, .. } = Expected::of(main, &owner)?;
    owning_gid.filter(|gid| *gid != 0)
}

/// Returns GitLab's account, which connects to the socket of Redis in this directory. The package
/// makes the directory with GitLab's group.
fn client_of(plan: &Plan, dir: &Path) -> Option<Expected> {
    let is_package = ["gitlab", "gitlab-container"].contains(&plan.kind);
    let owner = main_account(&plan.parts).filter(|_| is_package && has_socket(plan, dir))?;
    let main = plan.parts.iter().find(|part| part.owner.as_ref() == Some(&owner))?;
    Expected::of(main, &owner)
}

/// Returns true if clients of Redis use a socket in a directory, or if that is unknown.
fn has_socket(plan: &Plan, dir: &Path) -> bool {
    match &plan.redis {
        None => true,
        Some(redis) => redis.socket.is_some() || dir.join("redis.socket").exists(),
    }
}

fn is_of_mattermost(plan: &Plan, part: &Part) -> bool {
    part.name.starts_with("mattermost") || plan.kind == "mattermost"
}

/// Returns true unless it is the registry's and empty. The service of an unused registry is off.
fn is_in_use(part: &Part) -> bool {
    let has_entries = |path: &PathBuf| path.read_dir().is_ok_and(|mut all| all.next().is_some());
    part.name != REGISTRY || part.is_required || part.paths.iter().any(has_entries)
}

impl Expected {
    /// Returns the needs of a part of a plan; `None` if the owner is unknown.
    fn in_plan(plan: &Plan, part: &Part, owner: &str) -> Option<Expected> {
        let is_of_others = part.name == REGISTRY || is_redis_dir(part);
        Some(Expected {
            instead_of_root: is_of_others.then(|| registry_group(&plan.parts)).flatten(),
            // Admins, and the package itself, put files of root beside Mattermost's own.
            is_strict: !is_of_mattermost(plan, part) || UPLOADS.contains(&&*part.name),
            ..Expected::of(part, owner)?
        })
    }

    /// A name, or a number of a user and one of a group as `1000:1000`.
    fn of(part: &Part, owner: &str) -> Option<Expected> {
        let is_storage = Expected::is_storage(part);
        let numbers = owner
            .split_once(':')
            .and_then(|(uid, gid)| Some((uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?)));
        let (uid, gid, group, groups) = match numbers {
            Some((uid, gid)) => (uid, gid, gid.to_string(), None),
            None => {
                let user = User::from_name(owner).ok().flatten()?;
                let group = Group::from_gid(user.gid).ok().flatten();
                let gid = user.gid.as_raw();
                let name = CString::new(user.name).unwrap_or_default();
                let groups = getgrouplist(&name, user.gid).unwrap_or_default();
                let groups = groups.into_iter().map(Gid::as_raw).collect();
                let group = group.map_or(gid.to_string(), |group| group.name);
                (user.uid.as_raw(), gid, group, Some(groups))
            }
        };
        let user = owner.split(':').next().unwrap_or(owner);
        let has_own_group = Expected::has_own_group(part);
        let name = if has_own_group { user.to_owned() } else { format!("{user}:{group}") };
        Some(Expected {
            uid,
            gid: is_storage.then_some(gid),
            groups,
            name,
            owning_gid: (!has_own_group).then_some(gid),
            instead_of_root: None,
            is_storage,
            is_strict: true,
        })
    }

    /// Returns true if directories of a part must pass their group on.
    fn is_storage(part: &Part) -> bool {
        matches!(part.phase, Phase::Repositories | Phase::Pools)
    }

    /// Returns true if another service reaches a part by its group.
    fn has_own_group(part: &Part) -> bool {
        OTHER_GROUP.contains(&part.name.as_str())
    }

    /// Returns the main group of a user, as a name or a number; the user's name if it is unknown.
    fn group_of(user: &str) -> String {
        let found = User::from_name(user).ok().flatten();
        found.map_or_else(|| user.to_owned(), |user| group(user.gid.as_raw()))
    }

    /// Returns an owner and mode with this owner.
    fn owned(&self, is: OwnerAndMode) -> OwnerAndMode {
        let kept = self.instead_of_root.filter(|_| is.gid == 0).unwrap_or(is.gid);
        OwnerAndMode { uid: self.uid, gid: self.owning_gid.unwrap_or(kept), ..is }
    }

    /// Returns true if it may look for paths in a directory.
    fn may_enter(&self, dir: OwnerAndMode) -> bool {
        self.has_bit(0o1, dir)
    }

    /// Returns true if it may read a file, or list and enter a directory.
    fn may_read(&self, metadata: &Metadata) -> bool {
        let is = owner_and_mode(metadata);
        self.has_bit(0o4, is) && (!metadata.is_dir() || self.may_enter(is))
    }

    /// Returns true if a bit of a mode, as in the class of others, holds for it.
    fn has_bit(&self, bit: u32, is: OwnerAndMode) -> bool {
        let bits = match &self.groups {
            _ if self.uid == is.uid => bit << 6,
            Some(groups) if groups.contains(&is.gid) => bit << 3,
            Some(_) => bit,
            None if is.gid == 0 => bit,
            // It may belong to any group of its container.
            None => bit << 3 | bit,
        };
        self.uid == 0 || is.mode & bits != 0
    }

    /// Returns true if a path of a part must belong to the user. Admins keep files of their own beside
    /// the configuration.
    fn owns(&self, part: &Part) -> bool {
        self.is_strict && part.name != "config"
    }

    /// Returns true if a group that is not the owner's may read a file, or write to a path, and others
    /// may not.
    fn is_open_to_group(&self, metadata: &Metadata) -> bool {
        let (gid, mode) = (metadata.gid(), metadata.mode());
        let is_own = self.groups.as_ref().is_some_and(|groups| groups.contains(&gid));
        let is_foreign = self.owning_gid.is_some_and(|own| own != gid) && gid != 0 && !is_own;
        let bits = if metadata.is_dir() { 0o2 } else { 0o6 };
        self.uid != 0 && is_foreign && mode >> 3 & !mode & bits != 0
    }

    fn is_owner(&self, metadata: &Metadata) -> bool {
        metadata.uid() == self.uid
            && self.gid.is_none_or(|gid| gid == metadata.gid())
            && !self.has_roots_group(metadata)
    }

    /// Returns true if the group of root stands for another one, as after a copy by root.
    fn has_roots_group(&self, metadata: &Metadata) -> bool {
        self.instead_of_root.is_some() && metadata.gid() == 0
    }
}

impl Faults<'_, '_> {
    /// Looks at the directories that GitLab passes to read its configuration, and at the files in
    /// them. They belong to several accounts.
    fn generated(&mut self, plan: &Plan, part: &Part) -> Result<()> {
        let of = |name: &str| plan.parts.iter().find(|part| part.name == name);
        let Some(main) = of("uploads").or_else(|| of("repositories")) else { return Ok(()) };
        let Some(owner) = main.owner.as_deref() else { return Ok(()) };
        let Some(expected) = Expected::of(main, owner) else { return Ok(()) };
        for path in part.paths.iter().chain(&part.links) {
            self.above(plan, &path.join("file"), owner, &expected)?;
        }
        for path in &part.paths {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            for file in entries.map(|entry| entry.path()).chain([path.clone()]) {
                self.configuration(&file, &expected)?;
            }
        }
        Ok(())
    }

    /// Looks at a file of the configuration, which GitLab and Gitaly read.
    fn configuration(&mut self, file: &Path, expected: &Expected) -> Result<()> {
        let Ok(metadata) = file.symlink_metadata() else { return Ok(()) };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // Administrators keep copies beside them.
        if !metadata.is_file() || !READ_BY_GITLAB.iter().any(|end| name.ends_with(end)) {
            return Ok(());
        }
        if self.is_own(file, &metadata) {
            return Ok(());
        }
        self.looked_at += 1;
        if expected.may_read(&metadata) || has_acl(file) {
            return Ok(());
        }
        let is = format!("{}:{}", user(metadata.uid()), group(metadata.gid()));
        let mode = metadata.mode() & 0o7777;
        let (user, group) = expected.name.split_once(':').unwrap_or((&expected.name, ""));
        let text = format!("belongs to {is} with mode {mode:04o}: {user} cannot read it");
        self.add(Fault::Owner, file, text);
        let place = quoted_path(file);
        let mut wanted = owner_and_mode(&metadata);
        if metadata.uid() == expected.uid {
            self.fix(format!("chmod u+r {place}"));
            wanted.mode |= 0o400;
        } else {
            self.fix(format!("chgrp {group} {place}"));
            self.fix(format!("chmod g+r {place}"));
            wanted = OwnerAndMode {
                gid: expected.owned(wanted).gid,
                mode: wanted.mode | 0o040,
                ..wanted
            };
        }
        self.visit(file, file, &metadata, wanted)
    }

    /// Looks at the directory in which a service saves files. It writes a new file there and then
    /// replaces the old one.
    fn directory_of_files(&mut self, plan: &Plan, expected: &Expected) -> Result<()> {
        let Some(dir) = plan.redis_dir().filter(|dir| dir.is_dir()) else { return Ok(()) };
        // Its owner enters it.
        self.entered.insert((dir.to_owned(), expected.uid));
        let Ok(metadata) = dir.metadata() else { return Ok(()) };
        self.looked_at += 1;
        let is = owner_and_mode(&metadata);
        let may_write = expected.has_bit(0o2, is) && expected.may_enter(is);
        let client = client_of(plan, dir).filter(|client| !client.may_enter(is));
        if may_write && client.is_none() || has_acl(dir) {
            return Ok(());
        }
        let is = format!("{}:{}", user(metadata.uid()), group(metadata.gid()));
        let mode = metadata.mode() & 0o7777;
        let mut wanted = owner_and_mode(&metadata);
        let place = quoted_path(dir);
        if !may_write {
            let user = expected.name.split(':').next().unwrap_or_default();
            let text = format!("belongs to {is} with mode {mode:04o}: {user} cannot write to it");
            self.add(Fault::Owner, dir, text);
            self.fix(format!("chown {user} {place}"));
            self.fix(format!("chmod u+rwx {place}"));
            wanted = OwnerAndMode { uid: expected.uid, mode: wanted.mode | DIR_MODE, ..wanted };
        }
        if let Some((client, gid)) =
            client.and_then(|client| Some((client.name, client.owning_gid?)))
        {
            let (user, group) = client.split_once(':').unwrap_or((&client, &client));
            let text = format!(
                "belongs to {is} with mode {mode:04o}: {user} cannot reach the socket in it"
            );
            self.add(Fault::Owner, dir, text);
            self.fix(format!("chgrp {group} {place}"));
            self.fix(format!("chmod g+rx {place}"));
            wanted = OwnerAndMode { gid, mode: wanted.mode | 0o050, ..wanted };
        }
        self.visit(dir, dir, &metadata, wanted)
    }

    /// Looks at the directory of a user's `.ssh`. The ssh server refuses all keys if it belongs to
    /// another user than this one and root, or if others can write to it.
    fn home(&mut self, plan: &Plan, path: &Path, owner: &str, expected: &Expected) -> Result<()> {
        let Some(dir) = path.parent().filter(|dir| dir.starts_with(&plan.root)) else {
            return Ok(());
        };
        let Ok(metadata) = dir.metadata() else { return Ok(()) };
        // With an owner of its own, it is looked at as a part.
        let mut parts = plan.parts.iter().filter(|part| part.owner.is_some());
        let is_part = parts.any(|part| part.paths.iter().any(|path| dir.starts_with(path)));
        if path.symlink_metadata().is_err() || is_part || self.is_own(dir, &metadata) {
            return Ok(());
        }
        let is = owner_and_mode(&metadata);
        let is_trusted = [0, expected.uid].contains(&is.uid);
        if is_trusted && is.mode & 0o022 == 0 {
            return Ok(());
        }
        let (place, mut wanted) = (quoted_path(dir), is);
        if !is_trusted {
            let user = owner.split(':').next().unwrap_or_default();
            let text = format!(
                "belongs to {}: sshd refuses the keys in it unless that is root or {user}",
                self::user(is.uid)
            );
            self.add(Fault::Above, dir, text);
            self.fix(format!("chown root {place}"));
            wanted.uid = 0;
        }
        if is.mode & 0o022 != 0 {
            let text = format!(
                "has mode {:04o}: sshd refuses the keys in a directory that others can write to",
                is.mode
            );
            self.add(Fault::Above, dir, text);
            self.fix(format!("chmod go-w {place}"));
            wanted.mode &= !0o022;
        }
        self.visit(dir, dir, &metadata, wanted)
    }

    /// Returns true for files and directories of this program, and for any store.
    fn is_own(&self, path: &Path, metadata: &Metadata) -> bool {
        let is_store = || {
            let has = |name: &str| path.join(name).exists();
            metadata.is_dir() && has("store.json") && has("snapshots")
        };
        self.own.contains(&(metadata.dev(), metadata.ino())) || is_store()
    }

    /// Looks at the modes of private keys directly in a directory, or at a path.
    fn keys(&mut self, part: &Part, top: &Path) -> Result<()> {
        let entries = std::fs::read_dir(top).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).chain([top.to_owned()]) {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            let is_own = self.is_own(&path, &metadata);
            if !metadata.is_file() || !modes::is_private_key(&path) || is_own {
                continue;
            }
            self.looked_at += 1;
            let is = owner_and_mode(&metadata);
            let mode = self.modes(part, &path, top, &metadata);
            self.visit(top, &path, &metadata, OwnerAndMode { mode, ..is })?;
        }
        Ok(())
    }

    /// Looks at the directories above a path of a part and in the root of the instance. The user
    /// of a container enters only those in its volumes.
    fn above(&mut self, plan: &Plan, path: &Path, owner: &str, expected: &Expected) -> Result<()> {
        let user = expected.name.split(':').next().unwrap_or_default();
        let is_entered = |dir: &Path| {
            let mut own = plan.volumes.iter().filter(|volume| volume.service.is_none());
            expected.groups.is_some() || own.any(|volume| dir.starts_with(&volume.path))
        };
        let within = |dir: &&Path| {
            dir.starts_with(&plan.root) && (**dir != plan.root || plan.is_root_entered)
        };
        // Those within another part are looked at as its content, with its own owner.
        let parts: Vec<&Part> = plan.parts.iter().filter(|part| part.owner.is_some()).collect();
        for dir in path.ancestors().skip(1).take_while(within) {
            let Ok(metadata) = dir.metadata() else { continue };
            if !metadata.is_dir() || self.is_own(dir, &metadata) {
                continue;
            }
            let mut around =
                parts.iter().filter(|part| part.paths.iter().any(|path| dir.starts_with(path)));
            let is_own = around.clone().any(|part| part.owner.as_deref() == Some(owner));
            let is_new = self.entered.insert((dir.to_owned(), expected.uid));
            if is_own || !is_new {
                continue;
            }
            let mode = metadata.mode() & 0o7777;
            let place = quoted_path(dir);
            let mut wanted = owner_and_mode(&metadata);
            // A part around it gives it another owner.
            let after = part_around(&parts, dir)
                .and_then(|part| Expected::in_plan(plan, part, part.owner.as_deref()?))
                .filter(|around| around.is_strict)
                .map_or(wanted, |around| around.owned(wanted));
            if is_entered(dir) && !expected.may_enter(after) && !has_acl(dir) {
                let is = format!("{}:{}", self::user(metadata.uid()), group(metadata.gid()));
                let once = match expected.may_enter(wanted) {
                    true => format!(" once it belongs to {}", self::user(after.uid)),
                    false => String::new(),
                };
                let text =
                    format!("belongs to {is} with mode {mode:04o}: {user} cannot enter it{once}");
                self.add(Fault::Above, dir, text);
                self.fix(format!("chmod a+x {place}"));
                wanted.mode |= 0o111;
            }
            let is_open = mode & ANYBODY_WRITES != 0 && mode & STICKY == 0;
            let fix = format!("chmod o-w {place}");
            if is_open && around.next().is_none() && !self.commands.contains(&fix) {
                let text = format!("has mode {mode:04o}: any user can write to it");
                self.add(Fault::Above, dir, text);
                self.fix(fix);
                wanted.mode &= !ANYBODY_WRITES;
            }
            self.visit(dir, dir, &metadata, wanted)?;
        }
        Ok(())
    }

    /// Walks through a path of a part, without paths of other parts and skipped paths.
    fn part(
        &mut self,
        plan: &Plan,
        part: &Part,
        top: &Path,
        expected: &Expected,
        progress: &Progress,
    ) -> Result<()> {
        let others = plan.parts.iter().filter(|other| other.name != part.name);
        let others = others.flat_map(|other| other.paths.iter());
        // Gitaly needs its own directories, which are not copied.
        let left = plan.skipped.iter().map(|left| &left.path).filter(|path| !is_of_gitaly(path));
        let elsewhere: Vec<&PathBuf> = others.chain(left).filter(|path| *path != top).collect();
        // GitLab connects to the socket in the directory of Redis, and reads no file there.
        let below = Expected {
            instead_of_root: expected.instead_of_root.filter(|_| !is_redis_dir(part)),
            ..expected.clone()
        };
        let mut paths = vec![top.to_owned()];
        while let Some(path) = paths.pop() {
            let expected = if path == top { expected } else { &below };
            progress.check()?;
            // A vanished path has no owner.
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if elsewhere.contains(&&path) || self.is_own(&path, &metadata) {
                continue;
            }
            if metadata.is_symlink() {
                let is = owner_and_mode(&metadata);
                let wanted = if expected.is_strict { expected.owned(is) } else { is };
                self.visit(top, &path, &metadata, wanted)?;
                continue;
            }
            // The service makes its sockets as it needs them.
            if !metadata.is_file() && !metadata.is_dir() {
                continue;
            }
            self.looked_at += 1;
            self.hooks.look(part, &path, &metadata);
            let wanted = self.look(part, &path, top, &metadata, expected);
            self.visit(top, &path, &metadata, wanted)?;
            if metadata.is_dir() {
                match std::fs::read_dir(&path) {
                    Ok(entries) => paths.extend(entries.flatten().map(|entry| entry.path())),
                    Err(_) => {
                        self.unreadable += 1;
                        self.first_unreadable.get_or_insert(path);
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks at a path. Returns the owner and mode that it should have.
    fn look(
        &mut self,
        part: &Part,
        path: &Path,
        top: &Path,
        metadata: &Metadata,
        expected: &Expected,
    ) -> OwnerAndMode {
        let mut wanted = owner_and_mode(metadata);
        let (mode, place) = (wanted.mode, quoted_path(top));
        let is = format!("{}:{}", user(metadata.uid()), group(metadata.gid()));
        if !expected.is_strict {
            if !expected.may_read(metadata) && !has_acl(path) {
                let user = expected.name.split(':').next().unwrap_or_default();
                let text = format!("belongs to {is} with mode {mode:04o}: {user} cannot read it");
                self.add(Fault::Owner, path, text);
                self.fix(format!("chown -Rh {} {place}", expected.name));
                wanted = expected.owned(wanted);
                wanted.mode |= if metadata.is_dir() { 0o500 } else { 0o400 };
                if metadata.uid() == expected.uid {
                    self.fix(format!("chmod -R u+rX {place}"));
                }
            }
            if mode & ANYBODY_WRITES == 0 {
                return wanted;
            }
        }
        let is_owned = expected.owns(part);
        if is_owned && !expected.is_owner(metadata) {
            let group = expected.instead_of_root.filter(|_| expected.has_roots_group(metadata));
            let group = group.map(self::group);
            let colon = group.as_ref().map_or_else(String::new, |group| format!(":{group}"));
            let text = format!("belongs to {is} instead of {}{colon}", expected.name);
            self.add(Fault::Owner, path, text);
            if metadata.uid() != expected.uid || group.is_none() {
                self.fix(format!("chown -Rh {} {place}", expected.name));
            }
            if let Some(group) = group {
                self.fix(format!("find {place} -group root -exec chgrp -h {group} {{}} +"));
            }
        } else if is_owned && part.name != ARCHIVES && expected.is_open_to_group(metadata) {
            let group = group(metadata.gid());
            let text = format!("belongs to {is} with mode {mode:04o}: group {group} has access");
            self.add(Fault::Owner, path, text);
            self.fix(format!("chown -Rh {} {place}", expected.name));
        }
        // A part of root keeps its groups, unless the owner changes.
        if is_owned && (expected.uid != 0 || !expected.is_owner(metadata)) {
            wanted = expected.owned(wanted);
        }
        // The mode from above has more bits than before.
        let added = wanted.mode & !mode;
        wanted.mode = self.modes(part, path, top, metadata) | added;
        let is_storage = expected.is_storage && !is_of_gitaly(path);
        if is_storage && metadata.is_dir() && mode & SETGID == 0 {
            self.add(Fault::Setgid, path, format!("has mode {mode:04o}, without setgid"));
            self.fix(format!("find {place} -type d -exec chmod g+s {{}} +"));
            wanted.mode |= SETGID;
        }
        wanted
    }

    /// Reports a wrong mode. Returns the right one.
    fn modes(&mut self, part: &Part, path: &Path, top: &Path, metadata: &Metadata) -> u32 {
        let mode = metadata.mode() & 0o7777;
        // Links in a part lead to its further paths.
        let is_top = path == top && part.paths.first().is_some_and(|first| first == top);
        let (mut wanted, mut is_first) = (mode, true);
        for row in &modes::ROWS {
            let next = row.applied(part, path, is_top, metadata.is_dir(), wanted);
            if next == wanted {
                continue;
            }
            if row.is_needed && std::mem::take(&mut is_first) {
                self.add(Fault::Mode, path, format!("has mode {mode:04o}: {}", row.reason));
            }
            if row.is_needed {
                self.fix(row.command(top));
            }
            wanted = next;
        }
        wanted
    }

    /// Repairs a path, if this is a repair.
    fn visit(
        &mut self,
        top: &Path,
        path: &Path,
        metadata: &Metadata,
        wanted: OwnerAndMode,
    ) -> Result<()> {
        let is_alone = top == path && !self.is_in_part;
        match &mut self.repair {
            Some(repair) => repair.visit(&Visited { top, path, metadata, wanted, is_alone }),
            None => Ok(()),
        }
    }

    /// Adds a command, unless it is there.
    fn fix(&mut self, command: String) {
        if !self.commands.contains(&command) {
            self.commands.push(command);
        }
    }

    fn add(&mut self, fault: Fault, path: &Path, text: String) {
        *self.counts.entry(fault).or_default() += 1;
        let examples = self.examples.entry(fault).or_default();
        if examples.len() < EACH {
            examples.push(format!("{} {text}", shown(path)));
        }
    }

    fn check(self) -> Option<Check> {
        let unknown = match &self.unknown[..] {
            [] => String::new(),
            names => format!("; not checked: {}, unknown on this machine", names.join(", ")),
        };
        let unreadable = match (self.unreadable, &self.first_unreadable) {
            (0, _) | (_, None) => String::new(),
            (1, Some(path)) => format!("; {} could not be listed", shown(path)),
            (count, Some(path)) => {
                format!("; {count} directories, such as {}, could not be listed", shown(path))
            }
        };
        if self.looked_at == 0 {
            let text = format!("no owner could be checked{unknown}");
            return (!unknown.is_empty()).then(|| Check::new(NAME, Verdict::Unknown, text));
        }
        let count = |fault| self.counts.get(&fault).copied().unwrap_or_default();
        let faults = [
            (count(Fault::Above), "are directories above parts with a wrong owner or mode"),
            (count(Fault::Owner), "have a wrong owner or group"),
            (count(Fault::Mode), "have a wrong mode"),
            (count(Fault::Setgid), "are directories without setgid"),
        ];
        let faults = faults.iter().filter(|(count, _)| *count > 0);
        let faults: Vec<String> = faults.map(|(count, what)| format!("{count} {what}")).collect();
        let (looked_at, hooks) = (self.looked_at, self.hooks.text());
        if faults.is_empty() {
            let text = format!(
                "owners and modes of {looked_at} paths are correct{unreadable}{unknown}{hooks}"
            );
            let is_whole = self.unreadable == 0;
            let verdict = if is_whole { Verdict::Ok } else { Verdict::Unknown };
            return Some(Check::new(NAME, verdict, text));
        }
        let faults = faults.join(", ");
        let text = format!("of {looked_at} paths, {faults}{unreadable}{unknown}{hooks}");
        let examples = self.examples.into_values().flatten();
        let check = Check::new(NAME, Verdict::Warning, text).with_examples(examples);
        Some(check.with_hint(format!("to fix them: {}", self.commands.join("; "))))
    }
}

/// Returns true for the directory of the package's Redis, which has GitLab's group.
fn is_redis_dir(part: &Part) -> bool {
    part.name == "redis" && part.phase == Phase::Files
}

/// Returns the innermost of the parts that have a directory.
fn part_around<'p>(parts: &[&'p Part], dir: &Path) -> Option<&'p Part> {
    let depth = |part: &&Part| {
        let around = part.paths.iter().filter(|path| dir.starts_with(path));
        around.map(|path| path.components().count()).max()
    };
    parts.iter().copied().filter(|part| depth(part).is_some()).max_by_key(depth)
}

/// Returns true for the directory with Gitaly's own files, and for paths in it.
fn is_of_gitaly(path: &Path) -> bool {
    path.iter().any(|name| name == "+gitaly")
}

/// Returns true if an access list, which is not evaluated, may permit more than the mode.
fn has_acl(path: &Path) -> bool {
    let mut none: [u8; 0] = [];
    rustix::fs::getxattr(path, "system.posix_acl_access", &mut none).is_ok()
}

fn owner_and_mode(metadata: &Metadata) -> OwnerAndMode {
    let (uid, gid) = (metadata.uid(), metadata.gid());
    OwnerAndMode { uid, gid, mode: metadata.mode() & 0o7777 }
}

fn user(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

fn group(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}
