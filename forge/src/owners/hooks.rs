//! Hooks that do not run because they are not executable. They are named and never repaired: an
//! administrator may have disabled them on purpose.

use super::EACH;
use crate::plan::{Part, Phase};
use crate::view::shown;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Hooks that git runs for a repository, if they are directly in its directory of hooks.
const NAMES: [&str; 3] = ["pre-receive", "update", "post-receive"];

/// Directory of hooks in a repository.
const OF_REPOSITORY: &str = "custom_hooks";

/// Part with hooks for all repositories.
const OF_SERVER: &str = "server-hooks";

/// Part with programs that GitLab runs at events.
const OF_EVENTS: &str = "file-hooks";

/// Bits of which an executable file has one.
const EXECUTABLE: u32 = 0o111;

/// Hooks that do not run.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    count: usize,
    named: Vec<String>,
}

impl Hooks {
    /// Looks at all files of a part with hooks. Those in repositories are looked at one by one.
    pub(super) fn part(&mut self, part: &Part) {
        if part.name == OF_EVENTS {
            part.paths.iter().for_each(|path| self.file(path));
        }
        if part.name != OF_SERVER {
            return;
        }
        for dir in &part.paths {
            let inner = entries(dir).filter(|path| path.is_dir());
            for dir in inner.chain([dir.clone()]).filter(|dir| is_list(dir)) {
                entries(&dir).for_each(|path| self.file(&path));
            }
        }
    }

    /// Looks at a file of a part that is being walked through.
    pub(super) fn look(&mut self, part: &Part, path: &Path, metadata: &Metadata) {
        let name =
            |path: Option<&Path>| path.and_then(Path::file_name).unwrap_or_default().to_owned();
        let dir = path.parent();
        let is_hook = if dir.is_some_and(is_list) {
            name(dir.and_then(Path::parent)) == OF_REPOSITORY
        } else {
            name(dir) == OF_REPOSITORY && NAMES.iter().any(|known| name(Some(path)) == *known)
        };
        if part.phase == Phase::Repositories && is_hook {
            self.add(path, metadata);
        }
    }

    fn file(&mut self, path: &Path) {
        if let Ok(metadata) = path.metadata() {
            self.add(path, &metadata);
        }
    }

    fn add(&mut self, path: &Path, metadata: &Metadata) {
        // Editors leave copies with this end, which never run.
        let is_copy = path.as_os_str().as_encoded_bytes().ends_with(b"~");
        if metadata.is_file() && metadata.mode() & EXECUTABLE == 0 && !is_copy {
            self.count += 1;
            if self.named.len() < EACH {
                self.named.push(shown(path));
            }
        }
    }

    /// Describes them; empty without any.
    pub(super) fn text(&self) -> String {
        let (count, names) = (self.count, self.named.join(", "));
        match count - self.named.len() {
            _ if count == 0 => String::new(),
            0 => format!("; hooks that are not executable do not run: {names}"),
            more => format!("; hooks that are not executable do not run: {names} and {more} more"),
        }
    }
}

/// Returns true for a directory of several hooks of one name.
fn is_list(dir: &Path) -> bool {
    dir.extension().is_some_and(|end| end == "d")
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}
