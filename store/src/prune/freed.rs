//! Bytes that a prune would free if some snapshots went.

use super::runs::Runs;
use crate::error::{Error, Result};
use crate::id::{ChunkId, SnapshotId};
use crate::reach::{Visitor, reach, reach_beside};
use crate::sessions;
use crate::snapshot;
use crate::store::Store;
use std::collections::{HashMap, HashSet};

/// Bytes of an id and the number of a snapshot.
const ROW_BYTES: usize = 36;

/// Stored bytes of chunks that only snapshots that go need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// Bytes that no snapshot needs any more once all of them went.
    pub total: u64,
    /// Bytes that only this snapshot needs, of all snapshots of the store.
    pub own: HashMap<SnapshotId, u64>,
}

/// Returns the bytes that are needed by these snapshots, and by no other.
///
/// Reads all trees once, and those that go only where others do not share their pages. Memory is
/// bounded like that of a prune. A prune frees the bytes of a segment once enough of them are free.
pub fn freed(store: &Store, going: &[SnapshotId]) -> Result<Freed> {
    let (backend, progress) = (&*store.backend, store.observer().progress());
    let stays = Stays(Runs::new(&store.workspace));
    let (mut known, announced) = (HashSet::new(), sessions::announced(backend)?);
    let is_going: HashSet<SnapshotId> = going.iter().copied().collect();
    for id in snapshot::list(backend)?.iter().filter(|id| !is_going.contains(id)) {
        let root = match store.snapshot(id) {
            Ok(snapshot) => snapshot.root.chunk(),
            Err(error) if store.was_forgotten(id, &error) => continue,
            Err(error) => return Err(error),
        };
        match reach(&root, store, &mut known, &stays, progress) {
            // Its backup has not succeeded.
            Err(Error::ChunkMissing(_)) if announced.contains(id) => {}
            reached => reached?,
        }
    }
    let rows = Runs::new(&store.workspace);
    for (number, id) in (0..).zip(going) {
        let root = store.snapshot(id)?.root.chunk();
        reach_beside(&root, store, &known, &Goes { rows: &rows, number }, progress)?;
    }
    let mut freed = Freed { total: 0, own: going.iter().map(|id| (*id, 0)).collect() };
    for shard in 0..=255 {
        progress.check()?;
        let (stays, rows) = (stays.0.sorted(shard)?, rows.sorted(shard)?);
        for same in rows.chunk_by(|a, b| a[..32] == b[..32]) {
            let id: [u8; 32] = same[0][..32].try_into().expect("32 bytes");
            if stays.binary_search(&id).is_ok() {
                continue;
            }
            let found = store.index.find(&ChunkId::from_bytes(id))?;
            let bytes = found.map_or(0, |found| u64::from(found.stored_len));
            freed.total += bytes;
            if let [only] = same {
                let number = u32::from_be_bytes(only[32..].try_into().expect("4 bytes"));
                *freed.own.entry(going[number as usize]).or_default() += bytes;
            }
        }
    }
    Ok(freed)
}

/// Collects what snapshots need that stay.
struct Stays<'a>(Runs<'a, 32>);

impl Visitor for Stays<'_> {
    fn metadata(&self, id: &ChunkId) -> Result<()> {
        self.0.push_new(*id.as_bytes())
    }

    fn slice(&self, id: &ChunkId, _: u32) -> Result<()> {
        self.0.push_new(*id.as_bytes())
    }
}

/// Collects what a snapshot needs that goes.
struct Goes<'a> {
    rows: &'a Runs<'a, ROW_BYTES>,
    number: u32,
}

impl Goes<'_> {
    fn push(&self, id: &ChunkId) -> Result<()> {
        let mut row = [0; ROW_BYTES];
        row[..32].copy_from_slice(id.as_bytes());
        row[32..].copy_from_slice(&self.number.to_be_bytes());
        self.rows.push_new(row)
    }
}

impl Visitor for Goes<'_> {
    fn metadata(&self, id: &ChunkId) -> Result<()> {
        self.push(id)
    }

    fn slice(&self, id: &ChunkId, _: u32) -> Result<()> {
        self.push(id)
    }
}
