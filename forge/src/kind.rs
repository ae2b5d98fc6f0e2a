//! Kinds of instance: the parts of each product. A kind is one file and one line in [`KINDS`].

pub mod docker_gitlab;
pub mod gitlab;
pub mod gitlab_container;
pub mod mattermost;
pub mod plain;

use crate::catalogue::Catalogue;
use crate::check::Check;
use crate::earlier::Earlier;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::service::Password;
use crate::service::postgres::Connection;
use crate::settings::Settings;
use crate::view::View;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::observe::Progress;

/// All kinds, in the order of detection: the first that recognises a machine is proposed for it.
pub static KINDS: &[&dyn Kind] = &[
    &gitlab::Gitlab,
    &gitlab_container::GitlabContainer,
    &docker_gitlab::DockerGitlab,
    &mattermost::Mattermost,
    &plain::Plain,
];

/// Knowledge about one product.
pub trait Kind: Sync {
    /// Name in the configuration.
    fn name(&self) -> &'static str;

    /// Name for people.
    fn title(&self) -> &'static str;

    /// Returns the evidence of an instance on a machine; `None` if there is no instance.
    fn detect(&self, root: &Path) -> Option<String>;

    /// Returns true if the kind knows the parts of its instances.
    fn is_product(&self) -> bool {
        true
    }

    /// Further lines for the configuration of a detected instance.
    fn propose(&self, root: &Path) -> Vec<String> {
        let _ = root;
        Vec::new()
    }

    /// Returns the steps of a rebuild that only this product has.
    fn rebuilding(&self) -> Rebuilding {
        Rebuilding::default()
    }

    /// Returns true if the plan has the database server of a configuration that the product's package
    /// brings, so that no admin has named it.
    fn is_default(&self, plan: &Plan) -> bool {
        let _ = plan;
        false
    }

    /// Fills the plan with the parts of an instance.
    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()>;

    /// Returns the kind of the same product in another installation, if there is one. Its answers
    /// below hold for this kind, too, unless this kind has its own.
    fn shares_with(&self) -> Option<&'static dyn Kind> {
        None
    }

    /// Asks the databases, in the transactions of their dumps, for the expected contents of the
    /// copy.
    fn ask(&self, plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
        let Some(kind) = self.shares_with() else { return Ok(Catalogue::default()) };
        kind.ask(plan, databases)
    }

    /// Reads from a copy the keys that decrypt the contents of the databases, by name. A name may
    /// have several keys, because a rotation adds one. Without exactly these keys, the encrypted
    /// contents are lost.
    fn keys(&self, plan: &Plan, view: &View<'_>) -> Result<BTreeMap<&'static str, Vec<Password>>> {
        let Some(kind) = self.shares_with() else { return Ok(BTreeMap::new()) };
        kind.keys(plan, view)
    }

    /// Tries the keys of a copy on values that the databases hold encrypted.
    fn try_keys(
        &self,
        plan: &Plan,
        databases: &mut [Connection<'_>],
        view: &View<'_>,
    ) -> Result<Option<Check>> {
        let Some(kind) = self.shares_with() else { return Ok(None) };
        kind.try_keys(plan, databases, view)
    }

    /// Compares the databases of a snapshot, loaded into another server, with its files: keys,
    /// sign-on, and rows with files.
    fn check_loaded(
        &self,
        plan: &Plan,
        databases: &mut [Connection<'_>],
        view: &View<'_>,
    ) -> Result<Vec<Check>> {
        if let Some(kind) = self.shares_with() {
            return kind.check_loaded(plan, databases, view);
        }
        let mut catalogue = self.ask(plan, databases)?;
        self.check(plan, &mut catalogue, view, None)
    }

    /// Checks that the copy matches the catalogue. Marks the copied repositories in the catalogue. A
    /// check fails if an earlier copy, of the last complete backup, has something that is gone
    /// without a reason.
    fn check(
        &self,
        plan: &Plan,
        catalogue: &mut Catalogue,
        view: &View<'_>,
        earlier: Option<&Earlier<'_>>,
    ) -> Result<Vec<Check>> {
        let Some(kind) = self.shares_with() else { return Ok(Vec::new()) };
        kind.check(plan, catalogue, view, earlier)
    }
}

/// Steps of a rebuild beside files and databases.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rebuilding {
    /// Names of the parts that are restored first: configuration and secrets, without which the
    /// product would make new ones.
    pub first: &'static [&'static str],
    /// Names of the parts that the product makes itself.
    pub remade: &'static [&'static str],
    /// Arguments with which the supervisor's program applies the configuration.
    pub configure: Option<&'static [&'static str]>,
    /// True if the product has a queue in Redis, wherever that is.
    pub needs_redis: bool,
    /// Services that run while databases are loaded.
    pub up: &'static [&'static str],
    /// True if a container stays up while its files are replaced.
    pub is_container_up: bool,
    /// True if only the database knows the version: it is compared once the product has run.
    pub is_version_in_database: bool,
    /// Commands that the admin runs at the end. `{rake}` is the program beside `gitlab-ctl`.
    pub left: &'static [&'static str],
}

/// Finds a kind by name.
pub fn find(name: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

/// An instance on this machine, for which a plan is made.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// Settings from the configuration.
    pub settings: &'a Settings,
    /// Reports a request to stop.
    pub progress: &'a Progress,
    /// True if database servers must not be queried.
    pub is_offline: bool,
}

impl Site<'_> {
    /// Maps a path of the product to a path of this machine.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.settings.root, path.as_ref())
    }

    /// Error about contradictory settings.
    pub fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Settings { instance: self.instance.into(), reason: reason.into() }
    }
}

/// Maps a path of the product to a path below a root.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
