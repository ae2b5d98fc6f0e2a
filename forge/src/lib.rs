//! Describes a running service: its parts, its consistent copy and its restore.
//!
//! ```text
//! settings ─▶ kind ─▶ plan ─▶ session ─▶ snapshot
//! ```
//!
//! Settings hold the admin's choices; a kind knows the parts of a product. Both make a plan, in
//! which everything is resolved and nothing is done. The session carries the plan out. Each module
//! uses only modules that are listed before it.

pub mod mask;

pub mod error;
pub mod file;
pub mod links;
pub mod mounts;
mod private_dir;
pub mod process;
pub mod set_aside;
pub mod sshd;
pub mod suggest;

pub mod secret;
pub mod settings;

pub mod view;

pub mod service;

pub mod plan;

pub mod check;
pub mod owners;

pub mod manifest;

pub mod encrypted;

pub mod catalogue;
mod coverage;
pub mod earlier;

pub mod kind;

pub mod overrides;

pub mod drill;

pub mod recovery;

pub mod session;

pub mod rebuild;

pub use error::{Error, Result};
