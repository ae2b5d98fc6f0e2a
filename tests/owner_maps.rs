//! Owners and modes that a restore changes by rules.

use crate::support::sandbox::{NOBODY, Sandbox, need_root};
use serde_json::Value;

/// Makes a small tree with several owners and backs it up.
fn with_owners() -> Sandbox {
    need_root();
    let sandbox = Sandbox::with_store();
    for (path, owner) in [
        ("source/registry/v2/blob", "998:997"),
        ("source/home/key", "daemon:games"),
        ("source/repo.git/HEAD", "100005:100005"),
    ] {
        sandbox.write(path, path);
        sandbox.tool("chown").args([owner, path]).run().ok();
    }
    sandbox.tool("chown").args(["998:997", "source/registry", "source/registry/v2"]).run().ok();
    sandbox.tool("setfacl").args(["-m", "u:998:rw,g:games:r", "source/home/key"]).run().ok();
    sandbox.tool("chmod").args(["4750", "source/home/key"]).run().ok();
    sandbox.backup(["source"]);
    sandbox
}

/// Restores the tree with these options. Returns its paths with modes and owners.
fn restored(sandbox: &Sandbox, target: &str, options: &[&str]) -> Vec<String> {
    let place = sandbox.at("latest", "source");
    let arguments = ["restore", &place, "--target", target];
    sandbox.forgekeep(arguments).args(options).run().ok();
    listed(sandbox, target)
}

fn listed(sandbox: &Sandbox, target: &str) -> Vec<String> {
    let found = sandbox.tool("find").args([target, "-printf", "%P %m %U:%G\n"]).run().ok();
    let mut lines: Vec<String> = found.stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn has(lines: &[String], line: &str) {
    assert!(lines.iter().any(|found| found == line), "{line} is not in {lines:#?}");
}

#[test]
fn rules_change_owners_modes_and_access_lists() {
    let sandbox = with_owners();
    sandbox.write(
        "rules",
        "user 998 -> nosuch/1000\n[path \"registry/**\"]\ngroup * -> 33\nmode D+s,o-rwx\n",
    );
    let options = ["--owner-map", "rules", "--usermap", "daemon:bin,100000-165535:+0"];
    let lines = restored(&sandbox, "target", &[&options[..], &["--chmod", "F-w"]].concat());
    has(&lines, "registry 755 1000:997");
    has(&lines, "registry/v2 6750 1000:33");
    has(&lines, "registry/v2/blob 640 1000:33");
    has(&lines, "home/key 4550 2:60");
    has(&lines, "repo.git/HEAD 444 5:100005");
    let acl = sandbox.tool("getfacl").args(["-cnp", "target/home/key"]).run().ok();
    assert!(acl.stdout.contains("user:1000:rw-") && acl.stdout.contains("group:60:r--"));
    // A second restore finds everything as the rules want it.
    let place = sandbox.at("latest", "source");
    let arguments = ["restore", &place, "--target", "target", "-n", "--json", "--chmod", "F-w"];
    let again = sandbox.forgekeep(arguments).args(options).run().ok();
    let summary: Value =
        serde_json::from_str(again.stdout.lines().last().unwrap_or_default()).expect("a JSON line");
    assert_eq!(summary["owners_to_set"], 0, "{summary}");
    assert_eq!(summary["modes_to_set"], 0, "{summary}");
    assert_eq!(summary["xattrs_to_set"], 0, "{summary}");
    assert_eq!(summary["files_unchanged"], 3, "{summary}");
    let rules = summary["owner_rules"].as_array().expect("rules");
    let counts: Vec<_> = rules.iter().map(|rule| rule["entries"].as_u64()).collect();
    // An access list counts for its file, too.
    assert_eq!(counts, [Some(4), Some(2), Some(2), Some(1), Some(1), Some(2)], "{summary}");
}

#[test]
fn the_product_owner_of_the_snapshot_counts_by_name() {
    let sandbox = with_owners();
    // Another machine: daemon has another number there.
    let lines = restored(&sandbox, "all", &["--chown", "daemon:60"]);
    assert!(lines.iter().all(|line| line.ends_with(" 1:60")), "{lines:#?}");
    let lines = restored(&sandbox, "none", &["--no-owner"]);
    assert!(lines.iter().all(|line| line.ends_with(" 0:0")), "{lines:#?}");
    // No one gets the rights of another user.
    has(&lines, "home/key 750 0:0");
    let lines = restored(&sandbox, "same", &["--numeric-ids"]);
    has(&lines, "home/key 4750 1:60");
}

#[test]
fn faults_in_rules_end_a_restore_before_it_writes() {
    let sandbox = with_owners();
    let place = sandbox.at("latest", "source");
    for (options, expected) in [
        (["--usermap", "daemon:no-such-user"], "user no-such-user does not exist"),
        (["--groupmap", "games"], "FROM:TO"),
        (["--chmod", "u+q"], "is not a change of a mode"),
        (["--chown", ":"], "neither a user nor a group"),
        (["--owner-map", "missing"], "cannot read missing"),
    ] {
        let arguments = ["restore", &place, "--target", "target"];
        let failed = sandbox.forgekeep(arguments).args(options).run();
        assert!(failed.stderr.contains(expected), "{}", failed.stderr);
        assert!(failed.code() != Some(0) && !sandbox.has("target"), "{options:?}");
    }
}

#[test]
fn a_rule_without_a_match_is_reported() {
    let sandbox = with_owners();
    let place = sandbox.at("latest", "source");
    let arguments = ["restore", &place, "--target", "target", "--usermap", "nobodyelse:0"];
    let done = sandbox.run(arguments).ok();
    assert!(done.stderr.contains("`user nobodyelse -> 0` matched nothing"), "{}", done.stderr);
}

#[test]
fn a_written_map_brings_the_old_owners_back() {
    let sandbox = with_owners();
    let before = listed(&sandbox, "source");
    let options = ["--chown", "1000:1000", "--chmod", "D700,F600", "--write-owner-map", "undo"];
    let changed = restored(&sandbox, "target", &options);
    assert_ne!(changed, before);
    let saved = sandbox.backup(["target"]);
    let place = sandbox.at(saved["snapshot_id"].as_str().expect("an id"), "target");
    let arguments = ["restore", &place, "--target", "back", "--owner-map", "undo"];
    sandbox.run(arguments).ok();
    assert_eq!(listed(&sandbox, "back"), before);
    // The record of another restore is never replaced.
    let arguments = ["restore", &place, "--target", "more", "--write-owner-map", "undo"];
    let refused = sandbox.run(arguments).fails(1, &["cannot write undo"]);
    drop(refused);
}

#[test]
fn an_ordinary_user_gets_the_content_and_the_command_for_root() {
    let sandbox = with_owners();
    sandbox.tool("chmod").args(["-R", "a+rX", "store"]).run().ok();
    std::fs::create_dir(sandbox.path("mine")).expect("a directory");
    sandbox.give_to_nobody("mine");
    let place = sandbox.at("latest", "source");
    let done = sandbox.as_nobody(["restore", &place, "--target", "mine/target"]).run();
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("only root can: sudo "), "{}", done.stderr);
    assert_eq!(sandbox.read("mine/target/home/key"), b"source/home/key");
    let lines = listed(&sandbox, "mine/target");
    has(&lines, &format!("home/key 750 {NOBODY}:{NOBODY}"));
}

#[test]
fn a_written_map_brings_old_access_lists_back() {
    need_root();
    let sandbox = Sandbox::with_store();
    let script = "mkdir -p src/d && echo 1 >src/a && echo 1 >src/b && chown 5 src/a src/b && \
         setfacl -m u:7:rw src/a && setfacl -m u:3:rw,u:4:r src/b && \
         setfacl -d -m u:3:rwx src/d && chmod 0640 src/a";
    sandbox.tool("sh").args(["-c", script]).run().ok();
    let state = |dir: &str| {
        let script = format!("cd {dir} && getfacl -nR . 2>/dev/null");
        sandbox.tool("sh").args(["-c", &script]).run().ok().stdout
    };
    let before = state("src");
    for options in ["--usermap 5:7", "--chown 9", "--usermap 3:9", "--chmod o=,g-w"] {
        let saved = sandbox.backup(["src"]);
        let place = sandbox.at(saved["snapshot_id"].as_str().expect("an id"), "src");
        let options: Vec<&str> = options.split(' ').collect();
        let written = ["restore", &place, "--target", "out", "--write-owner-map", "undo"];
        sandbox.forgekeep(written).args(&options).run().ok();
        assert_ne!(state("out"), before, "{options:?}");
        let saved = sandbox.backup(["out"]);
        let place = sandbox.at(saved["snapshot_id"].as_str().expect("an id"), "out");
        sandbox.run(["restore", &place, "--target", "back", "--owner-map", "undo"]).ok();
        assert_eq!(state("back"), before, "{options:?}");
        for name in ["out", "back", "undo"] {
            sandbox.remove(name);
        }
    }
    for (line, words) in [
        ("acl u::rw-", "is not an access list"),
        ("[exact \"/x\"]\nacl u::rw-,u:1:rw-,g::r--,o::---", "is not an access list"),
        ("acl u::rw-,g::r--,o::---", "belongs below a section"),
    ] {
        sandbox.write("rules", line);
        let place = sandbox.at("latest", "src");
        let wrong =
            ["restore", &place, "--path", "src", "--target", "none", "--owner-map", "rules"];
        let printed = sandbox.run(wrong).all_output();
        assert!(printed.contains(words), "{line}: {printed}");
    }
}

#[test]
fn a_repair_by_rules_sets_access_lists_and_can_be_undone() {
    need_root();
    let sandbox = Sandbox::new();
    let script = "mkdir -p data/repositories data/uploads && touch data/uploads/f && \
         chown -R 1000:1000 data && chmod 2770 data/repositories && chmod 0700 data/uploads && \
         chmod 0640 data/uploads/f && setfacl -m u:7:rw,u:8:r data/uploads/f";
    sandbox.tool("sh").args(["-c", script]).run().ok();
    let state = || {
        let script = "cd data && getfacl -nR . 2>/dev/null";
        sandbox.tool("sh").args(["-c", script]).run().ok().stdout
    };
    let before = state();
    sandbox.write("rules", "user 7 -> 8\nuser 1000 -> 7\n");
    let repair = |map: &str, undo: &str| {
        let words = ["repair", "owners", "--as", "docker-gitlab", "data", "--owner-map", map];
        sandbox.forgekeep(words).args(["--write-owner-map", undo]).run().ok();
    };
    repair("rules", "undo");
    assert!(state().contains("user:8:rw-") && state().contains("owner: 7"), "{}", state());
    repair("undo", "redo");
    assert_eq!(state(), before);
    repair("redo", "last");
    assert!(state().contains("user:8:rw-") && state().contains("owner: 7"), "{}", state());
}
