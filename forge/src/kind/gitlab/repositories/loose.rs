//! Loose objects of a small repository: whether they are all that its references need.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Maximum number of objects that are looked at.
const OBJECTS_MAX: usize = 20_000;
/// Maximum size in bytes of a file, and of an object.
const BYTES_MAX: usize = 16 << 20;

/// Returns true if a repository on this machine has every object of its references as a loose one.
/// Returns false if that is not known: for a reftable, or for too many objects.
pub fn is_complete(dir: &Path) -> bool {
    find(dir).is_some()
}

fn find(dir: &Path) -> Option<()> {
    let mut left: Vec<String> = references(dir)?;
    let mut seen: HashSet<String> = left.iter().cloned().collect();
    while let Some(id) = left.pop() {
        if seen.len() > OBJECTS_MAX {
            return None;
        }
        let needed = needed(&inflate(&read(&path(dir, &id)?)?)?, id.len())?;
        for (id, is_file) in needed {
            if seen.contains(&id) {
                continue;
            }
            if !is_file {
                left.push(id.clone());
            } else if path(dir, &id)?.metadata().ok()?.len() == 0 {
                return None;
            }
            seen.insert(id);
        }
    }
    Some(())
}

fn path(dir: &Path, id: &str) -> Option<PathBuf> {
    let (start, rest) = id.split_at_checked(2)?;
    Some(dir.join("objects").join(start).join(rest))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= BYTES_MAX).then_some(bytes)
}

/// Returns the ids of all references; `None` without any.
fn references(dir: &Path) -> Option<Vec<String>> {
    let packed = read(&dir.join("packed-refs")).unwrap_or_default();
    let mut texts = vec![String::from_utf8_lossy(&packed).into_owned()];
    let mut dirs = vec![dir.join("refs")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).ok()?.flatten() {
            if entry.file_type().ok()?.is_dir() {
                dirs.push(entry.path());
            } else {
                texts.push(String::from_utf8(read(&entry.path())?).ok()?);
            }
        }
    }
    let lines = texts.iter().flat_map(|text| text.lines());
    let ids =
        lines.map(|line| line.trim_start_matches('^')).filter_map(|line| line.split(' ').next());
    let is_id =
        |id: &&str| [40, 64].contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit());
    let ids: Vec<String> = ids.filter(is_id).map(str::to_owned).collect();
    (!ids.is_empty()).then_some(ids)
}

/// Returns the objects that an object names, each with whether it is a file's content, which names
/// none. Ids have `digits` digits in hex.
fn needed(object: &[u8], digits: usize) -> Option<Vec<(String, bool)>> {
    let end = object.iter().position(|byte| *byte == 0)?;
    let (kind, content) = (object[..end].split(|byte| *byte == b' ').next()?, &object[end + 1..]);
    if kind == b"tree" {
        return entries(content, digits / 2);
    }
    let text = String::from_utf8_lossy(content);
    let lines = text.lines().take_while(|line| !line.is_empty());
    let is_of_file = text.lines().nth(1) == Some("type blob");
    match kind {
        b"blob" => Some(Vec::new()),
        b"commit" | b"tag" => Some(
            lines
                .filter_map(|line| line.split_once(' '))
                .filter(|(name, _)| ["tree", "parent", "object"].contains(name))
                .map(|(name, id)| (id.to_owned(), name == "object" && is_of_file))
                .collect(),
        ),
        _ => None,
    }
}

/// Returns the entries of a directory, without those of other repositories.
fn entries(mut content: &[u8], id_bytes: usize) -> Option<Vec<(String, bool)>> {
    let mut found = Vec::new();
    while !content.is_empty() {
        let end = content.iter().position(|byte| *byte == 0)?;
        let (head, rest) = (&content[..end], &content[end + 1..]);
        let (id, rest) = rest.split_at_checked(id_bytes)?;
        content = rest;
        if !head.starts_with(b"160000 ") {
            let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            found.push((id, !head.starts_with(b"40000 ")));
        }
    }
    Some(found)
}

/// Decompresses a zlib stream, as RFC 1951 describes it. Does not compare the checksum.
fn inflate(zlib: &[u8]) -> Option<Vec<u8>> {
    let (mut bits, mut out) = (Bits { bytes: zlib, at: 16 }, Vec::new());
    loop {
        let is_last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => stored(&mut bits, &mut out)?,
            1 => {
                let literals = [[8; 144].as_slice(), &[9; 112], &[7; 24], &[8; 8]].concat();
                compressed(&mut bits, &Code::new(&literals), &Code::new(&[5; 30]), &mut out)?;
            }
            2 => {
                let (literals, distances) = codes(&mut bits)?;
                compressed(&mut bits, &literals, &distances, &mut out)?;
            }
            _ => return None,
        }
        if is_last {
            return Some(out);
        }
    }
}

/// Bits of a stream, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    /// Number of the next bit.
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: usize) -> Option<usize> {
        let mut value = 0;
        for bit in 0..count {
            let byte = self.bytes.get(self.at / 8)?;
            value |= usize::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Some(value)
    }
}

/// A Huffman code.
struct Code {
    /// Number of symbols by the length of their code.
    counts: [usize; 16],
    /// Symbols in the order of their codes.
    symbols: Vec<usize>,
}

impl Code {
    /// Makes the code from the lengths of all symbols; 0 for an unused one.
    fn new(lengths: &[usize]) -> Code {
        let of = |length: usize| lengths.iter().filter(|known| **known == length).count();
        let counts = std::array::from_fn(|length| if length == 0 { 0 } else { of(length) });
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|at| lengths[*at] > 0).collect();
        symbols.sort_by_key(|at| lengths[*at]);
        Code { counts, symbols }
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Option<usize> {
        let (mut code, mut first, mut before) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= bits.take(1)?;
            if code < first + count {
                return self.symbols.get(before + code - first).copied();
            }
            before += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

fn stored(bits: &mut Bits<'_>, out: &mut Vec<u8>) -> Option<()> {
    bits.at = bits.at.next_multiple_of(8);
    let length = bits.take(16)?;
    let start = bits.at / 8 + 2;
    out.extend(bits.bytes.get(start..start + length)?);
    bits.at = (start + length) * 8;
    (out.len() <= BYTES_MAX).then_some(())
}

/// Reads the codes of literals and distances.
fn codes(bits: &mut Bits<'_>) -> Option<(Code, Code)> {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let (literals, distances) = (bits.take(5)? + 257, bits.take(5)? + 1);
    let mut own = [0; 19];
    for at in ORDER.iter().take(bits.take(4)? + 4) {
        own[*at] = bits.take(3)?;
    }
    let own = Code::new(&own);
    let mut lengths: Vec<usize> = Vec::new();
    while lengths.len() < literals + distances {
        let (value, count) = match own.symbol(bits)? {
            16 => (*lengths.last()?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length, 1),
        };
        lengths.extend(std::iter::repeat_n(value, count));
    }
    let (literals, distances) = lengths.split_at(literals);
    Some((Code::new(literals), Code::new(distances)))
}

fn compressed(
    bits: &mut Bits<'_>,
    literals: &Code,
    distances: &Code,
    out: &mut Vec<u8>,
) -> Option<()> {
    loop {
        let length = match literals.symbol(bits)? {
            byte @ 0..256 => {
                out.push(u8::try_from(byte).ok()?);
                continue;
            }
            256 => return Some(()),
            symbol @ 257..265 => symbol - 254,
            symbol @ 265..285 => {
                let more = (symbol - 261) / 4;
                ((4 + (symbol - 265) % 4) << more) + 3 + bits.take(more)?
            }
            285 => 258,
            _ => return None,
        };
        let distance = match distances.symbol(bits)? {
            symbol @ 0..4 => symbol + 1,
            symbol @ 4..30 => {
                let more = symbol / 2 - 1;
                ((2 + symbol % 2) << more) + 1 + bits.take(more)?
            }
            _ => return None,
        };
        for _ in 0..length {
            out.push(*out.get(out.len().checked_sub(distance)?)?);
        }
        if out.len() > BYTES_MAX {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::gitlab::repositories::git::git;

    /// Returns the paths of all objects.
    fn objects(dir: &Path) -> Vec<PathBuf> {
        let dirs = std::fs::read_dir(dir.join("objects")).expect("lists").flatten();
        let dirs = dirs.filter(|dir| dir.file_name().len() == 2);
        let files = dirs.flat_map(|dir| std::fs::read_dir(dir.path()).expect("lists").flatten());
        files.map(|file| file.path()).collect()
    }

    #[test]
    fn every_object_of_a_reference_is_needed() {
        for hash in ["sha1", "sha256"] {
            let scratch = tempfile::tempdir().expect("a directory");
            let dir = scratch.path().join("one.git");
            git(&dir, &["init", "-q", "--bare", &format!("--object-format={hash}")], "");
            let noise: String =
                (0..4000_u64).map(|n| format!("{}\n", n * n * 7919 % 10_007)).collect();
            let stream = format!(
                "commit refs/heads/main\ncommitter A <a@b> 1 +0000\ndata 1\nA\
                 \nM 644 inline dir/file\ndata {}\n{noise}\nM 644 inline other\ndata 3\nabc\n\
                 commit refs/heads/main\ncommitter A <a@b> 2 +0000\ndata {}\n{noise}\
                 \nM 644 inline dir/{}\ndata 2\nde\n\n",
                noise.len(),
                noise.len(),
                "long".repeat(50),
            );
            git(&dir, &["-c", "fastimport.unpackLimit=1000", "fast-import", "--quiet"], &stream)
                .expect("works");
            git(&dir, &["tag", "-a", "-m", "one", "v1", "main"], "").expect("works");
            let all = objects(&dir);
            assert_eq!(all.len(), 2 + 1 + 4 + 3, "{all:?}");
            assert!(is_complete(&dir), "{hash}");
            git(&dir, &["pack-refs", "--all"], "").expect("works");
            assert!(is_complete(&dir), "{hash}");
            for object in all {
                let aside = scratch.path().join("aside");
                std::fs::rename(&object, &aside).expect("moves");
                assert!(!is_complete(&dir), "{hash}: {object:?}");
                std::fs::rename(&aside, &object).expect("moves");
            }
            git(&dir, &["repack", "-adq"], "").expect("works");
            assert!(!is_complete(&dir), "{hash}: packs are not read");
        }
    }

    #[test]
    fn objects_are_decompressed_as_git_does() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("one.git");
        git(&dir, &["init", "-q", "--bare"], "").expect("works");
        let text: String = (0..9000).map(|n| format!("{} {}\n", n, n % 17)).collect();
        for (level, text) in [("0", &*text), ("1", &text), ("9", &text), ("9", "abc"), ("9", "")] {
            let level = format!("core.compression={level}");
            let id = git(&dir, &["-c", &level, "hash-object", "-w", "--stdin"], text);
            let file = read(&path(&dir, &id.expect("an id")).expect("a path")).expect("reads");
            let object = inflate(&file).expect("is whole");
            assert_eq!(object, format!("blob {}\0{text}", text.len()).into_bytes(), "{level}");
            for end in [file.len() / 2, 3] {
                assert_eq!(inflate(&file[..end]), None, "{level}");
            }
            std::fs::remove_dir_all(dir.join("objects")).expect("removes");
            std::fs::create_dir(dir.join("objects")).expect("creates");
        }
    }
}
