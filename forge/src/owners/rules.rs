//! Owners and modes of parts, as rules for a restore.

use super::modes::{Paths, ROWS, applied};
use super::{ANYBODY_WRITES, Expected, GENERATED, REGISTRY, SSH, STICKY, registry_group};
use crate::plan::Part;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::entry::{Entry, EntryKind};
use store::glob::escape;

/// Rules that leave owners to the default and keep modes, for a part within another one.
const KEPT: &str = "user * -> *\ngroup * -> *\nmode a+\n";

/// Rules by which GitLab's group can read files of its configuration. The group follows.
const READABLE: &str = "user * -> *\nmode Fu+r,Fg+r\ngroup * -> ";

/// Attribute of an access list, which is not evaluated.
const ACL: &[u8] = b"system.posix_acl_access";

/// Directories of a snapshot that lead to parts.
pub struct Above<'a> {
    /// Directory below which those outside of all parts are changed, too.
    pub top: Option<&'a Path>,
    /// Returns the entry of a directory in the snapshot.
    pub entry: &'a dyn Fn(&Path) -> Option<Entry>,
}

/// Changes of a directory above a part.
#[derive(Default)]
struct Opened<'p> {
    /// The part that has it.
    around: Option<&'p Part>,
    /// True if it gets root as its user.
    is_given_to_root: bool,
    /// Changes of its mode, in the form of chmod(1).
    changes: Vec<&'static str>,
}

/// Returns the account that owns the repositories, or else the uploaded files.
pub fn main_account(parts: &[Part]) -> Option<String> {
    let of = |name: &str| parts.iter().find(|part| part.name == name)?.owner.clone();
    of("repositories").or_else(|| of("uploads")).or_else(|| of("data"))
}

/// Returns rules that give the paths of parts the owners and modes that the product needs, and mend
/// directories above them.
pub fn rules(parts: &[Part], above: &Above<'_>) -> Vec<u8> {
    let mut all: Vec<(&Part, &PathBuf)> =
        parts.iter().flat_map(|part| part.paths.iter().map(move |path| (part, path))).collect();
    // The first matching rule counts, so inner parts precede outer ones.
    all.sort_by_key(|(_, path)| std::cmp::Reverse(path.components().count()));
    let mut text = Vec::new();
    for (dir, opened) in opened(parts, above) {
        text.extend([b"[exact \"", &escape(&dir)[..], b"\"]\n"].concat());
        if opened.is_given_to_root {
            text.extend(b"user * -> 0\n");
        }
        let top = opened.around.filter(|part| part.paths.first() == Some(&dir));
        let kinds = [Paths::All, Paths::Dirs, Paths::Top];
        let kinds = if top.is_some() { &kinds[..] } else { &kinds[..2] };
        let of_part = opened.around.map(|part| changes(part, kinds)).unwrap_or_default();
        let all: Vec<String> =
            of_part.into_iter().chain(opened.changes.iter().map(|to| format!("D{to}"))).collect();
        text.extend(format!("mode {}\n", all.join(",")).as_bytes());
    }
    let main_group = registry_group(parts);
    for (part, path) in all {
        let mut section = |form: &str, below: &[u8], lines: &str| {
            text.extend([b"[", form.as_bytes(), b" \"", &escape(path), below, b"\"]\n"].concat());
            text.extend(lines.as_bytes());
        };
        let changes = |wanted: &[Paths]| format!("mode {}\n", changes(part, wanted).join(","));
        let Some(owner) = part.owner.as_deref() else {
            match main_group.filter(|_| part.name == GENERATED) {
                Some(group) => section("path", b"", &format!("{READABLE}{group}\n")),
                None => section("path", b"", KEPT),
            }
            continue;
        };
        let common = [Paths::All, Paths::Dirs, Paths::Files];
        let concerns =
            |kind: Paths| ROWS.iter().any(|row| row.concerns_part(part) && row.paths == kind);
        for (kind, form, below) in [
            (Paths::Top, "exact", &b""[..]),
            (Paths::Keys, "path", b"/**/*.key"),
            (Paths::HostKeys, "path", b"/**/ssh_host_*_key"),
        ] {
            if concerns(kind) {
                section(form, below, &changes(&[&common[..], &[kind]].concat()));
            }
        }
        let (user, group) = owner.split_once(':').unwrap_or((owner, ""));
        // Admins keep files of other accounts beside the configuration of root.
        let keeps_owners = part.name == "config" && user == "root";
        if super::is_redis_dir(part)
            && let Some(group) = main_group
        {
            let lines = format!("group 0 -> {group}\n");
            section("exact", b"", &lines);
        }
        let mut lines = match keeps_owners {
            true => "user * -> *\ngroup * -> *\n".to_owned(),
            false => format!("user * -> {user}\n"),
        };
        if !keeps_owners && !Expected::has_own_group(part) {
            let group = if group.is_empty() { Expected::group_of(user) } else { group.to_owned() };
            lines += &format!("group * -> {group}\n");
        } else if let Some(group) = main_group.filter(|_| part.name == REGISTRY) {
            lines += &format!("group 0 -> {group}\n");
        }
        section("path", b"", &(lines + &changes(&common)));
    }
    text
}

/// Returns the changes of modes for some paths of a part.
fn changes(part: &Part, wanted: &[Paths]) -> Vec<String> {
    let rows = ROWS.iter().filter(|row| row.concerns_part(part));
    let rows = rows.filter(|row| wanted.contains(&row.paths));
    let prefixed = rows.flat_map(|row| {
        let letter = match row.paths {
            Paths::Dirs => "D",
            Paths::All | Paths::Top => "",
            Paths::Files | Paths::Keys | Paths::HostKeys => "F",
        };
        row.changes.split(',').map(move |change| format!("{letter}{change}"))
    });
    let setgid = Expected::is_storage(part).then(|| "Dg+s".to_owned());
    prefixed.chain(setgid).collect()
}

/// Returns the directories above parts that a service cannot enter, or that anybody can write to.
fn opened<'p>(parts: &'p [Part], above: &Above<'_>) -> BTreeMap<PathBuf, Opened<'p>> {
    let main = main_account(parts);
    let owned: Vec<&Part> = parts.iter().filter(|part| part.owner.is_some()).collect();
    let mut all = BTreeMap::<PathBuf, Opened<'p>>::new();
    for part in parts {
        let is_generated = part.name == GENERATED;
        // The main account also reads the generated configuration.
        let account = part.owner.as_ref().or(main.as_ref().filter(|_| is_generated));
        let Some(account) = account else { continue };
        let dirs = |path: &'p PathBuf| path.ancestors().skip(usize::from(!is_generated));
        for dir in part.paths.iter().flat_map(dirs) {
            let around = super::part_around(&owned, dir);
            let is_own = around.is_some_and(|part| part.owner.as_ref() == Some(account));
            let is_looked_at =
                around.is_some() || above.top.is_some_and(|top| dir.starts_with(top));
            if is_own || !is_looked_at || dir == Path::new("/") {
                continue;
            }
            let Some(entry) = (above.entry)(dir) else { continue };
            if entry.kind != EntryKind::Directory {
                continue;
            }
            let mut wanted = Opened { around, ..Opened::default() };
            let has_acl = entry.xattrs.iter().any(|(name, _)| name == ACL);
            if !has_acl && is_closed_to(account, &entry, around, dir) {
                wanted.changes.push("a+x");
            }
            if around.is_none() && entry.mode & ANYBODY_WRITES != 0 && entry.mode & STICKY == 0 {
                wanted.changes.push("o-w");
            }
            let is_home = part.name == SSH && part.paths.iter().any(|p| p.parent() == Some(dir));
            if around.is_none() && is_home {
                wanted.is_given_to_root =
                    !is_user("root", &entry) && !is_user("0", &entry) && !is_user(account, &entry);
                if entry.mode & 0o022 != 0 {
                    wanted.changes.push("go-w");
                }
            }
            let known = all.entry(dir.to_owned()).or_default();
            known.around = around;
            known.is_given_to_root |= wanted.is_given_to_root;
            known.changes.extend(wanted.changes);
        }
    }
    all.retain(|_, opened| opened.is_given_to_root || !opened.changes.is_empty());
    for opened in all.values_mut() {
        opened.changes.sort_unstable();
        opened.changes.dedup();
        if opened.changes.is_empty() {
            opened.changes.push("a+");
        }
    }
    all
}

/// Returns true if an account, a name or numbers, owns a directory of the snapshot.
fn is_user(account: &str, dir: &Entry) -> bool {
    let user = account.split(':').next().unwrap_or(account);
    is_id(user, dir.owner.uid, dir.owner.user.as_ref())
}

fn is_id(wanted: &str, id: u32, name: Option<&Vec<u8>>) -> bool {
    wanted.parse() == Ok(id) || name.is_some_and(|name| name == wanted.as_bytes())
}

/// Returns true if the account of a part, a name or numbers, may not enter a directory of the
/// snapshot. A part around the directory gives it another owner and mode.
fn is_closed_to(account: &str, dir: &Entry, around: Option<&Part>, path: &Path) -> bool {
    let (user, group) = account.split_once(':').unwrap_or((account, account));
    let around = around.and_then(|part| Some((part, part.owner.as_deref()?)));
    let (is_owner, is_in_group, mode) = match around {
        Some((part, owner)) => {
            let (owner, its_group) = owner.split_once(':').unwrap_or((owner, owner));
            let is_top = part.paths.first().is_some_and(|top| top == path);
            let mode = applied(part, path, is_top, true, dir.mode);
            let has_group = match Expected::has_own_group(part) {
                true => is_id(group, dir.owner.gid, dir.owner.group.as_ref()),
                false => its_group == group,
            };
            (owner == user, has_group, mode)
        }
        None => {
            let has_group = is_id(group, dir.owner.gid, dir.owner.group.as_ref());
            (is_user(user, dir), has_group, dir.mode)
        }
    };
    let bit = match (is_owner, is_in_group) {
        (true, _) => 0o100,
        (false, true) => 0o010,
        (false, false) => 0o001,
    };
    mode & bit == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Phase;
    use std::sync::Arc;
    use store::entry::Owner;
    use store::owner_map::{Accounts, Class, LookupError, OwnerMap, Unmatched};

    /// A machine on which git has the number 2994.
    #[derive(Debug)]
    struct Here;

    impl Accounts for Here {
        fn number(&self, _: Class, name: &[u8]) -> Result<Option<u32>, LookupError> {
            Ok((name == b"git").then_some(2994))
        }

        fn name(&self, _: Class, number: u32) -> Option<Vec<u8>> {
            (number == 994).then(|| b"stranger".to_vec())
        }
    }

    fn part(name: &str, path: &str, owner: Option<&str>) -> Part {
        Part {
            name: name.into(),
            about: String::new(),
            paths: vec![path.into()],
            links: Vec::new(),
            phase: Phase::Files,
            is_required: false,
            needs_all: false,
            owner: owner.map(str::to_owned),
            exclude: Vec::new(),
        }
    }

    #[test]
    fn paths_without_an_account_of_the_product_get_the_account_of_the_same_name() {
        let parts = [
            part("uploads", "/d/uploads", Some("git")),
            part(GENERATED, "/d/etc", None),
            part("notes", "/d/uploads/notes", None),
        ];
        let above = Above { top: Some(Path::new("/d")), entry: &|_| None };
        let mut map = OwnerMap::new(Unmatched::ByName, Box::new(Here));
        map.add_file("rules", &rules(&parts, &above)).expect("rules");
        for path in ["d/etc", "d/etc/gitlab.yml", "d/uploads/notes/x", "d/uploads", "d/other"] {
            let (user, group) = (Some(b"git".to_vec()), None);
            let owner = Arc::new(Owner { uid: 994, gid: 0, user, group });
            let mut entry = Entry { owner, ..Entry::new(path.into(), EntryKind::Directory, 0o700) };
            map.apply(&mut entry);
            assert_eq!(entry.owner.uid, 2994, "{path}");
        }
    }
}
