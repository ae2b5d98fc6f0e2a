//! Drills: scratch space for a restore, and examination of the restored copy.
//!
//! Programs that read restored data run as an unprivileged user, because the store may be hostile.

pub mod contents;
pub mod databases;
pub mod git;

use crate::error::{Error, Result};
use crate::private_dir::{OF_DRILL, PrivateDir};
use crate::process::Command;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use store::observe::Progress;

/// User without rights that every system has.
const NOBODY: &str = "nobody";

/// Private directory that is removed with its content when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    /// Directory of the restored data; it belongs to `user`.
    work: PathBuf,
    /// User that examines the data; our own if not given.
    user: Option<nix::unistd::User>,
    _dir: PrivateDir,
}

impl Scratch {
    /// Makes a directory below `parent`. Removes those that killed drills left there.
    pub fn make(parent: &Path, progress: &Progress) -> Result<Scratch> {
        let failed = |source| Error::Write { path: parent.to_owned(), source };
        let parent = parent.canonicalize().map_err(failed)?;
        let user = nix::unistd::geteuid().is_root().then(|| nix::unistd::User::from_name(NOBODY));
        let user = user.and_then(|found| found.ok().flatten());
        let dir = PrivateDir::make(&parent, OF_DRILL).map_err(failed)?;
        let work = dir.path().join("work");
        let make = || {
            std::fs::DirBuilder::new().mode(0o700).create(&work)?;
            // The user may pass the outer directory, and not change it.
            let mode = if user.is_some() { 0o711 } else { 0o700 };
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode))
        };
        make().map_err(failed)?;
        let scratch = Scratch { work, user, _dir: dir };
        scratch.give(&scratch.work).map_err(failed)?;
        if let Some(user) = scratch.user() {
            let words = ["test", "-w", scratch.text()?];
            match Command::new(words).by(Some(user)).output(progress) {
                Err(error) if error.is_interrupted() => return Err(error),
                Err(_) => return Err(Error::ScratchDenied { dir: parent, user: user.into() }),
                Ok(_) => {}
            }
        }
        Ok(scratch)
    }

    /// Returns the directory for restored data.
    pub fn path(&self) -> &Path {
        &self.work
    }

    /// Returns the place of an absolute path of the snapshot.
    pub fn place(&self, path: &str) -> PathBuf {
        self.work.join(path.trim_start_matches('/'))
    }

    /// Returns the name of the user that examines the data; `None` for our own.
    pub fn user(&self) -> Option<&str> {
        self.user.as_ref().map(|user| &user.name[..])
    }

    /// Returns the owner of restored data as `USER:GROUP`; `None` for our own.
    pub fn owner(&self) -> Option<String> {
        self.user.as_ref().map(|user| format!("{}:{}", user.uid, user.gid))
    }

    /// Returns the number of free bytes.
    pub fn free_bytes(&self) -> Result<u64> {
        let found = rustix::fs::statvfs(&self.work);
        let failed = |error: rustix::io::Errno| Error::Read {
            path: self.work.clone(),
            source: error.into(),
        };
        found.map(|found| found.f_bavail.saturating_mul(found.f_frsize)).map_err(failed)
    }

    /// Gives a path in it to the user.
    fn give(&self, path: &Path) -> io::Result<()> {
        let Some(user) = &self.user else { return Ok(()) };
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
    }

    /// Returns the directory as an argument of a program.
    fn text(&self) -> Result<&str> {
        as_argument(&self.work)
    }
}

/// Returns a path as an argument of a program.
fn as_argument(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::Malformed {
        path: path.to_owned(),
        reason: "this path is not UTF-8".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn scratch_space_is_removed_even_after_a_kill() {
        let parent = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).expect("its mode");
        let count = || std::fs::read_dir(parent.path()).expect("lists").count();
        let make = || Scratch::make(parent.path(), &Progress::default()).expect("scratch");
        // A killed drill holds no lock.
        let stale = parent.path().join(format!("{OF_DRILL}stale"));
        std::fs::create_dir_all(stale.join("work/a")).expect("directories");
        std::fs::create_dir(parent.path().join("other")).expect("a directory");
        let first = make();
        assert!(!stale.exists() && first.path().is_dir());
        let second = make();
        assert!(first.path().is_dir() && count() == 3);
        let mode = second.path().metadata().expect("is there").mode() & 0o777;
        assert_eq!(mode, 0o700);
        drop((first, second));
        assert_eq!(count(), 1);
    }

    #[test]
    fn drills_that_begin_at_once_do_not_disturb_each_other() {
        let parent = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).expect("its mode");
        let begin = || {
            for _ in 0..100 {
                let dir = PrivateDir::make(parent.path(), OF_DRILL).expect("makes");
                assert!(dir.path().is_dir());
            }
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(begin)));
        });
    }
}
