//! Chooses from a dump of roles what a server gets.
//!
//! Other applications may use the same server. Their roles keep their passwords and rights, and so
//! does the role that loads the dump.

use std::collections::BTreeSet;

/// Statements for a server, and what was left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Statements, in the order of the dump.
    pub sql: String,
    /// Roles that the server does not have.
    pub created: BTreeSet<String>,
    /// Roles that the server has and that change.
    pub changed: BTreeSet<String>,
    /// Roles that the server has and that stay as they are.
    pub kept: BTreeSet<String>,
    /// Created roles that may log in and whose passwords the backup could not read.
    pub without_password: BTreeSet<String>,
}

/// Chooses the statements of a dump by `pg_dumpall --globals-only`. The server has the roles
/// `existing`; of those, only `own` may change, and never `connected`. The backup may have been unable
/// to read passwords.
pub fn choose(
    dump: &str,
    existing: &BTreeSet<String>,
    own: &BTreeSet<String>,
    connected: &str,
    has_passwords: bool,
) -> Chosen {
    let mut chosen = Chosen::default();
    for statement in statements(dump) {
        let Some(role) = role_of(statement) else {
            chosen.sql.push_str(statement);
            continue;
        };
        let is_creation = statement.trim_start().starts_with("CREATE ROLE ");
        let is_kept = existing.contains(&role) && (!own.contains(&role) || role == connected);
        let is_new = !existing.contains(&role);
        if is_new && !has_passwords && statement.contains(" LOGIN") {
            chosen.without_password.insert(role.clone());
        }
        let to = match (is_kept, is_new) {
            (true, _) => &mut chosen.kept,
            (false, true) => &mut chosen.created,
            (false, false) => &mut chosen.changed,
        };
        to.insert(role);
        // Membership in a role of the instance belongs to the instance.
        let is_of_own = membership(statement).is_some_and(|(group, member)| {
            member != connected && (own.contains(&group) || !existing.contains(&group))
        });
        if is_of_own || !is_kept && (is_new || !is_creation) {
            chosen.sql.push_str(statement);
        }
    }
    chosen
}

/// Splits a dump into statements with their ends. A command of psql is one of its own.
fn statements(dump: &str) -> impl Iterator<Item = &str> {
    let mut rest = dump;
    std::iter::from_fn(move || {
        let len = length(rest)?;
        let (statement, left) = rest.split_at(len);
        rest = left;
        Some(statement)
    })
}

/// Returns the length of the first statement; `None` at the end.
fn length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut is_begun = false;
    while at < bytes.len() {
        let line = || text[at..].find('\n').map_or(bytes.len(), |len| at + len + 1);
        match bytes[at] {
            b';' => return Some(line_end(bytes, at + 1)),
            quote @ (b'\'' | b'"') => {
                is_begun = true;
                let is_escaped = quote == b'\'' && at > 0 && matches!(bytes[at - 1], b'E' | b'e');
                at = after_quote(bytes, at, is_escaped);
            }
            b'-' if bytes[at..].starts_with(b"--") => at = line(),
            b'\\' if !is_begun => return Some(line()),
            byte => {
                is_begun |= !byte.is_ascii_whitespace();
                at += 1;
            }
        }
    }
    (!bytes.is_empty()).then_some(bytes.len())
}

/// Includes the end of the line if nothing else is in it.
fn line_end(bytes: &[u8], at: usize) -> usize {
    at + usize::from(bytes.get(at) == Some(&b'\n'))
}

/// Returns the place after a text in quotation marks that begins at `at`.
fn after_quote(bytes: &[u8], at: usize, is_escaped: bool) -> usize {
    let (quote, mut at) = (bytes[at], at + 1);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if is_escaped => at += 2,
            // Twice is the mark itself: another text follows at once.
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Returns a statement without the comments in front of it.
fn code(statement: &str) -> String {
    let lines = statement.lines().skip_while(|line| line.is_empty() || line.starts_with("--"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the role and its new member if a statement grants a membership.
fn membership(statement: &str) -> Option<(String, String)> {
    let code = code(statement);
    let (group, rest) = identifier(code.strip_prefix("GRANT ")?)?;
    Some((group, identifier(rest.strip_prefix(" TO ")?)?.0))
}

/// Returns the role that a statement creates or changes: the member of a membership.
fn role_of(statement: &str) -> Option<String> {
    let code = code(statement);
    for start in ["CREATE ROLE ", "ALTER ROLE ", "COMMENT ON ROLE "] {
        if let Some(rest) = code.strip_prefix(start) {
            return Some(identifier(rest)?.0);
        }
    }
    if code.starts_with("GRANT ") {
        return membership(statement).map(|(_, member)| member);
    }
    let (_, rest) = code.strip_prefix("SECURITY LABEL ")?.split_once(" ON ROLE ")?;
    Some(identifier(rest)?.0)
}

/// Splits a name from the text after it.
fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || c == ';').unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let (mut name, mut rest) = (String::new(), quoted);
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return Some((name, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(all: &[&str]) -> BTreeSet<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn roles_of_others_and_the_own_role_stay() {
        let dump = "--\n-- PostgreSQL database cluster dump\n--\n\n\\restrict abc;def\n\n\
                    SET default_transaction_read_only = off;\n\n--\n-- Roles\n--\n\n\
                    CREATE ROLE postgres;\nALTER ROLE postgres WITH NOSUPERUSER LOGIN PASSWORD 'a;b';\n\
                    CREATE ROLE wiki;\nALTER ROLE wiki WITH LOGIN PASSWORD 'it''s; \"x';\n\
                    CREATE ROLE \"new \"\"one\";\nALTER ROLE \"new \"\"one\" WITH LOGIN;\n\
                    CREATE ROLE other;\nALTER ROLE other WITH SUPERUSER LOGIN PASSWORD 'x';\n\
                    COMMENT ON ROLE other IS E'a\\'; b';\n\
                    ALTER ROLE other IN DATABASE wiki SET work_mem TO '4MB';\n\
                    GRANT \"new \"\"one\" TO other WITH INHERIT TRUE GRANTED BY postgres;\n\
                    GRANT wiki TO other GRANTED BY postgres;\nGRANT wiki TO postgres GRANTED BY postgres;\n\
                    GRANT pg_monitor TO other GRANTED BY postgres;\n\
                    GRANT other TO wiki GRANTED BY postgres;\n\
                    CREATE TABLESPACE t OWNER other LOCATION '/x';\n\\unrestrict abc;def\n";
        let existing = names(&["postgres", "wiki", "other", "pg_monitor"]);
        let chosen = choose(dump, &existing, &names(&["wiki", "postgres"]), "postgres", true);
        assert_eq!(chosen.kept, names(&["postgres", "other"]));
        assert_eq!(chosen.changed, names(&["wiki"]));
        assert_eq!(chosen.created, names(&["new \"one"]));
        assert_eq!(chosen.without_password, names(&[]));
        let code: String = chosen.sql.lines().fold(String::new(), |code, line| {
            if line.is_empty() || line.starts_with("--") { code } else { code + line + "\n" }
        });
        let wanted = "\\restrict abc;def\nSET default_transaction_read_only = off;\n\
                      ALTER ROLE wiki WITH LOGIN PASSWORD 'it''s; \"x';\n\
                      CREATE ROLE \"new \"\"one\";\nALTER ROLE \"new \"\"one\" WITH LOGIN;\n\
                      GRANT \"new \"\"one\" TO other WITH INHERIT TRUE GRANTED BY postgres;\n\
                      GRANT wiki TO other GRANTED BY postgres;\n\
                      GRANT other TO wiki GRANTED BY postgres;\n\
                      CREATE TABLESPACE t OWNER other LOCATION '/x';\n\\unrestrict abc;def\n";
        assert_eq!(code, wanted);
        // On a new machine, everything is created.
        let all = choose(dump, &names(&[]), &names(&[]), "admin", true);
        assert_eq!((&all.sql[..], all.kept), (dump, names(&[])));
    }

    #[test]
    fn roles_without_passwords_are_named() {
        let dump = "CREATE ROLE a;\nALTER ROLE a WITH NOSUPERUSER LOGIN;\nCREATE ROLE b;\n\
                    ALTER ROLE b WITH NOSUPERUSER NOLOGIN;\nCREATE ROLE c;\nALTER ROLE c WITH LOGIN;\n";
        let chosen = choose(dump, &names(&["c"]), &names(&["c"]), "x", false);
        assert_eq!(chosen.without_password, names(&["a"]));
    }

    proptest! {
        #[test]
        fn any_text_is_split_without_loss(text in "[A-Z;'\"\\\\ \n-]{0,60}") {
            prop_assert_eq!(statements(&text).collect::<String>(), text);
        }
    }
}
