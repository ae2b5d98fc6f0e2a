//! A fault of one source path costs only that path, which is reported.

use crate::support::lease::Lease;
use crate::support::sandbox::{Dice, Outcome, Run, Sandbox, need_root};
use crate::support::stores;
use rustix::fs::XattrFlags;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};
use store::backup::{Backup, BackupOptions, Likeness, Sources};
use store::entry::Time;
use store::observe::Event;
use store::store::{Purpose, Store};

fn set_attribute(path: &Path) {
    rustix::fs::setxattr(path, "user.a", b"b", XattrFlags::empty()).expect("sets an attribute");
}

fn attribute(path: &Path) -> Option<Vec<u8>> {
    let mut value = [0; 8];
    let len = rustix::fs::getxattr(path, "user.a", &mut value[..]).ok()?;
    Some(value[..len].to_vec())
}

/// Returns the paths that a backup reported, relative to the sandbox.
fn reported(sandbox: &Sandbox, outcome: &Outcome) -> Vec<String> {
    let lines = outcome.json();
    let errors = lines.iter().filter(|line| line["message_type"] == "error");
    let root = sandbox.text("");
    let relative = |path: &str| path.strip_prefix(&root).unwrap_or(path).to_owned();
    errors.map(|line| relative(line["item"].as_str().expect("a path"))).collect()
}

/// Prepares a run of the program in which system calls fail, as the `strace` arguments specify.
fn traced(sandbox: &Sandbox, faults: &[&str], arguments: &[&str]) -> Run {
    let run = sandbox.tool("strace").args(["-f", "-qq", "-o", "/dev/null"]).args(faults);
    run.args([crate::support::sandbox::FORGEKEEP]).args(arguments)
}

/// Returns everything below a directory except directories.
fn files(dir: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).expect("lists") {
            let path = entry.expect("lists").path();
            if path.is_dir() && !path.is_symlink() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below").to_str().expect("UTF-8");
                files.insert(name.to_owned());
            }
        }
    }
    files
}

/// Creates a bare repository of user nobody, with loose objects, two packs and packed references.
fn repository(sandbox: &Sandbox) {
    let git = |arguments: &[&str]| sandbox.tool("git").args(arguments).run().ok();
    git(&["init", "--quiet", "--initial-branch=main", "work"]);
    for round in ["one", "two", "three"] {
        for n in 0..20 {
            sandbox.write(&format!("work/{round}-{n}"), format!("{round} {n}\n"));
        }
        git(&["-C", "work", "add", "."]);
        git(&["-C", "work", "commit", "--quiet", "--no-gpg-sign", "-m", round]);
        if round != "three" {
            git(&["-C", "work", "repack", "-dq"]);
            git(&["-C", "work", "pack-refs", "--all"]);
        }
    }
    fs::rename(sandbox.path("work/.git"), sandbox.path("r.git")).expect("renames");
    sandbox.give_to_nobody("r.git");
}

fn with_end(dir: &Path, end: &str) -> String {
    let mut names: Vec<String> =
        files(dir).into_iter().filter(|name| name.ends_with(end)).collect();
    names.sort();
    names.remove(0)
}

#[test]
fn unreadable_parts_of_a_git_directory_lose_only_themselves() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.as_nobody(["init"]).run().ok();
    repository(&sandbox);
    let root = sandbox.path("r.git");
    let all = files(&root);
    let is_loose = |name: &&String| name.starts_with("objects/") && name.as_bytes()[10] == b'/';
    let loose = all.iter().find(is_loose).expect("there are loose objects")[..10].to_owned();
    let (pack, index) = (with_end(&root, ".pack"), with_end(&root, ".idx"));
    let paths =
        [&loose, "hooks", "info", "refs/heads", "config", "packed-refs", "HEAD", &pack, &index];
    for (n, path) in paths.into_iter().enumerate() {
        let before = root.join(path).metadata().expect("is there").permissions();
        fs::set_permissions(root.join(path), PermissionsExt::from_mode(0o000)).expect("chmod");
        let outcome =
            sandbox.as_nobody(["backup", "--force", "--json", "r.git"]).run().ends_with(3);
        assert_eq!(reported(&sandbox, &outcome), [format!("r.git/{path}")]);
        fs::set_permissions(root.join(path), before).expect("chmod");
        let target = format!("restored-{n}");
        sandbox.restore(&sandbox.at("latest", "r.git"), &target);
        let is_below = |name: &&String| *name == path || name.starts_with(&format!("{path}/"));
        let left: BTreeSet<String> = all.iter().filter(|name| !is_below(name)).cloned().collect();
        assert_eq!(files(&sandbox.path(&target)), left, "{path}");
    }
}

#[test]
fn a_multi_pack_index_is_skipped_with_an_unreadable_pack() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.as_nobody(["init"]).run().ok();
    repository(&sandbox);
    sandbox.tool("git").args(["--git-dir", "r.git", "multi-pack-index", "write"]).run().ok();
    sandbox.give_to_nobody("r.git");
    let root = sandbox.path("r.git");
    let pack = with_end(&root, ".pack");
    fs::set_permissions(root.join(&pack), PermissionsExt::from_mode(0o000)).expect("chmod");
    sandbox.as_nobody(["backup", "r.git"]).run().ends_with(3);
    sandbox.restore(&sandbox.at("latest", "r.git"), "restored");
    let missing: Vec<String> =
        files(&root).difference(&files(&sandbox.path("restored"))).cloned().collect();
    assert_eq!(missing, ["objects/pack/multi-pack-index".to_owned(), pack]);
}

#[test]
fn an_aborted_listing_keeps_the_entries_read_so_far() {
    let sandbox = Sandbox::with_store();
    for n in 0..2000 {
        sandbox.write(&format!("source/many/a-name-so-long-that-one-call-lists-few-{n}"), "");
    }
    sandbox.write("source/other/file", "content");
    let many = sandbox.text("source/many");
    let faults = ["-P", &many, "-e", "inject=getdents64:error=EIO:when=2+"];
    for _ in 0..2 {
        let run = traced(&sandbox, &faults, &["backup", "--json", "source"]);
        assert_eq!(reported(&sandbox, &run.run().ends_with(3)), ["source/many"]);
    }
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    let found = files(&sandbox.path("restored"));
    assert!(found.contains("other/file") && (100..2000).contains(&found.len()), "{}", found.len());
    sandbox.assert_clean();
}

#[test]
fn a_listed_name_without_an_entry_is_reported() {
    reports_a_lost_file(&["-P", "lost", "-e", "inject=statx:error=ENOENT"]);
}

#[test]
fn a_file_that_exists_and_cannot_be_opened_is_reported() {
    // Its whole path shows that it exists.
    reports_a_lost_file(&["-P", "sub/lost", "-P", "lost", "-e", "inject=openat2:error=ENOENT"]);
}

#[test]
fn a_listed_name_without_an_entry_in_a_large_directory_is_reported() {
    let sandbox = Sandbox::with_store();
    for n in 0..300 {
        sandbox.write(&format!("source/sub/{n}"), "");
    }
    for name in ["lost", "000", "vanished"] {
        sandbox.write(&format!("source/sub/{name}"), "precious");
    }
    let faults = ["-P", "lost", "-P", "000", "-e", "inject=statx:error=ENOENT"];
    let run = traced(&sandbox, &faults, &["backup", "--json", "source"]).run().ends_with(3);
    let names: BTreeSet<String> = reported(&sandbox, &run).into_iter().collect();
    assert_eq!(names, ["source/sub/000", "source/sub/lost"].map(String::from).into());
    sandbox.run(["ls", &sandbox.at("latest", "source/sub/vanished")]).ok();
}

#[test]
fn a_listed_name_without_an_entry_is_not_deleted_without_a_word() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "1");
    sandbox.backup(["source"]);
    sandbox.write("source/extra", "2");
    let place = sandbox.at("latest", "source");
    let restore = ["restore", &place, "--target", "source", "--delete"];
    for dry in ["--dry-run", "--quiet"] {
        let faults = ["-P", "extra", "-e", "inject=statx:error=ENOENT"];
        let arguments: Vec<&str> = restore.iter().copied().chain([dry]).collect();
        let outcome = traced(&sandbox, &faults, &arguments).run().ends_with(3);
        assert!(outcome.stderr.contains("not deleted: source/extra: "), "{}", outcome.stderr);
    }
}

#[test]
fn a_page_that_cannot_be_read_for_a_moment_keeps_nothing_from_being_deleted_without_a_word() {
    let sandbox = Sandbox::with_store();
    for at in 0..30 {
        sandbox.write(&format!("source/{at}"), at.to_string());
    }
    sandbox.backup(["source"]);
    let segments = sandbox.tool("find").args(["store/segments", "-type", "f"]).run().ok().stdout;
    let place = sandbox.at("latest", "source");
    for at in 1..12 {
        sandbox.write("source/extra", "");
        let inject = format!("inject=pread64:error=EIO:when={at}");
        let paths = segments.lines().flat_map(|segment| ["-P", segment]);
        let faults: Vec<&str> = paths.chain(["-e", &inject]).collect();
        let restore = ["restore", &place, "--target", "source", "--delete"];
        let outcome = traced(&sandbox, &faults, &restore).run();
        match outcome.code() {
            Some(0) => assert!(!sandbox.has("source/extra"), "{at}: {}", outcome.stderr),
            code => {
                assert_eq!(code, Some(3), "{at}");
                assert!(outcome.stderr.contains("nothing was deleted"), "{at}");
            }
        }
    }
}

#[test]
fn owners_that_a_user_namespace_does_not_know_are_named_once() {
    need_root();
    let sandbox = Sandbox::with_store();
    for name in ["a", "b"] {
        sandbox.write(&format!("source/{name}"), name);
    }
    sandbox.tool("chown").args(["1234:5", "source/a"]).run().ok();
    sandbox.tool("chown").args(["1235", "source/b"]).run().ok();
    let run = |program: &str, arguments: &[&str]| {
        let all = [crate::support::sandbox::FORGEKEEP, "backup", "source"];
        let run = sandbox.tool(program).args(arguments).args(all).run().ok();
        run.stderr.matches("does not know some owners").count()
    };
    assert_eq!(run("unshare", &["-r"]), 1);
    assert_eq!(run("env", &[]), 0);
}

/// Asserts that a backup reports a file that these faults hide, and contains its neighbour.
fn reports_a_lost_file(faults: &[&str]) {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/sub/lost", "precious");
    sandbox.write("source/sub/other", "precious, too");
    let run = traced(&sandbox, faults, &["backup", "--json", "source"]).run().ends_with(3);
    assert_eq!(reported(&sandbox, &run), ["source/sub/lost"]);
    sandbox.run(["ls", &sandbox.at("latest", "source/sub/other")]).ok();
}

#[test]
fn unreadable_attributes_keep_content_and_are_retried() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "precious");
    sandbox.write("source/sub/file", "precious, too");
    set_attribute(&sandbox.path("source/file"));
    set_attribute(&sandbox.path("source/sub"));
    for call in ["fgetxattr:error=EACCES", "fgetxattr:error=EIO", "flistxattr:error=ERANGE"] {
        let inject = format!("inject={call}");
        let run = traced(&sandbox, &["-e", &inject], &["backup", "--json", "source"]);
        let outcome = run.run().ends_with(3);
        let named = reported(&sandbox, &outcome);
        assert!(named.contains(&"source/file".into()) && named.contains(&"source/sub".into()));
        let dumped = sandbox.run(["dump", &sandbox.at("latest", "source/file")]).ok();
        assert_eq!(dumped.stdout, "precious", "{call}");
    }
    // Removed after the listing: nothing is missing.
    let run = traced(&sandbox, &["-e", "inject=fgetxattr:error=ENODATA"], &["backup", "source"]);
    run.run().ok();
    // The only change is that the attributes can be read.
    sandbox.remove("store");
    sandbox.run(["init"]).ok();
    let run = traced(&sandbox, &["-e", "inject=fgetxattr:error=EIO"], &["backup", "source"]);
    run.run().ends_with(3);
    sandbox.backup(["source"]);
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    for path in ["restored/file", "restored/sub"] {
        assert_eq!(attribute(&sandbox.path(path)), Some(b"b".to_vec()), "{path}");
    }
}

#[test]
fn unreadable_attributes_of_a_parent_lose_nothing_else() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.write("hidden/mine/file", "mine");
    sandbox.write("other/file", "other");
    sandbox.give_to_nobody("hidden/mine");
    sandbox.tool("chmod").args(["711", "hidden"]).run().ok();
    set_attribute(&sandbox.path("hidden"));
    sandbox.as_nobody(["init"]).run().ok();
    for _ in 0..2 {
        let run = sandbox.as_nobody(["backup", "--json", "other", "hidden/mine"]);
        let outcome = run.run().ends_with(3);
        assert_eq!(reported(&sandbox, &outcome), ["hidden"]);
        assert_eq!(outcome.json().last().expect("a summary")["errors"], 1);
        for name in ["hidden/mine/file", "other/file"] {
            sandbox.run(["dump", &sandbox.at("latest", name)]).ok();
        }
    }
}

#[test]
fn a_leased_file_is_read_after_the_lease_ends() {
    let sandbox = Sandbox::with_store();
    let lease = Lease::hold(&sandbox, "source/leased", Some("sleep 0.3"));
    let outcome = sandbox.run(["backup", "source"]);
    lease.end(&sandbox);
    outcome.ok();
    let dumped = sandbox.run(["dump", &sandbox.at("latest", "source/leased")]).ok();
    assert_eq!(dumped.stdout, "leased");
}

#[test]
fn leased_files_of_the_store_are_waited_for() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    let snapshots = std::fs::read_dir(sandbox.path("store/snapshots")).expect("lists");
    let record = snapshots.map(|entry| entry.expect("is there").path()).next().expect("a record");
    let name = record.strip_prefix(sandbox.path("")).expect("below").to_str().expect("text");
    for name in ["store/store.json", name] {
        let lease = Lease::hold(&sandbox, name, Some("sleep 0.2"));
        sandbox.run(["restore", "latest", "--target", "restored"]).ok();
        lease.end(&sandbox);
    }
}

#[test]
fn a_signal_stops_the_wait_for_a_lease() {
    let sandbox = Sandbox::with_store();
    let lease = Lease::hold(&sandbox, "source/leased", None);
    let began = Instant::now();
    let run = sandbox.forgekeep(["backup", "source"]).start();
    std::thread::sleep(Duration::from_millis(700));
    run.interrupt();
    let outcome = run.wait();
    let elapsed = began.elapsed();
    lease.end(&sandbox);
    outcome.ends_with(130);
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
}

#[test]
fn foreign_files_beside_a_reftable_are_kept() {
    let sandbox = Sandbox::with_store();
    let git = ["init", "--quiet", "--bare", "--ref-format=reftable", "source/r.git"];
    sandbox.tool("git").args(git).run().ok();
    sandbox.write("source/r.git/reftable/notes", "kept");
    sandbox.write("source/r.git/reftable/dir/file", "kept");
    sandbox.write("source/r.git/reftable/0x1-0x2-abc.ref", "a left-over");
    sandbox.backup(["source"]);
    sandbox.restore(&sandbox.at("latest", "source"), "target");
    for name in ["notes", "dir/file", "tables.list"] {
        assert!(sandbox.has(format!("target/r.git/reftable/{name}")), "{name}");
    }
    assert!(!sandbox.has("target/r.git/reftable/0x1-0x2-abc.ref"));
}

#[test]
fn files_with_a_reported_size_of_0_are_read_completely() {
    let sandbox = Sandbox::with_store();
    // A short one, and one that is cut into chunks on kernels that have it.
    for path in ["/proc/version", "/proc/kallsyms"] {
        let Ok(content) = fs::read(path) else { continue };
        assert_eq!(Path::new(path).metadata().expect("is there").len(), 0);
        sandbox.backup([path]);
        let dumped = sandbox.run(["dump", &format!("latest:{path}"), "--path", path]).ok();
        assert!(!content.is_empty() && dumped.stdout.as_bytes() == content, "{path}");
    }
    sandbox.assert_clean();
}

#[test]
fn a_directory_of_one_pass_wins_over_a_file_of_another() {
    let sandbox = Sandbox::new();
    stores::init_small(&sandbox.path("store"));
    sandbox.write("source/a/b/inside", "inside");
    sandbox.write("source/c", "was a file first");
    let listener = Arc::new(stores::Listener::default());
    let store = Store::open(&sandbox.path("store"), Purpose::Write, listener.clone());
    let store = store.expect("opens");
    let source = sandbox.path("source");
    let options = in_the_past();
    let mut backup = Backup::begin(&store, &options, Likeness::Paths(Vec::new())).expect("begins");
    let sources = Sources { paths: vec![source], ..Sources::default() };
    backup.paths(&sources).expect("reads");
    sandbox.remove("source/a");
    sandbox.write("source/a", "a file by now");
    sandbox.remove("source/c");
    sandbox.write("source/c/inside", "a directory by now");
    backup.paths(&sources).expect("reads");
    let report = backup.finish(None).expect("finishes");
    assert_eq!(report.unreadable_count, 1);
    let events = std::mem::take(&mut *listener.events.lock().expect("no panic"));
    let path = sandbox.path("source/a");
    let is_it = |event: &Event| matches!(event, Event::Unreadable { path: of, .. } if *of == path);
    assert!(events.iter().any(is_it), "{events:?}");
    drop(store);
    sandbox.assert_clean();
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    assert_eq!(sandbox.read("restored/a/b/inside"), b"inside");
    assert_eq!(sandbox.read("restored/c/inside"), b"a directory by now");
}

#[test]
fn a_dropped_pass_leaves_those_before() {
    let sandbox = Sandbox::new();
    stores::init_small(&sandbox.path("store"));
    sandbox.write("one/file", "of the first pass");
    for n in 100..199 {
        sandbox.write(&format!("two/d/{n}"), "old");
    }
    sandbox.write("new/file", "new");
    let listener = Arc::new(stores::Listener::default());
    let store = Store::open(&sandbox.path("store"), Purpose::Write, listener).expect("opens");
    let options = in_the_past();
    let mut backup = Backup::begin(&store, &options, Likeness::Paths(Vec::new())).expect("begins");
    let sources = |name| Sources { paths: vec![sandbox.path(name)], ..Sources::default() };
    backup.paths(&sources("one")).expect("reads");
    // This pass reads a directory again, and merges its tree with that of the first.
    let lease = Lease::hold(&sandbox, "two/d/100", Some("mv two/d old; mv new two/d"));
    backup.paths(&sources("two")).expect("reads");
    lease.end(&sandbox);
    backup.drop_pass();
    sandbox.remove("two/d");
    sandbox.write("two/other", "by now");
    backup.paths(&sources("two")).expect("reads");
    backup.finish(None).expect("finishes");
    drop(store);
    sandbox.restore(&sandbox.at("latest", "one"), "restored/one");
    sandbox.restore(&sandbox.at("latest", "two"), "restored/two");
    let restored = files(&sandbox.path("restored"));
    assert_eq!(restored, ["one/file", "two/other"].map(str::to_owned).into());
}

/// Options for snapshots that `latest` finds.
fn in_the_past() -> BackupOptions {
    let mut options = stores::backup_options();
    options.about.clock = || Time { seconds: 1_700_000_000, nanoseconds: 0 };
    options
}

#[test]
fn a_vanished_path_does_not_stop_the_others() {
    let sandbox = Sandbox::new();
    stores::init_small(&sandbox.path("store"));
    sandbox.write("there/file", "content");
    let store = stores::open(&sandbox.path("store"), Purpose::Write);
    let (there, gone) = (sandbox.path("there"), sandbox.path("gone"));
    let report = stores::back_up(&store, &[&gone, &there], &in_the_past());
    assert_eq!(report.expect("backs up").unreadable_count, 1);
    let report = stores::back_up(&store, &[&gone], &in_the_past());
    assert!(matches!(report, Err(store::Error::Source { .. })));
    drop(store);
    let dumped = sandbox.run(["dump", &sandbox.at("latest", "there/file")]).ok();
    assert_eq!(dumped.stdout, "content");
}

/// A file system in memory.
struct Mounted<'a>(&'a Sandbox, &'static str);

impl Mounted<'_> {
    fn new<'a>(sandbox: &'a Sandbox, at: &'static str) -> Mounted<'a> {
        need_root();
        fs::create_dir_all(sandbox.path(at)).expect("a directory");
        sandbox.tool("mount").args(["-t", "tmpfs", "tmpfs", at]).run().ok();
        Mounted(sandbox, at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        self.0.tool("umount").args(["-l", self.1]).run();
    }
}

/// Creates `s/a/d` with 99 files, whose replacement is in `new`. While a backup of `source` waits in
/// front of one of the files, runs the shell command `change`. Returns the files in its copy.
fn replaced_meanwhile(source: &str, replacement: &str, change: &str) -> BTreeSet<String> {
    let sandbox = Sandbox::with_store();
    for n in 100..199 {
        sandbox.write(&format!("s/a/d/{n}"), "old");
        sandbox.write(&format!("new/{replacement}/{}", n + 50), "new");
    }
    sandbox.write(&format!("new/{replacement}/sub/file"), "new");
    let lease = Lease::hold(&sandbox, "s/a/d/100", Some(change));
    let outcome = sandbox.run(["backup", "--json", source]);
    lease.end(&sandbox);
    sandbox.restore(&sandbox.at("latest", source), "copy");
    assert_counts(&sandbox, &outcome.ok().json(), source);
    files(&sandbox.path("copy"))
}

/// Panics unless the summary of a backup counts each file and directory of `copy` once, and their
/// times are from before the copy was made.
fn assert_counts(sandbox: &Sandbox, lines: &[Value], source: &str) {
    let summary = lines.last().expect("a summary");
    let sum = |of: &str| {
        let count = |sort| summary[format!("{of}_{sort}")].as_u64().expect("a number");
        ["new", "changed", "unmodified"].map(count).iter().sum::<u64>()
    };
    let all = |sort| {
        let found = sandbox.tool("find").args(["copy", "-type", sort, "-printf", "%P\n"]).run();
        found.ok().stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (found, dirs) = (all("f").len() as u64, all("d"));
    assert_eq!([sum("files"), sum("dirs")], [found, dirs.len() as u64]);
    assert_eq!(summary["total_files_processed"], found);
    for dir in dirs {
        let time = |of| sandbox.path(of).join(&dir).metadata().expect("is there").modified();
        assert!(time("copy").expect("a time") <= time(source).expect("a time"), "{dir}");
    }
}

#[test]
fn files_of_a_repository_that_is_deleted_meanwhile_are_not_counted() {
    let sandbox = Sandbox::with_store();
    sandbox.tool("git").args(["init", "--quiet", "--bare", "s/r.git"]).run().ok();
    sandbox.write("s/file", "stays");
    let lease = Lease::hold(&sandbox, "s/r.git/description", Some("rm -rf s/r.git"));
    let outcome = sandbox.run(["backup", "--json", "s"]);
    lease.end(&sandbox);
    sandbox.restore(&sandbox.at("latest", "s"), "copy");
    let found = files(&sandbox.path("copy"));
    assert_eq!(found, ["file".to_owned()].into());
    assert_counts(&sandbox, &outcome.ok().json(), "s");
}

#[test]
fn a_directory_that_is_replaced_meanwhile_is_whole() {
    let below = |above: &'static str| {
        let names = (150..249).map(|n| n.to_string()).chain(["sub/file".to_owned()]);
        names.map(move |name| format!("{above}{name}")).collect::<BTreeSet<_>>()
    };
    let remove = "rm -rf s/a/d; mv new s/a/d";
    assert_eq!(replaced_meanwhile("s", "", remove), below("a/d/"));
    let moved = "mv s/a/d old; mv new s/a/d";
    assert_eq!(replaced_meanwhile("s", "", moved), below("a/d/"));
    // A directory above it, and the source itself.
    let above = "mv s/a old; mv new s/a; rm -rf old";
    assert_eq!(replaced_meanwhile("s", "other", above), below("a/other/"));
    let source = "rm -rf s; mv new s";
    assert_eq!(replaced_meanwhile("s", "other", source), below("other/"));
}

#[test]
fn a_directory_that_is_renamed_meanwhile_is_whole() {
    for to in ["s/0", "s/b", "s/a/z"] {
        let found = replaced_meanwhile("s", "", &format!("mv s/a/d {to}"));
        let inner = to.strip_prefix("s/").expect("below");
        let all = (100..199).map(|n| format!("{inner}/{n}")).collect();
        assert_eq!(found, all, "{to}");
    }
}

#[test]
fn what_moves_to_a_directory_that_was_listed_is_in_the_snapshot() {
    // Only one thread lists large directories, in order.
    let many = |dir: &str| (0..100).map(|n| format!("{dir}/{n}")).collect::<BTreeSet<_>>();
    let dir: fn(&str) -> String = |path| path.replace("s/d/", "s/a0/");
    let inner: fn(&str) -> String = |path| path.replace("s/d/", "s/a/new/");
    let single: fn(&str) -> String = |path| path.replace("s/d/", "s/a/d");
    let each = "for n in $(seq 0 99); do mv s/d/$n s/a/d$n; done";
    // Files that no listing has are known only from the previous snapshot.
    let moves = [("mv s/d s/a0", dir, 1), ("mv s/d s/a/new", inner, 1), (each, single, 2)];
    for nights in [1, 2] {
        for (command, moved, _) in moves.iter().filter(|(_, _, from)| *from <= nights) {
            let sandbox = Sandbox::with_store();
            for path in ["s/a", "s/b", "s/d"].into_iter().flat_map(many) {
                sandbox.write(&path, "kept");
            }
            (1..nights).for_each(|_| drop(sandbox.backup(["s"])));
            let lease = Lease::hold_dir(&sandbox, "s/b", command);
            let outcome = sandbox.run(["backup", "--json", "s"]);
            lease.end(&sandbox);
            sandbox.restore(&sandbox.at("latest", "s"), "copy");
            let found = files(&sandbox.path("copy"));
            let all = ["s/a", "s/b", "s/d"].into_iter().flat_map(many).map(|path| moved(&path));
            let all = all.map(|path| path["s/".len()..].to_owned()).collect();
            assert_eq!(found, all, "{nights} nights, {command}");
            assert_counts(&sandbox, &outcome.ok().json(), "s");
        }
    }
}

#[test]
fn a_directory_that_is_away_while_the_one_above_is_listed_is_whole() {
    let sandbox = Sandbox::with_store();
    for n in 100..199 {
        sandbox.write(&format!("s/a/d/{n}"), "old");
    }
    sandbox.write("s/cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
    for name in ["s/cache/file", "s/left/out", "s/removed"] {
        sandbox.write(name, "no longer wanted");
    }
    sandbox.backup(["s"]);
    sandbox.remove("s/removed");
    fs::rename(sandbox.path("s/a/d"), sandbox.path("away")).expect("goes");
    let lease = Lease::hold(&sandbox, "s/0", Some("mv away s/a/d"));
    let outcome =
        sandbox.run(["backup", "--json", "--exclude-caches", "--exclude", "left/out", "s"]);
    lease.end(&sandbox);
    sandbox.restore(&sandbox.at("latest", "s"), "copy");
    let found = files(&sandbox.path("copy"));
    let others = ["0", "cache/CACHEDIR.TAG"].map(str::to_owned);
    assert_eq!(found, (100..199).map(|n| format!("a/d/{n}")).chain(others).collect());
    assert_counts(&sandbox, &outcome.ok().json(), "s");
}

#[test]
fn what_is_read_again_follows_the_rules() {
    let sandbox = Sandbox::with_store();
    for n in 100..199 {
        sandbox.write(&format!("s/d/{n}"), "old");
    }
    sandbox.write("new/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
    sandbox.write("new/cached", "");
    let lease = Lease::hold(&sandbox, "s/d/100", Some("mv s/d old; mv new s/d"));
    let outcome = sandbox.run(["backup", "--exclude-caches", "s"]);
    lease.end(&sandbox);
    outcome.ok();
    sandbox.restore(&sandbox.at("latest", "s"), "copy");
    assert!(!sandbox.has("copy/d/cached"));
}

#[test]
fn a_dry_run_is_no_less_complete() {
    let sandbox = Sandbox::with_store();
    for n in 100..199 {
        sandbox.write(&format!("s/d/{n}"), "old");
    }
    sandbox.write("new/0", "");
    let lease = Lease::hold(&sandbox, "s/d/100", Some("mv s/d old; mv new s/d"));
    let outcome = sandbox.run(["backup", "--dry-run", "s"]);
    lease.end(&sandbox);
    outcome.ok();
}

#[test]
fn a_link_or_file_that_replaces_a_directory_meanwhile_is_stored() {
    let link = "mv s/a/d old; ln -s ../../old s/a/d";
    assert_eq!(replaced_meanwhile("s", "", link), ["a/d".to_owned()].into());
    let file = "mv s/a/d old; echo file >s/a/d";
    assert_eq!(replaced_meanwhile("s", "", file), ["a/d".to_owned()].into());
}

#[test]
fn a_directory_that_is_away_for_a_moment_is_read_again() {
    let away = "mv s/a/d x; sleep 0.05; mv x s/a/d";
    let all = (100..199).map(|n| format!("a/d/{n}")).collect();
    assert_eq!(replaced_meanwhile("s", "", away), all);
}

#[test]
fn equal_inode_numbers_of_two_file_systems_stay_separate() {
    let sandbox = Sandbox::with_store();
    let _a = Mounted::new(&sandbox, "source/a");
    let _b = Mounted::new(&sandbox, "source/b");
    let inode = |path: &str| sandbox.path(path).metadata().expect("is there").ino();
    for dir in ["source/a", "source/b"] {
        sandbox.write(&format!("{dir}/one"), "the same");
        let (one, two) = (sandbox.path(format!("{dir}/one")), sandbox.path(format!("{dir}/two")));
        fs::hard_link(&one, two).expect("links");
        let file = File::options().write(true).open(one).expect("opens");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(9)).expect("sets the time");
    }
    assert_eq!(inode("source/a/one"), inode("source/b/one"));
    for target in ["first", "second"] {
        sandbox.backup(["source"]);
        sandbox.restore(&sandbox.at("latest", "source"), target);
        let inode = |name: &str| inode(&format!("{target}/{name}"));
        assert_eq!(inode("a/one"), inode("a/two"));
        assert_eq!(inode("b/one"), inode("b/two"));
        assert_ne!(inode("a/one"), inode("b/one"));
    }
}

/// Replaces `path` by an object of another type.
fn replace(path: &Path, dice: &mut Dice) {
    let _ = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
    let _ = match dice.below(5) {
        0 => fs::write(path, dice.bytes(600)),
        1 => symlink("target", path),
        2 => {
            let mode = rustix::fs::Mode::RWXU;
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, path, fifo, mode, 0).map_err(Into::into)
        }
        3 => fs::create_dir(path),
        _ => fs::create_dir_all(path.join("sub"))
            .and_then(|()| fs::write(path.join("sub/inside"), "inside"))
            .and_then(|()| fs::write(path.join("inside"), dice.bytes(600))),
    };
}

#[test]
fn file_types_may_change_during_a_backup() {
    let sandbox = Arc::new(Sandbox::with_store());
    fs::create_dir(sandbox.path("source")).expect("a directory");
    sandbox.tool("git").args(["init", "--quiet", "--bare", "source/r.git"]).run().ok();
    let is_over = Arc::new(AtomicBool::new(false));
    let churn = |seed: u64| {
        let (sandbox, is_over) = (Arc::clone(&sandbox), Arc::clone(&is_over));
        move || {
            let mut dice = Dice::new(seed);
            while !is_over.load(Relaxed) {
                let n = dice.below(20);
                let dir =
                    ["source", "source/r.git", "source/r.git/objects/info", "source/r.git/refs"];
                let dir = dir[dice.below(4) as usize];
                replace(&sandbox.path(format!("{dir}/{seed}-{n}")), &mut dice);
            }
        }
    };
    let threads: Vec<_> = (0..2).map(|seed| std::thread::spawn(churn(seed))).collect();
    for round in 0..8 {
        let outcome = sandbox.run(["backup", "source"]);
        assert!(matches!(outcome.code(), Some(0 | 3)), "{}", outcome.all_output());
        let target = format!("restored-{round}");
        sandbox.restore(&sandbox.at("latest", "source"), &target);
        sandbox.remove(target);
    }
    is_over.store(true, Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    sandbox.assert_clean();
}

#[test]
fn unread_attributes_survive_a_restore_in_place() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/f", "1");
    let file = sandbox.path("source/f");
    rustix::fs::setxattr(&file, "user.a", b"kept", XattrFlags::empty()).expect("sets");
    let faults = ["-e", "inject=flistxattr:error=EIO"];
    traced(&sandbox, &faults, &["backup", "source"]).run().ends_with(3);
    let printed =
        sandbox.run(["restore", &sandbox.at("latest", "source"), "--target", "source"]).ok();
    assert!(printed.stderr.contains("without some metadata"), "{}", printed.all_output());
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&file, "user.a", &mut value[..]), Ok(4));
}

#[test]
fn named_paths_in_a_directory_that_cannot_be_listed_are_stored() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.write("source/b/dir/file", "in a named directory");
    sandbox.write("source/b/2", "a named file");
    sandbox.write("source/b/unnamed", "not seen");
    sandbox.tool("chmod").args(["711", "source/b"]).run().ok();
    sandbox.as_nobody(["init"]).run().ok();
    for paths in [
        &["source", "source/b/2", "source/b/dir"][..],
        &["source/b", "source/b/2", "source/b/dir"],
        &["source/b/2", "source/b/dir"],
    ] {
        for _ in 0..2 {
            let run = sandbox.as_nobody(["backup", "--json"].iter().chain(paths));
            let is_listed = paths.len() == 2;
            let outcome = run.run().ends_with(if is_listed { 0 } else { 3 });
            let wanted: &[&str] = if is_listed { &[] } else { &["source/b"] };
            assert_eq!(reported(&sandbox, &outcome), wanted, "{paths:?}");
            for name in ["source/b/2", "source/b/dir/file"] {
                sandbox.run(["dump", &sandbox.at(&sandbox.newest(), name)]).ok();
            }
        }
    }
}

#[test]
fn a_missing_reftable_table_costs_only_itself() {
    let sandbox = Sandbox::with_store();
    let git = ["init", "--quiet", "--bare", "--ref-format=reftable", "source/r.git"];
    sandbox.tool("git").args(git).run().ok();
    let missing = "source/r.git/reftable/0x000000000005-0x000000000005-deadbeef.ref";
    let mut list = sandbox.read("source/r.git/reftable/tables.list");
    list.extend_from_slice(b"0x000000000005-0x000000000005-deadbeef.ref\n");
    sandbox.write("source/r.git/reftable/tables.list", list);
    for _ in 0..2 {
        let outcome = sandbox.run(["backup", "--json", "source"]).ends_with(3);
        assert_eq!(reported(&sandbox, &outcome), [missing]);
        let output = outcome.all_output();
        assert!(output.contains("does not exist") && !output.contains("changing"), "{output}");
    }
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    assert_eq!(files(&sandbox.path("restored")), files(&sandbox.path("source")));
}

#[test]
fn a_git_directory_with_odd_types_is_stored_completely() {
    let sandbox = Sandbox::with_store();
    let make = |name: &str, odd: &dyn Fn(&Path)| {
        let git = ["init", "--quiet", "--bare", &format!("source/{name}")];
        sandbox.tool("git").args(git).run().ok();
        sandbox.write(&format!("source/{name}/refs/heads/main"), "1".repeat(40));
        odd(&sandbox.path("source").join(name));
    };
    let file_at = |at: PathBuf| {
        let _ = fs::remove_dir_all(&at);
        fs::write(at, "\n").expect("writes");
    };
    let dir_at = |at: PathBuf| {
        let _ = fs::remove_file(&at);
        fs::create_dir_all(at.join("dir")).expect("makes");
        fs::write(at.join("dir/file"), "odd").expect("writes");
    };
    let link_at = |at: PathBuf| {
        let _ = fs::remove_dir_all(&at).or_else(|_| fs::remove_file(&at));
        symlink("description", at).expect("links");
    };
    let places = [
        "HEAD",
        "config",
        "hooks",
        "refs",
        "refs/heads",
        "packed-refs",
        "reftable",
        "reftable/tables.list",
        "objects",
        "objects/info",
        "objects/info/commit-graph",
        "objects/info/commit-graphs",
        "objects/pack",
        "objects/pack/multi-pack-index",
        "objects/pack/pack-1.pack",
        "objects/pack/pack-1.idx",
        "objects/ab",
        "objects/info/packs",
    ];
    for place in places {
        let under = |name: &str| format!("{}-{name}", place.replace('/', "-"));
        make(&under("file"), &|git| {
            fs::create_dir_all(git.join(place).parent().expect("below")).expect("makes");
            file_at(git.join(place));
        });
        make(&under("dir"), &|git| dir_at(git.join(place)));
        make(&under("link"), &|git| {
            fs::create_dir_all(git.join(place).parent().expect("below")).expect("makes");
            link_at(git.join(place));
        });
    }
    let output = sandbox.run(["backup", "source"]).ok().all_output();
    sandbox.restore(&sandbox.at("latest", "source"), "restored");
    let (all, stored) = (files(&sandbox.path("source")), files(&sandbox.path("restored")));
    let lost: Vec<&String> = all.difference(&stored).collect();
    // Files that git recreates may be skipped, and the backup reports them.
    let is_named = |path: &&&String| output.contains(path.as_str());
    let hidden: Vec<_> = lost.iter().filter(|path| !is_named(path)).collect();
    assert!(hidden.is_empty(), "{hidden:?}\n{output}");
    assert!(lost.iter().all(|path| path.contains("commit-graph") || path.contains("multi-pack")));
    // Unchanged in the next night.
    std::thread::sleep(Duration::from_millis(50));
    let summary = sandbox.backup(["source"]);
    assert_eq!((&summary["files_new"], &summary["files_changed"]), (&0.into(), &0.into()));
}
