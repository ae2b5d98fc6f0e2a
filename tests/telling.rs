//! Runs of instances are told to real servers, and monitoring looks away while services are down.

use crate::support::gitlab::Builder;
use crate::support::instance::{backup, configure, configured};
use crate::support::listeners::Listener;
use crate::support::sandbox::{Sandbox, is_root};
use crate::support::server::wait_until;
use crate::support::zabbix::{HOST, Zabbix};
use std::time::{Duration, Instant};

const SILENCE: &str = "maintenance.status[web]";

#[test]
fn monitoring_looks_away_while_services_are_down_whatever_becomes_of_the_run() {
    if !is_root() {
        return;
    }
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
    let try_out = ["notify", "test", "--instance", "forge", "--as", "done"];
    // A server that has just started does not know its items yet.
    wait_until("values are taken", || configured(&sandbox, try_out).run().code() == Some(0));
    let before = listener.requests().len();
    let told = || {
        let requests = listener.requests();
        let paths = requests[before..].iter().map(|one| one["path"].as_str().expect("a path"));
        paths.map(|path| path.split('?').next().expect("a path").to_owned()).collect::<Vec<_>>()
    };
    let silences = |count: usize| {
        wait_until("values are stored", || zabbix.values(SILENCE).len() >= count);
        zabbix.values(SILENCE)
    };

    backup(&sandbox).run().ok();
    assert_eq!(told(), ["/ping/start", "/ping/0"]);
    assert_eq!(silences(2), ["1", "0"]);

    // A run that fails.
    gitlab.redis.break_saving();
    backup(&sandbox).run().ends_with(1);
    gitlab.redis.mend_saving();
    assert_eq!(told()[2..], ["/ping/start", "/ping/1"]);
    assert_eq!(silences(4)[2..], ["1", "0"]);

    // A run that is killed: who was told to look away is told by whoever starts the services.
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
