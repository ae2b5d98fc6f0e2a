//! What several test modules need.

pub mod sandbox;
pub mod stores;
pub mod tree;
