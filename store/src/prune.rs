//! Prune: deletes segments that no snapshot needs, beside running backups on any host.
//!
//! The order of the steps is the safety; `docs/architecture.md` gives the reasons:
//!
//! 1. list the segments, and wait for the sessions that run,
//! 2. list the snapshots and find everything that they need; plan,
//! 3. copy needed chunks out of segments with little use; write the condemnation of all segments of the plan, then list all condemnations,
//! 4. list the sessions, and wait until each of them has ended, or fence it,
//! 5. list the snapshots again: each of them counts,
//! 6. list the segments again. A need is met only by a segment that is listed and that no
//!    condemnation names. Take segments out of the plan until all needs are met,
//! 7. remove the rows of the segments from the index, then delete the segments,
//! 8. withdraw the condemnation.

mod freed;
mod runs;
mod tables;

pub use freed::{Freed, freed};

use crate::check_record::CheckRecord;
use crate::condemned::{self, Condemnation, Own};
use crate::entry::Time;
use crate::error::{Error, Result};
use crate::id::{ChunkId, SegmentId, SnapshotId};
use crate::limits;
use crate::observe::Event;
use crate::packer::Packer;
use crate::presence::{self, Life};
#[cfg(test)]
use crate::protocol;
use crate::protocol::{Rule, is_kept};
use crate::reach::reach;
use crate::segment::{self, Row, SegmentKind};
use crate::sessions;
use crate::snapshot::{self, Snapshot};
use crate::store::{self, Store};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::time::{Duration, Instant};
use tables::{Copy, ListedSegment, Needs, Tables};

/// Pause between two looks at the sessions that run.
const POLL: Duration = Duration::from_millis(500);

/// A session of another machine is presumed dead if its newest marker stays the same for this long.
const PRESUMED_DEAD_AFTER: Duration = Duration::from_secs(30 * 60);

/// A segment is rewritten if less than half of its chunks' bytes are needed, and at least as many bytes
/// as this are not.
const GAIN_BYTES_MIN: u64 = 32 << 10;

/// Number of small segments of one kind that stay. More of them are joined.
const SMALL_MAX: usize = 32;

/// A segment of less than this part of the usual size is small.
const SMALL_PART: u64 = 4;

/// Number of times that a prune begins again because something is missing.
const RETRIES_MAX: u32 = 2;

/// Bytes of a segment that are read at once.
const READ_BYTES: u64 = 1 << 20;

/// Options of a prune.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// Delete nothing.
    pub is_dry: bool,
    /// Maximum number of bytes to copy out of partly needed segments.
    pub repack_bytes_max: u64,
    /// Longest wait for running backups. The prune is postponed after it.
    pub wait: Duration,
    /// Current time, to note since when a session is silent.
    pub now: Time,
    /// Name of this machine, for messages.
    pub host: String,
    /// Version of the program, for the record of damage.
    pub program: String,
    /// True if no other machine writes to the store. A store on a file system that several machines
    /// can use is refused otherwise.
    pub is_only_host: bool,
}

/// Number and size of some segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Segments {
    /// Number of segments.
    pub segments: u64,
    /// Bytes of their files.
    pub bytes: u64,
}

impl Segments {
    fn add(&mut self, bytes: u64) {
        self.segments += 1;
        self.bytes += bytes;
    }
}

/// Result of a prune.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Number of snapshots that keep their chunks.
    pub snapshots: u64,
    /// All segments at the start.
    pub all: Segments,
    /// Segments without a needed chunk, according to the plan.
    pub planned: Segments,
    /// Partly needed segments to be replaced by new ones, according to the plan.
    pub rewritten: Segments,
    /// Bytes of needed chunks to be copied out of these.
    pub moved_bytes: u64,
    /// Deleted segments, with the rewritten ones.
    pub deleted: Segments,
    /// Bytes of chunks that no snapshot needs, in segments that stay.
    pub left_bytes: u64,
    /// Segments that could not be deleted.
    pub undeletable: u64,
    /// Running backups because of which nothing was deleted: their hosts.
    pub waited_for: Vec<String>,
}

impl PruneReport {
    /// Returns true if the prune gave up waiting for running backups.
    pub fn is_postponed(&self) -> bool {
        !self.waited_for.is_empty()
    }
}

/// Deletes the segments that no snapshot needs. Calls `planned` before the first deletion.
pub fn prune(
    store: &Store,
    options: &PruneOptions,
    planned: &mut dyn FnMut(&PruneReport),
) -> Result<PruneReport> {
    let local = store.workspace.local();
    if !options.is_dry
        && !options.is_only_host
        && let Some(local) = local
        && local.is_remote().map_err(Error::store_read("store.json"))?
    {
        return Err(Error::SharedFileSystem(store.place()));
    }
    let deadline = Instant::now() + options.wait;
    let mut retries = 0;
    loop {
        let mut prune = Prune::new(store, options, deadline);
        match prune.run(planned) {
            Ok(()) => return Ok(prune.report),
            // Another prune deleted what only a snapshot needed that was forgotten meanwhile.
            Err(error) if prune.has_forgotten(&error)? => {}
            // It moved what this one just read.
            Err(error) if is_missing(&error) && retries < RETRIES_MAX => retries += 1,
            Err(error) => {
                if let Err(error) = prune.record_damage(&error) {
                    let text = format!("the damage is not recorded: {error}");
                    store.observer().event(Event::Warning(text));
                }
                return Err(error);
            }
        }
    }
}

struct Prune<'a> {
    store: &'a Store,
    options: &'a PruneOptions,
    /// End of the wait for sessions.
    deadline: Instant,
    tables: Tables<'a>,
    needs: Needs<'a>,
    /// Pages whose needs are known.
    known: HashSet<u128>,
    /// Snapshots whose needs are known, at least in part.
    seen: BTreeSet<SnapshotId>,
    /// Sessions that are known to have ended without deleting their markers, and fenced ones.
    closed: BTreeMap<String, Life>,
    report: PruneReport,
}

/// Newest marker of each session that ran, with the time at which a prune first saw it.
type Notes = BTreeMap<String, (u64, i64)>;

/// Segments to delete.
struct Plan {
    /// Those without a needed chunk.
    dead: Vec<usize>,
    /// Those to delete after their needed chunks were copied, with the offsets of these chunks.
    moving: BTreeMap<usize, Vec<u32>>,
}

/// Result of the wait for sessions.
enum Waited {
    AllEnded,
    /// Hosts whose sessions still run.
    Running(Vec<String>),
}

impl<'a> Prune<'a> {
    fn new(store: &'a Store, options: &'a PruneOptions, deadline: Instant) -> Prune<'a> {
        Prune {
            store,
            options,
            deadline,
            tables: Tables::new(store),
            needs: Needs::new(store),
            known: HashSet::new(),
            seen: BTreeSet::new(),
            closed: BTreeMap::new(),
            report: PruneReport::default(),
        }
    }

    fn run(&mut self, planned: &mut dyn FnMut(&PruneReport)) -> Result<()> {
        // Known damage is not copied into new segments, in which nobody knows it.
        self.store.heed_checks(false)?;
        let mut others = self.condemnations()?;
        if !self.options.is_dry {
            others = self.remove_ended(others)?;
        }
        // Segments that are listed before a running backup ends may be those that it just wrote. Only
        // segments that are older than all running backups are candidates.
        let is_candidate = self.tables.list()?;
        if !self.options.is_dry
            && let Waited::Running(hosts) = self.wait()?
        {
            self.report.waited_for = hosts;
            return Ok(());
        }
        let is_listed = self.find_needs()?;
        let Plan { dead: mut plan, moving } = self.plan(&is_candidate, &is_listed, &others)?;
        planned(&self.report);
        if self.options.is_dry {
            return Ok(());
        }
        match self.rewrite(&moving) {
            Ok(()) => plan.extend(moving.into_keys()),
            Err(error) if error.is_out_of_space() => {
                // The copies that were written are of no use to anybody, and go with the next prune.
                let text = format!("partly needed segments are not rewritten: {error}");
                self.store.observer().event(Event::Warning(text));
            }
            Err(error) => return Err(error),
        }
        if !plan.is_empty() {
            let ids: Vec<SegmentId> = plan.iter().map(|at| self.tables.segments[*at].id).collect();
            let (backend, local) = (&*self.store.backend, self.store.workspace.local());
            let own = match is_kept(Rule::Condemn) {
                true => condemned::write(backend, local, &self.options.host, &ids)?,
                false => Vec::new(),
            };
            let done = self.carry_out(plan, &own);
            // An unknown outcome of a deletion keeps the condemnation: the segment may go later.
            let is_unknown = matches!(&done, Err(Error::StoreRemove { .. }));
            if !is_unknown {
                let withdrawn = condemned::withdraw(backend, own);
                done?;
                withdrawn?;
            } else {
                done?;
            }
        }
        if !self.report.is_postponed() {
            self.settle_sessions()?;
        }
        Ok(())
    }

    /// Marks the segments of a damaged chunk and leaves a record of them, so that the next backup stores
    /// its content again. One of them may be a copy that this prune made before it read the chunk.
    fn record_damage(&self, error: &Error) -> Result<()> {
        let Error::ChunkDamaged { chunk, segment, .. } = error else { return Ok(()) };
        if self.options.is_dry {
            return Ok(());
        }
        let index = &self.store.index;
        let mut damaged = self.store.damaged_copies(chunk)?;
        damaged.insert(*segment);
        let known = index.damaged()?;
        damaged.retain(|segment| !known.contains(segment));
        if damaged.is_empty() {
            return Ok(());
        }
        damaged.iter().try_for_each(|segment| index.set_damaged(segment))?;
        let by = (&*self.options.program, &*self.options.host);
        let damaged = damaged.into_iter().collect();
        let record = CheckRecord::of_damage("met by a prune", by, self.options.now, damaged);
        self.store.write_check_record(&record)
    }

    fn condemnations(&self) -> Result<Vec<Condemnation>> {
        condemned::list(&*self.store.backend, self.store.workspace.local())
    }

    /// Removes the condemnations of prunes that ended without doing so, and those of segments that
    /// are gone. Returns the others.
    fn remove_ended(&self, all: Vec<Condemnation>) -> Result<Vec<Condemnation>> {
        let (ended, left): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|of| of.life == Life::Ended);
        let backend = &*self.store.backend;
        for condemnation in ended {
            presence::remove(backend, &condemned::file_name(&condemnation.id))?;
        }
        let mut kept = Vec::new();
        for condemnation in left {
            let mut is_any_left = condemnation.life == Life::Running;
            for id in &condemnation.segments {
                is_any_left = is_any_left
                    || !matches!(
                        backend.len(&segment::file_name(id)),
                        Err(error) if error.kind() == io::ErrorKind::NotFound
                    );
            }
            if is_any_left {
                kept.push(condemnation);
            } else {
                presence::remove(backend, &condemned::file_name(&condemnation.id))?;
            }
        }
        Ok(kept)
    }

    /// Waits until all sessions that are listed now have ended, or are fenced.
    fn wait(&mut self) -> Result<Waited> {
        if !is_kept(Rule::Wait) {
            return Ok(Waited::AllEnded);
        }
        let backend = &*self.store.backend;
        let local = self.store.workspace.local();
        let mut left: BTreeMap<String, (u64, Instant)> = BTreeMap::new();
        for (id, listed) in sessions::list(backend)? {
            left.insert(id, (listed.newest(), Instant::now()));
        }
        let noted = self.notes();
        let mut is_said = false;
        loop {
            self.store.observer().progress().check()?;
            let (mut listed, fences) = (sessions::list(backend)?, sessions::fences(backend)?);
            let mut hosts = BTreeSet::new();
            for (id, (newest, since)) in std::mem::take(&mut left) {
                // A session without markers has ended, or another prune fenced it.
                let Some(session) = listed.remove(&id) else { continue };
                let (host, life) = sessions::life(backend, local, &id)?;
                if fences.contains(&id) || !session.is_open() {
                    self.closed.insert(id, life);
                    continue;
                }
                if life == Life::Ended {
                    match self.fence(&id) {
                        // On a full disk, its lock alone proves that it ended.
                        Err(error) if error.is_out_of_space() => {}
                        fenced => fenced?,
                    }
                    self.closed.insert(id, life);
                    continue;
                }
                let is_silent = session.newest() == newest && life == Life::Unknown;
                let was_silent = noted.get(&id).is_some_and(|(of_note, seconds)| {
                    let passed = self.options.now.seconds.saturating_sub(*seconds);
                    *of_note == newest && passed >= PRESUMED_DEAD_AFTER.as_secs() as i64
                });
                let is_old = was_silent || since.elapsed() >= PRESUMED_DEAD_AFTER;
                #[cfg(test)]
                let is_old = protocol::actor().map_or(is_old, |actor| actor.presumes_dead());
                if is_silent && is_old {
                    // The snapshots are listed after this.
                    self.fence(&id)?;
                    self.closed.insert(id, life);
                    continue;
                }
                let since = if session.newest() == newest { since } else { Instant::now() };
                left.insert(id, (session.newest(), since));
                hosts.insert(host);
            }
            if left.is_empty() {
                return Ok(Waited::AllEnded);
            }
            if Instant::now() >= self.deadline {
                self.note(&left, &noted);
                return Ok(Waited::Running(hosts.into_iter().collect()));
            }
            if !is_said {
                let hosts: Vec<String> = hosts.into_iter().collect();
                let text = format!("waiting for running backups: {}", hosts.join(", "));
                self.store.observer().event(Event::Note(text));
                is_said = true;
            }
            #[cfg(test)]
            if protocol::actor().is_some() {
                continue;
            }
            std::thread::sleep(POLL.min(self.deadline.saturating_duration_since(Instant::now())));
        }
    }

    fn fence(&self, id: &str) -> Result<()> {
        match is_kept(Rule::Fence) {
            true => sessions::fence(&*self.store.backend, id),
            false => Ok(()),
        }
    }

    /// Returns the newest marker of each silent session, and when an earlier prune first saw it, in
    /// seconds since 1970. A wrong clock can make a backup fail, and cannot cost data.
    fn notes(&self) -> Notes {
        let read = std::fs::read(self.store.workspace.sessions_path());
        read.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Writes down the sessions that still run. Best effort: without it, the next prune waits longer.
    fn note(&self, left: &BTreeMap<String, (u64, Instant)>, before: &Notes) {
        let note = |(id, (newest, _)): (&String, &(u64, Instant))| {
            // A clock that was ahead wrote a time from the future, which would keep the session alive.
            let now = self.options.now.seconds;
            let counts = |(of_note, seconds): &&(u64, i64)| of_note == newest && *seconds <= now;
            let old = before.get(id).filter(counts).copied();
            (id.clone(), old.unwrap_or((*newest, now)))
        };
        let notes: Notes = left.iter().map(note).collect();
        let bytes = serde_json::to_vec(&notes).expect("writing to memory cannot fail");
        let _ = std::fs::write(self.store.workspace.sessions_path(), bytes);
    }

    /// Lists the snapshots, then the segments, and collects the needs of the snapshots that were not
    /// listed before. Returns for each segment whether it was listed.
    fn find_needs(&mut self) -> Result<Vec<bool>> {
        let backend = &*self.store.backend;
        let ids = snapshot::list(backend)?;
        let announced = sessions::announced(backend)?;
        // After the snapshots: their segments were written before them.
        let is_listed = self.tables.list()?;
        if ids.is_empty() && !self.tables.segments.is_empty() {
            // A directory that was emptied, or is not mounted, must not cost all data.
            return Err(Error::NoSnapshots(self.store.place()));
        }
        for id in ids {
            if self.seen.contains(&id) {
                continue;
            }
            let snapshot = match Snapshot::read(backend, self.store.codec, &id) {
                Ok((snapshot, _)) => snapshot,
                Err(error) if self.is_forgotten(&id, &error)? => continue,
                Err(error) => return Err(error),
            };
            let root = snapshot.root.chunk();
            if announced.contains(&id) && !is_kept(Rule::AnnouncedNeeds) {
                continue;
            }
            // The record of a fenced session may have come too late: then something is missing, and
            // nobody reported the snapshot.
            if announced.contains(&id) && self.whole(&root, &is_listed)?.is_none() {
                continue;
            }
            let progress = self.store.observer().progress();
            self.seen.insert(id);
            match reach(&root, self.store, &mut self.known, &self.needs, progress) {
                Ok(()) => self.report.snapshots += 1,
                Err(error) if self.is_forgotten(&id, &error)? => {}
                Err(error) => return Err(error),
            }
        }
        Ok(is_listed)
    }

    /// Returns the needs below the root of a tree, or `None` if a chunk is in no listed segment.
    fn whole(&self, root: &ChunkId, is_listed: &[bool]) -> Result<Option<Needs<'a>>> {
        let needs = Needs::new(self.store);
        let progress = self.store.observer().progress();
        let reached = match reach(root, self.store, &mut HashSet::new(), &needs, progress) {
            Ok(()) => Ok(()),
            // The needs have the chunk; the tables know whether it is missing.
            Err(error) if is_missing(&error) => Err(error),
            Err(error) => return Err(error),
        };
        match self.tables.have(&needs, &|at| is_listed[at])? {
            true => reached.map(|()| Some(needs)),
            false => Ok(None),
        }
    }

    /// Returns true if a snapshot cannot be read because it was deleted since it was listed.
    fn is_forgotten(&self, id: &SnapshotId, error: &Error) -> Result<bool> {
        let is_missing = is_missing(error);
        Ok(is_missing && snapshot::list(&*self.store.backend)?.binary_search(id).is_err())
    }

    /// Returns true if something is missing, and a snapshot that was read was deleted since, or
    /// does not count because its record came too late.
    fn has_forgotten(&self, error: &Error) -> Result<bool> {
        if !is_missing(error) {
            return Ok(false);
        }
        let listed = self.store.snapshot_ids()?;
        Ok(self.seen.iter().any(|id| listed.binary_search(id).is_err()))
    }

    /// Finds the segments to delete and those to rewrite, among the candidates.
    fn plan(
        &mut self,
        is_candidate: &[bool],
        is_listed: &[bool],
        others: &[Condemnation],
    ) -> Result<Plan> {
        let segments = &self.tables.segments;
        let of_others = condemned::named(others);
        // A prune that may still run deletes these by itself.
        let of_running =
            condemned::named(others.iter().filter(|other| other.life == Life::Running));
        let rank = |at: usize| match &segments[at] {
            _ if !is_listed[at] => None,
            segment if of_others.contains(&segment.id) => Some(2),
            segment if segment.is_suspect => Some(1),
            _ => Some(0),
        };
        let kept = |id: &ChunkId, copies: &[Copy]| -> Result<Copy> {
            let ranked = copies.iter().filter_map(|copy| Some((rank(copy.segment)?, copy)));
            let best = ranked.min_by_key(|(rank, copy)| (*rank, copy.segment));
            best.map(|(_, copy)| *copy).ok_or(Error::ChunkMissing(*id))
        };
        let (mut needed, mut live) = (vec![false; segments.len()], vec![0; segments.len()]);
        let mut each = |id: &ChunkId, copies: &[Copy]| {
            let kept = kept(id, copies)?;
            for copy in copies {
                // Damage must not cost another copy.
                needed[copy.segment] |=
                    copy.segment == kept.segment || segments[copy.segment].is_suspect;
            }
            live[kept.segment] += u64::from(kept.row.stored_len);
            Ok(())
        };
        self.tables.join(&self.needs, &mut each, &mut || Ok(()))?;
        let (mut dead, mut partly) = (Vec::new(), Vec::new());
        let report = &mut self.report;
        for (at, segment) in segments.iter().enumerate().filter(|(at, _)| is_listed[*at]) {
            report.all.add(segment.len);
            let is_candidate = is_candidate.get(at) == Some(&true) && !segment.is_untouchable;
            if is_candidate && !needed[at] {
                report.planned.add(segment.len);
                dead.push(at);
                continue;
            }
            report.left_bytes += segment.frame_bytes.saturating_sub(live[at]);
            if is_candidate && !segment.is_suspect && !of_running.contains(&segment.id) {
                partly.push(at);
            }
        }
        let is_condemned = |at: usize| of_others.contains(&segments[at].id);
        let chosen = self.to_rewrite(&partly, &live, &is_condemned);
        let mut moving: BTreeMap<usize, Vec<u32>> =
            chosen.into_iter().map(|at| (at, Vec::new())).collect();
        if !moving.is_empty() {
            let mut each = |id: &ChunkId, copies: &[Copy]| {
                let kept = kept(id, copies)?;
                if let Some(offsets) = moving.get_mut(&kept.segment) {
                    offsets.push(kept.row.offset);
                }
                Ok(())
            };
            self.tables.join(&self.needs, &mut each, &mut || Ok(()))?;
        }
        for at in moving.keys() {
            let segment = &self.tables.segments[*at];
            self.report.rewritten.add(segment.len);
            self.report.moved_bytes += live[*at];
            self.report.left_bytes -= segment.frame_bytes.saturating_sub(live[*at]);
        }
        Ok(Plan { dead, moving })
    }

    /// Chooses segments to rewrite: those that are condemned, those with little use, and small ones
    /// if they are many.
    fn to_rewrite(
        &self,
        partly: &[usize],
        live: &[u64],
        is_condemned: &dyn Fn(usize) -> bool,
    ) -> Vec<usize> {
        let segments = &self.tables.segments;
        let mut wanted = Vec::new();
        for kind in [SegmentKind::Data, SegmentKind::Metadata] {
            let of_kind = || partly.iter().copied().filter(|at| segments[*at].kind == kind);
            let is_small = |at: &usize| segments[*at].len < usual_bytes(kind) / SMALL_PART;
            let are_many_small = of_kind().filter(is_small).count() > SMALL_MAX;
            for at in of_kind() {
                let unused = segments[at].frame_bytes.saturating_sub(live[at]);
                let has_little_use = live[at] < unused && unused >= GAIN_BYTES_MIN;
                if is_condemned(at) || has_little_use || are_many_small && is_small(&at) {
                    // The segments that cost least for what they give come first.
                    wanted.push((live[at] * 1024 / segments[at].len.max(1), at));
                }
            }
        }
        wanted.sort_unstable();
        let mut left = self.options.repack_bytes_max;
        wanted.retain(|(_, at)| {
            let fits = live[*at] <= left;
            left -= if fits { live[*at] } else { 0 };
            fits
        });
        wanted.into_iter().map(|(_, at)| at).collect()
    }

    /// Copies the chunks at these offsets of segments into new segments, without decoding them.
    fn rewrite(&self, moving: &BTreeMap<usize, Vec<u32>>) -> Result<()> {
        if moving.is_empty() {
            return Ok(());
        }
        let store = self.store;
        // In the order of their creation, so that chunks of one night stay together.
        let mut ordered = Vec::new();
        for at in moving.keys() {
            ordered.push((store.index.number(&self.tables.segments[*at].id)?, *at));
        }
        ordered.sort_unstable();
        let packer = Packer::new(store, false);
        for (_, at) in ordered {
            match self.copy(&self.tables.segments[at], moving[&at].clone(), &packer) {
                // Another prune deleted it, after it copied the chunks.
                Err(error) if store::is_not_found(&error) => {}
                copied => copied?,
            }
        }
        packer.finish()
    }

    /// Copies the chunks at these offsets of a segment.
    fn copy(
        &self,
        segment: &ListedSegment,
        mut offsets: Vec<u32>,
        packer: &Packer<'_>,
    ) -> Result<()> {
        let store = self.store;
        let name = segment::file_name(&segment.id);
        let table = store.table(&segment.id, segment.len)?;
        offsets.sort_unstable();
        let is_live = |row: &&Row| offsets.binary_search(&row.offset).is_ok();
        let rows: Vec<Row> = table.rows.iter().filter(is_live).copied().collect();
        let (mut rows, mut bytes) = (&rows[..], Vec::new());
        while let Some(first) = rows.first() {
            store.observer().progress().check()?;
            let from = u64::from(first.offset);
            let near = rows.iter().take_while(|row| row.end() - from <= READ_BYTES).count();
            let (batch, rest) = rows.split_at(near.max(1));
            rows = rest;
            bytes.resize((batch[batch.len() - 1].end() - from) as usize, 0);
            store.backend.read(&name, from, &mut bytes).map_err(Error::store_read(&*name))?;
            for row in batch {
                let start = (u64::from(row.offset) - from) as usize;
                let frame = &bytes[start..start + row.stored_len as usize];
                packer.copy_frame(segment.kind, row.id, frame, row.plain_len as usize)?;
            }
        }
        Ok(())
    }

    /// Deletes the segments of the plan as far as no snapshot needs them by now.
    fn carry_out(&mut self, plan: Vec<usize>, own: &[Own]) -> Result<()> {
        // Each prune sees the condemnations of the others, or they see its own.
        let is_own = |of: &Condemnation| own.iter().any(|own| own.id == of.id);
        let others: Vec<Condemnation> =
            self.condemnations()?.into_iter().filter(|of| !is_own(of)).collect();
        let of_others = match is_kept(Rule::OtherCondemnations) {
            true => condemned::named(&others),
            false => HashSet::new(),
        };
        if let Waited::Running(hosts) = self.wait()? {
            self.report.waited_for = hosts;
            return Ok(());
        }
        let is_listed = match is_kept(Rule::SecondSnapshots) {
            true => self.find_needs()?,
            false => self.tables.list()?,
        };
        let plan = self.unneeded(plan, &is_listed, &of_others)?;
        if !is_kept(Rule::DeletedFirst) {
            let mut names = own.iter().map(|own| condemned::file_name(&own.id));
            names.try_for_each(|name| presence::remove(&*self.store.backend, &name))?;
        }
        self.delete(&plan, &of_others)
    }

    /// Returns the segments of the plan that no snapshot needs. Verifies the copies that stay instead
    /// of others.
    fn unneeded(
        &self,
        plan: Vec<usize>,
        is_listed: &[bool],
        of_others: &HashSet<SegmentId>,
    ) -> Result<Vec<usize>> {
        let segments = &self.tables.segments;
        let is_condemned: Vec<bool> =
            segments.iter().map(|segment| of_others.contains(&segment.id)).collect();
        let mut is_planned = vec![false; segments.len()];
        plan.iter().for_each(|at| is_planned[*at] = true);
        let is_planned = std::cell::RefCell::new(is_planned);
        let verified = std::cell::RefCell::new(Vec::<Copy>::new());
        let mut each = |id: &ChunkId, copies: &[Copy]| {
            let mut is_planned = is_planned.borrow_mut();
            let listed = || copies.iter().filter(|copy| is_listed[copy.segment]);
            let lasts = |copy: &&Copy| !is_planned[copy.segment] && !is_condemned[copy.segment];
            let kept = listed()
                .filter(lasts)
                .min_by_key(|copy| (segments[copy.segment].is_suspect, copy.segment));
            // A damaged copy does not replace an intact one.
            match kept.copied().filter(|kept| !segments[kept.segment].is_suspect) {
                Some(kept) => {
                    if listed().any(|copy| is_planned[copy.segment]) {
                        verified.borrow_mut().push(kept);
                    }
                }
                None => {
                    // What is unmet leaves the plan, with all its copies: one may be damaged.
                    let mut is_any = kept.is_some();
                    for copy in listed() {
                        is_planned[copy.segment] = false;
                        is_any = true;
                    }
                    if !is_any {
                        return Err(Error::ChunkMissing(*id));
                    }
                }
            }
            Ok(())
        };
        let mut plain = Vec::new();
        let mut verify = || {
            let mut copies = std::mem::take(&mut *verified.borrow_mut());
            copies.sort_unstable_by_key(|copy| (copy.segment, copy.row.offset));
            for copy in &copies {
                self.store.observer().progress().check()?;
                self.tables.verify(copy, &mut plain)?;
            }
            Ok(())
        };
        self.tables.join(&self.needs, &mut each, &mut verify)?;
        let is_planned = is_planned.into_inner();
        Ok(plan.into_iter().filter(|at| is_planned[*at]).collect())
    }

    fn delete(&mut self, plan: &[usize], of_others: &HashSet<SegmentId>) -> Result<()> {
        let (store, segments) = (self.store, &self.tables.segments);
        let ids: Vec<SegmentId> = plan.iter().map(|at| segments[*at].id).collect();
        if ids.is_empty() && !self.tables.segments.is_empty() {
            return Ok(());
        }
        let index = &store.index;
        store::drop_rows(&*store.backend, index, &ids, of_others.clone())?;
        let mut deleted = Vec::new();
        let done = plan.iter().try_for_each(|at| {
            store.observer().progress().check()?;
            let (id, len) = (segments[*at].id, segments[*at].len);
            let name = segment::file_name(&id);
            match store.backend.remove(&name) {
                Ok(()) => self.report.deleted.add(len),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if is_refused(&error) => {
                    self.report.undeletable += 1;
                    let text = format!("cannot delete {name}: {error}");
                    store.observer().event(Event::Warning(text));
                    return Ok(());
                }
                Err(source) => return Err(Error::StoreRemove { name, source }),
            }
            deleted.push(id);
            Ok(())
        });
        // Another process may have listed a segment before, and added its rows again.
        let mut again = Vec::new();
        for id in deleted {
            if index.number(&id)?.is_some() {
                again.push(id);
            }
        }
        if !again.is_empty() {
            store::drop_rows(&*store.backend, index, &again, of_others.clone())?;
        }
        done
    }

    /// Decides about the snapshots of sessions that ended without doing so themselves, and clears
    /// their markers away.
    fn settle_sessions(&mut self) -> Result<()> {
        let backend = &*self.store.backend;
        let closed = std::mem::take(&mut self.closed);
        // In this order: a session has markers before it is fenced.
        let fences = sessions::fences(backend)?;
        let all = sessions::list(backend)?;
        for (id, life) in closed {
            let Some(listed) = all.get(&id) else { continue };
            for snapshot in &listed.announced {
                self.settle(&id, snapshot, life)?;
            }
            sessions::clear(backend, &id, listed)?;
        }
        // Those of sessions that ended by themselves.
        let has_ended = |id: &&String| all.get(*id).is_none_or(|listed| listed.markers.is_empty());
        fences.iter().filter(has_ended).try_for_each(|id| sessions::remove_fence(backend, id))
    }

    /// Decides about an announced snapshot: it counts if all its chunks stay, and is deleted if one is
    /// missing.
    fn settle(&mut self, session: &str, id: &SnapshotId, life: Life) -> Result<()> {
        let backend = &*self.store.backend;
        let early = match is_kept(Rule::CondemnedAfterSnapshot) {
            true => None,
            false => Some(self.condemnations()?),
        };
        if snapshot::list(backend)?.binary_search(id).is_err() {
            // A process that still runs may write the record late. The announcement makes it void.
            return match life {
                Life::Ended => sessions::remove_announcement(backend, session, id),
                Life::Running | Life::Unknown => Ok(()),
            };
        }
        let root = match Snapshot::read(backend, self.store.codec, id) {
            Ok((snapshot, _)) => snapshot.root.chunk(),
            Err(error) if self.is_forgotten(id, &error)? => return Ok(()),
            Err(error) => return Err(error),
        };
        // After the snapshot was listed: a later condemnation comes from a prune that sees it.
        let of_others = condemned::named(&early.map_or_else(|| self.condemnations(), Ok)?);
        let is_listed = self.tables.list()?;
        let needs = self.whole(&root, &is_listed)?;
        let Some(needs) = needs else {
            let text = format!(
                "deleting snapshot {}: its backup was taken for dead and did not succeed",
                id.short()
            );
            self.store.observer().event(Event::Warning(text));
            presence::remove(backend, &snapshot::file_name(id))?;
            return sessions::remove_announcement(backend, session, id);
        };
        let stays = |at: usize| {
            let is_condemned = of_others.contains(&self.tables.segments[at].id);
            is_listed[at] && !(is_condemned && is_kept(Rule::AcceptUncondemned))
        };
        if self.tables.have(&needs, &stays)? {
            sessions::remove_announcement(backend, session, id)?;
        }
        Ok(())
    }
}

/// Returns true if an error means that a chunk or an object of the store is missing.
fn is_missing(error: &Error) -> bool {
    matches!(error, Error::ChunkMissing(_)) || store::is_not_found(error)
}

/// Returns the bytes of a segment after which it takes no more chunks.
fn usual_bytes(kind: SegmentKind) -> u64 {
    match kind {
        SegmentKind::Data => limits::DATA_SEGMENT_BYTES,
        SegmentKind::Metadata => limits::METADATA_SEGMENT_BYTES,
    }
}

/// Returns true if a deletion was refused and cannot happen later.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests;
