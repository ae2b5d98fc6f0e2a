//! Check of the free space before a backup.

use super::Job;
use crate::error::{Error, Result};
use crate::view::shown;
use store::backup::Backup;
use store::observe::Event;

/// Smallest free space, in bytes, with which a backup begins: segments and index need at least that
/// much.
const FREE_BYTES_MIN: u64 = 16 << 20;

/// Fails if there is too little free space to begin. Warns if there is less than the previous
/// backup took.
pub fn look_for_space(job: &Job<'_>, backup: &Backup<'_>) -> Result<()> {
    let Some(root) = job.store.root().filter(|_| !job.options.is_dry) else { return Ok(()) };
    let fail = |source| Error::Read { path: root.into(), source };
    let Some(left) = job.store.free_bytes().map_err(fail)? else { return Ok(()) };
    if left < FREE_BYTES_MIN {
        return Err(Error::NoFreeSpace { store: root.into(), left });
    }
    // The first backup stores the whole instance, so its size does not predict the next one.
    let before = backup.parent().filter(|(_, snapshot)| snapshot.parent.is_some());
    let before = before.map_or(0, |(_, snapshot)| snapshot.statistics.added_stored_bytes);
    if left < before {
        let text = format!(
            "{} has {} MiB free, but the previous backup needed {} MiB",
            shown(root),
            left >> 20,
            before >> 20
        );
        job.store.observer().event(Event::Warning(text));
    }
    Ok(())
}
