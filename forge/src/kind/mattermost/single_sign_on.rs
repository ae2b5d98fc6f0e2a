//! Checks that users of the package's Mattermost can sign in through GitLab.
//!
//! Mattermost names a GitLab application by its id and authenticates with a secret. GitLab keeps
//! the application in a row of `oauth_applications`. Each half is useless without the other, and
//! they are in different parts of a backup:
//!
//! ```text
//! up to 10.8   gitlab-secrets.json ─reconfigure─▶ config.json
//! from 11.0    gitlab-secrets.json ─reconfigure─▶ environment, which overrides config.json
//! ```
//!
//! The file on the right is in effect now, the one on the left after the next
//! `gitlab-ctl reconfigure`; both are compared. No text of a check contains a secret.

mod repair;

pub use repair::{Repair, repair};

use crate::catalogue::{Application, Catalogue};
use crate::check::{Check, Verdict};
use crate::error::Result;
use crate::plan::Plan;
use crate::view::{View, shown};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde_json::Value;
use sha2::{Digest, Sha512};
use std::path::PathBuf;

/// Name of the check.
pub const NAME: &str = "single-sign-on";

/// Subject of the queries about GitLab's applications.
pub const APPLICATIONS: &str = "applications";

/// First major version of the package in which the environment overrides `config.json`.
const ENVIRONMENT_SINCE: u32 = 11;

/// Maximum number of PBKDF2 rounds to compute. GitLab uses 20 000.
const ROUNDS_MAX: u32 = 1_000_000;

/// Compares Mattermost's id and secret with GitLab's. Returns `None` if there is no Mattermost.
pub fn check(plan: &Plan, catalogue: &Catalogue, view: &View<'_>) -> Result<Option<Check>> {
    let Some(places) = Places::of(plan) else { return Ok(None) };
    if catalogue.schema.is_empty() {
        return Ok(Some(unknown("no database of GitLab was queried")));
    }
    if !catalogue.knows(APPLICATIONS) {
        return Ok(Some(unknown("cannot query GitLab's applications")));
    }
    let major = plan.product.version_numbers().map(|(major, _)| major);
    judge(&places, major, &catalogue.applications, view).map(Some)
}

/// Files that may hold Mattermost's id and secret.
struct Places {
    config: PathBuf,
    environment: PathBuf,
    secrets: PathBuf,
}

impl Places {
    /// Returns `None` if there is no Mattermost with GitLab.
    fn of(plan: &Plan) -> Option<Places> {
        Some(Places {
            config: plan.place("mattermost-config")?,
            environment: plan.place("mattermost-environment").unwrap_or_default(),
            secrets: plan.place("secrets").unwrap_or_default(),
        })
    }
}

fn judge(
    places: &Places,
    major: Option<u32>,
    applications: &[Application],
    view: &View<'_>,
) -> Result<Check> {
    let mut sources = match sources(places, major, view)? {
        Ok(sources) => sources,
        Err(unreadable) => return Ok(unknown(unreadable.to_string())),
    };
    let Some(first) = sources.first() else {
        return Ok(unknown("Mattermost is not configured for sign-in with GitLab"));
    };
    if first.is_off {
        return Ok(unknown(format!("sign-in with GitLab is switched off in {}", first.shown())));
    }
    for source in &mut sources {
        source.matched = matched(source, applications);
    }
    let is_same = |source: &Source| source.matched == Match::Same;
    let found = sources.iter().map(|source| source.found(applications));
    if sources.iter().all(is_same) {
        let places: Vec<String> = sources.iter().map(Source::shown).collect();
        let text = format!("GitLab has the id and the secret from {}", places.join(" and "));
        return Ok(Check::ok(NAME, text));
    }
    if sources.iter().all(|source| is_same(source) || source.matched == Match::Unknown) {
        let text = "GitLab stores the secret in an unknown format";
        return Ok(unknown(text).with_examples(found));
    }
    let text = if is_same(&sources[0]) {
        "users can sign in to Mattermost with GitLab, but not after the next \
         `gitlab-ctl reconfigure`"
    } else {
        "users cannot sign in to Mattermost with GitLab: Mattermost does not match GitLab's \
         database"
    };
    Ok(Check::new(NAME, Verdict::Warning, text).with_examples(found).with_hint(advice(
        places,
        &sources,
        applications,
    )))
}

fn unknown(reason: impl Into<String>) -> Check {
    Check::new(NAME, Verdict::Unknown, reason)
}

/// Type of file that holds id and secret.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Config,
    Environment,
    Secrets,
}

/// Id and secret from one file. Does not implement `Debug`, because of the secret.
struct Source {
    origin: Origin,
    path: PathBuf,
    id: String,
    secret: String,
    is_off: bool,
    matched: Match,
}

/// Result of comparing a source with GitLab's rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    Same,
    NoSuchId,
    OtherSecret,
    /// The secret's form in the row is unknown.
    Unknown,
}

impl Origin {
    /// Returns the names of id and secret.
    fn names(self) -> [&'static str; 2] {
        match self {
            Origin::Config => ["GitLabSettings.Id", "GitLabSettings.Secret"],
            Origin::Environment => ["MM_GITLABSETTINGS_ID", "MM_GITLABSETTINGS_SECRET"],
            Origin::Secrets => ["mattermost.gitlab_id", "mattermost.gitlab_secret"],
        }
    }
}

impl Source {
    fn shown(&self) -> String {
        shown(&self.path)
    }

    /// Describes the result of the comparison for people.
    fn found(&self, applications: &[Application]) -> String {
        let [id, secret] = self.origin.names();
        let of_row = || {
            let row = applications.iter().find(|row| row.uid == self.id);
            row.map_or_else(String::new, |row| {
                format!("{} ({})", shown(row.name.as_ref()), Form::of(&row.secret).name())
            })
        };
        let what = match self.matched {
            Match::Same => "id and secret match".into(),
            Match::NoSuchId => format!("no application of GitLab has its {id}"),
            Match::OtherSecret => {
                format!("its {secret} differs from that of GitLab's {}", of_row())
            }
            Match::Unknown => format!("its {secret} cannot be compared with GitLab's {}", of_row()),
        };
        format!("{}: {what}", self.shown())
    }
}

/// Reason why a file that may hold id and secret cannot be read.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    /// The file is missing.
    #[error("{} does not exist", shown(.0))]
    Missing(PathBuf),
    /// The object is not a file, or is larger than a configuration file.
    #[error("{} is not a file, or is too large", shown(.0))]
    NotSmallFile(PathBuf),
    /// The file does not contain JSON.
    #[error("{} is invalid JSON at line {line}, column {column}", shown(path))]
    NotJson {
        /// Path of the file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
    },
}

/// Returns the sources to compare, the one in effect now first. The inner error says why a source
/// cannot be read.
fn sources(
    places: &Places,
    major: Option<u32>,
    view: &View<'_>,
) -> Result<std::result::Result<Vec<Source>, Unreadable>> {
    let environment = environment(places, view)?;
    // If the version is unknown, the presence of the environment decides.
    let is_old = major.map_or(environment.is_none(), |major| major < ENVIRONMENT_SINCE);
    let secrets = match json(places, Origin::Secrets, view)? {
        Ok(secrets) => secrets,
        Err(reason) => return Ok(Err(reason)),
    };
    let now = match environment {
        Some(environment) if !is_old => Some(environment),
        // The next reconfigure writes the environment, for example after a restore.
        None if !is_old && secrets.is_some() => None,
        _ => match json(places, Origin::Config, view)? {
            Ok(config) => config,
            Err(reason) => return Ok(Err(reason)),
        },
    };
    Ok(Ok(now.into_iter().chain(secrets).collect()))
}

/// Reads id and secret from the environment. Returns `None` if it sets no id.
fn environment(places: &Places, view: &View<'_>) -> Result<Option<Source>> {
    let [id, secret] = Origin::Environment.names();
    let line = |name| -> Result<String> {
        let seen = view.file(&places.environment.join(name))?;
        let content = seen.and_then(|seen| seen.content).unwrap_or_default();
        // Only the first line counts. An empty file unsets the variable.
        let line = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok(String::from_utf8_lossy(line).trim_end().to_owned())
    };
    let (id, secret) = (line(id)?, line(secret)?);
    let is_off = line("MM_GITLABSETTINGS_ENABLE")? == "false";
    let path = places.environment.clone();
    let source =
        Source { origin: Origin::Environment, path, id, secret, is_off, matched: Match::Unknown };
    Ok((!source.id.is_empty()).then_some(source))
}

/// Reads id and secret from a JSON file. Returns `None` if it sets no id. The inner error
/// says why the file cannot be read.
fn json(
    places: &Places,
    origin: Origin,
    view: &View<'_>,
) -> Result<std::result::Result<Option<Source>, Unreadable>> {
    let (path, section, names) = match origin {
        Origin::Secrets => {
            (&places.secrets, "mattermost", ["gitlab_id", "gitlab_secret", "gitlab_enable"])
        }
        _ => (&places.config, "GitLabSettings", ["Id", "Secret", "Enable"]),
    };
    let Some(seen) = view.file(path)? else {
        return Ok(Err(Unreadable::Missing(path.clone())));
    };
    let Some(content) = seen.content else {
        return Ok(Err(Unreadable::NotSmallFile(path.clone())));
    };
    let value: Value = match serde_json::from_slice(&content) {
        Ok(value) => value,
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            return Ok(Err(Unreadable::NotJson { path: path.clone(), line, column }));
        }
    };
    let [id, secret, enable] = names.map(|name| &value[section][name]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let source = Source {
        origin,
        path: path.clone(),
        id: text(id),
        secret: text(secret),
        is_off: enable.as_bool() == Some(false),
        matched: Match::Unknown,
    };
    Ok(Ok((!source.id.is_empty()).then_some(source)))
}

fn matched(source: &Source, applications: &[Application]) -> Match {
    let Some(row) = applications.iter().find(|row| row.uid == source.id) else {
        return Match::NoSuchId;
    };
    match Form::of(&row.secret).is_of(&source.secret) {
        Some(true) => Match::Same,
        Some(false) => Match::OtherSecret,
        None => Match::Unknown,
    }
}

/// Form in which GitLab stores a secret. Upgrades do not rewrite all rows at once, so one table may
/// contain several forms.
enum Form<'a> {
    Plain(&'a str),
    /// About GitLab 15 and 16: `$pbkdf2-sha512$ROUNDS$SALT$HASH`.
    Pbkdf2(Option<Pbkdf2<'a>>),
    /// Later versions.
    Sha512(&'a str),
}

struct Pbkdf2<'a> {
    rounds: u32,
    salt: Vec<u8>,
    hash: &'a str,
}

impl<'a> Form<'a> {
    fn of(secret: &'a str) -> Form<'a> {
        if let Some(rest) = secret.strip_prefix("$pbkdf2-") {
            return Form::Pbkdf2(Pbkdf2::parse(rest));
        }
        let is_digest =
            secret.len() == 128 && secret.bytes().all(|digit| digit.is_ascii_hexdigit());
        if is_digest { Form::Sha512(secret) } else { Form::Plain(secret) }
    }

    fn name(&self) -> &'static str {
        match self {
            Form::Plain(_) => "stored unhashed",
            Form::Pbkdf2(_) => "stored as a PBKDF2 hash",
            Form::Sha512(_) => "stored as a SHA-512 hash",
        }
    }

    /// Returns true if the stored form matches this secret, or `None` if that cannot be decided.
    fn is_of(&self, secret: &str) -> Option<bool> {
        Some(match self {
            Form::Plain(plain) => *plain == secret,
            Form::Sha512(digits) => {
                let hash = Sha512::digest(secret);
                let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                digits.eq_ignore_ascii_case(&hex)
            }
            Form::Pbkdf2(parsed) => {
                let Pbkdf2 { rounds, salt, hash } = parsed.as_ref()?;
                let mut computed = [0; 64];
                pbkdf2::pbkdf2_hmac::<Sha512>(secret.as_bytes(), salt, *rounds, &mut computed);
                BASE64.encode(computed) == plus(hash)
            }
        })
    }
}

impl<'a> Pbkdf2<'a> {
    fn parse(rest: &'a str) -> Option<Pbkdf2<'a>> {
        let [digest, rounds, salt, hash] = rest.split('$').collect::<Vec<_>>().try_into().ok()?;
        let rounds = rounds.parse().ok().filter(|rounds| (1..=ROUNDS_MAX).contains(rounds))?;
        let salt = BASE64.decode(plus(salt)).ok()?;
        (digest == "sha512").then_some(Pbkdf2 { rounds, salt, hash })
    }
}

/// Converts a hash to standard Base64 without padding. These hashes contain `.` instead of `+`.
fn plus(text: &str) -> String {
    text.trim_end_matches('=').replace('.', "+")
}

/// Returns advice: which values to set in which file. It does not contain the secret.
fn advice(places: &Places, sources: &[Source], applications: &[Application]) -> String {
    let find = |origin: Origin| sources.iter().find(|source| source.origin == origin);
    let [id, secret] = Origin::Secrets.names();
    let file = shown(&places.secrets);
    if find(Origin::Secrets).is_some_and(|source| source.matched == Match::Same) {
        return format!(
            "`gitlab-ctl reconfigure` writes the id and secret of {file} to Mattermost"
        );
    }
    if let Some(right) = sources.iter().find(|source| source.matched == Match::Same) {
        let ([right_id, right_secret], path) = (right.origin.names(), right.shown());
        return format!(
            "set {id} and {secret} in {file} to {right_id} and {right_secret} of {path}, \
             before the next `gitlab-ctl reconfigure`; `forgekeep repair single-sign-on` does that"
        );
    }
    let Some(row) = application(&sources[0], applications) else {
        return "GitLab has no application for Mattermost; `gitlab-ctl reconfigure` registers one \
                and writes its id and secret"
            .into();
    };
    let config = find(Origin::Config).map(|config| {
        let [id, secret] = config.origin.names();
        format!("{id} and {secret} in {}", config.shown())
    });
    // The package rewrites the environment; only values in its secrets file last.
    let lasting = format!("{id} and {secret} in {file}");
    let (places, then) = match (config, find(Origin::Secrets)) {
        (Some(config), None) => (config, "gitlab-ctl restart mattermost"),
        (Some(config), Some(_)) => {
            (format!("{config}, and {lasting},"), "gitlab-ctl restart mattermost")
        }
        (None, _) => (lasting, "gitlab-ctl reconfigure"),
    };
    // The id becomes part of a shell command.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if !row.uid.chars().all(is_plain) {
        return format!(
            "set {places} to the id and secret of GitLab's application {}, then run `{then}`; its \
             id contains special characters, so take both from table oauth_applications by hand",
            shown(row.name.as_ref())
        );
    }
    let uid = &row.uid;
    let where_from = match Form::of(&row.secret) {
        Form::Plain(_) => format!(
            "`gitlab-psql -c \"select secret from oauth_applications where uid = '{uid}'\"` prints \
             the secret; `forgekeep repair single-sign-on` writes both"
        ),
        _ => format!(
            "GitLab stores only a hash of the secret; take the secret from the {file} that was \
             backed up with this database (`forgekeep dump SNAPSHOT:{file}`), or renew the secret \
             of this application in GitLab's admin area"
        ),
    };
    format!("set {places} to the id {uid} and its secret, then run `{then}`; {where_from}")
}

/// Returns the application that Mattermost should use: the one with its current id, or else the
/// newest instance-wide one named after Mattermost. Users can register applications with that name,
/// but those are not instance-wide.
fn application<'a>(first: &Source, applications: &'a [Application]) -> Option<&'a Application> {
    let is_likely =
        |row: &&Application| row.is_instance_wide && row.name.to_lowercase().contains("mattermost");
    let named = applications.iter().find(|row| row.uid == first.id);
    let likely = || applications.iter().rev().find(is_likely);
    named.or_else(likely)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "aa11bb22";
    const SECRET: &str = "0f1e2d3c4b5a69780f1e2d3c4b5a69780f1e2d3c4b5a69780f1e2d3c4b5a6978";
    const PBKDF2: &str = "$pbkdf2-sha512$20000$$fKZcdglCMuEitDbfm2AcE45Jpkpg0mvqHphGnJ5rOR1NXsgjAZBEZAQO8k47U9irKTqFr0JFJFiyXtIvqGTwGA";
    const SHA512: &str = "d0519d961a95c7674dfd0ca72aa40ec6633eadccb976407e604113dc97f42f12c9c1a30d7c79950d1c15156e12598664fe8a18840965ea8b0c910dac4254e386";
    const FORMS: [&str; 3] = [SECRET, PBKDF2, SHA512];
    const OTHER: &str = "this is another secret";

    /// Files of a Mattermost.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Machine {
            let dir = tempfile::tempdir().expect("a directory");
            std::fs::create_dir(dir.path().join("env")).expect("a directory");
            let machine = Machine(dir);
            machine.write("config.json", r#"{"GitLabSettings": {"Enable": false, "Id": ""}}"#);
            machine.write("gitlab-secrets.json", r#"{"gitlab_rails": {}}"#);
            machine
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).expect("writes");
        }

        fn config(self, id: &str, secret: &str) -> Machine {
            let text = format!(
                r#"{{"GitLabSettings": {{"Enable": true, "Id": "{id}", "Secret": "{secret}"}}}}"#
            );
            self.write("config.json", &text);
            self
        }

        fn secrets(self, id: &str, secret: &str) -> Machine {
            let text = format!(
                r#"{{"mattermost": {{"gitlab_id": "{id}", "gitlab_secret": "{secret}"}}}}"#
            );
            self.write("gitlab-secrets.json", &text);
            self
        }

        fn environment(self, id: &str, secret: &str) -> Machine {
            self.write("env/MM_GITLABSETTINGS_ID", id);
            self.write("env/MM_GITLABSETTINGS_SECRET", &format!("{secret}\n"));
            self
        }

        fn judge(&self, major: Option<u32>, rows: &[Application]) -> Check {
            let dir = self.0.path();
            let places = Places {
                config: dir.join("config.json"),
                environment: dir.join("env"),
                secrets: dir.join("gitlab-secrets.json"),
            };
            let check = judge(&places, major, rows, &View::Live).expect("judges");
            let printed = format!("{check:?}");
            for secret in FORMS.into_iter().chain([OTHER]) {
                assert!(!printed.contains(secret), "{printed}");
            }
            check
        }
    }

    fn row(uid: &str, secret: &str) -> Application {
        Application {
            name: "GitLab Mattermost".into(),
            uid: uid.into(),
            secret: secret.into(),
            is_instance_wide: true,
        }
    }

    fn hint(check: &Check) -> &str {
        assert_eq!(check.verdict, Verdict::Warning, "{check:?}");
        check.hint.as_deref().expect("a hint")
    }

    #[test]
    fn each_hash_form_distinguishes_secrets() {
        for stored in FORMS {
            assert_eq!(Form::of(stored).is_of(SECRET), Some(true), "{stored}");
            assert_eq!(Form::of(stored).is_of(OTHER), Some(false), "{stored}");
        }
        let padded = format!("{}==", PBKDF2.replace('.', "+"));
        assert_eq!(Form::of(&padded).is_of(SECRET), Some(true));
        // A hostile row must not cost computing time.
        for odd in ["$pbkdf2-sha512$4000000000$$x", "$pbkdf2-sha1$1$$x", "$pbkdf2-", "$pbkdf2-a$b"]
        {
            assert_eq!(Form::of(odd).is_of(SECRET), None, "{odd}");
        }
    }

    #[test]
    fn versions_before_11_use_the_file() {
        for stored in FORMS {
            let rows = [row("older", OTHER), row(ID, stored)];
            let machine = Machine::new().config(ID, SECRET).environment("nonsense", OTHER);
            assert_eq!(machine.judge(Some(10), &rows).verdict, Verdict::Ok);
            let check = machine.config(ID, OTHER).judge(Some(10), &rows);
            assert!(check.examples[0].contains("GitLabSettings.Secret"), "{check:?}");
            let hint = hint(&check);
            assert!(hint.contains("set GitLabSettings.Id and GitLabSettings.Secret in "), "{hint}");
            assert!(hint.contains(&format!("id {ID} ")), "{hint}");
            assert!(hint.contains("gitlab-ctl restart mattermost"), "{hint}");
        }
    }

    #[test]
    fn versions_since_11_use_environment_and_secrets_file() {
        for stored in FORMS {
            let rows = [row(ID, stored)];
            let machine = || Machine::new().config("nonsense", OTHER).environment(ID, SECRET);
            let whole = machine().secrets(ID, SECRET);
            assert_eq!(whole.judge(Some(11), &rows).verdict, Verdict::Ok);
            // Version unknown.
            assert_eq!(whole.judge(None, &rows).verdict, Verdict::Ok);

            let check = machine().secrets(ID, OTHER).judge(Some(17), &rows);
            assert!(check.text.contains("not after the next"), "{check:?}");
            assert!(hint(&check).contains("to MM_GITLABSETTINGS_ID"), "{check:?}");
            let check =
                machine().secrets(ID, SECRET).environment("gone", SECRET).judge(Some(17), &rows);
            assert!(hint(&check).starts_with("`gitlab-ctl reconfigure` writes"), "{check:?}");
            let check =
                machine().secrets("gone", OTHER).environment("gone", OTHER).judge(Some(17), &rows);
            assert_eq!(check.examples.len(), 2, "{check:?}");
            assert!(hint(&check).contains("gitlab-secrets.json to the id aa11bb22 "), "{check:?}");
            assert!(hint(&check).contains("run `gitlab-ctl reconfigure`"), "{check:?}");
        }
    }

    #[test]
    fn the_hint_names_a_readable_source_of_the_secret() {
        let machine = Machine::new().environment(ID, OTHER);
        let plain = machine.judge(Some(14), &[row(ID, SECRET)]);
        let query =
            r#"`gitlab-psql -c "select secret from oauth_applications where uid = 'aa11bb22'"`"#;
        assert!(hint(&plain).contains(query), "{plain:?}");
        for stored in [PBKDF2, SHA512] {
            let hashed = machine.judge(Some(17), &[row(ID, stored)]);
            assert!(hint(&hashed).contains("only a hash"), "{hashed:?}");
            assert!(hint(&hashed).contains("forgekeep dump SNAPSHOT:"), "{hashed:?}");
            assert!(!hint(&hashed).contains("gitlab-psql"), "{hashed:?}");
        }
    }

    #[test]
    fn applications_of_users_are_not_proposed() {
        let machine = Machine::new().environment("gone", SECRET);
        let of_user = Application { is_instance_wide: false, ..row("evil", SECRET) };
        let check = machine.judge(Some(17), std::slice::from_ref(&of_user));
        assert!(hint(&check).contains("has no application for Mattermost"), "{check:?}");
        let odd = row("$(reboot)", SECRET);
        let check = machine.judge(Some(17), &[odd]);
        assert!(!hint(&check).contains("reboot") && hint(&check).contains("by hand"), "{check:?}");
        let check = machine.judge(Some(17), &[row(ID, SECRET), of_user]);
        assert!(hint(&check).contains(ID) && !hint(&check).contains("evil"), "{check:?}");
    }

    #[test]
    fn an_unknown_verdict_has_a_reason() {
        let rows = [row(ID, SECRET)];
        let reason = |machine: Machine, major| {
            let check = machine.judge(Some(major), &rows);
            assert_eq!(check.verdict, Verdict::Unknown, "{check:?}");
            check.text
        };
        assert!(reason(Machine::new(), 17).contains("not configured"));
        assert!(reason(Machine::new(), 10).contains("not configured"));
        let off = Machine::new().environment(ID, OTHER);
        off.write("env/MM_GITLABSETTINGS_ENABLE", "false");
        assert!(reason(off, 17).contains("switched off"));
        let broken = Machine::new();
        broken.write("config.json", &format!("{{\"Secret\": \"{SECRET}\""));
        assert!(reason(broken, 10).contains("is invalid JSON at line 1"));
        let gone = Machine::new();
        std::fs::remove_file(gone.0.path().join("gitlab-secrets.json")).expect("removes");
        assert!(reason(gone, 17).contains("does not exist"));
        let check =
            Machine::new().config(ID, OTHER).judge(Some(10), &[row(ID, "$pbkdf2-new$1$$x")]);
        assert_eq!(check.verdict, Verdict::Unknown, "{check:?}");
    }
}
