use super::instance::{self, ConfigFile};
use crate::exit::Failure;
use crate::report::count;
use crate::telling::Telling;
use crate::ui::Ui;
use clap::Args;
use forge::recovery::Record;
use serde_json::json;

/// Start again what a killed backup left stopped
///
/// A backup that stops services keeps on disk how to start them. The next backup of the
/// instance does what was left to do; this does it at once.
///
/// Example: forgekeep recover
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Recover {
    /// Only this instance
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Recover {
    pub fn run(&self, ui: &Ui) -> Result<(), Failure> {
        let config = self.config.read()?;
        let mut names = Record::instances(&config.state)?;
        names.retain(|name| self.instance.as_ref().is_none_or(|wanted| wanted == name));
        ui.hold();
        let host = instance::host();
        let watch = ui.watch("recover");
        let mut done = 0;
        let result: Result<(), Failure> = names.iter().try_for_each(|name| {
            let mut record = Record::open(&config.state, name)?;
            let telling = Telling::new(ui, &config, name, &host)?.at_once();
            done += instance::recover(&mut record, &telling, &*watch)?;
            Ok(())
        });
        watch.end();
        ui.json("recovered", json!({"instances": names, "steps": done}))?;
        result?;
        ui.line(match done {
            0 => "nothing was left to do".to_owned(),
            done => format!("did {}", count(done as u64, "step")),
        })
    }
}
