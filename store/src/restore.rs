//! Restore: writes a tree, or a part of it, into a directory.
//!
//! Entries are processed in windows of path order. Each window has these steps:
//!
//! 1. Create its directories.
//! 2. Read and decode each chunk that its files need once, in segment order. Write it to every
//!    place that needs a slice of it.
//! 3. Create links.
//! 4. Set the metadata of directories that are complete.

mod borrowed;
mod content;
mod delete;
mod dry_run;
mod early_sync;
mod git_caches;
mod hidden_refs;
mod output;
mod passages;
mod runs;
mod selection;
mod similar_names;
mod window;

use crate::entry::{Displayed, Entry, EntryKind, LinkKey, is_within};
use crate::error::{Error, Result};
use crate::glob::{Globs, ends};
use crate::id::ChunkId;
use crate::observe::{Cause, Event, Reason};
use crate::owner_map::{self, OwnerMap, RecordFile};
use crate::skipped::Spared;
use crate::source::{self, Stat};
use crate::store::Store;
use crate::target::{self, Refused, Target};
use crate::tree::{Lost, Span, TreeReader};
pub use borrowed::Borrowers;

use borrowed::Alternates;
use early_sync::EarlySync;
use git_caches::GitCaches;
use hidden_refs::PackedRefs;
use parking_lot::Mutex;
use passages::Passages;
use runs::GatherBuffer;
use rustix::io::Errno;
use selection::{prefix, selected, totals};
use similar_names::SimilarNames;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use window::{Dir, EntryWindow};

/// Options of a restore.
#[derive(Debug, Clone)]
pub struct Options {
    /// Restore only matching paths, with the directories above them. Empty: everything.
    pub include: Globs,
    /// The patterns of `include`, one by one, to warn of patterns without a match.
    pub include_each: Vec<(String, Globs)>,
    /// Do not restore matching paths.
    pub exclude: Globs,
    /// Remove paths of the target that the snapshot lacks.
    pub delete: bool,
    /// Paths that were backed up, as paths of the tree. Nothing outside of them is removed, and
    /// directories above them are only passed through.
    pub sources: Vec<Vec<u8>>,
    /// With `delete`: content that the backup skipped and the restore keeps.
    pub keep: Spared,
    /// Rules for owners and modes. They count the restored entries.
    pub owners: Arc<OwnerMap>,
    /// File that gets rules which undo the changes of owners and modes.
    pub owner_record: Option<PathBuf>,
    /// End at the first error of the target that someone can mend, such as a full disk, also if it
    /// concerns only some paths. Otherwise these paths are reported, and the others are restored.
    pub ends_at_write_errors: bool,
    /// Change nothing.
    pub is_dry: bool,
}

/// Result of a restore or dry run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Number of selected entries of the snapshot. With 0, nothing was done.
    pub selected: u64,
    /// Files created or replaced.
    pub files_restored: u64,
    /// Sizes of restored files in bytes, including holes.
    pub bytes_restored: u64,
    /// Files that already had the right content.
    pub files_unchanged: u64,
    /// Directories.
    pub dirs: u64,
    /// Links, devices and other entries.
    pub others: u64,
    /// Paths removed from the target.
    pub deleted: u64,
    /// Paths of the target that should have been removed and are still there.
    pub not_deleted: u64,
    /// Paths that are missing or incomplete in the target.
    pub failed: u64,
    /// True if more than `failed` paths are missing: lost parts of the tree held an unknown number
    /// of paths.
    pub has_uncounted: bool,
    /// Paths that have their content but lack some metadata for a reason other than the next two.
    pub metadata_refused: u64,
    /// In a dry run: entries that are there and would get another owner or group, because this user
    /// may set it.
    pub owners_to_set: u64,
    /// In a dry run: entries that are there and would get another mode.
    pub modes_to_set: u64,
    /// In a dry run: entries that are there and would get or lose extended attributes.
    pub xattrs_to_set: u64,
    /// In a dry run: files that it cannot compare, because the mode of a directory of this user
    /// hides them.
    pub files_hidden: u64,
    /// Entries whose owner could not be set.
    pub owner_denied: u64,
    /// Extended attributes that could not be set.
    pub xattr_denied: u64,
    /// Restored repositories that lack the objects that they borrow.
    pub borrowers: Vec<Borrowers>,
}

/// Restores the entry `from` in the tree `root` and everything below it into directory `target`.
///
/// With an empty `from`, paths are recreated below the target. Otherwise the *content* of `from` is
/// put into it. Creates the target directory if it is missing.
pub fn restore(
    store: &Store,
    root: &ChunkId,
    from: &[u8],
    target: &Path,
    options: &Options,
) -> Result<Report> {
    let (prefix, gives_metadata) = prefix(root, from, store)?;
    let (selected_entries, bytes) = totals(root, from, options, store, store.observer())?;
    store.observer().progress().expect(selected_entries, bytes);
    let store_place = store_place(store, root, from, &prefix, target, options)?;
    if selected_entries == 0 {
        return Ok(Report::default());
    }
    if options.is_dry {
        let store_place = store_place.as_deref();
        let report = dry_run::dry_run(store, root, from, &prefix, target, store_place, options)?;
        return Ok(Report { selected: selected_entries, ..report });
    }
    let failed = |source| Error::Target { path: target.to_owned(), source };
    make_target(target, gives_metadata).map_err(failed)?;
    let passages = Passages::of(options);
    let top = Top::look(target, &prefix, &passages).map_err(failed)?;
    let mut target_dir = Target::new(source::open_dir(target).map_err(failed)?);
    if options.owners.has_rules() {
        target_dir.verify_owners();
    }
    if gives_metadata && top.gets_metadata && !top.is_place {
        target_dir.mark(b"");
    }
    let owner_record = options.owner_record.as_deref();
    let owner_record = owner_record.map(|file| record_file(file, target)).transpose()?;
    let mut restore = Restore {
        store,
        root: target.to_owned(),
        target: target_dir,
        counts: Counts::default(),
        fatal: Mutex::default(),
        window: EntryWindow::default(),
        gather_buffer: GatherBuffer::new()?,
        open_dirs: Vec::new(),
        links: HashMap::new(),
        lost_links: Mutex::default(),
        unplaced_links: Mutex::default(),
        prefix,
        top,
        lost: false,
        selected: selected_entries,
        owners: Arc::clone(&options.owners),
        owner_record,
        is_delete: options.delete,
        ends_at_write_errors: options.ends_at_write_errors,
        store_place,
        copies: HashMap::new(),
        linked_names: HashMap::new(),
        unmade_dirs: Mutex::default(),
        passages,
        kept_passages: Mutex::default(),
        blocked: None,
        git_caches: Mutex::default(),
        packed_refs: PackedRefs::default(),
        similar_names: SimilarNames::default(),
        alternates: Alternates::default(),
    };
    let _early_sync = EarlySync::start(target, store);
    let extra = if options.delete { restore.clear_the_way(root, options)? } else { Vec::new() };
    for item in selected(root, from, options, store) {
        store.observer().progress().check()?;
        match item {
            Ok(entry) => restore.take(entry)?,
            Err(lost) => restore.lost(&lost),
        }
    }
    restore.flush(true)?;
    if let Some(record) = restore.owner_record.take() {
        record.finish()?;
    }
    for path in restore.similar_names.merged(restore.target.dir(), &restore.prefix) {
        restore.failed(relative(path, &restore.prefix), similar_names::MERGED);
    }
    restore.delete(extra, root, from, options)?;
    if !restore.top.is_empty {
        restore.warn_of_hidden_refs(root);
    }
    restore.target.put_modes_back();
    let mut report = restore.report();
    report.borrowers =
        restore.alternates.unmet(target, store, root, from, &restore.prefix, options);
    if report.files_restored + report.others + report.deleted > 0 {
        restore.target.sync().map_err(failed)?;
    }
    Ok(report)
}

/// Creates the file for the record of changed owners. Within the target, the restore could replace
/// or delete it.
fn record_file(file: &Path, target: &Path) -> Result<RecordFile> {
    let look = || {
        let (top, dir) = (target.canonicalize()?, owner_map::dir_of(file).canonicalize()?);
        match top != Path::new("/") && dir.starts_with(&top) {
            true => Err(io::Error::other("it would be inside the target of the restore")),
            false => Ok(top),
        }
    };
    let failed = |source| Error::OwnerRecord { file: file.to_owned(), source };
    let top = look().map_err(failed)?;
    RecordFile::create(file, &top)
}

/// Makes the target directory, and those that lead to it, unless it is there. One that gets
/// metadata of its own later is private until then.
fn make_target(target: &Path, gets_metadata: bool) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // `.` and its like have no directory to be made in.
    if let Some(parent) = target.parent().filter(|_| target.file_name().is_some()) {
        std::fs::create_dir_all(parent)?;
    }
    let mode = if gets_metadata { 0o700 } else { 0o777 };
    match std::fs::DirBuilder::new().mode(mode).create(target) {
        // A symbolic link to a directory is one.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && target.is_dir() => Ok(()),
        made => made,
    }
}

/// Returns the path of the store below the target, if it is there. Refuses a restore into the store
/// and one that would put entries of the snapshot into it.
fn store_place(
    store: &Store,
    root: &ChunkId,
    from: &[u8],
    prefix: &[u8],
    target: &Path,
    options: &Options,
) -> Result<Option<Vec<u8>>> {
    let Some(store_root) = store.root() else { return Ok(None) };
    let failed = |source| Error::Target { path: target.to_owned(), source };
    let refused = || Error::TargetIsStore { target: target.to_owned(), store: store_root.into() };
    let target_root = canonical(target).map_err(failed)?;
    let dirs = store.directories();
    let is_store = |path: &Path| {
        let stat = source::open_dir(path).and_then(source::stat_open);
        stat.is_ok_and(|stat| dirs.binary_search(&(stat.device, stat.inode)).is_ok())
    };
    if target_root.ancestors().any(is_store) {
        return Err(refused());
    }
    let store_root = std::fs::canonicalize(store_root).map_err(failed)?;
    let Ok(place) = store_root.strip_prefix(&target_root) else { return Ok(None) };
    let place = place.as_os_str().as_bytes().to_vec();
    let tree_path = join(prefix, &place);
    let would_be_put_there = |entry: &Entry| {
        is_within(&entry.path, from)
            && (entry.path != tree_path || entry.kind != EntryKind::Directory)
            && options.selects(&entry.path)
    };
    if TreeReader::within(root, &tree_path, store).flatten().any(|e| would_be_put_there(&e)) {
        return Err(refused());
    }
    Ok(Some(place))
}

/// Resolves links in a path, which need not exist.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = canonical(parent.unwrap_or(Path::new(".")))?;
            Ok(path.file_name().map_or(parent.clone(), |name| parent.join(name)))
        }
        found => found,
    }
}

/// Returns the reason why a directory prevents the restore of an entry, with the next step.
fn dir_in_the_way(is_delete: bool) -> &'static str {
    if is_delete {
        "a directory with paths that --delete keeps is in the way; move it away"
    } else {
        "a non-empty directory is in the way; move it away, or restore with --delete"
    }
}

#[derive(Debug, Default)]
struct Counts {
    files_restored: AtomicU64,
    bytes_restored: AtomicU64,
    files_unchanged: AtomicU64,
    dirs: AtomicU64,
    others: AtomicU64,
    deleted: AtomicU64,
    not_deleted: AtomicU64,
    failed: AtomicU64,
    has_uncounted: AtomicBool,
    metadata_refused: AtomicU64,
}

/// State of the target directory before the restore.
struct Top {
    stat: Stat,
    is_empty: bool,
    /// True if it is the very directory that was backed up.
    is_place: bool,
    /// True if it gets the metadata of the directory whose content is restored.
    gets_metadata: bool,
}

impl Top {
    /// Inspects the directory that receives the content of `prefix`.
    ///
    /// The target also gets the metadata if it is the very directory that was backed up. The same
    /// holds if it is empty and this user is root or its owner. Any other directory has another
    /// use.
    fn look(target: &Path, prefix: &[u8], passages: &Passages) -> io::Result<Top> {
        let dir = source::open_dir(target)?;
        let stat = source::stat_open(&dir)?;
        let names = source::names(dir.as_fd())?;
        let is_marked = names.iter().any(|(name, _)| target::is_mark(name));
        let is_empty = names.iter().all(|(name, _)| target::is_mark(name));
        let is_place = canonical(target)?.as_os_str().as_bytes() == [b"/", prefix].concat();
        let user = rustix::process::geteuid();
        let is_ours = user.is_root() || user.as_raw() == stat.uid;
        let is_restored = is_place && !passages.has(prefix);
        let gets_metadata = is_restored || (is_empty || is_marked) && is_ours;
        Ok(Top { stat, is_empty, is_place, gets_metadata })
    }
}

struct Restore<'a> {
    owner_record: Option<RecordFile>,
    store: &'a Store,
    root: PathBuf,
    owners: Arc<OwnerMap>,
    counts: Counts,
    /// An error that would affect every other file.
    fatal: Mutex<Option<Error>>,
    window: EntryWindow,
    /// Buffer of the window being written; never of two at once.
    gather_buffer: GatherBuffer,
    /// Directories that still receive entries, outermost first.
    open_dirs: Vec<Dir>,
    /// First restored path of each file with several names, and the number of names to come.
    links: HashMap<LinkKey, (Vec<u8>, u64)>,
    /// Files of several names whose content is lost.
    lost_links: Mutex<HashSet<LinkKey>>,
    /// Inodes without a name yet, because another object has the name.
    unplaced_links: Mutex<HashSet<LinkKey>>,
    prefix: Vec<u8>,
    top: Top,
    lost: bool,
    selected: u64,
    is_delete: bool,
    ends_at_write_errors: bool,
    /// Path of the store below the target.
    store_place: Option<Vec<u8>>,
    /// Further names that were linked to the first, of files with more than two names.
    linked_names: HashMap<LinkKey, Vec<Vec<u8>>>,
    /// Copies of files to which no further hard link could be made.
    copies: HashMap<LinkKey, Vec<u8>>,
    /// Directories that could not be made. Nothing in them can be restored.
    unmade_dirs: Mutex<HashSet<Vec<u8>>>,
    passages: Passages,
    /// Directories that are only passed through and keep their metadata.
    kept_passages: Mutex<HashSet<Vec<u8>>>,
    /// Last directory that is only passed through and in whose place something else is.
    blocked: Option<Vec<u8>>,
    git_caches: Mutex<GitCaches>,
    packed_refs: PackedRefs,
    similar_names: SimilarNames,
    alternates: Alternates,
    /// Dropped last: unfinished files are removed before the modes of their directories are
    /// restored.
    target: Target,
}

impl Restore<'_> {
    fn count_made(&self, path: &[u8], result: io::Result<Refused>, count: &AtomicU64) {
        match result {
            Ok(refused) => {
                self.refused(path, &refused);
                count.fetch_add(1, Relaxed);
                self.store.observer().progress().add(1, 0);
            }
            Err(error) => self.failed_io(path, &error),
        }
    }

    /// Reports metadata that could not be set on an entry.
    fn refused(&self, path: &[u8], refused: &Refused) {
        if !refused.is_empty() {
            self.counts.metadata_refused.fetch_add(1, Relaxed);
            if let Some(error) = refused.lack().filter(|_| self.ends_at_write_errors) {
                self.end(path, error.into());
            }
            let protection = target::protection(self.target.dir(), path);
            let (path, reason) = (self.shown(path), refused.reason(protection.as_ref()));
            self.store.observer().event(Event::MetadataRefused { path, reason });
        }
    }

    /// Notes that the content of this is lost, under all of its names.
    fn lose(&self, entry: &Entry) {
        self.lost_links.lock().extend(entry.link_key());
    }

    /// Notes a missing name, so that other names are not linked to the object in its place.
    fn miss(&self, entry: &Entry) {
        self.unplaced_links.lock().extend(entry.link_key());
    }

    fn is_lost(&self, entry: &Entry) -> bool {
        entry.link_key().is_some_and(|key| self.lost_links.lock().contains(&key))
    }

    fn failed_io(&self, path: &[u8], error: &io::Error) {
        if let Some(source) = fatal(self.target.dir(), path, error) {
            return self.end(path, source);
        }
        if target::is_absent(error) && self.is_below_unmade(path) {
            self.failed(path, below_unmade());
            return;
        }
        if let Some(errno) = Errno::from_io_error(error)
            && self.ends_at_write_errors
            && target::is_mendable(errno)
        {
            return self.end(path, errno.into());
        }
        if error.kind() == io::ErrorKind::DirectoryNotEmpty {
            self.failed(path, dir_in_the_way(self.is_delete));
            return;
        }
        self.failed(path, self.reason(path, error));
    }

    /// Ends the restore with an error, unless it ends already.
    fn end(&self, path: &[u8], source: io::Error) {
        self.fatal.lock().get_or_insert(Error::Target { path: self.shown(path), source });
    }

    /// Returns the reason of an error at a path. Names the attribute of the object that causes it.
    fn reason(&self, path: &[u8], error: &io::Error) -> Reason {
        let is_refused = Errno::from_io_error(error) == Some(Errno::PERM);
        let protection = || target::protection(self.target.dir(), path);
        is_refused.then(protection).flatten().as_ref().unwrap_or(error).into()
    }

    fn is_below_unmade(&self, path: &[u8]) -> bool {
        let unmade = self.unmade_dirs.lock();
        !unmade.is_empty() && ends(path).any(|end| unmade.contains(&path[..end]))
    }

    fn failed(&self, path: &[u8], reason: impl Into<Reason>) {
        add_up(&self.counts.failed, 1);
        let (path, reason) = (self.shown(path), reason.into());
        self.store.observer().event(Event::NotRestored { path, reason });
    }

    fn warn_of_hidden_refs(&self, root: &ChunkId) {
        let dir = self.target.dir();
        for (git_dir, names) in self.packed_refs.hidden(dir, self.store, root, &self.prefix) {
            let git_dir = self.shown(relative(&git_dir, &self.prefix));
            let first = crate::entry::display_path(&names[0]);
            let have = match names.len() {
                1 => format!("reference {first} has a newer value"),
                count => format!("{count} references such as {first} have newer values"),
            };
            let text = format!(
                "{}: {have} in a file that the snapshot lacks; restore with --delete to remove it",
                git_dir.displayed(),
            );
            self.store.observer().event(Event::Warning(text));
        }
    }

    fn lost(&mut self, lost: &Lost) {
        self.lost = true;
        // The report below counts one of them.
        add_up(&self.counts.failed, lost.entries.unwrap_or(1).saturating_sub(1));
        self.counts.has_uncounted.fetch_or(lost.entries.is_none(), Relaxed);
        self.failed(relative(lost.span.from(), &self.prefix), reason_of(lost));
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    fn report(&self) -> Report {
        let counts = &self.counts;
        Report {
            selected: self.selected,
            files_restored: counts.files_restored.load(Relaxed),
            bytes_restored: counts.bytes_restored.load(Relaxed),
            files_unchanged: counts.files_unchanged.load(Relaxed),
            dirs: counts.dirs.load(Relaxed),
            others: counts.others.load(Relaxed),
            deleted: counts.deleted.load(Relaxed),
            not_deleted: counts.not_deleted.load(Relaxed),
            failed: counts.failed.load(Relaxed),
            has_uncounted: counts.has_uncounted.load(Relaxed),
            metadata_refused: counts.metadata_refused.load(Relaxed),
            owners_to_set: 0,
            modes_to_set: 0,
            xattrs_to_set: 0,
            files_hidden: 0,
            owner_denied: self.target.owner_denied.load(Relaxed),
            xattr_denied: self.target.xattr_denied.load(Relaxed),
            borrowers: Vec::new(),
        }
    }
}

/// Returns the reason why nothing below a directory is restored that could not be created.
fn below_unmade() -> Reason {
    let text = "the restore could not create its directory".into();
    Reason { text, cause: Cause::DirectoryNotCreated }
}

/// Returns a copy of an error that would affect every other file.
fn fatal(root: BorrowedFd<'_>, path: &[u8], error: &io::Error) -> Option<io::Error> {
    let errno = Errno::from_io_error(error)?;
    // An error on a file system mounted in the target affects only entries there.
    let is_of_all = match errno {
        Errno::NOSPC | Errno::DQUOT => !target::is_on_other_device(root, path),
        Errno::ROFS => !target::is_on_other_mount(root, path),
        _ => false,
    };
    is_of_all.then(|| errno.into())
}

/// Returns the reason why a part of the tree is not restored, with its size.
fn reason_of(lost: &Lost) -> Reason {
    let entries = match lost.entries {
        None => "entries".into(),
        Some(1) => "1 entry".into(),
        Some(count) => format!("{count} entries"),
    };
    let error = &lost.error;
    match &lost.span {
        Span::Entry(_) => error.into(),
        Span::Range { until: Some(until), .. } => {
            format!("{entries} lost up to {}: {error}", crate::entry::display_path(until)).into()
        }
        Span::Range { until: None, .. } => format!("{entries} lost to the end: {error}").into(),
    }
}

/// Adds to a count without overflow: a hostile store may claim any number.
fn add_up(count: &AtomicU64, more: u64) {
    let _ = count.fetch_update(Relaxed, Relaxed, |count| Some(count.saturating_add(more)));
}

fn relative<'p>(path: &'p [u8], prefix: &[u8]) -> &'p [u8] {
    let rest = path.strip_prefix(prefix).unwrap_or(path);
    rest.strip_prefix(b"/").unwrap_or(rest)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    crate::walk::join(path, name)
}

#[cfg(test)]
pub(crate) mod tests;
