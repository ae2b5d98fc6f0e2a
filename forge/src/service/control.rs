//! Stops and starts the services that write.

use crate::error::{Error, Result};
use crate::process::Command;
use crate::service::step::Step;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use store::observe::Progress;

/// Control of the services that write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// No service needs to stop.
    Nothing,
    /// A supervisor stops and starts the services.
    Supervised(Supervisor),
    /// The admin's commands stop and start the services.
    Commands {
        /// Stop commands, in this order.
        stop: Vec<Step>,
        /// Start commands, in this order.
        start: Vec<Step>,
    },
}

/// A program that stops and starts services by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervisor {
    /// Command-line interface of the supervisor.
    pub speaks: Speaks,
    /// The program with the arguments before its verb.
    pub program: Vec<String>,
    /// Names of the services that write.
    pub writers: Vec<String>,
    /// True if the program must know all of them. A kind also lists services that some versions
    /// lack.
    pub needs_all: bool,
    /// Time limit of one stop or start.
    pub limit: Duration,
}

/// Command-line interface of a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speaks {
    /// `sv` and `gitlab-ctl`: `status`, `stop NAME`, `start NAME`; `run: NAME: …`.
    Runit,
    /// `systemctl`: `show NAME`, `stop NAME`, `start NAME`.
    Systemd,
    /// `docker` and `podman`: `inspect NAME`, `stop -t SECONDS NAME`, `start NAME`.
    Docker,
}

/// Seconds that a container has to end before it is killed. The default of `docker stop` is ten
/// seconds, which is too short for GitLab.
const GRACE_SECONDS: &str = "90";

/// Question about the restart policy of a container.
const POLICY: &str =
    "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";

/// Time limit of such a stop; longer than the grace period, so that it is not cut off.
const GRACE_LIMIT: Duration = Duration::from_secs(120);

/// Status of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Status {
    state: State,
    /// Identifies the current process of the service, if the supervisor shows it.
    run: Option<String>,
    /// True if the supervisor never starts it by itself.
    is_off: bool,
}

/// State of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The service does not run, and nothing has asked for it.
    Down,
    /// The service does not run yet, but its supervisor will start it.
    Starting,
    /// The service runs.
    Running,
    /// The service was asked to stop but still works.
    Stopping,
    /// The service was asked to stop, then to start again, and still works.
    Restarting,
}

impl Status {
    /// True unless the service stays down: a service that starts will write.
    fn is_running(&self) -> bool {
        self.state != State::Down
    }
}

/// A service or command to stop, and the commands to start it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Name of the service.
    pub name: String,
    /// Command that stops it.
    pub stop: Command,
    /// Commands that start it again.
    pub start: Vec<Command>,
}

impl Control {
    /// Lists what to stop now: the running services, or all the admin's commands.
    pub fn writers(&self, progress: &Progress) -> Result<Vec<Writer>> {
        match self {
            Control::Nothing => Ok(Vec::new()),
            Control::Supervised(supervisor) => supervisor.running(progress),
            Control::Commands { stop, start } => {
                let writer = |step: &Step| Writer {
                    name: step.command.shown(),
                    stop: step.command.clone(),
                    start: Vec::new(),
                };
                let mut writers: Vec<Writer> = stop.iter().map(writer).collect();
                // A start command does not belong to one stop command. All start commands run,
                // whichever service was stopped.
                if let Some(first) = writers.first_mut() {
                    first.start = start.iter().map(|step| step.command.clone()).collect();
                }
                Ok(writers)
            }
        }
    }

    /// The supervisor, which can report whether services run.
    pub fn supervisor(&self) -> Option<&Supervisor> {
        match self {
            Control::Supervised(supervisor) => Some(supervisor),
            Control::Nothing | Control::Commands { .. } => None,
        }
    }

    /// Names of all services, if they are known.
    pub fn services(&self, progress: &Progress) -> Vec<String> {
        match self {
            Control::Supervised(supervisor) if supervisor.speaks == Speaks::Runit => {
                let output = supervisor.command(&["status"]).answer(progress).unwrap_or_default();
                states(&output).map(|(_, name)| name).collect()
            }
            Control::Supervised(supervisor) if supervisor.speaks == Speaks::Systemd => {
                supervisor.writers.clone()
            }
            _ => Vec::new(),
        }
    }
}

/// Default time limit of a stop or start. GitLab's own limit is one minute.
const LIMIT: Duration = Duration::from_secs(180);

/// Interval between status checks of a stopping service.
const PAUSE: Duration = Duration::from_millis(100);

/// Time in which a supervisor obeys a stop. Between two starts of a service that ends at once, runit
/// reads no request for a second, and then starts it once more.
const OBEYS: Duration = Duration::from_secs(5);

/// Time without a status change before the services are stopped once more.
const QUIET: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Makes a supervisor from a program with the arguments before its verb, and the services that
    /// write.
    pub fn new<P, W>(speaks: Speaks, program: P, writers: W) -> Supervisor
    where
        P: IntoIterator<Item: Into<String>>,
        W: IntoIterator<Item: Into<String>>,
    {
        let program = program.into_iter().map(Into::into).collect();
        let writers = writers.into_iter().map(Into::into).collect();
        Supervisor { speaks, program, writers, needs_all: speaks == Speaks::Docker, limit: LIMIT }
    }

    fn command(&self, words: &[&str]) -> Command {
        let program = self.program.iter().map(String::as_str);
        Command::new(program.chain(words.iter().copied())).within(self.limit)
    }

    fn writer(&self, name: &str) -> Writer {
        let (name, start) = (name.to_owned(), self.command(&["start", name]));
        match self.speaks {
            Speaks::Runit | Speaks::Systemd => {
                let stop = self.command(&["stop", &name]);
                Writer { name, stop, start: vec![start] }
            }
            Speaks::Docker => {
                let stop = self.command(&["stop", "-t", GRACE_SECONDS, &name]);
                let stop = stop.within(self.limit.max(GRACE_LIMIT));
                // A stop continues when its client is gone, and a start during the stop does
                // nothing. So the start repeats the stop first, which waits for its end.
                Writer { name, start: vec![stop.clone(), start], stop }
            }
        }
    }

    /// Lists the services that write and are down, although nothing keeps them off.
    pub fn stopped(&self, progress: &Progress) -> Result<Vec<Writer>> {
        let mut stopped = Vec::new();
        for name in &self.writers {
            let is_stopped = |status: Status| status.state == State::Down && !status.is_off;
            if self.status(name, progress)?.is_some_and(is_stopped) {
                stopped.push(self.writer(name));
            }
        }
        Ok(stopped)
    }

    fn running(&self, progress: &Progress) -> Result<Vec<Writer>> {
        let (mut running, mut unknown) = (Vec::new(), Vec::new());
        for name in &self.writers {
            let is_running = self.is_running(name, progress)?;
            let Some(is_running) = is_running else {
                unknown.push(name.as_str());
                continue;
            };
            if is_running {
                running.push(self.writer(name));
            }
        }
        let is_none_known = !unknown.is_empty() && unknown.len() == self.writers.len();
        if is_none_known || (self.needs_all && !unknown.is_empty()) {
            let program = self.program.join(" ");
            let reason = format!(
                "{program} does not know the service, or does not answer; name the services to \
                 stop in `services.writers`"
            );
            return Err(Error::Service { service: unknown.join(", "), reason });
        }
        Ok(running)
    }

    /// Fails if a service does not run.
    pub fn expect_running(&self, name: &str, progress: &Progress) -> Result<()> {
        // One that is still at its end will start again.
        let runs = |status: Status| matches!(status.state, State::Running | State::Restarting);
        if self.status(name, progress)?.is_some_and(runs) {
            return Ok(());
        }
        let reason = "it is not running, although its start command succeeded; see its log";
        Err(Error::Service { service: name.into(), reason: reason.into() })
    }

    /// Returns the restart policy of a container as `docker update` takes it; `None` if the container
    /// program does not start it by itself.
    pub fn restart_policy(&self, name: &str, progress: &Progress) -> Result<Option<String>> {
        if self.speaks != Speaks::Docker {
            return Ok(None);
        }
        let answer = self.command(&["inspect", "--format", POLICY, name]).output(progress)?;
        let answer = String::from_utf8_lossy(&answer);
        let (policy, tries) = answer.trim().split_once(' ').unwrap_or((answer.trim(), "0"));
        Ok(match policy {
            "" | "no" => None,
            "on-failure" if tries != "0" => Some(format!("{policy}:{tries}")),
            policy => Some(policy.to_owned()),
        })
    }

    /// Sets the restart policy of a container.
    pub fn set_restart_policy(&self, name: &str, policy: &str, progress: &Progress) -> Result<()> {
        let option = format!("--restart={policy}");
        self.command(&["update", &option, name]).output(progress).map(drop)
    }

    /// Starts a service. A failure of the command counts only if the service does not run then.
    pub fn start(&self, name: &str, progress: &Progress) -> Result<()> {
        let started = self.command(&["start", name]).output(progress);
        match self.expect_running(name, progress) {
            Err(error) if !error.is_interrupted() => started.and(Err(error)),
            running => running,
        }
    }

    /// Formats the program with the arguments before its verb.
    pub fn shown(&self) -> String {
        self.program.join(" ")
    }

    /// Stops a service and waits until its status is down. A failure of the command counts only if
    /// the service runs on as before: `sv` gives up after seven seconds, long before the limit.
    pub fn stop(&self, writer: &Writer, progress: &Progress) -> Result<()> {
        let before = self.known_status(&writer.name, progress)?.run;
        // Interrupting the client of docker would not end the stop.
        let own = Progress::default();
        let is_docker = self.speaks == Speaks::Docker;
        let started = Instant::now();
        let stopped = writer.stop.output(if is_docker { &own } else { progress }).map(drop);
        if stopped.as_ref().is_err_and(Error::is_interrupted) {
            return stopped;
        }
        let asked = Instant::now();
        loop {
            progress.check()?;
            let status = self.known_status(&writer.name, progress)?;
            match status.state {
                State::Down => return Ok(()),
                State::Stopping if started.elapsed() < self.limit => std::thread::sleep(PAUSE),
                State::Stopping => {
                    let limit = crate::error::seconds(self.limit);
                    let reason = format!("it is still running {limit} after the stop command");
                    return Err(Error::Service { service: writer.name.clone(), reason });
                }
                // The command failed, and the service never stopped.
                State::Running if status.run.is_some() && status.run == before => {
                    stopped?;
                    let reason = "it is still running, although its stop command succeeded";
                    return Err(Error::Service {
                        service: writer.name.clone(),
                        reason: reason.into(),
                    });
                }
                _ if asked.elapsed() < OBEYS.min(self.limit) => std::thread::sleep(PAUSE),
                State::Running | State::Starting | State::Restarting => {
                    return Err(Error::Restarted { services: vec![writer.name.clone()] });
                }
            }
        }
    }

    /// Returns the services that run among those that write.
    pub fn running_writers(&self, stopped: &[String], progress: &Progress) -> Result<Vec<String>> {
        let mut running = Vec::new();
        for name in &self.writers {
            let is_running = if stopped.contains(name) {
                self.known_status(name, progress)?.is_running()
            } else {
                self.is_running(name, progress)? == Some(true)
            };
            if is_running {
                running.push(name.clone());
            }
        }
        Ok(running)
    }

    /// Identifies the downtime of a stopped service, if the supervisor shows that.
    pub fn downtime(&self, name: &str, progress: &Progress) -> Result<Option<Downtime>> {
        let words = match self.speaks {
            Speaks::Runit => vec!["status", name],
            Speaks::Systemd => vec!["show", "--property=InactiveEnterTimestampMonotonic", name],
            Speaks::Docker => vec!["inspect", "--format", "{{.State.StartedAt}}", name],
        };
        let answer = self.command(&words).answer(progress)?;
        let text = String::from_utf8_lossy(&answer);
        Ok(match self.speaks {
            Speaks::Runit => {
                let of_it =
                    |line: &&str| states(line.as_bytes()).any(|(_, named)| is_same(&named, name));
                text.lines().find(of_it).and_then(seconds_down).map(Downtime::Lasts)
            }
            Speaks::Systemd => {
                let mark = text.trim().strip_prefix("InactiveEnterTimestampMonotonic=");
                mark.map(|mark| Downtime::Since(mark.to_owned()))
            }
            Speaks::Docker => Some(text.trim())
                .filter(|mark| !mark.is_empty())
                .map(|mark| Downtime::Since(mark.to_owned())),
        })
    }

    /// Waits until the status of the services has not changed for a while, or until the limit.
    pub fn settle(&self, progress: &Progress) -> Result<()> {
        let statuses = || -> Result<Vec<Option<Status>>> {
            self.writers.iter().map(|name| self.status(name, progress)).collect()
        };
        let (started, mut since, mut before) = (Instant::now(), Instant::now(), statuses()?);
        while since.elapsed() < QUIET && started.elapsed() < self.limit {
            progress.check()?;
            std::thread::sleep(PAUSE);
            let now = statuses()?;
            if now != before {
                (since, before) = (Instant::now(), now);
            }
        }
        Ok(())
    }

    /// Returns `None` if there is no such service.
    fn is_running(&self, name: &str, progress: &Progress) -> Result<Option<bool>> {
        Ok(self.status(name, progress)?.map(|status| status.is_running()))
    }

    /// Fails if the supervisor does not show the status of a service: it may run.
    fn known_status(&self, name: &str, progress: &Progress) -> Result<Status> {
        self.status(name, progress)?.ok_or_else(|| {
            let reason = format!("{} no longer shows its status", self.program.join(" "));
            Error::Service { service: name.into(), reason }
        })
    }

    /// Returns `None` if there is no such service.
    fn status(&self, name: &str, progress: &Progress) -> Result<Option<Status>> {
        match self.speaks {
            Speaks::Runit => {
                // The exit code differs between programs and versions; the text does not.
                let answer = self.command(&["status", name]).answer(progress)?;
                let text = String::from_utf8_lossy(&answer);
                let of_it =
                    |line: &&str| states(line.as_bytes()).any(|(_, named)| is_same(&named, name));
                let status = text.lines().find(of_it).map(runit_status);
                let unwatched = |line: &&str| line.contains(UNWATCHED) && is_of(line, name);
                match text.lines().find(unwatched).filter(|_| status.is_none()) {
                    None => Ok(status),
                    Some(line) => Err(Error::Service {
                        service: name.into(),
                        reason: format!(
                            "it may run, although its supervisor does not (`{}`); stop it, or \
                             start its supervisor",
                            line.trim()
                        ),
                    }),
                }
            }
            Speaks::Systemd => {
                // `is-active` reports an unknown unit as inactive.
                let words = ["show", "--property=LoadState,ActiveState,MainPID", name];
                let answer = self.command(&words).answer(progress)?;
                let text = String::from_utf8_lossy(&answer);
                let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
                let is_unknown = answer.is_empty() || value("LoadState=") == Some("not-found");
                let state = match value("ActiveState=").unwrap_or_default() {
                    "active" | "reloading" => State::Running,
                    "activating" => State::Starting,
                    "deactivating" => State::Stopping,
                    _ => State::Down,
                };
                let run = value("MainPID=").map(str::to_owned);
                Ok((!is_unknown).then_some(Status { state, run, is_off: false }))
            }
            Speaks::Docker => {
                let words = ["inspect", "--format", "{{.State.Running}}", name];
                let answer = self.command(&words).answer(progress)?;
                let status = |state| Some(Status { state, run: None, is_off: false });
                Ok(match answer.trim_ascii() {
                    b"true" => status(State::Running),
                    b"false" => status(State::Down),
                    _ => None,
                })
            }
        }
    }
}

/// Downtime of a stopped service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Downtime {
    /// A mark that changes with each stop or start.
    Since(String),
    /// Its length.
    Lasts(Duration),
}

/// Tolerance of a downtime. Runit prints whole seconds, of a clock that may be set.
const DOWNTIME_TOLERANCE: Duration = Duration::from_secs(2);

impl Downtime {
    /// Returns true if the service ran in between: `self` was read some time after `first`.
    pub fn is_later_than(&self, first: &Downtime, elapsed: Duration) -> bool {
        match (self, first) {
            (Downtime::Since(now), Downtime::Since(then)) => now != then,
            (Downtime::Lasts(now), _) => *now + DOWNTIME_TOLERANCE < elapsed,
            _ => false,
        }
    }
}

/// Parses the seconds in a line of runit, `down: NAME: 12s, normally up`.
fn seconds_down(line: &str) -> Option<Duration> {
    let own = line.split(';').next()?.strip_prefix("down: ")?;
    let number = own.split_once(": ")?.1.split('s').next()?;
    number.trim().parse().ok().map(Duration::from_secs)
}

/// Parses a line of runit; the text after `;` describes the log service.
fn runit_status(line: &str) -> Status {
    let own = line.split(';').next().unwrap_or_default();
    let state = if own.starts_with("down") {
        if own.contains(", want up") { State::Starting } else { State::Down }
    } else if own.contains(", want down") {
        State::Stopping
    } else if own.starts_with("finish") {
        // A script that runs after the end of the service.
        State::Starting
    } else if own.contains(", got TERM") {
        State::Restarting
    } else {
        State::Running
    };
    let pid =
        own.split_once("(pid ").and_then(|(_, rest)| Some(rest.split_once(')')?.0.to_owned()));
    let is_off = state == State::Down && !own.contains("normally up");
    Status { state, run: pid, is_off }
}

/// Parses state and name in lines of runit: `run: NAME: (pid 1) 2s; run: log: (pid 3) 2s`.
fn states(output: &[u8]) -> impl Iterator<Item = (String, String)> {
    let text = String::from_utf8_lossy(output).into_owned();
    let lines: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let (state, rest) = line.split_once(": ")?;
            let is_state = ["run", "down", "finish"].contains(&state);
            is_state.then_some((state.to_owned(), rest.split_once(':')?.0.to_owned()))
        })
        .collect();
    lines.into_iter()
}

/// Text of `sv` about a service whose `runsv` ended. The service itself may go on.
const UNWATCHED: &str = "runsv not running";

/// Returns true if a line, `fail: NAME: …`, is about a service.
fn is_of(line: &str, name: &str) -> bool {
    line.split(": ").nth(1).is_some_and(|shown| is_same(shown.trim_end_matches(':'), name))
}

/// Compares names by their last component, because `sv` prints the path that it was given.
fn is_same(shown: &str, name: &str) -> bool {
    let last = |text: &str| text.rsplit('/').next().map(str::to_owned);
    last(shown) == last(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runit_status_lines_are_parsed() {
        let output = b"run: puma: (pid 12) 3s; run: log: (pid 11) 3s\n\
            down: sidekiq: 1s, normally up\n\
            fail: nginx: unable to change to service directory\n";
        let states: Vec<_> = states(output).collect();
        let expected = [("run", "puma"), ("down", "sidekiq")];
        assert_eq!(states, expected.map(|(state, name)| (state.to_owned(), name.to_owned())));
        let state = |line| runit_status(line).state;
        let draining = "run: sidekiq: (pid 12) 9s, want down, got TERM; run: log: (pid 1) 2s";
        assert_eq!(state(draining), State::Stopping);
        assert_eq!(runit_status(draining).run.as_deref(), Some("12"));
        assert_eq!(state("run: puma: (pid 7) 2s; run: log: (pid 1) 2s, want down"), State::Running);
        assert_eq!(state("run: puma: (pid 7) 2s, got TERM"), State::Restarting);
        assert_eq!(state("finish: puma: (pid 7) 2s, want down"), State::Stopping);
        assert_eq!(state("finish: puma: (pid 7) 2s"), State::Starting);
        assert_eq!(state("down: puma: 1s, normally up; run: log: (pid 1) 2s"), State::Down);
        assert_eq!(state("down: puma: 1s, normally up, want up"), State::Starting);
        assert!(runit_status("down: puma: 1s; run: log: (pid 1) 2s").is_off);
        assert!(!runit_status("down: puma: 1s, normally up; run: log: (pid 1) 2s").is_off);
        let seconds = |line| seconds_down(line).map(|time| time.as_secs());
        assert_eq!(seconds("down: puma: 12s, normally up; run: log: (pid 1) 99s"), Some(12));
        assert_eq!(seconds("run: puma: (pid 7) 2s; run: log: (pid 1) 2s"), None);
        assert!(is_same("/opt/service/puma", "puma"));
        assert!(!is_same("puma", "sidekiq"));
    }

    #[test]
    fn a_start_and_stop_in_between_shortens_the_downtime() {
        let lasts = |seconds| Downtime::Lasts(Duration::from_secs(seconds));
        let since = |mark: &str| Downtime::Since(mark.into());
        let elapsed = Duration::from_secs(30);
        assert!(lasts(9).is_later_than(&lasts(0), elapsed));
        assert!(!lasts(29).is_later_than(&lasts(0), elapsed));
        assert!(!lasts(500).is_later_than(&lasts(470), elapsed));
        assert!(since("b").is_later_than(&since("a"), elapsed));
        assert!(!since("a").is_later_than(&since("a"), elapsed));
    }

    #[test]
    fn a_service_whose_status_is_unknown_is_not_taken_for_stopped() {
        let stop = Command::new(["true"]);
        let writer = Writer { name: "puma".into(), stop, start: Vec::new() };
        let supervisor = Supervisor::new(Speaks::Runit, ["false"], ["puma"]);
        let progress = Progress::default();
        let error = supervisor.stop(&writer, &progress).expect_err("no status").to_string();
        assert_eq!(error, "puma: false no longer shows its status");
        let error = supervisor.running_writers(&["puma".into()], &progress);
        error.expect_err("no status");
        assert_eq!(supervisor.running_writers(&[], &progress).expect("no answer"), [""; 0]);
    }

    #[test]
    fn a_service_that_ends_at_once_is_stopped_as_soon_as_its_supervisor_obeys() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("sv");
        let answers = "cd $(dirname $0); test $1 = status || exit 0; echo >>asked
            case $(wc -l <asked) in
            1|2) echo 'down: puma: 0s, normally up, want up';;
            3) echo 'run: puma: (pid 12) 0s';;
            4) echo 'run: puma: (pid 12) 0s, want down, got TERM';;
            *) echo \"${1#status}down: puma: 0s, normally up\";;
            esac";
        std::fs::write(&script, answers).expect("writes");
        let program = ["sh".into(), script.display().to_string()];
        let supervisor = Supervisor::new(Speaks::Runit, program, ["puma"]);
        let stop = supervisor.command(&["stop", "puma"]);
        let writer = Writer { name: "puma".into(), stop, start: Vec::new() };
        supervisor.stop(&writer, &Progress::default()).expect("stops");
        std::fs::write(&script, "echo 'down: puma: 0s, normally up, want up'").expect("writes");
        let supervisor = Supervisor { limit: Duration::from_millis(300), ..supervisor };
        let error = supervisor.stop(&writer, &Progress::default()).expect_err("it starts");
        assert!(matches!(error, Error::Restarted { .. }), "{error}");
    }

    #[test]
    fn a_service_without_its_supervisor_is_not_taken_for_unknown() {
        let progress = Progress::default();
        let of = |text: &str| {
            let program = ["sh", "-c", &format!("echo '{text}'"), "sv"];
            Supervisor::new(Speaks::Runit, program, ["sidekiq"])
        };
        let gone = of("fail: sidekiq: runsv not running");
        let error = gone.running(&progress).expect_err("it may run").to_string();
        assert!(error.starts_with("sidekiq: it may run"), "{error}");
        assert!(error.contains("`fail: sidekiq: runsv not running`"), "{error}");
        for text in ["fail: puma: runsv not running", "fail: sidekiq: unable to change"] {
            assert_eq!(of(text).status("sidekiq", &progress).expect("answers"), None, "{text}");
        }
    }

    #[test]
    fn systemd_unit_states_are_parsed() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("systemctl");
        // The name of a unit is its state.
        let answer = "test $1 = show || exit 3
            case $3 in unknown) echo LoadState=not-found;; *) echo LoadState=loaded;; esac
            echo ActiveState=$3";
        std::fs::write(&script, answer).expect("writes");
        let program = ["sh".into(), script.display().to_string()];
        let writers = ["active", "inactive", "failed", "unknown"];
        let mut supervisor = Supervisor::new(Speaks::Systemd, program, writers);
        supervisor.needs_all = true;
        let error = Control::Supervised(supervisor.clone()).writers(&Progress::default());
        let error = error.expect_err("one is unknown").to_string();
        assert!(error.starts_with("unknown: ") && error.contains("services.writers"), "{error}");
        supervisor.needs_all = false;
        let control = Control::Supervised(supervisor);
        let writers = control.writers(&Progress::default()).expect("answers");
        assert_eq!(writers.len(), 1, "{writers:?}");
        assert!(writers[0].stop.shown().ends_with("systemctl stop active"), "{writers:?}");
        assert!(writers[0].start[0].shown().ends_with("systemctl start active"), "{writers:?}");
    }
}
