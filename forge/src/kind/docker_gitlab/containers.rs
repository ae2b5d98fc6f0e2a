//! Containers of an instance: GitLab, PostgreSQL, Redis.

use super::compose::{Compose, Place, Service, Source};
use super::is_gitlab;
use super::running::{Running, is_unknown};
use crate::error::{Error, Result};
use crate::file;
use crate::kind::Site;
use crate::plan::{Database, Phase, Plan};
use crate::process::{Command, QUESTION};
use crate::service::into_container;
use crate::service::postgres::{self, Server};
use crate::service::redis::{self, Login, Redis};
use crate::service::{HOST_OF_CONTAINERS, LOOPBACK, Password, Reach};
use std::path::Path;
use store::entry::Displayed;

fn is_postgres(service: &Service) -> bool {
    let repository = service.repository();
    repository.ends_with("postgresql") || repository.rsplit('/').next() == Some("postgres")
}

fn is_redis(service: &Service) -> bool {
    let name = service.repository().rsplit('/').next().unwrap_or_default();
    ["redis", "valkey"].contains(&name) || name.ends_with("-redis")
}

/// Containers of an instance.
pub struct Containers<'a> {
    /// The instance.
    pub site: &'a Site<'a>,
    /// Compose project of the instance.
    pub compose: &'a Compose,
    /// All containers of the machine, those of other projects too.
    pub known: &'a [Running],
}

impl<'a> Containers<'a> {
    fn all(&self) -> impl Iterator<Item = (&'a str, &'a Service)> {
        let services = self.compose.services.iter();
        services.filter_map(|(name, service)| Some((name.as_str(), service.as_ref().ok()?)))
    }

    /// Returns the service that runs GitLab.
    pub fn gitlab(&self) -> Result<(&'a str, &'a Service)> {
        let all: Vec<_> = self.all().filter(|(_, service)| is_gitlab(service)).collect();
        // An image made from it counts only if no service uses the image itself.
        let is_other = |service: &Service| !service.repository().ends_with("gitlab");
        let first = all.iter().min_by_key(|(_, one)| (is_other(one), one.is_helper()));
        if let Some(found) = first {
            return Ok(*found);
        }
        let mut reasons =
            self.compose.services.values().filter_map(|service| service.as_ref().err());
        let path = self.compose.path.clone();
        Err(match reasons.next() {
            Some(reason) => Error::Malformed { path, reason: reason.to_string() },
            None => self.site.wrong(format!(
                "{} has no service with an image sameersbn/gitlab; is it the right compose file?",
                path.displayed()
            )),
        })
    }

    /// Returns the service that a variable of GitLab names, or the only one of its type.
    fn beside(
        &self,
        host: Option<&str>,
        does: fn(&Service) -> bool,
    ) -> Option<(&'a str, &'a Service)> {
        let all: Vec<_> = self.all().filter(|(_, service)| does(service)).collect();
        let is_named = |(name, service): &&(&str, &Service)| {
            host.is_some_and(|host| *name == host || service.container.as_deref() == Some(host))
        };
        match (all.iter().find(is_named), host) {
            (Some(found), _) => Some(*found),
            // A name with a dot means another machine, not an alias of a container.
            (None, Some(host)) if host.contains('.') => None,
            (None, _) => all.first().copied().filter(|_| all.len() == 1),
        }
    }

    /// Returns the name of a service's container. That is the configured name, or the first of
    /// compose's default names that docker knows.
    pub fn name_of(&self, service: &str, configured: &Service, plan: &mut Plan) -> Result<String> {
        if let Some(name) = &configured.container {
            return Ok(name.clone());
        }
        let projects = &self.compose.names;
        let mut names: Vec<String> =
            projects.iter().map(|project| format!("{project}-{service}-1")).collect();
        names.extend(projects.iter().map(|project| format!("{project}_{service}_1")));
        if let Some(name) =
            names.iter().find(|name| self.known.iter().any(|one| one.name == **name))
        {
            return Ok(name.clone());
        }
        for name in &names {
            let program = self.site.settings.docker.iter().map(String::as_str);
            let words = program.chain(["inspect", "--format", "{{.Name}}", name]);
            match Command::new(words).within(QUESTION).output(self.site.progress) {
                Ok(_) => return Ok(name.clone()),
                Err(Error::Failed { output, .. }) if is_unknown(&output) => {}
                Err(error) if error.is_interrupted() => return Err(error),
                Err(error) => {
                    plan.notes.push(format!("cannot inspect containers: {error}"));
                    return Ok(names[0].clone());
                }
            }
        }
        let own = self.known.iter().filter(|one| one.runs(self.compose, service, configured));
        let mut own: Vec<_> = own.map(|one| (!one.is_up, one.name.clone())).collect();
        own.sort();
        let own: Vec<String> = own.into_iter().map(|(_, name)| name).collect();
        if let Some(first) = own.first() {
            if own.len() > 1 {
                plan.notes
                    .push(format!("service {service} runs in {}; using {first}", own.join(", ")));
            }
            return Ok(first.clone());
        }
        plan.notes.push(format!("service {service} has no container named {}", names.join(" or ")));
        Ok(names[0].clone())
    }

    /// Returns a container of another project that a variable of GitLab names.
    fn outside(&self, host: Option<&str>, does: fn(&Service) -> bool) -> Option<&'a Running> {
        let host = host?;
        let has_name = |one: &&Running| {
            one.name == host
                || one.service_name.as_deref() == Some(host)
                || one.aliases.iter().any(|name| name == host)
        };
        self.known.iter().filter(|one| does(&one.service)).find(has_name)
    }

    /// Adds the database server to the plan.
    pub fn postgres(&self, gitlab: &Service, plan: &mut Plan) -> Result<()> {
        let host = gitlab.variable("DB_HOST");
        let mut server = Server::default();
        let found = self.beside(host, is_postgres);
        let of_server = found.and_then(|(_, service)| {
            service.variable("POSTGRES_DB").or(service.variable("DB_NAME"))
        });
        let database = gitlab.variable("DB_NAME").or(of_server).unwrap_or("gitlabhq_production");
        // The image of sameersbn accepts a list.
        let database = database.split(',').next().unwrap_or(database).trim();
        if let Some((name, service)) = found {
            let container = self.name_of(name, service, plan)?;
            server.reach.into = into_container(self.site.settings, &container, postgres::VARIABLES);
            // The socket in the container accepts the role that created the cluster.
            server.role = Some(service.variable("POSTGRES_USER").unwrap_or("postgres").into());
            server.password = ["POSTGRES_PASSWORD", "PG_PASSWORD"]
                .into_iter()
                .find_map(|name| secret_of(service, name));
            for mount in &service.mounts {
                if let Source::Path(path) = &mount.source
                    && ["/var/lib/postgresql", "/bitnami/postgresql"]
                        .iter()
                        .any(|data| mount.target.starts_with(data))
                {
                    plan.leaves(path.clone(), "dumped from the running server");
                }
            }
        } else if let Some(other) = self.outside(host, is_postgres) {
            server.reach.into =
                into_container(self.site.settings, &other.name, postgres::VARIABLES);
            let user = other.service.variable("POSTGRES_USER").unwrap_or("postgres");
            server.role = Some(user.into());
            server.password = ["POSTGRES_PASSWORD", "PG_PASSWORD"]
                .into_iter()
                .find_map(|name| secret_of(&other.service, name));
            server.databases = Some(vec![database.to_owned()]);
            server.is_shared = true;
            plan.notes.push(self.of_other_project("PostgreSQL", other));
        } else if let Some(host) = host {
            let is_here = HOST_OF_CONTAINERS.contains(&host);
            server.host = Some(if is_here { LOOPBACK[1] } else { host }.into());
            server.port =
                gitlab.variable("DB_PORT").and_then(|port| port.parse().ok()).unwrap_or(5432);
            server.role = gitlab.variable("DB_USER").map(str::to_owned);
            server.password = secret_of(gitlab, "DB_PASS");
            server.databases = Some(vec![database.to_owned()]);
            plan.notes.push(format!(
                "the database server {host} is outside the compose file; the role of the backup \
                 must be allowed to read roles as well"
            ));
        } else {
            return Err(self.site.wrong(format!(
                "{} does not show which service is PostgreSQL; set \
                 postgres.container = \"NAME\", and DB_HOST for GitLab",
                self.compose.path.displayed()
            )));
        }
        plan.postgres = Some(server);
        let (name, purpose) = (database.into(), "main".into());
        plan.sections = [("main".into(), Some(database.to_owned()))].into();
        plan.databases.push(Database { name, purpose, is_required: true });
        Ok(())
    }

    /// Describes a server in a container of another project.
    fn of_other_project(&self, server: &str, other: &Running) -> String {
        let files: Vec<String> = other.compose.iter().map(|file| file.displayed()).collect();
        let files = match &files[..] {
            [] => "the command that created it is".to_owned(),
            files => format!("its compose file {} is", files.join(", ")),
        };
        format!(
            "{server} runs in container {} of another project; {files} not copied; to copy it, \
             make it a part",
            other.name
        )
    }

    /// Adds Redis to the plan.
    pub fn redis(&self, gitlab: &Service, plan: &mut Plan) -> Result<()> {
        let host = gitlab.variable("REDIS_HOST");
        let other;
        let (container, name, service) = if let Some((name, service)) = self.beside(host, is_redis)
        {
            (self.name_of(name, service, plan)?, name, service)
        } else if let Some(found) = self.outside(host, is_redis) {
            other = found;
            plan.notes.push(self.of_other_project("Redis", other));
            (other.name.clone(), other.name.as_str(), &other.service)
        } else {
            plan.notes.push(
                "Redis is not in the compose file and is not backed up; to back it up, configure \
                 it under `redis`"
                    .into(),
            );
            return Ok(());
        };
        let into = into_container(self.site.settings, &container, redis::VARIABLES);
        let option = service.command.iter().position(|word| word == "--requirepass");
        let inline = |word: &String| Some(word.strip_prefix("--requirepass=")?.to_owned());
        let of_command = option
            .and_then(|at| service.command.get(at + 1).cloned())
            .or_else(|| service.command.iter().find_map(inline));
        let of_command = of_command.map(Password);
        let passwords = [
            (secret_of(service, "REDIS_PASSWORD"), "REDIS_PASSWORD of"),
            (of_command, "the command of"),
            (secret_of(gitlab, "REDIS_PASSWORD"), "REDIS_PASSWORD of GitLab beside"),
        ];
        let login = |(password, place): (Option<Password>, &str)| {
            let source = format!("{place} service {name}");
            Some(Login { user: None, password: password?, source })
        };
        plan.redis = Some(Redis {
            reach: Reach { into, ..Reach::default() },
            logins: passwords.into_iter().filter_map(login).collect(),
            ..Redis::default()
        });
        // The image of sameersbn has another data directory than Redis's own image.
        let dir = if service.repository().ends_with("sameersbn/redis") {
            "/var/lib/redis"
        } else {
            "/data"
        };
        match service.place(Path::new(dir)) {
            Some(Place::Here(dir)) => {
                let part = plan.takes("redis", "queued jobs and sessions", dir.join("dump.rdb"));
                part.phase = Phase::RedisFiles;
                part.paths.push(dir.join("appendonlydir"));
                part.paths.push(dir.join("appendonly.aof"));
                plan.leaves(dir, "only the files that Redis saves are copied");
            }
            Some(Place::Nowhere(reason)) => {
                plan.notes.push(format!("redis: {reason}; its data is not copied"));
            }
            Some(Place::Memory) | None => plan.notes.push(format!(
                "redis: no volume at {dir}, the image's data directory; the data is not copied"
            )),
        }
        Ok(())
    }
}

/// Returns a password from a variable, or from the file named by `NAME_FILE`.
fn secret_of(service: &Service, name: &str) -> Option<Password> {
    if let Some(value) = service.variable(name) {
        return Some(Password(value.to_owned()));
    }
    let file = Path::new(service.variable(&format!("{name}_FILE"))?);
    let mount = service.mounts.iter().rev().find(|mount| mount.target == file)?;
    let text = match &mount.source {
        Source::Path(path) => file::text(path).ok().flatten()?,
        Source::Text(text) => text.clone(),
        Source::Memory | Source::Unknown(_) => return None,
    };
    Some(Password(text.trim_end().to_owned()))
}
