//! Conditions that a store must meet after any fault.

use super::sandbox::Sandbox;
use super::stores::{back_up, backup_options, restore_options};
use super::tree::{Ignore, compare_ignoring};
use std::path::Path;
use store::backup::tree_path;
use store::check::{self, ReadData, check};
use store::id::SnapshotId;
use store::restore::restore;
use store::snapshot::Snapshot;
use store::store::Store;

/// Adds the failed operation to an error of the store.
pub fn naming(what: &'static str) -> impl Fn(store::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// Restores `source` from a snapshot and asserts that it equals `right`.
pub fn comes_back(
    store: &Store,
    snapshot: &Snapshot,
    source: &Path,
    right: &Path,
) -> Result<(), String> {
    match differences(store, snapshot, source, right)? {
        found if found.is_empty() => Ok(()),
        found => Err(format!("differences: {found:?}")),
    }
}

/// Returns the differences between a restore and `right`.
pub fn differences(
    store: &Store,
    snapshot: &Snapshot,
    source: &Path,
    right: &Path,
) -> Result<Vec<String>, String> {
    let (sandbox, from) = (Sandbox::in_memory(), tree_path(source));
    let target = sandbox.root();
    let report = restore(store, &snapshot.root.chunk(), &from, target, &restore_options());
    let report = report.map_err(naming("restore"))?;
    if report.failed > 0 {
        return Err(format!("{} paths are not restored", report.failed));
    }
    let ignore = Ignore { top_directory: true, ..Ignore::default() };
    Ok(compare_ignoring(right, target, ignore))
}

/// Runs the next night: a backup that must read everything, and a full check that must be clean.
pub fn next_backup(store: &Store, source: &Path) -> Result<SnapshotId, String> {
    let (snapshots, damaged) = store.snapshots().map_err(naming("snapshots"))?;
    if !damaged.is_empty() {
        return Err(format!("listed and unreadable: {damaged:?}"));
    }
    let mut options = backup_options();
    if let Some((_, last)) = snapshots.last() {
        options.about.host.clone_from(&last.host);
    }
    let report = back_up(store, &[source], &options).map_err(naming("the next backup"))?;
    if report.unreadable_count > 0 {
        return Err("the next backup blames the source".into());
    }
    let check::Report { damages, losses, damage_count, loss_count, .. } =
        check(store, ReadData::All).map_err(naming("check"))?;
    if damage_count + loss_count > 0 {
        return Err(format!("check: {damages:?} {losses:?}"));
    }
    Ok(report.snapshot.expect("not a dry run"))
}
