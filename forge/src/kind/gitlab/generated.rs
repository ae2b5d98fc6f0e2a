//! The configuration files that the package generates: where data is, and what may not be
//! missing.

use super::LOOPBACK;
use super::package::{DATA as DATA_DIR, Package};
use crate::error::{Error, Result};
use crate::file::text;
use crate::links;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the generated configuration says.
#[derive(Debug)]
pub struct Generated {
    /// The user that GitLab runs as, if the configuration says so.
    pub user: Option<String>,
    /// Storages of repositories by name; where one is not on this machine, what was looked for.
    pub storages: BTreeMap<String, Result<PathBuf, String>>,
    /// Directories of other data.
    pub data: Vec<Data>,
    /// Databases of the server, and of others.
    pub databases: Vec<DatabaseOf>,
    /// Host, or directory of the socket, of the database server.
    pub database_host: Option<String>,
    /// Its port.
    pub database_port: Option<u16>,
    /// The directory that holds those of artifacts, LFS objects and so on; new versions add to it.
    pub shared: PathBuf,
    /// Without `gitlab.yml` nobody knows where anything is; where it was looked for.
    pub lacks: Option<PathBuf>,
    /// Files that are there and make no sense, each with what is unknown without it.
    pub unusable: Vec<String>,
    /// What was assumed in place of files that are not there.
    pub notes: Vec<String>,
}

/// One database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseOf {
    /// What it is for, such as `main`.
    pub purpose: String,
    /// Its name.
    pub name: String,
    /// The address of its server, where that is another than the main one's.
    pub elsewhere: Option<String>,
    /// Whether the backup is complete without it.
    pub is_required: bool,
}

/// One directory of data.
#[derive(Debug)]
pub struct Data {
    /// Name of the part.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Where it is; several places where it has been moved while it was in use.
    pub paths: Vec<PathBuf>,
    /// Why this machine does not have others.
    pub gaps: Vec<String>,
    /// Whether the configuration says that it is in use.
    pub is_expected: bool,
    /// Whether it, or what was added of late, is in an object store.
    pub is_remote: bool,
    /// Who should own it.
    pub owner: &'static str,
}

/// A directory of data and where to read of it.
struct Row {
    /// Name of the part.
    name: &'static str,
    /// Section of `gitlab.yml`.
    section: &'static str,
    /// Keys in it; the first that is there counts, as for GitLab.
    keys: &'static [&'static str],
    /// Default below the data directory.
    default: &'static str,
    /// What it is.
    about: &'static str,
}

const fn row(
    name: &'static str,
    section: &'static str,
    keys: &'static [&'static str],
    default: &'static str,
    about: &'static str,
) -> Row {
    Row { name, section, keys, default, about }
}

/// Keys of most sections. Which of them the package writes has changed with its versions.
const STORED: &[&str] = &["storage_path", "path"];

#[rustfmt::skip]
const DATA: &[Row] = &[
    row("uploads", "uploads", STORED, "gitlab-rails/uploads", "files that users attached, avatars"),
    row("artifacts", "artifacts", &["path", "storage_path"], "gitlab-rails/shared/artifacts", "artifacts of CI jobs"),
    row("external-diffs", "external_diffs", STORED, "gitlab-rails/shared/external-diffs", "diffs of merge requests"),
    row("lfs", "lfs", STORED, "gitlab-rails/shared/lfs-objects", "Git LFS objects"),
    row("packages", "packages", STORED, "gitlab-rails/shared/packages", "packages of projects"),
    row("dependency-proxy", "dependency_proxy", STORED, "gitlab-rails/shared/dependency_proxy", "images kept for CI jobs"),
    row("terraform-state", "terraform_state", STORED, "gitlab-rails/shared/terraform_state", "states of Terraform"),
    row("ci-secure-files", "ci_secure_files", STORED, "gitlab-rails/shared/ci_secure_files", "secure files of CI"),
    row("pages", "pages", &["path", "storage_path"], "gitlab-rails/shared/pages", "pages of projects"),
    row("registry", "registry", &["path", "storage_path"], "gitlab-rails/shared/registry", "container images"),
    row("agent-plan-content", "agent_plan_content", STORED, "gitlab-rails/shared/agent_plan_content", "plans of agents"),
    row("ci-catalog-bundles", "ci_catalog_bundles", STORED, "gitlab-rails/shared/ci_catalog_bundles", "bundles of the CI catalog"),
    row("encrypted-settings", "encrypted_settings", &["path", "storage_path"], "gitlab-rails/shared/encrypted_settings", "encrypted settings of mail and LDAP"),
    row("builds", "gitlab_ci", &["builds_path"], "gitlab-ci/builds", "logs of CI jobs"),
];

/// Parts whose directory may be absent though the configuration has a section for them, unless
/// that says that they are in use.
const MAYBE_UNUSED: [&str; 4] = ["pages", "registry", "encrypted-settings", "dependency-proxy"];

/// Parts that new versions have, whose directory is made when something is first put into it.
const MADE_LATE: [&str; 2] = ["agent-plan-content", "ci-catalog-bundles"];

/// Sections that every `gitlab.yml` has had for many versions, and parts that they place.
const SECTIONS: [&str; 4] = ["artifacts", "lfs", "uploads", "gitlab_ci"];

/// Directory below which all these are if nothing else is said.
const SHARED: &str = "gitlab-rails/shared";

/// What a path that is not absolute is relative to.
const RAILS: &str = "/opt/gitlab/embedded/service/gitlab-rails";

/// Reads what there is below the data directory of the package. A file that makes no sense does
/// not cost what the others say.
pub fn read(package: &Package<'_>) -> Generated {
    let data = package.at(DATA_DIR);
    let etc = data.join("gitlab-rails/etc");
    let paths = [etc.join("gitlab.yml"), etc.join("database.yml")];
    let [gitlab_yml, database_yml] = &paths;
    let gitaly_toml = data.join("gitaly/config.toml");
    let registry_yml = data.join("registry/config.yml");
    let mut unusable = Vec::new();
    let settings = take(usable_settings(gitlab_yml), DIRECTORIES_UNKNOWN, &mut unusable);
    let databases = take(usable_databases(database_yml), DATABASES_UNKNOWN, &mut unusable);
    let gitaly = take(usable_gitaly(&gitaly_toml), STORAGES_UNKNOWN, &mut unusable);
    let registry = take(usable_registry(&registry_yml), REGISTRY_UNKNOWN, &mut unusable);
    let registry = registry.unwrap_or_default();
    let mut notes = Vec::new();
    if let Some(settings) = &settings {
        let lacking = SECTIONS.into_iter().filter(|section| settings.get(*section).is_none());
        let lacking: Vec<&str> = lacking.collect();
        if !lacking.is_empty() {
            let assumed = "whose directories are taken to be the package's usual ones";
            notes.push(may_be_cut(gitlab_yml, &lacking.join(", "), assumed));
        }
    }
    if databases.as_ref().is_some_and(|all| main_database(all).get("host").is_none()) {
        let assumed = "which is taken to be the package's own server";
        notes.push(may_be_cut(database_yml, "a host", assumed));
    }
    if registry_yml.exists() && !registry.is_null() && registry.get("storage").is_none() {
        let assumed = "which is taken to be where gitlab.yml has it";
        notes.push(may_be_cut(&registry_yml, "its storage", assumed));
    }
    let mut assumed = |name: &Path, what: &str| {
        if matches!(name.try_exists(), Ok(false)) {
            notes.push(format!("{} is not there; {what}", name.display()));
        }
    };
    assumed(gitlab_yml, "directories are taken to be the package's usual ones");
    assumed(
        database_yml,
        "the database is taken to be gitlabhq_production on the package's own server",
    );
    // Versions before 9 have no Gitaly.
    if data.join("gitaly").exists() {
        assumed(&gitaly_toml, "storages are taken to be those of gitlab.yml");
    }
    let lacks = matches!(gitlab_yml.try_exists(), Ok(false)).then(|| gitlab_yml.clone());
    let (settings, databases) = (settings.unwrap_or_default(), databases.unwrap_or_default());
    let places = Places { package, settings: &settings, registry: &registry };
    let main = main_database(&databases);
    Generated {
        user: settings["gitlab"]["user"].as_str().map(str::to_owned),
        storages: places.storages(gitaly.as_ref()),
        data: DATA.iter().map(|row| places.directory(row)).collect(),
        database_host: main["host"].as_str().filter(|host| !host.is_empty()).map(str::to_owned),
        database_port: port(&main["port"]),
        databases: databases_of(&databases)
            .into_iter()
            .chain(registry_database(&registry["database"], main))
            .collect(),
        shared: package.at(places.shared()),
        lacks,
        unusable,
        notes,
    }
}

const DIRECTORIES_UNKNOWN: &str =
    "the directories of data are unknown, and the package's usual ones are taken";
const DATABASES_UNKNOWN: &str =
    "databases and their server are unknown, and the package's usual ones are taken";
const STORAGES_UNKNOWN: &str = "storages are unknown, and those of gitlab.yml are taken";
const REGISTRY_UNKNOWN: &str =
    "the directory and the database of the container registry are unknown";

/// What a file says; if it makes no sense, notes that with what is `unknown` then.
fn take<T>(read: Result<Option<T>>, unknown: &str, unusable: &mut Vec<String>) -> Option<T> {
    read.unwrap_or_else(|error| {
        unusable.push(format!("a usable file ({error}); {unknown}"));
        None
    })
}

/// The settings of the production environment.
fn production(path: &Path) -> Result<Option<Value>> {
    let settings = whole_yaml(path)?;
    Ok(settings.map(|all| all.get("production").unwrap_or(&all).clone()))
}

/// `gitlab.yml`, which has to have settings.
fn usable_settings(path: &Path) -> Result<Option<Value>> {
    let settings = production(path)?;
    if settings.as_ref().is_some_and(|settings| !settings.is_object()) {
        return Err(malformed(path, "it has no settings of `production`".into()));
    }
    // The package uses at the end what it defines at the beginning.
    let text = text(path)?.unwrap_or_default();
    if text.contains("&base") && !text.contains("*base") {
        return Err(malformed(path, "its end is missing".into()));
    }
    Ok(settings)
}

/// `database.yml`, which has to name a database.
fn usable_databases(path: &Path) -> Result<Option<Value>> {
    let databases = production(path)?;
    let names_none = |all: &Value| main_database(all)["database"].as_str().is_none();
    if databases.as_ref().is_some_and(names_none) {
        return Err(malformed(path, "it names no database".into()));
    }
    Ok(databases)
}

/// Gitaly's configuration, which has to name a storage.
fn usable_gitaly(path: &Path) -> Result<Option<toml::Table>> {
    let gitaly = toml_table(path)?;
    let storages = |table: &toml::Table| table.get("storage")?.as_array().map(Vec::len);
    if gitaly.as_ref().is_some_and(|table| storages(table).unwrap_or_default() == 0) {
        return Err(malformed(path, "it names no storage".into()));
    }
    Ok(gitaly)
}

/// The registry's configuration, which has to have settings.
fn usable_registry(path: &Path) -> Result<Option<Value>> {
    let registry = whole_yaml(path)?;
    if registry.as_ref().is_some_and(|registry| !registry.is_object()) {
        return Err(malformed(path, "it has no settings".into()));
    }
    Ok(registry)
}

/// What to say of a file that lacks what the package always writes.
fn may_be_cut(path: &Path, lacking: &str, assumed: &str) -> String {
    let path = path.display();
    format!(
        "{path} says nothing of {lacking}, {assumed}; run `gitlab-ctl reconfigure` if it was cut off"
    )
}

/// All that says where something is.
struct Places<'a> {
    package: &'a Package<'a>,
    /// `gitlab.yml`.
    settings: &'a Value,
    /// The configuration of the registry, which has the last word on its own directory.
    registry: &'a Value,
}

impl Places<'_> {
    /// A path of the configuration as the package sees it.
    fn said(&self, path: &str) -> PathBuf {
        // Whatever is absolute replaces what it is joined to.
        Path::new(RAILS).join(path)
    }

    /// A path of the configuration as a path of this machine, or why it has none.
    fn place(&self, path: &str) -> Result<PathBuf, String> {
        self.package.place(&self.said(path))
    }

    /// The storages: Gitaly knows best; `gitlab.yml` knew before Gitaly did.
    fn storages(&self, gitaly: Option<&toml::Table>) -> BTreeMap<String, Result<PathBuf, String>> {
        let mut storages = BTreeMap::new();
        let of_gitaly = gitaly.and_then(|config| config.get("storage")?.as_array());
        for storage in of_gitaly.into_iter().flatten() {
            let text = |key: &str| storage.get(key).and_then(toml::Value::as_str);
            if let (Some(name), Some(path)) = (text("name"), text("path")) {
                storages.insert(name.to_owned(), self.place(path));
            }
        }
        let of_rails = self.settings["repositories"]["storages"].as_object();
        for (name, storage) in of_rails.into_iter().flatten() {
            // Very old versions have nothing but a path.
            let path = storage.as_str().or(storage["path"].as_str());
            let address = storage["gitaly_address"].as_str().unwrap_or_default();
            let place = match path.filter(|path| !path.is_empty()) {
                Some(path) => self.place(path),
                // The Gitaly of this machine, of which only the place is not said.
                None if name == "default" && address.starts_with("unix:") => self.usual(),
                None => Err(remote(name, address)),
            };
            storages.entry(name.clone()).or_insert(place);
        }
        if storages.is_empty() {
            storages.insert("default".into(), self.usual());
        }
        storages
    }

    /// The package's own storage.
    fn usual(&self) -> Result<PathBuf, String> {
        self.package.place(&Path::new(DATA_DIR).join("git-data/repositories"))
    }

    /// The directory that most others are in, as the package sees it.
    fn shared(&self) -> PathBuf {
        let said = self.settings["shared"]["path"].as_str().map(|path| self.said(path));
        said.unwrap_or_else(|| Path::new(DATA_DIR).join(SHARED))
    }

    fn directory(&self, row: &Row) -> Data {
        let section = &self.settings[row.section];
        let said = row.keys.iter().find_map(|key| section[key].as_str());
        let said = said.filter(|path| !path.is_empty()).map(|path| self.said(path));
        let default = match row.default.strip_prefix(SHARED) {
            Some(inner) => self.shared().join(inner.trim_start_matches('/')),
            None => Path::new(DATA_DIR).join(row.default),
        };
        let mut is_remote = is_remote(self.settings, row.section);
        let mut paths = match row.name {
            "uploads" => vec![self.uploads(said, default)],
            _ => vec![self.package.place(&said.unwrap_or(default))],
        };
        if row.name == "pages"
            && let Some(path) = section["local_store"]["path"].as_str()
        {
            // What was there before versions had a store of their own may still be used.
            let path = self.place(path);
            paths
                .retain(|known| *known != path && known.as_ref().is_ok_and(|known| known.exists()));
            paths.insert(0, path);
        }
        if row.name == "registry"
            && let Some(storage) = self.registry["storage"].as_object()
        {
            match storage.get("filesystem").map(|store| store["rootdirectory"].as_str()) {
                Some(Some(path)) => paths = vec![self.place(path)],
                Some(None) => {}
                None => is_remote |= REGISTRY_REMOTE.iter().any(|name| storage.contains_key(*name)),
            }
        }
        let (paths, gaps): (Vec<_>, Vec<_>) = paths.into_iter().partition(Result::is_ok);
        let enabled = section["enabled"].as_bool();
        let is_used = if MADE_LATE.contains(&row.name) {
            false
        } else if MAYBE_UNUSED.contains(&row.name) {
            enabled == Some(true)
        } else {
            !section.is_null() && enabled != Some(false)
        };
        Data {
            name: row.name,
            about: row.about,
            // What was put there before it went to the object store stays, and is taken.
            is_expected: is_used && !is_remote,
            is_remote,
            paths: paths.into_iter().filter_map(Result::ok).collect(),
            gaps: gaps.into_iter().filter_map(Result::err).collect(),
            owner: if row.name == "registry" { "registry" } else { "git" },
        }
    }

    /// Uploads are in a directory of that name in what is said, which in the package is the public
    /// directory of Rails with a link to the data in it.
    fn uploads(&self, said: Option<PathBuf>, default: PathBuf) -> Result<PathBuf, String> {
        let said = said.unwrap_or_else(|| self.said("public"));
        let inner = said.join("uploads");
        // Of the program itself a container has no volume.
        let here = self.package.place(&inner).ok();
        match here.as_ref().and_then(|path| path.symlink_metadata().ok()).zip(here) {
            Some((metadata, path)) if metadata.is_symlink() => {
                let root = &self.package.site.settings.root;
                Ok(links::follow(root, &path).map_or(path, |real| real.path))
            }
            // Without the link it is a directory that the package made and does not use.
            Some((metadata, path)) if metadata.is_dir() => Ok(path),
            _ if said.ends_with("uploads") => self.package.place(&said),
            _ if said.ends_with("public") => self.package.place(&default),
            _ => self.package.place(&inner),
        }
    }
}

/// Drivers of the registry that keep images in an object store.
const REGISTRY_REMOTE: [&str; 7] = ["s3", "s3_v2", "gcs", "azure", "azure_v2", "swift", "oss"];

/// What to say of a storage of another machine.
fn remote(name: &str, address: &str) -> String {
    let of = if address.is_empty() { String::new() } else { format!(" (its Gitaly is {address})") };
    let is_cluster = address.contains("praefect") || address.ends_with(":2305");
    let cluster = if is_cluster { "; Gitaly Cluster (Praefect) is not covered" } else { "" };
    format!(
        "storage {name}, which has no path on this machine{of}{cluster}; back it up where it is, \
         or name the place where it is mounted"
    )
}

/// Whether a section has an object store, of its own or the one that all share.
fn is_remote(settings: &Value, section: &str) -> bool {
    let is_on = |value: &Value| value["enabled"].as_bool() == Some(true);
    let shared = &settings["object_store"];
    let own = &shared["objects"][section];
    let is_off = own["enabled"].as_bool() == Some(false);
    is_on(&settings[section]["object_store"]) || (is_on(shared) && !own.is_null() && !is_off)
}

/// The settings of the main database. One database stands for itself, several have names.
fn main_database(settings: &Value) -> &Value {
    let several = settings.as_object().and_then(|all| all.get("main").or(all.values().next()));
    if settings["database"].is_string() { settings } else { several.unwrap_or(&Value::Null) }
}

/// What each database is for, its name, and whether its server is the main one's. Several
/// purposes may share one.
fn databases_of(settings: &Value) -> Vec<DatabaseOf> {
    let main = main_database(settings);
    let address = |value: &Value| {
        let host = value["host"].as_str().unwrap_or_default().to_owned();
        (host, port(&value["port"]).unwrap_or(5432))
    };
    let of = |purpose: &str, value: &Value| {
        let (host, port) = address(value);
        let elsewhere = ((host.as_str(), port) != (address(main).0.as_str(), address(main).1))
            .then(|| format!("{host}:{port}"));
        let name = value["database"].as_str()?.to_owned();
        Some(DatabaseOf { purpose: purpose.into(), name, elsewhere, is_required: true })
    };
    let all = settings.as_object().into_iter().flatten();
    let found = of("main", settings).into_iter();
    let found = found.chain(all.filter_map(|(purpose, value)| of(purpose, value)));
    let mut databases: Vec<DatabaseOf> = Vec::new();
    for database in found {
        let is_same = |known: &DatabaseOf| {
            known.name == database.name && known.elsewhere == database.elsewhere
        };
        if !databases.iter().any(is_same) {
            databases.push(database);
        }
    }
    if databases.is_empty() {
        let (purpose, name) = ("main".into(), "gitlabhq_production".into());
        databases.push(DatabaseOf { purpose, name, elsewhere: None, is_required: true });
    }
    databases
}

/// The database of the registry, which may keep there what it knows of its images.
fn registry_database(settings: &Value, main: &Value) -> Option<DatabaseOf> {
    let enabled = &settings["enabled"];
    // It may also be used only where it has been filled.
    let is_required = enabled.as_bool() == Some(true) || enabled.as_str() == Some("true");
    if !is_required && enabled.as_str() != Some("prefer") {
        return None;
    }
    let address = |value: &Value| {
        let host = value["host"].as_str().unwrap_or_default();
        let is_local = host.is_empty() || host.starts_with('/') || LOOPBACK.contains(&host);
        let host = if is_local { "localhost" } else { host };
        format!("{host}:{}", port(&value["port"]).unwrap_or(5432))
    };
    let own = address(settings);
    Some(DatabaseOf {
        purpose: "registry".into(),
        name: settings["dbname"].as_str().unwrap_or("registry").to_owned(),
        elsewhere: (own != address(main)).then_some(own),
        is_required,
    })
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())?.try_into().ok()
}

/// A YAML file, if there is one.
pub fn yaml(path: &Path) -> Result<Option<Value>> {
    let Some(text) = text(path)? else { return Ok(None) };
    // The lines around an error may have passwords in them.
    let options = serde_saphyr::options! { with_snippet: false };
    let wrong = |error: serde_saphyr::Error| malformed(path, error.to_string());
    serde_saphyr::from_str_with_options(&text, options).map(Some).map_err(wrong)
}

/// A YAML file that the package writes: with something in it, to the end of its last line.
fn whole_yaml(path: &Path) -> Result<Option<Value>> {
    expect_whole(path)?;
    yaml(path)
}

/// A text of YAML, unless it is none.
pub fn yaml_value(text: &str) -> Option<Value> {
    serde_saphyr::from_str(text).ok()
}

fn toml_table(path: &Path) -> Result<Option<toml::Table>> {
    expect_whole(path)?;
    let Some(text) = text(path)? else { return Ok(None) };
    // The error shows the line, in which may be a password.
    let wrong = |error: toml::de::Error| malformed(path, error.message().to_owned());
    text.parse().map(Some).map_err(wrong)
}

/// Fails if a file that a program writes is empty or ends in the middle of a line.
fn expect_whole(path: &Path) -> Result<()> {
    match text(path)? {
        Some(text) if text.trim().is_empty() => Err(malformed(path, "it is empty".into())),
        Some(text) if !text.ends_with('\n') => {
            Err(malformed(path, "it ends in the middle of a line".into()))
        }
        _ => Ok(()),
    }
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::Malformed { path: path.to_owned(), reason }
}
