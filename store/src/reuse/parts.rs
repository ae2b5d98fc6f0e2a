//! Parts of a file that consist of too many small pieces.
//!
//! Every piece makes the recipe and all later recipes of the file longer. Where many pieces begin
//! close together, the short slices among them are copied forward. The bytes between them are new
//! anyway, so all of it becomes one piece.

use super::spool::Piece;

/// Costs are in eighths of a byte.
const COST_UNIT: u64 = 8;
/// Cost of a part without any possible saving.
const NEVER: u16 = u16::MAX;
/// Maximum number of parts, two bytes each. The largest files have longer parts.
const PARTS_MAX: u64 = 16 << 20;

/// Selects the parts that become one piece.
#[derive(Debug, Clone, Copy)]
pub struct Thinning {
    /// Length of a part in bytes, at most 4 KiB. Slices of fewer bytes are short.
    pub part_bytes: u64,
    /// Limit on the selected parts.
    pub until: Until,
}

/// Limit on the parts that become one piece. Parts with the fewest copied bytes per piece saved
/// come first.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// All parts that copy at most this many bytes per piece saved.
    Cost(u64),
    /// As few parts as give pieces this average length in bytes.
    Average(u64),
}

/// Collects the cost of each part from the pieces of a file, in order.
pub struct Survey {
    part_bytes: u64,
    /// Cost by part.
    costs: Vec<u16>,
    /// Pieces saved by all parts of a cost, by cost.
    saved: Vec<u64>,
    /// Number of the current part.
    part: usize,
    /// Number of its pieces that would become one.
    pieces: u64,
    /// Number of bytes to copy for that.
    bytes: u64,
}

/// The parts that become one piece.
#[derive(Default)]
pub struct Parts {
    part_bytes: u64,
    costs: Vec<u16>,
    /// Maximum cost of a selected part.
    limit: u16,
}

impl Survey {
    /// Starts a survey of a file of `len` bytes.
    pub fn new(len: u64, part_bytes: u64) -> Survey {
        let part_bytes = part_bytes.max(len.div_ceil(PARTS_MAX));
        let costs = vec![NEVER; (len / part_bytes + 1) as usize];
        let saved = vec![0; usize::from(NEVER)];
        Survey { part_bytes, costs, saved, part: 0, pieces: 0, bytes: 0 }
    }

    /// Adds the next piece, which begins at byte offset `at`.
    pub fn add(&mut self, at: u64, piece: &Piece) {
        let part = (at / self.part_bytes) as usize;
        if part != self.part {
            self.end_part();
            (self.part, self.pieces, self.bytes) = (part, 0, 0);
        }
        match piece {
            Piece::Literal { .. } => self.pieces += 1,
            Piece::Slice { .. } if piece.len() < self.part_bytes => {
                self.pieces += 1;
                self.bytes += piece.len();
            }
            Piece::Slice { .. } => {}
        }
    }

    fn end_part(&mut self) {
        let saved = self.pieces.saturating_sub(1);
        if let Some(cost) = (self.bytes * COST_UNIT).checked_div(saved) {
            let cost = cost.min(u64::from(NEVER) - 1);
            self.costs[self.part] = cost as u16;
            self.saved[cost as usize] += saved;
        }
    }

    /// Selects all parts that cost at most `cost` bytes per piece saved.
    pub fn up_to(mut self, cost: u64) -> Parts {
        self.end_part();
        let limit = (cost * COST_UNIT).min(u64::from(NEVER) - 1) as u16;
        Parts { part_bytes: self.part_bytes, costs: self.costs, limit }
    }

    /// Selects the cheapest parts that together save `pieces` pieces.
    pub fn save(mut self, mut pieces: u64) -> Parts {
        self.end_part();
        let is_enough = |saved: &u64| {
            pieces = pieces.saturating_sub(*saved);
            pieces == 0
        };
        let limit = self.saved.iter().position(is_enough).map_or(NEVER - 1, |cost| cost as u16);
        Parts { part_bytes: self.part_bytes, costs: self.costs, limit }
    }
}

impl Parts {
    /// Returns true if this piece is a slice to copy forward.
    pub fn have(&self, at: u64, piece: &Piece) -> bool {
        matches!(piece, Piece::Slice { .. })
            && piece.len() < self.part_bytes
            && self.costs[(at / self.part_bytes) as usize] <= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: u64 = 1000;

    /// Surveys a file of these pieces: length and true for a slice.
    fn survey(pieces: &[(u32, bool)]) -> (Survey, Vec<(u64, Piece)>) {
        let len = pieces.iter().map(|(len, _)| u64::from(*len)).sum();
        let (mut survey, mut at, mut placed) = (Survey::new(len, PART), 0, Vec::new());
        for (len, is_slice) in pieces {
            let piece = match is_slice {
                true => Piece::Slice { chunk: 0, offset: 0, len: *len },
                false => Piece::Literal { len: *len },
            };
            survey.add(at, &piece);
            placed.push((at, piece));
            at += piece.len();
        }
        (survey, placed)
    }

    fn chosen(parts: &Parts, placed: &[(u64, Piece)]) -> Vec<bool> {
        placed.iter().map(|(at, piece)| parts.have(*at, piece)).collect()
    }

    #[test]
    fn new_bytes_do_not_count_as_cost() {
        // Two slices of 200 bytes and two literals: three pieces fewer.
        let pieces = [(200, true), (100, false), (200, true), (500, false)];
        let is_chosen = |cost| {
            let (survey, placed) = survey(&pieces);
            chosen(&survey.up_to(cost), &placed)
        };
        assert_eq!(is_chosen(133), [false; 4]);
        assert_eq!(is_chosen(134), [true, false, true, false]);
    }

    #[test]
    fn long_slices_are_kept() {
        let pieces = [(10, true), (10, false), (5000, true), (20, true), (20, true)];
        let (survey, placed) = survey(&pieces);
        assert_eq!(chosen(&survey.up_to(1 << 40), &placed), [true, false, false, true, true]);
    }

    #[test]
    fn the_largest_files_need_bounded_memory() {
        let len = 1 << 40;
        let mut survey = Survey::new(len, PART);
        let slice = |len| Piece::Slice { chunk: 0, offset: 0, len };
        for (at, piece) in [(0, 65_000), (1, 65_000), (len - 2, 9), (len - 1, 9)] {
            survey.add(at, &slice(piece));
        }
        let parts = survey.up_to(512);
        assert!(parts.costs.len() <= PARTS_MAX as usize + 1);
        assert!(!parts.have(0, &slice(9)), "dear ones are not taken for cheap ones");
        assert!(parts.have(len - 1, &slice(9)));
    }

    #[test]
    fn one_piece_by_itself_saves_nothing() {
        let pieces = [(10, true), (1500, true), (999, true), (2000, true)];
        let (survey, placed) = survey(&pieces);
        assert_eq!(chosen(&survey.up_to(1 << 40), &placed), [false; 4]);
    }

    #[test]
    fn the_cheapest_parts_save_the_requested_pieces() {
        // Parts that save 1, 9 and 3 pieces for 500, 100 and 250 bytes each.
        let first = [(500, false), (500, true)];
        let pieces = [&first[..], &[(100, true); 10], &[(250, true); 4]].concat();
        let saved = |wanted| {
            let (survey, placed) = survey(&pieces);
            let parts = survey.save(wanted);
            [0, 2, 12].map(|n| chosen(&parts, &placed[n..])[..2].contains(&true))
        };
        assert_eq!(saved(1), [false, true, false]);
        assert_eq!(saved(9), [false, true, false]);
        assert_eq!(saved(10), [false, true, true]);
        assert_eq!(saved(13), [true; 3]);
        assert_eq!(saved(99), [true; 3]);
    }
}
