//! The error that ends a backup, from whichever thread it comes.

use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// First error of any thread. The other threads check it and end.
#[derive(Default)]
pub struct Failure {
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Failure {
    /// Returns the value, or records the error if it is the first and returns `None`.
    pub fn note<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let mut first = self.error.lock();
                // A fault counts more than a stop request, and the cause more than its effect.
                if matches!(*first, None | Some(Error::Interrupted | Error::Abandoned)) {
                    *first = Some(error);
                }
                drop(first);
                self.failed.store(true, Relaxed);
                None
            }
        }
    }

    /// Returns true if an error was recorded.
    pub fn is_noted(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// Returns the error, after all threads have ended.
    pub fn into_error(self) -> Option<Error> {
        self.error.into_inner()
    }
}
