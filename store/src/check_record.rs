//! Records of checks and drills: what was examined, when, and with which result.
//!
//! Nothing in the store depends on them. A record is written once; its name begins with the time of
//! the examination, so that the newest ones are found without reading the others.

use crate::backend;
use crate::entry::Time;
use crate::error::{Error, Result};
use crate::id::{ChunkId, SegmentId, SnapshotId};
use crate::limits;
use crate::observe::Event;
use crate::store::Store;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Directory of the records in the store.
pub const DIR: &str = "checks";
/// Version of the record. It grows when a field changes its meaning or goes, not when one is added.
pub const VERSION: u64 = 1;
/// Number of records that are read at most: the newest.
pub const READ_MAX: usize = 1000;

/// Digits of the time in the name of a record.
const TIME_DIGITS: usize = 12;
/// Maximum number of snapshots in a record: the newest.
const SNAPSHOTS_MAX: usize = 20_000;
/// Maximum number of damaged segments in a record.
const SEGMENTS_MAX: usize = 10_000;
/// Maximum number of parts in a record.
const PARTS_MAX: usize = 100;
/// Maximum length of the id of a run in bytes.
const RUN_BYTES_MAX: usize = 64;
/// Maximum length of a text in a record in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Record of a check or a drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckRecord {
    /// Version of this record.
    pub version: u64,
    /// Command that examined the snapshots.
    pub kind: CheckKind,
    /// Extent of the examination.
    pub level: CheckLevel,
    /// Result of the examination.
    pub result: CheckResult,
    /// Reason of a result that is not good; null for a good one.
    pub message: Option<String>,
    /// Start in seconds since 1970, UTC.
    pub started: i64,
    /// Duration in seconds.
    pub seconds: f64,
    /// Version of the program.
    pub program: String,
    /// Name of the machine.
    pub host: String,
    /// Random id of the run (UUID).
    pub run_id: String,
    /// Name of the examined instance; null if all of them were examined.
    pub instance: Option<String>,
    /// Ids of the examined snapshots. Those of which a check is not sure are missing.
    #[serde(serialize_with = "as_hex", deserialize_with = "of_hex")]
    #[schemars(with = "Vec<String>")]
    pub snapshots: Vec<SnapshotId>,
    /// Ids of those that lost something or have a fault.
    #[serde(serialize_with = "as_hex", deserialize_with = "of_hex")]
    #[schemars(with = "Vec<String>")]
    pub faulty: Vec<SnapshotId>,
    /// Ids of damaged segments. Backups store their content again, also with a new index.
    #[serde(default, serialize_with = "segments_as_hex", deserialize_with = "segments_of_hex")]
    #[schemars(with = "Vec<String>")]
    pub damaged_segments: Vec<SegmentId>,
    /// Ids of snapshots with a damaged record. Backups repair those of which one copy is intact.
    #[serde(default, serialize_with = "as_hex", deserialize_with = "of_hex")]
    #[schemars(with = "Vec<String>")]
    pub damaged_records: Vec<SnapshotId>,
    /// Ids of runs (`run_id`) that had found faults when this one began. Their faults are gone if this
    /// one did not find them: clocks of machines differ, so times do not tell which run was later.
    #[serde(default)]
    pub outweighs: Vec<String>,
    /// Number of faults: damaged objects and lost paths, or faulty parts.
    pub faults: u64,
    /// Number of parts that could not be examined.
    pub unknown: u64,
    /// Bytes that were read by a check, or restored by a drill.
    pub bytes: u64,
    /// Age of the newest examined snapshot at the start, in seconds (RPO); null without one.
    pub rpo_seconds: Option<u64>,
    /// Duration of the restore in seconds (RTO); null for a check.
    pub rto_seconds: Option<f64>,
    /// Results by part; empty for a check.
    pub parts: Vec<ExaminedPart>,
}

/// Command that examined snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// Reading the store.
    Check,
    /// Restoring into scratch space.
    Drill,
}

/// Extent of an examination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckLevel {
    /// A check of tables and trees.
    Structure,
    /// The same, and all bytes of a random share of the segments.
    Share {
        /// Segments per million.
        per_million: u32,
    },
    /// The same, and all bytes of one of several parts, which together are all segments.
    Part {
        /// Number of the part, from 1.
        n: u32,
        /// Number of parts.
        of: u32,
    },
    /// The same, and all bytes.
    Data,
    /// A drill of a random sample.
    Sample,
    /// A drill of everything.
    Whole,
}

/// Result of an examination.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum CheckResult {
    /// No fault was found.
    Good,
    /// No fault was found, but something could not be examined.
    Incomplete,
    /// Faults were found.
    Faulty,
    /// The examination ended early with an error.
    Failed,
}

/// Result of a part of a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExaminedPart {
    /// Name of the part, such as `repositories`.
    pub name: String,
    /// Result of the part.
    pub result: CheckResult,
    /// Sentence for people.
    pub text: String,
}

impl CheckKind {
    /// Returns the name of the command.
    pub fn name(self) -> &'static str {
        match self {
            CheckKind::Check => "check",
            CheckKind::Drill => "drill",
        }
    }
}

impl CheckLevel {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            CheckLevel::Structure => "structure",
            CheckLevel::Share { .. } => "share",
            CheckLevel::Part { .. } => "part",
            CheckLevel::Data => "data",
            CheckLevel::Sample => "sample",
            CheckLevel::Whole => "whole",
        }
    }
}

impl CheckResult {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            CheckResult::Good => "good",
            CheckResult::Incomplete => "incomplete",
            CheckResult::Faulty => "faulty",
            CheckResult::Failed => "failed",
        }
    }
}

fn as_hex<S: Serializer>(ids: &[SnapshotId], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(ids.iter().map(ToString::to_string))
}

fn of_hex<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SnapshotId>, D::Error> {
    let all = Vec::<String>::deserialize(from)?;
    let id = |text: &String| SnapshotId::from_hex(text).map_err(serde::de::Error::custom);
    all.iter().map(id).collect()
}

fn segments_as_hex<S: Serializer>(ids: &[SegmentId], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(ids.iter().map(ToString::to_string))
}

fn segments_of_hex<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SegmentId>, D::Error> {
    let all = Vec::<String>::deserialize(from)?;
    let id = |text: &String| SegmentId::from_hex(text).map_err(serde::de::Error::custom);
    all.iter().map(id).collect()
}

impl CheckRecord {
    /// Returns the record of damage that another command met, named in `message`. It says nothing about
    /// any snapshot.
    pub(crate) fn of_damage(
        message: &str,
        (program, host): (&str, &str),
        started: Time,
        damaged_segments: Vec<SegmentId>,
    ) -> CheckRecord {
        CheckRecord {
            version: VERSION,
            kind: CheckKind::Check,
            level: CheckLevel::Structure,
            result: CheckResult::Faulty,
            message: Some(message.into()),
            started: started.seconds,
            seconds: 0.0,
            program: program.to_owned(),
            host: host.to_owned(),
            run_id: String::new(),
            instance: None,
            snapshots: Vec::new(),
            faulty: Vec::new(),
            faults: damaged_segments.len() as u64,
            damaged_segments,
            damaged_records: Vec::new(),
            outweighs: Vec::new(),
            unknown: 0,
            bytes: 0,
            rpo_seconds: None,
            rto_seconds: None,
            parts: Vec::new(),
        }
    }

    /// Returns true if it proves that its snapshots, except the faulty ones, can be restored: all
    /// data was read, or a drill found nothing wrong.
    fn is_proof(&self) -> bool {
        match (self.kind, self.level) {
            (CheckKind::Check, CheckLevel::Data) => self.result != CheckResult::Failed,
            (CheckKind::Drill, _) => self.result == CheckResult::Good,
            _ => false,
        }
    }

    /// Returns the result for one of its snapshots: faults of others do not concern it.
    pub fn outcome_for(&self, id: &SnapshotId) -> CheckResult {
        match self.result {
            CheckResult::Faulty if !self.faulty.contains(id) => CheckResult::Good,
            result => result,
        }
    }

    /// Returns true if the examination found something wrong.
    fn has_faults(&self) -> bool {
        let lists = [self.damaged_records.len(), self.damaged_segments.len(), self.faulty.len()];
        self.result == CheckResult::Faulty || lists.iter().any(|len| *len > 0)
    }

    /// Cuts values that exceed a limit of readers.
    fn fit(&mut self) {
        for ids in [&mut self.snapshots, &mut self.faulty, &mut self.damaged_records] {
            ids.drain(..ids.len().saturating_sub(SNAPSHOTS_MAX));
        }
        self.damaged_segments.truncate(SEGMENTS_MAX);
        self.parts.truncate(PARTS_MAX);
        self.outweighs.truncate(READ_MAX);
        let names = self.parts.iter_mut().flat_map(|part| [&mut part.name, &mut part.text]);
        let own = [&mut self.program, &mut self.host, &mut self.run_id];
        let own = own.into_iter().chain(&mut self.message).chain(&mut self.instance);
        let texts = own.chain(names).map(|text| (text, TEXT_BYTES_MAX));
        let runs = self.outweighs.iter_mut().map(|run| (run, RUN_BYTES_MAX));
        for (text, max) in texts.chain(runs) {
            let mut end = text.len().min(max);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
        }
    }

    /// Returns the record as it is stored.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("writing to memory cannot fail");
        bytes.push(b'\n');
        bytes
    }

    /// Reads an untrusted record of this name.
    fn from_bytes(name: &str, bytes: &[u8]) -> Result<CheckRecord> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let what = || format!("{DIR}/{name}");
        let malformed = |reason: String| Error::Malformed { what: what(), reason };
        if name.get(TIME_DIGITS + 1..) != Some(&ChunkId::of(bytes).to_string()) {
            return Err(malformed("its content does not match its name".into()));
        }
        let wrong = |error: serde_json::Error| malformed(error.to_string());
        let Versioned { version } = serde_json::from_slice(bytes).map_err(wrong)?;
        if version > VERSION {
            return Err(Error::newer_version(what(), version, VERSION));
        }
        serde_json::from_slice(bytes).map_err(wrong)
    }
}

/// Returns the time in the name of a record, in seconds since 1970; `None` for other names.
fn time_of(name: &str) -> Option<i64> {
    let (time, hash) = name.split_once('-')?;
    let is_time = time.len() == TIME_DIGITS && time.bytes().all(|digit| digit.is_ascii_digit());
    SnapshotId::from_hex(hash).ok().filter(|_| is_time)?;
    time.parse().ok()
}

impl Store {
    /// Writes the record of an examination, also in a store that was opened for reading.
    pub fn write_check_record(&self, record: &CheckRecord) -> Result<()> {
        // A reader knows only the features for readers.
        let features = self.config.features.clone().with_later_ones(&*self.backend)?;
        features.check(false)?;
        let mut record = record.clone();
        record.fit();
        let bytes = record.to_bytes();
        let time = record.started.clamp(0, 10i64.pow(TIME_DIGITS as u32) - 1);
        let name = format!("{DIR}/{time:0width$}-{}", ChunkId::of(&bytes), width = TIME_DIGITS);
        backend::write_all(&*self.backend, &name, &bytes).map_err(Error::store_write(name))
    }

    /// Returns the newest [`READ_MAX`] records of examinations, newest first, and an error for each
    /// that cannot be read. One that a clock far behind made may seem older than its snapshots.
    pub fn check_records(&self) -> Result<Vec<Result<CheckRecord>>> {
        self.read_check_records(&self.names_of_checks()?)
    }

    /// Returns the names of the newest [`READ_MAX`] records, newest first.
    fn names_of_checks(&self) -> Result<Vec<String>> {
        let names = match self.backend.names(DIR) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            names => names.map_err(Error::store_read(DIR))?,
        };
        let is_wanted = |name: &String| time_of(name).is_some();
        let mut names: Vec<String> = names.into_iter().filter(is_wanted).collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.truncate(READ_MAX);
        Ok(names)
    }

    fn read_check_records(&self, names: &[String]) -> Result<Vec<Result<CheckRecord>>> {
        let read = |name: &String| {
            self.observer.progress().check()?;
            let path = format!("{DIR}/{name}");
            let bytes = backend::read_all(&*self.backend, &path, limits::RECORD_BYTES_MAX)
                .map_err(Error::store_read(path))?;
            CheckRecord::from_bytes(name, &bytes)
        };
        let mut records = Vec::with_capacity(names.len());
        for name in names {
            match read(name) {
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                read => records.push(read),
            }
        }
        Ok(records)
    }

    /// Returns the ids of runs that found faults, for [`CheckRecord::outweighs`].
    pub fn faulty_runs(&self) -> Result<Vec<String>> {
        // Commands that show the records warn of unreadable ones.
        let records = self.check_records()?.into_iter().flatten();
        let runs = records.filter(CheckRecord::has_faults).map(|record| record.run_id);
        Ok(runs.filter(|run| !run.is_empty()).collect())
    }

    /// Marks in the index what checks found damaged. A rebuilt index has no marks, and each machine may
    /// have an index of its own. Also repairs records of which they found one copy damaged, if
    /// `repairs`. A failure is a warning.
    pub(crate) fn heed_checks(&self, repairs: bool) -> Result<()> {
        // A reader without rights sees the marks of others only.
        if self.index.is_read_only() {
            return Ok(());
        }
        match self.mark_checks(repairs) {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(error) => {
                let text = format!("the damage that checks found is not known: {error}");
                self.observer.event(Event::Warning(text));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// A check of all data that knew of the damage and finds the segment intact outweighs it.
    fn mark_checks(&self, repairs: bool) -> Result<()> {
        let names = self.names_of_checks()?;
        let key = blake3::hash(names.join("\n").as_bytes());
        if names.is_empty() || self.index.heeded_checks()?.as_deref() == Some(key.as_bytes()) {
            return Ok(());
        }
        // Commands that show the records warn of unreadable ones.
        let records: Vec<CheckRecord> =
            self.read_check_records(&names)?.into_iter().flatten().collect();
        let checks = || records.iter().filter(|record| record.kind == CheckKind::Check);
        let has_read_all = |record: &&CheckRecord| {
            record.level == CheckLevel::Data && record.result != CheckResult::Failed
        };
        let outweighed: HashSet<&String> =
            checks().filter(has_read_all).flat_map(|record| &record.outweighs).collect();
        let counts = |record: &&CheckRecord| !outweighed.contains(&record.run_id);
        let damaged: HashSet<SegmentId> =
            checks().filter(counts).flat_map(|record| record.damaged_segments.clone()).collect();
        let snapshots: BTreeSet<&SnapshotId> =
            checks().flat_map(|record| &record.damaged_records).collect();
        let is_all = repairs || snapshots.is_empty();
        for id in snapshots.into_iter().filter(|_| repairs) {
            self.mend_record(id);
        }
        if self.index.mark_damaged(&damaged)? {
            // A new index may locate chunks there that another segment has as well.
            self.locate_again()?;
        }
        if is_all { self.index.set_heeded_checks(key.as_bytes()) } else { Ok(()) }
    }
}

/// Examinations of a snapshot, from its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Only its structure or a part of its data was examined, without a fault.
    Structure,
    /// All of its data was read, or a drill restored it, without a fault.
    Checked,
    /// The newest check, or the newest drill, found a fault.
    Faulty,
}

/// Standing of a snapshot, and the record that decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// The standing.
    pub standing: Standing,
    /// Command of the record.
    pub kind: CheckKind,
    /// Extent of the examination in the record.
    pub level: CheckLevel,
    /// Start of the examination in seconds since 1970.
    pub started: i64,
}

/// Judges snapshots by records, which are in order, the newest first. A snapshot without a record
/// is missing in the answer.
///
/// A fault stays until an examination that knew of it does not find it. Checks and drills are judged
/// apart, because neither sees the faults that only the other finds. A check of the structure does
/// not outweigh a fault in the data, and neither does a drill of a sample, which may have missed it.
/// Checks of all parts together are a check of all data.
pub fn judge<'a>(
    records: impl Iterator<Item = &'a CheckRecord> + Clone,
) -> HashMap<SnapshotId, Judged> {
    let mut all: HashMap<SnapshotId, [Findings<'a>; 2]> = HashMap::new();
    let records = records.filter(|record| record.result != CheckResult::Failed);
    let runs = records.clone().filter(|record| record.has_faults());
    let runs: HashSet<&str> = runs.map(|record| &*record.run_id).collect();
    for record in records {
        let faulty: HashSet<&SnapshotId> = record.faulty.iter().collect();
        let known = record.outweighs.iter().map(|run| &**run);
        let known: Vec<&str> = known.filter(|run| runs.contains(run)).collect();
        for id in &record.snapshots {
            let findings = &mut all.entry(*id).or_default()[record.kind as usize];
            if faulty.contains(id) {
                findings.faults.push(record);
            } else {
                findings.good(record, &known);
            }
        }
    }
    let worst = |[check, drill]: [Findings<'_>; 2]| {
        let structure = check.structure.as_ref().map(|(judged, _)| *judged);
        let both = check.judged().into_iter().chain(drill.judged());
        both.max_by_key(|judged| (judged.standing as u8, judged.started)).or(structure)
    };
    all.into_iter().filter_map(|(id, found)| Some((id, worst(found)?))).collect()
}

/// Runs whose faults are outweighed.
type Outweighed<'a> = HashSet<&'a str>;

/// Findings of the examinations of one kind about a snapshot.
#[derive(Default)]
struct Findings<'a> {
    /// Records of faults.
    faults: Vec<&'a CheckRecord>,
    /// The newest proof, and what all of them outweigh.
    proof: Option<(Judged, Outweighed<'a>)>,
    /// The newest check without a fault, and what all of them outweigh.
    structure: Option<(Judged, Outweighed<'a>)>,
    /// Parts read without a fault by the number of parts, and the newest of these checks.
    parts: BTreeMap<u32, (BTreeMap<u32, Outweighed<'a>>, i64)>,
}

impl<'a> Findings<'a> {
    /// Adds a record that has no fault of the snapshot and outweighs the faults of the runs `known`.
    fn good(&mut self, record: &'a CheckRecord, known: &[&'a str]) {
        let add = |to: &mut Option<(Judged, Outweighed<'a>)>, standing, known: &[&'a str]| {
            let judged = Judged::of(record, standing);
            to.get_or_insert_with(|| (judged, HashSet::new())).1.extend(known);
        };
        if record.kind == CheckKind::Check {
            add(&mut self.structure, Standing::Structure, known);
        }
        match record.level {
            // Another sample may have the fault.
            CheckLevel::Sample if record.is_proof() => {
                add(&mut self.proof, Standing::Checked, &[]);
            }
            _ if record.is_proof() => add(&mut self.proof, Standing::Checked, known),
            CheckLevel::Part { n, of } if (1..=of).contains(&n) => {
                let (parts, _) =
                    self.parts.entry(of).or_insert_with(|| (BTreeMap::new(), record.started));
                parts.entry(n).or_default().extend(known);
            }
            _ => {}
        }
    }

    /// Returns the newest fault that counts, or else the newest proof.
    fn judged(&self) -> Option<Judged> {
        let whole = self.parts.iter().filter(|(of, (parts, _))| parts.len() == **of as usize);
        let outweighs = |found: &Option<(Judged, Outweighed<'a>)>, fault: &CheckRecord| {
            found.as_ref().is_some_and(|(_, known)| known.contains(&*fault.run_id))
        };
        let counts = |fault: &&&CheckRecord| {
            let knows = |known: &Outweighed<'a>| known.contains(&*fault.run_id);
            let is_of_structure = fault.level == CheckLevel::Structure;
            !(outweighs(&self.proof, fault)
                || is_of_structure && outweighs(&self.structure, fault)
                || whole.clone().any(|(_, (parts, _))| parts.values().all(knows)))
        };
        if let Some(fault) = self.faults.iter().find(counts) {
            return Some(Judged::of(fault, Standing::Faulty));
        }
        let parts = whole.clone().map(|(of, (parts, started))| Judged {
            standing: Standing::Checked,
            kind: CheckKind::Check,
            level: CheckLevel::Part { n: parts.len() as u32, of: *of },
            started: *started,
        });
        let proof = self.proof.as_ref().map(|(judged, _)| *judged);
        proof.into_iter().chain(parts).max_by_key(|judged| judged.started)
    }
}

impl Judged {
    fn of(record: &CheckRecord, standing: Standing) -> Judged {
        Judged { standing, kind: record.kind, level: record.level, started: record.started }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::observe::Silent;
    use crate::store::{Purpose, init};
    use std::path::Path;
    use std::sync::Arc;

    fn id(byte: u8) -> SnapshotId {
        SnapshotId::from_bytes([byte; 32])
    }

    fn record(kind: CheckKind, level: CheckLevel, started: i64) -> CheckRecord {
        CheckRecord {
            version: VERSION,
            kind,
            level,
            result: CheckResult::Good,
            message: None,
            started,
            seconds: 1.5,
            program: "0.1.0".into(),
            host: "git01".into(),
            run_id: format!("ffffffff-ffff-4fff-bfff-{started:012}"),
            instance: None,
            snapshots: vec![id(1), id(2)],
            faulty: Vec::new(),
            damaged_segments: Vec::new(),
            damaged_records: Vec::new(),
            outweighs: Vec::new(),
            faults: 0,
            unknown: 0,
            bytes: 7,
            rpo_seconds: Some(60),
            rto_seconds: None,
            parts: Vec::new(),
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config::new([1; 16], chunker::Parameters::DEFAULT, 3);
        init(dir.path(), &config).expect("creates");
        let store = open(dir.path());
        (dir, store)
    }

    fn open(dir: &Path) -> Store {
        Store::open(dir, Purpose::Read, Arc::new(Silent::default())).expect("opens")
    }

    #[test]
    fn records_are_read_as_they_were_written_newest_first() {
        let (dir, store) = store();
        assert!(store.check_records().expect("reads").is_empty());
        let all = [10, 30, 20].map(|at| record(CheckKind::Check, CheckLevel::Data, at));
        all.iter().for_each(|record| store.write_check_record(record).expect("writes"));
        let read = store.check_records().expect("lists").into_iter();
        let read: Vec<CheckRecord> = read.map(|it| it.expect("reads")).collect();
        assert_eq!(read, [&all[1], &all[2], &all[0]].map(Clone::clone));
        // Every name ends in the hash of the content.
        for file in std::fs::read_dir(dir.path().join(DIR)).expect("lists") {
            let path = file.expect("is there").path();
            let hash = ChunkId::of(&std::fs::read(&path).expect("reads")).to_string();
            assert!(path.to_string_lossy().ends_with(&hash), "{path:?}");
        }
    }

    #[test]
    fn hostile_records_are_errors_and_do_not_hide_others() {
        let (dir, store) = store();
        let write = |bytes: &[u8], at: i64| {
            let name = format!("{at:012}-{}", ChunkId::of(bytes));
            std::fs::create_dir_all(dir.path().join(DIR)).expect("makes");
            std::fs::write(dir.path().join(DIR).join(name), bytes).expect("writes");
        };
        let good = record(CheckKind::Drill, CheckLevel::Sample, 5);
        store.write_check_record(&good).expect("writes");
        write(b"{\"version\": 2, \"snapshots\": 7}", 4);
        write(b"{\"version\": 1}", 3);
        let text = String::from_utf8(good.to_bytes()).expect("text");
        write(text.replace(&id(1).to_string(), "../../etc").as_bytes(), 2);
        let name = format!("{:012}-{}", 1, id(9));
        std::fs::write(dir.path().join(DIR).join(name), good.to_bytes()).expect("writes");
        std::fs::write(dir.path().join(DIR).join("README"), "ignored").expect("writes");
        let huge = dir.path().join(DIR).join(format!("{:012}-{}", 0, id(8)));
        let file = std::fs::File::create(huge).expect("creates");
        file.set_len(1 << 40).expect("grows");
        let read = store.check_records().expect("lists");
        assert_eq!(read.len(), 6);
        assert_eq!(read[0].as_ref().expect("reads"), &good);
        let newer = read[1].as_ref().expect_err("refused").to_string();
        assert!(newer.contains("newer version of forgekeep wrote checks/"), "{newer}");
        for (at, words) in [(2, "missing field"), (3, "not an id"), (4, "does not match its name")]
        {
            let error = read[at].as_ref().expect_err("refused").to_string();
            assert!(error.contains("is malformed") && error.contains(words), "{error}");
        }
        assert!(read[5].is_err());
    }

    #[test]
    fn the_largest_record_can_be_read() {
        let (_dir, store) = store();
        let mut large = record(CheckKind::Drill, CheckLevel::Whole, 5);
        large.snapshots = vec![id(3); 100_000];
        large.faulty.clone_from(&large.snapshots);
        // Each byte takes six in JSON.
        let long = "\u{1}".repeat(100_000);
        large.message = Some(long.clone());
        let (name, result) = (format!("{}ä", "p".repeat(1023)), CheckResult::Good);
        let part = ExaminedPart { name, result, text: long.clone() };
        large.parts = vec![part; 1000];
        large.outweighs = vec![long.clone(); 2 * READ_MAX];
        store.write_check_record(&large).expect("writes");
        let read = store.check_records().expect("lists").remove(0).expect("reads");
        assert_eq!(read.snapshots.len(), SNAPSHOTS_MAX);
        assert!(long.starts_with(&read.message.expect("a message")));
        assert_eq!(read.parts.len(), PARTS_MAX);
    }

    #[test]
    fn a_store_with_an_unknown_feature_gets_no_record() {
        let (dir, store) = store();
        backend::write_all(&crate::backend::Local::new(dir.path()), "features/x", b"writers\n")
            .expect("writes");
        let refused = store.write_check_record(&record(CheckKind::Check, CheckLevel::Data, 5));
        assert!(matches!(refused, Err(Error::Newer { .. })), "{refused:?}");
        assert!(!dir.path().join(DIR).exists());
    }

    #[test]
    fn full_checks_and_good_drills_make_a_snapshot_checked() {
        use CheckKind::{Check, Drill};
        use CheckLevel::{Data, Part, Sample, Structure, Whole};
        use CheckResult::{Failed, Faulty, Incomplete};
        let of = |all: &[CheckRecord]| {
            judge(all.iter()).get(&id(1)).map(|judged| (judged.standing, judged.started))
        };
        let faulty = |kind, level, at| CheckRecord {
            result: Faulty,
            faulty: vec![id(1)],
            ..record(kind, level, at)
        };
        let with = |result, record: CheckRecord| CheckRecord { result, ..record };
        let (checked, bad) = (Standing::Checked, Standing::Faulty);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[record(Check, Structure, 9)]), Some((Standing::Structure, 9)));
        assert_eq!(of(&[record(Check, Structure, 9), record(Check, Data, 5)]), Some((checked, 5)));
        assert_eq!(of(&[record(Drill, Sample, 9)]), Some((checked, 9)));
        assert_eq!(of(&[with(Incomplete, record(Drill, Whole, 9))]), None);
        assert_eq!(of(&[with(Failed, record(Check, Data, 9))]), None);
        // Damage elsewhere does not concern this snapshot.
        let elsewhere = CheckRecord { faulty: vec![id(2)], ..with(Faulty, record(Check, Data, 9)) };
        assert_eq!(of(&[elsewhere]), Some((checked, 9)));
        let knows = |at: i64, record: CheckRecord| {
            let outweighs = vec![format!("ffffffff-ffff-4fff-bfff-{at:012}")];
            CheckRecord { outweighs, ..record }
        };
        // Clocks differ: only what a run knew of is outweighed by it.
        let fault = faulty(Check, Data, 5);
        assert_eq!(of(&[record(Check, Data, 9), fault.clone()]), Some((bad, 5)));
        assert_eq!(of(&[knows(5, record(Check, Data, 9)), fault.clone()]), Some((checked, 9)));
        assert_eq!(of(&[fault.clone(), knows(5, record(Check, Data, 2))]), Some((checked, 2)));
        // Only a drill sees that a repository was broken before it was stored.
        let drill = faulty(Drill, Sample, 5);
        assert_eq!(of(&[knows(5, record(Check, Data, 9)), drill.clone()]), Some((bad, 5)));
        // Another sample may not have the fault.
        assert_eq!(of(&[knows(5, record(Drill, Sample, 9)), drill.clone()]), Some((bad, 5)));
        assert_eq!(of(&[knows(5, record(Drill, Whole, 9)), drill]), Some((checked, 9)));
        assert_eq!(of(&[knows(5, record(Check, Structure, 9)), fault.clone()]), Some((bad, 5)));
        let mended = [knows(5, record(Check, Structure, 9)), faulty(Check, Structure, 5)];
        assert_eq!(of(&mended), Some((Standing::Structure, 9)));
        assert_eq!(of(&[record(Check, Structure, 9), faulty(Check, Structure, 5)]), Some((bad, 5)));
        // All parts together.
        let part = |n, at| record(Check, Part { n, of: 3 }, at);
        assert_eq!(of(&[part(1, 9), part(3, 8)]), Some((Standing::Structure, 9)));
        assert_eq!(of(&[part(1, 9), part(1, 8), part(3, 7)]), Some((Standing::Structure, 9)));
        assert_eq!(of(&[part(1, 9), part(3, 8), part(2, 7)]), Some((checked, 9)));
        let two = [knows(5, part(1, 9)), knows(5, part(3, 8)), part(2, 4), fault.clone()];
        assert_eq!(of(&two), Some((bad, 5)));
        let all = [knows(5, part(1, 9)), knows(5, part(3, 8)), knows(5, part(2, 7)), fault];
        assert_eq!(of(&all), Some((checked, 9)));
    }
}
