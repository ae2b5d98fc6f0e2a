//! Where GitLab's directories are: what the variables of the container say, and what of it
//! lies where on this machine.

use super::DATA;
use super::compose::{Compose, Place, Service};
use crate::plan::Plan;
use std::path::{Path, PathBuf};

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

/// Says in the plan what of the data belongs to the instance.
pub fn fill(compose: &Compose, gitlab: &Service, data: &Path, plan: &mut Plan) {
    repositories(gitlab, plan);
    for row in ROWS {
        directory(gitlab, row, plan);
    }
    registry(compose, plan);
    certificates(gitlab, data, plan);
    left_out(gitlab, data, plan);
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
