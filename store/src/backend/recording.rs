//! A backend that logs all writes, for tests.

use super::{Backend, Listed, Pending};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// One step of writing. Numbers identify files without a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// [`Backend::create`]
    Create(usize),
    /// [`Pending::write`]
    Write(usize, Vec<u8>),
    /// [`Pending::sync`] returned.
    Sync(usize),
    /// [`Pending::publish`] began: the file may have the name from here on.
    Publish(usize, String),
    /// [`Pending::publish`] returned: the file has its name permanently.
    Published(usize),
    /// The file was dropped without a name.
    Drop(usize),
    /// [`Backend::remove`] began.
    Remove(String),
    /// [`Backend::remove`] returned.
    Removed(String),
}

/// All steps in order. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Log {
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Log {
    fn note(&self, step: Step) {
        self.steps.lock().push(step);
    }

    /// Returns the steps so far.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().clone()
    }
}

/// Wraps a backend and logs every change.
pub struct Recording<B> {
    inner: B,
    log: Log,
    files: Mutex<usize>,
}

impl<B: Backend> Recording<B> {
    /// Wraps `inner` and logs its changes from now on.
    pub fn new(inner: B) -> Recording<B> {
        Recording { inner, log: Log::default(), files: Mutex::new(0) }
    }

    /// Returns the log, which continues to grow.
    pub fn log(&self) -> Log {
        self.log.clone()
    }
}

impl<B: Backend> Backend for Recording<B> {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Listed>> {
        self.inner.list(dir)
    }

    fn names(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.names(dir)
    }

    fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(name, offset, out)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.inner.len(name)
    }

    fn create(&self) -> io::Result<Box<dyn Pending>> {
        let inner = Some(self.inner.create()?);
        let file = {
            let mut files = self.files.lock();
            *files += 1;
            *files
        };
        self.log.note(Step::Create(file));
        Ok(Box::new(RecordingPending { inner, log: self.log.clone(), file }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.log.note(Step::Remove(name.to_owned()));
        self.inner.remove(name)?;
        self.log.note(Step::Removed(name.to_owned()));
        Ok(())
    }

    fn settle(&self, dir: &str) -> io::Result<()> {
        // Not a step: every file of this log was durable when its `Published` was logged.
        self.inner.settle(dir)
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        self.inner.free_bytes()
    }
}

struct RecordingPending {
    /// `None` once the file is published.
    inner: Option<Box<dyn Pending>>,
    log: Log,
    file: usize,
}

impl RecordingPending {
    fn inner(&mut self) -> &mut dyn Pending {
        &mut **self.inner.as_mut().expect("there until it is published")
    }
}

impl Pending for RecordingPending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.log.note(Step::Write(self.file, bytes.to_vec()));
        self.inner().write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.inner().sync()?;
        self.log.note(Step::Sync(self.file));
        Ok(())
    }

    fn publish(mut self: Box<Self>, name: &str) -> io::Result<()> {
        let inner = self.inner.take().expect("there until it is published");
        self.log.note(Step::Publish(self.file, name.to_owned()));
        inner.publish(name)?;
        self.log.note(Step::Published(self.file));
        Ok(())
    }
}

impl Drop for RecordingPending {
    fn drop(&mut self) {
        if self.inner.is_some() {
            self.log.note(Step::Drop(self.file));
        }
    }
}
