//! Directory trees for tests: one that holds everything a backup has to bring
//! back, a comparison that misses nothing of it, and a way to get rid of it.
//!
//! Nothing here goes through a path that could grow too long, nor follows a
//! symbolic link inside a tree: all of it works relative to open directories.
//!
//! The path attributes below let this file be included from any place, with
//! `mod tree;` as well as with `#[path = "…/tree.rs"] mod tree;`.

// Every test binary includes the whole module, and most use a part of it.
#![allow(dead_code, unused_imports)]

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

pub use build::{Expected, Skipped};
pub use compare::{Ignore, compare, compare_ignoring};
pub use everything::{Acl, DEFAULT, acl, build_everything, has_full_privileges};
pub use remove::make_writable_and_remove;
