//! The configuration files that the package generates: where data is, and what may not be
//! missing.

use super::below;
use crate::error::{Error, Result};
use crate::file::text;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the generated configuration says.
#[derive(Debug)]
pub struct Generated {
    /// Storages of repositories by name.
    pub storages: BTreeMap<String, PathBuf>,
    /// Directories of other data.
    pub data: Vec<Data>,
    /// Databases: what for, and name.
    pub databases: Vec<(String, String)>,
    /// Host, or directory of the socket, of the database server.
    pub database_host: Option<String>,
    /// Its port.
    pub database_port: Option<u16>,
}

/// One directory of data.
#[derive(Debug)]
pub struct Data {
    /// Name of the part.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// Whether the configuration says that it is in use.
    pub is_expected: bool,
    /// Why it is not on this machine.
    pub elsewhere: Option<&'static str>,
    /// Who should own it.
    pub owner: &'static str,
}

/// A directory of data and where to read of it.
struct Row {
    /// Name of the part.
    name: &'static str,
    /// Section of `gitlab.yml`.
    section: &'static str,
    /// Key in it.
    key: &'static str,
    /// Default below the data directory.
    default: &'static str,
    /// What it is.
    about: &'static str,
}

const fn row(
    name: &'static str,
    section: &'static str,
    key: &'static str,
    default: &'static str,
    about: &'static str,
) -> Row {
    Row { name, section, key, default, about }
}

#[rustfmt::skip]
const DATA: &[Row] = &[
    row("uploads", "uploads", "storage_path", "gitlab-rails/uploads", "files that users attached, avatars"),
    row("artifacts", "artifacts", "storage_path", "gitlab-rails/shared/artifacts", "artifacts of CI jobs"),
    row("external-diffs", "external_diffs", "storage_path", "gitlab-rails/shared/external-diffs", "diffs of merge requests"),
    row("lfs", "lfs", "storage_path", "gitlab-rails/shared/lfs-objects", "Git LFS objects"),
    row("packages", "packages", "storage_path", "gitlab-rails/shared/packages", "packages of projects"),
    row("dependency-proxy", "dependency_proxy", "storage_path", "gitlab-rails/shared/dependency_proxy", "images kept for CI jobs"),
    row("terraform-state", "terraform_state", "storage_path", "gitlab-rails/shared/terraform_state", "states of Terraform"),
    row("ci-secure-files", "ci_secure_files", "storage_path", "gitlab-rails/shared/ci_secure_files", "secure files of CI"),
    row("pages", "pages", "path", "gitlab-rails/shared/pages", "pages of projects"),
    row("registry", "registry", "path", "gitlab-rails/shared/registry", "container images"),
    row("encrypted-settings", "encrypted_settings", "path", "gitlab-rails/shared/encrypted_settings", "encrypted settings of mail and LDAP"),
    row("builds", "gitlab_ci", "builds_path", "gitlab-ci/builds", "logs of CI jobs"),
];

/// Parts whose directory may be absent though the configuration has a section for them.
const MAYBE_UNUSED: [&str; 4] = ["pages", "registry", "encrypted-settings", "dependency-proxy"];

/// Reads what there is below the data directory of the package.
pub fn read(root: &Path, data: &Path) -> Result<Generated> {
    let etc = data.join("gitlab-rails/etc");
    let production = |name: &str| -> Result<Value> {
        let settings = yaml(&etc.join(name))?.unwrap_or_default();
        Ok(settings.get("production").unwrap_or(&settings).clone())
    };
    let settings = production("gitlab.yml")?;
    let databases = production("database.yml")?;
    let gitaly = toml_table(&data.join("gitaly/config.toml"))?;
    let main = main_database(&databases);
    Ok(Generated {
        storages: storages(root, data, &settings, gitaly.as_ref()),
        data: DATA.iter().map(|row| directory(root, data, &settings, row)).collect(),
        database_host: main["host"].as_str().map(str::to_owned),
        database_port: port(&main["port"]),
        databases: names_of_databases(&databases),
    })
}

/// The storages: Gitaly knows best; `gitlab.yml` knew before Gitaly did.
fn storages(
    root: &Path,
    data: &Path,
    settings: &Value,
    gitaly: Option<&toml::Table>,
) -> BTreeMap<String, PathBuf> {
    let mut storages = BTreeMap::new();
    let of_gitaly = gitaly.and_then(|config| config.get("storage")?.as_array());
    for storage in of_gitaly.into_iter().flatten() {
        let text = |key: &str| storage.get(key).and_then(toml::Value::as_str);
        if let (Some(name), Some(path)) = (text("name"), text("path")) {
            storages.insert(name.to_owned(), below(root, Path::new(path)));
        }
    }
    for (name, storage) in settings["repositories"]["storages"].as_object().into_iter().flatten() {
        if let Some(path) = storage["path"].as_str() {
            storages.entry(name.clone()).or_insert_with(|| below(root, Path::new(path)));
        }
    }
    if storages.is_empty() {
        storages.insert("default".into(), data.join("git-data/repositories"));
    }
    storages
}

fn directory(root: &Path, data: &Path, settings: &Value, row: &Row) -> Data {
    let section = &settings[row.section];
    let default = data.join(row.default);
    let path = match section[row.key].as_str().map(|path| below(root, Path::new(path))) {
        // The public directory of Rails, in which `uploads` is a link to the data.
        Some(path) if row.name == "uploads" && !path.ends_with("uploads") => {
            let inner = path.join("uploads");
            let is_own = inner.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            if is_own { inner } else { default }
        }
        Some(path) => path,
        None => default,
    };
    let is_off = section["enabled"].as_bool() == Some(false);
    let is_remote = section["object_store"]["enabled"].as_bool() == Some(true);
    let may_be_unused = section.is_null() || MAYBE_UNUSED.contains(&row.name);
    Data {
        name: row.name,
        about: row.about,
        is_expected: !may_be_unused && !is_off && !is_remote,
        // What was put there before it went to the object store stays, and is taken.
        elsewhere: (is_remote && !path.exists())
            .then_some("it is in an object store, which is not copied"),
        path,
        owner: if row.name == "registry" { "registry" } else { "git" },
    }
}

/// The settings of the main database. One database stands for itself, several have names.
fn main_database(settings: &Value) -> &Value {
    let several = settings.as_object().and_then(|all| all.get("main").or(all.values().next()));
    if settings["database"].is_string() { settings } else { several.unwrap_or(&Value::Null) }
}

/// What each database is for, and its name. Several purposes may share one.
fn names_of_databases(settings: &Value) -> Vec<(String, String)> {
    let mut names: Vec<(String, String)> = Vec::new();
    if let Some(name) = settings["database"].as_str() {
        names.push(("main".into(), name.into()));
    }
    for (purpose, value) in settings.as_object().into_iter().flatten() {
        if let Some(name) = value["database"].as_str()
            && !names.iter().any(|(_, known)| known == name)
        {
            names.push((purpose.clone(), name.into()));
        }
    }
    if names.is_empty() {
        names.push(("main".into(), "gitlabhq_production".into()));
    }
    names
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

fn toml_table(path: &Path) -> Result<Option<toml::Table>> {
    let Some(text) = text(path)? else { return Ok(None) };
    text.parse().map(Some).map_err(|error: toml::de::Error| malformed(path, error.to_string()))
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::Malformed { path: path.to_owned(), reason }
}
