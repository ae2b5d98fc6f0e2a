//! Records of checks and drills, which the store keeps.

use crate::exit::Failure;
use crate::report::{count, now};
use crate::run_id::RunId;
use crate::ui::Ui;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use store::check_record::{
    self, CheckKind, CheckLevel, CheckRecord, CheckResult, Judged, Standing,
};
use store::entry::Time;
use store::id::SnapshotId;
use store::observe::Event;
use store::snapshot::{self, Stamp};
use store::store::Store;

/// A check or a drill that began.
pub struct Examination {
    kind: CheckKind,
    run: RunId,
    started: Time,
    clock: Instant,
}

impl Examination {
    /// Begins now.
    pub fn begin(kind: CheckKind) -> Result<Examination, Failure> {
        Ok(Examination { kind, run: RunId::random()?, started: now(), clock: Instant::now() })
    }

    /// Returns its random id.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Returns the time since it began.
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Returns the age of a snapshot at the beginning, in seconds.
    pub fn age_of(&self, start: Stamp) -> u64 {
        u64::try_from(self.started.seconds.saturating_sub(start.seconds)).unwrap_or_default()
    }

    /// Returns the record of a good examination that ends now, without its snapshots.
    pub fn record(&self, level: CheckLevel) -> CheckRecord {
        CheckRecord {
            version: check_record::VERSION,
            kind: self.kind,
            level,
            result: CheckResult::Good,
            message: None,
            started: self.started.seconds,
            seconds: self.elapsed().as_secs_f64(),
            program: env!("CARGO_PKG_VERSION").into(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            run_id: self.run.to_string(),
            instance: None,
            snapshots: Vec::new(),
            faulty: Vec::new(),
            damaged_segments: Vec::new(),
            damaged_records: Vec::new(),
            outweighs: Vec::new(),
            faults: 0,
            unknown: 0,
            bytes: 0,
            rpo_seconds: None,
            rto_seconds: None,
            parts: Vec::new(),
        }
    }
}

/// Returns the record of an examination that ended early with an error.
pub fn failed(record: CheckRecord, error: String) -> CheckRecord {
    CheckRecord { result: CheckResult::Failed, message: Some(error), ..record }
}

/// Keeps a record in the store. Returns false if that was not possible, and says so.
pub fn keep(store: &Store, record: &CheckRecord, ui: &Ui) -> bool {
    let what = record.kind.name();
    match store.write_check_record(record) {
        Ok(()) => return true,
        Err(error) if error.is_write_denied() => {
            let text =
                format!("this {what} leaves no record: this user may not write to the store");
            store.observer().event(Event::Note(text));
        }
        Err(error) => ui.warn(&format!("cannot keep the record of this {what}: {error}")),
    }
    false
}

/// Judges snapshots by the records in the store. Warns of records that cannot be read.
pub fn judge(store: &Store, ui: &Ui) -> HashMap<SnapshotId, Judged> {
    check_record::judge(read(store, ui).iter())
}

/// Returns the readable records, newest first. Warns of the others, and of those from the
/// future: made under a wrong clock, good ones would be the newest for years, and are left out.
pub fn read(store: &Store, ui: &Ui) -> Vec<CheckRecord> {
    let all = match store.check_records() {
        Ok(all) => all,
        Err(error) => {
            ui.warn(&format!("cannot tell which snapshots are checked: {error}"));
            return Vec::new();
        }
    };
    let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    if let Some(Err(error)) = bad.first() {
        let records = count(bad.len() as u64, "record");
        ui.warn(&format!("ignoring {records} of checks and drills: {error}"));
    }
    let is_future = |record: &CheckRecord| snapshot::is_future(record.started, now());
    let mut records: Vec<CheckRecord> = good.into_iter().flatten().collect();
    let future = records.iter().filter(|record| is_future(record)).count();
    if future > 0 {
        let future = count(future as u64, "record");
        ui.warn(&format!(
            "{future} of checks and drills dated in the future; only faults in them count; check \
             this machine's clock"
        ));
    }
    records.retain(|record| !record.faulty.is_empty() || !is_future(record));
    records
}

/// Returns the standing of a snapshot in a column: the day of its check, if it is checked.
pub fn column(judged: Option<&Judged>) -> String {
    match judged {
        None => "-".into(),
        Some(Judged { standing: Standing::Structure, .. }) => "structure".into(),
        Some(Judged { standing: Standing::Faulty, .. }) => "FAULTY".into(),
        Some(Judged { standing: Standing::Checked, started, .. }) => {
            let time = Time { seconds: *started, nanoseconds: 0 };
            crate::report::local_time(time).chars().take("2026-11-30".len()).collect()
        }
    }
}

/// Describes an examination: its command, time and extent.
pub fn shown(record: &CheckRecord) -> String {
    let time = Time { seconds: record.started, nanoseconds: 0 };
    let time = crate::report::local_time(time);
    format!("{} of {time}: {}", record.kind.name(), record.level.name())
}
