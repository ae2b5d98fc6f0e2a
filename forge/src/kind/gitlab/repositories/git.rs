//! The real git, for tests.

use crate::process::Command;
use std::io::Write;
use std::path::Path;
use store::observe::Progress;

/// Runs git for a repository. Returns its output without surrounding space, or `None` if it fails.
pub fn git(dir: &Path, arguments: &[&str], input: &str) -> Option<String> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(input.as_bytes()).expect("writes");
    let file = file.path().display().to_string();
    let git_dir = format!("--git-dir={}", dir.to_str().expect("text"));
    let words = ["sh", "-c", "exec git -c safe.directory='*' \"$@\" <\"$0\"", &file, &git_dir];
    let mut command = Command::new(words.iter().chain(arguments).copied());
    for name in ["AUTHOR", "COMMITTER"] {
        command = command.env(&format!("GIT_{name}_NAME"), "A");
        command = command.env(&format!("GIT_{name}_EMAIL"), "a@b");
    }
    let output = command.output(&Progress::default()).ok()?;
    Some(String::from_utf8(output).expect("text").trim().to_owned())
}
