//! The rules by which backups and prunes spare each other's data.
//!
//! `docs/architecture.md` gives the reasons. All rules are always kept, except in tests that show what
//! goes wrong without one of them.

/// A rule of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// A backup writes its marker before anything else.
    Marker,
    /// It lists the condemnations before it looks for segments.
    CondemnedFirst,
    /// It relies on a segment only after it saw the segment exist.
    Existence,
    /// It looks up the chunk if there is any condemnation.
    LookUpWhenCondemned,
    /// It relies on a parent as a whole only if the backup of that one succeeded.
    WholeParent,
    /// The announcement comes before the record.
    AnnounceFirst,
    /// It looks for a fence at its end.
    FenceCheck,
    /// It looks for its marker at its end.
    MarkerCheck,
    /// It looks for the fence first, and then for the marker.
    FenceBeforeMarker,
    /// A prune condemns segments before it deletes them.
    Condemn,
    /// It lists the condemnations of other prunes.
    OtherCondemnations,
    /// It waits for sessions.
    Wait,
    /// It fences sessions that it does not wait for.
    Fence,
    /// It lists the snapshots again after that.
    SecondSnapshots,
    /// Announced snapshots have needs.
    AnnouncedNeeds,
    /// Segments are deleted before the condemnation is withdrawn.
    DeletedFirst,
    /// An accepted snapshot needs a segment that is not condemned.
    AcceptUncondemned,
    /// The condemnations for that are listed after the snapshot was.
    CondemnedAfterSnapshot,
    /// Markers are cleared away before the fence.
    MarkerBeforeFence,
}

/// Returns true if a rule is kept.
#[cfg(not(test))]
#[inline(always)]
pub fn is_kept(_: Rule) -> bool {
    true
}

#[cfg(test)]
pub use scheduled::{Actor, actor, is_kept, set_actor};

/// All rules.
#[cfg(test)]
pub const RULES: [Rule; 19] = [
    Rule::Marker,
    Rule::CondemnedFirst,
    Rule::Existence,
    Rule::LookUpWhenCondemned,
    Rule::WholeParent,
    Rule::AnnounceFirst,
    Rule::FenceCheck,
    Rule::MarkerCheck,
    Rule::FenceBeforeMarker,
    Rule::Condemn,
    Rule::OtherCondemnations,
    Rule::Wait,
    Rule::Fence,
    Rule::SecondSnapshots,
    Rule::AnnouncedNeeds,
    Rule::DeletedFirst,
    Rule::AcceptUncondemned,
    Rule::CondemnedAfterSnapshot,
    Rule::MarkerBeforeFence,
];

/// Threads whose steps a test schedules.
#[cfg(test)]
mod scheduled {
    use super::Rule;
    use std::cell::RefCell;
    use std::sync::Arc;

    /// Decisions of a test about an operation, in all of its threads.
    pub trait Actor: Send + Sync {
        /// Returns true if the operation keeps a rule.
        fn is_kept(&self, rule: Rule) -> bool;

        /// Fills `bytes` with random bytes that depend only on the schedule.
        fn fill(&self, bytes: &mut [u8]);

        /// Returns true if a silent session counts as dead.
        fn presumes_dead(&self) -> bool;

        /// Returns whether the writer of an object still runs, or `None` if it ran elsewhere.
        fn runs(&self, name: &str) -> Option<bool>;
    }

    thread_local! {
        static ACTOR: RefCell<Option<Arc<dyn Actor>>> = const { RefCell::new(None) };
    }

    /// Returns the actor of this thread.
    pub fn actor() -> Option<Arc<dyn Actor>> {
        ACTOR.with_borrow(Clone::clone)
    }

    /// Sets the actor of this thread.
    pub fn set_actor(actor: Option<Arc<dyn Actor>>) {
        ACTOR.set(actor);
    }

    pub fn is_kept(rule: Rule) -> bool {
        actor().is_none_or(|actor| actor.is_kept(rule))
    }
}
