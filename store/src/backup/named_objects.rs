//! Objects that the copy of a git directory may name.
//!
//! References are read before objects. A reference that changes in between may leave the copy with
//! its old value, whose objects housekeeping deletes before they are read. The same holds for the
//! index of a work tree, and for logs. Of files that this program cannot read, each loose object may
//! be named.

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

/// Ids of objects that may be named.
#[derive(Default)]
pub struct NamedObjects {
    ids: BTreeSet<Vec<u8>>,
    /// Packed references, open as they were copied.
    packed: Option<File>,
    /// True if there are more ids than are held.
    is_cut: bool,
}

impl NamedObjects {
    /// Adds the content of a loose reference.
    pub fn add(&mut self, reference: &[u8]) {
        self.add_id(git::id_at_start(reference));
    }

    fn add_id(&mut self, id: Option<Vec<u8>>) {
        self.ids.extend(id);
        self.is_cut |= self.ids.len() > IDS_MAX;
        if self.is_cut {
            self.ids.clear();
        }
    }

    /// Adds the references in an open `packed-refs`.
    pub fn add_packed(&mut self, file: File) {
        self.packed = Some(file);
    }

    /// Adds the loose objects of the git directory.
    pub fn add_loose(&mut self, git_dir: &Path) {
        let names = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
        for dir in names(&git_dir.join("objects")).filter(|dir| dir.file_name().len() == 2) {
            for object in names(&dir.path()) {
                let digits = [dir.file_name().as_bytes(), object.file_name().as_bytes()].concat();
                self.add_id(git::id_at_start(&digits).filter(|id| id.len() * 2 == digits.len()));
            }
        }
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
        left.retain(|id| {
            let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            let (dir, name) = digits.split_at(2);
            !dirs.iter().any(|objects| objects.join(dir).join(name).exists())
        });
        for dir in &dirs {
            for index in fs::read_dir(dir.join("pack")).into_iter().flatten().flatten() {
                if index.path().extension() == Some(OsStr::new("idx"))
                    && let Ok(index) = File::open(index.path()).and_then(PackIndex::new)
                {
                    left.retain(|id| !index.has(id).unwrap_or(false));
                }
            }
        }
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
