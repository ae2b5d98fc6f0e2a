//! Check that the keys still decrypt the contents of the databases.

use super::Session;
use crate::check::{Check, Verdict};
use crate::error::Result;
use crate::kind::Kind;
use crate::manifest::Manifest;
use crate::plan::Plan;
use crate::service::Password;
use crate::settings::ChangedKeys;
use crate::view::View;
use store::id::SnapshotId;
use store::observe::Event;
use store::snapshot::Snapshot;
use store::store::Store;

/// Name of the check.
const KEYS: &str = "keys";

impl Session<'_> {
    /// Compares the keys with those of an earlier snapshot. A new key cannot decrypt older
    /// contents, so every backup warns until the settings accept the change.
    pub(super) fn check_keys(&self, view: &View<'_>) -> Result<Option<Check>> {
        let (plan, store) = (self.job.plan, self.job.store);
        let changes = Changes { plan, kind: self.job.kind, store };
        let check = changes.check(self.complete_ones()?, view)?;
        if check.is_none() && plan.changed_keys == ChangedKeys::Ok {
            let text = "`keys.changed = \"ok\"` would accept the next change as well; remove it";
            store.observer().event(Event::Note(text.into()));
        }
        Ok(check)
    }
}

/// Compares the keys of this machine with those of complete snapshots, oldest first; `None` if they
/// are the same, or if there is no snapshot.
pub fn changed_keys(
    plan: &Plan,
    kind: &'static dyn Kind,
    store: &Store,
    snapshots: Vec<(SnapshotId, Snapshot)>,
) -> Result<Option<Check>> {
    Changes { plan, kind, store }.check(snapshots, &View::machine(&plan.mounts))
}

/// Describes the loss of keys of one name; `None` if all old ones are still there.
fn change(name: &str, old: &[Password], new: &[Password]) -> Option<String> {
    let lost = old.iter().filter(|key| !new.contains(key)).count();
    match (lost, old.len(), new.len()) {
        (0, ..) => None,
        (_, 1, 1) => Some(name.to_owned()),
        (lost, count, _) => Some(format!("{name} ({lost} of {count} keys removed)")),
    }
}

/// Everything that a comparison of keys with those of snapshots needs.
struct Changes<'a> {
    plan: &'a Plan,
    kind: &'static dyn Kind,
    store: &'a Store,
}

impl Changes<'_> {
    /// Compares the keys of a copy with those of complete snapshots, oldest first.
    fn check(
        &self,
        snapshots: Vec<(SnapshotId, Snapshot)>,
        view: &View<'_>,
    ) -> Result<Option<Check>> {
        let plan = self.plan;
        let Some((id, snapshot)) = self.measure(snapshots) else { return Ok(None) };
        let before = View::Tree { store: self.store, root: snapshot.root.chunk() };
        let before = View::Through { view: &before, mounts: &plan.mounts };
        // A snapshot that cannot be read does not cost the next one.
        let Ok(before) = self.kind.keys(plan, &before) else { return Ok(None) };
        let now = self.kind.keys(plan, view)?;
        // Without any key, the file is missing or damaged, which another check reports.
        let changed: Vec<String> = before
            .iter()
            .filter_map(|(name, old)| match now.get(name) {
                Some(new) => change(name, old, new),
                None if now.is_empty() => None,
                None => Some(format!("{name} (removed)")),
            })
            .collect();
        if changed.is_empty() {
            return Ok(None);
        }
        let changed = changed.join(", ");
        if plan.changed_keys == ChangedKeys::Ok {
            let text =
                format!("{changed} changed since snapshot {}; the change is accepted", id.short());
            return Ok(Some(Check::ok(KEYS, text)));
        }
        let text = format!(
            "{changed} changed since snapshot {}; the new keys cannot decrypt values that the \
             database encrypted before",
            id.short()
        );
        let hint = format!(
            "if the change was a mistake, restore the old file from snapshot {} before the new \
             keys encrypt anything; otherwise set `keys.changed = \"ok\"` for one backup",
            id.short()
        );
        Ok(Some(Check::new(KEYS, Verdict::Warning, text).with_hint(hint)))
    }

    /// The newest of which nobody was warned that its keys changed, or else the oldest.
    fn measure(&self, mut all: Vec<(SnapshotId, Snapshot)>) -> Option<(SnapshotId, Snapshot)> {
        let newest = all.iter().rposition(|(_, snapshot)| !self.has_changed_keys(snapshot));
        let at = newest.unwrap_or(0);
        (at < all.len()).then(|| all.swap_remove(at))
    }

    /// Returns true if a snapshot has a warning about keys. An unreadable snapshot counts as having
    /// none.
    fn has_changed_keys(&self, snapshot: &Snapshot) -> bool {
        let tree = View::Tree { store: self.store, root: snapshot.root.chunk() };
        let manifest = Manifest::in_tree(&tree).ok().flatten();
        let checks = manifest.map(|manifest| manifest.checks).unwrap_or_default();
        checks.iter().any(|check| check.name == KEYS && check.verdict == Verdict::Warning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_vanished_are_changes() {
        let keys = |text: &str| -> Vec<Password> {
            text.split(',').map(|key| Password(key.to_owned())).collect()
        };
        for (old, new, expected) in [
            ("a", "a", None),
            ("a", "a,b", None),
            ("a", "b,a", None),
            ("a,b", "b,c,a", None),
            ("a", "b", Some("key")),
            ("a,b", "a", Some("key (1 of 2 keys removed)")),
            ("a,b", "b,c", Some("key (1 of 2 keys removed)")),
            ("a", "b,c", Some("key (1 of 1 keys removed)")),
        ] {
            let found = change("key", &keys(old), &keys(new));
            assert_eq!(found.as_deref(), expected, "{old} to {new}");
        }
    }
}
