//! A GitLab of the Omnibus package, as far as a backup sees it. It has its files with their real
//! owners and modes below a root of its own, and real servers.
//!
//! The generated configuration contains paths as on a separate machine, without the root. GitLab's
//! own programs are missing. Scripts (`gitlab/puma`, `gitlab/sidekiq`) write all the time, as its
//! processes do.

mod checks;
pub mod database;
pub mod files;
pub mod layout;
pub mod mattermost;
pub mod repositories;
pub mod services;

pub use checks::{assert_pushes_are_there, assert_rows_have_files, fsck_all};
pub use repositories::Repository;

use super::accounts::Account;
use super::postgres::{Options, Postgres};
use super::redis::Redis;
use super::runit::Runit;
use super::sandbox::{Outcome, Run};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Path of GitLab's data.
pub const DATA: &str = "var/opt/gitlab";

/// Names of the storages, and paths of their repositories.
pub const STORAGES: [(&str, &str); 2] = [
    ("default", "/var/opt/gitlab/git-data/repositories"),
    ("storage2", "/mnt/storage2/repositories"),
];

/// Properties of an instance to create.
#[derive(Clone, Debug)]
pub struct Builder {
    projects: u32,
    version: String,
    web: &'static str,
    writers: bool,
    mattermost: bool,
    redis_append_only: bool,
}

impl Builder {
    /// Five projects, with a fork among them, without writers.
    pub fn new() -> Builder {
        Builder {
            projects: 5,
            version: "17.8.2-ce.0".into(),
            web: "puma",
            writers: false,
            mattermost: false,
            redis_append_only: false,
        }
    }

    /// With this many projects; wikis, designs, pools and snippets are added.
    pub fn projects(mut self, count: u32) -> Builder {
        self.projects = count;
        self
    }

    /// With the version and edition of this package.
    pub fn version(mut self, version: &str) -> Builder {
        self.version = version.into();
        self
    }

    /// With a web server of this name; up to 12 it is `unicorn`.
    pub fn web(mut self, name: &'static str) -> Builder {
        self.web = name;
        self
    }

    /// With services that write until they are stopped.
    pub fn writers(mut self) -> Builder {
        self.writers = true;
        self
    }

    /// With Mattermost.
    pub fn mattermost(mut self) -> Builder {
        self.mattermost = true;
        self
    }

    /// With a Redis that keeps a log of all changes.
    pub fn redis_append_only(mut self) -> Builder {
        self.redis_append_only = true;
        self
    }

    /// Creates the instance and starts its servers; requires root.
    pub fn build(self) -> Gitlab {
        let dir = short_dir();
        let root = dir.path().to_owned();
        layout::make(&root, &self);
        let data = root.join(DATA);
        let log = root.join("var/log/gitlab");
        let postgres = Postgres::start(Options {
            log: log.join("postgresql/current"),
            data: data.join("postgresql/data"),
            ..Options::within(&data.join("postgresql"))
        });
        database::make(&postgres, self.projects);
        let repositories = repositories::make(&postgres, &root);
        files::make(&postgres, &root);
        if self.mattermost {
            mattermost::make(&postgres, &root, self.major());
        }
        let (log, account) = (log.join("redis/current"), "gitlab-redis");
        let redis = Redis::start(&data.join("redis"), &log, account, self.redis_append_only);
        redis.fill(1000);
        let services = services::start(&self, &root, &repositories);
        Gitlab { services, redis, repositories, postgres, dir }
    }

    fn major(&self) -> u32 {
        let major = self.version.split('.').next().expect("a version");
        major.parse().expect("a version begins with a number")
    }
}

/// Creates a directory with a short path, as sockets require, that servers of other accounts may
/// enter. It is in memory if there is space, because a large instance has very many small files.
pub fn short_dir() -> tempfile::TempDir {
    let memory = rustix::fs::statvfs("/dev/shm").is_ok_and(|memory| {
        let can_run = !memory.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC);
        can_run && memory.f_bavail.saturating_mul(memory.f_frsize) > 4 << 30
    });
    let place = if memory { "/dev/shm" } else { "/tmp" };
    let dir = tempfile::Builder::new().prefix("fk").rand_bytes(4).tempdir_in(place);
    let dir = dir.expect("a temporary directory");
    let pass = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(dir.path(), pass).expect("its mode");
    dir
}

/// Returns the account of GitLab itself.
pub fn git() -> Account {
    Account::named("git")
}

/// An instance that runs until it is dropped and leaves nothing behind.
pub struct Gitlab {
    // In drop order.
    /// Services that `gitlab-ctl` controls.
    pub services: Runit,
    /// Redis of the instance.
    pub redis: Redis,
    /// All repositories of the new instance.
    pub repositories: Vec<Repository>,
    /// Database server of the instance.
    pub postgres: Postgres,
    dir: tempfile::TempDir,
}

impl Gitlab {
    /// Returns the directory that represents `/`.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }

    /// Runs `gitlab-ctl`.
    pub fn ctl<const N: usize>(&self, arguments: [&str; N]) -> Outcome {
        Run::limited(self.path("usr/bin/gitlab-ctl")).args(arguments).run()
    }

    /// Returns the numbers of pushes, uploads and artifacts, which the writers create.
    pub fn written(&self) -> [u64; 3] {
        let count = |database, table| {
            let count = self.postgres.query(database, format!("select count(*) from {table}"));
            count.parse().expect("a number")
        };
        [
            count(database::MAIN, "push_event_payloads"),
            count(database::MAIN, "uploads"),
            count(database::CI, "ci_job_artifacts"),
        ]
    }
}
