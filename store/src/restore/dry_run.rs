//! Dry run of a restore.

use super::content::with_content;
use super::delete::{Extra, extra};
use super::git_caches::GitCaches;
use super::passages::{self, Passages, not_replaced};
use super::window::{LinkKey, link_key};
use super::{Options, Report, Top, dir_in_the_way, join, reason_of, relative, selected};
use crate::entry::{Entry, EntryKind, is_within};
use crate::error::Result;
use crate::id::ChunkId;
use crate::observe::Event;
use crate::source::{self, Stat};
use crate::store::Store;
use crate::target::{self, Metadata, Rights};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

struct DryRun<'a> {
    store: &'a Store,
    prefix: &'a [u8],
    target: &'a Path,
    /// `None` if the target is missing or unreadable: it counts as empty.
    dir: Option<OwnedFd>,
    extra: Extra,
    is_delete: bool,
    git_caches: GitCaches,
    passages: Passages,
    rights: Rights,
    /// Last directory that is only passed through and in whose place something else is.
    blocked: Option<Vec<u8>>,
    /// For files with several names: number of names to come, and true if the first name can be
    /// restored.
    links: HashMap<LinkKey, (u64, bool)>,
    report: Report,
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
    let dir = source::open_dir(target).ok();
    let extra = match &dir {
        Some(dir) if options.delete => extra(target, dir.as_fd(), store, root, prefix, options)?,
        _ => Extra::default(),
    };
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
        links: HashMap::new(),
        report: Report::default(),
    };
    for item in selected(root, from, options, store) {
        store.observer().progress().check()?;
        match item {
            Ok(entry) if Some(relative(&entry.path, prefix)) == store_place => {}
            Ok(entry) => run.take(&entry),
            Err(lost) => {
                run.report.failed += lost.entries.unwrap_or(1).saturating_sub(1);
                run.report.has_uncounted |= lost.entries.is_none();
                run.failed(relative(lost.span.from(), prefix), &reason_of(&lost));
            }
        }
    }
    run.delete(root, options)?;
    Ok(run.report)
}

impl DryRun<'_> {
    fn take(&mut self, entry: &Entry) {
        let path = relative(&entry.path, self.prefix).to_vec();
        if entry.path == self.prefix && entry.kind == EntryKind::Directory {
            self.take_top(entry);
            return;
        }
        if self.blocked.as_ref().is_some_and(|dir| is_within(&path, dir)) {
            self.report.failed += 1;
            return;
        }
        if entry.kind == EntryKind::Directory {
            self.take_dir(entry, path);
            return;
        }
        let key = link_key(entry);
        let known = key.and_then(|key| self.known_link(entry, key));
        let is_in_the_way = self.is_in_the_way(&path);
        if known != Some(true)
            && let Some(link) = key.and_then(|key| self.links.get_mut(&key))
        {
            link.1 = !is_in_the_way;
        }
        if is_in_the_way {
            self.failed(&path, dir_in_the_way(self.is_delete));
        } else if entry.kind != EntryKind::File || known == Some(true) {
            self.report.others += 1;
            // Another name of a file has the metadata of the first.
            if known.is_none() {
                self.compare_metadata(entry, &path);
            }
        } else {
            self.take_file(entry, &path);
        }
    }

    fn take_top(&mut self, entry: &Entry) {
        match Top::look(self.target, self.prefix, &self.passages) {
            Ok(top) if !top.gets_metadata => return,
            Ok(top) => self.count_metadata(entry, &top.stat),
            Err(_) => self.count_new(entry, b""),
        }
        self.report.dirs += 1;
    }

    fn take_dir(&mut self, entry: &Entry, path: Vec<u8>) {
        let kind = self.kind_of(&path).filter(|kind| *kind != EntryKind::Directory);
        let is_passage = self.passages.has(&entry.path);
        if let Some(kind) = kind.filter(|_| is_passage) {
            self.failed(&path, &not_replaced(kind));
            self.blocked = Some(path);
            return;
        }
        self.report.dirs += 1;
        let open = self.dir.as_ref().map(|dir| source::open_dir_below(dir.as_fd(), &path));
        let is_kept = is_passage
            && open.is_some_and(|open| {
                open.is_ok_and(|dir| !passages::gets_metadata(dir.as_fd()).unwrap_or(false))
            });
        if !is_kept {
            self.compare_metadata(entry, &path);
        }
    }

    /// Returns `None` for the first name of a file. For other names, returns true if the first can
    /// be restored.
    fn known_link(&mut self, entry: &Entry, key: LinkKey) -> Option<bool> {
        let names = entry.hard_link.map_or(1, |link| link.names);
        let Some((to_come, is_restored)) = self.links.get_mut(&key) else {
            self.links.insert(key, (names.saturating_sub(1), true));
            return None;
        };
        *to_come = to_come.saturating_sub(1);
        let is_restored = *is_restored;
        if *to_come == 0 {
            self.links.remove(&key);
        }
        Some(is_restored)
    }

    fn take_file(&mut self, entry: &Entry, path: &[u8]) {
        let there =
            self.dir.as_ref().and_then(|dir| with_content(self.store, dir.as_fd(), path, entry));
        if let Some(present) = there {
            self.report.files_unchanged += 1;
            self.count_metadata(entry, &present.stat);
            return;
        }
        self.count_new(entry, path);
        self.report.files_restored += 1;
        self.report.bytes_restored = self.report.bytes_restored.saturating_add(entry.size);
        if GitCaches::depend_on(&entry.path) && self.kind_of(path).is_some() {
            self.git_caches.replaced(&entry.path);
        }
    }

    /// Compares owner and mode of an entry with those of the existing object that the restore
    /// keeps.
    fn compare_metadata(&mut self, entry: &Entry, path: &[u8]) {
        let stays = |(open, stat): &(OwnedFd, Stat)| match entry.kind {
            EntryKind::Directory => stat.kind == EntryKind::Directory,
            _ => target::is_same_thing(open, stat, entry),
        };
        match self.look(path).filter(stays) {
            Some((_, stat)) => self.count_metadata(entry, &stat),
            None => self.count_new(entry, path),
        }
    }

    /// Counts the metadata of an object that is there and stays, as far as this user may set it.
    fn count_metadata(&mut self, entry: &Entry, stat: &Stat) {
        let is = (stat.uid, stat.gid);
        let owner = self.count_owner(entry, is);
        self.report.owners_to_set += u64::from(owner != is);
        let wanted = self.rights.given_mode(owner, &Metadata::of(entry));
        let has_mode = entry.kind == EntryKind::Symlink || stat.mode == wanted;
        if self.rights.owns(stat.uid) {
            self.report.modes_to_set += u64::from(!has_mode);
            return;
        }
        let has_time = entry.mtime.is_none_or(|mtime| target::is_held(mtime, stat));
        self.report.metadata_refused += u64::from(!has_mode || !has_time);
    }

    /// Counts the metadata of an object that will be made.
    fn count_new(&mut self, entry: &Entry, path: &[u8]) {
        if !self.rights.are_all() {
            let dir = self.dir_above(path);
            self.count_owner(entry, self.rights.new_owner(dir.as_ref()));
        }
    }

    /// Returns the resulting owner, and counts it if this user may not set the owner of the entry.
    fn count_owner(&mut self, entry: &Entry, is: (u32, u32)) -> (u32, u32) {
        let wanted = Metadata::of(entry);
        let owner = self.rights.given_owner(is, &wanted);
        let is_denied = owner != wanted.owner;
        self.report.owner_denied += u64::from(is_denied);
        owner
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

    fn failed(&mut self, path: &[u8], reason: &str) {
        self.report.failed += 1;
        let path = self.target.join(OsStr::from_bytes(path));
        self.store.observer().event(Event::NotRestored { path, reason: reason.to_owned() });
    }

    fn delete(&mut self, root: &ChunkId, options: &Options) -> Result<()> {
        for (path, reason) in std::mem::take(&mut self.extra.unseen) {
            self.report.not_deleted += 1;
            let path = self.target.join(OsStr::from_bytes(&path));
            self.store.observer().event(Event::NotDeleted { path, reason });
        }
        let Some(dir) = &self.dir else { return Ok(()) };
        for path in &self.extra.paths {
            self.git_caches.removed(&join(self.prefix, path));
        }
        let mut stale = self.git_caches.stale(dir.as_fd(), self.store, root, self.prefix, options);
        stale.retain(|path| !self.extra.paths.iter().any(|extra| is_within(path, extra)));
        for path in self.extra.paths.iter().chain(&stale) {
            self.report.deleted += 1;
            let path = self.target.join(OsStr::from_bytes(path));
            let note = format!("would delete {}", path.display());
            self.store.observer().event(Event::Note(note));
        }
        Ok(())
    }
}
