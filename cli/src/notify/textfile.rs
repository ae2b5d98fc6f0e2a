//! Metrics in a file for the textfile collector of Prometheus' node exporter.

use super::notification::number;
use super::{Notification, Notify, NotifyError, What, escaped};
use crate::run_record::RunRecord;
use serde::Deserialize;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::check_record::{CheckKind, CheckRecord, CheckResult};
use store::entry::Displayed;

/// The only metric that a failed run keeps from the previous file.
const LAST_SUCCESS: &str = "forgekeep_last_success_timestamp_seconds";
/// File for tests. Files of instances begin differently.
const TEST_FILE: &str = "forgekeep.test.prom";
/// Upper bound of the length of a metrics file in bytes.
const MAX_FILE: u64 = 64 << 10;

/// `kind = "textfile"`: writes `forgekeep_INSTANCE.prom` when a run ends, and other files when a
/// check or a drill ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Textfile {
    /// Directory in which the node exporter looks for files.
    directory: PathBuf,
}

impl Notify for Textfile {
    fn name(&self) -> String {
        format!("textfile {}", self.directory.displayed())
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.directory)
    }

    fn limit(&self) -> Duration {
        super::overall(super::ten_seconds(), 1, None)
    }

    fn notify(&self, notification: &Notification) -> Result<(), NotifyError> {
        let name = notification.origin.instance;
        let (file, ended) = match notification.what {
            What::Started => return Ok(()),
            What::Ended(record) => (file_name(name), record.ended.seconds),
            What::Examined(record) => (file_of_examination(record.kind, name), ended(record)),
        };
        let (path, metrics) = if notification.origin.is_test {
            (self.directory.join(TEST_FILE), test_metric(name, ended))
        } else {
            let path = self.directory.join(file);
            // A clock that was ahead left a time that no alert on its age would notice.
            let now = notification.at.seconds.max(ended) as f64;
            let known = |metric: &str| last_success(&path, metric).filter(|known| *known <= now);
            let metrics = match notification.what {
                What::Ended(record) => metrics(name, record, known(LAST_SUCCESS)),
                What::Examined(record) => {
                    let kind = record.kind.name();
                    let metric = format!("forgekeep_last_{kind}_success_timestamp_seconds");
                    metrics_of_examination(name, record, known(&metric))
                }
                What::Started => return Ok(()),
            };
            (path, metrics)
        };
        let failed = NotifyError::of_attempt("cannot write metrics");
        if !self.directory.is_dir() {
            return Err(failed(NotifyError::NoDirectory(self.directory.clone())));
        }
        // The collector runs as another user and may read at any time.
        forge::file::replace(&path, 0o644, metrics.as_bytes())
            .map_err(|error| failed(NotifyError::MetricsUnwritten(error)))
    }
}

/// Returns the metric of a test. It holds the time of the test, and nothing that an alarm or a
/// panel uses.
fn test_metric(instance: &str, ended: i64) -> String {
    let name = "forgekeep_notify_test_timestamp_seconds";
    let label = label(instance);
    format!(
        "# HELP {name} Time of the last `forgekeep notify test`.\n# TYPE {name} gauge\n\
         {name}{{backup=\"{label}\"}} {ended}\n"
    )
}

/// Escapes a name as the value of a label.
fn label(name: &str) -> String {
    name.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// Returns a file name that is distinct for each instance.
fn file_name(instance: &str) -> String {
    format!("forgekeep_{}.prom", escaped(instance))
}

/// Returns a file name for the checks of a store or the drills of an instance. Those of backups
/// begin differently.
fn file_of_examination(kind: CheckKind, name: &str) -> String {
    format!("forgekeep.{}_{}.prom", kind.name(), escaped(name))
}

/// Returns the end of a check or drill in seconds since 1970.
fn ended(record: &CheckRecord) -> i64 {
    record.started.saturating_add(record.seconds as i64)
}

/// Returns the metrics in Prometheus' text format. The label is not called `instance`, because
/// Prometheus uses that name for the machine.
fn metrics(instance: &str, record: &RunRecord, last_success: Option<f64>) -> String {
    let ended = record.ended.seconds as f64;
    let last_success = if record.is_good() { Some(ended) } else { last_success };
    let table = [
        ("last_run_timestamp_seconds", "End of the last backup.", Some(ended)),
        (&LAST_SUCCESS["forgekeep_".len()..], "End of the last complete backup.", last_success),
        (
            "last_run_result",
            "Result of the last backup: 0 done, 1 incomplete, 2 failed.",
            Some(record.result.number().into()),
        ),
        ("last_run_duration_seconds", "Duration of the last backup.", Some(record.total_duration)),
        (
            "last_run_read_bytes",
            "Bytes that the last backup read.",
            Some(record.statistics.bytes_read as f64),
        ),
        (
            "last_run_stored_bytes",
            "Bytes that the last backup added to the store.",
            Some(record.statistics.added_stored_bytes as f64),
        ),
        (
            "last_run_down_seconds",
            "Time that the last backup stopped services.",
            record.seconds_down(),
        ),
        ("last_run_warnings", "Warnings of the last backup.", Some(record.warnings.len() as f64)),
        (
            "last_run_failed_checks",
            "Failed checks of the last backup.",
            Some(record.checks_failed() as f64),
        ),
    ];
    let table = table.map(|(name, help, value)| (name.to_owned(), help.to_owned(), value));
    formatted(&table, "backup", instance)
}

/// Returns the metrics of a check, with the name of its store, or of a drill, with that of its
/// instance.
fn metrics_of_examination(name: &str, record: &CheckRecord, last_success: Option<f64>) -> String {
    let (kind, ended) = (record.kind.name(), ended(record) as f64);
    let is_good = record.result == CheckResult::Good;
    let all = [
        ("timestamp_seconds", "End of the last KIND.", Some(ended)),
        (
            "success_timestamp_seconds",
            "End of the last KIND that found no fault.",
            if is_good { Some(ended) } else { last_success },
        ),
        (
            "result",
            "Result of the last KIND: 0 good, 1 incomplete, 2 faulty or failed.",
            Some(number(record.result).into()),
        ),
        ("duration_seconds", "Duration of the last KIND.", Some(record.seconds)),
        ("faults", "Faults that the last KIND found.", Some(record.faults as f64)),
        ("bytes", "Bytes that the last KIND read or restored.", Some(record.bytes as f64)),
        (
            "rpo_seconds",
            "Age of the newest snapshot in the last KIND (RPO).",
            record.rpo_seconds.map(|age| age as f64),
        ),
        ("rto_seconds", "Duration of the restore in the last KIND (RTO).", record.rto_seconds),
    ];
    let table = all.map(|(name, help, value)| {
        (format!("last_{kind}_{name}"), help.replace("KIND", kind), value)
    });
    let label = if record.kind == CheckKind::Check { "store" } else { "backup" };
    formatted(&table, label, name)
}

/// Formats metrics with their help, and with one label.
fn formatted(table: &[(String, String, Option<f64>)], key: &str, value: &str) -> String {
    let label = label(value);
    let mut text = String::new();
    for (name, help, value) in table {
        if let Some(value) = value {
            let name = format!("forgekeep_{name}");
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
            let _ = writeln!(text, "{name}{{{key}=\"{label}\"}} {value}");
        }
    }
    text
}

/// Returns the last success from the file of the previous run; `None` if it cannot be read.
fn last_success(path: &Path, metric: &str) -> Option<f64> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    let line = text.lines().find(|line| line.starts_with(metric))?;
    line.rsplit_once(' ')?.1.parse().ok().filter(|seconds: &f64| seconds.is_finite())
}

#[cfg(test)]
mod tests {
    use super::super::notification::tests::{done, drill, failed, notification};
    use super::*;

    fn value(text: &str, name: &str) -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(&format!("forgekeep_{name}{{")))?;
        line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok())
    }

    #[test]
    fn failures_keep_the_time_of_the_last_success() {
        let dir = tempfile::tempdir().expect("a directory");
        let notifier = Textfile { directory: dir.path().to_owned() };
        let (mut good, mut bad) = (done(), failed());
        good.ended.seconds = 1000;
        bad.ended.seconds = 2000;
        let metrics_after = |record| {
            notifier.notify(&notification(What::Ended(record))).expect("writes");
            std::fs::read_to_string(dir.path().join("forgekeep_gitlab.prom")).expect("is there")
        };
        assert_eq!(value(&metrics_after(&bad), "last_success_timestamp_seconds"), None);
        metrics_after(&good);
        metrics_after(&bad);
        let text = metrics_after(&bad);
        assert_eq!(value(&text, "last_success_timestamp_seconds"), Some(1000.0));
        assert_eq!(value(&text, "last_run_timestamp_seconds"), Some(2000.0));
        assert_eq!(value(&text, "last_run_result"), Some(2.0));
        assert_eq!(value(&text, "last_run_down_seconds"), Some(34.24));
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1, "no file is left");
    }

    #[test]
    fn a_drill_has_metrics_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let notifier = Textfile { directory: dir.path().to_owned() };
        let record = done();
        notifier.notify(&notification(What::Ended(&record))).expect("writes");
        for (result, number) in [(CheckResult::Good, 0.0), (CheckResult::Faulty, 2.0)] {
            let record = drill(result);
            notifier.notify(&notification(What::Examined(&record))).expect("writes");
            let file = dir.path().join("forgekeep.drill_gitlab.prom");
            let text = std::fs::read_to_string(file).expect("reads");
            assert_eq!(value(&text, "last_drill_result"), Some(number), "{text}");
            let success = value(&text, "last_drill_success_timestamp_seconds");
            assert_eq!(success, Some(1_700_000_074.0), "{text}");
            assert_eq!(value(&text, "last_drill_rpo_seconds"), Some(21_600.0));
            assert_eq!(value(&text, "last_drill_rto_seconds"), Some(31.4));
        }
        let check = CheckRecord {
            kind: CheckKind::Check,
            rto_seconds: None,
            ..drill(CheckResult::Incomplete)
        };
        notifier.notify(&notification(What::Examined(&check))).expect("writes");
        let file = dir.path().join("forgekeep.check_gitlab.prom");
        let text = std::fs::read_to_string(file).expect("reads");
        assert!(text.contains("forgekeep_last_check_result{store=\"gitlab\"} 1\n"), "{text}");
        assert!(!text.contains("rto"), "{text}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 3);
    }

    #[test]
    fn a_success_in_the_future_is_not_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let notifier = Textfile { directory: dir.path().to_owned() };
        let (mut good, bad) = (done(), failed());
        good.ended.seconds = 1 << 40;
        for record in [&good, &bad] {
            notifier.notify(&notification(What::Ended(record))).expect("writes");
        }
        let text =
            std::fs::read_to_string(dir.path().join("forgekeep_gitlab.prom")).expect("reads");
        assert_eq!(value(&text, "last_success_timestamp_seconds"), None, "{text}");
    }

    #[test]
    fn a_test_does_not_change_the_metrics_of_backups() {
        let dir = tempfile::tempdir().expect("a directory");
        let notifier = Textfile { directory: dir.path().to_owned() };
        let mut tested = notification(What::Started);
        tested.origin.is_test = true;
        let (done, failed) = (done(), failed());
        for record in [&done, &failed] {
            tested.what = What::Ended(record);
            notifier.notify(&tested).expect("writes");
        }
        let names = std::fs::read_dir(dir.path()).expect("lists");
        let names: Vec<_> = names.map(|entry| entry.expect("reads").file_name()).collect();
        assert_eq!(names, [TEST_FILE]);
        let text = std::fs::read_to_string(dir.path().join(TEST_FILE)).expect("reads");
        assert_eq!(text.matches("backup=\"gitlab\"").count(), 1, "{text}");
        assert!(!text.contains("last_"), "{text}");
    }

    #[test]
    fn a_failed_write_names_the_directory() {
        let notifier = Textfile { directory: "/nowhere/at/all".into() };
        let error = notifier.notify(&notification(What::Ended(&done()))).expect_err("no directory");
        assert_eq!(
            error.to_string(),
            "cannot write metrics: /nowhere/at/all is not a directory; create it, or correct \
             `directory`"
        );
    }

    #[test]
    fn metrics_files_are_unique_and_labels_are_escaped() {
        let names = ["a", "A", "a/b", "a%2Fb", "a b", "..", "ä"].map(file_name);
        for (at, name) in names.iter().enumerate() {
            assert!(!name.contains('/') && !names[..at].contains(name), "{name}");
        }
        let text = metrics("a\"b\\c\nd", &done(), None);
        assert!(text.contains(r#"{backup="a\"b\\c\nd"}"#), "{text}");
    }
}
