use super::Global;
use crate::exit::{Failure, other, with_hint};
use crate::notify::{self, Ending, News, Notifier, Origin, Outcome, RunId, What};
use crate::report::now;
use crate::ui::Ui;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use store::entry::Time;

/// Try out who is told how backups went
#[derive(Debug, Args)]
pub struct Notify {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Test(Test),
}

/// Send a test message through every notifier of the configuration
///
/// Without --as it tells of a failure, because that must arrive. Telling of a success ends alarms that a real
/// failure raised.
///
/// Example: forgekeep notify test --config /etc/forgekeep.toml --instance gitlab
#[derive(Debug, Args)]
struct Test {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Whose news it is
    #[arg(long, value_name = "NAME", default_value = "test")]
    instance: String,
    /// What to tell
    #[arg(long = "as", value_enum, default_value_t = Kind::Failed)]
    kind: Kind,
}

/// What a test tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A run began
    Started,
    /// All was saved
    Done,
    /// Something is missing
    Partial,
    /// Nothing was saved
    Failed,
    /// Services are stopped and started: silences the monitoring and lets that end
    Silence,
}

/// The part of the configuration that is about notifiers.
#[derive(Deserialize)]
struct Notifiers {
    #[serde(default)]
    notify: Vec<Notifier>,
}

impl Notify {
    pub fn run(&self, _global: &Global, ui: &Ui) -> Result<(), Failure> {
        let Action::Test(test) = &self.action;
        test.run(ui)
    }
}

impl Test {
    fn run(&self, ui: &Ui) -> Result<(), Failure> {
        let notifiers = read(&self.config)?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let run = RunId::random().map_err(|error| other(format!("no random number: {error}")))?;
        let origin = Origin { instance: &self.instance, host: &host, run };
        let failures = match self.kind {
            Kind::Started => {
                notify::tell(&notifiers, &News { origin, at: now(), what: What::Started })
            }
            Kind::Done => end(&notifiers, origin, Ending::Done),
            Kind::Partial => end(&notifiers, origin, Ending::Partial),
            Kind::Failed => end(&notifiers, origin, Ending::Failed),
            Kind::Silence => silence(&notifiers, &origin),
        };
        for failure in &failures {
            ui.warn(failure);
        }
        ui.json("notified", json!({"notifiers": notifiers.len(), "failures": failures}))?;
        match failures.len() {
            0 => ui.remark(format!(
                "told {}",
                crate::report::count(notifiers.len() as u64, "notifier")
            )),
            _ => Err(Failure::Partial),
        }
    }
}

fn read(config: &Path) -> Result<Vec<Notifier>, Failure> {
    let shown = config.display();
    let text = std::fs::read_to_string(config).map_err(|error| {
        with_hint(format!("cannot read {shown}: {error}"), "check the path and the permissions")
    })?;
    let notifiers: Notifiers = toml::from_str(&text).map_err(|error| {
        with_hint(
            format!("{shown} is not as it should be: {}", error.message()),
            "docs/notifications.md has all keys",
        )
    })?;
    if notifiers.notify.is_empty() {
        return Err(with_hint(
            format!("{shown} has no notifier"),
            "add a [[notify]] table, see docs/notifications.md",
        ));
    }
    Ok(notifiers.notify)
}

/// Tells of the end of a run that never was, in a way that everybody wants to hear of.
fn end(notifiers: &[Notifier], origin: Origin, ending: Ending) -> Vec<String> {
    let at = now();
    let outcome = Outcome {
        ending,
        exit_code: match ending {
            Ending::Done => 0,
            Ending::Partial => 3,
            Ending::Failed => 1,
        },
        started: at,
        ended: at,
        message: Some("this is a test, there was no backup".into()),
        warnings: Vec::new(),
        snapshot: None,
        bytes_read: 0,
        bytes_stored: 0,
        seconds_down: None,
        checks_failed: 0,
        previous: Some(ending != Ending::Done),
    };
    notify::tell(notifiers, &News { origin, at, what: What::Ended(&outcome) })
}

fn silence(notifiers: &[Notifier], origin: &Origin) -> Vec<String> {
    let (silenced, mut failures) = notify::silence(notifiers, origin, now());
    let end: Time = now();
    let (_, more) = notify::end_silence(notifiers, silenced, end, end);
    failures.extend(more);
    failures
}
