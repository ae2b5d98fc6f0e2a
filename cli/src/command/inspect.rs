use super::Global;
use super::instance::{self, InstanceOrKind};
use crate::config::Config;
use crate::examination;
use crate::exit::{Failure, usage, with_hint};
use crate::json::{InspectSummary, InspectedSnapshot, SnapshotCheck};
use crate::report::shown;
use crate::report::{local_time, size, utc_time};
use crate::run_id::RunId;
use crate::select::{self, Filter, Found};
use crate::selector::Selector;
use crate::ui::{Ui, Watch};
use clap::Args;
use forge::check::{Check, Verdict};
use forge::kind::Site;
use forge::manifest::{self, Dumped, Manifest};
use forge::owners::OwnersAs;
use forge::plan::Product;
use forge::recovery::Record;
use forge::session::{Snapshots, Unfinished};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use store::backup::tree_path;
use store::check_record::CheckRecord;
use store::entry::Displayed;
use store::store::{Purpose, Store};
use store::tree::TreeReader;

/// Inspect an instance on this machine, or its state in a snapshot
///
/// Without SNAPSHOT, the checks of a backup run on the files of this machine and on the running
/// databases. Use it after a restore. The keys are tried on values that the databases hold
/// encrypted. The command changes nothing and needs no store. If a store is configured, the command
/// compares keys and repositories with its last complete snapshot. It names services that do not run,
/// and work that a killed run left undone. The exit code is 3 if something
/// is missing or wrong. The command only reports a check that cannot run.
///
/// With SNAPSHOT, the command prints the state at the time of the backup: versions, databases, services,
/// missing parts and the results of the checks, and the last checks and drills of the snapshot. `latest` is the latest snapshot of this instance.
///
/// With --as, the command inspects a copy or a restored tree: owners and modes, borrowed objects
/// that are missing, old locks. DIR is the root of the machine or the directory of all data.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep inspect --instance gitlab
  forgekeep inspect gitlab@latest
  forgekeep inspect --as docker-gitlab /srv/docker/gitlab/gitlab
  forgekeep inspect --as gitlab=998:998 /mnt/restored")]
pub struct Inspect {
    #[command(flatten)]
    of: InstanceOrKind,
    /// Snapshot, such as `gitlab@latest`, or `latest` with --instance (`forgekeep --help` lists all forms); with --as,
    /// a directory
    #[arg(id = "dir", value_name = "SNAPSHOT|DIR")]
    snapshot: Option<String>,
    #[command(flatten)]
    filter: Filter,
}

/// Maximum number of checks and drills of a snapshot that are shown: the newest.
const CHECKS_MAX: usize = 5;

impl Inspect {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        if let Some(kind) = &self.of.kind_as {
            return self.directory(kind, global, ui);
        }
        match &self.snapshot {
            None => self.machine(global, ui),
            Some(wanted) => self.snapshot(wanted, global, ui),
        }
    }

    /// Inspects a copy or a restored tree.
    fn directory(&self, kind: &OwnersAs, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let watch = ui.watch("inspect");
        let progress = store::observe::Observer::progress(&*watch);
        let dir = Path::new(self.snapshot.as_deref().unwrap_or_default());
        let look = || {
            let (mut plan, elsewhere) = kind.plan(dir)?;
            plan.own = global.own_paths();
            let owners = forge::owners::check(&plan, progress)?;
            let others =
                forge::owners::leftovers(&plan.parts, crate::report::now().seconds, progress)?;
            let checks: Vec<Check> = owners.into_iter().chain(others).collect();
            Ok::<_, forge::Error>((plan.notes, elsewhere, checks))
        };
        let looked = look();
        watch.end();
        let (notes, elsewhere, checks) = looked?;
        notes.iter().chain(&elsewhere).for_each(|note| ui.warn(note));
        instance::show_findings(ui, &[], &checks)?;
        // Notes name data that was not looked at.
        if notes.is_empty() && checks.iter().all(|check| check.verdict == Verdict::Ok) {
            return ui.remark("no problems found");
        }
        let is_wrong = |check: &Check| check.name == "owners" && check.verdict > Verdict::Unknown;
        let next = match checks.iter().any(is_wrong) {
            true => "; `forgekeep repair owners` mends owners and modes",
            false => "",
        };
        ui.explain(&format!("problems found, see above{next}"));
        Err(Failure::Partial)
    }

    fn machine(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = global.config.read()?;
        let settings = config.instance(self.of.name())?;
        let opened = open_store(&config, self.of.name(), global, ui);
        let (store, watch) = match opened {
            Some((store, watch)) => (Some(store), watch),
            None => (None, ui.watch("inspect")),
        };
        let progress = store::observe::Observer::progress(&*watch);
        let (host, unfinished) = (instance::host(), unfinished_work(&config, self.of.name())?);
        let snapshots = store.as_ref().map(|store| Snapshots { store, host: &host });
        let look = || {
            let site = Site { instance: self.of.name(), settings, progress, is_offline: false };
            let (mut plan, kind) = forge::overrides::plan(&site)?;
            plan.own = global.own_paths();
            let mut inspection = forge::session::inspect(&plan, kind, snapshots, progress)?;
            if let Some(unfinished) = &unfinished {
                inspection.checks.extend(forge::session::services(&plan, unfinished, progress)?);
            }
            Ok::<_, forge::Error>((plan, inspection))
        };
        let looked = look();
        watch.end();
        let (plan, inspection) = looked.map_err(instance::without_backup)?;
        for note in &plan.notes {
            ui.warn(note);
        }
        instance::show_findings(ui, &inspection.missing, &inspection.checks)?;
        let is_right = inspection.is_right();
        ui.json(&InspectSummary {
            store: store.as_ref().map(Store::place),
            instance: &plan.instance,
            kind: plan.kind,
            product: &inspection.product,
            postgres: inspection.postgres.as_deref(),
            projects: inspection.project_count,
            is_right,
        })?;
        if is_right {
            return ui.remark(format!("{}: no problems found", plan.instance));
        }
        ui.explain(&format!("{}: problems found, see above", plan.instance));
        Err(Failure::Partial)
    }

    fn snapshot(&self, wanted: &str, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let wanted = Selector::read(wanted)?;
        let of = self.of.instance.as_ref().or(wanted.instance.as_ref());
        let Some(name) = of.map(String::as_str) else {
            let next = format!("give --instance NAME, or write NAME@{wanted}");
            return Err(usage(format!("the instance of {wanted} is unknown"), next));
        };
        // A machine that is being rebuilt may have no configuration yet.
        let place = match &global.store {
            Some(place) => place.clone(),
            None => instance::place_of(&global.config.read()?, name, global)?,
        };
        let (store, watch) = super::open(&place, ui, Purpose::Read, "inspect")?;
        let read = || {
            let found = select::find_of_instance(&store, &wanted, name, &self.filter)?;
            let (id, snapshot) = (&found.id, &found.snapshot);
            let manifest = instance::manifest(&store, id, snapshot)?.ok_or_else(|| {
                let hint = "`forgekeep snapshots` shows which snapshots are complete";
                with_hint(format!("snapshot {} has no {}", id.short(), manifest::FILE), hint)
            })?;
            Ok::<_, Failure>((found, manifest))
        };
        let read = read();
        watch.end();
        let (Found { id, snapshot, is_sure }, manifest) = read?;
        let is_complete = snapshot.instance.is_some_and(|instance| instance.is_complete);
        let state = if is_complete { "complete" } else { "NOT COMPLETE" };
        let time = snapshot.start.into();
        let (place, at) = (store.place(), local_time(time));
        ui.line(format!("{name}: snapshot {} of {at} in {place}, {state}", id.short()))?;
        let records = examination::read(&store, ui);
        let checks: Vec<&CheckRecord> = records
            .iter()
            .filter(|record| record.snapshots.contains(&id))
            .take(CHECKS_MAX)
            .collect();
        checks.iter().try_for_each(|record| {
            let text =
                format!("{}, {}", examination::shown(record), record.outcome_for(&id).name());
            ui.line(format!("  {:13} {text}", "examined"))
        })?;
        let root = snapshot.root.chunk();
        let is_stored =
            |path: &Path| TreeReader::within(&root, &tree_path(path), &store).next().is_some();
        show(ui, &manifest, &is_stored)?;
        ui.json(&InspectedSnapshot {
            store: place,
            snapshot: id.to_string(),
            time: utc_time(time),
            is_complete,
            run_id: snapshot.run.map(|run| RunId::from_bytes(*run).to_string()),
            statistics: snapshot.statistics,
            examinations: checks.iter().map(|record| SnapshotCheck::of(record, &id)).collect(),
            manifest,
        })?;
        select::answered(is_sure)
    }
}

/// Returns the work that earlier runs left undone. `None` while another run of the instance works,
/// which may have stopped services for a moment.
fn unfinished_work(config: &Config, instance: &str) -> Result<Option<Unfinished>, Failure> {
    let Some(steps) = Record::steps(&config.state, instance)? else { return Ok(None) };
    let rebuild = forge::rebuild::Record::unfinished(&config.state, instance)?;
    Ok(Some(Unfinished { steps, rebuild }))
}

/// Opens the store of the instance. After a disaster there may be no store, or none that can be
/// read; a warning then names it.
fn open_store(
    config: &Config,
    instance: &str,
    global: &Global,
    ui: &Ui,
) -> Option<(Store, Arc<Watch>)> {
    let place = match instance::place_of(config, instance, global) {
        Ok(place) => place,
        Err(failure) => {
            if let Failure::WrongStore { message, .. } = &failure {
                ui.warn(&format!("cannot compare the instance with its snapshots: {message}"));
            }
            return None;
        }
    };
    if !place.join("store.json").exists() {
        ui.warn(&format!(
            "store {} is missing or not mounted, so keys and repositories are not compared with a \
             snapshot",
            place.displayed()
        ));
        return None;
    }
    match super::open(&place, ui, Purpose::Read, "inspect") {
        Ok(opened) => Some(opened),
        Err(failure) => {
            let (reason, _) = failure.words().unwrap_or_default();
            ui.warn(&format!("cannot compare the instance with its snapshots: {reason}"));
            None
        }
    }
}

/// Returns a line for each database with unfinished background migrations.
fn unfinished(migrations: &BTreeMap<String, BTreeMap<String, u64>>) -> Vec<String> {
    let left = migrations.iter().filter_map(|(database, states)| {
        let left: Vec<String> = states
            .iter()
            .filter(|(state, _)| !["finished", "finalized"].contains(&state.as_str()))
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        (!left.is_empty()).then(|| format!("{database}: unfinished: {}", left.join(", ")))
    });
    left.collect()
}

/// Prints the manifest for a restore. Of the paths of parts, it prints those that the snapshot has.
fn show(ui: &Ui, manifest: &Manifest, is_stored: &dyn Fn(&Path) -> bool) -> Result<(), Failure> {
    let line = |name: &str, text: &str| ui.line(format!("  {name:13} {}", shown(text)));
    let Product { name, version, edition, image } = &manifest.product;
    let words = [Some(name), version.as_ref(), edition.as_ref()].into_iter().flatten();
    line("product", &words.map(String::as_str).collect::<Vec<_>>().join(" "))?;
    if let Some(image) = image {
        line("image", image)?;
    }
    line("mode", manifest.mode.name())?;
    if let Some(version) = &manifest.postgres {
        line("postgres", version)?;
    }
    for Dumped { name, bytes, .. } in &manifest.databases {
        let schema = manifest.schema.get(name);
        let schema = schema.map_or_else(String::new, |schema| format!(", schema {schema}"));
        line("database", &format!("{name}: {}{schema}", size(*bytes)))?;
    }
    if let Some(time) = &manifest.databases_at {
        line("databases of", time)?;
    }
    if let [Some(begin), Some(end)] = &manifest.files_at {
        line("files of", &format!("{begin} to {end}"))?;
    }
    for migrations in unfinished(&manifest.background_migrations) {
        line("migrations", &migrations)?;
    }
    if !manifest.services.is_empty() {
        line("services", &manifest.services.join(", "))?;
    }
    let width = manifest.parts.iter().map(|part| part.name.len()).max().unwrap_or_default();
    for part in &manifest.parts {
        for path in part.paths.iter().chain(&part.links).filter(|path| is_stored(path)) {
            let name = format!("{:width$}", part.name);
            line("part", &format!("{name}  {}", path.displayed()))?;
        }
    }
    for absent in &manifest.missing {
        let needed = if absent.is_required { "" } else { "  (optional)" };
        line("missing", &format!("{}: {}{needed}", absent.part, absent.looked_for))?;
    }
    if let Some(seconds) = manifest.seconds_down {
        line("down", &format!("{seconds:.1} s"))?;
    }
    for note in &manifest.notes {
        line("note", note)?;
    }
    manifest.checks.iter().try_for_each(|check| instance::show_check(ui, check))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_migrations_are_shown() {
        let states = |all: &[(&str, u64)]| {
            all.iter().map(|(state, count)| ((*state).to_owned(), *count)).collect()
        };
        let migrations = BTreeMap::from([
            ("main".to_owned(), states(&[("finished", 7), ("active", 2), ("failed", 1)])),
            ("ci".to_owned(), states(&[("finalized", 3), ("finished", 1)])),
        ]);
        assert_eq!(unfinished(&migrations), ["main: unfinished: 2 active, 1 failed"]);
        assert!(unfinished(&BTreeMap::new()).is_empty());
    }
}
