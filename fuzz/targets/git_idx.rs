//! The index of a git pack, compared with others. The input is: the hole in the references, then
//! all indexes.
#![no_main]

use chunker::delta::Reference;
use chunker::delta::git_idx::compare;
use forgekeep_fuzz::{Checked, Input, Memory};
use libfuzzer_sys::fuzz_target;

const REFERENCES_MAX: usize = 4;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (at, len) = (input.number(), input.number());
    let index = input.part();
    let mut references = Vec::new();
    while !input.0.is_empty() && references.len() < REFERENCES_MAX {
        references.push(Memory { bytes: input.part().to_vec(), hole: at..at + len });
    }
    let whole: Vec<Vec<u8>> = references.iter().map(|reference| reference.bytes.clone()).collect();
    let mut sink = Checked::new(index, whole.iter().map(Vec::as_slice).collect());
    let mut references: Vec<&mut dyn Reference> =
        references.iter_mut().map(|reference| reference as &mut dyn Reference).collect();
    let done = compare(&mut Memory::new(index), &mut references, &mut sink);
    sink.finish(done);
});
