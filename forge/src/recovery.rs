//! What has to be undone, kept on disk before it is done.
//!
//! Whoever stops a service writes down first how to start it again. If the run is killed,
//! the next one, or `forgekeep recover`, finds that and does it.

use crate::error::{Error, Result};
use crate::file;
use crate::run::{Command, at_once};
use crate::service::control::Supervisor;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::observe::Progress;

/// Directory of the records, below that of the program's state.
const DIR: &str = "recovery";

/// How often a service is started, and with what pause.
const START_TRIES: u32 = 3;
const START_PAUSE: Duration = Duration::from_secs(1);

/// Something to undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// Start a service.
    Start {
        /// Its name.
        name: String,
        /// How.
        commands: Vec<Command>,
        /// Who knows whether it runs.
        supervisor: Option<Supervisor>,
    },
    /// Run what is to be run at the end of a run.
    Run {
        /// All of them, in this order.
        commands: Vec<Command>,
    },
    /// Let monitoring speak again. What is in it only the monitor knows.
    EndSilence(serde_json::Value),
}

impl Undo {
    fn carry_out(&self, progress: &Progress) -> Result<()> {
        match self {
            Undo::Start { name, commands, supervisor } => {
                let mut tries = 0;
                loop {
                    let done = commands
                        .iter()
                        .try_for_each(|command| command.output(progress).map(drop))
                        .and_then(|()| match supervisor {
                            Some(supervisor) => supervisor.expect_running(name, progress),
                            None => Ok(()),
                        });
                    tries += 1;
                    if done.is_ok() || tries == START_TRIES {
                        return done;
                    }
                    std::thread::sleep(START_PAUSE);
                }
            }
            Undo::Run { commands } => {
                // Each of them, whatever the one before says.
                let results = commands.iter().map(|command| command.output(progress).map(drop));
                results.collect::<Vec<_>>().into_iter().collect()
            }
            Undo::EndSilence(_) => Ok(()),
        }
    }

    /// What is done, for people.
    pub fn shown(&self) -> String {
        match self {
            Undo::Start { name, .. } => format!("start {name}"),
            Undo::Run { commands } => {
                let shown: Vec<String> = commands.iter().map(Command::shown).collect();
                format!("run {}", shown.join("; "))
            }
            Undo::EndSilence(_) => "end the silence of monitoring".into(),
        }
    }
}

/// Silences monitoring while services are down.
pub trait Monitor {
    /// Silences it for at most as long as a run may take; what it returns ends that.
    fn silence(&self) -> Option<serde_json::Value>;
    /// Ends the silence, now or some minutes ahead; gives what has to be ended once more
    /// when that time has come.
    fn end_silence(&self, silenced: &serde_json::Value) -> Option<serde_json::Value>;
}

/// What an instance's runs have to undo. Held by one process at a time.
#[derive(Debug)]
pub struct Record {
    instance: String,
    path: PathBuf,
    undo: Vec<Undo>,
    /// Holds the lock.
    _lock: File,
}

impl Record {
    /// Takes the record of an instance, with what a killed run left in it.
    pub fn open(state: &Path, instance: &str) -> Result<Record> {
        let dir = state.join(DIR);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Write { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed(&dir))?;
        let lock_path = dir.join(format!("{instance}.lock"));
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(failed(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy(instance.into())),
            Err(error) => return Err(failed(&lock_path)(error.into())),
        }
        let path = dir.join(format!("{instance}.json"));
        let undo = match file::bytes(&path)? {
            Some(text) => serde_json::from_slice(&text).map_err(|error| {
                let reason = format!("{error}; start the services by hand and remove it");
                Error::Malformed { path: path.clone(), reason }
            })?,
            None => Vec::new(),
        };
        Ok(Record { instance: instance.into(), path, undo, _lock: lock })
    }

    /// Names of the instances that have something to undo.
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

    /// Name of the instance.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// What is to be undone, the first done first.
    pub fn left(&self) -> &[Undo] {
        &self.undo
    }

    /// Notes something durably. To be called before it is done.
    pub fn note(&mut self, undo: Undo) -> Result<()> {
        self.undo.push(undo);
        self.write(&self.undo)
    }

    /// Undoes everything, the last thing first, services at once; returns what could not be done
    /// and why. What was not undone stays in the record, as does what is only due later.
    pub fn undo(&mut self, monitor: &dyn Monitor) -> Vec<(String, Error)> {
        self.undo_those(monitor, |_| true)
    }

    /// The same for what a run stopped and silenced: what it does at its end has its time yet.
    pub fn undo_stop(&mut self, monitor: &dyn Monitor) -> Vec<(String, Error)> {
        self.undo_those(monitor, |undo| !matches!(undo, Undo::Run { .. }))
    }

    fn undo_those(
        &mut self,
        monitor: &dyn Monitor,
        wanted: fn(&Undo) -> bool,
    ) -> Vec<(String, Error)> {
        let (mut failed, mut kept) = (Vec::new(), Vec::new());
        // Not the progress of the run: somebody may have asked that to stop.
        let progress = Progress::default();
        let (mut todo, others): (Vec<Undo>, Vec<Undo>) =
            std::mem::take(&mut self.undo).into_iter().partition(wanted);
        while let Some(last) = todo.pop() {
            if let Undo::EndSilence(silenced) = last {
                kept.extend(monitor.end_silence(&silenced).map(Undo::EndSilence));
            } else {
                let mut together = vec![last];
                // Services that follow each other were stopped together and start together.
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
            // What is done twice does no harm, what is forgotten does.
            let left = others.iter().chain(&todo).chain(kept.iter().rev());
            if let Err(error) = self.write(&left.cloned().collect::<Vec<_>>()) {
                failed.push(("note what is undone".into(), error));
            }
        }
        kept.reverse();
        self.undo = others;
        self.undo.extend(kept);
        failed
    }

    /// Notes that what a run does at its end is done.
    pub fn ended(&mut self) -> Result<()> {
        self.undo.retain(|undo| !matches!(undo, Undo::Run { .. }));
        self.write(&self.undo)
    }

    fn write(&self, undo: &[Undo]) -> Result<()> {
        let fail = |source| Error::Write { path: self.path.clone(), source };
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let sync_dir = || File::open(dir)?.sync_all();
        if undo.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.and_then(|()| sync_dir()).map_err(fail),
            };
        }
        let text = serde_json::to_vec_pretty(undo).map_err(|error| fail(error.into()))?;
        file::replace(&self.path, 0o600, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::control::Speaks;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Ears(RefCell<Vec<String>>);

    impl Monitor for Ears {
        fn silence(&self) -> Option<serde_json::Value> {
            None
        }
        fn end_silence(&self, silenced: &serde_json::Value) -> Option<serde_json::Value> {
            self.0.borrow_mut().push(silenced.to_string());
            // The first time it is too early.
            (silenced == 7).then(|| 8.into())
        }
    }

    fn start(name: &str, script: String) -> Undo {
        let commands = vec![Command::new(["sh", "-c", &script])];
        Undo::Start { name: name.into(), commands, supervisor: None }
    }

    #[test]
    fn what_was_left_is_undone_in_reverse_and_failures_stay() {
        let state = tempfile::tempdir().expect("a directory");
        let log = state.path().join("log");
        let says = |word: &str| format!("echo {word} >> {}", log.display());
        let mut record = Record::open(state.path(), "forge").expect("opens");
        record.note(Undo::EndSilence(7.into())).expect("writes");
        record.note(start("puma", says("puma"))).expect("writes");
        record.note(start("broken", "exit 3".into())).expect("writes");
        record.note(start("sidekiq", says("sidekiq"))).expect("writes");
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
        assert_eq!(left, ["end the silence of monitoring", "start broken"]);
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
    fn a_start_is_believed_when_the_service_runs() {
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
        assert!(failed[0].1.to_string().starts_with("puma: it does not run"), "{failed:?}");
        assert_eq!(record.left().len(), 1);
        let tries = std::fs::read_to_string(&log).expect("a log").matches("start").count();
        assert_eq!(tries, START_TRIES as usize);
    }

    #[test]
    fn a_record_that_makes_no_sense_is_not_passed_over() {
        let state = tempfile::tempdir().expect("a directory");
        drop(Record::open(state.path(), "forge").expect("opens"));
        std::fs::write(state.path().join("recovery/forge.json"), "[{").expect("writes");
        let error = Record::open(state.path(), "forge").expect_err("malformed");
        assert!(error.to_string().contains("by hand"), "{error}");
    }
}
