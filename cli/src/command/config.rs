use super::Global;
use super::instance;
use crate::command;
use crate::exit::{Failure, with_hint};
use crate::json::{
    ConfigFault, ConfigReport, KeepRules, PlannedPart, PlannedRedis, PlannedServer,
    PlannedServices, PlannedStep, PlannedSteps,
};
use crate::preflight;
use crate::report::{count, path_text};
use crate::ui::{Ui, Watch};
use clap::{Args, Subcommand};
use forge::check::Verdict;
use forge::kind::{Kind, Site};
use forge::mask::masked;
use forge::plan::{Absent, Part, Phase, Plan};
use forge::service::Reach;
use forge::service::control::Control;
use forge::service::step::Step;
use forge::session::Snapshots;
use forge::settings::{Mode, Sample, Settings};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::entry::Displayed;
use store::observe::{Observer, Progress};
use store::retention::Rules;
use store::store::{Purpose, Store};

/// Check the configuration
#[derive(Debug, Subcommand)]
pub enum Config {
    Check(Check),
}

impl Config {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        match self {
            Config::Check(check) => check.run(global, ui),
        }
    }
}

/// Show what a backup of each instance would do
///
/// Paths, services, commands and users are resolved as a backup resolves them. Problems that would
/// prevent a backup, make it incomplete, or keep its notifications from arriving are reported, and
/// the exit code is 3. The keys are tried on values that the databases hold encrypted. This machine
/// and its databases are checked as a backup checks its copy, and compared with the last complete
/// snapshot. Nothing is stopped or copied.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep config check --instance gitlab")]
pub struct Check {
    /// Only this instance
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Do not connect to database servers and Redis
    #[arg(long)]
    offline: bool,
}

/// Maximum wait for a database server that is still starting.
const SERVER_WAIT: Duration = Duration::from_secs(2);

/// A database server's answers about the databases of a plan.
#[derive(Default)]
struct Asked {
    /// Names of the databases that a backup dumps, if the server was queried.
    dumped: Option<Vec<String>>,
    /// Databases of the plan that the server lacks.
    missing: Vec<Absent>,
    /// Reasons why servers could not be queried.
    problems: Vec<String>,
    /// Result of trying the keys on them.
    keys: Option<forge::check::Check>,
    /// Other checks.
    checks: Vec<forge::check::Check>,
}

impl Asked {
    /// Reads only files of this machine.
    fn offline(plan: &Plan, kind: &dyn Kind, snapshots: Option<Snapshots<'_>>) -> Asked {
        let keys = forge::session::keys_of_machine(plan, kind);
        let checks = forge::session::parts(plan, snapshots);
        let mut asked = Asked::default();
        for error in [keys.as_ref().err(), checks.as_ref().err()].into_iter().flatten() {
            asked.problems.push(error.to_string());
        }
        Asked { keys: keys.ok().flatten(), checks: checks.unwrap_or_default(), ..asked }
    }

    /// Asks the servers. Why one has databases that are not dumped goes to the plan's notes.
    fn of(
        plan: &mut Plan,
        kind: &dyn Kind,
        snapshots: Option<Snapshots<'_>>,
        progress: &Progress,
    ) -> Asked {
        if let Some(server) = &mut plan.postgres {
            server.wait = server.wait.min(SERVER_WAIT);
        }
        let problem = |servers: &str, error: forge::Error| {
            format!("cannot query {servers}: {error}; `--offline` skips the query")
        };
        let mut asked = match forge::session::databases(plan, kind, snapshots, progress) {
            Ok(asked) => {
                plan.notes.extend(asked.notes);
                Asked {
                    dumped: Some(asked.dumped),
                    missing: asked.missing,
                    problems: Vec::new(),
                    keys: asked.keys,
                    checks: asked.checks,
                }
            }
            Err(error) => {
                let mut asked = Asked::offline(plan, kind, snapshots);
                asked.problems.push(problem("the databases", error));
                asked
            }
        };
        let redis = forge::session::redis(plan, progress);
        asked.problems.extend(redis.err().map(|error| problem("Redis", error)));
        asked
    }
}

impl Check {
    fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = global.config.read()?;
        if let Some(name) = &self.instance {
            config.instance(name)?;
        } else if config.instances.is_empty() {
            let hint = "`forgekeep detect` proposes a configuration";
            return Err(with_hint("the configuration has no instance", hint));
        }
        let is_wanted = |name: &String| self.instance.as_ref().is_none_or(|wanted| wanted == name);
        // The result of each instance is printed as soon as it is known.
        let (watch, host) = (ui.watch("config check"), instance::host());
        watch.hush();
        let progress = Observer::progress(&*watch);
        let mut is_right = true;
        // An instance that cannot be resolved must not hide the others.
        let mut failed: Option<Failure> = None;
        for (instance, settings) in config.instances.iter().filter(|(name, _)| is_wanted(name)) {
            let site = Site { instance, settings, progress, is_offline: self.offline };
            let place = instance::place_of(&config, instance, global);
            match forge::overrides::plan(&site) {
                Ok((mut plan, kind)) => {
                    plan.own = global.own_paths();
                    let store = opened(&place, &watch, &mut plan.notes);
                    let snapshots = store.as_ref().map(|store| Snapshots { store, host: &host });
                    let asked = if self.offline {
                        Asked::offline(&plan, kind, snapshots)
                    } else {
                        Asked::of(&mut plan, kind, snapshots, progress)
                    };
                    progress.check()?;
                    let view = View::of(&plan, kind, settings, place, asked, progress);
                    view.show(ui)?;
                    ui.json(&view.line())?;
                    is_right &= view.is_right();
                }
                Err(error) => {
                    let error = Failure::from(error);
                    let message = error.words().map(|(message, _)| message);
                    ui.json(&ConfigFault { instance, error: message })?;
                    if let Some((message, _)) = failed.replace(error).and_then(|last| last.words())
                    {
                        ui.explain(&message);
                    }
                }
            }
        }
        watch.end();
        for problem in preflight::of_notifiers(&config, global.config.path()) {
            is_right = false;
            ui.warn(&problem);
        }
        match failed {
            Some(failure) => Err(failure),
            None if is_right => Ok(()),
            None => Err(Failure::Partial),
        }
    }
}

/// Opens the store of an instance, if it is there. If it cannot be read, a note says so.
fn opened(
    place: &Result<PathBuf, Failure>,
    watch: &Arc<Watch>,
    notes: &mut Vec<String>,
) -> Option<Store> {
    let place = place.as_ref().ok().filter(|place| place.join("store.json").exists())?;
    match command::open_watched(place, watch, Purpose::Read) {
        Ok(store) => Some(store),
        Err(failure) => {
            let (message, _) = failure.words().unwrap_or_default();
            notes.push(format!("cannot compare the instance with its snapshots: {message}"));
            None
        }
    }
}

/// Report about one instance.
struct View<'a> {
    plan: &'a Plan,
    title: &'static str,
    root: &'a Path,
    /// Path of the store, or the reason why there is none.
    store: Result<PathBuf, String>,
    /// Names of all services, from the plan or from the supervisor.
    supervised: Vec<String>,
    /// Required parts that are missing.
    missing: Vec<Absent>,
    problems: Vec<String>,
    /// Names of the databases that a backup dumps, if the server was queried.
    dumped: Option<Vec<String>>,
    /// Result of trying the keys on the databases, if these were asked.
    keys: Option<forge::check::Check>,
    /// Rules for the snapshots that `forget` keeps.
    keep: Option<&'a Rules>,
}

/// Returns one line about a problem.
fn with_next_step(problem: String, hint: Option<String>) -> String {
    hint.map_or(problem.clone(), |hint| format!("{problem}; {hint}"))
}

impl<'a> View<'a> {
    fn of(
        plan: &'a Plan,
        kind: &'static dyn Kind,
        settings: &'a Settings,
        place: Result<PathBuf, Failure>,
        asked: Asked,
        progress: &Progress,
    ) -> View<'a> {
        let store = place.map_err(|failure| {
            let (message, hint) = failure.words().unwrap_or_default();
            with_next_step(message, hint)
        });
        let mut problems = preflight::of_plan(plan);
        problems.extend(match &store {
            Ok(place) => preflight::of_store(place),
            Err(reason) => Some(reason.clone()),
        });
        let absent = plan.parts.iter().filter(|part| !is_there(plan, part)).map(Absent::of);
        problems.extend(asked.problems);
        if let Some(keys) = asked.keys.as_ref().filter(|keys| keys.verdict == Verdict::Failed) {
            problems.push(with_next_step(keys.text.clone(), keys.hint.clone()));
        }
        let failed = asked.checks.iter().filter(|check| check.verdict == Verdict::Failed);
        problems.extend(failed.map(|check| with_next_step(check.text.clone(), check.hint.clone())));
        let missing = absent.chain(plan.lacking.iter().cloned()).chain(asked.missing);
        let missing = missing.filter(|absent| absent.is_required).collect();
        let (title, root) = (kind.title(), settings.root.as_path());
        let supervised = plan.all_services(progress);
        let (dumped, keys, keep) = (asked.dumped, asked.keys, settings.keep.as_ref());
        if keep.is_some_and(Rules::is_empty) {
            let text = "key `keep` has no rule that keeps a snapshot; write keep = { daily = 14 }";
            problems.push(text.into());
        }
        View { plan, title, root, store, supervised, missing, problems, dumped, keys, keep }
    }

    fn is_right(&self) -> bool {
        self.missing.is_empty() && self.problems.is_empty()
    }

    /// Returns a path relative to the instance's root, as the configuration has it.
    fn path(&self, path: &Path) -> String {
        match path.strip_prefix(self.root) {
            Ok(inner) if self.root != Path::new("/") && !inner.as_os_str().is_empty() => {
                inner.displayed()
            }
            _ => path.displayed(),
        }
    }

    /// Prints the report. Problems go to standard error.
    fn show(&self, ui: &Ui) -> Result<(), Failure> {
        let instance = &self.plan.instance;
        ui.line(format!("{instance}: {}, {}", self.title, version(self.plan)))?;
        let sections = [
            ("", self.head()),
            ("files", self.files()),
            ("databases", self.databases()),
            ("Redis", self.redis()),
            ("services", self.services()),
            ("steps", self.steps()),
            ("skipped", self.skipped()),
            ("notes", self.plan.notes.iter().map(|note| (String::new(), note.clone())).collect()),
        ];
        for (name, rows) in sections.into_iter().filter(|(_, rows)| !rows.is_empty()) {
            if !name.is_empty() {
                ui.line(format!("  {name}"))?;
            }
            let indent = if name.is_empty() { 2 } else { 4 };
            let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
            for (name, text) in rows {
                let gap = if width == 0 { "" } else { "  " };
                ui.line(format!("{:indent$}{name:width$}{gap}{text}", ""))?;
            }
        }
        ui.line(format!("  {}", self.verdict()))?;
        for problem in &self.problems {
            ui.explain(&format!("{instance}: {problem}"));
        }
        if !self.missing.is_empty() {
            let missing = count(self.missing.len() as u64, "required part");
            ui.explain(&format!("{instance}: {missing} missing; a backup would not be complete"));
        }
        Ok(())
    }

    fn verdict(&self) -> String {
        let mut lacks = Vec::new();
        if !self.missing.is_empty() {
            let mut names: Vec<&str> = Vec::new();
            for absent in &self.missing {
                if !names.contains(&&*absent.part) {
                    names.push(&absent.part);
                }
            }
            lacks.push(format!("not complete, missing: {}", names.join(", ")));
        }
        if !self.problems.is_empty() {
            lacks.push(count(self.problems.len() as u64, "problem"));
        }
        if !lacks.is_empty() {
            return lacks.join("; ");
        }
        let parts = self.plan.parts.iter().filter(|part| is_there(self.plan, part)).count();
        let parts = count(parts as u64, "part");
        if let (Some(dumped), Some(_)) = (&self.dumped, &self.plan.postgres) {
            return format!("complete: {parts}, {}", count(dumped.len() as u64, "database"));
        }
        match &self.plan.postgres {
            None => format!("complete: {parts}"),
            // An empty list means all databases of the server, whose number is unknown here.
            Some(_) if self.plan.databases.is_empty() => {
                format!("complete: {parts}, all databases")
            }
            Some(_) => {
                let databases = count(self.plan.databases.len() as u64, "database");
                format!("complete: {parts}, {databases}")
            }
        }
    }

    fn head(&self) -> Vec<Row> {
        let plan = self.plan;
        let store = match &self.store {
            Ok(place) if place.join("store.json").exists() => place.displayed(),
            Ok(place) => {
                format!("{} (does not exist yet; run `forgekeep init`)", place.displayed())
            }
            Err(_) => "NONE".into(),
        };
        let mut rows = vec![row("store", store), row("mode", plan.mode.name())];
        if self.root != Path::new("/") {
            rows.push(row(
                "root",
                format!("{}, the start of relative paths", self.root.displayed()),
            ));
        }
        if !plan.tags.is_empty() {
            rows.push(row("tags", plan.tags.join(", ")));
        }
        if let Some(keep) = self.keep.filter(|keep| !keep.is_empty()) {
            rows.push(row("keep", keep.to_string()));
        }
        let caches = if plan.skips_git_caches { "skipped" } else { "kept" };
        rows.push(row("git caches", caches));
        rows.push(row(
            "checks",
            match rows_of(plan.sample) {
                None => "all rows and their files".to_owned(),
                Some(rows) => format!("files of {rows} rows per table"),
            },
        ));
        rows
    }

    fn files(&self) -> Vec<Row> {
        let parts = self.plan.parts.iter().filter(|part| !is_saved(self.plan, part));
        let mut rows: Vec<Row> = parts.map(|part| row(&part.name, self.part(part))).collect();
        for absent in &self.plan.lacking {
            let state = if absent.is_required { "MISSING" } else { "missing, optional" };
            rows.push(row(&absent.part, format!("{state}  — {}", absent.looked_for)));
        }
        rows
    }

    fn part(&self, part: &Part) -> String {
        let paths = part.paths.iter().map(|path| {
            let is_lacking = part.needs_all && !path.exists() && part.paths.len() > 1;
            format!("{}{}", self.path(path), if is_lacking { " (missing)" } else { "" })
        });
        let paths = paths.collect::<Vec<_>>().join(" ");
        let state = match (is_there(self.plan, part), part.is_required) {
            (true, _) => "",
            (false, true) => "MISSING  ",
            (false, false) => "(missing, optional)  ",
        };
        let without = match &part.exclude[..] {
            [] => String::new(),
            globs => format!("  without {}", globs.join(", ")),
        };
        format!("{state}{paths}{without}  — {}", part.about)
    }

    fn databases(&self) -> Vec<Row> {
        let Some(server) = &self.plan.postgres else { return Vec::new() };
        let user = server.reach.runs_as().unwrap_or("root");
        let host = masked(server.host.as_deref().unwrap_or("the default socket"));
        let port = server.port;
        let mut text =
            format!("{host} port {port}, clients run as {user}{}", container(&server.reach));
        if let Some(role) = &server.role {
            text += &format!(", role {role}");
        }
        if let Some(passfile) = &server.passfile {
            text += &format!(", passwords in {}", passfile.displayed());
        }
        if let Some(bin) = server.reach.bin.first() {
            text += &format!(", programs in {}", bin.displayed());
        }
        let mut rows = vec![row("server", text)];
        for database in &self.plan.databases {
            let needed = if database.is_required { "" } else { "  (optional)" };
            rows.push(row(&database.part(), format!("{}{needed}", database.name)));
        }
        let is_planned =
            |name: &&String| self.plan.databases.iter().any(|database| database.name == **name);
        match &self.dumped {
            None if self.plan.databases.is_empty() => {
                rows.push(row("databases", "all databases of the server"));
            }
            None => {}
            Some(dumped) => {
                let others = dumped.iter().filter(|name| !is_planned(name));
                rows.extend(others.map(|name| row("also dumped", name)));
            }
        }
        if let Some(keys) = &self.keys {
            rows.push(row("keys", &keys.text));
        }
        rows
    }

    fn redis(&self) -> Vec<Row> {
        let Some(redis) = &self.plan.redis else { return Vec::new() };
        let place = match (&redis.socket, &redis.host) {
            (Some(socket), _) => socket.displayed(),
            (None, Some(host)) => {
                let host = masked(host);
                redis.port.map_or_else(|| host.clone(), |port| format!("{host} port {port}"))
            }
            (None, None) => "its default address".into(),
        };
        let seconds = redis.limit.as_secs();
        let container = container(&redis.reach);
        let mut rows = vec![row("server", format!("{place}{container}, saved within {seconds} s"))];
        for part in self.plan.parts.iter().filter(|part| is_saved(self.plan, part)) {
            let paths: Vec<String> = part.paths.iter().map(|path| self.path(path)).collect();
            rows.push(row("saves to", paths.join(" ")));
        }
        rows
    }

    fn services(&self) -> Vec<Row> {
        let mut rows = match &self.plan.control {
            Control::Nothing => Vec::new(),
            Control::Supervised(supervisor) => {
                let (writers, program) =
                    (supervisor.writers.join(", "), supervisor.program.join(" "));
                let not = if self.plan.mode == Mode::Online { "; not in this mode" } else { "" };
                vec![row("stopped", format!("{writers} by {program}{not}"))]
            }
            Control::Commands { stop, start } => {
                let stops = stop.iter().map(|step| row("stopped by", shown(step)));
                stops.chain(start.iter().map(|step| row("started by", shown(step)))).collect()
            }
        };
        if !self.supervised.is_empty() {
            rows.push(row("supervised", self.supervised.join(", ")));
        }
        rows
    }

    fn steps(&self) -> Vec<Row> {
        let before = self.plan.before.iter().map(|step| row("before", shown(step)));
        before.chain(self.plan.after.iter().map(|step| row("after", shown(step)))).collect()
    }

    fn skipped(&self) -> Vec<Row> {
        let globs = self.plan.exclude.iter().map(|glob| row(glob, "excluded"));
        let paths = self.plan.skipped.iter().map(|left| row(&self.path(&left.path), &left.reason));
        globs.chain(paths).collect()
    }

    /// Returns the report as a line of `--json`.
    fn line(&self) -> ConfigReport<'_> {
        let plan = self.plan;
        let text = path_text;
        let steps = |steps: &'a [Step]| steps.iter().map(PlannedStep::from).collect();
        let part = |part| PlannedPart { part, is_there: is_there(plan, part) };
        ConfigReport {
            instance: &plan.instance,
            kind: plan.kind,
            title: self.title,
            product: &plan.product,
            store: self.store.as_ref().ok().map(|place| text(place)),
            mode: plan.mode,
            root: text(self.root),
            tags: &plan.tags,
            keep: self.keep.map(KeepRules::from),
            git_caches: !plan.skips_git_caches,
            sample: rows_of(plan.sample),
            exclude: &plan.exclude,
            parts: plan.parts.iter().map(part).collect(),
            missing: &self.missing,
            databases: &plan.databases,
            dumped: self.dumped.as_deref(),
            keys: self.keys.as_ref(),
            postgres: plan.postgres.as_ref().map(|server| PlannedServer {
                host: server.host.as_deref(),
                port: server.port,
                role: server.role.as_deref(),
                user: server.reach.user.as_deref(),
                passfile: server.passfile.as_deref().map(text),
                bin: server.reach.bin.iter().map(|dir| text(dir)).collect(),
                into: &server.reach.into,
            }),
            redis: plan.redis.as_ref().map(|redis| PlannedRedis {
                socket: redis.socket.as_deref().map(text),
                host: redis.host.as_deref(),
                port: redis.port,
                into: &redis.reach.into,
                seconds: redis.limit.as_secs(),
            }),
            services: match &plan.control {
                Control::Nothing => None,
                Control::Supervised(supervisor) => Some(PlannedServices::Supervised {
                    program: &supervisor.program,
                    writers: &supervisor.writers,
                }),
                Control::Commands { stop, start } => {
                    Some(PlannedServices::Commands { stop: steps(stop), start: steps(start) })
                }
            },
            supervised: &self.supervised,
            steps: PlannedSteps { before: steps(&plan.before), after: steps(&plan.after) },
            skipped: &plan.skipped,
            notes: &plan.notes,
            problems: &self.problems,
            is_right: self.is_right(),
        }
    }
}

/// A name and its description.
type Row = (String, String);

fn row(name: &str, text: impl AsRef<str>) -> Row {
    (name.to_owned(), text.as_ref().to_owned())
}

/// Returns true if a part exists, or if a service will save it during the backup.
fn is_there(plan: &Plan, part: &Part) -> bool {
    part.is_there() || is_saved(plan, part)
}

fn is_saved(plan: &Plan, part: &Part) -> bool {
    part.phase == Phase::RedisFiles && plan.redis.is_some()
}

fn shown(step: &Step) -> String {
    let user = step.command.user.as_deref().unwrap_or("root");
    format!("{} as {user}", step.command.shown())
}

fn version(plan: &Plan) -> String {
    let known = [plan.product.version.as_deref(), plan.product.edition.as_deref()];
    let known: Vec<&str> = known.into_iter().flatten().collect();
    if known.is_empty() { "version unknown".into() } else { known.join(" ") }
}

/// Returns a note that names the container in which a service's clients run; empty if there is
/// none.
fn container(reach: &Reach) -> String {
    reach.into.last().map_or_else(String::new, |name| format!(" in container {name}"))
}

/// Number of rows checked in each table; `None` if all are.
fn rows_of(sample: Sample) -> Option<u32> {
    match sample {
        Sample::Rows(rows) => Some(rows),
        Sample::All => None,
    }
}
