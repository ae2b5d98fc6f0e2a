//! Tags and pins of snapshots, which users change after the backup.
//!
//! A snapshot record is never replaced, so each change is an object of its own:
//!
//! | name | meaning |
//! |---|---|
//! | `tags/<snapshot>-<key>` | adds the tag that is its content |
//! | `tags/<snapshot>-<key>-removed` | removes the tag of this key |
//! | `pins/<snapshot>-<key>` | pins the snapshot |
//! | `pins/<snapshot>-<key>-removed` | removes the pin of this key |
//!
//! Each addition has a new key, and a tag in the record has the key of its text. A removal names the
//! keys that it saw. So the state is a set of names, and the order in which hosts write them does
//! not matter: of an addition and a removal at the same time, the addition wins.

use crate::backend;
use crate::error::{Error, Result};
use crate::id::{ChunkId, SnapshotId};
use crate::limits;
use crate::random;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

/// Directory of the tags in the store.
pub const TAGS_DIR: &str = "tags";
/// Directory of the pins in the store.
pub const PINS_DIR: &str = "pins";
/// Version of the content of a tag.
pub const VERSION: u64 = 1;

/// End of the name of a removal.
const REMOVED: &str = "-removed";
/// Hexadecimal digits of an id of a snapshot.
const ID_DIGITS: usize = 2 * SnapshotId::LEN;
/// Hexadecimal digits of a key.
const KEY_DIGITS: usize = 32;

/// Content of an added tag.
#[derive(Debug, Serialize, Deserialize)]
struct AddedTag {
    version: u64,
    tag: String,
    /// Random digits, so that a tag that is added again has another key.
    nonce: String,
}

/// Name of an object of tags or pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name<'a> {
    snapshot: SnapshotId,
    key: &'a str,
    is_removal: bool,
}

impl<'a> Name<'a> {
    /// Reads an untrusted name; `None` if another program gave it.
    fn parse(name: &'a str) -> Option<Name<'a>> {
        let (snapshot, rest) = name.split_at_checked(ID_DIGITS)?;
        let rest = rest.strip_prefix('-')?;
        let (key, is_removal) = match rest.strip_suffix(REMOVED) {
            Some(key) => (key, true),
            None => (rest, false),
        };
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_key = key.len() == KEY_DIGITS && key.bytes().all(is_digit);
        let snapshot = SnapshotId::from_hex(snapshot).ok().filter(|_| is_key)?;
        Some(Name { snapshot, key, is_removal })
    }
}

/// Returns the key of these bytes: the first digits of their hash.
fn key_of(bytes: &[u8]) -> String {
    ChunkId::of(bytes).to_string()[..KEY_DIGITS].to_owned()
}

/// Returns a key that was never used.
fn new_key() -> Result<String> {
    let bytes: [u8; KEY_DIGITS / 2] = random::bytes().map_err(Error::store_write("a new name"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn added(dir: &str, snapshot: &SnapshotId, key: &str) -> String {
    format!("{dir}/{snapshot}-{key}")
}

fn removed(dir: &str, snapshot: &SnapshotId, key: &str) -> String {
    format!("{dir}/{snapshot}-{key}{REMOVED}")
}

/// Changes to the tags of a snapshot.
#[derive(Debug, Clone, Default)]
struct TagChanges {
    /// Added tags that are not removed, by key.
    added: BTreeMap<String, String>,
    /// Keys of removals.
    removed: HashSet<String>,
    /// True if an added tag could not be read.
    has_unreadable: bool,
}

/// Tags and pins of all snapshots.
#[derive(Debug, Clone, Default)]
pub struct Annotations {
    tags: HashMap<SnapshotId, TagChanges>,
    pinned: HashSet<SnapshotId>,
}

impl Annotations {
    /// Returns the tags of a snapshot: those of its record that are not removed, then the added
    /// ones. `recorded` are those of its record.
    pub fn tags<'a>(&self, id: &SnapshotId, recorded: &'a [String]) -> Cow<'a, [String]> {
        let Some(changes) = self.tags.get(id) else { return Cow::Borrowed(recorded) };
        let is_left = |tag: &&String| !changes.removed.contains(&key_of(tag.as_bytes()));
        let mut tags: Vec<String> = recorded.iter().filter(is_left).cloned().collect();
        let added: BTreeSet<&String> = changes.added.values().collect();
        let new: Vec<String> =
            added.into_iter().filter(|tag| !tags.contains(tag)).cloned().collect();
        tags.extend(new);
        Cow::Owned(tags)
    }

    /// Returns true if an added tag of the snapshot could not be read.
    pub fn has_unknown_tags(&self, id: &SnapshotId) -> bool {
        self.tags.get(id).is_some_and(|changes| changes.has_unreadable)
    }

    /// Returns true if the snapshot is pinned.
    pub fn is_pinned(&self, id: &SnapshotId) -> bool {
        self.pinned.contains(id)
    }
}

impl Store {
    /// Returns the tags and pins of all snapshots, and an error for each added tag that cannot be
    /// read.
    pub fn annotations(&self) -> Result<(Annotations, Vec<Error>)> {
        let mut annotations = Annotations { pinned: self.pinned()?, ..Annotations::default() };
        let (names, mut errors) = (self.names_in(TAGS_DIR)?, Vec::new());
        let names: Vec<Name> = names.iter().filter_map(|name| Name::parse(name)).collect();
        for name in names.iter().filter(|name| name.is_removal) {
            let changes = annotations.tags.entry(name.snapshot).or_default();
            changes.removed.insert(name.key.to_owned());
        }
        for Name { snapshot, key, .. } in names.iter().filter(|name| !name.is_removal) {
            let changes = annotations.tags.entry(*snapshot).or_default();
            if changes.removed.contains(*key) {
                continue;
            }
            match self.read_tag(snapshot, key) {
                Ok(Some(tag)) => drop(changes.added.insert((*key).to_owned(), tag)),
                Ok(None) => {}
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => {
                    changes.has_unreadable = true;
                    errors.push(error);
                }
            }
        }
        Ok((annotations, errors))
    }

    /// Returns the pinned snapshots.
    pub(crate) fn pinned(&self) -> Result<HashSet<SnapshotId>> {
        let names = self.names_in(PINS_DIR)?;
        Ok(left(&names).map(|name| name.snapshot).collect())
    }

    /// Pins a snapshot. Returns false if it was pinned before.
    pub fn pin(&self, id: &SnapshotId) -> Result<bool> {
        if self.pinned()?.contains(id) {
            return Ok(false);
        }
        self.annotate(id, added(PINS_DIR, id, &new_key()?), b"")?;
        Ok(true)
    }

    /// Removes all pins of a snapshot. Returns false if it was not pinned.
    pub fn unpin(&self, id: &SnapshotId) -> Result<bool> {
        let names = self.names_in(PINS_DIR)?;
        let keys: Vec<&str> =
            left(&names).filter(|name| name.snapshot == *id).map(|name| name.key).collect();
        for key in &keys {
            self.annotate(id, removed(PINS_DIR, id, key), b"")?;
        }
        Ok(!keys.is_empty())
    }

    /// Adds a tag to a snapshot. `recorded` are the tags of its record. Returns false if it had the
    /// tag before.
    pub fn add_tag(&self, id: &SnapshotId, recorded: &[String], tag: &str) -> Result<bool> {
        let (annotations, _) = self.annotations()?;
        if annotations.tags(id, recorded).iter().any(|known| known == tag) {
            return Ok(false);
        }
        let content = AddedTag { version: VERSION, tag: tag.to_owned(), nonce: new_key()? };
        let mut bytes = serde_json::to_vec(&content).expect("writing to memory cannot fail");
        bytes.push(b'\n');
        if bytes.len() > limits::TAG_BYTES_MAX {
            return Err(Error::RecordTooLong { bytes: bytes.len(), max: limits::TAG_BYTES_MAX });
        }
        self.annotate(id, added(TAGS_DIR, id, &key_of(&bytes)), &bytes)?;
        Ok(true)
    }

    /// Removes a tag from a snapshot. `recorded` are the tags of its record. Returns false if it did
    /// not have the tag.
    pub fn remove_tag(&self, id: &SnapshotId, recorded: &[String], tag: &str) -> Result<bool> {
        let (annotations, _) = self.annotations()?;
        if !annotations.tags(id, recorded).iter().any(|known| known == tag) {
            return Ok(false);
        }
        let changes = annotations.tags.get(id);
        let added = changes.iter().flat_map(|changes| &changes.added);
        let mut keys: Vec<String> =
            added.filter(|(_, known)| *known == tag).map(|(key, _)| key.clone()).collect();
        let of_record = key_of(tag.as_bytes());
        let is_removed = changes.is_some_and(|changes| changes.removed.contains(&of_record));
        if recorded.iter().any(|known| known == tag) && !is_removed {
            keys.push(of_record);
        }
        for key in keys {
            self.annotate(id, removed(TAGS_DIR, id, &key), b"")?;
        }
        Ok(true)
    }

    /// Writes an object about a snapshot. Fails if the snapshot is forgotten meanwhile.
    fn annotate(&self, id: &SnapshotId, name: String, bytes: &[u8]) -> Result<()> {
        backend::write_all(&*self.backend, &name, bytes).map_err(Error::store_write(&*name))?;
        if self.snapshot_ids()?.binary_search(id).is_ok() {
            return Ok(());
        }
        self.remove_file(&name)?;
        Err(Error::Forgotten(*id))
    }

    /// Removes all tags and pins of snapshots for which `is_gone` is true.
    pub(crate) fn remove_annotations(&self, is_gone: impl Fn(&SnapshotId) -> bool) -> Result<()> {
        for dir in [TAGS_DIR, PINS_DIR] {
            let mut names = self.names_in(dir)?;
            // An addition goes before its removal, which would otherwise take effect no more.
            names.sort_unstable();
            for name in &names {
                if Name::parse(name).is_some_and(|parsed| is_gone(&parsed.snapshot)) {
                    self.remove_file(&format!("{dir}/{name}"))?;
                }
            }
        }
        Ok(())
    }

    /// Returns the snapshots that have objects of tags or pins.
    pub(crate) fn annotated(&self) -> Result<HashSet<SnapshotId>> {
        let mut snapshots = HashSet::new();
        for dir in [TAGS_DIR, PINS_DIR] {
            let names = self.names_in(dir)?;
            snapshots.extend(names.iter().filter_map(|name| Some(Name::parse(name)?.snapshot)));
        }
        Ok(snapshots)
    }

    /// Removes a file of the store, unless another process was first.
    pub(crate) fn remove_file(&self, name: &str) -> Result<()> {
        match self.backend.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::StoreRemove { name: name.to_owned(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Returns the names in a directory that is missing until somebody needs it.
    fn names_in(&self, dir: &str) -> Result<Vec<String>> {
        match self.backend.names(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(Error::store_read(dir)),
        }
    }

    /// Reads an added tag; `None` if it was removed with its snapshot meanwhile.
    fn read_tag(&self, snapshot: &SnapshotId, key: &str) -> Result<Option<String>> {
        self.observer.progress().check()?;
        let name = added(TAGS_DIR, snapshot, key);
        let bytes = match backend::read_all(&*self.backend, &name, limits::TAG_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_listed = self.snapshot_ids()?.binary_search(snapshot).is_ok();
                return if is_listed { Err(Error::store_read(name)(error)) } else { Ok(None) };
            }
            bytes => bytes.map_err(Error::store_read(&*name))?,
        };
        let malformed = |reason: String| Error::Malformed { what: name.clone(), reason };
        if key_of(&bytes) != key {
            return Err(malformed("its content does not match its name".into()));
        }
        let content: AddedTag =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if content.version > VERSION {
            return Err(Error::newer_version(name, content.version, VERSION));
        }
        Ok(Some(content.tag))
    }
}

/// Returns the additions among these names that no removal names.
fn left(names: &[String]) -> impl Iterator<Item = Name<'_>> {
    let parsed: Vec<Name> = names.iter().filter_map(|name| Name::parse(name)).collect();
    let removals = parsed.iter().filter(|name| name.is_removal);
    let removed: HashSet<(SnapshotId, &str)> =
        removals.map(|name| (name.snapshot, name.key)).collect();
    parsed
        .into_iter()
        .filter(move |name| !name.is_removal && !removed.contains(&(name.snapshot, name.key)))
}

#[cfg(test)]
mod tests;
