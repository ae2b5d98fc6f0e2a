//! Compares two trees in everything that a restore must reproduce.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use super::at;
use super::map::{self, Ranges};

/// Block size for comparing holes, in bytes. File systems allocate in different units, and smaller
/// holes need not be kept.
const HOLE_BLOCK: u64 = 64 * 1024;

/// Bytes that a file with holes may allocate beyond its original. File systems round up and count
/// blocks of their own.
const ALLOCATION_SLACK: u64 = 128 * 1024;

/// Bytes of each file held in memory while contents are compared.
const PIECE: u64 = 256 * 1024;

/// Properties that `compare_ignoring` ignores; by default none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ignore {
    /// Owning user and group, for trees restored without privileges.
    pub ownership: bool,
    /// Everything about the two top directories, except their content.
    pub top_directory: bool,
    /// Modification times.
    pub mtimes: bool,
    /// Extended attributes, including POSIX ACLs and file capabilities.
    pub xattrs: bool,
    /// Holes and allocated space; contents are still compared.
    pub sparseness: bool,
}

/// Compares the trees below the directories `a` and `b`. Returns their differences; none if they
/// are equal.
///
/// These properties are compared:
///
/// - the names in each directory,
/// - kind, mode with the special bits, owner and group,
/// - modification time to the nanosecond,
/// - extended attributes with their values, including ACLs,
/// - size and content, symbolic link target, device number,
/// - the sets of paths that are hard links to the same file.
///
/// If a file has holes in `a`, it must have the same holes in `b`, to a granularity of 64 KiB, and
/// allocate hardly more. Links are never followed, and paths may be of any length.
///
/// Properties that cannot be restored are never compared: inode numbers, link counts, sizes of
/// directories, and the times of access and status change.
///
/// Each difference names its path relative to the top, with bytes escaped as in a Rust byte string.
/// An example is `dir/na\xefve: mode: 0644 in a, 0600 in b`. Anything unreadable is also a
/// difference.
pub fn compare(a: &Path, b: &Path) -> Vec<String> {
    compare_ignoring(a, b, Ignore::default())
}

/// Like [`compare`], except for the properties to ignore.
pub fn compare_ignoring(a: &Path, b: &Path, ignore: Ignore) -> Vec<String> {
    let (a, b) = match (Tree::open(a, "a"), Tree::open(b, "b")) {
        (Ok(a), Ok(b)) => (a, b),
        (a, b) => return a.err().into_iter().chain(b.err()).collect(),
    };
    let mut comparison = Comparison { a, b, ignore, pending: vec![Vec::new()], found: Vec::new() };
    comparison.run();
    comparison.found.sort();
    comparison.found
}

/// The paths of each file, by device and inode number.
type Links = BTreeMap<(u64, u64), BTreeSet<Vec<u8>>>;

struct Tree {
    top: OwnedFd,
    links: Links,
}

impl Tree {
    fn open(path: &Path, which: &str) -> Result<Tree, String> {
        let top = at::open_top(path).map_err(|error| format!(".: cannot open {which}: {error}"))?;
        Ok(Tree { top, links: Links::new() })
    }

    fn add_link(&mut self, path: &[u8], metadata: &Metadata) {
        let file = (metadata.dev(), metadata.ino());
        self.links.entry(file).or_default().insert(path.to_vec());
    }

    /// Returns all paths of the same file, for each path.
    fn link_groups(&self) -> BTreeMap<&[u8], &BTreeSet<Vec<u8>>> {
        let mut groups = BTreeMap::new();
        for group in self.links.values() {
            groups.extend(group.iter().map(|path| (path.as_slice(), group)));
        }
        groups
    }
}

struct Comparison {
    a: Tree,
    b: Tree,
    ignore: Ignore,
    /// Directories in both trees that are not read yet.
    pending: Vec<Vec<u8>>,
    found: Vec<String>,
}

impl Comparison {
    fn run(&mut self) {
        if !self.ignore.top_directory {
            let (a, b) = (self.a.top.as_fd(), self.b.top.as_fd());
            let top = Pair { a, b, name: b"." };
            let found = top
                .both("metadata", at::metadata)
                .map_or_else(|error| vec![error], |(a, b)| self.metadata_differences(&top, &a, &b));
            self.report(b"", found);
        }
        while let Some(path) = self.pending.pop() {
            if let Err(error) = self.compare_directory(&path) {
                self.report(&path, [error]);
            }
        }
        self.compare_links();
    }

    fn report(&mut self, path: &[u8], found: impl IntoIterator<Item = String>) {
        for difference in found {
            self.found.push(format!("{}: {difference}", at::show(path)));
        }
    }

    fn compare_directory(&mut self, path: &[u8]) -> Result<(), String> {
        let a = read("a", "directory", || at::open_dir(self.a.top.as_fd(), path))?;
        let b = read("b", "directory", || at::open_dir(self.b.top.as_fd(), path))?;
        let names_a = read("a", "directory", || at::names(a.as_fd()))?;
        let names_b = read("b", "directory", || at::names(b.as_fd()))?;
        for name in names_a.difference(&names_b) {
            self.report(&at::join(path, name), ["missing in b".to_owned()]);
        }
        for name in names_b.difference(&names_a) {
            self.report(&at::join(path, name), ["only in b".to_owned()]);
        }
        for name in names_a.intersection(&names_b) {
            let (a, b) = (a.as_fd(), b.as_fd());
            self.compare_file(&Pair { a, b, name }, &at::join(path, name));
        }
        Ok(())
    }

    fn compare_file(&mut self, pair: &Pair<'_>, path: &[u8]) {
        let (a, b) = match pair.both("metadata", at::metadata) {
            Ok(both) => both,
            Err(error) => return self.report(path, [error]),
        };
        if let Err(difference) = same("kind", kind(&a), kind(&b)) {
            return self.report(path, [difference]);
        }
        self.report(path, self.metadata_differences(pair, &a, &b));
        self.report(path, self.data_differences(pair, &a, &b));
        if a.is_dir() {
            self.pending.push(path.to_vec());
        } else {
            self.a.add_link(path, &a);
            self.b.add_link(path, &b);
        }
    }

    /// Returns differences in properties that files of any kind have.
    fn metadata_differences(&self, pair: &Pair<'_>, a: &Metadata, b: &Metadata) -> Vec<String> {
        let mut found = vec![same("mode", mode(a), mode(b))];
        if !self.ignore.ownership {
            found.push(same("owner", a.uid(), b.uid()));
            found.push(same("group", a.gid(), b.gid()));
        }
        if !self.ignore.mtimes {
            found.push(same("mtime", mtime(a), mtime(b)));
        }
        if !self.ignore.xattrs {
            found.extend(xattr_differences(pair));
        }
        found.into_iter().filter_map(Result::err).collect()
    }

    /// Returns differences in properties of the kind of file, which is the same in `a` and `b`.
    fn data_differences(&self, pair: &Pair<'_>, a: &Metadata, b: &Metadata) -> Option<String> {
        let kind = a.file_type();
        let result = if kind.is_file() {
            same("size", a.len(), b.len()).and_then(|()| self.contents(pair, a, b))
        } else if kind.is_symlink() {
            pair.both("link target", at::link_target)
                .and_then(|(a, b)| same_bytes("link target", &a, &b))
        } else if kind.is_char_device() || kind.is_block_device() {
            same("device number", device(a), device(b))
        } else {
            Ok(())
        };
        result.err()
    }

    fn contents(&self, pair: &Pair<'_>, a: &Metadata, b: &Metadata) -> Result<(), String> {
        let size = a.len();
        let files = pair.both("content", at::open_file)?;
        let data_a = read("a", "holes", || map::data_ranges(&files.0, size))?;
        let data_b = read("b", "holes", || map::data_ranges(&files.1, size))?;
        // A hole in both reads as zeros in both, however large it is.
        for range in map::union(&data_a, &data_b) {
            let mut from = range.start;
            while from < range.end {
                let to = range.end.min(from + PIECE);
                same_piece(&files, from, to)?;
                from = to;
            }
        }
        if self.ignore.sparseness || !map::has_hole(&data_a, size) {
            return Ok(());
        }
        same_sparseness((&data_a, a.blocks() * 512), (&data_b, b.blocks() * 512))
    }

    fn compare_links(&mut self) {
        let (a, b) = (self.a.link_groups(), self.b.link_groups());
        let mut found = Vec::new();
        // Several paths show the same broken group; one report is enough.
        let mut reported: BTreeSet<&[u8]> = BTreeSet::new();
        for (path, in_a) in a {
            let in_b = b[path];
            if in_a != in_b && !reported.contains(path) {
                reported.extend(in_a.union(in_b).map(Vec::as_slice));
                let text = format!("hard links: {} in a, {} in b", group(in_a), group(in_b));
                found.push((path.to_vec(), text));
            }
        }
        for (path, text) in found {
            self.report(&path, [text]);
        }
    }
}

/// The same name in a directory of each tree.
struct Pair<'a> {
    a: BorrowedFd<'a>,
    b: BorrowedFd<'a>,
    name: &'a [u8],
}

impl Pair<'_> {
    /// Reads a property of both files.
    fn both<T>(
        &self,
        what: &str,
        get: impl Fn(BorrowedFd<'_>, &[u8]) -> io::Result<T>,
    ) -> Result<(T, T), String> {
        let a = read("a", what, || get(self.a, self.name))?;
        let b = read("b", what, || get(self.b, self.name))?;
        Ok((a, b))
    }
}

fn read<T>(which: &str, what: &str, get: impl FnOnce() -> io::Result<T>) -> Result<T, String> {
    get().map_err(|error| format!("{what}: cannot be read in {which}: {error}"))
}

/// Returns the difference as an error.
fn same<T: PartialEq + Display>(what: &str, a: T, b: T) -> Result<(), String> {
    if a == b {
        return Ok(());
    }
    Err(format!("{what}: {a} in a, {b} in b"))
}

/// Like [`same`], for values that may be too long to show in full.
fn same_bytes(what: &str, a: &[u8], b: &[u8]) -> Result<(), String> {
    if a == b {
        return Ok(());
    }
    let offset = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (excerpt(a), excerpt(b));
    Err(format!("{what}: {a} in a, {b} in b, from byte {offset} on"))
}

fn xattr_differences(pair: &Pair<'_>) -> Vec<Result<(), String>> {
    let (a, b) = match pair.both("xattrs", at::xattrs) {
        Ok(both) => both,
        Err(error) => return vec![Err(error)],
    };
    let names: BTreeSet<&Vec<u8>> = a.keys().chain(b.keys()).collect();
    let compare_one = |name: &Vec<u8>| {
        let what = format!("xattr {}", at::show(name));
        match (a.get(name), b.get(name)) {
            (Some(a), Some(b)) => same_bytes(&what, a, b),
            (Some(_), None) => Err(format!("{what}: missing in b")),
            (None, _) => Err(format!("{what}: only in b")),
        }
    };
    names.into_iter().map(compare_one).collect()
}

fn same_piece((a, b): &(File, File), from: u64, to: u64) -> Result<(), String> {
    let piece = |which, file: &File| {
        let mut bytes = vec![0; (to - from) as usize];
        read(which, "content", || file.read_exact_at(&mut bytes, from))?;
        Ok::<_, String>(bytes)
    };
    let (a, b) = (piece("a", a)?, piece("b", b)?);
    match a.iter().zip(&b).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(offset) => Err(format!("content: differs from byte {} on", from + offset as u64)),
    }
}

/// Compares data ranges and allocated bytes of a file with holes.
fn same_sparseness(a: (&Ranges, u64), b: (&Ranges, u64)) -> Result<(), String> {
    let blocks_a = map::touched_blocks(a.0, HOLE_BLOCK);
    let blocks_b = map::touched_blocks(b.0, HOLE_BLOCK);
    let allocated = format!("{} bytes allocated in a, {} in b", a.1, b.1);
    if let Some(block) = map::first_disagreement(&blocks_a, &blocks_b) {
        let offset = block * HOLE_BLOCK;
        return Err(format!("sparseness: holes differ at byte {offset}, {allocated}"));
    }
    if b.1 > a.1 + ALLOCATION_SLACK {
        return Err(format!("sparseness: {allocated}"));
    }
    Ok(())
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => "regular file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symbolic link",
        () if kind.is_fifo() => "FIFO",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () => "unknown",
    }
}

fn mode(metadata: &Metadata) -> String {
    format!("{:04o}", metadata.mode() & 0o7777)
}

fn mtime(metadata: &Metadata) -> String {
    format!("{} s {} ns", metadata.mtime(), metadata.mtime_nsec())
}

fn device(metadata: &Metadata) -> String {
    let number = metadata.rdev();
    format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
}

fn group(paths: &BTreeSet<Vec<u8>>) -> String {
    let paths: Vec<String> = paths.iter().map(|path| at::show(path)).collect();
    format!("[{}]", paths.join(", "))
}

/// Returns a value in quotes, shortened.
fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 48;
    match bytes.get(..SHOWN) {
        None => format!("\"{}\"", bytes.escape_ascii()),
        Some(start) => format!("\"{}…\" ({} bytes)", start.escape_ascii(), bytes.len()),
    }
}
