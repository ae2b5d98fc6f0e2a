//! Selects the snapshots that a command works on.

use crate::exit::{Failure, with_hint};
use crate::report::local_time;
use clap::Args;
use store::entry::{display_path, is_within};
use store::id::{ChunkId, SnapshotId};
use store::observe::Event;
use store::records::Records;
use store::snapshot::Snapshot;
use store::store::Store;
use store::tree::TreeReader;

/// Narrows down snapshots.
#[derive(Debug, Clone, Args)]
pub struct Filter {
    /// Only snapshots with this tag (can be repeated: any of them)
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Only snapshots with this source path or one below or above it (can be repeated: any of them)
    #[arg(long, value_name = "PATH")]
    pub path: Vec<std::path::PathBuf>,
    /// Only snapshots of this machine (can be repeated: any of them)
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
}

impl Filter {
    /// Returns true if it selects all snapshots.
    pub fn is_empty(&self) -> bool {
        self.tag.is_empty() && self.path.is_empty() && self.host.is_empty()
    }

    fn matches(&self, snapshot: &Snapshot) -> bool {
        let any_path = |wanted: &std::path::PathBuf| {
            let wanted = store::backup::tree_path(wanted);
            snapshot.paths.iter().any(|path| {
                let path = tree_path(path);
                is_within(&path, &wanted) || is_within(&wanted, &path)
            })
        };
        (self.tag.is_empty() || self.tag.iter().any(|tag| snapshot.tags.contains(tag)))
            && (self.host.is_empty() || self.host.contains(&snapshot.host))
            && (self.path.is_empty() || self.path.iter().any(any_path))
    }
}

/// Converts a source path of a snapshot record to a path in its tree.
pub fn tree_path(path: &[u8]) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    store::backup::tree_path(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))
}

/// Snapshots that match a filter.
pub struct Selection {
    /// Readable snapshots, oldest first.
    pub snapshots: Vec<(SnapshotId, Snapshot)>,
    /// True if every record could be read. Otherwise others may match, and a warning was printed.
    pub is_sure: bool,
}

/// Returns all readable snapshots that match. Warns about damaged ones.
pub fn snapshots(store: &Store, filter: &Filter) -> Result<Selection, Failure> {
    let (mut snapshots, damaged) = store.snapshots()?;
    let is_sure = damaged.is_empty();
    for error in damaged {
        store.observer().event(Event::Warning(error.to_string()));
    }
    snapshots.retain(|(_, snapshot)| filter.matches(snapshot));
    Ok(Selection { snapshots, is_sure })
}

/// Returns the end of a command that answered from the readable records: `Partial` if another
/// record might change the answer.
pub fn answered(is_sure: bool) -> Result<(), Failure> {
    if is_sure { Ok(()) } else { Err(Failure::Partial) }
}

/// Checks a tag or machine name, which snapshots keep as a printable line of text.
pub fn word(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is empty; omit the option".into());
    }
    if text.contains(store::entry::is_deceptive) {
        return Err("it contains control characters; use letters, digits and punctuation".into());
    }
    Ok(text.to_owned())
}

/// A command line argument `SNAPSHOT[:PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// An id prefix, `latest` or `latest~N`.
    pub snapshot: String,
    /// Path in the tree; empty for the whole tree.
    pub path: Vec<u8>,
}

impl Place {
    /// Splits the argument at the first colon.
    pub fn parse(text: &std::ffi::OsStr) -> Result<Place, Failure> {
        use std::os::unix::ffi::OsStrExt;
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|b| *b == b':');
        let (snapshot, path) =
            colon.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + 1..]));
        let snapshot = String::from_utf8_lossy(snapshot).into_owned();
        let path = tree_path(path);
        if !path.is_empty() && !store::entry::is_valid_path(&path) {
            return Err(with_hint(
                format!("{} is not a valid path in a snapshot", display_path(&path)),
                "write an absolute path without . and ..",
            ));
        }
        Ok(Place { snapshot, path })
    }
}

/// A snapshot that was found.
pub struct Found {
    pub id: SnapshotId,
    pub snapshot: Snapshot,
    /// True if it is certainly the wanted one. Otherwise other records are unreadable or from the
    /// future, and a warning was printed.
    pub is_sure: bool,
}

/// Returns the snapshot that `wanted` names.
pub fn find(store: &Store, wanted: &str) -> Result<Found, Failure> {
    find_among(store, wanted, None, &mut None)
}

/// Like [`find`], for two snapshots. Reads the records and warns of them once.
pub fn find_both(store: &Store, first: &str, second: &str) -> Result<[Found; 2], Failure> {
    let mut candidates = None;
    let mut find = |wanted| find_among(store, wanted, None, &mut candidates);
    Ok([find(first)?, find(second)?])
}

/// Returns the snapshot of an instance that `wanted` names. `latest` is the latest of this
/// instance.
pub fn find_of_instance(store: &Store, wanted: &str, instance: &str) -> Result<Found, Failure> {
    let found = find_among(store, wanted, Some(instance), &mut None)?;
    if is_of(&found.snapshot, Some(instance)) {
        return Ok(found);
    }
    let message = format!("snapshot {} does not belong to instance {instance}", found.id.short());
    Err(with_hint(message, "`forgekeep snapshots` shows the instance of each snapshot"))
}

/// Returns true if a snapshot is of this instance, or if any snapshot will do.
fn is_of(snapshot: &Snapshot, instance: Option<&str>) -> bool {
    let of = snapshot.instance.as_ref().map(|known| &known.name[..]);
    instance.is_none() || of == instance
}

/// Returns the snapshot that `wanted` names. `latest` is the latest of `instance`, if one is given.
/// Keeps the records that it read in `candidates`.
fn find_among<'a>(
    store: &'a Store,
    wanted: &str,
    instance: Option<&'a str>,
    candidates: &mut Option<Candidates<'a>>,
) -> Result<Found, Failure> {
    if let Some(rest) = wanted.strip_prefix("latest") {
        let back = match rest.strip_prefix('~') {
            Some(number) => number.parse().ok(),
            None => rest.is_empty().then_some(0),
        };
        if let Some(back) = back {
            let candidates = match candidates {
                Some(candidates) => candidates,
                none => none.insert(Candidates::of(store, instance)?),
            };
            return candidates.latest(wanted, back);
        }
    }
    let ids = store.snapshot_ids()?;
    let matching: Vec<&SnapshotId> =
        ids.iter().filter(|id| !wanted.is_empty() && id.to_string().starts_with(wanted)).collect();
    match matching[..] {
        [id] => Ok(Found { id: *id, snapshot: store.snapshot(id)?, is_sure: true }),
        [] => Err(unknown(wanted, ids.len(), instance)),
        _ => {
            let shown = matching.iter().take(SHOWN_IDS).map(|id| id.to_string()[..12].to_owned());
            let shown = shown.collect::<Vec<_>>().join(", ");
            let more = if matching.len() > SHOWN_IDS { ", …" } else { "" };
            let message =
                format!("{wanted} is ambiguous: {} snapshots ({shown}{more})", matching.len());
            Err(with_hint(message, "give more digits of the id"))
        }
    }
}

/// Maximum number of ids listed for an ambiguous prefix.
const SHOWN_IDS: usize = 4;

/// Snapshots among which `latest` is searched, read as far as needed.
struct Candidates<'a> {
    store: &'a Store,
    /// The only instance that counts, if one is given.
    instance: Option<&'a str>,
    /// Records that are not read yet.
    records: Records<'a>,
    /// Known snapshots, newest first.
    known: Vec<(SnapshotId, Snapshot)>,
    /// Snapshots from the future, newest first.
    future: Vec<(SnapshotId, Snapshot)>,
    /// Number of unreadable records so far.
    unreadable: u64,
    /// True if the user was warned of snapshots from the future.
    has_warned: bool,
}

impl<'a> Candidates<'a> {
    fn of(store: &'a Store, instance: Option<&'a str>) -> Result<Candidates<'a>, Failure> {
        let (records, known, future) = (store.records()?, Vec::new(), Vec::new());
        let (unreadable, has_warned) = (0, false);
        Ok(Candidates { store, instance, records, known, future, unreadable, has_warned })
    }

    /// Returns the newest snapshot, or the one `back` places before it. Warns about records that
    /// are unreadable or from the future, and does not count them.
    fn latest(&mut self, wanted: &str, back: usize) -> Result<Found, Failure> {
        let now = crate::report::now();
        while self.known.len() <= back {
            match self.records.next() {
                None => break,
                Some(Ok((_, snapshot))) if !is_of(&snapshot, self.instance) => {}
                Some(Ok(named)) if named.1.is_from_future(now) => self.future.push(named),
                Some(Ok(named)) => self.known.push(named),
                Some(Err(error)) => {
                    self.unreadable += 1;
                    self.warn(format!("{error}; searching the other snapshots"));
                }
            }
        }
        self.warn_of_future();
        let known = if self.known.is_empty() { &self.future } else { &self.known };
        match known.get(back) {
            Some((id, snapshot)) => {
                let is_sure = self.unreadable == 0 && self.future.is_empty();
                Ok(Found { id: *id, snapshot: snapshot.clone(), is_sure })
            }
            // The wanted one may be among the unreadable ones.
            None if self.unreadable > 0 => {
                let records = crate::report::count(self.unreadable, "record");
                let message = format!("no readable snapshot {wanted}: {records} cannot be read");
                Err(with_hint(message, "`forgekeep check` lists the damage"))
            }
            None => Err(unknown(wanted, known.len(), self.instance)),
        }
    }

    fn warn(&self, text: String) {
        self.store.observer().event(Event::Warning(text));
    }

    fn warn_of_future(&mut self) {
        if std::mem::replace(&mut self.has_warned, true) {
            return;
        }
        let what = if self.known.is_empty() { "no other exists" } else { "latest ignores it" };
        for (id, snapshot) in &self.future {
            let time = local_time(snapshot.start.into());
            self.warn(format!(
                "snapshot {} is dated in the future, {time}; {what}; check this machine's clock",
                id.short()
            ));
        }
    }
}

/// Returns the failure that no such snapshot exists among `count`, with a suggestion.
fn unknown(wanted: &str, count: usize, instance: Option<&str>) -> Failure {
    match instance {
        None if count == 0 => {
            let hint = "run `forgekeep backup`, or check --store";
            return with_hint("the store has no snapshots yet", hint);
        }
        Some(name) if count == 0 => {
            let hint = format!(
                "run `forgekeep backup --instance {name}`, or check --store; \
                 `forgekeep snapshots` lists the snapshots of other instances"
            );
            return with_hint(format!("the store has no snapshots of instance {name} yet"), hint);
        }
        _ => {}
    }
    let message =
        format!("no snapshot {wanted} among {}", crate::report::count(count as u64, "snapshot"));
    let known = forge::suggest::closest(&wanted.to_lowercase(), ["latest"].into_iter());
    match known.filter(|_| !wanted.starts_with("latest~")) {
        Some(known) => with_hint(message, format!("did you mean `{known}`?")),
        None => with_hint(message, "`forgekeep snapshots` lists them"),
    }
}

/// Maximum number of entries read to suggest a path.
const LOOKED_AT: usize = 50_000;

/// Returns the failure that a snapshot lacks a path, with a suggestion.
pub fn no_path(store: &Store, id: &SnapshotId, root: &ChunkId, path: &[u8]) -> Failure {
    let message = format!("snapshot {} has no /{}", id.short(), display_path(path));
    let lists = format!("`forgekeep ls {}` lists its paths", id.short());
    if let Some((link, leads_to)) = store::tree::link_on(root, path, store) {
        let (link, leads_to) = (display_path(&link), display_path(&leads_to));
        return with_hint(
            message,
            format!("/{link} is a symbolic link there; ask for /{leads_to}"),
        );
    }
    let hint = match likely(store, root, path) {
        Some(likely) => format!("did you mean /{}? {lists}", display_path(&likely)),
        None => format!("{lists}; `forgekeep find NAME` searches all snapshots"),
    };
    with_hint(message, hint)
}

/// Returns a path that ends with this one, or else the path most like it in the same directory.
fn likely(store: &Store, root: &ChunkId, path: &[u8]) -> Option<Vec<u8>> {
    let entries = TreeReader::new(root, store).take(LOOKED_AT).filter_map(Result::ok);
    let end = [b"/", path].concat();
    let (parent, name) = split(path);
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        if entry.path.ends_with(&end) {
            return Some(entry.path);
        }
        let (dir, own) = split(&entry.path);
        if dir == parent {
            names.extend(String::from_utf8(own.to_vec()).ok());
        }
    }
    let name = std::str::from_utf8(name).ok()?;
    let closest = forge::suggest::closest(name, names.iter().map(String::as_str))?;
    let mut likely = parent.to_vec();
    if !likely.is_empty() {
        likely.push(b'/');
    }
    likely.extend(closest.as_bytes());
    Some(likely)
}

/// Splits a path into its directory and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
