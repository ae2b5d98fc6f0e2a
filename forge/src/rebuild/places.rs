//! Compares the places of parts in a snapshot with those that the instance uses on this machine.
//!
//! A rebuild restores files to the places of the snapshot. The volumes of a container, or paths in
//! the configuration, may be others by now, and the instance would never see the files.

use super::files::{self, Files};
use super::part_links::{self, PartLink};
use super::{Job, Rebuild, Stage, shown};
use crate::check::{Check, Verdict};
use crate::error::{Error, OtherPlace, Result};
use crate::kind::{Rebuilding, Site};
use crate::overrides;
use crate::plan::{Part, Phase, Plan};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Part with the files that create containers.
const COMPOSE: &str = "compose";
/// Parts of containers whose places do not depend on the restored configuration.
const OF_CONTAINER: [&str; 2] = [COMPOSE, "config"];

/// Finds the places of paths once the links of the snapshot are restored.
struct Places<'a> {
    job: &'a Job<'a>,
    links: Vec<PartLink>,
}

impl Rebuild<'_, '_> {
    /// Fails if the instance would look elsewhere for restored files. `predicted` is the plan with
    /// the configuration of the snapshot.
    pub fn expect_places(
        &mut self,
        rebuilding: &Rebuilding,
        predicted: Option<&Plan>,
    ) -> Result<()> {
        let job = self.job;
        let Job { instance, settings, store, .. } = *job;
        let progress = store.observer().progress();
        // Links to parts and within them are restored as they were.
        let here = overrides::unresolved(&Site { instance, settings, progress, is_offline: false });
        let here = match here {
            Ok((plan, _)) => Some(plan),
            Err(error) if error.is_interrupted() => return Err(error),
            Err(_) => None,
        };
        let places = Places::of(job);
        let mut differing = Vec::from_iter(places.of_compose_files());
        if let Some(here) = &here {
            let is_contained = here.product.image.is_some();
            let is_container_up = rebuilding.is_container_up;
            let volumes = predicted.map(|then| places.of_volumes(then, here, is_container_up));
            differing.extend(volumes.unwrap_or_default());
            let is_compared =
                |part: &Part| is_contained && OF_CONTAINER.contains(&part.name.as_str());
            differing.extend(places.of_parts(here, is_compared));
        }
        // Without a configuration in the snapshot, that of this machine holds.
        let last = predicted.or(here.as_ref().filter(|_| rebuilding.first.is_empty()));
        if let Some(last) = last {
            let is_known =
                |part: &Part| !last.is_assumed || rebuilding.first.contains(&part.name.as_str());
            differing.extend(places.of_parts(last, is_known));
            for (part, path) in places.unknown(last) {
                let text = format!(
                    "part `{part}` is not in the configuration of this machine; its place is {}",
                    shown(path)
                );
                (self.say)(Stage::Preconditions, &text);
            }
        }
        let differing = outermost(differing);
        if differing.is_empty() { Ok(()) } else { Err(Error::OtherPlaces(differing)) }
    }

    /// Compares the places of parts with those that the rebuilt instance uses.
    pub fn examine_places(&self) -> Result<Option<Check>> {
        let Job { instance, settings, store, .. } = *self.job;
        let progress = store.observer().progress();
        let site = Site { instance, settings, progress, is_offline: false };
        let (plan, _) = overrides::unresolved(&site)?;
        if plan.is_assumed {
            return Ok(None);
        }
        let differing = outermost(Places::of(self.job).of_parts(&plan, |_| true));
        if differing.is_empty() {
            return Ok(None);
        }
        let text = "files were restored to places at which the instance does not look";
        let hint = "move them to the places on this machine, or change its configuration, and restart \
                    the services";
        let check = Check::new("places", Verdict::Failed, text).with_hint(hint);
        Ok(Some(check.with_examples(differing.iter().map(ToString::to_string))))
    }
}

impl<'a> Places<'a> {
    fn of(job: &'a Job<'a>) -> Places<'a> {
        let parts: Vec<&Part> = job.manifest.parts.iter().collect();
        Places { job, links: part_links::read(job, &parts) }
    }

    /// Returns the place of a path on this machine.
    fn place(&self, path: &Path) -> PathBuf {
        let followed = part_links::followed(self.job, &self.links, path);
        // A link that leads a rebuild astray is reported when it is followed.
        files::place(self.job, &followed).unwrap_or(followed)
    }

    /// Returns true if two paths lead to one place, or one of them to a place within the other.
    fn is_related(&self, a: &Path, b: &Path) -> bool {
        let id = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
        let (a, b) = (self.place(a), self.place(b));
        a.starts_with(&b) || b.starts_with(&a) || id(&a).is_some_and(|a| Some(a) == id(&b))
    }

    /// Compares the parts of the snapshot with those of a plan.
    fn of_parts(&self, plan: &Plan, is_compared: impl Fn(&Part) -> bool) -> Vec<OtherPlace> {
        let parts = self.job.manifest.parts.iter().filter(|part| is_compared(part));
        let other = |part: &Part| {
            let here = plan.parts.iter().find(|known| known.name == part.name)?;
            let here = || here.paths.iter();
            let mut restored = files::restored_paths(self.job, part).into_iter();
            let then = restored.find(|path| !here().any(|here| self.is_related(path, here)))?;
            let is_new =
                |path: &&PathBuf| !part.paths.iter().any(|then| self.is_related(then, path));
            let here = here().find(is_new)?.clone();
            Some(OtherPlace { what: format!("part `{}`", part.name), then, here: Some(here) })
        };
        parts.filter_map(other).collect()
    }

    /// Compares the volumes that the compose file of the snapshot names with those of this machine.
    /// With `needs_all`, volumes count that this machine lacks.
    fn of_volumes(&self, then: &Plan, here: &Plan, needs_all: bool) -> Vec<OtherPlace> {
        let parts = || self.job.manifest.parts.iter().flat_map(|part| &part.paths);
        // The data of servers in other containers is not in parts.
        let counts = then.volumes.iter().filter(|volume| {
            volume.service.is_some() || parts().any(|path| path.starts_with(&volume.path))
        });
        let other = counts.filter_map(|volume| {
            let mut known = here.volumes.iter();
            let known = known
                .find(|known| known.service == volume.service && known.target == volume.target);
            let is_other = match known {
                Some(known) => !self.is_related(&volume.path, &known.path),
                None => needs_all,
            };
            let what = match &volume.service {
                Some(service) => format!("volume {} of {service}", shown(&volume.target)),
                None => format!("volume {}", shown(&volume.target)),
            };
            let here = known.map(|known| known.path.clone());
            is_other.then(|| OtherPlace { what, then: volume.path.clone(), here })
        });
        other.collect()
    }

    /// Returns compose files in the settings that are at other places than those of the snapshot.
    fn of_compose_files(&self) -> Option<OtherPlace> {
        let here = self.job.settings.compose.first()?;
        let mut known = self.job.manifest.paths_of(COMPOSE);
        let then = known.next()?.to_owned();
        let is_known = self.job.manifest.paths_of(COMPOSE).any(|path| self.is_related(path, here));
        let what = format!("part `{COMPOSE}`");
        (!is_known).then(|| OtherPlace { what, then, here: Some(here.clone()) })
    }

    /// Returns parts of no product that neither a part nor a path of a plan has.
    fn unknown<'p>(&'p self, plan: &'p Plan) -> Vec<(&'p str, &'p PathBuf)> {
        let is_product = crate::kind::find(plan.kind).is_none_or(|kind| kind.is_product());
        let here = || plan.parts.iter().flat_map(|part| &part.paths);
        let parts = self.job.manifest.parts.iter().filter(|part| {
            !is_product
                && part.phase != Phase::RedisFiles
                && !plan.parts.iter().any(|known| known.name == part.name)
        });
        let first = parts.filter_map(|part| Some((part.name.as_str(), part.paths.first()?)));
        first.filter(|(_, path)| !here().any(|here| self.is_related(path, here))).collect()
    }
}

/// Returns those of other places that do not follow from one around them.
fn outermost(all: Vec<OtherPlace>) -> Vec<OtherPlace> {
    let mut left: Vec<OtherPlace> = Vec::new();
    for other in all {
        let follows = left.iter().any(|outer| match other.then.strip_prefix(&outer.then) {
            Ok(inner) => {
                let here = outer.here.as_ref().map(|here| here.join(inner).components().collect());
                here.is_none() || here == other.here
            }
            Err(_) => false,
        });
        if !follows {
            left.push(other);
        }
    }
    left
}

/// Makes the directories of parts in a copy of the configuration, which a kind may look for. The
/// paths of `configuration` are there already, and are shown at the places of this machine, too.
pub fn show_parts(job: &Job<'_>, configuration: &Files, copy: &Path) -> std::io::Result<()> {
    let at = |path: &Path| copy.join(path.strip_prefix("/").unwrap_or(path));
    // A link of the snapshot may lead out of the copy.
    let is_within = |path: &Path| {
        let known = path.ancestors().find(|above| above.symlink_metadata().is_ok());
        known.and_then(|known| known.canonicalize().ok()).is_some_and(|real| real.starts_with(copy))
    };
    for part in &job.manifest.parts {
        for path in files::restored_paths(job, part) {
            let dir = at(&path);
            if files::is_dir(job, &path) && is_within(&dir) {
                std::fs::create_dir_all(dir)?;
            }
        }
    }
    for path in configuration.paths() {
        let Ok(place) = files::place(job, path) else { continue };
        let (place, own) = (at(&place), at(path));
        if place == own || place.symlink_metadata().is_ok() || !is_within(&place) {
            continue;
        }
        if let Some(dir) = place.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::os::unix::fs::symlink(own, place)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_within_a_moved_directory_are_not_named_again() {
        let other = |then: &str, here: &str| OtherPlace {
            what: then.into(),
            then: then.into(),
            here: Some(here.into()),
        };
        let all = vec![
            other("/old/config", "/new/config"),
            other("/old/config/gitlab.rb", "/new/config/gitlab.rb"),
            other("/old/config", "/new/config"),
            other("/old/config/x", "/else/x"),
            other("/old/data", "/new/data"),
        ];
        let left = outermost(all);
        let named: Vec<&str> = left.iter().map(|other| other.what.as_str()).collect();
        assert_eq!(named, ["/old/config", "/old/config/x", "/old/data"]);
    }
}
