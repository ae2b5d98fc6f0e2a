//! Assignments of variables, and expansion of variables in texts, by the rules of compose.

/// Maximum nesting depth of variables.
const DEPTH_MAX: usize = 16;
/// Maximum number of bytes from all expansions. Without it, a few lines could expand to petabytes.
pub const EXPANDED_BYTES_MAX: usize = 16 << 20;

/// The value of an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assigned {
    /// A literal text, in which `$` has no meaning.
    Literally(String),
    /// A text to expand.
    ToExpand(String),
}

impl Assigned {
    /// Returns the text before expansion.
    pub fn text(&self) -> &str {
        match self {
            Assigned::Literally(text) | Assigned::ToExpand(text) => text,
        }
    }
}

/// Parses the assignments in an environment file, or in a shell script that only assigns variables.
pub fn assignments(text: &str) -> Vec<(String, Assigned)> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        if rest.is_empty() {
            return found;
        }
        let line = rest.split('\n').next().unwrap_or_default();
        let after_line = &rest[line.len()..];
        let Some((name, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
            rest = after_line;
            continue;
        };
        let value = &rest[name.len() + 1..];
        let value = value.trim_start_matches([' ', '\t']);
        let name = name.trim();
        let name = name.strip_prefix("export ").unwrap_or(name).trim();
        let assigned;
        (assigned, rest) = match value.chars().next() {
            Some(quote @ ('\'' | '"')) => match quoted(&value[1..], quote) {
                Some((inner, after)) => {
                    let assigned = if quote == '"' {
                        Assigned::ToExpand(inner)
                    } else {
                        Assigned::Literally(inner)
                    };
                    // The rest of the line is a comment.
                    (assigned, after.find('\n').map_or("", |at| &after[at..]))
                }
                // A quote without an end is an ordinary character.
                None => bare(value),
            },
            _ => bare(value),
        };
        found.push((name.to_owned(), assigned));
    }
}

/// Returns an unquoted value up to the end of its line, and the text after it.
fn bare(value: &str) -> (Assigned, &str) {
    let line = value.split('\n').next().unwrap_or_default();
    let comment = line.find(" #").or_else(|| line.find("\t#")).unwrap_or(line.len());
    (Assigned::ToExpand(line[..comment].trim().to_owned()), &value[line.len()..])
}

/// Returns the text before the closing quote, and the text after it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut inner = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Some((inner, &text[at + c.len_utf8()..])),
            '\\' if quote == '"' => match chars.next()?.1 {
                'n' => inner.push('\n'),
                't' => inner.push('\t'),
                'r' => inner.push('\r'),
                '$' => inner.push_str("$$"),
                other => inner.push(other),
            },
            c => inner.push(c),
        }
    }
    None
}

/// Returns the value of a variable. The flag is true if the text has no alternative for an unset
/// variable.
pub type Look<'a> = &'a dyn Fn(&str, bool) -> Option<String>;

/// Fault of a text with variables. It contains no value of a variable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// Variables are in variables in variables.
    #[error("its variables are nested too deeply")]
    TooDeep,
    /// The text ends in a variable.
    #[error("a `${{` has no closing `}}`")]
    Unclosed,
    /// A lone dollar sign.
    #[error("a `$` is not followed by a name; write `$$` for a `$` itself")]
    NoName,
    /// Braces without a name.
    #[error("a `${{` is not followed by a variable name")]
    NoNameInBraces,
    /// The expanded text is too long.
    #[error("its variables expand to more than {EXPANDED_BYTES_MAX} bytes")]
    TooLong,
    /// A required variable is unset.
    #[error(
        "the file requires {0}, which has no value; if the shell sets {0}, write it to .env beside \
         the file, so that it is backed up as well"
    )]
    Unset(String),
    /// The text after the name of this variable has no meaning.
    #[error("`${{{0}` is followed by an unknown operator")]
    UnknownOperator(String),
}

/// Expands the variables in a text.
pub fn expand(text: &str, look: Look<'_>, depth: usize) -> Result<String, ExpandError> {
    if depth > DEPTH_MAX {
        return Err(ExpandError::TooDeep);
    }
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after).ok_or(ExpandError::Unclosed)?;
            expanded.push_str(&braced(&after[..end], look, depth)?);
            rest = &after[end + 1..];
        } else {
            let len = name_len(rest);
            if len == 0 {
                return Err(ExpandError::NoName);
            }
            expanded.push_str(&look(&rest[..len], true).unwrap_or_default());
            rest = &rest[len..];
        }
        if expanded.len() > EXPANDED_BYTES_MAX {
            return Err(ExpandError::TooLong);
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Returns the length of the name at the beginning of a text, in bytes.
fn name_len(text: &str) -> usize {
    let is_of_name = |(at, c): (usize, char)| {
        c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit())
    };
    text.char_indices().find(|&next| !is_of_name(next)).map_or(text.len(), |(at, _)| at)
}

/// Returns the offset of the brace that closes a `${`. The text begins after `${`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            // Only braces of variables nest.
            b'{' if at > 0 && text.as_bytes()[at - 1] == b'$' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

/// Expands the content of `${…}`: a name, perhaps with an operator for a set or an unset value.
fn braced(inner: &str, look: Look<'_>, depth: usize) -> Result<String, ExpandError> {
    let len = name_len(inner);
    let (name, rest) = inner.split_at(len);
    if name.is_empty() {
        return Err(ExpandError::NoNameInBraces);
    }
    if rest.is_empty() {
        return Ok(look(name, true).unwrap_or_default());
    }
    // With a colon, an empty value counts as unset.
    let (counts_empty, operation) = match rest.strip_prefix(':') {
        Some(operation) => (false, operation),
        None => (true, rest),
    };
    let mut word = operation.chars();
    let operator = word.next().unwrap_or_default();
    let value = look(name, false).filter(|value| counts_empty || !value.is_empty());
    match (operator, value) {
        ('-' | '?', Some(value)) => Ok(value),
        ('+', None) => Ok(String::new()),
        ('-', None) | ('+', Some(_)) => expand(word.as_str(), look, depth + 1),
        ('?', None) => Err(ExpandError::Unset(name.to_owned())),
        _ => Err(ExpandError::UnknownOperator(name.to_owned())),
    }
}
