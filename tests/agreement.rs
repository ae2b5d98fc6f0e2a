//! A check that finds no loss and a restore that restores everything must agree.
//!
//! Trees are written by hand, page by page: valid ones, odd ones, and false ones of every kind.

use crate::damage::{array, bytes, head, index_page, map, number, page};
use crate::support::stores::{self, Listener, backup_options, restore_options};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rustix::fs::{Mode, OFlags, openat};
use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use store::check::{Damage, Object, ReadData, check};
use store::entry::path_cmp;
use store::id::{ChunkId, SnapshotId};
use store::observe::Event;
use store::segment::SegmentKind;
use store::store::{Purpose, Store};

/// Number of trees that are written, checked and restored.
const TREES: usize = 400;

/// One property of an entry that may be wrong.
#[derive(Debug, Clone)]
enum Odd {
    Field(u64, Vec<u8>),
    /// Inline content of this many bytes.
    Inline(usize),
    /// Holes of these lengths.
    Holes(Vec<u64>),
    /// A slice of a chunk of 100 bytes, or of a missing chunk.
    Slice {
        is_there: bool,
        offset: u64,
        len: u64,
    },
    /// A recipe of this many levels, whose extents are two holes or not a recipe.
    Levels {
        level: u64,
        is_recipe: bool,
    },
    /// A different size.
    Size(u64),
    /// One name of a file with several names.
    Linked,
}

#[derive(Debug, Clone)]
struct Raw {
    path: Vec<u8>,
    kind: u64,
    owner: u64,
    odd: Vec<Odd>,
}

/// Layout of entries in pages.
#[derive(Debug, Clone)]
struct Tree {
    entries: Vec<Raw>,
    is_sorted: bool,
    /// Number of entries in each leaf; a single leaf is the root.
    leaves: Vec<usize>,
    /// Added to the level of the index pages. May also list a leaf in a wrong place.
    level: u64,
    /// A page that is listed under another path.
    lie: Option<(usize, Vec<u8>)>,
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let plain =
        select(vec!["a", "a/b", "a/b/c", "a/d", "ab", "b", "b/x", "b/y", "c", "d", "e/f/g"]);
    let plain = plain.prop_map(|path| path.as_bytes().to_vec());
    let odd = select(vec![&b"../up"[..], b"/abs", b"a//b", b"a/", b".", b"", b"n\0", b"\xff\n"]);
    let long = select(vec![(255, 1), (256, 1), (255, 32), (255, 33), (200, 20)])
        .prop_map(|(len, depth)| vec![vec![b'n'; len]; depth].join(&b'/'));
    prop_oneof![30 => plain, 1 => odd.prop_map(<[u8]>::to_vec), 1 => long]
}

fn odd() -> impl Strategy<Value = Odd> {
    let time = |seconds: u64, is_negative: bool, nanoseconds: u64| {
        array(&[head(u8::from(is_negative), seconds), number(nanoseconds)])
    };
    let last = i64::MAX as u64;
    let xattr = |name: &[u8], len: usize| array(&[bytes(name), bytes(&vec![b'v'; len])]);
    let fields = vec![
        (3, number(0o7777)),
        (3, number(0o10000)),
        (3, bytes(b"mode")),
        (5, time(last, false, 999_999_999)),
        (5, time(last, true, 0)),
        (5, time(0, false, 1_000_000_000)),
        (6, time(0, false, u64::from(u32::MAX))),
        (5, time(u64::MAX, false, 0)),
        (7, number(u64::MAX)),
        (9, bytes(&[b't'; 4095])),
        (9, bytes(&[b't'; 4096])),
        (9, bytes(b"")),
        (9, bytes(b"t\0")),
        (11, xattr(b"user.a", 9)),
        (11, xattr(b"no-namespace", 9)),
        (11, xattr(b"", 0)),
        (11, xattr(&[b"user.", &[b'n'; 250][..]].concat(), 1)),
        (11, xattr(&[b"user.", &[b'n'; 251][..]].concat(), 1)),
        (11, xattr(b"user.a", 65_537)),
        (11, array(&[bytes(b"user.a")])),
        (12, array(&[number(4095), number(1_048_575)])),
        (12, array(&[number(4096), number(0)])),
        (12, array(&[number(0), number(1_048_576)])),
        (15, number(9)),
        (16, number(u64::MAX)),
        (99, array(&[number(1), array(&[])])),
        (99, vec![0x9F, 0xFF]),
    ];
    let lengths = select(vec![0, 1, 1 << 20, last - 1, last, last + 1, u64::MAX]);
    prop_oneof![
        6 => select(fields).prop_map(|(key, value)| Odd::Field(key, value)),
        1 => select(vec![0, 1, 512, 513, 600_000]).prop_map(Odd::Inline),
        1 => proptest::collection::vec(lengths.clone(), 1..3).prop_map(Odd::Holes),
        1 => (any::<bool>(), select(vec![0, 1, 99, 100]), select(vec![0, 1, 99, 100, 5 << 20]))
            .prop_map(|(is_there, offset, len)| Odd::Slice { is_there, offset, len }),
        1 => (1..6u64, any::<bool>())
            .prop_map(|(level, is_recipe)| Odd::Levels { level, is_recipe }),
        1 => lengths.prop_map(Odd::Size),
        2 => Just(Odd::Linked),
    ]
}

fn raw() -> impl Strategy<Value = Raw> {
    // Only root can create devices.
    let kinds = match rustix::process::geteuid().is_root() {
        true => vec![1, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7],
        false => vec![1, 1, 1, 2, 2, 2, 3, 4, 5],
    };
    let kind = prop_oneof![40 => select(kinds), 1 => select(vec![0u64, 8, 300])];
    let owner = prop_oneof![40 => 0..2u64, 1 => 2..5u64];
    let odd = prop_oneof![
        3 => Just(Vec::new()),
        1 => proptest::collection::vec(odd(), 1..3),
    ];
    (path(), kind, owner, odd).prop_map(|(path, kind, owner, odd)| Raw { path, kind, owner, odd })
}

fn tree() -> impl Strategy<Value = Tree> {
    let entries = proptest::collection::vec(raw(), 0..7);
    let leaves = proptest::collection::vec(0..4usize, 0..4);
    let is_sorted = prop_oneof![9 => Just(true), 1 => Just(false)];
    let level = prop_oneof![9 => Just(0), 1 => 1..12u64];
    let lie = prop_oneof![5 => Just(None), 1 => (0..4usize, path()).prop_map(Some)];
    (entries, is_sorted, leaves, level, lie).prop_map(|(entries, is_sorted, leaves, level, lie)| {
        Tree { entries, is_sorted, leaves, level, lie }
    })
}

type Put<'a> = &'a mut dyn FnMut(SegmentKind, &[u8]) -> ChunkId;

impl Raw {
    fn encode(&self, put: Put<'_>) -> Vec<u8> {
        let mut fields: Vec<(u64, Vec<u8>)> = vec![
            (1, bytes(&self.path)),
            (2, number(self.kind)),
            (3, number(0o700)),
            (4, number(self.owner)),
        ];
        let target = |odd: &Odd| matches!(odd, Odd::Field(9, _));
        if self.kind == 3 && !self.odd.iter().any(target) {
            fields.push((9, bytes(b"target")));
        }
        for odd in &self.odd {
            let more = odd.fields(put);
            fields.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
            fields.extend(more);
        }
        map(&fields)
    }
}

impl Odd {
    fn fields(&self, put: Put<'_>) -> Vec<(u64, Vec<u8>)> {
        match self {
            Odd::Field(key, value) => vec![(*key, value.clone())],
            Odd::Inline(len) => {
                vec![(8, number(*len as u64)), (13, bytes(&vec![b'i'; *len]))]
            }
            Odd::Holes(lengths) => {
                let holes: Vec<_> = lengths.iter().map(|len| array(&[number(*len)])).collect();
                let sum = lengths.iter().fold(0, |sum: u64, len| sum.wrapping_add(*len));
                vec![(8, number(sum)), (14, array(&holes))]
            }
            Odd::Slice { is_there, offset, len } => {
                let chunk = put(SegmentKind::Data, &[b'x'; 100]);
                let chunk = if *is_there { chunk } else { ChunkId::of(b"nowhere") };
                let slice = array(&[bytes(chunk.as_bytes()), number(*len), number(*offset)]);
                vec![(8, number(*len)), (14, array(&[slice]))]
            }
            Odd::Levels { level, is_recipe } => {
                let hole = array(&[number(4096)]);
                let mut group = if *is_recipe { array(&[hole.clone(), hole]) } else { vec![0xFF] };
                for _ in 1..*level {
                    let chunk = put(SegmentKind::Metadata, &group);
                    group = array(&[array(&[bytes(chunk.as_bytes()), number(8192)])]);
                }
                let chunk = put(SegmentKind::Metadata, &group);
                let top = array(&[array(&[bytes(chunk.as_bytes()), number(8192)])]);
                vec![(8, number(8192)), (14, top), (15, number(*level))]
            }
            Odd::Size(size) => vec![(8, number(*size))],
            Odd::Linked => vec![(7, number(5)), (10, array(&[number(1), number(3)]))],
        }
    }
}

impl Tree {
    fn write(&self, put: Put<'_>) -> ChunkId {
        let mut entries = self.entries.clone();
        if self.is_sorted {
            entries.sort_by(|a, b| path_cmp(&a.path, &b.path));
            // Otherwise nearly every tree would have a path twice, or entries below a file.
            entries.dedup_by(|later, earlier| later.path == earlier.path);
            for at in 1..entries.len() {
                let is_below =
                    entries[at].path.starts_with(&[&entries[at - 1].path[..], b"/"].concat());
                if is_below && !self.leaves.contains(&3) {
                    (entries[at - 1].kind, entries[at - 1].odd) = (2, Vec::new());
                }
            }
        }
        let names = [vec![0xF6], bytes(&[b'n'; 256])];
        let owner =
            |uid: u64, name: &Vec<u8>| array(&[number(uid), number(uid), name.clone(), vec![0xF6]]);
        let owners = [
            owner(0, &names[0]),
            owner(7, &names[0]),
            owner(u64::from(u32::MAX), &names[0]),
            owner(0, &names[1]),
        ];
        let leaf = |entries: &[Raw], put: Put<'_>| {
            let entries: Vec<_> = entries.iter().map(|entry| entry.encode(put)).collect();
            put(SegmentKind::Metadata, &page(0, &[array(&owners), array(&entries)]))
        };
        if self.leaves.is_empty() {
            return leaf(&entries, put);
        }
        let mut children: Vec<(Vec<u8>, ChunkId)> = Vec::new();
        let mut rest = &entries[..];
        for (number, count) in self.leaves.iter().chain([&usize::MAX]).enumerate() {
            let (some, others) = rest.split_at((*count).min(rest.len()));
            rest = others;
            let Some(first) = some.first().map(|entry| entry.path.clone()) else { continue };
            let first = match &self.lie {
                Some((which, path)) if *which == number => path.clone(),
                _ => first,
            };
            children.push((first, leaf(some, put)));
        }
        put(SegmentKind::Metadata, &index_page(1 + self.level, &children))
    }
}

/// Returns true if a snapshot is restored completely.
fn is_restored(store: &Store, id: &SnapshotId, target: &Path) -> bool {
    let root = store.snapshot(id).expect("reads").root.chunk();
    let report = store::restore::restore(store, &root, b"", target, &restore_options());
    let _ = fs::remove_dir_all(target);
    report.is_ok_and(|report| report.failed == 0)
}

#[test]
fn a_check_without_losses_means_a_complete_restore() {
    let dir = crate::damage::scratch();
    let root = dir.path().join("store");
    stores::init_small(&root);
    let (mut runner, strategy) = (TestRunner::deterministic(), tree());
    let trees: Vec<(Tree, ChunkId)> = {
        let store = stores::open(&root, Purpose::Write);
        let packer = store::packer::Packer::new(&store, false);
        let mut put = |kind, bytes: &[u8]| packer.put(kind, bytes).expect("puts").id;
        let trees = (0..TREES).map(|_| {
            let tree = strategy.new_tree(&mut runner).expect("a tree").current();
            let page = tree.write(&mut put);
            (tree, page)
        });
        let trees = trees.collect();
        packer.finish().expect("finishes");
        trees
    };
    // Several trees can be equal.
    let written: Vec<(SnapshotId, &Tree)> =
        trees.iter().map(|(tree, page)| (stores::record(&root, *page), tree)).collect();
    let store = stores::open(&root, Purpose::Read);
    let report = check(&store, ReadData::All).expect("checks");
    // Some trees name chunks that were never stored.
    let is_missing = |damage: &Damage| damage.object == Object::Segments;
    assert!(report.damages.iter().all(is_missing), "{:?}", report.damages);
    assert_eq!((report.damage_count, report.losses_unnamed), (1, 0));
    let lossy: HashSet<SnapshotId> = report.losses.iter().map(|loss| loss.snapshot).collect();
    for (id, tree) in &written {
        let is_whole = !lossy.contains(id);
        let losses: Vec<_> = report.losses.iter().filter(|loss| loss.snapshot == *id).collect();
        let is_restored = is_restored(&store, id, &dir.path().join("target"));
        assert_eq!(is_whole, is_restored, "{tree:#?}\n{losses:?}");
    }
    // Both verdicts occur often.
    let all: HashSet<_> = written.iter().map(|(id, _)| *id).collect();
    assert!(lossy.len() > TREES / 8 && all.len() - lossy.len() > TREES / 8, "{}", lossy.len());
}

#[test]
fn the_store_json_of_another_store_is_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, source) = (dir.path().join("store"), dir.path().join("source"));
    fs::create_dir(&source).expect("makes a directory");
    fs::write(source.join("file"), [b'x'; 5000]).expect("writes");
    stores::init_small(&root);
    stores::backup(&root, &[&source]).expect("backs up");
    let config = store::config::Config::new([8; 16], stores::SMALL, 3);
    fs::write(root.join("store.json"), config.to_bytes()).expect("writes");
    let report = check(&stores::open(&root, Purpose::Read), ReadData::None).expect("checks");
    let objects: Vec<String> =
        report.damages.iter().map(|damage| damage.object.to_string()).collect();
    assert_eq!(objects, ["store.json"], "{:?}", report.damages);
}

/// Creates `depth` nested directories with names of 200 bytes.
fn make_deep(top: &Path, depth: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut dir: OwnedFd = rustix::fs::open(top, flags, Mode::empty()).expect("opens");
    for _ in 0..depth {
        let name = "n".repeat(200);
        rustix::fs::mkdirat(&dir, &*name, Mode::RWXU).expect("makes a directory");
        dir = openat(&dir, &*name, flags, Mode::empty()).expect("opens");
    }
}

#[test]
fn an_overlong_path_is_reported_and_loses_only_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let work = dir.path().canonicalize().expect("it is there");
    let (root, source) = (work.join("store"), work.join("source"));
    for made in ["deep", "bare.git/objects", "bare.git/refs/heads"] {
        fs::create_dir_all(source.join(made)).expect("makes a directory");
    }
    fs::write(source.join("bare.git/HEAD"), "ref: refs/heads/main\n").expect("writes");
    for n in 0..300 {
        fs::write(source.join(format!("file{n}")), format!("{n}")).expect("writes");
    }
    make_deep(&source.join("deep"), 45);
    make_deep(&source.join("bare.git/refs/heads"), 45);
    stores::init_small(&root);
    // The second night finds nothing changed, and reports them again.
    for _ in 0..2 {
        let listener = Arc::<Listener>::default();
        let store = Store::open(&root, Purpose::Write, Arc::clone(&listener) as Arc<_>);
        let store = store.expect("opens");
        let options = backup_options();
        let report = stores::back_up(&store, &[&source], &options).expect("backs up");
        assert!(report.unreadable_count >= 2, "{}", report.unreadable_count);
        let events = listener.events.lock().expect("no panic");
        let named = |name: &str| {
            let is_named = |event: &&Event| match event {
                Event::Unreadable { path, .. } => path.starts_with(source.join(name)),
                _ => false,
            };
            events.iter().filter(is_named).count()
        };
        assert_eq!((named("deep"), named("bare.git")), (1, 1));
        drop(events);
        let id = report.snapshot.expect("the run is not dry");
        let checked = check(&store, ReadData::All).expect("checks");
        assert!(checked.is_clean(), "{checked:?}");
        let target = work.join("target");
        let page = store.snapshot(&id).expect("reads").root.chunk();
        let from = source.strip_prefix("/").expect("absolute").to_str().expect("plain");
        let from = from.as_bytes();
        let restored = store::restore::restore(&store, &page, from, &target, &restore_options());
        assert_eq!(restored.expect("restores").failed, 0);
        for n in 0..300 {
            let back = fs::read(target.join(format!("file{n}"))).expect("is back");
            assert_eq!(back, format!("{n}").as_bytes());
        }
        fs::remove_dir_all(&target).expect("removes");
    }
}
