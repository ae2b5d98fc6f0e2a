//! A disk that loses power.
//!
//! Data that was written but not synced may be lost, in part or completely, and in any order. Names
//! are lost the same way if they were added or removed before their directory was synced. The model
//! is stricter than real file systems: it keeps no name and no byte that was not synced.

use super::sandbox::Dice;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum bytes of a piece of data that is lost as a whole.
const PIECE_BYTES: usize = 4096;

/// One change of a disk. Files have numbers, since names move.
#[derive(Debug, Clone)]
pub enum Change {
    /// Creates a directory.
    Directory(PathBuf),
    /// Creates an empty file.
    File {
        path: PathBuf,
        file: usize,
    },
    Write {
        file: usize,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    /// Truncates or extends a file.
    Resize {
        file: usize,
        len: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    /// Removes the name of a file or directory.
    Unlink(PathBuf),
    /// Makes all changes of a file before number `begun` safe.
    SyncFile {
        file: usize,
        begun: usize,
    },
    /// Makes all changes of names in a directory before number `begun` safe.
    SyncDirectory {
        path: PathBuf,
        begun: usize,
    },
    /// The user relies on this from here on.
    Promise(String),
}

impl Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Directory(path) => write!(f, "mkdir {}", path.display()),
            Change::File { path, file } => write!(f, "create {} as {file}", path.display()),
            Change::Write { file, offset, bytes } => {
                write!(f, "write {} bytes at {offset} of {file}", bytes.len())
            }
            Change::Resize { file, len } => write!(f, "resize {file} to {len}"),
            Change::Rename { from, to } => {
                write!(f, "rename {} to {}", from.display(), to.display())
            }
            Change::Link { from, to } => write!(f, "link {} to {}", from.display(), to.display()),
            Change::Unlink(path) => write!(f, "unlink {}", path.display()),
            Change::SyncFile { file, begun } => write!(f, "sync {file}, begun at {begun}"),
            Change::SyncDirectory { path, begun } => {
                write!(f, "sync directory {:?}, begun at {begun}", path.display().to_string())
            }
            Change::Promise(what) => write!(f, "promise {what}"),
        }
    }
}

/// The object that a name refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

/// A safe value, and the later ones, each with the number of its change.
#[derive(Debug, Clone, Default)]
struct Name {
    safe: Option<Node>,
    later: Vec<(usize, Option<Node>)>,
}

impl Name {
    fn newest(&self) -> Option<Node> {
        self.later.last().map_or(self.safe, |(_, node)| *node)
    }
}

#[derive(Debug, Clone)]
enum Edit {
    Write(u64, Arc<[u8]>),
    Resize(u64),
}

#[derive(Debug, Clone, Default)]
struct Content {
    safe: Vec<u8>,
    later: Vec<(usize, Edit)>,
}

/// Remaining paths with the bytes of files; directories have none.
pub type Remains = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Amount of unsynced data that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing: the program was killed, and the disk continued.
    Nothing,
    /// Everything.
    Everything,
    /// Some of it: each change at random.
    Some,
}

/// A disk, change by change. Its top directory always exists.
#[derive(Debug, Default)]
pub struct Disk {
    names: BTreeMap<PathBuf, Name>,
    files: BTreeMap<usize, Content>,
    count: usize,
    promises: Vec<String>,
}

impl Disk {
    /// Returns the number of changes so far.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns the promises on which the user relies.
    pub fn promises(&self) -> &[String] {
        &self.promises
    }

    /// Returns the file that has this name now.
    pub fn file(&self, path: &Path) -> Option<usize> {
        match self.names.get(path)?.newest()? {
            Node::File(file) => Some(file),
            Node::Directory => None,
        }
    }

    /// Returns the current length of a file in bytes.
    pub fn size(&self, file: usize) -> u64 {
        let content = &self.files[&file];
        content.later.iter().fold(content.safe.len() as u64, |size, (_, edit)| match edit {
            Edit::Write(offset, bytes) => size.max(offset + bytes.len() as u64),
            Edit::Resize(len) => *len,
        })
    }

    /// Applies a change.
    pub fn apply(&mut self, change: &Change) {
        let number = self.count;
        self.count += 1;
        match change {
            Change::Directory(path) => self.name(path, number, Some(Node::Directory)),
            Change::File { path, file } => {
                self.files.insert(*file, Content::default());
                self.name(path, number, Some(Node::File(*file)));
            }
            Change::Write { file, offset, bytes } => {
                self.edit(*file, number, Edit::Write(*offset, Arc::clone(bytes)));
            }
            Change::Resize { file, len } => self.edit(*file, number, Edit::Resize(*len)),
            Change::Rename { from, to } => {
                let node = self.names.get(from).and_then(Name::newest);
                let Some(Node::File(_)) = node else { panic!("{} is no file", from.display()) };
                self.name(from, number, None);
                self.name(to, number, node);
            }
            Change::Link { from, to } => {
                let node = self.names.get(from).and_then(Name::newest);
                self.name(to, number, node);
            }
            Change::Unlink(path) => self.name(path, number, None),
            Change::SyncFile { file, begun } => {
                let content = self.files.get_mut(file).expect("a file");
                let covered = content.later.iter().take_while(|(at, _)| at < begun).count();
                for (_, edit) in content.later.drain(..covered) {
                    edit.apply(&mut content.safe);
                }
            }
            Change::SyncDirectory { path, begun } => {
                let inside = self.names.iter_mut().filter(|(name, _)| name.parent() == Some(path));
                for (_, name) in inside {
                    let covered = name.later.iter().take_while(|(at, _)| at < begun).count();
                    if let Some((_, node)) = name.later.drain(..covered).next_back() {
                        name.safe = node;
                    }
                }
            }
            Change::Promise(what) => self.promises.push(what.clone()),
        }
    }

    fn name(&mut self, path: &Path, number: usize, node: Option<Node>) {
        self.names.entry(path.to_owned()).or_default().later.push((number, node));
    }

    fn edit(&mut self, file: usize, number: usize, edit: Edit) {
        self.files.get_mut(&file).expect("a file").later.push((number, edit));
    }

    /// Returns the state after a loss of power now.
    pub fn remains(&self, loss: Loss, dice: &mut Dice) -> Remains {
        let luck = |dice: &mut Dice| match loss {
            Loss::Nothing => 8,
            Loss::Everything => 0,
            Loss::Some => dice.below(9),
        };
        let (of_names, of_data) = (luck(dice), luck(dice));
        let mut remains = Remains::new();
        for (path, name) in &self.names {
            let is_reachable = path.parent().is_none_or(|parent| {
                parent.as_os_str().is_empty() || remains.get(parent) == Some(&None)
            });
            let node = match name.later.len() {
                0 => name.safe,
                _ if of_names == 8 => name.newest(),
                _ if dice.below(8) >= of_names => name.safe,
                count => name.later[dice.below(count as u64) as usize].1,
            };
            match node {
                Some(Node::Directory) if is_reachable => drop(remains.insert(path.clone(), None)),
                Some(Node::File(file)) if is_reachable => {
                    let content = self.files[&file].remains(of_data, dice);
                    remains.insert(path.clone(), Some(content));
                }
                _ => {}
            }
        }
        remains
    }
}

impl Edit {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Edit::Resize(len) => content.resize(*len as usize, 0),
            Edit::Write(offset, bytes) => put(content, *offset as usize, bytes),
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl Content {
    /// Returns the remaining bytes. On average, `luck` of eight changes survive.
    fn remains(&self, luck: u64, dice: &mut Dice) -> Vec<u8> {
        let mut content = self.safe.clone();
        for (_, edit) in &self.later {
            match edit {
                _ if luck == 8 => edit.apply(&mut content),
                Edit::Resize(_) if dice.below(8) < luck => edit.apply(&mut content),
                Edit::Resize(_) => {}
                Edit::Write(offset, bytes) => {
                    torn(&mut content, *offset as usize, bytes, luck, dice);
                }
            }
        }
        content
    }
}

/// Writes some pieces of `bytes`. The file may have its length without its data.
fn torn(content: &mut Vec<u8>, offset: usize, bytes: &[u8], luck: u64, dice: &mut Dice) {
    let unit = [512, PIECE_BYTES][dice.below(2) as usize];
    let mut from = 0;
    while from < bytes.len() {
        // Pieces have boundaries in the file, like sectors and pages.
        let to = bytes.len().min(((offset + from) / unit + 1) * unit - offset);
        if dice.below(8) < luck {
            put(content, offset + from, &bytes[from..to]);
        }
        from = to;
    }
    if dice.below(8) < luck && content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: usize, bytes: &[u8]) -> Change {
        Change::Write { file, offset: 0, bytes: bytes.into() }
    }

    fn disk(changes: &[Change]) -> Disk {
        let mut disk = Disk::default();
        changes.iter().for_each(|change| disk.apply(change));
        disk
    }

    #[test]
    fn only_synced_data_is_sure_to_survive() {
        let (a, b) = (PathBuf::from("d/a"), PathBuf::from("d/b"));
        let mut changes = vec![
            Change::Directory("d".into()),
            Change::SyncDirectory { path: "".into(), begun: 1 },
            Change::File { path: a.clone(), file: 1 },
            write(1, b"hello"),
        ];
        let all = disk(&changes).remains(Loss::Nothing, &mut Dice::new(1));
        assert_eq!(all[&a], Some(b"hello".to_vec()));
        let none = disk(&changes).remains(Loss::Everything, &mut Dice::new(1));
        assert_eq!(none.keys().collect::<Vec<_>>(), [Path::new("d")]);

        changes.push(Change::SyncFile { file: 1, begun: 4 });
        changes.push(Change::Rename { from: a, to: b.clone() });
        let named = changes.len();
        changes.push(write(1, b"HE"));
        changes.push(Change::SyncDirectory { path: "d".into(), begun: named });
        let before = disk(&changes[..named]);
        let luck = |seed| before.remains(Loss::Some, &mut Dice::new(seed)).contains_key(&b);
        assert!((0..99).any(luck) && !(0..99).all(luck), "a rename is safe once it is synced");
        let after = disk(&changes).remains(Loss::Everything, &mut Dice::new(1));
        assert_eq!(after[&b], Some(b"hello".to_vec()), "and what came after the sync is not");
    }

    #[test]
    fn a_sync_covers_only_earlier_writes() {
        let path = PathBuf::from("a");
        let changes = [
            Change::File { path: path.clone(), file: 1 },
            write(1, b"before"),
            write(1, b"after!"),
            Change::SyncFile { file: 1, begun: 2 },
            Change::SyncDirectory { path: "".into(), begun: 1 },
        ];
        let remains = disk(&changes).remains(Loss::Everything, &mut Dice::new(1));
        assert_eq!(remains[&path], Some(b"before".to_vec()));
    }

    #[test]
    fn unsynced_data_is_torn_in_every_way() {
        let path = PathBuf::from("a");
        let changes = [
            Change::File { path: path.clone(), file: 1 },
            Change::SyncDirectory { path: "".into(), begun: 1 },
            write(1, &[1; 3 * PIECE_BYTES]),
        ];
        let disk = disk(&changes);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let content = disk.remains(Loss::Some, &mut Dice::new(seed))[&path].clone();
            let content = content.expect("a file");
            let pieces = content.chunks(PIECE_BYTES).map(|piece| piece[0] == 1);
            seen.insert(pieces.collect::<Vec<_>>());
        }
        assert!(seen.len() >= 8, "{seen:?}");
    }
}
