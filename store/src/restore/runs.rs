//! Slices of chunks, gathered into runs that are written at once.
//!
//! A file of small slices would need a system call for each. Consecutive slices are therefore
//! gathered in memory first. Every chunk is decoded once for all slices of the window, whichever
//! run they belong to.

use super::Restore;
use super::output::Output;
use crate::chunks::Chunks;
use crate::counting_sort::by_number;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use memmap2::{Advice, MmapMut};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem::take;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Longer slices, in bytes, are written directly.
const SMALL_BYTES: u32 = 32 << 10;
/// Maximum bytes of a run of several slices.
const RUN_BYTES: u32 = 1 << 20;
/// Maximum numbers per window.
const RUNS_MAX: usize = 16 << 10;
const SLICES_MAX: usize = 256 << 10;
const CHUNKS_MAX: usize = 32 << 10;
/// Maximum gathered bytes per window. The bytes of old dumps and packs are scattered, so each
/// window decodes chunks that other windows also need. With half of this limit, decoded bytes were
/// 1.7 times a dump of 59 MB; now they are 1.3 times.
const GATHERED_BYTES_MAX: usize = 64 << 20;
/// Size of the gather buffer in bytes. A window is full at the limit, and its last push exceeds the
/// limit by at most two slices.
const GATHER_BYTES: usize = GATHERED_BYTES_MAX + 2 * SMALL_BYTES as usize;

/// Bytes of a file that are written at once.
struct WriteRun {
    output: Arc<Output>,
    /// Byte offset in the file.
    at: u64,
    len: u32,
    slices: u32,
}

/// Slices of a run that have arrived, each in its place.
struct Gathered<'r> {
    /// As long as the run. Empty for a single slice, which is written directly.
    bytes: &'r mut [u8],
    slices: u32,
}

/// A slice of a chunk that belongs to a run.
#[derive(Clone, Copy)]
struct Slice {
    run: u32,
    /// Index of the chunk.
    chunk: u32,
    /// First byte in the chunk.
    from: u32,
    /// First byte in the run.
    to: u32,
    len: u32,
}

/// All runs, slices and chunks of a window.
#[derive(Default)]
pub(super) struct Runs {
    runs: Vec<WriteRun>,
    slices: Vec<Slice>,
    chunks: Vec<ChunkId>,
    /// Indexes of the chunks.
    numbers: HashMap<ChunkId, u32>,
    /// Bytes in runs of several slices.
    gathered_bytes: usize,
}

impl Runs {
    /// Adds a slice for byte offset `at` of the file. Returns true if it begins a new run. Slices
    /// of a file come in order.
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
                self.runs.push(WriteRun { output: Arc::clone(output), at, len, slices: 1 });
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

    /// Returns true if the window must be written before more is added.
    pub(super) fn are_many(&self) -> bool {
        self.runs.len() >= RUNS_MAX
            || self.slices.len() >= SLICES_MAX
            || self.chunks.len() >= CHUNKS_MAX
            || self.gathered_bytes >= GATHERED_BYTES_MAX
    }

    /// Drops slices of settled files.
    fn drop_settled(&mut self) {
        let runs = &self.runs;
        self.slices.retain(|slice| !runs[slice.run as usize].output.is_settled.load(Relaxed));
    }

    /// Groups slices by chunk and drops chunks without slices. Slices of one chunk stay in the order
    /// of their runs.
    fn group(&mut self) {
        let (mut places, mut wanted) = (vec![None; self.chunks.len()], Vec::new());
        for slice in &mut self.slices {
            slice.chunk = *places[slice.chunk as usize].get_or_insert_with(|| {
                wanted.push(self.chunks[slice.chunk as usize]);
                wanted.len() as u32 - 1
            });
        }
        let order = by_number(self.slices.iter().map(|slice| slice.chunk), wanted.len());
        self.slices = order.iter().map(|place| self.slices[*place as usize]).collect();
        self.chunks = wanted;
    }
}

impl WriteRun {
    /// Returns true if a slice can be written together with this run.
    fn is_continued(&self, output: &Arc<Output>, at: u64, len: u32) -> bool {
        let are_small = self.slices > 1 || self.len <= SMALL_BYTES;
        are_small
            && len <= SMALL_BYTES
            && self.len + len <= RUN_BYTES
            && self.at + u64::from(self.len) == at
            && Arc::ptr_eq(&self.output, output)
    }
}

/// Memory in which runs are gathered, reused for every window. Uses no memory before it is written
/// to.
pub(super) struct GatherBuffer(Mutex<MmapMut>);

impl GatherBuffer {
    pub(super) fn new() -> Result<GatherBuffer> {
        let gather_buffer = MmapMut::map_anon(GATHER_BYTES).map_err(Error::Memory)?;
        // With small pages, page faults take a tenth of a restore of scattered files. A kernel
        // without large pages ignores this.
        let _ = gather_buffer.advise(Advice::HugePage);
        Ok(GatherBuffer(Mutex::new(gather_buffer)))
    }
}

/// Returns a place for each run; empty for runs of one slice.
fn places<'r>(runs: &[WriteRun], mut gather_buffer: &'r mut [u8]) -> Vec<Mutex<Gathered<'r>>> {
    let place = |run: &WriteRun| {
        let len = if run.slices > 1 { run.len as usize } else { 0 };
        let (bytes, rest) = take(&mut gather_buffer).split_at_mut(len);
        gather_buffer = rest;
        Mutex::new(Gathered { bytes, slices: 0 })
    };
    runs.iter().map(place).collect()
}

impl Restore<'_> {
    /// Decodes every wanted chunk once and writes its slices.
    pub(super) fn write(&self, mut runs: Runs) {
        runs.drop_settled();
        runs.group();
        let mut gather_buffer = self.gather_buffer.0.lock();
        let places = places(&runs.runs, &mut gather_buffer);
        let groups: Vec<&[Slice]> = runs.slices.chunk_by(|a, b| a.chunk == b.chunk).collect();
        self.store.get_many(&runs.chunks, &|number, plain| {
            if self.fatal.lock().is_some() || self.store.observer().progress().check().is_err() {
                return ControlFlow::Break(());
            }
            self.write_chunk(&runs, &places, groups[number], plain);
            ControlFlow::Continue(())
        });
    }

    /// Copies all slices of one chunk to their runs.
    fn write_chunk(
        &self,
        runs: &Runs,
        places: &[Mutex<Gathered<'_>>],
        slices: &[Slice],
        plain: Result<&[u8]>,
    ) {
        for slices in slices.chunk_by(|a, b| a.run == b.run) {
            let run = slices[0].run as usize;
            let (run, place) = (&runs.runs[run], &places[run]);
            match &plain {
                Ok(plain) if are_within(slices, plain.len()) => {
                    self.gather(run, place, slices, plain);
                }
                Ok(_) => {
                    let id = runs.chunks[slices[0].chunk as usize];
                    self.settle_failed(&run.output, format!("chunk {id} is too short"));
                }
                Err(error) => self.settle_failed(&run.output, error),
            }
        }
    }

    /// Adds slices of one chunk to a run. Writes the run when all its slices have arrived.
    fn gather(&self, run: &WriteRun, place: &Mutex<Gathered<'_>>, slices: &[Slice], plain: &[u8]) {
        if let ([slice], 1) = (slices, run.slices) {
            self.write_run(run, slice.of(plain));
            return;
        }
        let mut gathered = place.lock();
        for slice in slices {
            let to = slice.to as usize;
            gathered.bytes[to..to + slice.len as usize].copy_from_slice(slice.of(plain));
        }
        gathered.slices += slices.len() as u32;
        if gathered.slices == run.slices {
            self.write_run(run, gathered.bytes);
        }
    }

    fn write_run(&self, run: &WriteRun, bytes: &[u8]) {
        self.write_at(&run.output, bytes, run.at);
        self.release(&run.output);
    }
}

fn are_within(slices: &[Slice], len: usize) -> bool {
    slices.iter().all(|slice| u64::from(slice.from) + u64::from(slice.len) <= len as u64)
}

impl Slice {
    /// Returns its bytes of a chunk, which must be long enough.
    fn of<'p>(&self, plain: &'p [u8]) -> &'p [u8] {
        &plain[self.from as usize..][..self.len as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::cases;
    use crate::entry::{Entry, EntryKind};
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    fn output() -> Arc<Output> {
        Arc::new(Output {
            entry: Entry::new(b"a".to_vec(), EntryKind::File, 0o600),
            path: b"a".to_vec(),
            is_fresh: Arc::new(AtomicBool::new(true)),
            remaining: AtomicUsize::new(1),
            file: Mutex::default(),
            is_settled: AtomicBool::new(false),
        })
    }

    proptest! {
        #![proptest_config(cases(30))]

        #[test]
        fn the_gather_buffer_holds_a_full_window(lens in prop::collection::vec(1..=2 * SMALL_BYTES, 1..50)) {
            let (output, chunk) = (output(), ChunkId::of(b"a"));
            let (mut runs, mut at) = (Runs::default(), 0);
            for len in lens.into_iter().cycle() {
                if runs.are_many() {
                    break;
                }
                runs.push(&output, (chunk, 0, len), at);
                at += u64::from(len);
            }
            let mut gather_buffer = vec![0; GATHER_BYTES];
            let places = places(&runs.runs, &mut gather_buffer);
            for (run, place) in runs.runs.iter().zip(places) {
                let gathered = if run.slices > 1 { run.len as usize } else { 0 };
                prop_assert_eq!(place.lock().bytes.len(), gathered);
            }
        }
    }
}
