//! Ids made of BLAKE3 hashes, one type for each kind of object.

use std::fmt;
use std::hash::{Hash, Hasher};

/// The text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: 64 hexadecimal digits are needed")]
pub struct BadId;

/// Bit that no hexadecimal digit has.
const NO_DIGIT: u8 = 0x80;
/// Values of the lower-case hexadecimal digits. A table, because the digits of a hash defeat the
/// prediction of branches, and stores have very many names.
const DIGITS: [u8; 256] = {
    let (mut values, digits) = ([NO_DIGIT; 256], b"0123456789abcdef");
    let mut value = 0;
    while value < digits.len() {
        values[digits[value] as usize] = value as u8;
        value += 1;
    }
    values
};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = 32;

            /// Returns the id of these bytes: their BLAKE3 hash.
            pub fn of(bytes: &[u8]) -> Self {
                Self(blake3::hash(bytes).into())
            }

            /// Wraps an id that was computed or stored before.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Reads an untrusted id; `None` unless it has 32 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Parses exactly 64 lower-case hexadecimal digits.
            pub fn from_hex(text: &str) -> Result<Self, BadId> {
                if text.len() != 64 {
                    return Err(BadId);
                }
                let (mut out, mut seen) = ([0u8; 32], 0);
                for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                    let [high, low] = [pair[0], pair[1]].map(|digit| DIGITS[usize::from(digit)]);
                    seen |= high | low;
                    *byte = high << 4 | low & 0xF;
                }
                if seen & NO_DIGIT == 0 { Ok(Self(out)) } else { Err(BadId) }
            }

            /// Returns the 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Returns the first eight hexadecimal digits, for display.
            pub fn short(&self) -> String {
                self.to_string()[..8].to_owned()
            }
        }

        impl Hash for $name {
            /// The first bytes distinguish hashes as well as all of them do.
            fn hash<H: Hasher>(&self, state: &mut H) {
                let [a, b, c, d, e, f, g, h, ..] = self.0;
                state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }
    };
}

id_type! {
    /// Id of a chunk: the hash of its plain bytes.
    ChunkId
}
id_type! {
    /// Id of a segment: the hash of all bytes of its file.
    SegmentId
}
id_type! {
    /// Id of a snapshot: the hash of its record's plain bytes.
    SnapshotId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parsed_only_from_their_own_hex() {
        let id = ChunkId::of(b"abc");
        let hex = id.to_string();
        assert_eq!(hex, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
        assert_eq!(ChunkId::from_hex(&hex), Ok(id));
        for bad in ["", "64", &hex.to_uppercase(), &format!("{hex}0"), &hex.replace('6', "g")] {
            assert_eq!(ChunkId::from_hex(bad), Err(BadId), "{bad}");
        }
    }
}
