//! Walks the source alongside the previous snapshot and produces batches.
//!
//! Unchanged entries are taken over. Each batch lists the rest, which must be read.

use super::failure::Failure;
use super::ingest::{Ingest, Missing};
use super::previous::{Below, Previous, PreviousGitDir, Recheck};
use super::roots::{Source, look_at_ancestor};
use super::vanished::MissingEntries;
use super::{git_dir, tree_path};
use crate::entry::{Entry, EntryKind};
use crate::error::{Error, Result};
use crate::git;
use crate::glob::ends;
use crate::source;
use crate::walk::{self, Found, GIT_DIR_ENTRIES_MAX, Root, Rules, Step, Walk};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Maximum number of entries in a batch.
const BATCH_ENTRIES: usize = 256;
/// Maximum number of files to read in a batch.
const BATCH_FILES: usize = 32;
/// Maximum number of bytes to read in a batch.
const BATCH_BYTES: u64 = 4 << 20;

/// Consecutive entries, some of which must be read first.
pub struct Batch {
    items: Vec<Item>,
    files: usize,
    bytes: u64,
}

enum Item {
    Ready(Entry),
    Read(Found, Option<Entry>),
}

/// One unit of work for a worker.
pub enum Job {
    Batch(Arc<Root>, Batch),
    GitDir(Arc<Root>, Found, Box<PreviousGitDir>),
}

/// A position in the tree's order, filled now or later.
pub enum Slot {
    Filled(Vec<Entry>),
    /// Entries arrive in parts, until the sender is dropped.
    Later(Receiver<Vec<Entry>>),
}

/// A job, and the channel for its entries.
pub type Asked = (Job, SyncSender<Vec<Entry>>);

impl Batch {
    pub fn new() -> Batch {
        Batch { items: Vec::new(), files: 0, bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.items.len() >= BATCH_ENTRIES || self.files >= BATCH_FILES || self.bytes >= BATCH_BYTES
    }

    fn is_read(&self) -> bool {
        self.files == 0
    }

    /// Reads the entries that must be read and returns all entries.
    pub fn read(self, root: &Root, ingest: &Ingest<'_>) -> Result<Vec<Entry>> {
        let mut entries = Vec::with_capacity(self.items.len());
        for item in self.items {
            match item {
                Item::Ready(entry) => entries.push(entry),
                Item::Read(found, previous) => {
                    ingest.observer().progress().check()?;
                    let read = ingest.entry(root, &found, previous.as_ref())?;
                    if read == Err(Missing::Gone) {
                        ingest.vanished.note(&found.path, found.above.as_ref());
                    }
                    entries.extend(read.ok());
                }
            }
        }
        Ok(entries)
    }
}

/// Walks the source alongside the previous snapshot. Sends batches to the workers and to the tree.
pub struct Merge<'a, 'p> {
    pub ingest: &'a Ingest<'a>,
    pub recheck: &'a Recheck<'a>,
    pub previous: Previous<'p>,
    /// Entries of the previous snapshot that are not found.
    pub missing: MissingEntries<'a>,
    pub failure: &'a Failure,
    pub jobs: SyncSender<Asked>,
    pub slots: SyncSender<Slot>,
    pub batch: Batch,
    /// Device on which the walk is.
    pub device: Option<u64>,
}

impl Merge<'_, '_> {
    /// Sends all source paths. Reports unreadable ones, but fails if none is readable.
    pub fn sources(
        &mut self,
        sources: &[Source],
        rules: &Rules,
        walk_threads: usize,
    ) -> Result<()> {
        let mut ancestors = Vec::new();
        let mut refused = Vec::new();
        for source in sources {
            self.ancestors(source, rules, &mut ancestors)?;
            match self.source(source, rules.clone(), walk_threads) {
                Err(Error::Source { path, source }) => refused.push((path, source)),
                done => done?,
            }
        }
        if refused.len() == sources.len() {
            let last = refused.pop().map(|(path, source)| Error::Source { path, source });
            return last.map_or(Ok(()), Err);
        }
        for (path, error) in &refused {
            let path = tree_path(path);
            if !rules.has_named_roots && walk::is_gone(error) {
                self.ingest.vanished.note(&path, None);
            } else {
                self.ingest.unreadable(&path, error);
            }
        }
        Ok(())
    }

    /// Sends the directories above a source path that were not sent yet.
    fn ancestors(&mut self, source: &Source, rules: &Rules, sent: &mut Vec<Vec<u8>>) -> Result<()> {
        let above = ends(&source.path).filter(|end| *end < source.path.len());
        for path in above.map(|end| source.path[..end].to_vec()) {
            if sent.contains(&path) {
                continue;
            }
            match look_at_ancestor(&path) {
                Ok((stat, attributes)) => {
                    let entry = self.ingest.ancestor(&path, &stat, attributes);
                    self.batch.items.push(Item::Ready(entry));
                }
                Err(error) if !rules.has_named_roots && walk::is_gone(&error) => {
                    self.ingest.vanished.note(&path, None);
                }
                // The tree gets a directory in its place. Reading the source shows whether it
                // exists.
                Err(error) => self.ingest.metadata_unreadable(&path, &error),
            }
            sent.push(path);
        }
        self.flush_ready()
    }

    /// Sends a source path and everything below it.
    fn source(&mut self, source: &Source, rules: Rules, walk_threads: usize) -> Result<()> {
        let root = source.open(&rules.exclude.named)?;
        self.missing.begin(&source.path);
        if source.stat.kind == EntryKind::Directory {
            for step in Walk::new(Arc::clone(&root), source.stat, rules, walk_threads) {
                if self.failure.is_noted() {
                    return Ok(());
                }
                self.ingest.observer().progress().check()?;
                self.step(&root, step)?;
            }
        } else {
            let found = Found { path: source.path.clone(), stat: source.stat, above: None };
            self.step(&root, Step::Found(found))?;
        }
        self.previous.pass(&source.path, |entry| self.missing.note(entry));
        self.flush(&root)
    }

    fn step(&mut self, root: &Arc<Root>, step: Step) -> Result<()> {
        match step {
            Step::Failed(path, error) => {
                self.ingest.unreadable(&path, &error);
                Ok(())
            }
            Step::Vanished(path, above) => {
                self.ingest.vanished.note(&path, above.as_ref());
                Ok(())
            }
            // `/` itself has no name under which it could be stored.
            Step::Found(found) if found.path.is_empty() => Ok(()),
            Step::Found(found) => self.found(root, found),
            Step::GitDir(found, content) => self.git_dir(root, found, content),
        }
    }

    fn found(&mut self, root: &Arc<Root>, found: Found) -> Result<()> {
        self.enter_file_system(&found);
        let previous = self.previous_at(&found.path);
        match previous {
            Some(entry) if self.recheck.is_unchanged(&found.stat, &entry)? => {
                self.unchanged(self.recheck.refreshed(&found.stat, entry));
            }
            previous => {
                self.batch.files += 1;
                self.batch.bytes += found.stat.size;
                self.batch.items.push(Item::Read(found, previous));
            }
        }
        if self.batch.is_full() { self.flush(root) } else { Ok(()) }
    }

    /// Returns the entry of the next path in the previous snapshot.
    fn previous_at(&mut self, path: &[u8]) -> Option<Entry> {
        self.previous.at_after(path, |entry| self.missing.note(entry))
    }

    /// Numbers file systems in path order, independently of the order in which files are read.
    fn enter_file_system(&mut self, found: &Found) {
        if self.device != Some(found.stat.device) {
            self.recheck.file_systems.number(found.stat.device);
            self.device = Some(found.stat.device);
        }
    }

    fn unchanged(&mut self, entry: Entry) {
        self.ingest.observer().progress().add(1, entry.size);
        self.batch.items.push(Item::Ready(entry));
    }

    fn git_dir(
        &mut self,
        root: &Arc<Root>,
        found: Found,
        content: Option<Vec<Found>>,
    ) -> Result<()> {
        self.enter_file_system(&found);
        let own = self.previous_at(&found.path);
        // Its content changes all the time, and is listed until nothing does.
        self.missing.cover(&found.path);
        let below = self.previous.below(&found.path, GIT_DIR_ENTRIES_MAX);
        let previous = match (own, below, &content) {
            (Some(own), Below::All(below), Some(content))
                if self.is_unchanged_git_dir(&found, content, &own, &below)?
                    && git_dir::has_all_tables(root, &found.path, content) =>
            {
                self.note_lenders(root, &found.path, content);
                let entries = std::iter::once(own).chain(below);
                for (found, entry) in std::iter::once(&found).chain(content).zip(entries) {
                    self.unchanged(self.recheck.refreshed(&found.stat, entry));
                }
                return if self.batch.is_full() { self.flush(root) } else { Ok(()) };
            }
            (own, below, _) => Box::new(PreviousGitDir { own, below }),
        };
        self.flush(root)?;
        let (reply, later) = sync_channel(1);
        self.send_slot(Slot::Later(later))?;
        self.send_job(Job::GitDir(Arc::clone(root), found, previous), reply)
    }

    /// Notes the places of objects of an unchanged git directory with this content.
    fn note_lenders(&self, root: &Root, path: &[u8], content: &[Found]) {
        let is_elsewhere = |found: &Found| match found.path[path.len()..].strip_prefix(b"/") {
            Some(git::ALTERNATES) => true,
            Some(b"objects" | b"objects/pack") => found.stat.kind == EntryKind::Symlink,
            _ => false,
        };
        if content.iter().any(is_elsewhere)
            && let Ok(dir) = source::open_dir_below(root.dir.as_fd(), root.relative(path))
        {
            self.ingest.lenders.note_unchanged(&Root { tree_path: path.to_vec(), dir });
        }
    }

    /// Returns true if a scan of a whole git directory found exactly the content of the previous
    /// snapshot.
    fn is_unchanged_git_dir(
        &self,
        dir: &Found,
        content: &[Found],
        own: &Entry,
        below: &[Entry],
    ) -> Result<bool> {
        if content.len() != below.len() {
            return Ok(false);
        }
        let entries = std::iter::once(own).chain(below);
        for (found, entry) in std::iter::once(dir).chain(content).zip(entries) {
            if found.path != entry.path || !self.recheck.is_unchanged(&found.stat, entry)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn flush_ready(&mut self) -> Result<()> {
        let batch = std::mem::replace(&mut self.batch, Batch::new());
        let ready = batch.items.into_iter().filter_map(|item| match item {
            Item::Ready(entry) => Some(entry),
            Item::Read(..) => None,
        });
        self.send_slot(Slot::Filled(ready.collect()))
    }

    fn flush(&mut self, root: &Arc<Root>) -> Result<()> {
        if self.batch.items.is_empty() {
            return Ok(());
        }
        if self.batch.is_read() {
            return self.flush_ready();
        }
        let batch = std::mem::replace(&mut self.batch, Batch::new());
        let (reply, later) = sync_channel(1);
        self.send_slot(Slot::Later(later))?;
        self.send_job(Job::Batch(Arc::clone(root), batch), reply)
    }

    fn send_slot(&self, slot: Slot) -> Result<()> {
        // The tree's thread ends before the sender only on a panic, which is passed on.
        self.slots.send(slot).map_err(|_| Error::Abandoned)
    }

    fn send_job(&self, job: Job, reply: SyncSender<Vec<Entry>>) -> Result<()> {
        self.jobs.send((job, reply)).map_err(|_| Error::Abandoned)
    }
}
