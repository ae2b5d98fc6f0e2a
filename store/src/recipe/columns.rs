//! Recipe chunks in columns, for files of many small slices of few chunks.
//!
//! Each chunk id is stored once. The rest of an extent is three small numbers, similar to those of
//! its neighbours. Each kind of number has its own column, so that zstd finds the similarities.
//! About two bytes per extent remain.

use super::Extent;
use crate::counting_sort::by_number;
use crate::id::ChunkId;
use crate::limits;
use minicbor::data::Type;
use minicbor::decode::Error;
use minicbor::{Decoder, Encoder};
use std::collections::HashMap;

/// Chunk number that marks a hole.
const HOLE: u32 = 0;

/// Appends the array of ids, chunk numbers, offsets and lengths.
///
/// Offsets and lengths are in the order of chunk numbers. In the file, slices of new and old chunks
/// alternate, and their lengths are unrelated.
pub(super) fn encode(extents: &[Extent], out: &mut Encoder<&mut Vec<u8>>) {
    let (ids, numbers) = number_chunks(extents);
    let (mut which, mut offsets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    numbers.iter().for_each(|number| put_varint(&mut which, u64::from(*number)));
    let mut last = Last::default();
    for place in by_chunk(&numbers, ids.len() / ChunkId::LEN) {
        let extent = &extents[place as usize];
        if let Extent::Slice { offset, len, .. } = *extent {
            let step = i64::from(offset) - last.end_in(numbers[place as usize]);
            put_varint(&mut offsets, zigzag(step));
            last.end = i64::from(offset) + len as i64;
        }
        put_varint(&mut lengths, extent.len());
    }
    let columns = [ids, which, offsets, lengths];
    let written = out
        .array(columns.len() as u64)
        .and_then(|out| columns.iter().try_for_each(|column| out.bytes(column).map(drop)));
    written.expect("writing to memory cannot fail");
}

/// Returns true if `input` starts with an array of columns.
pub(super) fn are_next(input: &Decoder<'_>) -> bool {
    let mut ahead = input.clone();
    ahead.array().is_ok() && ahead.datatype().is_ok_and(|found| found == Type::Bytes)
}

pub(super) fn decode(input: &mut Decoder<'_>) -> Result<Vec<Extent>, Error> {
    if input.array()? != Some(4) {
        return Err(Error::message("a recipe chunk does not have four columns"));
    }
    let (ids, odd) = input.bytes()?.as_chunks::<{ ChunkId::LEN }>();
    if !odd.is_empty() || ids.len() > limits::RECIPE_COLUMNS_MAX {
        return Err(Error::message("the column of chunk ids has a wrong length"));
    }
    let numbers = read_numbers(input.bytes()?, ids.len())?;
    let (mut offsets, mut lengths) = (Varints(input.bytes()?), Varints(input.bytes()?));
    let mut extents = vec![Extent::Hole { len: 0 }; numbers.len()];
    let mut last = Last::default();
    for place in by_chunk(&numbers, ids.len()) {
        let number = numbers[place as usize];
        extents[place as usize] = match number {
            HOLE => hole(lengths.take()?)?,
            _ => {
                let step = unzigzag(offsets.take()?);
                let begin = last.end_in(number).checked_add(step);
                let (offset, len) = checked_slice(begin, lengths.take()?)?;
                last.end = i64::from(offset) + len as i64;
                let chunk = ChunkId::from_bytes(ids[number as usize - 1]);
                Extent::Slice { chunk, offset, len }
            }
        };
    }
    if !offsets.0.is_empty() || !lengths.0.is_empty() {
        return Err(Error::message("a column is longer than the others"));
    }
    Ok(extents)
}

/// Chunk number and end of the previous slice.
#[derive(Default)]
struct Last {
    number: u32,
    end: i64,
}

impl Last {
    /// Returns the end of the previous slice if it was of this chunk; else 0.
    fn end_in(&mut self, number: u32) -> i64 {
        if self.number != number {
            *self = Last { number, end: 0 };
        }
        self.end
    }
}

/// Returns the ids of all chunks, concatenated in order of appearance. For each extent, also
/// returns the number of its chunk, counted from 1.
fn number_chunks(extents: &[Extent]) -> (Vec<u8>, Vec<u32>) {
    let (mut ids, mut known) = (Vec::new(), HashMap::new());
    let number = |extent: &Extent| match extent {
        Extent::Hole { .. } => HOLE,
        Extent::Slice { chunk, .. } => *known.entry(*chunk).or_insert_with(|| {
            ids.extend_from_slice(chunk.as_bytes());
            (ids.len() / ChunkId::LEN) as u32
        }),
    };
    let numbers = extents.iter().map(number).collect();
    (ids, numbers)
}

fn read_numbers(column: &[u8], chunks: usize) -> Result<Vec<u32>, Error> {
    let most = limits::RECIPE_COLUMNS_MAX;
    let mut numbers = Vec::with_capacity(column.len().min(most));
    let mut column = Varints(column);
    while !column.0.is_empty() {
        let number = column.take()?;
        if number > chunks as u64 || numbers.len() == most {
            return Err(Error::message(
                "a chunk number is too large, or there are too many extents",
            ));
        }
        numbers.push(number as u32);
    }
    Ok(numbers)
}

/// Returns the positions of all extents: holes first, then by chunk number.
fn by_chunk(numbers: &[u32], chunks: usize) -> Vec<u32> {
    by_number(numbers.iter().copied(), chunks + 1)
}

fn hole(len: u64) -> Result<Extent, Error> {
    if len == 0 { Err(Error::message("an extent is empty")) } else { Ok(Extent::Hole { len }) }
}

/// Checks offset and length of a slice against the maximum chunk size.
fn checked_slice(begin: Option<i64>, len: u64) -> Result<(u32, u64), Error> {
    let offset = begin.and_then(|begin| u32::try_from(begin).ok());
    let end = offset.and_then(|offset| u64::from(offset).checked_add(len));
    match (offset, end) {
        (Some(offset), Some(end)) if len > 0 && end <= limits::CHUNK_BYTES_MAX as u64 => {
            Ok((offset, len))
        }
        _ => Err(Error::message("a slice is empty or exceeds the maximum chunk size")),
    }
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The rest of a column.
struct Varints<'a>(&'a [u8]);

impl Varints<'_> {
    fn take(&mut self) -> Result<u64, Error> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let Some((byte, rest)) = self.0.split_first() else {
                return Err(Error::message("a column ends too early"));
            };
            self.0 = rest;
            let bits = u64::from(byte & 0x7F);
            number |= bits << shift;
            if *byte < 0x80 && number >> shift == bits {
                return Ok(number);
            }
        }
        Err(Error::message("a number is too long"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(extents: &[Extent]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(extents, &mut Encoder::new(&mut bytes));
        bytes
    }

    fn columns(columns: [&[u8]; 4]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Encoder::new(&mut bytes);
        out.array(4).expect("grows");
        for column in columns {
            out.bytes(column).expect("grows");
        }
        bytes
    }

    #[test]
    fn the_encoding_matches_the_documented_example() {
        let [old, new] = [[0x0A; 32], [0x0B; 32]];
        let slice = |id, offset, len| Extent::Slice { chunk: ChunkId::from_bytes(id), offset, len };
        let extents = [
            slice(new, 0, 2),
            slice(old, 1000, 300),
            Extent::Hole { len: 4096 },
            slice(new, 2, 2),
            slice(old, 1290, 5),
        ];
        let which = [1, 2, 0, 1, 2];
        // From 0 to 0, from 2 to 2; from 0 to 1000, back from 1300 to 1290.
        let offsets = [0, 0, 0xD0, 0x0F, 19];
        let lengths = [0x80, 0x20, 2, 2, 0xAC, 0x02, 5];
        let bytes = columns([&[new, old].concat(), &which, &offsets, &lengths]);
        assert_eq!(encoded(&extents), bytes);
        assert_eq!(decode(&mut Decoder::new(&bytes)).expect("reads"), extents);
        assert!(are_next(&Decoder::new(&bytes)));
    }

    #[test]
    fn numbers_of_all_lengths_are_read_as_written() {
        let numbers = (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit]).chain([u64::MAX]);
        for number in numbers {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number);
            let mut column = Varints(&bytes);
            assert_eq!(column.take().expect("reads"), number);
            assert!(column.0.is_empty());
            assert_eq!(zigzag(unzigzag(number)), number);
        }
        for bytes in [
            &[][..],
            &[0x80],
            &[0xFF; 10],
            &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2],
        ] {
            assert!(Varints(bytes).take().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn impossible_columns_are_refused() {
        let ids = [7; 64];
        let fine: [&[u8]; 4] = [&ids, &[1, 2], &[0, 0], &[1, 1]];
        assert!(decode(&mut Decoder::new(&columns(fine))).is_ok());
        let longest = [0x80, 0x80, 0x80, 2];
        for (place, wrong) in [
            (0, &ids[..63]),
            (0, &ids[..32]),
            (1, &[1, 3]),
            (1, &[1]),
            (1, &[1, 2, 0]),
            (1, &[1, 0x82]),
            (2, &[0]),
            (2, &[0, 0, 0]),
            (2, &[1, 0]),
            (2, &longest),
            (3, &[1]),
            (3, &[1, 0]),
            (3, &[1, 1, 1]),
            (3, &[0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 1]),
        ] {
            let mut bad = fine;
            bad[place] = wrong;
            let read = decode(&mut Decoder::new(&columns(bad)));
            assert!(read.is_err(), "column {place}: {wrong:?}");
        }
        // A slice may end at the end of the largest chunk, but not one byte after it.
        for (len, is_fine) in [(&[0x80, 0x80, 0x80, 2][..], true), (&[0x81, 0x80, 0x80, 2], false)]
        {
            let bytes = columns([&ids[..32], &[1], &[0], len]);
            assert_eq!(decode(&mut Decoder::new(&bytes)).is_ok(), is_fine);
        }
    }

    #[test]
    fn too_many_extents_are_refused() {
        for (count, is_fine) in
            [(limits::RECIPE_COLUMNS_MAX, true), (limits::RECIPE_COLUMNS_MAX + 1, false)]
        {
            let bytes = columns([&[7; 32], &vec![1; count], &vec![0; count], &vec![1; count]]);
            assert_eq!(decode(&mut Decoder::new(&bytes)).is_ok(), is_fine, "{count}");
            let ids = vec![7; 32 * count];
            let bytes = columns([&ids, &[], &[], &[]]);
            assert_eq!(decode(&mut Decoder::new(&bytes)).is_ok(), is_fine, "{count} ids");
        }
    }

    #[test]
    fn the_largest_group_fits_a_chunk() {
        let extents: Vec<Extent> = (0..limits::RECIPE_COLUMNS_MAX)
            .map(|n| {
                let (chunk, most) = (ChunkId::of(&n.to_le_bytes()), limits::CHUNK_BYTES_MAX);
                Extent::Slice { chunk, offset: most as u32 / 2, len: most as u64 / 2 }
            })
            .collect();
        assert!(encoded(&extents).len() <= limits::CHUNK_BYTES_MAX);
    }
}
