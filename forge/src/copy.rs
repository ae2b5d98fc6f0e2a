//! A look at what was copied, or at the instance itself.

use crate::error::Result;
use crate::links::real;
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use store::entry::{Entry, Kind, path_cmp};
use store::id::ChunkId;
use store::store::Store;

/// Files of which the content is looked at are small.
const CONTENT_BYTES_MAX: u64 = 1 << 20;

/// Something to look paths up in.
pub enum Copy<'a> {
    /// The tree of a snapshot.
    Tree {
        /// The store that has it.
        store: &'a Store,
        /// Its root.
        root: ChunkId,
    },
    /// This machine, as it is now.
    Live,
    /// Another one, in which some things are elsewhere than a service sees them.
    Through {
        /// What is looked at.
        copy: &'a Copy<'a>,
        /// What is elsewhere.
        mounts: &'a [Mount],
    },
}

/// Something that a service sees in a place where this machine does not have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where the service would see it if the rest of its directory were all there is.
    pub seen: PathBuf,
    /// Where it is.
    pub path: PathBuf,
}

impl Mount {
    /// Finds out where both really are. What is mounted over need not be there, and a link there
    /// is none to whoever sees the mount.
    pub fn resolve(&mut self) {
        if let (Some(dir), Some(name)) = (self.seen.parent(), self.seen.file_name()) {
            self.seen = real(dir).join(name);
        }
        self.path = real(&self.path);
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Size of a file in bytes.
    pub size: u64,
    /// Its content, if that was asked for.
    pub content: Option<Vec<u8>>,
}

impl Copy<'_> {
    /// Whether it is this machine itself.
    pub fn is_live(&self) -> bool {
        match self {
            Copy::Tree { .. } => false,
            Copy::Live => true,
            Copy::Through { copy, .. } => copy.is_live(),
        }
    }

    /// Where this machine has what a service sees at a path.
    pub fn place(&self, path: &Path) -> PathBuf {
        let Copy::Through { mounts, .. } = self else { return path.to_owned() };
        let holding = mounts.iter().filter(|mount| path.starts_with(&mount.seen));
        let deepest = holding.max_by_key(|mount| mount.seen.components().count());
        let Some(mount) = deepest else { return path.to_owned() };
        let rest = path.strip_prefix(&mount.seen).unwrap_or(Path::new(""));
        if rest.as_os_str().is_empty() { mount.path.clone() } else { mount.path.join(rest) }
    }

    /// Looks up paths; the answers are in the order of the questions.
    pub fn look(&self, paths: &[PathBuf]) -> Result<Vec<Option<Seen>>> {
        self.look_at(paths, false)
    }

    /// Looks up small files with their content.
    pub fn read(&self, paths: &[PathBuf]) -> Result<Vec<Option<Seen>>> {
        self.look_at(paths, true)
    }

    /// Looks up one small file with its content.
    pub fn file(&self, path: &Path) -> Result<Option<Seen>> {
        Ok(self.read(&[path.to_owned()])?.pop().flatten())
    }

    /// Whether there is anything at a path.
    pub fn has(&self, path: &Path) -> Result<bool> {
        Ok(self.look(&[path.to_owned()])?.iter().any(Option::is_some))
    }

    /// Whether there is a file somewhere below a directory.
    pub fn has_file_below(&self, dir: &Path) -> Result<bool> {
        match self {
            Copy::Tree { store, root } => has_file_in_tree(store, root, dir),
            Copy::Through { copy, .. } => copy.has_file_below(&self.place(dir)),
            Copy::Live => Ok(has_file_on_machine(dir)),
        }
    }

    fn look_at(&self, paths: &[PathBuf], reads: bool) -> Result<Vec<Option<Seen>>> {
        match self {
            Copy::Tree { store, root } => look_in_tree(store, root, paths, reads),
            Copy::Through { copy, .. } => {
                let places: Vec<PathBuf> = paths.iter().map(|path| self.place(path)).collect();
                copy.look_at(&places, reads)
            }
            Copy::Live => Ok(paths.iter().map(|path| look_at_machine(path, reads)).collect()),
        }
    }
}

fn look_in_tree(
    store: &Store,
    root: &ChunkId,
    paths: &[PathBuf],
    reads: bool,
) -> Result<Vec<Option<Seen>>> {
    let wanted: Vec<Vec<u8>> = paths.iter().map(|path| store::backup::tree_path(path)).collect();
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| path_cmp(&wanted[a], &wanted[b]));
    let mut seen = vec![None; paths.len()];
    let get = |id: &ChunkId| store.chunk(id);
    let mut lookup = store::tree::Lookup::new(root, &get);
    for at in order {
        store.observer().progress().check()?;
        if let Some(entry) = lookup.at(&wanted[at])? {
            seen[at] = Some(of_entry(store, &entry, reads)?);
        }
    }
    Ok(seen)
}

fn has_file_in_tree(store: &Store, root: &ChunkId, dir: &Path) -> Result<bool> {
    let get = |id: &ChunkId| store.chunk(id);
    let path = store::backup::tree_path(dir);
    for entry in store::tree::TreeReader::within(root, &path, &get) {
        store.observer().progress().check()?;
        if entry.map_err(|lost| lost.error)?.kind == Kind::File {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_file_on_machine(dir: &Path) -> bool {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_file() => return true,
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                _ => {}
            }
        }
    }
    false
}

fn of_entry(store: &Store, entry: &Entry, reads: bool) -> Result<Seen> {
    let content = if reads && entry.kind == Kind::File && entry.size <= CONTENT_BYTES_MAX {
        let mut content = Vec::new();
        store::dump::dump(store, entry, &mut content)?.ok().map(|()| content)
    } else {
        None
    };
    Ok(Seen { is_dir: entry.kind == Kind::Directory, size: entry.size, content })
}

fn look_at_machine(path: &Path, reads: bool) -> Option<Seen> {
    let metadata = path.symlink_metadata().ok()?;
    let is_small = metadata.is_file() && metadata.len() <= CONTENT_BYTES_MAX;
    let content = (reads && is_small).then(|| read_small(path)).flatten();
    Some(Seen { is_dir: metadata.is_dir(), size: metadata.len(), content })
}

/// A file that may grow while it is read.
fn read_small(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path).ok()?.take(CONTENT_BYTES_MAX).read_to_end(&mut content).ok()?;
    Some(content)
}

/// A path as text for people.
pub fn shown(path: &Path) -> String {
    store::entry::display_path(path.as_os_str().as_bytes())
}
