//! A GitLab of sameersbn/docker-gitlab, as far as a backup sees it. It has the volumes of its
//! containers, its compose file, and a `docker` whose containers are servers of the tests.
//!
//! Links below the same root show the same data in the layout of the Omnibus package. Functions
//! that create, change and check Omnibus data therefore work here too.

use super::accounts::Account;
use super::gitlab::{database, files, git, layout, repositories, services, short_dir};
use super::postgres::{Options, Postgres, programs};
use super::redis::Redis;
use super::runit::{Runit, write_service};
use std::path::{Path, PathBuf};

/// Values of secrets, none of which may appear anywhere.
pub const SECRETS: [&str; 3] = ["very-secret-password", "very-secret-key", "very-secret-file"];

/// Path of its data below the root.
pub const DATA: &str = "srv/gitlab/data";

/// Path of its compose file below the root.
pub const COMPOSE: &str = "srv/forge/docker-compose.yml";

/// An instance that runs until it is dropped and leaves nothing behind.
pub struct DockerGitlab {
    // In drop order.
    /// The container of GitLab, as a service.
    pub containers: Runit,
    /// Redis of the instance.
    _redis: Redis,
    /// Database server of the instance.
    _postgres: Postgres,
    dir: tempfile::TempDir,
}

impl DockerGitlab {
    /// Creates an instance and starts its servers; requires root. GitLab itself writes all the
    /// time.
    pub fn start() -> DockerGitlab {
        let dir = short_dir();
        let root = dir.path().to_owned();
        let path = |name: &str| root.join(name);
        layout::directory(&path("log"), Account::root(), 0o755);
        let postgres = Postgres::start(Options {
            superuser: "postgres".into(),
            data: path("srv/gitlab/postgresql/14/main"),
            log: path("log/postgresql"),
            ..Options::within(&path("sockets"))
        });
        database::make(&postgres, 12);
        for table in ["project_repositories", "pool_repositories", "snippet_repositories"] {
            let one = format!(
                "update {table} set shard_id = (select id from shards where name = 'default')"
            );
            postgres.sql(database::MAIN, one);
        }
        postgres.sql(database::MAIN, "update projects set repository_storage = 'default'");
        layout::directory(&path(DATA), Account::root(), 0o755);
        for (name, mode) in [("repositories", 0o2770), ("uploads", 0o700), ("shared", 0o755)] {
            layout::directory(&path(DATA).join(name), git(), mode);
        }
        layout::directory(&path(DATA).join("builds"), git(), 0o755);
        see_as_omnibus(&root, &root);
        layout::directory(&path("mnt/storage2/repositories"), git(), 0o2770);
        let repositories = repositories::make(&postgres, &root);
        files::make(&postgres, &root);
        own_files(&root);
        let account = "gitlab-redis";
        layout::directory(&path("srv/gitlab/redis"), Account::named(account), 0o755);
        let redis = Redis::start(&path("srv/gitlab/redis"), &path("log/redis"), account, false);
        redis.fill(1000);
        let docker = include_str!("docker_gitlab/docker")
            .replace("{{root}}", root.to_str().expect("a readable root"))
            .replace("{{programs}}", programs().to_str().expect("a readable path"));
        layout::file(&path("docker"), Account::root(), 0o755, docker);
        let containers = container(&root, &services::list_of_projects(&repositories));
        DockerGitlab { containers, _redis: redis, _postgres: postgres, dir }
    }

    /// Returns the directory that represents `/`.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }

    /// Gives a directory of the data a volume of its own, which the container sees at the same path
    /// as before.
    pub fn mount(&self, inner: &str, place: &str) {
        self.containers.sv(&["-w", "30", "stop"], "gitlab").ok();
        let (seen, place) = (self.path(DATA).join(inner), self.path(place));
        std::fs::create_dir_all(place.parent().expect("below the root")).expect("a directory");
        std::fs::rename(&seen, &place).expect("moves");
        layout::link(&place, &seen);
        let compose = std::fs::read_to_string(self.path(COMPOSE)).expect("reads");
        let data = "    - /srv/gitlab/data:/home/git/data:Z\n";
        let place = place.strip_prefix(self.root()).expect("below the root").display();
        let volume = format!("{data}    - /{place}:/home/git/data/{inner}\n");
        std::fs::write(self.path(COMPOSE), compose.replace(data, &volume)).expect("writes");
        self.containers.sv(&["-w", "30", "start"], "gitlab").ok();
    }

    /// Returns true if the container of GitLab runs.
    pub fn is_up(&self) -> bool {
        self.containers.is_up("gitlab")
    }

    /// Returns the requests to docker so far, one per line.
    pub fn asked(&self) -> String {
        std::fs::read_to_string(self.path("docker.log")).unwrap_or_default()
    }
}

/// Makes the data below `root` visible below `seen` in the layout of the Omnibus package.
pub fn see_as_omnibus(root: &Path, seen: &Path) {
    let omnibus = seen.join(super::gitlab::DATA);
    for dir in ["git-data", "gitlab-rails", "gitlab-ci"] {
        std::fs::create_dir_all(omnibus.join(dir)).expect("a directory");
    }
    let data = root.join(DATA);
    for (name, as_omnibus) in [
        ("repositories", "git-data/repositories"),
        ("uploads", "gitlab-rails/uploads"),
        ("shared", "gitlab-rails/shared"),
        ("builds", "gitlab-ci/builds"),
    ] {
        layout::link(&data.join(name), &omnibus.join(as_omnibus));
    }
    layout::link(&root.join("sockets"), &omnibus.join("postgresql"));
}

/// Creates the files that only this kind of instance has.
fn own_files(root: &Path) {
    let data = root.join(DATA);
    for (dir, owner, mode) in [
        ("ssh", Account::root(), 0o755),
        ("certs", Account::root(), 0o700),
        ("tmp", git(), 0o755),
        ("backups", git(), 0o755),
    ] {
        layout::directory(&data.join(dir), owner, mode);
    }
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\n";
    layout::file(&data.join("ssh/ssh_host_ed25519_key"), Account::root(), 0o600, key);
    layout::file(&data.join("certs/gitlab.key"), Account::root(), 0o400, "-----BEGIN");
    layout::file(&data.join("tmp/VERSION"), git(), 0o644, "17.8.2\n");
    layout::file(&data.join("backups/1_gitlab_backup.tar"), git(), 0o600, "old");
    layout::file(&data.join(".gitlab_shell_secret"), git(), 0o600, "made again");
    let dir = root.join("srv/forge");
    layout::directory(&dir, Account::root(), 0o700);
    let compose = include_str!("docker_gitlab/docker-compose.yml");
    layout::file(&root.join(COMPOSE), Account::root(), 0o600, compose);
    let [password, key, in_file] = SECRETS;
    let env = format!("# Of this host\nDB_PASS={password}\nDB_KEY=\"{key}\" # 2021\n");
    layout::file(&dir.join(".env"), Account::root(), 0o600, env);
    let mut secrets = String::new();
    for name in ["SECRET_KEY_BASE", "OTP_KEY_BASE", "ENCRYPTED_SETTINGS_KEY_BASE"] {
        secrets += &format!("GITLAB_SECRETS_{name}={in_file}\n");
    }
    for name in ["PRIMARY_KEY", "DETERMINISTIC_KEY", "KEY_DERIVATION_SALT"] {
        secrets += &format!("GITLAB_SECRETS_ACTIVE_RECORD_ENCRYPTION_{name}=[\"{in_file}\"]\n");
    }
    layout::file(&dir.join("secrets.env"), Account::root(), 0o600, secrets);
}

/// Starts the container of GitLab: one service in which the web server and the jobs write.
fn container(root: &Path, projects: &str) -> Runit {
    let dir = root.join("image");
    layout::directory(&dir, Account::root(), 0o755);
    layout::file(&dir.join("projects"), git(), 0o644, projects);
    for (name, script) in
        [("puma", include_str!("gitlab/puma")), ("sidekiq", include_str!("gitlab/sidekiq"))]
    {
        let script = script.replace("{{root}}", root.to_str().expect("a readable root"));
        layout::file(&dir.join(name), Account::root(), 0o755, script);
    }
    let service = root.join("containers");
    std::fs::create_dir_all(&service).expect("a directory");
    let dir = dir.display();
    // The first process of a container ends those that it started, and waits for them. A signal
    // may come before it has started both.
    let run = format!(
        "#!/bin/sh\nexec 2>&1\ntrap 'stop=1; kill $puma $sidekiq' TERM\n\
         chpst -u git {dir}/puma & puma=$!\nchpst -u git {dir}/sidekiq & sidekiq=$!\n\
         [ -z \"$stop\" ] || kill $puma $sidekiq\nwait\nwait\n"
    );
    write_service(&service.join("gitlab"), &run);
    let containers = Runit::start(&service, &root.join("log/runsvdir"));
    containers.wait_until_up();
    containers
}
