use super::Global;
use crate::examination::{self, Examination};
use crate::exit::{Failure, usage, with_hint};
use crate::json::{CheckSummary, DamagedObject, LostPath};
use crate::notifications;
use crate::report::{count, now, size};
use crate::select::{self, ListFilter, Selection};
use crate::selector::Selector;
use crate::ui::Ui;
use clap::Args;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::Duration;
use store::check::{Damage, Object, ReadData, Report};
use store::check_record::{CheckKind, CheckLevel, CheckRecord, CheckResult};
use store::id::SnapshotId;
use store::store::Store;

/// Check that the store is complete and undamaged
///
/// Without options, check reads the tables of all segments and the trees of all snapshots, and
/// looks up every chunk in them. With --read-data it also reads and verifies every byte. It reports
/// each damaged object with the snapshots and paths that it affects.
///
/// With SNAPSHOT or options that choose snapshots, it reads the trees of these snapshots only. It
/// reads the tables of all segments, and all data with --read-data, in any case.
///
/// Each check leaves a record in the store, and `snapshots` shows which snapshots are checked. A user
/// without write permission checks without a record.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep check
  forgekeep check --read-data-subset 2/7      on the second day of the week
  forgekeep check --read-data-subset 5%
  forgekeep check gitlab@latest")]
pub struct Check {
    /// Only these snapshots (`forgekeep --help` lists all forms)
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// Read and verify all data
    #[arg(long, conflicts_with = "read_data_subset")]
    read_data: bool,
    /// Read and verify a part: N/M is the Nth of M parts that together are all segments; 5% is a
    /// random share, at least one segment
    #[arg(long, value_name = "PART")]
    read_data_subset: Option<String>,
    #[command(flatten)]
    filter: ListFilter,
}

impl Check {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let read_data = match (&self.read_data_subset, self.read_data) {
            (Some(text), _) => subset(text).ok_or_else(|| {
                usage(
                    format!("{text} is not a part"),
                    "write N/M with N from 1 to M, or a share like 5%",
                )
            })?,
            (None, true) => ReadData::All,
            (None, false) => ReadData::None,
        };
        let wanted = self.snapshots.iter().map(|text| Selector::read(text));
        let wanted: Vec<Selector> = wanted.collect::<Result<_, _>>()?;
        let instance = select::instance_of(&wanted, &self.filter);
        let (store, watch) = global.open_for(instance, ui, "check")?;
        let only = self.only(&store, &wanted).inspect_err(|_| watch.end())?;
        let (ids, is_sure) = only.map_or((None, true), |(ids, is_sure)| (Some(ids), is_sure));
        let examination = Examination::begin(CheckKind::Check)?;
        // Faults that are not known stay.
        let outweighs = store.faulty_runs().unwrap_or_default();
        let report = store::check::check_some(&store, read_data, ids.as_ref());
        let future = future(&store);
        watch.end();
        let record = record(&examination, level(read_data), report.as_ref());
        let record = record.map(|record| CheckRecord { outweighs, ..record });
        let is_recorded =
            record.as_ref().is_some_and(|record| examination::keep(&store, record, ui));
        if let Some(record) = &record {
            notify(global, &store, &examination, record, ui);
        }
        let (report, future) = (report?, future?);
        for snapshot in &future {
            ui.warn(&format!(
                "snapshot {snapshot} is dated in the future; latest ignores it; check this \
                 machine's clock"
            ));
        }
        for snapshot in &report.newer {
            ui.warn(&format!(
                "a newer version of forgekeep wrote snapshot {}; it was not checked; upgrade \
                 forgekeep",
                snapshot.short()
            ));
        }
        superseded(ui, &report);
        let place = store.place();
        let summary = CheckSummary {
            store: &place,
            snapshots: report.snapshots,
            snapshots_from_future: future.len() as u64,
            snapshots_newer: report.newer.len() as u64,
            segments: report.segments,
            segments_read: report.segments_read,
            bytes_read: report.bytes_read,
            chunks: report.chunks,
            num_errors: report.damage_count,
            paths_lost: report.loss_count,
            clean: report.is_clean(),
            recorded: is_recorded,
        };
        let shown = show(ui, &summary, &report, read_data, watch.elapsed());
        // The exit code must be right even if printing the result failed.
        match report.is_clean() {
            false => Err(Failure::Damaged),
            true if !future.is_empty() || !report.newer.is_empty() || !is_sure => {
                Err(Failure::Partial)
            }
            true => shown,
        }
    }

    /// Returns the ids of the chosen snapshots, and true if they are certainly the wanted ones;
    /// `None` if all snapshots are to be checked.
    fn only(
        &self,
        store: &Store,
        wanted: &[Selector],
    ) -> Result<Option<(HashSet<SnapshotId>, bool)>, Failure> {
        if wanted.is_empty() && self.filter.is_empty() {
            return Ok(None);
        }
        let Selection { snapshots, is_sure } = select::some(store, wanted, &self.filter)?;
        if snapshots.is_empty() {
            let hint = "`forgekeep snapshots --json` shows the instance, tags, paths and machine of \
                        each snapshot";
            return Err(with_hint("nothing checked: no snapshot matches the options", hint));
        }
        Ok(Some((snapshots.into_iter().map(|(id, _)| id).collect(), is_sure)))
    }
}

/// Sends the record of a check, if the configuration has the store and notifiers.
fn notify(
    global: &Global,
    store: &Store,
    examination: &Examination,
    record: &CheckRecord,
    ui: &Ui,
) {
    // A check needs no configuration.
    let Ok(Some(config)) = global.config.read_if_any() else { return };
    let is_this = |path: &Path| {
        let known = path.canonicalize().ok();
        known.is_some() && known == store.root().and_then(|root| root.canonicalize().ok())
    };
    let mut known = config.stores.iter().filter(|(_, settings)| is_this(&settings.path));
    if let Some((name, _)) = known.next() {
        notifications::examined(ui, &config, name, examination.run(), record);
    }
}

/// Returns the extent of a check, for its record.
fn level(read_data: ReadData) -> CheckLevel {
    match read_data {
        ReadData::None => CheckLevel::Structure,
        ReadData::All => CheckLevel::Data,
        ReadData::Part { n: 1, of: 1 } | ReadData::Share { per_million: 1_000_000.., .. } => {
            CheckLevel::Data
        }
        ReadData::Part { n, of } => CheckLevel::Part { n, of },
        ReadData::Share { per_million, .. } => CheckLevel::Share { per_million },
    }
}

/// Returns the record of a check; `None` if it was interrupted.
fn record(
    examination: &Examination,
    level: CheckLevel,
    report: Result<&Report, &store::Error>,
) -> Option<CheckRecord> {
    let mut record = examination.record(level);
    let report = match report {
        Err(store::Error::Interrupted) => return None,
        Err(error) => return Some(examination::failed(record, error.to_string())),
        Ok(report) => report,
    };
    let faulty: BTreeSet<SnapshotId> = report.losses.iter().map(|loss| loss.snapshot).collect();
    let examined = report.examined.iter();
    // Some losses are counted and not named; they may be those of any snapshot.
    let is_known = |id: &SnapshotId| report.losses_unnamed == 0 || faulty.contains(id);
    record.snapshots = examined.clone().map(|(id, _)| *id).filter(is_known).collect();
    record.rpo_seconds = examined.map(|(_, start)| examination.age_of(*start)).min();
    record.faults = report.damage_count.saturating_add(report.loss_count);
    record.unknown = report.newer.len() as u64;
    record.bytes = report.bytes_read;
    record.result = match (record.faults, record.unknown) {
        (0, 0) => CheckResult::Good,
        (0, _) => CheckResult::Incomplete,
        _ => CheckResult::Faulty,
    };
    record.message = match record.result {
        CheckResult::Faulty => Some(format!(
            "{} damaged, {} lost",
            count(report.damage_count, "object"),
            count(report.loss_count, "path")
        )),
        CheckResult::Incomplete => {
            let snapshots = count(record.unknown, "snapshot");
            Some(format!("{snapshots} of a newer version of forgekeep"))
        }
        _ => None,
    };
    record.faulty = faulty.into_iter().collect();
    let damages = report.damages.iter().chain(&report.superseded);
    let segments = damages.clone().filter_map(|damage| damage.object.segment());
    record.damaged_segments = segments.collect::<BTreeSet<_>>().into_iter().copied().collect();
    let records = damages.filter_map(|damage| match damage.object {
        Object::Snapshot(id) => Some(id),
        _ => None,
    });
    record.damaged_records = records.collect();
    Some(record)
}

/// Returns the short ids of snapshots dated in the future, which were made under a wrong clock.
fn future(store: &Store) -> Result<Vec<String>, Failure> {
    // Unreadable records are damage, which the check has already found.
    let (now, readable) = (now(), store.records()?.filter_map(Result::ok));
    let future = readable.take_while(|(_, snapshot)| snapshot.is_from_future(now));
    Ok(future.map(|(id, _)| id.short().to_string()).collect())
}

/// Maximum number of superseded segments that are named.
const NAMED_MAX: usize = 10;

/// Warns about damaged segments that may be removed.
fn superseded(ui: &Ui, report: &Report) {
    for Damage { object, reason } in report.superseded.iter().take(NAMED_MAX) {
        ui.warn(&format!(
            "{object} is damaged: {reason}; nothing is lost, because no snapshot needs it; \
             remove this file while no backup runs"
        ));
    }
    let more = report.superseded.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        ui.warn(&format!("no snapshot needs {more} more damaged segments"));
    }
}

fn show(
    ui: &Ui,
    summary: &CheckSummary<'_>,
    report: &Report,
    read_data: ReadData,
    elapsed: Duration,
) -> Result<(), Failure> {
    for damage in &report.damages {
        ui.json(&DamagedObject { object: &damage.object.to_string(), reason: &damage.reason })?;
        ui.line(format!("damaged: {}: {}", damage.object, damage.reason))?;
    }
    let more = report.damage_count - report.damages.len() as u64;
    if more > 0 {
        ui.line(format!("damaged: and {} more", count(more, "chunk")))?;
    }
    for loss in &report.losses {
        let (snapshot, entries) = (loss.snapshot.to_string(), loss.entries);
        let (path, reason) = (&loss.path, &loss.reason);
        ui.json(&LostPath { snapshot: snapshot.clone(), path, entries, reason })?;
        let path = match entries {
            1 => path.clone(),
            _ => format!("{path} ({})", count(entries, "path")),
        };
        ui.line(format!("lost: {path} in snapshot {}: {reason}", &snapshot[..8]))?;
    }
    if report.losses_unnamed > 0 {
        ui.line(format!("lost: more paths in {} other places", report.losses_unnamed))?;
    }
    ui.json(summary)?;
    let read = match report.segments_read {
        0 if read_data == ReadData::None => "data not read".into(),
        0 => "no segment belongs to this part".into(),
        all if all == report.segments => format!("all {} read", size(report.bytes_read)),
        some => format!(
            "{some} of {} read, {}",
            count(report.segments, "segment"),
            size(report.bytes_read)
        ),
    };
    ui.remark(format!(
        "{}: {}, {}, {}; {read}, in {:.1} s",
        summary.store,
        count(report.snapshots, "snapshot"),
        count(report.segments, "segment"),
        count(report.chunks, "chunk"),
        elapsed.as_secs_f64()
    ))?;
    if report.is_clean() {
        return ui.line("no damage found");
    }
    let rest = if report.snapshots == 0 { "" } else { "; everything else can be restored" };
    ui.line(format!(
        "{} damaged, {} lost{rest}",
        count(report.damage_count, "object"),
        count(report.loss_count, "path")
    ))?;
    let has = |is_such: fn(&Object) -> bool| report.damages.iter().any(|of| is_such(&of.object));
    let is_lost = has(|object| object.segment().is_some()) || report.loss_count > 0;
    if is_lost && summary.recorded {
        ui.remark(match report.loss_count {
            0 => "nothing is lost yet; the next backup stores again what its sources still contain",
            _ => "the next backup repairs lost data that its sources still contain",
        })?;
    }
    if has(|object| matches!(object, Object::Segments | Object::Shard(_))) {
        ui.remark(
            "check the disk and the permissions of segments in the store; a missing file can be \
             copied back from a replica",
        )?;
    }
    let is_of_record = has(|object| matches!(object, Object::Snapshot(_)));
    if is_of_record && summary.recorded {
        ui.remark("the next backup repairs records of which one copy is intact")?;
    }
    if (is_lost || is_of_record) && !summary.recorded {
        ui.remark(
            "run this check as a user who may write to the store: backups repair only damage of which \
             the store has a record",
        )?;
    }
    if has(|object| matches!(object, Object::Index)) {
        ui.remark("the next command rebuilds the index without loss")?;
    }
    Ok(())
}

fn subset(text: &str) -> Option<ReadData> {
    if let Some(share) = text.strip_suffix('%') {
        let share: f64 = share.trim().parse().ok()?;
        let is_share = share > 0.0 && share <= 100.0;
        let per_million = (share * 10_000.0).ceil() as u32;
        let seed = u64::from(now().nanoseconds) ^ now().seconds as u64;
        return is_share.then_some(ReadData::Share { per_million, seed });
    }
    let (n, of) = text.split_once('/')?;
    let (n, of) = (n.trim().parse().ok()?, of.trim().parse().ok()?);
    (1..=of).contains(&n).then_some(ReadData::Part { n, of })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subset_arguments_are_parsed_or_refused() {
        assert_eq!(subset("2/7"), Some(ReadData::Part { n: 2, of: 7 }));
        assert!(matches!(subset("5%"), Some(ReadData::Share { per_million: 50_000, .. })));
        assert!(matches!(subset("0.001%"), Some(ReadData::Share { per_million: 10, .. })));
        for bad in ["", "0/7", "8/7", "1/0", "0%", "101%", "-1%", "5", "a/b", "NaN%"] {
            assert_eq!(subset(bad), None, "{bad}");
        }
    }
}
