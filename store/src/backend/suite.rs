//! Requirements on every backend. One test per backend runs them.

use super::{Backend, Local, Memory, faulty::Faulty, read_all, recording::Recording, write_all};
use std::io::ErrorKind;
use std::sync::Arc;

fn behaves(backend: &dyn Backend) {
    let names = |dir| -> Vec<(String, u64)> {
        let listed = backend.list(dir).expect("lists");
        let mut names = backend.names(dir).expect("lists");
        names.sort();
        assert!(names.iter().eq(listed.iter().map(|file| &file.name)));
        listed.into_iter().map(|file| (file.name, file.len)).collect()
    };
    assert_eq!(names("snapshots"), []);

    let mut pending = backend.create().expect("creates");
    pending.write(b"hello ").expect("writes");
    pending.write(b"world").expect("writes");
    assert_eq!(names("snapshots"), [], "unpublished files are not seen");
    pending.sync().expect("syncs");
    pending.publish("snapshots/b").expect("publishes");
    write_all(backend, "snapshots/a", b"").expect("writes an empty file");
    write_all(backend, "segments/00/x", b"elsewhere").expect("writes");
    assert_eq!(names("snapshots"), [("a".into(), 0), ("b".into(), 11)]);

    drop(backend.create().expect("creates"));
    assert_eq!(names("snapshots").len(), 2, "a dropped file leaves nothing");

    let mut part = [0; 5];
    backend.read("snapshots/b", 6, &mut part).expect("reads a range");
    assert_eq!(&part, b"world");
    let error = backend.read("snapshots/b", 7, &mut part).expect_err("past the end");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let error = backend.read("snapshots/none", 0, &mut part).expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(backend.len("snapshots/none").expect_err("not there").kind(), ErrorKind::NotFound);
    assert_eq!(backend.len("snapshots/b").expect("there"), 11);
    assert_eq!(read_all(backend, "snapshots/b", 11).expect("fits"), b"hello world");
    let error = read_all(backend, "snapshots/b", 10).expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::FileTooLarge);

    write_all(backend, "snapshots/b", b"again").expect("replaces");
    assert_eq!(backend.len("snapshots/b").expect("there"), 5);
    backend.remove("snapshots/b").expect("removes");
    assert_eq!(backend.remove("snapshots/b").expect_err("gone").kind(), ErrorKind::NotFound);
    assert_eq!(names("snapshots"), [("a".into(), 0)]);
}

fn local() -> (tempfile::TempDir, Local) {
    let dir = tempfile::tempdir().expect("a directory");
    let local = Local::new(dir.path());
    local.make_directories(["snapshots", "segments/00"].into_iter()).expect("directories");
    (dir, local)
}

#[test]
fn memory_behaves() {
    behaves(&Memory::default());
}

#[test]
fn local_behaves() {
    let (_dir, local) = local();
    behaves(&local);
    assert_eq!(local.list("none").expect_err("no such directory").kind(), ErrorKind::NotFound);
    assert_eq!(local.names("none").expect_err("no such directory").kind(), ErrorKind::NotFound);
}

#[test]
fn directories_that_a_copy_lacks_are_made_and_no_others() {
    let (dir, local) = local();
    std::fs::remove_dir(dir.path().join("tmp")).expect("removes");
    write_all(&local, "segments/01/x", b"in a new directory").expect("writes");
    assert_eq!(local.len("segments/01/x").expect("there"), 18);
    let error = write_all(&local, "elsewhere/01/x", b"").expect_err("two directories away");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    drop(dir);
    assert_eq!(local.create().err().expect("no store").kind(), ErrorKind::NotFound);
}

#[test]
fn faulty_without_faults_behaves() {
    behaves(&Faulty::new(Memory::default(), Arc::new(|_, _| Ok(()))));
}

#[test]
fn recording_behaves() {
    behaves(&Recording::new(Memory::default()));
}

#[test]
fn remains_of_killed_runs_are_removed_and_running_writers_stay() {
    let (dir, local) = local();
    let left = dir.path().join("tmp/0123456789abcdef");
    std::fs::write(&left, b"half").expect("writes");
    let mut running = local.create().expect("creates");
    running.write(b"x").expect("writes");
    assert_eq!(local.remove_unpublished().expect("cleans"), 1);
    assert!(!left.exists());
    running.sync().expect("syncs");
    running.publish("snapshots/a").expect("still there");
}

#[test]
fn files_begun_while_another_run_cleans_up_are_kept() {
    let (dir, writer) = local();
    let cleaner = Local::new(dir.path());
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                cleaner.remove_unpublished().expect("cleans");
            }
        });
        let begin_and_publish = |_| writer.create()?.publish("snapshots/a");
        let done: Vec<std::io::Result<()>> = (0..2000).map(begin_and_publish).collect();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(done.iter().all(Result::is_ok), "{done:?}");
    });
}
