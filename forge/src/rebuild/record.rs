//! Record of a rebuild on this machine. It lets the next call continue after a failure or a kill.
//!
//! A step that moves something is recorded before it is done, with the new place. So the next call
//! never takes restored data for the data that was there before.

use crate::check::Check;
use crate::error::{Error, Result};
use crate::file;
use crate::mounts;
use crate::service::postgres::Identity;
use crate::service::redis::Saved;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Directory of the records, inside the state directory.
const DIR: &str = "rebuild";
/// Version of a record.
const VERSION: u32 = 1;

/// Stages of a rebuild, in their order.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Look whether the rebuild can succeed. Changes nothing.
    Preconditions,
    /// Restore the configuration and the secrets.
    Configuration,
    /// Let the product apply its configuration.
    Configure,
    /// Stop the services.
    Stop,
    /// Restore files and repositories.
    Files,
    /// Load roles and databases.
    Databases,
    /// Restore the queue of the same moment, or empty it.
    Redis,
    /// Start the services again.
    Start,
    /// Examine the result.
    Checks,
}

impl Stage {
    /// All stages.
    pub const ALL: [Stage; 9] = [
        Stage::Preconditions,
        Stage::Configuration,
        Stage::Configure,
        Stage::Stop,
        Stage::Files,
        Stage::Databases,
        Stage::Redis,
        Stage::Start,
        Stage::Checks,
    ];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Preconditions => "preconditions",
            Stage::Configuration => "configuration",
            Stage::Configure => "configure",
            Stage::Stop => "stop",
            Stage::Files => "files",
            Stage::Databases => "databases",
            Stage::Redis => "redis",
            Stage::Start => "start",
            Stage::Checks => "checks",
        }
    }

    /// Number, from 1.
    pub fn number(self) -> usize {
        Stage::ALL.iter().position(|stage| *stage == self).unwrap_or_default() + 1
    }
}

/// Something of this machine that is moved out of the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Its path.
    pub from: PathBuf,
    /// Its new path.
    pub to: PathBuf,
    /// True if only the content of the directory moves, because it is a mount point.
    pub is_mount: bool,
    /// Names in the directory that stay, if only its content moves.
    pub fixed: Vec<String>,
    /// True once it was moved.
    pub is_done: bool,
    /// Identity of the directory that was renamed.
    #[serde(default)]
    pub moved: Option<String>,
    /// Identity of the directory that was restored in its place.
    #[serde(default)]
    pub restored: Option<String>,
}

/// Numbers of paths that could not be restored completely.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Missing paths, or paths without all of their content.
    pub paths: u64,
    /// Paths without some metadata.
    pub metadata: u64,
    /// Paths whose owner could not be set.
    pub owners: u64,
}

impl Losses {
    /// Describes those that are not 0.
    pub fn described(self) -> Vec<String> {
        let Losses { paths, metadata, owners } = self;
        let all = [
            (paths, "paths could not be restored completely, see the warnings above"),
            (metadata, "paths lack metadata, see the warnings above"),
            (owners, OWNERS_DENIED),
        ];
        let some = all.into_iter().filter(|(count, _)| *count > 0);
        some.map(|(count, text)| format!("{count} {text}")).collect()
    }
}

/// Follows the number of paths whose owner could not be set.
const OWNERS_DENIED: &str = "paths have another owner: this file system, or the rights of this \
                             container, do not permit to set it";

/// A database of the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loading {
    /// Name of the database.
    pub name: String,
    /// New names of databases of others that had this name.
    pub aside: Vec<String>,
    /// Number (oid) of the database that a rebuild made. Any other of this name is not our own.
    pub made: Option<u64>,
    /// True once it is loaded and compared.
    pub is_loaded: bool,
}

/// Mount points with the identities of their directories; `None` for a file.
pub type Mounts = BTreeMap<PathBuf, Option<String>>;

/// Progress of a rebuild.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Id of the snapshot.
    snapshot: String,
    /// Ends the names of everything that is moved out of the way.
    suffix: String,
    /// Stages whose moves are recorded.
    begun: Vec<Stage>,
    /// Mount points at, above and below the restored paths, with the identities of their directories.
    #[serde(default)]
    mounts: Option<Mounts>,
    /// The same after services were stopped.
    #[serde(default)]
    mounts_stopped: Option<Mounts>,
    /// Directory for dumps of the last call.
    #[serde(default)]
    scratch: Option<PathBuf>,
    /// True if the admin agreed to changes of data that was here.
    #[serde(default)]
    is_consented: bool,
    /// The database server, once it is known.
    #[serde(default)]
    server: Option<Identity>,
    /// Address of Redis, once it is known.
    #[serde(default)]
    redis: Option<String>,
    done: Vec<Stage>,
    /// Services that were stopped and must start again.
    stopped: Vec<String>,
    /// True if the admin's commands stopped services.
    ran_stop_commands: bool,
    /// Containers with the restart policies that they had.
    restart_policies: Vec<(String, String)>,
    #[serde(default)]
    losses: Losses,
    aside: Vec<Aside>,
    databases: Vec<Loading>,
    /// Files of a Redis that ran before it was stopped.
    #[serde(default)]
    queue: Option<Saved>,
    /// Start of the names of its append-only files.
    #[serde(default)]
    queue_log: Option<String>,
    /// File that Redis must read when it starts.
    #[serde(default)]
    restored_queue: Option<PathBuf>,
    /// Results of the stages that are not made again.
    #[serde(default)]
    checks: Vec<Check>,
    /// Commands for the admin that these stages named.
    #[serde(default)]
    left: Vec<String>,
}

/// State that an unfinished rebuild leaves on a machine.
#[derive(Debug, Default)]
pub struct Forgotten {
    /// Paths that it moved, with their new names.
    pub aside: Vec<Aside>,
    /// True if it had stopped services and not started them.
    pub has_stopped: bool,
    /// Containers that no longer start by themselves, with the restart policies that they had.
    pub policies: Vec<(String, String)>,
    /// Directory for dumps of its last call.
    pub scratch: Option<PathBuf>,
}

/// Record of a rebuild, which is written at each change.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    state: State,
    /// True if an earlier call made the record.
    pub is_continued: bool,
}

impl Record {
    /// Returns the id of the snapshot from which an unfinished rebuild restores; `None` without one.
    pub fn unfinished(state: &Path, instance: &str) -> Result<Option<String>> {
        Ok(read(&place(state, instance))?.map(|state| state.snapshot))
    }

    /// Continues the record of an unfinished rebuild, or begins a new one. `suffix` ends the names of
    /// what a new one moves out of the way. A dry run writes nothing.
    pub fn open(state: &Path, instance: &str, snapshot: &str, suffix: &str) -> Result<Record> {
        let path = place(state, instance);
        let known = read(&path)?;
        let is_continued = known.is_some();
        let state = known.unwrap_or_else(|| State {
            version: VERSION,
            snapshot: snapshot.to_owned(),
            suffix: suffix.to_owned(),
            begun: Vec::new(),
            mounts: None,
            mounts_stopped: None,
            scratch: None,
            is_consented: false,
            server: None,
            redis: None,
            done: Vec::new(),
            stopped: Vec::new(),
            ran_stop_commands: false,
            restart_policies: Vec::new(),
            losses: Losses::default(),
            aside: Vec::new(),
            databases: Vec::new(),
            queue: None,
            queue_log: None,
            restored_queue: None,
            checks: Vec::new(),
            left: Vec::new(),
        });
        Ok(Record { path, state, is_continued })
    }

    /// Removes the record of an unfinished rebuild, even an invalid one. Returns what it left behind.
    pub fn forget(state: &Path, instance: &str) -> Result<Option<Forgotten>> {
        let path = place(state, instance);
        let known = match read(&path) {
            Ok(None) => return Ok(None),
            Ok(Some(state)) => {
                let is_started = state.done.contains(&Stage::Start);
                let has_stopped = !state.stopped.is_empty() || state.ran_stop_commands;
                let policies = if is_started { Vec::new() } else { state.restart_policies };
                let has_stopped = has_stopped && !is_started;
                Forgotten { aside: state.aside, has_stopped, policies, scratch: state.scratch }
            }
            // Whether services run is then unknown.
            Err(Error::Malformed { .. }) => Forgotten { has_stopped: true, ..Forgotten::default() },
            Err(error) => return Err(error),
        };
        remove(&path)?;
        Ok(Some(known))
    }

    /// Returns true if a stage was done.
    pub fn is_done(&self, stage: Stage) -> bool {
        self.state.done.contains(&stage)
    }

    /// Records that a stage is done.
    pub fn finish(&mut self, stage: Stage) -> Result<()> {
        self.state.done.push(stage);
        self.write()
    }

    /// Returns what was moved, or will be.
    pub fn aside(&self) -> &[Aside] {
        &self.state.aside
    }

    /// Returns the end of the names of what is moved.
    pub fn suffix(&self) -> &str {
        &self.state.suffix
    }

    /// Returns the directory for dumps that the last call used.
    pub fn scratch(&self) -> Option<&Path> {
        self.state.scratch.as_deref()
    }

    /// Sets the directory for dumps, which is written with the next change.
    pub fn set_scratch(&mut self, scratch: &Path) {
        self.state.scratch = std::path::absolute(scratch).ok();
    }

    /// Returns the mount points of an unfinished rebuild.
    pub fn mounts(&self) -> Option<&Mounts> {
        self.state.mounts.as_ref()
    }

    /// Sets the mount points, which are written with the next change.
    pub fn set_mounts(&mut self, mounts: Mounts) {
        self.state.mounts = Some(mounts);
    }

    /// Returns the mount points after services were stopped.
    pub fn mounts_stopped(&self) -> Option<&Mounts> {
        self.state.mounts_stopped.as_ref()
    }

    /// Sets the mount points after services were stopped, which are written with the next change.
    pub fn set_mounts_stopped(&mut self, mounts: Mounts) {
        self.state.mounts_stopped = Some(mounts);
    }

    /// Returns true if the admin agreed in an earlier call, or does so now.
    pub fn is_consented(&self) -> bool {
        self.state.is_consented
    }

    /// Sets that the admin agrees, which is written with the next change.
    pub fn consent(&mut self) {
        self.state.is_consented = true;
    }

    /// Returns the database server on which the rebuild began.
    pub fn server(&self) -> Option<&Identity> {
        self.state.server.as_ref()
    }

    /// Sets the database server, which is written with the next change. Nothing of what was loaded
    /// into another one counts.
    pub fn set_server(&mut self, server: Identity) {
        if self.state.server.as_ref().is_some_and(|known| !known.is_same(&server)) {
            for database in &mut self.state.databases {
                (database.made, database.is_loaded) = (None, false);
            }
            self.reopen(Stage::Databases);
        }
        self.state.server = Some(server);
    }

    /// Returns the address of the Redis with which the rebuild began.
    pub fn redis(&self) -> Option<&str> {
        self.state.redis.as_deref()
    }

    /// Sets the address of Redis, which is written with the next change.
    pub fn set_redis(&mut self, address: String) {
        self.state.redis = Some(address);
    }

    /// Makes a stage to be done again, which is written with the next change.
    pub fn reopen(&mut self, stage: Stage) {
        self.state.done.retain(|done| *done != stage);
    }

    /// Returns true if a stage began: what is at the paths of its files may be restored data.
    pub fn is_begun(&self, stage: Stage) -> bool {
        self.state.begun.contains(&stage)
    }

    /// Records the moves of a stage before they are made.
    pub fn begin(&mut self, stage: Stage, aside: Vec<Aside>) -> Result<()> {
        self.state.aside.extend(aside);
        if !self.is_begun(stage) {
            self.state.begun.push(stage);
        }
        self.write()
    }

    /// Records that something was moved, with the identity of a renamed directory.
    pub fn moved(&mut self, at: usize, moved: Option<String>) -> Result<()> {
        let aside = &mut self.state.aside[at];
        (aside.is_done, aside.moved) = (true, moved);
        self.write()
    }

    /// Records the directories that were restored where others were.
    pub fn restored(&mut self) -> Result<()> {
        for aside in &mut self.state.aside {
            aside.restored = aside.restored.take().or_else(|| mounts::identity(&aside.from));
        }
        self.write()
    }

    /// Returns the services that were stopped.
    pub fn stopped(&self) -> &[String] {
        &self.state.stopped
    }

    /// Records services before they are stopped.
    pub fn will_stop(&mut self, names: &[String]) -> Result<()> {
        let new = names.iter().filter(|name| !self.state.stopped.contains(name)).cloned();
        let new: Vec<String> = new.collect();
        self.state.stopped.extend(new);
        self.write()
    }

    /// Returns true if the admin's commands stopped services.
    pub fn ran_stop_commands(&self) -> bool {
        self.state.ran_stop_commands
    }

    /// Records the admin's commands before they stop services.
    pub fn will_run_stop_commands(&mut self) -> Result<()> {
        self.state.ran_stop_commands = true;
        self.write()
    }

    /// Returns the restart policies that containers had.
    pub fn restart_policies(&self) -> &[(String, String)] {
        &self.state.restart_policies
    }

    /// Records the restart policy of a container before it is changed.
    pub fn will_change_policy(&mut self, container: &str, policy: &str) -> Result<()> {
        self.state.restart_policies.push((container.into(), policy.into()));
        self.write()
    }

    /// Returns what could not be restored completely.
    pub fn losses(&self) -> Losses {
        self.state.losses
    }

    /// Adds what could not be restored completely.
    pub fn lose(&mut self, losses: Losses) -> Result<()> {
        if losses == Losses::default() {
            return Ok(());
        }
        let known = &mut self.state.losses;
        known.paths = known.paths.saturating_add(losses.paths);
        known.metadata = known.metadata.saturating_add(losses.metadata);
        known.owners = known.owners.saturating_add(losses.owners);
        self.write()
    }

    /// Returns the files that Redis had before it was stopped.
    pub fn queue(&self) -> Option<&Saved> {
        self.state.queue.as_ref()
    }

    /// Returns the start of the names of its append-only files.
    pub fn queue_log(&self) -> Option<&str> {
        self.state.queue_log.as_deref()
    }

    /// Records the files of Redis before it is stopped, and the start of the names of its append-only
    /// files.
    pub fn set_queue(&mut self, files: Saved, log: Option<String>) -> Result<()> {
        (self.state.queue, self.state.queue_log) = (Some(files), log);
        self.write()
    }

    /// Returns the file that Redis must read.
    pub fn restored_queue(&self) -> Option<&Path> {
        self.state.restored_queue.as_deref()
    }

    /// Records the file that Redis must read.
    pub fn set_restored_queue(&mut self, path: PathBuf) -> Result<()> {
        self.state.restored_queue = Some(path);
        self.write()
    }

    /// Returns the results of the stages that are not made again.
    pub fn checks(&self) -> &[Check] {
        &self.state.checks
    }

    /// Records the result of a stage that is not made again. It replaces an earlier one of its name.
    pub fn keep(&mut self, check: Check) -> Result<()> {
        match self.state.checks.iter_mut().find(|known| known.name == check.name) {
            Some(known) => *known = check,
            None => self.state.checks.push(check),
        }
        self.write()
    }

    /// Returns the commands for the admin.
    pub fn left(&self) -> &[String] {
        &self.state.left
    }

    /// Records a command for the admin.
    pub fn leave(&mut self, command: &str) -> Result<()> {
        if !self.state.left.iter().any(|known| known == command) {
            self.state.left.push(command.to_owned());
        }
        self.write()
    }

    /// Returns the state of a database.
    pub fn loading(&self, name: &str) -> Option<&Loading> {
        self.state.databases.iter().find(|known| known.name == name)
    }

    /// Records the state of a database.
    pub fn set_loading(&mut self, loading: Loading) -> Result<()> {
        self.state.databases.retain(|known| known.name != loading.name);
        self.state.databases.push(loading);
        self.write()
    }

    /// Returns the databases that were renamed, by their old names.
    pub fn renamed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.state
            .databases
            .iter()
            .flat_map(|known| known.aside.iter().map(|aside| (known.name.as_str(), aside.as_str())))
    }

    /// Removes the record of a finished rebuild.
    pub fn close(self) -> Result<()> {
        remove(&self.path)
    }

    fn write(&self) -> Result<()> {
        let failed = |source| Error::Write { path: self.path.clone(), source };
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let text = serde_json::to_vec_pretty(&self.state);
        let text = text.map_err(|error| failed(error.into()))?;
        file::replace(&self.path, 0o600, &text)
    }
}

fn place(state: &Path, instance: &str) -> PathBuf {
    state.join(DIR).join(format!("{instance}.json"))
}

fn read(path: &Path) -> Result<Option<State>> {
    let Some(text) = file::bytes(path)? else { return Ok(None) };
    let state: State = serde_json::from_slice(&text)
        .map_err(|error| Error::Malformed { path: path.to_owned(), reason: error.to_string() })?;
    if state.version > VERSION {
        let reason = "it was written by a newer version of forgekeep".into();
        return Err(Error::Malformed { path: path.to_owned(), reason });
    }
    Ok(Some(state))
}

fn remove(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let removed = std::fs::remove_file(path).and_then(|()| file::sync_dir(dir));
    removed.map_err(|source| Error::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn a_record_is_continued_as_it_was_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = |snapshot: &str| Record::open(dir.path(), "gitlab", snapshot, "before-1");
        assert_eq!(Record::unfinished(dir.path(), "gitlab").expect("reads"), None);
        let mut record = open("aa").expect("begins");
        assert!(!record.is_continued);
        record.finish(Stage::Configuration).expect("writes");
        record.will_stop(&["puma".into()]).expect("writes");
        record.will_stop(&["puma".into(), "sidekiq".into()]).expect("writes");
        let aside = Aside { from: "/a".into(), to: "/a.before-1".into(), ..Aside::default() };
        record.begin(Stage::Files, vec![aside]).expect("writes");
        record.moved(0, None).expect("writes");
        let name = || "main".to_owned();
        let loading = Loading { name: name(), made: Some(7), ..Loading::default() };
        record.set_loading(loading).expect("writes");
        for text in ["3 rows are missing", "2 rows are missing"] {
            let check = Check::new("database-main", Verdict::Failed, text);
            record.keep(check.with_examples(["t".into()]).with_hint("look")).expect("writes");
        }
        (0..2).for_each(|_| record.leave("FLUSHALL").expect("writes"));
        let again = open("bb").expect("continues");
        assert!(again.is_continued && again.is_done(Stage::Configuration));
        assert!(again.is_begun(Stage::Files) && !again.is_begun(Stage::Redis));
        assert!(!again.is_done(Stage::Files) && again.aside()[0].is_done);
        assert_eq!(again.stopped(), ["puma", "sidekiq"]);
        assert!(again.loading("main").is_some_and(|loading| loading.made == Some(7)));
        assert_eq!(again.checks().len(), 1);
        assert_eq!(again.checks(), record.checks());
        assert_eq!(again.checks()[0].text, "2 rows are missing");
        assert_eq!(again.left(), ["FLUSHALL"]);
        // The snapshot of the first call counts.
        let unfinished = Record::unfinished(dir.path(), "gitlab").expect("reads");
        assert_eq!(unfinished.as_deref(), Some("aa"));
        again.close().expect("removes");
        assert_eq!(Record::unfinished(dir.path(), "gitlab").expect("reads"), None);
    }

    #[test]
    fn a_record_of_a_newer_version_is_not_continued() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut record = Record::open(dir.path(), "x", "aa", "s").expect("begins");
        record.state.version = VERSION + 1;
        record.write().expect("writes");
        let error = Record::open(dir.path(), "x", "aa", "s").expect_err("refused");
        assert!(error.to_string().contains("newer version"), "{error}");
    }
}
