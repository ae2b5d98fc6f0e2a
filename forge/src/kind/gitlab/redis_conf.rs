//! Configuration of a Redis server: its lines, with those of the files that it includes.

use crate::error::Error;
use crate::file;
use crate::links::lexically;
use std::path::{Path, PathBuf};

/// Maximum number of files to read, which bounds `include` lines in a circle.
const FILES_MAX: usize = 50;

/// A line of the configuration.
#[derive(Debug)]
pub struct Line {
    /// First word, in small letters.
    pub key: String,
    /// Other words.
    pub values: Vec<String>,
    /// File that contains the line.
    pub file: PathBuf,
}

/// Reads `redis.conf` and its includes. A later line overrides an earlier one. `at` maps a path of
/// the server to this machine. `failed` gets the error of an unreadable file.
pub fn read(
    path: &Path,
    at: &dyn Fn(&Path) -> Option<PathBuf>,
    failed: &mut dyn FnMut(&Error),
) -> Vec<Line> {
    let mut reading = Reading { at, failed, lines: Vec::new(), files: Vec::new() };
    reading.read(path);
    reading.lines
}

struct Reading<'a> {
    at: &'a dyn Fn(&Path) -> Option<PathBuf>,
    failed: &'a mut dyn FnMut(&Error),
    lines: Vec<Line>,
    /// Files already read.
    files: Vec<PathBuf>,
}

impl Reading<'_> {
    fn read(&mut self, path: &Path) {
        let path = &lexically(path);
        if self.files.len() >= FILES_MAX || self.files.iter().any(|read| read == path) {
            return;
        }
        self.files.push(path.to_owned());
        let text = match file::text(path) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => return (self.failed)(&error),
        };
        for words in text.lines().filter_map(|line| words_of(line.trim())) {
            let mut words = words.into_iter();
            let Some(key) = words.next() else { continue };
            let (key, values) = (key.to_ascii_lowercase(), words.collect::<Vec<_>>());
            match (key.as_str(), &values[..]) {
                ("include" | "aclfile", [named]) => {
                    // Redis works in the directory of its data, which contains its configuration.
                    let named = Path::new(named);
                    let place = if named.is_absolute() {
                        (self.at)(named)
                    } else {
                        Some(path.with_file_name("").join(named))
                    };
                    for path in place.iter().flat_map(|place| file::matching(place)) {
                        self.read(&path);
                    }
                }
                _ => self.lines.push(Line { key, values, file: path.to_owned() }),
            }
        }
    }
}

/// Splits a line of `redis.conf` into words, as Redis does. Words may be quoted. Returns `None` for
/// a comment, and for a line that Redis refuses.
fn words_of(line: &str) -> Option<Vec<String>> {
    let mut rest = line.as_bytes();
    let mut words = Vec::new();
    while !line.starts_with('#') {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        rest = word_of(rest, &mut word)?;
        words.push(String::from_utf8(word).ok()?);
    }
    None
}

/// Moves the first word of a text into `word`. Returns the rest of the text.
fn word_of<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let mut quote = None;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match (quote, first) {
            (Some(open), _) if first == open => {
                // The end of a quote is the end of the word.
                return rest.first().is_none_or(u8::is_ascii_whitespace).then_some(rest);
            }
            (Some(b'"'), b'\\') => {
                let hex = rest.strip_prefix(b"x").and_then(|rest| rest.get(..2)).and_then(of_hex);
                let (&escaped, after) = rest.split_first()?;
                word.push(hex.unwrap_or(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => other,
                }));
                rest = if hex.is_some() { &after[2..] } else { after };
            }
            (Some(b'\''), b'\\') if rest.starts_with(b"'") => {
                word.push(b'\'');
                rest = &rest[1..];
            }
            (None, b'"' | b'\'') => quote = Some(first),
            (None, _) if first.is_ascii_whitespace() => return Some(rest),
            _ => word.push(first),
        }
    }
    quote.is_none().then_some(rest)
}

/// Reads two hexadecimal digits.
pub fn of_hex(digits: &[u8]) -> Option<u8> {
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    u8::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| is_hex)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_as_redis_parses_them() {
        for (line, words) in [
            ("requirepass pass", Some(vec!["requirepass", "pass"])),
            (r#"  requirepass "a \"b\\\x20\x23" "#, Some(vec!["requirepass", "a \"b\\ #"])),
            ("requirepass 'it\\'s'", Some(vec!["requirepass", "it's"])),
            ("requirepass '' \"\"", Some(vec!["requirepass", "", ""])),
            ("requirepass \"é\\xzz\"", Some(vec!["requirepass", "éxzz"])),
            ("requirepass \"open", None),
            ("requirepass \"a\"b", None),
            ("requirepass \"\\", None),
            ("# requirepass foobared", None),
            ("", Some(Vec::new())),
        ] {
            let words = words.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(words_of(line), words, "{line}");
        }
    }
}
