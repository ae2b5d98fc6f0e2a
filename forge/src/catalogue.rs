//! What the databases say that there is: projects with their repositories, rows with their
//! files. It is asked at the moment of the dumps, so that it fits them.

use crate::check::{Check, Verdict};
use crate::encrypted::Encrypted;
use crate::error::Result;
use crate::plan::{Plan, Product};
use crate::service::postgres::Connection;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What was asked of the databases.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// All projects, by id.
    pub projects: Vec<Project>,
    /// Repositories that no project has: of snippets and of groups' wikis.
    pub repositories: Vec<Repository>,
    /// Some or all rows that stand for files.
    pub files: Vec<FileRow>,
    /// Applications that may sign users on.
    pub applications: Vec<Application>,
    /// Some encrypted values, to try the keys.
    pub encrypted: Vec<Encrypted>,
    /// Version of the product, where only its database knows it.
    pub version: Option<String>,
    /// Version of the schema of each database.
    pub schema: BTreeMap<String, String>,
    /// Migrations that go on in the background, by state, of each database.
    pub migrations: BTreeMap<String, BTreeMap<String, u64>>,
    /// Rows whose files are in an object store, by what they are.
    pub remote: BTreeMap<&'static str, u64>,
    /// What could not be asked, and why.
    pub unasked: Vec<(&'static str, String)>,
    /// What else is worth a line.
    pub notes: Vec<String>,
}

impl Catalogue {
    /// What is installed, with what only its database knows.
    pub fn product(&self, plan: &Plan) -> Product {
        let mut product = plan.product.clone();
        product.version = product.version.or_else(|| self.version.clone());
        product
    }

    /// The rows of a query. One that fails, as tables differ, is noted and has no rows: a backup
    /// that could not be compared is better than none.
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

    /// Notes that something could not be asked.
    pub fn could_not_ask(&mut self, what: &'static str, reason: &str) {
        self.notes.push(format!("{what} could not be asked: {reason}"));
        self.unasked.push((what, reason.to_owned()));
    }

    /// Whether all questions about this were answered.
    pub fn knows(&self, what: &str) -> bool {
        self.unasked.iter().all(|(unasked, _)| *unasked != what)
    }

    /// What could not be looked at because it could not be asked.
    pub fn unknown(&self) -> impl Iterator<Item = Check> {
        self.unasked.iter().map(|(what, reason)| {
            Check::new(what, Verdict::Unknown, format!("{what} could not be asked: {reason}"))
        })
    }
}

/// A project and what belongs to it. Paths of repositories are relative to their storage
/// and end in `.git`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its number.
    pub id: u64,
    /// `group/subgroup/name`; empty where the database has none.
    pub path: String,
    /// Name of its storage.
    pub storage: String,
    /// Its repository.
    pub repository: String,
    /// Where this machine had its repository, if that is not below the path of its storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The repository of its wiki, if it was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wiki: Option<String>,
    /// The repository of its designs, if it was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub design: Option<String>,
    /// The pool that it borrows objects from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The project that it is a fork of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<String>,
    /// Whether its repository is in the snapshot.
    #[serde(default)]
    pub is_copied: bool,
    /// Whether it is marked for deletion, or being deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_pending_deletion: bool,
    /// Whether rows name designs, which are in a repository of their own.
    #[serde(skip)]
    pub has_designs: bool,
}

impl Project {
    /// The repositories of its wiki and of its designs.
    pub fn others(&self) -> [String; 2] {
        let stem = self.repository.strip_suffix(".git").unwrap_or(&self.repository);
        ["wiki", "design"].map(|what| format!("{stem}.{what}.git"))
    }
}

/// A repository that no project has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// What it belongs to, such as `snippet`.
    pub of: String,
    /// The number of that.
    pub id: u64,
    /// Name of its storage.
    pub storage: String,
    /// Its path below that, with `.git`.
    pub repository: String,
    /// Whether it is in the snapshot.
    #[serde(default)]
    pub is_copied: bool,
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.of, self.id)
    }
}

/// A row that stands for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// What it is, such as `uploads`.
    pub what: &'static str,
    /// The part that should have its file.
    pub part: &'static str,
    /// Number or key of the row.
    pub id: String,
    /// Where the file may be; any of them.
    pub paths: Vec<PathBuf>,
    /// Its size in bytes, if the row says so.
    pub size: Option<u64>,
}

/// An application that may sign users on, as the database has it.
#[derive(Clone, Deserialize)]
pub struct Application {
    /// Its name.
    pub name: String,
    /// Its public id.
    pub uid: String,
    /// Its secret, plain or hashed.
    pub secret: String,
    /// Whether it is the instance's, not a user's own.
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
