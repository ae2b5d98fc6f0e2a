//! Links through which the instance saw its parts when it was backed up.
//!
//! The data of such a part lies elsewhere, for example on another disk. Without the link, the
//! instance would go on with the directory that its package made in place of it.

use super::Job;
use super::aside;
use super::files::place;
use super::record::Aside;
use crate::error::{Error, Result};
use crate::links::{self, LINKS_MAX, names};
use crate::mounts;
use crate::plan::Part;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use store::backup::tree_path;
use store::entry::EntryKind;
use store::tree::Lookup;

/// A symbolic link of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartLink {
    /// Its path.
    pub path: PathBuf,
    /// The path in it.
    text: PathBuf,
    /// The path to which it leads in the snapshot.
    pub end: PathBuf,
    /// True if it leads to a part, and false if parts are below the place to which it leads.
    is_of_part: bool,
}

/// Returns the links of some parts, in the order of their paths.
pub fn read(job: &Job<'_>, parts: &[&Part]) -> Vec<PartLink> {
    let mut paths: Vec<&PathBuf> = parts.iter().flat_map(|part| &part.links).collect();
    paths.sort();
    paths.dedup();
    let root = job.snapshot.root.chunk();
    let text = |path: &PathBuf| {
        // The restore reports a lost part of the tree.
        let entry = Lookup::new(&root, job.store).at(&tree_path(path)).ok().flatten()?;
        let text = PathBuf::from(OsStr::from_bytes(&entry.target));
        (entry.kind == EntryKind::Symlink).then(|| (path.clone(), text))
    };
    let known: Vec<(PathBuf, PathBuf)> = paths.into_iter().filter_map(text).collect();
    let is_path = |end: &Path| parts.iter().any(|part| part.paths.iter().any(|path| path == end));
    let link = |(path, text): &(PathBuf, PathBuf)| {
        let end = end(&job.settings.root, path, &known);
        let is_of_part = is_path(&end);
        PartLink { path: path.clone(), text: text.clone(), end, is_of_part }
    };
    known.iter().map(link).collect()
}

/// Follows a path through known links, with absolute ones below the root.
fn end(root: &Path, path: &Path, known: &[(PathBuf, PathBuf)]) -> PathBuf {
    let mut followed = 0;
    let mut left: Vec<_> = names(path).collect();
    left.reverse();
    let mut end = PathBuf::from("/");
    while let Some(name) = left.pop() {
        if name == ".." {
            end.pop();
            continue;
        }
        end.push(name);
        let Some((_, text)) = known.iter().find(|(link, _)| *link == end) else { continue };
        followed += 1;
        if followed > LINKS_MAX {
            break;
        }
        end.pop();
        let within = match text.is_absolute() {
            true => {
                end = PathBuf::from("/");
                root.join(text.strip_prefix("/").unwrap_or(text))
            }
            false => text.clone(),
        };
        left.extend(names(&within).collect::<Vec<_>>().into_iter().rev());
    }
    end
}

/// Follows a path through links of the snapshot.
pub fn followed(job: &Job<'_>, links: &[PartLink], path: &Path) -> PathBuf {
    let known: Vec<(PathBuf, PathBuf)> =
        links.iter().map(|link| (link.path.clone(), link.text.clone())).collect();
    end(&job.settings.root, path, &known)
}

impl PartLink {
    /// Returns true if this machine lacks the link, so that the instance would not see the data.
    pub fn is_lacking(&self, job: &Job<'_>) -> Result<bool> {
        let path = self.place(job)?;
        if std::fs::read_link(&path).is_ok_and(|text| text == self.text) {
            return Ok(false);
        }
        if path.symlink_metadata().is_err() {
            return Ok(true);
        }
        // Another link to the same place will do, and so will a bind mount.
        let follow = |path: &Path| links::follow(&job.settings.root, path).ok();
        let (Some(here), Some(there)) = (follow(&path), follow(&self.end)) else { return Ok(true) };
        let id = |path: &Path| path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()));
        let is_same = here.path == there.path
            || id(&here.path).is_some_and(|here| Some(here) == id(&there.path));
        Ok(!is_same)
    }

    /// Returns its place on this machine, in a directory whose path has no links.
    pub fn place(&self, job: &Job<'_>) -> Result<PathBuf> {
        let (Some(dir), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(self.path.clone());
        };
        Ok(place(job, dir)?.join(name))
    }

    /// Returns what is in place of the link and has to move, with the directories in it. Fails if it
    /// cannot, or if it may be more than the data of parts.
    pub fn aside(&self, job: &Job<'_>, suffix: &str) -> Result<Option<Aside>> {
        let path = self.place(job)?;
        let Ok(metadata) = path.symlink_metadata() else { return Ok(None) };
        if !self.is_lacking(job)? {
            return Ok(None);
        }
        let progress = job.store.observer().progress();
        let is_fixed = metadata.is_dir() && aside::stays(&path, &mounts::paths()?);
        let is_large =
            metadata.is_dir() && !self.is_of_part && aside::has_content(&path, &[], progress)?;
        if is_fixed || is_large {
            return Err(Error::InPlaceOfLink { link: path, end: self.end.clone() });
        }
        let to = aside::free_name(&path, suffix, false);
        Ok(Some(Aside { from: path, to, ..Aside::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_as_the_snapshot_has_them() {
        let known = [("/r/a", "/b"), ("/r/b", "c/../d"), ("/r/e", "/r/e")];
        let known = known.map(|(path, text)| (PathBuf::from(path), PathBuf::from(text)));
        let root = Path::new("/r");
        let of = |path: &str| end(root, Path::new(path), &known);
        assert_eq!(of("/r/a"), Path::new("/r/d"));
        assert_eq!(of("/r/a/inner"), Path::new("/r/d/inner"));
        assert_eq!(of("/r/other"), Path::new("/r/other"));
        // A circle ends.
        of("/r/e");
    }
}
