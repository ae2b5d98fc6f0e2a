//! Power fails at any moment, and the disk loses everything that was not synced.
//!
//! Two recordings are replayed: the steps of a backup as a backend sees them, and the system calls
//! of the program, including those of SQLite. After each of many losses, three things must hold:
//!
//! - every listed snapshot can be restored,
//! - everything reported as saved is listed,
//! - the next backup works and leaves a clean store.
//!
//! The short lanes test some hundred states. The long one is `cargo test -p forgekeep --test
//! forgekeep power_loss:: -- --ignored --nocapture`; `FORGEKEEP_STATES` is its number of states.

use crate::support::aftermath::{comes_back, naming, next_backup};
use crate::support::disk::{Change, Disk, Loss, Remains};
use crate::support::sandbox::{Dice, FORGEKEEP, Sandbox};
use crate::support::show;
use crate::support::stores::backup_options;
use crate::support::strace::Trace;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use store::backend::recording::{Recording, Step};
use store::backend::{Backend, Memory, write_all};
use store::backup::{Backup, Likeness, Sources};
use store::config::Config;
use store::id::SnapshotId;
use store::observe::Silent;
use store::store::{Purpose, Store, init};
use store::workspace::Workspace;

/// Number of states in each of the short lanes.
const STATES: usize = 300;
/// Default number of states in the long lane.
const STATES_LONG: usize = 12_000;
/// Seed that determines, with the number of a state, all of its random choices.
const SEED: u64 = 20_261_128;
/// Id of the stores in memory.
const STORE_ID: [u8; 16] = [7; 16];

/// Creates the files of a night; some of them differ every night.
fn make_source(sandbox: &Sandbox, night: u64) {
    let mut dice = Dice::new(1000 + night);
    sandbox.write("source/always", Dice::new(1).bytes(20_000));
    sandbox.write("source/changing", dice.bytes(15_000));
    sandbox.write("source/small/inline", format!("night {night}"));
    sandbox.write(&format!("source/small/new-{night}"), dice.bytes(3000));
    let row = |row: u64| {
        let changed = if row % 40 == night { night } else { 0 };
        let mut dice = Dice::new(row * 1_000_003 + changed * 131);
        format!("INSERT INTO t VALUES ({row}, '{:016x}{:016x}');\n", dice.roll(), dice.roll())
    };
    sandbox.write("source/dump.sql", (0..1000).map(row).collect::<String>());
    sandbox.tool("cp").args(["-a", "source", &format!("night-{night}")]).run().ok();
}

/// The context of a recorded run.
struct Recorded {
    sandbox: Sandbox,
    /// Directory with the right content for each snapshot.
    contents: BTreeMap<String, PathBuf>,
}

impl Recorded {
    fn source(&self) -> PathBuf {
        self.sandbox.path("source").canonicalize().expect("is there")
    }

    fn saved(&mut self, id: &str, night: u64) {
        self.contents.insert(id.to_owned(), self.sandbox.path(format!("night-{night}")));
    }

    /// Restores all snapshots. Compares them with their original content, and the new one with the
    /// source.
    fn restore_all(
        &self,
        store: &Store,
        promises: &[String],
        new: Option<SnapshotId>,
    ) -> Result<(), String> {
        let (snapshots, damaged) = store.snapshots().map_err(naming("snapshots"))?;
        if !damaged.is_empty() {
            return Err(format!("listed and unreadable: {damaged:?}"));
        }
        let source = self.source();
        for (id, snapshot) in &snapshots {
            let right = match self.contents.get(&id.to_string()) {
                _ if Some(*id) == new => &source,
                right => right.ok_or(format!("nobody saved {id}"))?,
            };
            comes_back(store, snapshot, &source, right)
                .map_err(|error| format!("snapshot {id}: {error}"))?;
        }
        let listed: Vec<String> = snapshots.iter().map(|(id, _)| id.to_string()).collect();
        match promises.iter().find(|promise| !listed.contains(promise)) {
            Some(lost) => Err(format!("snapshot {lost} was reported as saved and is gone")),
            None => Ok(()),
        }
    }

    /// Asserts everything that must hold after a loss; `open` opens the remaining store. The first
    /// to open it may be a reader or the next backup.
    fn examine(
        &self,
        promises: &[String],
        is_reader_first: bool,
        open: &dyn Fn(Purpose) -> store::Result<Store>,
    ) -> Result<(), String> {
        if is_reader_first {
            let store = open(Purpose::Read).map_err(naming("the store does not open"))?;
            self.restore_all(&store, promises, None)?;
        }
        let store = open(Purpose::Write).map_err(naming("the store does not open for writing"))?;
        let new = next_backup(&store, &self.source())?;
        self.restore_all(&store, promises, Some(new))
    }
}

/// A state: the end of the recording, and the random choices for the rest.
struct State {
    changes: usize,
    dice: Dice,
    loss: Loss,
}

impl State {
    /// Returns state number `n`, spread over a recording of `len` changes.
    fn number(n: usize, from: usize, len: usize) -> State {
        let mut dice = Dice::new(SEED.wrapping_add(n as u64).wrapping_mul(0x9e37_79b9));
        let loss = match dice.below(10) {
            0 => Loss::Nothing,
            1..=3 => Loss::Everything,
            _ => Loss::Some,
        };
        let changes = from + dice.below((len - from + 1) as u64) as usize;
        State { changes, dice, loss }
    }
}

/// Tests states until `wanted` different ones were seen. Passes the remaining files and the
/// promises made to `examine`.
fn lose_power(
    changes: &[Change],
    from: usize,
    wanted: usize,
    examine: impl Fn(Remains, &[String], usize) -> Result<(), String> + Sync,
) -> usize {
    // Few changes have few outcomes; all were seen long before this limit.
    let tries = wanted * 4;
    let mut states: Vec<(usize, State)> =
        (0..tries).map(|n| (n, State::number(n, from, changes.len()))).collect();
    states.sort_by_key(|(_, state)| state.changes);
    let (mut disk, mut seen, mut pending) = (Disk::default(), HashSet::new(), Vec::new());
    for (n, mut state) in states {
        while disk.len() < state.changes {
            disk.apply(&changes[disk.len()]);
        }
        let remains = disk.remains(state.loss, &mut state.dice);
        if seen.insert(fingerprint(&remains, disk.promises())) {
            pending.push((n, state.changes, state.loss));
        }
    }
    let distinct = pending.len();
    // Some of them, from all over the recording.
    let mut chosen = pending;
    chosen.sort_by_key(|(n, ..)| *n);
    chosen.truncate(wanted);
    chosen.sort_by_key(|(_, at, _)| *at);
    let (next, threads) = (AtomicUsize::new(0), if wanted > STATES { 2 } else { 1 });
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut disk = Disk::default();
                while let Some((n, at, loss)) = chosen.get(next.fetch_add(1, Relaxed)) {
                    while disk.len() < *at {
                        disk.apply(&changes[disk.len()]);
                    }
                    let mut state = State::number(*n, from, changes.len());
                    let remains = disk.remains(state.loss, &mut state.dice);
                    let shown = describe(&remains);
                    if let Err(error) = examine(remains, disk.promises(), *at) {
                        let last = changes[at.saturating_sub(12)..*at].iter();
                        let last: Vec<String> = last.map(Change::to_string).collect();
                        panic!(
                            "state {n} (seed {SEED}), {loss:?} lost after {at} of {} changes: \
                             {error}\nthe last changes: {last:#?}\nwhat is left: {shown:#?}",
                            changes.len()
                        );
                    }
                }
            });
        }
    });
    show(&format!("{} states of {distinct} different ones", chosen.len()));
    chosen.len()
}

fn fingerprint(remains: &Remains, promises: &[String]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(promises.len() as u64).to_le_bytes());
    for (path, content) in remains {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update(&[0, u8::from(content.is_some())]);
        hasher.update(blake3::hash(content.as_deref().unwrap_or_default()).as_bytes());
    }
    hasher.finalize()
}

/// Returns files with their lengths.
fn describe(remains: &Remains) -> Vec<(PathBuf, usize)> {
    let files = remains.iter().filter_map(|(path, content)| Some((path, content.as_ref()?)));
    files.map(|(path, content)| (path.clone(), content.len())).collect()
}

/// Converts the steps of a backend to changes of a disk.
fn changes_of(steps: &[Step], into: &mut Vec<Change>, promise: &str) {
    let (mut lens, mut names) = (BTreeMap::new(), BTreeMap::new());
    let unnamed = |file: &usize| PathBuf::from(format!("tmp/{file}"));
    let sync = |name: &str, begun| {
        let path = Path::new(name).parent().expect("a directory").to_owned();
        Change::SyncDirectory { path, begun }
    };
    for step in steps {
        let begun = into.len();
        into.push(match step {
            Step::Create(file) => Change::File { path: unnamed(file), file: *file },
            Step::Write(file, bytes) => {
                let len = lens.entry(*file).or_insert(0);
                let (offset, bytes) = (*len, bytes.as_slice().into());
                *len += step_len(step);
                Change::Write { file: *file, offset, bytes }
            }
            Step::Sync(file) => Change::SyncFile { file: *file, begun },
            Step::Publish(file, name) => {
                names.insert(*file, name.clone());
                Change::Rename { from: unnamed(file), to: name.into() }
            }
            Step::Published(file) => sync(&names[file], begun),
            Step::Drop(file) => Change::Unlink(unnamed(file)),
            Step::Remove(name) => Change::Unlink(name.into()),
            Step::Removed(name) => sync(name, begun),
        });
    }
    into.push(Change::Promise(promise.to_owned()));
}

fn step_len(step: &Step) -> u64 {
    if let Step::Write(_, bytes) = step { bytes.len() as u64 } else { 0 }
}

/// Three nights of several passes each, as a backend sees them, and the index that each of them
/// left.
struct RecordedSteps {
    recorded: Recorded,
    changes: Vec<Change>,
    /// Number of changes at the end of each run.
    ends: Vec<usize>,
}

fn record_steps() -> RecordedSteps {
    let mut recorded = Recorded { sandbox: Sandbox::in_memory(), contents: BTreeMap::new() };
    let mut changes: Vec<Change> =
        ["tmp", "snapshots", "segments"].map(|dir| Change::Directory(dir.into())).into();
    changes.extend((0..=255).map(|n| Change::Directory(format!("segments/{n:02x}").into())));
    for path in ["", "segments"] {
        changes.push(Change::SyncDirectory { path: path.into(), begun: changes.len() });
    }
    let backend = Arc::new(Recording::new(Memory::default()));
    let log = backend.log();
    let (mut done, mut ends) = (0, Vec::new());
    let config = Config::new(STORE_ID, chunker::Parameters::DEFAULT, 3);
    write_all(&*backend, store::config::FILE, &config.to_bytes()).expect("writes");
    for night in 1..=3 {
        make_source(&recorded.sandbox, night);
        let backend = Arc::clone(&backend) as Arc<dyn Backend>;
        let (workspaces, observer) = (recorded.sandbox.path(""), Arc::new(Silent::default()));
        let store = Store::open_backend(backend, &workspaces, Purpose::Write, observer);
        let store = store.expect("opens");
        let source = recorded.source();
        let mut options = backup_options();
        options.about.tags = vec![format!("night-{night}")];
        let likeness = Likeness::Paths(vec![source.to_str().expect("readable").into()]);
        let mut backup = Backup::begin(&store, &options, likeness).expect("begins");
        let sources = Sources { paths: vec![source], ..Sources::default() };
        backup.paths(&sources).expect("reads");
        backup.again().expect("flushes");
        backup.paths(&sources).expect("reads");
        let report = backup.finish(None).expect("finishes");
        let id = report.snapshot.expect("not a dry run").to_string();
        recorded.saved(&id, night);
        drop(store);
        std::fs::copy(index_below(&workspaces), recorded.sandbox.path(format!("index-{night}")))
            .expect("copies");
        let steps = log.steps();
        changes_of(&steps[done..], &mut changes, &id);
        done = steps.len();
        ends.push(changes.len());
    }
    RecordedSteps { recorded, changes, ends }
}

/// Returns the path of the index in a directory of workspaces.
fn index_below(workspaces: &Path) -> PathBuf {
    Workspace::below(workspaces, &STORE_ID).expect("a workspace").index_path()
}

/// Tests remains of a backend, without an index or with an outdated one.
fn examine_steps(steps: &RecordedSteps, states: usize) -> usize {
    // Before `store.json` is published, there is no store.
    let is_store =
        |change: &Change| matches!(change, Change::Rename { to, .. } if to.ends_with("store.json"));
    let from = steps.changes.iter().position(is_store).expect("a store") + 2;
    let examine = |remains: Remains, promises: &[String], at: usize| {
        let files = remains.into_iter().filter(|(path, _)| !path.starts_with("tmp"));
        let memory = Memory::default();
        memory.with_files(|all| {
            all.extend(files.filter_map(|(path, content)| {
                Some((path.to_str().expect("readable").to_owned(), content?))
            }));
        });
        let scratch = Sandbox::in_memory();
        let workspaces = scratch.path("");
        let ended = steps.ends.iter().filter(|end| **end <= at).count();
        if ended > 0 && !at.is_multiple_of(3) {
            let behind = steps.recorded.sandbox.path(format!("index-{ended}"));
            std::fs::copy(behind, index_below(&workspaces)).expect("copies");
        }
        steps.recorded.examine(promises, at.is_multiple_of(2), &|purpose| {
            let memory: Arc<dyn Backend> = Arc::new(memory.clone());
            Store::open_backend(memory, &workspaces, purpose, Arc::new(Silent::default()))
        })
    };
    lose_power(&steps.changes, from, states, examine)
}

#[test]
fn any_prefix_of_the_steps_of_a_backup_leaves_a_good_store() {
    examine_steps(&record_steps(), STATES);
}

/// Records the program's own system calls: a new store, two nights, a rebuilt index, a killed run
/// and the next one.
fn record_calls() -> (Recorded, Trace) {
    let mut recorded = Recorded { sandbox: Sandbox::in_memory(), contents: BTreeMap::new() };
    let sandbox = &recorded.sandbox;
    let mut trace = Trace::new(sandbox.root(), "store");
    let mut ids = Vec::new();
    let run = |trace: &mut Trace, extra: &[&str], arguments: &[&str]| {
        let program = [&[FORGEKEEP], arguments].concat();
        trace.run(sandbox.tool("strace"), extra, &program)
    };
    let mut night = |trace: &mut Trace, number: u64| {
        make_source(sandbox, number);
        let outcome = run(trace, &[], &["backup", "source", "--json"]).ok();
        let summary = outcome.json().pop().expect("a summary");
        ids.push((summary["snapshot_id"].as_str().expect("an id").to_owned(), number));
    };
    run(&mut trace, &[], &["init"]).ok();
    night(&mut trace, 1);
    night(&mut trace, 2);
    run(&mut trace, &[], &["index", "rebuild"]).ok();
    make_source(sandbox, 3);
    let kill = ["-e", "inject=rename,renameat,renameat2:signal=KILL:when=2"];
    assert!(run(&mut trace, &kill, &["backup", "source"]).was_killed());
    night(&mut trace, 4);
    make_source(sandbox, 5);
    assert!(ids.len() == 3 && trace.disk().promises().len() == 3);
    ids.iter().for_each(|(id, number)| recorded.saved(id, *number));
    assert_complete(&recorded.sandbox, &trace);
    (recorded, trace)
}

/// Asserts that the trace is complete: replayed, it gives the existing store.
fn assert_complete(sandbox: &Sandbox, trace: &Trace) {
    let remains = trace.disk().remains(Loss::Nothing, &mut Dice::new(0));
    let files = sandbox.tool("find").args(["store", "-type", "f"]).run().ok();
    let mut there: Vec<&str> = files.stdout.lines().collect();
    there.sort_unstable();
    let mut traced: Vec<&str> = remains
        .iter()
        .filter(|(_, content)| content.is_some())
        .filter_map(|(path, _)| path.to_str())
        .collect();
    traced.sort_unstable();
    assert_eq!(there, traced);
    for (path, content) in remains {
        if let Some(content) = content {
            assert!(content == sandbox.read(&path), "{}", path.display());
        }
    }
}

/// Tests remains of the store in a directory.
fn examine_calls(recorded: &Recorded, trace: &Trace, states: usize) -> usize {
    let examine = |remains: Remains, promises: &[String], at: usize| {
        let scratch = Sandbox::in_memory();
        lay_out(scratch.root(), remains, &mut Dice::new(at as u64));
        let root = scratch.path("store");
        let open = |purpose| Store::open(&root, purpose, Arc::new(Silent::default()));
        if let (Err(store::Error::NoStore(_)), []) = (open(Purpose::Read), promises) {
            // A store whose creation was interrupted is created again.
            let config = Config::new([7; 16], chunker::Parameters::DEFAULT, 3);
            init(&root, &config).map_err(|error| format!("init: {error}"))?;
        }
        recorded.examine(promises, at.is_multiple_of(2), &open)
    };
    lose_power(&trace.changes, 0, states, examine)
}

/// Writes the remains into a directory.
fn lay_out(root: &Path, remains: Remains, dice: &mut Dice) {
    for (path, content) in remains {
        let place = root.join(&path);
        match content {
            None => std::fs::create_dir(&place).expect("makes"),
            // SQLite shares it as memory, so its state on the disk is unknown.
            Some(content) if path.ends_with("index.sqlite-shm") => {
                std::fs::write(&place, dice.bytes(content.len())).expect("writes");
            }
            Some(content) => std::fs::write(&place, content).expect("writes"),
        }
    }
}

#[test]
fn any_prefix_of_the_system_calls_leaves_a_good_store() {
    let (recorded, trace) = record_calls();
    examine_calls(&recorded, &trace, STATES);
}

#[test]
#[ignore = "a slow lane, see CONTRIBUTING.md"]
fn ten_thousand_power_losses_leave_good_stores() {
    #[expect(clippy::disallowed_methods, reason = "the length of the long lane")]
    let wanted = std::env::var("FORGEKEEP_STATES").ok().and_then(|count| count.parse().ok());
    let wanted: usize = wanted.unwrap_or(STATES_LONG);
    let steps = examine_steps(&record_steps(), wanted / 4);
    let mut calls = 0;
    while steps + calls < wanted {
        let (recorded, trace) = record_calls();
        calls += examine_calls(&recorded, &trace, wanted - steps - calls);
    }
    show(&format!("{} states: {steps} of a backend, {calls} of system calls", steps + calls));
}
