//! Tests whether GitLab's keys decrypt the values in its databases.

use super::SECRETS_LOST;
use crate::catalogue::Catalogue;
use crate::check::{Check, Verdict};
use crate::encrypted::{DB_KEY, Keys, Trial};
use crate::error::Result;
use crate::file::yaml_value;
use crate::kind::gitlab::rows::{encrypted, sections};
use crate::plan::Plan;
use crate::service::postgres::Connection;
use crate::settings::ChangedKeys;
use crate::view::View;
use serde_json::Value;
use std::path::Path;

/// Name of the check.
const NAME: &str = "secrets";

/// Source of keys.
pub struct Source {
    /// The file, for people.
    pub file: &'static str,
    /// Keys of the file.
    pub keys: Keys,
    /// Keys of the file that was generated from it, which GitLab reads.
    pub other: Option<Keys>,
}

/// Asks for encrypted values and nothing else.
pub fn ask(plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    for database in sections::own(plan, databases, &mut catalogue)? {
        encrypted::ask(database, &mut catalogue)?;
    }
    Ok(catalogue)
}

/// The keys in the `secrets.yml` that the package generates.
pub fn generated(plan: &Plan, view: &View<'_>) -> Result<Option<Keys>> {
    let Some(dir) = plan.place("generated") else { return Ok(None) };
    let content = view.file(&dir.join(GENERATED))?.and_then(|seen| seen.content);
    let secrets = content.and_then(|content| Place::Generated.parse(&content).ok());
    Ok(secrets.map(|secrets| Keys::of(&secrets)))
}

/// Name of the generated file in its directory.
pub const GENERATED: &str = "secrets.yml";

/// File with the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `gitlab-secrets.json`, which the package keeps.
    Kept,
    /// `secrets.yml`, which the package generates.
    Generated,
}

/// Fault of a file with keys.
#[derive(Debug, thiserror::Error)]
pub enum Unparsed {
    /// The text is not JSON.
    #[error("invalid JSON at line {line}, column {column}")]
    Json {
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
    },
    /// The text is not YAML.
    #[error("invalid YAML")]
    Yaml,
}

impl Place {
    /// Returns the form of a file by its name.
    pub fn of(path: &Path) -> Place {
        if path.ends_with(GENERATED) { Place::Generated } else { Place::Kept }
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Place::Kept => "gitlab-secrets.json",
            Place::Generated => "gitlab-rails/etc/secrets.yml",
        }
    }

    /// Name of the section with the keys.
    pub fn section(self) -> &'static str {
        match self {
            Place::Kept => "gitlab_rails",
            Place::Generated => "production",
        }
    }

    /// Returns the keys in a content, or its fault. A parser's message may quote the text, which is
    /// secret.
    pub fn parse(self, content: &[u8]) -> Result<Value, Unparsed> {
        let mut all: Value = match self {
            Place::Kept => serde_json::from_slice(content)
                .map_err(|error| Unparsed::Json { line: error.line(), column: error.column() })?,
            Place::Generated => {
                std::str::from_utf8(content).ok().and_then(yaml_value).ok_or(Unparsed::Yaml)?
            }
        };
        Ok(all.get_mut(self.section()).map(Value::take).unwrap_or_default())
    }
}

/// Tries the keys on all values of the catalogue. The result names each key that no value has tried.
pub fn check(plan: &Plan, catalogue: &Catalogue, from: &Source) -> Check {
    let trial = from.keys.attempt(&catalogue.encrypted);
    let mut check = check_trial(plan, catalogue, from, &trial);
    let untried = from.keys.untried(&trial);
    if !untried.is_empty() {
        check.text += &format!("; present, not tried: {}", untried.join(", "));
    }
    check
}

fn check_trial(plan: &Plan, catalogue: &Catalogue, from: &Source, trial: &Trial) -> Check {
    let file = from.file;
    let untried = |verdict, reason: &str| {
        let text = format!("the keys of {file} could not be tried: {reason}");
        Check::new(NAME, verdict, text)
    };
    if !catalogue.knows(encrypted::ENCRYPTED) && catalogue.encrypted.is_empty() {
        return untried(
            Verdict::Unknown,
            "cannot query encrypted values; `config check` tests the connection",
        );
    }
    if plan.postgres.is_none() {
        return untried(Verdict::Unknown, "the database server is unknown");
    }
    if catalogue.encrypted.is_empty() {
        return untried(Verdict::Ok, "the databases contain no encrypted value in a known format");
    }
    let count: usize = trial.keys.values().map(|tried| tried.count).sum();
    if count == 0 {
        let reason = format!(
            "{} encrypted values have an unknown format, or their key is not in the file",
            trial.untried
        );
        return untried(Verdict::Unknown, &reason);
    }
    let failing = trial.keys.iter().filter(|(_, tried)| tried.failed > 0);
    let words: Vec<String> = failing
        .clone()
        .map(|(name, tried)| format!("{name}: {} of {}", tried.failed, tried.count))
        .collect();
    let columns = failing.clone().flat_map(|(_, tried)| tried.columns.iter().cloned());
    if words.is_empty() {
        let tried: Vec<&str> = trial.keys.keys().copied().collect();
        let text = format!(
            "the keys of {file} decrypt the database: {count} encrypted {} tried with {}",
            if count == 1 { "value" } else { "values" },
            tried.join(", ")
        );
        return Check::ok(NAME, text);
    }
    let words = words.join(", ");
    if !failing.clone().any(|(_, tried)| tried.is_wrong()) {
        let text = format!(
            "the keys of {file} decrypt the database only in part; values that failed: {words}"
        );
        let hint = "a lost key encrypted these values, or their format is unknown; \
                    `gitlab-rake gitlab:doctor:secrets VERBOSE=1` lists all";
        return Check::new(NAME, Verdict::Warning, text).with_examples(columns).with_hint(hint);
    }
    // A setting accepts the loss of the old keys.
    let is_accepted = plan.changed_keys == ChangedKeys::Ok;
    let verdict = if is_accepted { Verdict::Warning } else { Verdict::Failed };
    let text = format!(
        "the keys of {file} do not decrypt the database; values that failed: {words}; {SECRETS_LOST}"
    );
    let opens_all = |keys: &Keys| {
        let trial = keys.attempt(&catalogue.encrypted);
        trial.keys.contains_key(DB_KEY) && !trial.keys.values().any(|tried| tried.is_wrong())
    };
    let hint = if from.other.as_ref().is_some_and(opens_all) {
        "the keys of gitlab-rails/etc/secrets.yml decrypt the database; copy them to \
         gitlab-secrets.json before the next `gitlab-ctl reconfigure` overwrites them"
            .to_owned()
    } else {
        format!(
            "restore {file} from an older snapshot of the time when this database was in use; if \
             the keys are lost for good, `keys.changed = \"ok\"` makes this a warning"
        )
    };
    Check::new(NAME, verdict, text).with_examples(columns).with_hint(hint).settled()
}
