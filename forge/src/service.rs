//! The services that an instance runs on: how each is asked, copied, stopped.

pub mod control;
pub mod postgres;
pub mod redis;

use crate::run::Command;
use std::path::PathBuf;

/// Where the clients of a service run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// The command that leads into a container, such as `docker exec -i NAME`.
    pub into: Vec<String>,
    /// Directories with the programs, best first; without any, the usual ones. In a container only
    /// the first counts, for nobody looks into it.
    pub bin: Vec<PathBuf>,
    /// User of this machine who runs them.
    pub user: Option<String>,
}

impl Reach {
    /// A command to run `program` there.
    pub fn command<I: IntoIterator<Item: Into<String>>>(&self, program: &str, rest: I) -> Command {
        let is_here = self.into.is_empty();
        let mut places = self.bin.iter().map(|dir| dir.join(program));
        let found = places.find(|path| !is_here || path.exists());
        let program = found.map_or_else(|| program.to_owned(), |path| path.display().to_string());
        let words = self.into.iter().cloned().chain([program]);
        Command::new(words.chain(rest.into_iter().map(Into::into))).by(self.user.as_deref())
    }

    /// Name of the user who runs them, where it is not the usual one: in the container, if they run
    /// in one.
    pub fn runs_as(&self) -> Option<&str> {
        let option = self.into.iter().position(|word| word == "--user");
        let inside = option.and_then(|at| self.into.get(at + 1)).map(String::as_str);
        inside.or(self.user.as_deref())
    }
}

/// A password, which is handed to a client in its environment and shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}
