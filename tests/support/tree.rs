//! Directory trees for tests: a tree with everything that a restore must reproduce, an exact
//! comparison, and complete removal.
//!
//! All functions work relative to open directories. They use no path that could become too long,
//! and follow no symbolic link inside a tree.
//!
//! The path attributes below allow including this file from any place, with `mod tree;` as well as
//! with `#[path = "…/tree.rs"] mod tree;`.

#[path = "tree/at.rs"]
mod at;
#[path = "tree/build.rs"]
mod build;
#[path = "tree/compare.rs"]
mod compare;
#[path = "tree/everything.rs"]
mod everything;
#[path = "tree/map.rs"]
mod map;
#[path = "tree/remove.rs"]
mod remove;
#[path = "tree/self_test.rs"]
mod self_test;

pub use build::Expected;
pub use compare::{Ignore, compare, compare_ignoring};
pub use everything::{Acl, DEFAULT, acl, build_everything, has_full_privileges};
pub use remove::make_writable_and_remove;
