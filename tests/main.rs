//! The one integration test binary.

/// Every command, end to end.
mod cli;
/// Kills, full disks, errors, locks and interrupts.
mod faults;
/// Everything a file system keeps comes back.
mod fidelity;
/// Live bare repositories.
mod live_git;
mod support;
