//! The id of a run. Snapshots and notifications of one run share it.

use crate::exit::{Failure, other};
use std::fmt;

/// A random UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunId([u8; 16]);

impl RunId {
    /// Returns a new random id.
    pub fn random() -> Result<RunId, Failure> {
        let bytes = store::random::bytes()
            .map_err(|error| other(format!("cannot get random numbers: {error}")))?;
        Ok(RunId::from_bytes(bytes))
    }

    /// Returns the id with these bytes, except the bits that mark a UUID as random.
    pub fn from_bytes(mut bytes: [u8; 16]) -> RunId {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        RunId(bytes)
    }

    /// Returns its bytes.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&store::random::uuid_text(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_is_a_random_uuid() {
        let id = RunId::from_bytes([0xff; 16]);
        assert_eq!(id.to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(RunId::from_bytes(id.bytes()), id);
        assert_ne!(RunId::random().expect("random"), RunId::random().expect("random"));
    }
}
