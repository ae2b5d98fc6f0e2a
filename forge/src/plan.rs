//! Plan of a backup: everything is resolved, nothing is done yet.
//!
//! A kind makes the plan from the settings and the state of the machine. The session carries it
//! out; `config check` prints it.

use crate::links;
use crate::service::control::Control;
use crate::service::postgres::Server;
use crate::service::redis::Redis;
use crate::service::step::Step;
use crate::settings::{ChangedKeys, Missing, Mode, PartSettings, Sample, Settings};
use crate::view::{Mount, as_text, as_texts, shown};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use store::backup::MaxLoss;
use store::observe::Progress;

/// Part with the sites of users.
const PAGES: &str = "pages";
/// Maximum number of directories within one directory in which links are looked for. Debug builds
/// have a small limit, which tests reach.
const DIRS_MAX: usize = if cfg!(debug_assertions) { 300 } else { 50_000 };

/// Everything needed to back up one instance. A kind fills it, then the settings change it.
#[derive(Debug)]
pub struct Plan {
    /// Name of the instance.
    pub instance: String,
    /// Name of its kind.
    pub kind: &'static str,
    /// Directory of this machine that the instance regards as `/`.
    pub root: PathBuf,
    /// True if that directory has the instance's data itself, so that its accounts must enter it.
    pub is_root_entered: bool,
    /// Method that keeps the parts consistent with each other.
    pub mode: Mode,
    /// The installed product.
    pub product: Product,
    /// Parts to copy.
    pub parts: Vec<Part>,
    /// Paths that a service sees inside a directory, but that are elsewhere on this machine because
    /// of a mount or a link. Each is also in a part.
    pub mounts: Vec<Mount>,
    /// True if places of parts are only assumed, because a database with settings was not read.
    pub is_assumed: bool,
    /// Directories of this machine that containers have as volumes.
    pub volumes: Vec<Volume>,
    /// Parts that the kind could not locate.
    pub lacking: Vec<Absent>,
    /// Excluded paths with their reasons.
    pub skipped: Vec<SkippedPath>,
    /// Files and directories of this program, such as stores. They may be inside parts, and nothing
    /// there belongs to the instance.
    pub own: Vec<PathBuf>,
    /// Data of servers that is not copied as files, as parts with an owner.
    pub servers: Vec<Part>,
    /// Directories within parts, usual but not necessary, whose loss is reported.
    pub inner_dirs: Vec<PathBuf>,
    /// The database server.
    pub postgres: Option<Server>,
    /// Databases that the kind or the settings name.
    pub databases: Vec<Database>,
    /// Databases of GitLab's tables by section of `database.yml`, such as `main` and `ci`; `None` on
    /// another server.
    pub sections: BTreeMap<String, Option<String>>,
    /// Directory that the product has for uploads of its system, as it sees it; `None` for the usual
    /// one.
    pub uploads_base_dir: Option<String>,
    /// True if the settings list the databases.
    pub has_listed_databases: bool,
    /// The Redis server.
    pub redis: Option<Redis>,
    /// Control of the services that write.
    pub control: Control,
    /// Names of all services, if a file lists them.
    pub services: Vec<String>,
    /// Commands to run before the copy begins.
    pub before: Vec<Step>,
    /// Commands to run at the end.
    pub after: Vec<Step>,
    /// True if files that git can rebuild are excluded.
    pub skips_git_caches: bool,
    /// Globs of paths to exclude from all parts.
    pub exclude: Vec<String>,
    /// Tags of the snapshot.
    pub tags: Vec<String>,
    /// Number of rows to compare with files.
    pub sample: Sample,
    /// Projects whose rows are compared with files: the newest rows of each table. `None` for those of
    /// all projects.
    pub projects: Option<BTreeSet<u64>>,
    /// Parts whose files may be missing although databases name them.
    pub excused: Excused,
    /// Limits for the share of its files that a part may lose between two backups.
    pub max_loss: PartLimits,
    /// Treatment of changed keys.
    pub changed_keys: ChangedKeys,
    /// Findings for the report.
    pub notes: Vec<String>,
}

/// Directories below `+gitaly` that contain acknowledged writes: the write-ahead log, with the writes
/// that the repositories may lack, and the database that tells which these are. Gitaly reads both
/// even if its transactions are off by now.
const LOG: [&str; 2] = ["partitions", "database"];

/// Other directories below `+gitaly`.
const RUNTIME: [&str; 5] = ["cache", "PackObjectsCache", "staging", "state", "tmp"];

/// Reason for skipping these.
const RECREATED: &str = "recreated by Gitaly at start";

/// Name of the part with the write-ahead log of a storage.
pub fn log_of(storage: &str) -> String {
    format!("{storage}-log")
}

impl Plan {
    /// Makes a plan that the kind has yet to fill.
    pub fn new(instance: &str, kind: &'static str, settings: &Settings) -> Plan {
        Plan {
            instance: instance.into(),
            kind,
            root: settings.root.clone(),
            is_root_entered: false,
            mode: settings.mode,
            product: Product::default(),
            parts: Vec::new(),
            mounts: Vec::new(),
            is_assumed: false,
            volumes: Vec::new(),
            lacking: Vec::new(),
            skipped: Vec::new(),
            own: Vec::new(),
            servers: Vec::new(),
            inner_dirs: Vec::new(),
            postgres: None,
            databases: Vec::new(),
            sections: BTreeMap::new(),
            uploads_base_dir: None,
            has_listed_databases: settings.postgres.databases.is_some(),
            redis: None,
            control: Control::Nothing,
            services: Vec::new(),
            before: settings.before.iter().map(Step::of).collect(),
            after: settings.after.iter().map(Step::of).collect(),
            skips_git_caches: false,
            exclude: settings.exclude.clone(),
            tags: settings.tags.clone(),
            sample: settings.checks.sample,
            projects: None,
            excused: Excused::of(settings),
            max_loss: PartLimits::of(settings),
            changed_keys: settings.keys.changed,
            notes: Vec::new(),
        }
    }

    /// Adds a required part.
    pub fn needs(&mut self, name: &str, about: &str, path: PathBuf) -> &mut Part {
        self.part(name, about, path, true)
    }

    /// Adds a part that not every instance has.
    pub fn takes(&mut self, name: &str, about: &str, path: PathBuf) -> &mut Part {
        self.part(name, about, path, false)
    }

    /// Records a required part that was found nowhere. `looked_for` names the missing thing and the
    /// searched places, but never contains a secret.
    pub fn lacks(&mut self, name: &str, looked_for: impl Into<String>) {
        let looked_for = looked_for.into();
        self.lacking.push(Absent { part: name.into(), looked_for, is_required: true });
    }

    /// Adds data of a server, which only this user may own.
    pub fn serves(&mut self, name: &str, path: PathBuf, owner: &str) {
        let part = self.part(name, "data of a server", path, false);
        part.owner = Some(owner.into());
        self.servers.extend(self.parts.pop());
    }

    /// Adds a part, by default of ordinary files.
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

    /// A storage of git repositories: repositories first, then the pools they borrow from. The
    /// write-ahead log comes before both, if Gitaly keeps one.
    pub fn storage(&mut self, name: &str, path: &Path, owner: Option<&str>) {
        let repositories = self.needs(name, "git repositories", path.to_owned());
        repositories.phase = Phase::Repositories;
        repositories.owner = owner.map(str::to_owned);
        let pools =
            self.takes(&format!("{name}-pools"), "objects shared by forks", path.join("@pools"));
        pools.phase = Phase::Pools;
        pools.owner = owner.map(str::to_owned);
        let runtime = path.join("+gitaly");
        if !LOG.iter().any(|name| runtime.join(name).exists()) {
            return self.leaves(runtime, RECREATED);
        }
        for name in RUNTIME.into_iter().filter(|name| runtime.join(name).exists()) {
            self.leaves(runtime.join(name), RECREATED);
        }
        let log = self.takes(&log_of(name), "write-ahead log of Gitaly", runtime);
        log.phase = Phase::Logs;
        log.owner = owner.map(str::to_owned);
    }

    /// Excludes a path.
    pub fn leaves(&mut self, path: PathBuf, reason: &str) {
        self.skipped.push(SkippedPath { path, reason: reason.into() });
    }

    /// Globs of a part that apply at one of its paths. Other parts with that path need the files
    /// that they do not exclude themselves.
    pub fn excluded_at<'a>(
        &'a self,
        part: &'a Part,
        path: &'a Path,
    ) -> impl Iterator<Item = &'a String> {
        let has_path = move |other: &&Part| other.paths.iter().any(|known| known == path);
        let is_for_all = move |glob: &&String| {
            self.parts.iter().filter(has_path).all(|other| other.exclude.contains(glob))
        };
        part.exclude.iter().filter(is_for_all)
    }

    /// Directory on this machine with the persistence files of a service, if a part names it.
    pub fn redis_dir(&self) -> Option<&Path> {
        let path = self.parts.iter().find(|part| part.phase == Phase::RedisFiles)?.paths.first()?;
        if path.is_dir() { Some(path) } else { path.parent() }
    }

    /// Names of all services, from the file that lists them or else from the supervisor.
    pub fn all_services(&self, progress: &Progress) -> Vec<String> {
        if self.services.is_empty() {
            self.control.services(progress)
        } else {
            self.services.clone()
        }
    }

    /// Adds to each part the targets of its links that lie outside all parts, such as a directory
    /// that was moved to another disk. Considers links directly in the paths of a part, which must
    /// be resolved, and those deeper in parts of files, up to a number of directories. If the
    /// settings name the path of a part (`is_named`), nothing is added, and the target is noted.
    pub fn follow_links(&mut self, root: &Path, is_named: impl Fn(&str) -> bool) {
        let all = self.parts.iter().flat_map(|part| part.paths.iter().cloned());
        let mut taken: Vec<PathBuf> = all.collect();
        let taken_at_first = taken.clone();
        for part in &mut self.parts {
            // Directories to search, each with the path at which the service sees it.
            let mut left: Vec<(PathBuf, PathBuf)> =
                part.paths.iter().map(|path| (path.clone(), path.clone())).collect();
            // Checks find repositories behind links, and users choose the content of pages.
            let is_deep = part.phase == Phase::Files && part.name != PAGES;
            let is_elsewhere = |dir: &Path| {
                self.skipped.iter().any(|left| left.path == dir)
                    || taken_at_first.iter().any(|known| known == dir)
            };
            if is_deep {
                for path in &part.paths {
                    let (inner, is_all) = dirs_within(path, &is_elsewhere);
                    left.extend(inner.into_iter().map(|dir| (dir.clone(), dir)));
                    self.notes.extend((!is_all).then(|| too_deep(path)));
                }
            }
            while let Some((dir, seen)) = left.pop() {
                for (link, real) in links_in(root, &dir) {
                    let end = real.path;
                    let seen = seen.join(link.file_name().unwrap_or_default());
                    let is_in = |known: &PathBuf| end.starts_with(known);
                    // An administrator may keep data beside skipped files.
                    let is_left = self.skipped.iter().any(|left| left.path == end);
                    let is_dir = end.is_dir();
                    if !real.is_there {
                        self.notes.push(leads_nowhere(&link, &end));
                        continue;
                    }
                    if !taken.iter().any(is_in) {
                        // A target that contains other parts might be half the machine.
                        let has_parts = taken.iter().any(|known| known.starts_with(&end));
                        let is_foreign = !is_trusted(&link, &end);
                        if is_left || has_parts || is_foreign || is_named(&part.name) {
                            if !is_left {
                                let why = if is_foreign { " because of its owner" } else { "" };
                                self.notes.push(format!(
                                    "link {} points to {}, which is not copied{why}; \
                                     to copy it, make it a part",
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
                        if is_dir && is_deep {
                            let at = |dir: PathBuf| {
                                let rest = dir.strip_prefix(&end).unwrap_or(Path::new(""));
                                (dir.clone(), seen.join(rest))
                            };
                            let (inner, is_all) = dirs_within(&end, &is_elsewhere);
                            left.extend(inner.into_iter().map(at));
                            self.notes.extend((!is_all).then(|| too_deep(&end)));
                        }
                    }
                    if is_dir {
                        self.mounts.push(Mount { seen, path: end });
                    }
                }
            }
        }
    }

    /// Adds a note for each path of a part that is in memory, such as a `tmpfs` mounted over it. Its
    /// data is lost with a restart, and hides the directory below.
    pub fn note_memory(&mut self) {
        if is_in_memory(&self.root) {
            return;
        }
        let paths =
            self.parts.iter().flat_map(|part| part.paths.iter().map(move |path| (part, path)));
        let in_memory = paths.filter(|(_, path)| is_in_memory(path));
        let notes = in_memory.map(|(part, path)| {
            format!(
                "{} of part `{}` is in memory (tmpfs); a restart of the machine removes it",
                shown(path),
                part.name
            )
        });
        let notes: Vec<String> = notes.collect();
        self.notes.extend(notes);
    }

    /// First path of a part.
    pub fn place(&self, part: &str) -> Option<PathBuf> {
        self.parts.iter().find(|known| known.name == part)?.paths.first().cloned()
    }
}

/// Parts whose files may be missing although databases name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excused {
    /// All parts.
    All,
    /// The named parts.
    Parts(Vec<String>),
}

impl Excused {
    /// Reads the exceptions from the settings.
    pub fn of(settings: &Settings) -> Excused {
        if settings.checks.lost == Missing::Ok {
            return Excused::All;
        }
        let parts = settings.parts.iter().filter(|(_, part)| part.missing == Some(Missing::Ok));
        Excused::Parts(parts.map(|(name, _)| name.clone()).collect())
    }

    /// Returns true if files of this part may be missing.
    pub fn has(&self, part: &str) -> bool {
        match self {
            Excused::All => true,
            Excused::Parts(parts) => parts.iter().any(|known| known == part),
        }
    }
}

/// Limits for the share of its files that a part may lose between two backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartLimits {
    /// Limit of all other parts.
    all: Option<MaxLoss>,
    parts: BTreeMap<String, MaxLoss>,
    excused: Excused,
}

impl PartLimits {
    fn of(settings: &Settings) -> PartLimits {
        let own = |(name, part): (&String, &PartSettings)| Some((name.clone(), part.max_loss?));
        PartLimits {
            all: settings.max_loss,
            parts: settings.parts.iter().filter_map(own).collect(),
            excused: Excused::of(settings),
        }
    }

    /// Returns the limit of a part: its own one, everything if its files may be missing, or that of
    /// the instance. `usual` is the limit without settings.
    pub fn limit(&self, part: &str, usual: MaxLoss) -> MaxLoss {
        match self.parts.get(part) {
            Some(own) => *own,
            None if self.excused.has(part) => MaxLoss::ALL,
            None if usual == MaxLoss::ALL => usual,
            None => self.all.unwrap_or(usual),
        }
    }
}

/// The installed product; a restore needs the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Product {
    /// Name of the product.
    pub name: String,
    /// Edition, such as `ce` or `ee`.
    pub edition: Option<String>,
    /// Version, as the product reports it.
    pub version: Option<String>,
    /// Image of its container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl Product {
    /// Returns major and minor version.
    pub fn version_numbers(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.as_deref()?.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// A directory or file of this machine that a container has as a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Name of the service whose container has it; `None` for that of the product.
    pub service: Option<String>,
    /// Path in the container.
    pub target: PathBuf,
    /// Path on this machine, without links.
    pub path: PathBuf,
}

impl Volume {
    /// Makes the volumes of a service from pairs of both paths.
    pub fn all<'a>(
        service: Option<&str>,
        paths: impl Iterator<Item = (&'a Path, PathBuf)>,
    ) -> Vec<Volume> {
        let volume = |(target, path): (&Path, PathBuf)| Volume {
            service: service.map(str::to_owned),
            target: target.to_owned(),
            path,
        };
        paths.map(volume).collect()
    }
}

/// One part of an instance, which consists of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// Name in the configuration.
    pub name: String,
    /// Short description.
    pub about: String,
    /// Paths of the part; without symbolic links once resolved.
    #[serde(serialize_with = "as_texts")]
    #[schemars(with = "Vec<String>")]
    pub paths: Vec<PathBuf>,
    /// Symbolic links that lead to the paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty", serialize_with = "as_texts")]
    #[schemars(with = "Vec<String>")]
    pub links: Vec<PathBuf>,
    /// Phase in which it is copied.
    pub phase: Phase,
    /// True if the backup is incomplete without it.
    pub is_required: bool,
    /// True if all paths must exist; false if they are alternatives.
    #[serde(skip)]
    pub needs_all: bool,
    /// Expected owner, as a name or `uid:gid`; `None` if the kind does not know it.
    pub owner: Option<String>,
    /// Globs of paths that the backup skips in the part.
    pub exclude: Vec<String>,
}

/// A missing part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Absent {
    /// Name of the part.
    pub part: String,
    /// Expected paths or objects.
    pub looked_for: String,
    /// True if the backup is incomplete without it.
    pub is_required: bool,
}

impl Absent {
    /// Makes the record of a missing part.
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
    /// Returns true if the part exists. A dangling link does not count.
    pub fn is_there(&self) -> bool {
        let mut paths = self.paths.iter();
        if self.needs_all {
            !self.paths.is_empty() && paths.all(|path| path.exists())
        } else {
            paths.any(|path| path.exists())
        }
    }

    /// Resolves its paths and records the links that lead there. Links are followed below the root.
    /// Returns a note for each dangling link.
    pub fn resolve(&mut self, root: &Path) -> Vec<String> {
        let mut notes = Vec::new();
        for path in &mut self.paths {
            // The copy reports a path that cannot be followed.
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

/// Returns the directories within a directory, the least deep first, up to a number of them. Leaves
/// out those for which `is_left` holds, and all below. The second value is true if these are all.
fn dirs_within(dir: &Path, is_left: &dyn Fn(&Path) -> bool) -> (Vec<PathBuf>, bool) {
    let (mut found, mut next) = (vec![dir.to_owned()], 0);
    while next < found.len() && found.len() < DIRS_MAX {
        let entries = std::fs::read_dir(&found[next]).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(dirs.map(|entry| entry.path()).filter(|path| !is_left(path)));
        next += 1;
    }
    let is_all = next == found.len();
    (found.split_off(1), is_all)
}

/// Notes that a directory has too many others to look for links in all of them.
fn too_deep(dir: &Path) -> String {
    format!(
        "{} has more than {DIRS_MAX} directories; links in the others are copied, and what they lead \
         to is not",
        shown(dir)
    )
}

/// Returns the links directly in a directory, with their targets.
fn links_in(root: &Path, dir: &Path) -> Vec<(PathBuf, links::Real)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let mut links: Vec<PathBuf> = links.map(|entry| entry.path()).collect();
    links.sort();
    let end = |link: PathBuf| links::follow(root, &link).ok().map(|end| (link, end));
    links.into_iter().filter_map(end).collect()
}

/// Types of file systems in memory, `tmpfs` and `ramfs`.
const MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

fn is_in_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|system| MEMORY.contains(&system.f_type))
}

fn leads_nowhere(link: &Path, target: &Path) -> String {
    format!("link {} points to {}, which does not exist", shown(link), shown(target))
}

/// Phase in which a part is copied. Data that refers to other data comes first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Write-ahead logs, which name changes that repositories may lack. A restore treats them as
    /// ordinary files, so snapshots call them that.
    #[serde(rename(serialize = "files"), skip_deserializing)]
    #[schemars(skip)]
    Logs,
    /// Git repositories, which borrow objects from pools.
    Repositories,
    /// Object pools.
    Pools,
    /// Everything else.
    Files,
    /// Files that a service writes when asked to save.
    RedisFiles,
}

/// An excluded path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkippedPath {
    /// The path itself.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub path: PathBuf,
    /// Reason for the exclusion.
    pub reason: String,
}

impl SkippedPath {
    /// Resolves the path, because a copy meets it under its real name.
    pub fn resolve(&mut self, root: &Path) {
        if let Ok(real) = links::follow(root, &self.path) {
            self.path = real.path;
        }
    }
}

/// A database that the kind or the settings name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Database {
    /// Name of the database.
    pub name: String,
    /// Purpose, such as `main`.
    pub purpose: String,
    /// True if the backup is incomplete without it.
    pub is_required: bool,
}

impl Database {
    /// Name of the database as a part.
    pub fn part(&self) -> String {
        format!("database-{}", self.purpose)
    }
}

/// Returns true if an administrator made a link, or if its owner could have moved its target there.
///
/// A service can make links to any path. A backup, a restore and a repair run as root, and would
/// read or write there for it.
pub(crate) fn is_trusted(link: &Path, end: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owner = |path: &Path| path.symlink_metadata().map(|found| found.uid()).ok();
    owner(link) == Some(0) || owner(link) == owner(end)
}
