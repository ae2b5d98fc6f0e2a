//! Settings of an instance. Only the kind is required; it supplies the defaults.

use crate::process::program;
use crate::secret::Secret;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use store::backup::MaxLoss;

/// Settings of one instance.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Name of the kind.
    pub kind: String,
    /// Name of the store to back up to; optional if there is only one.
    pub store: Option<String>,
    /// Directory that stands for `/`: prefix of all paths of the kind, and of absolute paths from
    /// the instance's own configuration.
    #[serde(default = "slash")]
    pub root: PathBuf,
    /// Method that keeps the parts consistent with each other.
    #[serde(default)]
    pub mode: Mode,
    /// Treatment of files that git can rebuild.
    pub git_caches: Option<GitCaches>,
    /// Tags of the snapshots.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Rules for the snapshots that `forget` keeps.
    pub keep: Option<store::retention::Rules>,
    /// Largest share of its files or bytes that a part may lose between two backups.
    pub max_loss: Option<MaxLoss>,
    /// Globs of paths to exclude from all parts.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Compose file of the instance, if it has one, or several files, where a later one overrides
    /// earlier ones. Paths of this machine, not below `root`.
    #[serde(default, deserialize_with = "one_or_more")]
    pub compose: Vec<PathBuf>,
    /// Compose project, if only its command line names it.
    pub project: Option<String>,
    /// Name of the container, if no compose file names it.
    pub container: Option<String>,
    /// Container program with the arguments before its verb, such as `["podman"]`.
    #[serde(default = "docker", deserialize_with = "program")]
    pub docker: Vec<String>,
    /// Parts by name: changes to the kind's parts, and additional parts.
    #[serde(default)]
    pub parts: BTreeMap<String, PartSettings>,
    /// Access to the database server.
    #[serde(default)]
    pub postgres: PostgresSettings,
    /// Access to Redis.
    #[serde(default)]
    pub redis: RedisSettings,
    /// Control of the services that write.
    #[serde(default)]
    pub services: ServicesSettings,
    /// Commands to run before the copy begins.
    #[serde(default)]
    pub before: Vec<StepSettings>,
    /// Commands to run at the end, even if the backup failed.
    #[serde(default)]
    pub after: Vec<StepSettings>,
    /// Checks of the copy.
    #[serde(default)]
    pub checks: ChecksSettings,
    /// Treatment of changed keys.
    #[serde(default)]
    pub keys: KeysSettings,
}

impl Settings {
    /// Returns the default settings of a kind, for a machine without a configuration.
    pub fn of_kind(kind: &str) -> Settings {
        serde_json::from_value(serde_json::json!({ "kind": kind })).expect("a kind is enough")
    }
}

fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a path or a list of paths")]
    enum Paths {
        One(PathBuf),
        Several(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(from)? {
        Paths::One(path) => vec![path],
        Paths::Several(paths) => paths,
    })
}

fn docker() -> Vec<String> {
    vec!["docker".into()]
}

fn slash() -> PathBuf {
    "/".into()
}

/// Method that keeps the parts consistent with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Services keep running. The backup copies data that refers to other data first.
    #[default]
    Online,
    /// Everything is copied twice, the second time with the writing services stopped.
    Maintenance,
}

impl Mode {
    /// Name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Online => "online",
            Mode::Maintenance => "maintenance",
        }
    }
}

/// Treatment of files that git can rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GitCaches {
    /// Back it up.
    Keep,
    /// Leave it out.
    Skip,
}

/// Settings of one part.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PartSettings {
    /// Path on this machine, not below `root`.
    pub path: Option<PathBuf>,
    /// Several paths, as `path`.
    #[serde(default)]
    pub paths: Vec<PathBuf>,
    /// Treatment of the part if it is missing.
    pub missing: Option<Missing>,
    /// Exclude the part on purpose.
    #[serde(default)]
    pub skip: bool,
    /// Largest share of its files or bytes that the part may lose between two backups.
    pub max_loss: Option<MaxLoss>,
    /// Globs of paths to exclude in the part, but not in other parts below it.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// Treatment of a missing part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// The backup is complete without it.
    Ok,
    /// The backup is incomplete without it.
    Error,
}

/// Access to the database server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PostgresSettings {
    /// Host name, or directory of the socket.
    pub host: Option<String>,
    /// Port of the server itself, not of a pooler.
    pub port: Option<u16>,
    /// Name of the role to connect as.
    pub role: Option<String>,
    /// User of this machine that runs the clients.
    pub user: Option<String>,
    /// Directory of `psql` and `pg_dump`.
    pub bin: Option<PathBuf>,
    /// Container to run the clients in.
    pub container: Option<String>,
    /// Source of the role's password.
    pub password: Option<Secret>,
    /// Password file for the clients, in PostgreSQL's own format (`.pgpass`). It does not apply to
    /// clients in a container.
    pub passfile: Option<PathBuf>,
    /// Databases to dump; all databases of the server if not given.
    pub databases: Option<Vec<String>>,
    /// Time to wait for a server that is starting.
    pub wait: Option<Limit>,
    /// Longest time that a dump may print nothing.
    pub silence: Option<Limit>,
    /// True if the rows of each table are counted.
    pub count_rows: Option<bool>,
}

/// Access to Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisSettings {
    /// Path of the socket.
    pub socket: Option<PathBuf>,
    /// Host name, if there is no socket.
    pub host: Option<String>,
    /// Port of the server.
    pub port: Option<u16>,
    /// Name of the user whose password is set; by default, the default user.
    pub username: Option<String>,
    /// Source of the password.
    pub password: Option<Secret>,
    /// Path of `redis-cli`.
    pub client: Option<PathBuf>,
    /// Container to run the client in.
    pub container: Option<String>,
    /// Time limit of a save.
    pub limit: Option<Limit>,
    /// Exclude Redis on purpose.
    #[serde(default)]
    pub skip: bool,
}

/// Control of the services that write.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServicesSettings {
    /// Names of the services that write, instead of those of the kind.
    pub writers: Option<Vec<String>>,
    /// The admin's commands to stop them.
    #[serde(default)]
    pub stop: Vec<StepSettings>,
    /// The admin's commands to start them; they run in any case at the end.
    #[serde(default)]
    pub start: Vec<StepSettings>,
    /// Time limit of one stop or start.
    pub limit: Option<Limit>,
}

/// A command of the admin.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StepSettings {
    /// The program and its arguments; no shell interprets them.
    #[serde(deserialize_with = "program")]
    pub command: Vec<String>,
    /// User that runs it; root if not given.
    pub user: Option<String>,
    /// Time limit; one minute if not given.
    pub limit: Option<Limit>,
    /// Effect of a failure. Steps in `services` do not accept `warn`: a failed stop always ends the
    /// run.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// Effect of a failed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The backup fails.
    #[default]
    Fail,
    /// The backup warns and continues.
    Warn,
}

/// Checks of the copy.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ChecksSettings {
    /// Number of rows of each kind of file that are compared with the files; `all` compares every
    /// row.
    pub sample: Sample,
    /// Reaction to a storage or table of which many files are missing.
    pub lost: Missing,
}

/// Settings of the keys that decrypt the contents of the databases.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct KeysSettings {
    /// Treatment of changed keys.
    pub changed: ChangedKeys,
}

/// Treatment of changed keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangedKeys {
    /// Every backup warns.
    #[default]
    Warn,
    /// The change is accepted: it was made on purpose.
    Ok,
}

impl Default for ChecksSettings {
    fn default() -> ChecksSettings {
        ChecksSettings { sample: Sample::Rows(1000), lost: Missing::Error }
    }
}

/// Number of rows to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// About this many rows of each table.
    Rows(u32),
    /// Every row.
    All,
}

impl<'de> Deserialize<'de> for Sample {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Sample, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Word {
            Rows(u32),
            Text(String),
            Other(serde::de::IgnoredAny),
        }
        match Word::deserialize(from)? {
            Word::Rows(rows) => Ok(Sample::Rows(rows)),
            Word::Text(text) if text == "all" => Ok(Sample::All),
            Word::Text(_) | Word::Other(_) => {
                Err(serde::de::Error::custom("expected a number of rows or \"all\""))
            }
        }
    }
}

/// A duration, such as `90s`, `5m` or `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Duration);

impl Limit {
    /// Longest limit. A longer one amounts to no limit, and might overflow a clock.
    pub const MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
}

impl Limit {
    /// Parses a duration.
    pub fn parse(text: &str) -> Result<Limit, WrongLimit> {
        let wrong = || WrongLimit::NotADuration(text.to_owned());
        let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
        let limit = Duration::try_from(span).map_err(|_| wrong())?;
        if limit > Limit::MAX {
            return Err(WrongLimit::TooLong(text.to_owned()));
        }
        if limit.is_zero() { Err(wrong()) } else { Ok(Limit(limit)) }
    }
}

/// Reason why a text is not a limit.
#[derive(Debug, thiserror::Error)]
pub enum WrongLimit {
    /// The text cannot be parsed, or is not positive.
    #[error("`{0}` is not a duration such as \"90s\", \"5m\" or \"2h\"")]
    NotADuration(String),
    /// The duration is longer than [`Limit::MAX`].
    #[error("`{0}` is more than 365 days")]
    TooLong(String),
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Limit, D::Error> {
        Limit::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}
