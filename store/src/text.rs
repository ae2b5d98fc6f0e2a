//! Printable forms of bytes that may be anything.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Returns true if a character controls a terminal, ends a line or reverses text direction. It
/// could make a name look like another one.
pub fn is_deceptive(c: char) -> bool {
    let is_bidi = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_bidi || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Formats a path for people and messages. Backslashes, deceptive characters and invalid bytes are
/// escaped; other valid UTF-8 is unchanged.
pub fn display_path(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for part in path.utf8_chunks() {
        for c in part.valid().chars() {
            if is_deceptive(c) || c == '\\' {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        part.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out
}

/// Formats paths of the system for people and messages, in the same way as [`display_path`].
pub trait Displayed {
    /// Returns the printable form.
    fn displayed(&self) -> String;
}

impl<T: AsRef<OsStr> + ?Sized> Displayed for T {
    fn displayed(&self) -> String {
        display_path(self.as_ref().as_bytes())
    }
}
