//! Splits bytes into chunks.
//!
//! This crate decides where to cut a run of bytes, so that equal content gives equal chunks at any
//! offset. `cdc` cuts by content. `delta` cuts by format: it finds the bytes that a new version of
//! a file has in common with an old one. The crate reads no files, names no chunks and does not know the store; those belong to the
//! crate above.

pub mod cdc;
pub mod parallel;

pub mod delta;

pub use cdc::{Cutter, ParameterError, Parameters};
pub use parallel::cut_parallel;
