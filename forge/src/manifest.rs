//! Manifest of an instance: data that a later restore needs, stored in the snapshot as JSON.

use crate::check::{Check, Verdict};
use crate::error::{Error, Result};
use crate::plan::{Absent, Part, Product, SkippedPath};
use crate::service::postgres::Rows;
use crate::service::redis::Saved;
use crate::settings::Mode;
use crate::view::{Mount, View, as_texts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Directory in the tree for data that is not a file of the instance.
pub const DIR: &str = ".forgekeep";
/// Name of the manifest in [`DIR`].
pub const FILE: &str = "instance.json";
/// Upper bound of the length of a file in [`DIR`] that is read, in bytes. Catalogues have a line per
/// project.
pub const BYTES_MAX: u64 = 256 << 20;
/// Version of the manifest. It grows when a field changes its meaning or goes, not when one is added.
pub const VERSION: u32 = 1;

/// Manifest of a snapshot of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// Name of the instance in the configuration.
    pub instance: String,
    /// Kind of the instance, such as `gitlab`.
    pub kind: String,
    /// The installed product.
    pub product: Product,
    /// Mode of the copy.
    pub mode: Mode,
    /// Newest migration of each database.
    pub schema: BTreeMap<String, String>,
    /// Number of background migrations in each state, for each database.
    pub background_migrations: BTreeMap<String, BTreeMap<String, u64>>,
    /// Time of the databases' consistency point (RFC 3339, UTC).
    pub databases_at: Option<String>,
    /// Start and end of the last copy of files (RFC 3339, UTC).
    pub files_at: [Option<String>; 2],
    /// Version of the database server.
    pub postgres: Option<String>,
    /// Database dumps in the snapshot.
    pub databases: Vec<Dumped>,
    /// Persistence files of Redis.
    pub redis: Option<Saved>,
    /// All services that the supervisor or a file lists.
    pub services: Vec<String>,
    /// Parts of the instance, which consist of files.
    pub parts: Vec<Part>,
    /// Paths that a service sees inside a part, with their real places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Directories of the parts, and above them, at which file systems were mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty", serialize_with = "as_texts")]
    #[schemars(with = "Vec<String>")]
    pub mount_points: Vec<PathBuf>,
    /// Paths that the backup skipped on purpose.
    pub skipped: Vec<SkippedPath>,
    /// Missing parts and databases.
    pub missing: Vec<Absent>,
    /// Checks of the copy.
    pub checks: Vec<Check>,
    /// Time that services were down, in seconds; null if none were stopped.
    pub seconds_down: Option<f64>,
    /// Remarks about the instance.
    pub notes: Vec<String>,
}

/// Note about a dump of roles by a role that may not read passwords.
pub const NO_ROLE_PASSWORDS: &str = "the snapshot lacks the passwords of database roles: the role of \
                                     the backup may not read them";

/// A database dump in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Dumped {
    /// Name of the database.
    pub name: String,
    /// Path of the dump in the tree.
    pub path: String,
    /// Size of the dump in bytes.
    pub bytes: u64,
    /// Tables with their row counts, if rows are counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<Rows>,
}

impl Manifest {
    /// Formats the manifest for the snapshot.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).map_err(unformatted)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads the manifest of a snapshot.
    pub fn from_json(text: &[u8]) -> Result<Manifest> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed = |reason: String| Error::Malformed { path: FILE.into(), reason };
        let wrong = |error: serde_json::Error| malformed(error.to_string());
        let Version { version } = serde_json::from_slice(text).map_err(wrong)?;
        if version > VERSION {
            return Err(malformed(format!(
                "version {version} was made by a newer version of forgekeep; this one reads up to \
                 version {VERSION}"
            )));
        }
        serde_json::from_slice(text).map_err(wrong)
    }

    /// Reads the manifest in the tree of a snapshot; `None` if it is missing or its content is damaged.
    pub fn in_tree(tree: &View<'_>) -> Result<Option<Manifest>> {
        let text = tree.content(&Path::new("/").join(DIR).join(FILE), BYTES_MAX)?;
        text.map(|text| Manifest::from_json(&text)).transpose()
    }

    /// Returns the paths of a part.
    pub fn paths_of(&self, part: &str) -> impl Iterator<Item = &Path> {
        let parts = self.parts.iter().filter(move |known| known.name == part);
        parts.flat_map(|part| part.paths.iter().map(PathBuf::as_path))
    }

    /// Returns true if no required part is missing and no check failed.
    pub fn is_complete(&self) -> bool {
        self.missing.iter().all(|absent| !absent.is_required) && self.failed_checks() == 0
    }

    /// Returns the number of failed checks.
    pub fn failed_checks(&self) -> u64 {
        self.checks.iter().filter(|check| check.verdict == Verdict::Failed).count() as u64
    }
}

/// Converts an error of formatting. An empty file in the snapshot would hide it.
fn unformatted(error: serde_json::Error) -> Error {
    Error::Malformed { path: "manifest of the instance".into(), reason: error.to_string() }
}

/// Formats a list as one line of JSON per item.
pub fn lines<T: Serialize>(all: &[T]) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for one in all {
        serde_json::to_writer(&mut lines, one).map_err(unformatted)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let absent = Absent { part: "pages".into(), looked_for: "/p".into(), is_required: false };
        Manifest {
            version: VERSION,
            instance: "gitlab".into(),
            kind: "gitlab".into(),
            product: Product { name: "GitLab".into(), ..Product::default() },
            mode: Mode::Online,
            schema: BTreeMap::new(),
            background_migrations: BTreeMap::new(),
            databases_at: None,
            files_at: [Some("2026-01-02T03:04:05Z".into()), None],
            postgres: Some("16.3".into()),
            databases: Vec::new(),
            redis: None,
            services: vec!["puma".into()],
            parts: Vec::new(),
            mounts: Vec::new(),
            mount_points: Vec::new(),
            skipped: Vec::new(),
            missing: vec![absent],
            checks: vec![Check::new("keys", Verdict::Warning, "changed")],
            seconds_down: Some(1.5),
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let manifest = manifest();
        let text = manifest.to_json().expect("can be formatted");
        assert_eq!(Manifest::from_json(&text).expect("can be read"), manifest);
    }

    #[test]
    fn only_required_parts_and_failed_checks_make_it_incomplete() {
        let mut manifest = manifest();
        assert!(manifest.is_complete());
        manifest.missing[0].is_required = true;
        assert!(!manifest.is_complete());
        manifest.missing.clear();
        manifest.checks.push(Check::new("pools", Verdict::Failed, "lost"));
        assert!(!manifest.is_complete() && manifest.failed_checks() == 1);
    }

    #[test]
    fn a_newer_version_is_not_called_malformed_for_other_reasons() {
        let error = Manifest::from_json(br#"{"version": 2, "parts": "elsewhere"}"#);
        let error = error.expect_err("refused").to_string();
        assert!(error.contains("newer version of forgekeep"), "{error}");
        assert!(Manifest::from_json(b"{}").is_err() && Manifest::from_json(b"").is_err());
    }
}
