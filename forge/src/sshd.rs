//! Directories with settings of the ssh server. Those of another machine may lock everybody out.

use crate::links;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use store::backup::tree_path;
use store::entry::EntryKind;
use store::id::ChunkId;
use store::store::Store;
use store::tree::Lookup;

/// Usual directory, below the root of a machine.
pub const DIR: &str = "etc/ssh";
/// Start of the names of host keys, which belong to a machine's name and are no settings.
pub const HOST_KEY: &[u8] = b"ssh_host_";

/// Returns `dir`, and the directories to which it leads as a symbolic link: on this machine below
/// `root`, and in the snapshot with the tree `tree`.
pub fn with_ends(dir: &Path, root: &Path, tree: &ChunkId, store: &Store) -> Vec<PathBuf> {
    let mut dirs = vec![dir.to_owned()];
    dirs.extend(links::follow(root, dir).map(|real| real.path));
    let entry = Lookup::new(tree, store).at(&tree_path(dir)).ok().flatten();
    let link = entry.filter(|entry| entry.kind == EntryKind::Symlink);
    dirs.extend(link.and_then(|link| {
        let target = Path::new(OsStr::from_bytes(&link.target));
        let within = match target.strip_prefix("/") {
            Ok(inner) => root.join(inner),
            Err(_) => dir.parent()?.join(target),
        };
        Some(links::lexically(&within))
    }));
    dirs.sort();
    dirs.dedup();
    dirs
}
