//! A real runit that supervises services in a directory.

use super::accounts::Account;
use super::sandbox::{Outcome, Run};
use super::server::{Server, Signal, comes_true, wait_until};
use rustix::process::{Pid, kill_process_group};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A supervisor that runs until it is dropped, together with its services.
pub struct Runit {
    dir: PathBuf,
    supervisor: Server,
}

impl Runit {
    /// Supervises the services in a directory. Each is a directory, or a link to one, with a script
    /// `run`.
    pub fn start(dir: &Path, log: &Path) -> Runit {
        let text = dir.to_str().expect("a readable path");
        let arguments = ["runsvdir", "-P", text];
        // HUP makes it end its services; TERM would leave them.
        let supervisor = Server::start(Account::root(), &arguments, log, &[Signal::HUP]);
        Runit { dir: dir.to_owned(), supervisor }
    }

    /// Adds a service that runs this script. The service starts within five seconds.
    pub fn add(&self, name: &str, script: &str) {
        write_service(&self.dir.join(name), script);
    }

    /// Runs `sv` with a command for a service.
    pub fn sv(&self, command: &[&str], service: &str) -> Outcome {
        Run::limited("sv").env("SVDIR", &self.dir).args(command).args([service]).run()
    }

    /// Returns the output of `sv status` for a service: `run: …` or `down: …`.
    pub fn status(&self, service: &str) -> String {
        self.sv(&["status"], service).stdout
    }

    /// Returns true if a service runs.
    pub fn is_up(&self, service: &str) -> bool {
        self.status(service).starts_with("run: ")
    }

    /// Waits until all services run.
    pub fn wait_until_up(&self) {
        for service in self.services() {
            wait_until("the service is up", || self.is_up(&service));
        }
    }

    /// Returns the names of all services.
    pub fn services(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).expect("a directory of services");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> =
            names.map(|name| name.into_string().expect("a readable name")).collect();
        names.sort();
        names
    }

    /// Returns the process of a service if it runs.
    pub fn process(&self, service: &str) -> Option<u32> {
        let pid = std::fs::read_to_string(self.dir.join(service).join("supervise/pid"));
        pid.ok()?.trim().parse().ok()
    }
}

impl Drop for Runit {
    fn drop(&mut self) {
        let services = self.services();
        let names = services.iter().map(String::as_str);
        // A service that ignores this is killed; all of them take three seconds at most.
        Run::limited("sv")
            .env("SVDIR", &self.dir)
            .args(["-w", "3", "force-stop"])
            .args(names)
            .run();
        let supervised = children_of(self.supervisor.id());
        self.supervisor.stop();
        // They get a signal to end, but no one waits for them any more. Each leads a process group,
        // which holds everything that its service left behind.
        for process in supervised {
            comes_true(Duration::from_secs(10), || has_ended(process));
            let group = Pid::from_raw(process).expect("no process is 0");
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Creates the directory of a service.
pub fn write_service(dir: &Path, script: &str) {
    std::fs::create_dir_all(dir).expect("a directory");
    // The script must be complete from the start, because the supervisor may read it at any time.
    let new = dir.join("run.new");
    std::fs::write(&new, script).expect("writes");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    std::fs::rename(new, dir.join("run")).expect("renames");
}

/// Returns the children of a process.
pub fn children_of(process: u32) -> Vec<i32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().map(|id| id.parse().expect("a number")).collect()
}

/// Returns true if a process has ended, even if its parent has not waited for it.
pub fn has_ended(process: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    }
}
