//! The snapshot: a small record that names a finished backup.
//!
//! Nothing else in the store can replace this file. The file therefore holds the record twice, as
//! two zstd frames.

use crate::backend::{self, Backend};
use crate::codec::{Codec, claimed_plain_len, frame_len};
use crate::entry::Time;
use crate::error::{Error, Result};
use crate::id::{ChunkId, SnapshotId};
use crate::limits;
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use schemars::JsonSchema;
use serde::Serialize;

/// Directory of the records in the store.
pub const DIR: &str = "snapshots";
/// Version of the record.
pub const VERSION: u64 = 1;

/// Record of a backup, without its tree.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Snapshot {
    /// Version of this record.
    #[n(0)]
    pub version: u64,
    /// Start of the backup.
    #[n(1)]
    pub start: Stamp,
    /// End of the backup.
    #[n(2)]
    pub end: Stamp,
    /// Name of the machine.
    #[n(3)]
    pub host: String,
    /// Name of the user who ran the backup.
    #[n(4)]
    pub user: String,
    /// Absolute source paths; for standard input, the given name.
    #[n(5)]
    pub paths: Vec<ByteVec>,
    /// Labels for finding the snapshot.
    #[n(6)]
    pub tags: Vec<String>,
    /// Root page of the tree.
    #[n(7)]
    pub root: Id,
    /// Snapshot from which unchanged files were taken.
    #[n(8)]
    pub parent: Option<Id>,
    /// Version of the program.
    #[n(9)]
    pub program: String,
    /// Statistics of the backup.
    #[n(10)]
    pub statistics: Statistics,
    /// Number of source paths that could not be read and are missing here.
    #[n(11)]
    pub unreadable_count: u64,
    /// Globs that the user excluded, as text. Globs that are not UTF-8 are in `skipped`.
    #[n(12)]
    pub excludes: Vec<String>,
    /// The instance, if this is the backup of one.
    #[n(13)]
    pub instance: Option<Instance>,
    /// All other skipped content.
    #[n(14)]
    #[cbor(default)]
    pub skipped: Skipped,
    /// Random id of the run, which the snapshots of several machines may share.
    #[n(15)]
    pub run: Option<ByteArray<16>>,
    /// State of each source path, in the order of `paths`. Empty if an older program made the
    /// snapshot, or if it holds a stream.
    #[n(16)]
    #[cbor(default)]
    pub sources: Vec<SourceState>,
    /// Sources that had lost most of their files, or their mount. Later backups and retention rules
    /// ignore a snapshot with any of them.
    #[n(17)]
    #[cbor(default)]
    pub emptied: Vec<Emptied>,
    /// True if every loss was allowed: later backups count losses from this snapshot on, even if it is
    /// incomplete.
    #[n(18)]
    #[cbor(default)]
    pub is_loss_allowed: bool,
}

/// Number of files and their bytes. Everything but a directory counts as a file, except objects and
/// references of git, which housekeeping joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(array)]
pub struct Amount {
    /// Number of files.
    #[n(0)]
    pub files: u64,
    /// Sum of the sizes of all files in bytes, with those of git.
    #[n(1)]
    pub bytes: u64,
    /// Number of objects and references of git.
    #[n(2)]
    #[cbor(default)]
    pub joined: u64,
    /// Part of `bytes` in these.
    #[n(3)]
    #[cbor(default)]
    pub joined_bytes: u64,
}

/// A source path at the time of the backup, for a comparison with later ones.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct SourceState {
    /// Files in it, without those in other source paths below.
    #[n(0)]
    #[cbor(default)]
    pub amount: Amount,
    /// Topmost directory of its file system, unless it is on the root file system.
    #[n(1)]
    pub mount: Option<ByteVec>,
    /// Type of that file system, as a number of the kernel.
    #[n(2)]
    pub file_system: Option<u64>,
}

/// A source that had lost most of its files, or its mount.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Emptied {
    /// Absolute path of the source, or of a directory in it.
    #[n(0)]
    pub path: ByteVec,
    /// Kind of the loss.
    #[n(1)]
    pub cause: Cause,
    /// Files that it had, without those that this backup skipped.
    #[n(2)]
    pub then: Amount,
    /// Files that it has.
    #[n(3)]
    pub now: Amount,
    /// Snapshot with which it was compared.
    #[n(4)]
    pub since: Option<Id>,
}

/// Kind of a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The path does not exist.
    Gone,
    /// It has no files.
    Empty,
    /// It lost more of its files or bytes than it may.
    Shrunk,
    /// The file system on which it was is not mounted.
    Unmounted,
    /// A file system of another type is mounted there.
    OtherFileSystem,
    /// A newer program recorded it.
    Unknown,
}

impl Cause {
    const ALL: [Cause; 6] = [
        Cause::Unknown,
        Cause::Gone,
        Cause::Empty,
        Cause::Shrunk,
        Cause::Unmounted,
        Cause::OtherFileSystem,
    ];

    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Gone => "gone",
            Cause::Empty => "empty",
            Cause::Shrunk => "shrunk",
            Cause::Unmounted => "unmounted",
            Cause::OtherFileSystem => "other-file-system",
            Cause::Unknown => "unknown",
        }
    }
}

impl<C> Encode<C> for Cause {
    fn encode<W: minicbor::encode::Write>(
        &self,
        out: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let number = Cause::ALL.iter().position(|cause| cause == self).unwrap_or_default();
        out.u64(number as u64)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Cause {
    fn decode(
        input: &mut minicbor::Decoder<'b>,
        _: &mut C,
    ) -> Result<Cause, minicbor::decode::Error> {
        let number = usize::try_from(input.u64()?).unwrap_or(usize::MAX);
        Ok(Cause::ALL.get(number).copied().unwrap_or(Cause::Unknown))
    }
}

/// Content that a backup skipped, besides the user's patterns. A restore that deletes files spares
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Skipped {
    /// Globs of single passes, and globs that are not UTF-8.
    #[n(0)]
    #[cbor(default)]
    pub patterns: Vec<ByteVec>,
    /// Skipped paths of the tree with everything below, or with their content alone skipped.
    #[n(1)]
    #[cbor(default)]
    pub paths: Vec<ByteVec>,
    /// True if other file systems were skipped.
    #[n(2)]
    #[cbor(default)]
    pub one_file_system: bool,
    /// True if the content of directories marked as caches was skipped.
    #[n(3)]
    #[cbor(default)]
    pub caches: bool,
    /// True if caches of git were skipped.
    #[n(4)]
    #[cbor(default)]
    pub git_caches: bool,
    /// True if patterns or paths are missing here because they did not fit.
    #[n(5)]
    #[cbor(default)]
    pub is_cut: bool,
}

/// A service whose backup a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Instance {
    /// Name of the instance in the configuration.
    #[n(0)]
    pub name: String,
    /// Kind of the instance.
    #[n(1)]
    pub kind: String,
    /// True if everything that belongs to the instance was present.
    #[n(2)]
    pub is_complete: bool,
}

/// Origin of a snapshot: its instance, its machine and its source paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct SnapshotSource {
    /// Name of the instance, if this is the backup of one.
    #[n(0)]
    pub instance: Option<String>,
    /// Name of the machine.
    #[n(1)]
    pub host: String,
    /// Source paths, sorted, each once.
    #[n(2)]
    pub paths: Vec<ByteVec>,
}

impl SnapshotSource {
    /// Returns the origin of the series that a snapshot continues: the same instance of a machine,
    /// whose paths may change, or the same paths.
    pub fn series(&self) -> SnapshotSource {
        let paths = if self.instance.is_some() { Vec::new() } else { self.paths.clone() };
        SnapshotSource { instance: self.instance.clone(), host: self.host.clone(), paths }
    }
}

/// A point in time within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct Stamp {
    /// Seconds since 1970, UTC.
    #[n(0)]
    pub seconds: i64,
    /// Nanoseconds within the second.
    #[n(1)]
    pub nanoseconds: u32,
}

impl From<Time> for Stamp {
    fn from(time: Time) -> Stamp {
        Stamp { seconds: time.seconds, nanoseconds: time.nanoseconds }
    }
}

impl From<Stamp> for Time {
    fn from(stamp: Stamp) -> Time {
        Time { seconds: stamp.seconds, nanoseconds: stamp.nanoseconds }
    }
}

/// An id within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Id(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

impl Id {
    /// Returns it as the id of a chunk.
    pub fn chunk(self) -> ChunkId {
        ChunkId::from_bytes(self.0)
    }

    /// Returns it as the id of a snapshot.
    pub fn snapshot(self) -> SnapshotId {
        SnapshotId::from_bytes(self.0)
    }
}

/// Statistics of a backup. Their names as JSON are those that other backup programs use, where these
/// have the figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize, JsonSchema)]
#[cbor(map)]
pub struct Statistics {
    /// Files that the parent did not have.
    #[n(0)]
    #[cbor(default)]
    pub files_new: u64,
    /// Files that were read again.
    #[n(1)]
    #[cbor(default)]
    pub files_changed: u64,
    /// Files taken over unchanged.
    #[n(2)]
    #[cbor(default)]
    pub files_unmodified: u64,
    /// Directories that the parent did not have.
    #[n(3)]
    #[cbor(default)]
    pub dirs_new: u64,
    /// Directories with changed metadata.
    #[n(4)]
    #[cbor(default)]
    pub dirs_changed: u64,
    /// Unchanged directories.
    #[n(5)]
    #[cbor(default)]
    pub dirs_unmodified: u64,
    /// Links, devices and other entries.
    #[n(6)]
    #[cbor(default)]
    pub others: u64,
    /// All entries.
    #[n(7)]
    #[cbor(default)]
    #[serde(rename = "total_entries")]
    pub entries: u64,
    /// Sum of the sizes of all files.
    #[n(8)]
    #[cbor(default)]
    #[serde(rename = "total_bytes_processed")]
    pub bytes: u64,
    /// Chunks that the store did not have.
    #[n(9)]
    #[cbor(default)]
    #[serde(rename = "data_blobs")]
    pub chunks_new: u64,
    /// Plain bytes of new chunks.
    #[n(10)]
    #[cbor(default)]
    #[serde(rename = "data_added")]
    pub added_bytes: u64,
    /// Stored bytes of new chunks.
    #[n(11)]
    #[cbor(default)]
    #[serde(rename = "data_added_packed")]
    pub added_stored_bytes: u64,
    /// Files that changed while they were read.
    #[n(12)]
    #[cbor(default)]
    #[serde(rename = "files_changed_while_read")]
    pub changed_while_read: u64,
    /// Bytes of files that were read.
    #[n(13)]
    #[cbor(default)]
    pub bytes_read: u64,
    /// Part of `bytes_read` in chunks that the store already had, without bytes found by extent.
    #[n(14)]
    #[cbor(default)]
    #[serde(rename = "bytes_found_by_chunk")]
    pub found_by_chunk: u64,
    /// Part of `bytes_read` found in files of the parent and stored as slices of their chunks.
    #[n(15)]
    #[cbor(default)]
    #[serde(rename = "bytes_found_by_extent")]
    pub found_by_extent: u64,
    /// Part of `found_by_extent` copied forward into new chunks, because the old chunks had little
    /// other use.
    #[n(16)]
    #[cbor(default)]
    #[serde(rename = "bytes_copied_forward")]
    pub copied_forward: u64,
    /// Bytes of referenced chunks that files do not need, summed over all files.
    #[n(17)]
    #[cbor(default)]
    #[serde(rename = "bytes_unused")]
    pub unused: u64,
    /// Entries that lack some metadata because it could not be read.
    #[n(18)]
    #[cbor(default)]
    #[serde(rename = "entries_without_some_metadata")]
    pub metadata_unreadable: u64,
}

/// Maximum lead of another machine's clock over this one, in seconds.
pub(crate) const CLOCK_TOLERANCE: i64 = 10 * 60;

/// Returns true if a snapshot that starts at this second is from the future, see
/// [`Snapshot::is_from_future`].
pub fn is_future(start_seconds: i64, now: Time) -> bool {
    start_seconds > now.seconds.saturating_add(CLOCK_TOLERANCE)
}

impl Snapshot {
    /// Returns true if the start lies ahead of `now` by more than clocks may differ. A snapshot
    /// made under a wrong clock would be the newest one for years.
    pub fn is_from_future(&self, now: Time) -> bool {
        is_future(self.start.seconds, now)
    }

    /// Returns true if everything that belongs to the snapshot was read.
    pub fn is_complete(&self) -> bool {
        let is_whole = |instance: &Instance| instance.is_complete;
        self.unreadable_count == 0 && self.instance.as_ref().is_none_or(is_whole)
    }

    /// Returns true if a source had lost most of its files, or its mount.
    pub fn is_emptied(&self) -> bool {
        !self.emptied.is_empty()
    }

    /// Returns true if the snapshot is complete and no source was emptied.
    pub fn is_sound(&self) -> bool {
        self.is_complete() && !self.is_emptied()
    }

    /// Returns the origin of the snapshot.
    pub fn source(&self) -> SnapshotSource {
        let instance = self.instance.as_ref().map(|instance| instance.name.clone());
        let mut paths = self.paths.clone();
        paths.sort_unstable();
        paths.dedup();
        SnapshotSource { instance, host: self.host.clone(), paths }
    }

    fn to_record(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing to memory cannot fail")
    }

    /// Returns the id that the record will have.
    pub fn id(&self) -> SnapshotId {
        SnapshotId::of(&self.to_record())
    }

    /// Writes the record. The snapshot exists when this returns.
    pub fn write(&self, backend: &dyn Backend, codec: Codec) -> Result<SnapshotId> {
        let record = self.to_record();
        let id = SnapshotId::of(&record);
        let mut frame = Vec::new();
        codec.encode(&record, &mut frame);
        let name = file_name(&id);
        backend::write_all(backend, &name, &frame.repeat(2)).map_err(Error::store_write(name))?;
        Ok(id)
    }

    /// Reads a record. One of the two copies suffices. The second value is true if both are intact.
    pub fn read(backend: &dyn Backend, codec: Codec, id: &SnapshotId) -> Result<(Snapshot, bool)> {
        let name = file_name(id);
        let bytes = backend::read_all(backend, &name, 2 * limits::STORED_BYTES_MAX)
            .map_err(Error::store_read(name))?;
        let (record, is_whole) = copies(codec, &bytes, id);
        let Some(record) = record else {
            let reason = "no copy of its record is intact".into();
            return Err(Error::SnapshotDamaged { id: *id, reason });
        };
        let malformed = |reason: String| Error::SnapshotDamaged { id: *id, reason };
        let snapshot: Snapshot =
            minicbor::decode(&record).map_err(|error| malformed(error.to_string()))?;
        if snapshot.version != VERSION {
            let what = format!("snapshot {id}");
            return Err(Error::newer_version(what, snapshot.version, VERSION));
        }
        Ok((snapshot, is_whole))
    }
}

/// Rewrites the file of a record of which only one copy is intact. Returns false if there is nothing
/// to rewrite.
pub(crate) fn mend(backend: &dyn Backend, codec: Codec, id: &SnapshotId) -> Result<bool> {
    let name = file_name(id);
    let bytes = backend::read_all(backend, &name, 2 * limits::STORED_BYTES_MAX)
        .map_err(Error::store_read(name.clone()))?;
    let (Some(record), false) = copies(codec, &bytes, id) else { return Ok(false) };
    let mut frame = Vec::new();
    codec.encode(&record, &mut frame);
    let written = backend::write_all(backend, &name, &frame.repeat(2));
    written.map(|()| true).map_err(Error::store_write(name))
}

/// Returns an intact copy of the record, and true if the file consists of exactly two such copies.
fn copies(codec: Codec, bytes: &[u8], id: &SnapshotId) -> (Option<Vec<u8>>, bool) {
    let open = |frame: &[u8]| {
        let (len, mut plain) = (claimed_plain_len(frame)?, Vec::new());
        codec.decode(&ChunkId::from_bytes(*id.as_bytes()), frame, len, &mut plain).ok()?;
        Some(plain)
    };
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let is_whole = first == second && frame_len(first) == Some(first.len());
    if let Some(record) = open(first) {
        return (Some(record), is_whole);
    }
    // The file is truncated, or its first copy is damaged.
    let whole_first = frame_len(bytes).and_then(|len| open(&bytes[..len]));
    (whole_first.or_else(|| open(second)), false)
}

/// Returns the file name of a snapshot, relative to the store.
pub fn file_name(id: &SnapshotId) -> String {
    format!("{DIR}/{id}")
}

/// Returns the ids of all snapshots, sorted. The list is complete, or the call fails.
pub fn list(backend: &dyn Backend) -> Result<Vec<SnapshotId>> {
    let names = backend.names(DIR).map_err(Error::store_read(DIR))?;
    let ids = names.iter().filter_map(|name| SnapshotId::from_hex(name).ok());
    let mut ids: Vec<SnapshotId> = ids.collect();
    ids.sort_unstable();
    Ok(ids)
}

/// A snapshot for tests.
#[cfg(test)]
pub(crate) fn example() -> Snapshot {
    let at = Stamp { seconds: 1_700_000_000, nanoseconds: 5 };
    Snapshot {
        version: VERSION,
        start: at,
        end: at,
        host: "forge".into(),
        user: "root".into(),
        paths: vec![b"/srv/\xff".to_vec().into()],
        tags: vec!["nightly".into()],
        root: Id([1; 32]),
        parent: None,
        program: "0".into(),
        statistics: Statistics { files_new: 3, ..Statistics::default() },
        unreadable_count: 0,
        excludes: vec![],
        instance: None,
        skipped: Skipped::default(),
        run: None,
        sources: Vec::new(),
        emptied: Vec::new(),
        is_loss_allowed: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, changed, changes, noise};
    use crate::backend::Memory;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    const CODEC: Codec = Codec::new(3);

    #[test]
    fn damage_to_one_copy_is_detected_and_loses_nothing() {
        let memory = Memory::default();
        let id = example().write(&memory, CODEC).expect("writes");
        assert_eq!(list(&memory).expect("lists"), [id]);
        assert_eq!(Snapshot::read(&memory, CODEC, &id).expect("reads"), (example(), true));
        let name = file_name(&id);
        let whole = memory.with_files(|files| files[&name].clone());
        for at in 0..whole.len() {
            memory.with_files(|files| {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x10;
                files.insert(name.clone(), bytes);
            });
            assert_eq!(
                Snapshot::read(&memory, CODEC, &id).expect("a copy"),
                (example(), false),
                "{at}"
            );
        }
        for len in 0..whole.len() {
            memory.with_files(|files| files.insert(name.clone(), whole[..len].to_vec()));
            match Snapshot::read(&memory, CODEC, &id) {
                Ok(read) => assert_eq!(read, (example(), false), "{len}"),
                Err(error) => {
                    assert!(len < whole.len() / 2, "{len}");
                    assert!(matches!(error, Error::SnapshotDamaged { .. }), "{error}");
                }
            }
        }
    }

    #[test]
    fn clocks_may_differ_by_some_minutes() {
        let of = |seconds| Snapshot { start: Stamp { seconds, nanoseconds: 0 }, ..example() };
        let now = Time { seconds: 1_700_000_000, nanoseconds: 0 };
        for (ahead, is_future) in [(-1, false), (0, false), (600, false), (601, true)] {
            assert_eq!(of(now.seconds + ahead).is_from_future(now), is_future, "{ahead}");
        }
        assert!(of(i64::MAX).is_from_future(now) && !of(i64::MIN).is_from_future(now));
        let end = Time { seconds: i64::MAX, nanoseconds: 0 };
        assert!(!of(i64::MAX).is_from_future(end));
    }

    #[test]
    fn missing_statistics_are_0() {
        let none = minicbor::decode::<Statistics>(&[0xA0]).expect("reads");
        assert_eq!(none, Statistics::default());
        // One field each: an old one, a later one, and an unknown one.
        let some = minicbor::decode::<Statistics>(&[0xA3, 8, 5, 17, 6, 0x18, 99, 7]);
        assert_eq!(some.expect("reads"), Statistics { bytes: 5, unused: 6, ..none });
    }

    fn text() -> impl Strategy<Value = String> {
        vec(any::<char>(), 0..9).prop_map(String::from_iter)
    }

    fn snapshots() -> impl Strategy<Value = Snapshot> {
        let stamp = (any::<i64>(), 0..1_000_000_000u32)
            .prop_map(|(seconds, nanoseconds)| Stamp { seconds, nanoseconds });
        let instance = (text(), text(), any::<bool>())
            .prop_map(|(name, kind, is_complete)| Instance { name, kind, is_complete });
        let words = (text(), text(), text(), vec(text(), 0..4), vec(text(), 0..4));
        let paths = vec(noise().prop_map(ByteVec::from), 0..4);
        let ids = (any::<[u8; 32]>(), option::of(any::<[u8; 32]>()));
        let numbers = any::<[u64; 3]>();
        let skipped = (vec(noise(), 0..3), vec(noise(), 0..3), any::<[bool; 4]>()).prop_map(
            |(patterns, paths, [one_file_system, caches, git_caches, is_cut])| Skipped {
                patterns: patterns.into_iter().map(ByteVec::from).collect(),
                paths: paths.into_iter().map(ByteVec::from).collect(),
                one_file_system,
                caches,
                git_caches,
                is_cut,
            },
        );
        let ids = (ids, option::of(instance), skipped);
        (stamp.clone(), stamp, words, paths, ids, numbers).prop_map(
            |(start, end, words, paths, (ids, instance, skipped), numbers)| {
                let ((root, parent), [files_new, bytes, unreadable_count]) = (ids, numbers);
                let (host, user, program, tags, excludes) = words;
                let (joined, joined_bytes) = (bytes % 7, bytes / 2);
                let amount = Amount { files: files_new, bytes, joined, joined_bytes };
                let state = SourceState {
                    amount,
                    mount: parent.map(|id| id.to_vec().into()),
                    file_system: parent.map(|id| id[1].into()),
                };
                let emptied = Emptied {
                    path: root.to_vec().into(),
                    cause: Cause::ALL[bytes as usize % Cause::ALL.len()],
                    then: amount,
                    now: Amount::default(),
                    since: parent.map(Id),
                };
                Snapshot {
                    version: VERSION,
                    start,
                    end,
                    host,
                    user,
                    paths,
                    tags,
                    root: Id(root),
                    parent: parent.map(Id),
                    program,
                    statistics: Statistics { files_new, bytes, ..Statistics::default() },
                    unreadable_count,
                    excludes,
                    instance,
                    skipped,
                    run: parent.map(|id| [id[0]; 16].into()),
                    sources: vec![state; usize::from(bytes as u8 % 3)],
                    emptied: vec![emptied; usize::from(bytes as u8 % 2)],
                    is_loss_allowed: bytes % 5 == 0,
                }
            },
        )
    }

    /// Stores bytes in the place of a snapshot, then reads it.
    fn read_as(id: &SnapshotId, bytes: Vec<u8>) -> Result<(Snapshot, bool)> {
        let memory = Memory::default();
        memory.with_files(|files| files.insert(file_name(id), bytes));
        Snapshot::read(&memory, CODEC, id)
    }

    proptest! {
        #![proptest_config(cases(100))]

        #[test]
        fn any_snapshot_is_read_as_written(snapshot in snapshots()) {
            let memory = Memory::default();
            let id = snapshot.write(&memory, CODEC).expect("writes");
            prop_assert_eq!(Snapshot::read(&memory, CODEC, &id).expect("reads"), (snapshot, true));
        }

        #[test]
        fn any_bytes_are_the_snapshot_or_an_error(
            snapshot in snapshots(),
            noise in noise(),
            changes in changes(),
        ) {
            let memory = Memory::default();
            let id = snapshot.write(&memory, CODEC).expect("writes");
            let file = memory.with_files(|files| files[&file_name(&id)].clone());
            for bytes in [noise, changed(file, &changes)] {
                if let Ok((read, _)) = read_as(&id, bytes) {
                    prop_assert_eq!(&read, &snapshot);
                }
            }
        }

        #[test]
        fn any_record_is_a_snapshot_or_an_error(
            snapshot in snapshots(),
            noise in noise(),
            changes in changes(),
        ) {
            // Under its correct id, as an attacker would write it.
            for record in [noise, changed(snapshot.to_record(), &changes)] {
                let mut frame = Vec::new();
                CODEC.encode(&record, &mut frame);
                if let Ok((read, is_whole)) = read_as(&SnapshotId::of(&record), frame.repeat(2)) {
                    prop_assert!(is_whole && read.version == VERSION);
                }
            }
        }
    }
}
