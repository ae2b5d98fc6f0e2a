//! Wrapper around FastCDC.
//!
//! Only this file names the package that decides cut points. The algorithm is the one of the 2020
//! paper with normalisation level 1 and unseeded gear tables. `docs/format.md` calls it
//! `fastcdc-v2020`.

use fastcdc::v2020;

/// Chunk sizes in bytes. Recorded in every store and never changed there.
///
/// All three are even, because the scan tests bytes in pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Minimum size of every chunk except the last one of a stream.
    pub min_bytes: u32,
    /// Target average size.
    pub avg_bytes: u32,
    /// Maximum size.
    pub max_bytes: u32,
}

impl Parameters {
    /// Largest accepted `max_bytes`. Readers size their buffers by it.
    pub const LIMIT_BYTES: u32 = 4 << 20;

    /// Sizes of a new store: 64 KiB, 256 KiB, 1 MiB.
    pub const DEFAULT: Parameters =
        Parameters { min_bytes: 64 << 10, avg_bytes: 256 << 10, max_bytes: 1 << 20 };

    /// Returns an eighth of these sizes, but at least the smallest sizes that FastCDC supports.
    /// Meant for content whose parts have different lifetimes.
    pub fn finer(self) -> Parameters {
        let eighth = |bytes: u32, least: usize| (bytes / 8 / 2 * 2).max(least as u32);
        Parameters {
            min_bytes: eighth(self.min_bytes, v2020::MINIMUM_MIN),
            avg_bytes: eighth(self.avg_bytes, v2020::AVERAGE_MIN),
            max_bytes: eighth(self.max_bytes, v2020::MAXIMUM_MIN),
        }
    }
}

/// Unusable chunk sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterError(pub Parameters);

impl std::fmt::Display for ParameterError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Parameters { min_bytes, avg_bytes, max_bytes } = self.0;
        write!(
            f,
            "chunk sizes {min_bytes}/{avg_bytes}/{max_bytes} are not even numbers with \
             64 <= min < avg < max <= {}, min <= 1 MiB",
            Parameters::LIMIT_BYTES
        )
    }
}

impl std::error::Error for ParameterError {}

/// Finds cut points. Cheap to copy; holds no data.
#[derive(Debug, Clone, Copy)]
pub struct Cutter {
    parameters: Parameters,
    mask_small: u64,
    mask_large: u64,
}

impl Cutter {
    /// Checks the sizes and returns a cutter for them.
    pub fn new(parameters: Parameters) -> Result<Cutter, ParameterError> {
        let Parameters { min_bytes, avg_bytes, max_bytes } = parameters;
        let even = [min_bytes, avg_bytes, max_bytes].iter().all(|n| n.is_multiple_of(2));
        let ordered = min_bytes < avg_bytes && avg_bytes < max_bytes;
        let bounded = min_bytes as usize >= v2020::MINIMUM_MIN
            && min_bytes as usize <= v2020::MINIMUM_MAX
            && avg_bytes as usize >= v2020::AVERAGE_MIN
            && max_bytes as usize >= v2020::MAXIMUM_MIN
            && max_bytes <= Parameters::LIMIT_BYTES;
        if !(even && ordered && bounded) {
            return Err(ParameterError(parameters));
        }
        let (mask_small, mask_large) =
            v2020::select_masks(avg_bytes as usize, v2020::Normalization::Level1);
        Ok(Cutter { parameters, mask_small, mask_large })
    }

    /// Returns the sizes of this cutter.
    pub fn parameters(&self) -> Parameters {
        self.parameters
    }

    /// Maximum chunk size in bytes.
    pub fn max_len(&self) -> usize {
        self.parameters.max_bytes as usize
    }

    /// Returns the length in bytes of the chunk that starts at `data[0]`.
    ///
    /// The result depends only on the first [`max_len`](Self::max_len) bytes. It is final if `data`
    /// is at least that long or ends the stream. Returns 0 only for empty data.
    pub fn next_len(&self, data: &[u8]) -> usize {
        let (_, len) = v2020::cut(
            data,
            self.parameters.min_bytes as usize,
            self.parameters.avg_bytes as usize,
            self.parameters.max_bytes as usize,
            self.mask_small,
            self.mask_large,
            self.mask_small << 1,
            self.mask_large << 1,
        );
        len
    }

    /// Returns the end offsets of all chunks of `data`, in order.
    ///
    /// With `is_last`, the last end is `data.len()`. Otherwise the final bytes stay uncut while
    /// their cut depends on later bytes: at most `max_len() - 1` bytes after the last end.
    pub fn cut(&self, data: &[u8], is_last: bool) -> Vec<usize> {
        let mut ends = Vec::with_capacity(data.len() / self.parameters.avg_bytes as usize + 1);
        let mut start = 0;
        while start < data.len() && (is_last || data.len() - start >= self.max_len()) {
            start += self.next_len(&data[start..]);
            ends.push(start);
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// SplitMix64: fixed input, identical on every platform.
    pub(crate) fn noise(len: usize, mut seed: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
        out.truncate(len);
        out
    }

    fn cutter(min_bytes: u32, avg_bytes: u32, max_bytes: u32) -> Cutter {
        Cutter::new(Parameters { min_bytes, avg_bytes, max_bytes }).expect("valid sizes")
    }

    /// Frozen: these figures must never change. A change would stop every existing store from
    /// deduplicating new backups.
    #[test]
    fn golden_cut_points() {
        let data = noise(4 << 20, 1);
        let default = Cutter::new(Parameters::DEFAULT).expect("valid");
        assert_eq!(default.cut(&data, true), GOLDEN_DEFAULT);
        // The average is not a power of two: version 4.0.0 of the package moved these cut points.
        assert_eq!(cutter(16 << 10, 100_000, 400_000).cut(&data[..1 << 20], true), GOLDEN_ODD);
        // An odd length and a tail shorter than the minimum.
        assert_eq!(cutter(4096, 16384, 65536).cut(&data[..100_001], true), GOLDEN_SMALL);
        let zeros = vec![0u8; 3 << 20];
        assert_eq!(default.cut(&zeros, true), [1 << 20, 2 << 20, 3 << 20]);
    }

    const GOLDEN_DEFAULT: &[usize] = &[
        278755, 367399, 663506, 1067951, 1818230, 2126826, 2739707, 3024363, 3303375, 3746021,
        3991912, 4188338, 4194304,
    ];
    const GOLDEN_ODD: &[usize] =
        &[28128, 152936, 180603, 278755, 317028, 367399, 557851, 584860, 727722, 831474, 1048576];
    const GOLDEN_SMALL: &[usize] = &[16594, 21448, 28128, 44980, 62367, 69735, 87762, 100001];

    #[test]
    fn short_inputs_are_one_chunk() {
        let default = Cutter::new(Parameters::DEFAULT).expect("valid");
        assert_eq!(default.cut(&[], true), Vec::<usize>::new());
        assert_eq!(default.cut(b"x", true), [1]);
        assert_eq!(default.cut(b"x", false), Vec::<usize>::new());
    }

    #[test]
    fn bad_sizes_are_refused() {
        for (min_bytes, avg_bytes, max_bytes) in
            [(65, 256, 1024), (256, 256, 1024), (64, 512, 512), (64, 256, 8 << 20), (2, 256, 1024)]
        {
            let p = Parameters { min_bytes, avg_bytes, max_bytes };
            assert_eq!(Cutter::new(p).expect_err("must be refused"), ParameterError(p));
        }
    }

    #[test]
    fn cutting_in_windows_gives_the_same_chunks() {
        let cutter = cutter(64, 256, 1024);
        let data = noise(50_000, 7);
        let whole = cutter.cut(&data, true);
        let mut ends = Vec::new();
        let (mut start, mut window) = (0, 1500);
        while start < data.len() {
            let end = (start + window).min(data.len());
            let got = cutter.cut(&data[start..end], end == data.len());
            ends.extend(got.iter().map(|e| start + e));
            start = *ends.last().expect("progress");
            window = 1024 + (window * 7) % 3000;
        }
        assert_eq!(ends, whole);
    }

    /// Small sizes, so that small content has many cuts.
    fn sizes() -> impl Strategy<Value = Parameters> {
        let halves = (32..200u32, 1..300u32, 1..900u32);
        halves.prop_filter_map("beyond the bounds", |(min, more, still_more)| {
            let (avg, max) = (min + more, min + more + still_more);
            let sizes = Parameters { min_bytes: 2 * min, avg_bytes: 2 * avg, max_bytes: 2 * max };
            Cutter::new(sizes).is_ok().then_some(sizes)
        })
    }

    /// Noise, runs of one byte, and repeated content.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let run = prop_oneof![
            (0..6000usize, 0..3u64).prop_map(|(len, seed)| noise(len, seed)),
            (any::<u8>(), 0..4000usize).prop_map(|(byte, len)| vec![byte; len]),
        ];
        vec(run, 0..6).prop_map(|runs| runs.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn chunks_cover_the_content_and_respect_size_bounds(
            sizes in sizes(),
            content in content(),
            is_last: bool,
        ) {
            let cutter = Cutter::new(sizes).expect("valid sizes");
            let ends = cutter.cut(&content, is_last);
            let starts = [0].into_iter().chain(ends.iter().copied());
            let lens: Vec<usize> = starts.zip(&ends).map(|(start, end)| end - start).collect();
            let left = content.len() - ends.last().unwrap_or(&0);
            let is_decided = if is_last { left == 0 } else { left < cutter.max_len() };
            prop_assert!(is_decided);
            let (last, others) = match lens.split_last() {
                Some((last, others)) if is_last => (*last, others),
                _ => (1, &lens[..]),
            };
            prop_assert!(last > 0 && last <= cutter.max_len());
            let bounds = sizes.min_bytes as usize..=cutter.max_len();
            prop_assert!(others.iter().all(|len| bounds.contains(len)), "{:?}", lens);
        }

        #[test]
        fn cutting_in_pieces_gives_the_same_chunks(
            sizes in sizes(),
            content in content(),
            pieces in vec(1..5000usize, 1..9),
        ) {
            let cutter = Cutter::new(sizes).expect("valid sizes");
            let (mut ends, mut start, mut have) = (Vec::new(), 0, 0);
            for piece in pieces.into_iter().chain([content.len()]) {
                have = content.len().min(have + piece);
                let got = cutter.cut(&content[start..have], have == content.len());
                ends.extend(got.iter().map(|end| start + end));
                start = *ends.last().unwrap_or(&0);
            }
            prop_assert_eq!(ends, cutter.cut(&content, true));
        }
    }
}
