//! Files that registries of single package formats keep beside those of packages: symbols of NuGet,
//! and the indexes of RPM and Debian repositories.
//!
//! Their paths are those of GitLab's uploaders (`app/uploaders/packages`). Caches that GitLab
//! writes again are left out.

use super::{IDS, Table, hashed, size};
use crate::catalogue::{Catalogue, FileRow};
use crate::error::Result;
use crate::plan::Plan;
use crate::service::postgres::Connection;
use serde::Deserialize;
use std::path::Path;

/// A file of such a registry.
#[derive(Deserialize)]
struct Row {
    id: i64,
    /// Id whose hash names the first directories; `None` if `inner` begins with them.
    owner: Option<i64>,
    /// Path below these.
    inner: Option<String>,
    size: Option<i64>,
}

impl Row {
    fn file(self, table: &str, dir: &Path) -> Option<FileRow> {
        let inner = self.inner?;
        let path = match self.owner.map(hashed) {
            Some(owner) => dir.join(owner.trim_start_matches("@hashed/")).join(inner),
            None => dir.join(inner.trim_start_matches('/')),
        };
        let (what, id) = ("packages", format!("{} of {table}", self.id));
        Some(FileRow { what, part: what, id, paths: vec![path], size: size(self.size) })
    }
}

/// Asks for the files of these registries.
pub fn ask(
    dir: &Path,
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let mut ask = |table: Table<'_>| {
        let name = table.name;
        // Versions before a format lack its tables, and older ones some of the columns.
        let columns = database.columns(name)?;
        if !table.needs.iter().all(|needed| columns.has(needed)) {
            return Ok(());
        }
        table.files(plan, database, catalogue, |row: Row| row.file(name, dir))
    };
    ask(Table {
        name: "packages_nuget_symbols",
        what: "packages",
        needs: &["id", "file", "object_storage_key"],
        takes: &["size"],
        select: "null::bigint as owner, t.object_storage_key || '/' || t.file as inner",
        store: "file_store",
        // GitLab removes the files of other states while their rows are still there.
        only: &[("status", "coalesce(t.status, 0) = 0")],
        of_projects: Some(&format!(
            "t.package_id in (select p.id from packages_packages p where p.project_id in ({IDS}))"
        )),
    })?;
    ask(Table {
        name: "packages_rpm_repository_files",
        what: "packages",
        needs: &["id", "project_id", "file_name"],
        takes: &["size"],
        select: "t.project_id as owner, 'projects/' || t.project_id || '/rpm/repository_files/' \
                 || t.id || '/' || t.file_name as inner",
        store: "file_store",
        only: &[("status", "coalesce(t.status, 0) = 0")],
        of_projects: super::OWN_PROJECT,
    })?;
    for owner in ["project", "group"] {
        let owner_id = format!("{owner}_id");
        let (distributions, files) = (
            format!("packages_debian_{owner}_distributions"),
            format!("packages_debian_{owner}_component_files"),
        );
        for (column, store, name) in
            [("file", "file_store", "Release"), ("signed_file", "signed_file_store", "InRelease")]
        {
            let select = format!(
                "t.{owner_id} as owner, null::bigint as size, case when t.{column} <> '' then \
                 'debian_{owner}_distribution/' || t.id || '/{name}' end as inner"
            );
            ask(Table {
                name: &distributions,
                what: "packages",
                needs: &["id", &owner_id, column],
                takes: &[],
                select: &select,
                store,
                only: &[],
                of_projects: (owner == "project").then_some(super::OWN_PROJECT).flatten(),
            })?;
        }
        let components = format!("packages_debian_{owner}_components");
        let owner_id = format!(
            "(select d.{owner_id} from {components} c join {distributions} d \
             on d.id = c.distribution_id where c.id = t.component_id)"
        );
        let select = format!(
            "{owner_id} as owner, \
             'debian_{owner}_component_file/' || t.id || '/' || t.file as inner"
        );
        let is_of = format!("{owner_id} in ({IDS})");
        ask(Table {
            name: &files,
            what: "packages",
            needs: &["id", "component_id", "file"],
            takes: &["size"],
            select: &select,
            store: "file_store",
            only: &[],
            of_projects: (owner == "project").then_some(&is_of),
        })?;
    }
    Ok(())
}
