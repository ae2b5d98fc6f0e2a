//! What several test modules need.

pub mod sandbox;
pub mod tree;
