//! Globs that choose paths.
//!
//! A pattern without `/` matches a name at any depth. One that begins with `/` matches the whole
//! path; any other matches the end of a path. `*` stays within a name, `**` crosses directories. A
//! match includes everything below it.
//!
//! Patterns are bytes, as paths are: most are UTF-8, but none needs to be.

use crate::entry::{is_within, is_within_reach, path_cmp};
use crate::error::{Error, Result};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use regex_automata::meta::{BuildError, Regex};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// First of the private characters that stand for bytes outside UTF-8 in a pattern.
const FOREIGN: u32 = 0x0010_FF00;

/// Ends the directory of a pattern of [`within`]. For a path, it means the same as `/`.
const ROOT: &[u8] = b"/./";

/// Returns a pattern that matches only this absolute path.
pub fn escape(path: &Path) -> Vec<u8> {
    let mut pattern = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if b"?*[]{}\\".contains(byte) {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    pattern
}

/// Returns a pattern for paths below this absolute directory, of which `pattern` matches a name or,
/// with a `/` in it, the rest of the path. It does not apply in other source paths below.
pub fn within(dir: &Path, pattern: &[u8]) -> Vec<u8> {
    let depth: &[u8] = if pattern.contains(&b'/') { b"" } else { b"**/" };
    let start = pattern.iter().take_while(|byte| **byte == b'/').count();
    [&escape(dir), ROOT, depth, &pattern[start..]].concat()
}

/// Splits the directory, as a path of the tree, from a pattern of [`within`].
fn root_of(pattern: &[u8]) -> Option<Vec<u8>> {
    let at = pattern.windows(ROOT.len()).position(|part| part == ROOT)?;
    pattern.strip_prefix(b"/")?;
    let mut dir = Vec::new();
    let mut bytes = pattern[..at].iter();
    while let Some(byte) = bytes.next() {
        dir.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    let parts = dir.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    Some(parts.collect::<Vec<_>>().join(&b'/'))
}

/// Returns the patterns in a file, each with its line number. Skips a byte-order mark, spaces
/// around a pattern, empty lines and lines that begin with `#`.
pub fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let lines = text.split(|b| *b == b'\n').map(without_spaces);
    (1..).zip(lines).filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"))
}

/// Returns a line without surrounding spaces. A backslash before the trailing spaces keeps one of
/// them.
fn without_spaces(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii_start();
    let len = line.trim_ascii_end().len();
    let escapes = line[..len].iter().rev().take_while(|byte| **byte == b'\\').count();
    let is_escaped = escapes % 2 == 1 && matches!(line.get(len), Some(b' ' | b'\t'));
    &line[..len + usize::from(is_escaped)]
}

/// A set of patterns.
#[derive(Debug, Clone, Default)]
pub struct Globs {
    set: GlobSet,
    /// Patterns that are not UTF-8, which [`GlobSet`] does not accept.
    foreign: Option<Regex>,
    /// The part of a tree in which each pattern can match.
    anchors: Vec<Anchor>,
}

/// The part of a tree in which a pattern can match.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Anchor {
    /// Only this path, given without its leading `/`.
    Path(Vec<u8>),
    /// Below this directory; it is empty if the pattern can match anywhere.
    Below(Vec<u8>),
}

impl Globs {
    /// Parses patterns. An empty set matches nothing.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a [u8]>) -> Result<Globs> {
        let (mut builder, mut foreign) = (GlobSetBuilder::new(), Vec::new());
        let mut anchors = Vec::new();
        for pattern in patterns {
            let (glob, is_foreign) = parse(pattern)?;
            anchors.push(Anchor::of(pattern));
            if is_foreign {
                let regex = with_foreign_bytes(glob.regex());
                // Compiled alone first, so that an error names this pattern.
                bytes_regex(&[&regex]).map_err(|error| wrong(pattern, error.to_string()))?;
                foreign.push(regex);
            } else {
                builder.add(glob);
            }
        }
        let failed = |reason: String| Error::Pattern { pattern: "(all patterns)".into(), reason };
        let set = builder.build().map_err(|error| failed(error.kind().to_string()))?;
        let foreign = match &foreign[..] {
            [] => None,
            regexes => Some(bytes_regex(regexes).map_err(|error| failed(error.to_string()))?),
        };
        Ok(Globs { set, foreign, anchors })
    }

    /// Returns true if the set has no patterns.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.foreign.is_none()
    }

    /// Returns true if a pattern matches exactly this path, given without its leading `/`.
    pub fn matches(&self, path: &[u8]) -> bool {
        (!self.set.is_empty() && self.set.is_match(Path::new(OsStr::from_bytes(path))))
            || self.foreign.as_ref().is_some_and(|foreign| foreign.is_match(path))
    }

    /// Returns true if a pattern may match one of the paths from `from` up to `until`, in path order.
    /// `None` is the end of the tree.
    pub fn may_match_between(&self, from: &[u8], until: Option<&[u8]>) -> bool {
        self.anchors.iter().any(|anchor| match anchor {
            Anchor::Path(path) => is_between(path, from, until),
            Anchor::Below(dir) => is_within_reach(dir, from, until),
        })
    }

    /// Like [`Globs::may_match_between`], also for paths below a match and the directories above
    /// one.
    pub fn may_cover_between(&self, from: &[u8], until: Option<&[u8]>) -> bool {
        self.anchors.iter().any(|anchor| {
            let (Anchor::Path(place) | Anchor::Below(place)) = anchor;
            is_within_reach(place, from, until)
                || ends(place).any(|end| is_between(&place[..end], from, until))
        })
    }

    /// Returns true if a pattern matches this path or a directory above it.
    pub fn covers(&self, path: &[u8]) -> bool {
        !self.is_empty() && ends(path).any(|end| self.matches(&path[..end]))
    }
}

/// Patterns whose matches are told apart.
#[derive(Debug, Clone, Default)]
pub struct GlobList {
    set: GlobSet,
    /// Position in the list of each pattern in `set`.
    positions: Vec<usize>,
    /// Patterns that are not UTF-8, with their positions.
    foreign: Vec<(usize, Globs)>,
}

impl GlobList {
    /// Parses patterns.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a [u8]>) -> Result<GlobList> {
        let (mut builder, mut list) = (GlobSetBuilder::new(), GlobList::default());
        for (position, pattern) in patterns.into_iter().enumerate() {
            let (glob, is_foreign) = parse(pattern)?;
            if is_foreign {
                list.foreign.push((position, Globs::new([pattern])?));
            } else {
                builder.add(glob);
                list.positions.push(position);
            }
        }
        let failed = |error: globset::Error| wrong(b"(all patterns)", error.kind().to_string());
        list.set = builder.build().map_err(failed)?;
        Ok(list)
    }

    /// Replaces the content of `found` by the positions of the patterns that match exactly this path,
    /// given without its leading `/`.
    pub fn matching(&self, path: &[u8], found: &mut Vec<usize>) {
        self.set.matches_into(Path::new(OsStr::from_bytes(path)), found);
        found.iter_mut().for_each(|at| *at = self.positions[*at]);
        let foreign = self.foreign.iter().filter(|(_, globs)| globs.matches(path));
        found.extend(foreign.map(|(position, _)| *position));
    }
}

fn wrong(pattern: &[u8], reason: String) -> Error {
    Error::Pattern { pattern: String::from_utf8_lossy(pattern).into_owned(), reason }
}

/// Returns a pattern as a glob for whole paths, and true if characters in it stand for bytes
/// outside UTF-8.
fn parse(pattern: &[u8]) -> Result<(globset::Glob, bool)> {
    let (glob, is_foreign) = glob(pattern).map_err(|reason| wrong(pattern, reason.into()))?;
    let glob = GlobBuilder::new(&glob).literal_separator(true).build();
    Ok((glob.map_err(|error| wrong(pattern, error.kind().to_string()))?, is_foreign))
}

/// Returns true if a path is one of those from `from` up to `until`, in path order.
fn is_between(path: &[u8], from: &[u8], until: Option<&[u8]>) -> bool {
    path_cmp(from, path).is_le() && until.is_none_or(|until| path_cmp(until, path).is_gt())
}

impl Anchor {
    /// Returns the anchor of a valid pattern: the path up to the first part with a wildcard.
    fn of(pattern: &[u8]) -> Anchor {
        if !pattern.starts_with(b"/") {
            return Anchor::Below(Vec::new());
        }
        let mut path: Vec<u8> = Vec::new();
        for part in parts(pattern) {
            let Some(name) = literal(part) else { return Anchor::Below(path) };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name);
        }
        Anchor::Path(path)
    }
}

/// Returns the only name that a part of a pattern matches; `None` if it has a wildcard.
fn literal(part: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(part.len());
    let mut bytes = part.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => name.push(*bytes.next()?),
            b'?' | b'*' | b'[' | b']' | b'{' | b'}' => return None,
            byte => name.push(*byte),
        }
    }
    Some(name)
}

/// Returns the parts of a pattern between slashes that matter.
fn parts(pattern: &[u8]) -> impl Iterator<Item = &[u8]> {
    pattern.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b"."))
}

/// Patterns of which some apply only in the source path that they were made for.
#[derive(Debug, Clone, Default)]
pub struct SourceGlobs {
    everywhere: Globs,
    /// Source paths, as paths of the tree, and the patterns made by [`within`].
    of_sources: BTreeMap<Vec<u8>, Globs>,
}

impl SourceGlobs {
    /// Parses patterns that apply everywhere, and others, of which those of [`within`] do not.
    pub fn new<'a>(
        everywhere: impl IntoIterator<Item = &'a [u8]>,
        others: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<SourceGlobs> {
        let mut everywhere: Vec<&[u8]> = everywhere.into_iter().collect();
        let mut of_sources: BTreeMap<Vec<u8>, Vec<&[u8]>> = BTreeMap::new();
        for pattern in others {
            match root_of(pattern) {
                Some(source) => of_sources.entry(source).or_default().push(pattern),
                None => everywhere.push(pattern),
            }
        }
        let parse = |(source, patterns)| Ok((source, Globs::new::<'a>(patterns)?));
        let of_sources = of_sources.into_iter().map(parse).collect::<Result<_>>()?;
        Ok(SourceGlobs { everywhere: Globs::new(everywhere)?, of_sources })
    }

    /// Returns true if a pattern matches exactly this path of the tree. `nearest` returns the length
    /// of the nearest source path above it, or 0 if that is unknown.
    pub fn matches(&self, path: &[u8], nearest: impl Fn() -> usize) -> bool {
        let applies = |(source, globs): (&Vec<u8>, &Globs)| {
            is_within(path, source) && globs.matches(path) && nearest() <= source.len()
        };
        self.everywhere.matches(path) || self.of_sources.iter().any(applies)
    }
}

impl From<Globs> for SourceGlobs {
    fn from(everywhere: Globs) -> SourceGlobs {
        SourceGlobs { everywhere, ..SourceGlobs::default() }
    }
}

/// Returns the lengths of the directories above a path, outermost first, and of the path itself.
pub(crate) fn ends(path: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    slashes.chain([path.len()])
}

/// Returns a pattern as a glob for whole paths, and true if characters in it stand for bytes
/// outside UTF-8.
fn glob(pattern: &[u8]) -> Result<(String, bool), &'static str> {
    if pattern.is_empty() {
        return Err("it is empty; check for an unset variable");
    }
    if [&b"[[:"[..], b"[[.", b"[[="]
        .iter()
        .any(|class| pattern.windows(3).any(|part| part == *class))
    {
        return Err("named character classes such as [[:digit:]] are not supported; write [0-9]");
    }
    if pattern.starts_with(b"!") {
        return Err("patterns cannot be negated; for a name that begins with ! write \\!");
    }
    if pattern.contains(&0) {
        return Err("it contains a NUL byte");
    }
    if parts(pattern).next().is_none() {
        return Err("it does not name a path");
    }
    if parts(pattern).any(|part| part == b"..") {
        return Err("a pattern cannot contain `..`");
    }
    let mut trimmed = parts(pattern).collect::<Vec<_>>().join(&b'/');
    if pattern.starts_with(b"/") {
        trimmed.insert(0, b'/');
    }
    let (mut text, mut is_foreign) = (String::new(), false);
    for chunk in trimmed.utf8_chunks() {
        text += chunk.valid();
        is_foreign |= !chunk.invalid().is_empty();
        text.extend(chunk.invalid().iter().filter_map(|byte| foreign_char(*byte)));
    }
    let glob = match text.strip_prefix('/') {
        Some(anchored) => anchored.to_owned(),
        None => format!("**/{text}"),
    };
    Ok((glob, is_foreign))
}

/// Returns the character that stands for a byte outside UTF-8.
fn foreign_char(byte: u8) -> Option<char> {
    char::from_u32(FOREIGN + u32::from(byte))
}

/// Replaces the stand-in characters in a glob's regular expression by their bytes.
fn with_foreign_bytes(regex: &str) -> String {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "\\x{byte:02x}");
            text
        })
    };
    (0x80..=0xff).fold(regex.to_owned(), |regex, byte| match foreign_char(byte) {
        Some(c) => regex.replace(&hex(c.encode_utf8(&mut [0; 4]).as_bytes()), &hex(&[byte])),
        None => regex,
    })
}

fn bytes_regex<P: AsRef<str>>(regexes: &[P]) -> Result<Regex, Box<BuildError>> {
    let syntax = regex_automata::util::syntax::Config::new().utf8(false).dot_matches_new_line(true);
    let config = Regex::config().utf8_empty(false).nfa_size_limit(Some(10 << 20));
    Regex::builder().syntax(syntax).configure(config).build_many(regexes).map_err(Box::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, noise};
    use proptest::prelude::*;

    #[test]
    fn patterns_match_the_expected_paths() {
        for (pattern, path, expected) in [
            ("*.tmp", "a/b.tmp", true),
            ("./a//b/./c/", "x/a/b/c", true),
            ("/./a", "a", true),
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
            let globs = Globs::new([pattern.as_bytes()]).expect("a pattern");
            assert_eq!(globs.matches(path.as_bytes()), expected, "{pattern} {path}");
        }
        assert!(Globs::new([&b"cache"[..]]).expect("a pattern").covers(b"a/cache/b/c"));
        assert!(!Globs::new([]).expect("no pattern").covers(b"a"));
        assert!(
            Globs::new(["*\u{e9}".as_bytes()]).expect("a pattern").matches("a/\u{e9}".as_bytes())
        );
        assert!(Globs::new([&b"a*"[..]]).expect("a pattern").matches(b"x/a\xff"));
        assert!(Globs::new([&b"["[..]]).is_err());
        let odd = Path::new("/a/[b]{c}*?\\d");
        let escaped = Globs::new([&escape(odd)[..]]).expect("a pattern");
        assert!(escaped.matches(br"a/[b]{c}*?\d") && !escaped.matches(b"a/b{c}*?d"));
    }

    #[test]
    fn patterns_match_any_bytes() {
        for (pattern, path, expected) in [
            (&b"\xff\xfe"[..], &b"src/\xff\xfe"[..], true),
            (b"\xff\xfe", b"src/\xff", false),
            (b"/src/*\xe9", b"src/caf\xe9", true),
            (b"/src/*\xe9", b"src/caf\xc3\xa9", false),
            (b"\xe9[\xe0-\xe2]?", b"a/\xe9\xe1x", true),
            (b"\xe9[\xe0-\xe2]?", b"a/\xe9\xe3x", false),
            (b"\xe9*.{tmp,\xfc}", b"\xe9\n.\xfc", true),
            (b"\\!\xff", b"!\xff", true),
            (b"\\!b", b"a/!b", true),
        ] {
            let globs = Globs::new([&b"other"[..], pattern]).expect("a pattern");
            assert_eq!(globs.matches(path), expected, "{}", pattern.escape_ascii());
            assert!(globs.matches(b"x/other") && !globs.is_empty());
        }
        let odd = Path::new(OsStr::from_bytes(b"/a/\xff*"));
        let escaped = Globs::new([&escape(odd)[..]]).expect("a pattern");
        assert!(escaped.covers(b"a/\xff*/b") && !escaped.matches(b"a/\xffb"));
    }

    #[test]
    fn a_pattern_of_a_source_path_does_not_apply_in_another_one_below() {
        let parse = |dir: &[u8], pattern: &[u8]| {
            let made = within(Path::new(OsStr::from_bytes(dir)), pattern);
            SourceGlobs::new([&b"*.tmp"[..]], [&made[..]]).expect("patterns")
        };
        for (dir, pattern, path, nearest, expected) in [
            (&b"/w"[..], &b"cache"[..], &b"w/a/cache"[..], 1, true),
            (b"/w", b"cache", b"w/a/cache", 0, true),
            (b"/w", b"cache", b"w/a/cache", 3, false),
            (b"/w", b"cache", b"cache", 0, false),
            (b"/w", b"a/cache", b"w/a/cache", 1, true),
            (b"/w", b"a/cache", b"w/a/cache", 3, false),
            (b"/w", b"/cache", b"w/cache", 1, true),
            (b"/w", b"/cache", b"w/a/cache", 1, false),
            (b"/w/a", b"cache", b"w/a/cache", 3, true),
            (b"/w", b"cache", b"w/a/x.tmp", 3, true),
            (b"/", b"cache", b"w/cache", 0, true),
            (b"/", b"cache", b"w/cache", 1, false),
            (b"/w\xff[*]", b"./cache", b"w\xff[*]/cache", 5, true),
            (b"/w\xff[*]", b"cache", b"w\xff[*]/a/cache", 7, false),
        ] {
            let found = parse(dir, pattern).matches(path, || nearest);
            let shown = [dir, pattern, path].map(|bytes| bytes.escape_ascii().to_string());
            assert_eq!(found, expected, "{shown:?} {nearest}");
        }
    }

    #[test]
    fn meaningless_patterns_are_refused() {
        for pattern in [
            &b"[[:digit:]]*"[..],
            b"",
            b"/",
            b"//",
            b".",
            b"a/../b",
            b"!a",
            b"a\0b",
            b"[\xff",
            b"{a",
        ] {
            let read = Globs::new([&b"fine"[..], pattern]);
            let named = String::from_utf8_lossy(pattern).into_owned();
            assert!(
                matches!(&read, Err(Error::Pattern { pattern, .. }) if *pattern == named),
                "{named}: {read:?}"
            );
        }
    }

    #[test]
    fn an_escaped_space_at_the_end_of_a_line_stays() {
        let found: Vec<&[u8]> = lines(b"a\\  \nb \\\\ \n").map(|(_, line)| line).collect();
        assert_eq!(found, [&b"a\\ "[..], b"b \\\\"]);
    }

    #[test]
    fn lines_of_a_file_are_patterns() {
        let text = b"\xef\xbb\xbf*.tmp\r\n\n  # no\n\t/a b \r\n\xff\xfe\n!x";
        let found: Vec<(usize, &[u8])> = lines(text).collect();
        assert_eq!(found, [(1, &b"*.tmp"[..]), (4, b"/a b"), (5, b"\xff\xfe"), (6, b"!x")]);
        assert_eq!(lines(b"\xef\xbb\xbf").count(), 0);
    }

    /// Returns true if a pattern of letters, `?` and `*` matches a name.
    fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], rest) => rest.is_empty(),
            ([b'*', after @ ..], name) => (0..=name.len()).any(|n| matches_name(after, &name[n..])),
            ([b'?', after @ ..], [_, rest @ ..]) => matches_name(after, rest),
            ([letter, after @ ..], [first, rest @ ..]) => {
                letter == first && matches_name(after, rest)
            }
            _ => false,
        }
    }

    /// Like [`matches_name`], for the names of a path, with `**` for any number of them.
    fn matches_names(patterns: &[&[u8]], names: &[&[u8]]) -> bool {
        match (patterns, names) {
            ([], rest) => rest.is_empty(),
            // At the end: matches a directory's content, but not the directory.
            ([b"**"], rest) => !rest.is_empty(),
            ([b"**", after @ ..], names) => {
                (0..=names.len()).any(|n| matches_names(after, &names[n..]))
            }
            ([pattern, after @ ..], [name, rest @ ..]) => {
                matches_name(pattern, name) && matches_names(after, rest)
            }
            _ => false,
        }
    }

    fn split(path: &str) -> Vec<&[u8]> {
        path.split('/').map(str::as_bytes).collect()
    }

    /// Implements the module's description in the simplest code.
    fn model(pattern: &str, path: &str) -> bool {
        let pattern = pattern.strip_suffix('/').unwrap_or(pattern);
        match pattern.strip_prefix('/') {
            Some(anchored) => matches_names(&split(anchored), &split(path)),
            None => matches_names(&[&[&b"**"[..]], &split(pattern)[..]].concat(), &split(path)),
        }
    }

    proptest! {
        #![proptest_config(cases(500))]

        #[test]
        fn patterns_match_like_the_model(
            pattern in "/?((a|b|\\?|[ab]\\*|\\*[ab]|\\*){1,2}|\\*\\*)(/([ab?]{1,2}|[ab]\\*|\\*|\\*\\*)){0,3}/?",
            path in "[ab]{1,3}(/[ab]{1,3}){0,4}",
        ) {
            // `***`, and `**` next to letters, have no meaning of their own.
            let is_plain = |part: &&[u8]| !part.windows(2).any(|two| two == b"**") || *part == b"**";
            prop_assume!(split(&pattern).iter().all(is_plain));
            let globs = Globs::new([pattern.as_bytes()]).expect("a pattern");
            prop_assert_eq!(globs.matches(path.as_bytes()), model(&pattern, &path));
            let mut ancestors = Path::new(&path).ancestors().filter_map(Path::to_str);
            let is_covered = ancestors.any(|path| !path.is_empty() && model(&pattern, path));
            prop_assert_eq!(globs.covers(path.as_bytes()), is_covered);
        }

        #[test]
        fn ranges_with_covered_paths_and_their_directories_are_found(
            pattern in "/?(a|b|a\\*|\\*)(/(a|b|\\*)){0,2}",
            path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
            from in "[ab]{0,2}(/[ab]{1,2}){0,2}",
            until in "[ab]{1,3}(/[ab]{1,2}){0,2}",
        ) {
            let globs = Globs::new([pattern.as_bytes()]).expect("a pattern");
            let (from, until) = (from.trim_start_matches('/').as_bytes(), until.as_bytes());
            let is_covered = globs.covers(path.as_bytes());
            for end in ends(path.as_bytes()).filter(|_| is_covered) {
                let dir = &path.as_bytes()[..end];
                if is_between(dir, from, Some(until)) {
                    prop_assert!(globs.may_cover_between(from, Some(until)));
                }
                if is_between(dir, from, None) {
                    prop_assert!(globs.may_cover_between(from, None));
                }
            }
        }

        #[test]
        fn any_text_is_a_pattern_or_an_error(pattern: String, path in noise()) {
            if let Ok(globs) = Globs::new([pattern.as_bytes()]) {
                prop_assert!(!globs.matches(&path) || globs.covers(&path));
            }
        }
    }
}
