//! Entries become a tree in which whatever has something below it is a directory.
//!
//! A backup lists directories at different moments, and one path can be a file at one of
//! them and a directory at another. A directory keeps its content; the file gives way.

use super::run::Totals;
use crate::entry::{Entry, Kind, is_within};
use crate::error::Result;
use crate::id::ChunkId;
use crate::tree::{Put, TreeWriter};
use std::io;
use std::sync::Arc;

/// Takes entries in path order and writes the tree.
#[derive(Default)]
pub struct Assembly {
    tree: TreeWriter,
    totals: Totals,
    /// The last entry unless it is a directory: it gives way if something follows below it.
    held: Option<Entry>,
    /// Paths of the directories that lead to the last entry, outermost first.
    dirs: Vec<Vec<u8>>,
}

/// Why a path is missing that gave way to a directory.
pub fn was_also_a_directory() -> io::Error {
    io::Error::other("it was a directory at another moment of this backup, which is stored")
}

impl Assembly {
    /// Takes an entry. `in_the_way` hears the path of one that gives way to a directory.
    pub fn push(
        &mut self,
        entry: Entry,
        put: Put<'_>,
        in_the_way: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        if let Some(held) = self.held.take() {
            if is_within(&entry.path, &held.path) {
                in_the_way(&held.path);
            } else {
                self.write(&held, put)?;
            }
        }
        while self.dirs.last().is_some_and(|dir| !is_within(&entry.path, dir)) {
            self.dirs.pop();
        }
        self.make_parents(&entry, put)?;
        if entry.kind != Kind::Directory {
            self.held = Some(entry);
        } else if self.dirs.last() != Some(&entry.path) {
            self.write(&entry, put)?;
            self.dirs.push(entry.path);
        }
        Ok(())
    }

    /// Closes the tree; returns its root, and what it amounts to.
    pub fn finish(mut self, put: Put<'_>) -> Result<(ChunkId, Totals)> {
        if let Some(held) = self.held.take() {
            self.write(&held, put)?;
        }
        Ok((self.tree.finish(put)?, self.totals))
    }

    /// Writes the directories above an entry that did not come: they vanished, or were
    /// something else when they were looked at.
    fn make_parents(&mut self, entry: &Entry, put: Put<'_>) -> Result<()> {
        let known = self.dirs.last().map_or(0, Vec::len);
        let ends = entry.path.iter().enumerate().skip(known + 1).filter(|(_, b)| **b == b'/');
        for (end, _) in ends {
            let path = entry.path[..end].to_vec();
            let owner = Arc::clone(&entry.owner);
            let dir = Entry { owner, ..Entry::new(path, Kind::Directory, 0o700) };
            self.write(&dir, put)?;
            self.dirs.push(dir.path);
        }
        Ok(())
    }

    fn write(&mut self, entry: &Entry, put: Put<'_>) -> Result<()> {
        self.totals = self.totals.plus(Totals::of(entry));
        self.tree.push(entry, put)
    }
}
