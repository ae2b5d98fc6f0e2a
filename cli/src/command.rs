//! The commands, one file each. A command's doc comment is its help text.

mod backup;
mod check;
mod completions;
mod config;
mod detect;
mod diff;
mod drill;
mod dump;
mod find;
mod forget;
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
mod pin;
mod projects;
mod prune;
mod rebuild;
mod recover;
mod reference;
mod repair;
mod restore;
mod schedule;
mod snapshots;
mod stats;
mod tag;
mod unpin;

use crate::exit::{CODES, Failure, with_hint};
use crate::selector::GRAMMAR;
use crate::ui::{Ui, Watch};
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::entry::Displayed;
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
    after_help = exit_codes(),
    after_long_help = format!("{GRAMMAR}\n\n{}", exit_codes())
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
    /// Directory of the store [default: the only store of the configuration]
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
    #[command(flatten)]
    pub config: instance::ConfigFile,
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
    /// Returns the program's own files and directories, which belong to no instance.
    fn own_paths(&self) -> Vec<PathBuf> {
        self.store.iter().cloned().chain(self.config.own_paths()).collect()
    }

    /// Returns the store: the given one, or else the only one of the configuration.
    fn place(&self) -> Result<PathBuf, Failure> {
        self.place_for(None)
    }

    /// Like [`Global::place`]. Of several configured stores, it returns that of the instance, if
    /// the configuration has it.
    fn place_for(&self, instance: Option<&str>) -> Result<PathBuf, Failure> {
        if let Some(place) = &self.store {
            return Ok(place.clone());
        }
        let Some(config) = self.config.read_if_any()? else {
            let hint = format!(
                "give --store DIR, set FORGEKEEP_STORE, or add [stores.main] with its path to {}",
                self.config.path().displayed()
            );
            return Err(with_hint("no store given", hint));
        };
        let settings = instance.and_then(|name| Some((name, config.instances.get(name)?)));
        let place = match settings {
            Some((name, settings)) => config.store_of(name, settings)?,
            None => config.only_store(self.config.path())?,
        };
        match place {
            Some(store) => store.expected().map(Path::to_owned),
            None => {
                let message =
                    format!("no store given, and {} has none", self.config.path().displayed());
                Err(with_hint(message, "give --store DIR, or add [stores.main] with its path"))
            }
        }
    }

    /// Opens the store and observes operations on it.
    fn open(
        &self,
        ui: &Ui,
        purpose: Purpose,
        what: &'static str,
    ) -> Result<(Store, Arc<Watch>), Failure> {
        open(&self.place()?, ui, purpose, what)
    }

    /// Opens the store for reading snapshots, of an instance if one is given.
    fn open_for(
        &self,
        instance: Option<&str>,
        ui: &Ui,
        what: &'static str,
    ) -> Result<(Store, Arc<Watch>), Failure> {
        open(&self.place_for(instance)?, ui, Purpose::Read, what)
    }
}

/// Opens a store and observes operations on it.
fn open(
    place: &Path,
    ui: &Ui,
    purpose: Purpose,
    what: &'static str,
) -> Result<(Store, Arc<Watch>), Failure> {
    let watch = ui.watch(what);
    let store = open_watched(place, &watch, purpose).inspect_err(|_| watch.end())?;
    Ok((store, watch))
}

/// Opens a store for an operation that is observed already.
fn open_watched(place: &Path, watch: &Arc<Watch>, purpose: Purpose) -> Result<Store, Failure> {
    store::threads::start_shared()?;
    match Store::open(place, purpose, Arc::clone(watch) as _) {
        // A command that only reads needs another path, not a new store.
        Err(error @ store::Error::NoStore(_)) if purpose != Purpose::Write => {
            Err(Failure::NothingToRead(error))
        }
        opened => Ok(opened?),
    }
}

/// Opens an existing store, to change its snapshots.
fn open_to_change(
    place: &Path,
    ui: &Ui,
    purpose: Purpose,
    what: &'static str,
) -> Result<(Store, Arc<Watch>), Failure> {
    match open(place, ui, purpose, what) {
        Err(Failure::Store(error @ store::Error::NoStore(_))) => Err(Failure::NothingToRead(error)),
        opened => opened,
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::Init),
    Backup(backup::Backup),
    Snapshots(snapshots::Snapshots),
    Forget(forget::Forget),
    Prune(prune::Prune),
    Pin(pin::Pin),
    Unpin(unpin::Unpin),
    Tag(tag::Tag),
    Ls(ls::Ls),
    Find(find::Find),
    Diff(diff::Diff),
    Restore(restore::Restore),
    Dump(dump::Dump),
    Check(check::Check),
    Drill(drill::Drill),
    Index(index::Index),
    Stats(stats::Stats),
    Inspect(inspect::Inspect),
    Projects(projects::Projects),
    #[command(subcommand)]
    Config(config::Config),
    Detect(detect::Detect),
    Rebuild(rebuild::Rebuild),
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
        Command::Forget(command) => command.run(global, ui),
        Command::Prune(command) => command.run(global, ui),
        Command::Pin(command) => command.run(global, ui),
        Command::Unpin(command) => command.run(global, ui),
        Command::Tag(command) => command.run(global, ui),
        Command::Ls(command) => command.run(global, ui),
        Command::Find(command) => command.run(global, ui),
        Command::Diff(command) => command.run(global, ui),
        Command::Restore(command) => command.run(global, ui),
        Command::Dump(command) => command.run(global, ui),
        Command::Check(command) => command.run(global, ui),
        Command::Drill(command) => command.run(global, ui),
        Command::Index(command) => command.run(global, ui),
        Command::Stats(command) => command.run(global, ui),
        Command::Inspect(command) => command.run(global, ui),
        Command::Projects(command) => command.run(global, ui),
        Command::Config(command) => command.run(global, ui),
        Command::Detect(command) => command.run(ui),
        Command::Rebuild(command) => command.run(global, ui),
        Command::Recover(command) => command.run(global, ui),
        Command::Repair(command) => command.run(global, ui),
        Command::Schedule(command) => command.run(global, ui),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Notify(command) => command.run(global, ui),
        Command::Reference { of: Reference::Cli } => ui.lines(reference::markdown().trim_end()),
        Command::Reference { of: Reference::Json } => {
            ui.lines(json_reference::markdown().trim_end())
        }
    }
}
