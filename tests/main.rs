//! The one integration test binary.

/// Kills, full disks, errors, locks and interrupts.
mod faults;
/// Live bare repositories.
mod live_git;
mod support;
