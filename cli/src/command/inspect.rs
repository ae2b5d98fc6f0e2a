use super::Global;
use super::instance::{self, ConfigFile};
use crate::exit::{Failure, other, with_hint};
use crate::report::{count, local_time, size, utc_time};
use crate::select;
use crate::ui::Ui;
use clap::Args;
use forge::check::Check;
use forge::kind::{Kind, Site};
use forge::plan::Plan;
use serde_json::{Value, json};
use std::path::Path;
use store::entry::display_path;
use store::store::Purpose;

/// Inspect an instance on this machine, or its state in a snapshot
///
/// Without SNAPSHOT, the checks of a backup run on the files of this machine and on the running
/// databases. Use it after a restore. The keys are tried on values that the databases hold
/// encrypted. Nothing is changed and no store is needed; if one is configured, the keys are
/// compared with its last complete snapshot. The exit code is 3 if something is missing or wrong. A
/// check that cannot run is only reported.
///
/// With SNAPSHOT, the state at the time of the backup is shown: versions, databases, services,
/// missing parts and the results of the checks. `latest` is the latest snapshot of this instance.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep inspect --instance gitlab
  forgekeep inspect --instance gitlab latest")]
pub struct Inspect {
    /// Name of the instance
    #[arg(long, value_name = "NAME")]
    instance: String,
    /// Id or unique prefix, `latest` or `latest~N`
    snapshot: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Inspect {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        match &self.snapshot {
            None => self.machine(global, ui),
            Some(wanted) => self.snapshot(wanted, global, ui),
        }
    }

    fn machine(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = self.config.read()?;
        let settings = config.instance(&self.instance)?;
        let watch = ui.watch("inspect");
        let progress = store::observe::Observer::progress(&*watch);
        let look = || {
            let site = Site { instance: &self.instance, settings, progress, is_offline: false };
            let (plan, kind) = forge::overrides::plan(&site)?;
            let inspection = forge::session::inspect(&plan, kind, progress)?;
            Ok::<_, forge::Error>((plan, kind, inspection))
        };
        let looked = look();
        watch.end();
        let (plan, kind, mut inspection) = looked.map_err(instance::without_backup)?;
        // After a disaster there may be no store, or none that can be read.
        if let Ok(place) = instance::place_of(&config, &self.instance, global)
            && place.join("store.json").exists()
        {
            match changed_keys(&place, &plan, kind, ui) {
                Ok(check) => inspection.checks.extend(check),
                Err(failure) => {
                    let (reason, _) = failure.words().unwrap_or_default();
                    ui.warn(&format!("cannot compare the keys with a snapshot: {reason}"));
                }
            }
        }
        for note in &plan.notes {
            ui.warn(note);
        }
        instance::show_findings(ui, &inspection.missing, &inspection.checks)?;
        let is_right = inspection.is_right();
        let summary = json!({
            "instance": plan.instance,
            "kind": plan.kind,
            "product": inspection.product,
            "postgres": inspection.postgres,
            "projects": inspection.project_count,
            "is_right": is_right,
        });
        ui.json("summary", summary)?;
        if is_right {
            return ui.remark(format!("{}: no problems found", plan.instance));
        }
        ui.explain(&format!("{}: problems found, see above", plan.instance));
        Err(Failure::Partial)
    }

    fn snapshot(&self, wanted: &str, global: &Global, ui: &Ui) -> Result<(), Failure> {
        // A machine that is being rebuilt may have no configuration yet.
        let place = match &global.store {
            Some(place) => place.clone(),
            None => instance::place_of(&self.config.read()?, &self.instance, global)?,
        };
        let (store, watch) = super::open(&place, ui, Purpose::Read, "inspect")?;
        let name = &self.instance;
        let read = || {
            let (id, snapshot) = select::find_of_instance(&store, wanted, name)?;
            let facts = instance::kept(&store, &snapshot, "instance.json")?.ok_or_else(|| {
                let hint = "`forgekeep snapshots` shows which snapshots are complete";
                with_hint(format!("snapshot {} has no instance.json", id.short()), hint)
            })?;
            Ok::<_, Failure>((id, snapshot, facts))
        };
        let read = read();
        watch.end();
        let (id, snapshot, facts) = read?;
        let mut facts: Value = serde_json::from_slice(&facts).map_err(|error| {
            other(format!("cannot read instance.json of snapshot {}: {error}", id.short()))
        })?;
        let is_complete = snapshot.instance.is_some_and(|instance| instance.is_complete);
        let state = if is_complete { "complete" } else { "NOT COMPLETE" };
        let time = snapshot.start.into();
        ui.line(format!("{name}: snapshot {} of {}, {state}", id.short(), local_time(time)))?;
        show(ui, &facts)?;
        facts["snapshot"] = id.to_string().into();
        facts["time"] = utc_time(time).into();
        facts["is_complete"] = is_complete.into();
        ui.json("instance", facts)
    }
}

/// Whether the keys are others than those of the last complete snapshot.
fn changed_keys(
    place: &Path,
    plan: &Plan,
    kind: &'static dyn Kind,
    ui: &Ui,
) -> Result<Option<Check>, Failure> {
    let (store, watch) = super::open(place, ui, Purpose::Read, "inspect")?;
    let changed = forge::session::changed_keys(plan, kind, &store, &instance::host());
    watch.end();
    Ok(changed?)
}

/// Returns a line for each database with unfinished background migrations.
fn unfinished(migrations: &Value) -> Vec<String> {
    let databases = migrations.as_object().into_iter().flatten();
    let left = databases.filter_map(|(database, states)| {
        let states = states.as_object().into_iter().flatten();
        let left: Vec<String> = states
            .filter(|(state, _)| !["finished", "finalized"].contains(&state.as_str()))
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        (!left.is_empty()).then(|| format!("{database}: unfinished: {}", left.join(", ")))
    });
    left.map(|line| display_path(line.as_bytes())).collect()
}

/// Prints the facts that a restore needs.
fn show(ui: &Ui, facts: &Value) -> Result<(), Failure> {
    let line = |name: &str, text: String| ui.line(format!("  {name:13} {text}"));
    let text = |value: &Value| value.as_str().map(|text| display_path(text.as_bytes()));
    let list = |name: &str| facts[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let product = &facts["product"];
    let words = ["name", "version", "edition"].map(|key| text(&product[key]));
    line("product", words.into_iter().flatten().collect::<Vec<_>>().join(" "))?;
    if let Some(image) = text(&product["image"]) {
        line("image", image)?;
    }
    line("mode", text(&facts["mode"]).unwrap_or_default())?;
    if let Some(version) = text(&facts["postgres"]) {
        line("postgres", version)?;
    }
    for database in list("databases") {
        let name = text(&database["name"]).unwrap_or_default();
        let schema = text(&facts["schema"][&name]);
        let schema = schema.map_or_else(String::new, |schema| format!(", schema {schema}"));
        let bytes = size(database["bytes"].as_u64().unwrap_or_default());
        line("database", format!("{name}: {bytes}{schema}"))?;
    }
    if let Some(moment) = text(&facts["databases_at"]) {
        line("databases of", moment)?;
    }
    if let [Some(begin), Some(end)] = [0, 1].map(|at| text(&facts["files_at"][at])) {
        line("files of", format!("{begin} to {end}"))?;
    }
    for migrations in unfinished(&facts["background_migrations"]) {
        line("migrations", migrations)?;
    }
    let services: Vec<String> = list("services").iter().filter_map(text).collect();
    if !services.is_empty() {
        line("services", services.join(", "))?;
    }
    line("parts", count(list("parts").len() as u64, "part"))?;
    for absent in list("missing") {
        let needed = if absent["is_required"] == true { "" } else { "  (optional)" };
        let [part, place] = ["part", "looked_for"].map(|key| text(&absent[key]));
        let (part, place) = (part.unwrap_or_default(), place.unwrap_or_default());
        line("missing", format!("{part}: {place}{needed}"))?;
    }
    if let Some(seconds) = facts["seconds_down"].as_f64() {
        line("down", format!("{seconds:.1} s"))?;
    }
    for note in list("notes").iter().filter_map(text) {
        line("note", note)?;
    }
    for check in list("checks") {
        if let Ok(check) = serde_json::from_value::<Check>(check.clone()) {
            instance::show_check(ui, &check)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_migrations_are_shown() {
        let migrations = json!({
            "main": {"finished": 7, "active": 2, "failed": 1},
            "ci": {"finalized": 3, "finished": 1},
        });
        assert_eq!(unfinished(&migrations), ["main: unfinished: 2 active, 1 failed"]);
        assert!(unfinished(&Value::Null).is_empty());
    }
}
