//! Syntax of owner rules, as items of a list and as lines of a file.

use super::accounts::{Accounts, Class};
use super::error::RuleError;
use crate::acl;
use crate::entry::display_path;
use crate::glob::Globs;

/// A rule as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parsed {
    from: Vec<u8>,
    to: Vec<u8>,
}

/// A line of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'t> {
    /// `[path "GLOB"]`, or `[exact "GLOB"]` without the paths below a match.
    Section { path: Vec<u8>, is_exact: bool },
    /// `user FROM -> TO` or `group FROM -> TO`
    Rule(Class, Parsed),
    /// `mode CHANGES`
    Mode(&'t [u8]),
    /// `acl ENTRIES` or `default-acl ENTRIES`: the number of the word, and the value of the attribute.
    Acl(usize, Vec<u8>),
}

/// A rule whose names are looked up.
#[derive(Debug)]
pub(super) struct Rule {
    from: Matcher,
    pub(super) target: Target,
}

/// Users or groups that a rule matches.
#[derive(Debug)]
enum Matcher {
    All,
    Nameless,
    Name(Vec<u8>),
    /// A name with wildcards.
    Names(Box<Globs>),
    /// Numbers from the first to the last.
    Numbers(u32, u32),
}

/// Number that a rule sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Number(u32),
    /// Moves a range of numbers that begins with `from`.
    Shift {
        from: u32,
        to: u32,
    },
    /// The default, as if no rule matched.
    Default,
}

/// Parses a line that is neither empty nor a comment.
pub(super) fn line(line: &[u8]) -> Result<Line<'_>, RuleError> {
    if let Some(section) = line.strip_prefix(b"[") {
        let section = section.strip_suffix(b"]").map(<[u8]>::trim_ascii).unwrap_or_default();
        let (rest, is_exact) = match section.strip_prefix(b"exact") {
            Some(rest) => (Some(rest), true),
            None => (section.strip_prefix(b"path"), false),
        };
        let quoted = rest.map(<[u8]>::trim_ascii).and_then(|quoted| quoted.strip_prefix(b"\""));
        let path = quoted.and_then(|quoted| quoted.strip_suffix(b"\""));
        return match path {
            Some(path) => Ok(Line::Section { path: path.to_vec(), is_exact }),
            None => Err(RuleError::Section),
        };
    }
    let (word, rest) = match line.iter().position(u8::is_ascii_whitespace) {
        Some(at) => (&line[..at], line[at..].trim_ascii()),
        None => (line, &b""[..]),
    };
    let class = match word {
        b"user" => Class::User,
        b"group" => Class::Group,
        b"mode" => return Ok(Line::Mode(rest)),
        word if let Some(at) = acl::WORDS.iter().position(|known| known.as_bytes() == word) => {
            let value = acl::of_text(rest).ok_or_else(|| RuleError::Acl(display_path(rest)))?;
            return Ok(Line::Acl(at, value));
        }
        _ => return Err(RuleError::Word),
    };
    let Some(at) = rest.windows(2).position(|arrow| arrow == b"->") else {
        return Err(RuleError::NoArrow(class));
    };
    let (from, to) = (rest[..at].trim_ascii(), rest[at + 2..].trim_ascii());
    Ok(Line::Rule(class, Parsed::new(from, to)?))
}

/// Parses `FROM:TO`.
pub(super) fn of_list(item: &[u8]) -> Result<Parsed, RuleError> {
    let Some(at) = item.iter().position(|byte| *byte == b':') else {
        return Err(RuleError::NoColon);
    };
    Parsed::new(&item[..at], &item[at + 1..])
}

/// Returns the rule that gives everything to one user or group.
pub(super) fn of_all(to: &[u8]) -> Result<Parsed, RuleError> {
    Parsed::new(b"*", to)
}

impl Parsed {
    fn new(from: &[u8], to: &[u8]) -> Result<Parsed, RuleError> {
        if to.is_empty() {
            return Err(RuleError::NoTarget);
        }
        Ok(Parsed { from: from.to_vec(), to: to.to_vec() })
    }

    /// Returns the rule as a line of a file.
    pub(super) fn text(&self, class: Class) -> Vec<u8> {
        let space: &[u8] = if self.from.is_empty() { b"" } else { b" " };
        [class.word().as_bytes(), b" ", &self.from, space, b"-> ", &self.to].concat()
    }

    /// Looks up the names of the target.
    pub(super) fn resolve(&self, class: Class, accounts: &dyn Accounts) -> Result<Rule, RuleError> {
        let from = Matcher::parse(&self.from)?;
        if let Some(shift) = self.to.strip_prefix(b"+") {
            let to = number(shift)?.ok_or(RuleError::NoShift)?;
            let Matcher::Numbers(first, last) = from else {
                return Err(RuleError::NoRange);
            };
            if to.checked_add(last - first).is_none_or(|last| last == u32::MAX) {
                return Err(RuleError::TooLarge("the end of the moved range".into()));
            }
            return Ok(Rule { from, target: Target::Shift { from: first, to } });
        }
        // The first account that exists.
        for name in self.to.split(|byte| *byte == b'/') {
            if name == b"*" {
                return Ok(Rule { from, target: Target::Default });
            }
            let found = match number(name)? {
                Some(number) => Some(number),
                None => accounts.number(class, name)?,
            };
            if let Some(number) = found {
                return Ok(Rule { from, target: Target::Number(number) });
            }
        }
        Err(RuleError::Unknown { class, name: display_path(&self.to) })
    }
}

impl Matcher {
    fn parse(from: &[u8]) -> Result<Matcher, RuleError> {
        if from.is_empty() {
            return Ok(Matcher::Nameless);
        }
        if from == b"*" {
            return Ok(Matcher::All);
        }
        if let Some(number) = number(from)? {
            return Ok(Matcher::Numbers(number, number));
        }
        let mut ends = from.splitn(2, |byte| *byte == b'-');
        if let (Some(low), Some(high)) = (ends.next(), ends.next())
            && let (Some(low), Some(high)) = (number(low)?, number(high)?)
        {
            return match low <= high {
                true => Ok(Matcher::Numbers(low, high)),
                false => Err(RuleError::EmptyRange),
            };
        }
        if from.iter().any(|byte| b"*?[{".contains(byte)) {
            let globs =
                Globs::new([from]).map_err(|error| RuleError::Pattern(error.to_string()))?;
            return Ok(Matcher::Names(Box::new(globs)));
        }
        Ok(Matcher::Name(from.to_vec()))
    }
}

impl Rule {
    /// Returns true if the rule applies to a user or group of the snapshot.
    pub(super) fn matches(&self, number: u32, name: Option<&[u8]>) -> bool {
        match (&self.from, name) {
            (Matcher::All, _) | (Matcher::Nameless, None) => true,
            (Matcher::Numbers(first, last), _) => (*first..=*last).contains(&number),
            (Matcher::Name(wanted), Some(name)) => wanted == name,
            (Matcher::Names(globs), Some(name)) => globs.matches(name),
            _ => false,
        }
    }
}

/// Returns the number that a text of digits means; `None` for a name.
fn number(text: &[u8]) -> Result<Option<u32>, RuleError> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Ok(None);
    }
    let digits = String::from_utf8_lossy(text);
    match digits.parse() {
        Ok(number) if number < u32::MAX => Ok(Some(number)),
        _ => Err(RuleError::TooLarge(digits.into_owned())),
    }
}
