//! Undo steps, recorded on disk before the actions that they undo.
//!
//! A backup records how to start a service before it stops it. If the process is killed, the next
//! run or `forgekeep recover` reads the record and starts the service.

use crate::error::{Error, Result};
use crate::file;
use crate::process::{Command, at_once};
use crate::service::control::Supervisor;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::entry::Displayed;
use store::observe::Progress;

/// Directory of the records, inside the state directory.
const DIR: &str = "recovery";

/// Number of attempts to start a service, and the pause between them.
const START_TRIES: u32 = 3;
const START_PAUSE: Duration = Duration::from_secs(1);

/// A step that undoes an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// Start a service.
    Start {
        /// Name of the service.
        name: String,
        /// Commands that start it.
        commands: Vec<Command>,
        /// Supervisor that knows the state of the service; `None` without one.
        supervisor: Option<Supervisor>,
    },
    /// Run the admin's commands for the end of a run.
    Run {
        /// All commands, in this order.
        commands: Vec<Command>,
    },
    /// End a silence of monitoring. Only the monitor interprets the value.
    EndSilence(serde_json::Value),
}

impl Undo {
    fn carry_out(&self, progress: &Progress) -> Result<()> {
        match self {
            Undo::Start { name, commands, supervisor } => {
                let mut tries = 0;
                loop {
                    let result = run_all(commands, progress);
                    // A running service counts as started, even if the command failed.
                    let done =
                        match supervisor.as_ref().map(|known| known.expect_running(name, progress))
                        {
                            Some(Ok(())) => Ok(()),
                            Some(Err(error)) => result.and(Err(error)),
                            None => result,
                        };
                    tries += 1;
                    if done.is_ok() || tries == START_TRIES {
                        return done;
                    }
                    std::thread::sleep(START_PAUSE);
                }
            }
            Undo::Run { commands } => run_all(commands, progress),
            Undo::EndSilence(_) => Ok(()),
        }
    }

    /// Returns true if both start the same service, or both end a run, or are equal.
    fn is_same_as(&self, other: &Undo) -> bool {
        match (self, other) {
            (Undo::Start { name, .. }, Undo::Start { name: other, .. }) => name == other,
            (Undo::Run { .. }, Undo::Run { .. }) => true,
            _ => self == other,
        }
    }

    /// Description of the step, for messages.
    pub fn shown(&self) -> String {
        match self {
            Undo::Start { name, commands, .. } if *name == named(commands) => {
                format!("start services with `{name}`")
            }
            Undo::Start { name, .. } => format!("start {name}"),
            Undo::Run { commands } => format!("run {}", named(commands)),
            Undo::EndSilence(_) => "end the silence in monitoring".into(),
        }
    }
}

/// Runs every command, even after a failure. Returns the first error.
fn run_all(commands: &[Command], progress: &Progress) -> Result<()> {
    let results = commands.iter().map(|command| command.output(progress).map(drop));
    results.collect::<Vec<_>>().into_iter().collect()
}

/// Name for the admin's commands, because the services that they start are unknown.
pub fn named(commands: &[Command]) -> String {
    commands.iter().map(Command::shown).collect::<Vec<_>>().join("; ")
}

/// Silences monitoring while services are down.
pub trait Monitor {
    /// Describes the silence that [`Monitor::silence`] will create; `None` if there is nothing to
    /// silence. Changes nothing yet. Ending a silence that never began is harmless.
    fn plan_silence(&self) -> Option<serde_json::Value>;
    /// Creates the planned silence, for at most as long as a run may take. Failures are reported as
    /// warnings. After a request to stop in `progress`, it waits no longer.
    fn silence(&self, planned: &serde_json::Value, progress: &Progress);
    /// Ends the silence, now or some minutes later. Returns the silence that the caller must
    /// end again later.
    fn end_silence(&self, silenced: &serde_json::Value) -> Option<serde_json::Value>;
}

/// Steps that the runs of an instance have to undo. One process at a time holds the record.
#[derive(Debug)]
pub struct Record {
    instance: String,
    path: PathBuf,
    undo: Vec<Undo>,
    /// Holds the lock while the file is open; `None` in a directory that takes no file.
    _lock: Option<File>,
    /// Error of a file system without locks, or of a directory that takes no file.
    no_lock: Option<io::Error>,
}

impl Record {
    /// Locks and reads the record of an instance, with the steps that a killed run left.
    pub fn open(state: &Path, instance: &str) -> Result<Record> {
        let mut record = Record::locked(state, instance)?;
        if let Some(text) = file::bytes(&record.path)? {
            record.undo = serde_json::from_slice(&text).map_err(|error| {
                let (path, instance) = (record.path.clone(), instance.into());
                Error::Record { path, instance, reason: error.to_string() }
            })?;
        }
        Ok(record)
    }

    /// Locks the record of an instance without reading it. In a read-only or full directory, the
    /// record has no lock, and only a run without steps to undo succeeds.
    fn locked(state: &Path, instance: &str) -> Result<Record> {
        let dir = state.join(DIR);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Write { path, source }
        };
        let path = dir.join(format!("{instance}.json"));
        let lock_path = dir.join(format!("{instance}.lock"));
        let lock = match lock_file(&dir, &lock_path) {
            Ok(lock) => lock,
            Err(error) if takes_no_file(&error) => {
                let (instance, no_lock) = (instance.into(), Some(error));
                return Ok(Record { instance, path, undo: Vec::new(), _lock: None, no_lock });
            }
            Err(error) if dir.is_dir() => return Err(failed(&lock_path)(error)),
            Err(error) => return Err(failed(&dir)(error)),
        };
        let no_lock = match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => None,
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy(instance.into())),
            Err(error @ (Errno::NOLCK | Errno::NOSYS | Errno::NOTSUP | Errno::INVAL)) => {
                Some(error.into())
            }
            Err(error) => return Err(failed(&lock_path)(error.into())),
        };
        let (instance, _lock) = (instance.into(), Some(lock));
        Ok(Record { instance, path, undo: Vec::new(), _lock, no_lock })
    }

    /// Reason why no lock keeps out another run of this instance; `None` if the lock is held.
    pub fn no_lock(&self) -> Option<&io::Error> {
        self.no_lock.as_ref()
    }

    /// Names of the instances with steps to undo.
    pub fn instances(state: &Path) -> Result<Vec<String>> {
        let dir = state.join(DIR);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::Read { path: dir, source }),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| Error::Read { path: dir.clone(), source })?;
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Describes the steps that a killed run left, in the order of undoing them. `None` while another
    /// run of the instance works.
    pub fn steps(state: &Path, instance: &str) -> Result<Option<Vec<String>>> {
        // Without a record, nothing is locked.
        if !Record::instances(state)?.iter().any(|name| name == instance) {
            return Ok(Some(Vec::new()));
        }
        match Record::open(state, instance) {
            Ok(record) => Ok(Some(record.undo.iter().rev().map(Undo::shown).collect())),
            Err(Error::Busy(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Name of the instance.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Steps to undo, oldest first.
    pub fn left(&self) -> &[Undo] {
        &self.undo
    }

    /// Records an undo step durably. Call this before the action. Replaces the same step that
    /// failed in earlier runs.
    pub fn note(&mut self, undo: Undo) -> Result<()> {
        self.undo.retain(|known| !known.is_same_as(&undo));
        self.undo.push(undo);
        self.write(&self.undo)
    }

    /// Records durably how to end a silence, then silences monitoring.
    pub fn silence(&mut self, monitor: &dyn Monitor, progress: &Progress) -> Result<()> {
        let Some(planned) = monitor.plan_silence() else { return Ok(()) };
        self.note(Undo::EndSilence(planned.clone()))?;
        monitor.silence(&planned, progress);
        Ok(())
    }

    /// Drops the record of an instance, even an invalid one. Passes each dropped step to `say`
    /// first. Returns true if there were any steps.
    pub fn forget(state: &Path, instance: &str, say: &mut dyn FnMut(&str)) -> Result<bool> {
        let (mut record, known) = match Record::open(state, instance) {
            Ok(record) => {
                let known: Vec<String> = record.undo.iter().map(Undo::shown).collect();
                (record, known)
            }
            Err(Error::Record { path, reason, .. }) => {
                let known =
                    vec![format!("{}, which is not a valid record ({reason})", path.displayed())];
                (Record::locked(state, instance)?, known)
            }
            Err(error) => return Err(error),
        };
        known.iter().rev().for_each(|one| say(one));
        record.undo.clear();
        record.write(&[])?;
        Ok(!known.is_empty())
    }

    /// Undoes everything, newest step first, adjacent services in parallel. Returns the failed
    /// steps with their errors. Failed steps, and steps that are due later, stay in the record.
    pub fn undo(&mut self, monitor: &dyn Monitor) -> Vec<(String, Error)> {
        self.undo_those(monitor, |_| true)
    }

    /// Like [`Record::undo`], but keeps the commands for the end of the run, which has not come
    /// yet.
    pub fn undo_stop(&mut self, monitor: &dyn Monitor) -> Vec<(String, Error)> {
        self.undo_those(monitor, |undo| !matches!(undo, Undo::Run { .. }))
    }

    fn undo_those(
        &mut self,
        monitor: &dyn Monitor,
        wanted: fn(&Undo) -> bool,
    ) -> Vec<(String, Error)> {
        let (mut failed, mut kept) = (Vec::new(), Vec::new());
        // A request to stop the run must not stop this.
        let progress = Progress::default();
        let (mut todo, others): (Vec<Undo>, Vec<Undo>) =
            std::mem::take(&mut self.undo).into_iter().partition(wanted);
        while let Some(last) = todo.pop() {
            if let Undo::EndSilence(silenced) = last {
                let left = monitor.end_silence(&silenced).map(Undo::EndSilence);
                // A silence that cannot be ended stays recorded; an equal one is not added again.
                kept.extend(left.filter(|left| !kept.contains(left)));
            } else {
                let mut together = vec![last];
                // Adjacent services were stopped in parallel and start in parallel.
                while let Some(before) = todo.pop_if(|undo| {
                    matches!((&*undo, &together[0]), (Undo::Start { .. }, Undo::Start { .. }))
                }) {
                    together.push(before);
                }
                let results = at_once(&together, |undo| undo.carry_out(&progress));
                for (undo, result) in together.into_iter().zip(results) {
                    if let Err(error) = result {
                        failed.push((undo.shown(), error));
                        kept.push(undo);
                    }
                }
            }
            // Written after every step: a repeated step is harmless, a forgotten one is not.
            let left = others.iter().chain(&todo).chain(kept.iter().rev());
            if let Err(error) = self.write(&left.cloned().collect::<Vec<_>>()) {
                failed.push(("update the recovery record".into(), error));
            }
        }
        kept.reverse();
        self.undo = others;
        self.undo.extend(kept);
        failed
    }

    /// Removes the executed end commands.
    pub fn ended(&mut self) -> Result<()> {
        self.undo.retain(|undo| !matches!(undo, Undo::Run { .. }));
        self.write(&self.undo)
    }

    fn write(&self, undo: &[Undo]) -> Result<()> {
        let fail = |source| Error::Write { path: self.path.clone(), source };
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        if undo.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                // A read-only file system refuses to remove even a file that does not exist.
                Err(_) if self.path.try_exists().is_ok_and(|exists| !exists) => Ok(()),
                removed => removed.and_then(|()| file::sync_dir(dir)).map_err(fail),
            };
        }
        let text = serde_json::to_vec_pretty(undo).map_err(|error| fail(error.into()))?;
        file::replace(&self.path, 0o600, &text)
    }
}

/// Opens the file to lock. In a read-only directory it can only be read, which suffices for a lock.
fn lock_file(dir: &Path, path: &Path) -> io::Result<File> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let opened = made.and_then(|()| options.open(path));
    opened.or_else(
        |error| if takes_no_file(&error) { File::open(path).or(Err(error)) } else { Err(error) },
    )
}

/// Returns true if a directory takes no new file, because it is read-only or full.
fn takes_no_file(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::control::Speaks;
    use std::cell::RefCell;

    #[test]
    fn a_record_in_a_directory_that_takes_no_file_fails_only_for_steps() {
        // Nobody can make a directory there, not even root.
        let mut record = Record::open(Path::new("/sys"), "forge").expect("opens");
        assert!(record.no_lock().is_some());
        record.ended().expect("there is nothing to remove");
        let error = record.note(Undo::EndSilence(7.into())).expect_err("not writable");
        assert!(error.to_string().starts_with("cannot write /sys/recovery/"), "{error}");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("file"), "").expect("writes");
        let error = Record::open(&dir.path().join("file"), "forge").expect_err("a file");
        assert!(error.to_string().contains("/file/recovery: Not a directory"), "{error}");
    }

    #[derive(Default)]
    struct Ears(RefCell<Vec<String>>);

    impl Monitor for Ears {
        fn plan_silence(&self) -> Option<serde_json::Value> {
            Some(7.into())
        }
        fn silence(&self, planned: &serde_json::Value, _: &Progress) {
            self.0.borrow_mut().push(format!("silence {planned}"));
        }
        fn end_silence(&self, silenced: &serde_json::Value) -> Option<serde_json::Value> {
            self.0.borrow_mut().push(silenced.to_string());
            // The first attempt is too early.
            (silenced == 7).then(|| 8.into())
        }
    }

    fn start(name: &str, script: String) -> Undo {
        let commands = vec![Command::new(["sh", "-c", &script])];
        Undo::Start { name: name.into(), commands, supervisor: None }
    }

    #[test]
    fn recovery_undoes_steps_in_reverse_and_keeps_failures() {
        let state = tempfile::tempdir().expect("a directory");
        let log = state.path().join("log");
        let append = |word: &str| format!("echo {word} >> {}", log.display());
        let mut record = Record::open(state.path(), "forge").expect("opens");
        record.note(Undo::EndSilence(7.into())).expect("writes");
        record.note(start("puma", append("puma"))).expect("writes");
        record.note(start("broken", "exit 3".into())).expect("writes");
        record.note(start("sidekiq", append("sidekiq"))).expect("writes");
        let busy = Record::open(state.path(), "forge").expect_err("held");
        assert!(matches!(busy, Error::Busy(_)), "{busy}");
        drop(record); // as if it had been killed

        assert_eq!(Record::instances(state.path()).expect("lists"), ["forge"]);
        let mut record = Record::open(state.path(), "forge").expect("opens");
        assert_eq!(record.left().len(), 4);
        let ears = Ears::default();
        let failed = record.undo(&ears);
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, "start broken");
        let log = std::fs::read_to_string(&log).expect("a log");
        let mut started: Vec<&str> = log.lines().collect();
        started.sort_unstable();
        assert_eq!(started, ["puma", "sidekiq"]);
        assert_eq!(*ears.0.borrow(), ["7"]);
        drop(record);

        let mut record = Record::open(state.path(), "forge").expect("opens");
        let left: Vec<String> = record.left().iter().map(Undo::shown).collect();
        assert_eq!(left, ["end the silence in monitoring", "start broken"]);
        record.undo[1] = start("whole", "true".into());
        let end = state.path().join("end");
        let command = Command::new(["touch", end.to_str().expect("readable")]);
        record.undo.insert(0, Undo::Run { commands: vec![command] });
        assert!(record.undo_stop(&ears).is_empty());
        assert!(!end.exists() && record.left().len() == 1, "the end has not come");
        assert!(record.undo(&ears).is_empty());
        assert!(end.exists());
        drop(record);
        assert!(Record::instances(state.path()).expect("lists").is_empty());
    }

    #[test]
    fn a_start_succeeds_only_if_the_service_runs() {
        let state = tempfile::tempdir().expect("a directory");
        let script = state.path().join("sv");
        let log = state.path().join("log");
        let text = "echo $1 >> LOG; test $1 = status && echo \"down: puma: 0s, normally up\"; true";
        std::fs::write(&script, text.replace("LOG", &log.display().to_string())).expect("writes");
        let program = ["sh".to_owned(), script.display().to_string()];
        let supervisor = Supervisor::new(Speaks::Runit, program, ["puma"]);
        let commands = vec![Command::new(["sh", &script.display().to_string(), "start", "puma"])];
        let undo = Undo::Start { name: "puma".into(), commands, supervisor: Some(supervisor) };
        let mut record = Record::open(state.path(), "forge").expect("opens");
        record.note(undo).expect("writes");
        let failed = record.undo(&Ears::default());
        assert!(failed[0].1.to_string().starts_with("puma: it is not running"), "{failed:?}");
        assert_eq!(record.left().len(), 1);
        let tries = std::fs::read_to_string(&log).expect("a log").matches("start").count();
        assert_eq!(tries, START_TRIES as usize);
    }

    #[test]
    fn repeated_failed_starts_are_recorded_once() {
        let state = tempfile::tempdir().expect("a directory");
        let mut record = Record::open(state.path(), "forge").expect("opens");
        for _ in 0..3 {
            record.note(start("puma", "false".into())).expect("notes");
            record.note(Undo::Run { commands: vec![Command::new(["false"])] }).expect("notes");
            assert_eq!(record.undo(&Ears::default()).len(), 2);
            assert_eq!(record.left().len(), 2);
        }
    }

    #[test]
    fn a_malformed_record_is_an_error_and_can_be_dropped() {
        let state = tempfile::tempdir().expect("a directory");
        drop(Record::open(state.path(), "forge").expect("opens"));
        std::fs::write(state.path().join("recovery/forge.json"), "[{").expect("writes");
        let error = Record::open(state.path(), "forge").expect_err("malformed");
        assert!(matches!(error, Error::Record { .. }), "{error}");
        let forget = || {
            let mut warnings = Vec::new();
            let was =
                Record::forget(state.path(), "forge", &mut |text| warnings.push(text.to_owned()));
            (was.expect("forgets"), warnings)
        };
        let (was, warnings) = forget();
        assert!(was && warnings[0].contains("forge.json"), "{warnings:?}");
        assert_eq!(forget(), (false, Vec::new()));
        Record::open(state.path(), "forge").expect("opens");
    }

    #[test]
    fn a_silence_is_recorded_before_it_begins() {
        struct Looks<'a>(&'a Path, RefCell<Option<String>>);
        impl Monitor for Looks<'_> {
            fn plan_silence(&self) -> Option<serde_json::Value> {
                Some("a name".into())
            }
            fn silence(&self, planned: &serde_json::Value, _: &Progress) {
                assert_eq!(planned, "a name");
                let record = self.0.join("recovery/forge.json");
                *self.1.borrow_mut() = std::fs::read_to_string(record).ok();
            }
            fn end_silence(&self, _: &serde_json::Value) -> Option<serde_json::Value> {
                None
            }
        }
        let state = tempfile::tempdir().expect("a directory");
        let mut record = Record::open(state.path(), "forge").expect("opens");
        let looks = Looks(state.path(), RefCell::default());
        record.silence(&looks, &Progress::default()).expect("notes");
        let seen = looks.1.take().expect("a record");
        assert!(seen.contains("end-silence") && seen.contains("a name"), "{seen}");
    }

    #[test]
    fn unended_silences_stay_single_and_all_starts_are_tried() {
        let state = tempfile::tempdir().expect("a directory");
        let mark = state.path().join("mark");
        let mut record = Record::open(state.path(), "forge").expect("opens");
        let ears = Ears::default();
        for _ in 0..3 {
            record.silence(&ears, &Progress::default()).expect("notes");
            assert!(record.undo(&ears).is_empty());
            // The first attempt is too early, and no later one is made.
            assert_eq!(record.left(), [Undo::EndSilence(8.into())]);
            record.undo[0] = Undo::EndSilence(7.into());
        }
        record.undo.clear();
        let command = |words: &[&str]| Command::new(words.iter().copied());
        let commands = vec![command(&["false"]), command(&["touch", mark.to_str().expect("text")])];
        let name = named(&commands);
        record.note(Undo::Start { name, commands, supervisor: None }).expect("notes");
        let failed = record.undo(&ears);
        assert!(failed[0].0.starts_with("start services with `false; touch "), "{failed:?}");
        assert!(mark.exists());
    }
}
