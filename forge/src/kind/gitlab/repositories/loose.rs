//! Search for the loose objects that the references of a small repository need.

use flate2::read::ZlibDecoder;
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

/// Decompresses an object.
fn inflate(zlib: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    ZlibDecoder::new(zlib).take(BYTES_MAX as u64 + 1).read_to_end(&mut out).ok()?;
    (out.len() <= BYTES_MAX).then_some(out)
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
