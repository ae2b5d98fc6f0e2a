//! A backup in passes. Each pass reads other paths, when the caller chooses.

mod again;

use super::assembly::{Assembly, was_also_a_directory};
use super::gate::Gate;
use super::ingest::{FileContent, Ingest, IngestError};
use super::lenders::Borrowed;
use super::previous::{Comparison, Previous, Recheck};
use super::roots::{Roots, Source};
use super::run::{BackupState, Totals};
use super::vanished::Vanished;
use super::{BackupOptions, Report, inside_of, named, outside, pipeline, survey, tree_path};
use crate::chunks::Chunks;
use crate::entry::{Entry, EntryKind, Time, check_path, display_path, is_within, path_cmp};
use crate::error::{Error, Result};
use crate::glob::{SourceGlobs, ends};
use crate::id::{ChunkId, SnapshotId};
use crate::limits;
use crate::mount::MountState;
use crate::snapshot::{Instance, Snapshot};
use crate::store::Store;
use crate::threads;
use crate::tree::{Lookup, TreeReader};
use crate::walk::{Excluded, Rules};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Criterion for finding the previous snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Likeness {
    /// The snapshot has the same paths, or shares one. The record names these paths.
    Paths(Vec<Vec<u8>>),
    /// The snapshot is a backup of the same instance. The record names the paths of all passes.
    Instance(String),
}

impl Likeness {
    /// Returns the criterion for a backup of these absolute paths.
    pub fn of_paths(paths: &[PathBuf]) -> Likeness {
        let mut wanted = Vec::new();
        for path in paths.iter().map(|path| named(path)) {
            if !wanted.contains(&path) {
                wanted.push(path);
            }
        }
        Likeness::Paths(wanted)
    }

    /// Drops the store and paths in it, which no backup reads.
    fn outside(mut self, store: &Store) -> Likeness {
        if let Likeness::Paths(paths) = &mut self {
            let is_inside = inside_of(store);
            // A stream has a name, which is not a path.
            paths.retain(|path| {
                !path.starts_with(b"/") || !is_inside(Path::new(OsStr::from_bytes(path)))
            });
        }
        self
    }
}

/// Sources of a pass.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Absolute paths without symbolic links in them.
    pub paths: Vec<PathBuf>,
    /// Symbolic links that lead to the paths.
    pub links: Vec<PathBuf>,
    /// Globs of skipped paths, besides those of the options. Those of [`crate::glob::within`] apply
    /// only in their source path.
    pub excludes: Vec<Vec<u8>>,
    /// Absolute paths to skip with everything below, unless they are in `paths`.
    pub leave: Vec<PathBuf>,
}

/// Result of a pass.
struct PassRead {
    tree: (ChunkId, Totals),
    borrowed: Borrowed,
    vanished: Vanished,
}

/// Directories that the last tree of a backup has as a whole. Earlier trees have others of the same
/// names, which do not count.
#[derive(Default)]
struct Replaced {
    dirs: HashSet<Vec<u8>>,
    /// True if they are git directories whose earlier objects count, because a borrower may need
    /// them.
    but_objects: bool,
    /// Rules of the pass that read them. What it skipped counts.
    exclude: Excluded,
}

impl Replaced {
    /// Returns true if an entry of an earlier tree counts.
    fn leaves(&self, path: &[u8]) -> bool {
        if self.dirs.is_empty() {
            return true;
        }
        ends(path).find(|end| self.dirs.contains(&path[..*end])).is_none_or(|end| {
            let inner = path[end..].strip_prefix(b"/").unwrap_or_default();
            let is_object = is_within(inner, b"objects") && !is_within(inner, b"objects/info");
            self.but_objects && is_object || self.exclude.skips_below(&path[..end], path)
        })
    }
}

/// Tree with which a pass compares.
#[derive(Clone, Copy)]
struct Before {
    /// Root of the tree.
    root: ChunkId,
    /// Start and end of the time in which it was read.
    started: Time,
    ended: Time,
    /// True if unchanged files are taken from it. Otherwise every file is read again.
    is_taken_over: bool,
    /// True if everything that it names is known to be in the store.
    is_whole: bool,
}

/// Paths in the tree, each with that of a git directory.
type Places = BTreeMap<Vec<u8>, Vec<u8>>;

/// A running backup. There is no snapshot before [`finish`](Self::finish).
pub struct Backup<'a> {
    run: BackupState<'a>,
    options: &'a BackupOptions,
    likeness: Likeness,
    /// Previous snapshot, if it is whole.
    whole: Option<SnapshotId>,
    /// Tree with which passes compare.
    before: Option<Before>,
    /// Trees of the passes so far, in order.
    trees: Vec<(ChunkId, Totals)>,
    /// Those before the last pass.
    trees_before: Vec<(ChunkId, Totals)>,
    /// Directories that the last of these trees has as a whole.
    replaced: Replaced,
    /// Places from which git directories that were read borrow objects, each with such a directory.
    lenders: Places,
    /// Streams, and the directories above them.
    streams: BTreeMap<Vec<u8>, Entry>,
    /// Paths of all passes.
    paths: Vec<Vec<u8>>,
    /// True if a pass found more than the named directories, those above named paths, and links to
    /// them.
    has_content: bool,
}

impl<'a> Backup<'a> {
    /// Begins a backup.
    pub fn begin(
        store: &'a Store,
        options: &'a BackupOptions,
        likeness: Likeness,
    ) -> Result<Backup<'a>> {
        let likeness = likeness.outside(store);
        let run = BackupState::begin(store, options, &likeness)?;
        let whole = match &run.parent {
            Some((id, _)) if !options.force && run.may_rely_on_parent(id)? => Some(*id),
            _ => None,
        };
        let mut before = None;
        if let Some((_, parent)) = &run.parent {
            let statistics = &parent.statistics;
            store.observer().progress().expect(statistics.entries, statistics.bytes);
            let (started, ended) = (parent.start.into(), parent.end.into());
            let (root, is_taken_over) = (parent.root.chunk(), !options.force);
            let is_whole = whole.is_some();
            before = Some(Before { root, started, ended, is_taken_over, is_whole });
        }
        let (trees, trees_before) = Default::default();
        let (replaced, lenders, streams, paths, has_content) = Default::default();
        let backup = Backup {
            run,
            options,
            likeness,
            whole,
            before,
            trees,
            trees_before,
            replaced,
            lenders,
            streams,
            paths,
            has_content,
        };
        backup.check_record()?;
        Ok(backup)
    }

    /// Refuses a record that is too long before anything is read.
    fn check_record(&self) -> Result<()> {
        let BackupOptions { excludes, about, .. } = self.options;
        let texts = excludes.iter().map(Vec::len).chain(about.tags.iter().map(String::len));
        // Each text has a length in front of it.
        let bytes = texts.chain(self.named_paths().iter().map(Vec::len)).map(|len| len + 9).sum();
        let max = limits::RECORD_BYTES_MAX / 2;
        if bytes > max { Err(Error::RecordTooLong { bytes, max }) } else { Ok(()) }
    }

    /// Returns the paths that the record names.
    fn named_paths(&self) -> &Vec<Vec<u8>> {
        match &self.likeness {
            Likeness::Paths(paths) => paths,
            Likeness::Instance(_) => &self.paths,
        }
    }

    /// Reads directories and files.
    pub fn paths(&mut self, sources: &Sources) -> Result<()> {
        let paths: Vec<PathBuf> = sources.links.iter().chain(&sources.paths).cloned().collect();
        let paths = outside(self.run.store, &paths)?;
        for path in &paths {
            self.run.counters.sources.lock().insert(tree_path(path));
            self.run.mounts.extend(MountState::of(path).map(|mount| (tree_path(path), mount)));
            let path = named(path);
            if !self.paths.contains(&path) {
                self.paths.push(path);
            }
        }
        self.check_record()?;
        let store = self.run.store;
        let exclude = self.exclude(sources)?;
        let Roots { tops, named: inner, mut shell, refused } = Roots::look(&paths)?;
        shell.extend(sources.links.iter().map(|link| tree_path(link)));
        for (path, error) in &refused {
            let path = super::tree_path(path);
            self.run.counters.report_unreadable(store.observer(), &path, error);
        }
        let exclude = Excluded { named: inner.into(), ..exclude };
        self.trees_before.clone_from(&self.trees);
        let mut read = self.pass(&tops, &exclude, self.before, false)?;
        self.has_content |= read.tree.1.entries > shell.len() as u64;
        self.trees.push(read.tree.clone());
        self.read_vanished(&mut read, &tops, &exclude)?;
        self.read_lenders(read, &tops, &exclude)
    }

    /// Reads these source paths and compares with the tree `before`. Paths that are read again may be
    /// gone.
    fn pass(
        &self,
        tops: &[Source],
        exclude: &Excluded,
        before: Option<Before>,
        is_again: bool,
    ) -> Result<PassRead> {
        let (store, options) = (self.run.store, self.options);
        let entries = before.map(|before| TreeReader::new(&before.root, store));
        let taken_over = before.filter(|before| before.is_taken_over);
        let comparison = taken_over.map(|Before { started, ended, .. }| Comparison {
            ctime: !options.ignore_ctime,
            inode: !options.ignore_inode,
            started,
            ended,
        });
        let (file_systems, owners) = (&self.run.file_systems, &self.run.owners);
        let root = before.map(|before| before.root);
        let is_whole = before.is_some_and(|before| before.is_whole);
        let recheck = Recheck { store, comparison, is_whole, root, file_systems, owners };
        let ingest = Ingest::new(&self.run, exclude)?;
        let rules = Rules {
            exclude: exclude.clone(),
            git_dirs: true,
            scan_git_dirs: before.is_some(),
            has_named_roots: !is_again,
        };
        let is_over = AtomicBool::new(false);
        let tree = std::thread::scope(|scope| {
            let observer = store.observer();
            if before.is_none() && observer.wants_totals() {
                // Without this thread, only the totals are missing.
                let _ = threads::spawn_scoped(scope, || {
                    survey::survey(tops, &rules, observer.progress(), &is_over);
                });
            }
            let previous = Previous::new(entries, &store.damage);
            let done = pipeline::run(&ingest, &recheck, previous, self.run.start, |merge| {
                merge.sources(tops, &rules, options.walk_threads)
            });
            is_over.store(true, Relaxed);
            done
        })?;
        let borrowed = ingest.lenders.into_borrowed();
        Ok(PassRead { tree, borrowed, vanished: ingest.vanished })
    }

    /// Returns the exclusion rules of a pass and adds them to the record.
    fn exclude(&self, sources: &Sources) -> Result<Excluded> {
        let (options, noted) = (self.options, &self.run.noted);
        let bytes = Vec::as_slice;
        let globs = SourceGlobs::new(
            options.excludes.iter().map(bytes),
            sources.excludes.iter().map(bytes),
        )?;
        let is_text = |pattern: &&Vec<u8>| std::str::from_utf8(pattern).is_ok();
        let foreign = options.excludes.iter().filter(|pattern| !is_text(pattern));
        sources.excludes.iter().chain(foreign).for_each(|pattern| noted.pattern(pattern));
        let leave: HashSet<Vec<u8>> = sources.leave.iter().map(|path| tree_path(path)).collect();
        leave.iter().for_each(|path| noted.path(path));
        Ok(Excluded {
            globs,
            leave: leave.into(),
            git_caches: !options.git_caches,
            other_file_systems: options.one_file_system,
            caches: options.exclude_caches,
            unfinished: true,
            never: self.run.store.directories().to_vec(),
            named: Arc::default(),
            noted: Arc::clone(noted),
        })
    }

    /// Reads one stream to its end as the file `name` and returns its size in bytes. The caller
    /// must check that the stream is complete before [`finish`](Self::finish).
    pub fn stream(&mut self, name: &[u8], input: &mut dyn Read) -> Result<u64> {
        // Checked first, because the stream cannot be read twice.
        check_path(name).map_err(|fault| {
            let path = display_path(name);
            Error::Unfit { path, reason: fault.to_string() }
        })?;
        let exclude = Excluded::default();
        let store = self.run.store;
        // An unreadable previous entry means storing the stream in full.
        let entry_of = |Before { root, .. }| Lookup::new(&root, store).at(name).ok().flatten();
        let before = self.before.and_then(entry_of);
        let ingest = Ingest::new(&self.run, &exclude)?;
        let taken = ingest.stream(input, before.as_ref()).map_err(|trouble| match trouble {
            IngestError::Store(error) => error,
            IngestError::Replaced => unreachable!("a stream has no name"),
            IngestError::Source(source) => {
                Error::Source { path: Path::new(OsStr::from_bytes(name)).to_owned(), source }
            }
        })?;
        let FileContent { content, size, unused } = taken;
        let file = Entry::new(name.to_vec(), EntryKind::File, 0o600);
        let file = Entry { mtime: Some(self.run.start), content, size, unused, ..file };
        self.run.counters.count(&file, before.as_ref());
        self.streams.insert(name.to_vec(), file);
        let ends = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for dir in ends.map(|end| name[..end].to_vec()) {
            let entry = Entry::new(dir.clone(), EntryKind::Directory, 0o755);
            self.streams.entry(dir).or_insert(entry);
        }
        Ok(size)
    }

    /// Stores these bytes as the file `name`.
    pub fn bytes(&mut self, name: &str, mut bytes: &[u8]) -> Result<()> {
        self.stream(name.as_bytes(), &mut bytes).map(drop)
    }

    /// Drops what the last pass read. The caller must read its paths again.
    pub fn drop_pass(&mut self) {
        // The pass may have merged its tree with those before.
        self.trees = std::mem::take(&mut self.trees_before);
    }

    /// Makes the following passes read the same paths again, and only changes.
    ///
    /// Not for a dry run, whose tree only its packer can read.
    pub fn again(&mut self) -> Result<()> {
        let tree = self.tree()?;
        let ended = (self.options.about.clock)();
        let (root, started, is_taken_over) = (tree, self.run.start, true);
        // This backup stored or looked up everything that the tree names.
        let is_whole = true;
        self.before = Some(Before { root, started, ended, is_taken_over, is_whole });
        self.trees.clear();
        self.has_content = false;
        self.run.counters.empty_references.lock().clear();
        Ok(())
    }

    /// Returns the tree of everything read so far, for lookups.
    ///
    /// Not for a dry run, whose tree only its packer can read.
    pub fn tree(&mut self) -> Result<ChunkId> {
        let (root, totals) = self.merged()?;
        self.run.flush()?;
        // Kept, so that it is not merged again.
        self.trees = vec![(root, totals)];
        Ok(root)
    }

    /// Returns the previous snapshot, from which unchanged files are taken.
    pub fn parent(&self) -> Option<(SnapshotId, &Snapshot)> {
        self.run.parent.as_ref().map(|(id, snapshot)| (*id, snapshot))
    }

    /// Notes directories below source paths whose files are lost, in place of those noted before.
    pub fn set_emptied_dirs(&mut self, dirs: Vec<PathBuf>) {
        self.run.emptied_dirs = dirs;
    }

    /// Returns the number of source paths that could not be read so far.
    pub fn unreadable_count(&self) -> u64 {
        self.run.counters.unreadable.load(Relaxed)
    }

    /// Returns the references whose files have no content, so that no copy has them.
    pub fn empty_references(&self) -> Vec<PathBuf> {
        let all = self.run.counters.empty_references.lock();
        all.iter().map(|path| super::absolute(path)).collect()
    }

    /// Returns true if the passes found only the named directories, those above named paths, and
    /// links to them.
    pub fn is_empty(&self) -> bool {
        // An unreadable path takes directories above it along.
        !self.has_content && self.unreadable_count() == 0
    }

    /// Makes everything durable, then writes the record.
    pub fn finish(mut self, instance: Option<Instance>) -> Result<Report> {
        let (root, totals) = self.merged()?;
        let mut paths = self.named_paths().clone();
        if let Likeness::Paths(_) = self.likeness {
            // Paths that were read, and streams, which have no other name.
            paths.retain(|path| self.paths.is_empty() || self.paths.contains(path));
        }
        let is_empty = self.streams.is_empty() && self.is_empty();
        let (store, is_dry) = (self.run.store, self.options.is_dry);
        let report = self.run.finish(root, totals, self.whole, paths, instance)?;
        if !self.lenders.is_empty() && !is_dry {
            again::warn_of_lenders(&self.lenders, &root, store);
        }
        Ok(Report { is_empty, ..report })
    }

    /// Merges all trees and streams into one tree.
    fn merged(&mut self) -> Result<(ChunkId, Totals)> {
        if let ([only], true) = (&self.trees[..], self.streams.is_empty()) {
            return Ok(only.clone());
        }
        if !self.trees.is_empty() {
            // Pages can be read again only after the packer wrote them.
            self.run.flush()?;
        }
        let store = self.run.store;
        let mut merging = Merging::new(&self.trees, &self.replaced, &self.run.packer)?;
        let mut in_the_way = |path: &[u8]| {
            let error = was_also_a_directory();
            self.run.counters.report_unreadable(store.observer(), path, &error);
        };
        let mut assembly = Assembly::new(Gate::new(&self.run.counters, store.observer()));
        let mut streams = self.streams.values().peekable();
        loop {
            store.observer().progress().check()?;
            let ahead = match (merging.next_path(), streams.peek()) {
                (None, None) => break,
                (Some(path), Some(stream)) => path_cmp(&stream.path, path),
                (Some(_), None) => Ordering::Greater,
                (None, Some(_)) => Ordering::Less,
            };
            let entry = match ahead {
                Ordering::Greater => merging.take(&mut in_the_way)?,
                // Directories made up for a stream give way to those found.
                Ordering::Equal => merging
                    .take(&mut in_the_way)?
                    .zip(streams.next().cloned())
                    .map(|(found, ours)| directory_first(ours, found, &mut in_the_way)),
                Ordering::Less => streams.next().cloned(),
            };
            if let Some(entry) = entry {
                assembly.push(entry, &self.run.packer)?;
            }
        }
        assembly.finish(&self.run.packer)
    }
}

/// Several trees, read in parallel in path order.
struct Merging<'a> {
    readers: Vec<(TreeReader<'a>, Option<Entry>)>,
    replaced: &'a Replaced,
}

impl<'a> Merging<'a> {
    fn new(
        trees: &[(ChunkId, Totals)],
        replaced: &'a Replaced,
        chunks: &'a dyn Chunks,
    ) -> Result<Merging<'a>> {
        let readers = trees.iter().map(|(root, _)| (TreeReader::new(root, chunks), None)).collect();
        let mut merging = Merging { readers, replaced };
        (0..trees.len()).try_for_each(|at| merging.advance(at).map(drop))?;
        Ok(merging)
    }

    /// Moves a tree to its next entry that counts. Returns the one before.
    fn advance(&mut self, at: usize) -> Result<Option<Entry>> {
        let (is_last, replaced) = (at + 1 == self.readers.len(), self.replaced);
        let counts = |entry: &Entry| is_last || replaced.leaves(&entry.path);
        let (reader, next) = &mut self.readers[at];
        loop {
            let found = reader.next().transpose().map_err(|lost| lost.error)?;
            if found.as_ref().is_none_or(counts) {
                return Ok(std::mem::replace(next, found));
            }
        }
    }

    /// Returns the next path.
    fn next_path(&self) -> Option<&[u8]> {
        let paths = self.readers.iter().filter_map(|(_, next)| Some(&next.as_ref()?.path[..]));
        paths.min_by(|a, b| path_cmp(a, b))
    }

    /// Returns the next entry. If several trees have its path, the last pass wins, unless its entry
    /// would replace a directory.
    fn take(&mut self, in_the_way: &mut dyn FnMut(&[u8])) -> Result<Option<Entry>> {
        let Some(path) = self.next_path().map(<[u8]>::to_vec) else { return Ok(None) };
        let mut taken: Option<Entry> = None;
        for at in 0..self.readers.len() {
            if self.readers[at].1.as_ref().is_some_and(|entry| entry.path == path) {
                let later = self.advance(at)?;
                taken = match (taken, later) {
                    (Some(earlier), Some(later)) => {
                        Some(directory_first(earlier, later, in_the_way))
                    }
                    (earlier, later) => later.or(earlier),
                };
            }
        }
        Ok(taken)
    }
}

/// Returns the later of two entries with the same path. Returns the earlier one if only that is a
/// directory, because entries below it are kept, or if the later one is a directory above a source
/// path, which has no times.
fn directory_first(earlier: Entry, later: Entry, in_the_way: &mut dyn FnMut(&[u8])) -> Entry {
    if earlier.kind != EntryKind::Directory {
        return later;
    }
    if later.kind != EntryKind::Directory {
        in_the_way(&later.path);
        return earlier;
    }
    if later.mtime.is_none() { earlier } else { later }
}
