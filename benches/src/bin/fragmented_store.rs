//! Creates a store with one file twice: as whole chunks, and as very many small slices.
//!
//! The slices resemble those of a repacked git pack. Two new bytes are followed by some hundred
//! bytes of one of a few old chunks, a little after the previous slice of that chunk. The two
//! snapshots, tagged `whole` and `slices`, have the same content. The cost of restoring slices can
//! therefore be measured side by side.

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

/// Creates a store with a file of whole chunks, and one of the same bytes in small slices.
#[derive(Parser)]
struct Arguments {
    /// Directory of the store; it must be missing or empty
    store: PathBuf,
    /// Number of slices; every other one has two bytes
    #[arg(long, default_value_t = 2_000_000)]
    slices: u64,
    /// Number of chunks that are sliced at a time
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..))]
    open: u64,
}

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    init(&arguments.store, &Config::new([0xf5; 16], Parameters::DEFAULT, 3))?;
    let store = Store::open(&arguments.store, Purpose::Write, Arc::new(Silent::default()))?;
    let packer = Packer::new(&store, false);
    let (whole, slices) = fill(&packer, &arguments)?;
    packer.finish()?;
    for (name, root) in [("whole", whole), ("slices", slices)] {
        record(name, &["/file"], root)
            .write(&Local::new(&arguments.store), store::codec::Codec::new(3))?;
    }
    Ok(())
}

/// An old chunk being sliced.
struct Open {
    id: ChunkId,
    bytes: Vec<u8>,
    at: usize,
}

/// Stores all chunks, recipes and trees. Returns both roots.
fn fill(packer: &Packer<'_>, arguments: &Arguments) -> store::Result<(ChunkId, ChunkId)> {
    let (mut whole, mut slices) = (RecipeWriter::default(), RecipeWriter::default());
    let mut numbers = Numbers(1);
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        open(packer, next)
    };
    let mut opened: Vec<Open> = (0..arguments.open).map(|_| fresh()).collect::<Result<_, _>>()?;
    let mut new = open(packer, u64::MAX)?;
    let mut content = Vec::new();
    let mut current = 0;
    for number in 0..arguments.slices {
        let is_new = number % 2 == 0;
        if !is_new && numbers.below(16) == 0 {
            current = numbers.below(arguments.open) as usize;
        }
        let from = if is_new { &mut new } else { &mut opened[current] };
        let len = if is_new { 2 } else { 100 + numbers.below(796) as usize };
        if from.at + len > CHUNK {
            *from = if is_new { open(packer, u64::MAX - number)? } else { fresh()? };
        }
        let offset = from.at as u32;
        slices.push(Extent::Slice { chunk: from.id, offset, len: len as u64 }, packer)?;
        content.extend_from_slice(&from.bytes[from.at..from.at + len]);
        from.at += if is_new { len } else { len + 3 };
        if content.len() >= CHUNK {
            push_whole(packer, &mut whole, &content[..CHUNK])?;
            content.drain(..CHUNK);
        }
    }
    push_whole(packer, &mut whole, &content)?;
    Ok((tree(packer, whole)?, tree(packer, slices)?))
}

fn open(packer: &Packer<'_>, number: u64) -> store::Result<Open> {
    let mut bytes = vec![0; CHUNK];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Ok(Open { id: packer.put(segment::SegmentKind::Data, &bytes)?.id, bytes, at: 0 })
}

fn push_whole(packer: &Packer<'_>, recipe: &mut RecipeWriter, chunk: &[u8]) -> store::Result<()> {
    let id = packer.put(segment::SegmentKind::Data, chunk)?.id;
    recipe.push(Extent::Slice { chunk: id, offset: 0, len: chunk.len() as u64 }, packer)
}

/// Pseudorandom numbers that are the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Returns a tree with only this file.
fn tree(packer: &Packer<'_>, recipe: RecipeWriter) -> store::Result<ChunkId> {
    let size = recipe.len();
    let content = Content::Recipe(recipe.finish(packer)?);
    let file = Entry::new(b"file".to_vec(), EntryKind::File, 0o644);
    let mut tree = TreeWriter::default();
    tree.push(&Entry { mtime: Some(MADE), inode: 1, size, content, ..file }, packer)?;
    tree.finish(packer)
}
