//! Entries of a part of a pack, and where references have the same objects.

use super::COUNTERPARTS_MAX;
use super::entry::EntryMatch;
use std::num::NonZeroU64;
use std::ops::Range;

/// An entry of the pack, and where a reference has the same object. One that several references have
/// makes several units. There are millions of them.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    /// Where the entry begins, counted from the beginning of the window.
    pub at: u32,
    /// Where the reference has it; nothing if none has it.
    pub there: Option<There>,
    /// What both have in common, once they were compared.
    pub fit: EntryMatch,
}

const _: () = assert!(size_of::<Unit>() == 16);

/// A place in a reference: the number of the reference in the upper 16 bits, the place below. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct There(NonZeroU64);

impl There {
    const PLACE_BITS: u32 = 48;

    /// Nothing for a place that no entry can be at.
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

/// All units of a part of the pack, in its order.
pub struct Window {
    /// Where it begins.
    pub start: u64,
    /// Where its last entry ends.
    pub end: u64,
    pub units: Vec<Unit>,
}

impl Window {
    /// Puts the units in order, and leaves no more of an entry than are compared: an index
    /// that names a place for many ids could bring as many.
    pub fn new(start: u64, end: u64, mut units: Vec<Unit>) -> Window {
        units.sort_unstable_by_key(|unit| (unit.at, unit.there));
        units.dedup_by_key(|unit| (unit.at, unit.there));
        let (mut last, mut count) = (None, 0u32);
        units.retain(|unit| {
            count = if last == Some(unit.at) { count + 1 } else { 1 };
            last = Some(unit.at);
            count <= u32::from(COUNTERPARTS_MAX)
        });
        Window { start, end, units }
    }

    /// The entry that unit `n` is of.
    pub fn entry(&self, n: usize) -> Range<u64> {
        let at = self.units[n].at;
        let next = self.units[n..].iter().find(|unit| unit.at > at);
        let end = next.map_or(self.end, |unit| self.start + u64::from(unit.at));
        self.start + u64::from(at)..end
    }

    /// The units of each entry, with the bytes of the pack that it has.
    pub fn entries(&self) -> impl Iterator<Item = (Range<u64>, &[Unit])> {
        let mut first = 0;
        self.units.chunk_by(|a, b| a.at == b.at).map(move |units| {
            let entry = self.entry(first);
            first += units.len();
            (entry, units)
        })
    }

    /// The unit after `n` in a run: of the next entry, where the reference goes on with that too.
    pub fn next_in_run(&self, n: usize) -> Option<usize> {
        let Unit { at, there, .. } = self.units[n];
        let next = n + self.units[n..].iter().position(|unit| unit.at > at)?;
        let next_at = self.units[next].at;
        let wanted = there?.plus(u64::from(next_at - at))?;
        let units = self.units[next..].iter().take_while(|unit| unit.at == next_at);
        Some(next + units.into_iter().position(|unit| unit.there == Some(wanted))?)
    }

    /// The first units of all runs, in the order of the references. A unit that nothing goes before or
    /// after is a run too; one without a counterpart is none.
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

    /// Whether unit `n` is the next in the run of another one.
    fn goes_on(&self, n: usize) -> bool {
        let at = self.units[n].at;
        let before = self.units[..n].iter().rev().skip_while(|unit| unit.at == at);
        let Some(last) = before.clone().next().map(|unit| unit.at) else { return false };
        let mut before = before.take_while(|unit| unit.at == last);
        let there = self.units[n].there;
        before.any(|unit| unit.there.and_then(|place| place.plus(u64::from(at - last))) == there)
    }
}
