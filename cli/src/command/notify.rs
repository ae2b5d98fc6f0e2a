use super::Global;
use crate::examination::Examination;
use crate::exit::{Failure, with_hint};
use crate::json::Notified;
use crate::notify::{self, Notification, Notifier, NotifyError, Origin, What};
use crate::report::now;
use crate::run_id::RunId;
use crate::run_record::{Frame, RunRecord, RunResult};
use crate::ui::Ui;
use clap::{Args, Subcommand, ValueEnum};
use std::time::Duration;
use store::check_record::{CheckKind, CheckLevel, CheckRecord, CheckResult};
use store::entry::Time;

/// Test notifications
#[derive(Debug, Args)]
pub struct Notify {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Test(Test),
}

/// Send a test message through every configured notifier
///
/// The message reports a failure unless --as gives another event, because failures must arrive.
/// Monitoring never counts a test as a success. The next backup ends an alarm that a test raised.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep notify test --instance gitlab")]
struct Test {
    /// Instance that the message names [default: the only configured instance, or `test`]
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Event to report
    #[arg(long = "as", value_enum, default_value_t = TestedEvent::Failed)]
    kind: TestedEvent,
}

/// Event that a test reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TestedEvent {
    /// A backup started
    Started,
    /// A backup is complete
    Done,
    /// A backup is not complete
    Partial,
    /// A backup failed
    Failed,
    /// A drill found a fault
    Drill,
    /// Services stop and start again: begins a silence of the monitoring and ends it
    Silence,
}

impl Notify {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let Action::Test(test) = &self.action;
        test.run(global, ui)
    }
}

impl Test {
    fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = global.config.read()?;
        let notifiers = &config.notify;
        if notifiers.is_empty() {
            let hint = "add a [[notify]] table; see docs/notifications.md";
            return Err(with_hint("the configuration has no notifier", hint));
        }
        let host = super::instance::host();
        let run = RunId::random()?;
        let only = config.instances.keys().next().filter(|_| config.instances.len() == 1);
        let instance = self.instance.as_ref().or(only).map_or("test", String::as_str);
        if let Some(named) = &self.instance {
            config.instance(named)?;
        }
        let origin = Origin { instance, host: &host, run, is_test: true };
        ui.begin_work();
        let wants_stop = || ui.wants_stop();
        let (record, drill);
        let what = match self.kind {
            TestedEvent::Started => Some(What::Started),
            TestedEvent::Silence => None,
            TestedEvent::Drill => {
                drill = faulty_drill()?;
                Some(What::Examined(&drill))
            }
            TestedEvent::Done | TestedEvent::Partial | TestedEvent::Failed => {
                record = self.kind.record(run);
                Some(What::Ended(&record))
            }
        };
        let notification = what.map(|what| Notification {
            origin,
            at: now(),
            what,
            previous: self.kind.previous(),
        });
        let mut refused = 0;
        let failures = match &notification {
            Some(notification) => {
                let errors = notify::send(notifiers, notification, &wants_stop);
                let is_unsent =
                    |error: &&NotifyError| matches!(error, NotifyError::OnlySuccess { .. });
                refused = errors.iter().filter(is_unsent).count();
                messages(errors)
            }
            None => silence(notifiers, &origin, &wants_stop),
        };
        let is_silent = |notifier: &&Notifier| match &notification {
            Some(notification) => !notifier.sends(notification),
            None => !notifier.silences(&origin, now()),
        };
        let silent: Vec<String> = notifiers.iter().filter(is_silent).map(Notifier::name).collect();
        let count = notifiers.len() - silent.len() - refused;
        for failure in &failures {
            ui.explain(failure);
        }
        for name in &silent {
            ui.explain(&format!("{name} does not send this kind of message; it was not tested"));
        }
        ui.json(&Notified { notifiers: count, not_tested: &silent, failures: &failures })?;
        if failures.is_empty() && count > 0 {
            return ui.remark(format!("tested {}", crate::report::count(count as u64, "notifier")));
        }
        Err(Failure::Partial)
    }
}

impl TestedEvent {
    /// Returns the record of an invented run.
    fn record(self, run: RunId) -> RunRecord {
        let (result, exit_code) = match self {
            TestedEvent::Done => (RunResult::Done, 0),
            TestedEvent::Partial => (RunResult::Partial, 3),
            _ => (RunResult::Failed, 1),
        };
        let (at, elapsed, warnings) = (now(), Duration::ZERO, Vec::new());
        let frame = Frame { run, store: None, started: at, ended: at, elapsed, warnings };
        let message = Some("this is a test; no backup ran".into());
        RunRecord { message, ..RunRecord::new(frame, result, exit_code) }
    }

    /// Returns a result of the previous run with which every `when` setting reports this event.
    fn previous(self) -> Option<bool> {
        Some(self != TestedEvent::Done)
    }
}

/// Returns the record of an invented drill.
fn faulty_drill() -> Result<CheckRecord, Failure> {
    let record = Examination::begin(CheckKind::Drill)?.record(CheckLevel::Sample);
    let message = Some("this is a test; no drill ran".into());
    Ok(CheckRecord { result: CheckResult::Faulty, message, ..record })
}

fn messages(errors: Vec<NotifyError>) -> Vec<String> {
    errors.iter().map(NotifyError::to_string).collect()
}

fn silence(notifiers: &[Notifier], origin: &Origin, wants_stop: &dyn Fn() -> bool) -> Vec<String> {
    let start = now();
    let planned = notify::plan_silence(notifiers, origin, start);
    let mut failures = messages(notify::silence(notifiers, &planned, origin, start, wants_stop));
    let end: Time = now();
    let (_, more) = notify::end_silence(notifiers, planned, end, end);
    for failure in messages(more) {
        if !failures.contains(&failure) {
            failures.push(failure);
        }
    }
    failures
}
