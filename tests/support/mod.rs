//! Support for several test modules.

pub mod accounts;
pub mod aftermath;
pub mod disk;
pub mod docker_gitlab;
pub mod gitlab;
pub mod gitlab_container;
pub mod instance;
pub mod json_lines;
pub mod lease;
pub mod listeners;
pub mod postgres;
pub mod redis;
pub mod runit;
pub mod sandbox;
mod self_test;
pub mod server;
pub mod stores;
pub mod strace;
pub mod tree;
pub mod trip;
pub mod zabbix;

/// Prints a figure of a lane; visible with `--nocapture`.
#[expect(clippy::print_stdout, reason = "figures that nobody asserts")]
pub fn show(figure: &str) {
    println!("{figure}");
}
