//! The first and the last of a backup: what it starts from, and its record.

use super::{Options, Report};
use crate::entry::{Entry, Kind, Time};
use crate::error::Result;
use crate::id::{ChunkId, SegmentId, SnapshotId};
use crate::observe::Event;
use crate::packer::Packer;
use crate::reuse::Allowance;
use crate::snapshot::{self, Id, Snapshot, Statistics};
use crate::store::{Named, Store};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counted while a backup runs.
#[derive(Debug, Default)]
pub struct Counters {
    pub files_new: AtomicU64,
    pub files_changed: AtomicU64,
    pub files_unmodified: AtomicU64,
    pub dirs_new: AtomicU64,
    pub dirs_changed: AtomicU64,
    pub dirs_unmodified: AtomicU64,
    pub others: AtomicU64,
    pub changed_while_read: AtomicU64,
    pub unreadable: AtomicU64,
    pub bytes_read: AtomicU64,
    pub found_by_chunk: AtomicU64,
    pub found_by_extent: AtomicU64,
    pub copied_forward: AtomicU64,
    /// Files that were not what they seem, by reason.
    pub doubts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// Counts what was read.
    pub fn count(&self, entry: &Entry, previous: Option<&Entry>) {
        match (entry.kind, previous.is_some()) {
            (Kind::File, false) => &self.files_new,
            (Kind::File, true) => &self.files_changed,
            (Kind::Directory, false) => &self.dirs_new,
            (Kind::Directory, true) => &self.dirs_changed,
            _ => &self.others,
        }
        .fetch_add(1, Relaxed);
    }

    /// Counts what was taken as it was before.
    pub fn unchanged(&self, entry: &Entry) {
        match entry.kind {
            Kind::File => &self.files_unmodified,
            Kind::Directory => &self.dirs_unmodified,
            _ => &self.others,
        }
        .fetch_add(1, Relaxed);
    }
}

/// What a tree amounts to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    pub entries: u64,
    /// Of files.
    pub bytes: u64,
    /// Bytes of chunks that files refer to without needing them.
    pub unused: u64,
}

/// A backup from its first moment to its record.
pub struct Run<'a> {
    pub store: &'a Store,
    pub packer: Packer<'a>,
    pub counters: Counters,
    pub allowance: Allowance,
    pub parent: Option<Named>,
    pub start: Time,
    options: &'a Options,
    /// As the record has them.
    paths: Vec<Vec<u8>>,
    /// The segments known to be damaged when the backup began.
    damaged: HashSet<SegmentId>,
}

impl<'a> Run<'a> {
    /// Begins a backup of these paths, which are also what its parent is found by.
    pub fn begin(store: &'a Store, options: &'a Options, paths: Vec<Vec<u8>>) -> Result<Run<'a>> {
        let parent = if options.force { None } else { parent(store, &options.about.host, &paths)? };
        let start = (options.about.clock)();
        let damaged = store.index.damaged()?;
        let packer = Packer::new(store, options.is_dry);
        let allowance = parent.as_ref().map_or_else(Allowance::default, |(_, parent)| {
            Allowance::of(parent.statistics.bytes, parent.statistics.unused)
        });
        let counters = Counters::default();
        Ok(Run { store, packer, counters, allowance, parent, start, options, paths, damaged })
    }

    /// Makes everything durable, then writes the record. `trusted` is the snapshot that was
    /// closed when the backup began, so that none of its chunks was looked up.
    pub fn finish(
        self,
        root: ChunkId,
        Totals { entries, bytes, unused }: Totals,
        trusted: Option<SnapshotId>,
    ) -> Result<Report> {
        self.packer.finish()?;
        let Run { store, counters, options, .. } = &self;
        let (about, added) = (&options.about, self.packer.added());
        let statistics = Statistics {
            files_new: counters.files_new.load(Relaxed),
            files_changed: counters.files_changed.load(Relaxed),
            files_unmodified: counters.files_unmodified.load(Relaxed),
            dirs_new: counters.dirs_new.load(Relaxed),
            dirs_changed: counters.dirs_changed.load(Relaxed),
            dirs_unmodified: counters.dirs_unmodified.load(Relaxed),
            others: counters.others.load(Relaxed),
            entries,
            bytes,
            chunks_new: added.chunks.load(Relaxed),
            added_bytes: added.plain_bytes.load(Relaxed),
            added_stored_bytes: added.stored_bytes.load(Relaxed),
            changed_while_read: counters.changed_while_read.load(Relaxed),
            bytes_read: counters.bytes_read.load(Relaxed),
            found_by_chunk: counters.found_by_chunk.load(Relaxed),
            found_by_extent: counters.found_by_extent.load(Relaxed),
            copied_forward: counters.copied_forward.load(Relaxed),
            unused,
        };
        let doubts = std::mem::take(&mut *counters.doubts.lock());
        let unreadable_count = counters.unreadable.load(Relaxed);
        store.observer().progress().check()?;
        let parent = self.parent.as_ref().map(|(id, _)| *id);
        let record = Snapshot {
            version: snapshot::VERSION,
            start: self.start.into(),
            end: (about.clock)().into(),
            host: about.host.clone(),
            user: about.user.clone(),
            paths: self.paths.iter().cloned().map(Into::into).collect(),
            tags: about.tags.clone(),
            root: Id(*root.as_bytes()),
            parent: parent.map(|id| Id(*id.as_bytes())),
            program: about.program.clone(),
            statistics,
            unreadable_count,
            excludes: options.excludes.clone(),
        };
        let snapshot = if options.is_dry {
            None
        } else {
            let id = record.write(&*store.backend)?;
            // The snapshot is there and good; without this mark the next backup looks closer.
            if let Err(error) = self.close(&id, trusted) {
                store.observer().event(Event::Warning(error.to_string()));
            }
            Some(id)
        };
        Ok(Report { snapshot, parent, statistics, unreadable_count, doubts })
    }

    /// Marks the snapshot as closed, unless something was found missing of the one it
    /// relies on.
    fn close(&self, snapshot: &SnapshotId, trusted: Option<SnapshotId>) -> Result<()> {
        let index = &self.store.index;
        match trusted {
            Some(trusted) if !index.is_closed(&trusted)? => Ok(()),
            _ => index.set_closed(snapshot, &self.damaged),
        }
    }
}

/// The snapshot to take unchanged files from: the newest of this machine with the
/// same paths, else the newest that shares one.
fn parent(store: &Store, host: &str, wanted: &[Vec<u8>]) -> Result<Option<Named>> {
    let (snapshots, damaged) = store.snapshots()?;
    for error in damaged {
        store.observer().event(Event::Warning(error.to_string()));
    }
    let of_host = || snapshots.iter().rev().filter(|(_, snapshot)| snapshot.host == host);
    let same = |snapshot: &Snapshot| {
        snapshot.paths.len() == wanted.len()
            && snapshot.paths.iter().all(|path| wanted.contains(path))
    };
    let shares = |snapshot: &Snapshot| snapshot.paths.iter().any(|path| wanted.contains(path));
    let found = of_host()
        .find(|(_, snapshot)| same(snapshot))
        .or_else(|| of_host().find(|(_, snapshot)| shares(snapshot)));
    Ok(found.cloned())
}
