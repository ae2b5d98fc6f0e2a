//! One error type: every variant names the object it is about and the reason.
//!
//! What to do about it is said by the command line.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an instance could not be backed up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A program could not be started.
    #[error("cannot start {command}: {source}")]
    Start {
        /// The program and its arguments.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{command} failed ({status}): {said}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// Exit code or signal.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// A program did not end, or said nothing, for too long.
    #[error("{command} was ended: {what} within {}", seconds(*limit))]
    TooSlow {
        /// The program and its arguments.
        command: String,
        /// What did not happen.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// A user is not known to this machine.
    #[error("there is no user {user}, as whom {command} is to run")]
    NoUser {
        /// Name of the user.
        user: String,
        /// The program and its arguments.
        command: String,
    },
    /// A program is not where it should be.
    #[error("{program} was not found in {}", places.join(", "))]
    NoProgram {
        /// Its name.
        program: String,
        /// Where it was looked for.
        places: Vec<String>,
    },
    /// A client of the database server is older than the server.
    #[error("pg_dump {client} cannot dump a PostgreSQL {server} server")]
    ClientTooOld {
        /// Newest client found.
        client: u32,
        /// Version of the server.
        server: u32,
    },
    /// Somebody stands between us and the database server.
    #[error("not the database server itself, but a pooler such as PgBouncer answers at {place}")]
    Pooler {
        /// Host and port of the settings.
        place: String,
    },
    /// A service answered something else than it should.
    #[error("{service}: {reason}")]
    Service {
        /// Which one.
        service: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// Services that were to be down while files were copied run.
    #[error(
        "{} runs again though it was stopped: another program started it, such as \
         `gitlab-ctl reconfigure`; run the backup when that is done",
        services.join(", ")
    )]
    Restarted {
        /// Their names.
        services: Vec<String>,
    },
    /// A file of the instance, or of our own, could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of our own could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was read and makes no sense.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// Which one.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// The record of what an earlier run left to do makes no sense.
    #[error("{} makes no sense: {reason}", path.display())]
    Record {
        /// Where it is.
        path: PathBuf,
        /// Of which instance.
        instance: String,
        /// Where and why.
        reason: String,
    },
    /// The settings of an instance contradict themselves, its kind or the machine.
    #[error("instance {instance}: {reason}")]
    Settings {
        /// Its name.
        instance: String,
        /// What is wrong.
        reason: String,
    },
    /// A part that may not be missing is not there, and without it there is no backup.
    #[error("{part} is missing: {reason}")]
    Missing {
        /// Its name.
        part: String,
        /// What was looked for.
        reason: String,
    },
    /// The disk of the store is all but full.
    #[error("{} has {left} bytes left, in which no backup finds room", store.display())]
    NoRoom {
        /// Directory of the store.
        store: PathBuf,
        /// What is left, in bytes.
        left: u64,
    },
    /// A secret could not be had. The words say what to do.
    #[error("{0}")]
    Secret(String),
    /// Services were stopped by a run that is still going on.
    #[error("another run for instance {0} is under way")]
    Busy(String),
}

impl Error {
    /// Whether somebody asked to stop.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Error::Store(store::Error::Interrupted))
    }
}

/// A limit in words.
pub fn seconds(limit: Duration) -> String {
    let all = limit.as_secs_f64();
    if all >= 120.0 { format!("{:.0} minutes", all / 60.0) } else { format!("{all:.0} seconds") }
}
