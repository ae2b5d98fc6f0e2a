//! Runs of the program in which a system call fails.

use super::sandbox::{FORGEKEEP, Outcome, Sandbox};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What a call does instead of what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, once.
    Once(Errno),
    /// It fails from then on.
    ForGood(Errno),
    /// From then on it reads or writes a third of what it should.
    Short,
}

/// The errors that disks give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    Io = 5,
    NoSpace = 28,
}

/// Which call fails.
#[derive(Debug, Clone, Copy)]
pub struct Trip<'a> {
    /// Name of the call; several have commas between them.
    pub call: &'a str,
    /// Only calls on what is below this directory of the sandbox count.
    pub below: &'a str,
    /// Which of them, counted from 1.
    pub n: usize,
    pub fault: Fault,
}

impl Display for Trip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {} below {}: {:?}", self.call, self.n, self.below, self.fault)
    }
}

impl Trip<'_> {
    /// Runs forgekeep. Also returns how many such calls there were.
    pub fn run(&self, sandbox: &Sandbox, arguments: &[&str]) -> (Outcome, usize) {
        let root = sandbox.root().canonicalize().expect("is there");
        let below = root.join(self.below);
        let n = self.n.to_string() + if matches!(self.fault, Fault::Once(_)) { "" } else { "+" };
        let fault = match self.fault {
            Fault::Once(errno) | Fault::ForGood(errno) => (errno as i32).to_string(),
            Fault::Short => "short".to_owned(),
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
        // By another process: a file that a fork of this one has open cannot be run.
        sandbox.tool("cp").args([Path::new("trip"), &program]).run().ok();
        program
    })
}
