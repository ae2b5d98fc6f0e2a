//! A read-only view of a copy, or of the instance itself.

use crate::error::Result;
use crate::links::real;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use store::entry::{Entry, EntryKind, path_cmp};
use store::id::ChunkId;
use store::store::Store;

/// Largest file whose content is read, in bytes.
const CONTENT_BYTES_MAX: u64 = 1 << 20;

/// A tree of files to look paths up in.
pub enum View<'a> {
    /// Tree of a snapshot.
    Tree {
        /// Store that contains the snapshot.
        store: &'a Store,
        /// Root of the tree.
        root: ChunkId,
    },
    /// This machine in its current state.
    Live,
    /// Another view, with some paths mapped from the place that a service sees to the real one.
    Through {
        /// The underlying view.
        view: &'a View<'a>,
        /// The mapped paths.
        mounts: &'a [Mount],
    },
}

/// Serializes a path as text. Bytes that are not UTF-8 are escaped, as in messages.
pub fn as_text<S: Serializer>(path: impl AsRef<Path>, to: S) -> Result<S::Ok, S::Error> {
    let path = path.as_ref();
    match path.to_str() {
        Some(text) => to.serialize_str(text),
        None => to.serialize_str(&shown(path)),
    }
}

/// Serializes paths, each as [`as_text`] does.
pub fn as_texts<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
    struct Text<'a>(&'a Path);
    impl Serialize for Text<'_> {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            as_text(self.0, to)
        }
    }
    to.collect_seq(paths.iter().map(|path| Text(path)))
}

/// A path that a service sees in one place and this machine has in another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mount {
    /// Path on this machine that corresponds to the service's path, without the mount.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub seen: PathBuf,
    /// Real path on this machine.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub path: PathBuf,
}

impl Mount {
    /// Resolves symbolic links in both paths. The last component of `seen` is not followed: the
    /// mount covers it, so a link there does not count and nothing need exist.
    pub fn resolve(&mut self) {
        if let (Some(dir), Some(name)) = (self.seen.parent(), self.seen.file_name()) {
            self.seen = real(dir).join(name);
        }
        self.path = real(&self.path);
    }
}

/// A file or directory at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// True if it is a directory.
    pub is_dir: bool,
    /// Size in bytes.
    pub size: u64,
    /// Target, if it is a symbolic link.
    pub target: Option<PathBuf>,
    /// Content, if it was requested and could be read.
    pub content: Option<Vec<u8>>,
}

/// A file below a directory.
#[derive(Debug, Clone, Copy)]
pub struct FileBelow<'a> {
    /// Path relative to the directory.
    pub path: &'a Path,
    /// Size in bytes.
    pub size: u64,
    /// Last change of its content, in seconds since 1970.
    pub mtime: i64,
}

/// Function that a view calls for each file.
pub type Visit<'a> = &'a mut dyn FnMut(&FileBelow<'_>) -> ControlFlow<()>;

impl<'a> View<'a> {
    /// This machine as a service sees it, with these mounts.
    pub fn machine(mounts: &'a [Mount]) -> View<'a> {
        View::Through { view: &View::Live, mounts }
    }

    /// Returns true if the view shows this machine itself.
    pub fn is_live(&self) -> bool {
        match self {
            View::Tree { .. } => false,
            View::Live => true,
            View::Through { view, .. } => view.is_live(),
        }
    }

    /// Maps a path that a service sees to the path on this machine.
    pub fn place(&self, path: &Path) -> PathBuf {
        let View::Through { mounts, .. } = self else { return path.to_owned() };
        let holding = mounts.iter().filter(|mount| path.starts_with(&mount.seen));
        let deepest = holding.max_by_key(|mount| mount.seen.components().count());
        let Some(mount) = deepest else { return path.to_owned() };
        let rest = path.strip_prefix(&mount.seen).unwrap_or(Path::new(""));
        if rest.as_os_str().is_empty() { mount.path.clone() } else { mount.path.join(rest) }
    }

    /// Looks up paths. The answers are in the order of `paths`.
    pub fn look(&self, paths: &[PathBuf]) -> Result<Vec<Option<Seen>>> {
        self.look_at(paths, false)
    }

    /// Looks up paths and reads the content of small files.
    pub fn read(&self, paths: &[PathBuf]) -> Result<Vec<Option<Seen>>> {
        self.look_at(paths, true)
    }

    /// Looks up one path and reads the content of a small file.
    pub fn file(&self, path: &Path) -> Result<Option<Seen>> {
        Ok(self.read(&[path.to_owned()])?.pop().flatten())
    }

    /// Reads a whole file of a snapshot, unless it is larger than `bytes_max`. Damaged content counts
    /// as missing.
    pub fn content(&self, path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let (store, root) = match self {
            View::Tree { store, root } => (*store, root),
            View::Through { view, .. } => return view.content(&self.place(path), bytes_max),
            View::Live => return Ok(None),
        };
        let entry = store::tree::Lookup::new(root, store).at(&store::backup::tree_path(path))?;
        let Some(entry) = entry.filter(|entry| entry.size <= bytes_max) else { return Ok(None) };
        let mut content = Vec::new();
        Ok(store::dump::dump(store, &entry, &mut content)?.ok().map(|()| content))
    }

    /// Returns true if anything exists at a path.
    pub fn has(&self, path: &Path) -> Result<bool> {
        Ok(self.look(&[path.to_owned()])?.iter().any(Option::is_some))
    }

    /// Visits the files below a directory, at any depth, until `visit` breaks.
    pub fn files_below(&self, dir: &Path, visit: Visit<'_>) -> Result<()> {
        match self {
            View::Tree { store, root } => files_in_tree(store, root, dir, visit),
            View::Through { view, .. } => view.files_below(&self.place(dir), visit),
            View::Live => {
                files_on_machine(dir, visit);
                Ok(())
            }
        }
    }

    /// Returns the directories directly in a directory of a snapshot, at most `max`; `None` if there
    /// are more, or if the view shows a machine.
    pub fn dirs_in(&self, dir: &Path, max: usize) -> Result<Option<Vec<PathBuf>>> {
        let (store, root) = match self {
            View::Tree { store, root } => (*store, root),
            View::Through { view, .. } => return view.dirs_in(&self.place(dir), max),
            View::Live => return Ok(None),
        };
        let (path, mut dirs) = (store::backup::tree_path(dir), Vec::new());
        for entry in store::tree::children(root, &path, store) {
            store.observer().progress().check()?;
            let entry = entry.map_err(|lost| lost.error)?;
            if entry.kind == EntryKind::Directory {
                dirs.push(Path::new("/").join(OsStr::from_bytes(&entry.path)));
            }
            if dirs.len() > max {
                return Ok(None);
            }
        }
        Ok(Some(dirs))
    }

    fn look_at(&self, paths: &[PathBuf], reads: bool) -> Result<Vec<Option<Seen>>> {
        match self {
            View::Tree { store, root } => look_in_tree(store, root, paths, reads),
            View::Through { view, .. } => {
                let places: Vec<PathBuf> = paths.iter().map(|path| self.place(path)).collect();
                view.look_at(&places, reads)
            }
            View::Live => Ok(paths.iter().map(|path| look_at_machine(path, reads)).collect()),
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
    let mut lookup = store::tree::Lookup::new(root, store);
    for at in order {
        store.observer().progress().check()?;
        if let Some(entry) = lookup.at(&wanted[at])? {
            seen[at] = Some(of_entry(store, &entry, reads)?);
        }
    }
    Ok(seen)
}

fn files_in_tree(store: &Store, root: &ChunkId, dir: &Path, visit: Visit<'_>) -> Result<()> {
    let path = store::backup::tree_path(dir);
    for entry in store::tree::TreeReader::within(root, &path, store) {
        store.observer().progress().check()?;
        let entry = entry.map_err(|lost| lost.error)?;
        let inner = entry.path.get(path.len() + 1..).unwrap_or_default();
        if entry.kind == EntryKind::File {
            let path = Path::new(OsStr::from_bytes(inner));
            let mtime = entry.mtime.map_or(0, |time| time.seconds);
            if visit(&FileBelow { path, size: entry.size, mtime }).is_break() {
                break;
            }
        }
    }
    Ok(())
}

fn files_on_machine(top: &Path, visit: Visit<'_>) {
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            // A file that went away meanwhile is not there.
            let Ok(metadata) = entry.metadata() else { continue };
            let path = entry.path();
            if metadata.is_dir() {
                dirs.push(path);
            } else if metadata.is_file() {
                let inner = path.strip_prefix(top).unwrap_or(&path);
                let (size, mtime) = (metadata.len(), metadata.mtime());
                if visit(&FileBelow { path: inner, size, mtime }).is_break() {
                    return;
                }
            }
        }
    }
}

fn of_entry(store: &Store, entry: &Entry, reads: bool) -> Result<Seen> {
    let content = if reads && entry.kind == EntryKind::File && entry.size <= CONTENT_BYTES_MAX {
        let mut content = Vec::new();
        store::dump::dump(store, entry, &mut content)?.ok().map(|()| content)
    } else {
        None
    };
    let target =
        (entry.kind == EntryKind::Symlink).then(|| OsStr::from_bytes(&entry.target).into());
    Ok(Seen { is_dir: entry.kind == EntryKind::Directory, size: entry.size, target, content })
}

fn look_at_machine(path: &Path, reads: bool) -> Option<Seen> {
    let metadata = path.symlink_metadata().ok()?;
    let is_small = metadata.is_file() && metadata.len() <= CONTENT_BYTES_MAX;
    let content = (reads && is_small).then(|| read_small(path)).flatten();
    let target = metadata.is_symlink().then(|| std::fs::read_link(path).ok()).flatten();
    Some(Seen { is_dir: metadata.is_dir(), size: metadata.len(), target, content })
}

/// Reads a bounded amount, because the file may grow meanwhile.
fn read_small(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path).ok()?.take(CONTENT_BYTES_MAX).read_to_end(&mut content).ok()?;
    Some(content)
}

/// Formats a path for messages.
pub fn shown(path: &Path) -> String {
    store::entry::display_path(path.as_os_str().as_bytes())
}
