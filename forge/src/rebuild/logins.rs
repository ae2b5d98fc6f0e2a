//! Chooses logins while files with passwords are replaced.
//!
//! The admin may keep passwords of servers in files of a part. A rebuild moves them, and restores
//! those of the snapshot, which may be older than the passwords of the servers on this machine.

use super::servers::is_refused;
use super::{Rebuild, Stage, files, shown};
use crate::error::{Error, Result};
use crate::private_dir::{OF_REBUILD, PrivateDir};
use crate::secret::Secret;
use crate::service::Password;
use crate::service::postgres::{MAINTENANCE, Server};
use crate::service::redis::Redis;
use crate::view::View;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest password in the snapshot, in bytes.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// Copies of password files that only the snapshot has, by their paths on this machine. They are
/// removed at the end.
#[derive(Debug, Default)]
pub struct Passfiles(RefCell<BTreeMap<PathBuf, (PrivateDir, PathBuf)>>);

impl Rebuild<'_, '_> {
    /// Returns a database server with the login that it accepts: of the file at its place, of the one
    /// that the rebuild has moved, or of the snapshot. It is the first if the server accepts none, or
    /// does not answer.
    pub fn accepted_login(&self, server: &Server) -> Result<Server> {
        let mut all = vec![server.clone()];
        let moved = Server {
            secret: self.moved_secret(server.secret.as_ref()),
            passfile: server.passfile.as_deref().and_then(|file| self.moved(file)),
            ..server.clone()
        };
        if moved.secret.is_some() || moved.passfile.is_some() {
            all.push(Server {
                secret: moved.secret.or(server.secret.clone()),
                passfile: moved.passfile.or(server.passfile.clone()),
                ..server.clone()
            });
        }
        if let Some(password) = self.password(server.secret.as_ref()) {
            all.push(Server { secret: None, password: Some(password), ..server.clone() });
        }
        if let Some(passfile) = self.passfile(server)? {
            all.push(Server { passfile: Some(passfile), ..server.clone() });
        }
        let progress = self.job.store.observer().progress();
        first_accepted(all, |server| {
            // A server that is down accepts none.
            let server = Server { wait: Duration::ZERO, ..server.clone() };
            server.connect(MAINTENANCE, progress).map(drop)
        })
    }

    /// Like [`Rebuild::accepted_login`], for Redis.
    pub fn accepted_redis_login(&self, redis: &Redis) -> Result<Redis> {
        let mut all = vec![redis.clone()];
        if let Some(secret) = self.moved_secret(redis.secret.as_ref()) {
            all.push(Redis { secret: Some(secret), ..redis.clone() });
        }
        let progress = self.job.store.observer().progress();
        first_accepted(all, |redis| redis.standing(progress).map(drop))
    }

    /// Describes each restored file whose password the server does not accept.
    pub fn refused_files(&self) -> Result<Vec<String>> {
        let (plan, _) = self.plan_without_logins()?;
        let mut refused = Vec::new();
        if let Some(server) = &plan.postgres
            && self.accepted_login(server)? != *server
        {
            refused.extend(of_secret(server.secret.as_ref()).or(server.passfile.as_deref()));
        }
        if let Some(redis) = &plan.redis
            && self.accepted_redis_login(redis)? != *redis
        {
            refused.extend(of_secret(redis.secret.as_ref()));
        }
        let described = refused.into_iter().filter_map(|file| {
            let (file, old) = (shown(file), shown(&self.moved(file)?));
            Some(format!(
                "give {file} the password that the server accepts: the one of the snapshot is refused, \
                 and the rebuild used {old}"
            ))
        });
        Ok(described.collect())
    }

    /// Returns what a command that prints a password needs of the snapshot, if it fails now because
    /// those files are not restored yet.
    pub fn awaited(&self, secret: Option<&Secret>) -> Option<String> {
        let Some(Secret::Command(words)) = secret else { return None };
        if self.record.is_done(Stage::Files) {
            return None;
        }
        let parts = &self.job.manifest.parts;
        let named = parts.iter().find(|part| {
            let texts = || part.paths.iter().filter_map(|path| path.to_str());
            words.iter().any(|word| texts().any(|path| word.contains(path)))
        })?;
        Some(format!(
            "the command `{}` prints its password and needs files of part `{}`, so it is asked once \
             they are restored",
            words.join(" "),
            named.name
        ))
    }

    /// Returns a copy of a password file of the clients that only the snapshot has.
    fn passfile(&self, server: &Server) -> Result<Option<PathBuf>> {
        let Some(file) = server.passfile.as_deref().filter(|file| !file.exists()) else {
            return Ok(None);
        };
        let mut parts = self.job.manifest.parts.iter().flat_map(|part| &part.paths);
        let is_awaited =
            !self.record.is_done(Stage::Files) && parts.any(|part| file.starts_with(part));
        // A client in a container does not see it.
        if !is_awaited || !server.reach.into.is_empty() {
            return Ok(None);
        }
        let mut known = self.passfiles.0.borrow_mut();
        if let Some((_, copy)) = known.get(file) {
            return Ok(Some(copy.clone()));
        }
        let (store, root) = (self.job.store, self.job.snapshot.root.chunk());
        let Some(text) = View::Tree { store, root }.content(file, PASSWORD_BYTES_MAX)? else {
            return Ok(None);
        };
        let scratch = self.job.scratch;
        let make = || {
            let dir = PrivateDir::make(scratch, OF_REBUILD)?;
            let copy = dir.path().join("passfile");
            dir.open_for(server.reach.user.as_deref(), &copy)?.write_all(&text)?;
            Ok((dir, copy))
        };
        let made: std::io::Result<_> = make();
        let made = made.map_err(|source| Error::Write { path: scratch.to_owned(), source })?;
        let copy = made.1.clone();
        known.insert(file.to_owned(), made);
        Ok(Some(copy))
    }

    fn moved_secret(&self, secret: Option<&Secret>) -> Option<Secret> {
        self.moved(of_secret(secret)?).map(Secret::File)
    }

    /// Returns the present place of a file that the rebuild has moved.
    fn moved(&self, file: &Path) -> Option<PathBuf> {
        let place = files::place(self.job, file).unwrap_or_else(|_| file.to_owned());
        let done = self.record.aside().iter().filter(|aside| aside.is_done);
        let around = done.filter(|aside| place.starts_with(&aside.from));
        let aside = around.max_by_key(|aside| aside.from.components().count())?;
        // Without the slash that an empty path adds.
        let inner = place.strip_prefix(&aside.from).ok()?;
        let moved: PathBuf = aside.to.join(inner).components().collect();
        moved.is_file().then_some(moved)
    }

    /// Returns the password in a file of the snapshot that is not restored yet.
    fn password(&self, secret: Option<&Secret>) -> Option<Password> {
        let file = of_secret(secret)?;
        let mut parts = self.job.manifest.parts.iter().flat_map(|part| &part.paths);
        if self.record.is_done(Stage::Files) || !parts.any(|part| file.starts_with(part)) {
            return None;
        }
        let (store, root) = (self.job.store, self.job.snapshot.root.chunk());
        let text = View::Tree { store, root }.content(file, PASSWORD_BYTES_MAX).ok().flatten()?;
        let text = String::from_utf8(text).ok()?;
        Some(Password(text.trim_end_matches(['\n', '\r']).to_owned()))
    }
}

fn of_secret(secret: Option<&Secret>) -> Option<&Path> {
    match secret {
        Some(Secret::File(file)) => Some(file),
        _ => None,
    }
}

/// Returns the first that does not fail with a refused login; the first of all if each one does.
fn first_accepted<T>(mut all: Vec<T>, attempt: impl Fn(&T) -> Result<()>) -> Result<T> {
    if all.len() > 1 {
        for at in 0..all.len() {
            match attempt(&all[at]) {
                Err(error) if error.is_interrupted() => return Err(error),
                // The file may be missing.
                Err(Error::Secret(_)) => {}
                // Redis refuses logins with an answer.
                Err(Error::Service { .. }) => {}
                Err(Error::Failed { output, .. }) if is_refused(&output) => {}
                Ok(()) => return Ok(all.swap_remove(at)),
                // It does not answer any login.
                Err(_) => break,
            }
        }
    }
    Ok(all.swap_remove(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_login_that_a_server_accepts_is_used() {
        let refused = || Error::Service { service: "Redis".into(), reason: "WRONGPASS".into() };
        let missing = || Error::Standby;
        let of = |all: &[&str]| {
            let all: Vec<String> = all.iter().map(|word| (*word).to_owned()).collect();
            first_accepted(all, |word: &String| match &word[..] {
                "refused" | "other" => Err(refused()),
                "down" => Err(missing()),
                _ => Ok(()),
            })
            .expect("chooses")
        };
        assert_eq!(of(&["refused", "right"]), "right");
        assert_eq!(of(&["refused", "other"]), "refused");
        assert_eq!(of(&["down", "right"]), "down");
        assert_eq!(of(&["right", "other"]), "right");
        assert_eq!(of(&["refused"]), "refused");
    }
}
