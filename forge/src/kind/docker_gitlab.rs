//! GitLab in the container of sameersbn/docker-gitlab, with PostgreSQL and Redis in
//! containers beside it.
//!
//! Its compose file says everything: where the directories are, what the database is called,
//! and the keys that decrypt it, which no directory holds.

pub mod compose;
#[cfg(test)]
mod tests;

use super::gitlab::{self, note_unknown, rows};
use super::{Kind, Site, below, into_container};
use crate::catalogue::Catalogue;
use crate::check::{Check, Verdict};
use crate::copy::{Copy, shown};
use crate::error::{Error, Result};
use crate::file;
use crate::plan::{Database, Phase, Plan, Product};
use crate::run::Command;
use crate::service::control::{Control, Speaks, Supervisor};
use crate::service::postgres::{self, Connection, Server};
use crate::service::redis::{self, Redis};
use crate::service::{Password, Reach};
use compose::{Compose, NAMES, Place, Service, Source, assignments};
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// GitLab in the container of sameersbn/docker-gitlab.
pub struct DockerGitlab;

/// Where the container has its data.
const DATA: &str = "/home/git/data";
/// Files of assignments that the container reads before anything else.
const HANDED: [&str; 2] = ["/run/secrets/gitlab-secrets", "/gitlab-configs"];
/// How long a question about a container may take.
const QUESTION: Duration = Duration::from_secs(20);

/// Keys without which the database cannot be decrypted, and the version of GitLab that began
/// to need them.
const SECRETS: &[(&str, (u32, u32))] = &[
    ("GITLAB_SECRETS_DB_KEY_BASE", (0, 0)),
    ("GITLAB_SECRETS_SECRET_KEY_BASE", (0, 0)),
    ("GITLAB_SECRETS_OTP_KEY_BASE", (0, 0)),
    ("GITLAB_SECRETS_ENCRYPTED_SETTINGS_KEY_BASE", (17, 0)),
    ("GITLAB_SECRETS_ACTIVE_RECORD_ENCRYPTION_PRIMARY_KEY", (17, 8)),
    ("GITLAB_SECRETS_ACTIVE_RECORD_ENCRYPTION_DETERMINISTIC_KEY", (17, 8)),
    ("GITLAB_SECRETS_ACTIVE_RECORD_ENCRYPTION_KEY_DERIVATION_SALT", (17, 8)),
];

/// A directory of data.
struct Row {
    /// Name of the part, as in the other kind of GitLab.
    name: &'static str,
    /// Variable that moves it.
    variable: &'static str,
    /// Where it is otherwise, below [`DATA`].
    path: &'static str,
    /// Whether every instance has it.
    is_needed: bool,
    /// Variable that moves it into an object store.
    remote: &'static str,
    /// What it is.
    about: &'static str,
}

const fn row(
    name: &'static str,
    variable: &'static str,
    path: &'static str,
    is_needed: bool,
    remote: &'static str,
    about: &'static str,
) -> Row {
    Row { name, variable, path, is_needed, remote, about }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("uploads", "", "uploads", true, "GITLAB_UPLOADS_OBJECT_STORE_ENABLED", "files that users attached, avatars"),
    row("artifacts", "GITLAB_ARTIFACTS_DIR", "shared/artifacts", true, "GITLAB_ARTIFACTS_OBJECT_STORE_ENABLED", "artifacts of CI jobs"),
    row("lfs", "GITLAB_LFS_OBJECTS_DIR", "shared/lfs-objects", true, "GITLAB_LFS_OBJECT_STORE_ENABLED", "Git LFS objects"),
    row("external-diffs", "GITLAB_EXTERNAL_DIFFS_DIR", "shared/external-diffs", false, "", "diffs of merge requests"),
    row("packages", "GITLAB_PACKAGES_DIR", "shared/packages", false, "GITLAB_PACKAGES_OBJECT_STORE_ENABLED", "packages of projects"),
    row("dependency-proxy", "", "shared/dependency_proxy", false, "", "images kept for CI jobs"),
    row("terraform-state", "GITLAB_TERRAFORM_STATE_STORAGE_PATH", "shared/terraform_state", false, "GITLAB_TERRAFORM_STATE_OBJECT_STORE_ENABLED", "states of Terraform"),
    row("ci-secure-files", "GITLAB_CI_SECURE_FILES_STORAGE_PATH", "shared/ci_secure_files", false, "GITLAB_CI_SECURE_FILES_OBJECT_STORE_ENABLED", "secure files of CI"),
    row("pages", "GITLAB_PAGES_DIR", "shared/pages", false, "", "pages of projects"),
    row("registry", "GITLAB_REGISTRY_DIR", "shared/registry", false, "", "container images"),
    row("encrypted-settings", "", "shared/encrypted_settings", false, "", "encrypted settings of mail and LDAP"),
    row("builds", "GITLAB_BUILDS_DIR", "builds", false, "", "logs of CI jobs"),
    row("ssh-host-keys", "", "ssh", true, "", "keys by which users know this machine"),
    row("certs", "", "certs", false, "", "certificates and their keys"),
    row("config", "", "config", false, "", "templates of the admin's own"),
    row("ssh", "", ".ssh", false, "", "keys of users; GitLab can write them again"),
    row("version", "", "tmp/VERSION", false, "", "version that last migrated the data"),
];

/// Variables with paths of certificates, which may be outside the data.
const CERTIFICATES: &[&str] = &[
    "SSL_CERTIFICATE_PATH",
    "SSL_KEY_PATH",
    "SSL_DHPARAM_PATH",
    "SSL_CA_CERTIFICATES_PATH",
    "SSL_PAGES_CERT_PATH",
    "SSL_PAGES_KEY_PATH",
    "SSL_REGISTRY_CERT_PATH",
    "SSL_REGISTRY_KEY_PATH",
    "GITLAB_REGISTRY_CERT_PATH",
    "GITLAB_REGISTRY_KEY_PATH",
];

/// What the container makes again, below [`DATA`].
const LEFT_OUT: &[(&str, &str)] = &[
    ("backups", "archives made by GitLab's own backup command"),
    (".gitlab_shell_secret", "made again by the container"),
    (".gitlab_workhorse_secret", "made again by the container"),
    (".gitlab_pages_secret", "made again by the container"),
    (".gitlab_kas_secret", "made again by the container"),
    (".secret", "made again by the container"),
    ("shared/cache", "a cache"),
    ("shared/tmp", "files under way"),
];

impl Kind for DockerGitlab {
    fn name(&self) -> &'static str {
        "docker-gitlab"
    }

    fn title(&self) -> &'static str {
        "GitLab in containers of sameersbn/docker-gitlab"
    }

    fn detect(&self, root: &Path) -> Option<String> {
        compose_files(root).first().map(|path| path.display().to_string())
    }

    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()> {
        let path = compose_file(site)?;
        let compose = Compose::read(&path, &site.settings.root, &volumes_dir(site))?;
        plan.notes.extend(compose.notes.iter().cloned());
        let containers = Containers { site, compose: &compose };
        let (name, gitlab) = containers.gitlab()?;
        let data = match gitlab.place(Path::new(DATA)) {
            Some(Place::Here(data)) => data,
            Some(Place::Nowhere(reason)) => {
                return Err(site.wrong(format!("{DATA} of service {name}: {reason}")));
            }
            None => {
                return Err(site.wrong(format!(
                    "service {name} in {} has no volume at {DATA}, so its data would be \
                     gone with its container",
                    compose.path.display()
                )));
            }
        };
        plan.product = product(gitlab, &data, plan);
        plan.skips_git_caches = true;
        configuration(&compose, plan);
        secrets(&compose, gitlab, plan);
        repositories(gitlab, plan);
        for row in ROWS {
            directory(gitlab, row, plan);
        }
        registry(&compose, plan);
        certificates(gitlab, &data, plan);
        left_out(gitlab, &data, plan);
        identity(gitlab, plan);
        containers.postgres(gitlab, plan)?;
        containers.redis(gitlab, plan)?;
        note_unknown(&data, &["shared"], plan);
        let container = containers.name_of(name, gitlab, plan)?;
        // PostgreSQL and Redis are other containers and go on.
        let program = &site.settings.docker;
        plan.control = Control::Supervised(Supervisor::new(Speaks::Docker, program, [container]));
        Ok(())
    }

    fn ask(&self, plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
        rows::ask(plan, databases)
    }

    fn check(&self, plan: &Plan, catalogue: &mut Catalogue, copy: &Copy<'_>) -> Result<Vec<Check>> {
        let mut checks = vec![check_secrets(plan, copy)?];
        checks.extend(gitlab::check_catalogue(plan, catalogue, copy)?);
        Ok(checks)
    }
}

/// Whether all files that have keys are in the copy. That a key is in none of them, the part
/// itself says.
fn check_secrets(plan: &Plan, copy: &Copy<'_>) -> Result<Check> {
    let part = plan.parts.iter().find(|part| part.name == "secrets");
    let paths = part.map(|part| part.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() {
        let text = "not all keys that decrypt the database are in files that are copied";
        return Ok(Check::new("secrets", Verdict::Warning, text));
    }
    let seen = copy.look(paths)?;
    let absent = paths.iter().zip(seen).filter(|(_, seen)| seen.is_none());
    let absent: Vec<String> = absent.map(|(path, _)| shown(path)).collect();
    if absent.is_empty() {
        return Ok(Check::ok(
            "secrets",
            "the files with the keys that decrypt the database are there",
        ));
    }
    let text = "files with keys that decrypt the database are not in the copy";
    Ok(Check::new("secrets", Verdict::Failed, text).with_examples(absent))
}

/// The compose file of the settings, or the only one that is found.
fn compose_file(site: &Site<'_>) -> Result<PathBuf> {
    if let Some(path) = &site.settings.compose {
        let in_dir = NAMES.iter().map(|name| path.join(name)).find(|path| path.exists());
        return Ok(in_dir.unwrap_or_else(|| path.clone()));
    }
    let mut found = compose_files(&site.settings.root);
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(path),
        (None, _) => Err(site.wrong(
            "no compose file with an image sameersbn/gitlab was found; \
             say where it is: compose = \"/…/docker-compose.yml\"",
        )),
        (Some(last), false) => {
            let all: Vec<String> =
                found.iter().chain([&last]).map(|path| path.display().to_string()).collect();
            Err(site.wrong(format!(
                "several compose files have an image sameersbn/gitlab ({}); \
                 say which it is: compose = \"…\"",
                all.join(", ")
            )))
        }
    }
}

/// Where compose files are looked for, and how far below.
const PLACES: &[(&str, usize)] =
    &[("/srv", 4), ("/opt", 4), ("/root", 3), ("/home", 4), ("/app", 3), ("/etc", 2)];
/// Directories that are looked into at most.
const DIRS_MAX: usize = 5000;
/// Entries of one directory that are looked at.
const ENTRIES_MAX: usize = 500;

/// Compose files with this GitLab, in the usual places; what is near the top comes first.
fn compose_files(root: &Path) -> Vec<PathBuf> {
    let places = PLACES.iter().map(|(place, depth)| (below(root, Path::new(place)), *depth));
    let mut queue: VecDeque<(PathBuf, usize)> = places.collect();
    let mut found = Vec::new();
    for _ in 0..DIRS_MAX {
        let Some((dir, depth)) = queue.pop_front() else { break };
        let here = NAMES.iter().map(|name| dir.join(name)).find(|path| path.is_file());
        found.extend(here.filter(|path| {
            file::text(path).is_ok_and(|text| has_gitlab(&text.unwrap_or_default()))
        }));
        if depth > 0 {
            queue.extend(dirs_in(&dir).into_iter().map(|dir| (dir, depth - 1)));
        }
    }
    found
}

/// Directories in one; no links, and none that is hidden.
fn dirs_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().take(ENTRIES_MAX).flatten();
    let dirs = entries.filter(|entry| {
        let is_shown = entry.file_name().to_str().is_some_and(|name| !name.starts_with('.'));
        is_shown && entry.file_type().is_ok_and(|kind| kind.is_dir())
    });
    let mut dirs: Vec<PathBuf> = dirs.map(|entry| entry.path()).collect();
    dirs.sort();
    dirs
}

/// Whether a line names the image.
fn has_gitlab(text: &str) -> bool {
    text.lines().any(|line| {
        let image =
            line.trim().strip_prefix("image:").map(|image| image.trim().trim_matches(['"', '\'']));
        image.is_some_and(|image| {
            is_gitlab(&Service { image: Some(image.to_owned()), ..Service::default() })
        })
    })
}

fn is_gitlab(service: &Service) -> bool {
    let repository = service.repository();
    ["sameersbn/gitlab", "sameersbn-gitlab"].iter().any(|name| repository.ends_with(name))
        // Whoever made an image of their own from it has its directory.
        || service.mounts.iter().any(|mount| mount.target == Path::new(DATA))
}

fn is_postgres(service: &Service) -> bool {
    let repository = service.repository();
    repository.ends_with("postgresql") || repository.rsplit('/').next() == Some("postgres")
}

fn is_redis(service: &Service) -> bool {
    let name = service.repository().rsplit('/').next().unwrap_or_default();
    ["redis", "valkey"].contains(&name) || name.ends_with("-redis")
}

/// Where named volumes are.
fn volumes_dir(site: &Site<'_>) -> PathBuf {
    let program = site.settings.docker.first().map(String::as_str).unwrap_or_default();
    if program.ends_with("podman") {
        return site.at("/var/lib/containers/storage/volumes");
    }
    let daemon = file::text(&site.at("/etc/docker/daemon.json")).ok().flatten();
    let daemon: serde_json::Value =
        daemon.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let moved = daemon["data-root"].as_str().or(daemon["graph"].as_str());
    site.at(moved.unwrap_or("/var/lib/docker")).join("volumes")
}

/// What the tag says, or else what last migrated the data.
fn product(gitlab: &Service, data: &Path, plan: &mut Plan) -> Product {
    let tag = gitlab.tag().filter(|tag| tag.starts_with(|c: char| c.is_ascii_digit()));
    // 17.8.2-1 is the second image of 17.8.2.
    let of_tag = tag.map(|tag| tag.split('-').next().unwrap_or(tag).to_owned());
    let migrated = file::text(&data.join("tmp/VERSION")).ok().flatten();
    let migrated = migrated.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    if let (Some(tag), Some(migrated)) = (&of_tag, &migrated)
        && tag != migrated
    {
        plan.notes.push(format!(
            "the image is of {tag}, the data are of {migrated}: the container was not started \
             since the image was changed"
        ));
    }
    Product {
        name: "GitLab".into(),
        edition: Some("ce".into()),
        version: of_tag.or(migrated),
        image: gitlab.image.clone(),
    }
}

/// The files that make the containers.
fn configuration(compose: &Compose, plan: &mut Plan) {
    let about = "the compose file and what it names: environment, secrets";
    let part = plan.needs("compose", about, compose.path.clone());
    let others = compose.files.iter().filter(|file| **file != compose.path);
    part.paths.extend(others.filter(|file| file.exists()).cloned());
    for file in compose.files.iter().filter(|file| !file.exists()) {
        if file.file_name().is_none_or(|name| name != ".env") {
            let text = format!("{} is named by the compose file and not there", file.display());
            plan.notes.push(text);
        }
    }
}

/// The keys: each has to be somewhere where it is backed up.
fn secrets(compose: &Compose, gitlab: &Service, plan: &mut Plan) {
    let mut places = BTreeSet::from([compose.path.clone()]);
    let mut set: BTreeSet<String> = gitlab
        .environment
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, _)| name.clone())
        .collect();
    for handed in HANDED.map(Path::new) {
        let mount = gitlab.mounts.iter().rev().find(|mount| mount.target == handed);
        let text = match mount.map(|mount| &mount.source) {
            Some(Source::Path(path)) => {
                places.insert(path.clone());
                file::text(path).ok().flatten()
            }
            Some(Source::Text(text)) => Some(text.clone()),
            Some(Source::Unknown(_)) | None => None,
        };
        let said = assignments(text.as_deref().unwrap_or_default());
        set.extend(
            said.into_iter().filter(|(_, said)| !said.text().is_empty()).map(|(name, _)| name),
        );
    }
    let version = plan.product.version_numbers();
    let is_needed = |since| version.is_none_or(|version| version >= since);
    let missing: Vec<&str> = SECRETS
        .iter()
        .filter(|(name, since)| is_needed(*since) && !set.contains(*name))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        let mut places = places.into_iter();
        let first = places.next().unwrap_or_default();
        let part = plan.needs("secrets", "keys that decrypt what the database holds", first);
        part.paths.extend(places);
        return;
    }
    plan.lacks(
        "secrets",
        format!(
            "{} in the environment of the GitLab container or in {}; write them into .env beside \
             the compose file, or name the file that has them: parts.secrets.path",
            missing.join(", "),
            HANDED.join(", ")
        ),
    );
}

/// The path in the container that a variable or the default gives.
fn in_container(gitlab: &Service, variable: &str, default: &str) -> PathBuf {
    if let Some(path) = gitlab.variable(variable) {
        return path.into();
    }
    let shared = gitlab.variable("GITLAB_SHARED_DIR");
    match (default.strip_prefix("shared/"), shared) {
        (Some(inner), Some(shared)) => Path::new(shared).join(inner),
        _ => Path::new(DATA).join(default),
    }
}

/// A path of the container on this machine. Says why if there is none.
fn on_machine(gitlab: &Service, path: &Path) -> Result<PathBuf, String> {
    match gitlab.place(path) {
        Some(Place::Here(path)) => Ok(path),
        Some(Place::Nowhere(reason)) => {
            Err(format!("{} of the container: {reason}", path.display()))
        }
        None => Err(format!("{} of the container, which no volume holds", path.display())),
    }
}

fn repositories(gitlab: &Service, plan: &mut Plan) {
    let path = in_container(gitlab, "GITLAB_REPOS_DIR", "repositories");
    match on_machine(gitlab, &path) {
        Ok(path) => plan.storage("repositories", &path, None),
        Err(reason) => plan.lacks("repositories", reason),
    }
}

fn directory(gitlab: &Service, row: &Row, plan: &mut Plan) {
    let path = in_container(gitlab, row.variable, row.path);
    let is_remote = gitlab.variable(row.remote) == Some("true");
    match on_machine(gitlab, &path) {
        Ok(path) if is_remote && !path.exists() => {
            plan.notes.push(format!("{}: it is in an object store, which is not copied", row.name));
        }
        Ok(path) if row.is_needed && !is_remote => drop(plan.needs(row.name, row.about, path)),
        Ok(path) => drop(plan.takes(row.name, row.about, path)),
        Err(reason) if row.is_needed && !is_remote => plan.lacks(row.name, reason),
        Err(reason) => plan.notes.push(format!("{}: {reason}; it is not copied", row.name)),
    }
}

/// Images are where the registry's own container has them.
fn registry(compose: &Compose, plan: &mut Plan) {
    for service in compose.services.values().flatten() {
        if service.repository().rsplit('/').next() != Some("registry") {
            continue;
        }
        let root = service.variable("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY");
        let place = service.place(Path::new(root.unwrap_or("/var/lib/registry")));
        if let Some(Place::Here(path)) = place
            && let Some(part) = plan.parts.iter_mut().find(|part| part.name == "registry")
            && !part.paths.contains(&path)
        {
            part.paths.push(path);
        }
    }
}

/// Certificates that are kept outside the data.
fn certificates(gitlab: &Service, data: &Path, plan: &mut Plan) {
    let Some(part) = plan.parts.iter_mut().find(|part| part.name == "certs") else { return };
    for variable in CERTIFICATES {
        let Some(path) = gitlab.variable(variable) else { continue };
        if let Some(Place::Here(path)) = gitlab.place(Path::new(path))
            && !path.starts_with(data)
            && !part.paths.contains(&path)
        {
            part.paths.push(path);
        }
    }
}

fn left_out(gitlab: &Service, data: &Path, plan: &mut Plan) {
    for (name, reason) in LEFT_OUT {
        let path = data.join(name);
        if path.exists() {
            plan.leaves(path, reason);
        }
    }
    if let Ok(path) = on_machine(gitlab, &in_container(gitlab, "GITLAB_BACKUP_DIR", "backups"))
        && !plan.left_out.iter().any(|left| left.path == path)
    {
        plan.leaves(path, "archives made by GitLab's own backup command");
    }
    if let Some(Place::Here(path)) = gitlab.place(Path::new("/var/log/gitlab")) {
        plan.leaves(path, "logs");
    }
}

/// Numbers of users are kept as they are; only the container has names for them.
fn identity(gitlab: &Service, plan: &mut Plan) {
    let number = |name| gitlab.variable(name).and_then(|text| text.parse::<u32>().ok());
    let (uid, gid) = (number("USERMAP_UID"), number("USERMAP_GID"));
    if uid.or(gid).is_some() {
        plan.notes.push(format!(
            "GitLab's files belong to user {} and group {}, as USERMAP_UID and USERMAP_GID say; \
             a restore keeps these numbers",
            uid.unwrap_or(1000),
            gid.unwrap_or(1000)
        ));
    }
}

/// The containers of an instance.
struct Containers<'a> {
    site: &'a Site<'a>,
    compose: &'a Compose,
}

impl<'a> Containers<'a> {
    fn all(&self) -> impl Iterator<Item = (&'a str, &'a Service)> {
        let services = self.compose.services.iter();
        services.filter_map(|(name, service)| Some((name.as_str(), service.as_ref().ok()?)))
    }

    fn gitlab(&self) -> Result<(&'a str, &'a Service)> {
        let all: Vec<_> = self.all().filter(|(_, service)| is_gitlab(service)).collect();
        // An image made from it counts only where the image itself is not there.
        let by_image = all.iter().find(|(_, service)| service.repository().ends_with("gitlab"));
        if let Some(found) = by_image.or(all.first()) {
            return Ok(*found);
        }
        let mut reasons =
            self.compose.services.values().filter_map(|service| service.as_ref().err());
        let path = self.compose.path.clone();
        Err(match reasons.next() {
            Some(reason) => Error::Malformed { path, reason: reason.to_string() },
            None => self.site.wrong(format!(
                "{} has no service with an image sameersbn/gitlab; is it the right compose file?",
                path.display()
            )),
        })
    }

    /// The service that a variable of GitLab's names, or the only one that does such a thing.
    fn beside(
        &self,
        host: Option<&str>,
        does: fn(&Service) -> bool,
    ) -> Option<(&'a str, &'a Service)> {
        let all: Vec<_> = self.all().filter(|(_, service)| does(service)).collect();
        let is_named = |(name, service): &&(&str, &Service)| {
            host.is_some_and(|host| *name == host || service.container.as_deref() == Some(host))
        };
        match (all.iter().find(is_named), host) {
            (Some(found), _) => Some(*found),
            // The name of another machine, not an alias of a container.
            (None, Some(host)) if host.contains('.') => None,
            (None, _) => all.first().copied().filter(|_| all.len() == 1),
        }
    }

    /// What the container of a service is called: as it says, or as one of the versions of
    /// compose would call it and docker knows it.
    fn name_of(&self, service: &str, said: &Service, plan: &mut Plan) -> Result<String> {
        if let Some(name) = &said.container {
            return Ok(name.clone());
        }
        let projects = &self.compose.names;
        let mut names: Vec<String> =
            projects.iter().map(|project| format!("{project}-{service}-1")).collect();
        names.extend(projects.iter().map(|project| format!("{project}_{service}_1")));
        for name in &names {
            let program = self.site.settings.docker.iter().map(String::as_str);
            let words = program.chain(["inspect", "--format", "{{.Name}}", name]);
            match Command::new(words).within(QUESTION).output(self.site.progress) {
                Ok(_) => return Ok(name.clone()),
                Err(Error::Failed { .. }) => {}
                Err(error) if error.is_interrupted() => return Err(error),
                Err(error) => {
                    plan.notes.push(format!("containers could not be asked for: {error}"));
                    return Ok(names[0].clone());
                }
            }
        }
        plan.notes.push(format!("service {service} has no container named {}", names.join(" or ")));
        Ok(names[0].clone())
    }

    fn postgres(&self, gitlab: &Service, plan: &mut Plan) -> Result<()> {
        let host = gitlab.variable("DB_HOST");
        let mut server = Server::default();
        let found = self.beside(host, is_postgres);
        let of_server = found.and_then(|(_, service)| {
            service.variable("POSTGRES_DB").or(service.variable("DB_NAME"))
        });
        let database = gitlab.variable("DB_NAME").or(of_server).unwrap_or("gitlabhq_production");
        // The image of sameersbn takes a list.
        let database = database.split(',').next().unwrap_or(database).trim();
        if let Some((name, service)) = found {
            let container = self.name_of(name, service, plan)?;
            server.reach.into = into_container(self.site.settings, &container, postgres::VARIABLES);
            // Inside, its own socket is open to the one who made the cluster.
            server.role = Some(service.variable("POSTGRES_USER").unwrap_or("postgres").into());
            server.password = ["POSTGRES_PASSWORD", "PG_PASSWORD"]
                .into_iter()
                .find_map(|name| secret_of(service, name));
            for mount in &service.mounts {
                if let Source::Path(path) = &mount.source
                    && ["/var/lib/postgresql", "/bitnami/postgresql"]
                        .iter()
                        .any(|data| mount.target.starts_with(data))
                {
                    plan.leaves(path.clone(), "dumped from the running server");
                }
            }
        } else if let Some(host) = host {
            server.host = Some(host.into());
            server.port =
                gitlab.variable("DB_PORT").and_then(|port| port.parse().ok()).unwrap_or(5432);
            server.role = gitlab.variable("DB_USER").map(str::to_owned);
            server.password = secret_of(gitlab, "DB_PASS");
            server.databases = Some(vec![database.to_owned()]);
            plan.notes.push(format!(
                "the database server is {host}, outside the compose file; its role needs to be \
                 allowed to read roles as well"
            ));
        } else {
            return Err(self.site.wrong(format!(
                "{} does not say which service is PostgreSQL; say it: \
                 postgres.container = \"NAME\", and DB_HOST for GitLab",
                self.compose.path.display()
            )));
        }
        plan.postgres = Some(server);
        let (name, purpose) = (database.into(), "main".into());
        plan.databases.push(Database { name, purpose, is_required: true });
        Ok(())
    }

    fn redis(&self, gitlab: &Service, plan: &mut Plan) -> Result<()> {
        let Some((name, service)) = self.beside(gitlab.variable("REDIS_HOST"), is_redis) else {
            plan.notes.push(
                "Redis is not in the compose file and is not saved; name it under `redis` if it \
                 should be"
                    .into(),
            );
            return Ok(());
        };
        let container = self.name_of(name, service, plan)?;
        let into = into_container(self.site.settings, &container, redis::VARIABLES);
        let option = service.command.iter().position(|word| word == "--requirepass");
        let of_command = option.and_then(|at| service.command.get(at + 1));
        let password = secret_of(service, "REDIS_PASSWORD")
            .or_else(|| of_command.map(|password| Password(password.clone())));
        plan.redis =
            Some(Redis { reach: Reach { into, ..Reach::default() }, password, ..Redis::default() });
        // The image of sameersbn has its data elsewhere than Redis's own.
        let dir = if service.repository().ends_with("sameersbn/redis") {
            "/var/lib/redis"
        } else {
            "/data"
        };
        match service.place(Path::new(dir)) {
            Some(Place::Here(dir)) => {
                let part =
                    plan.takes("redis", "jobs that wait, and sessions", dir.join("dump.rdb"));
                part.phase = Phase::Saves;
                part.paths.push(dir.join("appendonlydir"));
                part.paths.push(dir.join("appendonly.aof"));
                plan.leaves(dir, "of it only what Redis saves is taken");
            }
            Some(Place::Nowhere(reason)) => {
                plan.notes.push(format!("redis: {reason}; its data are not copied"));
            }
            None => plan.notes.push(format!(
                "redis: no volume is at {dir}, where the image keeps its data; they are not copied"
            )),
        }
        Ok(())
    }
}

/// A password among the variables, or in the file that one names.
fn secret_of(service: &Service, name: &str) -> Option<Password> {
    if let Some(value) = service.variable(name) {
        return Some(Password(value.to_owned()));
    }
    let file = Path::new(service.variable(&format!("{name}_FILE"))?);
    let mount = service.mounts.iter().rev().find(|mount| mount.target == file)?;
    let text = match &mount.source {
        Source::Path(path) => file::text(path).ok().flatten()?,
        Source::Text(text) => text.clone(),
        Source::Unknown(_) => return None,
    };
    Some(Password(text.trim_end().to_owned()))
}
