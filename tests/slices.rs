//! Files that consist of very many small slices of chunks.

use crate::support::stores;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use store::check::{ReadData, check};
use store::entry::{Content, Entry, EntryKind, HardLink, Time};
use store::id::{ChunkId, SnapshotId};
use store::recipe::{Extent, RecipeWriter};
use store::restore::{Report, restore};
use store::segment;
use store::store::{Purpose, Store};
use store::tree::TreeWriter;

/// Bytes of each old chunk.
const CHUNK: usize = 50_000;
/// More slices than a restore holds in memory at once.
const MANY: usize = 300_000;

struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        let scratch = Scratch { dir: tempfile::tempdir().expect("a temporary directory") };
        stores::init_small(&scratch.path("store"));
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self) -> Store {
        stores::open(&self.path("store"), Purpose::Read)
    }

    fn restore(&self, id: &SnapshotId) -> Report {
        let store = self.open();
        let root = store.snapshot(id).expect("reads").root.chunk();
        let options = stores::restore_options();
        restore(&store, &root, b"", &self.path("target"), &options).expect("restores")
    }

    fn is_restored(&self, name: &str, content: &[u8]) -> bool {
        fs::read(self.path("target").join(name)).is_ok_and(|found| found == content)
    }

    /// Returns the names in the target, including temporary files.
    fn names(&self) -> Vec<String> {
        let files = fs::read_dir(self.path("target")).expect("lists");
        let name = |file: std::io::Result<fs::DirEntry>| file.expect("lists").file_name();
        let mut names: Vec<String> =
            files.map(|file| name(file).into_string().expect("plain")).collect();
        names.sort();
        names
    }
}

/// Returns the bytes of the old chunk with this number.
fn old(number: usize) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK];
    blake3::Hasher::new().update(&[number as u8]).finalize_xof().fill(&mut bytes);
    bytes
}

/// A file composed of slices, and its expected content.
struct File {
    recipe: RecipeWriter,
    content: Vec<u8>,
}

impl File {
    fn new() -> File {
        File { recipe: RecipeWriter::default(), content: Vec::new() }
    }

    fn push(&mut self, extent: Extent, bytes: &[u8], put: &Put<'_>) {
        self.content.extend_from_slice(bytes);
        let put = |bytes: &[u8]| Ok(put(segment::SegmentKind::Metadata, bytes));
        self.recipe.push(extent, &put).expect("puts");
    }

    /// Adds many slices with a hole in the middle and a large slice near the end.
    fn fill(&mut self, count: usize, put: &Put<'_>) {
        let chunks: Vec<Vec<u8>> = (0..8).map(old).collect();
        let ids: Vec<ChunkId> =
            chunks.iter().map(|bytes| put(segment::SegmentKind::Data, bytes)).collect();
        for n in 0..count {
            let (which, offset) = (n % 7 + n / 1000 % 2, n * 31 % (CHUNK - 200));
            let len = if n == count - 9 { CHUNK - offset } else { n % 199 + 1 };
            let extent =
                Extent::Slice { chunk: ids[which], offset: offset as u32, len: len as u64 };
            self.push(extent, &chunks[which][offset..offset + len], put);
            if n == count / 2 {
                // Holes begin and end at blocks of the file system.
                let len = 4096 - self.content.len() % 4096;
                let extent = Extent::Slice { chunk: ids[7], offset: 1, len: len as u64 };
                self.push(extent, &chunks[7][1..1 + len], put);
                self.push(Extent::Hole { len: 1 << 20 }, &[0; 1 << 20], put);
            }
        }
    }

    /// Returns its entry and its expected content.
    fn finish(self, name: &str, put: &Put<'_>) -> (Entry, Vec<u8>) {
        let size = self.recipe.len();
        let put = |bytes: &[u8]| Ok(put(segment::SegmentKind::Metadata, bytes));
        let recipe = self.recipe.finish(&put).expect("puts");
        let content = Content::Recipe(recipe);
        let mtime = Some(Time { seconds: 5, nanoseconds: 6 });
        let file = Entry::new(name.into(), EntryKind::File, 0o640);
        (Entry { mtime, size, content, ..file }, self.content)
    }
}

type Put<'a> = dyn Fn(segment::SegmentKind, &[u8]) -> ChunkId + 'a;

fn tree(entries: &[Entry], put: &Put<'_>) -> ChunkId {
    let put = |bytes: &[u8]| Ok(put(segment::SegmentKind::Metadata, bytes));
    let mut tree = TreeWriter::default();
    entries.iter().for_each(|entry| tree.push(entry, &put).expect("puts"));
    tree.finish(&put).expect("puts")
}

fn file(name: &str, count: usize, put: &Put<'_>) -> (Entry, Vec<u8>) {
    let mut file = File::new();
    file.fill(count, put);
    file.finish(name, put)
}

#[test]
fn sliced_files_are_restored_compared_and_dumped() {
    let scratch = Scratch::new();
    let (mut small, mut large, mut linked) = (Vec::new(), Vec::new(), None);
    let id = stores::craft(&scratch.path("store"), |put| {
        let (a, content) = file("a", 900, put);
        small = content;
        let (b, content) = file("b", MANY, put);
        large = content;
        let b = Entry { hard_link: Some(HardLink { file_system: 1, names: 2 }), inode: 7, ..b };
        linked = Some(b.clone());
        let c = Entry { path: b"c".to_vec(), ..b.clone() };
        let (d, _) = file("d", 900, put);
        tree(&[a, b, c, d], put)
    });
    let report = scratch.restore(&id);
    assert_eq!((report.failed, report.files_restored, report.others), (0, 3, 1));
    assert_eq!(report.bytes_restored as usize, large.len() + 2 * small.len());
    for (name, content) in [("a", &small), ("b", &large), ("c", &large), ("d", &small)] {
        assert!(scratch.is_restored(name, content), "{name}");
    }
    let found = |name: &str| fs::metadata(scratch.path("target").join(name)).expect("is there");
    assert_eq!(found("b").ino(), found("c").ino());
    assert_eq!(
        (found("b").mtime(), found("b").mtime_nsec(), found("b").mode() & 0o777),
        (5, 6, 0o640)
    );
    assert!(found("b").blocks() * 512 < large.len() as u64, "the hole takes space");

    // Everything is up to date; then one byte of one file is wrong.
    let report = scratch.restore(&id);
    assert_eq!((report.failed, report.files_restored, report.files_unchanged), (0, 0, 3));
    let changed = fs::OpenOptions::new().write(true).open(scratch.path("target/b"));
    let at = large.len() as u64 - 100;
    let byte = large[at as usize] ^ 1;
    changed.expect("opens").write_all_at(&[byte], at).expect("writes");
    let report = scratch.restore(&id);
    assert_eq!((report.failed, report.files_restored, report.files_unchanged), (0, 1, 2));
    assert!(scratch.is_restored("b", &large) && scratch.is_restored("c", &large));
    assert_eq!(scratch.names(), ["a", "b", "c", "d"]);

    let mut printed = Vec::new();
    let printed_to = store::dump::dump(&scratch.open(), &linked.expect("made"), &mut printed);
    printed_to.expect("reads").expect("grows");
    assert!(printed == large);
    let report = check(&scratch.open(), ReadData::All).expect("checks");
    assert!(report.is_clean(), "{:?}", report.losses);
}

#[test]
fn a_missing_chunk_loses_only_its_own_file() {
    let scratch = Scratch::new();
    let mut whole = Vec::new();
    let id = stores::craft(&scratch.path("store"), |put| {
        let (a, content) = file("a", 900, put);
        whole = content;
        let lost = Extent::Slice { chunk: ChunkId::of(b"lost"), offset: 5, len: 5 };
        let mut broken = File::new();
        broken.fill(MANY, put);
        broken.push(lost, b"", put);
        let (b, _) = broken.finish("b", put);
        let mut broken = File::new();
        broken.push(lost, b"", put);
        broken.fill(MANY, put);
        let (c, _) = broken.finish("c", put);
        let (d, _) = file("d", 900, put);
        tree(&[a, b, c, d], put)
    });
    let report = scratch.restore(&id);
    assert_eq!((report.failed, report.files_restored), (2, 2));
    assert!(scratch.is_restored("a", &whole) && scratch.is_restored("d", &whole));
    assert_eq!(scratch.names(), ["a", "d"]);
    assert_eq!(losses(&scratch.path("store")), ["/b", "/c"]);
}

#[test]
fn slices_beyond_their_chunk_are_reported_and_not_restored() {
    let scratch = Scratch::new();
    let end = CHUNK as u32;
    let id = stores::craft(&scratch.path("store"), |put| {
        let slices =
            [("a", end - 5, 6), ("b", end, 1), ("c", 5, u64::from(end)), ("d", end - 5, 5)];
        let entries = slices.map(|(name, offset, len)| {
            let mut file = File::new();
            file.fill(900, put);
            let chunk = put(segment::SegmentKind::Data, &old(3));
            file.push(Extent::Slice { chunk, offset, len }, b"", put);
            file.fill(900, put);
            file.finish(name, put).0
        });
        tree(&entries, put)
    });
    assert_eq!(losses(&scratch.path("store")), ["/a", "/b", "/c"]);
    assert_eq!(scratch.restore(&id).failed, 3);
    assert_eq!(scratch.names(), ["d"]);
}

/// Returns the paths that a check reports as lost.
fn losses(root: &Path) -> Vec<String> {
    let report = check(&stores::open(root, Purpose::Read), ReadData::None).expect("checks");
    report.losses.into_iter().map(|loss| loss.path).collect()
}
