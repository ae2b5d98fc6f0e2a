//! Accounts of a container, as numbers of this machine.

use crate::error::Result;
use crate::process::Command;
use crate::process::QUESTION;
use std::collections::BTreeMap;
use store::observe::Progress;

/// Files of the container that name its accounts and map their numbers to this machine.
const FILES: [&str; 3] = ["/proc/self/uid_map", "/proc/self/gid_map", "/etc/passwd"];

/// Users of a running container.
#[derive(Debug, Default)]
pub struct Accounts {
    /// User and group by name, as numbers of the container.
    users: BTreeMap<String, (u32, u32)>,
    /// Ranges of user numbers.
    uids: Vec<Range>,
    /// Ranges of group numbers.
    gids: Vec<Range>,
}

/// Numbers of a container and the numbers that they are on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl Accounts {
    /// Asks a container. Returns `None` if it does not answer, for example because it is stopped.
    pub fn of(program: &[String], name: &str, progress: &Progress) -> Result<Option<Accounts>> {
        let words = program.iter().map(String::as_str).chain(["exec", name, "cat"]).chain(FILES);
        match Command::new(words).within(QUESTION).output(progress) {
            Ok(answer) => Ok(Some(Accounts::parse(&String::from_utf8_lossy(&answer)))),
            Err(error) if error.is_interrupted() => Err(error),
            Err(_) => Ok(None),
        }
    }

    pub(super) fn parse(text: &str) -> Accounts {
        let mut accounts = Accounts::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, uid, gid, ..] = fields[..]
                && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
            {
                accounts.users.insert(name.to_owned(), (uid, gid));
                continue;
            }
            let numbers: Vec<u32> =
                line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [inside, outside, count] = numbers[..] else { continue };
            let range = Range { inside, outside, count };
            // Each of the two maps begins with the container's root.
            if accounts.uids.is_empty() || (inside != 0 && accounts.gids.is_empty()) {
                accounts.uids.push(range);
            } else {
                accounts.gids.push(range);
            }
        }
        accounts
    }

    /// User and group of this machine, as in `998:998`; `None` if the container lacks the user.
    pub fn numbers(&self, name: &str) -> Option<String> {
        let (uid, gid) = self.users.get(name)?;
        Some(format!("{}:{}", outside(&self.uids, *uid)?, outside(&self.gids, *gid)?))
    }
}

fn outside(ranges: &[Range], number: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let at = number.checked_sub(range.inside).filter(|at| *at < range.count)?;
        range.outside.checked_add(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_of_a_container_are_numbers_of_this_machine() {
        let passwd = "root:x:0:0::/root:/bin/sh\ngit:x:998:997::/var/opt/gitlab:/bin/sh\nodd\n";
        let all = "         0          0 4294967295\n";
        let plain = Accounts::parse(&format!("{all}{all}{passwd}"));
        assert_eq!(plain.numbers("git").as_deref(), Some("998:997"));
        assert_eq!(plain.numbers("root").as_deref(), Some("0:0"));
        assert_eq!(plain.numbers("registry"), None);
        // A container without privileges, whose root is a user of this machine.
        let mapped = "0 1000 1\n1 100000 65536\n0 1001 1\n1 200000 65536\n";
        let mapped = Accounts::parse(&format!("{mapped}{passwd}"));
        assert_eq!(mapped.numbers("git").as_deref(), Some("100997:200996"));
        assert_eq!(mapped.numbers("root").as_deref(), Some("1000:1001"));
        assert_eq!(Accounts::parse(passwd).numbers("git"), None);
    }
}
