use super::Global;
use crate::exit::Failure;
use crate::json::{FindSummary, Match, Node};
use crate::report::{count, local_time, size, utc_time};
use crate::select::{self, ListFilter, Selection};
use crate::selector::Selector;
use crate::ui::Ui;
use clap::Args;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use store::diff::has_same_content;
use store::entry::{Entry, display_path};
use store::find::{Found, Trees, Version};
use store::glob::Globs;
use store::id::SnapshotId;
use store::snapshot::Snapshot;
use store::tree::Lost;

/// Find which snapshots contain a path
///
/// A pattern without / matches a name at any depth. A pattern with / matches the end of a path, or
/// the whole path if it begins with /. A line is printed for each version of a path, with the first
/// and the last of the consecutive snapshots that contain it. Snapshots are consecutive among those
/// of the same instance, or of the same machine and source paths.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep find 'gitlab-secrets.json'
  forgekeep find --instance gitlab '/var/opt/gitlab/**/d4735e3a*.git'
  forgekeep find --snapshot gitlab@2026-11-20 '*.sql'")]
pub struct Find {
    /// Pattern of names or paths
    #[arg(value_name = "GLOB", required = true)]
    patterns: Vec<OsString>,
    /// Only this snapshot (can be repeated; `forgekeep --help` lists all forms)
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Vec<String>,
    #[command(flatten)]
    filter: ListFilter,
}

impl Find {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let globs = Globs::new(self.patterns.iter().map(|pattern| pattern.as_bytes()))?;
        let wanted = self.snapshot.iter().map(|text| Selector::read(text));
        let wanted: Vec<Selector> = wanted.collect::<Result<_, _>>()?;
        let instance = select::instance_of(&wanted, &self.filter);
        let (store, watch) = global.open_for(instance, ui, "find")?;
        let Selection { snapshots, is_sure } = select::some(&store, &wanted, &self.filter)?;
        let series = Series::of(snapshots);
        let (mut paths, mut lost_parts) = (0, 0u64);
        let trees = series.0.iter().map(|(number, _, snapshot)| (*number, snapshot.root.chunk()));
        let is_over = || store.observer().progress().check().is_err();
        let is_same = |a: &Entry, b: &Entry| has_same_content(a, b, &store, &is_over);
        store::find::find(&store, trees, &globs, &is_same, &mut |found| {
            store.observer().progress().check()?;
            match found {
                Found::Lost(lost, trees) => {
                    lost_parts += 1;
                    ui.warn(&series.warning(&lost, &trees));
                    Ok(())
                }
                Found::Path(versions) => {
                    // Signals still work while the result is printed.
                    watch.hush();
                    paths += 1;
                    ui.line(format!("/{}", display_path(&versions[0].entry.path)))?;
                    versions.iter().try_for_each(|version| series.print(version, ui))
                }
            }
        })?;
        let snapshots = series.0.len();
        ui.json(&FindSummary { store: store.place(), paths, snapshots })?;
        let of = count(snapshots as u64, "snapshot");
        let (paths, place) = (count(paths as u64, "path"), store.place());
        ui.remark(format!("{paths} in {of} of {place}"))?;
        watch.end();
        select::answered(is_sure && lost_parts == 0)
    }
}

/// Snapshots with numbers: consecutive within a series of the same source, oldest first, with a gap
/// between two series.
struct Series(Vec<(u32, SnapshotId, Snapshot)>);

impl Series {
    /// Numbers snapshots, which are given oldest first.
    fn of(snapshots: Vec<(SnapshotId, Snapshot)>) -> Series {
        let mut sources: BTreeMap<_, Vec<(SnapshotId, Snapshot)>> = BTreeMap::new();
        for named in snapshots {
            sources.entry(source(&named.1)).or_default().push(named);
        }
        let (mut next, mut series) = (0, Vec::new());
        for of_one in sources.into_values() {
            for (number, (id, snapshot)) in (next..).zip(of_one) {
                series.push((number, id, snapshot));
                // The next series begins after a gap.
                next = number + 2;
            }
        }
        Series(series)
    }

    fn get(&self, number: u32) -> (&SnapshotId, &Snapshot) {
        let at = self.0.binary_search_by_key(&number, |(number, ..)| *number);
        let (_, id, snapshot) = &self.0[at.expect("a number of the series")];
        (id, snapshot)
    }

    fn print(&self, version: &Version, ui: &Ui) -> Result<(), Failure> {
        let Version { entry, first, last } = version;
        let ((first_id, first_snapshot), (last_id, last_snapshot)) =
            (self.get(*first), self.get(*last));
        let snapshots = last - first + 1;
        let time = |snapshot: &Snapshot| local_time(snapshot.start.into());
        let mut of = format!("{}  {}", first_id.short(), time(first_snapshot));
        if snapshots > 1 {
            of += &format!(" to {}  {}", last_id.short(), time(last_snapshot));
        }
        let mtime = entry.mtime.map_or_else(|| "-".into(), local_time);
        let (of_snapshots, bytes) = (count(snapshots.into(), "snapshot"), size(entry.size));
        ui.line(format!("  {of}  {of_snapshots}  {bytes:>10}  modified {mtime}"))?;
        ui.json(&Match {
            node: Node::from(entry),
            snapshot: first_id.to_string(),
            snapshot_time: utc_time(first_snapshot.start.into()),
            last_snapshot: last_id.to_string(),
            last_snapshot_time: utc_time(last_snapshot.start.into()),
            snapshots,
        })
    }

    fn warning(&self, lost: &Lost, trees: &Trees) -> String {
        let (first, last, number) = trees.span();
        let (first, last) = (self.get(first).0.short(), self.get(last).0.short());
        let snapshots = match number {
            1 => format!("snapshot {first}"),
            number => format!("{} from {first} to {last}", count(number.into(), "snapshot")),
        };
        format!("cannot search {} in {snapshots}: {}", lost.span, lost.error)
    }
}

/// Returns what the snapshots of a series have in common: the instance, or else the machine and
/// source paths.
fn source(snapshot: &Snapshot) -> (Option<String>, String, Vec<Vec<u8>>) {
    match &snapshot.instance {
        Some(instance) => (Some(instance.name.clone()), String::new(), Vec::new()),
        None => {
            let paths = snapshot.paths.iter().map(|path| path.to_vec()).collect();
            (None, snapshot.host.clone(), paths)
        }
    }
}
