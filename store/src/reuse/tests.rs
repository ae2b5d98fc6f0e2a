//! Files that reuse slices of other files, in a store in memory.

use super::*;
use crate::arbitrary::cases;
use crate::backend::{Memory, write_all};
use crate::chunks::Chunks;
use crate::config::{self, Config};
use crate::entry::EntryKind;
use crate::id::ChunkId;
use crate::observe::Silent;
use crate::recipe::{Extent, Extents, RecipeWriter};
use crate::segment::SegmentKind as ChunkKind;
use crate::store::Purpose;
use chunker::Parameters;
use chunker::delta::Sink;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::sync::Arc;
use tempfile::TempDir;

/// A store with small chunks.
struct Fixture {
    store: Store,
    memory: Memory,
    _index: TempDir,
}

/// A file in the store and the chunks of its slices.
struct Stored {
    entry: Entry,
    bytes: Vec<u8>,
    chunk_lens: HashMap<ChunkId, u64>,
}

impl Fixture {
    fn new() -> Fixture {
        let (memory, index) = (Memory::default(), tempfile::tempdir().expect("a directory"));
        let sizes = Parameters { min_bytes: 64, avg_bytes: 256, max_bytes: 1024 };
        let config = Config::new([7; 16], sizes, 1);
        write_all(&memory, config::FILE, &config.to_bytes()).expect("writes");
        let backend = Arc::new(memory.clone());
        let store =
            Store::open_backend(backend, index.path(), Purpose::Write, Arc::new(Silent::default()));
        Fixture { store: store.expect("opens"), memory, _index: index }
    }

    /// Stores a file of slices of its own chunks: chunk number, offset, length.
    fn file(&self, seed: u64, slices: &[(usize, usize, usize)]) -> Stored {
        let packer = Packer::new(&self.store, false);
        let chunks: Vec<Vec<u8>> =
            (0..20).map(|n| noise(seed * 100 + n, 100 + 40 * n as usize)).collect();
        let put = |kind, bytes: &[u8]| packer.put(kind, bytes).map(|stored| stored.id);
        let ids: Vec<ChunkId> =
            chunks.iter().map(|chunk| put(ChunkKind::Data, chunk).expect("puts")).collect();
        let (mut recipe, mut bytes) = (RecipeWriter::default(), Vec::new());
        for (n, from, len) in slices {
            let n = n % chunks.len();
            let from = from % chunks[n].len();
            let len = (1 + len % 200).min(chunks[n].len() - from);
            bytes.extend_from_slice(&chunks[n][from..from + len]);
            let extent = Extent::Slice { chunk: ids[n], offset: from as u32, len: len as u64 };
            recipe.push(extent, &packer).expect("pushes");
        }
        let recipe = recipe.finish(&packer).expect("ends");
        packer.finish().expect("finishes");
        let entry = Entry {
            size: bytes.len() as u64,
            content: Content::Recipe(recipe),
            ..Entry::new(b"file".to_vec(), EntryKind::File, 0o600)
        };
        let chunk_lens =
            ids.into_iter().zip(chunks.iter().map(|chunk| chunk.len() as u64)).collect();
        Stored { entry, bytes, chunk_lens }
    }

    fn extents(&self, recipe: &Recipe) -> Vec<Extent> {
        Extents::new(recipe, &self.store).map(|extent| extent.expect("reads")).collect()
    }

    fn read(&self, recipe: &Recipe) -> Vec<u8> {
        let mut bytes = Vec::new();
        for extent in self.extents(recipe) {
            let Extent::Slice { chunk, offset, len } = extent else { panic!("no holes") };
            let chunk = self.store.get(&chunk).expect("reads");
            bytes.extend_from_slice(&chunk[offset as usize..][..len as usize]);
        }
        bytes
    }

    /// Marks every segment as damaged.
    fn mark_damaged(&self) {
        for segment in self.store.index.segments().expect("lists") {
            self.store.index.set_damaged(&segment.id).expect("marks");
        }
    }

    /// Damages every segment.
    fn damage(&self) {
        self.memory.with_files(|files| {
            let segments = files.iter_mut().filter(|(name, _)| name.starts_with("segments/"));
            segments.for_each(|(_, bytes)| bytes.fill(0xA5));
        });
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let blocks = (0..len as u64 / 32 + 1)
        .flat_map(|n| *blake3::hash(&[seed.to_le_bytes(), n.to_le_bytes()].concat()).as_bytes());
    blocks.take(len).collect()
}

/// Returns a reuse that cuts everything at the store's sizes.
fn reuse<'a>(store: &'a Store, packer: &'a Packer<'a>, allowance: &'a Allowance) -> Reuse<'a> {
    let cutter = Cutter::new(store.config.parameters()).expect("sizes that can be used");
    static MANY_PACKS: Mutex<()> = Mutex::new(());
    Reuse { store, packer, cutter, fine_cutter: cutter, allowance, many_packs: &MANY_PACKS }
}

/// Possible output of a format: literals, or a copy of a reference.
#[derive(Debug, Clone)]
enum Operation {
    Literal(usize),
    Copy { reference: usize, at: usize, len: usize },
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let copy = (0..2usize, any::<usize>(), prop_oneof![1..20usize, 1..3000usize]);
    let operations = prop_oneof![
        (1..2000usize).prop_map(Operation::Literal),
        copy.prop_map(|(reference, at, len)| Operation::Copy { reference, at, len }),
    ];
    vec(operations, 0..60)
}

/// Passes `all` to the builder and returns the resulting content.
fn compare(builder: &mut RecipeBuilder<'_>, references: &[Stored], all: &[Operation]) -> Vec<u8> {
    let mut file = Vec::new();
    for (n, operation) in all.iter().enumerate() {
        match *operation {
            Operation::Literal(len) => {
                let bytes = noise(1_000_000 + n as u64, len);
                builder.literal(&bytes).expect("takes");
                file.extend(bytes);
            }
            Operation::Copy { reference, at, len } => {
                let bytes = &references[reference].bytes;
                let at = at % bytes.len();
                let len = len.min(bytes.len() - at);
                builder.copy(reference, at as u64, len as u64).expect("takes");
                file.extend_from_slice(&bytes[at..at + len]);
            }
        }
    }
    file
}

/// Returns the number of unused bytes in the referenced chunks.
fn unused_of(extents: &[Extent], references: &[Stored]) -> u64 {
    let mut used: HashMap<ChunkId, u64> = HashMap::new();
    for extent in extents {
        let Extent::Slice { chunk, len, .. } = extent else { continue };
        *used.entry(*chunk).or_default() += len;
    }
    let len_of =
        |id: &ChunkId| references.iter().find_map(|reference| reference.chunk_lens.get(id));
    used.iter().filter_map(|(id, used)| Some(len_of(id)?.saturating_sub(*used))).sum()
}

/// Returns `all` as slices of the chunks of references.
fn slices(fixture: &Fixture, references: &[Stored], all: &[Operation]) -> Vec<Extent> {
    let reader = Reader::new(&fixture.store);
    let mut slices = Vec::new();
    for operation in all {
        let Operation::Copy { reference, at, len } = *operation else { continue };
        let mut file = reference_file(&reader, &references[reference].entry).expect("has a recipe");
        let at = at % references[reference].bytes.len();
        let end = (at + len).min(references[reference].bytes.len());
        for at in at..end {
            let extent = file.extent_at(at as u64).expect("reads").expect("is there");
            let (Extent::Slice { chunk, .. }, _) = extent else { panic!("no holes") };
            slices.push(Extent::Slice { chunk, offset: 0, len: 1 });
        }
    }
    slices
}

/// No thinning: only the limit on unused bytes copies slices forward.
const AS_IT_IS: Thinning = Thinning { part_bytes: 4096, until: Until::Average(1) };

fn until() -> impl Strategy<Value = Until> {
    prop_oneof![
        Just(AS_IT_IS.until),
        (1..5000u64).prop_map(Until::Average),
        (0..5000u64).prop_map(Until::Cost),
    ]
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn the_recipe_holds_the_given_copies_and_literals(
        slices_of_bases in vec((any::<usize>(), any::<usize>(), any::<usize>()), 1..150),
        all in operations(),
        stretch in prop_oneof![Just(usize::MAX), 1..12usize],
        left in prop_oneof![Just(0i64), 0..20_000i64],
        part_bytes in 1..4096u64,
        until in until(),
    ) {
        let fixture = Fixture::new();
        let references = [fixture.file(1, &slices_of_bases), fixture.file(2, &slices_of_bases)];
        let packer = Packer::new(&fixture.store, false);
        let allowance = Allowance { left: AtomicI64::new(left) };
        let reuse = reuse(&fixture.store, &packer, &allowance);
        let reader = Reader::new(&fixture.store);
        let files = references.iter().map(|reference| reference_file(&reader, &reference.entry).expect("a recipe"));
        let thinning = Thinning { part_bytes, until };
        let mut builder = RecipeBuilder::new(&reuse, &reader, files.collect(), reuse.cutter, thinning);
        builder.set_stretch_chunks(stretch);
        let file = compare(&mut builder, &references, &all);
        let Reused { recipe, len, reused, unused } = builder.finish().expect("ends");
        packer.finish().expect("finishes");
        prop_assert!(fixture.read(&recipe) == file);
        prop_assert_eq!(len, file.len() as u64);
        let (own, left) = (len / UNUSED_PART, left as u64);
        prop_assert!(unused <= own + left, "{} of {}", unused, own + left);
        let left_over = allowance.left.load(Relaxed) as u64;
        prop_assert!(left_over <= left);
        if stretch == usize::MAX && matches!(until, Until::Average(1)) {
            prop_assert_eq!(unused, unused_of(&fixture.extents(&recipe), &references));
            prop_assert_eq!(left - left_over, unused.saturating_sub(own));
            let without_limit = unused_of(&slices(&fixture, &references, &all), &references);
            prop_assert_eq!(reused.copied_forward > 0, without_limit > own + left);
        }
    }
}

/// Runs `look` with a reference that is mostly unused.
fn with_reference(look: impl FnOnce(&Fixture, &Stored, &Reader<'_>, RecipeBuilder<'_>)) {
    let fixture = Fixture::new();
    let reference = fixture.file(1, &[(3, 0, 90), (4, 5, 90), (5, 5, 90)]);
    let packer = Packer::new(&fixture.store, false);
    let allowance = Allowance::default();
    let reuse = reuse(&fixture.store, &packer, &allowance);
    let reader = Reader::new(&fixture.store);
    let file = reference_file(&reader, &reference.entry).expect("a recipe");
    look(
        &fixture,
        &reference,
        &reader,
        RecipeBuilder::new(&reuse, &reader, vec![file], reuse.cutter, AS_IT_IS),
    );
}

#[test]
fn chunks_in_a_damaged_segment_are_not_reused() {
    with_reference(|fixture, reference, reader, _| {
        let mut file = reference_file(reader, &reference.entry).expect("a recipe");
        assert_eq!(file.common_prefix(0, &reference.bytes), reference.bytes.len());
        fixture.mark_damaged();
        // Its chunks can still be read, but a new snapshot must not depend on them.
        let other = Reader::new(&fixture.store);
        let mut file = reference_file(&other, &reference.entry).expect("a recipe");
        assert_eq!(file.common_prefix(0, &reference.bytes), 0);
    });
}

#[test]
fn bytes_of_a_newly_damaged_segment_are_stored_again() {
    with_reference(|fixture, reference, reader, mut builder| {
        let mut file = reference_file(reader, &reference.entry).expect("a recipe");
        assert_eq!(file.common_prefix(0, &reference.bytes), reference.bytes.len());
        builder.copy(0, 0, 100).expect("is there");
        fixture.mark_damaged();
        // The second chunk was referenced before, the third was not.
        builder.copy(0, 100, reference.bytes.len() as u64 - 100).expect("is whole itself");
        let Reused { len, reused, .. } = builder.finish().expect("ends");
        assert_eq!((len, reused.by_extent), (273, 182));
    });
}

#[test]
fn bytes_copied_forward_twice_are_counted_once() {
    let fixture = Fixture::new();
    let reference = fixture.file(1, &[(3, 0, 90), (4, 5, 90), (5, 5, 90)]);
    let allowance = Allowance::default();
    let mut found = Vec::new();
    for _ in 0..2 {
        let packer = Packer::new(&fixture.store, false);
        let reuse = reuse(&fixture.store, &packer, &allowance);
        let reader = Reader::new(&fixture.store);
        let file = reference_file(&reader, &reference.entry).expect("a recipe");
        let mut builder = RecipeBuilder::new(&reuse, &reader, vec![file], reuse.cutter, AS_IT_IS);
        builder.copy(0, 0, 100).expect("takes");
        builder.literal(&noise(9, 500)).expect("takes");
        builder.copy(0, 100, 173).expect("takes");
        let ReusedBytes { by_extent, by_chunk, copied_forward } =
            builder.finish().expect("ends").reused;
        assert!(copied_forward > 0);
        found.push((by_extent, by_chunk));
        packer.finish().expect("finishes");
    }
    assert_eq!(found, [(273, 0), (273, 500)]);
}

#[test]
fn a_reference_lost_after_comparison_is_not_a_store_failure() {
    with_reference(|fixture, _, _, mut builder| {
        builder.copy(0, 0, 9).expect("is there");
        fixture.damage();
        assert!(matches!(builder.finish(), Err(ReuseError::Lost(_))), "copied forward");
    });
}

#[test]
fn a_pack_with_an_unreadable_index_is_stored_plainly() {
    let fixture = Fixture::new();
    let reference = fixture.file(1, &[(0, 0, 90)]).entry;
    let packer = Packer::new(&fixture.store, false);
    let allowance = Allowance::default();
    let reuse = reuse(&fixture.store, &packer, &allowance);
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let pack = [b"PACK\0\0\0\x02\0\0\0\x01", &[5; 20_000][..]].concat();
    std::fs::write(path("pack"), &pack).expect("writes");
    std::fs::write(path("idx"), vec![0; 5000]).expect("writes");
    let file = File::open(path("pack")).expect("opens");
    // It exists, but cannot be read.
    let index = OpenOptions::new().write(true).open(path("idx")).expect("opens");
    let like = Hint::Pack { index: &index, references: &[(&reference, &reference)] };
    let done = reuse.file(&file, pack.len() as u64, None, like);
    assert!(matches!(done, Ok(None)));
}

#[test]
fn a_dry_run_does_not_use_the_workspace() {
    let fixture = Fixture::new();
    assert!(Packer::new(&fixture.store, false).workspace().is_some());
    assert!(Packer::new(&fixture.store, true).workspace().is_none());
}
