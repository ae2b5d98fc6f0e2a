//! Proves that all snapshots can be restored, without a look-up for each chunk.
//!
//! The chunks that the snapshots need are collected in 256 lists by the first byte of their ids.
//! Each list is then sorted and compared with the index, which is read once in the same order. If
//! this finds any fault, or something goes wrong, the caller looks up every chunk by itself and
//! reports the losses.

use super::Check;
use crate::error::{Error, Result};
use crate::id::{ChunkId, SnapshotId};
use crate::reach::{Visitor, reach};
use crate::snapshot::Snapshot;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Bytes of a reference in the scratch file.
const REFERENCE_BYTES: usize = 36;
/// References of one list that are written together.
const BLOCK: usize = 1 << 10;
/// Recent references of one list, which are not added again. Consecutive snapshots have nearly the
/// same references.
const RECENT: usize = 1 << 11;

/// A chunk and the highest number of its bytes that a slice needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reference {
    chunk: ChunkId,
    end: u32,
}

/// References to chunks whose ids begin with the same byte.
#[derive(Default)]
struct List {
    recent: Vec<Option<Reference>>,
    /// Not yet in the scratch file.
    waiting: Vec<Reference>,
    /// Byte offsets of blocks in the scratch file.
    blocks: Vec<u64>,
}

/// All references, most of them in a scratch file.
struct References<'a> {
    check: &'a Check<'a>,
    lists: Vec<Mutex<List>>,
    file: OnceLock<File>,
    file_bytes: AtomicU64,
}

/// Returns true if every entry of these snapshots can be restored. Returns false if one cannot, or
/// if that is uncertain.
pub fn are_all_sound(check: &Check<'_>, snapshots: &[(SnapshotId, Snapshot)]) -> Result<bool> {
    let references = References {
        check,
        lists: (0..=255).map(|_| Mutex::default()).collect(),
        file: OnceLock::new(),
        file_bytes: AtomicU64::new(0),
    };
    let mut known: HashSet<u128> = HashSet::new();
    let progress = check.store.observer().progress();
    for (_, snapshot) in snapshots {
        match reach(&snapshot.root.chunk(), check, &mut known, &references, progress) {
            Ok(()) => {}
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(_) => return Ok(false),
        }
    }
    references.are_all_in_index()
}

impl Visitor for References<'_> {
    /// The walk reads it.
    fn metadata(&self, _: &ChunkId) -> Result<()> {
        Ok(())
    }

    fn slice(&self, chunk: &ChunkId, end: u32) -> Result<()> {
        self.push(Reference { chunk: *chunk, end }).map_err(Error::temporary)
    }
}

impl References<'_> {
    fn push(&self, reference: Reference) -> io::Result<()> {
        let id = reference.chunk.as_bytes();
        let mut list = self.lists[usize::from(id[0])].lock();
        if list.recent.is_empty() {
            list.recent = vec![None; RECENT];
        }
        let recent = &mut list.recent[usize::from(u16::from_le_bytes([id[1], id[2]])) % RECENT];
        if recent.is_some_and(|known| known.chunk == reference.chunk && known.end >= reference.end)
        {
            return Ok(());
        }
        *recent = Some(reference);
        list.waiting.push(reference);
        if list.waiting.len() < BLOCK {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(BLOCK * REFERENCE_BYTES);
        for Reference { chunk, end } in list.waiting.drain(..) {
            bytes.extend_from_slice(chunk.as_bytes());
            bytes.extend_from_slice(&end.to_le_bytes());
        }
        let at = self.file_bytes.fetch_add(bytes.len() as u64, Relaxed);
        self.file()?.write_all_at(&bytes, at)?;
        list.blocks.push(at);
        Ok(())
    }

    fn file(&self) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        // A store can be on a read-only or full file system.
        let file = self.check.store.workspace.scratch().or_else(|_| tempfile::tempfile())?;
        // A file that another thread created meanwhile is used instead.
        Ok(self.file.get_or_init(|| file))
    }

    /// Returns the references of a list in the order of the ids, each chunk once.
    fn sorted(&self, list: &List) -> io::Result<Vec<Reference>> {
        let mut sorted = list.waiting.clone();
        let mut bytes = vec![0; BLOCK * REFERENCE_BYTES];
        let mut distinct = BLOCK * 64;
        for at in &list.blocks {
            self.file()?.read_exact_at(&mut bytes, *at)?;
            sorted.extend(bytes.chunks_exact(REFERENCE_BYTES).map(|bytes| Reference {
                chunk: ChunkId::from_bytes(bytes[..32].try_into().expect("32 bytes")),
                end: u32::from_le_bytes(bytes[32..].try_into().expect("4 bytes")),
            }));
            // Many references may be to few chunks.
            if sorted.len() >= 2 * distinct {
                sort(&mut sorted);
                distinct = distinct.max(sorted.len());
            }
        }
        sort(&mut sorted);
        Ok(sorted)
    }

    /// Returns true if the index has all referenced chunks, and they are long enough.
    fn are_all_in_index(&self) -> Result<bool> {
        let all = AtomicBool::new(true);
        (0..=255u8).into_par_iter().try_for_each(|shard| {
            self.check.store.observer().progress().check()?;
            let list = std::mem::take(&mut *self.lists[usize::from(shard)].lock());
            if !all.load(Relaxed) || (list.waiting.is_empty() && list.blocks.is_empty()) {
                return Ok(());
            }
            let sound = self.sorted(&list).is_ok_and(|sorted| self.are_in_index(shard, &sorted));
            all.fetch_and(sound, Relaxed);
            Ok::<_, Error>(())
        })?;
        Ok(all.into_inner())
    }

    fn are_in_index(&self, shard: u8, sorted: &[Reference]) -> bool {
        let (mut left, mut is_sound) = (sorted, true);
        let scanned = self.check.store.index.scan(shard, &mut |_, row| {
            let Some((next, rest)) = left.split_first() else { return };
            if row.id >= next.chunk {
                // A smaller id is not in the index.
                is_sound &= row.id == next.chunk && row.plain_len >= next.end;
                left = rest;
            }
        });
        scanned.is_ok() && is_sound && left.is_empty()
    }
}

/// Sorts references and keeps only the largest of each chunk.
fn sort(references: &mut Vec<Reference>) {
    references.sort_unstable_by(|a, b| (a.chunk, b.end).cmp(&(b.chunk, a.end)));
    references.dedup_by_key(|reference| reference.chunk);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Memory, write_all};
    use crate::check::ReadData;
    use crate::config::{self, Config};
    use crate::entry::{Content, Entry, EntryKind};
    use crate::observe::Silent;
    use crate::packer::Packer;
    use crate::recipe::{Extent, RecipeWriter};
    use crate::segment::SegmentKind;
    use crate::store::{Purpose, Store};
    use std::sync::Arc;

    /// Tests if a file with these extents is sound in a store that has many chunks of 4 bytes.
    fn is_sound(extents: impl Fn(&[ChunkId]) -> Vec<Extent>) -> bool {
        let (memory, workspaces) = (Memory::default(), tempfile::tempdir().expect("a directory"));
        let config = Config::new([7; 16], chunker::Parameters::DEFAULT, 1);
        write_all(&memory, config::FILE, &config.to_bytes()).expect("writes");
        let observer = Arc::new(Silent::default());
        let open = |purpose| {
            let (backend, observer) = (Arc::new(memory.clone()), observer.clone());
            Store::open_backend(backend, workspaces.path(), purpose, observer).expect("opens")
        };
        let root = {
            let store = open(Purpose::Write);
            let packer = Packer::new(&store, false);
            let put = |n: u32| packer.put(SegmentKind::Data, &n.to_le_bytes()).expect("puts").id;
            let chunks: Vec<ChunkId> = (0..20_000).map(put).collect();
            let mut recipe = RecipeWriter::default();
            for extent in extents(&chunks) {
                recipe.push(extent, &packer).expect("pushes");
            }
            let mut file = Entry::new(b"file".to_vec(), EntryKind::File, 0o644);
            file.size = recipe.len();
            file.content = Content::Recipe(recipe.finish(&packer).expect("finishes"));
            let mut tree = crate::tree::TreeWriter::default();
            tree.push(&file, &packer).expect("pushes");
            let root = tree.finish(&packer).expect("finishes");
            packer.finish().expect("finishes");
            root
        };
        let store = open(Purpose::Read);
        let check = Check::new(&store, ReadData::None);
        let snapshot =
            Snapshot { root: crate::snapshot::Id(*root.as_bytes()), ..crate::snapshot::example() };
        let id = SnapshotId::from_bytes([1; 32]);
        are_all_sound(&check, &[(id, snapshot)]).expect("is not interrupted")
    }

    fn slice(chunk: ChunkId, offset: u32, len: u64) -> Extent {
        Extent::Slice { chunk, offset, len }
    }

    #[test]
    fn a_missing_or_short_chunk_is_found_among_many() {
        let all = |chunks: &[ChunkId]| chunks.iter().map(|id| slice(*id, 0, 4)).collect::<Vec<_>>();
        let and = |chunks: &[ChunkId], more: &[Extent]| [&all(chunks)[..], more].concat();
        // Each chunk comes twice, so that the lists go to the scratch file.
        assert!(is_sound(|chunks| and(chunks, &all(chunks))));
        assert!(is_sound(|chunks| and(chunks, &[slice(chunks[9], 2, 2), Extent::Hole { len: 9 }])));
        assert!(!is_sound(|chunks| and(chunks, &[slice(chunks[9], 2, 3)])));
        assert!(!is_sound(|chunks| and(chunks, &[slice(ChunkId::of(b"missing"), 0, 1)])));
        for missing in [[0; 32], [0xff; 32]] {
            let missing = slice(ChunkId::from_bytes(missing), 0, 1);
            assert!(!is_sound(|chunks| and(chunks, &[missing])));
        }
    }
}
