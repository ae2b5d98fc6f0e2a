//! Password of the package's Redis, from the configuration of its clients or its server.

use super::generated::yaml;
use crate::error::Error;
use crate::file;
use crate::service::Password;
use serde_json::Value;
use std::path::Path;

/// Returns the password from Rails' configuration, or else from Redis's own. An invalid file adds a
/// note, and the other file is still used.
pub fn find(data: &Path, notes: &mut Vec<String>) -> Option<Password> {
    let mut noted = |error: Error| {
        notes.push(format!("{error}; cannot tell whether Redis needs a password"));
        None
    };
    let resque = yaml(&data.join("gitlab-rails/etc/resque.yml")).unwrap_or_else(&mut noted);
    let of_client = resque.as_ref().and_then(of_resque);
    let password = of_client.or_else(|| {
        let text = file::text(&data.join("redis/redis.conf"));
        let text = text.map_err(&mut noted).ok().flatten()?;
        text.lines().rev().find_map(of_line)
    })?;
    (!password.is_empty()).then_some(Password(password))
}

/// Reads the password from `resque.yml`. In old versions it contains only an address.
fn of_resque(all: &Value) -> Option<String> {
    let own = all.get("production").unwrap_or(all);
    let named = own["password"].as_str().map(str::to_owned);
    named.or_else(|| of_url(own.as_str().or(own["url"].as_str())?))
}

/// Reads the password from `redis://user:password@host`.
fn of_url(url: &str) -> Option<String> {
    let (_, rest) = url.split_once(':')?;
    let (user, _) = rest.trim_start_matches('/').rsplit_once('@')?;
    let (_, password) = user.split_once(':')?;
    let mut bytes = Vec::new();
    let mut rest = password.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| first == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// Reads the password from a line of `redis.conf`. It may be quoted.
fn of_line(line: &str) -> Option<String> {
    let (key, value) = line.trim().split_once(char::is_whitespace)?;
    if !key.eq_ignore_ascii_case("requirepass") {
        return None;
    }
    let value = value.trim();
    let Some(inner) = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) else {
        let inner = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
        return Some(inner.unwrap_or(value).to_owned());
    };
    let (mut password, mut letters) = (String::new(), inner.chars());
    while let Some(letter) = letters.next() {
        password.push(if letter == '\\' { letters.next()? } else { letter });
    }
    Some(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_read_from_client_and_server_files() {
        for (url, password) in [
            ("redis://:p%40ss:w@localhost:6379/0", Some("p@ss:w")),
            ("rediss://user:100%@host/", Some("100%")),
            ("unix://:pass@/var/opt/gitlab/redis/redis.socket", Some("pass")),
            ("unix:/var/opt/gitlab/redis/redis.socket", None),
            ("redis://localhost:6379", None),
        ] {
            assert_eq!(of_url(url).as_deref(), password, "{url}");
        }
        for (line, password) in [
            ("requirepass pass", Some("pass")),
            ("  requirepass \"a \\\"b\\\\\"", Some("a \"b\\")),
            ("requirepass 'it is'", Some("it is")),
            ("# requirepass foobared", None),
            ("masterauth pass", None),
        ] {
            assert_eq!(of_line(line).as_deref(), password, "{line}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("directories");
            std::fs::write(path, text).expect("writes");
        };
        let found = || find(dir.path(), &mut Vec::new()).map(|Password(password)| password);
        assert_eq!(found(), None);
        write("redis/redis.conf", "port 0\nrequirepass \"of the server\"\n");
        assert_eq!(found().as_deref(), Some("of the server"));
        write("gitlab-rails/etc/resque.yml", "production:\n  url: unix:/redis.socket\n");
        assert_eq!(found().as_deref(), Some("of the server"));
        for text in ["production: redis://:own@host\n", "production:\n  url: redis://:own@host\n"] {
            write("gitlab-rails/etc/resque.yml", text);
            assert_eq!(found().as_deref(), Some("own"), "{text}");
        }
    }
}
