//! Cuts one large buffer on all cores, at exactly the cut points of a sequential scan.
//!
//! A cut depends only on the bytes after the previous cut. Two scans that stop at the same byte
//! therefore agree from there on. Each core scans one piece as if a chunk began at its first byte.
//! Then the true cuts are followed from piece to piece. A few chunks are cut again until they meet
//! a cut of the speculative scan, whose remaining cuts are then used unchanged.

use crate::cdc::Cutter;
use rayon::prelude::*;

/// Returns the end offsets of all chunks of `data`. Equals [`Cutter::cut`] for every input.
///
/// `pieces` is the number of concurrent scans, normally the number of threads of the current rayon
/// pool. Content on which scans never meet is cut correctly, but only as fast as on one thread.
/// Only periodic data is known to behave so.
pub fn cut_parallel(cutter: &Cutter, data: &[u8], is_last: bool, pieces: usize) -> Vec<usize> {
    let piece_len = piece_len(data.len(), pieces, cutter.max_len());
    if piece_len >= data.len() {
        return cutter.cut(data, is_last);
    }
    let count = data.len().div_ceil(piece_len);
    let scans: Vec<Vec<usize>> = (0..count)
        .into_par_iter()
        .map(|i| scan(cutter, data, is_last, i * piece_len, (i + 1) * piece_len))
        .collect();
    stitch(cutter, data, is_last, piece_len, &scans)
}

/// Returns a multiple of the maximum chunk size, so that scans also meet in data cut only by size
/// (zeros).
fn piece_len(len: usize, pieces: usize, max_len: usize) -> usize {
    len.div_ceil(pieces.max(1)).next_multiple_of(max_len)
}

/// Returns the ends of the chunks from `start` on, up to the first end at or after `stop`.
fn scan(cutter: &Cutter, data: &[u8], is_last: bool, start: usize, stop: usize) -> Vec<usize> {
    let stop = stop.min(data.len());
    let mut ends = Vec::new();
    let mut at = start;
    while at < stop {
        match next_end(cutter, data, is_last, at) {
            Some(end) => at = end,
            None => break,
        }
        ends.push(at);
    }
    ends
}

/// Returns the end of the chunk that starts at `at`, or `None` if that needs more data.
fn next_end(cutter: &Cutter, data: &[u8], is_last: bool, at: usize) -> Option<usize> {
    let rest = &data[at..];
    let decided = !rest.is_empty() && (is_last || rest.len() >= cutter.max_len());
    decided.then(|| at + cutter.next_len(rest))
}

fn stitch(
    cutter: &Cutter,
    data: &[u8],
    is_last: bool,
    piece_len: usize,
    scans: &[Vec<usize>],
) -> Vec<usize> {
    let mut ends: Vec<usize> = Vec::with_capacity(scans.iter().map(Vec::len).sum());
    let mut at = 0;
    for (i, scan) in scans.iter().enumerate() {
        let (start, stop) = (i * piece_len, ((i + 1) * piece_len).min(data.len()));
        // Follow the true cuts until one of them is a cut of this scan (or its start).
        while at < stop {
            let met =
                if at == start { Some(0) } else { scan.binary_search(&at).ok().map(|k| k + 1) };
            if let Some(from) = met {
                ends.extend_from_slice(&scan[from..]);
                at = ends.last().copied().unwrap_or(at).max(at);
                // A scan ends past its piece, or where the cut needs more data.
                if at < stop && next_end(cutter, data, is_last, at).is_none() {
                    return ends;
                }
                break;
            }
            match next_end(cutter, data, is_last, at) {
                Some(end) => at = end,
                None => return ends,
            }
            ends.push(at);
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdc::Parameters;
    use proptest::prelude::*;

    fn small() -> Cutter {
        Cutter::new(Parameters { min_bytes: 64, avg_bytes: 256, max_bytes: 1024 }).expect("valid")
    }

    /// Runs of noise, of one repeated byte, and of an arithmetic sequence.
    fn mixed() -> impl Strategy<Value = Vec<u8>> {
        let run = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..4000),
            (any::<u8>(), 0usize..5000).prop_map(|(b, n)| vec![b; n]),
            (any::<u16>(), 1usize..2000).prop_map(|(s, n)| {
                (0..n).map(|i| ((i as u64 * u64::from(s)) >> 3) as u8).collect()
            }),
        ];
        proptest::collection::vec(run, 0..12).prop_map(|runs| runs.concat())
    }

    proptest! {
        #[test]
        fn parallel_and_sequential_cuts_are_equal(data in mixed(), pieces in 1usize..9, is_last: bool) {
            let cutter = small();
            prop_assert_eq!(
                cut_parallel(&cutter, &data, is_last, pieces),
                cutter.cut(&data, is_last)
            );
        }
    }

    #[test]
    fn cuts_are_equal_for_every_boundary_length() {
        let cutter = small();
        let noise: Vec<u8> = (0..20_000u64).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        for len in [0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 8191, 8192, 19_999, 20_000] {
            for data in [&vec![0u8; len][..], &noise[..len]] {
                for is_last in [false, true] {
                    for pieces in [1, 2, 3, 7] {
                        assert_eq!(
                            cut_parallel(&cutter, data, is_last, pieces),
                            cutter.cut(data, is_last),
                            "len {len} pieces {pieces} last {is_last}"
                        );
                    }
                }
            }
        }
    }
}
