//! The real operations under a scheduler, which decides after each step of the store who runs next.
//!
//! A schedule consists of backups, forgets, prunes, checks and restores on several machines. Each of
//! them can be killed at any step, and prunes take backups for dead at any time. After every change
//! of the store, each snapshot whose backup succeeded must be there and whole.

mod scripts;
mod world;

use crate::backup::{About, Backup, BackupOptions, Likeness, Sources};
use crate::check::{ReadData, check};
use crate::chunks::Chunks;
use crate::codec::Codec;
use crate::config::{self, Config};
use crate::entry::Time;
use crate::error::{Error, Result};
use crate::forget::Permitted;
use crate::glob::Globs;
use crate::id::{ChunkId, SnapshotId};
use crate::observe::{Progress, Silent};
use crate::protocol::{self, RULES, Rule};
use crate::prune::{PruneOptions, prune};
use crate::reach::{Visitor, reach};
use crate::restore::tests::backup_options;
use crate::restore::{self, restore};
use crate::skipped::Spared;
use crate::snapshot::{self, Snapshot};
use crate::store::{Purpose, Store};
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use world::{Fault, Files, Killed, Order, PROCESS_DIRS, Parameters, Random, Reported, View, World};

/// Number of files in the source. A backup leaves some of them out.
const FILES: usize = 4;
/// Machines. The last one has no index at the start.
const MACHINES: usize = 3;
/// Maximum number of actors.
const ACTORS: usize = 8;
/// Schedules of a usual run, and of the slow lane.
const SCHEDULES: u64 = 500;
const SCHEDULES_SLOW: u64 = 100_000;
/// Number after which the slow lane shows how far it is.
const SCHEDULES_SHOWN: usize = 5000;
/// Time of the first backup, long after the files changed.
const START: i64 = 2_000_000_000;

/// Machine and files of each backup at the start. The machines store chunks twice, because neither
/// knows what the other stored.
const NIGHTS: [(usize, Version); 4] = [(0, 0b0011), (1, 0b0011), (0, 0b0110), (1, 0b0111)];

thread_local! {
    /// Time of the backup of this thread.
    static NOW: Cell<i64> = const { Cell::new(START) };
}

/// Sets of files in the source.
type Version = u8;

/// An operation with its machine.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Backup(usize, Version),
    /// Machine, and number of snapshots.
    Forget(usize, usize),
    /// Machine. The snapshot that was reported last.
    ForgetNewest(usize),
    /// Machine, and number of the night at the start.
    ForgetNight(usize, usize),
    /// A prune that rewrites segments.
    Prune(usize),
    /// A prune that rewrites nothing.
    PruneOnly(usize),
    /// A prune that does not wait for backups.
    PruneAtOnce(usize),
    Check(usize),
    Restore(usize),
}

impl Operation {
    fn machine(self) -> usize {
        match self {
            Operation::Backup(machine, _)
            | Operation::Forget(machine, _)
            | Operation::ForgetNewest(machine)
            | Operation::ForgetNight(machine, _)
            | Operation::Prune(machine)
            | Operation::PruneOnly(machine)
            | Operation::PruneAtOnce(machine)
            | Operation::Check(machine)
            | Operation::Restore(machine) => machine,
        }
    }
}

/// The store at the start of every schedule, and the source.
struct Base {
    dir: TempDir,
    files: Files,
    reported: BTreeMap<SnapshotId, Reported>,
    /// Snapshots in the order of their creation, see [`NIGHTS`].
    nights: Vec<SnapshotId>,
    /// Bytes of the index of each machine.
    indexes: Vec<Option<Vec<u8>>>,
}

/// Workspaces and threads for one schedule after the other.
struct Runner<'a> {
    base: &'a Base,
    dir: TempDir,
    threads: Vec<rayon::ThreadPool>,
}

fn directory() -> TempDir {
    // In memory: SQLite writes much.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn open(view: &View, dir: &Path, machine: usize) -> Result<Store> {
    let observer = Arc::new(Silent::default());
    let workspaces = dir.join(machine.to_string());
    Store::open_backend(Arc::new(view.clone()), &workspaces, Purpose::Write, observer)
}

/// Backs up some files of the source.
fn backup(store: &Store, source: &Path, machine: usize, version: Version) -> Result<SnapshotId> {
    let is_left_out = |file: &usize| version & (1 << file) == 0;
    let excludes = (0..FILES).filter(is_left_out).map(|file| format!("{file}").into_bytes());
    let options = BackupOptions { excludes: excludes.collect(), ..backup_options() };
    let about = About {
        host: format!("host {machine}"),
        run: Some(crate::random::bytes().expect("random")),
        clock: || Time { seconds: NOW.get(), nanoseconds: 0 },
        ..options.about
    };
    let options = BackupOptions { about, ..options };
    let paths = vec![source.to_owned()];
    let mut backup = Backup::begin(store, &options, Likeness::of_paths(&paths))?;
    backup.paths(&Sources { paths, ..Sources::default() })?;
    Ok(backup.finish(None)?.snapshot.expect("not a dry run"))
}

/// Reads chunks without the store.
struct Direct<'a>(&'a Files);

impl Chunks for Direct<'_> {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        self.0.chunk(id, Codec::new(1), plain).ok_or(Error::ChunkMissing(*id))
    }
}

#[derive(Default)]
struct Collected(Mutex<BTreeSet<ChunkId>>);

impl Visitor for Collected {
    fn metadata(&self, id: &ChunkId) -> Result<()> {
        self.0.lock().insert(*id);
        Ok(())
    }

    fn slice(&self, id: &ChunkId, _: u32) -> Result<()> {
        self.metadata(id)
    }
}

/// Returns what a snapshot needs.
fn needs(files: &Files, id: &SnapshotId) -> Result<Reported> {
    let name = snapshot::file_name(id);
    let memory = crate::backend::Memory::default();
    let bytes = files.files.get(&name).map(|bytes| bytes.to_vec()).unwrap_or_default();
    memory.with_files(|files| files.insert(name, bytes));
    let root = Snapshot::read(&memory, Codec::new(1), id)?.0.root.chunk();
    let (chunks, collected) = (Direct(files), Collected::default());
    reach(&root, &chunks, &mut HashSet::new(), &collected, &Progress::default())?;
    Ok(Reported { root, needs: Arc::new(collected.0.into_inner()) })
}

/// Returns the number of the file in a name of the source, and its bytes.
fn content(file: usize) -> Vec<u8> {
    // A segment with the first one is rewritten when only others in it are needed.
    let mut bytes = vec![0; if file == 0 { 40_000 } else { 3000 }];
    blake3::Hasher::new().update(&[file as u8]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Restores a snapshot. Returns the version that the target has, or `None` if its content is wrong.
fn restored(
    store: &Store,
    source: &Path,
    root: &ChunkId,
    target: &Path,
) -> Result<(restore::Report, Option<Version>)> {
    let none = || Globs::new([]).expect("no globs");
    let from = source.as_os_str().as_bytes()[1..].to_vec();
    let options = restore::Options {
        include: none(),
        include_each: Vec::new(),
        exclude: none(),
        delete: false,
        sources: vec![from.clone()],
        keep: Spared::default(),
        owners: Arc::default(),
        owner_record: None,
        ends_at_write_errors: false,
        is_dry: false,
    };
    let report = restore(store, root, &from, target, &options)?;
    let mut version = Some(0);
    for entry in fs::read_dir(target).expect("reads").flatten() {
        let name = entry.file_name().into_string().ok();
        let file = name.and_then(|name| name.parse::<usize>().ok()).expect("a number");
        let is_right = fs::read(entry.path()).expect("reads") == content(file);
        version = version.filter(|_| is_right).map(|version| version | 1 << file);
    }
    Ok((report, version))
}

/// Keeps the panics of killed actors quiet.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if protocol::actor().is_none() {
                usual(panic);
            }
        }));
    });
}

impl Base {
    /// Makes a store with snapshots of two machines, which have some chunks in common and others
    /// twice.
    fn new() -> Base {
        hush();
        let dir = directory();
        let source = dir.path().join("source");
        fs::create_dir(&source).expect("makes");
        for file in 0..FILES {
            fs::write(source.join(file.to_string()), content(file)).expect("writes");
        }
        let parameters = Parameters {
            order: Order::Random(1),
            kills: Vec::new(),
            has_locks: false,
            patience: 1,
            without: None,
        };
        let world =
            World::new(Files::default(), BTreeMap::new(), &[0], parameters, Random(1), false);
        let view = View { world: Arc::clone(&world), actor: 0 };
        let config = Config::new([1; 16], chunker::Parameters::DEFAULT, 1);
        crate::backend::write_all(&view, config::FILE, &config.to_bytes()).expect("writes");
        let stores: Vec<Store> =
            (0..2).map(|machine| open(&view, dir.path(), machine).expect("opens")).collect();
        let mut nights = Vec::new();
        for (night, (machine, version)) in NIGHTS.into_iter().enumerate() {
            NOW.set(START + night as i64);
            let id = backup(&stores[machine], &source, machine, version);
            nights.push(id.expect("succeeds"));
        }
        drop(stores);
        let index = |machine: usize| {
            let found = fs::read_dir(dir.path().join(machine.to_string())).ok()?.next()?;
            fs::read(found.expect("reads").path().join("index.sqlite")).ok()
        };
        let indexes = (0..MACHINES).map(index).collect();
        let files = world.with_files(Files::clone);
        let ids = files.names("snapshots/");
        let ids = ids.iter().map(|name| SnapshotId::from_hex(&name[10..]).expect("an id"));
        let reported = ids.map(|id| (id, needs(&files, &id).expect("is whole"))).collect();
        Base { dir, files, reported, nights, indexes }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }
}

/// Result of a schedule.
struct Outcome {
    faults: Vec<Fault>,
    steps: u64,
    trace: String,
    operations: Vec<Operation>,
    parameters: Parameters,
}

/// Chooses the operations of a schedule.
fn operations(random: &mut Random) -> Vec<Operation> {
    let mut has_new = false;
    let mut machine = |random: &mut Random| match random.below(8) {
        // Only one of them builds its index.
        0 if !has_new => {
            has_new = true;
            2
        }
        at => at % 2,
    };
    let version =
        |random: &mut Random| random.choose(&[0b0011, 0b0110, 0b0111, 0b1011, 0b0001, 0b1111]);
    let mut chosen = Vec::new();
    let (backups, forgets, prunes, readers) = match random.below(4) {
        0 => (2, 1, 2, 2),
        1 => (1 + random.below(2), 1 + random.below(2), 1 + random.below(2), random.below(2)),
        _ => {
            // The second backup may take its files from the first one.
            let backup = Operation::Backup(random.below(2), version(random));
            chosen.extend(vec![backup; 1 + random.below(2)]);
            (0, random.below(2), 1 + random.below(2), 0)
        }
    };
    for _ in 0..backups {
        chosen.push(Operation::Backup(machine(random), version(random)));
    }
    for _ in 0..forgets {
        chosen.push(Operation::Forget(machine(random), 1 + random.below(2)));
    }
    for _ in 0..prunes {
        let machine = machine(random);
        chosen.push(match random.below(6) {
            0 => Operation::PruneAtOnce(machine),
            1 | 2 => Operation::PruneOnly(machine),
            _ => Operation::Prune(machine),
        });
    }
    for number in 0..readers {
        let machine = machine(random);
        chosen.push(match number == 0 && random.once_in(2) {
            true => Operation::Check(machine),
            false => Operation::Restore(machine),
        });
    }
    chosen
}

/// Chooses the parameters of a schedule of some actors.
fn parameters(random: &mut Random, actors: usize, without: Option<Rule>) -> Parameters {
    let steps = 60 * actors;
    let order = match random.below(3) {
        0 => Order::Random(random.choose(&[1, 2, 5, 15])),
        _ => {
            let changes = 1 + random.below(6);
            Order::Priorities((0..changes).map(|_| random.below(steps) as u64).collect())
        }
    };
    let kills = match random.below(4) {
        0 | 1 => 0,
        kills => kills - 1,
    };
    let kill = |random: &mut Random| (random.below(actors), 1 + random.below(80) as u64);
    Parameters {
        order,
        kills: (0..kills).map(|_| kill(random)).collect(),
        has_locks: random.once_in(2),
        patience: random.choose(&[1, 2, 5, 100]),
        without,
    }
}

impl<'a> Runner<'a> {
    fn new(base: &'a Base) -> Runner<'a> {
        let pool = |_| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(1);
            builder.build().expect("a thread")
        };
        Runner { base, dir: directory(), threads: (0..ACTORS).map(pool).collect() }
    }

    /// Puts the index of each machine into its workspace.
    fn reset(&self) {
        for (machine, index) in self.base.indexes.iter().enumerate() {
            let dir = self.dir.path().join(machine.to_string());
            let _ = fs::remove_dir_all(&dir);
            if let Some(bytes) = index {
                let dir = dir.join(format!("{:032x}", u128::from_be_bytes([1; 16])));
                fs::create_dir_all(&dir).expect("makes");
                fs::write(dir.join("index.sqlite"), bytes).expect("writes");
            }
        }
    }

    /// Runs the schedule of a seed.
    fn run(&self, seed: u64, without: Option<Rule>, is_traced: bool) -> Outcome {
        let mut random = Random(seed);
        let operations = operations(&mut random);
        let parameters = parameters(&mut random, operations.len(), without);
        let kept: Vec<usize> =
            (0..NIGHTS.len()).filter(|night| *night == 2 || random.once_in(2)).collect();
        self.play(&kept, operations, parameters, random, is_traced)
    }

    /// Runs operations on a store from which all nights were forgotten but some. All chunks are
    /// there until the first prune.
    fn play(
        &self,
        kept: &[usize],
        operations: Vec<Operation>,
        parameters: Parameters,
        mut random: Random,
        is_traced: bool,
    ) -> Outcome {
        self.reset();
        let without = parameters.without;
        let machines: Vec<usize> = operations.iter().map(|of| of.machine()).collect();
        let (mut files, mut reported) = (self.base.files.clone(), self.base.reported.clone());
        for (night, id) in self.base.nights.iter().enumerate() {
            if !kept.contains(&night) {
                files.remove(&snapshot::file_name(id));
                reported.remove(id);
            }
        }
        let world =
            World::new(files, reported, &machines, parameters.clone(), random.clone(), is_traced);
        for (actor, operation) in operations.iter().copied().enumerate() {
            let view = View { world: Arc::clone(&world), actor };
            let mut act = Act {
                view,
                dir: self.dir.path().to_owned(),
                source: self.base.source(),
                nights: self.base.nights.clone(),
                random: Random(random.next()),
            };
            self.threads[actor].spawn(move || {
                let view = act.view.clone();
                protocol::set_actor(Some(Arc::new(view.clone())));
                view.world.begin(actor);
                NOW.set(START + 1000 + actor as i64);
                let done = catch_unwind(AssertUnwindSafe(|| act.run(operation)));
                protocol::set_actor(None);
                match done {
                    _ if view.world.is_killed(actor) => {}
                    Ok(()) => {}
                    Err(panic) => {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text = text
                            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()))
                            .unwrap_or_else(|| panic.is::<Killed>().to_string());
                        view.world.fault(format!("{operation:?} panicked: {text}"));
                    }
                }
                view.world.end(actor);
            });
        }
        world.run();
        if world.result().0.is_empty() {
            // In a pool of one thread, like the actors.
            self.threads[0]
                .install(|| self.finish(&world, &mut random, &machines, without.is_none()));
        }
        let (faults, steps, trace) = world.result();
        Outcome { faults, steps, trace, operations, parameters }
    }

    /// After all actors: prunes and checks are clean, and all snapshots restore exactly. Otherwise,
    /// only one prune.
    fn finish(&self, world: &Arc<World>, random: &mut Random, machines: &[usize], is_whole: bool) {
        let view = View { world: Arc::clone(world), actor: 0 };
        protocol::set_actor(Some(Arc::new(view.clone())));
        let fresh = MACHINES;
        let _ = fs::remove_dir_all(self.dir.path().join(fresh.to_string()));
        let machine = if random.once_in(8) { fresh } else { random.choose(machines) };
        let mut done = || -> Result<()> {
            for _ in 0..if is_whole { 3 } else { 1 } {
                let store = open(&view, self.dir.path(), machine)?;
                match prune(&store, &prune_options(machine), &mut |_| {}) {
                    // Several forgets at once may leave nothing.
                    Err(Error::NoSnapshots(_)) if world.reported().is_empty() => {}
                    done => drop(done?),
                }
            }
            if !is_whole {
                return Ok(());
            }
            let kept = world.reported();
            for machine in [machine, random.choose(machines)] {
                let store = open(&view, self.dir.path(), machine)?;
                let report = check(&store, ReadData::All)?;
                if !report.is_clean() {
                    let (damages, losses) = (report.damages, report.losses);
                    world.fault(format!("the last check: {damages:?} {losses:?}"));
                }
                let listed = store.snapshot_ids()?;
                for (id, reported) in &kept {
                    if !listed.contains(id) {
                        world.loss(format!("snapshot {} is not listed", id.short()));
                    }
                    self.restores(&store, world, id, reported)?;
                }
            }
            Ok(())
        };
        if let Err(error) = done() {
            world.fault(format!("at the end: {error}"));
        }
        protocol::set_actor(None);
        // Prunes of a store without snapshots end before they clear anything away.
        let has_snapshots = !world.reported().is_empty();
        if is_whole && has_snapshots && world.result().0.is_empty() {
            world.with_files(leaves_nothing).unwrap_or_else(|what| world.fault(what));
        }
    }

    fn restores(
        &self,
        store: &Store,
        world: &World,
        id: &SnapshotId,
        reported: &Reported,
    ) -> Result<()> {
        let target = self.dir.path().join("last");
        let _ = fs::remove_dir_all(&target);
        let expected = version_of(store, id)?;
        let (report, version) = restored(store, &self.base.source(), &reported.root, &target)?;
        if report.failed > 0 || version != Some(expected) {
            world.loss(format!("snapshot {} restores {version:?}: {report:?}", id.short()));
        }
        Ok(())
    }
}

/// Fails if something is left that no snapshot needs.
fn leaves_nothing(files: &Files) -> Result<(), String> {
    let names = PROCESS_DIRS.iter().flat_map(|dir| files.names(dir));
    // A process elsewhere may still write the record of an announced snapshot.
    let left: Vec<&str> = names.filter(|name| !name.contains("-snapshot-")).collect();
    if !left.is_empty() {
        return Err(format!("left behind: {left:?}"));
    }
    let mut all = BTreeSet::new();
    let ids = files.names("snapshots/");
    for id in ids.iter().map(|name| SnapshotId::from_hex(&name["snapshots/".len()..])) {
        let reported = needs(files, &id.expect("an id")).map_err(|error| error.to_string())?;
        all.extend(reported.needs.iter().copied());
    }
    match files.garbage(&all) {
        0 => Ok(()),
        count => Err(format!("{count} segments without a needed chunk are left")),
    }
}

/// Returns the files that a snapshot contains, according to its record.
fn version_of(store: &Store, id: &SnapshotId) -> Result<Version> {
    let excludes = store.snapshot(id)?.excludes;
    let left_out = excludes.iter().map(|name| 1 << name.parse::<usize>().expect("a number"));
    Ok(left_out.fold((1 << FILES) - 1, |version, file: Version| version & !file))
}

fn prune_options(machine: usize) -> PruneOptions {
    PruneOptions {
        is_dry: false,
        repack_bytes_max: u64::MAX,
        wait: Duration::from_secs(3600),
        now: Time { seconds: START + 5000, nanoseconds: 0 },
        host: format!("host {machine}"),
        program: "test".into(),
        is_only_host: false,
    }
}

/// An actor.
struct Act {
    view: View,
    dir: PathBuf,
    source: PathBuf,
    /// Snapshots of the start, in the order of their creation.
    nights: Vec<SnapshotId>,
    random: Random,
}

impl Act {
    fn run(&mut self, operation: Operation) {
        let machine = operation.machine();
        let done = match operation {
            Operation::Backup(_, version) => self.backup(machine, version),
            Operation::Forget(_, count) => self.forget(machine, count),
            Operation::ForgetNewest(_) => {
                let newest = self.view.world.newest().expect("is there");
                self.open(machine).and_then(|store| self.forget_one(&store, newest))
            }
            Operation::ForgetNight(_, night) => {
                let id = self.nights[night];
                self.open(machine).and_then(|store| self.forget_one(&store, id))
            }
            Operation::Prune(_) => self.prune(machine, &prune_options(machine)),
            Operation::PruneOnly(_) => {
                let options = PruneOptions { repack_bytes_max: 0, ..prune_options(machine) };
                self.prune(machine, &options)
            }
            Operation::PruneAtOnce(_) => {
                let options = PruneOptions { wait: Duration::ZERO, ..prune_options(machine) };
                self.prune(machine, &options)
            }
            Operation::Check(_) => self.check(machine),
            Operation::Restore(_) => self.restore(machine),
        };
        match done {
            Ok(()) => {}
            Err(Error::Fenced | Error::LastComplete { .. }) => {
                self.view.world.say(|| format!("{operation:?} failed"));
            }
            // Several forgets at once may leave nothing.
            Err(Error::NoSnapshots(_)) if self.view.world.reported().is_empty() => {}
            Err(error) => self.view.world.fault(format!("{operation:?}: {error}")),
        }
    }

    fn open(&self, machine: usize) -> Result<Store> {
        open(&self.view, &self.dir, machine)
    }

    fn backup(&mut self, machine: usize, version: Version) -> Result<()> {
        let store = self.open(machine)?;
        let id = backup(&store, &self.source, machine, version)?;
        let world = &self.view.world;
        match world.with_files(|files| needs(files, &id)) {
            Ok(reported) => world.report(id, reported),
            Err(error) => world.loss(format!("snapshot {} was reported: {error}", id.short())),
        }
        Ok(())
    }

    fn forget(&mut self, machine: usize, count: usize) -> Result<()> {
        let store = self.open(machine)?;
        for _ in 0..count {
            let ids: Vec<SnapshotId> = self.view.world.reported().into_keys().collect();
            if ids.is_empty() {
                return Ok(());
            }
            // The newest one is likely to be the parent of a backup.
            let newest = self.view.world.newest().filter(|_| self.random.once_in(2));
            let id = newest.unwrap_or(ids[self.random.below(ids.len())]);
            self.forget_one(&store, id)?;
        }
        Ok(())
    }

    fn forget_one(&self, store: &Store, id: SnapshotId) -> Result<()> {
        let now = Time { seconds: START + 5000, nanoseconds: 0 };
        store.may_forget(&[id], Permitted::default(), now)?;
        self.view.world.forgets(&id);
        store.forget(&[id], Permitted::default(), now, |_| {}).map(drop)
    }

    fn prune(&mut self, machine: usize, options: &PruneOptions) -> Result<()> {
        let store = self.open(machine)?;
        prune(&store, options, &mut |_| {}).map(drop)
    }

    fn check(&mut self, machine: usize) -> Result<()> {
        let store = self.open(machine)?;
        let report = check(&store, ReadData::All)?;
        if !report.is_clean() {
            let (damages, losses) = (&report.damages, &report.losses);
            self.view.world.fault(format!("a check: {damages:?} {losses:?}"));
        }
        Ok(())
    }

    fn restore(&mut self, machine: usize) -> Result<()> {
        let reported: Vec<(SnapshotId, Reported)> =
            self.view.world.reported().into_iter().collect();
        if reported.is_empty() {
            return Ok(());
        }
        let (id, Reported { root, .. }) = &reported[self.random.below(reported.len())];
        let target = self.dir.join(format!("target {}", self.view.actor));
        let _ = fs::remove_dir_all(&target);
        let done = self.open(machine).and_then(|store| {
            let expected = version_of(&store, id)?;
            Ok((expected, restored(&store, &self.source, root, &target)?))
        });
        let world = &self.view.world;
        let is_forgotten = !world.reported().contains_key(id);
        match done {
            Ok((expected, (_, Some(version)))) if version == expected => {}
            // What is there is right, and the report says that something is missing.
            Ok((_, (report, Some(_)))) if is_forgotten && report.failed > 0 => {}
            Err(error) if is_forgotten => world.say(|| format!("forgotten meanwhile: {error}")),
            Ok((_, wrong)) => world.loss(format!("snapshot {} restores {wrong:?}", id.short())),
            Err(error) => world.loss(format!("snapshot {}: {error}", id.short())),
        }
        Ok(())
    }
}

/// Runs the schedules of these seeds on two threads. Returns the first seed with a fault that was
/// found, and the number of steps.
fn search(base: &Base, seeds: Range<u64>, without: Option<Rule>) -> (Option<u64>, u64) {
    // Without a rule, only losses count.
    let counts = |fault: &Fault| without.is_none() || matches!(fault, Fault::Loss(_));
    let (next, found) = (AtomicU64::new(seeds.start), Mutex::new(None));
    let steps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let runner = Runner::new(base);
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds.end || found.lock().is_some() {
                        return;
                    }
                    let outcome = runner.run(seed, without, false);
                    steps.fetch_add(outcome.steps, Relaxed);
                    if outcome.faults.iter().any(counts) {
                        found.lock().get_or_insert(seed);
                    }
                }
            });
        }
    });
    (found.into_inner(), steps.into_inner())
}

/// Runs the schedule of a seed and describes it.
fn describe(base: &Base, seed: u64, without: Option<Rule>) -> String {
    let Outcome { faults, trace, operations, parameters, .. } =
        Runner::new(base).run(seed, without, true);
    format!("seed {seed}: {faults:#?}\n{operations:?}\n{parameters:?}\n{trace}")
}

#[test]
fn no_schedule_loses_a_chunk() {
    let base = Base::new();
    if let (Some(seed), _) = search(&base, 0..SCHEDULES, None) {
        panic!("{}", describe(&base, seed, None));
    }
}

#[test]
fn a_schedule_can_be_repeated() {
    let base = Base::new();
    let runner = Runner::new(&base);
    for seed in 0..20 {
        let first = runner.run(seed, None, true);
        // A pause of the machine can outlast a time limit of the index, and change a schedule.
        let mut again = (0..3).map(|_| runner.run(seed, None, true).trace);
        assert!(again.any(|trace| trace == first.trace), "{seed}: {}", first.trace);
        assert!(first.steps > 100, "{}", first.trace);
    }
}

/// `FORGEKEEP_SCHEDULE` shows the schedule of one seed, and `FORGEKEEP_FIRST_SCHEDULE` continues a run.
#[test]
#[ignore = "a slow lane, see CONTRIBUTING.md"]
#[expect(clippy::print_stdout, reason = "the figures of a long run")]
#[expect(clippy::disallowed_methods, reason = "a test")]
fn a_hundred_thousand_schedules_lose_no_chunk() {
    let base = Base::new();
    if let Ok(seed) = std::env::var("FORGEKEEP_SCHEDULE") {
        println!("{}", describe(&base, seed.parse().expect("a number"), None));
        return;
    }
    let first = std::env::var("FORGEKEEP_FIRST_SCHEDULE").ok();
    let first = first.map_or(0, |seed| seed.parse().expect("a number"));
    for from in (first..SCHEDULES_SLOW).step_by(SCHEDULES_SHOWN) {
        let start = Instant::now();
        let until = SCHEDULES_SLOW.min(from + SCHEDULES_SHOWN as u64);
        let (found, steps) = search(&base, from..until, None);
        println!("schedules {from} to {until}, {steps} steps: {:?}", start.elapsed());
        if let Some(seed) = found {
            panic!("{}", describe(&base, seed, None));
        }
    }
}

/// Rules that a script of `scripts` needs. Random schedules rarely find what goes wrong without them.
const SCRIPTED: [Rule; 7] = [
    Rule::LookUpWhenCondemned,
    Rule::AnnounceFirst,
    Rule::FenceBeforeMarker,
    Rule::OtherCondemnations,
    Rule::AcceptUncondemned,
    Rule::CondemnedAfterSnapshot,
    Rule::MarkerBeforeFence,
];

/// A rule that the model needs and no known schedule does: a late record has lost a page of its tree
/// whenever it has lost a chunk, so that everything is read again.
const MODELLED: Rule = Rule::WholeParent;

#[test]
#[ignore = "a slow lane, see CONTRIBUTING.md"]
#[expect(clippy::print_stdout, reason = "the figures of a long run")]
fn each_rule_is_needed_by_a_schedule() {
    let base = Base::new();
    let mut idle = Vec::new();
    let others = |rule: &Rule| !SCRIPTED.contains(rule) && *rule != MODELLED;
    for rule in RULES.into_iter().filter(others) {
        let start = Instant::now();
        let (found, _) = search(&base, 0..SCHEDULES_SLOW, Some(rule));
        println!("without {rule:?}: seed {found:?} after {:?}", start.elapsed());
        idle.extend(found.is_none().then_some(rule));
    }
    assert_eq!(idle, []);
}
