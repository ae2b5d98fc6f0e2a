//! Check that every database and every part of an earlier snapshot is still backed up.

use crate::check::{Check, Verdict};
use crate::earlier::Earlier;
use crate::error::Result;
use crate::plan::{Excused, Part, Phase, Plan};
use crate::view::shown;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Warns of optional parts that an earlier snapshot has and this machine lacks. Their disk may not be
/// mounted. `None` if there are none, or if the settings excuse them.
pub fn parts(plan: &Plan, earlier: Option<&Earlier<'_>>) -> Result<Option<Check>> {
    let Some(earlier) = earlier else { return Ok(None) };
    let is_gone = |(name, path): &(&String, &PathBuf)| {
        let part = plan.parts.iter().find(|part| part.name == **name);
        let is_missing = part.is_none_or(|part| !part.is_required && !part.is_there());
        let is_lacking = plan.lacking.iter().any(|absent| absent.part == **name);
        // Redis replaces its files.
        let is_of_redis = part.is_some_and(|part| part.phase == Phase::RedisFiles);
        // A part may be inside a skipped directory.
        let is_skipped = plan.skipped.iter().any(|left| **path == left.path);
        is_missing && !is_lacking && !is_of_redis && !is_skipped && !plan.excused.has(name)
    };
    let gone: Vec<(&String, &PathBuf)> = earlier.parts.iter().filter(is_gone).collect();
    let paths: Vec<PathBuf> = gone.iter().map(|(_, path)| (*path).clone()).collect();
    let then = earlier.view().look(&paths)?;
    // The part may have got another name.
    let is_here = |path: &PathBuf| path.exists();
    let gone = gone.iter().zip(then).filter(|((_, path), then)| then.is_some() && !is_here(path));
    let mut gone: Vec<String> =
        gone.map(|((name, path), _)| format!("{name}: {}", shown(path))).collect();
    gone.extend(inner_dirs(plan, earlier)?);
    if gone.is_empty() {
        return Ok(None);
    }
    let text = format!(
        "snapshot {} has optional parts that are missing from this machine",
        earlier.id.short()
    );
    let hint = "if the instance still uses them, mount or restore them; the next complete snapshot \
                ends this warning";
    let check = Check::new("parts", Verdict::Warning, text).with_examples(gone).with_hint(hint);
    Ok(Some(check.settled()))
}

/// Names usual directories within parts that had files in an earlier snapshot and have no entries now.
fn inner_dirs(plan: &Plan, earlier: &Earlier<'_>) -> Result<Vec<String>> {
    let mut gone = Vec::new();
    for dir in &plan.inner_dirs {
        let holds = |part: &&Part| part.paths.iter().any(|path| dir.starts_with(path));
        let Some(part) = plan.parts.iter().find(holds).filter(|part| part.is_there()) else {
            continue;
        };
        let has_entries = dir.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        if has_entries || plan.excused.has(&part.name) {
            continue;
        }
        let mut had_files = false;
        earlier.view().files_below(dir, &mut |_| {
            had_files = true;
            ControlFlow::Break(())
        })?;
        gone.extend(had_files.then(|| format!("{}: {}", part.name, shown(dir))));
    }
    Ok(gone)
}

/// Compares the databases of a backup with those of an earlier snapshot. Configuration that is cut or
/// names another server loses databases without an error. `None` if all are still there, or if the
/// settings list the databases.
pub fn check<'a>(
    plan: &Plan,
    earlier: Option<&Earlier<'_>>,
    dumped: impl IntoIterator<Item = &'a str>,
) -> Option<Check> {
    let earlier = earlier?;
    if plan.excused == Excused::All || plan.has_listed_databases {
        return None;
    }
    let dumped: Vec<&str> = dumped.into_iter().collect();
    // Whether a database of the plan may be missing is judged elsewhere.
    let is_known = |name: &str| {
        plan.databases.iter().any(|database| database.name == name)
            || plan
                .postgres
                .as_ref()
                .is_some_and(|server| server.skipped.iter().any(|skipped| skipped == name))
    };
    let vanished = earlier.databases.iter().map(String::as_str);
    let vanished = vanished.filter(|name| !dumped.contains(name) && !is_known(name));
    let vanished: Vec<&str> = vanished.collect();
    if vanished.is_empty() {
        return None;
    }
    let text = format!(
        "snapshot {} has dumps of databases that this backup lacks: {}",
        earlier.id.short(),
        vanished.join(", ")
    );
    let hint = "if the instance still uses them, repair its configuration or list them in \
                `postgres.databases`; otherwise set `checks.lost = \"ok\"` for one backup";
    Some(Check::new("databases", Verdict::Failed, text).with_hint(hint).settled())
}
