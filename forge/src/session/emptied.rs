//! Losses of parts: the limits for the guard of the store, and directories in parts that it does not
//! know as sources.
//!
//! Finds directories of parts that had files in an earlier snapshot and have lost them.
//!
//! Their disk is probably not mounted. Services also empty small directories, so of those without
//! files only mount points of that time and directories with much of their part count. A mount point
//! may have older files below.

use crate::check::{Check, Verdict};
use crate::earlier::Earlier;
use crate::error::Result;
use crate::mounts;
use crate::plan::{Part, Phase, Plan};
use crate::view::{FileBelow, View, shown};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use store::backup::MaxLoss;

/// Directories below a part that are looked at: up to this depth.
const DEPTH_MAX: usize = 4;
/// Directories with more subdirectories are not entered: these are numbered or hashed.
const DIRS_MAX: usize = 64;
/// Files of a directory that a service does not empty by itself.
const FILES_MIN: u64 = 20;

/// Parts whose files a service moves elsewhere, and their directories stay.
const TRANSIENT: [&str; 1] = ["builds"];

/// Part whose loss has a check of its own; GitLab can make it again.
const SSH: &str = "ssh";

/// Returns the sources of all parts with the share that they may lose.
pub fn limits(plan: &Plan) -> BTreeMap<PathBuf, MaxLoss> {
    let mut limits = BTreeMap::new();
    for part in &plan.parts {
        // Services replace and remove these files all the time.
        let is_transient = TRANSIENT.contains(&&*part.name)
            || matches!(part.phase, Phase::Logs | Phase::RedisFiles);
        let usual = if is_transient { MaxLoss::ALL } else { MaxLoss::HALF };
        let limit = plan.max_loss.limit(&part.name, usual);
        // Of alternatives, another one may be in use by now.
        let has_alternative = !part.needs_all && part.is_there();
        for path in part.paths.iter().filter(|path| !has_alternative || path.exists()) {
            let known = limits.entry(path.clone()).or_insert(limit);
            *known = limit.max(*known);
        }
    }
    limits
}

/// Directories that lost their files.
pub struct EmptiedDirs {
    /// The finding.
    pub check: Check,
    /// Those whose loss the settings do not excuse.
    pub dirs: Vec<PathBuf>,
}

/// Returns the directories of the parts, and above them, at which file systems are mounted now.
/// Without a list of them, nothing is known.
pub fn mount_points(plan: &Plan) -> Vec<PathBuf> {
    let all = mounts::all().unwrap_or_default();
    let is_around = |path: &Path| paths_within(plan, path).next().is_some();
    let is_of_part = |path: &Path| part_of(plan, path).is_some() || is_around(path);
    let of_parts = all.iter().map(|mount| &mount.path).filter(|path| is_of_part(path));
    let found: BTreeSet<&PathBuf> = of_parts.filter(|path| *path != Path::new("/")).collect();
    found.into_iter().filter(|path| mounts::shows_other_data(path, &all)).cloned().collect()
}

/// Returns the paths of parts below a directory.
fn paths_within<'p>(
    plan: &'p Plan,
    dir: &'p Path,
) -> impl Iterator<Item = (&'p Part, &'p PathBuf)> {
    let parts = plan.parts.iter().filter(|part| part.phase != Phase::RedisFiles);
    let all = parts.flat_map(|part| part.paths.iter().map(move |path| (part, path)));
    all.filter(move |(_, path)| path.starts_with(dir))
}

/// Returns the part that a backup copies a path with.
fn part_of<'p>(plan: &'p Plan, path: &Path) -> Option<&'p Part> {
    let depth = |part: &&Part| {
        let above = part.paths.iter().filter(|top| path.starts_with(top));
        above.map(|top| top.components().count()).max()
    };
    let is_skipped = plan.skipped.iter().any(|left| path.starts_with(&left.path));
    let parts = plan.parts.iter().filter(|part| depth(part).is_some());
    let part = parts.max_by_key(depth)?;
    (!is_skipped && part.phase != Phase::RedisFiles).then_some(part)
}

/// Compares the directories of all parts with those of an earlier snapshot. A backup itself reports
/// parts without files, so they count only in an inspection (`with_parts`). `None` if there are no
/// such directories. With `allow_loss`, they are only a warning.
pub fn check(
    plan: &Plan,
    earlier: Option<&Earlier<'_>>,
    with_parts: bool,
    allow_loss: bool,
) -> Result<Option<EmptiedDirs>> {
    let Some(earlier) = earlier else { return Ok(None) };
    let mut search = Search { plan, then: earlier.view(), found: Vec::new() };
    let mounted = mounts::all()?;
    let is_gone = |path: &&PathBuf| !mounts::shows_other_data(path, &mounted);
    for path in earlier.mount_points.iter().filter(is_gone) {
        if let Some(part) = part_of(plan, path) {
            search.mount_point(part, path)?;
        }
        search.above_parts(path)?;
    }
    for part in plan.parts.iter().filter(|part| part.phase != Phase::RedisFiles) {
        for path in part.paths.iter().filter(|path| path.is_dir()) {
            if with_parts && part.name != SSH {
                search.part(part, path)?;
            }
            if part.phase == Phase::Files && !TRANSIENT.contains(&&*part.name) {
                search.below(part, path, path, DEPTH_MAX)?;
            }
        }
    }
    let found = search.found;
    if found.is_empty() {
        return Ok(None);
    }
    let is_excused = |part: &String| plan.excused.has(part);
    let counts = |dir: &&Emptied| !allow_loss && !dir.parts.iter().all(is_excused);
    let verdict = match found.iter().any(|dir| counts(&dir)) {
        true => Verdict::Failed,
        false => Verdict::Warning,
    };
    // The store itself notices sources whose file system is not mounted.
    let is_of_part = |dir: &&Emptied| part_of(plan, &dir.path).is_some();
    let dirs = found.iter().filter(counts).filter(is_of_part);
    let dirs: Vec<PathBuf> = dirs.map(|dir| dir.path.clone()).collect();
    let text = format!(
        "directories have lost their files of snapshot {}; their disks are probably not mounted",
        earlier.id.short()
    );
    let hint = "mount the disks; if the instance has lost these files for good, run one backup with \
                --allow-loss";
    let cases = found
        .into_iter()
        .map(|dir| format!("{}: {}{}", dir.parts.join(", "), shown(&dir.path), dir.why));
    let check = Check::new("directories", verdict, text).with_examples(cases);
    Ok(Some(EmptiedDirs { check: check.with_hint(hint).settled(), dirs }))
}

/// A directory that lost its files.
struct Emptied {
    /// Part that it belongs to, or parts that it contains.
    parts: Vec<String>,
    path: PathBuf,
    /// Explanation after the path.
    why: &'static str,
}

/// Explanations for mount points without and with files.
const MOUNT_POINT: [&str; 2] =
    [", which was a mount point", ", which was a mount point and has other files now"];

struct Search<'a> {
    plan: &'a Plan,
    then: View<'a>,
    found: Vec<Emptied>,
}

impl Search<'_> {
    /// Looks at a mount point in a part whose file system is not mounted any more.
    fn mount_point(&mut self, part: &Part, path: &Path) -> Result<()> {
        if part.is_there() && !self.is_known(path) && self.had_files(path)? {
            self.add(vec![part.name.clone()], path, MOUNT_POINT[usize::from(has_files(path))]);
        }
        Ok(())
    }

    /// Looks at the parts below such a mount point.
    fn above_parts(&mut self, top: &Path) -> Result<()> {
        let mut parts = Vec::new();
        for (part, path) in paths_within(self.plan, top).filter(|(_, path)| *path != top) {
            let is_lost = part.is_there() && !self.is_known(path) && self.had_files(path)?;
            parts.extend((is_lost && !parts.contains(&part.name)).then(|| part.name.clone()));
        }
        if !parts.is_empty() {
            self.add(parts, top, MOUNT_POINT[usize::from(has_files(top))]);
        }
        Ok(())
    }

    fn part(&mut self, part: &Part, path: &Path) -> Result<()> {
        if part_of(self.plan, path).is_some_and(|inner| inner.name == part.name) {
            let is_emptied = !self.is_known(path) && !has_files(path) && self.had_files(path)?;
            if is_emptied {
                self.add(vec![part.name.clone()], path, "");
            }
        }
        Ok(())
    }

    /// Looks for emptied directories with much of what the part had at `top`.
    fn below(&mut self, part: &Part, top: &Path, dir: &Path, depth: usize) -> Result<()> {
        // Other parts, skipped directories and a part without files are judged by themselves.
        if self.is_known(top) || !has_files(top) {
            return Ok(());
        }
        for inner in self.then.dirs_in(dir, DIRS_MAX)?.unwrap_or_default() {
            let is_own = part_of(self.plan, &inner).is_some_and(|known| known.name == part.name);
            if !is_own || self.is_known(&inner) || !inner.is_dir() {
                continue;
            }
            if has_files(&inner) {
                if depth > 1 {
                    self.below(part, top, &inner, depth - 1)?;
                }
                continue;
            }
            let (files, bytes) = self.totals(&inner)?;
            if files >= FILES_MIN {
                let (files_of_all, bytes_of_all) = self.totals(top)?;
                if files >= files_of_all.div_ceil(2) || bytes >= bytes_of_all.div_ceil(2) {
                    self.add(vec![part.name.clone()], &inner, "");
                }
            }
        }
        Ok(())
    }

    /// Returns true for a directory that was found, and for those in it.
    fn is_known(&self, path: &Path) -> bool {
        self.found.iter().any(|known| path.starts_with(&known.path))
    }

    fn add(&mut self, parts: Vec<String>, path: &Path, why: &'static str) {
        self.found.push(Emptied { parts, path: path.to_owned(), why });
    }

    fn had_files(&self, dir: &Path) -> Result<bool> {
        let mut had = false;
        self.then.files_below(dir, &mut |_: &FileBelow<'_>| {
            had = true;
            ControlFlow::Break(())
        })?;
        Ok(had)
    }

    /// Returns the number of files that a directory had, and their bytes.
    fn totals(&self, dir: &Path) -> Result<(u64, u64)> {
        let (mut files, mut bytes) = (0_u64, 0_u64);
        self.then.files_below(dir, &mut |file: &FileBelow<'_>| {
            files += 1;
            bytes = bytes.saturating_add(file.size);
            ControlFlow::Continue(())
        })?;
        Ok((files, bytes))
    }
}

/// Returns true if this machine has anything but directories in a directory, or if that is unknown.
fn has_files(top: &Path) -> bool {
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(_) => return true,
        };
        for entry in entries {
            let Ok(entry) = entry else { return true };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                _ => return true,
            }
        }
    }
    false
}
