use super::{Global, instance};
use crate::exit::{Failure, with_hint};
use crate::report::count;
use crate::select;
use crate::ui::Ui;
use clap::Args;
use forge::catalogue::Project;
use serde_json::json;
use store::store::Purpose;

/// List the projects of a snapshot with their repositories
///
/// The list is what the database said at the moment of its dump.
///
/// Examples:
///   forgekeep projects latest
///   forgekeep projects latest --path group/project --json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Projects {
    /// Id of a snapshot or the beginning of one, latest, or latest~N
    snapshot: String,
    /// Only projects with this path or below it
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
}

impl Projects {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let (store, watch) = global.open(ui, Purpose::Read, "projects")?;
        let read = self.read(&store);
        watch.end();
        let projects = read?;
        let fits = |project: &&Project| {
            self.path.as_ref().is_none_or(|wanted| {
                let rest = project.path.strip_prefix(wanted.trim_end_matches('/'));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        let mut shown = 0;
        for project in projects.iter().filter(fits) {
            shown += 1;
            ui.json("project", json!(project))?;
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
                notes += &format!("  borrows from {pool}");
            }
            if !project.is_copied {
                notes += "  NOT IN THE SNAPSHOT";
            }
            ui.line(format!(
                "{:>8}  {}  {}:{}{notes}",
                project.id, project.path, project.storage, project.repository
            ))?;
        }
        ui.remark(count(shown, "project"))
    }

    fn read(&self, store: &store::store::Store) -> Result<Vec<Project>, Failure> {
        let (id, snapshot) = select::find(store, &self.snapshot)?;
        let name = "projects.jsonl";
        let text = instance::kept(store, &snapshot, name)?.ok_or_else(|| {
            let hint =
                "only backups of a GitLab instance have one; `forgekeep snapshots` lists them";
            with_hint(format!("snapshot {} has no catalogue of projects", id.short()), hint)
        })?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let wrong = |error| {
                    crate::exit::other(format!("{name} of snapshot {}: {error}", id.short()))
                };
                serde_json::from_slice(line).map_err(wrong)
            })
            .collect()
    }
}
