//! A backend that fails on demand, for tests.

use super::{Backend, Listed, Pending};
use crate::error::Unsynced;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// An operation about to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Backend::list`] and [`Backend::names`]
    List,
    /// [`Backend::read`] and [`Backend::len`]
    Read,
    /// [`Backend::create`]
    Create,
    /// [`Pending::write`]
    Write,
    /// [`Pending::sync`] and [`Backend::settle`]
    Sync,
    /// [`Pending::publish`], before the file has its name
    Publish,
    /// [`Pending::publish`], after the file has its name: the directory's sync failed
    Published,
    /// [`Backend::remove`]
    Remove,
}

/// Decides whether an operation on a file fails.
pub type Fault = Arc<dyn Fn(Operation, &str) -> io::Result<()> + Send + Sync>;

/// Wraps a backend and calls the fault before every operation.
pub struct Faulty<B> {
    inner: B,
    fault: Fault,
    /// Bytes of every file that cannot be read.
    bad_bytes: Range<u64>,
}

impl<B: Backend> Faulty<B> {
    /// Wraps `inner`; operations fail as `fault` decides.
    pub fn new(inner: B, fault: Fault) -> Faulty<B> {
        Faulty { inner, fault, bad_bytes: 0..0 }
    }

    /// `inner`, on a disk with a bad sector: these bytes of a file cannot be read.
    pub fn with_bad_bytes(inner: B, bad_bytes: Range<u64>) -> Faulty<B> {
        Faulty { inner, fault: Arc::new(|_, _| Ok(())), bad_bytes }
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn place(&self) -> String {
        self.inner.place()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Listed>> {
        (self.fault)(Operation::List, dir)?;
        self.inner.list(dir)
    }

    fn names(&self, dir: &str) -> io::Result<Vec<String>> {
        (self.fault)(Operation::List, dir)?;
        self.inner.names(dir)
    }

    fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<()> {
        (self.fault)(Operation::Read, name)?;
        if offset < self.bad_bytes.end && offset + out.len() as u64 > self.bad_bytes.start {
            return Err(io::Error::other("a bad sector"));
        }
        self.inner.read(name, offset, out)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        (self.fault)(Operation::Read, name)?;
        self.inner.len(name)
    }

    fn create(&self) -> io::Result<Box<dyn Pending>> {
        (self.fault)(Operation::Create, "")?;
        let inner = self.inner.create()?;
        Ok(Box::new(FaultyPending { inner, fault: Arc::clone(&self.fault) }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        (self.fault)(Operation::Remove, name)?;
        self.inner.remove(name)
    }

    fn settle(&self, dir: &str) -> io::Result<()> {
        (self.fault)(Operation::Sync, dir)?;
        self.inner.settle(dir)
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        self.inner.free_bytes()
    }
}

struct FaultyPending {
    inner: Box<dyn Pending>,
    fault: Fault,
}

impl Pending for FaultyPending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        (self.fault)(Operation::Write, "")?;
        self.inner.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        (self.fault)(Operation::Sync, "")?;
        self.inner.sync()
    }

    fn publish(self: Box<Self>, name: &str) -> io::Result<()> {
        (self.fault)(Operation::Publish, name)?;
        self.inner.publish(name)?;
        (self.fault)(Operation::Published, name).map_err(Unsynced::wrap)
    }
}
