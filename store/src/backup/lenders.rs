//! Repositories from which others borrow objects.
//!
//! git moves objects from a repository to the one from which it borrows. A copy of the lender that
//! is older than that of a borrower may lack them. The same goes for directories to which links in a
//! git directory lead.

use super::{absolute, tree_path};
use crate::git;
use crate::source;
use crate::walk::{Root, join};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Maximum bytes of a list of alternates.
const LIST_BYTES_MAX: usize = 1 << 20;
/// Maximum number of lenders that are noted.
const LENDERS_MAX: usize = 100_000;

/// Git directories that borrow objects, and the places from which they do, by path in the tree.
#[derive(Debug, Default)]
pub struct Lenders(Mutex<Borrowed>);

/// What [`Lenders`] noted.
#[derive(Debug, Default)]
pub struct Borrowed {
    /// Git directories with objects of others, each with a borrower.
    pub lenders: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Other directories to which links in git directories lead, each with such a git directory.
    pub object_dirs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Borrowers with a hash of their lists.
    pub borrowers: Borrowers,
    /// The places of objects of unchanged git directories, which are not read again.
    pub unchanged: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Borrowers with a hash of their lists.
pub type Borrowers = BTreeMap<Vec<u8>, blake3::Hash>;

impl Borrowed {
    /// Notes that `borrower` has objects at a place, which may end with `end`.
    fn add(&mut self, borrower: &[u8], place: PathBuf, end: &str) {
        let place = fs::canonicalize(&place).unwrap_or_else(|_| source::lexically(&place));
        let levels = Path::new(end).components().count();
        let (set, path) = match place.ancestors().nth(levels) {
            Some(lender) if place.ends_with(end) => (&mut self.lenders, lender),
            _ => (&mut self.object_dirs, &*place),
        };
        if set.len() < LENDERS_MAX {
            set.entry(tree_path(path)).or_insert_with(|| borrower.to_vec());
        }
    }

    /// Adds what another reading noted.
    pub fn extend(&mut self, other: Borrowed) {
        self.lenders.extend(other.lenders);
        self.object_dirs.extend(other.object_dirs);
        self.borrowers.extend(other.borrowers);
        self.unchanged.extend(other.unchanged);
    }
}

impl Lenders {
    /// Notes the places from which an unchanged git directory takes objects.
    pub fn note_unchanged(&self, borrower: &Root) {
        let noted = Lenders::default();
        noted.note(borrower);
        let Borrowed { lenders, object_dirs, .. } = noted.into_borrowed();
        self.0.lock().unchanged.extend(lenders.into_iter().chain(object_dirs));
    }

    /// Notes the places from which the git directory `borrower` takes objects.
    pub fn note(&self, borrower: &Root) {
        let (dir, path) = (borrower.dir.as_fd(), &borrower.tree_path[..]);
        // git reads lines relative to the directory of the objects.
        let objects = absolute(&join(path, b"objects"));
        for link in ["objects", "objects/pack"] {
            if let Ok(target) = source::read_link(dir, link.as_bytes()) {
                let place = absolute(path).join(link);
                let place = place.parent().map(|of| of.join(OsStr::from_bytes(&target)));
                place.into_iter().for_each(|place| self.0.lock().add(path, place, link));
            }
        }
        let Some(list) = list(dir, git::ALTERNATES) else { return };
        let mut noted = self.0.lock();
        if noted.borrowers.len() < LENDERS_MAX {
            noted.borrowers.insert(path.to_vec(), blake3::hash(&list));
        }
        for line in git::alternates(&list) {
            noted.add(path, objects.join(OsStr::from_bytes(&line)), "objects");
        }
    }

    /// Returns what was noted.
    pub fn into_borrowed(self) -> Borrowed {
        self.0.into_inner()
    }
}

/// Returns the borrowers whose lists are others by now: objects may have left the lenders again.
pub fn changed(borrowers: &Borrowers) -> Vec<Vec<u8>> {
    let Ok(top) = source::open_dir(Path::new("/")) else { return Vec::new() };
    let has_changed = |(path, then): &(&Vec<u8>, &blake3::Hash)| {
        let now = list(top.as_fd(), &join(path, git::ALTERNATES));
        now.is_none_or(|now| blake3::hash(&now) != **then)
    };
    borrowers.iter().filter(has_changed).map(|(path, _)| path.clone()).collect()
}

/// Returns the first bytes of a list of alternates; `None` if it is missing or cannot be read.
fn list(dir: BorrowedFd<'_>, path: &[u8]) -> Option<Vec<u8>> {
    let file = source::open_file_below(dir, path).ok()?;
    let len = source::stat_open(&file).ok()?.size;
    let mut list = vec![0; LIST_BYTES_MAX.min(len as usize)];
    file.read_exact_at(&mut list, 0).ok().map(|()| list)
}
