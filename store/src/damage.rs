//! Damage of older snapshots found by a backup, summed up in one line at its end instead of one
//! line per chunk.

use crate::error::Error;
use crate::id::{ChunkId, SegmentId};
use crate::segment;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Number of chunks and files counted exactly; further ones may be counted twice.
const KNOWN_MAX: usize = 1 << 20;
/// Maximum number of segments named in the summary.
const NAMED_MAX: usize = 3;

/// Damage found so far. Any thread may add to it.
#[derive(Debug, Default)]
pub(crate) struct DamageLog {
    met: Mutex<Met>,
    /// True if damage was found in a segment.
    has_segments: AtomicBool,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Met {
    known: HashSet<u64>,
    damage: Damage,
}

/// Damage that a backup found and stored again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Damaged segments.
    pub segments: BTreeSet<SegmentId>,
    /// Number of chunks in damaged segments or in no segment.
    pub chunks: u64,
    /// Number of unchanged files that were stored again.
    pub files: u64,
    /// Number of existing snapshots that may have missing data.
    pub older_snapshots: u64,
    /// Number of entries of the new snapshot that need lost chunks. They were taken over unchanged
    /// before the damage was found.
    pub lost: u64,
}

impl DamageLog {
    /// Records an unusable chunk.
    pub fn chunk(&self, id: &ChunkId, segment: Option<SegmentId>) {
        segment.into_iter().for_each(|segment| self.segment(segment));
        let mut met = self.met.lock();
        let is_new = met.is_new(self.hasher.hash_one(id));
        met.damage.chunks += u64::from(is_new);
    }

    /// Records the object of an error, if the error is damage.
    pub fn error(&self, error: &Error) {
        match error {
            Error::ChunkDamaged { chunk, segment, .. } => self.chunk(chunk, Some(*segment)),
            Error::ChunkMissing(chunk) => self.chunk(chunk, None),
            Error::SegmentDamaged { segment, .. } => self.segment(*segment),
            Error::StoreRead { name, .. } if error.is_damage() => {
                segment::id_of(name).into_iter().for_each(|id| self.segment(id));
            }
            _ => {}
        }
    }

    fn segment(&self, id: SegmentId) {
        self.met.lock().damage.segments.insert(id);
        self.has_segments.store(true, Relaxed);
    }

    /// Returns true if damage was found in a segment.
    pub fn has_segments(&self) -> bool {
        self.has_segments.load(Relaxed)
    }

    /// Returns true if damage was found in this segment.
    pub fn has(&self, segment: &SegmentId) -> bool {
        self.has_segments() && self.met.lock().damage.segments.contains(segment)
    }

    /// Records an unchanged file that is stored again.
    pub fn file(&self, path: &[u8]) {
        let mut met = self.met.lock();
        let is_new = met.is_new(self.hasher.hash_one(path));
        met.damage.files += u64::from(is_new);
    }

    /// Returns the total, or `None` if there was no damage.
    pub fn summary(&self, older_snapshots: impl FnOnce() -> u64) -> Option<Damage> {
        let damage = self.met.lock().damage.clone();
        let is_any = damage != Damage::default();
        is_any.then(|| Damage { older_snapshots: older_snapshots(), ..damage })
    }
}

impl Met {
    fn is_new(&mut self, hash: u64) -> bool {
        if self.known.len() < KNOWN_MAX { self.known.insert(hash) } else { true }
    }
}

fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segments.is_empty() {
            write!(f, "{} of older snapshots missing", count(self.chunks, "chunk"))?;
        } else {
            let named: Vec<String> =
                self.segments.iter().take(NAMED_MAX).map(SegmentId::to_string).collect();
            let word = if self.segments.len() == 1 { "segment" } else { "segments" };
            write!(f, "{word} {}", named.join(", "))?;
            let more = self.segments.len() - named.len();
            if more > 0 {
                write!(f, " and {more} more")?;
            }
            write!(f, " damaged: {} in doubt", count(self.chunks, "chunk"))?;
        }
        write!(
            f,
            "; {} stored again; up to {} may lack data: run `forgekeep check`",
            count(self.files, "unchanged file"),
            count(self.older_snapshots, "older snapshot")
        )?;
        if self.lost > 0 {
            let paths = count(self.lost, "path");
            write!(f, "; this snapshot lacks {paths} as well: run the backup again")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_files_count_once() {
        let log = DamageLog::default();
        assert_eq!(log.summary(|| 2), None);
        let segment = SegmentId::of(b"segment");
        for _ in 0..2 {
            for chunk in [b"a", b"b"] {
                log.chunk(&ChunkId::of(chunk), Some(segment));
            }
            log.file(b"a/file");
        }
        log.error(&Error::Interrupted);
        let damage = log.summary(|| 2).expect("there is some");
        assert_eq!((damage.chunks, damage.files), (2, 1));
        assert_eq!(
            damage.to_string(),
            format!(
                "segment {segment} damaged: 2 chunks in doubt; 1 unchanged file stored \
                 again; up to 2 older snapshots may lack data: run `forgekeep check`"
            )
        );
    }

    #[test]
    fn few_segments_are_named() {
        let log = DamageLog::default();
        for n in 0..10u8 {
            log.chunk(&ChunkId::of(&[n]), Some(SegmentId::of(&[n])));
        }
        let text = log.summary(|| 0).expect("there is some").to_string();
        assert!(text.contains(" and 7 more damaged: 10 chunks"), "{text}");
    }
}
