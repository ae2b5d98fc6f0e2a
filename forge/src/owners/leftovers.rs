//! Traces of interrupted work and broken links between repositories, in a directory without an
//! instance.

use crate::check::{Check, EXAMPLES, Verdict};
use crate::error::Result;
use crate::plan::{Part, Phase};
use crate::view::shown;
use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use store::observe::Progress;

/// Age in seconds from which the process that made a lock is assumed to be gone.
const STALE: i64 = 3600;

/// Bytes of an alternates file that are read.
const ALTERNATES_BYTES_MAX: u64 = 1 << 20;

/// Findings in the repositories of a storage.
#[derive(Debug, Default)]
struct Found {
    /// Time of the inspection, in seconds since 1970.
    now: i64,
    repositories: u64,
    dangling: Vec<String>,
    locks: Vec<String>,
    temporary: Vec<String>,
}

/// Looks for alternates that point nowhere, old locks and temporary files of Gitaly, and prints the
/// version that last migrated the data. `now` is in seconds since 1970.
pub fn leftovers(parts: &[Part], now: i64, progress: &Progress) -> Result<Vec<Check>> {
    let mut found = Found { now, ..Found::default() };
    let storages = parts.iter().filter(|part| part.phase == Phase::Repositories);
    for storage in storages.flat_map(|part| &part.paths) {
        found.storage(storage, progress)?;
    }
    let mut checks = Vec::new();
    if found.repositories > 0 {
        let count = found.repositories;
        checks.push(check(
            "alternates",
            found.dangling,
            &format!("borrowed objects of {count} repositories are there"),
            "alternates point to directories that do not exist",
            "restore the pools (@pools) from the same snapshot",
        ));
        checks.push(check(
            "locks",
            found.locks,
            &format!("no old lock is in {count} repositories"),
            "locks are older than an hour, and git refuses to write",
            "remove them if no git process runs",
        ));
        checks.push(check(
            "temporary-files",
            found.temporary,
            "no temporary files of Gitaly are left",
            "temporary directories of Gitaly are left",
            "remove them while Gitaly is stopped",
        ));
    }
    let version = parts.iter().filter(|part| part.name == "tmp").flat_map(|part| &part.paths);
    for path in version.map(|path| path.join("VERSION")) {
        if let Ok(version) = std::fs::read_to_string(&path) {
            let version = version.trim().escape_debug().to_string();
            let text = format!(
                "{} says {version}: the container refuses to start an older image",
                shown(&path)
            );
            checks.push(Check::ok("version", text));
        }
    }
    Ok(checks)
}

fn check(name: &str, cases: Vec<String>, right: &str, wrong: &str, hint: &str) -> Check {
    if cases.is_empty() {
        return Check::ok(name, right);
    }
    let check = Check::new(name, Verdict::Warning, format!("{} {wrong}", cases.len()));
    check.with_examples(cases.into_iter().take(EXAMPLES)).with_hint(hint)
}

impl Found {
    fn storage(&mut self, storage: &Path, progress: &Progress) -> Result<()> {
        let runtime = storage.join("+gitaly");
        self.temporary.extend(entries(&runtime.join("tmp")).map(|path| shown(&path)));
        let mut dirs = vec![storage.to_owned()];
        while let Some(dir) = dirs.pop() {
            progress.check()?;
            if dir.join("objects").is_dir() && dir.join("HEAD").symlink_metadata().is_ok() {
                self.repository(&dir);
                continue;
            }
            let inner = entries(&dir).filter(|path| *path != runtime && is_dir(path));
            dirs.extend(inner);
        }
        Ok(())
    }

    fn repository(&mut self, dir: &Path) {
        self.repositories += 1;
        let objects = dir.join("objects");
        for line in lines(&objects.join("info/alternates")) {
            let place = objects.join(std::ffi::OsStr::from_bytes(&line));
            if !place.is_dir() {
                self.dangling.push(format!("{} → {}", shown(dir), shown(&place)));
            }
        }
        let mut dirs = vec![dir.join("refs")];
        let mut locks: Vec<PathBuf> = entries(dir).filter(|path| self.is_old_lock(path)).collect();
        while let Some(refs) = dirs.pop() {
            for path in entries(&refs) {
                if is_dir(&path) {
                    dirs.push(path);
                } else if self.is_old_lock(&path) {
                    locks.push(path);
                }
            }
        }
        self.locks.extend(locks.iter().map(|path| shown(path)));
    }

    fn is_old_lock(&self, path: &Path) -> bool {
        path.extension().is_some_and(|end| end == "lock")
            && path.symlink_metadata().is_ok_and(|found| self.now - found.mtime() > STALE)
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Returns true for a directory, and false for a link to one.
fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Returns the paths in an alternates file.
fn lines(file: &Path) -> Vec<Vec<u8>> {
    let is_small = |path: &Path| {
        path.symlink_metadata()
            .is_ok_and(|found| found.is_file() && found.len() <= ALTERNATES_BYTES_MAX)
    };
    let text = if is_small(file) { std::fs::read(file).unwrap_or_default() } else { Vec::new() };
    store::git::alternates(&text).map(Cow::into_owned).collect()
}
