//! Logins to the package's Redis, from the configuration of its clients and its server.

use super::redis_conf::{Line, of_hex};
use crate::service::Password;
use crate::service::redis::Login;
use crate::view::shown;
use serde_json::Value;
use std::path::Path;

/// Returns the logins in the settings of Redis's clients, which are those of the file `source`, then
/// those in the server's configuration, without doubles.
pub fn find(clients: Option<&Value>, source: &Path, server: &[Line]) -> Vec<Login> {
    let of_client = clients.and_then(|own| of_clients(own, &shown(source)));
    let mut of_server = Vec::new();
    server.iter().for_each(|line| add_server(line, &mut of_server));
    let mut logins: Vec<Login> = Vec::new();
    // A later line overrides an earlier one.
    for login in of_client.into_iter().chain(of_server.into_iter().rev()) {
        let is_same =
            |known: &Login| (&known.user, &known.password) == (&login.user, &login.password);
        if !logins.iter().any(is_same) {
            logins.push(login);
        }
    }
    logins
}

/// Reads the login from the settings of clients. In old versions they are only an address.
fn of_clients(own: &Value, source: &str) -> Option<Login> {
    let text = |key: &str| match &own[key] {
        Value::String(text) => Some(text.clone()),
        // Ruby turns a number into text, too.
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let url = own.as_str().map(str::to_owned).or_else(|| text("url"));
    let (user, password) = url.as_deref().and_then(of_url).unwrap_or_default();
    let password = text("password").or(password).filter(|password| !password.is_empty())?;
    let user = text("username").or(user).filter(|user| !user.is_empty() && user != "default");
    Some(Login { user, password: Password(password), source: source.to_owned() })
}

/// Reads user and password from `redis://user:password@host`.
fn of_url(url: &str) -> Option<(Option<String>, Option<String>)> {
    let (_, rest) = url.split_once(':')?;
    let (login, _) = rest.trim_start_matches('/').rsplit_once('@')?;
    let (user, password) = login.split_once(':')?;
    Some((decoded(user), decoded(password)))
}

/// Decodes percent codes.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| first == b'%').and_then(of_hex);
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok()
}

/// Adds the logins in a line of a server's configuration.
fn add_server(line: &Line, logins: &mut Vec<Login>) {
    let mut add = |user: Option<&str>, password: &str| {
        if !password.is_empty() {
            let (user, password) = (user.map(str::to_owned), Password(password.to_owned()));
            logins.push(Login { user, password, source: shown(&line.file) });
        }
    };
    match (line.key.as_str(), &line.values[..]) {
        ("requirepass", [password]) => add(None, password),
        // The rules of a user: `on`, `>password` and others.
        ("user", [name, rules @ ..]) => {
            let is_switch = |rule: &&String| ["on", "off"].contains(&rule.as_str());
            let is_default = name == "default";
            if rules.iter().rev().find(is_switch).map_or(is_default, |rule| rule == "on") {
                for password in rules.iter().filter_map(|rule| rule.strip_prefix('>')) {
                    add(Some(name.as_str()).filter(|_| !is_default), password);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::{redis_address, redis_conf};
    use super::*;

    #[test]
    fn logins_in_addresses_are_read() {
        for (url, login) in [
            ("redis://:p%40ss:w@localhost:6379/0", Some(("", "p@ss:w"))),
            ("rediss://user:100%@host/", Some(("user", "100%"))),
            ("unix://:pass@/var/opt/gitlab/redis/redis.socket", Some(("", "pass"))),
            ("unix:/var/opt/gitlab/redis/redis.socket", None),
            ("redis://localhost:6379", None),
        ] {
            let text = |(user, password): (&str, &str)| (Some(user.into()), Some(password.into()));
            assert_eq!(of_url(url), login.map(text), "{url}");
        }
    }

    #[test]
    fn logins_of_client_and_server_files_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("directories");
            std::fs::write(path, text).expect("writes");
        };
        let at = |path: &Path| Some(crate::kind::below(dir.path(), path));
        let found = || {
            let source = dir.path().join("gitlab-rails/etc/resque.yml");
            let clients = redis_address::clients(&source).expect("valid");
            let conf = dir.path().join("redis/redis.conf");
            let server = redis_conf::read(&conf, &at, &mut |error| panic!("{error}"));
            let logins = find(clients.as_ref(), &source, &server).into_iter();
            let text = |login: Login| {
                let source = Path::new(&login.source).file_name().expect("a name").to_os_string();
                format!(
                    "{}:{} {}",
                    login.user.unwrap_or_default(),
                    login.password.0,
                    source.display()
                )
            };
            logins.map(text).collect::<Vec<_>>()
        };
        assert_eq!(found(), [""; 0]);
        write("redis/redis.conf", "port 0\nrequirepass old\nREQUIREPASS \"of the server\"\n");
        assert_eq!(found(), [":of the server redis.conf", ":old redis.conf"]);
        write("gitlab-rails/etc/resque.yml", "production:\n  url: unix:/redis.socket\n");
        assert_eq!(found(), [":of the server redis.conf", ":old redis.conf"]);
        write("redis/redis.conf", "requirepass own\n");
        for (text, login) in [
            ("production: redis://:own@host\n", ":own resque.yml"),
            ("production:\n  url: redis://:own@host\n", ":own resque.yml"),
            ("production:\n  url: redis://host\n  password: own\n", ":own resque.yml"),
        ] {
            write("gitlab-rails/etc/resque.yml", text);
            assert_eq!(found(), [login], "{text}");
        }
        write(
            "gitlab-rails/etc/resque.yml",
            "production:\n  url: rediss://git:stale@host\n  password: 42\n",
        );
        write(
            "redis/redis.conf",
            "include more.d/*.conf\ninclude /redis/redis.conf\naclfile /acl\nuser off off >no\n\
             user sleeping >no\nuser default on >one <two ~* &* +@all\nuser admin on >three +@all\n",
        );
        write("redis/more.d/a.conf", "requirepass four\ninclude ../redis.conf\n");
        write("redis/more.d/a.other", "requirepass no\n");
        write("acl", "user acl on #00ff >five ~*\n");
        let all = [
            "git:42 resque.yml",
            "admin:three redis.conf",
            ":one redis.conf",
            "acl:five acl",
            ":four a.conf",
        ];
        assert_eq!(found(), all);
    }
}
