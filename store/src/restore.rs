//! Restore: a tree, or a part of it, into a directory.
//!
//! Entries are taken in windows of path order. Within a window the directories
//! are made first; then every chunk that any file of the window needs is read
//! and opened once, in the order in which chunks stand in the segments, and
//! written to all places that want a slice of it; then links; then the metadata of
//! directories that nothing will be made in any more.

use crate::entry::{Content, Entry, Kind, Owner, is_within, path_cmp};
use crate::error::{Error, Result};
use crate::glob::Globs;
use crate::id::ChunkId;
use crate::index::Location;
use crate::limits;
use crate::observe::Event;
use crate::recipe::{Extent, Extents};
use crate::source;
use crate::store::Store;
use crate::target::{Target, Unfinished};
use crate::tree::{Lost, TreeReader};
use crate::walk::{Base, Rules, Step, Walk};
use parking_lot::Mutex;
use rayon::prelude::*;
use rustix::io::Errno;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Entries of a window.
const WINDOW_ENTRIES: usize = 8192;
/// Slices of chunks of a window.
const WINDOW_SLICES: usize = 16384;
/// Bytes that the entries of a window take in memory, about.
const WINDOW_BYTES: usize = 32 << 20;
/// Files of a window that need more than one chunk: so many may be open at once.
const WINDOW_OPEN_FILES: usize = 400;

/// What to restore and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only what fits, with the directories that lead to it. Empty: everything.
    pub include: Globs,
    /// Not what fits.
    pub exclude: Globs,
    /// Remove what is in the target and not in the snapshot.
    pub delete: bool,
    /// With `delete`: paths below which may be removed, and what the backup left out.
    pub delete_below: Vec<Vec<u8>>,
    /// With `delete`: what the backup left out is not removed.
    pub keep: Globs,
    /// Change nothing.
    pub is_dry: bool,
}

/// What a restore did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Files made or made anew.
    pub files_restored: u64,
    /// Bytes of those.
    pub bytes_restored: u64,
    /// Files that had the right content already.
    pub files_unchanged: u64,
    /// Directories.
    pub dirs: u64,
    /// Links, devices and other entries.
    pub others: u64,
    /// Removed from the target.
    pub deleted: u64,
    /// Paths that are missing or incomplete in the target.
    pub failed: u64,
    /// Entries whose owner could not be set.
    pub owner_denied: u64,
    /// Extended attributes that could not be set.
    pub xattr_denied: u64,
}

/// Restores what is at and below `from` in the tree `root` into directory `target`.
///
/// With an empty `from`, paths are recreated below the target; else the *content*
/// of `from` is put into it. The target directory is made if it is not there.
pub fn restore(
    store: &Store,
    root: &ChunkId,
    from: &[u8],
    target: &Path,
    options: &Options,
) -> Result<Report> {
    let get = |id: &ChunkId| store.chunk(id);
    let prefix = prefix(root, from, &get)?;
    let totals = totals(root, from, options, &get)?;
    store.observer().progress().expect(totals.0, totals.1);
    let failed = |source| Error::Target { path: target.to_owned(), source };
    let is_made = !target.exists();
    if options.is_dry {
        return dry_run(store, root, from, &prefix, target, options);
    }
    std::fs::create_dir_all(target).map_err(failed)?;
    let dir = source::open_dir(target).map_err(failed)?;
    let is_empty = source::names(dir.as_fd()).map_err(failed)?.is_empty();
    let mut restore = Restore {
        store,
        root: target.to_owned(),
        target: Target::new(dir),
        counts: Counts::default(),
        fatal: Mutex::default(),
        window: Window::default(),
        open_dirs: Vec::new(),
        links: HashMap::new(),
        prefix,
        top: Top { is_made, is_empty },
        lost: false,
    };
    for item in selected(root, from, options, &get) {
        store.observer().progress().check()?;
        match item {
            Ok(entry) => restore.take(entry, &get)?,
            Err(lost) => restore.lost(&lost),
        }
    }
    restore.flush(true)?;
    if options.delete {
        restore.delete(root, from, options, &get)?;
    }
    Ok(restore.report())
}

/// The part of every path that is not recreated.
fn prefix(
    root: &ChunkId,
    from: &[u8],
    get: &dyn Fn(&ChunkId) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    if from.is_empty() {
        return Ok(Vec::new());
    }
    match TreeReader::within(root, from, get).next() {
        Some(Ok(entry)) if entry.path == from && entry.kind != Kind::Directory => {
            let parent = from.iter().rposition(|b| *b == b'/').unwrap_or(0);
            Ok(from[..parent].to_vec())
        }
        Some(_) => Ok(from.to_vec()),
        None => Err(Error::Malformed {
            what: crate::entry::display_path(from),
            reason: "the snapshot has no such path".into(),
        }),
    }
}

/// Entries that fit the options, directories on the way to them included.
fn selected<'a>(
    root: &ChunkId,
    from: &[u8],
    options: &'a Options,
    get: &'a dyn Fn(&ChunkId) -> Result<Vec<u8>>,
) -> impl Iterator<Item = Result<Entry, Lost>> + 'a {
    let mut held: Vec<Entry> = Vec::new();
    TreeReader::within(root, from, get).flat_map(move |item| {
        let entry = match item {
            Ok(entry) => entry,
            lost => return vec![lost],
        };
        held.retain(|dir| is_within(&entry.path, &dir.path));
        if options.exclude.covers(&entry.path) {
            return Vec::new();
        }
        if !options.include.is_empty() && !options.include.covers(&entry.path) {
            if entry.kind == Kind::Directory {
                held.push(entry);
            }
            return Vec::new();
        }
        held.drain(..).chain([entry]).map(Ok).collect()
    })
}

/// Entries and bytes that a restore will deal with.
fn totals(
    root: &ChunkId,
    from: &[u8],
    options: &Options,
    get: &dyn Fn(&ChunkId) -> Result<Vec<u8>>,
) -> Result<(u64, u64)> {
    if from.is_empty() && options.include.is_empty() && options.exclude.is_empty() {
        // A root that cannot be read is reported by the restore itself.
        if let Ok(Some(totals)) = crate::tree::totals(root, get) {
            return Ok(totals);
        }
    }
    Ok(selected(root, from, options, get)
        .flatten()
        .fold((0, 0u64), |(entries, bytes), entry| (entries + 1, bytes.saturating_add(entry.size))))
}

#[derive(Debug, Default)]
struct Counts {
    files_restored: AtomicU64,
    bytes_restored: AtomicU64,
    files_unchanged: AtomicU64,
    dirs: AtomicU64,
    others: AtomicU64,
    deleted: AtomicU64,
    failed: AtomicU64,
}

/// What is known of the target directory itself.
struct Top {
    is_made: bool,
    is_empty: bool,
}

struct Restore<'a> {
    store: &'a Store,
    root: PathBuf,
    target: Target,
    counts: Counts,
    /// An error that no other file would be spared.
    fatal: Mutex<Option<Error>>,
    window: Window,
    /// Directories that still take entries, outermost first.
    open_dirs: Vec<Dir>,
    /// First restored path of each inode with several names, and the names to come.
    links: HashMap<(u64, u64), (Vec<u8>, u64)>,
    prefix: Vec<u8>,
    top: Top,
    lost: bool,
}

/// A directory of the tree.
struct Dir {
    entry: Entry,
    /// Path in the target.
    path: Vec<u8>,
    /// Made by this restore, so that nothing else is in it. Known once it was made.
    is_fresh: Arc<AtomicBool>,
}

/// Entries that are dealt with together.
#[derive(Default)]
struct Window {
    entries: usize,
    /// Memory of those, about.
    bytes: usize,
    /// Directories to make.
    dirs: Vec<(Vec<u8>, Arc<AtomicBool>)>,
    /// Directories that nothing will be made in any more.
    done_dirs: Vec<Dir>,
    files: Vec<Arc<Output>>,
    slices: Vec<Slice>,
    /// Files with several chunks.
    open_files: usize,
    others: Vec<(Entry, Vec<u8>, Arc<AtomicBool>)>,
    links: Vec<(Vec<u8>, Vec<u8>, Arc<AtomicBool>)>,
}

/// A file to be restored.
struct Output {
    entry: Entry,
    path: Vec<u8>,
    is_fresh: Arc<AtomicBool>,
    /// Slices to come; one more until all of them are known.
    remaining: AtomicUsize,
    file: Mutex<Option<Unfinished>>,
    /// Has the right content already, or has failed: nothing is written to it.
    is_settled: AtomicBool,
}

/// A slice of a chunk that belongs into a file.
struct Slice {
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
    /// Takes the next entry of the tree into the window.
    fn take(&mut self, entry: Entry, get: &dyn Fn(&ChunkId) -> Result<Vec<u8>>) -> Result<()> {
        if entry.path == self.prefix {
            self.open_top(entry);
            return Ok(());
        }
        let path = relative(&entry.path, &self.prefix).to_vec();
        self.leave_dirs(&path);
        let Some(is_fresh) = self.enter_parent(&path) else {
            self.failed(&path, "what should be its directory is none");
            return Ok(());
        };
        self.window.entries += 1;
        self.window.bytes += weight(&entry);
        if entry.kind == Kind::Directory {
            self.open_dir(entry, path);
        } else if let Some(first) = self.linked(&entry, &path) {
            self.window.links.push((first, path, is_fresh));
        } else if entry.kind == Kind::File {
            self.open_file(entry, path, is_fresh, get)?;
        } else {
            self.window.others.push((entry, path, is_fresh));
        }
        let window = &self.window;
        if window.entries >= WINDOW_ENTRIES
            || window.bytes >= WINDOW_BYTES
            || window.open_files >= WINDOW_OPEN_FILES
        {
            self.flush(false)?;
        }
        Ok(())
    }

    /// The directory whose content is restored is the target itself; it gets that
    /// directory's metadata only if it was made for this.
    fn open_top(&mut self, entry: Entry) {
        if self.top.is_made && entry.kind == Kind::Directory {
            let is_fresh = Arc::new(AtomicBool::new(true));
            self.open_dirs.push(Dir { entry, path: Vec::new(), is_fresh });
        }
    }

    /// Directories that `path` is not in will take nothing any more.
    fn leave_dirs(&mut self, path: &[u8]) {
        while self.open_dirs.last().is_some_and(|dir| !is_within(path, &dir.path)) {
            self.window.done_dirs.extend(self.open_dirs.pop());
        }
    }

    /// Whether the directory of `path` is fresh. Directories that the tree lost are
    /// made; `None` if something else stands there.
    fn enter_parent(&mut self, path: &[u8]) -> Option<Arc<AtomicBool>> {
        let parent = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..at]);
        if let Some(dir) = self.open_dirs.last()
            && dir.path == parent
        {
            return Some(Arc::clone(&dir.is_fresh));
        }
        if parent.is_empty() {
            return Some(Arc::new(AtomicBool::new(self.top.is_empty)));
        }
        let is_taken = |taken: &[u8]| is_within(path, taken);
        let files = self.window.files.iter().map(|file| &file.path);
        let others = self.window.others.iter().map(|(_, path, _)| path);
        if files.chain(others).any(|taken| is_taken(taken)) {
            return None;
        }
        self.enter_parent(parent)?;
        let tree_path = join(&self.prefix, parent);
        self.open_dir(nameless_dir(tree_path), parent.to_vec());
        self.open_dirs.last().map(|dir| Arc::clone(&dir.is_fresh))
    }

    fn open_dir(&mut self, entry: Entry, path: Vec<u8>) {
        let is_fresh = Arc::new(AtomicBool::new(false));
        self.window.dirs.push((path.clone(), Arc::clone(&is_fresh)));
        self.open_dirs.push(Dir { entry, path, is_fresh });
    }

    /// The path restored before that this entry is another name of.
    fn linked(&mut self, entry: &Entry, path: &[u8]) -> Option<Vec<u8>> {
        let link = entry.hard_link?;
        let key = (link.device, entry.inode);
        match self.links.get_mut(&key) {
            None => {
                self.links.insert(key, (path.to_vec(), link.names.saturating_sub(1)));
                None
            }
            Some((first, to_come)) => {
                let first = first.clone();
                *to_come = to_come.saturating_sub(1);
                if *to_come == 0 {
                    self.links.remove(&key);
                }
                Some(first)
            }
        }
    }

    fn open_file(
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

    /// Deals with everything in the window.
    fn flush(&mut self, is_end: bool) -> Result<()> {
        if is_end {
            self.leave_dirs_all();
        }
        let window = std::mem::take(&mut self.window);
        self.make_dirs(&window.dirs);
        window.files.par_iter().for_each(|output| self.compare(output));
        self.write(window.slices)?;
        window.files.par_iter().for_each(|output| self.finish_without_chunks(output));
        window.others.par_iter().for_each(|(entry, path, is_fresh)| {
            let made = self.target.make_other(path, entry, is_fresh.load(Relaxed));
            self.count_entry(path, made, &self.counts.others);
        });
        for (first, path, is_fresh) in &window.links {
            let made = self.target.make_link(first, path, is_fresh.load(Relaxed));
            self.count_entry(path, made, &self.counts.others);
        }
        self.finish_dirs(window.done_dirs);
        match self.fatal.lock().take() {
            Some(error) => Err(error),
            None => self.store.observer().progress().check(),
        }
    }

    fn leave_dirs_all(&mut self) {
        while let Some(dir) = self.open_dirs.pop() {
            self.window.done_dirs.push(dir);
        }
    }

    /// Makes directories, all of one depth at once.
    fn make_dirs(&self, dirs: &[(Vec<u8>, Arc<AtomicBool>)]) {
        let depth = |path: &[u8]| path.iter().filter(|b| **b == b'/').count();
        let mut by_depth: Vec<Vec<&(Vec<u8>, Arc<AtomicBool>)>> = Vec::new();
        for dir in dirs {
            let depth = depth(&dir.0);
            by_depth.resize_with(by_depth.len().max(depth + 1), Vec::new);
            by_depth[depth].push(dir);
        }
        for dirs in by_depth {
            dirs.par_iter().for_each(|(path, is_fresh)| match self.target.make_dir(path) {
                Ok(made) => is_fresh.store(made, Relaxed),
                Err(error) => self.failed_io(path, &error),
            });
        }
    }

    /// Metadata of directories, innermost first: without it they may not be entered.
    fn finish_dirs(&self, mut dirs: Vec<Dir>) {
        dirs.sort_by(|a, b| path_cmp(&b.path, &a.path));
        let finish = |dir: &Dir| {
            let is_fresh = dir.is_fresh.load(Relaxed);
            let done = self.target.finish_dir(&dir.path, &dir.entry, is_fresh);
            self.count_entry(&dir.path, done, &self.counts.dirs);
        };
        if rustix::process::geteuid().is_root() {
            dirs.par_iter().for_each(finish);
        } else {
            dirs.iter().for_each(finish);
        }
    }

    /// Leaves a file alone that already has its content.
    fn compare(&self, output: &Output) {
        let is_settled = output.is_settled.load(Relaxed);
        if is_settled || output.is_fresh.load(Relaxed) || output.file.lock().is_some() {
            return;
        }
        if !self.has_content(output).unwrap_or(false) {
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

    /// Whether the file in the target has the bytes of the entry.
    fn has_content(&self, output: &Output) -> io::Result<bool> {
        let file = source::open_file_below(self.target.dir(), &output.path)?;
        let stat = source::stat_open(&file)?;
        // Another name of something else must not be written to, nor given other metadata.
        let shares = stat.names > 1 && output.entry.hard_link.is_none();
        if stat.kind != Kind::File || stat.size != output.entry.size || shares {
            return Ok(false);
        }
        let recipe = match &output.entry.content {
            Content::Empty => return Ok(true),
            Content::Inline(bytes) => {
                let mut found = vec![0; bytes.len()];
                file.read_exact_at(&mut found, 0)?;
                return Ok(found == *bytes);
            }
            Content::Recipe(recipe) => recipe,
        };
        let get = |id: &ChunkId| self.store.chunk(id);
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
                    self.is_slice(&chunk, offset, &found)
                }
            };
            if !same {
                return Ok(false);
            }
            at += extent.len();
        }
        Ok(true)
    }

    fn is_slice(&self, chunk: &ChunkId, offset: u32, found: &[u8]) -> bool {
        if offset == 0 && ChunkId::of(found) == *chunk {
            return true;
        }
        let from = offset as usize;
        let plain = self.store.chunk(chunk);
        plain.is_ok_and(|plain| plain.get(from..from + found.len()) == Some(found))
    }

    /// Reads every wanted chunk once and writes it everywhere.
    fn write(&self, slices: Vec<Slice>) -> Result<()> {
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

    /// Begins a file; holes at its end need its length to be set.
    fn begin(&self, output: &Output) -> io::Result<Unfinished> {
        let open = self.target.begin(&output.path, output.is_fresh.load(Relaxed))?;
        let has_holes = match &output.entry.content {
            Content::Recipe(recipe) => {
                recipe.level > 0 || matches!(recipe.extents.last(), Some(Extent::Hole { .. }))
            }
            _ => false,
        };
        if has_holes {
            open.file().set_len(output.entry.size)?;
        }
        Ok(open)
    }

    /// Files that no chunk belongs to: empty, inline, or holes only.
    fn finish_without_chunks(&self, output: &Output) {
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
            Err(error) => self.failed_io(&output.path, &error),
        }
    }

    fn finish(&self, output: &Output) {
        let Some(open) = output.file.lock().take() else { return };
        output.is_settled.store(true, Relaxed);
        let finished = self.target.finish(open, &output.entry);
        self.count_entry(&output.path, finished, &self.counts.files_restored);
    }

    /// Nothing more is written to this file, and what was is removed.
    fn settle(&self, output: &Output) -> bool {
        let was_settled = output.is_settled.swap(true, Relaxed);
        if let Some(open) = output.file.lock().take() {
            open.remove();
        }
        !was_settled
    }

    fn settle_failed(&self, output: &Output, reason: &str) {
        if self.settle(output) {
            self.failed(&output.path, reason);
        }
    }

    fn count_entry(&self, path: &[u8], result: io::Result<()>, count: &AtomicU64) {
        match result {
            Ok(()) => {
                count.fetch_add(1, Relaxed);
                self.store.observer().progress().add(1, 0);
            }
            Err(error) => self.failed_io(path, &error),
        }
    }

    fn failed_io(&self, path: &[u8], error: &io::Error) {
        let code = error.raw_os_error();
        let is_fatal = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS]
            .iter()
            .any(|errno| code == Some(errno.raw_os_error()));
        if is_fatal {
            let source = io::Error::from_raw_os_error(code.unwrap_or_default());
            self.fatal.lock().get_or_insert(Error::Target { path: self.shown(path), source });
            return;
        }
        self.failed(path, &error.to_string());
    }

    fn failed(&self, path: &[u8], reason: &str) {
        self.counts.failed.fetch_add(1, Relaxed);
        let (path, reason) = (self.shown(path), reason.to_owned());
        self.store.observer().event(Event::NotRestored { path, reason });
    }

    fn lost(&mut self, lost: &Lost) {
        self.lost = true;
        let until = match &lost.until {
            Some(until) => format!("up to {}", crate::entry::display_path(until)),
            None => "and all that follows".into(),
        };
        self.failed(relative(&lost.from, &self.prefix), &format!("{until}: {}", lost.error));
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    /// Removes what the target has and the snapshot has not.
    fn delete(
        &mut self,
        root: &ChunkId,
        from: &[u8],
        options: &Options,
        get: &dyn Fn(&ChunkId) -> Result<Vec<u8>>,
    ) -> Result<()> {
        if self.lost {
            let note = "nothing was deleted: parts of the snapshot's tree cannot be read";
            self.store.observer().event(Event::Note(note.into()));
            return Ok(());
        }
        for path in extra(&self.root, self.target.dir(), root, from, &self.prefix, options, get)? {
            match self.target.remove(&path) {
                Ok(()) => drop(self.counts.deleted.fetch_add(1, Relaxed)),
                Err(error) => self.failed_io(&path, &error),
            }
        }
        if self.counts.deleted.load(Relaxed) == 0 {
            return Ok(());
        }
        // Removing changed the times of directories that were right before.
        let dirs = selected(root, from, options, get).flatten();
        for entry in dirs.filter(|entry| entry.kind == Kind::Directory) {
            let path = relative(&entry.path, &self.prefix).to_vec();
            if !path.is_empty() {
                let _ = self.target.finish_dir(&path, &entry, false);
            }
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let counts = &self.counts;
        Report {
            files_restored: counts.files_restored.load(Relaxed),
            bytes_restored: counts.bytes_restored.load(Relaxed),
            files_unchanged: counts.files_unchanged.load(Relaxed),
            dirs: counts.dirs.load(Relaxed),
            others: counts.others.load(Relaxed),
            deleted: counts.deleted.load(Relaxed),
            failed: counts.failed.load(Relaxed),
            owner_denied: self.target.owner_denied.load(Relaxed),
            xattr_denied: self.target.xattr_denied.load(Relaxed),
        }
    }
}

impl Output {
    /// Its file was taken away from it, complete.
    fn is_finished(&self) -> bool {
        self.is_settled.load(Relaxed)
    }
}

/// Paths below the target that the selected part of the tree does not have; a
/// directory stands for everything in it.
fn extra(
    shown: &Path,
    dir: std::os::fd::BorrowedFd<'_>,
    root: &ChunkId,
    from: &[u8],
    prefix: &[u8],
    options: &Options,
    get: &dyn Fn(&ChunkId) -> Result<Vec<u8>>,
) -> Result<Vec<Vec<u8>>> {
    let failed = |source| Error::Target { path: shown.to_owned(), source };
    let dir = dir.try_clone_to_owned().map_err(failed)?;
    let stat = source::stat_open(&dir).map_err(failed)?;
    let base = Arc::new(Base { path: prefix.to_vec(), dir });
    let rules = Rules {
        exclude: Globs::new([])?,
        one_file_system: false,
        exclude_caches: false,
        never: Vec::new(),
        scan_git_dirs: false,
        git_dirs: false,
    };
    let mut tree = TreeReader::within(root, from, get).flatten().peekable();
    let mut extra: Vec<Vec<u8>> = Vec::new();
    for step in Walk::new(base, stat, rules, 1) {
        let Step::Found(found) = step else { continue };
        let path = found.path;
        if extra.last().is_some_and(|last| is_within(&path, last)) || path == prefix {
            continue;
        }
        while tree.next_if(|entry| path_cmp(&entry.path, &path) == Ordering::Less).is_some() {}
        let is_known = tree.peek().is_some_and(|entry| entry.path == path);
        let may_go = options.delete_below.iter().any(|dir| path != *dir && is_within(&path, dir))
            && !options.exclude.covers(&path)
            && !options.keep.covers(&path)
            && (options.include.is_empty() || options.include.covers(&path));
        if !is_known && may_go {
            extra.push(path);
        }
    }
    Ok(extra.iter().map(|path| relative(path, prefix).to_vec()).collect())
}

/// Counts what a restore would do.
fn dry_run(
    store: &Store,
    root: &ChunkId,
    from: &[u8],
    prefix: &[u8],
    target: &Path,
    options: &Options,
) -> Result<Report> {
    let get = |id: &ChunkId| store.chunk(id);
    let mut report = Report::default();
    for item in selected(root, from, options, &get) {
        match item {
            Ok(entry) if entry.path == prefix => {}
            Ok(entry) => match entry.kind {
                Kind::File => {
                    report.files_restored += 1;
                    report.bytes_restored = report.bytes_restored.saturating_add(entry.size);
                }
                Kind::Directory => report.dirs += 1,
                _ => report.others += 1,
            },
            Err(lost) => {
                report.failed += 1;
                let path = target.join(OsStr::from_bytes(relative(&lost.from, prefix)));
                let reason = lost.error.to_string();
                store.observer().event(Event::NotRestored { path, reason });
            }
        }
    }
    if options.delete && target.exists() && report.failed == 0 {
        let failed = |source| Error::Target { path: target.to_owned(), source };
        let dir = source::open_dir(target).map_err(failed)?;
        for path in extra(target, dir.as_fd(), root, from, prefix, options, &get)? {
            report.deleted += 1;
            let path = target.join(OsStr::from_bytes(&path));
            store.observer().event(Event::Note(format!("would delete {}", path.display())));
        }
    }
    Ok(report)
}

/// Bytes of memory that an entry takes while it waits, about.
fn weight(entry: &Entry) -> usize {
    let content = match &entry.content {
        Content::Empty => 0,
        Content::Inline(bytes) => bytes.len(),
        // Once in the entry, once in the recipe that is walked over.
        Content::Recipe(recipe) => 2 * recipe.extents.len() * size_of::<Extent>(),
    };
    let xattrs = entry.xattrs.iter().map(|(name, value)| name.len() + value.len());
    2 * entry.path.len() + entry.target.len() + content + xattrs.sum::<usize>()
}

/// Stands for a directory whose entry is lost.
fn nameless_dir(path: Vec<u8>) -> Entry {
    let owner = Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        user: None,
        group: None,
    };
    Entry {
        path,
        kind: Kind::Directory,
        mode: 0o700,
        owner: Arc::new(owner),
        mtime: None,
        ctime: None,
        inode: 0,
        size: 0,
        target: Vec::new(),
        hard_link: None,
        xattrs: Vec::new(),
        device: None,
        content: Content::Empty,
    }
}

fn is_hole(file: &std::fs::File, at: u64, len: u64) -> io::Result<bool> {
    Ok(source::data_runs(file, at, at + len).next().transpose()?.is_none())
}

fn relative<'p>(path: &'p [u8], prefix: &[u8]) -> &'p [u8] {
    let rest = path.strip_prefix(prefix).unwrap_or(path);
    rest.strip_prefix(b"/").unwrap_or(rest)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    crate::walk::join(path, name)
}
