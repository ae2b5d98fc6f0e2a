//! Objects of a repository, by the names and sizes of their files.

use crate::error::Result;
use crate::view::{FileBelow, View};
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Smallest pack in bytes: a header and a checksum.
const PACK_BYTES_MIN: u64 = 12 + 20;
/// Smallest index of a pack in bytes: a table of 256 numbers and two checksums.
const INDEX_BYTES_MIN: u64 = 256 * 4 + 2 * 20;
/// First bytes of a pack.
const PACK_MAGIC: [u8; 4] = *b"PACK";
/// First bytes of an index since version 2.
const INDEX_MAGIC: u64 = 0xff74_4f63;
/// Bytes of a checksum, for both kinds of hash.
const CHECKSUMS: [usize; 2] = [20, 32];
/// Loose objects whose first bytes are read.
const LOOSE_MAX: usize = 4;

/// Files with objects.
#[derive(Default)]
pub struct Objects {
    packs: BTreeMap<PathBuf, Pack>,
    /// Newest loose objects, each with the time of its last change and its size.
    loose: Vec<(i64, PathBuf, u64)>,
    has_empty: bool,
}

#[derive(Default)]
struct Pack {
    /// Size of the pack in bytes.
    size: Option<u64>,
    /// Size of its index in bytes.
    index: Option<u64>,
    mtime: i64,
}

impl Objects {
    /// Adds the files below a directory, which stands for `inner` in the directory `objects` of a
    /// repository.
    pub fn list(&mut self, view: &View<'_>, dir: &Path, inner: &str) -> Result<()> {
        view.files_below(dir, &mut |file| {
            self.add(&Path::new(inner).join(file.path), file);
            ControlFlow::Continue(())
        })
    }

    fn add(&mut self, path: &Path, file: &FileBelow<'_>) {
        let Some((dir, name)) = path.to_str().and_then(|path| path.split_once('/')) else {
            return;
        };
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if dir.len() == 2 && is_hex(dir) && [38, 62].contains(&name.len()) && is_hex(name) {
            self.has_empty |= file.size == 0;
            self.loose.push((file.mtime, path.to_owned(), file.size));
            if self.loose.len() > LOOSE_MAX {
                self.loose.sort_by_key(|(mtime, ..)| Reverse(*mtime));
                self.loose.truncate(LOOSE_MAX);
            }
        } else if dir == "pack" && name.starts_with("pack-") && !name.contains('/') {
            let end = path.extension().and_then(|end| end.to_str());
            if !matches!(end, Some("pack" | "idx")) {
                return;
            }
            let pack = self.packs.entry(path.with_extension("")).or_default();
            if end == Some("pack") {
                (pack.size, pack.mtime) = (Some(file.size), file.mtime);
            } else {
                pack.index = Some(file.size);
            }
        }
    }

    /// Returns true if there is an object.
    pub fn is_any(&self) -> bool {
        !self.loose.is_empty() || self.has_packs()
    }

    /// Returns true if there is a pack with its index.
    pub fn has_packs(&self) -> bool {
        self.packs.values().any(Pack::is_whole)
    }

    /// Returns the fault that names and sizes show.
    pub fn fault(&self) -> Option<&'static str> {
        let any = |is: fn(&Pack) -> bool| self.packs.values().any(is);
        if any(|pack| pack.size.is_none()) {
            Some("lacks a pack whose index it has")
        } else if any(|pack| pack.index.is_none()) {
            Some("lacks the index of a pack")
        } else if any(|pack| pack.size.is_some_and(|size| size < PACK_BYTES_MIN)) {
            Some("has a truncated pack")
        } else if any(|pack| pack.index.is_some_and(|size| size < INDEX_BYTES_MIN)) {
            Some("has a truncated index of a pack")
        } else if self.has_empty {
            Some("has an empty object")
        } else {
            None
        }
    }

    /// Returns true if a pack has the object with this id in hex. Reads the indexes of packs on this
    /// machine, in the directory `objects` of the repository; `None` if one of them is not there.
    pub fn has(&self, id: &str, dir: &Path) -> Option<bool> {
        let id = bytes_of(id)?;
        let mut packs: Vec<_> = self.packs.iter().collect();
        packs.sort_by_key(|(_, pack)| Reverse(pack.mtime));
        let mut is_known = true;
        for (stem, _) in packs.into_iter().filter(|(_, pack)| pack.is_whole()) {
            match is_in_index(&dir.join(stem).with_extension("idx"), &id) {
                Ok(true) => return Some(true),
                Ok(false) => {}
                Err(_) => is_known = false,
            }
        }
        is_known.then_some(false)
    }

    /// Returns true if the largest pack, the newest pack or one of the newest objects is damaged at
    /// its ends on this machine. A file that has gone or changed since is not judged.
    pub fn has_wrong_ends(&self, dir: &Path) -> bool {
        let largest = self.packs.iter().max_by_key(|(_, pack)| pack.size);
        let newest = self.packs.iter().max_by_key(|(_, pack)| pack.mtime);
        let is_wrong = |(stem, pack): (&PathBuf, &Pack)| {
            pack.has_wrong_ends(&dir.join(stem)).unwrap_or_default()
        };
        largest.into_iter().chain(newest).any(is_wrong)
            || self
                .loose
                .iter()
                .any(|(_, path, size)| has_wrong_start(&dir.join(path), *size).unwrap_or_default())
    }
}

/// Searches the index of a pack for an object: by its first byte in a table of counts, then in the
/// sorted ids.
fn is_in_index(path: &Path, id: &[u8]) -> io::Result<bool> {
    let (file, _) = open(path)?;
    let number = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).map(|()| u64::from(u32::from_be_bytes(bytes)))
    };
    // Version 1 has an offset before each id, and no magic number.
    let (table, gap) = if number(0)? == INDEX_MAGIC { (8, 0) } else { (0, 4) };
    let Some(&first) = id.first() else { return Ok(false) };
    let count = |byte: u8| number(table + 4 * u64::from(byte));
    let mut low = if first == 0 { 0 } else { count(first - 1)? };
    let mut high = count(first)?;
    let mut known = vec![0; id.len()];
    while low < high {
        let middle = low + (high - low) / 2;
        let at = table + 256 * 4 + middle * (gap + id.len() as u64) + gap;
        file.read_exact_at(&mut known, at)?;
        match known.as_slice().cmp(id) {
            Ordering::Equal => return Ok(true),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(false)
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits = (0..hex.len()).step_by(2).map(|at| hex.get(at..at + 2));
    digits.map(|digits| u8::from_str_radix(digits?, 16).ok()).collect()
}

impl Pack {
    fn is_whole(&self) -> bool {
        self.size.is_some() && self.index.is_some()
    }

    /// An index ends in the checksum of its pack, and its own.
    fn has_wrong_ends(&self, stem: &Path) -> io::Result<bool> {
        let (pack, size) = open(&stem.with_extension("pack"))?;
        let (index, index_size) = open(&stem.with_extension("idx"))?;
        if self.size != Some(size) || self.index != Some(index_size) {
            return Ok(false);
        }
        let mut magic = [0; PACK_MAGIC.len()];
        pack.read_exact_at(&mut magic, 0)?;
        let is_same = |length: &usize| {
            let (mut own, mut named) = ([0; 32], [0; 32]);
            let (own, named) = (&mut own[..*length], &mut named[..*length]);
            let length = *length as u64;
            pack.read_exact_at(own, size.saturating_sub(length))?;
            index.read_exact_at(named, index_size.saturating_sub(2 * length))?;
            Ok::<_, io::Error>(own == named && own.iter().any(|byte| *byte != 0))
        };
        let same: Vec<bool> = CHECKSUMS.iter().map(is_same).collect::<io::Result<_>>()?;
        Ok(magic != PACK_MAGIC || !same.contains(&true))
    }
}

/// Returns true if a loose object does not begin as zlib does.
fn has_wrong_start(path: &Path, size: u64) -> io::Result<bool> {
    let (file, size_now) = open(path)?;
    let mut start = [0; 2];
    file.read_exact_at(&mut start, 0)?;
    let is_zlib = start[0] & 0x8f == 0x08 && u16::from_be_bytes(start).is_multiple_of(31);
    Ok(size_now == size && !is_zlib)
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    // Opening a pipe would block.
    if !path.symlink_metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}
