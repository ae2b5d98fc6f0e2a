//! Keys that decrypt the database, in variables or in files that assign them.

use super::compose::{Compose, Place, Service, Source};
use super::variables::assignments;
use crate::catalogue::Catalogue;
use crate::check::{Check, Verdict};
use crate::encrypted::{Keys, keys_of};
use crate::error::Result;
use crate::file;
use crate::kind::gitlab::keys as tried;
use crate::plan::Plan;
use crate::service::Password;
use crate::view::{View, shown};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files of assignments that the container reads before anything else.
const HANDED: [&str; 2] = ["/run/secrets/gitlab-secrets", "/gitlab-configs"];

/// Keys without which the database cannot be decrypted, with the first version of GitLab that
/// requires them.
pub const SECRETS: &[(&str, (u32, u32))] = &[
    ("GITLAB_SECRETS_DB_KEY_BASE", (0, 0)),
    ("GITLAB_SECRETS_SECRET_KEY_BASE", (0, 0)),
    ("GITLAB_SECRETS_OTP_KEY_BASE", (0, 0)),
    ("GITLAB_SECRETS_ENCRYPTED_SETTINGS_KEY_BASE", (17, 0)),
    ("GITLAB_SECRETS_ACTIVE_RECORD_ENCRYPTION_PRIMARY_KEY", (17, 8)),
    ("GITLAB_SECRETS_ACTIVE_RECORD_ENCRYPTION_DETERMINISTIC_KEY", (17, 8)),
    ("GITLAB_SECRETS_ACTIVE_RECORD_ENCRYPTION_KEY_DERIVATION_SALT", (17, 8)),
];

/// Adds the files that may contain the keys to the plan. A key that is neither in the environment
/// nor in these files is recorded as missing.
pub fn fill(compose: &Compose, gitlab: &Service, plan: &mut Plan) {
    let mut places = BTreeSet::from([compose.path.clone()]);
    let mut set: BTreeSet<String> = gitlab
        .environment
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, _)| name.clone())
        .collect();
    for handed in HANDED.map(Path::new) {
        let mount = gitlab.mounts.iter().rev().find(|mount| mount.target == handed);
        // It may also be in a mounted directory.
        let text = match (mount.map(|mount| &mount.source), gitlab.place(handed)) {
            (Some(Source::Text(text)), _) => Some(text.clone()),
            (_, Some(Place::Here(path))) if mount.is_some() || path.is_file() => {
                let text = file::text(&path).ok().flatten();
                places.insert(path);
                text
            }
            _ => None,
        };
        let assigned = assignments(text.as_deref().unwrap_or_default());
        set.extend(
            assigned
                .into_iter()
                .filter(|(_, value)| !value.text().is_empty())
                .map(|(name, _)| name),
        );
    }
    let version = plan.product.version_numbers();
    let is_needed = |since| version.is_none_or(|version| version >= since);
    let missing: Vec<&str> = SECRETS
        .iter()
        .filter(|(name, since)| is_needed(*since) && !set.contains(*name))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        let mut places = places.into_iter();
        let first = places.next().unwrap_or_default();
        let part = plan.needs("secrets", "keys that decrypt the database", first);
        part.paths.extend(places);
        return;
    }
    plan.lacks(
        "secrets",
        format!(
            "{} in the environment of the GitLab container or in {}; write them to .env beside \
             the compose file, or set parts.secrets.path to the file that contains them",
            missing.join(", "),
            HANDED.join(", ")
        ),
    );
}

/// Returns the keys that are written literally in files of a copy. A value may be a list in JSON.
pub fn keys(plan: &Plan, view: &View<'_>) -> Result<BTreeMap<&'static str, Vec<Password>>> {
    let named = literal(plan, view)?.into_iter();
    Ok(named.map(|(name, key)| (name, keys_of(&list_or_text(&key)))).collect())
}

/// Parses a list in JSON; any other value is a text.
fn list_or_text(Password(key): &Password) -> Value {
    let list = serde_json::from_str(key).ok().filter(Value::is_array);
    list.unwrap_or_else(|| Value::String(key.clone()))
}

fn literal(plan: &Plan, view: &View<'_>) -> Result<BTreeMap<&'static str, Password>> {
    let parts = plan.parts.iter().filter(|part| ["secrets", "compose"].contains(&&*part.name));
    let paths: Vec<PathBuf> = parts.flat_map(|part| part.paths.clone()).collect();
    let mut keys = BTreeMap::new();
    for content in view.read(&paths)?.into_iter().flatten().filter_map(|seen| seen.content) {
        let text = String::from_utf8_lossy(&content);
        for (name, _) in SECRETS {
            // `NAME=value` or `NAME: value`. A value that only refers to a variable is skipped.
            let value = text.lines().find_map(|line| {
                let rest = line.trim_start_matches([' ', '-']).strip_prefix(name)?;
                let rest = rest.trim_start().strip_prefix(['=', ':'])?;
                let value = rest.trim().trim_matches(['"', '\'']);
                (!value.is_empty() && !value.starts_with('$')).then(|| value.to_owned())
            });
            if let Some(value) = value {
                keys.insert(*name, Password(value));
            }
        }
    }
    Ok(keys)
}

/// Keys under the names that GitLab itself has for them.
fn as_object(keys: &BTreeMap<&'static str, Password>) -> Value {
    let named = keys.iter().map(|(name, key)| {
        let name = name.trim_start_matches("GITLAB_SECRETS_").to_lowercase();
        (name, list_or_text(key))
    });
    Value::Object(named.collect())
}

/// Checks that all files with keys are in the copy. That a key is in none of them, the part
/// itself says.
pub fn check(plan: &Plan, catalogue: &Catalogue, view: &View<'_>) -> Result<Check> {
    let part = plan.parts.iter().find(|part| part.name == "secrets");
    let paths = part.map(|part| part.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() {
        let text = "some keys that decrypt the database are not in a copied file";
        return Ok(Check::new("secrets", Verdict::Warning, text));
    }
    let seen = view.look(paths)?;
    let absent = paths.iter().zip(seen).filter(|(_, seen)| seen.is_none());
    let absent: Vec<String> = absent.map(|(path, _)| shown(path)).collect();
    if absent.is_empty() {
        let from = tried::Source {
            file: "the compose file and its environment",
            keys: Keys::of(&as_object(&literal(plan, view)?)),
            other: None,
        };
        return Ok(tried::check(plan, catalogue, &from));
    }
    let place = if view.is_live() { "do not exist" } else { "are not in the copy" };
    let text = format!("files with keys that decrypt the database {place}");
    let check = Check::new("secrets", Verdict::Failed, text).with_examples(absent);
    // Another copy would not find files that this machine lacks as well.
    let machine = View::machine(&plan.mounts).look(paths)?;
    Ok(Check { is_settled: machine.iter().any(Option::is_none), ..check })
}
