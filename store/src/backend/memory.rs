//! A store in memory, for tests and dry runs.

use super::{Backend, Listed, Pending};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

type Files = BTreeMap<String, Vec<u8>>;

/// Files in a map. Clones share their files.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    files: Arc<Mutex<Files>>,
}

impl Memory {
    /// Gives access to all files, to inspect or damage them.
    pub fn with_files<T>(&self, look: impl FnOnce(&mut Files) -> T) -> T {
        look(&mut self.files.lock())
    }

    /// Returns a copy that shares nothing.
    pub fn copy(&self) -> Memory {
        Memory { files: Arc::new(Mutex::new(self.with_files(|files| files.clone()))) }
    }
}

impl Backend for Memory {
    fn place(&self) -> String {
        "memory".into()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Listed>> {
        let prefix = format!("{dir}/");
        Ok(self.with_files(|files| {
            files
                .iter()
                .filter_map(|(name, bytes)| {
                    let name = name.strip_prefix(&prefix)?;
                    (!name.contains('/'))
                        .then(|| Listed { name: name.to_owned(), len: bytes.len() as u64 })
                })
                .collect()
        }))
    }

    fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with_files(|files| {
            let bytes = files.get(name).ok_or(io::ErrorKind::NotFound)?;
            let part = usize::try_from(offset).ok().and_then(|from| bytes.get(from..));
            let part = part.and_then(|part| part.get(..out.len()));
            out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.with_files(|files| files.get(name).map(|bytes| bytes.len() as u64))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&self) -> io::Result<Box<dyn Pending>> {
        Ok(Box::new(MemoryPending { target: self.clone(), bytes: Vec::new() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with_files(|files| files.remove(name))
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn settle(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

struct MemoryPending {
    target: Memory,
    bytes: Vec<u8>,
}

impl Pending for MemoryPending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn publish(self: Box<Self>, name: &str) -> io::Result<()> {
        let MemoryPending { target, bytes } = *self;
        target.with_files(|files| files.insert(name.to_owned(), bytes));
        Ok(())
    }
}
