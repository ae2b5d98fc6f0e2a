//! Metrics in a file for the textfile collector of Prometheus' node exporter.

use super::{Notification, Notify, NotifyError, What};
use crate::run_record::RunRecord;
use serde::Deserialize;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The only metric that a failed run keeps from the previous file.
const LAST_SUCCESS: &str = "forgekeep_last_success_timestamp_seconds";
/// File for tests. Files of instances begin differently.
const TEST_FILE: &str = "forgekeep.test.prom";
/// Upper bound of the length of a metrics file in bytes.
const MAX_FILE: u64 = 64 << 10;

/// `kind = "textfile"`: writes `forgekeep_INSTANCE.prom` when a run ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Textfile {
    /// Directory in which the node exporter looks for files.
    directory: PathBuf,
}

impl Notify for Textfile {
    fn name(&self) -> String {
        format!("textfile {}", self.directory.display())
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.directory)
    }

    fn limit(&self) -> Duration {
        super::overall(super::ten_seconds(), 1, None)
    }

    fn notify(&self, notification: &Notification) -> Result<(), NotifyError> {
        let What::Ended(record) = notification.what else { return Ok(()) };
        let instance = notification.origin.instance;
        let (path, metrics) = if notification.origin.is_test {
            (self.directory.join(TEST_FILE), test_metric(instance, record))
        } else {
            let path = self.directory.join(file_name(instance));
            // A clock that was ahead left a time that no alert on its age would notice.
            let now = notification.at.seconds.max(record.ended.seconds) as f64;
            let known = last_success(&path).filter(|seconds| *seconds <= now);
            let metrics = metrics(instance, record, known);
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
fn test_metric(instance: &str, record: &RunRecord) -> String {
    let name = "forgekeep_notify_test_timestamp_seconds";
    let (label, ended) = (label(instance), record.ended.seconds);
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
    let mut name = String::from("forgekeep_");
    for byte in instance.bytes() {
        let _ = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                name.write_char(byte.into())
            }
            _ => write!(name, "%{byte:02X}"),
        };
    }
    name + ".prom"
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
    let label = label(instance);
    let mut text = String::new();
    for (name, help, value) in table {
        if let Some(value) = value {
            let name = format!("forgekeep_{name}");
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
            let _ = writeln!(text, "{name}{{backup=\"{label}\"}} {value}");
        }
    }
    text
}

/// Returns the last success from the file of the previous run; `None` if it cannot be read.
fn last_success(path: &Path) -> Option<f64> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    let line = text.lines().find(|line| line.starts_with(LAST_SUCCESS))?;
    line.rsplit_once(' ')?.1.parse().ok().filter(|seconds: &f64| seconds.is_finite())
}

#[cfg(test)]
mod tests {
    use super::super::notification::tests::{done, failed, notification};
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
