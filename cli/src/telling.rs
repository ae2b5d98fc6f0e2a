//! Telling of one run of an instance: that it began, how it ended, and when monitoring has to
//! look away.

use crate::config::Config;
use crate::exit::{Failure, other};
use crate::notify::{self, Ending, News, Notifier, Origin, RunId, Silenced, What};
use crate::report::now;
use crate::ui::Ui;
use forge::check::Verdict;
use forge::recovery::{Monitor, Record};
use forge::session::Outcome;
use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;
use store::entry::Time;

/// Tells of one run.
pub struct Telling<'a> {
    ui: &'a Ui,
    notifiers: &'a [Notifier],
    origin: Origin<'a>,
    started: Time,
    /// File with how the run before went.
    memory: PathBuf,
    /// How long monitoring stays silent when services run again.
    delay: Duration,
    /// When the last silence is to end.
    end: Cell<Option<Time>>,
}

impl<'a> Telling<'a> {
    /// For a run that begins now.
    pub fn new(
        ui: &'a Ui,
        config: &'a Config,
        instance: &'a str,
        host: &'a str,
    ) -> Result<Telling<'a>, Failure> {
        let run = RunId::random().map_err(|error| other(format!("no random number: {error}")))?;
        Ok(Telling {
            ui,
            notifiers: &config.notify,
            origin: Origin { instance, host, run },
            started: now(),
            memory: config.state.join("last").join(instance),
            delay: config.silence_after.0,
            end: Cell::default(),
        })
    }

    /// For undoing what another run left: nothing is waited for.
    pub fn at_once(self) -> Telling<'a> {
        Telling { delay: Duration::ZERO, ..self }
    }

    /// Tells that it began.
    pub fn started(&self) {
        self.warn(notify::tell(self.notifiers, &self.news(What::Started)));
    }

    /// Tells how it ended.
    pub fn ended(&self, result: &Result<Outcome, Failure>) {
        let mut outcome = self.outcome(result);
        outcome.previous = match std::fs::read_to_string(&self.memory).as_deref() {
            Ok("done") => Some(true),
            Ok(_) => Some(false),
            Err(_) => None,
        };
        self.warn(notify::tell(self.notifiers, &self.news(What::Ended(&outcome))));
        let word = if outcome.is_good() { "done" } else { "not done" };
        let dir = self.memory.parent().unwrap_or(&self.memory);
        // Without the directory the file says why it cannot be written.
        let _ = std::fs::create_dir_all(dir);
        if let Err(error) = forge::file::replace(&self.memory, 0o644, word.as_bytes()) {
            self.ui.warn(&error.to_string());
        }
    }

    fn outcome(&self, result: &Result<Outcome, Failure>) -> notify::Outcome {
        let mut told = notify::Outcome::new(Ending::Failed, 0, self.started, now());
        match result {
            Err(failure) => {
                told.exit_code = failure.number();
                told.message = failure.words().map(|(message, _)| message);
            }
            Ok(outcome) => {
                let statistics = &outcome.report.statistics;
                told.bytes_read = statistics.bytes_read;
                told.bytes_stored = statistics.added_stored_bytes;
                told.snapshot = outcome.snapshot().map(|id| id.short().to_string());
                told.seconds_down = outcome.down.map(|down| down.as_secs_f64());
                let is_bad = |verdict| verdict >= Verdict::Warning;
                let bad = outcome.checks.iter().filter(|check| is_bad(check.verdict));
                told.warnings.extend(bad.map(|check| format!("{}: {}", check.name, check.text)));
                let failed = |verdict| verdict == Verdict::Failed;
                let failed = outcome.checks.iter().filter(|check| failed(check.verdict)).count();
                told.checks_failed = failed as u64;
                if outcome.is_good() {
                    told.ending = Ending::Done;
                } else {
                    (told.ending, told.exit_code) = (Ending::Partial, Failure::Partial.number());
                    let lack = (!outcome.is_complete).then(|| lack(outcome));
                    let lines: Vec<String> = outcome.failures.iter().cloned().chain(lack).collect();
                    told.message = Some(lines.join("\n"));
                }
            }
        }
        told
    }

    /// Waits until silences may end, where monitoring cannot be told ahead, and ends them.
    pub fn end_silences(&self, record: &mut Record) {
        let Some(end) = self.end.get() else { return };
        let left = || end.seconds - now().seconds;
        if !record.left().is_empty() && left() > 0 {
            let text = format!("waiting {} s before monitoring is told that all is up", left());
            let _ = self.ui.remark(text);
        }
        while !record.left().is_empty() && left() > 0 && !self.ui.wants_stop() {
            std::thread::sleep(Duration::from_millis(200));
        }
        self.end.set(Some(now()));
        for (what, error) in record.undo(self) {
            self.ui.warn(&format!("could not {what}: {error}"));
        }
    }

    fn news<'b>(&'b self, what: What<'b>) -> News<'b> {
        News { origin: self.origin, at: now(), what }
    }

    /// What did not work is told and never makes a run fail.
    fn warn(&self, warnings: Vec<String>) {
        for warning in warnings {
            self.ui.warn(&warning);
        }
    }
}

impl Monitor for Telling<'_> {
    fn silence(&self) -> Option<serde_json::Value> {
        let (silenced, warnings) = notify::silence(self.notifiers, &self.origin, now());
        self.warn(warnings);
        noted(&silenced)
    }

    fn end_silence(&self, silenced: &serde_json::Value) -> Option<serde_json::Value> {
        let silenced: Vec<Silenced> = match serde_json::from_value(silenced.clone()) {
            Ok(silenced) => silenced,
            Err(error) => {
                self.warn(vec![format!(
                    "monitoring may still be silenced; end that by hand ({error})"
                )]);
                return None;
            }
        };
        let at = now();
        let end = self.end.get().unwrap_or(Time {
            seconds: at.seconds.saturating_add(self.delay.as_secs() as i64),
            ..at
        });
        self.end.set(Some(end));
        let (left, warnings) = notify::end_silence(self.notifiers, silenced, end, at);
        self.warn(warnings);
        noted(&left)
    }
}

/// What is kept of silences, if there are any.
fn noted(silenced: &[Silenced]) -> Option<serde_json::Value> {
    if silenced.is_empty() { None } else { serde_json::to_value(silenced).ok() }
}

/// What an incomplete snapshot lacks.
fn lack(outcome: &Outcome) -> String {
    let missing = outcome.missing.iter().filter(|absent| absent.is_required);
    let missing: Vec<&str> = missing.map(|absent| &absent.part[..]).collect();
    match (&missing[..], outcome.report.unreadable_count) {
        ([], 0) => "the copy does not fit the databases".into(),
        ([], paths) => format!("{paths} paths could not be read"),
        (parts, _) => format!("missing: {}", parts.join(", ")),
    }
}
