//! Losses of parts: the limits for the guard of the store, and directories in parts that it does not
//! know as sources.
//!
//! Finds directories of parts that had files in an earlier snapshot and have none on this machine.
//!
//! Their disk is probably not mounted. Services also empty small directories, so only mount points
//! of that time and directories with much of their part count.

use crate::check::{Check, Verdict};
use crate::earlier::Earlier;
use crate::error::Result;
use crate::mounts;
use crate::plan::{Part, Phase, Plan};
use crate::view::{FileBelow, View, shown};
use std::collections::BTreeMap;
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

/// Directories without files.
pub struct EmptiedDirs {
    /// The finding.
    pub check: Check,
    /// Those whose loss the settings do not excuse.
    pub dirs: Vec<PathBuf>,
}

/// Returns the directories of the parts at which file systems are mounted now. Without a list of
/// them, nothing is known.
pub fn mount_points(plan: &Plan) -> Vec<PathBuf> {
    let all = mounts::paths().unwrap_or_default();
    all.into_iter().filter(|path| part_of(plan, path).is_some()).collect()
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
    let mounted = mounts::paths()?;
    for path in earlier.mount_points.iter().filter(|path| !mounted.contains(*path)) {
        if let Some(part) = part_of(plan, path).filter(|part| part.is_there()) {
            search.mount_point(part, path)?;
        }
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
    let counts = |dir: &&Emptied| !allow_loss && !plan.excused.has(&dir.part);
    let dirs: Vec<PathBuf> = found.iter().filter(counts).map(|dir| dir.path.clone()).collect();
    let verdict = if dirs.is_empty() { Verdict::Warning } else { Verdict::Failed };
    let text = format!(
        "directories with files in snapshot {} have none on this machine; their disks are \
         probably not mounted",
        earlier.id.short()
    );
    let hint = "mount the disks; if the instance has lost these files for good, run one backup with \
                --allow-loss";
    let cases =
        found.into_iter().map(|dir| format!("{}: {}{}", dir.part, shown(&dir.path), dir.why));
    let check = Check::new("directories", verdict, text).with_examples(cases);
    Ok(Some(EmptiedDirs { check: check.with_hint(hint).settled(), dirs }))
}

/// A directory without files.
struct Emptied {
    part: String,
    path: PathBuf,
    /// Explanation after the path.
    why: &'static str,
}

struct Search<'a> {
    plan: &'a Plan,
    then: View<'a>,
    found: Vec<Emptied>,
}

impl Search<'_> {
    fn mount_point(&mut self, part: &Part, path: &Path) -> Result<()> {
        if !self.is_known(path) && !has_files(path) && self.had_files(path)? {
            self.add(part, path, ", which was a mount point");
        }
        Ok(())
    }

    fn part(&mut self, part: &Part, path: &Path) -> Result<()> {
        if part_of(self.plan, path).is_some_and(|inner| inner.name == part.name) {
            let is_emptied = !self.is_known(path) && !has_files(path) && self.had_files(path)?;
            if is_emptied {
                self.add(part, path, "");
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
                    self.add(part, &inner, "");
                }
            }
        }
        Ok(())
    }

    /// Returns true for a directory that was found, and for those in it.
    fn is_known(&self, path: &Path) -> bool {
        self.found.iter().any(|known| path.starts_with(&known.path))
    }

    fn add(&mut self, part: &Part, path: &Path, why: &'static str) {
        self.found.push(Emptied { part: part.name.clone(), path: path.to_owned(), why });
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
