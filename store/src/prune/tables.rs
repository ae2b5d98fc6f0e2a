//! The tables of all listed segments, and what of them the snapshots need.
//!
//! The index takes no part in this: a wrong row of it must not cost a segment.

use super::runs::Runs;
use crate::error::{Error, Result};
use crate::id::{ChunkId, SegmentId};
use crate::index::{Location, Segment};
use crate::reach::Visitor;
use crate::salvage;
use crate::segment::{Row, SegmentKind, Table};
use crate::store::{Store, is_not_found};
use rayon::prelude::*;
use std::collections::HashMap;

/// Bytes of a row of a table: id, number of the segment, offset, stored length, plain length.
const ROW_BYTES: usize = 48;

/// A segment that was listed.
#[derive(Debug, Clone)]
pub struct ListedSegment {
    /// Id of the segment.
    pub id: SegmentId,
    /// Length of its file in bytes.
    pub len: u64,
    /// Kind of its chunks.
    pub kind: SegmentKind,
    /// Stored bytes of the chunks.
    pub frame_bytes: u64,
    /// True if damage is known in it: its chunks count only if no other segment has them.
    pub is_suspect: bool,
    /// True if its table cannot be read, or if it belongs to another store. It is never deleted.
    pub is_untouchable: bool,
}

/// A chunk in a listed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Number of the segment.
    pub segment: usize,
    /// Id of the chunk, its place and its lengths.
    pub row: Row,
}

impl Copy {
    fn write(&self) -> [u8; ROW_BYTES] {
        let mut bytes = [0; ROW_BYTES];
        let Row { id, offset, stored_len, plain_len } = self.row;
        bytes[..32].copy_from_slice(id.as_bytes());
        for (at, number) in [self.segment as u32, offset, stored_len, plain_len].iter().enumerate()
        {
            // In this order of bytes, the records of a chunk are sorted by segment and offset.
            bytes[32 + 4 * at..36 + 4 * at].copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8; ROW_BYTES]) -> Copy {
        let number = |at: usize| {
            u32::from_be_bytes(bytes[32 + 4 * at..36 + 4 * at].try_into().expect("4 bytes"))
        };
        let id = ChunkId::from_bytes(bytes[..32].try_into().expect("32 bytes"));
        let row = Row { id, offset: number(1), stored_len: number(2), plain_len: number(3) };
        Copy { segment: number(0) as usize, row }
    }
}

/// Ids of all chunks that snapshots need.
pub struct Needs<'a>(Runs<'a, 32>);

impl<'a> Needs<'a> {
    /// Returns an empty set, with scratch files in the workspace of this store.
    pub fn new(store: &'a Store) -> Needs<'a> {
        Needs(Runs::new(&store.workspace))
    }
}

impl Visitor for Needs<'_> {
    fn metadata(&self, id: &ChunkId) -> Result<()> {
        self.0.push_new(*id.as_bytes())
    }

    fn slice(&self, id: &ChunkId, _: u32) -> Result<()> {
        self.0.push_new(*id.as_bytes())
    }
}

/// The tables of the segments that were listed so far.
pub struct Tables<'a> {
    store: &'a Store,
    /// All segments, also those that are gone by now.
    pub segments: Vec<ListedSegment>,
    numbers: HashMap<SegmentId, usize>,
    rows: Runs<'a, ROW_BYTES>,
}

impl<'a> Tables<'a> {
    /// Returns an empty collection.
    pub fn new(store: &'a Store) -> Tables<'a> {
        Tables {
            store,
            segments: Vec::new(),
            numbers: HashMap::new(),
            rows: Runs::new(&store.workspace),
        }
    }

    /// Lists all segments and reads the tables of new ones. Returns for each number whether the
    /// segment was listed.
    pub fn list(&mut self) -> Result<Vec<bool>> {
        let damaged = self.store.index.damaged()?;
        let mut listed = Vec::new();
        for shard in 0..=255 {
            listed.extend(self.store.list_shard(shard)?);
        }
        let progress = self.store.observer().progress();
        let new: Vec<_> =
            listed.iter().filter(|(id, _)| !self.numbers.contains_key(id)).copied().collect();
        progress.expect(new.len() as u64, 0);
        let first = self.segments.len();
        let segments: Vec<Option<ListedSegment>> = new
            .par_iter()
            .enumerate()
            .map(|(at, (id, len))| {
                progress.check()?;
                let segment = self.read(id, *len, first + at)?;
                progress.add(1, 0);
                Ok(segment.map(|of| ListedSegment {
                    is_suspect: of.is_suspect || damaged.contains(id),
                    ..of
                }))
            })
            .collect::<Result<_>>()?;
        let mut is_listed = vec![false; first + new.len()];
        for (at, (segment, (id, len))) in segments.into_iter().zip(&new).enumerate() {
            // One that was deleted since it was listed has no rows.
            let segment = segment.unwrap_or(ListedSegment {
                id: *id,
                len: *len,
                kind: SegmentKind::Data,
                frame_bytes: 0,
                is_suspect: true,
                is_untouchable: true,
            });
            self.numbers.insert(*id, first + at);
            self.segments.push(segment);
        }
        for (id, _) in &listed {
            is_listed[self.numbers[id]] = true;
        }
        Ok(is_listed)
    }

    /// Reads the table of a segment and collects its rows. Returns `None` if the segment was deleted
    /// since it was listed.
    fn read(&self, id: &SegmentId, len: u64, number: usize) -> Result<Option<ListedSegment>> {
        let (kind, rows, is_intact) = match self.store.table(id, len) {
            Ok(Table { header, rows }) => {
                let is_own = header.store_id == self.store.store_id;
                (header.kind, rows, is_own)
            }
            Err(error) if is_not_found(&error) => return Ok(None),
            Err(Error::SegmentDamaged { .. }) => {
                let (backend, codec) = (&*self.store.backend, self.store.codec);
                (SegmentKind::Data, salvage::rows(backend, codec, id, len), false)
            }
            // A read error is no reason to judge about a segment.
            Err(error) => return Err(error),
        };
        for row in &rows {
            self.rows.push(Copy { segment: number, row: *row }.write())?;
        }
        if is_intact && !self.store.index.is_read_only() && self.store.index.number(id)?.is_none() {
            // A snapshot that was just made may need it, and its tree is read through the index.
            let segment = Segment { id: *id, kind, len, is_healthy: true };
            self.store.index.add(&segment, &rows)?;
        }
        Ok(Some(ListedSegment {
            id: *id,
            len,
            kind,
            frame_bytes: rows.iter().map(|row| u64::from(row.stored_len)).sum(),
            is_suspect: !is_intact,
            is_untouchable: !is_intact,
        }))
    }

    /// Calls `each` with every needed chunk and all its copies, and `after` between the lists of
    /// chunks.
    pub fn join(
        &self,
        needs: &Needs<'_>,
        each: &mut dyn FnMut(&ChunkId, &[Copy]) -> Result<()>,
        after: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut copies = Vec::new();
        for shard in 0..=255 {
            self.store.observer().progress().check()?;
            let (needed, rows) = rayon::join(|| needs.0.sorted(shard), || self.rows.sorted(shard));
            let (needed, rows) = (needed?, rows?);
            let mut rows = &rows[..];
            for id in &needed {
                let before = rows.iter().take_while(|row| row[..32] < id[..]).count();
                rows = &rows[before..];
                let own = rows.iter().take_while(|row| row[..32] == id[..]).count();
                copies.clear();
                copies.extend(rows[..own].iter().map(Copy::read));
                rows = &rows[own..];
                each(&ChunkId::from_bytes(*id), &copies)?;
            }
            after()?;
        }
        Ok(())
    }

    /// Returns true if a listed segment has each of these chunks and `is_usable` is true of it.
    pub fn have(&self, needs: &Needs<'_>, is_usable: &dyn Fn(usize) -> bool) -> Result<bool> {
        let mut have = true;
        let mut each = |_: &ChunkId, copies: &[Copy]| {
            have &= copies.iter().any(|copy| is_usable(copy.segment));
            Ok(())
        };
        self.join(needs, &mut each, &mut || Ok(()))?;
        Ok(have)
    }

    /// Reads and verifies a chunk.
    pub fn verify(&self, copy: &Copy, plain: &mut Vec<u8>) -> Result<()> {
        let Row { id, offset, stored_len, plain_len } = copy.row;
        let segment = &self.segments[copy.segment];
        let location = Location {
            segment: segment.id,
            kind: segment.kind,
            is_healthy: true,
            is_condemned: false,
            offset,
            stored_len,
            plain_len,
        };
        self.store.read_location(&id, &location, plain)
    }
}
