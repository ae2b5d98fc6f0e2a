//! Objects of a repository, by the names and sizes of their files.

use crate::error::Result;
use crate::view::{FileBelow, View};
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
                self.loose.sort_by_key(|(mtime, ..)| std::cmp::Reverse(*mtime));
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
        let is_whole = |pack: &Pack| pack.size.is_some() && pack.index.is_some();
        !self.loose.is_empty() || self.packs.values().any(is_whole)
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

impl Pack {
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
