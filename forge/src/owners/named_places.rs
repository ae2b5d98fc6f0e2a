//! Places of data that the generated configuration of GitLab's package names.

use crate::file::yaml_value;
use std::path::PathBuf;

/// A place of data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamedPlace {
    /// Name of its part.
    pub(super) name: String,
    /// Absolute path, as the package sees it.
    pub(super) path: PathBuf,
    /// True if it contains repositories.
    pub(super) is_storage: bool,
}

/// Sections of `gitlab.yml` with directories of their own, and the keys that name them.
const SECTIONS: [(&str, &[&str]); 11] = [
    ("shared", &["path"]),
    ("artifacts", &["path", "storage_path"]),
    ("external_diffs", &["storage_path", "path"]),
    ("lfs", &["storage_path", "path"]),
    ("packages", &["storage_path", "path"]),
    ("dependency_proxy", &["storage_path", "path"]),
    ("terraform_state", &["storage_path", "path"]),
    ("ci_secure_files", &["storage_path", "path"]),
    ("pages", &["path", "storage_path"]),
    ("registry", &["path", "storage_path"]),
    ("gitlab_ci", &["builds_path"]),
];

/// Returns the places in the configuration. `read` returns the content of a file below the directory
/// of all data.
pub(super) fn named_places(read: &dyn Fn(&str) -> Option<Vec<u8>>) -> Vec<NamedPlace> {
    let text = |path: &str| read(path).and_then(|text| String::from_utf8(text).ok());
    let mut places = Vec::new();
    let mut add = |name: String, path: Option<&str>, is_storage: bool| {
        if let Some(path) = path.filter(|path| path.starts_with('/')) {
            // Without repeated and final slashes.
            let path: PathBuf = PathBuf::from(path).components().collect();
            let place = NamedPlace { name, path, is_storage };
            // Two files name each storage.
            if !places.contains(&place) {
                places.push(place);
            }
        }
    };
    let gitaly = text("gitaly/config.toml").and_then(|text| text.parse::<toml::Table>().ok());
    let storages = gitaly.as_ref().and_then(|gitaly| gitaly.get("storage")?.as_array());
    for storage in storages.into_iter().flatten() {
        let value = |key: &str| storage.get(key).and_then(toml::Value::as_str);
        let name = match value("name") {
            None | Some("default") => "repositories".to_owned(),
            Some(name) => format!("repositories-{name}"),
        };
        add(name, value("path"), true);
    }
    let registry = text("registry/config.yml").and_then(|text| yaml_value(&text));
    let images = registry.as_ref().map(|all| &all["storage"]["filesystem"]["rootdirectory"]);
    add("registry".into(), images.and_then(serde_json::Value::as_str), false);
    let rails = text("gitlab-rails/etc/gitlab.yml").and_then(|text| yaml_value(&text));
    let rails = rails.unwrap_or_default();
    let settings = rails.get("production").unwrap_or(&rails);
    // Gitaly's own configuration may be missing in a copy.
    let storages = settings["repositories"]["storages"].as_object();
    for (name, storage) in storages.into_iter().flatten() {
        let name = match &name[..] {
            "default" => "repositories".to_owned(),
            name => format!("repositories-{name}"),
        };
        add(name, storage["path"].as_str(), true);
    }
    for (section, keys) in SECTIONS {
        let path = keys.iter().find_map(|key| settings[section][*key].as_str());
        add(section.replace('_', "-"), path, false);
    }
    places
}
