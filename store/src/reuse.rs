//! Reuse: stores a changed file as extents of existing chunks.
//!
//! A [format](chunker::delta) compares the file with *references*, files of the previous snapshot.
//! These are read back from the store and verified. Equal bytes become slices of the underlying
//! chunks, so a recipe never depends on another recipe. All other bytes become new chunks.
//!
//! A slice keeps its whole chunk alive, even if a recipe uses little of it. A [limit](Allowance)
//! therefore bounds the bytes that a file's chunks hold beyond the file's own. Above the limit,
//! slices of the least used chunks are *copied forward* into new ones.

mod parts;
mod recipe_builder;
mod reference;
mod spool;
#[cfg(test)]
mod tests;

use crate::entry::{Content, Entry};
use crate::error::Error;
use crate::observe::Progress;
use crate::packer::Packer;
use crate::recipe::Recipe;
use crate::source::{Ahead, read_full, read_stream};
use crate::store::Store;
use chunker::Cutter;
use chunker::delta::{DeltaError, Reference, Source, dump, git_idx, git_pack};
use parking_lot::{Mutex, MutexGuard};
use parts::{Thinning, Until};
use recipe_builder::RecipeBuilder;
pub use recipe_builder::ReusedBytes;
use reference::{Reader, ReferenceFile};
pub use spool::{scratch, scratch_full};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Smaller files are not compared with anything.
const COMPARED_BYTES_MIN: u64 = 8 << 10;
/// Dumps: copies up to 512 bytes per piece saved. These compress to a quarter, while a piece takes
/// two bytes in every later recipe. Freshly written rows are close together and mostly new, so they
/// become whole pieces on the first night.
const ROWS: Thinning = Thinning { part_bytes: 4 << 10, until: Until::Cost(512) };
/// Packs and their indexes do not compress, so a piece is cheaper than the copy that saves it. The
/// limit only keeps the size of pieces stable after the first repack. A repack leaves 600 to 800
/// bytes per piece of a pack, and 65 to 95 of an index.
const ENTRIES: Thinning = Thinning { part_bytes: 1 << 10, until: Until::Average(512) };
const INDEX_ROWS: Thinning = Thinning { part_bytes: 1 << 10, until: Until::Average(60) };
/// Maximum number of references per file.
pub const REFERENCES_MAX: usize = 8 << 10;
/// References whose indexes are read from the store again and again. Those of all further ones are
/// in memory.
const STORED_INDEXES: usize = 64;
/// Maximum bytes of indexes in memory. Packs beyond that are not compared.
const INDEX_BYTES: u64 = 32 << 20;
/// Bytes of a file examined to detect its format.
const HEAD_BYTES: usize = 4 << 10;
/// Bytes compared at once of a file that may be unchanged.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes read ahead for small requests.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// Divisor: the chunks of a file may hold unused bytes up to a fourth of its length.
const UNUSED_PART: u64 = 4;

/// Number of unused bytes that the chunks of all files may still hold.
///
/// Each file may have its length divided by [`UNUSED_PART`]. It may also take the unused rest of
/// other files' shares. Little is therefore copied while most of the backed-up data never changes.
#[derive(Debug, Default)]
pub struct Allowance {
    left: AtomicI64,
}

impl Allowance {
    /// Returns the allowance left by a snapshot of `bytes` bytes whose chunks hold `unused` unused
    /// bytes.
    pub fn of(bytes: u64, unused: u64) -> Allowance {
        Allowance { left: AtomicI64::new(share(bytes, unused)) }
    }

    /// Removes a file and the share that it left to others.
    pub fn withdraw(&self, entry: &Entry) {
        let share = share(entry.size, entry.unused);
        // A few sparse files can be large enough to exceed every number.
        let less = |left: i64| Some(left.saturating_sub(share));
        let _ = self.left.fetch_update(Relaxed, Relaxed, less);
    }

    /// Returns taken bytes that are not needed.
    fn give_back(&self, bytes: u64) {
        self.left.fetch_add(i64::try_from(bytes).unwrap_or(i64::MAX), Relaxed);
    }

    /// Takes up to `wanted` bytes and returns the number taken.
    fn take(&self, wanted: u64) -> u64 {
        let grant = |left: i64| wanted.min(left.max(0) as u64);
        let taken = |left| Some(left - grant(left) as i64);
        self.left.fetch_update(Relaxed, Relaxed, taken).map_or(0, grant)
    }
}

fn share(bytes: u64, unused: u64) -> i64 {
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    number(bytes / UNUSED_PART).saturating_sub(number(unused))
}

/// Files of the previous snapshot that a file may resemble.
#[derive(Clone, Copy)]
pub enum Hint<'a> {
    /// None known.
    Nothing,
    /// The file's own previous version.
    Itself,
    /// A git pack.
    Pack {
        /// Index of the pack.
        index: &'a File,
        /// Packs of the same directory and their indexes.
        references: &'a [(&'a Entry, &'a Entry)],
    },
    /// The index of a git pack.
    PackIndex {
        /// Packs of the same directory and their indexes.
        references: &'a [(&'a Entry, &'a Entry)],
    },
}

/// Result of reusing a file.
pub struct Reused {
    /// Recipe of the file.
    pub recipe: Recipe,
    /// Length in bytes.
    pub len: u64,
    /// Origin of its bytes.
    pub reused: ReusedBytes,
    /// Bytes of its chunks that it does not need.
    pub unused: u64,
}

/// Reason why a comparison was abandoned.
#[derive(Debug)]
pub enum ReuseError {
    /// The source cannot be read.
    Source(io::Error),
    /// A file of the previous snapshot has become unreadable.
    Lost(Error),
    /// The store cannot be written, or the run was cancelled.
    Store(Error),
}

impl From<io::Error> for ReuseError {
    fn from(error: io::Error) -> ReuseError {
        ReuseError::Source(error)
    }
}

impl From<Error> for ReuseError {
    fn from(error: Error) -> ReuseError {
        ReuseError::Store(error)
    }
}

/// Compares files with references.
#[derive(Clone, Copy)]
pub struct Reuse<'a> {
    /// Contains the references.
    pub store: &'a Store,
    /// Receives new chunks.
    pub packer: &'a Packer<'a>,
    /// Cuts new bytes of most files.
    pub cutter: Cutter,
    /// Cuts new bytes of git packs and their indexes.
    pub fine_cutter: Cutter,
    /// Limit on unused bytes in chunks.
    pub allowance: &'a Allowance,
    /// Held while indexes of many packs are in memory, by one thread at a time.
    pub many_packs: &'a Mutex<()>,
}

impl<'a> Reuse<'a> {
    /// Returns the recipe of a file of `len` bytes, or `None` if it cannot be compared.
    /// `DeltaError::Format` means that the file is not of the expected format.
    pub fn file(
        &self,
        file: &File,
        len: u64,
        before: Option<&Entry>,
        like: Hint<'_>,
    ) -> Result<Option<Reused>, DeltaError<Error>> {
        self.compared(file, len, before, like).or_else(|error| match error {
            DeltaError::Format(error) => Err(DeltaError::Format(error)),
            DeltaError::Failed(ReuseError::Store(error)) => Err(DeltaError::Failed(error)),
            // The unreadable file may be a pack's index or a reference. If it is the file itself,
            // the plain read that follows reports it.
            DeltaError::Failed(ReuseError::Source(_) | ReuseError::Lost(_)) => Ok(None),
        })
    }

    fn compared(
        &self,
        file: &File,
        len: u64,
        before: Option<&Entry>,
        like: Hint<'_>,
    ) -> Result<Option<Reused>, DeltaError<ReuseError>> {
        if len < COMPARED_BYTES_MIN || matches!(like, Hint::Nothing) {
            return Ok(None);
        }
        if let Some(before) = before.filter(|before| before.size == len)
            && let Some(reused) = self.unchanged(file, before).map_err(DeltaError::Failed)?
        {
            return Ok(Some(reused));
        }
        match like {
            Hint::Itself => {
                let Some(entry) = before else { return Ok(None) };
                let mut head = [0; HEAD_BYTES];
                let filled = read_full(file, &mut head, 0)
                    .map_err(|error| DeltaError::Failed(error.into()))?;
                if !dump::detect(&head[..filled]) {
                    return Ok(None);
                }
                let mut at = 0;
                let mut next = |buffer: &mut [u8]| {
                    let wanted = buffer.len().min((len - at) as usize);
                    let read = read_full(file, &mut buffer[..wanted], at)?;
                    at += read as u64;
                    Ok(read)
                };
                self.itself(&mut next, entry).map_err(DeltaError::Failed)
            }
            Hint::Nothing
            | Hint::Pack { references: [], .. }
            | Hint::PackIndex { references: [] } => Ok(None),
            Hint::Pack { index, references } => self.pack(file, len, index, references).map(Some),
            Hint::PackIndex { references } => self.pack_index(file, len, references).map(Some),
        }
    }

    /// Returns the recipe of a stream, compared with its previous version.
    pub fn stream(
        &self,
        input: &mut dyn Read,
        before: &Entry,
    ) -> Result<Option<Reused>, ReuseError> {
        let mut next = |buffer: &mut [u8]| Ok(read_stream(input, buffer)?);
        self.itself(&mut next, before)
    }

    /// Returns the previous recipe if the file was touched but has not changed.
    fn unchanged(&self, file: &File, before: &Entry) -> Result<Option<Reused>, ReuseError> {
        let reader = Reader::new(self.store);
        let (Some(mut reference), Content::Recipe(recipe)) =
            (reference_file(&reader, before), &before.content)
        else {
            return Ok(None);
        };
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = 0;
        while at < before.size {
            self.store.observer().progress().check()?;
            let step = piece.len().min((before.size - at) as usize);
            let read = read_full(file, &mut piece[..step], at)?;
            if read < step || reference.common_prefix(at, &piece[..step]) < step {
                return Ok(None);
            }
            at += step as u64;
        }
        let reused = ReusedBytes { by_extent: before.size, ..ReusedBytes::default() };
        let unused = before.unused;
        Ok(Some(Reused { recipe: recipe.clone(), len: before.size, reused, unused }))
    }

    fn itself(
        &self,
        next: &mut dyn FnMut(&mut [u8]) -> Result<usize, ReuseError>,
        before: &Entry,
    ) -> Result<Option<Reused>, ReuseError> {
        let reader = Reader::new(self.store);
        let Some(mut reference) = reference_file(&reader, before) else { return Ok(None) };
        self.allowance.withdraw(before);
        let resolve = reference_file(&reader, before).into_iter().collect();
        let mut builder = RecipeBuilder::new(self, &reader, resolve, self.cutter, ROWS);
        let mut next = |buffer: &mut [u8]| {
            self.store.observer().progress().check()?;
            next(buffer)
        };
        dump::compare(&mut next, &mut reference, &mut builder)?;
        Ok(Some(builder.finish()?))
    }

    fn pack(
        &self,
        file: &File,
        len: u64,
        index: &File,
        references: &[(&Entry, &Entry)],
    ) -> Result<Reused, DeltaError<ReuseError>> {
        let reader = Reader::new(self.store);
        let _lock = self.lock_many(references);
        let open = |(entry, index)| Some((reference_file(&reader, entry)?, index));
        let indexes = indexes(&reader, references);
        let mut pairs: Vec<(ReferenceFile<'_>, IndexFile<'_>)> =
            indexes.into_iter().filter_map(open).collect();
        let resolve = pairs.iter().map(|(pack, _)| pack.clone()).collect();
        let mut packs: Vec<git_pack::PackReference<'_>> =
            pairs.iter_mut().map(|(pack, index)| git_pack::PackReference { pack, index }).collect();
        let mut builder = RecipeBuilder::new(self, &reader, resolve, self.fine_cutter, ENTRIES);
        let index_len = index.metadata().map_err(|error| DeltaError::Failed(error.into()))?.len();
        let (mut pack, mut index) = (self.source(file, len), self.source(index, index_len));
        git_pack::compare(&mut pack, &mut index, &mut packs, &mut builder)?;
        builder.finish().map_err(DeltaError::Failed)
    }

    fn pack_index(
        &self,
        file: &File,
        len: u64,
        references: &[(&Entry, &Entry)],
    ) -> Result<Reused, DeltaError<ReuseError>> {
        let reader = Reader::new(self.store);
        let _lock = self.lock_many(references);
        let mut indexes: Vec<IndexFile<'_>> =
            indexes(&reader, references).into_iter().map(|(_, index)| index).collect();
        let resolve = indexes.iter().map(|index| index.file.clone()).collect();
        let mut references: Vec<&mut dyn Reference> =
            indexes.iter_mut().map(|index| index as &mut dyn Reference).collect();
        let mut builder = RecipeBuilder::new(self, &reader, resolve, self.fine_cutter, INDEX_ROWS);
        git_idx::compare(&mut self.source(file, len), &mut references, &mut builder)?;
        builder.finish().map_err(DeltaError::Failed)
    }

    fn lock_many(&self, references: &[(&Entry, &Entry)]) -> Option<MutexGuard<'a, ()>> {
        (references.len() > STORED_INDEXES).then(|| self.many_packs.lock())
    }

    fn source<'f>(&self, file: &'f File, len: u64) -> FileSource<'f>
    where
        'a: 'f,
    {
        let progress = self.store.observer().progress();
        FileSource { file, progress, len, ahead: Ahead::new(file, len, READ_AHEAD_BYTES) }
    }
}

/// Returns the content of an entry, if it is in chunks.
fn reference_file<'a>(reader: &'a Reader<'a>, entry: &Entry) -> Option<ReferenceFile<'a>> {
    match &entry.content {
        Content::Recipe(recipe) => Some(ReferenceFile::new(reader, recipe, entry.size)),
        Content::Empty | Content::Inline(_) => None,
    }
}

/// The index of a pack.
struct IndexFile<'a> {
    file: ReferenceFile<'a>,
    /// Its content, if it is in memory.
    bytes: Option<Vec<u8>>,
}

/// Opens the indexes of packs. Omits packs whose indexes cannot be read or are too large together.
fn indexes<'r, 'a>(
    reader: &'a Reader<'a>,
    references: &[(&'r Entry, &'r Entry)],
) -> Vec<(&'r Entry, IndexFile<'a>)> {
    let mut left = INDEX_BYTES;
    let open = |(n, (pack, index)): (usize, &(&'r Entry, &'r Entry))| {
        let mut file = reference_file(reader, index)?;
        let mut bytes = None;
        if n >= STORED_INDEXES {
            left = left.checked_sub(index.size)?;
            let content = bytes.insert(vec![0; index.size as usize]);
            if file.read(0, content) < content.len() {
                return None;
            }
        }
        Some((*pack, IndexFile { file, bytes }))
    };
    references.iter().enumerate().filter_map(open).collect()
}

impl IndexFile<'_> {
    /// Returns the bytes from an offset on, if they are in memory.
    fn from(&self, offset: u64) -> Option<&[u8]> {
        Some(self.bytes.as_ref()?.get(offset as usize..).unwrap_or_default())
    }
}

impl Reference for IndexFile<'_> {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn common_prefix(&mut self, offset: u64, with: &[u8]) -> usize {
        match self.from(offset) {
            Some(here) => here.iter().zip(with).take_while(|(a, b)| a == b).count(),
            None => self.file.common_prefix(offset, with),
        }
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> usize {
        let Some(here) = self.from(offset) else { return self.file.read(offset, buffer) };
        let len = here.len().min(buffer.len());
        buffer[..len].copy_from_slice(&here[..len]);
        len
    }
}

/// Random access to a file of the source.
struct FileSource<'a> {
    file: &'a File,
    progress: &'a Progress,
    len: u64,
    /// Read-ahead for small requests.
    ahead: Ahead<'a>,
}

impl Source<ReuseError> for FileSource<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ReuseError> {
        self.progress.check()?;
        if buffer.len() >= READ_AHEAD_BYTES {
            return Ok(self.file.read_exact_at(buffer, offset)?);
        }
        buffer.copy_from_slice(self.ahead.read(offset, buffer.len())?);
        Ok(())
    }
}
