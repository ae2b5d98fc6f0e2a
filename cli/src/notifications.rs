//! Notifications of one run of an instance: its start, its end, and silences of the monitoring.
//! Results of checks and drills.

use crate::config::Config;
use crate::notify::{self, Notification, Notifier, NotifyError, Origin, Silenced, What};
use crate::report::now;
use crate::run_id::RunId;
use crate::run_record::RunRecord;
use crate::ui::Ui;
use forge::recovery::{Monitor, Record, Undo};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use store::check_record::CheckRecord;
use store::entry::{Displayed, Time};
use store::observe::Progress;

/// Sends the notifications of one run.
pub struct Notifications<'a> {
    ui: &'a Ui,
    notifiers: &'a [Notifier],
    origin: Origin<'a>,
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

    /// Sends the record of the run, and keeps its result for the next run.
    pub fn ended(&self, record: &RunRecord) {
        let notification = self.notification(What::Ended(record));
        self.warn(send(self.ui, self.notifiers, notification, &self.memory));
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
            self.ui.warn(&format!("cannot {what}: {error}"));
        }
    }

    fn notification<'b>(&'b self, what: What<'b>) -> Notification<'b> {
        Notification { origin: self.origin, at: now(), what, previous: None }
    }

    /// Prints warnings of notifiers, which never make a run fail.
    fn warn(&self, errors: Vec<NotifyError>) {
        for warning in errors.iter().map(NotifyError::to_string) {
            if self.warned.borrow_mut().insert(warning.clone()) {
                self.ui.warn(&warning);
            }
        }
    }
}

/// Sends the record of a check of a store, or of a drill of an instance, of this name.
pub fn examined(ui: &Ui, config: &Config, name: &str, run: RunId, record: &CheckRecord) {
    let origin = Origin { instance: name, host: &record.host, run, is_test: false };
    let what = What::Examined(record);
    let notification = Notification { origin, at: now(), what, previous: None };
    let memory = config.state.join(format!("last-{}", record.kind.name()));
    // The name of a store can be any text, and so can the argument of a drill.
    let memory = memory.join(notify::escaped(name));
    if config.notify.is_empty() {
        return;
    }
    for warning in send(ui, &config.notify, notification, &memory) {
        ui.warn(&warning.to_string());
    }
}

/// Sends a result with that of the previous run, which is in the file `memory`, and keeps it there
/// for the next run. Returns errors of notifiers.
fn send(
    ui: &Ui,
    notifiers: &[Notifier],
    notification: Notification<'_>,
    memory: &Path,
) -> Vec<NotifyError> {
    let previous = match std::fs::read_to_string(memory).as_deref() {
        Ok("done") => Some(true),
        Ok(_) => Some(false),
        Err(_) => None,
    };
    // A stop request to the run is not a stop request to the notifications.
    let was_stopped = ui.wants_stop();
    let wants_stop = || !was_stopped && ui.wants_stop();
    let is_good = notification.what.is_good() == Some(true);
    let errors = notify::send(notifiers, &Notification { previous, ..notification }, &wants_stop);
    let word = if is_good { "done" } else { "not done" };
    let dir = memory.parent().unwrap_or(memory);
    let made = std::fs::create_dir_all(dir)
        .map_err(|source| forge::Error::Write { path: dir.to_owned(), source });
    let kept = made.and_then(|()| forge::file::replace(memory, 0o644, word.as_bytes()));
    if let Err(error) = kept {
        ui.warn(&format!(
            "{error}; the next run will not know this result; check the disk and the permissions of {}",
            dir.displayed()
        ));
    }
    errors
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
                self.warn(vec![NotifyError::SilencesUnknown(error)]);
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
