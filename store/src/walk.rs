//! Walks a directory tree on several threads, in path order.
//!
//! Threads list directories ahead of the caller, deepest first from the caller's position. The
//! caller lists a directory itself if no thread has begun to. A limit on listed but unread entries
//! bounds memory.
//!
//! Only the caller lists a large directory, and only its names. Their metadata is read in parts,
//! which threads read ahead like directories.

use crate::entry::EntryKind;
use crate::git;
use crate::glob::{Globs, SourceGlobs, ends};
use crate::skipped::Noted;
use crate::source::{self, Names, NamesRead, Stat};
use crate::threads;
use crate::unfinished::{is_mark, is_unfinished};
use parking_lot::{Condvar, Mutex};
use rustix::fs::OFlags;
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Maximum number of entries listed but not yet read. At this number threads pause until half of
/// the entries have been read.
const AHEAD_MAX: usize = 50_000;
/// Maximum number of names in a directory that is listed as a whole. Debug builds have a small
/// limit, so that tests of small directories reach all of the code.
const WHOLE_NAMES_MAX: usize = if cfg!(debug_assertions) { 64 } else { 8192 };
/// Maximum number of names in a part of a larger directory.
const PART_NAMES: usize = WHOLE_NAMES_MAX / 2;
/// Maximum number of entries of a git directory that is held in memory as a whole.
pub const GIT_DIR_ENTRIES_MAX: usize = if cfg!(debug_assertions) { 48 } else { 8192 };

/// Rules for skipped paths, the same for plain directories and git directories.
///
/// In this order: the store itself is never read; a named path always is; then patterns, paths,
/// file systems, caches and unfinished files apply.
#[derive(Debug, Clone, Default)]
pub struct Excluded {
    /// Patterns of paths to skip, with everything below.
    pub globs: SourceGlobs,
    /// Exact paths of the tree to skip, with everything below.
    pub leave: Arc<HashSet<Vec<u8>>>,
    /// Skips files in git directories that git can recreate.
    pub git_caches: bool,
    /// Skips file systems mounted below the nearest named path.
    pub other_file_systems: bool,
    /// Skips everything below a directory with a valid `CACHEDIR.TAG`, except the tag.
    pub caches: bool,
    /// Skips files that a restore has not finished.
    pub unfinished: bool,
    /// Device and inode of directories that are never entered, sorted: the store itself.
    pub never: Vec<(u64, u64)>,
    /// Named paths below other named paths.
    pub named: Arc<Named>,
    /// Records paths that were skipped without a pattern.
    pub noted: Arc<Noted>,
}

/// Paths of the tree that are read, whatever the rules say about the directories above.
#[derive(Debug, Default)]
pub struct Named {
    paths: HashSet<Vec<u8>>,
    /// Directories above the named paths.
    passages: HashSet<Vec<u8>>,
}

impl Named {
    /// Creates the set of these paths.
    pub fn new(paths: HashSet<Vec<u8>>) -> Named {
        let above = |path: &Vec<u8>| {
            ends(path).map(|end| path[..end].to_vec()).filter(|above| above != path).collect()
        };
        let passages = paths.iter().flat_map::<Vec<Vec<u8>>, _>(above).collect();
        Named { paths, passages }
    }

    fn has(&self, path: &[u8]) -> bool {
        !self.paths.is_empty() && self.paths.contains(path)
    }

    /// Returns the length of the nearest named path at or above a path; 0 without one.
    fn nearest(&self, path: &[u8]) -> usize {
        if self.paths.is_empty() {
            return 0;
        }
        ends(path).filter(|end| self.paths.contains(&path[..*end])).last().unwrap_or(0)
    }

    /// Returns the names in a directory that are named or lead to a named path, sorted.
    fn names_in(&self, dir: &[u8]) -> Vec<&[u8]> {
        let all = self.paths.iter().chain(&self.passages);
        let names = all.filter_map(|path| match source::split(path) {
            (parent, name) if parent == dir && !name.is_empty() => Some(name),
            _ => None,
        });
        let mut names: Vec<&[u8]> = names.collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Returns true if a named path is below this one.
    pub fn is_below(&self, path: &[u8]) -> bool {
        !self.passages.is_empty() && self.passages.contains(path)
    }
}

/// Rules that apply to the content of a directory.
#[derive(Debug, Clone, Copy)]
struct Scope {
    /// Device of the nearest named path.
    device: u64,
    wanted: Wanted,
}

/// Content wanted from a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// Only named paths, and the directories that lead to them.
    Named,
    /// Named paths, and the tag of a cache.
    Tag,
}

impl Scope {
    fn all(device: u64) -> Scope {
        Scope { device, wanted: Wanted::All }
    }

    fn only(self, wanted: Wanted) -> Scope {
        Scope { wanted, ..self }
    }
}

/// Decision about an object found by the walk.
enum Verdict {
    Skipped,
    /// Read it, but nothing below it.
    Alone,
    /// Read it, and its content under this scope.
    Within(Scope),
}

impl Excluded {
    /// Returns true if a path is skipped regardless of the object there. In a git directory,
    /// `inner` is the path relative to that directory.
    fn has(&self, path: &[u8], inner: Option<&[u8]>, scope: Scope) -> bool {
        let is_named = self.named.has(path) || self.named.is_below(path);
        !is_named && self.is_out(path, inner, scope.wanted)
    }

    /// Returns true if a path below `top`, or a directory on the way to it, is skipped by its name.
    pub fn skips_below(&self, top: &[u8], path: &[u8]) -> bool {
        let is_skipped = |path: &[u8]| {
            let is_named = self.named.has(path) || self.named.is_below(path);
            !is_named && self.is_out(path, None, Wanted::All)
        };
        ends(path).filter(|end| *end > top.len()).any(|end| is_skipped(&path[..end]))
    }

    /// Returns true if an object at a path below `top` is read with its content. `device` is that of
    /// `top`.
    pub fn takes(&self, top: &[u8], device: u64, path: &[u8]) -> bool {
        if path == top || self.named.has(path) {
            return true;
        }
        let Ok(root) = Root::of_machine() else { return false };
        let mut scope = Scope::all(device);
        for end in ends(path).filter(|end| *end > top.len()) {
            let at = &path[..end];
            let open = || source::open_below(root.dir.as_fd(), at, OFlags::PATH);
            if self.has(at, None, scope) {
                return false;
            }
            let Ok(opened) = open() else { return false };
            let Ok(stat) = source::stat_open(&opened) else { return false };
            let is_mounted = || stat.device != scope.device;
            scope = match self.verdict(at, None, &stat, scope, is_mounted) {
                Verdict::Within(scope) => scope,
                Verdict::Skipped | Verdict::Alone => return false,
            };
            if end < path.len() {
                scope = self.inside(at, opened.as_fd(), scope);
            }
        }
        scope.wanted == Wanted::All
    }

    /// Like [`Excluded::has`], for a path that is not named and does not lead to a named path.
    fn is_out(&self, path: &[u8], inner: Option<&[u8]>, wanted: Wanted) -> bool {
        match wanted {
            Wanted::Named => true,
            Wanted::Tag if !path.ends_with(b"/CACHEDIR.TAG") => true,
            Wanted::Tag | Wanted::All => {
                let is_left = !self.leave.is_empty() && self.leave.contains(path);
                let is_cache = || self.git_caches && inner.is_some_and(git::is_cache);
                let is_match = || self.globs.matches(path, || self.named.nearest(path));
                is_left || is_match() || is_cache()
            }
        }
    }

    /// Decides about an object in a directory of this scope that was not skipped by its path.
    ///
    /// `is_mounted` returns true if an object other than a directory is a mount point.
    fn verdict(
        &self,
        path: &[u8],
        inner: Option<&[u8]>,
        stat: &Stat,
        scope: Scope,
        is_mounted: impl FnOnce() -> bool,
    ) -> Verdict {
        let is_dir = stat.kind == EntryKind::Directory;
        if is_dir && self.never.binary_search(&(stat.device, stat.inode)).is_ok() {
            self.noted.path(path);
            return Verdict::Skipped;
        }
        if self.named.has(path) {
            return Verdict::Within(Scope::all(stat.device));
        }
        let is_passage = is_dir && self.named.is_below(path);
        let is_out = self.is_out(path, inner, scope.wanted);
        let name = source::split(path).1;
        if self.unfinished && !is_out && !is_dir && (is_unfinished(name) || is_mark(name)) {
            self.noted.unfinished(path);
            return Verdict::Skipped;
        }
        let is_elsewhere = self.other_file_systems && stat.device != scope.device;
        let is_mount = is_elsewhere && (is_dir || is_mounted());
        if is_mount && !is_out {
            self.noted.path(path);
        }
        match (is_out || is_mount, is_passage) {
            (true, true) => Verdict::Within(Scope::all(stat.device).only(Wanted::Named)),
            (true, false) if is_out || !is_dir => Verdict::Skipped,
            (true, false) => Verdict::Alone,
            (false, _) => Verdict::Within(scope),
        }
    }

    /// Returns the scope for the content of an open directory in this scope. In a cache, only the
    /// tag is wanted.
    fn inside(&self, path: &[u8], dir: BorrowedFd<'_>, scope: Scope) -> Scope {
        let may_be = self.caches && scope.wanted == Wanted::All && !self.named.has(path);
        if !may_be || !is_cache(dir) {
            return scope;
        }
        self.noted.path(path);
        scope.only(Wanted::Tag)
    }

    /// Returns the scope of a directory some levels below a git directory, or `None` if it is
    /// skipped.
    fn scope_below(
        &self,
        git_dir: BorrowedFd<'_>,
        path: &[u8],
        below: &[u8],
        mut scope: Scope,
    ) -> Option<Scope> {
        for end in ends(below).filter(|end| *end > 0) {
            let inner = &below[..end];
            let path = join(path, inner);
            if self.has(&path, Some(inner), scope) {
                return None;
            }
            // An error here is reported when the directory is listed.
            let Ok(stat) = source::stat_at(git_dir, inner) else { continue };
            let is_mounted = || source::is_mount_root(git_dir, inner);
            scope = match self.verdict(&path, Some(inner), &stat, scope, is_mounted) {
                Verdict::Within(scope) => scope,
                Verdict::Skipped | Verdict::Alone => return None,
            };
            if self.caches
                && end < below.len()
                && let Ok(dir) = source::open_dir_below(git_dir, inner)
            {
                scope = self.inside(&path, dir.as_fd(), scope);
            }
        }
        Some(scope)
    }
}

impl From<Globs> for Excluded {
    fn from(globs: Globs) -> Excluded {
        Excluded { globs: globs.into(), ..Excluded::default() }
    }
}

/// Rules of a walk.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Rules for skipped paths.
    pub exclude: Excluded,
    /// Return git directories as one step, so that they can be read in their own order.
    pub git_dirs: bool,
    /// Scan git directories ahead, so that unchanged ones need no second scan.
    pub scan_git_dirs: bool,
    /// The roots of walks were named. Otherwise a cache is one at the root, too.
    pub has_named_roots: bool,
}

/// The root of a walk: a directory on this machine, and its path in the tree.
///
/// The directory may be elsewhere than the path, such as in a copy that is frozen.
#[derive(Debug)]
pub struct Root {
    /// Path in the tree; empty for `/`.
    pub tree_path: Vec<u8>,
    /// The directory, open.
    pub dir: OwnedFd,
}

impl Root {
    /// Opens `/`, with its own paths.
    pub fn of_machine() -> io::Result<Root> {
        Ok(Root { tree_path: Vec::new(), dir: source::open_dir(Path::new("/"))? })
    }

    /// Returns the metadata of the object at a path, without opening it for reading.
    pub fn stat(&self, path: &[u8]) -> io::Result<Stat> {
        let path = self.relative(path);
        source::stat_open(source::open_below(self.dir.as_fd(), path, OFlags::PATH)?)
    }

    /// Returns `path` relative to this directory.
    pub fn relative<'p>(&self, path: &'p [u8]) -> &'p [u8] {
        let rest = &path[self.tree_path.len()..];
        rest.strip_prefix(b"/").unwrap_or(rest)
    }
}

/// An object found by a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Path in the tree.
    pub path: Vec<u8>,
    /// Metadata of the object.
    pub stat: Stat,
    /// Directory in which it was found. Not known in git directories and for the root of a walk.
    pub above: Option<Arc<Above>>,
}

/// A directory in which objects were found.
#[derive(Debug, PartialEq, Eq)]
pub struct Above {
    /// Inode number of the directory.
    pub inode: u64,
    /// Directory in which this one was found.
    pub above: Option<Arc<Above>>,
}

/// One step of a walk.
#[derive(Debug)]
pub enum Step {
    /// A file, directory or other object. The content of a directory follows.
    Found(Found),
    /// A git directory, to be read as a whole. Holds its content in path order if that was
    /// requested, could be scanned and is not too large.
    GitDir(Found, Option<Vec<Found>>),
    /// An object whose metadata or listing could not be read.
    Failed(Vec<u8>, io::Error),
    /// An object that went away after it was listed, and the directory in which it was.
    Vanished(Vec<u8>, Option<Arc<Above>>),
}

/// A directory to list, or a part of it.
struct Node {
    path: Vec<u8>,
    /// The directory itself.
    dir: Arc<Above>,
    /// Scope of the directory, or of its content for a part.
    scope: Scope,
    part: Option<Part>,
    state: Mutex<State>,
    done: Condvar,
}

/// A part of a large directory.
struct Part {
    of: Arc<LargeDir>,
    /// Positions of its names.
    range: Range<usize>,
}

/// A directory whose metadata is read in parts.
struct LargeDir {
    names: Names,
    /// True if the directory could not be opened again, which is reported once.
    is_failed: AtomicBool,
    /// Number of parts whose metadata was not read yet.
    parts_left: AtomicUsize,
    /// Names without an entry in the parts so far.
    missing: Mutex<HashSet<Box<[u8]>>>,
}

enum State {
    Waiting,
    Running,
    Done(Listing),
    Consumed,
}

enum Listing {
    /// Children not yet returned, in reverse order.
    Children(Vec<Child>),
    GitDir(Option<Vec<Found>>),
    Failed(io::Error),
}

enum Child {
    Found(Found, Option<Arc<Node>>),
    /// More children of the same directory.
    More(Arc<Node>),
    Failed(Vec<u8>, io::Error),
    Vanished(Vec<u8>, Option<Arc<Above>>),
}

impl Child {
    /// Returns the child for a directory that could not be listed. It may be gone, or another object
    /// may have its name.
    fn unlisted(path: Vec<u8>, above: Option<Arc<Above>>, error: io::Error) -> Child {
        if is_gone(&error) { Child::Vanished(path, above) } else { Child::Failed(path, error) }
    }
}

/// Children of a directory, and the nodes among them, in order.
#[derive(Default)]
struct Children {
    children: Vec<Child>,
    nodes: Vec<Arc<Node>>,
}

impl Children {
    fn more(&mut self, node: Arc<Node>) {
        self.nodes.push(Arc::clone(&node));
        self.children.push(Child::More(node));
    }

    fn into_listing(mut self) -> (Listing, Vec<Arc<Node>>) {
        self.children.reverse();
        (Listing::Children(self.children), self.nodes)
    }
}

/// Paths of a directory that are too long to be stored.
struct TooLong {
    first: Vec<u8>,
    fault: crate::entry::EntryFault,
    count: usize,
}

impl TooLong {
    /// Adds a path.
    fn add(known: &mut Option<TooLong>, path: Vec<u8>, fault: crate::entry::EntryFault) {
        match known {
            None => *known = Some(TooLong { first: path, fault, count: 1 }),
            Some(known) => {
                known.count += 1;
                if path < known.first {
                    (known.first, known.fault) = (path, fault);
                }
            }
        }
    }

    /// Returns the error of all paths. There may be any number of them, with more below.
    fn into_child(self) -> Child {
        let TooLong { first, fault, count } = self;
        let text = match count {
            1 => format!("{fault}; skipped with everything below it"),
            _ => format!(
                "{fault}; skipped {count} such entries of its directory \
                 with everything below them"
            ),
        };
        Child::Failed(first, io::Error::other(text))
    }
}

impl Listing {
    fn len(&self) -> usize {
        match self {
            Listing::Children(children) => children.len() + 1,
            Listing::GitDir(found) => found.as_ref().map_or(0, Vec::len) + 1,
            Listing::Failed(_) => 1,
        }
    }
}

struct Shared {
    root: Arc<Root>,
    rules: Rules,
    queue: Mutex<Queue>,
    work: Condvar,
    ahead: AtomicUsize,
}

/// Directories to list; the last one is next.
struct Queue {
    nodes: Vec<Arc<Node>>,
    /// Number of waiting threads.
    idle: usize,
    is_ended: bool,
}

/// A running walk: an iterator over [`Step`]s in path order.
pub struct Walk {
    shared: Arc<Shared>,
    /// Open directories, each with its remaining children in reverse order.
    stack: Vec<Vec<Child>>,
    /// Directory whose listing is needed next.
    pending: Option<(Found, Arc<Node>)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Walk {
    /// Walks everything below `root` with `threads` threads besides the caller's. `top` is the
    /// metadata of that directory.
    pub fn new(root: Arc<Root>, top: Stat, rules: Rules, threads: usize) -> Walk {
        let dir = Arc::new(Above { inode: top.inode, above: None });
        let first = node_of(root.tree_path.clone(), dir, Scope::all(top.device), None);
        let shared = Arc::new(Shared {
            rules,
            queue: Mutex::new(Queue { nodes: vec![Arc::clone(&first)], idle: 0, is_ended: false }),
            work: Condvar::new(),
            ahead: AtomicUsize::new(0),
            root: Arc::clone(&root),
        });
        // The caller lists whatever no thread has begun, so that fewer threads only cost time.
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            threads::spawn(move || shared.work()).ok()
        };
        let threads = (0..threads).map_while(spawn).collect();
        let top = Found { path: root.tree_path.clone(), stat: top, above: None };
        let stack = vec![vec![Child::Found(top, Some(first))]];
        Walk { shared, stack, pending: None, threads }
    }

    /// Returns the listing of a directory. Lists it on this thread if no other has begun to.
    fn listing(&self, node: &Node) -> Listing {
        let mut state = node.state.lock();
        loop {
            match std::mem::replace(&mut *state, State::Consumed) {
                State::Waiting => {
                    *state = State::Consumed;
                    drop(state);
                    let listed = self.shared.list(node, usize::MAX);
                    let (listing, nodes) = listed.expect("it lists without a limit");
                    self.shared.push(nodes);
                    return listing;
                }
                State::Done(listing) => {
                    drop(state);
                    self.shared.taken(listing.len());
                    return listing;
                }
                State::Running => {
                    *state = State::Running;
                    node.done.wait(&mut state);
                }
                State::Consumed => unreachable!("a directory is walked once"),
            }
        }
    }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            if let Some((found, node)) = self.pending.take() {
                return Some(match self.listing(&node) {
                    Listing::Children(children) => {
                        self.stack.push(children);
                        Step::Found(found)
                    }
                    Listing::GitDir(content) => Step::GitDir(found, content),
                    Listing::Failed(error) => {
                        let path = found.path.clone();
                        let above = found.above.clone();
                        self.stack.push(vec![Child::unlisted(path, above, error)]);
                        Step::Found(found)
                    }
                });
            }
            match self.stack.last_mut()?.pop() {
                None => drop(self.stack.pop()),
                Some(Child::Failed(path, error)) => return Some(Step::Failed(path, error)),
                Some(Child::Vanished(path, above)) => return Some(Step::Vanished(path, above)),
                Some(Child::Found(found, None)) => return Some(Step::Found(found)),
                Some(Child::More(node)) => match self.listing(&node) {
                    Listing::Children(children) => self.stack.push(children),
                    Listing::Failed(error) => {
                        let (path, above) = (node.path.clone(), node.dir.above.clone());
                        self.stack.push(vec![Child::unlisted(path, above, error)]);
                    }
                    Listing::GitDir(_) => unreachable!("a part is not a git directory"),
                },
                Some(Child::Found(found, Some(node))) => self.pending = Some((found, node)),
            }
        }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.shared.queue.lock().is_ended = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Runs a listing thread until the walk ends.
    fn work(&self) {
        while let Some(node) = self.next_node() {
            {
                let mut state = node.state.lock();
                if !matches!(*state, State::Waiting) {
                    continue;
                }
                *state = State::Running;
            }
            let Some((listing, nodes)) = self.list(&node, WHOLE_NAMES_MAX) else {
                // Left to the caller: the names of several large directories may exceed memory.
                *node.state.lock() = State::Waiting;
                node.done.notify_one();
                continue;
            };
            self.ahead.fetch_add(listing.len(), Ordering::Relaxed);
            *node.state.lock() = State::Done(listing);
            node.done.notify_one();
            self.push(nodes);
        }
    }

    fn next_node(&self) -> Option<Arc<Node>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_ended {
                return None;
            }
            if self.ahead.load(Ordering::Relaxed) <= AHEAD_MAX
                && let Some(node) = queue.nodes.pop()
            {
                return Some(node);
            }
            queue.idle += 1;
            self.work.wait(&mut queue);
            queue.idle -= 1;
        }
    }

    /// Records that the caller took `entries` entries that were listed ahead.
    fn taken(&self, entries: usize) {
        let before = self.ahead.fetch_sub(entries, Ordering::Relaxed);
        let low = AHEAD_MAX / 2;
        if before > low && before - entries <= low {
            drop(self.queue.lock()); // a thread about to wait checks again, or already waits
            self.work.notify_all();
        }
    }

    /// Queues directories; the first is next.
    fn push(&self, nodes: Vec<Arc<Node>>) {
        if nodes.is_empty() {
            return;
        }
        let has_parts = nodes.iter().any(|node| node.part.is_some());
        let mut queue = self.queue.lock();
        queue.nodes.extend(nodes.into_iter().rev());
        let is_awaited = queue.idle > 0 && self.ahead.load(Ordering::Relaxed) <= AHEAD_MAX;
        drop(queue);
        if is_awaited && has_parts {
            self.work.notify_all();
        } else if is_awaited {
            self.work.notify_one();
        }
    }

    /// Reads the metadata of a part of a directory. Also returns its nodes.
    fn list_part(&self, node: &Node, Part { of, range }: &Part) -> (Listing, Vec<Arc<Node>>) {
        let (root, path) = (self.root.dir.as_fd(), &node.path[..]);
        match open_dir(root, self.root.relative(path), path, &self.rules.exclude.named) {
            Ok((dir, _)) => {
                let dir = dir.as_fd();
                let stats = of.names.stats(dir, range.clone());
                let (mut listed, missing) =
                    self.look(dir, node, node.scope, &of.names, range.start, stats);
                of.missing.lock().extend(missing);
                if of.parts_left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    let missing = std::mem::take(&mut *of.missing.lock());
                    listed.children.extend(without_entry(dir, node, missing));
                }
                listed.into_listing()
            }
            Err(_) if of.is_failed.swap(true, Ordering::Relaxed) => {
                Children::default().into_listing()
            }
            Err(error) => (Listing::Failed(error), Vec::new()),
        }
    }

    /// Lists a directory or a part of one. Also returns its nodes. Returns `None` if a directory has
    /// more than `max` names.
    fn list(&self, node: &Node, max: usize) -> Option<(Listing, Vec<Arc<Node>>)> {
        if let Some(part) = &node.part {
            return Some(self.list_part(node, part));
        }
        let (path, exclude) = (&node.path[..], &self.rules.exclude);
        let (root, below) = (self.root.dir.as_fd(), self.root.relative(path));
        let opened = open_dir(root, below, path, &exclude.named);
        let (dir, denied) = match opened {
            Ok(opened) => opened,
            Err(error) => return Some((Listing::Failed(error), Vec::new())),
        };
        let dir = dir.as_fd();
        // The cache rule does not apply to the named path at which the walk begins.
        let is_top = path == self.root.tree_path && self.rules.has_named_roots;
        let scope = if is_top { node.scope } else { exclude.inside(path, dir, node.scope) };
        let mut too_long = None;
        let is_wanted = |name: &[u8]| {
            let is_out = || exclude.has(&join(path, name), None, scope);
            if let Some(fault) = fault_of_child(path, name) {
                if !is_out() {
                    TooLong::add(&mut too_long, join(path, name), fault);
                }
                return false;
            }
            scope.wanted == Wanted::All || !is_out()
        };
        let read = names(dir, denied, path, &exclude.named, max, is_wanted);
        if read.has_more {
            return None;
        }
        let NamesRead { names, error: cut_short, .. } = read;
        let is_whole = names.len() <= WHOLE_NAMES_MAX;
        let stats = names.stats(dir, if is_whole { 0..names.len() } else { 0..0 });
        if self.rules.git_dirs && scope.wanted == Wanted::All && is_git_dir(dir, &names, &stats) {
            // A listing that lacks names would hide them.
            let is_all = is_whole && cut_short.is_none() && too_long.is_none();
            let listed = is_all.then_some((names, stats));
            let scan = || scan_whole(dir, path, exclude, listed);
            let content = self.rules.scan_git_dirs.then(scan).flatten();
            return Some((Listing::GitDir(content), Vec::new()));
        }
        let (mut listed, missing) = self.look(dir, node, scope, &names, 0, stats);
        listed.children.extend(without_entry(dir, node, missing));
        if !is_whole {
            let count = names.len();
            let of = Arc::new(LargeDir {
                names,
                is_failed: AtomicBool::new(false),
                parts_left: AtomicUsize::new(parts(count, PART_NAMES).count()),
                missing: Mutex::default(),
            });
            for range in parts(count, PART_NAMES) {
                let part = Some(Part { of: Arc::clone(&of), range });
                listed.more(node_of(path.to_vec(), Arc::clone(&node.dir), scope, part));
            }
        }
        // Entries listed before the error are still valid.
        let above = || node.dir.above.clone();
        let cut_short = cut_short.map(|error| Child::unlisted(path.to_vec(), above(), error));
        listed.children.extend(cut_short);
        listed.children.extend(too_long.map(TooLong::into_child));
        Some(listed.into_listing())
    }

    /// Returns the children of a directory whose names, from the position `start` on, have this
    /// metadata. Also returns the wanted names without an entry.
    fn look(
        &self,
        dir: BorrowedFd<'_>,
        node: &Node,
        scope: Scope,
        names: &Names,
        start: usize,
        stats: Vec<io::Result<Stat>>,
    ) -> (Children, HashSet<Box<[u8]>>) {
        let exclude = &self.rules.exclude;
        let mut listed = Children { children: Vec::with_capacity(stats.len()), nodes: Vec::new() };
        let mut missing = HashSet::new();
        for (stat, at) in stats.into_iter().zip(start..) {
            let name = names.get(at);
            let path = join(&node.path, name);
            let stat = match stat {
                Ok(stat) => stat,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if !exclude.has(&path, None, scope) {
                        missing.insert(name.into());
                    }
                    continue;
                }
                Err(_) if exclude.has(&path, None, scope) => continue,
                Err(error) => {
                    listed.children.push(Child::Failed(path, error));
                    continue;
                }
            };
            let is_mounted = || source::is_mount_root(dir, name);
            let within = match exclude.verdict(&path, None, &stat, scope, is_mounted) {
                Verdict::Skipped => continue,
                Verdict::Alone => None,
                Verdict::Within(scope) => (stat.kind == EntryKind::Directory).then_some(scope),
            };
            let above = Some(Arc::clone(&node.dir));
            let below = within.map(|scope| {
                let dir = Arc::new(Above { inode: stat.inode, above: above.clone() });
                node_of(path.clone(), dir, scope, None)
            });
            listed.nodes.extend(below.clone());
            listed.children.push(Child::Found(Found { path, stat, above }, below));
        }
        (listed, missing)
    }
}

/// Tells names that vanished from names without an entry, as in a damaged directory: lists the
/// directory again. Names that are still there have no entry. One that came back has vanished, too.
fn without_entry(
    dir: BorrowedFd<'_>,
    node: &Node,
    mut missing: HashSet<Box<[u8]>>,
) -> impl Iterator<Item = Child> {
    let mut listed = BTreeSet::new();
    if !missing.is_empty()
        && let Ok(open) = source::open_dir_below(dir, b"")
    {
        Names::read(open.as_fd(), 0, |name| {
            listed.extend(missing.take(name));
            false
        });
    }
    let is_gone = |name: &[u8]| {
        source::stat_at(dir, name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let (lost, back): (Vec<_>, Vec<_>) = listed.into_iter().partition(|name| is_gone(name));
    let (path, above) = (node.path.clone(), Some(Arc::clone(&node.dir)));
    let lost = lost.into_iter().map({
        let path = path.clone();
        move |name| {
            let error = io::Error::other("the directory lists it, but has no such entry");
            Child::Failed(join(&path, &name), error)
        }
    });
    let vanished = missing.into_iter().chain(back);
    lost.chain(vanished.map(move |name| Child::Vanished(join(&path, &name), above.clone())))
}

/// Returns the fault of a path in a directory, if it is too long to be stored.
fn fault_of_child(dir: &[u8], name: &[u8]) -> Option<crate::entry::EntryFault> {
    let is_long = dir.len() + 1 + name.len() > crate::limits::PATH_BYTES_MAX;
    let path = if is_long { join(dir, name) } else { Vec::new() };
    crate::entry::check_child(&path, name).err()
}

/// Divides the positions of `count` names into parts of `size`.
fn parts(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(size).map(move |from| from..count.min(from + size))
}

/// Opens a directory for listing. If this user may only enter it, and it leads to a named path,
/// opens it for looking up names and also returns the error.
fn open_dir(
    root: BorrowedFd<'_>,
    below: &[u8],
    path: &[u8],
    named: &Named,
) -> io::Result<(OwnedFd, Option<io::Error>)> {
    match source::open_dir_below(root, below) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && named.is_below(path) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            Ok((source::open_below(root, below, flags)?, Some(error)))
        }
        opened => Ok((opened?, None)),
    }
}

/// Reads the names in an open directory, unless that is `denied`. Adds named paths that the listing
/// lacks because of an error.
fn names(
    dir: BorrowedFd<'_>,
    denied: Option<io::Error>,
    path: &[u8],
    named: &Named,
    max: usize,
    mut is_wanted: impl FnMut(&[u8]) -> bool,
) -> NamesRead {
    let mut read = match denied {
        Some(error) => NamesRead { error: Some(error), ..NamesRead::default() },
        None => Names::read(dir, max, &mut is_wanted),
    };
    if read.error.is_some() && named.is_below(path) {
        read.names.add(named.names_in(path).into_iter().filter(|name| is_wanted(name)));
    }
    read
}

/// An item of a scan of a git directory.
#[derive(Debug)]
pub enum Scanned {
    /// An object.
    Found(Found),
    /// A path that could not be scanned, or only in part. If it went away, the scan may have missed
    /// its replacement.
    Failed(Vec<u8>, io::Error),
    /// A directory that went away after it `was_listed`, or in which a phase begins and that does not
    /// exist. A later phase may find its replacement.
    Missing {
        /// Path of the directory.
        path: Vec<u8>,
        /// True if the scan found it a moment before.
        was_listed: bool,
    },
    /// A directory in which a phase begins and in whose place something else is. That object belongs
    /// to another phase.
    NotDir(Vec<u8>, io::Error),
    /// The directory found last is a git directory. Its content is not scanned.
    IsGitDir,
}

/// Takes what a scan finds, in path order, until it breaks.
type Visit<'v> = &'v mut dyn FnMut(Scanned) -> ControlFlow<()>;

/// A scan of a git directory.
struct Scan<'a> {
    dir: BorrowedFd<'a>,
    /// Path in the tree.
    path: &'a [u8],
    /// Everything, in path order, without a phase.
    phase: Option<git::Phase>,
    /// Where the scan begins, relative to the git directory.
    begins_in: &'a [u8],
    /// True if git directories inside this one are scanned with it.
    with_inner: bool,
    exclude: &'a Excluded,
    /// Maximum number of names in a directory.
    names_max: usize,
}

/// Returns everything in an open git directory in path order. Returns `None` if a part of it cannot
/// be scanned, or if it is too large.
///
/// The result may differ from every state of the directory. It shows only that nothing changed: if
/// each object is as in the previous snapshot, then the content of that snapshot can be taken over.
fn scan_whole(
    dir: BorrowedFd<'_>,
    path: &[u8],
    exclude: &Excluded,
    listed: Option<(Names, Vec<io::Result<Stat>>)>,
) -> Option<Vec<Found>> {
    let top = Scope::all(source::stat_open(dir).ok()?.device);
    let mut found = Vec::new();
    let names_max = GIT_DIR_ENTRIES_MAX;
    let scan =
        Scan { dir, path, phase: None, begins_in: b"", with_inner: true, exclude, names_max };
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let mut visit = |item| {
        match item {
            Scanned::Found(item) if found.len() < GIT_DIR_ENTRIES_MAX => found.push(item),
            Scanned::Failed(_, error) if is_gone(&error) => {}
            Scanned::Missing { .. } | Scanned::NotDir(..) | Scanned::IsGitDir => {}
            Scanned::Found(_) | Scanned::Failed(..) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    };
    let done = match listed {
        Some((names, stats)) => scan.look(dir, b"", top, &names, Some(stats), &mut visit),
        None => scan.below(b"", top, &mut visit),
    };
    done.is_continue().then_some(found)
}

/// What a scan of a phase covers.
#[derive(Clone, Copy)]
pub struct PhaseScan<'a> {
    /// The phase.
    pub phase: git::Phase,
    /// Where it begins, relative to the git directory.
    pub begins_in: &'a [u8],
    /// True if git directories inside this one are scanned with it, and without an order.
    pub with_inner: bool,
}

impl<'a> PhaseScan<'a> {
    /// Returns the scan of a whole phase.
    pub fn of(phase: git::Phase) -> PhaseScan<'a> {
        PhaseScan { phase, begins_in: phase.begins_in(), with_inner: true }
    }
}

/// Scans a phase of an open git directory whose path in the tree is `path`. Skips files of running
/// git operations.
pub fn scan_phase(
    dir: BorrowedFd<'_>,
    path: &[u8],
    of: PhaseScan<'_>,
    exclude: &Excluded,
    visit: Visit<'_>,
) {
    let PhaseScan { phase, begins_in, with_inner } = of;
    let names_max = usize::MAX;
    let scan = Scan { dir, path, phase: Some(phase), begins_in, with_inner, exclude, names_max };
    // The visitor knows that it ended the scan.
    let _ = scan.run(visit);
}

impl Scan<'_> {
    fn run(&self, visit: Visit<'_>) -> ControlFlow<()> {
        let top = match source::stat_open(self.dir) {
            Ok(stat) => Scope::all(stat.device),
            Err(error) => return visit(Scanned::Failed(self.path.to_vec(), error)),
        };
        match self.exclude.scope_below(self.dir, self.path, self.begins_in, top) {
            Some(scope) => self.below(self.begins_in, scope, visit),
            None => ControlFlow::Continue(()),
        }
    }

    fn path_of(&self, below: &[u8]) -> Vec<u8> {
        if below.is_empty() { self.path.to_vec() } else { join(self.path, below) }
    }

    /// Returns true if a path relative to the git directory belongs to the scan.
    fn is_wanted(&self, inner: &[u8], scope: Scope) -> bool {
        let Scan { phase, exclude, .. } = self;
        let path = join(self.path, inner);
        let is_named = exclude.named.has(&path) || exclude.named.is_below(&path);
        phase.is_none_or(|phase| git::Phase::of(inner) == phase)
            && (is_named || !git::is_transient(inner))
            && !exclude.has(&path, Some(inner), scope)
    }

    /// Scans a directory.
    fn below(&self, below: &[u8], scope: Scope, visit: Visit<'_>) -> ControlFlow<()> {
        let (path, exclude) = (self.path_of(below), self.exclude);
        let (dir, denied) = match open_dir(self.dir, below, &path, &exclude.named) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return visit(Scanned::Missing { path, was_listed: below != self.begins_in });
            }
            Err(error) if below == self.begins_in && is_not_a_dir(&error) => {
                return visit(Scanned::NotDir(path, error));
            }
            Err(error) => return visit(Scanned::Failed(path, error)),
        };
        let dir = dir.as_fd();
        let scope = match below {
            b"" => scope,
            _ => exclude.inside(&path, dir, scope),
        };
        let is_wanted = |name: &[u8]| self.is_wanted(&join(below, name), scope);
        let read = names(dir, denied, &path, &exclude.named, self.names_max, is_wanted);
        if read.has_more {
            return ControlFlow::Break(());
        }
        if let Some(error) = read.error {
            visit(Scanned::Failed(path, error))?;
        }
        self.look(dir, below, scope, &read.names, None, visit)
    }

    /// Scans an open directory with these names. `stats` is their metadata if it was read.
    fn look(
        &self,
        dir: BorrowedFd<'_>,
        below: &[u8],
        scope: Scope,
        names: &Names,
        mut stats: Option<Vec<io::Result<Stat>>>,
        visit: Visit<'_>,
    ) -> ControlFlow<()> {
        let is_read = stats.is_some();
        let size = if is_read { names.len().max(1) } else { PART_NAMES };
        for range in parts(names.len(), size) {
            let stats = stats.take().unwrap_or_else(|| names.stats(dir, range.clone()));
            let may_be_inner = scope.wanted == Wanted::All && !below.is_empty() && range.start == 0;
            if may_be_inner && is_git_dir(dir, names, &stats) {
                return self.inner(dir, &join(self.path, below), visit);
            }
            for (stat, at) in stats.into_iter().zip(range) {
                let inner = join(below, names.get(at));
                if is_read && !self.is_wanted(&inner, scope) {
                    continue;
                }
                self.object(dir, names.get(at), &inner, stat, scope, visit)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Visits an object, and everything in it if it is a directory of this phase.
    fn object(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        inner: &[u8],
        stat: io::Result<Stat>,
        scope: Scope,
        visit: Visit<'_>,
    ) -> ControlFlow<()> {
        let path = join(self.path, inner);
        let stat = match stat {
            Ok(stat) => stat,
            Err(error) => return visit(Scanned::Failed(path, error)),
        };
        let is_mounted = || source::is_mount_root(dir, name);
        let verdict = self.exclude.verdict(&path, Some(inner), &stat, scope, is_mounted);
        if matches!(verdict, Verdict::Skipped) {
            return ControlFlow::Continue(());
        }
        // Paths below one that is too long could not be stored either.
        let is_kept = crate::entry::is_valid_path(&path);
        // The content of `refs` belongs to another phase than `refs` itself.
        let ends_here = self.phase.is_some() && inner == b"refs";
        visit(Scanned::Found(Found { path, stat, above: None }))?;
        match verdict {
            Verdict::Within(scope)
                if stat.kind == EntryKind::Directory && is_kept && !ends_here =>
            {
                self.below(inner, scope, visit)
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// Scans a git directory inside this one, such as that of a submodule.
    fn inner(&self, dir: BorrowedFd<'_>, path: &[u8], visit: Visit<'_>) -> ControlFlow<()> {
        if !self.with_inner {
            return visit(Scanned::IsGitDir);
        }
        Scan { dir, path, phase: None, begins_in: b"", ..*self }.run(visit)
    }
}

/// Returns true if an open directory with these names is a git directory. `stats` is the metadata
/// of the first names.
fn is_git_dir(dir: BorrowedFd<'_>, names: &Names, stats: &[io::Result<Stat>]) -> bool {
    let kind = |at: usize| match stats.get(at) {
        Some(stat) => Some(stat.as_ref().ok()?.kind),
        None => Some(source::stat_at(dir, names.get(at)).ok()?.kind),
    };
    let known: Option<Vec<(&[u8], EntryKind)>> =
        git::MARKS.into_iter().map(|name| Some((name, kind(names.find(name)?)?))).collect();
    known.is_some_and(|known| is_git_dir_with(dir, known.into_iter()))
}

/// Returns true if an open directory is a git directory.
pub(crate) fn is_open_git_dir(dir: BorrowedFd<'_>) -> bool {
    let look = |name: &'static [u8]| Some((name, source::stat_at(dir, name).ok()?.kind));
    is_git_dir_with(dir, git::MARKS.into_iter().filter_map(look))
}

/// Returns the outermost git directory at or above a path.
pub fn git_dir_around(root: &Root, path: &[u8]) -> Option<Vec<u8>> {
    let mut ends = ends(path);
    let end = ends.find(|end| {
        let dir = source::open_dir_below(root.dir.as_fd(), root.relative(&path[..*end]));
        dir.is_ok_and(|dir| is_open_git_dir(dir.as_fd()))
    });
    Some(path[..end?].to_vec())
}

fn is_git_dir_with<'n>(
    dir: BorrowedFd<'_>,
    known: impl Iterator<Item = (&'n [u8], EntryKind)>,
) -> bool {
    git::is_git_dir(known, || {
        let mut head = vec![0; 64];
        let file = source::open_file_below(dir, b"HEAD")?;
        let len = std::os::unix::fs::FileExt::read_at(&file, &mut head, 0)?;
        head.truncate(len);
        Ok(head)
    })
}

/// Returns true if an object could not be opened as a directory because it is none.
fn is_not_a_dir(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotADirectory
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Returns true if nothing or another object has the name of a directory, or if a directory above
/// moved while the name was looked up.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::CrossesDevices)
        || is_not_a_dir(error)
}

/// Returns true if a directory is marked as a cache: <https://bford.info/cachedir/>.
pub(crate) fn is_cache(dir: BorrowedFd<'_>) -> bool {
    const SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
    let Ok(file) = source::open_file_below(dir, b"CACHEDIR.TAG") else { return false };
    let mut begin = [0; SIGNATURE.len()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut begin, 0).is_ok() && begin == SIGNATURE
}

/// Returns the path of `name` below `path`.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn node_of(path: Vec<u8>, dir: Arc<Above>, scope: Scope, part: Option<Part>) -> Arc<Node> {
    let (state, done) = (Mutex::new(State::Waiting), Condvar::new());
    Arc::new(Node { path, dir, scope, part, state, done })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::path_cmp;
    use std::fs;
    use std::path::Path;

    fn walk(dir: &Path, threads: usize) -> Walk {
        let dir = source::open_dir(dir).expect("opens");
        let top = source::stat_open(&dir).expect("is there");
        let root = Arc::new(Root { tree_path: b"top".to_vec(), dir });
        let rules = Rules {
            exclude: Excluded::default(),
            git_dirs: true,
            scan_git_dirs: true,
            has_named_roots: true,
        };
        Walk::new(root, top, rules, threads)
    }

    fn path(step: Step) -> Vec<u8> {
        match step {
            Step::Found(found) => found.path,
            other => panic!("{other:?}"),
        }
    }

    fn write(dir: &Path, names: impl Iterator<Item = String>) {
        for name in names {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().expect("below")).expect("makes");
            fs::write(path, "").expect("writes");
        }
    }

    #[test]
    fn metadata_of_a_large_directory_is_read_in_parts() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), (0..10 * WHOLE_NAMES_MAX).map(|n| format!("{n:05}")));
        let mut walk = walk(dir.path(), 0);
        assert_eq!(path(walk.next().expect("the directory")), b"top");
        assert_eq!(path(walk.next().expect("a file")), b"top/00000");
        for name in fs::read_dir(dir.path()).expect("lists") {
            fs::remove_file(name.expect("lists").path()).expect("removes");
        }
        let (found, gone): (Vec<_>, Vec<_>) =
            walk.partition(|step| !matches!(step, Step::Vanished(..)));
        assert_eq!((found.len(), gone.len()), (PART_NAMES - 1, 9 * WHOLE_NAMES_MAX + PART_NAMES));
    }

    #[test]
    fn any_number_of_threads_finds_everything_in_path_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = (0..3 * WHOLE_NAMES_MAX).flat_map(|n| {
            let inner = if n % 50 == 0 { WHOLE_NAMES_MAX + 5 } else { n % 2 };
            let below = (0..inner).map(move |m| format!("{n}-/{m}"));
            below.chain([format!("{n}")])
        });
        let names: Vec<String> = names.collect();
        write(dir.path(), names.iter().cloned());
        let dirs = names.iter().filter_map(|name| Some(name.split_once('/')?.0.to_owned()));
        let all = names.iter().cloned().chain(dirs).map(|name| format!("top/{name}").into_bytes());
        let mut all: Vec<Vec<u8>> = all.chain([b"top".to_vec()]).collect();
        all.sort_by(|a, b| path_cmp(a, b));
        all.dedup();
        for threads in [0, 1, 7] {
            let found: Vec<Vec<u8>> = walk(dir.path(), threads).map(path).collect();
            assert!(found == all, "{threads} threads");
        }
    }

    #[test]
    fn only_a_small_git_directory_is_scanned_ahead() {
        let dir = tempfile::tempdir().expect("a directory");
        let git_dir = |name: &str, refs: usize| {
            let of = |inner: &str| format!("{name}/{inner}");
            write(dir.path(), ["objects/pack/x", "refs/heads/HEAD.lock"].into_iter().map(of));
            write(dir.path(), (0..refs).map(|n| of(&format!("refs/heads/{n:05}"))));
            fs::write(dir.path().join(name).join("HEAD"), "ref: refs/heads/x\n").expect("writes");
        };
        git_dir("deep.git", GIT_DIR_ENTRIES_MAX);
        git_dir("small.git", 9);
        let mut found = Vec::new();
        for step in walk(dir.path(), 3) {
            if let Step::GitDir(dir, content) = step {
                let content: Option<Vec<Vec<u8>>> =
                    content.map(|content| content.into_iter().map(|of| of.path).collect());
                found.push((dir.path, content));
            }
        }
        let small = ["HEAD", "objects", "objects/pack", "objects/pack/x", "refs", "refs/heads"];
        let refs = (0..9).map(|n| format!("refs/heads/{n:05}"));
        let small = small.iter().map(|&name| name.to_owned()).chain(refs);
        let small = small.map(|name| format!("top/small.git/{name}").into_bytes()).collect();
        let wanted = [(b"top/deep.git".to_vec(), None), (b"top/small.git".to_vec(), Some(small))];
        assert_eq!(found, wanted);
    }
}
