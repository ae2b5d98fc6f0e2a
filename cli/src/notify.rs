//! Telling people and their monitoring how a run went, and silencing the monitoring while services are
//! stopped.
//!
//! A notifier is one file below this one and one line in [`Notifier`]. None of them ever makes a
//! run fail: whoever calls gets sentences to pass on as warnings. All are told at once, each on a thread
//! that is left behind when its time is over, so that a dead server, or one that answers a byte a
//! minute, costs no more than that.

mod http;
mod mail;
mod news;
mod ping;
mod textfile;
mod webhook;
mod zabbix;
mod zabbix_maintenance;

pub use news::{Ending, News, Origin, Outcome, RunId, What};

use forge::secret::{Address, Secret};
use forge::settings::Limit;
use news::Kept;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use store::entry::Time;

/// One `[[notify]]` table of the configuration; its `kind` says which.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Notifier {
    /// Values for items of a Zabbix server.
    Zabbix(zabbix::Zabbix),
    /// A maintenance period in Zabbix while services are stopped.
    ZabbixMaintenance(zabbix_maintenance::ZabbixMaintenance),
    /// A dead man's switch as healthchecks.io has it.
    Ping(ping::Ping),
    /// Metrics for Prometheus' node exporter.
    Textfile(textfile::Textfile),
    /// A message in Mattermost, Slack, or whatever understands theirs.
    Webhook(webhook::Webhook),
    /// A mail.
    Mail(mail::Mail),
}

/// What a notifier can do. An error says what was tried, why it did not work, and the way out; there is
/// no secret in it.
trait Tell {
    /// What it talks to, for people, and to know it again in a later process.
    fn name(&self) -> String;

    /// Tells the news, or nothing if these are none for it.
    fn tell(&self, news: &News) -> Result<(), String>;

    /// Returns true if [`Tell::tell`] sends anything for these.
    fn sends(&self, news: &News) -> bool {
        matches!(news.what, What::Ended(_))
    }

    /// How long one of these may take, all tries together.
    fn limit(&self) -> Duration;

    /// The secrets that it needs.
    fn secrets(&self) -> Vec<&Secret> {
        Vec::new()
    }

    /// An address as good as a password that stands in the configuration itself.
    fn open_address(&self) -> bool {
        false
    }

    /// The directory that it writes to.
    fn directory(&self) -> Option<&Path> {
        None
    }

    /// The silence that [`Tell::silence`] would make; `None` if it cannot or was not asked to.
    fn plan_silence(&self, _origin: &Origin, _now: Time) -> Option<Silence> {
        None
    }

    /// Silences the monitoring from `now` on as planned, and waits until that is so or `is_over` says that
    /// nobody waits any longer.
    fn silence(
        &self,
        _planned: &Silence,
        _origin: &Origin,
        _now: Time,
        _is_over: &AtomicBool,
    ) -> Result<(), String> {
        Ok(())
    }

    /// Lets a silence of its own end at `end`. One that never began is none.
    fn end_silence(&self, _silence: &Silence, _end: Time, _now: Time) -> Result<Told, String> {
        Ok(Told::Now)
    }
}

/// Whether the end of a silence could be told.
enum Told {
    /// It was.
    Now,
    /// This cannot be told ahead.
    OnlyWhenDue,
}

impl Notifier {
    fn teller(&self) -> &(dyn Tell + Sync) {
        match self {
            Notifier::Zabbix(it) => it,
            Notifier::ZabbixMaintenance(it) => it,
            Notifier::Ping(it) => it,
            Notifier::Textfile(it) => it,
            Notifier::Webhook(it) => it,
            Notifier::Mail(it) => it,
        }
    }

    /// What it talks to, for people.
    pub fn name(&self) -> String {
        self.teller().name()
    }

    /// Whether its silences are made and ended by whoever has its name, and depend on who that
    /// is: others have all that they need in what is kept of them.
    pub fn is_found_by_name(&self) -> bool {
        matches!(self, Notifier::ZabbixMaintenance(_))
    }

    /// The secrets that it needs.
    pub fn secrets(&self) -> Vec<&Secret> {
        self.teller().secrets()
    }

    /// Whether an address that is as good as a password stands in the configuration itself.
    pub fn has_open_address(&self) -> bool {
        self.teller().open_address()
    }

    /// Returns true if it sends anything for these.
    pub fn sends(&self, news: &News) -> bool {
        self.teller().sends(news)
    }

    /// Returns true if it silences monitoring.
    pub fn silences(&self, origin: &Origin, now: Time) -> bool {
        self.teller().plan_silence(origin, now).is_some()
    }

    /// The directory that it writes to.
    pub fn directory(&self) -> Option<&Path> {
        self.teller().directory()
    }
}

/// Tells everybody at once; gives what did not work, for warnings. If somebody wants to stop, the slow ones
/// are not waited for much longer.
pub fn tell(notifiers: &[Notifier], news: &News, wants_stop: &dyn Fn() -> bool) -> Vec<String> {
    let news = Arc::new(Kept::of(news));
    let task = |notifier: &Notifier| {
        let news = Arc::clone(&news);
        Task::of(notifier, move |teller, _| teller.tell(&news.news()))
    };
    let told = all(notifiers.iter().map(task).collect(), wants_stop);
    told.into_iter().filter_map(Result::err).collect()
}

/// How long the slow ones are waited for once somebody wants to stop.
const LAST_PATIENCE: Duration = Duration::from_secs(10);
/// How often that is looked for.
const TICK: Duration = Duration::from_millis(100);

/// Something to be done with one of them.
struct Task<T> {
    name: String,
    limit: Duration,
    work: Work<T>,
}

/// It is told when nobody waits for it any longer.
type Work<T> = Box<dyn FnOnce(&AtomicBool) -> Result<T, String> + Send>;

impl<T> Task<T> {
    fn of(
        notifier: &Notifier,
        work: impl FnOnce(&dyn Tell, &AtomicBool) -> Result<T, String> + Send + 'static,
    ) -> Task<T> {
        let (name, limit) = (notifier.name(), notifier.teller().limit());
        let notifier = notifier.clone();
        Task { name, limit, work: Box::new(move |is_over| work(notifier.teller(), is_over)) }
    }
}

/// Does all of these at once. Whoever is not ready within its limit is left behind: what it
/// waits for cannot be ended from outside.
fn all<T: Send + 'static>(
    tasks: Vec<Task<T>>,
    wants_stop: &dyn Fn() -> bool,
) -> Vec<Result<T, String>> {
    let started = Instant::now();
    let is_over = Arc::new(AtomicBool::new(false));
    let begin = |Task { name, limit, work }: Task<T>| {
        let (sender, answer) = mpsc::channel();
        let is_over = Arc::clone(&is_over);
        // Nobody hears it any more if that fails.
        std::thread::spawn(move || sender.send(work(&is_over)).is_ok());
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
                Err(_) => {
                    let seconds = limit.as_secs();
                    break Err(format!(
                        "{name} was not ready within {seconds} s; check that it runs and answers"
                    ));
                }
            }
        });
    }
    is_over.store(true, Relaxed);
    answers
}

/// How long all tries of so many exchanges may take together, and before them the command
/// that says a secret.
fn overall(timeout: Limit, exchanges: usize, secret: Option<&Secret>) -> Duration {
    let exchanges = u32::try_from(exchanges).unwrap_or(u32::MAX).saturating_add(2);
    let pauses = Duration::from_secs(5);
    let command = match secret {
        Some(Secret::Command(_)) => forge::secret::COMMAND_LIMIT,
        _ => Duration::ZERO,
    };
    timeout.0.saturating_mul(exchanges).saturating_add(pauses + command)
}

/// Where an address is, if it is a secret.
fn secret_of(address: &Address) -> Option<&Secret> {
    match address {
        Address::Plain(_) => None,
        Address::Secret(secret) => Some(secret),
    }
}

/// Monitoring that is or will be silenced. Keep it where a later process finds it, before
/// it is, until [`end_silence`] no longer gives it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silenced {
    /// [`Notifier::name`] of who did it.
    notifier: String,
    silence: Silence,
}

/// What has to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Silence {
    /// Items of a host that say 1.
    ZabbixItems { host: String, keys: Vec<String> },
    /// A maintenance of this name that ends by itself at `till`, in seconds since 1970.
    ZabbixMaintenance { name: String, till: i64 },
}

/// The silences that [`silence`] would make; nothing is done yet.
pub fn plan_silence(notifiers: &[Notifier], origin: &Origin, now: Time) -> Vec<Silenced> {
    let plan = |notifier: &Notifier| {
        let silence = notifier.teller().plan_silence(origin, now)?;
        Some(Silenced { notifier: notifier.name(), silence })
    };
    notifiers.iter().filter_map(plan).collect()
}

/// Silences all monitoring as planned; call it before services are stopped, and once the plan is
/// written down. Gives what did not work, for warnings: it may have been silenced nevertheless.
pub fn silence(
    notifiers: &[Notifier],
    planned: &[Silenced],
    origin: &Origin,
    now: Time,
    wants_stop: &dyn Fn() -> bool,
) -> Vec<String> {
    let kept = Arc::new(Kept::of(&News { origin: *origin, at: now, what: What::Started }));
    let task = |Silenced { notifier, silence }: &Silenced| {
        let notifier = notifiers.iter().find(|known| {
            known.name() == *notifier && known.teller().plan_silence(origin, now).is_some()
        })?;
        let (kept, silence) = (Arc::clone(&kept), silence.clone());
        Some(Task::of(notifier, move |teller, is_over| {
            teller.silence(&silence, &kept.news().origin, now, is_over)
        }))
    };
    let tasks = planned.iter().filter_map(task).collect();
    all(tasks, wants_stop).into_iter().filter_map(Result::err).collect()
}

/// Lets silences end at `end`, which is now or some minutes ahead, so that checks see the services
/// up before anybody is alarmed.
///
/// Call it once services are up. Gives what is still to be ended: some monitoring cannot be told
/// ahead, and some could not be reached. Call it again with that once `end` has come. The second list is what
/// did not work, for warnings.
pub fn end_silence(
    notifiers: &[Notifier],
    silenced: Vec<Silenced>,
    end: Time,
    now: Time,
) -> (Vec<Silenced>, Vec<String>) {
    let (mut left, mut warnings) = (Vec::new(), Vec::new());
    let (mut known, mut tasks) = (Vec::new(), Vec::new());
    for silenced in silenced {
        let name = &silenced.notifier;
        let Some(notifier) = notifiers.iter().find(|notifier| notifier.name() == *name) else {
            warnings.push(format!(
                "{name} was silenced and is no longer in the configuration; end the silence by hand"
            ));
            continue;
        };
        let silence = silenced.silence.clone();
        tasks.push(Task::of(notifier, move |teller, _| teller.end_silence(&silence, end, now)));
        known.push(silenced);
    }
    // Whoever wants to stop wants this as well.
    for (silenced, told) in known.into_iter().zip(all(tasks, &|| false)) {
        match told {
            Ok(Told::Now) => {}
            Ok(Told::OnlyWhenDue) => left.push(silenced),
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
    /// Whether it has ended by itself.
    fn has_ended(&self, now: Time) -> bool {
        matches!(self.silence, Silence::ZabbixMaintenance { till, .. } if till <= now.seconds)
    }
}

/// Which ends of runs people want to hear of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// All that are not good, and the first good one after these.
    #[default]
    Failure,
    /// Those that are not as the one before.
    Change,
    /// All.
    Always,
}

impl When {
    /// The outcome, if these are news that are wanted.
    fn wanted<'a>(self, news: &News<'a>) -> Option<&'a Outcome> {
        let What::Ended(outcome) = news.what else { return None };
        let is_good = outcome.is_good();
        let is_wanted = match self {
            When::Always => true,
            When::Failure => !is_good || outcome.previous == Some(false),
            When::Change => outcome.previous.unwrap_or(true) != is_good,
        };
        is_wanted.then_some(outcome)
    }
}

/// How long a notifier waits for an answer unless it is said.
fn ten_seconds() -> Limit {
    Limit(Duration::from_secs(10))
}

/// Why one try did not work.
enum Trouble {
    /// The next one may.
    Passing(String),
    /// No other will.
    Lasting(String),
}

/// Tries three times, if need be, with pauses.
fn persist<T>(mut one: impl FnMut() -> Result<T, Trouble>) -> Result<T, String> {
    for pause in [1, 3].map(Duration::from_secs) {
        match one() {
            Ok(done) => return Ok(done),
            Err(Trouble::Lasting(reason)) => return Err(reason),
            Err(Trouble::Passing(_)) => std::thread::sleep(pause),
        }
    }
    one().map_err(|(Trouble::Passing(reason) | Trouble::Lasting(reason))| reason)
}

/// A text of the configuration with `{instance}` and `{host}` filled in.
fn filled(pattern: &str, origin: &Origin) -> String {
    pattern.replace("{instance}", origin.instance).replace("{host}", origin.host)
}

#[cfg(test)]
mod tests {
    use super::news::tests::{done, failed, news};
    use super::*;

    fn one(table: &str) -> Result<Notifier, toml::de::Error> {
        toml::from_str(table)
    }

    #[test]
    fn every_kind_is_read_and_a_key_too_many_is_refused() {
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
    fn the_examples_of_the_document_are_read() {
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
    fn failures_and_recoveries_are_wanted_by_default() {
        let table = [
            (When::Failure, [[false, false, true], [true, true, true]]),
            (When::Change, [[false, false, true], [true, true, false]]),
            (When::Always, [[true, true, true], [true, true, true]]),
        ];
        for (when, [after_good, after_bad]) in table {
            for (outcome, wanted) in [(done(), after_good), (failed(), after_bad)] {
                for (previous, wanted) in [None, Some(true), Some(false)].into_iter().zip(wanted) {
                    let outcome = Outcome { previous, ..outcome.clone() };
                    let is_wanted = when.wanted(&news(What::Ended(&outcome))).is_some();
                    assert_eq!(is_wanted, wanted, "{when:?} {:?} {previous:?}", outcome.ending);
                }
            }
            assert!(when.wanted(&news(What::Started)).is_none());
        }
    }

    #[test]
    fn what_may_work_is_tried_again_and_what_cannot_is_not() {
        let mut tries = 0;
        let done = persist(|| {
            tries += 1;
            if tries < 2 { Err(Trouble::Passing("busy".into())) } else { Ok(tries) }
        });
        assert_eq!(done, Ok(2));
        let mut tries = 0;
        let refused: Result<(), String> = persist(|| {
            tries += 1;
            Err(Trouble::Lasting("no".into()))
        });
        assert_eq!((refused, tries), (Err("no".into()), 1));
    }

    #[test]
    fn whoever_is_never_ready_is_left_behind() {
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
        assert!(answers[0].as_ref().expect_err("late").starts_with("slow was not ready within"));
        assert_eq!(answers[1], Ok(1));
        // Somebody wants to stop: whoever hears of that stops waiting.
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
        assert_eq!(all(vec![hears], &|| true), [Ok(7)]);
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn silences_of_notifiers_that_are_gone_are_named_and_let_go() {
        let silence = Silence::ZabbixItems { host: "git01".into(), keys: vec!["k".into()] };
        let silenced = Silenced { notifier: "zabbix old:10051".into(), silence };
        let kept = serde_json::to_string(&silenced).expect("can be written down");
        assert_eq!(serde_json::from_str::<Silenced>(&kept).expect("can be read"), silenced);
        let (left, warnings) = end_silence(&[], vec![silenced], Time::default(), Time::default());
        assert!(left.is_empty() && warnings[0].contains("zabbix old:10051"), "{warnings:?}");
    }
}
