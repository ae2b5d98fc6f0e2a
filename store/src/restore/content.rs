//! What files contain: compared where they are there already, written where not.

use super::Restore;
use super::window::WINDOW_SLICES;
use crate::entry::{Content, Entry, Kind};
use crate::error::Result;
use crate::id::ChunkId;
use crate::index::Location;
use crate::limits;
use crate::recipe::{Extent, Extents, Recipe};
use crate::source;
use crate::store::Store;
use crate::target::Unfinished;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// A file to be restored.
pub(super) struct Output {
    pub(super) entry: Entry,
    pub(super) path: Vec<u8>,
    pub(super) is_fresh: Arc<AtomicBool>,
    /// Slices to come; one more until all of them are known.
    pub(super) remaining: AtomicUsize,
    pub(super) file: Mutex<Option<Unfinished>>,
    /// Has the right content already, or has failed: nothing is written to it.
    pub(super) is_settled: AtomicBool,
}

/// A slice of a chunk that belongs into a file.
pub(super) struct Slice {
    output: Arc<Output>,
    chunk: ChunkId,
    from: u32,
    len: u64,
    at: u64,
}

thread_local! {
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Restore<'_> {
    /// Takes a file and the slices it needs into the window.
    pub(super) fn open_file(
        &mut self,
        entry: Entry,
        path: Vec<u8>,
        is_fresh: Arc<AtomicBool>,
        get: &dyn Fn(&ChunkId) -> Result<Vec<u8>>,
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
        let (mut at, mut count) = (0, 0);
        for extent in Extents::new(&recipe, get) {
            let extent = match extent {
                Ok(extent) => extent,
                Err(error) if error.is_damage() => {
                    self.settle_failed(&output, &error.to_string());
                    break;
                }
                Err(error) => return Err(error),
            };
            if let Extent::Slice { chunk, offset, len } = extent {
                let output = Arc::clone(&output);
                output.remaining.fetch_add(1, Relaxed);
                self.window.slices.push(Slice { output, chunk, from: offset, len, at });
                count += 1;
                self.window.open_files += usize::from(count == 2);
            }
            at += extent.len();
            if self.window.slices.len() >= WINDOW_SLICES {
                // A file longer than a window goes on in the next one.
                self.flush_keeping(&output)?;
            }
        }
        self.release(&output);
        Ok(())
    }

    fn flush_keeping(&mut self, output: &Arc<Output>) -> Result<()> {
        self.flush(false)?;
        self.window.files.push(Arc::clone(output));
        self.window.open_files += 1;
        Ok(())
    }

    /// One thing less to wait for; the last one finishes the file.
    fn release(&self, output: &Output) {
        let is_last = output.remaining.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1;
        if is_last && !output.is_settled.load(Relaxed) {
            // Files without chunks are made with the window that holds them.
            if output.file.lock().is_some() {
                self.finish(output);
            }
        }
    }

    /// Leaves a file alone that already has its content.
    pub(super) fn compare(&self, output: &Output) {
        let is_settled = output.is_settled.load(Relaxed);
        if is_settled || output.is_fresh.load(Relaxed) || output.file.lock().is_some() {
            return;
        }
        let (path, entry) = (&output.path, &output.entry);
        if !has_content(self.store, self.target.dir(), path, entry).unwrap_or(false) {
            return;
        }
        output.is_settled.store(true, Relaxed);
        match self.target.refresh_file(&output.path, &output.entry) {
            Ok(()) => {
                self.counts.files_unchanged.fetch_add(1, Relaxed);
                self.store.observer().progress().add(1, output.entry.size);
            }
            Err(error) => self.failed_io(&output.path, &error),
        }
    }

    /// Reads every wanted chunk once and writes it everywhere.
    pub(super) fn write(&self, slices: Vec<Slice>) -> Result<()> {
        let mut placed: Vec<(Option<Location>, Slice)> = slices
            .into_par_iter()
            .filter(|slice| {
                let is_settled = slice.output.is_settled.load(Relaxed);
                if is_settled {
                    self.release(&slice.output);
                }
                !is_settled
            })
            .map(|slice| (self.store.locate(&slice.chunk).ok(), slice))
            .collect();
        let place = |location: &Option<Location>, slice: &Slice| {
            (location.map(|location| (location.segment, location.offset)), slice.chunk)
        };
        placed.par_sort_unstable_by(|(a, left), (b, right)| {
            place(a, left).cmp(&place(b, right)).then_with(|| left.at.cmp(&right.at))
        });
        let groups: Vec<&[(Option<Location>, Slice)]> =
            placed.chunk_by(|(_, a), (_, b)| a.chunk == b.chunk).collect();
        groups.par_iter().for_each(|group| {
            if self.fatal.lock().is_some() || self.store.observer().progress().check().is_err() {
                return;
            }
            self.write_chunk(group);
        });
        Ok(())
    }

    fn write_chunk(&self, group: &[(Option<Location>, Slice)]) {
        PLAIN.with_borrow_mut(|plain| {
            let read = self.store.chunk_into(&group[0].1.chunk, plain);
            for (_, slice) in group {
                let output = &slice.output;
                if !output.is_settled.load(Relaxed) {
                    let from = slice.from as usize;
                    let end = usize::try_from(slice.len).ok().and_then(|len| from.checked_add(len));
                    match (&read, end.and_then(|end| plain.get(from..end))) {
                        (Ok(()), Some(bytes)) => self.write_slice(output, bytes, slice.at),
                        (Ok(()), None) => {
                            let reason = format!("chunk {} is too short", slice.chunk);
                            self.settle_failed(output, &reason);
                        }
                        (Err(error), _) => self.settle_failed(output, &error.to_string()),
                    }
                }
                self.release(output);
            }
        });
    }

    fn write_slice(&self, output: &Output, bytes: &[u8], at: u64) {
        let mut file = output.file.lock();
        if output.is_settled.load(Relaxed) {
            // Another slice of it failed meanwhile: what is left of it must stay removed.
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
            Ok(()) => {
                self.counts.bytes_restored.fetch_add(bytes.len() as u64, Relaxed);
                self.store.observer().progress().add(0, bytes.len() as u64);
            }
            Err(error) => {
                self.settle(output);
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

    /// Files that no chunk belongs to: empty, inline, or holes only.
    pub(super) fn finish_without_chunks(&self, output: &Output) {
        let is_untouched = output.remaining.load(std::sync::atomic::Ordering::Acquire) == 0
            && !output.is_settled.load(Relaxed);
        if !is_untouched || output.is_finished() {
            return;
        }
        let begun = self.begin(output).and_then(|open| {
            if let Content::Inline(bytes) = &output.entry.content {
                open.file().write_all_at(bytes, 0)?;
                self.counts.bytes_restored.fetch_add(bytes.len() as u64, Relaxed);
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
                self.lose(&output.entry);
                self.failed_io(&output.path, &error);
            }
        }
    }

    fn finish(&self, output: &Output) {
        let Some(open) = output.file.lock().take() else { return };
        output.is_settled.store(true, Relaxed);
        // Holes at its end are not written.
        let sized = match &output.entry.content {
            Content::Recipe(recipe) if may_end_in_a_hole(recipe) => {
                open.file().set_len(output.entry.size)
            }
            _ => Ok(()),
        };
        let finished = sized.and_then(|()| self.target.finish(open, &output.entry));
        if finished.is_err() {
            self.lose(&output.entry);
        }
        self.count_entry(&output.path, finished, &self.counts.files_restored);
    }

    /// Nothing more is written to this file, and what was is removed.
    fn settle(&self, output: &Output) -> bool {
        let was_settled = output.is_settled.swap(true, Relaxed);
        drop(output.file.lock().take());
        self.lose(&output.entry);
        !was_settled
    }

    fn settle_failed(&self, output: &Output, reason: &str) {
        if self.settle(output) {
            self.failed(&output.path, reason);
        }
    }
}

impl Output {
    /// Its file was taken away from it, complete.
    fn is_finished(&self) -> bool {
        self.is_settled.load(Relaxed)
    }
}

/// Whether the file in the target has the bytes of the entry.
pub(super) fn has_content(
    store: &Store,
    target: BorrowedFd<'_>,
    path: &[u8],
    entry: &Entry,
) -> io::Result<bool> {
    let file = source::open_file_below(target, path)?;
    let stat = source::stat_open(&file)?;
    // Another name of something else must not be written to, nor given other metadata.
    let shares = stat.names > 1 && entry.hard_link.is_none();
    if stat.kind != Kind::File || stat.size != entry.size || shares {
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
    let get = |id: &ChunkId| store.chunk(id);
    let mut at = 0;
    let mut found = Vec::new();
    for extent in Extents::new(recipe, &get) {
        let Ok(extent) = extent else { return Ok(false) };
        let same = match extent {
            Extent::Hole { len } => is_hole(&file, at, len)?,
            Extent::Slice { len, .. } if len > limits::CHUNK_BYTES_MAX as u64 => false,
            Extent::Slice { chunk, offset, len } => {
                found.resize(len as usize, 0);
                file.read_exact_at(&mut found, at)?;
                is_slice(store, &chunk, offset, &found)
            }
        };
        if !same {
            return Ok(false);
        }
        at += extent.len();
    }
    Ok(true)
}

fn is_slice(store: &Store, chunk: &ChunkId, offset: u32, found: &[u8]) -> bool {
    if offset == 0 && ChunkId::of(found) == *chunk {
        return true;
    }
    let from = offset as usize;
    let plain = store.chunk(chunk);
    plain.is_ok_and(|plain| plain.get(from..from + found.len()) == Some(found))
}

fn may_end_in_a_hole(recipe: &Recipe) -> bool {
    recipe.level > 0 || matches!(recipe.extents.last(), Some(Extent::Hole { .. }))
}

fn is_hole(file: &std::fs::File, at: u64, len: u64) -> io::Result<bool> {
    Ok(source::data_runs(file, at, at + len).next().transpose()?.is_none())
}
