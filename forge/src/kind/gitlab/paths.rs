//! Paths of GitLab's package: where this machine has them, or why it has none.

use crate::kind::Site;
use crate::kind::docker_gitlab::compose::{Place, Service};
use crate::links::{self, lexically};
use crate::process::{Command, QUESTION};
use crate::service::into_container;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// Data directory of the package.
pub const DATA: &str = "/var/opt/gitlab";

/// Configuration directory of the package.
pub const CONFIG: &str = "/etc/gitlab";

/// An installed package.
pub struct Package<'a> {
    /// The instance.
    pub site: &'a Site<'a>,
    /// Container of the package, if it is in one.
    pub container: Option<Container<'a>>,
}

/// A container of the official image.
pub struct Container<'a> {
    /// Name of the container.
    pub name: &'a str,
    /// Volumes and environment of the container.
    pub service: &'a Service,
    /// Links in its volumes that lead to data, on this machine.
    pub links: RefCell<BTreeSet<PathBuf>>,
}

/// Reason why something of the package has no path on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// The container has it in a place without a path.
    #[error("{} of the container: {reason}", path.displayed())]
    Nowhere {
        /// Path in the container.
        path: PathBuf,
        /// Description of the place.
        reason: String,
    },
    /// The container has it in memory.
    #[error("{} of the container is in memory", .0.displayed())]
    InMemory(PathBuf),
    /// The container has it among its own files.
    #[error("{} of the container is not in a volume and is lost with the container", .0.displayed())]
    NotInVolume(PathBuf),
    /// A storage of repositories that another machine has.
    #[error(
        "storage {name}, which has no path on this machine{whose}; back it up on its own machine, \
         or set the path where it is mounted"
    )]
    OtherMachine {
        /// Name of the storage.
        name: String,
        /// Address of its Gitaly, in words.
        whose: String,
    },
}

impl Package<'_> {
    /// Returns a path of the package on this machine, or the reason why this machine has none.
    pub fn place(&self, path: &Path) -> Result<PathBuf, NotHere> {
        let Some(Container { service, links, .. }) = &self.container else {
            return Ok(self.below_root(path));
        };
        let (followed, found) = service.follow(path);
        if let Some(Place::Here(path)) = service.place(&followed).filter(|_| !found.is_empty()) {
            links.borrow_mut().extend(found);
            return Ok(path);
        }
        match service.place(path) {
            Some(Place::Here(path)) => Ok(path),
            Some(Place::Nowhere(reason)) => Err(NotHere::Nowhere { path: path.to_owned(), reason }),
            Some(Place::Memory) => Err(NotHere::InMemory(path.to_owned())),
            None => Err(NotHere::NotInVolume(path.to_owned())),
        }
    }

    /// Like [`Package::place`], but follows a link among the container's own files as well. Only the
    /// running container shows these.
    pub fn place_of_data(&self, path: &Path) -> Result<PathBuf, NotHere> {
        let real = self.link_in_container(path);
        self.place(real.as_deref().unwrap_or(path))
    }

    /// Returns the path to which a link among the container's own files leads; `None` if there is no
    /// link, or if the container does not answer.
    pub fn link_in_container(&self, path: &Path) -> Option<PathBuf> {
        let container = self.container.as_ref().filter(|_| !self.site.is_offline)?;
        if !matches!(self.place(path), Err(NotHere::NotInVolume(_))) {
            return None;
        }
        let ask = |options: &[&str]| {
            let program = into_container(self.site.settings, container.name, &[]);
            let words = program.into_iter().chain(["readlink".into()]);
            let words = words.chain(options.iter().map(|option| (*option).to_owned()));
            let command = Command::new(words.chain([path.to_str()?.to_owned()]));
            let answer = command.within(QUESTION).output(self.site.progress).ok()?;
            let target = answer.strip_suffix(b"\n").filter(|target| !target.is_empty())?;
            let target = path.parent()?.join(OsStr::from_bytes(target));
            Some(lexically(&target)).filter(|target| target != path)
        };
        // In a volume, the rest of the way is known, and its links are copied.
        let next = ask(&[]).filter(|next| self.place(next).is_ok());
        next.or_else(|| ask(&["-f"]))
    }

    /// Returns a path of this machine. With a root of its own, an absolute link at the directory of
    /// all data leads below that root, which the system itself does not know.
    fn below_root(&self, path: &Path) -> PathBuf {
        let root = &self.site.settings.root;
        let dirs = [DATA, CONFIG].into_iter().filter(|_| root.as_os_str() != "/");
        let moved = dirs.filter(|dir| path.starts_with(dir)).find_map(|dir| {
            let real = links::follow(root, &self.site.at(dir)).ok()?;
            let rest = path.strip_prefix(dir).ok().filter(|_| !real.links.is_empty())?;
            Some(if rest.as_os_str().is_empty() { real.path } else { real.path.join(rest) })
        });
        moved.unwrap_or_else(|| self.site.at(path))
    }

    /// Like [`Package::place`], but returns a path at which nothing can exist if this machine has
    /// none.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let nowhere = || Path::new("/dev/null").join(path.strip_prefix("/").unwrap_or(path));
        self.place(path).unwrap_or_else(|_| nowhere())
    }

    /// Returns a path of the package as its own programs see it.
    pub fn inside(&self, path: &str) -> PathBuf {
        if self.container.is_some() { path.into() } else { self.site.at(path) }
    }
}
