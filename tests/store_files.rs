//! The files of a store itself: their permissions, file systems without locks or syncs, and
//! unexpected objects among them.

use crate::support::sandbox::{Dice, FORGEKEEP, NOBODY, Outcome, Run, Sandbox, need_root};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Returns everything below a directory of the sandbox, with permission bits.
fn modes(sandbox: &Sandbox, dir: &str) -> Vec<(PathBuf, bool, u32)> {
    let list =
        sandbox.tool("find").args([dir, "-mindepth", "1", "-printf", "%y %m %p\n"]).run().ok();
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().expect("three words");
        let (kind, mode, path) = (word(), word(), word());
        (path.into(), kind == "d", u32::from_str_radix(mode, 8).expect("octal"))
    };
    list.stdout.lines().map(line).collect()
}

/// Runs the program with this umask.
fn with_umask(sandbox: &Sandbox, umask: &str, arguments: &[&str]) -> Outcome {
    let script = format!("umask {umask}; exec \"$@\"");
    sandbox.tool("sh").args(["-c", &script, "sh", FORGEKEEP]).args(arguments).run().ok()
}

#[test]
fn a_path_too_long_for_the_index_is_refused_at_once() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "read");
    sandbox.backup(["source"]);
    // A path in the sandbox that makes an absolute one of this length.
    let of = |len: usize| {
        let rest = len - sandbox.text("x").len() + "x".len();
        let last = if rest.is_multiple_of(2) { "ee" } else { "e" };
        format!("{}{last}", "d/".repeat((rest - last.len()) / 2))
    };
    for (len, is_refused) in [(487, false), (488, true)] {
        let place = of(len);
        std::fs::create_dir_all(sandbox.path(&place).parent().expect("a parent")).expect("makes");
        let init = sandbox.run(["init", "--store", &place]);
        if is_refused {
            init.fails(1, &["the path of the store is too long", "488 bytes", "487"]);
            assert!(!sandbox.has(&place));
        } else {
            init.ok();
            sandbox.run(["backup", "--store", &place, "source"]).ok();
        }
    }
    // A store that was moved there is still read, and a link does not make it shorter.
    let place = of(700);
    std::fs::create_dir_all(sandbox.path(&place).parent().expect("a parent")).expect("makes");
    std::fs::rename(sandbox.path("store"), sandbox.path(&place)).expect("moves");
    symlink(sandbox.path(&place), sandbox.path("short")).expect("links");
    for store in [&place[..], "short"] {
        sandbox.run(["backup", "--store", store, "source"]).fails(1, &["is too long"]);
        sandbox.run(["check", "--store", store, "--read-data"]).ok();
        sandbox.run(["dump", "--store", store, &sandbox.at("latest", "source/file")]).ok();
    }
}

#[test]
fn only_the_owner_can_read_a_store_under_any_umask() {
    for umask in ["000", "022", "077"] {
        let sandbox = Sandbox::new();
        sandbox.write("source/secret", "secret");
        sandbox.write("source/large", Dice::new(1).bytes(200_000));
        // A mount point.
        std::fs::create_dir(sandbox.path("store")).expect("makes");
        std::fs::set_permissions(sandbox.path("store"), PermissionsExt::from_mode(0o755))
            .expect("opens it");
        with_umask(&sandbox, umask, &["init"]);
        with_umask(&sandbox, umask, &["backup", "source"]);
        sandbox.remove("store/index.sqlite");
        with_umask(&sandbox, umask, &["check", "--read-data"]);
        for (path, is_dir, mode) in modes(&sandbox, "store") {
            let wanted = if is_dir { 0o700 } else { 0o600 };
            assert_eq!(mode, wanted, "{} is {mode:o}, umask {umask}", path.display());
        }
        let mode = std::fs::metadata(sandbox.path("store")).expect("is there").mode();
        assert_eq!(mode & 0o777, 0o755, "the directory of somebody else is left alone");
    }
}

/// The log of the index has the permissions of the index.
#[test]
fn the_log_of_a_killed_backup_is_private() {
    let sandbox = Sandbox::new();
    with_umask(&sandbox, "000", &["init"]);
    for n in 0..300 {
        sandbox.write(&format!("source/{n}"), Dice::new(n).bytes(100_000));
    }
    let run = sandbox.tool("sh").args(["-c", "umask 000; exec \"$@\"", "sh", FORGEKEEP]);
    let mut run = run.args(["backup", "source"]).start();
    while !sandbox.has("store/index.sqlite-wal") && !run.has_ended() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    run.kill();
    run.wait();
    let found = modes(&sandbox, "store");
    assert!(found.iter().any(|(path, ..)| path.ends_with("index.sqlite-wal")), "{found:?}");
    for (path, _, mode) in found {
        assert_eq!(mode & 0o077, 0, "{} is {mode:o}", path.display());
    }
}

/// Prepares a run of a copy of the program by a user of group `gid`.
fn as_member(sandbox: &Sandbox, gid: u32, arguments: &[&str]) -> Run {
    sandbox.as_nobody(["--version"]).run().ok();
    let ids = [format!("--reuid={NOBODY}"), format!("--regid={gid}"), "--clear-groups".into()];
    sandbox.tool("setpriv").args(ids).args([sandbox.path("program")]).args(arguments)
}

#[test]
fn only_owner_and_group_can_read_a_group_readable_store() {
    need_root();
    const MEMBERS: u32 = 4711;
    let sandbox = Sandbox::new();
    sandbox.write("source/secret", "secret");
    sandbox.write("source/large", Dice::new(1).bytes(200_000));
    with_umask(&sandbox, "077", &["init", "--group-readable"]);
    sandbox.tool("chgrp").args(["-R", "4711", "store"]).run().ok();
    with_umask(&sandbox, "077", &["backup", "source"]);
    with_umask(&sandbox, "000", &["index", "rebuild"]);
    let check = |sandbox: &Sandbox| {
        for (path, is_dir, mode) in modes(sandbox, "store") {
            let wanted = if is_dir { 0o2750 } else { 0o640 };
            assert_eq!(mode, wanted, "{} is {mode:o}", path.display());
            let group = std::fs::metadata(sandbox.path(&path)).expect("is there").gid();
            assert_eq!(group, MEMBERS, "{}", path.display());
        }
    };
    check(&sandbox);
    as_member(&sandbox, MEMBERS, &["restore", "latest", "--target", "restored"]).run().ok();
    assert_eq!(sandbox.read(format!("restored{}", sandbox.text("source/secret"))), b"secret");
    as_member(&sandbox, MEMBERS, &["check", "--read-data"]).run().ok();
    let dump = format!("latest:{}", sandbox.text("source/secret"));
    assert_ne!(as_member(&sandbox, 4712, &["dump", &dump]).run().code(), Some(0));
    assert_ne!(as_member(&sandbox, MEMBERS, &["backup", "source"]).run().code(), Some(0));
    // With the log of a killed run, which a reader cannot replay into the index.
    std::fs::write(sandbox.path("store/index.sqlite-wal"), "").expect("writes");
    std::fs::set_permissions(
        sandbox.path("store/index.sqlite-wal"),
        PermissionsExt::from_mode(0o640),
    )
    .expect("changes");
    sandbox.tool("chgrp").args(["4711", "store/index.sqlite-wal"]).run().ok();
    as_member(&sandbox, MEMBERS, &["check"]).run().ok();
    with_umask(&sandbox, "077", &["backup", "source"]);
    check(&sandbox);
}

#[test]
fn files_written_by_root_belong_to_the_owner_of_the_store() {
    let sandbox = Sandbox::new();
    sandbox.write("source/a", Dice::new(1).bytes(100_000));
    std::fs::create_dir(sandbox.path("store")).expect("makes");
    sandbox.give_to_nobody("store");
    sandbox.give_to_nobody("source");
    sandbox.run(["init"]).ok();
    sandbox.backup(["source"]);
    sandbox.as_nobody(["backup", "source"]).run().ok();
    sandbox.remove("store/tmp");
    sandbox.remove("store/lock");
    sandbox.remove("store/index.sqlite");
    sandbox.write("source/a", Dice::new(2).bytes(100_000));
    sandbox.give_to_nobody("source");
    sandbox.backup(["source"]);
    for command in [&["check", "--read-data"][..], &["backup", "source"], &["index", "rebuild"]] {
        sandbox.as_nobody(command).run().ok();
    }
}

#[test]
fn a_store_readable_by_others_causes_a_warning() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    let warns = || sandbox.run(["backup", "source"]).ok().stderr.contains("chmod -R go= store");
    assert!(!warns());
    sandbox.tool("chmod").args(["755", "store"]).run().ok();
    assert!(!warns(), "what is in it is private");
    sandbox.tool("chmod").args(["-R", "a+rX", "store"]).run().ok();
    assert!(warns());
    sandbox.tool("chmod").args(["-R", "go=", "store"]).run().ok();
    assert!(!warns());
}

/// Runs the program while system calls fail as `inject` specifies, on `paths` if there are any.
fn traced(sandbox: &Sandbox, inject: &str, paths: &[&str], arguments: &[&str]) -> Outcome {
    let inject = format!("inject={inject}");
    let mut run = sandbox.tool("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]);
    for path in paths {
        run = run.args(["-P", path]);
    }
    run.args([FORGEKEEP]).args(arguments).run()
}

#[test]
fn missing_lock_support_causes_only_a_warning() {
    for error in ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"] {
        let sandbox = Sandbox::with_store();
        sandbox.write("source/a", "a");
        let inject = format!("flock:error={error}");
        let run = |arguments: &[&str]| {
            let outcome = traced(&sandbox, &inject, &[], arguments).ok();
            assert!(outcome.stderr.contains("cannot lock"), "{}", outcome.all_output());
        };
        run(&["backup", "source"]);
        run(&["backup", "source"]);
        run(&["restore", "latest", "--target", "restored"]);
        assert_eq!(sandbox.read(format!("restored{}", sandbox.text("source/a"))), b"a");
        run(&["check", "--read-data"]);
        run(&["index", "rebuild"]);
        sandbox.assert_clean();
    }
}

#[test]
fn directories_without_sync_support_cause_one_warning() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", Dice::new(1).bytes(100_000));
    let shards: Vec<String> = (0..=255).map(|n| format!("store/segments/{n:02x}")).collect();
    let mut paths: Vec<&str> = shards.iter().map(String::as_str).collect();
    paths.extend(["store", "store/snapshots"]);
    for (n, error) in ["EINVAL", "EBADF", "EOPNOTSUPP", "ENOSYS"].into_iter().enumerate() {
        sandbox.write("source/a", Dice::new(10 + n as u64).bytes(100_000));
        let inject = format!("fsync:error={error}");
        let outcome = traced(&sandbox, &inject, &paths, &["backup", "source"]).ok();
        assert_eq!(
            outcome.stderr.matches("cannot sync directories").count(),
            1,
            "{}",
            outcome.all_output()
        );
        sandbox.assert_clean();
    }
    // A disk that fails is another matter: the file has its name, for how long nobody knows.
    let snapshots = ["store/snapshots"];
    let outcome = traced(&sandbox, "fsync:error=EIO", &snapshots, &["backup", "source"]);
    outcome.fails(1, &["snapshots/", "may not survive a power loss", "`forgekeep snapshots`"]);
    // The snapshot of a failed backup does not count.
    assert_eq!(sandbox.snapshot_ids().len(), 4);
    sandbox.write("source/a", Dice::new(2).bytes(100_000));
    let outcome = traced(&sandbox, "fsync:error=ENOSPC", &paths, &["backup", "source"]);
    outcome.fails(1, &["segments/", "may not survive a power loss"]);
    assert_eq!(sandbox.snapshot_ids().len(), 4);
    sandbox.backup(["source"]);
    sandbox.assert_clean();
}

#[test]
fn unexpected_objects_in_tmp_are_kept_with_a_warning() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.write("elsewhere", "kept");
    sandbox.write("store/tmp/directory/file", "kept");
    sandbox.write("store/tmp/0123456789abcdef", "half");
    sandbox.write("store/tmp/notes.txt", "kept");
    sandbox.tool("mkfifo").args(["store/tmp/pipe"]).run().ok();
    symlink(sandbox.path("elsewhere"), sandbox.path("store/tmp/link")).expect("links");
    let run = Run::limited(FORGEKEEP).within(sandbox.root()).args(["backup", "source"]).run().ok();
    let warned: Vec<&str> = run.stderr.lines().filter(|line| line.contains("tmp/")).collect();
    assert_eq!(warned.len(), 1, "{}", run.all_output());
    assert!(warned[0].contains("(and 3 more)"), "{}", run.all_output());
    assert!(!sandbox.has("store/tmp/0123456789abcdef"));
    for kept in ["elsewhere", "store/tmp/directory/file", "store/tmp/pipe", "store/tmp/link"] {
        assert!(sandbox.has(kept), "{kept}");
    }
    assert!(sandbox.has("store/tmp/notes.txt"));
    // Nor does a file that nobody may remove.
    sandbox.write("store/tmp/fedcba9876543210", "half");
    let chattr =
        |flag| sandbox.tool("chattr").args([flag, "store/tmp/fedcba9876543210"]).run().ok();
    chattr("+i");
    let run = sandbox.run(["backup", "source"]);
    chattr("-i");
    assert!(run.ok().stderr.contains("(and 4 more)"));
    sandbox.assert_clean();
}

/// A file system with blocks of 1 KiB in a file. Root mounts and unmounts it.
struct SmallBlocks<'a>(&'a Sandbox);

impl<'a> SmallBlocks<'a> {
    fn mount(sandbox: &'a Sandbox) -> SmallBlocks<'a> {
        need_root();
        let image = std::fs::File::create(sandbox.path("image")).expect("creates");
        image.set_len(12 << 20).expect("grows");
        std::fs::create_dir(sandbox.path("disk")).expect("makes");
        let make = ["-q", "-b", "1024", "-m", "0", "image"];
        sandbox.tool("mkfs.ext4").args(make).run().ok();
        sandbox.tool("mount").args(["-o", "loop", "image", "disk"]).run().ok();
        SmallBlocks(sandbox)
    }
}

impl Drop for SmallBlocks<'_> {
    fn drop(&mut self) {
        self.0.tool("umount").args(["-l", "disk"]).run();
    }
}

#[test]
fn a_full_disk_of_small_blocks_does_not_crash_a_backup() {
    let sandbox = Sandbox::new();
    let _disk = SmallBlocks::mount(&sandbox);
    let run =
        |arguments: &[&str]| sandbox.forgekeep(arguments).args(["--store", "disk/store"]).run();
    run(&["init"]).ok();
    sandbox.write("source/a", Dice::new(1).bytes(100_000));
    run(&["backup", "source"]).ok();
    let fill = sandbox.path("disk/fill");
    sandbox.tool("dd").args(["if=/dev/zero", "of=disk/fill", "bs=1024"]).run();
    let mut filled = std::fs::metadata(&fill).expect("is there").len();
    let (mut full, mut done) = (0, 0);
    for round in 0..40 {
        sandbox.write("source/new", Dice::new(round).bytes(900));
        let outcome = run(&["backup", "source"]);
        match outcome.code() {
            Some(0) => done += 1,
            _ => {
                outcome.fails(1, &["make space"]);
                full += 1;
            }
        }
        run(&["check"]).ok();
        // A run on a full disk leaves two segments of two blocks, which the next run uses.
        filled -= 6 << 10;
        let file = std::fs::File::options().write(true).open(&fill).expect("opens");
        file.set_len(filled).expect("makes space");
    }
    assert!(full > 3 && done > 3, "{full} full, {done} done");
    // An index with a log, as from another disk.
    std::fs::remove_file(&fill).expect("makes space");
    sandbox.run(["init"]).ok();
    sandbox.backup(["source"]);
    sandbox.tool("cp").args(["-a", "store", "disk/copy"]).run().ok();
    let header = sandbox.read("disk/copy/index.sqlite");
    assert_eq!(header[18..20], [2, 2], "it has a log");
    sandbox.run(["--store", "disk/copy", "backup", "source"]).ok();
    let header = sandbox.read("disk/copy/index.sqlite");
    assert_eq!(header[18..20], [1, 1], "it has none");
}

/// Returns these system calls of a run on the store, in order, with their paths.
fn calls(sandbox: &Sandbox, arguments: &[&str]) -> Vec<String> {
    let trace = "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat";
    let run = sandbox.tool("strace").args(["-f", "-qq", "-y", "-o", "trace", "-e", trace]);
    run.args([FORGEKEEP]).args(arguments).run().ok();
    let text = String::from_utf8_lossy(&sandbox.read("trace")).into_owned();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_new_index_is_durable_before_it_replaces_the_old_one() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    let calls = calls(&sandbox, &["index", "rebuild"]);
    let at = |what: &str, from: usize, words: &[&str]| {
        let is =
            |call: &String| call.contains(what) && words.iter().all(|word| call.contains(word));
        let found = calls.iter().skip(from).position(is);
        from + found.unwrap_or_else(|| panic!("no {what} {words:?} from {from}: {calls:#?}"))
    };
    let synced = at("fsync(", 0, &["/store/index.sqlite.new>"]);
    let removed = at("unlink", synced, &["index.sqlite\""]);
    let settled = at("fsync(", removed, &["/store>"]);
    let renamed = at("rename", settled, &["index.sqlite.new"]);
    at("fsync(", renamed, &["/store>"]);
}

/// A writer was killed between renaming a segment and syncing its directory.
#[test]
fn segments_of_a_killed_run_are_made_durable_before_use() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", Dice::new(1).bytes(100_000));
    sandbox.backup(["source"]);
    let index = sandbox.read("store/index.sqlite");
    sandbox.write("source/a", Dice::new(2).bytes(100_000));
    sandbox.backup(["source"]);
    // The old index: it lacks the segments of the second run.
    std::fs::write(sandbox.path("store/index.sqlite"), index).expect("writes");
    let before: Vec<PathBuf> = modes(&sandbox, "store/segments")
        .into_iter()
        .filter(|(_, is_dir, _)| !is_dir)
        .map(|(path, ..)| path)
        .collect();
    let calls = calls(&sandbox, &["snapshots"]);
    let synced = before.iter().filter(|path| {
        let dir = path.parent().unwrap_or(Path::new("")).display().to_string();
        calls.iter().any(|call| call.contains("fsync(") && call.contains(&format!("/{dir}>")))
    });
    assert_eq!(synced.count(), 2, "{calls:#?}");
}

#[test]
fn a_broken_index_is_rebuilt_automatically() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", Dice::new(1).bytes(100_000));
    sandbox.backup(["source"]);
    let whole = sandbox.read("store/index.sqlite");
    let mut odd = vec![vec![0xA5; whole.len()], whole[..whole.len() / 2].to_vec(), Vec::new()];
    odd.push([&whole[..100], &vec![0xA5; whole.len() - 100]].concat());
    odd.push([&whole[..4096], &vec![0xA5; whole.len() - 4096]].concat());
    for (number, bytes) in odd.iter().enumerate() {
        std::fs::write(sandbox.path("store/index.sqlite"), bytes).expect("writes");
        sandbox.write("source/a", Dice::new(10 + number as u64).bytes(100_000));
        // The second backup must work if the first found the damage while it ran.
        if sandbox.run(["backup", "source"]).code() != Some(0) {
            sandbox.backup(["source"]);
        }
        sandbox.assert_clean();
    }
}

#[test]
fn damage_found_by_a_backup_is_reported_in_one_line() {
    let sandbox = Sandbox::with_store();
    for n in 0..40 {
        sandbox.write(&format!("source/{n}"), Dice::new(n).bytes(60_000));
    }
    // A file written within the clock tick of a backup counts as changed.
    std::thread::sleep(std::time::Duration::from_millis(50));
    sandbox.backup(["source"]);
    let list = sandbox.tool("find").args(["store/segments", "-size", "+1000k"]).run().ok();
    std::fs::remove_file(sandbox.path(list.stdout.trim())).expect("removes");
    let run = sandbox.forgekeep(["backup", "source"]).run().ok();
    let lines: Vec<&str> =
        run.stderr.lines().filter(|line| line.contains("stored again")).collect();
    assert_eq!(lines.len(), 1, "{}", run.all_output());
    for word in ["40 unchanged files", "1 older snapshot ", "forgekeep check"] {
        assert!(lines[0].contains(word), "{word}: {}", run.all_output());
    }
    assert!(run.stderr.lines().count() < 6, "{}", run.all_output());
    // All of it was stored again from the source.
    sandbox.assert_clean();
    let summary = sandbox.backup(["source"]);
    assert!(summary["damage"].is_null(), "{summary}");
}

#[test]
fn records_that_are_not_files_are_reported() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "old");
    sandbox.backup(["source"]);
    let old = sandbox.snapshot_ids();
    sandbox.write("source/a", "newer");
    sandbox.backup(["source"]);
    let ids = sandbox.snapshot_ids();
    let new = ids.iter().find(|id| !old.contains(id)).expect("a second snapshot");
    let record = sandbox.path(format!("store/snapshots/{new}"));
    std::fs::rename(&record, sandbox.path("record")).expect("moves");
    symlink(sandbox.path("record"), &record).expect("links");
    sandbox.assert_clean();
    for odd in ["mkfifo", "mkdir"] {
        sandbox.remove(format!("store/snapshots/{new}"));
        sandbox.tool(odd).args([&record]).run().ok();
        let printed = sandbox.run(["check"]).ends_with(1).all_output();
        assert!(printed.contains(&format!("damaged: snapshots/{new}")), "{odd}: {printed}");
        let place = sandbox.at("latest", "source");
        sandbox.run(["restore", &place, "--target", "target"]).ends_with(3);
    }
}

#[test]
fn a_link_in_place_of_tmp_is_removed_and_not_followed() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.write("precious/0123456789abcdef", "kept");
    sandbox.remove("store/tmp");
    symlink(sandbox.path("precious"), sandbox.path("store/tmp")).expect("links");
    let printed = sandbox.run(["backup", "source"]).ok().all_output();
    assert!(printed.contains("removed a symbolic link from the store"), "{printed}");
    assert!(sandbox.has("precious/0123456789abcdef"));
    assert_eq!(sandbox.run(["backup", "source"]).ok().stderr, "");
}

#[test]
fn an_unlistable_segment_directory_loses_only_its_segments() {
    let sandbox = Sandbox::with_store();
    for n in 0..3 {
        sandbox.write(&format!("source/{n}"), Dice::new(n).bytes(1_000_000));
        sandbox.backup(["source"]);
    }
    let is_empty = |shard: &u8| {
        let dir = sandbox.path(format!("store/segments/{shard:02x}"));
        std::fs::read_dir(dir).expect("lists").next().is_none()
    };
    let shard = (0..=255).find(is_empty).expect("few segments");
    let name = format!("store/segments/{shard:02x}");
    sandbox.remove(&name);
    sandbox.write(&name, "not a directory");
    for has_index in [true, false] {
        if !has_index {
            sandbox.remove("store/index.sqlite");
        }
        let place = sandbox.at("latest", "source");
        let run = sandbox.run(["restore", &place, "--target", "target"]).ok();
        assert!(run.stderr.contains(&format!("segments/{shard:02x}")), "{}", run.all_output());
        assert_eq!(sandbox.read("target/2"), sandbox.read("source/2"));
        let printed = sandbox.run(["check"]).ends_with(1).all_output();
        assert!(printed.contains(&format!("damaged: segments/{shard:02x}")), "{printed}");
        sandbox.remove("target");
    }
    sandbox.run(["backup", "source"]).fails(1, &["segments/"]);
}

#[test]
fn unexpected_objects_at_names_of_the_index_are_removed() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    for name in ["index.sqlite-journal", "index.sqlite-wal", "index.sqlite.new", "index.sqlite"] {
        for program in ["mkfifo", "mkdir"] {
            let path = format!("store/{name}");
            if sandbox.has(&path) {
                sandbox.remove(&path);
            }
            sandbox.tool(program).args([&path]).run().ok();
            sandbox.assert_clean();
            sandbox.run(["backup", "source"]).ok();
        }
    }
}

#[test]
fn the_new_index_of_a_killed_rebuild_is_removed() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    for name in ["store/index.sqlite.new", "store/index.sqlite.new-journal"] {
        sandbox.write(name, "half an index");
    }
    sandbox.run(["snapshots"]).ok();
    assert!(sandbox.has("store/index.sqlite.new"), "a reader changed the store");
    sandbox.backup(["source"]);
    assert!(!sandbox.has("store/index.sqlite.new"));
    assert!(!sandbox.has("store/index.sqlite.new-journal"));
}

#[test]
fn init_inside_a_store_is_refused() {
    let sandbox = Sandbox::with_store();
    for place in ["store/tmp", "store/new", "store/segments/00/x"] {
        sandbox.run(["init", "--store", place]).fails(1, &["another store"]);
    }
}

#[test]
fn the_loss_of_a_whole_tree_is_counted() {
    let sandbox = Sandbox::with_store();
    for n in 0..50 {
        sandbox.write(&format!("source/{n}"), "small");
    }
    sandbox.backup(["source"]);
    sandbox.tool("find").args(["store/segments", "-type", "f", "-delete"]).run().ok();
    let printed = sandbox.run(["check"]).ends_with(1).all_output();
    assert!(
        printed.contains("lost: / (53 paths)") && printed.contains(" 53 paths lost"),
        "{printed}"
    );
}

#[test]
fn several_inits_at_the_same_moment_create_one_store() {
    let config = |id| store::config::Config::new([id; 16], chunker::Parameters::DEFAULT, 3);
    for round in 0..30 {
        let sandbox = Sandbox::new();
        let root = sandbox.path("store");
        let results: Vec<_> = std::thread::scope(|scope| {
            let init = |id| store::store::init(&root, &config(id));
            let threads: Vec<_> = (1..=3).map(|id| scope.spawn(move || init(id))).collect();
            threads.into_iter().map(|thread| thread.join().expect("ends")).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "round {round}");
        for error in results.into_iter().filter_map(Result::err) {
            assert!(matches!(error, store::Error::StoreExists(_)), "round {round}: {error}");
        }
    }
}

#[test]
fn first_backups_at_the_same_moment_share_one_new_store() {
    for _ in 0..5 {
        let sandbox = Sandbox::new();
        sandbox.write("source/a", Dice::new(1).bytes(300_000));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| sandbox.run(["backup", "--init", "source"]).ok());
            }
        });
        sandbox.run(["check", "--read-data"]).ok();
        assert_eq!(sandbox.snapshot_ids().len(), 3);
    }
}

#[test]
fn the_group_of_the_directory_can_read_a_store_in_a_mount_point() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a");
    std::fs::create_dir(sandbox.path("store")).expect("makes");
    std::fs::set_permissions(sandbox.path("store"), PermissionsExt::from_mode(0o755))
        .expect("opens it");
    sandbox.run(["init", "--group-readable"]).ok();
    sandbox.tool("chgrp").args(["-R", "1234", "store"]).run().ok();
    sandbox.backup(["source"]);
    for name in ["index.sqlite", "lock", "segments", "snapshots"] {
        let found = sandbox.path("store").join(name).metadata().expect("there");
        assert_eq!(found.gid(), 1234, "{name}");
    }
    let list = sandbox.tool("find").args(["store", "!", "-gid", "1234"]).run().ok().stdout;
    assert_eq!(list, "", "files of another group");
}

#[test]
fn a_group_that_cannot_enter_a_group_readable_store_is_reported() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("store")).expect("makes");
    std::fs::set_permissions(sandbox.path("store"), PermissionsExt::from_mode(0o700))
        .expect("closes it");
    let made = sandbox.run(["init", "--group-readable"]).ok();
    assert!(made.all_output().contains("run `chmod g+rx store`"), "{}", made.all_output());
}

#[test]
fn a_damaged_segment_that_no_snapshot_needs_is_named_and_no_alarm() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    let list = sandbox.tool("find").args(["store/segments", "-type", "f"]).run().ok().stdout;
    let one = list.lines().next().expect("a segment").to_owned();
    sandbox.tool("truncate").args(["-s", "100", &one]).run().ok();
    sandbox.run(["check"]).ends_with(1);
    sandbox.backup(["source"]);
    let output = sandbox.run(["check"]).ok().all_output();
    let name = one.trim_start_matches("store/");
    assert!(output.contains(name) && output.contains("remove this file"), "{output}");
    sandbox.remove(&one);
    let output = sandbox.run(["check", "--read-data"]).ok().all_output();
    assert!(!output.contains("is damaged"), "{output}");
    sandbox.run(["restore", "latest", "--target", "out"]).ok();
}

#[test]
fn the_next_backup_repairs_half_a_record() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    let list = sandbox.tool("find").args(["store/snapshots", "-type", "f"]).run().ok().stdout;
    let path = list.lines().next().expect("a record").to_owned();
    let whole = std::fs::read(sandbox.path(&path)).expect("reads");
    sandbox.tool("truncate").args(["-s", "-20", &path]).run().ok();
    let output = sandbox.run(["check"]).ends_with(1).all_output();
    assert!(output.contains("the next backup repairs records"), "{output}");
    sandbox.backup(["source"]);
    sandbox.run(["check"]).ok();
    assert_eq!(std::fs::read(sandbox.path(&path)).expect("reads"), whole);
}

#[test]
fn a_missing_directory_of_segments_is_reported_once() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    sandbox.tool("mv").args(["store/segments", "away"]).run().ok();
    for arguments in [&["ls", "latest"][..], &["check"], &["stats"]] {
        let output = sandbox.run(arguments).all_output();
        let lines = output.matches("cannot read segments of the store").count();
        assert!((1..=2).contains(&lines), "{lines} lines: {output}");
    }
    sandbox.run(["stats"]).ends_with(3);
}

#[test]
fn an_unreadable_record_is_not_a_missing_snapshot() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    let list = sandbox.tool("find").args(["store/snapshots", "-type", "f"]).run().ok().stdout;
    sandbox.tool("truncate").args(["-s", "0", list.trim()]).run().ok();
    let output = sandbox.run(["ls", "latest"]).ends_with(1).all_output();
    assert!(output.contains("no readable snapshot latest: 1 record cannot be read"), "{output}");
}

#[test]
fn a_limit_of_processes_is_an_error_with_a_next_step() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "o+rwX", "."]).run().ok();
    for arguments in ["snapshots", "check", "backup source", "ls latest"] {
        let words = ["--reuid", "54321", "--regid", "54321", "--clear-groups", "prlimit"];
        let run = sandbox.tool("setpriv").args(words).args(["--nproc=1", FORGEKEEP]);
        let output = run.args(arguments.split(' ')).run().ends_with(1).all_output();
        assert!(
            output.contains("cannot start a thread") && output.contains("TasksMax="),
            "{output}"
        );
    }
}

#[test]
fn a_lock_of_git_that_is_a_source_itself_is_stored() {
    let sandbox = Sandbox::with_store();
    sandbox.tool("git").args(["init", "-q", "--bare", "source/r.git"]).run().ok();
    sandbox.write("source/r.git/config.lock", "l");
    sandbox.backup(["source"]);
    assert!(!sandbox.run(["ls", "latest"]).ok().stdout.contains("config.lock"));
    sandbox.backup(["source", "source/r.git/config.lock"]);
    assert!(sandbox.run(["ls", &sandbox.newest()]).ok().stdout.contains("config.lock"));
}
