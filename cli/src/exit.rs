//! The end of a run: error message with the next step, and exit code.

use forge::process::quoted_path;
use std::io::ErrorKind;
use store::Error;

/// Exit codes with their meaning.
pub const CODES: [(u8, &str); 7] = [
    (0, "done"),
    (1, "failed"),
    (2, "wrong usage"),
    (3, "done, but a path could not be read or restored, or an instance has a fault"),
    (10, "the store does not exist, or is not the one that the configuration expects"),
    (11, "the store is locked, or another backup of the instance is running"),
    (130, "interrupted"),
];

/// Reason why a command did not do all of its work.
#[derive(Debug)]
pub enum Failure {
    /// An error of the store.
    Store(Error),
    /// An error of an instance.
    Forge(forge::Error),
    /// An error that only the command line detects.
    Other {
        /// Error message.
        message: String,
        /// Next step.
        hint: Option<String>,
    },
    /// The request makes no sense as it is written.
    Usage {
        /// Error message.
        message: String,
        /// Correct usage.
        hint: String,
    },
    /// The path has no disk or not the store that the configuration expects.
    WrongStore {
        /// Error message.
        message: String,
        /// Next step.
        hint: String,
    },
    /// The path contains no store, and the command would not create one.
    NothingToRead(Error),
    /// Done, except for problems that were already reported.
    Partial,
    /// A check found damage and has reported it.
    Damaged,
    /// The reader of standard output has gone. Nothing else is reported.
    BrokenPipe,
}

impl From<forge::Error> for Failure {
    fn from(error: forge::Error) -> Failure {
        match error {
            forge::Error::Store(error) => Failure::Store(error),
            error => Failure::Forge(error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Store(error)
    }
}

/// Returns a failure without a hint.
pub fn other(message: impl Into<String>) -> Failure {
    Failure::Other { message: message.into(), hint: None }
}

/// Returns a failure with a hint at the next step.
pub fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure::Other { message: message.into(), hint: Some(hint.into()) }
}

/// Returns a failure for a request that makes no sense, with the correct usage.
pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure::Usage { message: message.into(), hint: hint.into() }
}

impl Failure {
    /// Returns the exit code.
    pub fn number(&self) -> u8 {
        match self {
            Failure::BrokenPipe => 0,
            Failure::Usage { .. } => 2,
            Failure::Partial => 3,
            Failure::WrongStore { .. } => 10,
            Failure::Damaged | Failure::Other { .. } => 1,
            Failure::Store(error) | Failure::NothingToRead(error) => number(error),
            Failure::Forge(forge::Error::Busy(_)) => 11,
            Failure::Forge(_) => 1,
        }
    }

    /// Returns true if the user stopped the command.
    pub fn is_interrupted(&self) -> bool {
        match self {
            Failure::Store(error) => matches!(error, Error::Interrupted),
            Failure::Forge(error) => error.is_interrupted(),
            _ => false,
        }
    }

    /// Returns error message and hint; `None` if there is nothing more to print.
    pub fn words(&self) -> Option<(String, Option<String>)> {
        match self {
            Failure::BrokenPipe | Failure::Partial | Failure::Damaged => None,
            Failure::Store(error) => Some((error.to_string(), hint(error))),
            Failure::NothingToRead(error) => {
                let hint = "the path is wrong, or its disk is not mounted; `forgekeep config \
                            check` prints the paths of configured stores";
                Some((error.to_string(), Some(hint.into())))
            }
            Failure::Forge(error) => Some((error.to_string(), hint_for_instance(error))),
            Failure::Other { message, hint } => Some((message.clone(), hint.clone())),
            Failure::Usage { message, hint } | Failure::WrongStore { message, hint } => {
                Some((message.clone(), Some(hint.clone())))
            }
        }
    }
}

fn number(error: &Error) -> u8 {
    match error {
        Error::NoStore(_) => 10,
        Error::Locked { .. } => 11,
        Error::Interrupted => 130,
        Error::Pattern { .. } | Error::OwnerRule { .. } | Error::UnknownAccount { .. } => 2,
        _ => 1,
    }
}

/// Returns true if a file is in the place of a directory, or a directory in the place of a file.
fn is_in_the_way(error: &std::io::Error) -> bool {
    use ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | IsADirectory | NotADirectory)
}

/// Next step at a limit of processes.
const THREADS_HINT: &str = "the limit of processes or memory is reached: raise it (`ulimit -u`, \
                            TasksMax= of the service, --pids-limit of the container), or end \
                            other programs";

/// Next step at a limit of open files.
const FILES_HINT: &str = "the limit of open files is reached: raise it (`ulimit -n`, LimitNOFILE= \
                          of the service), then run the same command again";

/// Returns true if the process or the machine has no file descriptor left.
fn is_out_of_files(error: &std::io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(errno, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

/// Returns the hint for an error of the store.
fn hint(error: &Error) -> Option<String> {
    let hint = match error {
        Error::CopiesUnknown { source, .. } => return hint(source),
        Error::StoreRead { source, .. }
        | Error::StoreWrite { source, .. }
        | Error::Target { source, .. }
        | Error::Source { source, .. }
        | Error::Temporary { source, .. }
        | Error::Unreachable { source, .. }
            if is_out_of_files(source) =>
        {
            FILES_HINT.into()
        }
        Error::NoStore(place) => {
            format!("create it with `forgekeep init --store {place}`, or check the path and mounts")
        }
        Error::Unreachable { source, .. } if is_denied(source) => {
            "run the command as a user who may read the store, such as root".into()
        }
        Error::Unreachable { .. } => "check the disk, its mount and the path".into(),
        Error::Temporary { .. } => {
            "set TMPDIR to a directory with free space, then run the same command again".into()
        }
        Error::NotAStore { .. } => {
            "check the path and mounts; a new store needs an empty directory".into()
        }
        Error::PathTooLong { .. } => {
            "choose a shorter path, or move the store to one; it can still be read where it is"
                .into()
        }
        Error::StoreExists(_) => "use this store; `forgekeep snapshots` lists its content".into(),
        Error::NotEmpty(_) => "give a directory that is empty or does not exist yet".into(),
        Error::Locked { .. } => "wait for the other process to end and try again".into(),
        Error::Memory(_) => {
            "end other programs or raise the limit, then run the same command again".into()
        }
        Error::Thread(_) => THREADS_HINT.into(),
        Error::Newer { .. } => "upgrade forgekeep to the version that wrote it".into(),
        Error::StoreUnsynced { .. } => {
            "`forgekeep snapshots` shows whether the snapshot exists; check the disk, then run \
             the same command again"
                .into()
        }
        error if error.is_out_of_space() => {
            "nothing was lost; make space and run the same command again".into()
        }
        Error::StoreWrite { source, .. } if is_read_only(source) => {
            "the file system is read-only: mount it writable, or only read the store".into()
        }
        Error::StoreRemove { source, .. } if is_read_only(source) => {
            "the file system is read-only: mount it writable, then run the same command again"
                .into()
        }
        Error::StoreRead { source, .. }
        | Error::StoreWrite { source, .. }
        | Error::StoreRemove { source, .. }
            if is_denied(source) =>
        {
            "run the command as the user who owns the store".into()
        }
        Error::StoreWrite { name, source } if is_in_the_way(source) => {
            format!(
                "something else is in the place of {name} of the store; move it away, then run the same command again"
            )
        }
        Error::StoreRead { .. } | Error::StoreWrite { .. } => {
            "check the disk and the permissions of the store, then run the same command again"
                .into()
        }
        Error::StoreRemove { .. } => {
            "check the disk, then run the same command again: it goes on with what is left".into()
        }
        Error::Forgotten(_) => "`forgekeep snapshots` lists the others".into(),
        Error::Fenced => {
            "run the backup again; check why the machine stood still for so long".into()
        }
        Error::NoSnapshots(_) => {
            "nothing was deleted; check the directory snapshots, or delete the whole store".into()
        }
        Error::SharedFileSystem(_) => {
            "run it with --only-this-machine if no other machine writes to the store".into()
        }
        Error::Pinned(id) => {
            let id = id.short();
            format!("nothing more was deleted; `forgekeep unpin {id}` removes the pin")
        }
        Error::LastComplete { .. } => {
            "nothing was deleted; make another backup first, or give --allow-last with its id"
                .into()
        }
        Error::ConfigDamaged(_) => {
            "restore store.json from a copy of the store; the segments are not affected".into()
        }
        Error::SegmentDamaged { .. }
        | Error::ChunkDamaged { .. }
        | Error::ChunkMissing(_)
        | Error::Malformed { .. } => {
            "`forgekeep check --read-data` lists the damage and the affected paths".into()
        }
        Error::SnapshotDamaged { id, .. } => format!(
            "bring the file back from a copy of the store, or delete it with `forgekeep forget {}`",
            id.short()
        ),
        Error::NoSuchPath(_) => "`forgekeep ls` lists the paths of a snapshot".into(),
        Error::WrongKind { kind: "a directory", .. } => {
            "use `forgekeep restore` for directories".into()
        }
        Error::WrongKind { .. } => "`forgekeep ls -l` shows its type".into(),
        error if error.is_index_denied() => {
            "the store is not writable: mount it writable, or run the command as its owner".into()
        }
        error if error.is_index_broken() => {
            "run the same command again; it rebuilds the index from the segments".into()
        }
        Error::Index(_) => "`forgekeep index rebuild` rebuilds the index from the segments".into(),
        Error::Source { .. } => {
            "nothing was backed up; check the path, or run as a user who may read it".into()
        }
        Error::Target { source, .. }
            if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            "make space and run the same command again; it skips files that are up to date".into()
        }
        Error::TargetIsStore { .. } => "nothing was restored; give another directory".into(),
        Error::Target { source, .. } if is_denied(source) => {
            "give a directory that you may write, or run the command as root".into()
        }
        Error::Target { source, .. } if is_read_only(source) => {
            "the file system is read-only; restore to another one".into()
        }
        Error::Target { source, .. }
            if matches!(source.kind(), ErrorKind::NotADirectory | ErrorKind::AlreadyExists) =>
        {
            "the target must be a directory; for one file use `forgekeep dump SNAPSHOT:PATH > FILE`"
                .into()
        }
        Error::Target { .. } => {
            "check the path and its disk, then run the same command again".into()
        }
        Error::RecordTooLong { .. } => "use fewer, more general patterns".into(),
        Error::Pattern { .. } => {
            "put the pattern in quotes; escape [ ] { } and a leading ! with \\".into()
        }
        Error::UnknownAccount { .. } => {
            "create it, give a number, or a second choice behind it: NAME/1000".into()
        }
        Error::OwnerRecord { .. } => "give the path of a new file".into(),
        Error::OwnerRule { .. } => "`forgekeep restore --help` describes the rules".into(),
        Error::SourceIsStore(_) => {
            "nothing was backed up; give other paths, or copy the store with another program".into()
        }
        _ => return None,
    };
    Some(hint)
}

fn is_denied(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::PermissionDenied
}

fn is_read_only(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::ReadOnlyFilesystem
}

/// Returns the hint for an error of an instance.
fn hint_for_instance(error: &forge::Error) -> Option<String> {
    use forge::Error as E;
    let hint = match error {
        E::Start { source, .. } if source.kind() == ErrorKind::WouldBlock => THREADS_HINT.into(),
        E::Start { .. } => "check that the program is installed and executable".into(),
        E::TooSlow { .. } => {
            "nothing was stored; raise its `limit` in the configuration if this duration is normal"
                .into()
        }
        E::NoUser { .. } => "set another `user` in the configuration".into(),
        E::NoProgram { program, .. } => {
            format!("install {program}, or set `bin` in the configuration to its directory")
        }
        E::ClientTooOld { server, .. } => format!(
            "install postgresql-client-{server} or newer, or set postgres.bin to the directory of a newer pg_dump"
        ),
        E::Pooler { .. } => {
            "a dump through the pooler would take the site down; set postgres.host and \
             postgres.port to those of the server itself"
                .into()
        }
        E::Missing { .. } => {
            "restore the part, or set `missing = \"ok\"` for it in the configuration".into()
        }
        E::Settings { .. } | E::Malformed { .. } => {
            "correct the file; `forgekeep config check` shows the plan".into()
        }
        E::NoFreeSpace { .. } => "nothing was stopped or started; make space there".into(),
        E::ScratchDenied { .. } => {
            "give --scratch DIR, a directory that every user may enter, such as /var/tmp".into()
        }
        E::Record { instance, .. } => format!(
            "start the services by hand, then drop the record with `forgekeep recover --forget --instance {instance}`"
        ),
        E::OtherVersion { image: Some(image), .. } => format!("start the container from image {image}"),
        E::OtherVersion { then, image: None, .. } => {
            format!("install exactly {then}; GitLab's package repository has all old versions")
        }
        E::OlderServer { then, .. } => format!("install PostgreSQL {then} or newer"),
        E::MayNotCreate { .. } => {
            "nothing was changed; set postgres.role of the instance to a superuser, and postgres.user \
             to the account that connects as that role"
                .into()
        }
        E::Standby => "nothing was changed; give the address of the primary, or promote this server".into(),
        E::NotCreated { reason, .. } if !reason.contains("locale") => {
            "mend the cause, and run the command again".into()
        }
        E::NotCreated { .. } => {
            "generate the locale (`locale -a` lists those of the machine), start the server again, and \
             run the command again"
                .into()
        }
        E::NoExtension { .. } => {
            "nothing was changed; install the packages of these extensions (for Debian, those of \
             PostgreSQL itself are in postgresql-contrib)"
                .into()
        }
        E::NotWritable { .. } => {
            "nothing was changed; mount its file system for writing, or remove what protects it".into()
        }
        E::NotLoaded { .. } => {
            "the database that was here before is kept under its new name; mend the cause, such as a \
             missing extension, and run the command again, which loads this database once more"
                .into()
        }
        E::NoSpaceFor { .. } => "nothing was changed; make space there".into(),
        E::InPlaceOfLink { link, end } => format!(
            "nothing was changed; unmount it or move it away, and make the link: ln -s {} {}",
            quoted_path(end),
            quoted_path(link)
        ),
        E::OtherPlaces(all) => {
            let mut hint = "nothing was changed; give the instance here the places of the snapshot, in \
                            its settings of Forgekeep, its compose file and the volumes of its container"
                .to_owned();
            let other = all.iter().find_map(|other| Some((other.here.as_ref()?, &other.then)));
            if let Some((here, then)) = other {
                let (here, then) = (quoted_path(here), quoted_path(then));
                hint += &format!("; or link each old place to the new one: ln -sr {here} {then}");
            }
            hint
        }
        E::OtherServer { target, .. } => format!(
            "nothing was changed; give --server {target} if the rebuild may change that one; to use the \
             other one, set its address in the instance's settings of Forgekeep, and correct the \
             application's configuration once it is restored"
        ),
        E::ServerChanged { now, instance, .. } => format!(
            "connect the instance to the first one and run the command again; or give --server {now} to \
             load everything there; or forget this rebuild with `forgekeep rebuild {instance} --forget`"
        ),
        E::NeedsConsent(_) => {
            "give --yes if this is the right server; --dry-run shows all steps".into()
        }
        E::LoginRefused { .. } => {
            "nothing was changed; give the role or user on the server that password, or set another login \
             in the instance's settings of Forgekeep (`postgres`, `redis`)"
                .into()
        }
        E::InUse { .. } => {
            "stop it for the rebuild, or leave its directory out of the part (`exclude`)".into()
        }
        E::MovedBack { instance, .. } => format!(
            "put back what is missing and run the command again; or forget this rebuild with `forgekeep \
             rebuild {instance} --forget`, and begin a new one, which keeps what is there now"
        ),
        E::OtherMounts { instance, .. } => format!(
            "mount as it was then and run the command again; leave mounts out of the commands that stop \
             services; or forget this rebuild with `forgekeep rebuild {instance} --forget`, and begin a \
             new one"
        ),
        E::MountedFile { .. } => {
            "nothing was changed; unmount it (`umount`) until the rebuild is done, or copy the file of \
             the snapshot into it (`forgekeep dump SNAPSHOT:PATH`)"
                .into()
        }
        E::InTheWay { .. } => "nothing was changed; move it, or copy the store elsewhere".into(),
        E::UntrustedLink { .. } => {
            "nothing was changed; make the link as root if it is meant, or remove it".into()
        }
        E::Unfinished { instance, .. } => format!(
            "run `forgekeep rebuild {instance}` to its end; if the instance is in use again, forget it \
             with `forgekeep rebuild {instance} --forget`"
        ),
        E::OwnersAs { .. } => {
            "nothing was changed; `forgekeep repair owners --help` has examples".into()
        }
        E::Busy(_) => "wait for the other run to end and try again".into(),
        E::Write { .. } => "check the disk and the permissions of the state directory".into(),
        E::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            "check the path in the configuration".into()
        }
        E::Read { .. } => "check the file's permissions, or run the command as root".into(),
        E::Failed { output, .. } if is_of_other_user(output) => {
            "only root can run programs as another user; run the command as root".into()
        }
        E::Failed { .. } | E::Service { .. } => {
            "no snapshot was created; fix the reported error, then run the backup again".into()
        }
        _ => return None,
    };
    Some(hint)
}

/// Returns true if a program could not be run as its user.
pub fn is_of_other_user(output: &str) -> bool {
    output.contains("setresuid failed") || output.contains("setgroups failed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::sync::Arc;

    #[test]
    fn a_lack_of_file_descriptors_has_its_own_next_step() {
        let read =
            |errno: Errno| Error::StoreRead { name: "segments/00".into(), source: errno.into() };
        let (path, place) = (std::path::PathBuf::from("/x"), "/x".to_owned());
        let chunk = store::id::ChunkId::of(b"chunk");
        for errno in [Errno::MFILE, Errno::NFILE] {
            let errors = [
                read(errno),
                Error::StoreWrite { name: "a new segment".into(), source: errno.into() },
                Error::Target { path: path.clone(), source: errno.into() },
                Error::Source { path: path.clone(), source: errno.into() },
                Error::Temporary { dir: path.clone(), source: errno.into() },
                Error::Unreachable { place: place.clone(), source: errno.into() },
                Error::CopiesUnknown { chunk, source: Arc::new(read(errno)) },
            ];
            for error in errors {
                assert_eq!(hint(&error).as_deref(), Some(FILES_HINT), "{error}");
            }
        }
        assert_ne!(hint(&read(Errno::IO)).as_deref(), Some(FILES_HINT));
    }

    #[test]
    fn the_next_step_for_an_index_depends_on_its_fault() {
        let of = |code| {
            let error = rusqlite::ffi::Error::new(code);
            hint(&Error::Index(rusqlite::Error::SqliteFailure(error, None))).unwrap_or_default()
        };
        for (code, words) in [
            (rusqlite::ffi::SQLITE_CORRUPT, "run the same command again"),
            (rusqlite::ffi::SQLITE_READONLY, "mount it writable"),
            (rusqlite::ffi::SQLITE_FULL, "make space"),
            (rusqlite::ffi::SQLITE_BUSY, "`forgekeep index rebuild`"),
        ] {
            assert!(of(code).contains(words), "{code}: {}", of(code));
        }
    }
}
