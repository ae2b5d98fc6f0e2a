//! An entry: a short head (type, length, and for a delta where its reference is) and a compressed body.

use crate::delta::Reference;

/// The longest head of an entry: ten bytes of length, and an id.
const HEAD_MAX: usize = 10 + 32;

/// What an entry of a reference has in common with that of the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryMatch {
    /// Nothing that is known.
    Nothing,
    /// All but a part of the head.
    Body {
        /// Bytes of the head that are the same.
        lead: u8,
        /// Bytes of the head here.
        head: u8,
        /// Bytes of the head there.
        head_there: u8,
    },
    /// Everything.
    Whole,
}

impl EntryMatch {
    /// What the entry at `there` has in common with `entry`, which begins with `same` bytes that
    /// are there too. Of a long entry, `entry` may be the beginning.
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
        // An entry with another body differs in its first bytes; no need to look further.
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

    /// Bytes of the heads here and there that are not the same.
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

/// Bytes of an entry before its body; nothing if it is none.
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
