//! Databases that own GitLab's tables.
//!
//! GitLab can move a section of its tables, such as CI, to a database of its own. Both databases then
//! have all tables. GitLab neither reads nor updates the old rows of a table in the other database.

use super::SCHEMA;
use crate::catalogue::Catalogue;
use crate::error::Result;
use crate::plan::Plan;
use crate::service::postgres::Connection;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Section of all tables that belong to no other one.
const MAIN: &str = "main";

/// Tables that each database has for itself.
const SHARED: [&str; 4] = [
    "ar_internal_metadata",
    "batched_background_migration_jobs",
    "batched_background_migrations",
    "schema_migrations",
];

/// Tables of section `ci` without its prefix.
const CI: [&str; 3] = ["external_pull_requests", "taggings", "tags"];

/// Beginnings of the names of tables in section `sec`.
const SEC: [&str; 6] =
    ["dast_", "dependency_list_", "sbom_", "security_findings", "security_scans", "vulnerabilit"];

/// Returns the section of a table in `database.yml`; `None` if each database has the table for
/// itself.
fn section(table: &str) -> Option<&'static str> {
    let starts = |all: &[&str]| all.iter().any(|start| table.starts_with(start));
    if SHARED.contains(&table) {
        None
    } else if starts(&["ci_", "p_ci_"]) || table.contains("_ci_runner") || CI.contains(&table) {
        Some("ci")
    } else if starts(&SEC) {
        Some("sec")
    } else {
        Some(MAIN)
    }
}

/// Sections with a database of their own, each with its name; `None` on another server.
type Sections = BTreeMap<String, Option<String>>;

/// A database with a table.
struct Holder<'a> {
    database: &'a str,
    /// True if GitLab has blocked writes to the table, because another database owns it.
    is_locked: bool,
}

/// Returns true if a database owns a table that these databases have. `connected` are all databases
/// of GitLab on the server. Without any section, only blocked tables are known to be foreign.
fn owns(
    database: &str,
    table: &str,
    holders: &[Holder<'_>],
    sections: &Sections,
    connected: &[String],
) -> bool {
    let Some(section) = section(table) else { return true };
    let is_any_open = holders.iter().any(|holder| !holder.is_locked);
    let usable = holders.iter().filter(|holder| !is_any_open || !holder.is_locked);
    let usable: Vec<&str> = usable.map(|holder| holder.database).collect();
    if !usable.contains(&database) {
        return false;
    }
    match sections.get(section).or(sections.get(MAIN)) {
        None => true,
        Some(Some(owner)) if usable.contains(&owner.as_str()) => owner == database,
        // Versions differ in the section of a table.
        Some(Some(owner)) if connected.contains(owner) => usable.first() == Some(&database),
        // Its rows cannot be queried.
        Some(_) => false,
    }
}

/// Returns the connections to databases of GitLab itself. Each hides the tables that another
/// database owns. Other databases of the server, such as a copy made before an upgrade, have rows
/// that nobody uses.
pub fn own<'a, 'b>(
    plan: &Plan,
    databases: &'b mut [Connection<'a>],
    catalogue: &mut Catalogue,
) -> Result<Vec<&'b mut Connection<'a>>> {
    let names: BTreeSet<&String> = plan.sections.values().flatten().collect();
    let is_any_known = databases.iter().any(|known| names.contains(&known.database));
    // An instance may have been restored under another name.
    let sections = if is_any_known { plan.sections.clone() } else { Sections::new() };
    let mut own: Vec<&mut Connection<'a>> = databases
        .iter_mut()
        .filter(|known| !is_any_known || names.contains(&known.database))
        .collect();
    let connected: Vec<String> = own.iter().map(|known| known.database.clone()).collect();
    let mut holders: BTreeMap<String, Vec<Holder<'_>>> = BTreeMap::new();
    for (known, database) in own.iter_mut().zip(&connected) {
        for Table { name, is_locked } in tables(known, catalogue)? {
            holders.entry(name).or_default().push(Holder { database, is_locked });
        }
    }
    for (known, database) in own.iter_mut().zip(&connected) {
        let is_foreign = |table: &str, holders: &[Holder<'_>]| {
            holders.iter().any(|holder| holder.database == *database)
                && !owns(database, table, holders, &sections, &connected)
        };
        let foreign = holders.iter().filter(|(table, holders)| is_foreign(table, holders));
        let foreign: BTreeSet<String> = foreign.map(|(table, _)| table.clone()).collect();
        known.hide(foreign);
    }
    Ok(own)
}

#[derive(Deserialize)]
struct Table {
    name: String,
    is_locked: bool,
}

/// Queries the tables in the search path of a database.
fn tables(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<Vec<Table>> {
    // A trigger's name may be cut, and it is on the table.
    let query = "select c.relname::text as name, exists (select from pg_trigger t \
                 where t.tgrelid = c.oid and t.tgenabled <> 'D' \
                 and left(t.tgname::text, 32) = 'gitlab_schema_write_trigger_for_') as is_locked \
                 from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'f') \
                 and pg_table_is_visible(c.oid) and c.relnamespace not in \
                 ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)";
    catalogue.ask(SCHEMA, database, query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_belongs_to_one_database() {
        let sections = |all: &[(&str, Option<&str>)]| -> Sections {
            let own = |(name, database): &(&str, Option<&str>)| {
                ((*name).to_owned(), database.map(str::to_owned))
            };
            all.iter().map(own).collect()
        };
        let one = sections(&[("main", Some("m"))]);
        let two = sections(&[("main", Some("m")), ("ci", Some("c"))]);
        let three = sections(&[("main", Some("m")), ("ci", Some("c")), ("sec", Some("s"))]);
        let elsewhere = sections(&[("main", Some("m")), ("ci", None)]);
        let unknown = Sections::new();
        // Databases with the table, in brackets if it is blocked there; owners.
        for (sections, connected, table, holders, owners) in [
            (&one, "m", "uploads", "m", "m"),
            (&one, "m", "ci_job_artifacts", "m", "m"),
            // A single database keeps its rows even if it was one of two and blocks writes.
            (&one, "m", "ci_job_artifacts", "(m)", "m"),
            (&two, "c m", "uploads", "c m", "m"),
            (&two, "c m", "ci_job_artifacts", "c m", "c"),
            (&two, "c m", "p_ci_builds", "(m) c", "c"),
            (&two, "c m", "project_type_ci_runners", "c m", "c"),
            (&two, "c m", "vulnerabilities", "c m", "m"),
            (&three, "c m s", "vulnerability_exports", "c m s", "s"),
            // The block wins over the name.
            (&three, "c m s", "security_trainings", "(c) (m) s", "s"),
            (&three, "c m s", "sbom_components", "(c) m (s)", "m"),
            // Older and newer versions lack it in a database.
            (&two, "c m", "ci_variables", "m", "m"),
            (&two, "c m", "schema_migrations", "c m", "c m"),
            (&elsewhere, "m", "ci_job_artifacts", "m", ""),
            (&elsewhere, "m", "uploads", "m", "m"),
            // A missing database does not make old rows new.
            (&two, "m", "ci_job_artifacts", "m", ""),
            (&unknown, "c m", "uploads", "c m", "c m"),
            (&unknown, "c m", "uploads", "(c) m", "m"),
        ] {
            let connected: Vec<String> = connected.split(' ').map(str::to_owned).collect();
            let holders: Vec<Holder<'_>> = holders
                .split(' ')
                .map(|name| Holder {
                    database: name.trim_matches(['(', ')']),
                    is_locked: name.starts_with('('),
                })
                .collect();
            let found =
                connected.iter().filter(|name| owns(name, table, &holders, sections, &connected));
            let found: Vec<&str> = found.map(String::as_str).collect();
            assert_eq!(found.join(" "), owners, "{table}: {sections:?}");
        }
    }
}
