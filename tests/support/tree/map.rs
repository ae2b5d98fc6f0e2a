//! Data ranges and holes of files.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Ranges of a file, ascending, not adjacent.
pub(super) type Ranges = Vec<Range<u64>>;

/// Returns the ranges of a file that are not holes, according to its file system.
pub(super) fn data_ranges(file: &File, size: u64) -> io::Result<Ranges> {
    let mut ranges = Ranges::new();
    let mut from = 0;
    while from < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
            // Only a hole up to the end.
            Err(Errno::NXIO) => break,
            start => start?,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        add(&mut ranges, start..end.min(size));
        from = end;
    }
    Ok(ranges)
}

/// Returns true if these data ranges of a file leave at least one hole.
pub(super) fn has_hole(ranges: &[Range<u64>], size: u64) -> bool {
    size > 0 && ranges.first() != Some(&(0..size))
}

/// Returns everything in `a`, in `b` or in both.
pub(super) fn union(a: &[Range<u64>], b: &[Range<u64>]) -> Ranges {
    let mut all = [a, b].concat();
    all.sort_by_key(|range| range.start);
    let mut union = Ranges::new();
    for range in all {
        add(&mut union, range);
    }
    union
}

/// Returns the numbers of the blocks of the given size that the ranges touch.
pub(super) fn touched_blocks(ranges: &[Range<u64>], block: u64) -> Ranges {
    let mut blocks = Ranges::new();
    for range in ranges {
        add(&mut blocks, range.start / block..range.end.div_ceil(block));
    }
    blocks
}

/// Returns the offset of the first difference between two lists of ranges, if any.
pub(super) fn first_disagreement(a: &[Range<u64>], b: &[Range<u64>]) -> Option<u64> {
    let edges = |ranges: &[Range<u64>]| -> Vec<u64> {
        ranges.iter().flat_map(|range| [range.start, range.end]).collect()
    };
    let (a, b) = (edges(a), edges(b));
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    a.get(same).into_iter().chain(b.get(same)).min().copied()
}

/// Appends a range that does not start before the last one.
fn add(ranges: &mut Ranges, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
}
