//! Where the files of a store are kept.
//!
//! A backend knows names and bytes, nothing of what they mean. Names are relative,
//! `/`-separated and made by us. One file a backend; all of them pass the same
//! suite, `backend/suite.rs`.

use std::fs::File;
use std::io;

pub mod faulty;
pub mod local;
pub mod memory;
pub mod recording;
#[cfg(test)]
mod suite;

pub use local::{Local, Modes};
pub use memory::Memory;

/// A file of the store, as listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Name within the listed directory.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
}

/// A place for files that are written once and never changed.
///
/// What the world must promise: a published file is there, whole, for every
/// reader from then on, also after a power loss; a file that was not published
/// is never seen under a final name.
pub trait Backend: Send + Sync {
    /// The place, for messages.
    fn place(&self) -> String;

    /// All files in directory `dir`, sorted by name, without the files in directories below.
    ///
    /// Complete or an error: a missing directory is an error, never an empty answer. Directories
    /// may be listed as well, with length 0; reading one fails.
    fn list(&self, dir: &str) -> io::Result<Vec<Listed>>;

    /// Fills `out` with the bytes from `offset` on. Fewer bytes are an
    /// `UnexpectedEof`, a file that is not there is `NotFound`.
    fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Length in bytes; `NotFound` if there is no such file.
    fn len(&self, name: &str) -> io::Result<u64>;

    /// Begins a file that has no name yet. Dropping it leaves nothing behind.
    fn create(&self) -> io::Result<Box<dyn Pending>>;

    /// A file without a name for what a run needs for a while, on this machine. It goes
    /// away with the run, however that ends.
    fn scratch(&self) -> io::Result<File>;

    /// Removes a file; `NotFound` if there is none. Durable when it returns.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes durable that the files in directory `dir` have their names: a writer that was
    /// killed may have published one and not come to that.
    fn settle(&self, dir: &str) -> io::Result<()>;
}

/// A file being written, not visible yet.
pub trait Pending: Send {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything written is on stable storage.
    fn sync(&mut self) -> io::Result<()>;

    /// Gives the synced file its name; durable and visible when it returns.
    /// A file that has this name already is replaced. An error that holds
    /// [`Unsynced`](crate::error::Unsynced) says that the file has its name, though a power
    /// loss may take it.
    fn publish(self: Box<Self>, name: &str) -> io::Result<()>;
}

/// Reads a whole file of at most `limit_bytes`; a longer one is `FileTooLarge`.
pub fn read_all(backend: &dyn Backend, name: &str, limit_bytes: usize) -> io::Result<Vec<u8>> {
    let len = backend.len(name)?;
    let len = usize::try_from(len).ok().filter(|len| *len <= limit_bytes);
    let mut bytes = vec![0; len.ok_or(io::ErrorKind::FileTooLarge)?];
    backend.read(name, 0, &mut bytes)?;
    Ok(bytes)
}

/// Writes a small file: create, write, sync, publish.
pub fn write_all(backend: &dyn Backend, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut pending = backend.create()?;
    pending.write(bytes)?;
    pending.sync()?;
    pending.publish(name)
}
