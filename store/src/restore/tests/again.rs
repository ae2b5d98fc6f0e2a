//! Restores over a restored tree, which must change nothing.

use super::*;
use std::os::unix::fs::FileExt;

/// Bytes of the hole at the beginning of a file.
const HOLE: u64 = 300 << 10;

#[test]
fn newer_caches_stay_only_if_the_backup_skipped_caches() {
    for caches in [false, true] {
        let bench = Bench::new(|source| fs::write(source.join("a"), "a").expect("writes"));
        bench.restore("target", &bench.options()).expect("restores");
        let cache = bench.path("target/cache");
        fs::create_dir(&cache).expect("makes");
        let tag = "Signature: 8a477f597d28d172789f06886806bc55";
        fs::write(cache.join("CACHEDIR.TAG"), tag).expect("writes");
        let skipped = crate::snapshot::Skipped { caches, ..Default::default() };
        let keep = Spared::of(&[], &skipped, [bench.from.clone()]).expect("no patterns");
        let options = Options { delete: true, keep, ..bench.options() };
        for is_dry in [true, false] {
            let options = Options { is_dry, ..options.clone() };
            let (report, _) = bench.restore("target", &options).expect("restores");
            assert_eq!(report.deleted > 0, !caches, "{caches} {is_dry}");
        }
        assert_eq!(cache.exists(), caches);
    }
}

#[test]
fn zeros_where_the_snapshot_has_a_hole_are_not_written_again() {
    let bench = Bench::new(|source| {
        let file = fs::File::create(source.join("sparse")).expect("creates");
        file.write_all_at(b"end", HOLE).expect("writes");
        file.set_len(2 * HOLE).expect("extends");
    });
    let dry = Options { is_dry: true, ..bench.options() };
    bench.restore("target", &bench.options()).expect("restores");
    let path = bench.path("target/sparse");
    let is_sparse = || path.metadata().expect("is there").blocks() * 512 < HOLE;
    assert!(is_sparse());
    // As on a file system without holes.
    let mtime = path.metadata().expect("is there").modified().expect("has one");
    let file = fs::File::options().write(true).open(&path).expect("opens");
    file.write_all_at(&vec![0; HOLE as usize], 0).expect("writes");
    file.set_modified(mtime).expect("sets");
    let before = ctimes(&bench.path("target"));
    for options in [&dry, &bench.options()] {
        let (report, _) = bench.restore("target", options).expect("restores");
        assert_eq!((report.files_restored, report.files_unchanged), (0, 1));
    }
    assert!(ctimes(&bench.path("target")) == before && !is_sparse());
    // Any other byte there is wrong.
    file.write_all_at(b"x", HOLE - 1).expect("writes");
    for options in [&dry, &bench.options()] {
        let (report, _) = bench.restore("target", options).expect("restores");
        assert_eq!((report.files_restored, report.files_unchanged), (1, 0));
    }
    assert!(is_sparse());
}

/// Metadata of a file with these times.
fn stat(mtime: Time, ctime: Time) -> Stat {
    let dir = tempfile::tempdir().expect("a directory");
    let open = source::open_dir(dir.path()).expect("opens");
    Stat { mtime, ctime, ..source::stat_open(&open).expect("is there") }
}

#[test]
fn times_in_the_steps_of_the_file_system_are_held() {
    let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
    let wanted = time(1_000_000_001, 123_456_789);
    let (fine, whole) = (time(2_000_000_000, 987_654_321), time(2_000_000_000, 0));
    for (held, ctime, is_held) in [
        (wanted, fine, true),
        // Whole seconds, and every other one.
        (time(1_000_000_001, 0), whole, true),
        (time(1_000_000_000, 0), whole, true),
        (time(1_000_000_002, 0), whole, false),
        (time(1_000_000_001, 1), whole, false),
        (time(1_000_000_001, 123_456_700), time(2_000_000_000, 987_654_300), true),
        (time(1_000_000_001, 120_000_000), time(2_000_000_000, 980_000_000), true),
        // The ctime shows that the file system has finer steps.
        (time(1_000_000_001, 0), fine, false),
        (time(1_000_000_000, 0), time(2_000_000_001, 0), false),
    ] {
        assert_eq!(target::is_held(wanted, &stat(held, ctime)), is_held, "{held:?} {ctime:?}");
    }
    let before_1970 = time(-5, 500_000_000);
    assert!(target::is_held(before_1970, &stat(time(-5, 0), whole)));
}
