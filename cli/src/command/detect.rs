use crate::exit::Failure;
use crate::json::Detected;
use crate::ui::Ui;
use clap::Args;
use std::path::PathBuf;

/// Find instances on this machine and propose a configuration
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  forgekeep detect > /etc/forgekeep.toml")]
pub struct Detect {
    /// Search below this directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Setups that no kind backs up.
const NOT_COVERED: &str = "\n# Not covered: GitLab from the Helm chart, Gitaly Cluster (Praefect), \
                           Geo,\n# and files that a forge keeps in an object store.";

impl Detect {
    pub fn run(&self, ui: &Ui) -> Result<(), Failure> {
        let mut found = 0;
        // The proposed root must be absolute, because the configuration is read from any directory.
        let root = std::path::absolute(&self.root)
            .map_err(|source| forge::Error::Read { path: self.root.clone(), source })?;
        ui.lines("# The store. Choose another disk, or better another machine.")?;
        ui.lines("[stores.main]\npath = \"/srv/backup/forgekeep\"")?;
        for kind in forge::kind::KINDS {
            let Some(seen) = kind.detect(&root) else { continue };
            found += 1;
            let (name, title) = (kind.name(), kind.title());
            ui.json(&Detected { kind: name, title, seen: &seen })?;
            ui.lines("")?;
            ui.line(format!("# {title}: found {seen}"))?;
            ui.lines(format!("[instances.{name}]\nkind = \"{name}\""))?;
            if root != *"/" {
                // Quoted as TOML quotes it, whatever is in the path.
                let quoted = toml::Value::from(root.display().to_string());
                ui.lines(format!("root = {quoted}"))?;
            }
            for line in kind.propose(&root) {
                // A line break in a path must not end a comment.
                if line.starts_with('#') { ui.line(line)? } else { ui.lines(line)? }
            }
        }
        if found == 0 {
            ui.lines("\n# Found no known product. Any directories can be an instance:")?;
            ui.lines("# [instances.files]\n# kind = \"plain\"\n# [instances.files.parts.data]\n# path = \"/srv/data\"")?;
        }
        ui.lines(NOT_COVERED)?;
        Ok(())
    }
}
