//! The records of a store's snapshots.
//!
//! The index keeps their order. A command that needs the newest snapshot therefore reads only a few
//! records, whatever their number.

use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::index::Position;
use crate::observe::Event;
use crate::snapshot::{self, Snapshot};
use crate::store::Store;
use std::collections::HashSet;

/// A snapshot with its id.
pub type Named = (SnapshotId, Snapshot);

/// The snapshots of a store, newest first, with an error for each unreadable record. Records that
/// were never readable come before all others.
///
/// Each record is read when its turn comes. Only the order of all snapshots is held in memory.
pub struct Records<'a> {
    store: &'a Store,
    errors: std::vec::IntoIter<Error>,
    /// Snapshots to read, oldest first.
    left: Vec<Position>,
    /// Rewrite records of which only one copy is intact.
    mend: bool,
}

impl Iterator for Records<'_> {
    type Item = Result<Named>;

    fn next(&mut self) -> Option<Result<Named>> {
        if let Some(error) = self.errors.next() {
            return Some(Err(error));
        }
        let Position { id, .. } = self.left.pop()?;
        let read = Snapshot::read(&*self.store.backend, self.store.codec, &id);
        Some(read.map(|(snapshot, is_whole)| {
            if self.mend && !is_whole {
                self.store.mend_record(&id);
            }
            (id, snapshot)
        }))
    }
}

impl Store {
    /// Returns all snapshots, newest first.
    pub fn records(&self) -> Result<Records<'_>> {
        let listed = self.snapshot_ids()?;
        // Without a usable index, every record is read to find its position.
        let known = self.index.positions().unwrap_or_default();
        let is_listed = |position: &Position| listed.binary_search(&position.id).is_ok();
        let (mut left, gone): (Vec<_>, Vec<_>) = known.into_iter().partition(is_listed);
        let known: HashSet<SnapshotId> = left.iter().map(|position| position.id).collect();
        let (mut new, mut errors) = (Vec::new(), Vec::new());
        for id in listed.into_iter().filter(|id| !known.contains(id)) {
            match self.snapshot(&id) {
                Ok(Snapshot { start, .. }) => {
                    let (seconds, nanoseconds) = (start.seconds, start.nanoseconds);
                    new.push(Position { seconds, nanoseconds, id });
                }
                Err(error) => errors.push(error),
            }
        }
        if !(gone.is_empty() && new.is_empty()) {
            // An index that cannot be written costs time in the next run.
            let _ = self.index.change_positions(&gone, &new);
            left.append(&mut new);
            left.sort_unstable();
        }
        Ok(Records { store: self, errors: errors.into_iter(), left, mend: false })
    }

    /// Like [`Store::records`], and rewrites records of which only one copy is intact, as they are
    /// read.
    pub(crate) fn mended_records(&self) -> Result<Records<'_>> {
        Ok(Records { mend: true, ..self.records()? })
    }

    fn mend_record(&self, id: &SnapshotId) {
        let short = id.short();
        let event = match snapshot::mend(&*self.backend, self.codec, id) {
            Ok(()) => Event::Note(format!("repaired one copy of the record of snapshot {short}")),
            Err(error) => Event::Warning(format!(
                "one copy of the record of snapshot {short} is damaged: {error}"
            )),
        };
        self.observer.event(event);
    }

    /// Returns all readable snapshots, oldest first, and the errors of the others.
    pub fn snapshots(&self) -> Result<(Vec<Named>, Vec<Error>)> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for record in self.records()? {
            match record {
                Ok(named) => good.push(named),
                Err(error) => bad.push(error),
            }
        }
        good.reverse();
        Ok((good, bad))
    }

    /// Returns the ids of all snapshots, including damaged ones.
    pub fn snapshot_ids(&self) -> Result<Vec<SnapshotId>> {
        snapshot::list(&*self.backend)
    }

    /// Returns the record of one snapshot.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        Ok(Snapshot::read(&*self.backend, self.codec, id)?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Local;
    use crate::codec::Codec;
    use crate::config::Config;
    use crate::observe::Silent;
    use crate::snapshot::example;
    use crate::store::{Purpose, init};
    use std::path::Path;
    use std::sync::Arc;

    fn open(dir: &Path) -> Store {
        Store::open(dir, Purpose::Write, Arc::new(Silent::default())).expect("opens")
    }

    /// Writes the record of a snapshot that starts at this second.
    fn write(dir: &Path, seconds: i64) -> SnapshotId {
        let mut snapshot = example();
        snapshot.start.seconds = seconds;
        snapshot.write(&Local::new(dir), Codec::new(3)).expect("writes")
    }

    fn new_store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config::new([1; 16], chunker::Parameters::DEFAULT, 3);
        init(dir.path(), &config).expect("creates");
        dir
    }

    /// Returns the readable ids, newest first, and the number of unreadable records.
    fn ids(store: &Store) -> (Vec<SnapshotId>, usize) {
        let records: Vec<Result<Named>> = store.records().expect("lists").collect();
        let errors = records.iter().filter(|record| record.is_err()).count();
        (records.into_iter().flatten().map(|(id, _)| id).collect(), errors)
    }

    #[test]
    fn records_come_newest_first_and_follow_the_directory() {
        let dir = new_store();
        let store = open(dir.path());
        assert_eq!(ids(&store), (vec![], 0));
        let [b, a] = [20, 10].map(|second| write(dir.path(), second));
        assert_eq!(ids(&store), (vec![b, a], 0));
        let c = write(dir.path(), 15);
        assert_eq!(ids(&store), (vec![b, c, a], 0));
        std::fs::remove_file(dir.path().join(snapshot::file_name(&b))).expect("removes");
        assert_eq!(ids(&store), (vec![c, a], 0));
        assert_eq!(store.index.positions().expect("asks").len(), 2);
        assert_eq!(ids(&open(dir.path())), (vec![c, a], 0));
    }

    #[test]
    fn damage_never_hides_another_record() {
        let dir = new_store();
        let store = open(dir.path());
        let [a, b] = [10, 20].map(|second| write(dir.path(), second));
        let file = dir.path().join(snapshot::file_name(&b));
        let whole = std::fs::read(&file).expect("reads");
        for _ in 0..2 {
            std::fs::write(&file, b"damaged").expect("writes");
            assert_eq!(ids(&store), (vec![a], 1));
        }
        let mut half = whole.clone();
        half[whole.len() - 1] ^= 1;
        std::fs::write(&file, &half).expect("writes");
        assert_eq!(ids(&store), (vec![b, a], 0));
        assert_eq!(store.mended_records().expect("lists").count(), 2);
        assert_eq!(std::fs::read(&file).expect("reads"), whole);
        // Its position is known by now.
        std::fs::write(&file, b"damaged").expect("writes");
        assert_eq!(ids(&store), (vec![a], 1));
    }

    #[test]
    fn records_are_found_without_a_usable_index() {
        let dir = new_store();
        let store = open(dir.path());
        let [a, b] = [10, 20].map(|second| write(dir.path(), second));
        assert_eq!(ids(&store), (vec![b, a], 0));
        let connection =
            rusqlite::Connection::open(dir.path().join("index.sqlite")).expect("opens");
        connection.execute("DROP TABLE records", []).expect("drops");
        assert_eq!(ids(&store), (vec![b, a], 0));
    }
}
