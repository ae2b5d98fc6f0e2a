//! Whether the keys that decrypt the databases are still those that encrypted them.

use super::{DIR, Session};
use crate::check::{Check, Verdict};
use crate::copy::Copy;
use crate::error::Result;
use crate::settings::ChangedKeys;
use std::path::Path;
use store::id::SnapshotId;
use store::observe::Event;
use store::snapshot::Snapshot;

/// Name of the check.
const KEYS: &str = "keys";

impl Session<'_> {
    /// Keys that are others than before do not open what was encrypted until then. That is a
    /// warning every night, until the settings accept it.
    pub(super) fn check_keys(&self, copy: &Copy<'_>) -> Result<Option<Check>> {
        let (job, plan) = (self.job, self.job.plan);
        let Some((id, snapshot)) = self.measure_of_keys()? else { return Ok(None) };
        let before = Copy::Tree { store: job.store, root: snapshot.root.chunk() };
        let before = Copy::Through { copy: &before, mounts: &plan.mounts };
        // A snapshot that cannot be read does not cost the next one.
        let Ok(before) = job.kind.keys(plan, &before) else { return Ok(None) };
        let now = job.kind.keys(plan, copy)?;
        let is_other = |name: &&str| now.get(*name).is_some_and(|key| *key != before[*name]);
        let changed: Vec<&str> = before.keys().copied().filter(is_other).collect();
        let is_accepted = plan.changed_keys == ChangedKeys::Ok;
        if changed.is_empty() {
            if is_accepted {
                let text =
                    "`keys.changed = \"ok\"` would accept the next change as well; remove it";
                job.store.observer().event(Event::Note(text.into()));
            }
            return Ok(None);
        }
        let changed = changed.join(", ");
        if is_accepted {
            let text =
                format!("{changed} changed since snapshot {}, which is accepted", id.short());
            return Ok(Some(Check::ok(KEYS, text)));
        }
        let text = format!(
            "{changed} changed since snapshot {}; what the database encrypted until then cannot be \
             read with the new ones",
            id.short()
        );
        let hint = format!(
            "if nobody did that on purpose, take the old file out of snapshot {}, before anything \
             is encrypted with the new keys; otherwise set `keys.changed = \"ok\"` for one backup",
            id.short()
        );
        Ok(Some(Check::new(KEYS, Verdict::Warning, text).with_hint(hint)))
    }

    /// The newest complete snapshot of which nobody was warned that its keys changed; without one,
    /// the oldest complete one.
    fn measure_of_keys(&self) -> Result<Option<(SnapshotId, Snapshot)>> {
        let mut all = self.complete_ones()?;
        let newest = all.iter().rposition(|(_, snapshot)| !self.has_changed_keys(snapshot));
        let at = newest.unwrap_or(0);
        Ok((at < all.len()).then(|| all.swap_remove(at)))
    }

    /// Whether a snapshot has a warning about its keys. One that cannot be read has none.
    fn has_changed_keys(&self, snapshot: &Snapshot) -> bool {
        let tree = Copy::Tree { store: self.job.store, root: snapshot.root.chunk() };
        let facts = tree.file(&Path::new("/").join(DIR).join("instance.json")).ok().flatten();
        let content = facts.and_then(|seen| seen.content).unwrap_or_default();
        let facts: serde_json::Value = serde_json::from_slice(&content).unwrap_or_default();
        let checks = facts["checks"].as_array().into_iter().flatten();
        checks.into_iter().any(|check| check["name"] == KEYS && check["verdict"] == "warning")
    }
}
