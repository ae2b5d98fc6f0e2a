//! Settings that Mattermost keeps in a database, in the active row of a table.

use crate::error::{Error, Result};
use crate::service::postgres::Server;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use store::observe::Progress;

/// Longest wait for a server that is starting. The backup itself waits longer.
const WAIT: Duration = Duration::from_secs(5);

/// Returns true if `MM_CONFIG` names a database instead of a file. Such text may contain a
/// password.
///
/// There are three forms:
///
/// - a URL
/// - words such as `host=db`
/// - the form of MySQL's drivers
pub fn is_meant(config: &str) -> bool {
    const KEYS: [&str; 6] = ["host", "dbname", "user", "password", "port", "sslmode"];
    let mut keys = config.split_whitespace().filter_map(|word| Some(word.split_once('=')?.0));
    ["://", "@tcp(", "@unix("].iter().any(|mark| config.contains(mark))
        || keys.any(|key| KEYS.contains(&key))
}

/// Reads the active settings from a database. Errors contain no values, because settings include
/// secrets.
pub fn read(server: &Server, database: &str, progress: &Progress) -> Result<Value> {
    #[derive(Deserialize)]
    struct Row {
        value: String,
    }
    let odd = |reason: &str| Error::Service {
        service: format!("table configurations of database {database}"),
        reason: reason.into(),
    };
    let server = Server { wait: server.wait.min(WAIT), ..server.clone() };
    let mut connection = server.connect(database, progress)?;
    if !connection.columns("configurations")?.has("active") {
        return Err(odd("the table does not exist"));
    }
    let query = "select value::text as value from configurations where active limit 1";
    let row =
        connection.rows::<Row>(query)?.pop().ok_or_else(|| odd("the table has no active row"))?;
    serde_json::from_str(&row.value).map_err(|_| odd("the active row is not valid JSON"))
}
