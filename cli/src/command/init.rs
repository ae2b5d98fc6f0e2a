use super::Global;
use crate::exit::{Failure, other};
use crate::ui::Ui;
use clap::Args;
use serde_json::json;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use store::config::Config;

/// zstd's level for new stores: what other tools use by default, see docs/measurements.md.
const LEVEL: i32 = 3;

/// Make an empty store
///
/// The directory is made if it is not there; it must be empty otherwise.
///
/// Example: forgekeep init --store /mnt/backup/forge
#[derive(Debug, Args)]
pub struct Init {}

impl Init {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        init(global.place()?, ui)
    }
}

/// Makes a store and says so.
pub fn init(place: &Path, ui: &Ui) -> Result<(), Failure> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| other(format!("no random number to be had: {error}")))?;
    let config = Config::new(id, chunker::Parameters::DEFAULT, LEVEL);
    // All that a forge keeps secret will be in it. Why it cannot be made is said below.
    let _ = place.parent().map(std::fs::create_dir_all);
    let _ = DirBuilder::new().mode(0o700).create(place);
    store::store::init(place, &config)?;
    ui.json("initialized", json!({"id": config.store_id, "store": place.display().to_string()}))?;
    ui.remark(format!("made store {} at {}", &config.store_id[..8], place.display()))
}
