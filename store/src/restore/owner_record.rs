//! The file of `--write-owner-map`.

use crate::entry::EntryKind;
use crate::error::{Error, Result};
use crate::owner_map::{OwnerAndMode, Recorder};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

/// A record of changed owners that is being written.
pub(super) struct OwnerRecord {
    file: PathBuf,
    recorder: Recorder<BufWriter<File>>,
}

impl OwnerRecord {
    /// Creates the file for a restore into a target. A file that is there may be the only record of
    /// another restore, so it is never replaced.
    pub(super) fn begin(file: &Path, target: &Path) -> Result<OwnerRecord> {
        let begin = || {
            let top = target.canonicalize()?;
            let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
            if top != Path::new("/")
                && dir.unwrap_or(Path::new(".")).canonicalize()?.starts_with(&top)
            {
                return Err(io::Error::other("it would be inside the target of the restore"));
            }
            Recorder::new(&top, BufWriter::new(File::create_new(file)?))
        };
        let recorder = begin().map_err(|error| failed(file, error))?;
        Ok(OwnerRecord { file: file.to_owned(), recorder })
    }

    pub(super) fn add(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        before: OwnerAndMode,
        after: OwnerAndMode,
    ) -> Result<()> {
        let added = self.recorder.add(path, kind, before, after);
        added.map_err(|error| failed(&self.file, error))
    }

    pub(super) fn finish(self) -> Result<()> {
        let finished = self.recorder.finish();
        finished.map(drop).map_err(|error| failed(&self.file, error))
    }
}

fn failed(file: &Path, source: io::Error) -> Error {
    Error::OwnerRecord { file: file.to_owned(), source }
}
