//! A GitLab in containers: volumes, databases, keys in the environment.

use crate::support::docker_gitlab::{COMPOSE, DATA, DockerGitlab, SECRETS, see_as_omnibus};
use crate::support::gitlab;
use crate::support::instance::{backup, configured};
use crate::support::postgres::{Options, Postgres};
use crate::support::sandbox::{Outcome, Sandbox, need_root};
use serde_json::Value;
use std::path::Path;

fn configure(sandbox: &Sandbox, gitlab: &DockerGitlab, more: &str) {
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'docker-gitlab'\n\
         root = '{}'\ncompose = '{}'\ndocker = ['{}']\n{more}\n",
        sandbox.text("state"),
        sandbox.text("store"),
        gitlab.root().display(),
        gitlab.path(COMPOSE).display(),
        gitlab.path("docker").display(),
    );
    sandbox.write("forgekeep.toml", text);
}

/// Asserts that a text contains no secret.
#[track_caller]
fn assert_discreet(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{text}");
    }
}

fn summary(outcome: &Outcome) -> Value {
    let lines = outcome.json();
    for check in lines.iter().filter(|line| line["message_type"] == "check") {
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    lines.last().expect("a summary").clone()
}

/// Creates a cluster with the databases of a restored snapshot.
fn load_databases(sandbox: &Sandbox, restored: &Path) -> Postgres {
    let options =
        Options { superuser: "postgres".into(), ..Options::within(&sandbox.path("scratch")) };
    let postgres = Postgres::start(options);
    let dir = restored.join(".forgekeep/databases");
    let globals = std::fs::read_to_string(dir.join("globals.sql")).expect("globals");
    // The cluster was created with this role.
    postgres.sql("postgres", globals.replace("CREATE ROLE postgres;", ""));
    for name in ["gitlabhq_production", "gitlabhq_production_ci"] {
        let load = postgres.tool("pg_restore");
        let load = load.args(["--exit-on-error", "--create", "--dbname=postgres"]);
        load.args([dir.join(format!("{name}.dump"))]).run().ok();
    }
    postgres
}

#[test]
fn a_gitlab_in_containers_is_restored() {
    need_root();
    let gitlab = DockerGitlab::start();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");

    let checked = configured(&sandbox, ["config", "check", "--offline"]).run().ok();
    for words in ["forge-gitlab-1", "17.8.2", "repositories", "secrets.env", "backups"] {
        assert!(checked.stdout.contains(words), "{words}: {}", checked.all_output());
    }
    assert!(checked.stdout.contains("USERMAP_UID"), "{}", checked.all_output());
    assert_discreet(&checked.all_output());

    let outcome = backup(&sandbox).run().ok();
    assert_discreet(&outcome.all_output());
    let summary = summary(&outcome);
    assert_eq!(summary["is_complete"], true, "{}", outcome.all_output());
    assert_eq!(summary["databases"], 2, "{summary}");
    assert!(gitlab.is_up());
    let asked = gitlab.asked();
    assert_discreet(&asked);
    assert!(asked.contains("handed over PGPASSWORD"), "{asked}");
    assert!(!asked.contains("stop "), "{asked}");

    let scratch = gitlab::short_dir();
    let drill = ["drill", "forge", "--whole", "--json", "--scratch"];
    let drilled = configured(&sandbox, drill).args([scratch.path()]).run().ok();
    assert_discreet(&drilled.all_output());
    for name in ["secrets", "files"] {
        let lines = drilled.json();
        let check = lines.iter().find(|line| line["name"] == name);
        assert_eq!(check.expect("is there")["verdict"], "ok", "{lines:?}");
    }

    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored");
    let root = restored.join(gitlab.root().strip_prefix("/").expect("absolute"));
    let data = root.join(DATA);
    for path in ["ssh/ssh_host_ed25519_key", "certs/gitlab.key", "tmp/VERSION"] {
        assert!(data.join(path).exists(), "{path}");
    }
    for path in ["backups/1_gitlab_backup.tar", "repositories/+gitaly", ".gitlab_shell_secret"] {
        assert!(!data.join(path).exists(), "{path}");
    }
    assert!(!root.join("srv/gitlab/postgresql").exists());
    assert!(root.join("srv/gitlab/redis/dump.rdb").exists());
    for path in ["docker-compose.yml", ".env", "secrets.env"] {
        assert!(root.join("srv/forge").join(path).exists(), "{path}");
    }
    let manifest =
        std::fs::read_to_string(restored.join(".forgekeep/instance.json")).expect("manifest");
    assert_discreet(&manifest);
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    assert_eq!(manifest["product"]["version"], "17.8.2");
    assert_eq!(manifest["product"]["image"], "sameersbn/gitlab:17.8.2");

    let seen = sandbox.path("seen");
    see_as_omnibus(&root, &seen);
    assert!(gitlab::fsck_all(&seen) >= 12);
    let postgres = load_databases(&sandbox, &restored);
    assert!(gitlab::assert_rows_have_files(&postgres, &seen) > 0);
    assert!(gitlab::assert_pushes_are_there(&postgres, &seen) > 0);
}

#[test]
fn nested_volumes_are_restored() {
    need_root();
    let gitlab = DockerGitlab::start();
    gitlab.mount("repositories/@hashed", "mnt/hashed");
    gitlab.mount("repositories/@pools", "mnt/pools");
    gitlab.mount("shared/lfs-objects", "mnt/lfs");
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let checked = configured(&sandbox, ["config", "check", "--offline"]).run().ok();
    for words in [" mnt/hashed", " mnt/pools", " mnt/lfs", "redis (redis:7)"] {
        assert!(checked.stdout.contains(words), "{words}: {}", checked.all_output());
    }
    let outcome = backup(&sandbox).run().ok();
    assert_eq!(summary(&outcome)["is_complete"], true, "{}", outcome.all_output());

    sandbox.restore("latest", "restored");
    let root = sandbox.path("restored").join(gitlab.root().strip_prefix("/").expect("absolute"));
    let text = std::fs::read(sandbox.path("restored/.forgekeep/instance.json")).expect("manifest");
    let manifest: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(manifest["mounts"].as_array().map(Vec::len), Some(2), "{}", manifest["mounts"]);
    assert!(manifest["services"].to_string().contains("gitlab (sameersbn/gitlab:17.8.2)"));
    let projects = std::fs::read_to_string(sandbox.path("restored/.forgekeep/projects.jsonl"))
        .expect("projects");
    for line in projects.lines() {
        let project: Value = serde_json::from_str(line).expect("JSON");
        let Some(place) = project["place"].as_str() else { continue };
        let within = Path::new(place).strip_prefix(gitlab.root()).expect("below the root");
        assert!(root.join(within).join("HEAD").exists(), "{place}");
    }
    assert!(projects.contains("/mnt/hashed/"), "{projects}");
    assert!(root.join("mnt/lfs").read_dir().expect("is there").next().is_some());

    // A disk that is not mounted is a missing part.
    std::fs::rename(gitlab.path("mnt/lfs"), gitlab.path("mnt/gone")).expect("moves");
    let outcome = configured(&sandbox, ["config", "check", "--offline"]).run().ends_with(3);
    assert!(outcome.all_output().contains("lfs"), "{}", outcome.all_output());
}

#[test]
fn a_missing_key_makes_a_backup_incomplete() {
    need_root();
    let gitlab = DockerGitlab::start();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let file = gitlab.path("srv/forge/secrets.env");
    let whole = std::fs::read_to_string(&file).expect("reads");
    let partly = whole.replace("GITLAB_SECRETS_OTP_KEY_BASE=", "OTHER=");
    std::fs::write(&file, partly).expect("writes");

    let name = "GITLAB_SECRETS_OTP_KEY_BASE";
    for outcome in [
        configured(&sandbox, ["config", "check", "--offline"]).run().ends_with(3),
        backup(&sandbox).run().ends_with(3),
    ] {
        assert!(outcome.all_output().contains(name), "{}", outcome.all_output());
        assert!(!outcome.all_output().contains("DB_KEY_BASE"), "{}", outcome.all_output());
        assert_discreet(&outcome.all_output());
    }
    // Administrators who keep secrets elsewhere configure that.
    configure(&sandbox, &gitlab, "parts.secrets.missing = 'ok'");
    let lines = backup(&sandbox).run().ok().json();
    assert_eq!(lines.last().expect("a summary")["is_complete"], true);
    sandbox.write("vault", "the keys");
    let place = format!("parts.secrets.path = '{}'", sandbox.text("vault"));
    configure(&sandbox, &gitlab, &place);
    configured(&sandbox, ["config", "check", "--offline"]).run().ok();
}

#[test]
fn maintenance_stops_the_container_and_starts_it_again() {
    need_root();
    let gitlab = DockerGitlab::start();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "mode = 'maintenance'\nchecks = { sample = 'all' }");
    let outcome = backup(&sandbox).run().ok();
    let summary = summary(&outcome);
    assert_eq!(summary["is_complete"], true, "{}", outcome.all_output());
    assert!(summary["seconds_down"].as_f64().is_some_and(|seconds| seconds > 0.0), "{summary}");
    let asked = gitlab.asked();
    let stop = asked.find("stop -t 90 forge-gitlab-1").expect("stopped");
    let start = asked.find("start forge-gitlab-1").expect("started");
    assert!(stop < start, "{asked}");
    assert!(!asked.contains("stop -t 90 forge-postgresql-1"), "{asked}");
    assert!(gitlab.is_up());
}

#[test]
fn detect_finds_compose_files_in_usual_directories() {
    let sandbox = Sandbox::new();
    sandbox.write("srv/other/docker-compose.yml", "services:\n  web:\n    image: nginx\n");
    let found = "srv/docker/forge/compose.yaml";
    let text = "services:\n  db:\n    image: postgres\n  forge:\n    \
                image: \"sameersbn/gitlab:18.1.0\" # pinned\n    volumes: ['./data:/home/git/data']\n";
    sandbox.write(found, text);
    sandbox.write("srv/other/old/docker-compose.yml", text);
    let outcome = sandbox.forgekeep(["detect", "--root", "."]).within(sandbox.root()).run().ok();
    assert!(outcome.stdout.contains("kind = \"docker-gitlab\""), "{}", outcome.all_output());
    let root = format!("root = \"{}\"", sandbox.root().display());
    assert!(outcome.stdout.contains(&root), "{}", outcome.all_output());
    for path in [found, "srv/other/old/docker-compose.yml"] {
        assert!(outcome.stdout.contains(&sandbox.text(path)), "{}", outcome.all_output());
    }
    // The proposed configuration is accepted: only files are missing.
    sandbox.write(
        "forgekeep.toml",
        format!("state = '{}'\n{}", sandbox.text("state"), outcome.stdout),
    );
    let checked = configured(&sandbox, ["config", "check", "--offline"]).run().ends_with(3);
    assert!(checked.stdout.contains(&format!("  {found}  ")), "{}", checked.all_output());
}
