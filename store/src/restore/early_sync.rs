//! Brings restored files to stable storage while others are still being restored.
//!
//! The sync at the end then has little left to do. Its errors count; those here do not.

use crate::source;
use crate::store::Store;
use crate::threads;
use parking_lot::{Condvar, Mutex};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

/// Interval between looks at the progress.
const TICK: Duration = Duration::from_millis(100);
/// Bytes restored since the last sync that justify another one.
const SYNC_BYTES: u64 = 64 << 20;

/// A thread that syncs until it is dropped.
pub(super) struct EarlySync {
    end: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl EarlySync {
    /// Starts the thread, if the target can be opened again. An error is reported once to each open
    /// file, so the file of the sync at the end must not be used here.
    pub(super) fn start(target: &Path, store: &Store) -> EarlySync {
        let end = Arc::<(Mutex<bool>, Condvar)>::default();
        let (ended, observer) = (Arc::clone(&end), Arc::clone(&store.observer));
        let thread = source::open_dir(target).ok().and_then(|dir| {
            let work = move || {
                let done = || observer.progress().bytes_done.load(Relaxed);
                let mut synced = done();
                let mut is_over = ended.0.lock();
                while !*is_over {
                    ended.1.wait_for(&mut is_over, TICK);
                    let now = done();
                    if !*is_over && now >= synced + SYNC_BYTES {
                        drop(is_over);
                        let _ = rustix::fs::syncfs(&dir);
                        synced = now;
                        is_over = ended.0.lock();
                    }
                }
            };
            threads::spawn(work).ok()
        });
        EarlySync { end, thread }
    }
}

impl Drop for EarlySync {
    fn drop(&mut self) {
        *self.end.0.lock() = true;
        self.end.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
