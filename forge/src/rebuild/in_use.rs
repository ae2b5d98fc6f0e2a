//! Finds running servers whose directories a rebuild would move.
//!
//! A server goes on in a directory that was renamed, and finds other files at its next start.

use super::aside;
use super::record::Aside;
use crate::error::{Error, Result};
use crate::mounts::{self, MountPoint, Place};
use std::path::{Path, PathBuf};

/// Programs of PostgreSQL, and of other servers. All of them work in their data directories.
const POSTGRES: &str = "postgres";
const OTHERS: [&str; 7] = [
    "redis-server",
    "valkey-server",
    "keydb-server",
    "mysqld",
    "mariadbd",
    "mongod",
    "redis-sentinel",
];

/// Which servers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Servers {
    /// All that are known.
    All,
    /// Database servers that run while dumps are loaded.
    Postgres,
}

/// Fails if a running server of this machine works in a directory that is to be moved. Containers
/// may see the directory at another path.
pub fn expect_unused(asides: &[Aside], servers: Servers) -> Result<()> {
    let left: Vec<&Aside> = asides.iter().filter(|aside| !aside.is_done).collect();
    if left.is_empty() {
        return Ok(());
    }
    let own = mounts::all()?;
    for process in mounts::processes() {
        // Processes end, and some belong to others.
        let Ok(name) = std::fs::read_to_string(format!("/proc/{process}/comm")) else { continue };
        let name = name.trim();
        let counts = name == POSTGRES || servers == Servers::All && OTHERS.contains(&name);
        if !counts {
            continue;
        }
        let dir = std::fs::read_link(format!("/proc/{process}/cwd"));
        let (Ok(dir), Ok(seen)) = (dir, mounts::of_process(process)) else { continue };
        let Some(place) = Place::of(&dir, &seen) else { continue };
        if let Some(aside) = left.iter().find(|aside| moves(aside, &place, &own)) {
            let what = format!("{name} (process {process})");
            return Err(Error::InUse { what, place: dir, dir: aside.from.clone() });
        }
    }
    Ok(())
}

/// Fails if the directory of a socket is to be moved.
pub fn expect_reachable(asides: &[Aside], what: &str, dir: &Path) -> Result<()> {
    let own = mounts::all()?;
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let Some(place) = Place::of(&real, &own) else { return Ok(()) };
    match asides.iter().find(|aside| moves(aside, &place, &own)) {
        Some(aside) => Err(Error::InUse {
            what: format!("the socket of the {what}"),
            place: dir.to_owned(),
            dir: aside.from.clone(),
        }),
        None => Ok(()),
    }
}

/// Returns true if a move takes a directory along.
fn moves(aside: &Aside, place: &Place, own: &[MountPoint]) -> bool {
    if aside.from.is_symlink() {
        return false;
    }
    let from = aside.from.canonicalize().unwrap_or_else(|_| aside.from.clone());
    let Some(from) = Place::of(&from, own) else { return false };
    let Some(inner) = place.below(&from) else { return false };
    // Only the content of a directory that stays moves, without some names.
    let first: Option<PathBuf> =
        inner.components().next().map(|name| PathBuf::from(name.as_os_str()));
    let Some(first) = first.filter(|_| aside.is_mount) else { return true };
    !aside.fixed.iter().any(|fixed| first == Path::new(fixed)) && !aside::is_kept(first.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_moved_directories_are_in_the_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().canonicalize().expect("resolves");
        for name in ["part/data", "part/kept/data", "beside"] {
            std::fs::create_dir_all(dir.join(name)).expect("directories");
        }
        let aside = |is_mount: bool| Aside {
            from: dir.join("part"),
            to: dir.join("old"),
            is_mount,
            fixed: vec!["kept".into()],
            ..Aside::default()
        };
        let refuses = |aside: &Aside, name: &str| {
            expect_reachable(std::slice::from_ref(aside), "server", &dir.join(name)).is_err()
        };
        for (name, is_whole, is_content) in [
            ("part/data", true, true),
            ("part/kept/data", true, false),
            ("part", true, true),
            ("beside", false, false),
        ] {
            assert_eq!(refuses(&aside(false), name), is_whole, "{name}");
            assert_eq!(refuses(&aside(true), name), is_content, "{name}");
        }
    }
}
