//! Options for the owners and modes that a restore sets.

use crate::exit::{Failure, other, with_hint};
use crate::json::{OwnerRule, RenumberedOwner};
use crate::report::count;
use crate::ui::Ui;
use clap::Args;
use forge::owners::OwnersAs;
use forge::process::quoted_path;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use store::entry::Displayed;
use store::owner_map::{Class, Disagreement, OwnerMap, RuleUse, SystemAccounts, Unmatched, Usage};
use store::snapshot::Snapshot;

/// Kinds whose files belong to the accounts of a container.
pub const CONTAINER_KINDS: [&str; 2] = ["docker-gitlab", "gitlab-container"];

/// Largest file of rules that is read, in bytes.
const RULES_BYTES_MAX: u64 = 64 << 20;

/// Source of the rules of a product.
const OF_PRODUCT: &str = "--as";

/// Names and numbers that disagree that are printed; more are only counted.
const PRINTED: usize = 10;

/// Syntax of the rules, for the help of commands.
pub const HELP: &str = "\
Owners and modes:
  By default a file gets the user and group of the same name, or of the same number where this
  machine has no such name. Files of containers always keep their numbers.
  The first matching rule wins. Rules are tried in this order: --owner-map, --usermap and
  --groupmap, --chown and --chmod, --as, the default.

  --usermap git:gitlab,998:1000,100000-165535:+0,web-*:33,:nobody,*:1000/git
      FROM is a name, a number, a range of numbers or a name with wildcards in the snapshot. It is
      empty for numbers without a name, and * for all. TO is a name or number of this machine;
      A/B means B where A does not exist, and * is the default. LOW-HIGH:+BASE moves a range so that
      LOW becomes BASE.
  --chmod D+s,o-rwx,F0640
      As in chmod(1); D is for directories only, F for everything else.
  --owner-map FILE
      [path \"registry/**\"]          Rules for paths that match and everything below. Patterns are
      user registry -> 1000         those of --include. Rules before the first section are for all
      group * -> git                paths.
      mode D+s,o-rwx
      [exact \"/srv/x\"]             For the path without everything below. Access lists of undo rules:
      acl u::rw-,u:7:r--,g::r--,m::r--,o::---
  Access lists follow the rules, too.";

/// Options for owners and modes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Owners and modes")]
pub struct OwnerOptions {
    /// Change users by the rules of a file (see below)
    #[arg(long, value_name = "FILE")]
    owner_map: Option<PathBuf>,
    /// Change users: FROM:TO,… (can be repeated)
    #[arg(long, value_name = "RULES")]
    usermap: Vec<OsString>,
    /// Change groups: FROM:TO,… (can be repeated)
    #[arg(long, value_name = "RULES")]
    groupmap: Vec<OsString>,
    /// Set the owners and modes that the product of the snapshot needs
    #[arg(long = "as", value_name = "KIND[=UID:GID]")]
    kind_as: Option<OwnersAs>,
    /// Give everything to a user, a group or both
    #[arg(long, value_name = "USER:GROUP")]
    chown: Option<OsString>,
    /// Change all modes, such as D+s,o-rwx
    #[arg(long, value_name = "CHANGES")]
    chmod: Option<OsString>,
    /// Set the numbers of the snapshot, even where this machine has the names
    #[arg(long)]
    numeric_ids: bool,
    /// Do not set owners: new files belong to the user who restores them. Clears setuid and setgid
    #[arg(long, conflicts_with_all = ["owner_map", "usermap", "groupmap", "chown", "numeric_ids", "kind_as"])]
    no_owner: bool,
    /// Write rules that undo the changes of owners and modes to a new file, for --owner-map
    #[arg(long, value_name = "FILE", conflicts_with = "no_owner")]
    write_owner_map: Option<PathBuf>,
}

impl OwnerOptions {
    /// Reads the file of rules, if one is given.
    pub fn read(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.owner_map.as_deref().map(read).transpose()
    }

    /// Returns the rules for a snapshot, with `file` as the content of the file of rules. Fails at the
    /// first rule with a fault, before anything is written. `of_product` returns the rules of a kind;
    /// `None` if the snapshot has no part of it.
    pub fn map(
        &self,
        snapshot: &Snapshot,
        file: Option<&[u8]>,
        of_product: impl Fn(&OwnersAs) -> Result<Option<Vec<u8>>, Failure>,
    ) -> Result<OwnerMap, Failure> {
        let kind = snapshot.instance.as_ref().map(|instance| &instance.kind[..]);
        let mut kinds = kind.into_iter().chain(self.kind_as.as_ref().map(OwnersAs::kind));
        let is_of_container = kinds.any(|kind| CONTAINER_KINDS.contains(&kind));
        let unmatched = if self.no_owner {
            Unmatched::Unchanged
        } else if self.numeric_ids || is_of_container {
            Unmatched::ByNumber
        } else {
            Unmatched::ByName
        };
        let mut map = OwnerMap::new(unmatched, Box::new(SystemAccounts));
        if let (Some(path), Some(rules)) = (&self.owner_map, file) {
            map.add_file(&path.displayed(), rules)?;
        }
        for (option, class, lists) in [
            ("--usermap", Class::User, &self.usermap),
            ("--groupmap", Class::Group, &self.groupmap),
        ] {
            for list in lists {
                map.add_list(option, class, list.as_bytes())?;
            }
        }
        if let Some(owner) = &self.chown {
            map.add_owner("--chown", owner.as_bytes())?;
        }
        if let Some(changes) = &self.chmod {
            map.add_mode("--chmod", changes.as_bytes())?;
        }
        if let Some(kind) = &self.kind_as {
            let Some(rules) = of_product(kind)? else {
                return Err(with_hint(
                    format!("the snapshot has no data of {}", kind.kind()),
                    "restore the directory of its data with SNAPSHOT:PATH, or use --owner-map",
                ));
            };
            map.add_file(OF_PRODUCT, &rules)?;
        }
        Ok(map)
    }

    /// Returns the file for rules that undo the changes. A dry run only checks that it is new.
    pub fn record(&self, is_dry: bool) -> Result<Option<PathBuf>, Failure> {
        self.write_owner_map.as_deref().map_or(Ok(()), check_new)?;
        Ok(self.write_owner_map.clone().filter(|_| !is_dry))
    }
}

/// Fails if a file is there, or its directory is not. It may be the only record of another change.
pub fn check_new(file: &Path) -> Result<(), Failure> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let reason = match (file.symlink_metadata().is_ok(), dir.is_dir()) {
        (true, _) => "it exists",
        (_, false) => "its directory does not exist",
        _ => return Ok(()),
    };
    let text = format!("cannot write {}: {reason}", file.displayed());
    Err(with_hint(text, "give the path of a new file"))
}

/// Reads a file of rules.
pub fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let read = std::fs::metadata(file).and_then(|found| match found.len() > RULES_BYTES_MAX {
        true => Err(std::io::ErrorKind::FileTooLarge.into()),
        false => std::fs::read(file),
    });
    read.map_err(|error| other(format!("cannot read {}: {error}", file.displayed())))
}

/// Prints the effects of the rules. Warns of rules that matched no entry.
pub fn show(ui: &Ui, usage: &Usage, is_dry: bool) -> Result<(), Failure> {
    for rule in &usage.rules {
        let entries = rule.entries;
        // The rules of a product name parts that an instance need not have.
        if entries == 0 && rule.source.starts_with(OF_PRODUCT) {
            continue;
        }
        if entries == 0 {
            ui.warn(&format!("{}: `{}` matched nothing", rule.source, rule.rule));
        } else if is_dry {
            let samples = rule.samples.join(", ");
            let text = format!("{}: {}: {}", rule.source, rule.rule, count(entries, "entry"));
            ui.remark(format!("{text}, such as {samples}"))?;
        }
    }
    for reason in &usage.failed_lookups {
        ui.warn(&format!("{reason}; using the number in the snapshot"));
    }
    for of in usage.disagreements.iter().take(PRINTED) {
        ui.warn(&disagreement(of));
    }
    let more = usage.disagreements.len().saturating_sub(PRINTED);
    if more > 0 {
        ui.warn(&format!("{more} other users and groups have another number or name here"));
    }
    Ok(())
}

fn disagreement(of: &Disagreement) -> String {
    let Disagreement { class, name, number, set, name_here, entries } = of;
    let (word, entries) = (class.word(), count(*entries, "entry"));
    match name_here {
        Some(here) => format!(
            "{word} {number} is {name} in the snapshot and {here} on this machine: {entries}"
        ),
        None => format!(
            "{word} {name} has number {number} in the snapshot and {set} on this machine, which is set \
             for {entries}; --numeric-ids keeps {number}"
        ),
    }
}

/// Returns the rules for `--json`.
pub fn rules(usage: &Usage) -> Vec<OwnerRule> {
    let row = |of: &'_ RuleUse| OwnerRule {
        source: of.source.clone(),
        rule: of.rule.clone(),
        entries: of.entries,
        samples: of.samples.clone(),
    };
    usage.rules.iter().map(row).collect()
}

/// Returns names and numbers that disagree, for `--json`.
pub fn renumbered(usage: &Usage) -> Vec<RenumberedOwner> {
    let row = |of: &'_ Disagreement| RenumberedOwner {
        class: of.class.word().into(),
        name: of.name.clone(),
        number: of.number,
        set: of.set,
        name_here: of.name_here.clone(),
        entries: of.entries,
    };
    usage.disagreements.iter().map(row).collect()
}

/// Returns the command line of this process for root, as a shell reads it.
pub fn command_for_root() -> String {
    let words = std::env::args_os().map(|word| quoted_path(Path::new(&word)));
    ["sudo".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}
