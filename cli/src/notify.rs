//! Notifies people and their monitoring about backups, checks and drills, and silences the monitoring while services are
//! stopped.
//!
//! A notifier is one file in this module and one variant of [`Notifier`]. No notifier ever makes a
//! run fail: callers get errors to print as warnings. All notifiers run at once, each on its own
//! thread. A thread that exceeds its time limit is abandoned. A dead server, or one that sends a
//! byte a minute, therefore costs no more than that limit.

mod error;
mod http;
mod mail;
mod notification;
mod ping;
mod textfile;
mod webhook;
mod zabbix;
mod zabbix_maintenance;

pub use error::NotifyError;
pub use notification::{Notification, Origin, What};

use forge::secret::{Address, Secret};
use forge::settings::Limit;
use notification::OwnedNotification;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use store::entry::Time;

/// A `[[notify]]` table of the configuration. Its `kind` selects the variant.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Notifier {
    /// Values for items of a Zabbix server.
    Zabbix(zabbix::Zabbix),
    /// A maintenance period in Zabbix while services are stopped.
    ZabbixMaintenance(zabbix_maintenance::ZabbixMaintenance),
    /// A dead man's switch in the style of healthchecks.io.
    Ping(ping::Ping),
    /// Metrics for Prometheus' node exporter.
    Textfile(textfile::Textfile),
    /// A message in Mattermost, Slack or a compatible service.
    Webhook(webhook::Webhook),
    /// A mail.
    Mail(mail::Mail),
}

/// Operations of a notifier.
trait Notify {
    /// Returns the name of its service, for people. A later process finds the notifier by this
    /// name.
    fn name(&self) -> String;

    /// Sends the notification, or nothing if it does not report this kind of event.
    fn notify(&self, notification: &Notification) -> Result<(), NotifyError>;

    /// Returns the fault of its settings with which it never sends anything, whatever a server
    /// answers. Reads no secret.
    fn fault(&self) -> Option<NotifyError> {
        None
    }

    /// Returns its addresses that may be secrets.
    fn addresses(&self) -> Vec<&Address> {
        Vec::new()
    }

    /// Returns true if [`Notify::notify`] sends anything for this notification.
    fn sends(&self, notification: &Notification) -> bool {
        matches!(notification.what, What::Ended(_) | What::Examined(_))
    }

    /// Time limit of one operation, including all tries.
    fn limit(&self) -> Duration;

    /// Returns the secrets it needs.
    fn secrets(&self) -> Vec<&Secret> {
        Vec::new()
    }

    /// Returns true if the configuration itself contains an address that is as good as a password.
    fn open_address(&self) -> bool {
        false
    }

    /// Returns the directory it writes to.
    fn directory(&self) -> Option<&Path> {
        None
    }

    /// Returns the silence that [`Notify::silence`] would start; `None` if it cannot start one or is
    /// not configured to.
    fn plan_silence(&self, _origin: &Origin, _now: Time) -> Option<Silence> {
        None
    }

    /// Silences the monitoring from `now` on, as planned. Waits until the silence is in force, or
    /// until `is_over` is set because the caller no longer waits.
    fn silence(
        &self,
        _planned: &Silence,
        _origin: &Origin,
        _now: Time,
        _is_over: &AtomicBool,
    ) -> Result<(), NotifyError> {
        Ok(())
    }

    /// Lets one of its own silences end at `end`. A silence that never began is not an error.
    fn end_silence(
        &self,
        _silence: &Silence,
        _end: Time,
        _now: Time,
    ) -> Result<SilenceEnd, NotifyError> {
        Ok(SilenceEnd::Done)
    }
}

/// Result of a request to end a silence.
enum SilenceEnd {
    /// Nothing is left to do.
    Done,
    /// The end cannot be set ahead of time. Request it again when it is due.
    WhenDue,
}

impl Notifier {
    fn as_notify(&self) -> &(dyn Notify + Sync) {
        match self {
            Notifier::Zabbix(it) => it,
            Notifier::ZabbixMaintenance(it) => it,
            Notifier::Ping(it) => it,
            Notifier::Textfile(it) => it,
            Notifier::Webhook(it) => it,
            Notifier::Mail(it) => it,
        }
    }

    /// Returns the name of its service, for people.
    pub fn name(&self) -> String {
        self.as_notify().name()
    }

    /// Returns true if its silences depend on its settings, so that a notifier of the same name
    /// must start and end them. Records of other silences contain all that is needed.
    pub fn is_found_by_name(&self) -> bool {
        matches!(self, Notifier::ZabbixMaintenance(_))
    }

    /// Returns the fault of its settings with which it never sends anything. Reads no secret.
    pub fn fault(&self) -> Option<NotifyError> {
        let notifier = self.as_notify();
        let plain = notifier.addresses().into_iter().find_map(|address| match address {
            Address::Plain(address) => http::server(address).err(),
            Address::Secret(_) => None,
        });
        plain.or_else(|| notifier.fault())
    }

    /// Returns the fault of an address in a file. Runs no command, which may ask for a password.
    pub fn fault_of_file(&self) -> Option<NotifyError> {
        self.as_notify().addresses().into_iter().find_map(|address| {
            let Address::Secret(secret @ Secret::File(_)) = address else { return None };
            // A file that cannot be read is a fault of the secret.
            http::server(secret.read().ok()?.reveal()).err()
        })
    }

    /// Returns the secrets it needs.
    pub fn secrets(&self) -> Vec<&Secret> {
        self.as_notify().secrets()
    }

    /// Returns true if the configuration itself contains an address that is as good as a password.
    pub fn has_open_address(&self) -> bool {
        self.as_notify().open_address()
    }

    /// Returns true if it sends anything for this notification.
    pub fn sends(&self, notification: &Notification) -> bool {
        self.as_notify().sends(notification)
    }

    /// Returns true if it silences monitoring.
    pub fn silences(&self, origin: &Origin, now: Time) -> bool {
        self.as_notify().plan_silence(origin, now).is_some()
    }

    /// Returns the directory it writes to.
    pub fn directory(&self) -> Option<&Path> {
        self.as_notify().directory()
    }
}

/// Sends a notification through all notifiers at once. Returns errors, for warnings. After a stop
/// request, slow notifiers get only a little more time.
pub fn send(
    notifiers: &[Notifier],
    notification: &Notification,
    wants_stop: &dyn Fn() -> bool,
) -> Vec<NotifyError> {
    let notification = Arc::new(OwnedNotification::of(notification));
    let task = |notifier: &Notifier| {
        let notification = Arc::clone(&notification);
        Task::of(notifier, move |notifier, _| notifier.notify(&notification.notification()))
    };
    let results = all(notifiers.iter().map(task).collect(), wants_stop);
    results.into_iter().filter_map(Result::err).collect()
}

/// Maximum wait for slow notifiers after a stop request.
const LAST_PATIENCE: Duration = Duration::from_secs(10);
/// Interval between checks for a stop request.
const TICK: Duration = Duration::from_millis(100);

/// An operation of one notifier.
struct Task<T> {
    name: String,
    limit: Duration,
    work: Work<T>,
}

/// Work of a task. The flag is set when the caller no longer waits.
type Work<T> = Box<dyn FnOnce(&AtomicBool) -> Result<T, NotifyError> + Send>;

impl<T> Task<T> {
    fn of(
        notifier: &Notifier,
        work: impl FnOnce(&dyn Notify, &AtomicBool) -> Result<T, NotifyError> + Send + 'static,
    ) -> Task<T> {
        let (name, limit) = (notifier.name(), notifier.as_notify().limit());
        let notifier = notifier.clone();
        Task { name, limit, work: Box::new(move |is_over| work(notifier.as_notify(), is_over)) }
    }
}

/// Runs all tasks at once. Abandons a task that exceeds its time limit, because nothing can end its
/// wait from outside.
fn all<T: Send + 'static>(
    tasks: Vec<Task<T>>,
    wants_stop: &dyn Fn() -> bool,
) -> Vec<Result<T, NotifyError>> {
    let started = Instant::now();
    let is_over = Arc::new(AtomicBool::new(false));
    let begin = |Task { name, limit, work }: Task<T>| {
        let (sender, answer) = mpsc::channel();
        let is_over = Arc::clone(&is_over);
        let refused = sender.clone();
        // Fails if the caller no longer waits, which needs no handling.
        let send = move || sender.send(work(&is_over)).is_ok();
        if let Err(source) = std::thread::Builder::new().spawn(send) {
            let _ = refused.send(Err(NotifyError::NoThread { name: name.clone(), source }));
        }
        (name, limit, answer)
    };
    let begun: Vec<_> = tasks.into_iter().map(begin).collect();
    let mut stop_at = None;
    let mut answers = Vec::new();
    for (name, limit, answer) in begun {
        answers.push(loop {
            if stop_at.is_none() && wants_stop() {
                is_over.store(true, Relaxed);
                stop_at = Some(started.elapsed() + LAST_PATIENCE);
            }
            let limit = stop_at.map_or(limit, |stop| limit.min(stop));
            let left = limit.saturating_sub(started.elapsed());
            match answer.recv_timeout(left.min(TICK)) {
                Ok(answer) => break answer,
                Err(mpsc::RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(_) => break Err(NotifyError::TooSlow { name, limit }),
            }
        });
    }
    is_over.store(true, Relaxed);
    answers
}

/// Returns the time limit of all tries of `exchanges` exchanges together, and of a command that
/// prints a secret before them.
fn overall(timeout: Limit, exchanges: usize, secret: Option<&Secret>) -> Duration {
    let exchanges = u32::try_from(exchanges).unwrap_or(u32::MAX).saturating_add(2);
    let pauses = Duration::from_secs(5);
    let command = match secret {
        Some(Secret::Command(_)) => forge::secret::COMMAND_LIMIT,
        _ => Duration::ZERO,
    };
    timeout.0.saturating_mul(exchanges).saturating_add(pauses + command)
}

/// Returns the secret that holds an address, if one does.
fn secret_of(address: &Address) -> Option<&Secret> {
    match address {
        Address::Plain(_) => None,
        Address::Secret(secret) => Some(secret),
    }
}

/// Monitoring that is or will be silenced. Save it for a later process before the silence starts,
/// and keep it until [`end_silence`] no longer returns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silenced {
    /// [`Notifier::name`] of the notifier that silences it.
    notifier: String,
    silence: Silence,
}

/// A silence to end later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Silence {
    /// Items of a host that have the value 1.
    ZabbixItems { host: String, keys: Vec<String> },
    /// A maintenance of this name that ends by itself at `till`, in seconds since 1970.
    ZabbixMaintenance { name: String, till: i64 },
}

/// Returns the silences that [`silence`] would start. Starts none.
pub fn plan_silence(notifiers: &[Notifier], origin: &Origin, now: Time) -> Vec<Silenced> {
    let plan = |notifier: &Notifier| {
        let silence = notifier.as_notify().plan_silence(origin, now)?;
        Some(Silenced { notifier: notifier.name(), silence })
    };
    notifiers.iter().filter_map(plan).collect()
}

/// Starts all planned silences. Call it once the plan is saved, and before services are stopped.
/// Returns errors, for warnings: a silence may have started despite an error.
pub fn silence(
    notifiers: &[Notifier],
    planned: &[Silenced],
    origin: &Origin,
    now: Time,
    wants_stop: &dyn Fn() -> bool,
) -> Vec<NotifyError> {
    let kept = Arc::new(OwnedNotification::of(&Notification {
        origin: *origin,
        at: now,
        what: What::Started,
        previous: None,
    }));
    let task = |Silenced { notifier, silence }: &Silenced| {
        let notifier = notifiers.iter().find(|known| {
            known.name() == *notifier && known.as_notify().plan_silence(origin, now).is_some()
        })?;
        let (kept, silence) = (Arc::clone(&kept), silence.clone());
        Some(Task::of(notifier, move |notifier, is_over| {
            notifier.silence(&silence, &kept.notification().origin, now, is_over)
        }))
    };
    let tasks = planned.iter().filter_map(task).collect();
    all(tasks, wants_stop).into_iter().filter_map(Result::err).collect()
}

/// Lets silences end at `end`, which is now or some minutes ahead. A delay lets checks see the
/// services up before anybody is alarmed.
///
/// Call it once services are up. Returns the silences still to be ended, and errors for
/// warnings. Some silences cannot be ended ahead of time, and some services may be unreachable.
/// Call it again with the returned silences when `end` has come.
pub fn end_silence(
    notifiers: &[Notifier],
    silenced: Vec<Silenced>,
    end: Time,
    now: Time,
) -> (Vec<Silenced>, Vec<NotifyError>) {
    let (mut left, mut warnings) = (Vec::new(), Vec::new());
    let (mut known, mut tasks) = (Vec::new(), Vec::new());
    for silenced in silenced {
        let name = &silenced.notifier;
        let Some(notifier) = notifiers.iter().find(|notifier| notifier.name() == *name) else {
            warnings.push(NotifyError::Removed(name.clone()));
            continue;
        };
        let silence = silenced.silence.clone();
        tasks.push(Task::of(notifier, move |notifier, _| notifier.end_silence(&silence, end, now)));
        known.push(silenced);
    }
    // A stop request must not cut this short: silences should end in that case, too.
    for (silenced, result) in known.into_iter().zip(all(tasks, &|| false)) {
        match result {
            Ok(SilenceEnd::Done) => {}
            Ok(SilenceEnd::WhenDue) => left.push(silenced),
            Err(warning) => {
                warnings.push(warning);
                if !silenced.has_ended(now) {
                    left.push(silenced);
                }
            }
        }
    }
    (left, warnings)
}

impl Silenced {
    /// Returns true if the silence has ended by itself.
    fn has_ended(&self, now: Time) -> bool {
        matches!(self.silence, Silence::ZabbixMaintenance { till, .. } if till <= now.seconds)
    }
}

/// Results of runs that a notifier reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// All results that are not good, and the first good one after them.
    #[default]
    Failure,
    /// Results that differ from the previous one.
    Change,
    /// All results.
    Always,
}

impl When {
    /// Returns true if this setting reports the notification.
    fn wants(self, notification: &Notification<'_>) -> bool {
        let Some(is_good) = notification.what.is_good() else { return false };
        match self {
            When::Always => true,
            When::Failure => !is_good || notification.previous == Some(false),
            When::Change => notification.previous.unwrap_or(true) != is_good,
        }
    }
}

/// Returns the fault of a server's name and port to connect to, if these can never work.
fn fault_of_server(server: &str, port: u16) -> Option<NotifyError> {
    let (name, _) = server.split_once('%').unwrap_or((server, ""));
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || "-_".contains(c))
    };
    let is_name = server.strip_suffix('.').unwrap_or(server).split('.').all(is_label);
    let server = || server.to_owned();
    match (is_address || is_name, port) {
        (false, _) => Some(NotifyError::BadServer(server())),
        (true, 0) => Some(NotifyError::NoPort(server())),
        _ => None,
    }
}

/// Default time limit for one answer.
fn ten_seconds() -> Limit {
    Limit(Duration::from_secs(10))
}

/// Tries up to three times, with pauses, while the error may pass.
fn persist<T>(mut one: impl FnMut() -> Result<T, NotifyError>) -> Result<T, NotifyError> {
    for pause in [1, 3].map(Duration::from_secs) {
        match one() {
            Err(error) if error.may_pass() => std::thread::sleep(pause),
            done => return done,
        }
    }
    one()
}

/// Escapes a name as a file name, or a part of one. Each name has another one.
pub fn escaped(name: &str) -> String {
    let mut file = String::new();
    for byte in name.bytes() {
        let is_first = file.is_empty();
        let _ = match byte {
            b'.' if is_first => file.write_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                file.write_char(byte.into())
            }
            _ => write!(file, "%{byte:02X}"),
        };
    }
    file
}

/// Fills in `{instance}` and `{host}` in a text of the configuration.
fn filled(pattern: &str, origin: &Origin) -> String {
    pattern.replace("{instance}", origin.instance).replace("{host}", origin.host)
}

#[cfg(test)]
mod tests {
    use super::notification::tests::{done, failed, notification};
    use super::*;

    fn one(table: &str) -> Result<Notifier, toml::de::Error> {
        toml::from_str(table)
    }

    #[test]
    fn every_notifier_is_parsed_and_unknown_keys_are_refused() {
        for table in [
            "kind = 'zabbix'\nserver = 'z'\nkeys = { status = 'a[{instance}]', seconds-down = 'b' }",
            "kind = 'zabbix-maintenance'\nurl = 'https://z/api_jsonrpc.php'\ntoken = { file = '/t' }",
            "kind = 'ping'\nurl = { command = ['pass', 'ping'] }\ntimeout = '3s'",
            "kind = 'textfile'\ndirectory = '/var/lib/prometheus/node-exporter'",
            "kind = 'webhook'\nurl = 'https://chat/hooks/x'\nchannel = 'ops'\nwhen = 'change'",
            "kind = 'mail'\nserver = 'mx'\nfrom = 'A <a@x.org>'\nto = ['b@x.org']",
        ] {
            one(table).unwrap_or_else(|error| panic!("{table}: {error}"));
            let error = one(&format!("{table}\nunknown-key = 1")).expect_err("refused");
            assert!(error.to_string().contains("unknown-key"), "{error}");
        }
        let error = one("kind = 'pigeon'").expect_err("refused").to_string();
        assert!(error.contains("pigeon") && error.contains("`textfile`"), "{error}");
        assert!(one("kind = 'ping'\nurl = 'http://x'\ntimeout = 'soon'").is_err());
    }

    #[test]
    fn examples_in_the_documentation_are_parsed() {
        #[derive(Deserialize)]
        struct Example {
            notify: Vec<Notifier>,
        }
        let document = include_str!("../../docs/notifications.md");
        let examples =
            document.split("```toml\n").skip(1).filter_map(|text| text.split("```").next());
        let mut kinds: Vec<_> = examples
            .map(|text| toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}")))
            .map(|Example { notify }| std::mem::discriminant(&notify[0]))
            .collect();
        kinds.dedup();
        assert_eq!(kinds.len(), 6, "one example for each kind");
    }

    #[test]
    fn failures_and_recoveries_are_sent_by_default() {
        let table = [
            (When::Failure, [[false, false, true], [true, true, true]]),
            (When::Change, [[false, false, true], [true, true, false]]),
            (When::Always, [[true, true, true], [true, true, true]]),
        ];
        for (when, [after_good, after_bad]) in table {
            for (record, wanted) in [(done(), after_good), (failed(), after_bad)] {
                for (previous, wanted) in [None, Some(true), Some(false)].into_iter().zip(wanted) {
                    let mut notification = notification(What::Ended(&record));
                    notification.previous = previous;
                    let is_wanted = when.wants(&notification);
                    assert_eq!(is_wanted, wanted, "{when:?} {:?} {previous:?}", record.result);
                }
            }
            assert!(!when.wants(&notification(What::Started)));
        }
    }

    #[test]
    fn only_temporary_errors_are_retried() {
        let mut tries = 0;
        let done = persist(|| {
            tries += 1;
            let (server, reason) = ("x".into(), "busy".into());
            if tries < 2 { Err(NotifyError::Unreachable { server, reason }) } else { Ok(tries) }
        });
        assert_eq!(done.expect("the second try"), 2);
        let mut tries = 0;
        let refused: Result<(), NotifyError> = persist(|| {
            tries += 1;
            Err(NotifyError::BadAddress)
        });
        assert!(matches!((refused, tries), (Err(NotifyError::BadAddress), 1)));
    }

    #[test]
    fn slow_notifiers_are_abandoned() {
        let task = |name: &str, limit: u64, takes: u64| Task {
            name: name.into(),
            limit: Duration::from_millis(limit),
            work: Box::new(move |_| {
                std::thread::sleep(Duration::from_millis(takes));
                Ok(takes)
            }),
        };
        let started = Instant::now();
        let tasks = vec![task("slow", 300, 60_000), task("quick", 60_000, 1)];
        let answers = all(tasks, &|| false);
        let late = answers[0].as_ref().expect_err("late").to_string();
        assert!(late.starts_with("slow did not finish within"), "{late}");
        assert!(matches!(answers[1], Ok(1)));
        // After a stop request, a task that checks the flag stops waiting.
        let hears = Task {
            name: "hears".into(),
            limit: Duration::from_secs(60),
            work: Box::new(|is_over: &AtomicBool| {
                while !is_over.load(Relaxed) {
                    std::thread::sleep(TICK);
                }
                Ok(7)
            }),
        };
        assert!(matches!(all(vec![hears], &|| true)[..], [Ok(7)]));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn silences_of_removed_notifiers_are_reported_and_dropped() {
        let silence = Silence::ZabbixItems { host: "git01".into(), keys: vec!["k".into()] };
        let silenced = Silenced { notifier: "zabbix old:10051".into(), silence };
        let kept = serde_json::to_string(&silenced).expect("can be written down");
        assert_eq!(serde_json::from_str::<Silenced>(&kept).expect("can be read"), silenced);
        let (left, warnings) = end_silence(&[], vec![silenced], Time::default(), Time::default());
        assert!(left.is_empty(), "{left:?}");
        assert!(warnings[0].to_string().contains("zabbix old:10051"), "{warnings:?}");
    }
}
