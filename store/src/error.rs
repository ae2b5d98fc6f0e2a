//! The error type. Every variant names the affected object and the reason.
//!
//! The command line adds the next step.

use crate::id::{ChunkId, SegmentId, SnapshotId};
use crate::text::Displayed;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failure of an operation on a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path does not exist or is an empty directory.
    #[error("no store at {0}")]
    NoStore(String),
    /// The system does not show whether there is a store.
    #[error("cannot access the store at {place}: {source}")]
    Unreachable {
        /// Expected path of the store.
        place: String,
        /// Error of the system.
        source: io::Error,
    },
    /// The path has other content.
    #[error("{place} is not a store: {reason}")]
    NotAStore {
        /// Expected path of the store.
        place: String,
        /// The content that was found.
        reason: &'static str,
    },
    /// SQLite cannot write an index at a path of this length.
    #[error("the path of the store is too long: {place} has {bytes} bytes, and {max} are possible")]
    PathTooLong {
        /// Path of the store without links.
        place: String,
        /// Its length.
        bytes: usize,
        /// The largest length.
        max: usize,
    },
    /// `init` on an existing store.
    #[error("a store already exists at {0}")]
    StoreExists(String),
    /// `init` on a directory with other content.
    #[error("{0} is not empty")]
    NotEmpty(String),
    /// Another process holds the lock.
    #[error("the store at {place} is locked: {holder}")]
    Locked {
        /// Path of the store.
        place: String,
        /// Description of the other process.
        holder: &'static str,
    },
    /// Written by a newer program.
    #[error("a newer version of forgekeep wrote {what}: {reason}")]
    Newer {
        /// The file.
        what: String,
        /// The version, method or feature that this program does not know.
        reason: String,
    },
    /// The system is out of memory.
    #[error("not enough memory: {0}")]
    Memory(io::Error),
    /// The system refuses to start a thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// Reading a file of the store failed.
    #[error("cannot read {name} of the store: {source}")]
    StoreRead {
        /// File name relative to the store.
        name: String,
        /// Error of the system.
        source: io::Error,
    },
    /// A file that only this process needs could not be written.
    #[error("cannot write temporary files in {}: {source}", dir.displayed())]
    Temporary {
        /// Directory of temporary files.
        dir: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// Writing to the store failed; the run ends.
    #[error("cannot write {name} of the store: {source}")]
    StoreWrite {
        /// File name relative to the store.
        name: String,
        /// Error of the system.
        source: io::Error,
    },
    /// Deleting a file of the store failed.
    #[error("cannot delete {name} of the store: {source}")]
    StoreRemove {
        /// File name relative to the store.
        name: String,
        /// Error of the system.
        source: io::Error,
    },
    /// A file of the store was written and renamed, but the new name is not durable.
    #[error(
        "{name} of the store may not survive a power loss: cannot sync its directory: {source}"
    )]
    StoreUnsynced {
        /// File name relative to the store.
        name: String,
        /// Error of the system.
        source: io::Error,
    },
    /// `store.json` is damaged.
    #[error("store.json is damaged: {0}")]
    ConfigDamaged(String),
    /// The content of a segment does not match its id.
    #[error("segment {segment} is damaged: {reason}")]
    SegmentDamaged {
        /// Id of the segment.
        segment: SegmentId,
        /// The fault.
        reason: String,
    },
    /// A chunk's bytes do not match its id.
    #[error("chunk {chunk} in segment {segment} is damaged: {reason}")]
    ChunkDamaged {
        /// Id of the chunk.
        chunk: ChunkId,
        /// Id of its segment.
        segment: SegmentId,
        /// The fault.
        reason: String,
    },
    /// No segment has this chunk.
    #[error("no segment contains chunk {0}")]
    ChunkMissing(ChunkId),
    /// The index has no intact copy of a chunk, and the search for others failed.
    #[error("cannot search all segments for chunk {chunk}: {source}")]
    CopiesUnknown {
        /// Id of the chunk.
        chunk: ChunkId,
        /// The failure of the search.
        source: Arc<Error>,
    },
    /// Bytes that match their id have an invalid format.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// Name of the object.
        what: String,
        /// The fault.
        reason: String,
    },
    /// An entry that no tree can hold.
    #[error("cannot store {path}: {reason}")]
    Unfit {
        /// Path of the file, for display.
        path: String,
        /// The limit that it exceeds.
        reason: String,
    },
    /// A snapshot record does not match its id.
    #[error("snapshot {id} is damaged: {reason}")]
    SnapshotDamaged {
        /// Id of the snapshot.
        id: SnapshotId,
        /// The fault.
        reason: String,
    },
    /// The snapshot was deleted while it was used.
    #[error("snapshot {} was forgotten meanwhile", .0.short())]
    Forgotten(SnapshotId),
    /// A prune presumed that the process of this backup was dead. Its snapshot does not count.
    #[error("a prune took this backup for dead: no sign of it was seen for long")]
    Fenced,
    /// A prune would delete all data.
    #[error("the store at {0} has no snapshots")]
    NoSnapshots(String),
    /// Other machines may use the file system of the store, and their listings may be stale.
    #[error(
        "{0} is on a file system that several machines may use: a prune is not safe beside them"
    )]
    SharedFileSystem(String),
    /// The snapshot must not be deleted.
    #[error("snapshot {} is pinned", .0.short())]
    Pinned(SnapshotId),
    /// The snapshot must not be deleted, because no other complete one has its source.
    #[error("snapshot {} is the last complete one of {source_name}", id.short())]
    LastComplete {
        /// Id of the snapshot.
        id: SnapshotId,
        /// Its instance or its paths, with the machine, for display.
        source_name: String,
    },
    /// A restore would write into the store.
    #[error("a restore into {} would write into the store at {}", target.displayed(), store.displayed())]
    TargetIsStore {
        /// Target of the restore.
        target: PathBuf,
        /// Directory of the store.
        store: PathBuf,
    },
    /// A snapshot lacks a path that was asked for.
    #[error("the snapshot has no /{0}")]
    NoSuchPath(String),
    /// A path is of the wrong kind for the operation.
    #[error("{path} is {kind}, not {wanted}")]
    WrongKind {
        /// The path, for display.
        path: String,
        /// The actual kind.
        kind: &'static str,
        /// The required kind.
        wanted: &'static str,
    },
    /// The index cannot be used.
    #[error("index.sqlite: {0}")]
    Index(#[from] rusqlite::Error),
    /// A source given by the user cannot be used at all.
    #[error("cannot read {}: {source}", path.displayed())]
    Source {
        /// The path.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The target of a restore cannot be used at all.
    #[error("cannot write to {}: {source}", path.displayed())]
    Target {
        /// The path.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// Paths, tags and patterns are too long for a snapshot record.
    #[error("paths, tags and patterns take {bytes} bytes; the maximum is {max}")]
    RecordTooLong {
        /// Length of the record in bytes.
        bytes: usize,
        /// Maximum length in bytes.
        max: usize,
    },
    /// A rule for owners or modes is invalid.
    #[error("{source_name}: {rule}: {reason}")]
    OwnerRule {
        /// Option, or file and line.
        source_name: String,
        /// The rule.
        rule: String,
        /// The fault.
        reason: String,
    },
    /// A rule gives entries to an account that does not exist.
    #[error("{source_name}: {rule}: {account} does not exist on this machine")]
    UnknownAccount {
        /// Option, or file and line.
        source_name: String,
        /// The rule.
        rule: String,
        /// User or group, with the name.
        account: String,
    },
    /// The record of changed owners cannot be written.
    #[error("cannot write {}: {source}", file.displayed())]
    OwnerRecord {
        /// The file.
        file: PathBuf,
        /// System error.
        source: io::Error,
    },
    /// An invalid glob.
    #[error("bad pattern \"{pattern}\": {reason}")]
    Pattern {
        /// The pattern, for display.
        pattern: String,
        /// The fault.
        reason: String,
    },
    /// The only source is the store itself or a path inside it.
    #[error("{} is the store or inside the store", .0.displayed())]
    SourceIsStore(PathBuf),
    /// The user stopped the operation.
    #[error("interrupted")]
    Interrupted,
    /// Another thread of the operation failed. The operation returns the error of that thread.
    #[error("another thread failed")]
    Abandoned,
}

impl Error {
    /// Returns the error for a format version that this program does not read.
    pub(crate) fn newer_version(what: impl Into<String>, found: u64, known: u64) -> Error {
        let reason = format!("its format version is {found}, and this program reads {known}");
        Error::Newer { what: what.into(), reason }
    }

    /// Converts the error of a failed read of a file of the store.
    pub(crate) fn store_read(name: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let name = name.into();
        |source| Error::StoreRead { name, source }
    }

    /// Converts the error of a temporary file.
    pub(crate) fn temporary(source: io::Error) -> Error {
        Error::Temporary { dir: std::env::temp_dir(), source }
    }

    /// Converts the error of a failed write of a file of the store.
    pub(crate) fn store_write(name: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let name = name.into();
        |source| match source.downcast::<Unsynced>() {
            Ok(Unsynced(source)) => Error::StoreUnsynced { name, source },
            Err(source) => Error::StoreWrite { name, source },
        }
    }

    /// Returns true if this user may not write the index.
    pub fn is_index_denied(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, ReadOnly};
        let Error::Index(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(CannotOpen | ReadOnly))
    }

    /// Returns true if the store can be read and not written.
    pub fn is_write_denied(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let Error::StoreWrite { source, .. } = self else { return self.is_index_denied() };
        matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem)
    }

    /// Returns true if the index is damaged and must be rebuilt.
    pub fn is_index_broken(&self) -> bool {
        matches!(self, Error::Index(error) if is_broken(error))
    }

    /// Returns true if the store has no space left.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Error::StoreWrite { source, .. } | Error::StoreUnsynced { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Error::Index(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            _ => false,
        }
    }

    /// Returns true if the machine lacked resources for a read. It may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::StoreRead { source, .. } if is_transient(source))
    }

    /// Returns true if an error of a read concerns one stored object, so that others may be read.
    pub(crate) fn is_of_one_object(&self) -> bool {
        self.is_damage() || matches!(self, Error::CopiesUnknown { .. })
    }

    /// Returns true if stored content is missing or damaged. Other content may still be intact.
    ///
    /// A machine without memory or file descriptors says nothing about the store.
    pub fn is_damage(&self) -> bool {
        !self.is_transient()
            && matches!(
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

/// Returns true if a read failed for a lack of resources, or because the whole store is not there, and
/// not because of the file.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // Of the local backend. The errno of this kind concerns one file.
    let is_store_gone =
        error.kind() == io::ErrorKind::StaleNetworkFileHandle && error.raw_os_error().is_none();
    let errnos =
        [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::INTR, Errno::AGAIN, Errno::NOBUFS];
    is_store_gone || errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Returns true if SQLite reports a damaged file, and not one that is temporarily unusable.
fn is_broken(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed,
        OperationAborted, OperationInterrupted, OutOfMemory, PermissionDenied, ReadOnly,
        SystemIoFailure,
    };
    use rusqlite::ffi;
    match error.sqlite_error_code() {
        Some(SystemIoFailure) => {
            // A truncated file and unreadable sectors.
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

/// The file has its name, but syncing its directory failed with this error.
#[derive(Debug, thiserror::Error)]
#[error("syncing the directory failed: {0}")]
pub struct Unsynced(pub io::Error);

impl Unsynced {
    /// Wraps the error of the sync as an error of publishing.
    pub(crate) fn wrap(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Unsynced(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn only_lasting_read_errors_count_as_damage() {
        for (errno, is_damage) in [
            (Errno::IO, true),
            (Errno::NOENT, true),
            (Errno::NOMEM, false),
            (Errno::MFILE, false),
            (Errno::NFILE, false),
            (Errno::INTR, false),
        ] {
            let error = Error::store_read("segments/00")(errno.into());
            assert_eq!(
                (error.is_damage(), error.is_transient()),
                (is_damage, !is_damage),
                "{errno}"
            );
        }
    }
}
