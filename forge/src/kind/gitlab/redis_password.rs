//! Logins to the package's Redis, from the configuration of its clients and its server.

use crate::error::Error;
use crate::file;
use crate::file::yaml;
use crate::links::lexically;
use crate::service::Password;
use crate::service::redis::Login;
use crate::view::shown;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Maximum number of server files to read, which bounds `include` lines in a circle.
const FILES_MAX: usize = 50;

/// Returns the logins in Rails' configuration, then those in Redis's own, without doubles. `at`
/// maps a path of the server to this machine. An invalid file adds a note, and the others are
/// still used.
pub fn find(
    data: &Path,
    at: &dyn Fn(&Path) -> Option<PathBuf>,
    notes: &mut Vec<String>,
) -> Vec<Login> {
    let resque = data.join("gitlab-rails/etc/resque.yml");
    let of_client = yaml(&resque).unwrap_or_else(|error| {
        notes.push(unknown(&error));
        None
    });
    let of_client = of_client.as_ref().and_then(|all| of_resque(all, &shown(&resque)));
    let mut server = Server { at, logins: Vec::new(), files: Vec::new(), notes };
    server.read(&data.join("redis/redis.conf"));
    let mut logins: Vec<Login> = Vec::new();
    // A later line overrides an earlier one.
    for login in of_client.into_iter().chain(server.logins.into_iter().rev()) {
        let is_same =
            |known: &Login| (&known.user, &known.password) == (&login.user, &login.password);
        if !logins.iter().any(is_same) {
            logins.push(login);
        }
    }
    logins
}

fn unknown(error: &Error) -> String {
    format!("{error}; cannot tell whether Redis needs a password")
}

/// Reads the login from `resque.yml`. In old versions it contains only an address.
fn of_resque(all: &Value, source: &str) -> Option<Login> {
    let own = all.get("production").unwrap_or(all);
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

fn of_hex(digits: &[u8]) -> Option<u8> {
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    u8::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| is_hex)?, 16).ok()
}

/// Reads the configuration of a server, with the files that it includes.
struct Server<'a> {
    at: &'a dyn Fn(&Path) -> Option<PathBuf>,
    /// Logins in the order of the lines.
    logins: Vec<Login>,
    /// Files already read.
    files: Vec<PathBuf>,
    notes: &'a mut Vec<String>,
}

impl Server<'_> {
    fn read(&mut self, path: &Path) {
        let path = &lexically(path);
        if self.files.len() >= FILES_MAX || self.files.iter().any(|read| read == path) {
            return;
        }
        self.files.push(path.to_owned());
        let text = match file::text(path) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => return self.notes.push(unknown(&error)),
        };
        for line in text.lines() {
            let words = words_of(line.trim()).unwrap_or_default();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let Some((key, values)) = words.split_first() else { continue };
            match (key.to_ascii_lowercase().as_str(), values) {
                ("requirepass", [password]) => self.add(None, password, path),
                ("user", [name, rules @ ..]) => self.user(name, rules, path),
                ("include" | "aclfile", [named]) => {
                    // Redis works in the directory of its data, which contains its configuration.
                    let named = Path::new(named);
                    let place = if named.is_absolute() {
                        (self.at)(named)
                    } else {
                        Some(path.with_file_name("").join(named))
                    };
                    for path in place.iter().flat_map(|place| file::matching(place)) {
                        self.read(&path);
                    }
                }
                _ => {}
            }
        }
    }

    /// Reads the rules of a user: `on`, `>password` and others.
    fn user(&mut self, name: &str, rules: &[&str], path: &Path) {
        let switch = rules.iter().rev().find(|rule| ["on", "off"].contains(*rule));
        let is_default = name == "default";
        if switch.map_or(is_default, |rule| *rule == "on") {
            for password in rules.iter().filter_map(|rule| rule.strip_prefix('>')) {
                self.add(Some(name).filter(|_| !is_default), password, path);
            }
        }
    }

    fn add(&mut self, user: Option<&str>, password: &str, path: &Path) {
        if !password.is_empty() {
            let (user, password) = (user.map(str::to_owned), Password(password.to_owned()));
            self.logins.push(Login { user, password, source: shown(path) });
        }
    }
}

/// Splits a line of `redis.conf` into words, as Redis does. Words may be quoted. Returns `None` for
/// a comment, and for a line that Redis refuses.
pub fn words_of(line: &str) -> Option<Vec<String>> {
    let mut rest = line.as_bytes();
    let mut words = Vec::new();
    while !line.starts_with('#') {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        rest = word_of(rest, &mut word)?;
        words.push(String::from_utf8(word).ok()?);
    }
    None
}

/// Moves the first word of a text into `word`. Returns the rest of the text.
fn word_of<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let mut quote = None;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match (quote, first) {
            (Some(open), _) if first == open => {
                // The end of a quote is the end of the word.
                return rest.first().is_none_or(u8::is_ascii_whitespace).then_some(rest);
            }
            (Some(b'"'), b'\\') => {
                let hex = rest.strip_prefix(b"x").and_then(|rest| rest.get(..2)).and_then(of_hex);
                let (&escaped, after) = rest.split_first()?;
                word.push(hex.unwrap_or(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => other,
                }));
                rest = if hex.is_some() { &after[2..] } else { after };
            }
            (Some(b'\''), b'\\') if rest.starts_with(b"'") => {
                word.push(b'\'');
                rest = &rest[1..];
            }
            (None, b'"' | b'\'') => quote = Some(first),
            (None, _) if first.is_ascii_whitespace() => return Some(rest),
            _ => word.push(first),
        }
    }
    quote.is_none().then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_addresses_are_parsed_as_redis_parses_them() {
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
        for (line, words) in [
            ("requirepass pass", Some(vec!["requirepass", "pass"])),
            (r#"  requirepass "a \"b\\\x20\x23" "#, Some(vec!["requirepass", "a \"b\\ #"])),
            ("requirepass 'it\\'s'", Some(vec!["requirepass", "it's"])),
            ("requirepass '' \"\"", Some(vec!["requirepass", "", ""])),
            ("requirepass \"é\\xzz\"", Some(vec!["requirepass", "éxzz"])),
            ("requirepass \"open", None),
            ("requirepass \"a\"b", None),
            ("requirepass \"\\", None),
            ("# requirepass foobared", None),
            ("", Some(Vec::new())),
        ] {
            let words = words.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(words_of(line), words, "{line}");
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
            let logins = find(dir.path(), &at, &mut Vec::new()).into_iter();
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
