//! Child processes. All programs are started here.
//!
//! A child runs as its own user, with the environment of a login, in its own process group and
//! without a terminal. A time limit ends it, and the size of its captured output is bounded.

use crate::error::{Error, Result};
use crate::mask::{is_name_of_secret, masked};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::entry::is_deceptive;
use store::observe::Progress;

/// Number of bytes kept from the end of a child's standard error.
const STDERR_BYTES: usize = 4 << 10;
/// Largest captured standard output of a child, in bytes.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Interval between checks for a request to stop.
const TICK: Duration = Duration::from_millis(100);
/// Time to read on after a child has ended, for the rest of its output in the pipe.
const LINGER: Duration = Duration::from_millis(300);
/// Time limit of a program that answers a question at once, such as one about a container.
pub const QUESTION: Duration = Duration::from_secs(20);
/// A limit that no child reaches.
const NO_LIMIT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Search path of children, like that of a root login.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run, with its user, environment and time limit.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// User that runs it; our own if not given.
    pub user: Option<String>,
    /// Variables in addition to those of a login.
    pub env: BTreeMap<String, String>,
    /// Longest run time. If the output is streamed: longest time without output.
    pub limit: Duration,
}

impl std::fmt::Debug for Command {
    /// Omits the values of variables, which may contain a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command")
            .field("argv", &self.argv)
            .field("user", &self.user)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Command {
    /// Makes a command that runs as our own user, for at most a minute.
    pub fn new<I: IntoIterator<Item: Into<String>>>(argv: I) -> Command {
        let argv = argv.into_iter().map(Into::into).collect();
        Command { argv, user: None, env: BTreeMap::new(), limit: Duration::from_secs(60) }
    }

    /// Sets the user.
    pub fn by(mut self, user: Option<&str>) -> Command {
        self.user = user.map(str::to_owned);
        self
    }

    /// Sets the time limit.
    pub fn within(mut self, limit: Duration) -> Command {
        self.limit = limit;
        self
    }

    /// Adds a variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Command {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Formats the command as a shell would accept it, without its environment.
    pub fn shown(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut is_secret = false;
        for word in &self.argv {
            words.push(if is_secret { "…".into() } else { quoted(&masked(word)) });
            is_secret = word.starts_with('-') && is_name_of_secret(word);
        }
        words.join(" ")
    }

    /// Runs it to its end. Returns its standard output, or an error if it fails.
    pub fn output(&self, progress: &Progress) -> Result<Vec<u8>> {
        let (mut running, status, output) = self.run(progress)?;
        if status.success() {
            return Ok(output);
        }
        let end = &output[output.len().saturating_sub(STDERR_BYTES)..];
        Err(running.failed(status, end))
    }

    /// Runs it to its end. Returns its standard output, which is a secret: an error never quotes
    /// it, not even where standard error repeats it.
    pub fn secret(&self, progress: &Progress) -> Result<Vec<u8>> {
        let (mut running, status, output) = self.run(progress)?;
        if status.success() {
            return Ok(output);
        }
        Err(running.failed(status, b"").without(&String::from_utf8_lossy(&output)))
    }

    /// Runs it to its end. Returns its standard output, whatever its exit code.
    pub fn answer(&self, progress: &Progress) -> Result<Vec<u8>> {
        self.run(progress).map(|(_, _, output)| output)
    }

    fn run(&self, progress: &Progress) -> Result<(Running, ExitStatus, Vec<u8>)> {
        let started = Instant::now();
        let mut running = self.start(Stdin::Nothing)?;
        let mut stdout = running.stdout(progress, Patience::End);
        let (mut output, mut ended, mut looked) = (Vec::new(), None, started);
        let mut piece = vec![0; 64 << 10];
        loop {
            match stdout.piece(&mut piece) {
                Ok(Some(0)) => break,
                Ok(Some(len)) => output.extend_from_slice(&piece[..len]),
                Ok(None) => {}
                Err(error) => return Err(running.unread(error, progress)),
            }
            // A background process that it started may hold the pipe open, and write to it,
            // forever.
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                if running.has_ended()? && ended.get_or_insert(looked).elapsed() >= LINGER {
                    break;
                }
            }
            if output.len() > OUTPUT_BYTES_MAX {
                let reason = format!("it printed more than {} MiB", OUTPUT_BYTES_MAX >> 20);
                return Err(Error::Service { service: self.shown(), reason });
            }
        }
        let left = self.limit.saturating_sub(started.elapsed());
        let status = running.status(left, progress)?;
        Ok((running, status, output))
    }

    /// Starts it. The caller must read its output.
    pub fn start(&self, stdin: Stdin) -> Result<Running> {
        let fail = |source| Error::Start { command: self.shown(), source };
        let program = self.argv.first().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
        if program.contains('/') && !Path::new(program).exists() {
            return Err(fail(rustix::io::Errno::NOENT.into()));
        }
        let login = self.login()?;
        let switch = login.as_ref().map(Login::switch).unwrap_or_default();
        let words: Vec<&String> = switch.iter().chain(&self.argv).collect();
        #[expect(clippy::disallowed_methods, reason = "the door")]
        let mut command = std::process::Command::new(words[0]);
        let input = match stdin {
            Stdin::Nothing => Stdio::null(),
            Stdin::Piped => Stdio::piped(),
        };
        command
            .args(&words[1..])
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/");
        if let Some(Login { user, .. }) = login {
            command
                .env("HOME", &user.dir)
                .env("SHELL", &user.shell)
                .env("USER", &user.name)
                .env("LOGNAME", &user.name);
        }
        command.envs(&self.env);
        let mut child = command.spawn().map_err(fail)?;
        let errors = Arc::new(Mutex::new(Vec::new()));
        let listener = child.stderr.take().map(|stderr| {
            let errors = Arc::clone(&errors);
            std::thread::Builder::new().spawn(move || listen(stderr, &errors))
        });
        let listener = listener.transpose().map_err(|error| {
            // At a limit of processes, nobody would read its errors.
            let _ = child.kill().and_then(|()| child.wait());
            fail(error)
        })?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let shown = self.shown();
        Ok(Running {
            child,
            shown,
            limit: self.limit,
            stdin,
            stdout,
            errors,
            listener,
            is_over: false,
        })
    }

    /// The user that runs it. `None` if our own uid has no account, and hence no home.
    fn login(&self) -> Result<Option<Login>> {
        let own = nix::unistd::geteuid();
        let user = match &self.user {
            Some(name) => {
                let user = nix::unistd::User::from_name(name).ok().flatten();
                let absent = || Error::NoUser { user: name.clone(), command: self.shown() };
                Some(user.ok_or_else(absent)?)
            }
            None => nix::unistd::User::from_uid(own).ok().flatten(),
        };
        Ok(user.map(|user| Login { is_other: user.uid != own, user }))
    }
}

/// A user that runs a child.
struct Login {
    user: nix::unistd::User,
    /// True if it is not our own user.
    is_other: bool,
}

impl Login {
    /// Command prefix that switches to this user, with all groups of a login.
    fn switch(&self) -> Vec<String> {
        if !self.is_other {
            return Vec::new();
        }
        let (uid, gid) = (self.user.uid, self.user.gid);
        let words = [format!("--reuid={uid}"), format!("--regid={gid}"), "--init-groups".into()];
        let words = words.into_iter().chain(["--".into()]);
        std::iter::once("setpriv".into()).chain(words).collect()
    }
}

/// Standard input of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// No input: end of file at once.
    Nothing,
    /// Data written to [`Running::stdin`].
    Piped,
}

/// Meaning of the time limit while a child's output is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The limit applies to the whole output.
    End,
    /// The limit applies to the time until the next piece.
    Silence,
}

/// A child process. Dropping it before its end kills it and its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    limit: Duration,
    /// Pipe to its standard input, if requested. Take and drop it to end the input.
    pub stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    errors: Arc<Mutex<Vec<u8>>>,
    listener: Option<JoinHandle<()>>,
    is_over: bool,
}

impl Running {
    /// Starts a command that the user has typed. It keeps the environment, directory and standard
    /// error of this process; its standard input is empty. It has no time limit. With `setsid` it has
    /// no terminal, so it fails instead of waiting there for a password. With `setpriv` it is killed
    /// when this process ends.
    pub fn typed(words: &[OsString]) -> Result<Running> {
        let shown: Vec<_> = words.iter().map(|word| quoted_bytes(word.as_bytes())).collect();
        let shown = shown.join(" ");
        let fail = |source| Error::Start { command: shown.clone(), source };
        let setsid = installed("setsid");
        let is_leader = setsid.is_some();
        let mut argv: Vec<OsString> = setsid.into_iter().map(PathBuf::into_os_string).collect();
        if let Some(setpriv) = installed("setpriv") {
            argv.push(setpriv.into());
            argv.extend(["--pdeathsig", "KILL", "--"].map(OsString::from));
        }
        argv.extend(words.iter().cloned());
        let (program, arguments) =
            argv.split_first().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
        #[expect(clippy::disallowed_methods, reason = "the door")]
        let mut command = std::process::Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        if !is_leader {
            command.process_group(0);
        }
        let mut child = command.spawn().map_err(fail)?;
        let stdout = child.stdout.take();
        Ok(Running {
            child,
            shown,
            limit: NO_LIMIT,
            stdin: None,
            stdout,
            errors: Arc::default(),
            listener: None,
            is_over: false,
        })
    }

    /// Returns the process's output, as a stream. An error of kind `TimedOut` means that the limit
    /// was reached. An error of kind `Other` that wraps `Interrupted` means that the user asked to
    /// stop.
    pub fn stdout<'a>(&mut self, progress: &'a Progress, patience: Patience) -> Output<'a> {
        Output {
            stdout: self.stdout.take(),
            progress,
            patience,
            limit: self.limit,
            deadline: Instant::now() + self.limit,
        }
    }

    /// Writes to its input.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.stdin {
            Some(stdin) => stdin.write_all(bytes).and_then(|()| stdin.flush()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        // The reason why it stopped reading is on its standard error.
        written.map_err(|_| self.failure())
    }

    /// Waits for its end, up to the limit, after its output was read to the end. Fails if it did
    /// not succeed.
    pub fn end(mut self, progress: &Progress) -> Result<()> {
        let status = self.status(self.limit, progress)?;
        if status.success() { Ok(()) } else { Err(self.failed(status, b"")) }
    }

    /// Converts an error of reading its output.
    pub fn unread(&self, error: io::Error, progress: &Progress) -> Error {
        match progress.check() {
            Err(stop) => stop.into(),
            Ok(()) if error.kind() == io::ErrorKind::TimedOut => {
                self.too_slow("it made no progress")
            }
            Ok(()) => Error::Start { command: self.shown.clone(), source: error },
        }
    }

    fn status(&mut self, limit: Duration, progress: &Progress) -> Result<ExitStatus> {
        progress.check()?;
        drop(self.stdin.take());
        drop(self.stdout.take());
        self.wait(limit, Some(progress))?.ok_or_else(|| self.too_slow("it did not exit"))
    }

    /// Error of a child that no longer works.
    pub fn failure(&mut self) -> Error {
        match self.wait(Duration::from_secs(2), None) {
            Ok(Some(status)) => self.failed(status, b""),
            Ok(None) => self.too_slow("it did not answer"),
            Err(error) => error,
        }
    }

    /// `printed` is the reason if standard error is empty, as with `sv`.
    fn failed(&mut self, status: ExitStatus, printed: &[u8]) -> Error {
        let status = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            _ => "unknown end".into(),
        };
        let printed = || String::from_utf8_lossy(printed).into_owned();
        let output =
            Some(self.standard_error()).filter(|text| !text.is_empty()).unwrap_or_else(printed);
        // A message is a single line.
        let lines = output.lines().map(str::trim).filter(|line| !line.is_empty());
        let output = lines.collect::<Vec<_>>().join("; ");
        let output = if output.is_empty() { "it printed no error".into() } else { output };
        Error::Failed { command: self.shown.clone(), status, output }
    }

    /// Sends a signal that ends the process, and waits for its end up to a limit.
    pub fn end_by(&mut self, signal: rustix::process::Signal, limit: Duration) {
        if !self.is_over {
            let process = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process(process, signal);
            // One that does not end is killed when it is dropped.
            let _ = self.wait(limit, None);
        }
    }

    fn too_slow(&self, what: &'static str) -> Error {
        Error::TooSlow { command: self.shown.clone(), what, limit: self.limit }
    }

    /// Returns true if it has ended by itself.
    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.wait(Duration::ZERO, None)?.is_some())
    }

    /// Returns the end of the process's standard error.
    fn standard_error(&mut self) -> String {
        if self.is_over
            && let Some(listener) = self.listener.take()
        {
            // A grandchild may hold the pipe open; the text so far is enough.
            let started = Instant::now();
            while !listener.is_finished() && started.elapsed() < TICK {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let errors = self.errors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        String::from_utf8_lossy(&errors).trim().to_owned()
    }

    fn wait(&mut self, limit: Duration, progress: Option<&Progress>) -> Result<Option<ExitStatus>> {
        let fail = |source| Error::Start { command: self.shown.clone(), source };
        let (started, mut pause) = (Instant::now(), Duration::from_millis(1));
        loop {
            if let Some(status) = self.child.try_wait().map_err(fail)? {
                self.is_over = true;
                return Ok(Some(status));
            }
            if started.elapsed() >= limit {
                return Ok(None);
            }
            if let Some(progress) = progress {
                progress.check()?;
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(TICK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // The group includes its own children.
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Standard output of a child.
#[derive(Debug)]
pub struct Output<'a> {
    stdout: Option<ChildStdout>,
    progress: &'a Progress,
    patience: Patience,
    limit: Duration,
    deadline: Instant,
}

impl Output<'_> {
    /// Reports a request to stop.
    pub fn progress(&self) -> &Progress {
        self.progress
    }
}

impl Output<'_> {
    /// Waits a short time for output and reads it. Returns `None` if there was none, and 0 at the
    /// end of the output.
    fn piece(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(stdout) = &mut self.stdout else { return Ok(Some(0)) };
        self.progress.check().map_err(io::Error::other)?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let tick = Timespec::try_from(left.min(TICK)).map_err(io::Error::other)?;
        let mut waiting = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)];
        match poll(&mut waiting, Some(&tick)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(None),
            Ok(_) => stdout.read(into).map(Some),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Output<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.patience == Patience::Silence {
            self.deadline = Instant::now() + self.limit;
        }
        loop {
            if let Some(len) = self.piece(into)? {
                return Ok(len);
            }
        }
    }
}

/// Keeps the end of standard error.
fn listen(mut stderr: impl Read, errors: &Mutex<Vec<u8>>) {
    let mut piece = [0; 1 << 10];
    loop {
        match stderr.read(&mut piece) {
            Ok(0) => return,
            Ok(len) => {
                let mut errors = errors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                errors.extend_from_slice(&piece[..len]);
                let excess = errors.len().saturating_sub(STDERR_BYTES);
                errors.drain(..excess);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Applies `work` to all items in parallel, one thread per item, because most of the time is spent
/// waiting.
pub fn at_once<I: Sync, T: Send>(items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let begin = |item| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, move || work(item));
            // At a limit of processes, this thread does the work.
            thread.map_err(|_| work(item))
        };
        let begun: Vec<_> = items.iter().map(begin).collect();
        let end = |begun: Result<std::thread::ScopedJoinHandle<'_, T>, T>| match begun {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(done) => done,
        };
        begun.into_iter().map(end).collect()
    })
}

/// Path of a program of util-linux. Other implementations support fewer options.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let path =
        PATH.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.exists())?;
    let real = path.canonicalize().ok()?;
    (real.file_name()? == program).then_some(path)
}

/// Reads a command: a program and its arguments. Fails if the program is missing.
pub(crate) fn program<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let words = Vec::<String>::deserialize(from)?;
    if words.first().is_none_or(String::is_empty) {
        return Err(serde::de::Error::custom("a command begins with the name of a program"));
    }
    Ok(words)
}

/// Quotes a word for a shell, if it needs that.
pub fn quoted(word: &str) -> String {
    quoted_bytes(word.as_bytes())
}

/// Quotes a path for a shell, if it needs that.
pub fn quoted_path(path: &Path) -> String {
    quoted_bytes(path.as_os_str().as_bytes())
}

/// Quotes a path for a shell. A path that is not UTF-8 must have been formatted by
/// [`display_path`](store::entry::display_path).
pub fn quoted_shown(path: &str) -> String {
    // Shells write escaped characters in another way.
    let characters = path.replace('\'', r"\'").replace(r"\u{", r"\U{");
    if path.contains(r"\x") { format!("$'{}'", braceless(&characters)) } else { quoted(path) }
}

/// Replaces `\U{1b}` by `\U0000001b`, as shells write it.
fn braceless(text: &str) -> String {
    let mut parts = text.split(r"\U{");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_once('}').unwrap_or((part, ""));
        plain += &format!(r"\U{digits:0>8}{rest}");
    }
    plain
}

/// Quotes bytes. Those that a terminal or a message would not show as they are become numbers.
fn quoted_bytes(word: &[u8]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    match std::str::from_utf8(word) {
        Ok(text) if !text.is_empty() && text.chars().all(is_plain) => return text.to_owned(),
        Ok(text) if !text.contains(is_deceptive) => {
            return format!("'{}'", text.replace('\'', r"'\''"));
        }
        _ => {}
    }
    let number =
        |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!(r"\x{byte:02x}")).collect() };
    let mut quoted = "$'".to_owned();
    for part in word.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\'' | '\\' => quoted.extend(['\\', c]),
                c if is_deceptive(c) => quoted += &number(c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => quoted.push(c),
            }
        }
        quoted += &number(part.invalid());
    }
    quoted + "'"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use store::entry::display_path;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("/srv/@hashed/6b/86.git"), "/srv/@hashed/6b/86.git");
        assert_eq!(quoted("/srv/it's here"), r"'/srv/it'\''s here'");
        assert_eq!(quoted("/srv/$HOME"), "'/srv/$HOME'");
        assert_eq!(quoted(""), "''");
        // Shells read these as the same bytes.
        for bytes in [
            &b"/srv/g\xfft"[..],
            b"/\xff\n\xe2\x80\xaeb'",
            b"/a\nb'c\\d",
            b"/\xff1",
            "/\u{202e}a\u{1b}".as_bytes(),
        ] {
            let path = Path::new(OsStr::from_bytes(bytes));
            let shown = path.to_str().map_or_else(|| display_path(bytes), str::to_owned);
            for word in [quoted_path(path), quoted_shown(&shown)] {
                assert!(word.starts_with("$'"), "{word}");
                let script = format!("printf %s {word}");
                let bash = Command::new(["bash", "-c", &script]).env("LC_ALL", "C.UTF-8");
                let printed = bash.output(&Progress::default()).expect("runs");
                assert_eq!(printed, bytes, "{word}");
            }
        }
    }

    fn shell(script: &str) -> Command {
        Command::new(["sh", "-c", script]).within(Duration::from_secs(20))
    }

    fn output(command: &Command) -> Result<String> {
        command
            .output(&Progress::default())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    #[test]
    fn output_is_returned_and_failures_give_a_reason() {
        assert_eq!(output(&shell("echo a; echo b >&2")).expect("works"), "a\n");
        let failed = output(&shell("echo a; echo because >&2; exit 7")).expect_err("fails");
        assert!(
            matches!(&failed, Error::Failed { status, output, .. }
            if status == "exit code 7" && output == "because"),
            "{failed}"
        );
        let killed = output(&shell("kill -9 $$")).expect_err("fails");
        assert!(killed.to_string().contains("signal 9"), "{killed}");
        let absent = output(&Command::new(["/nowhere/at all"])).expect_err("fails");
        assert!(absent.to_string().starts_with("cannot start '/nowhere/at all'"), "{absent}");
    }

    #[test]
    fn a_time_limit_ends_the_process_group() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("mark");
        let script = format!("(sleep 1; touch {}) & sleep 30", mark.display());
        let started = Instant::now();
        let slow = shell(&script).within(Duration::from_millis(200));
        let error = output(&slow).expect_err("too slow");
        assert!(matches!(error, Error::TooSlow { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!mark.exists(), "a grandchild went on");
    }

    #[test]
    fn background_processes_are_neither_awaited_nor_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("mark");
        let script = format!("(sleep 2; touch {}) & echo started", mark.display());
        let started = Instant::now();
        assert_eq!(output(&shell(&script)).expect("works"), "started\n");
        assert!(started.elapsed() < Duration::from_millis(1800), "it was waited for");
        while !mark.exists() && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(mark.exists(), "it was ended");
    }

    #[test]
    fn reasons_on_standard_output_are_reported() {
        let failed = output(&shell("echo timeout: run: puma; exit 1")).expect_err("fails");
        assert!(failed.to_string().ends_with("timeout: run: puma"), "{failed}");
    }

    #[test]
    fn a_stop_request_interrupts_a_command() {
        let progress = Progress::default();
        progress.stop();
        let error = shell("sleep 30").output(&progress).expect_err("stopped");
        assert!(error.is_interrupted(), "{error}");
    }

    #[test]
    fn dropping_a_typed_command_ends_its_group() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("mark");
        let script = format!("(sleep 1; touch {}) & sleep 30", mark.display());
        let words = ["sh", "-c", &script].map(OsString::from);
        let running = Running::typed(&words).expect("starts");
        std::thread::sleep(Duration::from_millis(300));
        drop(running);
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!mark.exists(), "a grandchild went on");
    }

    #[test]
    fn commands_get_the_environment_of_a_login() {
        let shown = output(&shell("env").env("OWN", "1")).expect("works");
        let names: Vec<&str> =
            shown.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        for name in ["HOME", "USER", "LOGNAME", "SHELL", "PATH", "OWN"] {
            assert!(names.contains(&name), "{name} is not in {shown}");
        }
        assert!(!names.contains(&"CARGO_MANIFEST_DIR"), "{shown}");
        assert!(nix::unistd::geteuid().is_root(), "run this test as root");
        let as_nobody = output(&shell("id -u; id -G").by(Some("nobody"))).expect("works");
        assert_eq!(as_nobody, "65534\n65534\n");
        let error = output(&shell("true").by(Some("no such user"))).expect_err("no such user");
        assert!(matches!(error, Error::NoUser { .. }), "{error}");
    }

    #[test]
    fn shown_commands_are_quoted_for_a_shell() {
        let secret = ["mysqldump", "--password", "hush", "--token=hush", "db"];
        let secret = Command::new(secret).shown();
        assert!(
            secret.starts_with("mysqldump --password … ") && !secret.contains("hush"),
            "{secret}"
        );
        let shown = Command::new(["a", "b c", "it's", ""]).shown();
        assert_eq!(shown, r"a 'b c' 'it'\''s' ''");
    }
}
