//! Manifest that a later restore needs, stored in the snapshot as JSON.

use super::Dumped;
use crate::check::Check;
use crate::error::{Error, Result};
use crate::plan::{Absent, LeftOut, Part, Product};
use crate::service::redis::Saved;
use crate::view::Mount;
use serde::Serialize;
use std::collections::BTreeMap;

/// All facts about a snapshot of an instance.
#[derive(Debug, Serialize)]
pub struct Manifest<'a> {
    pub instance: &'a str,
    pub kind: &'a str,
    pub product: &'a Product,
    pub mode: &'a str,
    /// Newest migration of each database.
    pub schema: &'a BTreeMap<String, String>,
    /// Number of background migrations in each state, for each database.
    pub background_migrations: &'a BTreeMap<String, BTreeMap<String, u64>>,
    /// Time of the databases' consistency point.
    pub databases_at: Option<String>,
    /// Start and end of the last copy of files.
    pub files_at: [Option<String>; 2],
    /// Version of the database server.
    pub postgres: Option<&'a str>,
    pub databases: &'a [Dumped],
    pub redis: Option<&'a Saved>,
    /// All services that the supervisor or a file lists.
    pub services: Vec<String>,
    pub parts: &'a [Part],
    /// Paths that a service sees inside a part, with their real places.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub mounts: &'a [Mount],
    pub left_out: &'a [LeftOut],
    pub missing: &'a [Absent],
    pub checks: &'a [Check],
    pub seconds_down: Option<f64>,
    pub notes: Vec<&'a String>,
}

impl Manifest<'_> {
    /// Formats the facts for the snapshot.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).map_err(unformatted)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Converts an error of formatting. An empty file in the snapshot would hide it.
fn unformatted(error: serde_json::Error) -> Error {
    Error::Malformed { path: "facts about the instance".into(), reason: error.to_string() }
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
