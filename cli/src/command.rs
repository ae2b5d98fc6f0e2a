//! The commands, one file each. A command's doc comment is its help text.

mod backup;
mod check;
mod completions;
mod config;
mod detect;
mod diff;
mod dump;
mod find;
mod in_place;
mod index;
mod init;
mod inspect;
mod instance;
mod json_reference;
mod ls;
mod man;
mod notify;
mod owner_options;
mod projects;
mod recover;
mod reference;
mod repair;
mod restore;
mod schedule;
mod snapshots;
mod stats;

use crate::exit::{CODES, Failure, with_hint};
use crate::ui::{Ui, Watch};
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::store::{Purpose, Store};

/// Deduplicating backups of self-hosted git forges, and of any directory.
///
/// A store keeps snapshots of directory trees as content-addressed, compressed chunks. Live bare
/// git repositories are copied consistently while users push.
#[derive(Debug, Parser)]
#[command(
    name = "forgekeep",
    version,
    max_term_width = 100,
    disable_help_flag = true,
    after_help = exit_codes()
)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of the options that every command has, in help texts.
const GLOBAL: &str = "Global options";

/// Returns the exit codes with their meaning, for the end of a help text.
fn exit_codes() -> String {
    let codes: Vec<String> =
        CODES.iter().map(|(code, meaning)| format!("{code:>5}  {meaning}")).collect();
    format!("Exit codes:\n{}", codes.join("\n"))
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Directory of the store
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "DIR",
        env = "FORGEKEEP_STORE",
        hide_env_values = true,
        value_parser = PathBufValueParser::new().try_map(crate::place::local)
    )]
    pub store: Option<PathBuf>,
    /// Print JSON lines instead of text; each has a `message_type`
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Print only results, warnings and errors
    #[arg(long, short, global = true, help_heading = GLOBAL)]
    pub quiet: bool,
    /// Print details, where a command has them
    #[arg(long, short, global = true, hide = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Print help (see a summary with '-h')
    #[arg(long, short, global = true, help_heading = GLOBAL, action = ArgAction::Help)]
    help: Option<bool>,
}

impl Global {
    fn place(&self) -> Result<&PathBuf, Failure> {
        self.store
            .as_ref()
            .ok_or_else(|| with_hint("no store given", "give --store DIR or set FORGEKEEP_STORE"))
    }

    /// Opens the store and observes operations on it.
    fn open(
        &self,
        ui: &Ui,
        purpose: Purpose,
        what: &'static str,
    ) -> Result<(Store, Arc<Watch>), Failure> {
        open(self.place()?, ui, purpose, what)
    }
}

/// Opens a store and observes operations on it.
fn open(
    place: &Path,
    ui: &Ui,
    purpose: Purpose,
    what: &'static str,
) -> Result<(Store, Arc<Watch>), Failure> {
    store::threads::start_shared()?;
    let watch = ui.watch(what);
    let opened = Store::open(place, purpose, Arc::clone(&watch) as _);
    if opened.is_err() {
        watch.end();
    }
    match opened {
        // A command that only reads needs another path, not a new store.
        Err(error @ store::Error::NoStore(_)) if purpose != Purpose::Write => {
            Err(Failure::NothingToRead(error))
        }
        opened => Ok((opened?, watch)),
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::Init),
    Backup(backup::Backup),
    Snapshots(snapshots::Snapshots),
    Ls(ls::Ls),
    Find(find::Find),
    Diff(diff::Diff),
    Restore(restore::Restore),
    Dump(dump::Dump),
    Check(check::Check),
    Index(index::Index),
    Stats(stats::Stats),
    Inspect(inspect::Inspect),
    Projects(projects::Projects),
    #[command(subcommand)]
    Config(config::Config),
    Detect(detect::Detect),
    Recover(recover::Recover),
    #[command(subcommand)]
    Repair(repair::Repair),
    Schedule(schedule::Schedule),
    Completions(completions::Completions),
    Man(man::Man),
    Notify(notify::Notify),
    #[command(hide = true)]
    Reference {
        /// Text to print
        #[arg(value_enum, default_value_t)]
        of: Reference,
    },
}

/// A generated document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Reference {
    /// Commands and options
    #[default]
    Cli,
    /// Lines of `--json`
    Json,
}

impl Command {
    /// Returns true if standard output is reserved for the content of a file.
    pub fn prints_content(&self) -> bool {
        matches!(self, Command::Dump(_))
    }
}

/// Runs a command.
pub fn run(command: Command, global: &Global, ui: &Ui) -> Result<(), Failure> {
    match command {
        Command::Init(command) => command.run(global, ui),
        Command::Backup(command) => command.run(global, ui),
        Command::Snapshots(command) => command.run(global, ui),
        Command::Ls(command) => command.run(global, ui),
        Command::Find(command) => command.run(global, ui),
        Command::Diff(command) => command.run(global, ui),
        Command::Restore(command) => command.run(global, ui),
        Command::Dump(command) => command.run(global, ui),
        Command::Check(command) => command.run(global, ui),
        Command::Index(command) => command.run(global, ui),
        Command::Stats(command) => command.run(global, ui),
        Command::Inspect(command) => command.run(global, ui),
        Command::Projects(command) => command.run(global, ui),
        Command::Config(command) => command.run(global, ui),
        Command::Detect(command) => command.run(ui),
        Command::Recover(command) => command.run(ui),
        Command::Repair(command) => command.run(ui),
        Command::Schedule(command) => command.run(global, ui),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Notify(command) => command.run(ui),
        Command::Reference { of: Reference::Cli } => ui.lines(reference::markdown().trim_end()),
        Command::Reference { of: Reference::Json } => {
            ui.lines(json_reference::markdown().trim_end())
        }
    }
}
