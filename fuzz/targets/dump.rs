//! A dump compared with its previous version. The input is: repetitions of each, maximum bytes per
//! read, the hole in the reference, and both files.
#![no_main]

use chunker::delta::dump::compare;
use forgekeep_fuzz::{Checked, Input, Memory};
use libfuzzer_sys::fuzz_target;

/// Maximum bytes of each file after repetition.
const BYTES_MAX: usize = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let mut times = || {
        let byte = usize::from(input.byte());
        // Most inputs should be short.
        if byte < 200 { 1 + byte / 50 } else { byte }
    };
    let (of_base, of_new) = (times(), times());
    let piece = 1 + input.number();
    let (at, len) = (8 * input.number(), 8 * input.number());
    let repeated = |bytes: &[u8], times: usize| {
        let mut bytes = bytes.repeat(times);
        bytes.truncate(BYTES_MAX);
        // Make the repetitions differ in places.
        bytes.iter_mut().step_by(4999).enumerate().for_each(|(n, byte)| *byte ^= n as u8);
        bytes
    };
    let reference = repeated(input.part(), of_base);
    let new = repeated(input.0, of_new);
    let mut left = &new[..];
    let mut read = |buffer: &mut [u8]| {
        let (now, later) = left.split_at(left.len().min(buffer.len()).min(piece));
        buffer[..now.len()].copy_from_slice(now);
        left = later;
        Ok(now.len())
    };
    let mut sink = Checked::new(&new, vec![&reference]);
    let mut damaged = Memory { bytes: reference.clone(), hole: at..at + len };
    let Ok(()) = compare(&mut read, &mut damaged, &mut sink);
    sink.finish(Ok(()));
    assert!(sink.copies <= new.len() / 32 + 1, "{} copies", sink.copies);
});
