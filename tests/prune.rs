//! Prune: space of forgotten snapshots and killed backups, beside running backups.

use crate::support::sandbox::{Dice, Outcome, Sandbox, need_root};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Returns the number of segments and the bytes of their files.
fn segments(sandbox: &Sandbox) -> (usize, u64) {
    let found = sandbox.tool("find").args(["store/segments", "-type", "f", "-printf", "%s\n"]);
    let sizes: Vec<u64> =
        found.run().ok().stdout.lines().map(|line| line.parse().expect("a number")).collect();
    (sizes.len(), sizes.iter().sum())
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.map(|entry| entry.expect("reads").file_name().into_string().expect("text")).collect()
}

/// Returns the names of objects that a run leaves behind only if it is killed.
fn remains(sandbox: &Sandbox) -> Vec<String> {
    let dirs = ["sessions", "condemned", "fence"];
    dirs.iter().flat_map(|dir| names(&sandbox.path(format!("store/{dir}")))).collect()
}

fn summary(outcome: &Outcome) -> Value {
    let lines = outcome.json();
    let is_summary = |line: &&Value| line["message_type"] == "summary";
    lines.iter().find(is_summary).expect("a summary").clone()
}

#[test]
fn forgotten_data_goes_and_everything_else_restores() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(1);
    for night in 0..4 {
        sandbox.write(&format!("source/{night}"), dice.bytes(300_000));
        sandbox.write("source/changing", dice.bytes(500_000));
        sandbox.backup(["source"]);
    }
    assert_eq!(remains(&sandbox), [""; 0]);
    let before = segments(&sandbox);
    sandbox.run(["prune"]).ok();
    assert_eq!(segments(&sandbox), before);

    sandbox.remove("source/2");
    sandbox.backup(["source"]);
    sandbox.run(["forget", "--keep-last", "1"]).ok();
    let before = segments(&sandbox);
    let dry = sandbox.run(["prune", "--dry-run", "--json"]).ok();
    let plan = summary(&dry);
    assert_eq!(segments(&sandbox), before);
    let done = summary(&sandbox.run(["prune", "--json"]).ok());
    let after = segments(&sandbox);
    let number = |line: &Value, of: &str, what: &str| line[of][what].as_u64().expect("a number");
    for what in ["segments", "bytes"] {
        let planned = number(&plan, "planned", what) + number(&plan, "rewritten", what);
        assert_eq!(planned, number(&done, "deleted", what), "{plan} {done}");
    }
    let moved = done["moved_bytes"].as_u64().expect("a number");
    let freed = number(&done, "deleted", "bytes") - moved;
    assert!(before.1 - after.1 > freed - 10_000, "{before:?} {after:?} {done}");
    assert!(after.1 < before.1 / 2, "{before:?} {after:?}");
    // Segments with little use are rewritten.
    assert!(done["left_bytes"].as_u64() < Some(40_000), "{done}");
    assert_eq!(remains(&sandbox), [""; 0]);
    sandbox.assert_clean();
    sandbox.restore(&sandbox.at("latest", "source"), "out");
    sandbox.tool("diff").args(["-r", "source", "out"]).run().ok();

    // The next backup stores deleted data again, and the index is as good as a new one.
    let again = Dice::new(1).bytes(300_000);
    sandbox.write("source/again", again);
    sandbox.backup(["source"]);
    sandbox.run(["index", "rebuild"]).ok();
    sandbox.assert_clean();
}

#[test]
fn a_running_backup_is_waited_for_and_a_killed_one_is_not() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(2);
    sandbox.write("source/file", dice.bytes(400_000));
    sandbox.backup(["source"]);
    sandbox.write("other/file", dice.bytes(400_000));
    sandbox.backup(["other"]);
    sandbox.tool("mkfifo").args(["pipe"]).run().ok();
    let arguments = ["backup", "--stdin-name", "dump", "--stdin-command", "cat", "pipe"];
    let mut running = sandbox.forgekeep(arguments).start();
    while names(&sandbox.path("store/sessions")).is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let ids = sandbox.snapshot_ids();
    sandbox.remove(format!("store/snapshots/{}", ids[0]));
    let before = segments(&sandbox);
    let postponed = sandbox.run(["prune", "--wait", "1s"]).ends_with(3);
    assert!(postponed.stderr.contains("postponed: backups still run on"), "{}", postponed.stderr);
    assert_eq!(segments(&sandbox), before);
    running.kill();
    assert!(running.wait().was_killed());
    assert_eq!(remains(&sandbox).len(), 1);
    let done = summary(&sandbox.run(["prune", "--wait", "0s", "--json"]).ok());
    assert!(done["deleted"]["segments"].as_u64() >= Some(1), "{done}");
    assert!(segments(&sandbox).1 < before.1);
    assert_eq!(remains(&sandbox), [""; 0]);
    sandbox.assert_clean();
}

#[test]
fn garbage_of_killed_backups_goes() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(3);
    sandbox.write("source/file", dice.bytes(100_000));
    sandbox.backup(["source"]);
    let before = segments(&sandbox);
    for n in 0..40 {
        sandbox.write(&format!("big/{n}"), dice.bytes(4_000_000));
    }
    let mut run = sandbox.forgekeep(["backup", "big"]).start();
    while segments(&sandbox) == before {
        assert!(!run.has_ended(), "too fast");
        std::thread::sleep(Duration::from_millis(2));
    }
    run.kill();
    run.wait();
    let garbage = segments(&sandbox).1 - before.1;
    assert!(garbage > 60_000_000);
    let stats = sandbox.json(["stats"]);
    assert_eq!(stats[0]["garbage_bytes"], garbage);
    let shown = sandbox.run(["stats"]).ok().stdout;
    assert!(shown.contains("that no snapshot needs (see `prune`)"), "{shown}");
    sandbox.run(["prune"]).ok();
    assert_eq!(sandbox.json(["stats"])[0]["garbage_bytes"], 0);
    assert_eq!(segments(&sandbox), before);
    sandbox.assert_clean();
}

#[test]
fn a_prune_killed_at_any_moment_loses_nothing() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(4);
    sandbox.write("source/kept", dice.bytes(200_000));
    for night in 0..10 {
        for n in 0..4 {
            sandbox.write(&format!("source/{n}"), dice.bytes(60_000));
        }
        sandbox.write("source/night", format!("{night}"));
        sandbox.backup(["source"]);
    }
    let kept = sandbox.newest();
    sandbox.run(["forget", "--keep-last", "1"]).ok();
    let mut kills = 0;
    for pause in 0..40 {
        let mut run = sandbox.forgekeep(["prune"]).start();
        std::thread::sleep(Duration::from_millis(2 * pause));
        run.kill();
        kills += usize::from(run.wait().was_killed());
        sandbox.run(["check"]).ok();
    }
    assert!(kills > 5, "{kills}");
    sandbox.run(["prune"]).ok();
    assert_eq!(remains(&sandbox), [""; 0]);
    sandbox.run(["check", "--read-data"]).ok();
    sandbox.restore(&sandbox.at(&kept, "source"), "out");
    sandbox.tool("diff").args(["-r", "source", "out"]).run().ok();
    sandbox.backup(["source"]);
    sandbox.assert_clean();
}

#[test]
fn a_disk_without_a_free_byte_is_pruned() {
    need_root();
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("disk")).expect("makes");
    let script = "mount -t tmpfs -o size=60M none disk; export FORGEKEEP_STORE=disk/store
        mkdir source; $FK init
        for night in $(seq 9); do
            for file in 1 2 3 4; do head -c 1000000 /dev/urandom >source/$file; done
            $FK backup -q source
        done
        fallocate -l $(df -B1 --output=avail disk | tail -1) disk/fill
        test $(df -B1 --output=avail disk | tail -1) = 0
        $FK forget -q --keep-last 1
        $FK prune
        test $(du -sm disk/store | cut -f1) -lt 10
        rm disk/fill
        $FK check --read-data
        $FK restore latest:$PWD/source --target out; diff -r source out";
    let outcome = sandbox.in_mount_namespace(&format!("set -e\n{script}")).run().ok();
    assert!(outcome.stderr.contains("removed index.sqlite"), "{}", outcome.all_output());
}

#[test]
fn a_check_names_what_stops_backups_and_prunes() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "content");
    sandbox.backup(["source"]);
    let id = "0".repeat(32);
    for name in [format!("condemned/{id}"), format!("sessions/{id}-000001")] {
        sandbox.write(&format!("store/{name}"), "{");
        sandbox.run(["prune"]).ends_with(1);
        let outcome = sandbox.run(["check"]).ok();
        let words = format!("{name} is malformed");
        assert!(outcome.stderr.contains(&words), "{}", outcome.all_output());
        assert!(outcome.stderr.contains("delete this file"), "{}", outcome.all_output());
        sandbox.remove(format!("store/{name}"));
        sandbox.run(["prune"]).ok();
    }
}

#[test]
fn a_damaged_store_is_not_pruned() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(5);
    for name in ["a", "b"] {
        sandbox.write(&format!("{name}/file"), dice.bytes(200_000));
        sandbox.backup([name]);
    }
    let ids = sandbox.snapshot_ids();
    sandbox.remove(format!("store/snapshots/{}", ids[0]));
    let record = sandbox.path(format!("store/snapshots/{}", ids[1]));
    let intact = std::fs::read(&record).expect("reads");
    std::fs::write(&record, "damaged").expect("writes");
    let before = segments(&sandbox);
    sandbox.run(["prune"]).fails(1, &["is damaged", "forgekeep forget"]);
    assert_eq!(segments(&sandbox), before);
    std::fs::remove_file(&record).expect("removes");
    sandbox.run(["prune"]).fails(1, &["has no snapshots"]);
    assert_eq!(segments(&sandbox), before);
    std::fs::write(&record, intact).expect("writes");
    sandbox.run(["prune"]).ok();
    assert!(segments(&sandbox).1 < before.1);
    sandbox.assert_clean();
}
