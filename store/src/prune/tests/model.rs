//! All interleavings of backups, prunes and forgets, searched one by one.
//!
//! The model has one chunk, which several segments may hold. Each step is one PUT, LIST or DELETE. A
//! process may stop for ever after any step; a prune may take a backup for dead at any time; snapshots
//! are forgotten at any time. In every state, each snapshot that counts must find the chunk.
//!
//! Each rule can be switched off. A rule without which no hole opens would have no reason.

use crate::protocol::{RULES, Rule};
use std::collections::HashMap;

use Rule::*;

/// A set of segments, snapshots, backups or prunes.
type Set = u8;

/// Segments with the chunk at the start.
const OLD: Set = 0b11;

/// Limit of the search, which takes about 100 bytes a state.
const STATES_MAX: usize = 25_000_000;

/// The segment that a backup or prune writes.
fn new_segment(process: usize) -> Set {
    0b100 << process
}

/// The snapshot of a backup; bit 0 is that of the start.
fn snapshot(backup: usize) -> Set {
    0b10 << backup
}

fn bits(set: Set) -> impl Iterator<Item = Set> {
    (0..8).map(|bit| 1 << bit).filter(move |bit| set & bit != 0)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Backup {
    step: u8,
    parent: Set,
    condemned: Set,
    has_condemned: bool,
    found: Set,
    is_fenced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Pruner {
    step: u8,
    plan: Set,
    others: Set,
    waits: Set,
    closed: Set,
    snapshots: Set,
    announced: Set,
    found: Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    segments: Set,
    /// Segments that an index may still have rows of.
    ever: Set,
    snapshots: Set,
    announced: Set,
    /// Snapshots whose backups succeeded.
    whole: Set,
    markers: Set,
    fences: Set,
    condemned: [Set; 2],
    /// Prunes whose condemnation exists.
    condemning: Set,
    backups: [Backup; 2],
    prunes: [Pruner; 2],
}

impl State {
    /// Segments that any condemnation names.
    fn all_condemned(&self) -> Set {
        self.condemned[0] | self.condemned[1]
    }

    fn is_broken(&self) -> bool {
        self.segments == 0 && self.snapshots & !self.announced != 0
    }
}

struct Model {
    backups: usize,
    prunes: usize,
    without: Option<Rule>,
}

impl Model {
    fn on(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// Returns the steps that lead to a hole, or the number of states.
    fn search(&self, states_max: usize) -> Result<usize, Vec<String>> {
        let start = State { segments: OLD, ever: OLD, snapshots: 1, whole: 1, ..State::default() };
        let mut seen: HashMap<State, usize> = HashMap::from([(start, 0)]);
        // States in the order of discovery, with the index of their predecessor.
        let mut states = vec![(start, 0)];
        let mut at = 0;
        let mut next = Vec::new();
        while at < states.len() && states.len() < states_max {
            let state = states[at].0;
            if state.is_broken() {
                return Err(self.path(&states, at));
            }
            next.clear();
            self.steps(&state, &mut next);
            for (after, _) in &next {
                if !seen.contains_key(after) {
                    seen.insert(*after, states.len());
                    states.push((*after, at));
                }
            }
            at += 1;
        }
        Ok(states.len())
    }

    fn path(&self, states: &[(State, usize)], mut at: usize) -> Vec<String> {
        let mut path = Vec::new();
        while at != 0 {
            let (state, before) = states[at];
            let mut next = Vec::new();
            self.steps(&states[before].0, &mut next);
            let step = next.into_iter().find(|(after, _)| *after == state);
            path.push(step.expect("it led here").1);
            at = before;
        }
        path.reverse();
        path
    }

    fn steps(&self, state: &State, next: &mut Vec<(State, String)>) {
        for forgotten in bits(state.snapshots & !state.announced) {
            let after = State { snapshots: state.snapshots & !forgotten, ..*state };
            next.push((after, format!("forget {forgotten:b}")));
        }
        for number in 0..self.backups {
            self.backup(state, number, next);
        }
        for number in 0..self.prunes {
            self.prune(state, number, next);
        }
    }

    fn backup(&self, state: &State, number: usize, next: &mut Vec<(State, String)>) {
        let (me, own) = (1 << number, state.backups[number]);
        let mut go = |what: &str, change: &dyn Fn(&mut State, &mut Backup)| {
            let (mut after, mut backup) = (*state, own);
            backup.step += 1;
            change(&mut after, &mut backup);
            after.backups[number] = backup;
            next.push((after, format!("b{number}: {what}")));
        };
        match own.step {
            0 => go("PUT marker", &|state, _| {
                state.markers |= if self.on(Marker) { me } else { 0 };
            }),
            1 => go("LIST condemned", &|state, backup| {
                if self.on(CondemnedFirst) {
                    backup.condemned = state.all_condemned();
                    backup.has_condemned = state.condemning != 0;
                }
            }),
            2 => {
                go("LIST snapshots", &|_, _| {});
                let whole = if self.on(WholeParent) { state.whole } else { !0 };
                for parent in bits(state.snapshots & whole) {
                    go("LIST snapshots, choose parent", &|_, backup| backup.parent = parent);
                }
            }
            3 => {
                let looks = own.has_condemned && self.on(LookUpWhenCondemned);
                if own.parent != 0 && !looks {
                    go("take from parent", &|_, backup| backup.step = 6);
                    return;
                }
                let exists = if self.on(Existence) { state.segments } else { state.ever };
                let found = exists & !own.condemned;
                go("look up", &|_, backup| backup.found = found);
            }
            // Only without the rule.
            4 => go("LIST condemned, decide", &|state, backup| {
                let late = if self.on(CondemnedFirst) { 0 } else { state.all_condemned() };
                backup.step = if backup.found & !late != 0 { 6 } else { 5 };
                backup.found = 0;
            }),
            5 => go("PUT segment", &|state, _| {
                state.segments |= new_segment(number);
                state.ever |= new_segment(number);
            }),
            6 => go("PUT announcement", &|state, _| {
                if self.on(AnnounceFirst) {
                    state.announced |= snapshot(number);
                }
            }),
            7 => go("PUT snapshot", &|state, _| state.snapshots |= snapshot(number)),
            8 | 9 => {
                let is_fence = (own.step == 8) == self.on(FenceBeforeMarker);
                if is_fence {
                    go("LIST fences", &|state, backup| {
                        backup.is_fenced |= self.on(FenceCheck) && state.fences & me != 0;
                    });
                } else {
                    go("LIST markers", &|state, backup| {
                        let is_gone = self.on(Marker) && state.markers & me == 0;
                        backup.is_fenced |= self.on(MarkerCheck) && is_gone;
                    });
                }
            }
            10 if !own.is_fenced => go("DELETE announcement, success", &|state, _| {
                state.announced &= !snapshot(number);
                state.whole |= snapshot(number);
            }),
            11 => go("DELETE marker", &|state, _| state.markers &= !me),
            _ => {}
        }
    }

    fn prune(&self, state: &State, number: usize, next: &mut Vec<(State, String)>) {
        let (me, own) = (1 << number, state.prunes[number]);
        let mut go = |what: &str, change: &dyn Fn(&mut State, &mut Pruner)| {
            let (mut after, mut prune) = (*state, own);
            prune.step += 1;
            change(&mut after, &mut prune);
            after.prunes[number] = prune;
            next.push((after, format!("p{number}: {what}")));
        };
        let withdraw = |state: &mut State| {
            state.condemned[number] = 0;
            state.condemning &= !me;
        };
        if (2..9).contains(&own.step) && state.condemning & me != 0 {
            go("is killed, and another prune removes its condemnation", &|state, prune| {
                withdraw(state);
                *prune = Pruner { step: 20, ..Pruner::default() };
            });
        }
        match own.step {
            0 => {
                let all = state.segments;
                if state.snapshots == 0 {
                    go("plan all", &|_, prune| prune.plan = all);
                    return;
                }
                for kept in bits(all) {
                    if all != kept {
                        go("plan all but one", &|_, prune| prune.plan = all & !kept);
                    }
                }
                let new = new_segment(2 + number);
                if all & new == 0 && all != 0 {
                    go("rewrite, plan the others", &|state, prune| {
                        state.segments |= new;
                        state.ever |= new;
                        prune.plan = all;
                    });
                }
            }
            1 => go("PUT condemnation", &|state, prune| {
                if self.on(Condemn) {
                    state.condemned[number] = prune.plan;
                    state.condemning |= me;
                }
            }),
            2 => go("LIST condemned", &|state, prune| {
                let others = state.condemned[1 - number];
                prune.others = if self.on(OtherCondemnations) { others } else { 0 };
            }),
            3 => go("LIST sessions", &|state, prune| {
                prune.waits = if self.on(Wait) { state.markers } else { 0 };
            }),
            4 => {
                if own.waits == 0 {
                    go("all ended", &|_, _| {});
                }
                for backup in bits(own.waits) {
                    let step = |prune: &mut Pruner| {
                        prune.step = 4;
                        prune.waits &= !backup;
                    };
                    if state.markers & backup == 0 {
                        go("session ended", &|_, prune| step(prune));
                    } else if state.fences & backup != 0 {
                        go("session is fenced", &|_, prune| {
                            step(prune);
                            prune.closed |= backup;
                        });
                    } else {
                        go("PUT fence", &|state, prune| {
                            step(prune);
                            prune.closed |= backup;
                            state.fences |= if self.on(Fence) { backup } else { 0 };
                        });
                    }
                }
            }
            5 => go("LIST snapshots", &|state, prune| {
                let again = if self.on(SecondSnapshots) { state.snapshots } else { 0 };
                prune.snapshots = again;
            }),
            6 => go("LIST announcements", &|state, prune| prune.announced = state.announced),
            7 => go("LIST segments, decide", &|state, prune| {
                let counted = match self.on(AnnouncedNeeds) {
                    true => prune.snapshots,
                    false => prune.snapshots & !prune.announced,
                };
                let stays = state.segments & !prune.plan & !prune.others;
                if counted != 0 && stays == 0 {
                    prune.plan = 0;
                }
                (prune.snapshots, prune.announced) = (0, 0);
            }),
            8 => {
                let stay = |prune: &mut Pruner| prune.step = 8;
                for segment in bits(own.plan) {
                    go("DELETE segment", &|state, prune| {
                        stay(prune);
                        prune.plan &= !segment;
                        state.segments &= !segment;
                    });
                }
                if own.plan == 0 {
                    go("withdraw", &|state, _| withdraw(state));
                } else if !self.on(DeletedFirst) && state.condemning & me != 0 {
                    go("withdraw early", &|state, prune| {
                        stay(prune);
                        withdraw(state);
                    });
                }
            }
            // One closed session after the other.
            9 if own.closed != 0 => {
                if self.on(CondemnedAfterSnapshot) {
                    go("LIST snapshots", &|state, prune| prune.snapshots = state.snapshots);
                } else {
                    go("LIST condemned", &|state, prune| prune.others = state.all_condemned());
                }
            }
            10 => {
                if self.on(CondemnedAfterSnapshot) {
                    go("LIST condemned", &|state, prune| prune.others = state.all_condemned());
                } else {
                    go("LIST snapshots", &|state, prune| prune.snapshots = state.snapshots);
                }
            }
            11 => go("LIST segments", &|state, prune| prune.found = state.segments),
            12 => {
                let backup = own.closed & own.closed.wrapping_neg();
                let of = snapshot(backup.trailing_zeros() as usize);
                let is_there = own.snapshots & of != 0 && state.announced & of != 0;
                let stays = match self.on(AcceptUncondemned) {
                    true => own.found & !own.others,
                    false => own.found,
                };
                if is_there && own.found == 0 {
                    go("DELETE snapshot", &|state, _| state.snapshots &= !of);
                } else if is_there && stays != 0 {
                    go("DELETE announcement", &|state, prune| {
                        state.announced &= !of;
                        prune.step = 14;
                    });
                } else {
                    go("leave it", &|_, prune| prune.step = 14);
                }
            }
            13 => {
                let of = snapshot(own.closed.trailing_zeros() as usize);
                go("DELETE announcement", &|state, _| state.announced &= !of);
            }
            14 | 15 => {
                let backup = own.closed & own.closed.wrapping_neg();
                let is_marker = (own.step == 14) == self.on(MarkerBeforeFence);
                go("clear", &|state, prune| {
                    match is_marker {
                        true => state.markers &= !backup,
                        false => state.fences &= !backup,
                    }
                    if prune.step == 16 {
                        prune.step = 9;
                        prune.closed &= !backup;
                        (prune.snapshots, prune.others, prune.found) = (0, 0, 0);
                    }
                });
            }
            _ => {}
        }
    }
}

/// Searches without a rule at growing sizes, until a hole opens.
fn hole(rule: Rule, sizes: &[(usize, usize)], states_max: usize) -> Option<Vec<String>> {
    sizes.iter().find_map(|(backups, prunes)| {
        let model = Model { backups: *backups, prunes: *prunes, without: Some(rule) };
        model.search(states_max).err()
    })
}

#[test]
fn no_interleaving_of_a_backup_and_a_prune_loses_a_chunk() {
    let model = Model { backups: 1, prunes: 1, without: None };
    let states = model.search(1_000_000).unwrap_or_else(|path| panic!("{path:#?}"));
    assert!((1_000..1_000_000).contains(&states), "{states}");
}

#[test]
#[ignore = "a slow lane, see CONTRIBUTING.md"]
#[expect(clippy::print_stdout, reason = "the figures of a long run")]
fn no_interleaving_loses_a_chunk_and_each_rule_has_a_reason() {
    for (backups, prunes) in [(2, 1), (1, 2)] {
        let model = Model { backups, prunes, without: None };
        let states = model.search(STATES_MAX).unwrap_or_else(|path| panic!("{path:#?}"));
        println!("{backups} backups and {prunes} prunes: {states} states");
        assert!(states < STATES_MAX);
    }
    let idle: Vec<Rule> = RULES
        .into_iter()
        .filter(|rule| match hole(*rule, &[(1, 1), (2, 1), (1, 2)], STATES_MAX) {
            None => true,
            Some(path) => {
                println!("without {rule:?}: {}", path.join(" | "));
                false
            }
        })
        .collect();
    assert_eq!(idle, []);
}
