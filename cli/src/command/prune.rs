use super::Global;
use super::instance;
use crate::exit::Failure;
use crate::json::PruneSummary;
use crate::report::{count, now, size};
use crate::select;
use crate::ui::Ui;
use clap::Args;
use std::time::Duration;
use store::prune::{PruneOptions, PruneReport, prune};
use store::store::Purpose;

/// Delete data that no snapshot needs
///
/// Run it after `forgekeep forget`, and from time to time after killed backups. It deletes the segments
/// without any chunk that a snapshot needs. From those with little use, and from small ones if they are
/// many, it copies the needed chunks into new segments first. Backups, restores, checks and other prunes may run at the
/// same time, on this and on other machines; the prune waits for the backups that began before it.
///
/// If a backup still runs after --wait, nothing is deleted, and the exit code is 3. A prune that was
/// killed lost nothing: the next one goes on.
///
/// It deletes nothing if a snapshot, or a part of its tree, cannot be read.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep prune --dry-run
  forgekeep forget && forgekeep prune --wait 2h")]
pub struct Prune {
    /// Print the plan, and delete nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Wait this long for running backups, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    wait: Duration,
    /// Copy at most this many bytes out of partly needed segments, such as 500M or 20G
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    max_repack_size: Option<u64>,
    /// State that only this machine writes to the store. Needed on network and FUSE file systems, whose
    /// listings may be stale
    #[arg(long)]
    only_this_machine: bool,
}

impl Prune {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let purpose = if self.dry_run { Purpose::Read } else { Purpose::Delete };
        let (store, watch) = super::open_to_change(&global.place()?, ui, purpose, "prune")?;
        let options = PruneOptions {
            is_dry: self.dry_run,
            repack_bytes_max: self.max_repack_size.unwrap_or(u64::MAX),
            wait: self.wait,
            now: now(),
            host: instance::host(),
            program: env!("CARGO_PKG_VERSION").into(),
            is_only_host: self.only_this_machine,
        };
        let mut failed = None;
        let done = prune(&store, &options, &mut |report| {
            failed = self.print_plan(report, &store.place(), ui).err();
        });
        let report = done.inspect_err(|_| watch.end())?;
        watch.hush();
        let printed =
            failed.map_or(Ok(()), Err).and_then(|()| self.print(&report, &store.place(), ui));
        watch.end();
        printed?;
        select::answered(!report.is_postponed() && report.undeletable == 0)
    }

    fn print_plan(&self, report: &PruneReport, place: &str, ui: &Ui) -> Result<(), Failure> {
        let PruneReport { all, planned, rewritten, moved_bytes, snapshots, .. } = report;
        ui.remark(format!(
            "plan for {place}: {} with {} in {}",
            count(*snapshots, "snapshot"),
            size(all.bytes),
            count(all.segments, "segment"),
        ))?;
        ui.remark(format!(
            "delete   {}, {}",
            count(planned.segments, "segment"),
            size(planned.bytes)
        ))?;
        ui.remark(format!(
            "rewrite  {}, {}: {} are copied",
            count(rewritten.segments, "segment"),
            size(rewritten.bytes),
            size(*moved_bytes),
        ))
    }

    fn print(&self, report: &PruneReport, place: &str, ui: &Ui) -> Result<(), Failure> {
        ui.json(&PruneSummary {
            store: place,
            dry_run: self.dry_run,
            postponed: report.is_postponed(),
            waited_for: &report.waited_for,
            snapshots: report.snapshots,
            segments: report.all,
            planned: report.planned,
            rewritten: report.rewritten,
            moved_bytes: report.moved_bytes,
            deleted: report.deleted,
            left_bytes: report.left_bytes,
            undeletable: report.undeletable,
        })?;
        if report.is_postponed() {
            ui.warn(&format!(
                "postponed: backups still run on {}; nothing was deleted; run it again, or with a \
                 longer --wait",
                report.waited_for.join(", ")
            ));
            return Ok(());
        }
        let PruneReport { planned, rewritten, deleted, .. } = report;
        let all = planned.bytes + rewritten.bytes;
        let (what, segments, bytes) = match self.dry_run {
            true => ("would free", planned.segments + rewritten.segments, all),
            false => ("freed", deleted.segments, deleted.bytes),
        };
        ui.line(format!(
            "{what} {} of {place}: {} deleted",
            size(bytes.saturating_sub(report.moved_bytes)),
            count(segments, "segment"),
        ))?;
        if report.left_bytes > 0 {
            ui.remark(format!(
                "{} without use stay in segments that snapshots need",
                size(report.left_bytes)
            ))?;
        }
        Ok(())
    }
}

/// Reads a time such as `90s`, `10m` or `2h`.
fn time(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(['s', 'm', 'h']);
    let seconds = match &text[number.len()..] {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds = seconds.and_then(|unit| number.parse::<u32>().ok()?.checked_mul(unit));
    let seconds = seconds.ok_or("give a number with s, m or h, such as 10m")?;
    Ok(Duration::from_secs(seconds.into()))
}

/// Reads a size such as `500M` or `20G`, in powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let shift = match &text[number.len()..] {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes.ok_or_else(|| "give a number with K, M, G or T, such as 500M".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, size) in [("0", 0), ("7", 7), ("2K", 2048), ("500M", 500 << 20), ("1T", 1 << 40)]
        {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "5MB", "5 M", "99999999999T"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("2h", 7200), ("0s", 0)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "10", "m", "1.5h", "-1s", "10 m", "10ms", "9999999h"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
