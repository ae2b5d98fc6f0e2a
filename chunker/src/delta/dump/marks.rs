//! Positions chosen by content alone, so that equal content has equal positions at any offset.

/// Number of bytes that decide a mark, for searches nearby.
pub const MARK_BYTES: usize = 32;
/// Mask for anchors: one position in 1024, decided by the 64 bytes before it.
pub const ANCHOR_MASK: u64 = 0x3FF << 54;
pub const ANCHOR_BYTES: usize = 64;

/// Calls `found` with the end and the hash of each position whose last `len` bytes have a hash with
/// no bit of `mask` set. Stops when `found` returns false.
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

/// One number per byte value. Each following byte shifts the sum by one. Bit `n` of the sum
/// therefore depends on the last `n + 1` bytes only.
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

/// Ends of the marks in a window, by hash.
///
/// Marks that repeat within the window are ignored. They lie in content common to all rows, which
/// does not distinguish rows and compresses to almost nothing.
#[derive(Default)]
pub struct Marks {
    /// Each slot holds the hash in its upper half and the end in its lower half. No mark ends at 0.
    slots: Vec<u64>,
}

impl Marks {
    const SEVERAL: u64 = u32::MAX as u64;

    /// Removes all marks and allocates two to the power of `bits` slots.
    pub fn clear(&mut self, bits: u32) {
        self.slots.clear();
        self.slots.resize(1 << bits, 0);
    }

    fn slot(&self, hash: u64) -> usize {
        let spread = (hash as u32).wrapping_mul(0x9E37_79B1);
        (spread >> (u32::BITS - self.slots.len().ilog2())) as usize
    }

    /// Inserts a mark. If its slot holds a mark with another hash, the new mark is dropped.
    pub fn insert(&mut self, hash: u64, end: usize) {
        let slot = self.slot(hash);
        let entry = &mut self.slots[slot];
        if *entry == 0 {
            *entry = hash << 32 | end as u64;
        } else if *entry >> 32 == u64::from(hash as u32) {
            *entry |= Self::SEVERAL;
        }
    }

    /// Returns the end of the mark with this hash, if the window has exactly one.
    pub fn get(&self, hash: u64) -> Option<usize> {
        let entry = self.slots[self.slot(hash)];
        let end = entry & Self::SEVERAL;
        let is_known = entry >> 32 == u64::from(hash as u32) && end != 0;
        (is_known && end != Self::SEVERAL).then_some(end as usize)
    }
}

/// Ends of anchors in the reference.
///
/// A slot holds the last anchor that fell on it and the rarest of the earlier ones. Rarity is a
/// number drawn from the hash, so the same anchors are rare in every file. Recently scanned content
/// is therefore known densely, and the rest of the reference as an even sample.
pub struct Anchors {
    /// Each entry holds the tag in its upper bits and the offset below. No anchor ends at 0.
    slots: Vec<[u64; 2]>,
}

impl Anchors {
    const OFFSET_BITS: u32 = 44;
    const OFFSET_MASK: u64 = (1 << Self::OFFSET_BITS) - 1;

    /// Sizes the table for a reference of `base_bytes` bytes.
    pub fn new(base_bytes: u64) -> Anchors {
        let slots = (base_bytes / 512).clamp(64, 1 << 20).next_power_of_two();
        Anchors { slots: vec![[0; 2]; slots as usize] }
    }

    fn slot(&self, hash: u64) -> usize {
        (hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - self.slots.len().ilog2())) as usize
    }

    /// The hash bits below the mask, moved to the upper bits of an entry. They define the rarity.
    fn tag(hash: u64) -> u64 {
        hash << ANCHOR_MASK.count_ones() & !Self::OFFSET_MASK
    }

    /// Inserts an anchor. Does nothing if the slot's last anchor has the same tag and lies at or
    /// after `place`, because that one is nearer.
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

    /// Returns possible offsets in the reference; 0 means none.
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

    /// A repeated byte must not give an anchor at every position, because scans would be slow.
    #[test]
    fn repeated_bytes_do_not_give_anchors() {
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

    /// However many anchors are inserted, the table keeps recent ones and a sample of the rest.
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
    fn repeated_marks_are_dropped() {
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
