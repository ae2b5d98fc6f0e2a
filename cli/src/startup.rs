//! State of the process before `main`.

use rustix::io::{Errno, fcntl_getfd};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// True if standard output was closed, as by `>&-`. Before `main`, the runtime of Rust opens
/// `/dev/null` in its place, and every line would be lost without an error.
static IS_STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    let found = fcntl_getfd(rustix::stdio::stdout());
    IS_STDOUT_CLOSED.store(matches!(found, Err(Errno::BADF)), Relaxed);
}

#[used]
#[expect(unsafe_code, reason = "only this section of a program runs before the runtime")]
// SAFETY: the section holds functions of this type, and `look` needs no runtime.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Fails if standard output was closed when the program started.
pub fn stdout_is_open() -> io::Result<()> {
    if IS_STDOUT_CLOSED.load(Relaxed) { Err(Errno::BADF.into()) } else { Ok(()) }
}
