//! Random trees with random changes, compared with copies after every backup.
//!
//! Every night the source is backed up and copied. Then every snapshot is restored and compared
//! with the copy of its night in everything that a file system stores.
//!
//! A failure names its seed. The long lane tries many: `cargo test -p forgekeep --test forgekeep
//! nights:: -- --ignored --nocapture`.

use crate::support::sandbox::{Dice, Sandbox, is_root};
use crate::support::tree::{Acl, Ignore, acl, compare_ignoring};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Number of nights for each tree.
const NIGHTS: usize = 6;
/// Maximum number of changes in a night.
const CHANGES: u64 = 30;
/// Number of trees in the short and in the long lane.
const TREES: u64 = 3;
const TREES_LONG: u64 = 60;

/// The repository in the source, which only git changes.
const REPOSITORY: &str = "forge.git";
/// The dump in the source.
const DUMP: &str = "dump.sql";

/// A source that changes at random.
struct Tree<'a> {
    sandbox: &'a Sandbox,
    top: PathBuf,
    dice: Dice,
    /// Rows of the dump in order.
    rows: Vec<u64>,
    commits: u64,
    /// Changes made so far, for messages.
    done: Vec<String>,
}

impl Tree<'_> {
    fn new(sandbox: &Sandbox, seed: u64) -> Tree<'_> {
        let top = sandbox.path("source");
        fs::create_dir(&top).expect("makes");
        let init = ["init", "--quiet", "--bare", "--initial-branch=main"];
        sandbox.tool("git").args(init).args([top.join(REPOSITORY)]).run().ok();
        let rows = (0..600).collect();
        let mut tree =
            Tree { sandbox, top, dice: Dice::new(seed), rows, commits: 0, done: Vec::new() };
        tree.push();
        for _ in 0..40 {
            tree.change();
        }
        tree
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = self.dice.below(from.len().max(1) as u64) as usize;
        from.get(at).cloned()
    }

    /// Returns all paths except the repository, directories before their content.
    fn paths(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut dirs = vec![self.top.clone()];
        while let Some(dir) = dirs.pop() {
            let mut names: Vec<PathBuf> = fs::read_dir(&dir)
                .expect("lists")
                .map(|entry| entry.expect("lists").path())
                .collect();
            names.sort();
            for path in names.into_iter().filter(|path| !path.ends_with(REPOSITORY)) {
                if is_dir(&path) {
                    dirs.push(path.clone());
                }
                all.push(path);
            }
        }
        all
    }

    fn files(&self) -> Vec<PathBuf> {
        self.paths().into_iter().filter(|path| is_file(path)).collect()
    }

    fn new_path(&mut self) -> PathBuf {
        let mut dirs: Vec<PathBuf> = self.paths().into_iter().filter(|path| is_dir(path)).collect();
        dirs.push(self.top.clone());
        let dir = self.pick(&dirs).expect("one at least");
        let odd: [&[u8]; 6] =
            [b"plain", b"sp ace", b"new\nline", b"\xff\xfe", b"-rf", "é".as_bytes()];
        let odd = self.pick(&odd).expect("some");
        let number = self.dice.below(1_000_000).to_string();
        dir.join(OsString::from_vec([odd, b"-", number.as_bytes()].concat()))
    }

    fn content(&mut self) -> Vec<u8> {
        let len = match self.dice.below(8) {
            0 => 0,
            1 | 2 => self.dice.below(513),
            3..=5 => self.dice.below(20_000),
            _ => self.dice.below(300_000),
        } as usize;
        match self.dice.below(3) {
            0 => vec![self.dice.roll() as u8; len],
            1 => {
                let line = format!("{}\n", self.dice.roll());
                line.repeat(len / line.len() + 1).into_bytes()[..len].to_vec()
            }
            _ => self.dice.bytes(len),
        }
    }

    /// Makes one change. Skips changes that are impossible here, such as giving files away.
    fn change(&mut self) {
        let kind = self.dice.below(26);
        let before = self.done.len();
        if let Err(error) = self.change_of(kind) {
            self.done.truncate(before);
            self.done.push(format!("change {kind}: {error}"));
        }
    }

    fn change_of(&mut self, kind: u64) -> io::Result<()> {
        let (paths, files) = (self.paths(), self.files());
        let (path, file) = (self.pick(&paths), self.pick(&files));
        let note = |tree: &mut Self, what: &str, path: &Path| {
            tree.done.push(format!("{what} {}", path.display()));
        };
        match (kind, path, file) {
            (0..=2, ..) => {
                let (path, content) = (self.new_path(), self.content());
                note(self, "create", &path);
                fs::write(path, content)
            }
            (3, ..) => {
                let path = self.new_path();
                note(self, "mkdir", &path);
                fs::create_dir(path)
            }
            (4, ..) => {
                let (path, target) = (self.new_path(), self.content());
                note(self, "symlink", &path);
                let target: Vec<u8> =
                    target.into_iter().filter(|byte| *byte != 0).take(90).collect();
                symlink(OsStr::from_bytes(&target), path)
            }
            (5, ..) => {
                let path = self.new_path();
                note(self, "node", &path);
                let kinds = [
                    (FileType::Fifo, 0),
                    (FileType::Socket, 0),
                    (FileType::CharacterDevice, 0x103),
                ];
                let (kind, device) = self.pick(&kinds).expect("some");
                Ok(rustix::fs::mknodat(CWD, path, kind, Mode::RUSR, device)?)
            }
            (6, ..) => {
                let path = self.new_path();
                note(self, "sparse", &path);
                let file = File::create(path)?;
                file.set_len(65_536 * (2 + self.dice.below(20)))?;
                let at = 65_536 * self.dice.below(20);
                file.write_all_at(&self.dice.bytes(70_000), at)
            }
            (7 | 8, _, Some(path)) => {
                note(self, "write", &path);
                self.write_somewhere(&path)
            }
            (9, _, Some(path)) => {
                note(self, "write and put the time back", &path);
                let time = path.metadata()?.modified()?;
                self.write_somewhere(&path)?;
                File::options().write(true).open(path)?.set_modified(time)
            }
            (10, _, Some(path)) => {
                note(self, "append", &path);
                let more = self.content();
                let at = path.metadata()?.len();
                File::options().write(true).open(path)?.write_all_at(&more, at)
            }
            (11, _, Some(path)) => {
                note(self, "truncate", &path);
                let len = self.dice.below(2 * path.metadata()?.len() + 2);
                File::options().write(true).open(path)?.set_len(len)
            }
            (12, _, Some(path)) => {
                note(self, "punch", &path);
                let file = File::options().write(true).open(&path)?;
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                // A hole of one block is not noticed if attributes take a block as well: the number of
                // blocks tells which files may have holes.
                let places = path.metadata()?.len() / 65_536;
                if places == 0 {
                    return Ok(());
                }
                let at = self.dice.below(places) * 65_536;
                Ok(rustix::fs::fallocate(&file, flags, at, 131_072)?)
            }
            (13, Some(path), _) if !path.is_symlink() => {
                note(self, "chmod", &path);
                // Readable for the owner, so that this works without privileges.
                let mode =
                    self.dice.below(0o10000) as u32 | if is_dir(&path) { 0o700 } else { 0o600 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode))
            }
            (14, Some(path), _) => {
                note(self, "chown", &path);
                let (user, group) = (self.dice.below(3000) as u32, self.dice.below(3000) as u32);
                std::os::unix::fs::lchown(path, Some(user), Some(group))
            }
            (15 | 16, Some(path), _) => {
                note(self, "xattr", &path);
                let names = ["user.a", "user.b", "trusted.c"];
                // Only files and directories have attributes of users.
                let names = if is_file(&path) || is_dir(&path) { &names[..] } else { &names[2..] };
                let name = self.pick(names).expect("some");
                if self.dice.below(3) == 0 {
                    return match rustix::fs::lremovexattr(path, name) {
                        Err(Errno::NODATA) => Ok(()),
                        removed => Ok(removed?),
                    };
                }
                let len = self.dice.below(200) as usize;
                let value = self.dice.bytes(len);
                Ok(rustix::fs::lsetxattr(path, name, &value, XattrFlags::empty())?)
            }
            (17, Some(path), _) if !path.is_symlink() => {
                note(self, "acl", &path);
                let entries = [
                    (Acl::Owner, 7),
                    (Acl::User(self.dice.below(3000) as u32), self.dice.below(8) as u16),
                    (Acl::GroupOwner, self.dice.below(8) as u16),
                    (Acl::Mask, 7),
                    (Acl::Other, self.dice.below(8) as u16),
                ];
                let name = "system.posix_acl_access";
                Ok(rustix::fs::lsetxattr(path, name, &acl(&entries), XattrFlags::empty())?)
            }
            (18, Some(path), _) if !is_dir(&path) => {
                let new = self.new_path();
                note(self, "link", &new);
                fs::hard_link(path, new)
            }
            (19 | 20, Some(path), _) => {
                let new = self.new_path();
                note(self, "rename", &path);
                if new.starts_with(&path) { Ok(()) } else { fs::rename(path, new) }
            }
            (21, Some(path), _) => {
                note(self, "remove", &path);
                remove(&path)
            }
            (22, Some(path), _) => {
                note(self, "change the type of", &path);
                remove(&path)?;
                match self.dice.below(3) {
                    0 => fs::write(path, self.dice.bytes(700)),
                    1 => symlink("elsewhere", path),
                    _ => {
                        fs::create_dir(&path)?;
                        fs::write(path.join("inside"), "inside")
                    }
                }
            }
            (23, Some(path), _) => {
                note(self, "touch", &path);
                let seconds = self.dice.below(6_000_000_000) as i64 - 1_000_000_000;
                let nanoseconds = [0, 1, 999_999_999, self.dice.below(1_000_000_000) as i64];
                let time =
                    Timespec { tv_sec: seconds, tv_nsec: self.pick(&nanoseconds).expect("some") };
                let times = Timestamps { last_access: time, last_modification: time };
                Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            (24, ..) => {
                self.done.push("dump".to_owned());
                self.dump()
            }
            (25, ..) => {
                self.done.push("git".to_owned());
                self.push();
                self.housekeeping();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write_somewhere(&mut self, path: &Path) -> io::Result<()> {
        let len = path.metadata()?.len();
        let (at, many) = (self.dice.below(len + 1), self.dice.below(200) as usize);
        let bytes = self.dice.bytes(many.min((len - at) as usize));
        File::options().write(true).open(path)?.write_all_at(&bytes, at)
    }

    /// Changes, moves, adds or removes some rows of the dump.
    fn dump(&mut self) -> io::Result<()> {
        for _ in 0..self.dice.below(20) {
            let at = self.dice.below(self.rows.len() as u64) as usize;
            let to = self.dice.below(self.rows.len() as u64) as usize;
            match self.dice.below(4) {
                0 => self.rows[at] = self.dice.roll(),
                1 => self.rows.swap(at, to),
                2 => self.rows.rotate_left(at),
                _ => self.rows.insert(at, self.dice.roll()),
            }
        }
        let row = |row: &u64| {
            let value = Dice::new(*row).roll();
            format!("INSERT INTO t VALUES ({row}, '{value:016x}', 'the same text in every row');\n")
        };
        fs::write(self.top.join(DUMP), self.rows.iter().map(row).collect::<String>())
    }

    /// Adds some commits, as a push does.
    fn push(&mut self) {
        let mut stream = String::new();
        for _ in 0..5 {
            let (n, text) = (self.commits, format!("{}\n", self.dice.roll()).repeat(40));
            stream += &format!(
                "commit refs/heads/main\ncommitter A <a@b.c> {} +0000\ndata 0\n",
                1_700_000_000 + n
            );
            if n > 0 && n % 5 == 0 {
                stream += "from refs/heads/main^0\n";
            }
            stream += &format!("M 100644 inline f{}\ndata {}\n{text}\n", n % 7, text.len());
            self.commits += 1;
        }
        self.git(&["fast-import", "--quiet"], stream);
    }

    fn housekeeping(&mut self) {
        let all: [&[&str]; 6] = [
            &["repack", "-dq"],
            &["repack", "-adq"],
            &["repack", "-adfq", "--write-bitmap-index"],
            &["repack", "-dq", "--geometric=2", "--write-midx"],
            &["gc", "--quiet"],
            &["pack-refs", "--all"],
        ];
        let arguments = self.pick(&all).expect("some");
        self.git(arguments, String::new());
    }

    fn git(&self, arguments: &[&str], input: String) {
        let git = self
            .sandbox
            .tool("git")
            .args([OsStr::new("--git-dir"), self.top.join(REPOSITORY).as_os_str()]);
        git.args(arguments).input(input).run().ok();
    }
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file())
}

fn remove(path: &Path) -> io::Result<()> {
    if is_dir(path) { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Runs some nights of a tree.
fn nights_of(seed: u64) {
    let sandbox = Sandbox::with_store();
    let mut tree = Tree::new(&sandbox, seed);
    let mut snapshots = Vec::new();
    let exact = Ignore { top_directory: true, ownership: !is_root(), ..Ignore::default() };
    // `cp` fills holes that are smaller than a block.
    let of_copies = Ignore { sparseness: true, ..exact };
    let same = |a: &str, b: &str| {
        let ignore = if a == "source" && b == "restored" { exact } else { of_copies };
        compare_ignoring(&sandbox.path(a), &sandbox.path(b), ignore)
    };
    for night in 0..NIGHTS {
        let copy = format!("night-{night}");
        sandbox.tool("cp").args(["-a", "--sparse=auto", "source", &copy]).run().ok();
        assert_eq!(same("source", &copy), [""; 0], "seed {seed}: the copy is not exact");
        let summary = sandbox.backup(["source"]);
        snapshots.push((copy, summary["snapshot_id"].as_str().expect("an id").to_owned()));
        for (copy, id) in &snapshots {
            sandbox.restore(&sandbox.at(id, "source"), "restored");
            let mut found = same(copy, "restored");
            if snapshots.last().is_some_and(|(_, last)| last == id) {
                found.extend(same("source", "restored"));
            }
            assert!(
                found.is_empty(),
                "seed {seed}, {copy} after night {night}: {found:#?}\nwhat was done: {:#?}",
                tree.done
            );
            sandbox.remove("restored");
        }
        tree.done.push(format!("--- night {night} is over"));
        for _ in 0..tree.dice.below(CHANGES) {
            tree.change();
        }
    }
    let failed = tree.done.iter().filter(|line| line.starts_with("change ")).count();
    assert!(!is_root() || failed < tree.done.len() / 8, "{failed} fail: {:#?}", tree.done);
    sandbox.assert_clean();
}

#[test]
fn every_night_of_random_trees_is_restored() {
    (1..=TREES).for_each(nights_of);
}

#[test]
#[ignore = "a slow lane, see CONTRIBUTING.md"]
fn every_night_of_many_random_trees_is_restored() {
    (100..100 + TREES_LONG).for_each(nights_of);
}
