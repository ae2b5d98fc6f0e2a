//! The records of a store's snapshots.
//!
//! The index keeps their order and their headers. A command that needs the newest snapshot of one
//! source therefore reads only a few records, whatever their number.

use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::index::Header;
use crate::observe::Event;
use crate::protocol::{Rule, is_kept};
use crate::sessions;
use crate::snapshot::{self, Snapshot};
use crate::store::Store;
use std::collections::HashSet;

/// A snapshot with its id.
pub type Named = (SnapshotId, Snapshot);

/// The snapshots of a store, newest first, with an error for each unreadable record. Records that
/// were never readable come before all others.
///
/// Each record is read when its turn comes. Only the headers of all snapshots are held in memory.
pub struct Records<'a> {
    store: &'a Store,
    errors: std::vec::IntoIter<Error>,
    /// Snapshots to read, oldest first.
    left: Vec<Header>,
    /// Rewrite records of which only one copy is intact.
    mend: bool,
}

impl Iterator for Records<'_> {
    type Item = Result<Named>;

    fn next(&mut self) -> Option<Result<Named>> {
        if let Some(error) = self.errors.next() {
            return Some(Err(error));
        }
        loop {
            let header = self.left.pop()?;
            let id = header.position.id;
            return Some(match self.store.read_record(&header) {
                Ok((snapshot, is_whole)) => {
                    if self.mend && !is_whole {
                        self.store.mend_record(&id);
                    }
                    Ok((id, snapshot))
                }
                Err(error) if self.store.was_forgotten(&id, &error) => continue,
                Err(error) => Err(error),
            });
        }
    }
}

impl Records<'_> {
    /// Returns the headers of the snapshots that are still to be read, oldest first.
    pub fn headers(&self) -> &[Header] {
        &self.left
    }

    /// Takes the errors of the records that were never readable.
    pub fn take_errors(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.errors).collect()
    }

    /// Skips the records of other snapshots without reading them.
    pub fn retain(&mut self, is_wanted: impl FnMut(&Header) -> bool) {
        self.left.retain(is_wanted);
    }
}

impl Store {
    /// Returns all snapshots, newest first.
    pub fn records(&self) -> Result<Records<'_>> {
        let listed = self.snapshot_ids()?;
        // Without a usable index, every record is read to find its position.
        let known = self.index.headers().unwrap_or_default();
        let is_listed = |header: &Header| listed.binary_search(&header.position.id).is_ok();
        let (mut left, gone): (Vec<_>, Vec<_>) = known.into_iter().partition(is_listed);
        let known: HashSet<SnapshotId> = left.iter().map(|header| header.position.id).collect();
        let (mut new, mut errors) = (Vec::new(), Vec::new());
        for id in listed.into_iter().filter(|id| !known.contains(id)) {
            match self.snapshot(&id) {
                Ok(snapshot) => new.push(Header::of(id, &snapshot)),
                Err(error) if self.was_forgotten(&id, &error) => {}
                Err(error) => errors.push(error),
            }
        }
        if !(gone.is_empty() && new.is_empty()) {
            // An index that cannot be written costs time in the next run.
            let _ = self.index.change_headers(&gone, &new);
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

    /// Rewrites the record of a snapshot if only one copy is intact.
    pub(crate) fn mend_record(&self, id: &SnapshotId) {
        let short = id.short();
        let event = match snapshot::mend(&*self.backend, self.codec, id) {
            Ok(false) => return,
            Ok(true) => Event::Note(format!("repaired one copy of the record of snapshot {short}")),
            Err(error) if self.was_forgotten(id, &error) => return,
            Err(error) => Event::Warning(format!(
                "the record of snapshot {short} is damaged and was not repaired: {error}"
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

    /// Returns the ids of all snapshots, including damaged ones. Those whose backup has not
    /// succeeded do not count.
    pub fn snapshot_ids(&self) -> Result<Vec<SnapshotId>> {
        let mut ids = snapshot::list(&*self.backend)?;
        if is_kept(Rule::WholeParent) {
            let announced = sessions::announced(&*self.backend)?;
            ids.retain(|id| !announced.contains(id));
        }
        Ok(ids)
    }

    /// Returns true if a record could not be read because it was deleted since it was listed.
    pub(crate) fn was_forgotten(&self, id: &SnapshotId, error: &Error) -> bool {
        let is_missing = matches!(
            error, Error::StoreRead { source, .. } if source.kind() == std::io::ErrorKind::NotFound
        );
        is_missing && self.snapshot_ids().is_ok_and(|listed| listed.binary_search(id).is_err())
    }

    /// Returns the record of a snapshot with this header.
    pub fn snapshot_of(&self, header: &Header) -> Result<Snapshot> {
        Ok(self.read_record(header)?.0)
    }

    /// Like [`Store::snapshot_of`]. The second value is true if both copies of the record are
    /// intact.
    fn read_record(&self, header: &Header) -> Result<(Snapshot, bool)> {
        let id = header.position.id;
        let (snapshot, is_whole) = Snapshot::read(&*self.backend, self.codec, &id)?;
        if Header::of(id, &snapshot) != *header {
            // The choice of this snapshot was wrong. The next process rebuilds the index.
            self.index.give_up();
            let reason = "the index describes it wrongly; run the command again".into();
            return Err(Error::SnapshotDamaged { id, reason });
        }
        Ok((snapshot, is_whole))
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
        assert_eq!(store.index.headers().expect("asks").len(), 2);
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
    fn headers_tell_snapshots_apart_without_reading_them() {
        let dir = new_store();
        let store = open(dir.path());
        let mut snapshot = example();
        let mut write = |second, host: &str, paths: &[&str], tags: &[&str]| {
            snapshot.start.seconds = second;
            snapshot.host = host.into();
            snapshot.paths = paths.iter().map(|path| path.as_bytes().to_vec().into()).collect();
            snapshot.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
            snapshot.write(&Local::new(dir.path()), Codec::new(3)).expect("writes")
        };
        let a = write(10, "web", &["/b", "/a"], &["x"]);
        let b = write(20, "web", &["/a", "/b"], &[]);
        let c = write(30, "db", &["/a", "/b"], &["x"]);
        for store in [&store, &open(dir.path())] {
            let mut records = store.records().expect("lists");
            let headers = records.headers();
            assert_eq!(headers.iter().map(|of| of.position.id).collect::<Vec<_>>(), [a, b, c]);
            assert_eq!(headers[0].source, headers[1].source);
            assert_ne!(headers[1].source, headers[2].source);
            assert_eq!(headers[0].tags, headers[2].tags);
            records.retain(|header| header.source.host == "web" && header.tags.is_empty());
            let left: Vec<_> = records.map(|record| record.expect("reads").0).collect();
            assert_eq!(left, [b]);
        }
        // Values that no snapshot has any more are removed.
        let values = || {
            let index = rusqlite::Connection::open(dir.path().join("index.sqlite")).expect("opens");
            let count = "SELECT count(*) FROM record_values";
            index.query_row(count, [], |row| row.get::<_, i64>(0)).expect("counts")
        };
        assert_eq!(values(), 4);
        std::fs::remove_file(dir.path().join(snapshot::file_name(&c))).expect("removes");
        assert_eq!(ids(&store), (vec![b, a], 0));
        assert_eq!(values(), 3);
    }

    #[test]
    fn a_wrong_header_is_noticed_and_the_index_rebuilt() {
        let dir = new_store();
        let store = open(dir.path());
        let id = write(dir.path(), 10);
        assert_eq!(ids(&store), (vec![id], 0));
        let index = rusqlite::Connection::open(dir.path().join("index.sqlite")).expect("opens");
        let other = crate::snapshot::SnapshotSource {
            instance: None,
            host: "other".into(),
            paths: Vec::new(),
        };
        let other = minicbor::to_vec(&other).expect("encodes");
        index.execute("INSERT INTO record_values VALUES (99, ?1)", [other]).expect("inserts");
        index.execute("UPDATE records SET source = 99", []).expect("updates");
        assert_eq!(ids(&store), (vec![], 1));
        drop((store, index));
        assert_eq!(ids(&open(dir.path())), (vec![id], 0));
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
