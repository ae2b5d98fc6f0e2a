use super::Global;
use super::instance;
use crate::config::Config;
use crate::exit::{Failure, other, with_hint};
use crate::json::{GeneratedFile, WrittenFile};
use crate::preflight;
use crate::report::path_text;
use crate::ui::Ui;
use clap::{Args, ValueEnum};
use forge::links::real;
use forge::process::quoted_path;
use forge::secret::Secret;
use forge::settings::Settings;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// Generate a systemd timer or a cron line
///
/// Without --write the command prints them. When the unit ends, it restarts services that a killed
/// backup left stopped. After a power cut, a second unit or a second cron line restarts them when
/// the machine boots. The units restrict a backup to the privileges that it needs. They restrict it less if the
/// configuration has commands of your own, which may need any privilege.
///
/// With --drill the command prints those of a weekly drill instead, which restores a sample into
/// scratch space and examines it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep schedule --instance gitlab --write /etc/systemd/system
  forgekeep schedule --instance gitlab --for cron --at 03:30 --write /etc/cron.d
  forgekeep schedule --instance gitlab --drill --on sat --scratch /mnt/scratch")]
pub struct Schedule {
    /// Back up this instance
    #[arg(long, value_name = "NAME")]
    instance: String,
    /// Scheduler
    #[arg(long = "for", value_enum, value_name = "WHAT", default_value_t = Runner::Systemd)]
    runner: Runner,
    /// Schedule a weekly drill
    #[arg(long)]
    drill: bool,
    /// Time of day, in the local time zone [default: 02:00, or 06:00 for a drill]
    #[arg(long, value_name = "HH:MM", value_parser = time)]
    at: Option<(u8, u8)>,
    /// Day of the drill
    #[arg(long, value_enum, value_name = "DAY", default_value_t = Day::Sun, requires = "drill")]
    on: Day,
    /// Directory for the restored data of the drill [default: that of `drill`]
    #[arg(long, value_name = "DIR", requires = "drill")]
    scratch: Option<PathBuf>,
    /// Drill only snapshots of this machine, if several have some (can be repeated: any of them)
    #[arg(long, value_name = "HOST", requires = "drill", value_parser = crate::select::word)]
    host: Vec<String>,
    /// Write the files into this directory
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

/// Scheduler that starts the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Runner {
    /// A service and a timer
    Systemd,
    /// A line for /etc/cron.d, with a user
    Cron,
}

/// Day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    /// Returns its name for systemd.
    fn name(self) -> &'static str {
        ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"][self as usize]
    }

    /// Returns its number for cron, where Sunday is 0.
    fn number(self) -> usize {
        (self as usize + 1) % 7
    }
}

/// Default time of backups.
const NIGHT: (u8, u8) = (2, 0);
/// Default time of drills, when backups have ended.
const MORNING: (u8, u8) = (6, 0);

fn time(text: &str) -> Result<(u8, u8), String> {
    let wrong = || "expected a time such as 02:00".to_owned();
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    match (hour.parse(), minute.parse()) {
        (Ok(hour @ 0..24), Ok(minute @ 0..60)) => Ok((hour, minute)),
        _ => Err(wrong()),
    }
}

impl Schedule {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = global.config.read()?;
        let settings = config.instance(&self.instance)?;
        let store = instance::place_unseen(&config, &self.instance, global)?;
        let program = std::env::current_exe()
            .map_err(|error| other(format!("cannot find the path of this program: {error}")))?;
        let command = Command {
            program: &program,
            config: global.config.path(),
            store: global.store.as_deref(),
            scratch: self.scratch.as_deref(),
            hosts: &self.host,
            instance: &self.instance,
        };
        let at = self.at.unwrap_or(if self.drill { MORNING } else { NIGHT });
        let files = match self.runner {
            Runner::Systemd if self.drill => {
                let needs = Needs::of_drill(&config, &store, self.scratch.as_deref())?;
                // A different prefix, because `forgekeep-drill-NAME` could belong to an instance.
                let name = format!("forgekeep_drill-{}", self.instance);
                vec![
                    (format!("{name}.service"), drill_service(&command, &needs)?),
                    (format!("{name}.timer"), weekly(&self.instance, self.on, at)),
                ]
            }
            Runner::Cron if self.drill => {
                let name = cron_name(&self.instance).replacen('-', "_drill-", 1);
                vec![(name, weekly_cron(&command, self.on, at)?)]
            }
            Runner::Systemd => {
                let needs = Needs::of(&config, settings, &store)?;
                if needs.anything && is_open(&store) {
                    let store = quoted_path(&store);
                    ui.warn(&format!(
                        "other users of this machine may read the store; to prevent that, run: chmod 700 {store}"
                    ));
                }
                let name = format!("forgekeep-{}", self.instance);
                vec![
                    (format!("{name}.service"), service(&command, &needs)?),
                    (format!("{name}.timer"), timer(&self.instance, at)),
                    // A different prefix, because `forgekeep-recover-NAME` could belong to an
                    // instance `recover-NAME`.
                    (
                        format!("forgekeep_recover-{}.service", self.instance),
                        boot(&command, &needs, &config.state)?,
                    ),
                ]
            }
            Runner::Cron => vec![(cron_name(&self.instance), cron(&command, at)?)],
        };
        if let Some(dir) = self.write.as_deref().filter(|dir| !dir.is_dir()) {
            let message = format!("cannot write into {}: it is not a directory", dir.displayed());
            return Err(with_hint(message, "create it first, or check --write"));
        }
        for (name, text) in &files {
            match &self.write {
                Some(dir) => {
                    let path = dir.join(name);
                    forge::file::replace(&path, 0o644, text.as_bytes())?;
                    ui.json(&WrittenFile { path: path_text(&path) })?;
                    ui.line(format!("wrote {}", path.displayed()))?;
                }
                None => {
                    ui.json(&GeneratedFile { name, text })?;
                    ui.lines(format!("# {name}\n{text}"))?;
                }
            }
        }
        if self.write.is_some() && self.runner == Runner::Systemd && self.drill {
            ui.remark(format!(
                "now run: systemctl daemon-reload && systemctl enable --now forgekeep_drill-{}.timer",
                self.instance
            ))?;
        } else if self.write.is_some() && self.runner == Runner::Systemd {
            ui.remark(format!(
                "now run: systemctl daemon-reload && systemctl enable --now forgekeep-{0}.timer && \
                 systemctl enable forgekeep_recover-{0}.service",
                self.instance
            ))?;
        }
        Ok(())
    }
}

/// Command that the units or the cron line run.
struct Command<'a> {
    program: &'a Path,
    config: &'a Path,
    /// Store from the command line; `None` if the configuration names it.
    store: Option<&'a Path>,
    /// Scratch directory of a drill, if it is not the default.
    scratch: Option<&'a Path>,
    /// Machines whose snapshots a drill may choose; all if there are none.
    hosts: &'a [String],
    instance: &'a str,
}

/// Quotes a word for a kind of file.
type Quote = fn(&str) -> Result<String, Failure>;

impl Command<'_> {
    /// Returns the command line of a backup.
    fn backup(&self, quote: Quote) -> Result<String, Failure> {
        let paths = [("--store", self.store)];
        self.line(&["backup", "--instance", self.instance], &paths, quote)
    }

    /// Returns the command line of a drill.
    fn drill(&self, quote: Quote) -> Result<String, Failure> {
        let paths = [("--store", self.store), ("--scratch", self.scratch)];
        let mut words = vec!["drill", self.instance];
        words.extend(self.hosts.iter().flat_map(|host| ["--host", host]));
        self.line(&words, &paths, quote)
    }

    /// Returns the command line that restarts services which a backup left stopped.
    fn recover(&self, quote: Quote) -> Result<String, Failure> {
        self.line(&["recover", "--instance", self.instance], &[], quote)
    }

    fn line(
        &self,
        verb: &[&str],
        paths: &[(&str, Option<&Path>)],
        quote: Quote,
    ) -> Result<String, Failure> {
        let config = absolute(self.config)?;
        let mut words = vec![literal(self.program)?.to_owned(), "--quiet".into()];
        words.extend(verb.iter().map(|word| (*word).to_owned()));
        words.extend(["--config".into(), literal(&config)?.to_owned()]);
        for (option, path) in paths {
            if let Some(path) = path {
                words.extend([(*option).to_owned(), literal(&absolute(path)?)?.to_owned()]);
            }
        }
        Ok(words.iter().map(|word| quote(word)).collect::<Result<Vec<_>, _>>()?.join(" "))
    }
}

/// Returns an absolute path, because units run in another directory.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| other(format!("{}: {error}", path.displayed())))
}

/// Returns a path as text. Fails if it is not UTF-8, which a unit or cron line cannot name.
fn literal(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| {
        let message = format!("{} is not UTF-8, and cannot be written here", path.displayed());
        with_hint(message, "use a path with a UTF-8 name")
    })
}

/// Access that hardening must leave to a backup.
#[derive(Debug, Default)]
struct Needs {
    /// True if the backup writes into a home directory.
    home: bool,
    /// Paths it writes to that would otherwise be read-only.
    writes: Vec<PathBuf>,
    /// True if it runs programs that print secrets.
    secrets: bool,
    /// True if it runs the administrator's commands, or containers without a daemon. They may need
    /// anything: devices, mounts, namespaces.
    anything: bool,
    /// True if it restores files with any mode.
    setgid: bool,
}

impl Needs {
    /// Returns the needs of a drill. It runs none of the administrator's commands.
    fn of_drill(config: &Config, store: &Path, scratch: Option<&Path>) -> Result<Needs, Failure> {
        let mut needs = Needs { setgid: true, ..Needs::default() };
        let secrets = config.notify.iter().flat_map(|notifier| notifier.secrets());
        needs.secrets = secrets.into_iter().any(|secret| matches!(secret, Secret::Command(_)));
        let metrics = config.notify.iter().filter_map(|notifier| notifier.directory());
        needs.may_write([&*config.state, store].into_iter().chain(scratch).chain(metrics))?;
        Ok(needs)
    }

    fn of(config: &Config, settings: &Settings, store: &Path) -> Result<Needs, Failure> {
        let is_command = |secret: &Secret| matches!(secret, Secret::Command(_));
        let own = [&settings.postgres.password, &settings.redis.password];
        let services = &settings.services;
        let steps = [&settings.before, &settings.after, &services.stop, &services.start];
        let has_daemon = settings.docker.first().is_none_or(|program| has_daemon(program));
        let notifiers = config.notify.iter();
        let mut needs = Needs {
            secrets: own.into_iter().flatten().any(is_command)
                || notifiers.clone().flat_map(|notifier| notifier.secrets()).any(is_command),
            anything: !has_daemon || steps.iter().any(|steps| !steps.is_empty()),
            ..Needs::default()
        };
        let metrics = notifiers.filter_map(|notifier| notifier.directory());
        needs.may_write([&*config.state, store].into_iter().chain(metrics))?;
        Ok(needs)
    }

    /// Adds paths that must be writable.
    fn may_write<'a>(&mut self, paths: impl Iterator<Item = &'a Path>) -> Result<(), Failure> {
        let needs = self;
        for path in paths {
            let real = real(&absolute(path)?);
            let is_below = |tops: &[&str]| {
                tops.iter().any(|top| {
                    real.starts_with(top) || real.starts_with(self::real(Path::new(top)))
                })
            };
            needs.home |= is_below(&["/home", "/root", "/run/user"]);
            if is_below(&["/usr", "/boot", "/efi", "/etc"]) {
                // Only existing paths can be made writable.
                needs
                    .writes
                    .extend(real.ancestors().find(|path| path.exists()).map(Path::to_owned));
            }
        }
        Ok(())
    }

    /// Returns the lines that forbid unneeded access.
    fn hardening(&self) -> Result<String, Failure> {
        let mut lines = String::new();
        let mut say = |text: &str| {
            lines += text;
            lines.push('\n');
        };
        say(match self.setgid {
            true => {
                "# A drill restores files of any owner and mode, and runs programs as user nobody. The rest is forbidden."
            }
            false => {
                "# A backup reads all files as root and runs programs as other users. The rest is forbidden."
            }
        });
        say("LockPersonality=yes\nRestrictRealtime=yes");
        say(
            "SystemCallFilter=~@reboot @swap @obsolete @cpu-emulation\nSystemCallErrorNumber=EPERM",
        );
        if self.anything {
            say(
                "# No further limits: the configuration has commands of its own, which may mount, use devices,",
            );
            say("# write anywhere, and call sudo.");
            return Ok(lines);
        }
        say("SystemCallArchitectures=native");
        if !self.setgid {
            say("RestrictSUIDSGID=yes");
        }
        say("RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK");
        say(
            "CapabilityBoundingSet=~CAP_SYS_BOOT CAP_SYS_PACCT CAP_WAKE_ALARM CAP_NET_ADMIN CAP_NET_RAW",
        );
        say("ProtectSystem=full");
        if !self.writes.is_empty() {
            let paths = self.writes.iter().map(|path| for_systemd_path(path));
            let paths = paths.collect::<Result<Vec<_>, _>>()?;
            say(&format!("ReadWritePaths={}", paths.join(" ")));
        }
        say("ProtectKernelTunables=yes\nProtectKernelModules=yes\nProtectKernelLogs=yes");
        say("ProtectControlGroups=yes\nProtectClock=yes\nProtectHostname=yes");
        if self.secrets {
            say("# Programs that print secrets may write to home directories or use sudo.");
            return Ok(lines);
        }
        say("NoNewPrivileges=yes\nRestrictNamespaces=yes");
        if !self.home {
            say("ProtectHome=read-only");
        }
        Ok(lines)
    }

    /// Returns settings that children inherit; nothing if the administrator's commands run. A
    /// daemon that such a command starts would keep them for its lifetime.
    fn inherited(&self, lines: &'static str) -> &'static str {
        if self.anything { "" } else { lines }
    }

    /// Returns the setting that selects which processes end with the unit.
    fn killing(&self) -> &'static str {
        if self.anything {
            "# A daemon that a command of the configuration started belongs to this unit and must \
             outlive it.\n# A backup ends its other children itself.\nKillMode=process\n"
        } else {
            "# Only the backup gets the stop signal, because it must restart the services that it \
             stopped.\n# Other programs start them, so nothing in this unit must outlive it.\nKillMode=mixed\n"
        }
    }
}

/// Returns true if this program delegates its work to a daemon. Podman does not, and can be
/// installed under the name of docker: as a link, or as a script that calls it.
fn has_daemon(program: &str) -> bool {
    let path = preflight::program(program).unwrap_or_else(|| program.into());
    let real = real(&path);
    let mut head = Vec::new();
    // An unreadable file does not count as a script.
    let _ = std::fs::File::open(&real).and_then(|file| file.take(4096).read_to_end(&mut head));
    let calls_podman = head.starts_with(b"#!") && head.windows(6).any(|word| word == b"podman");
    real.file_name().is_some_and(|name| name == "docker") && !calls_podman
}

/// Returns true if other users than its owner have access to a directory.
fn is_open(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|dir| dir.permissions().mode() & 0o077 != 0)
}

/// Returns a file name for cron, distinct for each instance. cron ignores names with a dot.
fn cron_name(instance: &str) -> String {
    format!("forgekeep-{}", instance.replace('_', "__").replace('.', "_dot_"))
}

/// Fails for text that would end or change a line of a unit or of cron.
fn expect_printable(text: &str) -> Result<&str, Failure> {
    if text.is_empty() || text.contains(store::entry::is_deceptive) {
        let shown = store::entry::display_path(text.as_bytes());
        let hint = "use names and paths without control characters";
        return Err(with_hint(format!("a unit or a line for cron cannot contain `{shown}`"), hint));
    }
    Ok(text)
}

/// Quotes a word for a unit file.
fn for_systemd(word: &str) -> Result<String, Failure> {
    let word = expect_printable(word)?;
    let escaped =
        word.replace('\\', r"\\").replace('%', "%%").replace('$', "$$").replace('"', "\\\"");
    let is_plain = !word.contains(|c: char| c.is_whitespace() || c == '"' || c == '\'');
    Ok(if is_plain { escaped } else { format!("\"{escaped}\"") })
}

/// Quotes a path for a setting of a unit, where `$` is not special.
fn for_systemd_path(path: &Path) -> Result<String, Failure> {
    let path = expect_printable(literal(path)?)?;
    Ok(format!("\"{}\"", path.replace('\\', r"\\").replace('%', "%%").replace('"', "\\\"")))
}

/// Quotes a word for a line of cron. Fails for `%`, where cron ends the command, and for newlines.
fn for_cron(word: &str) -> Result<String, Failure> {
    let word = expect_printable(word)?;
    if word.contains('%') {
        let hint = "use paths without %, or systemd units";
        return Err(with_hint(format!("a line for cron cannot contain `{word}`"), hint));
    }
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:".contains(c));
    Ok(if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) })
}

fn service(command: &Command<'_>, needs: &Needs) -> Result<String, Failure> {
    Ok(format!(
        "[Unit]
Description=Backup of {instance}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={backup}
# Restarts services that a killed backup left stopped.
ExecStopPost=-{recover}
# A backup has no time limit. On a stop signal it first restarts the services that it
# stopped, which takes a while.
TimeoutStartSec=infinity
TimeoutStopSec=15min
{killing}{nice}{umask}{hardening}",
        instance = command.instance,
        backup = command.backup(for_systemd)?,
        recover = command.recover(for_systemd)?,
        killing = needs.killing(),
        nice = needs.inherited("Nice=10\nIOSchedulingClass=best-effort\nIOSchedulingPriority=7\n"),
        umask = needs.inherited(UMASK),
        hardening = needs.hardening()?,
    ))
}

/// Returns the unit of a drill. It ends by itself at its own time limit.
fn drill_service(command: &Command<'_>, needs: &Needs) -> Result<String, Failure> {
    Ok(format!(
        "[Unit]
Description=Drill of the newest snapshot of {instance}
Wants=network-online.target
After=network-online.target forgekeep-{instance}.service

[Service]
Type=oneshot
ExecStart={drill}
TimeoutStartSec=infinity
TimeoutStopSec=5min
# Only the drill gets the stop signal: it ends its server, and removes what it restored.
KillMode=mixed
Nice=15
IOSchedulingClass=idle
{UMASK}{hardening}",
        instance = command.instance,
        drill = command.drill(for_systemd)?,
        hardening = needs.hardening()?,
    ))
}

/// Files that the units create are for root alone.
const UMASK: &str = "UMask=0077\n";

/// Returns a unit that restarts stopped services at boot. Nothing else does so after a power cut.
fn boot(command: &Command<'_>, needs: &Needs, state: &Path) -> Result<String, Failure> {
    let instance = command.instance;
    let state = real(&absolute(state)?);
    let record = state.join(format!("recovery/{instance}.json"));
    Ok(format!(
        "[Unit]
Description=Restart services that a backup of {instance} left stopped when the machine went down
RequiresMountsFor={state}
ConditionPathExists={record}
Wants=network-online.target
# GitLab's supervisor starts after this target; ordering this unit before it would be a cycle.
After=multi-user.target network-online.target docker.service podman.service gitlab-runsvdir.service
Before=forgekeep-{instance}.service
StartLimitIntervalSec=1h
StartLimitBurst=20

[Service]
Type=oneshot
ExecStart={recover}
TimeoutStartSec=15min
# Supervisors may need a while to accept commands. Exit code 11: a running backup does it.
Restart=on-failure
RestartSec=30
RestartPreventExitStatus=2 11
{killing}{umask}{hardening}
[Install]
WantedBy=multi-user.target
",
        state = for_systemd_path(&state)?,
        // systemd takes this path literally, with quotes and backslashes.
        record = expect_printable(literal(&record)?)?.replace('%', "%%"),
        recover = command.recover(for_systemd)?,
        killing = needs.killing(),
        umask = needs.inherited(UMASK),
        hardening = needs.hardening()?,
    ))
}

fn timer(instance: &str, (hour, minute): (u8, u8)) -> String {
    format!(
        "[Unit]
Description=Nightly backup of {instance}

[Timer]
OnCalendar=*-*-* {hour:02}:{minute:02}:00
RandomizedDelaySec=5min
# A missed night is made up for at the next boot.
Persistent=true

[Install]
WantedBy=timers.target
"
    )
}

fn weekly(instance: &str, day: Day, (hour, minute): (u8, u8)) -> String {
    format!(
        "[Unit]
Description=Weekly drill of {instance}

[Timer]
OnCalendar={day} *-*-* {hour:02}:{minute:02}:00
RandomizedDelaySec=5min
# A missed drill is made up for at the next boot.
Persistent=true

[Install]
WantedBy=timers.target
",
        day = day.name(),
    )
}

fn weekly_cron(
    command: &Command<'_>,
    day: Day,
    (hour, minute): (u8, u8),
) -> Result<String, Failure> {
    let (instance, day, drill) = (command.instance, day.number(), command.drill(for_cron)?);
    Ok(format!("# Weekly drill of {instance}\n{minute} {hour} * * {day} root {drill}\n"))
}

fn cron(command: &Command<'_>, (hour, minute): (u8, u8)) -> Result<String, Failure> {
    let (backup, recover) = (command.backup(for_cron)?, command.recover(for_cron)?);
    Ok(format!(
        "# Nightly backup of {instance}\n{minute} {hour} * * * root {backup}\n\
         # Restart services that a killed backup left stopped; supervisors may need a while to \
         accept commands\n@reboot root sleep 60 && {recover}\n",
        instance = command.instance
    ))
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
    fn days_have_names_and_numbers() {
        let all = Day::value_variants().iter().map(|day| (day.name(), day.number()));
        let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        assert!(all.eq(days.into_iter().zip([1, 2, 3, 4, 5, 6, 0])));
    }

    #[test]
    fn cron_file_names_are_unique_per_instance() {
        let names = ["a.b", "a_b", "a__b", "a._b", "a_.b", "a_dot_b", "a.dot_b"].map(cron_name);
        for (at, name) in names.iter().enumerate() {
            assert!(!name.contains('.') && !names[..at].contains(name), "{name}");
        }
    }

    #[test]
    fn hardening_allows_the_configured_actions() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = dir.path().join("link/store");
        std::os::unix::fs::symlink("/root", dir.path().join("link")).expect("links");
        let hardening = |store: &Path, more: &str| {
            let text = format!("[instances.a]\nkind = 'plain'\n{more}");
            let config: Config = toml::from_str(&text).expect("reads");
            let settings = config.instance("a").expect("there");
            Needs::of(&config, settings, store).and_then(|needs| needs.hardening()).expect("lines")
        };
        let plain = hardening(Path::new("/srv/store"), "");
        for word in ["ProtectHome=", "NoNewPrivileges=", "ProtectClock=", "RestrictNamespaces="] {
            assert!(plain.contains(word), "{plain}");
        }
        assert!(!plain.contains("ReadWritePaths"), "{plain}");
        // One store in a home behind a link, one below a read-only directory.
        assert!(!hardening(&store, "").contains("ProtectHome"));
        let etc = hardening(Path::new("/etc/no such/store"), "");
        assert!(etc.contains("ReadWritePaths=\"/etc\"\n"), "{etc}");
        let secret = "[[notify]]\nkind = 'ping'\nurl = { command = ['pass', 'ping'] }";
        let secret = hardening(Path::new("/srv/store"), secret);
        assert!(!secret.contains("ProtectHome") && !secret.contains("NoNewPrivileges"), "{secret}");
        for own in ["before = [{ command = ['lvcreate'] }]", "docker = ['podman']"] {
            let own = hardening(Path::new("/srv/store"), own);
            for word in ["Protect", "NoNewPrivileges", "RestrictNamespaces", "Restrict A"] {
                assert!(!own.contains(word), "{own}");
            }
        }
    }

    #[test]
    fn podman_is_recognised_under_the_name_docker() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let program = |name: &str, text: &str| {
            let path = path(name);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("makes");
            std::fs::write(&path, text).expect("writes");
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, mode).expect("chmod");
        };
        program("podman", "\x7fELF podman");
        program("docker", "\x7fELF docker, not podman");
        program("script/docker", "#!/bin/sh\nexec /usr/bin/podman \"$@\"\n");
        std::fs::create_dir(path("link")).expect("makes");
        std::os::unix::fs::symlink("../podman", path("link/docker")).expect("links");
        let is_docker = |name: &str| has_daemon(path(name).to_str().expect("text"));
        assert!(is_docker("docker") && is_docker("not there/docker"));
        assert!(!is_docker("podman") && !is_docker("link/docker") && !is_docker("script/docker"));
    }

    #[test]
    fn configured_commands_do_not_inherit_unit_settings() {
        let command = Command {
            program: Path::new("/bin/forgekeep"),
            config: Path::new("/etc/forgekeep.toml"),
            store: None,
            scratch: None,
            hosts: &[],
            instance: "a",
        };
        for anything in [false, true] {
            let needs = Needs { anything, ..Needs::default() };
            let state = Path::new("/srv/a \"b\" %c\\d");
            let boot = boot(&command, &needs, state).expect("a unit");
            let condition = "\nConditionPathExists=/srv/a \"b\" %%c\\d/recovery/a.json\n";
            assert!(boot.contains(condition), "{boot}");
            for unit in [boot, service(&command, &needs).expect("a unit")] {
                let has = |word: &str| unit.contains(&format!("\n{word}"));
                assert_eq!(has("UMask="), !anything, "{unit}");
                assert!(!anything || !(has("Nice=") || has("IOScheduling")), "{unit}");
            }
        }
    }

    #[test]
    fn words_are_quoted_for_systemd_and_cron() {
        let words =
            |word, quote: fn(&str) -> Result<String, Failure>| quote(word).expect("can be quoted");
        assert_eq!(words("/a/b", for_systemd), "/a/b");
        assert_eq!(words("/a b%$\"", for_systemd), "\"/a b%%$$\\\"\"");
        assert_eq!(words("/a b", for_cron), "'/a b'");
        assert!(for_cron("/a%b").is_err());
        for wrong in ["", "a\nb", "a\tb", "a\u{7f}", "a\u{202e}b"] {
            assert!(for_systemd(wrong).is_err() && for_cron(wrong).is_err(), "{wrong:?}");
            let path = Path::new("/srv").join(wrong);
            assert!(wrong.is_empty() || for_systemd_path(&path).is_err(), "{wrong:?}");
        }
    }
}
