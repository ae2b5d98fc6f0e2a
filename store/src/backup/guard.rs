//! The guard: notices sources that lost most of their files, or their mount, since the last good
//! snapshot.
//!
//! Such a snapshot is kept, because nobody knows yet whether the loss is meant. It is marked, so that
//! later backups and retention rules ignore it.
//!
//! Each file counts for the innermost directory among the sources around it. A part that holds other
//! parts is therefore judged by its own files. A source that is a file counts for itself as well.

use super::{absolute, tree_path};
use crate::chunks::Chunks;
use crate::entry::{Entry, EntryKind, is_within, path_cmp};
use crate::git;
use crate::glob::ends;
use crate::id::{ChunkId, SnapshotId};
use crate::mount::MountState;
use crate::snapshot::{Amount, Cause, Emptied, Id, Snapshot, SourceState};
use crate::tree::TreeReader;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::iter;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Sources with fewer files are judged only when all of them are gone: a few files come and go.
const FILES_MIN: u64 = 100;

/// Maximum number of sources that a record names as emptied.
const NAMED_MAX: usize = 100;

/// Largest share of the files, and of the bytes, that a source may lose from one snapshot to the
/// next, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaxLoss(u8);

impl MaxLoss {
    /// Half of the files or bytes.
    pub const HALF: MaxLoss = MaxLoss(50);
    /// Everything: the source may be empty or gone.
    pub const ALL: MaxLoss = MaxLoss(100);

    /// Returns true if a source with `then` in the past may have only `now`.
    fn allows(self, then: u64, now: u64) -> bool {
        let lost = u128::from(then.saturating_sub(now));
        lost * 100 <= u128::from(then) * u128::from(self.0)
    }
}

impl Default for MaxLoss {
    fn default() -> MaxLoss {
        MaxLoss::HALF
    }
}

impl fmt::Display for MaxLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// The text is not a share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a share; write a whole number of percent from \"0%\" to \"100%\"")]
pub struct WrongShare(String);

impl FromStr for MaxLoss {
    type Err = WrongShare;

    fn from_str(text: &str) -> Result<MaxLoss, WrongShare> {
        let digits = text.strip_suffix('%').filter(|of| of.bytes().all(|b| b.is_ascii_digit()));
        let share = digits.and_then(|digits| digits.parse().ok()).filter(|share| *share <= 100);
        share.map(MaxLoss).ok_or_else(|| WrongShare(text.to_owned()))
    }
}

impl<'de> serde::Deserialize<'de> for MaxLoss {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<MaxLoss, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Choices about losses of a backup.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Accept every loss. The snapshot is good, and later ones are compared with it.
    pub allow_loss: bool,
    /// Sources with a limit of their own. One of them that the backup does not read although the last
    /// good snapshot has it is gone.
    pub max_loss: BTreeMap<PathBuf, MaxLoss>,
}

impl Guard {
    /// Returns how much each source may lose, by its path in the tree: the sources of a backup, and
    /// those with a limit of their own.
    pub fn limits<V>(&self, found: &BTreeMap<Vec<u8>, V>) -> BTreeMap<Vec<u8>, MaxLoss> {
        let own = self.max_loss.iter().map(|(path, limit)| (tree_path(path), *limit));
        found.keys().map(|path| (path.clone(), MaxLoss::default())).chain(own).collect()
    }
}

impl Amount {
    fn plus(&self, other: &Amount) -> Amount {
        self.by(other, u64::saturating_add)
    }

    fn without(&self, other: &Amount) -> Amount {
        self.by(other, u64::saturating_sub)
    }

    fn by(&self, other: &Amount, change: fn(u64, u64) -> u64) -> Amount {
        Amount {
            files: change(self.files, other.files),
            bytes: change(self.bytes, other.bytes),
            joined: change(self.joined, other.joined),
            joined_bytes: change(self.joined_bytes, other.joined_bytes),
        }
    }

    /// Adds a file.
    fn add(&mut self, entry: &Entry) {
        let is_joined = git::is_joined(&entry.path);
        self.files += u64::from(!is_joined);
        self.joined += u64::from(is_joined);
        self.bytes = self.bytes.saturating_add(entry.size);
        if is_joined {
            self.joined_bytes = self.joined_bytes.saturating_add(entry.size);
        }
    }
}

/// Counts files by source, as entries come in path order.
#[derive(Debug, Default)]
pub struct SourceCounts {
    /// Paths in the tree, in path order.
    sources: Vec<(Vec<u8>, Amount)>,
    /// Number of sources whose path was reached.
    reached: usize,
    /// Sources around the current path, outermost first.
    around: Vec<usize>,
}

impl SourceCounts {
    /// Begins to count for these paths in the tree.
    pub fn new<'a>(sources: impl IntoIterator<Item = &'a Vec<u8>>) -> SourceCounts {
        let mut sources: Vec<_> =
            sources.into_iter().map(|path| (path.clone(), Amount::default())).collect();
        sources.sort_by(|(a, _), (b, _)| path_cmp(a, b));
        sources.dedup_by(|(a, _), (b, _)| a == b);
        SourceCounts { sources, reached: 0, around: Vec::new() }
    }

    /// Counts an entry.
    pub fn push(&mut self, entry: &Entry) {
        while let Some((path, _)) = self.sources.get(self.reached)
            && path_cmp(path, &entry.path).is_le()
        {
            while let Some(last) = self.around.last()
                && !is_within(path, &self.sources[*last].0)
            {
                self.around.pop();
            }
            if *path == entry.path && entry.kind != EntryKind::Directory {
                self.sources[self.reached].1.add(entry);
            } else {
                self.around.push(self.reached);
            }
            self.reached += 1;
        }
        while let Some(last) = self.around.last()
            && !is_within(&entry.path, &self.sources[*last].0)
        {
            self.around.pop();
        }
        if let Some(last) = self.around.last()
            && entry.kind != EntryKind::Directory
        {
            self.sources[*last].1.add(entry);
        }
    }

    /// Returns what each source has, by its path in the tree.
    pub fn finish(self) -> BTreeMap<Vec<u8>, Amount> {
        self.sources.into_iter().collect()
    }
}

/// Returns the innermost source above `path`.
fn innermost<'a, V>(path: &'a [u8], sources: &BTreeMap<Vec<u8>, V>) -> Option<&'a [u8]> {
    let above = iter::once(0).chain(ends(path)).filter(|end| *end < path.len());
    above.map(|end| &path[..end]).filter(|above| sources.contains_key(*above)).last()
}

/// Returns true if each source of one backup that is below a source of the other one is a source of
/// both, so that their amounts can be compared.
fn are_divided_alike<A, B>(a: &BTreeMap<Vec<u8>, A>, b: &BTreeMap<Vec<u8>, B>) -> bool {
    a.keys().all(|path| b.contains_key(path) || innermost(path, b).is_none())
        && b.keys().all(|path| a.contains_key(path) || innermost(path, a).is_none())
}

/// A source as this backup found it.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Files in the new tree.
    pub amount: Amount,
    /// True if the tree has the path itself.
    pub is_there: bool,
    /// File system on which it lies.
    pub mount: Option<MountState>,
}

/// Returns the state of a source for the record.
pub fn state(found: &Found) -> SourceState {
    let mount = found.mount.as_ref().filter(|mount| mount.is_mounted());
    SourceState {
        amount: found.amount,
        mount: mount.map(|mount| mount.top.as_os_str().as_bytes().to_vec().into()),
        file_system: mount.map(|mount| mount.kind),
    }
}

/// The snapshot with which sources are compared.
pub struct Reference<'a> {
    pub id: SnapshotId,
    pub snapshot: &'a Snapshot,
    /// What each source had, by its path in the tree.
    states: BTreeMap<Vec<u8>, SourceState>,
}

impl<'a> Reference<'a> {
    /// Takes the states from the record. If an older program recorded none, or other paths below each
    /// other were sources, the tree is read, and each file counts for the sources of `limits`.
    pub fn new(
        id: SnapshotId,
        snapshot: &'a Snapshot,
        limits: &BTreeMap<Vec<u8>, MaxLoss>,
        chunks: &dyn Chunks,
    ) -> Reference<'a> {
        let paths = snapshot.paths.iter().map(|path| tree_path(Path::new(OsStr::from_bytes(path))));
        let has_states = snapshot.sources.len() == snapshot.paths.len();
        let recorded = snapshot.sources.iter().cloned();
        let mut states: BTreeMap<Vec<u8>, SourceState> = match has_states {
            true => paths.zip(recorded).collect(),
            false => paths.map(|path| (path, SourceState::default())).collect(),
        };
        if !has_states || !are_divided_alike(limits, &states) {
            let mut counts = SourceCounts::new(limits.keys());
            let tree = TreeReader::new(&snapshot.root.chunk(), chunks);
            tree.flatten().for_each(|entry| counts.push(&entry));
            for (path, amount) in counts.finish() {
                states.entry(path).or_default().amount = amount;
            }
        }
        Reference { id, snapshot, states }
    }

    /// Returns the sources that lost more than their `limits`. `found` are those of this backup, and
    /// `unread` the files of the reference that it did not look for.
    pub fn judge(
        &self,
        found: &BTreeMap<Vec<u8>, Found>,
        unread: &BTreeMap<Vec<u8>, Amount>,
        limits: &BTreeMap<Vec<u8>, MaxLoss>,
    ) -> Vec<Emptied> {
        let missing = Found::default();
        let judge = |(path, limit): (&Vec<u8>, &MaxLoss)| {
            let state = self.states.get(path)?;
            let here = found.get(path).unwrap_or(&missing);
            let unread = unread.get(path).copied().unwrap_or_default();
            loss(state, here, unread, *limit)?;
            // Files that moved into a source below are not lost.
            let below = self.gained_below(path, found);
            let with_moved = Found { amount: here.amount.plus(&below), ..here.clone() };
            let (cause, then) = loss(state, &with_moved, unread, *limit)?;
            Some(Emptied {
                path: absolute(path).into_os_string().into_encoded_bytes().into(),
                cause,
                then,
                now: here.amount,
                since: Some(Id(*self.id.as_bytes())),
            })
        };
        limits.iter().filter_map(judge).collect()
    }

    /// Returns what the sources below a path have more than before.
    fn gained_below(&self, path: &[u8], found: &BTreeMap<Vec<u8>, Found>) -> Amount {
        let below = found.iter().filter(|(other, _)| is_within(other, path) && *other != path);
        below.fold(Amount::default(), |sum, (other, found)| {
            let then = self.states.get(other).map(|state| state.amount).unwrap_or_default();
            sum.plus(&found.amount.without(&then))
        })
    }

    /// Describes directories below sources whose files are lost. `root` is the new tree, which may have
    /// other files there, for example those below a mount point.
    pub fn emptied_dirs(
        &self,
        dirs: &[PathBuf],
        root: &ChunkId,
        chunks: &dyn Chunks,
    ) -> Vec<Emptied> {
        let emptied = |dir: &PathBuf| {
            let path = tree_path(dir);
            let amount = |root: &ChunkId| {
                let mut counts = SourceCounts::new([&path]);
                let tree = TreeReader::within(root, &path, chunks);
                tree.flatten().for_each(|entry| counts.push(&entry));
                counts.finish().remove(&path).unwrap_or_default()
            };
            let now = amount(root);
            Emptied {
                path: dir.as_os_str().as_bytes().to_vec().into(),
                cause: if now == Amount::default() { Cause::Empty } else { Cause::Unmounted },
                then: amount(&self.snapshot.root.chunk()),
                now,
                since: Some(Id(*self.id.as_bytes())),
            }
        };
        dirs.iter().map(emptied).collect()
    }
}

/// Returns why a source counts as emptied, and what it had; `None` if it does not.
fn loss(
    state: &SourceState,
    found: &Found,
    unread: Amount,
    limit: MaxLoss,
) -> Option<(Cause, Amount)> {
    let (then, now) = (state.amount, found.amount);
    let nothing = Amount::default();
    if then == nothing {
        return None;
    }
    if let (Some(top), Some(mount)) = (&state.mount, &found.mount) {
        let top = Path::new(OsStr::from_bytes(top));
        if top != mount.top && top.starts_with(&mount.top) {
            return Some((Cause::Unmounted, then));
        }
        if top == mount.top && state.file_system.is_some_and(|kind| kind != mount.kind) {
            return Some((Cause::OtherFileSystem, then));
        }
    }
    if limit == MaxLoss::ALL {
        return None;
    }
    if !found.is_there {
        return Some((Cause::Gone, then));
    }
    // Files that this backup skipped, or could not read, are not lost.
    let then = then.without(&unread);
    if then != nothing && now == nothing {
        return Some((Cause::Empty, then));
    }
    let has_lost = |of: fn(&Amount) -> u64| !limit.allows(of(&then), of(&now));
    let lost_files = has_lost(|of| of.files);
    // Housekeeping takes most objects of git and their bytes, and none of the few other files of a
    // repository.
    let is_lost = if then.files >= FILES_MIN {
        lost_files || has_lost(|of| of.bytes.saturating_sub(of.joined_bytes))
    } else {
        let all = then.files.saturating_add(then.joined);
        all >= FILES_MIN && lost_files && has_lost(|of| of.bytes)
    };
    let lost_all_objects = then.joined >= FILES_MIN && now.joined == 0;
    let is_lost = is_lost || lost_all_objects;
    is_lost.then_some((Cause::Shrunk, then))
}

/// Adds an entry that the backup did not look for to the sources for which it counted.
pub fn count_unread(
    entry: &Entry,
    sources: &BTreeMap<Vec<u8>, Amount>,
    unread: &mut BTreeMap<Vec<u8>, Amount>,
) {
    if entry.kind == EntryKind::Directory {
        return;
    }
    let own = sources.contains_key(&entry.path).then_some(&entry.path[..]);
    for source in own.into_iter().chain(innermost(&entry.path, sources)) {
        unread.entry(source.to_vec()).or_default().add(entry);
    }
}

/// Drops what does not fit into a record.
pub fn cut(mut emptied: Vec<Emptied>) -> Vec<Emptied> {
    emptied.truncate(NAMED_MAX);
    emptied
}

/// Returns true if a tree has an entry at a path.
pub fn has(root: &ChunkId, path: &[u8], chunks: &dyn Chunks) -> bool {
    path.is_empty()
        || TreeReader::within(root, path, chunks)
            .flatten()
            .next()
            .is_some_and(|entry| is_within(&entry.path, path))
}

#[cfg(test)]
mod tests;
