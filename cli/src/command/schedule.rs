use super::instance::ConfigFile;
use crate::exit::{Failure, other, with_hint};
use crate::ui::Ui;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write what runs a backup every night: units of systemd, or a line of cron
///
/// Without a directory they are printed. A killed backup has its services started again by
/// the unit, too; under cron the next run or `forgekeep recover` does it.
///
/// Examples:
///   forgekeep schedule --instance gitlab --write /etc/systemd/system
///   forgekeep schedule --instance gitlab --for cron --at 03:30 --write /etc/cron.d
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Schedule {
    /// Back up this instance
    #[arg(long, value_name = "NAME")]
    instance: String,
    /// What runs it
    #[arg(long = "for", value_enum, value_name = "WHAT", default_value_t = Runner::Systemd)]
    runner: Runner,
    /// When, every day, in the time of this machine
    #[arg(long, value_name = "HH:MM", default_value = "02:00", value_parser = time)]
    at: (u8, u8),
    /// Write the files into this directory
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

/// What runs backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Runner {
    /// A service and a timer
    Systemd,
    /// A line with a user, as in /etc/cron.d
    Cron,
}

fn time(text: &str) -> Result<(u8, u8), String> {
    let wrong = || "a time like 02:00 is needed".to_owned();
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    match (hour.parse(), minute.parse()) {
        (Ok(hour @ 0..24), Ok(minute @ 0..60)) => Ok((hour, minute)),
        _ => Err(wrong()),
    }
}

impl Schedule {
    pub fn run(&self, ui: &Ui) -> Result<(), Failure> {
        let config = self.config.read()?;
        let settings = config.instance(&self.instance)?;
        let store = config.store_of(&self.instance, settings)?;
        let program = std::env::current_exe()
            .map_err(|error| other(format!("it is not known where this program is: {error}")))?;
        let command =
            Command { program: &program, config: self.config.path(), instance: &self.instance };
        let files = match self.runner {
            Runner::Systemd => {
                let service = service(&command, &config.state, store)?;
                let name = format!("forgekeep-{}", self.instance);
                vec![
                    (format!("{name}.service"), service),
                    (format!("{name}.timer"), timer(&self.instance, self.at)),
                ]
            }
            Runner::Cron => {
                // Cron passes over files with a dot in their name.
                let name = format!("forgekeep-{}", self.instance.replace('.', "_"));
                vec![(name, cron(&command, self.at)?)]
            }
        };
        for (name, text) in &files {
            match &self.write {
                Some(dir) => {
                    let path = dir.join(name);
                    forge::file::replace(&path, 0o644, text.as_bytes())?;
                    ui.json("written", json!({"path": path.display().to_string()}))?;
                    ui.line(format!("wrote {}", path.display()))?;
                }
                None => {
                    ui.json("file", json!({"name": name, "text": text}))?;
                    ui.line(format!("# {name}\n{text}"))?;
                }
            }
        }
        if self.write.is_some() && self.runner == Runner::Systemd {
            ui.remark(format!(
                "now run: systemctl daemon-reload && systemctl enable --now forgekeep-{}.timer",
                self.instance
            ))?;
        }
        Ok(())
    }
}

/// What is run.
struct Command<'a> {
    program: &'a Path,
    config: &'a Path,
    instance: &'a str,
}

impl Command<'_> {
    /// Words, each quoted where `quote` says so.
    fn line(
        &self,
        words: &[&str],
        quote: fn(&str) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let config = std::path::absolute(self.config)
            .map_err(|error| other(format!("{}: {error}", self.config.display())))?;
        let program = self.program.display().to_string();
        let config = config.display().to_string();
        let own = ["--instance", self.instance, "--config", &config];
        let all = std::iter::once(&program[..]).chain(words.iter().copied()).chain(own);
        Ok(all.map(quote).collect::<Result<Vec<_>, _>>()?.join(" "))
    }
}

/// A word for a unit file.
fn for_systemd(word: &str) -> Result<String, Failure> {
    let escaped =
        word.replace('\\', r"\\").replace('%', "%%").replace('$', "$$").replace('"', "\\\"");
    let is_plain = !word.contains(|c: char| c.is_whitespace() || c == '"' || c == '\'');
    Ok(if is_plain { escaped } else { format!("\"{escaped}\"") })
}

/// A word for a line of cron, which ends lines at `%` and knows no way to say it in files.
fn for_cron(word: &str) -> Result<String, Failure> {
    if word.contains(['%', '\n']) {
        let hint = "use paths without % or newlines, or units of systemd";
        return Err(with_hint(format!("cron cannot be told `{word}`"), hint));
    }
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:".contains(c));
    Ok(if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) })
}

fn service(command: &Command<'_>, state: &Path, store: Option<&Path>) -> Result<String, Failure> {
    let backup = command.line(&["--quiet", "backup"], for_systemd)?;
    let recover = command.line(&["--quiet", "recover"], for_systemd)?;
    let is_home =
        |path: &Path| ["/home", "/root", "/run/user"].iter().any(|home| path.starts_with(home));
    let needs_home = is_home(state) || store.is_some_and(is_home);
    let home = if needs_home { "" } else { "ProtectHome=read-only\n" };
    Ok(format!(
        "[Unit]
Description=Backup of {instance}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={backup}
# What a killed backup left stopped.
ExecStopPost=-{recover}
# A backup takes as long as it takes. When it is told to stop, it first starts what it
# stopped, so only it is told, and gets the time to do it.
TimeoutStartSec=infinity
TimeoutStopSec=15min
KillMode=mixed
Nice=10
IOSchedulingClass=best-effort
IOSchedulingPriority=7
UMask=0077
# It reads everything as root, becomes other users and stops services: more than this
# cannot be taken from it.
NoNewPrivileges=yes
ProtectSystem=full
{home}ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
RestrictRealtime=yes
SystemCallArchitectures=native
",
        instance = command.instance
    ))
}

fn timer(instance: &str, (hour, minute): (u8, u8)) -> String {
    format!(
        "[Unit]
Description=Nightly backup of {instance}

[Timer]
OnCalendar=*-*-* {hour:02}:{minute:02}:00
RandomizedDelaySec=5min
# A night that was slept through is made up for.
Persistent=true

[Install]
WantedBy=timers.target
"
    )
}

fn cron(command: &Command<'_>, (hour, minute): (u8, u8)) -> Result<String, Failure> {
    let backup = command.line(&["--quiet", "backup"], for_cron)?;
    Ok(format!("# Nightly backup of {}\n{minute} {hour} * * * root {backup}\n", command.instance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_checked() {
        assert_eq!(time("03:30"), Ok((3, 30)));
        for wrong in ["24:00", "3", "03:60", "a:b", ""] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_survive() {
        let words =
            |word, quote: fn(&str) -> Result<String, Failure>| quote(word).expect("can be said");
        assert_eq!(words("/a/b", for_systemd), "/a/b");
        assert_eq!(words("/a b%$\"", for_systemd), "\"/a b%%$$\\\"\"");
        assert_eq!(words("/a b", for_cron), "'/a b'");
        assert!(for_cron("/a%b").is_err());
    }
}
