//! Creates a store with very many nights, to measure costs that could grow with them.
//!
//! Each night adds a changed file: one segment of data, one of metadata, and a record. The store's
//! own packer writes them.

use chunker::Parameters;
use clap::Parser;
use forgekeep_benches::{MADE, of_night, record};
use std::path::PathBuf;
use std::sync::Arc;
use store::backend::Local;
use store::codec::Codec;
use store::config::Config;
use store::entry::{Content, Entry, EntryKind};
use store::id::SnapshotId;
use store::observe::Silent;
use store::packer::Packer;
use store::recipe::{Extent, RecipeWriter};
use store::segment::SegmentKind;
use store::store::{Purpose, Store, init};
use store::tree::TreeWriter;

/// Creates a store with one snapshot for each of many nights.
#[derive(Parser)]
struct Arguments {
    /// Directory of the store; it must be missing or empty
    store: PathBuf,
    /// Number of nights
    #[arg(long, default_value_t = 30_000)]
    nights: u64,
    /// Number of files that never change
    #[arg(long, default_value_t = 20)]
    files: u64,
    /// Absolute path of the source that the records name
    #[arg(long, default_value = "/source")]
    path: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    init(&arguments.store, &Config::new([0x4e; 16], Parameters::DEFAULT, 3))?;
    let store = Store::open(&arguments.store, Purpose::Write, Arc::new(Silent::default()))?;
    let backend = Local::new(&arguments.store);
    let mut parent: Option<SnapshotId> = None;
    for night in 0..arguments.nights {
        let packer = Packer::new(&store, false);
        let mut tree = TreeWriter::default();
        for file in 0..arguments.files {
            let text = if file == 0 { format!("night {night}") } else { format!("file {file}") };
            tree.push(&stored(&packer, format!("{file:06}"), text.as_bytes())?, &packer)?;
        }
        let root = tree.finish(&packer)?;
        packer.finish()?;
        let record = record("nights", &[&arguments.path], root);
        let record = of_night(record, arguments.nights - night, parent);
        parent = Some(record.write(&backend, Codec::new(3))?);
    }
    Ok(())
}

/// Stores `plain` and returns the entry of a file with this content.
fn stored(packer: &Packer<'_>, path: String, plain: &[u8]) -> store::Result<Entry> {
    let chunk = packer.put(SegmentKind::Data, plain)?.id;
    let mut recipe = RecipeWriter::default();
    recipe.push(Extent::Slice { chunk, offset: 0, len: plain.len() as u64 }, packer)?;
    let (size, content) = (recipe.len(), Content::Recipe(recipe.finish(packer)?));
    let entry = Entry::new(path.into_bytes(), EntryKind::File, 0o644);
    Ok(Entry { mtime: Some(MADE), ctime: Some(MADE), inode: 1, size, content, ..entry })
}
