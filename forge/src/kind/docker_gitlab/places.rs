//! Directories of the container, as configured by its variables, and their places on this machine.

use super::DATA;
use super::compose::{Place, Service};
use crate::links::lexically;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// Installation directory of GitLab. Relative paths start here.
const INSTALLED: &str = "/home/git/gitlab";

/// Directories that contain the others.
#[derive(Debug)]
pub struct Dirs {
    /// All data.
    pub data: PathBuf,
    /// Data of most kinds.
    pub shared: PathBuf,
}

/// A directory, with the variable that moved it.
#[derive(Debug)]
pub struct ConfiguredDir {
    /// Path in the container.
    pub dir: PathBuf,
    /// Variable that names it or a directory above it; `None` if it has its default path.
    pub variable: Option<&'static str>,
}

/// A directory that is not on this machine, or whose place is unknown.
#[derive(Debug)]
pub struct Gap {
    /// Reason for people.
    pub reason: String,
    /// True if it exists in another place and outlives the container.
    is_elsewhere: bool,
    /// True if it is in memory on purpose.
    is_memory: bool,
}

impl Gap {
    /// Creates the gap for a directory that exists in an unknown place.
    pub fn elsewhere(reason: String) -> Gap {
        Gap { reason, is_elsewhere: true, is_memory: false }
    }

    /// Returns true if the directory may contain data. Assumes so if a variable names the directory
    /// and it is not in memory.
    pub fn is_data(&self, variable: Option<&str>) -> bool {
        self.is_elsewhere || (variable.is_some() && !self.is_memory)
    }

    /// Returns the reason and the next step, for people.
    pub fn needed(&self, part: &str) -> String {
        let reason = &self.reason;
        if self.is_elsewhere {
            format!("{reason}; set parts.{part}.path to its path on this machine")
        } else {
            format!("{reason}; add a volume, or it is lost with the container")
        }
    }
}

impl Dirs {
    /// Returns the directories of a container.
    pub fn of(gitlab: &Service) -> Dirs {
        let mut dirs = Dirs { data: DATA.into(), shared: PathBuf::new() };
        if let Some(data) = gitlab.variable("GITLAB_DATA_DIR") {
            dirs.data = dirs.absolute(data);
        }
        // The image has a link to here at `shared` in the directory of the program.
        dirs.shared = Path::new(DATA).join("shared");
        let shared = gitlab.variable("GITLAB_SHARED_DIR");
        dirs.shared = shared.map_or_else(|| dirs.data.join("shared"), |path| dirs.absolute(path));
        dirs
    }

    /// Resolves a path as GitLab does, including the links of the image that lead into the data.
    pub fn absolute(&self, path: &str) -> PathBuf {
        let path = lexically(&Path::new(INSTALLED).join(path));
        let inside = |link: &str| path.strip_prefix(link).ok().map(Path::to_owned);
        if let Some(rest) = inside("/home/git/gitlab/public/uploads") {
            Path::new(DATA).join("uploads").join(rest)
        } else if let (Some(rest), false) =
            (inside("/home/git/gitlab/shared"), self.shared.as_os_str().is_empty())
        {
            self.shared.join(rest)
        } else {
            path
        }
    }

    /// Returns a directory: the path in its variable, or else the default path below the directory
    /// of all data or of shared data.
    pub fn path(&self, gitlab: &Service, variable: &'static str, default: &str) -> ConfiguredDir {
        if let Some(path) = gitlab.variable(variable) {
            // This variable names the directory above.
            let inner = if variable == "GITLAB_UPLOADS_STORAGE_PATH" { "uploads" } else { "" };
            let path = Path::new(path).join(inner);
            let dir = self.absolute(&path.to_string_lossy());
            return ConfiguredDir { dir: dir.components().collect(), variable: Some(variable) };
        }
        let is_set = |name: &'static str| gitlab.variable(name).map(|_| name);
        let of_data = is_set("GITLAB_DATA_DIR");
        match default.strip_prefix("shared/") {
            Some(inner) => ConfiguredDir {
                dir: self.shared.join(inner),
                variable: is_set("GITLAB_SHARED_DIR").or(of_data),
            },
            None => ConfiguredDir { dir: self.data.join(default), variable: of_data },
        }
    }

    /// Returns the directory that the image's link for uploads leads to, if it is not `dir`. The
    /// link leads to the default directory even if the data was moved. Returns `None` if a variable
    /// sets the directory of uploads.
    pub fn uploads_of_image(&self, gitlab: &Service, dir: &Path) -> Option<Result<PathBuf, Gap>> {
        let of_image = Path::new(DATA).join("uploads");
        let is_used = gitlab.variable("GITLAB_UPLOADS_STORAGE_PATH").is_none() && dir != of_image;
        is_used.then(|| place(gitlab, &of_image))
    }
}

/// Returns a path of the container on this machine.
pub fn place(gitlab: &Service, path: &Path) -> Result<PathBuf, Gap> {
    let at = path.displayed();
    match gitlab.place(path) {
        Some(Place::Here(path)) => Ok(path),
        Some(Place::Nowhere(reason)) => {
            Err(Gap::elsewhere(format!("{at} of the container: {reason}")))
        }
        Some(Place::Memory) => {
            let reason = format!("{at} of the container: it is in memory");
            Err(Gap { reason, is_elsewhere: false, is_memory: true })
        }
        None => {
            let reason = format!("{at} of the container is not in a volume");
            Err(Gap { reason, is_elsewhere: false, is_memory: false })
        }
    }
}
