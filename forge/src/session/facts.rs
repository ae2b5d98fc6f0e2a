//! What whoever restores the snapshot will ask for, kept in it as JSON.

use super::Dumped;
use crate::check::Check;
use crate::copy::Mount;
use crate::plan::{Absent, LeftOut, Part, Product};
use crate::service::redis::Saved;
use serde::Serialize;
use std::collections::BTreeMap;

/// All there is to know about a snapshot of an instance.
#[derive(Debug, Serialize)]
pub struct Facts<'a> {
    pub instance: &'a str,
    pub kind: &'a str,
    pub product: &'a Product,
    pub mode: &'a str,
    /// Newest migration of each database.
    pub schema: &'a BTreeMap<String, String>,
    /// Of each database, how many in which state.
    pub background_migrations: &'a BTreeMap<String, BTreeMap<String, u64>>,
    /// When databases were held at their moments.
    pub databases_at: Option<String>,
    /// When the copying of files that the snapshot has began and ended.
    pub files_at: [Option<String>; 2],
    /// Version of the database server.
    pub postgres: Option<&'a str>,
    pub databases: &'a [Dumped],
    pub redis: Option<&'a Saved>,
    /// All that the supervision knows, or a file says.
    pub services: Vec<String>,
    pub parts: &'a [Part],
    /// What a service sees inside a part, and where it is instead.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub mounts: &'a [Mount],
    pub left_out: &'a [LeftOut],
    pub missing: &'a [Absent],
    pub checks: &'a [Check],
    pub seconds_down: Option<f64>,
    pub notes: Vec<&'a String>,
}

impl Facts<'_> {
    /// As they are kept.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

/// What the catalogue names, a line each.
pub fn lines<T: Serialize>(all: &[T]) -> Vec<u8> {
    let mut lines = Vec::new();
    for one in all {
        // Nothing in it can fail to be written.
        lines.extend(serde_json::to_vec(one).unwrap_or_default());
        lines.push(b'\n');
    }
    lines
}
