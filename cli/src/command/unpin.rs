use super::Global;
use super::pin::Chosen;
use crate::exit::Failure;
use crate::ui::Ui;
use clap::Args;
use store::id::SnapshotId;
use store::snapshot::Snapshot;
use store::store::Store;

/// Remove the pins of snapshots
///
/// Rules of `forgekeep forget` then decide about these snapshots again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep unpin gitlab@2026-11-20")]
pub struct Unpin {
    #[command(flatten)]
    chosen: Chosen,
}

impl Unpin {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let change = |store: &Store, id: &SnapshotId, _: &Snapshot| Ok(store.unpin(id)?);
        // A pin must not keep a snapshot for ever that nobody can restore.
        let damaged = |store: &Store, id: &SnapshotId| Ok(store.unpin(id)?);
        let words = ["unpinned", "not pinned"];
        self.chosen.change(global, ui, "unpin", words, change, Some(&damaged))
    }
}
