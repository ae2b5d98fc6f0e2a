//! Rebuilds a whole instance from a snapshot, on this machine.
//!
//! ```text
//! preconditions ─▶ configuration ─▶ configure ─▶ stop ─▶ files ─▶ databases ─▶ redis ─▶ start ─▶ checks
//! ```
//!
//! The order is that of the products: the configuration and its secrets come before commands that
//! would make new ones, and databases come before the services that use them. Data of this machine is
//! moved out of the way and never deleted. Each stage is recorded, so the next call continues after a
//! failure or a kill.

mod aside;
mod databases;
mod examine;
mod files;
mod in_use;
mod logins;
mod part_links;
mod places;
mod record;
mod roles;
mod servers;
mod services;

pub use record::{Aside, Forgotten, Record, Stage};

use crate::check::{Check, Verdict};
use crate::error::{Error, Result};
use crate::kind::{Kind, Rebuilding, Site};
use crate::manifest::Manifest;
use crate::mounts;
use crate::overrides;
use crate::plan::{Phase, Plan, Product};
use crate::process::Command;
use crate::settings::Settings;
use crate::view::shown;
use databases::Loader;
use files::Files;
use logins::Passfiles;
use record::{Losses, Mounts};
use servers::Targets;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::entry::display_path;
use store::observe::{Event, Progress};
use store::snapshot::Snapshot;
use store::store::Store;

/// Time limit of a command that applies the configuration. GitLab's can migrate large tables.
const CONFIGURE: Duration = Duration::from_secs(6 * 3600);

/// Reason why databases cannot be loaded.
const NO_SERVER: &str = "the snapshot has databases, and no server is known; set postgres.host, \
                         postgres.user and postgres.role of the instance in the configuration, and \
                         run the command again";

/// Inputs of a rebuild.
pub struct Job<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// Settings of the instance.
    pub settings: &'a Settings,
    /// Store with the snapshot.
    pub store: &'a Store,
    /// The snapshot.
    pub snapshot: &'a Snapshot,
    /// Manifest in the snapshot.
    pub manifest: &'a Manifest,
    /// Paths that must not move, with what they are.
    pub kept: Vec<(&'static str, &'a Path)>,
    /// Directory for dumps while they are loaded.
    pub scratch: &'a Path,
    /// Number of repositories to examine at the end.
    pub sample: usize,
    /// True if nothing is changed.
    pub is_dry: bool,
    /// True if the admin agrees to changes of data that this machine or its servers have.
    pub is_consented: bool,
    /// Addresses of servers that may be changed though this machine's configuration names others.
    pub servers: &'a [String],
}

/// Result of a rebuild.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Results of loading and of the checks.
    pub checks: Vec<Check>,
    /// Old and new names of renamed paths and databases.
    pub aside: Vec<(String, String)>,
    /// Commands that the admin runs next.
    pub left: Vec<String>,
}

impl Outcome {
    /// Returns true if no check found a fault, or could not be made.
    pub fn is_good(&self) -> bool {
        self.checks.iter().all(|check| check.verdict == Verdict::Ok)
    }
}

/// Receives a line about a stage.
pub type Say<'s> = &'s mut dyn FnMut(Stage, &str);

/// A rebuild at work.
struct Rebuild<'a, 's> {
    job: &'a Job<'a>,
    record: &'a mut Record,
    say: Say<'s>,
    outcome: Outcome,
    targets: Targets,
    /// Password files of the snapshot that are not restored yet.
    passfiles: Passfiles,
}

/// Places of restored files, at one moment.
struct Seen {
    mounts: Mounts,
    places: Vec<PathBuf>,
}

/// Rebuilds the instance. The record is removed by [`Record::close`] once the caller has reported the
/// outcome.
pub fn rebuild(job: &Job<'_>, record: &mut Record, say: Say<'_>) -> Result<Outcome> {
    // A killed call may have left passwords, or a dump, also in another directory.
    if let Some(scratch) = record.scratch() {
        crate::private_dir::remove_stale(scratch);
    }
    crate::private_dir::remove_stale(job.scratch);
    record.set_scratch(job.scratch);
    let mut rebuild = Rebuild {
        job,
        record,
        say,
        outcome: Outcome::default(),
        targets: Targets::default(),
        passfiles: Passfiles::default(),
    };
    rebuild.run()?;
    let Rebuild { mut outcome, record, .. } = rebuild;
    // Those of an earlier call count as well.
    outcome.checks.splice(0..0, record.checks().iter().cloned());
    outcome.left.splice(0..0, record.left().iter().cloned());
    let moved = record.aside().iter().map(|aside| (shown(&aside.from), shown(&aside.to)));
    let renamed = record
        .renamed()
        .map(|(name, aside)| (format!("database {name}"), format!("database {aside}")));
    outcome.aside = moved.chain(renamed).collect();
    Ok(outcome)
}

/// Removes data that killed rebuilds left in a directory for scratch data.
pub fn clear(scratch: &Path) {
    crate::private_dir::remove_stale(scratch);
}

/// Describes the missing parts of a snapshot; empty if it is complete.
pub fn lacking(snapshot: &Snapshot, manifest: &Manifest) -> Vec<String> {
    if snapshot.is_sound() {
        return Vec::new();
    }
    let parts = manifest.missing.iter().filter(|absent| absent.is_required);
    let parts = parts.map(|absent| format!("{} is missing: {}", absent.part, absent.looked_for));
    let failed = manifest.checks.iter().filter(|check| check.verdict == Verdict::Failed);
    let failed = failed.map(|check| format!("{}: {}", check.name, check.text));
    let unread = Some(snapshot.unreadable_count).filter(|count| *count > 0);
    let unread = unread.map(|count| format!("{count} paths could not be read"));
    let emptied = snapshot.emptied.iter().map(|of| {
        let files = of.then.files.saturating_sub(of.now.files);
        format!("{} had lost {files} files", display_path(&of.path))
    });
    let mut lacking: Vec<String> = parts.chain(failed).chain(unread).chain(emptied).collect();
    if lacking.is_empty() {
        lacking.push("the backup was not completed".into());
    }
    lacking
}

/// Returns what a new rebuild would move out of the way.
pub fn moves(job: &Job<'_>, suffix: &str) -> Result<Vec<Aside>> {
    let kind = kind(job)?.rebuilding();
    let files = Files::of(job, |part| {
        !kind.remade.contains(&part.name.as_str()) && part.phase != Phase::RedisFiles
    });
    files.asides(job, suffix)
}

fn kind(job: &Job<'_>) -> Result<&'static dyn Kind> {
    crate::kind::find(&job.settings.kind).ok_or_else(|| Error::Settings {
        instance: job.instance.into(),
        reason: format!("unknown kind `{}`", job.settings.kind),
    })
}

impl Rebuild<'_, '_> {
    fn run(&mut self) -> Result<()> {
        let job = self.job;
        let rebuilding = kind(job)?.rebuilding();
        let first = Files::of(job, |part| rebuilding.first.contains(&part.name.as_str()));
        let rest = Files::of(job, |part| {
            let is_made = rebuilding.remade.contains(&part.name.as_str());
            let is_redis = part.phase == Phase::RedisFiles;
            !rebuilding.first.contains(&part.name.as_str()) && !is_made && !is_redis
        });
        self.preconditions(&rebuilding, &first, &rest)?;
        self.stage(Stage::Configuration, |rebuild| rebuild.files(Stage::Configuration, &first))?;
        self.stage(Stage::Configure, |rebuild| rebuild.configure(Stage::Configure, &rebuilding))?;
        if self.record.is_done(Stage::Stop) && !self.record.is_done(Stage::Start) && !job.is_dry {
            // The machine may have restarted since.
            self.stop_again(&rebuilding)?;
            self.expect_mounts_stopped(&[&first, &rest])?;
        }
        self.stage(Stage::Stop, |rebuild| {
            rebuild.stop(&rebuilding)?;
            rebuild.expect_mounts_stopped(&[&first, &rest])
        })?;
        // Before anything else, so that the mount points are those of the moves.
        let unmounted = self.unmounted();
        let mounted = rest.without(job, &unmounted)?;
        self.stage(Stage::Files, |rebuild| rebuild.files(Stage::Files, &mounted))?;
        self.stage(Stage::Databases, Rebuild::databases)?;
        self.stage(Stage::Redis, |rebuild| rebuild.redis(&rebuilding))?;
        let is_quiet = !self.record.is_done(Stage::Start) && !job.is_dry;
        if is_quiet && unmounted.is_empty() {
            // Services that run change references.
            if let Some(compared) = self.repositories(true)? {
                self.record.keep(compared)?;
            }
        }
        self.stage(Stage::Start, |rebuild| {
            let before = rebuild.seen(&[&first, &mounted])?;
            rebuild.start(&rebuilding)?;
            let after = rebuild.seen(&[&first, &mounted])?;
            rebuild.restore_unmounted(&rest, &unmounted)?;
            rebuild.keep_covered(&[&first, &mounted], &before, &after, &unmounted)
        })?;
        let is_examined = self.record.checks().iter().any(|check| check.name == examine::FSCK);
        if !is_examined && !job.is_dry {
            let examined = self.repositories(false)?;
            self.outcome.checks.extend(examined);
        }
        self.stage(Stage::Checks, Rebuild::examine)?;
        self.outcome.checks.extend(lost(self.record.losses()));
        self.outcome.checks.extend(self.hidden(&unmounted));
        let plan = self.plan().map(|(plan, _)| plan);
        let supervisor = plan.ok().and_then(|plan| plan.control.supervisor().cloned());
        let rake = supervisor.map_or_else(String::new, |supervisor| supervisor.shown());
        let rake = rake.replace("gitlab-ctl", "gitlab-rake");
        let own = files::of_machine(job);
        if !own.is_empty() {
            self.outcome.left.push(format!(
                "compare files that belong to this machine, and that were left alone, with those of the \
                 snapshot: {}",
                shown_paths(&own)
            ));
        }
        let left = rebuilding.left.iter().map(|line| line.replace("{rake}", &rake));
        self.outcome.left.extend(left);
        if !job.is_dry {
            let refused = self.refused_files().unwrap_or_default();
            self.outcome.left.extend(refused);
        }
        Ok(())
    }

    /// Does a stage, unless an earlier call has done it.
    fn stage(&mut self, stage: Stage, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.progress().check()?;
        if self.record.is_done(stage) {
            (self.say)(stage, "done by an earlier call");
            return Ok(());
        }
        work(self)?;
        // The checks are made again at each call.
        if !self.job.is_dry && stage != Stage::Checks {
            self.record.finish(stage)?;
        }
        Ok(())
    }

    fn progress(&self) -> &'_ Progress {
        self.job.store.observer().progress()
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Settings { instance: self.job.instance.into(), reason }
    }

    /// Makes the plan of the instance as it is now on this machine, with logins that its servers
    /// accept.
    fn plan(&self) -> Result<(Plan, &'static dyn Kind)> {
        let (mut plan, kind) = self.plan_without_logins()?;
        if self.record.aside().iter().any(|aside| aside.is_done) {
            let postgres = plan.postgres.as_ref().map(|server| self.accepted_login(server));
            plan.postgres = postgres.transpose()?;
            let redis = plan.redis.as_ref().map(|redis| self.accepted_redis_login(redis));
            plan.redis = redis.transpose()?;
        }
        Ok((plan, kind))
    }

    /// Makes the plan with the logins of the settings.
    fn plan_without_logins(&self) -> Result<(Plan, &'static dyn Kind)> {
        let Job { instance, settings, store, .. } = *self.job;
        let progress = store.observer().progress();
        let (mut plan, kind) =
            overrides::plan(&Site { instance, settings, progress, is_offline: false })?;
        // Which files belong to a part is known from the snapshot.
        plan.notes.clear();
        Ok((plan, kind))
    }

    fn preconditions(
        &mut self,
        rebuilding: &Rebuilding,
        first: &Files,
        rest: &Files,
    ) -> Result<()> {
        let job = self.job;
        if job.manifest.kind != job.settings.kind {
            return Err(self.wrong(format!(
                "its kind is {}, and the snapshot is of kind {}",
                job.settings.kind, job.manifest.kind
            )));
        }
        let root = &job.settings.root;
        let mut paths = job.manifest.parts.iter().flat_map(|part| &part.paths);
        if let Some(path) = paths.find(|path| !path.starts_with(root)) {
            return Err(self.wrong(format!(
                "its root is {}, and the snapshot is of another one: it has {}",
                shown(root),
                shown(path)
            )));
        }
        let wanted = &job.manifest.product;
        let text = match self.plan() {
            Ok(_) if rebuilding.is_version_in_database => {
                format!(
                    "exactly {} must be installed; this is checked once it has run",
                    product(wanted)
                )
            }
            Ok((plan, _)) => {
                expect_same(wanted, &plan.product)?;
                match &plan.product.version {
                    Some(_) => format!("{} is installed", product(&plan.product)),
                    None => format!("the snapshot is of {}", product(wanted)),
                }
            }
            // The configuration of the snapshot, which comes first, may mend that.
            Err(error) if !first.is_empty() && !error.is_interrupted() => {
                format!("no plan can be made yet: {error}")
            }
            Err(error) => return Err(error),
        };
        (self.say)(Stage::Preconditions, &text);
        let lacking = lacking(job.snapshot, job.manifest);
        for text in &lacking {
            (self.say)(Stage::Preconditions, &format!("the snapshot is not complete: {text}"));
        }
        if !lacking.is_empty() {
            let text = "the snapshot is not complete, so the rebuilt instance is not either";
            let hint = "what this machine has of the missing parts has not changed, and is of another \
                        moment; replace it from another snapshot, or remove it";
            let check = Check::new("snapshot", Verdict::Failed, text);
            self.outcome.checks.push(check.with_examples(lacking).with_hint(hint));
        }
        // Unknown accounts are found before anything is changed.
        files::owners(job)?;
        let mut planned = Vec::new();
        if !self.record.is_continued {
            for paths in [first, rest] {
                planned.extend(paths.asides(job, self.record.suffix())?);
            }
        }
        aside::expect_apart(&planned, &job.kept)?;
        if !self.record.is_continued {
            for note in files::expect_space(job, &[first, rest])? {
                (self.say)(Stage::Preconditions, &note);
            }
        }
        let foreign = files::foreign_accounts(job, &[first, rest])?;
        for text in &foreign {
            (self.say)(Stage::Preconditions, text);
        }
        if !foreign.is_empty() && !job.is_dry {
            let text = "other accounts of this machine own restored files";
            let hint = "create the missing accounts, and give them the files; `forgekeep restore` \
                        names them";
            let check = Check::new("accounts", Verdict::Warning, text);
            self.outcome.checks.push(check.with_examples(foreign).with_hint(hint));
        }
        let predicted = self.predicted(rebuilding)?;
        if !self.record.is_done(Stage::Files) {
            self.expect_places(rebuilding, predicted.as_ref())?;
        }
        self.expect_mounts(&[first, rest])?;
        files::expect_replaceable(job, &[first, rest])?;
        files::expect_writable(job, &[first, rest], &planned)?;
        if self.record.is_continued
            && !self.record.is_done(Stage::Start)
            && let Some(reason) = aside::changed(self.record)
        {
            return Err(Error::MovedBack { reason, instance: job.instance.into() });
        }
        if self.record.is_continued && !job.is_dry && self.record.is_done(Stage::Configure) {
            self.look_for_databases()?;
        }
        if !self.record.is_done(Stage::Databases) || !self.record.is_done(Stage::Redis) {
            self.expect_servers(rebuilding, first, &planned, predicted.as_ref())?;
        }
        if job.manifest.services.is_empty() && rebuilding.up.is_empty() {
            (self.say)(Stage::Preconditions, "no services are known");
        }
        Ok(())
    }

    /// Fails if other file systems are mounted than when the rebuild began.
    fn expect_mounts(&mut self, all: &[&Files]) -> Result<()> {
        let mounts = files::mounts_of(self.job, all)?;
        if !self.record.is_continued {
            self.record.set_mounts(mounts);
            return Ok(());
        }
        let Some(known) = self.record.mounts() else { return Ok(()) };
        // The admin's commands may have unmounted some.
        let is_of_stop = match self.record.mounts_stopped() {
            Some(stopped) => *stopped == mounts,
            None => {
                self.record.ran_stop_commands()
                    && mounts.iter().all(|(path, system)| known.get(path) == Some(system))
            }
        };
        match *known == mounts || is_of_stop {
            true => Ok(()),
            // What was moved or restored is on the file system of then.
            false => Err(self.other_mounts(known, &mounts)),
        }
    }

    /// Fails if file systems are mounted now that were not when services had been stopped first.
    fn expect_mounts_stopped(&mut self, all: &[&Files]) -> Result<()> {
        if self.job.is_dry || self.record.is_done(Stage::Start) {
            return Ok(());
        }
        let mounts = files::mounts_of(self.job, all)?;
        match self.record.mounts_stopped() {
            Some(known) if *known != mounts => Err(self.other_mounts(known, &mounts)),
            Some(_) => Ok(()),
            None => match self.record.mounts() {
                // Nothing has moved yet.
                Some(known) if mounts.iter().any(|(path, of)| known.get(path) != Some(of)) => {
                    Err(self.other_mounts(known, &mounts))
                }
                _ => {
                    self.record.set_mounts_stopped(mounts);
                    Ok(())
                }
            },
        }
    }

    /// Returns the outermost file systems that the commands which stop services have unmounted.
    fn unmounted(&self) -> Vec<PathBuf> {
        let (Some(known), Some(stopped)) = (self.record.mounts(), self.record.mounts_stopped())
        else {
            return Vec::new();
        };
        let gone = || known.keys().filter(|path| !stopped.contains_key(*path));
        let is_outer =
            |path: &&PathBuf| !gone().any(|other| other != *path && path.starts_with(other));
        gone().filter(is_outer).cloned().collect()
    }

    /// Restores what belongs on file systems that are mounted only while services run.
    fn restore_unmounted(&mut self, rest: &Files, unmounted: &[PathBuf]) -> Result<()> {
        let job = self.job;
        for mount in unmounted.iter().filter(|_| !job.is_dry) {
            let files = rest.on(job, mount)?;
            if files.is_empty() {
                continue;
            }
            let planned = files.asides(job, self.record.suffix())?;
            let is_known = |path: &Path| self.record.aside().iter().any(|aside| aside.from == path);
            let new = planned.into_iter().filter(|aside| !is_known(&aside.from)).collect();
            self.record.begin(Stage::Start, new)?;
            aside::carry_out(self.record, job.store.observer().progress())?;
            let (text, losses) = files.restore(job)?;
            self.record.restored()?;
            (self.say)(Stage::Start, &text);
            self.record.lose(losses)?;
        }
        Ok(())
    }

    /// Returns where restored files are, and which file systems are there.
    fn seen(&self, all: &[&Files]) -> Result<Seen> {
        let places = all.iter().map(|files| files.places(self.job));
        let places = places.collect::<Result<Vec<_>>>()?.concat();
        Ok(Seen { mounts: files::mounts_of(self.job, all)?, places })
    }

    /// Records a fault if services, or the commands that start them, hide restored files: they mount
    /// a file system there, or make a link to another place.
    fn keep_covered(
        &mut self,
        all: &[&Files],
        before: &Seen,
        after: &Seen,
        unmounted: &[PathBuf],
    ) -> Result<()> {
        if self.job.is_dry {
            return Ok(());
        }
        let is_expected = |mount: &PathBuf| unmounted.iter().any(|known| mount.starts_with(known));
        let changed = changed(&before.mounts, &after.mounts);
        let mut hidden = Vec::new();
        for files in all {
            let changed = changed.iter().copied().filter(|mount| !is_expected(mount));
            hidden.extend(files.having_files(self.job, changed)?);
        }
        let places = before.places.iter().zip(&after.places);
        let led = places.filter(|(before, after)| before != after && before.exists());
        hidden.extend(led.map(|(_, after)| after.clone()));
        hidden.sort();
        hidden.dedup();
        if hidden.is_empty() {
            return Ok(());
        }
        let text = format!(
            "restored files are hidden since services started, by other data that came to {}",
            shown_paths(&hidden)
        );
        let hint = "the services use that data, and not what was restored: mount it, keep it mounted \
                    while services are stopped, and rebuild once more";
        self.record.keep(Check::new("mounts", Verdict::Failed, text).with_hint(hint))
    }

    fn other_mounts(&self, known: &Mounts, mounts: &Mounts) -> Error {
        let changed = changed(known, mounts);
        // The one around it is only the next that holds the path.
        let is_inner = |path: &&PathBuf| {
            !changed.iter().any(|other| *other != *path && other.starts_with(path))
        };
        let changed = changed.iter().copied().filter(is_inner).cloned().collect();
        Error::OtherMounts { changed, instance: self.job.instance.into() }
    }

    /// Returns a check of file systems that were not mounted while files were restored.
    fn hidden(&self, unmounted: &[PathBuf]) -> Option<Check> {
        if unmounted.is_empty() || self.job.is_dry {
            return None;
        }
        let what = "unmounted by the commands that stop services";
        let known = self.record.mounts()?;
        let is_back = |path: &&PathBuf| known.get(*path) == Some(&mounts::identity(path));
        let away: Vec<PathBuf> = unmounted.iter().filter(|path| !is_back(path)).cloned().collect();
        if away.is_empty() {
            let text = format!(
                "{what}: {}; what the snapshot has there was restored once services had started",
                shown_paths(unmounted)
            );
            let hint = "restart the services, which may have read what was there before";
            return Some(Check::new("mounts", Verdict::Warning, text).with_hint(hint));
        }
        let text = format!(
            "{what}: {}; what the snapshot has there was restored to the directory below",
            shown_paths(&away)
        );
        let hint = "copy what the directory has to the file system; or keep it mounted while services \
                    are stopped, and rebuild once more";
        Some(Check::new("mounts", Verdict::Failed, text).with_hint(hint))
    }

    fn files(&mut self, stage: Stage, files: &Files) -> Result<()> {
        let job = self.job;
        if files.is_empty() {
            (self.say)(stage, "nothing to restore");
            return Ok(());
        }
        let planned = files.asides(job, self.record.suffix())?;
        if !self.record.is_begun(stage) {
            let skipped = files.skipped_files(job, &planned, NAMED + 1)?;
            if !skipped.is_empty() {
                let more = if skipped.len() > NAMED { " and more" } else { "" };
                let names: Vec<String> =
                    skipped.iter().take(NAMED).map(|path| shown(path)).collect();
                let text = format!(
                    "excluded files, which the snapshot lacks, move with their directories; copy those \
                     that are needed back: {}{more}",
                    names.join(", ")
                );
                (self.say)(stage, &text);
                if !job.is_dry {
                    self.record.leave(&text)?;
                }
            }
        }
        if job.is_dry {
            for aside in &planned {
                let text = format!("would move {} to {}", shown(&aside.from), shown(&aside.to));
                (self.say)(stage, &text);
            }
            let (count, bytes) = files.size(job)?;
            let bytes = files::mebibytes(bytes);
            let text = format!("would restore {count} entries ({bytes}) to {}", files.shown());
            (self.say)(stage, &text);
            for link in files.lacking_links(job)? {
                let (path, end) = (shown(&link.path), shown(&link.end));
                (self.say)(stage, &format!("would restore the link {path} to {end}"));
            }
            return Ok(());
        }
        // A continued call has moved them, and finds restored data.
        let is_known = |path: &Path| self.record.aside().iter().any(|aside| aside.from == path);
        let is_begun = self.record.is_begun(stage);
        let new = planned.into_iter().filter(|aside| !is_begun && !is_known(&aside.from)).collect();
        self.record.begin(stage, new)?;
        in_use::expect_unused(self.record.aside(), in_use::Servers::All)?;
        aside::carry_out(self.record, job.store.observer().progress())?;
        let links = files.lacking_links(job)?;
        let (text, losses) = files.restore(job)?;
        self.record.restored()?;
        (self.say)(stage, &text);
        for link in links {
            let (path, end) = (shown(&link.path), shown(&link.end));
            (self.say)(stage, &format!("restored the link {path} to {end}"));
        }
        // The rest of the instance must come back in spite of a damaged file.
        self.record.lose(losses)
    }

    fn configure(&mut self, stage: Stage, rebuilding: &Rebuilding) -> Result<()> {
        let Some(words) = rebuilding.configure else {
            return Ok(());
        };
        let (plan, _) = self.plan()?;
        let Some(supervisor) = plan.control.supervisor() else { return Ok(()) };
        let words = supervisor.program.iter().map(String::as_str).chain(words.iter().copied());
        let command = Command::new(words).within(CONFIGURE);
        if self.job.is_dry {
            (self.say)(stage, &format!("would run `{}`", command.shown()));
            return Ok(());
        }
        (self.say)(stage, &format!("running `{}`", command.shown()));
        command.output(self.progress())?;
        let (plan, _) = self.plan()?;
        match rebuilding.is_version_in_database {
            true => Ok(()),
            false => expect_same(&self.job.manifest.product, &plan.product),
        }
    }

    fn databases(&mut self) -> Result<()> {
        let job = self.job;
        if job.manifest.databases.is_empty() {
            (self.say)(Stage::Databases, "the snapshot has none");
            return Ok(());
        }
        let server = match job.is_dry {
            true => self.targets.postgres.clone(),
            false => self.plan()?.0.postgres,
        };
        let Some(server) = &server else {
            if job.is_dry && !kind(job)?.rebuilding().first.is_empty() {
                (self.say)(Stage::Databases, "the server is not known yet");
                return Ok(());
            }
            return Err(self.wrong(NO_SERVER.into()));
        };
        let address = server.shown();
        let root = job.snapshot.root.chunk();
        let connected = Loader::connect(job.store, root, server, job.manifest, job.scratch);
        let (loader, version) = match connected {
            // It may start only with the configuration of the snapshot.
            Err(error) if job.is_dry && !error.is_interrupted() => {
                let text = format!("the server {address} does not answer yet: {error}");
                (self.say)(Stage::Databases, &text);
                return Ok(());
            }
            connected => connected?,
        };
        (self.say)(Stage::Databases, &format!("server {address}, PostgreSQL {version}"));
        if !job.is_dry {
            self.expect_loadable(&loader, server)?;
        }
        let roles = loader.roles()?;
        for (text, roles) in [
            ("would create", roles.as_ref().map(|roles| &roles.created)),
            ("would change", roles.as_ref().map(|roles| &roles.changed)),
            ("stay as they are here", roles.as_ref().map(|roles| &roles.kept)),
        ] {
            let is_said = job.is_dry || !text.starts_with("would");
            if let Some(roles) = roles.filter(|roles| is_said && !roles.is_empty()) {
                let names: Vec<&str> = roles.iter().map(String::as_str).collect();
                let text = format!("roles: {text}: {}", shown_some(&names, names.len()));
                (self.say)(Stage::Databases, &text);
            }
        }
        if job.is_dry {
            for dumped in &job.manifest.databases {
                let old = if loader.has(&dumped.name)? { "rename the one here and " } else { "" };
                let tables = dumped.tables.len();
                let text = format!("would {old}load {} with {tables} tables", dumped.name);
                (self.say)(Stage::Databases, &text);
            }
            return Ok(());
        }
        if let Some(roles) = &roles {
            let loaded = loader.load_roles(roles)?;
            let text = match loaded.harmless {
                0 => "roles loaded".to_owned(),
                harmless => format!("roles loaded; {harmless} harmless errors"),
            };
            (self.say)(Stage::Databases, &text);
            // A tablespace without its directory shows when a database needs it.
            for error in &loaded.errors {
                job.store.observer().event(Event::Warning(format!("roles: {error}")));
            }
            if !roles.without_password.is_empty() {
                let names: Vec<&str> = roles.without_password.iter().map(String::as_str).collect();
                let names = shown_some(&names, names.len());
                let text = format!("without a password, which the backup could not read: {names}");
                let hint = "set the passwords of the application's configuration with `\\password \
                            ROLE` in psql, then start the application again";
                let check = Check::new("roles", Verdict::Warning, text).with_hint(hint);
                self.record.keep(check)?;
            }
        }
        for dumped in &job.manifest.databases {
            let check = loader.load(dumped, self.record)?;
            (self.say)(Stage::Databases, &format!("{}: {}", dumped.name, check.text));
        }
        Ok(())
    }
}

/// Returns the mount points of only one of two moments, or with another file system.
fn changed<'m>(before: &'m Mounts, after: &'m Mounts) -> BTreeSet<&'m PathBuf> {
    let all = before.keys().chain(after.keys());
    all.filter(|path| before.get(*path) != after.get(*path)).collect()
}

/// Returns a check for each kind of loss.
fn lost(losses: Losses) -> Vec<Check> {
    let Losses { paths, metadata, owners } = losses;
    let all = [
        (
            Losses { paths, ..Losses::default() },
            "restored-files",
            "`forgekeep check --read-data` names damaged files; `forgekeep find` shows other versions \
             of a path",
        ),
        (
            Losses { metadata, ..Losses::default() },
            "restored-metadata",
            "the warnings above name the reasons",
        ),
        (
            Losses { owners, ..Losses::default() },
            "restored-owners",
            "the product may not be able to use these files; rebuild to a file system that keeps \
             owners (NFS: with no_root_squash), and outside of a container with fewer rights",
        ),
    ];
    let some = all.into_iter().filter(|(losses, ..)| *losses != Losses::default());
    let check = |(losses, name, hint): (Losses, &str, &str)| {
        Check::new(name, Verdict::Failed, losses.described().join("; ")).with_hint(hint)
    };
    some.map(check).collect()
}

/// Fails if another version or edition of the product is installed.
fn expect_same(wanted: &Product, here: &Product) -> Result<()> {
    let differs = |wanted: &Option<String>, here: &Option<String>| {
        wanted.as_ref().zip(here.as_ref()).is_some_and(|(wanted, here)| wanted != here)
    };
    if differs(&wanted.version, &here.version) || differs(&wanted.edition, &here.edition) {
        let (then, here, image) = (product(wanted), product(here), wanted.image.clone());
        return Err(Error::OtherVersion { then, here, image });
    }
    if wanted.version.is_some() && here.version.is_none() && wanted.image.is_none() {
        let then = product(wanted);
        return Err(Error::OtherVersion { then, here: "no version of it".into(), image: None });
    }
    Ok(())
}

/// Formats name, version and edition.
fn product(product: &Product) -> String {
    let Product { name, version, edition, .. } = product;
    let words = [Some(name), version.as_ref(), edition.as_ref()].into_iter().flatten();
    words.map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Paths of a rebuild that a dry run and messages name; more are only counted.
const NAMED: usize = 4;

/// Formats some paths.
fn shown_paths(paths: &[PathBuf]) -> String {
    let texts: Vec<String> = paths.iter().take(NAMED + 1).map(|path| shown(path)).collect();
    shown_some(&texts.iter().map(String::as_str).collect::<Vec<_>>(), paths.len())
}

/// Formats the first ones of `count` names.
fn shown_some(names: &[&str], count: usize) -> String {
    let mut text: Vec<String> = names.iter().take(NAMED).map(|name| (*name).to_owned()).collect();
    if count > NAMED {
        text.push(format!("{} more", count - NAMED));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_has_its_own_next_step() {
        assert!(lost(Losses::default()).is_empty());
        let checks = lost(Losses { paths: 0, metadata: 1, owners: 7 });
        assert_eq!(checks.len(), 2);
        assert!(checks[1].text.starts_with("7 paths have another owner"), "{}", checks[1].text);
        let hint = checks[1].hint.as_deref().expect("a hint");
        assert!(hint.contains("keeps owners") && !hint.contains("damaged"), "{hint}");
    }

    #[test]
    fn another_version_or_edition_is_refused() {
        let of = |version: Option<&str>, edition: &str| Product {
            name: "GitLab".into(),
            version: version.map(str::to_owned),
            edition: Some(edition.into()),
            image: None,
        };
        let wanted = of(Some("17.8.2"), "ce");
        expect_same(&wanted, &wanted).expect("the same");
        for here in [of(Some("17.8.3"), "ce"), of(Some("17.8.2"), "ee"), of(None, "ce")] {
            let error = expect_same(&wanted, &here).expect_err("another").to_string();
            assert!(error.contains("GitLab 17.8.2 ce"), "{error}");
        }
        // Some products do not report a version.
        expect_same(&of(None, "ce"), &of(None, "ce")).expect("unknown");
    }
}
