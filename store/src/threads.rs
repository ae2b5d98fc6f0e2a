//! Threads of an operation. A machine may refuse to start one: the user, the service or the
//! container has a limit of processes.

use crate::error::{Error, Result};
use parking_lot::{Condvar, Mutex};
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// Threads that an operation needs beside the shared ones: one each for progress, publishing, the
/// tree and reading files.
const OTHERS: usize = 4;

/// Starts the threads that all operations share, one per core. Starts fewer of them at a limit of
/// processes, and fails if not even one can run. Further calls do nothing.
pub fn start_shared() -> Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    if STARTED.get().is_some() {
        return Ok(());
    }
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let possible = possible(cores + OTHERS)?;
    let threads = possible.saturating_sub(OTHERS).clamp(1, cores);
    if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        // Without a cause, they run already.
        if let Some(cause) = std::error::Error::source(&error) {
            return Err(Error::Thread(std::io::Error::other(cause.to_string())));
        }
    }
    STARTED.get_or_init(|| ());
    Ok(())
}

/// Returns how many of `wanted` threads can run at once. Rayon tries to start its threads only
/// once, so their number must be known before.
fn possible(wanted: usize) -> Result<usize> {
    let (is_over, changed) = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        let mut started = 0;
        let mut refused = None;
        while started < wanted && refused.is_none() {
            let wait = || {
                let mut is_over = is_over.lock();
                while !*is_over {
                    changed.wait(&mut is_over);
                }
            };
            match spawn_scoped(scope, wait) {
                Ok(_) => started += 1,
                Err(error) => refused = Some(error),
            }
        }
        *is_over.lock() = true;
        changed.notify_all();
        match refused {
            Some(error) if started == 0 => Err(error),
            _ => Ok(started),
        }
    })
}

/// Starts a thread.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Builder::new().spawn(of_actor(work)).map_err(Error::Thread)
}

/// Starts a thread that ends with its scope.
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, of_actor(work)).map_err(Error::Thread)
}

/// Starts up to `wanted` threads that share their work. Fails if not even one starts.
pub(crate) fn spawn_workers<'scope, W: FnOnce() + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    wanted: usize,
    worker: impl Fn() -> W,
) -> Result<()> {
    // One thread, so that a schedule can be repeated.
    #[cfg(test)]
    let wanted = if crate::protocol::actor().is_some() { 1 } else { wanted };
    for started in 0..wanted {
        match spawn_scoped(scope, worker()) {
            Err(error) if started == 0 => return Err(error),
            Err(_) => break,
            Ok(_) => {}
        }
    }
    Ok(())
}

#[cfg(not(test))]
fn of_actor<W>(work: W) -> W {
    work
}

/// Lets the tests that schedule this thread schedule the new one, too.
#[cfg(test)]
fn of_actor<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let actor = crate::protocol::actor();
    move || {
        crate::protocol::set_actor(actor);
        work()
    }
}
