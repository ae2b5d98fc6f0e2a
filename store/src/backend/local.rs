//! A directory of this machine.

use super::{Backend, Listed, Pending};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where files stand until they are published.
const UNPUBLISHED: &str = "tmp";

/// Segments kept open for reading.
const OPEN_FILES_MAX: usize = 16;

/// A store in a directory.
///
/// Files are written under `tmp/`, synced, renamed, and the directory of the
/// new name is synced. An unpublished file is locked by its writer, so what a
/// killed run left can be told from what another run is writing.
pub struct Local {
    root: PathBuf,
    /// Most recently used last.
    open: Arc<OpenFiles>,
}

type OpenFiles = Mutex<Vec<(String, Arc<File>)>>;

fn forget(open: &OpenFiles, name: &str) {
    open.lock().retain(|(known, _)| known != name);
}

impl Local {
    /// The directory `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Local {
        Local { root: root.into(), open: Arc::default() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directories of an empty store.
    pub fn make_directories<'a>(&self, names: impl Iterator<Item = &'a str>) -> io::Result<()> {
        for name in names.chain([UNPUBLISHED]) {
            fs::create_dir_all(self.root.join(name))?;
        }
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.is_dir() {
                File::open(path)?.sync_all()?;
            }
        }
        File::open(&self.root)?.sync_all()?;
        sync_above(&self.root)
    }

    /// Removes what killed runs left unpublished; returns how many files.
    ///
    /// Files of running writers are locked and stay.
    pub fn remove_unpublished(&self) -> io::Result<usize> {
        let dir = match fs::read_dir(self.root.join(UNPUBLISHED)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            dir => dir?,
        };
        let mut removed = 0;
        for entry in dir {
            let path = entry?.path();
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                match fs::remove_file(&path) {
                    // Published since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => done.map(|()| removed += 1)?,
                }
            }
        }
        Ok(removed)
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut open = self.open.lock();
        let file = match open.iter().position(|(known, _)| known == name) {
            Some(at) => open.remove(at).1,
            None => Arc::new(File::open(self.root.join(name))?),
        };
        if open.len() >= OPEN_FILES_MAX {
            open.remove(0);
        }
        open.push((name.to_owned(), Arc::clone(&file)));
        Ok(file)
    }
}

impl Backend for Local {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for entry in fs::read_dir(self.root.join(dir))? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Removed since it was listed: as if it had gone before.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            // Names that are no text are none of ours.
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                listed.push(Listed { name, len: metadata.len() });
            }
        }
        listed.sort();
        Ok(listed)
    }

    fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file(name)?.read_exact_at(out, offset)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.root.join(name))?.len())
    }

    fn create(&self) -> io::Result<Box<dyn Pending>> {
        let dir = self.root.join(UNPUBLISHED);
        let (path, file) = loop {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let path = dir.join(format!("{:016x}", u64::from_le_bytes(random)));
            let mut options = File::options();
            options.write(true).create_new(true);
            let file = with_parent(&path, || options.open(&path))?;
            match flock(&file, FlockOperation::LockExclusive) {
                // A file system without locks: nobody's files are ever cleaned up there.
                Ok(()) | Err(Errno::NOSYS | Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
            // Another run may have found it before it was locked, and removed it.
            if file.metadata()?.nlink() > 0 {
                break (path, file);
            }
        };
        Ok(Box::new(LocalPending {
            root: self.root.clone(),
            open: Arc::clone(&self.open),
            path: Some(path),
            file,
        }))
    }

    fn scratch(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.root.join(UNPUBLISHED))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        forget(&self.open, name);
        let path = self.root.join(name);
        fs::remove_file(&path)?;
        sync_parent(&path)
    }
}

struct LocalPending {
    root: PathBuf,
    open: Arc<OpenFiles>,
    /// Gone once the file was published.
    path: Option<PathBuf>,
    file: File,
}

impl Pending for LocalPending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn publish(mut self: Box<Self>, name: &str) -> io::Result<()> {
        let target = self.root.join(name);
        if let Some(path) = &self.path {
            with_parent(&target, || fs::rename(path, &target))?;
        }
        self.path = None;
        forget(&self.open, name);
        sync_parent(&target)
    }
}

impl Drop for LocalPending {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Best effort: what stays is removed by the next run that writes.
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes `path`, in a directory that may be missing: copies of a store made by programs
/// that know only files lack the empty ones. Directories above are not made, so a
/// store that is not mounted is not written beside its place.
fn with_parent<T>(path: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let parent = path.parent().unwrap_or(Path::new("."));
    match make() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        made => return made,
    }
    match fs::create_dir(parent) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => sync_parent(parent)?,
    }
    make()
}

/// Syncs the names of a new directory and of those above it, which may be as new. Nobody
/// makes a directory below one that he cannot open.
fn sync_above(path: &Path) -> io::Result<()> {
    for dir in fs::canonicalize(path)?.ancestors().skip(1) {
        match File::open(dir).map(|dir| dir.sync_all()) {
            Ok(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => return Err(error),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
