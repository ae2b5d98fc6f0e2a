use super::Global;
use super::instance::ConfigFile;
use crate::exit::Failure;
use crate::report::count;
use crate::ui::Ui;
use clap::{Args, Subcommand};
use forge::kind::Site;
use forge::plan::Plan;
use forge::service::Reach;
use forge::service::control::Control;
use serde_json::json;
use store::observe::Progress;

/// Look at the configuration
#[derive(Debug, Subcommand)]
pub enum Config {
    Check(Check),
}

impl Config {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        match self {
            Config::Check(check) => check.run(global, ui),
        }
    }
}

/// Say what a backup of each instance would do
///
/// Everything is resolved: paths, services, commands, users. Nothing is stopped or copied.
///
/// Example: forgekeep config check --instance gitlab
#[derive(Debug, Args)]
pub struct Check {
    /// Only this instance
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Check {
    fn run(&self, _: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = self.config.read()?;
        let progress = Progress::default();
        let mut missing = 0;
        if let Some(name) = &self.instance {
            config.instance(name)?;
        }
        for (instance, settings) in &config.instances {
            if self.instance.as_ref().is_some_and(|wanted| wanted != instance) {
                continue;
            }
            let (plan, kind) =
                forge::kind::plan(&Site { instance, settings, progress: &progress })?;
            ui.line(format!("{instance}: {}, {}", kind.title(), version(&plan)))?;
            if let Some(place) = config.store_of(instance, settings)? {
                ui.line(format!("  store         {}", place.display()))?;
            }
            missing += show(ui, &plan, &progress)?;
        }
        match missing {
            0 => Ok(()),
            missing => {
                ui.warn(&format!(
                    "{} not there: a backup would not be complete",
                    count(missing, "needed part")
                ));
                Err(Failure::Partial)
            }
        }
    }
}

fn version(plan: &Plan) -> String {
    let known = [plan.product.version.as_deref(), plan.product.edition.as_deref()];
    let known: Vec<&str> = known.into_iter().flatten().collect();
    if known.is_empty() { "version unknown".into() } else { known.join(" ") }
}

/// Where the clients of a service run, if that is not here.
fn container(reach: &Reach) -> String {
    reach.into.last().map_or_else(String::new, |name| format!(" in container {name}"))
}

/// Prints a plan; returns how many parts are needed and not there.
fn show(ui: &Ui, plan: &Plan, progress: &Progress) -> Result<u64, Failure> {
    let mut missing = 0;
    ui.line(format!("  mode          {}", plan.mode.name()))?;
    for part in &plan.parts {
        let is_there = part.paths.iter().any(|path| path.exists());
        let state = match (is_there, part.is_required) {
            (true, _) => "",
            (false, true) => "  NOT THERE",
            (false, false) => "  (not there; not needed)",
        };
        missing += u64::from(!is_there && part.is_required);
        let paths: Vec<String> = part.paths.iter().map(|path| path.display().to_string()).collect();
        ui.line(format!("  {:13} {}{state}  — {}", part.name, paths.join(" "), part.about))?;
        ui.json("part", json!({"instance": plan.instance, "part": part, "is_there": is_there}))?;
    }
    for absent in &plan.lacking {
        let state = if absent.is_required { "NOT THERE" } else { "(not there; not needed)" };
        missing += u64::from(absent.is_required);
        ui.line(format!("  {:13} {state}  — {}", absent.part, absent.looked_for))?;
        ui.json("missing_part", json!({"instance": plan.instance, "missing": absent}))?;
    }
    if let Some(server) = &plan.postgres {
        let user = server.reach.user.as_deref().unwrap_or("root");
        let host = server.host.as_deref().unwrap_or("the default socket");
        let container = container(&server.reach);
        ui.line(format!(
            "  postgres      {host} port {}, clients run as {user}{container}",
            server.port
        ))?;
        for database in &plan.databases {
            let needed = if database.is_required { "" } else { "  (not needed)" };
            ui.line(format!("  {:13} {}{needed}", database.part(), database.name))?;
        }
    }
    if let Some(redis) = &plan.redis {
        let place = match (&redis.socket, &redis.host) {
            (Some(socket), _) => socket.display().to_string(),
            (None, Some(host)) => host.clone(),
            (None, None) => "its default address".into(),
        };
        let container = container(&redis.reach);
        let limit = redis.limit.as_secs();
        ui.line(format!("  redis         {place}{container}, saved within {limit} s"))?;
    }
    let services = match &plan.control {
        Control::Nothing => "none is stopped".to_owned(),
        Control::Supervised(supervisor) => format!(
            "{} by {}{}",
            supervisor.writers.join(", "),
            supervisor.program.join(" "),
            if plan.mode == forge::settings::Mode::Online {
                " (not stopped in this mode)"
            } else {
                ""
            }
        ),
        Control::Commands { stop, start } => {
            let shown = |steps: &[forge::plan::Step]| {
                steps.iter().map(|step| step.command.shown()).collect::<Vec<_>>().join("; ")
            };
            format!("stopped by {}; started by {}", shown(stop), shown(start))
        }
    };
    ui.line(format!("  services      {services}"))?;
    let running = plan.all_services(progress);
    if !running.is_empty() {
        ui.line(format!("  supervised    {}", running.join(", ")))?;
    }
    for (name, steps) in [("before", &plan.before), ("after", &plan.after)] {
        for step in steps {
            let user = step.command.user.as_deref().unwrap_or("root");
            ui.line(format!("  {name:13} {} as {user}", step.command.shown()))?;
        }
    }
    for left in &plan.left_out {
        ui.line(format!("  left out      {}  — {}", left.path.display(), left.reason))?;
        ui.json("left_out", json!({"instance": plan.instance, "left_out": left}))?;
    }
    for note in &plan.notes {
        ui.warn(note);
    }
    Ok(missing)
}
