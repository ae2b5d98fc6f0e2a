//! Walking a directory tree with several threads, in path order.
//!
//! Threads list directories ahead of the caller, deepest first from where the
//! caller is; the caller lists what it needs itself when nobody has begun to.
//! What is listed and not yet taken is bounded, so memory does not grow with the
//! tree.

use crate::entry::Kind;
use crate::git;
use crate::glob::{Globs, ends};
use crate::left_out::Noted;
use crate::source::{self, Listed, Stat};
use parking_lot::{Condvar, Mutex};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Entries that may be listed and not yet taken. Threads that found so many rest
/// until half of them were taken.
const AHEAD_MAX: usize = 50_000;

/// What is left out, by one set of rules for plain directories and git directories.
///
/// In this order: the store itself is never taken; a named path always is; then patterns,
/// paths, file systems and caches have their say.
#[derive(Debug, Clone, Default)]
pub struct Excluded {
    /// Paths that fit, with everything below.
    pub globs: Globs,
    /// These very paths of the tree, with everything below.
    pub leave: Arc<HashSet<Vec<u8>>>,
    /// What git can make again, in git directories.
    pub git_caches: bool,
    /// What is mounted below the nearest named path.
    pub other_file_systems: bool,
    /// What is below a directory with a valid `CACHEDIR.TAG`, but the tag.
    pub caches: bool,
    /// Directories that are never entered, as device and inode: the store itself.
    pub never: Vec<(u64, u64)>,
    /// Paths below others that are taken for their own sake.
    pub named: Arc<Named>,
    /// Takes a note of what no pattern tells.
    pub noted: Arc<Noted>,
}

/// Paths of the tree that are taken whatever the rules for those above them say.
#[derive(Debug, Default)]
pub struct Named {
    paths: HashSet<Vec<u8>>,
    /// The directories above them.
    passages: HashSet<Vec<u8>>,
}

impl Named {
    /// Knows these paths.
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

    /// Whether a named path lies below this one.
    fn is_below(&self, path: &[u8]) -> bool {
        !self.passages.is_empty() && self.passages.contains(path)
    }
}

/// Where a walk is: what applies to the content of a directory.
#[derive(Debug, Clone, Copy)]
struct Scope {
    /// The file system of the nearest named path.
    device: u64,
    wanted: Wanted,
}

/// What is wanted of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// Only named paths, and what leads to them.
    Named,
    /// The same, and the tag of a cache.
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

/// What becomes of a found thing.
enum Verdict {
    LeftOut,
    /// It is taken, without what is below.
    Alone,
    /// It is taken, and what is below is looked at in this scope.
    Within(Scope),
}

impl Excluded {
    /// Whether a path is left out whatever is there. In a git directory, `inner` is the path
    /// relative to that.
    fn has(&self, path: &[u8], inner: Option<&[u8]>, scope: Scope) -> bool {
        let is_named = self.named.has(path) || self.named.is_below(path);
        !is_named && self.is_out(path, inner, scope.wanted)
    }

    /// The same of a path that is not named, nor leads to one.
    fn is_out(&self, path: &[u8], inner: Option<&[u8]>, wanted: Wanted) -> bool {
        match wanted {
            Wanted::Named => true,
            Wanted::Tag if !path.ends_with(b"/CACHEDIR.TAG") => true,
            Wanted::Tag | Wanted::All => {
                let is_left = !self.leave.is_empty() && self.leave.contains(path);
                let is_cache = || self.git_caches && inner.is_some_and(git::is_cache);
                is_left || self.globs.fits(path) || is_cache()
            }
        }
    }

    /// What becomes of something in a directory of this scope that was not left out by name.
    ///
    /// `is_mounted` tells of a thing that is no directory whether it is a mount point.
    fn verdict(
        &self,
        path: &[u8],
        inner: Option<&[u8]>,
        stat: &Stat,
        scope: Scope,
        is_mounted: impl FnOnce() -> bool,
    ) -> Verdict {
        if self.never.contains(&(stat.device, stat.inode)) {
            self.noted.path(path);
            return Verdict::LeftOut;
        }
        if self.named.has(path) {
            return Verdict::Within(Scope::all(stat.device));
        }
        let is_dir = stat.kind == Kind::Directory;
        let is_passage = is_dir && self.named.is_below(path);
        let is_out = self.is_out(path, inner, scope.wanted);
        let is_elsewhere = self.other_file_systems && stat.device != scope.device;
        let is_mount = is_elsewhere && (is_dir || is_mounted());
        if is_mount && !is_out {
            self.noted.path(path);
        }
        match (is_out || is_mount, is_passage) {
            (true, true) => Verdict::Within(Scope::all(stat.device).only(Wanted::Named)),
            (true, false) if is_out || !is_dir => Verdict::LeftOut,
            (true, false) => Verdict::Alone,
            (false, _) => Verdict::Within(scope),
        }
    }

    /// The scope of an open directory that was reached in this one: of a cache only the tag
    /// is wanted.
    fn inside(&self, path: &[u8], dir: BorrowedFd<'_>, scope: Scope) -> Scope {
        let may_be = self.caches && scope.wanted == Wanted::All && !self.named.has(path);
        if !may_be || !is_cache(dir) {
            return scope;
        }
        self.noted.path(path);
        scope.only(Wanted::Tag)
    }

    /// The scope of a directory some levels below a git directory, or nothing where it is
    /// left out.
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
            // What cannot be looked at is reported where it is listed.
            let Ok(stat) = source::stat_at(git_dir, inner) else { continue };
            let is_mounted = || source::is_mount_root(git_dir, inner);
            scope = match self.verdict(&path, Some(inner), &stat, scope, is_mounted) {
                Verdict::Within(scope) => scope,
                Verdict::LeftOut | Verdict::Alone => return None,
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
        Excluded { globs, ..Excluded::default() }
    }
}

/// What a walk gives out, and how.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What is left out.
    pub exclude: Excluded,
    /// Give out git directories as a whole, so that they can be read in their order.
    pub git_dirs: bool,
    /// Look into git directories ahead, so that unchanged ones need no second look.
    pub scan_git_dirs: bool,
}

/// A directory on this machine with its path in the tree.
#[derive(Debug)]
pub struct OpenRoot {
    /// Path in the tree; empty for `/`.
    pub path: Vec<u8>,
    /// The directory, open.
    pub dir: OwnedFd,
}

impl OpenRoot {
    /// `path` relative to this directory.
    pub fn relative<'p>(&self, path: &'p [u8]) -> &'p [u8] {
        let rest = &path[self.path.len()..];
        rest.strip_prefix(b"/").unwrap_or(rest)
    }
}

/// A found thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Path in the tree.
    pub path: Vec<u8>,
    /// What a look at it told.
    pub stat: Stat,
}

/// One step of a walk.
#[derive(Debug)]
pub enum Step {
    /// A file, directory or other thing. What is in a directory follows.
    Found(Found),
    /// A git directory, which is read as a whole. With its content in path order
    /// if that was asked for and could be looked at.
    GitDir(Found, Option<Vec<Found>>),
    /// Something that could not be looked at or listed.
    Failed(Vec<u8>, io::Error),
}

/// A directory to be listed.
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
    Taken,
}

enum Listing {
    /// The children to come, last first.
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
    open_root: Arc<OpenRoot>,
    rules: Rules,
    queue: Mutex<Queue>,
    work: Condvar,
    ahead: AtomicUsize,
}

/// Directories to be listed, the next one last.
struct Queue {
    nodes: Vec<Arc<Node>>,
    /// Threads with nothing to do.
    idle: usize,
    is_ended: bool,
}

/// A running walk: an iterator over [`Step`]s in path order.
pub struct Walk {
    shared: Arc<Shared>,
    /// Directories being walked, each with the children to come, last first.
    stack: Vec<Vec<Child>>,
    /// A directory whose listing comes next.
    pending: Option<(Found, Arc<Node>)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Walk {
    /// Walks everything below `open_root` with `threads` threads beside the caller's.
    /// `top` is what a look at the open_root directory told.
    pub fn new(open_root: Arc<OpenRoot>, top: Stat, rules: Rules, threads: usize) -> Walk {
        let root = node(open_root.path.clone(), Scope::all(top.device));
        let shared = Arc::new(Shared {
            rules,
            queue: Mutex::new(Queue { nodes: vec![Arc::clone(&root)], idle: 0, is_ended: false }),
            work: Condvar::new(),
            ahead: AtomicUsize::new(0),
            open_root: Arc::clone(&open_root),
        });
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.work())
        };
        let threads = (0..threads).map(spawn).collect();
        let top = Found { path: open_root.path.clone(), stat: top };
        let stack = vec![vec![Child::Found(top, Some(root))]];
        Walk { shared, stack, pending: None, threads }
    }

    /// The listing of a directory; lists it here if nobody has begun to.
    fn listing(&self, node: &Node) -> Listing {
        let mut state = node.state.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Waiting => {
                    *state = State::Taken;
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
                State::Taken => unreachable!("a directory is walked once"),
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
    /// What a thread does until the walk ends.
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

    /// The caller took so many entries that were listed ahead.
    fn taken(&self, entries: usize) {
        let before = self.ahead.fetch_sub(entries, Ordering::Relaxed);
        let low = AHEAD_MAX / 2;
        if before > low && before - entries <= low {
            drop(self.queue.lock()); // whoever is about to wait looks again, or waits already
            self.work.notify_all();
        }
    }

    /// Queues directories; the first is taken first.
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

    /// Lists a directory; also returns the directories in it.
    fn list(&self, node: &Node) -> (Listing, Vec<Arc<Node>>) {
        let (path, exclude) = (&node.path[..], &self.rules.exclude);
        let failed = |error| (Listing::Failed(error), Vec::new());
        let dir =
            match source::open_dir_below(self.open_root.dir.as_fd(), self.open_root.relative(path))
            {
                Ok(dir) => dir,
                Err(error) => return failed(error),
            };
        // The walk begins in what was named.
        let is_top = path == self.open_root.path;
        let scope = if is_top { node.scope } else { exclude.inside(path, dir.as_fd(), node.scope) };
        let is_wanted = |name: &[u8]| {
            scope.wanted == Wanted::All || !exclude.has(&join(path, name), None, scope)
        };
        let (listed, cut_short) = source::list(dir.as_fd(), is_wanted);
        if self.rules.git_dirs && scope.wanted == Wanted::All && is_git_dir(dir.as_fd(), &listed) {
            let content = self.rules.scan_git_dirs.then(|| self.scan(path, &dir)).flatten();
            return (Listing::GitDir(content), Vec::new());
        }
        let (mut children, mut nodes) = (Vec::with_capacity(listed.len()), Vec::new());
        let mut too_long: Option<(Vec<u8>, String, usize)> = None;
        for (name, stat) in listed {
            let path = join(path, &name);
            if let Err(reason) = crate::entry::check_child(&path, &name) {
                if exclude.has(&path, None, scope) {
                    continue;
                }
                too_long.get_or_insert((path, reason, 0)).2 += 1;
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
                Verdict::LeftOut => continue,
                Verdict::Alone => None,
                Verdict::Within(scope) => (stat.kind == Kind::Directory).then_some(scope),
            };
            let node = within.map(|scope| self::node(path.clone(), scope));
            nodes.extend(node.clone());
            children.push(Child::Found(Found { path, stat }, node));
        }
        // What was listed before the error is there all the same.
        children.extend(cut_short.map(|error| Child::Failed(path.to_vec(), error)));
        // Named once: there may be any number of them, and of others below.
        if let Some((path, reason, count)) = too_long {
            let text = match count {
                1 => format!("{reason}; it is left out with all below it"),
                _ => format!(
                    "{reason}; {count} such entries of its directory are left out with all below them"
                ),
            };
            children.push(Child::Failed(path, io::Error::other(text)));
        }
        children.reverse();
        (Listing::Children(children), nodes)
    }

    /// Looks at all of a git directory, in the order in which it must be read; nothing
    /// where a part of it cannot be looked at.
    fn scan(&self, path: &[u8], dir: &OwnedFd) -> Option<Vec<Found>> {
        let mut scan = Scan::default();
        scan_git_dir(dir.as_fd(), path, &self.rules.exclude, &mut scan);
        scan.found.sort_unstable_by(|a, b| crate::entry::path_cmp(&a.path, &b.path));
        scan.failed.is_empty().then_some(scan.found)
    }
}

/// What a look at a git directory, or a phase of it, told.
#[derive(Debug, Default)]
pub struct Scan {
    /// Everything that could be looked at, in no order.
    pub found: Vec<Found>,
    /// Paths that could not be looked at or listed, or not to the end.
    pub failed: Vec<(Vec<u8>, io::Error)>,
    /// Whether something that was listed was gone when it was looked at. What took its
    /// place may have been missed.
    pub has_gaps: bool,
}

impl Scan {
    /// Notes an error of a path. What went away is no failure.
    fn fail(&mut self, path: Vec<u8>, error: io::Error) {
        if error.kind() == io::ErrorKind::NotFound {
            self.has_gaps = true;
        } else {
            self.failed.push((path, error));
        }
    }
}

/// Looks at everything in an open git directory whose path in the tree is `path`,
/// phase after phase. What belongs to a running operation is left out.
pub fn scan_git_dir(dir: BorrowedFd<'_>, path: &[u8], exclude: &Excluded, scan: &mut Scan) {
    for phase in git::Phase::ALL {
        scan_phase(dir, path, phase, exclude, scan);
    }
}

/// One phase of [`scan_git_dir`].
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
    let dir = match source::open_dir_below(git_dir, below) {
        Ok(dir) => dir,
        // It went away; whatever took its place comes in a later phase.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return scan.fail(below_path(), error),
    };
    let scope = match below {
        b"" => scope,
        below => exclude.inside(&join(path, below), dir.as_fd(), scope),
    };
    let inner = |name: &[u8]| join(below, name);
    let is_wanted = |name: &[u8]| {
        let inner = inner(name);
        git::Phase::of(&inner) == phase
            && !git::is_transient(&inner)
            && !exclude.has(&join(path, &inner), Some(&inner), scope)
    };
    let (listed, cut_short) = source::list(dir.as_fd(), is_wanted);
    if let Some(error) = cut_short {
        scan.fail(below_path(), error);
    }
    let is_all = scope.wanted == Wanted::All;
    if is_all && !below.is_empty() && is_git_dir(dir.as_fd(), &listed) {
        // Submodules: a whole git directory, read with the settings.
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
        if matches!(verdict, Verdict::LeftOut) {
            continue;
        }
        // What is below a path that is too long could not be kept either.
        let is_kept = crate::entry::is_valid_path(&item.path);
        scan.found.push(item);
        // Nothing in `refs` is of the phase that `refs` itself is of.
        if let Verdict::Within(scope) = verdict
            && stat.kind == Kind::Directory
            && inner != b"refs"
            && is_kept
        {
            scan_phase_below(git_dir, path, &inner, scope, phase, exclude, scan);
        }
    }
}

/// Whether an open directory with this in it is a git directory.
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

/// Whether a directory says that it is a cache: <https://bford.info/cachedir/>.
pub(crate) fn is_cache(dir: BorrowedFd<'_>) -> bool {
    const SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
    let Ok(file) = source::open_file_below(dir, b"CACHEDIR.TAG") else { return false };
    let mut begin = [0; SIGNATURE.len()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut begin, 0).is_ok() && begin == SIGNATURE
}

/// `name` below `path`.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn node(path: Vec<u8>, scope: Scope) -> Arc<Node> {
    Arc::new(Node { path, scope, state: Mutex::new(State::Waiting), done: Condvar::new() })
}
