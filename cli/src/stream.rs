//! Backs up standard input, or the output of a command.

use crate::exit::{Failure, other, with_hint};
use crate::standard::StandardInput;
use crate::ui::Ui;
use forge::process::{Patience, Running};
use std::cell::Cell;
use std::ffi::OsString;
use std::io::{self, Read};
use store::Error;
use store::backup::{Backup, BackupOptions, Likeness, Report};
use store::entry::Displayed;
use store::store::Store;

/// A stream to back up.
pub struct Stream<'a> {
    /// Path in the tree.
    pub path: &'a [u8],
    /// Command that prints the stream; empty for standard input.
    pub command: &'a [OsString],
    /// True if an empty stream is allowed.
    pub may_be_empty: bool,
}

impl Stream<'_> {
    /// Backs up the stream. When this returns, the command has ended in every case.
    pub fn backup(
        &self,
        store: &Store,
        options: &BackupOptions,
        ui: &Ui,
    ) -> Result<Report, Failure> {
        let progress = store.observer().progress();
        let done = match self.command.first() {
            None => {
                let mut input = StandardInput { progress };
                self.take(store, &mut input, &mut || Ok(()), options)
            }
            Some(program) => {
                // A second signal must not end the program before the command ends.
                ui.hold();
                let mut running = Running::typed(self.command)?;
                let mut output = running.stdout(progress, Patience::Silence);
                let mut running = Some(running);
                let mut end = || running.take().map_or(Ok(()), |running| running.end(progress));
                let mut end = || end().map_err(|error| failed(program, error));
                self.take(store, &mut output, &mut end, options)
            }
        };
        // The reader reports a stop request only as a failed read.
        done.map_err(|failure| progress.check().err().map_or(failure, Failure::Store))
    }

    /// Reads the input to its end, which `end` must confirm.
    fn take(
        &self,
        store: &Store,
        input: &mut dyn Read,
        end: &mut dyn FnMut() -> Result<(), Failure>,
        options: &BackupOptions,
    ) -> Result<Report, Failure> {
        let bytes = Cell::new(0);
        let mut confirm = || {
            end()?;
            if bytes.get() > 0 { Ok(()) } else { self.empty() }
        };
        let mut input = Counted { input, bytes: &bytes };
        let likeness = Likeness::Paths(vec![self.path.to_vec()]);
        let mut backup = Backup::begin(store, options, likeness)?;
        backup.stream(self.path, &mut input).map_err(|error| match error {
            Error::Source { source, .. } => Error::Source { path: "standard input".into(), source },
            other => other,
        })?;
        // No snapshot of half a stream.
        confirm()?;
        Ok(backup.finish(None)?)
    }

    /// Fails for an empty stream, unless it is allowed. A failed command often leaves an empty
    /// dump.
    fn empty(&self) -> Result<(), Failure> {
        if self.may_be_empty {
            return Ok(());
        }
        let what = match self.command.first() {
            None => "standard input is empty".to_owned(),
            Some(program) => format!("{} printed nothing", program.displayed()),
        };
        let hint =
            "no snapshot was created; check the command, or give --allow-empty for an empty file";
        Err(with_hint(what, hint))
    }
}

fn failed(program: &OsString, error: forge::Error) -> Failure {
    match error {
        forge::Error::Failed { status, .. } => with_hint(
            format!("{} failed ({status})", program.displayed()),
            "no snapshot was created; see the standard error of the command",
        ),
        error if error.is_interrupted() => error.into(),
        error => other(error.to_string()),
    }
}

/// Counts bytes as they are read.
struct Counted<'a> {
    input: &'a mut dyn Read,
    bytes: &'a Cell<u64>,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(into)?;
        self.bytes.set(self.bytes.get() + len as u64);
        Ok(len)
    }
}
