//! `kill -9` at every step of a prune, a forget, and a backup that a prune follows.
//!
//! After each kill, all snapshots restore exactly, a check is clean, and the next prune finishes and
//! frees everything. The short lanes kill before each call that gives or takes a name in the store.
//! The long ones kill before each call that changes a file there.

use crate::support::sandbox::{Dice, Sandbox};
use crate::support::show;
use crate::support::trip::{Fault, Trip};
use std::path::Path;

/// Calls that give or take names.
const NAMES: &str = "rename,renameat,renameat2,unlink,unlinkat,link,linkat,mkdir,mkdirat";
/// Calls that change files.
const CHANGES: &str = "rename,renameat,renameat2,unlink,unlinkat,link,linkat,mkdir,mkdirat,write,\
                       pwrite64,fsync,fdatasync,ftruncate";

/// Exit code of a killed program.
const KILLED: i32 = 128 + 9;

/// A store with something to forget and to prune, and copies of what its snapshots hold.
struct Bench {
    sandbox: Sandbox,
    /// Snapshots that stay, with the names of the copies of their content.
    kept: Vec<(String, String)>,
    /// Snapshots to forget.
    old: Vec<String>,
}

impl Bench {
    /// Backs up four nights, of which one holds much that no other night has.
    fn new() -> Bench {
        let sandbox = Sandbox::with_store();
        let mut dice = Dice::new(7);
        let (mut kept, mut old) = (Vec::new(), Vec::new());
        sandbox.write("source/always", dice.bytes(30_000));
        for night in 0..4 {
            // The first night's segment has little use later, and is rewritten.
            sandbox.write("source/changing", dice.bytes(if night == 0 { 90_000 } else { 5_000 }));
            sandbox.write(&format!("source/{night}"), dice.bytes(6_000));
            sandbox.backup(["source"]);
            let copy = format!("right/{night}");
            sandbox.tool("mkdir").args(["-p", "right"]).run().ok();
            sandbox.tool("cp").args(["-a", "source", &copy]).run().ok();
            match night {
                0 | 2 => old.push(sandbox.newest()),
                _ => kept.push((sandbox.newest(), copy)),
            }
            if night == 1 {
                sandbox.remove("source/0");
            }
        }
        // Something of the forgotten nights comes back: the next backup finds its chunks.
        sandbox.tool("cp").args(["-a", "right/0/0", "source/again"]).run().ok();
        Bench { sandbox, kept, old }
    }

    /// Keeps the store as it is now, for [`put_back`](Self::put_back).
    fn keep_store(&self) {
        self.sandbox.tool("cp").args(["-a", "store", "pristine"]).run().ok();
    }

    fn put_back(&self) {
        self.sandbox.remove("store");
        self.sandbox.tool("cp").args(["-a", "pristine", "store"]).run().ok();
    }

    fn forget(&self) {
        self.sandbox.forgekeep(["forget"]).args(&self.old).run().ok();
    }

    fn restores(&self, snapshot: &str, right: &str, when: &str) {
        let sandbox = &self.sandbox;
        if sandbox.has("out") {
            sandbox.remove("out");
        }
        let restored = sandbox.run(["restore", &sandbox.at(snapshot, "source"), "--target", "out"]);
        assert_eq!(restored.code(), Some(0), "{when}: {}", restored.all_output());
        sandbox.tool("diff").args(["-r", right, "out"]).run().ok();
    }

    /// All snapshots that must be there restore, and a check is clean.
    fn is_intact(&self, when: &str) {
        let checked = self.sandbox.run(["check", "--read-data"]);
        assert_eq!(checked.code(), Some(0), "{when}: {}", checked.all_output());
        for (snapshot, right) in &self.kept {
            self.restores(snapshot, right, when);
        }
    }

    /// The next prune frees everything.
    fn prunes(&self, when: &str) {
        let pruned = self.sandbox.run(["prune"]);
        assert_eq!(pruned.code(), Some(0), "{when}: {}", pruned.all_output());
        let remains = ["sessions", "condemned", "fence"].map(|dir| {
            let dir = self.sandbox.path(Path::new("store").join(dir));
            std::fs::read_dir(dir).map_or(0, Iterator::count)
        });
        assert_eq!(remains, [0; 3], "{when}");
        // Less stays in partly needed segments than makes a rewrite worthwhile.
        let stats = self.sandbox.json(["stats"]);
        assert!(stats[0]["garbage_bytes"].as_u64() < Some(20_000), "{when}: {stats:?}");
    }

    /// Backs up the source, and restores the new snapshot.
    fn backs_up(&self, when: &str) {
        let done = self.sandbox.run(["backup", "source"]);
        assert_eq!(done.code(), Some(0), "{when}: {}", done.all_output());
        self.restores("latest", "source", when);
    }

    /// Kills a run at each of its steps. `examine` gets the number of the step.
    fn kill(&self, calls: &str, arguments: &[&str], examine: &dyn Fn(usize, &str)) -> usize {
        self.keep_store();
        for n in 1.. {
            let trip = Trip { call: calls, below: "store", n, fault: Fault::Kill };
            let (outcome, count) = trip.run(&self.sandbox, arguments);
            let when = format!("{} killed at step {n}", arguments.join(" "));
            if count < n {
                assert_eq!(outcome.code(), Some(0), "{}", outcome.all_output());
                show(&format!("{count} steps of {}", arguments.join(" ")));
                return count;
            }
            assert_eq!(outcome.code(), Some(KILLED), "{when}: {}", outcome.all_output());
            examine(n, &when);
            self.put_back();
        }
        unreachable!("a run ends")
    }
}

fn kill_prunes(calls: &str) -> usize {
    let bench = Bench::new();
    bench.forget();
    // Something that a killed backup left.
    let trip =
        Trip { call: "rename,renameat,renameat2,linkat", below: "store", n: 4, fault: Fault::Kill };
    assert_eq!(trip.run(&bench.sandbox, &["backup", "source"]).0.code(), Some(KILLED));
    bench.kill(calls, &["prune"], &|n, when| {
        bench.is_intact(when);
        if n % 2 == 0 {
            bench.backs_up(when);
        }
        bench.prunes(when);
        bench.is_intact(when);
        bench.backs_up(when);
    })
}

fn kill_forgets(calls: &str) -> usize {
    let bench = Bench::new();
    let old: Vec<&str> = bench.old.iter().map(String::as_str).collect();
    let arguments = [&["forget"], &old[..]].concat();
    bench.kill(calls, &arguments, &|n, when| {
        bench.is_intact(when);
        let listed = bench.sandbox.snapshot_ids();
        for (id, right) in bench.old.iter().zip(["right/0", "right/2"]) {
            if listed.contains(id) {
                bench.restores(id, right, when);
            }
        }
        if n % 2 == 0 {
            bench.backs_up(when);
        }
        let left: Vec<&String> = bench.old.iter().filter(|id| listed.contains(id)).collect();
        if !left.is_empty() {
            bench.sandbox.forgekeep(["forget"]).args(left).run().ok();
        }
        bench.prunes(when);
        bench.is_intact(when);
    })
}

fn kill_backups(calls: &str) -> usize {
    let bench = Bench::new();
    bench.forget();
    bench.kill(calls, &["backup", "source"], &|n, when| {
        let before = bench.sandbox.snapshot_ids().len();
        if n % 2 == 0 {
            bench.backs_up(when);
        }
        bench.prunes(when);
        bench.is_intact(when);
        // A record that was written counts, because its chunks are there.
        if bench.sandbox.snapshot_ids().len() > before {
            bench.restores("latest", "source", when);
        }
        bench.backs_up(when);
    })
}

#[test]
fn a_prune_can_be_killed_at_every_step() {
    assert!(kill_prunes(NAMES) > 15);
}

#[test]
fn a_forget_can_be_killed_at_every_step() {
    assert!(kill_forgets(NAMES) > 1);
}

#[test]
fn a_backup_beside_a_prune_can_be_killed_at_every_step() {
    assert!(kill_backups(NAMES) > 8);
}

#[test]
#[ignore = "a slow lane, see CONTRIBUTING.md"]
fn each_of_them_can_be_killed_at_every_call() {
    for kill in [kill_prunes, kill_forgets, kill_backups] {
        assert!(kill(CHANGES) > 20);
    }
}
