//! Restores into a directory with mounts in it.

use crate::support::sandbox::{Sandbox, need_root};

/// Mounts of a test, removed at its end.
struct Mounts<'s> {
    sandbox: &'s Sandbox,
    places: Vec<String>,
}

impl<'s> Mounts<'s> {
    fn new(sandbox: &'s Sandbox) -> Mounts<'s> {
        need_root();
        Mounts { sandbox, places: Vec::new() }
    }

    fn add(&mut self, place: &str, arguments: &[&str]) {
        self.places.push(place.into());
        self.sandbox.tool("mount").args(arguments).args([place]).run().ok();
    }
}

impl Drop for Mounts<'_> {
    fn drop(&mut self) {
        for place in self.places.iter().rev() {
            self.sandbox.tool("umount").args(["-l", place]).run();
        }
    }
}

/// Sandbox with a store, a directory `source` and its backup.
fn backed_up(names: &[&str]) -> Sandbox {
    let sandbox = Sandbox::with_store();
    for name in names {
        sandbox.write(&format!("source/{name}"), name);
    }
    sandbox.run(["backup", "source"]).ok();
    sandbox
}

#[test]
fn extra_files_on_layered_file_systems_are_deleted() {
    let sandbox = Sandbox::with_store();
    let mut mounts = Mounts::new(&sandbox);
    for dir in ["lower/d", "upper", "source"] {
        std::fs::create_dir_all(sandbox.path(dir)).expect("a directory");
    }
    sandbox.write("lower/d/1", "1");
    sandbox.write("lower/d/other", "of the lower layer");
    mounts.add("upper", &["-t", "tmpfs", "none"]);
    for dir in ["upper/u", "upper/w"] {
        std::fs::create_dir(sandbox.path(dir)).expect("a directory");
    }
    let layers = "lowerdir=lower,upperdir=upper/u,workdir=upper/w";
    mounts.add("source", &["-t", "overlay", "none", "-o", layers]);
    sandbox.run(["backup", "source"]).ok();
    sandbox.write("source/d/new", "new");
    sandbox.write("source/new", "new");
    sandbox.write("mounted", "kept");
    sandbox.write("source/d/kept", "");
    mounts.add("source/d/kept", &["--bind", "mounted"]);
    let from = sandbox.at("latest", "source");
    sandbox.run(["restore", &from, "--target", "source", "--delete"]).ok();
    assert!(!sandbox.has("source/d/new") && !sandbox.has("source/new"));
    assert_eq!(sandbox.read("source/d/kept"), b"kept");
    assert_eq!(sandbox.read("source/d/other"), b"of the lower layer");
}

#[test]
fn a_read_only_mount_in_the_target_costs_only_its_own_files() {
    let sandbox = backed_up(&["a/1", "d/1", "d/2", "d/e/3", "z/1"]);
    let mut mounts = Mounts::new(&sandbox);
    for name in ["a/1", "d/1", "d/2", "d/e", "z/1"] {
        sandbox.remove(format!("source/{name}"));
    }
    mounts.add("source/d", &["--bind", "source/d"]);
    mounts.add("source/d", &["-o", "remount,ro,bind"]);
    let from = sandbox.at("latest", "source");
    for arguments in [&["--dry-run"][..], &[]] {
        let run = sandbox.forgekeep(["restore", &from, "--target", "source"]).args(arguments);
        let outcome = run.run().ends_with(3);
        let lost = outcome.stderr.lines().filter(|line| line.starts_with("not restored: "));
        // Three files and a directory.
        assert_eq!(lost.count(), 4, "{}", outcome.all_output());
    }
    assert!(sandbox.has("source/a/1") && sandbox.has("source/z/1"));
}

#[test]
fn a_dry_run_reports_entries_that_a_mount_blocks() {
    let sandbox = backed_up(&["a", "b", "dir/1"]);
    let mut mounts = Mounts::new(&sandbox);
    sandbox.tool("ln").args(["-s", "a", "source/link"]).run().ok();
    sandbox.run(["backup", "source"]).ok();
    for name in ["dir", "link"] {
        sandbox.remove(format!("source/{name}"));
    }
    sandbox.write("other", "mounted");
    sandbox.write("source/dir", "a file in place of the directory");
    std::fs::create_dir(sandbox.path("source/link")).expect("a directory");
    std::fs::create_dir(sandbox.path("empty")).expect("a directory");
    mounts.add("source/a", &["--bind", "other"]);
    mounts.add("source/dir", &["--bind", "other"]);
    mounts.add("source/link", &["--bind", "empty"]);
    let from = sandbox.at("latest", "source");
    let lost = [&["--dry-run"][..], &[]].map(|arguments| {
        let run = sandbox.forgekeep(["restore", &from, "--target", "source"]).args(arguments);
        let outcome = run.run().ends_with(3);
        let lost = outcome.stderr.lines().filter_map(|line| line.strip_prefix("not restored: "));
        let path = |line: &str| line.split(": ").next().unwrap_or(line).to_owned();
        let mut lost: Vec<String> = lost.map(path).collect();
        lost.sort();
        lost
    });
    assert_eq!(lost[0], ["a", "dir", "dir/1", "link"].map(|name| format!("source/{name}")));
    assert_eq!(lost[0], lost[1]);
}

#[test]
fn a_dry_run_counts_copies_in_place_of_hard_links_across_mounts() {
    let sandbox = backed_up(&["a/1"]);
    let mut mounts = Mounts::new(&sandbox);
    std::fs::create_dir(sandbox.path("source/b")).expect("a directory");
    for name in ["source/b/2", "source/b/3", "source/c"] {
        sandbox.tool("ln").args(["source/a/1", name]).run().ok();
    }
    sandbox.run(["backup", "source"]).ok();
    for name in ["2", "3"] {
        sandbox.remove(format!("source/b/{name}"));
    }
    mounts.add("source/b", &["-t", "tmpfs", "none"]);
    let from = sandbox.at("latest", "source");
    let counts = [&["--dry-run"][..], &[]].map(|arguments| {
        let run = sandbox.forgekeep(["restore", &from, "--target", "source", "--json"]);
        let summary = run.args(arguments).run().ok().json().pop().expect("a summary");
        ["files_restored", "files_unchanged", "others"].map(|name| summary[name].clone())
    });
    assert_eq!(counts[0], [1, 1, 2].map(serde_json::Value::from));
    assert_eq!(counts[0], counts[1]);
}

#[test]
fn deletion_warns_of_mounts_with_files_of_the_snapshot() {
    let sandbox = Sandbox::with_store();
    let mut mounts = Mounts::new(&sandbox);
    for dir in ["source/inner", "source/later"] {
        std::fs::create_dir_all(sandbox.path(dir)).expect("a directory");
    }
    mounts.add("source/inner", &["-t", "tmpfs", "none"]);
    sandbox.write("source/inner/1", "1");
    sandbox.run(["backup", "source"]).ok();
    mounts.add("source/later", &["-t", "tmpfs", "none"]);
    for dir in ["inner", "later"] {
        sandbox.write(&format!("source/{dir}/new"), "new");
    }
    let from = sandbox.at("latest", "source");
    for arguments in [&["--dry-run"][..], &[]] {
        let run = sandbox.forgekeep(["restore", &from, "--target", "source", "--delete"]);
        let outcome = run.args(arguments).run().ok();
        let text = "source/inner is mounted separately, so --delete keeps newer files there";
        assert_eq!(outcome.stderr.matches(text).count(), 1, "{}", outcome.all_output());
        assert!(!outcome.stderr.contains("source/later"), "{}", outcome.all_output());
    }
    assert!(sandbox.has("source/inner/new") && sandbox.has("source/later/new"));
}
