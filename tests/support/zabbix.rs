//! A real Zabbix server with its database, and its frontend, which provides the API.

use super::accounts::Account;
use super::postgres::{Options, Postgres};
use super::sandbox::{Run, Sandbox};
use super::server::{PATIENCE, Server, Signal, wait_until};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

/// The monitored host.
pub const HOST: &str = "git01";
/// Items of the host, which accept sent values: key and type (0 a number, 4 a text).
const ITEMS: [(&str, u8); 4] = [
    ("backup.status[gitlab]", 0),
    ("backup.message[gitlab]", 4),
    ("backup.duration[gitlab]", 0),
    ("maintenance.status[web]", 0),
];

/// A Zabbix that runs until it is dropped.
pub struct Zabbix {
    /// Port on which the server accepts values.
    pub port: u16,
    web_port: u16,
    /// API token of the administrator.
    pub token: String,
    _web: Server,
    _server: Server,
    database: Postgres,
}

impl Zabbix {
    /// Starts a Zabbix in a directory of the sandbox.
    pub fn start(sandbox: &Sandbox) -> Zabbix {
        let everyone = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(sandbox.root(), everyone).expect("opens the sandbox");
        let database = database(sandbox);
        let sockets = database.socket_dir().to_str().expect("readable").to_owned();
        let (port, server) = server(sandbox, &sockets);
        let (web_port, web) = frontend(sandbox, &sockets, port);
        let token = String::new();
        let mut zabbix = Zabbix { port, web_port, token, _web: web, _server: server, database };
        wait_until("the API answers", || zabbix.call("apiinfo.version", json!({}), None).is_some());
        zabbix.token = zabbix.new_token();
        zabbix
    }

    /// Returns the URL of the API.
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}/api_jsonrpc.php", self.web_port)
    }

    /// Returns all values that an item has received, the first one first.
    pub fn values(&self, key: &str) -> Vec<String> {
        let query = format!(
            "select value from (select itemid, clock, ns, value::text from history union all \
             select itemid, clock, ns, value from history_text) as h join items using (itemid) \
             where key_ = '{key}' order by clock, ns"
        );
        self.database.query("zabbix", query).lines().map(str::to_owned).collect()
    }

    /// Returns all maintenances, oldest first.
    pub fn maintenances(&self) -> Vec<Value> {
        let query = json!({"selectHosts": ["host"], "selectTimeperiods": "extend", "sortfield": "maintenanceid"});
        let found = self.call("maintenance.get", query, Some(&self.token)).expect("an answer");
        found.as_array().expect("a list").clone()
    }

    /// Returns true if the host is in maintenance.
    pub fn is_in_maintenance(&self) -> bool {
        let query = format!("select maintenance_status from hosts where host = '{HOST}'");
        self.database.query("zabbix", query) == "1"
    }

    /// Creates a token, as an administrator does by hand.
    fn new_token(&self) -> String {
        let login = json!({"username": "Admin", "password": "zabbix"});
        let session = self.call("user.login", login, None).expect("logs in");
        let session = session.as_str().expect("a session");
        let made = self.call("token.create", json!({"name": "backup"}), Some(session));
        let ids = made.expect("a token")["tokenids"].clone();
        let made = self.call("token.generate", ids, Some(session)).expect("its secret");
        made[0]["token"].as_str().expect("a secret").to_owned()
    }

    fn call(&self, method: &str, params: Value, auth: Option<&str>) -> Option<Value> {
        let request =
            json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1, "auth": auth});
        let limit = PATIENCE.as_secs().to_string();
        let curl = Run::program("curl").args(["-sS", "--max-time", &limit, "--data", "@-"]);
        let curl = curl.args(["-H", "Content-Type: application/json-rpc", &self.api()]);
        let answer = curl.input(request.to_string()).run().stdout;
        serde_json::from_str::<Value>(&answer).ok()?.get("result").cloned()
    }
}

/// Returns the current time in Zabbix's format.
pub fn now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "compared with what Zabbix has")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    since.as_secs() as i64
}

/// Creates a cluster with the data that a server needs to start, and a host.
fn database(sandbox: &Sandbox) -> Postgres {
    let options = Options { account: "postgres".into(), ..Options::within(&sandbox.path("pg")) };
    let database = Postgres::start(options);
    database.sql("postgres", "create role zabbix superuser login");
    database.sql("postgres", "create database zabbix owner zabbix");
    // Loads only the rows that the server needs; the rest are templates.
    let load = "cd /usr/share/zabbix-server-pgsql; { zcat schema.sql.gz; zcat data.sql.gz | grep -E '^INSERT INTO \
                (role|role_rule|users|usrgrp|users_groups|hstgrp|config|config_autoreg_tls|globalmacro|regexps|expressions|rights|module|settings) .*;$'; \
                } | \"$@\"";
    let psql = super::postgres::programs().join("psql");
    let host = database.socket_dir();
    Run::limited("bash")
        .args(["-eo", "pipefail", "-c", load, "bash"])
        .args([&psql])
        .args(["-qX1", "-v", "ON_ERROR_STOP=1", "-U", "zabbix", "-d", "zabbix", "-h"])
        .args([host])
        .run()
        .ok();
    database.sql(
        "zabbix",
        format!(
            "insert into hosts (hostid, host, name, status, description) values (90001, '{HOST}', '{HOST}', 0, ''); \
             insert into hosts_groups (hostgroupid, hostid, groupid) values (90001, 90001, 2)"
        ),
    );
    for (id, (key, value_type)) in (90001..).zip(ITEMS) {
        database.sql(
            "zabbix",
            format!(
                "insert into items (itemid, hostid, type, name, key_, value_type, delay, history, trends, params, \
                 description, posts, headers) values ({id}, 90001, 2, '{key}', '{key}', {value_type}, '0', '90d', '0', '', '', '', ''); \
                 insert into item_rtdata (itemid) values ({id})"
            ),
        );
    }
    database
}

fn server(sandbox: &Sandbox, sockets: &str) -> (u16, Server) {
    let dir = sandbox.text("zabbix");
    std::fs::create_dir_all(&dir).expect("a directory");
    let port = free_port();
    // Minimal numbers of processes for a start.
    let few = "StartPollers StartPollersUnreachable StartTrappers StartDBSyncers StartTimers \
               StartPreprocessors StartAlerters StartEscalators StartLLDProcessors CacheUpdateFrequency";
    let none = "StartPingers StartDiscoverers StartHTTPPollers StartODBCPollers StartHistoryPollers \
                HousekeepingFrequency ValueCacheSize";
    let mut text = format!(
        "AllowRoot=1\nListenIP=127.0.0.1\nListenPort={port}\nLogType=file\nLogFile={dir}/log\n\
         PidFile={dir}/pid\nSocketDir={dir}\nDBHost={sockets}\nDBName=zabbix\nDBUser=zabbix\n\
         CacheSize=8M\nHistoryCacheSize=1M\nHistoryIndexCacheSize=1M\nTrendCacheSize=1M\nFpingLocation=/bin/false\n"
    );
    for (names, value) in [(few, 1), (none, 0)] {
        text.extend(names.split_whitespace().map(|name| format!("{name}={value}\n")));
    }
    sandbox.write("zabbix/conf", text);
    let arguments = ["/usr/sbin/zabbix_server", "-f", "-c", &format!("{dir}/conf")];
    let log = sandbox.path("zabbix/out");
    let path = std::path::Path::new(&log);
    let mut server = Server::start(Account::root(), &arguments, path, &[Signal::TERM]);
    server.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (port, server)
}

fn frontend(sandbox: &Sandbox, sockets: &str, server_port: u16) -> (u16, Server) {
    let web = sandbox.text("web");
    // Debian's frontend reads its configuration from a single path.
    sandbox.tool("cp").args(["-a", "/usr/share/zabbix", &web]).run().ok();
    let configuration = sandbox.text("zabbix.conf.php");
    let place = "web/include/classes/core/CConfigFile.php";
    let code = String::from_utf8(sandbox.read(place)).expect("PHP");
    sandbox.write(place, code.replace("/etc/zabbix/zabbix.conf.php", &configuration));
    let mut text = String::from("<?php\n");
    for (key, value) in [("TYPE", "POSTGRESQL"), ("SERVER", sockets), ("PORT", "0")] {
        text += &format!("$DB['{key}'] = '{value}';\n");
    }
    for key in ["DATABASE", "USER"] {
        text += &format!("$DB['{key}'] = 'zabbix';\n");
    }
    for key in [
        "PASSWORD",
        "SCHEMA",
        "KEY_FILE",
        "CERT_FILE",
        "CA_FILE",
        "CIPHER_LIST",
        "VAULT_URL",
        "VAULT_DB_PATH",
        "VAULT_TOKEN",
    ] {
        text += &format!("$DB['{key}'] = '';\n");
    }
    text += "$DB['ENCRYPTION'] = $DB['VERIFY_HOST'] = false; $DB['DOUBLE_IEEE754'] = true;\n";
    text += &format!(
        "$ZBX_SERVER = '127.0.0.1'; $ZBX_SERVER_PORT = '{server_port}'; $ZBX_SERVER_NAME = 't';\n"
    );
    text += "$IMAGE_FORMAT_DEFAULT = IMAGE_FORMAT_PNG;\n";
    sandbox.write("zabbix.conf.php", text);
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let arguments = [
        "php",
        "-d",
        "max_execution_time=300",
        "-d",
        "memory_limit=256M",
        "-d",
        "post_max_size=16M",
        "-d",
        "date.timezone=UTC",
        "-S",
        &address,
        "-t",
        &web,
    ];
    let log = sandbox.path("php.log");
    (port, Server::start(Account::root(), &arguments, &log, &[Signal::TERM]))
}

/// Returns a currently unused port, in the range that a Zabbix server accepts.
fn free_port() -> u16 {
    static USED: AtomicU16 = AtomicU16::new(0);
    // Other processes begin at other ports.
    let first = (std::process::id() % 600) as u16 * 20;
    let mut ports = (0..12_000).map(|_| 20_000 + (first + USED.fetch_add(1, Relaxed)) % 12_000);
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(is_free).expect("a port")
}
