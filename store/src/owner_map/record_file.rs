//! Files of rules that undo changes of owners and modes.

use super::record::{OwnerAndMode, Recorder};
use crate::entry::EntryKind;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

/// A new file of rules that undo changes. [`Recorder`] describes its methods.
pub struct RecordFile {
    file: PathBuf,
    recorder: Recorder<BufWriter<File>>,
}

impl RecordFile {
    /// Creates the file for paths below `top`. A file that is there may be the only record of
    /// other changes, so it is never replaced.
    pub fn create(file: &Path, top: &Path) -> Result<RecordFile> {
        let created = File::create_new(file).map(BufWriter::new);
        let recorder = created.and_then(|out| Recorder::new(top, out));
        let recorder = recorder.map_err(|error| failed(file, error))?;
        Ok(RecordFile { file: file.to_owned(), recorder })
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
        let RecordFile { file, recorder } = self;
        let finish = || {
            let changed = recorder.finish()?;
            File::open(&file)?.sync_all()?;
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
