//! Changes of modes in symbolic form, as chmod(1) has them.

use super::error::RuleError;
use crate::entry::display_path;

/// Bits that a mode has.
const ALL: u32 = 0o7777;
const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// Changes of a mode, separated by commas.
///
/// Each is `[D|F][ugoa…](+|-|=)[rwxXst…|u|g|o]…`, or an octal number. `D` restricts it to
/// directories, `F` to everything else. Without letters before the operator, it applies to all
/// classes; the umask does not matter. A number is the whole mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChanges(Vec<Change>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    /// True for directories only, false for everything else only.
    is_for_dirs: Option<bool>,
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Set(u32),
    Symbolic { classes: Classes, operator: u8, value: Value },
}

/// The classes of users that a change applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Classes {
    user: bool,
    group: bool,
    others: bool,
    /// False without letters: then `t` applies, too.
    is_given: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// Bits `rwx` of one class, and if `X`, `s` and `t` are given.
    Bits { bits: u32, if_executable: bool, set_id: bool, sticky: bool },
    /// Copies the bits of a class, by the number of bits that it is shifted.
    CopyOf(u32),
}

impl ModeChanges {
    /// Parses changes.
    pub fn parse(text: &[u8]) -> Result<ModeChanges, RuleError> {
        let mut all = Vec::new();
        for item in text.split(|byte| *byte == b',') {
            parse_item(item, &mut all)?;
        }
        Ok(ModeChanges(all))
    }

    /// Returns true if a change concerns directories, or everything else.
    pub(super) fn concerns(&self, is_dir: bool) -> bool {
        self.0.iter().any(|change| change.is_for_dirs.is_none_or(|for_dirs| for_dirs == is_dir))
    }

    /// Returns the changed mode.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        self.0.iter().fold(mode, |mode, change| match change.is_for_dirs {
            Some(for_dirs) if for_dirs != is_dir => mode,
            _ => change.action.apply(mode, is_dir),
        })
    }
}

fn parse_item(item: &[u8], all: &mut Vec<Change>) -> Result<(), RuleError> {
    let wrong = || RuleError::Mode(display_path(item));
    let (is_for_dirs, rest) = match item.first() {
        Some(b'D') => (Some(true), &item[1..]),
        Some(b'F') => (Some(false), &item[1..]),
        _ => (None, item),
    };
    if rest.first().is_some_and(u8::is_ascii_digit) {
        let digits = std::str::from_utf8(rest).map_err(|_| wrong())?;
        let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= ALL);
        all.push(Change { is_for_dirs, action: Action::Set(mode.ok_or_else(wrong)?) });
        return Ok(());
    }
    let mut bytes = rest.iter().copied().peekable();
    let mut classes = Classes::default();
    while let Some(class) = bytes.next_if(|byte| b"ugoa".contains(byte)) {
        classes.user |= b"ua".contains(&class);
        classes.group |= b"ga".contains(&class);
        classes.others |= b"oa".contains(&class);
        classes.is_given = true;
    }
    if !classes.is_given {
        classes = Classes { user: true, group: true, others: true, is_given: false };
    }
    if bytes.peek().is_none() {
        return Err(wrong());
    }
    while let Some(operator) = bytes.next() {
        if !b"+-=".contains(&operator) {
            return Err(wrong());
        }
        let value = match bytes.next_if(|byte| b"ugo".contains(byte)) {
            Some(b'u') => Value::CopyOf(6),
            Some(b'g') => Value::CopyOf(3),
            Some(_) => Value::CopyOf(0),
            None => {
                let (mut bits, mut if_executable, mut set_id, mut sticky) =
                    (0, false, false, false);
                while let Some(letter) = bytes.next_if(|byte| b"rwxXst".contains(byte)) {
                    match letter {
                        b'r' => bits |= 4,
                        b'w' => bits |= 2,
                        b'x' => bits |= 1,
                        b'X' => if_executable = true,
                        b's' => set_id = true,
                        _ => sticky = true,
                    }
                }
                Value::Bits { bits, if_executable, set_id, sticky }
            }
        };
        all.push(Change { is_for_dirs, action: Action::Symbolic { classes, operator, value } });
    }
    Ok(())
}

impl Action {
    fn apply(self, mode: u32, is_dir: bool) -> u32 {
        let (classes, operator, value) = match self {
            Action::Set(mode) => return mode,
            Action::Symbolic { classes, operator, value } => (classes, operator, value),
        };
        let (class_bits, special) = match value {
            Value::CopyOf(shift) => (mode >> shift & 7, 0),
            Value::Bits { bits, if_executable, set_id, sticky } => {
                let is_executable = is_dir || mode & 0o111 != 0;
                let x = u32::from(if_executable && is_executable);
                let ids =
                    if classes.user { SETUID } else { 0 } | if classes.group { SETGID } else { 0 };
                let is_sticky = sticky && (classes.others || !classes.is_given);
                (bits | x, if set_id { ids } else { 0 } | if is_sticky { STICKY } else { 0 })
            }
        };
        let bits = classes.spread(class_bits) | special;
        match operator {
            b'+' => mode | bits,
            b'-' => mode & !bits,
            _ => mode & !classes.cleared(is_dir) | bits,
        }
    }
}

impl Classes {
    /// Returns the bits of one class for all of these.
    fn spread(self, bits: u32) -> u32 {
        let of = |is_given: bool, shift: u32| if is_given { bits << shift } else { 0 };
        of(self.user, 6) | of(self.group, 3) | of(self.others, 0)
    }

    /// Returns the bits that `=` clears. On directories it keeps setuid and setgid, as GNU chmod
    /// does.
    fn cleared(self, is_dir: bool) -> u32 {
        let of = |is_given: bool, bits: u32| if is_given { bits } else { 0 };
        let set_ids = of(self.user, SETUID) | of(self.group, SETGID);
        let sticky = of(self.others, STICKY);
        self.spread(7) | sticky | if is_dir { 0 } else { set_ids }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    fn changed(changes: &str, mode: u32, is_dir: bool) -> u32 {
        ModeChanges::parse(changes.as_bytes()).expect("changes").apply(mode, is_dir)
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "compares with the real chmod")]
    fn symbolic_changes_do_what_chmod_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, inner) = (dir.path().join("file"), dir.path().join("dir"));
        std::fs::write(&file, b"").expect("written");
        std::fs::create_dir(&inner).expect("made");
        let all = [
            "u+s",
            "g+s",
            "a+s",
            "a-s",
            "o+t",
            "a=rX",
            "g=u",
            "o=g",
            "u=rwx,g=rx,o=",
            "a+X",
            "ug+rwX",
            "o-rwx",
            "u=,g+w-x",
            "a=",
            "g=s",
            "ug=rwx,o+t",
            "u+x,a+X",
            "go-w+r",
            "o=u-w",
            "a-t",
            "g=rwxs",
            "ug+s,o-t",
            "uo=x",
        ];
        for changes in all {
            for mode in [0o644, 0o755, 0o4755, 0o2770, 0o1777, 0o600, 0o000, 0o7777, 0o2664] {
                for (path, is_dir) in [(&file, false), (&inner, true)] {
                    let permissions = std::fs::Permissions::from_mode(mode);
                    std::fs::set_permissions(path, permissions).expect("set");
                    let done = Command::new("chmod").arg(changes).arg(path).status();
                    assert!(done.expect("chmod runs").success());
                    let wanted = path.metadata().expect("is there").permissions().mode() & ALL;
                    let found = changed(changes, mode, is_dir);
                    assert_eq!(found, wanted, "{changes} of {mode:04o}, directory: {is_dir}");
                }
            }
        }
    }

    #[test]
    fn changes_may_concern_directories_or_the_rest() {
        assert_eq!(changed("D+s,o-rwx", 0o755, true), 0o6750);
        assert_eq!(changed("Dg+s,o-rwx", 0o755, true), 0o2750);
        assert_eq!(changed("Dg+s,o-rwx", 0o755, false), 0o750);
        assert_eq!(changed("D2770,F0640", 0o755, true), 0o2770);
        assert_eq!(changed("D2770,F0640", 0o755, false), 0o640);
        assert_eq!(changed("+x", 0o600, false), 0o711);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "rw", "u", "u+rwz", "99", "D", "u+x,", "17777", "u+x g+x", "z+x", "+u+"] {
            let is_valid = ModeChanges::parse(text.as_bytes()).is_ok();
            assert!(!is_valid || text == "+u+", "{text}");
        }
    }
}
