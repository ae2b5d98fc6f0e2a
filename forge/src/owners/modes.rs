//! Modes with which the products work.

use crate::plan::{Part, Phase};
use crate::process::quoted_path;
use std::path::Path;
use store::owner_map::ModeChanges;

/// A change of modes that a product needs. A path has a wrong mode if the change would alter it.
pub(super) struct Row {
    parts: Parts,
    pub(super) paths: Paths,
    /// Change in the form of chmod(1).
    pub(super) changes: &'static str,
    /// A mode is wrong only if it has one of these bits.
    bits: Option<u32>,
    /// False if the product works with other modes. Repairs and restores then make the change, and
    /// inspections report nothing.
    pub(super) is_needed: bool,
    pub(super) reason: &'static str,
}

/// Parts that a row concerns.
enum Parts {
    All,
    Named(&'static [&'static str]),
    Repositories,
    /// Repositories and their pools.
    Storages,
}

/// Paths of a part that a row concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paths {
    All,
    Dirs,
    Files,
    /// The first path of the part.
    Top,
    /// Files with this ending.
    Keys,
    /// Private host keys of sshd.
    HostKeys,
}

/// All rows, the gravest first.
pub(super) const ROWS: [Row; 15] = [
    row(Parts::All, Paths::Dirs, "u+rwx", "its owner lacks access"),
    row(Parts::All, Paths::Files, "u+r", "its owner cannot read it"),
    row(Parts::All, Paths::All, "o-w", "any user can write to it"),
    row(Parts::Named(&["uploads"]), Paths::Top, "u=rwx,go=", "GitLab requires 0700"),
    row(Parts::Named(&["secrets"]), Paths::Files, "go-rwx", "others can read the keys"),
    row(Parts::Named(&["config", "certs"]), Paths::Keys, "o-rwx", "others can read the key"),
    Row {
        // Some systems let a group read the keys.
        bits: Some(0o037),
        ..row(
            Parts::Named(&["ssh-host-keys", "config"]),
            Paths::HostKeys,
            "0600",
            "sshd refuses a private key that others can read",
        )
    },
    row(Parts::Named(&["ssh"]), Paths::All, "go-w", "sshd refuses files that others can write"),
    Row {
        bits: Some(0o027),
        ..row(
            Parts::Named(&["postgresql"]),
            Paths::Top,
            "g-w,o=",
            "PostgreSQL does not start with a directory that others can enter",
        )
    },
    // The top keeps others out of all repositories.
    row(Parts::Repositories, Paths::Top, "ug+rwx,o-rwx", "GitLab requires 2770"),
    of_repair(Parts::Storages, Paths::All, "ug+rwX,o-rwx"),
    of_repair(Parts::Storages, Paths::Dirs, "u-s"),
    of_repair(Parts::Storages, Paths::Files, "ug-s"),
    of_repair(Parts::Named(&["uploads"]), Paths::Files, "0644"),
    of_repair(Parts::Named(&["ssh"]), Paths::All, "u+rw,go-rwx"),
];

const fn row(parts: Parts, paths: Paths, changes: &'static str, reason: &'static str) -> Row {
    Row { parts, paths, changes, bits: None, is_needed: true, reason }
}

/// Returns a change that the product's own repair makes.
const fn of_repair(parts: Parts, paths: Paths, changes: &'static str) -> Row {
    Row { is_needed: false, ..row(parts, paths, changes, "") }
}

/// Returns the mode that a path of a part gets.
pub(super) fn applied(part: &Part, path: &Path, is_top: bool, is_dir: bool, mode: u32) -> u32 {
    ROWS.iter().fold(mode, |mode, row| row.applied(part, path, is_top, is_dir, mode))
}

impl Row {
    pub(super) fn concerns_part(&self, part: &Part) -> bool {
        match self.parts {
            Parts::All => true,
            Parts::Named(names) => names.contains(&&*part.name),
            Parts::Repositories => part.phase == Phase::Repositories,
            Parts::Storages => matches!(part.phase, Phase::Repositories | Phase::Pools),
        }
    }

    fn concerns(&self, path: &Path, is_top: bool, is_dir: bool) -> bool {
        match self.paths {
            Paths::All => true,
            Paths::Dirs => is_dir,
            Paths::Files => !is_dir,
            Paths::Top => is_top,
            Paths::Keys => !is_dir && is_key(path),
            Paths::HostKeys => !is_dir && is_host_key(path),
        }
    }

    /// Returns the mode that a path of a part should have.
    pub(super) fn applied(
        &self,
        part: &Part,
        path: &Path,
        is_top: bool,
        is_dir: bool,
        mode: u32,
    ) -> u32 {
        let is_concerned = self.concerns_part(part) && self.concerns(path, is_top, is_dir);
        if !is_concerned || self.bits.is_some_and(|bits| mode & bits == 0) {
            return mode;
        }
        // The changes of the table are valid.
        ModeChanges::parse(self.changes.as_bytes()).map_or(mode, |all| all.apply(mode, is_dir))
    }

    /// Returns the command that mends the whole part.
    pub(super) fn command(&self, top: &Path) -> String {
        let (place, changes) = (quoted_path(top), self.changes);
        let files = |name: &str| format!("find {place} {name}! -type d ! -type l");
        match self.paths {
            Paths::All => format!("chmod -R {changes} {place}"),
            Paths::Dirs => format!("find {place} -type d -exec chmod {changes} {{}} +"),
            Paths::Files => format!("{} -exec chmod {changes} {{}} +", files("")),
            Paths::Top => format!("chmod {changes} {place}"),
            Paths::Keys => format!("{} -exec chmod {changes} {{}} +", files("-name '*.key' ")),
            Paths::HostKeys => {
                format!("{} -exec chmod {changes} {{}} +", files("-name 'ssh_host_*_key' "))
            }
        }
    }
}

fn is_key(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "key")
}

/// Returns true if it is the private half of a host key.
fn is_host_key(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("ssh_host_") && name.ends_with("_key")
}

/// Returns true if a path may hold a private key.
pub(super) fn is_private_key(path: &Path) -> bool {
    is_key(path) || is_host_key(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_changes_are_valid() {
        for row in &ROWS {
            assert!(ModeChanges::parse(row.changes.as_bytes()).is_ok(), "{}", row.changes);
        }
    }
}
