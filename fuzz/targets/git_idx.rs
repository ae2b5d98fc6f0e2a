//! The index of a git pack, compared with others: where these cannot be read, then all of them.
#![no_main]

use chunker::format::Base;
use chunker::format::git_idx::weave;
use forgekeep_fuzz::{Checked, Input, Memory};
use libfuzzer_sys::fuzz_target;

const BASES_MAX: usize = 4;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (at, len) = (input.number(), input.number());
    let index = input.part();
    let mut bases = Vec::new();
    while !input.0.is_empty() && bases.len() < BASES_MAX {
        bases.push(Memory { bytes: input.part().to_vec(), hole: at..at + len });
    }
    let whole: Vec<Vec<u8>> = bases.iter().map(|base| base.bytes.clone()).collect();
    let mut sink = Checked::new(index, whole.iter().map(Vec::as_slice).collect());
    let mut bases: Vec<&mut dyn Base> =
        bases.iter_mut().map(|base| base as &mut dyn Base).collect();
    let done = weave(&mut Memory::new(index), &mut bases, &mut sink);
    sink.finish(done);
});
