//! Checks leave records in the store, which show which snapshots are checked.

use crate::support::sandbox::{Dice, Outcome, Sandbox, need_root};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Returns the records in the store, newest first.
pub fn records(sandbox: &Sandbox) -> Vec<Value> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(sandbox.path("store/checks"))
        .map(|dir| dir.map(|file| file.expect("is there").path()).collect())
        .unwrap_or_default();
    // Of one second, the one that was written last comes first.
    let time = |path: &PathBuf| path.metadata().and_then(|found| found.modified()).expect("a time");
    files.sort_by_key(|path| std::cmp::Reverse(time(path)));
    let read = |path: &PathBuf| std::fs::read(path).expect("reads");
    files.iter().map(|path| serde_json::from_slice(&read(path)).expect("JSON")).collect()
}

fn summary(outcome: &Outcome) -> Value {
    outcome.json().pop().expect("a summary")
}

/// Returns the standing of each snapshot, oldest first.
fn standings(sandbox: &Sandbox) -> Vec<Value> {
    sandbox.json(["snapshots"]).iter().map(|line| line["checked"].clone()).collect()
}

/// Damages the first segment of more than 900 kB, and returns it.
fn damage_a_large_segment(sandbox: &Sandbox) -> String {
    let list = sandbox.tool("find").args(["store/segments", "-size", "+900k"]).run().ok().stdout;
    let segment = list.lines().next().expect("there is one").to_owned();
    let mut bytes = sandbox.read(&segment);
    bytes[150_000] ^= 1;
    sandbox.write(&segment, bytes);
    segment
}

#[test]
fn damage_is_known_with_a_new_index() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", Dice::new(1).bytes(1_000_000));
    sandbox.backup(["source"]);
    damage_a_large_segment(&sandbox);
    sandbox.run(["check", "--read-data"]).ends_with(1);
    let dry = ["restore", "latest", "--target", "out", "--dry-run"];
    for renew in [&["index", "rebuild"][..], &["snapshots"]] {
        sandbox.run(renew).ok();
        sandbox.run(dry).ends_with(3);
        sandbox.run(["check"]).ends_with(1);
        for suffix in ["", "-shm", "-wal"] {
            let file = format!("store/index.sqlite{suffix}");
            if sandbox.has(&file) {
                sandbox.remove(&file);
            }
        }
        sandbox.run(dry).ends_with(3);
        sandbox.run(["check"]).ends_with(1);
    }
}

/// With damage in a segment that a prune rewrites, the next backup stores the content again,
/// whether a check found it before or the prune does.
#[test]
fn a_prune_hides_no_damage_from_backups() {
    for is_known in [true, false] {
        let sandbox = Sandbox::with_store();
        for at in 0..20 {
            sandbox.write(&format!("source/{at:02}"), Dice::new(at).bytes(300_000));
        }
        sandbox.backup(["source"]);
        let first = sandbox.snapshot_ids().remove(0);
        for at in 1..20 {
            sandbox.remove(format!("source/{at:02}"));
        }
        sandbox.run(["backup", "--allow-loss", "source"]).ok();
        damage_a_large_segment(&sandbox);
        if is_known {
            sandbox.run(["check", "--read-data"]).ends_with(1);
        }
        sandbox.run(["index", "rebuild"]).ok();
        sandbox.run(["forget", &first]).ok();
        sandbox.run(["prune"]).ends_with(i32::from(!is_known));
        sandbox.run(["index", "rebuild"]).ok();
        sandbox.run(["backup", "source"]).ends_with(0);
        sandbox.restore(&sandbox.at("latest", "source"), "out");
        assert_eq!(sandbox.read("out/00"), sandbox.read("source/00"), "{is_known}");
        sandbox.run(["prune"]).ok();
        sandbox.run(["check", "--read-data"]).ok();
    }
}

#[test]
fn a_pinned_snapshot_with_a_damaged_record_can_be_forgotten() {
    let sandbox = Sandbox::with_store();
    for at in 0..2 {
        sandbox.write("source/a", at.to_string());
        sandbox.backup(["source"]);
    }
    let id = sandbox.snapshot_ids().pop().expect("a snapshot");
    sandbox.run(["pin", &id]).ok();
    sandbox.write(&format!("store/snapshots/{id}"), Dice::new(1).bytes(200));
    sandbox.run(["forget", &id]).fails(1, &["is pinned", "unpin"]);
    let printed = sandbox.run(["unpin", &id[..12]]).ok().stdout;
    assert!(printed.contains("unpinned: ") && printed.contains("damaged"), "{printed}");
    sandbox.run(["forget", &id]).ok();
    sandbox.run(["prune"]).ok();
}

#[test]
fn a_damaged_record_is_no_longer_named_once_it_is_forgotten() {
    let sandbox = Sandbox::with_store();
    for at in 0..2 {
        sandbox.write("source/a", at.to_string());
        sandbox.backup(["source"]);
    }
    let id = sandbox.snapshot_ids().pop().expect("a snapshot");
    let record = format!("store/snapshots/{id}");
    sandbox.write(&record, Dice::new(1).bytes(200));
    sandbox.run(["check"]).ends_with(1);
    let stderr = sandbox.run(["backup", "source"]).ends_with(3).stderr;
    assert!(stderr.contains("is damaged"), "{stderr}");
    sandbox.run(["forget", &id]).ok();
    for check in ["check", "--version"] {
        let stderr = sandbox.run(["backup", "source"]).ok().stderr;
        assert!(!stderr.contains("damaged"), "{stderr}");
        sandbox.run([check]).ok();
    }
}

#[test]
fn a_full_check_makes_snapshots_checked() {
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a".repeat(5000));
    sandbox.run(["init"]).ok();
    sandbox.backup(["source"]);
    assert_eq!(standings(&sandbox), [Value::Null]);
    assert!(!sandbox.has("store/checks"));
    assert_eq!(summary(&sandbox.run(["check", "--json"]).ok())["recorded"], true);
    assert_eq!(standings(&sandbox)[0]["standing"], "structure");
    let shown = sandbox.run(["snapshots"]).ok().stdout;
    assert!(shown.contains("  checked     paths") && shown.contains("  structure   /"), "{shown}");

    sandbox.write("source/b", "b".repeat(5000));
    sandbox.backup(["source"]);
    sandbox.run(["check", "latest", "--read-data"]).ok();
    let ids = sandbox.snapshot_ids();
    let standings_now = standings(&sandbox);
    assert_eq!(standings_now[0]["standing"], "structure");
    let checked = &standings_now[1];
    assert_eq!((&checked["standing"], &checked["kind"]), (&"checked".into(), &"check".into()));
    assert_eq!(checked["level"], "data");
    let record = &records(&sandbox)[0];
    assert_eq!(record["snapshots"], serde_json::json!([ids[1]]), "{record}");
    assert_eq!((&record["version"], &record["result"]), (&1.into(), &"good".into()));
    assert!(record["bytes"].as_u64() > Some(0) && record["rpo_seconds"].is_u64(), "{record}");
    let today = checked["time"].as_str().expect("a time")[..4].to_owned();
    let shown = sandbox.run(["snapshots"]).ok().stdout;
    assert!(shown.lines().any(|line| line.contains(&format!("B  {today}-"))), "{shown}");

    // All parts together are a check of all data.
    for part in ["1/2", "2/2"] {
        assert_eq!(standings(&sandbox)[0]["standing"], "structure");
        sandbox.run(["check", "--read-data-subset", part]).ok();
    }
    assert_eq!(standings(&sandbox)[0]["standing"], "checked");
    let counted = sandbox.run(["stats"]).ok().stdout;
    assert!(counted.contains("2 of 2 snapshots"), "{counted}");
}

#[test]
fn damage_is_recorded_for_the_snapshots_that_lost_something() {
    let sandbox = Sandbox::new();
    sandbox.run(["init"]).ok();
    sandbox.write("one/a", "a".repeat(50_000));
    sandbox.backup(["one"]);
    let files = |sandbox: &Sandbox| {
        let found = sandbox.tool("find").args(["store/segments", "-type", "f"]).run().ok().stdout;
        found.lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let first = files(&sandbox);
    sandbox.write("two/b", (0..50_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    sandbox.backup(["two"]);
    let longest = |name: &&String| sandbox.path(name.as_str()).metadata().expect("there").len();
    let new = files(&sandbox);
    let new = new.iter().filter(|name| !first.contains(name)).max_by_key(longest).expect("one");
    let mut bytes = sandbox.read(new);
    let end = bytes.len() - 200;
    bytes[600..end].iter_mut().step_by(50).for_each(|byte| *byte ^= 1);
    sandbox.write(new, bytes);
    sandbox.run(["check", "--read-data"]).ends_with(1);
    let now = standings(&sandbox);
    assert_eq!(now[0]["standing"], "checked", "{now:?}");
    assert_eq!(now[1]["standing"], "faulty", "{now:?}");
    let record = &records(&sandbox)[0];
    assert_eq!((&record["result"], &record["level"]), (&"faulty".into(), &"data".into()));
    assert!(record["message"].as_str().expect("text").contains("damaged, "), "{record}");
    let shown = sandbox.run(["snapshots"]).ok().stdout;
    assert!(shown.contains("  FAULTY      /"), "{shown}");
    // The next backup stores the file again; the damaged snapshot is whole again.
    sandbox.backup(["two"]);
    sandbox.run(["check", "--read-data"]);
}

/// Changes some bytes of a file in the store.
fn spoil(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("reads");
    bytes[at..at + 4].iter_mut().for_each(|byte| *byte ^= 0xff);
    std::fs::write(path, bytes).expect("writes");
}

/// Returns the segments of a store with more than 100 kB, oldest first.
fn large_segments(sandbox: &Sandbox) -> Vec<PathBuf> {
    let list = ["store/segments", "-size", "+100k", "-printf", "%T@ %p\\n"];
    let found = sandbox.tool("find").args(list).run().ok().stdout;
    let mut lines: Vec<&str> = found.lines().collect();
    lines.sort_unstable();
    lines
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(_, path)| sandbox.path(path))
        .collect()
}

/// Makes a store with three snapshots, each of which has a file that the others do not have.
fn three_nights() -> Sandbox {
    let (sandbox, mut dice) = (Sandbox::new(), Dice::new(3));
    sandbox.run(["init", "--group-readable"]).ok();
    for name in ["a", "b", "c"] {
        sandbox.write(&format!("source/{name}"), dice.bytes(200_000));
        sandbox.backup(["source"]);
    }
    sandbox
}

#[test]
fn damage_that_a_check_found_is_repaired_also_with_a_new_index() {
    let ways = ["the same index", "a rebuilt index", "no index", "a lost segment"];
    // The order of the names decides which of two copies a new index locates.
    for (how, is_first) in ways.iter().flat_map(|how| [(*how, true), (*how, false)]) {
        let sandbox = three_nights();
        let mut segments = large_segments(&sandbox);
        segments.sort();
        if !is_first {
            segments.reverse();
        }
        spoil(&segments[0], 5000);
        let found = sandbox.run(["check", "--read-data"]).ends_with(1).stdout;
        assert!(found.contains("the next backup repairs lost data"), "{found}");
        match how {
            "a rebuilt index" => drop(sandbox.run(["index", "rebuild"]).ok()),
            "no index" => {
                std::fs::remove_file(sandbox.path("store/index.sqlite")).expect("removes")
            }
            "a lost segment" => std::fs::remove_file(&segments[1]).expect("removes"),
            _ => {}
        }
        sandbox.backup(["source"]);
        sandbox.restore("latest", how);
        sandbox.run(["check", "--read-data"]).ok();
        // Nothing is stored again once it is repaired, also with yet another index.
        for _ in 0..2 {
            assert_eq!(sandbox.backup(["source"])["files_unmodified"], 3, "{how}");
            std::fs::remove_file(sandbox.path("store/index.sqlite")).expect("removes");
        }
    }
}

#[test]
fn damage_that_a_backup_met_is_repaired_by_the_next_also_with_a_new_index() {
    let (sandbox, mut dice) = (Sandbox::new(), Dice::new(4));
    sandbox.run(["init"]).ok();
    let rows = |changed: usize| {
        let mut dice = Dice::new(5);
        let row = |at: usize| {
            let value = dice.bytes(20);
            let text: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{at}\t{}\n", if at == changed { "changed" } else { &text })
        };
        (0..20_000).map(row).collect::<String>()
    };
    let dump = |changed| format!("--\n-- PostgreSQL database dump\n--\n{}", rows(changed));
    sandbox.write("source/d.sql", dump(usize::MAX));
    for at in 0..50 {
        sandbox.write(&format!("source/f{at}"), dice.bytes(3000));
    }
    sandbox.backup(["source"]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    sandbox.write("source/new", "new");
    sandbox.backup(["source"]);
    let segment = large_segments(&sandbox).remove(0);
    let len = std::fs::metadata(&segment).expect("its size").len() as usize;
    (3000..len - 3000).step_by(20_000).for_each(|at| spoil(&segment, at));
    sandbox.write("source/d.sql", dump(777));
    let met = sandbox.run(["backup", "source"]).ends_with(3).all_output();
    assert!(met.contains("run the backup again"), "{met}");
    std::fs::remove_file(sandbox.path("store/index.sqlite")).expect("removes");
    sandbox.backup(["source"]);
    sandbox.restore("latest", "restored");
}

#[test]
fn damaged_copies_of_records_are_repaired() {
    let sandbox = three_nights();
    let oldest = sandbox.snapshot_ids()[0].clone();
    spoil(&sandbox.path("store/snapshots").join(&oldest), 20);
    let found = sandbox.run(["check"]).ends_with(1).stdout;
    assert!(found.contains("the next backup repairs records"), "{found}");
    sandbox.backup(["source"]);
    sandbox.run(["check"]).ok();
}

#[test]
fn a_check_without_a_record_promises_no_repair() {
    need_root();
    let sandbox = three_nights();
    spoil(&large_segments(&sandbox)[0], 5000);
    sandbox.tool("chmod").args(["-R", "a+rX", "store", "."]).run().ok();
    let reader = sandbox.as_nobody(["check", "--read-data"]).run().ends_with(1).stdout;
    assert!(reader.contains("run this check as a user who may write"), "{reader}");
    assert!(!reader.contains("the next backup"), "{reader}");
}

/// Replaces the only record by one that a clock made which is `ahead` by this number of seconds.
fn move_record(sandbox: &Sandbox, ahead: i64) {
    let record = records(sandbox)[0].to_string();
    let started = records(sandbox)[0]["started"].as_i64().expect("a time");
    std::fs::remove_dir_all(sandbox.path("store/checks")).expect("removes");
    let later = started + ahead;
    let record = record.replace(&started.to_string(), &later.to_string()) + "\n";
    let hash = blake3::hash(record.as_bytes());
    sandbox.write(&format!("store/checks/{later:012}-{hash}"), &record);
}

#[test]
fn a_fault_outlives_good_checks_that_did_not_know_of_it_whatever_the_clocks_say() {
    let sandbox = three_nights();
    let segment = large_segments(&sandbox).remove(0);
    let intact = std::fs::read(&segment).expect("reads");
    sandbox.run(["check", "--read-data"]).ok();
    move_record(&sandbox, 300);
    spoil(&segment, 5000);
    sandbox.run(["check", "--read-data"]).ends_with(1);
    assert!(sandbox.run(["snapshots"]).ok().stdout.contains("FAULTY"));
    std::fs::remove_file(sandbox.path("store/index.sqlite")).expect("removes");
    sandbox.backup(["source"]);
    sandbox.restore("latest", "restored");
    sandbox.run(["check"]).ok();
    // A check that knew of it ends the fault.
    std::fs::write(&segment, intact).expect("puts it back");
    sandbox.run(["check", "--read-data"]).ok();
    assert!(!sandbox.run(["snapshots"]).ok().stdout.contains("FAULTY"));
}

#[test]
fn a_fault_counts_even_if_it_seems_older_than_the_snapshot() {
    let sandbox = three_nights();
    for segment in large_segments(&sandbox) {
        spoil(&segment, 5000);
    }
    sandbox.run(["check", "--read-data"]).ends_with(1);
    move_record(&sandbox, -100_000_000);
    assert!(sandbox.run(["snapshots"]).ok().stdout.contains("FAULTY"));
    assert!(standings(&sandbox).iter().any(|standing| !standing.is_null()));
}

#[test]
fn records_from_the_future_are_ignored() {
    let sandbox = three_nights();
    sandbox.run(["check", "--read-data"]).ok();
    move_record(&sandbox, 100_000_000);
    for segment in large_segments(&sandbox) {
        spoil(&segment, 5000);
    }
    let shown = sandbox.run(["snapshots"]).ok();
    assert!(shown.stderr.contains("dated in the future"), "{}", shown.all_output());
    assert!(standings(&sandbox).iter().all(Value::is_null));
    sandbox.run(["check", "--read-data"]).ends_with(1);
    assert!(sandbox.run(["snapshots"]).ok().stdout.contains("FAULTY"));
    sandbox.backup(["source"]);
    sandbox.restore("latest", "restored");
}

#[test]
fn unreadable_records_cost_only_a_warning() {
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a");
    sandbox.run(["init"]).ok();
    sandbox.backup(["source"]);
    sandbox.run(["check", "--read-data"]).ok();
    let hash = "0".repeat(64);
    for time in ["999999999999", "999999999998"] {
        sandbox.write(&format!("store/checks/{time}-{hash}"), "{\"version\": 1}");
    }
    let outcome = sandbox.run(["snapshots", "--json"]).ok();
    assert!(
        outcome.all_output().contains("ignoring 2 records of checks and drills: checks/"),
        "{}",
        outcome.all_output()
    );
    assert_eq!(standings(&sandbox).last().expect("one")["standing"], "checked");
    // They are no damage, and a restore does not look at them.
    sandbox.run(["check"]).ok();
    sandbox.restore("latest", "restored");
}

#[test]
fn only_commands_that_need_records_read_them() {
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a");
    sandbox.run(["init"]).ok();
    sandbox.backup(["source"]);
    sandbox.run(["check"]).ok();
    let looks = |arguments: &[&str]| {
        let traced = sandbox.tool("strace").args(["-f", "-qq", "-e", "trace=openat,open"]);
        let traced = traced.args([crate::support::sandbox::FORGEKEEP]).args(arguments).run().ok();
        traced.all_output().contains("/checks/0")
    };
    // The first backup after a check looks for damage that the check found.
    assert!(looks(&["backup", "source"]));
    for arguments in
        [&["backup", "source"][..], &["ls", "latest"], &["restore", "latest", "-t", "r"]]
    {
        assert!(!looks(arguments), "{arguments:?}");
    }
    assert!(looks(&["snapshots"]));
}

#[test]
fn a_check_of_a_store_that_cannot_be_written_leaves_no_record() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a");
    sandbox.run(["init", "--group-readable"]).ok();
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rX", "store", "."]).run().ok();
    let outcome = sandbox.as_nobody(["check", "--json"]).run().ok();
    let lines = outcome.json();
    assert_eq!(lines.last().expect("a summary")["recorded"], false, "{lines:?}");
    assert!(outcome.all_output().contains("this check leaves no record"), "{lines:?}");
    assert!(!sandbox.has("store/checks"));
}
