//! Multi-pack-indexes of git: the names of their packs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::git::midx_pack_stems;

fuzz_target!(|bytes: &[u8]| {
    let stems = midx_pack_stems(bytes).unwrap_or_default();
    assert!(stems.iter().all(|stem| stem.starts_with(b"pack-")));
    assert!(stems.iter().map(Vec::len).sum::<usize>() <= bytes.len());
});
