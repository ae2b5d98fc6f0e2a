//! Database addresses as Mattermost writes them: a URL, or `key=value` words.

use crate::service::Password;
use std::collections::BTreeMap;

/// A parsed data source.
#[derive(Default)]
pub struct DataSource {
    /// Host name, or directory of the socket.
    pub host: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Role to connect as.
    pub role: Option<String>,
    /// Password of the role.
    pub password: Option<Password>,
    /// Name of the database.
    pub database: Option<String>,
    /// Encryption of the connection, as environment variables of the clients.
    pub encryption: BTreeMap<&'static str, String>,
}

impl DataSource {
    /// Parses a data source. Errors contain none of its text, because it may hold a password.
    pub fn parse(text: &str) -> Result<DataSource, &'static str> {
        let mut source = DataSource::default();
        let url =
            ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        match url {
            Some(rest) => source.url(rest)?,
            None if text.contains("://") => return Err("it is not a PostgreSQL address"),
            None => {
                for (key, value) in
                    words(text).ok_or("it is neither a URL nor a list of `key=value` words")?
                {
                    source.set(&key, value)?;
                }
            }
        }
        Ok(source)
    }

    fn url(&mut self, rest: &str) -> Result<(), &'static str> {
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = address.split_once('/').unwrap_or((address, ""));
        // Otherwise the rest of the password would count as the name of the database.
        let key = query.split('=').next().unwrap_or_default();
        if !authority.contains('@') && (path.contains('@') || key.contains('@')) {
            return Err("its password has a / or a ?, which must be written as %2F or %3F");
        }
        let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        // An IPv6 address in brackets contains colons of its own.
        let colon = place.rfind(':').filter(|&colon| colon > place.rfind(']').unwrap_or(0));
        let (host, port) = colon.map_or((place, ""), |at| (&place[..at], &place[at + 1..]));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let of_address = [
            ("user", user),
            ("password", password),
            ("host", host),
            ("port", port),
            ("dbname", path),
        ];
        let of_query = query.split('&').filter_map(|pair| pair.split_once('='));
        for (key, value) in of_address.into_iter().chain(of_query) {
            if !value.is_empty() {
                self.set(key, decoded(value).ok_or("it has a % without two hex digits after it")?)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), &'static str> {
        match key {
            "host" if value.contains(',') => return Err("it names several hosts"),
            "host" => self.host = Some(value),
            "port" => self.port = Some(value.parse().map_err(|_| "its port is not a number")?),
            "user" => self.role = Some(value),
            "password" => self.password = Some(Password(value)),
            "dbname" => self.database = Some(value),
            "sslmode" => drop(self.encryption.insert("PGSSLMODE", value)),
            "sslrootcert" => drop(self.encryption.insert("PGSSLROOTCERT", value)),
            "sslcert" => drop(self.encryption.insert("PGSSLCERT", value)),
            "sslkey" => drop(self.encryption.insert("PGSSLKEY", value)),
            _ => {}
        }
        Ok(())
    }
}

/// Parses `key = value` pairs separated by spaces. Values may be quoted; `\` escapes the next
/// character. Returns `None` if a pair has no `=`, or a quote or an escape does not end.
fn words(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let is_quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut chars = after.char_indices().skip(usize::from(is_quoted));
        let mut end = after.len();
        let mut is_closed = !is_quoted;
        while let Some((at, c)) = chars.next() {
            if c == '\\' {
                value.push(chars.next()?.1);
            } else if (is_quoted && c == '\'') || (!is_quoted && c.is_whitespace()) {
                (end, is_closed) = (at + c.len_utf8(), true);
                break;
            } else {
                value.push(c);
            }
        }
        if !is_closed {
            return None;
        }
        words.push((key.trim().to_owned(), value));
        rest = after[end..].trim_start();
    }
    Some(words)
}

/// Decodes `%XX`. Returns `None` if the digits are invalid or the result is not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns host, port, role and database. The password is compared separately.
    fn parse(text: &str, password: Option<&str>) -> [String; 4] {
        let source = DataSource::parse(text).expect("is one");
        assert!(source.password == password.map(|word| Password(word.into())), "{text}");
        let port = source.port.map(|port| port.to_string());
        [source.host, port, source.role, source.database].map(Option::unwrap_or_default)
    }

    #[test]
    fn urls_and_keyword_strings_are_parsed() {
        let url = "postgres://mmuser:p%40s%2Fs@db.example.org:5433/mattermost?sslmode=disable&connect_timeout=10";
        assert_eq!(parse(url, Some("p@s/s")), ["db.example.org", "5433", "mmuser", "mattermost"]);
        let socket = "postgresql:///mattermost?host=/var/run/postgresql&user=mm";
        assert_eq!(parse(socket, None), ["/var/run/postgresql", "", "mm", "mattermost"]);
        assert_eq!(parse("postgres://u@[::1]:5432/d", None), ["::1", "5432", "u", "d"]);
        assert_eq!(parse("postgres://u@[::1]/d", None), ["::1", "", "u", "d"]);
        let words = r"user=mm  host = /run/pg port=5432 dbname='a b' password='it\'s'";
        assert_eq!(parse(words, Some("it's")), ["/run/pg", "5432", "mm", "a b"]);
        let source = DataSource::parse("postgres://h/d?sslmode=verify-full").expect("is one");
        assert_eq!(source.encryption["PGSSLMODE"], "verify-full");
    }

    #[test]
    fn errors_do_not_contain_the_password() {
        for text in [
            "postgres://u:secret@h:port/d",
            "postgres://u:secret@a,b/d",
            "postgres://u:secret%zz@h/d",
            "user=u password='secret",
            "user=u secret",
            "mysql://u:secret@h/d",
            "postgres://u:12/secret@h/d",
            "postgres://u:12?secret@h/d",
        ] {
            let Err(reason) = DataSource::parse(text) else { panic!("{text} was read") };
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}
