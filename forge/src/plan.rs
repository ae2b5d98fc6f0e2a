//! What a backup of an instance would do: everything resolved, nothing done.
//!
//! A kind makes it from the settings and from what it finds on the machine; the
//! session carries it out; `config check` prints it.

use crate::copy::{Mount, shown};
use crate::links;
use crate::run::Command;
use crate::service::control::Control;
use crate::service::postgres::Server;
use crate::service::redis::Redis;
use crate::settings::{ChangedKeys, Missing, Mode, OnFailure, Sample, Settings};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::observe::Progress;

/// All that is needed to back up one instance. A kind fills it, then the settings have
/// their say.
#[derive(Debug)]
pub struct Plan {
    /// Name of the instance.
    pub instance: String,
    /// Name of its kind.
    pub kind: &'static str,
    /// How parts are made to fit each other.
    pub mode: Mode,
    /// What is installed.
    pub product: Product,
    /// What is copied.
    pub parts: Vec<Part>,
    /// What a service sees inside a directory and what is elsewhere on this machine, because it
    /// is mounted there or a link leads there. Each is in a part as well.
    pub mounts: Vec<Mount>,
    /// What is known to be missing before anything is looked for.
    pub lacking: Vec<Absent>,
    /// What is not, and why.
    pub left_out: Vec<LeftOut>,
    /// The database server.
    pub postgres: Option<Server>,
    /// The databases that may not be missing.
    pub databases: Vec<Database>,
    /// Redis.
    pub redis: Option<Redis>,
    /// How the services that write are stopped.
    pub control: Control,
    /// All services, where a file says which there are.
    pub services: Vec<String>,
    /// Commands to run before anything is copied.
    pub before: Vec<Step>,
    /// Commands to run at the end.
    pub after: Vec<Step>,
    /// Leave out what git can make again.
    pub skips_git_caches: bool,
    /// Globs of what to leave out of all parts.
    pub exclude: Vec<String>,
    /// Words to find the snapshot by.
    pub tags: Vec<String>,
    /// Rows to compare with files.
    pub sample: Sample,
    /// Parts that the settings allow to be missing, or all, of which nothing need be there though
    /// databases name it.
    pub excused: Excused,
    /// Whether other keys than before are worth a warning.
    pub changed_keys: ChangedKeys,
    /// What is odd and worth a line.
    pub notes: Vec<String>,
}

impl Plan {
    /// One that the kind has yet to fill.
    pub fn new(instance: &str, kind: &'static str, settings: &Settings) -> Plan {
        Plan {
            instance: instance.into(),
            kind,
            mode: settings.mode,
            product: Product::default(),
            parts: Vec::new(),
            mounts: Vec::new(),
            lacking: Vec::new(),
            left_out: Vec::new(),
            postgres: None,
            databases: Vec::new(),
            redis: None,
            control: Control::Nothing,
            services: Vec::new(),
            before: settings.before.iter().map(Step::of).collect(),
            after: settings.after.iter().map(Step::of).collect(),
            skips_git_caches: false,
            exclude: settings.exclude.clone(),
            tags: settings.tags.clone(),
            sample: settings.checks.sample,
            excused: Excused::of(settings),
            changed_keys: settings.keys.changed,
            notes: Vec::new(),
        }
    }

    /// A part without which there is no backup.
    pub fn needs(&mut self, name: &str, about: &str, path: PathBuf) -> &mut Part {
        self.part(name, about, path, true)
    }

    /// A part that not every instance has.
    pub fn takes(&mut self, name: &str, about: &str, path: PathBuf) -> &mut Part {
        self.part(name, about, path, false)
    }

    /// Something without which there is no backup, and which is nowhere; `looked_for` says
    /// what and where, and never a secret.
    pub fn lacks(&mut self, name: &str, looked_for: impl Into<String>) {
        let looked_for = looked_for.into();
        self.lacking.push(Absent { part: name.into(), looked_for, is_required: true });
    }

    /// A part, by default of ordinary files.
    pub fn part(&mut self, name: &str, about: &str, path: PathBuf, is_required: bool) -> &mut Part {
        let at = self.parts.len();
        self.parts.push(Part {
            name: name.into(),
            about: about.into(),
            paths: vec![path],
            links: Vec::new(),
            phase: Phase::Files,
            is_required,
            needs_all: false,
            owner: None,
            exclude: Vec::new(),
        });
        &mut self.parts[at]
    }

    /// A storage of git repositories: repositories first, then the pools they borrow from.
    pub fn storage(&mut self, name: &str, path: &Path, owner: Option<&str>) {
        let repositories = self.needs(name, "git repositories", path.to_owned());
        repositories.phase = Phase::Repositories;
        repositories.owner = owner.map(str::to_owned);
        let pools =
            self.takes(&format!("{name}-pools"), "objects that forks share", path.join("@pools"));
        pools.phase = Phase::Pools;
        pools.owner = owner.map(str::to_owned);
        self.leaves(path.join("+gitaly"), "made by Gitaly when it starts");
    }

    /// Something that is not copied.
    pub fn leaves(&mut self, path: PathBuf, reason: &str) {
        self.left_out.push(LeftOut { path, reason: reason.into() });
    }

    /// The directory of this machine in which a service saves what it has, if a part says so.
    pub fn saves_dir(&self) -> Option<&Path> {
        let path = self.parts.iter().find(|part| part.phase == Phase::Saves)?.paths.first()?;
        if path.is_dir() { Some(path) } else { path.parent() }
    }

    /// Names of all services, of the file that says them or of who supervises them.
    pub fn all_services(&self, progress: &Progress) -> Vec<String> {
        if self.services.is_empty() {
            self.control.services(progress)
        } else {
            self.services.clone()
        }
    }

    /// Adds to each part what links in its own lead to outside of all parts, as when one of its
    /// directories was moved to another disk. Only links directly in its paths, which have to be
    /// resolved, and in what is added. Where the settings name the place (`is_named`), the admin
    /// has chosen, and what is not taken is noted.
    pub fn follow_links(&mut self, root: &Path, is_named: impl Fn(&str) -> bool) {
        let all = self.parts.iter().flat_map(|part| part.paths.iter().cloned());
        let mut taken: Vec<PathBuf> = all.collect();
        for part in &mut self.parts {
            // Directories to look into, and where the service sees each.
            let mut left: Vec<(PathBuf, PathBuf)> =
                part.paths.iter().map(|path| (path.clone(), path.clone())).collect();
            while let Some((dir, seen)) = left.pop() {
                for (link, real) in links_in(root, &dir) {
                    let end = real.path;
                    let seen = seen.join(link.file_name().unwrap_or_default());
                    let is_in = |known: &PathBuf| end.starts_with(known);
                    let is_left = self.left_out.iter().any(|left| is_in(&left.path));
                    let is_dir = end.is_dir();
                    if !real.is_there {
                        self.notes.push(leads_nowhere(&link, &end));
                        continue;
                    }
                    if !taken.iter().any(is_in) {
                        // Not half a machine for the sake of one link.
                        let has_parts = taken.iter().any(|known| known.starts_with(&end));
                        if is_left || has_parts || is_named(&part.name) {
                            if !is_left {
                                self.notes.push(format!(
                                    "{} leads to {}, which is not copied; make that a part if it should be",
                                    shown(&link),
                                    shown(&end)
                                ));
                            }
                            continue;
                        }
                        part.links.extend(real.links.into_iter().filter(|known| *known != link));
                        taken.push(end.clone());
                        part.paths.push(end.clone());
                        if is_dir {
                            left.push((end.clone(), seen.clone()));
                        }
                    }
                    if is_dir {
                        self.mounts.push(Mount { seen, path: end });
                    }
                }
            }
        }
    }

    /// The first place of a part.
    pub fn place(&self, part: &str) -> Option<PathBuf> {
        self.parts.iter().find(|known| known.name == part)?.paths.first().cloned()
    }
}

/// What may be nowhere, though databases name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excused {
    /// Whatever it is.
    All,
    /// These parts.
    Parts(Vec<String>),
}

impl Excused {
    /// What the settings say.
    pub fn of(settings: &Settings) -> Excused {
        if settings.checks.lost == Missing::Ok {
            return Excused::All;
        }
        let parts = settings.parts.iter().filter(|(_, part)| part.missing == Some(Missing::Ok));
        Excused::Parts(parts.map(|(name, _)| name.clone()).collect())
    }

    /// Whether this part may be nowhere.
    pub fn has(&self, part: &str) -> bool {
        match self {
            Excused::All => true,
            Excused::Parts(parts) => parts.iter().any(|known| known == part),
        }
    }
}

/// What is installed, for whoever restores it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Product {
    /// Its name.
    pub name: String,
    /// Such as `ce` or `ee`.
    pub edition: Option<String>,
    /// As it calls itself.
    pub version: Option<String>,
    /// The image of its container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl Product {
    /// Major and minor version.
    pub fn version_numbers(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.as_deref()?.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// One part of an instance that consists of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Name in the configuration.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Where it is; without symbolic links, where it is there.
    pub paths: Vec<PathBuf>,
    /// Symbolic links that lead to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<PathBuf>,
    /// When it is copied.
    pub phase: Phase,
    /// Whether the backup is complete without it.
    pub is_required: bool,
    /// Whether all of its paths have to be there; otherwise they are alternatives.
    #[serde(skip)]
    pub needs_all: bool,
    /// Who should own it, where the kind knows: a name, or numbers of user and group (`1000:1000`).
    pub owner: Option<String>,
    /// Globs of what to leave out of it.
    pub exclude: Vec<String>,
}

/// A part that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// Its name.
    pub part: String,
    /// Where it was looked for.
    pub looked_for: String,
    /// Whether the backup is incomplete without it.
    pub is_required: bool,
}

impl Absent {
    /// A part that is not there.
    pub fn of(part: &Part) -> Absent {
        let absent = part.paths.iter().filter(|path| !path.exists());
        let looked_for: Vec<String> = absent.map(|path| shown(path)).collect();
        Absent {
            part: part.name.clone(),
            looked_for: looked_for.join(", "),
            is_required: part.is_required,
        }
    }
}

impl Part {
    /// Whether it is there. A link that leads nowhere is not.
    pub fn is_there(&self) -> bool {
        let mut paths = self.paths.iter();
        if self.needs_all {
            !self.paths.is_empty() && paths.all(|path| path.exists())
        } else {
            paths.any(|path| path.exists())
        }
    }

    /// Finds out where its paths really are, and what leads there. Links are followed below the
    /// root; what one leads to and is not there is told.
    pub fn resolve(&mut self, root: &Path) -> Vec<String> {
        let mut notes = Vec::new();
        for path in &mut self.paths {
            // Whatever cannot be followed is left to the copy, which tells why.
            let Ok(real) = links::follow(root, path) else { continue };
            if let Some(link) = real.links.last()
                && let Ok(end) = links::follow(root, link)
                && !end.is_there
            {
                notes.push(leads_nowhere(link, &end.path));
            }
            for link in real.links {
                if !self.links.contains(&link) {
                    self.links.push(link);
                }
            }
            *path = real.path;
        }
        notes
    }
}

/// Links directly in a directory, and where they lead.
fn links_in(root: &Path, dir: &Path) -> Vec<(PathBuf, links::Real)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let mut links: Vec<PathBuf> = links.map(|entry| entry.path()).collect();
    links.sort();
    let end = |link: PathBuf| links::follow(root, &link).ok().map(|end| (link, end));
    links.into_iter().filter_map(end).collect()
}

fn leads_nowhere(link: &Path, target: &Path) -> String {
    format!("{} leads to {}, which is not there", shown(link), shown(target))
}

/// When a part is copied. Whoever refers to something comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Git repositories, which borrow objects from pools.
    Repositories,
    /// Pools of objects.
    Pools,
    /// Everything else.
    Files,
    /// What a service writes when it is asked to save.
    Saves,
}

/// Something that is not copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Where it is.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

impl LeftOut {
    /// Finds out where it really is, for that is where a copy would come upon it.
    pub fn resolve(&mut self, root: &Path) {
        if let Ok(real) = links::follow(root, &self.path) {
            self.path = real.path;
        }
    }
}

/// A database that the kind or the settings name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// What it is for, such as `main`.
    pub purpose: String,
    /// Whether the backup is complete without it.
    pub is_required: bool,
}

/// A command of the admin's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to run.
    pub command: Command,
    /// What its failure means.
    pub on_failure: OnFailure,
}

impl Database {
    /// Its name as a part.
    pub fn part(&self) -> String {
        format!("database-{}", self.purpose)
    }
}

impl Step {
    /// From the settings.
    pub fn of(settings: &crate::settings::StepSettings) -> Step {
        let limit = settings.limit.map_or(Duration::from_secs(60), |limit| limit.0);
        let command =
            Command::new(settings.command.clone()).by(settings.user.as_deref()).within(limit);
        Step { command, on_failure: settings.on_failure }
    }
}
