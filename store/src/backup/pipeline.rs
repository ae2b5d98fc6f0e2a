//! The threads of a backup: one that merges, workers, and one that writes the tree.

use super::assembly::Assembly;
use super::failure::Failure;
use super::gate::Gate;
use super::git_dir;
use super::ingest::Ingest;
use super::merge::{Asked, Batch, Job, Merge, Slot};
use super::previous::{Previous, Recheck};
use super::run::Totals;
use super::vanished::MissingEntries;
use crate::entry::{Entry, Time};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::threads;
use parking_lot::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};

/// Maximum number of batches queued for the tree.
const BATCHES_AHEAD: usize = 128;

/// Runs the threads of a backup that began at `start` around `produce`. Returns the root and the
/// totals of the tree.
pub fn run(
    ingest: &Ingest<'_>,
    recheck: &Recheck<'_>,
    previous: Previous<'_>,
    start: Time,
    produce: impl FnOnce(&mut Merge<'_, '_>) -> Result<()>,
) -> Result<(ChunkId, Totals)> {
    let failure = Failure::default();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let (job_sender, jobs) = sync_channel::<Asked>(2 * workers);
    let (slot_sender, slots) = sync_channel::<Slot>(BATCHES_AHEAD);
    let jobs = Mutex::new(jobs);
    let tree = std::thread::scope(|scope| {
        let tree = threads::spawn_scoped(scope, || write_tree(slots, ingest, &failure))?;
        let worker = || || work(&jobs, ingest, recheck, &failure);
        threads::spawn_workers(scope, workers, worker)?;
        let mut merge = Merge {
            ingest,
            recheck,
            previous,
            missing: MissingEntries::new(&ingest.vanished, ingest.counters, start),
            failure: &failure,
            jobs: job_sender,
            slots: slot_sender,
            batch: Batch::new(),
            device: None,
        };
        let produced = produce(&mut merge);
        failure.note(produced);
        drop(merge);
        tree.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match failure.into_error() {
        Some(error) => Err(error),
        None => tree,
    }
}

/// Runs a worker until there are no more jobs.
fn work(
    jobs: &Mutex<Receiver<Asked>>,
    ingest: &Ingest<'_>,
    recheck: &Recheck<'_>,
    failure: &Failure,
) {
    loop {
        let next = jobs.lock().recv();
        let Ok((job, reply)) = next else { return };
        if failure.is_noted() {
            continue; // drain the queue, so that no sender blocks on it
        }
        // The receiver is gone only after another thread failed.
        let send = |entries| reply.send(entries).is_ok();
        let done = match job {
            Job::Batch(root, batch) => {
                let _reading = ingest.packer().share_look_ups();
                batch.read(&root, ingest).map(|entries| {
                    send(entries);
                })
            }
            Job::GitDir(root, found, previous) => {
                git_dir::read(ingest, recheck, &root, &found, previous, send)
            }
        };
        // Noted before the end of the reply, so that the tree does not continue without the rest.
        failure.note(done);
    }
}

/// Takes the batches in order and writes the tree.
fn write_tree(
    slots: Receiver<Slot>,
    ingest: &Ingest<'_>,
    failure: &Failure,
) -> Result<(ChunkId, Totals)> {
    let mut assembly = Assembly::new(Gate::new(ingest.counters, ingest.observer()));
    let packer = ingest.packer();
    let mut write = |entries: Vec<Entry>| {
        let push = |entry| failure.note(assembly.push(entry, packer));
        !failure.is_noted() && entries.into_iter().map(push).all(|done| done.is_some())
    };
    for slot in slots {
        match slot {
            Slot::Filled(entries) => drop(write(entries)),
            // Workers take jobs in the order of slots, so that a worker that waits here never keeps
            // an earlier slot from being filled. After a failure, the receiver is dropped.
            Slot::Later(receiver) => drop(receiver.into_iter().all(&mut write)),
        }
    }
    if failure.is_noted() {
        return Err(Error::Abandoned); // `run` returns the recorded error instead
    }
    assembly.finish(packer)
}
