//! Redis: a save that is known to have succeeded.

use super::{Password, Reach};
use crate::copy::shown;
use crate::error::{Error, Result};
use crate::plan::Absent;
use crate::run::Command;
use crate::secret::Secret;
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use store::observe::Progress;

/// How long a save may take, if nobody says otherwise.
pub const LIMIT: Duration = Duration::from_secs(10 * 60);
/// Variables of the client that mean something in a container as well.
pub const VARIABLES: &[&str] = &["REDISCLI_AUTH"];
/// How long one question may take.
const QUESTION: Duration = Duration::from_secs(10);
/// How often it is asked whether it is done.
const PAUSE: Duration = Duration::from_millis(50);

/// A Redis server and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// Where the client runs.
    pub reach: Reach,
    /// Its socket.
    pub socket: Option<PathBuf>,
    /// Its host name, where there is no socket.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// Where the password is, if the settings say so.
    pub secret: Option<Secret>,
    /// The password otherwise, where the instance's own configuration has it.
    pub password: Option<Password>,
    /// How long a save may take.
    pub limit: Duration,
    /// Whether the backup is complete without its files.
    pub is_required: bool,
}

/// How Redis keeps its data in files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Saved {
    /// Its version.
    pub version: String,
    /// Directory of the files, as Redis sees it.
    pub dir: PathBuf,
    /// Name of the snapshot file there.
    pub snapshot: String,
    /// Name of the directory with the append-only files, or of the one file, if it
    /// keeps such; it reads these and not the snapshot when it starts.
    pub append_only: Option<String>,
    /// Seconds that the save took.
    pub seconds: f64,
}

impl Default for Redis {
    fn default() -> Redis {
        Redis {
            reach: Reach::default(),
            socket: None,
            host: None,
            port: None,
            secret: None,
            password: None,
            limit: LIMIT,
            is_required: true,
        }
    }
}

impl Redis {
    fn ask(&self, words: &[&str], progress: &Progress) -> Result<String> {
        let mut arguments: Vec<String> = Vec::new();
        match (&self.socket, &self.host) {
            (Some(socket), _) => arguments.extend(["-s".into(), socket.display().to_string()]),
            (None, Some(host)) => arguments.extend(["-h".into(), host.clone()]),
            (None, None) => {}
        }
        if let (None, Some(port)) = (&self.socket, self.port) {
            arguments.extend(["-p".into(), port.to_string()]);
        }
        arguments.extend(words.iter().map(|&word| word.to_owned()));
        let mut command: Command = self.reach.command("redis-cli", arguments).within(QUESTION);
        if let Some(secret) = &self.secret {
            command = command.env("REDISCLI_AUTH", secret.read().map_err(Error::Secret)?.reveal());
        } else if let Some(Password(password)) = &self.password {
            command = command.env("REDISCLI_AUTH", password);
        }
        let answer = command.output(progress)?;
        let answer = String::from_utf8_lossy(&answer).trim().to_owned();
        // The client succeeds whatever the server answers.
        let is_error = ["ERR ", "NOAUTH ", "WRONGPASS ", "NOPERM ", "MISCONF ", "LOADING "]
            .iter()
            .any(|prefix| {
                answer.starts_with(prefix) || answer.starts_with(&format!("(error) {prefix}"))
            });
        if !is_error {
            return Ok(answer);
        }
        let is_refused = answer.contains("NOAUTH ") || answer.contains("WRONGPASS ");
        Err(self.odd(if is_refused {
            format!(
                "{answer}; set `redis.password` of the instance; without it, GitLab's `resque.yml` \
                 and `redis.conf` are asked"
            )
        } else {
            answer
        }))
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
            // Admins may forbid this command.
            Err(Error::Service { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until it does not save for reasons of its own.
    pub fn settle(&self, progress: &Progress) -> Result<()> {
        let keys = ["rdb_bgsave_in_progress", "aof_rewrite_in_progress"];
        self.wait_while(&keys, Instant::now(), progress)
    }

    /// Has it begin to write its data, as of now, to its snapshot file.
    pub fn begin_save(&self, progress: &Progress) -> Result<Saving<'_>> {
        self.settle(progress)?;
        let (started, run) = (Instant::now(), self.run_id(progress)?);
        // It says that it began even where it cannot.
        self.ask(&["BGSAVE"], progress)?;
        Ok(Saving { redis: self, started, run })
    }

    /// The files of a save, as this machine sees them. `dir` is where they are if Redis, in a
    /// container, sees its directory elsewhere; without it they are nowhere.
    pub fn files(&self, saved: &Saved, dir: Option<&Path>) -> Vec<PathBuf> {
        let is_here = self.reach.into.is_empty() && saved.dir.is_absolute();
        let dir = if is_here { Some(saved.dir.as_path()) } else { dir };
        let names = [Some(&saved.snapshot), saved.append_only.as_ref()];
        dir.map(|dir| names.into_iter().flatten().map(|name| dir.join(name)).collect())
            .unwrap_or_default()
    }

    /// What is missing of a save.
    pub fn absent(&self, saved: &Saved, files: &[PathBuf]) -> Option<Absent> {
        let absent = files.iter().find(|path| !path.exists());
        let looked_for = match absent {
            Some(path) => format!("{}, where Redis says that it saved", shown(path)),
            None if files.is_empty() => format!(
                "{} in its container; make the directory that is mounted there the part `redis`",
                shown(&saved.dir.join(&saved.snapshot))
            ),
            None => return None,
        };
        Some(Absent { part: "redis".into(), looked_for, is_required: self.is_required })
    }

    fn wait_while(&self, keys: &[&str], started: Instant, progress: &Progress) -> Result<()> {
        loop {
            let info = self.info("persistence", progress)?;
            if !info.contains_key("rdb_bgsave_in_progress") {
                return Err(self.odd("it does not say whether it saves"));
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

/// A save under way.
#[derive(Debug)]
pub struct Saving<'a> {
    redis: &'a Redis,
    started: Instant,
    /// Which run of the server was told.
    run: Option<String>,
}

impl Saving<'_> {
    /// Waits until it is done and says where.
    ///
    /// `LASTSAVE` is never asked: it has whole seconds and stays as it is when a save fails.
    pub fn end(self, progress: &Progress) -> Result<Saved> {
        let Saving { redis, started, run } = self;
        redis.wait_while(&["rdb_bgsave_in_progress"], started, progress)?;
        // One that was started again says that all is well and knows nothing of our save.
        if redis.run_id(progress)? != run {
            return Err(redis.odd("it was started again while it saved"));
        }
        let info = redis.info("persistence", progress)?;
        let status = info.get("rdb_last_bgsave_status").map_or("unknown", String::as_str);
        if status != "ok" {
            let reason = format!("its save ended with status `{status}`; its log says why");
            return Err(redis.odd(reason));
        }
        let seconds = started.elapsed().as_secs_f64();
        let is_append_only = info.get("aof_enabled").is_some_and(|value| value == "1");
        let append_only = match is_append_only {
            false => None,
            // A directory since 7.0, a file before.
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
