//! Which compose file it is.

use super::compose::{NAMES, Service};
use super::is_gitlab;
use crate::error::Result;
use crate::file;
use crate::kind::{Site, below};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// The compose file of the settings, or the only one that is found.
pub fn compose_file(site: &Site<'_>) -> Result<PathBuf> {
    if let Some(path) = &site.settings.compose {
        let in_dir = NAMES.iter().map(|name| path.join(name)).find(|path| path.exists());
        return Ok(in_dir.unwrap_or_else(|| path.clone()));
    }
    let mut found = compose_files(&site.settings.root);
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(path),
        (None, _) => Err(site.wrong(
            "no compose file with an image sameersbn/gitlab was found; \
             say where it is: compose = \"/…/docker-compose.yml\"",
        )),
        (Some(last), false) => {
            let all: Vec<String> =
                found.iter().chain([&last]).map(|path| path.display().to_string()).collect();
            Err(site.wrong(format!(
                "several compose files have an image sameersbn/gitlab ({}); \
                 say which it is: compose = \"…\"",
                all.join(", ")
            )))
        }
    }
}

/// Where compose files are looked for, and how far below.
const PLACES: &[(&str, usize)] =
    &[("/srv", 4), ("/opt", 4), ("/root", 3), ("/home", 4), ("/app", 3), ("/etc", 2)];
/// Directories that are looked into at most.
const DIRS_MAX: usize = 5000;
/// Entries of one directory that are looked at.
const ENTRIES_MAX: usize = 500;

/// Compose files with this GitLab, in the usual places; what is near the top comes first.
pub fn compose_files(root: &Path) -> Vec<PathBuf> {
    let places = PLACES.iter().map(|(place, depth)| (below(root, Path::new(place)), *depth));
    let mut queue: VecDeque<(PathBuf, usize)> = places.collect();
    let mut found = Vec::new();
    for _ in 0..DIRS_MAX {
        let Some((dir, depth)) = queue.pop_front() else { break };
        let here = NAMES.iter().map(|name| dir.join(name)).find(|path| path.is_file());
        found.extend(here.filter(|path| {
            file::text(path).is_ok_and(|text| has_gitlab(&text.unwrap_or_default()))
        }));
        if depth > 0 {
            queue.extend(dirs_in(&dir).into_iter().map(|dir| (dir, depth - 1)));
        }
    }
    found
}

/// Directories in one; no links, and none that is hidden.
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

/// Whether a line names the image.
fn has_gitlab(text: &str) -> bool {
    text.lines().any(|line| {
        let image =
            line.trim().strip_prefix("image:").map(|image| image.trim().trim_matches(['"', '\'']));
        image.is_some_and(|image| {
            is_gitlab(&Service { image: Some(image.to_owned()), ..Service::default() })
        })
    })
}
