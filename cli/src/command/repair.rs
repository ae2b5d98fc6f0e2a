use super::instance::{self, ConfigFile};
use crate::exit::{Failure, with_hint};
use crate::json::Repaired;
use crate::ui::Ui;
use clap::{Args, Subcommand};
use forge::kind::Site;
use forge::kind::mattermost::single_sign_on;
use store::observe::Observer;

/// Repair settings that a partial restore leaves inconsistent
#[derive(Debug, Subcommand)]
pub enum Repair {
    SingleSignOn(SingleSignOn),
}

impl Repair {
    pub fn run(&self, ui: &Ui) -> Result<(), Failure> {
        match self {
            Repair::SingleSignOn(repair) => repair.run(ui),
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
    #[command(flatten)]
    config: ConfigFile,
}

impl SingleSignOn {
    fn run(&self, ui: &Ui) -> Result<(), Failure> {
        let config = self.config.read()?;
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
        let written: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
        ui.json(&Repaired { written: &written, next: &next, dry_run: self.dry_run })?;
        let would = if self.dry_run { "would write" } else { "wrote" };
        for path in &written {
            ui.line(format!("{would} id and secret into {path}"))?;
        }
        ui.line(if next.is_empty() { "nothing to repair".into() } else { format!("now {next}") })
    }
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
