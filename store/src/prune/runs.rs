//! Very many records of a fixed length, sorted by the chunk id at their start.
//!
//! The records are collected in 256 lists by the first byte of the id, most of them in a scratch file.
//! One list at a time is then sorted in memory.

use crate::error::{Error, Result};
use crate::workspace::Workspace;
use parking_lot::Mutex;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Records of one list that are written together.
const BLOCK: usize = 1 << 10;
/// Recent records of one list, which are not added again. Consecutive snapshots need nearly the same
/// chunks.
const RECENT: usize = 1 << 11;

/// Records of `N` bytes.
pub struct Runs<'a, const N: usize> {
    workspace: &'a Workspace,
    lists: Vec<Mutex<List<N>>>,
    file: OnceLock<File>,
    file_bytes: AtomicU64,
}

/// Records whose ids begin with the same byte.
struct List<const N: usize> {
    recent: Vec<[u8; N]>,
    /// Not yet in the scratch file.
    waiting: Vec<[u8; N]>,
    /// Byte offsets of blocks in the scratch file.
    blocks: Vec<u64>,
}

impl<'a, const N: usize> Runs<'a, N> {
    /// Returns an empty collection with scratch files in this workspace.
    pub fn new(workspace: &'a Workspace) -> Runs<'a, N> {
        let list = || List { recent: Vec::new(), waiting: Vec::new(), blocks: Vec::new() };
        Runs {
            workspace,
            lists: (0..=255).map(|_| Mutex::new(list())).collect(),
            file: OnceLock::new(),
            file_bytes: AtomicU64::new(0),
        }
    }

    /// Adds a record, unless it was added just before.
    pub fn push_new(&self, record: [u8; N]) -> Result<()> {
        let mut list = self.lists[usize::from(record[0])].lock();
        if list.recent.is_empty() {
            // No record of these zeros is in the first list: it is added as any other.
            list.recent = vec![[0xFF; N]; RECENT];
        }
        let at = usize::from(u16::from_le_bytes([record[1], record[2]])) % RECENT;
        if list.recent[at] == record && record != [0xFF; N] {
            return Ok(());
        }
        list.recent[at] = record;
        self.append(&mut list, record)
    }

    /// Adds a record.
    pub fn push(&self, record: [u8; N]) -> Result<()> {
        self.append(&mut self.lists[usize::from(record[0])].lock(), record)
    }

    fn append(&self, list: &mut List<N>, record: [u8; N]) -> Result<()> {
        list.waiting.push(record);
        if list.waiting.len() < BLOCK {
            return Ok(());
        }
        let bytes = list.waiting.concat();
        list.waiting.clear();
        let at = self.file_bytes.fetch_add(bytes.len() as u64, Relaxed);
        self.file()?.write_all_at(&bytes, at).map_err(Error::temporary)?;
        list.blocks.push(at);
        Ok(())
    }

    fn file(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        // A store can be on a read-only or full file system.
        let file = self.workspace.scratch().or_else(|_| tempfile::tempfile());
        let file = file.map_err(Error::temporary)?;
        // A file that another thread created meanwhile is used instead.
        Ok(self.file.get_or_init(|| file))
    }

    /// Returns the records whose ids begin with `shard`, sorted, each once.
    pub fn sorted(&self, shard: u8) -> Result<Vec<[u8; N]>> {
        let list = self.lists[usize::from(shard)].lock();
        let mut sorted = list.waiting.clone();
        let mut bytes = vec![0; BLOCK * N];
        let mut distinct = BLOCK * 64;
        for at in &list.blocks {
            self.file()?.read_exact_at(&mut bytes, *at).map_err(Error::temporary)?;
            let records = bytes.chunks_exact(N);
            sorted.extend(records.map(|record| <[u8; N]>::try_from(record).expect("N bytes")));
            // Many records may be the same.
            if sorted.len() >= 2 * distinct {
                sorted.sort_unstable();
                sorted.dedup();
                distinct = distinct.max(sorted.len());
            }
        }
        sorted.sort_unstable();
        sorted.dedup();
        Ok(sorted)
    }
}
