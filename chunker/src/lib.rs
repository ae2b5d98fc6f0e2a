//! Bytes in, pieces out.
//!
//! This crate knows where a run of bytes is cut into chunks so that the same
//! content gives the same chunks wherever it stands. It reads no files, names
//! no chunks and knows nothing of stores; that is the crate above.

pub mod cdc;
pub mod parallel;

pub mod delta;

pub use cdc::{Cutter, ParameterError, Parameters};
pub use parallel::cut_parallel;
