//! Redis: persistence files that are known to be complete.

use super::{Password, Reach};
use crate::error::{Error, Result};
use crate::process::Command;
use crate::secret::Secret;
use crate::view::{as_text, shown};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use store::observe::Progress;

/// Default time limit of a save.
pub const LIMIT: Duration = Duration::from_secs(10 * 60);
/// Client variables that must also be set in a container.
pub const VARIABLES: &[&str] = &["REDISCLI_AUTH"];
/// Command that starts a save.
const SAVE: &str = "BGSAVE";
/// Command that removes all keys.
const FLUSH: &str = "FLUSHALL";
/// Time limit of one question.
const QUESTION: Duration = Duration::from_secs(10);
/// Interval between questions about a save.
const PAUSE: Duration = Duration::from_millis(50);

/// A Redis server and the access to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// Environment in which the client runs.
    pub reach: Reach,
    /// Path of the socket.
    pub socket: Option<PathBuf>,
    /// Host name, if there is no socket.
    pub host: Option<String>,
    /// Port of the server.
    pub port: Option<u16>,
    /// Name of the user, if the settings name one.
    pub username: Option<String>,
    /// Source of the password, if the settings name one.
    pub secret: Option<Secret>,
    /// Otherwise logins from the instance's own configuration, which are tried in this order.
    pub logins: Vec<Login>,
    /// Index of the login that the server accepted.
    pub accepted: OnceLock<usize>,
    /// Time limit of a save.
    pub limit: Duration,
    /// True if the backup is incomplete without the files of Redis.
    pub is_required: bool,
}

/// A user of Redis with a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Name of the user; `None` for the default user.
    pub user: Option<String>,
    /// Password of the user.
    pub password: Password,
    /// File or setting that contains the password.
    pub source: String,
}

/// Persistence files of Redis after a save.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Saved {
    /// Version of Redis.
    pub version: String,
    /// Directory of the files, as Redis sees it.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub dir: PathBuf,
    /// Name of the snapshot file there.
    pub snapshot: String,
    /// Name of the directory with the append-only files, or of the single file before Redis 7.0.
    /// `None` if Redis writes none. Redis loads these files instead of the snapshot when it starts.
    pub append_only: Option<String>,
    /// Duration of the save in seconds.
    pub seconds: f64,
}

impl Default for Redis {
    fn default() -> Redis {
        Redis {
            reach: Reach::default(),
            socket: None,
            host: None,
            port: None,
            username: None,
            secret: None,
            logins: Vec::new(),
            accepted: OnceLock::new(),
            limit: LIMIT,
            is_required: true,
        }
    }
}

/// Answer of a server that refuses a user.
enum AccessDenied {
    /// Redis knows no such user, or the password is wrong.
    Login(String),
    /// The user lacks a permission.
    Permission(String),
}

/// Returns true if a server refuses all saves: its settings lack the command, or forbid it.
pub fn refuses_saves(error: &Error) -> bool {
    let Error::Service { reason, .. } = error else { return false };
    let reason = reason.to_lowercase();
    reason.contains("bgsave")
        && ["unknown command", "noperm"].iter().any(|word| reason.contains(word))
}

/// State of a running server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Id of the running process.
    pub run: Option<String>,
    /// Number of keys in all databases.
    pub keys: u64,
    /// Reason why the server cannot be emptied; `None` if it can.
    pub obstacle: Option<String>,
}

/// Describes a server that follows another one.
fn replica_of(master: &str) -> String {
    format!("it is a replica of {master}, which has its keys")
}

impl Redis {
    /// Fails if the server does not answer, refuses all logins or knows no saves.
    pub fn expect_access(&self, progress: &Progress) -> Result<()> {
        self.ask(&["INFO", "persistence"], progress)?;
        match self.ask(&["COMMAND", "INFO", SAVE], progress) {
            Ok(answer) if answer.is_empty() => Err(self.odd(format!(
                "it does not know {SAVE}, with which a backup saves its files; its settings may \
                 have renamed it (`rename-command`)"
            ))),
            Err(error) if error.is_interrupted() => Err(error),
            // Admins may disable the question as well.
            _ => Ok(()),
        }
    }

    /// Formats the address: the socket, or the host and the port. The container in which the client
    /// runs comes first.
    pub fn shown(&self) -> String {
        let place = match &self.socket {
            Some(socket) => shown(socket),
            None => {
                let host = self.host.as_deref().unwrap_or("127.0.0.1");
                format!("{host}:{}", self.port.unwrap_or(6379))
            }
        };
        format!("{}{place}", self.reach.place())
    }

    /// Asks a running server what it has and whether it can be emptied. Fails with
    /// [`Error::Service`] if it answers and lets nobody ask, and with other errors if it does not
    /// answer.
    pub fn standing(&self, progress: &Progress) -> Result<Standing> {
        let run = self.run_id(progress)?;
        let optional = |answer: Result<String>| match answer {
            Ok(answer) => Ok(Some(answer)),
            // Admins may disable questions.
            Err(Error::Service { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let keyspace = self.info("keyspace", progress)?;
        let count = |line: &String| {
            let keys = line.split(',').find_map(|pair| pair.strip_prefix("keys="))?;
            keys.parse::<u64>().ok()
        };
        let keys = keyspace.values().filter_map(count).fold(0, u64::saturating_add);
        let obstacle = match self.master(progress)? {
            Some(master) => Some(replica_of(&master)),
            None => match optional(self.ask(&["COMMAND", "INFO", FLUSH], progress))? {
                Some(answer) if answer.is_empty() => Some(format!("it does not know {FLUSH}")),
                _ => {
                    let user = optional(self.ask(&["ACL", "WHOAMI"], progress))?;
                    let user = user.unwrap_or_else(|| "default".into());
                    let tried = optional(self.ask(&["ACL", "DRYRUN", &user, FLUSH], progress))?;
                    // Older servers do not know the question.
                    tried.filter(|answer| answer.contains("no permissions"))
                }
            },
        };
        Ok(Standing { run, keys, obstacle })
    }

    /// Returns the address of the server that this one follows.
    fn master(&self, progress: &Progress) -> Result<Option<String>> {
        let info = self.info("replication", progress)?;
        let is_replica = info.get("role").is_some_and(|role| role != "master");
        let of = |key: &str| info.get(key).map_or("?", String::as_str);
        Ok(is_replica.then(|| format!("{}:{}", of("master_host"), of("master_port"))))
    }

    /// Returns the name with which the names of append-only files begin.
    pub fn log_name(&self, progress: &Progress) -> Result<Option<String>> {
        self.configured("appendfilename", progress)
    }

    /// Returns the number of the server's process on this machine.
    pub fn process(&self, progress: &Progress) -> Result<Option<u32>> {
        let number = self.info("server", progress)?.remove("process_id");
        let is_here = self.reach.into.is_empty();
        Ok(number.filter(|_| is_here).and_then(|number| number.parse().ok()))
    }

    /// Removes all keys. Fails if the server is a replica, or still has them.
    pub fn flush(&self, progress: &Progress) -> Result<()> {
        if let Some(master) = self.master(progress)? {
            return Err(self.odd(replica_of(&master)));
        }
        match self.ask(&[FLUSH], progress)? {
            answer if answer == "OK" => Ok(()),
            answer => Err(self.odd(answer)),
        }
    }

    /// Asks as the first user whom the server lets ask.
    fn ask(&self, words: &[&str], progress: &Progress) -> Result<String> {
        let own = self.configured_login()?;
        let logins = own.as_ref().map_or(&self.logins[..], std::slice::from_ref);
        let accepted = self.accepted.get().copied().unwrap_or_default();
        let mut refused: Vec<&str> = Vec::new();
        let mut answer = None;
        for (at, login) in logins.iter().enumerate().skip(accepted) {
            match self.ask_as(Some(login), words, progress)? {
                Ok(text) => {
                    // The next question begins with this login.
                    let _ = self.accepted.set(at);
                    return Ok(text);
                }
                Err(denied) => answer = Some(denied),
            }
            if !refused.contains(&login.source.as_str()) {
                refused.push(&login.source);
            }
        }
        let Some(answer) = answer else {
            return self.ask_as(None, words, progress)?.map_err(|denied| {
                let (AccessDenied::Login(answer) | AccessDenied::Permission(answer)) = denied;
                self.odd(format!(
                    "it requires a password, and none was found ({answer}); set `redis.password` \
                     of the instance"
                ))
            });
        };
        let sources = refused.join(" and ");
        let next = match (own.is_some(), self.logins.is_empty()) {
            (true, true) => "correct it",
            (true, false) => "correct it, or remove it to use the login in GitLab's configuration",
            (false, _) => "correct it there, or set `redis.password` of the instance",
        };
        Err(self.odd(match answer {
            AccessDenied::Permission(answer) => format!(
                "the user in {sources} lacks a permission ({answer}); grant it, or set \
                 `redis.username` and `redis.password` of another user"
            ),
            AccessDenied::Login(answer) => {
                format!("wrong password in {sources} ({answer}); {next}")
            }
        }))
    }

    /// Login from the settings of the instance.
    fn configured_login(&self) -> Result<Option<Login>> {
        let Some(secret) = &self.secret else { return Ok(None) };
        let password = Password(secret.read()?.reveal().to_owned());
        let source = "`redis.password` of the instance".to_owned();
        Ok(Some(Login { user: self.username.clone(), password, source }))
    }

    /// Asks as a user. The inner error is the answer of a server that refuses this user.
    fn ask_as(
        &self,
        login: Option<&Login>,
        words: &[&str],
        progress: &Progress,
    ) -> Result<Result<String, AccessDenied>> {
        let mut arguments: Vec<String> = Vec::new();
        match (&self.socket, &self.host) {
            (Some(socket), _) => arguments.extend(["-s".into(), socket.display().to_string()]),
            (None, Some(host)) => arguments.extend(["-h".into(), host.clone()]),
            (None, None) => {}
        }
        if let (None, Some(port)) = (&self.socket, self.port) {
            arguments.extend(["-p".into(), port.to_string()]);
        }
        let user = login.and_then(|login| login.user.clone());
        arguments.extend(user.into_iter().flat_map(|user| ["--user".into(), user]));
        arguments.extend(words.iter().map(|&word| word.to_owned()));
        let mut command: Command = self.reach.command("redis-cli", arguments).within(QUESTION);
        if let Some(Login { password: Password(password), .. }) = login {
            command = command.env("REDISCLI_AUTH", password);
        }
        let answer = command.output(progress)?;
        let answer = String::from_utf8_lossy(&answer).trim().to_owned();
        // The client exits with 0 even if the server reports an error.
        let begins = |prefixes: &[&str]| {
            let own = answer.strip_prefix("(error) ").unwrap_or(&answer);
            prefixes.iter().any(|prefix| own.starts_with(prefix))
        };
        if begins(&["NOAUTH ", "WRONGPASS "]) {
            return Ok(Err(AccessDenied::Login(answer)));
        }
        if begins(&["NOPERM "]) {
            return Ok(Err(AccessDenied::Permission(answer)));
        }
        if begins(&["ERR ", "MISCONF ", "LOADING "]) {
            return Err(self.odd(answer));
        }
        Ok(Ok(answer))
    }

    fn odd(&self, reason: impl Into<String>) -> Error {
        Error::Service { service: "Redis".into(), reason: reason.into() }
    }

    fn info(&self, section: &str, progress: &Progress) -> Result<HashMap<String, String>> {
        let answer = self.ask(&["INFO", section], progress)?;
        let pairs = answer.lines().filter_map(|line| line.trim().split_once(':'));
        Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn run_id(&self, progress: &Progress) -> Result<Option<String>> {
        Ok(self.info("server", progress)?.remove("run_id"))
    }

    fn configured(&self, key: &str, progress: &Progress) -> Result<Option<String>> {
        match self.ask(&["CONFIG", "GET", key], progress) {
            Ok(answer) => Ok(answer.lines().nth(1).map(str::to_owned)),
            // Admins may disable this command.
            Err(Error::Service { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until no save or rewrite of its own is running.
    pub fn settle(&self, progress: &Progress) -> Result<()> {
        let keys = ["rdb_bgsave_in_progress", "aof_rewrite_in_progress"];
        self.wait_while(&keys, Instant::now(), progress)
    }

    /// Starts to write the current data to the snapshot file.
    pub fn begin_save(&self, progress: &Progress) -> Result<Saving<'_>> {
        let began = Instant::now();
        loop {
            self.settle(progress)?;
            let (started, run) = (Instant::now(), self.run_id(progress)?);
            // The answer reports a start even if the save cannot begin.
            match self.ask(&[SAVE], progress) {
                // A rewrite began since the server was asked.
                Err(Error::Service { reason, .. })
                    if is_busy(&reason) && began.elapsed() < self.limit =>
                {
                    std::thread::sleep(PAUSE);
                }
                answer => return answer.map(|_| Saving { redis: self, started, run }),
            }
        }
    }

    /// Paths of a save on this machine. `dir` replaces the directory that Redis reports, if Redis
    /// runs in a container. Without it, there are no paths.
    pub fn files(&self, saved: &Saved, dir: Option<&Path>) -> Vec<PathBuf> {
        let is_here = self.reach.into.is_empty() && saved.dir.is_absolute();
        let dir = if is_here { Some(saved.dir.as_path()) } else { dir };
        let names = [Some(&saved.snapshot), saved.append_only.as_ref()];
        dir.map(|dir| names.into_iter().flatten().map(|name| dir.join(name)).collect())
            .unwrap_or_default()
    }

    /// Describes the missing file of a save, if one is missing.
    pub fn absent(&self, saved: &Saved, files: &[PathBuf]) -> Option<String> {
        let absent = files.iter().find(|path| !path.exists());
        match absent {
            Some(path) => Some(format!("{}, the file that Redis reports", shown(path))),
            None if files.is_empty() => Some(format!(
                "{} in its container; make the directory that is mounted there the part `redis`",
                shown(&saved.dir.join(&saved.snapshot))
            )),
            None => None,
        }
    }

    fn wait_while(&self, keys: &[&str], started: Instant, progress: &Progress) -> Result<()> {
        loop {
            let info = self.info("persistence", progress)?;
            if !info.contains_key("rdb_bgsave_in_progress") {
                return Err(self.odd("it does not report whether it is saving"));
            }
            if !keys.iter().any(|key| info.get(*key).is_some_and(|value| value != "0")) {
                return Ok(());
            }
            if started.elapsed() >= self.limit {
                let limit = crate::error::seconds(self.limit);
                return Err(self.odd(format!("the save did not end within {limit}")));
            }
            progress.check()?;
            std::thread::sleep(PAUSE);
        }
    }
}

/// Returns true if the server refuses a save because it is writing something else: `Background
/// save already in progress`, `Can't BGSAVE while AOF log rewriting is in progress` before Redis
/// 7.0, `Another child process is active` since.
fn is_busy(answer: &str) -> bool {
    ["in progress", "child process is active"].iter().any(|words| answer.contains(words))
}

/// A save in progress.
#[derive(Debug)]
pub struct Saving<'a> {
    redis: &'a Redis,
    started: Instant,
    /// Id of the server process that was asked to save.
    run: Option<String>,
}

impl Saving<'_> {
    /// Waits for the end of the save and returns its files.
    ///
    /// `LASTSAVE` is never used: it has a resolution of one second and does not change when a save
    /// fails.
    pub fn end(self, progress: &Progress) -> Result<Saved> {
        let Saving { redis, started, run } = self;
        redis.wait_while(&["rdb_bgsave_in_progress"], started, progress)?;
        // A restarted server reports success, but knows nothing of this save.
        if redis.run_id(progress)? != run {
            return Err(redis.odd("it restarted during the save"));
        }
        let info = redis.info("persistence", progress)?;
        let status = info.get("rdb_last_bgsave_status").map_or("unknown", String::as_str);
        if status != "ok" {
            let reason = format!("its save ended with status `{status}`; see its log");
            return Err(redis.odd(reason));
        }
        let seconds = started.elapsed().as_secs_f64();
        redis.files_by(&info, seconds, progress)
    }
}

impl Redis {
    /// Returns the persistence files that a running Redis writes now, without a save.
    pub fn current_files(&self, progress: &Progress) -> Result<Saved> {
        let info = self.info("persistence", progress)?;
        if !info.contains_key("rdb_bgsave_in_progress") {
            return Err(self.odd("it does not report its files"));
        }
        let files = self.files_by(&info, 0.0, progress)?;
        match files.dir.as_os_str().is_empty() {
            true => Err(self.odd("it does not report its directory")),
            false => Ok(files),
        }
    }

    /// Returns the configuration file of a server on this machine.
    pub fn configuration(&self, progress: &Progress) -> Result<Option<PathBuf>> {
        let path = self.info("server", progress)?.remove("config_file").map(PathBuf::from);
        Ok(path.filter(|path| self.reach.into.is_empty() && path.is_absolute()))
    }

    /// Asks for the names of the files, with what Redis reported of its persistence.
    fn files_by(
        &self,
        info: &HashMap<String, String>,
        seconds: f64,
        progress: &Progress,
    ) -> Result<Saved> {
        let redis = self;
        let is_append_only = info.get("aof_enabled").is_some_and(|value| value == "1");
        let append_only = match is_append_only {
            false => None,
            // A directory since Redis 7.0, a single file before.
            true => match redis.configured("appenddirname", progress)? {
                Some(name) => Some(name),
                None => redis.configured("appendfilename", progress)?,
            },
        };
        let version = redis.info("server", progress)?.remove("redis_version").unwrap_or_default();
        let dir = redis.configured("dir", progress)?.unwrap_or_default().into();
        let snapshot = redis.configured("dbfilename", progress)?;
        let snapshot = snapshot.unwrap_or_else(|| "dump.rdb".into());
        Ok(Saved { version, dir, snapshot, append_only, seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refused_saves_are_told_apart() {
        let error = |reason: &str| Redis::default().odd(reason);
        for (text, is_refused) in [
            ("ERR unknown command 'BGSAVE', with args beginning with: ", true),
            (
                "none was found (NOPERM this user has no permissions to run the 'bgsave' command)",
                true,
            ),
            ("ERR unknown command `INFO`", false),
            ("its save ended with status `err` (bgsave)", false),
        ] {
            assert_eq!(refuses_saves(&error(text)), is_refused, "{text}");
        }
    }
}
