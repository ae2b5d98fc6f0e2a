//! The argument that names a snapshot: `[INSTANCE@]WHICH[:PATH]`.
//!
//! This module only reads and prints the argument; `select` searches the store.

use crate::exit::{Failure, usage, with_hint};
use jiff::civil::Date;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;
use store::entry::display_path;

/// The grammar, for the long help of each command that takes a snapshot.
pub const GRAMMAR: &str = "\
SNAPSHOT is one of:
  3f2a0b12             the snapshot whose id begins so
  latest               the newest snapshot
  latest~1             the one before it; latest~2 the one before that
  2026-11-20           the last snapshot that began on this day, in the time zone of this machine
  gitlab@latest        the same for one instance; also gitlab@latest~1, gitlab@2026-11-20
SNAPSHOT:PATH is a path in that snapshot, written from /.
If the store has snapshots of several instances, machines or sets of paths, name the instance, or
narrow the choice with --host, --tag or --path. Otherwise the command lists the choices.";

/// A snapshot, as users name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// Name of the instance, if one is given.
    pub instance: Option<String>,
    /// The snapshot among those of the instance.
    pub which: Which,
}

/// A snapshot among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The newest, or the one this many places before it.
    Latest(usize),
    /// The last one that began on this day, in the time zone of this machine.
    Day(Date),
    /// The one whose id begins with these hexadecimal digits, in lower case.
    Id(String),
}

/// Fault of an argument that names no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorFault {
    /// Nothing is written, or nothing after `@`.
    #[error("it is empty")]
    Empty,
    /// Nothing is written before `@`.
    #[error("the name of the instance before @ is empty")]
    NoInstance,
    /// The number after `latest~` is missing or too large.
    #[error("a number must follow latest~")]
    NoNumber,
    /// It looks like a date and is not one.
    #[error("it is not a date of the form YYYY-MM-DD")]
    NoDate,
    /// An id has no more digits.
    #[error("an id has 64 hexadecimal digits")]
    LongId,
    /// None of the forms.
    #[error("it is not an id, a date or latest")]
    Unknown,
}

/// Number of hexadecimal digits of an id.
const ID_DIGITS: usize = 64;

impl FromStr for Selector {
    type Err = SelectorFault;

    fn from_str(text: &str) -> Result<Selector, SelectorFault> {
        // A WHICH never contains an @.
        let (instance, which) = match text.rsplit_once('@') {
            Some(("", _)) => return Err(SelectorFault::NoInstance),
            Some((name, which)) => (Some(name.to_owned()), which),
            None => (None, text),
        };
        Ok(Selector { instance, which: which.parse()? })
    }
}

impl FromStr for Which {
    type Err = SelectorFault;

    fn from_str(text: &str) -> Result<Which, SelectorFault> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if text.is_empty() {
            return Err(SelectorFault::Empty);
        }
        if text == "latest" {
            return Ok(Which::Latest(0));
        }
        if let Some(number) = text.strip_prefix("latest~") {
            let back = number.parse().ok().filter(|_| is_number(number));
            return back.map(Which::Latest).ok_or(SelectorFault::NoNumber);
        }
        if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let is_too_long = text.len() > ID_DIGITS;
            let id = text.to_ascii_lowercase();
            return if is_too_long { Err(SelectorFault::LongId) } else { Ok(Which::Id(id)) };
        }
        let parts: Vec<&str> = text.split('-').collect();
        if parts.len() < 2 || !parts.iter().all(|part| is_number(part)) {
            return Err(SelectorFault::Unknown);
        }
        let is_whole = matches!(parts[..], [year, month, day]
            if year.len() == 4 && month.len() == 2 && day.len() == 2);
        let day = text.parse().ok().filter(|_| is_whole);
        day.map(Which::Day).ok_or(SelectorFault::NoDate)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(instance) = &self.instance {
            write!(f, "{instance}@")?;
        }
        write!(f, "{}", self.which)
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Latest(0) => f.write_str("latest"),
            Which::Latest(back) => write!(f, "latest~{back}"),
            Which::Day(day) => write!(f, "{day}"),
            Which::Id(id) => f.write_str(id),
        }
    }
}

impl Selector {
    /// Reads an argument that names a snapshot.
    pub fn read(text: &str) -> Result<Selector, Failure> {
        text.parse().map_err(|fault| refused(text, &fault))
    }
}

/// Separates the snapshot from an instance in `NAME@SNAPSHOT`. `snapshot` is one of an argument of its
/// own.
pub fn of_instance(
    name: &str,
    snapshot: Option<&str>,
) -> Result<(String, Option<String>), Failure> {
    let both = name.rsplit_once('@').filter(|(_, which)| which.parse::<Selector>().is_ok());
    match (both, snapshot) {
        (Some(_), Some(snapshot)) => Err(usage(
            format!("{name} and {snapshot} both name a snapshot"),
            "write one of them".to_owned(),
        )),
        (Some((instance, snapshot)), None) => Ok((instance.into(), Some(snapshot.into()))),
        // The name of an instance may contain @.
        (None, snapshot) => Ok((name.into(), snapshot.map(str::to_owned))),
    }
}

/// Returns the failure for an argument that names no snapshot, with the likely spelling.
fn refused(text: &str, fault: &SelectorFault) -> Failure {
    let which = text.rsplit_once('@').map_or(text, |(_, which)| which);
    let close = forge::suggest::closest(&which.to_lowercase(), ["latest"].into_iter());
    let hint = match (fault, close) {
        (SelectorFault::Empty, _) if text.is_empty() => {
            "write an id, latest, or a date; a variable may be unset".to_owned()
        }
        (SelectorFault::NoNumber, _) => "latest~1 is the snapshot before the latest one".into(),
        (SelectorFault::Unknown, Some(close)) => {
            let before = &text[..text.len() - which.len()];
            format!("did you mean `{before}{close}`?")
        }
        (SelectorFault::Unknown, None) if !text.contains('@') && is_name(text) => format!(
            "write an id, latest, latest~1 or a date such as 2026-11-20; the latest snapshot of an \
             instance is {text}@latest"
        ),
        _ => "write an id, latest, latest~1 or a date such as 2026-11-20".into(),
    };
    usage(format!("`{text}` does not name a snapshot: {fault}"), hint)
}

/// Returns true if a word may be the name of an instance.
fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// An argument `SNAPSHOT[:PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub selector: Selector,
    /// Path in the tree; empty for the whole tree.
    pub path: Vec<u8>,
}

impl Place {
    /// Splits the argument at the first colon.
    pub fn parse(text: &OsStr) -> Result<Place, Failure> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|b| *b == b':');
        let (snapshot, path) =
            colon.map_or((bytes, &b""[..]), |at| (&bytes[..at], &bytes[at + 1..]));
        let selector = Selector::read(&display_path(snapshot))?;
        let path = store::backup::tree_path(std::path::Path::new(OsStr::from_bytes(path)));
        if !path.is_empty() && !store::entry::is_valid_path(&path) {
            return Err(with_hint(
                format!("{} is not a valid path in a snapshot", display_path(&path)),
                "write an absolute path without . and ..",
            ));
        }
        Ok(Place { selector, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn which() -> impl Strategy<Value = Which> {
        let day = (0i16..=9999, 1i8..=12, 1i8..=28)
            .prop_map(|(year, month, day)| Which::Day(Date::new(year, month, day).expect("a day")));
        prop_oneof![
            any::<usize>().prop_map(Which::Latest),
            day,
            "[0-9a-f]{1,64}".prop_map(Which::Id),
        ]
    }

    fn selectors() -> impl Strategy<Value = Selector> {
        let instance = proptest::option::of("[a-zA-Z0-9_][-a-zA-Z0-9_.@]{0,20}");
        (instance, which()).prop_map(|(instance, which)| Selector { instance, which })
    }

    #[test]
    fn a_name_may_have_a_snapshot() {
        let of = |name: &str, snapshot: Option<&str>| {
            of_instance(name, snapshot)
                .ok()
                .map(|(name, snapshot)| (name, snapshot.unwrap_or_default()))
        };
        let both = |name: &str, snapshot: &str| Some((name.to_owned(), snapshot.to_owned()));
        assert_eq!(of("gitlab", None), both("gitlab", ""));
        assert_eq!(of("gitlab", Some("latest")), both("gitlab", "latest"));
        assert_eq!(of("gitlab@latest~1", None), both("gitlab", "latest~1"));
        assert_eq!(of("a@b", None), both("a", "b"));
        assert_eq!(of("git@host", None), both("git@host", ""));
        assert_eq!(of("gitlab@latest", Some("latest")), None);
    }

    proptest! {
        #[test]
        fn a_printed_selector_is_read_as_it_was(selector in selectors()) {
            prop_assert_eq!(selector.to_string().parse(), Ok(selector));
        }

        #[test]
        fn a_place_is_split_at_the_first_colon(
            selector in selectors(),
            path in "(/[a-z:@~]{1,5}){0,4}",
        ) {
            let place = Place::parse(OsStr::new(&format!("{selector}:{path}"))).expect("a place");
            prop_assert_eq!(&place.selector, &selector);
            let wanted = path.strip_prefix('/').unwrap_or_default();
            prop_assert_eq!(place.path, wanted.as_bytes());
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,20}|[-0-9a-z@~]{0,12}") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse(), Ok(selector));
            } else {
                prop_assert!(Selector::read(&text).is_err());
            }
        }
    }

    #[test]
    fn the_forms_are_told_apart() {
        let which = |text: &str| text.parse::<Selector>().map(|selector| selector.which);
        assert_eq!(which("latest"), Ok(Which::Latest(0)));
        assert_eq!(which("gitlab@latest~3"), Ok(Which::Latest(3)));
        assert_eq!(which("2026"), Ok(Which::Id("2026".into())));
        assert_eq!(which("3F2A"), Ok(Which::Id("3f2a".into())));
        assert_eq!(which("2026-11-20"), Ok(Which::Day(jiff::civil::date(2026, 11, 20))));
        for (text, fault) in [
            ("", SelectorFault::Empty),
            ("gitlab@", SelectorFault::Empty),
            ("@latest", SelectorFault::NoInstance),
            ("latest~", SelectorFault::NoNumber),
            ("latest~x", SelectorFault::NoNumber),
            ("latest~-1", SelectorFault::NoNumber),
            ("latest~+1", SelectorFault::NoNumber),
            ("latest~99999999999999999999", SelectorFault::NoNumber),
            ("2026-11", SelectorFault::NoDate),
            ("2026-02-30", SelectorFault::NoDate),
            ("2026-1-2", SelectorFault::NoDate),
            ("20-11-2026", SelectorFault::NoDate),
            ("lastest", SelectorFault::Unknown),
            ("gitlab", SelectorFault::Unknown),
            ("-", SelectorFault::Unknown),
        ] {
            assert_eq!(text.parse::<Selector>(), Err(fault), "{text}");
        }
        assert_eq!("0".repeat(65).parse::<Selector>(), Err(SelectorFault::LongId));
    }

    #[test]
    fn refusals_suggest_a_spelling() {
        let hint = |text: &str| match Selector::read(text) {
            Err(Failure::Usage { hint, .. }) => hint,
            other => panic!("{other:?}"),
        };
        assert_eq!(hint("Latest"), "did you mean `latest`?");
        assert_eq!(hint("gitlab@lastest"), "did you mean `gitlab@latest`?");
        assert!(hint("gitlab").ends_with("is gitlab@latest"));
        assert!(hint("latest~x").contains("latest~1"));
        assert!(hint("").contains("unset"));
    }
}
