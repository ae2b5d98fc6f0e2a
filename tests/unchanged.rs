//! Criteria for unchanged files, and files that are read again for safety.
//!
//! The test sets the clock of a backup. A file can therefore be as near to the start of a run, or
//! as far from it, as the rule requires.

use crate::support::sandbox::{Sandbox, need_root};
use crate::support::stores;
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::backup::Report;
use store::entry::Time;
use store::store::Purpose;

thread_local! {
    /// Nanoseconds since 1970. A backup reads the clock on the thread that called it.
    static NOW: Cell<i64> = const { Cell::new(0) };
}

const MILLISECOND: i64 = 1_000_000;
const SECOND: i64 = 1000 * MILLISECOND;

fn clock() -> Time {
    let now = NOW.get();
    Time { seconds: now.div_euclid(SECOND), nanoseconds: now.rem_euclid(SECOND) as u32 }
}

/// Backs up `source` at a time that the test chooses.
fn backup_at(sandbox: &Sandbox, now: i64) -> Report {
    NOW.set(now);
    let store = stores::open(&sandbox.path("store"), Purpose::Write);
    let mut options = stores::backup_options();
    options.about.clock = clock;
    stores::back_up(&store, &[&sandbox.path("source")], &options).expect("backs up")
}

/// Returns the time of the last inode change in nanoseconds since 1970.
fn ctime(path: &Path) -> i64 {
    let metadata = path.metadata().expect("is there");
    metadata.ctime() * SECOND + metadata.ctime_nsec()
}

fn set_mtime(path: &Path, time: SystemTime) {
    let file = File::options().write(true).open(path).expect("opens");
    file.set_modified(time).expect("sets the time");
}

#[test]
fn a_dry_run_counts_like_the_backup_that_follows() {
    let sandbox = Sandbox::with_store();
    let changes = [
        "mkdir -p source/dir/in source/gone/in; for n in 1 2 3 4 5; do echo $n >source/dir/$n; done; \
         head -c 300000 /dev/urandom >source/large; cp source/large source/copy; \
         echo x >source/gone/in/x; ln source/dir/1 source/name; truncate -s 9M source/hole; \
         git init -q --bare source/a.git",
        "rm source/dir/1 source/dir/2; rm -r source/gone; echo new >source/new; echo 3 >>source/dir/3",
        "rm source/dir/4; mkdir source/dir/4; rm source/copy; ln -s large source/copy; chmod 600 source/new",
        "rm -r source/a.git; rm source/hole source/large",
        "rm -r source; mkdir source",
    ];
    for change in changes {
        sandbox.tool("sh").args(["-ec", change]).run().ok();
        let backup = |more: &[&str]| {
            let run = sandbox.forgekeep(["backup", "--json", "source"]).args(more).run();
            let mut record = run.json().pop().expect("a record");
            let record = record.as_object_mut().expect("an object");
            record.retain(|name, value| {
                let is_count = ["files_", "dirs_", "total_"].iter().any(|of| name.starts_with(of));
                (is_count || name.starts_with("data_"))
                    && name != "total_duration"
                    && !value.is_null()
            });
            (run.code(), record.clone())
        };
        let (planned, done) = (backup(&["--dry-run"]), backup(&[]));
        assert_eq!(planned, done, "{change}");
        let has_parent = change != changes[0];
        assert_eq!(done.1.contains_key("files_removed"), has_parent, "{change}");
    }
}

#[test]
fn the_ctime_reveals_changes_that_keep_size_and_mtime() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "before");
    let path = sandbox.path("source/file");
    let mtime = path.metadata().and_then(|metadata| metadata.modified()).expect("a time");
    // The clock is set back by five minutes after this backup: no change looks recent.
    backup_at(&sandbox, ctime(&path) + 300 * SECOND);
    let before = ctime(&path);
    while ctime(&path) == before {
        let file = File::options().write(true).open(&path).expect("opens");
        file.write_all_at(b"behind", 0).expect("writes");
        set_mtime(&path, mtime);
    }
    let report = backup_at(&sandbox, ctime(&path));
    assert_eq!((report.statistics.files_changed, report.statistics.bytes_read), (1, 6));
    let snapshot = report.snapshot.expect("not a dry run").to_string();
    sandbox.restore(&sandbox.at(&snapshot, "source"), "restored");
    assert_eq!(sandbox.read("restored/file"), b"behind");
}

/// Returns true if a backup reads a file again when the previous one began `after` its last change.
fn is_read_again(after: i64, is_mtime_whole: bool) -> bool {
    let sandbox = Sandbox::with_store();
    let path = sandbox.path("source/file");
    loop {
        sandbox.write("source/file", "content");
        // Far from both ends of a second, so that nothing below crosses one.
        if (100..700).contains(&(ctime(&path) % SECOND / MILLISECOND)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // At least a second before the inode change that setting it causes.
    let seconds = (ctime(&path) / SECOND - 1) as u64;
    let nanoseconds = if is_mtime_whole { 0 } else { 1 };
    set_mtime(&path, UNIX_EPOCH + Duration::new(seconds, nanoseconds));
    let mtime = seconds as i64 * SECOND + i64::from(nanoseconds);
    let changed = if is_mtime_whole { mtime } else { ctime(&path) };
    backup_at(&sandbox, changed + after);
    let report = backup_at(&sandbox, ctime(&path) + 300 * SECOND);
    report.statistics.bytes_read > 0
}

#[test]
fn files_touched_within_the_clock_tick_of_a_run_are_read_again() {
    for after in [0, MILLISECOND, 10 * MILLISECOND] {
        assert!(is_read_again(after, false), "{after} ns after the ctime");
    }
    for after in [100 * MILLISECOND, SECOND, 60 * SECOND] {
        assert!(!is_read_again(after, false), "{after} ns after the ctime");
    }
}

#[test]
fn coarse_file_systems_have_a_clock_tick_of_one_second() {
    // The inode itself changed between 1.1 and 1.7 seconds after the mtime that was set.
    assert!(is_read_again(2 * SECOND - MILLISECOND, true));
    assert!(!is_read_again(60 * SECOND, true));
}

fn tool(sandbox: &Sandbox, words: &[&str]) {
    sandbox.tool(words[0]).args(&words[1..]).run().ok();
}

/// Returns the number of bytes that a second backup reads after this change to one file. Both
/// backups ignore the ctime.
fn read_without_ctime(change: impl Fn(&Sandbox)) -> u64 {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "content");
    sandbox.write("source/other", "other");
    let later = ctime(&sandbox.path("source/other")) + 3600 * SECOND;
    let backup = |now| {
        NOW.set(now);
        let store = stores::open(&sandbox.path("store"), Purpose::Write);
        let mut options = stores::backup_options();
        (options.about.clock, options.ignore_ctime) = (clock, true);
        stores::back_up(&store, &[&sandbox.path("source")], &options)
            .expect("backs up")
            .statistics
            .bytes_read
    };
    backup(later);
    change(&sandbox);
    backup(later + SECOND)
}

#[test]
fn other_metadata_counts_if_the_ctime_is_ignored() {
    assert_eq!(read_without_ctime(|_| {}), 0);
    type Change = (&'static str, fn(&Sandbox));
    let changes: [Change; 7] = [
        ("mode", |sandbox| tool(sandbox, &["chmod", "600", "source/file"])),
        ("owner", |sandbox| tool(sandbox, &["chown", "4711", "source/file"])),
        ("group", |sandbox| tool(sandbox, &["chgrp", "4711", "source/file"])),
        ("names", |sandbox| tool(sandbox, &["ln", "source/file", "name"])),
        ("mtime", |sandbox| set_mtime(&sandbox.path("source/file"), UNIX_EPOCH)),
        ("size", |sandbox| {
            tool(sandbox, &["cp", "-p", "source/file", "old"]);
            sandbox.write("source/file", "content and more");
            tool(sandbox, &["touch", "-r", "old", "source/file"]);
        }),
        ("inode", |sandbox| {
            tool(sandbox, &["cp", "-p", "source/file", "new"]);
            tool(sandbox, &["mv", "new", "source/file"]);
        }),
    ];
    need_root();
    for (what, change) in changes {
        assert!(read_without_ctime(change) > 0, "{what}");
    }
}

#[test]
fn a_forced_backup_counts_against_the_previous_snapshot() {
    let sandbox = Sandbox::with_store();
    for name in ["same", "changed", "removed", "dir/same"] {
        sandbox.write(&format!("source/{name}"), name);
    }
    sandbox.write("source/large", "0123456789".repeat(100_000));
    sandbox.backup(["source"]);
    sandbox.remove("source/removed");
    sandbox.write("source/changed", "another content");
    sandbox.write("source/new", "new");
    let summary = sandbox.json(["backup", "--force", "source"]).pop().expect("a summary");
    let count = |name: &str| summary[name].as_u64().expect("a number");
    let files = ["files_new", "files_changed", "files_unmodified", "files_removed"].map(count);
    assert_eq!(files, [1, 1, 3, 1], "{summary}");
    assert!(count("bytes_read") > 1_000_000, "{summary}");
    // Nothing changed since, but everything is read again.
    let summary = sandbox.json(["backup", "--force", "source"]).pop().expect("a summary");
    let count = |name: &str| summary[name].as_u64().expect("a number");
    let files = ["files_new", "files_changed", "files_unmodified", "files_removed"].map(count);
    assert_eq!(files, [0, 0, 5, 0], "{summary}");
    assert_eq!(["dirs_new", "dirs_changed", "dirs_removed"].map(count), [0, 0, 0], "{summary}");
    assert!(count("bytes_read") > 1_000_000, "{summary}");
}

#[test]
fn files_that_are_skipped_each_night_change_no_counts() {
    let sandbox = Sandbox::with_store();
    let git = ["init", "--quiet", "--bare", "--ref-format=reftable", "source/r.git"];
    sandbox.tool("git").args(git).run().ok();
    sandbox.write("source/r.git/reftable/0x000000000001-0x00000000000a-78e7612d.ref", "left over");
    sandbox.tool("git").args(["init", "--quiet", "--bare", "source/s.git"]).run().ok();
    sandbox.write("source/s.git/refs/heads/empty", "");
    sandbox.backup(["source"]);
    for _ in 0..2 {
        let summary = sandbox.backup(["source"]);
        assert_eq!((&summary["files_new"], &summary["files_changed"]), (&0.into(), &0.into()));
    }
}

#[test]
fn a_path_given_twice_is_recorded_once() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "x");
    std::os::unix::fs::symlink("source", sandbox.path("link")).expect("links");
    let spellings = ["source", "source/", "./source", "link/../source", "source/."];
    sandbox.backup(spellings);
    let snapshots = sandbox.json(["snapshots"]);
    let paths = snapshots.iter().find_map(|line| line["paths"].as_array()).expect("paths");
    assert_eq!(paths, &[sandbox.text("source")]);
}

#[test]
fn a_large_git_directory_gives_the_same_tree_when_all_of_it_is_read_again() {
    let sandbox = Sandbox::with_store();
    // The program under test holds only few entries in memory.
    let git_dir = |dir: &str, count: usize| {
        sandbox.tool("git").args(["init", "-q", "--bare", dir]).run().ok();
        for n in 0..count {
            sandbox.write(&format!("{dir}/refs/heads/{n}"), format!("{n:040x}\n"));
            sandbox.write(&format!("{dir}/refs/merge-requests/{n}/head"), format!("{n:040x}\n"));
            let object = format!("{:02x}/{n:038x}", n % 5);
            sandbox.write(&format!("{dir}/objects/{object}"), format!("{n}"));
            sandbox.write(&format!("{dir}/logs/refs/heads/{n}"), format!("{n}"));
        }
        for end in ["idx", "pack"] {
            sandbox.write(&format!("{dir}/objects/pack/pack-1.{end}"), end);
        }
        sandbox.write(&format!("{dir}/packed-refs"), "# pack-refs with: peeled\n");
        sandbox.write(&format!("{dir}/refs/heads/x.lock"), "not stored");
    };
    git_dir("source/r.git", 150);
    git_dir("source/r.git/modules/small", 5);
    git_dir("source/r.git/modules/large", 90);
    sandbox.write("source/r.git/modules/large.txt", "between others in path order");
    sandbox.write("source/zz", "after it");
    let pause = || std::thread::sleep(Duration::from_millis(50));
    pause();
    let first = sandbox.backup(["source"]);
    pause();
    sandbox.write("source/r.git/refs/heads/new", "1".repeat(40));
    sandbox.write("source/r.git/modules/large/refs/heads/7", "2".repeat(40));
    sandbox.remove("source/r.git/objects/00");
    for end in ["idx", "pack"] {
        sandbox.write(&format!("source/r.git/objects/pack/pack-2.{end}"), end);
    }
    pause();
    let second = sandbox.backup(["source"]);
    let number =
        |summary: &serde_json::Value, name: &str| summary[name].as_u64().expect("a number");
    assert_eq!([number(&second, "files_new"), number(&second, "files_changed")], [3, 1]);
    assert_eq!(number(&second, "files_removed"), 30);
    let unchanged = number(&first, "total_files_processed") - 30 - 1;
    assert_eq!(number(&second, "files_unmodified"), unchanged);
    sandbox.run(["backup", "--force", "source"]).ok();
    let trees: Vec<serde_json::Value> =
        sandbox.json(["snapshots"]).iter().map(|line| line["tree"].clone()).collect();
    let trees: Vec<_> = trees.iter().filter_map(|tree| tree.as_str()).collect();
    assert_eq!(trees.len(), 3);
    assert!(trees[0] != trees[1] && trees[1] == trees[2], "{trees:?}");
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    let locks = ["-name", "*.lock", "-delete"];
    sandbox.tool("find").args(["source"]).args(locks).run().ok();
    sandbox.tool("diff").args(["-r", "source", "restored"]).run().ok();
}

/// Other names of accounts show in the next snapshot, also for files that did not change. A name that
/// nobody knows any more stays.
#[test]
fn unchanged_files_get_the_names_that_accounts_have_now() {
    need_root();
    let sandbox = Sandbox::with_store();
    let script = "set -e
        mkdir -p source/dir
        for name in source/dir/f source/renamed source/later source/gone; do echo 1 > $name; done
        chown 64501:64501 source/dir/f source/renamed; chown 64502 source/later
        chown 64503 source/gone; setfacl -m u:64501:r source/gone
        mkdir source/old; echo 2 >source/old/link; chown 64503 source/old/link
        setfacl -m u:64503:r source/old/link; ln source/old/link source/z
        names() { grep -v :6450 passwd > new; printf '%s\\n' \"$@\" >> new; cat new > passwd; }
        cp /etc/passwd passwd; mount --bind passwd /etc/passwd; sleep 0.1
        names alice:x:64501:100::/:/bin/sh gina:x:64503:100::/:/bin/sh
        $FK backup source
        names bob:x:64501:100::/:/bin/sh carol:x:64502:100::/:/bin/sh
        mv source/old source/new
        $FK backup source | grep ' 5 unmodified'
        $FK ls -l latest
        names alice:x:64601:100::/:/bin/sh bob:x:64602:100::/:/bin/sh \
            carol:x:64603:100::/:/bin/sh gina:x:64604:100::/:/bin/sh
        $FK restore latest:$PWD/source -t restored
        cd restored
        test \"$(stat -c %u dir/f renamed later gone | xargs)\" = '64602 64602 64603 64604'
        getfacl -nc gone | grep user:64602:r
        test new/link -ef z";
    sandbox.in_mount_namespace(script).env("FORGEKEEP_STORE", sandbox.text("store")).run().ok();
}
