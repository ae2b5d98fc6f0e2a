//! The index of a git pack (`.idx`, version 2).
//!
//! A table sorted by object id, stored column by column: ids, checksums of the packed entries,
//! offsets in the pack. A repacked pack keeps most ids in the same order, and most checksums; its
//! offsets are new.
//!
//! Layout: gitformat-pack, "Version 2 pack-*.idx files". Tables are processed by the first byte of
//! the id, so that about a 256th of a table is in memory.

use super::{CopyMerger, DeltaError, FormatError, Reference, Sink, Source};
use std::ops::Range;

/// Magic number and version.
const HEAD: [u8; 8] = [0xFF, b't', b'O', b'c', 0, 0, 0, 2];
/// Byte offset of the first id: after header and fan-out.
const IDS_AT: u64 = 8 + 4 * 256;
/// Maximum accepted number of rows with the same first byte.
const BUCKET_ROWS_MAX: u32 = 4 << 20;
/// Minimum bytes of consecutive cells that justify an extent.
const RUN_BYTES_MIN: usize = 12;
/// Bytes read at once from the parts before and after the rows.
const BATCH_BYTES: u64 = 1 << 20;

/// Layout of the columns of an index.
#[derive(Debug, Clone)]
pub struct Table {
    /// Length of an object id in bytes: 20, or 32 in SHA-256 repositories.
    pub id_len: usize,
    /// Number of rows.
    pub count: u32,
    /// Number of rows whose first id byte is at most the index here.
    fan_out: Vec<u32>,
    len: u64,
}

/// A column of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Object ids.
    Ids,
    /// CRC-32 of each packed entry.
    Checksums,
    /// Offsets in the pack, with a flag bit for those beyond 2 GiB.
    Places,
}

impl Table {
    /// Reads and checks the part before the ids.
    pub fn open<E>(index: &mut dyn Source<E>) -> Result<Table, DeltaError<E>> {
        let len = index.len();
        if len < IDS_AT {
            return Err(FormatError::Truncated.into());
        }
        let mut head = vec![0; IDS_AT as usize];
        index.read(0, &mut head).map_err(DeltaError::Failed)?;
        if head[..4] != HEAD[..4] {
            return Err(FormatError::Magic.into());
        }
        if head[..8] != HEAD {
            return Err(FormatError::Version.into());
        }
        let fan_out: Vec<u32> =
            head[8..].as_chunks().0.iter().map(|n| u32::from_be_bytes(*n)).collect();
        let (&count, sizes) = (&fan_out[255], fan_out.windows(2));
        let first = fan_out[0];
        let is_sorted = fan_out.is_sorted();
        let is_even = first
            .max(sizes.map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or(0))
            <= BUCKET_ROWS_MAX;
        if !(is_sorted && is_even) {
            return Err(FormatError::IndexDisorder.into());
        }
        let id_len = id_len(len, count)?;
        Ok(Table { id_len, count, fan_out, len })
    }

    /// Returns the table of a reference, or `None` if it is unreadable or has ids of another
    /// length.
    pub fn of_reference(reference: &mut dyn Reference, id_len: usize) -> Option<Table> {
        Table::open(&mut Whole(reference)).ok().filter(|table| table.id_len == id_len)
    }

    /// Returns the rows whose ids begin with `byte`.
    pub fn bucket(&self, byte: u8) -> Range<u32> {
        let at = usize::from(byte);
        let start = if at == 0 { 0 } else { self.fan_out[at - 1] };
        start..self.fan_out[at]
    }

    fn width(&self, column: Column) -> usize {
        if column == Column::Ids { self.id_len } else { 4 }
    }

    /// Returns the byte offset in the index of a cell.
    pub fn at(&self, column: Column, row: u32) -> u64 {
        let rows = u64::from(self.count);
        let (before, width) = match column {
            Column::Ids => (0, self.id_len as u64),
            Column::Checksums => (rows * self.id_len as u64, 4),
            Column::Places => (rows * (self.id_len as u64 + 4), 4),
        };
        IDS_AT + before + u64::from(row) * width
    }

    /// Returns the byte offset of the table of 8-byte offsets, and its number of rows.
    pub fn far_places(&self) -> (u64, u64) {
        let at = self.at(Column::Places, self.count);
        (at, (self.len - at - 2 * self.id_len as u64) / 8)
    }

    /// Returns the byte offset of the pack's checksum.
    pub fn pack_checksum_at(&self) -> u64 {
        self.len - 2 * self.id_len as u64
    }

    /// Reads rows of a column.
    pub fn read<E>(
        &self,
        index: &mut dyn Source<E>,
        column: Column,
        rows: Range<u32>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), E> {
        bytes.clear();
        bytes.resize(rows.len() * self.width(column), 0);
        if bytes.is_empty() { Ok(()) } else { index.read(self.at(column, rows.start), bytes) }
    }
}

/// Derives the id length from the length of the index and its number of rows.
fn id_len(len: u64, count: u32) -> Result<usize, FormatError> {
    let rows = u64::from(count);
    let least = |id: u64| IDS_AT + rows * (id + 8) + 2 * id;
    for id in [20, 32] {
        let far = len.checked_sub(least(id));
        if far.is_some_and(|bytes| bytes % 8 == 0 && bytes / 8 <= rows) {
            return Ok(id as usize);
        }
    }
    Err(if len < least(20) { FormatError::Truncated } else { FormatError::Trailing })
}

/// Bytes of a reference could not be read.
#[derive(Debug)]
pub struct Lost;

/// Reads a reference as a [`Source`].
pub struct Whole<'a>(pub &'a mut dyn Reference);

impl Source<Lost> for Whole<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Lost> {
        if self.0.read(offset, buffer) == buffer.len() { Ok(()) } else { Err(Lost) }
    }
}

/// Calls `found` for every id in both lists, with its row in each. Both lists must be sorted;
/// otherwise ids are missed.
pub fn join(a: &[u8], b: &[u8], id_len: usize, mut found: impl FnMut(usize, usize)) {
    let id = |ids: &[u8], n: usize| -> Option<std::ops::Range<usize>> {
        let start = n * id_len;
        (start < ids.len()).then_some(start..start + id_len)
    };
    let (mut in_a, mut in_b) = (0, 0);
    while let (Some(left), Some(right)) = (id(a, in_a), id(b, in_b)) {
        match a[left].cmp(&b[right]) {
            std::cmp::Ordering::Less => in_a += 1,
            std::cmp::Ordering::Greater => in_b += 1,
            std::cmp::Ordering::Equal => {
                found(in_a, in_b);
                in_a += 1;
                in_b += 1;
            }
        }
    }
}

/// Compares an index with those of other packs.
///
/// Returns `DeltaError::Format` only before anything was passed to `sink`.
pub fn compare<E>(
    new: &mut dyn Source<E>,
    references: &mut [&mut dyn Reference],
    sink: &mut dyn Sink<E>,
) -> Result<(), DeltaError<E>> {
    let table = Table::open(new)?;
    let tables = references
        .iter_mut()
        .map(|reference| Table::of_reference(&mut **reference, table.id_len))
        .collect();
    let mut matcher =
        IndexMatcher { new, references, table, tables, merger: CopyMerger::new(sink, BATCH_BYTES) };
    matcher.all().and_then(|()| matcher.merger.finish()).map_err(DeltaError::Failed)
}

struct IndexMatcher<'a, 'b, E> {
    new: &'a mut dyn Source<E>,
    references: &'a mut [&'b mut dyn Reference],
    table: Table,
    /// Tables of the references; `None` if a reference is unreadable or of another kind.
    tables: Vec<Option<Table>>,
    merger: CopyMerger<'a, E>,
}

/// A row of a reference: reference number and row number.
type Match = (usize, u32);

impl<E> IndexMatcher<'_, '_, E> {
    fn all(&mut self) -> Result<(), E> {
        self.merger.literal_to(IDS_AT, self.new)?;
        for column in [Column::Ids, Column::Checksums, Column::Places] {
            for byte in 0..=255 {
                self.bucket(column, byte)?;
            }
        }
        self.merger.literal_to(self.table.len, self.new)
    }

    /// Processes one column of the rows whose ids begin with `byte`.
    fn bucket(&mut self, column: Column, byte: u8) -> Result<(), E> {
        let rows = self.table.bucket(byte);
        let mut ids = Vec::new();
        self.table.read(self.new, Column::Ids, rows.clone(), &mut ids)?;
        let mut bytes = Vec::new();
        self.table.read(self.new, column, rows, &mut bytes)?;
        let mut matches = self.matches(byte, &ids);
        if column != Column::Ids {
            self.keep_equal(column, byte, &bytes, &mut matches);
        }
        self.emit(column, &bytes, &matches)
    }

    /// Finds a reference row for each id. Prefers the row that continues the match of the previous
    /// id.
    fn matches(&mut self, byte: u8, ids: &[u8]) -> Vec<Option<Match>> {
        let id_len = self.table.id_len;
        let mut matches: Vec<Option<Match>> = vec![None; ids.len() / id_len];
        let mut of_reference = Vec::new();
        for (n, (reference, table)) in self.references.iter_mut().zip(&self.tables).enumerate() {
            let Some(table) = table else { continue };
            let rows = table.bucket(byte);
            if table
                .read(&mut Whole(&mut **reference), Column::Ids, rows.clone(), &mut of_reference)
                .is_err()
            {
                continue;
            }
            join(ids, &of_reference, id_len, |here, there| {
                let row = rows.start + there as u32;
                let before = here.checked_sub(1).and_then(|here| matches[here]);
                let continues = row > 0 && before == Some((n, row - 1));
                if matches[here].is_none() || continues {
                    matches[here] = Some((n, row));
                }
            });
        }
        matches
    }

    /// Removes matches whose cells of this column differ.
    fn keep_equal(
        &mut self,
        column: Column,
        byte: u8,
        bytes: &[u8],
        matches: &mut [Option<Match>],
    ) {
        let width = self.table.width(column);
        let mut of_reference = Vec::new();
        for (n, (reference, table)) in self.references.iter_mut().zip(&self.tables).enumerate() {
            let is_asked = matches.iter().flatten().any(|(of, _)| *of == n);
            let Some(table) = table.as_ref().filter(|_| is_asked) else { continue };
            let rows = table.bucket(byte);
            let read =
                table.read(&mut Whole(&mut **reference), column, rows.clone(), &mut of_reference);
            for (cell, found) in bytes.chunks_exact(width).zip(matches.iter_mut()) {
                let Some((_, row)) = found.filter(|(of, _)| *of == n) else { continue };
                let at = (row - rows.start) as usize * width;
                if read.is_err() || of_reference.get(at..at + width) != Some(cell) {
                    *found = None;
                }
            }
        }
    }

    /// Emits the cells of a bucket. Consecutive rows of one reference become one copy.
    fn emit(&mut self, column: Column, bytes: &[u8], matches: &[Option<Match>]) -> Result<(), E> {
        let width = self.table.width(column);
        let continues = |a: &Option<Match>, b: &Option<Match>| match (a, b) {
            (None, None) => true,
            (Some((reference, row)), Some(next)) => *next == (*reference, row.wrapping_add(1)),
            _ => false,
        };
        let (mut emitted, mut at) = (0, 0);
        for run in matches.chunk_by(continues) {
            let len = run.len() * width;
            if let Some((reference, row)) = run[0]
                && let Some(table) = &self.tables[reference]
            {
                let there = table.at(column, row);
                let continues = emitted == at && self.merger.goes_on(reference, there);
                if len >= RUN_BYTES_MIN || continues {
                    self.merger.literal(&bytes[emitted..at])?;
                    self.merger.copy(reference, there, len as u64)?;
                    emitted = at + len;
                }
            }
            at += len;
        }
        self.merger.literal(&bytes[emitted..])
    }
}
