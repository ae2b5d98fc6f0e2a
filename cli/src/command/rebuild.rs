use super::{Global, instance};
use crate::config::{self, Config};
use crate::exit::{Failure, usage, with_hint};
use crate::json::{MovedAside, RebuildStage, RebuildSummary};
use crate::report::{count, local_time, now, utc_time};
use crate::select::{self, Filter, Found};
use crate::selector::{Selector, of_instance};
use crate::ui::Ui;
use clap::Args;
use forge::manifest::{self, Manifest};
use forge::process::quoted_path;
use forge::rebuild::{
    Aside, Forgotten, Job, Outcome, Record, Stage, clear, lacking, moves, rebuild,
};
use forge::recovery;
use forge::set_aside;
use forge::settings::{PartSettings, Settings};
use std::path::{Path, PathBuf};
use store::entry::Displayed;
use store::store::{Purpose, Store};

/// Paths that a refusal names; more are only counted.
const NAMED: usize = 5;

/// Rebuild a whole instance from a snapshot, on this machine
///
/// Restores configuration and secrets, lets the product apply them, stops its services, restores files
/// with the owners of the kind, loads roles and databases, puts the queue of the same moment in place,
/// starts the services and examines the result. The version and edition of the snapshot must be
/// installed first.
///
/// Nothing is deleted: data of this machine is renamed, and its new names are printed. A command that
/// failed or was killed continues where it stopped when it runs again. Backups of the instance are
/// refused until the rebuild is finished.
///
/// --dry-run prints all steps and changes nothing. The exit code is 3 if the instance was rebuilt and
/// a check found a fault.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep rebuild gitlab --dry-run
  forgekeep rebuild gitlab --yes
  forgekeep rebuild gitlab 2026-11-20 --yes")]
pub struct Rebuild {
    /// Name of the instance, also with a snapshot (`gitlab@2026-11-20`)
    #[arg(value_name = "NAME")]
    instance: String,
    /// Snapshot, such as `latest` or `2026-11-20` (`forgekeep --help` lists all forms) [default:
    /// that of an unfinished rebuild, else latest]
    snapshot: Option<String>,
    /// Print the steps without changing anything
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Rename data that this machine already has of the instance, also on its database server, and
    /// empty a Redis that has keys
    #[arg(long)]
    yes: bool,
    /// Address of a database server or a Redis that the rebuild may change though the configuration of
    /// this machine names another one, as the error message writes it
    #[arg(long, value_name = "ADDRESS")]
    server: Vec<String>,
    /// Rebuild from a snapshot that is not complete. The exit code is then 3
    #[arg(long)]
    incomplete: bool,
    /// Forget an unfinished rebuild. Everything stays as it is
    #[arg(long, conflicts_with_all = ["snapshot", "dry_run", "yes", "server", "incomplete"])]
    forget: bool,
    /// Number of repositories to examine at the end
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    sample: usize,
    /// Directory for database dumps while they are loaded
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
    #[command(flatten)]
    filter: Filter,
}

impl Rebuild {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let (instance, snapshot) = of_instance(&self.instance, self.snapshot.as_deref())?;
        Rebuild { instance, snapshot, ..self.clone() }.begin(global, ui)
    }

    fn begin(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = global.config.read_if_any()?;
        let state = config.as_ref().map_or_else(config::state, |config| config.state.clone());
        if self.forget {
            return self.forget(&state, ui);
        }
        if !rustix::process::geteuid().is_root() && !self.dry_run {
            let hint = "run the command as root, or with --dry-run";
            return Err(with_hint("only root can rebuild an instance", hint));
        }
        let unfinished = Record::unfinished(&state, &self.instance)?;
        // An unfinished rebuild continues with its own snapshot.
        let wanted = self.snapshot.as_deref().or(unfinished.as_deref()).unwrap_or("latest");
        let selector = Selector::read(wanted)?;
        let place = match (&global.store, &config) {
            (Some(place), _) => place.clone(),
            (None, Some(config)) => instance::place_of(config, &self.instance, global)?,
            (None, None) => global.place()?,
        };
        let (store, watch) = super::open(&place, ui, Purpose::Read, "rebuild")?;
        let done = self.rebuild(&store, &selector, config.as_ref(), &state, global, ui);
        watch.end();
        done
    }

    /// Fails if an unfinished rebuild is from another snapshot.
    fn expect_same(&self, unfinished: Option<&str>, chosen: &str) -> Result<(), Failure> {
        match unfinished {
            Some(unfinished) if unfinished != chosen => Err(usage(
                format!(
                    "a rebuild from snapshot {} is not finished, and this one is {}",
                    &unfinished[..unfinished.len().min(8)],
                    &chosen[..8]
                ),
                format!(
                    "continue it with `forgekeep rebuild {name}`, or forget it with `forgekeep \
                     rebuild {name} --forget` and begin again",
                    name = self.instance
                ),
            )),
            _ => Ok(()),
        }
    }

    fn rebuild(
        &self,
        store: &Store,
        selector: &Selector,
        config: Option<&Config>,
        state: &Path,
        global: &Global,
        ui: &Ui,
    ) -> Result<(), Failure> {
        let Found { id, snapshot, is_sure } =
            select::find_of_instance(store, selector, &self.instance, &self.filter)?;
        let unfinished = Record::unfinished(state, &self.instance)?;
        self.expect_same(unfinished.as_deref(), &id.to_string())?;
        let manifest = instance::manifest(store, &id, &snapshot)?.ok_or_else(|| {
            let hint = "`forgekeep snapshots` shows which snapshots are complete";
            with_hint(format!("snapshot {} has no {}", id.short(), manifest::FILE), hint)
        })?;
        let lacking = lacking(&snapshot, &manifest);
        if !lacking.is_empty() && !self.incomplete {
            return Err(with_hint(
                format!("snapshot {} is NOT COMPLETE: {}", id.short(), lacking.join("; ")),
                "choose another one (`forgekeep snapshots`), or give --incomplete to rebuild without \
                 the missing parts",
            ));
        }
        let own = config.and_then(|config| config.instances.get(&self.instance));
        let of_kind;
        let settings = match own {
            Some(settings) => settings,
            None => {
                // A new machine has no configuration yet.
                ui.warn(&format!(
                    "instance {} is not configured here; using the defaults of kind {}",
                    self.instance, manifest.kind
                ));
                of_kind = settings_of(&manifest);
                &of_kind
            }
        };
        let suffix = set_aside::suffix(&compact(&utc_time(now())));
        // Nothing else may change or back up the instance meanwhile.
        let lock = match self.dry_run {
            true => None,
            false => Some(recovery::Record::open(state, &self.instance)?),
        };
        if let Some(left) = lock.as_ref().and_then(|lock| lock.left().first()) {
            let message = format!("a killed backup left a step: {}", left.shown());
            return Err(with_hint(message, "run `forgekeep recover` first"));
        }
        let mut record = Record::open(state, &self.instance, &id.to_string(), &suffix)?;
        let config_path = global.config.path();
        let kept = vec![
            ("the store", store.root().unwrap_or(Path::new("/nonexistent"))),
            ("the configuration", config_path),
            ("the state directory", state),
        ];
        let job = Job {
            instance: &self.instance,
            settings,
            store,
            snapshot: &snapshot,
            manifest: &manifest,
            kept,
            scratch: &self.scratch,
            sample: self.sample,
            is_dry: self.dry_run,
            is_consented: self.yes,
            servers: &self.server,
        };
        let at = local_time(snapshot.start.into());
        let begin = if record.is_continued { "continuing the rebuild from" } else { "from" };
        ui.line(format!(
            "{}: {begin} snapshot {} of {at} in {}",
            self.instance,
            id.short(),
            store.place()
        ))?;
        if !record.is_continued && !self.yes && !self.dry_run {
            self.expect_consent(&moves(&job, &suffix)?)?;
        }
        let mut broken = None;
        let mut say = |stage: Stage, text: &str| {
            let line = RebuildStage { stage, text, dry_run: self.dry_run };
            let shown = ui.json(&line).and_then(|()| {
                let (number, name) = (stage.number(), stage.name());
                ui.line(format!("{number}/{} {name:13} {text}", Stage::ALL.len()))
            });
            // A rebuild does not stop because nobody reads its output.
            broken = shown.err().or(broken.take());
        };
        let outcome = rebuild(&job, &mut record, &mut say).map_err(|error| {
            if Record::unfinished(state, &self.instance).ok().flatten().is_some() {
                ui.warn("the rebuild is not finished; the same command continues it");
            }
            with_next_step(error)
        })?;
        self.show(ui, store, &id.to_string(), &outcome)?;
        if !self.dry_run {
            record.close()?;
        }
        match broken {
            Some(failure) => Err(failure),
            None if outcome.is_good() && is_sure => Ok(()),
            None => Err(Failure::Partial),
        }
    }

    /// Fails if data of this machine would be moved without consent.
    fn expect_consent(&self, moves: &[Aside]) -> Result<(), Failure> {
        if moves.is_empty() {
            return Ok(());
        }
        let named: Vec<String> =
            moves.iter().take(NAMED).map(|aside| aside.from.displayed()).collect();
        let more = moves.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!(
            "this machine has data of instance {}: {}{more}; a rebuild renames it",
            self.instance,
            named.join(", ")
        );
        Err(with_hint(
            message,
            "give --yes if this is the right machine; --dry-run shows all steps",
        ))
    }

    fn show(&self, ui: &Ui, store: &Store, id: &str, outcome: &Outcome) -> Result<(), Failure> {
        instance::show_findings(ui, &[], &outcome.checks)?;
        for (from, to) in &outcome.aside {
            ui.json(&MovedAside { from, to })?;
            ui.line(format!("kept: {from} is now {to}"))?;
        }
        ui.json(&RebuildSummary {
            store: store.place(),
            instance: &self.instance,
            snapshot: id,
            is_good: outcome.is_good(),
            dry_run: self.dry_run,
            left: &outcome.left,
        })?;
        if !outcome.left.is_empty() {
            ui.line("left to do:")?;
            outcome.left.iter().try_for_each(|line| ui.line(format!("  {line}")))?;
        }
        let name = &self.instance;
        ui.line(match (self.dry_run, outcome.is_good()) {
            (true, _) => format!("{name}: nothing was changed"),
            (false, true) => format!("{name}: rebuilt, no problems found"),
            (false, false) => format!("{name}: rebuilt; problems found, see above"),
        })
    }

    fn forget(&self, state: &Path, ui: &Ui) -> Result<(), Failure> {
        clear(&self.scratch);
        let Some(forgotten) = Record::forget(state, &self.instance)? else {
            return ui.line("no rebuild is unfinished");
        };
        let Forgotten { aside, has_stopped, policies, scratch } = forgotten;
        if let Some(scratch) = scratch {
            clear(&scratch);
        }
        for Aside { from, to, .. } in aside.iter().filter(|aside| aside.is_done) {
            ui.json(&MovedAside { from: &from.displayed(), to: &to.displayed() })?;
            ui.line(format!("kept: {} is now {}", quoted_path(from), quoted_path(to)))?;
        }
        if has_stopped {
            ui.warn(
                "the rebuild had stopped services; start them, with `gitlab-ctl start` for GitLab's \
                 package and `docker start` for containers",
            );
        }
        for (name, policy) in &policies {
            ui.warn(&format!(
                "container {name} no longer starts by itself; run `docker update \
                 --restart={policy} {name}`"
            ));
        }
        let moved = count(aside.len() as u64, "path");
        ui.line(format!("{}: forgotten; {moved} moved by it stay where they are", self.instance))
    }
}

/// Returns the settings of a kind. Only the snapshot knows the parts of an instance of no product.
fn settings_of(manifest: &Manifest) -> Settings {
    let mut settings = Settings::of_kind(&manifest.kind);
    let product = forge::kind::find(&manifest.kind).is_some_and(|kind| kind.is_product());
    for part in manifest.parts.iter().filter(|_| !product) {
        let paths = PartSettings { paths: part.paths.clone(), ..PartSettings::default() };
        settings.parts.insert(part.name.clone(), paths);
    }
    settings
}

/// Adds a next step to errors of programs, for which other commands have another one.
fn with_next_step(error: forge::Error) -> Failure {
    use forge::Error as E;
    let hint = match error {
        E::Failed { ref output, .. } if instance::is_of_stopped_container(output) => {
            "start the container, and run the command again"
        }
        E::Failed { .. } | E::TooSlow { .. } | E::Service { .. } | E::Start { .. } => {
            "mend the cause, and run the command again"
        }
        E::Store(store::Error::Target { .. }) | E::Write { .. } => {
            "make space or mend the cause, and run the same command again: it continues, and keeps \
             what is restored"
        }
        error => return error.into(),
    };
    with_hint(error.to_string(), hint)
}

/// Formats a time in UTC for names: to the second, without punctuation.
fn compact(time: &str) -> String {
    let (seconds, _) = time.split_once('.').unwrap_or((time.trim_end_matches('Z'), ""));
    let digits: String = seconds.chars().filter(char::is_ascii_alphanumeric).collect();
    digits + "Z"
}
