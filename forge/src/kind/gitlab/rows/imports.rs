//! Conditions that a project, named `p`, was never imported completely. Forks and projects made from
//! a template are imports, too.

use crate::error::Result;
use crate::service::postgres::{Columns, Connection};

/// Conditions for a query of projects.
pub struct Imports {
    /// The first import waits or runs. The repository comes early, other data later.
    pub is_running: String,
    /// The first import ended without a commit.
    pub has_failed: String,
}

/// Returns the conditions for the tables of a database. `projects` are the columns of that table.
pub fn conditions(database: &mut Connection<'_>, projects: &Columns) -> Result<Imports> {
    let (mut running, mut failed) = (Vec::new(), Vec::new());
    let mut has = |table: &str, needed: &[&str]| -> Result<bool> {
        let columns = database.columns(table)?;
        Ok(needed.iter().all(|needed| columns.has(needed)))
    };
    let status = if has("project_mirror_data", &["project_id", "status"])? {
        Some(
            "exists (select from project_mirror_data i where i.project_id = p.id \
             and i.status::text in (STATES))",
        )
    } else {
        // Versions before 11.
        projects.has("import_status").then_some("coalesce(p.import_status in (STATES), false)")
    };
    if let Some(status) = status {
        running.push(status.replace("STATES", "'scheduled', 'started'"));
        failed.push(status.replace("STATES", "'failed', 'canceled'"));
    }
    // Direct transfers between instances.
    if has("bulk_import_entities", &["project_id", "status"])? {
        let status = "exists (select from bulk_import_entities i where i.project_id = p.id \
                      and i.status::text in (STATES))";
        // Created and started; timed out, failed and cancelled.
        running.push(status.replace("STATES", "'0', '1'"));
        failed.push(status.replace("STATES", "'3', '-1', '-2'"));
    }
    // An update of a mirror has the same states, but the project has commits.
    let has_statistics = has("project_statistics", &["project_id", "commit_count"])?;
    let first = "and not exists (select from project_statistics c where c.project_id = p.id \
                 and c.commit_count > 0)";
    let condition = |any: Vec<String>| match any.is_empty() || !has_statistics {
        true => "false".to_owned(),
        false => format!("(({}) {first})", any.join(" or ")),
    };
    Ok(Imports { is_running: condition(running), has_failed: condition(failed) })
}
