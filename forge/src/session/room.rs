//! Whether the store has room for one more night.

use super::Job;
use crate::copy::shown;
use crate::error::{Error, Result};
use store::backup::Backup;
use store::observe::Event;

/// Bytes that a store has to have room for, or nothing is begun: the least that segments and
/// index need.
const ROOM_BYTES_MIN: u64 = 16 << 20;

/// Refuses to begin where there is no room, and warns where there may be too little.
pub fn look_for_room(job: &Job<'_>, backup: &Backup<'_>) -> Result<()> {
    let Some(root) = job.store.root().filter(|_| !job.options.is_dry) else { return Ok(()) };
    let fail = |source: rustix::io::Errno| Error::Read { path: root.into(), source: source.into() };
    let space = rustix::fs::statvfs(root).map_err(fail)?;
    if space.f_blocks == 0 {
        return Ok(()); // a file system that does not say
    }
    let left = space.f_bavail.saturating_mul(space.f_frsize);
    if left < ROOM_BYTES_MIN {
        return Err(Error::NoRoom { store: root.into(), left });
    }
    // The first one of all is as large as the instance.
    let before = backup.parent().filter(|(_, snapshot)| snapshot.parent.is_some());
    let before = before.map_or(0, |(_, snapshot)| snapshot.statistics.added_stored_bytes);
    if left < before {
        let text = format!(
            "{} has {} MiB left, and the last backup took {} MiB",
            shown(root),
            left >> 20,
            before >> 20
        );
        job.store.observer().event(Event::Warning(text));
    }
    Ok(())
}
