//! What Mattermost's database says that there is.

use crate::catalogue::{Catalogue, FileRow};
use crate::check::{Check, Verdict};
use crate::copy::Copy;
use crate::error::Result;
use crate::fit::check_files;
use crate::plan::Plan;
use crate::service::postgres::Connection;
use crate::settings::Sample;
use serde::Deserialize;

/// Asks for its version, and whether settings are in the database as well.
pub fn product(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    #[derive(Deserialize)]
    struct Value {
        value: Option<String>,
    }
    if !database.columns("systems")?.is_empty() {
        let query = "select value from systems where name = 'Version'";
        let version = database.rows::<Value>(query)?.pop().and_then(|row| row.value);
        catalogue.version = version.or(catalogue.version.take());
    }
    if !database.columns("db_migrations")?.is_empty() {
        let query = "select max(version)::text as value from db_migrations";
        if let Some(version) = database.one::<Value>(query)?.value {
            catalogue.schema.insert(database.database.clone(), version);
        }
    }
    if database.columns("configurations")?.has("active") {
        let query = "select 'it is there' as value from configurations where active limit 1";
        if !database.rows::<Value>(query)?.is_empty() {
            catalogue.notes.push(
                "the database has settings (table Configurations); if MM_CONFIG names it, they \
                 count and config.json does not"
                    .into(),
            );
        }
    }
    Ok(())
}

/// Asks for files that users sent, which are in the directory of a part.
pub fn files(
    plan: &Plan,
    part: &'static str,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Row {
        id: String,
        path: String,
        size: Option<u64>,
    }
    let columns = database.columns("fileinfo")?;
    let (Some(dir), false) = (plan.place(part), columns.is_empty()) else { return Ok(()) };
    let condition = if columns.has("deleteat") { "deleteat = 0" } else { "true" };
    let all = format!("select id, path, size from fileinfo where path <> '' and {condition}");
    let query = match plan.sample {
        Sample::All => format!("{all} order by id"),
        // Numbers are random, so that a run of them is a random one.
        Sample::Rows(rows) => {
            let half = rows.div_ceil(2);
            format!(
                "({all} order by createat desc limit {half}) union \
                 ({all} and id >= (select md5(random()::text)) order by id limit {half})"
            )
        }
    };
    for row in database.rows::<Row>(&query)? {
        let paths = vec![dir.join(row.path)];
        catalogue.files.push(FileRow { what: "fileinfo", part, id: row.id, paths, size: row.size });
    }
    Ok(())
}

/// Looks whether the copy has the files.
pub fn check(plan: &Plan, catalogue: &Catalogue, copy: &Copy<'_>) -> Result<Vec<Check>> {
    if catalogue.version.is_none() {
        let text = "no database of Mattermost was asked, so nothing could be compared with it";
        return Ok(vec![Check::new("catalogue", Verdict::Unknown, text)]);
    }
    Ok(vec![check_files(plan, &catalogue.files, copy)?])
}
