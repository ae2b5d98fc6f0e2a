//! Services of an instance: how to query, copy and stop them.

pub mod configured;
pub mod control;
pub mod postgres;
pub mod redis;
pub mod step;

use crate::process::Command;
use crate::settings::Settings;
use std::path::PathBuf;

/// Names and addresses of this machine itself.
pub const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Names that containers have for the machine that runs them. The machine itself does not know them.
pub const HOST_OF_CONTAINERS: [&str; 3] =
    ["host.docker.internal", "host.containers.internal", "gateway.docker.internal"];

/// Environment in which the clients of a service run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Command prefix that enters a container, such as `docker exec -i NAME`.
    pub into: Vec<String>,
    /// Directories with the programs, best first; if empty, the usual ones. In a container only the
    /// first counts, because its files are not examined.
    pub bin: Vec<PathBuf>,
    /// User of this machine that runs the clients.
    pub user: Option<String>,
}

impl Reach {
    /// Makes a command that runs `program` there.
    pub fn command<I: IntoIterator<Item: Into<String>>>(&self, program: &str, rest: I) -> Command {
        let is_here = self.into.is_empty();
        let mut places = self.bin.iter().map(|dir| dir.join(program));
        let found = places.find(|path| !is_here || path.exists());
        let program = found.map_or_else(|| program.to_owned(), |path| path.display().to_string());
        let words = self.into.iter().cloned().chain([program]);
        Command::new(words.chain(rest.into_iter().map(Into::into))).by(self.user.as_deref())
    }

    /// Returns the name of the container with a colon after it; nothing without one.
    pub fn place(&self) -> String {
        self.into.last().map(|name| format!("{name}:")).unwrap_or_default()
    }

    /// User that runs the clients, if set: inside the container if they run in one.
    pub fn runs_as(&self) -> Option<&str> {
        let option = self.into.iter().position(|word| word == "--user");
        let inside = option.and_then(|at| self.into.get(at + 1)).map(String::as_str);
        inside.or(self.user.as_deref())
    }
}

/// Command prefix to run a program in a running container. It passes the named variables by name,
/// if they are set: any user can read the values among a command's arguments.
pub fn into_container(settings: &Settings, name: &str, variables: &[&str]) -> Vec<String> {
    let words = settings.docker.iter().map(String::as_str).chain(["exec", "-i"]);
    let words = words.chain(variables.iter().flat_map(|variable| ["--env", variable]));
    words.chain([name]).map(String::from).collect()
}

/// A password. It reaches a client through the environment and is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}
