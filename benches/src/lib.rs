//! Parts common to generated stores.

use store::entry::Time;
use store::id::{ChunkId, SnapshotId};
use store::snapshot::{Id, Snapshot, Stamp, Statistics, VERSION};

/// Creation time of everything, so that it is the same every time.
pub const MADE: Time = Time { seconds: 1_700_000_000, nanoseconds: 0 };

/// Seconds between two nights.
const DAY: i64 = 24 * 60 * 60;

/// Returns a record of the night that lies this many days before [`MADE`].
pub fn of_night(record: Snapshot, days_before: u64, parent: Option<SnapshotId>) -> Snapshot {
    let seconds = MADE.seconds - days_before as i64 * DAY;
    let start = Stamp { seconds, nanoseconds: 0 };
    Snapshot { start, end: start, parent: parent.map(|id| Id(*id.as_bytes())), ..record }
}

/// Returns the record of a snapshot of `paths` with the given tag.
pub fn record(tag: &str, paths: &[&str], root: ChunkId) -> Snapshot {
    Snapshot {
        version: VERSION,
        start: MADE.into(),
        end: MADE.into(),
        host: "synthetic".into(),
        user: "synthetic".into(),
        paths: paths.iter().map(|path| path.as_bytes().to_vec().into()).collect(),
        tags: vec![tag.into()],
        root: Id(*root.as_bytes()),
        parent: None,
        program: env!("CARGO_PKG_VERSION").into(),
        statistics: Statistics::default(),
        unreadable_count: 0,
        excludes: Vec::new(),
        instance: None,
        skipped: store::snapshot::Skipped::default(),
        run: None,
        sources: Vec::new(),
        emptied: Vec::new(),
        is_loss_allowed: false,
    }
}
