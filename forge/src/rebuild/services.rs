//! Stops the services of an instance for its rebuild, and starts them at the end.

use super::{Rebuild, Stage};
use crate::error::{Error, Result};
use crate::kind::Rebuilding;
use crate::plan::{Phase, Plan};
use crate::rebuild::files::Files;
use crate::rebuild::{Aside, aside};
use crate::service::control::{Control, Speaks, Supervisor};
use crate::service::redis::{Redis, Saved};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use store::observe::Event;

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

    /// Puts the saved queue in place, or makes Redis start empty: jobs of other moments would act on
    /// the restored databases.
    pub fn redis(&mut self) -> Result<()> {
        let job = self.job;
        let plan = match self.plan() {
            Ok((plan, _)) => plan,
            Err(error) if job.is_dry && !error.is_interrupted() => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(redis) = &plan.redis else {
            (self.say)(Stage::Redis, "the instance has none");
            return Ok(());
        };
        let progress = job.store.observer().progress();
        let mut saved = Files::of(job, |part| part.phase == Phase::RedisFiles);
        if let (true, Some(known)) = (saved.is_empty(), &job.manifest.redis) {
            // A server without a part: the backup asked it for its files.
            saved = Files::there(job, redis.files(known, plan.redis_dir()));
        }
        let is_up = redis.expect_access(progress).is_ok();
        let is_ours = job.is_dry || !is_up;
        if !is_ours {
            // A running server would overwrite its files. Its data is kept, like all other.
            let kept = self.keep_queue(redis, plan.redis_dir());
            if let Err(error) = kept {
                if error.is_interrupted() {
                    return Err(error);
                }
                let text = format!("its data could not be kept, so it was not emptied: {error}");
                (self.say)(Stage::Redis, &text);
                let left = "redis-cli FLUSHALL, unless its jobs belong to the restored databases";
                self.record.leave(left)?;
                return Ok(());
            }
            redis.flush(progress)?;
            let text = match saved.is_empty() {
                true => "emptied; the snapshot has no saved queue".to_owned(),
                false => format!(
                    "emptied; Redis runs and cannot be stopped here, so the saved queue was not \
                     restored ({}); to keep it, stop Redis and restore that file",
                    saved.shown()
                ),
            };
            (self.say)(Stage::Redis, &text);
            return Ok(());
        }
        if job.is_dry {
            let text = match saved.is_empty() {
                true => "would start empty: the snapshot has no saved queue".to_owned(),
                false => format!("would restore {}", saved.shown()),
            };
            (self.say)(Stage::Redis, &text);
            return Ok(());
        }
        let suffix = self.record.suffix().to_owned();
        let dir = plan.redis_dir().or_else(|| saved.dir()).map(Path::to_owned);
        let files: Vec<PathBuf> =
            dir.into_iter().flat_map(|dir| FILES.map(|name| dir.join(name))).collect();
        if !self.record.is_begun(Stage::Redis) {
            let mut planned = saved.asides(job, &suffix)?;
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
        let (text, losses) = saved.restore(job)?;
        (self.say)(Stage::Redis, &text);
        let logs = self.record.aside().iter().filter(|aside| aside.from.ends_with(LOG_DIR));
        for log in logs.filter(|log| !log.from.exists()) {
            let dir = log.from.parent().unwrap_or(&log.from);
            if let Some(snapshot) = saved.in_dir(dir) {
                begin_log(log, &snapshot)
                    .map_err(|source| Error::Write { path: log.from.clone(), source })?;
                (self.say)(Stage::Redis, "began a new append-only log with it");
            }
        }
        self.record.lose(losses)
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
    progress: &store::observe::Progress,
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
