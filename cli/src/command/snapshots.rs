use super::Global;
use crate::examination;
use crate::exit::Failure;
use crate::json::SnapshotLine;
use crate::report::{count, local_time, now, size};
use crate::select::{self, ListFilter, Selection};
use crate::ui::Ui;
use clap::Args;
use store::entry::display_path;
use store::snapshot::Instance;

/// List snapshots, newest last
///
/// For a snapshot of an instance, the table shows its kind, its name, and whether it is complete,
/// in place of the paths. --json prints both.
///
/// Tags are shown in brackets: those of the backup, and those that `forgekeep tag` added since.
///
/// The column `checked` shows the day on which `check --read-data` read all data of a snapshot, or a
/// drill passed. It shows `structure` after a check of less, and FAULTY if the newest check or the
/// newest drill found a fault in the snapshot.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep snapshots --tag nightly --instance gitlab")]
pub struct Snapshots {
    #[command(flatten)]
    filter: ListFilter,
}

impl Snapshots {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let (store, watch) = global.open_for(self.filter.only_instance(), ui, "snapshots")?;
        let selected = select::shown_annotations(&store).and_then(|(annotations, is_known)| {
            let selection = select::annotated(&store, &self.filter, &annotations)?;
            Ok((selection, annotations, is_known))
        });
        watch.end();
        let (Selection { snapshots, is_sure }, annotations, is_known) = selected?;
        let judged = examination::judge(&store, ui);
        let place = store.place();
        if !snapshots.is_empty() {
            ui.remark("id        time                 host             size        checked     paths, or the instance")?;
        }
        for (id, snapshot) in &snapshots {
            let statistics = &snapshot.statistics;
            // An instance is identified by its name, not by two dozen paths.
            let what = match &snapshot.instance {
                Some(Instance { kind, name, is_complete }) => {
                    format!(
                        "{kind} {name}, {}",
                        if *is_complete { "complete" } else { "NOT COMPLETE" }
                    )
                }
                None => {
                    let paths = snapshot.paths.iter().map(|path| display_path(path));
                    paths.collect::<Vec<_>>().join(" ")
                }
            };
            let mut notes = String::new();
            let tags = annotations.tags(id, &snapshot.tags);
            if !tags.is_empty() {
                notes += &format!("  [{}]", tags.join(", "));
            }
            let is_pinned = annotations.is_pinned(id);
            if is_pinned {
                notes += "  (pinned)";
            }
            if snapshot.is_from_future(now()) {
                notes += "  (dated in the future)";
            }
            if snapshot.is_emptied() {
                let paths = snapshot.emptied.iter().map(|emptied| display_path(&emptied.path));
                notes += &format!("  (EMPTIED: {})", paths.collect::<Vec<_>>().join(" "));
            }
            let incomplete = snapshot.statistics.metadata_unreadable;
            if incomplete > 0 {
                notes += &format!("  ({} without some metadata)", count(incomplete, "entry"));
            }
            if snapshot.unreadable_count > 0 {
                notes += &format!("  ({} missing)", count(snapshot.unreadable_count, "path"));
            }
            ui.line(format!(
                "{}  {}  {:15}  {:>10}  {:10}  {what}{notes}",
                id.short(),
                local_time(snapshot.start.into()),
                snapshot.host,
                size(statistics.bytes),
                examination::column(judged.get(id)),
            ))?;
            let line = SnapshotLine::of(&place, id, snapshot, judged.get(id));
            ui.json(&SnapshotLine { tags: &tags, is_pinned, ..line })?;
        }
        ui.remark(format!("{} in {place}", count(snapshots.len() as u64, "snapshot")))?;
        select::answered(is_sure && is_known)
    }
}
