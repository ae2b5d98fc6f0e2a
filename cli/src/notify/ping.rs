//! A dead man's switch in the style of healthchecks.io: a service raises the alarm if no ping
//! arrives.

use super::http::{self, Post};
use super::{Notification, Notify, NotifyError, What};
use crate::exit::Failure;
use forge::secret::{Address, Secret};
use forge::settings::Limit;
use serde::Deserialize;
use std::time::Duration;
use store::check_record::{CheckKind, CheckResult};

/// Maximum bytes of a body that healthchecks.io keeps.
const MAX_BODY: usize = 100_000;

/// `kind = "ping"`: pings `URL/start` when a run begins, and `URL/EXIT-CODE` when it ends.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ping {
    /// Address to ping after a success. Anyone who has it can ping.
    url: Address,
    /// Address to ping after a drill. A drill must not pass for a backup.
    drill_url: Option<Address>,
    /// True if the service understands exit codes. Otherwise it gets `URL` and `URL/fail`.
    #[serde(default = "yes")]
    exit_codes: bool,
    #[serde(default = "super::ten_seconds")]
    timeout: Limit,
}

fn yes() -> bool {
    true
}

impl Notify for Ping {
    fn name(&self) -> String {
        format!("ping {}", http::shown(&self.url))
    }

    fn secrets(&self) -> Vec<&Secret> {
        self.addresses().into_iter().filter_map(super::secret_of).collect()
    }

    fn addresses(&self) -> Vec<&Address> {
        std::iter::once(&self.url).chain(&self.drill_url).collect()
    }

    fn open_address(&self) -> bool {
        self.addresses().into_iter().any(|address| matches!(address, Address::Plain(_)))
    }

    fn limit(&self) -> Duration {
        let secret = self.addresses().into_iter().find_map(super::secret_of);
        super::overall(self.timeout, 1, secret)
    }

    fn sends(&self, notification: &Notification) -> bool {
        self.base(notification).is_some()
    }

    fn notify(&self, notification: &Notification) -> Result<(), NotifyError> {
        let Some(base) = self.base(notification) else { return Ok(()) };
        let what = self
            .path(notification)
            .ok_or_else(|| NotifyError::OnlySuccess { name: self.name(), sent: "the ping" })?;
        let failed = "cannot send the ping";
        let address = base.read().map_err(NotifyError::of_attempt(failed))?;
        let address = address_of(address.reveal(), &what, notification);
        let body = notification.text(MAX_BODY);
        let post = Post {
            address: &address,
            content_type: "text/plain; charset=utf-8",
            bearer: None,
            body: body.as_bytes(),
            timeout: self.timeout,
        };
        post.send().map(drop).map_err(NotifyError::of_attempt::<NotifyError>(failed))
    }
}

impl Ping {
    /// Returns the address for this sort of event, if there is one.
    fn base(&self, notification: &Notification) -> Option<&Address> {
        match notification.what {
            What::Started | What::Ended(_) => Some(&self.url),
            What::Examined(record) if record.kind == CheckKind::Drill => self.drill_url.as_ref(),
            What::Examined(_) => None,
        }
    }

    /// Returns the path to append to the address; `None` for a test that the service would count as
    /// a run.
    fn path(&self, notification: &Notification) -> Option<String> {
        let is_test = notification.origin.is_test;
        let is_good = notification.what.is_good();
        let exit_code = match notification.what {
            What::Started => 0,
            What::Ended(record) => record.exit_code,
            What::Examined(record) if record.result == CheckResult::Failed => 1,
            What::Examined(_) => Failure::Partial.number(),
        };
        Some(match is_good {
            // Adds a line to the log of the check, whose state does not change.
            None | Some(true) if is_test && self.exit_codes => "/log".to_owned(),
            None | Some(true) if is_test => return None,
            None => "/start".to_owned(),
            // Only a good run may ping `/0`, which counts as a success.
            Some(true) if self.exit_codes => "/0".to_owned(),
            Some(false) if self.exit_codes => format!("/{}", exit_code.max(1)),
            Some(true) => String::new(),
            Some(false) => "/fail".to_owned(),
        })
    }
}

/// Returns the address to ping. Inserts the path before an existing query. Drops a fragment, which
/// would swallow the path: the service would count every ping as a success.
fn address_of(base: &str, what: &str, notification: &Notification) -> String {
    let (base, _) = base.split_once('#').unwrap_or((base, ""));
    let (base, query) = base
        .split_once('?')
        .map_or((base, String::new()), |(base, query)| (base, format!("{query}&")));
    let base = base.trim_end_matches('/');
    format!("{base}{what}?{query}rid={}", notification.origin.run)
}

#[cfg(test)]
mod tests {
    use super::super::notification::tests::{done, drill, failed, notification};
    use super::*;
    use store::check_record::CheckRecord;

    #[test]
    fn a_fragment_does_not_turn_a_failure_into_a_success() {
        let record = failed();
        let failed = notification(What::Ended(&record));
        let address = address_of("https://x/uuid#mine", "/1", &failed);
        assert!(address.starts_with("https://x/uuid/1?rid="), "{address}");
    }

    #[test]
    fn starts_successes_and_failures_have_separate_addresses() {
        let ping = |exit_codes| Ping {
            url: Address::Plain(String::new()),
            drill_url: None,
            exit_codes,
            timeout: super::super::ten_seconds(),
        };
        let (done, mut failed) = (done(), failed());
        failed.exit_code = 11;
        let rid = "rid=ffffffff-ffff-4fff-bfff-ffffffffffff";
        for (exit_codes, what, wanted) in [
            (true, What::Started, "/start"),
            (true, What::Ended(&done), "/0"),
            (true, What::Ended(&failed), "/11"),
            (false, What::Started, "/start"),
            (false, What::Ended(&done), ""),
            (false, What::Ended(&failed), "/fail"),
        ] {
            let notification = notification(what);
            let path = ping(exit_codes).path(&notification).expect("a path");
            let address = address_of("https://hc/id/", &path, &notification);
            assert_eq!(address, format!("https://hc/id{wanted}?{rid}"));
        }
        let address =
            address_of("https://hc/key/slug?create=1", "/start", &notification(What::Started));
        assert_eq!(address, format!("https://hc/key/slug/start?create=1&{rid}"));
    }

    #[test]
    fn a_drill_pings_an_address_of_its_own() {
        let [good, faulty] = [CheckResult::Good, CheckResult::Faulty].map(drill);
        let ping = |more: &str| -> Ping {
            toml::from_str(&format!("url = 'https://hc/backup'\n{more}")).expect("parses")
        };
        let only_backups = ping("");
        assert!(!only_backups.sends(&notification(What::Examined(&good))));
        let both = ping("drill-url = 'https://hc/drill'");
        for (record, wanted) in [(&good, "/0"), (&faulty, "/3")] {
            let notification = notification(What::Examined(record));
            assert_eq!(both.path(&notification).as_deref(), Some(wanted));
            let Some(Address::Plain(base)) = both.base(&notification) else { panic!("an address") };
            assert_eq!(base, "https://hc/drill");
        }
        let check = CheckRecord { kind: CheckKind::Check, ..faulty };
        assert!(!both.sends(&notification(What::Examined(&check))));
    }

    #[test]
    fn a_test_never_reports_a_success() {
        let (done, failed) = (done(), failed());
        for (exit_codes, what, wanted) in [
            (true, What::Started, Some("/log")),
            (true, What::Ended(&done), Some("/log")),
            (true, What::Ended(&failed), Some("/1")),
            (false, What::Started, None),
            (false, What::Ended(&done), None),
            (false, What::Ended(&failed), Some("/fail")),
        ] {
            let timeout = super::super::ten_seconds();
            let url = Address::Plain(String::new());
            let ping = Ping { url, drill_url: None, exit_codes, timeout };
            let mut notification = notification(what);
            notification.origin.is_test = true;
            assert_eq!(ping.path(&notification).as_deref(), wanted);
        }
    }
}
