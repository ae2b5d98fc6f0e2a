//! The error type. Every variant names the object at fault and the reason.
//!
//! The command line adds the next step.

use std::io;
use std::path::PathBuf;
use std::time::Duration;
use store::entry::Displayed;

/// Result of every function in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason why an instance could not be backed up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The owners of a kind are unknown.
    #[error("{text}: {reason}")]
    OwnersAs {
        /// The kind, with numbers.
        text: String,
        /// The fault.
        reason: String,
    },
    /// A program could not be started.
    #[error("cannot start {command}: {source}")]
    Start {
        /// The program and its arguments.
        command: String,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{command} failed ({status}): {output}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// Exit code or signal.
        status: String,
        /// End of its standard error, or of its standard output if that is empty.
        output: String,
    },
    /// A program took too long to end, or printed nothing for too long.
    #[error("{command} was killed: {what} within {}", seconds(*limit))]
    TooSlow {
        /// The program and its arguments.
        command: String,
        /// The expected event.
        what: &'static str,
        /// The exceeded limit.
        limit: Duration,
    },
    /// This machine does not know a user.
    #[error("cannot run {command}: user {user} does not exist")]
    NoUser {
        /// Name of the user.
        user: String,
        /// The program and its arguments.
        command: String,
    },
    /// A program is not in any of the expected places.
    #[error("{program} was not found in {}", places.join(", "))]
    NoProgram {
        /// Name of the program.
        program: String,
        /// Searched directories.
        places: Vec<String>,
    },
    /// No client of the database server is as new as the server.
    #[error("pg_dump {client} cannot dump a PostgreSQL {server} server")]
    ClientTooOld {
        /// Newest client found.
        client: u32,
        /// Major version of the server.
        server: u32,
    },
    /// A connection pooler answered instead of the database server.
    #[error("a pooler such as PgBouncer, not the database server itself, answers at {place}")]
    Pooler {
        /// Host and port from the settings.
        place: String,
    },
    /// A service gave an unexpected answer.
    #[error("{service}: {reason}")]
    Service {
        /// Name of the service.
        service: String,
        /// The fault in the answer.
        reason: String,
    },
    /// Services that had to stay down during the copy were running.
    #[error(
        "another program, such as `gitlab-ctl reconfigure`, started {}, which must stay stopped \
         during the copy; run the backup again when that program has ended",
        services.join(", ")
    )]
    Restarted {
        /// Names of the services.
        services: Vec<String>,
    },
    /// A file of the instance, or one of our own, could not be read.
    #[error("cannot read {}: {source}", path.displayed())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// One of our own files could not be written.
    #[error("cannot write {}: {source}", path.displayed())]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A file has invalid content.
    #[error("{}: {reason}", path.displayed())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// The fault and its position.
        reason: String,
    },
    /// The recovery record of an earlier run has invalid content.
    #[error("{} is not a valid record: {reason}", path.displayed())]
    Record {
        /// Path of the record.
        path: PathBuf,
        /// Name of the instance.
        instance: String,
        /// The fault and its position.
        reason: String,
    },
    /// The settings of an instance contradict themselves, its kind or the machine.
    #[error("instance {instance}: {reason}")]
    Settings {
        /// Name of the instance.
        instance: String,
        /// The fault.
        reason: String,
    },
    /// A required part is missing, so that no backup can be made.
    #[error("{part} is missing: {reason}")]
    Missing {
        /// Name of the part.
        part: String,
        /// Expected paths or objects.
        reason: String,
    },
    /// The disk of the store is almost full.
    #[error("{} has only {} MiB free, too few for a backup", store.displayed(), left >> 20)]
    NoFreeSpace {
        /// Directory of the store.
        store: PathBuf,
        /// Free space in bytes.
        left: u64,
    },
    /// The user that examines restored data may not enter the scratch directory.
    #[error("user {user} may not enter {}", dir.displayed())]
    ScratchDenied {
        /// Directory for scratch data.
        dir: PathBuf,
        /// Name of the user.
        user: String,
    },
    /// Another version or edition of the product is installed than that of a snapshot.
    #[error("the snapshot is of {then}, and {here} is installed here")]
    OtherVersion {
        /// Product of the snapshot, with version and edition.
        then: String,
        /// Product of this machine.
        here: String,
        /// Image of the container in the snapshot.
        image: Option<String>,
    },
    /// The database server is older than that of a snapshot.
    #[error(
        "the snapshot is of a PostgreSQL {then} server, and the server here has version {here}"
    )]
    OlderServer {
        /// Major version in the snapshot.
        then: u32,
        /// Major version of the server.
        here: u32,
    },
    /// The database server only follows another one.
    #[error("PostgreSQL: the server is in recovery (a standby), so nothing can be loaded")]
    Standby,
    /// The server cannot make a database as it was.
    #[error("PostgreSQL cannot create database {database}: {reason}")]
    NotCreated {
        /// Name of the database.
        database: String,
        /// Message of the server.
        reason: String,
    },
    /// The role of an instance may not create databases.
    #[error("PostgreSQL: role {role} may not create databases")]
    MayNotCreate {
        /// Name of the role.
        role: String,
    },
    /// The database server lacks extensions that a database of a snapshot needs.
    #[error(
        "database {database} needs extensions that the server here does not have: {extensions}"
    )]
    NoExtension {
        /// Name of the database.
        database: String,
        /// Names of the extensions.
        extensions: String,
    },
    /// A place into which a rebuild restores files cannot be written to.
    #[error("{} cannot be written to: {source}", place.displayed())]
    NotWritable {
        /// A directory or file.
        place: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A database could not be loaded completely.
    #[error("database {database} was not loaded completely: {text}{}", listed(examples))]
    NotLoaded {
        /// Name of the database.
        database: String,
        /// Result of the comparison.
        text: String,
        /// First faults.
        examples: Vec<String>,
    },
    /// A file system has too little space for the files of a snapshot.
    #[error(
        "the files need {} MiB at {}, which has {} MiB free",
        needed.div_ceil(1 << 20), place.displayed(), free >> 20
    )]
    NoSpaceFor {
        /// A directory of the file system.
        place: PathBuf,
        /// Needed space in bytes.
        needed: u64,
        /// Free space in bytes.
        free: u64,
    },
    /// A link of the snapshot cannot take the place of what this machine has there.
    #[error(
        "{} led to {} at the backup; here it is a mount point, or a directory with other data",
        link.displayed(), end.displayed()
    )]
    InPlaceOfLink {
        /// The link.
        link: PathBuf,
        /// The path to which it led.
        end: PathBuf,
    },
    /// The instance has data at other places on this machine than in a snapshot.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    OtherPlaces(Vec<OtherPlace>),
    /// The restored configuration of an instance names another server than the present one.
    #[error(
        "the configuration of the snapshot names the {what} {target}, and that of this machine names \
         {here}"
    )]
    OtherServer {
        /// The kind of server.
        what: &'static str,
        /// Address in the snapshot.
        target: String,
        /// Address in the present configuration.
        here: String,
    },
    /// A rebuild found another server than its earlier stages or calls did.
    #[error("the {what} {now} is not the one with which the rebuild began ({then})")]
    ServerChanged {
        /// The kind of server.
        what: &'static str,
        /// Address of then.
        then: String,
        /// Address of now.
        now: String,
        /// Name of the instance.
        instance: String,
    },
    /// A rebuild would change data of a server, and nobody agreed.
    #[error("{}; a rebuild changes it", .0.join("; "))]
    NeedsConsent(Vec<String>),
    /// The server does not take the login that the restored configuration has.
    #[error("the {what} {place} does not take the login of the snapshot's configuration: {reason}")]
    LoginRefused {
        /// The kind of server.
        what: &'static str,
        /// Address of the server.
        place: String,
        /// Message of the server.
        reason: String,
    },
    /// A running server uses a directory that a rebuild would move.
    #[error("{what} uses {}, which is in {}, and the rebuild would move it", place.displayed(), dir.displayed())]
    InUse {
        /// The server.
        what: String,
        /// Its directory.
        place: PathBuf,
        /// The directory that would be moved.
        dir: PathBuf,
    },
    /// Data that an earlier call of a rebuild moved or restored is not there any more.
    #[error("changed since the rebuild began: {reason}")]
    MovedBack {
        /// The change.
        reason: String,
        /// Name of the instance.
        instance: String,
    },
    /// File systems were mounted or unmounted since a rebuild began.
    #[error(
        "mounted, unmounted or replaced since the rebuild began: {}",
        changed.iter().map(|path| path.displayed()).collect::<Vec<_>>().join(", ")
    )]
    OtherMounts {
        /// Mount points of only one of both moments.
        changed: Vec<PathBuf>,
        /// Name of the instance.
        instance: String,
    },
    /// A rebuild cannot replace a file at which another one is mounted.
    #[error("{} is a mount point, and its content differs from the snapshot", path.displayed())]
    MountedFile {
        /// Path of the file.
        path: PathBuf,
    },
    /// A directory that a rebuild would move contains something that must stay.
    #[error("{what} is in {}, which the rebuild would move", dir.displayed())]
    InTheWay {
        /// The object that must stay.
        what: String,
        /// The directory.
        dir: PathBuf,
    },
    /// A link of this machine would lead a rebuild elsewhere, and its owner is not the administrator.
    #[error(
        "{} leads to {}, and neither root nor the owner of that directory made it",
        link.displayed(), end.displayed()
    )]
    UntrustedLink {
        /// The link.
        link: PathBuf,
        /// Its target.
        end: PathBuf,
    },
    /// A rebuild of the instance is not finished.
    #[error("the rebuild of instance {instance} from snapshot {snapshot} is not finished")]
    Unfinished {
        /// Name of the instance.
        instance: String,
        /// Short id of the snapshot.
        snapshot: String,
    },
    /// A secret could not be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Another run of the instance holds its record.
    #[error("another run of instance {0} is in progress")]
    Busy(String),
}

/// Data at one place in a snapshot, and at another one on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherPlace {
    /// Name of the part or volume.
    pub what: String,
    /// Path in the snapshot.
    pub then: PathBuf,
    /// Path on this machine, if it has one.
    pub here: Option<PathBuf>,
}

impl std::fmt::Display for OtherPlace {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let OtherPlace { what, then, here } = self;
        write!(to, "{what} is at {} in the snapshot, and ", then.displayed())?;
        match here {
            Some(here) => write!(to, "at {} on this machine", here.displayed()),
            None => write!(to, "missing on this machine"),
        }
    }
}

/// Reason why a secret could not be read. The message contains the next step, and no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read.
    #[error("cannot read the secret file {}: {source}; check its path and owner", path.displayed())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The path names a directory, a pipe or a device.
    #[error("the secret file {} is not a file; give the path of a file", .0.displayed())]
    NotAFile(PathBuf),
    /// Group or others have access to the file.
    #[error(
        "the secret file {path} has mode {mode:04o}, so others can access it; run: \
         chmod 600 '{path}'",
        path = path.displayed()
    )]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Permissions of the file.
        mode: u32,
    },
    /// The command that prints the secret failed.
    #[error("cannot get the secret: {0}; run the command by hand")]
    Command(Box<Error>),
    /// The source has more than a secret can have.
    #[error("the secret from {0} is longer than 64 KiB; check its content")]
    TooLong(String),
    /// The source has bytes that are not UTF-8.
    #[error("the secret from {0} is not text; put it there as one line")]
    NotText(String),
    /// The source has no bytes.
    #[error("the secret from {0} is empty; put it there as one line")]
    Empty(String),
    /// The source has line ends or other control characters inside.
    #[error("the secret from {0} is more than one line; put it there as one line")]
    NotOneLine(String),
}

impl Error {
    /// Hides passwords, and the lines of a secret, in what a failed program printed.
    pub(crate) fn without(self, secret: &str) -> Error {
        let Error::Failed { command, status, mut output } = self else { return self };
        // Anything this short is not a secret.
        for line in secret.lines().map(str::trim).filter(|line| line.len() > 4) {
            output = output.replace(line, "…");
        }
        Error::Failed { command, status, output: crate::mask::masked(&output) }
    }

    /// Returns true if the user asked to stop.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Error::Store(store::Error::Interrupted))
    }
}

/// Formats first faults after a colon.
fn listed(examples: &[String]) -> String {
    if examples.is_empty() { String::new() } else { format!(": {}", examples.join("; ")) }
}

/// Formats a limit for messages, in seconds or minutes.
pub fn seconds(limit: Duration) -> String {
    let all = limit.as_secs_f64();
    if all >= 120.0 { format!("{:.0} minutes", all / 60.0) } else { format!("{all:.0} seconds") }
}
