use super::Global;
use crate::exit::Failure;
use crate::json::Annotated;
use crate::report::local_time;
use crate::select::{self, ListFilter, Selection};
use crate::selector::Selector;
use crate::ui::Ui;
use clap::Args;
use store::id::SnapshotId;
use store::snapshot::Snapshot;
use store::store::{Purpose, Store};

/// Protect snapshots from `forget`
///
/// No rule deletes a pinned snapshot, and `forgekeep forget SNAPSHOT` refuses it. Pins apply on every
/// machine that uses the store.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep pin gitlab@2026-11-20
  forgekeep unpin gitlab@2026-11-20")]
pub struct Pin {
    #[command(flatten)]
    chosen: Chosen,
}

/// Snapshots to change, named on the command line.
#[derive(Debug, Args)]
pub struct Chosen {
    /// Snapshots (`forgekeep --help` lists all forms)
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,
    #[command(flatten)]
    filter: ListFilter,
}

impl Pin {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let change = |store: &Store, id: &SnapshotId, _: &Snapshot| Ok(store.pin(id)?);
        self.chosen.change(global, ui, "pin", ["pinned", "already pinned"], change, None)
    }
}

/// Changes a snapshot whose record is damaged. Returns true if something changed.
type ChangeDamaged<'a> = &'a dyn Fn(&Store, &SnapshotId) -> Result<bool, Failure>;

impl Chosen {
    /// Changes tags or pins of each snapshot with `change`, which returns true if something changed.
    /// Prints one of two words for each, after the change and without one. `change_damaged` changes
    /// those whose records are damaged; without it, they are errors.
    pub fn change(
        &self,
        global: &Global,
        ui: &Ui,
        command: &'static str,
        [done, unchanged]: [&str; 2],
        change: impl Fn(&Store, &SnapshotId, &Snapshot) -> Result<bool, Failure>,
        change_damaged: Option<ChangeDamaged<'_>>,
    ) -> Result<(), Failure> {
        let wanted = self.snapshots.iter().map(|text| Selector::read(text));
        let wanted: Vec<Selector> = wanted.collect::<Result<_, _>>()?;
        let place = global.place_for(select::instance_of(&wanted, &self.filter))?;
        let (store, watch) = super::open_to_change(&place, ui, Purpose::Write, command)?;
        let work = || -> Result<_, Failure> {
            let (selection, damaged) = match change_damaged {
                Some(_) => select::with_damaged(&store, wanted, &self.filter)?,
                None => (select::some(&store, &wanted, &self.filter)?, Vec::new()),
            };
            let changed = selection.snapshots.iter().map(|(id, of)| change(&store, id, of));
            let changed = changed.collect::<Result<Vec<bool>, _>>()?;
            let of_damaged = |id: &SnapshotId| {
                let changed = change_damaged.map_or(Ok(false), |change| change(&store, id))?;
                Ok::<_, Failure>((*id, changed))
            };
            let damaged = damaged.iter().map(of_damaged).collect::<Result<Vec<_>, _>>()?;
            Ok((selection, changed, damaged))
        };
        let (Selection { snapshots, is_sure }, changed, damaged) =
            work().inspect_err(|_| watch.end())?;
        let annotations = select::shown_annotations(&store);
        watch.end();
        let ((annotations, is_known), place) = (annotations?, store.place());
        for ((id, snapshot), changed) in snapshots.iter().zip(changed) {
            let tags = annotations.tags(id, &snapshot.tags);
            let is_pinned = annotations.is_pinned(id);
            let word = if changed { done } else { unchanged };
            let time = local_time(snapshot.start.into());
            let mut line = format!("{word}: {} of {time}", id.short());
            if !tags.is_empty() {
                line += &format!("  [{}]", tags.join(", "));
            }
            ui.line(line)?;
            let id = id.to_string();
            ui.json(&Annotated { store: &place, id, changed, is_pinned, tags: &tags })?;
        }
        for (id, changed) in damaged {
            let word = if changed { done } else { unchanged };
            ui.line(format!("{word}: {}, whose record is damaged", id.short()))?;
            let (is_pinned, id) = (annotations.is_pinned(&id), id.to_string());
            ui.json(&Annotated { store: &place, id, changed, is_pinned, tags: &[] })?;
        }
        select::answered(is_sure && is_known)
    }
}
