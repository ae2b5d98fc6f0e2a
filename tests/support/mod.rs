//! What several test modules need.

// Not every module uses every part.
#![allow(dead_code)]

pub mod accounts;
pub mod gitlab;
pub mod instance;
pub mod postgres;
pub mod redis;
pub mod runit;
pub mod sandbox;
mod self_test;
pub mod server;
pub mod stores;
pub mod tree;
