//! Turns objects found by the walk into tree entries: reads metadata, cuts and stores content.

use super::absolute;
use super::lenders::Lenders;
use super::run::{BackupState, Counters, FileSystems};
use super::vanished::Vanished;
use crate::entry::{Content, Entry, EntryKind, HardLink};
use crate::error::{Error, Result};
use crate::limits;
use crate::observe::{Event, Observer, Progress};
use crate::packer::{Packer, Stored};
use crate::recipe::{Extent, RecipeWriter};
use crate::reuse::{Hint, Reuse, ReuseError, Reused};
use crate::segment::SegmentKind as ChunkKind;
use crate::source::{self, Attributes, Owners, Stat, read_full, read_stream};
use crate::walk::{self, Excluded, Found, Root};
use chunker::Cutter;
use chunker::delta::DeltaError;
use memmap2::MmapMut;
use parking_lot::Mutex;
use rayon::prelude::*;
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;

/// Data runs of at least this many bytes are cut and hashed on all cores.
const LARGE_BYTES: u64 = 16 << 20;
/// Bytes of a large data run in memory at once. There is one such buffer.
const REGION_BYTES: usize = 32 << 20;
/// Bytes of a smaller data run in memory at once, for each thread.
const WINDOW_BYTES: usize = 4 << 20;
/// Git packs and indexes with fewer bytes are cut finer. Most of a small pack soon moves to a
/// larger one, and the rest can then be dropped.
const FINE_BYTES_MAX: u64 = 4 << 20;
/// Maximum number of files with several names whose content is remembered, per shard.
const LINKED_MAX: usize = 1024;
/// Maximum bytes read from a file whose reported size is 0 or too small. Some such files never end.
const UNSIZED_BYTES_MAX: u64 = 4 << 30;
const ENDLESS: &str = "the system reports too small a size for it, and it has more than 4 GiB";
/// Bytes of a region that one core reads at once.
const READ_BYTES: usize = 2 << 20;

/// Returns the error of a path. `errno` and similar errors show that the path, or a part of it, now
/// has another type.
fn unless_replaced(error: io::Error, errno: Errno) -> IngestError {
    let is_replaced = [errno, Errno::LOOP, Errno::NOTDIR, Errno::NXIO, Errno::XDEV]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    if is_replaced { IngestError::Replaced } else { IngestError::Source(error) }
}

/// Errors while a source is read. The two never share a handler.
#[derive(Debug)]
pub enum IngestError {
    /// The source could not be read: this file is missing, and the run continues.
    Source(io::Error),
    /// Another object has the name of the file.
    Replaced,
    /// The store could not be written: the run ends.
    Store(Error),
}

impl From<ReuseError> for IngestError {
    /// Converts the error of a stream, which cannot be read again.
    fn from(error: ReuseError) -> IngestError {
        match error {
            ReuseError::Source(error) => IngestError::Source(error),
            ReuseError::Lost(error) | ReuseError::Store(error) => IngestError::Store(error),
        }
    }
}

/// Fills a buffer with the next bytes. Returns their number, and true if they are the last.
type Fill<'f> = &'f mut dyn FnMut(&mut [u8]) -> Result<(usize, bool), IngestError>;

impl From<Error> for IngestError {
    fn from(error: Error) -> IngestError {
        IngestError::Store(error)
    }
}

impl From<io::Error> for IngestError {
    fn from(error: io::Error) -> IngestError {
        IngestError::Source(error)
    }
}

/// Turns objects found by the walk into entries. Shared by all threads of a backup.
pub struct Ingest<'a> {
    pub counters: &'a Counters,
    pub exclude: &'a Excluded,
    /// Git directories from which those that are read borrow objects.
    pub lenders: Lenders,
    /// Paths that went away while they were read.
    pub vanished: Vanished,
    file_systems: &'a FileSystems,
    owners: &'a Owners,
    reuse: Reuse<'a>,
    /// Buffer for a file larger than a window, or a stream. Uses memory only once it is written to.
    region: Mutex<MmapMut>,
    /// Files with several names that were read. The lock is held while one is read.
    linked: [Mutex<Linked>; 16],
}

/// Reason for which an object has no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It went away after it was listed, and another object may have its name.
    Gone,
    /// It cannot be read, which was reported.
    Unreadable,
}

/// A file being read.
#[derive(Clone, Copy)]
struct OpenFile<'f> {
    path: &'f [u8],
    file: &'f File,
    /// Metadata from before the first read.
    stat: Stat,
    like: Hint<'f>,
    /// Entry of the file in the previous snapshot.
    previous: Option<&'f Entry>,
}

impl<'f> OpenFile<'f> {
    fn new(
        found: &'f Found,
        file: &'f File,
        like: Hint<'f>,
        previous: Option<&'f Entry>,
    ) -> Result<OpenFile<'f>, IngestError> {
        // If the open file has no readable metadata, use that found by name.
        let stat = source::stat_open(file).unwrap_or(found.stat);
        if stat.kind != EntryKind::File {
            return Err(IngestError::Replaced);
        }
        Ok(OpenFile { path: &found.path, file, stat, like, previous })
    }
}

/// Content read from a file.
#[derive(Debug, Clone, Default)]
pub struct FileContent {
    pub content: Content,
    /// Size in bytes.
    pub size: u64,
    /// Bytes of its chunks that the file does not use.
    pub unused: u64,
}

/// Content of files with several names, by device and inode.
type Linked = HashMap<(u64, u64), (Stat, FileContent)>;

thread_local! {
    static WINDOW: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<'a> Ingest<'a> {
    pub fn new(run: &'a BackupState<'a>, exclude: &'a Excluded) -> Result<Ingest<'a>> {
        let BackupState { store, packer, counters, allowance, many_packs, .. } = run;
        let BackupState { file_systems, owners, .. } = run;
        let region = Mutex::new(MmapMut::map_anon(REGION_BYTES).map_err(Error::Memory)?);
        let cutter =
            |sizes| Cutter::new(sizes).map_err(|error| Error::ConfigDamaged(error.to_string()));
        let sizes = store.config.parameters();
        let (cutter, fine_cutter) =
            (cutter(sizes)?, cutter(sizes.finer()).or_else(|_| cutter(sizes))?);
        let reuse = Reuse { store, packer, cutter, fine_cutter, allowance, many_packs };
        let (linked, lenders, vanished) = Default::default();
        Ok(Ingest {
            counters,
            exclude,
            lenders,
            vanished,
            file_systems,
            owners,
            reuse,
            region,
            linked,
        })
    }

    /// Returns the observer of the backup.
    pub fn observer(&self) -> &'a dyn Observer {
        self.reuse.store.observer()
    }

    /// Reads an object. Reports it if it is unreadable. Counts it as new or changed.
    pub fn entry(
        &self,
        root: &Root,
        found: &Found,
        previous: Option<&Entry>,
    ) -> Result<Result<Entry, Missing>> {
        let read = match found.stat.kind {
            EntryKind::File => self.open_and_read(root, found, previous),
            _ => self.other(root, found),
        };
        self.settle(&found.path, previous, read)
    }

    /// Like [`Ingest::entry`], for a file that is already open.
    pub fn open_entry(
        &self,
        found: &Found,
        file: &File,
        like: Hint<'_>,
        previous: Option<&Entry>,
    ) -> Result<Result<Entry, Missing>> {
        let open = OpenFile::new(found, file, like, previous);
        self.settle(&found.path, previous, open.and_then(|open| self.read(&open)))
    }

    /// Counts an entry that was read. Separates errors that end the run from errors of one file.
    fn settle(
        &self,
        path: &[u8],
        previous: Option<&Entry>,
        read: Result<Entry, IngestError>,
    ) -> Result<Result<Entry, Missing>> {
        match read {
            Ok(entry) => {
                self.counters.count(&entry, previous);
                self.observer().progress().add(1, entry.size);
                Ok(Ok(entry))
            }
            Err(IngestError::Store(error)) => Err(error),
            Err(IngestError::Replaced) => Ok(Err(Missing::Gone)),
            Err(IngestError::Source(error)) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Err(Missing::Gone))
            }
            Err(IngestError::Source(error)) => {
                self.unreadable(path, &error);
                Ok(Err(Missing::Unreadable))
            }
        }
    }

    /// Withdraws the share of this file of the previous snapshot from the allowance.
    pub fn withdraw(&self, entry: &Entry) {
        self.reuse.allowance.withdraw(entry);
    }

    /// Reports a path that is missing from the snapshot.
    pub fn unreadable(&self, path: &[u8], error: &io::Error) {
        self.counters.report_unreadable(self.observer(), path, error);
    }

    /// Reports a path that is in the snapshot without some of its metadata.
    pub fn metadata_unreadable(&self, path: &[u8], error: &io::Error) {
        self.counters.report_metadata(self.observer(), path, error);
    }

    fn open_and_read(
        &self,
        root: &Root,
        found: &Found,
        previous: Option<&Entry>,
    ) -> Result<Entry, IngestError> {
        let (dir, path) = (root.dir.as_fd(), root.relative(&found.path));
        let is_over = || self.observer().progress().check().is_err();
        let file = source::open_file_waiting(dir, path, is_over)
            .map_err(|error| unless_replaced(error, Errno::LOOP))?;
        self.read(&OpenFile::new(found, &file, Hint::Itself, previous)?)
    }

    fn read(&self, open: &OpenFile<'_>) -> Result<Entry, IngestError> {
        let OpenFile { path, file, stat, .. } = open;
        let attributes = source::attributes_open(file);
        let FileContent { content, size, unused } = self.once(open)?;
        let is_same = source::stat_open(file).is_ok_and(|now| now.is_same_content(stat));
        // Fewer bytes than expected are a change only if the size is different now: `/sys` reports
        // a page for every file.
        if !is_same {
            self.counters.changed_while_read.fetch_add(1, Relaxed);
            self.observer().event(Event::ChangedWhileRead(absolute(path)));
        }
        Ok(Entry { content, size, unused, ..self.metadata(path, stat, attributes) })
    }

    /// Returns the entry of an object other than a file.
    fn other(&self, root: &Root, found: &Found) -> Result<Entry, IngestError> {
        let (dir, path) = (root.dir.as_fd(), root.relative(&found.path));
        let target = match found.stat.kind {
            EntryKind::Symlink => source::read_link(dir, path)
                .map_err(|error| unless_replaced(error, Errno::INVAL))?,
            _ => Vec::new(),
        };
        let attributes = match found.stat.kind {
            // Kept even if it was replaced meanwhile, because its content was listed.
            EntryKind::Directory => directory_attributes(dir, path),
            _ => source::attributes_below(dir, path),
        };
        if attributes.error.as_ref().is_some_and(walk::is_gone) {
            // It may be on its way back, with attributes.
            self.vanished.note(&found.path, found.above.as_ref());
        }
        Ok(Entry { target, ..self.metadata(&found.path, &found.stat, attributes) })
    }

    /// Returns the entry of a directory above a source path. It has no times, because they change
    /// with every neighbour.
    pub fn ancestor(&self, path: &[u8], stat: &Stat, attributes: Attributes) -> Entry {
        let entry = self.metadata(path, stat, attributes);
        Entry { mtime: None, ctime: None, inode: 0, ..entry }
    }

    /// Returns an entry without content. Reports unreadable metadata and omits the ctime then, so
    /// that the next backup reads it again.
    fn metadata(&self, path: &[u8], stat: &Stat, attributes: Attributes) -> Entry {
        // An object that is gone had attributes before, and they are unknown now.
        let lost = attributes.error.filter(|error| !walk::is_gone(error));
        if let Some(error) = &lost {
            self.metadata_unreadable(path, error);
        }
        let shares = stat.names > 1 && stat.kind != EntryKind::Directory;
        let is_device = matches!(stat.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let link = || {
            let file_system = self.file_systems.number(stat.device);
            HardLink { file_system, names: stat.names }
        };
        let warn = |text| self.observer().event(Event::Warning(text));
        let (acl_names, too_long) = self.owners.acl_names(&attributes.found, warn);
        if too_long > 0 {
            let reason = format!("{too_long} names in its ACLs exceed the limit; storing numbers");
            self.counters.report_metadata(self.observer(), path, reason);
        }
        Entry {
            owner: self.owners.get(stat.uid, stat.gid, warn),
            acl_names,
            mtime: Some(stat.mtime),
            ctime: lost.is_none().then_some(stat.ctime),
            inode: stat.inode,
            hard_link: shares.then(link),
            xattrs: attributes.found,
            device: is_device.then_some(stat.node),
            ..Entry::new(path.to_vec(), stat.kind, stat.mode)
        }
    }

    /// Returns the content of a file. A file with several names is read once. All names need the
    /// same recipe to be recognised as one file, but references differ from name to name.
    fn once(&self, open: &OpenFile<'_>) -> Result<FileContent, IngestError> {
        let stat = &open.stat;
        if stat.names < 2 {
            return self.content(open);
        }
        let key = (stat.device, stat.inode);
        let shard = &self.linked[stat.inode as usize % self.linked.len()];
        let mut known = shard.lock();
        match known.get(&key) {
            Some((of, taken)) if of.is_same_content(stat) => return Ok(taken.clone()),
            // The cache is full. Without references, every name of the file gets the same recipe.
            None if known.len() >= LINKED_MAX => {
                drop(known);
                return self.content(&OpenFile { like: Hint::Nothing, previous: None, ..*open });
            }
            _ => {}
        }
        let taken = self.content(open)?;
        known.insert(key, (*stat, taken.clone()));
        Ok(taken)
    }

    /// Reads a file up to its size when it was opened. Reads to its end if the file system does not
    /// know the size.
    fn content(&self, open: &OpenFile<'_>) -> Result<FileContent, IngestError> {
        let OpenFile { file, stat, .. } = open;
        if stat.size == 0 {
            return self.content_to_end(file);
        }
        let taken = self.content_of_size(open)?;
        // The next backup stores bytes appended meanwhile.
        let is_longer = taken.size == stat.size
            && source::has_more(file, stat.size)
            && source::stat_open(file).is_ok_and(|now| now.is_same_content(stat));
        if !is_longer {
            return Ok(taken);
        }
        (&**file).seek(SeekFrom::Start(0))?;
        self.content_to_end(file)
    }

    /// Reads a file to its end, for files whose size is unknown: files of `/proc` and of some FUSE
    /// and network file systems.
    fn content_to_end(&self, file: &File) -> Result<FileContent, IngestError> {
        let progress = self.observer().progress();
        // A request to stop ends a read that would take long.
        let trouble = |error| {
            progress.check().map_or_else(IngestError::Store, |()| IngestError::Source(error))
        };
        let mut input = Available { file, progress };
        let mut begin = vec![0; limits::INLINE_BYTES_MAX + 1];
        let len = read_stream(&mut input, &mut begin).map_err(trouble)?;
        begin.truncate(len);
        if len <= limits::INLINE_BYTES_MAX {
            return Ok(self.taken(Content::Inline(begin), len as u64, 0));
        }
        let mut recipe = RecipeWriter::default();
        let mut region = self.region.lock();
        let mut input = (&begin[..]).chain(input);
        let mut size = 0;
        self.large(&mut region, &mut recipe, &mut |space| {
            let read = read_stream(&mut input, space).map_err(trouble)?;
            size += read as u64;
            if size > UNSIZED_BYTES_MAX {
                return Err(io::Error::other(ENDLESS).into());
            }
            Ok((read, read < space.len()))
        })?;
        let recipe = recipe.finish(self.reuse.packer)?;
        Ok(self.taken(Content::Recipe(recipe), size, 0))
    }

    fn content_of_size(&self, open: &OpenFile<'_>) -> Result<FileContent, IngestError> {
        let OpenFile { file, stat, like, .. } = open;
        // A file compressed by its file system also occupies less than its size. If holes cannot be
        // found, they are read as zeros.
        let is_sparse = stat.allocated_bytes < stat.size
            && source::is_all_data(file, stat.size).is_ok_and(|is_all| !is_all);
        if stat.size <= limits::INLINE_BYTES_MAX as u64 && !is_sparse {
            let mut bytes = vec![0; stat.size as usize];
            let len = read_full(file, &mut bytes, 0)?;
            bytes.truncate(len);
            let content = if len == 0 { Content::Empty } else { Content::Inline(bytes) };
            return Ok(self.taken(content, len as u64, 0));
        }
        if !is_sparse && let Some(reused) = self.reused(open)? {
            return Ok(reused);
        }
        let is_of_git = matches!(like, Hint::Pack { .. } | Hint::PackIndex { .. });
        let is_fine = is_of_git && stat.size < FINE_BYTES_MAX;
        let cutter = if is_fine { &self.reuse.fine_cutter } else { &self.reuse.cutter };
        let mut recipe = RecipeWriter::default();
        if is_sparse {
            self.sparse(file, stat.size, &mut recipe)?;
        } else {
            self.run(file, 0, stat.size, cutter, &mut recipe)?;
        }
        let size = recipe.len();
        let recipe = recipe.finish(self.reuse.packer)?;
        Ok(self.taken(Content::Recipe(recipe), size, 0))
    }

    /// Returns the content with slices of the previous snapshot, if the file can be compared.
    fn reused(&self, open: &OpenFile<'_>) -> Result<Option<FileContent>, IngestError> {
        let OpenFile { path, file, stat, like, previous } = *open;
        match self.reuse.file(file, stat.size, previous, like) {
            Ok(reused) => Ok(reused.map(|reused| self.count_reused(reused))),
            Err(DeltaError::Failed(error)) => Err(IngestError::Store(error)),
            Err(DeltaError::Format(error)) => {
                *self.counters.stored_plainly.lock().entry(error.name()).or_default() += 1;
                let (path, reason) = (absolute(path), error.to_string());
                self.observer().event(Event::StoredPlainly { path, reason });
                Ok(None)
            }
        }
    }

    fn taken(&self, content: Content, size: u64, unused: u64) -> FileContent {
        self.counters.bytes_read.fetch_add(size, Relaxed);
        let content = if size == 0 { Content::Empty } else { content };
        FileContent { content, size, unused }
    }

    fn count_reused(&self, reused: Reused) -> FileContent {
        let Reused { recipe, len, reused, unused } = reused;
        self.counters.found_by_extent.fetch_add(reused.by_extent, Relaxed);
        self.counters.found_by_chunk.fetch_add(reused.by_chunk, Relaxed);
        self.counters.copied_forward.fetch_add(reused.copied_forward, Relaxed);
        self.taken(Content::Recipe(recipe), len, unused)
    }

    fn sparse(&self, file: &File, size: u64, recipe: &mut RecipeWriter) -> Result<(), IngestError> {
        let mut at = 0;
        for run in source::data_runs(file, 0, size) {
            let (begin, end) = run.unwrap_or((at, size));
            self.push(recipe, Extent::Hole { len: begin - at })?;
            let read = self.run(file, begin, end, &self.reuse.cutter, recipe)?;
            if read < end - begin {
                return Ok(()); // truncated meanwhile
            }
            at = end;
        }
        self.push(recipe, Extent::Hole { len: size - at })?;
        Ok(())
    }

    /// Reads, cuts and stores the bytes `[begin, end)`. Returns the number of bytes read.
    fn run(
        &self,
        file: &File,
        begin: u64,
        end: u64,
        cutter: &Cutter,
        recipe: &mut RecipeWriter,
    ) -> Result<u64, IngestError> {
        if end - begin >= LARGE_BYTES {
            let mut region = self.region.lock();
            let mut at = begin;
            self.large(&mut region, recipe, &mut |space| {
                let len = space.len().min((end - at) as usize);
                let read = read_parallel(file, &mut space[..len], at)?;
                at += read as u64;
                Ok((read, at == end || read < len))
            })?;
            return Ok(at - begin);
        }
        WINDOW.with_borrow_mut(|window| {
            window.resize(WINDOW_BYTES.min((end - begin) as usize).max(window.len()), 0);
            let (mut at, mut filled) = (begin, 0);
            loop {
                let space = &mut window[filled..];
                let len = space.len().min((end - at) as usize);
                let read = read_full(file, &mut space[..len], at)?;
                at += read as u64;
                filled += read;
                let is_last = at == end || read < len;
                let ends = cutter.cut(&window[..filled], is_last);
                let mut start = 0;
                for stop in ends {
                    self.put_data(&window[start..stop], recipe)?;
                    start = stop;
                }
                if is_last {
                    return Ok(at - begin);
                }
                window.copy_within(start..filled, 0);
                filled -= start;
            }
        })
    }

    /// Cuts and stores the bytes from `fill` on all cores.
    fn large(
        &self,
        region: &mut [u8],
        recipe: &mut RecipeWriter,
        fill: Fill<'_>,
    ) -> Result<(), IngestError> {
        let mut filled = 0;
        loop {
            let (read, is_last) = fill(&mut region[filled..])?;
            filled += read;
            let data = &region[..filled];
            let pieces = rayon::current_num_threads();
            let ends = chunker::cut_parallel(&self.reuse.cutter, data, is_last, pieces);
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let chunks: Vec<&[u8]> = starts.zip(&ends).map(|(from, to)| &data[from..*to]).collect();
            let stored: Vec<_> = chunks
                .par_iter()
                .map(|chunk| self.reuse.packer.put(ChunkKind::Data, chunk))
                .collect::<Result<_>>()?;
            for (stored, chunk) in stored.iter().zip(&chunks) {
                self.count_found(*stored, chunk);
                let extent = Extent::Slice { chunk: stored.id, offset: 0, len: chunk.len() as u64 };
                self.push(recipe, extent)?;
            }
            self.observer().progress().check()?;
            if is_last {
                return Ok(());
            }
            let start = ends.last().copied().unwrap_or(0);
            region.copy_within(start..filled, 0);
            filled -= start;
        }
    }

    /// Returns the content of a stream that can be read only once. `before` is its entry in the
    /// previous snapshot.
    pub fn stream(
        &self,
        input: &mut dyn Read,
        before: Option<&Entry>,
    ) -> Result<FileContent, IngestError> {
        let mut watched = Watched { input, progress: self.observer().progress() };
        if let Some(before) = before
            && let Some(reused) = self.reuse.stream(&mut watched, before)?
        {
            return Ok(self.count_reused(reused));
        }
        let mut recipe = RecipeWriter::default();
        let mut region = self.region.lock();
        self.large(&mut region, &mut recipe, &mut |space| {
            let read = read_stream(&mut watched, space)?;
            Ok((read, read < space.len()))
        })?;
        let size = recipe.len();
        let recipe = recipe.finish(self.reuse.packer)?;
        Ok(self.taken(Content::Recipe(recipe), size, 0))
    }

    /// Returns the packer that receives chunks.
    pub fn packer(&self) -> &Packer<'_> {
        self.reuse.packer
    }

    fn put_data(&self, chunk: &[u8], recipe: &mut RecipeWriter) -> Result<()> {
        let stored = self.reuse.packer.put(ChunkKind::Data, chunk)?;
        self.count_found(stored, chunk);
        let len = chunk.len() as u64;
        self.push(recipe, Extent::Slice { chunk: stored.id, offset: 0, len })
    }

    fn count_found(&self, stored: Stored, chunk: &[u8]) {
        if !stored.is_new {
            self.counters.found_by_chunk.fetch_add(chunk.len() as u64, Relaxed);
        }
    }

    fn push(&self, recipe: &mut RecipeWriter, extent: Extent) -> Result<()> {
        recipe.push(extent, self.reuse.packer)
    }
}

/// Returns the attributes of a directory that this user may not be allowed to open.
fn directory_attributes(dir: BorrowedFd<'_>, path: &[u8]) -> Attributes {
    match source::open_dir_below(dir, path) {
        Ok(opened) => source::attributes_open(opened),
        // The replacement has attributes of its own.
        Err(error) if is_replaced(&error) => Attributes::default(),
        Err(_) => source::attributes_below(dir, path),
    }
}

/// Returns true if a directory could not be opened because another object has its name.
fn is_replaced(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotADirectory
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Like [`read_full`], on all cores.
fn read_parallel(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let reads: Vec<(usize, usize)> = buffer
        .par_chunks_mut(READ_BYTES)
        .enumerate()
        .map(|(n, part)| {
            let read = read_full(file, part, offset + (n * READ_BYTES) as u64)?;
            Ok((read, part.len()))
        })
        .collect::<io::Result<_>>()?;
    // Bytes after a short part do not continue the bytes before it.
    let mut total = 0;
    for (read, wanted) in reads {
        total += read;
        if read < wanted {
            break;
        }
    }
    Ok(total)
}

/// Reads a file from its current position to its end, or until reading would block.
struct Available<'a> {
    file: &'a File,
    progress: &'a Progress,
}

impl Read for Available<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.progress.check().map_err(io::Error::other)?;
        match self.file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }
}

/// Counts the bytes of a stream as they are read.
struct Watched<'a> {
    input: &'a mut dyn Read,
    progress: &'a Progress,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.progress.add(0, read as u64);
        Ok(read)
    }
}
