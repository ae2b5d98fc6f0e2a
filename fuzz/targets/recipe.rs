//! Recipe chunks: a level, the length the recipe claims, then one chunk, which is what
//! every id leads to.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::id::ChunkId;
use store::recipe::{Extent, Extents, Recipe};

fuzz_target!(|input: &[u8]| {
    let Some((level, input)) = input.split_first() else { return };
    let Some((len, page)) = input.split_first_chunk() else { return };
    let len = u64::from_le_bytes(*len);
    if len == 0 {
        return; // what refers to a chunk is never empty: entries and chunks are checked for it
    }
    let top = Extent::Slice { chunk: ChunkId::from_bytes([0; 32]), offset: 0, len };
    let recipe = Recipe { level: *level, extents: vec![top] };
    let get = |_: &ChunkId| Ok(page.to_vec());
    // As many as a file is long; more than these take only time.
    let mut sum = 0u64;
    for extent in Extents::new(&recipe, &get).take(1000).flatten() {
        assert!(!extent.is_empty());
        sum = sum.checked_add(extent.len()).expect("no more than the length that was claimed");
    }
    assert!(sum <= len);
});
