//! Objects that the references in a copy of a git directory name.
//!
//! References are read before objects. A reference that changes in between may leave the copy with
//! its old value, whose objects housekeeping deletes before they are read.

use crate::git::{self, PackIndex};
use crate::source;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Maximum number of ids that are held in memory.
const IDS_MAX: usize = 1_000_000;
/// Maximum number of directories of borrowed objects that are searched.
const OBJECT_DIRS_MAX: usize = 100;
/// Maximum bytes of the id of an object, in digits.
const ID_DIGITS_MAX: usize = 64;

/// Ids of objects that references name.
#[derive(Default)]
pub struct NamedObjects {
    ids: BTreeSet<Vec<u8>>,
    /// Packed references, open as they were copied.
    packed: Option<File>,
    /// True if there are more ids than are held, or some that this program cannot read.
    is_cut: bool,
}

impl NamedObjects {
    /// Adds the content of a loose reference.
    pub fn add(&mut self, reference: &[u8]) {
        self.ids.extend(git::id_at_start(reference));
        self.is_cut |= self.ids.len() > IDS_MAX;
        if self.is_cut {
            self.ids.clear();
        }
    }

    /// Adds the references in an open `packed-refs`.
    pub fn add_packed(&mut self, file: File) {
        self.packed = Some(file);
    }

    /// Notes references that this program cannot read.
    pub fn add_unknown(&mut self) {
        self.is_cut = true;
    }

    /// Returns the ids of those that the git directory, and those from which it borrows, do not have
    /// any more; `None` if that is not known.
    pub fn gone(&mut self, git_dir: &Path) -> Option<BTreeSet<Vec<u8>>> {
        if let Some(packed) = self.packed.take() {
            self.read_packed(packed).ok()?;
        }
        if self.is_cut {
            return None;
        }
        let mut left = std::mem::take(&mut self.ids);
        let dirs = object_dirs(git_dir);
        for dir in &dirs {
            for index in fs::read_dir(dir.join("pack")).into_iter().flatten().flatten() {
                if index.path().extension() == Some(OsStr::new("idx"))
                    && let Ok(index) = File::open(index.path()).and_then(PackIndex::new)
                {
                    left.retain(|id| !index.has(id).unwrap_or(false));
                }
            }
        }
        left.retain(|id| {
            let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            let (dir, name) = digits.split_at(2);
            !dirs.iter().any(|objects| objects.join(dir).join(name).exists())
        });
        Some(left)
    }

    fn read_packed(&mut self, mut packed: File) -> std::io::Result<()> {
        packed.rewind()?;
        let mut lines = BufReader::new(packed);
        let mut line = Vec::with_capacity(ID_DIGITS_MAX);
        while lines.read_until(b'\n', &mut line)? > 0 && !self.is_cut {
            self.add(&line);
            line.clear();
        }
        Ok(())
    }
}

/// Returns the directories of objects of a git directory, its own first.
fn object_dirs(git_dir: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![git_dir.join("objects")];
    let mut at = 0;
    while at < dirs.len() && dirs.len() < OBJECT_DIRS_MAX {
        let list = fs::read(dirs[at].join("info/alternates")).unwrap_or_default();
        for line in git::alternates(&list) {
            let place = dirs[at].join(OsStr::from_bytes(&line));
            let place = fs::canonicalize(&place).unwrap_or_else(|_| source::lexically(&place));
            if !dirs.contains(&place) {
                dirs.push(place);
            }
        }
        at += 1;
    }
    dirs
}
