//! Random bytes for names and ids.

use rustix::rand::{GetRandomFlags, getrandom};
use std::io;

/// Returns random bytes from the system. `N` is at most 256, which one call fills completely.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    #[cfg(test)]
    if let Some(actor) = crate::protocol::actor() {
        actor.fill(&mut bytes);
        return Ok(bytes);
    }
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes)
}

/// Formats the bytes of a UUID.
pub fn uuid_text(bytes: &[u8; 16]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        let dash = if [4, 6, 8, 10].contains(&at) { "-" } else { "" };
        text += &format!("{dash}{byte:02x}");
    }
    text
}
