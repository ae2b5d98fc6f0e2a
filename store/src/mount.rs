//! The file system on which a path lies.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A mounted file system, as far as it stays the same from boot to boot.
///
/// Numbers of devices change with every boot, and those of volume snapshots every night. File systems
/// derive their ids from such numbers. Only the place of the mount and the type of the file system
/// tell that a disk is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountState {
    /// Topmost directory of the file system around the path. It is `/` on the root file system.
    pub top: PathBuf,
    /// Type of the file system, as a number of the kernel.
    pub kind: u64,
}

impl MountState {
    /// Looks at the file system of a path. Returns `None` if it cannot be read.
    pub fn of(path: &Path) -> Option<MountState> {
        let is_dir = path.symlink_metadata().ok()?.is_dir();
        let dir = if is_dir { path } else { path.parent()? };
        let device = dir.symlink_metadata().ok()?.dev();
        let is_same = |above: &&Path| above.symlink_metadata().is_ok_and(|of| of.dev() == device);
        let top = dir.ancestors().take_while(is_same).last()?.to_owned();
        let kind = rustix::fs::statfs(dir).ok()?.f_type as u64 & 0xFFFF_FFFF;
        Some(MountState { top, kind })
    }

    /// Looks at the file system of a path, or of the nearest directory above it that exists.
    pub fn nearest(path: &Path) -> Option<MountState> {
        path.ancestors().find_map(MountState::of)
    }

    /// Returns true if the file system is not the root file system.
    pub fn is_mounted(&self) -> bool {
        self.top != Path::new("/")
    }
}
