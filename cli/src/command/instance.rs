//! Code shared by the commands about instances.

use super::{GLOBAL, Global, backup};
use crate::config::{Config, DEFAULT, StoreSettings};
use crate::exit::{Failure, is_of_other_user, other, with_hint};
use crate::notifications::Notifications;
use crate::report::{count, size, skipped_records};
use crate::run_record::RunRecord;
use crate::ui::Ui;
use clap::Args;
use forge::check::{Check, Verdict};
use forge::kind::Site;
use forge::manifest::{self, DIR, Manifest};
use forge::owners::OwnersAs;
use forge::plan::Absent;
use forge::recovery::{Monitor, Record};
use forge::session::{Job, Outcome};
use forge::settings::Settings;
use std::path::{Path, PathBuf};
use store::backup::BackupOptions;
use store::id::SnapshotId;
use store::observe::{Event, Observer};
use store::snapshot::Snapshot;
use store::store::Store;
use store::tree::Lookup;

/// Options that choose an instance, or a directory without one: the argument `dir` of the command.
#[derive(Debug, Args)]
pub struct InstanceOrKind {
    /// Name of the instance
    #[arg(long, value_name = "NAME", required_unless_present_any = ["kind_as", "dir"])]
    pub instance: Option<String>,
    /// Kind of DIR, which needs no configuration
    #[arg(
        long = "as",
        value_name = "KIND[=UID:GID]",
        conflicts_with = "instance",
        requires = "dir"
    )]
    pub kind_as: Option<OwnersAs>,
}

impl InstanceOrKind {
    /// Returns the name, which is there without `--as`.
    pub fn name(&self) -> &str {
        self.instance.as_deref().unwrap_or_default()
    }
}

/// Option that names the configuration.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// Configuration file
    #[arg(
        long = "config",
        global = true,
        help_heading = GLOBAL,
        value_name = "FILE",
        env = "FORGEKEEP_CONFIG",
        hide_env_values = true,
        default_value = DEFAULT
    )]
    config_file: PathBuf,
}

impl ConfigFile {
    /// Returns the path of the configuration file.
    pub fn path(&self) -> &Path {
        &self.config_file
    }

    /// Reads the configuration file.
    pub fn read(&self) -> Result<Config, Failure> {
        Config::read(&self.config_file)
    }

    /// Returns the program's own files and directories: stores, the state directory and the
    /// configuration. A configuration that cannot be read names none.
    pub fn own_paths(&self) -> Vec<PathBuf> {
        let (config, _) = self.for_recovery();
        let stores = config.stores.into_values().map(|store| store.path);
        let own = [config.state, self.config_file.clone()];
        stores.chain(own).collect()
    }

    /// Reads what the steps of a killed run need, and why the rest cannot be read.
    pub fn for_recovery(&self) -> (Config, Option<Failure>) {
        Config::for_recovery(&self.config_file)
    }

    /// Reads the configuration file; `None` if the default one does not exist.
    pub fn read_if_any(&self) -> Result<Option<Config>, Failure> {
        let is_default = self.config_file == Path::new(DEFAULT);
        let is_missing = || {
            let found = self.config_file.symlink_metadata();
            found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        if is_default && is_missing() { Ok(None) } else { self.read().map(Some) }
    }
}

/// Returns the host name of this machine.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns the store of an instance, from the command line or else from the configuration. Fails if
/// the configuration expects a mounted disk or another store there.
pub fn place_of(config: &Config, name: &str, global: &Global) -> Result<PathBuf, Failure> {
    match &global.store {
        Some(place) => Ok(place.clone()),
        None => configured_store(config, name)?.expected().map(Path::to_owned),
    }
}

/// Like [`place_of`], for a command that does not open the store.
pub fn place_unseen(config: &Config, name: &str, global: &Global) -> Result<PathBuf, Failure> {
    match &global.store {
        Some(place) => Ok(place.clone()),
        None => Ok(configured_store(config, name)?.path.clone()),
    }
}

fn configured_store<'a>(config: &'a Config, name: &str) -> Result<&'a StoreSettings, Failure> {
    let store = config.store_of(name, config.instance(name)?)?;
    store.ok_or_else(|| {
        let hint = "add [stores.main] with its path to the configuration, or give --store DIR";
        with_hint(format!("no store is configured for instance {name}"), hint)
    })
}

/// Returns the content of a file about the instance in its snapshot; `None` if the file is missing.
pub fn kept(store: &Store, snapshot: &Snapshot, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let path = format!("{DIR}/{name}");
    let entry = Lookup::new(&snapshot.root.chunk(), store).at(path.as_bytes())?;
    let Some(entry) = entry else { return Ok(None) };
    if entry.size > manifest::BYTES_MAX {
        return Err(other(format!("{path} is too large: {}", size(entry.size))));
    }
    let mut text = Vec::new();
    let dumped = store::dump::dump(store, &entry, &mut text)?;
    dumped.map(|()| Some(text)).map_err(|error| other(error.to_string()))
}

/// Returns the manifest of an instance in its snapshot; `None` if it has none.
pub fn manifest(
    store: &Store,
    id: &SnapshotId,
    snapshot: &Snapshot,
) -> Result<Option<Manifest>, Failure> {
    let Some(text) = kept(store, snapshot, manifest::FILE)? else { return Ok(None) };
    let manifest = Manifest::from_json(&text)
        .map_err(|error| other(format!("cannot read snapshot {}: {error}", id.short())))?;
    Ok(Some(manifest))
}

/// An error of a command that backs nothing up, with a next step that fits it.
pub fn without_backup(error: forge::Error) -> Failure {
    use forge::Error as E;
    let hint = match error {
        E::Failed { ref output, .. } if is_of_stopped_container(output) => {
            "start the container and run the command again"
        }
        E::Failed { ref output, .. } if is_of_other_user(output) => {
            "only root can run programs as another user; run the command as root"
        }
        E::Failed { .. } | E::Service { .. } => {
            "start the database server and load its databases, or set its address under `postgres` \
             in the configuration"
        }
        E::TooSlow { .. } => "nothing was changed; find the cause of the delay and try again",
        E::Pooler { .. } => "set postgres.host and postgres.port to those of the server itself",
        error => return error.into(),
    };
    with_hint(error.to_string(), hint)
}

/// Returns true if Docker or podman refused a command because its container does not run.
pub fn is_of_stopped_container(output: &str) -> bool {
    let output = output.to_lowercase();
    let words = ["is not running", "container state improper", "no such container"];
    output.contains("container") && words.iter().any(|words| output.contains(words))
}

/// Backs up an instance.
pub fn backup(
    settings: &Settings,
    record: &mut Record,
    notifications: &Notifications<'_>,
    store: &Store,
    mut options: BackupOptions,
) -> Result<Outcome, Failure> {
    let observer = store.observer();
    let instance = record.instance().to_owned();
    let site =
        Site { instance: &instance, settings, progress: observer.progress(), is_offline: false };
    let (plan, kind) = forge::overrides::plan(&site)?;
    let configured = plan.exclude.iter().map(|glob| glob.clone().into_bytes());
    options.excludes.splice(0..0, configured);
    options.git_caches = !plan.skips_git_caches;
    for note in &plan.notes {
        observer.event(Event::Note(note.clone()));
    }
    let job = Job { plan: &plan, kind, store, options, monitor: notifications };
    Ok(forge::session::backup(job, record)?)
}

/// Fails if a rebuild of the instance is not finished: a backup would copy half an instance.
pub fn expect_no_rebuild(state: &Path, name: &str) -> Result<(), Failure> {
    match forge::rebuild::Record::unfinished(state, name)? {
        None => Ok(()),
        Some(id) => {
            let (instance, snapshot) = (name.to_owned(), id[..id.len().min(8)].to_owned());
            Err(forge::Error::Unfinished { instance, snapshot }.into())
        }
    }
}

/// Finishes the steps that a killed run left, before the next run. Returns an error message for the
/// notifications: a failure must not cost a night's backup.
pub fn work_off(record: &mut Record, notifications: &Notifications<'_>, ui: &Ui) -> Option<String> {
    if record.left().is_empty() {
        return None;
    }
    let watch = ui.watch("recover");
    let done = notifications.at_once(|| recover(record, notifications, &*watch));
    watch.end();
    done.err().and_then(|failure| failure.words()).map(|(message, _)| message)
}

/// Finishes the steps that a killed run left, and returns their number. Fails if one cannot be
/// done.
pub fn recover(
    record: &mut Record,
    monitor: &dyn Monitor,
    observer: &dyn Observer,
) -> Result<usize, Failure> {
    let left: Vec<String> = record.left().iter().rev().map(|undo| undo.shown()).collect();
    if left.is_empty() {
        return Ok(0);
    }
    let text = format!(
        "an earlier run for {} left unfinished steps: {}; doing them now",
        record.instance(),
        left.join(", ")
    );
    observer.event(Event::Warning(text));
    let mut failed = record.undo(monitor);
    let Some((what, error)) = failed.pop() else { return Ok(left.len()) };
    for (what, error) in failed {
        observer.event(Event::Warning(format!("cannot {what}: {error}")));
    }
    let hint = format!(
        "do it by hand if users are waiting; `forgekeep recover` tries again, and \
         `forgekeep recover --forget --instance {}` drops the unfinished steps",
        record.instance()
    );
    Err(with_hint(format!("cannot {what}: {error}"), hint))
}

/// Prints the outcome of a backup. Fails if it is not good.
pub fn show(ui: &Ui, record: &RunRecord, outcome: &Outcome) -> Result<(), Failure> {
    let shown = backup::saved_all_the_same(print(ui, record, outcome), &outcome.report);
    // The exit code must be right even if printing the result failed.
    if record.is_good() { shown } else { Err(Failure::Partial) }
}

fn print(ui: &Ui, record: &RunRecord, outcome: &Outcome) -> Result<(), Failure> {
    let manifest = &outcome.manifest;
    show_findings(ui, &manifest.missing, &manifest.checks)?;
    for database in &manifest.databases {
        let rows: u64 = database.tables.iter().map(|table| table.rows).sum();
        ui.detail(format!(
            "database {}: {}, {}",
            database.name,
            size(database.bytes),
            count(rows, "row")
        ))?;
    }
    ui.json(record)?;
    ui.remark(format!(
        "{}, {}",
        count(manifest.databases.len() as u64, "database"),
        count(outcome.project_count as u64, "project")
    ))?;
    if let Some(seconds) = manifest.seconds_down {
        ui.remark(format!("services were down for {seconds:.1} s"))?;
    }
    backup::remarks(ui, record, &outcome.report)?;
    for failure in
        outcome.failures.iter().cloned().chain(skipped_records(outcome.report.skipped_records))
    {
        ui.explain(&failure);
    }
    backup::explain_losses(&outcome.report, Some(&manifest.instance), ui);
    if !outcome.is_complete {
        ui.explain("the backup is not complete; see the missing parts above");
    }
    Ok(())
}

/// Prints missing parts and the results of checks.
pub fn show_findings(ui: &Ui, missing: &[Absent], checks: &[Check]) -> Result<(), Failure> {
    for absent in missing {
        ui.json(absent)?;
        let text = format!("{} is missing: {}", absent.part, absent.looked_for);
        if absent.is_required { ui.explain(&text) } else { ui.detail(text)? }
    }
    for check in checks {
        ui.json(check)?;
        show_check(ui, check)?;
    }
    Ok(())
}

/// Prints the result of a check.
pub fn show_check(ui: &Ui, check: &Check) -> Result<(), Failure> {
    let text = format!("{}: {}", check.name, check.text);
    match check.verdict {
        Verdict::Ok => ui.remark(text)?,
        Verdict::Unknown | Verdict::Warning | Verdict::Failed => {
            ui.explain(&text);
            for example in &check.examples {
                ui.explain(&format!("  {example}"));
            }
        }
    }
    if let Some(hint) = &check.hint {
        ui.explain(&format!("  {hint}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_container_is_not_taken_for_a_database_server() {
        let of = |output: &str| {
            let (command, status, output) =
                ("docker exec".into(), "exit code 1".into(), output.into());
            without_backup(forge::Error::Failed { command, status, output })
                .words()
                .expect("words")
                .1
        };
        for output in [
            "Error response from daemon: container 0123abcd is not running",
            "Error: can only create exec sessions on running containers: container state improper",
            "Error response from daemon: No such container: forge",
        ] {
            assert!(of(output).expect("a hint").starts_with("start the container"), "{output}");
        }
        let of_server = of("psql: error: connection refused");
        assert!(of_server.expect("a hint").starts_with("start the database server"));
    }
}
