//! Whether the keys that decrypt the databases are still those of last time.

use super::Session;
use crate::check::{Check, Verdict};
use crate::copy::Copy;
use crate::error::Result;

impl Session<'_> {
    /// Keys that are others than last time do not open what was encrypted until then.
    pub(super) fn check_keys(&self, copy: &Copy<'_>) -> Result<Option<Check>> {
        let (job, plan) = (self.job, self.job.plan);
        let Some((id, snapshot)) = self.backup.parent() else { return Ok(None) };
        let before = Copy::Tree { store: job.store, root: snapshot.root.chunk() };
        let before = Copy::Through { copy: &before, mounts: &plan.mounts };
        // A snapshot that cannot be read does not cost the next one.
        let Ok(before) = job.kind.keys(plan, &before) else { return Ok(None) };
        let now = job.kind.keys(plan, copy)?;
        let is_other = |name: &&str| now.get(*name).is_some_and(|key| *key != before[*name]);
        let changed: Vec<&str> = before.keys().copied().filter(is_other).collect();
        if changed.is_empty() {
            return Ok(None);
        }
        let text = format!(
            "{} changed since the last backup; what the database encrypted until then cannot be \
             read with the new ones",
            changed.join(", ")
        );
        let hint = format!(
            "if nobody did that on purpose, take the old file out of snapshot {}, before anything \
             is encrypted with the new keys",
            id.short()
        );
        Ok(Some(Check::new("keys", Verdict::Warning, text).with_hint(hint)))
    }
}
