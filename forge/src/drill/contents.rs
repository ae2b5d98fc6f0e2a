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
        worsen(check, manifest);
    }
    Ok(checks)
}

/// Turns a warning about sign-on into a failure if there was none when the snapshot was made. The
/// snapshot then differs from the instance.
fn worsen(check: &mut Check, manifest: &Manifest) {
    let was_good = manifest
        .checks
        .iter()
        .any(|of_backup| of_backup.name == check.name && of_backup.verdict == Verdict::Ok);
    if check.name == kind::mattermost::single_sign_on::NAME
        && check.verdict == Verdict::Warning
        && was_good
    {
        check.verdict = Verdict::Failed;
        check.text += "; when the snapshot was made, they matched";
    }
}
