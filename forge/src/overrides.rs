//! What the settings change of what a kind says.

use crate::kind::into_container;
use crate::plan::{Plan, Step};
use crate::service::control::Control;
use crate::service::postgres::{self, Server};
use crate::service::redis::{self, Redis};
use crate::settings::{GitCaches, Missing, Settings};
use std::path::{Path, PathBuf};

/// Changes a plan as the settings say.
pub fn apply(settings: &Settings, plan: &mut Plan) {
    parts(settings, plan);
    plan.postgres = postgres(settings, plan.postgres.take());
    plan.redis = redis(settings, plan.redis.take());
    control(settings, &mut plan.control);
    if let Some(caches) = settings.git_caches {
        plan.skips_git_caches = caches == GitCaches::Skip;
    }
}

fn parts(settings: &Settings, plan: &mut Plan) {
    for (name, change) in &settings.parts {
        let mut paths = change.paths.clone();
        paths.extend(change.path.clone());
        // Whoever names a place, or wants none, knows better where it is.
        plan.lacking.retain(|absent| absent.part != *name || (paths.is_empty() && !change.skip));
        for absent in plan.lacking.iter_mut().filter(|absent| absent.part == *name) {
            absent.is_required = change.missing != Some(Missing::Ok);
        }
        if change.skip {
            let skipped = plan.parts.iter().filter(|part| part.name == *name);
            let paths = skipped.flat_map(|part| part.paths.clone()).collect::<Vec<_>>();
            plan.parts.retain(|part| part.name != *name);
            for path in paths {
                plan.leaves(path, "left out by the configuration");
            }
            // A database is a part as well.
            plan.databases.retain(|database| database.part() != *name);
            continue;
        }
        if let Some(database) = plan.databases.iter_mut().find(|database| database.part() == *name)
        {
            database.is_required = change.missing != Some(Missing::Ok);
            continue;
        }
        let part = match plan.parts.iter().position(|part| part.name == *name) {
            Some(at) => &mut plan.parts[at],
            None => {
                let part = plan.part(name, "added by the configuration", PathBuf::new(), true);
                part.paths.clear();
                part
            }
        };
        if !paths.is_empty() {
            part.paths = paths;
        }
        if let Some(missing) = change.missing {
            part.is_required = missing == Missing::Error;
        }
        part.exclude.extend(change.exclude.iter().cloned());
    }
}

fn postgres(settings: &Settings, server: Option<Server>) -> Option<Server> {
    let own = &settings.postgres;
    let is_named = own.host.is_some() || own.container.is_some();
    let mut server = server.or_else(|| is_named.then(Server::default))?;
    if own.host.is_some() {
        server.host = own.host.clone();
    }
    server.port = own.port.unwrap_or(server.port);
    if own.role.is_some() || own.passfile.is_some() {
        // It is that of another role, or would go before those of the file.
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
    let is_named = own.socket.is_some() || own.host.is_some() || own.container.is_some();
    if own.skip {
        return None;
    }
    let mut redis = redis.or_else(|| is_named.then(Redis::default))?;
    redis.socket = own.socket.clone().or(redis.socket);
    redis.host = own.host.clone().or(redis.host);
    redis.port = own.port.or(redis.port);
    redis.password_file = own.password_file.clone().or(redis.password_file);
    redis.limit = own.limit.map_or(redis.limit, |limit| limit.0);
    let dir = own.client.as_ref().and_then(|client| client.parent()).map(Path::to_owned);
    redis.reach.bin.splice(0..0, dir);
    if let Some(container) = &own.container {
        redis.reach.into = into_container(settings, container, redis::VARIABLES);
    }
    Some(redis)
}

fn control(settings: &Settings, control: &mut Control) {
    let own = &settings.services;
    if !own.stop.is_empty() || !own.start.is_empty() {
        let steps = |steps: &[_]| steps.iter().map(Step::of).collect();
        *control = Control::Commands { stop: steps(&own.stop), start: steps(&own.start) };
    } else if let Control::Supervised(supervisor) = control {
        if let Some(writers) = &own.writers {
            supervisor.writers.clone_from(writers);
        }
        supervisor.limit = own.limit.map_or(supervisor.limit, |limit| limit.0);
    }
}
