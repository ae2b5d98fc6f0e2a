//! What a restore removes, keeps and leaves behind.

use crate::support::sandbox::{Sandbox, is_root};

/// Restores `source` over itself and removes what came later.
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
fn delete_never_removes_what_is_mounted_inside() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    std::fs::create_dir_all(sandbox.path("source/new/disk")).expect("a directory");
    sandbox.write("source/new/later", "later");
    let mount = ["-t", "tmpfs", "tmpfs", "source/new/disk"];
    if !is_root() || sandbox.tool("mount").args(mount).run().code() != Some(0) {
        return;
    }
    sandbox.write("source/new/disk/b", "b");
    let place = sandbox.at("latest", "source");
    let outcome = sandbox.run(["restore", &place, "--target", "source", "--delete"]);
    let is_kept = sandbox.has("source/new/disk/b");
    sandbox.tool("umount").args(["-l", "source/new/disk"]).run().ok();
    outcome.ok();
    assert!(is_kept && sandbox.has("source/new/disk") && !sandbox.has("source/new/later"));
}

#[test]
fn delete_keeps_caches_and_what_git_makes_anew() {
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
fn delete_is_refused_where_the_snapshot_lacks_unreadable_paths() {
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
fn delete_looks_only_below_what_was_backed_up() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    let below = format!("target{}", sandbox.text("source"));
    sandbox.write("target/other", "other");
    sandbox.write(&format!("{below}/later"), "later");
    sandbox.run(["restore", "latest", "--target", "target", "--delete"]).ok();
    assert!(sandbox.has("target/other") && !sandbox.has(format!("{below}/later")));
}
