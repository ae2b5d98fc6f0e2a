//! The lines of `--json`, one type for each. `docs/json.md` is generated from them.

use crate::losses::EmptiedSource;
use crate::report::{mode, utc_time};
use crate::run_id::RunId;
use crate::run_record::RunRecord;
use forge::catalogue::Project;
use forge::check::{Check, Verdict};
use forge::manifest::Manifest;
use forge::plan::{Absent, Database, Part, Product, SkippedPath};
use forge::rebuild::Stage;
use forge::service::step::Step;
use forge::settings::Mode;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use store::check_record::{CheckKind, CheckRecord, CheckResult, Judged, Standing};
use store::entry::{Entry, EntryKind, Time, display_path};
use store::id::SnapshotId;
use store::index::Totals;
use store::retention::{Number, Rules};
use store::snapshot::{Snapshot, Statistics};

/// A line of `--json`.
pub trait Line: Serialize + JsonSchema {
    /// Value of `message_type`.
    const TYPE: &'static str;
}

/// Reference to a line: the commands that print it, its `message_type`, its schema.
pub type Described = (&'static str, &'static str, fn(&mut SchemaGenerator) -> Schema);

macro_rules! lines {
    ($($commands:literal $name:literal $line:ty,)*) => {
        $(impl Line for $line {
            const TYPE: &'static str = $name;
        })*

        /// All lines, in the order of the documentation.
        pub const LINES: &[Described] =
            &[$(($commands, $name, SchemaGenerator::subschema_for::<$line>)),*];
    };
}

lines! {
    "all commands" "status" Status,
    "all commands" "warning" Warning<'_>,
    "backup, restore" "error" PathError<'_>,
    "all commands" "exit_error" ExitError<'_>,
    "backup" "summary" RunRecord,
    "backup, inspect" "missing_part" Absent,
    "backup, inspect, drill, rebuild" "check" Check,
    "check" "damage" DamagedObject<'_>,
    "check" "loss" LostPath<'_>,
    "check" "summary" CheckSummary<'_>,
    "config check" "instance" ConfigReport<'_>,
    "config check" "instance" ConfigFault<'_>,
    "detect" "detected" Detected<'_>,
    "diff" "change" Changed<'_>,
    "diff" "statistics" DiffSummary,
    "drill" "repository" DrilledRepository<'_>,
    "drill" "summary" DrillSummary<'_>,
    "find" "match" Match,
    "find" "summary" FindSummary,
    "forget" "decision" ForgetDecision<'_>,
    "forget" "summary" ForgetSummary<'_>,
    "index rebuild" "summary" IndexSummary,
    "init" "initialized" Initialized<'_>,
    "inspect" "summary" InspectSummary<'_>,
    "inspect" "instance" InspectedSnapshot,
    "ls" "node" Node,
    "ls" "summary" LsSummary,
    "notify test" "notified" Notified<'_>,
    "pin, unpin, tag" "annotated" Annotated<'_>,
    "projects" "project" ProjectLine<'_>,
    "projects" "summary" ProjectSummary,
    "prune" "summary" PruneSummary<'_>,
    "rebuild" "stage" RebuildStage<'_>,
    "rebuild" "moved" MovedAside<'_>,
    "rebuild" "summary" RebuildSummary<'_>,
    "recover" "recovered" Recovered<'_>,
    "recover --forget" "forgotten" Forgotten<'_>,
    "repair owners" "repaired_owners" RepairedOwners<'_>,
    "repair single-sign-on" "repaired" Repaired<'_>,
    "restore" "summary" RestoreSummary,
    "schedule" "file" GeneratedFile<'_>,
    "schedule --write" "written" WrittenFile,
    "snapshots" "snapshot" SnapshotLine<'_>,
    "stats" "stats" Stats,
}

/// Progress of an operation, a line every half minute.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Status {
    /// Time since the start, in seconds.
    pub seconds_elapsed: u64,
    /// Number of entries done.
    pub files_done: u64,
    /// Number of bytes done.
    pub bytes_done: u64,
    /// Number of all entries; 0 if unknown.
    pub total_files: u64,
    /// Number of all bytes; 0 if unknown.
    pub total_bytes: u64,
    /// Part done, from 0 to 1; 0 if unknown.
    pub percent_done: f64,
}

/// A warning or a note. The exit code does not depend on it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Warning<'a> {
    /// Text for people.
    pub message: &'a str,
}

/// A path that was not backed up or restored completely.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PathError<'a> {
    /// The fault.
    pub error: Reason<'a>,
    /// `archival` during a backup, `restore` during a restore.
    pub during: &'a str,
    /// Path. Bytes that are not UTF-8 are escaped.
    pub item: String,
    /// Hexadecimal digits of the path's bytes, only if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_hex: Option<String>,
}

/// Reason of a fault.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Reason<'a> {
    /// Text for people.
    pub message: &'a str,
}

/// Error that ended the program.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ExitError<'a> {
    /// Exit code of the program.
    pub code: u8,
    /// Text for people: object and fault.
    pub message: &'a str,
    /// Next step.
    pub hint: Option<&'a str>,
}

/// A damaged object of the store.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DamagedObject<'a> {
    /// The object.
    pub object: &'a str,
    /// Text for people.
    pub reason: &'a str,
}

/// A path, or a group of neighbouring paths, that damage took from a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LostPath<'a> {
    /// Id of the snapshot.
    pub snapshot: String,
    /// The path, or the span of the paths.
    pub path: &'a str,
    /// Number of paths.
    pub entries: u64,
    /// Text for people.
    pub reason: &'a str,
}

/// Result of a check.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CheckSummary<'a> {
    /// Path of the store.
    pub store: &'a str,
    /// Number of snapshots checked.
    pub snapshots: u64,
    /// Number of snapshots that are dated in the future.
    pub snapshots_from_future: u64,
    /// Number of snapshots of a newer version of the program, which were not checked.
    pub snapshots_newer: u64,
    /// Number of segments checked.
    pub segments: u64,
    /// Number of segments read completely.
    pub segments_read: u64,
    /// Bytes of segments read completely.
    pub bytes_read: u64,
    /// Number of chunks in tables.
    pub chunks: u64,
    /// Number of damages found.
    pub num_errors: u64,
    /// Number of lost paths.
    pub paths_lost: u64,
    /// True if neither damage nor loss was found.
    pub clean: bool,
    /// True if the store keeps a record of this check.
    pub recorded: bool,
}

/// Plan of an instance with the faults that were found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConfigReport<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// Kind of the instance.
    pub kind: &'a str,
    /// Name of the kind for people.
    pub title: &'a str,
    /// The installed product.
    pub product: &'a Product,
    /// Path of the store; null if none is configured.
    pub store: Option<String>,
    /// Mode of the copy.
    pub mode: Mode,
    /// Directory that the instance sees as `/`.
    pub root: String,
    /// Labels of its snapshots.
    pub tags: &'a [String],
    /// Rules for the snapshots that `forget` keeps; null without any.
    pub keep: Option<KeepRules<'a>>,
    /// True if files that git can rebuild are copied.
    pub git_caches: bool,
    /// Number of rows of each table whose files are looked for; null for all.
    pub sample: Option<u32>,
    /// Patterns that are excluded.
    pub exclude: &'a [String],
    /// Parts that consist of files.
    pub parts: Vec<PlannedPart<'a>>,
    /// Required parts and databases that are missing.
    pub missing: &'a [Absent],
    /// Databases of the plan.
    pub databases: &'a [Database],
    /// Names of the databases that a backup dumps; null if the server was not asked.
    pub dumped: Option<&'a [String]>,
    /// Result of trying the keys on the databases; null if they were not asked.
    pub keys: Option<&'a Check>,
    /// The database server.
    pub postgres: Option<PlannedServer<'a>>,
    /// The Redis server.
    pub redis: Option<PlannedRedis<'a>>,
    /// Services that are stopped in maintenance mode.
    pub services: Option<PlannedServices<'a>>,
    /// All services that the supervisor or a file lists.
    pub supervised: &'a [String],
    /// Commands that run around a backup.
    pub steps: PlannedSteps<'a>,
    /// Paths that are skipped on purpose.
    pub skipped: &'a [SkippedPath],
    /// Remarks about the instance.
    pub notes: &'a [String],
    /// Faults of the configuration or of the machine.
    pub problems: &'a [String],
    /// True if all required parts exist and no fault was found.
    pub is_right: bool,
}

/// Rules for the snapshots that `forget` keeps. A rule that is null keeps none.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeepRules<'a> {
    /// Number of newest snapshots.
    pub last: Option<KeepNumber>,
    /// Number of hours.
    pub hourly: Option<KeepNumber>,
    /// Number of days.
    pub daily: Option<KeepNumber>,
    /// Number of weeks.
    pub weekly: Option<KeepNumber>,
    /// Number of months.
    pub monthly: Option<KeepNumber>,
    /// Number of years.
    pub yearly: Option<KeepNumber>,
    /// Period before the newest complete snapshot, such as `30d`.
    pub within: Option<String>,
    /// Tags whose snapshots stay.
    pub tags: &'a [String],
}

/// Number of snapshots that a rule keeps: a number, or `unlimited`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum KeepNumber {
    /// At most this many.
    Of(u32),
    /// `unlimited`
    Unlimited(&'static str),
}

/// An instance whose plan cannot be made.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConfigFault<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// Text for people.
    pub error: Option<String>,
}

/// A part of an instance, and whether it exists.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlannedPart<'a> {
    #[serde(flatten)]
    pub part: &'a Part,
    /// True if it exists on this machine.
    pub is_there: bool,
}

/// A database server to dump from.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlannedServer<'a> {
    /// Host name, or directory of the socket; null for the client's default.
    pub host: Option<&'a str>,
    /// Port of the server.
    pub port: u16,
    /// Role of the connection; null for the client's default.
    pub role: Option<&'a str>,
    /// User who runs the clients.
    pub user: Option<&'a str>,
    /// File with passwords.
    pub passfile: Option<String>,
    /// Directories of the clients, in the order of the search.
    pub bin: Vec<String>,
    /// Command that enters the container of the clients.
    pub into: &'a [String],
}

/// A Redis server to save.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlannedRedis<'a> {
    /// Path of its socket.
    pub socket: Option<String>,
    /// Host name.
    pub host: Option<&'a str>,
    /// Port of the server.
    pub port: Option<u16>,
    /// Command that enters the container of the client.
    pub into: &'a [String],
    /// Time limit of a save, in seconds.
    pub seconds: u64,
}

/// The way to stop and start services.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum PlannedServices<'a> {
    /// The product's supervisor stops and starts the services.
    Supervised {
        /// The program with the arguments before its verb.
        program: &'a [String],
        /// Names of the services that write.
        writers: &'a [String],
    },
    /// Commands of the configuration stop and start the services.
    Commands {
        /// Commands that stop the services.
        stop: Vec<PlannedStep<'a>>,
        /// Commands that start the services.
        start: Vec<PlannedStep<'a>>,
    },
}

/// Commands around a backup.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlannedSteps<'a> {
    /// Commands that run before it.
    pub before: Vec<PlannedStep<'a>>,
    /// Commands that run after any end of it.
    pub after: Vec<PlannedStep<'a>>,
}

/// A command to run.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlannedStep<'a> {
    /// Program and arguments.
    pub command: &'a [String],
    /// User who runs it; null for the user of the backup.
    pub user: Option<&'a str>,
    /// Time limit in seconds.
    pub seconds: u64,
}

/// A product found on this machine.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Detected<'a> {
    /// Kind for the configuration.
    pub kind: &'a str,
    /// Name of the kind for people.
    pub title: &'a str,
    /// Path or container by which it was found.
    pub seen: &'a str,
}

/// A path that differs between two snapshots.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Changed<'a> {
    /// `+` added, `-` removed, `M` changed content or type, `U` changed metadata.
    pub modifier: &'a str,
    #[serde(flatten)]
    pub path: PathFields,
}

/// Result of a comparison of two snapshots.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DiffSummary {
    /// Path of the store.
    pub store: String,
    /// Id of the first snapshot.
    pub first_snapshot: String,
    /// Id of the second snapshot.
    pub second_snapshot: String,
    /// Number of added paths.
    pub added: u64,
    /// Number of removed paths.
    pub removed: u64,
    /// Number of paths with changed content or type.
    pub changed: u64,
    /// Number of paths of which only metadata changed.
    pub metadata_changed: u64,
    /// Bytes of added and changed files in the second snapshot.
    pub bytes_added: u64,
    /// Bytes of removed and changed files in the first snapshot.
    pub bytes_removed: u64,
    /// Figures of the backup that made the second snapshot.
    pub second: ReuseFigures,
}

/// A version of a path that matches a pattern, and the consecutive snapshots that contain it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Match {
    #[serde(flatten)]
    pub node: Node,
    /// Id of the first snapshot.
    pub snapshot: String,
    /// Start of its backup (RFC 3339, UTC).
    pub snapshot_time: String,
    /// Id of the last snapshot.
    pub last_snapshot: String,
    /// Start of its backup (RFC 3339, UTC).
    pub last_snapshot_time: String,
    /// Number of these snapshots.
    pub snapshots: u32,
}

/// Result of a search.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FindSummary {
    /// Path of the store.
    pub store: String,
    /// Number of different paths that match.
    pub paths: usize,
    /// Number of snapshots searched.
    pub snapshots: usize,
}

/// Result of a rebuild of the index.
#[derive(Debug, Serialize, JsonSchema)]
pub struct IndexSummary {
    /// Path of the store.
    pub store: String,
    /// Number of segments read.
    pub segments: u64,
    /// Bytes of these segments.
    pub segment_bytes: u64,
    /// Number of chunks in the index.
    pub chunks: u64,
    /// Duration in seconds.
    pub seconds_elapsed: f64,
}

/// A new store.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Initialized<'a> {
    /// Id of the store.
    pub id: &'a str,
    /// Path of the store.
    pub store: String,
}

/// Result of an inspection of this machine.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InspectSummary<'a> {
    /// Path of the store whose last complete snapshot was compared; null if there is none.
    pub store: Option<String>,
    /// Name of the instance.
    pub instance: &'a str,
    /// Kind of the instance.
    pub kind: &'a str,
    /// The installed product.
    pub product: &'a Product,
    /// Version of the database server.
    pub postgres: Option<&'a str>,
    /// Number of projects in the databases.
    pub projects: usize,
    /// True if nothing required is missing and no check found a fault.
    pub is_right: bool,
}

/// State of an instance in a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InspectedSnapshot {
    /// Path of the store.
    pub store: String,
    /// Id of the snapshot.
    pub snapshot: String,
    /// Start of the backup (RFC 3339, UTC).
    pub time: String,
    /// True if everything that belongs to the instance was present.
    pub is_complete: bool,
    /// Random id of the run (UUID); null if the snapshot has none.
    pub run_id: Option<String>,
    /// Figures of the backup.
    pub statistics: Statistics,
    /// The last checks and drills of the snapshot, newest first.
    pub examinations: Vec<SnapshotCheck>,
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// An entry of a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Node {
    /// Type of the entry.
    pub r#type: NodeType,
    /// Permission bits, as a number.
    pub mode: u32,
    /// Type and permissions, as `ls -l` prints them.
    pub permissions: String,
    /// Number of the owner.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Inode number at the time of the backup.
    pub inode: u64,
    /// Name of the owner, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Name of the group, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Modification time (RFC 3339, UTC), if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtime: Option<String>,
    #[serde(flatten)]
    pub path: PathFields,
    /// Last part of the path. Bytes that are not UTF-8 are escaped.
    pub name: String,
    /// Hexadecimal digits of the name's bytes, only if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    /// Target of a symbolic link. Bytes that are not UTF-8 are escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linktarget: Option<String>,
    /// Hexadecimal digits of the target's bytes, only if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linktarget_hex: Option<String>,
}

/// Result of a listing.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LsSummary {
    /// Path of the store.
    pub store: String,
    /// Id of the snapshot.
    pub snapshot: String,
    /// Number of entries listed.
    pub entries: u64,
}

/// Type of an entry.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeType {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDev,
    /// A block device.
    Dev,
}

/// A path of a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PathFields {
    /// Path in the snapshot, from `/`. Bytes that are not UTF-8 are escaped.
    pub path: String,
    /// Hexadecimal digits of the path's bytes, only if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
}

/// Result of a test of notifiers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Notified<'a> {
    /// Number of notifiers that were tested.
    pub notifiers: usize,
    /// Notifiers that do not send this kind of message.
    pub not_tested: &'a [String],
    /// Error messages.
    pub failures: &'a [String],
}

/// A project in a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProjectLine<'a> {
    #[serde(flatten)]
    pub project: &'a Project,
    /// Argument for `restore`, if the path of the repository is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore: Option<String>,
}

/// Result of a list of projects.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProjectSummary {
    /// Path of the store.
    pub store: String,
    /// Id of the snapshot.
    pub snapshot: String,
    /// Number of projects listed.
    pub projects: u64,
}

/// Result of a recovery.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Recovered<'a> {
    /// Instances that were searched for unfinished steps.
    pub instances: &'a [&'a String],
    /// Number of completed steps.
    pub steps: usize,
}

/// Unfinished steps that were dropped.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Forgotten<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// The steps.
    pub dropped: &'a [String],
}

/// Result of a repair of single sign-on.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Repaired<'a> {
    /// Files that were written.
    pub written: &'a [String],
    /// Next step for the admin; empty if there is none.
    pub next: &'a str,
    /// True if nothing was written because of `--dry-run`.
    pub dry_run: bool,
}

/// Result of a repair of owners and modes.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RepairedOwners<'a> {
    /// Number of paths that were looked at.
    pub looked_at: u64,
    /// Number of paths whose owner or mode was changed.
    pub changed: u64,
    /// The first of them, with old and new owner and mode.
    pub examples: &'a [String],
    /// Paths that could not be changed, with reasons.
    pub failed: &'a [String],
    /// File of the rules that undo the changes.
    pub undo: Option<&'a str>,
    /// True if nothing was changed because of `--dry-run`.
    pub dry_run: bool,
}

/// A repository that a drill could not restore and examine without fault.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DrilledRepository<'a> {
    /// Project that needs the repository.
    pub project: &'a str,
    /// Path of the repository in the snapshot.
    pub path: &'a str,
    /// `failed` for a fault, `unknown` if it could not be examined.
    pub verdict: Verdict,
    /// The fault, or the reason.
    pub reason: &'a str,
}

/// Work of a stage of a rebuild, done or planned.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RebuildStage<'a> {
    /// The stage.
    pub stage: Stage,
    /// Text for people.
    pub text: &'a str,
    /// True if nothing is changed because of `--dry-run`.
    pub dry_run: bool,
}

/// Data of this machine that a rebuild renamed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MovedAside<'a> {
    /// Old path, or `database` and the old name of a database.
    pub from: &'a str,
    /// New path, or `database` and the new name.
    pub to: &'a str,
}

/// Result of a rebuild.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RebuildSummary<'a> {
    /// Location of the store.
    pub store: String,
    /// Name of the instance.
    pub instance: &'a str,
    /// Id of the snapshot.
    pub snapshot: &'a str,
    /// True if no check found a fault.
    pub is_good: bool,
    /// True if nothing was changed because of `--dry-run`.
    pub dry_run: bool,
    /// Commands that the admin runs next.
    pub left: &'a [String],
}

/// Result of a drill.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DrillSummary<'a> {
    /// Location of the store.
    pub store: &'a str,
    /// Name of the instance.
    pub instance: &'a str,
    /// Id of the snapshot.
    pub snapshot: String,
    /// Start of the backup that made the snapshot.
    pub snapshot_time: String,
    /// Worst verdict of the checks.
    pub verdict: Verdict,
    /// Result, as in the record of the drill.
    pub result: CheckResult,
    /// Number of projects in the sample.
    pub projects: u64,
    /// Number of projects in the snapshot.
    pub total_projects: u64,
    /// Number of repositories examined without fault.
    pub repositories_ok: u64,
    /// Number of repositories with a fault.
    pub repositories_failed: u64,
    /// Number of repositories that could not be examined.
    pub repositories_unknown: u64,
    /// Number of references that were compared.
    pub references: u64,
    /// Number of files that are as in the snapshot, of an instance without projects.
    pub files_ok: u64,
    /// Number of files with a fault.
    pub files_failed: u64,
    /// Number of files in the snapshot, if it has no projects.
    pub total_files: u64,
    /// Number of databases in the snapshot; a check each has the result.
    pub databases: u64,
    /// Number of restored bytes.
    pub bytes_restored: u64,
    /// Age of the snapshot at the start of the drill, in seconds: a loss now would cost this much
    /// time (RPO).
    pub rpo_seconds: u64,
    /// Duration of the restore in seconds (RTO of the sample).
    pub rto_seconds: f64,
    /// Duration of the drill in seconds.
    pub seconds_elapsed: f64,
    /// True if the store keeps a record of this drill.
    pub recorded: bool,
}

/// Result of a restore.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RestoreSummary {
    /// Path of the store.
    pub store: String,
    /// Id of the snapshot.
    pub snapshot: String,
    /// Number of files written.
    pub files_restored: u64,
    /// Bytes of these files.
    pub bytes_restored: u64,
    /// Number of files that were already up to date.
    pub files_unchanged: u64,
    /// Number of directories.
    pub dirs: u64,
    /// Number of links and special files.
    pub others: u64,
    /// Number of paths deleted by `--delete`.
    pub files_deleted: u64,
    /// Number of owners to set, in a dry run.
    pub owners_to_set: u64,
    /// Number of modes to set, in a dry run.
    pub modes_to_set: u64,
    /// Number of paths whose extended attributes are to be set or removed, in a dry run.
    pub xattrs_to_set: u64,
    /// Number of files that a dry run could not compare, because the mode of a directory hides
    /// them.
    pub files_hidden: u64,
    /// Number of paths that were not restored.
    pub errors: u64,
    /// Number of paths that `--delete` could not delete.
    pub not_deleted: u64,
    /// Number of paths that were restored without all metadata.
    pub metadata_refused: u64,
    /// Number of owners that this user may not set.
    pub owner_denied: u64,
    /// Number of extended attributes that this user may not set.
    pub xattr_denied: u64,
    /// Rules for owners and modes, in their order.
    pub owner_rules: Vec<OwnerRule>,
    /// Users and groups without a rule whose name and number in the snapshot are different accounts
    /// on this machine.
    pub renumbered: Vec<RenumberedOwner>,
    /// True if nothing was written because of `--dry-run`.
    pub dry_run: bool,
    /// Duration in seconds.
    pub seconds_elapsed: f64,
}

/// A rule for owners or modes, and what it decided.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OwnerRule {
    /// Option, or file and line.
    pub source: String,
    /// The rule, such as `user git -> gitlab`.
    pub rule: String,
    /// Number of entries whose owner, group or mode it decided.
    pub entries: u64,
    /// The first of them.
    pub samples: Vec<String>,
}

/// A user or group whose name and number in the snapshot are different accounts on this machine.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RenumberedOwner {
    /// `user` or `group`.
    pub class: String,
    /// Name in the snapshot.
    pub name: String,
    /// Number in the snapshot.
    pub number: u32,
    /// Number that was set.
    pub set: u32,
    /// Name of the set number on this machine, if it is another one.
    pub name_here: Option<String>,
    /// Number of entries.
    pub entries: u64,
}

/// A file that runs a backup every night.
#[derive(Debug, Serialize, JsonSchema)]
pub struct GeneratedFile<'a> {
    /// Name of the file.
    pub name: &'a str,
    /// Content of the file.
    pub text: &'a str,
}

/// A file that was written.
#[derive(Debug, Serialize, JsonSchema)]
pub struct WrittenFile {
    /// Path of the file.
    pub path: String,
}

/// A snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SnapshotLine<'a> {
    /// Path of the store.
    pub store: &'a str,
    /// Id of the snapshot.
    pub id: String,
    /// First digits of the id.
    pub short_id: String,
    /// Start of the backup (RFC 3339, UTC).
    pub time: String,
    /// End of the backup (RFC 3339, UTC).
    pub end: String,
    /// Name of the machine.
    pub hostname: &'a str,
    /// Name of the user who ran the backup.
    pub username: &'a str,
    /// Labels: those of the backup, and those that were added since.
    pub tags: &'a [String],
    /// True if the snapshot is pinned: `forget` never deletes it.
    pub is_pinned: bool,
    /// Patterns that the user excluded.
    pub excludes: &'a [String],
    /// Chunk id of the root page of the tree.
    pub tree: String,
    /// Snapshot from which unchanged files were taken.
    pub parent: Option<String>,
    /// Version of the program.
    pub program_version: &'a str,
    /// Random id of the run (UUID).
    pub run_id: Option<String>,
    /// Number of source paths that could not be read and are missing.
    pub errors: u64,
    /// Sources that had lost most of their files, or their mount. Later backups and retention rules
    /// ignore a snapshot with any of them.
    pub emptied: Vec<EmptiedSource>,
    /// The instance, if this is the backup of one.
    pub instance: Option<SnapshotInstance<'a>>,
    /// Result of checks and drills; null without any.
    pub checked: Option<SnapshotChecked>,
    /// Figures of the backup.
    pub summary: Statistics,
    /// Source paths. Bytes that are not UTF-8 are escaped.
    pub paths: Vec<String>,
}

/// The instance in a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SnapshotInstance<'a> {
    /// Name in the configuration.
    pub name: &'a str,
    /// Kind of the instance.
    pub kind: &'a str,
    /// True if everything that belongs to the instance was present.
    pub is_complete: bool,
}

/// A check or a drill of a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SnapshotCheck {
    /// Command that examined it.
    pub kind: CheckKind,
    /// Extent: `structure`, `share`, `part` or `data` of a check, `sample` or `whole` of a drill.
    pub level: &'static str,
    /// Start (RFC 3339, UTC).
    pub time: String,
    /// Result for this snapshot.
    pub result: CheckResult,
    /// Duration in seconds.
    pub seconds: f64,
    /// Duration of the restore in seconds; null for a check.
    pub rto_seconds: Option<f64>,
    /// Reason of a result that is not good.
    pub message: Option<String>,
}

/// Standing of a snapshot by the records of checks and drills.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SnapshotChecked {
    /// The standing.
    pub standing: Standing,
    /// Command whose record decides it.
    pub kind: CheckKind,
    /// Extent of that examination: `structure`, `share`, `part` or `data` of a check, `sample` or
    /// `whole` of a drill.
    pub level: &'static str,
    /// Start of that examination (RFC 3339, UTC).
    pub time: String,
}

/// A snapshot that stays or goes.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ForgetDecision<'a> {
    /// Path of the store.
    pub store: &'a str,
    /// Id of the snapshot.
    pub id: String,
    /// First digits of the id.
    pub short_id: String,
    /// Start of the backup (RFC 3339, UTC).
    pub time: String,
    /// Day of the start in the time zone of this machine, by which rules count.
    pub day: String,
    /// Name of the machine.
    pub hostname: &'a str,
    /// Name of the instance, if this is the backup of one.
    pub instance: Option<&'a str>,
    /// Source paths. Bytes that are not UTF-8 are escaped.
    pub paths: Vec<String>,
    /// Labels.
    pub tags: &'a [String],
    /// True if the snapshot counts for rules.
    pub counts: bool,
    /// True if it stays.
    pub stays: bool,
    /// Reasons why it stays; empty if it goes.
    pub reasons: Vec<KeepReason>,
    /// Stored bytes that no other snapshot of the store needs; null without `--explain`, and if it
    /// stays.
    pub bytes_own: Option<u64>,
    /// Paths of the projects of its instance that no snapshot has that stays; null without
    /// `--explain`, and if it stays.
    pub projects_lost: Option<Vec<String>>,
}

/// Reason why a snapshot stays.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeepReason {
    /// Name of the reason: `last`, `hourly`, `daily`, `weekly`, `monthly`, `yearly`, `within`, `tag`,
    /// `pinned`, `newest` (the newest complete one), `nothing-newer` (incomplete, and no complete one
    /// is newer), `future`, `wrong-time` or `unknown-tags`.
    pub reason: &'static str,
    /// Place among the snapshots that the rule keeps, from 1; null for reasons without a number.
    pub place: Option<usize>,
    /// Number of the rule; null if it is unlimited, and for reasons without a number.
    pub of: Option<u32>,
    /// Text for people.
    pub text: String,
}

/// Result of forgetting snapshots of a store.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ForgetSummary<'a> {
    /// Path of the store.
    pub store: &'a str,
    /// True if nothing was deleted because of `--dry-run`.
    pub dry_run: bool,
    /// Number of snapshots that were considered.
    pub snapshots: usize,
    /// Number of those that stay.
    pub stay: usize,
    /// Number of deleted snapshots, or of those that a dry run would delete.
    pub forgotten: u64,
    /// Stored bytes that no snapshot needs any more once these are deleted, and that a prune can
    /// free; null without `--explain`.
    pub bytes_freed: Option<u64>,
}

/// Result of a prune.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PruneSummary<'a> {
    /// Path of the store.
    pub store: &'a str,
    /// True if nothing was deleted because of `--dry-run`.
    pub dry_run: bool,
    /// True if nothing was deleted because backups still ran.
    pub postponed: bool,
    /// Names of the machines on which they ran.
    pub waited_for: &'a [String],
    /// Number of snapshots, all of which keep their data.
    pub snapshots: u64,
    /// All segments at the start.
    pub segments: store::prune::Segments,
    /// Segments without a needed chunk, which the plan deletes.
    pub planned: store::prune::Segments,
    /// Partly needed segments that the plan replaces by new ones.
    pub rewritten: store::prune::Segments,
    /// Bytes of needed chunks that are copied out of these.
    pub moved_bytes: u64,
    /// Deleted segments, with the rewritten ones.
    pub deleted: store::prune::Segments,
    /// Bytes of chunks that no snapshot needs, in segments that stay.
    pub left_bytes: u64,
    /// Number of segments that could not be deleted.
    pub undeletable: u64,
}

/// A snapshot whose pin or tags were to be changed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Annotated<'a> {
    /// Path of the store.
    pub store: &'a str,
    /// Id of the snapshot.
    pub id: String,
    /// True if something changed.
    pub changed: bool,
    /// True if the snapshot is pinned now.
    pub is_pinned: bool,
    /// Its tags now.
    pub tags: &'a [String],
}

/// Sizes of the store and of the selected snapshots.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Stats {
    /// Path of the store.
    pub store: String,
    /// Number of selected snapshots.
    pub snapshots_count: usize,
    /// Number of those that are checked.
    pub snapshots_checked: usize,
    /// Bytes of the files in all selected snapshots.
    pub total_restore_size: u64,
    /// Bytes of all segments.
    pub total_size: u64,
    /// Plain bytes of all chunks.
    pub total_uncompressed_size: u64,
    /// Number of all chunks.
    pub total_blob_count: u64,
    /// Bytes that no snapshot needs, such as those of killed backups, and those of running ones. Null
    /// if only some snapshots were selected, and if it is unknown.
    pub garbage_bytes: Option<u64>,
    /// Sums over the backups that made the selected snapshots.
    pub backups: ReuseFigures,
    /// Chunks of content.
    pub data: Totals,
    /// Chunks of trees and recipes.
    pub metadata: Totals,
}

/// Figures of reuse by backups.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ReuseFigures {
    /// Bytes of files that were read.
    pub bytes_read: u64,
    /// Part of `bytes_read` in chunks that the store already had, without bytes found by extent.
    pub bytes_found_by_chunk: u64,
    /// Part of `bytes_read` found in files of the parent and stored as slices of their chunks.
    pub bytes_found_by_extent: u64,
    /// Part of `bytes_found_by_extent` copied forward into new chunks.
    pub bytes_copied_forward: u64,
    /// Stored bytes of new chunks.
    pub bytes_stored: u64,
}

/// Returns a path as text, and the hexadecimal digits of its bytes if it is not UTF-8.
pub fn path(path: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(path) {
        Ok(text) => (text.into(), None),
        Err(_) => {
            let hex = path.iter().map(|byte| format!("{byte:02x}")).collect();
            (display_path(path), Some(hex))
        }
    }
}

impl<'a> From<&'a Step> for PlannedStep<'a> {
    fn from(step: &'a Step) -> PlannedStep<'a> {
        PlannedStep {
            command: &step.command.argv,
            user: step.command.user.as_deref(),
            seconds: step.command.limit.as_secs(),
        }
    }
}

impl PathFields {
    /// Returns the fields of a path of the tree.
    pub fn of_tree(path_of_tree: &[u8]) -> PathFields {
        let (path, path_hex) = path(&[b"/", path_of_tree].concat());
        PathFields { path, path_hex }
    }
}

impl From<&Entry> for Node {
    fn from(entry: &Entry) -> Node {
        let text = |name: &Vec<u8>| String::from_utf8_lossy(name).into_owned();
        let (name, name_hex) = path(entry.name());
        let target = (entry.kind == EntryKind::Symlink).then(|| path(&entry.target));
        let (linktarget, linktarget_hex) = target.unzip();
        Node {
            r#type: match entry.kind {
                EntryKind::File => NodeType::File,
                EntryKind::Directory => NodeType::Dir,
                EntryKind::Symlink => NodeType::Symlink,
                EntryKind::Fifo => NodeType::Fifo,
                EntryKind::Socket => NodeType::Socket,
                EntryKind::CharDevice => NodeType::CharDev,
                EntryKind::BlockDevice => NodeType::Dev,
            },
            mode: entry.mode,
            permissions: mode(entry),
            uid: entry.owner.uid,
            gid: entry.owner.gid,
            size: entry.size,
            inode: entry.inode,
            user: entry.owner.user.as_ref().map(text),
            group: entry.owner.group.as_ref().map(text),
            mtime: entry.mtime.map(utc_time),
            path: PathFields::of_tree(&entry.path),
            name,
            name_hex,
            linktarget,
            linktarget_hex: linktarget_hex.flatten(),
        }
    }
}

impl From<Number> for KeepNumber {
    fn from(number: Number) -> KeepNumber {
        match number {
            Number::Of(number) => KeepNumber::Of(number),
            Number::Unlimited => KeepNumber::Unlimited("unlimited"),
        }
    }
}

impl<'a> From<&'a Rules> for KeepRules<'a> {
    fn from(rules: &'a Rules) -> KeepRules<'a> {
        let [last, hourly, daily, weekly, monthly, yearly] =
            rules.numbers().map(|(_, number)| number.map(KeepNumber::from));
        let within = rules.within.map(|period| period.to_string());
        KeepRules { last, hourly, daily, weekly, monthly, yearly, within, tags: &rules.tags }
    }
}

impl SnapshotCheck {
    /// Describes the examination of one of the snapshots of a record.
    pub fn of(record: &CheckRecord, id: &SnapshotId) -> SnapshotCheck {
        SnapshotCheck {
            kind: record.kind,
            level: record.level.name(),
            time: utc_time(Time { seconds: record.started, nanoseconds: 0 }),
            result: record.outcome_for(id),
            seconds: record.seconds,
            rto_seconds: record.rto_seconds,
            message: record.message.clone(),
        }
    }
}

impl<'a> SnapshotLine<'a> {
    /// Describes a snapshot with the tags of its backup, not pinned.
    pub fn of(
        store: &'a str,
        id: &SnapshotId,
        snapshot: &'a Snapshot,
        judged: Option<&Judged>,
    ) -> SnapshotLine<'a> {
        SnapshotLine {
            store,
            id: id.to_string(),
            short_id: id.short(),
            time: utc_time(snapshot.start.into()),
            end: utc_time(snapshot.end.into()),
            hostname: &snapshot.host,
            username: &snapshot.user,
            tags: &snapshot.tags,
            is_pinned: false,
            excludes: &snapshot.excludes,
            tree: snapshot.root.chunk().to_string(),
            parent: snapshot.parent.map(|id| id.snapshot().to_string()),
            program_version: &snapshot.program,
            run_id: snapshot.run.map(|run| RunId::from_bytes(*run).to_string()),
            errors: snapshot.unreadable_count,
            emptied: snapshot.emptied.iter().map(EmptiedSource::of).collect(),
            instance: snapshot.instance.as_ref().map(|instance| SnapshotInstance {
                name: &instance.name,
                kind: &instance.kind,
                is_complete: instance.is_complete,
            }),
            checked: judged.map(|judged| SnapshotChecked {
                standing: judged.standing,
                kind: judged.kind,
                level: judged.level.name(),
                time: utc_time(Time { seconds: judged.started, nanoseconds: 0 }),
            }),
            summary: snapshot.statistics,
            paths: snapshot.paths.iter().map(|source| path(source).0).collect(),
        }
    }
}

impl From<&Statistics> for ReuseFigures {
    fn from(statistics: &Statistics) -> ReuseFigures {
        ReuseFigures {
            bytes_read: statistics.bytes_read,
            bytes_found_by_chunk: statistics.found_by_chunk,
            bytes_found_by_extent: statistics.found_by_extent,
            bytes_copied_forward: statistics.copied_forward,
            bytes_stored: statistics.added_stored_bytes,
        }
    }
}
