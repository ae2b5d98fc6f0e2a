//! Output to the terminal: lines, JSON lines, progress. Also handles signals.

use crate::exit::Failure;
use crate::json::{self, ExitError, Line, PathError, Status, Warning};
use crate::report::shown;
use crate::standard::StandardStream::{Stderr, Stdout};
use crate::startup::stdout_is_open;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use signal_hook::SigId;
use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::observe::{Cause, Event, Observer, Progress, Reason};

/// Interval between updates of the terminal and checks for a stop request.
const TICK: Duration = Duration::from_millis(100);
/// Interval between lines about progress if there is no terminal.
const STATUS: Duration = Duration::from_secs(30);

/// Maximum time after a signal for a command that prints its result to end.
const PATIENCE: Duration = Duration::from_secs(1);
/// Maximum time after a signal for work to end. A read of a hung file system never returns.
const HUNG: Duration = Duration::from_secs(10);

/// Maximum number of warnings kept for notifications.
const REMEMBERED_MAX: usize = 50;

/// Distinct warnings of this run.
#[derive(Debug, Default)]
struct Warnings {
    texts: Vec<String>,
    /// Number of warnings beyond the limit.
    more: usize,
}

impl Warnings {
    fn remember(&mut self, text: &str) {
        if self.texts.iter().any(|known| known == text) {
            return;
        }
        if self.texts.len() < REMEMBERED_MAX {
            self.texts.push(text.to_owned());
        } else {
            self.more += 1;
        }
    }
}

/// Form and amount of the output.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// JSON lines instead of text.
    pub json: bool,
    /// Only results, warnings and errors.
    pub quiet: bool,
    /// Details as well.
    pub verbose: bool,
}

/// Output of a command, and its stop requests.
pub struct Ui {
    json: bool,
    quiet: bool,
    verbose: bool,
    wants_stop: Arc<AtomicBool>,
    /// True if the next signal ends the program at once.
    may_end: Arc<AtomicBool>,
    /// Signal handlers that let a second signal end the program at once.
    impatient: Vec<SigId>,
    /// True if the program must undo its changes to other services before it ends.
    is_held: Arc<AtomicBool>,
    warnings: Arc<Mutex<Warnings>>,
}

impl Ui {
    /// Configures output by the arguments, and handles SIGINT, SIGTERM and SIGHUP.
    ///
    /// A signal ends the program until the work begins. Then the first one asks the command to stop, and
    /// the second one ends the program. A signal that the parent process ignores, such as SIGHUP below
    /// `nohup`, stays ignored.
    pub fn new(Output { json, quiet, verbose }: Output) -> Ui {
        let wants_stop = Arc::new(AtomicBool::new(false));
        let may_end = Arc::new(AtomicBool::new(true));
        let mut impatient = Vec::new();
        let ignored = ignored_signals();
        let signals = [
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ];
        for signal in signals.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0) {
            // In this order of registration, the first signal only sets the flags.
            let _ =
                signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&may_end));
            let _ = signal_hook::flag::register(signal, Arc::clone(&wants_stop));
            impatient.extend(signal_hook::flag::register(signal, Arc::clone(&may_end)));
        }
        // A file that exceeds the size limit is an error of that file and must not end the run.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
        let (warnings, is_held) = Default::default();
        Ui { json, quiet, verbose, wants_stop, may_end, impatient, is_held, warnings }
    }

    /// From now on, the first signal only asks the command to stop.
    pub fn begin_work(&self) {
        self.may_end.store(self.wants_stop(), Relaxed);
    }

    /// From now on, no signal ends the program before it has undone its changes to other services.
    pub fn hold(&self) {
        self.is_held.store(true, Relaxed);
        for id in &self.impatient {
            signal_hook::low_level::unregister(*id);
        }
        self.may_end.store(false, Relaxed);
    }

    /// Returns true if a signal asked the program to stop.
    pub fn wants_stop(&self) -> bool {
        self.wants_stop.load(Relaxed)
    }

    /// Prints a line of the result, for people only. Escapes control characters.
    pub fn line(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        if self.json { Ok(()) } else { self.write(shown(text.as_ref()).as_bytes()) }
    }

    /// Prints several lines of the result, for people only. Meant for the program's own text, such
    /// as a unit file.
    pub fn lines(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        text.as_ref().split('\n').try_for_each(|line| self.line(line))
    }

    /// Prints a line about the outcome, unless `--quiet` is given.
    pub fn remark(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        if self.quiet { Ok(()) } else { self.line(text) }
    }

    /// Prints a line of detail if `--verbose` is given.
    pub fn detail(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        if self.verbose { self.line(text) } else { Ok(()) }
    }

    /// Prints a line of the result, for programs only.
    pub fn json<L: Line>(&self, line: &L) -> Result<(), Failure> {
        if self.json { self.write(formatted(line).as_bytes()) } else { Ok(()) }
    }

    fn write(&self, line: &[u8]) -> Result<(), Failure> {
        match Stdout.print(line, &|| self.wants_stop()) {
            Err(_) if self.wants_stop() => Err(Failure::Store(store::Error::Interrupted)),
            printed => written(printed),
        }
    }

    /// Prints a line on standard error. A failure can no longer be reported.
    fn tell(&self, line: &str) {
        let _ = Stderr.print(line.as_bytes(), &|| self.wants_stop());
    }

    /// Prints the error of a failed run.
    pub fn failed(&self, message: &str, hint: Option<&str>, code: u8) {
        if self.json {
            let _ = self.json(&ExitError { code, message, hint });
        }
        self.tell(&format!("forgekeep: {}", shown(message)));
        // A hint may list choices, one a line.
        for line in hint.iter().flat_map(|hint| hint.split('\n')) {
            self.tell(&format!("  {}", shown(line)));
        }
    }

    /// Prints a line beside a result that is nothing but paths or content, for a person who watches.
    pub fn aside(&self, text: &str) {
        if !self.json && !self.quiet && io::stderr().is_terminal() {
            self.tell(&shown(text));
        }
    }

    /// Prints a warning, which must precede the result.
    pub fn warn(&self, text: &str) {
        remember(&self.warnings, text);
        warn(self.json, text, &self.wants_stop);
    }

    /// Prints a warning that explains the result to people. The result itself gives programs the
    /// same, and its last line must remain their last line.
    pub fn explain(&self, text: &str) {
        if !self.json {
            warn(false, text, &self.wants_stop);
        }
    }

    /// Returns the warnings so far. Their number is bounded.
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut texts = warnings.texts.clone();
        if warnings.more > 0 {
            texts.push(format!("and {} more", warnings.more));
        }
        texts
    }

    /// Starts to observe an operation.
    pub fn watch(&self, what: &'static str) -> Arc<Watch> {
        Watch::start(self, what)
    }
}

/// Returns true if arguments that could not be parsed ask for JSON lines. Standard output of `dump`
/// contains nothing but the content of a file.
fn wants_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let arguments: Vec<OsString> = arguments.take_while(|argument| argument != "--").collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    has("--json") && !has("dump")
}

/// Prints help or an error in the arguments, and ends the program.
pub fn refuse(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        let printed = stdout_is_open().and_then(|()| error.print());
        let printed = printed.and_then(|()| io::stdout().flush());
        let Err(failure) = written(printed) else { std::process::exit(error.exit_code()) };
        if let Some((message, _)) = failure.words() {
            let _ = writeln!(io::stderr(), "forgekeep: {message}");
        }
        std::process::exit(failure.number().into());
    }
    let text = error.render().to_string();
    if wants_json(std::env::args_os().skip(1)) {
        let first = text.split("\n\n").next().unwrap_or_default();
        let words: Vec<_> = first.split_whitespace().collect();
        let message = words.join(" ");
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        let line = ExitError { code: 2, message, hint: Some("`forgekeep --help` shows the usage") };
        let _ = writeln!(io::stdout(), "{}", formatted(&line));
    }
    let safe: Vec<_> = text.lines().map(shown).collect();
    if safe.iter().any(|line| matches!(line, Cow::Owned(_))) {
        // Without colours, since those are control characters, too.
        let _ = writeln!(io::stderr(), "{}", safe.join("\n"));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

/// Returns the signals that the parent process ignores, as a bit mask; 0 if the system does not
/// report them.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Converts the result of a write to standard output.
pub fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::BrokenPipe),
        Err(error) => Err(crate::exit::other(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Formats a line with its type.
fn formatted<L: Line>(line: &L) -> String {
    let mut value = json!(line);
    value["message_type"] = L::TYPE.into();
    value.to_string()
}

fn remember(warnings: &Mutex<Warnings>, text: &str) {
    warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remember(text);
}

fn warn(is_json: bool, text: &str, wants_stop: &AtomicBool) {
    let is_over = || wants_stop.load(Relaxed);
    let _ = match is_json {
        true => Stdout.print(formatted(&Warning { message: text }).as_bytes(), &is_over),
        false => Stderr.print(shown(text).as_bytes(), &is_over),
    };
}

/// Maximum number of paths that are printed although this user may not write them.
const DENIED_MAX: u64 = 5;

/// Shows the progress of an operation, and is its observer.
pub struct Watch {
    what: &'static str,
    json: bool,
    quiet: bool,
    verbose: bool,
    progress: Progress,
    bar: ProgressBar,
    started: Instant,
    ended: AtomicBool,
    is_hushed: AtomicBool,
    /// Number of paths that this user may not write.
    denied: AtomicU64,
    wants_stop: Arc<AtomicBool>,
    ticker: Mutex<Option<JoinHandle<()>>>,
    warnings: Arc<Mutex<Warnings>>,
}

impl Watch {
    fn start(ui: &Ui, what: &'static str) -> Arc<Watch> {
        ui.begin_work();
        let is_shown = !ui.json && !ui.quiet && io::stderr().is_terminal();
        let target =
            if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let watch = Arc::new(Watch {
            what,
            json: ui.json,
            quiet: ui.quiet,
            verbose: ui.verbose,
            progress: Progress::default(),
            bar,
            started: Instant::now(),
            ended: AtomicBool::new(false),
            is_hushed: AtomicBool::new(false),
            denied: AtomicU64::new(0),
            wants_stop: Arc::clone(&ui.wants_stop),
            ticker: Mutex::new(None),
            warnings: Arc::clone(&ui.warnings),
        });
        let seen = Arc::clone(&watch);
        // Without it, only progress and stop requests are missing. Services must be restarted even
        // at a limit of processes.
        let is_held = Arc::clone(&ui.is_held);
        let ticker = std::thread::Builder::new().spawn(move || seen.tick(&is_held));
        if let Ok(mut slot) = watch.ticker.lock() {
            *slot = ticker.ok();
        }
        watch
    }

    /// Ends the observation. Call it before the result is printed.
    pub fn end(&self) {
        self.ended.store(true, Relaxed);
        let ticker = self.ticker.lock().ok().and_then(|mut slot| slot.take());
        if let Some(ticker) = ticker {
            ticker.thread().unpark();
            let _ = ticker.join();
        }
        self.clear();
    }

    /// Removes the bar, unless the terminal is stopped.
    fn clear(&self) {
        if self.bar.is_hidden() || Stderr.is_ready() {
            self.bar.finish_and_clear();
        }
    }

    fn wants_stop(&self) -> bool {
        self.wants_stop.load(Relaxed)
    }

    /// Hides progress from now on, because the result is printed piece by piece. Still handles stop
    /// requests.
    pub fn hush(&self) {
        self.is_hushed.store(true, Relaxed);
        self.clear();
    }

    /// Returns the time since the operation began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn tick(&self, is_held: &AtomicBool) {
        let (mut status_at, mut asked_at) = (self.started + STATUS, None);
        loop {
            if self.wants_stop() {
                self.progress.stop();
                let waited = asked_at.get_or_insert_with(Instant::now).elapsed();
                if self.is_hushed.load(Relaxed) && waited >= PATIENCE {
                    // The result is being written to a terminal, but nobody reads it.
                    std::process::exit(130);
                }
                if waited >= HUNG && !is_held.load(Relaxed) && !self.ended.load(Relaxed) {
                    let after = HUNG.as_secs();
                    self.say(&format!(
                        "forgekeep: interrupted; a file system or the store did not answer for {after} s"
                    ));
                    // Like a kill, this loses nothing that is in the store.
                    std::process::exit(130);
                }
            }
            if self.ended.load(Relaxed) {
                return;
            }
            if self.is_hushed.load(Relaxed) {
                // Only a stop request matters.
            } else if !self.bar.is_hidden() {
                if Stderr.is_ready() {
                    self.draw();
                }
            } else if !self.quiet && Instant::now() >= status_at {
                status_at += STATUS;
                self.status();
            }
            std::thread::park_timeout(TICK);
        }
    }

    fn draw(&self) {
        let progress = &self.progress;
        let total = progress.bytes_total.load(Relaxed);
        let done = progress.bytes_done.load(Relaxed);
        let entries = progress.entries_done.load(Relaxed);
        if total > 0 {
            self.bar.set_length(total.max(done));
        }
        self.bar.set_position(done);
        let template = if total > 0 {
            "{prefix} [{bar:25}] {percent}%  {bytes}/{total_bytes}  {binary_bytes_per_sec}  {msg}  {eta} left"
        } else {
            "{prefix} {spinner}  {bytes}  {binary_bytes_per_sec}  {msg}  {elapsed}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        self.bar.set_prefix(self.what);
        self.bar.set_message(format!("{entries} entries"));
        self.bar.tick();
    }

    fn status(&self) {
        let progress = &self.progress;
        let [entries, bytes, entries_total, bytes_total] = [
            &progress.entries_done,
            &progress.bytes_done,
            &progress.entries_total,
            &progress.bytes_total,
        ]
        .map(|counter| counter.load(Relaxed));
        let seconds = self.started.elapsed().as_secs();
        if self.json {
            let status = Status {
                seconds_elapsed: seconds,
                files_done: entries,
                bytes_done: bytes,
                total_files: entries_total,
                total_bytes: bytes_total,
                percent_done: if bytes_total > 0 { bytes as f64 / bytes_total as f64 } else { 0.0 },
            };
            self.print_json(&status);
        } else {
            let size = crate::report::size(bytes);
            let line = format!("{}: {entries} entries, {size} after {seconds} s", self.what);
            let _ = Stderr.print(line.as_bytes(), &|| self.wants_stop());
        }
    }

    fn say(&self, text: &str) {
        let print = || warn(self.json, text, &self.wants_stop);
        match self.bar.is_hidden() || !Stderr.is_ready() {
            true => print(),
            false => self.bar.suspend(print),
        }
    }

    fn print_json<L: Line>(&self, line: &L) {
        let _ = Stdout.print(formatted(line).as_bytes(), &|| self.wants_stop());
    }

    fn say_of(&self, path: &Path, text: &str) {
        let shown = store::entry::display_path(path.as_os_str().as_bytes());
        self.say(&format!("{shown} {text}"));
    }

    /// Returns true if a path that was not restored is printed. People get few of the paths that a
    /// user may not write, because there is one cause; the result has their number.
    fn is_shown(&self, cause: Cause) -> bool {
        let is_of_many = matches!(cause, Cause::Denied | Cause::DirectoryNotCreated);
        if self.json || !is_of_many {
            return true;
        }
        let before = self.denied.fetch_add(1, Relaxed);
        if before == DENIED_MAX {
            self.say("not restored: more paths for such a reason; their number follows");
        }
        before < DENIED_MAX
    }

    fn trouble(&self, kind: &str, during: &str, path: &Path, Reason { text, cause }: Reason) {
        let reason = match cause {
            Cause::OutOfFiles => format!("{text}; raise the limit of open files (`ulimit -n`)"),
            _ => text,
        };
        if self.json {
            let (item, item_hex) = json::path(path.as_os_str().as_bytes());
            let error =
                PathError { error: json::Reason { message: &reason }, during, item, item_hex };
            self.print_json(&error);
        } else {
            let shown = store::entry::display_path(path.as_os_str().as_bytes());
            self.say(&format!("{kind} {shown}: {reason}"));
        }
    }
}

impl Observer for Watch {
    fn event(&self, event: Event) {
        match event {
            Event::Unreadable { path, reason } => {
                self.trouble("cannot read", "archival", &path, reason);
            }
            Event::MetadataUnreadable { path, reason } => {
                self.trouble("cannot read metadata of", "archival", &path, reason);
            }
            Event::NotRestored { path, reason } if self.is_shown(reason.cause) => {
                self.trouble("not restored:", "restore", &path, reason);
            }
            Event::NotRestored { .. } => {}
            Event::NotDeleted { path, reason } => {
                self.trouble("not deleted:", "restore", &path, reason);
            }
            Event::MetadataRefused { path, reason } => {
                self.trouble("restored without all metadata:", "restore", &path, reason);
            }
            Event::ChangedWhileRead(path) => {
                self.say_of(&path, "changed while it was read; stored as it was read");
            }
            Event::StoredPlainly { path, reason } if self.verbose => {
                self.say_of(&path, &format!("{reason}; stored without comparing it"));
            }
            Event::StoredAgain(path) if self.verbose => {
                self.say_of(&path, "is stored again: the store lost a part of the file");
            }
            Event::Warning(text) => {
                remember(&self.warnings, &text);
                self.say(&text);
            }
            Event::Note(text) if self.json || !self.quiet => self.say(&text),
            _ => {}
        }
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn wants_totals(&self) -> bool {
        !self.bar.is_hidden()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_remembered_once_and_within_bounds() {
        let mut warnings = Warnings::default();
        for number in 0..60 {
            warnings.remember("the same");
            warnings.remember(&format!("number {number}"));
        }
        assert_eq!(warnings.texts[0], "the same");
        assert_eq!((warnings.texts.len(), warnings.more), (REMEMBERED_MAX, 11));
    }
}
