//! Backs up an instance with the sandbox's configuration.

use super::gitlab::Gitlab;
use super::postgres::{Options, Postgres};
use super::sandbox::{Run, Sandbox};
use serde_json::Value;
use std::path::Path;

/// Writes a configuration for an instance, with more lines for it.
pub fn configure(sandbox: &Sandbox, gitlab: &Gitlab, more: &str) {
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'gitlab'\nroot = '{}'\n{more}\n",
        sandbox.text("state"),
        sandbox.text("store"),
        gitlab.root().display(),
    );
    sandbox.write("forgekeep.toml", text);
}

/// Prepares a command that reads the sandbox's configuration.
pub fn configured<const N: usize>(sandbox: &Sandbox, arguments: [&str; N]) -> Run {
    sandbox
        .forgekeep(arguments)
        .env("FORGEKEEP_CONFIG", sandbox.text("forgekeep.toml"))
        .without_env("FORGEKEEP_STORE")
}

/// Prepares a backup of the instance, with JSON output.
pub fn backup(sandbox: &Sandbox) -> Run {
    configured(sandbox, ["backup", "--instance", "forge", "--init", "--json"])
}

/// Returns the last line, which is the summary.
pub fn summary(lines: &[Value]) -> &Value {
    let last = lines.last().expect("a summary");
    assert_eq!(last["message_type"], "summary");
    last
}

/// Returns the lines of one type.
pub fn lines<'a>(all: &'a [Value], message_type: &str) -> Vec<&'a Value> {
    all.iter().filter(|line| line["message_type"] == message_type).collect()
}

/// Creates a cluster with the databases of a restored snapshot.
pub fn load_databases(sandbox: &Sandbox, restored: &Path) -> Postgres {
    let postgres = Postgres::start(Options::within(&sandbox.path("scratch")));
    let dir = restored.join(".forgekeep/databases");
    let globals = std::fs::read_to_string(dir.join("globals.sql")).expect("globals");
    // The cluster was created with this role.
    let own = format!("CREATE ROLE \"{}\";", postgres.superuser());
    assert!(globals.contains(&own), "{globals}");
    postgres.sql("postgres", globals.replace(&own, ""));
    for entry in std::fs::read_dir(&dir).expect("dumps") {
        let path = entry.expect("a dump").path();
        if path.extension().is_some_and(|extension| extension == "dump") {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
            let load = postgres.tool("pg_restore");
            load.args(["--exit-on-error", "--create", "--dbname=postgres"])
                .args([&path])
                .run()
                .ok();
            postgres.query(name, "select 1");
        }
    }
    postgres
}
