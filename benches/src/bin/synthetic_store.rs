//! Creates a store with very many very small chunks, to measure memory.
//!
//! Everything in it is as a backup writes it: the store's own packer creates the segments, and a
//! snapshot names every chunk. A tenth of the chunks form one large file, the rest files of a few
//! hundred chunks each.

use chunker::Parameters;
use clap::Parser;
use forgekeep_benches::{MADE, record};
use std::path::PathBuf;
use std::sync::Arc;
use store::backend::Local;
use store::config::Config;
use store::entry::{Content, Entry, EntryKind};
use store::id::ChunkId;
use store::observe::Silent;
use store::packer::Packer;
use store::recipe::{Extent, RecipeWriter};
use store::segment;
use store::store::{Purpose, Store, init};
use store::tree::TreeWriter;

/// Creates a store whose index has very many chunks, all of them in one snapshot.
#[derive(Parser)]
struct Arguments {
    /// Directory of the store; it must be missing or empty
    store: PathBuf,
    /// Number of chunks, each of 16 to 32 random bytes
    #[arg(long, default_value_t = 10_000_000)]
    chunks: u64,
    /// Number of chunks of a file
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    chunks_per_file: u64,
}

/// Number of files in a directory.
const FILES_PER_DIRECTORY: u64 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    init(&arguments.store, &Config::new([0x5e; 16], Parameters::DEFAULT, 3))?;
    let store = Store::open(&arguments.store, Purpose::Write, Arc::new(Silent::default()))?;
    let packer = Packer::new(&store, false);
    let root = fill(&packer, arguments.chunks, arguments.chunks_per_file)?;
    packer.finish()?;
    record("synthetic", &["/large", "/small"], root)
        .write(&Local::new(&arguments.store), store::codec::Codec::new(3))?;
    Ok(())
}

/// Stores all chunks, recipes and tree pages. Returns the root page.
fn fill(packer: &Packer<'_>, chunks: u64, chunks_per_file: u64) -> store::Result<ChunkId> {
    let mut tree = TreeWriter::default();
    let large = chunks / 10;
    tree.push(&file(packer, "large".into(), 0..large)?, packer)?;
    let mut next = large;
    for number in 0.. {
        if next >= chunks {
            break;
        }
        let directory = format!("small/{:06}", number / FILES_PER_DIRECTORY);
        if number == 0 {
            tree.push(&entry("small".into(), EntryKind::Directory), packer)?;
        }
        if number % FILES_PER_DIRECTORY == 0 {
            tree.push(&entry(directory.clone(), EntryKind::Directory), packer)?;
        }
        let range = next..chunks.min(next + chunks_per_file);
        next = range.end;
        let name = format!("{directory}/{:02}", number % FILES_PER_DIRECTORY);
        tree.push(&file(packer, name, range)?, packer)?;
    }
    tree.finish(packer)
}

/// Returns a file that consists of the chunks with these numbers.
fn file(packer: &Packer<'_>, path: String, chunks: std::ops::Range<u64>) -> store::Result<Entry> {
    let mut recipe = RecipeWriter::default();
    for number in chunks {
        // The hash of the number provides random bytes that are the same every time.
        let bytes = *blake3::hash(&number.to_le_bytes()).as_bytes();
        let plain = &bytes[..16 + usize::from(bytes[31] % 17)];
        let chunk = packer.put(segment::SegmentKind::Data, plain)?.id;
        recipe.push(Extent::Slice { chunk, offset: 0, len: plain.len() as u64 }, packer)?;
    }
    let size = recipe.len();
    let content = match size {
        0 => Content::Empty,
        _ => Content::Recipe(recipe.finish(packer)?),
    };
    Ok(Entry { size, content, ..entry(path, EntryKind::File) })
}

fn entry(path: String, kind: EntryKind) -> Entry {
    let mode = if kind == EntryKind::Directory { 0o755 } else { 0o644 };
    Entry {
        mtime: Some(MADE),
        ctime: Some(MADE),
        inode: 1,
        ..Entry::new(path.into_bytes(), kind, mode)
    }
}
