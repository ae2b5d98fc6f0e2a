use super::Arguments;
use crate::exit::{Failure, other};
use clap::{Args, CommandFactory};
use std::path::PathBuf;

/// Write the manual pages into a directory
///
/// Example: forgekeep man /usr/local/share/man/man1
#[derive(Debug, Args)]
pub struct Man {
    /// Where to; made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub fn run(&self) -> Result<(), Failure> {
        std::fs::create_dir_all(&self.dir)
            .and_then(|()| clap_mangen::generate_to(Arguments::command(), &self.dir))
            .map_err(|error| other(format!("cannot write to {}: {error}", self.dir.display())))
    }
}
