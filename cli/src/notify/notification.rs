//! Notifications about runs, and their wording.

use crate::report::shown;
use crate::report::{count, local_time, size};
use crate::run_id::RunId;
use crate::run_record::RunRecord;
use std::fmt::Write;
use store::entry::Time;

/// Notification to send.
#[derive(Debug, Clone, Copy)]
pub struct Notification<'a> {
    /// Run that the notification is about.
    pub origin: Origin<'a>,
    /// Time of the event.
    pub at: Time,
    /// Event of the run.
    pub what: What<'a>,
    /// True if the previous run was good; `None` if there was none or its result is unknown.
    pub previous: Option<bool>,
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
    Ended(&'a RunRecord),
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
    record: Option<RunRecord>,
    previous: Option<bool>,
}

impl OwnedNotification {
    /// Copies a notification.
    pub fn of(notification: &Notification) -> OwnedNotification {
        let Origin { instance, host, run, is_test } = notification.origin;
        let record = match notification.what {
            What::Started => None,
            What::Ended(record) => Some(record.clone()),
        };
        OwnedNotification {
            instance: instance.into(),
            host: host.into(),
            run,
            is_test,
            at: notification.at,
            record,
            previous: notification.previous,
        }
    }

    /// Returns the notification.
    pub fn notification(&self) -> Notification<'_> {
        let (run, is_test) = (self.run, self.is_test);
        let origin = Origin { instance: &self.instance, host: &self.host, run, is_test };
        Notification {
            origin,
            at: self.at,
            what: self.record.as_ref().map_or(What::Started, What::Ended),
            previous: self.previous,
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
            What::Ended(record) => record.result.word(),
        };
        shown(&format!("{test}backup of {instance} on {host} {how}")).into_owned()
    }

    /// Returns all details in lines, the most important first, cut to `limit` bytes.
    pub fn text(&self, limit: usize) -> String {
        let mut text = self.title() + "\n";
        match self.what {
            What::Started => text += &format!("at {}\n", local_time(self.at)),
            What::Ended(record) => details(&mut text, record),
        }
        cut(text, limit)
    }
}

fn details(text: &mut String, record: &RunRecord) {
    if let Some(message) = &record.message {
        for line in message.lines() {
            let _ = writeln!(text, "{}", shown(line));
        }
    }
    let took = duration(record.total_duration);
    let _ = writeln!(
        text,
        "exit code {}; began {}, took {took}",
        record.exit_code,
        local_time(record.started)
    );
    if let Some(seconds) = record.seconds_down() {
        let _ = writeln!(text, "services were down for {}", duration(seconds));
    }
    let (read, stored) =
        (size(record.statistics.bytes_read), size(record.statistics.added_stored_bytes));
    let _ = match record.short_id() {
        Some(id) => writeln!(text, "snapshot {id}: read {read}, stored {stored}"),
        None => writeln!(text, "no snapshot; read {read}, stored {stored}"),
    };
    if record.checks_failed() > 0 {
        let _ = writeln!(text, "{} failed", count(record.checks_failed(), "check"));
    }
    if !record.warnings.is_empty() {
        let _ = writeln!(text, "{}:", count(record.warnings.len() as u64, "warning"));
    }
    for warning in &record.warnings {
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
    use crate::run_record::{Frame, InstanceRecord, RunResult};
    use std::time::Duration;

    fn frame() -> Frame {
        let time = |seconds| Time { seconds, nanoseconds: 0 };
        Frame {
            run: RunId::from_bytes([0xff; 16]),
            store: Some("/srv/backup".into()),
            started: time(1_700_000_000),
            ended: time(1_700_000_760),
            elapsed: Duration::from_secs(760),
            warnings: Vec::new(),
        }
    }

    fn record(result: RunResult, exit_code: u8, checks_failed: u64) -> RunRecord {
        let mut record = RunRecord::new(frame(), result, exit_code);
        record.statistics.bytes_read = 1 << 20;
        record.statistics.added_stored_bytes = 1024;
        record.instance = Some(InstanceRecord {
            is_complete: result == RunResult::Done,
            failures: Vec::new(),
            databases: 1,
            projects: 3,
            seconds_down: Some(34.24),
            checks_failed,
        });
        record
    }

    /// Returns the record of a failed run.
    pub fn failed() -> RunRecord {
        let message = Some("pg_dump ended with 1".into());
        let warnings = vec!["skipped hooks".into()];
        RunRecord { message, warnings, ..record(RunResult::Failed, 1, 2) }
    }

    /// Returns the record of a good run.
    pub fn done() -> RunRecord {
        let snapshot_id = Some("3f083392".repeat(8));
        RunRecord { snapshot_id, ..record(RunResult::Done, 0, 0) }
    }

    /// Returns a notification about a run.
    pub fn notification(what: What<'_>) -> Notification<'_> {
        let run = RunId::from_bytes([0xff; 16]);
        let origin = Origin { instance: "gitlab", host: "git01", run, is_test: false };
        Notification {
            origin,
            at: Time { seconds: 1_700_000_760, nanoseconds: 5 },
            what,
            previous: None,
        }
    }

    #[test]
    fn the_message_is_complete_and_begins_with_the_reason() {
        let record = failed();
        let text = notification(What::Ended(&record)).text(10_000);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "backup of gitlab on git01 failed");
        assert_eq!(lines[1], "pg_dump ended with 1");
        for word in
            ["exit code 1", "12 min 40 s", "34.2 s", "1.0 MiB", "2 checks", "- skipped hooks"]
        {
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
        let mut record = failed();
        record.message = Some("one\ntwo \x1b[2J".into());
        record.warnings = vec!["a\nsnapshot \u{202e}".into()];
        let text = notification(What::Ended(&record)).text(10_000);
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
