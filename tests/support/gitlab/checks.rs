//! Conditions that a restored instance must meet.

use super::database::{CI, FUNCTIONS, MAIN};
use super::files::FILES;
use super::{DATA, STORAGES};
use crate::support::postgres::Postgres;
use crate::support::sandbox::Run;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Asserts that every repository below a root is complete: everything that a reference needs
/// exists. Returns the number of repositories.
#[track_caller]
pub fn fsck_all(root: &Path) -> usize {
    let mut repositories = Vec::new();
    for (_, storage) in STORAGES {
        find_repositories(&root.join(storage.trim_start_matches('/')), &mut repositories);
    }
    let failures: Vec<String> = std::thread::scope(|scope| {
        let halves = repositories.chunks(repositories.len().div_ceil(2).max(1));
        let halves: Vec<_> = halves
            .map(|half| scope.spawn(|| half.iter().filter_map(|dir| fsck_errors(dir)).collect()))
            .collect();
        let ended = halves.into_iter().map(|half| half.join().expect("no panic"));
        ended.collect::<Vec<Vec<String>>>().concat()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    repositories.len()
}

/// Returns the fault of a repository's references and objects, if any.
fn fsck_errors(dir: &Path) -> Option<String> {
    let git = Run::limited("git").args(["-c", "safe.directory=*", "--git-dir"]).args([dir]);
    let fsck = git.args(["fsck", "--connectivity-only", "--no-dangling", "--no-progress"]).run();
    (fsck.code() != Some(0)).then(|| fsck.all_output())
}

/// Adds the bare repositories below a directory.
fn find_repositories(dir: &Path, found: &mut Vec<PathBuf>) {
    if dir.join("HEAD").exists() && dir.join("objects").exists() {
        found.push(dir.to_owned());
        return;
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_dir() {
            find_repositories(&entry.path(), found);
        }
    }
}

/// Asserts that every row about a local file has its file below `root`, with the size and hash in
/// the row. Returns the number of rows.
#[track_caller]
pub fn assert_rows_have_files(postgres: &Postgres, root: &Path) -> usize {
    let mut count = 0;
    let mut sums = String::new();
    let mut failures = Vec::new();
    for database in [MAIN, CI] {
        let query = format!("{FUNCTIONS}{FILES}select path, hash, size from files");
        for row in postgres.query(database, query).lines() {
            count += 1;
            let [path, hash, size] =
                row.split('|').collect::<Vec<_>>().try_into().expect("three columns");
            match root.join(DATA).join(path).metadata() {
                Ok(metadata) if size.is_empty() || metadata.len().to_string() == size => {}
                Ok(metadata) => failures.push(format!("{path}: {} for {size}", metadata.len())),
                Err(error) => failures.push(format!("{path}: {error}")),
            }
            if !hash.is_empty() {
                sums += &format!("{hash}  {path}\n");
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let check = Run::limited("sha256sum").args(["--check", "--strict", "--quiet"]);
    check.within(&root.join(DATA)).input(sums).run().ok();
    count
}

/// Asserts that every commit whose push is in the database is in its repository below `root`.
/// Returns the number of commits.
#[track_caller]
pub fn assert_pushes_are_there(postgres: &Postgres, root: &Path) -> usize {
    let rows = postgres.query(
        MAIN,
        "select s.name, r.disk_path, encode(commit_to, 'hex')
         from push_event_payloads join events e on e.id = event_id
         join project_repositories r using (project_id) join shards s on s.id = r.shard_id",
    );
    let mut pushes = BTreeMap::<PathBuf, String>::new();
    for row in rows.lines() {
        let [storage, path, commit] =
            row.split('|').collect::<Vec<_>>().try_into().expect("three columns");
        let (_, place) = STORAGES.iter().find(|(name, _)| *name == storage).expect("is known");
        let dir = root.join(place.trim_start_matches('/')).join(format!("{path}.git"));
        *pushes.entry(dir).or_default() += &format!("{commit}\n");
    }
    for (dir, commits) in &pushes {
        // Only reachable ones: git may drop unreachable objects at any time.
        let reachable = super::repositories::run_git(dir, &["rev-list", "--all"], "");
        for commit in commits.lines() {
            assert!(reachable.contains(commit), "{}: {commit} is missing", dir.display());
        }
    }
    rows.lines().count()
}
