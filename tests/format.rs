//! The description of the format, and the script that needs nothing else.

use crate::support::sandbox::{FORGEKEEP, Outcome, Run, Sandbox};
use crate::support::stores;
use crate::support::tree::{Acl, acl, build_everything, compare, make_writable_and_remove};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use store::acl::Subject;
use store::check::ReadData;
use store::codec::FrameDecoder;
use store::entry::{Content, Entry, EntryKind, Time};
use store::id::{ChunkId, SegmentId, SnapshotId};
use store::recipe::{Extent, Recipe, RecipeWriter};
use store::store::Purpose;
use store::tree::{TreeReader, TreeWriter};
use store::{limits, segment};

const DOCUMENT: &str = include_str!("../docs/format.md");

/// Returns table rows of two or more cells whose first cell is a constant's name.
fn documented() -> BTreeMap<&'static str, &'static str> {
    let row = |line: &'static str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        let is_constant = name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        is_constant.then_some((name, cells.next()?.trim_end_matches('|').trim()))
    };
    DOCUMENT.lines().filter_map(row).collect()
}

#[test]
fn documented_constants_match_the_code() {
    let tag = |tag: &[u8; 8]| format!("{:?}", std::str::from_utf8(tag).expect("ASCII"));
    let expected: BTreeMap<&str, String> = [
        ("SKIPPABLE_MAGIC", format!("0x{:08X}", segment::SKIPPABLE_MAGIC)),
        ("SKIPPABLE_HEAD_LEN", segment::SKIPPABLE_HEAD_LEN.to_string()),
        ("TAG_HEADER", tag(segment::TAG_HEADER)),
        ("TAG_TABLE", tag(segment::TAG_TABLE)),
        ("TAG_TRAILER", tag(segment::TAG_TRAILER)),
        ("VERSION", segment::VERSION.to_string()),
        ("KIND_DATA", (segment::SegmentKind::Data as u8).to_string()),
        ("KIND_METADATA", (segment::SegmentKind::Metadata as u8).to_string()),
        ("MODE_PLAIN", segment::MODE_PLAIN.to_string()),
        ("SALT_LEN", segment::SALT_LEN.to_string()),
        ("COMMITMENT_LEN", segment::COMMITMENT_LEN.to_string()),
        ("HEADER_FIXED_LEN", segment::HEADER_FIXED_LEN.to_string()),
        ("ROW_LEN", segment::ROW_LEN.to_string()),
        ("TRAILER_LEN", segment::TRAILER_LEN.to_string()),
        ("CHUNK_BYTES_MAX", limits::CHUNK_BYTES_MAX.to_string()),
        ("STORED_BYTES_MAX", limits::STORED_BYTES_MAX.to_string()),
        ("SEGMENT_BYTES_MAX", limits::SEGMENT_BYTES_MAX.to_string()),
        ("DATA_SEGMENT_BYTES", limits::DATA_SEGMENT_BYTES.to_string()),
        ("METADATA_SEGMENT_BYTES", limits::METADATA_SEGMENT_BYTES.to_string()),
        ("SEGMENT_CHUNKS_MAX", limits::SEGMENT_CHUNKS_MAX.to_string()),
        ("PAGE_ITEMS_MAX", limits::PAGE_ITEMS_MAX.to_string()),
        ("PATH_BYTES_MAX", limits::PATH_BYTES_MAX.to_string()),
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX.to_string()),
        ("TARGET_BYTES_MAX", limits::TARGET_BYTES_MAX.to_string()),
        ("FILE_BYTES_MAX", limits::FILE_BYTES_MAX.to_string()),
        ("XATTR_NAME_BYTES_MAX", limits::XATTR_NAME_BYTES_MAX.to_string()),
        ("XATTR_BYTES_MAX", limits::XATTR_BYTES_MAX.to_string()),
        ("XATTRS_BYTES_MAX", limits::XATTRS_BYTES_MAX.to_string()),
        ("OWNER_NAME_BYTES_MAX", limits::OWNER_NAME_BYTES_MAX.to_string()),
        ("ACL_NAMES_BYTES_MAX", limits::ACL_NAMES_BYTES_MAX.to_string()),
        ("PAGE_NAMES_MAX", limits::PAGE_NAMES_MAX.to_string()),
        ("DEVICE_MAJOR_MAX", limits::DEVICE_MAJOR_MAX.to_string()),
        ("DEVICE_MINOR_MAX", limits::DEVICE_MINOR_MAX.to_string()),
        ("TREE_LEVELS_MAX", limits::TREE_LEVELS_MAX.to_string()),
        ("RECIPE_LEVELS_MAX", limits::RECIPE_LEVELS_MAX.to_string()),
        ("RECIPE_EXTENTS_MAX", limits::RECIPE_EXTENTS_MAX.to_string()),
        ("RECIPE_COLUMNS_MAX", limits::RECIPE_COLUMNS_MAX.to_string()),
        ("INLINE_BYTES_MAX", limits::INLINE_BYTES_MAX.to_string()),
        ("TAG_BYTES_MAX", limits::TAG_BYTES_MAX.to_string()),
        ("RECORD_BYTES_MAX", limits::RECORD_BYTES_MAX.to_string()),
    ]
    .into();
    let documented = documented().into_iter().map(|(name, value)| (name, value.to_owned()));
    assert_eq!(documented.collect::<BTreeMap<_, _>>(), expected);
}

#[test]
fn the_documented_example_is_a_valid_segment() {
    let (_, rest) = DOCUMENT.split_once("```hexdump\n").expect("there is a dump");
    let (dump, _) = rest.split_once("```").expect("the dump ends");
    let hex: String = dump.lines().flat_map(|line| line[10..49].split(' ')).collect();
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect();
    let name = SegmentId::of(&bytes).to_string();
    assert!(DOCUMENT.contains(&name), "{name}");
    assert!(DOCUMENT.contains(&format!("data segment of {} bytes", bytes.len())));
    let trailer = &bytes[bytes.len() - segment::TRAILER_LEN..];
    let trailer = segment::Trailer::read(trailer, bytes.len() as u64).expect("a trailer");
    let header_len = segment::skippable_len(&bytes).expect("a header");
    let table_end = bytes.len() - segment::TRAILER_LEN;
    let table = &bytes[trailer.table_offset as usize..table_end];
    let table = segment::Table::read(&bytes[..header_len], table, &trailer).expect("a table");
    let [row] = table.rows[..] else { panic!("one row") };
    assert_eq!(row.id, ChunkId::of(&[b'x'; 700]));
    let stored = &bytes[row.offset as usize..row.end() as usize];
    let mut plain = Vec::new();
    FrameDecoder::new().decode(&row.id, stored, row.plain_len as usize, &mut plain).expect("opens");
    assert_eq!(plain, [b'x'; 700]);
}

/// Writes a copy of a segment of the store with another version and mode, and a matching hash.
fn write_changed_segment(store: &Path, version: u16, mode: u8) {
    let dirs =
        std::fs::read_dir(store.join("segments")).expect("lists").map(|dir| dir.expect("is"));
    let files = dirs.flat_map(|dir| std::fs::read_dir(dir.path()).expect("lists"));
    let path = files.map(|file| file.expect("is").path()).next().expect("a segment");
    let mut bytes = std::fs::read(path).expect("reads");
    let body_end = bytes.len() - segment::TRAILER_LEN;
    let trailer = segment::Trailer::read(&bytes[body_end..], bytes.len() as u64).expect("reads");
    let header_len = segment::skippable_len(&bytes).expect("a header");
    bytes[16..18].copy_from_slice(&version.to_le_bytes());
    bytes[19] = mode;
    let table = &bytes[trailer.table_offset as usize..body_end];
    let hash = segment::frame_hash(&bytes[..header_len], table);
    bytes.splice(body_end.., segment::Trailer { hash, ..trailer }.to_frame());
    std::fs::write(store.join(segment::file_name(&SegmentId::of(&bytes))), &bytes).expect("writes");
}

#[test]
fn files_of_a_newer_version_are_not_reported_as_damaged() {
    for change in ["version", "mode", "feature for writers", "feature for readers"] {
        let sandbox = Sandbox::new();
        sandbox.write("source/file", b"content ".repeat(200));
        sandbox.run(["init"]).ok();
        sandbox.run(["backup", "source"]).ok();
        let store = sandbox.path("store");
        match change {
            "version" => write_changed_segment(&store, 3, 0),
            "mode" => write_changed_segment(&store, 2, 1),
            "feature for writers" => sandbox.write("store/features/packs", "writers\n"),
            _ => sandbox.write("store/features/packs", "readers\n"),
        }
        let newer = |arguments: &[&str]| {
            let outcome = sandbox.run(arguments).fails(1, &["newer version", "upgrade forgekeep"]);
            let output = outcome.all_output();
            assert!(!output.contains("damaged"), "{change}: {output}");
        };
        newer(&["backup", "source"]);
        if change == "feature for writers" {
            sandbox.run(["check"]).ok();
            sandbox.run(["restore", "latest", "--target", "restored"]).ok();
        } else {
            newer(&["check"]);
            newer(&["restore", "latest", "--target", "restored"]);
        }
        assert_eq!(sandbox.has("restored"), change == "feature for writers");
    }
}

fn restore_py(store: &Path, snapshot: &str, target: &Path) -> Outcome {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/restore.py");
    Run::program("python3").args([&script, store]).args([snapshot]).args([target]).run()
}

fn forgekeep(store: &Path, arguments: &[&str]) {
    Run::program(FORGEKEEP).args(["--store"]).args([store]).args(arguments).run().ok();
}

/// Trees that only this type can remove.
struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("it is there").join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for name in ["source", "target"] {
            // Best effort: a failed test has a more important error.
            let _ = make_writable_and_remove(&self.path(name));
        }
    }
}

#[test]
fn the_script_restores_everything() {
    let scratch = Scratch::new();
    let (source, store, target) =
        (scratch.path("source"), scratch.path("store"), scratch.path("target"));
    fs::create_dir(&source).expect("makes the source");
    build_everything(&source).expect("builds a tree");
    forgekeep(&store, &["init"]);
    forgekeep(&store, &["backup", source.to_str().expect("a plain path")]);
    let record = fs::read_dir(store.join("snapshots")).expect("lists").next().expect("a snapshot");
    let id = record.expect("lists").file_name().into_string().expect("hexadecimal");

    let output = restore_py(&store, &id[..8], &target);
    assert_eq!(output.ok().stderr, "");
    let restored = target.join(source.strip_prefix("/").expect("absolute"));
    let differences = compare(&source, &restored);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Returns the names in the ACLs of the entry whose path ends with `name`.
fn acl_names(store: &Path, id: &SnapshotId, name: &str) -> Vec<(Subject, String)> {
    let store = stores::open(store, Purpose::Read);
    let root = store.snapshot(id).expect("reads").root.chunk();
    let found = TreeReader::new(&root, &store)
        .map(|entry| entry.expect("reads"))
        .find(|entry| entry.name() == name.as_bytes())
        .expect("is in the tree");
    let names = found.acl_names.iter().flat_map(|names| names.iter());
    names.map(|(of, name)| (of, String::from_utf8_lossy(name).into_owned())).collect()
}

#[test]
fn names_of_users_and_groups_in_acls_are_stored_for_the_script_to_skip() {
    let scratch = Scratch::new();
    let (source, store, target) =
        (scratch.path("source"), scratch.path("store"), scratch.path("target"));
    fs::create_dir_all(source.join("dir")).expect("makes directories");
    for name in ["both", "nameless", "plain"] {
        fs::write(source.join(name), name).expect("writes");
    }
    for (name, acl) in [
        ("both", "u:www-data:r,g:www-data:rw,u:4000000001:r"),
        ("nameless", "u:4000000001:r,g:4000000002:r"),
        ("dir", "d:g:www-data:rwx,g:4000000002:rx"),
    ] {
        Run::program("setfacl").args(["-m", acl]).args([source.join(name)]).run().ok();
    }
    stores::init_small(&store);
    let id = stores::backup(&store, &[&source]).expect("backs up");
    let number = |of: &str| {
        let output = Run::program("getent").args([of, "www-data"]).run().ok().stdout;
        output.split(':').nth(2).expect("a third field").parse().expect("a number")
    };
    let user = (Subject::User(number("passwd")), "www-data".to_owned());
    let group = (Subject::Group(number("group")), "www-data".to_owned());
    assert_eq!(acl_names(&store, &id, "both"), [user.clone(), group.clone()]);
    assert_eq!(acl_names(&store, &id, "dir"), [group]);
    for name in ["nameless", "plain"] {
        assert_eq!(acl_names(&store, &id, name), []);
    }
    // The next backup keeps the names of unchanged files.
    let next = stores::backup(&store, &[&source]).expect("backs up");
    assert_eq!(acl_names(&store, &next, "both")[0], user);
    let checked = store::check::check(&stores::open(&store, Purpose::Read), ReadData::All);
    assert!(checked.expect("checks").is_clean());

    assert_eq!(restore_py(&store, &id.to_string(), &target).ok().stderr, "");
    let restored = target.join(source.strip_prefix("/").expect("absolute"));
    let differences = compare(&source, &restored);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_leaf_without_names_is_read() {
    use super::damage::{array, bytes, leaf, raw};
    let scratch = Scratch::new();
    let (store, target) = (scratch.path("store"), scratch.path("target"));
    stores::init_small(&store);
    let value = acl(&[
        (Acl::Owner, 6),
        (Acl::User(0), 4),
        (Acl::GroupOwner, 4),
        (Acl::Mask, 4),
        (Acl::Other, 0),
    ]);
    let id = stores::craft(&store, |put| {
        let attributes = array(&[bytes(b"system.posix_acl_access"), bytes(&value)]);
        let page = leaf(&[raw("file", 1, &[(11, attributes)])]);
        put(segment::SegmentKind::Metadata, &page)
    });
    assert_eq!(acl_names(&store, &id, "file"), []);
    restore_py(&store, &id.to_string(), &target).ok();
    let mut found = [0; 100];
    let len = rustix::fs::getxattr(target.join("file"), "system.posix_acl_access", &mut found[..]);
    assert_eq!(found[..len.expect("has an ACL")], value);
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    let mtime = Some(Time { seconds: -1, nanoseconds: 999_999_999 });
    Entry { mtime, ..Entry::new(path.into(), kind, 0o700) }
}

#[test]
fn the_script_follows_recipes_of_two_levels_and_many_pages() {
    let scratch = Scratch::new();
    let (store, target) = (scratch.path("store"), scratch.path("target"));
    stores::init_small(&store);
    let mut expected = Vec::new();
    let id = stores::craft(&store, |put| {
        let letters = [0, 1, 2, 3].map(|n| put(segment::SegmentKind::Data, &[n; 9]));
        let put = |bytes: &[u8]| Ok(put(segment::SegmentKind::Metadata, bytes));
        let mut recipe = RecipeWriter::default();
        for n in 0..60 * 4096_usize {
            let chunk = letters[n % 4];
            let extent = match n % 1000 {
                999 => Extent::Hole { len: 2 },
                _ => Extent::Slice { chunk, offset: 0, len: 1 },
            };
            match extent {
                Extent::Hole { .. } => expected.extend([0, 0]),
                Extent::Slice { .. } => expected.push((n % 4) as u8),
            }
            recipe.push(extent, &put).expect("puts");
        }
        let size = recipe.len();
        let recipe = recipe.finish(&put).expect("puts");
        assert_eq!(recipe.level, 2);
        let mut tree = TreeWriter::default();
        for n in 0..400 {
            tree.push(&entry(&format!("dir-{n:03}"), EntryKind::Directory), &put).expect("puts");
        }
        tree.push(&file("file", recipe, size), &put).expect("puts");
        tree.finish(&put).expect("puts")
    });
    let output = restore_py(&store, &id.to_string(), &target);
    output.ok();
    assert!(fs::read(target.join("file")).expect("restored") == expected);
    assert_eq!(fs::read_dir(&target).expect("lists").count(), 401);
}

fn file(name: &str, recipe: Recipe, size: u64) -> Entry {
    Entry { content: Content::Recipe(recipe), size, ..entry(name, EntryKind::File) }
}

#[test]
fn the_script_reads_recipes_in_columns() {
    let scratch = Scratch::new();
    let (store, target) = (scratch.path("store"), scratch.path("target"));
    stores::init_small(&store);
    let contents: Vec<Vec<u8>> = (0..40u8)
        .map(|n| (0..5000u32).map(|at| (at.wrapping_mul(at + u32::from(n)) >> 3) as u8).collect())
        .collect();
    let mut expected = Vec::new();
    let id = stores::craft(&store, |put| {
        let ids: Vec<ChunkId> =
            contents.iter().map(|content| put(segment::SegmentKind::Data, content)).collect();
        let groups = RefCell::new(Vec::new());
        let put = |bytes: &[u8]| {
            groups.borrow_mut().push(bytes[0]);
            Ok(put(segment::SegmentKind::Metadata, bytes))
        };
        let mut recipe = RecipeWriter::default();
        for n in 0..100_000_usize {
            // Forwards, backwards, whole chunks and holes.
            let (which, offset, len) = (n % 37 + n % 3, n * 7 % 4000, n % 150 + 1);
            let extent = match n % 500 {
                0 => Extent::Slice { chunk: ids[which], offset: 0, len: 5000 },
                1 => Extent::Hole { len: 70_000 },
                _ => Extent::Slice { chunk: ids[which], offset: offset as u32, len: len as u64 },
            };
            match n % 500 {
                0 => expected.extend_from_slice(&contents[which]),
                1 => expected.resize(expected.len() + 70_000, 0),
                _ => expected.extend_from_slice(&contents[which][offset..offset + len]),
            }
            recipe.push(extent, &put).expect("puts");
        }
        let size = recipe.len();
        let recipe = recipe.finish(&put).expect("puts");
        let mut tree = TreeWriter::default();
        tree.push(&file("file", recipe, size), &put).expect("puts");
        let root = tree.finish(&put).expect("puts");
        let groups = groups.into_inner();
        // At least two groups, each an array of four.
        assert!(groups.iter().filter(|first| **first == 0x84).count() > 1, "{groups:?}");
        root
    });
    restore_py(&store, &id.to_string(), &target).ok();
    assert!(fs::read(target.join("file")).expect("restored") == expected);
}

#[test]
fn the_script_names_damage_and_restores_the_rest() {
    let scratch = Scratch::new();
    let (source, store, target) =
        (scratch.path("source"), scratch.path("store"), scratch.path("target"));
    fs::create_dir(&source).expect("makes the source");
    fs::write(source.join("inline"), "short").expect("writes");
    fs::write(source.join("long"), [b'l'; 3000]).expect("writes");
    stores::init_small(&store);
    let id = stores::backup(&store, &[&source]).expect("backs up").to_string();
    let mut segments: Vec<PathBuf> = Vec::new();
    for dir in fs::read_dir(store.join("segments")).expect("lists") {
        let files = fs::read_dir(dir.expect("lists").path()).expect("lists");
        segments.extend(files.map(|file| file.expect("lists").path()));
    }
    let data = segments.iter().find(|path| fs::read(path).expect("reads")[18] == 1);
    let data = data.expect("a data segment");
    let mut bytes = fs::read(data).expect("reads");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(data, bytes).expect("writes");

    let output = restore_py(&store, &id, &target);
    let errors = output.ends_with(1).stderr;
    let name = data.file_name().and_then(|name| name.to_str()).expect("hexadecimal");
    assert!(errors.contains(name) && errors.contains("/long"), "{errors}");
    let restored = target.join(source.strip_prefix("/").expect("absolute"));
    assert_eq!(fs::read(restored.join("inline")).expect("restored"), b"short");
    assert!(!restored.join("long").exists());
}

#[test]
fn the_script_never_leaves_the_target() {
    let scratch = Scratch::new();
    let store = scratch.path("store");
    stores::init_small(&store);
    let outside = scratch.path("outside");
    fs::create_dir(&outside).expect("makes a directory");
    for path in ["../up", "a/../../up", "/abs", "link/in", "a//b", "./x"] {
        let target = scratch.path("target");
        let id = stores::craft(&store, |put| {
            let link = outside.to_str().expect("plain");
            let page = super::damage::leaf(&[
                super::damage::raw_symlink("link", link),
                super::damage::raw_file(path, b"evil"),
            ]);
            put(segment::SegmentKind::Metadata, &page)
        });
        let output = restore_py(&store, &id.to_string(), &target);
        output.ends_with(1);
        assert_eq!(fs::read_dir(&outside).expect("lists").count(), 0, "{path}");
        assert!(!scratch.path("up").exists(), "{path}");
        assert_eq!(fs::read_dir(&target).expect("lists").count(), 1, "{path}");
        make_writable_and_remove(&target).expect("removes");
    }
}
