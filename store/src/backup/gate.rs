//! Last check of an entry before it enters the tree.
//!
//! A reader refuses entries beyond the limits of the format, so none may be written. Metadata
//! beyond the limits is dropped and the content kept. An entry that cannot be stored at all is
//! reported as unreadable, and the run continues.

use super::absolute;
use super::guard::SourceCounts;
use super::run::{Counters, Totals};
use crate::chunks::PutMetadata;
use crate::entry::{Amendment, Displayed, Entry, is_within};
use crate::error::{Error, Result};
use crate::observe::{Event, Observer};
use crate::tree::TreeWriter;
use std::sync::atomic::Ordering::Relaxed;

/// Writes entries into a tree and reports entries that the tree cannot hold.
pub struct Gate<'a> {
    tree: TreeWriter,
    totals: Totals,
    sources: SourceCounts,
    counters: &'a Counters,
    observer: &'a dyn Observer,
    /// Last refused entry, until the number of entries below it is known.
    refused: Option<Refused>,
}

struct Refused {
    path: Vec<u8>,
    reason: String,
    /// Number of entries below it so far.
    below: u64,
}

impl<'a> Gate<'a> {
    /// Creates a gate in front of an empty tree.
    pub fn new(counters: &'a Counters, observer: &'a dyn Observer) -> Gate<'a> {
        let (tree, totals) = Default::default();
        let sources = SourceCounts::new(&*counters.sources.lock());
        Gate { tree, totals, sources, counters, observer, refused: None }
    }

    /// Takes the next entry in path order.
    pub fn push(&mut self, mut entry: Entry, out: &dyn PutMetadata) -> Result<()> {
        if let Some(refused) = &mut self.refused {
            if is_within(&entry.path, &refused.path) {
                refused.below += 1;
                return Ok(());
            }
            self.report_refused();
        }
        let amendment = entry.amend();
        match self.tree.push(&entry, out) {
            Ok(()) => {
                self.report_amended(&entry, &amendment);
                self.totals.add(&entry);
                self.sources.push(&entry);
                Ok(())
            }
            Err(Error::Unfit { reason, .. }) => {
                self.refused = Some(Refused { path: entry.path, reason, below: 0 });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Reports a path that is missing from the tree.
    pub fn report_unreadable(&self, path: &[u8], error: &std::io::Error) {
        self.counters.report_unreadable(self.observer, path, error);
    }

    /// Closes the tree and returns its root and totals.
    pub fn finish(mut self, out: &dyn PutMetadata) -> Result<(crate::id::ChunkId, Totals)> {
        self.report_refused();
        let sources = self.sources.finish();
        Ok((self.tree.finish(out)?, Totals { sources, ..self.totals }))
    }

    /// Reports a refused entry once, with the number of entries lost below it.
    fn report_refused(&mut self) {
        let Some(Refused { path, reason, below }) = self.refused.take() else { return };
        self.counters.unreadable.fetch_add(1 + below, Relaxed);
        let reason = match below {
            0 => reason,
            1 => format!("{reason}; also skipped 1 entry below it"),
            _ => format!("{reason}; also skipped {below} entries below it"),
        };
        let (path, reason) = (absolute(&path), reason.into());
        self.observer.event(Event::Unreadable { path, reason });
    }

    fn report_amended(&self, entry: &Entry, amendment: &Amendment) {
        if amendment.is_time_clamped {
            let path = absolute(&entry.path);
            let note = "a timestamp has more than 999999999 nanoseconds; storing 999999999";
            self.observer.event(Event::Note(format!("{}: {note}", path.displayed())));
        }
        if amendment.is_owner_changed {
            let reason = "owner: invalid number or overlong name; storing nobody";
            self.counters.report_metadata(self.observer, &entry.path, reason);
        }
        if amendment.xattrs_dropped > 0 {
            let (dropped, kept) = (amendment.xattrs_dropped, entry.xattrs.len());
            let all = dropped + kept;
            let reason = format!("{dropped} of {all} extended attributes exceed the size limit");
            self.counters.report_metadata(self.observer, &entry.path, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryKind, Time};
    use crate::id::ChunkId;
    use crate::observe::Progress;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Heard(Mutex<Vec<Event>>, Progress);

    impl Observer for Heard {
        fn event(&self, event: Event) {
            self.0.lock().push(event);
        }

        fn progress(&self) -> &Progress {
            &self.1
        }
    }

    #[test]
    fn unstorable_entries_and_metadata_are_reported_once() {
        let (heard, counters) = (Heard::default(), Counters::default());
        let mut gate = Gate::new(&counters, &heard);
        let put = |bytes: &[u8]| Ok(ChunkId::of(bytes));
        let dir = |path: &str, mode| Entry::new(path.into(), EntryKind::Directory, mode);
        let odd = Time { seconds: 0, nanoseconds: 1 << 30 };
        let many = (0..80).map(|n| (vec![b'a' + n], vec![0; 60_000])).collect();
        let full = Entry { mtime: Some(odd), xattrs: many, ..dir("full", 0o755) };
        for entry in [
            dir("bad", u32::MAX),
            dir("bad/a", 0o755),
            dir("bad/a/b", 0o755),
            full,
            dir("z", 0o755),
        ] {
            gate.push(entry, &put).expect("goes on");
        }
        let (_, totals) = gate.finish(&put).expect("puts");
        assert_eq!((totals.entries, counters.unreadable.into_inner()), (2, 3));
        assert_eq!(counters.metadata_unreadable.into_inner(), 1);
        let heard = heard.0.into_inner();
        let reason = "its mode is invalid; also skipped 2 entries below it".into();
        assert_eq!(heard[0], Event::Unreadable { path: "/bad".into(), reason });
        assert!(matches!(&heard[1], Event::Note(note) if note.starts_with("/full: a time")));
        let reason = "63 of 80 extended attributes exceed the size limit".into();
        assert_eq!(heard[2], Event::MetadataUnreadable { path: "/full".into(), reason });
        assert_eq!(heard.len(), 3);
    }
}
