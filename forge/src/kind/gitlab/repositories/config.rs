//! Syntax of a repository's `config`. git refuses every command in a repository whose `config` it
//! cannot parse.

/// Settings that decide how a repository is read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// True if references are in a reftable.
    pub is_reftable: bool,
    /// True if ids are SHA-256, otherwise SHA-1.
    pub is_sha256: bool,
}

impl Config {
    /// Returns the length of an id in hex.
    pub fn id_digits(&self) -> usize {
        if self.is_sha256 { 64 } else { 40 }
    }
}

/// Newest version of the format of repositories that git knows.
const VERSION_MAX: i64 = 1;

/// Settings of `core` without which git refuses to work if they are no booleans.
const BOOLEANS: [&str; 7] =
    ["bare", "filemode", "ignorecase", "logallrefupdates", "quotepath", "symlinks", "trustctime"];
/// The same for numbers.
const NUMBERS: [&str; 3] = ["bigfilethreshold", "compression", "loosecompression"];

/// Parses a `config`. Returns `None` if git would refuse it.
pub fn parse(text: &[u8]) -> Option<Config> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut left = Characters(text);
    let (mut config, mut section) = (Config::default(), String::new());
    // Only the newest version has extensions of the format.
    let (mut version, mut has_extension) = (0, false);
    while let Some(byte) = left.next() {
        match byte {
            b'#' | b';' => left.skip_line(),
            b'[' => section = left.section()?,
            byte if byte.is_ascii_whitespace() => {}
            byte if byte.is_ascii_alphabetic() => {
                let (name, value) = left.setting(byte)?;
                if section == "core" && name == "repositoryformatversion" {
                    version = std::str::from_utf8(&value).ok()?.parse().ok()?;
                }
                let is_always = name == "logallrefupdates" && value.eq_ignore_ascii_case(b"always");
                let is_wrong = BOOLEANS.contains(&&*name) && !is_boolean(&value) && !is_always
                    || NUMBERS.contains(&&*name) && !is_number(&value);
                if section == "core" && is_wrong {
                    return None;
                }
                has_extension |= section == "extensions"
                    && ["objectformat", "refstorage"].contains(&name.as_str());
                if section == "extensions" && name == "refstorage" {
                    config.is_reftable = value.eq_ignore_ascii_case(b"reftable");
                }
                if section == "extensions" && name == "objectformat" {
                    config.is_sha256 = match value.as_slice() {
                        b"sha256" => true,
                        b"sha1" => false,
                        _ => return None,
                    };
                }
            }
            _ => return None,
        }
    }
    let is_known = version <= VERSION_MAX && (version == VERSION_MAX || !has_extension);
    is_known.then_some(config)
}

struct Characters<'a>(&'a [u8]);

impl Iterator for Characters<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        // As in git, a line may end in both characters.
        if self.0.starts_with(b"\r\n") {
            self.0 = &self.0[1..];
        }
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
}

impl Characters<'_> {
    fn skip_line(&mut self) {
        self.find(|byte| *byte == b'\n');
    }

    /// Reads a section after its `[`. Returns its name in lower case, without a subsection.
    fn section(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            match self.next()? {
                b']' => return Some(name),
                b'\n' => return None,
                byte if byte.is_ascii_whitespace() => break,
                byte if is_in_name(byte) || byte == b'.' => {
                    name.push(byte.to_ascii_lowercase().into());
                }
                _ => return None,
            }
        }
        // A subsection in quotes.
        if self.find(|byte| ![b' ', b'\t'].contains(byte))? != b'"' {
            return None;
        }
        loop {
            match self.next()? {
                b'"' => break,
                b'\n' => return None,
                b'\\' if self.next()? == b'\n' => return None,
                _ => {}
            }
        }
        name.push('.');
        (self.next()? == b']').then_some(name)
    }

    /// Reads a setting after the first character of its name. Returns name and value.
    fn setting(&mut self, first: u8) -> Option<(String, Vec<u8>)> {
        let mut name = String::from(char::from(first.to_ascii_lowercase()));
        let mut next = self.next();
        while let Some(byte) = next.filter(|byte| is_in_name(*byte)) {
            name.push(byte.to_ascii_lowercase().into());
            next = self.next();
        }
        while let Some(b' ' | b'\t') = next {
            next = self.next();
        }
        match next {
            None | Some(b'\n') => Some((name, Vec::new())),
            Some(b'=') => Some((name, self.value()?)),
            Some(_) => None,
        }
    }

    fn value(&mut self) -> Option<Vec<u8>> {
        let (mut value, mut is_quoted) = (Vec::new(), false);
        loop {
            match self.next() {
                None | Some(b'\n') if is_quoted => return None,
                None | Some(b'\n') => break,
                Some(b'#' | b';') if !is_quoted => {
                    self.skip_line();
                    break;
                }
                Some(b'"') => is_quoted = !is_quoted,
                Some(b'\\') => match self.next()? {
                    b'\n' => {}
                    byte if b"tbn\\\"".contains(&byte) => value.push(byte),
                    _ => return None,
                },
                Some(byte) => value.push(byte),
            }
        }
        Some(value.trim_ascii().to_vec())
    }
}

fn is_boolean(value: &[u8]) -> bool {
    let words: [&[u8]; 7] = [b"", b"true", b"yes", b"on", b"false", b"no", b"off"];
    words.iter().any(|word| value.eq_ignore_ascii_case(word)) || is_number(value)
}

/// Returns true for a number with or without a unit.
fn is_number(value: &[u8]) -> bool {
    let number = match value.split_last() {
        Some((unit, number)) if b"kmg".contains(&unit.to_ascii_lowercase()) => number,
        _ => value,
    };
    std::str::from_utf8(number).is_ok_and(|number| number.parse::<i64>().is_ok())
}

fn is_in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::gitlab::repositories::git::git;

    #[test]
    fn git_refuses_the_same_texts() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = scratch.path().join("config");
        for text in [
            "",
            "[core]\n\tbare = true\n",
            "[core",
            "[core]\n\tname = \"tr",
            "[core]\n\tname = tr",
            "[core] bare",
            "[remote \"a b\"]\r\n\turl = a\\\\b # c\r\n",
            "[remote \"a",
            "[remote a]",
            "[a.b-c]\nx-y = 1; c\n",
            "[core]\nx = a\\q\n",
            "[core]\nx = a\\\n  b\n",
            "[core]\n1x = a\n",
            "[core]\nx_y = a\n",
            "\0\0\0\0",
            "[core]\n\0\0\0",
            "\u{feff}[core]\nx = 1\n",
            "# only\n; comments",
            "<<<<<<< HEAD\n",
        ] {
            std::fs::write(&path, text).expect("writes");
            let path = path.to_str().expect("text");
            let is_accepted =
                git(scratch.path(), &["config", "--list", "--file", path], "").is_some();
            assert_eq!(parse(text.as_bytes()).is_some(), is_accepted, "{text:?}");
        }
    }

    #[test]
    fn git_refuses_the_same_values() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("one.git");
        git(&dir, &["init", "-q", "--bare"], "").expect("works");
        for text in [
            "",
            "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
            "[core]\n\trepositoryformatversion = 1\n\tbare = true\n",
            "[core]\n\trepositoryformatversion = 2\n\tbare = true\n",
            "[core]\n\trepositoryformatversion = 7\n\trepositoryformatversion = 0\n",
            "[core]\n\trepositoryformatversion = x\n",
            "[core]\n\trepositoryformatversion =\n",
            "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = sha256\n",
            "[core]\n\trepositoryformatversion = 0\n[extensions]\n\tobjectformat = sha256\n",
            "[core]\n\tbare = maybe\n",
            "[core]\n\tbare = YES\n",
            "[core]\n\tbare\n",
            "[core]\n\tbare =\n",
            "[core]\n\tbare = 1k\n",
            "[core]\n\tfilemode = -1\n",
            "[core]\n\tsymlinks = 0x\n",
            "[core]\n\tlogallrefupdates = always\n",
            "[core]\n\tlogallrefupdates = never\n",
            "[core]\n\tcompression = 9\n",
            "[core]\n\tcompression = much\n",
            "[core]\n\tbigfilethreshold = 512M\n",
            "[core]\n\tbigfilethreshold =\n",
            "[other]\n\tbare = maybe\n",
            "[core \"a\"]\n\tbare = maybe\n",
        ] {
            std::fs::write(dir.join("config"), text).expect("writes");
            let is_accepted = git(&dir, &["for-each-ref"], "").is_some();
            assert_eq!(parse(text.as_bytes()).is_some(), is_accepted, "{text:?}");
        }
    }

    #[test]
    fn the_storage_of_references_is_found() {
        let is_reftable = |text: &str| {
            let text = format!("[core]\nrepositoryformatversion = 1\n{text}");
            parse(text.as_bytes()).expect("is whole").is_reftable
        };
        assert!(is_reftable("[core]\n\tbare = true\n[extensions]\n\trefStorage = reftable\n"));
        assert!(is_reftable("[Extensions]\nrefstorage=\"RefTable\""));
        for text in
            ["", "[extensions]\nrefstorage = files", "[extensions \"a\"]\nrefstorage = reftable"]
        {
            assert!(!is_reftable(text), "{text}");
        }
    }
}
