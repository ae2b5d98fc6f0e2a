//! Faults of rules.

use super::accounts::Class;

/// Fault of a rule for owners or modes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A line in brackets is not a section.
    #[error("a section has the form [path \"GLOB\"] or [exact \"GLOB\"]")]
    Section,
    /// A line begins with another word.
    #[error("a line begins with user, group, mode, acl, default-acl or [path")]
    Word,
    /// A line lacks its arrow.
    #[error("a rule has the form `{} FROM -> TO`", .0.word())]
    NoArrow(Class),
    /// An item of a list lacks its colon.
    #[error("a rule has the form FROM:TO")]
    NoColon,
    /// The target of a rule is empty.
    #[error("it has no target; write a name, a number or +NUMBER after it")]
    NoTarget,
    /// `+` without a number.
    #[error("a number belongs after +")]
    NoShift,
    /// A shift of something else than numbers.
    #[error("+NUMBER needs a number or a range LOW-HIGH before it")]
    NoRange,
    /// A range ends before it begins.
    #[error("the range ends before it begins")]
    EmptyRange,
    /// A number, or the end of a moved range, is too large.
    #[error("{0} exceeds the largest number {max}", max = u32::MAX - 1)]
    TooLarge(String),
    /// No account of the target exists.
    #[error("{} {name} does not exist", class.word())]
    Unknown {
        /// User or group.
        class: Class,
        /// Name, or names separated by `/`.
        name: String,
    },
    /// An owner without a name.
    #[error("it names neither a user nor a group")]
    NoOwner,
    /// A change of a mode is malformed.
    #[error("`{0}` is not a change of a mode, such as u=rwX, g-w, D+s or F0640")]
    Mode(String),
    /// An access list is malformed.
    #[error("`{0}` is not an access list, such as u::rw-,u:7:r--,g::r--,m::r--,o::---")]
    Acl(String),
    /// An access list holds for all paths.
    #[error("an access list belongs below a section [path \"GLOB\"] or [exact \"GLOB\"]")]
    AclOfAll,
    /// A section sets the same access list twice.
    #[error("the section sets this access list twice")]
    TwoAcls,
    /// A section changes modes twice.
    #[error("the section has two lines for modes")]
    TwoModes,
    /// The pattern of a name is malformed.
    #[error("{0}")]
    Pattern(String),
    /// The directory of accounts does not answer.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// A name could not be looked up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot look up {} {name}: {reason}", class.word())]
pub struct LookupError {
    /// User or group.
    pub class: Class,
    /// The name.
    pub name: String,
    /// Error of the system.
    pub reason: nix::Error,
}
