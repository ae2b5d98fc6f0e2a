//! Reads compose files by the rules of compose.

use super::super::variables::{Assigned, EXPANDED_BYTES_MAX, Look, assignments, expand};
use super::{Service, Source, Surroundings, Variables, VolumeMount, built, overriding};
use crate::error::{Error, Result};
use crate::file::text;
use crate::file::yaml;
use crate::kind::below;
use crate::links::lexically;
use crate::mask::masked;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Maximum depth of services that extend each other, and of files that include each other.
const DEPTH_MAX: usize = 16;
/// Maximum number of documents in a project.
const DOCUMENTS_MAX: usize = 256;
/// Maximum number of volumes to search for a hint.
const VOLUMES_MAX: usize = 10_000;
/// Home directory. A forge that starts at boot is started by root.
const HOME: &str = "/root";

/// Returns the services of a document. In the oldest format they are its only content.
fn services(document: &Value) -> Option<&serde_json::Map<String, Value>> {
    match document.get("services") {
        Some(services) => services.as_object(),
        None if document.get("version").is_none() => document.as_object(),
        None => None,
    }
}

/// State shared by all readers of a project.
#[derive(Debug, Default)]
pub struct Shared {
    /// Bytes from expansions so far.
    expanded: Cell<usize>,
    /// Number of documents read so far.
    documents: Cell<usize>,
    /// All files.
    pub files: RefCell<BTreeSet<PathBuf>>,
    /// Files without which compose creates no container.
    pub needed: RefCell<BTreeSet<PathBuf>>,
    /// Files that compose skips if they are missing.
    pub optional: RefCell<BTreeSet<PathBuf>>,
    /// Files and directories from which images are built, besides the Dockerfiles.
    pub built_from: RefCell<BTreeSet<PathBuf>>,
    /// Variables that are used but never set.
    pub unset: RefCell<BTreeSet<String>>,
    /// Notes about anything unusual.
    pub notes: RefCell<BTreeSet<String>>,
}

/// A project, or files included by one, with their own directory and variables.
#[derive(Debug)]
pub struct Reader<'a> {
    place: Surroundings<'a>,
    shared: &'a Shared,
    /// Directory at which relative paths start.
    pub dir: PathBuf,
    variables: Variables,
    /// Possible names of the project.
    pub names: Vec<String>,
    /// Documents. Later ones override earlier ones.
    top: Vec<Value>,
    /// Included files. The documents override them.
    included: Vec<Reader<'a>>,
}

impl<'a> Reader<'a> {
    /// Reads the documents of a project.
    pub fn of_project(
        given: &[PathBuf],
        place: Surroundings<'a>,
        shared: &'a Shared,
    ) -> Result<Reader<'a>> {
        let first = given.first().map(PathBuf::as_path).unwrap_or(Path::new("/"));
        let dir = place.dir.unwrap_or_else(|| first.parent().unwrap_or(first));
        let mut reader = Reader::empty(dir, place, shared);
        if place.env_files.is_empty() {
            reader.take_environment(&reader.dir.join(".env"))?;
        }
        for file in place.env_files {
            shared.needed.borrow_mut().insert(file.clone());
            reader.take_environment(file)?;
        }
        for path in reader.files_of_project(given) {
            reader.top.push(reader.document(&path)?);
        }
        reader.names = reader.names_of_project();
        reader.include(0)?;
        Ok(reader)
    }

    fn empty(dir: &Path, place: Surroundings<'a>, shared: &'a Shared) -> Reader<'a> {
        let mut variables = Variables::new();
        // Only shell variables with an almost certain value are set.
        let seen = dir.strip_prefix(place.root).unwrap_or(dir);
        variables.insert("PWD".into(), Path::new("/").join(seen).to_string_lossy().into_owned());
        variables.insert("HOME".into(), HOME.into());
        let dir = dir.to_owned();
        Reader { place, shared, dir, variables, names: vec![], top: vec![], included: vec![] }
    }

    fn take_environment(&mut self, path: &Path) -> Result<()> {
        let found = self.environment_file(path)?;
        self.variables.extend(found.unwrap_or_default());
        Ok(())
    }

    /// Reads the included files.
    fn include(&mut self, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(odd("files include each other in a loop"));
        }
        for document in &self.top {
            for node in one_or_more(&document["include"]) {
                self.included.push(self.included(node, depth)?);
            }
        }
        Ok(())
    }

    /// Reads one entry of an `include` list.
    fn included(&self, node: &Value, depth: usize) -> Result<Reader<'a>> {
        let paths = if node.is_object() { &node["path"] } else { node };
        let paths = self.texts(paths)?;
        let is_remote = |path: &&String| {
            path.contains("://") || path.starts_with("oci:") || path.starts_with("git@")
        };
        let remote = paths.iter().find(is_remote);
        if let Some(path) = remote {
            let path = masked(path);
            return Err(odd(format!("it includes {path}, which is not on this machine")));
        }
        let paths: Vec<PathBuf> = paths.iter().map(|path| self.path(path)).collect();
        let Some(first) = paths.first() else {
            return Err(odd("an `include` has no path"));
        };
        let dir = match self.text(&node["project_directory"])? {
            Some(dir) => self.path(&dir),
            None => first.parent().unwrap_or(first).to_owned(),
        };
        let mut reader = Reader::empty(&dir, self.place, self.shared);
        let environment = self.texts(&node["env_file"])?;
        if environment.is_empty() {
            reader.take_environment(&dir.join(".env"))?;
        }
        for file in environment {
            let file = self.path(&file);
            self.shared.needed.borrow_mut().insert(file.clone());
            reader.take_environment(&file)?;
        }
        // Variables of the whole project take precedence.
        let own = self.variables.iter().filter(|(name, _)| *name != "PWD");
        reader.variables.extend(own.map(|(name, value)| (name.clone(), value.clone())));
        reader.names.clone_from(&self.names);
        for path in paths {
            reader.top.push(reader.document(&path)?);
        }
        reader.include(depth + 1)?;
        Ok(reader)
    }

    /// Returns the names of all services.
    pub fn names_of_services(&self) -> BTreeSet<String> {
        let included = self.included.iter().flat_map(Reader::names_of_services);
        let own = self.top.iter().filter_map(services).flatten().map(|(name, _)| name.clone());
        included.chain(own).collect()
    }

    fn document(&self, path: &Path) -> Result<Value> {
        self.shared.files.borrow_mut().insert(path.to_owned());
        self.shared.documents.set(self.shared.documents.get() + 1);
        if self.shared.documents.get() > DOCUMENTS_MAX {
            return Err(odd(format!("it consists of more than {DOCUMENTS_MAX} files")));
        }
        yaml(path)?.ok_or_else(|| Error::Read {
            path: path.to_owned(),
            source: rustix::io::Errno::NOENT.into(),
        })
    }

    /// Returns the files that compose combines: those given, or those in `COMPOSE_FILE`, or the one
    /// given and its override file.
    fn files_of_project(&self, given: &[PathBuf]) -> Vec<PathBuf> {
        let [given] = given else { return given.to_vec() };
        if let Some(list) = self.variables.get("COMPOSE_FILE").filter(|list| !list.is_empty()) {
            let separator = self.variables.get("COMPOSE_PATH_SEPARATOR");
            let separator = separator.filter(|text| !text.is_empty()).map_or(":", String::as_str);
            let files: Vec<PathBuf> =
                list.split(separator).take(DOCUMENTS_MAX).map(|path| self.path(path)).collect();
            // If the list lacks the given file, the given file counts.
            if files.iter().any(|file| file == given) {
                return files;
            }
        }
        std::iter::once(given.to_owned()).chain(overriding(given)).collect()
    }

    fn names_of_project(&self) -> Vec<String> {
        let named = self.top.iter().rev().find_map(|document| document["name"].as_str());
        let named = named.and_then(|name| self.expand(name).ok());
        let given = self.place.project.map(str::to_owned);
        let own = given.or(self.variables.get("COMPOSE_PROJECT_NAME").cloned()).or(named);
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

    /// Returns a service, merged from all documents.
    pub fn service_of_all(&self, name: &str) -> Result<Service> {
        let mut service = Service::default();
        for reader in &self.included {
            if reader.names_of_services().contains(name) {
                service = service.then(reader.service_of_all(name)?);
            }
        }
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

    /// Returns a service of one document, merged with the services that it extends.
    fn service(&self, document: &Value, dir: &Path, name: &str, depth: usize) -> Result<Service> {
        let Some(node) = services(document).and_then(|services| services.get(name)) else {
            return Err(odd(format!("`extends` names service {name}, which does not exist")));
        };
        if depth > DEPTH_MAX {
            return Err(odd("services extend each other in a loop"));
        }
        let base = match &node["extends"] {
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
        Ok(base.then(self.own(node, dir)?))
    }

    /// Returns the service's own definition.
    fn own(&self, node: &Value, dir: &Path) -> Result<Service> {
        let mut service = Service {
            image: self.text(&node["image"])?,
            container: self.text(&node["container_name"])?,
            ..Service::default()
        };
        for file in one_or_more(&node["env_file"]) {
            let path = if file.is_object() { &file["path"] } else { file };
            if let Some(path) = self.text(path)? {
                let path = self.path_in(dir, &path);
                let is_needed = self.text(&file["required"])?.is_none_or(|text| text != "false");
                let files = if is_needed { &self.shared.needed } else { &self.shared.optional };
                files.borrow_mut().insert(path.clone());
                service.from_files.extend(self.environment_file(&path)?.unwrap_or_default());
            }
        }
        self.environment(&node["environment"], &mut service.environment)?;
        for volume in one_or_more(&node["volumes"]) {
            service.mounts.extend(self.volume(volume, dir)?);
        }
        for (section, default) in [("configs", "/"), ("secrets", "/run/secrets")] {
            for handed in one_or_more(&node[section]) {
                service.mounts.extend(self.handed(section, handed, default)?);
            }
        }
        for from in one_or_more(&node["volumes_from"]) {
            let text = self.text(from)?.unwrap_or_default();
            let name = text.split(':').next().unwrap_or_default();
            if name != "container" {
                service.volumes_from.push(name.to_owned());
            }
        }
        self.build(&node["build"], dir)?;
        for word in one_or_more(&node["command"]) {
            let text = self.text(word)?.unwrap_or_default();
            service.command.extend(text.split_whitespace().map(str::to_owned));
        }
        Ok(service)
    }

    /// Records the files from which an image is built.
    fn build(&self, node: &Value, dir: &Path) -> Result<()> {
        let context = if node.is_object() { &node["context"] } else { node };
        let context = match self.text(context)? {
            Some(context) => context,
            None if node.is_object() => ".".into(),
            None => return Ok(()),
        };
        if built::is_remote(&context) {
            return Ok(());
        }
        let context = self.path_in(dir, &context);
        let inline = self.text(&node["dockerfile_inline"])?;
        let text = match inline {
            Some(text) => text,
            None => {
                let name = self.text(&node["dockerfile"])?;
                let file = self.path_in(&context, name.as_deref().unwrap_or("Dockerfile"));
                self.shared.files.borrow_mut().insert(file.clone());
                self.shared.optional.borrow_mut().insert(file.clone());
                text(&file)?.unwrap_or_default()
            }
        };
        self.shared.built_from.borrow_mut().extend(built::sources(&text, &context));
        for other in node["additional_contexts"].as_object().into_iter().flatten() {
            let other = self.text(other.1)?.filter(|other| !built::is_remote(other));
            let other = other.map(|other| self.path_in(dir, &other));
            self.shared.built_from.borrow_mut().extend(other.filter(|path| path.exists()));
        }
        Ok(())
    }

    /// Reads an environment in either form. A name without a value gets the project's value.
    fn environment(&self, node: &Value, into: &mut Variables) -> Result<()> {
        let mut set = |name: &str, value: Option<String>| match value
            .or_else(|| self.variables.get(name).cloned())
        {
            Some(value) => drop(into.insert(name.to_owned(), value)),
            None => drop(into.remove(name)),
        };
        for (name, value) in node.as_object().into_iter().flatten() {
            set(name, self.text(value)?);
        }
        for line in node.as_array().into_iter().flatten() {
            if let Some(line) = self.text(line)? {
                match line.split_once('=') {
                    Some((name, value)) => set(name, Some(value.to_owned())),
                    None => set(&line, None),
                }
            }
        }
        Ok(())
    }

    /// Reads a volume in either form.
    fn volume(&self, node: &Value, dir: &Path) -> Result<Option<VolumeMount>> {
        let (source, target);
        if node.is_object() {
            source = self.text(&node["source"])?.or(self.text(&node["src"])?);
            let long = ["target", "destination", "dst"].map(|key| &node[key]);
            let Some(found) = long.into_iter().find(|value| value.is_string()) else {
                return Ok(None);
            };
            target = self.text(found)?.unwrap_or_default();
        } else {
            let Some(text) = self.text(node)? else { return Ok(None) };
            let mut words = text.splitn(3, ':').map(str::to_owned);
            let (first, second) = (words.next().unwrap_or_default(), words.next());
            (source, target) = match second {
                Some(second) => (Some(first), second),
                None => (None, first),
            };
        }
        let source = match source {
            _ if node["type"] == "tmpfs" => Source::Memory,
            None => Source::Unknown("it is in an anonymous volume".into()),
            Some(source) if node["type"] != "volume" && source.starts_with(['/', '.', '~']) => {
                Source::Path(self.path_in(dir, &source))
            }
            Some(name) => {
                let inner = self.text(&node["volume"]["subpath"])?;
                match (self.named(&name)?, inner) {
                    (Source::Path(path), Some(inner)) => Source::Path(lexically(&path.join(inner))),
                    (source, _) => source,
                }
            }
        };
        Ok(Some(VolumeMount { target: lexically(Path::new(&target)), source }))
    }

    /// Returns the source of a named volume.
    fn named(&self, name: &str) -> Result<Source> {
        let (reader, node) = self.top_level("volumes", name);
        let options = &node["driver_opts"];
        let unknown = |reason: String| Ok(Source::Unknown(format!("volume {name} {reason}")));
        if let Some(driver) = reader.text(&node["driver"])?.filter(|driver| driver != "local") {
            return unknown(format!("uses the driver {driver}"));
        }
        if let Some(device) = reader.text(&options["device"])? {
            let kind = reader.text(&options["type"])?.unwrap_or_default();
            let is_bind =
                reader.text(&options["o"])?.is_some_and(|o| o.split(',').any(|o| o == "bind"));
            return match kind.as_str() {
                _ if is_bind => Ok(Source::Path(reader.path(&device))),
                "tmpfs" => Ok(Source::Memory),
                // The other options may contain a password.
                _ => unknown(format!("is mounted from elsewhere ({kind} {device})")),
            };
        }
        let external = &node["external"];
        let own = reader.text(&node["name"])?.or(reader.text(&external["name"])?);
        let is_external = external.is_object() || *external == true;
        let is_guessed = own.is_none() && !is_external;
        let full: Vec<String> = match own {
            Some(own) => vec![own],
            None if is_external => vec![name.to_owned()],
            None => self.names.iter().map(|project| format!("{project}_{name}")).collect(),
        };
        // A name must not lead out of the directory of volumes.
        let full = full.into_iter().filter(|name| !name.contains('/') && !name.starts_with('.'));
        let full: Vec<String> = full.collect();
        let dirs: Vec<PathBuf> =
            full.iter().map(|name| self.place.volumes.join(name).join("_data")).collect();
        let found = dirs.iter().find(|dir| dir.exists());
        if let (None, true) = (found, is_guessed) {
            self.hint_at_others(name, &full);
        }
        let Some(dir) = found.or(dirs.first()) else {
            return unknown("has no usable name".into());
        };
        Ok(Source::Path(dir.clone()))
    }

    /// Adds a note about volumes that would match if the project had another name.
    fn hint_at_others(&self, name: &str, looked_for: &[String]) {
        let entries = std::fs::read_dir(self.place.volumes).into_iter().flatten().flatten();
        let end = format!("_{name}");
        let others = entries
            .take(VOLUMES_MAX)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|full| full.strip_suffix(&end).map(str::to_owned))
            .filter(|project| !project.is_empty());
        let others: BTreeSet<String> = others.collect();
        if let Some(first) = others.first() {
            let others: Vec<String> =
                others.iter().map(|project| format!("{project}{end}")).collect();
            self.shared.notes.borrow_mut().insert(format!(
                "volume {} does not exist, but {} does; to use that, set project = {first:?}",
                looked_for.join(" or "),
                others.join(", ")
            ));
        }
    }

    /// Reads a secret or config passed to a service.
    fn handed(&self, section: &str, node: &Value, default: &str) -> Result<Option<VolumeMount>> {
        let (name, target) = if node.is_object() {
            (self.text(&node["source"])?, self.text(&node["target"])?)
        } else {
            (self.text(node)?, None)
        };
        let Some(name) = name else { return Ok(None) };
        let target = Path::new(default).join(target.unwrap_or_else(|| name.clone()));
        let (reader, node) = self.top_level(section, &name);
        let source = if let Some(file) = reader.text(&node["file"])? {
            let path = reader.path(&file);
            self.shared.files.borrow_mut().insert(path.clone());
            self.shared.needed.borrow_mut().insert(path.clone());
            Source::Path(path)
        } else if let Some(content) = reader.text(&node["content"])? {
            Source::Text(content)
        } else if let Some(variable) = node["environment"].as_str() {
            Source::Text(reader.variables.get(variable).cloned().unwrap_or_default())
        } else {
            Source::Unknown("Docker itself stores it".into())
        };
        Ok(Some(VolumeMount { target: lexically(&target), source }))
    }

    /// Returns the last definition of a volume, secret or config, with the reader that it comes
    /// from.
    fn top_level(&self, section: &str, name: &str) -> (&Self, &Value) {
        self.find_top_level(section, name).unwrap_or((self, &Value::Null))
    }

    fn find_top_level(&self, section: &str, name: &str) -> Option<(&Self, &Value)> {
        let node = self.top.iter().rev().map(|document| &document[section][name]);
        let own = node.into_iter().find(|node| !node.is_null()).map(|node| (self, node));
        let included = self.included.iter().rev();
        own.or_else(|| included.filter_map(|reader| reader.find_top_level(section, name)).next())
    }

    /// Reads the variables in a file. Returns `None` if it does not exist.
    fn environment_file(&self, path: &Path) -> Result<Option<Variables>> {
        self.shared.files.borrow_mut().insert(path.to_owned());
        let Some(text) = text(path)? else { return Ok(None) };
        let mut found = Variables::new();
        for (name, assigned) in assignments(&text) {
            let value = match assigned {
                Assigned::Literally(value) => value,
                Assigned::ToExpand(value) => {
                    let look =
                        |name: &str, _| found.get(name).or(self.variables.get(name)).cloned();
                    // If the expansion fails, for example at a single `$`, the text is kept as it
                    // is.
                    self.expand_with(&value, &look).unwrap_or(value)
                }
            };
            self.spend(value.len())?;
            found.insert(name, value);
        }
        Ok(Some(found))
    }

    /// Returns all texts of a list, or a single text.
    fn texts(&self, node: &Value) -> Result<Vec<String>> {
        let texts = one_or_more(node).iter().map(|node| self.text(node));
        Ok(texts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Returns an expanded text, or a number or boolean as text.
    fn text(&self, node: &Value) -> Result<Option<String>> {
        Ok(match node {
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
                self.shared.unset.borrow_mut().insert(name.to_owned());
            }
            value
        };
        self.expand_with(text, &look)
    }

    fn expand_with(&self, text: &str, look: Look<'_>) -> Result<String> {
        let expanded = expand(text, look, 0).map_err(|error| odd(error.to_string()))?;
        self.spend(expanded.len())?;
        Ok(expanded)
    }

    fn spend(&self, bytes: usize) -> Result<()> {
        self.shared.expanded.set(self.shared.expanded.get().saturating_add(bytes));
        if self.shared.expanded.get() > EXPANDED_BYTES_MAX {
            return Err(odd(format!(
                "its variables expand to more than {EXPANDED_BYTES_MAX} bytes"
            )));
        }
        Ok(())
    }

    fn path(&self, written: &str) -> PathBuf {
        self.path_in(&self.dir, written)
    }

    /// Resolves a path by the rules of compose to a path on this machine.
    fn path_in(&self, dir: &Path, written: &str) -> PathBuf {
        let home = written.strip_prefix('~').map(|rest| format!("{HOME}{rest}"));
        let path = PathBuf::from(home.as_deref().unwrap_or(written));
        lexically(&if path.is_absolute() { below(self.place.root, &path) } else { dir.join(path) })
    }
}

fn odd(reason: impl Into<String>) -> Error {
    Error::Service { service: "compose file".into(), reason: reason.into() }
}

/// Returns the elements of a list. A single value counts as a list of one.
fn one_or_more(node: &Value) -> &[Value] {
    match node {
        Value::Null => &[],
        Value::Array(all) => all,
        one => std::slice::from_ref(one),
    }
}
