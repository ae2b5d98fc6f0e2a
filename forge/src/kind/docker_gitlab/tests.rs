mod data;
mod files;

use super::compose::{Compose, Source};
use super::secrets::SECRETS;
use super::variables::{Assigned, assignments, expand};
use super::*;
use crate::kind::below;
use crate::service::Password;
use crate::settings::Settings;
use proptest::prelude::*;
use store::observe::Progress;

/// A machine whose root is a temporary directory.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Machine {
        Machine(tempfile::tempdir().expect("a directory"))
    }

    fn root(&self) -> PathBuf {
        std::fs::canonicalize(self.0.path()).expect("is there")
    }

    fn path(&self, path: &str) -> PathBuf {
        below(&self.root(), Path::new(path))
    }

    fn write(&self, path: &str, text: &str) -> &Machine {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
        std::fs::write(path, text).expect("writes");
        self
    }

    fn make(&self, path: &str) -> &Machine {
        std::fs::create_dir_all(self.path(path)).expect("directories");
        self
    }

    /// Plans a backup of the project at a path. Docker accepts every container name.
    fn plan(&self, compose: &str) -> Plan {
        self.try_plan(compose, "docker = ['true']").expect("a plan")
    }

    fn try_plan(&self, compose: &str, more: &str) -> Result<Plan> {
        let text = format!(
            "kind = 'docker-gitlab'\nroot = '{}'\ncompose = '{}'\n{more}",
            self.root().display(),
            self.path(compose).display()
        );
        self.plan_of(&text)
    }

    fn plan_of(&self, settings: &str) -> Result<Plan> {
        let settings: Settings = toml::from_str(settings).expect("settings");
        let progress = Progress::default();
        let site =
            Site { instance: "forge", settings: &settings, progress: &progress, is_offline: true };
        let mut plan = Plan::new("forge", "docker-gitlab", &settings);
        DockerGitlab.fill(&site, &mut plan).map(|()| plan)
    }

    fn read(&self, compose: &str) -> Compose {
        let (root, volumes) = (self.root(), self.path("/var/lib/docker/volumes"));
        let place = compose::Surroundings {
            root: &root,
            volumes: &volumes,
            project: None,
            dir: None,
            env_files: &[],
        };
        Compose::read(&[self.path(compose)], place).expect("reads")
    }

    /// Returns the paths of a part, relative to the root.
    fn paths(&self, plan: &Plan, part: &str) -> Vec<String> {
        let part = plan.parts.iter().find(|found| found.name == part).expect("a part");
        let root = self.root();
        let within = |path: &PathBuf| path.strip_prefix(&root).expect("below the root").to_owned();
        part.paths.iter().map(|path| format!("/{}", within(path).display())).collect()
    }
}

fn supervisor(plan: &Plan) -> &Supervisor {
    match &plan.control {
        Control::Supervised(supervisor) => supervisor,
        other => panic!("{other:?}"),
    }
}

fn lacking(plan: &Plan) -> Vec<&str> {
    plan.lacking.iter().map(|absent| absent.part.as_str()).collect()
}

/// Compose file that comes with docker-gitlab.
const OWN: &str = r#"
version: '2.3'

services:
  redis:
    restart: always
    image: redis:6.2
    command:
    - --loglevel warning
    volumes:
    - redis-data:/data:Z

  postgresql:
    restart: always
    image: kkimurak/sameersbn-postgresql:14
    volumes:
    - postgresql-data:/var/lib/postgresql:Z
    environment:
    - DB_USER=gitlab
    - DB_PASS=password
    - DB_NAME=gitlabhq_production
    - DB_EXTENSION=pg_trgm,btree_gist

  gitlab:
    restart: always
    image: sameersbn/gitlab:17.3.1-1
    depends_on:
    - redis
    - postgresql
    ports:
    - "10080:80"
    - "10022:22"
    volumes:
    - gitlab-data:/home/git/data:Z
    healthcheck:
      test: curl http://localhost/-/health || exit 1
      interval: 1m
    environment:
    - DEBUG=false
    - DB_ADAPTER=postgresql
    - DB_HOST=postgresql
    - DB_PORT=5432
    - DB_USER=gitlab
    - DB_PASS=password
    - DB_NAME=gitlabhq_production
    - REDIS_HOST=redis
    - REDIS_PORT=6379
    - GITLAB_RELATIVE_URL_ROOT=
    - GITLAB_SECRETS_DB_KEY_BASE=long-and-random-alphanumeric-string
    - GITLAB_SECRETS_SECRET_KEY_BASE=long-and-random-alphanumeric-string
    - GITLAB_SECRETS_OTP_KEY_BASE=long-and-random-alphanumeric-string
    - GITLAB_SECRETS_ENCRYPTED_SETTINGS_KEY_BASE=long-and-random-alphanumeric-string
    - OAUTH_SAML_LABEL="Our SAML Provider"
    - OAUTH_SAML_NAME_IDENTIFIER_FORMAT=urn:oasis:names:tc:SAML:2.0:nameid-format:transient

volumes:
  redis-data:
  postgresql-data:
  gitlab-data:
"#;

#[test]
fn the_compose_file_of_the_project_is_understood() {
    let machine = Machine::new();
    machine.write("/srv/Docker_GitLab/docker-compose.yml", OWN);
    // Old versions of compose removed more characters from the project's name.
    machine.make("/var/lib/docker/volumes/dockergitlab_gitlab-data/_data/backups");
    machine.write("/var/lib/docker/volumes/dockergitlab_gitlab-data/_data/tmp/VERSION", "17.2.0\n");
    let plan = machine.plan("/srv/Docker_GitLab/docker-compose.yml");
    let data = "/var/lib/docker/volumes/dockergitlab_gitlab-data/_data";
    assert_eq!(machine.paths(&plan, "repositories"), [format!("{data}/repositories")]);
    assert_eq!(machine.paths(&plan, "lfs"), [format!("{data}/shared/lfs-objects")]);
    assert_eq!(machine.paths(&plan, "compose"), ["/srv/Docker_GitLab/docker-compose.yml"]);
    // If no such volume exists, the path is that of the current compose.
    let redis = "/var/lib/docker/volumes/docker_gitlab_redis-data/_data/dump.rdb";
    assert_eq!(machine.paths(&plan, "redis")[0], redis);
    assert_eq!(plan.product.version.as_deref(), Some("17.3.1"));
    assert_eq!(plan.product.image.as_deref(), Some("sameersbn/gitlab:17.3.1-1"));
    assert!(plan.lacking.is_empty(), "{:?}", plan.lacking);
    assert!(plan.notes.iter().any(|note| note.contains("17.2.0")), "{:?}", plan.notes);
    assert_eq!(plan.databases[0].name, "gitlabhq_production");
    let server = plan.postgres.as_ref().expect("a server");
    assert_eq!(server.role.as_deref(), Some("postgres"));
    let into = server.reach.into.join(" ");
    assert!(into.starts_with("true exec -i --env PGPASSWORD"), "{into}");
    assert!(into.ends_with(" docker_gitlab-postgresql-1"), "{into}");
    assert_eq!(supervisor(&plan).writers, ["docker_gitlab-gitlab-1"]);
    let left: Vec<String> =
        plan.skipped.iter().map(|left| left.path.display().to_string()).collect();
    for end in ["/backups", "postgresql-data/_data", "/repositories/+gitaly"] {
        assert!(left.iter().any(|left| left.ends_with(end)), "{end}: {left:?}");
    }
}

#[test]
fn compose_files_of_the_oldest_form_are_understood() {
    let machine = Machine::new();
    machine.write(
        "/opt/gitlab/docker-compose.yml",
        r#"
postgresql:
  container_name: gitlab-postgresql
  image: quay.io:443/sameersbn/postgresql:9.4-3
  environment:
    - DB_USER=gitlab
    - DB_NAME=gitlab_db
  volumes:
    - ./postgresql:/var/lib/postgresql
gitlab:
  image: sameersbn/gitlab:8.0.5
  links:
    - redis:redisio
    - postgresql:postgresql
  environment:
    GITLAB_SECRETS_DB_KEY_BASE: 12345
    GITLAB_REPOS_DIR: /repos/of git
    GITLAB_SECRETS_SECRET_KEY_BASE: ""
  volumes:
    - ./gitlab/../data:/home/git/data
    - ~/repos:/repos/of git:rw
redis:
  image: sameersbn/redis:latest
  volumes:
    - /opt/gitlab/redis:/var/lib/redis
"#,
    );
    let plan = machine.plan("/opt/gitlab");
    assert_eq!(machine.paths(&plan, "uploads"), ["/opt/gitlab/data/uploads"]);
    assert_eq!(machine.paths(&plan, "repositories"), ["/root/repos"]);
    assert_eq!(machine.paths(&plan, "redis")[0], "/opt/gitlab/redis/dump.rdb");
    assert_eq!(plan.databases[0].name, "gitlab_db");
    let server = plan.postgres.as_ref().expect("a server");
    assert_eq!(server.reach.into.last().map(String::as_str), Some("gitlab-postgresql"));
    assert_eq!(lacking(&plan), ["secrets"]);
    let looked_for = &plan.lacking[0].looked_for;
    assert!(looked_for.contains("GITLAB_SECRETS_SECRET_KEY_BASE"), "{looked_for}");
    assert!(looked_for.contains("GITLAB_SECRETS_OTP_KEY_BASE"), "{looked_for}");
    // Keys that are set, or that this version does not use, are not reported.
    for not in ["DB_KEY_BASE", "ACTIVE_RECORD", "12345"] {
        assert!(!looked_for.contains(not), "{looked_for}");
    }
}

#[test]
fn all_forms_of_volumes_are_understood() {
    let machine = Machine::new();
    machine.write(
        "/root/git.example/compose.yaml",
        r#"
name: ${STACK:-git}
services:
  gitlab:
    image: registry.example.com:5000/mirror/sameersbn/gitlab@sha256:0123
    environment:
      DB_HOST: db
      GITLAB_SHARED_DIR: /shared
      GITLAB_BACKUP_DIR: /backups
      GITLAB_UPLOADS_OBJECT_STORE_ENABLED: true
      GITLAB_REGISTRY_KEY_PATH: /certs/registry.key
      GITLAB_BUILDS_DIR: /builds
      GITLAB_PAGES_DIR: /nowhere
    volumes:
      - {type: volume, source: data, target: /home/git/data}
      - type: bind
        source: ./shared
        target: /shared
        read_only: false
      - backups:/backups
      - certs:/certs
      - {type: tmpfs, target: /builds}
      - /var/log/gitlab
      - lfs:/shared/lfs-objects
      - disk:/shared/artifacts
  db:
    image: postgres:14-alpine
    environment: {POSTGRES_USER: gitlab, POSTGRES_DB: git, POSTGRES_PASSWORD_FILE: /run/secrets/db}
    secrets: [db]
  registry:
    image: registry:2
    environment: [REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/registry]
    volumes: ["registry-data:/registry"]
secrets:
  db: {file: ./db.txt}
volumes:
  data: {}
  registry-data:
  certs: {name: own-certs}
  backups: {external: {name: all-backups}}
  lfs: {external: true}
  disk:
    driver_opts: {type: none, o: "bind,rw", device: "/mnt/${DISK-disk1}"}
"#,
    );
    machine.write("/root/git.example/db.txt", "of-database\n");
    machine.write("/etc/docker/daemon.json", r#"{"data-root": "/mnt/docker"}"#);
    let plan = machine.plan("/root/git.example/compose.yaml");
    let at = |part| machine.paths(&plan, part).join(" ");
    assert_eq!(at("repositories"), "/mnt/docker/volumes/git_data/_data/repositories");
    assert_eq!(at("packages"), "/root/git.example/shared/packages");
    assert_eq!(at("lfs"), "/mnt/docker/volumes/lfs/_data");
    assert_eq!(at("artifacts"), "/mnt/disk1");
    assert!(at("registry").ends_with(" /mnt/docker/volumes/git_registry-data/_data"));
    assert!(at("certs").ends_with(" /mnt/docker/volumes/own-certs/_data/registry.key"));
    let backups = machine.path("/mnt/docker/volumes/all-backups/_data");
    assert!(plan.skipped.iter().any(|left| left.path == backups), "{:?}", plan.skipped);
    for word in ["uploads: in an object store", "builds: /builds"] {
        assert!(plan.notes.iter().any(|note| note.starts_with(word)), "{word}: {:?}", plan.notes);
    }
    // The version is unknown, so all keys are required.
    assert_eq!(plan.product.version, None);
    assert_eq!(lacking(&plan), ["secrets", "pages"]);
    assert!(plan.lacking[0].looked_for.contains("KEY_DERIVATION_SALT"));
    let server = plan.postgres.as_ref().expect("a server");
    assert_eq!(server.role.as_deref(), Some("gitlab"));
    assert_eq!(server.password, Some(Password("of-database".into())));
    assert!(!format!("{server:?}").contains("of-database"));
    assert!(plan.redis.is_none());
}

#[test]
fn a_relative_shared_directory_starts_at_the_program() {
    // The image has a link there, which leads into the data.
    for (shared, place) in [
        ("shared", "/srv/git/data/shared/lfs-objects"),
        ("./shared/", "/srv/git/data/shared/lfs-objects"),
        ("/home/git/gitlab/shared", "/srv/git/data/shared/lfs-objects"),
        ("../data/other", "/srv/git/data/other/lfs-objects"),
    ] {
        let machine = Machine::new();
        let text = format!(
            "services:\n  gitlab:\n    image: sameersbn/gitlab:17.8.2\n    environment:\n      \
             DB_HOST: db\n      GITLAB_SHARED_DIR: {shared}\n    volumes: ['./data:/home/git/data']\n  \
             db: {{image: 'postgres:14'}}\n"
        );
        machine.write("/srv/git/compose.yml", &text).make(place);
        let plan = machine.plan("/srv/git/compose.yml");
        assert_eq!(machine.paths(&plan, "lfs"), [place], "{shared}");
    }
}

#[test]
fn keys_are_found_in_every_file_given_to_the_container() {
    let machine = Machine::new();
    machine.write(
        "/srv/git/docker-compose.yml",
        r#"
version: '3.4'
services:
  postgresql: {image: sameersbn/postgresql:12}
  gitlab:
    image: ${IMAGE:?which one}
    env_file:
      - one.env
      - path: ./two.env
        required: false
    volumes: ["/srv/git/data:/home/git/data"]
    configs: [gitlab-configs]
    secrets:
      - source: keys
        target: gitlab-secrets
configs:
  gitlab-configs: {file: ./gitlab.configs}
secrets:
  keys: {file: ./gitlab.secrets}
"#,
    );
    machine.write("/srv/git/.env", "IMAGE=sameersbn/gitlab:18.5.1\nOTP='of otp'\n");
    machine.write("/srv/git/one.env", "GITLAB_SECRETS_OTP_KEY_BASE=$OTP # kept\n");
    machine.write("/srv/git/gitlab.configs", "# none\nexport GITLAB_SECRETS_DB_KEY_BASE=a\n");
    let mut keys = String::from("export GITLAB_SECRETS_SECRET_KEY_BASE='b'\n");
    for (name, _) in &SECRETS[3..] {
        keys += &format!("{name}=\"c\"\n");
    }
    machine.write("/srv/git/gitlab.secrets", &keys);
    let plan = machine.plan("/srv/git");
    assert_eq!(lacking(&plan), [""; 0], "{:?}", plan.lacking);
    let files = ["docker-compose.yml", ".env", "gitlab.configs", "gitlab.secrets", "one.env"];
    assert_eq!(machine.paths(&plan, "compose"), files.map(|file| format!("/srv/git/{file}")));
    assert!(machine.paths(&plan, "secrets").contains(&"/srv/git/gitlab.secrets".to_owned()));
    assert!(plan.notes.iter().any(|note| note.contains("two.env")), "{:?}", plan.notes);

    // Without the file, both parts are incomplete.
    std::fs::remove_file(machine.path("/srv/git/gitlab.secrets")).expect("removes");
    assert_eq!(lacking(&machine.plan("/srv/git")), ["compose", "secrets"]);
    // Without the variable that the file requires, the error names it.
    std::fs::remove_file(machine.path("/srv/git/.env")).expect("removes");
    let error = machine.try_plan("/srv/git", "").expect_err("no image").to_string();
    assert!(error.contains("IMAGE") && error.contains("service gitlab"), "{error}");
}

#[test]
fn files_override_and_services_extend_each_other() {
    let machine = Machine::new();
    machine.write(
        "/srv/git/docker-compose.yml",
        r"
x-environment: &environment
  DB_HOST: postgresql
  A: of anchor
services:
  base:
    image: sameersbn/gitlab:16.0.0
    volumes: ['/old:/home/git/data']
  gitlab:
    extends: base
    environment:
      <<: *environment
      B: ${UNKNOWN}
    container_name: forge
  postgresql:
    extends: {service: db, file: common/db.yml}
",
    );
    machine.write(
        "/srv/git/common/db.yml",
        "services:\n  db:\n    image: postgres:15\n    env_file: db.env\n",
    );
    machine.write("/srv/git/common/db.env", "POSTGRES_USER=admin\n");
    machine.write(
        "/srv/git/docker-compose.override.yml",
        "services:\n  gitlab:\n    image: sameersbn/gitlab:16.1.0\n    \
         volumes: ['/new:/home/git/data:Z']\n    environment: ['A=of override']\n",
    );
    let compose = machine.read("/srv/git/docker-compose.yml");
    let gitlab = compose.services["gitlab"].as_ref().expect("reads");
    assert_eq!(gitlab.image.as_deref(), Some("sameersbn/gitlab:16.1.0"));
    assert_eq!(gitlab.mounts.len(), 1);
    assert_eq!(gitlab.mounts[0].source, Source::Path(machine.path("/new")));
    assert_eq!(gitlab.variable("A"), Some("of override"));
    assert_eq!(gitlab.variable("DB_HOST"), Some("postgresql"));
    let db = compose.services["postgresql"].as_ref().expect("reads");
    assert_eq!(db.variable("POSTGRES_USER"), Some("admin"));
    assert!(compose.notes[0].contains("UNKNOWN"), "{:?}", compose.notes);
    assert!(compose.files.contains(&machine.path("/srv/git/common/db.yml")));

    // `COMPOSE_FILE` in `.env` takes precedence over default names.
    machine
        .write("/srv/git/.env", "COMPOSE_FILE=docker-compose.yml:b.yml\nCOMPOSE_PROJECT_NAME=x\n");
    machine.write("/srv/git/b.yml", "services: {gitlab: {container_name: b}}\n");
    let compose = machine.read("/srv/git/docker-compose.yml");
    let gitlab = compose.services["gitlab"].as_ref().expect("reads");
    assert_eq!((gitlab.container.as_deref(), compose.names[0].as_str()), (Some("b"), "x"));
    assert_eq!(gitlab.mounts[0].source, Source::Path(machine.path("/old")));

    machine.write(
        "/srv/loop/compose.yml",
        "services:\n  a: {extends: b}\n  b: {extends: {service: a, file: compose.yml}}\n",
    );
    let error = machine.read("/srv/loop/compose.yml").services["a"]
        .as_ref()
        .expect_err("a loop")
        .to_string();
    assert!(error.contains("in a loop"), "{error}");
}

#[test]
fn podman_volumes_are_found_without_a_running_podman() {
    let machine = Machine::new();
    machine.write("/home/git/forge/compose.yml", OWN);
    let plan = machine
        .try_plan("/home/git/forge/compose.yml", "docker = ['/nowhere/podman', '--remote']")
        .expect("a plan");
    let uploads = "/var/lib/containers/storage/volumes/forge_gitlab-data/_data/uploads";
    assert_eq!(machine.paths(&plan, "uploads"), [uploads]);
    let supervisor = supervisor(&plan);
    assert_eq!(supervisor.program, ["/nowhere/podman", "--remote"]);
    assert_eq!(supervisor.writers, ["forge-gitlab-1"]);
    assert!(plan.notes.iter().any(|note| note.contains("/nowhere/podman")), "{:?}", plan.notes);
}

#[test]
fn a_database_on_another_machine_is_found() {
    let machine = Machine::new();
    let text = OWN.replace("DB_HOST=postgresql", "DB_HOST=db.example.com");
    machine.write("/srv/git/compose.yml", &text.replace("DB_PORT=5432", "DB_PORT=6000"));
    let server = machine.plan("/srv/git").postgres.expect("a server");
    assert_eq!((server.host.as_deref(), server.port), (Some("db.example.com"), 6000));
    assert_eq!(server.role.as_deref(), Some("gitlab"));
    assert_eq!(server.password, Some(Password("password".into())));
    assert!(server.reach.into.is_empty());
    assert_eq!(server.databases.as_deref(), Some(&["gitlabhq_production".to_owned()][..]));
    // Only containers know this name of the machine that runs them.
    let text = OWN.replace("DB_HOST=postgresql", "DB_HOST=host.docker.internal");
    machine.write("/srv/git/compose.yml", &text);
    let server = machine.plan("/srv/git").postgres.expect("a server");
    assert_eq!(server.host.as_deref(), Some("127.0.0.1"));
}

#[test]
fn errors_name_the_problem_and_a_remedy() {
    let machine = Machine::new();
    let error_of = |text: &str| {
        machine.write("/srv/git/compose.yml", text);
        machine
            .try_plan("/srv/git/compose.yml", "docker = ['true']")
            .expect_err("wrong")
            .to_string()
    };
    let error = error_of("services: {web: {image: nginx}}");
    assert!(error.contains("no service with an image sameersbn/gitlab"), "{error}");
    let error = error_of("services: {git: {image: sameersbn/gitlab:1}}");
    assert!(error.contains("has no volume at /home/git/data"), "{error}");
    // Errors do not quote the line, because it contains a secret.
    let error = error_of("services:\n  git:\n    environment:\n    - K=hush: [\n  - {");
    assert!(error.contains("compose.yml") && !error.contains("hush"), "{error}");
    let error =
        error_of("services: {git: {image: sameersbn/gitlab:1, environment: [\"A=hush${\"]}}");
    assert!(error.contains("no closing `}`") && !error.contains("hush"), "{error}");

    machine.write(
        "/srv/git/compose.yml",
        "services: {git: {image: sameersbn/gitlab:1, volumes: [/home/git/data]}, db: {image: postgres}}",
    );
    let plan = machine.plan("/srv/git/compose.yml");
    let looked_for = &plan.lacking[1].looked_for;
    assert!(
        looked_for.contains("anonymous volume") && looked_for.contains("parts.repositories.path"),
        "{looked_for}"
    );

    let nowhere = machine.try_plan("/srv/none.yml", "").expect_err("nothing").to_string();
    assert!(nowhere.starts_with("cannot read"), "{nowhere}");
}

#[test]
fn environment_files_are_parsed_like_in_compose() {
    let text = "\u{feff}# first\nA=1 # one\r\n export B = 'x # $y' # two\nC=\"a \\\"b\\\" \\$c\n d\"\n\
                D=it's\nnothing\nE=\nF=\"open\nG=a#b=c\n";
    let literally = |text: &str| Assigned::Literally(text.into());
    let expanding = |text: &str| Assigned::ToExpand(text.into());
    let expected = [
        ("A", expanding("1")),
        ("B", literally("x # $y")),
        ("C", expanding("a \"b\" $$c\n d")),
        ("D", expanding("it's")),
        ("E", expanding("")),
        ("F", expanding("\"open")),
        ("G", expanding("a#b=c")),
    ];
    assert_eq!(assignments(text), expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn variables_are_expanded_like_in_compose() {
    let look = |name: &str, _| match name {
        "A" => Some("a".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    let is = |text: &str| expand(text, &look, 0);
    for (text, expected) in [
        ("$A-${A}$$A", "a-a$A"),
        ("${B:-x}${EMPTY:-x}${EMPTY-x}${A:-x}", "xxa"),
        ("${B:-${C-${A}}}", "a"),
        ("${A:+yes}${B:+no}${EMPTY:+no}${EMPTY+yes}", "yesyes"),
        ("${A:?must}${EMPTY?must}", "a"),
        ("$B{}", "{}"),
        ("ä$A", "äa"),
    ] {
        assert_eq!(is(text).as_deref(), Ok(expected), "{text}");
    }
    for wrong in ["$", "${", "${}", "${A", "$1", "${A!}", "${B?}", "${EMPTY:?}"] {
        assert!(is(wrong).is_err(), "{wrong}");
    }
    let deep = "${B-".repeat(50) + &"}".repeat(50);
    assert!(is(&deep).is_err());
    let large = |_: &str, _| Some("x".repeat(1 << 20));
    assert!(expand(&"$A".repeat(1000), &large, 0).is_err());
}

/// Texts made of characters and words with a meaning.
fn compose_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("$"),
        Just("{"),
        Just("}"),
        Just(":"),
        Just("-"),
        Just("?"),
        Just("+"),
        Just("A"),
        Just("="),
        Just("'"),
        Just("\""),
        Just("\\"),
        Just("\n"),
        Just(" "),
        Just("#"),
        Just("/"),
        Just(".."),
        Just("~"),
        Just("[ "),
        Just("]"),
        Just("&a "),
        Just("*a"),
        Just("<<: "),
        Just("services:\n  g:\n    "),
        Just("image: sameersbn/gitlab:1\n    "),
        Just("environment: "),
        Just("volumes: "),
        Just("env_file: "),
        Just("extends: "),
        Just("/home/git/data"),
        Just("- "),
        Just("null"),
        Just("é"),
    ];
    proptest::collection::vec(word, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn arbitrary_text_does_not_panic(text in compose_text(), env in compose_text()) {
        let look = |_: &str, _| Some("v".to_owned());
        let _ = expand(&text, &look, 0);
        let _ = assignments(&text);
        let machine = Machine::new();
        machine.write("/p/compose.yml", &text).write("/p/.env", &env);
        let _ = machine.try_plan("/p/compose.yml", "docker = ['true']");
    }

    #[test]
    fn parsing_any_environment_file_terminates(text in any::<String>()) {
        let _ = assignments(&text);
        let _ = expand(&text, &|_, _| None, 0);
    }
}
