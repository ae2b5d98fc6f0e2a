use super::*;
use crate::delta::tests::{Damaged, Failing, Gone, Memory, Rebuilt};
use proptest::collection::vec;
use proptest::prelude::*;

/// An object of a made-up pack. Bodies are not compressed, because nothing decompresses them.
#[derive(Debug, Clone)]
pub struct Object {
    pub id: u64,
    /// Distance to the delta base; 0 for a whole object, 1 for a base given by id.
    pub distance: u32,
    pub body: Vec<u8>,
}

fn number(mut n: u32, first: u8, first_bits: u32) -> Vec<u8> {
    let mut bytes = vec![first | (n & ((1 << first_bits) - 1)) as u8];
    n >>= first_bits;
    while n > 0 {
        *bytes.last_mut().expect("one") |= 0x80;
        bytes.push((n & 0x7F) as u8);
        n >>= 7;
    }
    bytes
}

/// Returns an id of `id_len` bytes. Ids are spread over all first bytes.
fn id(n: u64, id_len: usize) -> Vec<u8> {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes().repeat(4)[..id_len].to_vec()
}

/// Returns a pack of these objects and its index. With `far`, some offsets are in the table of
/// 8-byte offsets.
pub fn pack(objects: &[Object], id_len: usize, far: bool) -> (Vec<u8>, Vec<u8>) {
    let mut pack = [b"PACK\0\0\0\x02", &(objects.len() as u32).to_be_bytes()[..]].concat();
    let mut rows: Vec<(Vec<u8>, u32, u64)> = Vec::new();
    for object in objects {
        let at = pack.len() as u64;
        let kind = match object.distance {
            0 => 3,
            1 => 7,
            _ => 6,
        };
        pack.extend(number(object.body.len() as u32, kind << 4, 4));
        match object.distance {
            0 => {}
            1 => pack.extend(id(object.id + 1, id_len)),
            distance => pack.extend(number(distance, 0, 7)),
        }
        pack.extend(&object.body);
        let sum =
            pack[at as usize..].iter().fold(7u32, |sum, b| sum.rotate_left(5) ^ u32::from(*b));
        rows.push((id(object.id, id_len), sum, at));
    }
    rows.sort();
    let checksum = vec![pack.len() as u8; id_len];
    pack.extend(&checksum);
    let mut index = vec![0xFF, b't', b'O', b'c', 0, 0, 0, 2];
    for byte in 0..=255 {
        let upto = rows.iter().filter(|(id, ..)| id[0] <= byte).count() as u32;
        index.extend(upto.to_be_bytes());
    }
    rows.iter().for_each(|(id, ..)| index.extend(id));
    rows.iter().for_each(|(_, sum, _)| index.extend(sum.to_be_bytes()));
    let mut far_places = Vec::new();
    for (n, (.., at)) in rows.iter().enumerate() {
        if far && n % 3 == 0 {
            let row = 0x8000_0000 | (far_places.len() / 8) as u32;
            index.extend(row.to_be_bytes());
            far_places.extend(at.to_be_bytes());
        } else {
            index.extend((*at as u32).to_be_bytes());
        }
    }
    index.extend(far_places);
    index.extend(&checksum);
    index.extend(vec![9; id_len]);
    (pack, index)
}

/// A pack and its index.
type Pair = (Vec<u8>, Vec<u8>);

/// Rebuilds both files from the copies and literals.
fn rebuild(new: &Pair, references: &[Pair]) -> Result<(Rebuilt, Rebuilt), FormatError> {
    rebuild_within(Limits::default(), new, references, &[])
}

/// Same within these limits, with unreadable ranges in the references.
fn rebuild_within(
    limits: Limits,
    (pack, index): &Pair,
    references: &[Pair],
    holes: &[(usize, usize)],
) -> Result<(Rebuilt, Rebuilt), FormatError> {
    let memory = |bytes: &[u8]| Memory(bytes.to_vec());
    let damaged = |bytes: &[u8]| {
        let holes = holes.iter().map(|(at, len)| {
            let at = at % (bytes.len() + 1);
            at..bytes.len().min(at + len)
        });
        Damaged { reference: memory(bytes), holes: holes.collect(), reads: 0 }
    };
    let mut packs: Vec<Damaged> = references.iter().map(|(pack, _)| damaged(pack)).collect();
    let mut indexes: Vec<Damaged> = references.iter().map(|(_, index)| damaged(index)).collect();
    let whole = |references: &[Damaged]| -> Vec<Memory> {
        references.iter().map(|reference| reference.reference.clone()).collect()
    };
    let (mut of_pack, mut of_index) =
        (Rebuilt::from(&whole(&packs)), Rebuilt::from(&whole(&indexes)));
    let mut pairs: Vec<PackReference<'_>> = packs
        .iter_mut()
        .zip(&mut indexes)
        .map(|(pack, index)| PackReference { pack, index })
        .collect();
    let (mut new, mut new_index) = (memory(pack), memory(index));
    let done = compare_within(limits, &mut new, &mut new_index, &mut pairs, &mut of_pack);
    let mut of_bases: Vec<&mut dyn Reference> =
        indexes.iter_mut().map(|index| index as &mut dyn Reference).collect();
    let indexed = crate::delta::git_idx::compare(&mut new_index, &mut of_bases, &mut of_index);
    assert!(done.is_ok() || of_pack.bytes.is_empty(), "emitted before it was refused");
    assert!(indexed.is_ok() || of_index.bytes.is_empty(), "emitted before it was refused");
    match (done, indexed) {
        (Ok(()), Ok(())) => Ok((of_pack, of_index)),
        (Err(DeltaError::Format(error)), _) | (_, Err(DeltaError::Format(error))) => Err(error),
        (Err(DeltaError::Failed(error)), _) | (_, Err(DeltaError::Failed(error))) => match error {},
    }
}

fn body(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (seed.wrapping_mul(n * n + 77) >> 13) as u8).collect()
}

fn object(id: u64) -> Object {
    Object { id, distance: 0, body: body(id, 100 + id as usize % 90) }
}

#[test]
fn reordered_objects_are_found() {
    for id_len in [20, 32] {
        let old: Vec<Object> = (0..500).map(object).collect();
        let mut new: Vec<Object> = old.iter().rev().cloned().collect();
        new.insert(100, object(9999));
        let reference = pack(&old, id_len, false);
        let new = pack(&new, id_len, true);
        let (of_pack, of_index) =
            rebuild(&new, std::slice::from_ref(&reference)).expect("compares");
        assert_eq!((&of_pack.bytes, &of_index.bytes), (&new.0, &new.1));
        assert!(of_pack.literal_bytes < 12 + id_len + 200, "{}", of_pack.literal_bytes);
        let places = 500 * 12;
        assert!(of_index.literal_bytes < 1032 + places + 200, "{}", of_index.literal_bytes);
    }
}

/// A reference that records the offsets of reads.
struct Noted {
    reference: Memory,
    places: Vec<u64>,
}

impl Reference for Noted {
    fn len(&self) -> u64 {
        Reference::len(&self.reference)
    }

    fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
        self.places.push(offset);
        self.reference.common_prefix(offset, with)
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        self.places.push(offset);
        Reference::read(&mut self.reference, offset, buffer)
    }
}

#[test]
fn references_are_read_front_to_back_for_moved_entries() {
    let old: Vec<Object> = (0..500).map(object).collect();
    let runs: Vec<&[Object]> = old.chunks(10).collect();
    let new: Vec<Object> = (0..50).flat_map(|n| runs[n * 7 % 50].to_vec()).collect();
    let (reference, new) = (pack(&old, 20, false), pack(&new, 20, false));
    let (mut bytes, mut index) = (Memory(new.0.clone()), Memory(new.1));
    let mut of_pack = Noted { reference: Memory(reference.0.clone()), places: Vec::new() };
    let mut of_index = Memory(reference.1);
    let mut rebuilt = Rebuilt::from(&[Memory(reference.0)]);
    let mut references = [PackReference { pack: &mut of_pack, index: &mut of_index }];
    let done = compare(&mut bytes, &mut index, &mut references, &mut rebuilt);
    assert!(done.is_ok() && rebuilt.bytes == new.0);
    assert!(of_pack.places.is_sorted());
    assert!(of_pack.places.len() <= 50 && rebuilt.copies <= 50, "{}", of_pack.places.len());
}

#[test]
fn a_delta_with_a_moved_base_costs_only_its_header() {
    let delta = |id, distance| Object { id, distance, body: body(id, 300) };
    let old: Vec<Object> = (0..100).map(|id| delta(id, 1000 + id as u32)).collect();
    let new: Vec<Object> = (0..100).map(|id| delta(id, 90_000 + id as u32)).collect();
    let (reference, new) = (pack(&old, 20, false), pack(&new, 20, false));
    let (of_pack, _) = rebuild(&new, &[reference]).expect("compares");
    assert_eq!(of_pack.bytes, new.0);
    assert!(of_pack.literal_bytes <= 100 * 5 + 32, "{}", of_pack.literal_bytes);
}

#[test]
fn an_entry_longer_than_a_batch_is_found() {
    let long = Object { id: 5, distance: 0, body: body(5, 9 << 20) };
    let moved = Object { distance: 500, ..long.clone() };
    for entry in [long.clone(), moved] {
        let reference = pack(&[object(1), long.clone(), object(2)], 20, false);
        let new = pack(&[object(2), object(7), entry, object(1)], 20, false);
        let (of_pack, _) = rebuild(&new, &[reference]).expect("compares");
        assert!(of_pack.bytes == new.0);
        assert!(of_pack.literal_bytes < 500, "{}", of_pack.literal_bytes);
    }
}

#[test]
fn malformed_packs_and_indexes_are_refused() {
    let (pack, index) = pack(&[object(1), object(2)], 20, false);
    let try_with = |pack: &[u8], index: &[u8]| {
        rebuild(&(pack.to_vec(), index.to_vec()), &[]).expect_err("refused")
    };
    let changed = |bytes: &[u8], at: usize, byte: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(try_with(&changed(&pack, 0, b'p'), &index), FormatError::Magic);
    assert_eq!(try_with(&changed(&pack, 7, 3), &index), FormatError::Version);
    assert_eq!(try_with(&changed(&pack, 11, 3), &index), FormatError::IndexDisagrees);
    assert_eq!(try_with(&pack[..pack.len() - 1], &index), FormatError::IndexDisagrees);
    assert_eq!(try_with(&[&pack[..], b"more"].concat(), &index), FormatError::IndexDisagrees);
    assert_eq!(try_with(&pack[..9], &index), FormatError::Truncated);
    assert_eq!(try_with(&pack, &changed(&index, 1, 0)), FormatError::Magic);
    assert_eq!(try_with(&pack, &changed(&index, 7, 3)), FormatError::Version);
    assert_eq!(try_with(&pack, &index[..index.len() - 1]), FormatError::Truncated);
    assert_eq!(try_with(&pack, &[&index[..], b"x"].concat()), FormatError::Trailing);
    assert_eq!(try_with(&pack, &changed(&index, 8, 9)), FormatError::IndexDisorder);
    let place = index.len() - 44;
    assert_eq!(try_with(&pack, &changed(&index, place, 1)), FormatError::IndexDisorder);
    assert_eq!(try_with(&pack, &changed(&index, place, 0x80)), FormatError::IndexDisorder);
}

/// Rows in another order would need random reads, one by one.
#[test]
fn unsorted_large_offsets_are_refused() {
    let objects: Vec<Object> = (0..3000).map(object).collect();
    let (pack, mut index) = pack(&objects, 20, true);
    let far_at = index.len() - 40 - 8 * 1000;
    let places: Vec<u8> = index[far_at..far_at + 8000].rchunks(8).flatten().copied().collect();
    index[far_at..far_at + 8000].copy_from_slice(&places);
    let cells = index[far_at - 4 * 3000..far_at].as_chunks_mut().0.iter_mut();
    for cell in cells.filter(|cell| cell[0] & 0x80 != 0) {
        let row = u32::from_be_bytes(*cell) & 0x7FFF_FFFF;
        *cell = (0x8000_0000 | (999 - row)).to_be_bytes();
    }
    assert_eq!(rebuild(&(pack, index), &[]).err(), Some(FormatError::IndexDisorder));
}

/// An index that lists one offset, or nearby offsets, for many ids.
fn crowded(pack: &[u8], ids: u64, places: u64) -> Pair {
    let mut pack = pack.to_vec();
    pack[8..12].copy_from_slice(&(ids as u32).to_be_bytes());
    let objects: Vec<Object> =
        (0..ids).map(|id| Object { id, distance: 0, body: Vec::new() }).collect();
    let (_, mut index) = self::pack(&objects, 20, false);
    let at = index.len() - 40 - 4 * ids as usize;
    for row in 0..ids as usize {
        let place = 12 + (row as u64 % places) as u32;
        index[at + 4 * row..][..4].copy_from_slice(&place.to_be_bytes());
    }
    let checksum = index.len() - 40;
    index[checksum..checksum + 20].copy_from_slice(&pack[pack.len() - 20..]);
    (pack, index)
}

#[test]
fn many_ids_at_one_offset_do_not_cause_extra_reads() {
    let bytes = [b"PACK\0\0\0\x02\0\0\0\0", &[0x30; 200_000][..], &[7; 20]].concat();
    let ids = 20_000;
    let (new, reference) = (crowded(&bytes, ids, 1), crowded(&bytes, ids, 1000));
    let mut references = [(&reference.0, &reference.1)].map(|(pack, index)| {
        let whole =
            |bytes: &[u8]| Damaged { reference: Memory(bytes.to_vec()), holes: vec![], reads: 0 };
        (whole(pack), whole(index))
    });
    let [(pack, index)] = &mut references;
    let mut rebuilt = Rebuilt::from(std::slice::from_ref(&pack.reference));
    let done = compare(
        &mut Memory(new.0.clone()),
        &mut Memory(new.1.clone()),
        &mut [PackReference { pack: &mut *pack, index: &mut *index }],
        &mut rebuilt,
    );
    assert!(done.is_ok() && rebuilt.bytes == new.0);
    assert!(pack.reads <= 3 * usize::from(COUNTERPARTS_MAX), "{}", pack.reads);
    // More entries than bytes are rejected.
    let limits = Limits { bin_bytes: 1000, ..Limits::default() };
    assert_eq!(rebuild_within(limits, &new, &[], &[]).err(), Some(FormatError::IndexDisorder));
}

/// An index that changes after a number of reads.
struct Replaced {
    before: Vec<u8>,
    after: Vec<u8>,
    reads_left: usize,
}

impl Source<std::convert::Infallible> for Replaced {
    fn len(&self) -> u64 {
        self.before.len() as u64
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), std::convert::Infallible> {
        let now = if self.reads_left > 0 { &self.before } else { &self.after };
        self.reads_left = self.reads_left.saturating_sub(1);
        buffer.copy_from_slice(&now[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

#[test]
fn an_index_replaced_during_a_read_never_gives_wrong_bytes() {
    let limits = Limits { window_entries: 10, batch_bytes: 600, bin_bytes: 256 };
    let objects: Vec<Object> = (0..60).map(object).collect();
    let reversed: Vec<Object> = objects.iter().rev().cloned().collect();
    let (before, after) = (pack(&objects, 20, false), pack(&reversed, 20, false));
    for reads_left in 0..4000 {
        let mut index = Replaced { before: before.1.clone(), after: after.1.clone(), reads_left };
        let (mut of_pack, mut of_index) = (Memory(after.0.clone()), Memory(after.1.clone()));
        let mut rebuilt = Rebuilt::from(std::slice::from_ref(&of_pack));
        let mut references = [PackReference { pack: &mut of_pack, index: &mut of_index }];
        let mut new = Memory(before.0.clone());
        let done = compare_within(limits, &mut new, &mut index, &mut references, &mut rebuilt);
        assert!(done.is_err() || rebuilt.bytes == before.0, "{reads_left}");
        if index.reads_left > 0 {
            return;
        }
    }
    panic!("it is read more often than that");
}

#[test]
fn an_unreadable_source_is_an_error() {
    let limits = Limits { window_entries: 10, batch_bytes: 600, bin_bytes: 256 };
    let objects: Vec<Object> = (0..40).map(object).collect();
    let (bytes, index) = pack(&objects, 20, true);
    let source = |bytes: &[u8], reads_left| Failing { bytes: bytes.to_vec(), reads_left };
    let compare_pack = |of_pack, of_index| {
        let mut rebuilt = Rebuilt::default();
        let (mut pack, mut index) = (source(&bytes, of_pack), source(&index, of_index));
        let done = compare_within(limits, &mut pack, &mut index, &mut [], &mut rebuilt);
        match done {
            Ok(()) => assert!(rebuilt.bytes == bytes),
            Err(error) => assert!(matches!(error, DeltaError::Failed(Gone))),
        }
        rebuilt.bytes.len() == bytes.len()
    };
    let compare_index = |reads| {
        let mut rebuilt = Rebuilt::default();
        let done =
            crate::delta::git_idx::compare(&mut source(&index, reads), &mut [], &mut rebuilt);
        assert!(done.is_ok() || matches!(done, Err(DeltaError::Failed(Gone))));
        done.is_ok()
    };
    assert!((0..).find(|reads| compare_pack(*reads, usize::MAX)).is_some_and(|n| n > 5));
    assert!((0..).find(|reads| compare_pack(usize::MAX, *reads)).is_some_and(|n| n > 500));
    assert!((0..).find(|reads| compare_index(*reads)).is_some_and(|n| n > 50));
}

fn limits() -> impl Strategy<Value = Limits> {
    let small = (1..50u64, 43..3000u64, 64..4000u64).prop_map(
        |(window_entries, batch_bytes, bin_bytes)| Limits {
            window_entries,
            batch_bytes,
            bin_bytes,
        },
    );
    prop_oneof![Just(Limits::default()), small]
}

fn holes() -> impl Strategy<Value = Vec<(usize, usize)>> {
    vec((any::<usize>(), prop_oneof![0..50usize, 0..3000usize]), 0..4)
}

fn objects() -> impl Strategy<Value = Vec<Object>> {
    let object = (0..60u64, 0..3u64, prop_oneof![Just(0), Just(1), 2..100_000u32], 0..400usize);
    vec(object, 0..60).prop_map(|objects| {
        let mut objects: Vec<Object> = objects
            .into_iter()
            .map(|(id, variant, distance, len)| Object {
                id,
                distance,
                body: body(id * 3 + variant, len),
            })
            .collect();
        let mut seen = std::collections::HashSet::new();
        objects.retain(|object| seen.insert(object.id));
        objects
    })
}

fn edits() -> impl Strategy<Value = Vec<(usize, u8)>> {
    vec((any::<usize>(), any::<u8>()), 0..4)
}

fn edited(mut bytes: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    for (at, byte) in edits {
        let len = bytes.len().max(1);
        if let Some(here) = bytes.get_mut(at % len) {
            *here = *byte;
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn packs_are_rebuilt_from_any_references(
        new in objects(),
        references in vec((objects(), edits(), edits()), 0..4),
        id_len in prop_oneof![Just(20usize), Just(32)],
        far: bool,
        holes in holes(),
        limits in limits(),
    ) {
        let new = pack(&new, id_len, far);
        let references: Vec<_> = references
            .into_iter()
            .map(|(objects, of_pack, of_index)| {
                let (pack, index) = pack(&objects, id_len, !far);
                (edited(pack, &of_pack), edited(index, &of_index))
            })
            .collect();
        let (of_pack, of_index) = rebuild_within(limits, &new, &references, &holes).expect("a sound pack");
        prop_assert!(of_pack.bytes == new.0);
        prop_assert!(of_index.bytes == new.1);
    }

    #[test]
    fn any_bytes_are_rebuilt_or_refused(
        objects in objects(),
        reference in objects(),
        of_pack in edits(),
        of_index in edits(),
        cut in 0..2000usize,
        limits in limits(),
    ) {
        let (pack_bytes, index) = pack(&objects, 20, true);
        let mut new = (edited(pack_bytes, &of_pack), edited(index, &of_index));
        if cut < new.1.len() / 2 {
            new.1.truncate(new.1.len() - cut);
        }
        let reference = pack(&reference, 20, false);
        if let Ok((of_pack, of_index)) = rebuild_within(limits, &new, &[reference], &[]) {
            prop_assert!(of_pack.bytes == new.0);
            prop_assert!(of_index.bytes == new.1);
        }
    }
}
