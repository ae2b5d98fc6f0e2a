//! Files of a store that belong to this machine.
//!
//! The index and scratch files can be made again from the store. A store in a local directory holds
//! its own workspace, so that all its users share one index. A store elsewhere has a workspace on
//! each machine, in a directory with the name of its id.

use crate::backend::Local;
use crate::error::{Error, Result};
use crate::text::Displayed;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Name of the index in a workspace.
pub const INDEX_FILE: &str = "index.sqlite";

/// Free bytes below which a prune leaves the space to its markers.
const LITTLE_BYTES: u64 = 4 << 20;

/// Name of the notes about sessions that a prune waited for.
pub const SESSIONS_FILE: &str = "sessions.json";

/// Ends of the names that SQLite and a builder of indexes use beside the index.
const INDEX_NAME_ENDS: [&str; 5] = ["", "-wal", "-shm", "-journal", ".new"];

/// Longest path of a workspace: SQLite takes paths of 512 bytes, and adds `-journal` to the longest
/// name.
const DIR_BYTES_MAX: usize = 512 - "/index.sqlite.new-journal".len();

/// Fails if the path of a workspace that may not exist yet is too long for an index in it.
pub fn check_length(dir: &Path) -> Result<()> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    // SQLite counts the path without links.
    let resolve = |above: &Path| {
        let rest = absolute.strip_prefix(above).ok()?;
        // Without a slash at the end.
        Some(fs::canonicalize(above).ok()?.join(rest).components().collect::<PathBuf>())
    };
    let resolved = absolute.ancestors().find_map(resolve).unwrap_or(absolute);
    let (bytes, max) = (resolved.as_os_str().len(), DIR_BYTES_MAX);
    if bytes > max {
        let place = resolved.displayed();
        return Err(Error::PathTooLong { place, bytes, max });
    }
    Ok(())
}

/// Directory of the files that this machine keeps about one store.
pub struct Workspace {
    dir: PathBuf,
    /// The store that holds the workspace, if it is a local one.
    local: Option<Local>,
}

impl Workspace {
    /// Returns the workspace inside a local store.
    pub fn inside(local: &Local) -> Workspace {
        Workspace { dir: local.root().to_owned(), local: Some(local.clone()) }
    }

    /// Returns the workspace of a store elsewhere, below a directory of workspaces. Creates its
    /// directory, which only its owner may read.
    pub fn below(workspaces: &Path, store_id: &[u8; 16]) -> io::Result<Workspace> {
        let dir = workspaces.join(format!("{:032x}", u128::from_be_bytes(*store_id)));
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Workspace { dir, local: None })
    }

    /// Fails if the path is too long for an index.
    pub fn check_length(&self) -> Result<()> {
        check_length(&self.dir)
    }

    /// Returns the path of the index.
    pub fn index_path(&self) -> PathBuf {
        self.dir.join(INDEX_FILE)
    }

    /// Returns the path of the notes about sessions that a prune waited for.
    pub(crate) fn sessions_path(&self) -> PathBuf {
        self.dir.join(SESSIONS_FILE)
    }

    /// Returns the store that holds the workspace, if it is a local one.
    pub(crate) fn local(&self) -> Option<&Local> {
        self.local.as_ref()
    }

    /// Creates an unnamed scratch file. It disappears when the run ends in any way.
    pub fn scratch(&self) -> io::Result<File> {
        match &self.local {
            // A prune works on a full disk.
            Some(_) if self.is_nearly_full() => tempfile::tempfile(),
            Some(local) => match local.scratch() {
                // A dry run works on a store that cannot be written.
                Err(error) if is_denied(&error) => tempfile::tempfile().map_err(|_| error),
                scratch => scratch,
            },
            None => tempfile::tempfile_in(&self.dir),
        }
    }

    /// Creates a directory outside the workspace for the index of one process.
    pub fn temporary() -> Result<TempDir> {
        // A rescue system may have no place for temporary files but its memory.
        tempfile::tempdir()
            .or_else(|error| tempfile::tempdir_in("/dev/shm").map_err(|_| Error::temporary(error)))
    }

    /// Removes the index and the files beside it. Best effort. Processes that use it keep theirs.
    pub(crate) fn remove_index(&self) {
        for end in INDEX_NAME_ENDS {
            let _ = std::fs::remove_file(self.dir.join(format!("{INDEX_FILE}{end}")));
        }
    }

    /// Finds a pipe, directory or dangling link at one of the index's file names. SQLite would wait
    /// for it or fail.
    pub(crate) fn odd_file(&self) -> Option<PathBuf> {
        let is_odd = |path: &PathBuf| match path.metadata() {
            Ok(found) => !found.is_file(),
            Err(_) => path.is_symlink(),
        };
        let names = INDEX_NAME_ENDS.iter().map(|end| self.dir.join(format!("{INDEX_FILE}{end}")));
        names.into_iter().find(is_odd)
    }

    /// Removes everything that [`odd_file`](Self::odd_file) finds: these names may be deleted, see
    /// docs/format.md.
    pub(crate) fn remove_odd_files(&self) -> Result<()> {
        while let Some(path) = self.odd_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let removed = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(Error::store_write(name))?;
        }
        Ok(())
    }

    /// Returns true if the file system of the workspace has little space left.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let Ok(found) = rustix::fs::statvfs(&self.dir) else { return false };
        // Some network and FUSE file systems report sizes of 0.
        found.f_blocks != 0 && found.f_bavail.saturating_mul(found.f_frsize) < LITTLE_BYTES
    }

    /// Returns true if the file system of the workspace has no block left: SQLite reports that in
    /// many ways.
    pub(crate) fn is_full(&self) -> bool {
        rustix::fs::statvfs(&self.dir).is_ok_and(|found| found.f_bavail == 0)
    }
}

/// Returns true if a file system or this user may not write.
fn is_denied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}
