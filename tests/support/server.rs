//! Servers: child processes that end with the test, even if it is killed.

use super::accounts::Account;
use super::sandbox::Run;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Limit for operations that normally take a moment.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition is true. Panics after [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(comes_true(PATIENCE, is_so), "{what}: not after {PATIENCE:?}");
}

/// Returns true if a condition becomes true within the time limit.
pub fn comes_true(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A process that runs until it is stopped or dropped.
pub struct Server {
    child: Child,
    log: PathBuf,
    /// Signals that end it, the mildest first.
    endings: &'static [Signal],
}

impl Server {
    /// Starts a program as `account` in `/`, with its output in the file `log`. If the thread that
    /// starts it dies, it gets the first of `endings`.
    pub fn start(
        account: Account,
        arguments: &[&str],
        log: &Path,
        endings: &'static [Signal],
    ) -> Server {
        let at_death = match endings.first() {
            Some(&Signal::HUP) => "HUP",
            Some(&Signal::INT) => "INT",
            Some(&Signal::TERM) => "TERM",
            _ => "KILL",
        };
        let setpriv = Run::program("setpriv").args(["--pdeathsig", at_death]);
        let mut run = account.options(setpriv).args(arguments).within(Path::new("/"));
        let output = File::options().create(true).append(true).open(log).expect("a log");
        let errors = output.try_clone().expect("a second handle");
        let command = run.command();
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().expect("starts");
        Server { child, log: log.to_owned(), endings }
    }

    /// Waits until it is ready. Panics with its log if it ends instead.
    #[track_caller]
    pub fn wait_until(&mut self, mut is_ready: impl FnMut() -> bool) {
        let mut has_ended = false;
        let is_so = comes_true(PATIENCE, || {
            has_ended = self.has_ended();
            has_ended || is_ready()
        });
        assert!(is_so && !has_ended, "not ready; its log:\n{}", self.log());
    }

    /// Returns its output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).expect("a log")).into_owned()
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. An ended process keeps its id until it is waited for, so no other process
    /// gets the signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("sends");
    }

    /// Returns true if it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("can be asked").is_some()
    }

    /// Ends it with increasingly strong signals.
    pub fn stop(&mut self) {
        let forces = self.endings.iter().chain(&[Signal::KILL]);
        for &force in forces {
            if self.has_ended() {
                return;
            }
            // A stopped process does not react to other signals.
            self.signal(Signal::CONT);
            self.signal(force);
            let limit = Duration::from_secs(15);
            if comes_true(limit, || self.has_ended()) {
                return;
            }
        }
        // A panic here would hide why the test failed.
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
