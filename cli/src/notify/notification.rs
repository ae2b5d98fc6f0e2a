//! Notifications about runs, and their wording.

use crate::report::{count, local_time, size};
use crate::run_id::RunId;
use crate::ui::shown;
use std::fmt::Write;
use store::entry::Time;

/// Notification to send.
#[derive(Debug, Clone, Copy)]
pub struct Notification<'a> {
    /// Run that the notification is about.
    pub origin: Origin<'a>,
    /// Time of the event.
    pub at: Time,
    pub what: What<'a>,
}

/// Run that a notification is about.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Name of the instance, as in the configuration.
    pub instance: &'a str,
    /// Name of the machine on which it runs.
    pub host: &'a str,
    /// Id that all notifications of one run share.
    pub run: RunId,
    /// True if there is no run and somebody tests the notifiers.
    pub is_test: bool,
}

/// An event of a run.
#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    /// The run began.
    Started,
    /// The run ended.
    Ended(&'a Outcome),
}

/// Overall result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All requested work was done.
    Done,
    /// There is a snapshot, but it lacks something or a check failed.
    Partial,
    /// There is no reliable snapshot.
    Failed,
}

impl Ending {
    /// Returns 0 if done, 1 if partial, 2 if failed: for monitoring, where more is worse.
    pub fn number(self) -> u8 {
        self as u8
    }

    fn word(self) -> &'static str {
        match self {
            Ending::Done => "done",
            Ending::Partial => "done in part",
            Ending::Failed => "failed",
        }
    }
}

/// Outcome of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Overall result.
    pub ending: Ending,
    /// Exit code of the program.
    pub exit_code: u8,
    /// Start of the run.
    pub started: Time,
    /// End of the run.
    pub ended: Time,
    /// Reason of the failure, or the missing parts. Contains no secret.
    pub message: Option<String>,
    /// Warnings of the run.
    pub warnings: Vec<String>,
    /// Short id of the saved snapshot.
    pub snapshot: Option<String>,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes added to the store, compressed.
    pub bytes_stored: u64,
    /// Time that services were down, in seconds, if any were stopped.
    pub seconds_down: Option<f64>,
    /// Number of failed checks of the source or of the saved data.
    pub checks_failed: u64,
    /// True if the previous run was [done](Ending::Done); `None` if there was none or its result is
    /// unknown.
    pub previous: Option<bool>,
}

impl Outcome {
    /// Returns the outcome of a run without further details.
    pub fn new(ending: Ending, exit_code: u8, started: Time, ended: Time) -> Outcome {
        Outcome {
            ending,
            exit_code,
            started,
            ended,
            message: None,
            warnings: Vec::new(),
            snapshot: None,
            bytes_read: 0,
            bytes_stored: 0,
            seconds_down: None,
            checks_failed: 0,
            previous: None,
        }
    }

    /// Returns true if nobody has to act.
    pub fn is_good(&self) -> bool {
        self.ending == Ending::Done
    }

    /// Returns the duration in seconds; 0 if the clock was set back meanwhile.
    pub fn seconds(&self) -> f64 {
        let of = |time: Time| time.seconds as f64 + f64::from(time.nanoseconds) / 1e9;
        (of(self.ended) - of(self.started)).max(0.0)
    }
}

/// An owned copy of a notification, for threads that may outlive the wait of their caller.
#[derive(Debug)]
pub struct OwnedNotification {
    instance: String,
    host: String,
    run: RunId,
    is_test: bool,
    at: Time,
    /// `None` for the start of a run.
    outcome: Option<Outcome>,
}

impl OwnedNotification {
    /// Copies a notification.
    pub fn of(notification: &Notification) -> OwnedNotification {
        let Origin { instance, host, run, is_test } = notification.origin;
        let outcome = match notification.what {
            What::Started => None,
            What::Ended(outcome) => Some(outcome.clone()),
        };
        OwnedNotification {
            instance: instance.into(),
            host: host.into(),
            run,
            is_test,
            at: notification.at,
            outcome,
        }
    }

    /// Returns the notification.
    pub fn notification(&self) -> Notification<'_> {
        let (run, is_test) = (self.run, self.is_test);
        let origin = Origin { instance: &self.instance, host: &self.host, run, is_test };
        Notification {
            origin,
            at: self.at,
            what: self.outcome.as_ref().map_or(What::Started, What::Ended),
        }
    }
}

impl Notification<'_> {
    /// Returns the notification in one line.
    pub fn title(&self) -> String {
        let Origin { instance, host, is_test, .. } = self.origin;
        let test = if is_test { "test: " } else { "" };
        let how = match self.what {
            What::Started => "started",
            What::Ended(outcome) => outcome.ending.word(),
        };
        shown(&format!("{test}backup of {instance} on {host} {how}")).into_owned()
    }

    /// Returns all details in lines, the most important first, cut to `limit` bytes.
    pub fn text(&self, limit: usize) -> String {
        let mut text = self.title() + "\n";
        match self.what {
            What::Started => text += &format!("at {}\n", local_time(self.at)),
            What::Ended(outcome) => details(&mut text, outcome),
        }
        cut(text, limit)
    }
}

fn details(text: &mut String, outcome: &Outcome) {
    if let Some(message) = &outcome.message {
        for line in message.lines() {
            let _ = writeln!(text, "{}", shown(line));
        }
    }
    let took = duration(outcome.seconds());
    let _ = writeln!(
        text,
        "exit code {}; began {}, took {took}",
        outcome.exit_code,
        local_time(outcome.started)
    );
    if let Some(seconds) = outcome.seconds_down {
        let _ = writeln!(text, "services were down for {}", duration(seconds));
    }
    let (read, stored) = (size(outcome.bytes_read), size(outcome.bytes_stored));
    let _ = match &outcome.snapshot {
        Some(id) => writeln!(text, "snapshot {id}: read {read}, stored {stored}"),
        None => writeln!(text, "no snapshot; read {read}, stored {stored}"),
    };
    if outcome.checks_failed > 0 {
        let _ = writeln!(text, "{} failed", count(outcome.checks_failed, "check"));
    }
    if !outcome.warnings.is_empty() {
        let _ = writeln!(text, "{}:", count(outcome.warnings.len() as u64, "warning"));
    }
    for warning in &outcome.warnings {
        let _ = writeln!(text, "- {}", shown(warning));
    }
}

/// Cuts a text to at most `limit` bytes. A text that was cut ends with a mark.
pub fn cut(mut text: String, limit: usize) -> String {
    const MARK: &str = "…\n";
    if text.len() > limit {
        let mut at = limit.saturating_sub(MARK.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
        text += MARK;
    }
    text
}

/// Formats seconds in the units that people use.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Returns the outcome of a failed run.
    pub fn failed() -> Outcome {
        let time = |seconds| Time { seconds, nanoseconds: 0 };
        Outcome {
            ending: Ending::Failed,
            exit_code: 1,
            started: time(1_700_000_000),
            ended: time(1_700_000_760),
            message: Some("pg_dump ended with 1".into()),
            warnings: vec!["hooks was left out".into()],
            snapshot: None,
            bytes_read: 1 << 20,
            bytes_stored: 1024,
            seconds_down: Some(34.24),
            checks_failed: 2,
            previous: None,
        }
    }

    /// Returns the same outcome, but of a good run.
    pub fn done() -> Outcome {
        let snapshot = Some("3f083392".to_owned());
        let (message, warnings) = (None, Vec::new());
        let ending = Ending::Done;
        Outcome { ending, exit_code: 0, message, warnings, snapshot, checks_failed: 0, ..failed() }
    }

    /// Returns a notification about a run.
    pub fn notification(what: What<'_>) -> Notification<'_> {
        let run = RunId::from_bytes([0xff; 16]);
        let origin = Origin { instance: "gitlab", host: "git01", run, is_test: false };
        Notification { origin, at: Time { seconds: 1_700_000_760, nanoseconds: 5 }, what }
    }

    #[test]
    fn the_message_is_complete_and_begins_with_the_reason() {
        let outcome = failed();
        let text = notification(What::Ended(&outcome)).text(10_000);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "backup of gitlab on git01 failed");
        assert_eq!(lines[1], "pg_dump ended with 1");
        for word in ["exit code 1", "12 min 40 s", "34.2 s", "1.0 MiB", "2 checks", "- hooks"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        let started = notification(What::Started).text(10_000);
        assert!(started.starts_with("backup of gitlab on git01 started\n"), "{started}");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        for limit in 0..20 {
            let text = cut("äöü€äöü€".repeat(3), limit);
            assert!(text.len() <= limit.max("…\n".len()) && text.ends_with("…\n"), "{text}");
        }
        assert_eq!(cut("abc".into(), 3), "abc");
    }

    #[test]
    fn a_title_is_one_line() {
        let mut notification = notification(What::Started);
        notification.origin.instance = "a\r\nBcc: b";
        assert!(!notification.title().contains(['\r', '\n']));
    }

    #[test]
    fn control_characters_in_messages_are_escaped() {
        let mut outcome = failed();
        outcome.message = Some("one\ntwo \x1b[2J".into());
        outcome.warnings = vec!["a\nsnapshot \u{202e}".into()];
        let text = notification(What::Ended(&outcome)).text(10_000);
        assert!(text.contains("\none\ntwo \\u{1b}[2J\n"), "{text}");
        assert!(text.contains("\n- a\\nsnapshot \\u{202e}\n"), "{text}");
    }

    #[test]
    fn durations_have_two_units() {
        let shown = [0.04, 59.4, 60.0, 3599.0, 3600.0, 100_000.0].map(duration);
        let wanted = ["0.0 s", "59.4 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "27 h 46 min"];
        assert_eq!(shown, wanted);
    }
}
