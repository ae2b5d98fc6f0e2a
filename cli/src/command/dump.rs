use super::Global;
use crate::exit::{Failure, with_hint};
use crate::select::{self, Filter, Found};
use crate::selector::Place;
use crate::standard::StandardOutput;
use crate::ui::{Ui, written};
use clap::Args;
use std::ffi::OsString;
use std::io;
use store::Error;
use store::entry::{EntryKind, display_path};
use store::store::Store;
use store::tree::Lookup;

/// Print the content of one file
///
/// Standard output gets only the content. Warnings and errors are text on standard error, even with
/// --json.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep dump latest:/gitlab.sql | psql gitlab")]
pub struct Dump {
    /// Snapshot and path of the file (`forgekeep --help` lists all forms)
    #[arg(value_name = "SNAPSHOT:PATH")]
    place: OsString,
    #[command(flatten)]
    filter: Filter,
}

impl Dump {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let place = Place::parse(&self.place)?;
        if place.path.is_empty() {
            let message = format!("no path in snapshot {} given", place.selector);
            return Err(with_hint(message, "write SNAPSHOT:PATH; `forgekeep ls` lists the paths"));
        }
        let (store, watch) = global.open_for(place.selector.instance.as_deref(), ui, "dump")?;
        let dumped = dump(&store, &place, &self.filter, ui);
        watch.end();
        let (written_out, is_sure) = dumped?;
        written(written_out)?;
        select::answered(is_sure)
    }
}

/// Writes the file to standard output. The flag is true if the snapshot is certainly the wanted
/// one.
fn dump(
    store: &Store,
    place: &Place,
    filter: &Filter,
    ui: &Ui,
) -> Result<(io::Result<()>, bool), Failure> {
    let found = select::find(store, &place.selector, filter)?;
    ui.aside(&found.shown(store));
    let Found { id, snapshot, is_sure } = found;
    let root = snapshot.root.chunk();
    let Some(entry) = Lookup::new(&root, store).at(&place.path)? else {
        return Err(select::no_path(store, &id, &root, &place.path));
    };
    if entry.kind != EntryKind::File {
        let path = format!("/{}", display_path(&place.path));
        let (kind, wanted) = (entry.kind.name(), "a file");
        return Err(Error::WrongKind { path, kind, wanted }.into());
    }
    let progress = store.observer().progress();
    progress.expect(1, entry.size);
    let dumped = store::dump::dump(store, &entry, &mut StandardOutput { progress });
    // The writer reports a stop request only as a failed write.
    progress.check()?;
    Ok((dumped?, is_sure))
}
