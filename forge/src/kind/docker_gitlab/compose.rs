//! Compose files: which containers there are, what their environment is and where on this
//! machine their directories are.
//!
//! Read is what a backup needs, and that as compose reads it: `.env` beside the file, files
//! of environment, variables, the overriding file, services that extend others. What only
//! the shell knew from which the containers were started cannot be seen.

use super::variables::{EXPANDED_BYTES_MAX, Look, Said, assignments, expand};
use crate::error::{Error, Result};
use crate::file::text;
use crate::kind::below;
use crate::kind::gitlab::generated::yaml;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// What the files may be called, the preferred name first.
pub const NAMES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// How deep services may extend each other.
const DEPTH_MAX: usize = 16;

/// Variables by name.
pub type Variables = BTreeMap<String, String>;

/// A project: what its files say.
#[derive(Debug)]
pub struct Compose {
    /// The file it was read from.
    pub path: PathBuf,
    /// What it may be called: compose changed how it makes a name of that of a directory.
    pub names: Vec<String>,
    /// All files that were read or are handed to a container, whether they are there or not.
    pub files: BTreeSet<PathBuf>,
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

impl Compose {
    /// Reads a compose file and all that it names. Absolute paths in it are below `root`;
    /// named volumes are in `volumes`.
    pub fn read(path: &Path, root: &Path, volumes: &Path) -> Result<Compose> {
        let fail = |source| Error::Read { path: path.to_owned(), source };
        // Links stay: compose names a project after the directory as it was called.
        let path = lexically(&std::path::absolute(path).map_err(fail)?);
        let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut reader = Reader {
            root,
            volumes,
            dir: dir.clone(),
            variables: Variables::new(),
            expanded: Cell::new(0),
            files: RefCell::default(),
            unset: RefCell::default(),
            names: Vec::new(),
            top: Vec::new(),
        };
        reader.variables = reader.environment_file(&dir.join(".env"))?.unwrap_or_default();
        let mut notes = Vec::new();
        for path in reader.files_of_project(&path) {
            let document = reader.document(&path)?;
            if !document["include"].is_null() {
                notes.push(format!("{} includes other files, which are not read", path.display()));
            }
            reader.top.push(document);
        }
        reader.names = reader.names_of_project();
        let mut names = BTreeSet::new();
        for document in &reader.top {
            names.extend(services(document).into_iter().flatten().map(|(name, _)| name.clone()));
        }
        let services = names.into_iter().map(|name| {
            let service = reader.service_of_all(&name);
            (name, service)
        });
        let services = services.collect();
        let unset: Vec<String> = reader.unset.take().into_iter().collect();
        if !unset.is_empty() {
            notes.push(format!(
                "{} uses {}, which {} does not set; taken as empty",
                path.display(),
                unset.join(", "),
                dir.join(".env").display()
            ));
        }
        let (names, files) = (reader.names, reader.files.into_inner());
        Ok(Compose { path, names, files, services, notes })
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

    /// With what is said later, which goes before it.
    fn then(mut self, later: Service) -> Service {
        self.image = later.image.or(self.image);
        self.container = later.container.or(self.container);
        self.environment.extend(later.environment);
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

/// Services of a document. In the oldest form they are all that it has.
fn services(document: &Value) -> Option<&serde_json::Map<String, Value>> {
    match document.get("services") {
        Some(services) => services.as_object(),
        None if document.get("version").is_none() => document.as_object(),
        None => None,
    }
}

/// What is known while a project is read.
struct Reader<'a> {
    root: &'a Path,
    volumes: &'a Path,
    /// Relative paths begin here.
    dir: PathBuf,
    variables: Variables,
    /// Bytes that variables became so far.
    expanded: Cell<usize>,
    files: RefCell<BTreeSet<PathBuf>>,
    unset: RefCell<BTreeSet<String>>,
    names: Vec<String>,
    /// The documents of the project, later ones going before earlier ones.
    top: Vec<Value>,
}

impl Reader<'_> {
    fn document(&self, path: &Path) -> Result<Value> {
        self.files.borrow_mut().insert(path.to_owned());
        yaml(path)?.ok_or_else(|| Error::Read {
            path: path.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    /// The files that compose takes together: those that `.env` names, or the one given and
    /// the one that overrides it.
    fn files_of_project(&self, given: &Path) -> Vec<PathBuf> {
        if let Some(list) = self.variables.get("COMPOSE_FILE").filter(|list| !list.is_empty()) {
            let separator = self.variables.get("COMPOSE_PATH_SEPARATOR");
            let separator = separator.filter(|text| !text.is_empty()).map_or(":", String::as_str);
            let files: Vec<PathBuf> =
                list.split(separator).take(DEPTH_MAX).map(|path| self.path(path)).collect();
            // Whoever gives another file means that one.
            if files.iter().any(|file| file == given) {
                return files;
            }
        }
        let stem = given.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let overriding = ["yml", "yaml"].map(|end| self.dir.join(format!("{stem}.override.{end}")));
        let is_usual =
            given.file_name().is_some_and(|name| NAMES.iter().any(|usual| name == *usual));
        let overriding = overriding.into_iter().find(|path| is_usual && path.exists());
        std::iter::once(given.to_owned()).chain(overriding).collect()
    }

    fn names_of_project(&self) -> Vec<String> {
        let named = self.top.iter().rev().find_map(|document| document["name"].as_str());
        let named = named.and_then(|name| self.expand(name).ok());
        let own = self.variables.get("COMPOSE_PROJECT_NAME").cloned().or(named);
        let own = own.filter(|name| !name.is_empty());
        let dir =
            || self.dir.file_name().and_then(|name| name.to_str()).unwrap_or("default").into();
        let lower: String = own.unwrap_or_else(dir).to_lowercase();
        let is_plain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let now: String = lower.chars().filter(|c| is_plain(c) || "-_".contains(*c)).collect();
        let now = now.trim_start_matches(['-', '_']).to_owned();
        let once: String = lower.chars().filter(is_plain).collect();
        let mut names = vec![now, once];
        names.dedup();
        names
    }

    fn service_of_all(&self, name: &str) -> Result<Service> {
        let mut service = Service::default();
        for document in &self.top {
            if services(document).is_some_and(|services| services.contains_key(name)) {
                let later = self.service(document, &self.dir, name, 0);
                service = service.then(later.map_err(|reason| Error::Service {
                    service: format!("service {name} of the compose file"),
                    reason: match reason {
                        Error::Service { reason, .. } => reason,
                        other => other.to_string(),
                    },
                })?);
            }
        }
        Ok(service)
    }

    /// A service of one document, with what it extends.
    fn service(&self, document: &Value, dir: &Path, name: &str, depth: usize) -> Result<Service> {
        let Some(said) = services(document).and_then(|services| services.get(name)) else {
            return Err(odd(format!("there is no service {name} that could be extended")));
        };
        if depth > DEPTH_MAX {
            return Err(odd("services extend each other without an end"));
        }
        let base = match &said["extends"] {
            Value::Null => Service::default(),
            Value::String(other) => self.service(document, dir, &self.expand(other)?, depth + 1)?,
            extends => {
                let other = self.text(&extends["service"])?.unwrap_or_default();
                match self.text(&extends["file"])? {
                    None => self.service(document, dir, &other, depth + 1)?,
                    Some(file) => {
                        let file = self.path_in(dir, &file);
                        let document = self.document(&file)?;
                        let dir = file.parent().unwrap_or(dir);
                        self.service(&document, dir, &other, depth + 1)?
                    }
                }
            }
        };
        Ok(base.then(self.own(said, dir)?))
    }

    /// What is said of a service itself.
    fn own(&self, said: &Value, dir: &Path) -> Result<Service> {
        let mut service = Service {
            image: self.text(&said["image"])?,
            container: self.text(&said["container_name"])?,
            ..Service::default()
        };
        for file in one_or_more(&said["env_file"]) {
            let path = if file.is_object() { &file["path"] } else { file };
            if let Some(path) = self.text(path)? {
                let path = self.path_in(dir, &path);
                service.environment.extend(self.environment_file(&path)?.unwrap_or_default());
            }
        }
        self.environment(&said["environment"], &mut service.environment)?;
        for volume in one_or_more(&said["volumes"]) {
            service.mounts.extend(self.volume(volume, dir)?);
        }
        for (section, default) in [("configs", "/"), ("secrets", "/run/secrets")] {
            for handed in one_or_more(&said[section]) {
                service.mounts.extend(self.handed(section, handed, default)?);
            }
        }
        for word in one_or_more(&said["command"]) {
            let text = self.text(word)?.unwrap_or_default();
            service.command.extend(text.split_whitespace().map(str::to_owned));
        }
        Ok(service)
    }

    /// Both forms of an environment. A name alone has the value that the project knows.
    fn environment(&self, said: &Value, into: &mut Variables) -> Result<()> {
        let mut set = |name: &str, value: Option<String>| match value
            .or_else(|| self.variables.get(name).cloned())
        {
            Some(value) => drop(into.insert(name.to_owned(), value)),
            None => drop(into.remove(name)),
        };
        for (name, value) in said.as_object().into_iter().flatten() {
            set(name, self.text(value)?);
        }
        for line in said.as_array().into_iter().flatten() {
            if let Some(line) = self.text(line)? {
                match line.split_once('=') {
                    Some((name, value)) => set(name, Some(value.to_owned())),
                    None => set(&line, None),
                }
            }
        }
        Ok(())
    }

    /// Both forms of a volume.
    fn volume(&self, said: &Value, dir: &Path) -> Result<Option<Mount>> {
        let (source, target);
        if said.is_object() {
            source = self.text(&said["source"])?.or(self.text(&said["src"])?);
            let long = ["target", "destination", "dst"].map(|key| &said[key]);
            let Some(found) = long.into_iter().find(|value| value.is_string()) else {
                return Ok(None);
            };
            target = self.text(found)?.unwrap_or_default();
        } else {
            let Some(text) = self.text(said)? else { return Ok(None) };
            let mut words = text.splitn(3, ':').map(str::to_owned);
            let (first, second) = (words.next().unwrap_or_default(), words.next());
            (source, target) = match second {
                Some(second) => (Some(first), second),
                None => (None, first),
            };
        }
        let source = match source {
            _ if said["type"] == "tmpfs" => Source::Memory,
            None => Source::Unknown("it is in a volume without a name".into()),
            Some(source) if said["type"] != "volume" && source.starts_with(['/', '.', '~']) => {
                Source::Path(self.path_in(dir, &source))
            }
            Some(name) => self.named(&name)?,
        };
        Ok(Some(Mount { target: lexically(Path::new(&target)), source }))
    }

    /// Where a named volume is.
    fn named(&self, name: &str) -> Result<Source> {
        let said = self.top_level("volumes", name);
        let options = &said["driver_opts"];
        if let Some(device) = self.text(&options["device"])? {
            let is_bind =
                self.text(&options["o"])?.is_some_and(|o| o.split(',').any(|o| o == "bind"));
            return Ok(if is_bind {
                Source::Path(self.path(&device))
            } else {
                let kind = self.text(&options["type"])?.unwrap_or_default();
                let reason = format!("volume {name} is mounted from elsewhere ({kind} {device})");
                Source::Unknown(reason)
            });
        }
        let external = &said["external"];
        let own = self.text(&said["name"])?.or(self.text(&external["name"])?);
        let is_external = external.is_object() || *external == true;
        let full: Vec<String> = match own {
            Some(own) => vec![own],
            None if is_external => vec![name.to_owned()],
            None => self.names.iter().map(|project| format!("{project}_{name}")).collect(),
        };
        // A name is no path.
        let full = full.into_iter().filter(|name| !name.contains('/') && !name.starts_with('.'));
        let dirs: Vec<PathBuf> = full.map(|name| self.volumes.join(name).join("_data")).collect();
        let found = dirs.iter().find(|dir| dir.exists()).or(dirs.first());
        Ok(found.map_or(Source::Unknown("its volume has no usable name".into()), |dir| {
            Source::Path(dir.clone())
        }))
    }

    /// A secret or a piece of configuration that is handed to a service.
    fn handed(&self, section: &str, said: &Value, default: &str) -> Result<Option<Mount>> {
        let (name, target) = if said.is_object() {
            (self.text(&said["source"])?, self.text(&said["target"])?)
        } else {
            (self.text(said)?, None)
        };
        let Some(name) = name else { return Ok(None) };
        let target = Path::new(default).join(target.unwrap_or_else(|| name.clone()));
        let said = self.top_level(section, &name);
        let source = if let Some(file) = self.text(&said["file"])? {
            let path = self.path(&file);
            self.files.borrow_mut().insert(path.clone());
            Source::Path(path)
        } else if let Some(content) = self.text(&said["content"])? {
            Source::Text(content)
        } else if let Some(variable) = said["environment"].as_str() {
            Source::Text(self.variables.get(variable).cloned().unwrap_or_default())
        } else {
            Source::Unknown("it is kept by Docker itself".into())
        };
        Ok(Some(Mount { target: lexically(&target), source }))
    }

    /// What the last document that speaks of it says of a volume, secret or configuration.
    fn top_level(&self, section: &str, name: &str) -> &Value {
        let said = self.top.iter().rev().map(|document| &document[section][name]);
        said.into_iter().find(|said| !said.is_null()).unwrap_or(&Value::Null)
    }

    /// The variables of a file, if there is one.
    fn environment_file(&self, path: &Path) -> Result<Option<Variables>> {
        self.files.borrow_mut().insert(path.to_owned());
        let Some(text) = text(path)? else { return Ok(None) };
        let mut found = Variables::new();
        for (name, said) in assignments(&text) {
            let value = match said {
                Said::Literally(value) => value,
                Said::ToExpand(value) => {
                    let look =
                        |name: &str, _| found.get(name).or(self.variables.get(name)).cloned();
                    // A dollar sign that means nothing is itself here.
                    self.expand_with(&value, &look).unwrap_or(value)
                }
            };
            self.spend(value.len())?;
            found.insert(name, value);
        }
        Ok(Some(found))
    }

    /// A text with variables, or a number or truth value as a text.
    fn text(&self, said: &Value) -> Result<Option<String>> {
        Ok(match said {
            Value::String(text) => Some(self.expand(text)?),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            _ => None,
        })
    }

    fn expand(&self, text: &str) -> Result<String> {
        let look = |name: &str, is_needed| {
            let value = self.variables.get(name).cloned();
            if value.is_none() && is_needed {
                self.unset.borrow_mut().insert(name.to_owned());
            }
            value
        };
        self.expand_with(text, &look)
    }

    fn expand_with(&self, text: &str, look: Look<'_>) -> Result<String> {
        let expanded = expand(text, look, 0).map_err(odd)?;
        self.spend(expanded.len())?;
        Ok(expanded)
    }

    fn spend(&self, bytes: usize) -> Result<()> {
        self.expanded.set(self.expanded.get().saturating_add(bytes));
        if self.expanded.get() > EXPANDED_BYTES_MAX {
            return Err(odd(format!("its variables become more than {EXPANDED_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    fn path(&self, said: &str) -> PathBuf {
        self.path_in(&self.dir, said)
    }

    /// A path as compose means it, on this machine.
    fn path_in(&self, dir: &Path, said: &str) -> PathBuf {
        // Whoever starts a forge at boot is root.
        let home = said.strip_prefix('~').map(|rest| format!("/root{rest}"));
        let path = PathBuf::from(home.as_deref().unwrap_or(said));
        lexically(&if path.is_absolute() { below(self.root, &path) } else { dir.join(path) })
    }
}

fn odd(reason: impl Into<String>) -> Error {
    Error::Service { service: "compose file".into(), reason: reason.into() }
}

/// Without `.` and `..`.
pub fn lexically(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    clean
}

/// The elements of a list, or the one thing that stands for a list of it.
fn one_or_more(said: &Value) -> &[Value] {
    match said {
        Value::Null => &[],
        Value::Array(all) => all,
        one => std::slice::from_ref(one),
    }
}
