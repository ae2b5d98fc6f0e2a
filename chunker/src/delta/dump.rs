//! Database dumps, logs, and any large file that changed in place.
//!
//! The new file is compared with one reference, the file of the same name in the previous snapshot.
//! The new file is read once and may be a stream of unknown length. The reference is read where
//! needed. No format is parsed; rows are matched by their bytes. Plain SQL, `pg_dump -Fc -Z0`, the
//! long lines of `mysqldump` and SQLite pages are therefore handled alike.
//!
//! There are three searches. Each handles cases that the previous one misses:
//!
//! 1. *In step*: the next bytes of both files are equal. Nothing is hashed.
//! 2. *Nearby*: after a difference, marks of 32 bytes show where both files agree again. The
//!    windows grow, because most changes are small.
//! 3. *Far*: anchors are marks of 64 bytes, one in a KiB. They cover the parts of the reference
//!    that were passed over or lie ahead. They find the content after a dropped table, and tables
//!    that moved.
//!
//! Guarantees for any input:
//!
//! - The sink receives every byte once and in order, and as a copy only if it was compared.
//! - Memory: up to 64 bytes for each KiB of the reference, at most 16 MiB, plus 3 MiB.
//! - Time: constant work per byte for any content. Each byte of the reference is scanned for
//!   anchors at most once. Each nearby window is searched at most once per quarter of its width of
//!   new bytes. Anchor comparisons have a budget.
//! - An unreadable reference costs space only.

mod lookahead;
mod marks;

use super::{Reference, Sink, common_prefix};
use lookahead::Lookahead;
use marks::{ANCHOR_BYTES, ANCHOR_MASK, Anchors, MARK_BYTES, Marks, marks};

/// Minimum length of a copy in bytes. Recording a copy costs about a third of this.
const MIN_COPY: usize = 32;
/// A match of this length is no coincidence. Similar rows are seldom equal for so long.
const STRONG: usize = 1024;
/// The windows searched nearby, in order. Wider windows use fewer marks, because only longer
/// matches are useful there.
const LEVELS: [Level; 4] = [
    Level { width: 128, pause: 32, mark_bits: 3 },
    Level { width: 512, pause: 256, mark_bits: 3 },
    Level { width: 4 << 10, pause: 4 << 10, mark_bits: 4 },
    Level { width: WIDEST, pause: WIDEST, mark_bits: 6 },
];
const WIDEST: usize = 32 << 10;
/// Distance ahead searched for anchors before a short nearby match is accepted.
const STRIDE: usize = 64 << 10;
/// Bytes passed at once if there is no match.
const STEP: usize = 4 << 10;
/// One anchor comparison is allowed for this many new bytes, plus the same number at the start.
const COMPARE_EACH: u64 = 256;
/// A far comparison opens a chunk of the reference. One without a strong match is hardly worth that
/// and counts as this many comparisons.
const COMPARED_IN_VAIN: u64 = 256;
/// Initial distance in bytes that the reference is scanned beyond the expected position.
const SCAN_FIRST: u64 = 1 << 20;
/// Additional scan distance in bytes for each byte since the last strong match.
const SCAN_FACTOR: u64 = 64;
/// Bytes of the reference in memory: one scan's read, larger than the widest window.
const WINDOW: usize = 256 << 10;
/// Bytes of the reference skipped after an unreadable position.
const UNREADABLE: usize = 16 << 10;
/// Maximum distance from the expected position at which a short match is followed.
const NEAR: u64 = 1 << 20;

/// Returns true if content with this beginning is worth comparing: text, or a container that holds
/// uncompressed data. `head` is up to the first 4 KiB.
pub fn detect(head: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [b"PGDMP", b"SQLite format 3\0", b"XBSTCK", b"REDIS0"];
    let is_container = magics.iter().any(|magic| head.starts_with(magic));
    let is_tar = head.get(257..262) == Some(b"ustar");
    is_container || is_tar || is_text(head)
}

/// Returns true for text in any encoding that extends ASCII. Compressed bytes have ten times as
/// many control characters as allowed here.
fn is_text(head: &[u8]) -> bool {
    let is_control = |byte: &&u8| matches!(byte, 0..=8 | 14..=26 | 28..=31 | 127);
    !head.is_empty() && head.iter().filter(is_control).count() <= head.len() / 64
}

/// Compares the stream `new` with `reference` and passes all of it to `sink` in order.
///
/// `new` fills a buffer as far as it can and returns the number of bytes; 0 means the end. Copies
/// are of reference number 0.
pub fn compare<E>(
    new: &mut dyn FnMut(&mut [u8]) -> Result<usize, E>,
    reference: &mut dyn Reference,
    sink: &mut dyn Sink<E>,
) -> Result<(), E> {
    let mut matcher = DumpMatcher {
        lookahead: Lookahead::new(new, sink),
        place: 0,
        sure: 0,
        try_again: [0; LEVELS.len()],
        peek_again: 0,
        compared: 0,
        scanned: 0,
        anchors: Anchors::new(reference.len()),
        window: vec![0; WINDOW],
        marks: Marks::default(),
        reference,
    };
    matcher.run()?;
    matcher.lookahead.finish()
}

/// Both files and the state of their comparison.
struct DumpMatcher<'a, E> {
    lookahead: Lookahead<'a, E>,
    reference: &'a mut dyn Reference,
    /// Expected position of the next bytes in the reference.
    place: u64,
    /// Position in the new file of the end of the last strong match.
    sure: u64,
    /// Position in the new file from which each level may be searched again.
    try_again: [u64; LEVELS.len()],
    /// Position in the new file from which anchors may be searched again despite a nearby match.
    peek_again: u64,
    /// Number of anchor comparisons, including penalties.
    compared: u64,
    /// Position in the reference up to which it was scanned.
    scanned: u64,
    anchors: Anchors,
    window: Vec<u8>,
    marks: Marks,
}

impl<E> DumpMatcher<'_, E> {
    fn run(&mut self) -> Result<(), E> {
        loop {
            self.lookahead.fill(MIN_COPY)?;
            self.go_in_step()?;
            if !self.lookahead.ahead().is_empty() {
                if !self.search_nearby()? {
                    self.search_far()?;
                }
            } else if self.lookahead.is_all_read {
                return Ok(());
            }
        }
    }

    /// Takes the bytes that are equal at the expected position.
    fn go_in_step(&mut self) -> Result<(), E> {
        let alike = self.reference.common_prefix(self.place, self.lookahead.ahead());
        if alike >= MIN_COPY || self.lookahead.is_copied_up_to(self.place) {
            self.take(Match::new(0, self.place, alike), true)?;
        }
        Ok(())
    }

    /// Searches the windows around the expected position. Returns true if the comparison can
    /// continue, at an updated expected position.
    fn search_nearby(&mut self) -> Result<bool, E> {
        self.lookahead.fill(WIDEST + STRONG)?;
        let position = self.lookahead.position();
        let soonest = self.try_again.into_iter().min().unwrap_or(0);
        if soonest > position {
            // There are too many differences to search at each. Most changes keep the length.
            let len = self.lookahead.ahead().len().min((soonest - position) as usize);
            self.lookahead.pass(len);
            self.place += len as u64;
            return Ok(true);
        }
        let mut best: Option<Match> = None;
        for (level, try_again) in LEVELS.iter().zip(&mut self.try_again) {
            if *try_again > position || best.is_some_and(|found| found.is_sure()) {
                continue;
            }
            *try_again = position + level.pause as u64;
            let start = self.place.saturating_sub(level.width as u64 / 2);
            let here = (self.place - start) as usize;
            let len = self.reference.read(start, &mut self.window[..here + level.width + STRONG]);
            let reference =
                ReferenceWindow { bytes: &self.window[..len], start, here: here.min(len) };
            let found = best_match(self.lookahead.ahead(), &reference, level, &mut self.marks)
                .or_else(|| unmoved(self.lookahead.ahead(), &reference, level));
            best = best.into_iter().chain(found).reduce(|a, b| a.or(b, self.place));
        }
        let Some(mut found) = best else {
            return Ok(false);
        };
        if !found.is_sure() {
            found = self.peek()?.filter(|far| !found.precedes(far)).unwrap_or(found);
        }
        self.take(found, true)?;
        Ok(true)
    }

    /// Returns the first strong match at an anchor of the next bytes. A short nearby match may be a
    /// similar row while the next rows are elsewhere in the reference.
    fn peek(&mut self) -> Result<Option<Match>, E> {
        if self.lookahead.position() < self.peek_again {
            return Ok(None);
        }
        self.peek_again = self.lookahead.position() + STRIDE as u64;
        self.lookahead.fill(STRIDE + STRONG)?;
        self.scan_ahead();
        Ok(self.search_anchors(STRIDE, |found| found.is_sure()))
    }

    /// Passes new bytes until an anchor leads to a position worth following.
    fn search_far(&mut self) -> Result<(), E> {
        loop {
            self.lookahead.fill(STEP + STRONG)?;
            if self.lookahead.ahead().is_empty() {
                return Ok(());
            }
            self.scan_ahead();
            let Some(found) = self.search_anchors(STEP, |_| true) else {
                self.lookahead.pass(STEP.min(self.lookahead.ahead().len()));
                continue;
            };
            let is_to_follow = found.is_sure() || found.shift(self.place) <= NEAR;
            self.take(found, is_to_follow)?;
            if is_to_follow {
                return Ok(());
            }
        }
    }

    /// Returns the first match at an anchor of the next `len` bytes that satisfies `is_wanted`.
    fn search_anchors(&mut self, len: usize, is_wanted: fn(&Match) -> bool) -> Option<Match> {
        self.lookahead.find_anchors(len);
        for at in 0..self.lookahead.anchors.len() {
            let (end, hash) = self.lookahead.anchors[at];
            let new = (end - self.lookahead.position()) as usize;
            let found = if new <= len { self.compare_anchor(new, hash) } else { break };
            if found.as_ref().is_some_and(is_wanted) {
                return found;
            }
        }
        None
    }

    /// Returns the longest match at an anchor that ends `new` bytes ahead.
    fn compare_anchor(&mut self, new: usize, hash: u64) -> Option<Match> {
        let mut best: Option<Match> = None;
        for reference in self.anchors.get(hash).into_iter().filter(|reference| *reference > 0) {
            if self.compared > self.lookahead.position() / COMPARE_EACH + COMPARE_EACH {
                break;
            }
            self.compared += 1;
            let (known, ahead) = self.lookahead.ahead().split_at(new);
            let after = self.reference.common_prefix(reference, &ahead[..ahead.len().min(STRIDE)]);
            let before = common_suffix(self.reference, reference, known, &mut self.window);
            let len = before + after;
            if len < STRONG && reference.abs_diff(self.place) > NEAR {
                self.compared += COMPARED_IN_VAIN - 1;
            }
            if len >= MIN_COPY && best.is_none_or(|best| len > best.len) {
                best = Some(Match::new(new - before, reference - before as u64, len));
            }
        }
        best
    }

    /// Takes a match and the equal bytes before it. If the match is not followed, the expected
    /// position does not change.
    fn take(&mut self, found: Match, is_to_follow: bool) -> Result<(), E> {
        self.lookahead.pass(found.new);
        let before = common_suffix(
            self.reference,
            found.reference,
            self.lookahead.behind(),
            &mut self.window,
        );
        self.lookahead.copy(found.reference - before as u64, before, found.len)?;
        if is_to_follow {
            if found.reference >= self.place + ANCHOR_BYTES as u64 {
                // Bytes passed over here may appear later in the new file.
                self.scan(found.reference);
            }
            self.place = found.reference + found.len as u64;
            if found.is_sure() || before + found.len >= STRONG {
                self.sure = self.lookahead.position();
            }
        }
        Ok(())
    }

    /// Scans the reference for anchors. The longer nothing was found, the further ahead it scans.
    fn scan_ahead(&mut self) {
        let unsure = self.lookahead.position() - self.sure;
        let reach = SCAN_FIRST + unsure.saturating_mul(SCAN_FACTOR);
        self.scan(self.place.saturating_add(reach).min(self.reference.len()));
    }

    /// Scans the unscanned bytes between the expected position and `target`.
    fn scan(&mut self, target: u64) {
        self.scanned = self.scanned.max(self.place);
        while self.scanned < target {
            let from = self.scanned.saturating_sub(ANCHOR_BYTES as u64);
            let wanted = usize::try_from(target - from).unwrap_or(WINDOW).min(WINDOW);
            let len = self.reference.read(from, &mut self.window[..wanted]);
            marks(&self.window[..len], ANCHOR_MASK, ANCHOR_BYTES, |end, hash| {
                self.anchors.insert(hash, from + end as u64, self.place);
                true
            });
            let unreadable = if len < wanted { UNREADABLE } else { 0 };
            self.scanned = from + (len + unreadable) as u64;
        }
    }
}

/// Equal bytes in both files. `new` counts from the next new byte.
#[derive(Debug, Clone, Copy)]
struct Match {
    new: usize,
    reference: u64,
    len: usize,
    /// Length in bytes of this match and of later ones that support it.
    evidence: usize,
}

impl Match {
    fn new(new: usize, reference: u64, len: usize) -> Match {
        Match { new, reference, len, evidence: len }
    }

    /// Returns true if the match is long enough to be no coincidence.
    fn is_sure(&self) -> bool {
        self.evidence >= STRONG
    }

    /// Returns the distance in bytes from the position expected without insertions or deletions.
    fn shift(&self, place: u64) -> u64 {
        self.reference.abs_diff(place + self.new as u64)
    }

    /// Bytes saved, minus the bytes passed to get there. A less shifted short match is more likely
    /// the same row and not a similar one.
    fn worth(&self, place: u64) -> i64 {
        self.len.min(STRONG) as i64 - self.new as i64 - self.shift(place) as i64 / 16
    }

    /// Returns true if this match begins earlier in both files, by at least the minimum copy. Both
    /// may end alike, because rows often do.
    fn precedes(&self, other: &Match) -> bool {
        self.new + MIN_COPY <= other.new && self.reference + MIN_COPY as u64 <= other.reference
    }

    /// Returns the better match. A match that precedes the other wins, because the other remains
    /// available afterwards.
    fn or(self, other: Match, place: u64) -> Match {
        let evidence = self.evidence + other.evidence;
        if self.precedes(&other) {
            Match { evidence, ..self }
        } else if other.precedes(&self) {
            Match { evidence, ..other }
        } else if (other.is_sure(), other.worth(place)) > (self.is_sure(), self.worth(place)) {
            other
        } else {
            self
        }
    }
}

/// Parameters of a nearby search.
struct Level {
    /// Bytes searched in each file. In the reference, the window also includes half as many bytes
    /// before the expected position.
    width: usize,
    /// Number of new bytes until the next search at this level.
    pause: usize,
    /// One position in two to the power of this is a mark.
    mark_bits: u32,
}

/// Bytes of the reference.
struct ReferenceWindow<'a> {
    bytes: &'a [u8],
    /// Byte offset in the reference of the first byte.
    start: u64,
    /// Index in `bytes` of the expected position.
    here: usize,
}

/// Returns the first strong match of the next bytes within a window of the reference, or else the
/// match with the highest [`worth`](Match::worth).
fn best_match(
    new: &[u8],
    reference: &ReferenceWindow,
    level: &Level,
    known: &mut Marks,
) -> Option<Match> {
    let mask = ((1 << level.mark_bits) - 1) << (u32::BITS - level.mark_bits);
    let last = reference.bytes.len().min(reference.here + level.width);
    known.clear((4 * level.width).ilog2() - level.mark_bits);
    marks(&reference.bytes[..last], mask, MARK_BYTES, |end, hash| {
        known.insert(hash, end);
        true
    });
    let place = reference.start + reference.here as u64;
    let mut best: Option<Match> = None;
    let mut compared = 0;
    marks(&new[..new.len().min(level.width)], mask, MARK_BYTES, |end, hash| {
        let Some(there) = known.get(hash).filter(|_| end >= compared) else {
            return true;
        };
        let after = common_prefix(&new[end..], &reference.bytes[there..]);
        let before =
            alike_backwards(&new[end.saturating_sub(STRONG)..end], &reference.bytes[..there]);
        compared = end + after;
        let offset = reference.start + (there - before) as u64;
        let found = Match::new(end - before, offset, before + after);
        if found.len < MIN_COPY || found.shift(place) > 16 * found.len as u64 {
            return true;
        }
        let found = best.map_or(found, |best| best.or(found, place));
        best = Some(found);
        !found.is_sure()
    });
    best
}

/// Returns the first strong match without a shift. Finds matches in content without marks, such as
/// zeros.
fn unmoved(new: &[u8], reference: &ReferenceWindow, level: &Level) -> Option<Match> {
    let there = &reference.bytes[reference.here..];
    let mut run = 0;
    for (at, (a, b)) in new.iter().zip(there).enumerate().take(level.width) {
        run = if a == b { run + 1 } else { 0 };
        if run == MIN_COPY {
            let start = at + 1 - MIN_COPY;
            let place = reference.start + (reference.here + start) as u64;
            let found = Match::new(start, place, common_prefix(&new[start..], &there[start..]));
            if found.is_sure() {
                return Some(found);
            }
        }
    }
    None
}

/// Returns the length in bytes of the common suffix.
fn alike_backwards(a: &[u8], b: &[u8]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}

/// Returns the number of bytes before `offset` that equal the end of `with`.
fn common_suffix(
    reference: &mut dyn Reference,
    offset: u64,
    with: &[u8],
    window: &mut [u8],
) -> usize {
    let (mut len, mut step) = (0, 64);
    loop {
        let left = (with.len() - len).min(usize::try_from(offset).unwrap_or(usize::MAX) - len);
        step = left.min(4 * step).min(window.len());
        let block = &mut window[..step];
        if step == 0 || reference.read(offset - (len + step) as u64, block) < step {
            return len;
        }
        let alike = alike_backwards(block, &with[..with.len() - len]);
        len += alike;
        if alike < step {
            return len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::tests::{Damaged, Memory, Rebuilt};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::convert::Infallible;
    use std::ops::Range;

    /// Compares `new`, read in pieces of these sizes, and checks that the sink can rebuild it.
    fn compare_pieces(
        reference: &mut dyn Reference,
        whole: &[u8],
        new: &[u8],
        pieces: &[usize],
    ) -> Rebuilt {
        let mut rebuilt = Rebuilt::from(&[Memory(whole.to_vec())]);
        let mut pieces = pieces.iter().cycle();
        let mut left = new;
        let mut read = |buffer: &mut [u8]| {
            let piece = pieces.next().copied().unwrap_or(usize::MAX).max(1);
            let (now, later) = left.split_at(left.len().min(buffer.len()).min(piece));
            buffer[..now.len()].copy_from_slice(now);
            left = later;
            Ok::<usize, Infallible>(now.len())
        };
        let Ok(()) = compare(&mut read, reference, &mut rebuilt);
        assert!(rebuilt.bytes == new, "{} bytes became others", new.len());
        rebuilt
    }

    fn compared(reference: &[u8], new: &[u8]) -> Rebuilt {
        compare_pieces(&mut Memory(reference.to_vec()), reference, new, &[])
    }

    /// Pseudo-random numbers, identical on every platform.
    pub fn mixed(n: u64) -> u64 {
        let z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn noise(len: usize, seed: u64) -> Vec<u8> {
        (0..len as u64).map(|at| mixed(mixed(seed).wrapping_add(at)) as u8).collect()
    }

    /// A row in the format of pg_dump. Much of it is equal in all rows.
    fn row(id: u64, version: u64) -> Vec<u8> {
        let name = mixed(id);
        let count = mixed(id + version) % 1000 * version;
        let filler = " ".repeat(60);
        format!("{id}\tuser {name:x}\t{count}\t\\N\tf\t2024-01-01 00:00:00\t{filler}\n")
            .into_bytes()
    }

    fn rows(ids: Range<u64>) -> Vec<u8> {
        ids.flat_map(|id| row(id, 0)).collect()
    }

    /// Stored size in bytes: literals, and 8 bytes for each copy.
    fn cost(rebuilt: &Rebuilt) -> usize {
        rebuilt.literal_bytes + 8 * rebuilt.copies
    }

    #[test]
    fn identical_content_is_one_copy() {
        let reference = rows(0..30_000);
        let rebuilt = compared(&reference, &reference);
        assert_eq!((rebuilt.literal_bytes, rebuilt.copies), (0, 1));
    }

    #[test]
    fn empty_and_tiny_contents_are_rebuilt() {
        for (reference, new) in
            [("", ""), ("", "new"), ("reference", ""), ("some", "some"), ("a", "ab")]
        {
            compared(reference.as_bytes(), new.as_bytes());
        }
    }

    #[test]
    fn one_changed_line_costs_little() {
        let reference = rows(0..8000);
        let new = [rows(0..4000), row(4000, 1), rows(4001..8000)].concat();
        let rebuilt = compared(&reference, &new);
        assert!(cost(&rebuilt) < 300, "{}", cost(&rebuilt));
    }

    #[test]
    fn only_added_lines_cost_bytes() {
        let reference = rows(0..8000);
        let fewer = [rows(0..4000), rows(4100..8000)].concat();
        assert!(cost(&compared(&reference, &fewer)) < 300);
        let came = cost(&compared(&fewer, &reference));
        assert!(came < rows(4000..4100).len() + 300, "{came}");
    }

    #[test]
    fn scattered_row_changes_cost_little() {
        let reference = rows(0..40_000);
        let new: Vec<u8> = (0..40_000).flat_map(|id| row(id, u64::from(id % 100 == 7))).collect();
        let rebuilt = compared(&reference, &new);
        let changed = reference.len() / 100;
        assert!(cost(&rebuilt) < changed, "{} of {changed}", cost(&rebuilt));
    }

    /// PostgreSQL writes updated rows to another place.
    #[test]
    fn rows_moved_to_the_end_cost_their_own_bytes() {
        let reference = rows(0..40_000);
        let is_changed = |id: &u64| id / 500 % 20 == 3;
        let kept = (0..40_000).filter(|id| !is_changed(id)).flat_map(|id| row(id, 0));
        let changed: Vec<u8> = (0..40_000).filter(is_changed).flat_map(|id| row(id, 1)).collect();
        let new: Vec<u8> = kept.chain(changed.iter().copied()).collect();
        let rebuilt = compared(&reference, &new);
        assert!(
            cost(&rebuilt) < changed.len() * 13 / 10,
            "{} of {}",
            cost(&rebuilt),
            changed.len()
        );
    }

    #[test]
    fn row_changes_without_line_breaks_cost_little() {
        let joined = |version: u64| -> Vec<u8> {
            let values = (0..9000_u64).map(|id| {
                let version = version * u64::from(id % 90 == 4);
                format!("({id},'{:x}',{},NULL,'2024-01-01')", mixed(id), version * mixed(id))
            });
            values.collect::<Vec<_>>().join(",").into_bytes()
        };
        let rebuilt = compared(&joined(0), &joined(1));
        assert!(cost(&rebuilt) < 9000 / 90 * 80, "{}", cost(&rebuilt));
    }

    #[test]
    fn dropped_and_moved_tables_cost_little() {
        let [a, b, c] = [noise(3 << 20, 1), rows(0..50_000), noise(2 << 20, 3)];
        let reference = [&a[..], &b, &c].concat();
        assert!(cost(&compared(&reference, &[&a[..], &c].concat())) < 1000);
        assert!(cost(&compared(&reference, &[&b[..], &c].concat())) < 1000);
        let moved = cost(&compared(&reference, &[&c[..], &a, &b].concat()));
        assert!(moved < 1000, "{moved}");
    }

    #[test]
    fn in_place_changes_without_marks_cost_little() {
        let zeros = vec![0; 1 << 20];
        let mut new = zeros.clone();
        for at in [5, 6, 300_000, 700_100] {
            new[at] = 1;
        }
        let rebuilt = compared(&zeros, &new);
        assert!(cost(&rebuilt) < 200, "{}", cost(&rebuilt));
    }

    #[test]
    fn unreadable_ranges_cost_only_their_own_bytes() {
        let reference = rows(0..40_000);
        let holes = vec![0..100_000, 1_000_000..1_100_000, 3_000_000..3_000_100];
        let mut damaged = Damaged { reference: Memory(reference.clone()), holes, reads: 0 };
        let rebuilt = compare_pieces(&mut damaged, &reference, &reference, &[]);
        assert!(cost(&rebuilt) < 200_100 + 3 * UNREADABLE, "{}", cost(&rebuilt));
        let holes = vec![0..1, 1..reference.len()];
        let mut nothing = Damaged { reference: Memory(reference.clone()), holes, reads: 0 };
        let rebuilt = compare_pieces(&mut nothing, &reference, &reference, &[]);
        assert_eq!((rebuilt.literal_bytes, rebuilt.copies), (reference.len(), 0));
    }

    /// Work is counted in calls, because no test is timed.
    #[test]
    fn repetitive_content_does_not_cause_extra_reads() {
        let line = b"the same line once more, and once more\n";
        let lines = line.repeat((4 << 20) / line.len());
        let mut spoiled = lines.clone();
        spoiled.iter_mut().step_by(101).for_each(|byte| *byte ^= 1);
        let zeros = vec![0; 4 << 20];
        let mut dots = zeros.clone();
        dots.iter_mut().step_by(33).for_each(|byte| *byte = 1);
        let contents = [&lines, &spoiled, &zeros, &dots];
        for reference in contents {
            for new in contents {
                let whole = Memory(reference.clone());
                let mut counted = Damaged { reference: whole, holes: Vec::new(), reads: 0 };
                compare_pieces(&mut counted, reference, new, &[]);
                assert!(counted.reads < new.len() / 32, "{}", counted.reads);
            }
        }
    }

    /// Counts reads far from the previous one.
    struct Jumping {
        reference: Memory,
        last: u64,
        jumps: usize,
    }

    impl Jumping {
        fn go_to(&mut self, offset: u64) {
            self.jumps += usize::from(offset.abs_diff(self.last) > NEAR);
            self.last = offset;
        }
    }

    impl Reference for Jumping {
        fn len(&self) -> u64 {
            Reference::len(&self.reference)
        }

        fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
            self.go_to(offset);
            self.reference.common_prefix(offset, with)
        }

        fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
            self.go_to(offset);
            Reference::read(&mut self.reference, offset, buffer)
        }
    }

    /// A clustered table has all its rows, each at another position.
    #[test]
    fn reordered_rows_cause_few_seeks() {
        let reference = rows(0..80_000);
        for together in [1, 6] {
            let mut order: Vec<u64> = (0..80_000).collect();
            order.sort_by_key(|id| (mixed(*id / together), *id));
            let new: Vec<u8> = order.into_iter().flat_map(|id| row(id, 0)).collect();
            let mut jumping = Jumping { reference: Memory(reference.clone()), last: 0, jumps: 0 };
            compare_pieces(&mut jumping, &reference, &new, &[]);
            assert!(jumping.jumps < new.len() / (4 << 10), "{}", jumping.jumps);
        }
    }

    #[test]
    fn comparable_formats_are_detected() {
        assert!(detect(b"--\n-- PostgreSQL database dump\n--\n"));
        assert!(detect("-- Größe\nINSERT INTO `t` VALUES (1,'ä');\n".as_bytes()));
        assert!(detect(b"PGDMP\x01\x0e\x00\x04\x08\x01"));
        assert!(detect(b"SQLite format 3\0\x10\x00"));
        assert!(!detect(b""));
        assert!(!detect(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"));
        assert!(!detect(&noise(4096, 1)));
        let tar = [&[b'a'; 100][..], &[0; 157], b"ustar\x0000"].concat();
        assert!(detect(&tar));
    }

    #[test]
    fn a_read_error_ends_the_comparison() {
        let mut reads = 0;
        let mut read = |buffer: &mut [u8]| {
            reads += 1;
            buffer.fill(reads);
            if reads < 3 { Ok(buffer.len()) } else { Err("gone") }
        };
        struct Nothing;
        impl Sink<&'static str> for Nothing {
            fn literal(&mut self, _: &[u8]) -> Result<(), &'static str> {
                Ok(())
            }

            fn copy(&mut self, _: usize, _: u64, _: u64) -> Result<(), &'static str> {
                Ok(())
            }
        }
        let mut reference = Memory(vec![1; 1 << 20]);
        assert_eq!(compare(&mut read, &mut reference, &mut Nothing), Err("gone"));
    }

    /// Noise, runs of one byte, rows, and rows with small differences.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let run = prop_oneof![
            (0..20_000usize, 0..4u64).prop_map(|(len, seed)| noise(len, seed)),
            (any::<u8>(), 0..20_000usize).prop_map(|(byte, len)| vec![byte; len]),
            (0..300u64, 0..300u64).prop_map(|(first, n)| rows(first..first + n)),
            (0..300u64, 0..300u64, 2..9u64).prop_map(|(first, n, nth)| {
                (first..first + n).flat_map(|id| row(id, u64::from(id % nth == 0))).collect()
            }),
            (vec(any::<u8>(), 1..50), 0..500usize).prop_map(|(unit, n)| unit.repeat(n)),
        ];
        vec(run, 0..6).prop_map(|runs| runs.concat())
    }

    /// An edit of the reference: kind, position, length and target. Bytes are dropped, changed,
    /// inserted or moved to the target.
    type Edit = (u8, u32, usize, u32);

    fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
        for &(what, at, len, to) in edits {
            let at = at as usize % (bytes.len() + 1);
            let end = bytes.len().min(at + len);
            match what % 4 {
                0 => drop(bytes.drain(at..end)),
                1 => bytes[at..end].iter_mut().for_each(|byte| *byte = byte.wrapping_add(1)),
                2 => drop(bytes.splice(at..at, noise(len, u64::from(to)))),
                _ => {
                    let moved: Vec<u8> = bytes.drain(at..end).collect();
                    let to = to as usize % (bytes.len() + 1);
                    bytes.splice(to..to, moved);
                }
            }
        }
        bytes
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let len = prop_oneof![0..50usize, 0..3000usize, 0..100_000usize];
        vec((any::<u8>(), any::<u32>(), len, any::<u32>()), 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn any_content_is_rebuilt(
            reference in content(),
            new in content(),
            pieces in vec(1..200_000usize, 0..4),
        ) {
            compare_pieces(&mut Memory(reference.clone()), &reference, &new, &pieces);
        }

        #[test]
        fn any_edit_is_rebuilt(
            reference in content(),
            edits in edits(),
            holes in vec((any::<u32>(), 0..50_000usize), 0..3),
            pieces in vec(1..200_000usize, 0..4),
        ) {
            let new = edited(reference.clone(), &edits);
            let holes = holes.into_iter().map(|(at, len)| {
                let at = at as usize % (reference.len() + 1);
                at..reference.len().min(at + len)
            });
            let holes = holes.collect();
            let mut damaged = Damaged { reference: Memory(reference.clone()), holes, reads: 0 };
            let rebuilt = compare_pieces(&mut damaged, &reference, &new, &pieces);
            prop_assert!(rebuilt.copies <= new.len() / MIN_COPY + 1);
        }

        /// Noise has no similar rows, so the cost of an edit is bounded.
        #[test]
        fn an_edit_of_noise_costs_little(seed: u64, edits in edits()) {
            let reference = noise(200_000, seed);
            let new = edited(reference.clone(), &edits);
            let touched: usize = edits.iter().map(|edit| edit.2).sum();
            let rebuilt = compared(&reference, &new);
            // A moved block has three seams: its old place, and both ends of the new one.
            let seams: usize = edits.iter().map(|edit| if edit.0 % 4 == 3 { 3 } else { 1 }).sum();
            let bound = touched + 1000 * seams + 9;
            prop_assert!(cost(&rebuilt) < bound, "{} of {bound}", cost(&rebuilt));
        }
    }
}
