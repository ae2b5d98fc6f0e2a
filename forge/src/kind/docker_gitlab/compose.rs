//! Compose files: which containers there are, what their environment is and where on this
//! machine their directories are.
//!
//! Read is what a backup needs, and that as compose reads it: `.env` beside the file, files
//! of environment, variables, overriding and included files, services that extend others. What only
//! the shell knew from which the containers were started cannot be seen.

mod reader;

use crate::error::{Error, Result};
use crate::links::lexically;
use reader::{Reader, Shared};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What the files may be called, the preferred name first.
pub const NAMES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// Variables by name.
pub type Variables = BTreeMap<String, String>;

/// A project: what its files say.
#[derive(Debug)]
pub struct Compose {
    /// The file it was read from, the first if there are several.
    pub path: PathBuf,
    /// What it may be called: compose changed how it makes a name of that of a directory.
    pub names: Vec<String>,
    /// All files that were read or are handed to a container, whether they are there or not.
    pub files: BTreeSet<PathBuf>,
    /// Those of them without which compose makes no container.
    pub needed: BTreeSet<PathBuf>,
    /// Those of them that may be missing, and are named even so.
    pub optional: BTreeSet<PathBuf>,
    /// Its services; the reason for those that make no sense.
    pub services: BTreeMap<String, Result<Service>>,
    /// What is odd.
    pub notes: Vec<String>,
}

/// One service, with everything filled in.
#[derive(Debug, Default)]
pub struct Service {
    /// Its image with the tag.
    pub image: Option<String>,
    /// What its container is called, if that is said.
    pub container: Option<String>,
    /// The variables it is started with.
    pub environment: Variables,
    /// Variables of its files, until all is read.
    pub from_files: Variables,
    /// What it has from outside.
    pub mounts: Vec<Mount>,
    /// The words of its command.
    pub command: Vec<String>,
}

/// A directory or file in a container that comes from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is in the container.
    pub target: PathBuf,
    /// Where it comes from.
    pub source: Source,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path of this machine.
    Path(PathBuf),
    /// A text in the compose file itself.
    Text(String),
    /// Nothing: it is in memory.
    Memory,
    /// A place that cannot be known from the files.
    Unknown(String),
}

/// Where a path of a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Here on this machine.
    Here(PathBuf),
    /// Nowhere, on purpose: in memory.
    Memory,
    /// Not on this machine, or nobody knows where.
    Nowhere(String),
}

/// What is said of a project outside of its files.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Absolute paths are below it.
    pub root: &'a Path,
    /// Named volumes are in it.
    pub volumes: &'a Path,
    /// Name of the project, if it was given to compose itself.
    pub project: Option<&'a str>,
}

impl Compose {
    /// Reads compose files, of which later ones go before earlier ones, and all that they name.
    /// Relative paths in them begin where the first is.
    pub fn read(paths: &[PathBuf], place: Surroundings<'_>) -> Result<Compose> {
        let mut given = Vec::new();
        for path in paths {
            let fail = |source| Error::Read { path: path.to_owned(), source };
            // Links stay: compose names a project after the directory as it was called.
            given.push(lexically(&std::path::absolute(path).map_err(fail)?));
        }
        let path = given.first().cloned().unwrap_or_default();
        let shared = Shared::default();
        let reader = Reader::of_project(&given, place, &shared)?;
        let services = reader.names_of_services().into_iter().map(|name| {
            let service = reader.service_of_all(&name).map(Service::settled);
            (name, service)
        });
        let services = services.collect();
        let (names, env) = (reader.names.clone(), reader.dir.join(".env"));
        drop(reader);
        let mut notes: Vec<String> = shared.notes.into_inner().into_iter().collect();
        let unset: Vec<String> = shared.unset.into_inner().into_iter().collect();
        if !unset.is_empty() {
            notes.push(format!(
                "{} uses {}, which {} does not set; taken as empty",
                path.display(),
                unset.join(", "),
                env.display()
            ));
        }
        let (files, needed) = (shared.files.into_inner(), shared.needed.into_inner());
        let optional = shared.optional.into_inner();
        Ok(Compose { path, names, files, needed, optional, services, notes })
    }
}

impl Service {
    /// A variable that is set to something.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a variable says yes, as YAML has it.
    pub fn is_true(&self, name: &str) -> bool {
        let value = self.variable(name).unwrap_or_default().to_lowercase();
        ["true", "yes", "on", "y"].contains(&value.as_str())
    }

    /// The image without registry, tag and digest, such as `sameersbn/gitlab`.
    pub fn repository(&self) -> &str {
        let image = self.image.as_deref().unwrap_or_default();
        let image = image.split('@').next().unwrap_or_default();
        // A colon before the last slash is that of a port.
        let name_at = image.rfind('/').map_or(0, |at| at + 1);
        let end = image[name_at..].find(':').map_or(image.len(), |at| name_at + at);
        &image[..end]
    }

    /// The tag of the image.
    pub fn tag(&self) -> Option<&str> {
        let image = self.image.as_deref()?.split('@').next()?;
        image[self.repository().len()..].strip_prefix(':')
    }

    /// Where a path of the container is; `None` if no mount holds it.
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
            Source::Text(_) => Place::Nowhere("it is in the compose file".into()),
            Source::Memory => Place::Memory,
            Source::Unknown(reason) => Place::Nowhere(reason.clone()),
        })
    }

    /// Variables of files go behind all others, wherever these are said.
    fn settled(mut self) -> Service {
        let mut all = std::mem::take(&mut self.from_files);
        all.extend(self.environment);
        Service { environment: all, ..self }
    }

    /// With what is said later, which goes before it.
    fn then(mut self, later: Service) -> Service {
        self.image = later.image.or(self.image);
        self.container = later.container.or(self.container);
        self.environment.extend(later.environment);
        self.from_files.extend(later.from_files);
        for mount in later.mounts {
            self.mounts.retain(|known| known.target != mount.target);
            self.mounts.push(mount);
        }
        if !later.command.is_empty() {
            self.command = later.command;
        }
        self
    }
}
