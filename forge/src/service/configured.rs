//! Applies the settings to the servers that a kind found.

use crate::service::into_container;
use crate::service::postgres::{self, Server};
use crate::service::redis::{self, Redis};
use crate::settings::{PostgresSettings, RedisSettings, Settings};
use std::path::Path;

/// Applies the settings to a database server.
pub fn postgres(settings: &Settings, server: Option<Server>) -> Option<Server> {
    let own = &settings.postgres;
    // Any setting of `postgres` implies that there is a server.
    let is_named = *own != PostgresSettings::default();
    let is_of_kind = server.is_some();
    let mut server = server.or_else(|| is_named.then(Server::default))?;
    // The kind knows its own server. Another one may serve others, too.
    let is_other = own.host.is_some() && own.host != server.host
        || own.port.is_some_and(|port| port != server.port);
    server.is_shared |= is_of_kind && is_other;
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

/// Applies the settings to a Redis server.
pub fn redis(settings: &Settings, redis: Option<Redis>) -> Option<Redis> {
    let own = &settings.redis;
    let is_named = *own != RedisSettings::default();
    if own.skip {
        return None;
    }
    let mut redis = redis.or_else(|| is_named.then(Redis::default))?;
    redis.socket = own.socket.clone().or(redis.socket);
    redis.host = own.host.clone().or(redis.host);
    redis.port = own.port.or(redis.port);
    redis.username = own.username.clone();
    redis.secret = own.password.clone();
    redis.limit = own.limit.map_or(redis.limit, |limit| limit.0);
    let dir = own.client.as_ref().and_then(|client| client.parent()).map(Path::to_owned);
    redis.reach.bin.splice(0..0, dir);
    if let Some(container) = &own.container {
        redis.reach.into = into_container(settings, container, redis::VARIABLES);
    }
    Some(redis)
}
