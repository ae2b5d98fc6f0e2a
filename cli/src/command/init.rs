use super::Global;
use crate::exit::{Failure, other, with_hint};
use crate::json::Initialized;
use crate::report::path_text;
use crate::ui::{Ui, Watch};
use clap::Args;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use store::Error;
use store::config::Config;
use store::entry::Displayed;
use store::store::Store;

/// zstd level of new stores: the default of other tools, see docs/measurements.md.
const LEVEL: i32 = 3;

/// Create an empty store
///
/// The directory is created if it does not exist. Otherwise it must be empty.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep init --store /mnt/backup/forge")]
pub struct Init {
    /// Let the group of the store's directory read the store
    ///
    /// Without this option only the owner can read the store, with any umask. With it,
    /// files are 0640 and directories 2750, so that new files keep the group of the directory.
    /// Choose the group with `chgrp -R GROUP STORE` afterwards.
    #[arg(long)]
    group_readable: bool,
}

impl Init {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        make(&global.place()?, self.group_readable, ui)
    }
}

/// Creates a store that only its owner can read, and reports it.
pub fn init(place: &Path, ui: &Ui) -> Result<(), Failure> {
    make(place, false, ui)
}

/// Opens an empty store in memory, for the dry run of a backup that would create a store.
pub fn open_dry(place: &Path, ui: &Ui, watch: Arc<Watch>) -> Result<Store, Failure> {
    let store = store::store::init_dry(place, &config(false)?, watch);
    let store = store.map_err(|error| not_created(place, error))?;
    ui.remark(format!("dry run: a new store would be created at {}", place.displayed()))?;
    Ok(store)
}

/// Returns the configuration of a new store.
fn config(group_readable: bool) -> Result<Config, Failure> {
    let id = store::random::bytes()
        .map_err(|error| other(format!("cannot get random numbers: {error}")))?;
    Ok(Config { group_readable, ..Config::new(id, chunker::Parameters::DEFAULT, LEVEL) })
}

fn not_created(place: &Path, error: Error) -> Failure {
    match error {
        Error::StoreWrite { name, source } if Path::new(&name) == place => with_hint(
            format!("cannot create a store at {}: {source}", place.displayed()),
            next_step(&source),
        ),
        error => error.into(),
    }
}

fn make(place: &Path, group_readable: bool, ui: &Ui) -> Result<(), Failure> {
    let config = config(group_readable)?;
    store::store::init(place, &config).map_err(|error| not_created(place, error))?;
    // An existing directory keeps its mode, because it may be a mount point.
    if group_readable && place.metadata().is_ok_and(|found| found.mode() & 0o050 != 0o050) {
        let place = place.displayed();
        ui.warn(&format!("the group cannot enter {place}; run `chmod g+rx {place}`"));
    }
    ui.json(&Initialized { id: &config.store_id, store: path_text(place) })?;
    ui.remark(format!("created store {} at {}", &config.store_id[..8], place.displayed()))
}

/// Returns the next step after a store could not be created.
fn next_step(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make space or free inodes there, then run the same command again"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only: mount it writable, or give another directory"
        }
        _ => "check the path and its mount, or run the command as a user who may write there",
    }
}
