//! Start and end of a backup: the search for a parent, and the record.

use super::absolute;
use super::guard::{self, Found, Reference};
use super::{BackupOptions, Likeness, Removed, Report, tree_path};
use crate::check_record::CheckRecord;
use crate::chunks::Chunks;
use crate::diff::{Change, diff, is_same, is_stored_alike};
use crate::entry::{Content, Displayed, Entry, EntryKind, Time};
use crate::error::{Error, Result};
use crate::glob::ends;
use crate::id::{ChunkId, SegmentId, SnapshotId};
use crate::mount::MountState;
use crate::observe::{Event, Observer, Reason};
use crate::packer::Packer;
use crate::protocol::{Rule, is_kept};
use crate::random;
use crate::recipe::{Extent, Extents};
use crate::records::Named;
use crate::reuse::Allowance;
use crate::skipped::{Noted, Spared};
use crate::snapshot::{self, Amount, Emptied, Id, Instance, Skipped, Snapshot, Statistics};
use crate::source::Owners;
use crate::store::{RunningSession, Store};
use crate::tree::{Lost, TreeReader};
use minicbor::bytes::ByteVec;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Incomplete snapshots among which the last complete one is searched. A source with a file that is
/// never readable has no complete ones.
const INCOMPLETE_MAX: usize = 100;

/// Unreadable paths that are remembered. With more of them nobody knows which files are gone.
const UNREADABLE_PATHS_MAX: usize = 1000;

/// Counted while a backup runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Entries that were read and differ from what they were compared with.
    pub changes: AtomicU64,
    pub changed_while_read: AtomicU64,
    pub unreadable: AtomicU64,
    /// The paths of those, up to a limit.
    unreadable_paths: Mutex<HashSet<Vec<u8>>>,
    /// Source paths of all passes so far, as paths in the tree.
    pub sources: Mutex<BTreeSet<Vec<u8>>>,
    /// References in files without content, which are missing from the snapshot.
    pub empty_references: Mutex<BTreeSet<Vec<u8>>>,
    pub metadata_unreadable: AtomicU64,
    pub bytes_read: AtomicU64,
    pub found_by_chunk: AtomicU64,
    pub found_by_extent: AtomicU64,
    pub copied_forward: AtomicU64,
    /// Number of files that looked special but were stored like any other file, by reason.
    pub stored_plainly: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// Counts an entry that was read, if it is new or changed.
    pub fn count(&self, entry: &Entry, previous: Option<&Entry>) {
        if !previous.is_some_and(|previous| is_same(previous, entry)) {
            self.changes.fetch_add(1, Relaxed);
        }
    }

    /// Counts and reports a path that is missing from the snapshot.
    pub fn report_unreadable(&self, observer: &dyn Observer, path: &[u8], error: &io::Error) {
        self.unreadable.fetch_add(1, Relaxed);
        let mut paths = self.unreadable_paths.lock();
        if paths.len() < UNREADABLE_PATHS_MAX {
            paths.insert(path.to_vec());
        }
        drop(paths);
        let (path, reason) = (absolute(path), error.into());
        observer.event(Event::Unreadable { path, reason });
    }

    /// Returns true if a path, or a directory above it, was reported as missing.
    pub fn is_unreadable(&self, path: &[u8]) -> bool {
        let paths = self.unreadable_paths.lock();
        !paths.is_empty() && ends(path).any(|end| paths.contains(&path[..end]))
    }

    /// Counts and reports a path that is in the snapshot without some of its metadata.
    pub fn report_metadata(&self, observer: &dyn Observer, path: &[u8], reason: impl Into<Reason>) {
        self.metadata_unreadable.fetch_add(1, Relaxed);
        let reason = reason.into();
        observer.event(Event::MetadataUnreadable { path: absolute(path), reason });
    }
}

/// Numbers of files, of directories and of other entries.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kinds {
    files: u64,
    dirs: u64,
    others: u64,
}

impl Kinds {
    /// Returns the number of all.
    pub fn sum(&self) -> u64 {
        self.files + self.dirs + self.others
    }

    fn add(&mut self, entry: &Entry) {
        match entry.kind {
            EntryKind::File => self.files += 1,
            EntryKind::Directory if entry.mtime.is_none() => {}
            EntryKind::Directory => self.dirs += 1,
            _ => self.others += 1,
        }
    }
}

/// Totals of a tree.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub entries: u64,
    /// Entries of each sort that have a time. Directories above source paths, and those made for
    /// streams, have none.
    pub kinds: Kinds,
    /// Sum of file sizes in bytes.
    pub bytes: u64,
    /// Bytes of referenced chunks that files do not need.
    pub unused: u64,
    /// Files of each source, by its path in the tree.
    pub sources: BTreeMap<Vec<u8>, Amount>,
}

impl Totals {
    /// Adds an entry. The sums saturate, because a few large sparse files can exceed every number.
    pub fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        self.kinds.add(entry);
        self.bytes = self.bytes.saturating_add(entry.size);
        self.unused = self.unused.saturating_add(entry.unused);
    }
}

/// The file systems of a backup, numbered in the order in which the walk reaches them.
#[derive(Debug, Default)]
pub struct FileSystems {
    devices: Mutex<Vec<u64>>,
}

impl FileSystems {
    /// Returns the number of the file system on this device.
    pub fn number(&self, device: u64) -> u64 {
        let mut devices = self.devices.lock();
        let known = devices.iter().position(|known| *known == device);
        let number = known.unwrap_or_else(|| {
            devices.push(device);
            devices.len() - 1
        });
        number as u64
    }
}

/// State of a backup from its start to its record.
pub struct BackupState<'a> {
    pub store: &'a Store,
    pub packer: Packer<'a>,
    pub counters: Counters,
    pub allowance: Allowance,
    /// Held while indexes of many packs are in memory.
    pub many_packs: Mutex<()>,
    pub file_systems: FileSystems,
    pub owners: Owners,
    pub parent: Option<Named>,
    /// Last snapshot from which losses count, unless it is the parent.
    reference: Option<Named>,
    /// Later ones with emptied sources, newest first.
    emptied: Vec<Named>,
    /// File systems of the source paths, as paths in the tree.
    pub mounts: BTreeMap<Vec<u8>, MountState>,
    /// Directories below source paths that have no files any more.
    pub emptied_dirs: Vec<PathBuf>,
    /// Number of skipped records: unreadable ones, and those from the future.
    skipped_records: u64,
    pub start: Time,
    /// Content skipped so far.
    pub noted: Arc<Noted>,
    options: &'a BackupOptions,
    /// Added by earlier packers: number of chunks, their plain bytes, their stored bytes.
    added: [u64; 3],
    /// Segments that were known to be damaged when the backup began.
    damaged: HashSet<SegmentId>,
    /// Keeps prunes from deleting what the backup relies on; `None` in a dry run.
    session: Option<RunningSession<'a>>,
}

impl<'a> BackupState<'a> {
    /// Begins a backup.
    pub fn begin(
        store: &'a Store,
        options: &'a BackupOptions,
        like: &Likeness,
    ) -> Result<BackupState<'a>> {
        let start = (options.about.clock)();
        let host = &options.about.host;
        if !options.is_dry {
            store.heed_checks(true)?;
        }
        // Before the parent is chosen: see `sessions`.
        let session = (!options.is_dry).then(|| store.begin_session(host)).transpose()?;
        let Before { parent, reference, emptied, skipped_records } =
            before(store, host, like, start, options.is_dry)?;
        let damaged = store.index.damaged()?;
        let has_passes = matches!(like, Likeness::Instance(_));
        let packer = match options.is_dry && (parent.is_some() || has_passes) {
            true => Packer::dry_with_trees(store),
            false => Packer::new(store, options.is_dry),
        };
        let allowance = parent.as_ref().map_or_else(Allowance::default, |(_, parent)| {
            Allowance::of(parent.statistics.bytes, parent.statistics.unused)
        });
        let (counters, file_systems, many_packs, owners) = Default::default();
        let (added, noted) = ([0; 3], Arc::default());
        let (mounts, emptied_dirs) = Default::default();
        Ok(BackupState {
            store,
            packer,
            counters,
            allowance,
            many_packs,
            file_systems,
            owners,
            parent,
            reference,
            emptied,
            mounts,
            emptied_dirs,
            skipped_records,
            start,
            noted,
            options,
            added,
            damaged,
            session,
        })
    }

    /// Returns true if all chunks of the parent are known to be in the store until the backup ends.
    pub fn may_rely_on_parent(&self, parent: &SnapshotId) -> Result<bool> {
        let is_whole = !is_kept(Rule::WholeParent) || self.store.index.is_whole(parent)?;
        Ok(is_whole && self.session.as_ref().is_none_or(|session| session.may_rely_on_whole()))
    }

    /// Makes everything so far durable and thereby readable. In a dry run, the packer itself keeps
    /// everything readable.
    pub fn flush(&mut self) -> Result<()> {
        if self.options.is_dry {
            return Ok(());
        }
        self.packer.finish()?;
        self.added = self.added();
        self.packer = Packer::new(self.store, false);
        Ok(())
    }

    /// Returns the number of added chunks, their plain bytes and their stored bytes.
    fn added(&self) -> [u64; 3] {
        let added = self.packer.added();
        let [chunks, plain, stored] = self.added;
        [
            chunks + added.chunks.load(Relaxed),
            plain + added.plain_bytes.load(Relaxed),
            stored + added.stored_bytes.load(Relaxed),
        ]
    }

    /// Makes everything durable, then writes the record. `whole` is the snapshot that was whole
    /// when the backup began, so that its chunks were not looked up.
    pub fn finish(
        self,
        root: ChunkId,
        Totals { entries, kinds, bytes, unused, sources }: Totals,
        whole: Option<SnapshotId>,
        paths: Vec<Vec<u8>>,
        instance: Option<Instance>,
    ) -> Result<Report> {
        self.packer.finish()?;
        let BackupState { store, counters, options, .. } = &self;
        let about = &options.about;
        let [chunks_new, added_bytes, added_stored_bytes] = self.added();
        let stored_plainly = std::mem::take(&mut *counters.stored_plainly.lock());
        let unreadable_count = counters.unreadable.load(Relaxed);
        store.observer().progress().check()?;
        if let Some(path) = self.noted.first_unfinished() {
            let path = absolute(&path);
            let text = format!(
                "skipped files that a restore has not finished, such as {}; if that restore was \
                 interrupted, run it again",
                path.displayed()
            );
            store.observer().event(Event::Warning(text));
        }
        let parent = self.parent.as_ref().map(|(id, _)| *id);
        let text = |pattern: &Vec<u8>| String::from_utf8_lossy(pattern).into_owned();
        let excludes: Vec<String> = options.excludes.iter().map(text).collect();
        let in_tree = |path: &Vec<u8>| tree_path(Path::new(OsStr::from_bytes(path)));
        let named: HashSet<Vec<u8>> = paths.iter().map(in_tree).collect();
        let skipped = Skipped {
            one_file_system: options.one_file_system,
            caches: options.exclude_caches,
            git_caches: !options.git_caches,
            ..self.noted.record(&excludes, &named)
        };
        let found = self.found(&root, &sources);
        let limits = options.guard.limits(&found);
        let mut emptied: Vec<Emptied> = Vec::new();
        let Differences { new, changed, removed } = match &self.parent {
            Some((id, parent)) => {
                let spared = Spared::of(&excludes, &skipped, named.iter().cloned())?;
                let is_named = |path: &[u8]| ends(path).any(|end| named.contains(&path[..end]));
                let was_looked_for = |path: &[u8]| {
                    is_named(path) && !counters.is_unreadable(path) && !spared.covers(path)
                };
                // `counts` chooses the sources to judge by their paths.
                let mut compare =
                    |id: &SnapshotId, then: &Snapshot, counts: &dyn Fn(&ByteVec) -> bool| {
                        let mut unread = BTreeMap::new();
                        let mut skip = |entry: &Entry| {
                            guard::count_unread(entry, &sources, &mut unread);
                        };
                        let differences = differences(
                            &self.packer,
                            &then.root.chunk(),
                            &root,
                            &was_looked_for,
                            &mut skip,
                        );
                        let reference = Reference::new(*id, then, &limits, &self.packer);
                        let mut lost = reference.judge(&found, &unread, &limits);
                        let dirs = &self.emptied_dirs;
                        lost.extend(reference.emptied_dirs(dirs, &root, &self.packer));
                        let is_known =
                            |path: &ByteVec| emptied.iter().any(|known| known.path == *path);
                        lost.retain(|lost| counts(&lost.path) && !is_known(&lost.path));
                        emptied.extend(lost);
                        differences
                    };
                // An incomplete parent may lack what the reference has, and have what came since.
                let all = |_: &ByteVec| true;
                let since_good = self.reference.as_ref().map(|(id, good)| compare(id, good, &all));
                let is_same = self.reference.as_ref().is_some_and(|(_, of)| of.root == parent.root);
                let since_parent = match since_good.filter(|_| is_same) {
                    Some(since_good) => since_good,
                    None => compare(id, parent, &all),
                };
                // A snapshot with an emptied source has what others of its sources got since.
                let mut open: Option<BTreeSet<&ByteVec>> = None;
                for (id, then) in &self.emptied {
                    let lost: BTreeSet<&ByteVec> =
                        then.emptied.iter().map(|emptied| &emptied.path).collect();
                    let is_open = |path: &ByteVec| open.as_ref().is_none_or(|of| of.contains(path));
                    compare(id, then, &|path| is_open(path) && !lost.contains(path));
                    open = Some(lost.into_iter().filter(|path| is_open(path)).collect());
                }
                let is_known = counters.unreadable_paths.lock().len() < UNREADABLE_PATHS_MAX;
                Differences { removed: since_parent.removed.filter(|_| is_known), ..since_parent }
            }
            None => Differences { new: kinds, ..Differences::default() },
        };
        if options.guard.allow_loss {
            emptied.clear();
        }
        let unmodified = |all: u64, new, changed| all.saturating_sub(new).saturating_sub(changed);
        let statistics = Statistics {
            files_new: new.files,
            files_changed: changed.files,
            files_unmodified: unmodified(kinds.files, new.files, changed.files),
            dirs_new: new.dirs,
            dirs_changed: changed.dirs,
            dirs_unmodified: unmodified(kinds.dirs, new.dirs, changed.dirs),
            others: kinds.others,
            entries,
            bytes,
            chunks_new,
            added_bytes,
            added_stored_bytes,
            changed_while_read: counters.changed_while_read.load(Relaxed),
            bytes_read: counters.bytes_read.load(Relaxed),
            found_by_chunk: counters.found_by_chunk.load(Relaxed),
            found_by_extent: counters.found_by_extent.load(Relaxed),
            copied_forward: counters.copied_forward.load(Relaxed),
            unused,
            metadata_unreadable: counters.metadata_unreadable.load(Relaxed),
        };
        let state = |path: &Vec<u8>| found.get(path).map(guard::state).unwrap_or_default();
        let states = match sources.is_empty() {
            true => Vec::new(),
            false => paths.iter().map(|path| state(&in_tree(path))).collect(),
        };
        let record = Snapshot {
            version: snapshot::VERSION,
            start: self.start.into(),
            end: (about.clock)().into(),
            host: about.host.clone(),
            user: about.user.clone(),
            paths: paths.into_iter().map(Into::into).collect(),
            tags: about.tags.clone(),
            root: Id(*root.as_bytes()),
            parent: parent.map(|id| Id(*id.as_bytes())),
            program: about.program.clone(),
            statistics,
            unreadable_count,
            excludes,
            instance,
            skipped,
            run: about.run.map(Into::into),
            sources: states,
            emptied: guard::cut(emptied.clone()),
            is_loss_allowed: options.guard.allow_loss,
        };
        let older = || store.snapshot_ids().map_or(0, |ids| ids.len() as u64);
        let mut damage = store.damage.summary(older);
        if let Some(damage) = damage.as_mut().filter(|_| !options.is_dry) {
            let new = damage.segments.iter().filter(|id| !self.damaged.contains(id));
            let new: Vec<SegmentId> = new.copied().collect();
            new.iter().try_for_each(|segment| store.index.set_damaged(segment))?;
            if !new.is_empty()
                && let Err(error) = store.write_check_record(&self.met(new))
            {
                store.observer().event(Event::Warning(error.to_string()));
            }
            damage.lost = lost(store, &root)?;
        }
        if let Some(damage) = &damage {
            store.observer().event(Event::Warning(damage.to_string()));
        }
        let snapshot = if options.is_dry {
            None
        } else {
            let id = record.id();
            if let Some(session) = &self.session {
                session.announce(&id)?;
            }
            record.write(&*store.backend, store.codec)?;
            if let Some(session) = &self.session {
                session.end(&id)?;
            }
            // The snapshot is complete. Without this mark, the next backup looks up every chunk.
            if let Err(error) = self.close(&id, whole) {
                store.observer().event(Event::Warning(error.to_string()));
            }
            Some(id)
        };
        let skipped_records = self.skipped_records;
        Ok(Report {
            snapshot,
            parent,
            statistics,
            removed,
            unreadable_count,
            skipped_records,
            stored_plainly,
            damage,
            is_empty: entries == 0,
            emptied,
        })
    }

    /// Returns the record of damage that this backup met.
    fn met(&self, segments: Vec<SegmentId>) -> CheckRecord {
        let about = &self.options.about;
        let by = (&*about.program, &*about.host);
        let run_id = about.run.map_or_else(String::new, |run| random::uuid_text(&run));
        let record = CheckRecord::of_damage("met by a backup", by, self.start, segments);
        CheckRecord { run_id, ..record }
    }

    /// Returns the sources as this backup found them.
    fn found(
        &self,
        root: &ChunkId,
        sources: &BTreeMap<Vec<u8>, Amount>,
    ) -> BTreeMap<Vec<u8>, Found> {
        let found = |(path, amount): (&Vec<u8>, &Amount)| {
            let is_there = amount.files > 0 || guard::has(root, path, &self.packer);
            let mount = self.mounts.get(path).cloned();
            (path.clone(), Found { amount: *amount, is_there, mount })
        };
        sources.iter().map(found).collect()
    }

    /// Marks the snapshot as whole, unless the snapshot on which it relies is no longer whole.
    fn close(&self, snapshot: &SnapshotId, whole: Option<SnapshotId>) -> Result<()> {
        let index = &self.store.index;
        match whole {
            Some(whole) if !index.is_whole(&whole)? => Ok(()),
            _ => index.set_whole(snapshot, &self.damaged),
        }
    }
}

/// Returns the number of entries of a tree that cannot be restored. Trusts only healthy segments, and
/// reads chunks in others.
fn lost(store: &Store, root: &ChunkId) -> Result<u64> {
    let is_lost = |extent: Result<Extent>| match extent {
        Ok(Extent::Hole { .. }) => Ok::<_, Error>(false),
        Ok(Extent::Slice { chunk, .. }) => {
            let is_there = store.index.has(&chunk)? || store.get(&chunk).is_ok();
            Ok(!is_there)
        }
        Err(_) => Ok(true),
    };
    let mut lost = 0;
    for item in TreeReader::new(root, store) {
        store.observer().progress().check()?;
        match item {
            Err(part) => lost += part.entries.unwrap_or(1),
            Ok(Entry { content: Content::Recipe(recipe), .. }) => {
                for extent in Extents::new(&recipe, store) {
                    if is_lost(extent)? {
                        lost += 1;
                        break;
                    }
                }
            }
            Ok(_) => {}
        }
    }
    Ok(lost)
}

/// Numbers of entries that differ between two trees.
#[derive(Default)]
struct Differences {
    /// Only in the second tree, or of another type in the first.
    new: Kinds,
    /// In both, with other content or metadata.
    changed: Kinds,
    /// Only in the first tree, or of another type in the second; `None` if they are not known.
    removed: Option<Removed>,
}

/// Compares the tree of an earlier backup with that of this one. Counts what it lacks as removed as
/// far as this backup looked for it, and calls `skip` with the others. What was in unreadable pages
/// is new.
fn differences(
    chunks: &dyn Chunks,
    first: &ChunkId,
    second: &ChunkId,
    was_looked_for: &dyn Fn(&[u8]) -> bool,
    skip: &mut dyn FnMut(&Entry),
) -> Differences {
    let [mut new, mut changed, mut removed] = [Kinds::default(); 3];
    let mut lost_parts = Vec::new();
    let mut each = |difference: Result<Change, Lost>| {
        match difference {
            Ok(Change::Added(entry)) => new.add(&entry),
            Ok(Change::Removed(entry)) if was_looked_for(&entry.path) => removed.add(&entry),
            Ok(Change::Removed(entry)) => skip(&entry),
            Ok(Change::Modified(old, entry)) if old.kind != entry.kind => {
                removed.add(&old);
                new.add(&entry);
            }
            Ok(Change::Metadata(old, entry)) if differ_in_names(&old, &entry) => {}
            Ok(Change::Modified(_, entry) | Change::Metadata(_, entry)) => changed.add(&entry),
            Err(lost) => lost_parts.push(lost.span),
        }
        Ok::<_, Infallible>(())
    };
    if first != second {
        let Ok(()) = diff(chunks, first, second, &is_stored_alike, &mut each);
    }
    if !lost_parts.is_empty() {
        let is_in_lost = |entry: &Entry| lost_parts.iter().any(|part| part.may_be(&entry.path));
        let entries = TreeReader::new(second, chunks).flatten();
        entries.filter(is_in_lost).for_each(|entry| new.add(&entry));
    }
    let Kinds { files, dirs, .. } = removed;
    let removed = lost_parts.is_empty().then_some(Removed { files, dirs });
    Differences { new, changed, removed }
}

/// Returns true if two entries with the same content differ only in the names of accounts, which come
/// from the machine.
fn differ_in_names(a: &Entry, b: &Entry) -> bool {
    let metadata = |entry: &Entry| (entry.mode, entry.mtime, entry.owner.uid, entry.owner.gid);
    metadata(a) == metadata(b) && a.xattrs == b.xattrs
}

/// Earlier snapshots with which a backup compares.
#[derive(Default)]
struct Before {
    /// Snapshot from which to take unchanged files.
    parent: Option<Named>,
    /// Last one without emptied sources that is complete, or whose losses were allowed, unless it is
    /// the parent.
    reference: Option<Named>,
    /// Later ones with emptied sources, newest first. All but the first have fewer than the one before.
    emptied: Vec<Named>,
    /// Number of skipped records.
    skipped_records: u64,
}

/// Finds the snapshot from which to take unchanged files. It is the newest of this machine with the
/// same instance or the same paths. Without one, it is the newest that shares a path.
///
/// Never returns a snapshot from the future: the time up to which its files may have changed
/// unnoticed is unknown. Never returns one with emptied sources: its files would have to be read again
/// once they are back, and the loss would look like the usual state.
fn before(store: &Store, host: &str, like: &Likeness, now: Time, is_dry: bool) -> Result<Before> {
    let records = if is_dry { store.records()? } else { store.mended_records()? };
    let warn = |text: String| store.observer().event(Event::Warning(text));
    let (mut before, mut shares_a_path, mut incomplete) = (Before::default(), None, 0);
    for record in records {
        let (id, snapshot) = match record {
            Ok(named) => named,
            Err(error) => {
                if before.parent.is_none() {
                    before.skipped_records += 1;
                    warn(error.to_string());
                }
                continue;
            }
        };
        if snapshot.is_from_future(now) {
            before.skipped_records += 1;
            warn(format!(
                "snapshot {} is dated in the future; not comparing files with it; check this \
                 machine's clock",
                id.short()
            ));
            continue;
        }
        if snapshot.host != host {
            continue;
        }
        if snapshot.is_emptied() {
            let paths = |of: &Snapshot| -> BTreeSet<ByteVec> {
                of.emptied.iter().map(|emptied| emptied.path.clone()).collect()
            };
            let has_more = before
                .emptied
                .last()
                .is_none_or(|(_, last)| !paths(&snapshot).is_superset(&paths(last)));
            if matches!(like.of(&snapshot), Match::Same) && has_more {
                before.emptied.push((id, snapshot));
            }
            continue;
        }
        match like.of(&snapshot) {
            Match::Same => {
                let is_good = snapshot.is_complete() || snapshot.is_loss_allowed;
                if before.parent.is_none() {
                    before.parent = Some((id, snapshot));
                } else if is_good {
                    before.reference = Some((id, snapshot));
                }
                incomplete += 1;
                if is_good || incomplete == INCOMPLETE_MAX {
                    return Ok(before);
                }
            }
            Match::Shares if before.parent.is_none() => {
                shares_a_path.get_or_insert((id, snapshot));
            }
            Match::Shares | Match::Other => {}
        }
    }
    before.parent = before.parent.or(shares_a_path);
    Ok(before)
}

/// Relation of a snapshot to the criterion for a parent.
enum Match {
    /// Of the same instance, or of the same paths.
    Same,
    /// Shares a path.
    Shares,
    /// Has nothing in common.
    Other,
}

impl Likeness {
    fn of(&self, snapshot: &Snapshot) -> Match {
        match self {
            Likeness::Instance(name) => match &snapshot.instance {
                Some(of) if of.name == *name => Match::Same,
                _ => Match::Other,
            },
            Likeness::Paths(wanted) => {
                let is_wanted = |path: &ByteVec| wanted.iter().any(|wanted| **wanted == ***path);
                let count = snapshot.paths.iter().filter(|path| is_wanted(path)).count();
                match count {
                    0 => Match::Other,
                    _ if count == snapshot.paths.len() && count == wanted.len() => Match::Same,
                    _ => Match::Shares,
                }
            }
        }
    }
}
