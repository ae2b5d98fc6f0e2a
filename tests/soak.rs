//! Concurrent work on one store: backups, checks, restores, kills, snapshots that are tagged, pinned
//! and forgotten, prunes, and an index that is deleted or rebuilt. Nothing is lost, and no command reports false damage.

use crate::support::sandbox::{Dice, Outcome, Sandbox};
use crate::support::tree::{Ignore, compare_ignoring};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Duration in CI.
const SHORT: Duration = Duration::from_secs(20);

#[test]
fn concurrent_work_loses_nothing_and_gives_no_false_alarm() {
    soak(SHORT);
}

/// Set the duration with `FORGEKEEP_SOAK_SECONDS=3600 scripts/test --ignored
/// concurrent_work_loses_nothing_for_long`.
#[test]
#[ignore = "as long as FORGEKEEP_SOAK_SECONDS says, an hour by default"]
#[expect(clippy::disallowed_methods, reason = "how long it takes is for who starts it to say")]
fn concurrent_work_loses_nothing_for_long() {
    let seconds = std::env::var("FORGEKEEP_SOAK_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(3600);
    soak(Duration::from_secs(seconds));
}

/// Number of successes of a kind of command, and of runs that found the store locked.
#[derive(Default)]
struct Count {
    done: AtomicU64,
    locked: AtomicU64,
}

impl Count {
    /// Counts a command that may fail only because the store is locked.
    #[track_caller]
    fn add(&self, outcome: Outcome) {
        match outcome.code() {
            Some(11) => self.locked.fetch_add(1, Relaxed),
            _ => {
                for word in ["damaged", "lost", "missing", "malformed"] {
                    let is_said = [&outcome.stdout, &outcome.stderr].iter().any(|text| {
                        text.lines().any(|line| {
                            line.contains(word)
                                && !line.contains("building the index")
                                && line != "no damage found"
                        })
                    });
                    assert!(!is_said, "{word:?}: {}", outcome.all_output());
                }
                outcome.ok();
                self.done.fetch_add(1, Relaxed)
            }
        };
    }

    fn figures(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.locked.load(Relaxed))
    }
}

fn assert_same(sandbox: &Sandbox, a: &str, b: &str) {
    let ignore = Ignore { top_directory: true, ..Ignore::default() };
    let differences = compare_ignoring(&sandbox.path(a), &sandbox.path(b), ignore);
    assert_eq!(differences, Vec::<String>::new());
}

/// Creates a source of about 2 MB.
fn make_source(sandbox: &Sandbox, name: &str, dice: &mut Dice) {
    for n in 0..40 {
        let len = [30, 900, 9_000, 90_000][n % 4] + dice.below(3000) as usize;
        sandbox.write(&format!("{name}/{}/{n}", n % 5), dice.bytes(len));
    }
    // The first source to be backed up stores the common part, or several do.
    sandbox.write(&format!("{name}/common"), Dice::new(7).bytes(900_000));
}

fn change_source(sandbox: &Sandbox, name: &str, dice: &mut Dice) {
    for _ in 0..3 {
        let len = dice.below(60_000) as usize;
        let path = format!("{name}/{}/{}", dice.below(5), dice.below(40));
        sandbox.write(&path, dice.bytes(len));
    }
    let shared = format!("{name}/shared-{}", dice.below(20));
    sandbox.write(&shared, Dice::new(dice.below(50)).bytes(200_000));
}

#[expect(clippy::print_stdout, reason = "the figures of a long run")]
fn soak(length: Duration) {
    let sandbox = Sandbox::with_store();
    make_source(&sandbox, "fixed", &mut Dice::new(1));
    sandbox.backup(["fixed"]);
    let first = sandbox.snapshot_ids().remove(0);
    let end = Instant::now() + length;
    let is_over = || Instant::now() >= end;
    let [backups, kills, checks, restores, forgets, prunes, rebuilds] = <[Count; 7]>::default();
    let sandbox = &sandbox;
    let rest = |dice: &mut Dice, most_ms: u64| {
        std::thread::sleep(Duration::from_millis(dice.below(most_ms)));
    };
    std::thread::scope(|scope| {
        for seed in [10, 11] {
            let backups = &backups;
            scope.spawn(move || {
                let (mut dice, name) = (Dice::new(seed), format!("source-{seed}"));
                make_source(sandbox, &name, &mut dice);
                while !is_over() {
                    backups.add(sandbox.run(["backup", &name]));
                    change_source(sandbox, &name, &mut dice);
                    rest(&mut dice, 200);
                }
            });
        }
        scope.spawn(|| {
            let mut dice = Dice::new(20);
            make_source(sandbox, "killed", &mut dice);
            while !is_over() {
                let mut run = sandbox.forgekeep(["backup", "killed"]).start();
                rest(&mut dice, 300);
                run.kill();
                let outcome = run.wait();
                if outcome.was_killed() {
                    kills.done.fetch_add(1, Relaxed);
                } else {
                    kills.add(outcome);
                }
                change_source(sandbox, "killed", &mut dice);
                rest(&mut dice, 100);
            }
        });
        scope.spawn(|| {
            let mut dice = Dice::new(30);
            while !is_over() {
                let all: &[&str] = if dice.below(3) == 0 { &["--read-data"] } else { &[] };
                checks.add(sandbox.forgekeep(["check"]).args(all).run());
                rest(&mut dice, 50);
            }
        });
        scope.spawn(|| {
            let mut dice = Dice::new(40);
            while !is_over() {
                let place = sandbox.at(&first, "fixed");
                let outcome = sandbox.run(["restore", &place, "--target", "restored"]);
                let is_restored = outcome.code() == Some(0);
                restores.add(outcome);
                if is_restored {
                    assert_same(sandbox, "fixed", "restored");
                    sandbox.remove("restored");
                }
                rest(&mut dice, 200);
            }
        });
        scope.spawn(|| {
            let mut dice = Dice::new(45);
            while !is_over() {
                let lines = sandbox.forgekeep(["snapshots", "--json"]).run();
                if lines.code() == Some(0) {
                    let mut lines = lines.json();
                    // Not a warning, such as that an index is built.
                    lines.retain(|line| line["message_type"] == "snapshot");
                    let any = &lines[dice.below(lines.len() as u64) as usize]["id"];
                    let any = any.as_str().unwrap_or_else(|| panic!("no id: {lines:?}"));
                    forgets.add(sandbox.run(["tag", &first, "--add", &dice.below(5).to_string()]));
                    forgets.add(sandbox.run([
                        "tag",
                        &first,
                        "--remove",
                        &dice.below(5).to_string(),
                    ]));
                    let pinned = sandbox.run(["pin", any]);
                    let is_pinned = pinned.code() == Some(0);
                    forgets.add(pinned);
                    forgets.add(sandbox.run(["forget", "--keep-last", "2"]));
                    if is_pinned {
                        assert!(sandbox.has(format!("store/snapshots/{any}")), "{any} was pinned");
                        forgets.add(sandbox.run(["unpin", any]));
                    }
                }
                rest(&mut dice, 300);
            }
        });
        scope.spawn(|| {
            let mut dice = Dice::new(48);
            while !is_over() {
                if dice.below(4) == 0 {
                    let mut run = sandbox.forgekeep(["prune"]).start();
                    rest(&mut dice, 300);
                    run.kill();
                    run.wait();
                } else {
                    prunes.add(sandbox.run(["prune"]));
                }
                rest(&mut dice, 200);
            }
        });
        scope.spawn(|| {
            let mut dice = Dice::new(50);
            while !is_over() {
                rest(&mut dice, 3000);
                if dice.below(2) == 0 {
                    rebuilds.add(sandbox.run(["index", "rebuild"]));
                    continue;
                }
                // As an administrator would do it, the database first. The lock keeps others from making a
                // new one meanwhile, from which these would be taken.
                let lock = std::fs::File::open(sandbox.path("store/lock")).expect("opens");
                lock.lock_shared().expect("locks");
                for suffix in ["", "-shm", "-wal"] {
                    let _ =
                        std::fs::remove_file(sandbox.path(format!("store/index.sqlite{suffix}")));
                }
            }
        });
    });
    let figures =
        [&backups, &kills, &checks, &restores, &forgets, &prunes, &rebuilds].map(Count::figures);
    println!(
        "done and locked: backups, kills, checks, restores, forgets, prunes, rebuilds: {figures:?}"
    );
    for (kind, (done, _)) in
        ["backups", "kills", "checks", "restores", "forgets", "prunes"].iter().zip(figures)
    {
        assert!(done > 0, "no {kind}: {figures:?}");
    }
    sandbox.backup(["source-10"]);
    sandbox.assert_clean();
    for (number, id) in sandbox.snapshot_ids().iter().enumerate() {
        let target = format!("all/{number}");
        sandbox.run(["restore", id, "--target", &target]).ok();
        sandbox.remove(&target);
    }
    sandbox.restore(&sandbox.at(&sandbox.newest(), "source-10"), "last");
    assert_same(sandbox, "source-10", "last");
}
