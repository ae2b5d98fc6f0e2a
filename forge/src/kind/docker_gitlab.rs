//! GitLab in a container of sameersbn/docker-gitlab, with PostgreSQL and Redis in other containers.
//!
//! The compose file defines everything: the directories, the database's name, and the keys that
//! decrypt it. No directory contains these keys.

pub mod compose;
pub mod containers;
pub mod data;
pub mod find;
mod places;
pub mod running;
mod secrets;
#[cfg(test)]
mod tests;
mod variables;

use super::gitlab::{self, leave_snapshots, note_unknown, rows, take_unknown};
use super::{Kind, Rebuilding, Site};
use crate::catalogue::Catalogue;
use crate::check::Check;
use crate::coverage::check_files;
use crate::earlier::Earlier;
use crate::error::Result;
use crate::file;
use crate::plan::{Plan, Product, Volume};
use crate::service::Password;
use crate::service::control::{Control, Speaks, Supervisor};
use crate::service::postgres::Connection;
use crate::view::View;
use compose::{Compose, Service, Surroundings};
use containers::Containers;
use places::{Dirs, place};
use running::Running;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// GitLab in a container of sameersbn/docker-gitlab.
pub struct DockerGitlab;

/// The service that runs GitLab.
const SOUGHT: find::Sought = find::Sought { image: "sameersbn/gitlab", is_it: is_gitlab };

/// Data directory in the container.
const DATA: &str = "/home/git/data";

impl Kind for DockerGitlab {
    fn name(&self) -> &'static str {
        "docker-gitlab"
    }

    fn title(&self) -> &'static str {
        "GitLab in containers of sameersbn/docker-gitlab"
    }

    fn detect(&self, root: &Path) -> Option<String> {
        find::compose_files(root, SOUGHT).first().map(|path| path.display().to_string())
    }

    fn propose(&self, root: &Path) -> Vec<String> {
        find::proposed(&find::compose_files(root, SOUGHT), &[])
    }

    fn rebuilding(&self) -> Rebuilding {
        Rebuilding {
            first: &["compose", "secrets"],
            needs_redis: true,
            // A container keeps the keys with which it was created.
            left: &[
                "docker compose up -d --force-recreate",
                "docker compose run --rm gitlab app:rake gitlab:check",
            ],
            ..Rebuilding::default()
        }
    }

    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()> {
        let (compose, known) = project(site, SOUGHT, plan)?;
        let containers = Containers { site, compose: &compose, known: &known };
        let (name, gitlab) = containers.gitlab()?;
        let dir = Dirs::of(gitlab).data;
        if !gitlab
            .mounts
            .iter()
            .any(|mount| mount.target.starts_with(&dir) || dir.starts_with(&mount.target))
        {
            return Err(site.wrong(format!(
                "service {name} in {} has no volume at {}; add one, or its data is lost with its \
                 container",
                compose.path.displayed(),
                dir.displayed()
            )));
        }
        plan.volumes = Volume::all(None, gitlab.volumes());
        for (other, service) in compose.services.iter().filter(|(other, _)| *other != name) {
            let volumes = service.iter().flat_map(Service::volumes);
            plan.volumes.extend(Volume::all(Some(other), volumes));
        }
        plan.product = product(gitlab, &dir, plan);
        plan.services = services(&compose);
        plan.skips_git_caches = true;
        configuration(&compose, plan);
        secrets::fill(&compose, gitlab, plan);
        data::fill(site, &compose, gitlab, plan);
        identity(gitlab, plan);
        containers.postgres(gitlab, plan)?;
        containers.redis(gitlab, plan)?;
        if let Ok(data) = place(gitlab, &dir) {
            data::leave_hidden(gitlab, &data, plan);
            let shared = place(gitlab, &Dirs::of(gitlab).shared);
            leave_snapshots(shared.iter().chain([&data]), plan);
            if let Ok(shared) = shared {
                take_unknown(site, &shared, "shared", plan);
            }
            note_unknown(site, &data, &[], plan);
        }
        let container = containers.name_of(name, gitlab, plan)?;
        // PostgreSQL and Redis run in other containers and are not stopped.
        let program = &site.settings.docker;
        plan.control = Control::Supervised(Supervisor::new(Speaks::Docker, program, [container]));
        Ok(())
    }

    fn shares_with(&self) -> Option<&'static dyn Kind> {
        Some(&gitlab::Gitlab)
    }

    fn ask(&self, plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
        rows::ask(plan, databases)
    }

    fn keys(&self, plan: &Plan, view: &View<'_>) -> Result<BTreeMap<&'static str, Vec<Password>>> {
        secrets::keys(plan, view)
    }

    fn try_keys(
        &self,
        plan: &Plan,
        databases: &mut [Connection<'_>],
        view: &View<'_>,
    ) -> Result<Option<Check>> {
        let catalogue = gitlab::keys::ask(plan, databases)?;
        secrets::check(plan, &catalogue, view).map(Some)
    }

    fn check_loaded(
        &self,
        plan: &Plan,
        databases: &mut [Connection<'_>],
        view: &View<'_>,
    ) -> Result<Vec<Check>> {
        let catalogue = rows::ask_for_drill(plan, databases)?;
        let mut checks = vec![secrets::check(plan, &catalogue, view)?];
        checks.extend(catalogue.unknown());
        checks.push(check_files(plan, &catalogue, view)?);
        Ok(checks)
    }

    fn check(
        &self,
        plan: &Plan,
        catalogue: &mut Catalogue,
        view: &View<'_>,
        earlier: Option<&Earlier<'_>>,
    ) -> Result<Vec<Check>> {
        let mut checks = vec![secrets::check(plan, catalogue, view)?];
        checks.extend(gitlab::check_catalogue(plan, catalogue, view, earlier)?);
        Ok(checks)
    }
}

fn is_gitlab(service: &Service) -> bool {
    let repository = service.repository();
    ["sameersbn/gitlab", "sameersbn-gitlab"].iter().any(|name| repository.ends_with(name))
        // An image made from it has its directory.
        || service.mounts.iter().any(|mount| mount.target == Path::new(DATA))
        // Or its keys.
        || service.environment.contains_key("GITLAB_SECRETS_DB_KEY_BASE")
}

/// Reads the project of an instance, and all containers of the machine. The container of GitLab
/// knows the name of its project, and all files that were passed to compose; they take precedence
/// over a list that is shorter.
pub fn project(
    site: &Site<'_>,
    sought: find::Sought,
    plan: &mut Plan,
) -> Result<(Compose, Vec<Running>)> {
    let volumes = volumes_dir(site, plan);
    let (settings, root) = (site.settings, site.settings.root.as_path());
    let place = Surroundings {
        root,
        volumes: &volumes,
        project: settings.project.as_deref(),
        dir: None,
        env_files: &[],
    };
    let compose = Compose::read(&find::chosen(site, sought)?, place)?;
    let all = running::all(&settings.docker, root).unwrap_or_default();
    let is_own = |one: &&Running| (sought.is_it)(&one.service) && one.is_created_from(&compose);
    let Some(own) = all.iter().find(is_own) else {
        plan.notes.extend(compose.notes.iter().cloned());
        return Ok((compose, all));
    };
    let others = own.other_files(&compose);
    if !others.is_empty() {
        let shown: Vec<String> = others.iter().map(|file| file.displayed()).collect();
        plan.notes.push(format!(
            "container {} was created from {}; using all of these files",
            own.name,
            shown.join(", ")
        ));
    }
    let files = if others.is_empty() { find::chosen(site, sought)? } else { others };
    let compose = of_container(own, &files, Surroundings { project: place.project, ..place })?;
    plan.notes.extend(compose.notes.iter().cloned());
    Ok((compose, all))
}

/// Reads the project of a container, from these files.
pub fn of_container(
    running: &Running,
    files: &[PathBuf],
    place: Surroundings<'_>,
) -> Result<Compose> {
    let dir = running.dir.as_deref().filter(|dir| dir.is_dir());
    let project = place.project.or(running.project.as_deref());
    Compose::read(files, Surroundings { project, dir, env_files: &running.env_files, ..place })
}

/// Returns the directory of named volumes.
pub fn volumes_dir(site: &Site<'_>, plan: &mut Plan) -> PathBuf {
    let program = site.settings.docker.first().map(String::as_str).unwrap_or_default();
    if program.ends_with("podman") {
        return site.at("/var/lib/containers/storage/volumes");
    }
    let path = site.at("/etc/docker/daemon.json");
    let daemon = file::json(&path).unwrap_or_else(|error| {
        plan.notes.push(format!(
            "{error}; the directory of Docker's volumes is unknown; assuming the default"
        ));
        None
    });
    let daemon = daemon.unwrap_or_default();
    let moved = daemon["data-root"].as_str().or(daemon["graph"].as_str());
    site.at(moved.unwrap_or("/var/lib/docker")).join("volumes")
}

/// Returns the version in the image's tag, or else the version that last migrated the data.
fn product(gitlab: &Service, dir: &Path, plan: &mut Plan) -> Product {
    let tag = gitlab.tag().filter(|tag| tag.starts_with(|c: char| c.is_ascii_digit()));
    // 17.8.2-1 is the second image of 17.8.2.
    let of_tag = tag.map(|tag| tag.split('-').next().unwrap_or(tag).to_owned());
    let migrated = place(gitlab, &dir.join("tmp/VERSION")).ok();
    let migrated = migrated.and_then(|path| file::text(&path).ok().flatten());
    let migrated = migrated.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    if let (Some(tag), Some(migrated)) = (&of_tag, &migrated)
        && tag != migrated
    {
        plan.notes.push(format!(
            "the image has version {tag}, but the data has version {migrated}: the container has \
             not started since the image changed"
        ));
    }
    Product {
        name: "GitLab".into(),
        edition: Some("ce".into()),
        version: of_tag.or(migrated),
        image: gitlab.image.clone(),
    }
}

/// Returns the services, with their images.
fn services(compose: &Compose) -> Vec<String> {
    let shown = |(name, service): (&String, &Result<Service>)| {
        let image = service.as_ref().ok().and_then(|service| service.image.clone());
        image.map_or_else(|| name.clone(), |image| format!("{name} ({image})"))
    };
    compose.services.iter().map(shown).collect()
}

/// Adds the files that define the containers.
pub fn configuration(compose: &Compose, plan: &mut Plan) {
    let about = "the compose file, its environment files and secrets";
    let part = plan.needs("compose", about, compose.path.clone());
    let others = compose.files.iter().filter(|file| **file != compose.path);
    part.paths.extend(others.filter(|file| file.exists()).cloned());
    let absent = |file: &&PathBuf| !file.exists();
    for file in compose.optional.iter().filter(absent) {
        let text = format!("the compose file names {}, which does not exist", file.displayed());
        plan.notes.push(text);
    }
    // Compose creates no container without them.
    let needed: Vec<String> =
        compose.needed.iter().filter(absent).map(|file| file.displayed()).collect();
    if !needed.is_empty() {
        plan.lacks("compose", format!("{}, named by the compose file", needed.join(", ")));
    }
}

/// Adds a note about configured user and group ids. A restore keeps these ids, because only the
/// container has names for them.
fn identity(gitlab: &Service, plan: &mut Plan) {
    let number = |name| gitlab.variable(name).and_then(|text| text.parse::<u32>().ok());
    let (uid, gid) = (number("USERMAP_UID"), number("USERMAP_GID"));
    if uid.or(gid).is_some() {
        plan.notes.push(format!(
            "GitLab's files belong to user {} and group {} (USERMAP_UID and USERMAP_GID); \
             a restore keeps these numbers",
            uid.unwrap_or(1000),
            gid.unwrap_or(1000)
        ));
    }
}
