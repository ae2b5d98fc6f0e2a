//! Stores directory trees as snapshots.
//!
//! A store keeps trees in immutable segments of chunks. Each chunk is named by the hash of its
//! content. Modules are declared in dependency order: each uses only modules above it.

pub mod id;
pub mod limits;

mod access;
mod counting_sort;
mod text;

pub mod mount;
mod protocol;
pub mod random;

pub mod error;
pub mod observe;

pub mod threads;

pub mod chunks;

pub mod codec;
pub mod segment;

pub mod backend;
pub mod features;

pub mod workspace;

pub mod config;

pub mod recipe;

pub mod acl;
pub mod entry;

pub mod snapshot;

pub mod retention;

pub mod index;
pub mod lock;

pub mod glob;

pub mod owner_map;

pub mod content;

pub mod tree;

pub mod damage;

mod salvage;

pub mod presence;

pub mod condemned;
pub mod sessions;

pub mod store;

pub mod records;

pub mod annotations;

pub mod check_record;

pub mod forget;

pub mod packer;

mod reach;

mod unfinished;

pub mod skipped;

mod user_namespace;

pub mod source;

pub mod reuse;

pub mod git;

pub mod walk;

pub mod diff;
pub mod find;

pub mod backup;

mod target;

pub mod restore;

pub mod dump;

pub mod check;

pub mod prune;

#[cfg(test)]
mod arbitrary;

pub use error::{Error, Result};
