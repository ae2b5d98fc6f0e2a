//! Directories that a restore only passes through.

use super::*;

impl Bench {
    /// Restores all paths of the snapshot below a directory, after a dry run of the same counts.
    fn restore_all(&self, target: &Path, options: &Options) -> Report {
        self.listener.events.lock().clear();
        let run = |options: &Options| restore(&self.store, &self.root, b"", target, options);
        let planned = run(&Options { is_dry: true, ..options.clone() }).expect("runs");
        self.listener.events.lock().clear();
        let done = run(options).expect("restores");
        let planned = Report { owners_to_set: 0, modes_to_set: 0, ..planned };
        assert_eq!(planned, done, "{}", self.events());
        done
    }

    /// Path of a directory above `source`, restored below `target`.
    fn parent_in(&self, target: &str) -> PathBuf {
        let source = self.path("source");
        let parent = source.strip_prefix("/").expect("absolute").parent().expect("has one");
        self.path(target).join(parent)
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("is there").mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changes");
}

#[test]
fn nothing_replaces_a_link_or_a_file_above_the_sources() {
    let bench = Bench::new(|source| {
        fs::create_dir(source.join("dir")).expect("makes");
        fs::write(source.join("dir/file"), "x").expect("writes");
    });
    fs::create_dir(bench.path("elsewhere")).expect("makes");
    for (n, delete) in [false, true, false, true].into_iter().enumerate() {
        let target = format!("target-{n}");
        let parent = bench.parent_in(&target);
        fs::create_dir_all(parent.parent().expect("has one")).expect("makes");
        match n {
            0 | 1 => symlink(bench.path("elsewhere"), &parent).expect("links"),
            _ => fs::write(&parent, "a file").expect("writes"),
        }
        let before = relative_look(&bench.path(&target));
        let options = Options { delete, ..bench.options() };
        let report = bench.restore_all(&bench.path(&target), &options);
        assert_eq!(relative_look(&bench.path(&target)), before);
        assert_eq!(fs::read_dir(bench.path("elsewhere")).expect("lists").count(), 0);
        // The parent itself, `source`, `dir` and `file`.
        assert_eq!((report.failed, report.files_restored), (4, 0), "{}", bench.events());
        let events = bench.events();
        assert!(events.contains("restored paths") && !events.contains("source"), "{events}");
    }
}

#[test]
fn existing_directories_above_the_sources_keep_their_metadata() {
    let bench = Bench::new(|source| fs::write(source.join("file"), "x").expect("writes"));
    let target = bench.path("target");
    bench.restore_all(&target, &bench.options());
    let parent = bench.parent_in("target");
    assert_eq!(mode(&parent), mode(bench.path("source").parent().expect("has one")));
    set_mode(&parent, 0o751);
    set_mode(&parent.join("source"), 0o700);
    fs::write(parent.join("source/extra"), "x").expect("writes");
    let options = Options { delete: true, ..bench.options() };
    assert_eq!(bench.restore_all(&target, &options).deleted, 1);
    assert_eq!(mode(&parent), 0o751);
    assert_eq!(mode(&parent.join("source")), mode(&bench.path("source")));
    assert!(bench.events().contains("keeping its owner and mode"), "{}", bench.events());
}

#[test]
fn directories_that_a_killed_restore_made_get_their_metadata() {
    let bench = Bench::new(|source| fs::write(source.join("file"), "x").expect("writes"));
    let wanted = mode(bench.path("source").parent().expect("has one"));
    for (target, is_marked) in [("empty", false), ("marked", true)] {
        let parent = bench.parent_in(target);
        fs::create_dir_all(&parent).expect("makes");
        if is_marked {
            fs::create_dir(parent.join("source")).expect("makes");
            target_at(&parent).mark(b"");
        }
        set_mode(&parent, 0o711);
        bench.restore_all(&bench.path(target), &bench.options());
        assert_eq!(mode(&parent), wanted, "{target}");
        let names = fs::read_dir(&parent).expect("lists").count();
        assert_eq!(names, 1, "{target}: the mark is left");
    }
}

#[test]
fn directories_above_included_paths_are_only_passed_through() {
    let bench = Bench::new(|source| {
        fs::create_dir_all(source.join("a/b")).expect("makes");
        fs::write(source.join("a/b/file"), "x").expect("writes");
    });
    let include = Globs::new([&b"file"[..]]).expect("a glob");
    let options = Options { include, ..bench.options() };
    bench.restore("fresh", &options).expect("restores");
    assert_eq!(relative_look(&bench.path("fresh")), relative_look(&bench.path("source")));
    fs::remove_file(bench.path("fresh/a/b/file")).expect("removes");
    fs::write(bench.path("fresh/a/other"), "x").expect("writes");
    set_mode(&bench.path("fresh/a"), 0o711);
    bench.restore("fresh", &options).expect("restores");
    assert_eq!(mode(&bench.path("fresh/a")), 0o711);
    assert!(bench.path("fresh/a/b/file").exists());
    fs::rename(bench.path("fresh/a"), bench.path("moved")).expect("moves");
    symlink("../moved", bench.path("fresh/a")).expect("links");
    let (report, paths) = bench.restore("fresh", &options).expect("restores");
    assert_eq!((report.failed, paths), (3, vec![bench.path("fresh/a")]));
    assert!(bench.path("fresh/a").is_symlink());
}

#[test]
fn a_replaced_link_inside_the_sources_is_reported() {
    let bench = Bench::new(|source| fs::create_dir(source.join("dir")).expect("makes"));
    fs::create_dir(bench.path("target")).expect("makes");
    symlink("/", bench.path("target/dir")).expect("links");
    let (report, _) = bench.restore("target", &bench.options()).expect("restores");
    assert_eq!(report.failed, 0);
    let events = bench.events();
    assert!(events.contains("replaced a symbolic link by a directory"), "{events}");
}
