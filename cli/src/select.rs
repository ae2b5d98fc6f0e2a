//! Which snapshots a command is about.

use crate::exit::{Failure, with_hint};
use clap::Args;
use store::entry::{display_path, is_within};
use store::error::Error;
use store::id::SnapshotId;
use store::observe::Event;
use store::snapshot::Snapshot;
use store::store::Store;

/// Narrows down snapshots.
#[derive(Debug, Clone, Args)]
pub struct Filter {
    /// Only snapshots with this tag (can be repeated: any of them)
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Only snapshots with this source path or one below or above it (can be repeated: any of them)
    #[arg(long, value_name = "PATH")]
    pub path: Vec<std::path::PathBuf>,
    /// Only snapshots of this machine (can be repeated: any of them)
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
}

impl Filter {
    fn fits(&self, snapshot: &Snapshot) -> bool {
        let any_path = |wanted: &std::path::PathBuf| {
            let wanted = store::backup::tree_path(wanted);
            snapshot.paths.iter().any(|path| {
                let path = tree_path(path);
                is_within(&path, &wanted) || is_within(&wanted, &path)
            })
        };
        (self.tag.is_empty() || self.tag.iter().any(|tag| snapshot.tags.contains(tag)))
            && (self.host.is_empty() || self.host.contains(&snapshot.host))
            && (self.path.is_empty() || self.path.iter().any(any_path))
    }
}

/// A source path of a record as a path in its tree.
pub fn tree_path(path: &[u8]) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    store::backup::tree_path(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))
}

/// All readable snapshots that fit, oldest first. Damaged ones are reported.
pub fn snapshots(store: &Store, filter: &Filter) -> Result<Vec<(SnapshotId, Snapshot)>, Failure> {
    let (mut snapshots, damaged) = store.snapshots()?;
    for error in damaged {
        store.observer().event(Event::Warning(error.to_string()));
    }
    snapshots.retain(|(_, snapshot)| filter.fits(snapshot));
    Ok(snapshots)
}

/// A tag or the name of a machine, as snapshots keep it: a line of text that can be shown.
pub fn word(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is empty; leave the option out".into());
    }
    if text.contains(store::entry::is_deceptive) {
        return Err("it has control characters in it; use letters, digits and signs".into());
    }
    Ok(text.to_owned())
}

/// `SNAPSHOT[:PATH]`, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// An id prefix, `latest` or `latest~N`.
    pub snapshot: String,
    /// Path in the tree; empty for all of it.
    pub path: Vec<u8>,
}

impl Place {
    /// Splits at the first colon.
    pub fn parse(text: &std::ffi::OsStr) -> Result<Place, Failure> {
        use std::os::unix::ffi::OsStrExt;
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|b| *b == b':');
        let (snapshot, path) =
            colon.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + 1..]));
        let snapshot = String::from_utf8_lossy(snapshot).into_owned();
        let path = tree_path(path);
        if !path.is_empty() && !store::entry::is_valid_path(&path) {
            return Err(crate::exit::other(format!(
                "{} is no path of a snapshot: it has . or .. in it",
                display_path(&path)
            )));
        }
        Ok(Place { snapshot, path })
    }
}

/// The one snapshot that is meant.
pub fn find(store: &Store, wanted: &str) -> Result<(SnapshotId, Snapshot), Failure> {
    find_among(store, wanted, |_| true)
}

/// The one snapshot of an instance that is meant; `latest` is the latest of this instance.
pub fn find_of_instance(
    store: &Store,
    wanted: &str,
    instance: &str,
) -> Result<(SnapshotId, Snapshot), Failure> {
    let is_of = |snapshot: &Snapshot| {
        snapshot.instance.as_ref().is_some_and(|known| known.name == instance)
    };
    let (id, snapshot) = find_among(store, wanted, is_of)?;
    if is_of(&snapshot) {
        return Ok((id, snapshot));
    }
    let message = format!("snapshot {} is not one of instance {instance}", id.short());
    Err(with_hint(message, "`forgekeep snapshots` says of which instance each one is"))
}

fn find_among(
    store: &Store,
    wanted: &str,
    fits: impl Fn(&Snapshot) -> bool,
) -> Result<(SnapshotId, Snapshot), Failure> {
    if let Some(rest) = wanted.strip_prefix("latest") {
        let back = match rest.strip_prefix('~') {
            Some(number) => number.parse().ok(),
            None => rest.is_empty().then_some(0),
        };
        let back: usize = back.ok_or_else(|| Error::NoSnapshot(wanted.into()))?;
        let (mut snapshots, mut damaged) = store.snapshots()?;
        if let Some(error) = damaged.pop() {
            return Err(with_hint(
                format!("which snapshot is {wanted} cannot be told: {error}"),
                "`forgekeep snapshots` lists the others; give the id of one",
            ));
        }
        snapshots.retain(|(_, snapshot)| fits(snapshot));
        let at = snapshots.len().checked_sub(back + 1);
        return Ok(snapshots.swap_remove(at.ok_or_else(|| Error::NoSnapshot(wanted.into()))?));
    }
    let ids = store.snapshot_ids()?;
    let fitting: Vec<SnapshotId> = ids
        .into_iter()
        .filter(|id| !wanted.is_empty() && id.to_string().starts_with(wanted))
        .collect();
    match fitting[..] {
        [id] => Ok((id, store.snapshot(&id)?)),
        [] => Err(Error::NoSnapshot(wanted.into()).into()),
        _ => {
            let (prefix, count) = (wanted.to_owned(), fitting.len());
            Err(Error::AmbiguousSnapshot { prefix, count }.into())
        }
    }
}
