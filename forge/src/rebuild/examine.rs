//! Examines a rebuilt instance.

use super::files::{absolute, place};
use super::{Rebuild, Stage, expect_same};
use crate::check::{Check, Verdict};
use crate::drill::git::{Finding, Git};
use crate::error::Result;
use crate::kind::gitlab::repositories::reference_names;
use crate::plan::{Phase, Plan};
use crate::process::Command;
use crate::session::{Inspection, inspect};
use crate::view::{View, shown};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::backup::tree_path;
use store::entry::EntryKind;
use store::tree::TreeReader;

/// Name of the check of repositories.
pub const FSCK: &str = "fsck";
/// End of the name of a bare repository.
const BARE: &[u8] = b".git";
/// Time limit of examining one repository.
const LIMIT: Duration = Duration::from_secs(30 * 60);

impl Rebuild<'_, '_> {
    /// Compares the instance with its databases and with the snapshot, and tries it as its own user.
    pub fn examine(&mut self) -> Result<()> {
        if self.job.is_dry {
            let text = "would compare rows with files, try the keys, run git fsck on a sample, and \
                        read and write as the product's user";
            (self.say)(Stage::Checks, text);
            return Ok(());
        }
        let (plan, kind) = self.plan()?;
        let progress = self.job.store.observer().progress();
        let Inspection { missing, checks, product: here, .. } =
            inspect(&plan, kind, None, progress)?;
        if kind.rebuilding().is_version_in_database
            && let Err(error) = expect_same(&self.job.manifest.product, &here)
        {
            let hint = "it may have changed the database: install the version of the snapshot, and \
                        rebuild once more";
            let check = Check::new("version", Verdict::Failed, error.to_string()).with_hint(hint);
            self.outcome.checks.push(check);
        }
        let lost = missing.iter().filter(|absent| absent.is_required);
        let lost = lost.map(|absent| {
            let text = format!("{} is missing: {}", absent.part, absent.looked_for);
            Check::new("parts", Verdict::Failed, text)
        });
        self.outcome.checks.extend(lost);
        self.outcome.checks.extend(checks);
        self.outcome.checks.extend(self.examine_queue(&plan));
        self.outcome.checks.extend(self.examine_places()?);
        let written = self.write(&plan);
        self.outcome.checks.extend(written);
        let made = self.record.checks().len() + self.outcome.checks.len();
        (self.say)(Stage::Checks, &format!("{made} made"));
        Ok(())
    }

    /// Runs `git fsck` on some repositories, as the product's user. Also compares their references
    /// with those of the snapshot if `compares`.
    pub fn repositories(&self, compares: bool) -> Result<Option<Check>> {
        let (job, progress) = (self.job, self.job.store.observer().progress());
        let sample = self.sample()?;
        if sample.is_empty() {
            return Ok(None);
        }
        let user = user(&self.plan()?.0);
        let Some(git) = Git::of_machine(user.as_deref(), progress) else {
            let text = "git is not installed, so no repository was examined";
            return Ok(Some(Check::new(FSCK, Verdict::Unknown, text)));
        };
        let view = View::Tree { store: job.store, root: job.snapshot.root.chunk() };
        let (mut sound, mut references, mut faults, mut unknown) = (0, 0, Vec::new(), Vec::new());
        for path in &sample {
            let dir = place(job, path)?;
            let examined = match compares {
                true => git.examine(&dir, reference_names::read(&view, path)?.as_ref(), LIMIT)?,
                false => git.fsck(&dir, LIMIT)?,
            };
            match examined {
                Finding::Sound(count) => {
                    sound += 1;
                    references += count;
                }
                Finding::Faulty(reason) => faults.push(format!("{}: {reason}", shown(path))),
                Finding::Unknown(reason) => unknown.push(format!("{}: {reason}", shown(path))),
            }
        }
        let as_user = user.map_or_else(String::new, |user| format!(" as user {user}"));
        let mut text = format!("{sound} of {} repositories without fault{as_user}", sample.len());
        if compares {
            text += &format!("; {references} references are those of the snapshot");
        }
        let verdict = match (faults.is_empty(), unknown.is_empty()) {
            (true, true) => Verdict::Ok,
            (true, false) => Verdict::Unknown,
            (false, _) => Verdict::Failed,
        };
        Ok(Some(Check::new(FSCK, verdict, text).with_examples(faults.into_iter().chain(unknown))))
    }

    /// Returns some repositories of the snapshot, spread over all.
    fn sample(&self) -> Result<Vec<PathBuf>> {
        let job = self.job;
        let root = job.snapshot.root.chunk();
        let mut all = Vec::new();
        let parts = job.manifest.parts.iter().filter(|part| part.phase == Phase::Repositories);
        for path in parts.flat_map(|part| &part.paths) {
            for entry in TreeReader::within(&root, &tree_path(path), job.store).flatten() {
                job.store.observer().progress().check()?;
                if entry.kind == EntryKind::Directory && entry.path.ends_with(BARE) {
                    all.push(absolute(&entry.path));
                }
            }
        }
        let step = all.len().div_ceil(job.sample.max(1)).max(1);
        Ok(all.into_iter().step_by(step).take(job.sample).collect())
    }

    /// Writes a file into a storage or another part as the product's user, and removes it.
    fn write(&self, plan: &Plan) -> Option<Check> {
        let user = user(plan)?;
        let named = |name: &str| plan.parts.iter().find(|part| part.name == name)?.paths.first();
        let dir = named("repositories").or_else(|| named("uploads")).or_else(|| named("data"))?;
        let text = dir.to_str()?;
        let template = format!("{text}/.forgekeep-trial-XXXXXX");
        let written = Command::new(["mktemp", &template]).by(Some(&user));
        let written = written.output(self.job.store.observer().progress());
        Some(match written {
            Ok(path) => {
                let path = String::from_utf8_lossy(&path);
                // Only a file of the name that was asked for.
                let path = Path::new(path.trim());
                if path.parent() == Some(dir) {
                    let _ = std::fs::remove_file(path);
                }
                Check::ok("write", format!("user {user} can write to {}", shown(dir)))
            }
            Err(error) => {
                let text = format!("user {user} cannot write to {}: {error}", shown(dir));
                Check::new("write", Verdict::Failed, text)
            }
        })
    }
}

/// Returns the user of the product, if this machine has it.
fn user(plan: &Plan) -> Option<String> {
    let owner = crate::owners::main_account(&plan.parts)?;
    let name = owner.split(':').next().unwrap_or(&owner).to_owned();
    nix::unistd::User::from_name(&name).ok().flatten().map(|_| name)
}
