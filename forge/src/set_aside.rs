//! Names of what a rebuild sets aside. Backups leave it out, and later rebuilds leave it where it is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Start of the mark of paths, and of databases. A time follows.
const OF_PATHS: &str = ".before-rebuild-";
const OF_DATABASES: &str = "_before_rebuild_";
/// Form of the time. A number may follow where the name was taken.
const TIME: &str = "ddddddddTddddddZ";

/// Returns the end of the names, without the sign before it. The time has the form
/// `20260102T030405Z`.
pub fn suffix(time: &str) -> String {
    format!("{}{time}", &OF_PATHS[1..])
}

/// Returns true if a rebuild made this name of a file or directory.
pub fn is_name(name: &OsStr) -> bool {
    let at = name.as_bytes().windows(OF_PATHS.len()).rposition(|part| part == OF_PATHS.as_bytes());
    at.is_some_and(|at| is_end(&name.as_bytes()[at + OF_PATHS.len()..], b'-'))
}

/// Returns true if a rebuild made this name of a database.
pub fn is_database(name: &str) -> bool {
    let at = name.rfind(OF_DATABASES);
    at.is_some_and(|at| is_end(&name.as_bytes()[at + OF_DATABASES.len()..], b'_'))
}

/// Returns true for a time, also if `separator` and a number follow.
fn is_end(end: &[u8], separator: u8) -> bool {
    let Some((time, number)) = end.split_at_checked(TIME.len()) else { return false };
    let has_form = TIME.bytes().zip(time).all(|(form, byte)| match form {
        b'd' => byte.is_ascii_digit(),
        _ => form == *byte,
    });
    let is_number = |digits: &[u8]| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    has_form && (number.is_empty() || number[0] == separator && is_number(&number[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_rebuilds_are_known() {
        let suffix = suffix("20260102T030405Z");
        let is = |name: String| is_name(OsStr::new(&name));
        for name in [format!(".{suffix}"), format!("data.{suffix}"), format!("a.{suffix}-12")] {
            assert!(is(name.clone()), "{name}");
        }
        for name in ["data", ".before-rebuild-", ".before-rebuild-notes", "before-rebuild.txt"] {
            assert!(!is(name.into()), "{name}");
        }
        for end in ["x", "-", "-2x", ".tar"] {
            assert!(!is(format!("data.{suffix}{end}")), "{end}");
        }
        assert!(is_database("gitlab_before_rebuild_20260102T030405Z"));
        assert!(is_database("gitlab_before_rebuild_20260102T030405Z_2"));
        for name in ["gitlab", "x_before_rebuild_", "_before_rebuild_20260102T030405Z_old"] {
            assert!(!is_database(name), "{name}");
        }
    }
}
