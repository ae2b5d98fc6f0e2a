//! Users and groups of this machine.

use super::error::LookupError;
use nix::unistd::{Gid, Group, Uid, User};
use std::fmt::Debug;

/// Sort of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A user.
    User,
    /// A group.
    Group,
}

impl Class {
    /// Returns the word for messages and files of rules.
    pub fn word(self) -> &'static str {
        match self {
            Class::User => "user",
            Class::Group => "group",
        }
    }
}

/// Looks up users and groups.
pub trait Accounts: Debug + Send + Sync {
    /// Returns the number of a name; `None` if it does not exist.
    fn number(&self, class: Class, name: &[u8]) -> Result<Option<u32>, LookupError>;

    /// Returns the name of a number, if it has one.
    fn name(&self, class: Class, number: u32) -> Option<Vec<u8>>;
}

/// Accounts that this machine knows, from files or a directory service.
#[derive(Debug, Clone, Copy)]
pub struct SystemAccounts;

impl Accounts for SystemAccounts {
    fn number(&self, class: Class, name: &[u8]) -> Result<Option<u32>, LookupError> {
        let Ok(text) = std::str::from_utf8(name) else { return Ok(None) };
        let found = match class {
            Class::User => User::from_name(text).map(|user| user.map(|user| user.uid.as_raw())),
            Class::Group => {
                Group::from_name(text).map(|group| group.map(|group| group.gid.as_raw()))
            }
        };
        found.or_else(|error| match is_unknown(error) {
            true => Ok(None),
            false => Err(LookupError { class, name: text.into(), reason: error }),
        })
    }

    fn name(&self, class: Class, number: u32) -> Option<Vec<u8>> {
        name_of(class, number).ok().flatten()
    }
}

/// Returns the name of a number on this machine; `None` if it has none.
pub(crate) fn name_of(class: Class, number: u32) -> nix::Result<Option<Vec<u8>>> {
    let found = match class {
        Class::User => User::from_uid(Uid::from_raw(number)).map(|user| user.map(|user| user.name)),
        Class::Group => {
            Group::from_gid(Gid::from_raw(number)).map(|group| group.map(|group| group.name))
        }
    };
    match found {
        Err(error) if is_unknown(error) => Ok(None),
        found => Ok(found?.map(String::into_bytes)),
    }
}

/// Returns true for the errors that getpwnam(3) lists for a name or number that does not exist.
fn is_unknown(error: nix::Error) -> bool {
    use nix::errno::Errno::{EBADF, ENOENT, EPERM, ESRCH};
    matches!(error, ENOENT | ESRCH | EBADF | EPERM)
}
