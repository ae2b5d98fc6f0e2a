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
use std::time::Duration;

/// Purpose of a database of Mattermost in a plan.
const MATTERMOST: &str = "mattermost";

/// Checks the loaded databases against the tree of their snapshot: the rows of some projects, or
/// else a sample of all rows. A question that takes longer than the limit is not answered.
pub fn examine(
    server: &ScratchServer<'_>,
    manifest: &Manifest,
    tree: &View<'_>,
    projects: Option<BTreeSet<u64>>,
    limit: Duration,
) -> Result<Vec<Check>> {
    let Some(kind) = kind::find(&manifest.kind) else { return Ok(Vec::new()) };
    let mut plan = Plan::new(&manifest.instance, kind.name(), &Settings::of_kind(kind.name()));
    plan.root = PathBuf::from("/");
    plan.product = manifest.product.clone();
    plan.parts.clone_from(&manifest.parts);
    plan.mounts.clone_from(&manifest.mounts);
    plan.postgres = Some(server.server().clone());
    plan.projects = projects;
    let mut databases = server.connect(limit)?;
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
        compare(check, &manifest.checks);
    }
    Ok(checks)
}

/// Name of the check of files that rows name.
const FILES: &str = "files";

/// Adapts a verdict to that of the same check of the backup, on the instance itself.
///
/// A mismatch of sign-on fails if the backup found none: the snapshot differs from the instance. A
/// check that the backup could not make either, such as one of sign-on that is switched off, is no
/// gap of the drill. Files that the instance had lost already are a warning, however few were
/// compared.
fn compare(check: &mut Check, of_backup: &[Check]) {
    let was = |verdict| {
        let is_same = |known: &Check| known.name == check.name && known.verdict == verdict;
        of_backup.iter().any(is_same)
    };
    let is_sign_on = check.name == kind::mattermost::single_sign_on::NAME;
    match check.verdict {
        Verdict::Warning if is_sign_on && was(Verdict::Ok) => {
            check.verdict = Verdict::Failed;
            check.text += "; when the snapshot was made, they matched";
        }
        // One lost file can be all files of a small sample.
        Verdict::Failed if check.name == FILES && was(Verdict::Warning) => {
            check.verdict = Verdict::Warning;
            check.text += "; the instance lacked files when the snapshot was made";
        }
        Verdict::Unknown if was(Verdict::Unknown) => {
            check.verdict = Verdict::Ok;
            check.text = format!("not examined, as in the backup: {}", check.text);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_depend_on_those_of_the_backup() {
        let of = |name: &str, verdict, before: &[Check]| {
            let mut check = Check::new(name, verdict, "text");
            compare(&mut check, before);
            check.verdict
        };
        let sign_on = "single-sign-on";
        let good = [Check::ok(sign_on, "matched"), Check::ok("files", "present")];
        let bad = [Check::new(sign_on, Verdict::Warning, "did not match")];
        assert_eq!(of(sign_on, Verdict::Warning, &good), Verdict::Failed);
        assert_eq!(of(sign_on, Verdict::Warning, &bad), Verdict::Warning);
        assert_eq!(of(sign_on, Verdict::Unknown, &good), Verdict::Unknown);
        let off = [Check::new(sign_on, Verdict::Unknown, "switched off")];
        assert_eq!(of(sign_on, Verdict::Unknown, &off), Verdict::Ok);
        let lost = [Check::new(FILES, Verdict::Warning, "one of many is missing")];
        assert_eq!(of(FILES, Verdict::Failed, &lost), Verdict::Warning);
        assert_eq!(of(FILES, Verdict::Failed, &good), Verdict::Failed);
        // A drill looks at other rows than the backup.
        assert_eq!(of("files", Verdict::Warning, &good), Verdict::Warning);
    }
}
