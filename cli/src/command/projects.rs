use super::{Global, instance};
use crate::exit::{Failure, with_hint};
use crate::json::{ProjectLine, ProjectSummary};
use crate::report::count;
use crate::select::{self, Filter, Found};
use crate::selector::Selector;
use crate::ui::Ui;
use clap::Args;
use forge::catalogue::{Project, Repository};
use forge::plan::Part;
use forge::process::quoted_shown;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use store::id::SnapshotId;
use store::snapshot::Snapshot;
use store::store::Store;

/// List the projects of a snapshot with their repositories
///
/// The list shows the database at its consistency point. Each repository has its absolute path in
/// the snapshot, quoted for `restore SNAPSHOT:PATH`. A fork that borrows objects needs its pool as
/// well.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep projects gitlab@latest
  forgekeep projects gitlab@latest --project group/project --json")]
pub struct Projects {
    /// Snapshot, such as `gitlab@latest` (`forgekeep --help` lists all forms)
    snapshot: String,
    /// Only the project with this path, and projects below it
    #[arg(long, value_name = "PATH")]
    project: Option<String>,
    #[command(flatten)]
    filter: Filter,
}

impl Projects {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let selector = Selector::read(&self.snapshot)?;
        let (store, watch) = global.open_for(selector.instance.as_deref(), ui, "projects")?;
        let read = self.read(&store, &selector);
        watch.end();
        let Read { id, is_sure, projects, places } = read?;
        let is_wanted = |project: &&Project| {
            self.project.as_ref().is_none_or(|wanted| {
                let rest = project.path.strip_prefix(wanted.trim_end_matches('/'));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let mut shown = 0;
        for project in projects.iter().filter(is_wanted) {
            shown += 1;
            let place = places.of(project);
            let restore = place.as_ref().map(|place| format!("{id}:{place}"));
            ui.json(&ProjectLine { project, restore })?;
            let mut notes = String::new();
            for (what, is_there) in
                [("wiki", project.wiki.is_some()), ("design", project.design.is_some())]
            {
                if is_there {
                    notes += &format!(" +{what}");
                }
            }
            if let Some(from) = &project.forked_from {
                notes += &format!("  fork of {from}");
            }
            if let Some(pool) = &project.pool {
                let pool = places.below(project, pool).unwrap_or_else(|| pool.clone());
                notes += &format!("  borrows from {}", quoted_shown(&pool));
            }
            if project.is_importing {
                notes += "  (being imported)";
            }
            if !project.is_copied {
                notes += "  NOT IN THE SNAPSHOT";
            }
            let place = place.map_or_else(
                || format!("{}:{}", project.storage, project.repository),
                |place| quoted_shown(&place),
            );
            ui.line(format!("{:>8}  {}  {place}{notes}", project.id, project.name()))?;
        }
        let (snapshot, place) = (id.to_string(), store.place());
        let id = id.short();
        ui.remark(format!("{} in snapshot {id} in {place}", count(shown, "project")))?;
        ui.json(&ProjectSummary { store: place, snapshot, projects: shown })?;
        ui.remark(format!("to restore one: forgekeep restore {id}:PATH --target DIRECTORY"))?;
        select::answered(is_sure)
    }

    fn read(&self, store: &Store, selector: &Selector) -> Result<Read, Failure> {
        let Found { id, snapshot, is_sure } = select::find(store, selector, &self.filter)?;
        let projects = catalogue(store, &id, &snapshot)?.ok_or_else(|| {
            let hint =
                "only backups of a GitLab instance have one; `forgekeep snapshots` lists them";
            with_hint(format!("snapshot {} has no catalogue of projects", id.short()), hint)
        })?;
        let places = Places::read(store, &id, &snapshot)?;
        Ok(Read { id, is_sure, projects, places })
    }
}

/// Returns the projects of a snapshot; `None` if it has no catalogue.
pub fn catalogue(
    store: &Store,
    id: &SnapshotId,
    snapshot: &Snapshot,
) -> Result<Option<Vec<Project>>, Failure> {
    lines(store, id, snapshot, "projects.jsonl")
}

/// Returns the repositories of a snapshot that belong to no project: those of snippets and of group
/// wikis.
pub fn others(
    store: &Store,
    id: &SnapshotId,
    snapshot: &Snapshot,
) -> Result<Vec<Repository>, Failure> {
    Ok(lines(store, id, snapshot, "repositories.jsonl")?.unwrap_or_default())
}

/// Returns the lines of a file about the instance; `None` if the snapshot lacks it.
fn lines<T: DeserializeOwned>(
    store: &Store,
    id: &SnapshotId,
    snapshot: &Snapshot,
    name: &str,
) -> Result<Option<Vec<T>>, Failure> {
    let Some(text) = instance::kept(store, snapshot, name)? else { return Ok(None) };
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let read = |line| {
        serde_json::from_slice(line).map_err(|error| {
            crate::exit::other(format!("cannot read {name} of snapshot {}: {error}", id.short()))
        })
    };
    lines.map(read).collect::<Result<_, _>>().map(Some)
}

/// The catalogue of a snapshot.
struct Read {
    id: SnapshotId,
    /// True if the snapshot is certainly the wanted one.
    is_sure: bool,
    projects: Vec<Project>,
    places: Places,
}

/// Directories of the storages in a snapshot, by the names of their parts.
pub struct Places(BTreeMap<String, String>);

impl Places {
    /// Older snapshots may lack them.
    pub fn read(store: &Store, id: &SnapshotId, snapshot: &Snapshot) -> Result<Places, Failure> {
        let manifest = instance::manifest(store, id, snapshot)?;
        let parts = manifest.map(|manifest| manifest.parts).unwrap_or_default();
        let place =
            |part: Part| Some((part.name, part.paths.first()?.to_string_lossy().into_owned()));
        Ok(Places(parts.into_iter().filter_map(place).collect()))
    }

    /// The absolute path of the repository of a project.
    pub fn of(&self, project: &Project) -> Option<String> {
        project.place.clone().or_else(|| self.below(project, &project.repository))
    }

    /// The absolute path of something in the storage of a project.
    pub fn below(&self, project: &Project, path: &str) -> Option<String> {
        self.within(&project.storage, path)
    }

    /// The absolute path of something in a storage.
    pub fn within(&self, storage: &str, path: &str) -> Option<String> {
        let dir = self.0.get(&forge::kind::gitlab::repositories::part(storage))?;
        Some(format!("{}/{path}", dir.trim_end_matches('/')))
    }
}
