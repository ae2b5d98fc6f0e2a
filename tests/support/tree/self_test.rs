//! Tests that the comparison finds each kind of difference, and nothing else.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, makedev};
use tempfile::TempDir;

use super::super::sandbox::Run;
use super::build::Builder;
use super::everything::{ACCESS, Acl, DEFAULT, acl, random_bytes};
use super::{
    Expected, Ignore, at, build_everything, compare, compare_ignoring, has_full_privileges,
    make_writable_and_remove, map,
};

/// Two trees, equal at first, that are removed when dropped.
struct Pair {
    scratch: TempDir,
    a: PathBuf,
    b: PathBuf,
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Removed first, so that `TempDir` cannot fail.
        for tree in [&self.a, &self.b] {
            let removed = make_writable_and_remove(tree);
            // A second panic would hide the message of the first.
            if !std::thread::panicking() {
                removed.expect("removing a tree");
            }
        }
    }
}

impl Pair {
    fn empty() -> Pair {
        let scratch = TempDir::new().expect("making a temporary directory");
        let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
        for tree in [&a, &b] {
            fs::create_dir(tree).expect("making a top directory");
        }
        Pair { scratch, a, b }
    }

    /// Creates two small trees, each with one object of most kinds.
    fn small() -> Pair {
        let pair = Pair::empty();
        for tree in [&pair.a, &pair.b] {
            build_small(tree).expect("building a small tree");
        }
        pair
    }

    /// Changes a path in `b`, given as directory handle and name. Restores the modification times
    /// of the path, if it still exists, and of its directory.
    fn change(&self, path: &str, change: impl FnOnce(&Changed<'_>) -> io::Result<()>) {
        let full = self.b.join(path);
        let dir = full.parent().expect("a path with a parent");
        let times = [(dir, mtime(dir)), (&full, mtime(&full))];
        let top = at::open_top(dir).expect("opening a directory to change");
        let name = full.file_name().expect("a path with a name");
        change(&Changed { dir: top.as_fd(), name: name.as_encoded_bytes(), path: &full })
            .expect("changing something");
        for (path, time) in times.iter().rev() {
            if let (Some(time), Some(_)) = (time, mtime(path)) {
                set_mtime(path, *time);
            }
        }
    }

    /// Asserts that there is exactly one difference, which begins with this.
    fn assert_only(&self, difference: &str) {
        let found = compare(&self.a, &self.b);
        assert!(
            found.len() == 1 && found[0].starts_with(difference),
            "not just {difference:?}: {found:#?}"
        );
    }

    fn assert_equal(&self) {
        assert_eq!(compare(&self.a, &self.b), Vec::<String>::new());
    }
}

/// The object to change, in the forms that various calls need.
struct Changed<'a> {
    dir: std::os::fd::BorrowedFd<'a>,
    name: &'a [u8],
    path: &'a Path,
}

impl Changed<'_> {
    fn mode(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        Ok(rustix::fs::chmodat(self.dir, self.name, mode, AtFlags::empty())?)
    }

    fn owner(&self, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
        Ok(rustix::fs::chownat(
            self.dir,
            self.name,
            user.map(Uid::from_raw),
            group.map(Gid::from_raw),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn xattr(&self, xattr: &[u8], value: &[u8]) -> io::Result<()> {
        let path = at::proc_path(self.dir, self.name);
        Ok(rustix::fs::lsetxattr(path, xattr, value, XattrFlags::empty())?)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(self.path)?;
        file.write_all_at(bytes, offset)
    }

    /// Replaces a special file by a new one with the same mode.
    fn remake(&self, kind: FileType, device: u64) -> io::Result<()> {
        let mode = fs::symlink_metadata(self.path)?.mode();
        fs::remove_file(self.path)?;
        rustix::fs::mknodat(self.dir, self.name, kind, Mode::RUSR, device)?;
        self.mode(mode & 0o7777)
    }
}

type Mtime = (i64, i64);

fn mtime(path: &Path) -> Option<Mtime> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec()))
}

fn set_mtime(path: &Path, (tv_sec, tv_nsec): Mtime) {
    let time = Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .expect("setting a modification time");
}

const READ: u16 = 4;
const WRITE: u16 = 2;

fn acl_with(user: u16) -> Vec<u8> {
    acl(&[
        (Acl::Owner, READ | WRITE),
        (Acl::User(1234), user),
        (Acl::GroupOwner, READ),
        (Acl::Mask, READ | WRITE),
        (Acl::Other, 0),
    ])
}

fn build_small(top: &Path) -> io::Result<Expected> {
    let mut tree = Builder::new(top)?;
    tree.dir(b"dir")?;
    tree.dir(b"dir/sub")?;
    tree.file(b"dir/sub/below", b"below\n")?;
    tree.dir(b"dir/empty")?;
    tree.file(b"dir/file", &random_bytes(1, 600_000))?;
    tree.file(b"dir/\xff\n", b"an awkward name")?;
    tree.symlink(b"dir/link", b"file")?;
    tree.fifo(b"dir/fifo")?;
    tree.socket(b"dir/socket")?;
    tree.character_device(b"dir/device", makedev(1, 3))?;
    for name in ["first", "second", "third"] {
        let path = format!("dir/{name}").into_bytes();
        match name {
            "first" => tree.file(&path, b"three names")?,
            _ => tree.hard_link(b"dir/first", &path)?,
        }
    }
    tree.file(b"dir/twin", b"three names")?;
    tree.time(b"dir/twin", (1_600_000_000, 7));
    tree.file(b"dir/other-twin", b"three names")?;
    tree.time(b"dir/other-twin", (1_600_000_000, 7));
    let data = [(0, random_bytes(2, 70_000)), (2 << 20, random_bytes(3, 5000))];
    tree.sparse(b"dir/sparse", (3 << 20) + 1, &data)?;
    tree.file(b"dir/attributes", b"attributes")?;
    tree.xattr(b"dir/attributes", b"user.one", b"1")?;
    tree.xattr(b"dir/attributes", b"user.two", b"2")?;
    tree.xattr(b"dir/attributes", ACCESS, &acl_with(READ))?;
    tree.xattr(b"dir/sub", DEFAULT, &acl_with(READ))?;
    tree.finish()
}

const NEEDS: &str = "the temporary directory needs a file system with attributes, ACLs and holes";

/// Returns true if the temporary directory supports `user.` attributes and ACLs.
fn has_attributes(pair: &Pair) -> bool {
    let top = at::open_top(&pair.a.join("dir")).expect("opening a directory");
    let xattrs = at::xattrs(top.as_fd(), b"attributes").expect("reading attributes");
    xattrs.len() >= 3
}

fn has_holes(pair: &Pair) -> bool {
    let file = fs::File::open(pair.a.join("dir/sparse")).expect("opening the sparse file");
    let size = file.metadata().expect("metadata of the sparse file").len();
    let data = map::data_ranges(&file, size).expect("reading holes");
    map::has_hole(&data, size)
}

#[test]
fn trees_built_alike_are_equal() {
    Pair::small().assert_equal();
}

#[test]
fn everything_built_twice_is_equal_and_compared_to_the_end() {
    let pair = Pair::empty();
    let first = build_everything(&pair.a).expect("building the first tree");
    let second = build_everything(&pair.b).expect("building the second tree");
    assert_eq!(first.paths, second.paths);
    assert_eq!(first.skipped, second.skipped);
    assert!(first.paths.len() > 700, "only {} files", first.paths.len());
    if has_full_privileges() && has_attributes_for_root(&pair.a) {
        first.assert_nothing_skipped();
    }
    pair.assert_equal();
    change_the_deepest(&pair, &first);
}

fn has_attributes_for_root(top: &Path) -> bool {
    let value = rustix::fs::lsetxattr(top, "trusted.probe", b"", XattrFlags::empty())
        .and_then(|()| rustix::fs::lremovexattr(top, "trusted.probe"))
        .and_then(|()| rustix::fs::lsetxattr(top, "user.probe", b"", XattrFlags::empty()))
        .and_then(|()| rustix::fs::lremovexattr(top, "user.probe"));
    value.is_ok()
}

/// Makes one change in `b` at the end of a path that is too long for plain calls.
fn change_the_deepest(pair: &Pair, built: &Expected) {
    let paths = built.paths.iter().map(|path| path.as_os_str());
    let path = paths
        .filter(|path| path.len() == 4095)
        .find(|path| path.to_string_lossy().contains("/empty-"))
        .expect("a directory with a path of 4,095 bytes");
    let top = at::open_top(&pair.b).expect("opening the second tree");
    let (dir, name) = at::open_parent(top.as_fd(), path.as_encoded_bytes())
        .expect("opening the deepest directory");
    rustix::fs::chmodat(&dir, name, Mode::RWXU, AtFlags::empty()).expect("changing a mode");
    let path = path.display();
    pair.assert_only(&format!("{path}: mode: 0755 in a, 0700 in b"));
}

#[test]
fn a_copy_is_equal() {
    let pair = Pair::small();
    let copy = pair.scratch.path().join("copy");
    Run::program("cp").args(["-a"]).args([&pair.a, &copy]).run().ok();
    assert_eq!(compare(&pair.a, &copy), Vec::<String>::new());
    make_writable_and_remove(&copy).expect("removing the copy");
}

#[test]
fn a_changed_byte_is_found() {
    let pair = Pair::small();
    pair.change("dir/file", |changed| {
        let byte = random_bytes(1, 600_000)[500_000];
        changed.write(&[!byte], 500_000)
    });
    pair.assert_only("dir/file: content: differs from byte 500000 on");
}

#[test]
fn data_in_place_of_a_hole_is_found() {
    let pair = Pair::small();
    pair.change("dir/sparse", |changed| changed.write(b"data", 1 << 20));
    pair.assert_only("dir/sparse: content: differs from byte 1048576 on");
}

#[test]
fn a_changed_size_is_found() {
    let pair = Pair::small();
    pair.change("dir/file", |changed| changed.write(b"\0", 600_000));
    pair.assert_only("dir/file: size: 600000 in a, 600001 in b");
}

#[test]
fn a_changed_nanosecond_is_found_for_every_file_type() {
    for name in ["dir/file", "dir/link", "dir/fifo", "dir/socket", "dir/sub", "dir/empty", "dir"] {
        let pair = Pair::small();
        let path = pair.b.join(name);
        let (seconds, nanoseconds) = mtime(&path).expect("a modification time");
        set_mtime(&path, (seconds, (nanoseconds + 1) % 1_000_000_000));
        pair.assert_only(&format!("{name}: mtime: {seconds} s {nanoseconds} ns in a"));
    }
}

#[test]
fn a_changed_mode_is_found() {
    let cases = [
        ("dir/file", 0o640),
        ("dir/file", 0o4644),
        ("dir/file", 0o2644),
        ("dir/fifo", 0o600),
        ("dir/socket", 0o600),
        ("dir/sub", 0o1755),
        ("dir/sub", 0o2755),
    ];
    for (path, mode) in cases {
        let pair = Pair::small();
        pair.change(path, |changed| changed.mode(mode));
        let old = if path == "dir/sub" { "0755" } else { "0644" };
        pair.assert_only(&format!("{path}: mode: {old} in a, {mode:04o} in b"));
    }
}

#[test]
fn a_changed_owner_is_found() {
    assert!(has_full_privileges(), "run this test as root");
    for path in ["dir/file", "dir/link", "dir/fifo", "dir/sub"] {
        let pair = Pair::small();
        let ignore = Ignore { ownership: true, ..Ignore::default() };
        pair.change(path, |changed| changed.owner(Some(4_000_000_000), None));
        pair.assert_only(&format!("{path}: owner: 0 in a, 4000000000 in b"));
        assert_eq!(compare_ignoring(&pair.a, &pair.b, ignore), Vec::<String>::new());
        pair.change(path, |changed| changed.owner(Some(0), Some(7)));
        pair.assert_only(&format!("{path}: group: 0 in a, 7 in b"));
        assert_eq!(compare_ignoring(&pair.a, &pair.b, ignore), Vec::<String>::new());
    }
}

#[test]
fn changed_attributes_are_found() {
    let pair = Pair::small();
    assert!(has_attributes(&pair), "{NEEDS}");
    pair.change("dir/attributes", |changed| changed.xattr(b"user.one", b"one"));
    pair.assert_only("dir/attributes: xattr user.one: \"1\" in a, \"one\" in b");
    pair.change("dir/attributes", |changed| changed.xattr(b"user.one", b""));
    pair.assert_only("dir/attributes: xattr user.one: \"1\" in a, \"\" in b");
    pair.change("dir/attributes", |changed| {
        Ok(rustix::fs::lremovexattr(changed.path, "user.one")?)
    });
    pair.assert_only("dir/attributes: xattr user.one: missing in b");
    pair.change("dir/attributes", |changed| changed.xattr(b"user.one", b"1"));
    pair.assert_equal();
    pair.change("dir/sub", |changed| changed.xattr(b"user.new\xff", b""));
    pair.assert_only("dir/sub: xattr user.new\\xff: only in b");
    let ignore = Ignore { xattrs: true, ..Ignore::default() };
    assert_eq!(compare_ignoring(&pair.a, &pair.b, ignore), Vec::<String>::new());
}

#[test]
fn attributes_for_root_are_found() {
    assert!(has_full_privileges(), "run this test as root");
    for path in ["dir/file", "dir/link", "dir/fifo", "dir/sub", "dir/device"] {
        let pair = Pair::small();
        assert!(has_attributes_for_root(&pair.b), "{NEEDS}");
        pair.change(path, |changed| changed.xattr(b"trusted.new", b"value"));
        pair.assert_only(&format!("{path}: xattr trusted.new: only in b"));
    }
}

#[test]
fn changed_acls_are_found() {
    let pair = Pair::small();
    assert!(has_attributes(&pair), "{NEEDS}");
    pair.change("dir/attributes", |changed| changed.xattr(ACCESS, &acl_with(READ | WRITE)));
    pair.assert_only("dir/attributes: xattr system.posix_acl_access: ");
    pair.change("dir/attributes", |changed| changed.xattr(ACCESS, &acl_with(READ)));
    pair.assert_equal();
    pair.change("dir/sub", |changed| changed.xattr(DEFAULT, &acl_with(READ | WRITE)));
    pair.assert_only("dir/sub: xattr system.posix_acl_default: ");
}

#[test]
fn a_changed_link_target_is_found() {
    for target in ["fila", "file/", "fil"] {
        let pair = Pair::small();
        pair.change("dir/link", |changed| {
            fs::remove_file(changed.path)?;
            std::os::unix::fs::symlink(target, changed.path)
        });
        pair.assert_only(&format!("dir/link: link target: \"file\" in a, \"{target}\" in b"));
    }
}

#[test]
fn a_broken_hard_link_is_found() {
    let pair = Pair::small();
    pair.change("dir/second", |changed| {
        fs::remove_file(changed.path)?;
        fs::write(changed.path, b"three names")?;
        changed.mode(0o644)
    });
    pair.assert_only(
        "dir/first: hard links: [dir/first, dir/second, dir/third] in a, [dir/first, dir/third] in b",
    );
}

#[test]
fn an_extra_hard_link_is_found() {
    let pair = Pair::small();
    pair.change("dir/twin", |changed| {
        fs::remove_file(changed.path)?;
        fs::hard_link(pair.b.join("dir/other-twin"), changed.path)
    });
    pair.assert_only(
        "dir/other-twin: hard links: [dir/other-twin] in a, [dir/other-twin, dir/twin] in b",
    );
}

#[test]
fn a_filled_hole_is_found() {
    let pair = Pair::small();
    assert!(has_holes(&pair), "{NEEDS}");
    pair.change("dir/sparse", |changed| changed.write(&[0; 131_072], 1 << 20));
    pair.assert_only("dir/sparse: sparseness: holes differ at byte 1048576");
    let ignore = Ignore { sparseness: true, ..Ignore::default() };
    assert_eq!(compare_ignoring(&pair.a, &pair.b, ignore), Vec::<String>::new());
}

#[test]
fn a_filled_hole_at_the_end_is_found() {
    let pair = Pair::small();
    assert!(has_holes(&pair), "{NEEDS}");
    pair.change("dir/sparse", |changed| changed.write(&[0], 3 << 20));
    pair.assert_only("dir/sparse: sparseness: holes differ at byte 3145728");
}

#[test]
fn space_allocated_without_data_is_found() {
    let pair = Pair::small();
    assert!(has_holes(&pair), "{NEEDS}");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(pair.b.join("dir/sparse"))
        .expect("opening the sparse file");
    let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 0, 3 << 20).expect("allocating space");
    let time = mtime(&pair.a.join("dir/sparse")).expect("a modification time");
    set_mtime(&pair.b.join("dir/sparse"), time);
    pair.assert_only("dir/sparse: sparseness: ");
}

#[test]
fn a_new_name_is_found() {
    let pair = Pair::small();
    pair.change("dir/new\t", |changed| fs::write(changed.path, b""));
    pair.assert_only("dir/new\\t: only in b");
}

#[test]
fn a_missing_name_is_found() {
    let cases: [(&[u8], &str); 4] = [
        (b"\xff\n", "dir/\\xff\\n: missing in b"),
        (b"socket", "dir/socket: missing in b"),
        (b"link", "dir/link: missing in b"),
        // The group of the two other names is still compared.
        (b"third", "dir/third: missing in b"),
    ];
    for (name, difference) in cases {
        let pair = Pair::small();
        let dir_path = pair.b.join("dir");
        let time = mtime(&dir_path).expect("a modification time");
        let dir = at::open_top(&dir_path).expect("opening a directory");
        at::unlink(dir.as_fd(), name).expect("removing a file");
        set_mtime(&dir_path, time);
        pair.assert_only(difference);
    }
}

#[test]
fn a_missing_directory_is_found() {
    let pair = Pair::small();
    pair.change("dir/sub", |changed| fs::remove_dir_all(changed.path));
    pair.assert_only("dir/sub: missing in b");
}

#[test]
fn another_kind_of_file_is_found() {
    let pair = Pair::small();
    pair.change("dir/fifo", |changed| changed.remake(FileType::Socket, 0));
    pair.assert_only("dir/fifo: kind: FIFO in a, socket in b");
}

#[test]
fn another_device_is_found() {
    assert!(has_full_privileges(), "run this test as root");
    let pair = Pair::small();
    pair.change("dir/device", |changed| changed.remake(FileType::CharacterDevice, makedev(1, 5)));
    pair.assert_only("dir/device: device number: 1:3 in a, 1:5 in b");
    pair.change("dir/device", |changed| changed.remake(FileType::BlockDevice, makedev(1, 3)));
    pair.assert_only("dir/device: kind: character device in a, block device in b");
}

#[test]
fn the_top_directory_is_compared_unless_ignored() {
    let pair = Pair::small();
    set_mtime(&pair.b, (1, 2));
    pair.assert_only(".: mtime: ");
    let ignore = Ignore { top_directory: true, ..Ignore::default() };
    assert_eq!(compare_ignoring(&pair.a, &pair.b, ignore), Vec::<String>::new());
}

#[test]
fn ignoring_times_ignores_only_times() {
    let pair = Pair::small();
    let ignore = Ignore { mtimes: true, ..Ignore::default() };
    set_mtime(&pair.b.join("dir/file"), (1, 2));
    assert_eq!(compare_ignoring(&pair.a, &pair.b, ignore), Vec::<String>::new());
    fs::write(pair.b.join("dir/new"), b"").expect("writing a file");
    assert_eq!(compare_ignoring(&pair.a, &pair.b, ignore), ["dir/new: only in b"]);
}

#[test]
fn a_missing_tree_is_a_difference() {
    let pair = Pair::small();
    let found = compare(&pair.a, &pair.scratch.path().join("nothing"));
    assert!(found.len() == 1 && found[0].starts_with(".: cannot open b: "), "{found:?}");
}

#[test]
fn several_differences_are_all_reported() {
    let pair = Pair::small();
    pair.change("dir/file", |changed| changed.write(b"\0", 600_000));
    pair.change("dir/fifo", |changed| changed.mode(0o600));
    pair.change("dir/new", |changed| fs::write(changed.path, b""));
    let found = compare(&pair.a, &pair.b);
    let paths: Vec<_> = found.iter().filter_map(|text| text.split_once(": ")).collect();
    assert_eq!(
        paths,
        [
            ("dir/fifo", "mode: 0644 in a, 0600 in b"),
            ("dir/file", "size: 600000 in a, 600001 in b"),
            ("dir/new", "only in b"),
        ]
    );
}

#[test]
fn removal_deletes_only_the_whole_tree() {
    let scratch = TempDir::new().expect("making a temporary directory");
    let (tree, outside) = (scratch.path().join("tree"), scratch.path().join("outside"));
    fs::create_dir(&tree).expect("making the top directory");
    fs::create_dir(&outside).expect("making another directory");
    fs::write(outside.join("file"), b"stays").expect("writing a file");
    build_everything(&tree).expect("building a tree");
    std::os::unix::fs::symlink(&outside, tree.join("way-out")).expect("making a link");
    let mut permissions = fs::metadata(&tree).expect("metadata").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&tree, permissions).expect("changing a mode");
    make_writable_and_remove(&tree).expect("removing the tree");
    assert!(!tree.exists(), "the tree is still there");
    assert!(outside.join("file").exists(), "a link was followed");
    make_writable_and_remove(&tree).expect("removing a tree that is not there");
    let file = outside.join("file");
    make_writable_and_remove(&file).expect_err("removing a file as if it were a tree");
    assert!(file.exists(), "a file was removed as if it were a tree");
}

#[test]
fn ranges_are_joined_and_compared() {
    let (a, b) = ([0..10, 20..30], [5..20, 40..41]);
    assert_eq!(map::union(&a, &b), [0..30, 40..41]);
    assert_eq!(map::touched_blocks(&[0..1, 15..16, 35..40], 8), [0..2, 4..5]);
    assert_eq!(map::first_disagreement(&a, &a), None);
    assert_eq!(map::first_disagreement(&a, &a[..1]), Some(20));
    assert_eq!(map::first_disagreement(&a, &[0..12, 20..30]), Some(10));
    assert!(!map::has_hole(&[], 0));
    assert!(map::has_hole(&[], 1));
    assert!(map::has_hole(&a[..1], 11));
    assert!(!map::has_hole(&a[..1], 10));
}
