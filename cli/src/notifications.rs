//! Notifications of one run of an instance: its start, its end, and silences of the monitoring.

use crate::config::Config;
use crate::exit::Failure;
use crate::notify::{self, Ending, Notification, Notifier, Origin, Silenced, What};
use crate::report::{now, skipped_records};
use crate::run_id::RunId;
use crate::ui::{Ui, shown};
use forge::check::Verdict;
use forge::recovery::{Monitor, Record, Undo};
use forge::session::Outcome;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use store::entry::Time;
use store::observe::Progress;

/// Sends the notifications of one run.
pub struct Notifications<'a> {
    ui: &'a Ui,
    notifiers: &'a [Notifier],
    origin: Origin<'a>,
    started: Time,
    /// File with the result of the previous run.
    memory: PathBuf,
    /// Time that monitoring stays silent once services run again.
    delay: Cell<Duration>,
    /// Silences still to be ended, and when. A monotonic time, because the clock may be set.
    due: RefCell<Vec<(serde_json::Value, Instant)>>,
    /// Warnings already printed. Each is printed once.
    warned: RefCell<BTreeSet<String>>,
}

impl<'a> Notifications<'a> {
    /// Creates the notifications of a run that begins now.
    pub fn new(
        ui: &'a Ui,
        config: &'a Config,
        instance: &'a str,
        host: &'a str,
        run: RunId,
    ) -> Notifications<'a> {
        Notifications {
            ui,
            notifiers: &config.notify,
            origin: Origin { instance, host, run, is_test: false },
            started: now(),
            memory: config.state.join("last").join(instance),
            delay: Cell::new(config.silence_after.0),
            due: RefCell::default(),
            warned: RefCell::default(),
        }
    }

    /// Undoes steps of another run without delay, because its silences are over.
    pub fn at_once<T>(&self, undo: impl FnOnce() -> T) -> T {
        let delay = self.delay.replace(Duration::ZERO);
        let done = undo();
        self.delay.set(delay);
        done
    }

    /// Notifies that the run began.
    pub fn started(&self) {
        let wants_stop = || self.ui.wants_stop();
        self.warn(notify::send(self.notifiers, &self.notification(What::Started), &wants_stop));
    }

    /// Sends the outcome of the run, which ended at time `at`, and records it for the next run.
    pub fn ended(&self, result: &Result<Outcome, Failure>, at: Time) {
        let mut outcome = self.outcome(result, at);
        outcome.previous = match std::fs::read_to_string(&self.memory).as_deref() {
            Ok("done") => Some(true),
            Ok(_) => Some(false),
            Err(_) => None,
        };
        // A stop request to the run is not a stop request to the notifications.
        let was_stopped = self.ui.wants_stop();
        let wants_stop = || !was_stopped && self.ui.wants_stop();
        self.warn(notify::send(
            self.notifiers,
            &self.notification(What::Ended(&outcome)),
            &wants_stop,
        ));
        let word = if outcome.is_good() { "done" } else { "not done" };
        let dir = self.memory.parent().unwrap_or(&self.memory);
        // Without the directory, the write below reports the error.
        let _ = std::fs::create_dir_all(dir);
        if let Err(error) = forge::file::replace(&self.memory, 0o644, word.as_bytes()) {
            self.ui.warn(&error.to_string());
        }
    }

    fn outcome(&self, result: &Result<Outcome, Failure>, at: Time) -> notify::Outcome {
        let mut sent = notify::Outcome::new(Ending::Failed, 0, self.started, at);
        sent.warnings = self.ui.warnings();
        match result {
            Err(failure) => {
                sent.exit_code = failure.number();
                sent.message = failure.words().map(|(message, _)| shown(&message).into_owned());
            }
            Ok(outcome) => {
                let statistics = &outcome.report.statistics;
                sent.bytes_read = statistics.bytes_read;
                sent.bytes_stored = statistics.added_stored_bytes;
                sent.snapshot = outcome.snapshot().map(|id| id.short().to_string());
                sent.seconds_down = outcome.down.map(|down| down.as_secs_f64());
                let is_bad = |verdict| verdict >= Verdict::Warning;
                let bad = outcome.checks.iter().filter(|check| is_bad(check.verdict));
                sent.warnings.extend(bad.map(|check| format!("{}: {}", check.name, check.text)));
                let failed = |verdict| verdict == Verdict::Failed;
                let failed = outcome.checks.iter().filter(|check| failed(check.verdict)).count();
                sent.checks_failed = failed as u64;
                if outcome.is_good() {
                    sent.ending = Ending::Done;
                } else {
                    (sent.ending, sent.exit_code) = (Ending::Partial, Failure::Partial.number());
                    let lack = (!outcome.is_complete).then(|| lack(outcome));
                    let skipped = skipped_records(outcome.report.skipped_records);
                    let lines = outcome.failures.iter().cloned().chain(lack).chain(skipped);
                    let lines: Vec<String> = lines.map(|line| shown(&line).into_owned()).collect();
                    sent.message = Some(lines.join("\n"));
                }
            }
        }
        sent
    }

    /// Ends silences that monitoring cannot end ahead of time. Waits until they are due.
    pub fn end_silences(&self, record: &mut Record) {
        let is_silence = |undo: &Undo| matches!(undo, Undo::EndSilence(_));
        if !record.left().iter().any(is_silence) {
            return;
        }
        let due = self.due.borrow().iter().map(|(_, at)| *at).max();
        let left = || due.map_or(0, |at| at.saturating_duration_since(Instant::now()).as_secs());
        if left() > 0 {
            let text = format!("waiting {} s before ending the silence of monitoring", left());
            let _ = self.ui.remark(text);
        }
        while due.is_some_and(|at| Instant::now() < at) && !self.ui.wants_stop() {
            std::thread::sleep(Duration::from_millis(200));
        }
        self.delay.set(Duration::ZERO);
        self.due.borrow_mut().clear();
        for (what, error) in record.undo(self) {
            self.ui.warn(&format!("could not {what}: {error}"));
        }
    }

    fn notification<'b>(&'b self, what: What<'b>) -> Notification<'b> {
        Notification { origin: self.origin, at: now(), what }
    }

    /// Prints warnings of notifiers, which never make a run fail.
    fn warn(&self, warnings: Vec<String>) {
        for warning in warnings {
            if self.warned.borrow_mut().insert(warning.clone()) {
                self.ui.warn(&warning);
            }
        }
    }
}

impl Monitor for Notifications<'_> {
    fn plan_silence(&self) -> Option<serde_json::Value> {
        recorded(&notify::plan_silence(self.notifiers, &self.origin, now()))
    }

    fn silence(&self, planned: &serde_json::Value, progress: &Progress) {
        // Earlier silences no longer end on their own: they end with this one.
        self.due.borrow_mut().clear();
        let planned: Vec<Silenced> = serde_json::from_value(planned.clone()).unwrap_or_default();
        let wants_stop = || progress.check().is_err();
        let origin = &self.origin;
        self.warn(notify::silence(self.notifiers, &planned, origin, now(), &wants_stop));
    }

    fn end_silence(&self, silenced: &serde_json::Value) -> Option<serde_json::Value> {
        let known =
            self.due.borrow().iter().find(|(known, _)| known == silenced).map(|(_, at)| *at);
        if known.is_some_and(|at| Instant::now() < at) {
            return Some(silenced.clone());
        }
        let silenced: Vec<Silenced> = match serde_json::from_value(silenced.clone()) {
            Ok(silenced) => silenced,
            Err(error) => {
                self.warn(vec![format!(
                    "monitoring may still be silenced; end the silence by hand ({error})"
                )]);
                return None;
            }
        };
        // Each silence ends at its own time, counted from the start of its services.
        let delay = if known.is_some() { Duration::ZERO } else { self.delay.get() };
        let (due, at) = (Instant::now() + delay, now());
        let end = Time { seconds: at.seconds.saturating_add(delay.as_secs() as i64), ..at };
        let (left, warnings) = notify::end_silence(self.notifiers, silenced, end, at);
        self.warn(warnings);
        let left = recorded(&left)?;
        let mut all = self.due.borrow_mut();
        all.retain(|(known, _)| *known != left);
        all.push((left.clone(), due));
        Some(left)
    }
}

/// Returns silences in the form in which they are kept; `None` if there are none.
fn recorded(silenced: &[Silenced]) -> Option<serde_json::Value> {
    if silenced.is_empty() { None } else { serde_json::to_value(silenced).ok() }
}

/// Describes the faults of an incomplete snapshot.
fn lack(outcome: &Outcome) -> String {
    let missing = outcome.missing.iter().filter(|absent| absent.is_required);
    let missing: Vec<&str> = missing.map(|absent| &absent.part[..]).collect();
    match (&missing[..], outcome.report.unreadable_count) {
        ([], 0) => "the stored files do not match the databases".into(),
        ([], paths) => format!("{paths} paths could not be read"),
        (parts, _) => format!("missing: {}", parts.join(", ")),
    }
}
