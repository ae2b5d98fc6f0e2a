//! The command line reference, generated from the help texts. `docs/cli.md` is this text; a test
//! compares them.

use super::Arguments;
use clap::CommandFactory;
use std::fmt::Write;

/// Returns the reference of all commands as Markdown.
pub fn markdown() -> String {
    // Values of the current environment do not belong in the reference.
    let mut root =
        Arguments::command().term_width(100).mut_args(|argument| argument.hide_env_values(true));
    root.build();
    let mut out = String::from(
        "# Command line reference\n\n\
         Generated from the help texts by `forgekeep reference > docs/cli.md`.\n",
    );
    section(&mut out, &mut root, "forgekeep");
    out
}

fn section(out: &mut String, command: &mut clap::Command, name: &str) {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(out, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for inner in command.get_subcommands_mut() {
        if !inner.is_hide_set() && inner.get_name() != "help" {
            let name = format!("{name} {}", inner.get_name());
            section(out, inner, &name);
        }
    }
}
