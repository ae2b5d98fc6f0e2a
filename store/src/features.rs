//! Features of a store that a program must know to use it.
//!
//! A newer program that writes something which older ones would misunderstand adds a feature first.
//! `store.json` lists the features that a store was made with. Later ones are files, because
//! `store.json` never changes.

use crate::backend::{self, Backend};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;

/// Directory of the features that were added to a store. The name of a file is that of the feature.
pub const DIR: &str = "features";

/// Content of the file of a feature that only writers must know.
const WRITERS: &[u8] = b"writers\n";

/// Maximum number of bytes read from the file of a feature.
const FILE_BYTES_MAX: usize = 4096;

/// Names of features, by the programs that must know them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Features that every program must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<String>,
    /// Features that a program must know to add, change or delete anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<String>,
}

impl Features {
    /// Returns true if any program can use the store.
    pub fn is_empty(&self) -> bool {
        self.readers.is_empty() && self.writers.is_empty()
    }

    /// Adds the features that were added to the store later. An unreadable file counts as a
    /// feature that every program must know.
    pub(crate) fn with_later_ones(mut self, backend: &dyn Backend) -> Result<Features> {
        let files = match backend.list(DIR) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(self),
            listed => listed.map_err(Error::store_read(DIR))?,
        };
        for file in files {
            let content =
                backend::read_all(backend, &format!("{DIR}/{}", file.name), FILE_BYTES_MAX);
            match content.is_ok_and(|content| content == WRITERS) {
                true => self.writers.push(file.name),
                false => self.readers.push(file.name),
            }
        }
        Ok(self)
    }

    /// Fails if the store has a feature that this program must know and does not. So far, this
    /// program knows none.
    pub(crate) fn check(&self, is_reader: bool) -> Result<()> {
        let unknown = self.readers.first().or_else(|| self.writers.first().filter(|_| !is_reader));
        let Some(name) = unknown else { return Ok(()) };
        let use_of = if is_reader { "read" } else { "write to" };
        let reason =
            format!("to {use_of} it, a program must know the feature `{}`", name.escape_debug());
        Err(Error::Newer { what: "the store".into(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Memory, write_all};

    #[test]
    fn unknown_features_lock_out_readers_or_writers() {
        let memory = Memory::default();
        let features = || Features::default().with_later_ones(&memory).expect("lists");
        assert!(features().is_empty() && features().check(false).is_ok());
        write_all(&memory, "features/packed", WRITERS).expect("writes");
        assert!(features().check(true).is_ok());
        let error = features().check(false).expect_err("a writer").to_string();
        assert!(error.contains("newer version") && error.contains("`packed`"), "{error}");
        write_all(&memory, "features/sealed", b"anything else").expect("writes");
        let error = features().check(true).expect_err("a reader").to_string();
        assert!(error.contains("`sealed`"), "{error}");
    }
}
