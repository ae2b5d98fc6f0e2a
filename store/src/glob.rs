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
    }
}
