use super::Global;
use crate::examination;
use crate::exit::Failure;
use crate::json;
use crate::report::{self, count, size};
use crate::select::{self, ListFilter, Selection};
use crate::ui::Ui;
use clap::Args;
use std::time::Duration;
use store::check_record::Standing;
use store::prune::{PruneOptions, prune};
use store::segment::SegmentKind;
use store::snapshot::Statistics;
use store::store::Store;

/// Show sizes and the savings by deduplication and compression
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep stats")]
pub struct Stats {
    #[command(flatten)]
    filter: ListFilter,
}

impl Stats {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let (store, watch) = global.open_for(self.filter.only_instance(), ui, "stats")?;
        let Selection { snapshots, is_sure } = select::snapshots(&store, &self.filter)?;
        let totals = [
            store.index().totals(SegmentKind::Data)?,
            store.index().totals(SegmentKind::Metadata)?,
        ];
        // The space that only the selected snapshots use is unknown.
        let garbage = if self.filter.is_empty() { garbage(&store, ui) } else { None };
        watch.end();
        let judged = examination::judge(&store, ui);
        let is_checked = |id| judged.get(id).is_some_and(|of| of.standing == Standing::Checked);
        let checked = snapshots.iter().filter(|(id, _)| is_checked(id)).count();
        let sizes = snapshots.iter().map(|(_, snapshot)| snapshot.statistics.bytes);
        // Sparse files can have any size.
        let restored = sizes.fold(0, u64::saturating_add);
        let mut reuse = Statistics::default();
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        for (_, snapshot) in &snapshots {
            let of = &snapshot.statistics;
            add(&mut reuse.bytes_read, of.bytes_read);
            add(&mut reuse.found_by_chunk, of.found_by_chunk);
            add(&mut reuse.found_by_extent, of.found_by_extent);
            add(&mut reuse.copied_forward, of.copied_forward);
            add(&mut reuse.added_stored_bytes, of.added_stored_bytes);
        }
        let [data, metadata] = totals;
        let stored = data.segment_bytes + metadata.segment_bytes;
        ui.json(&json::Stats {
            store: store.place(),
            snapshots_count: snapshots.len(),
            snapshots_checked: checked,
            total_restore_size: restored,
            total_size: stored,
            total_uncompressed_size: data.plain_bytes + metadata.plain_bytes,
            total_blob_count: data.chunks + metadata.chunks,
            garbage_bytes: garbage,
            backups: (&reuse).into(),
            data,
            metadata,
        })?;
        ui.line(format!("store         {}", store.place()))?;
        ui.line(format!("snapshots     {}", snapshots.len()))?;
        let all = count(snapshots.len() as u64, "snapshot");
        ui.line(format!("checked       {checked} of {all}"))?;
        ui.line(format!("restored      {} for all snapshots", size(restored)))?;
        for (name, totals) in [("data    ", data), ("metadata", metadata)] {
            ui.line(format!(
                "{name}      {} in {}, stored as {} in {}",
                size(totals.plain_bytes),
                count(totals.chunks, "chunk"),
                size(totals.segment_bytes),
                count(totals.segments, "segment")
            ))?;
        }
        if let Some(garbage) = garbage.filter(|garbage| *garbage > 0) {
            ui.line(format!(
                "garbage       {} that no snapshot needs (see `prune`)",
                size(garbage)
            ))?;
        }
        if let Some(saved) = report::reuse(&reuse) {
            ui.line(format!("backups       {saved}"))?;
        }
        // The space that only the selected snapshots use is unknown.
        if self.filter.is_empty() && restored > 0 {
            ui.line(format!(
                "saved         {}",
                saved(restored, data.plain_bytes + metadata.plain_bytes, stored)
            ))?;
        }
        select::answered(is_sure && !store.has_unlisted_segments())
    }
}

/// Returns the bytes of chunks that no snapshot needs; `None`, with a warning, if that is unknown.
fn garbage(store: &Store, ui: &Ui) -> Option<u64> {
    let options = PruneOptions {
        is_dry: true,
        repack_bytes_max: 0,
        wait: Duration::ZERO,
        now: report::now(),
        host: String::new(),
        program: String::new(),
        is_only_host: true,
    };
    match prune(store, &options, &mut |_| {}) {
        Ok(report) => Some(report.planned.bytes + report.left_bytes),
        // Only killed backups wrote to it.
        Err(store::Error::NoSnapshots(_)) => None,
        Err(error) => {
            ui.warn(&format!("the space that no snapshot needs is unknown: {error}"));
            None
        }
    }
}

/// Describes the savings of a store. Takes bytes of files in all snapshots, plain bytes of distinct
/// chunks, and bytes on disk.
fn saved(restored: u64, plain: u64, stored: u64) -> String {
    if stored >= restored {
        return format!(
            "nothing yet: files of {} take {} with their metadata",
            size(restored),
            size(stored)
        );
    }
    let ratio = |a: u64, b: u64| a as f64 / b.max(1) as f64;
    format!(
        "{:.1} %: {} take {} ({:.1} x by deduplication, {:.1} x by compression)",
        100.0 - 100.0 * ratio(stored, restored),
        size(restored),
        size(stored),
        ratio(restored, plain),
        ratio(plain, stored)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn savings_are_shown_for_ordinary_and_extreme_sizes() {
        assert_eq!(saved(10, 20, 30), "nothing yet: files of 10 B take 30 B with their metadata");
        assert_eq!(
            saved(4000, 2000, 1000),
            "75.0 %: 3.9 KiB take 1000 B (2.0 x by deduplication, 2.0 x by compression)"
        );
        assert!(saved(1, 0, 0).starts_with("100.0 %"));
    }
}
