//! Finds the database server and the Redis to which a rebuild writes.
//!
//! The restored configuration names them, and not the one that this machine has before. Both are
//! compared before anything changes: the server of the snapshot may be in production.

use super::databases::Loader;
use super::files::{self, Files};
use super::in_use::{self, Servers};
use super::places;
use super::record::Aside;
use super::{Rebuild, Stage};
use crate::error::{Error, Result};
use crate::kind::{Kind, Rebuilding, Site};
use crate::links;
use crate::overrides;
use crate::plan::Plan;
use crate::private_dir::{OF_REBUILD, PrivateDir};
use crate::service::control::Control;
use crate::service::postgres::{Identity, Server};
use crate::service::redis::{Redis, Standing};
use crate::service::{HOST_OF_CONTAINERS, LOOPBACK, Reach};
use std::net::{ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

/// Names of both kinds of servers in messages.
pub const POSTGRES: &str = "database server";
pub const REDIS: &str = "Redis";
/// Directory of Redis in GitLab's package.
pub const USUAL: &str = "/var/opt/gitlab/redis";
/// Part that is of no use for a look at the configuration.
const SSH: &str = "ssh-host-keys";
/// Messages of a database server that knows the login and does not accept it.
const REFUSED: [&str; 3] =
    ["password authentication failed", "no password supplied", "\" does not exist"];

/// Servers to which a rebuild writes.
#[derive(Debug, Default, Clone)]
pub struct Targets {
    /// The database server.
    pub postgres: Option<Server>,
    /// Redis.
    pub redis: Option<Redis>,
}

/// Servers, and a server that this machine's configuration names before the rebuild.
struct Pair<'a, T> {
    target: &'a T,
    here: Option<&'a T>,
}

impl Rebuild<'_, '_> {
    /// Returns the servers that the instance uses once its configuration is restored.
    fn targets(&self, plan: Option<&Plan>) -> Result<Targets> {
        let postgres = plan.and_then(|plan| plan.postgres.as_ref());
        let redis = plan.and_then(|plan| plan.redis.as_ref());
        Ok(Targets {
            postgres: postgres.map(|server| self.accepted_login(server)).transpose()?,
            redis: redis.map(|redis| self.accepted_redis_login(redis)).transpose()?,
        })
    }

    /// Makes the plan of the instance with the configuration of the snapshot, in a directory of its
    /// own. Returns `None` if it cannot be made there, for example without the container.
    pub fn predicted(&self, rebuilding: &Rebuilding) -> Result<Option<Plan>> {
        let job = self.job;
        if self.record.is_done(Stage::Configure) {
            return Ok(None);
        }
        let is_wanted = |name: &str| {
            name != SSH && (rebuilding.first.contains(&name) || rebuilding.remade.contains(&name))
        };
        let configuration = Files::of(job, |part| is_wanted(&part.name));
        if configuration.is_empty() {
            return Ok(None);
        }
        let failed = |source| Error::Write { path: job.scratch.to_owned(), source };
        let private = PrivateDir::make(job.scratch, OF_REBUILD).map_err(failed)?;
        let dir = private.path();
        files::restore_below(job, &[&configuration], dir)?;
        let root = dir.join(job.settings.root.strip_prefix("/").unwrap_or(&job.settings.root));
        std::fs::create_dir_all(&root).map_err(failed)?;
        places::show_parts(job, &configuration, dir).map_err(failed)?;
        if job.manifest.product.image.is_some() {
            show_reported(&job.settings.root, &root).map_err(failed)?;
        }
        let parts = job.manifest.parts.iter().filter(|part| is_wanted(&part.name));
        let paths: Vec<&Path> = parts.flat_map(|part| &part.paths).map(PathBuf::as_path).collect();
        complete(&job.settings.root, &paths, dir).map_err(failed)?;
        // The settings may name the compose files, which the snapshot has, too.
        let compose = job.settings.compose.iter().map(|path| {
            let own = dir.join(path.strip_prefix("/").unwrap_or(path));
            if own.exists() { own } else { path.clone() }
        });
        let compose = compose.collect();
        let settings =
            crate::settings::Settings { root: root.clone(), compose, ..job.settings.clone() };
        let progress = job.store.observer().progress();
        let site = Site { instance: job.instance, settings: &settings, progress, is_offline: true };
        let mut plan = match overrides::unresolved(&site) {
            Ok((plan, _)) => plan,
            Err(error) if error.is_interrupted() => return Err(error),
            Err(_) => return Ok(None),
        };
        let back = |path: &Path| place_of_copy(&job.settings.root, &root, path);
        let back_text = |text: &String| match Path::new(text).is_absolute() {
            true => back(Path::new(text)).display().to_string(),
            false => text.clone(),
        };
        let parts = plan.parts.iter_mut().flat_map(|part| &mut part.paths);
        let volumes = plan.volumes.iter_mut().map(|volume| &mut volume.path);
        parts.chain(volumes).for_each(|path| *path = back(path));
        if let Some(server) = &mut plan.postgres {
            server.host = server.host.as_ref().map(back_text);
            server.passfile = server.passfile.as_deref().map(back);
            server.reach.bin.iter_mut().for_each(|dir| *dir = back(dir));
            server.reach.into.iter_mut().for_each(|word| *word = back_text(word));
            server.encryption.values_mut().for_each(|value| *value = back_text(value));
        }
        if let Some(redis) = &mut plan.redis {
            redis.socket = redis.socket.as_deref().map(back);
            redis.reach.bin.iter_mut().for_each(|dir| *dir = back(dir));
            redis.reach.into.iter_mut().for_each(|word| *word = back_text(word));
        }
        Ok(Some(plan))
    }

    /// Finds the servers, and fails if they are not those that the admin expects. `planned` is what
    /// would be moved, and `predicted` the plan with the configuration of the snapshot.
    pub fn expect_servers(
        &mut self,
        rebuilding: &Rebuilding,
        first: &Files,
        planned: &[Aside],
        predicted: Option<&Plan>,
    ) -> Result<()> {
        let job = self.job;
        let here = match self.plan() {
            Ok((plan, _)) => Some(plan),
            Err(error) if error.is_interrupted() => return Err(error),
            Err(_) => None,
        };
        self.targets = self.targets(predicted.or(here.as_ref()))?;
        let control = here.as_ref().map(|plan| &plan.control);
        let is_stopping =
            matches!(control, Some(Control::Commands { stop, .. }) if !stop.is_empty());
        // Without its files, a kind only assumes the server of its package.
        let is_named = here.is_some() && self.has_configuration(rebuilding, first)?;
        let here = here.as_ref().filter(|_| is_named);
        if job.is_consented {
            self.record.consent();
        }
        in_use::expect_unused(planned, if is_stopping { Servers::Postgres } else { Servers::All })?;
        let mut reasons = Vec::new();
        let Targets { postgres, redis } = self.targets.clone();
        if !job.manifest.databases.is_empty() {
            match &postgres {
                Some(target) => {
                    // A configuration that the package brings names no server of the admin.
                    let kind: Option<&dyn Kind> = crate::kind::find(&job.settings.kind);
                    let is_unset = |plan: &&Plan| kind.is_some_and(|kind| kind.is_default(plan));
                    let is_target_here = is_local(target.host.as_deref(), &target.reach);
                    let named = here.filter(|plan| !(is_target_here && is_unset(plan)));
                    let server = named.and_then(|plan| plan.postgres.as_ref());
                    if let Some(host) = target.host.as_ref().filter(|host| host.starts_with('/'))
                        && target.reach.into.is_empty()
                    {
                        in_use::expect_reachable(planned, POSTGRES, Path::new(host))?;
                    }
                    reasons
                        .extend(self.expect_postgres(&Pair { target, here: server }, rebuilding)?);
                }
                None if rebuilding.first.is_empty() => {
                    return Err(self.wrong(super::NO_SERVER.into()));
                }
                None => {}
            }
        }
        if let Some(target) = &redis {
            if let Some(socket) = target.socket.as_ref().and_then(|socket| socket.parent())
                && target.reach.into.is_empty()
                && !is_stopping
            {
                in_use::expect_reachable(planned, REDIS, socket)?;
            }
            let here = here.and_then(|plan| plan.redis.as_ref());
            reasons.extend(self.expect_redis(&Pair { target, here }, rebuilding)?);
        }
        if job.is_dry {
            for reason in reasons.iter().filter(|_| !self.record.is_consented()) {
                (self.say)(Stage::Preconditions, &format!("--yes will be needed: {reason}"));
            }
            return Ok(());
        }
        self.expect_consent(reasons)
    }

    fn expect_consent(&self, reasons: Vec<String>) -> Result<()> {
        match reasons.is_empty() || self.record.is_consented() {
            true => Ok(()),
            false => Err(Error::NeedsConsent(reasons)),
        }
    }

    /// Returns true if this machine has files that name the servers.
    fn has_configuration(&self, rebuilding: &Rebuilding, first: &Files) -> Result<bool> {
        let suffix = self.record.suffix();
        if rebuilding.remade.is_empty() {
            return Ok(first.is_empty() || !first.asides(self.job, suffix)?.is_empty());
        }
        let made = Files::of(self.job, |part| rebuilding.remade.contains(&part.name.as_str()));
        Ok(!made.asides(self.job, suffix)?.is_empty())
    }

    /// Returns true if the admin named a server.
    fn is_chosen(&self, address: &str) -> bool {
        self.job.servers.iter().any(|server| server == address)
    }

    /// Compares the database server with that of this machine's configuration, and looks at what it
    /// has. Returns the reasons for which the admin must agree.
    fn expect_postgres(
        &mut self,
        pair: &Pair<'_, Server>,
        rebuilding: &Rebuilding,
    ) -> Result<Vec<String>> {
        let job = self.job;
        let Pair { target, here } = *pair;
        let progress = job.store.observer().progress();
        let root = job.snapshot.root.chunk();
        let address = target.shown();
        let connected = Loader::connect(job.store, root, target, job.manifest, job.scratch);
        if let Err(Error::Secret(_)) = &connected
            && let Some(reason) = self.awaited(target.secret.as_ref())
        {
            (self.say)(Stage::Preconditions, &format!("the {POSTGRES} {address}: {reason}"));
            return Ok(Vec::new());
        }
        let identity = match &connected {
            Ok(_) => Some(target.identity(progress)?),
            Err(_) => None,
        };
        // Later stages compare it with the one that the record has.
        let here = here.filter(|_| self.record.server().is_none() && !self.is_chosen(&address));
        if let Some(here) = here.filter(|here| !is_same_place(here, target)) {
            let known = match &identity {
                Some(_) => here.identity(progress).ok(),
                None => None,
            };
            let is_same = known.zip(identity.as_ref()).is_some_and(|(known, identity)| {
                known.system == identity.system && known.started == identity.started
            });
            if !is_same {
                let (target, here) = (address, here.shown());
                return Err(Error::OtherServer { what: POSTGRES, target, here });
            }
        }
        let (loader, version) = match connected {
            Ok(connected) => connected,
            Err(Error::Failed { output, .. }) if is_refused(&output) => {
                let (what, place) = (POSTGRES, address);
                return Err(Error::LoginRefused { what, place, reason: last_line(&output) });
            }
            // The configuration of the snapshot may be what the server needs.
            Err(error)
                if !rebuilding.first.is_empty()
                    && !matches!(
                        error,
                        Error::OlderServer { .. } | Error::MayNotCreate { .. } | Error::Standby
                    )
                    && !error.is_interrupted() =>
            {
                let text = format!("the {POSTGRES} {address} does not answer yet: {error}");
                (self.say)(Stage::Preconditions, &text);
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        (self.say)(Stage::Preconditions, &format!("{POSTGRES}: {address}, PostgreSQL {version}"));
        if let Some(identity) = identity {
            self.recognise(identity)?;
        }
        for dumped in &job.manifest.databases {
            loader.expect_extensions(dumped)?;
            loader.expect_locales(dumped)?;
        }
        self.reasons_of(&loader, target)
    }

    /// Returns the reasons for which the admin must agree to changes of a database server.
    fn reasons_of(&self, loader: &Loader<'_>, server: &Server) -> Result<Vec<String>> {
        let address = server.shown();
        let mut reasons = Vec::new();
        if !is_local(server.host.as_deref(), &server.reach) && !self.is_chosen(&address) {
            reasons.push(format!("the {POSTGRES} {address} is not on this machine"));
        }
        for name in loader.foreign(self.record)? {
            reasons.push(format!("the {POSTGRES} {address} has a database {name} with content"));
        }
        Ok(reasons)
    }

    /// Fails if a database server is another one than that on which the rebuild began.
    fn recognise(&mut self, server: Identity) -> Result<()> {
        match self.record.server() {
            Some(known) if !known.is_same(&server) && !self.is_chosen(&server.address) => {
                Err(Error::ServerChanged {
                    what: POSTGRES,
                    then: known.address.clone(),
                    now: server.address,
                    instance: self.job.instance.into(),
                })
            }
            _ => {
                self.record.set_server(server);
                Ok(())
            }
        }
    }

    /// Fails if the rebuild must not change the database server that is about to be loaded.
    pub fn expect_loadable(&mut self, loader: &Loader<'_>, server: &Server) -> Result<()> {
        let identity = server.identity(self.job.store.observer().progress())?;
        self.recognise(identity)?;
        let reasons = self.reasons_of(loader, server)?;
        self.expect_consent(reasons)
    }

    /// Compares Redis with that of this machine's configuration, and looks at what it has. Returns the
    /// reasons for which the admin must agree.
    fn expect_redis(
        &mut self,
        pair: &Pair<'_, Redis>,
        rebuilding: &Rebuilding,
    ) -> Result<Vec<String>> {
        if self.record.is_done(Stage::Redis) {
            return Ok(Vec::new());
        }
        let Pair { target, here } = *pair;
        let progress = self.job.store.observer().progress();
        let address = target.shown();
        let usual = match target.reach.into.is_empty() {
            true => crate::kind::below(&self.job.settings.root, Path::new(USUAL)),
            false => USUAL.into(),
        };
        let is_own = target.socket.as_ref().is_some_and(|socket| socket.starts_with(&usual));
        let standing = match self.standing(target) {
            // The package gives it the password of the restored configuration.
            Err(Error::LoginRefused { .. }) if is_own && !rebuilding.remade.is_empty() => None,
            standing => standing?,
        };
        if standing.is_none()
            && let Some(reason) = self.awaited(target.secret.as_ref())
        {
            (self.say)(Stage::Preconditions, &format!("{REDIS} {address}: {reason}"));
        }
        let here = here.filter(|_| self.record.redis().is_none() && !self.is_chosen(&address));
        if let Some(here) = here.filter(|here| here.shown() != address) {
            let known = here.standing(progress).ok().and_then(|standing| standing.run);
            let is_same = known.is_some()
                && known == standing.as_ref().and_then(|standing| standing.run.clone());
            if !is_same {
                let (target, here) = (address, here.shown());
                return Err(Error::OtherServer { what: REDIS, target, here });
            }
        }
        self.recognise_redis(target)?;
        let Some(Standing { keys, obstacle, .. }) = standing else { return Ok(Vec::new()) };
        (self.say)(Stage::Preconditions, &format!("{REDIS}: {address}, {keys} keys"));
        if let Some(obstacle) = obstacle {
            let text = format!("{REDIS} {address} cannot be emptied: {obstacle}");
            (self.say)(Stage::Preconditions, &text);
        }
        Ok(self.reasons_of_redis(target, keys))
    }

    fn reasons_of_redis(&self, redis: &Redis, keys: u64) -> Vec<String> {
        let address = redis.shown();
        let host = redis.host.as_deref().filter(|_| redis.socket.is_none());
        let is_elsewhere = !is_local(host, &redis.reach) && !self.is_chosen(&address);
        let elsewhere = is_elsewhere.then(|| format!("{REDIS} {address} is not on this machine"));
        let full = (keys > 0).then(|| format!("{REDIS} {address} has {keys} keys"));
        elsewhere.into_iter().chain(full).collect()
    }

    fn recognise_redis(&mut self, redis: &Redis) -> Result<()> {
        let now = redis.shown();
        match self.record.redis() {
            Some(then) if then != now && !self.is_chosen(&now) => Err(Error::ServerChanged {
                what: REDIS,
                then: then.into(),
                now,
                instance: self.job.instance.into(),
            }),
            _ => {
                self.record.set_redis(now);
                Ok(())
            }
        }
    }

    /// Returns the state of a Redis that runs. Fails if it answers and takes no login.
    pub fn standing(&self, redis: &Redis) -> Result<Option<Standing>> {
        match redis.standing(self.job.store.observer().progress()) {
            Ok(standing) => Ok(Some(standing)),
            Err(Error::Service { reason, .. }) => {
                Err(Error::LoginRefused { what: REDIS, place: redis.shown(), reason })
            }
            // Its files are restored by now, and without a password nothing shows whether it runs.
            Err(error @ Error::Secret(_)) if self.record.is_done(Stage::Files) => Err(error),
            Err(error) if error.is_interrupted() => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Fails if the rebuild must not empty a Redis.
    pub fn expect_emptiable(&mut self, redis: &Redis) -> Result<()> {
        self.recognise_redis(redis)?;
        let keys = self.standing(redis)?.map_or(0, |standing| standing.keys);
        let reasons = self.reasons_of_redis(redis, keys);
        self.expect_consent(reasons)
    }

    /// Looks whether databases that earlier calls loaded are still there. Those that are not are
    /// loaded again.
    pub fn look_for_databases(&mut self) -> Result<()> {
        let job = self.job;
        let is_loaded = |name: &str| self.record.loading(name).is_some_and(|known| known.is_loaded);
        if !job.manifest.databases.iter().any(|dumped| is_loaded(&dumped.name)) {
            return Ok(());
        }
        let (plan, _) = self.plan()?;
        let Some(server) = &plan.postgres else { return Ok(()) };
        let progress = job.store.observer().progress();
        let root = job.snapshot.root.chunk();
        let (loader, _) = Loader::connect(job.store, root, server, job.manifest, job.scratch)?;
        self.recognise(server.identity(progress)?)?;
        for dumped in &job.manifest.databases {
            let Some(mut loading) = self.record.loading(&dumped.name).cloned() else { continue };
            if loading.is_loaded && loader.number(&dumped.name)? != loading.made {
                let text = format!(
                    "database {} is not the one that an earlier call loaded; loading it again",
                    dumped.name
                );
                (self.say)(Stage::Preconditions, &text);
                (loading.is_loaded, loading.made) = (false, None);
                self.record.reopen(Stage::Databases);
                self.record.set_loading(loading)?;
            }
        }
        Ok(())
    }
}

/// Shows what this machine has beside some paths below `root`, too: links lead there from the
/// directories above these paths, whose copies are below `dir`.
fn complete(root: &Path, paths: &[&Path], dir: &Path) -> std::io::Result<()> {
    let above = paths.iter().flat_map(|path| path.ancestors().skip(1));
    let mut above: Vec<&Path> = above.filter(|path| path.starts_with(root)).collect();
    above.sort();
    above.dedup();
    for real in above {
        let own = dir.join(real.strip_prefix("/").unwrap_or(real));
        // A link of the snapshot may lead out of the copy.
        let is_copy = own.is_dir() && own.canonicalize().is_ok_and(|own| own.starts_with(dir));
        if paths.iter().any(|path| real.starts_with(path)) || !is_copy {
            continue;
        }
        for entry in std::fs::read_dir(real).into_iter().flatten().flatten() {
            let (there, path) = (own.join(entry.file_name()), entry.path());
            if there.symlink_metadata().is_err() && !paths.contains(&path.as_path()) {
                std::os::unix::fs::symlink(path, there)?;
            }
        }
    }
    Ok(())
}

/// Shows the copy `own` of a root at the path of the root within it, too: the program that runs
/// containers reports paths of this machine, which lie below the root already.
fn show_reported(root: &Path, own: &Path) -> std::io::Result<()> {
    let (Some(around), Some(name)) = (root.parent(), root.file_name()) else { return Ok(()) };
    let mut dir = own.to_owned();
    for name in links::names(around) {
        dir.push(name);
        match dir.symlink_metadata() {
            Ok(found) if found.is_dir() => {}
            // It leads elsewhere.
            Ok(_) => return Ok(()),
            Err(_) => std::fs::create_dir(&dir)?,
        }
    }
    let inner = dir.join(name);
    match inner.symlink_metadata() {
        Ok(_) => Ok(()),
        Err(_) => std::os::unix::fs::symlink(own, inner),
    }
}

/// Returns the path on this machine, below `root`, of a path in the copy `own` of the root.
fn place_of_copy(root: &Path, own: &Path, path: &Path) -> PathBuf {
    let mut place = path.to_owned();
    let mut is_in_copy = false;
    // A link of the copy may lead to a path of this machine, or of the copy, below the copy.
    while let Ok(inner) = place.strip_prefix(own) {
        is_in_copy = true;
        place = Path::new("/").join(inner);
    }
    match place.strip_prefix("/") {
        Ok(inner) if is_in_copy && !place.starts_with(root) => {
            root.join(inner).components().collect()
        }
        _ => place.components().collect(),
    }
}

/// Returns true if a host is this machine, for clients that may run in a container. There, a name
/// without a dot is that of another container. Without a host, it is the usual socket.
fn is_local(host: Option<&str>, reach: &Reach) -> bool {
    let Some(host) = host else { return true };
    let is_inside = !reach.into.is_empty();
    let is_container = || !host.contains(['.', ':']) || HOST_OF_CONTAINERS.contains(&host);
    is_here(host) || is_inside && is_container()
}

/// Returns true if two addresses of database servers are one place, by their texts.
fn is_same_place(one: &Server, other: &Server) -> bool {
    let is_loopback =
        |server: &Server| server.host.as_deref().is_some_and(|host| LOOPBACK.contains(&host));
    let is_one = one.reach.into == other.reach.into && one.port == other.port;
    one.shown() == other.shown() || is_one && is_loopback(one) && is_loopback(other)
}

/// Returns true if a host is this machine, by a name or one of its addresses.
fn is_here(host: &str) -> bool {
    // Only an address of this machine can be bound.
    let is_own = |host: &str| {
        let addresses = (host, 0_u16).to_socket_addrs().into_iter().flatten();
        addresses.into_iter().any(|address| UdpSocket::bind((address.ip(), 0)).is_ok())
    };
    host.starts_with('/') || LOOPBACK.contains(&host) || is_own(host)
}

/// Returns true for messages of a server that knows a login and does not accept it.
pub fn is_refused(output: &str) -> bool {
    REFUSED.iter().any(|text| output.contains(text)) && !output.contains("database \"")
}

fn last_line(output: &str) -> String {
    output.trim().lines().next_back().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refused_logins_are_told_apart() {
        for (output, is) in [
            ("FATAL:  password authentication failed for user \"mm\"", true),
            ("FATAL:  role \"mm\" does not exist", true),
            ("FATAL:  database \"mm\" does not exist", false),
            ("could not connect: No such file or directory", false),
        ] {
            assert_eq!(is_refused(output), is, "{output}");
        }
    }

    #[test]
    fn names_of_this_machine_are_one_place() {
        let at = |host: Option<&str>, port: u16| {
            let host = host.map(str::to_owned);
            Server { host, port, ..Server::default() }
        };
        let local = at(Some("localhost"), 5432);
        assert!(is_same_place(&local, &at(Some("127.0.0.1"), 5432)));
        for other in [at(Some("127.0.0.1"), 5433), at(Some("db"), 5432), at(None, 5432)] {
            assert!(!is_same_place(&local, &other), "{}", other.shown());
        }
        assert_eq!(at(None, 5432).shown(), "socket:5432");
    }

    #[test]
    fn own_addresses_are_here() {
        let inside = Reach { into: vec!["docker".into(), "db".into()], ..Reach::default() };
        for (host, is_local_here, is_local_inside) in [
            ("/run/x", true, true),
            ("127.0.0.1", true, true),
            ("192.0.2.1", false, false),
            ("db.invalid", false, false),
            ("postgresql-of-a-container", false, true),
            ("host.docker.internal", false, true),
        ] {
            assert_eq!(is_local(Some(host), &Reach::default()), is_local_here, "{host}");
            assert_eq!(is_local(Some(host), &inside), is_local_inside, "{host}");
        }
    }

    #[test]
    fn paths_that_containers_report_lead_into_the_copy() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Path::new("/mnt/old/root");
        let [own, other] = ["own", "other"].map(|name| dir.path().join(name));
        std::fs::create_dir_all(own.join("srv")).expect("directories");
        show_reported(Path::new("/"), &own).expect("has nothing to do");
        assert!(!own.join("mnt").exists());
        for _ in 0..2 {
            show_reported(root, &own).expect("links");
        }
        assert!(own.join("mnt/old/root/srv").is_dir());
        // Nothing is written behind a link of the snapshot.
        for dir in [&own, &other] {
            let _ = std::fs::remove_dir_all(dir);
            std::fs::create_dir(dir).expect("a directory");
        }
        std::os::unix::fs::symlink(&other, own.join("mnt")).expect("links");
        show_reported(root, &own).expect("skips it");
        assert_eq!(std::fs::read_dir(&other).expect("lists").count(), 0);
    }

    #[test]
    fn a_copy_of_the_configuration_shows_the_rest_of_the_machine() {
        let dir = tempfile::tempdir().expect("a directory");
        let [real, own] = ["real", "own"].map(|name| dir.path().join(name));
        for path in ["etc/app", "etc/other", "opt/x"] {
            std::fs::create_dir_all(real.join(path)).expect("directories");
        }
        std::fs::write(real.join("etc/app/now"), "now").expect("writes");
        let inner = own.join(real.strip_prefix("/").expect("absolute"));
        std::fs::create_dir_all(inner.join("etc/app")).expect("directories");
        complete(&real, &[&real.join("etc/app"), &real.join("etc/absent")], &own).expect("links");
        assert!(inner.join("etc/other").is_dir() && inner.join("opt/x").is_dir());
        assert!(!inner.join("etc/app/now").exists() && !inner.join("etc/absent").exists());
    }
}
