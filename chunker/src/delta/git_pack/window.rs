//! Entries of one part of a pack and the same objects in references.

use super::COUNTERPARTS_MAX;
use super::entry::EntryMatch;
use std::num::NonZeroU64;
use std::ops::Range;

/// An entry of the pack and the same object in one reference. An object found in several references
/// has several units. A window holds millions of units.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    /// Byte offset of the entry from the start of the window.
    pub at: u32,
    /// Position of the object in a reference; `None` if no reference has it.
    pub there: Option<There>,
    /// Result of comparing both entries.
    pub matched: EntryMatch,
}

const _: () = assert!(size_of::<Unit>() == 16);

/// A position in a reference: reference number in the upper 16 bits, byte offset below. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct There(NonZeroU64);

impl There {
    const PLACE_BITS: u32 = 48;

    /// Returns `None` for an impossible position.
    pub fn new(reference: usize, at: u64) -> Option<There> {
        let is_possible = reference <= usize::from(u16::MAX) && at >> Self::PLACE_BITS == 0;
        NonZeroU64::new((reference as u64) << Self::PLACE_BITS | at)
            .filter(|_| is_possible)
            .map(There)
    }

    pub fn reference(self) -> usize {
        (self.0.get() >> Self::PLACE_BITS) as usize
    }

    pub fn at(self) -> u64 {
        self.0.get() & ((1 << Self::PLACE_BITS) - 1)
    }

    pub fn plus(self, len: u64) -> Option<There> {
        There::new(self.reference(), self.at() + len)
    }
}

/// All units of one part of the pack, in pack order.
pub struct PackWindow {
    /// Byte offset in the pack of the start.
    pub start: u64,
    /// Byte offset in the pack of the end of the last entry.
    pub end: u64,
    pub units: Vec<Unit>,
}

impl PackWindow {
    /// Sorts the units and keeps at most `COUNTERPARTS_MAX` per entry. Otherwise an index that
    /// lists one offset for many ids could add any number.
    pub fn new(start: u64, end: u64, mut units: Vec<Unit>) -> PackWindow {
        units.sort_unstable_by_key(|unit| (unit.at, unit.there));
        units.dedup_by_key(|unit| (unit.at, unit.there));
        let (mut last, mut count) = (None, 0u32);
        units.retain(|unit| {
            count = if last == Some(unit.at) { count + 1 } else { 1 };
            last = Some(unit.at);
            count <= u32::from(COUNTERPARTS_MAX)
        });
        PackWindow { start, end, units }
    }

    /// Returns the byte range in the pack of the entry of unit `n`.
    pub fn entry(&self, n: usize) -> Range<u64> {
        let at = self.units[n].at;
        let next = self.units[n..].iter().find(|unit| unit.at > at);
        let end = next.map_or(self.end, |unit| self.start + u64::from(unit.at));
        self.start + u64::from(at)..end
    }

    /// Returns the units of each entry with the entry's byte range in the pack.
    pub fn entries(&self) -> impl Iterator<Item = (Range<u64>, &[Unit])> {
        let mut first = 0;
        self.units.chunk_by(|a, b| a.at == b.at).map(move |units| {
            let entry = self.entry(first);
            first += units.len();
            (entry, units)
        })
    }

    /// Returns the unit after `n` in its run: a unit of the next entry, at the adjacent position in
    /// the same reference.
    pub fn next_in_run(&self, n: usize) -> Option<usize> {
        let Unit { at, there, .. } = self.units[n];
        let next = n + self.units[n..].iter().position(|unit| unit.at > at)?;
        let next_at = self.units[next].at;
        let wanted = there?.plus(u64::from(next_at - at))?;
        let units = self.units[next..].iter().take_while(|unit| unit.at == next_at);
        Some(next + units.into_iter().position(|unit| unit.there == Some(wanted))?)
    }

    /// Returns the first units of all runs, in reference order. A unit without neighbours is a run,
    /// too. Units without a counterpart are in no run.
    pub fn runs(&self) -> Vec<u32> {
        let mut runs = Vec::new();
        for (n, unit) in self.units.iter().enumerate() {
            if unit.there.is_some() && !self.goes_on(n) {
                runs.push(n as u32);
            }
        }
        runs.sort_unstable_by_key(|n| self.units[*n as usize].there);
        runs
    }

    /// Returns true if unit `n` continues the run of another unit.
    fn goes_on(&self, n: usize) -> bool {
        let at = self.units[n].at;
        let before = self.units[..n].iter().rev().skip_while(|unit| unit.at == at);
        let Some(last) = before.clone().next().map(|unit| unit.at) else { return false };
        let mut before = before.take_while(|unit| unit.at == last);
        let there = self.units[n].there;
        before.any(|unit| unit.there.and_then(|place| place.plus(u64::from(at - last))) == there)
    }
}
