//! Secrets: tokens, passwords, and addresses that grant access.
//!
//! A secret comes from a file that nobody else can read, or from a command. It never comes from an
//! argument, which every user on the machine can read. Neither `Debug` nor an error prints it.

use crate::error::SecretError;
use crate::process::Command;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::observe::Progress;

/// Longest secret, in bytes.
const MAX_LEN: u64 = 64 << 10;
/// Time limit of a command that prints a secret.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Source of a secret: `{ file = "/path" }` or `{ command = ["program", "argument"] }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A file without permissions for group and others.
    File(PathBuf),
    /// A program and its arguments. It prints the secret within 30 seconds, and runs as our own
    /// user in the environment of a login.
    Command(Vec<String>),
}

impl Secret {
    /// Reads the secret, without its line ending. An error names the source, the fault and the next
    /// step.
    pub fn read(&self) -> Result<Hidden, SecretError> {
        let (bytes, place) = match self {
            Secret::File(path) => (read_file(path)?, path.display().to_string()),
            Secret::Command(command) => (read_command(command, COMMAND_LIMIT)?, shown(command)),
        };
        let Ok(text) = String::from_utf8(bytes) else { return Err(SecretError::NotText(place)) };
        match text.trim_end_matches(['\n', '\r']) {
            "" => Err(SecretError::Empty(place)),
            line if line.contains(char::is_control) => Err(SecretError::NotOneLine(place)),
            line => Ok(Hidden(line.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        deserializer.deserialize_any(Where)
    }
}

/// Visitor whose errors never quote a secret that was written in place of its source.
struct Where;

/// Error that does not quote the value.
fn not_here<T, E: serde::de::Error>() -> Result<T, E> {
    Err(E::custom(
        "a secret must not be written here; give its source: { file = \"/path\" } or \
         { command = [\"program\", \"argument\"] }",
    ))
}

impl<'de> Visitor<'de> for Where {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ file = … } or { command = [ … ] }")
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Secret, M::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum Place {
            File(PathBuf),
            Command(#[serde(deserialize_with = "crate::process::program")] Vec<String>),
        }
        Ok(match Place::deserialize(MapAccessDeserializer::new(map))? {
            Place::File(path) => Secret::File(path),
            Place::Command(command) => Secret::Command(command),
        })
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Secret, E> {
        not_here()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Secret, E> {
        not_here()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Secret, E> {
        not_here()
    }
}

/// A secret that was read. Only [`Hidden::reveal`] returns it.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// An address that may be a secret, such as that of a webhook: a plain string, or a source as for
/// [`Secret`].
#[derive(Clone, PartialEq, Eq)]
pub enum Address {
    /// The address itself.
    Plain(String),
    /// Source of the address.
    Secret(Secret),
}

impl Address {
    /// Reads the address. A plain one is hidden as well, because it may contain a secret.
    pub fn read(&self) -> Result<Hidden, SecretError> {
        match self {
            Address::Plain(address) => Ok(Hidden(address.clone())),
            Address::Secret(secret) => secret.read(),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Plain(_) => f.write_str("(hidden)"),
            Address::Secret(secret) => secret.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Address;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, { file = … } or { command = [ … ] }")
            }

            fn visit_str<E>(self, address: &str) -> Result<Address, E> {
                Ok(Address::Plain(address.to_owned()))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Address, M::Error> {
                Where.visit_map(map).map(Address::Secret)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    // Checked before opening: opening a pipe would block until a writer opens it.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SecretError::Open { path: path.to_owned(), mode: mode & 0o7777 });
    }
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    bounded(bytes, || path.display().to_string())
}

fn read_command(argv: &[String], limit: Duration) -> Result<Vec<u8>, SecretError> {
    let command = Command::new(argv).within(limit);
    let output = command.secret(&Progress::default());
    let output = output.map_err(|error| SecretError::Command(Box::new(error)))?;
    bounded(output, || shown(argv))
}

fn bounded(bytes: Vec<u8>, place: impl Fn() -> String) -> Result<Vec<u8>, SecretError> {
    if bytes.len() as u64 > MAX_LEN { Err(SecretError::TooLong(place())) } else { Ok(bytes) }
}

/// Formats a command for messages.
fn shown(argv: &[String]) -> String {
    format!("the command `{}`", Command::new(argv).shown())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, Secret) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        std::fs::write(&path, content).expect("writes");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        (dir, Secret::File(path))
    }

    fn command(words: &[&str]) -> Secret {
        Secret::Command(words.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn reading_a_secret_removes_only_the_line_end() {
        let (_dir, secret) = file(b" a b \r\n", 0o600);
        assert_eq!(secret.read().expect("reads").reveal(), " a b ");
        assert_eq!(command(&["printf", "x"]).read().expect("reads").reveal(), "x");
    }

    #[test]
    fn secret_files_open_to_others_are_refused_with_a_remedy() {
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644] {
            let (_dir, secret) = file(b"token", mode);
            let error = secret.read().expect_err("refused").to_string();
            assert!(error.contains("chmod 600 ") && !error.contains("token"), "{error}");
        }
        let (_dir, secret) = file(b"token", 0o400);
        secret.read().expect("reads");
    }

    #[test]
    fn invalid_secrets_are_refused_with_a_reason() {
        let long = vec![b'x'; 64 * 1024 + 1];
        for (content, word) in
            [(&b""[..], "empty"), (b"a\nb", "one line"), (b"\xff", "not text"), (&long, "64 KiB")]
        {
            let (_dir, secret) = file(content, 0o600);
            let error = secret.read().expect_err("refused").to_string();
            assert!(error.contains(word) && error.contains("; "), "{error}");
        }
        let missing =
            Secret::File("/nowhere/at/all".into()).read().expect_err("not there").to_string();
        assert!(missing.contains("/nowhere/at/all"), "{missing}");
        let directory = Secret::File("/".into()).read().expect_err("a directory").to_string();
        assert!(directory.contains("not a file"), "{directory}");
    }

    #[test]
    fn secret_commands_must_succeed_and_print_little() {
        for (words, fault) in [
            (&["false"][..], "exit code 1"),
            (&["sh", "-c", "printf s3; printf cret; echo no key >&2; exit 3"], "no key"),
            // Their arguments, which messages name, do not contain the secret.
            (&["sh", "-c", "s=s3; echo ${s}cret; exit 3"], "exit code 3"),
            (&["sh", "-c", "s=s3; echo ${s}cret; kill -9 $$"], "signal 9"),
            (&["sh", "-c", "s=s3; echo ${s}cret; echo not ${s}cret >&2; exit 3"], "not …"),
            (&["sh", "-c", "s=s3; echo password=${s}cret >&2; exit 3"], ": password=…"),
            (&["/nowhere/at/all"], "cannot start"),
            (&["head", "-c", "100000", "/dev/zero"], "64 KiB"),
            (&[], "cannot start"),
        ] {
            let error = command(words).read().expect_err("refused").to_string();
            assert!(error.contains(fault) && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_time_limit_ends_a_secret_command_and_its_children() {
        let dir = tempfile::tempdir().expect("a directory");
        let alive = dir.path().join("alive");
        let script = format!("(sleep 1; touch '{}') & echo x; wait", alive.display());
        let words = ["sh", "-c", &script].map(str::to_owned);
        let error = read_command(&words, Duration::from_millis(200));
        let error = error.expect_err("ended").to_string();
        assert!(error.contains("within"), "{error}");
        std::thread::sleep(Duration::from_millis(1300));
        assert!(!alive.exists());
    }

    #[test]
    fn debug_output_does_not_show_secrets() {
        let (_dir, secret) = file(b"s3cret", 0o600);
        let address = Address::Plain("https://chat.example/hooks/s3cret".into());
        let shown = format!("{:?} {address:?}", secret.read().expect("reads"));
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn an_address_is_a_string_or_a_secret() {
        #[derive(Deserialize)]
        struct Table {
            url: Address,
        }
        let parse = |text: &str| toml::from_str::<Table>(text).map(|table| table.url);
        assert_eq!(parse("url = 'http://x'").expect("parses"), Address::Plain("http://x".into()));
        let file = Address::Secret(Secret::File("/x".into()));
        assert_eq!(parse("url = { file = '/x' }").expect("parses"), file);
        let two = command(&["a", "b"]);
        let parsed = parse("url = { command = ['a', 'b'] }").expect("parses");
        assert_eq!(parsed, Address::Secret(two));
        assert!(parse("url = { fil = '/x' }").expect_err("unknown").to_string().contains("`file`"));
        assert!(parse("url = 3").is_err());
    }

    #[test]
    fn errors_do_not_repeat_a_misplaced_secret() {
        #[derive(Debug, Deserialize)]
        struct Table {
            #[expect(dead_code, reason = "never read")]
            password: Secret,
        }
        for text in ["password = 's3cret'", "password = 12345", "password = 1.2345"] {
            let error = toml::from_str::<Table>(text).expect_err("refused");
            let message = error.message();
            assert!(
                message.contains("not be written here") && !message.contains("s3cret"),
                "{message}"
            );
            assert!(!message.contains("2345"), "{message}");
        }
    }
}
