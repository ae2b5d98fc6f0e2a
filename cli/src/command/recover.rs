use super::{Global, instance};
use crate::config::Config;
use crate::exit::Failure;
use crate::json::{Forgotten, Recovered};
use crate::notifications::Notifications;
use crate::report::count;
use crate::run_id::RunId;
use crate::ui::Ui;
use clap::Args;
use forge::recovery::Record;

/// Restart services that a killed backup left stopped
///
/// A backup that stops services first records on disk how to start them. The next backup of the
/// instance finishes those steps. This command does it at once for all instances, even if one of
/// them fails. It needs no valid configuration, but finds only records in the state directory.
///
/// --forget drops the steps of the instance that --instance names, and prints them. Use it for steps
/// that have become impossible, such as starting a service that no longer exists.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep recover
  forgekeep recover --forget --instance gitlab")]
pub struct Recover {
    /// Only this instance
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Drop the unfinished steps without doing them; needs --instance
    #[arg(long, requires = "instance")]
    forget: bool,
}

impl Recover {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let (config, unread) = global.config.for_recovery();
        let mut names = Record::instances(&config.state)?;
        if let Some(failure) = unread {
            let is_wanted =
                |name: &String| self.instance.as_ref().is_none_or(|known| known == name);
            if !names.iter().any(is_wanted) {
                // The records may be in another directory.
                return Err(failure);
            }
            // The record has all that is needed to start services.
            if let Some((message, _)) = failure.words() {
                ui.warn(&format!("{message}; recovering without it"));
            }
        }
        if let Some(instance) = &self.instance
            && !names.contains(instance)
        {
            // An instance that was removed from the configuration may still have a record.
            config.instance(instance)?;
        }
        if let (true, Some(instance)) = (self.forget, &self.instance) {
            return forget(&config, instance, ui);
        }
        names.retain(|name| self.instance.as_ref().is_none_or(|wanted| wanted == name));
        ui.hold();
        let host = instance::host();
        let watch = ui.watch("recover");
        let (mut steps, mut done, mut failed) = (0, Vec::new(), Vec::new());
        for name in &names {
            let recover = || {
                let mut record = Record::open(&config.state, name)?;
                let notifications = Notifications::new(ui, &config, name, &host, RunId::random()?);
                let recover = || instance::recover(&mut record, &notifications, &*watch);
                let steps = notifications.at_once(recover)?;
                // Only silences that could not be ended remain, and a warning was printed.
                if record.left().is_empty() { Ok(steps) } else { Err(Failure::Partial) }
            };
            match recover() {
                Ok(0) => {}
                Ok(some) => {
                    steps += some;
                    done.push(name);
                }
                Err(failure) => failed.push((name, failure)),
            }
        }
        watch.end();
        // The worst failure is printed last, as the result of the command.
        failed.sort_by_key(|(_, failure)| std::cmp::Reverse(rank(failure)));
        let worst = (!failed.is_empty()).then(|| failed.remove(0).1);
        for (name, failure) in &failed {
            let Some((message, hint)) = failure.words() else { continue };
            ui.warn(&format!("{name}: {message}"));
            if let Some(hint) = hint {
                ui.warn(&format!("  {hint}"));
            }
        }
        ui.json(&Recovered { instances: &done, steps })?;
        if steps > 0 {
            ui.line(format!("completed {}", count(steps as u64, "step")))?;
        }
        match worst {
            Some(failure) => Err(failure),
            None if steps == 0 => ui.line("nothing to recover"),
            None => Ok(()),
        }
    }
}

/// Severity of a failure: lowest if another process does the work, highest if services may be down.
fn rank(failure: &Failure) -> u8 {
    match failure {
        Failure::Forge(forge::Error::Busy(_)) => 0,
        Failure::Partial => 1,
        _ => 2,
    }
}

/// Drops the record of steps that can no longer be done, and prints them.
fn forget(config: &Config, instance: &str, ui: &Ui) -> Result<(), Failure> {
    let mut dropped = Vec::new();
    let was_any = Record::forget(&config.state, instance, &mut |what| {
        ui.explain(&format!("{instance}: dropping an unfinished step: {what}"));
        dropped.push(what.to_owned());
    })?;
    ui.json(&Forgotten { instance, dropped: &dropped })?;
    ui.line(if was_any { "dropped" } else { "nothing to drop" })
}
