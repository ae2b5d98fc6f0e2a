use super::{Arguments, GLOBAL};
use crate::exit::{CODES, Failure, other};
use crate::selector::GRAMMAR;
use clap::{Arg, ArgAction, Args, Command, CommandFactory};
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// Date of the pages: the day of the last change to a help text.
const DATE: &str = "2026-11-30";
/// Part of each page's header, in the middle.
const MANUAL: &str = "Forgekeep";

/// Files of a store, with their content.
const STORE_FILES: [(&str, &str); 4] = [
    ("STORE/store.json", "Identity and parameters of the store."),
    ("STORE/segments", "Chunks of all backups."),
    ("STORE/snapshots", "One record for each backup."),
    ("STORE/index.sqlite", "Location of each chunk. The next command rebuilds a missing index."),
];

/// Files that commands with an option for the configuration use, with their content.
const CONFIG_FILES: [(&str, &str); 2] = [
    ("/etc/forgekeep.toml", "Configuration of instances, services and notifiers."),
    ("/var/lib/forgekeep", "State directory: records of stopped services and of running backups."),
];

/// Write manual pages into a directory
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep man /usr/local/share/man/man1")]
pub struct Man {
    /// Directory to write into; created if it does not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub fn run(&self) -> Result<(), Failure> {
        let mut root = Arguments::command().disable_help_subcommand(true);
        root.build();
        let visible = visible(&root).into_iter().map(page_name).collect::<Vec<_>>();
        std::fs::create_dir_all(&self.dir)
            .and_then(|()| write_pages(&root, &visible, &self.dir))
            .map_err(|error| other(format!("cannot write to {}: {error}", self.dir.displayed())))
    }
}

/// Writes the page of a command, and those of the commands below it.
fn write_pages(command: &Command, see_also: &[String], dir: &Path) -> io::Result<()> {
    let source = concat!("forgekeep ", env!("CARGO_PKG_VERSION"));
    let page = clap_mangen::Man::new(command.clone()).date(DATE).manual(MANUAL).source(source);
    let mut file = File::create(dir.join(page.get_filename()))?;
    page.render_title(&mut file)?;
    page.render_name_section(&mut file)?;
    synopsis(command).to_writer(&mut file)?;
    page.render_description_section(&mut file)?;
    page.render_options_section(&mut file)?;
    if !visible(command).is_empty() {
        page.render_subcommands_section(&mut file)?;
    }
    rest(command, see_also).to_writer(&mut file)?;
    file.flush()?;
    visible(command).into_iter().try_for_each(|inner| write_pages(inner, see_also, dir))
}

/// Returns the subcommands that help texts list.
fn visible(command: &Command) -> Vec<&Command> {
    command.get_subcommands().filter(|inner| !inner.is_hide_set()).collect()
}

/// Returns the name of a command's page.
fn page_name(command: &Command) -> String {
    command.get_display_name().unwrap_or(command.get_name()).to_owned()
}

/// Returns the section SYNOPSIS: all options with their values.
fn synopsis(command: &Command) -> Roff {
    let mut line = vec![bold(command.get_bin_name().unwrap_or(command.get_name()))];
    let (global, own): (Vec<&Arg>, Vec<&Arg>) = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set() && !argument.is_positional())
        .partition(|argument| argument.get_help_heading() == Some(GLOBAL));
    own.into_iter().for_each(|option| show_option(option, &mut line));
    if !global.is_empty() {
        line.extend([roman(" ["), italic("GLOBAL OPTIONS"), roman("]")]);
    }
    if !visible(command).is_empty() {
        line.extend([roman(" "), italic("COMMAND")]);
    }
    for argument in command.get_positionals() {
        line.extend([roman(" "), italic(argument.to_string())]);
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).text(line);
    roff
}

/// Adds an option with its value, in brackets unless it is required.
fn show_option(option: &Arg, line: &mut Vec<Inline>) {
    let (open, close) = if option.is_required_set() { (" ", "") } else { (" [", "]") };
    let name = match (option.get_short(), option.get_long()) {
        (Some(short), None) => format!("-{short}"),
        (Some(short), Some(long)) => format!("-{short}|--{long}"),
        (None, long) => format!("--{}", long.unwrap_or_default()),
    };
    line.extend([roman(open), bold(name)]);
    if option.get_action().takes_values() {
        let values = option.get_value_names().unwrap_or_default();
        let values: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
        line.extend([roman(" "), italic(values.join(" "))]);
    }
    let is_repeated = matches!(option.get_action(), ArgAction::Append);
    line.push(roman(if is_repeated { format!("{close}...") } else { close.to_owned() }));
}

/// Returns the sections after the options.
fn rest(command: &Command, see_also: &[String]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in examples(command) {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    if command.get_name() == "forgekeep" {
        roff.control("SH", ["SNAPSHOTS"]).control("nf", []);
        for line in GRAMMAR.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for argument in command.get_arguments() {
        let Some(name) = argument.get_env() else { continue };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let option = format!("{help}, as --{}.", argument.get_long().unwrap_or_default());
        entry(&mut roff, &name.to_string_lossy(), &option);
    }
    entry(&mut roff, "TMPDIR", "Directory for temporary files that do not fit into memory.");
    roff.control("SH", ["FILES"]);
    STORE_FILES.iter().for_each(|(path, content)| entry(&mut roff, path, content));
    if command.get_arguments().any(|argument| argument.get_long() == Some("config")) {
        CONFIG_FILES.iter().for_each(|(path, content)| entry(&mut roff, path, content));
    }
    roff.control("SH", ["EXIT STATUS"]);
    CODES.iter().for_each(|(code, meaning)| entry(&mut roff, &code.to_string(), meaning));
    roff.control("SH", ["SEE ALSO"]);
    let own = page_name(command);
    let others = std::iter::once("forgekeep").chain(see_also.iter().map(String::as_str));
    let others: Vec<Inline> = others
        .filter(|name| *name != own)
        .enumerate()
        .flat_map(|(n, name)| [roman(if n == 0 { "" } else { ", " }), bold(name), roman("(1)")])
        .collect();
    roff.text(others);
    roff
}

/// Returns the example lines of a command, or the first one of each command below it.
fn examples(command: &Command) -> Vec<String> {
    // That of the program itself has no examples.
    let help = command.get_after_long_help().filter(|_| visible(command).is_empty());
    if let Some(help) = help {
        return help.to_string().lines().skip(1).map(str::to_owned).collect();
    }
    let inner = visible(command).into_iter().map(examples);
    inner.filter_map(|lines| lines.into_iter().next()).collect()
}

/// Adds a term with its description.
fn entry(roff: &mut Roff, term: &str, description: &str) {
    roff.control("TP", []).text([bold(term)]).text([roman(description)]);
}
