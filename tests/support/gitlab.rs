//! A GitLab of the Omnibus package, as far as a backup sees it: its files with
//! their real owners and modes below a root of its own, and real servers.
//!
//! The generated configuration names paths as on a machine of its own, without
//! the root. GitLab's own programs are not there; what writes all the time are
//! scripts (`gitlab/puma`, `gitlab/sidekiq`) that do what its processes do.

mod checks;
mod database;
mod files;
mod layout;
mod repositories;

pub use checks::{assert_pushes_are_there, assert_rows_have_files, fsck_all};
pub use repositories::Repository;

use super::accounts::Account;
use super::postgres::{Options, Postgres};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where GitLab keeps its data.
pub const DATA: &str = "var/opt/gitlab";

/// The names of the storages, and where their repositories are.
pub const STORAGES: [(&str, &str); 2] = [
    ("default", "/var/opt/gitlab/git-data/repositories"),
    ("storage2", "/mnt/storage2/repositories"),
];

/// What kind of instance is made.
#[derive(Clone, Debug)]
pub struct Builder {
    projects: u32,
    version: String,
}

impl Builder {
    /// Five projects, with a fork among them, and nobody who writes.
    pub fn new() -> Builder {
        Builder { projects: 5, version: "17.8.2-ce.0".into() }
    }

    /// With this many projects; wikis, designs, pools and snippets come on top.
    pub fn projects(mut self, count: u32) -> Builder {
        self.projects = count;
        self
    }

    /// With the version and edition of this package.
    pub fn version(mut self, version: &str) -> Builder {
        self.version = version.into();
        self
    }

    /// Makes it, which only root can, and starts its servers.
    pub fn build(self) -> Gitlab {
        let dir = short_dir();
        let root = dir.path().to_owned();
        layout::make(&root, &self.version);
        let postgresql = root.join(DATA).join("postgresql");
        let postgres = Postgres::start(Options {
            log: root.join("var/log/gitlab/postgresql/current"),
            ..Options::within(&postgresql)
        });
        database::make(&postgres, self.projects);
        let repositories = repositories::make(&postgres, &root);
        files::make(&postgres, &root);
        Gitlab { repositories, postgres, dir }
    }
}

/// A directory with a short name, because those of sockets have to be, that
/// servers of other accounts may pass.
pub fn short_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("fk").rand_bytes(4).tempdir_in("/tmp");
    let dir = dir.expect("a temporary directory");
    let pass = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(dir.path(), pass).expect("its mode");
    dir
}

/// The account of GitLab itself.
pub fn git() -> Account {
    Account::named("git")
}

/// An instance that runs until it is dropped, and leaves nothing.
pub struct Gitlab {
    // In the order in which they are dropped.
    /// All repositories it was made with.
    pub repositories: Vec<Repository>,
    /// Its database server.
    pub postgres: Postgres,
    dir: tempfile::TempDir,
}

impl Gitlab {
    /// What stands for `/`.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }
}
