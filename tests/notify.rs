//! Notifications, received by real servers that report what arrived.

use crate::support::listeners::{Certificate, Listener};
use crate::support::sandbox::{Outcome, Run, Sandbox, need_root};
use crate::support::server::wait_until;
use crate::support::zabbix::{HOST, Zabbix, now};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

/// Prepares `notify test` for an instance with these notifiers.
fn test(sandbox: &Sandbox, notifiers: &str, what: &str) -> Run {
    sandbox.write("forgekeep.toml", format!("{notifiers}\n[instances.gitlab]\nkind = 'plain'\n"));
    let config = sandbox.text("forgekeep.toml");
    sandbox.forgekeep(["notify", "test", "--instance", "gitlab", "--config", &config, "--as", what])
}

/// Writes a secret with the right permissions.
fn secret(sandbox: &Sandbox, name: &str, content: &str) -> String {
    sandbox.write(name, content);
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(sandbox.path(name), mode).expect("chmod");
    format!("{{ file = '{}' }}", sandbox.text(name))
}

/// Asserts a warning about a failed notification, in these words and no others.
#[track_caller]
fn warns(outcome: Outcome, words: &[&str]) {
    let outcome = outcome.ends_with(3);
    for word in words {
        assert!(outcome.stderr.contains(word), "{word:?} is not in: {}", outcome.all_output());
    }
    // A reason and a next step.
    assert!(outcome.stderr.contains("; "), "{}", outcome.all_output());
    assert!(!outcome.all_output().contains("s3cret"), "{}", outcome.all_output());
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer}: {value}"))
}

#[test]
fn a_test_does_not_ping_a_success() {
    let sandbox = Sandbox::new();
    let listener = Listener::http(&sandbox);
    let url = secret(&sandbox, "url", &format!("{}\n", listener.url("/ping/s3cret")));
    let table = format!("[[notify]]\nkind = 'ping'\nurl = {url}\n");
    for what in ["started", "done", "partial", "failed"] {
        let printed = test(&sandbox, &table, what).run().ok();
        assert!(!printed.all_output().contains("s3cret"), "{}", printed.all_output());
    }
    let requests = listener.requests();
    let paths: Vec<_> = requests.iter().map(|one| text(one, "/path")).collect();
    // A test message is one line in the service's log, unless it reports a failure.
    for (path, end) in paths.iter().zip(["log", "log", "3", "1"]) {
        let (path, run) = path.split_once("?rid=").expect("a run id");
        assert_eq!(path, format!("/ping/s3cret/{end}"));
        assert_eq!(run.len(), 36);
    }
    assert_eq!(paths.len(), 4);
    assert!(
        text(&requests[3], "/body").starts_with("test: backup of gitlab on "),
        "{}",
        requests[3]
    );
}

#[test]
fn temporary_errors_are_retried_and_others_are_reported() {
    let sandbox = Sandbox::new();
    let listener = Listener::http(&sandbox);
    let table = |path: &str| {
        format!("[[notify]]\nkind = 'ping'\nurl = '{}'\ntimeout = '2s'\n", listener.url(path))
    };
    let notify = |path: &str| test(&sandbox, &table(path), "started").run();
    notify("/flaky/2/s3cret").ok();
    assert_eq!(listener.requests().len(), 3);
    // A redirect would carry the secret to an unintended place.
    warns(notify("/redirect/s3cret"), &["302", "redirects are not followed"]);
    warns(notify("/echo/s3cret"), &["404", "there is no …", "check the address"]);
    assert_eq!(listener.requests().len(), 5);
    warns(notify("/slow/s3cret"), &["127.0.0.1", "timeout"]);
    warns(notify("/status/500/s3cret"), &["500", "check its log"]);
    let nobody = "[[notify]]\nkind = 'ping'\nurl = 'http://127.0.0.1:9/s3cret'\n";
    warns(test(&sandbox, nobody, "started").run(), &["cannot reach 127.0.0.1:9", "refused"]);
}

#[test]
fn a_failing_notifier_does_not_stop_the_others() {
    let sandbox = Sandbox::new();
    let listener = Listener::http(&sandbox);
    let table = format!(
        "[[notify]]\nkind = 'webhook'\nurl = {{ file = '{}' }}\n\
         [[notify]]\nkind = 'webhook'\nurl = '{}'\nusername = 'forgekeep'\nchannel = 'ops'\n",
        sandbox.text("readable"),
        listener.url("/hooks/s3cret")
    );
    sandbox.write("readable", "https://chat.example/s3cret");
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(sandbox.path("readable"), mode).expect("chmod");
    let outcome = test(&sandbox, &table, "failed").args(["--json"]).run().ends_with(3);
    let notified = &outcome.json()[0];
    assert_eq!(notified["message_type"], "notified");
    assert!(text(notified, "/failures/0").contains("chmod 600"), "{notified}");
    assert_eq!(notified["failures"].as_array().map(Vec::len), Some(1));
    let requests = listener.requests();
    let message: Value = serde_json::from_str(text(&requests[0], "/body")).expect("JSON");
    assert!(text(&message, "/text").contains(" failed\nthis is a test"), "{message}");
    assert_eq!((text(&message, "/username"), text(&message, "/channel")), ("forgekeep", "ops"));
    assert_eq!(text(&requests[0], "/headers/content-type"), "application/json");
    // A webhook does not hear of starts.
    test(&sandbox, &table, "started").run().ends_with(3);
    assert_eq!(listener.requests().len(), 1);
}

#[test]
fn certificates_are_checked() {
    let sandbox = Sandbox::new();
    let certificate = Certificate::make(&sandbox);
    let listener = Listener::https(&sandbox, &certificate);
    let url = format!("https://localhost:{}/s3cret", listener.port);
    let table = format!("[[notify]]\nkind = 'ping'\nurl = '{url}'\n");
    let run = || test(&sandbox, &table, "done");
    warns(run().run(), &["localhost", "certificate"]);
    assert!(listener.requests().is_empty());
    run().env("SSL_CERT_FILE", &certificate.path).run().ok();
    assert_eq!(listener.requests().len(), 1);
}

#[test]
fn mail_arrives_with_every_security_setting() {
    let sandbox = Sandbox::new();
    let certificate = Certificate::make(&sandbox);
    let password = secret(&sandbox, "password", "s3cret\n");
    for security in ["none", "starttls", "tls"] {
        let server = Listener::smtp(&sandbox, security, &certificate);
        let table = |password: &str| {
            let login = format!("user = 'backup'\npassword = {password}\n");
            format!(
                "[[notify]]\nkind = 'mail'\nserver = 'localhost'\nport = {}\nsecurity = '{security}'\n\
                 from = 'Backups <backup@example.org>'\nto = ['Adm\u{ed}n <admin@example.org>']\n{}",
                server.port,
                if security == "none" { "" } else { &login }
            )
        };
        let notify = |table: &str| {
            test(&sandbox, table, "failed").env("SSL_CERT_FILE", &certificate.path).run()
        };
        notify(&table(&password)).ok();
        let mails = server.mails();
        let mail = &mails[0];
        assert_eq!(text(mail, "/headers/to"), "Adm\u{ed}n <admin@example.org>");
        assert_eq!(text(mail, "/headers/auto-submitted"), "auto-generated");
        assert!(text(mail, "/headers/subject").starts_with("test: backup of gitlab on "), "{mail}");
        assert!(text(mail, "/headers/subject").ends_with(" failed"), "{mail}");
        assert!(text(mail, "/headers/message-id").contains('@'), "{mail}");
        assert!(text(mail, "/text").contains("this is a test"), "{mail}");
        assert_eq!(mail["is_encrypted"], security != "none");
        if security == "none" {
            continue;
        }
        assert_eq!(text(mail, "/user"), "backup");
        warns(notify(&table("{ command = ['echo', 'wrong'] }")), &["cannot send mail to", "535"]);
        // Without the authority that signed it.
        warns(test(&sandbox, &table(&password), "failed").run(), &["certificate"]);
        assert_eq!(server.mails().len(), 1);
    }
}

#[test]
fn a_refused_recipient_does_not_stop_the_others() {
    let sandbox = Sandbox::new();
    let certificate = Certificate::make(&sandbox);
    let server = Listener::smtp(&sandbox, "none", &certificate);
    let table = |security: &str| {
        format!(
            "[[notify]]\nkind = 'mail'\nserver = '127.0.0.1'\nport = {}\nsecurity = '{security}'\nfrom = 'a@x.org'\n\
             to = ['reject@x.org', 'later@x.org', 'b@x.org']\ntimeout = '3s'\n",
            server.port
        )
    };
    let outcome = test(&sandbox, &table("none"), "done").run();
    warns(outcome, &["cannot send mail to reject@x.org", "nobody of this name", "check addresses"]);
    let mails = server.mails();
    let to: Vec<_> = mails.iter().map(|mail| text(mail, "/to/0")).collect();
    assert_eq!(to, ["later@x.org", "b@x.org"]);
    // A client that requires TLS does not fall back.
    warns(
        test(&sandbox, &table("starttls"), "done").run(),
        &["cannot send mail to b@x.org", "STARTTLS"],
    );
    assert_eq!(server.mails().len(), 2);
}

#[test]
fn promtool_accepts_the_metrics() {
    let sandbox = Sandbox::new();
    let table = format!("[[notify]]\nkind = 'textfile'\ndirectory = '{}'\n", sandbox.text("d"));
    for kind in ["started", "silence"] {
        warns(
            test(&sandbox, &table, kind).run(),
            &["does not send this kind of message", "not tested"],
        );
    }
    warns(
        test(&sandbox, &table, "done").run(),
        &["cannot write metrics: ", "/d is not a directory"],
    );
    std::fs::create_dir(sandbox.path("d")).expect("a directory");
    let real = "forgekeep_last_success_timestamp_seconds{backup=\"gitlab\"} 1000\n";
    sandbox.write("d/forgekeep_gitlab.prom", real);
    for what in ["failed", "done", "partial"] {
        test(&sandbox, &table, what).run().ok();
        let metrics = sandbox.read("d/forgekeep.test.prom");
        // Exit code 3 is a remark of its linter.
        sandbox.tool("promtool").args(["check", "metrics"]).input(metrics).run().ok();
    }
    assert_eq!(sandbox.read("d/forgekeep_gitlab.prom"), real.as_bytes());

    std::fs::create_dir(sandbox.path("source")).expect("a directory");
    let config = format!(
        "state = '{}'\n{table}[stores.main]\npath = '{}'\n[instances.gitlab]\nkind = 'plain'\n\
         [instances.gitlab.parts.data]\npath = '{}'\n",
        sandbox.text("state"),
        sandbox.text("store"),
        sandbox.text("source")
    );
    sandbox.write("real.toml", config);
    sandbox.write("source/a", "a");
    sandbox.run(["backup", "--instance", "gitlab", "--init", "--config", "real.toml"]).ok();
    let metrics = String::from_utf8(sandbox.read("d/forgekeep_gitlab.prom")).expect("text");
    sandbox.tool("promtool").args(["check", "metrics"]).input(&metrics[..]).run().ok();
    assert!(metrics.contains("forgekeep_last_run_result{backup=\"gitlab\"} 0\n"), "{metrics}");
    assert!(!metrics.contains(" 1000\n"), "{metrics}");
    let mut names: Vec<_> = metrics.lines().filter(|line| !line.starts_with('#')).collect();
    let all = names.len();
    names.dedup_by_key(|line| line.split('{').next());
    assert!(names.len() == all && all >= 7, "{metrics}");
    let mode = std::fs::metadata(sandbox.path("d/forgekeep_gitlab.prom")).expect("there");
    assert_eq!(mode.permissions().mode() & 0o777, 0o644);
}

#[test]
fn zabbix_stores_values_and_refused_items_are_reported() {
    need_root();
    let sandbox = Sandbox::new();
    let zabbix = Zabbix::start(&sandbox);
    let table = |host: &str, more: &str| {
        format!(
            "[[notify]]\nkind = 'zabbix'\nserver = '127.0.0.1'\nport = {}\nhost = '{host}'\n\
             maintenance-keys = ['maintenance.status[web]']\n\
             [notify.keys]\nstatus = 'backup.status[{{instance}}]'\nmessage = 'backup.message[{{instance}}]'\n{more}\n",
            zabbix.port
        )
    };
    // A server that has just started does not know its items yet.
    wait_until("values are taken", || {
        test(&sandbox, &table(HOST, ""), "failed").run().code() == Some(0)
    });
    // Success messages and figures are only for backups.
    test(&sandbox, &table(HOST, "duration = 'backup.duration[gitlab]'"), "done").run().ok();
    let wrong = table(HOST, "").replace("backup.message[{instance}]", "no.such[item]");
    let outcome = test(&sandbox, &wrong, "partial").run();
    warns(outcome, &["failed: 1", "no.such[item]", "Zabbix trapper"]);
    warns(
        test(&sandbox, &table("nobody", ""), "failed").run(),
        &["failed: 2", "check that host nobody"],
    );
    wait_until("all values are stored", || zabbix.values("backup.status[gitlab]").len() == 2);
    assert_eq!(zabbix.values("backup.status[gitlab]"), ["2", "1"]);
    assert!(zabbix.values("backup.duration[gitlab]").is_empty());
    assert!(zabbix.values("backup.message[gitlab]")[0].contains("backup of gitlab on "));

    test(&sandbox, &table(HOST, ""), "silence").run().ok();
    wait_until("the end is there", || zabbix.values("maintenance.status[web]").len() == 2);
    assert_eq!(zabbix.values("maintenance.status[web]"), ["1", "0"]);

    let nobody =
        "[[notify]]\nkind = 'zabbix'\nserver = '127.0.0.1'\nport = 9\nkeys = { status = 's' }";
    warns(test(&sandbox, nobody, "done").run(), &["was not tested", "--as failed"]);
    warns(
        test(&sandbox, nobody, "failed").run(),
        &["zabbix 127.0.0.1:9 did not answer", "refused"],
    );
}

#[test]
fn a_zabbix_maintenance_expires_unless_it_is_ended_earlier() {
    need_root();
    let sandbox = Sandbox::new();
    let zabbix = Zabbix::start(&sandbox);
    let table = |token: &str, more: &str| {
        format!(
            "[[notify]]\nkind = 'zabbix-maintenance'\nurl = '{}'\ntoken = {token}\nat-most = '30m'\n{more}\n",
            zabbix.api()
        )
    };
    let token = secret(&sandbox, "token", &zabbix.token);
    let number = |maintenance: &Value, key: &str| -> i64 {
        text(maintenance, key).parse().expect("a number")
    };

    // Killed while it waits for Zabbix: the silence still ends.
    let wait = format!("hosts = ['{HOST}']\nwait = '100s'\n");
    let mut killed = test(&sandbox, &table(&token, &wait), "silence").start();
    wait_until("there is a maintenance", || !zabbix.maintenances().is_empty());
    killed.kill();
    assert!(killed.wait().was_killed());
    let first = zabbix.maintenances().remove(0);
    let left = number(&first, "/active_till") - now();
    assert!((29 * 60..=31 * 60).contains(&left), "{first}");
    assert!(number(&first, "/active_since") <= now(), "{first}");
    assert_eq!(text(&first, "/hosts/0/host"), HOST);
    assert!(text(&first, "/name").starts_with("forgekeep gitlab on "), "{first}");

    // The next run uses it again and ends it.
    let no_wait = format!("hosts = ['{HOST}']\nwait = '1s'\n");
    test(&sandbox, &table(&token, &no_wait), "silence").run().ok();
    let all = zabbix.maintenances();
    let [second] = &all[..] else { panic!("one is enough: {all:?}") };
    assert_eq!(second["maintenanceid"], first["maintenanceid"]);
    assert!(number(second, "/active_till") <= now() + 60, "{second}");

    // Whole groups, and without collecting data.
    let groups = "groups = ['Linux servers']\nwith-data = false\nname = 'nightly'\nwait = '1s'\n";
    test(&sandbox, &table(&token, groups), "silence").run().ok();
    assert_eq!(text(&zabbix.maintenances()[1], "/maintenance_type"), "1");

    let refused = |token: &str, more: &str, words: &[&str]| {
        warns(test(&sandbox, &table(token, more), "silence").run(), words);
    };
    let wrong = secret(&sandbox, "wrong", &"0".repeat(64));
    refused(&wrong, &no_wait, &["refused", "check the token"]);
    refused(&token, "hosts = ['nobody']", &["no host \"nobody\"", "rights"]);
    refused(&token, "groups = ['nobodies']", &["no host group \"nobodies\""]);
    assert_eq!(zabbix.maintenances().len(), 2);
}

#[test]
#[ignore = "a minute: so long Zabbix takes to put a maintenance in force"]
fn services_stop_only_after_the_maintenance_takes_effect() {
    let sandbox = Sandbox::new();
    let zabbix = Zabbix::start(&sandbox);
    let token = secret(&sandbox, "token", &zabbix.token);
    let table = format!(
        "[[notify]]\nkind = 'zabbix-maintenance'\nurl = '{}'\ntoken = {token}\nhosts = ['{HOST}']\nwait = '3m'\n",
        zabbix.api()
    );
    let started = now();
    test(&sandbox, &table, "silence").run().ok();
    assert!(zabbix.is_in_maintenance());
    assert!(now() - started < 90);
}

#[test]
fn newer_zabbix_gets_the_token_in_the_header() {
    let sandbox = Sandbox::new();
    let listener = Listener::http(&sandbox);
    let token = secret(&sandbox, "token", "t0ken");
    let table = |path: &str| {
        let url = listener.url(path);
        format!(
            "[[notify]]\nkind = 'zabbix-maintenance'\nurl = '{url}'\ntoken = {token}\nhosts = ['git01']\n"
        )
    };
    test(&sandbox, &table("/new-zabbix/api_jsonrpc.php"), "silence").run().ok();
    let methods: Vec<_> = listener
        .requests()
        .iter()
        .map(|one| serde_json::from_str::<Value>(text(one, "/body")).expect("JSON"))
        .map(|request| text(&request, "/method").to_owned())
        .collect();
    let wanted =
        ["apiinfo.version", "host.get", "maintenance.get", "maintenance.create", "host.get"];
    assert_eq!(methods[..5], wanted);
    assert_eq!(methods[5..7], ["apiinfo.version", "maintenance.get"]);
    assert_eq!(methods.last().map(String::as_str), Some("maintenance.update"));
    warns(
        test(&sandbox, &table("/other"), "silence").run(),
        &["gave no API answer", "/api_jsonrpc.php"],
    );
}

#[test]
fn a_configuration_without_a_notifier_is_an_error() {
    let sandbox = Sandbox::new();
    test(&sandbox, "", "failed").run().fails(1, &["has no notifier"]);
    let ping = "[[notify]]\nkind = 'ping'\nurl = 'http://127.0.0.1:9/x'\n[instances.other]\nkind = 'plain'\n";
    sandbox.write("other.toml", ping);
    let unknown = ["notify", "test", "--instance", "gitlab", "--config", "other.toml"];
    sandbox.run(unknown).fails(1, &["no instance `gitlab`", "configured instances: other"]);
    let wrong = "[[notify]]\nkind = 'pin'\nurl = 'http://x'\n";
    test(&sandbox, wrong, "failed").run().fails(1, &["unknown variant `pin`"]);
}
