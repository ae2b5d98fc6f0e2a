use super::*;
use crate::backend::faulty::{Faulty, Operation};
use crate::backend::{self, Backend, Memory};
use crate::config::Config;
use crate::observe::Silent;
use crate::snapshot::{Instance, Snapshot, example};
use crate::store::Purpose;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const NOW: Time = Time { seconds: 2_000_000_000, nanoseconds: 0 };

/// A store in memory, and the directory of its index.
struct Sandbox {
    memory: Memory,
    dir: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Sandbox {
        let memory = Memory::default();
        let config = Config::new([1; 16], chunker::Parameters::DEFAULT, 3);
        backend::write_all(&memory, crate::config::FILE, &config.to_bytes()).expect("writes");
        Sandbox { memory, dir: tempfile::tempdir().expect("a directory") }
    }

    fn open(&self, backend: Arc<dyn Backend>) -> Store {
        let observer = Arc::new(Silent::default());
        Store::open_backend(backend, self.dir.path(), Purpose::Write, observer).expect("opens")
    }

    fn store(&self) -> Store {
        self.open(Arc::new(self.memory.clone()))
    }

    /// Writes a snapshot that starts at this second.
    fn write(&self, seconds: i64, change: impl FnOnce(&mut Snapshot)) -> SnapshotId {
        let mut snapshot = example();
        snapshot.start.seconds = seconds;
        change(&mut snapshot);
        snapshot.write(&self.memory, crate::codec::Codec::new(3)).expect("writes")
    }

    fn objects(&self) -> Vec<String> {
        let of = |dir: &str| {
            let names = self.memory.names(dir).expect("lists");
            names.into_iter().map(|name| format!("{dir}/{name}")).collect::<Vec<_>>()
        };
        ["pins", "snapshots", "tags"].map(of).concat()
    }
}

fn incomplete(snapshot: &mut Snapshot) {
    snapshot.unreadable_count = 1;
}

fn of_instance(name: &str, path: &str) -> impl FnOnce(&mut Snapshot) {
    let (name, path) = (name.to_owned(), path.as_bytes().to_vec());
    move |snapshot| {
        snapshot.paths = vec![path.into()];
        snapshot.instance = Some(Instance { name, kind: "plain".into(), is_complete: true });
    }
}

fn forget(store: &Store, ids: &[SnapshotId]) -> Result<u64> {
    store.forget(ids, Permitted::default(), NOW, |_| {})
}

#[test]
fn a_snapshot_goes_with_its_tags_and_its_place_in_the_index() {
    let sandbox = Sandbox::new();
    let store = sandbox.store();
    let [a, b, c] = [10, 20, 30].map(|second| sandbox.write(second, |_| {}));
    store.records().expect("lists");
    for id in [a, b] {
        store.index.set_whole(&id, &HashSet::new()).expect("marks");
        store.add_tag(&id, &[], "x").expect("tags");
        store.pin(&id).expect("pins");
        store.unpin(&id).expect("unpins");
    }
    let mut seen = Vec::new();
    let deleted =
        store.forget(&[b], Permitted::default(), NOW, |id| seen.push(*id)).expect("forgets");
    assert_eq!((deleted, seen), (1, vec![b]));
    assert!(sandbox.objects().iter().all(|name| !name.contains(&b.to_string())));
    assert_eq!(store.snapshot_ids().expect("lists").len(), 2);
    let whole = [a, b].map(|id| store.index.is_whole(&id).expect("asks"));
    assert_eq!(whole, [true, false]);
    assert_eq!(store.index.headers().expect("asks").len(), 2);
    assert_eq!(store.annotations().expect("reads").0.tags(&a, &[]).len(), 1);
    // Another process was first.
    assert_eq!(forget(&store, &[b]).expect("is gone"), 0);
    // Another host deletes a record; this index follows.
    sandbox.memory.remove(&snapshot::file_name(&a)).expect("removes");
    assert_eq!(store.snapshots().expect("lists").0.len(), 1);
    assert!(!store.index.is_whole(&a).expect("asks"));
    assert_eq!(store.snapshot_ids().expect("lists"), [c]);
}

#[test]
fn a_pinned_snapshot_stays_and_others_with_it() {
    let sandbox = Sandbox::new();
    let store = sandbox.store();
    let [a, b, _] = [10, 20, 30].map(|second| sandbox.write(second, |_| {}));
    store.pin(&b).expect("pins");
    let error = forget(&store, &[a, b]).expect_err("pinned");
    assert!(matches!(error, Error::Pinned(id) if id == b), "{error}");
    assert_eq!(store.snapshot_ids().expect("lists").len(), 3);
    store.unpin(&b).expect("unpins");
    assert_eq!(forget(&store, &[a, b]).expect("forgets"), 2);
}

#[test]
fn a_pin_that_comes_meanwhile_counts() {
    let sandbox = Sandbox::new();
    let (store, other) = (sandbox.store(), sandbox.store());
    let [a, b, c] = [10, 20, 30].map(|second| sandbox.write(second, |_| {}));
    let pin = |id: &SnapshotId| {
        if *id == a {
            other.pin(&b).expect("pins");
        }
    };
    let error = store.forget(&[a, b], Permitted::default(), NOW, pin).expect_err("pinned");
    assert!(matches!(error, Error::Pinned(id) if id == b), "{error}");
    let mut left = vec![b, c];
    left.sort_unstable();
    assert_eq!(store.snapshot_ids().expect("lists"), left);
}

#[test]
fn the_last_complete_snapshot_of_a_series_stays() {
    let sandbox = Sandbox::new();
    let store = sandbox.store();
    let old = sandbox.write(10, |_| {});
    let broken = sandbox.write(20, incomplete);
    let future = sandbox.write(NOW.seconds + 601, |_| {});
    let other = sandbox.write(30, |snapshot| snapshot.host = "other".into());
    let first = sandbox.write(40, of_instance("a", "/1"));
    let moved = sandbox.write(50, of_instance("a", "/2"));
    let refused = |ids: &[SnapshotId], last: SnapshotId, words: &str| {
        let error = forget(&store, ids).expect_err("the last");
        assert!(matches!(error, Error::LastComplete { id, .. } if id == last), "{error}");
        assert!(error.to_string().ends_with(words), "{error}");
    };
    refused(&[old], old, "of /srv/\\xff on forge");
    refused(&[broken, old], old, "on forge");
    refused(&[future, old], future, "on forge");
    refused(&[broken, other], other, "on other");
    refused(&[first, moved], moved, "of instance a on forge");
    assert_eq!(store.snapshot_ids().expect("lists").len(), 6);
    // The paths of an instance may change.
    assert_eq!(forget(&store, &[first, broken, future]).expect("forgets"), 3);
    // Nothing is lost where nothing is complete.
    let alone = sandbox.write(60, |snapshot| {
        incomplete(snapshot);
        snapshot.host = "third".into();
    });
    assert_eq!(forget(&store, &[alone]).expect("forgets"), 1);
}

#[test]
fn an_unreadable_snapshot_is_no_replacement_and_is_not_deleted() {
    let sandbox = Sandbox::new();
    let [a, b] = [10, 20].map(|second| sandbox.write(second, |_| {}));
    let name = snapshot::file_name(&b);
    for is_known in [false, true] {
        let store = sandbox.store();
        if is_known {
            store.records().expect("lists");
        }
        let whole = sandbox.memory.with_files(|files| files.insert(name.clone(), vec![1]));
        let error = forget(&store, &[a]).expect_err("the last");
        assert!(matches!(error, Error::LastComplete { id, .. } if id == a), "{error}");
        let error = forget(&store, &[b]).expect_err("unreadable");
        assert!(matches!(error, Error::SnapshotDamaged { .. }), "{error}");
        sandbox.memory.with_files(|files| files.insert(name.clone(), whole.expect("written")));
    }
}

#[test]
fn a_damaged_record_and_the_last_complete_snapshot_go_if_this_is_permitted() {
    let sandbox = Sandbox::new();
    let [a, b] = [10, 20].map(|second| sandbox.write(second, |_| {}));
    let store = sandbox.store();
    sandbox.memory.with_files(|files| files.insert(snapshot::file_name(&b), vec![1]));
    let damaged = Permitted { damaged: true, ..Permitted::default() };
    assert_eq!(store.forget(&[b], damaged, NOW, |_| {}).expect("forgets"), 1);
    assert_eq!(store.snapshot_ids().expect("lists"), [a]);
    let error = store.forget(&[a], damaged, NOW, |_| {}).expect_err("the last");
    assert!(matches!(error, Error::LastComplete { id, .. } if id == a), "{error}");
    // Nothing overrides a pin.
    let last = Permitted { last: true, ..Permitted::default() };
    store.pin(&a).expect("pins");
    let error = store.forget(&[a], last, NOW, |_| {}).expect_err("pinned");
    assert!(matches!(error, Error::Pinned(id) if id == a), "{error}");
    store.unpin(&a).expect("unpins");
    assert_eq!(store.forget(&[a], last, NOW, |_| {}).expect("forgets"), 1);
}

#[test]
fn a_run_that_ends_anywhere_is_finished_by_the_next() {
    for fail_at in 0.. {
        let sandbox = Sandbox::new();
        let ids: Vec<SnapshotId> = (0..4).map(|day| sandbox.write(day, |_| {})).collect();
        let store = sandbox.store();
        for id in &ids {
            store.add_tag(id, &[], "x").expect("tags");
            store.add_tag(id, &[], "y").expect("tags");
            store.remove_tag(id, &[], "y").expect("removes");
            store.pin(id).expect("pins");
            store.unpin(id).expect("unpins");
        }
        let count = AtomicUsize::new(0);
        let fault = move |operation: Operation, _: &str| {
            let is_now = operation == Operation::Remove && count.fetch_add(1, Relaxed) >= fail_at;
            if is_now { Err(io::Error::other("killed")) } else { Ok(()) }
        };
        let killed = sandbox.open(Arc::new(Faulty::new(sandbox.memory.clone(), Arc::new(fault))));
        let result = forget(&killed, &ids[..2]);
        drop((store, killed));
        let store = sandbox.store();
        let (snapshots, errors) = store.snapshots().expect("lists");
        assert!(errors.is_empty() && snapshots.len() >= 2, "{fail_at}");
        // No tag comes back to a snapshot that is still listed.
        let (annotations, errors) = store.annotations().expect("reads");
        assert!(errors.is_empty(), "{fail_at}: {errors:?}");
        for (id, _) in &snapshots {
            assert_eq!(*annotations.tags(id, &[]), ["x"], "{fail_at}");
            assert!(!annotations.is_pinned(id), "{fail_at}");
        }
        forget(&store, &ids[..2]).expect("forgets");
        store.remove_stale_annotations().expect("removes");
        let left: Vec<String> = sandbox.objects();
        let is_of_kept = |name: &String| ids[2..].iter().any(|id| name.contains(&id.to_string()));
        assert!(left.iter().all(is_of_kept), "{fail_at}: {left:?}");
        assert_eq!(left.len(), 2 * 6, "{fail_at}");
        if result.is_ok() {
            assert_eq!(fail_at, 2 * 6);
            return;
        }
        assert!(matches!(result, Err(Error::StoreRemove { .. })), "{result:?}");
    }
}

#[test]
fn readers_do_not_report_a_snapshot_that_goes_meanwhile() {
    let sandbox = Sandbox::new();
    let (store, other) = (sandbox.store(), sandbox.store());
    let [a, b, c] = [10, 20, 30].map(|second| sandbox.write(second, |_| {}));
    let mut records = store.records().expect("lists");
    assert_eq!(records.next().expect("one").expect("reads").0, c);
    forget(&other, &[b]).expect("forgets");
    let left: Vec<SnapshotId> = records.map(|record| record.expect("reads").0).collect();
    assert_eq!(left, [a]);
}
