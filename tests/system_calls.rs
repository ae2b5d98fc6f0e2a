//! Any system call of a run may fail or do less than requested, below the backend and below SQLite.
//!
//! A run that ends with 0 did all of it. With any exit code, four things hold:
//!
//! - no run panics,
//! - listed snapshots can be restored,
//! - no run blames something that works,
//! - the next run works without the fault.
//!
//! The short lanes let some calls of each name fail. The long one lets all of them fail: `cargo
//! test -p forgekeep --test forgekeep system_calls:: -- --ignored --nocapture`.

use crate::support::aftermath::{comes_back, differences, naming, next_backup};
use crate::support::sandbox::{Dice, Outcome, Sandbox};
use crate::support::show;
use crate::support::tree::{Ignore, compare_ignoring};
use crate::support::trip::{Errno, Fault, Trip};
use std::path::PathBuf;
use std::sync::Arc;
use store::observe::Silent;
use store::store::{Purpose, Store};

const OPENS: &str = "open,openat,openat2";
const STATS: &str = "stat,lstat,statx,newfstatat,fstat";
const RENAMES: &str = "rename,renameat,renameat2";

/// Calls that read.
const READS: &[&str] = &["read", "pread64", "getdents64", OPENS, STATS, "lseek", "mmap"];
/// Calls that write bytes or names.
const WRITES: &[&str] = &[
    "write",
    "pwrite64",
    "fsync,fdatasync",
    "ftruncate",
    "fallocate",
    "mkdir,mkdirat",
    RENAMES,
    "unlink,unlinkat",
    "symlinkat",
    "link,linkat",
    "mknodat",
];
/// Calls that lock; SQLite locks with `fcntl`.
const LOCKS: &[&str] = &["flock", "fcntl"];
/// Calls that set or read attributes.
const ATTRIBUTES: &[&str] = &[
    "chmod,fchmod,fchmodat",
    "fchown,fchownat",
    "utimensat",
    "setxattr,lsetxattr,fsetxattr",
    "getxattr,lgetxattr,fgetxattr",
    "listxattr,llistxattr,flistxattr",
    "readlink,readlinkat",
];

/// Faults of disks, for readers and for writers.
const OF_READS: &[Fault] = &[Fault::Once(Errno::Io), Fault::ForGood(Errno::Io), Fault::Short];
const OF_WRITES: &[Fault] = &[
    Fault::Once(Errno::Io),
    Fault::ForGood(Errno::Io),
    Fault::Once(Errno::NoSpace),
    Fault::ForGood(Errno::NoSpace),
    Fault::Short,
];

/// Share of the calls of one name that fail.
#[derive(Clone, Copy)]
enum Lane {
    /// The first, the fifth, the twenty-first …
    Short,
    All,
}

/// A command, and the calls that fail in it.
struct Case {
    arguments: Vec<String>,
    below: &'static str,
    calls: Vec<&'static str>,
    faults: &'static [Fault],
    /// Allowed exit codes besides 0.
    codes: &'static [i32],
    /// Words that would blame something that works.
    innocent: &'static [&'static str],
}

impl Case {
    /// Runs the command repeatedly, each time with the next call failing, until all have failed.
    /// `examine` gets true if one failed, and returns the fault it finds.
    fn run(
        &self,
        lane: Lane,
        sandbox: &Sandbox,
        mut examine: impl FnMut(&Outcome, bool) -> Result<(), String>,
    ) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let (mut runs, mut failures) = (0, Vec::new());
        for (call, fault) in
            self.calls.iter().flat_map(|call| self.faults.iter().map(move |f| (call, f)))
        {
            let is_short = *fault == Fault::Short;
            if is_short && !["read", "pread64", "write", "pwrite64"].contains(call) {
                continue;
            }
            let mut n = 1;
            loop {
                put_back(sandbox);
                let trip = Trip { call, below: self.below, n, fault: *fault };
                let (outcome, count) = trip.run(sandbox, &arguments);
                runs += 1;
                if let Err(error) =
                    self.is_sane(call, &outcome).and_then(|()| examine(&outcome, count >= n))
                {
                    failures.push(format!("{trip}: {error}\n{}", outcome.all_output()));
                }
                // From the first on, all calls are short: one run is enough.
                if count <= n || is_short {
                    break;
                }
                n = match lane {
                    Lane::Short => 4 * n + 1,
                    Lane::All => n + 1,
                };
            }
        }
        show(&format!("{runs} runs of {}", self.arguments.join(" ")));
        assert!(runs > self.calls.len(), "nothing failed");
        let shown = failures.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
        assert!(failures.is_empty(), "{} of {runs} runs: {shown}", failures.len());
    }

    fn is_sane(&self, call: &str, outcome: &Outcome) -> Result<(), String> {
        let code = outcome.code().unwrap_or(-1);
        if code != 0 && !self.codes.contains(&code) {
            return Err(format!("it ended with {code}"));
        }
        // Files are opened for reading and for writing.
        let is_open = |words: &str| call == OPENS && words.starts_with("cannot");
        let is_blamed = |words: &&&str| outcome.stderr.contains(**words) && !is_open(words);
        match ["panicked"].iter().chain(self.innocent).find(is_blamed) {
            Some(words) => Err(format!("it reported {words:?}")),
            None => Ok(()),
        }
    }
}

/// Creates a store with one snapshot, and a source that changed since.
fn prepare() -> Sandbox {
    prepare_with(|_, _| {})
}

/// The same, with a git directory whose entries wait in scratch files.
fn prepare_large_git_dir() -> Sandbox {
    prepare_with(|sandbox, night| {
        if night == 0 {
            let init = ["init", "--quiet", "--bare", "source/large.git"];
            sandbox.tool("git").args(init).run().ok();
        }
        for n in 80 * night..80 * (night + 1) {
            sandbox.write(&format!("source/large.git/refs/heads/{n}"), format!("{n:040x}\n"));
            sandbox.write(&format!("source/large.git/objects/ab/{n:038x}"), format!("{n}"));
        }
    })
}

/// The same. `write` writes more into the source: first for night 0, then for night 1.
fn prepare_with(write: impl Fn(&Sandbox, u64)) -> Sandbox {
    let sandbox = Sandbox::in_memory();
    sandbox.run(["init"]).ok();
    let dump = |night: u64| {
        let row = |row: u64| {
            let mut dice = Dice::new(row * 1009 + if row.is_multiple_of(50) { night } else { 0 });
            format!("INSERT INTO t VALUES ({row}, '{:016x}');\n", dice.roll())
        };
        (0..1000).map(row).collect::<String>()
    };
    sandbox.write("source/always", Dice::new(1).bytes(9000));
    sandbox.write("source/dir/inline", "inline");
    sandbox.write("source/dump.sql", dump(0));
    sandbox.tool("ln").args(["-s", "always", "source/link"]).run().ok();
    sandbox.tool("ln").args(["source/always", "source/dir/name"]).run().ok();
    sandbox.tool("mkfifo").args(["source/fifo"]).run().ok();
    let flags = rustix::fs::XattrFlags::empty();
    // Where such attributes are supported.
    let _ = rustix::fs::setxattr(sandbox.path("source/always"), "user.x", b"value", flags);
    write(&sandbox, 0);
    sandbox.backup(["source"]);
    sandbox.tool("cp").args(["-a", "source", "before"]).run().ok();
    sandbox.write("source/dump.sql", dump(1));
    write(&sandbox, 1);
    sandbox.write("source/changed", Dice::new(2).bytes(40_000));
    sandbox.tool("cp").args(["-a", "store", "store-before"]).run().ok();
    sandbox
}

fn put_back(sandbox: &Sandbox) {
    sandbox.tool("rm").args(["-rf", "store", "target"]).run().ok();
    sandbox.tool("cp").args(["-a", "store-before", "store"]).run().ok();
}

fn source(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("source").canonicalize().expect("is there")
}

fn open(sandbox: &Sandbox) -> Result<Store, String> {
    let observer = Arc::new(Silent::default());
    Store::open(&sandbox.path("store"), Purpose::Write, observer).map_err(naming("open"))
}

/// Asserts that without faults every listed snapshot can be restored, the next backup works, and
/// the store is clean. Returns the number of snapshots.
fn recovers(sandbox: &Sandbox) -> Result<usize, String> {
    let (store, source) = (open(sandbox)?, source(sandbox));
    let (snapshots, _) = store.snapshots().map_err(naming("snapshots"))?;
    for (n, (id, snapshot)) in snapshots.iter().enumerate() {
        let right = if n == 0 { &sandbox.path("before") } else { &source };
        let found = differences(&store, snapshot, &source, right)?;
        // Unreadable paths are missing, and the backup reported them.
        let is_missing = |line: &String| is_missing(line) || is_of_made_up(line, &found);
        let is_reported = |line: &String| snapshot.unreadable_count > 0 && is_missing(line);
        if let Some(wrong) = found.iter().find(|line| !is_reported(line)) {
            return Err(format!("snapshot {id}: {wrong}"));
        }
    }
    let new = next_backup(&store, &source)?;
    let new = store.snapshot(&new).map_err(naming("the new snapshot"))?;
    comes_back(&store, &new, &source, &source)?;
    Ok(snapshots.len())
}

/// Returns true if a difference is a missing path, or a missing name of a file.
fn is_missing(difference: &str) -> bool {
    difference.ends_with("missing in b") || difference.contains("hard links")
}

/// Returns true if a difference is that of a directory which the backup made up, because it could
/// read only its content. It has the mode 0700.
fn is_of_made_up(difference: &str, all: &[String]) -> bool {
    let made_up = all.iter().filter_map(|line| line.strip_suffix(": mode: 0755 in a, 0700 in b"));
    made_up.into_iter().any(|path| difference.starts_with(&format!("{path}: ")))
}

/// Checks that a backup that ended with 0 made a complete snapshot. A backup that ended otherwise
/// must report none, or one with gaps.
fn backup_is_honest(sandbox: &Sandbox, outcome: &Outcome) -> Result<(), String> {
    let summary = outcome.json().pop().filter(|line| line["message_type"] == "summary");
    let is_saved = summary.as_ref().is_some_and(|summary| summary["snapshot_id"].is_string());
    let code = outcome.code();
    if is_saved != (code == Some(0) || code == Some(3)) {
        return Err(format!("it ended with {code:?} and reported {summary:?}"));
    }
    let errors = summary.map_or(0, |summary| summary["errors"].as_u64().unwrap_or(0));
    if (errors > 0) != (code == Some(3)) {
        return Err(format!("it ended with {code:?} and {errors} errors"));
    }
    match recovers(sandbox)? {
        1 if is_saved => Err("the snapshot that it reported is not there".to_owned()),
        _ => Ok(()),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn backup_with_faults_in_the_store(lane: Lane) {
    let sandbox = prepare();
    let arguments = words("backup source --json");
    let codes = &[1];
    let reading = Case {
        arguments: arguments.clone(),
        below: "store",
        calls: [READS, LOCKS].concat(),
        faults: OF_READS,
        codes,
        innocent: &["/source", "make space"],
    };
    let writing = Case {
        arguments,
        below: "store",
        calls: WRITES[..8].to_vec(),
        faults: OF_WRITES,
        codes,
        innocent: &["/source", "cannot read"],
    };
    for case in [reading, writing] {
        case.run(lane, &sandbox, |outcome, _| backup_is_honest(&sandbox, outcome));
    }
}

/// Of the store, only its scratch files fail.
fn backup_of_a_large_git_directory_with_faults(lane: Lane) {
    let sandbox = prepare_large_git_dir();
    let arguments = words("backup source --json");
    let scratch = Case {
        arguments: arguments.clone(),
        below: "store/tmp",
        calls: vec!["pread64", "pwrite64", OPENS],
        faults: OF_WRITES,
        codes: &[1],
        innocent: &["/source"],
    };
    let source = Case {
        arguments,
        below: "source",
        calls: vec!["getdents64", OPENS, STATS],
        faults: OF_READS,
        codes: &[1, 3],
        innocent: &["of the store", "index.sqlite", "cannot write"],
    };
    for case in [scratch, source] {
        case.run(lane, &sandbox, |outcome, _| backup_is_honest(&sandbox, outcome));
    }
}

fn backup_with_faults_in_the_source(lane: Lane) {
    let sandbox = prepare();
    let case = Case {
        arguments: words("backup source --json"),
        below: "source",
        // `reading` shows that unreadable attributes cost nothing else.
        calls: [READS, &ATTRIBUTES[6..]].concat(),
        faults: OF_READS,
        codes: &[1, 3],
        innocent: &["of the store", "index.sqlite", "cannot write"],
    };
    case.run(lane, &sandbox, |outcome, _| backup_is_honest(&sandbox, outcome));
}

/// Checks that a restore that ended with 0 restored everything. Without the fault it always does.
fn restore_is_honest(sandbox: &Sandbox, place: &str, outcome: &Outcome) -> Result<(), String> {
    let compare = || {
        let ignore = Ignore { top_directory: true, ..Ignore::default() };
        compare_ignoring(&sandbox.path("before"), &sandbox.path("target"), ignore)
    };
    let found = if outcome.code() == Some(0) { compare() } else { Vec::new() };
    if !found.is_empty() {
        return Err(format!("it ended with 0, and: {found:?}"));
    }
    let again = sandbox.run(["restore", place, "--target", "target"]);
    let found = compare();
    if again.code() != Some(0) || !found.is_empty() {
        return Err(format!("the next restore: {found:?} {}", again.all_output()));
    }
    Ok(())
}

fn restore_with_faults(lane: Lane) {
    let sandbox = prepare();
    let place = sandbox.at("latest", "source");
    let arguments = words(&format!("restore {place} --target target"));
    let from_store = Case {
        arguments: arguments.clone(),
        below: "store",
        calls: [READS, LOCKS].concat(),
        faults: OF_READS,
        codes: &[1, 3],
        innocent: &["cannot write", "make space"],
    };
    let into_target = Case {
        arguments,
        below: "target",
        calls: [READS, WRITES, ATTRIBUTES].concat(),
        faults: OF_WRITES,
        codes: &[1, 3],
        innocent: &["of the store", "index.sqlite"],
    };
    for case in [from_store, into_target] {
        case.run(lane, &sandbox, |outcome, _| restore_is_honest(&sandbox, &place, outcome));
    }
}

fn check_and_rebuild_with_faults(lane: Lane) {
    let sandbox = prepare();
    let checking = Case {
        arguments: words("check --read-data"),
        below: "store",
        calls: [READS, LOCKS].concat(),
        faults: OF_READS,
        codes: &[1],
        // A check writes its record, too.
        innocent: &["make space"],
    };
    checking.run(lane, &sandbox, |_, _| recovers(&sandbox).map(drop));
    let rebuilding = Case {
        arguments: words("index rebuild"),
        below: "store",
        calls: [READS, WRITES, LOCKS].concat(),
        faults: OF_WRITES,
        codes: &[1],
        innocent: &["/source"],
    };
    rebuilding.run(lane, &sandbox, |_, _| recovers(&sandbox).map(drop));
}

/// A check never skips an unreadable segment.
fn check_reads_every_segment(lane: Lane) {
    let sandbox = prepare();
    let case = Case {
        arguments: words("check --read-data"),
        below: "store/segments",
        calls: vec!["pread64", OPENS, "getdents64"],
        faults: &[Fault::Once(Errno::Io), Fault::ForGood(Errno::Io)],
        codes: &[1],
        innocent: &["cannot write"],
    };
    case.run(lane, &sandbox, |outcome, has_failed| match outcome.code() {
        Some(0) if has_failed => Err("it read what cannot be read".to_owned()),
        _ => Ok(()),
    });
}

#[test]
fn a_backup_survives_faults_of_the_disk_of_the_store() {
    backup_with_faults_in_the_store(Lane::Short);
}

#[test]
fn a_backup_survives_faults_of_the_disk_of_the_source() {
    backup_with_faults_in_the_source(Lane::Short);
}

#[test]
fn a_backup_of_a_large_git_directory_survives_faults_of_both_disks() {
    backup_of_a_large_git_directory_with_faults(Lane::Short);
}

#[test]
fn a_restore_survives_faults_of_both_disks() {
    restore_with_faults(Lane::Short);
}

#[test]
fn check_and_rebuild_survive_faults_of_the_disk() {
    check_and_rebuild_with_faults(Lane::Short);
    check_reads_every_segment(Lane::Short);
}

#[test]
#[ignore = "a slow lane, see CONTRIBUTING.md"]
fn every_system_call_may_fail() {
    let lanes = [
        backup_with_faults_in_the_store,
        backup_with_faults_in_the_source,
        backup_of_a_large_git_directory_with_faults,
        restore_with_faults,
        check_and_rebuild_with_faults,
        check_reads_every_segment,
    ];
    lanes.into_iter().for_each(|lane| lane(Lane::All));
}
