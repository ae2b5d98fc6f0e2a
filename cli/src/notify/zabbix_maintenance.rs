//! A maintenance period in Zabbix while services are stopped, through its API.
//!
//! The maintenance always has an end, so that nothing stays silenced if this machine dies
//! meanwhile. Once services are up, the end is moved closer. Each name has one maintenance, which
//! is reused every night.

use super::http::{self, Post};
use super::{Notification, Notify, NotifyError, Origin, Silence, SilenceEnd, TICK, filled};
use forge::secret::Secret;
use forge::settings::Limit;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use store::entry::Time;

/// The attempt that errors name.
const FAILED: &str = "Zabbix maintenance failed";
/// Shortest period that Zabbix accepts.
const MIN_PERIOD_SECONDS: i64 = 300;
/// Interval between queries whether the maintenance is in force.
const POLL: Duration = Duration::from_secs(3);
/// Number of API calls that a maintenance takes, for the time limit.
const CALLS: usize = 8;

/// `kind = "zabbix-maintenance"`: for Zabbix 6.0 and newer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ZabbixMaintenance {
    /// Address of the API: `https://…/api_jsonrpc.php`.
    url: String,
    /// API token of a user that may write to the hosts and groups, and may have maintenances.
    token: Secret,
    /// Zabbix names of the hosts to silence; by default this machine, unless groups are given.
    #[serde(default)]
    hosts: Vec<String>,
    /// Host groups to silence.
    #[serde(default)]
    groups: Vec<String>,
    /// Name of the maintenance, which nobody else may use.
    #[serde(default = "name")]
    name: String,
    /// True if values are collected during the maintenance.
    #[serde(default = "yes")]
    with_data: bool,
    /// Time after which the maintenance ends by itself.
    #[serde(default = "two_hours")]
    at_most: Limit,
    /// Maximum wait for Zabbix to put the maintenance in force, which it does once a minute.
    /// Services are up during this wait.
    #[serde(default = "a_minute_and_a_bit")]
    wait: Limit,
    #[serde(default = "super::ten_seconds")]
    timeout: Limit,
}

fn name() -> String {
    "forgekeep {instance} on {host}".into()
}

fn yes() -> bool {
    true
}

fn two_hours() -> Limit {
    Limit(Duration::from_secs(2 * 60 * 60))
}

fn a_minute_and_a_bit() -> Limit {
    Limit(Duration::from_secs(75))
}

impl Notify for ZabbixMaintenance {
    fn name(&self) -> String {
        // Two notifiers for one frontend differ in the names of their maintenances.
        format!("zabbix-maintenance {} ({})", http::place(&self.url), self.name)
    }

    fn fault(&self) -> Option<NotifyError> {
        let is_empty = |names: &[String]| names.iter().any(String::is_empty);
        let key = match () {
            () if self.name.trim().is_empty() => "name",
            () if is_empty(&self.hosts) => "hosts",
            () if is_empty(&self.groups) => "groups",
            () => return http::server(&self.url).err(),
        };
        Some(NotifyError::EmptyName(key))
    }

    fn open_address(&self) -> bool {
        http::user_of(&self.url).is_some()
    }

    fn secrets(&self) -> Vec<&Secret> {
        vec![&self.token]
    }

    fn limit(&self) -> Duration {
        super::overall(self.timeout, CALLS, Some(&self.token)).saturating_add(self.wait.0)
    }

    fn sends(&self, _: &Notification) -> bool {
        false
    }

    fn notify(&self, _notification: &Notification) -> Result<(), NotifyError> {
        Ok(())
    }

    fn plan_silence(&self, origin: &Origin, now: Time) -> Option<Silence> {
        // Zabbix rounds down to the minute.
        let till = minute_after(self.at_most.0.as_secs() as i64 + now.seconds);
        Some(Silence::ZabbixMaintenance { name: filled(&self.name, origin), till })
    }

    fn silence(
        &self,
        planned: &Silence,
        origin: &Origin,
        now: Time,
        is_over: &AtomicBool,
    ) -> Result<(), NotifyError> {
        let Silence::ZabbixMaintenance { name, till } = planned else { return Ok(()) };
        let api = self.api()?;
        let (hosts, groups) = self.objects(&api, origin)?;
        let mut maintenance = json!({
            "active_since": now.seconds,
            "active_till": till,
            "maintenance_type": u8::from(!self.with_data),
            "hosts": hosts.iter().map(|id| json!({"hostid": id})).collect::<Vec<_>>(),
            "groups": groups.iter().map(|id| json!({"groupid": id})).collect::<Vec<_>>(),
            "timeperiods": [{
                "timeperiod_type": 0,
                "start_date": now.seconds,
                "period": (till - now.seconds + 60).max(MIN_PERIOD_SECONDS),
            }],
        });
        let known = api.known(name)?;
        if is_over.load(Relaxed) {
            // The caller no longer waits and may already have ended this silence.
            return Ok(());
        }
        match known {
            Some(Known { id, .. }) => {
                maintenance["maintenanceid"] = id.into();
                api.call("maintenance.update", maintenance)?;
            }
            None => {
                maintenance["name"] = name.as_str().into();
                maintenance["description"] = "Made by forgekeep while it stops services.".into();
                api.call("maintenance.create", maintenance)?;
            }
        }
        self.wait_for_force(&api, &hosts, &groups, is_over);
        Ok(())
    }

    fn end_silence(
        &self,
        silence: &Silence,
        end: Time,
        now: Time,
    ) -> Result<SilenceEnd, NotifyError> {
        let Silence::ZabbixMaintenance { name, till } = silence else {
            return Ok(SilenceEnd::Done);
        };
        let end = minute_after(end.max(now).seconds);
        if end >= *till {
            return Ok(SilenceEnd::Done);
        }
        let api = self.api()?;
        // The maintenance may never have been created, or may have ended.
        if let Some(Known { id, till }) = api.known(name)?
            && end < till
        {
            api.call("maintenance.update", json!({"maintenanceid": id, "active_till": end}))?;
        }
        Ok(SilenceEnd::Done)
    }
}

impl ZabbixMaintenance {
    /// Returns the ids of the hosts and groups to silence.
    fn objects(
        &self,
        api: &Api,
        origin: &Origin,
    ) -> Result<(Vec<String>, Vec<String>), NotifyError> {
        let hosts = match (&self.hosts[..], &self.groups[..]) {
            ([], []) => vec![origin.host.to_owned()],
            (hosts, _) => hosts.iter().map(|host| filled(host, origin)).collect(),
        };
        let groups = self.groups.iter().map(|group| filled(group, origin)).collect::<Vec<_>>();
        Ok((
            api.ids("host.get", "host", "hostid", &hosts)?,
            api.ids("hostgroup.get", "name", "groupid", &groups)?,
        ))
    }

    /// Waits until Zabbix has put the maintenance in force, but no longer than configured. A failed
    /// query does not prevent the backup.
    fn wait_for_force(&self, api: &Api, hosts: &[String], groups: &[String], is_over: &AtomicBool) {
        let started = Instant::now();
        let is_late = || started.elapsed() >= self.wait.0 || is_over.load(Relaxed);
        let awake = |of: &str, ids: &[String]| {
            ids.is_empty()
                || {
                    let mut query = json!({
                        "countOutput": true, "monitored_hosts": true, "filter": {"maintenance_status": 0},
                    });
                    query[of] = ids.into();
                    api.call("host.get", query).is_ok_and(|count| count == "0")
                }
        };
        let is_in_force = || awake("hostids", hosts) && awake("groupids", groups);
        while !(is_late() || is_in_force()) {
            let asked = Instant::now();
            while !is_late() && asked.elapsed() < POLL {
                std::thread::sleep(TICK);
            }
        }
    }

    fn api(&self) -> Result<Api<'_>, NotifyError> {
        let token = self.token.read().map_err(NotifyError::of_attempt(FAILED))?;
        let mut api = Api { settings: self, token, how: Authorization::None };
        let version = api.call("apiinfo.version", json!({}))?;
        let version = version.as_str().unwrap_or_default();
        api.how = authorization(version)
            .ok_or_else(|| NotifyError::OldApi(version.to_owned()))
            .map_err(NotifyError::of_attempt(FAILED))?;
        Ok(api)
    }
}

/// Returns the next full minute after a time. Both are in seconds.
fn minute_after(seconds: i64) -> i64 {
    (seconds.div_euclid(60) + 1) * 60
}

/// Way in which a version of Zabbix expects the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Authorization {
    /// No token.
    None,
    /// In the request, before 6.4.
    Request,
    /// In the header, the only way since 7.2.
    Header,
}

/// Returns the way for an API version; `None` if the version is too old or unknown.
fn authorization(version: &str) -> Option<Authorization> {
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    match (parts.next(), parts.next()) {
        (Some(6), Some(0..4)) => Some(Authorization::Request),
        (Some(6..), Some(_)) => Some(Authorization::Header),
        _ => None,
    }
}

/// An existing maintenance.
struct Known {
    id: String,
    /// End in seconds since 1970.
    till: i64,
}

/// The API of a Zabbix frontend.
struct Api<'a> {
    settings: &'a ZabbixMaintenance,
    token: forge::secret::Hidden,
    how: Authorization,
}

impl Api<'_> {
    /// Calls a method and returns its result.
    fn call(&self, method: &str, params: Value) -> Result<Value, NotifyError> {
        let failed =
            NotifyError::of_attempt::<NotifyError>(format!("Zabbix maintenance: {method} failed"));
        self.exchange(method, params).map_err(failed)
    }

    /// Posts a request and returns its result. Errors arrive with HTTP status 200, too.
    fn exchange(&self, method: &str, params: Value) -> Result<Value, NotifyError> {
        let mut request = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1});
        if self.how == Authorization::Request {
            request["auth"] = self.token.reveal().into();
        }
        let request = request.to_string();
        let post = Post {
            address: &self.settings.url,
            content_type: "application/json-rpc",
            bearer: (self.how == Authorization::Header).then(|| self.token.reveal()),
            body: request.as_bytes(),
            timeout: self.settings.timeout,
        };
        let answer = post.send()?;
        let mut answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if let Some(result) = answer.get_mut("result").filter(|result| !result.is_null()) {
            return Ok(result.take());
        }
        let server = http::server(&self.settings.url)?;
        let error = &answer["error"];
        let text =
            [&error["message"], &error["data"]].map(|part| part.as_str().unwrap_or_default());
        let text = text.join(" ").replace(self.token.reveal(), "…").replace(char::is_control, " ");
        Err(if text.trim().is_empty() {
            NotifyError::NoApi { server }
        } else {
            NotifyError::ApiRefused { server, message: text }
        })
    }

    /// Returns the maintenance of this name, if there is one.
    fn known(&self, name: &str) -> Result<Option<Known>, NotifyError> {
        let output = ["maintenanceid", "active_till"];
        let query = json!({"filter": {"name": [name]}, "output": output});
        let known = self.call("maintenance.get", query)?;
        let Some(id) = known[0]["maintenanceid"].as_str() else { return Ok(None) };
        let till = known[0]["active_till"].as_str().and_then(|till| till.parse().ok());
        Ok(Some(Known { id: id.to_owned(), till: till.unwrap_or(i64::MAX) }))
    }

    /// Returns the ids of the objects with these names. Fails if one does not exist.
    fn ids(
        &self,
        method: &str,
        by: &str,
        id: &str,
        names: &[String],
    ) -> Result<Vec<String>, NotifyError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = json!({"output": [id, by]});
        query["filter"][by] = names.into();
        let found = self.call(method, query)?;
        let found = found.as_array().map_or(&[][..], Vec::as_slice);
        let id_of = |name: &String| {
            let one = found.iter().find(|one| one[by] == **name).and_then(|one| one[id].as_str());
            one.map(str::to_owned).ok_or_else(|| {
                let what = if by == "host" { "host" } else { "host group" };
                NotifyError::of_attempt(FAILED)(NotifyError::Invisible { what, name: name.clone() })
            })
        };
        names.iter().map(id_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zabbix_version_decides_how_tokens_are_sent() {
        for (version, how) in [
            ("6.0.14", Authorization::Request),
            ("6.2.9", Authorization::Request),
            ("6.4.0", Authorization::Header),
            ("7.0.1", Authorization::Header),
            ("7.4.0beta1", Authorization::Header),
            ("10.0.0", Authorization::Header),
        ] {
            assert_eq!(authorization(version), Some(how), "{version}");
        }
        for version in ["5.4.12", "", "x", "6"] {
            assert_eq!(authorization(version), None, "{version}");
        }
    }

    #[test]
    fn ends_are_rounded_up_to_the_next_minute() {
        let ends = [0, 59, 60, 61, -1].map(minute_after);
        assert_eq!(ends, [60, 60, 120, 120, 0]);
    }
}
