//! File content: compares existing files and writes the others.

use super::output::Output;
use super::runs::Runs;
use super::{Restore, add_up};
use crate::content::{ChunkCache, ContentReader, Cursor};
use crate::entry::{Content, Entry, EntryKind};
use crate::error::Result;
use crate::limits;
use crate::observe::Reason;
use crate::recipe::{Extent, Extents, Recipe};
use crate::source::{self, Ahead, Stat};
use crate::store::Store;
use crate::target::{self, Metadata, Rights, Unfinished};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::mem::take;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Bytes of decoded chunks that all threads together keep while they compare files.
const CACHE_BYTES_ALL: usize = 64 << 20;
/// Bytes of a file read at once for comparison.
const AHEAD_BYTES: usize = 64 << 10;

/// A file whose slices are being collected.
struct Unread<'a> {
    output: Arc<Output>,
    extents: Extents<'a>,
    /// Byte offset of the next extent in the file.
    at: u64,
    /// Number of runs so far.
    runs: usize,
}

impl Restore<'_> {
    /// Adds a file and its slices to the window.
    pub(super) fn open_file(
        &mut self,
        entry: Entry,
        path: Vec<u8>,
        is_fresh: Arc<AtomicBool>,
    ) -> Result<()> {
        let recipe = match &entry.content {
            Content::Recipe(recipe) => recipe.clone(),
            _ => Default::default(),
        };
        let output = Arc::new(Output {
            entry,
            path,
            is_fresh,
            remaining: AtomicUsize::new(1),
            file: Mutex::default(),
            is_settled: AtomicBool::new(false),
        });
        self.window.files.push(Arc::clone(&output));
        let mut file =
            Unread { output, extents: Extents::new(&recipe, self.store), at: 0, runs: 0 };
        let mut runs = take(&mut self.window.runs);
        let has_more = self.take_slices(&mut file, &mut runs);
        self.window.runs = runs;
        self.window.open_files += usize::from(file.runs > 1);
        if has_more? {
            self.flush(false)?;
            self.write_rest(&mut file)?;
            self.window.files.push(Arc::clone(&file.output));
        }
        self.release(&file.output);
        Ok(())
    }

    /// Collects slices of a file until there are many. Returns true if more may follow.
    fn take_slices(&self, file: &mut Unread<'_>, runs: &mut Runs) -> Result<bool> {
        let output = &file.output;
        while !runs.are_many() {
            let extent = match file.extents.next() {
                None => return Ok(false),
                Some(Ok(extent)) => extent,
                Some(Err(error)) if error.is_of_one_object() => {
                    self.settle_failed(output, &error);
                    return Ok(false);
                }
                Some(Err(error)) => return Err(error),
            };
            if let Extent::Slice { chunk, offset, len } = extent {
                let Some(len) = chunk_len(len) else {
                    self.settle_failed(output, format!("chunk {chunk} is too short"));
                    return Ok(false);
                };
                file.runs += usize::from(runs.push(output, (chunk, offset, len), file.at));
            }
            file.at += extent.len();
        }
        Ok(true)
    }

    /// Writes the rest of a file that is longer than a window. Collects slices while the previous
    /// ones are written.
    fn write_rest(&self, file: &mut Unread<'_>) -> Result<()> {
        let (mut runs, mut has_more) = (Runs::default(), true);
        while has_more || !runs.is_empty() {
            let taken = take(&mut runs);
            has_more &= !file.output.is_settled.load(Relaxed);
            has_more = rayon::in_place_scope(|scope| {
                scope.spawn(|_| self.write(taken));
                if has_more { self.take_slices(file, &mut runs) } else { Ok(false) }
            })?;
            self.check()?;
        }
        Ok(())
    }

    /// Releases one outstanding run. The last one finishes the file.
    pub(super) fn release(&self, output: &Output) {
        let is_last = output.remaining.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1;
        if is_last && !output.is_settled.load(Relaxed) {
            // Files without chunks are created with their window.
            if output.file.lock().is_some() {
                self.finish(output);
            }
        }
    }

    /// Compares an existing file with the snapshot, and keeps it if the content is equal.
    pub(super) fn compare(&self, output: &Output) {
        let is_settled = output.is_settled.load(Relaxed);
        if is_settled || output.is_fresh.load(Relaxed) || output.file.lock().is_some() {
            return;
        }
        let (path, entry) = (&output.path, &output.entry);
        let present =
            with_content(self.store, self.target.dir(), path, entry, self.target.rights());
        let Some(Present { file, stat }) = present else { return };
        output.is_settled.store(true, Relaxed);
        let refused = match file {
            Some(file) => Ok(self.target.refresh_file(&file, &stat, &Metadata::of(entry))),
            None => self.target.refresh_closed(path, &stat, &Metadata::of(entry)),
        };
        match refused {
            Ok(refused) => self.refused(path, &refused),
            Err(error) => return self.failed_io(path, &error),
        }
        self.packed_refs.restored(&entry.path);
        self.counts.files_unchanged.fetch_add(1, Relaxed);
        self.store.observer().progress().add(1, entry.size);
    }

    /// Writes a part of a file.
    pub(super) fn write_at(&self, output: &Output, bytes: &[u8], at: u64) {
        let mut file = output.file.lock();
        if output.is_settled.load(Relaxed) {
            // Another part failed meanwhile, and the removed file must stay removed.
            return;
        }
        let written = (|| {
            let open = match &mut *file {
                Some(open) => open,
                none => none.insert(self.begin(output)?),
            };
            open.file().write_all_at(bytes, at)
        })();
        drop(file);
        match written {
            Ok(()) => self.store.observer().progress().add(0, bytes.len() as u64),
            Err(error) => {
                self.settle(output);
                self.miss(&output.entry);
                self.failed_io(&output.path, &error);
            }
        }
    }

    fn begin(&self, output: &Output) -> io::Result<Unfinished> {
        let at_once = match &output.entry.content {
            Content::Recipe(recipe) => recipe.level == 0 && recipe.extents.len() == 1,
            _ => true,
        };
        self.target.begin(&output.path, output.is_fresh.load(Relaxed), at_once)
    }

    /// Writes a file without chunks: empty, inline, or holes only.
    pub(super) fn finish_without_chunks(&self, output: &Output) {
        let is_untouched = output.remaining.load(std::sync::atomic::Ordering::Acquire) == 0
            && !output.is_settled.load(Relaxed);
        if !is_untouched || output.is_finished() {
            return;
        }
        let begun = self.begin(output).and_then(|open| {
            if let Content::Inline(bytes) = &output.entry.content {
                open.file().write_all_at(bytes, 0)?;
                self.store.observer().progress().add(0, bytes.len() as u64);
            }
            Ok(open)
        });
        match begun {
            Ok(open) => {
                *output.file.lock() = Some(open);
                self.finish(output);
            }
            Err(error) => {
                self.miss(&output.entry);
                self.failed_io(&output.path, &error);
            }
        }
    }

    fn finish(&self, output: &Output) {
        let Some(open) = output.file.lock().take() else { return };
        output.is_settled.store(true, Relaxed);
        // Holes at the end of a file are not written.
        let sized = match &output.entry.content {
            Content::Recipe(recipe) if may_end_in_a_hole(recipe) => {
                open.file().set_len(output.entry.size)
            }
            _ => Ok(()),
        };
        let (path, entry) = (&output.path, &output.entry);
        self.note_replaced(path);
        let finished = sized.and_then(|()| self.target.finish(open, path, &Metadata::of(entry)));
        match &finished {
            Ok(_) => {
                self.packed_refs.restored(&entry.path);
                add_up(&self.counts.bytes_restored, entry.size);
            }
            Err(_) => self.miss(entry),
        }
        self.count_made(path, finished, &self.counts.files_restored);
    }

    /// Stops writing a file and removes it. Returns true if it was not settled before.
    fn settle(&self, output: &Output) -> bool {
        let was_settled = output.is_settled.swap(true, Relaxed);
        drop(output.file.lock().take());
        !was_settled
    }

    pub(super) fn settle_failed(&self, output: &Output, reason: impl Into<Reason>) {
        self.lose(&output.entry);
        if self.settle(output) {
            self.failed(&output.path, reason);
        }
    }
}

/// A file in the target that has the content of its entry.
pub(super) struct Present {
    /// The open file, unless its owner may not read it.
    file: Option<File>,
    pub(super) stat: Stat,
}

/// Finds the file in the target if it has the content of the entry.
pub(super) fn with_content(
    store: &Store,
    target: BorrowedFd<'_>,
    path: &[u8],
    entry: &Entry,
    rights: &Rights,
) -> Option<Present> {
    // A file that cannot be read is written anew.
    let is_over = || store.observer().progress().check().is_err();
    let file = match source::open_file_waiting(target, path, is_over) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return unreadable_but_same(target, path, entry, rights);
        }
        opened => opened.ok()?,
    };
    let stat = source::stat_open(&file).ok()?;
    let is_same = has_content(store, &file, &stat, entry).unwrap_or(false)
        // A name outside of the target would get the metadata, too.
        && (stat.names == 1 || has_metadata(&file, &stat, entry, rights));
    is_same.then_some(Present { file: Some(file), stat })
}

/// Returns true if a restore would not change the metadata of a file.
fn has_metadata(file: &File, stat: &Stat, entry: &Entry, rights: &Rights) -> bool {
    let (wanted, found) = (Metadata::of(entry), source::attributes_open(file).found);
    let is = (stat.uid, stat.gid);
    rights.given_owner(is, &wanted) == is
        && rights.given_mode(is, &wanted) == stat.mode
        && wanted.mtime.is_none_or(|mtime| target::is_held(mtime, stat))
        && wanted.xattr_changes(&found).next().is_none()
}

/// Finds a file with the metadata of the entry that this user owns and may not read, such as one of
/// mode 0200. The file's times show if it was written to.
fn unreadable_but_same(
    target: BorrowedFd<'_>,
    path: &[u8],
    entry: &Entry,
    rights: &Rights,
) -> Option<Present> {
    let file = source::open_below(target, path, rustix::fs::OFlags::PATH).ok()?;
    let stat = source::stat_open(file).ok()?;
    let is_ours = stat.uid == rustix::process::geteuid().as_raw();
    let mode = rights.given_mode((stat.uid, stat.gid), &Metadata::of(entry));
    let has_metadata =
        stat.mode == mode && entry.mtime.is_some_and(|mtime| target::is_held(mtime, &stat));
    let is_same = is_ours && has_metadata && may_have_content(&stat, entry);
    is_same.then_some(Present { file: None, stat })
}

/// Returns false if the metadata of a file shows that it has not the content of the entry.
fn may_have_content(stat: &Stat, entry: &Entry) -> bool {
    // A further name of another file must not be written to, nor get other metadata.
    let shares = stat.names > entry.hard_link.map_or(1, |link| link.names);
    stat.kind == EntryKind::File && stat.size == entry.size && !shares
}

fn has_content(store: &Store, file: &File, stat: &Stat, entry: &Entry) -> io::Result<bool> {
    if !may_have_content(stat, entry) {
        return Ok(false);
    }
    let recipe = match &entry.content {
        Content::Empty => return Ok(true),
        Content::Inline(bytes) => {
            let mut found = vec![0; bytes.len()];
            file.read_exact_at(&mut found, 0)?;
            return Ok(found == *bytes);
        }
        Content::Recipe(recipe) => recipe,
    };
    let cache = ChunkCache::new(CACHE_BYTES_ALL / rayon::current_num_threads());
    let mut content = Cursor::new(ContentReader::new(store, &cache, recipe, entry.size));
    let mut ahead = Ahead::new(file, stat.size, AHEAD_BYTES);
    let mut at = 0;
    while at < entry.size {
        let Ok(Some((extent, _))) = content.extent_at(at) else { return Ok(false) };
        let same = match extent {
            Extent::Hole { len } => has_only_zeros(store, file, at, len)?,
            Extent::Slice { chunk, offset, len } => match chunk_len(len) {
                Some(len) => {
                    let found = ahead.read(at, len as usize)?;
                    // Hashing a whole chunk is cheaper than reading it.
                    (offset == 0 && store.codec.id_of(found) == chunk)
                        || cache.plain(&chunk, store).is_ok_and(|plain| {
                            plain.get(offset as usize..).is_some_and(|rest| rest.starts_with(found))
                        })
                }
                None => false,
            },
        };
        if !same {
            return Ok(false);
        }
        at += extent.len();
    }
    Ok(true)
}

/// Returns the length of a slice if it does not exceed a chunk.
fn chunk_len(len: u64) -> Option<u32> {
    u32::try_from(len).ok().filter(|len| *len <= limits::CHUNK_BYTES_MAX as u32)
}

fn may_end_in_a_hole(recipe: &Recipe) -> bool {
    recipe.level > 0 || matches!(recipe.extents.last(), Some(Extent::Hole { .. }))
}

/// Returns true if a range is a hole or holds only zeros. Not every file system has holes, and
/// large blocks cannot hold small ones.
fn has_only_zeros(store: &Store, file: &File, at: u64, len: u64) -> io::Result<bool> {
    let mut piece = vec![0; AHEAD_BYTES];
    for run in source::data_runs(file, at, at + len) {
        let (mut from, end) = run?;
        while from < end {
            store.observer().progress().check().map_err(io::Error::other)?;
            let step = piece.len().min((end - from) as usize);
            file.read_exact_at(&mut piece[..step], from)?;
            if piece[..step].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            from += step as u64;
        }
    }
    Ok(true)
}
