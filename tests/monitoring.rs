//! Real servers get messages about runs of instances, and monitoring is silent while services are
//! down.

use crate::support::gitlab::Builder;
use crate::support::instance::{backup, configure, configured, lines};
use crate::support::listeners::Listener;
use crate::support::sandbox::{Sandbox, need_root};
use crate::support::server::wait_until;
use crate::support::zabbix::{HOST, Zabbix};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SILENCE: &str = "maintenance.status[web]";

#[test]
fn monitoring_is_silenced_while_services_are_down() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    let zabbix = Zabbix::start(&sandbox);
    let listener = Listener::http(&sandbox);
    let notifiers = format!(
        "mode = 'maintenance'\n[[notify]]\nkind = 'zabbix'\nserver = '127.0.0.1'\nport = {}\nhost = '{HOST}'\n\
         maintenance-keys = ['{SILENCE}']\nkeys = {{ status = 'backup.status[gitlab]' }}\n\
         [[notify]]\nkind = 'ping'\nurl = '{}'\n",
        zabbix.port,
        listener.url("/ping")
    );
    configure(&sandbox, &gitlab, &notifiers);
    let text = String::from_utf8(sandbox.read("forgekeep.toml")).expect("text");
    sandbox.write("forgekeep.toml", format!("silence-after = '1s'\n{text}"));
    let try_out = ["notify", "test", "--instance", "forge", "--as", "failed"];
    // A server that has just started does not know its items yet.
    wait_until("values are taken", || configured(&sandbox, try_out).run().code() == Some(0));
    let before = listener.requests().len();
    let pinged_paths = || {
        let requests = listener.requests();
        let paths = requests[before..].iter().map(|one| one["path"].as_str().expect("a path"));
        paths.map(|path| path.split('?').next().expect("a path").to_owned()).collect::<Vec<_>>()
    };
    let silences = |count: usize| {
        wait_until("values are stored", || zabbix.values(SILENCE).len() >= count);
        zabbix.values(SILENCE)
    };

    backup(&sandbox).run().ok();
    assert_eq!(pinged_paths(), ["/ping/start", "/ping/0"]);
    assert_eq!(silences(2), ["1", "0"]);

    // A run that fails.
    gitlab.redis.break_saving();
    backup(&sandbox).run().ends_with(1);
    gitlab.redis.repair_saving();
    assert_eq!(pinged_paths()[2..], ["/ping/start", "/ping/1"]);
    assert_eq!(silences(4)[2..], ["1", "0"]);

    // A run that is killed: the process that restarts the services also ends the silence.
    let mut running = backup(&sandbox).start();
    let started = Instant::now();
    while gitlab.services.is_up("puma") {
        assert!(started.elapsed() < Duration::from_secs(60), "it never stopped puma");
        std::thread::sleep(Duration::from_millis(2));
    }
    running.kill();
    assert!(running.wait().was_killed());
    assert_eq!(silences(5)[4..], ["1"]);
    configured(&sandbox, ["recover"]).run().ok();
    gitlab.services.wait_until_up();
    assert_eq!(silences(6)[4..], ["1", "0"]);
    assert!(!sandbox.has("state/recovery/forge.json"));
}

/// Configures an instance of two commands and a directory, with more lines for it, then more
/// tables.
fn plain(sandbox: &Sandbox, top: &str, more: &str, tables: &str) {
    sandbox.write("data/file", "content");
    sandbox.write(
        "forgekeep.toml",
        format!(
            "state = '{}'\n{top}\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'plain'\n\
             mode = 'maintenance'\n{more}\n[instances.forge.parts.data]\npath = '{}'\n\
             [instances.forge.services]\nstop = [{{ command = ['true'] }}]\n\
             start = [{{ command = ['true'] }}]\n{tables}\n",
            sandbox.text("state"),
            sandbox.text("store"),
            sandbox.text("data")
        ),
    );
}

/// A Zabbix server for values, which accepts them all except those of the key `unknown`.
struct Trapper {
    port: u16,
    values: Arc<Mutex<Vec<(Instant, String, String)>>>,
}

impl Trapper {
    fn start() -> Trapper {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let values = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&values);
        // Ends with the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut header = [0; 13];
                stream.read_exact(&mut header).expect("a header");
                let len = u32::from_le_bytes(header[5..9].try_into().expect("four"));
                let mut body = vec![0; len as usize];
                stream.read_exact(&mut body).expect("a request");
                let request: Value = serde_json::from_slice(&body).expect("JSON");
                let data = request["data"].as_array().expect("values");
                let mut failed = 0;
                for one in data {
                    let [key, value] =
                        ["key", "value"].map(|name| one[name].as_str().expect("text"));
                    if key == "unknown" {
                        failed += 1;
                        continue;
                    }
                    seen.lock().expect("no panic").push((Instant::now(), key.into(), value.into()));
                }
                let info = format!(
                    "processed: {}; failed: {failed}; total: {}",
                    data.len() - failed,
                    data.len()
                );
                let answer = serde_json::json!({"response": "success", "info": info}).to_string();
                let mut frame = b"ZBXD\x01".to_vec();
                frame.extend_from_slice(&(answer.len() as u64).to_le_bytes());
                frame.extend_from_slice(answer.as_bytes());
                stream.write_all(&frame).expect("answers");
            }
        });
        Trapper { port, values }
    }

    fn table(&self, keys: &str) -> String {
        let port = self.port;
        format!(
            "[[notify]]\nkind = 'zabbix'\nserver = '127.0.0.1'\nport = {port}\nhost = 'git01'\nmaintenance-keys = {keys}\n"
        )
    }

    fn values(&self) -> Vec<String> {
        self.values
            .lock()
            .expect("no panic")
            .iter()
            .map(|(_, key, value)| format!("{key}={value}"))
            .collect()
    }
}

/// Returns a table for the listener's Zabbix, which never puts a maintenance in force.
fn late_zabbix(sandbox: &Sandbox, listener: &Listener) -> String {
    use std::os::unix::fs::PermissionsExt;
    sandbox.write("token", "t0ken");
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(sandbox.path("token"), mode).expect("chmod");
    let url = listener.url("/late-zabbix/api_jsonrpc.php").replace("http://", "http://a:passw0rd@");
    format!(
        "[[notify]]\nkind = 'zabbix-maintenance'\nurl = '{url}'\ntoken = {{ file = '{}' }}\n\
         hosts = ['git01']\nwait = '100s'\n",
        sandbox.text("token")
    )
}

/// Returns the methods that were called on the listener's Zabbix.
fn methods(listener: &Listener) -> Vec<String> {
    let bodies = listener.requests();
    let bodies = bodies.iter().map(|one| one["body"].as_str().expect("a body"));
    let parsed = bodies.map(|body| serde_json::from_str::<Value>(body).expect("JSON"));
    parsed.map(|call| call["method"].as_str().expect("a method").to_owned()).collect()
}

#[test]
fn silences_are_recorded_first_and_can_be_interrupted() {
    let sandbox = Sandbox::new();
    let listener = Listener::http(&sandbox);
    plain(&sandbox, "", "", &late_zabbix(&sandbox, &listener));
    let called = |method: &str, count: usize| {
        methods(&listener).iter().filter(|one| *one == method).count() >= count
    };
    let mut running = backup(&sandbox).start();
    wait_until("there is a maintenance", || called("maintenance.create", 1));
    running.kill();
    assert!(running.wait().was_killed());
    let record = String::from_utf8(sandbox.read("state/recovery/forge.json")).expect("text");
    assert!(record.contains("forgekeep forge on ") && !record.contains("passw0rd"), "{record}");
    let recovered = configured(&sandbox, ["recover"]).run().ok();
    assert!(
        recovered.stderr.contains("end the silence in monitoring"),
        "{}",
        recovered.all_output()
    );
    assert!(called("maintenance.update", 1) && !sandbox.has("state/recovery/forge.json"));

    let running = backup(&sandbox).start();
    wait_until("it is used again", || called("maintenance.update", 2));
    let interrupted = Instant::now();
    running.interrupt();
    let outcome = running.wait().ends_with(130);
    assert!(interrupted.elapsed() < Duration::from_secs(30), "{}", outcome.all_output());
    assert!(called("maintenance.update", 3) && !sandbox.has("state/recovery/forge.json"));
    assert!(!outcome.all_output().contains("passw0rd"), "{}", outcome.all_output());
}

#[test]
fn a_partly_refused_silence_is_reported_and_ended() {
    let sandbox = Sandbox::new();
    let trapper = Trapper::start();
    plain(&sandbox, "silence-after = '1s'", "", &trapper.table("['known', 'unknown']"));
    let outcome = backup(&sandbox).run().ok();
    assert_eq!(trapper.values(), ["known=1", "known=0"]);
    let all = outcome.json();
    let warnings: Vec<&str> =
        lines(&all, "warning").iter().map(|line| line["message"].as_str().expect("text")).collect();
    let refused = warnings.iter().filter(|text| text.contains("failed: 1")).count();
    assert_eq!(refused, 1, "the same text is printed once: {warnings:?}");
    // The unfinished end of a silence is recorded once, for any number of such nights.
    backup(&sandbox).run().ok();
    let record = String::from_utf8(sandbox.read("state/recovery/forge.json")).expect("text");
    assert_eq!(record.matches("end-silence").count(), 1, "{record}");
    configured(&sandbox, ["recover"]).run().ends_with(3);
    let forgotten = configured(&sandbox, ["recover", "--forget", "--instance", "forge"]).run().ok();
    assert!(forgotten.stderr.contains("dropping"), "{}", forgotten.all_output());
    assert!(!sandbox.has("state/recovery/forge.json"));
}

#[test]
fn a_recovered_silence_does_not_end_the_silence_of_a_run() {
    let sandbox = Sandbox::new();
    let trapper = Trapper::start();
    let mark = sandbox.text("mark");
    let slow =
        format!("[[instances.forge.before]]\ncommand = ['sh', '-c', 'touch {mark}; sleep 4']");
    let table = trapper.table("['key']");
    plain(&sandbox, "silence-after = '3s'", "", &format!("{slow}\n{table}"));
    let silence = serde_json::json!([{"end-silence": [{
        "notifier": format!("zabbix 127.0.0.1:{}", trapper.port),
        "silence": {"zabbix-items": {"host": "git01", "keys": ["key"]}},
    }]}]);
    sandbox.write("state/recovery/forge.json", silence.to_string());
    // The silence that was left behind ends at once, before anything else.
    let running = backup(&sandbox).start();
    wait_until("it begins", || sandbox.has("mark"));
    assert_eq!(trapper.values(), ["key=0"]);
    running.wait().ok();
    assert_eq!(trapper.values(), ["key=0", "key=1", "key=0"]);
    let values = trapper.values.lock().expect("no panic");
    assert!(values[2].0 - values[1].0 >= Duration::from_secs(3), "{values:?}");
    assert!(!sandbox.has("state/recovery/forge.json"));
}

#[test]
fn a_slow_mail_server_does_not_delay_a_backup() {
    let sandbox = Sandbox::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.expect("a connection");
                while stream.write_all(b"2").is_ok() {
                    std::thread::sleep(Duration::from_millis(300));
                }
            });
        }
    });
    let trapper = Trapper::start();
    let mail = format!(
        "[[notify]]\nkind = 'mail'\nserver = '127.0.0.1'\nport = {port}\nsecurity = 'none'\n\
         from = 'a@x.org'\nto = ['b@x.org']\nwhen = 'always'\ntimeout = '1s'\n"
    );
    let tables = format!("{mail}{}", trapper.table("['key']"));
    plain(&sandbox, "silence-after = '1s'", "", &tables);
    let started = Instant::now();
    let running = backup(&sandbox).start();
    wait_until("monitoring received both values", || trapper.values() == ["key=1", "key=0"]);
    let outcome = running.wait().ok();
    assert!(started.elapsed() < Duration::from_secs(40), "{}", outcome.all_output());
    let all = outcome.json();
    let late = lines(&all, "warning");
    let late =
        late.iter().any(|line| line["message"].to_string().contains("did not finish within"));
    assert!(late, "{}", outcome.all_output());
}

#[test]
fn a_notification_has_warnings_and_a_refused_run_sends_none() {
    let sandbox = Sandbox::new();
    let listener = Listener::http(&sandbox);
    let ping = format!("[[notify]]\nkind = 'ping'\nurl = '{}'\n", listener.url("/ping"));
    let steps = "[[instances.forge.before]]\ncommand = ['sh', '-c', 'echo because >&2; exit 7']\n\
                 on-failure = 'warn'\n[[instances.forge.before]]\ncommand = ['sleep', '3']\n";
    plain(&sandbox, "", "", &format!("{steps}{ping}"));
    let running = backup(&sandbox).start();
    wait_until("it began", || listener.requests().len() == 1);
    backup(&sandbox).run().fails(11, &["another run"]);
    assert_eq!(listener.requests().len(), 1);
    assert!(!sandbox.has("state/last/forge"));
    running.wait().ok();
    let requests = listener.requests();
    let body = requests[1]["body"].as_str().expect("a body");
    assert!(body.contains("2 warnings") && body.contains("because"), "{body}");
    assert_eq!(sandbox.read("state/last/forge"), b"done");
}

#[test]
fn drills_and_checks_are_reported_apart_from_backups() {
    need_root();
    let sandbox = Sandbox::new();
    let listener = Listener::http(&sandbox);
    std::fs::create_dir(sandbox.path("metrics")).expect("a directory");
    let notifiers = format!(
        "[[notify]]\nkind = 'ping'\nurl = '{}'\ndrill-url = '{}'\n\
         [[notify]]\nkind = 'webhook'\nurl = '{}'\nwhen = 'always'\n\
         [[notify]]\nkind = 'textfile'\ndirectory = '{}'\n",
        listener.url("/backup"),
        listener.url("/drill"),
        listener.url("/hook"),
        sandbox.text("metrics"),
    );
    plain(&sandbox, "", "", &notifiers);
    backup(&sandbox).run().ok();
    let scratch = crate::support::gitlab::short_dir();
    let scratch = scratch.path().to_str().expect("text").to_owned();
    let drill = || configured(&sandbox, ["drill", "forge", "--scratch", &scratch]).run();
    let known = listener.requests().len();
    let new_paths = || {
        let requests = listener.requests();
        let paths = requests[known..].iter().map(|one| one["path"].as_str().expect("a path"));
        let mut paths: Vec<String> =
            paths.map(|path| path.split('?').next().expect("a path").to_owned()).collect();
        paths.sort();
        paths
    };
    let metric = |file: &str, start: &str| {
        let text = String::from_utf8(sandbox.read(format!("metrics/{file}"))).expect("text");
        sandbox.tool("promtool").args(["check", "metrics"]).input(&text[..]).run().ok();
        let line = text.lines().find(|line| line.starts_with(start)).expect("is there");
        line.rsplit(' ').next().expect("a value").to_owned()
    };
    let of_backup = sandbox.read("metrics/forgekeep_forge.prom");
    drill().ok();
    assert_eq!(new_paths(), ["/drill/0", "/hook"]);
    let result = "forgekeep_last_drill_result{backup=\"forge\"}";
    assert_eq!(metric("forgekeep.drill_forge.prom", result), "0");
    assert_eq!(sandbox.read("state/last-drill/forge"), b"done");
    configured(&sandbox, ["check"]).run().ok();
    assert_eq!(new_paths(), ["/drill/0", "/hook", "/hook"]);
    let result = "forgekeep_last_check_result{store=\"main\"}";
    assert_eq!(metric("forgekeep.check_main.prom", result), "0");
    let requests = listener.requests();
    let text = requests.last().expect("one")["body"].to_string();
    assert!(text.contains("check of store main on "), "{text}");

    // A missing store is a failure of the drill.
    std::fs::rename(sandbox.path("store"), sandbox.path("elsewhere")).expect("renames");
    drill().ends_with(10);
    assert_eq!(new_paths(), ["/drill/0", "/drill/1", "/hook", "/hook", "/hook"]);
    let success = "forgekeep_last_drill_success_timestamp_seconds";
    assert_ne!(metric("forgekeep.drill_forge.prom", success), "0");
    let result = "forgekeep_last_drill_result{backup=\"forge\"}";
    assert_eq!(metric("forgekeep.drill_forge.prom", result), "2");
    assert_eq!(sandbox.read("state/last-drill/forge"), b"not done");
    assert_eq!(sandbox.read("metrics/forgekeep_forge.prom"), of_backup);
    // A test of this event goes to the address of drills.
    configured(&sandbox, ["notify", "test", "--as", "drill"]).run().ok();
    assert_eq!(new_paths().iter().filter(|path| *path == "/drill/3").count(), 1);
}

#[test]
fn a_failed_recovery_does_not_stop_the_others() {
    let sandbox = Sandbox::new();
    plain(&sandbox, "", "", "");
    let start = |program: &str| {
        let command = serde_json::json!({
            "argv": [program, sandbox.text("started")], "user": null, "env": {}, "limit": {"secs": 9, "nanos": 0},
        });
        serde_json::json!([{"start": {"name": "puma", "commands": [command]}}]).to_string()
    };
    sandbox.write("state/recovery/a.json", "[{");
    sandbox.write("state/recovery/b.json", start("false"));
    sandbox.write("state/recovery/c.json", start("touch"));
    let outcome = configured(&sandbox, ["recover", "--json"]).run();
    let outcome = outcome.fails(1, &["--forget --instance"]);
    assert!(
        outcome.stdout.contains("cannot start puma")
            || outcome.stderr.contains("cannot start puma")
    );
    assert!(
        outcome.all_output().contains("a.json is not a valid record"),
        "{}",
        outcome.all_output()
    );
    assert!(sandbox.has("started"));
    let all = outcome.json();
    assert_eq!(lines(&all, "recovered")[0]["instances"], serde_json::json!(["c"]));
    for name in ["a", "b"] {
        configured(&sandbox, ["recover", "--forget", "--instance", name]).run().ok();
    }
    let nothing = configured(&sandbox, ["recover"]).run().ok();
    assert_eq!(nothing.stdout, "nothing to recover\n");
    configured(&sandbox, ["recover", "--forget"]).run().ends_with(2);
}
