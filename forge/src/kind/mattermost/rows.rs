//! Rows of Mattermost's database.

use crate::catalogue::{Catalogue, FileRow};
use crate::check::Check;
use crate::coverage::check_files;
use crate::error::Result;
use crate::plan::Plan;
use crate::service::postgres::Connection;
use crate::settings::Sample;
use crate::view::View;
use serde::Deserialize;
use std::path::Path;

/// Note for settings that are kept in the database.
pub const IN_DATABASE: &str =
    "the settings are in the database (table configurations) and are backed up with it";

/// Queries the versions of Mattermost and of its schema. Adds a note if the database unexpectedly
/// has settings.
pub fn product(
    plan: &Plan,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Value {
        value: Option<String>,
    }
    if !database.columns("systems")?.is_empty() {
        let query = "select value from systems where name = 'Version'";
        let version = catalogue.ask::<Value>("version", database, query)?;
        let version = version.into_iter().find_map(|row| row.value);
        catalogue.version = version.or(catalogue.version.take());
    }
    if !database.columns("db_migrations")?.is_empty() {
        let query = "select max(version)::text as value from db_migrations";
        let version = catalogue.ask::<Value>("schema", database, query)?;
        if let Some(version) = version.into_iter().find_map(|row| row.value) {
            catalogue.schema.insert(database.database.clone(), version);
        }
    }
    let is_meant = plan.notes.iter().any(|note| note == IN_DATABASE);
    if !is_meant && database.columns("configurations")?.has("active") {
        let query = "select 'it is there' as value from configurations where active limit 1";
        if !catalogue.ask::<Value>("settings", database, query)?.is_empty() {
            catalogue.notes.push(
                "the database has settings (table Configurations); if MM_CONFIG names the \
                 database, these settings apply instead of config.json"
                    .into(),
            );
        }
    }
    Ok(())
}

/// Queries the uploaded files that should be in the directory of a part.
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
        size: Option<i64>,
    }
    let columns = database.columns("fileinfo")?;
    if columns.is_empty() {
        return Ok(());
    }
    let condition = if columns.has("deleteat") { "deleteat = 0" } else { "true" };
    let Some(dir) = plan.place(part) else {
        return count_remote(plan, part, condition, database, catalogue);
    };
    let size = if columns.has("size") { "size" } else { "null as size" };
    let newest = if columns.has("createat") { "createat" } else { "id" };
    let all = format!("select id, path, {size} from fileinfo where path <> '' and {condition}");
    let query = match plan.sample {
        Sample::All => format!("{all} order by id"),
        // Ids are random, so a range of consecutive ids is a random sample. It begins with any
        // letter of Mattermost's own base 32.
        Sample::Rows(rows) => {
            let half = rows.div_ceil(2);
            format!(
                "({all} order by {newest} desc limit {half}) union \
                 ({all} and id >= (select {START}) order by id limit {half})"
            )
        }
    };
    for row in catalogue.ask::<Row>("fileinfo", database, &query)? {
        let paths = vec![dir.join(row.path)];
        let size = row.size.and_then(|size| size.try_into().ok());
        catalogue.files.push(FileRow { what: "fileinfo", part, id: row.id, paths, size });
    }
    for images in &IMAGES {
        images.ask(plan, part, &dir, database, catalogue)?;
    }
    Ok(())
}

/// Images without a row of `fileinfo`.
struct Images {
    table: &'static str,
    /// Kind of the rows, for people.
    what: &'static str,
    /// Column with the time at which a user set the image. Other images are made on demand.
    set_at: Option<&'static str>,
    /// Directory in that of uploaded files, and the name of the file below the id.
    place: (&'static str, &'static str),
}

const IMAGES: [Images; 3] = [
    Images { table: "emoji", what: "emoji", set_at: None, place: ("emoji", "image") },
    Images {
        table: "users",
        what: "profile images",
        set_at: Some("lastpictureupdate"),
        place: ("users", "profile.png"),
    },
    Images {
        table: "teams",
        what: "team icons",
        set_at: Some("lastteamiconupdate"),
        place: ("teams", "teamIcon.png"),
    },
];

impl Images {
    /// Queries the rows, and expects an image for each.
    fn ask(
        &self,
        plan: &Plan,
        part: &'static str,
        dir: &Path,
        database: &mut Connection<'_>,
        catalogue: &mut Catalogue,
    ) -> Result<()> {
        #[derive(Deserialize)]
        struct Row {
            id: String,
        }
        let Images { table, what, set_at, place } = self;
        let columns = database.columns(table)?;
        if !columns.has("id") || set_at.is_some_and(|column| !columns.has(column)) {
            return Ok(());
        }
        let is_set = set_at.map(|column| format!("{column} > 0"));
        let is_kept = columns.has("deleteat").then(|| "deleteat = 0".to_owned());
        let conditions: Vec<String> = is_set.into_iter().chain(is_kept).collect();
        let condition =
            if conditions.is_empty() { "true".into() } else { conditions.join(" and ") };
        let newest = if columns.has("createat") { "createat desc, id" } else { "id" };
        let limit = match plan.sample {
            Sample::All => String::new(),
            Sample::Rows(rows) => format!(" limit {rows}"),
        };
        let query = format!("select id from {table} where {condition} order by {newest}{limit}");
        for Row { id } in catalogue.ask::<Row>(what, database, &query)? {
            let paths = vec![dir.join(place.0).join(&id).join(place.1)];
            catalogue.files.push(FileRow { what, part, id, paths, size: None });
        }
        Ok(())
    }
}

/// Returns the name of the part with files from before the object store.
pub fn before(part: &str) -> String {
    format!("{part}-before")
}

/// Counts the uploaded files if they are in an object store.
fn count_remote(
    plan: &Plan,
    part: &str,
    condition: &str,
    database: &mut Connection<'_>,
    catalogue: &mut Catalogue,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Count {
        count: u64,
    }
    let is_counted = plan.postgres.as_ref().is_some_and(|server| server.counts_rows);
    let before = before(part);
    if !is_counted || !plan.parts.iter().any(|part| part.name == before) {
        return Ok(());
    }
    let query = format!("select count(*) as count from fileinfo where path <> '' and {condition}");
    for row in catalogue.ask::<Count>("fileinfo", database, &query)? {
        *catalogue.remote.entry("fileinfo").or_default() += row.count;
    }
    Ok(())
}

/// A random text that an id may begin with.
const START: &str = "substr('ybndrfg8ejkmcpqxot1uwisza345h769', 1 + floor(random() * 32)::int, 1) \
                     || md5(random()::text)";

/// Checks that the copy has these files.
pub fn check(plan: &Plan, catalogue: &Catalogue, view: &View<'_>) -> Result<Vec<Check>> {
    let mut checks: Vec<Check> = catalogue.unknown().collect();
    if catalogue.version.is_none() && checks.is_empty() {
        return Ok(vec![Check::of_no_database(plan, "Mattermost")]);
    }
    checks.push(check_files(plan, catalogue, view)?);
    Ok(checks)
}
