//! What ends a backup, in whichever thread it came about.

use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The first error of any thread; the others see that there is one and end.
#[derive(Default)]
pub struct Failure {
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Failure {
    /// The value, or nothing where there is an error, which is kept if it is the first.
    pub fn note<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let mut first = self.error.lock();
                // Whoever was only stopped by another's error does not know the reason.
                if matches!(*first, None | Some(Error::Interrupted)) {
                    *first = Some(error);
                }
                drop(first);
                self.failed.store(true, Relaxed);
                None
            }
        }
    }

    /// Whether it is time to end.
    pub fn is_noted(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// What it was, when all threads have ended.
    pub fn into_error(self) -> Option<Error> {
        self.error.into_inner()
    }
}
