//! Notifications about runs, and their wording.

use crate::report::shown;
use crate::report::{count, local_time, size};
use crate::run_id::RunId;
use crate::run_record::RunRecord;
use std::fmt::Write;
use store::check_record::{CheckKind, CheckRecord, CheckResult, ExaminedPart};
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
    /// A check or a drill ended.
    Examined(&'a CheckRecord),
}

impl What<'_> {
    /// Returns true if nobody has to act; `None` for a start.
    pub fn is_good(&self) -> Option<bool> {
        match self {
            What::Started => None,
            What::Ended(record) => Some(record.is_good()),
            What::Examined(record) => Some(record.result == CheckResult::Good),
        }
    }
}

/// Returns the number of the result of a check or drill, as [`RunResult::number`] counts: where more
/// is worse.
///
/// [`RunResult::number`]: crate::run_record::RunResult::number
pub fn number(result: CheckResult) -> u8 {
    match result {
        CheckResult::Good => 0,
        CheckResult::Incomplete => 1,
        CheckResult::Faulty | CheckResult::Failed => 2,
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
    what: OwnedEvent,
    previous: Option<bool>,
}

/// An owned copy of an event.
#[derive(Debug)]
enum OwnedEvent {
    Started,
    Ended(Box<RunRecord>),
    Examined(Box<CheckRecord>),
}

impl OwnedNotification {
    /// Copies a notification.
    pub fn of(notification: &Notification) -> OwnedNotification {
        let Origin { instance, host, run, is_test } = notification.origin;
        let what = match notification.what {
            What::Started => OwnedEvent::Started,
            What::Ended(record) => OwnedEvent::Ended(Box::new(record.clone())),
            What::Examined(record) => OwnedEvent::Examined(Box::new(record.clone())),
        };
        OwnedNotification {
            instance: instance.into(),
            host: host.into(),
            run,
            is_test,
            at: notification.at,
            what,
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
            what: match &self.what {
                OwnedEvent::Started => What::Started,
                OwnedEvent::Ended(record) => What::Ended(record),
                OwnedEvent::Examined(record) => What::Examined(record),
            },
            previous: self.previous,
        }
    }
}

impl Notification<'_> {
    /// Returns the notification in one line.
    pub fn title(&self) -> String {
        let Origin { instance, host, is_test, .. } = self.origin;
        let test = if is_test { "test: " } else { "" };
        let (what, how) = match self.what {
            What::Started => ("backup of", "started"),
            What::Ended(record) => ("backup of", record.result.word()),
            What::Examined(record) => {
                let what = match record.kind {
                    CheckKind::Check => "check of store",
                    CheckKind::Drill => "drill of",
                };
                let how = match record.result {
                    CheckResult::Good => "passed",
                    CheckResult::Incomplete => "incomplete",
                    CheckResult::Faulty => "found faults",
                    CheckResult::Failed => "failed",
                };
                (what, how)
            }
        };
        shown(&format!("{test}{what} {instance} on {host} {how}")).into_owned()
    }

    /// Returns all details in lines, the most important first, cut to `limit` bytes.
    pub fn text(&self, limit: usize) -> String {
        let mut text = self.title() + "\n";
        match self.what {
            What::Started => text += &format!("at {}\n", local_time(self.at)),
            What::Ended(record) => details(&mut text, record),
            What::Examined(record) => details_of_examination(&mut text, record),
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

fn details_of_examination(text: &mut String, record: &CheckRecord) {
    for line in record.message.iter().flat_map(|message| message.lines()) {
        let _ = writeln!(text, "{}", shown(line));
    }
    let began = local_time(Time { seconds: record.started, nanoseconds: 0 });
    let took = duration(record.seconds);
    let _ = writeln!(text, "extent {}; began {began}, took {took}", record.level.name());
    if let [id] = &record.snapshots[..] {
        let _ = write!(text, "snapshot {}", id.short());
    } else {
        let _ = write!(text, "{}", count(record.snapshots.len() as u64, "snapshot"));
    }
    if let Some(age) = record.rpo_seconds {
        let _ = write!(text, ", {} old", duration(age as f64));
    }
    let bytes = size(record.bytes);
    let _ = match record.rto_seconds {
        Some(rto) => writeln!(text, "; restored {bytes} in {}", duration(rto)),
        None => writeln!(text, "; read {bytes}"),
    };
    for ExaminedPart { name, result, text: found } in &record.parts {
        let _ = writeln!(text, "- {} {}: {}", shown(name), result.name(), shown(found));
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

    /// Returns the record of a drill with this result.
    pub fn drill(result: CheckResult) -> CheckRecord {
        use store::check_record::{CheckLevel, VERSION};
        CheckRecord {
            version: VERSION,
            kind: CheckKind::Drill,
            level: CheckLevel::Sample,
            result,
            message: (result != CheckResult::Good).then(|| "repositories: 1 faulty".into()),
            started: 1_700_000_000,
            seconds: 74.0,
            program: "0.1.0".into(),
            host: "git01".into(),
            run_id: RunId::from_bytes([0xff; 16]).to_string(),
            instance: Some("gitlab".into()),
            snapshots: vec![store::id::SnapshotId::from_bytes([0x3f; 32])],
            damaged_segments: Vec::new(),
            damaged_records: Vec::new(),
            outweighs: Vec::new(),
            faulty: Vec::new(),
            faults: u64::from(result == CheckResult::Faulty),
            unknown: 0,
            bytes: 2 << 20,
            rpo_seconds: Some(21_600),
            rto_seconds: Some(31.4),
            parts: vec![ExaminedPart {
                name: "repositories".into(),
                result,
                text: "20 of 412 projects".into(),
            }],
        }
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
    fn a_drill_is_reported_with_its_figures() {
        let record = drill(CheckResult::Faulty);
        let text = notification(What::Examined(&record)).text(10_000);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["drill of gitlab on git01 found faults", "repositories: 1 faulty"]);
        assert!(lines[2].starts_with("extent sample; began "), "{text}");
        assert_eq!(lines[3], "snapshot 3f3f3f3f, 6 h 0 min old; restored 2.0 MiB in 31.4 s");
        assert_eq!(lines[4], "- repositories faulty: 20 of 412 projects");
        let check = CheckRecord { kind: CheckKind::Check, rto_seconds: None, ..record };
        let text = notification(What::Examined(&check)).text(10_000);
        assert!(text.starts_with("check of store gitlab on "), "{text}");
        assert!(text.contains("old; read 2.0 MiB\n"), "{text}");
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
