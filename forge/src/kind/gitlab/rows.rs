//! What GitLab's databases say that there is.
//!
//! Columns come and go with versions, so a query is only asked of columns that are there.

use crate::catalogue::{Application, Catalogue, FileRow, Project};
use crate::check::{Check, Verdict};
use crate::copy::{Copy, Seen, shown};
use crate::error::Result;
use crate::plan::{Phase, Plan};
use crate::service::postgres::Connection;
use crate::settings::Sample;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Asks all databases that have GitLab's tables.
pub fn ask(plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    for database in databases {
        schema(database, &mut catalogue)?;
        projects(database, &mut catalogue)?;
        files(plan, database, &mut catalogue)?;
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
    let has = |name: &str| columns.iter().any(|column| column == name);
    let mut select = vec!["p.id", "r.path"];
    let mut from = "from projects p \
        left join routes r on r.source_type = 'Project' and r.source_id = p.id"
        .to_owned();
    let storage = if has("repository_storage") { "p.repository_storage" } else { "'default'" };
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
    select.push(if has("storage_version") {
        "coalesce(p.storage_version, 0) > 0 as is_hashed"
    } else {
        "false as is_hashed"
    });
    if has("pool_repository_id") && !database.columns("pool_repositories")?.is_empty() {
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
                wiki: Some(format!("{disk}.wiki.git")),
                design: Some(format!("{disk}.design.git")),
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

/// The rows of a table that stand for files on this machine: the newest and some others.
fn sampled(table: &str, columns: &str, condition: &str, sample: Sample) -> String {
    let all = format!("select {columns} from {table} t where {condition}");
    match sample {
        Sample::All => format!("{all} order by t.id"),
        Sample::Rows(rows) => {
            let half = rows.div_ceil(2);
            // By number, so that large tables are not read whole.
            format!(
                "({all} order by t.id desc limit {half}) union \
                 ({all} and t.id in (select (low + random() * (high - low))::bigint \
                 from (select min(id) as low, max(id) as high from {table}) ends, generate_series(1, {half})))"
            )
        }
    }
}

fn files(plan: &Plan, database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    if let Some(dir) = plan.place("uploads") {
        uploads(&dir, plan.sample, database, catalogue)?;
    }
    if let Some(dir) = plan.place("lfs") {
        lfs(&dir, plan.sample, database, catalogue)?;
    }
    if let Some(dir) = plan.place("artifacts") {
        artifacts(&dir, plan.sample, database, catalogue)?;
    }
    Ok(())
}

/// On this machine, not in a bucket.
fn is_local(columns: &[String], name: &str) -> String {
    if columns.iter().any(|column| column == name) {
        format!("coalesce(t.{name}, 1) = 1")
    } else {
        "true".into()
    }
}

fn uploads(
    dir: &Path,
    sample: Sample,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: u64,
        path: String,
        size: Option<u64>,
        model_type: Option<String>,
        model_id: Option<u64>,
    }
    let columns = database.columns("uploads")?;
    if columns.is_empty() {
        return Ok(());
    }
    let local = is_local(&columns, "store");
    let query =
        sampled("uploads", "t.id, t.path, t.size, t.model_type, t.model_id", &local, sample);
    for row in database.rows::<Row>(&query)? {
        let path = row.path.strip_prefix("uploads/").unwrap_or(&row.path);
        let mut paths = vec![dir.join(path)];
        // Older rows are relative to the directory of what they belong to.
        if let (Some("Project"), Some(id)) = (row.model_type.as_deref(), row.model_id) {
            paths.push(dir.join(hashed(id)).join(path));
        }
        catalogue.files.push(FileRow {
            what: "uploads",
            id: row.id.to_string(),
            paths,
            size: row.size,
        });
    }
    Ok(())
}

fn lfs(
    dir: &Path,
    sample: Sample,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: u64,
        oid: String,
        size: Option<u64>,
    }
    let columns = database.columns("lfs_objects")?;
    if columns.is_empty() {
        return Ok(());
    }
    let local = is_local(&columns, "file_store");
    let query = sampled("lfs_objects", "t.id, t.oid, t.size", &local, sample);
    for row in database.rows::<Row>(&query)? {
        let oid = &row.oid;
        if oid.len() < 5 || !oid.is_ascii() {
            continue;
        }
        let path = dir.join(&oid[..2]).join(&oid[2..4]).join(&oid[4..]);
        catalogue.files.push(FileRow {
            what: "lfs",
            id: row.id.to_string(),
            paths: vec![path],
            size: row.size,
        });
    }
    Ok(())
}

fn artifacts(
    dir: &Path,
    sample: Sample,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: u64,
        project_id: u64,
        job_id: u64,
        file: Option<String>,
        size: Option<u64>,
        day: Option<String>,
    }
    // Each database of a decomposed instance has the table, and only one the rows.
    for table in ["p_ci_job_artifacts", "ci_job_artifacts"] {
        let columns = database.columns(table)?;
        let needed = ["id", "project_id", "job_id", "file", "size", "created_at"];
        if needed.iter().any(|name| !columns.iter().any(|column| column == name)) {
            continue;
        }
        let local = is_local(&columns, "file_store");
        let query = sampled(
            table,
            "t.id, t.project_id, t.job_id, t.file, t.size, to_char(t.created_at, 'YYYY_MM_DD') as day",
            &format!("{local} and t.file is not null"),
            sample,
        );
        for row in database.rows::<Row>(&query)? {
            let (Some(file), Some(day)) = (row.file, row.day) else { continue };
            let project = hashed(row.project_id);
            let project = project.strip_prefix("@hashed/").unwrap_or(&project);
            let path = dir.join(project).join(day).join(row.job_id.to_string());
            let path = path.join(row.id.to_string()).join(file);
            let row = FileRow {
                what: "artifacts",
                id: row.id.to_string(),
                paths: vec![path],
                size: row.size,
            };
            catalogue.files.push(row);
        }
        return Ok(());
    }
    Ok(())
}

fn applications(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    let columns = database.columns("oauth_applications")?;
    if columns.is_empty() {
        return Ok(());
    }
    let has_owner = columns.iter().any(|column| column == "owner_id");
    let instance_wide = if has_owner { "owner_id is null" } else { "true" };
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
    if !columns.iter().any(|column| column == "job_class_name") {
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

/// The storages by name.
fn storages(plan: &Plan) -> BTreeMap<&str, &Path> {
    let repositories = plan.parts.iter().filter(|part| part.phase == Phase::Repositories);
    repositories
        .filter_map(|part| {
            let name = part.name.strip_prefix("repositories-").unwrap_or("default");
            Some((name, part.paths.first()?.as_path()))
        })
        .collect()
}

/// Where the repository of a project is on this machine.
pub fn repository(plan: &Plan, storage: &str, relative: &str) -> Option<PathBuf> {
    storages(plan).get(storage).map(|dir| dir.join(relative))
}

/// Looks whether the copy has what the catalogue names.
pub fn check(plan: &Plan, catalogue: &Catalogue, copy: &Copy<'_>) -> Result<Vec<Check>> {
    if catalogue.schema.is_empty() {
        let text = "no database of GitLab was asked, so nothing could be compared with it";
        return Ok(vec![Check::new("catalogue", Verdict::Unknown, text)]);
    }
    Ok(vec![
        check_repositories(plan, catalogue, copy)?,
        check_pools(plan, catalogue, copy)?,
        check_files(catalogue, copy)?,
    ])
}

/// What is missing: in the copy alone, or on this machine as well.
struct Absent {
    is_live: bool,
    of_copy: Vec<String>,
    of_instance: Vec<String>,
}

impl Absent {
    fn new(copy: &Copy<'_>) -> Absent {
        let is_live = matches!(copy, Copy::Live);
        Absent { is_live, of_copy: Vec::new(), of_instance: Vec::new() }
    }

    fn add(&mut self, text: String, is_on_machine: bool) {
        if is_on_machine { &mut self.of_copy } else { &mut self.of_instance }.push(text);
    }

    fn check(self, name: &str, what: &str, count: usize) -> Check {
        let all = self.of_copy.len() + self.of_instance.len();
        if all == 0 {
            return Check::ok(name, format!("{count} {what} looked at; all are there"));
        }
        let verdict = if self.of_copy.is_empty() { Verdict::Warning } else { Verdict::Failed };
        let text = if self.is_live {
            format!("{all} of {count} {what} are not there")
        } else {
            format!(
                "{all} of {count} {what} are not in the copy; {} of them are not on this machine either",
                self.of_instance.len()
            )
        };
        Check::new(name, verdict, text)
            .with_examples(self.of_copy.into_iter().chain(self.of_instance))
    }
}

fn check_repositories(plan: &Plan, catalogue: &Catalogue, copy: &Copy<'_>) -> Result<Check> {
    let storages = storages(plan);
    let place = |project: &Project| {
        let dir = storages.get(project.storage.as_str())?;
        Some(dir.join(&project.repository))
    };
    let mut absent = Absent::new(copy);
    let known: Vec<(&Project, PathBuf)> =
        catalogue.projects.iter().filter_map(|project| Some((project, place(project)?))).collect();
    let unknown = catalogue.projects.iter().filter(|project| place(project).is_none());
    for project in unknown {
        absent
            .add(format!("{}: its storage {} is not a part", project.path, project.storage), true);
    }
    let paths: Vec<PathBuf> = known.iter().map(|(_, path)| path.clone()).collect();
    for ((project, path), seen) in known.iter().zip(copy.look(&paths)?) {
        if seen.is_none() {
            absent.add(format!("{}: {}", project.path, shown(path)), path.exists());
        }
    }
    Ok(absent.check("repositories", "projects", catalogue.projects.len()))
}

/// Every pool that a member borrows from has to be there, or its objects are lost.
fn check_pools(plan: &Plan, catalogue: &Catalogue, copy: &Copy<'_>) -> Result<Check> {
    let storages = storages(plan);
    let members: Vec<(&Project, PathBuf)> = catalogue
        .projects
        .iter()
        .filter_map(|project| {
            let dir = storages.get(project.storage.as_str())?;
            Some((project, dir.join(&project.repository).join("objects")))
        })
        .collect();
    let files: Vec<PathBuf> = members.iter().map(|(_, dir)| dir.join("info/alternates")).collect();
    let mut borrowed: Vec<(&Project, &PathBuf, PathBuf)> = Vec::new();
    let mut odd = Vec::new();
    let seen = copy.read(&files)?;
    for (((project, objects), file), seen) in members.iter().zip(&files).zip(seen) {
        let lines = alternates(seen.as_ref());
        if lines.is_empty() && project.pool.is_some() {
            continue; // linked by the next housekeeping; until then it has its own objects
        }
        if !lines.is_empty() && project.pool.is_none() {
            odd.push(format!("{}: it borrows objects, though its row names no pool", project.path));
        }
        for line in lines {
            let pool = lexically(&objects.join(line));
            borrowed.push((project, file, pool));
        }
    }
    let pools: Vec<PathBuf> = borrowed.iter().map(|(.., pool)| pool.clone()).collect();
    let mut absent = Absent::new(copy);
    for ((project, file, pool), seen) in borrowed.iter().zip(copy.look(&pools)?) {
        if seen.is_none() {
            // A member of a pool that was given up meanwhile does not borrow any more.
            let has_moved = !pool.exists() && !file.exists();
            absent.add(format!("{}: {}", project.path, shown(pool)), pool.exists() || has_moved);
        }
    }
    let check = absent.check("pools", "members of pools", borrowed.len());
    if check.verdict == Verdict::Ok && !odd.is_empty() {
        let text = format!("{}; rows and disk disagree about {}", check.text, odd.len());
        return Ok(Check::new("pools", Verdict::Warning, text).with_examples(odd));
    }
    Ok(check)
}

/// The paths in a file of alternates.
fn alternates(seen: Option<&Seen>) -> Vec<String> {
    let content = seen.and_then(|seen| seen.content.as_deref()).unwrap_or_default();
    let text = String::from_utf8_lossy(content).into_owned();
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Without `..`, as git reads alternates.
fn lexically(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(clean.pop()),
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// Looks whether the copy has the files that rows stand for.
pub fn check_files(catalogue: &Catalogue, copy: &Copy<'_>) -> Result<Check> {
    let paths: Vec<PathBuf> = catalogue.files.iter().flat_map(|row| row.paths.clone()).collect();
    let mut seen = copy.look(&paths)?.into_iter();
    let mut absent = Absent::new(copy);
    for row in &catalogue.files {
        let found: Vec<Seen> = seen.by_ref().take(row.paths.len()).flatten().collect();
        let fits = |seen: &Seen| row.size.is_none_or(|size| size == seen.size);
        if found.iter().any(fits) {
            continue;
        }
        let path = &row.paths[0];
        let text = match found.first() {
            Some(seen) => format!(
                "{} row {}: {} has {} bytes instead of {}",
                row.what,
                row.id,
                shown(path),
                seen.size,
                row.size.unwrap_or_default()
            ),
            None => format!("{} row {}: {}", row.what, row.id, shown(path)),
        };
        let is_on_machine = |path: &PathBuf| {
            let metadata = path.symlink_metadata();
            metadata.is_ok_and(|metadata| row.size.is_none_or(|size| size == metadata.len()))
        };
        absent.add(text, row.paths.iter().any(is_on_machine));
    }
    Ok(absent.check("files", "rows with files", catalogue.files.len()))
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

    #[test]
    fn alternates_are_followed_as_git_does() {
        let seen = Seen {
            is_dir: false,
            size: 0,
            content: Some(b"# pool\n../../../@pools/a.git/objects\n\n".to_vec()),
        };
        assert_eq!(alternates(Some(&seen)), ["../../../@pools/a.git/objects"]);
        let objects = Path::new("/s/@hashed/6b/86.git/objects/../../../@pools/a.git/objects");
        assert_eq!(lexically(objects), Path::new("/s/@hashed/@pools/a.git/objects"));
        assert!(alternates(None).is_empty());
    }
}
