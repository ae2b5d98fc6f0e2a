//! Objects of running processes: who wrote them, and whether the writer still runs.
//!
//! A writer on this machine holds a lock on its object while it runs. So a later process on the same
//! machine sees at once that the writer was killed. For writers on other machines, only the age of
//! their newest object tells.

use crate::backend::Local;
use crate::backend::{self, Backend};
use crate::error::{Error, Result};
use crate::limits;
use crate::random;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;

/// Version of the content of these objects.
pub const VERSION: u64 = 1;
/// Hexadecimal digits of the id of a session or prune.
pub const ID_DIGITS: usize = 32;

/// Description of the process that wrote an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Version of this layout.
    pub version: u64,
    /// Name of the machine, for messages.
    pub host: String,
    /// Random id that the kernel made when it started; empty if unknown.
    pub boot: String,
    /// True if the process holds a lock on the object while it runs.
    pub is_locked: bool,
}

/// State of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs on this machine.
    Running,
    /// It ran on this machine, and ended.
    Ended,
    /// It runs or ran elsewhere.
    Unknown,
}

/// Returns a new random id.
pub fn new_id() -> Result<String> {
    let bytes: [u8; ID_DIGITS / 2] = random::bytes().map_err(Error::store_write("a new name"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns true if this text can be the id of a session or prune.
pub fn is_id(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == ID_DIGITS && text.bytes().all(is_digit)
}

/// Returns the id of this start of the kernel; empty if it is unknown.
fn boot() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

impl Writer {
    /// Describes this process. `local` is the store if this machine's file system holds it.
    pub fn here(host: &str, local: Option<&Local>) -> Writer {
        Writer { version: VERSION, host: host.into(), boot: boot(), is_locked: local.is_some() }
    }

    /// Returns the state of the process that wrote the object `name`.
    pub fn life(&self, name: &str, local: Option<&Local>) -> Life {
        #[cfg(test)]
        if let Some(actor) = crate::protocol::actor() {
            return match actor.runs(name) {
                Some(true) => Life::Running,
                Some(false) => Life::Ended,
                None => Life::Unknown,
            };
        }
        let Some(local) = local.filter(|_| self.is_locked && !self.boot.is_empty()) else {
            return Life::Unknown;
        };
        // Two mounts of a network file system may not share their locks.
        if self.boot != boot() || local.is_remote().unwrap_or(true) {
            return Life::Unknown;
        }
        match local.is_held(name) {
            Ok(Some(true)) => Life::Running,
            Ok(Some(false)) => Life::Ended,
            Ok(None) | Err(_) => Life::Unknown,
        }
    }
}

/// Writes an object. Holds a lock on it until the result is dropped, if `local` is the store.
pub fn write(
    backend: &dyn Backend,
    local: Option<&Local>,
    name: &str,
    content: &impl Serialize,
) -> Result<Option<File>> {
    let mut bytes = serde_json::to_vec(content).expect("writing to memory cannot fail");
    bytes.push(b'\n');
    let written = match local {
        Some(local) => local.write_held(name, &bytes).map(Some),
        None => backend::write_all(backend, name, &bytes).map(|()| None),
    };
    written.map_err(Error::store_write(name))
}

/// Reads the content of an object; `None` if it was deleted meanwhile.
pub fn read<T: for<'de> Deserialize<'de>>(backend: &dyn Backend, name: &str) -> Result<Option<T>> {
    let bytes = match backend::read_all(backend, name, limits::RECORD_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(Error::store_read(name))?,
    };
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let malformed = |error: serde_json::Error| Error::Malformed {
        what: name.to_owned(),
        reason: error.to_string(),
    };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if version != VERSION {
        return Err(Error::newer_version(name, version, VERSION));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(malformed)
}

/// Returns the names in a directory that is missing until somebody needs it.
pub fn names(backend: &dyn Backend, dir: &str) -> Result<Vec<String>> {
    match backend.names(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(Error::store_read(dir)),
    }
}

/// Deletes an object; it may be gone already.
pub fn remove(backend: &dyn Backend, name: &str) -> Result<()> {
    match backend.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| Error::StoreRemove { name: name.to_owned(), source }),
    }
}
