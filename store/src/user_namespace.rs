//! Users and groups that the user namespace of this process knows.
//!
//! Rootless containers know few. The kernel shows one number for all others.

use std::path::Path;
use std::sync::OnceLock;

/// Numbers of users or groups that a user namespace knows, as first numbers and counts.
#[derive(Debug)]
pub struct Numbers(Vec<(u32, u32)>);

impl Numbers {
    /// Returns the numbers 0 to `count` − 1.
    #[cfg(test)]
    pub fn first(count: u32) -> Numbers {
        Numbers(vec![(0, count)])
    }

    /// Number of users on a machine: the last number means no user.
    const ALL: u32 = u32::MAX;

    /// Reads a map of `/proc`. Without user namespaces there is none, and all numbers are known.
    pub fn read(path: &Path) -> Numbers {
        let map = std::fs::read_to_string(path).ok();
        map.as_deref().and_then(Numbers::parse).unwrap_or(Numbers(vec![(0, Numbers::ALL)]))
    }

    fn parse(map: &str) -> Option<Numbers> {
        let range = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
        };
        Some(Numbers(map.lines().map(range).collect::<Option<_>>()?))
    }

    /// Returns true if this number is known.
    pub fn has(&self, number: u32) -> bool {
        self.0.iter().any(|(first, count)| number >= *first && number - first < *count)
    }

    /// Returns true if all numbers are known.
    pub fn are_all(&self) -> bool {
        self.0.contains(&(0, Numbers::ALL))
    }
}

/// Returns true if the kernel may show this user or group instead of one that the namespace does not
/// know.
pub fn may_hide(owner: (u32, u32)) -> bool {
    /// Number for unknown users and for unknown groups; `None` if all are known.
    static SHOWN: OnceLock<[Option<u32>; 2]> = OnceLock::new();
    let shown = SHOWN.get_or_init(|| {
        [("uid", "overflowuid"), ("gid", "overflowgid")].map(|(what, number)| {
            let known = Numbers::read(Path::new(&format!("/proc/self/{what}_map")));
            let number = std::fs::read_to_string(format!("/proc/sys/kernel/{number}")).ok();
            let number = number.and_then(|number| number.trim().parse().ok()).unwrap_or(65534);
            (!known.are_all()).then_some(number)
        })
    });
    *shown != [None; 2] && (shown[0] == Some(owner.0) || shown[1] == Some(owner.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_the_kernel_prints_them() {
        let all = Numbers::parse("         0          0 4294967295\n").expect("a map");
        assert!(all.are_all() && all.has(65534));
        let some = Numbers::parse("0 1000 1\n1 100000 65536\n").expect("a map");
        assert!(!some.are_all() && some.has(65536) && !some.has(65537));
        assert!(Numbers::parse("x 0 1").is_none());
    }
}
