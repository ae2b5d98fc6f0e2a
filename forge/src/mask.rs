//! Hides passwords in texts that are printed.

/// Endings of names whose values are never printed.
const SECRET_NAMES: [&str; 6] = ["password", "passwd", "pass", "pwd", "secret", "token"];

/// Returns true if a name, such as `--db-password`, stands before a secret.
pub fn is_name_of_secret(name: &str) -> bool {
    SECRET_NAMES.iter().any(|end| name.to_ascii_lowercase().ends_with(end))
}

/// Returns an address, or words of a command, without the passwords in it: `…` replaces that of
/// `scheme://user:password@host` and the value of `password=value`.
pub fn masked(text: &str) -> String {
    let is_end = |c: char| c.is_whitespace() || "\"'&;".contains(c);
    let mut shown = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("://") {
            let whole = &after[..after.find(char::is_whitespace).unwrap_or(after.len())];
            let at = whole.rfind('@');
            shown += "://";
            rest = after;
            if let Some((at, colon)) = at.and_then(|at| Some((at, whole[..at].find(':')?))) {
                shown += &format!("{}:…", &whole[..colon]);
                rest = &after[at..];
            }
            continue;
        }
        shown.push(c);
        rest = &rest[c.len_utf8()..];
        let is_secret = c == '=' && {
            let name = shown.trim_end_matches('=');
            is_name_of_secret(name) && name.len() + 1 == shown.len()
        };
        if is_secret && !rest.is_empty() {
            let quote = rest.chars().next().filter(|c| "\"'".contains(*c));
            let end = match quote {
                Some(quote) => rest[1..].find(quote).map(|at| at + 2),
                None => rest.find(is_end),
            };
            shown.push('…');
            rest = &rest[end.unwrap_or(rest.len())..];
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_and_commands_are_masked() {
        for (text, shown) in [
            ("plain", "plain"),
            ("https://host:80/path", "https://host:80/path"),
            ("postgres://mm:hush@db/chat?x=1", "postgres://mm:…@db/chat?x=1"),
            ("a rest:https://u:hu/s@h@host/ b", "a rest:https://u:…@host/ b"),
            ("user@host:/dir", "user@host:/dir"),
            ("host=db password=hush dbname=a", "host=db password=… dbname=a"),
            ("host=db password='hu sh' user=b", "host=db password=… user=b"),
            ("--db-password=hush", "--db-password=…"),
            ("PGPASSWORD=hush exec x", "PGPASSWORD=… exec x"),
            ("password=", "password="),
            ("password='hush", "password=…"),
            ("é=ü", "é=ü"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }
}
