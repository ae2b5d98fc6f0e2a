use super::Global;
use crate::exit::Failure;
use crate::json::{Changed, DiffSummary, PathFields};
use crate::report::{self, size};
use crate::select::{self, Filter};
use crate::selector::Selector;
use crate::ui::Ui;
use clap::Args;
use store::diff::{Change, has_same_content};
use store::entry::display_path;

/// Show the differences between two snapshots
///
/// + added, - removed, M content changed, U only metadata changed.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep diff gitlab@latest~1 gitlab@latest")]
pub struct Diff {
    /// Older snapshot (`forgekeep --help` lists all forms)
    #[arg(value_name = "SNAPSHOT")]
    first: String,
    /// Newer snapshot
    #[arg(value_name = "SNAPSHOT")]
    second: String,
    #[command(flatten)]
    filter: Filter,
}

impl Diff {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let selectors = [Selector::read(&self.first)?, Selector::read(&self.second)?];
        let instance = selectors.iter().find_map(|selector| selector.instance.as_deref());
        let (store, watch) = global.open_for(instance, ui, "diff")?;
        watch.hush();
        let [first, second] = select::find_both(&store, &selectors, &self.filter)?;
        let is_sure = first.is_sure && second.is_sure;
        let ids = [first.id, second.id];
        let [first, second] = [first.snapshot, second.snapshot];
        let (mut counts, mut bytes) = ([0u64; 4], [0u64; 2]);
        let mut lost_parts = 0u64;
        let is_over = || store.observer().progress().check().is_err();
        store::diff::diff(
            &store,
            &first.root.chunk(),
            &second.root.chunk(),
            &|a, b| has_same_content(a, b, &store, &is_over),
            &mut |met| -> Result<(), Failure> {
                store.observer().progress().check()?;
                let change = match met {
                    Ok(change) => change,
                    Err(lost) => {
                        lost_parts += 1;
                        ui.warn(&format!("cannot compare {}: {}", lost.span, lost.error));
                        return Ok(());
                    }
                };
                let (kind, sign, entry) = match &change {
                    Change::Added(entry) => (0, "+", entry),
                    Change::Removed(entry) => (1, "-", entry),
                    Change::Modified(_, entry) => (2, "M", entry),
                    Change::Metadata(_, entry) => (3, "U", entry),
                };
                counts[kind] += 1;
                match &change {
                    Change::Added(entry) => bytes[0] = bytes[0].saturating_add(entry.size),
                    Change::Removed(entry) => bytes[1] = bytes[1].saturating_add(entry.size),
                    Change::Modified(old, new) => {
                        bytes[0] = bytes[0].saturating_add(new.size);
                        bytes[1] = bytes[1].saturating_add(old.size);
                    }
                    Change::Metadata(..) => {}
                }
                let line = Changed { modifier: sign, path: PathFields::of_tree(&entry.path) };
                ui.json(&line)?;
                ui.line(format!("{sign} /{}", display_path(&entry.path)))
            },
        )?;
        let [added, removed, modified, metadata] = counts;
        ui.json(&DiffSummary {
            store: store.place(),
            first_snapshot: ids[0].to_string(),
            second_snapshot: ids[1].to_string(),
            added,
            removed,
            changed: modified,
            metadata_changed: metadata,
            bytes_added: bytes[0],
            bytes_removed: bytes[1],
            second: (&second.statistics).into(),
        })?;
        let [before, after] = ids.map(|id| id.short());
        ui.remark(format!("snapshots {before} and {after} in {}", store.place()))?;
        ui.remark(format!(
            "{added} added, {removed} removed, {modified} changed, {metadata} with changed \
             metadata; {} added, {} removed",
            size(bytes[0]),
            size(bytes[1])
        ))?;
        if let Some(saved) = report::reuse(&second.statistics) {
            ui.remark(format!("backup of the second snapshot: {saved}"))?;
        }
        select::answered(is_sure && lost_parts == 0)
    }
}
