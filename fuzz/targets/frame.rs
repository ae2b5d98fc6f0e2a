//! Stored chunks: zstd frames.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use store::codec::{FrameDecoder, claimed_plain_len, frame_len};
use store::id::ChunkId;
use store::limits::CHUNK_BYTES_MAX;

thread_local! {
    static DECODER: RefCell<FrameDecoder> = RefCell::new(FrameDecoder::new());
}

fuzz_target!(|stored: &[u8]| {
    let claim = claimed_plain_len(stored);
    assert!(claim.is_none_or(|len| len <= CHUNK_BYTES_MAX));
    assert!(frame_len(stored).is_none_or(|len| len <= stored.len()));
    DECODER.with_borrow_mut(|decoder| {
        for plain_len in [claim.unwrap_or(0), 100, 70_000] {
            let mut plain = Vec::new();
            let opened = decoder.decode_unnamed(stored, plain_len, &mut plain);
            assert!(plain.capacity() <= plain_len.max(8));
            if opened.is_ok() {
                assert_eq!(plain.len(), plain_len);
                let mut again = Vec::new();
                let id = ChunkId::of(&plain);
                assert_eq!(decoder.decode(&id, stored, plain_len, &mut again), Ok(()));
                assert_eq!(again, plain);
            }
        }
    });
});
