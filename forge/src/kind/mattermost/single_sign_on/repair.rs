//! Repair of single sign-on: writes id and secret to the files that should have them.

use super::{Form, Match, Origin, Places, Source, advice, application, matched, sources};
use crate::catalogue::{Application, Catalogue};
use crate::error::{Error, Result};
use crate::file;
use crate::plan::Plan;
use crate::view::{View, shown};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Result of a repair, or of a dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Files that were changed, or would be changed.
    pub written: Vec<PathBuf>,
    /// Next step, as a sentence; empty if nothing is wrong.
    pub next: String,
}

/// Gives Mattermost the id and the secret that GitLab has. They must be known: another file has
/// them, or GitLab stores the secret unhashed. With `is_dry` nothing is written.
///
/// If this repair is impossible, the error names the step that helps.
pub fn repair(plan: &Plan, catalogue: &Catalogue, is_dry: bool) -> Result<Repair> {
    let wrong = |reason: String| Error::Settings { instance: plan.instance.clone(), reason };
    let Some(places) = Places::of(plan) else {
        return Err(wrong("no Mattermost is installed beside GitLab".into()));
    };
    let major = plan.product.version_numbers().map(|(major, _)| major);
    let applications = &catalogue.applications;
    let sources = sources(&places, major, &View::Live)?;
    let mut sources = sources.map_err(|unreadable| wrong(unreadable.to_string()))?;
    for source in &mut sources {
        source.matched = matched(source, applications);
    }
    let Some(first) = sources.first() else {
        return Err(wrong("Mattermost is not configured for sign-in with GitLab".into()));
    };
    let is_same = |source: &&Source| source.matched == Match::Same;
    if sources.iter().all(|source| is_same(&source)) {
        return Ok(Repair { written: Vec::new(), next: String::new() });
    }
    let reconfigure =
        || "run `gitlab-ctl reconfigure`, which writes id and secret to Mattermost".into();
    if sources.iter().any(|source| source.origin == Origin::Secrets && is_same(&source)) {
        return Ok(Repair { written: Vec::new(), next: reconfigure() });
    }
    let known = sources.iter().find(is_same).map(|source| (&source.id, &source.secret));
    let of_row = || application(first, applications).and_then(plain);
    let Some((id, secret)) = known.or_else(of_row) else {
        return Err(wrong(advice(&places, &sources, applications)));
    };
    // Write `config.json` if it is in effect and wrong. Write the secrets file if it has these
    // values, or if `config.json` is not written.
    let config = sources.iter().find(|source| source.origin == Origin::Config && !is_same(source));
    let has_secrets = sources.iter().any(|source| source.origin == Origin::Secrets);
    let mut written = Vec::new();
    if config.is_some() {
        write(&places.config, "GitLabSettings", ["Id", "Secret"], [id, secret], is_dry)?;
        written.push(places.config.clone());
    }
    if has_secrets || config.is_none() {
        let names = ["gitlab_id", "gitlab_secret"];
        write(&places.secrets, "mattermost", names, [id, secret], is_dry)?;
        written.push(places.secrets.clone());
    }
    let next = match config {
        Some(_) => "run `gitlab-ctl restart mattermost`, which loads id and secret".into(),
        None => reconfigure(),
    };
    Ok(Repair { written, next })
}

/// Returns id and secret of an application if GitLab stores the secret unhashed.
fn plain(row: &Application) -> Option<(&String, &String)> {
    matches!(Form::of(&row.secret), Form::Plain(_)).then_some((&row.uid, &row.secret))
}

/// Changes two values in a section of a JSON file. All other values, the owner and the mode are
/// kept.
fn write(
    path: &Path,
    section: &str,
    names: [&str; 2],
    values: [&String; 2],
    is_dry: bool,
) -> Result<()> {
    let malformed =
        |reason: &str| Error::Malformed { path: path.to_owned(), reason: reason.into() };
    let text = file::bytes(path)?.ok_or_else(|| malformed("it does not exist"))?;
    let mut value: Value =
        serde_json::from_slice(&text).map_err(|_| malformed("it is not valid JSON"))?;
    let settings = value.as_object_mut().ok_or_else(|| malformed("it is not a JSON object"))?;
    let section = settings.entry(section).or_insert_with(|| Value::Object(Default::default()));
    let section = section
        .as_object_mut()
        .ok_or_else(|| malformed("one of its sections is not a JSON object"))?;
    for (name, value) in names.into_iter().zip(values) {
        section.insert(name.into(), value.as_str().into());
    }
    if is_dry {
        return Ok(());
    }
    let mut text = serde_json::to_vec_pretty(&value)
        .map_err(|error| malformed(&format!("{} cannot be written: {error}", shown(path))))?;
    text.push(b'\n');
    file::change(path, &text)
}
