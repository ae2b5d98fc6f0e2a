//! What a window writes: slices of chunks, gathered into runs that are written at once.
//!
//! A file of small slices would take a system call for each. So slices that follow each
//! other are put together in memory first, and every chunk is opened once for all the
//! slices of the window, whatever run they belong to.

use super::Restore;
use super::content::Output;
use crate::id::ChunkId;
use crate::index::Location;
use crate::order::by_number;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Longer slices are written as they are.
const SMALL_BYTES: u32 = 32 << 10;
/// Bytes of a run of several slices.
const RUN_BYTES: u32 = 1 << 20;
/// Most that a window has of these.
const RUNS_MAX: usize = 16 << 10;
const SLICES_MAX: usize = 256 << 10;
/// The bytes of old dumps and packs are scattered, so that in each window chunks are opened that
/// others need too. At half of this it was 1.7 times the bytes of a dump of 59 MB, now 1.3.
const GATHERED_BYTES_MAX: usize = 64 << 20;

/// Bytes of a file that are written at once.
struct Run {
    output: Arc<Output>,
    /// Where it begins in the file.
    at: u64,
    len: u32,
    slices: u32,
    gathered: Mutex<Gathered>,
}

/// Slices of a run that came already, each in its place.
#[derive(Default)]
struct Gathered {
    /// Empty before the first one came; then as long as the run, or longer.
    bytes: Vec<u8>,
    slices: u32,
}

/// A slice of a chunk that belongs into a run.
#[derive(Clone, Copy)]
struct Slice {
    run: u32,
    /// Number of the chunk.
    chunk: u32,
    /// First byte of the chunk.
    from: u32,
    /// First byte of the run.
    to: u32,
    len: u32,
}

/// All that a window writes.
#[derive(Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
    slices: Vec<Slice>,
    chunks: Vec<ChunkId>,
    numbers: HashMap<ChunkId, u32>,
    /// Bytes of runs of several slices.
    gathered_bytes: usize,
}

impl Runs {
    /// Takes a slice that belongs at `at` in the file; says whether a run begins with it.
    /// Slices of a file come in order.
    pub(super) fn push(
        &mut self,
        output: &Arc<Output>,
        (chunk, from, len): (ChunkId, u32, u32),
        at: u64,
    ) -> bool {
        let chunk = self.number(chunk);
        let open = self.runs.last_mut().filter(|run| run.is_continued(output, at, len));
        let (is_new, to) = (open.is_none(), open.as_ref().map_or(0, |run| run.len));
        match open {
            Some(run) => {
                self.gathered_bytes += if run.slices == 1 { run.len + len } else { len } as usize;
                run.slices += 1;
                run.len += len;
            }
            None => {
                output.expect_run();
                let (output, gathered) = (Arc::clone(output), Mutex::default());
                self.runs.push(Run { output, at, len, slices: 1, gathered });
            }
        }
        let run = self.runs.len() as u32 - 1;
        self.slices.push(Slice { run, chunk, from, to, len });
        is_new
    }

    fn number(&mut self, chunk: ChunkId) -> u32 {
        match self.numbers.entry(chunk) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.chunks.push(chunk);
                *new.insert(self.chunks.len() as u32 - 1)
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether the window is to be dealt with before more is taken.
    pub(super) fn are_many(&self) -> bool {
        self.runs.len() >= RUNS_MAX
            || self.slices.len() >= SLICES_MAX
            || self.gathered_bytes >= GATHERED_BYTES_MAX
    }

    /// Leaves away what belongs to files that need nothing more.
    fn drop_settled(&mut self) {
        let runs = &self.runs;
        self.slices.retain(|slice| !runs[slice.run as usize].output.is_settled.load(Relaxed));
    }

    /// Brings slices into the order in which their chunks stand in the segments. Those of
    /// one chunk stay in the order of their runs.
    fn sort(&mut self, locate: impl Fn(&ChunkId) -> Option<Location> + Sync) {
        let mut is_wanted = vec![false; self.chunks.len()];
        self.slices.iter().for_each(|slice| is_wanted[slice.chunk as usize] = true);
        let wanted = (0..).zip(&self.chunks).zip(is_wanted).filter(|(_, is_wanted)| *is_wanted);
        let wanted: Vec<(u32, &ChunkId)> = wanted.map(|(chunk, _)| chunk).collect();
        let located = wanted.par_iter().map(|(number, chunk)| {
            let location = locate(chunk);
            (location.map(|location| (location.segment, location.offset)), *number)
        });
        let mut located: Vec<_> = located.collect();
        located.par_sort_unstable();
        let mut places = vec![0; self.chunks.len()];
        for (place, (_, number)) in (0..).zip(located) {
            places[number as usize] = place;
        }
        let numbers = self.slices.iter().map(|slice| places[slice.chunk as usize]);
        let order = by_number(numbers, self.chunks.len());
        self.slices = order.iter().map(|place| self.slices[*place as usize]).collect();
    }
}

impl Run {
    /// Whether a slice is to be written together with what this run has.
    fn is_continued(&self, output: &Arc<Output>, at: u64, len: u32) -> bool {
        let are_small = self.slices > 1 || self.len <= SMALL_BYTES;
        are_small
            && len <= SMALL_BYTES
            && self.len + len <= RUN_BYTES
            && self.at + u64::from(self.len) == at
            && Arc::ptr_eq(&self.output, output)
    }
}

/// Memory of full runs that were written, for others.
pub(super) type Spare = Mutex<Vec<Vec<u8>>>;

thread_local! {
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Restore<'_> {
    /// Opens every wanted chunk once and writes it everywhere.
    pub(super) fn write(&self, mut runs: Runs) {
        runs.drop_settled();
        runs.sort(|chunk| self.store.locate(chunk).ok());
        let groups: Vec<&[Slice]> = runs.slices.chunk_by(|a, b| a.chunk == b.chunk).collect();
        groups.par_iter().for_each(|group| {
            if self.fatal.lock().is_some() || self.store.observer().progress().check().is_err() {
                return;
            }
            self.write_chunk(&runs, group);
        });
    }

    /// Brings all slices of one chunk to their runs.
    fn write_chunk(&self, runs: &Runs, slices: &[Slice]) {
        let chunk = &runs.chunks[slices[0].chunk as usize];
        PLAIN.with_borrow_mut(|plain| {
            let read = self.store.chunk_into(chunk, plain);
            for slices in slices.chunk_by(|a, b| a.run == b.run) {
                let run = &runs.runs[slices[0].run as usize];
                match &read {
                    Ok(()) if are_within(slices, plain.len()) => self.gather(run, slices, plain),
                    Ok(()) => {
                        self.settle_failed(&run.output, &format!("chunk {chunk} is too short"));
                    }
                    Err(error) => self.settle_failed(&run.output, &error.to_string()),
                }
            }
        });
    }

    /// Takes slices of one chunk into a run; the last ones that it waits for write it.
    fn gather(&self, run: &Run, slices: &[Slice], plain: &[u8]) {
        if let ([slice], 1) = (slices, run.slices) {
            self.write_run(run, slice.of(plain));
            return;
        }
        let mut gathered = run.gathered.lock();
        if gathered.bytes.is_empty() {
            gathered.bytes = self.room(run.len);
        }
        for slice in slices {
            let to = slice.to as usize;
            gathered.bytes[to..to + slice.len as usize].copy_from_slice(slice.of(plain));
        }
        gathered.slices += slices.len() as u32;
        if gathered.slices == run.slices {
            let bytes = take(&mut gathered.bytes);
            drop(gathered);
            self.write_run(run, &bytes[..run.len as usize]);
            if bytes.len() == RUN_BYTES as usize {
                self.spare.lock().push(bytes);
            }
        }
    }

    /// Memory for a run; for a full one, that of an earlier one.
    fn room(&self, len: u32) -> Vec<u8> {
        let is_full = len > RUN_BYTES - SMALL_BYTES;
        let spare = if is_full { self.spare.lock().pop() } else { None };
        spare.unwrap_or_else(|| vec![0; if is_full { RUN_BYTES } else { len } as usize])
    }

    fn write_run(&self, run: &Run, bytes: &[u8]) {
        self.write_at(&run.output, bytes, run.at);
        self.release(&run.output);
    }
}

fn are_within(slices: &[Slice], len: usize) -> bool {
    slices.iter().all(|slice| u64::from(slice.from) + u64::from(slice.len) <= len as u64)
}

impl Slice {
    /// Its bytes, of a chunk that is known to have them.
    fn of<'p>(&self, plain: &'p [u8]) -> &'p [u8] {
        &plain[self.from as usize..][..self.len as usize]
    }
}
