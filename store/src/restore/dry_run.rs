//! Dry run of a restore.

use super::borrowed::Alternates;
use super::content::with_content;
use super::delete::{Extra, LOST, extra};
use super::git_caches::GitCaches;
use super::passages::{self, Passages, not_replaced, note_kept};
use super::{
    Options, Report, Top, below_unmade, dir_in_the_way, fatal, join, reason_of, relative, selected,
};
use crate::access;
use crate::chunks::Chunks;
use crate::entry::{Content, Displayed, Entry, EntryKind, LinkKey, Xattrs, is_within};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::observe::{Event, Reason};
use crate::recipe::{Extent, Extents};
use crate::source::{self, Stat};
use crate::store::Store;
use crate::target::{self, Metadata, Refused, Rights, Trials};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

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
    trials: Trials,
    /// Directory of the last entry, with the nearest directory that is there.
    above: Option<(Vec<u8>, Rc<Above>)>,
    /// Directories whose mode hides their content from this dry run.
    hiding: HashSet<Vec<u8>>,
    /// Last directory that is only passed through and in whose place something else is.
    blocked: Option<Vec<u8>>,
    /// Last directory that the restore cannot make.
    unmade: Option<Vec<u8>>,
    links: HashMap<LinkKey, Link>,
    /// Bytes that the restore writes.
    needed_bytes: u64,
    alternates: Alternates,
    report: Report,
}

/// A directory of the target, open.
struct Above {
    dir: OwnedFd,
    stat: Stat,
}

/// A file with several names.
#[derive(Clone)]
struct Link {
    /// Path of the first name.
    first: Vec<u8>,
    /// Path of a copy on another mount, to which further names are linked.
    copy: Option<Vec<u8>>,
    /// Number of names to come.
    to_come: u64,
    /// True if the first name can be restored.
    is_restored: bool,
}

/// A directory where an entry of another type belongs.
#[derive(PartialEq, Eq)]
enum Obstacle {
    /// It is not empty, and some of its content stays.
    Kept,
    /// The mode of this directory hides whether it can be emptied. A restore opens it for a time.
    Unknown(Vec<u8>),
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
        trials: Trials::default(),
        above: None,
        hiding: HashSet::new(),
        blocked: None,
        unmade: None,
        links: HashMap::new(),
        needed_bytes: 0,
        alternates: Alternates::default(),
        report: Report::default(),
    };
    store.heed_checks(false)?;
    let _shared = store.index().reading();
    for item in selected(root, from, options, store) {
        store.observer().progress().check()?;
        match item {
            Ok(entry) if Some(relative(&entry.path, prefix)) == store_place => {}
            Ok(mut entry) => {
                options.owners.apply(&mut entry);
                run.take(&entry)?;
            }
            Err(lost) => {
                run.extra.is_lost = true;
                run.report.failed += lost.entries.unwrap_or(1).saturating_sub(1);
                run.report.has_uncounted |= lost.entries.is_none();
                run.failed(relative(lost.span.from(), prefix), reason_of(&lost));
            }
        }
    }
    run.delete(root, options)?;
    let needed = run.needed_bytes;
    if let Some(free) = free_bytes.filter(|free| *free < needed) {
        let target = target.displayed();
        let note =
            format!("{target}: {free} bytes are free; the restore writes up to {needed} bytes");
        store.observer().event(Event::Note(note));
    }
    run.report.borrowers = run.alternates.unmet(target, store, root, from, prefix, options);
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

impl Link {
    /// Returns the paths to which a further name is linked, the first attempt first.
    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.copy.iter().chain([&self.first]).map(|path| &path[..])
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
            return match dir
                .and_then(|dir| target::removal_refusal(dir.as_fd(), &path, &self.rights))
            {
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
        self.alternates.note(entry, self.store);
        let key = entry.link_key();
        let mut known = key.and_then(|key| self.known_link(entry, key));
        if let Some(link) = &mut known
            && link.is_restored
            && !self.can_be_linked(link, &path)
        {
            // The restore makes a copy, to which it links later names.
            link.is_restored = false;
            if let Some(link) = key.and_then(|key| self.links.get_mut(&key)) {
                link.copy = Some(path.clone());
            }
        }
        let obstacle = self.obstacle(&path);
        let is_in_the_way = obstacle == Some(Obstacle::Kept);
        let present = self.present(entry, &path, known.as_ref());
        let mut refused = if present.is_some() { None } else { self.refusal(entry, &path) };
        if present.is_none() && refused.is_none() && entry.kind == EntryKind::Symlink {
            let above = self.above(entry, &path);
            let made = above.map(|above| self.trials.make_symlink(above.dir.as_fd()));
            refused = made.and_then(std::result::Result::err).map(io::Error::from);
        }
        let is_restored = known.as_ref().is_some_and(|link| link.is_restored);
        let is_made = present.is_none() && refused.is_none() && !is_in_the_way && !is_restored;
        let lost = if is_made { self.need(entry).err() } else { None };
        if !is_restored
            && let Some(link) = key.and_then(|key| self.links.get_mut(&key))
            && link.copy.is_none()
        {
            link.is_restored = !is_in_the_way && refused.is_none() && lost.is_none();
            link.first.clone_from(&path);
        }
        if is_in_the_way {
            self.failed(&path, dir_in_the_way(self.is_delete));
        } else if let Some(error) = lost {
            self.failed(&path, &error);
        } else if let Some(Obstacle::Unknown(dir)) = obstacle {
            self.report.files_hidden += u64::from(entry.kind == EntryKind::File && !is_restored);
            self.note_hidden(dir, "looking whether the restore can replace a directory");
        } else if let Some(error) = refused {
            self.refused(&path, &error)?;
        } else if entry.kind != EntryKind::File || is_restored {
            self.report.others += 1;
            // Another name of a file has the metadata of the first.
            if !is_restored {
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
            return link.names().find_map(|name| self.same_object(name, path));
        }
        if entry.kind == EntryKind::File {
            let dir = self.dir.as_ref()?;
            let present = with_content(self.store, dir.as_fd(), path, entry, &self.rights);
            return Some(present?.stat);
        }
        let (open, stat) = self.look(path)?;
        target::is_same_thing(&open, &stat, entry).then_some(stat)
    }

    /// Returns the error of making an entry in place of the object that is there.
    fn refusal(&self, entry: &Entry, path: &[u8]) -> Option<io::Error> {
        if let Some(dir) = &self.dir {
            if let Some(error) = target::removal_refusal(dir.as_fd(), path, &self.rights) {
                return Some(error);
            }
            let parent = source::open_dir_below(dir.as_fd(), source::split(path).0);
            if entry.kind == EntryKind::File
                && parent.is_ok_and(|parent| target::is_append_only(parent.as_fd()))
            {
                return target::protection(dir.as_fd(), path);
            }
        }
        (!self.rights.may_make(entry)).then(|| Errno::PERM.into())
    }

    /// Returns the object at two paths, if it is the same.
    fn same_object(&self, a: &[u8], b: &[u8]) -> Option<Stat> {
        let inode = |stat: &Stat| (stat.device, stat.inode);
        let (a, b) = (self.look(a)?.1, self.look(b)?.1);
        (inode(&a) == inode(&b)).then_some(b)
    }

    /// Returns true if a path can become another name of a restored file.
    fn can_be_linked(&self, link: &Link, path: &[u8]) -> bool {
        let Some(dir) = &self.dir else { return true };
        link.names().any(|name| {
            let (is_elsewhere, is_protected) = (
                target::are_on_different_mounts(dir.as_fd(), name, path),
                target::is_protected(dir.as_fd(), name),
            );
            !is_elsewhere && !is_protected || self.same_object(name, path).is_some()
        })
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
            let note = format!("{}: would replace {kind} by a directory", shown.displayed());
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
            let to_come = names.saturating_sub(1);
            let link = Link { first, copy: None, to_come, is_restored: true };
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
        if let Some(dir) = self.hiding_dir(path) {
            self.report.files_hidden += 1;
            self.note_hidden(dir, "comparing the files in it");
            return;
        }
        self.count_new(entry, path);
        self.report.files_restored += 1;
        self.report.bytes_restored = self.report.bytes_restored.saturating_add(entry.size);
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
        let has_mode = |rights: &Rights, owner| {
            entry.kind == EntryKind::Symlink || stat.mode == rights.given_mode(owner, &wanted)
        };
        let has_time = entry.mtime.is_none_or(|mtime| target::is_held(mtime, stat));
        let dir = self.dir.as_ref();
        let present = dir.and_then(|dir| source::xattrs_below(dir.as_fd(), path).ok());
        let present = present.unwrap_or_else(|| entry.xattrs.clone());
        let has_xattrs = wanted.xattr_changes(&present).next().is_none();
        let wanted_owner = wanted.wanted_owner(is);
        if is == wanted_owner && has_mode(&self.rights, is) && has_time && has_xattrs {
            return;
        }
        let refusal =
            dir.and_then(|dir| target::metadata_refusal(dir.as_fd(), path, stat, &self.rights));
        let mut refused = Refused::default();
        let is_denied = self.count_xattrs(entry, path, &present, refusal, &mut refused);
        let Some(error) = refusal else {
            let owner = self.given_owner(entry, path, is, &wanted);
            self.count_denied(owner, &wanted);
            self.report.owners_to_set += u64::from(owner != is);
            if self.loses_rights(is, owner) {
                let mtime = entry.mtime.filter(|_| !has_time);
                note_lost_rights(&Entry { mtime, ..entry.clone() }, &mut refused);
            } else {
                self.report.modes_to_set += u64::from(!has_mode(&self.rights, owner));
            }
            let is_set = !has_xattrs && !is_denied && refused.is_empty();
            self.report.xattrs_to_set += u64::from(is_set);
            self.count_refused(path, &refused);
            return;
        };
        match error {
            Errno::ROFS if is != wanted_owner => refused.note("owner", &error.into()),
            Errno::ROFS => {}
            _ => self.count_denied(is, &wanted),
        }
        for (what, is_right) in [("mode", has_mode(&self.rights, is)), ("time", has_time)] {
            if !is_right {
                refused.note(what, &error.into());
            }
        }
        self.count_refused(path, &refused);
    }

    fn count_refused(&mut self, path: &[u8], refused: &Refused) {
        if refused.is_empty() {
            return;
        }
        self.report.metadata_refused += 1;
        let protection = self.dir.as_ref().and_then(|dir| target::protection(dir.as_fd(), path));
        let (path, reason) = (self.shown(path), refused.reason(protection.as_ref()));
        self.store.observer().event(Event::MetadataRefused { path, reason });
    }

    /// Counts changes of attributes that this user or the file system does not allow. `refusal` is
    /// the error of any change of the object. Returns true if there are such changes.
    fn count_xattrs(
        &mut self,
        entry: &Entry,
        path: &[u8],
        present: &Xattrs,
        refusal: Option<Errno>,
        refused: &mut Refused,
    ) -> bool {
        let is_root = rustix::process::geteuid().is_root();
        let metadata = Metadata::of(entry);
        let denied_before = self.report.xattr_denied;
        for (name, value) in metadata.xattr_changes(present) {
            let changed = match (refusal, value) {
                (Some(error), None) => Err(error),
                (refusal, value) => {
                    self.try_xattr(entry, path, name, value).and(refusal.map_or(Ok(()), Err))
                }
            };
            if let Err(error) = changed
                && !refused.note_xattr(name, error, is_root)
            {
                self.report.xattr_denied += 1;
            }
        }
        self.report.xattr_denied > denied_before
    }

    fn try_xattr(
        &mut self,
        entry: &Entry,
        path: &[u8],
        name: &[u8],
        value: Option<&[u8]>,
    ) -> rustix::io::Result<()> {
        match self.above(entry, path) {
            Some(above) => self.trials.change_xattr(above.dir.as_fd(), name, value),
            None => Ok(()),
        }
    }

    /// Counts the metadata of an object that will be made.
    fn count_new(&mut self, entry: &Entry, path: &[u8]) {
        let above = self.above(entry, path);
        let wanted = Metadata::of(entry);
        let is = self.rights.new_owner(above.as_deref().map(|above| &above.stat));
        let owner = self.given_owner(entry, path, is, &wanted);
        self.count_denied(owner, &wanted);
        let mut refused = Refused::default();
        if self.loses_rights(is, owner) {
            note_lost_rights(entry, &mut refused);
        } else if let Some(above) = above.filter(|_| entry.kind != EntryKind::Symlink)
            && let Err(error) =
                self.trials.set_mode(above.dir.as_fd(), self.rights.given_mode(owner, &wanted))
        {
            refused.note("mode", &error.into());
        }
        self.count_xattrs(entry, path, &Vec::new(), None, &mut refused);
        self.count_refused(path, &refused);
    }

    /// Returns true if this user may no longer set mode and times of an object that it gave away.
    /// Root without `CAP_FOWNER` may not.
    fn loses_rights(&self, is: (u32, u32), owner: (u32, u32)) -> bool {
        is != owner && self.rights.owns(is) && !self.rights.owns(owner)
    }

    /// Returns user and group of an object after a restore gave it this owner.
    fn given_owner(
        &mut self,
        entry: &Entry,
        path: &[u8],
        is: (u32, u32),
        wanted: &Metadata<'_>,
    ) -> (u32, u32) {
        let owner = self.rights.given_owner(is, wanted);
        let above = if owner == is { None } else { self.above(entry, path) };
        match above {
            Some(above) if self.trials.refuses_owner(above.dir.as_fd(), owner) => is,
            _ => owner,
        }
    }

    /// Counts an owner that this user may not set.
    fn count_denied(&mut self, owner: (u32, u32), wanted: &Metadata<'_>) {
        self.report.owner_denied += u64::from(owner != wanted.wanted_owner(owner));
    }

    /// Returns the nearest existing directory above an entry, or the directory of the entry itself.
    /// New directories take their group from it, too, if it has setgid.
    fn above(&mut self, entry: &Entry, path: &[u8]) -> Option<Rc<Above>> {
        let is_dir = entry.kind == EntryKind::Directory;
        let dir = if is_dir { path } else { source::split(path).0 };
        match &self.above {
            Some((known, above)) if known == dir => return Some(Rc::clone(above)),
            _ => {}
        }
        let above = Rc::new(self.nearest_dir(dir)?);
        self.above = Some((dir.to_vec(), Rc::clone(&above)));
        Some(above)
    }

    fn nearest_dir(&self, mut path: &[u8]) -> Option<Above> {
        loop {
            match self.look(path) {
                Some((dir, stat)) if stat.kind == EntryKind::Directory => {
                    return Some(Above { dir, stat });
                }
                _ if path.is_empty() => break,
                _ => path = source::split(path).0,
            }
        }
        let target = std::path::absolute(self.target).ok()?;
        target.ancestors().find_map(|dir| {
            let dir = source::open_dir(dir).ok()?;
            Some(Above { stat: source::stat_open(&dir).ok()?, dir })
        })
    }

    /// Returns the directory of this user whose mode hides an object from this dry run. A restore
    /// makes it accessible for a time.
    fn hiding_dir(&self, path: &[u8]) -> Option<Vec<u8>> {
        let dir = self.dir.as_ref()?;
        let flags = rustix::fs::OFlags::PATH;
        let is_hidden = |path: &[u8]| {
            let found = source::open_below(dir.as_fd(), path, flags);
            found.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        };
        let mut path = path;
        while is_hidden(path) && !path.is_empty() {
            path = source::split(path).0;
            if self.look(path).is_some_and(|(_, stat)| target::can_be_opened_up(&stat)) {
                return Some(path.to_vec());
            }
        }
        None
    }

    /// Like [`DryRun::hiding_dir`]; may also be the directory at this path.
    fn closed_dir(&self, path: &[u8]) -> Option<Vec<u8>> {
        let is_closed = |(_, stat): &(OwnedFd, Stat)| target::can_be_opened_up(stat);
        let closed = self.look(path).filter(is_closed).map(|_| path.to_vec());
        closed.or_else(|| self.hiding_dir(path))
    }

    /// Notes once that the mode of a directory hides what this work needs.
    fn note_hidden(&mut self, dir: Vec<u8>, work: &str) {
        if !self.hiding.contains(&dir) {
            self.note_hiding(&dir, work);
            self.hiding.insert(dir);
        }
    }

    fn note_hiding(&self, dir: &[u8], work: &str) {
        let dir = self.shown(dir);
        let note = format!("{}: its mode keeps this dry run from {work}", dir.displayed());
        self.store.observer().event(Event::Note(note));
    }

    /// Adds the bytes that a restore of an entry writes. Fails if the store lacks some of them.
    fn need(&mut self, entry: &Entry) -> Result<()> {
        self.needed_bytes = self.needed_bytes.saturating_add(bytes_to_write(self.store, entry)?);
        Ok(())
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

    /// Returns the directory that keeps the restore from an entry that is not a directory, or may
    /// do so.
    fn obstacle(&self, path: &[u8]) -> Option<Obstacle> {
        let dir = self.dir.as_ref()?;
        let open = match source::open_dir_below(dir.as_fd(), path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let (_, stat) = self.look(path)?;
                // Most file systems count the directories in a directory.
                let is_full = stat.kind == EntryKind::Directory && stat.names > 2;
                return if is_full && !self.is_delete {
                    Some(Obstacle::Kept)
                } else {
                    target::can_be_opened_up(&stat).then(|| Obstacle::Unknown(path.to_vec()))
                };
            }
            open => open.ok()?,
        };
        let names = source::names(open.as_fd()).unwrap_or_default();
        if names.is_empty() {
            return None;
        }
        if self.extra.gives_way(&join(self.prefix, path)) {
            let refusal = |name| target::tree_removal(open.as_fd(), name, &self.rights).err();
            let is_kept = names.iter().any(|(name, _)| refusal(name).is_some());
            return is_kept.then_some(Obstacle::Kept);
        }
        // A restore with --delete opens such directories and removes their content.
        let mut unseen = self.extra.unseen.iter().map(|(unseen, _)| unseen);
        let closed = unseen.find(|unseen| is_within(unseen, path));
        Some(
            closed
                .and_then(|unseen| self.closed_dir(unseen))
                .map_or(Obstacle::Kept, Obstacle::Unknown),
        )
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
        let mut closed_dirs = BTreeSet::new();
        for (path, reason) in std::mem::take(&mut self.extra.unseen) {
            match self.closed_dir(&path) {
                Some(dir) => drop(closed_dirs.insert(dir)),
                None => self.not_deleted(&path, reason),
            }
        }
        for dir in closed_dirs {
            self.note_hiding(&dir, "searching it for paths to delete");
        }
        if self.extra.is_lost && options.delete {
            self.not_deleted(b"", LOST);
            return Ok(());
        }
        let Some(dir) = self.dir.take() else { return Ok(()) };
        for path in &self.extra.paths {
            self.git_caches.removed(&join(self.prefix, path));
        }
        let mut stale = self.git_caches.stale(dir.as_fd(), self.store, root, self.prefix, options);
        stale.retain(|path| !self.extra.paths.iter().any(|extra| is_within(path, extra)));
        for path in std::mem::take(&mut self.extra.paths).iter().chain(&stale) {
            let count = match target::tree_removal(dir.as_fd(), path, &self.rights) {
                Ok(count) => count,
                Err(error) => {
                    self.not_deleted(path, &error);
                    continue;
                }
            };
            self.report.deleted += count;
            let path = self.shown(path);
            let all = if count > 1 { format!(" ({count} paths)") } else { String::new() };
            let note = format!("would delete {}{all}", path.displayed());
            self.store.observer().event(Event::Note(note));
        }
        Ok(())
    }
}

/// Notes the metadata of an entry that is set after its owner.
fn note_lost_rights(entry: &Entry, refused: &mut Refused) {
    let error = Errno::PERM.into();
    if entry.kind != EntryKind::Symlink {
        refused.note("mode", &error);
    }
    if entry.mtime.is_some() {
        refused.note("time", &error);
    }
}

/// Returns the number of bytes that a restore of an entry writes. Fails if the store lacks a chunk.
/// Reads only chunks in segments that are known to be damaged.
fn bytes_to_write(store: &Store, entry: &Entry) -> Result<u64> {
    let recipe = match &entry.content {
        Content::Empty => return Ok(0),
        Content::Inline(bytes) => return Ok(bytes.len() as u64),
        Content::Recipe(recipe) => recipe,
    };
    let mut bytes = 0u64;
    for extent in Extents::new(recipe, store) {
        let Extent::Slice { chunk, len, .. } = extent? else { continue };
        if !store.locate(&chunk)?.is_healthy {
            store.get(&chunk)?;
        }
        bytes = bytes.saturating_add(len);
    }
    Ok(bytes)
}
