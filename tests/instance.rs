//! Whole instances: databases, repositories, files, services, secrets.

use crate::support::gitlab::{self, Builder, Gitlab};
use crate::support::postgres::{Options, Postgres};
use crate::support::sandbox::{Run, Sandbox, is_root};
use serde_json::Value;
use std::path::Path;

/// Writes a configuration for an instance, with more lines for it.
fn configure(sandbox: &Sandbox, gitlab: &Gitlab, more: &str) {
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'gitlab'\nroot = '{}'\n{more}\n",
        sandbox.text("state"),
        sandbox.text("store"),
        gitlab.root().display(),
    );
    sandbox.write("forgekeep.toml", text);
}

/// A command that reads the sandbox's configuration.
fn configured<const N: usize>(sandbox: &Sandbox, arguments: [&str; N]) -> Run {
    sandbox
        .forgekeep(arguments)
        .env("FORGEKEEP_CONFIG", sandbox.text("forgekeep.toml"))
        .without_env("FORGEKEEP_STORE")
}

fn backup(sandbox: &Sandbox) -> Run {
    configured(sandbox, ["backup", "--instance", "forge", "--init", "--json"])
}

/// The last line, which is the summary.
fn summary(lines: &[Value]) -> &Value {
    let last = lines.last().expect("a summary");
    assert_eq!(last["message_type"], "summary");
    last
}

/// Lines of one type.
fn lines<'a>(all: &'a [Value], message_type: &str) -> Vec<&'a Value> {
    all.iter().filter(|line| line["message_type"] == message_type).collect()
}

/// A cluster with the databases of a restored snapshot.
fn load_databases(sandbox: &Sandbox, restored: &Path) -> Postgres {
    let postgres = Postgres::start(Options::within(&sandbox.path("scratch")));
    let dir = restored.join(".forgekeep/databases");
    let globals = std::fs::read_to_string(dir.join("globals.sql")).expect("globals");
    // The role that the cluster was made with is there already.
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

#[test]
fn an_instance_that_is_written_to_is_copied_whole() {
    if !is_root() {
        return;
    }
    let gitlab = Builder::new().projects(40).mattermost().writers().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let lines_of = |run: Run| run.run().ok().json();
    let first = lines_of(backup(&sandbox));
    let before = gitlab.written();
    let second = lines_of(backup(&sandbox));
    let after = gitlab.written();
    assert!(after > before, "{before:?} {after:?}");
    for all in [&first, &second] {
        let summary = summary(all);
        assert_eq!(summary["is_complete"], true, "{all:?}");
        assert_eq!(summary["databases"], 3, "{summary}");
        assert_eq!(summary["errors"], 0);
        assert!(summary["seconds_down"].is_null());
        for check in lines(all, "check") {
            assert_eq!(check["verdict"], "ok", "{check}");
        }
    }
    assert!(gitlab.services.is_up("puma") && gitlab.services.is_up("sidekiq"));
    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored");
    let root = restored.join(gitlab.root().strip_prefix("/").expect("absolute"));
    assert!(gitlab::fsck_all(&root) >= 40);
    let postgres = load_databases(&sandbox, &restored);
    assert!(gitlab::assert_rows_have_files(&postgres, &root) > 0);
    assert!(gitlab::assert_pushes_are_there(&postgres, &root) > 0);
}
