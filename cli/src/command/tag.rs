use super::Global;
use super::pin::Chosen;
use crate::exit::{Failure, usage};
use crate::select::word;
use crate::ui::Ui;
use clap::Args;
use store::id::SnapshotId;
use store::snapshot::Snapshot;
use store::store::Store;

/// Add and remove tags of snapshots
///
/// Tags choose snapshots (--tag) and keep them from deletion (`forgekeep forget --keep-tag`). The
/// record of a snapshot stays as it is: each change is a small file of its own. If two machines add and
/// remove a tag at the same time, the snapshot has the tag.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep tag gitlab@2026-11-20 --add before-upgrade
  forgekeep tag 3f2a0b12 4a11c7d0 --add yearly --remove nightly")]
pub struct Tag {
    /// Tag to add (can be repeated)
    #[arg(long, value_name = "TAG", value_parser = word, required_unless_present = "remove")]
    add: Vec<String>,
    /// Tag to remove (can be repeated)
    #[arg(long, value_name = "TAG")]
    remove: Vec<String>,
    #[command(flatten)]
    chosen: Chosen,
}

impl Tag {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        if let Some(both) = self.add.iter().find(|tag| self.remove.contains(tag)) {
            let message = format!("tag {both} is added and removed");
            return Err(usage(message, "omit one of them"));
        }
        let change = |store: &Store, id: &SnapshotId, snapshot: &Snapshot| {
            let mut has_changed = false;
            for tag in &self.remove {
                has_changed |= store.remove_tag(id, &snapshot.tags, tag)?;
            }
            for tag in &self.add {
                has_changed |= store.add_tag(id, &snapshot.tags, tag)?;
            }
            Ok(has_changed)
        };
        self.chosen.change(global, ui, "tag", ["changed", "unchanged"], change, None)
    }
}
