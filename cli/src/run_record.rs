//! Record of one backup run. `--json`, notifications and the closing lines all describe a run by it.

use crate::exit::Failure;
use crate::losses::{self, EmptiedSource};
use crate::report::{shown, skipped_records, utc_time};
use crate::run_id::RunId;
use forge::check::Verdict;
use forge::manifest::Manifest;
use forge::session::Outcome;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::time::Duration;
use store::backup::Report;
use store::entry::Time;
use store::snapshot::Statistics;

/// Version of the record. It grows when a field changes its meaning or goes, not when one is added.
pub const VERSION: u32 = 1;

/// Record of a backup run.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RunRecord {
    /// Version of this record.
    pub version: u32,
    /// Random id of the run (UUID). The snapshot and all notifications of the run have it, too.
    pub run_id: String,
    /// Overall result.
    pub result: RunResult,
    /// Exit code of the program.
    pub exit_code: u8,
    /// Start of the run (RFC 3339, UTC).
    #[serde(serialize_with = "as_utc")]
    #[schemars(with = "String")]
    pub started: Time,
    /// End of the run (RFC 3339, UTC).
    #[serde(serialize_with = "as_utc")]
    #[schemars(with = "String")]
    pub ended: Time,
    /// Duration of the run in seconds, by a clock that nobody sets.
    pub total_duration: f64,
    /// Reason of the failure, or the missing parts. Contains no secret.
    pub message: Option<String>,
    /// Warnings of the run.
    pub warnings: Vec<String>,
    /// Path of the store; null if none was found.
    pub store: Option<String>,
    /// The new snapshot; null if there is none.
    pub snapshot_id: Option<String>,
    /// Snapshot from which unchanged files were taken.
    pub parent: Option<String>,
    /// True if nothing was stored because of `--dry-run`.
    pub dry_run: bool,
    #[serde(flatten)]
    pub statistics: Statistics,
    /// Sum of new, changed and unmodified files.
    pub total_files_processed: u64,
    /// Files of the parent that are gone; null if unknown. Those that this backup skipped do not
    /// count.
    pub files_removed: Option<u64>,
    /// Directories of the parent that are gone; null if unknown. Those that this backup skipped do
    /// not count.
    pub dirs_removed: Option<u64>,
    /// Number of files, by reason, that look like packs or dumps but were stored like any other file.
    pub files_stored_plainly: BTreeMap<&'static str, u64>,
    /// Damage found in older snapshots; null if none was found.
    pub damage: Option<DamageFound>,
    /// Sources that lost most of their files, or their mount. Later backups and retention rules ignore
    /// a snapshot with any of them.
    pub emptied: Vec<EmptiedSource>,
    /// Number of paths that are missing from the snapshot or lack metadata there.
    pub errors: u64,
    /// Number of snapshot records that are unreadable, dated in the future or of a newer version.
    pub snapshots_passed_over: u64,
    /// Figures of an instance; missing if paths were backed up.
    #[serde(flatten)]
    pub instance: Option<InstanceRecord>,
}

/// Overall result of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunResult {
    /// All requested work was done.
    Done,
    /// The run saved a snapshot that lacks something, or a check failed.
    Partial,
    /// The run did not save a reliable snapshot.
    Failed,
}

/// Damage that a backup found in older snapshots.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DamageFound {
    /// Ids of the damaged segments.
    pub segments: Vec<String>,
    /// Number of chunks in damaged segments or in no segment.
    pub chunks: u64,
    /// Number of unchanged files that were stored again.
    pub files_stored_again: u64,
    /// Number of older snapshots that may have missing data.
    pub older_snapshots: u64,
    /// Number of paths of the new snapshot that need lost data. The next backup stores them again.
    pub paths_lost: u64,
}

/// Figures of a run that backed up an instance.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct InstanceRecord {
    /// True if nothing required is missing, no check failed and every file was readable.
    pub is_complete: bool,
    /// Failures besides the snapshot, such as a service that did not start again.
    pub failures: Vec<String>,
    /// Number of databases in the snapshot.
    pub databases: u64,
    /// Number of projects in the databases.
    pub projects: u64,
    /// Time that services were down, in seconds; null if none were stopped.
    pub seconds_down: Option<f64>,
    /// Number of failed checks of the source or of the saved data.
    pub checks_failed: u64,
}

/// Facts about a run that do not depend on its result.
#[derive(Debug, Clone)]
pub struct Frame {
    pub run: RunId,
    /// Path of the store, if it is known.
    pub store: Option<String>,
    pub started: Time,
    pub ended: Time,
    pub elapsed: Duration,
    /// Warnings printed so far.
    pub warnings: Vec<String>,
}

fn as_utc<S: Serializer>(time: &Time, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&utc_time(*time))
}

impl RunResult {
    /// Returns 0 if done, 1 if partial, 2 if failed: for monitoring, where more is worse.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Returns the word for people.
    pub fn word(self) -> &'static str {
        match self {
            RunResult::Done => "done",
            RunResult::Partial => "incomplete",
            RunResult::Failed => "failed",
        }
    }
}

impl RunRecord {
    /// Returns the record of a run without further details.
    pub fn new(frame: Frame, result: RunResult, exit_code: u8) -> RunRecord {
        RunRecord {
            version: VERSION,
            run_id: frame.run.to_string(),
            result,
            exit_code,
            started: frame.started,
            ended: frame.ended,
            total_duration: frame.elapsed.as_secs_f64(),
            message: None,
            warnings: frame.warnings,
            store: frame.store,
            snapshot_id: None,
            parent: None,
            dry_run: false,
            statistics: Statistics::default(),
            total_files_processed: 0,
            files_removed: None,
            dirs_removed: None,
            files_stored_plainly: BTreeMap::new(),
            damage: None,
            emptied: Vec::new(),
            errors: 0,
            snapshots_passed_over: 0,
            instance: None,
        }
    }

    /// Returns the record of a failed run.
    pub fn failed(frame: Frame, failure: &Failure) -> RunRecord {
        let message = failure.words().map(|(message, _)| shown(&message).into_owned());
        RunRecord { message, ..RunRecord::new(frame, RunResult::Failed, failure.number()) }
    }

    /// Returns the record of a backup of paths.
    pub fn of_paths(frame: Frame, report: &Report) -> RunRecord {
        let mut record = RunRecord::of(frame, report);
        let lost = record.damage.as_ref().map_or(0, |damage| damage.paths_lost);
        let lack = (record.errors > 0).then(|| lacks_paths(record.errors));
        let is_whole = record.errors == 0 && lost == 0 && !report.is_empty;
        let is_good = is_whole && report.emptied.is_empty();
        record.finish(is_good, lack.into_iter().chain(emptied(report)).collect());
        record
    }

    /// Returns the record of a backup of an instance.
    pub fn of_instance(frame: Frame, outcome: &Outcome) -> RunRecord {
        let mut record = RunRecord::of(frame, &outcome.report);
        let Outcome { manifest, failures, is_complete, .. } = outcome;
        let bad = manifest.checks.iter().filter(|check| check.verdict >= Verdict::Warning);
        record.warnings.extend(bad.map(|check| format!("{}: {}", check.name, check.text)));
        record.instance = Some(InstanceRecord {
            is_complete: *is_complete,
            failures: failures.clone(),
            databases: manifest.databases.len() as u64,
            projects: outcome.project_count as u64,
            seconds_down: manifest.seconds_down,
            checks_failed: manifest.failed_checks(),
        });
        let lack = (!is_complete).then(|| lack(manifest, outcome.report.unreadable_count));
        let lines = failures.iter().cloned().chain(lack).chain(emptied(&outcome.report)).collect();
        record.finish(outcome.is_good(), lines);
        record
    }

    /// Returns the record of a report, as if all work was done.
    fn of(frame: Frame, report: &Report) -> RunRecord {
        let statistics = report.statistics;
        let damage = report.damage.as_ref().map(|damage| DamageFound {
            segments: damage.segments.iter().map(ToString::to_string).collect(),
            chunks: damage.chunks,
            files_stored_again: damage.files,
            older_snapshots: damage.older_snapshots,
            paths_lost: damage.lost,
        });
        RunRecord {
            snapshot_id: report.snapshot.map(|id| id.to_string()),
            parent: report.parent.map(|id| id.to_string()),
            dry_run: report.snapshot.is_none(),
            total_files_processed: statistics.files_new
                + statistics.files_changed
                + statistics.files_unmodified,
            files_removed: report.removed.map(|removed| removed.files),
            dirs_removed: report.removed.map(|removed| removed.dirs),
            files_stored_plainly: report.stored_plainly.clone(),
            emptied: report.emptied.iter().map(EmptiedSource::of).collect(),
            damage,
            errors: report.unreadable_count + statistics.metadata_unreadable,
            snapshots_passed_over: report.skipped_records,
            statistics,
            ..RunRecord::new(frame, RunResult::Done, 0)
        }
    }

    /// Sets the result, and the message of a run that is not good.
    fn finish(&mut self, is_good: bool, mut lines: Vec<String>) {
        lines.extend(skipped_records(self.snapshots_passed_over));
        if is_good && self.snapshots_passed_over == 0 {
            return;
        }
        (self.result, self.exit_code) = (RunResult::Partial, Failure::Partial.number());
        let lines: Vec<String> = lines.iter().map(|line| shown(line).into_owned()).collect();
        self.message = (!lines.is_empty()).then(|| lines.join("\n"));
    }

    /// Returns true if nobody has to act.
    pub fn is_good(&self) -> bool {
        self.result == RunResult::Done
    }

    /// Returns the first digits of the snapshot's id.
    pub fn short_id(&self) -> Option<&str> {
        self.snapshot_id.as_deref().and_then(|id| id.get(..8))
    }

    /// Time that services were down, in seconds.
    pub fn seconds_down(&self) -> Option<f64> {
        self.instance.as_ref()?.seconds_down
    }

    /// Number of failed checks.
    pub fn checks_failed(&self) -> u64 {
        self.instance.as_ref().map_or(0, |instance| instance.checks_failed)
    }
}

/// Describes the faults of an incomplete snapshot.
fn lack(manifest: &Manifest, unreadable: u64) -> String {
    let missing = manifest.missing.iter().filter(|absent| absent.is_required);
    let missing: Vec<&str> = missing.map(|absent| &absent.part[..]).collect();
    match (&missing[..], unreadable) {
        ([], 0) => "the stored files do not match the databases".into(),
        ([], paths) => lacks_paths(paths),
        (parts, _) => format!("missing: {}", parts.join(", ")),
    }
}

/// Describes the sources that lost most of their files, or their mount.
fn emptied(report: &Report) -> impl Iterator<Item = String> {
    report.emptied.iter().map(losses::text)
}

fn lacks_paths(paths: u64) -> String {
    format!("{} could not be read completely", crate::report::count(paths, "path"))
}
