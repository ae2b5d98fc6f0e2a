//! A restore reproduces everything that a file system stores.

use crate::support::sandbox::{Sandbox, need_root};
use crate::support::tree::{Ignore, build_everything, compare_ignoring, has_full_privileges};

fn with_everything() -> Sandbox {
    let sandbox = Sandbox::with_store();
    std::fs::create_dir(sandbox.path("source")).expect("makes a directory");
    let expected = build_everything(&sandbox.path("source")).expect("builds a tree");
    if has_full_privileges() {
        expected.assert_nothing_skipped();
    }
    sandbox
}

fn assert_same(sandbox: &Sandbox, restored: &str) {
    let ignore = Ignore { top_directory: true, ..Ignore::default() };
    let differences = compare_ignoring(&sandbox.path("source"), &sandbox.path(restored), ignore);
    assert_eq!(differences, Vec::<String>::new());
}

#[test]
fn first_and_unchanged_backups_restore_everything() {
    let sandbox = with_everything();
    sandbox.backup(["source"]);
    sandbox.restore(&sandbox.at("latest", "source"), "first");
    assert_same(&sandbox, "first");
    let second = sandbox.backup(["source"]);
    assert!(second["files_unmodified"].as_u64() > Some(0), "{second}");
    sandbox.restore(&sandbox.at("latest", "source"), "second");
    assert_same(&sandbox, "second");
    sandbox.assert_clean();
}

#[test]
fn a_restore_repairs_a_damaged_copy() {
    let sandbox = with_everything();
    sandbox.backup(["source"]);
    let place = sandbox.at("latest", "source");
    sandbox.restore(&place, "restored");
    let mut names: Vec<_> = std::fs::read_dir(sandbox.path("restored"))
        .expect("lists")
        .map(|entry| entry.expect("lists").file_name())
        .collect();
    names.sort();
    for (n, name) in names.iter().enumerate() {
        let path = std::path::Path::new("restored").join(name);
        let kind = sandbox.path(&path).symlink_metadata().expect("there").file_type();
        match n % 4 {
            0 if kind.is_file() => std::fs::write(sandbox.path(&path), "other").expect("writes"),
            0 | 1 => sandbox.remove(&path),
            2 => {
                sandbox.remove(&path);
                if kind.is_dir() {
                    std::fs::write(sandbox.path(&path), "a file now").expect("writes");
                } else {
                    std::fs::create_dir_all(sandbox.path(&path).join("a directory now"))
                        .expect("makes a directory");
                }
            }
            _ => {}
        }
    }
    sandbox.write("restored/too much/of it", "x");
    sandbox.run(["restore", &place, "--target", "restored", "--delete"]).ok();
    assert_same(&sandbox, "restored");
}

#[test]
fn an_unprivileged_restore_loses_only_owners_and_warns_once() {
    need_root();
    let sandbox = Sandbox::with_store();
    for n in 0..20 {
        sandbox.write(&format!("source/{}/{n}", n % 3), format!("{n}").repeat(100 * n));
    }
    std::os::unix::fs::symlink("1", sandbox.path("source/link")).expect("links");
    sandbox.tool("chmod").args(["-R", "go=rX", "source"]).run().ok();
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rwX", "store"]).run().ok();
    sandbox.as_nobody(["snapshots"]).run().ok();
    let place = sandbox.at("latest", "source");
    let outcome = sandbox.as_nobody(["restore", &place, "--target", "restored"]).run().ok();
    let ignore = Ignore { top_directory: true, ownership: true, ..Ignore::default() };
    let differences = compare_ignoring(&sandbox.path("source"), &sandbox.path("restored"), ignore);
    assert_eq!(differences, Vec::<String>::new());
    let lines: Vec<_> = outcome.stderr.lines().filter(|l| l.contains("owner")).collect();
    assert_eq!(lines.len(), 1, "{}", outcome.all_output());
}
