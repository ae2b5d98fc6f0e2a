use super::*;
use crate::backend::faulty::{Faulty, Operation};
use crate::backend::{self, Backend, Memory};
use crate::check::{Damage, ReadData, check};
use crate::chunks::Chunks;
use crate::config::{self, Config};
use crate::entry::{Content, Entry, EntryKind};
use crate::id::SegmentId;
use crate::observe::Silent;
use crate::packer::Packer;
use crate::recipe::{Extent, Extents, RecipeWriter};
use crate::segment::SegmentKind as Kind;
use crate::snapshot::{Id, example};
use crate::store::{Purpose, RunningSession};
use crate::tree::{TreeReader, TreeWriter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

const NOW: Time = Time { seconds: 2_000_000_000, nanoseconds: 0 };

/// A store in memory, and the workspaces of two machines.
struct Fixture {
    memory: Memory,
    hosts: [tempfile::TempDir; 2],
}

impl Fixture {
    fn new() -> Fixture {
        let memory = Memory::default();
        let config = Config::new([1; 16], chunker::Parameters::DEFAULT, 1);
        backend::write_all(&memory, config::FILE, &config.to_bytes()).expect("writes");
        Fixture { memory, hosts: [(), ()].map(|()| tempfile::tempdir().expect("a directory")) }
    }

    fn open_on(&self, backend: Arc<dyn Backend>, host: usize) -> Result<Store> {
        let observer = Arc::new(Silent::default());
        Store::open_backend(backend, self.hosts[host].path(), Purpose::Write, observer)
    }

    fn store(&self, host: usize) -> Store {
        self.open_on(Arc::new(self.memory.clone()), host).expect("opens")
    }

    fn prune(&self) -> PruneReport {
        prune(&self.store(0), &options(), &mut |_| {}).expect("prunes")
    }

    fn fails(&self, expected: &str) {
        // A record of damage is the only thing that a failed prune may leave.
        let names = || -> Vec<String> {
            self.names("").into_iter().filter(|name| !name.starts_with("checks/")).collect()
        };
        let before = names();
        let error = prune(&self.store(0), &options(), &mut |_| {}).expect_err("is refused");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(names(), before);
    }

    /// Returns the names of all files below a directory.
    fn names(&self, dir: &str) -> Vec<String> {
        let is_below = |name: &&String| name.starts_with(dir);
        self.memory.with_files(|files| files.keys().filter(is_below).cloned().collect())
    }

    fn forget(&self, id: &SnapshotId) {
        self.memory.remove(&snapshot::file_name(id)).expect("removes");
    }

    /// Reads everything that all snapshots need, on both machines, and checks the store.
    fn is_intact(&self) {
        for host in 0..2 {
            let store = self.store(host);
            for id in store.snapshot_ids().expect("lists") {
                reads(&store, &id);
            }
            let report = check(&store, ReadData::All).expect("checks");
            assert!(report.is_clean(), "{:?} {:?}", report.damages, report.losses);
        }
    }
}

fn options() -> PruneOptions {
    PruneOptions {
        is_dry: false,
        repack_bytes_max: u64::MAX,
        wait: Duration::ZERO,
        now: NOW,
        host: "pruner".into(),
        program: "test".into(),
        is_only_host: false,
    }
}

/// Incompressible bytes.
fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 5000];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Stores a tree of files, each of one chunk and a recipe chunk. Returns its root.
fn tree(packer: &Packer<'_>, seeds: &[u64]) -> ChunkId {
    let mut tree = TreeWriter::default();
    for (number, seed) in seeds.iter().enumerate() {
        let chunk = packer.put(Kind::Data, &noise(*seed)).expect("puts").id;
        let mut recipe = RecipeWriter::default();
        for _ in 0..60 {
            recipe.push(Extent::Slice { chunk, offset: 0, len: 10 }, packer).expect("pushes");
        }
        let path = format!("{number:04}").into_bytes();
        let mut file = Entry::new(path, EntryKind::File, 0o644);
        file.size = recipe.len();
        file.content = Content::Recipe(recipe.finish(packer).expect("finishes"));
        tree.push(&file, packer).expect("pushes");
    }
    tree.finish(packer).expect("finishes")
}

/// A running backup whose data is in the store.
struct Running<'a> {
    session: RunningSession<'a>,
    record: Snapshot,
    /// Number of chunks that the store did not have.
    new: u64,
}

/// Begins a backup and stores its files.
fn begin<'a>(store: &'a Store, seeds: &[u64]) -> Running<'a> {
    let session = store.begin_session("client").expect("begins");
    store_files(store, session, seeds)
}

fn store_files<'a>(store: &'a Store, session: RunningSession<'a>, seeds: &[u64]) -> Running<'a> {
    let packer = Packer::new(store, false);
    let root = tree(&packer, seeds);
    packer.finish().expect("finishes");
    let mut record = example();
    record.root = Id(*root.as_bytes());
    // Each record has another id.
    record.host = presence::new_id().expect("random");
    let new = packer.added().chunks.load(Relaxed);
    Running { session, record, new }
}

impl Running<'_> {
    fn put_record(&self, store: &Store) -> SnapshotId {
        self.session.announce(&self.record.id()).expect("announces");
        self.record.write(&*store.backend, store.codec).expect("writes")
    }

    fn finish(self, store: &Store) -> Result<SnapshotId> {
        let id = self.put_record(store);
        self.session.end(&id).map(|()| id)
    }
}

fn backup(store: &Store, seeds: &[u64]) -> SnapshotId {
    begin(store, seeds).finish(store).expect("succeeds")
}

/// Reads all data of a snapshot.
fn reads(store: &Store, id: &SnapshotId) {
    let snapshot = store.snapshot(id).expect("reads");
    let mut files = 0;
    for entry in TreeReader::new(&snapshot.root.chunk(), store) {
        let Content::Recipe(recipe) = entry.expect("reads").content else { panic!("a file") };
        for extent in Extents::new(&recipe, store) {
            let Extent::Slice { chunk, .. } = extent.expect("reads") else { panic!("a slice") };
            store.get(&chunk).expect("reads");
        }
        files += 1;
    }
    assert!(files > 0);
}

#[test]
fn segments_without_needed_chunks_go_and_all_others_stay() {
    let fixture = Fixture::new();
    let store = fixture.store(0);
    let [a, b] = [&[1, 2, 3][..], &[3, 4, 5]].map(|seeds| backup(&store, seeds));
    drop(store);
    assert_eq!(fixture.prune().deleted, Segments::default());
    let before = fixture.names("segments/");
    assert_eq!(before.len(), 4);
    fixture.forget(&b);
    let dry = PruneOptions { is_dry: true, ..options() };
    let planned = prune(&fixture.store(0), &dry, &mut |_| {}).expect("plans");
    assert_eq!(fixture.names("segments/"), before);
    let report = fixture.prune();
    assert_eq!((report.planned, report.deleted.segments), (planned.planned, 2));
    assert_eq!(report.deleted, report.planned);
    assert_eq!(report.all.segments, 4);
    assert_eq!(fixture.names("segments/").len(), 2);
    assert_eq!([fixture.names("condemned/"), fixture.names("sessions/")].concat(), [""; 0]);
    fixture.is_intact();
    reads(&fixture.store(1), &a);
    assert_eq!(fixture.prune().deleted, Segments::default());
}

#[test]
fn a_store_without_snapshots_is_refused_and_an_empty_one_is_not() {
    let fixture = Fixture::new();
    fixture.prune();
    let id = backup(&fixture.store(0), &[1]);
    fixture.forget(&id);
    fixture.fails("has no snapshots");
}

#[test]
fn anything_unreadable_or_unknown_stops_a_prune_before_it_deletes() {
    type Damage = fn(&Fixture, &SnapshotId);
    let damages: [(&str, Damage); 7] = [
        ("no copy of its record", |fixture, id| {
            let name = snapshot::file_name(id);
            fixture.memory.with_files(|files| files.insert(name, b"damaged".to_vec()));
        }),
        ("newer version", |fixture, _| {
            let record = Snapshot { version: 9, ..example() };
            record.write(&fixture.memory, crate::codec::Codec::new(1)).expect("writes");
        }),
        ("newer version", |fixture, _| {
            backend::write_all(&fixture.memory, "sessions/other", b"").expect("writes");
        }),
        ("newer version", |fixture, _| {
            backend::write_all(&fixture.memory, "condemned/other", b"").expect("writes");
        }),
        ("newer version", |fixture, _| {
            let name = condemned::file_name(&"ab".repeat(16));
            backend::write_all(&fixture.memory, &name, b"{\"version\":2}").expect("writes");
        }),
        ("malformed", |fixture, _| {
            let name = condemned::file_name(&"ab".repeat(16));
            backend::write_all(&fixture.memory, &name, b"").expect("writes");
        }),
        ("damaged", |fixture, id| {
            // The frames of all metadata.
            let store = fixture.store(0);
            let root = store.snapshot(id).expect("reads").root.chunk();
            let at = store.locate(&root).expect("is there");
            let name = segment::file_name(&at.segment);
            fixture.memory.with_files(|files| {
                let bytes = files.get_mut(&name).expect("a segment");
                bytes[at.offset as usize + 9] ^= 1;
            });
        }),
    ];
    for (expected, damage) in damages {
        let fixture = Fixture::new();
        let store = fixture.store(0);
        let [a, b] = [&[1, 2][..], &[3]].map(|seeds| backup(&store, seeds));
        drop(store);
        fixture.forget(&b);
        damage(&fixture, &a);
        fixture.fails(expected);
    }
}

/// restic (issues 1246 and 4612): an incomplete listing, or an error, looked like an empty store.
#[test]
fn a_listing_that_fails_deletes_nothing() {
    for failing in ["snapshots", "sessions", "condemned", "fence", "segments/80"] {
        let fixture = Fixture::new();
        let store = fixture.store(0);
        let [_, b] = [&[1, 2][..], &[3]].map(|seeds| backup(&store, seeds));
        let backend = Faulty::new(
            fixture.memory.clone(),
            Arc::new(move |operation, name: &str| match operation {
                Operation::List if name == failing => Err(io::Error::other("a broken listing")),
                _ => Ok(()),
            }),
        );
        drop(store);
        fixture.forget(&b);
        let before = fixture.names("segments/");
        let done = fixture
            .open_on(Arc::new(backend), 0)
            .and_then(|store| prune(&store, &options(), &mut |_| {}));
        let error = done.expect_err("is refused");
        assert!(error.to_string().contains(failing), "{error}");
        assert_eq!([fixture.names("segments/"), fixture.names("condemned/")], [before, vec![]]);
    }
}

/// restic (issue 21820): of two index entries of a chunk, the wrong one was lost.
#[test]
fn the_index_locates_the_other_copy_of_a_chunk_whose_segment_went() {
    let fixture = Fixture::new();
    let [first, second] = [fixture.store(0), fixture.store(1)];
    let [a, b] = [begin(&first, &[1, 2]), begin(&second, &[1, 2])];
    let [a, b] = [a.finish(&first), b.finish(&second)].map(|id| id.expect("succeeds"));
    drop((first, second));
    // Both indexes know both copies.
    let stores = [fixture.store(0), fixture.store(1)];
    let chunk = ChunkId::of(&noise(1));
    assert_eq!(prune(&stores[0], &options(), &mut |_| {}).expect("prunes").deleted.segments, 2);
    for (host, store) in stores.iter().enumerate() {
        // The second machine learns it from a backup.
        let session = (host == 1).then(|| begin(store, &[1, 2]));
        let at = store.index.find(&chunk).expect("asks").expect("has it");
        assert!(fixture.names("segments/").contains(&segment::file_name(&at.segment)), "{host}");
        drop(session);
        [a, b].iter().for_each(|id| reads(store, id));
        let report = check(store, ReadData::All).expect("checks");
        assert!(report.is_clean(), "{:?}", report.damages);
    }
}

#[test]
fn a_chunk_that_other_machines_move_again_and_again_is_read() {
    let fixture = Fixture::new();
    let others = Fixture { memory: fixture.memory.clone(), ..Fixture::new() };
    // None of them knows what the others store.
    let writers = [fixture.store(0), others.store(0), others.store(1)];
    let mut before: Vec<String> = Vec::new();
    let mut reader = None;
    for writer in &writers {
        backup(writer, &[1]);
        before.iter().for_each(|name| fixture.memory.remove(name).expect("removes"));
        before.extend(fixture.names("segments/"));
        before.retain(|name| fixture.names("").contains(name));
        let reader = reader.get_or_insert_with(|| fixture.store(1));
        reader.get(&ChunkId::of(&noise(1))).expect("reads");
    }
}

#[test]
fn rows_that_a_removal_has_not_added_yet_are_no_damage() {
    let fixture = Fixture::new();
    let [first, second] = [fixture.store(0), fixture.store(1)];
    let [a, b] = [begin(&first, &[1, 2]), begin(&second, &[1, 2])];
    a.finish(&first).expect("succeeds");
    b.finish(&second).expect("succeeds");
    drop((first, second));
    let store = fixture.store(0);
    let chunk = ChunkId::of(&noise(1));
    let at = store.index.find(&chunk).expect("asks").expect("has it");
    let removal = store.index.remove(&[at.segment]).expect("removes");
    assert!(!removal.is_over && store.index.find(&chunk).expect("asks").is_none());
    let damages = |store: &Store| check(store, ReadData::None).expect("checks").damages;
    assert_eq!(damages(&store), []);
    // If no removal explains it, it is a damage.
    store.index.end_removal(removal).expect("ends");
    let lacks = |damage: &Damage| damage.reason.starts_with("it lacks chunk");
    assert!(damages(&store).iter().any(lacks));
    drop(store);
    // The process of a removal was killed. It is completed when the index is opened next.
    let store = fixture.store(0);
    let at = store.index.find(&chunk).expect("asks").expect("has it");
    store.index.remove(&[at.segment]).expect("removes");
    drop(store);
    let store = fixture.store(0);
    assert!(store.index.last_removal().expect("asks").is_over);
    assert!(store.index.find(&chunk).expect("asks").is_some());
    assert_eq!(damages(&store), []);
}

#[test]
fn a_check_does_not_report_what_only_a_forgotten_snapshot_needed() {
    let fixture = Fixture::new();
    let store = fixture.store(0);
    let [a, b] = [&[1, 2][..], &[3]].map(|seeds| backup(&store, seeds));
    drop(store);
    let is_due = Arc::new(AtomicBool::new(false));
    let (memory, due) = (fixture.memory.clone(), Arc::clone(&is_due));
    let fault = move |operation, name: &str| {
        if operation == Operation::List && name == "segments/00" && due.swap(false, Relaxed) {
            let other = Fixture { memory: memory.clone(), ..Fixture::new() };
            other.forget(&b);
            assert_eq!(other.prune().deleted.segments, 2);
        }
        Ok(())
    };
    let backend = Faulty::new(fixture.memory.clone(), Arc::new(fault));
    let store = fixture.open_on(Arc::new(backend), 1).expect("opens");
    is_due.store(true, Relaxed);
    let report = check(&store, ReadData::All).expect("checks");
    assert!(!is_due.load(Relaxed));
    assert!(report.is_clean(), "{:?} {:?}", report.damages, report.losses);
    reads(&store, &a);
}

#[test]
fn a_lost_segment_stops_a_prune() {
    let fixture = Fixture::new();
    let store = fixture.store(0);
    let [a, b] = [&[1, 2][..], &[3]].map(|seeds| backup(&store, seeds));
    let at = store.locate(&ChunkId::of(&noise(1))).expect("is there");
    drop(store);
    fixture.forget(&b);
    fixture.memory.remove(&segment::file_name(&at.segment)).expect("removes");
    fixture.fails("no segment contains chunk");
    // The damaged snapshot goes, and then the rest.
    let store = fixture.store(0);
    backup(&store, &[7]);
    drop(store);
    fixture.forget(&a);
    assert_eq!(fixture.prune().deleted.segments, 3);
    fixture.is_intact();
}

#[test]
fn a_damaged_copy_never_replaces_an_intact_one() {
    let fixture = Fixture::new();
    let [first, second] = [fixture.store(0), fixture.store(1)];
    // Both machines store the same chunk, because neither sees the other's segments yet.
    let [a, b] = [begin(&first, &[1, 2]), begin(&second, &[1, 3])];
    assert_eq!([a.new, b.new], [5, 5]);
    let copies =
        [&first, &second].map(|store| store.locate(&ChunkId::of(&noise(1))).expect("is there"));
    assert_ne!(copies[0].segment, copies[1].segment);
    let ids = [a.finish(&first), b.finish(&second)].map(|id| id.expect("succeeds"));
    drop((first, second));
    for damaged in 0..2 {
        let memory = fixture.memory.copy();
        let fixture = Fixture { memory, ..Fixture::new() };
        // The other snapshot goes; its segment has an intact copy.
        fixture.memory.with_files(|files| {
            let bytes = files.get_mut(&segment::file_name(&copies[damaged].segment));
            bytes.expect("a segment")[copies[damaged].offset as usize + 9] ^= 1;
        });
        fixture.forget(&ids[1 - damaged]);
        let store = fixture.store(0);
        match prune(&store, &options(), &mut |_| {}) {
            Ok(_) => {}
            Err(error) => {
                assert!(matches!(error, Error::ChunkDamaged { .. }), "{error}");
                // A check marks the segment.
                check(&store, ReadData::All).expect("checks");
                prune(&store, &options(), &mut |_| {}).expect("prunes");
            }
        }
        reads(&store, &ids[damaged]);
    }
}

#[test]
fn a_prune_waits_for_a_running_backup() {
    let fixture = Fixture::new();
    let [store, other] = [fixture.store(0), fixture.store(1)];
    backup(&store, &[9]);
    let old = backup(&store, &[1, 2]);
    drop(store);
    let other = {
        drop(other);
        fixture.store(1)
    };
    // It finds the chunks of a snapshot that is forgotten next.
    let running = begin(&other, &[1, 2, 3]);
    assert_eq!(running.new, 3, "a chunk, its recipe and a page");
    fixture.forget(&old);
    let before = fixture.names("segments/");
    let report = fixture.prune();
    assert_eq!(report.waited_for, ["client"]);
    assert_eq!(fixture.names("segments/"), before);
    assert_eq!(fixture.names("condemned/"), [""; 0]);
    let id = running.finish(&other).expect("succeeds");
    let report = fixture.prune();
    assert!(!report.is_postponed());
    assert_eq!(report.deleted.segments, 0, "all of them hold needed chunks");
    reads(&other, &id);
    fixture.is_intact();
}

#[test]
fn a_backup_relies_on_nothing_that_is_condemned() {
    let fixture = Fixture::new();
    let store = fixture.store(0);
    let old = backup(&store, &[1, 2]);
    store.index.set_whole(&old, &HashSet::new()).expect("marks");
    let ids: Vec<SegmentId> =
        store.index.segments().expect("lists").iter().map(|segment| segment.id).collect();
    let own = condemned::write(&fixture.memory, None, "pruner", &ids).expect("condemns");
    let running = begin(&store, &[1, 2]);
    assert_eq!(running.new, 5, "everything is stored again");
    assert!(!running.session.may_rely_on_whole());
    for id in &ids {
        fixture.memory.remove(&segment::file_name(id)).expect("removes");
    }
    fixture.forget(&old);
    condemned::withdraw(&fixture.memory, own).expect("withdraws");
    let id = running.finish(&store).expect("succeeds");
    reads(&store, &id);
    fixture.is_intact();
    let next = store.begin_session("client").expect("begins");
    assert!(next.may_rely_on_whole());
}

#[test]
fn a_backup_does_not_rely_on_segments_that_are_gone() {
    let fixture = Fixture::new();
    let [store, other] = [fixture.store(0), fixture.store(1)];
    backup(&store, &[9]);
    let old = backup(&store, &[1, 2]);
    let stale = {
        drop(other);
        fixture.store(1)
    };
    fixture.forget(&old);
    assert_eq!(fixture.prune().deleted.segments, 2);
    // The index of the other machine still has the rows.
    let running = begin(&stale, &[1, 2]);
    assert_eq!(running.new, 5, "everything is stored again");
    let id = running.finish(&stale).expect("succeeds");
    reads(&stale, &id);
    fixture.is_intact();
}

#[test]
fn a_silent_session_is_fenced_and_its_backup_fails() {
    let fixture = Fixture::new();
    let [store, other] = [fixture.store(0), fixture.store(1)];
    let kept = backup(&store, &[9]);
    let old = backup(&store, &[1, 2]);
    let other = {
        drop(other);
        fixture.store(1)
    };
    let running = begin(&other, &[1, 2, 3]);
    fixture.forget(&old);
    let at = |minutes: i64| {
        let now = Time { seconds: NOW.seconds + 60 * minutes, ..NOW };
        prune(&store, &PruneOptions { now, ..options() }, &mut |_| {}).expect("prunes")
    };
    assert!(at(0).is_postponed());
    assert!(at(29).is_postponed());
    let report = at(31);
    assert!(!report.is_postponed());
    assert_eq!(report.deleted.segments, 4, "also those that it wrote");
    assert_eq!([fixture.names("sessions/"), fixture.names("fence/")].concat(), [""; 0]);
    // It notices only at its end.
    let void = running.put_record(&other);
    let error = running.session.end(&void).expect_err("is fenced");
    assert!(matches!(error, Error::Fenced), "{error}");
    drop(running);
    for store in [&store, &other] {
        assert_eq!(store.snapshot_ids().expect("lists"), [kept]);
    }
    fixture.is_intact();
    // The next prune deletes the record.
    fixture.prune();
    assert_eq!(fixture.names("snapshots/").len(), 1);
    assert_eq!(fixture.names("sessions/"), [""; 0]);
    fixture.is_intact();
}

#[test]
fn a_fenced_session_that_wrote_its_record_in_time_keeps_its_data() {
    let fixture = Fixture::new();
    let [store, other] = [fixture.store(0), fixture.store(1)];
    backup(&store, &[9]);
    let old = backup(&store, &[1, 2]);
    let other = {
        drop(other);
        fixture.store(1)
    };
    let running = begin(&other, &[1, 2, 3]);
    let id = running.put_record(&other);
    fixture.forget(&old);
    assert!(!store.snapshot_ids().expect("lists").contains(&id), "it may still fail");
    let at = |minutes: i64| {
        let now = Time { seconds: NOW.seconds + 60 * minutes, ..NOW };
        prune(&store, &PruneOptions { now, ..options() }, &mut |_| {}).expect("prunes")
    };
    at(0);
    assert!(!at(31).is_postponed());
    assert!(matches!(running.session.end(&id), Err(Error::Fenced)));
    assert!(store.snapshot_ids().expect("lists").contains(&id), "a prune accepted it");
    reads(&store, &id);
    fixture.is_intact();
    assert_eq!(fixture.names("sessions/"), [""; 0]);
}

#[test]
fn two_prunes_never_delete_both_copies() {
    let fixture = Fixture::new();
    let [first, second] = [fixture.store(0), fixture.store(1)];
    let [a, b] = [begin(&first, &[1, 2]), begin(&second, &[1, 2])];
    assert_eq!([a.new, b.new], [5, 5]);
    let a = a.finish(&first).expect("succeeds");
    let b = b.finish(&second).expect("succeeds");
    // Both snapshots need the same chunks, and two prunes choose different copies.
    drop((first, second));
    for chosen in 0..2 {
        let memory = fixture.memory.copy();
        let fixture = Fixture { memory, ..Fixture::new() };
        let all: Vec<SegmentId> =
            fixture.names("segments/").iter().filter_map(|name| segment::id_of(name)).collect();
        assert_eq!(all.len(), 4);
        let index = fixture.store(0);
        let of = |kind| {
            let segments = index.index.segments().expect("lists");
            let of_kind = segments.into_iter().filter(move |segment| segment.kind == kind);
            of_kind.map(|segment| segment.id).collect::<Vec<_>>()
        };
        let condemned = [of(Kind::Data)[chosen], of(Kind::Metadata)[chosen]];
        // Another prune is going to delete these, and does so at the end.
        condemned::write(&fixture.memory, None, "other", &condemned).expect("condemns");
        drop(index);
        fixture.prune();
        for id in condemned {
            let _ = fixture.memory.remove(&segment::file_name(&id));
        }
        let store = fixture.store(0);
        reads(&store, &a);
        reads(&store, &b);
    }
}

#[test]
fn a_prune_that_fails_at_any_step_loses_nothing_and_the_next_one_goes_on() {
    for fail_at in 0.. {
        let fixture = Fixture::new();
        let store = fixture.store(0);
        // A segment with little use, and others without any.
        let many: Vec<u64> = (1..15).collect();
        let partly = backup(&store, &many);
        let kept = [&[1, 2, 3][..], &[3, 4, 5]].map(|seeds| backup(&store, seeds));
        let old = [partly, backup(&store, &[26, 27]), backup(&store, &[27, 28])];
        // A backup that was killed.
        std::mem::forget(begin(&store, &[10]));
        old.iter().for_each(|id| fixture.forget(id));
        drop(store);
        let late = Time { seconds: NOW.seconds + 3600, ..NOW };
        assert!(fixture.prune().is_postponed());
        let count = AtomicUsize::new(0);
        let fault = move |operation, name: &str| {
            // Reads and listings of segments change nothing.
            if operation == Operation::Read
                || name.starts_with("segments/") && operation == Operation::List
            {
                return Ok(());
            }
            let is_now = count.fetch_add(1, Relaxed) >= fail_at;
            if is_now { Err(io::Error::other("killed")) } else { Ok(()) }
        };
        let late = PruneOptions { now: late, ..options() };
        let is_done = {
            let backend = Faulty::new(fixture.memory.clone(), Arc::new(fault));
            let store = fixture.open_on(Arc::new(backend), 0);
            store.and_then(|store| prune(&store, &late, &mut |_| {})).is_ok()
        };
        let store = fixture.store(1);
        kept.iter().for_each(|id| reads(&store, id));
        // A backup beside the remains.
        let new = backup(&store, &[6, 7, 26]);
        drop(store);
        fixture.is_intact();
        prune(&fixture.store(0), &late, &mut |_| {}).expect("goes on");
        fixture.is_intact();
        reads(&fixture.store(0), &new);
        if is_done {
            assert!(fail_at > 20, "{fail_at}");
            return;
        }
    }
}

/// Returns the bytes of all segments.
fn segment_bytes(fixture: &Fixture) -> u64 {
    let names = fixture.names("segments/");
    names.iter().map(|name| fixture.memory.len(name).expect("is there")).sum()
}

#[test]
fn needed_chunks_are_copied_out_of_segments_with_little_use() {
    let fixture = Fixture::new();
    let store = fixture.store(0);
    let many: Vec<u64> = (0..40).collect();
    let old = backup(&store, &many);
    let kept = backup(&store, &[3, 17, 39]);
    drop(store);
    fixture.forget(&old);
    let before = segment_bytes(&fixture);
    let limited = PruneOptions { repack_bytes_max: 9_000, ..options() };
    let report = prune(&fixture.store(0), &limited, &mut |_| {}).expect("prunes");
    assert_eq!((report.rewritten.segments, report.deleted.segments), (0, 0));
    assert!(report.left_bytes > 150_000);
    let report = fixture.prune();
    assert_eq!((report.rewritten.segments, report.deleted.segments), (1, 1), "{report:?}");
    assert!((15_000..16_000).contains(&report.moved_bytes), "{report:?}");
    assert!(segment_bytes(&fixture) < before / 5);
    for host in 0..2 {
        reads(&fixture.store(host), &kept);
    }
    fixture.is_intact();
    assert_eq!(fixture.prune().deleted, Segments::default());
}

#[test]
fn many_small_segments_are_joined() {
    let fixture = Fixture::new();
    let store = fixture.store(0);
    let ids: Vec<SnapshotId> = (0..40).map(|night| backup(&store, &[night])).collect();
    drop(store);
    assert_eq!(fixture.names("segments/").len(), 80);
    let report = fixture.prune();
    assert_eq!((report.rewritten.segments, report.deleted.segments), (80, 80));
    assert_eq!(fixture.names("segments/").len(), 2);
    for host in 0..2 {
        ids.iter().for_each(|id| reads(&fixture.store(host), id));
    }
    fixture.is_intact();
    assert_eq!(fixture.prune().deleted, Segments::default());
}

#[test]
fn a_full_disk_stops_only_the_copies() {
    let fixture = Fixture::new();
    let store = fixture.store(0);
    let many: Vec<u64> = (0..40).collect();
    let old = [backup(&store, &many), backup(&store, &[50])];
    let kept = backup(&store, &[3]);
    drop(store);
    old.iter().for_each(|id| fixture.forget(id));
    let fault = |operation, name: &str| match operation {
        Operation::Publish if name.starts_with("segments/") => {
            Err(io::ErrorKind::StorageFull.into())
        }
        _ => Ok(()),
    };
    let backend = Faulty::new(fixture.memory.clone(), Arc::new(fault));
    let store = fixture.open_on(Arc::new(backend), 0).expect("opens");
    let report = prune(&store, &options(), &mut |_| {}).expect("prunes");
    assert_eq!((report.rewritten.segments, report.deleted.segments), (1, 2), "{report:?}");
    reads(&store, &kept);
    fixture.is_intact();
    assert_eq!(fixture.prune().deleted.segments, 1);
    fixture.is_intact();
}

#[test]
fn segments_that_a_dead_prune_condemned_are_freed_of_their_chunks() {
    let fixture = Fixture::new();
    let store = fixture.store(0);
    let kept = backup(&store, &[1, 2, 3]);
    let ids: Vec<SegmentId> =
        store.index.segments().expect("lists").iter().map(|segment| segment.id).collect();
    // It ran on another machine, and never comes back.
    drop(condemned::write(&fixture.memory, None, "other", &ids).expect("condemns"));
    drop(store);
    assert_eq!(fixture.prune().deleted.segments, 2);
    fixture.prune();
    assert_eq!(fixture.names("condemned/"), [""; 0]);
    reads(&fixture.store(1), &kept);
    fixture.is_intact();
}

mod model;
mod schedules;
