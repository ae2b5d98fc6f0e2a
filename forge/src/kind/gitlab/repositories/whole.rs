//! Checks that git would accept a directory as a repository, and that its references and packs are
//! not cut off.
//!
//! Only names, sizes and small files are read, and on this machine the ends of some packs. What a
//! power cut leaves is found by these: files of zero bytes or of zeros.

use super::config::{self, Config};
use super::objects::Objects;
use super::reftable;
use crate::error::Result;
use crate::links::{self, lexically};
use crate::view::{Seen, View};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Files below `refs` that are listed.
const LISTED_MAX: usize = 1 << 14;
/// References of a repository whose content is read.
const READ_MAX: usize = 8;
/// Branches of a repository whose commits are looked for, besides that of HEAD.
const BRANCHES_MAX: usize = 4;

/// State of a repository's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The repository has a HEAD, references and the objects that they need, as far as examined.
    Whole,
    /// The repository does not exist.
    Absent,
    /// The path exists, but git would not accept it as a repository or lacks objects; the reason.
    Damaged(&'static str),
}

/// Fault of a repository whose content is elsewhere.
pub const OUTSIDE: &str =
    "is or has a link to a place that is not in the copy; to copy it, make the target a part";

/// Fault of a lender of objects that no part contains.
pub const OUTSIDE_PARTS: &str = "is not in a part, so a copy lacks its objects; make it a part";

/// References of a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct References {
    /// True if there is any besides HEAD.
    pub any: bool,
    /// True if there is a branch.
    pub branches: bool,
    /// True if HEAD leads to a commit.
    pub head: bool,
}

impl References {
    /// References that are there, but cannot be read here.
    const UNREAD: References = References { any: true, branches: true, head: true };
    /// All that a comparison may miss.
    pub const ALL: References = References::UNREAD;

    /// Returns true if something is gone that an earlier state had.
    pub fn lack(self, earlier: References) -> bool {
        self.lack_all(earlier) || earlier.head && !self.head
    }

    /// Returns true if all references or all branches of an earlier state are gone.
    pub fn lack_all(self, earlier: References) -> bool {
        earlier.any && !self.any || earlier.branches && !self.branches
    }
}

/// Result of examining a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Examined {
    /// State of the repository.
    pub state: State,
    /// References of the repository; none if it is absent or damaged.
    pub references: References,
    /// True if it has an object of its own, or borrows objects.
    pub has_objects: bool,
    /// True if it has a pack of its own.
    pub has_packs: bool,
    /// True if it borrows objects of another repository.
    pub borrows: bool,
    /// True if it has a reftable, or a `packed-refs` with content.
    pub packs_references: bool,
}

impl Examined {
    /// Returns true if it has lost something since an earlier state.
    pub fn is_lost_since(&self, earlier: &Examined) -> bool {
        let had = earlier.state == State::Whole && earlier.references.any;
        let is_less = self.references.lack(earlier.references)
            || self.lost_packs(earlier)
            || self.lost_packed_references(earlier);
        had && (self.state != State::Whole || is_less)
    }

    /// Returns true if an earlier state had packed references, and their file is gone or empty. Git
    /// never removes this file, and writes a first line even if the last reference is deleted.
    pub fn lost_packed_references(&self, earlier: &Examined) -> bool {
        earlier.packs_references && !self.packs_references
    }

    /// Returns true if an earlier state had packs, and this one neither has nor borrows one. Git does
    /// not turn packs into loose objects. The newest commit may still be loose.
    pub fn lost_packs(&self, earlier: &Examined) -> bool {
        earlier.has_packs && !self.has_packs && !self.borrows
    }

    fn without_content(state: State) -> Examined {
        Examined {
            state,
            references: References::default(),
            has_objects: false,
            has_packs: false,
            borrows: false,
            packs_references: false,
        }
    }
}

/// Examines repositories.
#[derive(Clone, Copy)]
pub struct Examiner<'a> {
    /// Directory that links of the instance regard as `/`.
    pub root: &'a Path,
    /// View that contains the repositories.
    pub view: &'a View<'a>,
    /// True if the view is of today, so that packs on this machine are those of the view.
    pub is_current: bool,
}

/// A resolved path, with the object at it.
struct Found {
    path: PathBuf,
    seen: Option<Seen>,
    /// Target, if the path is a symbolic link.
    target: Option<PathBuf>,
    /// True if it is a link that leads out of the view.
    is_outside: bool,
}

impl Found {
    fn is_dir(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.is_dir)
    }

    fn content(&self) -> Option<&[u8]> {
        self.seen.as_ref()?.content.as_deref()
    }
}

/// The parts of a repository.
struct Pieces {
    dir: Found,
    head: Found,
    config: Found,
    objects: Found,
    packs: Found,
    refs: Found,
    packed: Found,
    tables: Found,
    alternates: Found,
}

type Fault = &'static str;

/// Commits that a repository needs, in hex, as far as they were read.
#[derive(Default)]
struct Commits {
    head: Option<String>,
    branches: Vec<String>,
}

/// References and the commits that they need.
type Read = std::result::Result<(References, Commits), Fault>;

impl Commits {
    fn add_branch(&mut self, id: Option<String>) {
        if self.branches.len() < BRANCHES_MAX {
            self.branches.extend(id);
        }
    }
}

/// Fault of a repository whose ids are longer or shorter than its settings say.
const OTHER_HASH: Fault = "has ids of another hash than its config names";

impl Examiner<'_> {
    /// Examines directories. Returns the results in the same order.
    pub fn examine(&self, dirs: &[PathBuf]) -> Result<Vec<Examined>> {
        let mut found: Vec<Vec<Found>> = Vec::new();
        for (name, reads) in [
            ("", false),
            ("HEAD", true),
            ("config", true),
            ("objects", false),
            ("objects/pack", false),
            ("refs", false),
            ("packed-refs", true),
            ("reftable/tables.list", true),
            ("objects/info/alternates", true),
        ] {
            // Reading one name of all repositories at once keeps the order of the tree.
            let dirs = match found.first() {
                Some(dirs) => self.paths(dirs),
                None => dirs.to_vec(),
            };
            found.push(self.find(&dirs, name, reads)?);
        }
        let mut columns: Vec<_> = found.into_iter().map(Vec::into_iter).collect();
        let mut next = |at: usize| columns.get_mut(at).and_then(Iterator::next);
        let mut all: Vec<Examined> = Vec::with_capacity(dirs.len());
        for _ in dirs {
            let pieces = (|| {
                Some(Pieces {
                    dir: next(0)?,
                    head: next(1)?,
                    config: next(2)?,
                    objects: next(3)?,
                    packs: next(4)?,
                    refs: next(5)?,
                    packed: next(6)?,
                    tables: next(7)?,
                    alternates: next(8)?,
                })
            })();
            if let Some(pieces) = pieces {
                all.push(self.judge(&pieces)?);
            }
        }
        Ok(all)
    }

    fn paths(&self, found: &[Found]) -> Vec<PathBuf> {
        found.iter().map(|found| found.path.clone()).collect()
    }

    fn find(&self, dirs: &[PathBuf], name: &str, reads: bool) -> Result<Vec<Found>> {
        let paths: Vec<PathBuf> = dirs
            .iter()
            .map(|dir| if name.is_empty() { dir.clone() } else { dir.join(name) })
            .collect();
        let all = self.look(&paths, reads)?;
        let found = paths.into_iter().zip(all).map(|(path, seen)| {
            match seen.as_ref().and_then(|seen| seen.target.clone()) {
                Some(target) => self.follow(&path, target, reads),
                None => Ok(Found { path, seen, target: None, is_outside: false }),
            }
        });
        found.collect()
    }

    fn look(&self, paths: &[PathBuf], reads: bool) -> Result<Vec<Option<Seen>>> {
        if reads { self.view.read(paths) } else { self.view.look(paths) }
    }

    /// Follows a link within the view. In a copy, the link may lead to data that only this machine
    /// has.
    fn follow(&self, path: &Path, target: PathBuf, reads: bool) -> Result<Found> {
        let place = self.view.place(path);
        let plain = match target.strip_prefix("/") {
            Ok(inner) => self.root.join(inner),
            Err(_) => lexically(&place.parent().unwrap_or(Path::new("/")).join(&target)),
        };
        let real = links::follow(self.root, &place).ok();
        let is_there = real.as_ref().is_some_and(|real| real.is_there);
        for path in [Some(plain), real.map(|real| real.path)].into_iter().flatten() {
            let seen = self.look(std::slice::from_ref(&path), reads)?.pop().flatten();
            if seen.as_ref().is_some_and(|seen| seen.target.is_none()) {
                return Ok(Found { path, seen, target: Some(target), is_outside: false });
            }
        }
        let is_outside = is_there && !self.view.is_live();
        Ok(Found { path: path.to_owned(), seen: None, target: Some(target), is_outside })
    }

    fn judge(&self, pieces: &Pieces) -> Result<Examined> {
        let Pieces { dir, head, config, objects, packs, refs, packed, tables, .. } = pieces;
        let damaged = |fault| Ok(Examined::without_content(State::Damaged(fault)));
        // A HEAD that is a link to a branch is an old form, and not followed.
        let is_branch = head.target.as_ref().is_some_and(|target| target.starts_with("refs"));
        let followed = [dir, config, objects, packs, refs, packed, tables];
        if followed.iter().any(|found| found.is_outside) || head.is_outside && !is_branch {
            return damaged(OUTSIDE);
        }
        if dir.seen.is_none() && dir.target.is_none() {
            return Ok(Examined::without_content(State::Absent));
        }
        if !dir.is_dir() {
            return damaged("is not a directory");
        }
        if !is_branch && !head.content().is_some_and(is_head) {
            return damaged("has no readable HEAD");
        }
        if !objects.is_dir() {
            return damaged("has no objects");
        }
        if !refs.is_dir() {
            return damaged("has no references");
        }
        let settings = match (&config.seen, config.content()) {
            // Without a file, the defaults of git count.
            (None, _) => Some(Config::default()),
            (Some(_), content) => content.and_then(config::parse),
        };
        let Some(settings) = settings else { return damaged("has an unreadable config") };
        let (references, commits) = match self.references(pieces, &settings)? {
            Ok(found) => found,
            Err(fault) => return damaged(fault),
        };
        let mut own = Objects::default();
        own.list(self.view, &objects.path, "")?;
        if packs.target.is_some() {
            own.list(self.view, &packs.path, "pack")?;
        }
        let borrows = pieces
            .alternates
            .content()
            .is_some_and(|content| store::git::alternates(content).next().is_some());
        if let Some(fault) = own.fault() {
            return damaged(fault);
        }
        if references.any && !own.is_any() && !borrows {
            return damaged("has references but no objects");
        }
        if self.is_current && own.has_wrong_ends(&self.view.place(&objects.path)) {
            return damaged("has a damaged pack or object");
        }
        let of_branches = commits.branches.iter().map(|id| (id, "lacks the commit of a branch"));
        let of_head = commits.head.iter().map(|id| (id, "lacks the commit of its HEAD"));
        for (id, fault) in of_head.chain(of_branches).filter(|_| self.is_current) {
            if self.lacks(id, &own, pieces)? {
                return damaged(fault);
            }
        }
        let has_packed = packed.seen.as_ref().is_some_and(|seen| seen.size > 0);
        Ok(Examined {
            state: State::Whole,
            references,
            has_objects: own.is_any() || borrows,
            has_packs: own.has_packs(),
            borrows,
            packs_references: settings.is_reftable || has_packed,
        })
    }

    /// Returns true if no pack of the view, no loose object and no borrowed one has this id. The
    /// indexes of packs are read on this machine.
    fn lacks(&self, id: &str, own: &Objects, pieces: &Pieces) -> Result<bool> {
        let dir = &pieces.objects.path;
        let (start, rest) = id.split_at(2);
        if self.view.has(&dir.join(start).join(rest))? {
            return Ok(false);
        }
        let place = self.view.place(dir);
        let mut is_missing = own.has(id, &place) == Some(false);
        for line in store::git::alternates(pieces.alternates.content().unwrap_or_default()) {
            let borrowed = lexically(&place.join(OsStr::from_bytes(&line)));
            let mut objects = Objects::default();
            objects.list(&View::Live, &borrowed, "")?;
            // A missing pool is another fault. One that borrows itself may borrow this object.
            let is_end = borrowed.is_dir() && !borrowed.join("info/alternates").exists();
            let is_loose = borrowed.join(start).join(rest).exists();
            is_missing &= is_end && !is_loose && objects.has(id, &borrowed) == Some(false);
        }
        Ok(is_missing)
    }

    fn references(&self, pieces: &Pieces, settings: &Config) -> Result<Read> {
        let is_stub = pieces.head.content().is_some_and(|head| head_branch(head) == Some(STUB));
        if !settings.is_reftable && is_stub && pieces.tables.seen.is_some() {
            return Ok(Err("has a reftable that its config does not name"));
        }
        let read = match settings.is_reftable {
            true => self.of_reftable(&pieces.tables)?,
            false => self.of_files(pieces)?,
        };
        Ok(read.and_then(|(references, commits)| {
            let mut ids = commits.head.iter().chain(&commits.branches);
            let is_other = ids.any(|id| id.len() != settings.id_digits());
            if is_other { Err(OTHER_HASH) } else { Ok((references, commits)) }
        }))
    }

    fn of_reftable(&self, list: &Found) -> Result<Read> {
        const LACKS: Fault = "lacks a table of its reftable";
        const DAMAGED: Fault = "has a damaged reftable";
        let Some(seen) = &list.seen else { return Ok(Ok(Default::default())) };
        let Some(text) = seen.content.as_deref().and_then(|text| std::str::from_utf8(text).ok())
        else {
            return Ok(Err(DAMAGED));
        };
        let dir = list.path.parent().unwrap_or(&list.path);
        let tables: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        if tables.iter().any(|name| name.contains(['/', '\0'])) {
            return Ok(Err(DAMAGED));
        }
        let paths: Vec<PathBuf> = tables.iter().map(|name| dir.join(name)).collect();
        let (mut names, mut is_unread) = (BTreeMap::new(), false);
        for table in self.view.read(&paths)? {
            let Some(table) = table else { return Ok(Err(LACKS)) };
            if table.is_dir || table.size < reftable::TABLE_BYTES_MIN {
                return Ok(Err(DAMAGED));
            }
            match &table.content {
                // A table too large to be read has many references.
                None => is_unread = true,
                Some(content) if reftable::apply(content, &mut names).is_none() => {
                    return Ok(Err(DAMAGED));
                }
                Some(_) => {}
            }
        }
        if is_unread {
            return Ok(Ok((References::UNREAD, Commits::default())));
        }
        let has = |start: &[u8]| {
            names.iter().any(|(name, value)| value.is_some() && name.starts_with(start))
        };
        let value = |name: &[u8]| names.get(name).and_then(Option::as_ref);
        let head = match value(b"HEAD") {
            Some(reftable::Value::Name(name)) => value(name),
            other => other,
        };
        let id_of = |value: &reftable::Value| match value {
            reftable::Value::Id(id) => Some(hex(id)),
            reftable::Value::Name(_) => None,
        };
        let branches = names.range(b"refs/heads/".to_vec()..b"refs/heads0".to_vec());
        let branches = branches.filter_map(|(_, value)| value.as_ref().and_then(id_of));
        let commits =
            Commits { head: head.and_then(id_of), branches: branches.take(BRANCHES_MAX).collect() };
        let (any, branches) = (has(b"refs/"), has(b"refs/heads/"));
        Ok(Ok((References { any, branches, head: head.is_some() }, commits)))
    }

    fn of_files(&self, pieces: &Pieces) -> Result<Read> {
        const DAMAGED: Fault = "has a damaged reference";
        let head = match (&pieces.head.target, pieces.head.content()) {
            (Some(target), _) if target.starts_with("refs") => target.to_str(),
            (_, content) => content.and_then(head_branch),
        };
        let packed = match &pieces.packed.seen {
            None => Some(Default::default()),
            Some(seen) => match &seen.content {
                Some(content) => of_packed(content, head),
                // A file too large to be read has many references.
                None => (!seen.is_dir && seen.size > 0)
                    .then(|| Packed { references: References::UNREAD, ..Packed::default() }),
            },
        };
        let Some(Packed { references: packed, head: packed_head, branches }) = packed else {
            return Ok(Err("has a damaged packed-refs"));
        };
        let mut listed: Vec<PathBuf> = Vec::new();
        let mut is_empty = false;
        let mut visit = |file: &crate::view::FileBelow<'_>| {
            if file.path.extension().is_none_or(|end| end != "lock") {
                is_empty |= file.size == 0;
                listed.push(file.path.to_owned());
            }
            if listed.len() < LISTED_MAX {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        self.view.files_below(&pieces.refs.path, &mut visit)?;
        if is_empty {
            return Ok(Err(DAMAGED));
        }
        let own = head.and_then(|head| head.strip_prefix("refs/")).map(PathBuf::from);
        let mut commits = Commits { head: packed_head, branches: Vec::new() };
        // The branch of HEAD, then other branches, then the rest.
        listed.sort_by_key(|path| (Some(path) != own.as_ref(), !path.starts_with("heads")));
        let read: Vec<PathBuf> =
            listed.iter().take(READ_MAX).map(|path| pieces.refs.path.join(path)).collect();
        for (path, seen) in listed.iter().zip(self.view.read(&read)?) {
            // One that went away meanwhile is in `packed-refs` by now.
            let Some(seen) = seen else { continue };
            let Some(content) = seen.content.filter(|content| is_reference(content)) else {
                return Ok(Err(DAMAGED));
            };
            if Some(path) == own.as_ref() {
                commits.head = id_of(&content);
            } else if path.starts_with("heads") {
                commits.add_branch(id_of(&content));
            }
        }
        // A file of the same name hides a packed branch, whose commit may be gone.
        let is_hidden = |name: &Path| listed.iter().any(|path| path == name);
        for (_, id) in branches.into_iter().filter(|(name, _)| !is_hidden(name)) {
            commits.add_branch(Some(id));
        }
        if head.is_none() {
            commits.head = pieces.head.content().and_then(id_of);
        }
        let has_head = own.as_ref().is_some_and(|own| listed.contains(own));
        let references = References {
            any: packed.any || !listed.is_empty(),
            branches: packed.branches || listed.iter().any(|path| path.starts_with("heads")),
            // A commit id needs no reference.
            head: packed.head || has_head || head.is_none(),
        };
        Ok(Ok((references, commits)))
    }
}

/// The branch in the HEAD of a repository with a reftable.
const STUB: &str = "refs/heads/.invalid";

/// Returns true if git would read this as a HEAD: the name of a reference, or a commit id.
fn is_head(content: &[u8]) -> bool {
    head_branch(content).is_some() || is_id(content.trim_ascii())
}

/// Returns the reference that a HEAD names.
fn head_branch(content: &[u8]) -> Option<&str> {
    let name = content.strip_prefix(b"ref:")?.trim_ascii();
    std::str::from_utf8(name).ok().filter(|name| name.starts_with("refs/") && !name.contains('\0'))
}

pub(super) fn is_id(text: &[u8]) -> bool {
    [40, 64].contains(&text.len()) && text.iter().all(u8::is_ascii_hexdigit)
}

/// Returns true if git would read this as a reference.
fn is_reference(content: &[u8]) -> bool {
    id_of(content).is_some() || content.starts_with(b"ref:")
}

/// Returns the id at the beginning of a reference.
pub(super) fn id_of(content: &[u8]) -> Option<String> {
    let id = content.split(u8::is_ascii_whitespace).next().filter(|id| is_id(id))?;
    String::from_utf8(id.to_ascii_lowercase()).ok()
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Content of a `packed-refs`.
#[derive(Default)]
struct Packed {
    references: References,
    /// Id of the reference that HEAD names.
    head: Option<String>,
    /// Some branches, by their paths below `refs`, with their ids.
    branches: Vec<(PathBuf, String)>,
}

/// Parses a `packed-refs`; `head` is the reference that HEAD names. Returns `None` if git would
/// refuse the file.
fn of_packed(content: &[u8], head: Option<&str>) -> Option<Packed> {
    let mut packed = Packed::default();
    let Some(content) = content.strip_suffix(b"\n") else {
        return content.is_empty().then_some(packed);
    };
    for line in content.split(|byte| *byte == b'\n') {
        if line.starts_with(b"#") {
            continue;
        }
        if let Some(peeled) = line.strip_prefix(b"^") {
            if !is_id(peeled.trim_ascii()) {
                return None;
            }
            continue;
        }
        let at = line.iter().position(|byte| *byte == b' ')?;
        let (id, name) = (&line[..at], &line[at + 1..]);
        if !is_id(id) || name.is_empty() || name.contains(&0) {
            return None;
        }
        let is_branch = name.starts_with(b"refs/heads/");
        packed.references.any = true;
        packed.references.branches |= is_branch;
        if head.is_some_and(|head| head.as_bytes() == name) {
            packed.references.head = true;
            packed.head = id_of(id);
        } else if is_branch && packed.branches.len() < READ_MAX {
            let path = Path::new(OsStr::from_bytes(&name[b"refs/".len()..])).to_owned();
            packed.branches.extend(id_of(id).map(|id| (path, id)));
        }
    }
    Some(packed)
}

/// Makes a repository with one object and one reference.
#[cfg(test)]
pub fn make(dir: &Path) {
    let id = "a".repeat(40);
    for (name, content) in [
        ("HEAD", b"ref: refs/heads/main\n".to_vec()),
        (&*format!("objects/{}/{}", &id[..2], &id[2..]), b"\x78\x01object".to_vec()),
        ("refs/heads/main", format!("{id}\n").into_bytes()),
    ] {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("below")).expect("directories");
        std::fs::write(path, content).expect("writes");
    }
}

#[cfg(test)]
mod tests;
