//! Resolves paths. Symbolic links are followed as the instance would follow them, with its root as
//! `/`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

pub use store::source::lexically;

/// Maximum number of links on one path; more are treated as a cycle.
pub(crate) const LINKS_MAX: usize = 40;

/// Result of following a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Real {
    /// Path without symbolic links, even if nothing exists there.
    pub path: PathBuf,
    /// Links on the path, each in a directory whose path has no links.
    pub links: Vec<PathBuf>,
    /// True if something exists at the path.
    pub is_there: bool,
}

/// Follows a path. If it begins with `root`, absolute links on it are resolved below `root`, and no
/// link leads out of it. Directories of this machine outside `root` do not belong to the instance.
pub fn follow(root: &Path, path: &Path) -> io::Result<Real> {
    let path = std::path::absolute(path)?;
    let (top, root) = (Path::new("/"), std::path::absolute(root)?);
    let own = walk(top, &root)?;
    let inner = path.strip_prefix(&root).or_else(|_| path.strip_prefix(&own.path));
    let Ok(inner) = inner else { return walk(top, &path) };
    let mut real = walk(&own.path, inner)?;
    real.links.splice(0..0, own.links);
    Ok(real)
}

/// Resolves a path on this machine. Returns the path itself if it cannot be resolved.
pub fn real(path: &Path) -> PathBuf {
    follow(Path::new("/"), path).map_or_else(|_| path.to_owned(), |real| real.path)
}

fn walk(root: &Path, path: &Path) -> io::Result<Real> {
    let mut real = Real { path: root.to_owned(), links: Vec::new(), is_there: true };
    let mut left: VecDeque<OsString> = names(path).collect();
    let mut followed = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            if real.path != root {
                real.path.pop();
            }
            continue;
        }
        let next = real.path.join(name);
        match next.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                followed += 1;
                if followed > LINKS_MAX {
                    return Err(io::Error::other("too many symbolic links"));
                }
                let target = std::fs::read_link(&next)?;
                if target.is_absolute() {
                    real.path = root.to_owned();
                }
                for (at, name) in names(&target).enumerate() {
                    left.insert(at, name);
                }
                if !real.links.contains(&next) {
                    real.links.push(next);
                }
            }
            Ok(_) => real.path = next,
            Err(error) if is_absence(&error) => (real.path, real.is_there) = (next, false),
            Err(error) => return Err(error),
        }
    }
    Ok(real)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Names on a path, with `..`.
pub(crate) fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_below_the_root() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("is there").join("root");
        std::fs::create_dir_all(root.join("mnt/data/inner")).expect("directories");
        let at = |path: &str| root.join(path);
        symlink("/mnt", at("absolute")).expect("links");
        symlink("absolute/data", at("relative")).expect("links");
        symlink("../../../../mnt", at("mnt/out")).expect("links");
        symlink("/gone", at("dangling")).expect("links");
        symlink("circle", at("circle")).expect("links");
        let end = |path: &str| follow(&root, &at(path)).expect("leads somewhere");
        let real = end("relative/inner");
        assert_eq!(real.path, at("mnt/data/inner"));
        assert_eq!(real.links, [at("relative"), at("absolute")]);
        assert!(real.is_there);
        assert_eq!(end("mnt/out/data").path, at("mnt/data"));
        let gone = end("dangling/below");
        assert_eq!((gone.path, gone.is_there), (at("gone/below"), false));
        follow(&root, &at("circle")).expect_err("a circle");

        // A path outside the root is resolved on this machine.
        let beside = dir.path().join("beside");
        symlink(at("mnt"), &beside).expect("links");
        assert_eq!(follow(&root, &beside).expect("leads somewhere").path, at("mnt"));
        // The root itself may be reached through a link.
        let other = dir.path().join("other");
        symlink(&root, &other).expect("links");
        let real = follow(&other, &other.join("absolute/data")).expect("leads somewhere");
        assert_eq!(real.path, at("mnt/data"));
        assert_eq!(real.links.len(), 2, "{real:?}");
    }
}
