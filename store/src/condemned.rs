//! Condemnations: the segments that prunes are going to delete.
//!
//! | name | content |
//! |---|---|
//! | `condemned/<id>` | the prune that wrote it, and names of segments |
//!
//! A backup that begins after a condemnation was written does not rely on the segments that it names.
//! The condemnation goes after the last of them was deleted, or when its prune gives up. Another prune
//! removes it only if none of the segments exists, or if its prune is known to have ended.

use crate::backend::{Backend, Local};
use crate::error::{Error, Result};
use crate::id::SegmentId;
use crate::presence::{self, Life, Writer};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::File;

/// Directory of the condemnations in the store.
pub const DIR: &str = "condemned";

/// Maximum number of segments in one condemnation. More of them are written as several objects.
pub const SEGMENTS_MAX: usize = 16_384;

/// Content of a condemnation.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u64,
    writer: Writer,
    segments: Vec<String>,
}

/// A condemnation in the store.
#[derive(Debug, Clone)]
pub struct Condemnation {
    /// Its name in the directory.
    pub id: String,
    /// State of its prune.
    pub life: Life,
    /// Segments that its prune is going to delete.
    pub segments: Vec<SegmentId>,
}

/// A condemnation of this process.
pub struct Own {
    /// Its name in the directory.
    pub id: String,
    _held: Option<File>,
}

/// Returns the name of a condemnation, relative to the store.
pub fn file_name(id: &str) -> String {
    format!("{DIR}/{id}")
}

/// Returns all condemnations. Fails if one cannot be read: nobody knows what it names.
pub fn list(backend: &dyn Backend, local: Option<&Local>) -> Result<Vec<Condemnation>> {
    let mut found = Vec::new();
    for id in presence::names(backend, DIR)? {
        let name = file_name(&id);
        if !presence::is_id(&id) {
            let reason = "this program does not know such names".into();
            return Err(Error::Newer { what: name, reason });
        }
        let Some(content) = presence::read::<Content>(backend, &name)? else { continue };
        let segments = content.segments.iter().map(|name| SegmentId::from_hex(name));
        let segments = segments
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Error::Malformed { what: name.clone(), reason: error.to_string() })?;
        let life = content.writer.life(&name, local);
        found.push(Condemnation { id, life, segments });
    }
    Ok(found)
}

/// Returns the segments that these condemnations name.
pub fn named<'a>(of: impl IntoIterator<Item = &'a Condemnation>) -> HashSet<SegmentId> {
    of.into_iter().flat_map(|condemnation| condemnation.segments.iter().copied()).collect()
}

/// Writes condemnations of these segments.
pub fn write(
    backend: &dyn Backend,
    local: Option<&Local>,
    host: &str,
    segments: &[SegmentId],
) -> Result<Vec<Own>> {
    let mut own = Vec::new();
    for part in segments.chunks(SEGMENTS_MAX) {
        let id = presence::new_id()?;
        let content = Content {
            version: presence::VERSION,
            writer: Writer::here(host, local),
            segments: part.iter().map(SegmentId::to_string).collect(),
        };
        let written = presence::write(backend, local, &file_name(&id), &content);
        match written {
            Ok(held) => own.push(Own { id, _held: held }),
            Err(error) => {
                withdraw(backend, own)?;
                return Err(error);
            }
        }
    }
    Ok(own)
}

/// Withdraws condemnations of this process. It must not delete a segment that they name afterwards.
pub fn withdraw(backend: &dyn Backend, own: Vec<Own>) -> Result<()> {
    own.into_iter().try_for_each(|own| presence::remove(backend, &file_name(&own.id)))
}
