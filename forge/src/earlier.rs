//! An earlier snapshot of an instance, with the places where things were at that time.

use crate::catalogue::{Project, Repository};
use crate::error::{Error, Result};
use crate::manifest::{BYTES_MAX, DIR, Manifest};
use crate::plan::Part;
use crate::view::{Mount, View};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::id::SnapshotId;
use store::observe::Event;
use store::snapshot::Snapshot;
use store::store::Store;

/// An earlier snapshot. Its projects and parts may be at other paths than those of today.
pub struct Earlier<'a> {
    /// Id of the snapshot.
    pub id: SnapshotId,
    tree: View<'a>,
    mounts: Vec<Mount>,
    /// Paths of the parts, by name.
    pub parts: BTreeMap<String, PathBuf>,
    /// Directories of the parts at which file systems were mounted.
    pub mount_points: Vec<PathBuf>,
    /// Names of the databases that the snapshot has dumps of.
    pub databases: Vec<String>,
    /// Projects of the snapshot; empty if it has no list of them.
    pub projects: Vec<Project>,
    /// Repositories of the snapshot that belong to no project.
    pub repositories: Vec<Repository>,
}

impl<'a> Earlier<'a> {
    /// Reads the catalogue of a snapshot. Facts that it lacks are unknown.
    pub fn read(store: &'a Store, id: SnapshotId, snapshot: &Snapshot) -> Result<Earlier<'a>> {
        let tree = View::Tree { store, root: snapshot.root.chunk() };
        let within = |name: &str| Path::new("/").join(DIR).join(name);
        let manifest = match Manifest::in_tree(&tree) {
            Err(Error::Malformed { .. }) => None,
            read => read?,
        };
        let paths = |part: Part| Some((part.name, part.paths.into_iter().next()?));
        let (mounts, mount_points, parts, dumps) = manifest
            .map(|all| (all.mounts, all.mount_points, all.parts, all.databases))
            .unwrap_or_default();
        let projects = lines(tree.content(&within("projects.jsonl"), BYTES_MAX)?);
        let repositories = lines(tree.content(&within("repositories.jsonl"), BYTES_MAX)?);
        let parts = parts.into_iter().filter_map(paths).collect();
        let databases = dumps.into_iter().map(|dump| dump.name).collect();
        Ok(Earlier { id, tree, mounts, parts, mount_points, databases, projects, repositories })
    }

    /// Reads a snapshot for a comparison. Warns instead of failing if it cannot be read.
    pub fn usable(
        store: &'a Store,
        id: SnapshotId,
        snapshot: &Snapshot,
    ) -> Result<Option<Earlier<'a>>> {
        match Earlier::read(store, id, snapshot) {
            Ok(earlier) => Ok(Some(earlier)),
            Err(error) if error.is_interrupted() => Err(error),
            Err(error) => {
                let text = format!("cannot compare with snapshot {}: {error}", id.short());
                store.observer().event(Event::Warning(text));
                Ok(None)
            }
        }
    }

    /// Files of the snapshot, as the services saw them at that time.
    pub fn view(&self) -> View<'_> {
        View::Through { view: &self.tree, mounts: &self.mounts }
    }

    /// First path of a part at that time.
    pub fn place(&self, part: &str) -> Option<&Path> {
        self.parts.get(part).map(PathBuf::as_path)
    }
}

/// Parses one object per line. Skips lines that are invalid.
fn lines<T: DeserializeOwned>(text: Option<Vec<u8>>) -> Vec<T> {
    let text = text.unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}
