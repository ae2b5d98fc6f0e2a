//! Applies the settings to the plan of a kind.

use crate::error::Result;
use crate::kind::{Site, into_container};
use crate::plan::{Database, Phase, Plan, Step};
use crate::service::control::Control;
use crate::service::postgres::{self, Server};
use crate::service::redis::{self, Redis};
use crate::settings::{
    GitCaches, Missing, OnFailure, PostgresSettings, RedisSettings, Settings, StepSettings,
};
use crate::suggest::closest;
use std::path::{Path, PathBuf};

/// Name of the part with the persistence files of Redis.
const REDIS: &str = "redis";

/// Applies the settings to a plan.
pub fn apply(site: &Site<'_>, plan: &mut Plan) -> Result<()> {
    let settings = site.settings;
    plan.postgres = postgres(settings, plan.postgres.take());
    databases(settings, plan);
    plan.redis = redis(settings, plan.redis.take());
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
                    part.phase = Phase::Saves;
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

/// Applies the settings to the server of a kind.
pub fn postgres(settings: &Settings, server: Option<Server>) -> Option<Server> {
    let own = &settings.postgres;
    // Any setting of `postgres` implies that there is a server.
    let is_named = *own != PostgresSettings::default();
    let mut server = server.or_else(|| is_named.then(Server::default))?;
    if own.host.is_some() {
        server.host = own.host.clone();
    }
    server.port = own.port.unwrap_or(server.port);
    server.secret = own.password.clone();
    if own.role.is_some() || own.passfile.is_some() {
        // The kind's password belongs to another role, or would take precedence over the passfile.
        server.password = None;
    }
    server.role = own.role.clone().or(server.role);
    server.passfile = own.passfile.clone().or(server.passfile);
    server.databases = own.databases.clone().or(server.databases);
    server.wait = own.wait.map_or(server.wait, |limit| limit.0);
    server.silence = own.silence.map_or(server.silence, |limit| limit.0);
    server.counts_rows = own.count_rows.unwrap_or(server.counts_rows);
    server.reach.user = own.user.clone().or(server.reach.user);
    server.reach.bin.splice(0..0, own.bin.clone());
    if let Some(container) = &own.container {
        server.reach.into = into_container(settings, container, postgres::VARIABLES);
    }
    Some(server)
}

fn redis(settings: &Settings, redis: Option<Redis>) -> Option<Redis> {
    let own = &settings.redis;
    let is_named = *own != RedisSettings::default();
    if own.skip {
        return None;
    }
    let mut redis = redis.or_else(|| is_named.then(Redis::default))?;
    redis.socket = own.socket.clone().or(redis.socket);
    redis.host = own.host.clone().or(redis.host);
    redis.port = own.port.or(redis.port);
    redis.secret = own.password.clone();
    redis.limit = own.limit.map_or(redis.limit, |limit| limit.0);
    let dir = own.client.as_ref().and_then(|client| client.parent()).map(Path::to_owned);
    redis.reach.bin.splice(0..0, dir);
    if let Some(container) = &own.container {
        redis.reach.into = into_container(settings, container, redis::VARIABLES);
    }
    Some(redis)
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
