//! Creates a git pack of any size and its index, as before or after a repacking.
//!
//! Two nights with the same seed share most entries, in git's order. New objects come first, then
//! the old ones, most of them in the same runs, each base before its deltas. Entry heads, distances
//! and checksums are right. Bodies are random bytes, which nothing decodes. The caller must append
//! the three SHA-1 sums at the ends.

use clap::Parser;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a pack and its index without the sums at their ends.
#[derive(Parser)]
struct Arguments {
    /// Directory for `pack` and `idx`; it must exist
    directory: PathBuf,
    /// Approximate size of the pack in bytes
    #[arg(long)]
    bytes: u64,
    /// Objects in the first night
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    objects: u32,
    /// Write the state after the repacking
    #[arg(long)]
    repacked: bool,
    /// New objects of the repacking, in thousandths of the old ones
    #[arg(long, default_value_t = 20)]
    new: u32,
    /// Objects that the repacking drops, in thousandths
    #[arg(long, default_value_t = 5)]
    dropped: u64,
    /// Mean length of the runs of objects that keep their order
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    run: u64,
    /// Runs that move elsewhere, in thousandths
    #[arg(long, default_value_t = 250)]
    moved: u64,
    /// Seed of all random values
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Maximum bytes of an entry, without its body.
const HEAD_BYTES: u64 = 20;
/// Maximum distance of a base in the order of objects.
const BASE_DISTANCE: u64 = 100;
/// Objects that are not deltas, in thousandths.
const WHOLE: u64 = 350;
const BLOB: u8 = 3;
const OFS_DELTA: u8 = 6;

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let objects = Objects::new(&arguments);
    let order = match arguments.repacked {
        true => objects.repacked(&arguments),
        false => (0..arguments.objects).collect(),
    };
    let order = objects.bases_first(order);
    let rows = objects.write_pack(&order, &arguments.directory.join("pack"))?;
    write_index(rows, &arguments.directory.join("idx"))
}

/// Returns a pseudorandom number that is the same every time.
fn mix(seed: u64, n: u64) -> u64 {
    let mut n = n.wrapping_add(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// Properties drawn at random for an object.
#[derive(Clone, Copy)]
enum Draw {
    IsWhole = 1,
    Distance,
    Len,
    Body,
    IsDropped,
    Run,
    IsMoved,
    Target,
}

/// Properties of each object, by its number.
struct Objects {
    seed: u64,
    body_mean: f64,
    /// First number of the objects that the repacking adds.
    old: u32,
    count: u32,
    /// Dropped old objects, in thousandths.
    dropped: u64,
}

/// Data of an entry for its row in the index.
struct Row {
    /// First bytes of the id; the others are derived from them.
    id: u64,
    checksum: u32,
    at: u64,
}

impl Objects {
    fn new(arguments: &Arguments) -> Objects {
        let old = arguments.objects;
        let new = (u64::from(old) * u64::from(arguments.new) / 1000) as u32;
        Objects {
            seed: arguments.seed,
            body_mean: (arguments.bytes as f64 / f64::from(old) - 4.0).max(1.0),
            old,
            count: if arguments.repacked { old + new } else { old },
            dropped: if arguments.repacked { arguments.dropped } else { 0 },
        }
    }

    fn draw(&self, what: Draw, n: u32) -> u64 {
        mix(self.seed * 16 + what as u64, u64::from(n))
    }

    fn is_dropped(&self, n: u32) -> bool {
        n < self.old && self.draw(Draw::IsDropped, n) % 1000 < self.dropped
    }

    /// Returns the base of a delta. An object whose base was dropped is no longer a delta.
    fn base(&self, n: u32) -> Option<u32> {
        let is_whole = self.draw(Draw::IsWhole, n) % 1000 < WHOLE;
        let distance = 1 + (self.draw(Draw::Distance, n) % BASE_DISTANCE) as u32;
        n.checked_sub(distance).filter(|base| !is_whole && !self.is_dropped(*base))
    }

    /// Returns the length of a body in bytes: many are short, few are long.
    fn body_len(&self, n: u32) -> usize {
        let part = (self.draw(Draw::Len, n) >> 11) as f64 / (1u64 << 53) as f64;
        8 + (-self.body_mean * (1.0 - part).ln()) as usize
    }

    /// Returns the order after the repacking: half of the new objects, then runs of the others,
    /// with moved runs at random places.
    fn repacked(&self, arguments: &Arguments) -> Vec<u32> {
        let first = self.old + (self.count - self.old) / 2;
        let mut runs: Vec<(u32, std::ops::Range<u32>)> = Vec::new();
        let mut start = 0;
        while start < self.old {
            let len = 1 + self.draw(Draw::Run, start) % (2 * arguments.run);
            let end = u64::from(self.old).min(u64::from(start) + len) as u32;
            let is_moved = self.draw(Draw::IsMoved, start) % 1000 < arguments.moved;
            let target = (self.draw(Draw::Target, start) % u64::from(self.old)) as u32;
            runs.push((if is_moved { target } else { start }, start..end));
            start = end;
        }
        for n in first..self.count {
            runs.push(((self.draw(Draw::Target, n) % u64::from(self.old)) as u32, n..n + 1));
        }
        runs.sort_unstable_by_key(|(target, run)| (*target, run.start));
        let rest = runs.into_iter().flat_map(|(_, run)| run);
        (self.old..first).chain(rest).filter(|n| !self.is_dropped(*n)).collect()
    }

    /// Returns this order with bases before their deltas, as in git.
    fn bases_first(&self, order: Vec<u32>) -> Vec<u32> {
        let mut is_there = vec![false; self.count as usize];
        let mut sorted = Vec::with_capacity(order.len());
        let mut chain = Vec::new();
        for n in order {
            let mut next = Some(n);
            while let Some(object) = next.filter(|object| !is_there[*object as usize]) {
                chain.push(object);
                next = self.base(object);
            }
            while let Some(object) = chain.pop() {
                is_there[object as usize] = true;
                sorted.push(object);
            }
        }
        sorted
    }

    fn write_pack(&self, order: &[u32], path: &Path) -> io::Result<Vec<Row>> {
        let mut pack = BufWriter::with_capacity(1 << 20, File::create(path)?);
        pack.write_all(b"PACK\0\0\0\x02")?;
        pack.write_all(&(order.len() as u32).to_be_bytes())?;
        let mut at = 12;
        let mut places = vec![0u64; self.count as usize];
        let mut rows = Vec::with_capacity(order.len());
        let mut entry = Vec::new();
        for &n in order {
            entry.clear();
            let base = self.base(n);
            places[n as usize] = at;
            self.entry(n, base.map(|base| at - places[base as usize]), &mut entry);
            pack.write_all(&entry)?;
            rows.push(Row { id: mix(self.seed, u64::from(n)), checksum: crc32(&entry), at });
            at += entry.len() as u64;
        }
        pack.flush()?;
        Ok(rows)
    }

    fn entry(&self, n: u32, distance: Option<u64>, entry: &mut Vec<u8>) {
        let len = self.body_len(n);
        let kind = if distance.is_some() { OFS_DELTA } else { BLOB };
        let mut rest = len as u64 * 3; // as it were when inflated
        entry.push((kind << 4) | (rest & 15) as u8);
        rest >>= 4;
        while rest > 0 {
            *entry.last_mut().expect("one") |= 0x80;
            entry.push((rest & 0x7F) as u8);
            rest >>= 7;
        }
        entry.extend(distance.map(distance_bytes).unwrap_or_default());
        // An object has different bodies with and without a delta.
        let mut state = self.draw(Draw::Body, n) ^ u64::from(kind);
        let end = entry.len() + len;
        while entry.len() < end {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            entry.extend_from_slice(&mix(0, state).to_le_bytes());
        }
        entry.truncate(end);
        debug_assert!(entry.len() as u64 <= len as u64 + HEAD_BYTES);
    }
}

/// Returns the distance of a delta's base in git's encoding: each byte except the last counts one
/// more.
fn distance_bytes(mut distance: u64) -> Vec<u8> {
    let mut bytes = vec![(distance & 0x7F) as u8];
    distance >>= 7;
    while distance > 0 {
        distance -= 1;
        bytes.push(0x80 | (distance & 0x7F) as u8);
        distance >>= 7;
    }
    bytes.reverse();
    bytes
}

fn write_index(mut rows: Vec<Row>, path: &Path) -> io::Result<()> {
    rows.sort_unstable_by_key(|row| row.id);
    let mut index = BufWriter::with_capacity(1 << 20, File::create(path)?);
    index.write_all(&[0xFF, b't', b'O', b'c', 0, 0, 0, 2])?;
    for byte in 0..=255 {
        let upto = rows.partition_point(|row| row.id >> 56 <= byte) as u32;
        index.write_all(&upto.to_be_bytes())?;
    }
    for row in &rows {
        index.write_all(&row.id.to_be_bytes())?;
        index.write_all(&mix(1, row.id).to_be_bytes())?;
        index.write_all(&(mix(2, row.id) as u32).to_be_bytes())?;
    }
    for row in &rows {
        index.write_all(&row.checksum.to_be_bytes())?;
    }
    let is_far = |row: &&Row| row.at >> 31 > 0;
    let mut far = 0;
    for row in &rows {
        let place = if is_far(&row) { far | 1 << 31 } else { row.at as u32 };
        far += u32::from(is_far(&row));
        index.write_all(&place.to_be_bytes())?;
    }
    for row in rows.iter().filter(is_far) {
        index.write_all(&row.at.to_be_bytes())?;
    }
    index.flush()
}

/// Effect of eight bytes on the checksum, by the number of bytes after each.
const CRC: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut n = 0;
    while n < 8 * 256 {
        let (table, byte) = (n / 256, n % 256);
        let mut crc = if table == 0 { byte as u32 } else { tables[table - 1][byte] };
        let mut bit = 0;
        while table == 0 && bit < 8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 * (crc & 1));
            bit += 1;
        }
        if table > 0 {
            crc = (crc >> 8) ^ tables[0][(crc & 0xFF) as usize];
        }
        tables[table][byte] = crc;
        n += 1;
    }
    tables
};

/// Returns the CRC-32 of zlib.
fn crc32(bytes: &[u8]) -> u32 {
    let (eights, rest) = bytes.as_chunks::<8>();
    let mut crc = u32::MAX;
    for eight in eights {
        let word = u64::from_le_bytes(*eight) ^ u64::from(crc);
        crc = (0..8).fold(0, |sum, n| sum ^ CRC[7 - n][((word >> (8 * n)) & 0xFF) as usize]);
    }
    for byte in rest {
        crc = (crc >> 8) ^ CRC[0][((crc ^ u32::from(*byte)) & 0xFF) as usize];
    }
    !crc
}
