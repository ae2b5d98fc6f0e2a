//! The command line program: text for people, exit codes for scripts.

mod command;
mod config;
mod exit;
mod notify;
mod place;
mod preflight;
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
    let mut global = arguments.global;
    // Standard output of `dump` contains nothing but the content of a file.
    global.json &= !arguments.command.prints_content();
    let ui = ui::Ui::new(&global);
    exit::code(&ui, command::run(arguments.command, &global, &ui))
}
