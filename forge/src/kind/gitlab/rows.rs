//! What GitLab's databases say that there is.
//!
//! Columns come and go with versions, so a query is only asked of columns that are there.

use crate::catalogue::{Application, Catalogue, FileRow, Project};
use crate::error::Result;
use crate::plan::Plan;
use crate::service::postgres::Connection;
use crate::settings::Sample;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Asks all databases that have GitLab's tables.
pub fn ask(plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    for database in databases {
        schema(database, &mut catalogue)?;
        projects(database, &mut catalogue)?;
        catalogue.files.extend(files(plan, database)?);
        applications(database, &mut catalogue)?;
        migrations(database, &mut catalogue)?;
    }
    Ok(catalogue)
}

fn schema(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Version {
        version: Option<String>,
    }
    if !database.columns("schema_migrations")?.is_empty() {
        let newest: Version =
            database.one("select max(version::text) as version from schema_migrations")?;
        if let Some(version) = newest.version {
            catalogue.schema.insert(database.database.clone(), version);
        }
    }
    Ok(())
}

fn projects(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: u64,
        path: Option<String>,
        storage: Option<String>,
        repository: Option<String>,
        is_hashed: bool,
        pool: Option<String>,
        forked_from: Option<String>,
    }
    let columns = database.columns("projects")?;
    if columns.is_empty() || !catalogue.projects.is_empty() {
        return Ok(());
    }
    let mut select = vec!["p.id", "r.path"];
    let mut from = "from projects p \
        left join routes r on r.source_type = 'Project' and r.source_id = p.id"
        .to_owned();
    let storage =
        if columns.has("repository_storage") { "p.repository_storage" } else { "'default'" };
    let named;
    if database.columns("project_repositories")?.is_empty() {
        named = format!("{storage} as storage, null as repository");
    } else {
        named = format!("coalesce(s.name, {storage}) as storage, pr.disk_path as repository");
        from += " left join project_repositories pr on pr.project_id = p.id \
                 left join shards s on s.id = pr.shard_id";
    }
    select.push(&named);
    // Storage version 0 is a path by name.
    select.push(if columns.has("storage_version") {
        "coalesce(p.storage_version, 0) > 0 as is_hashed"
    } else {
        "false as is_hashed"
    });
    if columns.has("pool_repository_id") && !database.columns("pool_repositories")?.is_empty() {
        select.push("po.disk_path as pool");
        from += " left join pool_repositories po on po.id = p.pool_repository_id";
    } else {
        select.push("null as pool");
    }
    if database.columns("fork_network_members")?.is_empty() {
        select.push("null as forked_from");
    } else {
        select.push("f.path as forked_from");
        from += " left join fork_network_members m on m.project_id = p.id \
                 left join routes f on f.source_type = 'Project' and f.source_id = m.forked_from_project_id";
    }
    let rows: Vec<Row> =
        database.rows(&format!("select {} {from} order by p.id", select.join(", ")))?;
    catalogue.projects = rows
        .into_iter()
        .map(|row| {
            let path = row.path.unwrap_or_default();
            let disk = row.repository.unwrap_or_else(|| {
                if row.is_hashed || path.is_empty() { hashed(row.id) } else { path.clone() }
            });
            Project {
                id: row.id,
                storage: row.storage.unwrap_or_else(|| "default".into()),
                repository: format!("{disk}.git"),
                wiki: None,
                design: None,
                pool: row.pool.map(|pool| format!("{pool}.git")),
                forked_from: row.forked_from,
                is_copied: false,
                path,
            }
        })
        .collect();
    Ok(())
}

/// Path by number, as GitLab makes it.
pub fn hashed(id: u64) -> String {
    let hash = Sha256::digest(id.to_string());
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("@hashed/{}/{}/{hex}", &hex[..2], &hex[2..4])
}

fn files(plan: &Plan, database: &mut Connection<'_>) -> Result<Vec<FileRow>> {
    type Ask = fn(&Path, Sample, &mut Connection<'_>) -> Result<Vec<FileRow>>;
    let tables: [(&str, Ask); 3] =
        [("uploads", uploads), ("lfs", lfs_objects), ("artifacts", artifacts)];
    let mut files = Vec::new();
    for (part, ask) in tables {
        if let Some(dir) = plan.place(part) {
            files.extend(ask(&dir, plan.sample, database)?);
        }
    }
    Ok(files)
}

/// A table whose rows stand for files.
struct Table {
    name: &'static str,
    /// Columns that the query needs; without any of them nothing is asked.
    needs: &'static [&'static str],
    /// What is asked of each row, which is called `t`.
    select: &'static str,
    /// Column that is 1 where the file is on this machine and not in a bucket.
    store: &'static str,
}

impl Table {
    /// The newest and some other rows whose files are on this machine.
    fn rows<T: DeserializeOwned>(
        &self,
        sample: Sample,
        database: &mut Connection<'_>,
    ) -> Result<Vec<T>> {
        let Table { name, needs, select, store } = self;
        let columns = database.columns(name)?;
        if !needs.iter().all(|needed| columns.has(needed)) {
            return Ok(Vec::new());
        }
        let local =
            if columns.has(store) { format!("coalesce(t.{store}, 1) = 1") } else { "true".into() };
        let all = format!("select {select} from {name} t where {local}");
        let query = match sample {
            Sample::All => format!("{all} order by t.id"),
            Sample::Rows(rows) => {
                let half = rows.div_ceil(2);
                // By number, so that large tables are not read whole.
                format!(
                    "({all} order by t.id desc limit {half}) union \
                     ({all} and t.id in (select (low + random() * (high - low))::bigint \
                     from (select min(id) as low, max(id) as high from {name}) ends, generate_series(1, {half})))"
                )
            }
        };
        database.rows(&query)
    }
}

fn uploads(dir: &Path, sample: Sample, database: &mut Connection<'_>) -> Result<Vec<FileRow>> {
    #[derive(Deserialize)]
    struct Row {
        id: u64,
        path: String,
        size: Option<u64>,
        model_type: Option<String>,
        model_id: Option<u64>,
    }
    let table = Table {
        name: "uploads",
        needs: &["id", "path", "size", "model_type", "model_id"],
        select: "t.id, t.path, t.size, t.model_type, t.model_id",
        store: "store",
    };
    let file = |row: Row| {
        let path = row.path.strip_prefix("uploads/").unwrap_or(&row.path);
        let mut paths = vec![dir.join(path)];
        // Older rows are relative to the directory of what they belong to.
        if let (Some("Project"), Some(id)) = (row.model_type.as_deref(), row.model_id) {
            paths.push(dir.join(hashed(id)).join(path));
        }
        FileRow { what: "uploads", part: "uploads", id: row.id.to_string(), paths, size: row.size }
    };
    Ok(table.rows(sample, database)?.into_iter().map(file).collect())
}

fn lfs_objects(dir: &Path, sample: Sample, database: &mut Connection<'_>) -> Result<Vec<FileRow>> {
    #[derive(Deserialize)]
    struct Row {
        id: u64,
        oid: String,
        size: Option<u64>,
    }
    let table = Table {
        name: "lfs_objects",
        needs: &["id", "oid", "size"],
        select: "t.id, t.oid, t.size",
        store: "file_store",
    };
    let mut rows: Vec<Row> = table.rows(sample, database)?;
    rows.retain(|row| row.oid.len() >= 5 && row.oid.is_ascii());
    let file = |row: Row| {
        let path = dir.join(&row.oid[..2]).join(&row.oid[2..4]).join(&row.oid[4..]);
        FileRow {
            what: "lfs",
            part: "lfs",
            id: row.id.to_string(),
            paths: vec![path],
            size: row.size,
        }
    };
    Ok(rows.into_iter().map(file).collect())
}

fn artifacts(dir: &Path, sample: Sample, database: &mut Connection<'_>) -> Result<Vec<FileRow>> {
    #[derive(Deserialize)]
    struct Row {
        id: u64,
        project_id: u64,
        job_id: u64,
        file: Option<String>,
        size: Option<u64>,
        day: Option<String>,
    }
    let file = |row: Row| {
        let project = hashed(row.project_id);
        let project = project.strip_prefix("@hashed/").unwrap_or(&project);
        let dir = dir.join(project).join(row.day?).join(row.job_id.to_string());
        let (id, paths) = (row.id.to_string(), vec![dir.join(row.id.to_string()).join(row.file?)]);
        Some(FileRow { what: "artifacts", part: "artifacts", id, paths, size: row.size })
    };
    // Partitioned in newer versions, and then the old name may be that of one partition.
    for name in ["p_ci_job_artifacts", "ci_job_artifacts"] {
        let table = Table {
            name,
            needs: &["id", "project_id", "job_id", "file", "size", "created_at"],
            select: "t.id, t.project_id, t.job_id, t.file, t.size, \
                     to_char(t.created_at, 'YYYY_MM_DD') as day",
            store: "file_store",
        };
        let rows: Vec<Row> = table.rows(sample, database)?;
        if !rows.is_empty() {
            return Ok(rows.into_iter().filter_map(file).collect());
        }
    }
    Ok(Vec::new())
}

fn applications(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    let columns = database.columns("oauth_applications")?;
    if columns.is_empty() {
        return Ok(());
    }
    let instance_wide = if columns.has("owner_id") { "owner_id is null" } else { "true" };
    let rows: Vec<Application> = database.rows(&format!(
        "select name, uid, secret, {instance_wide} as is_instance_wide \
         from oauth_applications order by id"
    ))?;
    catalogue.applications.extend(rows);
    Ok(())
}

fn migrations(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        status: i64,
        count: u64,
    }
    let columns = database.columns("batched_background_migrations")?;
    // The registry has a table of the same name with other numbers.
    if !columns.has("job_class_name") {
        return Ok(());
    }
    let rows: Vec<Row> = database.rows(
        "select status, count(*) as count from batched_background_migrations group by 1 order by 1",
    )?;
    let states = rows.into_iter().map(|row| {
        let state = match row.status {
            0 => "paused".into(),
            1 => "active".into(),
            3 => "finished".into(),
            4 => "failed".into(),
            5 => "finalizing".into(),
            6 => "finalized".into(),
            other => format!("status {other}"),
        };
        (state, row.count)
    });
    let states: BTreeMap<String, u64> = states.collect();
    if !states.is_empty() {
        catalogue.migrations.insert(database.database.clone(), states);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_by_number_are_gitlabs() {
        // From GitLab's documentation of hashed storage.
        let one = "@hashed/6b/86/6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b";
        assert_eq!(hashed(1), one);
        assert!(hashed(2).starts_with("@hashed/d4/73/d4735e3a265e"));
    }
}
