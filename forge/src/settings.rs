//! What the configuration says of an instance. Everything but the kind may be left
//! out; the kind knows the rest.

use crate::secret::Secret;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// One instance.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Name of its kind.
    pub kind: String,
    /// Name of the store it goes to; not needed where there is only one.
    pub store: Option<String>,
    /// What comes before all paths of the kind, and before absolute paths that are read
    /// from the instance's own configuration.
    #[serde(default = "slash")]
    pub root: PathBuf,
    /// How parts are made to fit each other.
    #[serde(default)]
    pub mode: Mode,
    /// What to do with what git can make again.
    pub git_caches: Option<GitCaches>,
    /// Words to find snapshots by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Globs of what to leave out of all parts.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// The compose file, where the instance has one, or several of which later ones go before
    /// earlier ones; as seen by this machine, not below `root`.
    #[serde(default, deserialize_with = "one_or_more")]
    pub compose: Vec<PathBuf>,
    /// What compose calls the project, where only its command line says so.
    pub project: Option<String>,
    /// The container, where no compose file says which it is.
    pub container: Option<String>,
    /// The program that has the containers, with what comes before its verb, such as
    /// `["podman"]`.
    #[serde(default = "docker", deserialize_with = "program")]
    pub docker: Vec<String>,
    /// Parts by name: those of the kind changed, others added.
    #[serde(default)]
    pub parts: BTreeMap<String, PartSettings>,
    /// How to reach the database server.
    #[serde(default)]
    pub postgres: PostgresSettings,
    /// How to reach Redis.
    #[serde(default)]
    pub redis: RedisSettings,
    /// How to stop the services that write.
    #[serde(default)]
    pub services: ServicesSettings,
    /// Commands to run before anything is copied.
    #[serde(default)]
    pub before: Vec<StepSettings>,
    /// Commands to run at the end, whatever became of the run.
    #[serde(default)]
    pub after: Vec<StepSettings>,
    /// What is looked at in the copy.
    #[serde(default)]
    pub checks: ChecksSettings,
    /// What it means that keys are others than before.
    #[serde(default)]
    pub keys: KeysSettings,
}

fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a path or a list of paths is needed")]
    enum Paths {
        One(PathBuf),
        Several(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(from)? {
        Paths::One(path) => vec![path],
        Paths::Several(paths) => paths,
    })
}

/// A program with what comes after it; there has to be one.
pub(crate) fn program<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let words = Vec::<String>::deserialize(from)?;
    if words.first().is_none_or(String::is_empty) {
        return Err(serde::de::Error::custom("a command begins with the name of a program"));
    }
    Ok(words)
}

fn docker() -> Vec<String> {
    vec!["docker".into()]
}

fn slash() -> PathBuf {
    "/".into()
}

/// How parts are made to fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing is stopped; what refers is copied before what it refers to.
    #[default]
    Online,
    /// Everything is copied twice, the second time with the writing services stopped.
    Maintenance,
}

impl Mode {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Online => "online",
            Mode::Maintenance => "maintenance",
        }
    }
}

/// What to do with what git can make again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GitCaches {
    /// Back it up.
    Keep,
    /// Leave it out.
    Skip,
}

/// One part.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PartSettings {
    /// Where it is, as seen by this machine; not below `root`.
    pub path: Option<PathBuf>,
    /// Several places.
    #[serde(default)]
    pub paths: Vec<PathBuf>,
    /// Whether the backup is complete without it.
    pub missing: Option<Missing>,
    /// Leave it out on purpose.
    #[serde(default)]
    pub skip: bool,
    /// Globs of what to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// What a missing part means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// Nothing.
    Ok,
    /// The backup is not complete.
    Error,
}

/// How to reach the database server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PostgresSettings {
    /// Host name, or directory of the socket.
    pub host: Option<String>,
    /// Port; that of the server itself, not that of a pooler.
    pub port: Option<u16>,
    /// Name of the role to connect as.
    pub role: Option<String>,
    /// User of this machine who runs the clients.
    pub user: Option<String>,
    /// Directory of `psql` and `pg_dump`.
    pub bin: Option<PathBuf>,
    /// Container to run the clients in.
    pub container: Option<String>,
    /// Where the password of the role is.
    pub password: Option<Secret>,
    /// File of passwords for the clients, in PostgreSQL's own form (`.pgpass`); not for clients
    /// in a container.
    pub passfile: Option<PathBuf>,
    /// Databases to save; without it, all that the server has.
    pub databases: Option<Vec<String>>,
    /// How long to wait for a server that is starting.
    pub wait: Option<Limit>,
    /// How long a dump may say nothing.
    pub silence: Option<Limit>,
    /// Whether rows are counted.
    pub count_rows: Option<bool>,
}

/// How to reach Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RedisSettings {
    /// Its socket.
    pub socket: Option<PathBuf>,
    /// Its host name, where there is no socket.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// Where its password is.
    pub password: Option<Secret>,
    /// `redis-cli`.
    pub client: Option<PathBuf>,
    /// Container to run the client in.
    pub container: Option<String>,
    /// How long it may take to save.
    pub limit: Option<Limit>,
    /// Leave it out on purpose.
    #[serde(default)]
    pub skip: bool,
}

/// How to stop the services that write.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServicesSettings {
    /// Names of the services that write, instead of those of the kind.
    pub writers: Option<Vec<String>>,
    /// The admin's own commands to stop them.
    #[serde(default)]
    pub stop: Vec<StepSettings>,
    /// The admin's own commands to start them; run in the end, whatever happened.
    #[serde(default)]
    pub start: Vec<StepSettings>,
    /// How long one command may take.
    pub limit: Option<Limit>,
}

/// A command of the admin's.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StepSettings {
    /// The program and its arguments; no shell is in between.
    #[serde(deserialize_with = "program")]
    pub command: Vec<String>,
    /// As whom; root if not given.
    pub user: Option<String>,
    /// How long it may take; a minute if not given.
    pub limit: Option<Limit>,
    /// What its failure means. A stop that fails always ends the run.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// What a failed step means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The run fails.
    #[default]
    Fail,
    /// A warning.
    Warn,
}

/// What is looked at in the copy.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ChecksSettings {
    /// How many rows of each kind of file are compared with the files; `all` compares them all.
    pub sample: Sample,
    /// What it means that much of what the databases name is nowhere on this machine.
    pub lost: Missing,
}

/// The keys that decrypt what databases hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct KeysSettings {
    /// What it means that they changed.
    pub changed: ChangedKeys,
}

/// What it means that keys changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangedKeys {
    /// A warning, with every backup.
    #[default]
    Warn,
    /// Nothing: it was done on purpose.
    Ok,
}

impl Default for ChecksSettings {
    fn default() -> ChecksSettings {
        ChecksSettings { sample: Sample::Rows(1000), lost: Missing::Error }
    }
}

/// How many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// So many of each table.
    Rows(u32),
    /// Every one.
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
                Err(serde::de::Error::custom("a number of rows or \"all\" is needed"))
            }
        }
    }
}

/// A length of time, like `90s`, `5m` or `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Duration);

impl Limit {
    /// Whoever wants a longer one wants none, and clocks cannot be asked for every moment.
    pub const MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Limit, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = || {
            serde::de::Error::custom(format!(
                "`{text}` is no length of time like \"90s\", \"5m\" or \"2h\""
            ))
        };
        let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
        let limit = Duration::try_from(span).map_err(|_| wrong())?;
        if limit > Limit::MAX {
            return Err(serde::de::Error::custom(format!("`{text}` is more than 365 days")));
        }
        if limit.is_zero() { Err(wrong()) } else { Ok(Limit(limit)) }
    }
}
