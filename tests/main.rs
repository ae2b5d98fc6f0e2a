//! The one integration test binary.

/// Live bare repositories.
mod live_git;
mod support;
