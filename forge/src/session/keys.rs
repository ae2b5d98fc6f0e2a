//! Check that the keys still decrypt the contents of the databases.

use super::Session;
use crate::check::{Check, Verdict};
use crate::encrypted::{Encrypted, Keys, Trial, known_name};
use crate::error::Result;
use crate::kind::Kind;
use crate::manifest::Manifest;
use crate::plan::Plan;
use crate::service::Password;
use crate::settings::ChangedKeys;
use crate::view::View;
use serde_json::Value;
use std::collections::BTreeMap;
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
        let encrypted = &self.catalogue.encrypted;
        let changes = Changes { plan, kind: self.job.kind, store, encrypted };
        let check = changes.check(self.complete_ones()?, view)?;
        if check.is_none() && plan.changed_keys == ChangedKeys::Ok {
            let text = "`keys.changed = \"ok\"` would accept the next change as well; remove it";
            store.observer().event(Event::Note(text.into()));
        }
        Ok(check)
    }
}

/// Compares the keys of this machine with those of complete snapshots, oldest first; `None` if they
/// are the same, or if there is no snapshot. Tries changed keys on encrypted values.
pub fn changed_keys(
    plan: &Plan,
    kind: &'static dyn Kind,
    store: &Store,
    encrypted: &[Encrypted],
    snapshots: Vec<(SnapshotId, Snapshot)>,
) -> Result<Option<Check>> {
    Changes { plan, kind, store, encrypted }.check(snapshots, &View::machine(&plan.mounts))
}

/// Result of trying keys that changed.
const DECRYPTS: &str = "the keys of today decrypt all values that were tried with them";

/// Joins the descriptions of changes.
fn joined(changes: &[(&str, &Vec<Password>, String)]) -> String {
    changes.iter().map(|(.., text)| text.as_str()).collect::<Vec<_>>().join(", ")
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

/// Tries keys on encrypted values.
fn attempt(keys: &BTreeMap<&'static str, Vec<Password>>, values: &[Encrypted]) -> Trial {
    let list = |all: &[Password]| all.iter().map(|Password(key)| Value::from(&**key)).collect();
    let named = keys.iter().filter_map(|(name, all)| Some((known_name(name)?.into(), list(all))));
    Keys::of(&Value::Object(named.collect())).attempt(values)
}

/// Everything that a comparison of keys with those of snapshots needs.
struct Changes<'a> {
    plan: &'a Plan,
    kind: &'static dyn Kind,
    store: &'a Store,
    /// Some encrypted values of the databases.
    encrypted: &'a [Encrypted],
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
        let changes = before.iter().filter_map(|(name, old)| {
            let text = match now.get(name) {
                Some(new) => change(name, old, new)?,
                None if now.is_empty() => return None,
                None => format!("{name} (removed)"),
            };
            Some((*name, old, text))
        });
        let changes: Vec<(&str, &Vec<Password>, String)> = changes.collect();
        if changes.is_empty() {
            return Ok(None);
        }
        if plan.changed_keys == ChangedKeys::Ok {
            let text = format!(
                "{} changed since snapshot {}; the change is accepted",
                joined(&changes),
                id.short()
            );
            return Ok(Some(Check::ok(KEYS, text)));
        }
        // The keys of the snapshot may have been wrong, and the right ones are back. After a part of
        // a list is gone, the values that were tried say nothing about others.
        let trial = attempt(&now, self.encrypted);
        let is_proven = |(name, old, _): &(&str, &Vec<Password>, String)| {
            let is_replaced =
                now.get(name).is_some_and(|new| old.iter().all(|key| !new.contains(key)));
            is_replaced && known_name(name).is_some_and(|name| trial.has_proved(name))
        };
        let (proven, changes): (Vec<_>, Vec<_>) = changes.into_iter().partition(is_proven);
        if changes.is_empty() {
            let text =
                format!("{} changed since snapshot {}; {DECRYPTS}", joined(&proven), id.short());
            return Ok(Some(Check::ok(KEYS, text)));
        }
        let changed = joined(&changes);
        let text = format!(
            "{changed} changed since snapshot {}; values that only the old keys decrypt are lost \
             without them",
            id.short()
        );
        if !proven.is_empty() {
            let text = format!("{text}; {} changed as well, and {DECRYPTS}", joined(&proven));
            let hint = format!(
                "if today's file is the right one, set `keys.changed = \"ok\"` for one backup; \
                 otherwise take {changed} from the file of snapshot {}",
                id.short()
            );
            return Ok(Some(Check::new(KEYS, Verdict::Warning, text).with_hint(hint)));
        }
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
