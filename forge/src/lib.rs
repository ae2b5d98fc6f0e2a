//! What a running service consists of, how it is copied consistently and how it comes
//! back.
//!
//! ```text
//! settings ─▶ kind ─▶ plan ─▶ session ─▶ snapshot
//! ```
//!
//! Settings say what the admin wants, a kind knows what a product consists of, and both
//! make a plan, in which everything is resolved and nothing done. The session carries it
//! out. Modules stand in the order of their dependencies, apart from those of the plan,
//! which name each other.

pub mod error;
pub mod file;
pub mod links;
pub mod nearest;
pub mod run;

pub mod secret;
pub mod settings;

pub mod service;

pub mod plan;

pub mod check;
pub mod copy;
mod owners;

pub mod encrypted;

pub mod catalogue;
mod fit;

pub mod kind;
mod overrides;

pub mod recovery;

pub mod session;

pub use error::{Error, Result};
