//! Search for compose files.

use super::compose::{Compose, NAMES, Service, Surroundings, overriding};
use super::variables::assignments;
use crate::error::Result;
use crate::file;
use crate::kind::{Site, below};
use crate::links::lexically;
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// Service that a kind looks for.
#[derive(Clone, Copy)]
pub struct Sought {
    /// Name of its image.
    pub image: &'static str,
    /// Returns true if a service matches.
    pub is_it: fn(&Service) -> bool,
}

/// Returns the compose files from the settings.
pub fn named(site: &Site<'_>) -> Vec<PathBuf> {
    let configured = site.settings.compose.iter();
    configured.map(|path| file_in(path).unwrap_or_else(|| path.clone())).collect()
}

/// Returns the compose files from the settings, or the only one found.
pub fn chosen(site: &Site<'_>, sought: Sought) -> Result<Vec<PathBuf>> {
    let configured = named(site);
    if !configured.is_empty() {
        return Ok(configured);
    }
    let (found, image) = (compose_files(&site.settings.root, sought), sought.image);
    match found.len() {
        1 => Ok(found),
        0 => Err(site.wrong(format!(
            "found no compose file with an image {image}; \
             set its path: compose = \"/…/docker-compose.yml\""
        ))),
        _ => Err(site.wrong(format!(
            "several compose files have an image {image} ({}); \
             choose one: compose = \"…\"",
            listed(&found)
        ))),
    }
}

/// Returns the compose file that compose reads first in a directory: the first one in
/// `COMPOSE_FILE`, or else one with a usual name.
fn file_in(dir: &Path) -> Option<PathBuf> {
    let listed =
        listed_in(dir).map(|path| lexically(&dir.join(path))).filter(|path| path.is_file());
    listed.or_else(|| NAMES.iter().map(|name| dir.join(name)).find(|path| path.is_file()))
}

/// Returns the first path in `COMPOSE_FILE` of the file `.env` in a directory.
fn listed_in(dir: &Path) -> Option<String> {
    let text = file::text(&dir.join(".env")).ok().flatten()?;
    let all = assignments(&text);
    let value = |wanted: &str| {
        let last = all.iter().rev().find(|(name, _)| name == wanted);
        last.map(|(_, assigned)| assigned.text()).filter(|value| !value.is_empty())
    };
    let separator = value("COMPOSE_PATH_SEPARATOR").unwrap_or(":");
    value("COMPOSE_FILE")?.split(separator).next().map(str::to_owned)
}

/// Returns configuration lines that name the first of the compose files found. `created` has the
/// files that created its container, if compose does not read them by itself.
pub fn proposed(found: &[PathBuf], created: &[PathBuf]) -> Vec<String> {
    let Some((first, others)) = found.split_first() else { return Vec::new() };
    let mut lines = Vec::new();
    if !others.is_empty() {
        lines.push(format!(
            "# GitLab is also in {}; give each other GitLab an instance of its own.",
            listed(others)
        ));
    }
    let quoted = |path: &PathBuf| toml::Value::from(path.display().to_string());
    let value = match created {
        [] => quoted(first),
        files => toml::Value::Array(files.iter().map(quoted).collect()),
    };
    lines.push(format!("compose = {value}"));
    lines
}

fn listed(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|path| path.displayed()).collect();
    shown.join(", ")
}

/// Directories to search for compose files, with the maximum depth.
const PLACES: &[(&str, usize)] =
    &[("/srv", 4), ("/opt", 4), ("/root", 3), ("/home", 4), ("/app", 3), ("/etc", 2)];
/// Maximum number of directories to search.
const DIRS_MAX: usize = 5000;
/// Maximum number of entries to read in a directory.
const ENTRIES_MAX: usize = 500;

/// Finds compose files with a matching service in the usual places. Those with the shortest paths
/// below these places are first.
pub fn compose_files(root: &Path, sought: Sought) -> Vec<PathBuf> {
    let places = PLACES.iter().map(|(place, depth)| (below(root, Path::new(place)), *depth));
    let mut queue: VecDeque<(PathBuf, usize)> = places.collect();
    let mut found = Vec::new();
    for _ in 0..DIRS_MAX {
        let Some((dir, depth)) = queue.pop_front() else { break };
        let here = file_in(&dir);
        found.extend(here.filter(|path| {
            let text = file::text(path).ok().flatten().unwrap_or_default();
            has_image(&text, sought) || has_service(root, path, &text, sought)
        }));
        if depth > 0 {
            queue.extend(dirs_in(&dir).into_iter().map(|dir| (dir, depth - 1)));
        }
    }
    // An included file is not a project of its own.
    let included: BTreeSet<PathBuf> =
        found.iter().flat_map(|path| included_in(root, path)).collect();
    found.retain(|path| !included.contains(path));
    found
}

/// Returns the files that a compose file includes or extends.
fn included_in(root: &Path, path: &Path) -> Vec<PathBuf> {
    let Ok(compose) = read(root, path) else { return Vec::new() };
    compose.files.into_iter().filter(|file| file != path && *file != compose.path).collect()
}

/// Returns true if a file has a matching service whose image its text does not name. Such an image
/// is built, or comes from a variable or another file.
fn has_service(root: &Path, path: &Path, text: &str, sought: Sought) -> bool {
    let is_marked = ["include", "extends", "build", "$"].iter().any(|mark| text.contains(mark));
    if !is_marked && !has_others(path) {
        return false;
    }
    let Ok(compose) = read(root, path) else { return false };
    compose.services.values().flatten().any(|service| (sought.is_it)(service))
}

/// Returns true if compose reads more files than this one: an overriding one, or a list in `.env`.
fn has_others(path: &Path) -> bool {
    overriding(path).is_some() || path.parent().is_some_and(|dir| listed_in(dir).is_some())
}

/// Reads a compose file whose project and volumes have the usual names.
pub fn read(root: &Path, path: &Path) -> Result<Compose> {
    let volumes = below(root, Path::new("/var/lib/docker/volumes"));
    let place = Surroundings { root, volumes: &volumes, project: None, dir: None, env_files: &[] };
    Compose::read(&[path.to_owned()], place)
}

/// Returns the directories in a directory, without links and hidden ones.
fn dirs_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().take(ENTRIES_MAX).flatten();
    let dirs = entries.filter(|entry| {
        let is_shown = entry.file_name().to_str().is_some_and(|name| !name.starts_with('.'));
        is_shown && entry.file_type().is_ok_and(|kind| kind.is_dir())
    });
    let mut dirs: Vec<PathBuf> = dirs.map(|entry| entry.path()).collect();
    dirs.sort();
    dirs
}

/// Returns true if a line names a matching image.
fn has_image(text: &str, sought: Sought) -> bool {
    let image = |line: &str| {
        let line = line.split(" #").next().unwrap_or_default();
        let (before, image) = line.split_once("image:")?;
        (!before.trim_start().starts_with('#')).then(|| image.to_owned())
    };
    let is_end = |c: char| c.is_whitespace() || ",\"'{}".contains(c);
    text.lines().filter_map(image).any(|image| {
        image.split(is_end).any(|word| {
            // A variable counts as its default value.
            let word = word.rsplit(":-").next().unwrap_or(word);
            (sought.is_it)(&Service { image: Some(word.to_owned()), ..Service::default() })
        })
    })
}
