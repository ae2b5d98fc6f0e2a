//! Owners and modes of parts, as rules for a restore.

use super::modes::{Paths, ROWS};
use super::{Expected, GENERATED, REGISTRY, registry_group};
use crate::plan::Part;
use std::path::PathBuf;
use store::entry::{Entry, EntryKind};
use store::glob::escape;

/// Rules that change nothing, for a part within another one.
const KEPT: &str = "user 0-4294967294 -> +0\ngroup 0-4294967294 -> +0\nmode a+\n";

/// Rules by which GitLab's group can read files of its configuration. The group follows.
const READABLE: &str = "user 0-4294967294 -> +0\nmode Fu+r,Fg+r\ngroup * -> ";

/// Returns the account that owns the repositories, or else the uploaded files.
pub fn main_account(parts: &[Part]) -> Option<String> {
    let of = |name: &str| parts.iter().find(|part| part.name == name)?.owner.clone();
    of("repositories").or_else(|| of("uploads")).or_else(|| of("data"))
}

/// Returns true if the account of a part, a name or numbers, may not enter a directory of the snapshot.
pub fn is_closed_to(account: &str, dir: &Entry) -> bool {
    let (user, group) = account.split_once(':').unwrap_or((account, account));
    let is = |wanted: &str, id: u32, name: Option<&Vec<u8>>| {
        wanted.parse() == Ok(id) || name.is_some_and(|name| name == wanted.as_bytes())
    };
    let bit = if is(user, dir.owner.uid, dir.owner.user.as_ref()) {
        0o100
    } else if is(group, dir.owner.gid, dir.owner.group.as_ref()) {
        0o010
    } else {
        0o001
    };
    dir.kind == EntryKind::Directory && dir.mode & bit == 0
}

/// Returns rules that give the paths of parts the owners and modes that the product needs, and open
/// directories above them.
pub fn rules(parts: &[Part], closed: &[PathBuf]) -> Vec<u8> {
    let mut all: Vec<(&Part, &PathBuf)> =
        parts.iter().flat_map(|part| part.paths.iter().map(move |path| (part, path))).collect();
    // The first matching rule counts, so inner parts precede outer ones.
    all.sort_by_key(|(_, path)| std::cmp::Reverse(path.components().count()));
    let mut text = Vec::new();
    for path in closed {
        text.extend([b"[exact \"", &escape(path)[..], b"\"]\nmode Da+x\n"].concat());
    }
    let main_group = registry_group(parts);
    for (part, path) in all {
        let mut section = |form: &str, below: &[u8], lines: &str| {
            text.extend([b"[", form.as_bytes(), b" \"", &escape(path), below, b"\"]\n"].concat());
            text.extend(lines.as_bytes());
        };
        let changes = |wanted: &[Paths]| {
            let rows = ROWS.iter().filter(|row| row.concerns_part(part));
            let rows = rows.filter(|row| wanted.contains(&row.paths));
            let prefixed = rows.map(|row| match row.paths {
                Paths::Dirs => format!("D{}", row.changes),
                Paths::All | Paths::Top => row.changes.to_owned(),
                Paths::Files | Paths::Keys | Paths::HostKeys => format!("F{}", row.changes),
            });
            let setgid = Expected::is_storage(part).then(|| "Dg+s".to_owned());
            let all: Vec<String> = prefixed.chain(setgid).collect();
            format!("mode {}\n", all.join(","))
        };
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
        let mut lines = format!("user * -> {user}\n");
        if !Expected::has_own_group(part) {
            let group = if group.is_empty() { Expected::group_of(user) } else { group.to_owned() };
            lines += &format!("group * -> {group}\n");
        } else if let Some(group) = main_group.filter(|_| part.name == REGISTRY) {
            lines += &format!("group 0 -> {group}\n");
        }
        section("path", b"", &(lines + &changes(&common)));
    }
    text
}
