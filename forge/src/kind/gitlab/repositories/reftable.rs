//! References in a table of a reftable.
//!
//! A table begins with blocks of references, in the order of their names:
//!
//! ```text
//! table   = header, block…, footer
//! block   = 'r', length in 3 bytes (of the first block: with the header), record…, restarts
//! record  = prefix, suffix << 3 | type, suffix bytes, update index, value
//! ```
//!
//! Numbers before values are variable-length, as in pack offsets.

use std::collections::BTreeMap;

/// Bytes of the header of version 1; version 2 adds the hash.
const HEADER: usize = 24;
/// Bytes of the hash's name in version 2.
const HASH_NAME: usize = 4;
/// Bytes before the records of a block.
const BLOCK_HEAD: usize = 4;
/// Smallest table in bytes: a header and a footer.
pub const TABLE_BYTES_MIN: u64 = 92;
/// Bytes of a restart point at the end of a block, and of their number.
const RESTART: usize = 3;
const RESTART_COUNT: usize = 2;

/// Value of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Id of an object.
    Id(Vec<u8>),
    /// Name of another reference.
    Name(Vec<u8>),
}

/// References by name; `None` marks a removed one.
pub type Names = BTreeMap<Vec<u8>, Option<Value>>;

/// Applies a table to the references of older ones. Returns `None` if the table is damaged.
pub fn apply(table: &[u8], names: &mut Names) -> Option<()> {
    let version = *table.get(4)?;
    if !table.starts_with(b"REFT") || ![1, 2].contains(&version) {
        return None;
    }
    let is_sha256 = version == 2 && table.get(HEADER..HEADER + HASH_NAME)? == b"s256";
    let id = if is_sha256 { 32 } else { 20 };
    let block_size = number(table.get(5..8)?);
    let (mut start, mut head) = (0, HEADER + if version == 2 { HASH_NAME } else { 0 });
    while table.get(start + head) == Some(&b'r') {
        let length = number(table.get(start + head + 1..start + head + BLOCK_HEAD)?);
        let block = table.get(start..start.checked_add(length)?)?;
        block_names(block.get(head + BLOCK_HEAD..)?, id, names)?;
        // Blocks are padded to the size of a block, except in tables without one.
        start += if block_size == 0 { length } else { length.next_multiple_of(block_size) };
        head = 0;
    }
    Some(())
}

fn block_names(records: &[u8], id: usize, names: &mut Names) -> Option<()> {
    let restarts = number(records.get(records.len().checked_sub(RESTART_COUNT)?..)?);
    let end = records.len().checked_sub(RESTART_COUNT + restarts * RESTART)?;
    let mut left = records.get(..end)?;
    let mut name = Vec::new();
    while !left.is_empty() {
        let prefix = varint(&mut left)?;
        let suffix = varint(&mut left)?;
        name.truncate(prefix);
        if name.len() < prefix {
            return None;
        }
        name.extend(take(&mut left, suffix >> 3)?);
        varint(&mut left)?;
        let value = match suffix & 7 {
            0 => None,
            1 => Some(Value::Id(take(&mut left, id)?.to_vec())),
            // The second id is that of a tag's target.
            2 => Some(Value::Id(take(&mut left, 2 * id)?[..id].to_vec())),
            3 => {
                let length = varint(&mut left)?;
                Some(Value::Name(take(&mut left, length)?.to_vec()))
            }
            _ => return None,
        };
        names.insert(name.clone(), value);
    }
    Some(())
}

/// A number of a fixed length, with the highest byte first.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn varint(left: &mut &[u8]) -> Option<usize> {
    let mut byte = *take(left, 1)?.first()?;
    let mut number = usize::from(byte & 0x7f);
    while byte & 0x80 != 0 {
        byte = *take(left, 1)?.first()?;
        number = number.checked_add(1)?.checked_mul(128)?.checked_add(usize::from(byte & 0x7f))?;
    }
    Some(number)
}

fn take<'a>(left: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = left.split_at_checked(count)?;
    *left = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn git(dir: &Path, arguments: &[&str], input: &str) -> String {
        let output = super::super::git::git(dir, arguments, input);
        output.unwrap_or_else(|| panic!("{arguments:?}"))
    }

    fn names(dir: &Path) -> Vec<String> {
        let list = std::fs::read_to_string(dir.join("reftable/tables.list")).expect("reads");
        let mut names = BTreeMap::new();
        for table in list.lines() {
            let table = std::fs::read(dir.join("reftable").join(table)).expect("reads");
            assert!(table.len() as u64 >= TABLE_BYTES_MIN);
            apply(&table, &mut names).expect("is whole");
            // Every truncated table is damaged or has fewer names, but never panics.
            for length in 0..table.len().min(300) {
                let _ = apply(&table[..length], &mut BTreeMap::new());
            }
        }
        let there = names.into_iter().filter(|(_, value)| value.is_some());
        there.map(|(name, _)| String::from_utf8(name).expect("text")).collect()
    }

    #[test]
    fn the_references_of_tables_that_git_wrote_are_found() {
        for format in ["sha1", "sha256"] {
            let scratch = tempfile::tempdir().expect("a directory");
            let dir = scratch.path();
            let format = format!("--object-format={format}");
            git(dir, &["init", "-q", "--bare", "--ref-format=reftable", &format], "");
            assert_eq!(names(dir), ["HEAD"]);
            let tree = git(dir, &["write-tree"], "");
            let commit = git(dir, &["commit-tree", "-m", "x", &tree], "");
            // More than one block.
            let tags = (0..300).map(|tag| format!("create refs/tags/{tag:03} {commit}\n"));
            git(dir, &["update-ref", "--stdin"], &tags.collect::<String>());
            git(dir, &["update-ref", "refs/heads/main", &commit], "");
            git(dir, &["update-ref", "-d", "refs/tags/007"], "");
            let found = names(dir);
            let printed = git(dir, &["for-each-ref", "--format=%(refname)"], "");
            assert_eq!(found[1..], printed.lines().collect::<Vec<_>>()[..]);
            assert_eq!(found.len(), 301);
        }
    }
}
