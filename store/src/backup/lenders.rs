//! Repositories from which others borrow objects.
//!
//! git moves objects from a repository to the one from which it borrows. A copy of the lender that
//! is older than that of a borrower may lack them.

use super::{absolute, tree_path};
use crate::git;
use crate::source;
use crate::walk::{Root, join};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Maximum bytes of a list of alternates.
const LIST_BYTES_MAX: usize = 1 << 20;
/// Maximum number of lenders that are noted.
const LENDERS_MAX: usize = 100_000;

/// Git directories that borrow objects, and those from which they do, by path in the tree.
#[derive(Debug, Default)]
pub struct Lenders {
    lenders: Mutex<BTreeSet<Vec<u8>>>,
    /// Borrowers with a hash of their lists.
    borrowers: Mutex<Borrowers>,
}

/// Borrowers with a hash of their lists.
pub type Borrowers = BTreeMap<Vec<u8>, blake3::Hash>;

impl Lenders {
    /// Notes the lenders of the git directory `borrower` that exist.
    pub fn note(&self, borrower: &Root) {
        let Some(list) = list(borrower.dir.as_fd(), git::ALTERNATES) else { return };
        let mut borrowers = self.borrowers.lock();
        if borrowers.len() < LENDERS_MAX {
            borrowers.insert(borrower.tree_path.clone(), blake3::hash(&list));
        }
        drop(borrowers);
        // git reads lines relative to the directory of the objects.
        let objects = absolute(&join(&borrower.tree_path, b"objects"));
        for line in git::alternates(&list) {
            let place = objects.join(Path::new(OsStr::from_bytes(&line)));
            let Ok(place) = fs::canonicalize(place) else { continue };
            let mut noted = self.lenders.lock();
            if place.ends_with("objects") && noted.len() < LENDERS_MAX {
                noted.extend(place.parent().map(tree_path));
            }
        }
    }

    /// Returns the lenders in path order, and the borrowers.
    pub fn into_paths(self) -> (Vec<Vec<u8>>, Borrowers) {
        (self.lenders.into_inner().into_iter().collect(), self.borrowers.into_inner())
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
