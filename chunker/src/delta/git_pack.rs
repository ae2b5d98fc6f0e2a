//! The git pack (`.pack`, version 2), matched entry by entry.
//!
//! Repacking writes the entries of old packs in another order, most of them unchanged. Both indexes
//! map objects to entries. Comparing the entries' bytes shows how much they share. An entry is a
//! short header (type, length, and the base of a delta) and a compressed body. Bodies stay equal
//! more often than headers, which contain the distance to the delta base.
//!
//! The pack is processed in windows of as many entries as memory allows. Counterparts are compared
//! in the order of the references, because opening a part of a reference again and again costs
//! most. Then the window is emitted in pack order. Only bytes missing from all references are read
//! for that.
//!
//! Layout: gitformat-pack, "pack-*.pack files have the following format".

mod blocks;
mod entry;
mod window;

use super::git_idx::{Column, Table, Whole, join};
use super::{CopyMerger, DeltaError, FormatError, Reference, Sink, Source};
use blocks::Blocks;
use entry::EntryMatch;
use std::ops::Range;
use window::{PackWindow, There, Unit};

/// Bytes before the first entry.
const HEAD_LEN: u64 = 12;
/// Maximum bytes of the pack in a window.
const WINDOW_BYTES: u64 = u32::MAX as u64;
/// Maximum counterparts compared with one entry. Only objects in many packs have more than one or
/// two, and so do malicious indexes.
const COUNTERPARTS_MAX: u8 = 8;
/// Divisor of `window_entries` that limits the counterparts beyond each entry's first.
const MORE_PART: u64 = 4;
/// Minimum bytes that justify an extent of their own.
const COPY_BYTES_MIN: u64 = 16;
/// Rows of an index's table of 8-byte offsets read at once.
const FAR_AT_ONCE: u64 = 64;

/// Limits on memory.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries of the pack in memory, at most 25 bytes each. The indexes are read, and parts of
    /// references opened, once per window of this size.
    pub window_entries: u64,
    /// Bytes of the pack in memory.
    pub batch_bytes: u64,
    /// Minimum size in bytes of the bins in which entries are counted.
    pub bin_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { window_entries: 6 << 20, batch_bytes: 256 << 10, bin_bytes: 64 << 10 }
    }
}

/// A pack of the previous snapshot and its index.
pub struct PackReference<'a> {
    /// The pack.
    pub pack: &'a mut dyn Reference,
    /// Index of the pack.
    pub index: &'a mut dyn Reference,
}

/// Compares a pack with others. `index` is the pack's own.
///
/// Returns `DeltaError::Format` only before anything was passed to `sink`.
pub fn compare<E>(
    pack: &mut dyn Source<E>,
    index: &mut dyn Source<E>,
    references: &mut [PackReference<'_>],
    sink: &mut dyn Sink<E>,
) -> Result<(), DeltaError<E>> {
    compare_within(Limits::default(), pack, index, references, sink)
}

/// Same as [`compare`], with other limits. These may change the copies, but never the content.
pub fn compare_within<E>(
    limits: Limits,
    pack: &mut dyn Source<E>,
    index: &mut dyn Source<E>,
    references: &mut [PackReference<'_>],
    sink: &mut dyn Sink<E>,
) -> Result<(), DeltaError<E>> {
    let table = open(pack, index)?;
    let tables = references
        .iter_mut()
        .map(|reference| Table::of_reference(reference.index, table.id_len))
        .collect();
    let end = pack.len() - table.id_len as u64;
    let merger = CopyMerger::new(sink, limits.batch_bytes);
    let mut matcher = PackMatcher { limits, pack, index, references, table, tables, merger, end };
    let windows = matcher.windows()?;
    matcher.all(&windows).and_then(|()| matcher.merger.finish()).map_err(DeltaError::Failed)
}

/// Checks the headers of pack and index and that they belong together.
fn open<E>(pack: &mut dyn Source<E>, index: &mut dyn Source<E>) -> Result<Table, DeltaError<E>> {
    if pack.len() < HEAD_LEN {
        return Err(FormatError::Truncated.into());
    }
    let mut head = [0; HEAD_LEN as usize];
    pack.read(0, &mut head).map_err(DeltaError::Failed)?;
    if head[..4] != *b"PACK" {
        return Err(FormatError::Magic.into());
    }
    if head[4..8] != [0, 0, 0, 2] {
        return Err(FormatError::Version.into());
    }
    let table = Table::open(index)?;
    if head[8..] != table.count.to_be_bytes() {
        return Err(FormatError::IndexDisagrees.into());
    }
    if pack.len() < HEAD_LEN + table.id_len as u64 {
        return Err(FormatError::Truncated.into());
    }
    let (mut own, mut stated) = (vec![0; table.id_len], vec![0; table.id_len]);
    pack.read(pack.len() - table.id_len as u64, &mut own).map_err(DeltaError::Failed)?;
    index.read(table.pack_checksum_at(), &mut stated).map_err(DeltaError::Failed)?;
    if own != stated {
        return Err(FormatError::IndexDisagrees.into());
    }
    Ok(table)
}

struct PackMatcher<'a, 'b, E> {
    limits: Limits,
    pack: &'a mut dyn Source<E>,
    index: &'a mut dyn Source<E>,
    references: &'a mut [PackReference<'b>],
    table: Table,
    /// Tables of the references; `None` if a reference is unreadable or of another kind.
    tables: Vec<Option<Table>>,
    merger: CopyMerger<'a, E>,
    /// Byte offset in the pack of the end of the entries.
    end: u64,
}

impl<E> PackMatcher<'_, '_, E> {
    /// Divides the pack into windows of a bounded and about equal number of entries.
    fn windows(&mut self) -> Result<Vec<Range<u64>>, DeltaError<E>> {
        let bin_bytes = self.limits.bin_bytes.max(self.end.div_ceil(1 << 20)).min(WINDOW_BYTES);
        let mut bins = vec![0u32; (self.end / bin_bytes + 1) as usize];
        for byte in 0..=255 {
            let places = places(&self.table, self.index, byte).map_err(DeltaError::Failed)?;
            for at in places {
                if !(HEAD_LEN..self.end).contains(&at) {
                    return Err(FormatError::IndexDisorder.into());
                }
                let bin = &mut bins[(at / bin_bytes) as usize];
                *bin += 1;
                // More entries than bytes: several entries have the same offset.
                if u64::from(*bin) > bin_bytes {
                    return Err(FormatError::IndexDisorder.into());
                }
            }
        }
        let all = u64::from(self.table.count);
        let fewest_windows = all.div_ceil(self.limits.window_entries.max(1)).max(1);
        let most = all.div_ceil(fewest_windows);
        let mut windows = Vec::new();
        let (mut start, mut entries) = (0, 0);
        for (n, count) in bins.into_iter().enumerate() {
            let bin = n as u64 * bin_bytes;
            let is_full =
                entries + u64::from(count) > most || bin + bin_bytes - start > WINDOW_BYTES;
            if is_full && bin > start {
                windows.push(start..bin);
                (start, entries) = (bin, 0);
            }
            entries += u64::from(count);
        }
        windows.push(start..self.end);
        Ok(windows)
    }

    fn all(&mut self, windows: &[Range<u64>]) -> Result<(), E> {
        for window in windows {
            let mut window = self.window(window)?;
            self.compare(&mut window)?;
            self.emit(&window)?;
        }
        self.merger.literal_to(self.pack.len(), self.pack)
    }

    /// Finds all entries of a window and their counterparts.
    fn window(&mut self, window: &Range<u64>) -> Result<PackWindow, E> {
        let (mut units, mut end) = (Vec::new(), self.end);
        let (mut ids, mut ids_there) = (Vec::new(), Vec::new());
        let mut more_left = self.limits.window_entries / MORE_PART;
        let unit = |at: u64, there| Unit {
            at: (at - window.start) as u32,
            there,
            matched: EntryMatch::Nothing,
        };
        for byte in 0..=255 {
            self.table.read(self.index, Column::Ids, self.table.bucket(byte), &mut ids)?;
            let places = places(&self.table, self.index, byte)?;
            let mut counterparts = vec![0; places.len()];
            for (n, (reference, table)) in self.references.iter_mut().zip(&self.tables).enumerate()
            {
                let Some(table) = table else { continue };
                let mut index = Whole(reference.index);
                let rows = table.bucket(byte);
                let Ok(()) = table.read(&mut index, Column::Ids, rows, &mut ids_there) else {
                    continue;
                };
                let Ok(places_there) = self::places(table, &mut index, byte) else { continue };
                join(&ids, &ids_there, table.id_len, |here, there| {
                    let (at, count) = (places[here], &mut counterparts[here]);
                    if !window.contains(&at) || *count == COUNTERPARTS_MAX {
                        return;
                    }
                    let Some(there) = There::new(n, places_there[there]) else { return };
                    if *count > 0 {
                        let Some(less) = more_left.checked_sub(1) else { return };
                        more_left = less;
                    }
                    *count += 1;
                    units.push(unit(at, Some(there)));
                });
            }
            for (at, count) in places.iter().zip(counterparts) {
                if *at >= window.end {
                    end = end.min(*at);
                } else if count == 0 && window.contains(at) {
                    units.push(unit(*at, None));
                }
            }
        }
        Ok(PackWindow::new(window.start, end, units))
    }

    /// Compares the entries of a window with their counterparts in the order of the references, so
    /// that each part of a reference is opened once.
    fn compare(&mut self, window: &mut PackWindow) -> Result<(), E> {
        let mut buffer = vec![0; self.limits.batch_bytes as usize];
        let mut blocks = Blocks::new();
        let mut batch = Vec::new();
        for first in window.runs() {
            let mut next = Some(first as usize);
            while let Some(first) = next {
                let Range { start, mut end } = window.entry(first);
                batch.clear();
                batch.push((first, 0));
                next = window.next_in_run(first);
                while let Some(n) = next {
                    let entry = window.entry(n);
                    if entry.end - start > buffer.len() as u64 {
                        break;
                    }
                    batch.push((n, (entry.start - start) as usize));
                    end = entry.end;
                    next = window.next_in_run(n);
                }
                let len = (end - start).min(buffer.len() as u64) as usize;
                blocks.read(self.pack, start, &mut buffer[..len])?;
                self.compare_batch(window, &batch, &buffer[..len]);
                if end - start > len as u64 {
                    self.compare_rest(window, first, start + len as u64..end, &mut buffer)?;
                }
            }
        }
        Ok(())
    }

    /// Compares `bytes` of the pack with a run in a reference. `batch` lists units, each with the
    /// index in `bytes` where its entry begins. `bytes` ends with the last entry, or within a long
    /// one.
    fn compare_batch(&mut self, window: &mut PackWindow, batch: &[(usize, usize)], bytes: &[u8]) {
        // Consecutive whole entries are compared at once.
        let mut same_up_to = 0;
        for (k, (n, from)) in batch.iter().enumerate() {
            let to = batch.get(k + 1).map_or(bytes.len(), |(_, from)| *from);
            let unit = &mut window.units[*n];
            let Some(there) = unit.there else { continue };
            let pack = &mut *self.references[there.reference()].pack;
            if same_up_to <= *from {
                same_up_to = from + pack.common_prefix(there.at(), &bytes[*from..]);
            }
            let same = same_up_to.min(to) - from;
            unit.matched =
                EntryMatch::of(pack, there.at(), &bytes[*from..to], same, self.table.id_len);
            same_up_to = same_up_to.max(to);
        }
    }

    /// Compares the rest of a long entry and discards the match if the rest differs.
    fn compare_rest(
        &mut self,
        window: &mut PackWindow,
        n: usize,
        rest: Range<u64>,
        buffer: &mut [u8],
    ) -> Result<(), E> {
        let entry = window.entry(n);
        let unit = &mut window.units[n];
        let (head, head_there) = unit.matched.heads();
        let mut at = rest.start;
        while at < rest.end && unit.matched != EntryMatch::Nothing {
            let piece = &mut buffer[..self.limits.batch_bytes.min(rest.end - at) as usize];
            self.pack.read(at, piece)?;
            let there =
                unit.there.and_then(|there| there.plus(at - entry.start + head_there - head));
            let is_same = there.is_some_and(|there| {
                let pack = &mut *self.references[there.reference()].pack;
                pack.common_prefix(there.at(), piece) == piece.len()
            });
            if !is_same {
                unit.matched = EntryMatch::Nothing;
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Emits the entries of a window.
    fn emit(&mut self, window: &PackWindow) -> Result<(), E> {
        for (entry, units) in window.entries() {
            // An index that changed between reads may list an entry that was already emitted.
            if entry.start < self.merger.emitted {
                continue;
            }
            let merger = &self.merger;
            let goes_on = |there: There| {
                entry.start == merger.emitted && merger.goes_on(there.reference(), there.at())
            };
            let Some((there, matched)) = best(units, goes_on) else { continue };
            let is_next = goes_on(there);
            let (head, head_there) = matched.heads();
            // Equal header bytes are worth a copy only if they extend the previous one.
            let lead = match matched {
                EntryMatch::Nothing => continue,
                EntryMatch::Body { lead, .. } if is_next => u64::from(lead),
                EntryMatch::Body { .. } | EntryMatch::Whole => 0,
            };
            let body = entry.start + head;
            let is_worth_it =
                entry.end - body >= COPY_BYTES_MIN || (matched == EntryMatch::Whole && is_next);
            if !is_worth_it {
                continue;
            }
            let Some(body_there) = there.plus(head_there) else { continue };
            self.merger.literal_to(entry.start, self.pack)?;
            self.merger.copy(there.reference(), there.at(), lead)?;
            self.merger.literal_to(body, self.pack)?;
            self.merger.copy(there.reference(), body_there.at(), entry.end - body)?;
        }
        Ok(())
    }
}

/// Returns the counterpart that shares most. Among equals, prefers one that continues the last
/// copy.
fn best(units: &[Unit], goes_on: impl Fn(There) -> bool) -> Option<(There, EntryMatch)> {
    let there = units.iter().filter_map(|unit| Some((unit.there?, unit.matched)));
    there.max_by_key(|(there, matched)| {
        let is_body = matches!(matched, EntryMatch::Body { .. });
        (*matched == EntryMatch::Whole, is_body, goes_on(*there))
    })
}

/// Returns the offsets in the pack of the entries whose ids begin with `byte`, in the order of ids.
fn places<E>(table: &Table, index: &mut dyn Source<E>, byte: u8) -> Result<Vec<u64>, E> {
    let mut near = Vec::new();
    table.read(index, Column::Places, table.bucket(byte), &mut near)?;
    let (far_at, far_count) = table.far_places();
    let (mut far_rows, mut far) = (0..0, [0; 8 * FAR_AT_ONCE as usize]);
    // Rows of the 8-byte table must be consecutive. Any other order would need random reads.
    let mut next_far = None;
    let mut places = Vec::with_capacity(near.len() / 4);
    for cell in near.as_chunks().0 {
        let place = u32::from_be_bytes(*cell);
        let row = u64::from(place & 0x7FFF_FFFF);
        places.push(match place >> 31 {
            0 => row,
            _ if row < far_count && next_far.is_none_or(|next| next == row) => {
                next_far = Some(row + 1);
                if !far_rows.contains(&row) {
                    far_rows = row..far_count.min(row + FAR_AT_ONCE);
                    let bytes = &mut far[..8 * (far_rows.end - row) as usize];
                    index.read(far_at + 8 * row, bytes)?;
                }
                u64::from_be_bytes(far.as_chunks().0[(row - far_rows.start) as usize])
            }
            // Invalid offset, rejected where offsets are checked.
            _ => u64::MAX,
        });
    }
    Ok(places)
}

#[cfg(test)]
pub(crate) mod tests;
