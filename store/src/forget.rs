//! Deleting snapshots.
//!
//! The record goes first, in one deletion: what is listed can be restored, before and after it. The
//! tags and pins of the snapshot follow. A run that is killed between them leaves names of a snapshot
//! that is not listed, which readers ignore and the next run removes. Chunks stay: they are deleted
//! only when no snapshot needs them, and a backup that takes files from the snapshot may still run.

use crate::entry::Time;
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::index::Header;
use crate::records::Records;
use crate::snapshot::{self, SnapshotSource, is_future};
use crate::store::Store;
use crate::text::display_path;
use std::collections::{BTreeMap, HashSet};

/// Protected snapshots that may be deleted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Permitted {
    /// The last complete snapshot of a series.
    pub last: bool,
    /// Snapshots without an intact copy of their record. Nobody can restore them, and prunes refuse a
    /// store with one.
    pub damaged: bool,
}

impl Store {
    /// Deletes snapshots, and calls `each` after each of them. Returns their number: another process
    /// may have deleted some.
    ///
    /// Deletes nothing if [`Store::may_forget`] fails.
    pub fn forget(
        &self,
        ids: &[SnapshotId],
        permitted: Permitted,
        now: Time,
        mut each: impl FnMut(&SnapshotId),
    ) -> Result<u64> {
        let headers = self.may_forget(ids, permitted, now)?;
        let deleted = self.delete(ids, &mut each);
        // An index that cannot be written costs time in the next run.
        let _ = self.index.change_headers(&headers, &[]);
        deleted
    }

    /// Fails if one of these snapshots is pinned or cannot be read, or if a series would lose its last
    /// complete snapshot, unless this is permitted. Returns their headers.
    ///
    /// A snapshot from the future, or with emptied sources, does not count as one that is left.
    pub fn may_forget(
        &self,
        ids: &[SnapshotId],
        permitted: Permitted,
        now: Time,
    ) -> Result<Vec<Header>> {
        let wanted: HashSet<SnapshotId> = ids.iter().copied().collect();
        let records = self.records()?;
        if let Some(id) = self.pinned()?.intersection(&wanted).min() {
            return Err(Error::Pinned(*id));
        }
        let mut complete = HashSet::new();
        for id in ids {
            match self.snapshot(id) {
                Ok(snapshot) if snapshot.is_sound() => drop(complete.insert(*id)),
                Ok(_) => {}
                Err(error) if self.was_forgotten(id, &error) => {}
                Err(Error::SnapshotDamaged { .. }) if permitted.damaged => {}
                Err(error) => return Err(error),
            }
        }
        if !permitted.last {
            self.check_last(&records, &wanted, &complete, now)?;
        }
        let is_wanted = |header: &&Header| wanted.contains(&header.position.id);
        Ok(records.headers().iter().filter(is_wanted).cloned().collect())
    }

    /// Deletes the tags and pins of snapshots that are not listed. Killed runs leave them behind.
    pub fn remove_stale_annotations(&self) -> Result<()> {
        // In this order: a snapshot is listed before it gets tags.
        let annotated = self.annotated()?;
        let listed = self.snapshot_ids()?;
        let is_stale = |id: &SnapshotId| listed.binary_search(id).is_err();
        let stale: HashSet<SnapshotId> = annotated.into_iter().filter(is_stale).collect();
        if stale.is_empty() { Ok(()) } else { self.remove_annotations(|id| stale.contains(id)) }
    }

    fn delete(&self, ids: &[SnapshotId], each: &mut dyn FnMut(&SnapshotId)) -> Result<u64> {
        let (mut deleted, mut gone) = (0, HashSet::new());
        for id in ids {
            self.observer.progress().check()?;
            // Another host may have pinned it since.
            if self.pinned()?.contains(id) {
                return Err(Error::Pinned(*id));
            }
            let name = snapshot::file_name(id);
            match self.backend.remove(&name) {
                Ok(()) => deleted += 1,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::StoreRemove { name, source }),
            }
            gone.insert(*id);
            each(id);
        }
        if !gone.is_empty() {
            self.remove_annotations(|id| gone.contains(id))?;
        }
        Ok(deleted)
    }

    /// Fails if a series loses its last complete snapshot. `complete` are the complete ones among
    /// the wanted.
    fn check_last(
        &self,
        records: &Records,
        wanted: &HashSet<SnapshotId>,
        complete: &HashSet<SnapshotId>,
        now: Time,
    ) -> Result<()> {
        let mut series = BTreeMap::<SnapshotSource, Vec<&Header>>::new();
        for header in records.headers() {
            series.entry(header.source.series()).or_default().push(header);
        }
        for (source, headers) in series {
            // Newest first.
            let mut ids = headers.iter().rev().map(|header| header.position.id);
            let Some(id) = ids.find(|id| complete.contains(id)) else { continue };
            let others = headers.iter().rev().filter(|header| {
                !wanted.contains(&header.position.id) && !is_future(header.position.seconds, now)
            });
            // An unreadable snapshot is not one that is left.
            let is_complete = |header: &&Header| {
                self.snapshot_of(header).is_ok_and(|snapshot| snapshot.is_sound())
            };
            if !others.copied().any(|header| is_complete(&header)) {
                return Err(Error::LastComplete { id, source_name: shown(&source) });
            }
        }
        Ok(())
    }
}

/// Describes a series: its instance or paths, and its machine.
pub fn shown(series: &SnapshotSource) -> String {
    let paths = || {
        let paths = series.paths.iter().map(|path| display_path(path));
        paths.collect::<Vec<_>>().join(" ")
    };
    let what = match &series.instance {
        Some(name) => format!("instance {name}"),
        None => paths(),
    };
    format!("{what} on {}", series.host)
}

#[cfg(test)]
mod tests;
