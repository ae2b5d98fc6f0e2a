//! Names, encodes and decodes chunks. No other module does.
//!
//! No store is sealed so far: a chunk is one standard zstd frame, named by the hash of its plain
//! bytes. Encryption will add a mode here and nowhere else.

use crate::id::ChunkId;
use crate::limits;
use std::cell::RefCell;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound, get_error_name};

/// The level tried first. Git packs and other compressed content hardly shrink at any level, and
/// this level costs a third of the usual one.
const QUICK_LEVEL: i32 = 1;

/// Content that shrinks below this percentage is compressed again with the store's own level.
const WORTHWHILE_PERCENT: usize = 80;

thread_local! {
    /// Working memory of this thread: an encoder with its level, and a decoder.
    static ENCODER: RefCell<Option<FrameEncoder>> = const { RefCell::new(None) };
    static DECODER: RefCell<FrameDecoder> = RefCell::default();
}

/// Names, encodes and decodes the chunks of one store, on any thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codec {
    level: i32,
}

impl Codec {
    /// Returns the codec of a store that uses this zstd level for compressible content.
    pub const fn new(level: i32) -> Codec {
        Codec { level }
    }

    /// Returns the id of a chunk.
    pub fn id_of(&self, plain: &[u8]) -> ChunkId {
        ChunkId::of(plain)
    }

    /// Replaces `out` by the encoded form of a chunk, which was decoded again and compared.
    pub fn encode(&self, plain: &[u8], out: &mut Vec<u8>) {
        ENCODER.with_borrow_mut(|slot| {
            let encoder = match slot {
                Some(encoder) if encoder.level == self.level => encoder,
                slot => slot.insert(FrameEncoder::new(self.level)),
            };
            encoder.encode(plain, out);
        });
    }

    /// Replaces `out` by the `plain_len` plain bytes of chunk `id`. Returns the reason unless
    /// `stored` decodes to exactly that many bytes with that id; then `out` is empty. Never holds
    /// more than `plain_len` bytes, whatever `stored` claims.
    pub fn decode(
        &self,
        id: &ChunkId,
        stored: &[u8],
        plain_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeFault> {
        DECODER.with_borrow_mut(|decoder| decoder.decode(id, stored, plain_len, out))
    }

    /// Decodes a chunk whose id is unknown, at the start of `stored`. Returns its id, its stored
    /// length and its plain length.
    pub fn recover(&self, stored: &[u8], out: &mut Vec<u8>) -> Option<(ChunkId, usize, usize)> {
        let stored_len = frame_len(stored)?;
        let frame = &stored[..stored_len];
        let plain_len = claimed_plain_len(frame)?;
        DECODER.with_borrow_mut(|decoder| decoder.decode_unnamed(frame, plain_len, out).ok())?;
        Some((self.id_of(out), stored_len, plain_len))
    }
}

/// Reason why stored bytes are not a chunk. The caller adds its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeFault {
    /// The bytes are those of another chunk.
    #[error("its content does not match its id")]
    OtherContent,
    /// No chunk has this many bytes.
    #[error("{0} bytes exceed the maximum chunk size")]
    TooLong(usize),
    /// The frame has another length than the table says.
    #[error("it decodes to {found} bytes instead of {wanted}")]
    OtherLength {
        /// Length of the frame's content in bytes.
        found: usize,
        /// Length in the table in bytes.
        wanted: usize,
    },
    /// The bytes are not a frame.
    #[error("zstd: {0}")]
    Zstd(&'static str),
}

/// Encodes plain bytes into zstd frames, with working memory of its own.
pub struct FrameEncoder {
    level: i32,
    context: CCtx<'static>,
    decoder: FrameDecoder,
    check: Vec<u8>,
}

impl FrameEncoder {
    /// Returns an encoder that uses this zstd level for compressible content.
    pub fn new(level: i32) -> FrameEncoder {
        let mut context = CCtx::create();
        // The chunk's id verifies it better than a checksum.
        for parameter in [CParameter::ContentSizeFlag(true), CParameter::ChecksumFlag(false)] {
            context
                .set_parameter(parameter)
                .map_err(get_error_name)
                .expect("zstd knows these flags");
        }
        FrameEncoder { level, context, decoder: FrameDecoder::new(), check: Vec::new() }
    }

    /// Replaces `out` by the encoded form of `plain`.
    ///
    /// Every frame is decoded again and compared. A faulty compressor must not lose a file, and
    /// zstd had such faults more than once.
    pub fn encode(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        assert!(plain.len() <= limits::CHUNK_BYTES_MAX, "chunks are bounded");
        self.compress(self.level.min(QUICK_LEVEL), plain, out);
        if self.level > QUICK_LEVEL && out.len() * 100 < plain.len() * WORTHWHILE_PERCENT {
            self.compress(self.level, plain, out);
        }
        let opened = self.decoder.decode_unnamed(out, plain.len(), &mut self.check);
        assert!(opened.is_ok() && self.check == plain, "zstd output does not decode to its input");
    }

    fn compress(&mut self, level: i32, plain: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.reserve(compress_bound(plain.len()));
        self.context
            .set_parameter(CParameter::CompressionLevel(level))
            .and_then(|_| self.context.compress2(out, plain))
            .map_err(get_error_name)
            .expect("compressing into a buffer of the bound's size cannot fail");
    }
}

/// Decodes zstd frames into plain bytes, with working memory of its own.
pub struct FrameDecoder {
    context: DCtx<'static>,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// Returns a decoder with its own working memory.
    pub fn new() -> FrameDecoder {
        FrameDecoder { context: DCtx::create() }
    }

    /// Replaces `out` by the `plain_len` plain bytes of chunk `id`.
    ///
    /// Returns the reason of the failure unless `stored` decodes to exactly that many bytes with
    /// that id. Never holds more than `plain_len` bytes, whatever `stored` claims. On failure `out`
    /// is empty.
    pub fn decode(
        &mut self,
        id: &ChunkId,
        stored: &[u8],
        plain_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeFault> {
        let result = self.decode_unnamed(stored, plain_len, out).and_then(|()| {
            if ChunkId::of(out) == *id { Ok(()) } else { Err(DecodeFault::OtherContent) }
        });
        if result.is_err() {
            out.clear();
        }
        result
    }

    /// Same as [`decode`](Self::decode), for a chunk with an unknown id.
    pub fn decode_unnamed(
        &mut self,
        stored: &[u8],
        plain_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeFault> {
        out.clear();
        if plain_len > limits::CHUNK_BYTES_MAX {
            return Err(DecodeFault::TooLong(plain_len));
        }
        // zstd never writes past the end of the buffer and rejects a frame that needs more. The
        // buffer is never larger than a chunk.
        out.reserve_exact(plain_len);
        match self.context.decompress(out, stored) {
            Ok(n) if n == plain_len => Ok(()),
            Ok(found) => Err(DecodeFault::OtherLength { found, wanted: plain_len }),
            Err(code) => Err(DecodeFault::Zstd(get_error_name(code))),
        }
    }
}

/// Returns the length of the frame at the start of `bytes`, without decoding it.
///
/// Used to find chunks in a segment whose table is lost.
pub fn frame_len(bytes: &[u8]) -> Option<usize> {
    zstd::zstd_safe::find_frame_compressed_size(bytes).ok().filter(|len| *len <= bytes.len())
}

/// Returns the plain length that a frame declares, if a chunk may have that length.
pub fn claimed_plain_len(frame: &[u8]) -> Option<usize> {
    let len = zstd::zstd_safe::get_frame_content_size(frame).ok()??;
    usize::try_from(len).ok().filter(|len| *len <= limits::CHUNK_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, changed, changes, noise};
    use proptest::prelude::*;

    #[test]
    fn only_an_encoded_frame_with_its_id_and_length_is_decoded() {
        let plain: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let (mut encoder, mut decoder) = (FrameEncoder::new(3), FrameDecoder::new());
        let (mut stored, mut back) = (Vec::new(), Vec::new());
        let id = ChunkId::of(&plain);
        encoder.encode(&plain, &mut stored);
        decoder.decode(&id, &stored, plain.len(), &mut back).expect("opens");
        assert_eq!(back, plain);
        assert_eq!(frame_len(&[&stored[..], b"more"].concat()), Some(stored.len()));
        assert_eq!(claimed_plain_len(&stored), Some(plain.len()));

        let other = ChunkId::of(b"other");
        assert!(decoder.decode(&other, &stored, plain.len(), &mut back).is_err());
        assert!(back.is_empty());
        assert!(decoder.decode(&id, &stored, plain.len() - 1, &mut back).is_err());
        assert!(decoder.decode(&id, &stored, plain.len() + 1, &mut back).is_err());
        assert!(decoder.decode(&id, &stored[..stored.len() - 1], plain.len(), &mut back).is_err());
        assert!(decoder.decode(&id, &[], plain.len(), &mut back).is_err());
        encoder.encode(b"", &mut stored);
        decoder.decode(&ChunkId::of(b""), &stored, 0, &mut back).expect("nothing is content too");
    }

    #[test]
    fn a_bomb_is_refused_before_decompression() {
        let mut bomb = Vec::new();
        let zeros = std::io::repeat(0u8);
        zstd::stream::copy_encode(std::io::Read::take(zeros, 1 << 30), &mut bomb, 19)
            .expect("compresses");
        let (mut decoder, mut out) = (FrameDecoder::new(), Vec::new());
        for claim in [0, 1, 4096, limits::CHUNK_BYTES_MAX] {
            assert!(decoder.decode_unnamed(&bomb, claim, &mut out).is_err());
            assert!(out.capacity() <= limits::CHUNK_BYTES_MAX);
        }
        assert!(decoder.decode_unnamed(&bomb, 1 << 30, &mut out).is_err());
        assert_eq!(claimed_plain_len(&bomb), None);
    }

    /// Noise, and content that compresses.
    fn plain() -> impl Strategy<Value = Vec<u8>> {
        let run = (noise(), 1..200usize).prop_map(|(bytes, times)| bytes.repeat(times));
        prop_oneof![noise(), run]
    }

    proptest! {
        #![proptest_config(cases(150))]

        #[test]
        fn any_content_is_decoded_as_encoded(plain in plain(), level in prop_oneof![-8..20, any::<i32>()]) {
            let (mut stored, mut back) = (Vec::new(), Vec::new());
            FrameEncoder::new(level).encode(&plain, &mut stored);
            prop_assert!(stored.len() <= plain.len() + plain.len() / 128 + 1024);
            prop_assert_eq!(frame_len(&stored), Some(stored.len()));
            prop_assert_eq!(claimed_plain_len(&stored), Some(plain.len()));
            let opened = FrameDecoder::new().decode(&ChunkId::of(&plain), &stored, plain.len(), &mut back);
            prop_assert_eq!(opened, Ok(()));
            prop_assert_eq!(back, plain);
        }

        #[test]
        fn any_bytes_decode_to_the_named_chunk_or_to_nothing(
            plain in plain(),
            noise in noise(),
            changes in changes(),
        ) {
            let (mut stored, mut out) = (Vec::new(), Vec::new());
            FrameEncoder::new(3).encode(&plain, &mut stored);
            let mut decoder = FrameDecoder::new();
            for bytes in [noise, changed(stored, &changes)] {
                let opened = decoder.decode(&ChunkId::of(&plain), &bytes, plain.len(), &mut out);
                prop_assert_eq!(&out[..], if opened.is_ok() { &plain[..] } else { b"" });
                let _ = decoder.decode_unnamed(&bytes, plain.len(), &mut out);
                prop_assert!(out.len() <= plain.len());
                prop_assert!(frame_len(&bytes).is_none_or(|len| len <= bytes.len()));
                let claim = claimed_plain_len(&bytes);
                prop_assert!(claim.is_none_or(|len| len <= limits::CHUNK_BYTES_MAX));
            }
        }
    }
}
