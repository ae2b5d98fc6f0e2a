//! Persistence files of Redis: saved at the consistency point of the databases, copied when the
//! save has ended.

use super::Session;
use crate::error::{Error, Result};
use crate::file;
use crate::plan::{Absent, Phase};
use crate::service::redis::{Saving, refuses_saves};

/// Maximum number of copies until the files are consistent.
const SAVES_MAX: usize = 5;

impl<'j> Session<'j> {
    /// Starts a save, if the instance has Redis.
    pub(super) fn begin_save(&mut self) -> Result<Option<Saving<'j>>> {
        let progress = self.job.store.observer().progress();
        let Some(redis) = &self.job.plan.redis else { return Ok(None) };
        match redis.begin_save(progress) {
            // Databases and repositories must not be lost with it.
            Err(error) if refuses_saves(&error) => {
                self.missing.push(Absent {
                    part: "redis".into(),
                    looked_for: format!("a save ({error})"),
                    is_required: redis.is_required,
                });
                Ok(None)
            }
            saving => saving.map(Some),
        }
    }

    /// Waits for a save and copies its files.
    pub(super) fn end_save(&mut self, saving: Option<Saving<'j>>) -> Result<()> {
        let progress = self.job.store.observer().progress();
        self.redis = saving.map(|saving| saving.end(progress)).transpose()?;
        if let (Some(saved), Some(redis)) = (&self.redis, &self.job.plan.redis) {
            self.redis_files = redis.files(saved, self.job.plan.redis_dir());
            let absent = redis.absent(saved, &self.redis_files);
            self.missing.extend(absent.map(|looked_for| Absent {
                part: "redis".into(),
                looked_for,
                is_required: redis.is_required,
            }));
        }
        self.copy_redis_files()
    }

    /// Copies the files of the save, and those of a part without a server.
    pub(super) fn copy_redis_files(&mut self) -> Result<()> {
        // Without a save, the files are of any age.
        if self.job.plan.redis.is_some() && self.redis.is_none() {
            return Ok(());
        }
        // If the append-only log is rewritten during the copy, old and new files do not match.
        for _ in 0..SAVES_MAX {
            let before = self.manifests();
            self.copy(&[Phase::RedisFiles])?;
            if self.manifests() == before {
                return Ok(());
            }
        }
        let reason = "it rewrote its append-only log during each copy".into();
        Err(Error::Service { service: "Redis".into(), reason })
    }

    /// Contents of the manifests, which list the files of append-only logs.
    fn manifests(&self) -> Vec<Option<Vec<u8>>> {
        let parts = self.job.plan.parts.iter().filter(|part| part.phase == Phase::RedisFiles);
        let places = parts.flat_map(|part| &part.paths).chain(&self.redis_files);
        let dirs = places.filter_map(|path| std::fs::read_dir(path).ok());
        let files = dirs.flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let manifests = files.filter(|path| path.extension().is_some_and(|end| end == "manifest"));
        manifests.map(|path| file::bytes(&path).ok().flatten()).collect()
    }
}
