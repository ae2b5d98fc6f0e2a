//! Places that content itself marks, so that they are the same wherever it stands.

/// A mark nearby is made by the 32 bytes before it.
pub const MARK_BYTES: usize = 32;
/// An anchor: one in 1024 bytes, by the 64 bytes before it.
pub const ANCHOR_MASK: u64 = 0x3FF << 54;
pub const ANCHOR_BYTES: usize = 64;

/// Tells the end and the hash of each place whose last bytes have a hash with none of the
/// bits of `mask`, until told to stop.
pub fn marks(bytes: &[u8], mask: u64, len: usize, mut found: impl FnMut(usize, u64) -> bool) {
    let (first, rest) = bytes.split_at(bytes.len().min(len - 1));
    let roll = |hash: u64, byte: &u8| (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
    let mut hash = first.iter().fold(0, roll);
    for (at, byte) in rest.iter().enumerate() {
        hash = roll(hash, byte);
        if hash & mask == 0 && !found(len + at, hash) {
            return;
        }
    }
}

/// A number for each byte. Shifted by one for each byte that follows, bit `n` of their sum
/// depends on the last `n + 1` bytes and on nothing before them.
const GEAR: [u64; 256] = {
    let mut gear = [0; 256];
    let (mut at, mut seed) = (0, 0x666F_7267_656B_6565_u64);
    while at < gear.len() {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        gear[at] = z ^ (z >> 31);
        at += 1;
    }
    gear
};

/// Where the marks of a window end, by their hashes.
///
/// Marks that come again in the window are of no use: they are in what all rows have, which
/// neither tells rows apart nor costs much when it is compressed.
#[derive(Default)]
pub struct Marks {
    /// In each place the hash, above the end. No mark ends at 0.
    slots: Vec<u64>,
}

impl Marks {
    const SEVERAL: u64 = u32::MAX as u64;

    /// Forgets all, and makes room for two to the power of `bits`.
    pub fn clear(&mut self, bits: u32) {
        self.slots.clear();
        self.slots.resize(1 << bits, 0);
    }

    fn slot(&self, hash: u64) -> usize {
        let spread = (hash as u32).wrapping_mul(0x9E37_79B1);
        (spread >> (u32::BITS - self.slots.len().ilog2())) as usize
    }

    /// Notes a mark. One with another hash may be lost, the one further on.
    pub fn insert(&mut self, hash: u64, end: usize) {
        let slot = self.slot(hash);
        let entry = &mut self.slots[slot];
        if *entry == 0 {
            *entry = hash << 32 | end as u64;
        } else if *entry >> 32 == u64::from(hash as u32) {
            *entry |= Self::SEVERAL;
        }
    }

    /// Where the only mark with this hash ends.
    pub fn get(&self, hash: u64) -> Option<usize> {
        let entry = self.slots[self.slot(hash)];
        let end = entry & Self::SEVERAL;
        let is_known = entry >> 32 == u64::from(hash as u32) && end != 0;
        (is_known && end != Self::SEVERAL).then_some(end as usize)
    }
}

/// Where in the reference anchors end.
///
/// A slot holds the last one that fell on it, and the rarest of those before, by a number
/// drawn from the hash. The same are rare in every file: what was scanned just now is known
/// densely, and of a reference of any size an even sample.
pub struct Anchors {
    /// In each place the offset, below the tag. No anchor ends at 0.
    slots: Vec<[u64; 2]>,
}

impl Anchors {
    const OFFSET_BITS: u32 = 44;
    const OFFSET_MASK: u64 = (1 << Self::OFFSET_BITS) - 1;

    /// For a reference of this length.
    pub fn new(base_bytes: u64) -> Anchors {
        let slots = (base_bytes / 512).clamp(64, 1 << 20).next_power_of_two();
        Anchors { slots: vec![[0; 2]; slots as usize] }
    }

    fn slot(&self, hash: u64) -> usize {
        (hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - self.slots.len().ilog2())) as usize
    }

    /// The bits below those of the mask, which say how rare it is, in an entry's place.
    fn tag(hash: u64) -> u64 {
        hash << ANCHOR_MASK.count_ones() & !Self::OFFSET_MASK
    }

    /// Notes an anchor. Where one with the same tag is ahead of `place`, that is nearer.
    pub fn insert(&mut self, hash: u64, offset: u64, place: u64) {
        let slot = self.slot(hash);
        let [last, rare] = &mut self.slots[slot];
        let is_known = *last > 0 && *last & !Self::OFFSET_MASK == Self::tag(hash);
        if offset > Self::OFFSET_MASK || is_known && *last & Self::OFFSET_MASK >= place {
            return;
        }
        if *rare == 0 || *last < *rare {
            *rare = *last;
        }
        *last = Self::tag(hash) | offset;
    }

    /// Where it may be in the reference; 0 is nowhere.
    pub fn get(&self, hash: u64) -> [u64; 2] {
        self.slots[self.slot(hash)].map(|entry| {
            let is_same = entry & !Self::OFFSET_MASK == Self::tag(hash);
            if is_same { entry & Self::OFFSET_MASK } else { 0 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{mixed, noise};
    use super::*;

    /// A byte of which any number in a row would all be anchors would make scans slow.
    #[test]
    fn no_byte_repeated_is_an_anchor() {
        for byte in 0..=255 {
            marks(&[byte; 200], ANCHOR_MASK, ANCHOR_BYTES, |end, _| panic!("{byte} at {end}"));
        }
    }

    #[test]
    fn hashes_depend_on_the_last_bytes_only() {
        let bytes = noise(100_000, 4);
        let mut all = Vec::new();
        marks(&bytes, ANCHOR_MASK, ANCHOR_BYTES, |end, hash| {
            all.push((end, hash));
            true
        });
        assert!(all.len() > 50, "{}", all.len());
        for (end, hash) in all {
            let mut again = None;
            marks(&bytes[end - ANCHOR_BYTES..end], ANCHOR_MASK, ANCHOR_BYTES, |_, hash| {
                again = Some(hash);
                true
            });
            assert_eq!(again, Some(hash));
        }
    }

    /// However much is noted, what came last is known, and some of all.
    #[test]
    fn anchors_thin_out_evenly() {
        let mut anchors = Anchors::new(0);
        let all: Vec<(u64, u64)> = (1..10_000).map(|at| (mixed(at) >> 10, at * 1000)).collect();
        for &(hash, offset) in &all {
            anchors.insert(hash, offset, offset);
        }
        let known: Vec<bool> =
            all.iter().map(|(hash, offset)| anchors.get(*hash).contains(offset)).collect();
        let count = |part: &[bool]| part.iter().filter(|known| **known).count();
        assert!(count(&known[9900..]) > 40, "{}", count(&known[9900..]));
        assert!(count(&known[..5000]) > 15, "{}", count(&known[..5000]));
    }

    #[test]
    fn marks_that_come_again_are_not_known() {
        let mut marks = Marks::default();
        marks.clear(10);
        for (hash, end) in [(7, 40), (8, 50), (7, 60)] {
            marks.insert(hash, end);
        }
        assert_eq!([7, 8, 9].map(|hash| marks.get(hash)), [None, Some(50), None]);
        marks.clear(10);
        assert_eq!(marks.get(8), None);
    }
}
