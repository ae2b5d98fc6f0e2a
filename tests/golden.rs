//! Stores written by earlier versions: `tests/fixtures`.

use crate::support::sandbox::Run;
use crate::support::stores::{self, restore_options};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use store::backup::{About, BackupOptions};
use store::check::{ReadData, check};
use store::config::Config;
use store::dump;
use store::entry::{Content, Entry, EntryKind, Time, display_path};
use store::id::SnapshotId;
use store::recipe::{Extent, Extents};
use store::restore::{Report, restore};
use store::store::{Purpose, Store};
use store::tree::TreeReader;

/// Directory of the source when the store was written.
const SOURCE: &str = "/tmp/forgekeep-golden/source";
/// Directory of the source for the store of two nights.
const NIGHTS: &str = "/tmp/forgekeep-golden-nights";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/store").join(name)
}

/// Returns `dir` as a path in trees.
fn tree_path(dir: &Path) -> Vec<u8> {
    dir.strip_prefix("/").expect("absolute").as_os_str().as_bytes().to_vec()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("makes a directory");
    for item in fs::read_dir(from).expect("lists") {
        let item = item.expect("lists");
        let target = to.join(item.file_name());
        if item.file_type().expect("has a kind").is_dir() {
            copy(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).expect("copies");
        }
    }
}

/// A copy of the store.
struct Golden {
    dir: tempfile::TempDir,
}

impl Golden {
    fn new() -> Golden {
        Golden::named("v2")
    }

    /// Copies another store of that version.
    fn named(name: &str) -> Golden {
        let dir = tempfile::tempdir().expect("a temporary directory");
        copy(&fixture(name), &dir.path().join("store"));
        Golden { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("it is there").join(name)
    }

    fn open(&self, purpose: Purpose) -> Store {
        stores::open(&self.path("store"), purpose)
    }

    /// Restores a snapshot of the source into a new directory of this name.
    fn restore(&self, store: &Store, id: &SnapshotId, name: &str) -> Report {
        let root = store.snapshot(id).expect("reads").root.chunk();
        let source = tree_path(Path::new(SOURCE));
        let report = restore(store, &root, &source, &self.path(name), &restore_options());
        let report = report.expect("restores");
        assert_eq!(report.failed, 0);
        report
    }

    fn assert_whole(&self) {
        let store = self.open(Purpose::Read);
        let report = check(&store, ReadData::All).expect("checks");
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(listing(&store, SOURCE), expected());
    }

    /// Returns the names of all segments of file content.
    fn data_segments(&self) -> BTreeSet<PathBuf> {
        let dirs = fs::read_dir(self.path("store/segments")).expect("lists");
        let files = dirs.flat_map(|dir| fs::read_dir(dir.expect("lists").path()).expect("lists"));
        let paths = files.map(|file| file.expect("lists").path());
        paths.filter(|path| fs::read(path).expect("reads")[18] == 1).collect()
    }
}

fn expected() -> String {
    fs::read_to_string(fixture("v2.expected")).expect("reads")
}

/// Returns the two snapshots of the original store, oldest first.
fn originals(store: &Store) -> Vec<SnapshotId> {
    let (snapshots, errors) = store.snapshots().expect("lists");
    assert!(errors.is_empty(), "{errors:?}");
    snapshots.into_iter().take(2).map(|(id, _)| id).collect()
}

/// Lists the two oldest snapshots below `source`, in a form that does not depend on the reader.
fn listing(store: &Store, source: &str) -> String {
    let mut out = String::new();
    for id in originals(store) {
        let snapshot = store.snapshot(&id).expect("reads");
        writeln!(out, "snapshot {id}").expect("grows");
        writeln!(out, "  at {} tags {:?}", snapshot.start.seconds, snapshot.tags).expect("grows");
        for entry in entries(store, &id, source) {
            writeln!(out, "  {}", line(store, &entry, source)).expect("grows");
        }
    }
    out
}

fn entries(store: &Store, id: &SnapshotId, source: &str) -> Vec<Entry> {
    let root = store.snapshot(id).expect("reads").root.chunk();
    let source = tree_path(Path::new(source));
    TreeReader::within(&root, &source, store).map(|entry| entry.expect("reads")).collect()
}

fn line(store: &Store, entry: &Entry, source: &str) -> String {
    let name = &entry.path[tree_path(Path::new(source)).len()..];
    let Time { seconds, nanoseconds } = entry.mtime.expect("below the source");
    let mut line = format!("{}{:04o} {seconds}.{nanoseconds:09}", entry.kind.letter(), entry.mode);
    if entry.kind == EntryKind::File {
        let bytes = content(store, entry);
        write!(line, " {} {}", bytes.len(), blake3::hash(&bytes)).expect("grows");
        line += &layout(store, entry);
    }
    if entry.hard_link.is_some() {
        line += " linked";
    }
    for (name, value) in &entry.xattrs {
        write!(line, " {}={}", display_path(name), display_path(value)).expect("grows");
    }
    write!(line, " .{}", display_path(name)).expect("grows");
    if entry.kind == EntryKind::Symlink {
        write!(line, " -> {}", display_path(&entry.target)).expect("grows");
    }
    line
}

fn content(store: &Store, entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::new();
    dump::dump(store, entry, &mut bytes).expect("reads").expect("grows");
    bytes
}

/// Describes how a file is stored: inline, or as a number of extents by type.
fn layout(store: &Store, entry: &Entry) -> String {
    let Content::Recipe(recipe) = &entry.content else { return " inline".into() };
    let extents = Extents::new(recipe, store).map(|extent| extent.expect("reads"));
    let (holes, slices): (Vec<_>, Vec<_>) =
        extents.partition(|extent| matches!(extent, Extent::Hole { .. }));
    format!(" level {} slices {} holes {}", recipe.level, slices.len(), holes.len())
}

/// A repository before and after repacking, and a dump of two days: recipes in columns.
#[test]
fn files_stored_as_slices_are_restored() {
    let golden = Golden::named("v2-nights");
    let store = golden.open(Purpose::Read);
    let report = check(&store, ReadData::All).expect("checks");
    assert!(report.is_clean(), "{report:?}");
    let (snapshots, _) = store.snapshots().expect("lists");
    let (id, snapshot) = snapshots.last().expect("two nights");
    let is_sliced = |entry: Entry| match &entry.content {
        Content::Recipe(recipe) => Extents::new(recipe, &store)
            .any(|extent| matches!(extent, Ok(Extent::Slice { offset: 1.., .. }))),
        _ => false,
    };
    let entries =
        TreeReader::new(&snapshot.root.chunk(), &store).map(|entry| entry.expect("reads"));
    let sliced: Vec<String> = entries
        .filter(|entry| is_sliced(entry.clone()))
        .map(|entry| {
            String::from_utf8_lossy(&entry.path).rsplit('.').next().expect("one").to_owned()
        })
        .collect();
    for wanted in ["sql", "pack"] {
        assert!(sliced.iter().any(|kind| kind == wanted), "{sliced:?}");
    }
    let root = store.snapshot(id).expect("reads").root.chunk();
    let source = tree_path(Path::new(NIGHTS));
    let report = restore(&store, &root, &source, &golden.path("back"), &restore_options());
    assert_eq!(report.expect("restores").failed, 0);
    let expected = fs::read_to_string(fixture("v2-nights.expected")).expect("reads");
    for line in expected.lines() {
        let (hash, path) = line.split_once("  ").expect("two columns");
        let found = fs::read(golden.path("back").join(path)).expect("reads");
        assert_eq!(blake3::hash(&found).to_hex().as_str(), hash, "{path}");
    }
}

#[test]
fn the_golden_store_is_whole_and_complete() {
    let golden = Golden::new();
    for missing in ["index.sqlite", "lock", "tmp"] {
        assert!(!golden.path("store").join(missing).exists(), "{missing} belongs to nobody");
    }
    golden.assert_whole();
}

#[test]
fn golden_snapshots_are_restored_exactly() {
    let golden = Golden::new();
    let store = golden.open(Purpose::Read);
    for id in originals(&store) {
        let name = id.short();
        let report = golden.restore(&store, &id, &name);
        let mut links: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for entry in entries(&store, &id, SOURCE) {
            let below = &entry.path[tree_path(Path::new(SOURCE)).len()..];
            let below = std::ffi::OsStr::from_bytes(below.strip_prefix(b"/").unwrap_or(below));
            let path = golden.path(&name).join(below);
            if entry.hard_link.is_some() {
                let inode = path.symlink_metadata().expect("is there").ino();
                links.entry(entry.inode).or_default().insert(inode);
            }
            // The target existed, and the restore filled it.
            if !below.is_empty() {
                assert_restored(&store, &entry, &path, report.xattr_denied == 0);
            }
        }
        assert!(!links.is_empty() && links.values().all(|inodes| inodes.len() == 1), "{links:?}");
    }
}

fn assert_restored(store: &Store, entry: &Entry, path: &Path, has_xattrs: bool) {
    let found = path.symlink_metadata().unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let time = entry.mtime.map(|time| (time.seconds, i64::from(time.nanoseconds)));
    assert_eq!(time, Some((found.mtime(), found.mtime_nsec())), "{path:?}");
    if entry.kind == EntryKind::Symlink {
        let target = fs::read_link(path).expect("a link");
        assert_eq!(target.as_os_str().as_bytes(), entry.target, "{path:?}");
        return;
    }
    assert_eq!(found.mode() & 0o7777, entry.mode, "{path:?}");
    assert_eq!(found.is_dir(), entry.kind == EntryKind::Directory, "{path:?}");
    if entry.kind == EntryKind::File {
        assert!(fs::read(path).expect("reads") == content(store, entry), "{path:?}");
    }
    for (name, value) in entry.xattrs.iter().filter(|_| has_xattrs) {
        let mut buffer = [0; 100];
        let len = rustix::fs::lgetxattr(path, &name[..], &mut buffer).expect("has the attribute");
        assert_eq!(&buffer[..len], &value[..], "{path:?}");
    }
}

#[test]
fn restored_files_are_cut_into_the_same_chunks() {
    let golden = Golden::new();
    let store = golden.open(Purpose::Read);
    let targets = ["first", "second"].map(|name| golden.path(name));
    for (id, name) in originals(&store).iter().zip(["first", "second"]) {
        golden.restore(&store, id, name);
    }
    drop(store);
    let before = golden.data_segments();
    assert!(!before.is_empty());
    // The file system decides where holes begin and end.
    let options = BackupOptions { excludes: vec!["sparse".into()], ..stores::backup_options() };
    let (store, sources) = (golden.open(Purpose::Write), [targets[0].as_path(), &targets[1]]);
    stores::back_up(&store, &sources, &options).expect("backs up");
    drop(store);
    assert_eq!(golden.data_segments(), before, "known content was stored again");
    golden.assert_whole();
}

#[test]
fn a_new_backup_keeps_the_golden_snapshots_whole() {
    let golden = Golden::new();
    let source = golden.path("new");
    fs::create_dir(&source).expect("makes a directory");
    fs::write(source.join("file"), noise(5, 5000)).expect("writes");
    let before = golden.data_segments();
    let id = stores::backup(&golden.path("store"), &[&source]).expect("backs up");
    assert!(golden.data_segments().len() > before.len());
    golden.assert_whole();
    let store = golden.open(Purpose::Read);
    let root = store.snapshot(&id).expect("reads").root.chunk();
    let target = golden.path("target");
    let report = restore(&store, &root, &tree_path(&source), &target, &restore_options());
    assert_eq!(report.expect("restores").failed, 0);
    assert_eq!(fs::read(target.join("file")).expect("reads"), noise(5, 5000));
}

#[test]
fn a_store_without_a_segment_directory_is_an_error() {
    let golden = Golden::new();
    fs::remove_dir_all(golden.path("store/segments")).expect("removes");
    let silent = std::sync::Arc::new(store::observe::Silent::default());
    let opened = Store::open(&golden.path("store"), Purpose::Write, silent);
    assert!(matches!(opened.err(), Some(store::Error::StoreRead { .. })));
}

/// Returns pseudorandom bytes that are always the same.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Creates the files of the first snapshot.
fn make_source(source: &Path) {
    let write = |name: &[u8], bytes: &[u8]| {
        fs::write(source.join(std::ffi::OsStr::from_bytes(name)), bytes).expect("writes");
    };
    fs::create_dir_all(source.join("repo/objects")).expect("makes directories");
    write(b"empty", b"");
    write(b"inline", b"short enough to stand in its entry");
    write(b"noise", &noise(1, 9000));
    write(b"text", &b"A line that comes again and again. ".repeat(400));
    write(b"many-chunks", &noise(2, 20_000));
    write(b"one-chunk", &noise(3, 600));
    write(b"na\xefve \xff\n", b"a name that is not UTF-8");
    write(b"repo/HEAD", b"ref: refs/heads/main\n");
    write(b"repo/objects/linked", &noise(4, 700));
    fs::hard_link(source.join("repo/objects/linked"), source.join("link")).expect("links");
    symlink("repo/HEAD", source.join("symbolic")).expect("links");
    symlink("no\u{1b}where", source.join("dangling")).expect("links");
    let sparse = fs::File::create(source.join("sparse")).expect("creates");
    sparse.set_len(3 << 20).expect("grows");
    sparse.write_all_at(b"an island", 1 << 20).expect("writes");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(source.join("noise"), "user.note", b"v\x001", flags).expect("attributes");
    let mode = |name: &str, mode| {
        fs::set_permissions(source.join(name), PermissionsExt::from_mode(mode)).expect("a mode");
    };
    mode("inline", 0o4711);
    mode("noise", 0o600);
    mode("repo", 0o2750);
}

/// Makes the changes for the second snapshot.
fn change_source(source: &Path) {
    let mut changed = noise(2, 20_000);
    changed.splice(7000..7000, *b"inserted");
    fs::write(source.join("many-chunks"), changed).expect("writes");
    fs::write(source.join("new"), b"new in the second snapshot ".repeat(30)).expect("writes");
    fs::remove_file(source.join("one-chunk")).expect("removes");
}

/// Gives everything at and below `path` an individual time that is always the same.
fn set_times(path: &Path, seconds: i64) {
    let is_dir = path.symlink_metadata().expect("is there").is_dir();
    let mut items: Vec<PathBuf> = Vec::new();
    if is_dir {
        let listed = fs::read_dir(path).expect("lists");
        items.extend(listed.map(|item| item.expect("lists").path()));
    }
    items.sort();
    for (n, item) in (1..).zip(&items) {
        set_times(item, seconds + n);
    }
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: seconds % 1000 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).expect("sets times");
}

fn back_up(root: &Path, source: &str, clock: fn() -> Time, tags: &[&str]) {
    let options = stores::backup_options();
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    let about = About { tags, clock, program: env!("CARGO_PKG_VERSION").into(), ..options.about };
    let store = stores::open(root, Purpose::Write);
    stores::back_up(&store, &[Path::new(source)], &BackupOptions { about, ..options })
        .expect("backs up");
}

/// Removes files that a store does not need, and directories that git does not keep.
fn strip(root: &Path) {
    for name in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "lock"] {
        let _ = fs::remove_file(root.join(name));
    }
    fs::remove_dir(root.join("tmp")).expect("is empty");
    for dir in fs::read_dir(root.join("segments")).expect("lists") {
        // The others hold segments.
        let _ = fs::remove_dir(dir.expect("lists").path());
    }
}

#[test]
#[ignore = "makes tests/fixtures/store/v2, once"]
fn make_the_store() {
    let (root, source) = (fixture("v2"), Path::new(SOURCE));
    assert!(!root.exists(), "a golden store is never written again");
    let work = source.parent().expect("not the root");
    let _ = fs::remove_dir_all(work);
    make_source(source);
    set_times(source, 1_600_000_000);
    stores::init_small(&root);
    back_up(&root, SOURCE, || Time { seconds: 1_700_000_000, nanoseconds: 5 }, &["nightly"]);
    change_source(source);
    set_times(source, 1_600_000_000);
    set_times(&source.join("many-chunks"), 1_700_000_100);
    back_up(
        &root,
        SOURCE,
        || Time { seconds: 1_700_086_400, nanoseconds: 0 },
        &["nightly", "keep"],
    );
    strip(&root);
    // Read from a copy, because an open store creates an index.
    let dir = tempfile::tempdir().expect("a temporary directory");
    copy(&root, &dir.path().join("store"));
    let store = stores::open(&dir.path().join("store"), Purpose::Read);
    fs::write(fixture("v2.expected"), listing(&store, SOURCE)).expect("writes");
    fs::remove_dir_all(work).expect("removes");
}

/// Returns the rows of a dump. On the second night some are changed and some are new.
fn dump_of(night: u32) -> String {
    let row = |n: u32| {
        let text = blake3::hash(&n.to_le_bytes()).to_hex();
        let is_new = night > 0 && n % 500 == 7;
        if is_new { format!("{n}\tchanged {text}\n") } else { format!("{n}\t{text}\n") }
    };
    let rows: String = (0..3000 + 40 * night).map(row).collect();
    format!("--\n-- PostgreSQL database dump\n--\n\nCOPY public.t (id, v) FROM stdin;\n{rows}\\.\n")
}

fn git(dir: &Path, arguments: &[&str], input: &str) {
    let outcome = Run::program("git").args(["-C"]).args([dir]).args(arguments).input(input).run();
    outcome.ok();
}

/// Adds commits of files to a bare repository and repacks all of it.
fn commit(repository: &Path, files: std::ops::Range<u8>) {
    let (mut stream, first) = (String::new(), files.start);
    for n in files {
        let text: String = noise(n, 2000).iter().map(|byte| format!("{byte:02x}\n")).collect();
        // Later commits in the stream follow automatically.
        let from = if n == first && n > 0 { "from refs/heads/main^0\n" } else { "" };
        let (message, len) = (format!("file {n}"), text.len());
        write!(
            stream,
            "commit refs/heads/main\ncommitter A <a@example.org> {} +0000\ndata {}\n{message}\n{from}\
             M 644 inline f{n}\ndata {len}\n{text}\n",
            1_600_000_000 + u64::from(n),
            message.len()
        )
        .expect("grows");
    }
    git(repository, &["fast-import", "--quiet"], &stream);
    git(repository, &["repack", "-a", "-d", "-q"], "");
}

#[test]
#[ignore = "makes tests/fixtures/store/v2-nights, once"]
fn make_the_nights() {
    let (root, nights) = (fixture("v2-nights"), Path::new(NIGHTS));
    assert!(!root.exists(), "a golden store is never written again");
    let _ = fs::remove_dir_all(nights);
    fs::create_dir_all(nights).expect("makes directories");
    let repository = nights.join("repo.git");
    git(nights, &["init", "--quiet", "--bare", "--template=", "repo.git"], "");
    let config = Config::new([7; 16], chunker::Parameters::DEFAULT, 3);
    store::store::init(&root, &config).expect("init");
    for night in 0..2 {
        commit(&repository, if night == 0 { 0..30 } else { 30..33 });
        fs::write(nights.join("dump.sql"), dump_of(night)).expect("writes");
        let clock: fn() -> Time = match night {
            0 => || Time { seconds: 1_700_000_000, nanoseconds: 0 },
            _ => || Time { seconds: 1_700_086_400, nanoseconds: 0 },
        };
        back_up(&root, NIGHTS, clock, &[]);
    }
    strip(&root);
    let mut expected = String::new();
    for path in files_below(nights, Path::new("")) {
        let hash = blake3::hash(&fs::read(nights.join(&path)).expect("reads"));
        writeln!(expected, "{hash}  {}", path.display()).expect("grows");
    }
    fs::write(fixture("v2-nights.expected"), expected).expect("writes");
    fs::remove_dir_all(nights).expect("removes");
}

/// Returns all files below a directory, in order, relative to `top`.
fn files_below(top: &Path, dir: &Path) -> Vec<PathBuf> {
    let mut items: Vec<_> =
        fs::read_dir(top.join(dir)).expect("lists").map(|item| item.expect("lists")).collect();
    items.sort_by_key(std::fs::DirEntry::file_name);
    let below = |item: &fs::DirEntry| {
        let path = dir.join(item.file_name());
        match item.file_type().expect("has a kind").is_dir() {
            true => files_below(top, &path),
            false => vec![path],
        }
    };
    items.iter().flat_map(below).collect()
}
