//! Reads all rows of an index in the order of the chunk ids.
//!
//! One pass over a large index costs far less than a look-up of each chunk, because the ids are
//! hashes: each look-up reads another page.

use super::Index;
use crate::error::Result;
use crate::id::ChunkId;
use crate::segment::Row;
use rayon::prelude::*;
use std::collections::HashMap;

/// Adjacent shards that are read by one thread. Each thread has sums of its own.
const SHARDS_TOGETHER: usize = 32;

/// Count and sum of some rows, to compare them with other rows in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowSum {
    /// Number of rows.
    pub rows: u64,
    sum: u128,
}

impl RowSum {
    /// Returns the sum of these rows.
    pub fn of(rows: &[Row]) -> RowSum {
        let mut sum = RowSum::default();
        rows.iter().for_each(|row| sum.add(row));
        sum
    }

    /// Adds a row. The ids are hashes, so different rows have different sums unless made on purpose.
    fn add(&mut self, row: &Row) {
        let half = |at: usize| {
            u128::from_le_bytes(row.id.as_bytes()[at..at + 16].try_into().expect("16 of 32 bytes"))
        };
        let place = u128::from(row.offset)
            | u128::from(row.stored_len) << 32
            | u128::from(row.plain_len) << 64;
        let id =
            half(0).wrapping_add(half(16).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        self.rows += 1;
        self.sum = self.sum.wrapping_add(id.wrapping_mul(2 * place + 1));
    }

    fn join(&mut self, other: RowSum) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

impl Index {
    /// Calls `each` with the number of the segment and the row of every chunk whose id begins with
    /// `shard`, in the order of the ids.
    pub fn scan(&self, shard: u8, each: &mut dyn FnMut(i64, &Row)) -> Result<()> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, segment, at, stored_len, plain_len FROM chunks
                 WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
            )?;
            let mut rows = statement.query(shard_range(shard))?;
            while let Some(row) = rows.next()? {
                let id = ChunkId::from_bytes(row.get(0)?);
                let (offset, stored_len, plain_len) = (row.get(2)?, row.get(3)?, row.get(4)?);
                each(row.get(1)?, &Row { id, offset, stored_len, plain_len });
            }
            Ok(())
        })
    }

    /// Returns the sums of the rows of each segment, by the number of the segment, up to `last`.
    pub fn row_sums(&self, last: i64) -> Result<HashMap<i64, RowSum>> {
        let add = |mut sums: HashMap<i64, RowSum>, shard: u8| -> Result<_> {
            self.scan(shard, &mut |segment, row| {
                if segment <= last {
                    sums.entry(segment).or_default().add(row);
                }
            })?;
            Ok(sums)
        };
        let shards: Vec<u8> = (0..=255).collect();
        let parts: Vec<HashMap<i64, RowSum>> = shards
            .par_chunks(SHARDS_TOGETHER)
            .map(|shards| shards.iter().copied().try_fold(HashMap::new(), add))
            .collect::<Result<_>>()?;
        let mut sums = HashMap::new();
        for (segment, part) in parts.into_iter().flatten() {
            let sum: &mut RowSum = sums.entry(segment).or_default();
            sum.join(part);
        }
        Ok(sums)
    }
}

/// Returns the first and the last possible id that begins with `shard`.
fn shard_range(shard: u8) -> [[u8; 32]; 2] {
    let (mut from, mut to) = ([0; 32], [0xFF; 32]);
    (from[0], to[0]) = (shard, shard);
    [from, to]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_shows_every_difference_but_the_order() {
        let id = |n: u8| ChunkId::of(&[n]);
        let row = |n: u8| Row { id: id(n), offset: n.into(), stored_len: 9, plain_len: 10 };
        let rows: Vec<Row> = (0..20).map(row).collect();
        let sum = RowSum::of(&rows);
        let mut reversed = rows.clone();
        reversed.reverse();
        assert_eq!(RowSum::of(&reversed), sum);
        type Change = fn(&mut Vec<Row>);
        let changes: [Change; 7] = [
            |rows| rows[3].offset += 1,
            |rows| rows[3].stored_len += 1,
            |rows| rows[3].plain_len += 1,
            |rows| rows[3].id = ChunkId::of(&[77]),
            |rows| rows.truncate(19),
            |rows| rows.push(rows[0]),
            |rows| {
                let (left, right) = rows.split_at_mut(10);
                std::mem::swap(&mut left[0].offset, &mut right[0].offset);
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut rows = rows.clone();
            change(&mut rows);
            assert_ne!(RowSum::of(&rows), sum, "change {number}");
        }
    }
}
