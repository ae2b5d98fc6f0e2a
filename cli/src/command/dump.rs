use super::Global;
use crate::exit::Failure;
use crate::select::{self, Place};
use crate::ui::{Ui, written};
use clap::Args;
use std::ffi::OsString;
use std::io::Write;
use store::Error;
use store::entry::{Kind, display_path};
use store::id::ChunkId;
use store::store::Purpose;
use store::tree::TreeReader;

/// Print the content of one file
///
/// Example: forgekeep dump --store S latest:/gitlab.sql | psql gitlab
#[derive(Debug, Args)]
pub struct Dump {
    /// Which file of which snapshot
    #[arg(value_name = "SNAPSHOT:PATH")]
    place: OsString,
}

impl Dump {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let place = Place::parse(&self.place)?;
        let (store, watch) = global.open(ui, Purpose::Read, "dump")?;
        let (snapshot, record) = select::find(&store, &place.snapshot)?;
        let get = |id: &ChunkId| store.chunk(id);
        let shown = || format!("/{}", display_path(&place.path));
        let entry = match TreeReader::within(&record.root.chunk(), &place.path, &get).next() {
            Some(Err(lost)) => Err(lost.error),
            Some(Ok(entry)) if entry.path == place.path => Ok(entry),
            _ => Err(Error::NoPath { snapshot, path: shown() }),
        };
        let dumped = entry.and_then(|entry| {
            if entry.kind != Kind::File {
                let (kind, wanted) = (entry.kind.name(), "a file");
                return Err(Error::WrongKind { path: shown(), kind, wanted });
            }
            store.observer().progress().expect(1, entry.size);
            let mut out = std::io::stdout().lock();
            let dumped = store::dump::dump(&store, &entry, &mut out)?;
            Ok(dumped.and_then(|()| out.flush()))
        });
        watch.end();
        written(dumped?)
    }
}
