//! Compose files: containers, their environment, and the places of their directories on this
//! machine.
//!
//! Only the properties needed for a backup are read, by the rules of compose. These include `.env`
//! next to the file, environment files, variables, overriding and included files, and services that
//! extend others. Variables that were set only in the shell that started the containers are
//! unknown.

mod built;
mod reader;

use crate::error::{Error, Result};
use crate::links::{self, LINKS_MAX, lexically, names};
use reader::{Reader, Shared};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// File names, the preferred one first.
pub const NAMES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// Maximum length of a chain of services that have each other's volumes.
const VOLUMES_FROM_MAX: usize = 4;

/// Variables by name.
pub type Variables = BTreeMap<String, String>;

/// A project, as defined by its files.
#[derive(Debug)]
pub struct Compose {
    /// File that it was read from; the first if there are several.
    pub path: PathBuf,
    /// Possible names. Versions of compose derive them differently from the directory's name.
    pub names: Vec<String>,
    /// All files that were read or are passed to a container, existing or not.
    pub files: BTreeSet<PathBuf>,
    /// Files without which compose creates no container.
    pub needed: BTreeSet<PathBuf>,
    /// Files that may be missing.
    pub optional: BTreeSet<PathBuf>,
    /// Services of the project, or the error for an invalid one.
    pub services: BTreeMap<String, Result<Service>>,
    /// Notes about anything unusual.
    pub notes: Vec<String>,
}

/// A service, with all variables expanded.
#[derive(Debug, Default)]
pub struct Service {
    /// Image of the service, with the tag.
    pub image: Option<String>,
    /// Configured name of its container.
    pub container: Option<String>,
    /// Environment variables of the service.
    pub environment: Variables,
    /// Variables from environment files, until these are merged.
    pub from_files: Variables,
    /// Mounts of the service.
    pub mounts: Vec<VolumeMount>,
    /// Services whose volumes it has as well.
    pub volumes_from: Vec<String>,
    /// Words of its command.
    pub command: Vec<String>,
}

/// A directory or file from outside, mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Path in the container.
    pub target: PathBuf,
    /// Source of the mount.
    pub source: Source,
}

/// Source of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path on this machine.
    Path(PathBuf),
    /// A text in the compose file itself.
    Text(String),
    /// No source: the mount is in memory.
    Memory,
    /// A source that the files do not define; the reason.
    Unknown(String),
}

/// Place of a container's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path on this machine.
    Here(PathBuf),
    /// In memory, on purpose.
    Memory,
    /// Not on this machine, or unknown; the reason.
    Nowhere(String),
}

/// Properties of a project that its files do not contain.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Root that absolute paths are relative to.
    pub root: &'a Path,
    /// Directory of named volumes.
    pub volumes: &'a Path,
    /// Name of the project, if it was passed to compose itself.
    pub project: Option<&'a str>,
    /// Directory at which relative paths start, if it is not that of the first file.
    pub dir: Option<&'a Path>,
    /// Files with variables, if compose read others than `.env`.
    pub env_files: &'a [PathBuf],
}

/// Returns the file by which compose overrides another one, if that has a usual name.
pub fn overriding(path: &Path) -> Option<PathBuf> {
    let is_usual = NAMES.iter().any(|usual| path.file_name().is_some_and(|name| name == *usual));
    let stem = path.file_stem()?.to_string_lossy();
    let paths = ["yml", "yaml"].map(|end| path.with_file_name(format!("{stem}.override.{end}")));
    paths.into_iter().find(|path| is_usual && path.exists())
}

impl Compose {
    /// Reads compose files and all files that they name. Later files override earlier ones.
    /// Relative paths start at the directory of the first file.
    pub fn read(paths: &[PathBuf], place: Surroundings<'_>) -> Result<Compose> {
        let mut given = Vec::new();
        for path in paths {
            let fail = |source| Error::Read { path: path.to_owned(), source };
            // Links are not resolved: compose names a project after its directory as given.
            given.push(lexically(&std::path::absolute(path).map_err(fail)?));
        }
        let path = given.first().cloned().unwrap_or_default();
        let shared = Shared::default();
        let reader = Reader::of_project(&given, place, &shared)?;
        let services = reader.names_of_services().into_iter().map(|name| {
            let service = reader.service_of_all(&name).map(Service::settled);
            (name, service)
        });
        let services: BTreeMap<_, _> = services.collect();
        let services = with_borrowed(services);
        let (names, env) = (reader.names.clone(), reader.dir.join(".env"));
        drop(reader);
        let mut notes: Vec<String> = shared.notes.into_inner().into_iter().collect();
        let unset: Vec<String> = shared.unset.into_inner().into_iter().collect();
        if !unset.is_empty() {
            notes.push(format!(
                "{} uses {}, which {} does not set; assuming empty values",
                path.displayed(),
                unset.join(", "),
                env.displayed()
            ));
        }
        let (mut files, needed) = (shared.files.into_inner(), shared.needed.into_inner());
        let optional = shared.optional.into_inner();
        let volumes: Vec<PathBuf> =
            services.values().flatten().flat_map(Service::volumes).map(|(_, path)| path).collect();
        for path in shared.built_from.into_inner() {
            if volumes.iter().any(|volume| volume.starts_with(links::real(&path))) {
                notes.push(format!(
                    "an image is built from {}, which contains volumes; only its Dockerfile is \
                     copied; to copy the other files of the image, make them a part",
                    path.displayed()
                ));
            } else {
                files.insert(path);
            }
        }
        Ok(Compose { path, names, files, needed, optional, services, notes })
    }
}

/// Adds to each service the volumes of those that it names.
fn with_borrowed(
    mut services: BTreeMap<String, Result<Service>>,
) -> BTreeMap<String, Result<Service>> {
    // The volumes of one may come from another in turn.
    for _ in 0..VOLUMES_FROM_MAX {
        let known: BTreeMap<String, Vec<VolumeMount>> = services
            .iter()
            .filter_map(|(name, service)| {
                Some((name.clone(), service.as_ref().ok()?.mounts.clone()))
            })
            .collect();
        for service in services.values_mut().flatten() {
            let from = service.volumes_from.iter().filter_map(|name| known.get(name)).flatten();
            for mount in from {
                if service.mounts.iter().all(|own| own.target != mount.target) {
                    service.mounts.push(mount.clone());
                }
            }
        }
    }
    services
}

impl Service {
    /// Returns true if its container is a helper of another one: it has the volumes of that one, or
    /// a command of its own.
    pub fn is_helper(&self) -> bool {
        !self.volumes_from.is_empty() || !self.command.is_empty()
    }

    /// Returns a variable that is not empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns true if a variable has one of YAML's true values.
    pub fn is_true(&self, name: &str) -> bool {
        let value = self.variable(name).unwrap_or_default().to_lowercase();
        ["true", "yes", "on", "y"].contains(&value.as_str())
    }

    /// Returns the image without tag and digest, such as `sameersbn/gitlab`. A registry before it
    /// is kept.
    pub fn repository(&self) -> &str {
        let image = self.image.as_deref().unwrap_or_default();
        let image = image.split('@').next().unwrap_or_default();
        // A colon before the last slash belongs to a port.
        let name_at = image.rfind('/').map_or(0, |at| at + 1);
        let end = image[name_at..].find(':').map_or(image.len(), |at| name_at + at);
        &image[..end]
    }

    /// Returns the tag of the image.
    pub fn tag(&self) -> Option<&str> {
        let image = self.image.as_deref()?.split('@').next()?;
        image[self.repository().len()..].strip_prefix(':')
    }

    /// Returns the paths in the container at which it has volumes of this machine, with the paths
    /// on this machine, without links.
    pub fn volumes(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            Source::Path(path) => Some((mount.target.as_path(), links::real(path))),
            Source::Text(_) | Source::Memory | Source::Unknown(_) => None,
        })
    }

    /// Returns the place of a container's path, or `None` if no mount holds it.
    pub fn place(&self, path: &Path) -> Option<Place> {
        let holding = self.mounts.iter().filter(|mount| path.starts_with(&mount.target));
        let mount = holding.max_by_key(|mount| mount.target.components().count())?;
        Some(match &mount.source {
            Source::Path(source) => {
                let rest = path.strip_prefix(&mount.target).unwrap_or(Path::new(""));
                let joined =
                    if rest.as_os_str().is_empty() { source.clone() } else { source.join(rest) };
                Place::Here(joined)
            }
            Source::Text(_) => Place::Nowhere("its content is in the compose file".into()),
            Source::Memory => Place::Memory,
            Source::Unknown(reason) => Place::Nowhere(reason.clone()),
        })
    }

    /// Follows links in volumes like the container: an absolute link starts at the container's
    /// root. Returns the path in the container, and the links on this machine.
    pub fn follow(&self, path: &Path) -> (PathBuf, Vec<PathBuf>) {
        let mut left: VecDeque<OsString> = names(path).collect();
        let (mut real, mut links) = (PathBuf::from("/"), Vec::new());
        while let Some(name) = left.pop_front() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(name);
            // The source of a mount may be a link of this machine, which the container never sees.
            let is_target = self.mounts.iter().any(|mount| mount.target == next);
            let here = match self.place(&next).filter(|_| !is_target) {
                Some(Place::Here(here)) if links.len() < LINKS_MAX => Some(here),
                _ => None,
            };
            let Some((here, target)) =
                here.and_then(|here| std::fs::read_link(&here).ok().map(|target| (here, target)))
            else {
                real = next;
                continue;
            };
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            for (at, name) in names(&target).enumerate() {
                left.insert(at, name);
            }
            links.push(here);
        }
        (real, links)
    }

    /// Merges the variables from files. All others override them, whatever their order.
    fn settled(mut self) -> Service {
        let mut all = std::mem::take(&mut self.from_files);
        all.extend(self.environment);
        Service { environment: all, ..self }
    }

    /// Merges a later definition, which overrides this one.
    fn then(mut self, later: Service) -> Service {
        self.image = later.image.or(self.image);
        self.container = later.container.or(self.container);
        self.environment.extend(later.environment);
        self.from_files.extend(later.from_files);
        for mount in later.mounts {
            self.mounts.retain(|known| known.target != mount.target);
            self.mounts.push(mount);
        }
        self.volumes_from.extend(later.volumes_from);
        if !later.command.is_empty() {
            self.command = later.command;
        }
        self
    }
}
