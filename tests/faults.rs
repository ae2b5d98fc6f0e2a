//! Safety under any fault: killed runs, full disks, failing operations, concurrent runs.

use crate::support::sandbox::{Dice, NOBODY, Outcome, Sandbox, need_root};
use crate::support::stores::{Listener, back_up, backup_options, restore_options};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use store::backend::faulty::{Faulty, Operation};
use store::backend::{Backend, Memory, write_all};
use store::check::{ReadData, check};
use store::config::Config;
use store::id::SnapshotId;
use store::observe::{Event, Observer, Silent};
use store::store::{Purpose, Store};

/// Total number of kills.
const KILLS: usize = 200;

/// Creates a source of about 1.5 MB in files of all sizes.
fn make_source(sandbox: &Sandbox) {
    let mut dice = Dice::new(1);
    for n in 0..60 {
        let len = [20, 700, 9_000, 60_000][n % 4] + dice.below(5000) as usize;
        sandbox.write(&format!("source/{}/{n}", n % 7), dice.bytes(len));
    }
    sandbox.write("source/large", dice.bytes(400_000));
}

/// Changes some of the source.
fn change_source(sandbox: &Sandbox, dice: &mut Dice) {
    for _ in 0..4 {
        let len = dice.below(40_000) as usize;
        let name = format!("source/{}/{}", dice.below(7), dice.below(60));
        sandbox.write(&name, dice.bytes(len));
    }
    let at = dice.below(400_000) as usize;
    let mut large = sandbox.read("source/large");
    large[at..(at + 5000).min(400_000)].fill(dice.roll() as u8);
    sandbox.write("source/large", large);
}

/// Asserts that two directories have the same content.
fn assert_same(sandbox: &Sandbox, a: &str, b: &str) {
    let ignore = crate::support::tree::Ignore {
        top_directory: true,
        ..crate::support::tree::Ignore::default()
    };
    let differences =
        crate::support::tree::compare_ignoring(&sandbox.path(a), &sandbox.path(b), ignore);
    assert_eq!(differences, Vec::<String>::new());
}

fn copy_of_source(sandbox: &Sandbox, name: &str) {
    sandbox.tool("cp").args(["-a", "source", name]).run().ok();
}

#[test]
fn a_kill_at_any_moment_keeps_all_existing_snapshots() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(2);
    make_source(&sandbox);
    sandbox.backup(["source"]);
    let first = sandbox.snapshot_ids().remove(0);
    copy_of_source(&sandbox, "first");
    change_source(&sandbox, &mut dice);
    let begun = Instant::now();
    sandbox.backup(["source"]);
    let usual = begun.elapsed().as_micros() as u64 + 5000;

    let (mut killed, mut finished, mut kept) = (0, 0, sandbox.snapshot_ids());
    while killed < KILLS {
        change_source(&sandbox, &mut dice);
        let mut run = sandbox.forgekeep(["backup", "source"]).start();
        std::thread::sleep(Duration::from_micros(dice.below(usual)));
        run.kill();
        let outcome = run.wait();
        if !outcome.was_killed() {
            outcome.ok();
            finished += 1;
            assert!(finished < 3 * KILLS, "nearly all runs end before they are killed");
        } else {
            killed += 1;
        }
        if killed % 5 == 0 {
            // Earlier snapshots are listed and readable; no incomplete one is.
            let ids = sandbox.snapshot_ids();
            assert!(kept.iter().all(|id| ids.contains(id)), "a snapshot went away");
            kept = ids;
            sandbox.assert_clean();
        }
        if killed % 20 == 0 {
            sandbox.restore(&sandbox.at(&first, "source"), "restored");
            assert_same(&sandbox, "first", "restored");
            sandbox.remove("restored");
            // No manual step is needed.
            sandbox.backup(["source"]);
            kept = sandbox.snapshot_ids();
            sandbox.restore(&sandbox.at("latest", "source"), "restored");
            assert_same(&sandbox, "source", "restored");
            sandbox.remove("restored");
        }
    }
    sandbox.backup(["source"]);
    sandbox.assert_clean();
    let left = std::fs::read_dir(sandbox.path("store/tmp")).expect("lists").count();
    assert_eq!(left, 0, "the next run removes the remains of killed runs");
}

/// A small file system for the store. Root mounts and unmounts it.
struct SmallDisk<'a>(&'a Sandbox, &'static str);

impl<'a> SmallDisk<'a> {
    fn mount(sandbox: &'a Sandbox, at: &'static str, kib: u64) -> SmallDisk<'a> {
        need_root();
        std::fs::create_dir_all(sandbox.path(at)).expect("a directory");
        let options = format!("size={kib}k,mode=755");
        let mount = ["-t", "tmpfs", "-o", &options, "tmpfs", at];
        sandbox.tool("mount").args(mount).run().ok();
        SmallDisk(sandbox, at)
    }

    fn resize(&self, kib: u64) {
        let options = format!("remount,size={kib}k");
        self.0.tool("mount").args(["-o", &options, self.1]).run().ok();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        self.0.tool("umount").args(["-l", self.1]).run();
    }
}

/// Asserts that a run failed for lack of space and reported that.
fn assert_full(outcome: Outcome) {
    let outcome = outcome.fails(1, &["make space"]);
    assert!(!outcome.stdout.contains("saved"), "{}", outcome.all_output());
}

#[test]
fn a_full_disk_fails_only_the_running_backup() {
    let sandbox = Sandbox::new();
    let disk = SmallDisk::mount(&sandbox, "store", 3000);
    sandbox.run(["init"]).ok();
    make_source(&sandbox);
    sandbox.backup(["source"]);
    let ids = sandbox.snapshot_ids();
    copy_of_source(&sandbox, "first");
    sandbox.write("source/too-large", Dice::new(3).bytes(8_000_000));
    assert_full(sandbox.run(["backup", "source"]));
    assert_full(sandbox.run(["backup", "source"]));
    assert_eq!(sandbox.snapshot_ids(), ids);
    sandbox.assert_clean();
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    assert_same(&sandbox, "first", "restored");
    disk.resize(20_000);
    sandbox.backup(["source"]);
    sandbox.assert_clean();
    sandbox.restore(&sandbox.at("latest", "source"), "again");
    assert_same(&sandbox, "source", "again");
}

#[test]
fn a_full_disk_leaves_read_only_directories_clean() {
    let sandbox = Sandbox::new();
    let mut dice = Dice::new(4);
    for n in 0..40 {
        sandbox.write(&format!("source/dir/{n}"), dice.bytes(300_000));
    }
    let disk = SmallDisk::mount(&sandbox, "disk", 4000);
    std::fs::create_dir_all(sandbox.path("disk/to/dir")).expect("a directory");
    sandbox.tool("chmod").args(["555", "source/dir", "disk/to/dir"]).run().ok();
    sandbox.give_to_nobody("source");
    sandbox.give_to_nobody("disk");
    sandbox.as_nobody(["init"]).run().ok();
    sandbox.as_nobody(["backup", "source"]).run().ok();
    let place = sandbox.at("latest", "source");
    let restore = || sandbox.as_nobody(["restore", &place, "--target", "disk/to"]).run();
    let left = || {
        let found = ["disk", "-name", ".forgekeep-unfinished-*"];
        sandbox.tool("find").args(found).run().ok().stdout
    };
    restore().fails(1, &["make space"]);
    assert_eq!(left(), "");
    // The next restore removes a file that a kill left behind.
    let kept = "disk/to/dir/.forgekeep-unfinished-0123456789abcdef";
    let script = format!(
        "chmod u+w disk/to/dir; touch {kept}; chown {NOBODY} {kept}; chmod 555 disk/to/dir"
    );
    sandbox.tool("sh").args(["-c", &script]).run().ok();
    disk.resize(40_000);
    restore().ok();
    assert_eq!(left(), "");
}

#[test]
fn a_full_disk_at_any_byte_keeps_the_store_clean() {
    let sandbox = Sandbox::new();
    let disk = SmallDisk::mount(&sandbox, "store", 2000);
    sandbox.run(["init"]).ok();
    sandbox.write("source/a", Dice::new(4).bytes(100_000));
    sandbox.backup(["source"]);
    let used = sandbox.tool("du").args(["-sk", "store"]).run().ok();
    let used: u64 =
        used.stdout.split_whitespace().next().and_then(|n| n.parse().ok()).expect("KiB");
    let first = sandbox.snapshot_ids();
    sandbox.tool("cp").args(["-a", "store", "base"]).run().ok();
    sandbox.write("source/b", Dice::new(6).bytes(300_000));
    let (mut failed, mut kib) = (0, used);
    loop {
        disk.resize(used + 2000);
        sandbox.tool("find").args(["store", "-mindepth", "1", "-delete"]).run().ok();
        sandbox.tool("cp").args(["-a", "base/.", "store"]).run().ok();
        disk.resize(kib);
        let outcome = sandbox.run(["backup", "source"]);
        let ids = sandbox.snapshot_ids();
        assert!(first.iter().all(|id| ids.contains(id)));
        if outcome.code() == Some(0) {
            break;
        }
        assert_full(outcome);
        assert_eq!(ids, first, "a failed run leaves no snapshot, at {kib} KiB");
        failed += 1;
        sandbox.assert_clean();
        // Most sizes fail while data is written. Later stages are tested in small steps.
        kib += if kib < used + 40 || kib > used + 270 { 4 } else { 20 };
        assert!(kib < used + 2000, "it never fits");
    }
    assert!(failed > 10, "only {failed} sizes were too small");
    sandbox.assert_clean();
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    assert_same(&sandbox, "source", "restored");
}

/// A store in memory in which one operation fails.
struct Fragile {
    memory: Memory,
    index: tempfile::TempDir,
}

/// Result of [`Fragile::backup`]: snapshot or error, unreadable paths, and number of operations.
type Attempt = (store::Result<SnapshotId>, Vec<String>, usize);

impl Fragile {
    fn new() -> Fragile {
        let memory = Memory::default();
        let config = Config::new([7; 16], chunker::Parameters::DEFAULT, 3);
        write_all(&memory, store::config::FILE, &config.to_bytes()).expect("writes");
        Fragile { memory, index: tempfile::tempdir().expect("a directory") }
    }

    fn open(&self, backend: Arc<dyn Backend>, observer: Arc<dyn Observer>) -> store::Result<Store> {
        Store::open_backend(backend, self.index.path(), Purpose::Write, observer)
    }

    /// Runs a backup in which the `n`th operation of this kind fails, if there are that many.
    fn backup(&self, source: &Path, fails: Option<(Operation, usize)>) -> Attempt {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let faulty = Faulty::new(
            self.memory.clone(),
            Arc::new(move |operation, _: &str| match fails {
                Some((kind, n)) if kind == operation && counted.fetch_add(1, Relaxed) == n => {
                    Err(std::io::Error::from_raw_os_error(5))
                }
                _ => Ok(()),
            }),
        );
        let listener = Arc::new(Listener::default());
        let result = self.open(Arc::new(faulty), Arc::clone(&listener) as _).and_then(|store| {
            let report = back_up(&store, &[source], &backup_options())?;
            Ok(report.snapshot.expect("not a dry run"))
        });
        let events = listener.events.lock().expect("no panic");
        let path = |event: &Event| match event {
            Event::Unreadable { path, .. } => Some(path.display().to_string()),
            _ => None,
        };
        let unreadable = events.iter().filter_map(path).collect();
        (result, unreadable, count.load(Relaxed))
    }

    /// Asserts that everything works without faults and that every snapshot can be restored.
    fn assert_good(&self) -> usize {
        let store = self.open(Arc::new(self.memory.clone()), Arc::new(Silent::default()));
        let store = store.expect("the store opens");
        let report = check(&store, ReadData::All).expect("checks");
        assert!(report.is_clean(), "{report:?}");
        let (snapshots, damaged) = store.snapshots().expect("lists");
        assert!(damaged.is_empty(), "{damaged:?}");
        for (_, snapshot) in &snapshots {
            let target = tempfile::tempdir().expect("a directory");
            let report = store::restore::restore(
                &store,
                &snapshot.root.chunk(),
                b"",
                target.path(),
                &restore_options(),
            );
            assert_eq!(report.expect("restores").failed, 0);
        }
        snapshots.len()
    }
}

#[test]
fn any_operation_may_fail() {
    let sandbox = Sandbox::new();
    let mut dice = Dice::new(5);
    for n in 0..20 {
        sandbox.write(&format!("source/{n}"), dice.bytes(3000 * n));
    }
    let source = sandbox.path("source").canonicalize().expect("there");
    for kind in [
        Operation::List,
        Operation::Read,
        Operation::Create,
        Operation::Write,
        Operation::Sync,
        Operation::Publish,
        Operation::Published,
    ] {
        let (mut n, mut failed) = (0, 0);
        loop {
            let fragile = Fragile::new();
            fragile.backup(&source, None).0.expect("a first backup without faults");
            sandbox.write("source/0", dice.bytes(5000));
            let (result, unreadable, count) = fragile.backup(&source, Some((kind, n)));
            assert_eq!(unreadable, Vec::<String>::new(), "{kind:?} {n} taken for the source's");
            let is_reached = count > n;
            let snapshots = fragile.assert_good();
            match &result {
                Ok(_) => assert_eq!(snapshots, 2, "{kind:?} {n}"),
                Err(error) => {
                    failed += 1;
                    assert!(is_reached, "{kind:?} {n}: {error}");
                    let is_told = error.to_string().contains("of the store")
                        || matches!(error, store::Error::StoreRead { .. });
                    assert!(is_told, "{kind:?} {n}: {error}");
                    // The record may have got its name before the error.
                    let most = if kind == Operation::Published { 2 } else { 1 };
                    assert!(snapshots <= most, "{kind:?} {n}: a failed backup is listed");
                }
            }
            if is_reached && !matches!(kind, Operation::Read | Operation::List) {
                assert!(result.is_err(), "{kind:?} {n} failed and the backup did not");
            }
            fragile.backup(&source, None).0.expect("the next backup works");
            assert!(fragile.assert_good() > snapshots);
            if !is_reached {
                break;
            }
            // 256 shards are listed, all alike.
            n += if kind == Operation::List && n > 4 && n < 250 { 41 } else { 1 };
        }
        // Unreadable parts of the previous snapshot are read from the source again.
        assert!(failed > 0 || kind == Operation::Read, "{kind:?} never failed");
    }
}

#[test]
fn errors_of_source_and_store_are_distinguished() {
    let sandbox = Sandbox::new();
    sandbox.write("source/good", "good");
    sandbox.write("source/secret/inside", "secret");
    sandbox.write("source/unreadable", "secret");
    sandbox.give_to_nobody("source");
    sandbox.tool("chmod").args(["000", "source/secret", "source/unreadable"]).run().ok();
    if sandbox.as_nobody(["init"]).run().code() != Some(0) {
        panic!("no store");
    }
    let outcome = sandbox.as_nobody(["backup", "source", "--json"]).run().ends_with(3);
    let lines = outcome.json();
    let missing: Vec<_> =
        lines.iter().filter(|line| line["message_type"] == "error").map(|l| &l["item"]).collect();
    assert_eq!(missing, [&sandbox.text("source/secret"), &sandbox.text("source/unreadable")]);
    let summary = lines.last().expect("a summary");
    assert_eq!((&summary["errors"], &summary["files_new"]), (&2.into(), &1.into()));
    sandbox.as_nobody(["check", "--read-data"]).run().ok();

    // Conversely, a store that is not writable is not a fault of the source.
    sandbox.as_nobody(["backup", "source"]).run().ends_with(3);
    let made = sandbox.tool("find").args(["store/tmp", "store/segments", "-type", "d"]).run().ok();
    sandbox.tool("chmod").args(["a-w"]).args(made.stdout.lines()).run().ok();
    sandbox.write("source/good", "better");
    let outcome = sandbox.as_nobody(["backup", "source"]).run().fails(1, &["of the store"]);
    assert!(!outcome.stderr.contains("source/good"), "{}", outcome.all_output());
    assert_eq!(sandbox.snapshot_ids().len(), 2);
}

#[test]
fn an_unreadable_path_loses_only_itself() {
    let sandbox = Sandbox::new();
    sandbox.write("hidden/open/a", "a");
    sandbox.write("closed/b", "b");
    sandbox.give_to_nobody("closed");
    sandbox.give_to_nobody("hidden/open");
    sandbox.tool("chmod").args(["000", "closed"]).run().ok();
    sandbox.tool("chmod").args(["711", "hidden"]).run().ok();
    sandbox.as_nobody(["init"]).run().ok();
    sandbox.as_nobody(["backup", "hidden/open"]).run().ok();
    let partial = sandbox.as_nobody(["backup", "closed", "hidden/open"]).run().ends_with(3);
    assert!(partial.stderr.contains("cannot read") && partial.stderr.contains("closed"));
    sandbox.as_nobody(["backup", "closed"]).run().fails(1, &["closed", "Permission denied"]);
    let listed = sandbox.as_nobody(["ls", "latest", "--path", "closed"]).run().ok();
    assert!(listed.stdout.contains("hidden/open/a"), "{}", listed.all_output());
}

/// Asserts that every file in `to` is a complete file of `from`.
///
/// An interrupted restore leaves the empty file that marks the target as unfinished.
fn assert_only_whole_files(sandbox: &Sandbox, from: &str, to: &str) {
    let mark = format!("{to}/.forgekeep-unfinished-restore");
    let options = ["-type", "f", "-not", "(", "-empty", "-path", &mark, ")"];
    let list = sandbox.tool("find").args([to]).args(options).run().ok();
    for file in list.stdout.lines() {
        let name = file.strip_prefix(to).expect("below it");
        assert!(sandbox.has(format!("{from}{name}")), "{file} was left");
        let (is, should) = (sandbox.read(file), sandbox.read(format!("{from}{name}")));
        assert!(is == should, "{file} has {} bytes of {}, or others", is.len(), should.len());
    }
}

#[test]
fn an_interrupted_restore_leaves_only_whole_files() {
    let sandbox = Sandbox::with_store();
    for n in 0..6 {
        sandbox.write(format!("source/{n}").as_str(), Dice::new(20 + n).bytes(9_000_000));
    }
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let disk = SmallDisk::mount(&sandbox, "small", 30_000);
    let full = sandbox.run(["restore", &place, "--target", "small/new"]);
    full.fails(1, &["No space left", "make space"]);
    assert_only_whole_files(&sandbox, "source", "small/new");
    disk.resize(80_000);
    sandbox.run(["restore", &place, "--target", "small/new"]).ok();
    assert_same(&sandbox, "source", "small/new");
    for (round, wait) in [20, 30, 40, 60, 80, 120].into_iter().enumerate() {
        let target = format!("target-{round}");
        let run = sandbox.forgekeep(["restore", &place, "--target", &target]).start();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        run.interrupt();
        run.wait();
        if sandbox.has(&target) {
            assert_only_whole_files(&sandbox, "source", &target);
        }
        // A killed restore leaves nothing that the next run cannot repair.
        let mut run = sandbox.forgekeep(["restore", &place, "--target", &target]).start();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        run.kill();
        run.wait();
        sandbox.run(["restore", &place, "--target", &target]).ok();
        assert_same(&sandbox, "source", &target);
    }
}

#[test]
fn restored_files_have_only_their_own_acl() {
    use crate::support::tree::{Acl, DEFAULT, acl};
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::with_store();
    sandbox.write("source/dir/secret", "secret");
    sandbox.tool("chmod").args(["640", "source/dir/secret"]).run().ok();
    sandbox.tool("mkfifo").args(["source/dir/fifo"]).run().ok();
    sandbox.backup(["source"]);
    let everyone = acl(&[
        (Acl::Owner, 7),
        (Acl::User(4711), 7),
        (Acl::GroupOwner, 7),
        (Acl::Mask, 7),
        (Acl::Other, 0),
    ]);
    let give = |dir: &str| {
        std::fs::create_dir_all(sandbox.path(dir)).expect("makes");
        let name = std::ffi::OsStr::from_bytes(DEFAULT);
        let flags = rustix::fs::XattrFlags::empty();
        let given = rustix::fs::setxattr(sandbox.path(dir), name, &everyone, flags);
        given.expect("the temporary directory needs a file system with ACLs");
    };
    give("whole");
    give("part/dir");
    let place = sandbox.at("latest", "source");
    for target in ["whole", "part"] {
        sandbox.run(["restore", &place, "--target", target]).ok();
        assert_same(&sandbox, "source/dir", &format!("{target}/dir"));
    }
}

#[test]
fn hard_links_of_a_lost_file_do_not_link_to_an_old_file() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", Dice::new(1).bytes(100_000));
    sandbox.tool("ln").args(["source/a", "source/b"]).run().ok();
    sandbox.backup(["source"]);
    sandbox.write("target/a", "what was there before");
    let list = sandbox.tool("find").args(["store/segments", "-size", "+90k"]).run().ok();
    let segment = list.stdout.trim();
    let mut bytes = sandbox.read(segment);
    bytes[50_000] ^= 1;
    std::fs::write(sandbox.path(segment), bytes).expect("damages");
    let place = sandbox.at("latest", "source");
    let restored = sandbox.run(["restore", &place, "--target", "target"]).ends_with(3);
    assert!(restored.stderr.contains("target/a") && restored.stderr.contains("target/b"));
    assert!(!sandbox.has("target/b"), "{}", restored.all_output());
    assert_eq!(sandbox.read("target/a"), b"what was there before");
}

#[test]
fn a_name_that_is_there_serves_the_others_of_a_lost_file() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", Dice::new(1).bytes(300_000));
    for other in ["b", "c", "d"] {
        sandbox.tool("ln").args(["source/a", &format!("source/{other}")]).run().ok();
    }
    sandbox.backup(["source"]);
    let list = sandbox.tool("find").args(["store/segments", "-size", "+100k"]).run().ok().stdout;
    sandbox.remove(list.trim());
    let place = sandbox.at("latest", "source");
    for (there, lost) in [("a", 0), ("c", 2), ("d", 3)] {
        let target = format!("has-{there}");
        sandbox.tool("mkdir").args([&target]).run().ok();
        sandbox.tool("cp").args(["-p", "source/a", &format!("{target}/{there}")]).run().ok();
        let restore = ["restore", &place, "--target", &target, "--json"];
        for arguments in [&[&restore[..], &["--dry-run"]].concat()[..], &restore] {
            let outcome = sandbox.run(arguments).ends_with(if lost == 0 { 0 } else { 3 });
            let errors = outcome.json().pop().expect("a summary")["errors"].clone();
            assert_eq!(errors, lost, "{there}: {arguments:?} {}", outcome.all_output());
        }
        for name in ["a", "b", "c", "d"].iter().skip(lost) {
            assert_eq!(sandbox.read(format!("{target}/{name}")).len(), 300_000, "{there} {name}");
        }
    }
}

#[test]
fn a_dry_run_names_what_the_store_lost() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(1);
    sandbox.write("source/lost", dice.bytes(1_000_000));
    sandbox.tool("ln").args(["source/lost", "source/too"]).run().ok();
    sandbox.tool("truncate").args(["-s", "1G", "source/holes"]).run().ok();
    sandbox.write("source/small", "1");
    sandbox.backup(["source"]);
    // Longer than a recipe in an entry.
    sandbox.write("source/long", dice.bytes(40_000_000));
    sandbox.write("source/kept", "2");
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let restore = |target: &str, more: &[&str]| {
        let arguments = ["restore", &place, "--target", target, "--json"];
        let outcome = sandbox.run([&arguments[..], more].concat());
        let lines = outcome.json();
        let is_error = |line: &&serde_json::Value| line["message_type"] == "error";
        let names = lines.iter().filter(is_error).map(|line| line["item"].to_string());
        (
            outcome.code(),
            names.collect::<std::collections::BTreeSet<_>>(),
            lines.last().expect("a summary")["errors"].clone(),
        )
    };
    assert_eq!(restore("whole", &["--dry-run"]).0, Some(0));
    restore("whole", &[]);
    let list = sandbox.tool("find").args(["store/segments", "-size", "+900k"]).run().ok().stdout;
    let segments: Vec<&str> = list.lines().collect();
    assert!(segments.len() > 1, "{list}");
    for damage in [&|segment: &str| sandbox.remove(segment) as _, &|segment: &str| {
        let mut bytes = sandbox.read(segment);
        bytes[500_000] ^= 1;
        std::fs::write(sandbox.path(segment), bytes).expect("damages");
    }] as [&dyn Fn(&str); 2]
    {
        let kept: Vec<Vec<u8>> = segments.iter().map(|segment| sandbox.read(segment)).collect();
        segments.iter().for_each(|segment| damage(segment));
        // Damage is known from then on.
        sandbox.run(["check", "--read-data"]).ends_with(1);
        let dry = restore("out", &["--dry-run"]);
        assert_eq!((dry.0, dry.1.len()), (Some(3), 3), "{dry:?}");
        assert_eq!(dry, restore("out", &[]));
        // What is there needs nothing of the store.
        assert_eq!(restore("whole", &["--dry-run"]).0, Some(0));
        sandbox.remove("out");
        for (segment, bytes) in segments.iter().zip(kept) {
            std::fs::write(sandbox.path(segment), bytes).expect("writes");
        }
    }
}

#[test]
fn an_exclusive_lock_stops_every_command() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    let lock = std::fs::File::open(sandbox.path("store/lock")).expect("there is a lock");
    lock.lock().expect("takes it");
    for command in [
        &["backup", "source"][..],
        &["snapshots"],
        &["restore", "latest", "-t", "restored"],
        &["check"],
        &["index", "rebuild"],
    ] {
        sandbox.run(command).fails(11, &["locked", "store"]);
    }
    lock.unlock().expect("gives it back");
    lock.lock_shared().expect("takes it with others");
    sandbox.backup(["source"]);
    sandbox.run(["index", "rebuild"]).fails(11, &["locked"]);
    drop(lock);
    sandbox.run(["index", "rebuild"]).ok();
}

#[test]
fn two_backups_at_once_both_succeed() {
    let sandbox = Sandbox::with_store();
    make_source(&sandbox);
    for n in 0..10 {
        sandbox.write(&format!("other/{n}"), Dice::new(1000 + n).bytes(90_000));
    }
    copy_of_source(&sandbox, "other/same");
    for round in 1..=10 {
        let runs: Vec<_> =
            ["source", "other"].iter().map(|s| sandbox.forgekeep(["backup", s]).start()).collect();
        for run in runs {
            run.wait().ok();
        }
        assert_eq!(sandbox.snapshot_ids().len(), 2 * round);
        sandbox.write("source/changing", Dice::new(round as u64).bytes(50_000));
    }
    sandbox.assert_clean();
    sandbox.run(["index", "rebuild"]).ok();
    sandbox.assert_clean();
}

#[test]
fn an_interrupted_backup_is_resumed() {
    let sandbox = Sandbox::with_store();
    for n in 0..24 {
        sandbox.write(&format!("source/{n}"), Dice::new(n).bytes(10_000_000));
    }
    let mut run = sandbox.forgekeep(["backup", "source"]).start();
    let published = || {
        let shards = std::fs::read_dir(sandbox.path("store/segments")).expect("lists");
        shards
            .flatten()
            .map(|shard| std::fs::read_dir(shard.path()).expect("lists").count())
            .sum::<usize>()
    };
    while published() == 0 && !run.has_ended() {
        std::thread::sleep(Duration::from_millis(1));
    }
    run.interrupt();
    run.wait().ends_with(130);
    assert!(published() > 0);
    assert_eq!(sandbox.snapshot_ids(), Vec::<String>::new());
    sandbox.assert_clean();
    let summary = sandbox.backup(["source"]);
    let added = summary["data_added"].as_u64().expect("a number");
    assert!(added < 190_000_000, "the next run uses the published segments: {added}");
    sandbox.assert_clean();
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    assert_same(&sandbox, "source", "restored");
}
