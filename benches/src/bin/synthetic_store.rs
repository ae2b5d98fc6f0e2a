//! Creates a store with very many small chunks, to measure memory and time.
//!
//! Everything in it is as a backup writes it: the store's own packer creates the segments, and the
//! snapshots name every chunk. A tenth of the chunks of the first night form one large file, the rest
//! files of a few hundred chunks each. Each later night replaces some of these files by new content.

use chunker::Parameters;
use clap::Parser;
use forgekeep_benches::{MADE, of_night, record};
use std::path::PathBuf;
use std::sync::Arc;
use store::backend::Local;
use store::codec::Codec;
use store::config::Config;
use store::entry::{Content, Entry, EntryKind};
use store::id::{ChunkId, SnapshotId};
use store::observe::Silent;
use store::packer::Packer;
use store::recipe::{Extent, RecipeWriter};
use store::segment;
use store::store::{Purpose, Store, init};
use store::tree::TreeWriter;

/// Creates a store whose index has very many chunks, all of them in a snapshot.
#[derive(Parser)]
struct Arguments {
    /// Directory of the store; it must be missing or empty
    store: PathBuf,
    /// Number of chunks
    #[arg(long, default_value_t = 10_000_000)]
    chunks: u64,
    /// Random bytes of a chunk; without it, 16 to 32
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    chunk_bytes: Option<u32>,
    /// Number of chunks of a file
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    chunks_per_file: u64,
    /// Number of nights; half of the chunks are new after the first one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    nights: u64,
}

/// Number of files in a directory.
const FILES_PER_DIRECTORY: u64 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    init(&arguments.store, &Config::new([0x5e; 16], Parameters::DEFAULT, 3))?;
    let store = Store::open(&arguments.store, Purpose::Write, Arc::new(Silent::default()))?;
    let backend = Local::new(&arguments.store);
    let later = arguments.nights - 1;
    let first = if later == 0 { arguments.chunks } else { arguments.chunks / 2 };
    let mut source = Source::new(&arguments);
    let mut parent: Option<SnapshotId> = None;
    for night in 0..arguments.nights {
        let packer = Packer::new(&store, false);
        match night {
            0 => source.fill(&packer, first)?,
            _ => source.replace(&packer, (arguments.chunks - first) / later)?,
        }
        let root = source.tree(&packer)?;
        packer.finish()?;
        let record = record("synthetic", &["/large", "/small"], root);
        let record = of_night(record, arguments.nights - night, parent);
        parent = Some(record.write(&backend, Codec::new(3))?);
    }
    Ok(())
}

/// The files of a night.
struct Source<'a> {
    arguments: &'a Arguments,
    /// The large file, then the others.
    files: Vec<Entry>,
    /// Number of the next chunk.
    next: u64,
}

impl<'a> Source<'a> {
    fn new(arguments: &'a Arguments) -> Source<'a> {
        Source { arguments, files: Vec::new(), next: 0 }
    }

    /// Stores the files of the first night, which have this many chunks.
    fn fill(&mut self, packer: &Packer<'_>, chunks: u64) -> store::Result<()> {
        let large = self.file(packer, "large".into(), chunks / 10)?;
        self.files.push(large);
        for number in 0.. {
            let left = chunks - self.next;
            if left == 0 {
                break;
            }
            let directory = directory(number / FILES_PER_DIRECTORY);
            let name = format!("{directory}/{:02}", number % FILES_PER_DIRECTORY);
            let file = self.file(packer, name, left.min(self.arguments.chunks_per_file))?;
            self.files.push(file);
        }
        Ok(())
    }

    /// Replaces as many small files as have this many chunks, the same ones each night.
    fn replace(&mut self, packer: &Packer<'_>, chunks: u64) -> store::Result<()> {
        let end = self.next + chunks;
        for at in 1..self.files.len() {
            let count = (end - self.next).min(self.arguments.chunks_per_file);
            if count == 0 {
                break;
            }
            let path = self.files[at].path.clone();
            let path = String::from_utf8(path).expect("a path of this program");
            self.files[at] = self.file(packer, path, count)?;
        }
        Ok(())
    }

    /// Returns a new file of this many chunks.
    fn file(&mut self, packer: &Packer<'_>, path: String, chunks: u64) -> store::Result<Entry> {
        let numbers = self.next..self.next + chunks;
        self.next = numbers.end;
        file(packer, path, numbers, self.arguments.chunk_bytes)
    }

    /// Stores the tree of all files. Returns its root page.
    fn tree(&self, packer: &Packer<'_>) -> store::Result<ChunkId> {
        let mut tree = TreeWriter::default();
        for (at, file) in self.files.iter().enumerate() {
            // After the large one.
            let number = (at as u64).wrapping_sub(1);
            if at == 1 {
                tree.push(&entry("small".into(), EntryKind::Directory), packer)?;
            }
            if at > 0 && number.is_multiple_of(FILES_PER_DIRECTORY) {
                let path = directory(number / FILES_PER_DIRECTORY);
                tree.push(&entry(path, EntryKind::Directory), packer)?;
            }
            tree.push(file, packer)?;
        }
        tree.finish(packer)
    }
}

/// Returns the path of a directory.
fn directory(number: u64) -> String {
    format!("small/{number:06}")
}

/// Returns a file that consists of the chunks with these numbers.
fn file(
    packer: &Packer<'_>,
    path: String,
    chunks: std::ops::Range<u64>,
    chunk_bytes: Option<u32>,
) -> store::Result<Entry> {
    let mut recipe = RecipeWriter::default();
    let mut bytes = vec![0; chunk_bytes.unwrap_or(32) as usize];
    for number in chunks {
        // The hash of the number provides random bytes that are the same every time.
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let len = match chunk_bytes {
            Some(len) => len as usize,
            None => 16 + usize::from(bytes[31] % 17),
        };
        let plain = &bytes[..len];
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
