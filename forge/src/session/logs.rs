//! Write-ahead logs of repositories, with their databases.
//!
//! Gitaly acknowledges a push when it is in the log, applies it to the repository, notes that in a
//! database, and then drops it from the log. A copy of both from one moment, and repositories of a
//! later moment, lack nothing: Gitaly applies the rest of the log at its next start.

use super::Session;
use crate::error::Result;
use crate::plan::{Absent, Part, Phase};
use crate::view::shown;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Maximum number of copies until none of the files changes meanwhile.
const COPIES_MAX: usize = 5;
/// Pause before another copy.
const PAUSE: Duration = Duration::from_millis(300);

/// Files and directories, each with the facts that a change would change.
type State = BTreeMap<PathBuf, (u64, u64, (i64, i64))>;

impl Session<'_> {
    /// Copies the logs until they do not change during a copy. Otherwise they count as missing.
    pub(super) fn copy_logs(&mut self) -> Result<()> {
        let plan = self.job.plan;
        let logs: Vec<&Part> =
            plan.parts.iter().filter(|part| part.phase == Phase::Logs && part.is_there()).collect();
        if logs.is_empty() || self.job.options.is_dry {
            return self.copy(&[Phase::Logs]);
        }
        let names = logs.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", ");
        // Of an earlier copy in this run.
        self.missing.retain(|absent| absent.part != names);
        let state = || -> State {
            let mut state = State::new();
            let skipped = |path: &Path| plan.skipped.iter().any(|left| left.path == path);
            logs.iter()
                .flat_map(|part| &part.paths)
                .for_each(|path| add(path, &skipped, &mut state));
            state
        };
        let mut before = state();
        for copy in 1.. {
            self.copy(&[Phase::Logs])?;
            let after = state();
            if after == before {
                break;
            }
            if copy == COPIES_MAX {
                let places: Vec<String> =
                    logs.iter().flat_map(|part| &part.paths).map(|path| shown(path)).collect();
                self.missing.push(Absent {
                    part: names,
                    looked_for: format!(
                        "a consistent copy of {}; Gitaly changed it during each of {COPIES_MAX} \
                         copies; back up at a quieter time, or with `mode = \"maintenance\"`",
                        places.join(", ")
                    ),
                    is_required: !logs.iter().all(|part| plan.excused.has(&part.name)),
                });
                break;
            }
            // Files of different copies do not belong together.
            self.backup.drop_pass();
            self.job.store.observer().progress().check()?;
            std::thread::sleep(PAUSE);
            before = state();
        }
        Ok(())
    }
}

/// Adds a path with everything below it.
fn add(path: &Path, is_skipped: &impl Fn(&Path) -> bool, state: &mut State) {
    let Ok(metadata) = path.symlink_metadata() else { return };
    let facts = |of: &Metadata| (of.ino(), of.size(), (of.ctime(), of.ctime_nsec()));
    state.insert(path.to_owned(), facts(&metadata));
    if metadata.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| !is_skipped(path)) {
            add(&path, is_skipped, state);
        }
    }
}
