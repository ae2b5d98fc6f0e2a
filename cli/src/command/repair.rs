use super::Global;
use super::instance::{self, InstanceOrKind};
use super::owner_options;
use crate::exit::{Failure, with_hint};
use crate::json::{Repaired, RepairedOwners};
use crate::report::{count, path_text};
use crate::ui::Ui;
use clap::{Args, Subcommand};
use forge::check::Verdict;
use forge::kind::Site;
use forge::kind::mattermost::single_sign_on;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use store::entry::{Displayed, display_path};
use store::observe::Observer;
use store::owner_map::OwnerMap;

/// Repair settings and owners that a partial restore or a copy leaves wrong
#[derive(Debug, Subcommand)]
pub enum Repair {
    SingleSignOn(SingleSignOn),
    Owners(Owners),
}

impl Repair {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        match self {
            Repair::SingleSignOn(repair) => repair.run(global, ui),
            Repair::Owners(repair) => repair.run(global, ui),
        }
    }
}

/// Give the Mattermost beside GitLab the id and secret that GitLab has
///
/// After a restore of GitLab's database without its secrets file, users cannot sign in to
/// Mattermost. The values are taken from another file that still has them, or from the database if
/// it stores the secret in plain text. Newer versions store only a hash, from which the secret
/// cannot be recovered; then the command prints the way out. Files keep their owner and mode.
/// Nothing is restarted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep repair single-sign-on --instance gitlab --dry-run")]
pub struct SingleSignOn {
    /// Name of the instance
    #[arg(long, value_name = "NAME")]
    instance: String,
    /// Write nothing; print the changes
    #[arg(long)]
    dry_run: bool,
}

impl SingleSignOn {
    fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = global.config.read()?;
        let settings = config.instance(&self.instance)?;
        let watch = ui.watch("repair");
        let progress = Observer::progress(&*watch);
        let repair = || -> Result<_, Failure> {
            let site = Site { instance: &self.instance, settings, progress, is_offline: false };
            let (plan, kind) = forge::overrides::plan(&site)?;
            let catalogue = forge::session::catalogue(&plan, kind, progress)
                .map_err(instance::without_backup)?;
            single_sign_on::repair(&plan, &catalogue, self.dry_run).map_err(unrepaired)
        };
        let repaired = repair();
        watch.end();
        let single_sign_on::Repair { written, next } = repaired?;
        let written: Vec<String> = written.iter().map(|path| path_text(path)).collect();
        ui.json(&Repaired { written: &written, next: &next, dry_run: self.dry_run })?;
        let would = if self.dry_run { "would write" } else { "wrote" };
        for path in &written {
            ui.line(format!("{would} id and secret into {path}"))?;
        }
        ui.line(if next.is_empty() { "nothing to repair".into() } else { format!("now {next}") })
    }
}

/// Paths that were not changed that are printed.
const FAILURES_MAX: usize = 20;

/// Give the files of an instance the owners and modes that the product needs
///
/// Changes the paths that `inspect` reports. Before a path is changed, rules that undo the change are
/// written to a new file; `repair owners --owner-map FILE` then sets the old owners and modes again.
/// Links are not followed below the directories of the product. Nothing is restarted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep repair owners --instance gitlab --dry-run
  forgekeep repair owners --as docker-gitlab /srv/docker/gitlab/gitlab
  forgekeep repair owners --as docker-gitlab /srv/docker/gitlab/gitlab --owner-map undo.map")]
pub struct Owners {
    #[command(flatten)]
    of: InstanceOrKind,
    /// Root of the machine, or directory of all data
    #[arg(requires = "kind_as")]
    dir: Option<PathBuf>,
    /// Change nothing; print the changes
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Set the owners and modes of these rules instead, such as those that undo a repair
    #[arg(long, value_name = "FILE")]
    owner_map: Option<PathBuf>,
    /// New file for the rules that undo the changes [default: owners-TIME.map in this directory]
    #[arg(long, value_name = "FILE")]
    write_owner_map: Option<PathBuf>,
}

impl Owners {
    fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let rules = match &self.owner_map {
            Some(file) => {
                let text = owner_options::read(file)?;
                Some(forge::owners::rules_of_file(&file.displayed(), &text)?)
            }
            None => None,
        };
        let undo = self.write_owner_map.clone().unwrap_or_else(new_map);
        owner_options::check_new(&undo)?;
        // Read before the work begins, so that a signal ends the wait for a silent pipe.
        let place = match self.of.kind_as.as_ref().zip(self.dir.as_ref()) {
            Some(place) => Ok(place),
            None => Err(global.config.read()?),
        };
        let watch = ui.watch("repair");
        let progress = Observer::progress(&*watch);
        let repair = || -> Result<_, Failure> {
            let (mut plan, elsewhere) = match &place {
                Ok((kind, dir)) => kind.plan(dir)?,
                Err(config) => {
                    let name = self.of.name();
                    let settings = config.instance(name)?;
                    let site = |is_offline| Site { instance: name, settings, progress, is_offline };
                    // After a restore, a server may be down.
                    let plan = forge::overrides::plan(&site(false));
                    (plan.or_else(|_| forge::overrides::plan(&site(true)))?.0, Vec::new())
                }
            };
            plan.own = global.own_paths();
            let undo = Some(&*undo).filter(|_| !self.dry_run);
            let repaired = forge::owners::repair(&plan, progress, rules.as_ref(), undo)?;
            Ok((plan.notes, elsewhere, repaired))
        };
        let repaired = repair();
        watch.end();
        let (notes, elsewhere, (check, repaired)) = repaired?;
        let notes = if self.of.kind_as.is_some() { notes } else { Vec::new() };
        notes.iter().chain(&elsewhere).for_each(|note| ui.warn(note));
        let undo = (repaired.changed > 0 && !self.dry_run).then(|| path_text(&undo));
        let failed: Vec<String> = repaired
            .failed
            .iter()
            .map(|(path, error)| format!("{}: {error}", display_path(path.as_os_str().as_bytes())))
            .collect();
        ui.json(&RepairedOwners {
            looked_at: repaired.looked_at,
            changed: repaired.changed,
            examples: &repaired.examples,
            failed: &failed,
            undo: undo.as_deref(),
            dry_run: self.dry_run,
        })?;
        for example in &repaired.examples {
            ui.remark(format!("  {example}"))?;
        }
        if let Some(check) = check.filter(|check| check.verdict == Verdict::Unknown) {
            ui.warn(&check.text);
        }
        for text in failed.iter().take(FAILURES_MAX) {
            ui.explain(&format!("not changed: {text}"));
        }
        if failed.len() > FAILURES_MAX {
            ui.explain(&format!("{} more were not changed", failed.len() - FAILURES_MAX));
        }
        if repaired.unlisted > 0 {
            let dirs = count(repaired.unlisted, "directory");
            ui.explain(&format!("{dirs} could not be listed, and nothing in them was looked at"));
        }
        let has_match = |rules: &OwnerMap| rules.usage().rules.iter().any(|rule| rule.entries > 0);
        if let Some(file) =
            self.owner_map.as_ref().filter(|_| !rules.as_ref().is_some_and(has_match))
        {
            ui.warn(&format!("the rules of {} matched nothing here", file.displayed()));
        }
        let would = if self.dry_run { "would change" } else { "changed" };
        let (changed, looked_at) = (repaired.changed, count(repaired.looked_at, "path"));
        ui.line(format!("{would} owner or mode of {changed} of {looked_at}"))?;
        if let Some(undo) = undo {
            ui.line(format!("to undo: repeat the command with --owner-map {undo}"))?;
        }
        if repaired.looked_at == 0 {
            ui.explain("no path has a known owner; `forgekeep inspect` tells why");
        }
        let is_whole = failed.is_empty()
            && repaired.unlisted == 0
            && repaired.looked_at > 0
            && notes.is_empty();
        if is_whole { Ok(()) } else { Err(Failure::Partial) }
    }
}

/// Returns a new name in this directory.
fn new_map() -> PathBuf {
    let seconds = crate::report::now().seconds;
    let names = (1..).map(|number| match number {
        1 => format!("owners-{seconds}.map"),
        number => format!("owners-{seconds}-{number}.map"),
    });
    let mut names = names.map(PathBuf::from).filter(|name| name.symlink_metadata().is_err());
    names.next().unwrap_or_default()
}

/// A failed repair is not a fault of the configuration and needs another hint.
fn unrepaired(error: forge::Error) -> Failure {
    match error {
        forge::Error::Settings { .. } => with_hint(
            error.to_string(),
            "nothing was changed; `forgekeep inspect` shows the state of single sign-on between GitLab and Mattermost",
        ),
        error => error.into(),
    }
}
