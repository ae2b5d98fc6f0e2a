//! Git directories that are newer than the snapshot.

use super::*;

/// Creates a git directory with caches and files of running operations.
fn make_git_dir(at: &Path) {
    for dir in ["objects/pack", "objects/info", "objects/incoming-1", "refs/heads"] {
        fs::create_dir_all(at.join(dir)).expect("makes");
    }
    for (file, content) in [
        ("HEAD", "ref: refs/heads/main\n"),
        ("HEAD.lock", ""),
        ("objects/pack/pack-1.rev", "cache"),
        ("objects/pack/multi-pack-index", "cache"),
        ("objects/info/commit-graph", "cache"),
        ("objects/incoming-1/object", "quarantined"),
        ("refs/heads/main.lock", ""),
    ] {
        fs::write(at.join(file), content).expect("writes");
    }
}

#[test]
fn delete_removes_a_git_directory_that_the_snapshot_has_as_a_plain_one() {
    let bench = Bench::new(|source| {
        for (dir, file) in [("a", "k"), ("b/objects", "k"), ("c/refs", "k"), ("d", "HEAD")] {
            fs::create_dir_all(source.join(dir)).expect("makes");
            fs::write(source.join(dir).join(file), "k").expect("writes");
        }
    });
    let options = Options { delete: true, ..bench.options() };
    bench.restore("target", &options).expect("restores");
    for dir in ["a", "b", "c", "d", "e"] {
        make_git_dir(&bench.path("target").join(dir));
    }
    let dry = Options { is_dry: true, ..options.clone() };
    let (planned, _) = bench.restore("target", &dry).expect("runs");
    let (done, _) = bench.restore("target", &options).expect("restores");
    assert_eq!(planned, done);
    assert_eq!(relative_look(&bench.path("target")), relative_look(&bench.path("source")));
}

#[test]
fn delete_keeps_the_caches_of_a_git_directory_that_the_snapshot_has() {
    let bench = Bench::new(|source| {
        fs::create_dir_all(source.join("a/objects")).expect("makes");
        fs::create_dir_all(source.join("a/refs")).expect("makes");
        fs::write(source.join("a/HEAD"), "ref: refs/heads/main\n").expect("writes");
    });
    let options = Options { delete: true, ..bench.options() };
    bench.restore("target", &options).expect("restores");
    make_git_dir(&bench.path("target/a"));
    let before = look(&bench.path("target"));
    let (report, _) = bench.restore("target", &options).expect("restores");
    assert_eq!((report.deleted, look(&bench.path("target"))), (0, before));
}

#[test]
fn delete_removes_all_caches_of_packs_that_go() {
    let bench = Bench::new(|source| {
        for dir in ["a/objects/pack", "a/objects/info", "a/refs"] {
            fs::create_dir_all(source.join(dir)).expect("makes");
        }
        fs::write(source.join("a/HEAD"), "ref: refs/heads/main\n").expect("writes");
        fs::write(source.join("a/objects/pack/pack-1.pack"), "pack").expect("writes");
    });
    let options = Options { delete: true, ..bench.options() };
    bench.restore("target", &options).expect("restores");
    let objects = bench.path("target/a/objects");
    for dir in ["pack/multi-pack-index.d", "info/commit-graphs"] {
        fs::create_dir(objects.join(dir)).expect("makes");
    }
    for file in [
        "pack/pack-2.pack",
        "pack/pack-2.idx",
        "pack/pack-2.rev",
        "pack/pack-2.bitmap",
        "pack/multi-pack-index.d/multi-pack-index-chain",
        "pack/multi-pack-index.d/multi-pack-index-1.midx",
        "pack/multi-pack-index.d/multi-pack-index-1.bitmap",
        "info/commit-graphs/commit-graph-chain",
    ] {
        fs::write(objects.join(file), "newer").expect("writes");
    }
    let dry = Options { is_dry: true, ..options.clone() };
    let (planned, _) = bench.restore("target", &dry).expect("runs");
    let (done, _) = bench.restore("target", &options).expect("restores");
    assert_eq!(planned.deleted, done.deleted);
    assert_eq!(relative_look(&bench.path("target")), relative_look(&bench.path("source")));
}
