//! The source paths of a pass, and the directories from which they are read.

use super::absolute;
use super::tree_path;
use super::vanished::{REPLACED_PAUSE, REPLACED_PAUSES};
use crate::entry::{EntryKind, is_within, path_cmp};
use crate::error::{Error, Result};
use crate::glob::ends;
use crate::source::{self, Attributes, Stat};
use crate::walk::{self, Named, Root};
use rustix::fs::OFlags;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A source path.
pub struct Source {
    /// Path in the tree.
    pub path: Vec<u8>,
    /// Metadata of the object at the path.
    pub stat: Stat,
}

/// The source paths of a pass.
pub struct Roots {
    /// Paths that are not below others, in tree order.
    pub tops: Vec<Source>,
    /// Paths below other source paths.
    pub named: Named,
    /// Named directories and those above named paths.
    pub shell: HashSet<Vec<u8>>,
    /// Paths whose metadata cannot be read, with the error.
    pub refused: Vec<(PathBuf, io::Error)>,
}

impl Roots {
    /// Looks at the source paths. Fails if none of them can be read.
    pub fn look(paths: &[PathBuf]) -> Result<Roots> {
        let (mut tops, mut refused): (Vec<Source>, Vec<_>) = Default::default();
        for path in paths {
            match look_at(path) {
                Ok(stat) => tops.push(Source { path: tree_path(path), stat }),
                Err(source) => refused.push((path.clone(), source)),
            }
        }
        if tops.is_empty()
            && let Some((path, source)) = refused.pop()
        {
            return Err(Error::Source { path, source });
        }
        let (mut shell, mut others) = (HashSet::new(), HashSet::new());
        for Source { path, stat } in &tops {
            shell.extend(ends(path).map(|end| path[..end].to_vec()));
            if stat.kind != EntryKind::Directory {
                others.insert(path.clone());
            }
        }
        shell.retain(|path| !others.contains(path));
        tops.sort_by(|a, b| path_cmp(&a.path, &b.path));
        let mut inner = HashSet::new();
        tops.dedup_by(|later, earlier| {
            let is_inner = is_within(&later.path, &earlier.path);
            if is_inner && later.path != earlier.path {
                inner.insert(std::mem::take(&mut later.path));
            }
            is_inner
        });
        Ok(Roots { tops, named: Named::new(inner), shell, refused })
    }
}

impl Source {
    /// Opens the root of the walk: the directory at the path, or the directory above another
    /// object. `named` are the paths below source paths.
    pub fn open(&self, named: &Named) -> Result<Arc<Root>> {
        let opened = match self.stat.kind {
            EntryKind::Directory => self.open_dir(named).map(|dir| (self.path.clone(), dir)),
            _ => {
                let parent = self.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
                let parent = self.path[..parent].to_vec();
                open_to_enter(&parent).map(|dir| (parent, dir))
            }
        };
        let fail = |source| Error::Source { path: absolute(&self.path), source };
        opened.map(|(tree_path, dir)| Arc::new(Root { tree_path, dir })).map_err(fail)
    }

    fn open_dir(&self, named: &Named) -> io::Result<OwnedFd> {
        match source::open_dir(&absolute(&self.path)) {
            // The walk reports that it cannot be listed.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied
                    && named.is_below(&self.path) =>
            {
                open_to_enter(&self.path)
            }
            opened => opened,
        }
    }
}

fn look_at(path: &Path) -> io::Result<Stat> {
    let top = source::open_dir(Path::new("/"))?;
    let relative = tree_path(path);
    if relative.is_empty() {
        return source::stat_open(&top);
    }
    source::stat_open(source::open_below(top.as_fd(), &relative, OFlags::PATH)?)
}

/// Reads a directory above a source path, which this user may be allowed only to pass through. Waits
/// a moment for one that is gone: it may be on its way back.
pub fn look_at_ancestor(path: &[u8]) -> io::Result<(Stat, Attributes)> {
    for _ in 0..REPLACED_PAUSES {
        match look_at_dir(path) {
            Err(error) if walk::is_gone(&error) => std::thread::sleep(REPLACED_PAUSE),
            looked => return looked,
        }
    }
    look_at_dir(path)
}

fn look_at_dir(path: &[u8]) -> io::Result<(Stat, Attributes)> {
    if let Ok(dir) = source::open_dir(&absolute(path)) {
        return Ok((source::stat_open(&dir)?, source::attributes_open(&dir)));
    }
    let top = source::open_dir(Path::new("/"))?;
    let dir = open_to_enter(path)?;
    Ok((source::stat_open(dir)?, source::attributes_below(top.as_fd(), path)))
}

/// Opens a directory that this user may be allowed to enter and not to list.
fn open_to_enter(path: &[u8]) -> io::Result<OwnedFd> {
    let top = source::open_dir(Path::new("/"))?;
    source::open_below(top.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY)
}
