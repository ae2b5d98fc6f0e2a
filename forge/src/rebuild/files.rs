//! Restores the files of parts to the places that they had.

use super::aside;
use super::part_links::{self, PartLink};
use super::record::{Aside, Losses, Mounts};
use super::{Job, shown_paths};
use crate::error::{Error, Result};
use crate::kind::Site;
use crate::links;
use crate::mounts;
use crate::overrides;
use crate::owners::Above;
use crate::plan::{Part, Phase, is_trusted};
use crate::session::relative;
use crate::sshd;
use crate::view::shown;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::backup::tree_path;
use store::entry::{Content, Entry, EntryKind, LinkKey};
use store::glob::{Globs, escape};
use store::observe::Event;
use store::owner_map::{OwnerMap, SystemAccounts, Unmatched};
use store::recipe::{Extent, Extents};
use store::restore::Options;
use store::skipped::Spared;
use store::tree::{Lookup, TreeReader};

/// Source of the rules for owners, in messages.
const OF_KIND: &str = "owners of the kind";
/// Part with the host keys of sshd. The other files of the directory are settings of this machine.
const SSH: &str = "ssh-host-keys";
/// End of the names of parts with files that a configuration names.
const NAMED_FILES: &str = "named-files";
/// Files and directories that belong to a machine, below its root.
const OF_MACHINE: [&str; 22] = [
    "etc/adjtime",
    "etc/crypttab",
    "etc/fstab",
    "etc/group",
    "etc/gshadow",
    "etc/hostname",
    "etc/hosts",
    "etc/localtime",
    "etc/machine-id",
    "etc/mtab",
    "etc/netplan",
    "etc/network",
    "etc/os-release",
    "etc/passwd",
    "etc/resolv.conf",
    "etc/shadow",
    "etc/sudoers",
    "etc/sudoers.d",
    "etc/systemd",
    "etc/timezone",
    "usr/lib/os-release",
    "var/lib/dbus/machine-id",
];
/// Space that a file or directory takes besides its content, in bytes.
const ENTRY_BYTES: u64 = 4096;

/// Paths to restore, none of which is within another.
#[derive(Debug, Default)]
pub struct Files {
    paths: Vec<PathBuf>,
    /// Links that lead to data of parts, also those within the paths.
    links: Vec<PartLink>,
    /// Directories within the paths whose content is not restored.
    without: Vec<PathBuf>,
}

impl Files {
    /// Returns the outermost paths of some parts that the snapshot has.
    pub fn of(job: &Job<'_>, is_wanted: impl Fn(&Part) -> bool) -> Files {
        let root = job.snapshot.root.chunk();
        let parts: Vec<&Part> = job.manifest.parts.iter().filter(|part| is_wanted(part)).collect();
        let mut paths: Vec<PathBuf> = Vec::new();
        let machine = &job.settings.root;
        let of_sshd = sshd::with_ends(&machine.join(sshd::DIR), machine, &root, job.store);
        for part in &parts {
            for path in &part.paths {
                let path_in_tree = tree_path(path);
                let is_of_sshd = of_sshd.contains(path);
                if !is_of_sshd && of_sshd.iter().any(|dir| path.starts_with(dir)) {
                    let name = path.file_name().unwrap_or_default().as_bytes();
                    paths.extend(name.starts_with(sshd::HOST_KEY).then(|| path.clone()));
                } else if part.name == SSH || is_of_sshd {
                    let entries = store::tree::children(&root, &path_in_tree, job.store).flatten();
                    let keys = entries.filter(|entry| {
                        let name = entry.path.rsplit(|byte| *byte == b'/').next();
                        name.is_some_and(|name| name.starts_with(sshd::HOST_KEY))
                    });
                    let names = keys.map(|entry| absolute(&entry.path));
                    paths.extend(names);
                    paths.extend(is_file(job, path).then(|| path.clone()));
                } else if is_of_machine(job, part, path) {
                    continue;
                } else if TreeReader::within(&root, &path_in_tree, job.store).next().is_some() {
                    paths.push(path.clone());
                }
            }
        }
        paths.sort();
        paths.dedup();
        let all = paths.clone();
        paths.retain(|path| !all.iter().any(|other| other != path && path.starts_with(other)));
        let links = part_links::read(job, &parts);
        Files { paths, links, without: Vec::new() }
    }

    /// Returns those of some paths that the snapshot has.
    pub fn there(job: &Job<'_>, mut paths: Vec<PathBuf>) -> Files {
        let root = job.snapshot.root.chunk();
        let is_there = |path: &PathBuf| {
            TreeReader::within(&root, &tree_path(path), job.store).next().is_some()
        };
        paths.retain(is_there);
        Files { paths, ..Files::default() }
    }

    /// Returns those of the paths, or the paths within them, that lie on a file system mounted at
    /// `mount`.
    pub fn on(&self, job: &Job<'_>, mount: &Path) -> Result<Files> {
        let mut paths = Vec::new();
        for path in &self.paths {
            let place = place(job, path)?;
            if place.starts_with(mount) {
                paths.push(path.clone());
            } else if let Ok(inner) = mount.strip_prefix(&place) {
                paths.push(path.join(inner));
            }
        }
        Ok(Files::there(job, paths))
    }

    /// Returns those of some mount points at or below which files are restored, whatever is mounted.
    pub fn having_files<'m>(
        &self,
        job: &Job<'_>,
        mounts: impl Iterator<Item = &'m PathBuf>,
    ) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let root = job.snapshot.root.chunk();
        for mount in mounts {
            let has_files = |path: &PathBuf| {
                // The restore reports a lost part of the tree.
                let mut entries = TreeReader::within(&root, &tree_path(path), job.store).flatten();
                entries.any(|entry| entry.kind != EntryKind::Directory)
            };
            if self.on(job, mount)?.paths.iter().any(has_files) {
                found.push(mount.clone());
            }
        }
        Ok(found)
    }

    /// Returns the places of the paths on this machine.
    pub fn places(&self, job: &Job<'_>) -> Result<Vec<PathBuf>> {
        self.paths.iter().map(|path| place(job, path)).collect()
    }

    /// Returns the same without what lies on these file systems.
    pub fn without(&self, job: &Job<'_>, mounts: &[PathBuf]) -> Result<Files> {
        let mut without = Vec::new();
        for mount in mounts {
            without.extend(self.on(job, mount)?.paths);
        }
        let paths = self.paths.iter().filter(|path| !without.contains(path)).cloned().collect();
        Ok(Files { paths, links: self.links.clone(), without })
    }

    /// Returns the first of the paths with a name, or the path of that name in one of them.
    pub fn named(&self, job: &Job<'_>, name: &str) -> Option<PathBuf> {
        let is_file = |path: &PathBuf| is_file(job, path);
        let own = self.paths.iter().filter(|path| path.file_name() == Some(OsStr::new(name)));
        let inner = self.paths.iter().map(|path| path.join(name));
        own.cloned().chain(inner).find(is_file)
    }

    /// Returns the first file that lies directly in a directory.
    pub fn in_dir(&self, dir: &Path) -> Option<PathBuf> {
        let mut files =
            self.paths.iter().filter(|path| path.parent() == Some(dir) && path.is_file());
        files.next().cloned()
    }

    /// Returns the paths.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Returns the directory of the first path.
    pub fn dir(&self) -> Option<&Path> {
        self.paths.first()?.parent()
    }

    /// Returns true if there is nothing to restore.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Formats some of the paths.
    pub fn shown(&self) -> String {
        shown_paths(&self.paths)
    }

    /// Returns files of this machine that the backup skipped and that move with a directory, up to
    /// `count_max`.
    pub fn skipped_files(
        &self,
        job: &Job<'_>,
        planned: &[Aside],
        count_max: usize,
    ) -> Result<Vec<PathBuf>> {
        let Some(spared) = spared(job)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for path in &self.paths {
            let real = place(job, path)?;
            let is_moved = planned.iter().any(|aside| aside.from.starts_with(&real));
            if is_moved && found.len() < count_max {
                let left = count_max - found.len();
                let progress = job.store.observer().progress();
                found.extend(aside::skipped_files(&real, path, &spared, left, progress)?);
            }
        }
        Ok(found)
    }

    /// Returns what is at the paths now and has to move.
    pub fn asides(&self, job: &Job<'_>, suffix: &str) -> Result<Vec<Aside>> {
        let progress = job.store.observer().progress();
        let spared = spared(job)?;
        let volumes = volumes(job);
        let (own, all) = (mounts::all()?, mounts::of_all_namespaces()?);
        let plan = |path: &PathBuf| {
            let real = place(job, path)?;
            let followed = mounts::seen_elsewhere(&real, &own, &all);
            let volumes: Vec<PathBuf> = volumes.iter().cloned().chain(followed).collect();
            let kept = match &spared {
                None => Vec::new(),
                Some(spared) => aside::spared_below(&real, path, spared, progress)?,
            };
            aside::plan(&real, suffix, &kept, &volumes, progress)
        };
        let planned = self.paths.iter().map(plan);
        let mut planned = planned.collect::<Result<Vec<_>>>()?.concat();
        for link in &self.links {
            let place = link.place(job)?;
            if !planned.iter().any(|aside| place.starts_with(&aside.from)) {
                planned.extend(link.aside(job, suffix)?);
            }
        }
        Ok(planned)
    }

    /// Returns the links that this machine lacks, without those within restored paths.
    pub fn lacking_links(&self, job: &Job<'_>) -> Result<Vec<&PartLink>> {
        let mut lacking = Vec::new();
        for link in &self.links {
            let is_within = self.paths.iter().any(|path| link.path.starts_with(path));
            if !is_within && link.is_lacking(job)? {
                lacking.push(link);
            }
        }
        Ok(lacking)
    }

    /// Returns the number of entries and their bytes.
    pub fn size(&self, job: &Job<'_>) -> Result<(u64, u64)> {
        let (mut space, mut sum) = (Space::new(job, false), (0, 0u64));
        for path in &self.paths {
            space.each(path, |_, bytes| sum = (sum.0 + 1, sum.1.saturating_add(bytes)))?;
        }
        Ok(sum)
    }

    /// Restores the paths. Returns a description of the result, and the losses.
    pub fn restore(&self, job: &Job<'_>) -> Result<(String, Losses)> {
        let globs = |paths: &[PathBuf]| {
            let patterns: Vec<Vec<u8>> = paths.iter().map(|path| escape(path)).collect();
            Globs::new(patterns.iter().map(Vec::as_slice))
        };
        // A link of this machine stays, and the place that it leads to gets the data.
        let (mut direct, mut linked) = (Vec::new(), Vec::new());
        let paths = self.paths.iter().map(|path| Ok((path, place(job, path)?)));
        let links = self.lacking_links(job)?;
        let links = links.iter().map(|link| Ok((&link.path, link.place(job)?)));
        for wanted in paths.chain(links).collect::<Result<Vec<_>>>()? {
            match wanted {
                (path, place) if place == *path => direct.push(path.clone()),
                (path, place) => linked.push((path.clone(), place)),
            }
        }
        let root = job.snapshot.root.chunk();
        let (mut totals, mut losses) = ((0, 0), Losses::default());
        let without: Vec<Vec<u8>> =
            self.without.iter().map(|dir| store::glob::within(dir, b"*")).collect();
        let mut restored = |from: &[u8], target: &Path, include: Globs| -> Result<()> {
            let exclude = Globs::new(without.iter().map(Vec::as_slice))?;
            let options = Options { include, exclude, ..options(job)? };
            let report = store::restore::restore(job.store, &root, from, target, &options)?;
            losses.paths += report.failed;
            losses.metadata += report.metadata_refused;
            losses.owners += report.owner_denied;
            totals.0 += report.files_restored + report.files_unchanged;
            totals.1 += report.bytes_restored;
            Ok(())
        };
        if !direct.is_empty() {
            restored(b"", Path::new("/"), globs(&direct)?)?;
        }
        for (path, place) in linked {
            // A file is put into the directory.
            let target =
                if is_file(job, &path) { place.parent().unwrap_or(&place) } else { &place };
            restored(&tree_path(&path), target, Globs::default())?;
        }
        self.sync(job)?;
        let bytes = mebibytes(totals.1);
        let mut text = format!("restored {} files ({bytes}) to {}", totals.0, self.shown());
        for loss in losses.described() {
            text += "; ";
            text += &loss;
        }
        Ok((text, losses))
    }

    /// Makes the restored data durable on each file system: the record says next that it is there.
    fn sync(&self, job: &Job<'_>) -> Result<()> {
        let dirs = self.links.iter().filter_map(|link| link.path.parent());
        for path in self.paths.iter().map(PathBuf::as_path).chain(dirs) {
            let place = place(job, path)?;
            // A damaged file may be missing.
            let Some(path) = place.ancestors().find(|above| above.is_dir()) else { continue };
            let failed = |source| Error::Write { path: path.to_owned(), source };
            let open = File::open(path).map_err(failed)?;
            rustix::fs::syncfs(&open).map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }
}

/// Returns files of this machine that a configuration reads, and that stay as they are.
pub fn of_machine(job: &Job<'_>) -> Vec<PathBuf> {
    let paths =
        job.manifest.parts.iter().flat_map(|part| part.paths.iter().map(move |path| (part, path)));
    let own = paths.filter(|(part, path)| is_of_machine(job, part, path));
    own.map(|(_, path)| path.clone()).collect()
}

/// Returns true for a file of the system that a configuration only reads: that of another machine
/// would keep this one from its name or its disks.
fn is_of_machine(job: &Job<'_>, part: &Part, path: &Path) -> bool {
    let Ok(inner) = path.strip_prefix(&job.settings.root) else { return false };
    part.name.ends_with(NAMED_FILES) && OF_MACHINE.iter().any(|known| inner.starts_with(known))
}

/// Restores the paths of some files below a directory, for a look at them.
pub fn restore_below(job: &Job<'_>, all: &[&Files], dir: &Path) -> Result<()> {
    let patterns = all.iter().flat_map(|files| &files.paths).map(|path| escape(path));
    let patterns: Vec<Vec<u8>> = patterns.collect();
    if patterns.is_empty() {
        return Ok(());
    }
    let include = Globs::new(patterns.iter().map(Vec::as_slice))?;
    let root = job.snapshot.root.chunk();
    let options = Options { include, ..options(job)? };
    store::restore::restore(job.store, &root, b"", dir, &options)?;
    Ok(())
}

/// Restores a file under another path. Another file of its old name there must have moved.
pub fn restore_as(job: &Job<'_>, from: &Path, to: &Path) -> Result<(String, Losses)> {
    let (Some(dir), Some(name)) = (to.parent(), from.file_name()) else {
        return Ok((String::new(), Losses::default()));
    };
    let dir = place(job, dir)?;
    let options = options(job)?;
    let root = job.snapshot.root.chunk();
    let report = store::restore::restore(job.store, &root, &tree_path(from), &dir, &options)?;
    let (old, new) = (dir.join(name), to.file_name().map_or(dir.clone(), |name| dir.join(name)));
    let failed = |source| Error::Write { path: new.clone(), source };
    if old != new && report.failed == 0 {
        std::fs::rename(&old, &new).map_err(failed)?;
    }
    File::open(&dir).and_then(|dir| Ok(rustix::fs::syncfs(&dir)?)).map_err(failed)?;
    let losses = Losses {
        paths: report.failed,
        metadata: report.metadata_refused,
        owners: report.owner_denied,
    };
    Ok((format!("restored {} as {}", shown(from), shown(to)), losses))
}

/// Returns the options of all restores.
fn options(job: &Job<'_>) -> Result<Options> {
    Ok(Options {
        include: Globs::default(),
        include_each: Vec::new(),
        exclude: Globs::default(),
        delete: false,
        sources: job.snapshot.paths.iter().map(|path| tree_path(&absolute(path))).collect(),
        keep: Spared::default(),
        owners: Arc::new(owners(job)?),
        owner_record: None,
        ends_at_write_errors: true,
        is_dry: false,
    })
}

/// Returns what the backup skipped and a rebuild leaves in place; `None` if that is nothing.
fn spared(job: &Job<'_>) -> Result<Option<Spared>> {
    // A product makes again what its kind skips.
    let is_product = crate::kind::find(&job.manifest.kind).is_none_or(|kind| kind.is_product());
    if is_product {
        let excluded = excluded_by_settings(job)?;
        return Ok((!excluded.is_empty()).then(|| excluded.into()));
    }
    let named = job.snapshot.paths.iter().map(|path| tree_path(&absolute(path)));
    Ok(Some(Spared::of(&job.snapshot.excludes, &job.snapshot.skipped, named)?))
}

/// Returns the patterns of the configuration, with which the admin keeps data of a product out of
/// backups.
fn excluded_by_settings(job: &Job<'_>) -> Result<Globs> {
    let mut patterns: Vec<Vec<u8>> = Vec::new();
    patterns.extend(job.settings.exclude.iter().map(|glob| glob.clone().into_bytes()));
    for part in &job.manifest.parts {
        let Some(settings) = job.settings.parts.get(&part.name) else { continue };
        for path in &part.paths {
            let within = |glob: &String| store::glob::within(path, relative(glob, path));
            patterns.extend(settings.exclude.iter().map(within));
        }
    }
    Ok(Globs::new(patterns.iter().map(Vec::as_slice))?)
}

/// Formats a number of bytes.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Returns the volumes of a container that stays up. Its mounts follow a directory that is renamed.
fn volumes(job: &Job<'_>) -> Vec<PathBuf> {
    let Job { instance, settings, store, .. } = *job;
    let kind = crate::kind::find(&settings.kind);
    if !kind.is_some_and(|kind| kind.rebuilding().is_container_up) {
        return Vec::new();
    }
    let progress = store.observer().progress();
    let site = Site { instance, settings, progress, is_offline: true };
    // The plan fails while no container runs.
    let plan = overrides::plan(&site);
    let volumes = plan.map(|(plan, _)| plan.volumes).unwrap_or_default();
    let paths = volumes.into_iter().map(|volume| volume.path);
    paths.map(|path| path.canonicalize().unwrap_or(path)).collect()
}

/// Returns the place of a path of the tree.
pub fn absolute(path: &[u8]) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path))
}

/// Returns the paths of a part that the snapshot has and a rebuild restores as files.
pub fn restored_paths(job: &Job<'_>, part: &Part) -> Vec<PathBuf> {
    if part.name == SSH || part.phase == Phase::RedisFiles {
        return Vec::new();
    }
    let root = job.snapshot.root.chunk();
    let is_restored = |path: &&PathBuf| {
        !is_of_machine(job, part, path)
            && TreeReader::within(&root, &tree_path(path), job.store).next().is_some()
    };
    part.paths.iter().filter(is_restored).cloned().collect()
}

/// Returns true if the snapshot has a directory at a path.
pub fn is_dir(job: &Job<'_>, path: &Path) -> bool {
    kind(job, path) == Some(EntryKind::Directory)
}

/// Returns true if the snapshot has a path that is not a directory.
fn is_file(job: &Job<'_>, path: &Path) -> bool {
    kind(job, path).is_some_and(|kind| kind != EntryKind::Directory)
}

/// Returns the kind of a path in the snapshot. `None` for a lost part of the tree, which the restore
/// reports.
fn kind(job: &Job<'_>, path: &Path) -> Option<EntryKind> {
    let root = job.snapshot.root.chunk();
    let first = TreeReader::within(&root, &tree_path(path), job.store).next()?;
    first.ok().map(|entry| entry.kind)
}

/// Follows the links of this machine on a path, as the instance would. Fails if a service could have
/// made one of them.
pub fn place(job: &Job<'_>, path: &Path) -> Result<PathBuf> {
    let unread = |source| Error::Read { path: path.to_owned(), source };
    let real = links::follow(&job.settings.root, path).map_err(unread)?;
    match real.links.into_iter().find(|link| !is_trusted(link, &real.path)) {
        Some(link) => Err(Error::UntrustedLink { link, end: real.path }),
        None => Ok(real.path),
    }
}

/// Sums up the space of entries.
struct Space<'a> {
    job: &'a Job<'a>,
    /// True if the holes of all files are looked up, which reads the recipes of large ones.
    is_exact: bool,
    /// Files with several names that are counted.
    linked: HashSet<LinkKey>,
}

impl<'a> Space<'a> {
    fn new(job: &'a Job<'a>, is_exact: bool) -> Space<'a> {
        Space { job, is_exact, linked: HashSet::new() }
    }

    /// Returns the bytes of an entry; 0 for a further name of a file.
    fn bytes(&mut self, entry: &Entry) -> u64 {
        let is_counted = entry.kind != EntryKind::File
            || entry.link_key().is_some_and(|key| !self.linked.insert(key));
        match &entry.content {
            _ if is_counted => 0,
            Content::Recipe(recipe) if recipe.level == 0 || self.is_exact => {
                // The restore reports a lost part of a recipe.
                let extents = Extents::new(recipe, self.job.store).flatten();
                let slices = extents.filter(|extent| matches!(extent, Extent::Slice { .. }));
                slices.fold(0, |sum, slice| sum.saturating_add(slice.len()))
            }
            _ => entry.size,
        }
    }

    /// Calls a function with each entry at or below a path, and with its bytes.
    fn each(&mut self, path: &Path, mut take: impl FnMut(&Entry, u64)) -> Result<()> {
        let root = self.job.snapshot.root.chunk();
        // The restore reports a lost part of the tree.
        for entry in TreeReader::within(&root, &tree_path(path), self.job.store).flatten() {
            self.job.store.observer().progress().check()?;
            let bytes = self.bytes(&entry);
            take(&entry, bytes);
        }
        Ok(())
    }
}

/// Returns the rules for owners: those of the kind, else the account of the same name, or for the
/// accounts of a container the same number. Fails if an account does not exist.
pub fn owners(job: &Job<'_>) -> Result<OwnerMap> {
    let is_of_container = job.manifest.product.image.is_some();
    let unmatched = if is_of_container { Unmatched::ByNumber } else { Unmatched::ByName };
    let mut map = OwnerMap::new(unmatched, Box::new(SystemAccounts));
    // Files of a part without a known owner go to the account of the same name, unless the rules of
    // an outer part would reach them.
    let parts = &job.manifest.parts;
    let owned = parts.iter().filter(|part| part.owner.is_some()).flat_map(|part| &part.paths);
    let owned: Vec<&PathBuf> = owned.collect();
    let is_within = |path: &PathBuf| owned.iter().any(|outer| path.starts_with(outer));
    let wanted =
        parts.iter().filter(|part| part.owner.is_some() || part.paths.iter().any(is_within));
    let wanted: Vec<Part> = wanted.cloned().collect();
    let root = job.snapshot.root.chunk();
    let entry = |path: &Path| Lookup::new(&root, job.store).at(&tree_path(path)).ok().flatten();
    let above = Above { top: None, entry: &entry };
    map.add_file(OF_KIND, &crate::owners::rules(&wanted, &above))?;
    Ok(map)
}

/// Fails if a file system or an attribute does not let root change a path or what has to move. Dry
/// runs of other users do not know.
pub fn expect_writable(job: &Job<'_>, all: &[&Files], planned: &[Aside]) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let check = |place: &Path| {
        let denied =
            |error: Errno| Error::NotWritable { place: place.to_owned(), source: error.into() };
        access(place, Access::WRITE_OK).map_err(denied)
    };
    for aside in planned {
        if !aside.from.is_symlink() {
            check(&aside.from)?;
        }
        // The name is in the directory around it, unless only the content moves.
        aside.from.parent().filter(|_| !aside.is_mount).map_or(Ok(()), check)?;
    }
    for path in all.iter().flat_map(|files| &files.paths) {
        let place = self::place(job, path)?;
        place.ancestors().find(|above| above.exists()).map_or(Ok(()), check)?;
    }
    Ok(())
}

/// Returns the mount points that hold the paths, and those below the paths.
pub fn mounts_of(job: &Job<'_>, all: &[&Files]) -> Result<Mounts> {
    let mounts = mounts::paths()?;
    let mut found = BTreeSet::new();
    for path in all.iter().flat_map(|files| &files.paths) {
        let real = self::place(job, path)?;
        // Also outer ones: the inner may be unmounted with the services.
        found.extend(mounts.iter().filter(|mount| real.starts_with(mount)).cloned());
        found.extend(mounts.iter().filter(|mount| mount.starts_with(&real)).cloned());
    }
    Ok(found.into_iter().map(|path| (path.clone(), mounts::identity(&path))).collect())
}

/// Fails if a file that is a mount point would have to be replaced by one with other content.
pub fn expect_replaceable(job: &Job<'_>, all: &[&Files]) -> Result<()> {
    let mounts = mounts::paths()?;
    let root = job.snapshot.root.chunk();
    for path in all.iter().flat_map(|files| &files.paths) {
        let real = self::place(job, path)?;
        for mount in mounts.iter().filter(|mount| !mount.is_dir()) {
            let Ok(rest) = mount.strip_prefix(&real) else { continue };
            // Without the slash that an empty path adds.
            let known: PathBuf = path.join(rest).components().collect();
            // The restore reports a lost part of the tree.
            let entry = Lookup::new(&root, job.store).at(&tree_path(&known));
            let Ok(Some(entry)) = entry else { continue };
            if !has_content_of(job, mount, &entry)? {
                return Err(Error::MountedFile { path: mount.clone() });
            }
        }
    }
    Ok(())
}

/// Returns true if a file has the content of an entry, also if that is damaged in the store.
fn has_content_of(job: &Job<'_>, path: &Path, entry: &Entry) -> Result<bool> {
    let unread = |source| Error::Read { path: path.to_owned(), source };
    let metadata = path.metadata().map_err(unread)?;
    if !metadata.is_file() || entry.kind != EntryKind::File || metadata.len() != entry.size {
        return Ok(false);
    }
    let mut comparison = Comparison { file: File::open(path).map_err(unread)? };
    Ok(store::dump::dump(job.store, entry, &mut comparison).map_or(true, |same| same.is_ok()))
}

/// Accepts the content of a file, and fails at the first difference.
struct Comparison {
    file: File,
}

impl Write for Comparison {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut here = vec![0; bytes.len()];
        self.file.read_exact(&mut here)?;
        match here == bytes {
            true => Ok(bytes.len()),
            false => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns the space that files need on each file system, by its device, with a directory there.
fn needs(job: &Job<'_>, all: &[&Files], is_exact: bool) -> Result<BTreeMap<u64, (PathBuf, u64)>> {
    let mut systems: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    let mut space = Space::new(job, is_exact);
    let mounts = mounts::paths()?;
    for path in all.iter().flat_map(|files| &files.paths) {
        let real = self::place(job, path)?;
        let Some(place) = real.ancestors().find(|above| above.exists()) else { continue };
        // Some directories may be on disks of their own.
        let inner: Vec<&PathBuf> = mounts.iter().filter(|mount| mount.starts_with(&real)).collect();
        let mut add = |place: &Path, bytes: u64| {
            let Ok(metadata) = place.metadata() else { return };
            let system = systems.entry(metadata.dev()).or_insert((place.to_owned(), 0));
            system.1 = system.1.saturating_add(bytes);
        };
        let mut sums = vec![0u64; inner.len() + 1];
        space.each(path, |entry, bytes| {
            let bytes = bytes.saturating_add(ENTRY_BYTES);
            let known = absolute(&entry.path);
            let here = real.join(known.strip_prefix(path).unwrap_or(&known));
            // The paths are sorted, so the last one is the innermost.
            let at = inner.iter().rposition(|mount| here.starts_with(mount));
            let sum = &mut sums[at.map_or(0, |at| at + 1)];
            *sum = sum.saturating_add(bytes);
        })?;
        add(place, sums[0]);
        inner.iter().zip(&sums[1..]).for_each(|(mount, sum)| add(mount, *sum));
    }
    Ok(systems)
}

/// Returns descriptions of accounts whose numbers belong to others here, so that these get the files.
pub fn foreign_accounts(job: &Job<'_>, all: &[&Files]) -> Result<Vec<String>> {
    let (owners, root) = (owners(job)?, job.snapshot.root.chunk());
    for path in all.iter().flat_map(|files| &files.paths) {
        // The restore reports a lost part of the tree.
        for mut entry in TreeReader::within(&root, &tree_path(path), job.store).flatten() {
            job.store.observer().progress().check()?;
            owners.apply(&mut entry);
        }
    }
    let disagreements = owners.usage().disagreements;
    let described = disagreements.into_iter().filter_map(|of| {
        let (word, name, number, entries) = (of.class.word(), of.name, of.number, of.entries);
        let here = of.name_here?;
        Some(format!(
            "{word} {name} is missing here, and its number {number} belongs to {here}: {entries} entries"
        ))
    });
    Ok(described.collect())
}

/// Returns the free space of the file system with a directory, in bytes.
fn free_at(place: &Path) -> Result<u64> {
    let unread = |error: Errno| Error::Read { path: place.to_owned(), source: error.into() };
    let system = rustix::fs::statvfs(place).map_err(unread)?;
    Ok(system.f_bavail.saturating_mul(system.f_frsize))
}

/// Fails if a file system has too little space. Returns a note for each file system.
pub fn expect_space(job: &Job<'_>, all: &[&Files]) -> Result<Vec<String>> {
    let mut systems = needs(job, all, false)?;
    let lacks = |(place, needed): &(PathBuf, u64)| Ok(free_at(place)? < *needed);
    if systems.values().map(lacks).collect::<Result<Vec<bool>>>()?.contains(&true) {
        systems = needs(job, all, true)?;
    }
    let mut notes = Vec::new();
    for (place, needed) in systems.into_values() {
        let free = free_at(&place)?;
        if free < needed {
            return Err(Error::NoSpaceFor { place, needed, free });
        }
        let (needed, free) = (mebibytes(needed), mebibytes(free));
        notes.push(format!("{needed} needed and {free} free at {}", shown(&place)));
    }
    if job.snapshot.statistics.metadata_unreadable > 0 {
        let text = "the backup could not read some metadata; see `forgekeep inspect`";
        job.store.observer().event(Event::Warning(text.into()));
    }
    Ok(notes)
}
