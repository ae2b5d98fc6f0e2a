//! The standard streams. They may be silent or full for hours, and a stop request ends the wait.

use crate::startup::stdout_is_open;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use store::observe::Progress;

/// Interval between checks for a stop request.
const TICK: Duration = Duration::from_millis(100);

/// Number of bytes that a ready pipe accepts without blocking.
const PIPE_BYTES: usize = 4096;

/// A stream that the program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandardStream {
    /// Results.
    Stdout,
    /// Warnings, errors and progress.
    Stderr,
}

impl StandardStream {
    fn fd(self) -> BorrowedFd<'static> {
        match self {
            StandardStream::Stdout => rustix::stdio::stdout(),
            StandardStream::Stderr => rustix::stdio::stderr(),
        }
    }

    /// Returns true if the stream takes bytes now.
    pub fn is_ready(self) -> bool {
        wait(self.fd(), PollFlags::OUT, Duration::ZERO).unwrap_or(true)
    }

    /// Writes a line, which no line of another thread divides. Fails if `is_over` returns true while
    /// the reader of the stream does not read.
    pub fn print(self, line: &[u8], is_over: &dyn Fn() -> bool) -> io::Result<()> {
        static LINES: [Mutex<()>; 2] = [const { Mutex::new(()) }; 2];
        if self == StandardStream::Stdout {
            stdout_is_open()?;
        }
        let _line = LINES[self as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = &[line, b"\n"].concat()[..];
        while !rest.is_empty() {
            rest = &rest[write_piece(self.fd(), rest, is_over)?..];
        }
        Ok(())
    }
}

/// Writes what a ready pipe takes. Fails if `is_over` returns true while nothing can be written.
fn write_piece(fd: BorrowedFd<'_>, bytes: &[u8], is_over: &dyn Fn() -> bool) -> io::Result<usize> {
    let piece = &bytes[..bytes.len().min(PIPE_BYTES)];
    loop {
        let patience = if is_over() { Duration::ZERO } else { TICK };
        if wait(fd, PollFlags::OUT, patience)? {
            match rustix::io::write(fd, piece) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                written => return Ok(written?),
            }
        } else if patience.is_zero() {
            return Err(io::Error::other(store::Error::Interrupted));
        }
    }
}

/// Standard input. A stop request ends a read.
pub struct StandardInput<'a> {
    /// Reports the request.
    pub progress: &'a Progress,
}

impl Read for StandardInput<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let stdin = rustix::stdio::stdin();
        loop {
            self.progress.check().map_err(io::Error::other)?;
            if wait(stdin, PollFlags::IN, TICK)? {
                match rustix::io::read(stdin, &mut *into) {
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    read => return Ok(read?),
                }
            }
        }
    }
}

/// Standard output for the content of a file. A stop request ends a write.
pub struct StandardOutput<'a> {
    /// Reports the request.
    pub progress: &'a Progress,
}

impl Write for StandardOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        stdout_is_open()?;
        self.progress.check().map_err(io::Error::other)?;
        write_piece(StandardStream::Stdout.fd(), bytes, &|| self.progress.check().is_err())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns true if `fd` can be read or written within this time.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, time: Duration) -> io::Result<bool> {
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&time)) {
        Ok(0) | Err(Errno::INTR) => Ok(false),
        Ok(_) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
