use super::instance::ConfigFile;
use crate::exit::{Failure, with_hint};
use crate::notify::{self, Ending, Notification, Notifier, Origin, Outcome, What};
use crate::report::now;
use crate::run_id::RunId;
use crate::ui::Ui;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
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
    #[command(flatten)]
    config: ConfigFile,
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
    /// Services stop and start again: begins a silence of the monitoring and ends it
    Silence,
}

impl Notify {
    pub fn run(&self, ui: &Ui) -> Result<(), Failure> {
        let Action::Test(test) = &self.action;
        test.run(ui)
    }
}

impl Test {
    fn run(&self, ui: &Ui) -> Result<(), Failure> {
        let config = self.config.read()?;
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
        let wants_stop = || ui.wants_stop();
        let outcome;
        let what = match self.kind {
            TestedEvent::Started => Some(What::Started),
            TestedEvent::Silence => None,
            TestedEvent::Done | TestedEvent::Partial | TestedEvent::Failed => {
                outcome = self.kind.outcome();
                Some(What::Ended(&outcome))
            }
        };
        let notification = what.map(|what| Notification { origin, at: now(), what });
        let failures = match &notification {
            Some(notification) => notify::send(notifiers, notification, &wants_stop),
            None => silence(notifiers, &origin, &wants_stop),
        };
        let is_silent = |notifier: &&Notifier| match &notification {
            Some(notification) => !notifier.sends(notification),
            None => !notifier.silences(&origin, now()),
        };
        let silent: Vec<String> = notifiers.iter().filter(is_silent).map(Notifier::name).collect();
        let count = notifiers.len() - silent.len();
        for failure in &failures {
            ui.explain(failure);
        }
        for name in &silent {
            ui.explain(&format!("{name} does not send this kind of message; it was not tested"));
        }
        let value = json!({"notifiers": count, "not_tested": silent, "failures": failures});
        ui.json("notified", value)?;
        if failures.is_empty() && count > 0 {
            return ui.remark(format!("tested {}", crate::report::count(count as u64, "notifier")));
        }
        Err(Failure::Partial)
    }
}

impl TestedEvent {
    /// Returns the outcome of an invented run that every `when` setting reports.
    fn outcome(self) -> Outcome {
        let (ending, exit_code) = match self {
            TestedEvent::Done => (Ending::Done, 0),
            TestedEvent::Partial => (Ending::Partial, 3),
            _ => (Ending::Failed, 1),
        };
        let at = now();
        let mut outcome = Outcome::new(ending, exit_code, at, at);
        outcome.message = Some("this is a test; no backup ran".into());
        outcome.previous = Some(ending != Ending::Done);
        outcome
    }
}

fn silence(notifiers: &[Notifier], origin: &Origin, wants_stop: &dyn Fn() -> bool) -> Vec<String> {
    let start = now();
    let planned = notify::plan_silence(notifiers, origin, start);
    let mut failures = notify::silence(notifiers, &planned, origin, start, wants_stop);
    let end: Time = now();
    let (_, more) = notify::end_silence(notifiers, planned, end, end);
    for failure in more {
        if !failures.contains(&failure) {
            failures.push(failure);
        }
    }
    failures
}
