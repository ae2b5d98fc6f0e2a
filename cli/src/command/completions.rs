use super::Arguments;
use crate::exit::Failure;
use crate::startup::stdout_is_open;
use crate::ui::written;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep completions bash > /etc/bash_completion.d/forgekeep")]
pub struct Completions {
    /// Shell to complete for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "forgekeep", &mut script);
        let mut stdout = std::io::stdout();
        let open = stdout_is_open();
        written(open.and_then(|()| stdout.write_all(&script)).and_then(|()| stdout.flush()))
    }
}
