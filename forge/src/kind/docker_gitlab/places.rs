//! Where the container has its directories, as its variables say, and where this machine has
//! them.

use super::DATA;
use super::compose::{Place, Service};
use crate::links::lexically;
use std::path::{Path, PathBuf};

/// Where GitLab itself is. Paths that do not begin with a slash are relative to it.
const INSTALLED: &str = "/home/git/gitlab";

/// The directories that others are in.
#[derive(Debug)]
pub struct Dirs {
    /// All data.
    pub data: PathBuf,
    /// What most kinds of data are in.
    pub shared: PathBuf,
}

/// A directory, and which variable has moved it.
#[derive(Debug)]
pub struct Said {
    /// Where it is in the container.
    pub dir: PathBuf,
    /// What says so, if it is not where it always was.
    pub variable: Option<&'static str>,
}

/// A directory that this machine does not have, as far as can be known.
#[derive(Debug)]
pub struct Gap {
    /// Why.
    pub reason: String,
    /// Whether it lasts longer than the container.
    is_elsewhere: bool,
    /// Whether it is in memory on purpose.
    is_memory: bool,
}

impl Gap {
    /// It is there and nobody can say where.
    pub fn elsewhere(reason: String) -> Gap {
        Gap { reason, is_elsewhere: true, is_memory: false }
    }

    /// Whether there are data in it; a variable that names it says so.
    pub fn is_data(&self, variable: Option<&str>) -> bool {
        self.is_elsewhere || (variable.is_some() && !self.is_memory)
    }

    /// Why it is missing, and what to do.
    pub fn needed(&self, part: &str) -> String {
        let reason = &self.reason;
        if self.is_elsewhere {
            format!("{reason}; parts.{part}.path says where this machine has it")
        } else {
            format!("{reason}: it goes with the container; it needs a volume")
        }
    }
}

impl Dirs {
    /// Those of a container.
    pub fn of(gitlab: &Service) -> Dirs {
        let mut dirs = Dirs { data: DATA.into(), shared: PathBuf::new() };
        if let Some(data) = gitlab.variable("GITLAB_DATA_DIR") {
            dirs.data = dirs.absolute(data);
        }
        let shared = gitlab.variable("GITLAB_SHARED_DIR");
        dirs.shared = shared.map_or_else(|| dirs.data.join("shared"), |path| dirs.absolute(path));
        dirs
    }

    /// A path as GitLab means it. What the image has as links leads into the data.
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

    /// Where a directory is: where its variable says, or else below that of the data or of
    /// what is shared.
    pub fn path(&self, gitlab: &Service, variable: &'static str, default: &str) -> Said {
        if let Some(path) = gitlab.variable(variable) {
            // This one names the directory above.
            let inner = if variable == "GITLAB_UPLOADS_STORAGE_PATH" { "uploads" } else { "" };
            let path = Path::new(path).join(inner);
            let dir = self.absolute(&path.to_string_lossy());
            return Said { dir: dir.components().collect(), variable: Some(variable) };
        }
        let is_set = |name: &'static str| gitlab.variable(name).map(|_| name);
        let of_data = is_set("GITLAB_DATA_DIR");
        match default.strip_prefix("shared/") {
            Some(inner) => Said {
                dir: self.shared.join(inner),
                variable: is_set("GITLAB_SHARED_DIR").or(of_data),
            },
            None => Said { dir: self.data.join(default), variable: of_data },
        }
    }

    /// The directory of uploads that a link of the image leads to, whatever the variables say,
    /// if it is not `dir`.
    pub fn uploads_of_image(&self, gitlab: &Service, dir: &Path) -> Option<Result<PathBuf, Gap>> {
        let of_image = Path::new(DATA).join("uploads");
        let is_used = gitlab.variable("GITLAB_UPLOADS_STORAGE_PATH").is_none() && dir != of_image;
        is_used.then(|| place(gitlab, &of_image))
    }
}

/// A path of the container on this machine.
pub fn place(gitlab: &Service, path: &Path) -> Result<PathBuf, Gap> {
    let at = path.display();
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
            let reason = format!("{at} of the container, which no volume holds");
            Err(Gap { reason, is_elsewhere: false, is_memory: false })
        }
    }
}
