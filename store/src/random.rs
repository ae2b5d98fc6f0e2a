//! Random bytes for names and ids.

use rustix::rand::{GetRandomFlags, getrandom};
use std::io;

/// Returns random bytes from the system. `N` is at most 256, which one call fills completely.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes)
}
