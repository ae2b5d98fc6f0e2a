//! Files and names of projects.

use super::*;

const DB: &str = "services:\n  db: {image: 'postgres:15'}\n";

fn notes(plan: &Plan) -> String {
    plan.notes.join("\n")
}

#[test]
fn servers_of_another_project_are_used_in_their_containers() {
    let machine = Machine::new();
    machine.write(
        "/srv/git/compose.yml",
        "services:\n  gitlab:\n    image: sameersbn/gitlab:16.0.0\n    \
         environment: [DB_HOST=postgresql, DB_NAME=forge, REDIS_HOST=cache]\n    \
         volumes: ['./data:/home/git/data']\n",
    );
    let one = |name: &str, image: &str, alias: &str| {
        format!(
            r#"{{"Id": "{name}", "Name": "/{name}", "Config": {{"Image": "{image}",
            "Env": ["POSTGRES_USER=boss", "POSTGRES_PASSWORD=hush"],
            "Labels": {{"com.docker.compose.project.config_files": "/srv/db/compose.yml"}}}},
            "NetworkSettings": {{"Networks": {{"shared": {{"Aliases": ["{alias}"]}}}}}}}}"#
        )
    };
    let all =
        [one("db-main-1", "postgres:16", "postgresql"), one("db-redis-1", "redis:7", "cache")];
    machine.write("/inspected", &format!("[{}]", all.join(",")));
    let script = format!(
        "case $1 in ps) echo db-main-1; echo db-redis-1 ;; inspect) case $2 in -*) echo no such object >&2; \
         exit 1 ;; *) cat {}/inspected ;; esac ;; esac",
        machine.root().display()
    );
    let docker = format!("docker = ['sh', '-c', \"{}\", 'docker']", script.replace('"', "\\\""));
    let plan = machine.try_plan("/srv/git/compose.yml", &docker).expect("a plan");
    let server = plan.postgres.as_ref().expect("a server");
    let command = server.reach.command("psql", ["-l"]).argv.join(" ");
    assert!(command.ends_with(" db-main-1 psql -l"), "{command}");
    assert_eq!(server.role.as_deref(), Some("boss"));
    assert_eq!(server.databases.as_deref(), Some(&["forge".to_owned()][..]));
    let redis = plan.redis.as_ref().expect("a server");
    assert!(redis.reach.into.contains(&"db-redis-1".to_owned()), "{:?}", redis.reach);
    let notes = notes(&plan);
    for words in ["PostgreSQL runs in container db-main-1", "/srv/db/compose.yml is not copied"] {
        assert!(notes.contains(words), "{notes}");
    }
    assert!(!format!("{plan:?}").contains("hush"));
}

#[test]
fn several_compose_files_are_merged() {
    let machine = Machine::new();
    machine.write("/srv/git/base.yml", DB);
    machine.write(
        "/srv/git/more/gitlab.yml",
        "services:\n  gitlab:\n    image: sameersbn/gitlab:16.0.0\n    \
         volumes: ['./data:/home/git/data']\n",
    );
    machine.write("/srv/git/last.yml", "services: {gitlab: {image: 'sameersbn/gitlab:16.1.0'}}\n");
    let settings = format!(
        "kind = 'docker-gitlab'\nroot = '{0}'\ndocker = ['true']\n\
         compose = ['{0}/srv/git/base.yml', '{0}/srv/git/more/gitlab.yml', '{0}/srv/git/last.yml']",
        machine.root().display()
    );
    let plan = machine.plan_of(&settings).expect("a plan");
    assert_eq!(plan.product.version.as_deref(), Some("16.1.0"));
    // Relative to the first file.
    assert_eq!(machine.paths(&plan, "uploads"), ["/srv/git/data/uploads"]);
    let files = machine.paths(&plan, "compose");
    for file in ["base.yml", "more/gitlab.yml", "last.yml"] {
        assert!(files.contains(&format!("/srv/git/{file}")), "{files:?}");
    }
    let wrong: Result<Settings, _> = toml::from_str("kind = 'docker-gitlab'\ncompose = 1");
    assert!(wrong.expect_err("a number").to_string().contains("a path or a list of paths"));
}

#[test]
fn included_files_belong_to_the_project() {
    let machine = Machine::new();
    machine.write(
        "/srv/git/compose.yml",
        "include:\n- db/compose.yml\n- path: [parts/gitlab.yml, parts/override.yml]\n  \
         env_file: parts/own.env\n  project_directory: parts\n\
         services:\n  gitlab: {environment: [B=of main]}\n",
    );
    machine.write("/srv/git/.env", "TAG=16.2.0\n");
    machine.write("/srv/git/db/compose.yml", DB);
    machine.write(
        "/srv/git/parts/gitlab.yml",
        "services:\n  gitlab:\n    image: sameersbn/gitlab:${TAG}\n    environment: ['A=${A}', B=b]\n    \
         secrets: [gitlab-secrets]\n    volumes: ['data:/home/git/data', './certs:/home/git/data/certs']\n\
         secrets: {gitlab-secrets: {file: ./keys}}\nvolumes: {data: }\n",
    );
    machine.write("/srv/git/parts/override.yml", "services: {gitlab: {container_name: forge}}\n");
    machine.write("/srv/git/parts/own.env", "A=of own\nTAG=1\n");
    machine.write("/srv/git/parts/keys", "export GITLAB_SECRETS_DB_KEY_BASE=k\n");
    let compose = machine.read("/srv/git/compose.yml");
    let gitlab = compose.services["gitlab"].as_ref().expect("reads");
    assert_eq!(gitlab.image.as_deref(), Some("sameersbn/gitlab:16.2.0"));
    assert_eq!(gitlab.container.as_deref(), Some("forge"));
    assert_eq!((gitlab.variable("A"), gitlab.variable("B")), (Some("of own"), Some("of main")));
    let plan = machine.plan("/srv/git");
    let data = "/var/lib/docker/volumes/git_data/_data/uploads";
    assert_eq!(machine.paths(&plan, "uploads"), [data]);
    assert!(machine.paths(&plan, "certs")[0].ends_with("/srv/git/parts/certs"));
    let files = machine.paths(&plan, "compose");
    for file in ["db/compose.yml", "parts/override.yml", "parts/own.env", "parts/keys"] {
        assert!(files.contains(&format!("/srv/git/{file}")), "{file}: {files:?}");
    }

    let error_of = |include: &str| {
        machine.write("/srv/git/compose.yml", &format!("include: {include}\n{DB}"));
        machine.try_plan("/srv/git", "docker = ['true']").expect_err("wrong").to_string()
    };
    assert!(error_of("[none.yml]").contains("none.yml"));
    let error = error_of("['https://example.com/git.git#main']");
    assert!(error.contains("example.com") && error.contains("not on this machine"), "{error}");
    assert!(error_of("[compose.yml]").contains("in a loop"));
    assert!(error_of("[compose.yml, compose.yml, {path: compose.yml}]").contains("in a loop"));
}

#[test]
fn the_project_name_can_be_configured() {
    let machine = Machine::new();
    machine.write("/srv/Git/compose.yml", OWN);
    machine.make("/var/lib/docker/volumes/forge_gitlab-data/_data");
    machine.make("/var/lib/docker/volumes/forge_other/_data");
    let plan = machine.plan("/srv/Git");
    let notes = notes(&plan);
    assert!(
        notes.contains("volume git_gitlab-data does not exist, but forge_gitlab-data does"),
        "{notes}"
    );
    assert!(notes.contains("project = \"forge\""), "{notes}");
    assert!(!notes.contains("forge_other"), "{notes}");

    let plan = machine.try_plan("/srv/Git", "docker = ['true']\nproject = 'forge'");
    let plan = plan.expect("a plan");
    let data = "/var/lib/docker/volumes/forge_gitlab-data/_data/uploads";
    assert_eq!(machine.paths(&plan, "uploads"), [data]);
    assert_eq!(supervisor(&plan).writers, ["forge-gitlab-1"]);
    assert!(!plan.notes.join("\n").contains("but forge_gitlab-data"), "{:?}", plan.notes);
}

#[test]
fn a_missing_required_environment_file_is_reported() {
    let machine = Machine::new();
    let text = |required: &str| {
        format!(
            "services:\n  db: {{image: postgres}}\n  gitlab:\n    image: sameersbn/gitlab:8.0.0\n    \
             env_file: [{{path: secrets.env{required}}}]\n    volumes: ['./data:/home/git/data']\n"
        )
    };
    machine.write("/srv/git/compose.yml", &text(""));
    let plan = machine.plan("/srv/git");
    assert_eq!(lacking(&plan), ["compose", "secrets"]);
    assert!(plan.lacking[0].looked_for.contains("/srv/git/secrets.env"), "{:?}", plan.lacking);
    machine.write("/srv/git/compose.yml", &text(", required: false"));
    let plan = machine.plan("/srv/git");
    assert_eq!(lacking(&plan), ["secrets"]);
    assert!(notes(&plan).contains("secrets.env"), "{}", notes(&plan));
}

#[test]
fn keys_set_only_in_a_shell_are_reported_as_missing() {
    let machine = Machine::new();
    machine.write(
        "/srv/git/compose.yml",
        "services:\n  db: {image: postgres}\n  gitlab:\n    image: sameersbn/gitlab:8.0.0\n    \
         environment:\n    - GITLAB_SECRETS_DB_KEY_BASE\n    - GITLAB_SECRETS_OTP_KEY_BASE=${OTP}\n    \
         - GITLAB_SECRETS_SECRET_KEY_BASE=k\n    volumes: ['./data:/home/git/data']\n",
    );
    let plan = machine.plan("/srv/git");
    assert_eq!(lacking(&plan), ["secrets"]);
    let looked_for = &plan.lacking[0].looked_for;
    assert!(
        looked_for.contains("DB_KEY_BASE") && looked_for.contains("OTP_KEY_BASE"),
        "{looked_for}"
    );
    assert!(!looked_for.contains("SECRET_KEY_BASE "), "{looked_for}");
}

#[test]
fn proposed_settings_give_a_valid_plan() {
    let machine = Machine::new();
    let text = "services:\n  db: {image: postgres}\n  git:\n    image: sameersbn/gitlab:17.8.2 # pinned\n    \
                volumes: ['./data:/home/git/data']\n";
    machine.write("/srv/forge/docker-compose.yml", text);
    let root = machine.root();
    assert!(DockerGitlab.detect(&root).is_some());
    machine.write("/srv/old/compose.yml", text);
    machine.write("/srv/not/compose.yml", "#    image: sameersbn/gitlab:1\n");
    let lines = DockerGitlab.propose(&root);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("# ") && lines[0].contains("/srv/old/compose.yml"), "{lines:?}");
    let settings = format!(
        "kind = 'docker-gitlab'\nroot = '{}'\ndocker = ['true']\n{}",
        root.display(),
        lines.join("\n")
    );
    let plan = machine.plan_of(&settings).expect("a plan");
    assert_eq!(machine.paths(&plan, "compose"), ["/srv/forge/docker-compose.yml"]);

    for (image, is_one) in [
        ("image: \"sameersbn/gitlab:1\" # one", true),
        ("git: {image: sameersbn/gitlab:1}", true),
        ("image: ${IMAGE:-sameersbn/gitlab:1}", true),
        ("image: nginx # before sameersbn/gitlab:1", false),
        ("image: sameersbn/gitlab-runner:1", false),
    ] {
        let machine = Machine::new();
        machine.write("/srv/a/compose.yml", image);
        assert_eq!(DockerGitlab.detect(&machine.root()).is_some(), is_one, "{image}");
    }
}
