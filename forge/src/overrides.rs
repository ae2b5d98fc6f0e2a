//! Makes the plan of an instance: the parts that its kind finds, changed by the settings.

use crate::error::Result;
use crate::kind::{KINDS, Kind, Site, find};
use crate::mounts;
use crate::plan::{Database, Phase, Plan};
use crate::service::configured;
use crate::service::control::Control;
use crate::service::step::Step;
use crate::set_aside;
use crate::settings::{GitCaches, Missing, OnFailure, Settings, StepSettings};
use crate::suggest::closest;
use crate::view::Mount;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Name of the part with the persistence files of Redis.
const REDIS: &str = "redis";

/// Makes the resolved plan: the kind's parts, changed by the settings.
pub fn plan(site: &Site<'_>) -> Result<(Plan, &'static dyn Kind)> {
    let settings = site.settings;
    let (mut plan, kind) = unresolved(site)?;
    let root = &settings.root;
    for part in &mut plan.parts {
        plan.notes.extend(part.resolve(root));
    }
    leave_set_aside(&mut plan)?;
    plan.mounts.iter_mut().for_each(Mount::resolve);
    plan.skipped.iter_mut().for_each(|left| left.resolve(root));
    // Links inside a container resolve there, and lead elsewhere on this machine.
    let is_contained = plan.product.image.is_some();
    let is_named = |part: &str| {
        let own = settings.parts.get(part);
        is_contained || own.is_some_and(|own| own.path.is_some() || !own.paths.is_empty())
    };
    plan.follow_links(root, is_named);
    plan.note_memory();
    Ok((plan, kind))
}

/// Makes the plan without following links, also those that lead to parts.
pub fn unresolved(site: &Site<'_>) -> Result<(Plan, &'static dyn Kind)> {
    let settings = site.settings;
    let kind = find(&settings.kind).ok_or_else(|| {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name()).collect();
        site.wrong(format!("unknown kind `{}`; choose one of {}", settings.kind, names.join(", ")))
    })?;
    let mut plan = Plan::new(site.instance, kind.name(), settings);
    kind.fill(site, &mut plan)?;
    apply(site, &mut plan)?;
    Ok((plan, kind))
}

/// Leaves out what rebuilds have set aside: in mount points, and beside parts.
fn leave_set_aside(plan: &mut Plan) -> Result<()> {
    let mounts = mounts::paths()?;
    let parts: BTreeSet<&Path> =
        plan.parts.iter().flat_map(|part| &part.paths).map(|path| &**path).collect();
    // A directory above a mount point cannot move either.
    let above = mounts.iter().flat_map(|mount| mount.ancestors());
    let inner = above.filter(|dir| parts.iter().any(|part| dir.starts_with(part)));
    let around = parts.iter().filter_map(|path| path.parent());
    let dirs: BTreeSet<&Path> = parts.iter().copied().chain(inner).chain(around).collect();
    let names = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let kept = names.filter(|entry| set_aside::is_name(&entry.file_name()));
    let kept: Vec<PathBuf> = kept.map(|entry| entry.path()).collect();
    for path in kept {
        let text = "a rebuild has set it aside; remove it once it is not needed any more";
        plan.leaves(path, text);
    }
    Ok(())
}

/// Applies the settings to a plan.
fn apply(site: &Site<'_>, plan: &mut Plan) -> Result<()> {
    let settings = site.settings;
    plan.postgres = configured::postgres(settings, plan.postgres.take());
    databases(settings, plan);
    plan.redis = configured::redis(settings, plan.redis.take());
    control(site, &mut plan.control)?;
    parts(site, plan)?;
    if let Some(caches) = settings.git_caches {
        plan.skips_git_caches = caches == GitCaches::Skip;
    }
    Ok(())
}

/// Replaces the databases of the plan with those that the settings list, if they list any.
fn databases(settings: &Settings, plan: &mut Plan) {
    let Some(wanted) = &settings.postgres.databases else { return };
    let (kept, dropped) = std::mem::take(&mut plan.databases)
        .into_iter()
        .partition(|database| wanted.contains(&database.name));
    plan.databases = kept;
    for Database { name, .. } in dropped {
        let note = format!("database {name} is skipped: `postgres.databases` does not list it");
        plan.notes.push(note);
    }
    for name in wanted {
        if !plan.databases.iter().any(|database| database.name == *name) {
            let (name, purpose) = (name.clone(), name.clone());
            plan.databases.push(Database { name, purpose, is_required: true });
        }
    }
}

fn parts(site: &Site<'_>, plan: &mut Plan) -> Result<()> {
    for (name, change) in &site.settings.parts {
        let mut paths = change.paths.clone();
        paths.extend(change.path.clone());
        let known = names(plan);
        if paths.is_empty() && !known.contains(name) {
            let reason = format!("parts.{name} has no path, and no part has this name");
            return Err(site.wrong(match closest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("{reason}; did you mean `{near}`?"),
                None => format!("{reason}; choose one of {}", known.join(", ")),
            }));
        }
        // A path in the settings, or `skip`, overrides the kind's search for the part.
        plan.lacking.retain(|absent| absent.part != *name || (paths.is_empty() && !change.skip));
        for absent in plan.lacking.iter_mut().filter(|absent| absent.part == *name) {
            absent.is_required = change.missing != Some(Missing::Ok);
        }
        if change.skip {
            let skipped = plan.parts.iter().filter(|part| part.name == *name);
            paths.extend(skipped.flat_map(|part| part.paths.clone()));
            plan.parts.retain(|part| part.name != *name);
            for path in paths {
                plan.leaves(path, "excluded by the configuration");
            }
            // A database counts as a part, too.
            let is_meant = |database: &Database| database.part() == *name;
            for database in plan.databases.extract_if(.., |database| is_meant(database)) {
                plan.notes
                    .push(format!("database {} is excluded by the configuration", database.name));
                plan.postgres
                    .iter_mut()
                    .for_each(|server| server.skipped.push(database.name.clone()));
            }
            continue;
        }
        if let Some(database) = plan.databases.iter_mut().find(|database| database.part() == *name)
        {
            database.is_required = change.missing != Some(Missing::Ok);
            continue;
        }
        if name == REDIS
            && let Some(redis) = &mut plan.redis
        {
            redis.is_required = change.missing != Some(Missing::Ok);
            if paths.is_empty() && !plan.parts.iter().any(|part| part.name == *name) {
                continue;
            }
        }
        let part = match plan.parts.iter().position(|part| part.name == *name) {
            Some(at) => &mut plan.parts[at],
            None => {
                let part = plan.part(name, "added by the configuration", PathBuf::new(), true);
                part.paths.clear();
                if name == REDIS {
                    part.phase = Phase::RedisFiles;
                }
                part
            }
        };
        if !paths.is_empty() {
            part.paths = paths;
            part.needs_all = true;
        }
        if let Some(missing) = change.missing {
            part.is_required = missing == Missing::Error;
        }
        part.exclude.extend(change.exclude.iter().cloned());
    }
    Ok(())
}

/// Names that the settings may use for parts.
fn names(plan: &Plan) -> Vec<String> {
    let parts = plan.parts.iter().map(|part| part.name.clone());
    let absent = plan.lacking.iter().map(|absent| absent.part.clone());
    let redis = plan.redis.iter().map(|_| REDIS.to_owned());
    parts.chain(absent).chain(plan.databases.iter().map(Database::part)).chain(redis).collect()
}

fn control(site: &Site<'_>, control: &mut Control) -> Result<()> {
    let own = &site.settings.services;
    if own.stop.is_empty() != own.start.is_empty() {
        let reason = if own.start.is_empty() {
            "it has services.stop without services.start: stopped services would stay down"
        } else {
            "it has services.start without services.stop: no service would be stopped"
        };
        return Err(site.wrong(reason));
    }
    if own.writers.is_some() && own.stop.is_empty() && *control == Control::Nothing {
        return Err(site.wrong(
            "services.writers names services, but the program that stops them is unknown; set \
             services.stop and services.start",
        ));
    }
    if !own.stop.is_empty() || !own.start.is_empty() {
        let steps = |steps: &[_]| steps.iter().map(Step::of).collect();
        let is_warn = |step: &&StepSettings| step.on_failure == OnFailure::Warn;
        if own.stop.iter().chain(&own.start).any(|step| is_warn(&step)) {
            return Err(site.wrong(
                "services.stop and services.start do not support on-failure: a failed stop ends \
                 the run, and a failed start is reported",
            ));
        }
        *control = Control::Commands { stop: steps(&own.stop), start: steps(&own.start) };
    } else if let Control::Supervised(supervisor) = control {
        if let Some(writers) = &own.writers {
            supervisor.writers.clone_from(writers);
            supervisor.needs_all = true;
        }
        supervisor.limit = own.limit.map_or(supervisor.limit, |limit| limit.0);
    }
    Ok(())
}
