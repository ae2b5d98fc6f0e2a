//! While services are stopped.

use super::Job;
use crate::error::{Error, Result};
use crate::recovery::{Record, Undo};
use crate::service::control::Writer;
use std::time::{Duration, Instant};
use store::observe::Event;

/// Services are down. When this goes, in whatever way, they are started again.
pub struct Stopped<'a> {
    job: &'a Job<'a>,
    record: &'a mut Record,
    since: Instant,
    names: Vec<String>,
    is_over: bool,
}

impl<'a> Stopped<'a> {
    /// Silences monitoring, then stops all services that write and run. If one does not
    /// stop, all are started again and the run fails: a copy of half-stopped services
    /// would fit nothing.
    pub fn begin(job: &'a Job<'a>, record: &'a mut Record) -> Result<Stopped<'a>> {
        let progress = job.store.observer().progress();
        let writers = job.plan.control.writers(progress)?;
        if writers.is_empty() {
            let text = "no service that writes is running; nothing is stopped".into();
            job.store.observer().event(Event::Note(text));
        } else if let Some(silenced) = job.monitor.silence() {
            record.note(Undo::EndSilence(silenced))?;
        }
        let mut stopped =
            Stopped { job, record, since: Instant::now(), names: Vec::new(), is_over: false };
        for writer in &writers {
            stopped.stop(writer)?;
        }
        Ok(stopped)
    }

    fn stop(&mut self, writer: &Writer) -> Result<()> {
        let progress = self.job.store.observer().progress();
        let start = writer.start.clone();
        if !start.is_empty() {
            self.record.note(Undo::Start { name: writer.name.clone(), commands: start })?;
        }
        writer.stop.output(progress)?;
        // What a program says of its success is not enough.
        if self.job.plan.control.is_running(writer, progress)? == Some(true) {
            let reason = "it still runs, though the command to stop it succeeded".into();
            return Err(Error::Service { service: writer.name.clone(), reason });
        }
        self.names.push(writer.name.clone());
        Ok(())
    }

    /// Their names, for people.
    pub fn names(&self) -> String {
        if self.names.is_empty() { "nothing".into() } else { self.names.join(", ") }
    }

    /// Starts them again and says how long they were down, if there were any.
    pub fn end(&mut self) -> Option<Duration> {
        if std::mem::replace(&mut self.is_over, true) {
            return None;
        }
        let was_anything = !self.record.left().is_empty() || !self.names.is_empty();
        for (undo, error) in self.record.undo(self.job.monitor) {
            let text = format!(
                "could not {}: {error}; `forgekeep recover` tries again, as does the next run",
                undo.shown()
            );
            self.job.store.observer().event(Event::Warning(text));
        }
        was_anything.then(|| self.since.elapsed())
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
