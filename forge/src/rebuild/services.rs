//! Stops the services of an instance for its rebuild, and starts them at the end.

use super::servers::USUAL;
use super::{Job, Rebuild, Stage, files};
use crate::check::{Check, Verdict};
use crate::error::{Error, Result};
use crate::kind::Rebuilding;
use crate::plan::{Phase, Plan};
use crate::rebuild::files::Files;
use crate::rebuild::{Aside, aside};
use crate::service::control::{Control, Speaks, Supervisor};
use crate::service::redis::{Redis, Saved};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use store::observe::{Event, Progress};

impl Rebuild<'_, '_> {
    /// Stops everything that would use or change restored data.
    pub fn stop(&mut self, rebuilding: &Rebuilding) -> Result<()> {
        let plan = match self.plan() {
            Ok((plan, _)) => plan,
            Err(error) if self.job.is_dry && !error.is_interrupted() => {
                (self.say)(Stage::Stop, &format!("the services are not known yet: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let progress = self.job.store.observer().progress();
        if !self.job.is_dry {
            self.note_queue(&plan)?;
        }
        match &plan.control {
            Control::Nothing => {
                let text = "no services are configured; make sure that none uses the data";
                (self.say)(Stage::Stop, text);
            }
            Control::Commands { stop, .. } => {
                for step in stop {
                    if self.job.is_dry {
                        let text = format!("would run `{}`", step.command.shown());
                        (self.say)(Stage::Stop, &text);
                    }
                }
                if !self.job.is_dry {
                    self.record.will_run_stop_commands()?;
                    for step in stop {
                        step.command.output(progress)?;
                        (self.say)(Stage::Stop, &format!("ran `{}`", step.command.shown()));
                    }
                }
            }
            Control::Supervised(supervisor) => {
                let supervisor = all(supervisor, &plan, rebuilding, progress);
                let running = Control::Supervised(supervisor.clone()).writers(progress);
                let running = match running {
                    // A new machine may have no service yet.
                    Err(Error::Service { reason, .. }) if self.job.is_dry => {
                        (self.say)(Stage::Stop, &reason);
                        return Ok(());
                    }
                    running => running?,
                };
                let names: Vec<String> = running.iter().map(|writer| writer.name.clone()).collect();
                if names.is_empty() {
                    (self.say)(Stage::Stop, "no service runs that has to stop");
                    return Ok(());
                }
                if self.job.is_dry {
                    (self.say)(Stage::Stop, &format!("would stop {}", names.join(", ")));
                    return Ok(());
                }
                self.record.will_stop(&names)?;
                self.hold_policies(&supervisor, &names)?;
                for writer in &running {
                    supervisor.stop(writer, progress)?;
                }
                (self.say)(Stage::Stop, &format!("stopped {}", names.join(", ")));
            }
        }
        Ok(())
    }

    /// Stops what runs again since an earlier call stopped it.
    pub fn stop_again(&mut self, rebuilding: &Rebuilding) -> Result<()> {
        let (plan, _) = self.plan()?;
        match &plan.control {
            // Services that are down may refuse to be stopped.
            Control::Commands { stop, .. } => {
                let progress = self.job.store.observer().progress();
                for step in stop {
                    match step.command.output(progress) {
                        Err(error) if !error.is_interrupted() => {
                            let text = format!("{}: {error}", step.command.shown());
                            self.job.store.observer().event(Event::Warning(text));
                        }
                        done => drop(done?),
                    }
                }
                Ok(())
            }
            Control::Nothing => Ok(()),
            Control::Supervised(_) => self.stop(rebuilding),
        }
    }

    /// Keeps the container program from starting containers by itself, such as after a restart of the
    /// machine.
    fn hold_policies(&mut self, supervisor: &Supervisor, names: &[String]) -> Result<()> {
        let progress = self.job.store.observer().progress();
        for name in names {
            let held = match supervisor.restart_policy(name, progress) {
                Ok(None) => continue,
                Ok(Some(policy)) => {
                    self.record.will_change_policy(name, &policy)?;
                    supervisor.set_restart_policy(name, "no", progress)
                }
                Err(error) => Err(error),
            };
            match held {
                Err(error) if !error.is_interrupted() => {
                    let text = format!("cannot change the restart policy of {name}: {error}");
                    self.job.store.observer().event(Event::Warning(text));
                }
                held => held?,
            }
        }
        Ok(())
    }

    /// Records where a running Redis keeps its files: another place than at the backup, perhaps.
    fn note_queue(&mut self, plan: &Plan) -> Result<()> {
        match &plan.redis {
            Some(redis) if self.record.queue().is_none() => match self.queue_here(redis)? {
                Some(files) => {
                    let log = redis.log_name(self.job.store.observer().progress()).ok().flatten();
                    self.record.set_queue(files, log)
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Returns the files of a Redis that runs, unless the rebuild replaces its configuration.
    fn queue_here(&self, redis: &Redis) -> Result<Option<Saved>> {
        let progress = self.job.store.observer().progress();
        let asked = redis
            .current_files(progress)
            .and_then(|files| Ok((files, redis.configuration(progress)?)));
        match asked {
            Ok((files, configuration)) => {
                let mut paths = self.job.manifest.parts.iter().flat_map(|part| &part.paths);
                let is_replaced = configuration
                    .is_some_and(|configuration| paths.any(|path| configuration.starts_with(path)));
                Ok(Some(files).filter(|_| !is_replaced))
            }
            Err(error) if error.is_interrupted() => Err(error),
            // It does not run, or does not tell.
            Err(_) => Ok(None),
        }
    }

    /// Puts the saved queue in place, or makes Redis start empty: jobs of other moments would act on
    /// the restored databases.
    pub fn redis(&mut self, rebuilding: &Rebuilding) -> Result<()> {
        let job = self.job;
        let plan = match self.plan() {
            Ok((plan, _)) => plan,
            Err(error) if job.is_dry && !error.is_interrupted() => return Ok(()),
            Err(error) => return Err(error),
        };
        let redis = if job.is_dry { self.targets.redis.clone() } else { plan.redis.clone() };
        let Some(redis) = &redis else {
            if !rebuilding.needs_redis || job.settings.redis.skip {
                (self.say)(Stage::Redis, "the instance has none");
                return Ok(());
            }
            let text = "it is on another machine, or encrypted, so it stays as it is";
            (self.say)(Stage::Redis, text);
            if job.is_dry {
                return Ok(());
            }
            return self.record.leave(
                "redis-cli FLUSHALL with the Redis of the instance, unless its jobs belong to the \
                 restored databases",
            );
        };
        let progress = job.store.observer().progress();
        let mut saved = Files::of(job, |part| part.phase == Phase::RedisFiles);
        if let (true, Some(known)) = (saved.is_empty(), &job.manifest.redis) {
            // A server without a part: the backup asked it for its files.
            saved = Files::there(job, redis.files(known, plan.redis_dir()));
        }
        let is_up = self.standing(redis)?.is_some();
        if job.is_dry {
            let text = self.planned_queue(&plan, redis, rebuilding, &saved, is_up)?;
            (self.say)(Stage::Redis, &text);
            return Ok(());
        }
        if is_up {
            self.expect_emptiable(redis)?;
            // A running server would overwrite its files. Its data is kept, like all other.
            let kept = self.keep_queue(redis, plan.redis_dir());
            let kept =
                kept.map_err(|error| ("its data could not be kept, so it was not emptied", error));
            let flushed = kept.and_then(|()| {
                redis.flush(progress).map_err(|error| ("it could not be emptied", error))
            });
            if let Err((what, error)) = flushed {
                if error.is_interrupted() {
                    return Err(error);
                }
                let text = format!("{}: {what}: {error}", redis.shown());
                (self.say)(Stage::Redis, &text);
                let left = "redis-cli FLUSHALL, unless its jobs belong to the restored databases";
                self.record.leave(left)?;
                let check = Check::new("redis", Verdict::Failed, text).with_hint(
                    "its jobs are of another moment than the databases: empty it before the instance \
                     is used",
                );
                return self.record.keep(check);
            }
            let address = redis.shown();
            let text = match saved.is_empty() {
                true => format!("{address} emptied; the snapshot has no saved queue"),
                false => format!(
                    "{address} emptied; Redis runs and cannot be stopped here, so the saved queue was not \
                     restored ({}); to keep it, stop Redis and restore that file",
                    saved.shown()
                ),
            };
            (self.say)(Stage::Redis, &text);
            return Ok(());
        }
        let suffix = self.record.suffix().to_owned();
        let saved_file = saved_file(job, &saved);
        let here = self.record.queue().cloned();
        let here_files = here.as_ref().map(|here| redis.files(here, plan.redis_dir()));
        let here_file = here_files.as_ref().and_then(|files| files.first().cloned());
        // Redis here reads another file than the one that was saved.
        let elsewhere = match (&saved_file, here_file) {
            (Some(saved), Some(here)) if !is_same_place(job, saved, &here) => {
                Some((saved.clone(), here))
            }
            _ => None,
        };
        let dir = match &elsewhere {
            Some((_, here)) => here.parent().map(Path::to_owned),
            None => plan.redis_dir().or_else(|| saved.dir()).map(Path::to_owned),
        };
        let log_dir = here.and_then(|here| here.append_only).unwrap_or_else(|| LOG_DIR.into());
        let log_parent = dir.clone();
        let mut files: Vec<PathBuf> =
            dir.into_iter().flat_map(|dir| FILES.map(|name| dir.join(name))).collect();
        files.extend(here_files.unwrap_or_default());
        if let Some((saved, here)) = &elsewhere {
            // It passes through its old name.
            files.extend(saved.file_name().map(|name| here.with_file_name(name)));
        }
        files.sort();
        files.dedup();
        if !self.record.is_begun(Stage::Redis) {
            let mut planned = match &elsewhere {
                Some(_) => Vec::new(),
                None => saved.asides(job, &suffix)?,
            };
            for path in &files {
                if !planned.iter().any(|known| known.from == *path) {
                    planned.extend(aside::plan(path, &suffix, &[], &[], progress)?);
                }
            }
            self.record.begin(Stage::Redis, planned)?;
        }
        aside::carry_out(self.record, progress)?;
        // A file of another format would be loaded instead of the restored one. Its other name keeps
        // the content.
        let is_kept = |path: &PathBuf| self.record.aside().iter().any(|aside| aside.from == *path);
        for path in files.into_iter().filter(|path| path.is_file() && is_kept(path)) {
            std::fs::remove_file(&path).map_err(|source| Error::Write { path, source })?;
        }
        if saved.is_empty() {
            (self.say)(Stage::Redis, "starts empty: the snapshot has no saved queue");
            return Ok(());
        }
        let (text, losses) = match &elsewhere {
            Some((from, to)) => files::restore_as(job, from, to)?,
            None => saved.restore(job)?,
        };
        (self.say)(Stage::Redis, &text);
        self.name_log(&log_parent, &log_dir)?;
        let logs = self.record.aside().iter().filter(|aside| aside.from.ends_with(&log_dir));
        for log in logs.filter(|log| !log.from.exists() && log.to.is_dir()) {
            let dir = log.from.parent().unwrap_or(&log.from);
            let snapshot = match &elsewhere {
                Some((_, to)) => Some(to.clone()).filter(|to| to.parent() == Some(dir)),
                None => saved.in_dir(dir),
            };
            if let Some(snapshot) = snapshot {
                begin_log(log, &snapshot)
                    .map_err(|source| Error::Write { path: log.from.clone(), source })?;
                (self.say)(Stage::Redis, "began a new append-only log with it");
            }
        }
        let restored = elsewhere.map(|(_, to)| to).or(saved_file);
        if let Some(restored) = restored.filter(|path| path.is_file()) {
            self.record.set_restored_queue(restored)?;
        }
        self.record.lose(losses)
    }

    /// Gives a restored append-only log the name that Redis looks for on this machine.
    fn name_log(&self, parent: &Option<PathBuf>, log: &str) -> Result<()> {
        let (Some(parent), Some(name)) = (parent, self.record.queue_log()) else { return Ok(()) };
        let dir = parent.join(log);
        let wanted = dir.join(format!("{name}{MANIFEST}"));
        if !dir.is_dir() || wanted.exists() {
            return Ok(());
        }
        let failed = |source| Error::Write { path: wanted.clone(), source };
        let names = std::fs::read_dir(&dir).map_err(failed)?.flatten().map(|entry| entry.path());
        let mut lists = names.filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.ends_with(MANIFEST))
        });
        let Some(list) = lists.next() else { return Ok(()) };
        std::fs::rename(&list, &wanted).map_err(failed)?;
        crate::file::sync_dir(&dir).map_err(failed)
    }

    /// Describes what a rebuild would do with the queue.
    fn planned_queue(
        &self,
        plan: &Plan,
        redis: &Redis,
        rebuilding: &Rebuilding,
        saved: &Files,
        is_up: bool,
    ) -> Result<String> {
        let (job, progress) = (self.job, self.job.store.observer().progress());
        let stops = match is_up {
            true => stops_redis(plan, redis, &job.settings.root, rebuilding, progress),
            false => Some(true),
        };
        let obstacle = self.standing(redis)?.and_then(|standing| standing.obstacle);
        if let Some(obstacle) = obstacle.filter(|_| stops != Some(true)) {
            let unless = if stops.is_none() { ", unless the stop commands stop it" } else { "" };
            return Ok(format!(
                "{} cannot be emptied ({obstacle}), so it would stay as it is{unless}",
                redis.shown()
            ));
        }
        if saved.is_empty() {
            let verb = if stops == Some(true) { "start empty" } else { "be emptied" };
            return Ok(format!("{} would {verb}: the snapshot has no saved queue", redis.shown()));
        }
        let mut shown = saved.shown();
        let here = if is_up { self.queue_here(redis)? } else { None };
        let here = here.and_then(|here| redis.files(&here, plan.redis_dir()).into_iter().next());
        if let (Some(here), Some(known)) = (here, saved_file(job, saved))
            && !is_same_place(job, &known, &here)
        {
            shown = format!("{} as {}", super::shown(&known), super::shown(&here));
        }
        Ok(match stops {
            Some(true) => format!("would restore {shown}"),
            Some(false) => format!(
                "{} would be emptied: Redis runs and cannot be stopped here, so the saved queue ({}) \
                 stays in the snapshot",
                redis.shown(),
                saved.shown()
            ),
            None => format!(
                "would be replaced by {shown} if the stop commands of the configuration stop Redis, \
                 and emptied otherwise"
            ),
        })
    }

    /// Compares the file that a started Redis reads with the one that was restored.
    pub fn examine_queue(&self, plan: &Plan) -> Option<Check> {
        let restored = self.record.restored_queue()?;
        let redis = plan.redis.as_ref()?;
        let here = redis.current_files(self.job.store.observer().progress()).ok()?;
        let here = redis.files(&here, plan.redis_dir()).into_iter().next()?;
        if here == restored || here.canonicalize().ok() == restored.canonicalize().ok() {
            return None;
        }
        let text = format!(
            "Redis reads {}, and the saved queue was restored to {}",
            super::shown(&here),
            super::shown(restored)
        );
        let hint = "its jobs may be of another moment than the databases: stop Redis, put the restored \
                    file in place of the other one, and start Redis";
        Some(Check::new("redis", Verdict::Failed, text).with_hint(hint))
    }

    /// Saves the data of a running Redis, and copies the file.
    fn keep_queue(&mut self, redis: &Redis, dir: Option<&Path>) -> Result<()> {
        let progress = self.job.store.observer().progress();
        let saved = redis.begin_save(progress)?.end(progress)?;
        let saved = Saved { append_only: None, ..saved };
        let files = redis.files(&saved, dir);
        if let Some(absent) = redis.absent(&saved, &files) {
            return Err(Error::Missing { part: "redis".into(), reason: absent });
        }
        for from in files {
            let Some(aside) = aside::plan(&from, self.record.suffix(), &[], &[], progress)?.pop()
            else {
                continue;
            };
            let copied = std::fs::copy(&from, &aside.to);
            copied.map_err(|source| Error::Write { path: aside.to.clone(), source })?;
            self.record.begin(Stage::Redis, vec![Aside { is_done: true, ..aside }])?;
        }
        Ok(())
    }

    /// Starts what was stopped, and applies the configuration once more.
    pub fn start(&mut self, rebuilding: &Rebuilding) -> Result<()> {
        if self.job.is_dry {
            (self.say)(Stage::Start, "would start them again");
            return self.configure(Stage::Start, rebuilding);
        }
        let (plan, _) = self.plan()?;
        let progress = self.job.store.observer().progress();
        if self.record.ran_stop_commands()
            && let Control::Commands { start, .. } = &plan.control
        {
            for step in start {
                step.command.output(progress)?;
                (self.say)(Stage::Start, &format!("ran `{}`", step.command.shown()));
            }
        }
        let stopped = self.record.stopped().to_vec();
        if let Some(supervisor) = plan.control.supervisor() {
            for (name, policy) in self.record.restart_policies() {
                supervisor.set_restart_policy(name, policy, progress)?;
            }
        }
        if let Some(supervisor) = plan.control.supervisor()
            && !stopped.is_empty()
        {
            for name in stopped.iter().rev() {
                supervisor.start(name, progress)?;
            }
            (self.say)(Stage::Start, &format!("started {}", stopped.join(", ")));
        }
        self.configure(Stage::Start, rebuilding)
    }
}

/// Returns whether the rebuild stops a Redis that runs; `None` if only the admin's commands decide it.
fn stops_redis(
    plan: &Plan,
    redis: &Redis,
    root: &Path,
    rebuilding: &Rebuilding,
    progress: &Progress,
) -> Option<bool> {
    match &plan.control {
        Control::Nothing => Some(false),
        Control::Commands { stop, .. } if stop.is_empty() => Some(false),
        Control::Commands { .. } => None,
        Control::Supervised(supervisor) => {
            let all = all(supervisor, plan, rebuilding, progress);
            let is_runit = supervisor.speaks == Speaks::Runit;
            Some(
                is_runit
                    && is_of_package(redis, root, progress)
                    && all.writers.iter().any(|name| name == SERVICE),
            )
        }
    }
}

/// Returns true if a Redis that runs is the one of GitLab's package, which its supervisor stops. The
/// process of another one has another parent.
fn is_of_package(redis: &Redis, root: &Path, progress: &Progress) -> bool {
    let Ok(Some(process)) = redis.process(progress) else { return true };
    let usual = crate::kind::below(root, Path::new(USUAL));
    if redis.current_files(progress).is_ok_and(|files| files.dir == usual) {
        return true;
    }
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name of the program may have blanks: the state and the parent come after its end.
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
    let Some(parent) = parent else { return true };
    let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
    name.trim() == SUPERVISOR
}

/// Returns the saved snapshot of Redis among restored files.
fn saved_file(job: &Job<'_>, saved: &Files) -> Option<PathBuf> {
    let name = job.manifest.redis.as_ref().map_or(FILES[0], |known| known.snapshot.as_str());
    saved.named(job, name)
}

/// Returns true if two paths lead to one place on this machine.
fn is_same_place(job: &Job<'_>, a: &Path, b: &Path) -> bool {
    a == b || files::place(job, a).ok().is_some_and(|a| files::place(job, b).ok() == Some(a))
}

/// Program that runs a service of GitLab's package.
const SUPERVISOR: &str = "runsv";
/// Service of GitLab's package.
const SERVICE: &str = "redis";
/// Persistence files of Redis.
const FILES: [&str; 3] = ["dump.rdb", "appendonly.aof", LOG_DIR];
/// Directory of the append-only log since Redis 7.
const LOG_DIR: &str = "appendonlydir";
/// End of the name of a log's list of files.
const MANIFEST: &str = ".manifest";

/// Makes a new append-only log whose base is a snapshot. A Redis that is configured for a log and finds
/// none starts empty, whatever snapshot lies beside.
fn begin_log(old: &Aside, snapshot: &Path) -> std::io::Result<()> {
    let names = std::fs::read_dir(&old.to)?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<std::io::Result<Vec<_>>>()?;
    let mut lists = names.iter().filter_map(|name| name.to_str()?.strip_suffix(MANIFEST));
    let Some(prefix) = lists.next() else { return Ok(()) };
    let owner = snapshot.metadata()?;
    let give = |path: &Path| std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()));
    // Under its final name only when it is whole.
    let new = old.from.with_extension("new");
    let _ = std::fs::remove_dir_all(&new);
    std::fs::DirBuilder::new().mode(0o755).create(&new)?;
    let base = format!("{prefix}.1.base.rdb");
    let list = new.join(format!("{prefix}{MANIFEST}"));
    std::fs::copy(snapshot, new.join(&base))?;
    std::fs::write(&list, format!("file {base} seq 1 type b\n"))?;
    give(&list)?;
    give(&new.join(&base))?;
    give(&new)?;
    std::fs::rename(&new, &old.from)?;
    // The record says next that it is there.
    Ok(rustix::fs::syncfs(std::fs::File::open(&old.from)?)?)
}

/// Returns the supervisor with all services to stop: those that it shows, without the database
/// server, into which dumps are loaded.
fn all(
    supervisor: &Supervisor,
    plan: &Plan,
    rebuilding: &Rebuilding,
    progress: &Progress,
) -> Supervisor {
    let mut supervisor = supervisor.clone();
    if supervisor.speaks == Speaks::Runit {
        let names = plan.control.services(progress);
        let is_kept = |name: &String| rebuilding.up.contains(&name.as_str());
        let names: Vec<String> = names.into_iter().filter(|name| !is_kept(name)).collect();
        if !names.is_empty() {
            supervisor.writers = names;
        }
        supervisor.needs_all = false;
    }
    supervisor
}
