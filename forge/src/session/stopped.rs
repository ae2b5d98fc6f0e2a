//! Period in which services are stopped.

use super::Job;
use crate::error::{Error, Result};
use crate::process::at_once;
use crate::recovery::{Record, Undo, named};
use crate::service::control::{Control, Downtime, Writer};
use std::time::{Duration, Instant};
use store::observe::{Event, Progress};

/// Stopped services. Dropping this value starts them again.
pub struct Stopped<'a> {
    job: &'a Job<'a>,
    record: &'a mut Record,
    since: Instant,
    names: Vec<String>,
    /// Time at which all were down.
    all_down: Instant,
    /// Downtime of each at that time, if its supervisor shows it.
    downtimes: Vec<Option<Downtime>>,
    is_over: bool,
}

impl<'a> Stopped<'a> {
    /// Silences monitoring, then stops all running services that write. If one does not stop, all
    /// are started again and the backup fails: a copy with only some services stopped would be
    /// inconsistent.
    pub fn begin(job: &'a Job<'a>, record: &'a mut Record) -> Result<Stopped<'a>> {
        let progress = job.store.observer().progress();
        let control = &job.plan.control;
        let writers = control.writers(progress)?;
        // From here on, dropping `stopped` undoes every recorded stop and silence.
        let (since, names) = (Instant::now(), Vec::new());
        let (all_down, downtimes, is_over) = (since, Vec::new(), false);
        let mut stopped = Stopped { job, record, since, names, all_down, downtimes, is_over };
        if writers.is_empty() {
            let text = "no writing service is running; nothing is stopped".into();
            job.store.observer().event(Event::Warning(text));
        } else {
            stopped.record.silence(job.monitor, progress)?;
        }
        // The user may have asked to stop while the monitoring system was slow.
        progress.check()?;
        for Writer { name, start, .. } in writers.iter().filter(|writer| !writer.start.is_empty()) {
            let name = match control {
                // Named after its start commands, because the services are unknown.
                Control::Commands { .. } => named(start),
                _ => name.clone(),
            };
            let supervisor = control.supervisor().cloned();
            stopped.record.note(Undo::Start { name, commands: start.clone(), supervisor })?;
        }
        stopped.since = Instant::now();
        if matches!(control, Control::Commands { .. }) {
            // The admin's commands run in their order.
            writers.iter().try_for_each(|writer| stop(control, writer, progress))?;
        } else {
            // Waits for all of them, even if one fails.
            let mut restarted = Vec::new();
            for stopped in at_once(&writers, |writer| stop(control, writer, progress)) {
                match stopped {
                    Err(Error::Restarted { services }) => restarted.extend(services),
                    other => other?,
                }
            }
            if !restarted.is_empty() {
                return Err(Error::Restarted { services: restarted });
            }
        }
        stopped.names.extend(writers.into_iter().map(|writer| writer.name));
        if let Some(supervisor) = control.supervisor() {
            let downtime = |name: &String| supervisor.downtime(name, progress);
            stopped.downtimes = stopped.names.iter().map(downtime).collect::<Result<_>>()?;
        }
        stopped.all_down = Instant::now();
        Ok(stopped)
    }

    /// Time since the first of them was asked to stop.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Names of the stopped services.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Fails if a service that writes runs: another program started it, and the copy is
    /// inconsistent.
    pub fn expect_down(&self) -> Result<()> {
        let Some(supervisor) = self.job.plan.control.supervisor() else { return Ok(()) };
        let progress = self.job.store.observer().progress();
        // Read before the answers, so that a slow supervisor does not shorten a downtime.
        let elapsed = self.all_down.elapsed();
        let mut services = supervisor.running_writers(&self.names, progress)?;
        for (name, then) in self.names.iter().zip(&self.downtimes) {
            let now = supervisor.downtime(name, progress)?;
            let is_later =
                now.zip(then.as_ref()).is_some_and(|(now, then)| now.is_later_than(then, elapsed));
            if is_later && !services.contains(name) {
                services.push(name.clone());
            }
        }
        if services.is_empty() { Ok(()) } else { Err(Error::Restarted { services }) }
    }

    /// Starts them again. Returns the time that they were down, if any were, and the failed steps.
    pub fn end(&mut self) -> (Option<Duration>, Vec<String>) {
        if std::mem::replace(&mut self.is_over, true) {
            return (None, Vec::new());
        }
        let failed = self.record.undo_stop(self.job.monitor).into_iter();
        let failed = failed.map(|(what, error)| {
            format!("cannot {what}: {error}; `forgekeep recover` or the next run tries again")
        });
        let failed = failed.collect();
        ((!self.names.is_empty()).then(|| self.since.elapsed()), failed)
    }
}

fn stop(control: &Control, writer: &Writer, progress: &Progress) -> Result<()> {
    match control.supervisor() {
        Some(supervisor) => supervisor.stop(writer, progress),
        None => {
            writer.stop.output(progress)?;
            Ok(progress.check()?)
        }
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        for text in self.end().1 {
            self.job.store.observer().event(Event::Warning(text));
        }
    }
}
