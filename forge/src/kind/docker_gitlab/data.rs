//! GitLab's directories: the parts they belong to, their paths in the container, and their places
//! on this machine.

use super::compose::{Compose, Place, Service, Source};
use super::places::{Dirs, Gap, Said, place};
use crate::kind::Site;
use crate::plan::{Phase, Plan};
use crate::view::{Mount, shown};
use std::path::{Path, PathBuf};

/// A directory of data.
struct Row {
    /// Name of the part, as in the kind `gitlab`.
    name: &'static str,
    /// Variable that moves it.
    variable: &'static str,
    /// Default path, below the directory of all data.
    path: &'static str,
    /// True if every instance has it.
    is_needed: bool,
    /// Variable that moves it to an object store.
    remote: &'static str,
    /// Description for people.
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
    row("uploads", "GITLAB_UPLOADS_STORAGE_PATH", "uploads", true, "GITLAB_UPLOADS_OBJECT_STORE_ENABLED", "files that users attached, avatars"),
    row("artifacts", "GITLAB_ARTIFACTS_DIR", "shared/artifacts", true, "GITLAB_ARTIFACTS_OBJECT_STORE_ENABLED", "artifacts of CI jobs"),
    row("lfs", "GITLAB_LFS_OBJECTS_DIR", "shared/lfs-objects", true, "GITLAB_LFS_OBJECT_STORE_ENABLED", "Git LFS objects"),
    row("external-diffs", "GITLAB_EXTERNAL_DIFFS_DIR", "shared/external-diffs", false, "", "diffs of merge requests"),
    row("packages", "GITLAB_PACKAGES_DIR", "shared/packages", false, "GITLAB_PACKAGES_OBJECT_STORE_ENABLED", "packages of projects"),
    row("dependency-proxy", "", "shared/dependency_proxy", false, "", "images kept for CI jobs"),
    row("terraform-state", "GITLAB_TERRAFORM_STATE_STORAGE_PATH", "shared/terraform_state", false, "GITLAB_TERRAFORM_STATE_OBJECT_STORE_ENABLED", "states of Terraform"),
    row("ci-secure-files", "GITLAB_CI_SECURE_FILES_STORAGE_PATH", "shared/ci_secure_files", false, "GITLAB_CI_SECURE_FILES_OBJECT_STORE_ENABLED", "secure files of CI"),
    row("pages", "GITLAB_PAGES_DIR", "shared/pages", false, "", "pages of projects"),
    row("registry", "GITLAB_REGISTRY_DIR", "shared/registry", false, "", "container images"),
    row("agent-plan-content", "", "shared/agent_plan_content", false, "", "plans of agents"),
    row("ci-catalog-bundles", "", "shared/ci_catalog_bundles", false, "", "bundles of the CI catalog"),
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

/// Entries that are left out, below the directory of all data, with the reason.
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

/// Mounts that belong to the container and not to GitLab.
const OF_CONTAINER: &[&str] =
    &["/etc/localtime", "/etc/timezone", "/dev", "/proc", "/run", "/sys", "/tmp", "/var/run"];

/// Adds the data of the instance to the plan.
pub fn fill(site: &Site<'_>, compose: &Compose, gitlab: &Service, plan: &mut Plan) {
    let dirs = Dirs::of(gitlab);
    let mut data = Data { site, gitlab, plan, dirs, owners: Vec::new() };
    data.repositories();
    for row in ROWS {
        data.directory(row);
    }
    data.other_object_stores();
    data.left_out();
    data.certificates();
    for mount in &gitlab.mounts {
        data.mounted(&mount.target, &mount.source);
    }
    registry(compose, plan);
}

/// Owner of a directory in the container.
struct Owner {
    /// Path in the container.
    dir: PathBuf,
    /// Name of the part; `None` if the directory is left out.
    part: Option<&'static str>,
    /// Path on this machine, ignoring mounts inside the directory.
    seen: PathBuf,
}

struct Data<'a> {
    site: &'a Site<'a>,
    gitlab: &'a Service,
    plan: &'a mut Plan,
    dirs: Dirs,
    owners: Vec<Owner>,
}

impl Data<'_> {
    /// Returns the place of a part's directory on this machine. The settings take precedence.
    fn place(&self, part: &str, dir: &Path) -> Result<PathBuf, Gap> {
        match self.named(part) {
            Some(path) => Ok(path),
            None => place(self.gitlab, dir),
        }
    }

    /// Numbers of GitLab's user and group in its container, which files keep outside.
    fn owner(&self) -> String {
        let number = |name| {
            let said = self.gitlab.variable(name).and_then(|text| text.parse::<u32>().ok());
            said.unwrap_or(1000)
        };
        format!("{}:{}", number("USERMAP_UID"), number("USERMAP_GID"))
    }

    /// The place of a part that the settings name.
    fn named(&self, part: &str) -> Option<PathBuf> {
        let settings = self.site.settings.parts.get(part)?;
        settings.path.as_ref().or(settings.paths.first()).cloned()
    }

    fn owns(&mut self, dir: PathBuf, part: Option<&'static str>, seen: PathBuf) {
        self.owners.push(Owner { dir, part, seen });
    }

    /// Adds the repositories, then the pools that they borrow from. Pools may have a mount of their
    /// own.
    fn repositories(&mut self) {
        let Said { dir, .. } = self.dirs.path(self.gitlab, "GITLAB_REPOS_DIR", "repositories");
        let path = match self.place("repositories", &dir) {
            Ok(path) => path,
            Err(gap) => return self.plan.lacks("repositories", gap.needed("repositories")),
        };
        let owner = self.owner();
        self.plan.storage("repositories", &path, Some(&owner));
        let pools = dir.join("@pools");
        let is_mounted = self.gitlab.mounts.iter().any(|mount| mount.target == pools);
        if let Ok(place) = place(self.gitlab, &pools)
            && is_mounted
            && let Some(part) = self.plan.parts.iter_mut().find(|part| part.phase == Phase::Pools)
        {
            part.paths = vec![place];
        }
        self.owns(pools, Some("repositories-pools"), path.join("@pools"));
        self.owns(dir.join("+gitaly"), None, path.join("+gitaly"));
        self.owns(dir, Some("repositories"), path);
    }

    fn directory(&mut self, row: &Row) {
        let Said { dir, variable } = self.dirs.path(self.gitlab, row.variable, row.path);
        let is_remote = self.gitlab.is_true(row.remote);
        let found = self.place(row.name, &dir);
        if is_remote {
            let mut note = format!("{}: it is in an object store, which is not copied", row.name);
            if let Some(path) = found.as_ref().ok().filter(|path| path.exists()) {
                note += &format!("; what is still at {} is", shown(path));
            }
            self.plan.notes.push(note);
        }
        let path = match found {
            Ok(path) => path,
            Err(_) if is_remote => return,
            // A variable that names a directory means that it has data.
            Err(gap) if row.is_needed || gap.is_data(variable) => {
                return self.plan.lacks(row.name, gap.needed(row.name));
            }
            Err(gap) => {
                let note = format!("{}: {}; it is not copied", row.name, gap.reason);
                return self.plan.notes.push(note);
            }
        };
        if is_remote && !path.exists() {
            return;
        }
        let is_needed = row.is_needed && !is_remote;
        let owner = self.owner();
        let part = self.plan.part(row.name, row.about, path.clone(), is_needed);
        // Host keys are root's, and whatever the admin put there is the admin's.
        let is_of_gitlab = !["ssh-host-keys", "certs", "config", "registry"].contains(&row.name);
        part.owner = is_of_gitlab.then_some(owner);
        if row.name == "uploads"
            && let Some(Ok(other)) = self.dirs.uploads_of_image(self.gitlab, &dir)
            && other != path
        {
            part.paths.push(other);
        }
        self.owns(dir, Some(row.name), path);
    }

    /// Adds notes about data in object stores that is not in `ROWS`.
    fn other_object_stores(&mut self) {
        for name in self.gitlab.environment.keys() {
            let what = name
                .strip_prefix("GITLAB_")
                .and_then(|name| name.strip_suffix("_OBJECT_STORE_ENABLED"));
            let Some(what) = what.filter(|_| self.gitlab.is_true(name)) else { continue };
            if !ROWS.iter().any(|row| row.remote == name) {
                let what = what.to_lowercase().replace('_', "-");
                let note = format!("{what}: it is in an object store, which is not copied");
                self.plan.notes.push(note);
            }
        }
    }

    fn left_out(&mut self) {
        for (name, reason) in LEFT_OUT {
            let variable = if *name == "backups" { "GITLAB_BACKUP_DIR" } else { "" };
            let Said { dir, .. } = self.dirs.path(self.gitlab, variable, name);
            if let Ok(path) = place(self.gitlab, &dir) {
                if path.exists() || !variable.is_empty() {
                    self.plan.leaves(path.clone(), reason);
                }
                self.owns(dir, None, path);
            }
        }
        let logs = PathBuf::from("/var/log/gitlab");
        if let Ok(path) = place(self.gitlab, &logs) {
            self.plan.leaves(path.clone(), "logs");
            self.owns(logs, None, path);
        }
    }

    /// Adds certificates outside the data.
    fn certificates(&mut self) {
        for variable in CERTIFICATES {
            let Some(path) = self.gitlab.variable(variable) else { continue };
            let Ok(path) = place(self.gitlab, &self.dirs.absolute(path)) else { continue };
            let Some(part) = self.plan.parts.iter_mut().find(|part| part.name == "certs") else {
                return;
            };
            if !part.paths.iter().any(|known| path.starts_with(known)) {
                part.paths.push(path);
            }
        }
    }

    /// Adds a mount inside a part to that part, wherever it is on this machine.
    fn mounted(&mut self, target: &Path, source: &Source) {
        let holding = self.owners.iter().filter(|owner| target.starts_with(&owner.dir));
        let owner = holding.max_by_key(|owner| owner.dir.components().count());
        let Some(owner) = owner else { return self.note_unknown(target, source) };
        let Some(name) = owner.part else {
            if let (Source::Path(path), false) = (source, target == owner.dir) {
                self.plan.leaves(path.clone(), "mounted in what is left out");
            }
            return;
        };
        let rest = target.strip_prefix(&owner.dir).unwrap_or(Path::new(""));
        let is_inside = !rest.as_os_str().is_empty();
        let seen = if is_inside { owner.seen.join(rest) } else { owner.seen.clone() };
        if is_inside && self.named(name).is_some() {
            let (name, target) = (name, target.display());
            return self.plan.notes.push(format!(
                "{target} of the container is a volume of its own; parts.{name}.path, which goes \
                 before it, has to have its files"
            ));
        }
        match source {
            Source::Path(path) => {
                if is_inside {
                    let part = self.plan.parts.iter_mut().find(|part| part.name == name);
                    let Some(part) = part else { return };
                    if !part.paths.contains(path) {
                        part.paths.push(path.clone());
                    }
                    if !path.exists() {
                        let at = target.display();
                        self.plan.lacks(name, format!("{}, mounted at {at}", shown(path)));
                    }
                }
                if seen != *path {
                    self.plan.mounts.push(Mount { seen, path: path.clone() });
                }
            }
            Source::Unknown(reason) if is_inside => {
                let reason = format!("{} of the container: {reason}", target.display());
                self.plan.lacks(name, Gap::elsewhere(reason).needed(name));
            }
            Source::Memory if is_inside => {
                let text = format!("{name}: {} of the container is in memory", target.display());
                self.plan.notes.push(text + " and not copied");
            }
            Source::Text(_) | Source::Unknown(_) | Source::Memory => {}
        }
    }

    /// Adds a note about a mount that belongs to no known directory.
    fn note_unknown(&mut self, target: &Path, source: &Source) {
        let Source::Path(path) = source else { return };
        let is_around = self.owners.iter().any(|owner| owner.dir.starts_with(target));
        let is_known = is_around
            || OF_CONTAINER.iter().any(|dir| target.starts_with(dir))
            || self
                .plan
                .parts
                .iter()
                .flat_map(|part| &part.paths)
                .any(|known| known.starts_with(path) || path.starts_with(known));
        if !is_known {
            self.plan.notes.push(format!(
                "{}, mounted at {}, is not known and not copied; make it a part if it should be",
                path.display(),
                target.display()
            ));
        }
    }
}

/// Leaves out directories that a mount hides in the container. They do not belong to GitLab.
pub fn leave_hidden(gitlab: &Service, data: &Path, plan: &mut Plan) {
    let dir = Dirs::of(gitlab).data;
    for mount in &gitlab.mounts {
        let Ok(rest) = mount.target.strip_prefix(&dir) else { continue };
        let hidden = data.join(rest);
        let is_used = matches!(&mount.source, Source::Path(path) if path.starts_with(&hidden))
            || plan.parts.iter().flat_map(|part| &part.paths).any(|path| path.starts_with(&hidden));
        if rest.components().count() == 1 && hidden.exists() && !is_used {
            plan.leaves(hidden, "hidden by what is mounted there in the container");
        }
    }
}

/// Adds container images from the volumes of the registry's own container.
fn registry(compose: &Compose, plan: &mut Plan) {
    for service in compose.services.values().flatten() {
        if service.repository().rsplit('/').next() != Some("registry") {
            continue;
        }
        if service.environment.keys().any(|name| {
            let driver = name.strip_prefix("REGISTRY_STORAGE_").unwrap_or_default();
            ["S3_", "GCS_", "AZURE_", "SWIFT_", "OSS_"].iter().any(|kind| driver.starts_with(kind))
        }) {
            plan.notes.push("registry: it is in an object store, which is not copied".into());
            continue;
        }
        let root = service.variable("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY");
        let root = Path::new(root.unwrap_or("/var/lib/registry"));
        let mut found = Vec::new();
        match service.place(root) {
            Some(Place::Here(path)) => found.push(path),
            Some(Place::Nowhere(reason)) => {
                let text = format!("{} of the registry's container: {reason}", root.display());
                plan.lacks("registry", Gap::elsewhere(text).needed("registry"));
            }
            Some(Place::Memory) | None => {}
        }
        for mount in service.mounts.iter().filter(|mount| mount.target != root) {
            if let (true, Source::Path(path)) = (mount.target.starts_with(root), &mount.source) {
                found.push(path.clone());
            }
        }
        if found.is_empty() {
            continue;
        }
        let at = plan.parts.iter().position(|part| part.name == "registry");
        let at = at.unwrap_or_else(|| {
            plan.part("registry", "container images", PathBuf::new(), false).paths.clear();
            plan.parts.len() - 1
        });
        let part = &mut plan.parts[at];
        for path in found {
            if !part.paths.contains(&path) {
                part.paths.push(path);
            }
        }
    }
}
