//! A directory of its own for a test, and the program run in it.
//!
//! Everything runs with the sandbox as its working directory and
//! `FORGEKEEP_STORE` set to `store`, so that a test says `backup source` and
//! means just that.

use super::tree;
use serde_json::Value;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

/// The program under test.
pub const FORGEKEEP: &str = env!("CARGO_BIN_EXE_forgekeep");

/// User and group of those who own nothing.
pub const NOBODY: u32 = 65534;

/// Fails a test that only root can run: one that returned silently would look like a success.
pub fn need_root() {
    assert!(is_root(), "this test needs mounts, owners or services: run it as root");
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that is removed with everything in it.
pub struct Sandbox {
    dir: Option<tempfile::TempDir>,
}

impl Sandbox {
    /// An empty one.
    pub fn new() -> Sandbox {
        Sandbox { dir: Some(tempfile::tempdir().expect("a temporary directory")) }
    }

    /// An empty one in memory where there is room for it: for tests that sync thousands of
    /// times.
    pub fn in_memory() -> Sandbox {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Sandbox { dir: Some(tempfile::tempdir_in(place).expect("a temporary directory")) }
    }

    /// One with an empty store in it.
    pub fn with_store() -> Sandbox {
        let sandbox = Sandbox::new();
        sandbox.run(["init"]).ok();
        sandbox
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        self.dir.as_ref().expect("there until it is dropped").path()
    }

    /// A path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }

    /// The same as text, for arguments and comparisons.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("temporary directories have readable names").to_owned()
    }

    /// `SNAPSHOT:PATH` for a path in the sandbox.
    pub fn at(&self, snapshot: &str, name: &str) -> String {
        format!("{snapshot}:{}", self.text(name))
    }

    /// Writes a file and the directories that lead to it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
        std::fs::write(path, content).expect("writes a file");
    }

    /// The content of a file.
    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Whether there is something of this name.
    pub fn has(&self, name: impl AsRef<Path>) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Removes a file or directory that is there.
    pub fn remove(&self, name: impl AsRef<Path>) {
        let path = self.path(name);
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            tree::make_writable_and_remove(&path).expect("removes");
        } else {
            std::fs::remove_file(&path).expect("removes");
        }
    }

    /// Prepares a run of the program.
    pub fn forgekeep<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Run {
        self.tool(FORGEKEEP).args(arguments)
    }

    /// Runs the program to its end.
    pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Outcome {
        self.forgekeep(arguments).run()
    }

    /// Runs the program with `--json`, which has to succeed; returns the lines.
    pub fn json<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Vec<Value> {
        self.forgekeep(arguments).args(["--json"]).run().ok().json()
    }

    /// Backs up paths; returns the summary.
    pub fn backup<I: IntoIterator<Item: AsRef<OsStr>>>(&self, paths: I) -> Value {
        let lines = self.forgekeep(["backup", "--json"]).args(paths).run().ok().json();
        lines.last().expect("a summary").clone()
    }

    /// Restores into a fresh directory of this name.
    pub fn restore(&self, place: &str, target: &str) {
        assert!(!self.has(target), "{target} is there already");
        self.run(["restore", place, "--target", target]).ok();
    }

    /// The ids of all snapshots, oldest first.
    pub fn snapshot_ids(&self) -> Vec<String> {
        let lines = self.json(["snapshots"]);
        let snapshots = lines.iter().filter(|line| line["message_type"] == "snapshot");
        snapshots.map(|line| line["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Asserts that a check of everything finds nothing.
    pub fn assert_clean(&self) {
        self.run(["check", "--read-data"]).ok();
    }

    /// Prepares a run of another program.
    pub fn tool(&self, program: impl AsRef<OsStr>) -> Run {
        Run::of(program.as_ref()).within(self.root())
    }

    /// Makes the sandbox everyone's, with a copy of the program in it; returns
    /// a run of that copy by somebody without privileges.
    pub fn as_nobody<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Run {
        if !is_root() {
            return self.forgekeep(arguments);
        }
        let program = self.path("program");
        if !program.exists() {
            let all = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(self.root(), all).expect("opens the sandbox");
            // By another process: a file that a fork of this one has open cannot be run.
            self.tool("cp").args([Path::new(FORGEKEEP), &program]).run().ok();
        }
        let mut run = self.tool(&program).args(arguments);
        run.command.uid(NOBODY).gid(NOBODY);
        run
    }

    /// Gives something to [`NOBODY`], when root asks.
    pub fn give_to_nobody(&self, name: &str) {
        if is_root() {
            self.tool("chown").args(["-R", "65534:65534", name]).run().ok();
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            // What a test took its permissions from goes as well.
            let _ = tree::make_writable_and_remove(dir.path());
        }
    }
}

/// A process to be started.
pub struct Run {
    command: Command,
    input: Vec<u8>,
    shown: String,
}

impl Run {
    /// A run of any program, in the working directory of the tests.
    pub fn program(program: impl AsRef<OsStr>) -> Run {
        Run::of(program.as_ref())
    }

    /// A run of any program that is killed when it takes more than two minutes.
    pub fn limited(program: impl AsRef<OsStr>) -> Run {
        Run::of("timeout".as_ref()).args(["--kill-after=5", "120"]).args([program])
    }

    /// What is going to be started, for those who want to start it themselves.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    #[expect(clippy::disallowed_methods, reason = "the one door of the tests to other processes")]
    fn of(program: &OsStr) -> Run {
        let mut command = Command::new(program);
        command
            .env("FORGEKEEP_STORE", "store")
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .env("RUST_BACKTRACE", "1")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .envs([("GIT_AUTHOR_NAME", "A"), ("GIT_AUTHOR_EMAIL", "a@example.org")])
            .envs([("GIT_COMMITTER_NAME", "A"), ("GIT_COMMITTER_EMAIL", "a@example.org")]);
        let shown = program.to_string_lossy().into_owned();
        Run { command, input: Vec::new(), shown }
    }

    /// With these arguments as well.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Run {
        for argument in arguments {
            self.shown += " ";
            self.shown += &argument.as_ref().to_string_lossy();
            self.command.arg(argument);
        }
        self
    }

    /// With another working directory.
    pub fn within(mut self, dir: &Path) -> Run {
        self.command.current_dir(dir);
        self
    }

    /// With a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Run {
        self.command.env(name, value);
        self
    }

    /// Without a variable of the environment.
    pub fn without_env(mut self, name: &str) -> Run {
        self.command.env_remove(name);
        self
    }

    /// With this on standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Run {
        self.input = bytes.into();
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.shown));
        let mut stdin = child.stdin.take().expect("piped");
        let input = self.input;
        // Whoever does not want all of its input may leave it.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        Running { child, shown: self.shown, writer, stdout, stderr }
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.start().wait()
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks ends the collection.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// A process that runs.
pub struct Running {
    child: Child,
    shown: String,
    writer: JoinHandle<()>,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("kills");
    }

    /// Sends SIGINT.
    pub fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupts");
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("can be asked").is_some()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Outcome {
        let status = self.child.wait().expect("can be waited for");
        self.writer.join().expect("no panic");
        let stdout = self.stdout.join().expect("no panic");
        let stderr = self.stderr.join().expect("no panic");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (output, errors) = (text(&stdout), text(&stderr));
        Outcome { status, shown: self.shown, stdout: output, stderr: errors, bytes: stdout }
    }
}

/// What a process did.
#[derive(Debug)]
pub struct Outcome {
    status: ExitStatus,
    shown: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Standard output as it was.
    pub bytes: Vec<u8>,
}

impl Outcome {
    /// The exit code, unless a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Whether SIGKILL ended it.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// Asserts that it succeeded.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        self.ends_with(0)
    }

    /// Asserts the exit code, and that nothing panicked.
    #[track_caller]
    pub fn ends_with(self, code: i32) -> Outcome {
        assert_eq!(self.code(), Some(code), "{}", self.told());
        self.without_panic()
    }

    /// Asserts that it failed with this code, that the first line of what it
    /// says has all of `words`, and that a next step follows.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Outcome {
        let outcome = self.ends_with(code);
        for word in words {
            assert!(outcome.stderr.contains(word), "{word:?} is not in: {}", outcome.told());
        }
        let says = outcome.stderr.lines().any(|line| line.starts_with("forgekeep: "));
        let advises = outcome.stderr.lines().any(|line| line.starts_with("  "));
        assert!(says && advises, "no reason or no next step: {}", outcome.told());
        outcome
    }

    #[track_caller]
    fn without_panic(self) -> Outcome {
        for word in ["panicked", "stack backtrace", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(word), "{}", self.told());
        }
        self
    }

    /// Standard output as JSON lines, each of which says what it is.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line)
                    .unwrap_or_else(|error| panic!("{error}: {line}; {}", self.told()));
                assert!(value["message_type"].is_string(), "no message_type: {line}");
                value
            })
            .collect()
    }

    /// Everything known of the run, for messages.
    pub fn told(&self) -> String {
        format!(
            "{} ended with {}\n--- stdout\n{}--- stderr\n{}",
            self.shown, self.status, self.stdout, self.stderr
        )
    }
}

/// Numbers that look random and are the same in every run.
pub struct Dice(u64);

impl Dice {
    /// Another seed, other numbers.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next number (splitmix64).
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    /// Bytes that nothing can compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.roll().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
