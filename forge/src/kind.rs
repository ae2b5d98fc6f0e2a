//! The kinds of instance: what each consists of. A kind is one file and one line in
//! [`KINDS`].

pub mod docker_gitlab;
pub mod gitlab;
pub mod gitlab_container;
pub mod mattermost;
pub mod plain;

use crate::catalogue::Catalogue;
use crate::check::Check;
use crate::copy::{Copy, Mount};
use crate::error::{Error, Result};
use crate::overrides;
use crate::plan::Plan;
use crate::service::Password;
use crate::service::postgres::Connection;
use crate::settings::Settings;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::observe::Progress;

/// All kinds. The first that recognises a machine is proposed for it.
pub static KINDS: &[&dyn Kind] = &[
    &gitlab::Gitlab,
    &gitlab_container::GitlabContainer,
    &docker_gitlab::DockerGitlab,
    &mattermost::Mattermost,
    &plain::Plain,
];

/// What is known of a product.
pub trait Kind: Sync {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// What it is, for people.
    fn title(&self) -> &'static str;

    /// What on a machine shows that there is one; `None` if there is not.
    fn detect(&self, root: &Path) -> Option<String>;

    /// Further lines for the configuration of what was detected.
    fn propose(&self, root: &Path) -> Vec<String> {
        let _ = root;
        Vec::new()
    }

    /// Says in the plan what belongs to an instance.
    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()>;

    /// Asks the databases, at the moment of their dumps, what the rest has to fit.
    fn ask(&self, plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
        let _ = (plan, databases);
        Ok(Catalogue::default())
    }

    /// The keys that decrypt what the databases hold, by name, from files of a copy. Without
    /// them what is encrypted is lost, and others do not open it.
    fn keys(&self, plan: &Plan, copy: &Copy<'_>) -> Result<BTreeMap<&'static str, Password>> {
        let _ = (plan, copy);
        Ok(BTreeMap::new())
    }

    /// Tries the keys of a copy on values that the databases hold encrypted.
    fn try_keys(
        &self,
        plan: &Plan,
        databases: &mut [Connection<'_>],
        copy: &Copy<'_>,
    ) -> Result<Option<Check>> {
        let _ = (plan, databases, copy);
        Ok(None)
    }

    /// Compares a copy with an earlier one, from the last backup that was complete: whether
    /// something was there then and is gone without a reason.
    fn compare(
        &self,
        plan: &Plan,
        catalogue: &Catalogue,
        copy: &Copy<'_>,
        before: &Copy<'_>,
    ) -> Result<Option<Check>> {
        let _ = (plan, catalogue, copy, before);
        Ok(None)
    }

    /// Looks whether what was copied fits what the databases say, and marks in the catalogue
    /// what of it was copied.
    fn check(&self, plan: &Plan, catalogue: &mut Catalogue, copy: &Copy<'_>) -> Result<Vec<Check>> {
        let _ = (plan, catalogue, copy);
        Ok(Vec::new())
    }
}

/// The kind of this name.
pub fn find(name: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

/// An instance on this machine.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Its name.
    pub instance: &'a str,
    /// What the configuration says of it.
    pub settings: &'a Settings,
    /// Tells of a wish to stop.
    pub progress: &'a Progress,
    /// Whether database servers are not to be asked.
    pub is_offline: bool,
}

impl Site<'_> {
    /// A path of the product as a path of this machine.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.settings.root, path.as_ref())
    }

    /// The settings cannot be right.
    pub fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Settings { instance: self.instance.into(), reason: reason.into() }
    }
}

/// A path of the product below a root.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Everything resolved: what the kind knows, changed by the settings.
pub fn plan(site: &Site<'_>) -> Result<(Plan, &'static dyn Kind)> {
    let settings = site.settings;
    let kind = find(&settings.kind).ok_or_else(|| {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name()).collect();
        site.wrong(format!("there is no kind `{}`; there are {}", settings.kind, names.join(", ")))
    })?;
    let mut plan = Plan::new(site.instance, kind.name(), settings);
    kind.fill(site, &mut plan)?;
    overrides::apply(site, &mut plan)?;
    let root = &settings.root;
    for part in &mut plan.parts {
        plan.notes.extend(part.resolve(root));
    }
    plan.mounts.iter_mut().for_each(Mount::resolve);
    plan.left_out.iter_mut().for_each(|left| left.resolve(root));
    // Links in a container are its own, and lead elsewhere on this machine.
    let is_contained = plan.product.image.is_some();
    let is_named = |part: &str| {
        let own = settings.parts.get(part);
        is_contained || own.is_some_and(|own| own.path.is_some() || !own.paths.is_empty())
    };
    plan.follow_links(root, is_named);
    Ok((plan, kind))
}

/// The command that leads into a running container. It takes the named variables along
/// where they are set, so that no value is among its arguments, where everybody can read it.
pub fn into_container(settings: &Settings, name: &str, variables: &[&str]) -> Vec<String> {
    let words = settings.docker.iter().map(String::as_str).chain(["exec", "-i"]);
    let words = words.chain(variables.iter().flat_map(|variable| ["--env", variable]));
    words.chain([name]).map(String::from).collect()
}
