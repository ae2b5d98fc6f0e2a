//! Commands of the admin.

use crate::process::Command;
use crate::settings::{OnFailure, StepSettings};
use std::time::Duration;

/// A command of the admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The command to run.
    pub command: Command,
    /// Effect of a failure.
    pub on_failure: OnFailure,
}

impl Step {
    /// Makes a step from the settings.
    pub fn of(settings: &StepSettings) -> Step {
        let limit = settings.limit.map_or(Duration::from_secs(60), |limit| limit.0);
        let command =
            Command::new(settings.command.clone()).by(settings.user.as_deref()).within(limit);
        Step { command, on_failure: settings.on_failure }
    }
}
