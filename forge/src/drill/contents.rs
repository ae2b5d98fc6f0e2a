//! Compares loaded databases with the files of their snapshot.
//!
//! The keys of the snapshot are tried on encrypted values, sign-on is compared with its
//! applications, and rows of the restored projects with the files that they name.

use super::databases::ScratchServer;
use crate::check::{Check, Verdict};
use crate::error::Result;
use crate::kind;
use crate::manifest::Manifest;
use crate::plan::{Database, Plan};
use crate::settings::Settings;
use crate::view::View;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Purpose of a database of Mattermost in a plan.
const MATTERMOST: &str = "mattermost";

/// Checks the loaded databases against the tree of their snapshot: the rows of some projects, or
/// else a sample of all rows.
pub fn examine(
    server: &ScratchServer<'_>,
    manifest: &Manifest,
    tree: &View<'_>,
    projects: Option<BTreeSet<u64>>,
) -> Result<Vec<Check>> {
    let Some(kind) = kind::find(&manifest.kind) else { return Ok(Vec::new()) };
    let mut plan = Plan::new(&manifest.instance, kind.name(), &Settings::of_kind(kind.name()));
    plan.root = PathBuf::from("/");
    plan.product = manifest.product.clone();
    plan.parts.clone_from(&manifest.parts);
    plan.mounts.clone_from(&manifest.mounts);
    plan.postgres = Some(server.server().clone());
    plan.projects = projects;
    let mut databases = server.connect()?;
    // Only its name shows which one belongs to Mattermost.
    let named = databases.iter().find(|database| database.database.contains(MATTERMOST));
    plan.databases.extend(named.map(|database| Database {
        name: database.database.clone(),
        purpose: MATTERMOST.into(),
        is_required: false,
    }));
    let view = View::Through { view: tree, mounts: &manifest.mounts };
    let mut checks = kind.check_loaded(&plan, &mut databases, &view)?;
    for check in &mut checks {
        worsen(check, &manifest.checks);
    }
    Ok(checks)
}

/// Turns a warning about sign-on into a failure if the backup found none. The snapshot then differs
/// from the instance.
fn worsen(check: &mut Check, of_backup: &[Check]) {
    let was_good = |known: &Check| known.name == check.name && known.verdict == Verdict::Ok;
    let is_sign_on = check.name == kind::mattermost::single_sign_on::NAME;
    if is_sign_on && check.verdict == Verdict::Warning && of_backup.iter().any(was_good) {
        check.verdict = Verdict::Failed;
        check.text += "; when the snapshot was made, they matched";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_on_that_matched_in_the_backup_must_match_in_the_snapshot() {
        let of = |name: &str, verdict, before: &[Check]| {
            let mut check = Check::new(name, verdict, "text");
            worsen(&mut check, before);
            check.verdict
        };
        let sign_on = "single-sign-on";
        let good = [Check::ok(sign_on, "matched"), Check::ok("files", "present")];
        let bad = [Check::new(sign_on, Verdict::Warning, "did not match")];
        assert_eq!(of(sign_on, Verdict::Warning, &good), Verdict::Failed);
        assert_eq!(of(sign_on, Verdict::Warning, &bad), Verdict::Warning);
        assert_eq!(of(sign_on, Verdict::Unknown, &good), Verdict::Unknown);
        // A drill looks at other rows than the backup.
        assert_eq!(of("files", Verdict::Warning, &good), Verdict::Warning);
    }
}
