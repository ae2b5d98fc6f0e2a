//! The git pack (`.pack`, version 2), matched entry by entry.
//!
//! Housekeeping puts the entries of old packs together in another order, most of
//! them as they are. Both indexes say which entry is of which object; what the
//! entries have in common is found by comparing their bytes. An entry is a short head
//! (type, length, and for a delta where its base is) and a compressed body. Bodies
//! stay the same more often than heads, which say how far away the base is.
//!
//! Layout: gitformat-pack, "pack-*.pack files have the following format".

use super::git_idx::{Column, Table, Whole, join};
use super::{Base, Doubt, Refusal, Sink, Source};
use std::num::NonZeroU64;
use std::ops::Range;

/// Bytes before the first entry.
const HEAD_LEN: u64 = 12;
/// Most counterparts that an entry is compared with. More than one or two have only
/// objects that are in many packs, and indexes made to keep us busy.
const COUNTERPARTS_MAX: u8 = 8;
/// Fewest bytes that are worth an extent of their own.
const COPY_BYTES_MIN: usize = 16;
/// The longest head of an entry: ten bytes of length, and an id.
const ENTRY_HEAD_MAX: usize = 10 + 32;

/// How much is dealt with at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries of the pack; so many, and up to [`COUNTERPARTS_MAX`] times as many in bases, are
    /// in memory.
    pub window_entries: u64,
    /// Bytes of the pack in memory.
    pub batch_bytes: u64,
    /// The pack is divided into parts of at least so many bytes to count entries in.
    pub bin_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { window_entries: 1 << 20, batch_bytes: 4 << 20, bin_bytes: 64 << 10 }
    }
}

/// A pack of the snapshot before, and its index.
pub struct PackBase<'a> {
    /// The pack.
    pub pack: &'a mut dyn Base,
    /// Its index.
    pub index: &'a mut dyn Base,
}

/// Compares a pack with others. `index` is its own.
///
/// An error of `Refusal::Doubt` comes before `sink` was told anything.
pub fn weave<E>(
    pack: &mut dyn Source<E>,
    index: &mut dyn Source<E>,
    bases: &mut [PackBase<'_>],
    sink: &mut dyn Sink<E>,
) -> Result<(), Refusal<E>> {
    weave_within(Limits::default(), pack, index, bases, sink)
}

/// The same within other limits: what is told may be another, the pack never.
pub fn weave_within<E>(
    limits: Limits,
    pack: &mut dyn Source<E>,
    index: &mut dyn Source<E>,
    bases: &mut [PackBase<'_>],
    sink: &mut dyn Sink<E>,
) -> Result<(), Refusal<E>> {
    let table = open(pack, index)?;
    let tables = bases.iter_mut().map(|base| Table::of_base(base.index, table.id_len)).collect();
    let end = pack.len() - table.id_len as u64;
    let (told, last) = (0, None);
    let mut weaving = Weaving { limits, pack, index, bases, table, tables, sink, end, told, last };
    let windows = weaving.windows()?;
    weaving.all(&windows).map_err(Refusal::Failed)
}

/// Checks that pack and index are what they seem and belong together.
fn open<E>(pack: &mut dyn Source<E>, index: &mut dyn Source<E>) -> Result<Table, Refusal<E>> {
    if pack.len() < HEAD_LEN {
        return Err(Doubt::Truncated.into());
    }
    let mut head = [0; HEAD_LEN as usize];
    pack.read(0, &mut head).map_err(Refusal::Failed)?;
    if head[..4] != *b"PACK" {
        return Err(Doubt::Magic.into());
    }
    if head[4..8] != [0, 0, 0, 2] {
        return Err(Doubt::Version.into());
    }
    let table = Table::open(index)?;
    if head[8..] != table.count.to_be_bytes() {
        return Err(Doubt::IndexDisagrees.into());
    }
    if pack.len() < HEAD_LEN + table.id_len as u64 {
        return Err(Doubt::Truncated.into());
    }
    let (mut own, mut told) = (vec![0; table.id_len], vec![0; table.id_len]);
    pack.read(pack.len() - table.id_len as u64, &mut own).map_err(Refusal::Failed)?;
    index.read(table.pack_checksum_at(), &mut told).map_err(Refusal::Failed)?;
    if own != told {
        return Err(Doubt::IndexDisagrees.into());
    }
    Ok(table)
}

/// An entry of the pack, or the same object's entry in a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Unit {
    /// Where the entry begins in the pack.
    at: u64,
    /// Where the base has it; nothing for the entry itself.
    there: Option<There>,
}

/// A place in a base: the number of the base in the upper 16 bits, the place below. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct There(NonZeroU64);

impl There {
    const PLACE_BITS: u32 = 48;

    fn new(base: usize, at: u64) -> Option<There> {
        let is_possible = base <= usize::from(u16::MAX) && at >> Self::PLACE_BITS == 0;
        NonZeroU64::new((base as u64) << Self::PLACE_BITS | at).filter(|_| is_possible).map(There)
    }

    fn base(self) -> usize {
        (self.0.get() >> Self::PLACE_BITS) as usize
    }

    fn at(self) -> u64 {
        self.0.get() & ((1 << Self::PLACE_BITS) - 1)
    }

    fn plus(self, len: u64) -> Option<There> {
        There::new(self.base(), self.at() + len)
    }
}

/// What an entry of a base has in common with that of the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Nothing,
    /// All but a part of the head.
    Body {
        /// Bytes of the head that are the same.
        lead: u8,
        /// Bytes of the head here.
        head: u8,
        /// Bytes of the head there.
        head_there: u8,
    },
    Whole,
}

struct Weaving<'a, 'b, E> {
    limits: Limits,
    pack: &'a mut dyn Source<E>,
    index: &'a mut dyn Source<E>,
    bases: &'a mut [PackBase<'b>],
    table: Table,
    /// Of the bases; nothing where one is unreadable or of another kind.
    tables: Vec<Option<Table>>,
    sink: &'a mut dyn Sink<E>,
    /// Where the entries end.
    end: u64,
    /// Up to where the sink was told.
    told: u64,
    /// Where the last copy ended.
    last: Option<There>,
}

impl<E> Weaving<'_, '_, E> {
    /// Cuts the pack where no more than a bounded number of entries lies between.
    fn windows(&mut self) -> Result<Vec<Range<u64>>, Refusal<E>> {
        let bin_bytes = self.limits.bin_bytes.max(self.end.div_ceil(1 << 20));
        let mut bins = vec![0u32; (self.end / bin_bytes + 1) as usize];
        for byte in 0..=255 {
            let places = places(&self.table, self.index, byte).map_err(Refusal::Failed)?;
            for at in places {
                if !(HEAD_LEN..self.end).contains(&at) {
                    return Err(Doubt::IndexDisorder.into());
                }
                let bin = &mut bins[(at / bin_bytes) as usize];
                *bin += 1;
                // More entries than bytes: some are at the same place.
                if u64::from(*bin) > bin_bytes {
                    return Err(Doubt::IndexDisorder.into());
                }
            }
        }
        let mut windows = Vec::new();
        let (mut start, mut entries) = (0, 0);
        for (n, count) in bins.into_iter().enumerate() {
            let bin = n as u64 * bin_bytes;
            if entries + u64::from(count) > self.limits.window_entries && bin > start {
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
            let (units, next) = self.units(window)?;
            self.window(units, next)?;
        }
        self.literal_to(self.pack.len())
    }

    /// All entries of a window and their counterparts in order, and where the first
    /// entry after the window begins.
    fn units(&mut self, window: &Range<u64>) -> Result<(Vec<Unit>, u64), E> {
        let (mut units, mut next) = (Vec::new(), self.end);
        let (mut ids, mut ids_there) = (Vec::new(), Vec::new());
        for byte in 0..=255 {
            self.table.read(self.index, Column::Ids, self.table.bucket(byte), &mut ids)?;
            let places = places(&self.table, self.index, byte)?;
            let mut counterparts = vec![0; places.len()];
            for at in &places {
                if window.contains(at) {
                    units.push(Unit { at: *at, there: None });
                } else if *at >= window.end {
                    next = next.min(*at);
                }
            }
            for (n, (base, table)) in self.bases.iter_mut().zip(&self.tables).enumerate() {
                let Some(table) = table else { continue };
                let mut index = Whole(base.index);
                let rows = table.bucket(byte);
                let Ok(()) = table.read(&mut index, Column::Ids, rows, &mut ids_there) else {
                    continue;
                };
                let Ok(places_there) = self::places(table, &mut index, byte) else { continue };
                join(&ids, &ids_there, table.id_len, |here, there| {
                    let (at, count) = (places[here], &mut counterparts[here]);
                    if window.contains(&at) && *count < COUNTERPARTS_MAX {
                        *count += 1;
                        units.push(Unit { at, there: There::new(n, places_there[there]) });
                    }
                });
            }
        }
        units.sort_unstable();
        thin_out(&mut units);
        Ok((units, next))
    }

    /// Deals with a window, batch by batch. `next` is where its last entry ends.
    fn window(&mut self, mut units: Vec<Unit>, next: u64) -> Result<(), E> {
        let mut bytes = Vec::new();
        // An index that changed since it was read last may lead back to what was told.
        let known = units.partition_point(|unit| unit.at < self.told);
        let mut rest = &mut units[known..];
        while let Some(first) = rest.first() {
            let start = first.at;
            let batch_bytes = self.limits.batch_bytes;
            let count = rest.partition_point(|unit| unit.at - start < batch_bytes);
            // The last entry that begins in the batch may end beyond it.
            let end = rest.get(count).map_or(next, |unit| unit.at);
            let last = rest[count - 1].at;
            let is_long = end - start > 2 * batch_bytes;
            let (count, end) = match is_long && last > start {
                true => (rest.partition_point(|unit| unit.at < last), last),
                false => (count, end),
            };
            let (batch, others) = rest.split_at_mut(count);
            rest = others;
            self.literal_to(start)?;
            if is_long && last == start {
                self.long_entry(batch, end)?;
                continue;
            }
            bytes.resize((end - start) as usize, 0);
            self.pack.read(start, &mut bytes)?;
            let fits = self.compare(batch, start, &bytes);
            self.tell(batch, &fits, start, &bytes)?;
        }
        Ok(())
    }

    /// What the entries of a batch have in common with their counterparts, compared in
    /// the order of these: each part of a base is read once.
    fn compare(&mut self, batch: &[Unit], start: u64, bytes: &[u8]) -> Vec<Fit> {
        let mut fits = vec![Fit::Nothing; batch.len()];
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_unstable_by_key(|n| batch[*n].there);
        for n in order {
            let Unit { at, there: Some(there) } = batch[n] else { continue };
            let next = n + batch[n..].partition_point(|unit| unit.at == at);
            let end = batch.get(next).map_or(bytes.len(), |unit| (unit.at - start) as usize);
            let entry = &bytes[(at - start) as usize..end];
            let pack = &mut *self.bases[there.base()].pack;
            fits[n] = fit(pack, there.at(), entry, self.table.id_len);
        }
        fits
    }

    /// Tells the sink the entries of a batch.
    fn tell(&mut self, batch: &[Unit], fits: &[Fit], start: u64, bytes: &[u8]) -> Result<(), E> {
        let (mut told, mut n) = (0, 0);
        while n < batch.len() {
            let at = batch[n].at;
            let units = n..n + batch[n..].partition_point(|unit| unit.at == at);
            n = units.end;
            let from = (at - start) as usize;
            let to = batch.get(n).map_or(bytes.len(), |unit| (unit.at - start) as usize);
            let Some((there, fit)) = self.best(&batch[units.clone()], &fits[units]) else {
                continue;
            };
            let is_next = self.last == Some(there) && told == from;
            let (lead, head, head_there) = match fit {
                Fit::Nothing => continue,
                Fit::Whole => (0, 0, 0),
                // Bytes of the head are worth it only where they lengthen an extent.
                Fit::Body { lead, head, head_there } if is_next => (lead, head, head_there),
                Fit::Body { head, head_there, .. } => (0, head, head_there),
            };
            let body = from + usize::from(head);
            let is_worth_it = to - body >= COPY_BYTES_MIN || (fit == Fit::Whole && is_next);
            if !is_worth_it {
                continue;
            }
            let Some(body_there) = there.plus(u64::from(head_there)) else { continue };
            self.literal(&bytes[told..from])?;
            self.copy(there, u64::from(lead))?;
            self.literal(&bytes[from + usize::from(lead)..body])?;
            self.copy(body_there, (to - body) as u64)?;
            told = to;
        }
        self.literal(&bytes[told..])?;
        self.told = start + bytes.len() as u64;
        Ok(())
    }

    /// The counterpart that has most in common; among equals the one that goes on where
    /// the last copy ended.
    fn best(&self, units: &[Unit], fits: &[Fit]) -> Option<(There, Fit)> {
        let there = units.iter().zip(fits).filter_map(|(unit, fit)| Some((unit.there?, *fit)));
        there.max_by_key(|(there, fit)| {
            let is_body = matches!(fit, Fit::Body { .. });
            (*fit == Fit::Whole, is_body, self.last == Some(*there))
        })
    }

    fn copy(&mut self, there: There, len: u64) -> Result<(), E> {
        if len == 0 {
            return Ok(());
        }
        self.last = there.plus(len);
        self.sink.copy(there.base(), there.at(), len)
    }

    fn literal(&mut self, bytes: &[u8]) -> Result<(), E> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.last = None;
        self.sink.literal(bytes)
    }

    /// An entry longer than a batch, piece by piece, beside the first counterpart
    /// whose body begins alike.
    fn long_entry(&mut self, units: &[Unit], end: u64) -> Result<(), E> {
        let start = units[0].at;
        let mut piece = vec![0; self.limits.batch_bytes as usize];
        self.pack.read(start, &mut piece)?;
        let id_len = self.table.id_len;
        let Some(head) = head_len(&piece, id_len) else { return self.literal_to(end) };
        let begins_alike = units.iter().find_map(|unit| {
            let there = unit.there?;
            let pack = &mut *self.bases[there.base()].pack;
            let body = there.plus(head_there(pack, there.at(), id_len)? as u64)?;
            let same = pack.common_prefix(body.at(), &piece[head..]);
            (same == piece.len() - head).then_some(body)
        });
        let Some(body_there) = begins_alike else { return self.literal_to(end) };
        self.literal(&piece[..head])?;
        let body = start + head as u64;
        let mut at = body;
        while at < end {
            let step = self.limits.batch_bytes.min(end - at) as usize;
            self.pack.read(at, &mut piece[..step])?;
            let there = body_there.plus(at - body);
            let same = there.map_or(0, |there| {
                self.bases[there.base()].pack.common_prefix(there.at(), &piece[..step])
            });
            if let Some(there) = there {
                self.copy(there, same as u64)?;
            }
            self.literal(&piece[same..step])?;
            at += step as u64;
        }
        self.told = end;
        Ok(())
    }

    /// Tells everything up to `end` as it is.
    fn literal_to(&mut self, end: u64) -> Result<(), E> {
        let mut buffer = Vec::new();
        while self.told < end {
            let step = self.limits.batch_bytes.min(end - self.told);
            buffer.resize(step as usize, 0);
            self.pack.read(self.told, &mut buffer)?;
            self.literal(&buffer)?;
            self.told += buffer.len() as u64;
        }
        Ok(())
    }
}

/// Leaves no more counterparts of an entry than are compared. An index that names a place
/// for many ids could bring as many.
fn thin_out(units: &mut Vec<Unit>) {
    units.dedup();
    let (mut last, mut count) = (None, 0);
    units.retain(|unit| {
        count = if last == Some(unit.at) { count + 1 } else { 0 };
        last = Some(unit.at);
        count <= u64::from(COUNTERPARTS_MAX)
    });
}

/// Where in the pack the entries are whose ids begin with `byte`, in the order of ids.
fn places<E>(table: &Table, index: &mut dyn Source<E>, byte: u8) -> Result<Vec<u64>, E> {
    let mut near = Vec::new();
    table.read(index, Column::Places, table.bucket(byte), &mut near)?;
    let (far_at, far_count) = table.far_places();
    let mut far = [0; 8];
    let mut places = Vec::with_capacity(near.len() / 4);
    for cell in near.as_chunks().0 {
        let place = u32::from_be_bytes(*cell);
        let row = u64::from(place & 0x7FFF_FFFF);
        places.push(match place >> 31 {
            0 => row,
            _ if row < far_count => {
                index.read(far_at + 8 * row, &mut far)?;
                u64::from_be_bytes(far)
            }
            // No place at all: refused where places are checked.
            _ => u64::MAX,
        });
    }
    Ok(places)
}

/// What the entry at `there` has in common with `entry`.
fn fit(pack: &mut dyn Base, there: u64, entry: &[u8], id_len: usize) -> Fit {
    let same = pack.common_prefix(there, entry);
    if same == entry.len() {
        return Fit::Whole;
    }
    let Some(head) = head_len(entry, id_len) else { return Fit::Nothing };
    // An entry with another body differs in its first bytes; no need to look further.
    if same >= head {
        return Fit::Nothing;
    }
    let Some(head_there) = head_there(pack, there, id_len) else { return Fit::Nothing };
    let body = &entry[head..];
    if pack.common_prefix(there + head_there as u64, body) < body.len() {
        return Fit::Nothing;
    }
    Fit::Body { lead: same as u8, head: head as u8, head_there: head_there as u8 }
}

fn head_there(pack: &mut dyn Base, there: u64, id_len: usize) -> Option<usize> {
    let mut bytes = [0; ENTRY_HEAD_MAX];
    let len = pack.read(there, &mut bytes);
    head_len(&bytes[..len], id_len)
}

/// Bytes of an entry before its body; nothing if it is none.
fn head_len(entry: &[u8], id_len: usize) -> Option<usize> {
    const OFS_DELTA: u8 = 6;
    const REF_DELTA: u8 = 7;
    let number = |from: usize| {
        let bytes = entry.get(from..)?.iter().take(10);
        Some(from + bytes.take_while(|byte| **byte & 0x80 != 0).count() + 1)
    };
    let size_end = number(0)?;
    let end = match (entry.first()? >> 4) & 7 {
        1..=4 => size_end,
        OFS_DELTA => number(size_end)?,
        REF_DELTA => size_end + id_len,
        _ => return None,
    };
    (end <= entry.len()).then_some(end)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::tests::{Damaged, Failing, Gone, Memory, Rebuilt};
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// An object of a made-up pack. Bodies are not compressed; nobody opens them.
    #[derive(Debug, Clone)]
    pub struct Object {
        pub id: u64,
        /// How far before it its delta base is; 0 for a whole object, 1 for a base by id.
        pub distance: u32,
        pub body: Vec<u8>,
    }

    fn number(mut n: u32, first: u8, first_bits: u32) -> Vec<u8> {
        let mut bytes = vec![first | (n & ((1 << first_bits) - 1)) as u8];
        n >>= first_bits;
        while n > 0 {
            *bytes.last_mut().expect("one") |= 0x80;
            bytes.push((n & 0x7F) as u8);
            n >>= 7;
        }
        bytes
    }

    /// An id of `id_len` bytes that is spread over all first bytes.
    fn id(n: u64, id_len: usize) -> Vec<u8> {
        n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes().repeat(4)[..id_len].to_vec()
    }

    /// A pack of these objects and its index. With `far`, some places stand in the table of
    /// 8-byte places.
    pub fn pack(objects: &[Object], id_len: usize, far: bool) -> (Vec<u8>, Vec<u8>) {
        let mut pack = [b"PACK\0\0\0\x02", &(objects.len() as u32).to_be_bytes()[..]].concat();
        let mut rows: Vec<(Vec<u8>, u32, u64)> = Vec::new();
        for object in objects {
            let at = pack.len() as u64;
            let kind = match object.distance {
                0 => 3,
                1 => 7,
                _ => 6,
            };
            pack.extend(number(object.body.len() as u32, kind << 4, 4));
            match object.distance {
                0 => {}
                1 => pack.extend(id(object.id + 1, id_len)),
                distance => pack.extend(number(distance, 0, 7)),
            }
            pack.extend(&object.body);
            let sum =
                pack[at as usize..].iter().fold(7u32, |sum, b| sum.rotate_left(5) ^ u32::from(*b));
            rows.push((id(object.id, id_len), sum, at));
        }
        rows.sort();
        let checksum = vec![pack.len() as u8; id_len];
        pack.extend(&checksum);
        let mut index = vec![0xFF, b't', b'O', b'c', 0, 0, 0, 2];
        for byte in 0..=255 {
            let upto = rows.iter().filter(|(id, ..)| id[0] <= byte).count() as u32;
            index.extend(upto.to_be_bytes());
        }
        rows.iter().for_each(|(id, ..)| index.extend(id));
        rows.iter().for_each(|(_, sum, _)| index.extend(sum.to_be_bytes()));
        let mut far_places = Vec::new();
        for (n, (.., at)) in rows.iter().enumerate() {
            if far && n % 3 == 0 {
                let row = 0x8000_0000 | (far_places.len() / 8) as u32;
                index.extend(row.to_be_bytes());
                far_places.extend(at.to_be_bytes());
            } else {
                index.extend((*at as u32).to_be_bytes());
            }
        }
        index.extend(far_places);
        index.extend(&checksum);
        index.extend(vec![9; id_len]);
        (pack, index)
    }

    /// A pack and its index.
    type Pair = (Vec<u8>, Vec<u8>);

    /// Both files put together again from what is said of them.
    fn rebuild(new: &Pair, bases: &[Pair]) -> Result<(Rebuilt, Rebuilt), Doubt> {
        rebuild_within(Limits::default(), new, bases, &[])
    }

    /// The same within these limits, when there are places in which bases cannot be read.
    fn rebuild_within(
        limits: Limits,
        (pack, index): &Pair,
        bases: &[Pair],
        holes: &[(usize, usize)],
    ) -> Result<(Rebuilt, Rebuilt), Doubt> {
        let memory = |bytes: &[u8]| Memory(bytes.to_vec());
        let damaged = |bytes: &[u8]| {
            let holes = holes.iter().map(|(at, len)| {
                let at = at % (bytes.len() + 1);
                at..bytes.len().min(at + len)
            });
            Damaged { base: memory(bytes), holes: holes.collect(), reads: 0 }
        };
        let mut packs: Vec<Damaged> = bases.iter().map(|(pack, _)| damaged(pack)).collect();
        let mut indexes: Vec<Damaged> = bases.iter().map(|(_, index)| damaged(index)).collect();
        let whole = |bases: &[Damaged]| -> Vec<Memory> {
            bases.iter().map(|base| base.base.clone()).collect()
        };
        let (mut of_pack, mut of_index) =
            (Rebuilt::from(&whole(&packs)), Rebuilt::from(&whole(&indexes)));
        let mut pairs: Vec<PackBase<'_>> = packs
            .iter_mut()
            .zip(&mut indexes)
            .map(|(pack, index)| PackBase { pack, index })
            .collect();
        let (mut new, mut new_index) = (memory(pack), memory(index));
        let done = weave_within(limits, &mut new, &mut new_index, &mut pairs, &mut of_pack);
        let mut of_bases: Vec<&mut dyn Base> =
            indexes.iter_mut().map(|index| index as &mut dyn Base).collect();
        let indexed = super::super::git_idx::weave(&mut new_index, &mut of_bases, &mut of_index);
        assert!(done.is_ok() || of_pack.bytes.is_empty(), "told before it was refused");
        assert!(indexed.is_ok() || of_index.bytes.is_empty(), "told before it was refused");
        match (done, indexed) {
            (Ok(()), Ok(())) => Ok((of_pack, of_index)),
            (Err(Refusal::Doubt(doubt)), _) | (_, Err(Refusal::Doubt(doubt))) => Err(doubt),
            (Err(Refusal::Failed(error)), _) | (_, Err(Refusal::Failed(error))) => match error {},
        }
    }

    fn body(seed: u64, len: usize) -> Vec<u8> {
        (0..len as u64).map(|n| (seed.wrapping_mul(n * n + 77) >> 13) as u8).collect()
    }

    fn object(id: u64) -> Object {
        Object { id, distance: 0, body: body(id, 100 + id as usize % 90) }
    }

    #[test]
    fn objects_put_in_another_order_are_found() {
        for id_len in [20, 32] {
            let old: Vec<Object> = (0..500).map(object).collect();
            let mut new: Vec<Object> = old.iter().rev().cloned().collect();
            new.insert(100, object(9999));
            let base = pack(&old, id_len, false);
            let new = pack(&new, id_len, true);
            let (of_pack, of_index) = rebuild(&new, std::slice::from_ref(&base)).expect("woven");
            assert_eq!((&of_pack.bytes, &of_index.bytes), (&new.0, &new.1));
            assert!(of_pack.literal_bytes < 12 + id_len + 200, "{}", of_pack.literal_bytes);
            let places = 500 * 12;
            assert!(of_index.literal_bytes < 1032 + places + 200, "{}", of_index.literal_bytes);
        }
    }

    #[test]
    fn a_delta_whose_base_moved_costs_its_head_only() {
        let delta = |id, distance| Object { id, distance, body: body(id, 300) };
        let old: Vec<Object> = (0..100).map(|id| delta(id, 1000 + id as u32)).collect();
        let new: Vec<Object> = (0..100).map(|id| delta(id, 90_000 + id as u32)).collect();
        let (base, new) = (pack(&old, 20, false), pack(&new, 20, false));
        let (of_pack, _) = rebuild(&new, &[base]).expect("woven");
        assert_eq!(of_pack.bytes, new.0);
        assert!(of_pack.literal_bytes <= 100 * 5 + 32, "{}", of_pack.literal_bytes);
    }

    #[test]
    fn an_entry_longer_than_a_batch_is_found() {
        let long = Object { id: 5, distance: 0, body: body(5, 9 << 20) };
        let moved = Object { distance: 500, ..long.clone() };
        for entry in [long.clone(), moved] {
            let base = pack(&[object(1), long.clone(), object(2)], 20, false);
            let new = pack(&[object(2), object(7), entry, object(1)], 20, false);
            let (of_pack, _) = rebuild(&new, &[base]).expect("woven");
            assert!(of_pack.bytes == new.0);
            assert!(of_pack.literal_bytes < 500, "{}", of_pack.literal_bytes);
        }
    }

    #[test]
    fn what_is_not_what_it_seems_is_refused() {
        let (pack, index) = pack(&[object(1), object(2)], 20, false);
        let try_with = |pack: &[u8], index: &[u8]| {
            rebuild(&(pack.to_vec(), index.to_vec()), &[]).expect_err("refused")
        };
        let changed = |bytes: &[u8], at: usize, byte: u8| {
            let mut bytes = bytes.to_vec();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(try_with(&changed(&pack, 0, b'p'), &index), Doubt::Magic);
        assert_eq!(try_with(&changed(&pack, 7, 3), &index), Doubt::Version);
        assert_eq!(try_with(&changed(&pack, 11, 3), &index), Doubt::IndexDisagrees);
        assert_eq!(try_with(&pack[..pack.len() - 1], &index), Doubt::IndexDisagrees);
        assert_eq!(try_with(&[&pack[..], b"more"].concat(), &index), Doubt::IndexDisagrees);
        assert_eq!(try_with(&pack[..9], &index), Doubt::Truncated);
        assert_eq!(try_with(&pack, &changed(&index, 1, 0)), Doubt::Magic);
        assert_eq!(try_with(&pack, &changed(&index, 7, 3)), Doubt::Version);
        assert_eq!(try_with(&pack, &index[..index.len() - 1]), Doubt::Truncated);
        assert_eq!(try_with(&pack, &[&index[..], b"x"].concat()), Doubt::Trailing);
        assert_eq!(try_with(&pack, &changed(&index, 8, 9)), Doubt::IndexDisorder);
        let place = index.len() - 44;
        assert_eq!(try_with(&pack, &changed(&index, place, 1)), Doubt::IndexDisorder);
        assert_eq!(try_with(&pack, &changed(&index, place, 0x80)), Doubt::IndexDisorder);
    }

    /// An index that names one place, or places nearby, for many ids.
    fn crowded(pack: &[u8], ids: u64, places: u64) -> Pair {
        let mut pack = pack.to_vec();
        pack[8..12].copy_from_slice(&(ids as u32).to_be_bytes());
        let objects: Vec<Object> =
            (0..ids).map(|id| Object { id, distance: 0, body: Vec::new() }).collect();
        let (_, mut index) = self::pack(&objects, 20, false);
        let at = index.len() - 40 - 4 * ids as usize;
        for row in 0..ids as usize {
            let place = 12 + (row as u64 % places) as u32;
            index[at + 4 * row..][..4].copy_from_slice(&place.to_be_bytes());
        }
        let checksum = index.len() - 40;
        index[checksum..checksum + 20].copy_from_slice(&pack[pack.len() - 20..]);
        (pack, index)
    }

    #[test]
    fn many_ids_at_one_place_are_no_more_work() {
        let bytes = [b"PACK\0\0\0\x02\0\0\0\0", &[0x30; 200_000][..], &[7; 20]].concat();
        let ids = 20_000;
        let (new, base) = (crowded(&bytes, ids, 1), crowded(&bytes, ids, 1000));
        let mut bases = [(&base.0, &base.1)].map(|(pack, index)| {
            let whole =
                |bytes: &[u8]| Damaged { base: Memory(bytes.to_vec()), holes: vec![], reads: 0 };
            (whole(pack), whole(index))
        });
        let [(pack, index)] = &mut bases;
        let mut rebuilt = Rebuilt::from(std::slice::from_ref(&pack.base));
        let done = weave(
            &mut Memory(new.0.clone()),
            &mut Memory(new.1.clone()),
            &mut [PackBase { pack: &mut *pack, index: &mut *index }],
            &mut rebuilt,
        );
        assert!(done.is_ok() && rebuilt.bytes == new.0);
        assert!(pack.reads <= 3 * usize::from(COUNTERPARTS_MAX), "{}", pack.reads);
        // And more entries than bytes are none.
        let limits = Limits { bin_bytes: 1000, ..Limits::default() };
        assert_eq!(rebuild_within(limits, &new, &[], &[]).err(), Some(Doubt::IndexDisorder));
    }

    /// An index that is another one when it was read so many times.
    struct Replaced {
        before: Vec<u8>,
        after: Vec<u8>,
        reads_left: usize,
    }

    impl Source<std::convert::Infallible> for Replaced {
        fn len(&self) -> u64 {
            self.before.len() as u64
        }

        fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), std::convert::Infallible> {
            let now = if self.reads_left > 0 { &self.before } else { &self.after };
            self.reads_left = self.reads_left.saturating_sub(1);
            buffer.copy_from_slice(&now[offset as usize..][..buffer.len()]);
            Ok(())
        }
    }

    #[test]
    fn an_index_replaced_while_it_is_read_spoils_nothing() {
        let limits = Limits { window_entries: 10, batch_bytes: 600, bin_bytes: 256 };
        let objects: Vec<Object> = (0..60).map(object).collect();
        let reversed: Vec<Object> = objects.iter().rev().cloned().collect();
        let (before, after) = (pack(&objects, 20, false), pack(&reversed, 20, false));
        for reads_left in 0..4000 {
            let mut index =
                Replaced { before: before.1.clone(), after: after.1.clone(), reads_left };
            let (mut of_pack, mut of_index) = (Memory(after.0.clone()), Memory(after.1.clone()));
            let mut rebuilt = Rebuilt::from(std::slice::from_ref(&of_pack));
            let mut bases = [PackBase { pack: &mut of_pack, index: &mut of_index }];
            let mut new = Memory(before.0.clone());
            let done = weave_within(limits, &mut new, &mut index, &mut bases, &mut rebuilt);
            assert!(done.is_err() || rebuilt.bytes == before.0, "{reads_left}");
            if index.reads_left > 0 {
                return;
            }
        }
        panic!("it is read more often than that");
    }

    #[test]
    fn a_source_that_cannot_be_read_is_an_error() {
        let limits = Limits { window_entries: 10, batch_bytes: 600, bin_bytes: 256 };
        let objects: Vec<Object> = (0..40).map(object).collect();
        let (bytes, index) = pack(&objects, 20, true);
        let source = |bytes: &[u8], reads_left| Failing { bytes: bytes.to_vec(), reads_left };
        let weave_pack = |of_pack, of_index| {
            let mut rebuilt = Rebuilt::default();
            let (mut pack, mut index) = (source(&bytes, of_pack), source(&index, of_index));
            let done = weave_within(limits, &mut pack, &mut index, &mut [], &mut rebuilt);
            match done {
                Ok(()) => assert!(rebuilt.bytes == bytes),
                Err(refusal) => assert!(matches!(refusal, Refusal::Failed(Gone))),
            }
            rebuilt.bytes.len() == bytes.len()
        };
        let weave_index = |reads| {
            let mut rebuilt = Rebuilt::default();
            let done =
                super::super::git_idx::weave(&mut source(&index, reads), &mut [], &mut rebuilt);
            assert!(done.is_ok() || matches!(done, Err(Refusal::Failed(Gone))));
            done.is_ok()
        };
        assert!((0..).find(|reads| weave_pack(*reads, usize::MAX)).is_some_and(|n| n > 5));
        assert!((0..).find(|reads| weave_pack(usize::MAX, *reads)).is_some_and(|n| n > 500));
        assert!((0..).find(|reads| weave_index(*reads)).is_some_and(|n| n > 50));
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let small = (1..50u64, 43..3000u64, 64..4000u64).prop_map(
            |(window_entries, batch_bytes, bin_bytes)| Limits {
                window_entries,
                batch_bytes,
                bin_bytes,
            },
        );
        prop_oneof![Just(Limits::default()), small]
    }

    fn holes() -> impl Strategy<Value = Vec<(usize, usize)>> {
        vec((any::<usize>(), prop_oneof![0..50usize, 0..3000usize]), 0..4)
    }

    fn objects() -> impl Strategy<Value = Vec<Object>> {
        let object = (0..60u64, 0..3u64, prop_oneof![Just(0), Just(1), 2..100_000u32], 0..400usize);
        vec(object, 0..60).prop_map(|objects| {
            let mut objects: Vec<Object> = objects
                .into_iter()
                .map(|(id, variant, distance, len)| Object {
                    id,
                    distance,
                    body: body(id * 3 + variant, len),
                })
                .collect();
            let mut seen = std::collections::HashSet::new();
            objects.retain(|object| seen.insert(object.id));
            objects
        })
    }

    fn edits() -> impl Strategy<Value = Vec<(usize, u8)>> {
        vec((any::<usize>(), any::<u8>()), 0..4)
    }

    fn edited(mut bytes: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
        for (at, byte) in edits {
            let len = bytes.len().max(1);
            if let Some(here) = bytes.get_mut(at % len) {
                *here = *byte;
            }
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        #[test]
        fn packs_come_back_whatever_their_bases_are(
            new in objects(),
            bases in vec((objects(), edits(), edits()), 0..4),
            id_len in prop_oneof![Just(20usize), Just(32)],
            far: bool,
            holes in holes(),
            limits in limits(),
        ) {
            let new = pack(&new, id_len, far);
            let bases: Vec<_> = bases
                .into_iter()
                .map(|(objects, of_pack, of_index)| {
                    let (pack, index) = pack(&objects, id_len, !far);
                    (edited(pack, &of_pack), edited(index, &of_index))
                })
                .collect();
            let (of_pack, of_index) = rebuild_within(limits, &new, &bases, &holes).expect("a sound pack");
            prop_assert!(of_pack.bytes == new.0);
            prop_assert!(of_index.bytes == new.1);
        }

        #[test]
        fn any_bytes_come_back_or_are_refused(
            objects in objects(),
            base in objects(),
            of_pack in edits(),
            of_index in edits(),
            cut in 0..2000usize,
            limits in limits(),
        ) {
            let (pack_bytes, index) = pack(&objects, 20, true);
            let mut new = (edited(pack_bytes, &of_pack), edited(index, &of_index));
            if cut < new.1.len() / 2 {
                new.1.truncate(new.1.len() - cut);
            }
            let base = pack(&base, 20, false);
            if let Ok((of_pack, of_index)) = rebuild_within(limits, &new, &[base], &[]) {
                prop_assert!(of_pack.bytes == new.0);
                prop_assert!(of_index.bytes == new.1);
            }
        }
    }
}
