//! Names of the files that a restore has not finished.

/// Prefix of the names of incomplete files; random digits follow. The writer holds a lock on its
/// file, so a killed restore left any unlocked one.
const PREFIX: &str = ".forgekeep-unfinished-";

/// Marks a target that still lacks the metadata of its directory. A restore that ends early leaves
/// the mark, and the next restore continues.
pub(crate) const MARK: &str = ".forgekeep-unfinished-restore";

/// Returns the name of an incomplete file.
pub(crate) fn name(random: u64) -> Vec<u8> {
    format!("{PREFIX}{random:016x}").into_bytes()
}

/// Returns true for names of incomplete files.
pub(crate) fn is_unfinished(name: &[u8]) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits = name.strip_prefix(PREFIX.as_bytes());
    digits.is_some_and(|digits| digits.len() == 16 && digits.iter().all(is_digit))
}

/// Returns true if this is the name of the mark of a target.
pub(crate) fn is_mark(name: &[u8]) -> bool {
    name == MARK.as_bytes()
}
