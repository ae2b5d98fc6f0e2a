//! Walks a directory tree on several threads, in path order.
//!
//! Threads list directories ahead of the caller, deepest first from the caller's position. The
//! caller lists a directory itself if no thread has begun to. A limit on listed but unread entries
//! bounds memory.

use crate::entry::EntryKind;
use crate::git;
use crate::glob::{Globs, SourceGlobs, ends};
use crate::skipped::Noted;
use crate::source::{self, Listed, Stat};
use crate::threads;
use crate::unfinished::{is_mark, is_unfinished};
use parking_lot::{Condvar, Mutex};
use rustix::fs::OFlags;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Maximum number of entries listed but not yet read. At this number threads pause until half of
/// the entries have been read.
const AHEAD_MAX: usize = 50_000;

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
}

/// One step of a walk.
#[derive(Debug)]
pub enum Step {
    /// A file, directory or other object. The content of a directory follows.
    Found(Found),
    /// A git directory, to be read as a whole. Holds its content in path order if that was
    /// requested and could be scanned.
    GitDir(Found, Option<Vec<Found>>),
    /// An object whose metadata or listing could not be read.
    Failed(Vec<u8>, io::Error),
}

/// A directory to list.
struct Node {
    path: Vec<u8>,
    scope: Scope,
    state: Mutex<State>,
    done: Condvar,
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
    Failed(Vec<u8>, io::Error),
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
        let first = node(root.tree_path.clone(), Scope::all(top.device));
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
        let top = Found { path: root.tree_path.clone(), stat: top };
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
                    let (listing, nodes) = self.shared.list(node);
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
                        self.stack.push(vec![Child::Failed(path, error)]);
                        Step::Found(found)
                    }
                });
            }
            match self.stack.last_mut()?.pop() {
                None => drop(self.stack.pop()),
                Some(Child::Failed(path, error)) => return Some(Step::Failed(path, error)),
                Some(Child::Found(found, None)) => return Some(Step::Found(found)),
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
            let (listing, nodes) = self.list(&node);
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
        let mut queue = self.queue.lock();
        queue.nodes.extend(nodes.into_iter().rev());
        let is_awaited = queue.idle > 0 && self.ahead.load(Ordering::Relaxed) <= AHEAD_MAX;
        drop(queue);
        if is_awaited {
            self.work.notify_one();
        }
    }

    /// Lists a directory. Also returns its subdirectories.
    fn list(&self, node: &Node) -> (Listing, Vec<Arc<Node>>) {
        let (path, exclude) = (&node.path[..], &self.rules.exclude);
        let (root, below) = (self.root.dir.as_fd(), self.root.relative(path));
        let (dir, denied) = match open_dir(root, below, path, &exclude.named) {
            Ok(opened) => opened,
            Err(error) => return (Listing::Failed(error), Vec::new()),
        };
        // The cache rule does not apply to the named path at which the walk begins.
        let is_top = path == self.root.tree_path;
        let scope = if is_top { node.scope } else { exclude.inside(path, dir.as_fd(), node.scope) };
        let is_wanted = |name: &[u8]| {
            scope.wanted == Wanted::All || !exclude.has(&join(path, name), None, scope)
        };
        let (listed, cut_short) = list(dir.as_fd(), denied, path, &exclude.named, is_wanted);
        if self.rules.git_dirs && scope.wanted == Wanted::All && is_git_dir(dir.as_fd(), &listed) {
            let content = self.rules.scan_git_dirs.then(|| self.scan(path, &dir)).flatten();
            return (Listing::GitDir(content), Vec::new());
        }
        let (mut children, mut nodes) = (Vec::with_capacity(listed.len()), Vec::new());
        let mut too_long: Option<(Vec<u8>, crate::entry::EntryFault, usize)> = None;
        for (name, stat) in listed {
            let path = join(path, &name);
            if let Err(fault) = crate::entry::check_child(&path, &name) {
                if exclude.has(&path, None, scope) {
                    continue;
                }
                too_long.get_or_insert((path, fault, 0)).2 += 1;
                continue;
            }
            let stat = match stat {
                Ok(stat) => stat,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) if exclude.has(&path, None, scope) => continue,
                Err(error) => {
                    children.push(Child::Failed(path, error));
                    continue;
                }
            };
            let is_mounted = || source::is_mount_root(dir.as_fd(), &name);
            let within = match exclude.verdict(&path, None, &stat, scope, is_mounted) {
                Verdict::Skipped => continue,
                Verdict::Alone => None,
                Verdict::Within(scope) => (stat.kind == EntryKind::Directory).then_some(scope),
            };
            let node = within.map(|scope| self::node(path.clone(), scope));
            nodes.extend(node.clone());
            children.push(Child::Found(Found { path, stat }, node));
        }
        // Entries listed before the error are still valid.
        children.extend(cut_short.map(|error| Child::Failed(path.to_vec(), error)));
        // Reported once per directory: there may be any number of such paths, with more below.
        if let Some((path, fault, count)) = too_long {
            let text = match count {
                1 => format!("{fault}; skipped with everything below it"),
                _ => format!(
                    "{fault}; skipped {count} such entries of its directory \
                     with everything below them"
                ),
            };
            children.push(Child::Failed(path, io::Error::other(text)));
        }
        children.reverse();
        (Listing::Children(children), nodes)
    }

    /// Scans a whole git directory, in the order in which it must be read. Returns `None` if a part
    /// of it cannot be scanned.
    fn scan(&self, path: &[u8], dir: &OwnedFd) -> Option<Vec<Found>> {
        let mut scan = Scan::default();
        scan_git_dir(dir.as_fd(), path, &self.rules.exclude, &mut scan);
        scan.found.sort_unstable_by(|a, b| crate::entry::path_cmp(&a.path, &b.path));
        scan.failed.is_empty().then_some(scan.found)
    }
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

/// Lists an open directory, unless that is `denied`. Looks up named paths that the listing lacks
/// because of an error, which is returned.
fn list(
    dir: BorrowedFd<'_>,
    denied: Option<io::Error>,
    path: &[u8],
    named: &Named,
    is_wanted: impl Fn(&[u8]) -> bool,
) -> (Vec<Listed>, Option<io::Error>) {
    let (mut listed, error) = match denied {
        Some(error) => (Vec::new(), Some(error)),
        None => source::list(dir, &is_wanted),
    };
    if error.is_some() && named.is_below(path) {
        for name in named.names_in(path).into_iter().filter(|name| is_wanted(name)) {
            if let Err(place) = listed.binary_search_by(|(known, _)| (**known).cmp(name)) {
                listed.insert(place, (name.into(), source::stat_at(dir, name)));
            }
        }
    }
    (listed, error)
}

/// Result of scanning a git directory or a phase of it.
#[derive(Debug, Default)]
pub struct Scan {
    /// Everything found, in no order.
    pub found: Vec<Found>,
    /// Paths that could not be scanned, or only in part.
    pub failed: Vec<(Vec<u8>, io::Error)>,
    /// True if a listed object was gone when its metadata was read. The scan may have missed its
    /// replacement.
    pub has_gaps: bool,
    /// Directories in which phases begin and in whose place something else is. That object belongs
    /// to another phase.
    pub not_dirs: Vec<(Vec<u8>, io::Error)>,
}

impl Scan {
    /// Records an error of a path. A path that went away is not a failure.
    fn fail(&mut self, path: Vec<u8>, error: io::Error) {
        if error.kind() == io::ErrorKind::NotFound {
            self.has_gaps = true;
        } else {
            self.failed.push((path, error));
        }
    }
}

/// Scans everything in an open git directory whose path in the tree is `path`, phase by phase.
/// Skips files of running git operations.
pub fn scan_git_dir(dir: BorrowedFd<'_>, path: &[u8], exclude: &Excluded, scan: &mut Scan) {
    for phase in git::Phase::ALL {
        scan_phase(dir, path, phase, exclude, scan);
    }
}

/// Runs one phase of [`scan_git_dir`].
pub fn scan_phase(
    dir: BorrowedFd<'_>,
    path: &[u8],
    phase: git::Phase,
    exclude: &Excluded,
    scan: &mut Scan,
) {
    let top = match source::stat_open(dir) {
        Ok(stat) => Scope::all(stat.device),
        Err(error) => return scan.fail(path.to_vec(), error),
    };
    if let Some(scope) = exclude.scope_below(dir, path, phase.begins_in(), top) {
        scan_phase_below(dir, path, phase.begins_in(), scope, phase, exclude, scan);
    }
}

fn scan_phase_below(
    git_dir: BorrowedFd<'_>,
    path: &[u8],
    below: &[u8],
    scope: Scope,
    phase: git::Phase,
    exclude: &Excluded,
    scan: &mut Scan,
) {
    let below_path = || if below.is_empty() { path.to_vec() } else { join(path, below) };
    let (dir, denied) = match open_dir(git_dir, below, &below_path(), &exclude.named) {
        Ok(opened) => opened,
        // It went away. A later phase finds its replacement.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) if below == phase.begins_in() && is_not_a_dir(&error) => {
            return scan.not_dirs.push((below_path(), error));
        }
        Err(error) => return scan.fail(below_path(), error),
    };
    let scope = match below {
        b"" => scope,
        below => exclude.inside(&join(path, below), dir.as_fd(), scope),
    };
    let inner = |name: &[u8]| join(below, name);
    let is_wanted = |name: &[u8]| {
        let inner = inner(name);
        let path = join(path, &inner);
        let is_named = exclude.named.has(&path) || exclude.named.is_below(&path);
        git::Phase::of(&inner) == phase
            && (is_named || !git::is_transient(&inner))
            && !exclude.has(&path, Some(&inner), scope)
    };
    let (listed, cut_short) = list(dir.as_fd(), denied, &below_path(), &exclude.named, is_wanted);
    if let Some(error) = cut_short {
        scan.fail(below_path(), error);
    }
    let is_all = scope.wanted == Wanted::All;
    if is_all && !below.is_empty() && is_git_dir(dir.as_fd(), &listed) {
        // A submodule is a whole git directory, read in the settings phase.
        return scan_git_dir(dir.as_fd(), &join(path, below), exclude, scan);
    }
    for (name, stat) in listed {
        let inner = inner(&name);
        let stat = match stat {
            Ok(stat) => stat,
            Err(error) => {
                scan.fail(join(path, &inner), error);
                continue;
            }
        };
        let item = Found { path: join(path, &inner), stat };
        let is_mounted = || source::is_mount_root(dir.as_fd(), &name);
        let verdict = exclude.verdict(&item.path, Some(&inner), &stat, scope, is_mounted);
        if matches!(verdict, Verdict::Skipped) {
            continue;
        }
        // Paths below one that is too long could not be stored either.
        let is_kept = crate::entry::is_valid_path(&item.path);
        scan.found.push(item);
        // The content of `refs` belongs to another phase than `refs` itself.
        if let Verdict::Within(scope) = verdict
            && stat.kind == EntryKind::Directory
            && inner != b"refs"
            && is_kept
        {
            scan_phase_below(git_dir, path, &inner, scope, phase, exclude, scan);
        }
    }
}

/// Returns true if an open directory with this listing is a git directory.
pub(crate) fn is_git_dir(dir: BorrowedFd<'_>, listed: &[Listed]) -> bool {
    let known = listed.iter().filter_map(|(name, stat)| Some((&**name, stat.as_ref().ok()?.kind)));
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

fn node(path: Vec<u8>, scope: Scope) -> Arc<Node> {
    Arc::new(Node { path, scope, state: Mutex::new(State::Waiting), done: Condvar::new() })
}
