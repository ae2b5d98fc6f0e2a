//! Files of rules that undo changes of owners and modes.

use super::record::{OwnerAndMode, Recorder};
use crate::entry::EntryKind;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// A new file of rules that undo changes. [`Recorder`] describes its methods.
pub struct RecordFile {
    file: PathBuf,
    recorder: Recorder<BufWriter<File>>,
    /// Present name of a file that gets its own name once it is complete.
    unnamed: Option<TempPath>,
}

impl RecordFile {
    /// Creates the file for paths below `top`. A file that is there may be the only record of
    /// other changes, so it is never replaced.
    pub fn create(file: &Path, top: &Path) -> Result<RecordFile> {
        let created = File::create_new(file).map(BufWriter::new);
        let recorder = created.and_then(|out| Recorder::new(top, out));
        let recorder = recorder.map_err(|error| failed(file, error))?;
        Ok(RecordFile { file: file.to_owned(), recorder, unnamed: None })
    }

    /// Like [`RecordFile::create`], but the file gets its name in [`RecordFile::finish`]: rules that
    /// are written before all changes are never seen in part.
    pub fn create_whole(file: &Path, top: &Path) -> Result<RecordFile> {
        let create = || {
            let new = tempfile::Builder::new().prefix(".forgekeep-").tempfile_in(dir_of(file))?;
            let (open, path) = new.into_parts();
            Ok((Recorder::new(top, BufWriter::new(open))?, path))
        };
        let (recorder, unnamed) = create().map_err(|error| failed(file, error))?;
        Ok(RecordFile { file: file.to_owned(), recorder, unnamed: Some(unnamed) })
    }

    /// Adds a path.
    pub fn add(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        before: OwnerAndMode,
        after: OwnerAndMode,
        acls: &[String],
    ) -> Result<()> {
        let added = self.recorder.add(path, kind, before, after, acls);
        added.map_err(|error| failed(&self.file, error))
    }

    /// Adds a path whose content is not added.
    pub fn add_alone(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        before: OwnerAndMode,
        after: OwnerAndMode,
        acls: &[String],
    ) -> Result<()> {
        let added = self.recorder.add_alone(path, kind, before, after, acls);
        added.map_err(|error| failed(&self.file, error))
    }

    /// Completes the file, which is then on disk. Returns the number of changed paths.
    pub fn finish(self) -> Result<u64> {
        let RecordFile { file, recorder, unnamed } = self;
        let finish = || {
            let changed = recorder.finish()?;
            let written = unnamed.as_deref().unwrap_or(&file);
            File::open(written)?.sync_all()?;
            if let Some(unnamed) = unnamed {
                unnamed.persist_noclobber(&file)?;
            }
            File::open(dir_of(&file))?.sync_all()?;
            Ok(changed)
        };
        finish().map_err(|error| failed(&file, error))
    }
}

/// Returns the directory of a file.
pub(crate) fn dir_of(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn failed(file: &Path, source: io::Error) -> Error {
    Error::OwnerRecord { file: file.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_has_no_name_before_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("undo.map");
        let count = || std::fs::read_dir(dir.path()).expect("lists").count();
        let begin = || RecordFile::create_whole(&file, Path::new("/")).expect("creates");
        let mut record = begin();
        let owned = |uid| OwnerAndMode { uid, gid: 0, mode: 0o644 };
        record.add(b"a", EntryKind::File, owned(1), owned(2), &[]).expect("adds");
        assert!(!file.exists() && count() == 1);
        drop(record);
        assert_eq!(count(), 0);
        let mut record = begin();
        record.add(b"a", EntryKind::File, owned(1), owned(2), &[]).expect("adds");
        assert_eq!(record.finish().expect("completes"), 1);
        assert!(std::fs::read_to_string(&file).expect("reads").contains("[path"));
        // Another file of that name stays.
        let error = begin().finish().expect_err("is refused").to_string();
        assert!(error.contains("undo.map"), "{error}");
        assert_eq!(count(), 1);
    }
}
