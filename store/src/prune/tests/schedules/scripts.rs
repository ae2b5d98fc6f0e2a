//! Schedules in which a backup or prune without one of the rules loses data.

use super::world::{Fault, Order, Parameters, Random};
use super::{Base, Operation, Operation::*, Outcome, Rule, Runner, hush};

/// A schedule: kept nights, operations, and the order of their steps.
struct Script {
    kept: &'static [usize],
    operations: Vec<Operation>,
    lines: Vec<(usize, &'static str)>,
}

impl Script {
    fn play(&self, runner: &Runner<'_>, seed: u64, without: Option<Rule>) -> Outcome {
        let parameters = Parameters {
            order: Order::Script(self.lines.clone()),
            kills: Vec::new(),
            has_locks: false,
            patience: 1,
            without,
        };
        runner.play(self.kept, self.operations.clone(), parameters, Random(seed), true)
    }

    /// The schedule loses nothing with all rules, and something without one of them.
    fn needs(&self, rule: Rule) {
        hush();
        let base = Base::new();
        let runner = Runner::new(&base);
        let mut traces = Vec::new();
        // In some schedules, the order of the random names of segments matters.
        for seed in 0..12 {
            let kept = self.play(&runner, seed, None);
            assert!(kept.faults.is_empty(), "{:?}\n{}", kept.faults, kept.trace);
            let broken = self.play(&runner, seed, Some(rule));
            if broken.faults.iter().any(|fault| matches!(fault, Fault::Loss(_))) {
                return;
            }
            traces.push(broken.trace);
        }
        panic!("nothing is lost without {rule:?}:\n{}", traces[0]);
    }
}

/// Only the third night is kept, so that nothing needs the chunk of the first file.
const THIRD: &[usize] = &[2];
const ALL: &[usize] = &[0, 1, 2, 3];

#[test]
fn a_parent_of_a_forgotten_night_is_looked_up_when_something_is_condemned() {
    Script {
        kept: THIRD,
        operations: vec![Backup(0, 1), Backup(0, 1), Prune(1), ForgetNewest(1)],
        lines: vec![
            (2, "2: PUT condemned"),
            (0, ""),
            (2, "2: LIST snapshots"),
            (1, "1: PUT snapshots"),
            (3, ""),
            (2, ""),
            (1, ""),
        ],
    }
    .needs(Rule::LookUpWhenCondemned);
}

#[test]
fn a_record_that_comes_after_the_fence_does_not_count() {
    Script {
        kept: THIRD,
        operations: vec![Backup(0, 1), Prune(1)],
        lines: vec![(0, "0: PUT snapshots"), (1, ""), (0, "")],
    }
    .needs(Rule::AnnounceFirst);
}

#[test]
fn markers_that_go_after_the_look_for_fences_stop_a_backup() {
    Script {
        kept: THIRD,
        operations: vec![Backup(0, 1), Prune(1)],
        lines: vec![
            (0, "0: PUT snapshots"),
            (1, "1: DELETE sessions"),
            (0, "0: LIST fence"),
            (1, ""),
            (0, ""),
        ],
    }
    .needs(Rule::FenceBeforeMarker);
}

#[test]
fn a_fence_lasts_as_long_as_the_markers() {
    Script {
        kept: THIRD,
        operations: vec![Backup(0, 1), Prune(1)],
        lines: vec![(0, "0: PUT snapshots"), (1, "1: DELETE sessions"), (0, ""), (1, "")],
    }
    .needs(Rule::MarkerBeforeFence);
}

#[test]
fn two_prunes_that_keep_different_copies_see_each_other() {
    Script {
        kept: THIRD,
        // The first one copies the chunk of the second file into a new segment.
        operations: vec![Prune(0), PruneOnly(1)],
        lines: vec![
            (0, "0: PUT condemned"),
            (1, "1: PUT condemned"),
            (0, "0: LIST sessions"),
            (1, "1: DELETE segments"),
            (0, ""),
            (1, ""),
        ],
    }
    .needs(Rule::OtherCondemnations);
}

#[test]
fn a_late_snapshot_is_not_accepted_with_condemned_chunks() {
    Script {
        kept: THIRD,
        operations: vec![Backup(0, 1), PruneOnly(1), Prune(0)],
        lines: vec![
            (2, "2: PUT condemned"),
            (0, "0: PUT snapshots"),
            (2, "2: DELETE segments"),
            (0, "0: LIST fence"),
            (1, ""),
            (2, ""),
            (0, ""),
        ],
    }
    .needs(Rule::AcceptUncondemned);
}

#[test]
fn condemnations_are_listed_after_the_snapshot_that_is_accepted() {
    Script {
        kept: ALL,
        operations: vec![Backup(0, 8), PruneOnly(1), PruneOnly(0)],
        lines: vec![
            (1, "1: LIST sessions"),
            (0, "0: PUT snapshots"),
            // Twice in the waits, and once at the end.
            (1, "1: LIST fence"),
            (1, "1: LIST fence"),
            (1, "1: LIST fence"),
            (1, "1: LIST snapshots"),
            (2, "2: DELETE segments"),
            (0, "0: LIST fence"),
            (1, ""),
            (2, ""),
            (0, ""),
        ],
    }
    .needs(Rule::CondemnedAfterSnapshot);
}
