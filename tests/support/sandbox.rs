//! A directory of its own for a test, and runs of the program in it.
//!
//! Every run has the sandbox as its working directory and `FORGEKEEP_STORE` set to `store`. A test
//! can therefore run plain commands such as `backup source`.

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

/// User and group that own nothing.
pub const NOBODY: u32 = 65534;

/// Fails a test that only root can run: one that returned silently would look like a success.
pub fn need_root() {
    assert!(is_root(), "this test needs mounts, owners or services: run it as root");
}

/// Returns true if the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that is removed with everything in it.
pub struct Sandbox {
    dir: Option<tempfile::TempDir>,
}

impl Sandbox {
    /// Creates an empty sandbox.
    pub fn new() -> Sandbox {
        Sandbox { dir: Some(tempfile::tempdir().expect("a temporary directory")) }
    }

    /// Creates an empty sandbox, in memory if there is space, for tests that sync thousands of
    /// times.
    pub fn in_memory() -> Sandbox {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Sandbox { dir: Some(tempfile::tempdir_in(place).expect("a temporary directory")) }
    }

    /// Creates a sandbox with an empty store.
    pub fn with_store() -> Sandbox {
        let sandbox = Sandbox::new();
        sandbox.run(["init"]).ok();
        sandbox
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        self.dir.as_ref().expect("there until it is dropped").path()
    }

    /// Returns a path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }

    /// Returns a path in it as text, for arguments and comparisons.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("temporary directories have readable names").to_owned()
    }

    /// Returns `SNAPSHOT:PATH` for a path in the sandbox.
    pub fn at(&self, snapshot: &str, name: &str) -> String {
        format!("{snapshot}:{}", self.text(name))
    }

    /// Writes a file and creates the directories above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
        std::fs::write(path, content).expect("writes a file");
    }

    /// Returns the content of a file.
    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Returns true if an object of this name exists.
    pub fn has(&self, name: impl AsRef<Path>) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Removes an existing file or directory.
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

    /// Runs the program with `--json`, asserts success and returns the lines.
    pub fn json<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Vec<Value> {
        self.forgekeep(arguments).args(["--json"]).run().ok().json()
    }

    /// Backs up paths and returns the summary.
    pub fn backup<I: IntoIterator<Item: AsRef<OsStr>>>(&self, paths: I) -> Value {
        let lines = self.forgekeep(["backup", "--json"]).args(paths).run().ok().json();
        lines.last().expect("a summary").clone()
    }

    /// Restores into a new directory of this name.
    pub fn restore(&self, place: &str, target: &str) {
        assert!(!self.has(target), "{target} is there already");
        self.run(["restore", place, "--target", target]).ok();
    }

    /// Returns the ids of all snapshots, oldest first.
    pub fn snapshot_ids(&self) -> Vec<String> {
        let lines = self.json(["snapshots"]);
        let snapshots = lines.iter().filter(|line| line["message_type"] == "snapshot");
        snapshots.map(|line| line["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Returns the id of the newest snapshot of any source.
    pub fn newest(&self) -> String {
        self.snapshot_ids().pop().expect("a snapshot")
    }

    /// Asserts that a full check finds nothing.
    pub fn assert_clean(&self) {
        self.run(["check", "--read-data"]).ok();
    }

    /// Prepares a run of another program.
    pub fn tool(&self, program: impl AsRef<OsStr>) -> Run {
        Run::of(program.as_ref()).within(self.root())
    }

    /// Prepares a run of a shell script in a mount namespace of its own. `$FK` is the program.
    pub fn in_mount_namespace(&self, script: &str) -> Run {
        let words = ["--mount", "--propagation", "private", "sh", "-c", script];
        Run::limited("unshare").args(words).within(self.root()).env("FK", FORGEKEEP)
    }

    /// Makes the sandbox accessible to everyone, with a copy of the program in it. Prepares a run
    /// of that copy by a user without privileges.
    pub fn as_nobody<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Run {
        if !is_root() {
            return self.forgekeep(arguments);
        }
        let program = self.path("program");
        if !program.exists() {
            let all = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(self.root(), all).expect("opens the sandbox");
            // By another process: a file cannot be executed while a fork of this process has it
            // open for writing.
            self.tool("cp").args([Path::new(FORGEKEEP), &program]).run().ok();
        }
        let mut run = self.tool(&program).args(arguments);
        run.command.uid(NOBODY).gid(NOBODY);
        run
    }

    /// Gives a path to [`NOBODY`] if this process is root.
    pub fn give_to_nobody(&self, name: &str) {
        if is_root() {
            self.tool("chown").args(["-R", "65534:65534", name]).run().ok();
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            // Also removes paths whose permissions a test took away.
            let _ = tree::make_writable_and_remove(dir.path());
        }
    }
}

/// A process to start.
pub struct Run {
    command: Command,
    input: Vec<u8>,
    shown: String,
}

impl Run {
    /// Prepares a run of any program, in the working directory of the tests.
    pub fn program(program: impl AsRef<OsStr>) -> Run {
        Run::of(program.as_ref())
    }

    /// Prepares a run of any program that is killed after two minutes.
    pub fn limited(program: impl AsRef<OsStr>) -> Run {
        Run::of("timeout".as_ref()).args(["--kill-after=5", "120"]).args([program])
    }

    /// Returns the command, for callers that start it themselves.
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

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Run {
        for argument in arguments {
            self.shown += " ";
            self.shown += &argument.as_ref().to_string_lossy();
            self.command.arg(argument);
        }
        self
    }

    /// Sets another working directory.
    pub fn within(mut self, dir: &Path) -> Run {
        self.command.current_dir(dir);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Run {
        self.command.env(name, value);
        self
    }

    /// Removes an environment variable.
    pub fn without_env(mut self, name: &str) -> Run {
        self.command.env_remove(name);
        self
    }

    /// Sets the bytes of standard input.
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
        // A process may leave some of its input unread.
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
        // A broken pipe ends the collection.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// A running process.
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

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns true if it has ended.
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

/// Result of a process.
#[derive(Debug)]
pub struct Outcome {
    status: ExitStatus,
    shown: String,
    /// Standard output as text.
    pub stdout: String,
    /// Standard error as text.
    pub stderr: String,
    /// Bytes of standard output.
    pub bytes: Vec<u8>,
}

impl Outcome {
    /// Returns the exit code, or `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Returns true if SIGKILL ended it.
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
        assert_eq!(self.code(), Some(code), "{}", self.all_output());
        self.without_panic()
    }

    /// Asserts that it failed with this code, that the first line of its message contains all of
    /// `words`, and that a next step follows.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Outcome {
        let outcome = self.ends_with(code);
        for word in words {
            assert!(outcome.stderr.contains(word), "{word:?} is not in: {}", outcome.all_output());
        }
        let says = outcome.stderr.lines().any(|line| line.starts_with("forgekeep: "));
        let advises = outcome.stderr.lines().any(|line| line.starts_with("  "));
        assert!(says && advises, "no reason or no next step: {}", outcome.all_output());
        outcome
    }

    #[track_caller]
    fn without_panic(self) -> Outcome {
        for word in ["panicked", "stack backtrace", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(word), "{}", self.all_output());
        }
        self
    }

    /// Returns standard output as JSON lines, each with its message type.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line)
                    .unwrap_or_else(|error| panic!("{error}: {line}; {}", self.all_output()));
                assert!(value["message_type"].is_string(), "no message_type: {line}");
                if let Some(fault) = super::json_lines::fault(&value) {
                    panic!("{fault}: {line}");
                }
                value
            })
            .collect()
    }

    /// Returns everything known about the run, for messages.
    pub fn all_output(&self) -> String {
        format!(
            "{} ended with {}\n--- stdout\n{}--- stderr\n{}",
            self.shown, self.status, self.stdout, self.stderr
        )
    }
}

/// Pseudorandom numbers that are the same in every run.
pub struct Dice(u64);

impl Dice {
    /// Creates a generator. Each seed gives other numbers.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Returns the next number (splitmix64).
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    /// Returns incompressible bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.roll().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
