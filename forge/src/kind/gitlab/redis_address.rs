//! Address of the Redis that GitLab uses, from the configuration of its clients and of the package's
//! own server.

use super::redis_conf::Line;
use crate::error::Result;
use crate::file::yaml;
use crate::service::LOOPBACK;
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// Address in `resque.yml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Path of a socket, as the package sees it.
    Socket(PathBuf),
    /// A host.
    Host {
        /// Its name.
        host: String,
        /// Its port.
        port: u16,
        /// True if the connection is encrypted.
        is_encrypted: bool,
    },
    /// Sentinels know the server.
    Sentinels,
}

/// Settings of the package's own server.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Path of its socket, as the package sees it.
    pub socket: Option<PathBuf>,
    /// Addresses on which it listens.
    addresses: Vec<String>,
    /// Its port, if the configuration names one.
    port: Option<u16>,
}

impl Own {
    /// Takes the settings from the lines of its configuration. The last line of a setting counts.
    pub fn of(lines: &[Line]) -> Own {
        let mut own = Own::default();
        for Line { key, values, .. } in lines {
            match (key.as_str(), &values[..]) {
                ("unixsocket", [path]) => {
                    own.socket = Some(path).filter(|path| !path.is_empty()).map(PathBuf::from);
                }
                ("port", [port]) => own.port = port.parse().ok(),
                ("bind", hosts) => own.addresses = hosts.to_vec(),
                _ => {}
            }
        }
        own
    }

    /// Returns true if a host is this server.
    pub fn is_at(&self, host: &str) -> bool {
        let is_it = |address: &String| address.trim_start_matches('-') == host;
        LOOPBACK.contains(&host) || self.addresses.iter().any(is_it)
    }
}

impl Own {
    /// Returns true if an address of clients is this server's. `usual` is the socket of a server
    /// whose configuration names none.
    pub fn is_named(&self, address: &Address, usual: &Path) -> bool {
        match address {
            Address::Socket(path) => path == self.socket.as_deref().unwrap_or(usual),
            Address::Host { host, port, .. } => self.is_at(host) && self.port == Some(*port),
            Address::Sentinels => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(path) => f.write_str(&path.displayed()),
            Address::Host { host, port, .. } => write!(f, "{host} port {port}"),
            Address::Sentinels => f.write_str("a server that sentinels name"),
        }
    }
}

/// Starts of the names of other servers that hold nothing to keep.
const CACHES: [&str; 3] = ["cache", "repository_cache", "rate_limiting"];

/// Returns the name of the server in the name of a file of clients, `redis.NAME.yml`; `None` for
/// other files, and for servers that hold nothing to keep.
pub fn other(file: &str) -> Option<&str> {
    let name = file.strip_prefix("redis.")?.strip_suffix(".yml")?;
    let plain = name.trim_start_matches("cluster_");
    (!CACHES.iter().any(|cache| plain.starts_with(cache))).then_some(name)
}

/// Reads the settings of clients in `resque.yml`; `None` if the file does not exist.
pub fn clients(resque: &Path) -> Result<Option<Value>> {
    let all = yaml(resque)?;
    Ok(all.map(|mut all| all.get_mut("production").map(Value::take).unwrap_or(all)))
}

/// Returns the address in the settings of clients; `None` without a usable one.
pub fn of_clients(own: &Value) -> Option<Address> {
    if own["sentinels"].as_array().is_some_and(|all| !all.is_empty()) {
        return Some(Address::Sentinels);
    }
    let url = own.as_str().or(own["url"].as_str());
    url.map_or_else(|| of_keys(own), of_url)
}

/// Reads an address without a URL.
fn of_keys(own: &Value) -> Option<Address> {
    if let Some(path) = own["path"].as_str() {
        return Some(Address::Socket(path.into()));
    }
    let port = own["port"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or(PORT);
    let is_encrypted = own["ssl"].as_bool() == Some(true);
    Some(Address::Host { host: own["host"].as_str()?.to_owned(), port, is_encrypted })
}

/// Default port of Redis.
const PORT: u16 = 6379;

fn of_url(url: &str) -> Option<Address> {
    let (scheme, rest) = url.split_once(':')?;
    let rest = rest.split('?').next().unwrap_or_default();
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest).trim_start_matches('/');
    if scheme == "unix" {
        return Some(Address::Socket(Path::new("/").join(rest)));
    }
    let place = rest.split('/').next().unwrap_or_default();
    let end = place.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match place[end..].rfind(':') {
        Some(at) => (&place[..end + at], place[end + at + 1..].parse().ok()?),
        None => (place, PORT),
    };
    let host = host.trim_matches(['[', ']']);
    let host = if host.is_empty() { LOOPBACK[1] } else { host }.to_owned();
    Some(Address::Host { host, port, is_encrypted: scheme == "rediss" })
}

#[cfg(test)]
mod tests {
    use super::super::redis_conf;
    use super::*;

    #[test]
    fn addresses_of_redis_are_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resque.yml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("writes");
            of_clients(&clients(&path).expect("valid").expect("there"))
        };
        let socket = |path: &str| Some(Address::Socket(path.into()));
        let host = |host: &str, port, is_encrypted| {
            Some(Address::Host { host: host.into(), port, is_encrypted })
        };
        for (text, address) in [
            ("production: unix:/r/redis.socket", socket("/r/redis.socket")),
            ("production:\n  url: unix:///r/a.sock?db=1", socket("/r/a.sock")),
            ("production: {url: 'unix://:p@/r/a.sock'}", socket("/r/a.sock")),
            ("production: {path: /r/a.sock}", socket("/r/a.sock")),
            (
                "production: {url: 'redis://:p%40@db.example.org/0'}",
                host("db.example.org", 6379, false),
            ),
            ("production: {url: 'rediss://[::1]:7000'}", host("::1", 7000, true)),
            ("production: {host: cache, port: 7, ssl: true}", host("cache", 7, true)),
            (
                "production: {url: 'redis://mymaster', sentinels: [{host: a}]}",
                Some(Address::Sentinels),
            ),
            ("production: {}", None),
        ] {
            assert_eq!(read(text), address, "{text}");
        }
        let conf = dir.path().join("redis.conf");
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).expect("writes");
        };
        let own = || {
            let failed: &mut dyn FnMut(&_) = &mut |error| panic!("{error}");
            Own::of(&redis_conf::read(&conf, &|path| Some(path.into()), failed))
        };
        write("redis.conf", "bind 10.0.0.5 -::1\n# unixsocket /no\nunixsocket /r/alt.sock\n");
        assert_eq!(own().socket.as_deref(), Some(Path::new("/r/alt.sock")));
        assert!(own().is_at("10.0.0.5") && own().is_at("localhost") && !own().is_at("10.0.0.6"));
        write("redis.conf", "unixsocket /r/first.sock\ninclude other.conf\n");
        write("other.conf", "unixsocket /r/second.sock\nbind 10.0.0.6\n");
        assert_eq!(own().socket.as_deref(), Some(Path::new("/r/second.sock")));
        assert!(own().is_at("10.0.0.6"));
    }
}
