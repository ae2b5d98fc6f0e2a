//! Examines restored repositories with git.
//!
//! A repository's own settings must not make git run or fetch anything.

use super::{Scratch, as_argument};
use crate::error::{Error, Result};
use crate::file;
use crate::kind::gitlab::repositories::reference_names::{Names, Value};
use crate::process::{Command, PATH};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use store::entry::display_path;
use store::observe::Progress;

/// Directory of the git that GitLab's package brings.
const EMBEDDED: &str = "/opt/gitlab/embedded/bin";
/// Settings of every call. Old objects have the three faults, and Gitaly ignores them as well.
const SETTINGS: [&str; 6] = [
    "safe.directory=*",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "fsck.badTimezone=ignore",
    "fsck.missingSpaceBeforeDate=ignore",
    "fsck.zeroPaddedFilemode=ignore",
];
/// Errors of a git that is too old for a repository.
const TOO_OLD: [&str; 3] =
    ["unknown repository extension", "Expected git repo version", "unknown ref storage format"];
/// Longest text of a fault in characters.
const TEXT_MAX: usize = 400;

/// Result of examining a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Objects and references are right; the number of references.
    Sound(u64),
    /// The repository could not be examined; the reason.
    Unknown(String),
    /// The repository has a fault; its description.
    Faulty(String),
}

/// The git of this machine.
#[derive(Debug)]
pub struct Git<'a> {
    program: PathBuf,
    user: Option<&'a str>,
    progress: &'a Progress,
}

impl<'a> Git<'a> {
    /// Finds git. Returns `None` if it is not installed.
    pub fn find(scratch: &'a Scratch, progress: &'a Progress) -> Option<Git<'a>> {
        Git::of_machine(scratch.user(), progress)
    }

    /// Finds git, to run it as a user; as our own if not given.
    pub fn of_machine(user: Option<&'a str>, progress: &'a Progress) -> Option<Git<'a>> {
        let places = PATH.split(':').chain([EMBEDDED]).map(|dir| Path::new(dir).join("git"));
        let program = places.into_iter().find(|place| place.exists())?;
        Some(Git { program, user, progress })
    }

    /// Checks all objects of a repository, and compares its references with those that it should
    /// have.
    pub fn examine(&self, dir: &Path, wanted: Option<&Names>, limit: Duration) -> Result<Finding> {
        match self.fsck(dir, limit)? {
            Finding::Sound(_) => {}
            other => return Ok(other),
        }
        let Some(wanted) = wanted else {
            let reason = "the references in the snapshot cannot be read for a comparison";
            return Ok(Finding::Unknown(reason.into()));
        };
        let list = ["for-each-ref", "--format=%(refname)%00%(symref)%00%(objectname)"];
        match self.command(dir, &list, limit)?.output(self.progress) {
            Ok(printed) => Ok(match difference(wanted, &printed) {
                Some(text) => Finding::Faulty(text),
                None => Finding::Sound(wanted.len() as u64),
            }),
            Err(error) => finding(error, "git for-each-ref"),
        }
    }

    /// Checks all objects of a repository. Compares no references.
    pub fn fsck(&self, dir: &Path, limit: Duration) -> Result<Finding> {
        let fsck = ["fsck", "--full", "--no-dangling", "--no-progress"];
        match self.command(dir, &fsck, limit)?.output(self.progress) {
            Ok(_) => Ok(Finding::Sound(0)),
            Err(Error::Failed { output, .. }) if names_only_unborn(dir, &output) => {
                Ok(Finding::Sound(0))
            }
            Err(error) => finding(error, "git fsck"),
        }
    }

    fn command(&self, dir: &Path, arguments: &[&str], limit: Duration) -> Result<Command> {
        let git_dir = format!("--git-dir={}", as_argument(dir)?);
        let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
        let words = [as_argument(&self.program)?].into_iter().chain(settings);
        let words = words.chain([&git_dir[..]]).chain(arguments.iter().copied());
        let mut command = Command::new(words).by(self.user).within(limit);
        for (name, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ALLOW_PROTOCOL", "none"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_TERMINAL_PROMPT", "0"),
        ] {
            command = command.env(name, value);
        }
        Ok(command)
    }
}

/// Returns true if git's errors only name symbolic references to branches that do not exist. Imported
/// and mirrored repositories have them, and git works with them.
fn names_only_unborn(dir: &Path, output: &str) -> bool {
    let is_unborn = |line: &str| {
        let Some(named) = line.strip_prefix("error: ") else { return line.starts_with("notice: ") };
        let Some((name, id)) = named.split_once(": invalid sha1 pointer ") else { return false };
        let is_below =
            Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let path = dir.join(name);
        let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
        let is_symbolic = || {
            file::bytes(&path).is_ok_and(|text| text.is_some_and(|text| text.starts_with(b"ref: ")))
        };
        id.bytes().all(|digit| digit == b'0') && is_below && is_file && is_symbolic()
    };
    let mut lines = output.split([';', '\n']).map(str::trim).filter(|line| !line.is_empty());
    lines.clone().next().is_some() && lines.all(is_unborn)
}

/// Converts the error of a call of git.
fn finding(error: Error, what: &str) -> Result<Finding> {
    match error {
        Error::Failed { output, .. } if TOO_OLD.iter().any(|text| output.contains(text)) => {
            Ok(Finding::Unknown(cut(format!("git is too old for this repository: {output}"))))
        }
        Error::Failed { status, output, .. } => {
            Ok(Finding::Faulty(cut(format!("{what}: {status}: {output}"))))
        }
        Error::TooSlow { .. } => Ok(Finding::Unknown(format!("{what} reached the time limit"))),
        error => Err(error),
    }
}

fn cut(text: String) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Compares references with those that git printed. Describes the first difference.
fn difference(wanted: &Names, printed: &[u8]) -> Option<String> {
    let mut found: BTreeMap<&[u8], [&[u8]; 2]> = BTreeMap::new();
    for line in printed.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == 0);
        if let (Some(name), Some(symref), Some(id)) = (fields.next(), fields.next(), fields.next())
        {
            found.insert(name, [symref, id]);
        }
    }
    let mut differences = Vec::new();
    for (name, value) in wanted {
        let shown = display_path(name);
        match (value, found.remove(&name[..])) {
            (Value::Id(id), Some([_, other])) if hex(id).as_bytes() == other => {}
            (Value::Name(target), Some([symref, _])) if target == symref => {}
            // git does not list a reference to one that does not exist.
            (Value::Name(target), None) if !wanted.contains_key(target) => {}
            (_, None) => differences.push(format!("reference {shown} is missing")),
            (_, Some([_, id])) => {
                let id = String::from_utf8_lossy(id).into_owned();
                differences.push(format!("reference {shown} is {id}, unlike in the snapshot"));
            }
        }
    }
    let surplus =
        found.keys().map(|name| format!("reference {} is not in the snapshot", display_path(name)));
    differences.extend(surplus);
    let more = differences.len().saturating_sub(1);
    let first = differences.into_iter().next()?;
    Some(if more > 0 { format!("{first}, and {more} more differ") } else { first })
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_compared_both_ways() {
        let id = |byte: u8| Value::Id(vec![byte; 20]);
        let wanted: Names = [
            (&b"refs/heads/a"[..], id(0xaa)),
            (b"refs/heads/b", id(0xbb)),
            (b"refs/remotes/HEAD", Value::Name(b"refs/heads/a".to_vec())),
            (b"refs/remotes/gone", Value::Name(b"refs/heads/gone".to_vec())),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_vec(), value))
        .collect();
        let (a, b) = ("aa".repeat(20), "bb".repeat(20));
        let line = |name: &str, symref: &str, id: &str| format!("{name}\0{symref}\0{id}\n");
        let first = line("refs/heads/a", "", &a);
        let second = line("refs/heads/b", "", &b);
        let link = line("refs/remotes/HEAD", "refs/heads/a", &a);
        let of = |lines: &[&str]| difference(&wanted, lines.concat().as_bytes());
        assert_eq!(of(&[&first, &second, &link]), None);
        assert_eq!(of(&[&first, &link]).as_deref(), Some("reference refs/heads/b is missing"));
        let moved = line("refs/heads/b", "", &a);
        let text = of(&[&first, &moved]).expect("differs");
        assert!(text.starts_with("reference refs/heads/b is aaaa"), "{text}");
        assert!(text.ends_with(", and 1 more differ"), "{text}");
        let more = line("refs/heads/c", "", &a);
        let text = of(&[&first, &second, &link, &more]).expect("differs");
        assert_eq!(text, "reference refs/heads/c is not in the snapshot");
    }
    #[test]
    fn symbolic_references_to_no_branch_are_no_fault() {
        let (dir, progress) = (tempfile::tempdir().expect("a directory"), Progress::default());
        let run = |words: &[&str]| {
            let git = Command::new(["git", "--git-dir", dir.path().to_str().expect("text")]);
            let argv = git.argv.into_iter().chain(words.iter().map(|word| (*word).to_owned()));
            Command::new(argv.collect::<Vec<_>>()).output(&progress).expect("runs")
        };
        run(&["init", "--quiet", "--bare"]);
        run(&["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/gone"]);
        let git = Git::of_machine(None, &progress).expect("git");
        let fsck = || git.fsck(dir.path(), Duration::from_secs(60)).expect("runs");
        assert_eq!(fsck(), Finding::Sound(0));
        // A reference whose file a power cut has filled is a fault.
        let heads = dir.path().join("refs/heads/a");
        std::fs::write(heads, "0".repeat(40) + "\n").expect("writes");
        assert!(matches!(fsck(), Finding::Faulty(_)), "{:?}", fsck());
    }
}
