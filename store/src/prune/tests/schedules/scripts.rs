//! Schedules in which a backup or prune without one of the rules loses data, and those in which other
//! programs lost data.

use super::world::{Fault, KILL, Order, Parameters, Random};
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

    /// The schedule loses nothing.
    fn is_safe(&self) {
        hush();
        let base = Base::new();
        let runner = Runner::new(&base);
        for seed in 0..4 {
            let Outcome { faults, trace, .. } = self.play(&runner, seed, None);
            assert!(faults.is_empty(), "{faults:?}\n{trace}");
        }
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

/// Proxmox Backup Server before 3.4 (PSA-2025-00019-1): the list of snapshots was read, a new one took
/// over the chunks of an old one, the old one went, and its chunks with it.
#[test]
fn a_snapshot_that_is_newer_than_the_list_keeps_the_chunks_of_a_forgotten_one() {
    for line in ["1: LIST snapshots", "1: PUT condemned", "1: LIST fence"] {
        Script {
            kept: &[0, 2],
            operations: vec![Backup(0, 1), Prune(1), ForgetNight(1, 0)],
            lines: vec![(1, line), (0, ""), (2, ""), (1, "")],
        }
        .is_safe();
    }
}

/// duplicacy (issues 98 and 323): a prune deleted what a running backup had uploaded or found.
#[test]
fn what_a_running_backup_uploaded_or_found_stays_or_the_backup_fails() {
    for line in ["0: PUT segments", "0: PUT snapshots", "0: LIST fence"] {
        for prune in [Prune(1), PruneAtOnce(1), Prune(0)] {
            Script {
                kept: THIRD,
                operations: vec![Backup(0, 9), prune],
                lines: vec![(0, line), (1, ""), (0, "")],
            }
            .is_safe();
        }
    }
}

/// duplicacy: a client that died blocked the deletion for ever. Proxmox and kopia: hours pass first.
#[test]
fn a_killed_backup_does_not_keep_garbage() {
    Script {
        kept: THIRD,
        operations: vec![Backup(0, 9), Prune(1), Prune(0)],
        lines: vec![(0, "0: PUT snapshots"), (0, KILL), (1, ""), (2, "")],
    }
    .is_safe();
}

/// borg 2 (issues 9748 and 9904): after an interrupted compact, a cache still had what was deleted, and
/// the next backup relied on it.
#[test]
fn a_backup_after_a_killed_prune_stores_deleted_chunks_again() {
    for machine in 0..2 {
        for line in ["1: DELETE segments", "1: deleted segments", "1: DELETE condemned"] {
            Script {
                kept: THIRD,
                operations: vec![Backup(machine, 1), Prune(1)],
                lines: vec![(1, line), (1, KILL), (0, "")],
            }
            .is_safe();
        }
    }
}

/// bup before 0.33.5: a tree was there, and what it names was not; a present object counted as whole.
#[test]
fn a_page_that_is_there_does_not_stand_for_the_chunks_below_it() {
    Script {
        kept: THIRD,
        operations: vec![Backup(0, 1), Prune(1), Backup(0, 1), Backup(1, 1)],
        lines: vec![(0, "0: PUT snapshots"), (1, ""), (0, ""), (2, ""), (3, "")],
    }
    .is_safe();
}

/// rustic: `prune` deletes packs of a backup that began before it and lasts longer than the wait.
#[test]
fn a_backup_that_sleeps_through_a_prune_fails_instead_of_losing_data() {
    for line in ["0: LIST condemned", "0: LIST snapshots", "0: HEAD segments", "0: LIST sessions"] {
        Script {
            kept: THIRD,
            operations: vec![Backup(0, 1), Prune(1), Prune(0)],
            lines: vec![(0, line), (1, ""), (2, ""), (0, "")],
        }
        .is_safe();
    }
}

/// Proxmox Backup Server 4 on S3: two deletions and an upload of the same chunk met.
#[test]
fn two_prunes_and_a_backup_of_the_same_chunk_do_not_meet() {
    for line in ["1: PUT condemned", "1: LIST snapshots", "1: DELETE segments"] {
        Script {
            kept: THIRD,
            operations: vec![Backup(0, 1), Prune(1), Prune(0)],
            lines: vec![(1, line), (2, "2: DELETE segments"), (0, ""), (1, ""), (2, "")],
        }
        .is_safe();
    }
}
