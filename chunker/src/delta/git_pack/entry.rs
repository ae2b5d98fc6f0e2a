//! A pack entry: a short header (type, length and the base of a delta) and a compressed body.

use crate::delta::Reference;

/// Maximum length of a header: ten bytes of length, and an id.
const HEAD_MAX: usize = 10 + 32;

/// Bytes that an entry of a reference shares with the pack's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryMatch {
    /// None known.
    Nothing,
    /// All except a part of the header.
    Body {
        /// Number of leading header bytes that are equal.
        lead: u8,
        /// Length in bytes of the header in the pack.
        head: u8,
        /// Length in bytes of the header in the reference.
        head_there: u8,
    },
    /// All.
    Whole,
}

impl EntryMatch {
    /// Compares `entry` with the entry at `there`. The first `same` bytes are known to be equal.
    /// For a long entry, `entry` may be only its beginning.
    pub fn of(
        pack: &mut dyn Reference,
        there: u64,
        entry: &[u8],
        same: usize,
        id_len: usize,
    ) -> EntryMatch {
        if same == entry.len() {
            return EntryMatch::Whole;
        }
        let Some(head) = head_len(entry, id_len) else { return EntryMatch::Nothing };
        // Different bodies differ in their first bytes, so these suffice.
        if same >= head {
            return EntryMatch::Nothing;
        }
        let Some(head_there) = head_there(pack, there, id_len) else { return EntryMatch::Nothing };
        let body = &entry[head..];
        if pack.common_prefix(there + head_there as u64, body) < body.len() {
            return EntryMatch::Nothing;
        }
        EntryMatch::Body { lead: same as u8, head: head as u8, head_there: head_there as u8 }
    }

    /// Returns the header lengths in the pack and in the reference if only the bodies are equal;
    /// else zeros.
    pub fn heads(self) -> (u64, u64) {
        match self {
            EntryMatch::Body { head, head_there, .. } => (u64::from(head), u64::from(head_there)),
            EntryMatch::Nothing | EntryMatch::Whole => (0, 0),
        }
    }
}

fn head_there(pack: &mut dyn Reference, there: u64, id_len: usize) -> Option<usize> {
    let mut bytes = [0; HEAD_MAX];
    let len = pack.read(there, &mut bytes);
    head_len(&bytes[..len], id_len)
}

/// Returns the length of the header in bytes, or `None` if the header is invalid.
fn head_len(entry: &[u8], id_len: usize) -> Option<usize> {
    const OFS_DELTA: u8 = 6;
    const REF_DELTA: u8 = 7;
    let number = |from: usize| {
        let bytes = entry.get(from..)?.iter().take(10);
        Some(from + bytes.take_while(|byte| **byte & 0x80 != 0).count() + 1)
    };
    let size_end = number(0)?;
    let end = match (entry.first()? >> 4) & 7 {
        1..=4 => size_end,
        OFS_DELTA => number(size_end)?,
        REF_DELTA => size_end + id_len,
        _ => return None,
    };
    (end <= entry.len()).then_some(end)
}
