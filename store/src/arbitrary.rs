//! Arbitrary values for the property tests of the other modules.

use crate::acl::{AclNames, Subject};
use crate::chunks::{Chunks, PutMetadata};
use crate::entry::{
    Content, Entry, EntryKind, HardLink, Owner, Time, Xattrs, is_valid_path, path_cmp,
};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::limits;
use crate::recipe::{Extent, Recipe};
use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Returns a configuration with `count` cases.
pub fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(count) }
}

/// Chunks in memory. Reading does not verify them, so that tests can damage them.
#[derive(Default)]
pub struct MemoryChunks(pub Mutex<BTreeMap<ChunkId, Vec<u8>>>);

impl Chunks for MemoryChunks {
    fn get_into(&self, id: &ChunkId, plain: &mut Vec<u8>) -> Result<()> {
        plain.clone_from(self.0.lock().get(id).ok_or(Error::ChunkMissing(*id))?);
        Ok(())
    }
}

impl PutMetadata for MemoryChunks {
    fn put_metadata(&self, plain: &[u8]) -> Result<ChunkId> {
        assert!(plain.len() <= limits::CHUNK_BYTES_MAX, "a chunk of {} bytes", plain.len());
        let id = ChunkId::of(plain);
        self.0.lock().insert(id, plain.to_vec());
        Ok(id)
    }
}

/// Arbitrary bytes.
pub fn noise() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

/// A change at one position in some bytes.
#[derive(Debug, Clone)]
pub enum Change {
    /// Another value for a byte.
    Replace(Index, u8),
    /// An additional byte.
    Insert(Index, u8),
    /// A missing byte.
    Remove(Index),
    /// A missing end.
    Cut(Index),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Replace(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Change::Insert(at, byte) => bytes.insert(at.index(bytes.len() + 1), *byte),
            Change::Remove(at) if !bytes.is_empty() => drop(bytes.remove(at.index(bytes.len()))),
            Change::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            _ => {}
        }
    }
}

/// A few changes. Most replace a byte, because that keeps the rest readable.
pub fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        6 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        1 => any::<Index>().prop_map(Change::Remove),
        1 => any::<Index>().prop_map(Change::Cut),
    ];
    vec(change, 1..5)
}

/// Applies these changes to `bytes`.
pub fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    changes.iter().for_each(|change| change.apply(&mut bytes));
    bytes
}

/// Any id.
pub fn id() -> impl Strategy<Value = ChunkId> {
    any::<[u8; 32]>().prop_map(ChunkId::from_bytes)
}

/// An extent as in a file: some share the same few chunks, some continue others.
pub fn extent() -> impl Strategy<Value = Extent> {
    let chunk = prop_oneof![id(), (0..3u8).prop_map(|n| ChunkId::from_bytes([n; 32]))];
    let most = limits::CHUNK_BYTES_MAX as u32;
    let offset = prop_oneof![Just(0), 0..9u32, 0..most];
    let slice =
        (chunk, offset, prop_oneof![1..9u32, 1..=most]).prop_map(move |(chunk, offset, len)| {
            let len = u64::from(len.min(most - offset));
            Extent::Slice { chunk, offset, len }
        });
    let hole = prop_oneof![1..100u64, 1..1u64 << 40].prop_map(|len| Extent::Hole { len });
    prop_oneof![4 => slice, 1 => hole]
}

/// An element of a recipe of any level.
fn part() -> impl Strategy<Value = Extent> {
    let list = (id(), 1..1u64 << 40);
    let list = list.prop_map(|(chunk, len)| Extent::Slice { chunk, offset: 0, len });
    prop_oneof![4 => extent(), 1 => list]
}

/// A path of few letters, so that many paths are similar; some sort next to `/`.
pub fn path() -> impl Strategy<Value = Vec<u8>> {
    let byte = proptest::sample::select(&b"ab.-\x01\xff "[..]);
    vec(vec(byte, 1..4), 1..4)
        .prop_map(|parts| parts.join(&b'/'))
        .prop_filter("no path of an entry", |path| is_valid_path(path))
}

/// Up to `max` different paths in tree order.
pub fn paths(max: usize) -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(path(), 0..max).prop_map(|mut paths| {
        paths.sort_by(|a, b| path_cmp(a, b));
        paths.dedup();
        paths
    })
}

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0..1_000_000_000u32)
        .prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds })
}

/// An owner; often the same one.
pub fn owner() -> impl Strategy<Value = Arc<Owner>> {
    let name = option::of(vec(any::<u8>(), 0..4));
    let numbers = prop_oneof![Just((0, 0)), (0..u32::MAX, 0..u32::MAX)];
    (numbers, name.clone(), name)
        .prop_map(|((uid, gid), user, group)| Arc::new(Owner { uid, gid, user, group }))
}

/// Returns a POSIX ACL with an entry for each of these users and groups.
pub fn acl(subjects: &[Subject]) -> Vec<u8> {
    let others = [(0x01, u32::MAX), (0x04, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)];
    let named = subjects.iter().map(|subject| match subject {
        Subject::User(id) => (0x02, *id),
        Subject::Group(id) => (0x08, *id),
    });
    let entry = |(tag, id): (u16, u32)| {
        [&tag.to_le_bytes()[..], &6_u16.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let entries: Vec<u8> = others.into_iter().chain(named).flat_map(entry).collect();
    [&2_u32.to_le_bytes()[..], &entries].concat()
}

/// A few users and groups, so that many ACLs share some.
fn subject() -> impl Strategy<Value = Subject> {
    let id = prop_oneof![4 => 0..3u32, 1 => any::<u32>()];
    (any::<bool>(), id).prop_map(|(is_group, id)| match is_group {
        true => Subject::Group(id),
        false => Subject::User(id),
    })
}

/// Attributes with ACLs, and names for some users and groups in them. Most entries agree on names.
fn acls() -> impl Strategy<Value = (Xattrs, Option<Arc<AclNames>>)> {
    let value = prop_oneof![4 => vec(subject(), 0..5).prop_map(|all| acl(&all)), 1 => noise()];
    let attributes =
        [&b"system.posix_acl_access"[..], b"system.posix_acl_default"].map(<[u8]>::to_vec);
    let xattr = (proptest::sample::select(attributes.to_vec()), value);
    let usual = |subject: Subject| Some(format!("{subject:?}").into_bytes());
    let other = option::of(vec(any::<u8>(), 0..4));
    (vec(xattr, 0..3), prop_oneof![3 => Just(None), 1 => other.prop_map(Some)]).prop_map(
        move |(xattrs, other)| {
            let name = |subject| other.clone().unwrap_or_else(|| usual(subject)).map(Arc::from);
            let (names, _) = AclNames::of(&xattrs, name);
            (xattrs, names)
        },
    )
}

fn content() -> impl Strategy<Value = Content> {
    let recipe = (0..4u8, vec(part(), 0..5))
        .prop_map(|(level, extents)| Content::Recipe(Recipe { level, extents }));
    prop_oneof![Just(Content::Empty), vec(any::<u8>(), 0..40).prop_map(Content::Inline), recipe]
}

/// Bytes without NUL, at least one.
fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=255u8, 1..9)
}

/// An entry with values that `stat`, `listxattr`, names and recipes could have on any system, at
/// the path `x`. Some values exceed the limits.
pub fn found() -> impl Strategy<Value = Entry> {
    let nanoseconds = prop_oneof![0..1_000_000_000u32, 999_999_990..1_000_000_010u32, any::<u32>()];
    let time = (any::<i64>(), nanoseconds)
        .prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds });
    let number = prop_oneof![4 => 0..9u32, 1 => Just(u32::MAX)];
    let name =
        option::of(prop_oneof![4 => vec(any::<u8>(), 0..4), 1 => vec(any::<u8>(), 250..260)]);
    let owner = (number.clone(), number, name.clone(), name)
        .prop_map(|(uid, gid, user, group)| Arc::new(Owner { uid, gid, user, group }));
    let xattr_name = prop_oneof![4 => text(), 1 => vec(1..=255u8, 250..260)];
    let len = prop_oneof![8 => 0..9usize, 1 => 65_530..65_540usize];
    let value = len.prop_map(|len| vec![b'v'; len]);
    let count = prop_oneof![4 => 0..4usize, 1 => 0..90usize];
    let xattrs = (vec((xattr_name, value), 1..4), count)
        .prop_map(|(some, count)| some.into_iter().cycle().take(count).collect::<Vec<_>>());
    let target = prop_oneof![4 => text(), 1 => vec(1..=255u8, 4090..4100), 1 => Just(Vec::new())];
    let change = prop_oneof![
        time.prop_map(Found::Mtime),
        owner.prop_map(Found::Owner),
        xattrs.prop_map(Found::Xattrs),
        target.prop_map(Found::Target),
        any::<u32>().prop_map(Found::Mode),
        any::<(u32, u32)>().prop_map(Found::Device),
        vec(any::<u8>(), 500..520).prop_map(Found::Inline),
        prop_oneof![1..9u64, i64::MAX as u64 - 1..i64::MAX as u64 + 2].prop_map(Found::Hole),
    ];
    (entry(), vec(change, 0..4)).prop_map(|(mut entry, changes)| {
        changes.into_iter().for_each(|change| change.apply(&mut entry));
        entry
    })
}

/// One unusual value.
#[derive(Debug, Clone)]
enum Found {
    Mtime(Time),
    Owner(Arc<Owner>),
    Xattrs(Vec<(Vec<u8>, Vec<u8>)>),
    Target(Vec<u8>),
    Mode(u32),
    Device((u32, u32)),
    Inline(Vec<u8>),
    Hole(u64),
}

impl Found {
    fn apply(self, entry: &mut Entry) {
        match self {
            Found::Mtime(time) => (entry.mtime, entry.ctime) = (Some(time), Some(time)),
            Found::Owner(owner) => entry.owner = owner,
            Found::Xattrs(xattrs) => entry.xattrs = xattrs,
            Found::Target(target) => entry.target = target,
            Found::Mode(mode) => entry.mode = mode,
            Found::Device(device) => entry.device = Some(device),
            Found::Inline(bytes) => entry.content = Content::Inline(bytes),
            Found::Hole(len) => {
                let extents = vec![Extent::Hole { len }];
                entry.content = Content::Recipe(Recipe { level: 0, extents });
            }
        }
        entry.size = content_len(&entry.content);
    }
}

/// A path that a source could have, possibly too long: like [`path`], with some long names.
pub fn found_path() -> impl Strategy<Value = Vec<u8>> {
    let long = prop_oneof![250..260usize, 1..255usize];
    let long = (long, 1..40usize).prop_map(|(len, depth)| vec![vec![b'n'; len]; depth].join(&b'/'));
    prop_oneof![4 => path(), 1 => long]
}

/// An entry that a backup could have made, at the path `x`.
pub fn entry() -> impl Strategy<Value = Entry> {
    let kind = proptest::sample::select(&EntryKind::ALL[..]);
    let stamps = (option::of(time()), option::of(time()), any::<u64>());
    let link = option::of((any::<u64>(), any::<u64>()));
    let xattrs = vec((text(), vec(any::<u8>(), 0..9)), 0..3);
    let device = option::of((0..=limits::DEVICE_MAJOR_MAX, 0..=limits::DEVICE_MINOR_MAX));
    let xattrs = (xattrs, prop_oneof![2 => Just(Default::default()), 1 => acls()]);
    let rest = (text(), content(), link, xattrs, device, 0..9u64);
    (kind, 0..=0o7777u32, owner(), stamps, rest).prop_map(|(kind, mode, owner, stamps, rest)| {
        let (mtime, ctime, inode) = stamps;
        let (target, content, link, (mut xattrs, (acls, acl_names)), device, unused) = rest;
        xattrs.extend(acls);
        let content = if kind == EntryKind::File { content } else { Content::Empty };
        Entry {
            path: b"x".to_vec(),
            kind,
            mode,
            owner,
            mtime,
            ctime,
            inode,
            size: content_len(&content),
            target: if kind == EntryKind::Symlink { target } else { Vec::new() },
            hard_link: link.map(|(file_system, names)| HardLink { file_system, names }),
            xattrs,
            acl_names,
            device,
            content,
            unused,
        }
    })
}

fn content_len(content: &Content) -> u64 {
    match content {
        Content::Empty => 0,
        Content::Inline(bytes) => bytes.len() as u64,
        Content::Recipe(recipe) => recipe.extents.iter().map(Extent::len).sum(),
    }
}
