//! Repositories from which others borrow objects.
//!
//! git moves objects from a repository to the one from which it borrows. A copy of the lender that
//! is older than that of a borrower may lack them.

use super::{absolute, tree_path};
use crate::git;
use crate::source;
use crate::walk::{Root, join};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Maximum bytes of a list of alternates.
const LIST_BYTES_MAX: usize = 1 << 20;
/// Maximum number of lenders that are noted.
const LENDERS_MAX: usize = 100_000;

/// Git directories from which the ones that were read borrow, by path in the tree.
#[derive(Debug, Default)]
pub struct Lenders(Mutex<BTreeSet<Vec<u8>>>);

impl Lenders {
    /// Notes the lenders of the git directory `borrower` that exist.
    pub fn note(&self, borrower: &Root) {
        let Ok(file) = source::open_file_below(borrower.dir.as_fd(), git::ALTERNATES) else {
            return;
        };
        let len = source::stat_open(&file).map_or(0, |stat| stat.size);
        let mut list = vec![0; LIST_BYTES_MAX.min(len as usize)];
        if file.read_exact_at(&mut list, 0).is_err() {
            return;
        }
        // git reads lines relative to the directory of the objects.
        let objects = absolute(&join(&borrower.tree_path, b"objects"));
        for line in git::alternates(&list) {
            let place = objects.join(Path::new(OsStr::from_bytes(&line)));
            let Ok(place) = fs::canonicalize(place) else { continue };
            let mut noted = self.0.lock();
            if place.ends_with("objects") && noted.len() < LENDERS_MAX {
                noted.extend(place.parent().map(tree_path));
            }
        }
    }

    /// Returns the lenders in path order.
    pub fn into_paths(self) -> Vec<Vec<u8>> {
        self.0.into_inner().into_iter().collect()
    }
}
