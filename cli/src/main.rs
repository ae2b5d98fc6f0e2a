//! The program: words and numbers for people, exit codes for scripts.

mod command;
mod config;
mod exit;
mod notify;
mod place;
mod problems;
mod reference;
mod report;
mod select;
mod stream;
mod telling;
mod ui;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = command::Arguments::try_parse().unwrap_or_else(|error| ui::refuse(&error));
    let ui = ui::Ui::new(&arguments.global);
    exit::code(&ui, command::run(arguments.command, &arguments.global, &ui))
}
