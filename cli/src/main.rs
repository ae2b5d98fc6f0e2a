//! The command line program: text for people, exit codes for scripts.
//!
//! Each module uses only modules that are listed before it.

mod place;
mod report;
mod startup;

mod standard;

mod exit;

mod losses;
mod run_id;
mod run_record;

mod json;

mod ui;

mod examination;

mod selector;

mod select;

mod notify;

mod config;
mod preflight;

mod stream;

mod notifications;

mod command;

use clap::Parser;
use exit::Failure;
use std::process::ExitCode;
use ui::{Output, Ui};

fn main() -> ExitCode {
    let arguments = command::Arguments::try_parse().unwrap_or_else(|error| ui::refuse(&error));
    let global = arguments.global;
    // Standard output of `dump` contains nothing but the content of a file.
    let json = global.json && !arguments.command.prints_content();
    let ui = Ui::new(Output { json, quiet: global.quiet, verbose: global.verbose });
    code(&ui, command::run(arguments.command, &global, &ui))
}

/// Prints the error message, if there is one, and returns the exit code.
fn code(ui: &Ui, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    let code = failure.number();
    if let Some((message, hint)) = failure.words() {
        ui.failed(&message, hint.as_deref(), code);
    }
    ExitCode::from(code)
}
