//! Metadata that a dry run foresees as the restore gives it.

use super::*;
use rustix::fs::{IFlags, XattrFlags, ioctl_getflags, ioctl_setflags, removexattr, setxattr};

fn set(path: &Path, name: &str, value: &str) {
    setxattr(path, name, value.as_bytes(), XattrFlags::empty()).expect("sets");
}

#[test]
fn a_dry_run_counts_changed_attributes() {
    let bench = Bench::new(|source| {
        fs::create_dir(source.join("dir")).expect("makes");
        for name in ["a", "b", "c"] {
            fs::write(source.join(name), name).expect("writes");
            set(&source.join(name), "user.x", "1");
        }
        set(&source.join("dir"), "user.x", "1");
    });
    let dry = Options { is_dry: true, ..bench.options() };
    bench.restore("target", &bench.options()).expect("restores");
    set(&bench.path("target/a"), "user.x", "2");
    set(&bench.path("target/b"), "user.y", "2");
    removexattr(bench.path("target/dir"), "user.x").expect("removes");
    let planned = bench.restore("target", &dry).expect("looks").0;
    assert_eq!((planned.files_unchanged, planned.xattrs_to_set), (3, 3), "{planned:?}");
    bench.restore("target", &bench.options()).expect("restores");
    let planned = bench.restore("target", &dry).expect("looks").0;
    assert_eq!(planned.xattrs_to_set, 0, "{planned:?}");
}

/// Sets or clears an attribute; returns false if this user or file system has no such attributes.
fn chattr(path: &Path, attribute: IFlags, is_set: bool) -> bool {
    let file = fs::File::open(path).expect("opens");
    let changed = ioctl_getflags(&file).and_then(|mut flags| {
        flags.set(attribute, is_set);
        ioctl_setflags(&file, flags)
    });
    changed.is_ok()
}

#[test]
fn a_protected_file_gets_a_copy_instead_of_another_name() {
    let bench = Bench::new(|source| {
        fs::write(source.join("a"), "1").expect("writes");
        fs::hard_link(source.join("a"), source.join("b")).expect("links");
    });
    bench.restore("target", &bench.options()).expect("restores");
    fs::remove_file(bench.path("target/b")).expect("removes");
    let first = bench.path("target/a");
    if !chattr(&first, IFlags::IMMUTABLE, true) {
        return;
    }
    let reports = [true, false].map(|is_dry| {
        let options = Options { is_dry, ..bench.options() };
        bench.restore("target", &options).map(|(report, _)| report)
    });
    assert!(chattr(&first, IFlags::IMMUTABLE, false));
    let counts = reports.map(|report| {
        let report = report.expect("restores");
        (report.files_restored, report.files_unchanged, report.others)
    });
    assert_eq!(counts, [(1, 1, 0); 2]);
}

#[test]
fn errors_name_the_attribute_that_protects_an_object() {
    let bench = Bench::new(|source| {
        fs::create_dir(source.join("dir")).expect("makes");
        fs::write(source.join("dir/a"), "1").expect("writes");
        fs::write(source.join("dir/b"), "1").expect("writes");
    });
    for (flag, name) in [(IFlags::APPEND, "append-only"), (IFlags::IMMUTABLE, "immutable")] {
        for protected in ["dir", "dir/a"] {
            let target = format!("target-{name}-{}", protected.len());
            bench.restore(&target, &bench.options()).expect("restores");
            fs::write(bench.path(&target).join("dir/a"), "2").expect("writes");
            fs::remove_file(bench.path(&target).join("dir/b")).expect("removes");
            let path = bench.path(&target).join(protected);
            if !chattr(&path, flag, true) {
                return;
            }
            let reports = [true, false].map(|is_dry| {
                let options = Options { is_dry, ..bench.options() };
                let report = bench.restore(&target, &options);
                (report, bench.events())
            });
            assert!(chattr(&path, flag, false));
            let lost = if protected == "dir" { 2 } else { 1 };
            let mut all_paths = Vec::new();
            for (report, events) in reports {
                let (report, paths) = report.expect("restores");
                assert_eq!(report.failed, lost, "{events}");
                assert!(events.contains(name) && events.contains("chattr -"), "{events}");
                all_paths.push(paths);
            }
            assert_eq!(all_paths[0], all_paths[1]);
            let names = fs::read_dir(bench.path(&target).join("dir")).expect("lists").count();
            assert_eq!(names as u64, 3 - lost, "an unfinished file stayed");
        }
    }
}

#[test]
fn a_pattern_whose_paths_are_excluded_is_named_so() {
    let bench = Bench::new(|source| fs::write(source.join("a"), "a").expect("writes"));
    let globs = |pattern: &str| Globs::new([pattern.as_bytes()]).expect("a pattern");
    for (wanted, text) in [("a", "--exclude skips every path"), ("b", "no path of the snapshot")] {
        let include_each = vec![(wanted.into(), globs(wanted))];
        let (include, exclude) = (globs(wanted), globs("a"));
        let options = Options { include, include_each, exclude, ..bench.options() };
        bench.restore("target", &options).expect("restores");
        assert!(bench.events().contains(text), "{}", bench.events());
    }
}
