//! Restores into directories that are not empty.

mod again;
mod git_dirs;
mod metadata;
mod parents;

use super::*;
use crate::backup::{About, Backup, BackupOptions, Guard, Likeness, Sources};
use crate::config::Config;
use crate::entry::Time;
use crate::observe::{Observer, Progress};
use crate::owner_map::{SystemAccounts, Unmatched};
use crate::store::{Purpose, init};
use chunker::Parameters;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Records events.
#[derive(Default)]
struct Listener {
    events: Mutex<Vec<Event>>,
    progress: Progress,
}

impl Observer for Listener {
    fn event(&self, event: Event) {
        self.events.lock().push(event);
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// A store with one snapshot of the directory `source` next to it.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    listener: Arc<Listener>,
    root: ChunkId,
    /// Path of `source` in the tree.
    from: Vec<u8>,
}

impl Bench {
    /// Backs up the content that `make` puts into a directory.
    fn new(make: impl FnOnce(&Path)) -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let (source, at) = (dir.path().join("source"), dir.path().join("store"));
        fs::create_dir(&source).expect("makes");
        make(&source);
        let sizes = Parameters { min_bytes: 64, avg_bytes: 256, max_bytes: 1024 };
        init(&at, &Config::new([7; 16], sizes, 1)).expect("init");
        let listener = Arc::new(Listener::default());
        let store = Store::open(&at, Purpose::Write, Arc::clone(&listener) as Arc<dyn Observer>);
        let store = store.expect("opens");
        let (paths, options) = (vec![source.clone()], backup_options());
        let mut backup =
            Backup::begin(&store, &options, Likeness::of_paths(&paths)).expect("begins");
        backup.paths(&Sources { paths, ..Sources::default() }).expect("reads");
        let report = backup.finish(None).expect("backs up");
        let id = report.snapshot.expect("the run is not dry");
        let root = store.snapshot(&id).expect("reads").root.chunk();
        let from = source.as_os_str().as_bytes()[1..].to_vec();
        Bench { dir, store, listener, root, from }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self) -> Options {
        let none = || Globs::new([]).expect("no globs");
        Options {
            include: none(),
            include_each: Vec::new(),
            exclude: none(),
            delete: false,
            sources: vec![self.from.clone()],
            keep: Spared::default(),
            owners: Arc::default(),
            owner_record: None,
            ends_at_write_errors: false,
            is_dry: false,
        }
    }

    /// Restores `source`; also returns the paths that were reported as not restored.
    fn restore(&self, target: &str, options: &Options) -> Result<(Report, Vec<PathBuf>)> {
        self.listener.events.lock().clear();
        let target = self.path(target);
        let report = restore(&self.store, &self.root, &self.from, &target, options)?;
        let events = self.listener.events.lock();
        let mut paths: Vec<PathBuf> = events
            .iter()
            .filter_map(|event| match event {
                Event::NotRestored { path, .. } => Some(path.clone()),
                _ => None,
            })
            .collect();
        paths.sort();
        Ok((report, paths))
    }

    fn events(&self) -> String {
        format!("{:?}", self.listener.events.lock())
    }
}

/// Returns options without any choice.
pub(crate) fn backup_options() -> BackupOptions {
    BackupOptions {
        excludes: Vec::new(),
        one_file_system: false,
        exclude_caches: false,
        git_caches: true,
        ignore_ctime: false,
        ignore_inode: false,
        force: false,
        is_dry: false,
        walk_threads: 1,
        guard: Guard::default(),
        about: About {
            host: "host".into(),
            user: "user".into(),
            tags: Vec::new(),
            program: "test".into(),
            run: None,
            clock: || Time { seconds: 4_000_000_000, nanoseconds: 0 },
        },
    }
}

/// Objects that may be at a path.
const THINGS: [&str; 9] =
    ["nothing", "file", "empty", "full", "symlink", "fifo", "socket", "char", "block"];

/// Creates an object at a path. Returns false if this user may not.
fn put(thing: &str, path: &Path) -> bool {
    let node = |kind, device| mknodat(CWD, path, kind, Mode::RUSR, device).is_ok();
    match thing {
        "nothing" => true,
        "file" => fs::write(path, "content").is_ok(),
        "empty" => fs::create_dir(path).is_ok(),
        "full" => fs::create_dir_all(path.join("a"))
            .and_then(|()| {
                fs::write(path.join("a/b"), "b").and_then(|()| fs::write(path.join("c"), "c"))
            })
            .is_ok(),
        "symlink" => symlink("nowhere", path).is_ok(),
        "fifo" => node(FileType::Fifo, 0),
        "socket" => node(FileType::Socket, 0),
        "char" => node(FileType::CharacterDevice, makedev(1, 3)),
        "block" => node(FileType::BlockDevice, makedev(7, 99)),
        _ => unreachable!("one of THINGS"),
    }
}

/// Returns type, size and modification time of everything below a directory.
fn look(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("lists").path();
        let stat = path.symlink_metadata().expect("is there");
        let kind = stat.file_type();
        let words =
            format!("{kind:?} {:o} {} {:?}", stat.mode(), stat.rdev(), fs::read_link(&path));
        if kind.is_dir() {
            found.extend(look(&path));
        }
        let content = if kind.is_file() { fs::read(&path).expect("reads") } else { Vec::new() };
        found.insert(path, format!("{words} {content:?}"));
    }
    found
}

fn ctimes(dir: &Path) -> BTreeMap<PathBuf, (i64, i64)> {
    let stat = dir.symlink_metadata().expect("is there");
    let mut found = BTreeMap::from([(dir.to_owned(), (stat.ctime(), stat.ctime_nsec()))]);
    if stat.is_dir() {
        for entry in fs::read_dir(dir).expect("lists") {
            found.extend(ctimes(&entry.expect("lists").path()));
        }
    }
    found
}

/// Returns the tree at `dir` with paths relative to it.
fn relative_look(dir: &Path) -> BTreeMap<PathBuf, String> {
    let strip = |path: PathBuf| path.strip_prefix(dir).expect("below").to_owned();
    look(dir).into_iter().map(|(path, words)| (strip(path), words)).collect()
}

#[test]
fn any_file_type_replaces_any_other_as_a_dry_run_predicts() {
    for wanted in THINGS.into_iter().filter(|thing| *thing != "nothing") {
        let mut is_made = false;
        let bench = Bench::new(|source| {
            is_made = put(wanted, &source.join("x"));
            fs::write(source.join("y"), "beside").expect("writes");
        });
        if !is_made {
            continue; // only root can create devices
        }
        for there in THINGS {
            for delete in [false, true] {
                let what = format!("{wanted} over {there}, delete {delete}");
                let target = format!("{there}-{delete}");
                fs::create_dir(bench.path(&target)).expect("makes");
                if !put(there, &bench.path(&target).join("x")) {
                    continue;
                }
                let options = Options { delete, ..bench.options() };
                let dry = Options { is_dry: true, ..options.clone() };
                let before = look(&bench.path(&target));
                let (planned, planned_paths) = bench.restore(&target, &dry).expect("runs");
                assert_eq!(
                    look(&bench.path(&target)),
                    before,
                    "{what}: a dry run changed something"
                );
                let (done, paths) = bench.restore(&target, &options).expect("restores");
                assert_eq!((planned, planned_paths), (done.clone(), paths.clone()), "{what}");
                let is_dir = ["empty", "full"].contains(&wanted);
                let is_refused = there == "full" && !is_dir && !delete;
                assert_eq!(paths.len(), usize::from(is_refused), "{what}: {}", bench.events());
                assert_eq!(done.failed > 0, is_refused, "{what}");
                let (is, should) =
                    (relative_look(&bench.path(&target)), relative_look(&bench.path("source")));
                if is_refused {
                    assert!(bench.events().contains("move it away"), "{what}: {}", bench.events());
                    assert!(is.contains_key(Path::new("x/a/b")), "{what}");
                } else if delete || !(is_dir && there == "full") {
                    assert_eq!(is, should, "{what}");
                }
                let (again, paths) = bench.restore(&target, &options).expect("restores");
                assert_eq!((paths.len(), again.deleted), (usize::from(is_refused), 0), "{what}");
            }
        }
    }
}

#[test]
fn a_directory_with_skipped_paths_is_never_replaced() {
    let bench = Bench::new(|source| fs::write(source.join("x"), "x").expect("writes"));
    fs::create_dir_all(bench.path("target/x/cache")).expect("makes");
    fs::write(bench.path("target/x/kept.tmp"), "skipped").expect("writes");
    fs::write(bench.path("target/x/extra"), "extra").expect("writes");
    let keep: Spared = Globs::new([&b"*.tmp"[..]]).expect("a glob").into();
    let options = Options { delete: true, keep, ..bench.options() };
    let dry = Options { is_dry: true, ..options.clone() };
    let planned = bench.restore("target", &dry).expect("runs");
    let done = bench.restore("target", &options).expect("restores");
    assert_eq!((planned, 1), (done.clone(), done.0.failed));
    assert!(bench.path("target/x/kept.tmp").exists());
    assert!(bench.events().contains("paths that --delete keeps"));
}

/// Creates a tree with all kinds of metadata.
fn make_everything(source: &Path) {
    fs::create_dir_all(source.join("dir/inner")).expect("makes");
    for n in 0..100 {
        fs::write(source.join(format!("dir/{n}")), format!("{n}").repeat(n)).expect("writes");
    }
    fs::hard_link(source.join("dir/7"), source.join("another")).expect("links");
    for thing in ["symlink", "fifo", "socket", "char", "block"] {
        put(thing, &source.join(thing));
    }
    let mode = fs::Permissions::from_mode(0o2750);
    fs::set_permissions(source.join("dir/inner"), mode).expect("changes");
    // Metadata that this file system does not support is not compared.
    let flags = rustix::fs::XattrFlags::empty();
    for name in ["dir", "dir/3"] {
        let _ = rustix::fs::setxattr(source.join(name), "user.a", b"value", flags);
    }
}

#[test]
fn restoring_unchanged_files_does_not_touch_inodes() {
    let bench = Bench::new(make_everything);
    bench.restore("target", &bench.options()).expect("restores");
    for (target, delete) in [("target", false), ("target", true), ("source", false)] {
        let before = ctimes(&bench.path(target));
        let options = Options { delete, ..bench.options() };
        let (report, _) = bench.restore(target, &options).expect("restores");
        assert_eq!((report.files_restored, report.failed, report.deleted), (0, 0, 0));
        assert_eq!(ctimes(&bench.path(target)), before, "{target}, delete {delete}");
    }
}

#[test]
fn a_dry_run_predicts_the_counts_of_the_restore() {
    let bench = Bench::new(make_everything);
    let dry = Options { is_dry: true, ..bench.options() };
    let (planned, _) = bench.restore("target", &dry).expect("runs");
    assert!(!bench.path("target").exists());
    let (done, _) = bench.restore("target", &bench.options()).expect("restores");
    assert_eq!(planned, done);
}

#[test]
fn restoring_one_file_changes_only_it_and_its_directory() {
    let bench = Bench::new(make_everything);
    bench.restore("target", &bench.options()).expect("restores");
    fs::write(bench.path("target/dir/50"), "changed").expect("writes");
    let before = ctimes(&bench.path("target"));
    bench.restore("target", &bench.options()).expect("restores");
    let after = ctimes(&bench.path("target"));
    let changed = before.iter().filter(|(path, ctime)| after[*path] != **ctime);
    let changed: Vec<&PathBuf> = changed.map(|(path, _)| path).collect();
    assert_eq!(changed, [&bench.path("target/dir"), &bench.path("target/dir/50")]);
}

#[test]
fn different_metadata_is_corrected() {
    let bench = Bench::new(make_everything);
    bench.restore("target", &bench.options()).expect("restores");
    let (file, dir) = (bench.path("target/dir/3"), bench.path("target/dir"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).expect("changes");
    let flags = rustix::fs::XattrFlags::empty();
    let is_held = rustix::fs::setxattr(&file, "user.extra", b"x", flags).is_ok();
    if is_held {
        rustix::fs::setxattr(&dir, "user.extra", b"x", flags).expect("sets");
        rustix::fs::setxattr(&file, "user.a", b"other", flags).expect("sets");
    }
    let (report, _) = bench.restore("target", &bench.options()).expect("restores");
    assert_eq!((report.files_restored, report.metadata_refused, report.failed), (0, 0, 0));
    let mode = file.metadata().expect("is there").mode();
    assert_eq!(mode, bench.path("source/dir/3").metadata().expect("is there").mode());
    if is_held {
        let names = |path: &Path| source::xattrs_open(fs::File::open(path).expect("opens"));
        for path in [file, dir] {
            let names = names(&path).expect("lists");
            assert_eq!(names, [(b"user.a".to_vec(), b"value".to_vec())], "{}", path.display());
        }
    }
}

#[test]
fn a_restore_into_the_store_is_refused() {
    let bench = Bench::new(|source| {
        fs::create_dir_all(source.join("store/tmp")).expect("makes");
        let mode = fs::Permissions::from_mode(0o711);
        fs::set_permissions(source.join("store"), mode).expect("changes");
        fs::create_dir_all(source.join("b/store")).expect("makes");
        fs::write(source.join("b/file"), "x").expect("writes");
    });
    symlink("store", bench.path("link")).expect("links");
    let mode = || bench.path("store").metadata().expect("is there").mode();
    let before = (mode(), ctimes(&bench.path("store/segments")));
    for target in ["store", "store/tmp/new", "link/segments", "link"] {
        for is_dry in [false, true] {
            let options = Options { is_dry, ..bench.options() };
            let refused = bench.restore(target, &options);
            assert!(matches!(refused, Err(Error::TargetIsStore { .. })), "{target}: {refused:?}");
        }
    }
    // The tree has files at the path of the store.
    let refused = bench.restore("", &bench.options());
    assert!(matches!(refused, Err(Error::TargetIsStore { .. })), "{refused:?}");
    // The restore works if they are excluded, or if the tree has an empty directory there.
    let exclude = Globs::new([&b"source/store/tmp"[..]]).expect("a glob");
    bench.restore("", &Options { exclude, ..bench.options() }).expect("restores");
    assert!(bench.path("b/file").exists());
    assert!((mode(), ctimes(&bench.path("store/segments"))) == before);
}

#[test]
fn patterns_without_a_match_are_reported() {
    let bench = Bench::new(make_everything);
    let include = |patterns: &[&str]| Options {
        include: Globs::new(patterns.iter().map(|pattern| pattern.as_bytes())).expect("globs"),
        include_each: patterns
            .iter()
            .map(|pattern| (pattern.to_string(), Globs::new([pattern.as_bytes()]).expect("a glob")))
            .collect(),
        ..bench.options()
    };
    let (report, _) = bench.restore("some", &include(&["50", "nosuch"])).expect("restores");
    assert_eq!((report.files_restored, bench.events().contains("matches nosuch")), (1, true));
    assert!(!bench.events().contains("matches 50"));
    let (report, _) = bench.restore("none", &include(&["nosuch"])).expect("restores");
    assert_eq!((report, bench.path("none").exists()), (Report::default(), false));
}

#[test]
fn a_restore_removes_only_abandoned_unfinished_files() {
    let bench = Bench::new(make_everything);
    bench.restore("target", &bench.options()).expect("restores");
    let left = bench.path("target/dir/.forgekeep-unfinished-0123456789abcdef");
    let held = bench.path("target/dir/.forgekeep-unfinished-fedcba9876543210");
    let left_on_top = bench.path("target/.forgekeep-unfinished-0123456789abcdef");
    fs::write(&left, "half").expect("writes");
    fs::write(&left_on_top, "half").expect("writes");
    fs::write(&held, "half").expect("writes");
    let lock = fs::File::open(&held).expect("opens");
    lock.lock().expect("locks");
    let options = bench.options();
    bench.restore("target", &options).expect("restores");
    assert_eq!((left.exists(), left_on_top.exists(), held.exists()), (false, false, true));
    drop(lock);
    bench.restore("target", &options).expect("restores");
    assert!(!held.exists());
}

#[test]
fn concurrent_restores_both_succeed() {
    let bench = Bench::new(make_everything);
    let should = relative_look(&bench.path("source"));
    for round in 0..20 {
        let target = bench.path(&format!("target-{round}"));
        let options = bench.options();
        std::thread::scope(|scope| {
            let run = || restore(&bench.store, &bench.root, &bench.from, &target, &options);
            let runs = [scope.spawn(run), scope.spawn(run)];
            for run in runs {
                let report = run.join().expect("no panic").expect("restores");
                assert_eq!((report.failed, report.metadata_refused), (0, 0), "{}", bench.events());
            }
        });
        assert_eq!(relative_look(&target), should);
    }
}

/// Number of times that a racing thread puts a link in place of a directory.
const SWAPS: u64 = 100_000;

#[test]
fn racing_links_do_not_redirect_writes_outside() {
    let bench = Bench::new(|source| {
        for dir in 0..4 {
            fs::create_dir_all(source.join(format!("{dir}/in"))).expect("makes");
            for n in 0..30 {
                let name = format!("{dir}/in/{n}");
                fs::write(source.join(&name), name.repeat(n * 7)).expect("writes");
                symlink("x", source.join(format!("{dir}/in/link-{n}"))).expect("links");
                put("fifo", &source.join(format!("{dir}/fifo-{n}")));
            }
        }
    });
    let outside = bench.path("outside");
    fs::create_dir_all(outside.join("in")).expect("makes");
    for n in 0..30 {
        fs::write(outside.join(format!("in/{n}")), "outside").expect("writes");
        fs::write(outside.join(format!("fifo-{n}")), "outside").expect("writes");
    }
    let before = ctimes(&outside);
    let (is_over, target) = (AtomicBool::new(false), bench.path("target"));
    let swaps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for dir in 0..4 {
            let (target, outside, is_over) = (&target, &outside, &is_over);
            let swaps = &swaps;
            scope.spawn(move || {
                // Each step may fail, because the restore works on the same paths.
                while !is_over.load(Relaxed) {
                    let (at, aside) =
                        (target.join(format!("{dir}")), target.join(format!("aside-{dir}")));
                    let _ = fs::rename(&at, &aside);
                    let swapped = symlink(outside, &at);
                    swaps.fetch_add(u64::from(swapped.is_ok()), Relaxed);
                    for name in ["in/3", "fifo-5", "in/link-7"] {
                        let _ = fs::remove_file(aside.join(name));
                        let _ = symlink(outside.join("in/3"), aside.join(name));
                    }
                    let _ = fs::remove_file(&at);
                    let _ = fs::rename(&aside, &at);
                }
            });
        }
        // An owner map must not reach the files outside, either.
        let mut rounds = 0..;
        while swaps.load(Relaxed) < SWAPS {
            let round: u32 = rounds.next().expect("has no end");
            let mut owners = OwnerMap::new(Unmatched::ByNumber, Box::new(SystemAccounts));
            if round % 3 == 2 {
                owners.add_owner("--chown", b"4321:4321").expect("is valid");
                owners.add_mode("--chmod", b"o-rwx").expect("is valid");
            }
            let (delete, owners) = (round % 2 == 1, Arc::new(owners));
            let options = Options { delete, owners, ..bench.options() };
            let done = restore(&bench.store, &bench.root, &bench.from, &target, &options);
            assert!(done.is_ok(), "{done:?}");
        }
        is_over.store(true, Relaxed);
    });
    assert_eq!(ctimes(&outside), before);
    assert!(fs::read_dir(&outside).expect("lists").count() == 31);
    bench.restore("target", &Options { delete: true, ..bench.options() }).expect("restores");
    assert_eq!(relative_look(&target), relative_look(&bench.path("source")));
    let kind = target.join("0/fifo-5").symlink_metadata().expect("is there").file_type();
    assert!(kind.is_fifo());
}

/// Returns the names in a directory and the content of its files.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("lists").path());
    entries.map(|path| (name(&path), fs::read(&path).expect("reads"))).collect()
}

fn target_at(dir: &Path) -> Target {
    Target::new(source::open_dir(dir).expect("opens"))
}

#[test]
fn dropping_an_unfinished_file_removes_only_that_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = target_at(dir.path());
    for directly in [true, false] {
        let begun = target.begin(b"a", directly, true).expect("begins");
        drop(begun);
        assert_eq!(files(dir.path()), BTreeMap::new());
    }
    // Another restore was faster and has the complete file.
    let begun = target.begin(b"a", true, true).expect("begins");
    fs::write(dir.path().join("other"), "complete").expect("writes");
    fs::rename(dir.path().join("other"), dir.path().join("a")).expect("renames");
    drop(begun);
    assert_eq!(files(dir.path()), BTreeMap::from([("a".into(), b"complete".to_vec())]));
}

#[test]
fn only_the_written_file_gets_the_final_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let target = target_at(dir.path());
    let entry = Entry::new(b"a".to_vec(), EntryKind::File, 0o600);
    fs::write(dir.path().join("a"), "before").expect("writes");
    let begun = target.begin(b"a", false, true).expect("begins");
    let names = files(dir.path()).into_keys();
    let unfinished = names.filter(|name| name != "a").collect::<Vec<_>>();
    assert_eq!(unfinished.len(), 1);
    fs::remove_file(dir.path().join(&unfinished[0])).expect("removes");
    fs::write(dir.path().join(&unfinished[0]), "somebody else's").expect("writes");
    assert!(target.finish(begun, b"a", &target::Metadata::of(&entry)).is_err());
    let found = files(dir.path());
    assert_eq!(found["a"], b"before");
    assert_eq!(found[&unfinished[0]], b"somebody else's");
}

#[test]
fn unfinished_files_are_locked_and_have_unique_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let begun = [(); 2].map(|()| target_at(dir.path()).begin(b"a", false, true).expect("begins"));
    // Each `target_at` looked for abandoned files and spared these.
    assert_eq!(files(dir.path()).len(), 2);
    drop(begun);
    assert_eq!(files(dir.path()).len(), 0);
}
