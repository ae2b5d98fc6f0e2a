//! Check that every database of an earlier snapshot is still backed up.

use crate::check::{Check, Verdict};
use crate::earlier::Earlier;
use crate::plan::{Excused, Plan};

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
