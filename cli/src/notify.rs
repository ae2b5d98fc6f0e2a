//! Telling people and their monitoring how a run went, and silencing the monitoring while services are
//! stopped.
//!
//! A notifier is one file below this one and one line in [`Notifier`]. None of them ever makes a
//! run fail: whoever calls gets sentences to pass on as warnings. Each has a limit of time, and all
//! are told at once, so that a dead server costs seconds.

mod http;
mod mail;
mod news;
mod ping;
mod textfile;
mod webhook;
mod zabbix;
mod zabbix_maintenance;

pub use news::{Ending, News, Origin, Outcome, RunId, What};

use forge::run::at_once;
use forge::settings::Limit;
use serde::{Deserialize, Serialize};
use std::time::Duration;
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

    /// Silences the monitoring from `now` on; `None` if it cannot or was not asked to.
    fn silence(&self, _origin: &Origin, _now: Time) -> Result<Option<Silence>, String> {
        Ok(None)
    }

    /// Lets a silence of its own end at `end`.
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

    /// Tells the news, or nothing if these are none for it. An error is a sentence with the way out.
    pub fn tell(&self, news: &News) -> Result<(), String> {
        self.teller().tell(news)
    }
}

/// Tells everybody at once; gives what did not work, for warnings.
pub fn tell(notifiers: &[Notifier], news: &News) -> Vec<String> {
    at_once(notifiers, |notifier| notifier.tell(news)).into_iter().filter_map(Result::err).collect()
}

/// Monitoring that was silenced. Keep it where a later process finds it, until
/// [`end_silence`] no longer gives it back.
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
    /// A maintenance that ends by itself at `till`, in seconds since 1970.
    ZabbixMaintenance { id: String, till: i64 },
}

/// Silences all monitoring that can be silenced; call it before services are stopped, and write down what it
/// gives. The second list is what did not work, for warnings.
pub fn silence(notifiers: &[Notifier], origin: &Origin, now: Time) -> (Vec<Silenced>, Vec<String>) {
    let (mut silenced, mut warnings) = (Vec::new(), Vec::new());
    let results = at_once(notifiers, |notifier| notifier.teller().silence(origin, now));
    for (notifier, result) in notifiers.iter().zip(results) {
        match result {
            Ok(None) => {}
            Ok(Some(silence)) => silenced.push(Silenced { notifier: notifier.name(), silence }),
            Err(warning) => warnings.push(warning),
        }
    }
    (silenced, warnings)
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
    for silenced in silenced {
        let name = &silenced.notifier;
        let Some(notifier) = notifiers.iter().find(|notifier| notifier.name() == *name) else {
            warnings.push(format!(
                "{name} was silenced and is no longer in the configuration; end the silence by hand"
            ));
            continue;
        };
        match notifier.teller().end_silence(&silenced.silence, end, now) {
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
    fn silences_of_notifiers_that_are_gone_are_named_and_let_go() {
        let silence = Silence::ZabbixItems { host: "git01".into(), keys: vec!["k".into()] };
        let silenced = Silenced { notifier: "zabbix old:10051".into(), silence };
        let kept = serde_json::to_string(&silenced).expect("can be written down");
        assert_eq!(serde_json::from_str::<Silenced>(&kept).expect("can be read"), silenced);
        let (left, warnings) = end_silence(&[], vec![silenced], Time::default(), Time::default());
        assert!(left.is_empty() && warnings[0].contains("zabbix old:10051"), "{warnings:?}");
    }
}
