//! Dry run of a restore.

use super::content::with_content;
use super::delete::{Extra, extra};
use super::git_caches::GitCaches;
use super::passages::{self, Passages, not_replaced, note_kept};
use super::window::{LinkKey, link_key};
use super::{
    Options, Report, Top, below_unmade, dir_in_the_way, fatal, join, reason_of, relative, selected,
};
use crate::access;
use crate::entry::{Content, Entry, EntryKind, is_within};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::observe::{Event, Reason};
use crate::recipe::{Extent, Extents};
use crate::source::{self, Stat};
use crate::store::Store;
use crate::target::{self, Metadata, Refused, Rights};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

struct DryRun<'a> {
    store: &'a Store,
    prefix: &'a [u8],
    target: &'a Path,
    /// `None` if the target is missing: it counts as empty.
    dir: Option<OwnedFd>,
    extra: Extra,
    is_delete: bool,
    git_caches: GitCaches,
    passages: Passages,
    rights: Rights,
    /// Last directory that is only passed through and in whose place something else is.
    blocked: Option<Vec<u8>>,
    /// Last directory that the restore cannot make.
    unmade: Option<Vec<u8>>,
    links: HashMap<LinkKey, Link>,
    /// Bytes that the restore writes, without holes.
    needed_bytes: u64,
    report: Report,
}

/// A file with several names.
#[derive(Clone)]
struct Link {
    /// Path of the first name.
    first: Vec<u8>,
    /// Number of names to come.
    to_come: u64,
    /// True if the first name can be restored.
    is_restored: bool,
}

/// Counts what a restore would do, without changing anything.
pub(super) fn dry_run(
    store: &Store,
    root: &ChunkId,
    from: &[u8],
    prefix: &[u8],
    target: &Path,
    store_place: Option<&[u8]>,
    options: &Options,
) -> Result<Report> {
    let (dir, free_bytes) = look_at_target(target)
        .map_err(|source| Error::Target { path: target.to_owned(), source })?;
    let extra = match &dir {
        Some(dir) if options.delete => extra(target, dir.as_fd(), store, root, prefix, options)?,
        _ => Extra::default(),
    };
    extra.warn_of_mounts(store, target, prefix);
    let mut run = DryRun {
        store,
        prefix,
        target,
        dir,
        extra,
        is_delete: options.delete,
        git_caches: GitCaches::default(),
        passages: Passages::of(options),
        rights: Rights::of_process(),
        blocked: None,
        unmade: None,
        links: HashMap::new(),
        needed_bytes: 0,
        report: Report::default(),
    };
    for item in selected(root, from, options, store) {
        store.observer().progress().check()?;
        match item {
            Ok(entry) if Some(relative(&entry.path, prefix)) == store_place => {}
            Ok(entry) => run.take(&entry)?,
            Err(lost) => {
                run.report.failed += lost.entries.unwrap_or(1).saturating_sub(1);
                run.report.has_uncounted |= lost.entries.is_none();
                run.failed(relative(lost.span.from(), prefix), reason_of(&lost));
            }
        }
    }
    run.delete(root, options)?;
    let needed = run.needed_bytes;
    if let Some(free) = free_bytes.filter(|free| *free < needed) {
        let target = target.display();
        let note =
            format!("{target}: {free} bytes are free; the restore writes up to {needed} bytes");
        store.observer().event(Event::Note(note));
    }
    Ok(run.report)
}

/// Opens the target, unless it is missing. Also returns the number of bytes that are free there.
/// Fails if the restore itself cannot make or open it.
fn look_at_target(target: &Path) -> io::Result<(Option<OwnedFd>, Option<u64>)> {
    let nearest = access::open_nearest_dir(target)?;
    let free = rustix::fs::fstatvfs(&nearest).ok();
    let free = free.map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    match source::open_dir(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((None, free)),
        dir => Ok((Some(dir?), free)),
    }
}

impl DryRun<'_> {
    fn take(&mut self, entry: &Entry) -> Result<()> {
        let path = relative(&entry.path, self.prefix).to_vec();
        if entry.path == self.prefix && entry.kind == EntryKind::Directory {
            self.take_top(entry);
            return Ok(());
        }
        if self.blocked.as_ref().is_some_and(|dir| is_within(&path, dir)) {
            self.report.failed += 1;
            return Ok(());
        }
        if self.unmade.as_ref().is_some_and(|dir| is_within(&path, dir)) {
            let dir = self.dir.as_ref();
            return match dir.and_then(|dir| target::removal_refusal(dir.as_fd(), &path)) {
                Some(error) => self.refused(&path, &error),
                None => {
                    self.failed(&path, below_unmade());
                    Ok(())
                }
            };
        }
        if entry.kind == EntryKind::Directory {
            return self.take_dir(entry, path);
        }
        let key = link_key(entry);
        let known = key.and_then(|key| self.known_link(entry, key));
        let is_in_the_way = self.is_in_the_way(&path);
        let present = self.present(entry, &path, known.as_ref());
        let refused = if present.is_some() { None } else { self.refusal(entry, &path) };
        let is_restored = known.as_ref().is_some_and(|link| link.is_restored);
        if !is_restored && let Some(link) = key.and_then(|key| self.links.get_mut(&key)) {
            link.is_restored = !is_in_the_way && refused.is_none();
            link.first.clone_from(&path);
        }
        if is_in_the_way {
            self.failed(&path, dir_in_the_way(self.is_delete));
        } else if let Some(error) = refused {
            self.refused(&path, &error)?;
        } else if entry.kind != EntryKind::File || is_restored {
            self.report.others += 1;
            // Another name of a file has the metadata of the first.
            if known.is_none() {
                self.take_metadata(entry, &path, present.as_ref());
            }
        } else {
            self.take_file(entry, &path, present.as_ref());
        }
        Ok(())
    }

    /// Returns the metadata of an object that the restore would leave in place of an entry that is
    /// not a directory. `link` is the first name of its file.
    fn present(&self, entry: &Entry, path: &[u8], link: Option<&Link>) -> Option<Stat> {
        if let Some(link) = link.filter(|link| link.is_restored) {
            let inode = |stat: &Stat| (stat.device, stat.inode);
            let (first, stat) = (self.look(&link.first)?.1, self.look(path)?.1);
            return (inode(&first) == inode(&stat)).then_some(stat);
        }
        if entry.kind == EntryKind::File {
            let dir = self.dir.as_ref()?;
            return Some(with_content(self.store, dir.as_fd(), path, entry)?.stat);
        }
        let (open, stat) = self.look(path)?;
        target::is_same_thing(&open, &stat, entry).then_some(stat)
    }

    /// Returns the error of making an entry in place of the object that is there.
    fn refusal(&self, entry: &Entry, path: &[u8]) -> Option<io::Error> {
        let is_device = matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let dir = self.dir.as_ref();
        dir.and_then(|dir| target::removal_refusal(dir.as_fd(), path))
            .or_else(|| (is_device && !self.rights.are_all()).then(|| Errno::PERM.into()))
    }

    /// Reports an entry that the system refuses to make. Fails if that concerns all entries.
    fn refused(&mut self, path: &[u8], error: &io::Error) -> Result<()> {
        let source = self.dir.as_ref().and_then(|dir| fatal(dir.as_fd(), path, error));
        if let Some(source) = source {
            return Err(Error::Target { path: self.shown(path), source });
        }
        self.failed(path, error);
        Ok(())
    }

    fn take_top(&mut self, entry: &Entry) {
        match Top::look(self.target, self.prefix, &self.passages) {
            Ok(top) if !top.gets_metadata => {
                return note_kept(self.store.observer(), self.target, entry, &top.stat);
            }
            Ok(top) => self.count_metadata(entry, b"", &top.stat),
            Err(_) => self.count_new(entry, b""),
        }
        self.report.dirs += 1;
    }

    fn take_dir(&mut self, entry: &Entry, path: Vec<u8>) -> Result<()> {
        let present = self.look(&path).map(|(_, stat)| stat);
        let kind = present.map(|stat| stat.kind).filter(|kind| *kind != EntryKind::Directory);
        let is_passage = self.passages.has(&entry.path);
        if let Some(kind) = kind.filter(|_| is_passage) {
            self.failed(&path, not_replaced(kind));
            self.blocked = Some(path);
            return Ok(());
        }
        let present = present.filter(|stat| stat.kind == EntryKind::Directory);
        if present.is_none()
            && let Some(error) = self.refusal(entry, &path)
        {
            self.refused(&path, &error)?;
            self.unmade = Some(path);
            return Ok(());
        }
        if let Some(kind) = kind {
            let (shown, kind) = (self.shown(&path), kind.name());
            let note = format!("{}: would replace {kind} by a directory", shown.display());
            self.store.observer().event(Event::Note(note));
        }
        self.report.dirs += 1;
        let open = self.dir.as_ref().map(|dir| source::open_dir_below(dir.as_fd(), &path));
        let is_kept = is_passage
            && open.is_some_and(|open| {
                open.is_ok_and(|dir| !passages::gets_metadata(dir.as_fd()).unwrap_or(false))
            });
        match present.as_ref().filter(|_| is_kept) {
            Some(stat) => note_kept(self.store.observer(), &self.shown(&path), entry, stat),
            None => self.take_metadata(entry, &path, present.as_ref()),
        }
        Ok(())
    }

    /// Returns the first name of a file; `None` if this is the first.
    fn known_link(&mut self, entry: &Entry, key: LinkKey) -> Option<Link> {
        let Some(link) = self.links.get_mut(&key) else {
            let names = entry.hard_link.map_or(1, |link| link.names);
            let first = relative(&entry.path, self.prefix).to_vec();
            let link = Link { first, to_come: names.saturating_sub(1), is_restored: true };
            self.links.insert(key, link);
            return None;
        };
        link.to_come = link.to_come.saturating_sub(1);
        let known = link.clone();
        if known.to_come == 0 {
            self.links.remove(&key);
        }
        Some(known)
    }

    fn take_file(&mut self, entry: &Entry, path: &[u8], present: Option<&Stat>) {
        if let Some(stat) = present {
            self.report.files_unchanged += 1;
            self.count_metadata(entry, path, stat);
            return;
        }
        self.count_new(entry, path);
        self.report.files_restored += 1;
        self.report.bytes_restored = self.report.bytes_restored.saturating_add(entry.size);
        let bytes = bytes_without_holes(self.store, entry);
        self.needed_bytes = self.needed_bytes.saturating_add(bytes);
        if GitCaches::depend_on(&entry.path) && self.kind_of(path).is_some() {
            self.git_caches.replaced(&entry.path);
        }
    }

    /// Counts the metadata of an entry. `present` is that of the object that stays in its place.
    fn take_metadata(&mut self, entry: &Entry, path: &[u8], present: Option<&Stat>) {
        match present {
            Some(stat) => self.count_metadata(entry, path, stat),
            None => self.count_new(entry, path),
        }
    }

    /// Counts the metadata of an object that is there and stays, as far as this user may set it.
    fn count_metadata(&mut self, entry: &Entry, path: &[u8], stat: &Stat) {
        let (is, wanted) = ((stat.uid, stat.gid), Metadata::of(entry));
        let owner = self.rights.given_owner(is, &wanted);
        let has_mode = |owner| {
            let mode = self.rights.given_mode(owner, &wanted);
            entry.kind == EntryKind::Symlink || stat.mode == mode
        };
        let has_time = entry.mtime.is_none_or(|mtime| target::is_held(mtime, stat));
        if is == wanted.owner && has_mode(is) && has_time {
            return;
        }
        let dir = self.dir.as_ref();
        let refusal =
            dir.and_then(|dir| target::metadata_refusal(dir.as_fd(), path, stat, &self.rights));
        let Some(error) = refusal else {
            let has_mode = has_mode(owner);
            self.count_denied(owner, &wanted);
            self.report.owners_to_set += u64::from(owner != is);
            self.report.modes_to_set += u64::from(!has_mode);
            return;
        };
        let (has_mode, mut refused) = (has_mode(is), Refused::default());
        match error {
            Errno::ROFS if is != wanted.owner => refused.note("owner", &error.into()),
            Errno::ROFS => {}
            _ => self.count_denied(is, &wanted),
        }
        for (what, is_right) in [("mode", has_mode), ("time", has_time)] {
            if !is_right {
                refused.note(what, &error.into());
            }
        }
        if !refused.is_empty() {
            self.report.metadata_refused += 1;
            let (path, reason) = (self.shown(path), refused.reason());
            self.store.observer().event(Event::MetadataRefused { path, reason });
        }
    }

    /// Counts the metadata of an object that will be made.
    fn count_new(&mut self, entry: &Entry, path: &[u8]) {
        if !self.rights.are_all() {
            let dir = self.dir_above(path);
            let (is, wanted) = (self.rights.new_owner(dir.as_ref()), Metadata::of(entry));
            self.count_denied(self.rights.given_owner(is, &wanted), &wanted);
        }
    }

    /// Counts an owner that this user may not set.
    fn count_denied(&mut self, owner: (u32, u32), wanted: &Metadata<'_>) {
        self.report.owner_denied += u64::from(owner != wanted.owner);
    }

    /// Returns the metadata of the nearest existing directory above a path. New directories take
    /// their group from it, too, if it has setgid.
    fn dir_above(&self, path: &[u8]) -> Option<Stat> {
        let mut path = path;
        while !path.is_empty() {
            path = source::split(path).0;
            match self.look(path) {
                Some((_, stat)) if stat.kind == EntryKind::Directory => return Some(stat),
                _ => {}
            }
        }
        let target = std::path::absolute(self.target).ok()?;
        target.ancestors().find_map(|dir| source::stat_open(source::open_dir(dir).ok()?).ok())
    }

    fn kind_of(&self, path: &[u8]) -> Option<EntryKind> {
        Some(self.look(path)?.1.kind)
    }

    fn look(&self, path: &[u8]) -> Option<(OwnedFd, Stat)> {
        let dir = self.dir.as_ref()?;
        let flags = rustix::fs::OFlags::PATH;
        let open = source::open_below(dir.as_fd(), path, flags).ok()?;
        let stat = source::stat_open(&open).ok()?;
        Some((open, stat))
    }

    /// Returns true if a directory at this path cannot be replaced.
    fn is_in_the_way(&self, path: &[u8]) -> bool {
        let Some(dir) = &self.dir else { return false };
        let Ok(open) = source::open_dir_below(dir.as_fd(), path) else { return false };
        let device = |dir: &OwnedFd| source::stat_open(dir).ok().map(|stat| stat.device);
        if device(&open) != device(dir) {
            return true;
        }
        let is_empty = source::names(open.as_fd()).is_ok_and(|names| names.is_empty());
        !is_empty && !self.extra.gives_way(&join(self.prefix, path))
    }

    fn failed(&mut self, path: &[u8], reason: impl Into<Reason>) {
        self.report.failed += 1;
        let (path, reason) = (self.shown(path), reason.into());
        self.store.observer().event(Event::NotRestored { path, reason });
    }

    fn not_deleted(&mut self, path: &[u8], reason: impl Into<Reason>) {
        self.report.not_deleted += 1;
        let (path, reason) = (self.shown(path), reason.into());
        self.store.observer().event(Event::NotDeleted { path, reason });
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        self.target.join(OsStr::from_bytes(path))
    }

    fn delete(&mut self, root: &ChunkId, options: &Options) -> Result<()> {
        for (path, reason) in std::mem::take(&mut self.extra.unseen) {
            if self.look(&path).is_some_and(|(_, stat)| target::can_be_opened_up(&stat)) {
                let shown = self.shown(&path);
                let text = "its mode keeps this dry run from searching it for paths to delete";
                self.store.observer().event(Event::Note(format!("{}: {text}", shown.display())));
            } else {
                self.not_deleted(&path, reason);
            }
        }
        let Some(dir) = self.dir.take() else { return Ok(()) };
        for path in &self.extra.paths {
            self.git_caches.removed(&join(self.prefix, path));
        }
        let mut stale = self.git_caches.stale(dir.as_fd(), self.store, root, self.prefix, options);
        stale.retain(|path| !self.extra.paths.iter().any(|extra| is_within(path, extra)));
        for path in std::mem::take(&mut self.extra.paths).iter().chain(&stale) {
            if let Some(error) = target::tree_removal_refusal(dir.as_fd(), path) {
                self.not_deleted(path, &error);
                continue;
            }
            self.report.deleted += 1;
            let path = self.shown(path);
            let note = format!("would delete {}", path.display());
            self.store.observer().event(Event::Note(note));
        }
        Ok(())
    }
}

/// Returns the number of bytes that a restore of a file writes. An unreadable recipe counts in full.
fn bytes_without_holes(store: &Store, entry: &Entry) -> u64 {
    let Content::Recipe(recipe) = &entry.content else { return entry.size };
    let mut bytes = 0u64;
    for extent in Extents::new(recipe, store) {
        match extent {
            Ok(Extent::Slice { len, .. }) => bytes = bytes.saturating_add(len),
            Ok(Extent::Hole { .. }) => {}
            Err(_) => return entry.size,
        }
    }
    bytes
}
