//! Paths that a restore removes, keeps and leaves behind.

use crate::support::sandbox::{
    Dice, FORGEKEEP, NOBODY, Outcome, Run, Running, Sandbox, is_root, need_root,
};
use crate::support::tree::{Ignore, compare_ignoring};
use std::os::unix::process::CommandExt;

/// Restores `source` over itself and removes newer paths.
fn restore_and_delete(sandbox: &Sandbox) {
    let place = sandbox.at("latest", "source");
    sandbox.run(["restore", &place, "--target", "source", "--delete"]).ok();
}

#[test]
fn delete_never_removes_the_store() {
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a");
    sandbox.run(["init", "--store", "source/new/store"]).ok();
    sandbox.run(["backup", "source", "--store", "source/new/store"]).ok();
    sandbox.write("source/later", "later");
    let place = sandbox.at("latest", "source");
    let store = ["--store", "source/new/store"];
    let arguments = ["restore", &place, "--target", "source", "--delete"];
    sandbox.forgekeep(arguments).args(store).run().ok();
    assert!(!sandbox.has("source/later"));
    sandbox.run(["check", "--read-data", "--store", "source/new/store"]).ok();
}

#[test]
fn delete_never_removes_mounted_file_systems() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    std::fs::create_dir_all(sandbox.path("source/new/disk")).expect("a directory");
    sandbox.write("source/new/later", "later");
    let mount = ["-t", "tmpfs", "tmpfs", "source/new/disk"];
    need_root();
    sandbox.tool("mount").args(mount).run().ok();
    sandbox.write("source/new/disk/b", "b");
    let place = sandbox.at("latest", "source");
    let outcome = sandbox.run(["restore", &place, "--target", "source", "--delete"]);
    let is_kept = sandbox.has("source/new/disk/b");
    sandbox.tool("umount").args(["-l", "source/new/disk"]).run().ok();
    outcome.ok();
    assert!(is_kept && sandbox.has("source/new/disk") && !sandbox.has("source/new/later"));
}

#[test]
fn delete_keeps_caches_and_files_that_git_regenerates() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
    sandbox.write("source/cache/inner", "inner");
    sandbox.write("source/a.git/HEAD", "ref: refs/heads/main");
    sandbox.write("source/a.git/objects/pack/pack-1.idx", "");
    sandbox.write("source/a.git/refs/heads/main", "");
    sandbox.backup(["source", "--exclude-caches"]);
    let kept = ["a.git/HEAD.lock", "a.git/objects/pack/multi-pack-index", "cache/inner"];
    let gone = ["a.git/later", "yarn.lock"];
    kept.iter().chain(&gone).for_each(|name| sandbox.write(&format!("source/{name}"), "x"));
    restore_and_delete(&sandbox);
    for name in kept {
        assert!(sandbox.has(format!("source/{name}")), "{name}");
    }
    for name in gone {
        assert!(!sandbox.has(format!("source/{name}")), "{name}");
    }
}

#[test]
fn delete_removes_a_newer_repository_with_its_caches() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    sandbox.write("source/later.git/HEAD", "ref: refs/heads/main");
    sandbox.write("source/later.git/objects/pack/multi-pack-index", "");
    sandbox.write("source/later.git/refs/heads/main", "");
    restore_and_delete(&sandbox);
    assert!(!sandbox.has("source/later.git"));
}

#[test]
fn restoring_nothing_is_not_a_success() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.write("source/b", "b");
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let restore = |patterns: &[&str]| {
        let patterns = patterns.iter().flat_map(|pattern| ["--include", pattern]);
        sandbox.forgekeep(["restore", &place, "--target", "target"]).args(patterns).run()
    };
    let nothing = restore(&["nosuch"]).ends_with(3);
    assert!(nothing.stderr.contains("nothing restored"), "{}", nothing.all_output());
    assert!(!sandbox.has("target"));
    let some = restore(&["a", "nosuch"]).ok();
    assert!(some.stderr.contains("matches nosuch"), "{}", some.all_output());
    assert!(!some.stderr.contains("matches a"), "{}", some.all_output());
    assert!(sandbox.has("target/a") && !sandbox.has("target/b"));
    sandbox.run(["restore", &place, "--target", "store"]).fails(1, &["would write into the store"]);
    sandbox.run(["restore", &place, "--target", "target/a"]).fails(1, &["target/a"]);
}

#[test]
fn delete_is_refused_if_the_snapshot_lacks_unreadable_paths() {
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a");
    sandbox.write("source/secret", "secret");
    sandbox.give_to_nobody("source");
    sandbox.tool("chmod").args(["000", "source/secret"]).run().ok();
    sandbox.as_nobody(["init"]).run().ok();
    sandbox.as_nobody(["backup", "source"]).run().ends_with(3);
    sandbox.write("source/a", "changed");
    let place = sandbox.at("latest", "source");
    let arguments = ["restore", &place, "--target", "source", "--delete"];
    sandbox.as_nobody(arguments).run().fails(1, &["could not be read"]);
    assert_eq!(sandbox.read("source/a"), b"changed");
}

#[test]
fn delete_removes_only_below_backed_up_paths() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    let below = format!("target{}", sandbox.text("source"));
    sandbox.write("target/other", "other");
    sandbox.write(&format!("{below}/later"), "later");
    sandbox.run(["restore", "latest", "--target", "target", "--delete"]).ok();
    assert!(sandbox.has("target/other") && !sandbox.has(format!("{below}/later")));
}

/// Commits on a branch of `a.git` with `fast-import`.
fn commit(sandbox: &Sandbox, branch: &str, from: u64, count: u64) {
    let mut stream = String::new();
    for n in from..from + count {
        let content = format!("{branch} {n}\n").repeat(50);
        stream += &format!(
            "commit refs/heads/{branch}\ncommitter A <a@example.org> {n} +0000\ndata 1\nx\n"
        );
        if n == from && from > 0 {
            stream += &format!("from refs/heads/{branch}^0\n");
        }
        stream += &format!("M 644 inline {}.txt\ndata {}\n{content}\n", n % 7, content.len());
    }
    stream += "done\n";
    // Small packs stay packs.
    let limit = ["-c", "fastimport.unpackLimit=0", "--git-dir", "source/a.git"];
    let import = ["fast-import", "--quiet", "--done"];
    sandbox.tool("git").args(limit).args(import).input(stream).run().ok();
}

fn git(sandbox: &Sandbox, arguments: &[&str]) {
    sandbox.tool("git").args(["--git-dir", "source/a.git"]).args(arguments).run().ok();
}

#[test]
fn delete_replaces_a_source_directory_that_became_a_file() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a/1", "1");
    sandbox.write("source/b", "now a file");
    sandbox.run(["backup", "source/a", "source/b"]).ok();
    std::fs::remove_file(sandbox.path("source/b")).expect("removes");
    sandbox.write("source/b/2", "2");
    let restore = ["restore", "latest", "--target", "/", "--delete"];
    let dry = sandbox.run([&restore[..], &["--dry-run"]].concat()).ok();
    assert!(dry.stdout.contains("1 path to be deleted"), "{}", dry.all_output());
    let done = sandbox.run(restore).ok();
    assert!(done.stdout.contains("; 1 path deleted"), "{}", done.all_output());
    assert_eq!(sandbox.read("source/b"), b"now a file");
}

#[test]
fn delete_replaces_a_git_repository_by_a_file() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a.git", "a file");
    sandbox.run(["backup", "source"]).ok();
    std::fs::remove_file(sandbox.path("source/a.git")).expect("removes");
    let init = ["init", "--quiet", "--bare", "--initial-branch=kept", "source/a.git"];
    sandbox.tool("git").args(init).run().ok();
    commit(&sandbox, "kept", 0, 3);
    git(&sandbox, &["commit-graph", "write", "--reachable"]);
    git(&sandbox, &["multi-pack-index", "write"]);
    sandbox.run(["restore", "latest", "--target", "/", "--delete"]).ok();
    assert_eq!(sandbox.read("source/a.git"), b"a file");
}

#[test]
fn a_fork_whose_pool_lost_commits_loses_its_commit_graph() {
    let sandbox = Sandbox::with_store();
    let git = |arguments: &[&str]| sandbox.tool("git").args(arguments).run().ok();
    git(&["init", "--quiet", "--bare", "--initial-branch=kept", "source/a.git"]);
    commit(&sandbox, "kept", 0, 3);
    git(&["clone", "--quiet", "--mirror", "--shared", "source/a.git", "source/fork.git"]);
    sandbox.run(["backup", "source"]).ok();
    commit(&sandbox, "kept", 3, 3);
    git(&["--git-dir", "source/a.git", "repack", "-a", "-d", "-q"]);
    git(&["--git-dir", "source/fork.git", "fetch", "--quiet"]);
    git(&["--git-dir", "source/fork.git", "commit-graph", "write", "--reachable"]);
    assert!(sandbox.has("source/fork.git/objects/info/commit-graph"));
    let restore = ["restore", "latest", "--target", "/", "--delete"];
    let planned = sandbox.run([&restore[..], &["--dry-run"]].concat()).ok().stdout;
    let done = sandbox.run(restore).ok().stdout;
    let count = |text: &str, end: &str| {
        let (before, _) = text.split_once(end).unwrap_or_else(|| panic!("{end} in {text}"));
        before.rsplit("; ").next().map(str::to_owned)
    };
    assert_eq!(count(&planned, " to be deleted"), count(&done, " deleted"));
    assert!(!sandbox.has("source/fork.git/objects/info/commit-graph"));
    git(&["--git-dir", "source/fork.git", "fsck", "--strict"]);
}

/// Ways in which git stores the objects of a repository.
const LAYOUTS: [&[&[&str]]; 6] = [
    &[&["commit-graph", "write", "--reachable", "--split=no-merge", "--changed-paths"]],
    &[&["multi-pack-index", "write", "--bitmap"], &["commit-graph", "write", "--reachable"]],
    &[&["repack", "-d", "-q", "--geometric=2", "--write-midx"]],
    &[&["repack", "-a", "-d", "-q", "--write-bitmap-index"], &["multi-pack-index", "write"]],
    &[&["repack", "--cruft", "--cruft-expiration=never", "-d", "-q"]],
    &[&["gc", "-q", "--prune=now"], &["commit-graph", "write", "--reachable", "--split=replace"]],
];

#[test]
fn a_repository_restored_over_a_newer_one_is_whole() {
    for (old, old_layout) in LAYOUTS.iter().enumerate() {
        let sandbox = Sandbox::with_store();
        let init = ["init", "--quiet", "--bare", "--initial-branch=kept", "source/a.git"];
        sandbox.tool("git").args(init).run().ok();
        git(&sandbox, &["config", "core.logAllRefUpdates", "false"]);
        for n in 0..3 {
            commit(&sandbox, "kept", 10 * n, 10);
        }
        commit(&sandbox, "dropped", 0, 5);
        old_layout.iter().for_each(|step| git(&sandbox, step));
        sandbox.backup(["source"]);
        sandbox.tool("cp").args(["-a", "source", "before"]).run().ok();
        for (new, new_layout) in LAYOUTS.iter().enumerate() {
            for delete in [false, true] {
                let what = format!("{old} over {new}, delete {delete}");
                sandbox.remove("source");
                sandbox.tool("cp").args(["-a", "before", "source"]).run().ok();
                for n in 3..5 {
                    commit(&sandbox, "kept", 10 * n, 10);
                }
                commit(&sandbox, "later", 0, 5);
                git(&sandbox, &["branch", "-q", "-D", "dropped"]);
                new_layout.iter().for_each(|step| git(&sandbox, step));
                let place = sandbox.at("latest", "source");
                let arguments = ["restore", &place, "--target", "source"];
                let options: &[&str] = if delete { &["--delete"] } else { &[] };
                let planned =
                    sandbox.forgekeep(arguments).args(options).args(["-n", "--json"]).run();
                let done = sandbox.forgekeep(arguments).args(options).args(["--json"]).run();
                let (planned, done) = (planned.ok().json(), done.ok().json());
                let (planned, done) = (planned.last().expect("a summary"), done.last());
                for field in ["files_restored", "files_deleted", "files_unchanged", "dirs"] {
                    assert_eq!(planned[field], done.expect("a summary")[field], "{what}: {field}");
                }
                for check in [
                    &["fsck", "--strict", "--full", "--no-progress"][..],
                    &["multi-pack-index", "verify", "--no-progress"],
                    &["commit-graph", "verify", "--no-progress"],
                    &["rev-list", "--all", "--objects", "--use-bitmap-index", "--count"],
                ] {
                    let git = sandbox.tool("git").args(["--git-dir", "source/a.git"]);
                    let checked = git.args(check).run();
                    assert_eq!(checked.code(), Some(0), "{what}: {}", checked.all_output());
                    let warns = ["warning", "error"].iter().any(|w| checked.stderr.contains(w));
                    assert!(!warns, "{what}: {}", checked.all_output());
                }
            }
        }
    }
}

/// Turns a run into one by a user without privileges.
fn as_nobody(mut run: Run) -> Run {
    if is_root() {
        run.command().uid(NOBODY).gid(NOBODY);
    }
    run
}

/// Creates a tree of directories and files that their owner may not write.
fn write_protected(sandbox: &Sandbox) {
    sandbox.write("source/dir/inner/file", "content");
    sandbox.write("source/dir/other", "other");
    sandbox.tool("ln").args(["source/dir/other", "source/dir/another"]).run().ok();
    sandbox.tool("mkfifo").args(["source/dir/fifo"]).run().ok();
    sandbox.tool("setfattr").args(["-n", "user.a", "-v", "x", "source/dir/other"]).run();
    sandbox.tool("chmod").args(["400", "source/dir/other"]).run().ok();
    sandbox.tool("chmod").args(["555", "source/dir/inner", "source/dir"]).run().ok();
    sandbox.give_to_nobody("source");
    sandbox.as_nobody(["init"]).run().ok();
    sandbox.as_nobody(["backup", "source"]).run().ok();
}

fn assert_same(sandbox: &Sandbox, restored: &str) {
    let ignore = Ignore { top_directory: true, ..Ignore::default() };
    let differences = compare_ignoring(&sandbox.path("source"), &sandbox.path(restored), ignore);
    assert_eq!(differences, Vec::<String>::new());
}

#[test]
fn an_owner_restores_into_read_only_directories() {
    let sandbox = Sandbox::new();
    write_protected(&sandbox);
    let place = sandbox.at("latest", "source");
    let restore = || sandbox.as_nobody(["restore", &place, "--target", "target", "--delete"]);
    restore().run().ok();
    assert_same(&sandbox, "target");
    let change = |script: &str| as_nobody(sandbox.tool("sh")).args(["-c", script]).run().ok();
    let writable = "chmod u+w target/dir target/dir/inner target/dir/other";
    let protected = "chmod 555 target/dir/inner target/dir && chmod 400 target/dir/other";
    for script in [
        "rm target/dir/inner/file",
        "rm target/dir/fifo target/dir/another",
        "rm -r target/dir/inner",
        "mkdir -p target/dir/extra/in && touch target/dir/extra/in/x && chmod 500 target/dir/extra",
        "rm target/dir/fifo && mkdir target/dir/fifo && touch target/dir/fifo/x",
        "setfattr -x user.a target/dir/other; setfattr -n user.b -v x target/dir/other; true",
        "touch target/top && chmod 555 target",
    ] {
        change(&format!("{writable} && {script}; {protected} 2>/dev/null; true"));
        restore().run().ok();
        assert_same(&sandbox, "target");
    }
    let target = std::fs::metadata(sandbox.path("target")).expect("is there");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&target.permissions()) & 0o777, 0o555);
}

#[test]
fn a_file_with_two_names_and_a_set_id_bit_is_replaced_once() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/program", "#!/bin/sh");
    sandbox.tool("chmod").args(["4755", "source/program"]).run().ok();
    sandbox.tool("ln").args(["source/program", "source/other"]).run().ok();
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rwX", "store"]).run().ok();
    sandbox.give_to_nobody(".");
    let place = sandbox.at("latest", "source");
    let restore = || sandbox.as_nobody(["restore", &place, "--target", "target"]).run().ok();
    restore();
    let inode = || sandbox.tool("stat").args(["-c", "%i %z", "target/program"]).run().ok().stdout;
    let before = inode();
    let printed = restore().stdout;
    assert_eq!(inode(), before, "{printed}");
}

#[test]
fn set_id_bits_are_dropped_if_the_owner_cannot_be_set() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/program", "#!/bin/sh");
    sandbox.tool("chmod").args(["6755", "source/program"]).run().ok();
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rwX", "store"]).run().ok();
    let place = sandbox.at("latest", "source");
    for _ in 0..2 {
        sandbox.as_nobody(["restore", &place, "--target", "target"]).run().ok();
        let mode = sandbox.tool("stat").args(["-c", "%a", "target/program"]).run().ok();
        assert_eq!(mode.stdout.trim(), "755");
    }
    // Root finds the wrong owner and corrects both.
    sandbox.run(["restore", &place, "--target", "target"]).ok();
    assert_same(&sandbox, "target");
}

#[test]
fn content_is_restored_if_metadata_and_links_are_refused() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.write("source/b", "b");
    sandbox.write("source/other/c", "c");
    sandbox.tool("ln").args(["source/b", "source/other/b"]).run().ok();
    sandbox.tool("ln").args(["source/b", "source/other/b-again"]).run().ok();
    let large = "x".repeat(20_000);
    let set = ["-n", "user.large", "-v", &large, "source/a"];
    let is_held = sandbox.tool("setfattr").args(set).run().code() == Some(0);
    sandbox.backup(["source"]);
    std::fs::create_dir_all(sandbox.path("disk")).expect("a directory");
    sandbox.tool("truncate").args(["-s", "20M", "image"]).run().ok();
    sandbox.tool("mkfs.ext4").args(["-q", "-O", "^ea_inode", "image"]).run().ok();
    let mount = ["-o", "loop", "image", "disk"];
    need_root();
    sandbox.tool("mount").args(mount).run().ok();
    std::fs::create_dir_all(sandbox.path("disk/to/other")).expect("a directory");
    // A separate file system: names on both sides cannot share a file.
    let mount = ["-t", "tmpfs", "tmpfs", "disk/to/other"];
    sandbox.tool("mount").args(mount).run().ok();
    let place = sandbox.at("latest", "source");
    let restored = sandbox.run(["restore", &place, "--target", "disk/to"]);
    let again = sandbox.run(["restore", &place, "--target", "disk/to"]);
    let read = |name: &str| std::fs::read(sandbox.path(name)).unwrap_or_default();
    let found = ["a", "b", "other/b", "other/b-again"].map(|name| read(&format!("disk/to/{name}")));
    sandbox.tool("umount").args(["-R", "disk"]).run().ok();
    assert_eq!(found, [b"a", b"b", b"b", b"b"], "{}", restored.all_output());
    for run in [restored, again] {
        assert!(run.stderr.contains("a copy instead of a hard link"), "{}", run.all_output());
        if is_held {
            assert!(run.stderr.contains("user.large: too large"), "{}", run.all_output());
        }
        run.ends_with(if is_held { 3 } else { 0 });
    }
}

#[test]
fn a_killed_restore_does_not_harm_a_concurrent_one() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(7);
    for n in 0..12 {
        sandbox.write(&format!("source/{}/{n}", n % 3), dice.bytes(1_000_000));
    }
    for n in 0..200 {
        sandbox.write(&format!("source/small/{n}"), dice.bytes(500));
    }
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    for round in 0..8 {
        let start = || sandbox.forgekeep(["restore", &place, "--target", "target"]).start();
        let wait = |millis| std::thread::sleep(std::time::Duration::from_millis(millis));
        let mut runs = [start(), start()];
        wait(dice.below(150));
        runs[round % 2].kill();
        let [first, second] = runs.map(Running::wait);
        let survivor = if round % 2 == 0 { second } else { first };
        survivor.ok();
        let found = sandbox.tool("diff").args(["-r", "source", "target"]).run();
        let found = found.stdout.lines().filter(|line| !line.contains(".forgekeep-unfinished-"));
        assert_eq!(found.collect::<Vec<_>>(), Vec::<&str>::new());
        // The next restore removes the file that the killed one left.
        sandbox.run(["restore", &place, "--target", "target"]).ok();
        assert_same(&sandbox, "target");
        sandbox.remove("target");
    }
}

#[test]
fn restored_files_stay_unchanged_for_the_next_backup() {
    let sandbox = Sandbox::with_store();
    for n in 0..50 {
        sandbox.write(&format!("source/{}/{n}", n % 3), format!("{n}").repeat(100));
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    sandbox.backup(["source"]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let place = sandbox.at("latest", "source");
    sandbox.run(["restore", &place, "--target", "source", "--delete"]).ok();
    let summary = sandbox.backup(["source"]);
    assert_eq!((&summary["files_changed"], &summary["files_new"]), (&0.into(), &0.into()));
}

/// Runs a restore in which system calls fail, each given as `call:error`.
fn restore_with_failing(sandbox: &Sandbox, place: &str, fault: &str) -> Outcome {
    let inject = format!("inject={fault}");
    let trace = format!("trace={}", fault.split(':').next().expect("a call"));
    let strace = ["-f", "-q", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let arguments = [FORGEKEEP, "restore", place, "--target", "target"];
    sandbox.tool("strace").args(strace).args(arguments).run()
}

#[test]
fn set_ids_go_where_a_file_system_ignores_owners() {
    need_root();
    let sandbox = Sandbox::with_store();
    // Another file of the same owner comes first.
    for (name, mode) in [("a", "644"), ("tool", "6755")] {
        let path = format!("source/{name}");
        sandbox.write(&path, "x");
        sandbox.tool("chown").args(["daemon:games", &path]).run().ok();
        sandbox.tool("chmod").args([mode, &path]).run().ok();
    }
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let done = restore_with_failing(&sandbox, &place, "fchownat:retval=0").ends_with(3);
    let printed = done.all_output();
    assert!(printed.contains("could not set the owner of 2 paths"), "{printed}");
    let found = sandbox.tool("stat").args(["-c", "%u:%g %a", "target/tool"]).run().ok().stdout;
    assert_eq!(found.trim(), "0:0 755");
}

#[test]
fn failed_metadata_and_link_calls_do_not_lose_content() {
    need_root();
    let sandbox = Sandbox::with_store();
    for n in 0..4 {
        sandbox.write(&format!("source/dir/{n}"), format!("{n}").repeat(1000));
    }
    sandbox.tool("ln").args(["source/dir/1", "source/dir/link"]).run().ok();
    sandbox.tool("ln").args(["-s", "1", "source/dir/symlink"]).run().ok();
    sandbox.tool("chmod").args(["640", "source/dir/0"]).run().ok();
    let set = ["-n", "user.a", "-v", "x", "source/dir/2"];
    sandbox.tool("setfattr").args(set).run().ok();
    sandbox.give_to_nobody("source");
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let mut faults = Vec::new();
    for error in ["EPERM", "EACCES", "EIO", "ENOSPC", "EINVAL", "EOPNOTSUPP", "EROFS"] {
        for call in ["fchmod", "utimensat"] {
            faults.push((format!("{call}:error={error}"), 3));
        }
        // Root may set attributes wherever the file system supports them.
        let has_none = error == "EOPNOTSUPP";
        faults.push((format!("fsetxattr:error={error}"), if has_none { 0 } else { 3 }));
        faults.push((format!("fchownat:error={error}"), 3));
    }
    for error in ["EPERM", "EMLINK", "EXDEV", "EOPNOTSUPP"] {
        faults.push((format!("linkat:error={error}"), 0));
    }
    for (fault, code) in faults {
        let run = restore_with_failing(&sandbox, &place, &fault).ends_with(code);
        let found = sandbox.tool("diff").args(["-r", "source", "target"]).run();
        assert_eq!(found.stdout, "", "{fault}: {}", run.all_output());
        let left = sandbox.tool("find").args(["target", "-name", ".forgekeep*"]).run().ok();
        assert_eq!(left.stdout, "", "{fault}: {}", run.all_output());
        // Without further faults, the rest is completed.
        sandbox.run(["restore", &place, "--target", "target"]).ok();
        assert_same(&sandbox, "target");
        sandbox.remove("target");
    }
}

#[test]
fn undeletable_paths_are_reported() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/f", "1");
    sandbox.backup(["source"]);
    sandbox.write("source/extra", "2");
    sandbox.write("source/dir/extra", "3");
    let immutable =
        |flag: &str| sandbox.tool("chattr").args([flag, "source/extra", "source/dir"]).run().ok();
    immutable("+i");
    let place = sandbox.at("latest", "source");
    let run = sandbox.run(["restore", &place, "--target", "source", "--delete"]);
    immutable("-i");
    let printed = run.ends_with(3).all_output();
    assert!(printed.contains("source/extra") && printed.contains("source/dir"), "{printed}");
}

#[test]
fn a_target_gets_the_metadata_of_its_own_directory() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/f", "1");
    sandbox.write("other/g", "2");
    let set_mode = |mode: &str, name: &str| {
        sandbox.tool("chmod").args([mode, name]).run().ok();
    };
    let mode = |name: &str| sandbox.tool("stat").args(["-c", "%a", name]).run().ok().stdout;
    set_mode("750", "source");
    sandbox.backup(["source"]);
    set_mode("777", "source");
    std::fs::create_dir_all(sandbox.path("empty")).expect("a directory");
    set_mode("755", "other");
    for (target, wanted, dirs) in
        [("source", "750", 1), ("empty", "750", 1), ("new", "750", 1), ("other", "755", 0)]
    {
        let place = sandbox.at("latest", "source");
        let arguments = ["restore", &place, "--target", target, "--json", "-v"];
        let planned = sandbox.forgekeep(arguments).args(["--dry-run"]).run().ok().json();
        let done = sandbox.run(arguments).ok();
        assert_eq!(mode(target).trim(), wanted, "{target}");
        for summary in [planned.last(), done.json().last()] {
            assert_eq!(summary.expect("a summary")["dirs"], dirs, "{target}");
        }
        let is_kept = done.all_output().contains("keeping its owner and mode");
        assert_eq!(is_kept, target == "other", "{}", done.all_output());
    }
    // The directory of one file is not that of the snapshot.
    let place = sandbox.at("latest", "source/f");
    sandbox.run(["restore", &place, "--target", "one"]).ok();
    assert_eq!(mode("one"), mode("other"));
}

#[test]
fn names_of_one_file_stay_so_if_one_is_read_again() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(1);
    let rows: String =
        (0..20_000).map(|_| format!("INSERT INTO t VALUES ({});\n", dice.below(1 << 40))).collect();
    sandbox.write("source/kept/dump", &rows);
    std::fs::create_dir_all(sandbox.path("source/moved")).expect("makes");
    sandbox.tool("ln").args(["source/kept/dump", "source/moved/dump"]).run().ok();
    sandbox.backup(["source"]);
    // Its extents become slices of older chunks.
    for at in [100_000, 200_000] {
        let file = std::fs::File::options().write(true).open(sandbox.path("source/kept/dump"));
        let file = file.expect("opens");
        std::os::unix::fs::FileExt::write_all_at(&file, b"INSERT INTO t VALUES (7);", at)
            .expect("writes");
        sandbox.backup(["source"]);
    }
    std::fs::rename(sandbox.path("source/moved"), sandbox.path("source/new")).expect("moves");
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    sandbox.run(["restore", &place, "--target", "out"]).ok();
    for name in ["kept", "new"] {
        let file = std::fs::metadata(sandbox.path(format!("out/{name}/dump"))).expect("is there");
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&file), 2, "{name}");
    }
    assert_eq!(sandbox.read("out/new/dump"), sandbox.read("source/new/dump"));
}

#[test]
fn times_that_look_limited_or_rounded_are_set() {
    let sandbox = Sandbox::with_store();
    let wanted = [("a", "@-2"), ("b", "@3000000000"), ("c", "@1577836800.123456789")];
    let found = [("a", "@0"), ("b", "@2147483647"), ("c", "@1577836800.123456700")];
    for (dir, times) in [("source", wanted), ("target", found)] {
        for (name, time) in times {
            sandbox.write(&format!("{dir}/{name}"), name);
            sandbox.tool("touch").args(["-d", time, &format!("{dir}/{name}")]).run().ok();
        }
    }
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    sandbox.run(["restore", &place, "--target", "target"]).ok();
    let times = |dir: &str| {
        let times = ["a", "b", "c"].map(|name| format!("{dir}/{name}"));
        sandbox.tool("stat").args(["-c", "%.9Y"]).args(times).run().ok().stdout
    };
    assert_eq!(times("target"), times("source"));
}

#[test]
fn times_that_the_file_system_cannot_store_are_reported() {
    let sandbox = Sandbox::with_store();
    for (name, time) in [("late", "2100-01-01"), ("usual", "2000-01-01"), ("early", "1960-01-01")] {
        let name = format!("source/{name}");
        sandbox.write(&name, "1");
        sandbox.tool("touch").args(["-d", time, &name]).run().ok();
    }
    sandbox.backup(["source"]);
    std::fs::create_dir_all(sandbox.path("disk")).expect("a directory");
    sandbox.tool("truncate").args(["-s", "20M", "image"]).run().ok();
    // Inodes of this size have signed seconds of 32 bits.
    sandbox.tool("mkfs.ext4").args(["-q", "-I", "128", "image"]).run().ok();
    let mount = ["-o", "loop", "image", "disk"];
    need_root();
    sandbox.tool("mount").args(mount).run().ok();
    let place = sandbox.at("latest", "source");
    let restored = sandbox.run(["restore", &place, "--target", "disk/to"]);
    sandbox.tool("umount").args(["disk"]).run().ok();
    let printed = restored.ends_with(3).all_output();
    assert!(printed.contains("disk/to/late: time: this file system cannot store"), "{printed}");
    assert!(!printed.contains("usual") && !printed.contains("early"), "{printed}");
}

#[test]
fn newer_files_that_hide_restored_references_are_reported() {
    let sandbox = Sandbox::with_store();
    let init = ["init", "--quiet", "--bare", "--initial-branch=kept", "source/a.git"];
    sandbox.tool("git").args(init).run().ok();
    commit(&sandbox, "kept", 0, 3);
    commit(&sandbox, "same", 0, 3);
    git(&sandbox, &["pack-refs", "--all"]);
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let restore = ["restore", &place, "--target", "source"];
    assert!(!sandbox.run(restore).ok().all_output().contains("warning"));
    commit(&sandbox, "kept", 3, 3);
    let printed = sandbox.run(restore).ok().all_output();
    assert!(printed.contains("a.git: reference refs/heads/kept has a newer value"), "{printed}");
    assert!(
        !sandbox.forgekeep(restore).args(["--delete"]).run().ok().all_output().contains("warning")
    );
    let count = ["--git-dir", "source/a.git", "rev-list", "--count", "kept"];
    assert_eq!(sandbox.tool("git").args(count).run().ok().stdout.trim(), "3");
}

#[test]
fn a_path_that_is_or_has_a_symbolic_link_names_where_it_leads() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/disk/etc/secrets", "secret");
    sandbox.tool("ln").args(["-s", "../source/disk/etc", "source/etc"]).run().ok();
    sandbox.backup(["source"]);
    let (link, leads_to) = (sandbox.at("latest", "source/etc"), "source/disk/etc");
    let restored = sandbox.run(["restore", &link, "--target", "restored"]).ok();
    assert!(restored.stderr.contains("only the link is restored"), "{}", restored.all_output());
    assert!(restored.stderr.contains(leads_to), "{}", restored.all_output());
    for command in [&["restore", "--target", "restored"][..], &["dump"], &["ls"]] {
        let below = format!("{link}/secrets");
        let run = sandbox.forgekeep(command).args([&below]).run();
        run.fails(1, &["is a symbolic link there", "ask for", "source/disk/etc/secrets"]);
    }
}

/// Some file systems write a file when it is closed.
#[test]
fn an_error_of_closing_a_file_is_reported() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "content");
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let target = sandbox.path("").canonicalize().expect("is there").join("target/file");
    let paths = ["-P", target.to_str().expect("readable")];
    let strace = ["-f", "-q", "-o", "/dev/null", "-e", "trace=close"];
    let inject = ["-e", "inject=close:error=EDQUOT:when=1"];
    let restore = [FORGEKEEP, "restore", &place, "--target", "target"];
    let run = sandbox.tool("strace").args(strace).args(paths).args(inject).args(restore).run();
    run.fails(1, &["target/file", "quota exceeded"]);
    assert!(!sandbox.has("target/file"));
    sandbox.run(["restore", &place, "--target", "target"]).ok();
    assert_same(&sandbox, "target");
}

#[test]
fn files_with_names_outside_of_the_target_stay_unchanged() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "content");
    for name in ["source/b", "source/c"] {
        sandbox.tool("ln").args(["source/a", name]).run().ok();
    }
    sandbox.tool("chmod").args(["640", "source/a"]).run().ok();
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let same = |a: &str, b: &str| sandbox.tool("test").args([a, "-ef", b]).run().code() == Some(0);
    let state = || sandbox.tool("stat").args(["-c", "%a %h %Z", "outside"]).run().ok().stdout;
    // With other metadata, with that of the snapshot, and with as many names as in the snapshot.
    for (number, names) in [vec!["a"], vec!["b"], vec!["a", "b"], vec!["a", "c"]].iter().enumerate()
    {
        for is_same in [false, true] {
            let target = format!("target-{number}-{is_same}");
            sandbox.run(["restore", &place, "--target", &target]).ok();
            sandbox.tool("sh").args(["-c", &format!("rm {target}/* outside")]).run();
            sandbox.tool("cp").args(["-p", "source/a", "outside"]).run().ok();
            if !is_same {
                sandbox.tool("chmod").args(["600", "outside"]).run().ok();
            }
            for name in names {
                let name = format!("{target}/{name}");
                sandbox.tool("ln").args(["outside", &name]).run().ok();
            }
            let before = state();
            sandbox.run(["restore", &place, "--target", &target]).ok();
            let path = |name: &str| format!("{target}/{name}");
            assert_same(&sandbox, &target);
            assert!(same(&path("a"), &path("b")) && same(&path("a"), &path("c")), "{target}");
            assert!(!same(&path("a"), "outside"), "{target}");
            let mode = |state: &str| state.split(' ').next().expect("a mode").to_owned();
            assert_eq!(mode(&state()), mode(&before), "{target}");
        }
    }
}

#[test]
fn a_blocked_name_does_not_lose_the_other_hard_links() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "precious");
    sandbox.tool("mkfifo").args(["source/p"]).run().ok();
    for (first, other) in [("a", "b"), ("a", "c"), ("p", "q"), ("p", "r")] {
        let names = [format!("source/{first}"), format!("source/{other}")];
        sandbox.tool("ln").args(names).run().ok();
    }
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let same = |a: &str, b: &str| sandbox.tool("test").args([a, "-ef", b]).run().code() == Some(0);
    for blocked in ["a", "b", "c", "p", "q"] {
        sandbox.write(&format!("target/{blocked}/inside"), "in the way");
        let arguments = ["restore", &place, "--target", "target", "--json"];
        let planned = sandbox.forgekeep(arguments).args(["-n"]).run().ends_with(3).json();
        let run = sandbox.run(arguments).ends_with(3);
        let printed = run.all_output();
        for field in ["files_restored", "others", "errors"] {
            let (planned, done) = (planned.last().expect("one"), run.json());
            let done = done.last().expect("a summary");
            assert_eq!(planned[field], done[field], "{blocked}: {field}: {printed}");
        }
        assert_eq!(
            printed.matches("\"message_type\":\"error\"").count(),
            1,
            "{blocked}: {printed}"
        );
        for names in [["a", "b", "c"], ["p", "q", "r"]] {
            let given: Vec<String> = names
                .iter()
                .filter(|name| **name != blocked)
                .map(|name| format!("target/{name}"))
                .collect();
            assert!(given.iter().all(|name| same(&given[0], name)), "{blocked}: {printed}");
            let is_file = names[0] == "a";
            assert!(!is_file || sandbox.read(&given[0]) == b"precious", "{blocked}: {printed}");
        }
        sandbox.remove("target");
    }
}

#[test]
fn the_objects_of_a_running_push_are_not_deleted() {
    let sandbox = Sandbox::with_store();
    for (name, content) in [
        ("HEAD", "ref: refs/heads/main"),
        ("refs/heads/main", ""),
        ("objects/info/x", ""),
        ("objects/tmp_objdir-incoming-Ab12/pack/pack-1.pack", "x"),
        ("objects/tmp_objdir-incoming-Ab12/aa/bb", "x"),
        ("objects/incoming-Ab12/pack/tmp_pack_1", "x"),
    ] {
        sandbox.write(&format!("source/r.git/{name}"), content);
    }
    sandbox.backup(["source"]);
    restore_and_delete(&sandbox);
    for kept in ["tmp_objdir-incoming-Ab12/pack/pack-1.pack", "tmp_objdir-incoming-Ab12/aa/bb"] {
        assert!(sandbox.has(format!("source/r.git/objects/{kept}")), "{kept}");
    }
    assert!(sandbox.has("source/r.git/objects/incoming-Ab12/pack/tmp_pack_1"));
}

#[test]
fn a_private_directory_stays_private_during_a_restore() {
    let sandbox = Sandbox::with_store();
    for n in 0..12 {
        sandbox.write(&format!("source/{n}"), Dice::new(n).bytes(2_000_000));
    }
    sandbox.tool("chmod").args(["750", "source"]).run().ok();
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let mode = || sandbox.tool("stat").args(["-c", "%a", "target"]).run().stdout;
    let mut run = sandbox.forgekeep(["restore", &place, "--target", "target"]).start();
    while !sandbox.has("target") && !run.has_ended() {
        std::hint::spin_loop();
    }
    let first = mode();
    run.kill();
    run.wait();
    assert!(["700", "750"].contains(&first.trim()), "{first}");
    // The next run knows that the directory was made for this.
    sandbox.run(["restore", &place, "--target", "target"]).ok();
    assert_eq!(mode().trim(), "750");
    let left = sandbox.tool("find").args(["target", "-name", ".forgekeep*"]).run().ok();
    assert_eq!(left.stdout, "");
}

#[test]
fn mounted_files_and_directories_are_not_deleted() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/f", "1");
    sandbox.backup(["source"]);
    sandbox.write("elsewhere/file", "kept");
    sandbox.write("source/file", "");
    std::fs::create_dir_all(sandbox.path("source/dir")).expect("a directory");
    let mount = |from: &str, to: &str| sandbox.tool("mount").args(["--bind", from, to]).run().ok();
    mount("elsewhere/file", "source/file");
    mount("elsewhere", "source/dir");
    let place = sandbox.at("latest", "source");
    let restore = ["restore", &place, "--target", "source", "--delete"];
    let planned = sandbox.forgekeep(restore).args(["--dry-run"]).run();
    let done = sandbox.run(restore);
    sandbox.tool("umount").args(["-l", "source/file", "source/dir"]).run().ok();
    assert!(!planned.ok().all_output().contains("would delete"));
    done.ok();
    assert_eq!(sandbox.read("elsewhere/file"), b"kept");
}

#[test]
fn a_dry_run_of_another_user_promises_only_what_the_restore_does() {
    need_root();
    let sandbox = Sandbox::with_store();
    for name in ["a", "b", "dir/own", "dir/set-id", "new/file"] {
        sandbox.write(&format!("source/{name}"), name);
    }
    sandbox.tool("ln").args(["-s", "a", "source/link"]).run().ok();
    sandbox.tool("chmod").args(["6755", "source/dir/set-id"]).run().ok();
    sandbox.tool("chown").args(["-R", "65534:65534", "source/dir/own"]).run().ok();
    sandbox.tool("mkdir").args(["-m", "2775", "source/group"]).run().ok();
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rwX", "store"]).run().ok();
    let place = sandbox.at("latest", "source");
    let changes = [
        "",
        "chmod 600 target/dir/own; rm target/b; rm -r target/new",
        "rm -r target/group; chgrp 12345 target; chmod g+s target",
        "chmod 2770 target/dir; chgrp 12345 target/dir; rm target/dir/own",
        "chown 0:0 target/a; chmod 644 target/a",
        "chown 0:0 target/a; chmod 604 target/a",
        "ln -sfn b target/link; touch target/dir/extra",
    ];
    for change in changes {
        sandbox.tool("sh").args(["-c", change]).run();
        let restore = |more: &[&str]| {
            let all = ["restore", &place, "--target", "target", "--json"];
            let outcome = sandbox.as_nobody(all.iter().chain(more)).run();
            let mut summary = outcome.json().pop().expect("a summary");
            let done = summary.as_object_mut().expect("an object");
            // A restore does not count what it sets.
            for name in
                ["owners_to_set", "modes_to_set", "xattrs_to_set", "seconds_elapsed", "dry_run"]
            {
                done.remove(name);
            }
            (outcome.code(), summary)
        };
        let (_, planned) = restore(&["--dry-run"]);
        let (_, done) = restore(&[]);
        assert_eq!(planned, done, "{change}");
    }
    let again = sandbox.as_nobody(["restore", &place, "--target", "target", "--dry-run"]);
    let output = again.run().all_output();
    assert!(!output.contains("to be set"), "{output}");
}

#[test]
fn root_without_all_rights_loses_owners_with_an_error() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.tool("chown").args(["1000", "source/a"]).run().ok();
    sandbox.tool("mknod").args(["source/node", "c", "1", "3"]).run().ok();
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let weaker: [&[&str]; 2] =
        [&["unshare", "-r"], &["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]];
    for (number, weaker) in weaker.into_iter().enumerate() {
        let target = format!("to-{number}");
        let done = [&["--dry-run"][..], &[]].map(|more| {
            let run = sandbox.tool(weaker[0]).args(&weaker[1..]).args([FORGEKEEP, "restore"]);
            let run = run.args([&place, "--target", &target, "--json"]).args(more);
            let outcome = run.run().ends_with(3);
            assert!(!outcome.stderr.contains("as root"), "{}", outcome.all_output());
            let summary = outcome.json().pop().expect("a summary");
            ["owner_denied", "errors", "others"].map(|name| summary[name].clone())
        });
        assert_eq!(done[0], [1, 1, 0].map(serde_json::Value::from), "{weaker:?}");
        assert_eq!(done[0], done[1], "{weaker:?}");
    }
}

#[test]
fn an_owner_restores_into_a_directory_that_it_may_not_enter() {
    need_root();
    let sandbox = Sandbox::with_store();
    for name in ["source/a", "source/dir/b"] {
        sandbox.write(name, name);
    }
    sandbox.tool("chmod").args(["600", "source"]).run().ok();
    sandbox.give_to_nobody(".");
    sandbox.backup(["source"]);
    sandbox.give_to_nobody("store");
    let place = sandbox.at("latest", "source");
    for target in ["source", "new"] {
        if target == "source" {
            sandbox.remove("source/dir/b");
        }
        sandbox.as_nobody(["restore", &place, "--target", target]).run().ok();
        assert!(sandbox.has(format!("{target}/dir/b")));
        let found = sandbox.tool("stat").args(["-c", "%a", target]).run().ok();
        assert_eq!(found.stdout.trim(), "600", "{target}");
        // Nothing is left to do.
        sandbox.as_nobody(["restore", &place, "--target", target]).run().ok();
    }
}

#[test]
fn a_dry_run_counts_files_that_closed_directories_hide() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/d/f", "1");
    sandbox.tool("chmod").args(["600", "source/d"]).run().ok();
    sandbox.give_to_nobody(".");
    sandbox.backup(["source"]);
    sandbox.give_to_nobody("store");
    let place = sandbox.at("latest", "source");
    let run = sandbox.as_nobody(["restore", &place, "--target", "source", "-n", "--json"]);
    let outcome = run.run().ok();
    assert!(outcome.all_output().contains("comparing the files in it"), "{}", outcome.all_output());
    let summary = outcome.json().pop().expect("a summary");
    let counts =
        ["files_restored", "files_unchanged", "files_hidden"].map(|name| summary[name].clone());
    assert_eq!(counts, [0, 0, 1].map(serde_json::Value::from));
}

#[test]
fn a_dry_run_fails_where_the_restore_fails() {
    need_root();
    let sandbox = Sandbox::with_store();
    for name in ["a", "dir/file", "dir/inner/file", "other/file"] {
        sandbox.write(&format!("source/{name}"), name);
    }
    sandbox.tool("ln").args(["-s", "a", "source/link"]).run().ok();
    sandbox.tool("ln").args(["source/a", "source/other/name"]).run().ok();
    sandbox.tool("mknod").args(["source/node", "c", "1", "3"]).run().ok();
    sandbox.give_to_nobody("source");
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rwX", "store"]).run().ok();
    let place = sandbox.at("latest", "source");
    let own = "mkdir -p own; chown 65534:65534 own; T=own/target; ";
    let full = "cp -a source own/target; ";
    let read_only = "mount --bind own own; mount -o remount,bind,ro own";
    let cases: [(&str, &[&str]); 25] = [
        ("mkdir target", &[]),
        ("", &[]),
        (": >target", &[]),
        ("ln -s nowhere target", &[]),
        ("mkdir -m 700 target", &[]),
        ("mkdir -m 711 target", &[]),
        ("mkdir -m 555 own/target", &[]),
        ("mkdir own/target; chown 65534 own/target; chmod 0 own/target", &[]),
        ("FULL rm own/target/dir/file; chown 0 own/target/dir", &[]),
        ("FULL rm own/target/link; chown 0 own/target", &[]),
        ("FULL echo new >own/target/dir/file; chown 0 own/target/dir own/target/dir/file", &[]),
        ("FULL rm -r own/target/dir; chown 0 own/target", &[]),
        ("FULL rm -r own/target/dir; : >own/target/dir; chown 0 own/target", &[]),
        ("FULL chown 0 own/target/dir; chmod 700 own/target/dir", &[]),
        ("FULL rm own/target/other/name; chown 0 own/target/other", &[]),
        ("FULL touch -d 2001-01-01 own/target/a; chown 0 own/target/a", &[]),
        ("FULL : >own/target/dir/new; chown 0 own/target/dir", &["--delete"]),
        (
            "FULL mkdir -p own/target/new/in; : >own/target/new/in/f; chown 0 own/target/new/in",
            &["--delete"],
        ),
        ("FULL mkdir -pm 700 own/target/new; chown 0 own/target/new", &["--delete"]),
        ("FULL chown -R 0 own/target; echo b >own/target/a; chmod 1777 own/target", &[]),
        ("FULL READ_ONLY", &[]),
        ("FULL rm own/target/dir/file; READ_ONLY", &[]),
        ("FULL touch -d 2001-01-01 own/target/a; chmod 600 own/target/a; READ_ONLY", &[]),
        ("FULL : >own/target/dir/new; READ_ONLY", &["--delete"]),
        ("READ_ONLY", &[]),
    ];
    let (mut codes, mut wrong) = (std::collections::BTreeSet::new(), Vec::new());
    for (case, more) in cases {
        let script = case.replace("FULL", full).replace("READ_ONLY", read_only);
        sandbox.tool("sh").args(["-ec", &format!("{own}{script}")]).run().ok();
        let target =
            if case.contains("own") || case.contains("READ") { "own/target" } else { "target" };
        let restore = |dry: &[&str]| {
            let all = ["restore", &place, "--target", target, "--json"];
            let outcome = sandbox.as_nobody(all.iter().chain(more).chain(dry)).run();
            let mut lines = outcome.json();
            for line in &mut lines {
                let line = line.as_object_mut().expect("an object");
                let of_restore = [
                    "owners_to_set",
                    "modes_to_set",
                    "xattrs_to_set",
                    "seconds_elapsed",
                    "dry_run",
                ];
                of_restore.iter().for_each(|name| drop(line.remove(*name)));
            }
            lines.retain(|line| !line["message"].as_str().is_some_and(|m| m.starts_with("would ")));
            let mut lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
            lines.sort();
            (outcome.code(), lines)
        };
        let (planned, done) = (restore(&["--dry-run"]), restore(&[]));
        let clear = "mountpoint -q own && umount -l own; rm -rf own target";
        sandbox.tool("sh").args(["-c", clear]).run().ok();
        if planned != done {
            wrong.push(format!("{case}:\n{planned:?}\n{done:?}"));
        }
        codes.extend(planned.0);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(codes.iter().eq(&[0, 1, 3]), "{codes:?}");
}

#[test]
fn a_dry_run_notes_that_the_disk_is_too_small() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/large", Dice::new(1).bytes(3 << 20));
    sandbox.backup(["source"]);
    std::fs::create_dir(sandbox.path("disk")).expect("a directory");
    sandbox.tool("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs", "disk"]).run().ok();
    let run = sandbox.run(["restore", "latest", "--target", "disk/new", "--dry-run"]);
    sandbox.tool("umount").args(["-l", "disk"]).run().ok();
    let output = run.ok().all_output();
    assert!(output.contains("1048576 bytes are free"), "{output}");
}

#[test]
fn a_file_that_its_owner_may_not_read_is_written_once() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/secret", "written only");
    sandbox.write("source/large", "written only".repeat(10_000));
    sandbox.tool("chmod").args(["200", "source/secret", "source/large"]).run().ok();
    sandbox.give_to_nobody("source");
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rwX", "store"]).run().ok();
    let place = sandbox.at("latest", "source");
    let restore = |more: &str| {
        let all = ["restore", &place, "--target", "target", "--json"];
        let more = [more].into_iter().filter(|more| !more.is_empty());
        let summary = sandbox.as_nobody(all.into_iter().chain(more)).run().ok().json();
        summary.last().expect("a summary")["files_restored"].clone()
    };
    let look = || sandbox.tool("stat").args(["-c", "%i %Z", "target/secret"]).run().ok().stdout;
    assert_eq!(restore(""), 2);
    let before = look();
    assert_eq!((restore("--dry-run"), restore("")), (0.into(), 0.into()));
    assert_eq!(look(), before);
    sandbox.write("target/secret", "overwritten!");
    assert_eq!((restore("--dry-run"), restore("")), (1.into(), 1.into()));
    assert_eq!(sandbox.read("target/secret"), b"written only");
}

#[test]
fn paths_that_are_not_deleted_do_not_count_as_not_restored() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    sandbox.write("source/extra", "x");
    sandbox.tool("chattr").args(["+i", "source/extra"]).run().ok();
    let place = sandbox.at("latest", "source");
    let outcome = sandbox.run(["restore", &place, "--target", "source", "--delete"]);
    sandbox.tool("chattr").args(["-i", "source/extra"]).run().ok();
    let output = outcome.ends_with(3).all_output();
    assert!(output.contains("1 path not deleted"), "{output}");
    assert!(!output.contains("not restored"), "{output}");
}

#[test]
fn a_dry_run_reports_directories_in_the_way_as_the_restore_does() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/f", "1");
    sandbox.give_to_nobody("source");
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rwX", "store"]).run().ok();
    sandbox.tool("chmod").args(["777", "."]).run().ok();
    let place = sandbox.at("latest", "source");
    // Preparation of the target, option, exit code of both.
    let cases = [
        ("chown 65534 target; chattr +i target/f/in/x", "--delete", 3),
        ("chown -R 65534 target; chmod 640 target/f", "--delete", 0),
        ("chown -R 65534 target; chmod 0 target/f/in", "--delete", 0),
        ("chown -R 65534 target; chmod 0 target/f", "--delete", 0),
        ("chown -R 65534 target; chmod 0 target/f", "--quiet", 3),
        ("chown -R 65534 target; chmod 640 target/f", "--quiet", 3),
    ];
    for (case, option, code) in cases {
        sandbox.write("target/f/in/x", "2");
        sandbox.tool("sh").args(["-ec", case]).run().ok();
        let restore = ["restore", &place, "--target", "target", option];
        let planned = sandbox.as_nobody(restore.iter().chain(&["--dry-run"])).run();
        let done = sandbox.as_nobody(restore).run();
        sandbox.tool("sh").args(["-c", "chattr -Ri target; rm -rf target"]).run().ok();
        let output = format!("{case}: {} {}", planned.all_output(), done.all_output());
        assert_eq!((planned.code(), done.code()), (Some(code), Some(code)), "{output}");
        let is_reported = |outcome: &Outcome| outcome.stderr.contains("not restored: target/f: ");
        assert_eq!(is_reported(&planned), is_reported(&done), "{output}");
        let is_noted = planned.all_output().contains("keeps this dry run from");
        assert_eq!(is_noted, code == 0, "{output}");
    }
}

#[test]
fn a_fork_without_its_pool_is_reported() {
    let sandbox = Sandbox::with_store();
    let git = |arguments: &[&str]| sandbox.tool("git").args(arguments).run();
    git(&["init", "-q", "--bare", "source/pools/pool.git"]).ok();
    git(&["init", "-q", "--bare", "source/forks/fork.git"]).ok();
    sandbox.write("blob", "borrowed");
    let added = git(&["--git-dir", "source/pools/pool.git", "hash-object", "-w", "blob"]).ok();
    sandbox.write(
        "source/forks/fork.git/objects/info/alternates",
        "../../../pools/pool.git/objects\n",
    );
    sandbox.backup(["source"]);
    let is_readable = |dir: &str| {
        git(&["--git-dir", dir, "cat-file", "-e", added.stdout.trim()]).code() == Some(0)
    };
    let (fork, pool) =
        (sandbox.text("source/forks/fork.git"), sandbox.text("source/pools/pool.git"));
    for dry in ["--dry-run", "--quiet"] {
        let place = sandbox.at("latest", "source/forks/fork.git");
        let alone = sandbox.run(["restore", &place, "--target", "alone.git", dry]).ok().stderr;
        assert!(alone.contains("cannot read it without the pool"), "{dry}: {alone}");
        let both = format!("--target DIR --include {fork} --include {pool}");
        assert!(alone.contains(&both), "{dry}: {alone}");
        let include = ["--include", &fork, "--include", &pool];
        let all = ["restore", "latest", "--target", "both", dry];
        let both = sandbox.run(all.iter().chain(&include)).ok().stderr;
        assert_eq!(both, "", "{dry}");
    }
    assert!(!is_readable("alone.git"));
    assert!(is_readable(&format!("both{fork}")));
    // In place, the pool belongs where the fork looks for it.
    sandbox.remove("source/pools");
    let place = sandbox.at("latest", "source/forks/fork.git");
    let outcome = sandbox.run(["restore", &place, "--target", &fork]).ok().stderr;
    assert!(outcome.contains(&format!(":{pool} --target {pool}")), "{outcome}");
    sandbox.restore(&format!("latest:{pool}"), &pool);
    assert!(is_readable(&fork));
    let outcome = sandbox.run(["restore", &place, "--target", &fork]).ok().stderr;
    assert_eq!(outcome, "");
}

#[test]
fn a_dry_run_knows_that_root_without_fowner_may_not_set_modes() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "1");
    sandbox.write("source/own", "1");
    sandbox.tool("ln").args(["-s", "file", "source/link"]).run().ok();
    sandbox.tool("chown").args(["-h", "1234:1234", "source/file", "source/link"]).run().ok();
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    let restore = |target: &str, dry: &str| {
        let rights = ["--bounding-set=-fowner", "--inh-caps=-fowner", "--", FORGEKEEP];
        let restore = ["restore", &place, "--target", target, "--json", dry];
        let run = sandbox.tool("setpriv").args(rights).args(restore).run();
        let mut errors: Vec<String> =
            run.json().iter().map(|line| line["item"].to_string()).collect();
        errors.sort();
        (run.code(), errors)
    };
    let planned = restore("target", "--dry-run");
    assert_eq!(planned.0, Some(3), "{planned:?}");
    assert_eq!(planned, restore("target", "--quiet"));
    // Files that are there, of root.
    sandbox.tool("chown").args(["-hR", "0:0", "target"]).run().ok();
    let planned = restore("target", "--dry-run");
    assert_eq!(planned, restore("target", "--quiet"));
}

#[test]
fn each_path_in_a_deleted_directory_is_counted() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/kept", "kept");
    sandbox.backup(["source"]);
    for at in 0..5 {
        sandbox.write(&format!("source/x/y/{at}"), "new");
    }
    sandbox.write("source/lone", "new");
    let place = sandbox.at("latest", "source");
    let restore = ["restore", &place, "-t", "source", "--delete"];
    let dry = sandbox.forgekeep(restore).args(["--dry-run"]).run().ok();
    assert!(dry.stdout.contains("8 paths to be deleted"), "{}", dry.all_output());
    assert!(dry.all_output().contains("source/x (7 paths)"), "{}", dry.all_output());
    let done = sandbox.forgekeep(restore).run().ok();
    assert!(done.stdout.contains("8 paths deleted"), "{}", done.all_output());
}
