//! Values for trapper items of a Zabbix server or proxy, in the protocol of `zabbix_sender`.
//!
//! The protocol is implemented here, without encryption, because existing implementations wait
//! without limit and trust any length.

use super::error::Rejection;
use super::notification::number;
use super::{
    Notification, Notify, NotifyError, Origin, Silence, SilenceEnd, What, filled, notification,
    persist,
};
use crate::run_record::RunRecord;
use forge::settings::Limit;
use serde::{Deserialize, Deserializer};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use store::check_record::{CheckKind, CheckRecord};
use store::entry::Time;

/// Start of a message: protocol, without compression and with short lengths.
const MAGIC: &[u8; 5] = b"ZBXD\x01";
/// Maximum bytes of an answer, which is a line of numbers.
const MAX_ANSWER: u32 = 64 << 10;
/// Maximum bytes of a text. Zabbix keeps 64 KiB.
const MAX_MESSAGE: usize = 60_000;

/// `kind = "zabbix"`: sends values when a run ends, and 1 or 0 while services are stopped.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Zabbix {
    /// Host name or address of a Zabbix server or proxy.
    server: String,
    #[serde(default = "port")]
    port: u16,
    /// Zabbix name of the host that has the items; by default the name of this machine.
    host: Option<String>,
    /// Item key for each value. No other values are sent.
    #[serde(default, deserialize_with = "some_keys")]
    keys: BTreeMap<Value, String>,
    /// Items that get a 1 before services are stopped, and a 0 some minutes after they were
    /// started.
    #[serde(default)]
    maintenance_keys: Vec<String>,
    #[serde(default = "super::ten_seconds")]
    timeout: Limit,
}

fn port() -> u16 {
    10051
}

fn some_keys<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<Value, String>, D::Error> {
    let keys = BTreeMap::deserialize(d)?;
    if keys.is_empty() {
        return Err(serde::de::Error::custom("no key for any value; set one, or omit keys"));
    }
    Ok(keys)
}

/// A value that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Value {
    /// 0 done, 1 incomplete, 2 failed.
    Status,
    /// All details as text.
    Message,
    /// Whole seconds.
    Duration,
    BytesRead,
    BytesStored,
    /// Seconds with a fraction; not sent if no services were stopped.
    SecondsDown,
    Warnings,
    ChecksFailed,
    /// Of a drill: 0 good, 1 incomplete, 2 faulty or failed.
    DrillStatus,
    /// Of a drill: all details as text.
    DrillMessage,
    /// Of a drill: whole seconds.
    DrillDuration,
    /// Age of the drilled snapshot in seconds.
    DrillRpo,
    /// Duration of the restore in seconds.
    DrillRto,
}

impl Value {
    /// Returns true if a test may send it. A test may send its text, which names it a test, and a
    /// status other than success. Invented figures would mix with those of backups.
    fn may_be_tried(self, what: &What<'_>) -> bool {
        match self {
            Value::Message | Value::DrillMessage => true,
            Value::Status | Value::DrillStatus => what.is_good() == Some(false),
            _ => false,
        }
    }

    /// Returns true if it belongs to drills, false if to backups.
    fn is_of_drill(self) -> bool {
        use Value::{DrillDuration, DrillMessage, DrillRpo, DrillRto, DrillStatus};
        matches!(self, DrillStatus | DrillMessage | DrillDuration | DrillRpo | DrillRto)
    }

    /// Returns true if an event of this sort can have it.
    fn is_of(self, what: &What<'_>) -> bool {
        match what {
            What::Started => false,
            What::Ended(_) => !self.is_of_drill(),
            What::Examined(record) => record.kind == CheckKind::Drill && self.is_of_drill(),
        }
    }

    /// Returns the value of an event; `None` if the event has none.
    fn of(self, notification: &Notification) -> Option<String> {
        match notification.what {
            What::Started => None,
            What::Ended(record) => self.of_run(notification, record),
            What::Examined(record) => self.of_drill(notification, record),
        }
    }

    fn of_drill(self, notification: &Notification, record: &CheckRecord) -> Option<String> {
        match self {
            Value::DrillStatus => Some(number(record.result).to_string()),
            Value::DrillMessage => Some(notification.text(MAX_MESSAGE)),
            Value::DrillDuration => Some(format!("{:.0}", record.seconds)),
            Value::DrillRpo => record.rpo_seconds.map(|age| age.to_string()),
            Value::DrillRto => record.rto_seconds.map(|rto| format!("{rto:.2}")),
            _ => None,
        }
    }

    fn of_run(self, notification: &Notification, record: &RunRecord) -> Option<String> {
        Some(match self {
            Value::Status => record.result.number().to_string(),
            Value::Message => notification.text(MAX_MESSAGE),
            Value::Duration => format!("{:.0}", record.total_duration),
            Value::BytesRead => record.statistics.bytes_read.to_string(),
            Value::BytesStored => record.statistics.added_stored_bytes.to_string(),
            Value::SecondsDown => format!("{:.2}", record.seconds_down()?),
            Value::Warnings => record.warnings.len().to_string(),
            Value::ChecksFailed => record.checks_failed().to_string(),
            _ => return None,
        })
    }
}

impl Notify for Zabbix {
    fn name(&self) -> String {
        format!("zabbix {}:{}", self.server, self.port)
    }

    fn fault(&self) -> Option<NotifyError> {
        let is_empty = |key: &String| key.trim().is_empty();
        let key = match () {
            () if self.host.as_ref().is_some_and(is_empty) => "host",
            () if self.keys.values().any(is_empty) => "keys",
            () if self.maintenance_keys.iter().any(is_empty) => "maintenance-keys",
            () if self.keys.is_empty() && self.maintenance_keys.is_empty() => {
                return Some(NotifyError::NoKeys);
            }
            () => return super::fault_of_server(&self.server, self.port),
        };
        Some(NotifyError::EmptyName(key))
    }

    fn sends(&self, notification: &Notification) -> bool {
        let is_tried = |value: &Value| {
            use Value::{DrillMessage, DrillStatus, Message, Status};
            matches!(value, Message | Status | DrillMessage | DrillStatus)
        };
        let is_test = notification.origin.is_test;
        let may_be_sent =
            |value: &Value| value.is_of(&notification.what) && (!is_test || is_tried(value));
        self.keys.keys().any(may_be_sent)
    }

    fn limit(&self) -> Duration {
        super::overall(self.timeout, 1, None)
    }

    fn notify(&self, notification: &Notification) -> Result<(), NotifyError> {
        if !self.sends(notification) {
            return Ok(());
        }
        let is_test = notification.origin.is_test;
        let what = &notification.what;
        let keys = self
            .keys
            .iter()
            .filter(|(value, _)| value.is_of(what) && (!is_test || value.may_be_tried(what)));
        let values: Vec<_> = keys
            .filter_map(|(value, key)| {
                Some((filled(key, &notification.origin), value.of(notification)?))
            })
            .collect();
        if is_test && values.is_empty() {
            return Err(NotifyError::OnlySuccess { name: self.name(), sent: "a value" });
        }
        self.send(&self.host(&notification.origin), values.into_iter(), notification.at)
    }

    fn plan_silence(&self, origin: &Origin, _: Time) -> Option<Silence> {
        let keys: Vec<_> = self.maintenance_keys.iter().map(|key| filled(key, origin)).collect();
        (!keys.is_empty()).then(|| Silence::ZabbixItems { host: self.host(origin), keys })
    }

    fn silence(
        &self,
        planned: &Silence,
        _: &Origin,
        now: Time,
        _: &AtomicBool,
    ) -> Result<(), NotifyError> {
        let Silence::ZabbixItems { host, keys } = planned else { return Ok(()) };
        self.send(host, keys.iter().map(|key| (key.clone(), "1".into())), now)
    }

    fn end_silence(
        &self,
        silence: &Silence,
        end: Time,
        now: Time,
    ) -> Result<SilenceEnd, NotifyError> {
        let Silence::ZabbixItems { host, keys } = silence else { return Ok(SilenceEnd::Done) };
        if now < end {
            return Ok(SilenceEnd::WhenDue);
        }
        self.send(host, keys.iter().map(|key| (key.clone(), "0".into())), now)?;
        Ok(SilenceEnd::Done)
    }
}

impl Zabbix {
    fn host(&self, origin: &Origin) -> String {
        self.host.as_deref().map_or(origin.host.to_owned(), |host| filled(host, origin))
    }

    /// Sends values for keys of a host in one request.
    fn send(
        &self,
        host: &str,
        values: impl Iterator<Item = (String, String)>,
        at: Time,
    ) -> Result<(), NotifyError> {
        let (clock, ns) = (at.seconds, at.nanoseconds);
        let data: Vec<Json> = values
            .map(|(key, value)| json!({"host": host, "key": key, "value": value, "clock": clock, "ns": ns}))
            .collect();
        if data.is_empty() {
            return Ok(());
        }
        let request = json!({"request": "sender data", "data": data, "clock": clock, "ns": ns});
        let request = request.to_string();
        let silent = |source| NotifyError::NoZabbix { name: self.name(), source };
        let answer = persist(|| self.exchange(request.as_bytes()).map_err(silent))?;
        accepted(&answer).map_err(|rejection| {
            let keys = data.iter().filter_map(|one| one["key"].as_str());
            let keys = keys.map(str::to_owned).collect();
            NotifyError::ItemsRefused { name: self.name(), rejection, host: host.to_owned(), keys }
        })
    }

    fn exchange(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + self.timeout.0;
        let mut stream = self.connect(deadline)?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(&framed(request))?;
        let mut header = [0; 13];
        read_exact(&mut stream, &mut header, deadline)?;
        let mut answer = vec![0; length(&header)?];
        read_exact(&mut stream, &mut answer, deadline)?;
        Ok(answer)
    }

    /// Connects to the first address of the server that answers.
    fn connect(&self, deadline: Instant) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the server name has no address");
        for address in (self.server.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(deadline)?) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Returns a request with its header, as sent to the server.
fn framed(request: &[u8]) -> Vec<u8> {
    let mut frame = MAGIC.to_vec();
    frame.extend_from_slice(&(request.len() as u64).to_le_bytes());
    frame.extend_from_slice(request);
    frame
}

/// Returns the length in bytes of the answer that follows a header.
fn length(header: &[u8; 13]) -> io::Result<usize> {
    let [length, reserved] =
        [5, 9].map(|at| u32::from_le_bytes(std::array::from_fn(|i| header[at + i])));
    if !header.starts_with(MAGIC) || reserved != 0 || length > MAX_ANSWER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a Zabbix server"));
    }
    Ok(length as usize)
}

/// Returns the time left until the deadline. Fails if none is left.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "timed out"));
    }
    Ok(left)
}

/// Fills the buffer before the deadline, even if one byte arrives at a time.
fn read_exact(stream: &mut TcpStream, mut into: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !into.is_empty() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(into) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server closed the connection",
                ));
            }
            Ok(read) => into = &mut into[read..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => left(deadline).map(drop)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fails unless the server accepted all values. A server that accepts none still answers "success";
/// only the counts show it.
fn accepted(answer: &[u8]) -> Result<(), Rejection> {
    let answer: Json = serde_json::from_slice(answer).unwrap_or_default();
    let info = answer["info"].as_str().unwrap_or_default();
    let failed = info.split(';').find_map(|part| part.trim().strip_prefix("failed:"));
    match (answer["response"].as_str(), failed.map(|number| number.trim().parse::<u64>())) {
        (Some("success"), Some(Ok(0))) => Ok(()),
        (Some("success"), Some(Ok(_))) => Err(Rejection::Some(info.to_owned())),
        _ => {
            let shown = answer.to_string().replace(char::is_control, " ");
            Err(Rejection::Odd(notification::cut(shown, 200).trim_end().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::notification::tests::{drill, failed, notification};
    use super::*;
    use store::check_record::CheckResult;

    #[test]
    fn only_a_reply_with_zero_failures_is_a_success() {
        let judged = |text: &str| accepted(text.as_bytes());
        let info = |numbers: &str| format!(r#"{{"response":"success","info":"{numbers}"}}"#);
        judged(&info("processed: 2; failed: 0; total: 2; seconds spent: 0.000070")).expect("all");
        for refused in [
            info("processed: 1; failed: 1; total: 2; seconds spent: 0.000070"),
            info("processed: 0; failed: 10; total: 10"),
            info("processed: 2"),
            info("failed: x"),
            r#"{"response":"failed","info":"failed: 0"}"#.into(),
            "{}".into(),
            "<html>".into(),
            String::new(),
        ] {
            assert!(judged(&refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_test_does_not_send_figures_or_a_success() {
        use super::super::notification::tests::done;
        let (done, failed) = (done(), failed());
        let [done, failed] = [&done, &failed].map(What::Ended);
        assert!(Value::Message.may_be_tried(&done) && Value::Message.may_be_tried(&failed));
        assert!(!Value::Status.may_be_tried(&done) && Value::Status.may_be_tried(&failed));
        for value in [Value::Duration, Value::BytesRead, Value::BytesStored, Value::Warnings] {
            assert!(!value.may_be_tried(&failed));
        }
    }

    #[test]
    fn drills_have_values_of_their_own() {
        let text = "server = 'z'\nkeys = { status = 'b', drill-status = 'd', drill-rpo = 'a', \
                    drill-rto = 't', drill-duration = 's' }";
        let zabbix: Zabbix = toml::from_str(text).expect("parses");
        let record = drill(CheckResult::Faulty);
        let notification = notification(What::Examined(&record));
        assert!(zabbix.sends(&notification));
        let sent = zabbix.keys.keys().filter(|value| value.is_of(&notification.what));
        let sent: Vec<_> = sent.filter_map(|value| value.of(&notification)).collect();
        assert_eq!(sent, ["2", "74", "21600", "31.40"]);
        let backups: Zabbix =
            toml::from_str("server = 'z'\nkeys = { status = 'b' }").expect("parses");
        assert!(!backups.sends(&notification));
        let check = CheckRecord { kind: CheckKind::Check, ..record.clone() };
        assert!(!zabbix.sends(&Notification { what: What::Examined(&check), ..notification }));
    }

    #[test]
    fn a_test_counts_only_what_it_sends() {
        let sends = |more: &str| {
            let zabbix: Zabbix = toml::from_str(&format!("server = 'z'\n{more}")).expect("parses");
            let record = failed();
            let mut tested = notification(What::Ended(&record));
            let in_a_run = zabbix.sends(&tested);
            tested.origin.is_test = true;
            (in_a_run, zabbix.sends(&tested))
        };
        assert_eq!(sends("keys = { status = 's', duration = 'd' }"), (true, true));
        assert_eq!(sends("keys = { duration = 'd' }"), (true, false));
        assert_eq!(sends("maintenance-keys = ['m']"), (false, false));
    }

    #[test]
    fn hostile_reply_headers_are_refused() {
        let header = |length: u32, reserved: u32, flags: u8| {
            let mut header = *b"ZBXD\x01\0\0\0\0\0\0\0\0";
            header[4] = flags;
            header[5..9].copy_from_slice(&length.to_le_bytes());
            header[9..].copy_from_slice(&reserved.to_le_bytes());
            self::length(&header)
        };
        assert_eq!(header(90, 0, 1).expect("fine"), 90);
        for (length, reserved, flags) in [
            (u32::MAX, 0, 1),
            (MAX_ANSWER + 1, 0, 1),
            (90, 1, 1),
            (90, 0, 3),
            (90, 0, 5),
            (9, 0, 0),
        ] {
            assert!(header(length, reserved, flags).is_err());
        }
        assert_eq!(framed(b"{}"), b"ZBXD\x01\x02\0\0\0\0\0\0\0{}");
    }

    #[test]
    fn numeric_items_get_numbers() {
        let record = failed();
        let notification = notification(What::Ended(&record));
        let all = [Value::Status, Value::Duration, Value::SecondsDown, Value::ChecksFailed];
        let values = all.map(|value| value.of(&notification).expect("a value"));
        assert_eq!(values, ["2", "760", "34.24", "2"]);
        let none = RunRecord { instance: None, ..record.clone() };
        assert_eq!(
            Value::SecondsDown
                .of(&super::super::notification::tests::notification(What::Ended(&none))),
            None
        );
    }

    #[test]
    fn a_silent_server_causes_a_timeout() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let text = format!("server = '127.0.0.1'\nport = {port}\ntimeout = '1s'");
        let zabbix: Zabbix = toml::from_str(&text).expect("parses");
        let error = zabbix.exchange(b"{}").expect_err("nobody answers");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
