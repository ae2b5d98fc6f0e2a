//! Private directories for restored data, which no killed process leaves behind for long.

use rustix::fs::{FlockOperation, flock};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// Start of the names of directories for drills.
pub const OF_DRILL: &str = "forgekeep-drill-";
/// Start of the names of directories for rebuilds.
pub const OF_REBUILD: &str = "forgekeep-rebuild-";
/// Maximum number of tries to make a directory that no other process removes.
const TRIES_MAX: u32 = 100;

/// Directory that only its owner may enter. It is removed with its content when it is dropped.
#[derive(Debug)]
pub struct PrivateDir {
    // In drop order: nobody removes a directory that is locked.
    dir: tempfile::TempDir,
    _lock: File,
}

impl PrivateDir {
    /// Makes a directory below `parent`, whose name starts with `prefix`. Removes those that killed
    /// processes left there.
    pub fn make(parent: &Path, prefix: &str) -> io::Result<PrivateDir> {
        let parent = parent.canonicalize()?;
        remove_stale(&parent);
        let (dir, lock) = make_locked(&parent, prefix)?;
        Ok(PrivateDir { dir, _lock: lock })
    }

    /// Returns its absolute path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a file in the directory that only this user can read, or ourselves if there is none. The
    /// user may then enter the directory.
    pub fn open_for(&self, user: Option<&str>, path: &Path) -> io::Result<File> {
        let user = user.map(nix::unistd::User::from_name);
        let user = user.and_then(|found| found.ok().flatten());
        std::fs::set_permissions(self.path(), Permissions::from_mode(0o711))?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        let owner = user.map(|user| (user.uid.as_raw(), user.gid.as_raw()));
        owner.map_or(Ok(()), |(uid, gid)| fchown(&file, Some(uid), Some(gid)))?;
        Ok(file)
    }
}

/// Makes a private directory and locks it. Another process may take it for a stale one before it is
/// locked.
fn make_locked(parent: &Path, prefix: &str) -> io::Result<(tempfile::TempDir, File)> {
    let mut tries = 0;
    loop {
        let private = Permissions::from_mode(0o700);
        let dir =
            tempfile::Builder::new().prefix(prefix).permissions(private).tempdir_in(parent)?;
        let locked = lock(dir.path()).and_then(|lock| {
            let (made, found) = (lock.metadata()?, dir.path().symlink_metadata()?);
            Ok(((made.dev(), made.ino()) == (found.dev(), found.ino())).then_some(lock))
        });
        tries += 1;
        match locked {
            Ok(Some(lock)) => return Ok((dir, lock)),
            Err(error) if tries == TRIES_MAX => return Err(error),
            _ if tries == TRIES_MAX => return Err(io::ErrorKind::NotFound.into()),
            _ => {}
        }
    }
}

/// Opens and locks a directory. The lock ends with the process.
fn lock(dir: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW;
    let open = File::options().read(true).custom_flags(flags.bits() as i32).open(dir)?;
    flock(&open, FlockOperation::NonBlockingLockExclusive)?;
    Ok(open)
}

/// Removes the directories that killed drills and rebuilds of this user left below `parent`. One that
/// cannot be removed costs only space.
pub fn remove_stale(parent: &Path) {
    for item in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = item.file_name();
        let name = name.to_string_lossy();
        let is_own = [OF_DRILL, OF_REBUILD].iter().any(|prefix| name.starts_with(prefix));
        let Some(lock) = is_own.then(|| lock(&item.path()).ok()).flatten() else { continue };
        let own = nix::unistd::geteuid().as_raw();
        if lock.metadata().is_ok_and(|found| found.uid() == own) {
            let _ = std::fs::remove_dir_all(item.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_that_killed_processes_left_are_removed() {
        let parent = tempfile::tempdir().expect("a directory");
        let names = || {
            let entries = std::fs::read_dir(parent.path()).expect("lists").flatten();
            entries.map(|entry| entry.file_name()).collect::<Vec<_>>()
        };
        for name in [format!("{OF_REBUILD}killed/in"), format!("{OF_DRILL}killed"), "own".into()] {
            std::fs::create_dir_all(parent.path().join(name)).expect("directories");
        }
        let dir = PrivateDir::make(parent.path(), OF_REBUILD).expect("makes");
        assert_eq!(names().len(), 2, "{:?}", names());
        let mode = dir.path().metadata().expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let other = PrivateDir::make(parent.path(), OF_DRILL).expect("makes");
        assert!(dir.path().is_dir() && other.path().is_dir());
        drop((dir, other));
        assert_eq!(names(), ["own"]);
    }
}
