//! Globs that choose paths.
//!
//! A pattern without `/` fits a name at any depth; one that begins with `/` fits
//! the whole path; any other fits the end of a path. `*` stays within a name,
//! `**` crosses directories. What fits takes everything below it along.

use crate::error::Result;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A pattern that fits this absolute path and nothing else. What is no text in it, fits
/// anything.
pub fn escape(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.chars().fold(String::new(), |mut pattern, c| {
        match c {
            '?' | '*' | '[' | ']' | '{' | '}' | '\\' => pattern.extend(['\\', c]),
            char::REPLACEMENT_CHARACTER => pattern.push('*'),
            plain => pattern.push(plain),
        }
        pattern
    })
}

/// A set of patterns.
#[derive(Debug, Clone)]
pub struct Globs {
    set: GlobSet,
}

impl Globs {
    /// Reads patterns; none fit nothing.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Globs> {
        let mut builder = GlobSetBuilder::new();
        for pattern in patterns {
            let pattern = pattern.strip_suffix('/').filter(|p| !p.is_empty()).unwrap_or(pattern);
            let glob = match pattern.strip_prefix('/') {
                Some(anchored) => anchored.to_owned(),
                None => format!("**/{pattern}"),
            };
            builder.add(GlobBuilder::new(&glob).literal_separator(true).build()?);
        }
        Ok(Globs { set: builder.build()? })
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Whether a pattern fits this very path, given without its leading `/`.
    pub fn fits(&self, path: &[u8]) -> bool {
        !self.set.is_empty() && self.set.is_match(Path::new(OsStr::from_bytes(path)))
    }

    /// Whether a pattern fits this path or a directory that it lies in.
    pub fn covers(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        !self.set.is_empty() && ends.chain([path.len()]).any(|end| self.fits(&path[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, noise};
    use proptest::prelude::*;

    #[test]
    fn where_patterns_fit() {
        for (pattern, path, fits) in [
            ("*.tmp", "a/b.tmp", true),
            ("*.tmp", "b.tmp", true),
            ("*.tmp", "b.tmp/c", false),
            ("cache", "a/cache", true),
            ("cache", "a/cachet", false),
            ("/srv/*/log", "srv/x/log", true),
            ("/srv/*/log", "srv/x/y/log", false),
            ("/srv/**/log", "srv/x/y/log", true),
            ("/srv/*/log", "a/srv/x/log", false),
            ("x/log", "a/x/log", true),
            ("x/log/", "a/x/log", true),
            ("[ab]?", "d/b1", true),
        ] {
            let globs = Globs::new([pattern]).expect("a pattern");
            assert_eq!(globs.fits(path.as_bytes()), fits, "{pattern} {path}");
        }
        assert!(Globs::new(["cache"]).expect("a pattern").covers(b"a/cache/b/c"));
        assert!(!Globs::new([]).expect("no pattern").covers(b"a"));
        assert!(Globs::new(["*\u{e9}"]).expect("a pattern").fits("a/\u{e9}".as_bytes()));
        assert!(Globs::new(["a*"]).expect("a pattern").fits(b"x/a\xff"));
        assert!(Globs::new(["["]).is_err());
        let odd = Path::new("/a/[b]{c}*?\\d");
        let escaped = Globs::new([&escape(odd)[..]]).expect("a pattern");
        assert!(escaped.fits(br"a/[b]{c}*?\d") && !escaped.fits(b"a/b{c}*?d"));
    }

    /// Whether a pattern of letters, `?` and `*` fits a name.
    fn fits_name(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], rest) => rest.is_empty(),
            ([b'*', after @ ..], name) => (0..=name.len()).any(|n| fits_name(after, &name[n..])),
            ([b'?', after @ ..], [_, rest @ ..]) => fits_name(after, rest),
            ([letter, after @ ..], [first, rest @ ..]) => letter == first && fits_name(after, rest),
            _ => false,
        }
    }

    /// The same for names one below the other, with `**` for any number of them.
    fn fits_names(patterns: &[&[u8]], names: &[&[u8]]) -> bool {
        match (patterns, names) {
            ([], rest) => rest.is_empty(),
            // At the end: what lies in a directory, not the directory.
            ([b"**"], rest) => !rest.is_empty(),
            ([b"**", after @ ..], names) => {
                (0..=names.len()).any(|n| fits_names(after, &names[n..]))
            }
            ([pattern, after @ ..], [name, rest @ ..]) => {
                fits_name(pattern, name) && fits_names(after, rest)
            }
            _ => false,
        }
    }

    fn split(path: &str) -> Vec<&[u8]> {
        path.split('/').map(str::as_bytes).collect()
    }

    /// What the module's description says, in the simplest code.
    fn model(pattern: &str, path: &str) -> bool {
        let pattern = pattern.strip_suffix('/').unwrap_or(pattern);
        match pattern.strip_prefix('/') {
            Some(anchored) => fits_names(&split(anchored), &split(path)),
            None => fits_names(&[&[&b"**"[..]], &split(pattern)[..]].concat(), &split(path)),
        }
    }

    proptest! {
        #![proptest_config(cases(500))]

        #[test]
        fn patterns_fit_what_the_model_says(
            pattern in "/?((a|b|\\?|[ab]\\*|\\*[ab]|\\*){1,2}|\\*\\*)(/([ab?]{1,2}|[ab]\\*|\\*|\\*\\*)){0,3}/?",
            path in "[ab]{1,3}(/[ab]{1,3}){0,4}",
        ) {
            // `***` and `**` beside letters have no meaning of their own.
            let is_plain = |part: &&[u8]| !part.windows(2).any(|two| two == b"**") || *part == b"**";
            prop_assume!(split(&pattern).iter().all(is_plain));
            let globs = Globs::new([&pattern[..]]).expect("a pattern");
            prop_assert_eq!(globs.fits(path.as_bytes()), model(&pattern, &path));
            let mut ancestors = Path::new(&path).ancestors().filter_map(Path::to_str);
            let is_covered = ancestors.any(|path| !path.is_empty() && model(&pattern, path));
            prop_assert_eq!(globs.covers(path.as_bytes()), is_covered);
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(pattern: String, path in noise()) {
            if let Ok(globs) = Globs::new([&pattern[..]]) {
                prop_assert!(!globs.fits(&path) || globs.covers(&path));
            }
        }
    }
}
