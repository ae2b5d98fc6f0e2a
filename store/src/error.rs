//! One error type: every variant names the object it is about and the reason.
//!
//! What to do about it is said by the command line.

use crate::id::{ChunkId, SegmentId, SnapshotId};
use std::io;
use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a store ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing at the place, or an empty directory.
    #[error("no store at {0}")]
    NoStore(String),
    /// Whether there is a store cannot be seen.
    #[error("cannot look into the store at {place}: {source}")]
    Unreachable {
        /// Where it should be.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// The place holds something else.
    #[error("{place} is not a store: {reason}")]
    NotAStore {
        /// Where it should be.
        place: String,
        /// What is there.
        reason: &'static str,
    },
    /// `init` on a place that is a store already.
    #[error("there is a store at {0} already")]
    StoreExists(String),
    /// `init` on a directory with other content.
    #[error("{0} is not empty")]
    NotEmpty(String),
    /// Another process holds the lock.
    #[error("the store at {place} is locked: {holder}")]
    Locked {
        /// Where the store is.
        place: String,
        /// What is known of the other process.
        holder: &'static str,
    },
    /// Written by a newer program.
    #[error("{what} has format version {found}; this program reads version {known}")]
    NewerFormat {
        /// The file.
        what: String,
        /// Its version.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// The system gives no more memory.
    #[error("not enough memory: {0}")]
    Memory(io::Error),
    /// Reading a file of the store failed.
    #[error("cannot read {name} of the store: {source}")]
    StoreRead {
        /// File relative to the store.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file that only this process needs could not be written.
    #[error("cannot write temporary files in {}: {source}", dir.display())]
    Temporary {
        /// Directory of temporary files.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Writing to the store failed; the run ends.
    #[error("cannot write {name} of the store: {source}")]
    StoreWrite {
        /// File relative to the store.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the store was written and has its name, and that is not durable.
    #[error("{name} of the store may be lost again: syncing its directory failed: {source}")]
    StoreUnsynced {
        /// File relative to the store.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// `store.json` is not what was written.
    #[error("store.json is damaged: {0}")]
    ConfigDamaged(String),
    /// A segment is not what its name says.
    #[error("segment {segment} is damaged: {reason}")]
    SegmentDamaged {
        /// Which one.
        segment: SegmentId,
        /// What is wrong.
        reason: String,
    },
    /// A chunk's bytes do not match its name.
    #[error("chunk {chunk} in segment {segment} is damaged: {reason}")]
    ChunkDamaged {
        /// Which one.
        chunk: ChunkId,
        /// Where.
        segment: SegmentId,
        /// What is wrong.
        reason: String,
    },
    /// No segment has this chunk.
    #[error("chunk {0} is in no segment")]
    ChunkMissing(ChunkId),
    /// Bytes that match their name are not what they should be.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// The thing, by name.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// An entry that no tree can hold.
    #[error("cannot keep {path}: {reason}")]
    Unfit {
        /// Its path, readable.
        path: String,
        /// Which limit it breaks.
        reason: String,
    },
    /// A snapshot record is not what its name says.
    #[error("snapshot {id} is damaged: {reason}")]
    SnapshotDamaged {
        /// Which one.
        id: SnapshotId,
        /// What is wrong.
        reason: String,
    },
    /// A restore would write into the store.
    #[error("a restore into {} would write into the store at {}", target.display(), store.display())]
    TargetIsStore {
        /// Where to restore to.
        target: PathBuf,
        /// Directory of the store.
        store: PathBuf,
    },
    /// A path is of another kind than the operation needs.
    #[error("{path} is {kind}, not {wanted}")]
    WrongKind {
        /// The path, readable.
        path: String,
        /// What it is.
        kind: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// The index cannot be used.
    #[error("index.sqlite: {0}")]
    Index(#[from] rusqlite::Error),
    /// A source given by the user cannot be used at all.
    #[error("cannot read {path}: {source}")]
    Source {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The target of a restore cannot be used at all.
    #[error("cannot write to {path}: {source}")]
    Target {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Paths, tags and patterns that would not fit a snapshot record.
    #[error("paths, tags and patterns take {bytes} bytes; a snapshot can keep {max}")]
    RecordTooLong {
        /// How many they are.
        bytes: usize,
        /// How many they may be.
        max: usize,
    },
    /// A glob that cannot be understood.
    #[error("bad pattern \"{pattern}\": {reason}")]
    Pattern {
        /// The pattern, readable.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// The only source is the store itself, or lies in it.
    #[error("{0} is the store itself or lies in it")]
    SourceIsStore(PathBuf),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A failed read of a file of the store.
    pub(crate) fn store_read(name: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let name = name.into();
        |source| Error::StoreRead { name, source }
    }

    /// A failed write of a file of the store.
    pub(crate) fn store_write(name: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let name = name.into();
        |source| match source.downcast::<Unsynced>() {
            Ok(Unsynced(source)) => Error::StoreUnsynced { name, source },
            Err(source) => Error::StoreWrite { name, source },
        }
    }

    /// Whether the index is one that this user may not write.
    pub fn is_index_denied(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, ReadOnly};
        let Error::Index(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(CannotOpen | ReadOnly))
    }

    /// Whether the index is damaged, so that it has to be built anew.
    pub fn is_index_broken(&self) -> bool {
        matches!(self, Error::Index(error) if is_broken(error))
    }

    /// Whether the store has no space left.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Error::StoreWrite { source, .. } | Error::StoreUnsynced { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Error::Index(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            _ => false,
        }
    }

    /// Whether this is about stored content that is gone or not what it was,
    /// so that other content may still be fine.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Error::SegmentDamaged { .. }
                | Error::ChunkDamaged { .. }
                | Error::ChunkMissing(_)
                | Error::Malformed { .. }
                | Error::SnapshotDamaged { .. }
                | Error::StoreRead { .. }
        )
    }
}

/// Whether an error of SQLite says that the file is not what was written, rather than that it
/// cannot be used just now.
fn is_broken(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed,
        OperationAborted, OperationInterrupted, OutOfMemory, PermissionDenied, ReadOnly,
        SystemIoFailure,
    };
    use rusqlite::ffi;
    match error.sqlite_error_code() {
        Some(SystemIoFailure) => {
            // A file that is cut off, and sectors that cannot be read.
            let extended = error.sqlite_error().map(|error| error.extended_code);
            matches!(
                extended,
                Some(
                    ffi::SQLITE_IOERR_SHORT_READ
                        | ffi::SQLITE_IOERR_READ
                        | ffi::SQLITE_IOERR_CORRUPTFS
                )
            )
        }
        Some(
            CannotOpen
            | DatabaseBusy
            | DatabaseLocked
            | DiskFull
            | FileLockingProtocolFailed
            | OperationAborted
            | OperationInterrupted
            | OutOfMemory
            | PermissionDenied
            | ReadOnly,
        ) => false,
        _ => true,
    }
}

/// A file has its name, though the sync of its directory failed with this error.
#[derive(Debug, thiserror::Error)]
#[error("syncing the directory failed: {0}")]
pub struct Unsynced(pub io::Error);

impl Unsynced {
    /// The error of the sync as one of publishing.
    pub(crate) fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Unsynced(error))
    }
}
