//! Reads a git directory that is in use.
//!
//! The order is that of [`git::Phase`]. Files are opened as soon as they are listed and read while
//! open, so unlinking them does no harm. If one of [`git::GUIDES`] changed meanwhile, everything is
//! read again: objects may have moved to a place that the copy does not name.

use super::entry_runs::EntryRuns;
use super::ingest::{Ingest, Missing};
use super::named_objects::NamedObjects;
use super::previous::{Below, Previous, PreviousGitDir, Recheck};
use super::vanished::{MISSING, REPLACED_PAUSE, REPLACED_PAUSES};
use crate::entry::{Content, Displayed, Entry, EntryKind};
use crate::error::Result;
use crate::git::{self, Phase};
use crate::observe::Event;
use crate::reuse::{self, Hint};
use crate::source::{self, Stat};
use crate::walk::{self, Above, Found, GIT_DIR_ENTRIES_MAX, PhaseScan, Root, Scanned, join};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// A new pack is compared with a pack that stays only if that one is at most this many times
/// larger. Otherwise every push would be compared with all older packs.
const MUCH_LARGER: u64 = 2;
/// Maximum number of open pack files, in all git directories together. A process may open 1024
/// files by default.
const OPEN_FILES_MAX: usize = 512;
/// Maximum number of listings of a repository that keeps changing.
const ROUNDS_MAX: usize = 100;
/// Maximum number of times that a git directory is read because its [`git::GUIDES`] change, or
/// because objects of its references go away.
const READINGS_MAX: usize = 10;
/// Maximum bytes of one of these files that are compared.
const GUIDE_BYTES_MAX: u64 = 64 << 10;
/// Maximum depth of git directories inside each other that are read in order.
const INNER_DEPTH_MAX: usize = 8;
/// Maximum number of noted paths that were not there.
const MISSING_MAX: usize = 1000;
/// Maximum bytes of a reftable's list of tables that are read.
const TABLE_LIST_BYTES: u64 = 1 << 20;
/// Objects whose kind, such as a directory or a link, must stay during a reading.
const WITH_KINDS: [&[u8]; 4] = [b"HEAD", b"objects", b"refs", b"objects/pack"];
/// File of a reftable that lists its tables.
const TABLE_LIST: &[u8] = b"tables.list";
/// Maximum bytes of a multi-pack-index that are searched for pack names.
const MIDX_HEAD_BYTES: usize = 4 << 20;

/// Reads the git directory `found` and everything in it. Passes the entries to `send` in path order,
/// in parts, until it returns false.
pub fn read(
    ingest: &Ingest<'_>,
    recheck: &Recheck<'_>,
    root: &Root,
    found: &Found,
    previous: Box<PreviousGitDir>,
    send: impl FnMut(Vec<Entry>) -> bool,
) -> Result<()> {
    read_inner(ingest, recheck, root, found, previous, 0, send)
}

/// Like [`read`], for a git directory inside of `depth` others.
fn read_inner(
    ingest: &Ingest<'_>,
    recheck: &Recheck<'_>,
    root: &Root,
    found: &Found,
    previous: Box<PreviousGitDir>,
    depth: usize,
    send: impl FnMut(Vec<Entry>) -> bool,
) -> Result<()> {
    let runs = EntryRuns::new(ingest.packer().workspace());
    let open = || -> io::Result<Arc<Root>> {
        let dir = source::open_dir_below(root.dir.as_fd(), root.relative(&found.path))?;
        Ok(Arc::new(Root { tree_path: found.path.clone(), dir }))
    };
    let dir = match open() {
        Ok(dir) => dir,
        Err(error) if walk::is_gone(&error) => {
            ingest.vanished.note(&found.path, found.above.as_ref());
            return Ok(());
        }
        Err(error) => {
            ingest.unreadable(&found.path, &error);
            return runs.merge(ingest.entry(root, found, None)?.ok().into_iter(), send);
        }
    };
    let is_streamed = matches!(previous.below, Below::TooMany);
    let mut reading = Reading {
        ingest,
        recheck,
        path: &found.path,
        depth,
        root: dir,
        previous: in_memory(recheck, &found.path, *previous),
        is_streamed,
        streamed: None,
        entries: BTreeMap::new(),
        runs,
        is_plain: false,
        begun: HashSet::new(),
        guides: BTreeMap::new(),
        kinds: Default::default(),
        linked: Vec::new(),
        references: Default::default(),
        other_names: BTreeMap::new(),
        has_unread_names: false,
        named: NamedObjects::default(),
        gone: BTreeSet::new(),
        has_gaps: false,
        missing: Vec::new(),
        misses_dir: false,
        packs_were_kept: true,
        packs_read: HashMap::new(),
        reported: HashSet::new(),
    };
    for readings in 1.. {
        reading.begin();
        reading.take_below(Some(root), found)?;
        reading.references_and_objects()?;
        match reading.changed() {
            None => break,
            Some(Changed::Names) if readings == READINGS_MAX => {
                let error = "objects that it names kept going away during the backup";
                reading.unreadable(&found.path, &io::Error::other(error));
                break;
            }
            Some(Changed::Guide(path)) if readings == READINGS_MAX => {
                let name = OsStr::from_bytes(reading.root.relative(&path)).displayed();
                let error = format!("its {name} kept changing during the backup");
                reading.unreadable(&found.path, &io::Error::other(error));
                break;
            }
            Some(_) => {}
        }
        // Another directory may have taken its place.
        match open() {
            Ok(dir) => reading.root = dir,
            Err(error) if walk::is_gone(&error) => {
                ingest.vanished.note(&found.path, found.above.as_ref());
                return Ok(());
            }
            // Read on as long as it is open.
            Err(_) => {}
        }
    }
    ingest.lenders.note(&reading.root);
    reading.attached()?;
    if reading.has_gaps
        && let Ok(stat) = source::stat_open(reading.dir())
    {
        let dir = Above { inode: stat.inode, above: found.above.clone() };
        ingest.vanished.note_dir(&found.path, &Arc::new(dir));
    }
    reading.runs.merge(reading.entries.into_values(), send)
}

/// Returns the entries of the previous snapshot that are held in memory, by path. Of a large git
/// directory, these are the ones of the phases that are read as a whole.
fn in_memory(
    recheck: &Recheck<'_>,
    path: &[u8],
    PreviousGitDir { own, below }: PreviousGitDir,
) -> HashMap<Vec<u8>, Entry> {
    const PARTS: [&[u8]; 4] = [b"objects/info", b"objects/pack", b"packed-refs", b"reftable"];
    let below = match below {
        Below::All(below) => below,
        Below::TooMany => {
            let read = |part| recheck.previous_within(&join(path, part));
            PARTS.into_iter().flat_map(read).collect()
        }
    };
    own.into_iter().chain(below).map(|entry| (entry.path.clone(), entry)).collect()
}

struct Reading<'a, 'b> {
    ingest: &'a Ingest<'b>,
    recheck: &'a Recheck<'a>,
    path: &'a [u8],
    /// Number of git directories around this one.
    depth: usize,
    root: Arc<Root>,
    /// Entries of the previous snapshot that are held in memory.
    previous: HashMap<Vec<u8>, Entry>,
    /// True if the other entries of the previous snapshot are too many for memory.
    is_streamed: bool,
    /// Those of the current phase.
    streamed: Option<Previous<'a>>,
    /// Entries of the phases that are read as a whole.
    entries: BTreeMap<Vec<u8>, Entry>,
    /// Entries of the other phases.
    runs: EntryRuns<'a>,
    /// True in such a phase.
    is_plain: bool,
    /// Stored directories in which phases begin.
    begun: HashSet<&'static [u8]>,
    /// State of each of [`git::GUIDES`], and of the same files of linked work trees, by path.
    guides: BTreeMap<Vec<u8>, Guide>,
    /// Kind of each of [`WITH_KINDS`].
    kinds: [Option<EntryKind>; WITH_KINDS.len()],
    /// Directories of linked work trees, relative to the git directory.
    linked: Vec<Vec<u8>>,
    /// Hashes of the names, sizes and times of loose and of packed references.
    references: [DefaultHasher; 2],
    /// Metadata of other files that name objects, by path relative to the git directory.
    other_names: BTreeMap<Vec<u8>, Option<Stat>>,
    /// True if there are such files, or a reftable.
    has_unread_names: bool,
    /// Objects that they may name.
    named: NamedObjects,
    /// Those that were gone after the last reading.
    gone: BTreeSet<Vec<u8>>,
    /// True if something went away after it was listed.
    has_gaps: bool,
    /// Paths that were not there when they were to be read.
    missing: Vec<Vec<u8>>,
    /// True if one of them is a directory that was listed.
    misses_dir: bool,
    /// True if no pack went away during the reading.
    packs_were_kept: bool,
    /// Packs that an earlier reading has read, by path.
    packs_read: HashMap<Vec<u8>, (Stat, Entry)>,
    /// Paths already reported, because repeated listings fail again.
    reported: HashSet<Vec<u8>>,
}

impl Reading<'_, '_> {
    fn dir(&self) -> &OwnedFd {
        &self.root.dir
    }

    /// Begins a reading, and forgets what an earlier one found.
    fn begin(&mut self) {
        self.entries.clear();
        self.runs = EntryRuns::new(self.ingest.packer().workspace());
        self.begun.clear();
        self.linked.clear();
        self.references = Default::default();
        self.named = NamedObjects::default();
        self.other_names = self.other_names();
        let is_reftable = || source::stat_at(self.dir().as_fd(), b"reftable").is_ok();
        self.has_unread_names = is_reftable() || self.other_names.values().any(Option::is_some);
        if self.has_unread_names {
            self.named.add_loose(&self.on_machine());
        }
        self.has_gaps = false;
        self.missing.clear();
        self.misses_dir = false;
        self.kinds = self.kinds();
        self.guides.clear();
        for name in git::GUIDES {
            self.note_guide(join(self.path, name));
        }
    }

    /// Reads all phases but the last.
    fn references_and_objects(&mut self) -> Result<()> {
        let graphs = self.scan(PhaseScan::of(Phase::CommitGraphs)).0;
        let packs = self.scan(PhaseScan::of(Phase::Packs)).0;
        self.plain(PhaseScan::of(Phase::Settings))?;
        self.plain(PhaseScan::of(Phase::LooseRefs))?;
        self.packed_refs()?;
        self.plain(PhaseScan::of(Phase::LooseObjects))?;
        let packs_after = self.packs()?;
        self.packs_were_kept = packs.iter().all(|pack| packs_after.contains(&pack.path));
        self.commit_graphs(&graphs)
    }

    /// Reads what commits name.
    fn attached(&mut self) -> Result<()> {
        self.plain(PhaseScan::of(Phase::Attached))?;
        for linked in std::mem::take(&mut self.linked) {
            let begins_in = join(&linked, b"modules");
            self.plain(PhaseScan { begins_in: &begins_in, ..PhaseScan::of(Phase::Attached) })?;
        }
        Ok(())
    }

    /// Returns what changed during the reading so that the copy may not be whole.
    fn changed(&mut self) -> Option<Changed> {
        if let Some(path) = self.changed_guide() {
            return Some(Changed::Guide(path));
        }
        let now = self.kinds();
        let is_gone = |at: usize| now[at].is_none() && git::MARKS.contains(&WITH_KINDS[at]);
        if let Some(at) = (0..now.len()).find(|at| is_gone(*at) || now[*at] != self.kinds[*at]) {
            // It is being deleted, and perhaps replaced.
            std::thread::sleep(REPLACED_PAUSE);
            return Some(Changed::Guide(join(self.path, WITH_KINDS[at])));
        }
        if let Some(path) = self.returned() {
            return Some(Changed::Guide(path));
        }
        let have_names_changed =
            self.have_references_changed() || self.other_names() != self.other_names;
        (have_names_changed && self.lacks_objects()).then_some(Changed::Names)
    }

    /// Returns true if housekeeping may have deleted objects that the copy names. Those that were gone
    /// before it was read again are missing in the original, too.
    fn lacks_objects(&mut self) -> bool {
        let Some(gone) = self.named.gone(&self.on_machine()) else { return !self.packs_were_kept };
        let is_new = !gone.is_subset(&self.gone);
        self.gone = gone;
        is_new || self.has_unread_names && !self.packs_were_kept
    }

    /// Returns a path to the open git directory, wherever it is by now.
    fn on_machine(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.dir().as_fd().as_raw_fd()).into()
    }

    /// Returns the metadata of the indexes of the work trees, and of the log of stashes.
    fn other_names(&self) -> BTreeMap<Vec<u8>, Option<Stat>> {
        let linked =
            fs::read_dir(self.on_machine().join("worktrees")).into_iter().flatten().flatten();
        let of_linked =
            |dir: fs::DirEntry| join(b"worktrees", &join(dir.file_name().as_bytes(), b"index"));
        let names = [b"index".to_vec(), b"logs/refs/stash".to_vec()].into_iter();
        let stat = |name: Vec<u8>| {
            let stat = source::stat_at(self.dir().as_fd(), &name).ok();
            (name, stat)
        };
        names.chain(linked.map(of_linked)).map(stat).collect()
    }

    /// Returns the kind of each of [`WITH_KINDS`]; `None` for a missing one.
    fn kinds(&self) -> [Option<EntryKind>; WITH_KINDS.len()] {
        let kind = |name| Some(source::stat_at(self.dir().as_fd(), name).ok()?.kind);
        WITH_KINDS.map(kind)
    }

    fn have_references_changed(&self) -> bool {
        let hash = |phase| {
            let mut hash = DefaultHasher::new();
            let (dir, path, exclude) = (self.dir().as_fd(), self.path, self.ingest.exclude);
            walk::scan_phase(dir, path, PhaseScan::of(phase), exclude, &mut |item| {
                if let Scanned::Found(found) = item {
                    add_reference(&mut hash, &found);
                }
                ControlFlow::Continue(())
            });
            hash.finish()
        };
        let [loose, packed] = &self.references;
        loose.finish() != hash(Phase::LooseRefs) || packed.finish() != hash(Phase::PackedRefs)
    }

    /// Notes the state of a file that must stay as it is.
    fn note_guide(&mut self, path: Vec<u8>) {
        let guide = self.guide(&path);
        self.guides.insert(path, guide);
    }

    /// Reads the state of a file. The content counts: some file systems have no lasting metadata.
    fn guide(&self, path: &[u8]) -> Guide {
        let read = || {
            let file = source::open_file_below(self.dir().as_fd(), self.root.relative(path))?;
            let len = source::stat_open(&file)?.size;
            let mut content = vec![0; len.min(GUIDE_BYTES_MAX) as usize];
            let read = file.read_at(&mut content, 0)?;
            content.truncate(read);
            Ok::<_, io::Error>((len, content))
        };
        Guide(read().ok())
    }

    /// Returns the path of a file that decides how the others are understood and that changed since
    /// the reading began.
    fn changed_guide(&self) -> Option<Vec<u8>> {
        let has_changed = |(path, before): &(&Vec<u8>, &Guide)| {
            let now = self.guide(path);
            // Commits are read after their names, so one `HEAD` is as good as the other.
            let is_head = path.ends_with(b"HEAD");
            now != **before && !(is_head && now.names_commit() && before.names_commit())
        };
        self.guides.iter().find(has_changed).map(|(path, _)| path.clone())
    }

    /// Returns the listing of a phase, and true if it has no gaps. Reports each unreadable path and
    /// continues.
    fn scan(&mut self, of: PhaseScan<'_>) -> (Vec<Found>, bool) {
        let (mut found, mut has_gaps) = (Vec::new(), false);
        let (root, path, exclude) = (Arc::clone(&self.root), self.path, self.ingest.exclude);
        walk::scan_phase(root.dir.as_fd(), path, of, exclude, &mut |item| {
            match item {
                Scanned::Found(item) => found.push(item),
                other => has_gaps |= self.is_gap(other),
            }
            ControlFlow::Continue(())
        });
        (found, !has_gaps)
    }

    /// Reports an unreadable path of a scan. Returns true if the path went away instead, so that the
    /// scan may have missed its replacement.
    fn is_gap(&mut self, item: Scanned) -> bool {
        match item {
            Scanned::Failed(path, error) if walk::is_gone(&error) => {
                self.note_gap(path);
                return true;
            }
            Scanned::Missing { path, was_listed: true } => {
                self.misses_dir = true;
                self.note_gap(path);
                return true;
            }
            Scanned::Missing { path, .. } => self.note_missing(path),
            Scanned::Failed(path, error) => self.unreadable(&path, &error),
            // Another phase stores the object, unless it found a directory before.
            Scanned::NotDir(path, error) if self.begun.contains(self.root.relative(&path)) => {
                // Otherwise everything is read again.
                if self.kinds() == self.kinds {
                    self.unreadable(&path, &error);
                }
                self.has_gaps = true;
            }
            Scanned::NotDir(..) | Scanned::Found(_) | Scanned::IsGitDir => {}
        }
        false
    }

    /// Notes a path that went away after it was listed.
    fn note_gap(&mut self, path: Vec<u8>) {
        self.has_gaps = true;
        self.note_missing(path);
    }

    fn note_missing(&mut self, path: Vec<u8>) {
        if self.missing.len() < MISSING_MAX {
            self.missing.push(path);
        }
    }

    /// Returns a path that is there again. Waits a moment for directories.
    fn returned(&self) -> Option<Vec<u8>> {
        let mut pauses = if self.misses_dir { REPLACED_PAUSES } else { 0 };
        loop {
            let returned = self.missing.iter().find(|path| self.root.stat(path).is_ok());
            if returned.is_some() || pauses == 0 {
                return returned.cloned();
            }
            std::thread::sleep(REPLACED_PAUSE);
            pauses -= 1;
        }
    }

    /// Reports a path that is missing from the snapshot, once.
    fn unreadable(&mut self, path: &[u8], error: &io::Error) {
        if self.reported.insert(path.to_vec()) {
            self.ingest.unreadable(path, error);
        }
    }

    /// Reads a phase whose files need no order among themselves. Lists a small one as a whole before
    /// it reads the first file.
    fn plain(&mut self, of: PhaseScan<'_>) -> Result<()> {
        let phase = of.phase;
        let (root, path, exclude) = (Arc::clone(&self.root), self.path, self.ingest.exclude);
        if self.is_streamed {
            let begins_in = match of.begins_in {
                b"" => path.to_vec(),
                begins_in => join(path, begins_in),
            };
            self.streamed = Some(self.recheck.previous_within(&begins_in));
        }
        self.runs.begin();
        self.is_plain = true;
        let with_inner = self.depth == INNER_DEPTH_MAX;
        let of = PhaseScan { with_inner, ..of };
        let (mut listed, mut done) = (Vec::new(), Ok(()));
        walk::scan_phase(root.dir.as_fd(), path, of, exclude, &mut |item| {
            match item {
                Scanned::Found(found) => {
                    // The last one stays, because it may turn out to be a git directory.
                    if listed.len() >= GIT_DIR_ENTRIES_MAX {
                        done = self.take_listed(phase, &mut listed);
                    }
                    listed.push(Listed { found, is_git_dir: false });
                }
                Scanned::IsGitDir => {
                    listed.iter_mut().next_back().into_iter().for_each(|dir| dir.is_git_dir = true);
                }
                other => drop(self.is_gap(other)),
            }
            if done.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        done?;
        self.take_listed(phase, &mut listed)?;
        self.is_plain = false;
        self.streamed = None;
        Ok(())
    }

    /// Adds listed objects of a phase.
    fn take_listed(&mut self, phase: Phase, listed: &mut Vec<Listed>) -> Result<()> {
        for Listed { found, is_git_dir } in listed.drain(..) {
            self.ingest.observer().progress().check()?;
            if is_git_dir {
                self.take_inner(&found)?;
                continue;
            }
            if phase == Phase::LooseRefs {
                add_reference(&mut self.references[0], &found);
            }
            if phase == Phase::LooseRefs
                && found.stat.kind == EntryKind::File
                && found.stat.size == 0
            {
                // Left by a crash. git cannot read it.
                self.ingest.counters.empty_references.lock().insert(found.path.clone());
                self.note_skipped(&found, "empty ref");
                continue;
            }
            let inner = self.root.relative(&found.path);
            if git::linked_work_tree(inner, b"HEAD").is_some() {
                self.note_guide(found.path.clone());
            }
            self.take(&found)?;
        }
        Ok(())
    }

    /// Adds a git directory inside this one.
    fn take_inner(&mut self, found: &Found) -> Result<()> {
        let own = self.previous(&found.path);
        let is_below = |entry: &&Entry| {
            entry.path.strip_prefix(&found.path[..]).is_some_and(|rest| rest.starts_with(b"/"))
        };
        let below = if self.is_streamed {
            Below::TooMany
        } else {
            Below::All(self.previous.values().filter(is_below).cloned().collect())
        };
        let previous = Box::new(PreviousGitDir { own, below });
        let (ingest, recheck, depth) = (self.ingest, self.recheck, self.depth + 1);
        let root = &*self.root;
        let mut done = Ok(());
        let runs = &mut self.runs;
        read_inner(ingest, recheck, root, found, previous, depth, |entries| {
            done = entries.into_iter().try_for_each(|entry| runs.push(entry));
            done.is_ok()
        })?;
        done
    }

    fn note_skipped(&self, found: &Found, why: &str) {
        self.ingest.exclude.noted.path(&found.path);
        let path = super::absolute(&found.path);
        let note = format!("skipped {}: {why}", path.displayed());
        self.ingest.observer().event(Event::Note(note));
    }

    /// Adds an object, from the previous snapshot if it is unchanged.
    fn take(&mut self, found: &Found) -> Result<()> {
        self.take_below(None, found)
    }

    /// Like [`Reading::take`], below another directory than the git directory.
    fn take_below(&mut self, root: Option<&Root>, found: &Found) -> Result<()> {
        match self.previous(&found.path) {
            Some(previous) if self.recheck.is_unchanged(&found.stat, &previous)? => {
                self.keep_unchanged(self.recheck.refreshed(&found.stat, previous))
            }
            previous => {
                let root = root.unwrap_or(&*self.root);
                let read = self.ingest.entry(root, found, previous.as_ref())?;
                if read == Err(Missing::Gone) {
                    let is_there = is_still_there(root, found);
                    self.note_gap(found.path.clone());
                    if is_there {
                        self.unreadable(&found.path, &io::Error::other(MISSING));
                    }
                }
                self.keep(read.ok())
            }
        }
    }

    /// Returns the entry of a path in the previous snapshot. Large phases ask in path order.
    fn previous(&mut self, path: &[u8]) -> Option<Entry> {
        self.previous.get(path).cloned().or_else(|| self.streamed.as_mut()?.at(path))
    }

    fn keep_unchanged(&mut self, entry: Entry) -> Result<()> {
        self.ingest.observer().progress().add(1, entry.size);
        self.keep(Some(entry))
    }

    /// Like [`Reading::take`], for a file that may have another content under its name by now.
    fn take_open(&mut self, found: &Found, file: &File) -> Result<()> {
        let stat = source::stat_open(file).unwrap_or(found.stat);
        match self.previous(&found.path) {
            Some(previous) if self.recheck.is_unchanged(&stat, &previous)? => {
                self.keep_unchanged(self.recheck.refreshed(&stat, previous))
            }
            previous => {
                let previous = previous.as_ref();
                let entry = self.ingest.open_entry(found, file, Hint::Nothing, previous)?;
                self.keep(entry.ok())
            }
        }
    }

    fn keep(&mut self, entry: Option<Entry>) -> Result<()> {
        let Some(entry) = entry else { return Ok(()) };
        let inner = self.root.relative(&entry.path);
        if entry.kind == EntryKind::Directory {
            let of = inner.strip_prefix(b"worktrees/");
            if of.is_some_and(|name| !name.is_empty() && !name.contains(&b'/')) {
                self.linked.push(inner.to_vec());
            }
            let begins_in = Phase::ALL.map(Phase::begins_in);
            self.begun.extend(begins_in.into_iter().find(|begins_in| *begins_in == inner));
        }
        if self.is_plain {
            if let (true, Content::Inline(bytes)) = (inner.starts_with(b"refs/"), &entry.content) {
                self.named.add(bytes);
            }
            return self.runs.push(entry);
        }
        self.entries.insert(entry.path.clone(), entry);
        Ok(())
    }

    fn open(&self, found: &Found) -> io::Result<File> {
        let is_over = || self.ingest.observer().progress().check().is_err();
        let path = self.root.relative(&found.path);
        source::open_file_waiting(self.dir().as_fd(), path, is_over)
    }

    fn packed_refs(&mut self) -> Result<()> {
        self.packed_refs_of(b"", PhaseScan::of(Phase::PackedRefs))?;
        for own in self.linked.clone() {
            let begins_in = join(&own, b"reftable");
            let of = PhaseScan { begins_in: &begins_in, ..PhaseScan::of(Phase::PackedRefs) };
            self.packed_refs_of(&own, of)?;
        }
        Ok(())
    }

    /// Adds the packed references in `own`, a directory relative to the git directory.
    fn packed_refs_of(&mut self, own: &[u8], of: PhaseScan<'_>) -> Result<()> {
        let reftable = join(self.path, &join(own, b"reftable"));
        let mut last = None;
        for round in 1.. {
            let (found, _) = self.scan(of);
            if own.is_empty() {
                let mut hash = DefaultHasher::new();
                found.iter().for_each(|found| add_reference(&mut hash, found));
                self.references[1] = hash;
            }
            let list = match self.take_refs_of(&reftable, &found, false)? {
                Refs::Complete => return Ok(()),
                Refs::LackTables(list) => list,
            };
            // git removes a table after it replaced the list. While the list stays, nobody will
            // bring a missing table.
            let is_same = list.is_some() && list == last;
            if is_same || round == ROUNDS_MAX {
                if !is_same {
                    let error = io::Error::other("its reftable kept changing during the backup");
                    self.unreadable(&reftable, &error);
                }
                self.take_refs_of(&reftable, &found, true)?;
                return Ok(());
            }
            last = list;
        }
        Ok(())
    }

    /// Adds the listed refs, of which some are in the directory `reftable`. If a table in its list is
    /// missing, adds nothing, unless the rest `is_final`: then reports the missing ones.
    fn take_refs_of(&mut self, reftable: &[u8], found: &[Found], is_final: bool) -> Result<Refs> {
        let list_path = join(reftable, TABLE_LIST);
        let is_list =
            |found: &&Found| found.path == list_path && found.stat.kind == EntryKind::File;
        let Some(list) = found.iter().find(is_list) else {
            found.iter().try_for_each(|found| self.take_packed(found))?;
            return Ok(Refs::Complete);
        };
        // git replaces the list by renaming, so the open list names tables of one point in time.
        let opened = self.open(list).and_then(|file| {
            let text = table_list(&file)?;
            Ok((file, text))
        });
        let (list_file, text) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_final => {
                return Ok(Refs::LackTables(None));
            }
            Err(error) => {
                // The tables that belong to it are unknown, and each may be useful.
                self.unreadable(&list_path, &error);
                let mut others = found.iter().filter(|found| found.path != list_path);
                others.try_for_each(|found| self.take(found))?;
                return Ok(Refs::Complete);
            }
        };
        let lacks_tables = || Ok(Refs::LackTables(source::stat_open(&list_file).ok()));
        let listed = tables(reftable, &text);
        let (mut tables, mut others) = (Vec::new(), Vec::new());
        for path in &listed {
            let missing = || io::Error::other("tables.list names it, and it does not exist");
            let table = match found.iter().find(|found| found.path == *path) {
                Some(table) => table,
                None if is_final => {
                    self.unreadable(path, &missing());
                    continue;
                }
                None => return lacks_tables(), // newer than the listing, or missing
            };
            if table.stat.kind != EntryKind::File {
                others.push(table);
                continue;
            }
            match self.open(table) {
                Ok(file) => tables.push((table, file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if !is_final {
                        return lacks_tables();
                    }
                    self.unreadable(path, &missing());
                }
                Err(error) => self.unreadable(path, &error),
            }
        }
        for (table, file) in tables {
            self.take_open(table, &file)?;
        }
        others.into_iter().try_for_each(|found| self.take(found))?;
        self.take_open(list, &list_file)?;
        // `packed-refs`, the directory, and files of others. Unlisted tables are left-overs of git.
        let in_reftable = join(reftable, b"");
        for found in found {
            let is_table = found.path.starts_with(&in_reftable)
                && found.path.ends_with(b".ref")
                && found.stat.kind == EntryKind::File;
            let is_taken = found.path == list_path || listed.contains(&found.path);
            if is_table && !is_taken {
                self.ingest.exclude.noted.path(&found.path);
            } else if !is_taken {
                self.take(found)?;
            }
        }
        Ok(Refs::Complete)
    }

    /// Adds a file of packed references, or an object beside it.
    fn take_packed(&mut self, found: &Found) -> Result<()> {
        let is_packed = self.root.relative(&found.path) == b"packed-refs";
        if is_packed
            && found.stat.kind == EntryKind::File
            && let Ok(file) = self.open(found)
        {
            self.take_open(found, &file)?;
            self.named.add_packed(file);
            return Ok(());
        }
        self.take(found)
    }

    /// Adds packs until a listing has no new one. Returns the listed paths.
    ///
    /// Opens packs first and reads them later. While a pack is read, the next one may appear, and
    /// reading a busy repository would never end.
    fn packs(&mut self) -> Result<HashSet<Vec<u8>>> {
        let mut taken: HashSet<Vec<u8>> = HashSet::new();
        let mut last = Vec::new();
        let mut is_settled = false;
        let mut held = Vec::new();
        let old = self.old_packs();
        let open_files_max = OPEN_FILES_MAX / rayon::current_num_threads();
        for round in 0..ROUNDS_MAX {
            self.ingest.observer().progress().check()?;
            // A pack that vanished during the scan has a successor that may be newer than the
            // listing.
            (last, is_settled) = self.scan(PhaseScan::of(Phase::Packs));
            let listed = paths(&last);
            if round == 0 {
                self.withdraw_gone(&listed);
            }
            for (stem, files) in by_stem(&last) {
                // The index appears last; a pack without one is incomplete.
                let has = |end: &[u8]| files.iter().any(|found| found.path.ends_with(end));
                if taken.contains(&stem) || !(has(b".pack") && has(b".idx")) {
                    continue;
                }
                is_settled = false;
                if let Some(pack) = self.open_pack(&files)? {
                    let open_files = held.iter().map(OpenPack::open_files).sum::<usize>();
                    if open_files + pack.open_files() > open_files_max {
                        self.read_packs(&mut held, &old, &listed)?;
                    }
                    held.push(pack);
                    taken.insert(stem);
                }
            }
            if is_settled {
                break;
            }
        }
        let midx = self.open_midx();
        self.read_packs(&mut held, &old, &paths(&last))?;
        if !is_settled {
            let error = io::Error::other("its packs kept changing during the backup");
            self.unreadable(&join(self.path, b"objects/pack"), &error);
        }
        self.rest_of_pack_dir(&last, &taken, midx)?;
        Ok(last.into_iter().map(|found| found.path).collect())
    }

    /// Returns the packs of the previous snapshot, largest first.
    fn old_packs(&self) -> Vec<OldPack> {
        let dir = join(self.path, b"objects/pack/");
        let old_pack = |pack: &Entry| {
            let stem = pack.path.strip_suffix(b".pack").filter(|stem| stem.starts_with(&dir))?;
            let index = self.previous.get(&[stem, b".idx"].concat())?;
            Some(OldPack { pack: pack.clone(), index: index.clone() })
        };
        let mut packs: Vec<OldPack> = self.previous.values().filter_map(old_pack).collect();
        packs.sort_unstable_by(|OldPack { pack: a, .. }, OldPack { pack: b, .. }| {
            (b.size, &a.path).cmp(&(a.size, &b.path))
        });
        packs
    }

    /// Withdraws the share of packs that are gone from the allowance.
    fn withdraw_gone(&self, listed: &HashSet<&[u8]>) {
        let dir = join(self.path, b"objects/pack/");
        let gone = self
            .previous
            .values()
            .filter(|entry| entry.path.starts_with(&dir) && !listed.contains(&entry.path[..]));
        gone.for_each(|entry| self.ingest.withdraw(entry));
    }

    /// Adds the commit-graphs if they are unchanged since `before` and no pack went away. All
    /// commits that they name are then in the copy.
    fn commit_graphs(&mut self, before: &[Found]) -> Result<()> {
        let (now, is_whole) = self.scan(PhaseScan::of(Phase::CommitGraphs));
        let files = || now.iter().filter(|found| found.stat.kind == EntryKind::File);
        let mut open = Vec::new();
        let mut is_as_listed = is_whole && self.packs_were_kept && now == before;
        for found in files() {
            match self.open(found) {
                Ok(file) => {
                    is_as_listed &= source::stat_open(&file).is_ok_and(|stat| stat == found.stat);
                    open.push((found, file));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => is_as_listed = false,
                Err(error) => self.unreadable(&found.path, &error),
            }
        }
        for (found, file) in &open {
            if !is_as_listed {
                let why = "it may refer to commits outside the snapshot; git rebuilds it";
                self.note_skipped(found, why);
            } else {
                self.take_open(found, file)?;
            }
        }
        for found in now.iter().filter(|found| found.stat.kind != EntryKind::File) {
            self.take(found)?;
        }
        Ok(())
    }

    /// Opens all files of a pack. Returns `None` if the pack went away before all were open.
    fn open_pack(&mut self, files: &[&Found]) -> Result<Option<OpenPack>> {
        let mut pack = OpenPack::default();
        for &found in files {
            if found.stat.kind != EntryKind::File {
                // A link to a pack elsewhere.
                pack.others.push(found.clone());
                continue;
            }
            let previous = self.previous.get(&found.path);
            // Decided once: otherwise damage found later could leave the file out, neither kept nor
            // read.
            let unchanged = match previous {
                Some(previous) if self.recheck.is_unchanged(&found.stat, previous)? => {
                    Some(self.recheck.refreshed(&found.stat, previous.clone()))
                }
                _ => self.read_before(found),
            };
            let is_index = found.path.ends_with(b".idx");
            let file = if unchanged.is_some() && !is_index {
                None
            } else {
                match self.open(found) {
                    Ok(file) => Some(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        if is_index || found.path.ends_with(b".pack") {
                            return Ok(None);
                        }
                        continue;
                    }
                    Err(_) if unchanged.is_some() => None,
                    Err(error) => {
                        self.unreadable(&found.path, &error);
                        continue;
                    }
                }
            };
            pack.files.push(PackFile { found: found.clone(), file, unchanged });
        }
        if pack.is_unchanged() {
            // The index was opened only for the other files, and none needs reading.
            pack.files.iter_mut().for_each(|of| of.file = None);
        }
        Ok(Some(pack))
    }

    /// Returns the entry of a pack's file if an earlier reading has read it. git never changes one in
    /// place.
    fn read_before(&self, found: &Found) -> Option<Entry> {
        let (stat, entry) = self.packs_read.get(&found.path)?;
        (*stat == found.stat).then(|| entry.clone())
    }

    /// Adds all of these packs. Compares new ones with `old` ones; `listed` are the current paths.
    fn read_packs(
        &mut self,
        packs: &mut Vec<OpenPack>,
        old: &[OldPack],
        listed: &HashSet<&[u8]>,
    ) -> Result<()> {
        packs.drain(..).try_for_each(|pack| self.read_pack(pack, old, listed))
    }

    fn read_pack(
        &mut self,
        pack: OpenPack,
        old: &[OldPack],
        listed: &HashSet<&[u8]>,
    ) -> Result<()> {
        let of = |end: &[u8]| pack.files.iter().find(|of| of.found.path.ends_with(end));
        let references = match of(b".pack") {
            Some(new) if !pack.is_unchanged() => pack_bases(old, &new.found, listed),
            _ => Vec::new(),
        };
        let index = of(b".idx").and_then(|of| of.file.as_ref());
        for PackFile { found, file, unchanged } in &pack.files {
            if let Some(entry) = unchanged {
                self.keep_unchanged(entry.clone())?;
                continue;
            }
            let Some(file) = file else { continue };
            let previous = self.previous.get(&found.path);
            let like = match index {
                Some(index) if found.path.ends_with(b".pack") => {
                    Hint::Pack { index, references: &references }
                }
                Some(_) if found.path.ends_with(b".idx") => {
                    Hint::PackIndex { references: &references }
                }
                _ => Hint::Nothing,
            };
            let entry = self.ingest.open_entry(found, file, like, previous)?.ok();
            if let Some(entry) = &entry {
                self.packs_read.insert(found.path.clone(), (found.stat, entry.clone()));
            }
            self.keep(entry)?;
        }
        pack.others.iter().try_for_each(|found| self.take(found))
    }

    /// Adds the directory itself and the files that belong to no single pack.
    fn rest_of_pack_dir(
        &mut self,
        last: &[Found],
        taken: &HashSet<Vec<u8>>,
        midx: Option<(File, Vec<Vec<u8>>)>,
    ) -> Result<()> {
        // An index that names a missing pack would break the copy. git recreates a missing index.
        let is_whole = |stems: &[Vec<u8>]| stems.iter().all(|stem| self.has_pack(stem));
        let midx = midx.filter(|(_, stems)| is_whole(stems)).map(|(file, _)| file);
        for found in last {
            let name = found.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
            // Chains of such indexes have a directory.
            if found.stat.kind != EntryKind::File && name != b"multi-pack-index.d" {
                if !self.entries.contains_key(&found.path) {
                    self.take(found)?;
                }
                continue;
            }
            match (&midx, name) {
                (Some(midx), b"multi-pack-index") => self.take_open(found, midx)?,
                (None, b"multi-pack-index") => match self.open(found) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        self.unreadable(&found.path, &error);
                    }
                    _ => {
                        let why = "it refers to packs outside the snapshot; git rebuilds it";
                        self.note_skipped(found, why);
                    }
                },
                (None, name) if name.starts_with(b"multi-pack-index") => {
                    self.ingest.exclude.noted.path(&found.path);
                }
                (_, name) if git::pack_stem(name).is_some_and(|stem| taken.contains(stem)) => {}
                _ => self.take(found)?,
            }
        }
        Ok(())
    }

    /// Opens the multi-pack-index and returns the packs that it names.
    fn open_midx(&self) -> Option<(File, Vec<Vec<u8>>)> {
        let name = b"objects/pack/multi-pack-index";
        let file = source::open_file_below(self.dir().as_fd(), name).ok()?;
        let len = source::stat_open(&file).ok()?.size.min(MIDX_HEAD_BYTES as u64);
        let mut head = vec![0; len as usize];
        file.read_exact_at(&mut head, 0).ok()?;
        let stems = git::midx_pack_stems(&head)?;
        Some((file, stems))
    }

    /// Returns true if the copy has a pack with its index.
    fn has_pack(&self, stem: &[u8]) -> bool {
        let path = join(self.path, &join(b"objects/pack", stem));
        let has = |end: &[u8]| self.entries.contains_key(&[&path, end].concat());
        has(b".pack") && has(b".idx")
    }
}

/// Adds a file of references to a hash.
fn add_reference(hash: &mut DefaultHasher, Found { path, stat, .. }: &Found) {
    if stat.kind == EntryKind::File {
        (path, stat.size, stat.mtime.seconds, stat.mtime.nanoseconds).hash(hash);
    }
}

/// Returns true if the name of an object still leads to it.
fn is_still_there(root: &Root, found: &Found) -> bool {
    root.stat(&found.path).is_ok_and(|now| now.inode == found.stat.inode)
}

/// Returns the content of a reftable's list of tables.
fn table_list(file: &File) -> io::Result<Vec<u8>> {
    let mut text = vec![0; source::stat_open(file)?.size.min(TABLE_LIST_BYTES) as usize];
    file.read_exact_at(&mut text, 0)?;
    Ok(text)
}

/// Returns the paths of the tables in the list of the directory `reftable`.
fn tables(reftable: &[u8], list: &[u8]) -> HashSet<Vec<u8>> {
    let names = list.split(|b| *b == b'\n').filter(|name| !name.is_empty());
    names.map(|name| join(reftable, name)).collect()
}

/// Returns true if a scan of the git directory `path` found every table in the lists of its
/// reftables. A missing one must be reported by each backup, even if nothing changed.
pub fn has_all_tables(root: &Root, path: &[u8], content: &[Found]) -> bool {
    let mut found = None;
    content.iter().filter(|of| of.stat.kind == EntryKind::File).all(|of| {
        let Some(reftable) =
            of.path.strip_suffix(TABLE_LIST).and_then(|dir| dir.strip_suffix(b"/"))
        else {
            return true;
        };
        let inner = reftable.strip_prefix(path).unwrap_or_default();
        let inner = inner.strip_prefix(b"/").unwrap_or(inner);
        if inner != b"reftable" && git::linked_work_tree(inner, b"reftable").is_none() {
            return true;
        }
        let list = root.relative(&of.path);
        let text =
            source::open_file_below(root.dir.as_fd(), list).and_then(|file| table_list(&file));
        // A list that cannot be read is read again, and reported.
        text.is_ok_and(|text| {
            let found = found.get_or_insert_with(|| paths(content));
            tables(reftable, &text).iter().all(|table| found.contains(&table[..]))
        })
    })
}

/// Result of reading packed references.
enum Refs {
    Complete,
    /// Tables in the list are missing. Holds the list's metadata if it could be opened.
    LackTables(Option<Stat>),
}

/// A change during a reading, after which the copy may not be whole.
enum Changed {
    /// A file that decides how the others are understood, or what was away, by its path.
    Guide(Vec<u8>),
    /// References and other names of objects, while objects went away.
    Names,
}

/// Size and first bytes of a file that decides how others are understood; `None` if it is missing or
/// cannot be read.
#[derive(PartialEq, Eq)]
struct Guide(Option<(u64, Vec<u8>)>);

impl Guide {
    /// Returns true for a `HEAD` that names a commit.
    fn names_commit(&self) -> bool {
        self.0.as_ref().is_some_and(|(_, content)| git::begins_with_id(content))
    }
}

/// A listed object of a phase.
struct Listed {
    found: Found,
    is_git_dir: bool,
}

/// A file of a pack, open if it must be read.
struct PackFile {
    found: Found,
    file: Option<File>,
    /// Entry of the file in the previous snapshot, if that is still valid.
    unchanged: Option<Entry>,
}

/// A pack whose files are open, so that it can be read after it was deleted.
#[derive(Default)]
struct OpenPack {
    files: Vec<PackFile>,
    /// Objects other than files.
    others: Vec<Found>,
}

impl OpenPack {
    fn open_files(&self) -> usize {
        self.files.iter().filter(|of| of.file.is_some()).count()
    }

    fn is_unchanged(&self) -> bool {
        self.files.iter().all(|of| of.unchanged.is_some())
    }
}

/// Returns the paths of a listing.
fn paths(listing: &[Found]) -> HashSet<&[u8]> {
    listing.iter().map(|found| &found.path[..]).collect()
}

/// Returns the files of each pack in a listing.
fn by_stem(listing: &[Found]) -> BTreeMap<Vec<u8>, Vec<&Found>> {
    let mut packs: BTreeMap<Vec<u8>, Vec<&Found>> = BTreeMap::new();
    for found in listing {
        let name = found.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if let Some(stem) = git::pack_stem(name) {
            packs.entry(stem.to_vec()).or_default().push(found);
        }
    }
    packs
}

/// A pack of the previous snapshot.
struct OldPack {
    pack: Entry,
    index: Entry,
}

/// Returns the packs, with their indexes, whose objects `new` may hold. These are its own previous
/// version, packs that are gone, and packs that are not much larger.
fn pack_bases<'o>(
    old: &'o [OldPack],
    new: &Found,
    listed: &HashSet<&[u8]>,
) -> Vec<(&'o Entry, &'o Entry)> {
    let is_base = |pack: &Entry| {
        let is_gone = !listed.contains(&pack.path[..]);
        is_gone || pack.path == new.path || pack.size / MUCH_LARGER <= new.stat.size
    };
    let references = old.iter().filter(|old| is_base(&old.pack)).take(reuse::REFERENCES_MAX);
    references.map(|OldPack { pack, index }| (pack, index)).collect()
}
