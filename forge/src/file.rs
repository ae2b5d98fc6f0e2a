//! Small files. Files of other programs are read up to a size limit; our own are replaced
//! atomically.

use crate::error::{Error, Result};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Largest configuration, in bytes.
const BYTES_MAX: u64 = 4 << 20;

/// Reads a UTF-8 file. Returns `None` if the file is missing.
pub fn text(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = bytes(path)? else { return Ok(None) };
    let odd = |_| Error::Malformed { path: path.to_owned(), reason: "it is not UTF-8".into() };
    String::from_utf8(bytes).map(Some).map_err(odd)
}

/// Reads a JSON file. Returns `None` if it is missing. A syntax error names line and column, but
/// quotes no text.
pub fn json(path: &Path) -> Result<Option<serde_json::Value>> {
    let Some(text) = text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let reason = if text.trim().is_empty() {
            "it is empty".into()
        } else {
            format!("invalid JSON at line {line}, column {column}")
        };
        Error::Malformed { path: path.to_owned(), reason }
    })
}

/// Reads a YAML file. Returns `None` if it does not exist.
pub fn yaml(path: &Path) -> Result<Option<serde_json::Value>> {
    let Some(text) = text(path)? else { return Ok(None) };
    // Lines around an error may contain passwords.
    let options = serde_saphyr::options! { with_snippet: false };
    let wrong = |error: serde_saphyr::Error| Error::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    serde_saphyr::from_str_with_options(&text, options).map(Some).map_err(wrong)
}

/// A text of YAML, unless it is none.
pub fn yaml_value(text: &str) -> Option<serde_json::Value> {
    serde_saphyr::from_str(text).ok()
}

/// Reads a file. Returns `None` if it is missing, and an error if it is larger than 4 MiB.
pub fn bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    let fail = |source| Error::Read { path: path.to_owned(), source };
    let malformed =
        |reason: &str| Error::Malformed { path: path.to_owned(), reason: reason.into() };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
        // Opening a pipe would block until a writer opens it.
        Ok(metadata) if !metadata.is_file() => return Err(malformed("it is not a file")),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(malformed("it is larger than 4 MiB, the limit for a configuration file"));
    }
    Ok(Some(bytes))
}

/// Returns the path itself or, if its last name is a pattern, the files that match it, by name.
pub fn matching(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    if !name.iter().any(|byte| b"*?[".contains(byte)) {
        return vec![path.to_owned()];
    }
    let Ok(globs) = store::glob::Globs::new([name]) else { return Vec::new() };
    let entries = path.parent().map(std::fs::read_dir).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .flatten()
        .filter(|entry| globs.matches(entry.file_name().as_bytes()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Replaces a file durably. A concurrent reader, or one after a crash, finds either the old file or
/// the new one.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    write(path, bytes, |file| file.set_permissions(Permissions::from_mode(mode)))
}

/// Replaces a file that another program owns; keeps its owner, group and mode.
pub fn change(path: &Path, bytes: &[u8]) -> Result<()> {
    let real = std::fs::canonicalize(path);
    let real = real.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    write(&real, bytes, |file| {
        let old = std::fs::metadata(&real)?;
        std::os::unix::fs::fchown(file, Some(old.uid()), Some(old.gid()))?;
        file.set_permissions(old.permissions())
    })
}

fn write(path: &Path, bytes: &[u8], dress: impl Fn(&File) -> io::Result<()>) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        // Hidden, so that a program that reads the directory (units, metrics) never sees half a
        // file.
        let mut fault = None;
        let new = tempfile::Builder::new().prefix(".forgekeep-").make_in(dir, |path| {
            let opened = File::options().write(true).create_new(true).mode(0o600).open(path);
            opened.inspect_err(|error| fault = error.raw_os_error())
        });
        // Errors of the library name the temporary file.
        let named =
            |error: io::Error| fault.map_or(error.kind().into(), io::Error::from_raw_os_error);
        let mut new = new.map_err(named)?;
        put(&mut new, bytes)?;
        // Sets the mode regardless of the umask.
        dress(new.as_file())?;
        new.as_file().sync_all()?;
        new.persist(path)?;
        sync_dir(dir)
    };
    write().map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Writes to the file itself, whose errors do not name it.
fn put(new: &mut NamedTempFile, bytes: &[u8]) -> io::Result<()> {
    new.as_file_mut().write_all(bytes)
}

/// Makes the names in a directory durable, where its file system supports that.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oversized_and_invalid_files_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        assert_eq!(text(&path).expect("nothing there"), None);
        std::fs::write(&path, "text").expect("writes");
        assert_eq!(text(&path).expect("reads").as_deref(), Some("text"));
        std::fs::write(&path, [0xff]).expect("writes");
        assert!(text(&path).expect_err("odd").to_string().contains("UTF-8"));
        std::fs::write(&path, vec![b' '; BYTES_MAX as usize + 1]).expect("writes");
        assert!(bytes(&path).expect_err("long").to_string().contains("4 MiB"));
        let error = bytes(dir.path()).expect_err("a directory");
        assert!(error.to_string().ends_with("it is not a file"), "{error}");
    }

    #[test]
    fn replacing_a_file_leaves_only_the_new_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        for content in ["one", "two"] {
            replace(&path, 0o640, content.as_bytes()).expect("replaces");
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), content);
        }
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1);
        let below = path.join("below");
        let error = replace(&below, 0o600, b"").expect_err("no directory").to_string();
        assert_eq!(
            error,
            format!("cannot write {}: Not a directory (os error 20)", below.display())
        );
        let error = replace(Path::new("/proc/file"), 0o600, b"").expect_err("no files");
        assert_eq!(
            error.to_string(),
            "cannot write /proc/file: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_write_to_a_full_disk_names_the_file_alone() {
        let full = |_: &Path| File::options().write(true).open("/dev/full");
        let mut new = tempfile::Builder::new().make(full).expect("opens");
        let error = put(&mut new, b"text").expect_err("full");
        assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{error}");
        // Dropping it would remove a file that does not exist.
        let _ = new.keep();
    }
}
