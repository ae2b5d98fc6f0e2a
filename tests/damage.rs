//! Damage loses exactly the affected data.
//!
//! First part: a small store with one bit flipped, for every byte of it, and truncated at many
//! lengths. A check must name the file and exactly the losses. A restore must restore everything
//! else and never wrong bytes. Second part: stores crafted by an attacker.

use crate::support::sandbox::{FORGEKEEP, Run};
use crate::support::stores::{self, Listener, restore_options};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::backend::Memory;
use store::check::{Object, ReadData, Report, check};
use store::config::Config;
use store::diff::{Change, diff};
use store::entry::path_cmp;
use store::id::{ChunkId, SnapshotId};
use store::observe::Event;
use store::segment::SegmentKind;
use store::store::{Purpose, Store};
use store::workspace::{INDEX_FILE, Workspace};

/// An object at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
    Other,
}

type Things = BTreeMap<String, Thing>;

fn things(dir: &Path) -> Things {
    fn collect(dir: &Path, prefix: &str, found: &mut Things) {
        for item in fs::read_dir(dir).expect("lists") {
            let item = item.expect("lists");
            let name = item.file_name().into_string().expect("plain names");
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let kind = item.file_type().expect("has a kind");
            let thing = if kind.is_dir() {
                collect(&item.path(), &path, found);
                Thing::Directory
            } else if kind.is_symlink() {
                Thing::Link(fs::read_link(item.path()).expect("reads"))
            } else if kind.is_file() {
                Thing::File(fs::read(item.path()).expect("reads"))
            } else {
                Thing::Other
            };
            found.insert(path, thing);
        }
    }
    let mut found = Things::new();
    collect(dir, "", &mut found);
    found
}

/// Returns a directory in which thousands of small files are cheap.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// A small store, and the content of its snapshots.
struct Sample {
    _dir: tempfile::TempDir,
    source: PathBuf,
    memory: Memory,
    index: Vec<u8>,
    store_id: [u8; 16],
    snapshots: BTreeMap<SnapshotId, Things>,
}

/// Returns a name that begins a leaf of the tree.
fn name_at_boundary(dir: &Path, prefix: &str) -> String {
    let begins = |name: &String| {
        let path = dir.join(name);
        let path = path.strip_prefix("/").expect("absolute").to_str().expect("plain");
        blake3::hash(path.as_bytes()).as_bytes()[0] & 0x7F == 0
    };
    (0..).map(|n| format!("{prefix}{n}")).find(begins).expect("one in 128 does")
}

impl Sample {
    fn new() -> Sample {
        let dir = scratch();
        let source = dir.path().canonicalize().expect("it is there").join("source");
        let write = |name: &str, bytes: &[u8]| fs::write(source.join(name), bytes).expect("writes");
        fs::create_dir_all(source.join("sub")).expect("makes directories");
        write("inline", b"short enough to stand in its entry");
        write("data", &(0..900u32).map(|n| (n * n / 7) as u8).collect::<Vec<_>>());
        write("many-extents", &b"abcdefghijklmnopqrstuvwxyz0123456789".repeat(1200));
        write("empty", b"");
        write(&name_at_boundary(&source, "g"), b"first of a leaf");
        write(&name_at_boundary(&source, "s"), &[b's'; 600]);
        write("sub/hard", &[b'h'; 700]);
        fs::hard_link(source.join("sub/hard"), source.join("sub/link")).expect("links");
        std::os::unix::fs::symlink("../data", source.join("sub/symbolic")).expect("links");
        let sparse = fs::File::create(source.join("sparse")).expect("creates");
        sparse.set_len(200_000).expect("grows");

        let root = dir.path().join("store");
        stores::init_small(&root);
        let mut snapshots = BTreeMap::new();
        let prefix = source.strip_prefix("/").expect("absolute").to_str().expect("plain");
        let mut back_up = || {
            let id = stores::backup(&root, &[&source]).expect("backs up");
            let mut all: Things = Path::new(prefix)
                .ancestors()
                .filter_map(|dir| dir.to_str().filter(|dir| !dir.is_empty()))
                .map(|dir| (dir.to_owned(), Thing::Directory))
                .collect();
            all.extend(things(&source).into_iter().map(|(p, t)| (format!("{prefix}/{p}"), t)));
            snapshots.insert(id, all);
        };
        back_up();
        write("data", &[b'2'; 800]);
        write("new", &b"another content ".repeat(50));
        back_up();

        let config_bytes = fs::read(root.join("store.json")).expect("reads");
        let config = Config::from_bytes(&config_bytes).expect("a configuration");
        let memory = Memory::default();
        memory.with_files(|files| {
            for dir in ["segments", "snapshots"] {
                for (name, thing) in things(&root.join(dir)) {
                    if let Thing::File(bytes) = thing {
                        files.insert(format!("{dir}/{name}"), bytes);
                    }
                }
            }
            files.insert("store.json".into(), config_bytes);
        });
        let store_id = config.store_id_bytes().expect("sixteen bytes");
        let index = fs::read(root.join(INDEX_FILE)).expect("reads");
        Sample { _dir: dir, source, memory, index, store_id, snapshots }
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.memory.with_files(|files| files.clone())
    }

    /// Returns a copy with one file replaced or removed.
    fn with(&self, name: &str, bytes: Option<Vec<u8>>) -> Memory {
        let memory = self.memory.copy();
        memory.with_files(|files| match bytes {
            Some(bytes) => files.insert(name.to_owned(), bytes),
            None => files.remove(name),
        });
        memory
    }
}

/// A directory for examining damaged stores.
struct Bench<'a> {
    sample: &'a Sample,
    dir: tempfile::TempDir,
    /// Restores the two snapshots in turns, for thousands of damages.
    in_turns: bool,
    turn: Cell<usize>,
}

/// Result of examining a damaged store.
struct Found {
    report: Report,
    /// Paths of each snapshot that were not restored.
    missing: BTreeMap<SnapshotId, BTreeSet<String>>,
}

impl<'a> Bench<'a> {
    fn new(sample: &'a Sample) -> Bench<'a> {
        Bench { sample, dir: scratch(), in_turns: false, turn: Cell::new(0) }
    }

    fn in_turns(sample: &'a Sample) -> Bench<'a> {
        Bench { in_turns: true, ..Bench::new(sample) }
    }

    fn workspace(&self) -> Workspace {
        Workspace::below(self.dir.path(), &self.sample.store_id).expect("a workspace")
    }

    /// Puts an index in place, or removes it.
    fn put_index(&self, index: Option<&[u8]>) {
        let path = self.workspace().index_path();
        for suffix in ["", "-wal", "-shm", ".new"] {
            let _ = fs::remove_file(path.with_file_name(format!("{INDEX_FILE}{suffix}")));
        }
        if let Some(bytes) = index {
            fs::write(path, bytes).expect("writes");
        }
    }

    fn open(&self, memory: &Memory, purpose: Purpose) -> store::Result<(Store, Arc<Listener>)> {
        let listener = Arc::<Listener>::default();
        let hears = Arc::clone(&listener) as Arc<_>;
        let store = Store::open_backend(Arc::new(memory.clone()), self.dir.path(), purpose, hears)?;
        Ok((store, listener))
    }

    /// Restores all snapshots. Panics if any object has wrong content.
    fn restore(
        &self,
        store: &Store,
        listener: &Listener,
        what: &str,
    ) -> BTreeMap<SnapshotId, BTreeSet<String>> {
        let mut all_missing = BTreeMap::new();
        self.turn.set(self.turn.get() + 1);
        for (number, (id, expected)) in self.sample.snapshots.iter().enumerate() {
            if self.in_turns && (number + self.turn.get()).is_multiple_of(2) {
                continue;
            }
            listener.events.lock().expect("no panic").clear();
            let target = self.dir.path().join("target");
            let Ok(snapshot) = store.snapshot(id) else {
                all_missing.insert(*id, expected.keys().cloned().collect());
                continue;
            };
            let root = snapshot.root.chunk();
            let result = store::restore::restore(store, &root, b"", &target, &restore_options());
            let report = result.unwrap_or_else(|error| panic!("{what}: restore: {error}"));
            let restored = things(&target);
            fs::remove_dir_all(&target).expect("removes");
            for (path, thing) in &restored {
                assert!(expected.get(path) == Some(thing), "{what}: {path} has other content");
            }
            let missing: BTreeSet<String> =
                expected.keys().filter(|path| !restored.contains_key(*path)).cloned().collect();
            let reported = listener.events.lock().expect("no panic");
            let reported = reported.iter().any(|event| matches!(event, Event::NotRestored { .. }));
            assert!(
                missing.is_empty() || (reported && report.failed > 0),
                "{what}: unreported loss"
            );
            all_missing.insert(*id, missing);
        }
        all_missing
    }

    /// Compares the two snapshots. Panics if an equal path is reported as different, or a different
    /// one is not reported.
    fn compare(&self, store: &Store, what: &str) {
        let ids: Vec<&SnapshotId> = self.sample.snapshots.keys().collect();
        let roots: Vec<ChunkId> =
            ids.iter().filter_map(|id| Some(store.snapshot(id).ok()?.root.chunk())).collect();
        let [first, second] = roots[..] else { return };
        let all = |n: usize| &self.sample.snapshots[ids[n]];
        let differs = |path: &str| all(0).get(path) != all(1).get(path);
        let (mut found, mut lost) = (BTreeSet::new(), Vec::new());
        let compared = diff::<store::Error>(
            store,
            &first,
            &second,
            &|a, b| a.content == b.content,
            &mut |difference| {
                match difference {
                    Err(part) => lost.push(part.span),
                    Ok(change) => {
                        let path = String::from_utf8_lossy(change.path()).into_owned();
                        // Times of directories and similar objects differ.
                        let is_content = !matches!(change, Change::Metadata(..));
                        assert!(
                            !is_content || differs(&path),
                            "{what}: {path} is the same in both"
                        );
                        found.insert(path);
                    }
                }
                Ok(())
            },
        );
        if compared.is_err() {
            return;
        }
        for path in all(0).keys().chain(all(1).keys()).filter(|path| differs(path)) {
            let is_known = found.contains(path) || lost.iter().any(|p| p.may_be(path.as_bytes()));
            assert!(is_known, "{what}: {path} is not reported");
        }
    }

    fn look(&self, memory: &Memory, what: &str) -> Found {
        let opened = self.open(memory, Purpose::Read);
        let (store, listener) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        self.look_into(&store, &listener, what)
    }

    fn look_into(&self, store: &Store, listener: &Listener, what: &str) -> Found {
        let missing = self.restore(store, listener, what);
        self.compare(store, what);
        let report = check(store, ReadData::All);
        let report = report.unwrap_or_else(|error| panic!("{what}: check: {error}"));
        Found { report, missing }
    }

    /// Checks the findings for a store in which one file was changed.
    fn judge(&self, name: &str, found: &Found, what: &str) {
        let report = &found.report;
        assert!(!report.is_clean(), "{what}: not noticed");
        let hash = name.rsplit('/').next().expect("a name");
        let is_named = report.damages.iter().any(|damage| damage.object.to_string().contains(hash))
            || report.losses.iter().any(|loss| loss.snapshot.to_string() == hash);
        assert!(is_named, "{what}: not named in {:?}", report.damages);
        found.agree(&self.sample.snapshots, what);
    }
}

/// Returns true if the text of a loss covers a path.
fn covers(loss: &str, path: &str) -> bool {
    let before = |a: &str, b: &str| path_cmp(a.as_bytes(), b.as_bytes()).is_lt();
    let loss = if loss == "/" { loss } else { loss.strip_prefix('/').expect("an absolute path") };
    if let Some((from, until)) = loss.split_once(" up to /") {
        return !before(path, from) && before(path, until);
    }
    if let Some(from) = loss.strip_suffix(" and all later paths") {
        return !before(path, from);
    }
    loss == "/" || loss == path
}

impl Found {
    /// Asserts that the check reports as lost exactly the paths that the restore missed.
    fn agree(&self, snapshots: &BTreeMap<SnapshotId, Things>, what: &str) {
        for (id, missing) in &self.missing {
            let losses = self.report.losses.iter().filter(|loss| loss.snapshot == *id);
            let losses: Vec<&str> = losses.map(|loss| &*loss.path).collect();
            for path in missing {
                let is_told = losses.iter().any(|loss| covers(loss, path));
                assert!(is_told, "{what}: {path} of {id} is lost, and not in {losses:?}");
            }
            for loss in losses {
                let is_range = !snapshots[id].contains_key(loss);
                let mut paths = snapshots[id].keys().filter(|path| covers(loss, path));
                // A directory whose entry is lost is still created for its content.
                assert!(
                    paths.any(|path| is_range || missing.contains(path)),
                    "{what}: {loss} of {id} is called lost"
                );
            }
        }
    }

    fn nothing_is_missing(&self) -> bool {
        self.missing.values().all(BTreeSet::is_empty)
    }
}

/// Flips one bit of byte `at`, another bit for each byte.
fn flip(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1 << ((at * 5 + at / 8) % 8);
    flipped
}

/// Flips a bit of every byte of the files that `picks` names, under an open store. Returns the
/// number of flips with a loss.
fn flip_all(picks: &str) -> usize {
    let sample = Sample::new();
    let bench = Bench::in_turns(&sample);
    let mut losses = 0;
    let files = sample.files().into_iter().filter(|(name, _)| name.starts_with(picks));
    for (name, bytes) in files {
        let memory = sample.memory.copy();
        let mut opened = None;
        for at in 0..bytes.len() {
            if opened.is_none() || at % 100 == 0 {
                // Forget the effect of earlier damage.
                memory.with_files(|files| files.insert(name.clone(), bytes.clone()));
                opened = None;
                bench.put_index(Some(&sample.index));
            }
            let what = format!("{name} byte {at} of {}", bytes.len());
            let (store, listener) =
                opened.get_or_insert_with(|| bench.open(&memory, Purpose::Read).expect("opens"));
            memory.with_files(|files| files.insert(name.clone(), flip(&bytes, at)));
            let found = bench.look_into(store, listener, &what);
            bench.judge(&name, &found, &what);
            losses += usize::from(!found.nothing_is_missing());
        }
    }
    losses
}

/// Flips a bit of every `step`th byte of the files that `picks` names. Then opens the store, with
/// an older index or without one.
fn flip_then_open(picks: &str, step: usize) {
    let sample = Sample::new();
    let bench = Bench::in_turns(&sample);
    for (name, bytes) in sample.files() {
        if !name.starts_with(picks) {
            continue;
        }
        for at in (0..bytes.len()).step_by(step) {
            bench.put_index((at % 2 == 0).then_some(&sample.index[..]));
            let what = format!("{name} byte {at} of {}", bytes.len());
            let found = bench.look(&sample.with(&name, Some(flip(&bytes, at))), &what);
            bench.judge(&name, &found, &what);
        }
    }
}

#[test]
fn the_sample_is_clean_and_has_every_structure() {
    let sample = Sample::new();
    let bench = Bench::new(&sample);
    for index in [Some(&sample.index[..]), None] {
        bench.put_index(index);
        let found = bench.look(&sample.memory, "undamaged");
        assert!(found.report.is_clean(), "{:?}", found.report);
        assert!(found.nothing_is_missing(), "{:?}", found.missing);
    }
    let (store, _) = bench.open(&sample.memory, Purpose::Read).expect("opens");
    let mut leaves = 0;
    let mut recipe_chunks = 0;
    for id in sample.snapshots.keys() {
        let root = store.snapshot(id).expect("reads").root.chunk();
        leaves += store::tree::outline(&root, &store, &|_| false, &mut |_| {}).len();
        for entry in store::tree::TreeReader::new(&root, &store) {
            if let store::entry::Content::Recipe(recipe) = entry.expect("reads").content {
                recipe_chunks += u32::from(recipe.level > 0);
            }
        }
    }
    assert!(leaves >= 6 && recipe_chunks == 2, "{leaves} leaves, {recipe_chunks} recipe chunks");
    let bytes: usize = sample.files().values().map(Vec::len).sum();
    assert!(bytes < 12_000, "{bytes} bytes to flip");
}

#[test]
fn any_flipped_bit_in_a_segment_loses_only_reported_data() {
    assert!(flip_all("segments/") > 0, "else this tests nothing");
}

#[test]
fn opening_a_store_does_not_worsen_a_flipped_bit() {
    flip_then_open("segments/", 17);
}

#[test]
fn a_backup_that_meets_damage_stores_it_again_or_reports_the_loss() {
    let sample = Sample::new();
    let bench = Bench::new(&sample);
    let expected = things(&sample.source);
    let (mut met, mut lost) = (0, 0);
    for (name, bytes) in sample.files() {
        if !name.starts_with("segments/") {
            continue;
        }
        for at in (0..bytes.len()).step_by(23) {
            bench.put_index(Some(&sample.index));
            let what = format!("{name} byte {at} of {}", bytes.len());
            let memory = sample.with(&name, Some(flip(&bytes, at)));
            let back_up = || {
                let (store, _) = bench.open(&memory, Purpose::Write).expect("opens");
                let report = stores::back_up(&store, &[&sample.source], &stores::backup_options());
                let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
                (report.snapshot.expect("a snapshot"), report.damage)
            };
            let (mut snapshot, Some(damage)) = back_up() else { continue };
            met += 1;
            if damage.lost > 0 {
                lost += 1;
                let next = back_up();
                assert_eq!(next.1.map_or(0, |damage| damage.lost), 0, "{what}");
                snapshot = next.0;
            }
            let (store, _) = bench.open(&memory, Purpose::Read).expect("opens");
            let root = store.snapshot(&snapshot).expect("reads").root.chunk();
            let target = bench.dir.path().join("target");
            let source = sample.source.strip_prefix("/").expect("absolute");
            let path = source.to_str().expect("plain").as_bytes();
            store::restore::restore(&store, &root, path, &target, &restore_options())
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(things(&target) == expected, "{what}: the new snapshot lacks something");
            fs::remove_dir_all(&target).expect("removes");
        }
    }
    assert!(met > 20, "{met} met, {lost} of them with losses");
}

#[test]
fn a_flipped_bit_in_a_small_file_loses_nothing() {
    assert_eq!(flip_all("snapshots/"), 0);
    flip_then_open("snapshots/", 5);
    flip_then_open("store.json", 1);
}

#[test]
fn a_file_cut_anywhere_loses_only_reported_data() {
    let sample = Sample::new();
    let bench = Bench::in_turns(&sample);
    for (name, bytes) in sample.files() {
        for len in 0..bytes.len() {
            bench.put_index((len % 2 == 0).then_some(&sample.index[..]));
            let what = format!("{name} cut to {len} of {}", bytes.len());
            let found = bench.look(&sample.with(&name, Some(bytes[..len].to_vec())), &what);
            bench.judge(&name, &found, &what);
        }
    }
}

#[test]
fn a_missing_segment_loses_only_reported_data() {
    let sample = Sample::new();
    let bench = Bench::new(&sample);
    for name in sample.files().keys().filter(|name| name.starts_with("segments/")) {
        bench.put_index(Some(&sample.index));
        let what = format!("{name} removed");
        let found = bench.look(&sample.with(name, None), &what);
        assert!(!found.report.is_clean() && !found.nothing_is_missing(), "{what}");
        found.agree(&sample.snapshots, &what);
    }
}

/// Asserts that nothing is lost with any file in place of the index, and that the next backup is
/// right.
fn assert_index_loses_nothing(bench: &Bench<'_>, back_up: bool, what: &str) {
    let memory = bench.sample.memory.copy();
    let (store, listener) =
        bench.open(&memory, Purpose::Read).unwrap_or_else(|error| panic!("{what}: {error}"));
    let missing = bench.restore(&store, &listener, what);
    assert!(missing.values().all(BTreeSet::is_empty), "{what}: {missing:?}");
    if !back_up {
        return;
    }
    let report = check(&store, ReadData::All);
    let report = report.unwrap_or_else(|error| panic!("{what}: check: {error}"));
    assert_eq!(report.loss_count, 0, "{what}: {:?}", report.losses);
    let others = report.damages.iter().filter(|damage| damage.object != Object::Index);
    assert_eq!(others.count(), 0, "{what}: {:?}", report.damages);
    drop(store);

    let changed = bench.sample.source.join("changed");
    fs::write(&changed, what.repeat(30)).expect("writes");
    let options = stores::backup_options();
    let run = || {
        let (store, _) = bench.open(&memory, Purpose::Write)?;
        let report = stores::back_up(&store, &[&bench.sample.source], &options)?;
        Ok::<_, store::Error>((store, report.snapshot.expect("not dry")))
    };
    // A run that finds a broken index leaves the rebuild to the next run.
    let (written, id) = match run() {
        Err(store::Error::Index(_)) => run().unwrap_or_else(|error| panic!("{what}: {error}")),
        other => other.unwrap_or_else(|error| panic!("{what}: {error}")),
    };
    drop(written);
    let (store, _) = bench.open(&memory, Purpose::Read).expect("opens");
    let root = store.snapshot(&id).expect("reads").root.chunk();
    let target = bench.dir.path().join("target");
    let report = store::restore::restore(&store, &root, b"", &target, &restore_options());
    assert_eq!(report.expect("restores").failed, 0, "{what}");
    let source = &bench.sample.source;
    let restored = target.join(source.strip_prefix("/").expect("absolute"));
    assert!(things(&restored) == things(source), "{what}");
    fs::remove_dir_all(&target).expect("removes");
}

#[test]
fn a_damaged_index_loses_nothing() {
    let sample = Sample::new();
    let bench = Bench::in_turns(&sample);
    for at in 0..sample.index.len() {
        let mut flipped = sample.index.clone();
        flipped[at] ^= 1 << (at % 8);
        // Most of the file is unused.
        let is_used = sample.index[at] != 0;
        if !is_used && at % 29 != 0 {
            continue;
        }
        bench.put_index(Some(&flipped));
        assert_index_loses_nothing(&bench, at % 11 == 0, &format!("index byte {at}"));
    }
    for len in (0..sample.index.len()).step_by(997) {
        bench.put_index(Some(&sample.index[..len]));
        assert_index_loses_nothing(&bench, true, &format!("index cut to {len}"));
    }
}

#[test]
fn a_stale_or_foreign_index_or_log_loses_nothing() {
    let sample = Sample::new();
    let other = Sample::new();
    let bench = Bench::new(&sample);
    bench.put_index(None);
    assert_index_loses_nothing(&bench, true, "no index");
    bench.put_index(Some(&other.index));
    assert_index_loses_nothing(&bench, true, "the index of another store with the same id");
    bench.put_index(Some(b"This is no database at all, but long enough to look like a header. "));
    assert_index_loses_nothing(&bench, true, "a text");

    // A log with frames in it, as a killed run leaves it.
    bench.put_index(Some(&sample.index));
    let memory = sample.memory.copy();
    fs::write(sample.source.join("for-the-log"), "x".repeat(5000)).expect("writes");
    let (store, _) = bench.open(&memory, Purpose::Write).expect("opens");
    let options = stores::backup_options();
    stores::back_up(&store, &[&sample.source], &options).expect("backs up");
    let path = bench.workspace().index_path();
    let beside = |suffix: &str| path.with_file_name(format!("{INDEX_FILE}{suffix}"));
    let read = |suffix: &str| fs::read(beside(suffix)).expect("reads");
    let (log, shared) = (read("-wal"), read("-shm"));
    assert!(log.len() > 32, "the log is used");
    drop(store);
    let put = |index: Option<&[u8]>, log: &[u8], shared: &[u8]| {
        bench.put_index(index);
        fs::write(beside("-wal"), log).expect("writes");
        fs::write(beside("-shm"), shared).expect("writes");
    };
    put(Some(&sample.index), &log, &shared);
    assert_index_loses_nothing(&bench, true, "a log that knows segments which are gone");
    put(Some(&other.index), &log, &shared);
    assert_index_loses_nothing(&bench, true, "a log of another index");
    put(None, &log, &shared);
    assert_index_loses_nothing(&bench, true, "a log without an index");
    for step in (0..log.len()).step_by(211) {
        let mut flipped = log.clone();
        flipped[step] ^= 0x40;
        put(Some(&sample.index), &flipped, &shared);
        assert_index_loses_nothing(&bench, step % 2 == 0, &format!("log byte {step}"));
        put(Some(&sample.index), &log[..step], &[0xA5; 32768]);
        assert_index_loses_nothing(&bench, step % 2 == 1, &format!("log cut to {step}"));
    }
}

/// Returns the head of a CBOR item, in its longest form.
pub fn head(major: u8, number: u64) -> Vec<u8> {
    let mut out = vec![major << 5 | 27];
    out.extend_from_slice(&number.to_be_bytes());
    out
}

/// Returns a number in CBOR.
pub fn number(number: u64) -> Vec<u8> {
    head(0, number)
}

/// Returns bytes in CBOR.
pub fn bytes(bytes: &[u8]) -> Vec<u8> {
    [head(2, bytes.len() as u64), bytes.to_vec()].concat()
}

/// Returns an array in CBOR.
pub fn array(items: &[Vec<u8>]) -> Vec<u8> {
    [head(4, items.len() as u64), items.concat()].concat()
}

/// Returns a map of numbered fields in CBOR.
pub fn map(fields: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let fields = fields.iter().flat_map(|(key, value)| [number(*key), value.clone()]);
    let items: Vec<Vec<u8>> = fields.collect();
    [head(5, items.len() as u64 / 2), items.concat()].concat()
}

/// Returns a tree page of this level with arbitrary content.
pub fn page(level: u64, rest: &[Vec<u8>]) -> Vec<u8> {
    let tag = [head(3, 4), b"tree".to_vec()].concat();
    array(&[&[tag, number(level)], rest].concat())
}

/// Returns a leaf with one owner and these entries, valid or not.
pub fn leaf(entries: &[Vec<u8>]) -> Vec<u8> {
    page(0, &[array(&[owner(0)]), array(entries)])
}

fn owner(uid: u64) -> Vec<u8> {
    array(&[number(uid), number(uid), vec![0xF6], vec![0xF6]])
}

/// Returns a page that lists others, each by its first path, valid or not.
pub fn index_page<P: AsRef<[u8]>>(level: u64, children: &[(P, ChunkId)]) -> Vec<u8> {
    let child = |(first, id): &(P, ChunkId)| {
        let (first, id) = (bytes(first.as_ref()), bytes(id.as_bytes()));
        array(&[first, id, number(u64::MAX), number(u64::MAX)])
    };
    page(level, &[array(&children.iter().map(child).collect::<Vec<_>>())])
}

/// Returns an entry of this kind with more fields.
pub fn raw(path: &str, kind: u64, more: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let fields =
        [(1, bytes(path.as_bytes())), (2, number(kind)), (3, number(0o700)), (4, number(0))];
    map(&[&fields, more].concat())
}

/// Returns an entry of a short file.
pub fn raw_file(path: &str, content: &[u8]) -> Vec<u8> {
    raw(path, 1, &[(8, number(content.len() as u64)), (13, bytes(content))])
}

/// Returns an entry of a symbolic link.
pub fn raw_symlink(path: &str, target: &str) -> Vec<u8> {
    raw(path, 3, &[(9, bytes(target.as_bytes()))])
}

fn raw_dir(path: &str) -> Vec<u8> {
    raw(path, 2, &[])
}

/// Returns a hard link field: one group for all.
fn group() -> [(u64, Vec<u8>); 2] {
    [(7, number(5)), (10, array(&[number(1), number(u64::MAX)]))]
}

fn raw_linked_file(path: &str, content: &[u8]) -> Vec<u8> {
    let content = [(8, number(content.len() as u64)), (13, bytes(content))];
    raw(path, 1, &[&group()[..], &content].concat())
}

/// Restores a crafted tree into `target`. A file and a directory next to it must not change.
fn restore_hostile(
    what: &str,
    make: impl FnOnce(&dyn Fn(SegmentKind, &[u8]) -> ChunkId) -> ChunkId,
) -> (Things, store::Result<store::restore::Report>) {
    let dir = scratch();
    let root = dir.path().join("store");
    let around = dir.path().join("around");
    let target = around.join("target");
    fs::create_dir_all(around.join("outside")).expect("makes directories");
    fs::write(around.join("victim"), "precious").expect("writes");
    stores::init_small(&root);
    let id = stores::craft(&root, make);
    let store = stores::open(&root, Purpose::Read);
    let snapshot = store.snapshot(&id).expect("reads").root.chunk();
    // A check must not panic.
    let report = check(&store, ReadData::All);
    assert!(report.is_ok(), "{what}: {report:?}");
    let result = store::restore::restore(&store, &snapshot, b"", &target, &restore_options());
    // Restores once more over the existing files.
    let _ = store::restore::restore(&store, &snapshot, b"", &target, &restore_options());
    let found = if target.exists() { things(&target) } else { Things::new() };
    let _ = fs::remove_dir_all(&target);
    let left: Vec<_> = things(&around).into_iter().collect();
    let expected =
        [("outside".into(), Thing::Directory), ("victim".into(), Thing::File(b"precious".into()))];
    assert!(left == expected, "{what}: {:?}", left.iter().map(|(path, _)| path));
    (found, result)
}

#[test]
fn hostile_paths_do_not_leave_the_target() {
    for path in ["../up", "a/../../up", "/abs", "..", ".", "", "a//b", "a/", "a\0b", "x/./y"] {
        let (found, result) = restore_hostile(path, |put| {
            put(SegmentKind::Metadata, &leaf(&[raw_file(path, b"evil")]))
        });
        assert!(found.is_empty(), "{path}: {found:?}");
        assert!(result.is_err() || result.is_ok_and(|report| report.failed > 0), "{path}");
    }
}

#[test]
fn hostile_links_do_not_lead_out_of_the_target() {
    type Leaf = Vec<Vec<u8>>;
    let trees: Vec<(&str, Leaf)> = vec![
        (
            "a link to a directory, and a file in it",
            vec![raw_symlink("a", "../outside"), raw_file("a/b", b"evil")],
        ),
        (
            "a link, and a directory of the same name",
            vec![raw_symlink("a", "../outside"), raw_dir("a"), raw_file("a/b", b"evil")],
        ),
        (
            "a directory, and a link of the same name",
            vec![raw_dir("a"), raw_symlink("a", "../outside"), raw_file("a/b", b"evil")],
        ),
        (
            "a link to a file, and a file of the same name",
            vec![raw_symlink("a", "../victim"), raw_file("a", b"evil")],
        ),
        (
            "two names of a link to a file, the second a file",
            vec![
                raw("a", 3, &[&group()[..], &[(9, bytes(b"../victim"))]].concat()),
                raw_linked_file("b", b"evil"),
            ],
        ),
        (
            "a link to a directory, and a second name inside it",
            vec![
                raw_linked_file("a", b"evil"),
                raw_symlink("b", "../outside"),
                raw_linked_file("b/c", b"evil"),
            ],
        ),
        ("entries out of order", vec![raw_file("b", b"1"), raw_file("a", b"2")]),
        ("one entry twice", vec![raw_file("a", b"1"), raw_file("a", b"2")]),
        ("a file in a file", vec![raw_file("a", b"1"), raw_file("a/b", b"2")]),
    ];
    for (what, entries) in trees {
        let (_, result) = restore_hostile(what, |put| put(SegmentKind::Metadata, &leaf(&entries)));
        let is_harmless = what.starts_with("two names");
        assert!(is_harmless || result.is_ok_and(|report| report.failed > 0), "{what}");
    }
    // The link and its content fall into different windows of the restore.
    let (_, result) = restore_hostile("a link at the end of a window", |put| {
        let paths: Vec<String> = (0..8191).map(|n| format!("a{n:05}")).collect();
        let mut entries: Vec<Vec<u8>> = paths.iter().map(|path| raw_file(path, b"")).collect();
        entries.push(raw_symlink("b", "../outside"));
        entries.push(raw_file("b/c", b"evil"));
        let child = |from: usize, to: usize| put(SegmentKind::Metadata, &leaf(&entries[from..to]));
        let (first, second, third) = (child(0, 4000), child(4000, 8000), child(8000, 8193));
        let children = [("a00000", first), ("a04000", second), ("a08000", third)];
        put(SegmentKind::Metadata, &index_page(1, &children))
    });
    drop(result);
}

#[test]
fn hostile_numbers_are_errors_and_do_not_panic() {
    let huge = |key: u64| raw("a", 1, &[(key, number(u64::MAX))]);
    let hole =
        |len: u64| raw("hole", 1, &[(8, number(len)), (14, array(&[array(&[number(len)])]))]);
    let slice = |chunk: ChunkId, len: u64, offset: u64| {
        let extent = array(&[bytes(chunk.as_bytes()), number(len), number(offset)]);
        raw("slice", 1, &[(8, number(len)), (14, array(&[extent]))])
    };
    let time = |seconds: Vec<u8>| raw("a", 1, &[(5, array(&[seconds, number(0)]))]);
    let nobody = page(0, &[array(&[owner(u64::from(u32::MAX))]), array(&[raw_dir("a")])]);
    let pages: Vec<(&str, Vec<u8>)> = vec![
        ("a size of everything", leaf(&[huge(8)])),
        ("a shared prefix longer than memory", leaf(&[huge(0)])),
        ("an owner that is not there", leaf(&[huge(4)])),
        ("the largest hole", leaf(&[hole(u64::MAX)])),
        ("two largest holes", {
            let second =
                raw("i", 1, &[(8, number(u64::MAX)), (14, array(&[array(&[number(u64::MAX)])]))]);
            leaf(&[hole(u64::MAX), second])
        }),
        ("a slice of everything", leaf(&[slice(ChunkId::of(b"x"), u64::MAX, u64::from(u32::MAX))])),
        ("a slice beyond its chunk", leaf(&[slice(ChunkId::of(b"x"), 5, u64::from(u32::MAX))])),
        ("the first second", leaf(&[time(head(1, i64::MAX as u64))])),
        ("the last second", leaf(&[time(number(i64::MAX as u64))])),
        ("a second before the first", leaf(&[time(head(1, u64::MAX))])),
        ("an owner that means nobody", nobody),
        ("a symbolic link to nothing", leaf(&[raw("a", 3, &[])])),
        (
            "a symbolic link that is longer than one can be",
            leaf(&[raw_symlink("a", &"x".repeat(1 << 20))]),
        ),
        ("a device without a number", leaf(&[raw("a", 6, &[])])),
        ("a name that no file system takes", leaf(&[raw_file(&"n".repeat(8000), b"")])),
        ("more items than there are bytes", page(0, &[array(&[owner(0)]), head(4, 4096)])),
        ("an endless list", page(0, &[array(&[owner(0)]), head(4, u64::MAX)])),
        ("an endless list of owners", page(0, &[head(4, u64::MAX)])),
        ("an endless list of extents", leaf(&[raw("a", 1, &[(14, head(4, u64::MAX))])])),
        ("an endless list of attributes", leaf(&[raw("a", 1, &[(11, head(4, u64::MAX - 1))])])),
        ("an endless path", leaf(&[map(&[(1, head(2, u64::MAX))])])),
        ("lists in lists", leaf(&[map(&[(99, [0x81; 200_000].to_vec())])])),
        ("endless lists in lists", leaf(&[map(&[(99, [0x9F; 200_000].to_vec())])])),
        ("a page of no entries at a high level", index_page::<&str>(10, &[])),
        (
            "a page that lists two others with all entries there are",
            index_page(1, &[("a", ChunkId::of(b"1")), ("b", ChunkId::of(b"2"))]),
        ),
        ("no CBOR", b"\xff\xff\xff".to_vec()),
        ("nothing", Vec::new()),
    ];
    for (what, page) in pages {
        let (_, result) = restore_hostile(what, |put| {
            put(SegmentKind::Data, b"x");
            put(SegmentKind::Metadata, &page)
        });
        if let Err(error) = result {
            assert!(error.is_damage(), "{what}: {error}");
        }
    }
}

#[test]
fn a_page_listed_many_times_is_read_once() {
    // Ten levels of 60 pages each would be 60^10 leaves.
    let names: Vec<String> = (0..60).map(|n| format!("n{n:02}")).collect();
    let same: Vec<&str> = vec!["n00"; 60];
    for firsts in [names.iter().map(String::as_str).collect(), same] {
        let (found, result) = restore_hostile("pages in a circle", |put| {
            let mut child = put(SegmentKind::Metadata, &leaf(&[raw_file("n00", b"")]));
            for level in 1..=10 {
                let children: Vec<(&str, ChunkId)> =
                    firsts.iter().map(|first| (*first, child)).collect();
                child = put(SegmentKind::Metadata, &index_page(level, &children));
            }
            child
        });
        assert!(found.len() <= 1, "{found:?}");
        assert!(result.expect("ends").failed > 0);
    }
}

#[test]
fn a_false_snapshot_record_is_an_error() {
    let dir = scratch();
    let root = dir.path().join("store");
    stores::init_small(&root);
    let records = [
        head(5, u64::MAX),
        [head(5, 1), number(5), head(4, u64::MAX)].concat(),
        [head(5, 1), number(3), head(3, u64::MAX)].concat(),
        vec![0x9F; 100_000],
        Vec::new(),
    ];
    for record in records {
        let id = SnapshotId::of(&record);
        let mut frame = Vec::new();
        store::codec::FrameEncoder::new(3).encode(&record, &mut frame);
        fs::write(root.join("snapshots").join(id.to_string()), frame.repeat(2)).expect("writes");
        let store = stores::open(&root, Purpose::Read);
        assert!(store.snapshot(&id).is_err());
        let report = check(&store, ReadData::All).expect("checks");
        assert!(report.losses.iter().any(|loss| loss.snapshot == id));
    }
}

/// Restores with the program itself, under a limit on address space.
fn restore_in_little_memory(root: &Path, id: &SnapshotId, what: &str) {
    let target = root.with_extension("target");
    let script = r#"ulimit -v 800000; exec "$0" --store "$1" restore "$2" --target "$3""#;
    let outcome = Run::program("sh")
        .args(["-c", script, FORGEKEEP])
        .args([root])
        .args([id.to_string()])
        .args([&target])
        .env("RAYON_NUM_THREADS", "2")
        .run();
    // Success, some missing paths, or an error message: no panic (101), no abort (signal).
    assert!(matches!(outcome.code(), Some(0 | 1 | 3)), "{what}: {}", outcome.all_output());
    assert!(!outcome.stderr.contains("panicked"), "{what}: {}", outcome.all_output());
    let _ = fs::remove_dir_all(&target);
}

#[test]
fn bombs_do_not_exhaust_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("store");
    stores::init_small(&root);

    // Each entry shares all but a few bytes of its path with the previous one.
    let id = stores::craft(&root, |put| {
        let prefix = format!("{}/", "p".repeat(199)).repeat(40);
        let mut children = Vec::new();
        for number_of_page in 0..4 {
            let mut entries = vec![raw_file(&format!("{prefix}{:05}", number_of_page * 4000), b"")];
            for n in 1..4000 {
                let shared = (0, number(prefix.len() as u64));
                let path = format!("{:05}", number_of_page * 4000 + n);
                entries.push(raw(&path, 1, &[shared]));
            }
            children.push((format!("{prefix}{:05}", number_of_page * 4000), leaf(&entries)));
        }
        let stored: Vec<(String, ChunkId)> = children
            .into_iter()
            .map(|(first, page)| (first, put(SegmentKind::Metadata, &page)))
            .collect();
        let listed: Vec<(&str, ChunkId)> =
            stored.iter().map(|(first, id)| (&**first, *id)).collect();
        put(SegmentKind::Metadata, &index_page(1, &listed))
    });
    restore_in_little_memory(&root, &id, "paths with long shared prefixes");

    // Files and attributes of a megabyte, inline in their entries and highly compressible.
    type Make = fn(&str) -> Vec<u8>;
    let fat: [(&str, Make); 3] = [
        ("contents in entries", |path| raw_file(path, &vec![0; 1 << 20])),
        ("attributes", |path| {
            raw(path, 1, &[(11, array(&[bytes(b"user.a"), bytes(&vec![0; 1 << 20])]))])
        }),
        ("targets", |path| raw_symlink(path, &"t".repeat(1 << 20))),
    ];
    for (what, make) in fat {
        let id = stores::craft(&root, |put| {
            let paths: Vec<String> = (0..1000).map(|n| format!("f{n:04}")).collect();
            let stored: Vec<(&str, ChunkId)> = paths
                .chunks(3)
                .map(|three| {
                    let entries: Vec<Vec<u8>> = three.iter().map(|path| make(path)).collect();
                    (&*three[0], put(SegmentKind::Metadata, &leaf(&entries)))
                })
                .collect();
            put(SegmentKind::Metadata, &index_page(1, &stored))
        });
        restore_in_little_memory(&root, &id, what);
    }

    // A frame of a few kilobytes that would decode to four gigabytes.
    let mut bomb = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x58];
    for last in std::iter::repeat_n(false, 32_767).chain([true]) {
        // A block of 128 KiB of one repeated byte.
        let block = (128 << 10) << 3 | 1 << 1 | u32::from(last);
        bomb.extend_from_slice(&block.to_le_bytes()[..3]);
        bomb.push(0);
    }
    let id = craft_bomb(&root, &bomb);
    restore_in_little_memory(&root, &id, "a frame that opens to gigabytes");
}

/// Creates a snapshot of one file whose only chunk is `frame`.
fn craft_bomb(root: &Path, frame: &[u8]) -> SnapshotId {
    use store::id::SegmentId;
    use store::segment::{Header, Row, Trailer, file_name, frame_hash, table_frame};
    let config = fs::read(root.join("store.json")).expect("reads");
    let header =
        Header { kind: SegmentKind::Data, store_id: [7; 16], salt: [0; 16], config }.to_frame();
    let chunk = ChunkId::of(b"never");
    let row = Row {
        id: chunk,
        offset: header.len() as u32,
        stored_len: frame.len() as u32,
        plain_len: 4 << 20,
    };
    let table = table_frame(&[row]);
    let trailer =
        Trailer { table_offset: row.end() as u32, rows: 1, hash: frame_hash(&header, &table) };
    let segment = [&header[..], frame, &table, &trailer.to_frame()].concat();
    fs::write(root.join(file_name(&SegmentId::of(&segment))), segment).expect("writes");
    let extent = array(&[bytes(chunk.as_bytes()), number(4 << 20)]);
    let file = raw("bomb", 1, &[(8, number(4 << 20)), (14, array(&[extent]))]);
    stores::craft(root, |put| put(SegmentKind::Metadata, &leaf(&[file])))
}
