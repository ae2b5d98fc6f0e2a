//! Runs of the program in which a system call fails.

use super::sandbox::{FORGEKEEP, Outcome, Sandbox};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Behaviour of a failing call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails, once.
    Once(Errno),
    /// The call and later ones fail.
    ForGood(Errno),
    /// This call and later ones read or write a third of the requested bytes.
    Short,
    /// The program is killed before the call begins.
    Kill,
}

/// Errors that disks return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    Io = 5,
    NoSpace = 28,
}

/// The call that fails.
#[derive(Debug, Clone, Copy)]
pub struct Trip<'a> {
    /// Name of the call; several names are separated by commas.
    pub call: &'a str,
    /// Only calls on paths below this directory of the sandbox count.
    pub below: &'a str,
    /// Number of the call, counted from 1.
    pub n: usize,
    pub fault: Fault,
}

impl Display for Trip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {} below {}: {:?}", self.call, self.n, self.below, self.fault)
    }
}

impl Trip<'_> {
    /// Runs forgekeep. Also returns the number of such calls.
    pub fn run(&self, sandbox: &Sandbox, arguments: &[&str]) -> (Outcome, usize) {
        let root = sandbox.root().canonicalize().expect("is there");
        let below = root.join(self.below);
        let is_once = matches!(self.fault, Fault::Once(_) | Fault::Kill);
        let n = self.n.to_string() + if is_once { "" } else { "+" };
        let fault = match self.fault {
            Fault::Once(errno) | Fault::ForGood(errno) => (errno as i32).to_string(),
            Fault::Short => "short".to_owned(),
            Fault::Kill => "kill".to_owned(),
        };
        let run = sandbox.tool(program()).args([Path::new("count"), &below]);
        let run = run.args([self.call, &n, &fault, FORGEKEEP]).args(arguments);
        let outcome = run.run();
        let count = sandbox.read("count");
        let count = std::str::from_utf8(&count).ok().and_then(|count| count.trim().parse().ok());
        (outcome, count.expect("a number"))
    }
}

/// `trip.c`, compiled once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let sandbox = Sandbox::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/trip.c");
        let compile = sandbox.tool("cc").args(["-O1", "-Wall", "-o", "trip"]).args([source]);
        compile.run().ok();
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = place.join(format!("trip-{}", std::process::id()));
        std::fs::create_dir_all(place).expect("makes");
        // By another process: a file cannot be executed while a fork of this process has it open
        // for writing.
        sandbox.tool("cp").args([Path::new("trip"), &program]).run().ok();
        program
    })
}
