//! A git pack with its index, compared with others. The input is: three bytes of limits, the hole
//! in the references, the pack, its index, and pairs of packs and indexes.
#![no_main]

use chunker::delta::git_pack::{Limits, PackReference, compare_within};
use forgekeep_fuzz::{Checked, Input, Memory};
use libfuzzer_sys::fuzz_target;

const REFERENCES_MAX: usize = 4;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let limits = Limits {
        window_entries: 1 + u64::from(input.byte()),
        batch_bytes: 43 + 16 * u64::from(input.byte()),
        bin_bytes: 64 + 16 * u64::from(input.byte()),
    };
    let (at, len) = (input.number(), input.number());
    let reference = |bytes: &[u8]| Memory { bytes: bytes.to_vec(), hole: at..at + len };
    let (pack, index) = (input.part(), input.part());
    let mut references = Vec::new();
    while !input.0.is_empty() && references.len() < REFERENCES_MAX {
        references.push((reference(input.part()), reference(input.part())));
    }
    let packs: Vec<Vec<u8>> = references.iter().map(|(pack, _)| pack.bytes.clone()).collect();
    let mut sink = Checked::new(pack, packs.iter().map(Vec::as_slice).collect());
    let mut pairs: Vec<PackReference<'_>> =
        references.iter_mut().map(|(pack, index)| PackReference { pack, index }).collect();
    let (mut pack, mut index) = (Memory::new(pack), Memory::new(index));
    let done = compare_within(limits, &mut pack, &mut index, &mut pairs, &mut sink);
    sink.finish(done);
});
