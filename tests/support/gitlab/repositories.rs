//! Bare repositories at the paths in the rows. git creates one; the others are copies of it, each
//! with a commit of its own.

use super::database::MAIN;
use super::layout;
use super::{STORAGES, git};
use crate::support::accounts::Account;
use crate::support::postgres::Postgres;
use crate::support::sandbox::{Dice, Run};
use std::fmt::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A repository and its data in the database.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Path of its pool.
    pub pool: Option<String>,
    /// Id of the project whose code it has; `None` for wikis and the like.
    pub project: Option<u64>,
    /// Path in GitLab; empty for a pool.
    pub full_path: String,
    /// Directory of the repository.
    pub dir: PathBuf,
}

/// Creates all repositories that have rows.
pub fn make(postgres: &Postgres, root: &Path) -> Vec<Repository> {
    let rows = postgres.query(MAIN, include_str!("repositories.sql"));
    let repositories: Vec<_> = rows.lines().map(|row| parse(row, root)).collect();
    let scratch = super::short_dir();
    let template = scratch.path().join("template.git");
    make_template(&template);
    // Pools come first: members are not valid repositories without them.
    let (pools, others): (Vec<_>, Vec<_>) =
        repositories.iter().partition(|repository| repository.full_path.is_empty());
    for pool in pools {
        make_pool(pool, &template);
    }
    let workshop = scratch.path().join("workshop.git");
    copy(&template, &workshop);
    for (repository, commit) in others.iter().zip(make_commits(&workshop, &others)) {
        make_one(repository, &template, &workshop, &commit);
    }
    for (_, path) in STORAGES {
        let storage = root.join(path.trim_start_matches('/'));
        runtime(&storage);
        give_to_git(&storage);
    }
    repositories
}

fn parse(row: &str, root: &Path) -> Repository {
    let [storage, path, pool, project, full_path] =
        row.split('|').collect::<Vec<_>>().try_into().expect("five columns");
    let (_, place) = STORAGES.iter().find(|(name, _)| *name == storage).expect("a known storage");
    Repository {
        pool: (!pool.is_empty()).then(|| pool.to_owned()),
        project: project.parse().ok(),
        full_path: full_path.to_owned(),
        dir: root.join(place.trim_start_matches('/')).join(path),
    }
}

/// Creates a packed history with all kinds of references that GitLab keeps.
fn make_template(dir: &Path) {
    let init = Run::limited("git").args(["init", "-q", "--bare", "--template=", "-b", "main"]);
    init.args([dir]).run().ok();
    let mut dice = Dice::new(1);
    let mut stream = String::new();
    for number in 1..=20 {
        let content: String = (0..30).map(|_| format!("{:016x}\n", dice.roll())).collect();
        commit(&mut stream, "main", number, "", &format!("src/{}", number % 7), &content);
    }
    commit(&mut stream, "feature", 21, "refs/heads/main", "README", "A feature\n");
    run_git(dir, &["fast-import", "--quiet"], &stream);
    run_git(dir, &["tag", "-a", "-m", "Version 1", "v1.0", "main~5"], "");
    let mut updates = String::new();
    for (name, of) in [
        ("merge-requests/1/head", "feature"),
        ("pipelines/1", "main"),
        ("environments/production/deployments/1", "main~1"),
    ] {
        writeln!(updates, "create refs/{name} {of}").expect("writes to a string");
    }
    let kept = run_git(dir, &["rev-parse", "main~2"], "");
    let kept = kept.trim();
    writeln!(updates, "create refs/keep-around/{kept} {kept}").expect("writes to a string");
    run_git(dir, &["update-ref", "--stdin"], &updates);
    run_git(dir, &["repack", "-qad"], "");
    run_git(dir, &["pack-refs", "--all"], "");
}

/// Adds a commit for `git fast-import`. Its parent is `from`, or otherwise the previous commit in
/// the stream.
fn commit(stream: &mut String, branch: &str, time: u32, from: &str, file: &str, content: &str) {
    let from = if from.is_empty() { String::new() } else { format!("from {from}\n") };
    write!(
        stream,
        "commit refs/heads/{branch}\n\
         committer A <a@example.org> {} +0000\n\
         data 7\nCommit\n{from}\
         M 644 inline {file}\ndata {}\n{content}\n",
        1_700_000_000 + time,
        content.len()
    )
    .expect("writes to a string");
}

/// Creates a commit for each of some repositories, as loose objects. Returns the objects that each
/// needs: commit, tree and file. One git process creates all, because a thousand would take long.
fn make_commits(workshop: &Path, repositories: &[&Repository]) -> Vec<[String; 3]> {
    let (mut stream, mut names) = (String::new(), String::new());
    for (number, repository) in repositories.iter().enumerate() {
        let branch = format!("r{number}");
        let name = &repository.full_path;
        commit(&mut stream, &branch, 30, "refs/heads/main^0", "README", name);
        writeln!(names, "{branch}\n{branch}^{{tree}}\n{branch}:README")
            .expect("writes to a string");
    }
    run_git(workshop, &["config", "fastimport.unpackLimit", "1000000"], "");
    run_git(workshop, &["fast-import", "--quiet"], &stream);
    let ids = run_git(workshop, &["cat-file", "--batch-check=%(objectname)"], &names);
    let ids: Vec<_> = ids.lines().map(str::to_owned).collect();
    ids.chunks_exact(3).map(|ids| ids.to_vec().try_into().expect("three")).collect()
}

fn make_one(repository: &Repository, template: &Path, workshop: &Path, commit: &[String; 3]) {
    let dir = &repository.dir;
    copy(template, dir);
    if let Some(pool) = &repository.pool {
        // Everything from before the fork is in the pool.
        std::fs::remove_dir_all(dir.join("objects/pack")).expect("a packed repository");
        std::fs::create_dir(dir.join("objects/pack")).expect("a directory");
        std::fs::create_dir_all(dir.join("objects/info")).expect("a directory");
        let alternates = format!("../../../../../{pool}/objects\n");
        std::fs::write(dir.join("objects/info/alternates"), alternates).expect("writes");
    }
    let config = dir.join("config");
    let mut text = std::fs::read_to_string(&config).expect("a configuration");
    write!(text, "[gitlab]\n\tfullpath = {}\n", repository.full_path).expect("writes to a string");
    std::fs::write(config, text).expect("writes");
    for id in commit {
        let object = format!("objects/{}/{}", &id[..2], &id[2..]);
        let to = dir.join(&object);
        std::fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
        std::fs::copy(workshop.join(object), to).expect("copies");
    }
    std::fs::create_dir_all(dir.join("refs/heads")).expect("a directory");
    std::fs::write(dir.join("refs/heads/main"), format!("{}\n", commit[0])).expect("writes");
}

/// Creates a pool, which has the shared objects of its members under references of its own.
fn make_pool(pool: &Repository, template: &Path) {
    copy(template, &pool.dir);
    let refs = run_git(&pool.dir, &["for-each-ref", "--format=%(refname) %(objectname)"], "");
    let mut updates = String::new();
    for line in refs.lines() {
        let (name, id) = line.split_once(' ').expect("two columns");
        let rest = name.strip_prefix("refs/").expect("a reference");
        writeln!(updates, "delete {name}\ncreate refs/remotes/origin/{rest} {id}")
            .expect("writes to a string");
    }
    run_git(&pool.dir, &["update-ref", "--stdin"], &updates);
    let lost = run_git(&pool.dir, &["hash-object", "-w", "--stdin"], "once somewhere");
    let lost = lost.trim();
    run_git(&pool.dir, &["update-ref", &format!("refs/dangling/{lost}"), lost], "");
    run_git(&pool.dir, &["pack-refs", "--all"], "");
}

/// Creates Gitaly's files next to the repositories.
fn runtime(storage: &Path) {
    let id = storage.to_string_lossy().len();
    let identity = format!("{{\"gitaly_filesystem_id\":\"4b9d4b5a-0000-4000-8000-{id:012}\"}}");
    layout::file(&storage.join(".gitaly-metadata"), git(), 0o600, identity);
    for name in ["tmp", "cache", "state"] {
        layout::directory(&storage.join("+gitaly").join(name), git(), 0o755);
    }
    let waste = storage.join("+gitaly/tmp/transaction");
    layout::file(&waste, git(), 0o600, "is made again");
}

/// Gives repositories the owner and modes that Gitaly uses.
fn give_to_git(storage: &Path) {
    fn give(path: &Path, owner: Account) {
        owner.own(path);
        let metadata = path.symlink_metadata().expect("is there");
        let mode = match metadata.mode() & 0o200 {
            _ if metadata.is_dir() => 0o2750,
            0 => 0o440,
            _ => 0o640,
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        if metadata.is_dir() {
            for entry in std::fs::read_dir(path).expect("a directory") {
                give(&entry.expect("an entry").path(), owner);
            }
        }
    }
    give(storage, git());
    layout::directory(storage, git(), 0o2770);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copies");
        }
    }
}

/// Runs git in a repository of any owner and returns its output.
pub fn run_git(dir: &Path, arguments: &[&str], input: &str) -> String {
    let git = Run::limited("git").args(["-c", "safe.directory=*", "--git-dir"]).args([dir]);
    git.args(arguments).input(input).run().ok().stdout
}
