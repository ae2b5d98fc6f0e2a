//! `store.json`: the configuration of a store, written once by `init`.

use crate::backend::Modes;
use crate::error::{Error, Result};
use crate::features::Features;
use chunker::Parameters;
use serde::{Deserialize, Serialize};

/// Name of the file in the store.
pub const FILE: &str = "store.json";

/// Version of the whole format that this program writes.
pub const FORMAT_VERSION: u64 = 2;

/// Content of `store.json`. Unknown members are skipped: a member that a program must know comes
/// with a feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Version of the format.
    pub format_version: u64,
    /// Random id of the store, 32 hexadecimal digits.
    pub store_id: String,
    /// Parameters of the chunker.
    pub chunking: Chunking,
    /// Parameters of the compression.
    pub compression: Compression,
    /// Protection of stored bytes; always `none`.
    pub seal: String,
    /// Features that programs must know to use the store.
    #[serde(default, skip_serializing_if = "Features::is_empty")]
    pub features: Features,
    /// True if the group of the store's directories may read the store.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub group_readable: bool,
}

/// Parameters of the chunker. Frozen: other cuts would deduplicate nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunking {
    /// `fastcdc-v2020`.
    pub algorithm: String,
    /// Minimum size in bytes of every chunk except the last of a file.
    pub min_bytes: u32,
    /// Target average size in bytes.
    pub avg_bytes: u32,
    /// Maximum size in bytes.
    pub max_bytes: u32,
}

/// Parameters of the compression. Readers do not need them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compression {
    /// `zstd`.
    pub algorithm: String,
    /// Compression level of zstd.
    pub level: i32,
}

impl Config {
    /// Returns the configuration of a new store; `store_id` is 16 random bytes.
    pub fn new(store_id: [u8; 16], parameters: Parameters, level: i32) -> Config {
        Config {
            format_version: FORMAT_VERSION,
            store_id: store_id.iter().map(|b| format!("{b:02x}")).collect(),
            chunking: Chunking {
                algorithm: "fastcdc-v2020".into(),
                min_bytes: parameters.min_bytes,
                avg_bytes: parameters.avg_bytes,
                max_bytes: parameters.max_bytes,
            },
            compression: Compression { algorithm: "zstd".into(), level },
            seal: "none".into(),
            features: Features::default(),
            group_readable: false,
        }
    }

    /// Returns the permission bits of files and directories of the store.
    pub fn modes(&self) -> Modes {
        if self.group_readable { Modes::GROUP } else { Modes::PRIVATE }
    }

    /// Encodes the file: JSON whose last member is the BLAKE3 hash of the bytes before it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec_pretty(self).expect("plain values become JSON");
        let body = json.strip_suffix(BODY_END).expect("an object ends with a brace");
        [body, hash_member(body).as_bytes()].concat()
    }

    /// Decodes the file and checks every byte of it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Config> {
        let damaged = |reason: &str| Error::ConfigDamaged(reason.to_owned());
        let member_len = hash_member(b"").len();
        let body_len =
            bytes.len().checked_sub(member_len).ok_or_else(|| damaged("it is truncated"))?;
        let (body, member) = bytes.split_at(body_len);
        if member != hash_member(body).as_bytes() {
            return Err(damaged("its hash does not match its content"));
        }
        let json = &[body, BODY_END].concat();
        let version: Versioned =
            serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
        if version.format_version != FORMAT_VERSION {
            return Err(Error::newer_version(FILE, version.format_version, FORMAT_VERSION));
        }
        let config: Config =
            serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        for (method, known) in [
            (&self.chunking.algorithm, "fastcdc-v2020"),
            (&self.compression.algorithm, "zstd"),
            (&self.seal, "none"),
        ] {
            if method != known {
                let reason = format!("it names `{method}`, and this program knows `{known}`");
                return Err(Error::Newer { what: FILE.into(), reason });
            }
        }
        if self.store_id_bytes().is_none() {
            return Err(Error::ConfigDamaged("its store id is invalid".into()));
        }
        chunker::Cutter::new(self.parameters())
            .map_err(|error| Error::ConfigDamaged(error.to_string()))?;
        Ok(())
    }

    /// Returns the chunk sizes.
    pub fn parameters(&self) -> Parameters {
        let Chunking { min_bytes, avg_bytes, max_bytes, .. } = self.chunking;
        Parameters { min_bytes, avg_bytes, max_bytes }
    }

    /// Returns the store's id as bytes; `None` if it is not 32 hexadecimal digits.
    pub fn store_id_bytes(&self) -> Option<[u8; 16]> {
        let mut out = [0; 16];
        let hex = self.store_id.as_bytes();
        if hex.len() != 32 || !hex.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in out.iter_mut().zip(self.store_id.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(out)
    }
}

const BODY_END: &[u8] = b"\n}";

/// Returns the last member of the file for the bytes before it.
fn hash_member(body: &[u8]) -> String {
    format!(",\n  \"blake3\": \"{}\"\n}}\n", blake3::hash(body))
}

/// Decoded first, so that a newer format is reported as newer and not as damaged.
#[derive(Deserialize)]
struct Versioned {
    format_version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, changed, changes, noise};
    use proptest::prelude::*;

    #[test]
    fn every_flipped_bit_is_detected() {
        let bytes = Config::new([7; 16], Parameters::DEFAULT, 3).to_bytes();
        let config = Config::from_bytes(&bytes).expect("reads what it wrote");
        assert_eq!(config.parameters(), Parameters::DEFAULT);
        assert_eq!(config.store_id_bytes(), Some([7; 16]));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(Config::from_bytes(&flipped).is_err(), "byte {at} bit {bit}");
            }
        }
        for len in 0..bytes.len() {
            assert!(Config::from_bytes(&bytes[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_newer_format_is_reported_as_newer() {
        let mut config = Config::new([7; 16], Parameters::DEFAULT, 3);
        config.format_version = 3;
        let error = Config::from_bytes(&config.to_bytes()).expect_err("refused");
        assert!(matches!(error, Error::Newer { .. }), "{error}");
        assert!(error.to_string().contains("format version is 3"), "{error}");
    }

    #[test]
    fn unknown_methods_are_newer_and_unknown_members_are_skipped() {
        let config = Config::new([7; 16], Parameters::DEFAULT, 3);
        for change in [
            |config: &mut Config| config.seal = "age".into(),
            |config: &mut Config| config.chunking.algorithm = "other".into(),
            |config: &mut Config| config.compression.algorithm = "other".into(),
        ] {
            let mut changed = config.clone();
            change(&mut changed);
            let error = Config::from_bytes(&changed.to_bytes()).expect_err("refused");
            assert!(matches!(error, Error::Newer { .. }), "{error}");
        }
        let bytes = config.to_bytes();
        let body = &bytes[..bytes.len() - hash_member(b"").len()];
        let more = [body, b",\n  \"colour\": \"red\""].concat();
        assert_eq!(Config::from_bytes(&hashed(&more)).expect("skips a member"), config);
    }

    /// Returns a file with this body and a matching hash.
    fn hashed(body: &[u8]) -> Vec<u8> {
        [body, hash_member(body).as_bytes()].concat()
    }

    fn parameters() -> impl Strategy<Value = Parameters> {
        // Halves, because the sizes are even.
        let sizes = (32..=1u32 << 19, 1..1u32 << 19, 1..1u32 << 19);
        sizes.prop_filter_map("beyond the bounds", |(min, more, still_more)| {
            let (avg, max) = (min + more, min + more + still_more);
            let parameters =
                Parameters { min_bytes: 2 * min, avg_bytes: 2 * avg, max_bytes: 2 * max };
            chunker::Cutter::new(parameters).is_ok().then_some(parameters)
        })
    }

    proptest! {
        #![proptest_config(cases(100))]

        #[test]
        fn any_config_is_read_as_written(
            id: [u8; 16], parameters in parameters(), level: i32, group_readable: bool
        ) {
            let config = Config { group_readable, ..Config::new(id, parameters, level) };
            let read = Config::from_bytes(&config.to_bytes()).expect("reads what it wrote");
            prop_assert_eq!(read.store_id_bytes(), Some(id));
            prop_assert_eq!(read.parameters(), parameters);
            prop_assert_eq!(read, config);
        }

        #[test]
        fn any_bytes_are_a_config_or_an_error(noise in noise(), changes in changes()) {
            let _ = Config::from_bytes(&noise);
            let _ = Config::from_bytes(&hashed(&noise));
            let bytes = Config::new([7; 16], Parameters::DEFAULT, 3).to_bytes();
            let whole = changed(bytes.clone(), &changes);
            prop_assert!(whole == bytes || Config::from_bytes(&whole).is_err());
            // Damage behind a matching hash.
            let body = &bytes[..bytes.len() - hash_member(b"").len()];
            if let Ok(config) = Config::from_bytes(&hashed(&changed(body.to_vec(), &changes))) {
                prop_assert!(chunker::Cutter::new(config.parameters()).is_ok());
                prop_assert!(config.store_id_bytes().is_some());
            }
        }
    }
}
