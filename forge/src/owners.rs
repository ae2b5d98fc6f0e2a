//! Checks that files on this machine have owners and modes with which the product can work.
//!
//! A copy by `cp -R`, or an archive that another user unpacked, has all content and wrong owners.

use crate::check::{Check, EXAMPLES, Verdict};
use crate::error::Result;
use crate::plan::{Part, Phase, Plan};
use crate::run::quoted;
use crate::view::shown;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use store::observe::Progress;

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

/// Parts whose group is that of another service.
const OTHER_GROUP: [&str; 3] = ["pages", "registry", "redis"];

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
struct Expected {
    uid: u32,
    gid: Option<u32>,
    /// Groups of the owner, if it is an account of this machine.
    groups: Vec<u32>,
    /// Owner in the notation of `chown`.
    name: String,
    /// True if directories must pass their group on to new entries.
    is_storage: bool,
}

#[derive(Default)]
struct Faults {
    looked_at: u64,
    unreadable: u64,
    counts: BTreeMap<Fault, u64>,
    examples: BTreeMap<Fault, Vec<String>>,
    /// Commands that mend them, without doubles.
    commands: Vec<String>,
    /// Directories above parts that were looked at, each for one user.
    entered: BTreeSet<(PathBuf, u32)>,
    unknown: Vec<String>,
}

/// Looks at all parts whose owner is known, on this machine.
pub fn check(plan: &Plan, progress: &Progress) -> Result<Option<Check>> {
    let mut faults = Faults::default();
    for part in &plan.parts {
        let Some(owner) = part.owner.as_deref() else { continue };
        // Its user is a setting of the package or of the unit, and not read.
        if part.name.starts_with("mattermost") || plan.kind == "mattermost" {
            continue;
        }
        let Some(expected) = Expected::of(part, owner) else {
            if part.is_there() && !faults.unknown.iter().any(|known| known == owner) {
                faults.unknown.push(owner.to_owned());
            }
            continue;
        };
        for path in &part.paths {
            faults.above(plan, part, path, &expected);
            faults.part(plan, part, path, &expected, progress)?;
        }
    }
    Ok(faults.check())
}

impl Expected {
    /// A name, or a number of a user and one of a group as `1000:1000`.
    fn of(part: &Part, owner: &str) -> Option<Expected> {
        let is_storage = matches!(part.phase, Phase::Repositories | Phase::Pools);
        let numbers = owner
            .split_once(':')
            .and_then(|(uid, gid)| Some((uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?)));
        let (uid, gid, group, groups) = match numbers {
            Some((uid, gid)) => (uid, gid, gid.to_string(), Vec::new()),
            None => {
                let user = User::from_name(owner).ok().flatten()?;
                let group = Group::from_gid(user.gid).ok().flatten();
                let gid = user.gid.as_raw();
                let name = CString::new(user.name).unwrap_or_default();
                let groups = getgrouplist(&name, user.gid).unwrap_or_default();
                let groups = groups.into_iter().map(Gid::as_raw).collect();
                let group = group.map_or(gid.to_string(), |group| group.name);
                (user.uid.as_raw(), gid, group, groups)
            }
        };
        let user = owner.split(':').next().unwrap_or(owner);
        // Other services reach these by their group.
        let has_own_group = OTHER_GROUP.contains(&part.name.as_str());
        let name = if has_own_group { user.to_owned() } else { format!("{user}:{group}") };
        Some(Expected { uid, gid: is_storage.then_some(gid), groups, name, is_storage })
    }

    /// Returns true if it may look for paths in a directory.
    fn may_enter(&self, dir: &Metadata) -> bool {
        let bit = if self.uid == dir.uid() {
            0o100
        } else if self.groups.contains(&dir.gid()) {
            0o010
        } else {
            0o001
        };
        self.uid == 0 || dir.mode() & bit != 0
    }

    fn is_owner(&self, metadata: &Metadata) -> bool {
        metadata.uid() == self.uid && self.gid.is_none_or(|gid| gid == metadata.gid())
    }
}

impl Faults {
    /// Looks at the directories above a path of a part and below the root of the instance.
    fn above(&mut self, plan: &Plan, part: &Part, top: &Path, expected: &Expected) {
        // Accounts of a container enter its volumes without the directories above them. The registry
        // is below a directory of GitLab, and may be unused.
        if expected.groups.is_empty() || part.name == "registry" {
            return;
        }
        let user = expected.name.split(':').next().unwrap_or_default();
        // Those within another part are looked at as its content.
        let owned = plan.parts.iter().filter(|part| part.owner.is_some());
        let owned: Vec<&PathBuf> = owned.flat_map(|part| &part.paths).collect();
        let within = |dir: &&Path| dir.starts_with(&plan.root) && *dir != plan.root;
        let dirs = top.ancestors().skip(1).take_while(within);
        for dir in dirs {
            let Ok(metadata) = dir.metadata() else { continue };
            if owned.iter().any(|part| dir.starts_with(part)) {
                continue;
            }
            if !self.entered.insert((dir.to_owned(), expected.uid)) {
                continue;
            }
            let mode = metadata.mode() & 0o7777;
            let place = quoted(&dir.display().to_string());
            if !expected.may_enter(&metadata) {
                let is = format!("{}:{}", self::user(metadata.uid()), group(metadata.gid()));
                let text = format!("belongs to {is} with mode {mode:04o}: {user} cannot enter it");
                self.add(Fault::Above, dir, text);
                self.commands.push(format!("chmod a+x {place}"));
            } else if mode & ANYBODY_WRITES != 0 && mode & STICKY == 0 {
                let text = format!("has mode {mode:04o}: any user can write to it");
                self.add(Fault::Above, dir, text);
                self.commands.push(format!("chmod o-w {place}"));
            }
        }
        self.commands.dedup();
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
        let left = plan.left_out.iter().map(|left| &left.path);
        let elsewhere: Vec<&PathBuf> = others.chain(left).filter(|path| *path != top).collect();
        let before = self.counts.clone();
        let mut paths = vec![top.to_owned()];
        while let Some(path) = paths.pop() {
            progress.check()?;
            // A vanished path has no owner.
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_symlink() || elsewhere.contains(&&path) {
                continue;
            }
            self.looked_at += 1;
            self.look(part, &path, top, &metadata, expected);
            if metadata.is_dir() {
                match std::fs::read_dir(&path) {
                    Ok(entries) => paths.extend(entries.flatten().map(|entry| entry.path())),
                    Err(_) => self.unreadable += 1,
                }
            }
        }
        let is_new = |fault| self.counts.get(&fault) != before.get(&fault);
        let place = quoted(&top.display().to_string());
        let (owner, mode, setgid) =
            (is_new(Fault::Owner), is_new(Fault::Mode), is_new(Fault::Setgid));
        if owner {
            self.commands.push(format!("chown -Rh {} {place}", expected.name));
        }
        if mode {
            self.commands.push(mode_command(part, &place, expected));
        }
        if setgid {
            self.commands.push(format!("find {place} -type d -exec chmod g+s {{}} +"));
        }
        Ok(())
    }

    fn look(
        &mut self,
        part: &Part,
        path: &Path,
        top: &Path,
        metadata: &Metadata,
        expected: &Expected,
    ) {
        let mode = metadata.permissions().mode() & 0o7777;
        // Admins keep files of their own beside the configuration.
        if part.name != "config" && !expected.is_owner(metadata) {
            let is = format!("{}:{}", user(metadata.uid()), group(metadata.gid()));
            self.add(Fault::Owner, path, format!("belongs to {is} instead of {}", expected.name));
        }
        if let Some(reason) = wrong_mode(part, path, path == top, metadata.is_dir(), mode) {
            self.add(Fault::Mode, path, format!("has mode {mode:04o}: {reason}"));
        }
        if expected.is_storage && metadata.is_dir() && mode & SETGID == 0 {
            self.add(Fault::Setgid, path, format!("has mode {mode:04o}, without setgid"));
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
        let unreadable = match self.unreadable {
            0 => String::new(),
            count => format!("; {count} directories could not be listed"),
        };
        if self.looked_at == 0 {
            let text = format!("no owner could be checked{unknown}");
            return (!unknown.is_empty()).then(|| Check::new(NAME, Verdict::Unknown, text));
        }
        let count = |fault| self.counts.get(&fault).copied().unwrap_or_default();
        let faults = [
            (count(Fault::Above), "are directories above parts with a wrong mode"),
            (count(Fault::Owner), "have a wrong owner or group"),
            (count(Fault::Mode), "have a wrong mode"),
            (count(Fault::Setgid), "are directories without setgid"),
        ];
        let faults = faults.iter().filter(|(count, _)| *count > 0);
        let faults: Vec<String> = faults.map(|(count, what)| format!("{count} {what}")).collect();
        let looked_at = self.looked_at;
        if faults.is_empty() {
            let text =
                format!("owners and modes of {looked_at} paths are correct{unreadable}{unknown}");
            return Some(Check::ok(NAME, text));
        }
        let text = format!("of {looked_at} paths, {}{unreadable}{unknown}", faults.join(", "));
        let examples = self.examples.into_values().flatten();
        let check = Check::new(NAME, Verdict::Warning, text).with_examples(examples);
        Some(check.with_hint(format!("to fix them: {}", self.commands.join("; "))))
    }
}

/// Returns the fault of a mode.
fn wrong_mode(part: &Part, path: &Path, is_top: bool, is_dir: bool, mode: u32) -> Option<String> {
    let group = mode & 0o070;
    let is_key = !is_dir && path.extension().is_some_and(|end| end == "key");
    if is_dir && mode & DIR_MODE != DIR_MODE {
        return Some("its owner lacks access".into());
    }
    if !is_dir && mode & 0o400 == 0 {
        return Some("its owner cannot read it".into());
    }
    if mode & ANYBODY_WRITES != 0 {
        return Some("any user can write to it".into());
    }
    match part.name.as_str() {
        "uploads" if is_top && mode & 0o777 != 0o700 => Some("GitLab requires 0700".into()),
        "secrets" if !is_dir && mode & 0o077 != 0 => Some("others can read the keys".into()),
        "config" if is_key && mode & 0o007 != 0 => Some("others can read the key".into()),
        "ssh-host-keys" if is_private_key(path) && mode & 0o037 != 0 => {
            Some("sshd refuses a private key that others can read".into())
        }
        "ssh" if mode & 0o022 != 0 => Some("sshd refuses files that others can write".into()),
        _ if part.phase == Phase::Repositories && is_top && group != 0o070 => {
            Some("GitLab requires 2770".into())
        }
        _ => None,
    }
}

/// Returns true if it is the private half of a host key.
fn is_private_key(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("ssh_host_") && name.ends_with("_key")
}

fn mode_command(part: &Part, place: &str, expected: &Expected) -> String {
    match part.name.as_str() {
        "uploads" => format!("chmod -R u+rwX,o-w {place}; chmod 0700 {place}"),
        "secrets" => format!("chmod 0600 {place}"),
        "config" => format!("find {place} -name '*.key' -exec chmod 0600 {{}} +"),
        "ssh-host-keys" => {
            format!("chmod -R u+rwX,o-w {place}; chmod 0600 {place}/ssh_host_*_key")
        }
        "ssh" => format!("chmod -R u+rwX,go-w {place}"),
        _ if expected.is_storage => format!("chmod -R ug+rwX,o-rwx {place}"),
        _ => format!("chmod -R u+rwX,o-w {place}"),
    }
}

fn user(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

fn group(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}
