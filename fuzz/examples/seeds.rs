//! Creates seed inputs for the fuzzer from a real store, git packs and dumps: `seeds STORE FILES
//! DIRECTORY`.

use forgekeep_fuzz::part;
use std::cell::RefCell;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use store::acl::AclNames;
use store::backend::Local;
use store::chunks::Chunks;
use store::entry::{Content, Entry};
use store::id::ChunkId;
use store::observe::Silent;
use store::recipe::{Extent, RecipeWriter};
use store::segment::{Row, TRAILER_LEN, Table, Trailer, skippable_len};
use store::store::{Purpose, Store};
use store::tree::{TreeReader, TreeWriter};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Length in bytes of the last member of `store.json`.
const HASH_MEMBER_LEN: usize = 83;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, store, files, directory] = &arguments[..] else {
        return Err("seeds STORE FILES DIRECTORY".into());
    };
    let seeds = Seeds { directory: Path::new(directory) };
    make(Path::new(store), &seeds)?;
    formats(Path::new(files), &seeds)
}

struct Seeds<'a> {
    directory: &'a Path,
}

impl Seeds<'_> {
    fn add(&self, target: &str, bytes: &[u8]) -> Result<()> {
        let dir = self.directory.join(target);
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join(ChunkId::of(bytes).short()), bytes)?)
    }
}

fn make(root: &Path, seeds: &Seeds<'_>) -> Result<()> {
    let config = fs::read(root.join("store.json"))?;
    seeds.add("config", &config)?;
    seeds.add("config", &config[..config.len() - HASH_MEMBER_LEN])?;
    for dir in fs::read_dir(root.join("segments"))? {
        for file in fs::read_dir(dir?.path())? {
            segment(&fs::read(file?.path())?, seeds)?;
        }
    }
    let index = tempfile::tempdir()?;
    let store = Store::open_backend(
        Arc::new(Local::new(root)),
        index.path(),
        Purpose::Read,
        Arc::new(Silent::default()),
    )?;
    for id in store.snapshot_ids()? {
        let file = fs::read(root.join(store::snapshot::file_name(&id)))?;
        seeds.add("snapshot", &file)?;
        seeds.add("snapshot", &open(&file[..file.len() / 2])?)?;
        let root = store.snapshot(&id)?.root.chunk();
        let entries = TreeReader::new(&root, &store).map(|entry| entry.map_err(|lost| lost.error));
        let entries = entries.collect::<std::result::Result<Vec<Entry>, _>>()?;
        for entry in &entries {
            recipe(&store, entry, seeds)?;
        }
        seeds.add("tree", &tree(&entries)?)?;
        seeds.add("tree", &tree(&many_like(&entries[0]))?)?;
        seeds.add("tree", &tree(&with_acls(&entries[0]))?)?;
    }
    seeds.add("recipe", &columns()?)?;
    seeds.add("midx", &midx())
}

/// Two packs and two dumps, each compared with the other. One pack is compared with itself, too.
fn formats(dir: &Path, seeds: &Seeds<'_>) -> Result<()> {
    let read = |name: &str| fs::read(dir.join(name));
    // Windows of one entry and of many; batches of 59 bytes and of some KiB.
    for limits in [[0, 1, 0], [40, 255, 4]] {
        for (new, reference) in [("new", "old"), ("old", "new"), ("new", "new")] {
            let pair = |name: &str| -> Result<[Vec<u8>; 2]> {
                let [pack, index] = [read(&format!("{name}.pack"))?, read(&format!("{name}.idx"))?];
                Ok([part(&pack), part(&index)])
            };
            let parts = [pair(new)?, pair(reference)?].concat().concat();
            seeds.add("git_pack", &[&limits[..], &[0; 4], &parts].concat())?;
        }
    }
    for (new, reference) in [("new", "old"), ("old", "new")] {
        let indexes =
            [part(&read(&format!("{new}.idx"))?), part(&read(&format!("{reference}.idx"))?)];
        seeds.add("git_idx", &[&[0; 4], &indexes.concat()[..]].concat())?;
        let (new, reference) =
            (read(&format!("{new}.sql"))?, part(&read(&format!("{reference}.sql"))?));
        for times in [0, 240] {
            let head = [times, times, 0xFF, 0xFF, 0, 0, 0, 0];
            seeds.add("dump", &[&head, &reference[..], &new].concat())?;
        }
    }
    Ok(())
}

fn segment(file: &[u8], seeds: &Seeds<'_>) -> Result<()> {
    if file.len() < 10_000 {
        seeds.add("segment", file)?;
    }
    let table_end = file.len() - TRAILER_LEN;
    let trailer = Trailer::read(&file[table_end..], file.len() as u64)?;
    let header = &file[..skippable_len(file).ok_or("no header")?];
    let table = Table::read(header, &file[trailer.table_offset as usize..table_end], &trailer)?;
    let stored = |row: &Row| &file[row.offset as usize..row.end() as usize];
    table.rows.iter().step_by(9).try_for_each(|row| seeds.add("frame", stored(row)))
}

fn open(frame: &[u8]) -> Result<Vec<u8>> {
    let len = store::codec::claimed_plain_len(frame).ok_or("no frame")?;
    let mut plain = Vec::new();
    store::codec::FrameDecoder::new().decode_unnamed(frame, len, &mut plain)?;
    Ok(plain)
}

fn recipe(store: &Store, entry: &Entry, seeds: &Seeds<'_>) -> Result<()> {
    let Content::Recipe(recipe) = &entry.content else { return Ok(()) };
    if recipe.level > 0
        && let Extent::Slice { chunk, len, .. } = recipe.extents[0]
    {
        let chunk = store.get(&chunk)?;
        seeds.add("recipe", &[&[1], &len.to_le_bytes()[..], &chunk].concat())?;
    }
    Ok(())
}

/// A recipe chunk in columns: alternating slices of two chunks, and holes.
fn columns() -> Result<Vec<u8>> {
    let input = RefCell::new(vec![1]);
    let mut writer = RecipeWriter::default();
    let put = |chunk: &[u8]| {
        input.borrow_mut().extend_from_slice(chunk);
        Ok(ChunkId::of(chunk))
    };
    for n in 0..100u32 {
        let (chunk, offset) = (ChunkId::from_bytes([n as u8 % 2; 32]), n % 40 * 350);
        let extent = match n % 9 {
            8 => Extent::Hole { len: 4096 },
            _ => Extent::Slice { chunk, offset, len: u64::from(n % 5 * 70 + 1) },
        };
        writer.push(extent, &put)?;
    }
    let len = writer.len();
    writer.finish(&put)?;
    let mut input = input.into_inner();
    input.splice(1..1, len.to_le_bytes());
    Ok(input)
}

/// Returns enough entries for more than one page.
fn many_like(entry: &Entry) -> Vec<Entry> {
    (0..300).map(|n| Entry { path: format!("n{n:03}").into(), ..entry.clone() }).collect()
}

/// Returns entries whose ACLs have the same user and different groups, with names.
fn with_acls(entry: &Entry) -> Vec<Entry> {
    let with_acl = |n: u8| {
        // Version 2; the user 7 may read, and the group n may write.
        let acl = vec![2, 0, 0, 0, 2, 0, 4, 0, 7, 0, 0, 0, 8, 0, 2, 0, n, 0, 0, 0];
        let xattrs = vec![(b"system.posix_acl_access".to_vec(), acl)];
        let name = |subject| Some(format!("{subject:?}").as_bytes().into());
        let (acl_names, _) = AclNames::of(&xattrs, name);
        Entry { path: format!("n{n:03}").into(), xattrs, acl_names, ..entry.clone() }
    };
    (0..9).map(with_acl).collect()
}

/// Returns the pages of a tree, root first. The ids count the pages.
fn tree(entries: &[Entry]) -> Result<Vec<u8>> {
    let write = |count: usize| -> Result<Vec<Vec<u8>>> {
        let pages: RefCell<Vec<Vec<u8>>> = RefCell::default();
        let put = |page: &[u8]| {
            pages.borrow_mut().push(page.to_vec());
            Ok(ChunkId::from_bytes([count.saturating_sub(pages.borrow().len()) as u8; 32]))
        };
        let mut writer = TreeWriter::default();
        entries.iter().try_for_each(|entry| writer.push(entry, &put))?;
        writer.finish(&put)?;
        Ok(pages.into_inner())
    };
    // The first pass counts the pages, because the root is written last.
    let count = write(0)?.len();
    let mut out = Vec::new();
    for page in write(count)?.iter().rev() {
        out.extend_from_slice(&u16::try_from(page.len())?.to_le_bytes());
        out.extend_from_slice(page);
    }
    Ok(out)
}

/// A multi-pack-index of two packs, up to the end of their names.
fn midx() -> Vec<u8> {
    let names = b"pack-1111.idx\0pack-2222.idx\0";
    let from = 12 + 2 * 12u64;
    let mut out = b"MIDX\x01\x01\x01\x00\x00\x00\x00\x02PNAM".to_vec();
    out.extend_from_slice(&from.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(from + names.len() as u64).to_be_bytes());
    out.extend_from_slice(names);
    out
}
