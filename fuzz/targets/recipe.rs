//! Recipe chunks. The input is: a level, the declared length of the recipe, and one chunk that
//! every id resolves to.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::id::ChunkId;
use store::recipe::{Extent, Extents, Recipe};

fuzz_target!(|input: &[u8]| {
    let Some((level, input)) = input.split_first() else { return };
    let Some((len, page)) = input.split_first_chunk() else { return };
    let len = u64::from_le_bytes(*len);
    if len == 0 {
        return; // entries and extents are never empty, and readers check that
    }
    let top = Extent::Slice { chunk: ChunkId::from_bytes([0; 32]), offset: 0, len };
    let recipe = Recipe { level: *level, extents: vec![top] };
    let get = |_: &ChunkId| Ok(page.to_vec());
    // A file of `len` bytes can have `len` extents; more than 1000 only take time.
    let mut sum = 0u64;
    for extent in Extents::new(&recipe, &get).take(1000).flatten() {
        assert!(!extent.is_empty());
        sum = sum.checked_add(extent.len()).expect("no more than the length that was claimed");
    }
    assert!(sum <= len);
});
