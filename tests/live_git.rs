//! Bare repositories that are pushed to and packed while they are backed up.
//!
//! These tests can fail. Of five copies made like `cp -a`, `objects` before `refs`, at the speed of
//! a network, all five were broken when this was written. At the speed of a local disk, all were
//! intact. The last test makes such copies and prints how many were broken.

use crate::support::lease::Lease;
use crate::support::sandbox::{Dice, Outcome, Run, Sandbox};
use crate::support::stores;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use store::backup::{Backup, Likeness, Sources};
use store::entry::Time;
use store::store::Purpose;

/// Minimum number of backups for each combination of references and maintenance.
const TRIALS: usize = 10;
/// Number of backups after which a repository that hardly changes during them is given up.
const TRIALS_MAX: usize = 10 * TRIALS;

/// Hash function of object ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha1,
    Sha256,
}

/// Format of references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refs {
    Files,
    Reftable,
}

/// Maintenance that packs the repository meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    /// Drops unreachable objects, so references are never taken back.
    DropsUnreachable,
    /// Keeps them, as git does for two weeks; references are forced and deleted.
    KeepsUnreachable,
}

/// Branches that only grow.
const GROWING: [&str; 3] = ["made", "imported", "pushed"];

/// Does its work once and returns the number of references it wrote.
type Job = Box<dyn FnMut(&Sandbox, u64) -> u64 + Send>;

/// A repository in which several processes work.
struct Busy {
    ended: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Busy {
    fn begin(sandbox: &Arc<Sandbox>, packing: Packing) -> Busy {
        let ended = Arc::new(AtomicBool::new(false));
        let commits = Arc::new(AtomicU64::new(0));
        let mut jobs: Vec<Job> = vec![
            Box::new(move |sandbox, round| commit(sandbox, round, packing)),
            Box::new(import),
            Box::new(push),
            Box::new(|sandbox, _| {
                git(sandbox, &["pack-refs", "--all"]).run();
                0
            }),
            Box::new(move |sandbox, round| {
                pack(sandbox, round, packing);
                0
            }),
        ];
        let writers = jobs
            .drain(..)
            .map(|mut job| {
                let (ended, commits) = (Arc::clone(&ended), Arc::clone(&commits));
                let sandbox = Arc::clone(sandbox);
                std::thread::spawn(move || {
                    let mut round = 0;
                    while !ended.load(Relaxed) {
                        round += 1;
                        commits.fetch_add(job(&sandbox, round), Relaxed);
                    }
                })
            })
            .collect();
        Busy { ended, commits, writers }
    }

    fn end(self) -> u64 {
        self.ended.store(true, Relaxed);
        for writer in self.writers {
            writer.join().expect("a writer panicked");
        }
        self.commits.load(Relaxed)
    }
}

fn git(sandbox: &Sandbox, arguments: &[&str]) -> Run {
    sandbox.tool("git").args(["--git-dir", "live.git"]).args(arguments)
}

fn line(outcome: &Outcome) -> String {
    outcome.stdout.trim().to_owned()
}

/// Creates a bare repository with some history and a clone to push from.
fn repository(refs: Refs, hash: Hash) -> Arc<Sandbox> {
    let sandbox = Sandbox::with_store();
    let format = match refs {
        Refs::Files => "files",
        Refs::Reftable => "reftable",
    };
    let hash = match hash {
        Hash::Sha1 => "sha1",
        Hash::Sha256 => "sha256",
    };
    let init = ["init", "--quiet", "--bare", "--initial-branch=made"];
    let formats = [format!("--ref-format={format}"), format!("--object-format={hash}")];
    sandbox.tool("git").args(init).args(formats).args(["live.git"]).run().ok();
    git(&sandbox, &["config", "core.logAllRefUpdates", "false"]).run().ok();
    for branch in ["made", "imported", "pushed"] {
        git(&sandbox, &["fast-import", "--quiet"]).input(stream(branch, 40, None)).run().ok();
    }
    sandbox.tool("git").args(["clone", "--quiet", "live.git", "work"]).run().ok();
    sandbox.tool("git").args(["-C", "work", "checkout", "--quiet", "pushed"]).run().ok();
    Arc::new(sandbox)
}

/// Returns input for `fast-import`: commits on a branch, with unique content.
fn stream(branch: &str, count: u64, from: Option<u64>) -> Vec<u8> {
    let mut text = String::new();
    for n in 0..count {
        let number = from.unwrap_or(0) * 1000 + n;
        let content = format!("{branch} {number}\n").repeat(200);
        text +=
            &format!("commit refs/heads/{branch}\ncommitter A <a@example.org> {number} +0000\n");
        text += "data 1\nx\n";
        if n == 0 && from.is_some() {
            text += &format!("from refs/heads/{branch}^0\n");
        }
        let len = content.len();
        text += &format!("M 644 inline {branch}/{}.txt\ndata {len}\n{content}\n", number % 50);
    }
    text += "done\n";
    text.into_bytes()
}

/// Commits with plumbing: loose objects, then a reference. Gives up if git's own commands conflict.
fn commit(sandbox: &Sandbox, round: u64, packing: Packing) -> u64 {
    let make = |arguments: &[&str], input: String| {
        let made = git(sandbox, arguments).input(input).run();
        (made.code() == Some(0)).then(|| line(&made))
    };
    let next = || {
        let content = format!("made in round {round}\n").repeat(100);
        let blob = make(&["hash-object", "-w", "--stdin"], content)?;
        let tree = make(&["mktree"], format!("100644 blob {blob}\tround-{round}\n"))?;
        make(&["commit-tree", "-p", "refs/heads/made", &tree], format!("round {round}"))
    };
    let Some(next) = next() else { return 0 };
    let mut moved = u64::from(update(sandbox, &["refs/heads/made", &next]));
    if round.is_multiple_of(4) {
        moved += u64::from(update(sandbox, &[&format!("refs/tags/round-{round}"), &next]));
    }
    if packing == Packing::KeepsUnreachable {
        moved += u64::from(update(sandbox, &["refs/heads/topic/forced", &next]));
        if round.is_multiple_of(3) {
            moved += u64::from(update(sandbox, &["-d", "refs/heads/topic/forced"]));
        }
    }
    moved
}

fn update(sandbox: &Sandbox, arguments: &[&str]) -> bool {
    git(sandbox, &["update-ref"]).args(arguments).run().code() == Some(0)
}

/// Commits by `fast-import`: a pack or loose objects, then a reference.
fn import(sandbox: &Sandbox, round: u64) -> u64 {
    let count = if round.is_multiple_of(2) { 3 } else { 120 };
    let done = git(sandbox, &["fast-import", "--quiet"])
        .input(stream("imported", count, Some(round)))
        .run();
    u64::from(done.code() == Some(0))
}

/// Commits in a clone and pushes.
fn push(sandbox: &Sandbox, round: u64) -> u64 {
    sandbox.write(&format!("work/pushed/{}.txt", round % 20), format!("{round}\n").repeat(300));
    let work = |arguments: &[&str]| sandbox.tool("git").args(["-C", "work"]).args(arguments).run();
    work(&["add", "--all"]).ok();
    work(&["-c", "gc.auto=0", "commit", "--quiet", "--allow-empty", "-m", "x"]).ok();
    u64::from(work(&["push", "--quiet", "origin", "pushed"]).code() == Some(0))
}

fn pack(sandbox: &Sandbox, round: u64, packing: Packing) {
    let ways: &[&[&str]] = match packing {
        Packing::DropsUnreachable => &[
            &["repack", "-adq"],
            &["repack", "-adq", "--write-bitmap-index"],
            &["repack", "-adq", "--write-midx"],
            &["commit-graph", "write", "--reachable"],
        ],
        Packing::KeepsUnreachable => &[
            &["repack", "-dq", "--cruft"],
            &["repack", "-dq", "--geometric=2", "--write-midx"],
            &["repack", "-dq", "--cruft", "--write-midx", "--write-bitmap-index"],
            &["commit-graph", "write", "--reachable", "--split"],
        ],
    };
    git(sandbox, ways[(round % ways.len() as u64) as usize]).run();
}

fn ask_references(sandbox: &Sandbox, git_dir: &str) -> Outcome {
    let format = "--format=%(refname) %(objectname) %(objecttype)";
    sandbox.tool("git").args(["--git-dir", git_dir, "for-each-ref", format]).run()
}

/// Like [`references`], for the live repository. git looks twice for an object whose pack is being
/// replaced. On a slow machine both packs may be gone by then.
fn live_references(sandbox: &Sandbox) -> Vec<(String, String)> {
    let is_quiet = |printed: &Outcome| printed.code() == Some(0) && printed.stderr.is_empty();
    let mut asked = (0..20).map(|_| ask_references(sandbox, "live.git"));
    names_and_values(&asked.find(is_quiet).expect("git finds its own objects"))
}

/// Returns names and values of all references.
fn references(sandbox: &Sandbox, git_dir: &str) -> Vec<(String, String)> {
    let printed = ask_references(sandbox, git_dir).ok();
    assert_eq!(printed.stderr, "", "{git_dir}");
    names_and_values(&printed)
}

fn names_and_values(printed: &Outcome) -> Vec<(String, String)> {
    let split = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let pair = (words.next().expect("a name"), words.next().expect("a value"));
        assert!(words.next().is_some(), "its object is there: {line}");
        pair
    };
    printed.stdout.lines().map(split).collect()
}

fn packs(sandbox: &Sandbox) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(sandbox.path("live.git/objects/pack"))
        .expect("there are packs")
        .map(|entry| entry.expect("lists").path())
        .filter(|path| path.extension().is_some_and(|end| end == "idx"))
        .collect();
    names.sort();
    names
}

/// Returns the fault of a copy, if any.
fn verdict(sandbox: &Sandbox, copy: &str) -> Result<(), String> {
    let run = |arguments: &[&str]| {
        let done = sandbox.tool("git").args(["--git-dir", copy]).args(arguments).run();
        let is_quiet = done.stderr.lines().all(|line| line.starts_with("dangling"));
        if done.code() == Some(0) && is_quiet { Ok(()) } else { Err(done.all_output()) }
    };
    run(&["fsck", "--full", "--strict", "--no-progress"])?;
    run(&["for-each-ref", "--format=%(refname) %(objecttype)"])?;
    run(&["rev-list", "--quiet", "--objects", "--all"])
}

/// Results of the backups of one busy repository.
#[derive(Debug, Default)]
struct Tally {
    refs_moved: usize,
    packs_changed: usize,
    reused: u64,
}

impl Tally {
    /// Returns true if enough happened during backups. The necessary number depends on how the
    /// machine shares its time.
    fn is_enough(&self) -> bool {
        self.refs_moved * 2 >= TRIALS && self.packs_changed * 4 >= TRIALS
    }
}

fn trials(refs: Refs, hash: Hash, packing: Packing) {
    let sandbox = repository(refs, hash);
    let busy = Busy::begin(&sandbox, packing);
    let mut tally = Tally::default();
    for trial in 0..TRIALS_MAX {
        if trial >= TRIALS && tally.is_enough() {
            break;
        }
        if trial == TRIALS / 2 {
            // The first half of the backups shares one store. Each of the others starts with an
            // empty one.
            sandbox.run(["check", "--read-data"]).ok();
        }
        if trial >= TRIALS / 2 {
            sandbox.remove("store");
            sandbox.run(["init", "--quiet"]).ok();
        }
        let before = (live_references(&sandbox), packs(&sandbox));
        let summary = sandbox.backup(["live.git"]);
        let after = (live_references(&sandbox), packs(&sandbox));
        tally.refs_moved += usize::from(before.0 != after.0);
        tally.packs_changed += usize::from(before.1 != after.1);
        tally.reused += summary["files_unmodified"].as_u64().expect("a number");
        assert_eq!(summary["parent"].is_string(), trial > 0 && trial < TRIALS / 2);

        let copy = format!("copy-{trial}.git");
        sandbox.restore(&sandbox.at("latest", "live.git"), &copy);
        let fail = |reason| panic!("{refs:?}, {packing:?}, trial {trial}: {reason}");
        verdict(&sandbox, &copy).unwrap_or_else(fail);
        let copied = references(&sandbox, &copy);
        for branch in GROWING.map(|branch| format!("refs/heads/{branch}")) {
            let value = |refs: &[(String, String)]| {
                let found = refs.iter().find(|(name, _)| *name == branch);
                found.unwrap_or_else(|| panic!("{branch} is missing")).1.clone()
            };
            let (old, new) = (value(&before.0), value(&copied));
            let test = ["--git-dir", &copy, "merge-base", "--is-ancestor", &old, &new];
            sandbox.tool("git").args(test).run().ok();
        }
        for (name, _) in before.0.iter().filter(|(name, _)| name.starts_with("refs/tags/")) {
            assert!(copied.iter().any(|(copied, _)| copied == name), "{name} is missing");
        }
        sandbox.remove(copy);
    }
    let commits = busy.end();
    assert_eq!(verdict(&sandbox, "live.git"), Ok(()), "git itself broke the repository");
    let figures = format!("{refs:?}, {packing:?}: {tally:?}, {commits} references written");
    assert!(tally.is_enough(), "{figures}");
    assert!(tally.reused > 0 && commits > TRIALS as u64, "{figures}");
}

#[test]
fn copies_are_whole_with_file_references_and_replaced_packs() {
    trials(Refs::Files, Hash::Sha1, Packing::DropsUnreachable);
}

#[test]
fn copies_are_whole_with_changing_file_references() {
    trials(Refs::Files, Hash::Sha1, Packing::KeepsUnreachable);
}

#[test]
fn copies_are_whole_with_a_reftable_and_replaced_packs() {
    trials(Refs::Reftable, Hash::Sha1, Packing::DropsUnreachable);
}

#[test]
fn copies_are_whole_with_a_changing_reftable() {
    trials(Refs::Reftable, Hash::Sha1, Packing::KeepsUnreachable);
}

#[test]
fn copies_are_whole_with_sha_256_and_replaced_packs() {
    trials(Refs::Files, Hash::Sha256, Packing::DropsUnreachable);
}

#[test]
fn copies_are_whole_with_sha_256_and_a_reftable() {
    trials(Refs::Reftable, Hash::Sha256, Packing::KeepsUnreachable);
}

#[test]
fn a_backup_of_a_busy_repository_terminates() {
    let sandbox = Arc::new(Sandbox::with_store());
    sandbox.tool("git").args(["init", "--quiet", "--bare", "live.git"]).run().ok();
    sandbox.write("pack", Dice::new(1).bytes(8 << 20));
    sandbox.write("idx", Dice::new(2).bytes(100_000));
    let ended = Arc::new(AtomicBool::new(false));
    let writer = {
        let (sandbox, ended) = (Arc::clone(&sandbox), Arc::clone(&ended));
        // Reading this pack takes longer than creating the next one.
        move || {
            for n in 0.. {
                if ended.load(Relaxed) {
                    return;
                }
                for end in ["pack", "idx"] {
                    let name =
                        |n: u64| sandbox.path(format!("live.git/objects/pack/pack-{n}.{end}"));
                    std::fs::copy(sandbox.path(end), sandbox.path("new")).expect("copies");
                    std::fs::rename(sandbox.path("new"), name(n)).expect("renames");
                    let _ = n.checked_sub(4).map(|old| std::fs::remove_file(name(old)));
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    };
    let writer = std::thread::spawn(writer);
    while !sandbox.has("live.git/objects/pack/pack-8.idx") {
        std::thread::yield_now();
    }
    let outcome = sandbox.run(["backup", "live.git"]);
    ended.store(true, Relaxed);
    writer.join().expect("no panic");
    outcome.ok();
}

/// Repeats a job until it goes out of scope.
struct Worker {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn begin(
        sandbox: &Arc<Sandbox>,
        mut job: impl FnMut(&Sandbox, u64) + Send + 'static,
    ) -> Worker {
        let ended = Arc::new(AtomicBool::new(false));
        let (is_over, sandbox) = (Arc::clone(&ended), Arc::clone(sandbox));
        let work = move || {
            for round in 1.. {
                if is_over.load(Relaxed) {
                    return;
                }
                job(&sandbox, round);
            }
        };
        Worker { ended, thread: Some(std::thread::spawn(work)) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking());
    }
}

fn run_git(sandbox: &Sandbox, within: &str, arguments: &[&str]) -> Outcome {
    sandbox.tool("git").args(["-C", within, "-c", "gc.auto=0"]).args(arguments).run()
}

/// Commits a file in a work tree.
fn commit_file(sandbox: &Sandbox, tree: &str, round: u64) {
    sandbox.write(&format!("{tree}/{}.txt", round % 20), format!("{tree} {round}\n").repeat(200));
    run_git(sandbox, tree, &["add", "--all"]);
    run_git(sandbox, tree, &["commit", "--quiet", "--allow-empty", "-m", "x"]);
}

#[test]
fn copies_of_a_repository_with_work_trees_are_whole() {
    let sandbox = Arc::new(Sandbox::with_store());
    sandbox.tool("git").args(["init", "--quiet", "--initial-branch=main", "main"]).run().ok();
    commit_file(&sandbox, "main", 0);
    for (name, option) in [("branch", "-bbranch"), ("detached", "--detach")] {
        run_git(&sandbox, "main", &["worktree", "add", "--quiet", option, &format!("../{name}")])
            .ok();
    }
    let workers: Vec<Worker> = ["main", "branch", "detached"]
        .into_iter()
        .map(|tree| Worker::begin(&sandbox, move |sandbox, n| commit_file(sandbox, tree, n)))
        .chain([Worker::begin(&sandbox, |sandbox, round| {
            let way: &[&str] = match round % 3 {
                0 => &["pack-refs", "--all"],
                1 => &["repack", "-dq", "--cruft", "--write-midx"],
                _ => &["repack", "-dq", "--geometric=2", "--write-midx", "--write-bitmap-index"],
            };
            run_git(sandbox, "main", way);
        })])
        .collect();
    for trial in 0..TRIALS / 2 {
        let copy = format!("copy-{trial}");
        sandbox.backup(["main", "branch", "detached"]);
        sandbox.restore(&sandbox.at("latest", "main/.git"), &copy);
        assert_eq!(verdict(&sandbox, &copy), Ok(()), "trial {trial}");
        for head in ["HEAD", "branch", "worktrees/detached/HEAD"] {
            let commit = format!("{head}^{{commit}}");
            let git = ["--git-dir", &copy, "rev-parse", "--verify", "--quiet", &commit];
            sandbox.tool("git").args(git).run().ok();
        }
        sandbox.remove(copy);
    }
    drop(workers);
    sandbox.assert_clean();
}

#[test]
fn copies_of_a_partial_clone_are_whole() {
    let sandbox = repository(Refs::Files, Hash::Sha1);
    git(&sandbox, &["config", "uploadpack.allowFilter", "true"]).run().ok();
    git(&sandbox, &["config", "uploadpack.allowAnySHA1InWant", "true"]).run().ok();
    let url = format!("file://{}", sandbox.text("live.git"));
    let clone = ["clone", "--quiet", "--mirror", "--filter=blob:none", &url, "partial.git"];
    sandbox.tool("git").args(clone).run().ok();
    let workers = [
        Worker::begin(&sandbox, |sandbox, round| {
            commit(sandbox, round, Packing::DropsUnreachable);
        }),
        Worker::begin(&sandbox, |sandbox, round| {
            run_git(sandbox, "partial.git", &["fetch", "--quiet"]);
            // Blobs arrive on demand, each batch as a pack of its own.
            let blob = format!("imported:imported/{}.txt", round % 40);
            run_git(sandbox, "partial.git", &["cat-file", "blob", &blob]);
        }),
        Worker::begin(&sandbox, |sandbox, _| {
            run_git(sandbox, "partial.git", &["repack", "-adq"]);
            run_git(sandbox, "partial.git", &["pack-refs", "--all"]);
        }),
    ];
    for trial in 0..TRIALS / 2 {
        let copy = format!("copy-{trial}.git");
        sandbox.backup(["partial.git"]);
        sandbox.restore(&sandbox.at("latest", "partial.git"), &copy);
        let fsck = ["--git-dir", &copy, "fsck", "--full", "--strict", "--no-progress"];
        let printed = sandbox.tool("git").args(fsck).run().ok();
        let is_quiet = printed.stderr.lines().all(|line| line.starts_with("dangling"));
        assert!(is_quiet, "trial {trial}: {}", printed.all_output());
        assert!(!references(&sandbox, &copy).is_empty());
        sandbox.remove(copy);
    }
    drop(workers);
    sandbox.assert_clean();
}

#[test]
fn copies_are_whole_while_objects_move_to_an_alternate() {
    let sandbox = Arc::new(Sandbox::with_store());
    sandbox.tool("git").args(["init", "--quiet", "--initial-branch=main", "work"]).run().ok();
    commit_file(&sandbox, "work", 0);
    for name in ["fork.git", "pool.git"] {
        sandbox.tool("git").args(["clone", "--quiet", "--bare", "work", name]).run().ok();
    }
    sandbox.write("fork.git/objects/info/alternates", "../../pool.git/objects\n");
    run_git(&sandbox, "work", &["remote", "add", "origin", "../fork.git"]).ok();
    let workers = [
        Worker::begin(&sandbox, |sandbox, round| {
            commit_file(sandbox, "work", round);
            run_git(sandbox, "work", &["push", "--quiet", "origin", "main"]);
        }),
        Worker::begin(&sandbox, |sandbox, _| {
            let all = "+refs/heads/*:refs/remotes/fork/*";
            run_git(sandbox, "pool.git", &["fetch", "--quiet", "../fork.git", all]);
            run_git(sandbox, "fork.git", &["repack", "-adlq"]);
            run_git(sandbox, "pool.git", &["repack", "-adq", "--write-midx"]);
        }),
    ];
    for trial in 0..TRIALS / 2 {
        // Borrowers first: objects that leave them are in the pool by then.
        let (copy, store) = (format!("copy-{trial}"), sandbox.path("store"));
        let store = stores::open(&store, Purpose::Write);
        let mut options = stores::backup_options();
        options.about.clock = now;
        let likeness = Likeness::Instance("pool".into());
        let mut backup = Backup::begin(&store, &options, likeness).expect("begins");
        for name in ["fork.git", "pool.git"] {
            let paths = vec![sandbox.path(name)];
            backup.paths(&Sources { paths, ..Sources::default() }).expect("reads");
        }
        let report = backup.finish(None).expect("finishes");
        assert_eq!(report.unreadable_count, 0);
        drop(store);
        sandbox.restore(&format!("latest:{}", sandbox.text("").trim_end_matches('/')), &copy);
        for name in ["fork.git", "pool.git"] {
            let copy = format!("{copy}/{name}");
            assert_eq!(verdict(&sandbox, &copy), Ok(()), "trial {trial}, {name}");
        }
        sandbox.remove(copy);
    }
    drop(workers);
    sandbox.assert_clean();
}

/// Creates `work`, its bare clones `a.git` and `pool.git`, and runs the shell script `prepare`.
/// While a backup of `source` waits in front of the file `leased`, runs `change`. Returns the sandbox
/// after backup and restore, with the copy in `copy`.
fn changed_meanwhile(prepare: &str, source: &str, leased: &str, change: &str) -> Sandbox {
    let sandbox = Sandbox::with_store();
    let create = "git init -q -b main work; cd work
        for n in 1 2 3; do git commit -q --allow-empty -m $n; git branch b$n; done
        cd ..; git clone -q --bare work a.git; git clone -q --bare work pool.git";
    sandbox.tool("sh").args(["-ec", &format!("{create}\n{prepare}")]).run().ok();
    let lease = Lease::hold(&sandbox, &format!("{source}/{leased}"), Some(change));
    let outcome = sandbox.run(["backup", source]);
    lease.end(&sandbox);
    outcome.ok();
    sandbox.restore(&sandbox.at("latest", source), "copy");
    sandbox
}

/// Returns what the shell command prints.
fn said(sandbox: &Sandbox, command: &str) -> String {
    line(&sandbox.tool("sh").args(["-ec", command]).run().ok())
}

#[test]
fn a_repository_that_joins_a_pool_meanwhile_names_it() {
    let join = "cd a.git; echo ../../pool.git/objects >new; mv new objects/info/alternates
        git repack -adlq; test -z \"$(ls objects/pack)\"";
    let sandbox = changed_meanwhile("", "a.git", "zz", join);
    assert_eq!(said(&sandbox, "cat copy/objects/info/alternates"), "../../pool.git/objects");
    said(&sandbox, "mkdir x; mv copy x/a.git; cp -R pool.git x");
    assert_eq!(verdict(&sandbox, "x/a.git"), Ok(()));
}

#[test]
fn a_repository_that_becomes_shallow_meanwhile_says_so() {
    let cut = "cd a.git; git rev-parse main >new; mv new shallow
        git for-each-ref --format='delete %(refname)' 'refs/heads/b*' | git update-ref --stdin
        git repack -adq";
    let sandbox = changed_meanwhile("", "a.git", "zz", cut);
    assert_eq!(said(&sandbox, "git -C copy rev-list --count main"), "1");
    assert_eq!(verdict(&sandbox, "copy"), Ok(()));
}

#[test]
fn references_that_change_their_format_meanwhile_are_in_the_copy() {
    let of =
        |git_dir: &str| format!("git -C {git_dir} for-each-ref; git -C {git_dir} rev-parse HEAD");
    for (before, after) in [("files", "reftable"), ("reftable", "files")] {
        let prepare = format!("git -C a.git refs migrate --ref-format={before} || true");
        let change = format!("git -C a.git refs migrate --ref-format={after}");
        let sandbox = changed_meanwhile(&prepare, "a.git", "zz", &change);
        assert_eq!(said(&sandbox, "git -C copy rev-parse --show-ref-format"), after);
        assert_eq!(said(&sandbox, &of("copy")), said(&sandbox, &of("a.git")), "{after}");
    }
}

#[test]
fn a_default_branch_that_is_renamed_meanwhile_is_in_the_copy() {
    let rename = "git -C a.git branch -m main trunk";
    let sandbox = changed_meanwhile("", "a.git", "zz", rename);
    assert_eq!(said(&sandbox, "git -C copy symbolic-ref HEAD"), "refs/heads/trunk");
    // What was read twice is counted once.
    let back = "git -C a.git branch -m trunk main";
    let lease = Lease::hold(&sandbox, "a.git/zz", Some(back));
    sandbox.remove("store");
    sandbox.run(["init"]).ok();
    let summary = sandbox.backup(["a.git"]);
    lease.end(&sandbox);
    let files: u64 = said(&sandbox, "find a.git -type f | wc -l").parse().expect("a number");
    assert_eq!(summary["files_new"], files, "{summary}");

    let prepare = "git -C work worktree add -q ../linked b1";
    let rename = "git -C work branch -m b1 b9";
    let sandbox = changed_meanwhile(prepare, "work/.git", "zz", rename);
    let head = "git --git-dir copy/worktrees/linked rev-parse -q --verify HEAD";
    assert_eq!(said(&sandbox, head), said(&sandbox, "git -C work rev-parse b9"));
}

/// Creates the repository `a.git`, runs the shell script `prepare`, and backs it up. Runs `change` in
/// each of this many readings, after the references were read and before the objects are. Returns the
/// sandbox, with the copy in `copy`, and the outcome.
fn changed_in_each_reading(
    times: usize,
    prepare: &str,
    change: impl Fn(usize) -> String,
) -> (Sandbox, Outcome) {
    let sandbox = Sandbox::with_store();
    let create = "git init -q -b main work; cd work; git commit -q --allow-empty -m 1; cd ..
        git clone -q --bare work a.git; mkdir -p a.git/objects/aa waiting";
    sandbox
        .tool("sh")
        .args([
            "-ec",
            &format!(
                "{create}
{prepare}"
            ),
        ])
        .run()
        .ok();
    // Each reading finds the file in front of which the next one waits.
    let place = |n: usize| match n {
        1 => "a.git/objects/aa/1".to_owned(),
        n => format!("waiting/{n}"),
    };
    let hold = |n: usize| {
        let next = format!("mv {} a.git/objects/aa/", place(n + 1));
        let next = if n < times { next } else { String::new() };
        Lease::hold(
            &sandbox,
            &place(n),
            Some(&format!(
                "set -e
{}
{next}",
                change(n)
            )),
        )
    };
    let leases: Vec<Lease> = (1..=times).map(hold).collect();
    let outcome = sandbox.run(["backup", "a.git"]);
    leases.into_iter().for_each(|lease| lease.end(&sandbox));
    sandbox.restore(&sandbox.at("latest", "a.git"), "copy");
    (sandbox, outcome)
}

/// Returns a script that forces the reference `moves` to a new commit and deletes the old one.
fn forced(n: usize, is_packed: bool) -> String {
    let pack = if is_packed { "git -C a.git pack-refs --all" } else { "" };
    format!(
        "new=$(git -C a.git commit-tree -m {n} main^{{tree}})
        git -C a.git update-ref refs/heads/moves $new
        {pack}
        git -C a.git repack -adq; git -C a.git prune --expire=now"
    )
}

#[test]
fn a_reference_whose_old_commits_are_deleted_meanwhile_is_whole() {
    for is_packed in [false, true] {
        let change = |n| forced(n, is_packed);
        let (sandbox, outcome) = changed_in_each_reading(5, &change(0), change);
        outcome.ok();
        // Of any of the readings: its packs may have been read before the change.
        said(&sandbox, "git -C copy rev-parse moves^{commit}");
        said(&sandbox, "rm copy/objects/aa/?");
        assert_eq!(verdict(&sandbox, "copy"), Ok(()));
    }
}

#[test]
fn a_reference_whose_commits_keep_going_away_is_reported() {
    let change = |n| forced(n, true);
    let (_, outcome) = changed_in_each_reading(10, &change(0), change);
    let output = outcome.ends_with(3).all_output();
    assert!(output.contains("a.git: objects that it names kept going away"), "{output}");
}

#[test]
fn a_reference_that_was_broken_before_is_no_change() {
    let broken = "echo 1234567890123456789012345678901234567890 >a.git/refs/heads/broken";
    let change = |n| format!("git -C a.git branch new{n} main");
    let (sandbox, outcome) = changed_in_each_reading(10, broken, change);
    outcome.ok();
    assert!(sandbox.has("copy/refs/heads/broken"));
}

#[test]
fn a_detached_head_that_moves_meanwhile_is_read_once() {
    let prepare = "git -C work checkout -q --detach";
    let commit = "git -C work commit -q --allow-empty -m new";
    let sandbox = changed_meanwhile(prepare, "work/.git", "zz", commit);
    assert_eq!(said(&sandbox, "git -C copy rev-list --count HEAD"), "3");
    assert_eq!(verdict(&sandbox, "copy"), Ok(()));
}

#[test]
fn objects_that_move_to_a_pool_meanwhile_are_in_its_copy() {
    let prepare = "mkdir s; for n in 1 2; do git clone -q --bare work s/$n-pool.git; done
        echo ../../1-pool.git/objects >s/2-pool.git/objects/info/alternates
        git clone -q --bare work s/a.git; echo ../../2-pool.git/objects >s/a.git/objects/info/alternates
        git -C s/a.git update-ref refs/heads/own $(echo own | git -C s/a.git commit-tree main^{tree})";
    // Both pools were read by then.
    let moved = "cd s; refs='+refs/heads/*:refs/remotes/x/*'
        for pool in 1 2; do git -C $pool-pool.git fetch -q ../a.git \"$refs\"; done
        for borrower in 2-pool a; do git -C $borrower.git repack -adlq; done
        git -C 1-pool.git refs migrate --ref-format=reftable; git -C 1-pool.git branch -m main trunk";
    let sandbox = changed_meanwhile(prepare, "s", "a.git/zz", moved);
    assert_eq!(said(&sandbox, "find s/2-pool.git s/a.git -name '*.pack'"), "");
    for name in ["1-pool", "2-pool", "a"] {
        assert_eq!(verdict(&sandbox, &format!("copy/{name}.git")), Ok(()), "{name}");
    }
    // Nothing changed since.
    assert_eq!(sandbox.backup(["s"])["files_changed"], 0);
    assert_eq!(said(&sandbox, "git -C copy/1-pool.git symbolic-ref HEAD"), "refs/heads/trunk");
    assert_eq!(said(&sandbox, "git -C copy/1-pool.git branch --list main"), "");
    sandbox.assert_clean();
}

#[test]
fn a_branch_that_is_deleted_and_pruned_meanwhile_breaks_nothing() {
    for format in ["files", "reftable"] {
        let prepare = format!(
            "git -C a.git refs migrate --ref-format={format} || true
            git -C a.git update-ref refs/heads/old $(echo old | git -C a.git commit-tree main^{{tree}})
            git -C a.git repack -adq; mkdir a.git/objects/17"
        );
        let prune = "git -C a.git update-ref -d refs/heads/old; git -C a.git gc -q --prune=now";
        let sandbox = changed_meanwhile(&prepare, "a.git", "objects/17/zz", prune);
        sandbox.remove("copy/objects/17");
        assert_eq!(said(&sandbox, "git -C copy for-each-ref | wc -l"), "4", "{format}");
        assert_eq!(verdict(&sandbox, "copy"), Ok(()), "{format}");
    }
}

#[test]
fn a_directory_of_a_repository_that_is_away_for_a_moment_is_whole() {
    for pause in ["0", "0.3"] {
        let sandbox = Sandbox::with_store();
        let create = "git init -q --bare a.git; cd a.git
            commit=$(git commit-tree -m 1 $(git mktree </dev/null))
            for name in a/x b/y; do git update-ref refs/heads/$name $commit; done";
        sandbox.tool("sh").args(["-ec", create]).run().ok();
        let heads = "a.git/refs/heads";
        let away = format!("mv {heads}/b away; (sleep {pause}; mv away {heads}/b) >log 2>&1 &");
        let lease = Lease::hold_dir(&sandbox, &format!("{heads}/a"), &away);
        sandbox.run(["backup", "a.git"]).ok();
        lease.end(&sandbox);
        sandbox.restore(&sandbox.at("latest", "a.git"), "copy");
        assert_eq!(said(&sandbox, "git -C copy for-each-ref | wc -l"), "2", "{pause}");
    }
}

#[test]
fn loose_objects_that_are_pruned_meanwhile_are_not_named() {
    let branch = "old=$(echo old | git -C a.git commit-tree main^{tree})
        git -C a.git update-ref refs/heads/old $old";
    let reftable = format!("git -C a.git refs migrate --ref-format=reftable; {branch}");
    let delete = "git -C a.git update-ref -d refs/heads/old; git -C a.git prune --expire=now";
    let stage = "cd work; echo old >file; git add file";
    let restage = "cd work; echo new >file; git add file; git prune --expire=now";
    let stash = format!("{stage}; git commit -qm file; echo own >file; git stash -q");
    let drop_stash = "cd work; git stash drop -q; git prune --expire=now";
    let linked =
        "git -C work worktree add -q ../linked b1; cd linked; echo old >file; git add file";
    let restage_linked = "cd linked; echo new >file; git add file; git prune --expire=now";
    for (prepare, source, change) in [
        (branch, "a.git", delete),
        (&reftable, "a.git", delete),
        (stage, "work/.git", restage),
        (&stash, "work/.git", drop_stash),
        (linked, "work/.git", restage_linked),
    ] {
        let prepare = format!("({prepare}); mkdir -p {source}/objects/17");
        let sandbox = changed_meanwhile(&prepare, source, "objects/17/zz", change);
        sandbox.remove("copy/objects/17/zz");
        let fsck = "git -C copy fsck --no-progress --no-dangling 2>&1";
        assert_eq!(said(&sandbox, fsck), "", "{prepare}");
    }
}

#[test]
fn a_repository_that_is_replaced_meanwhile_is_whole() {
    let replace = "rm -rf s/a.git; mv new s/a.git";
    let prepare = "mkdir s; mv a.git s; cp -R s/a.git new";
    let sandbox = changed_meanwhile(prepare, "s", "a.git/zz", replace);
    assert_eq!(said(&sandbox, "git -C copy/a.git for-each-ref | wc -l"), "4");
    assert_eq!(verdict(&sandbox, "copy/a.git"), Ok(()));
    // One that goes away is not in the snapshot.
    let prepare = "mkdir s; mv a.git s; mv pool.git s";
    let sandbox = changed_meanwhile(prepare, "s", "a.git/zz", "rm -rf s/a.git");
    assert_eq!(said(&sandbox, "ls copy"), "pool.git");
}

#[test]
fn pools_that_appear_or_are_left_meanwhile_cost_no_objects() {
    // The directory of the pool was listed before.
    let join = "mkdir s/0; mv pool.git s/0/pool.git
        echo ../../0/pool.git/objects >s/a.git/objects/info/alternates; git -C s/a.git repack -adlq";
    let sandbox = changed_meanwhile("mkdir s; mv a.git s", "s", "a.git/zz", join);
    assert_eq!(verdict(&sandbox, "copy/a.git"), Ok(()));
    assert_eq!(verdict(&sandbox, "copy/0/pool.git"), Ok(()));
    // The borrower was read before.
    let prepare = "mkdir s; mv a.git s; mv pool.git s
        echo ../../pool.git/objects >s/a.git/objects/info/alternates; git -C s/a.git repack -adlq";
    let leave = "git -C s/a.git repack -adq; rm s/a.git/objects/info/alternates; rm -r s/pool.git";
    let sandbox = changed_meanwhile(prepare, "s", "pool.git/zz", leave);
    assert_eq!(verdict(&sandbox, "copy/a.git"), Ok(()));
}

#[test]
fn a_repository_that_is_moved_away_and_back_meanwhile_is_whole() {
    let away = "mv s/a.git x; sleep 0.15; mv x s/a.git";
    let sandbox = changed_meanwhile("mkdir s; mv a.git s", "s", "a.git/zz", away);
    assert_eq!(verdict(&sandbox, "copy/a.git"), Ok(()));
}

#[test]
fn packs_behind_a_link_are_as_new_as_the_references() {
    let prepare = "mkdir -p s/0; mv a.git s; mv s/a.git/objects/pack s/0/packs
        ln -s ../../0/packs s/a.git/objects/pack";
    let repack =
        "cd s/a.git; git commit-tree -m new main^{tree} >x; git update-ref refs/heads/new $(cat x)
        git repack -adq";
    let sandbox = changed_meanwhile(prepare, "s", "a.git/zz", repack);
    assert_eq!(verdict(&sandbox, "copy/a.git"), Ok(()));
    // All objects are, or move meanwhile.
    let prepare =
        "mkdir -p s/0; mv a.git s; mv s/a.git/objects s/0/o; ln -s ../0/o s/a.git/objects";
    let sandbox = changed_meanwhile(prepare, "s", "a.git/zz", repack);
    assert_eq!(verdict(&sandbox, "copy/a.git"), Ok(()));
    let change = "mv s/a.git/objects s/0/o; ln -s ../0/o s/a.git/objects";
    let sandbox = changed_meanwhile("mkdir -p s/0; mv a.git s", "s", "a.git/zz", change);
    assert_eq!(verdict(&sandbox, "copy/a.git"), Ok(()));
}

#[test]
fn places_of_objects_that_are_not_in_the_backup_are_named() {
    let sandbox = Sandbox::with_store();
    let create = "git init -q -b main work; git -C work commit -q --allow-empty -m 1
        mkdir -p s; git clone -q --bare work pool.git
        git clone -q --bare --shared pool.git s/a.git
        git clone -q --bare work s/b.git; mv s/b.git/objects/pack packs
        ln -s ../../../packs s/b.git/objects/pack";
    sandbox.tool("sh").args(["-ec", create]).run().ok();
    let outcome = sandbox.run(["backup", "s"]).ok();
    let named = format!("s/b.git needs objects of {}", sandbox.text("packs"));
    assert!(outcome.stderr.contains(&named), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("(1 more"), "{}", outcome.stderr);
    // Also while they are unchanged.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    sandbox.run(["backup", "s"]).ok();
    let outcome = sandbox.run(["backup", "s"]).ok();
    assert!(outcome.stderr.contains(&named), "{}", outcome.stderr);
    // Another source has them.
    let outcome = sandbox.run(["backup", "s", "pool.git", "packs"]).ok();
    assert!(!outcome.stderr.contains("needs objects"), "{}", outcome.stderr);
}

#[test]
fn the_reftable_of_a_linked_work_tree_is_whole() {
    let prepare = "rm -r work; git init -q -b main --ref-format=reftable work
        git -C work commit -q --allow-empty -m 1
        git -C work worktree add -q --detach ../linked
        for n in 1 2 3; do git -C linked update-ref refs/worktree/$n HEAD; done";
    let pack = "git -C linked pack-refs --all; git -C linked update-ref refs/worktree/4 HEAD";
    let own = "work/.git/worktrees/linked/reftable";
    let pack = format!(
        "ls {own} >before; {pack}; ls {own} >after; test \"$(cat before)\" != \"$(cat after)\""
    );
    let sandbox = changed_meanwhile(prepare, "work/.git", "worktrees/linked/a", &pack);
    let tables = "cd copy/worktrees/linked/reftable; ls $(cat tables.list); ls *.ref | sort";
    let listed = said(&sandbox, "cd copy/worktrees/linked/reftable; sort tables.list");
    assert_eq!(said(&sandbox, tables), format!("{listed}\n{listed}"));
    let refs = "for-each-ref --format='%(refname)' refs/worktree | wc -l";
    assert_eq!(said(&sandbox, &format!("git --git-dir copy/worktrees/linked {refs}")), "4");

    // A table that is gone for good is reported by each backup.
    let gone = said(&sandbox, &format!("head -1 {own}/tables.list"));
    sandbox.remove(format!("{own}/{gone}"));
    for _ in 0..2 {
        let outcome = sandbox.run(["backup", "work/.git"]).ends_with(3);
        assert!(outcome.stderr.contains(&gone), "{}", outcome.stderr);
    }
}

#[test]
fn the_repository_of_a_submodule_is_read_in_order() {
    let prepare = "git -c protocol.file.allow=always -C work submodule --quiet add ../pool.git sub
        cd work/sub; for n in 4 5 6; do git commit -q --allow-empty -m $n; done";
    let sub = "work/.git/modules/sub";
    // Listed loose objects are gone, and the pack is new.
    let pack = format!("cd {sub}; git repack -adq; ! ls -d objects/?? 2>&1");
    let sandbox = changed_meanwhile(prepare, "work/.git", "modules/sub/a", &pack);
    said(&sandbox, "git config --file copy/modules/sub/config --unset core.worktree");
    assert_eq!(said(&sandbox, "git --git-dir copy/modules/sub rev-list --count main"), "6");
    assert_eq!(verdict(&sandbox, "copy/modules/sub"), Ok(()));
}

#[test]
fn a_repository_without_a_quiet_moment_is_reported() {
    let sandbox = changed_meanwhile("", "a.git", "zz", "true");
    // Each reading takes longer than the worker waits for a processor.
    let commit = sandbox.read("a.git/packed-refs");
    let commit =
        String::from_utf8(commit).expect("text").lines().last().expect("a line")[..40].to_owned();
    for n in 0..3000 {
        sandbox.write(&format!("a.git/refs/heads/x{n}"), &commit);
    }
    let shared = Arc::new(sandbox);
    let worker = Worker::begin(&shared, |sandbox, round| {
        sandbox.write("a.git/new", format!("[core]\n\tbare = true\n# {round}\n"));
        let [new, old] = ["a.git/new", "a.git/config"].map(|name| sandbox.path(name));
        std::fs::rename(new, old).expect("replaces the configuration");
    });
    let mut backups = (0..20).map(|_| shared.run(["backup", "a.git"]));
    let outcome = backups.find(|outcome| outcome.code() != Some(0)).expect("finds no moment");
    drop(worker);
    let said = "a.git: its config kept changing during the backup";
    assert!(outcome.ends_with(3).stderr.contains(said));
}

#[expect(clippy::disallowed_methods, reason = "a backup in this process needs a clock")]
fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since = since.expect("the clock is set");
    Time { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() }
}

/// Copies in alphabetical order, like `cp -a` and most backup programs, and skips files that went
/// away meanwhile.
fn naive_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    let mut names: Vec<_> = std::fs::read_dir(from)?.collect::<Result<_, _>>()?;
    names.sort_by_key(std::fs::DirEntry::file_name);
    for entry in names {
        let target = to.join(entry.file_name());
        // The speed of a network. The disk of a test is too fast for a conflict.
        std::thread::sleep(std::time::Duration::from_millis(2));
        let copied = if entry.path().is_dir() {
            naive_copy(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), &target).map(drop)
        };
        match copied {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn a_naive_copy_shows_that_these_tests_can_fail() {
    let sandbox = repository(Refs::Files, Hash::Sha1);
    let busy = Busy::begin(&sandbox, Packing::DropsUnreachable);
    let mut broken = 0;
    for trial in 0..5 {
        let copy = format!("naive-{trial}.git");
        naive_copy(&sandbox.path("live.git"), &sandbox.path(&copy)).expect("copies");
        broken += u32::from(verdict(&sandbox, &copy).is_err());
    }
    busy.end();
    let mut stdout = std::io::stdout().lock();
    let _ = std::io::Write::write_all(
        &mut stdout,
        format!("naive copies: {broken} of 5 broken\n").as_bytes(),
    );
}
