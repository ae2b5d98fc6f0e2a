//! Rows of GitLab's databases.
//!
//! Tables and columns differ between versions, so queries use only those that exist. A query that
//! still fails skips one check.

pub mod encrypted;
mod imports;
mod package_formats;
pub mod sections;
mod uploads;

use crate::catalogue::{Application, Catalogue, FileRow, Project, Repository};
use crate::error::Result;
use crate::kind::mattermost::single_sign_on::APPLICATIONS;
use crate::plan::Plan;
use crate::service::postgres::{Columns, Connection};
use crate::settings::Sample;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Subject of the queries about versions of schemas.
pub const SCHEMA: &str = "schema";
/// Subject of the queries about projects.
pub const PROJECTS: &str = "projects";
/// Subject of the queries about other repositories.
pub const REPOSITORIES: &str = "repositories of snippets and group wikis";

/// Subject of the queries about SSH keys.
const SSH_KEYS: &str = "SSH keys";

/// Queries each of GitLab's tables in the database that owns it.
pub fn ask(plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    for database in &mut *databases {
        catalogue.databases.insert(database.database.clone());
        schema(database, &mut catalogue)?;
    }
    for database in sections::own(plan, databases, &mut catalogue)? {
        projects(database, &mut catalogue)?;
        repositories(database, &mut catalogue)?;
        files(plan, database, &mut catalogue)?;
        applications(database, &mut catalogue)?;
        ssh_keys(database, &mut catalogue)?;
        encrypted::ask(database, &mut catalogue)?;
        migrations(database, &mut catalogue)?;
    }
    Ok(catalogue)
}

/// Queries what a drill compares with files: encrypted values, applications, and rows with files.
pub fn ask_for_drill(plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    for database in &mut *databases {
        schema(database, &mut catalogue)?;
    }
    for database in sections::own(plan, databases, &mut catalogue)? {
        files(plan, database, &mut catalogue)?;
        applications(database, &mut catalogue)?;
        encrypted::ask(database, &mut catalogue)?;
    }
    Ok(catalogue)
}

fn schema(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Version {
        version: Option<String>,
    }
    if !database.columns("schema_migrations")?.is_empty() {
        let query = "select max(version::text) as version from schema_migrations";
        let newest = catalogue.ask::<Version>(SCHEMA, database, query)?;
        if let Some(version) = newest.into_iter().find_map(|row| row.version) {
            catalogue.schema.insert(database.database.clone(), version);
        }
    }
    Ok(())
}

fn projects(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: i64,
        path: Option<String>,
        storage: Option<String>,
        shard: Option<String>,
        repository: Option<String>,
        is_hashed: Option<bool>,
        pool: Option<String>,
        forked_from: Option<String>,
        is_pending_deletion: Option<bool>,
        has_designs: Option<bool>,
        is_importing: Option<bool>,
        has_failed_import: Option<bool>,
    }
    let columns = database.columns("projects")?;
    if columns.is_empty() || !catalogue.projects.is_empty() {
        return Ok(());
    }
    let mut has = |table: &str, needed: &[&str]| -> Result<bool> {
        let columns = database.columns(table)?;
        Ok(needed.iter().all(|needed| columns.has(needed)))
    };
    let has_routes = has("routes", &["source_type", "source_id", "path"])?;
    let has_repositories = has("project_repositories", &["project_id", "disk_path"])?;
    let has_shards = has_repositories
        && has("project_repositories", &["shard_id"])?
        && has("shards", &["id", "name"])?;
    let has_pools =
        columns.has("pool_repository_id") && has("pool_repositories", &["id", "disk_path"])?;
    let has_forks =
        has_routes && has("fork_network_members", &["project_id", "forked_from_project_id"])?;
    let has_designs = has("design_management_designs", &["project_id"])?;
    let has_namespaces =
        columns.has("namespace_id") && columns.has("path") && has("namespaces", &["id", "path"])?;

    let (mut select, mut from) = (vec!["p.id"], "from projects p".to_owned());
    select.push(if has_routes {
        from += " left join routes r on r.source_type = 'Project' and r.source_id = p.id";
        "r.path"
    } else if has_namespaces {
        from += " left join namespaces n on n.id = p.namespace_id";
        "n.path || '/' || p.path as path"
    } else {
        "null as path"
    });
    let own = columns.has("repository_storage");
    if has_repositories {
        from += " left join project_repositories pr on pr.project_id = p.id";
    }
    if has_shards {
        from += " left join shards s on s.id = pr.shard_id";
    }
    select.push(if own { "p.repository_storage as storage" } else { "null as storage" });
    select.push(if has_shards { "s.name as shard" } else { "null as shard" });
    select.push(if has_repositories { "pr.disk_path as repository" } else { "null as repository" });
    // Storage version 0 means a path by name.
    select.push(if columns.has("storage_version") {
        "coalesce(p.storage_version, 0) > 0 as is_hashed"
    } else {
        "null::boolean as is_hashed"
    });
    select.push(if has_pools {
        from += " left join pool_repositories po on po.id = p.pool_repository_id";
        "po.disk_path as pool"
    } else {
        "null as pool"
    });
    select.push(if has_forks {
        from += " left join fork_network_members m on m.project_id = p.id \
                 left join routes f on f.source_type = 'Project' and f.source_id = m.forked_from_project_id";
        "f.path as forked_from"
    } else {
        "null as forked_from"
    });
    let marked = marked_namespaces(database)?;
    let pending = format!("{} as is_pending_deletion", is_pending(&columns));
    select.push(&pending);
    select.push(if has_designs {
        "exists (select from design_management_designs d where d.project_id = p.id) as has_designs"
    } else {
        "false as has_designs"
    });
    let imports = imports::conditions(database, &columns)?;
    let running = format!("{} as is_importing", imports.is_running);
    let failed = format!("{} as has_failed_import", imports.has_failed);
    select.extend([running.as_str(), failed.as_str()]);
    let query = format!("{marked} select {} {from} order by p.id", select.join(", "));
    let project = |row: Row| {
        let id = row.id.try_into().ok()?;
        let path = row.path.unwrap_or_default();
        // GitLab computes the place from columns of `projects`. The row of `project_repositories`
        // only follows it, and some moves and renames leave it behind.
        let disk = match (row.is_hashed, &row.repository) {
            (Some(is_hashed), _) if is_hashed || path.is_empty() => hashed(row.id),
            (None, Some(tracked)) => tracked.clone(),
            (None, None) if path.is_empty() => hashed(row.id),
            _ => path.clone(),
        };
        let shard = row.shard.as_ref();
        let storage = row.storage.as_ref().or(shard).cloned().unwrap_or_else(|| "default".into());
        let tracked = row.repository.as_ref().map(|tracked| {
            (shard.unwrap_or(&storage).clone(), format!("{}.git", tracked.trim_start_matches('/')))
        });
        let repository = format!("{disk}.git");
        let is_elsewhere =
            |(shard, path): &(String, String)| *shard != storage || *path != repository;
        Some(Project {
            id,
            tracked: tracked.filter(is_elsewhere),
            storage,
            repository,
            place: None,
            wiki: None,
            design: None,
            pool: row.pool.map(|pool| format!("{pool}.git")),
            forked_from: row.forked_from,
            is_copied: false,
            is_pending_deletion: row.is_pending_deletion == Some(true),
            has_designs: row.has_designs == Some(true),
            is_importing: row.is_importing == Some(true),
            has_failed_import: row.has_failed_import == Some(true),
            path,
        })
    };
    let rows = catalogue.ask::<Row>(PROJECTS, database, &query)?;
    catalogue.projects = rows.into_iter().filter_map(project).collect();
    Ok(())
}

/// Returns the beginning of a query that has the ids of namespaces in a table `marked`: those that
/// are marked for deletion, and those below them.
fn marked_namespaces(database: &mut Connection<'_>) -> Result<String> {
    let namespaces = database.columns("namespaces")?;
    let mut marks = vec!["select null::bigint"];
    if database.columns("group_deletion_schedules")?.has("group_id") {
        marks.push("select group_id from group_deletion_schedules");
    }
    let details = database.columns("namespace_details")?;
    if details.has("namespace_id") && details.has("deleted_at") {
        marks.push("select namespace_id from namespace_details where deleted_at is not null");
    }
    // Columns of several versions.
    for (column, query) in [
        // 2 is a scheduled deletion, 4 one in progress.
        ("state", "select id from namespaces where state::text in ('2', '4')"),
        ("deleted_at", "select id from namespaces where deleted_at is not null"),
    ] {
        marks.extend((namespaces.has(column) && namespaces.has("id")).then_some(query));
    }
    let below = if namespaces.has("id") && namespaces.has("parent_id") {
        " union select n.id from namespaces n join marked m on n.parent_id = m.id"
    } else {
        ""
    };
    Ok(format!("with recursive marked(id) as (({}){below})", marks.join(" union ")))
}

/// Returns the condition that a project, named `p`, is marked for deletion. Its columns belong to
/// several versions. The query must begin with [`marked_namespaces`].
fn is_pending(columns: &Columns) -> String {
    let mut pending = vec!["false"];
    for (column, is) in [
        ("pending_delete", "coalesce(p.pending_delete, false)"),
        ("marked_for_deletion_at", "p.marked_for_deletion_at is not null"),
        ("marked_for_deletion_on", "p.marked_for_deletion_on is not null"),
        ("namespace_id", "exists (select from marked m where m.id = p.namespace_id)"),
        (
            "project_namespace_id",
            "exists (select from marked m where m.id = p.project_namespace_id)",
        ),
    ] {
        pending.extend(columns.has(column).then_some(is));
    }
    format!("({})", pending.join(" or "))
}

/// Queries the repositories whose rows contain a path. Repositories of wikis and designs are next
/// to the project's own, and their rows do not record whether they exist.
fn repositories(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: i64,
        storage: Option<String>,
        disk_path: String,
        is_pending_deletion: bool,
    }
    if !catalogue.repositories.is_empty() {
        return Ok(());
    }
    let shards = database.columns("shards")?;
    let has_shards = shards.has("id") && shards.has("name");
    let marked = marked_namespaces(database)?;
    let snippets = database.columns("snippets")?;
    let of_project = if snippets.has("id") && snippets.has("project_id") {
        let is_pending = is_pending(&database.columns("projects")?);
        format!(
            "exists (select from snippets s join projects p on p.id = s.project_id \
             where s.id = t.snippet_id and {is_pending})"
        )
    } else {
        "false".into()
    };
    let of_group = "exists (select from marked m where m.id = t.group_id)";
    for (table, column, of, is_pending) in [
        ("snippet_repositories", "snippet_id", "snippet", of_project.as_str()),
        ("group_wiki_repositories", "group_id", "wiki of group", of_group),
    ] {
        let columns = database.columns(table)?;
        if ![column, "disk_path"].iter().all(|needed| columns.has(needed)) {
            continue;
        }
        let query = if has_shards && columns.has("shard_id") {
            format!(
                "{marked} select t.{column} as id, s.name as storage, t.disk_path, \
                 {is_pending} as is_pending_deletion from {table} t \
                 left join shards s on s.id = t.shard_id order by 1"
            )
        } else {
            format!(
                "{marked} select t.{column} as id, null as storage, t.disk_path, \
                 {is_pending} as is_pending_deletion from {table} t order by 1"
            )
        };
        let repository = |row: Row| {
            Some(Repository {
                of: of.into(),
                id: row.id.try_into().ok()?,
                storage: row.storage.unwrap_or_else(|| "default".into()),
                repository: format!("{}.git", row.disk_path.trim_start_matches('/')),
                is_copied: false,
                is_pending_deletion: row.is_pending_deletion,
            })
        };
        let rows = catalogue.ask::<Row>(REPOSITORIES, database, &query)?;
        catalogue.repositories.extend(rows.into_iter().filter_map(repository));
    }
    Ok(())
}

/// Returns the path of hashed storage for a project id: `@hashed/aa/bb/aabb…`, a SHA-256 in hex.
pub fn hashed(id: i64) -> String {
    let hash = Sha256::digest(id.to_string());
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("@hashed/{}/{}/{hex}", &hex[..2], &hex[2..4])
}

fn files(plan: &Plan, database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    type Ask = fn(&Path, &Plan, &mut Connection<'_>, &mut Catalogue) -> Result<()>;
    let tables: [(&str, Ask); 11] = [
        ("uploads", uploads),
        ("lfs", lfs_objects),
        ("artifacts", artifacts),
        ("artifacts", artifacts_of_builds),
        ("artifacts", pipeline_artifacts),
        ("external-diffs", external_diffs),
        ("packages", packages),
        ("packages", package_formats::ask),
        ("terraform-state", terraform_states),
        ("ci-secure-files", secure_files),
        ("pages", pages),
    ];
    for (name, ask) in tables {
        let Some(part) = plan.parts.iter().find(|part| part.name == name) else { continue };
        let Some((dir, others)) = part.paths.split_first() else { continue };
        let asked = catalogue.files.len();
        ask(dir, plan, database, catalogue)?;
        // A part may have several directories, and a file may be in any of them.
        for row in &mut catalogue.files[asked..] {
            let inner: Vec<PathBuf> = row
                .paths
                .iter()
                .filter_map(|path| Some(path.strip_prefix(dir).ok()?.into()))
                .collect();
            row.paths.extend(others.iter().flat_map(|dir| inner.iter().map(|path| dir.join(path))));
        }
    }
    Ok(())
}

/// A table with one file per row.
struct Table<'a> {
    name: &'a str,
    /// Subject of the queries, which is also the name of the part with the files.
    what: &'static str,
    /// Columns required by the query.
    needs: &'a [&'a str],
    /// Columns that only some versions have. They are null in other versions.
    takes: &'static [&'static str],
    /// Further expressions to select; the table is named `t`.
    select: &'a str,
    /// Column that is 1 for files on this machine and 2 for files in an object store.
    store: &'static str,
    /// Columns, each with a condition that applies if the table has it.
    only: &'static [(&'static str, &'static str)],
    /// Condition that a row belongs to one of the projects [`IDS`]; `None` if no column tells.
    of_projects: Option<&'a str>,
}

/// Stands for the ids of projects in a condition.
const IDS: &str = "IDS";
/// Condition of a table with a column for the project.
const OWN_PROJECT: Option<&str> = Some("t.project_id in (IDS)");
/// Maximum number of rows of each table that are compared for some projects: the newest.
const ROWS_OF_PROJECTS: u32 = 10_000;

impl Table<'_> {
    /// Queries rows whose files are on this machine. Returns the newest and a random sample of the
    /// others, or all if the settings say so. Counts files in an object store.
    fn rows<T: DeserializeOwned>(
        &self,
        plan: &Plan,
        database: &mut Connection<'_>,
        catalogue: &mut Catalogue,
    ) -> Result<Vec<T>> {
        #[derive(Deserialize)]
        struct Count {
            count: u64,
        }
        let Table { name, what, needs, takes, select, store, only, of_projects } = self;
        let columns = database.columns(name)?;
        if columns.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(absent) = needs.iter().find(|needed| !columns.has(needed)) {
            let database = &database.database;
            let reason = format!("table {name} has no column {absent} (database {database})");
            catalogue.could_not_ask(what, &reason);
            return Ok(Vec::new());
        }
        let (has_store, mut conditions) = (columns.has(store), vec!["true".to_owned()]);
        if has_store {
            conditions.push(format!("coalesce(t.{store}, 1) = 1"));
        }
        let known = only.iter().filter(|(column, _)| columns.has(column));
        conditions.extend(known.map(|(_, is)| (*is).to_owned()));
        if let (Some(projects), Some(is_of)) = (&plan.projects, of_projects) {
            let ids: Vec<String> = projects.iter().map(ToString::to_string).collect();
            // A list must not be empty.
            let ids = if ids.is_empty() { "null".into() } else { ids.join(", ") };
            conditions.push(is_of.replace(IDS, &ids));
        }
        let mut asked: Vec<String> = needs.iter().map(|column| format!("t.{column}")).collect();
        asked.extend(takes.iter().map(|column| {
            if columns.has(column) { format!("t.{column}") } else { format!("null as {column}") }
        }));
        asked.extend((!select.is_empty()).then(|| (*select).to_owned()));
        let all =
            format!("select {} from {name} t where {}", asked.join(", "), conditions.join(" and "));
        let query = match plan.sample {
            _ if plan.projects.is_some() => {
                format!("{all} order by t.id desc limit {ROWS_OF_PROJECTS}")
            }
            Sample::All => format!("{all} order by t.id"),
            Sample::Rows(rows) => {
                let half = rows.div_ceil(2);
                // Sampling by id avoids reading large tables whole. Ids have gaps, so each sample is
                // the row at a random id or the next one.
                format!(
                    "({all} order by t.id desc limit {half}) union \
                     ({all} and t.id in (select (select next.id from {name} next \
                     where next.id >= samples.id order by next.id limit 1) from \
                     (select (low + random() * (high - low))::bigint as id \
                     from (select min(id) as low, max(id) as high from {name}) ends, \
                     generate_series(1, {half}) offset 0) samples))"
                )
            }
        };
        // Counting reads the whole table, so it is skipped if the settings disable row counts.
        let counts = plan.projects.is_none();
        if has_store && counts && plan.postgres.as_ref().is_some_and(|server| server.counts_rows) {
            let query = format!("select count(*) as count from {name} t where t.{store} = 2");
            for row in catalogue.ask::<Count>(what, database, &query)? {
                *catalogue.remote.entry(what).or_default() += row.count;
            }
        }
        catalogue.ask(what, database, &query)
    }

    /// Queries rows and adds the file of each to the catalogue. `file` returns `None` for a row
    /// without one.
    fn files<T: DeserializeOwned>(
        &self,
        plan: &Plan,
        database: &mut Connection<'_>,
        catalogue: &mut Catalogue,
        file: impl FnMut(T) -> Option<FileRow>,
    ) -> Result<()> {
        let rows = self.rows(plan, database, catalogue)?;
        catalogue.files.extend(rows.into_iter().filter_map(file));
        Ok(())
    }
}

/// Converts a size from a row. Negative sizes count as unknown.
fn size(size: Option<i64>) -> Option<u64> {
    size.and_then(|size| size.try_into().ok())
}

fn uploads(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    // A project's route is the directory of its attachments until they are moved.
    let mut has = |table: &str, needed: &[&str]| -> Result<bool> {
        let columns = database.columns(table)?;
        Ok(needed.iter().all(|needed| columns.has(needed)))
    };
    let has_model = has("uploads", &["model_type", "model_id"])?;
    let has_routes = has("routes", &["source_type", "source_id", "path"])? && has_model;
    // Before there was a choice, all projects were stored by name.
    let storage_version = match (has("projects", &["storage_version"])?, has("projects", &["id"])?)
    {
        _ if !has_model => "null::bigint",
        (true, _) => {
            "(select coalesce(p.storage_version, 0) from projects p where p.id = t.model_id)"
        }
        (false, true) => "(select 0 from projects p where p.id = t.model_id)",
        (false, false) => "null::bigint",
    };
    let route = match has_routes {
        true => {
            "(select min(r.path) from routes r where t.model_type = 'Project' \
             and r.source_type = 'Project' and r.source_id = t.model_id)"
        }
        false => "null",
    };
    let select = format!("{route} as route, {storage_version} as storage_version");
    let table = Table {
        name: "uploads",
        what: "uploads",
        needs: &["id", "path"],
        takes: &["size", "model_type", "model_id", "uploader", "secret"],
        select: &select,
        store: "store",
        only: &[],
        of_projects: has_model.then_some("t.model_type = 'Project' and t.model_id in (IDS)"),
    };
    let file = |row: uploads::Row| {
        let places = row.places(plan.uploads_base_dir.as_deref());
        let paths = places.into_iter().map(|path| dir.join(path)).collect();
        let (what, id, size) = ("uploads", row.id.to_string(), size(row.size));
        row.path.as_ref()?;
        Some(FileRow { what, part: "uploads", id, paths, size })
    };
    table.files(plan, database, catalogue, file)
}

fn lfs_objects(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: i64,
        oid: String,
        size: Option<i64>,
    }
    let links = database.columns("lfs_objects_projects")?;
    let has_links = links.has("lfs_object_id") && links.has("project_id");
    let table = Table {
        name: "lfs_objects",
        what: "lfs",
        needs: &["id", "oid"],
        takes: &["size"],
        select: "",
        store: "file_store",
        only: &[],
        of_projects: has_links.then_some(
            "exists (select from lfs_objects_projects l where l.lfs_object_id = t.id \
             and l.project_id in (IDS))",
        ),
    };
    table.files(plan, database, catalogue, |row: Row| {
        if row.oid.len() < 5 || !row.oid.is_ascii() {
            return None;
        }
        let path = dir.join(&row.oid[..2]).join(&row.oid[2..4]).join(&row.oid[4..]);
        let (id, size) = (row.id.to_string(), size(row.size));
        Some(FileRow { what: "lfs", part: "lfs", id, paths: vec![path], size })
    })
}

fn artifacts(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: i64,
        project_id: i64,
        job_id: i64,
        file: Option<String>,
        size: Option<i64>,
        file_location: Option<i64>,
        month: Option<String>,
        day: Option<String>,
    }
    /// Location of the oldest artifacts, whose paths lack the hash of the project.
    const BY_MONTH: i64 = 1;
    let file = |row: Row| {
        let job = row.job_id.to_string();
        let path = if row.file_location == Some(BY_MONTH) {
            dir.join(row.month?).join(row.project_id.to_string()).join(job)
        } else {
            let project = hashed(row.project_id);
            let project = project.strip_prefix("@hashed/").unwrap_or(&project);
            dir.join(project).join(row.day?).join(job).join(row.id.to_string())
        };
        let path = path.join(row.file?);
        let (what, id, size) = ("artifacts", row.id.to_string(), size(row.size));
        Some(FileRow { what, part: "artifacts", id, paths: vec![path], size })
    };
    // Newer versions partition the table. The old name may then be that of one partition.
    for name in ["p_ci_job_artifacts", "ci_job_artifacts"] {
        let table = Table {
            name,
            what: "artifacts",
            needs: &["id", "project_id", "job_id", "file", "created_at"],
            takes: &["size", "file_location"],
            select: "to_char(t.created_at, 'YYYY_MM') as month, \
                     to_char(t.created_at, 'YYYY_MM_DD') as day",
            store: "file_store",
            only: &[],
            of_projects: OWN_PROJECT,
        };
        let rows: Vec<Row> = table.rows(plan, database, catalogue)?;
        let is_any = !rows.is_empty() || catalogue.remote.get("artifacts") > Some(&0);
        catalogue.files.extend(rows.into_iter().filter_map(file));
        if is_any {
            break;
        }
    }
    Ok(())
}

/// Asks for artifacts whose rows are those of their jobs. Versions before 10 wrote them.
fn artifacts_of_builds(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: i64,
        project_id: Option<i64>,
        artifacts_file: String,
        month: Option<String>,
    }
    let table = Table {
        name: "ci_builds",
        what: "artifacts",
        needs: &["id", "project_id", "artifacts_file", "created_at"],
        takes: &[],
        select: "to_char(t.created_at, 'YYYY_MM') as month",
        store: "artifacts_file_store",
        // GitLab has an index with this condition.
        only: &[("artifacts_file", "t.artifacts_file <> ''")],
        of_projects: OWN_PROJECT,
    };
    if !database.columns(table.name)?.has("artifacts_file") {
        return Ok(()); // versions that keep all of them in a table of their own
    }
    table.files(plan, database, catalogue, |row: Row| {
        let job = row.id.to_string();
        let dir = dir.join(row.month?).join(row.project_id?.to_string()).join(&job);
        let (what, id) = ("artifacts", format!("{job} of ci_builds"));
        Some(FileRow {
            what,
            part: what,
            id,
            paths: vec![dir.join(row.artifacts_file)],
            size: None,
        })
    })
}

/// A row's file, in a directory derived from its project's id.
#[derive(Deserialize)]
struct OfProject {
    id: i64,
    project_id: Option<i64>,
    /// Path below the directory of the project; several if versions differ.
    inner: Vec<Option<String>>,
    /// True if the name of that directory is the id itself instead of its hash.
    #[serde(default)]
    is_plain: bool,
    size: Option<i64>,
}

impl OfProject {
    fn file(self, what: &'static str, dir: &Path) -> Option<FileRow> {
        let project = match self.project_id? {
            id if self.is_plain => id.to_string(),
            id => hashed(id),
        };
        let dir = dir.join(project.strip_prefix("@hashed/").unwrap_or(&project));
        let inner = self.inner.into_iter().flatten();
        let paths: Vec<PathBuf> =
            inner.map(|path| dir.join(path.trim_start_matches('/'))).collect();
        let (id, size) = (self.id.to_string(), size(self.size));
        (!paths.is_empty()).then_some(FileRow { what, part: what, id, paths, size })
    }
}

fn of_projects(
    table: &Table<'_>,
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    table.files(plan, database, catalogue, |row: OfProject| row.file(table.what, dir))
}

fn pipeline_artifacts(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let table = Table {
        name: "ci_pipeline_artifacts",
        what: "artifacts",
        needs: &["id", "project_id", "pipeline_id", "file"],
        takes: &["size"],
        select: "array['pipelines/' || t.pipeline_id || '/artifacts/' || t.id || '/' || t.file] as inner",
        store: "file_store",
        only: &[],
        of_projects: OWN_PROJECT,
    };
    of_projects(&table, dir, plan, database, catalogue)
}

fn external_diffs(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: i64,
        merge_request_id: i64,
        external_diff: Option<String>,
        size: Option<i64>,
    }
    let requests = database.columns("merge_requests")?;
    let has_target = requests.has("id") && requests.has("target_project_id");
    // A diff without changes has no bytes, so only these rows tell whether the file is whole.
    let pieces = database.columns("merge_request_diff_files")?;
    let needed = ["merge_request_diff_id", "external_diff_offset", "external_diff_size"];
    let has_sizes = needed.iter().all(|needed| pieces.has(needed));
    let table = Table {
        name: "merge_request_diffs",
        what: "external-diffs",
        needs: &["id", "merge_request_id", "external_diff", "stored_externally"],
        takes: &[],
        select: if has_sizes {
            "(select max(p.external_diff_offset::bigint + p.external_diff_size) \
             from merge_request_diff_files p where p.merge_request_diff_id = t.id) as size"
        } else {
            "null::bigint as size"
        },
        store: "external_diff_store",
        only: &[("stored_externally", "t.stored_externally")],
        of_projects: has_target.then_some(
            "exists (select from merge_requests m where m.id = t.merge_request_id \
             and m.target_project_id in (IDS))",
        ),
    };
    if !database.columns(table.name)?.has("external_diff") {
        return Ok(()); // versions that keep all of them in the database
    }
    table.files(plan, database, catalogue, |row: Row| {
        let place = format!("merge_request_diffs/mr-{}", row.merge_request_id);
        let paths = vec![dir.join(place).join(row.external_diff?)];
        let (what, id) = ("external-diffs", row.id.to_string());
        Some(FileRow { what, part: what, id, paths, size: size(row.size) })
    })
}

fn packages(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    // The package has the project. Files have a `project_id` of their own only in recent versions.
    let of_packages = database.columns("packages_packages")?;
    let (of_package, has_states) = (of_packages.has("project_id"), of_packages.has("status"));
    let own = database.columns("packages_package_files")?.has("project_id");
    let project = match (of_package, own) {
        (true, true) => {
            "coalesce((select p.project_id from packages_packages p where p.id = t.package_id), \
             t.project_id)"
        }
        (true, false) => "(select p.project_id from packages_packages p where p.id = t.package_id)",
        (false, true) => "t.project_id",
        (false, false) => "null::bigint",
    };
    let is_of = format!("{project} in (IDS)");
    let select = format!(
        "{project} as project_id, array['packages/' || t.package_id || '/files/' || t.id || '/' || t.file] as inner"
    );
    let table = Table {
        name: "packages_package_files",
        what: "packages",
        needs: &["id", "package_id", "file"],
        takes: &["size"],
        select: &select,
        store: "file_store",
        // GitLab removes the files of other states while their rows are still there.
        only: if has_states {
            &[
                ("status", "coalesce(t.status, 0) = 0"),
                (
                    "package_id",
                    "not exists (select from packages_packages p where p.id = t.package_id \
                     and p.status = 4)",
                ),
            ]
        } else {
            &[("status", "coalesce(t.status, 0) = 0")]
        },
        of_projects: (of_package || own).then_some(&is_of),
    };
    of_projects(&table, dir, plan, database, catalogue)
}

fn terraform_states(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let states = database.columns("terraform_states")?;
    if states.has("uuid") && states.has("project_id") {
        let of_state = |expression: &str| {
            format!(
                "(select {expression} from terraform_states s where s.id = t.terraform_state_id)"
            )
        };
        // A state without versions is a single file in a directory of its project.
        let is_plain = match states.has("versioning_enabled") {
            true => of_state("s.versioning_enabled is false"),
            false => "false".into(),
        };
        let select = format!(
            "{} as project_id, null::bigint as size, {is_plain} as is_plain, \
             array[case when {is_plain} then t.file else {} || '/' || t.file end] as inner",
            of_state("s.project_id"),
            of_state("s.uuid")
        );
        let is_of = format!("{} in (IDS)", of_state("s.project_id"));
        let table = Table {
            name: "terraform_state_versions",
            what: "terraform-state",
            needs: &["id", "terraform_state_id", "file"],
            takes: &[],
            select: &select,
            store: "file_store",
            only: &[],
            of_projects: Some(&is_of),
        };
        of_projects(&table, dir, plan, database, catalogue)?;
    }
    if states.has("file") {
        let table = Table {
            name: "terraform_states",
            what: "terraform-state",
            needs: &["id", "project_id", "file"],
            takes: &[],
            select: "null::bigint as size, true as is_plain, array[t.file] as inner",
            store: "file_store",
            only: &[("versioning_enabled", "t.versioning_enabled is not true")],
            of_projects: OWN_PROJECT,
        };
        of_projects(&table, dir, plan, database, catalogue)?;
    }
    Ok(())
}

fn secure_files(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let table = Table {
        name: "ci_secure_files",
        what: "ci-secure-files",
        needs: &["id", "project_id", "file"],
        takes: &[],
        // Files on disk are encrypted, and larger than the size in the row.
        select: "null::bigint as size, array['secure_files/' || t.id || '/' || t.file] as inner",
        store: "file_store",
        only: &[],
        of_projects: OWN_PROJECT,
    };
    of_projects(&table, dir, plan, database, catalogue)
}

fn pages(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let table = Table {
        name: "pages_deployments",
        what: "pages",
        needs: &["id", "project_id", "file"],
        takes: &["size"],
        select: "array['pages_deployments/' || t.id || '/' || t.file] as inner",
        store: "file_store",
        // Replaced deployments are removed only some time later.
        only: &[("deleted_at", "t.deleted_at is null")],
        of_projects: OWN_PROJECT,
    };
    of_projects(&table, &dir.join("@hashed"), plan, database, catalogue)
}

fn applications(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    let columns = database.columns("oauth_applications")?;
    if columns.is_empty() {
        return Ok(());
    }
    let instance_wide = if columns.has("owner_id") { "owner_id is null" } else { "true" };
    let query = format!(
        "select name, uid, secret, {instance_wide} as is_instance_wide \
         from oauth_applications order by id"
    );
    let rows: Vec<Application> = catalogue.ask(APPLICATIONS, database, &query)?;
    catalogue.applications.extend(rows);
    Ok(())
}

/// Counts the SSH keys of users and deploy keys, if GitLab writes them to `authorized_keys`.
fn ssh_keys(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Setting {
        is_used: Option<bool>,
    }
    #[derive(Deserialize)]
    struct Count {
        count: u64,
    }
    let columns = database.columns("keys")?;
    if !columns.has("key") || !columns.has("user_id") {
        return Ok(());
    }
    // Without the column, GitLab always writes them.
    if database.columns("application_settings")?.has("authorized_keys_enabled") {
        let query = "select authorized_keys_enabled as is_used from application_settings \
                     order by id desc limit 1";
        let settings: Vec<Setting> = catalogue.ask(SSH_KEYS, database, query)?;
        if settings.iter().any(|setting| setting.is_used == Some(false)) {
            return Ok(());
        }
    }
    // Keys that only sign commits are not for ssh.
    let usage = if columns.has("usage_type") { "usage_type is distinct from 2" } else { "true" };
    let query = format!("select count(*) as count from keys where {usage}");
    let count: Vec<Count> = catalogue.ask(SSH_KEYS, database, &query)?;
    catalogue.ssh_keys = catalogue.ssh_keys.max(count.first().map(|row| row.count));
    Ok(())
}

fn migrations(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        status: i64,
        count: u64,
    }
    let columns = database.columns("batched_background_migrations")?;
    // The registry has a table of the same name with different status numbers.
    if !columns.has("job_class_name") {
        return Ok(());
    }
    let query =
        "select status, count(*) as count from batched_background_migrations group by 1 order by 1";
    let rows: Vec<Row> = catalogue.ask("background migrations", database, query)?;
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
    fn numbered_paths_match_those_of_gitlab() {
        // From GitLab's documentation of hashed storage.
        let one = "@hashed/6b/86/6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b";
        assert_eq!(hashed(1), one);
        assert!(hashed(2).starts_with("@hashed/d4/73/d4735e3a265e"));
    }
}
