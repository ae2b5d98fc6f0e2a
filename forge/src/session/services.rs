//! Services that do not run, and work that earlier runs left undone.

use crate::check::{Check, Verdict};
use crate::error::Result;
use crate::plan::Plan;
use store::observe::Progress;

/// Work that earlier runs on this machine left undone.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Steps that a killed run did not undo, for people.
    pub steps: Vec<String>,
    /// Id of the snapshot from which a rebuild has not restored everything.
    pub rebuild: Option<String>,
}

/// Names services that a backup stops and that do not run now, with the commands that start them.
/// `None` if there are none, or if no supervisor can be asked.
pub fn services(
    plan: &Plan,
    unfinished: &Unfinished,
    progress: &Progress,
) -> Result<Option<Check>> {
    let supervisor = plan.control.supervisor();
    let stopped = match supervisor.map(|supervisor| supervisor.stopped(progress)) {
        Some(Err(error)) if error.is_interrupted() => return Err(error),
        // A restored tree has none that answers.
        Some(Err(_)) | None => Vec::new(),
        Some(Ok(stopped)) => stopped,
    };
    let names: Vec<&str> = stopped.iter().map(|service| service.name.as_str()).collect();
    let texts = [
        (!names.is_empty()).then(|| format!("not running: {}", names.join(", "))),
        (!unfinished.steps.is_empty())
            .then(|| format!("a killed run has not done this: {}", unfinished.steps.join(", "))),
        unfinished.rebuild.as_ref().map(|id| {
            format!("the rebuild from snapshot {} has not finished", &id[..id.len().min(8)])
        }),
    ];
    let texts: Vec<String> = texts.into_iter().flatten().collect();
    if texts.is_empty() {
        return Ok(None);
    }
    let name = &plan.instance;
    let hint = if unfinished.rebuild.is_some() {
        format!("run `forgekeep rebuild {name}` to its end")
    } else if !unfinished.steps.is_empty() {
        format!("`forgekeep recover --instance {name}` does it")
    } else {
        // Those before the last one only wait for the end of a stop.
        let commands = stopped.iter().filter_map(|service| service.start.last());
        let commands: Vec<String> =
            commands.map(|command| format!("`{}`", command.shown())).collect();
        format!("to start them: {}", commands.join(", "))
    };
    let check = Check::new("services", Verdict::Warning, texts.join("; "));
    Ok(Some(check.with_hint(hint).settled()))
}
