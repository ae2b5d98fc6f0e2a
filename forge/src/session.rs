//! The sequence of a backup, for all kinds.
//!
//! ```text
//! online        consistency point ─▶ dumps ─▶ repositories ─▶ pools ─▶ files
//!
//! maintenance   repositories ─▶ pools ─▶ files
//!               stop ─▶ consistency point ─▶ repositories ─▶ pools ─▶ files ─▶ start ─▶ dumps
//! ```
//!
//! Write-ahead logs of repositories, if there are any, come before the repositories.
//!
//! Data that refers to other data is held or copied first, so that no file that a database names is
//! missing. The consistency point holds an exported snapshot of each database. It lasts until
//! the dump is made; in maintenance mode that is after the restart of the services.

mod dumps;
mod emptied;
mod free_space;
mod inspection;
mod keys;
mod logs;
mod redis_files;
mod services;
mod stopped;
mod vanished;

use crate::catalogue::Catalogue;
use crate::check::{Check, Verdict};
use crate::earlier::Earlier;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::manifest::{self, DIR, Dumped, Manifest, NO_ROLE_PASSWORDS};
use crate::plan::{Absent, Part, Phase, Plan};
use crate::recovery::{Monitor, Record, Undo};
use crate::service::redis::{Saved, Saving};
use crate::service::step::Step;
use crate::settings::{Mode, OnFailure};
use crate::view::View;
use dumps::ConsistencyPoint;
pub use inspection::{
    Asked, Inspection, Snapshots, catalogue, databases, inspect, keys as keys_of_machine, parts,
    redis,
};
pub use services::{Unfinished, services};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stopped::Stopped;
use store::backup::{Backup, BackupOptions, Likeness, Report, Sources};
use store::id::SnapshotId;
use store::observe::{Event, Progress};
use store::snapshot::{Instance, Snapshot};
use store::store::Store;

/// Phases that are copied while services may be stopped.
const FILES: [Phase; 3] = [Phase::Repositories, Phase::Pools, Phase::Files];

/// Inputs of a backup.
pub struct Job<'a> {
    /// Plan of the backup.
    pub plan: &'a Plan,
    /// Kind of the instance.
    pub kind: &'static dyn Kind,
    /// Store to back up to.
    pub store: &'a Store,
    /// BackupOptions for reading files, common exclusions and data for the record of the snapshot.
    pub options: BackupOptions,
    /// Silences monitoring.
    pub monitor: &'a dyn Monitor,
}

/// Result of a backup.
#[derive(Debug)]
pub struct Outcome {
    /// Figures and id of the snapshot.
    pub report: Report,
    /// Facts about the instance, as stored in the snapshot.
    pub manifest: Manifest,
    /// Number of projects in the catalogue.
    pub project_count: usize,
    /// True if nothing required is missing, no check failed and every file was readable.
    pub is_complete: bool,
    /// Failures besides the snapshot, such as a service that did not start again.
    pub failures: Vec<String>,
}

impl Outcome {
    /// Returns true if nothing needs the admin's attention.
    pub fn is_good(&self) -> bool {
        let report = &self.report;
        self.is_complete
            && self.failures.is_empty()
            && report.skipped_records == 0
            && report.emptied.is_empty()
    }

    /// Id of the snapshot; `None` for a dry run.
    pub fn snapshot(&self) -> Option<SnapshotId> {
        self.report.snapshot
    }
}

/// Backs up an instance. Each stop and each silence is recorded in `record` first, and removed when
/// it is undone. A step that could not be undone, or is due later, stays there. Failures besides
/// the snapshot are in the outcome.
pub fn backup(mut job: Job<'_>, record: &mut Record) -> Result<Outcome> {
    job.options.guard.max_loss = emptied::limits(job.plan);
    let after = &job.plan.after;
    if !after.is_empty() && !job.options.is_dry {
        // Recorded first, so that they run even if this process is killed.
        record.note(Undo::Run {
            commands: after.iter().map(|step| step.command.clone()).collect(),
        })?;
    }
    let progress = job.store.observer().progress();
    let mut result = steps(&job, &job.plan.before, progress).and_then(|()| run(&job, record));
    // A request to stop the backup does not apply to these commands.
    let failures = if job.options.is_dry { Vec::new() } else { finish(&job, after) };
    let failures = failures.into_iter().chain(record.ended().err());
    match &mut result {
        Ok(outcome) => outcome.failures.extend(failures.map(|error| error.to_string())),
        Err(_) => failures.for_each(|error| {
            job.store.observer().event(Event::Warning(error.to_string()));
        }),
    }
    result
}

fn run(job: &Job<'_>, record: &mut Record) -> Result<Outcome> {
    let likeness = Likeness::Instance(job.plan.instance.clone());
    let backup = Backup::begin(job.store, &job.options, likeness)?;
    free_space::look_for_space(job, &backup)?;
    let mut session = Session {
        job,
        backup,
        missing: job.plan.lacking.clone(),
        catalogue: Catalogue::default(),
        databases: Vec::new(),
        postgres: None,
        redis: None,
        redis_files: Vec::new(),
        down: None,
        stopped: Vec::new(),
        undumped: Vec::new(),
        failures: Vec::new(),
        databases_at: None,
        files_at: [None, None],
    };
    match job.plan.mode {
        _ if job.options.is_dry => session.dry()?,
        Mode::Online => session.online()?,
        Mode::Maintenance => session.maintenance(record)?,
    }
    session.finish()
}

/// Runs the admin's commands up to the first failure that counts.
fn steps(job: &Job<'_>, steps: &[Step], progress: &Progress) -> Result<()> {
    if job.options.is_dry {
        return Ok(());
    }
    steps.iter().try_for_each(|step| run_step(job, step, progress))
}

/// Runs all of the admin's commands, even after failures. Returns the failures that count.
fn finish(job: &Job<'_>, steps: &[Step]) -> Vec<Error> {
    let progress = Progress::default();
    steps.iter().filter_map(|step| run_step(job, step, &progress).err()).collect()
}

fn run_step(job: &Job<'_>, step: &Step, progress: &Progress) -> Result<()> {
    match step.command.output(progress) {
        Err(error) if step.on_failure == OnFailure::Warn && !error.is_interrupted() => {
            job.store.observer().event(Event::Warning(error.to_string()));
            Ok(())
        }
        done => done.map(drop),
    }
}

/// State of a backup.
struct Session<'j> {
    job: &'j Job<'j>,
    backup: Backup<'j>,
    missing: Vec<Absent>,
    catalogue: Catalogue,
    databases: Vec<Dumped>,
    postgres: Option<String>,
    redis: Option<Saved>,
    /// Persistence files of Redis.
    redis_files: Vec<PathBuf>,
    down: Option<Duration>,
    /// Names of the services that were stopped and started again.
    stopped: Vec<String>,
    /// Names of the databases that could not be dumped.
    undumped: Vec<String>,
    failures: Vec<String>,
    /// Time of the databases' consistency point.
    databases_at: Option<String>,
    /// Start and end of the last copy of files.
    files_at: [Option<String>; 2],
}

impl<'j> Session<'j> {
    /// Current time in the format of the manifest.
    fn now(&self) -> Option<String> {
        let time = (self.job.options.about.clock)();
        let time = jiff::Timestamp::from_second(time.seconds).ok()?;
        Some(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }

    fn online(&mut self) -> Result<()> {
        let mut point = self.connect()?;
        self.databases_at = self.now();
        point.take()?;
        let saving = self.begin_save()?;
        self.dump(point)?;
        self.end_save(saving)?;
        self.copy_files()
    }

    /// Queries databases and reads files, but stops, saves and dumps nothing.
    fn dry(&mut self) -> Result<()> {
        let mut point = self.connect()?;
        self.postgres = point.version();
        // Its transactions are read-only.
        point.take()?;
        self.catalogue = self.job.kind.ask(self.job.plan, point.connections())?;
        self.report_undumped(&point);
        self.copy_files()
    }

    fn maintenance(&mut self, record: &mut Record) -> Result<()> {
        let job = self.job;
        // Most of the work, while all services run.
        self.copy_files()?;
        self.backup.again()?;
        // Parts that were missing from the first copy may exist by now.
        self.missing.clone_from(&job.plan.lacking);
        let (saving, point) = match self.copy_stopped(record) {
            Err(Error::Restarted { services }) => {
                let text = format!(
                    "another program, such as `gitlab-ctl reconfigure`, started {}, which must \
                     stay stopped during the copy; waiting for that program, then trying once more",
                    services.join(", ")
                );
                job.store.observer().event(Event::Warning(text));
                if let Some(supervisor) = job.plan.control.supervisor() {
                    supervisor.settle(job.store.observer().progress())?;
                }
                self.backup.again()?;
                self.missing.clone_from(&job.plan.lacking);
                self.copy_stopped(record)?
            }
            done => done?,
        };
        self.end_save(saving)?;
        self.dump(point)
    }

    /// Stops services, holds databases, copies changes and starts the services again.
    fn copy_stopped(
        &mut self,
        record: &mut Record,
    ) -> Result<(Option<Saving<'j>>, ConsistencyPoint<'j>)> {
        let job = self.job;
        let mut point = self.connect()?;
        if let Some(redis) = &job.plan.redis {
            // Waits here, rather than while services are down.
            redis.settle(job.store.observer().progress())?;
        }
        let note = |text: String| job.store.observer().event(Event::Note(text));
        let mut stopped = Stopped::begin(job, record)?;
        self.stopped = stopped.names().to_vec();
        if !self.stopped.is_empty() {
            note(format!("stopped {}", self.stopped.join(", ")));
        }
        let after_stop = stopped.elapsed();
        self.databases_at = self.now();
        point.take()?;
        let saving = self.begin_save()?;
        let after_hold = stopped.elapsed();
        self.copy_files()?;
        stopped.expect_down()?;
        let after_copy = stopped.elapsed();
        let failures;
        (self.down, failures) = stopped.end();
        drop(stopped);
        if let (Some(down), true) = (self.down, failures.is_empty()) {
            note(format!(
                "restarted after {:.1} s: {:.1} to stop, {:.1} to hold databases, {:.1} to copy \
                 changes, {:.1} to start",
                down.as_secs_f64(),
                after_stop.as_secs_f64(),
                (after_hold - after_stop).as_secs_f64(),
                (after_copy - after_hold).as_secs_f64(),
                (down - after_copy).as_secs_f64(),
            ));
        }
        self.failures.extend(failures);
        Ok((saving, point))
    }

    /// Connects to all databases.
    fn connect(&mut self) -> Result<ConsistencyPoint<'j>> {
        let (point, missing) =
            ConsistencyPoint::open(self.job.plan, self.job.store.observer().progress())?;
        self.missing.extend(missing);
        for note in point.notes() {
            self.job.store.observer().event(Event::Note(note.clone()));
        }
        Ok(point)
    }

    /// Copies everything but dumps and the files of Redis.
    fn copy_files(&mut self) -> Result<()> {
        let began = self.now();
        self.copy_logs()?;
        self.copy(&FILES)?;
        self.files_at = [began, self.now()];
        Ok(())
    }

    /// Copies the parts of these phases, in the order of the phases.
    fn copy(&mut self, phases: &[Phase]) -> Result<()> {
        let plan = self.job.plan;
        for &phase in phases {
            let mut sources = Sources::default();
            for part in &plan.parts {
                if part.phase == phase {
                    self.add(part, &mut sources)?;
                } else {
                    // Copied in another phase.
                    sources.leave.extend(part.paths.iter().cloned());
                }
            }
            if phase == Phase::RedisFiles {
                sources.paths.extend(self.redis_files.iter().filter(|path| path.exists()).cloned());
            }
            sources.leave.extend(plan.skipped.iter().map(|left| left.path.clone()));
            if !sources.paths.is_empty() || !sources.links.is_empty() {
                self.backup.paths(&sources)?;
            }
        }
        Ok(())
    }

    /// Adds a part to the sources, or records that it is missing.
    fn add(&mut self, part: &Part, sources: &mut Sources) -> Result<()> {
        // Validates each glob by itself: appended to a path, any text would be a pattern.
        store::glob::Globs::new(part.exclude.iter().map(String::as_bytes))?;
        let is_something = |path: &&PathBuf| path.symlink_metadata().is_ok();
        let there: Vec<PathBuf> = part.paths.iter().filter(is_something).cloned().collect();
        if !part.is_there() && !self.missing.iter().any(|absent| absent.part == part.name) {
            self.missing.push(Absent::of(part));
        }
        for path in &there {
            let globs = self.job.plan.excluded_at(part, path);
            let within = |glob: &String| store::glob::within(path, relative(glob, path));
            sources.excludes.extend(globs.map(within));
        }
        sources.links.extend(part.links.iter().cloned());
        sources.paths.extend(there);
        Ok(())
    }

    /// Queries the catalogue, then dumps every database at its consistency point.
    fn dump(&mut self, mut point: ConsistencyPoint<'_>) -> Result<()> {
        self.catalogue = self.job.kind.ask(self.job.plan, point.connections())?;
        self.catalogue.notes.extend(point.notes().iter().cloned());
        self.databases = point.dump(&mut self.backup)?;
        self.postgres = point.version();
        self.report_undumped(&point);
        if !point.reads_passwords() {
            self.catalogue.notes.push(NO_ROLE_PASSWORDS.into());
        }
        Ok(())
    }

    /// Reports databases that are not required and could not be dumped.
    fn report_undumped(&mut self, point: &ConsistencyPoint<'_>) {
        for undumped in point.undumped() {
            let text = undumped.text();
            // Without names in the plan, all databases of the server belong to the instance.
            if self.job.plan.databases.is_empty() {
                self.missing.push(Absent {
                    part: format!("database-{}", undumped.name),
                    looked_for: undumped.reason.to_string(),
                    is_required: true,
                });
            }
            self.undumped.push(undumped.name.clone());
            self.catalogue.notes.push(text.clone());
            self.failures.push(text);
        }
    }

    /// Checks the copy and writes the manifest and the snapshot.
    fn finish(mut self) -> Result<Outcome> {
        let (job, plan) = (self.job, self.job.plan);
        self.look_after_services()?;
        let mut checks = self.check()?;
        if checks.iter().any(|check| check.verdict == Verdict::Failed && !check.is_settled) {
            // The instance changes meanwhile: a pool is dropped, a project renamed. View the
            // changes.
            let text = "the copy lacks files that the databases name; copying again".into();
            job.store.observer().event(Event::Note(text));
            self.backup.again()?;
            self.copy_redis_files()?;
            self.copy_files()?;
            checks = self.check()?;
        }
        if self.backup.is_empty() && self.postgres.is_none() {
            let text = "nothing to back up: the directories are empty, or everything in them is \
                        excluded";
            let hint = "mount the disk of the instance, or change its paths and `exclude`";
            checks.push(Check::new("files", Verdict::Failed, text).with_hint(hint).settled());
        }
        let catalogue = self.catalogue;
        let manifest = Manifest {
            version: manifest::VERSION,
            instance: plan.instance.clone(),
            kind: plan.kind.into(),
            product: catalogue.product(plan),
            mode: plan.mode,
            databases_at: self.databases_at,
            files_at: self.files_at,
            postgres: self.postgres,
            databases: self.databases,
            redis: self.redis,
            services: plan.all_services(job.store.observer().progress()),
            parts: plan.parts.clone(),
            mounts: plan.mounts.clone(),
            mount_points: emptied::mount_points(plan),
            skipped: plan.skipped.clone(),
            missing: self.missing,
            checks,
            seconds_down: self.down.map(|down| down.as_secs_f64()),
            notes: plan.notes.iter().chain(&catalogue.notes).cloned().collect(),
            schema: catalogue.schema,
            background_migrations: catalogue.migrations,
        };
        self.backup.bytes(&format!("{DIR}/{}", manifest::FILE), &manifest.to_json()?)?;
        if !catalogue.projects.is_empty() {
            let projects = manifest::lines(&catalogue.projects)?;
            self.backup.bytes(&format!("{DIR}/projects.jsonl"), &projects)?;
        }
        if !catalogue.repositories.is_empty() {
            let repositories = manifest::lines(&catalogue.repositories)?;
            self.backup.bytes(&format!("{DIR}/repositories.jsonl"), &repositories)?;
        }
        let is_complete = manifest.is_complete() && self.backup.unreadable_count() == 0;
        let (name, kind) = (plan.instance.clone(), plan.kind.into());
        let report = self.backup.finish(Some(Instance { name, kind, is_complete }))?;
        let paths = report.statistics.metadata_unreadable;
        if paths > 0 {
            self.failures
                .push(format!("cannot read metadata of {paths} paths; content is in the snapshot"));
        }
        let lost = report.damage.as_ref().map_or(0, |damage| damage.lost);
        if lost > 0 {
            self.failures.push(format!(
                "{lost} paths of the snapshot need data that the store has lost; run the backup again"
            ));
        }
        Ok(Outcome {
            report,
            manifest,
            project_count: catalogue.projects.len(),
            is_complete,
            failures: self.failures,
        })
    }

    /// Reports services that ended soon after their start.
    fn look_after_services(&mut self) -> Result<()> {
        let Some(supervisor) = self.job.plan.control.supervisor() else { return Ok(()) };
        let progress = self.job.store.observer().progress();
        for name in &self.stopped {
            let known = |failure: &String| failure.contains(&format!("start {name}:"));
            match supervisor.expect_running(name, progress) {
                Err(error) if error.is_interrupted() => return Err(error),
                Err(error) if !self.failures.iter().any(known) => {
                    self.failures.push(error.to_string());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks the copy against the catalogue, and against earlier snapshots.
    fn check(&mut self) -> Result<Vec<Check>> {
        let (job, plan) = (self.job, self.job.plan);
        if job.options.is_dry {
            return Ok(Vec::new());
        }
        let copy = View::Tree { store: job.store, root: self.backup.tree()? };
        let copy = View::Through { view: &copy, mounts: &plan.mounts };
        let earlier = match self.complete_ones()?.pop() {
            Some((id, snapshot)) => Earlier::usable(job.store, id, &snapshot)?,
            None => None,
        };
        let catalogue = &mut self.catalogue;
        let mut checks = job.kind.check(plan, catalogue, &copy, earlier.as_ref())?;
        let dumped = self.databases.iter().map(|dump| &dump.name).chain(&self.undumped);
        let dumped = dumped.map(String::as_str);
        checks.extend(vanished::parts(plan, earlier.as_ref())?);
        checks.extend(vanished::check(plan, earlier.as_ref(), dumped));
        let allow_loss = job.options.guard.allow_loss;
        let emptied = emptied::check(plan, earlier.as_ref(), false, allow_loss)?;
        let dirs = emptied.as_ref().map(|emptied| emptied.dirs.clone());
        self.backup.set_emptied_dirs(dirs.unwrap_or_default());
        checks.extend(emptied.map(|emptied| emptied.check));
        checks.extend(empty_references(plan, self.backup.empty_references()));
        checks.extend(self.check_keys(&copy)?);
        Ok(checks)
    }

    /// Complete snapshots of this instance on this host, oldest first. If there are none, only the
    /// previous snapshot.
    fn complete_ones(&self) -> Result<Vec<(SnapshotId, Snapshot)>> {
        let Some((id, parent)) = self.backup.parent() else { return Ok(Vec::new()) };
        let (mut all, _) = self.job.store.snapshots()?;
        all.retain(|(_, snapshot)| {
            let of = snapshot.instance.as_ref();
            snapshot.host == parent.host
                && of.is_some_and(|of| of.name == self.job.plan.instance && of.is_complete)
                && !snapshot.is_emptied()
        });
        if all.is_empty() {
            all.push((id, parent.clone()));
        }
        Ok(all)
    }
}

/// Reports references without content. The copy lacks them, so it looks right by itself. `None` if
/// there are none.
fn empty_references(plan: &Plan, empty: Vec<PathBuf>) -> Option<Check> {
    let first = empty.first()?;
    let part = |path: &Path| {
        let holds = |part: &&Part| part.paths.iter().any(|top| path.starts_with(top));
        plan.parts.iter().find(holds).map(|part| part.name.as_str()).unwrap_or_default()
    };
    let is_excused = empty.iter().all(|path| plan.excused.has(part(path)));
    let verdict = if is_excused { Verdict::Warning } else { Verdict::Failed };
    let is_empty = |path: &PathBuf| path.metadata().is_ok_and(|found| found.len() == 0);
    let is_settled = is_empty(first);
    let text = format!(
        "{} references of repositories are damaged: their files are empty, as after a power cut, and \
         git cannot read them",
        empty.len()
    );
    let hint = "restore these files from an earlier snapshot, or remove them if nobody needs them";
    let examples = empty.iter().map(|path| crate::view::shown(path));
    let check = Check::new("empty-references", verdict, text);
    let check = check.with_examples(examples).with_hint(hint);
    Some(Check { is_settled, ..check })
}

/// Returns a pattern of a part relative to one of its paths. An absolute pattern may name that path.
pub(crate) fn relative<'g>(glob: &'g str, path: &Path) -> &'g [u8] {
    let (glob, escaped) = (glob.as_bytes(), store::glob::escape(path));
    let rests = [path.as_os_str().as_bytes(), &escaped].map(|dir| glob.strip_prefix(dir));
    rests.into_iter().flatten().find(|rest| rest.starts_with(b"/")).unwrap_or(glob)
}
