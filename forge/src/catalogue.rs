//! Catalogue of the databases: projects with their repositories, and rows with their files. The
//! query runs in the transactions of the dumps, so that the catalogue matches the dumps.

use crate::check::{Check, Verdict};
use crate::encrypted::Encrypted;
use crate::error::Result;
use crate::plan::{Plan, Product};
use crate::service::postgres::Connection;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Answers of the databases.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// All projects, by id.
    pub projects: Vec<Project>,
    /// Repositories that belong to no project: those of snippets and of group wikis.
    pub repositories: Vec<Repository>,
    /// Some or all rows that refer to files.
    pub files: Vec<FileRow>,
    /// OAuth applications that may sign users in.
    pub applications: Vec<Application>,
    /// Encrypted values for the test of the keys.
    pub encrypted: Vec<Encrypted>,
    /// Number of SSH keys that `authorized_keys` should have; `None` if GitLab does not write them
    /// there.
    pub ssh_keys: Option<u64>,
    /// Version of the product, where only its database knows it.
    pub version: Option<String>,
    /// Names of the queried databases.
    pub databases: BTreeSet<String>,
    /// Schema version of each database.
    pub schema: BTreeMap<String, String>,
    /// For each database, the number of background migrations in each state.
    pub migrations: BTreeMap<String, BTreeMap<String, u64>>,
    /// Number of rows whose files are in an object store, by kind of file.
    pub remote: BTreeMap<&'static str, u64>,
    /// Failed questions, each with its reason.
    pub unasked: Vec<(&'static str, String)>,
    /// Further notes for the report.
    pub notes: Vec<String>,
}

impl Catalogue {
    /// The installed product, with the version from the database if the plan has none.
    pub fn product(&self, plan: &Plan) -> Product {
        let mut product = plan.product.clone();
        product.version = product.version.or_else(|| self.version.clone());
        product
    }

    /// Runs a query and returns its rows. A query may fail because tables differ between versions;
    /// the failure is noted and yields no rows. A backup without that comparison is better than no
    /// backup.
    pub fn ask<T: DeserializeOwned>(
        &mut self,
        what: &'static str,
        database: &mut Connection<'_>,
        query: &str,
    ) -> Result<Vec<T>> {
        match database.attempt(query)? {
            Ok(rows) => Ok(rows),
            Err(reason) => {
                self.could_not_ask(what, &format!("{reason} (database {})", database.database));
                Ok(Vec::new())
            }
        }
    }

    /// Records that a question failed.
    pub fn could_not_ask(&mut self, what: &'static str, reason: &str) {
        self.notes.push(format!("cannot query {what}: {reason}"));
        self.unasked.push((what, reason.to_owned()));
    }

    /// Returns true if all questions about `what` were answered.
    pub fn knows(&self, what: &str) -> bool {
        self.unasked.iter().all(|(unasked, _)| *unasked != what)
    }

    /// One check with an unknown verdict for each failed question.
    pub fn unknown(&self) -> impl Iterator<Item = Check> {
        self.unasked.iter().map(|(what, reason)| {
            let text =
                format!("cannot query {what}: {reason}; `config check` tests the connection");
            Check::new(what, Verdict::Unknown, text)
        })
    }
}

/// A project and its repositories. Paths of repositories are relative to their storage and end in
/// `.git`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Project {
    /// Number of the project in the database.
    pub id: u64,
    /// `group/subgroup/name`; empty if the database has none.
    pub path: String,
    /// Name of its storage.
    pub storage: String,
    /// Path of its repository.
    pub repository: String,
    /// Path of the repository on this machine, if it is outside the path of its storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Path of the wiki repository, if it was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wiki: Option<String>,
    /// Path of the design repository, if it was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub design: Option<String>,
    /// Object pool that the repository borrows from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Project that this one was forked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<String>,
    /// True if the repository is in the snapshot.
    #[serde(default)]
    pub is_copied: bool,
    /// True if the project is marked for deletion or being deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_pending_deletion: bool,
    /// True if its first import is not finished, so that its repositories may be incomplete.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_importing: bool,
    /// Storage and path in `project_repositories`, if GitLab does not look there.
    #[serde(skip)]
    pub tracked: Option<(String, String)>,
    /// True if an import failed before it made the repository.
    #[serde(skip)]
    pub has_failed_import: bool,
    /// True if rows name designs, which are in a separate repository.
    #[serde(skip)]
    pub has_designs: bool,
}

impl Project {
    /// Name for people: the path, or the number of a project without a path.
    pub fn name(&self) -> Cow<'_, str> {
        match self.path.as_str() {
            "" => format!("project {} without a route", self.id).into(),
            path => path.into(),
        }
    }

    /// Paths of the wiki and of the design repository.
    pub fn others(&self) -> [String; 2] {
        let stem = self.repository.strip_suffix(".git").unwrap_or(&self.repository);
        ["wiki", "design"].map(|what| format!("{stem}.{what}.git"))
    }
}

/// A repository that belongs to no project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Kind of its owner, such as `snippet`.
    pub of: String,
    /// Number of its owner.
    pub id: u64,
    /// Name of its storage.
    pub storage: String,
    /// Path relative to the storage, with `.git`.
    pub repository: String,
    /// True if the repository is in the snapshot.
    #[serde(default)]
    pub is_copied: bool,
    /// True if its project or group is marked for deletion.
    #[serde(skip)]
    pub is_pending_deletion: bool,
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.of, self.id)
    }
}

/// A row that refers to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// Kind of file, such as `uploads`.
    pub what: &'static str,
    /// Name of the part that should contain the file.
    pub part: &'static str,
    /// Number or key of the row.
    pub id: String,
    /// Possible paths of the file; one of them is enough.
    pub paths: Vec<PathBuf>,
    /// Size of the file in bytes, if the row has it.
    pub size: Option<u64>,
}

/// An OAuth application that may sign users in, from the database.
#[derive(Clone, Deserialize)]
pub struct Application {
    /// Name of the application.
    pub name: String,
    /// Public client id.
    pub uid: String,
    /// Client secret, plain or hashed.
    pub secret: String,
    /// True if the application belongs to the instance, false if to a user.
    pub is_instance_wide: bool,
}

impl std::fmt::Debug for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Application")
            .field("name", &self.name)
            .field("uid", &self.uid)
            .finish_non_exhaustive()
    }
}
