//! The kinds of instance: what each consists of. A kind is one file and one line in
//! [`KINDS`].

pub mod docker_gitlab;
pub mod gitlab;
pub mod mattermost;
pub mod plain;

use crate::catalogue::Catalogue;
use crate::check::Check;
use crate::copy::Copy;
use crate::error::{Error, Result};
use crate::plan::{Absent, Database, LeftOut, Part, Phase, Plan, Product, Step};
use crate::service::Reach;
use crate::service::control::{Control, Speaks, Supervisor};
use crate::service::postgres::{self, Connection, Server};
use crate::service::redis::{self, Redis};
use crate::settings::{GitCaches, Missing, Settings};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::observe::Progress;

/// All kinds. The first that recognises a machine is proposed for it.
pub static KINDS: &[&dyn Kind] =
    &[&gitlab::Gitlab, &docker_gitlab::DockerGitlab, &mattermost::Mattermost, &plain::Plain];

/// How long a service may take to stop or start: GitLab's own limit is a minute.
const STOP: Duration = Duration::from_secs(180);

/// What is known of a product.
pub trait Kind: Sync {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// What it is, for people.
    fn title(&self) -> &'static str;

    /// What on a machine shows that there is one; `None` if there is not.
    fn detect(&self, root: &Path) -> Option<String>;

    /// What belongs to an instance.
    fn draft(&self, site: &Site<'_>, draft: &mut Draft) -> Result<()>;

    /// Asks the databases, at the moment of their dumps, what the rest has to fit.
    fn ask(&self, plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
        let _ = (plan, databases);
        Ok(Catalogue::default())
    }

    /// Looks whether what was copied fits what the databases say, and marks in the catalogue
    /// what of it was copied.
    fn check(&self, plan: &Plan, catalogue: &mut Catalogue, copy: &Copy<'_>) -> Result<Vec<Check>> {
        let _ = (plan, catalogue, copy);
        Ok(Vec::new())
    }
}

/// The kind of this name.
pub fn find(name: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

/// An instance on this machine.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Its name.
    pub instance: &'a str,
    /// What the configuration says of it.
    pub settings: &'a Settings,
    /// Tells of a wish to stop.
    pub progress: &'a Progress,
}

impl Site<'_> {
    /// A path of the product as a path of this machine.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.settings.root, path.as_ref())
    }

    /// The settings cannot be right.
    pub fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::Settings { instance: self.instance.into(), reason: reason.into() }
    }
}

/// A path of the product below a root.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// What a kind says of an instance, before the settings have their say.
#[derive(Debug, Default)]
pub struct Draft {
    /// What is installed.
    pub product: Product,
    /// What is copied.
    pub parts: Vec<Part>,
    /// What is known to be missing.
    pub lacking: Vec<Absent>,
    /// What is not.
    pub left_out: Vec<LeftOut>,
    /// The database server.
    pub postgres: Option<Server>,
    /// The databases that are known by name.
    pub databases: Vec<Database>,
    /// Redis.
    pub redis: Option<Redis>,
    /// What stops services, with the services that write.
    pub supervisor: Option<Supervisor>,
    /// Leave out what git can make again, if nobody says otherwise.
    pub skips_git_caches: bool,
    /// What is odd and worth a line.
    pub notes: Vec<String>,
}

impl Draft {
    /// A part without which there is no backup.
    pub fn needs(&mut self, name: &str, about: &str, path: PathBuf) -> &mut Part {
        self.part(name, about, path, true)
    }

    /// A part that not every instance has.
    pub fn takes(&mut self, name: &str, about: &str, path: PathBuf) -> &mut Part {
        self.part(name, about, path, false)
    }

    /// Something without which there is no backup, and which is nowhere; `looked_for` says
    /// what and where, and never a secret.
    pub fn lacks(&mut self, name: &str, looked_for: impl Into<String>) {
        let looked_for = looked_for.into();
        self.lacking.push(Absent { part: name.into(), looked_for, is_required: true });
    }

    fn part(&mut self, name: &str, about: &str, path: PathBuf, is_required: bool) -> &mut Part {
        let at = self.parts.len();
        self.parts.push(Part {
            name: name.into(),
            about: about.into(),
            paths: vec![path],
            links: Vec::new(),
            phase: Phase::Files,
            is_required,
            owner: None,
            exclude: Vec::new(),
        });
        &mut self.parts[at]
    }

    /// A storage of git repositories: repositories first, then the pools they borrow from.
    pub fn storage(&mut self, name: &str, path: &Path, owner: Option<&'static str>) {
        let repositories = self.needs(name, "git repositories", path.to_owned());
        repositories.phase = Phase::Repositories;
        repositories.owner = owner;
        let pools =
            self.takes(&format!("{name}-pools"), "objects that forks share", path.join("@pools"));
        pools.phase = Phase::Pools;
        pools.owner = owner;
        self.leaves(path.join("+gitaly"), "made by Gitaly when it starts");
    }

    /// Something that is not copied.
    pub fn leaves(&mut self, path: PathBuf, reason: &str) {
        self.left_out.push(LeftOut { path, reason: reason.into() });
    }
}

/// Everything resolved: what the kind knows, changed by the settings.
pub fn plan(site: &Site<'_>) -> Result<(Plan, &'static dyn Kind)> {
    let settings = site.settings;
    let kind = find(&settings.kind).ok_or_else(|| {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name()).collect();
        site.wrong(format!("there is no kind `{}`; there are {}", settings.kind, names.join(", ")))
    })?;
    let mut draft = Draft::default();
    kind.draft(site, &mut draft)?;
    override_parts(settings, &mut draft);
    draft.parts.iter_mut().for_each(Part::resolve);
    draft.left_out.iter_mut().for_each(LeftOut::resolve);
    let plan = Plan {
        instance: site.instance.into(),
        kind: kind.name(),
        mode: settings.mode,
        root: settings.root.clone(),
        product: draft.product,
        postgres: override_postgres(settings, draft.postgres),
        databases: draft.databases,
        redis: override_redis(settings, draft.redis),
        control: control(settings, draft.supervisor),
        before: settings.before.iter().map(Step::of).collect(),
        after: settings.after.iter().map(Step::of).collect(),
        skips_git_caches: match settings.git_caches {
            Some(caches) => caches == GitCaches::Skip,
            None => draft.skips_git_caches,
        },
        exclude: settings.exclude.clone(),
        tags: settings.tags.clone(),
        sample: settings.checks.sample,
        notes: draft.notes,
        parts: draft.parts,
        lacking: draft.lacking,
        left_out: draft.left_out,
    };
    Ok((plan, kind))
}

fn override_parts(settings: &Settings, draft: &mut Draft) {
    for (name, change) in &settings.parts {
        let mut paths = change.paths.clone();
        paths.extend(change.path.clone());
        // Whoever names a place, or wants none, knows better where it is.
        draft.lacking.retain(|absent| absent.part != *name || (paths.is_empty() && !change.skip));
        for absent in draft.lacking.iter_mut().filter(|absent| absent.part == *name) {
            absent.is_required = change.missing != Some(Missing::Ok);
        }
        if change.skip {
            let skipped = draft.parts.iter().filter(|part| part.name == *name);
            let paths = skipped.flat_map(|part| part.paths.clone()).collect::<Vec<_>>();
            draft.parts.retain(|part| part.name != *name);
            for path in paths {
                draft.leaves(path, "left out by the configuration");
            }
            // A database is a part as well.
            draft.databases.retain(|database| database.part() != *name);
            continue;
        }
        if let Some(database) = draft.databases.iter_mut().find(|database| database.part() == *name)
        {
            database.is_required = change.missing != Some(Missing::Ok);
            continue;
        }
        let part = match draft.parts.iter().position(|part| part.name == *name) {
            Some(at) => &mut draft.parts[at],
            None => {
                let part = draft.part(name, "added by the configuration", PathBuf::new(), true);
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

fn override_postgres(settings: &Settings, server: Option<Server>) -> Option<Server> {
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

fn override_redis(settings: &Settings, redis: Option<Redis>) -> Option<Redis> {
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

/// The command that leads into a running container. It takes the named variables along
/// where they are set, so that no value is among its arguments, where everybody can read it.
pub fn into_container(settings: &Settings, name: &str, variables: &[&str]) -> Vec<String> {
    let words = settings.docker.iter().map(String::as_str).chain(["exec", "-i"]);
    let words = words.chain(variables.iter().flat_map(|variable| ["--env", variable]));
    words.chain([name]).map(String::from).collect()
}

fn control(settings: &Settings, supervisor: Option<Supervisor>) -> Control {
    let own = &settings.services;
    if !own.stop.is_empty() || !own.start.is_empty() {
        let steps = |steps: &[_]| steps.iter().map(Step::of).collect();
        return Control::Commands { stop: steps(&own.stop), start: steps(&own.start) };
    }
    let Some(mut supervisor) = supervisor else { return Control::Nothing };
    if let Some(writers) = &own.writers {
        supervisor.writers = writers.clone();
    }
    supervisor.limit = own.limit.map_or(supervisor.limit, |limit| limit.0);
    Control::Supervised(supervisor)
}

/// A supervisor that speaks like runit.
pub fn runit(program: Vec<String>, writers: &[&str]) -> Supervisor {
    let writers = writers.iter().map(|&name| name.to_owned()).collect();
    Supervisor { speaks: Speaks::Runit, program, writers, limit: STOP }
}

/// systemd.
pub fn systemd(writers: &[&str]) -> Supervisor {
    let writers = writers.iter().map(|&name| name.to_owned()).collect();
    let program = vec!["systemctl".into()];
    Supervisor { speaks: Speaks::Systemd, program, writers, limit: STOP }
}

impl Default for Server {
    fn default() -> Server {
        Server {
            reach: Reach::default(),
            host: None,
            port: 5432,
            role: None,
            passfile: None,
            password: None,
            encryption: BTreeMap::new(),
            databases: None,
            wait: postgres::WAIT,
            silence: postgres::SILENCE,
            counts_rows: true,
        }
    }
}

impl Default for Redis {
    fn default() -> Redis {
        Redis {
            reach: Reach::default(),
            socket: None,
            host: None,
            port: None,
            password_file: None,
            password: None,
            limit: redis::LIMIT,
        }
    }
}
