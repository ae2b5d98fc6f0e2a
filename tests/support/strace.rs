//! Converts the system calls of a run to changes of a disk.

use super::disk::{Change, Disk};
use super::sandbox::{Outcome, Run};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Calls that change files or names, or make such changes durable.
const CALLS: &str = "creat,open,openat,openat2,write,pwrite64,writev,pwritev,pwritev2,ftruncate,\
    truncate,fallocate,copy_file_range,sendfile,splice,mmap,fsync,fdatasync,sync_file_range,\
    syncfs,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,\
    rmdir";

/// Adds these arguments to a run of `strace`; the traced program follows.
pub fn strace<'a>(run: Run, arguments: impl IntoIterator<Item = &'a str>) -> Run {
    run.args(["-f", "-y", "-e", "signal=none"]).args(arguments)
}

/// All changes below one directory, in order.
pub struct Trace {
    /// The working directory of the runs.
    root: PathBuf,
    /// Observed directory, below `root`.
    below: PathBuf,
    pub changes: Vec<Change>,
    /// State after all changes.
    disk: Disk,
    files: usize,
}

impl Trace {
    /// Creates an empty trace of changes below `root/below`. Paths are relative to `root`.
    pub fn new(root: &Path, below: &str) -> Trace {
        let root = root.canonicalize().expect("is there");
        Trace { root, below: below.into(), changes: Vec::new(), disk: Disk::default(), files: 0 }
    }

    /// Returns the disk after all changes.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Runs a program and adds its changes. `strace_itself` is a run of `strace`; `extra` are more
    /// arguments for it.
    pub fn run(&mut self, strace_itself: Run, extra: &[&str], program: &[&str]) -> Outcome {
        let log = self.root.join("trace");
        let trace = format!("trace={CALLS}");
        let shown = log.to_str().expect("readable").to_owned();
        let arguments = ["-xx", "-s", "99999999", "-e", &trace, "-o", &shown];
        let run = strace(strace_itself, arguments).args(extra).args(program);
        let outcome = run.run();
        let text = std::fs::read_to_string(&log).expect("a trace");
        self.read(&text);
        outcome
    }

    /// Records a promise on which the user relies from here on.
    fn promise(&mut self, what: String) {
        self.note(Change::Promise(what));
    }

    fn note(&mut self, change: Change) {
        self.disk.apply(&change);
        self.changes.push(change);
    }

    fn read(&mut self, text: &str) {
        // Calls of each thread that another line interrupted, with the number of changes when they
        // began.
        let mut unfinished: HashMap<&str, (String, usize)> = HashMap::new();
        for line in text.lines() {
            let (thread, line) = line.split_once(' ').expect("a thread and a call");
            let line = line.trim_start();
            if line.starts_with("+++") || line.starts_with("---") {
                continue;
            }
            if let Some(begun) = line.strip_suffix(" <unfinished ...>") {
                unfinished.insert(thread, (begun.to_owned(), self.changes.len()));
                continue;
            }
            let (whole, begun) = match line.split_once(" resumed>") {
                Some((_, rest)) if line.starts_with("<...") => {
                    let (first, begun) = unfinished.remove(thread).expect("it was begun");
                    (first + rest, begun)
                }
                _ => (line.to_owned(), self.changes.len()),
            };
            self.call(&whole, begun);
        }
    }

    fn call(&mut self, line: &str, begun: usize) {
        let call = Call::parse(line);
        // Failed calls change nothing, and those of killed threads did not happen.
        let Some(result) = call.result else { return };
        let path = |at| self.path(&call, at);
        match call.name {
            "open" | "creat" | "openat" | "openat2" => {
                let at = usize::from(call.name.starts_with("openat"));
                let flags = call.arguments.get(at + 1).copied().unwrap_or("O_CREAT|O_TRUNC");
                let Some(path) = path(at) else { return };
                if flags.contains("O_TMPFILE") {
                    return;
                }
                match self.disk.file(&path) {
                    None if flags.contains("O_CREAT") => self.file(path),
                    Some(file) if flags.contains("O_TRUNC") => {
                        self.note(Change::Resize { file, len: 0 });
                    }
                    _ => {}
                }
            }
            "write" if call.arguments[0].starts_with("1<") => self.output(&call.bytes(1)),
            "write" | "pwrite64" => {
                let Some(file) = self.open_file(&call, 0) else { return };
                let mut bytes = call.bytes(1);
                assert!(bytes.len() as u64 >= result, "cut off: {}", &line[..200.min(line.len())]);
                bytes.truncate(result as usize);
                let offset = match call.arguments.get(3) {
                    Some(offset) => offset.parse().expect("an offset"),
                    // Files of a store are written sequentially.
                    None => self.disk.size(file),
                };
                self.note(Change::Write { file, offset, bytes: bytes.into() });
            }
            "ftruncate" => {
                let Some(file) = self.open_file(&call, 0) else { return };
                let len = call.arguments[1].parse().expect("a length");
                self.note(Change::Resize { file, len });
            }
            "fallocate" => {
                let Some(file) = self.open_file(&call, 0) else { return };
                let number = |at: usize| call.arguments[at].parse::<u64>().expect("a number");
                let len = self.disk.size(file).max(number(2) + number(3));
                if call.arguments[1] == "0" {
                    self.note(Change::Resize { file, len });
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(file) = self.open_file(&call, 0) {
                    self.note(Change::SyncFile { file, begun });
                } else if let Some(path) = self.open_path(&call, 0) {
                    self.note(Change::SyncDirectory { path, begun });
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let [a, b] = if call.name == "rename" { [0, 1] } else { [1, 3] };
                match (path(a), path(b)) {
                    (Some(from), Some(to)) => {
                        self.note(Change::Rename { from, to });
                    }
                    (None, None) => {}
                    _ => panic!("moved in or out: {line}"),
                }
            }
            "link" | "linkat" => {
                let [a, b] = if call.name == "link" { [0, 1] } else { [1, 3] };
                match (path(a), path(b)) {
                    (Some(from), Some(to)) => self.note(Change::Link { from, to }),
                    (None, None) => {}
                    _ => panic!("linked in or out: {line}"),
                }
            }
            "unlink" | "rmdir" | "unlinkat" => {
                if let Some(path) = path(usize::from(call.name == "unlinkat")) {
                    self.note(Change::Unlink(path));
                }
            }
            "mkdir" | "mkdirat" => {
                if let Some(path) = path(usize::from(call.name == "mkdirat")) {
                    self.note(Change::Directory(path));
                }
            }
            "mmap" => {
                let is_written =
                    call.arguments[2].contains("WRITE") && call.arguments[3].contains("SHARED");
                if let Some(path) = self.open_path(&call, 4).filter(|_| is_written) {
                    // SQLite recreates this file after a crash, whatever it contains.
                    assert!(path.ends_with("index.sqlite-shm"), "mapped: {}", path.display());
                }
            }
            _ => {
                let is_ours =
                    (0..call.arguments.len()).any(|at| self.open_path(&call, at).is_some());
                assert!(!is_ours, "the model does not know {line}");
            }
        }
    }

    fn file(&mut self, path: PathBuf) {
        self.files += 1;
        self.note(Change::File { path, file: self.files });
    }

    /// A snapshot counts from the moment its id was printed.
    fn output(&mut self, bytes: &[u8]) {
        for line in bytes.split(|byte| *byte == b'\n') {
            let Ok(value) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
            if let Some(id) = value["snapshot_id"].as_str() {
                self.promise(id.to_owned());
            }
        }
    }

    /// Returns the path that an argument names, if it is observed.
    fn path(&self, call: &Call<'_>, at: usize) -> Option<PathBuf> {
        let name = PathBuf::from(OsString::from_vec(call.bytes(at)));
        let base = match at.checked_sub(1).map(|before| call.arguments[before]) {
            Some(dir) if dir.contains('<') => of_descriptor(dir)?,
            _ => self.root.clone(),
        };
        self.ours(&base.join(name))
    }

    /// Returns the path of an open file or directory, if it is observed.
    fn open_path(&self, call: &Call<'_>, at: usize) -> Option<PathBuf> {
        self.ours(&of_descriptor(call.arguments.get(at)?)?)
    }

    fn open_file(&self, call: &Call<'_>, at: usize) -> Option<usize> {
        self.disk.file(&self.open_path(call, at)?)
    }

    fn ours(&self, path: &Path) -> Option<PathBuf> {
        let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        let path = path.strip_prefix(&self.root).ok()?;
        // The top directory itself is synced after it gets a new name.
        (path.starts_with(&self.below) || path.as_os_str().is_empty()).then(|| path.to_owned())
    }
}

/// Returns the path in `7</hex/path>`, or `None` for pipes and files without a name.
fn of_descriptor(argument: &str) -> Option<PathBuf> {
    let (_, rest) = argument.split_once('<')?;
    let (path, after) = rest.split_once('>')?;
    let path = unhex(path);
    (path.starts_with(b"/") && after.is_empty()).then(|| OsString::from_vec(path).into())
}

/// Decodes the bytes of `\x2f\x74…`.
fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("hexadecimal") as u8;
    let bytes = text.as_bytes().chunks_exact(4);
    bytes.map(|byte| digit(byte[2]) << 4 | digit(byte[3])).collect()
}

/// One line of the trace.
struct Call<'a> {
    name: &'a str,
    arguments: Vec<&'a str>,
    /// Returned value, unless the call failed.
    result: Option<u64>,
}

impl Call<'_> {
    fn parse(line: &str) -> Call<'_> {
        let (name, rest) = line.split_once('(').unwrap_or_else(|| panic!("no call: {line}"));
        // Strings are hexadecimal, so nothing in them looks like the end.
        let Some((arguments, result)) = rest.rsplit_once(") ") else {
            return Call { name, arguments: Vec::new(), result: None };
        };
        let result = result.trim_start().trim_start_matches("= ");
        let number = result.split(['<', ' ']).next().expect("a word");
        let result = match number.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => number.parse().ok(),
        };
        Call { name, arguments: arguments.split(", ").collect(), result }
    }

    /// Returns the bytes of an argument that is a string.
    fn bytes(&self, at: usize) -> Vec<u8> {
        let text = self.arguments[at].strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        unhex(text.unwrap_or_else(|| panic!("no string: {}", self.arguments[at])))
    }
}
