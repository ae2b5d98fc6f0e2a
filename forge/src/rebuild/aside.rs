//! Moves data of this machine out of the way of a rebuild. Nothing is deleted.

use super::record::{Aside, Record};
use crate::error::{Error, Result};
use crate::file;
use crate::mounts::{self, Place};
use crate::set_aside;
use crate::view::shown;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, DirEntry};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use store::backup::tree_path;
use store::observe::Progress;
use store::skipped::Spared;

/// Most bytes of a name, where the file system does not tell.
const NAME_BYTES_MAX: usize = 255;
/// A name that only patterns for all names match.
const ANY_NAME: &str = "any name";
/// Directory that file systems make for themselves.
const LOST_AND_FOUND: &str = "lost+found";

/// Returns true if an entry of a directory that stays is not moved: its file system needs it, or an
/// earlier rebuild made it.
pub fn is_kept(name: &OsStr) -> bool {
    name == LOST_AND_FOUND || set_aside::is_name(name)
}

/// Plans to move what is at a path. There is nothing to move if nothing is there, or only directories,
/// which a package makes.
///
/// Mount points stay where they are, also below the path: their content moves within them. The
/// directories `volumes` count as mount points. The directories `kept` stay as they are.
pub fn plan(
    path: &Path,
    suffix: &str,
    kept: &[PathBuf],
    volumes: &[PathBuf],
    progress: &Progress,
) -> Result<Vec<Aside>> {
    let mut planned = Vec::new();
    let mut mounts = mounts::paths()?;
    mounts.extend(volumes.iter().cloned());
    // A file that is a mount point cannot move, and its content may stay (`expect_replaceable`).
    let files = mounts.iter().filter(|mount| mount.starts_with(path) && !mount.is_dir());
    let kept: Vec<PathBuf> = kept.iter().chain(files).cloned().collect();
    let fixed = Fixed { mounts: &mounts, kept: &kept };
    add(path, fixed, suffix, progress, &mut planned)?;
    Ok(planned)
}

/// Returns the directories at or below a path that the backup skipped, such as that of a running
/// database server. The snapshot calls the path `known`.
pub fn spared_below(
    path: &Path,
    known: &Path,
    spared: &Spared,
    progress: &Progress,
) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    each_below(path, known, progress, |item, known, is_dir| {
        // A pattern such as `cache/**` skips all content of a directory.
        let is_skipped = is_dir
            && (spared.covers(&tree_path(known))
                || spared.covers(&tree_path(&known.join(ANY_NAME))) && !is_empty(&item.path()));
        if is_skipped {
            found.push(item.path());
        }
        ControlFlow::Continue(!is_skipped)
    })?;
    Ok(found)
}

/// Calls `take` with each object below a path, its path in the snapshot, which calls the path `known`,
/// and true for a directory. It tells whether a directory is entered, or ends the walk.
fn each_below(
    path: &Path,
    known: &Path,
    progress: &Progress,
    mut take: impl FnMut(&DirEntry, &Path, bool) -> ControlFlow<(), bool>,
) -> Result<()> {
    let mut dirs = vec![(path.to_owned(), known.to_owned())];
    while let Some((dir, known)) = dirs.pop() {
        progress.check()?;
        // What cannot be listed is reported when it has to move.
        for item in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let known = known.join(item.file_name());
            let is_dir = item.file_type().is_ok_and(|kind| kind.is_dir());
            match take(&item, &known, is_dir) {
                ControlFlow::Break(()) => return Ok(()),
                ControlFlow::Continue(true) if is_dir => dirs.push((item.path(), known)),
                ControlFlow::Continue(_) => {}
            }
        }
    }
    Ok(())
}

/// Returns files below a path that the backup skipped, without those in skipped directories, up to
/// `count_max`. The snapshot calls the path `known`.
pub fn skipped_files(
    path: &Path,
    known: &Path,
    spared: &Spared,
    count_max: usize,
    progress: &Progress,
) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    each_below(path, known, progress, |item, known, is_dir| {
        let is_skipped = spared.covers(&tree_path(known));
        if is_skipped && !is_dir {
            found.push(item.path());
        }
        if found.len() >= count_max {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(!is_skipped && !is_kept(&item.file_name()))
    })?;
    Ok(found)
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Directories that cannot move, or must not.
#[derive(Clone, Copy)]
struct Fixed<'a> {
    /// Mount points, whose content moves.
    mounts: &'a BTreeSet<PathBuf>,
    /// Directories that stay as they are.
    kept: &'a [PathBuf],
}

impl Fixed<'_> {
    /// Returns true if a path stays, because it is one of them or has one below it.
    fn holds(self, path: &Path) -> bool {
        stays(path, self.mounts) || self.kept.iter().any(|kept| kept.starts_with(path))
    }
}

fn add(
    path: &Path,
    fixed: Fixed<'_>,
    suffix: &str,
    progress: &Progress,
    planned: &mut Vec<Aside>,
) -> Result<()> {
    let unread = |source| Error::Read { path: path.to_owned(), source };
    let metadata = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(unread)?,
    };
    if fixed.kept.iter().any(|kept| kept == path) {
        return Ok(());
    }
    if metadata.is_dir() && !has_content(path, fixed.kept, progress)? {
        return Ok(());
    }
    let stays = metadata.is_dir() && fixed.holds(path);
    let to = free_name(path, suffix, stays);
    let (mut fixed_names, mut inner) = (Vec::new(), Vec::new());
    if stays {
        for item in std::fs::read_dir(path).map_err(unread)? {
            let item = item.map_err(unread)?;
            if fixed.holds(&item.path()) {
                inner.push(item.path());
                fixed_names.extend(item.file_name().into_string());
            }
        }
    }
    let (from, is_mount) = (path.to_owned(), stays);
    planned.push(Aside { from, to, is_mount, fixed: fixed_names, ..Aside::default() });
    inner.iter().try_for_each(|path| add(path, fixed, suffix, progress, planned))
}

/// Returns the new place of what is at a path; of its content if the path `stays`.
pub fn free_name(path: &Path, suffix: &str, stays: bool) -> PathBuf {
    let system = path.parent().and_then(|dir| rustix::fs::statvfs(dir).ok());
    let bytes_max = system.map_or(NAME_BYTES_MAX, |found| found.f_namemax as usize);
    let named = |end: &str| {
        let end = format!(".{suffix}{end}");
        match stays {
            true => path.join(end),
            false => {
                path.with_file_name(with_end(path.file_name().unwrap_or_default(), &end, bytes_max))
            }
        }
    };
    let names = std::iter::once(named("")).chain((2..).map(|number| named(&format!("-{number}"))));
    let free = names.into_iter().find(|name| name.symlink_metadata().is_err());
    free.unwrap_or_else(|| named(""))
}

/// Appends an end to a name. A name that would be longer than the file system permits is cut, with a
/// number that keeps it apart from others with the same start.
fn with_end(name: &OsStr, end: &str, bytes_max: usize) -> OsString {
    let mut whole = name.to_owned();
    if name.len() + end.len() > bytes_max
        && let Some(text) = name.to_str()
    {
        let hash = Sha256::digest(text.as_bytes());
        let number: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let number = format!("~{number}");
        let start = bytes_max.saturating_sub(end.len() + number.len());
        let start = (0..=start).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        whole = format!("{}{number}", &text[..start]).into();
    }
    whole.push(end);
    whole
}

/// Returns true if a path is a mount point, or has one below it: it cannot be renamed, or would take
/// the mount along.
pub fn stays(path: &Path, mounts: &BTreeSet<PathBuf>) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    mounts.iter().any(|mount| mount.starts_with(&real))
}

/// Makes the recorded moves that are not made yet.
pub fn carry_out(record: &mut Record, progress: &Progress) -> Result<()> {
    for at in 0..record.aside().len() {
        progress.check()?;
        let aside = record.aside()[at].clone();
        if !aside.is_done {
            let failed = |source| Error::Write { path: aside.from.clone(), source };
            let moved = mounts::identity(&aside.from).filter(|_| !aside.is_mount);
            make_way(&aside).map_err(failed)?;
            // One that was moved entry by entry is another directory now.
            record.moved(
                at,
                moved.filter(|moved| mounts::identity(&aside.to).as_ref() == Some(moved)),
            )?;
        }
    }
    Ok(())
}

fn make_way(aside: &Aside) -> io::Result<()> {
    if aside.is_mount {
        return empty(&aside.from, &aside.to, &aside.fixed);
    }
    let is_there = aside.to.symlink_metadata().is_ok();
    // A file stays until it is replaced, so that a service always finds one.
    let is_file = aside.from.symlink_metadata().is_ok_and(|found| found.is_file());
    let moved = match (is_there, is_file) {
        // A killed call may have moved a part of the directory.
        (true, false) if is_dir(&aside.from) => relocate(&aside.from, &aside.to),
        (true, _) => Ok(()),
        (false, true) => std::fs::hard_link(&aside.from, &aside.to)
            .or_else(|_| std::fs::rename(&aside.from, &aside.to)),
        (false, false) => relocate(&aside.from, &aside.to),
    };
    match moved {
        // A call that was killed may have moved it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !aside.from.exists() => Ok(()),
        moved => moved,
    }?;
    aside.from.parent().map_or(Ok(()), file::sync_dir)
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Renames what is at a path. Moves a directory entry by entry if it cannot be renamed, such as that
/// of a lower layer of overlayfs, or if a killed call has moved a part of it.
fn relocate(from: &Path, to: &Path) -> io::Result<()> {
    if to.symlink_metadata().is_err() {
        match std::fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices && is_dir(from) => {}
            renamed => return renamed,
        }
    } else if !is_dir(from) || !is_dir(to) {
        // Made since the call that was killed.
        return Ok(());
    }
    let metadata = from.symlink_metadata()?;
    match DirBuilder::new().mode(0o700).create(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    let names = std::fs::read_dir(from)?.map(|item| Ok(item?.file_name()));
    for name in names.collect::<io::Result<Vec<_>>>()? {
        relocate(&from.join(&name), &to.join(&name))?;
    }
    std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    std::fs::set_permissions(to, metadata.permissions())?;
    file::sync_dir(to)?;
    match std::fs::remove_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed,
    }
}

/// Moves the content of a directory into a directory within it, without some names.
fn empty(dir: &Path, to: &Path, fixed: &[String]) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    let names = std::fs::read_dir(dir)?.map(|item| Ok(item?.file_name()));
    for name in names.collect::<io::Result<Vec<_>>>()? {
        let path = dir.join(&name);
        if !is_kept(&name) && !fixed.iter().any(|fixed| name == OsStr::new(fixed)) {
            relocate(&path, &to.join(&name))?;
        }
    }
    file::sync_dir(to)?;
    file::sync_dir(dir)
}

/// Returns true if there is anything but directories in a directory.
pub fn has_content(top: &Path, kept: &[PathBuf], progress: &Progress) -> Result<bool> {
    let mut dirs: Vec<PathBuf> = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        progress.check()?;
        let unread = |source| Error::Read { path: dir.clone(), source };
        for item in std::fs::read_dir(&dir).map_err(unread)? {
            let item = item.map_err(unread)?;
            if is_kept(&item.file_name()) || kept.contains(&item.path()) {
                continue;
            }
            if !item.file_type().map_err(unread)?.is_dir() {
                return Ok(true);
            }
            dirs.push(item.path());
        }
    }
    Ok(false)
}

/// Describes what somebody has moved back or replaced since earlier calls moved or restored it.
pub fn changed(record: &Record) -> Option<String> {
    for aside in record.aside().iter().filter(|aside| aside.is_done) {
        let Aside { from, to, moved, restored, .. } = aside;
        let here = mounts::identity(from);
        let is_moved_back = !aside.is_mount && moved.is_some() && here == *moved;
        let is_replaced = restored.is_some() && here != *restored;
        // Whoever deletes what was kept leaves what was restored.
        let is_lost = to.symlink_metadata().is_err() && (restored.is_none() || is_replaced);
        if is_moved_back || is_lost {
            return Some(format!(
                "{} was kept as {}, which has moved or is gone",
                shown(from),
                shown(to)
            ));
        }
        if is_replaced {
            return Some(format!("{} is not the directory that was restored", shown(from)));
        }
    }
    None
}

/// Fails if a path that must stay is within one that is moved, whatever the mounts that lead there.
pub fn expect_apart(asides: &[Aside], kept: &[(&str, &Path)]) -> Result<()> {
    let mounts = mounts::all()?;
    let place = |path: &Path| {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Place::of(&real, &mounts)
    };
    // A link moves without the place to which it leads.
    let moved = asides.iter().filter(|aside| !aside.from.is_symlink());
    let moved: Vec<_> = moved.map(|aside| (aside, place(&aside.from))).collect();
    for (what, path) in kept {
        let Some(stays) = place(path) else { continue };
        let is_outer =
            |from: &Option<Place>| from.as_ref().is_some_and(|from| stays.is_within(from));
        if let Some((aside, _)) = moved.iter().find(|(_, from)| is_outer(from)) {
            return Err(Error::InTheWay {
                what: format!("{what} {}", shown(path)),
                dir: aside.from.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rebuild::Stage;

    fn record(dir: &Path) -> Record {
        Record::open(&dir.join("state"), "x", "aa", "before-1").expect("begins")
    }

    #[test]
    fn data_is_moved_once_and_empty_directories_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let [data, bare, file] = ["data", "bare", "file"].map(|name| dir.path().join(name));
        for path in [data.join("inner"), bare.join("inner")] {
            std::fs::create_dir_all(path).expect("directories");
        }
        std::fs::write(data.join("inner/old"), "old").expect("writes");
        std::fs::write(&file, "old").expect("writes");
        let progress = Progress::default();
        let of = |path: &Path| plan(path, "before-1", &[], &[], &progress).expect("plans");
        assert_eq!(of(&dir.path().join("absent")), []);
        assert_eq!(of(&bare), []);
        let mut record = record(dir.path());
        record
            .begin(Stage::Files, [&data, &file].into_iter().flat_map(|path| of(path)).collect())
            .expect("records");
        // A kill between the move and its record.
        std::fs::rename(&data, dir.path().join("data.before-1")).expect("moves");
        carry_out(&mut record, &progress).expect("moves the rest");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("reads");
        assert_eq!(read("data.before-1/inner/old"), "old");
        assert_eq!((read("file"), read("file.before-1")), ("old".into(), "old".into()));
        // Restored data stays.
        std::fs::create_dir(&data).expect("a directory");
        std::fs::write(data.join("new"), "new").expect("writes");
        carry_out(&mut record, &progress).expect("has nothing to do");
        assert_eq!(read("data/new"), "new");
    }

    #[test]
    fn names_at_the_limit_of_a_file_system_are_cut() {
        let dir = tempfile::tempdir().expect("a directory");
        let suffix = set_aside::suffix("20260102T030405Z");
        let mut names = Vec::new();
        for name in [format!("{}a", "ä".repeat(126)), format!("{}b", "ä".repeat(126))] {
            let path = dir.path().join(&name);
            std::fs::create_dir(&path).expect("a directory");
            std::fs::write(path.join("f"), "f").expect("writes");
            let planned = plan(&path, &suffix, &[], &[], &Progress::default()).expect("plans");
            make_way(&planned[0]).expect("moves");
            let to = planned[0].to.file_name().expect("a name").to_owned();
            assert!(set_aside::is_name(&to) && dir.path().join(&to).join("f").exists(), "{to:?}");
            names.push(to);
        }
        assert_ne!(names[0], names[1]);
        assert_eq!(with_end(OsStr::new("abc"), ".x", 5), "abc.x");
        assert_eq!(with_end(OsStr::new(&"x".repeat(30)), ".x", 20).len(), 20);
    }

    #[test]
    fn a_directory_that_moved_in_part_moves_to_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let [data, to] = ["data", "data.before-1"].map(|name| dir.path().join(name));
        for path in [data.join("a/b"), to.join("a")] {
            std::fs::create_dir_all(path).expect("directories");
        }
        std::fs::write(data.join("a/b/left"), "left").expect("writes");
        std::fs::write(data.join("a/new"), "made since").expect("writes");
        for name in ["moved", "new"] {
            std::fs::write(to.join("a").join(name), "old").expect("writes");
        }
        let aside = Aside { from: data.clone(), to: to.clone(), ..Aside::default() };
        make_way(&aside).expect("moves the rest");
        let read = |path: PathBuf| std::fs::read_to_string(path).expect("reads");
        assert_eq!(read(to.join("a/b/left")), "left");
        assert_eq!(
            (read(to.join("a/moved")), read(to.join("a/new"))),
            ("old".into(), "old".into())
        );
        assert_eq!(read(data.join("a/new")), "made since");
    }

    #[test]
    fn the_content_of_a_mount_point_moves_into_it() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join(LOST_AND_FOUND)).expect("a directory");
        std::fs::write(dir.path().join("a"), "a").expect("writes");
        let [older, to] =
            [1, 2].map(|day| dir.path().join(format!(".before-rebuild-2026010{day}T000000Z")));
        std::fs::create_dir(&older).expect("a directory");
        std::fs::write(older.join("f"), "older").expect("writes");
        for _ in 0..2 {
            empty(dir.path(), &to, &[]).expect("moves");
        }
        assert!(to.join("a").exists() && !dir.path().join("a").exists());
        assert!(older.join("f").exists());
        assert!(!has_content(dir.path(), &[], &Progress::default()).expect("looks"));
        assert!(dir.path().join(LOST_AND_FOUND).exists());
        let mounts = mounts::paths().expect("reads");
        assert!(stays(Path::new("/proc"), &mounts) && stays(Path::new("/"), &mounts));
        assert!(!stays(dir.path(), &mounts));
    }

    #[test]
    fn data_that_the_backup_skipped_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let [skipped, other] = ["a/skipped", "a/other"].map(|name| dir.path().join(name));
        for path in [&skipped, &other] {
            std::fs::create_dir_all(path).expect("directories");
            std::fs::write(path.join("f"), "x").expect("writes");
        }
        let (mut record, progress) = (record(dir.path()), Progress::default());
        let planned = plan(
            &dir.path().join("a"),
            &set_aside::suffix("20260102T030405Z"),
            std::slice::from_ref(&skipped),
            &[],
            &progress,
        );
        record.begin(Stage::Files, planned.expect("plans")).expect("records");
        carry_out(&mut record, &progress).expect("moves");
        assert!(skipped.join("f").exists() && !other.exists());
        assert!(dir.path().join("a/.before-rebuild-20260102T030405Z/other/f").exists());
    }

    #[test]
    fn patterns_for_the_content_of_a_directory_hold_it() {
        let dir = tempfile::tempdir().expect("a directory");
        for path in ["data/base/16", "one/in", "none/in", "bare"] {
            std::fs::create_dir_all(dir.path().join(path)).expect("directories");
        }
        let patterns = ["data/**", "one/*", "bare/**", "*.tmp"];
        let globs = store::glob::Globs::new(patterns.map(str::as_bytes)).expect("patterns");
        let progress = Progress::default();
        let mut found =
            spared_below(dir.path(), dir.path(), &globs.into(), &progress).expect("looks");
        found.sort();
        assert_eq!(found, ["data", "one"].map(|name| dir.path().join(name)));
    }

    #[test]
    fn a_store_within_moved_data_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (to, from) = (dir.path().with_extension("old"), dir.path().to_owned());
        let asides = [Aside { from, to, ..Aside::default() }];
        let store = dir.path().join("store");
        let error = expect_apart(&asides, &[("the store", &store)]).expect_err("refused");
        assert!(error.to_string().contains("the store"), "{error}");
        expect_apart(&asides, &[("the store", Path::new("/elsewhere"))]).expect("apart");
    }
}
