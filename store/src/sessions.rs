//! Sessions: running backups, as prunes on this and other machines see them.
//!
//! | name | meaning |
//! |---|---|
//! | `sessions/<id>-000001` | the backup began, and may rely on any segment that is not condemned |
//! | `sessions/<id>-<number>` | it still ran later |
//! | `sessions/<id>-snapshot-<snapshot>` | the snapshot does not count until this object is deleted |
//! | `fence/<id>` | a prune no longer waits for this session, and its backup must fail |
//!
//! A backup keeps this order; `docs/architecture.md` gives the reasons:
//!
//! 1. write the first marker,
//! 2. list the condemnations, and never rely on a segment that they name,
//! 3. list the snapshots, and only then take one of them as parent,
//! 4. rely on a segment only after it was seen to exist since step 2,
//! 5. write the segments,
//! 6. announce the snapshot, and write its record,
//! 7. list the fences, then the own markers; fail if fenced or if the first marker is gone,
//! 8. delete the announcement, then the markers, and only then report success.

use crate::backend::{Backend, Local};
use crate::condemned;
use crate::error::{Error, Result};
use crate::id::{SegmentId, SnapshotId};
use crate::presence::{self, Life, Writer};
use crate::protocol::{Rule, is_kept};
use crate::segment;
use crate::threads;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Directory of the markers in the store.
pub const DIR: &str = "sessions";
/// Directory of the fences in the store.
pub const FENCE_DIR: &str = "fence";

/// Number of the first marker.
const FIRST: u64 = 1;
/// Decimal digits of the number of a marker.
const NUMBER_DIGITS: usize = 6;
/// Pause between two markers of a session.
const BEAT: Duration = Duration::from_secs(5 * 60);

/// Name of an object of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Marker(u64),
    Announced(SnapshotId),
}

/// Reads the untrusted name of an object of a session. Returns the id of the session with it.
fn parse(name: &str) -> Option<(&str, Name)> {
    let (id, rest) = name.split_at_checked(presence::ID_DIGITS)?;
    let rest = rest.strip_prefix('-').filter(|_| presence::is_id(id))?;
    if let Some(snapshot) = rest.strip_prefix("snapshot-") {
        return Some((id, Name::Announced(SnapshotId::from_hex(snapshot).ok()?)));
    }
    let is_number = rest.len() == NUMBER_DIGITS && rest.bytes().all(|byte| byte.is_ascii_digit());
    Some((id, Name::Marker(rest.parse().ok().filter(|_| is_number)?)))
}

fn marker_name(id: &str, number: u64) -> String {
    format!("{DIR}/{id}-{number:0NUMBER_DIGITS$}")
}

fn announcement_name(id: &str, snapshot: &SnapshotId) -> String {
    format!("{DIR}/{id}-snapshot-{snapshot}")
}

fn fence_name(id: &str) -> String {
    format!("{FENCE_DIR}/{id}")
}

/// Objects of a session in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Numbers of its markers.
    pub markers: BTreeSet<u64>,
    /// Snapshots that it announced.
    pub announced: BTreeSet<SnapshotId>,
}

impl Listed {
    /// Returns true if the first marker exists. A session without it counts as fenced.
    pub fn is_open(&self) -> bool {
        self.markers.contains(&FIRST)
    }

    /// Returns the number of the newest marker.
    pub fn newest(&self) -> u64 {
        self.markers.last().copied().unwrap_or(0)
    }
}

/// Returns the sessions in the store, by id. Fails for a name that this program does not know.
pub fn list(backend: &dyn Backend) -> Result<BTreeMap<String, Listed>> {
    let (sessions, unknown) = list_known(backend)?;
    match unknown {
        None => Ok(sessions),
        Some(name) => {
            let reason = "this program does not know such names".into();
            Err(Error::Newer { what: format!("{DIR}/{name}"), reason })
        }
    }
}

/// Like [`list`]. Returns an unknown name beside the sessions.
fn list_known(backend: &dyn Backend) -> Result<(BTreeMap<String, Listed>, Option<String>)> {
    let (mut sessions, mut unknown) = (BTreeMap::<String, Listed>::new(), None);
    for name in presence::names(backend, DIR)? {
        let Some((id, of)) = parse(&name) else {
            unknown = Some(name);
            continue;
        };
        let session = sessions.entry(id.to_owned()).or_default();
        match of {
            Name::Marker(number) => drop(session.markers.insert(number)),
            Name::Announced(snapshot) => drop(session.announced.insert(snapshot)),
        }
    }
    Ok((sessions, unknown))
}

/// Returns the ids of the fenced sessions.
pub fn fences(backend: &dyn Backend) -> Result<HashSet<String>> {
    Ok(presence::names(backend, FENCE_DIR)?.into_iter().collect())
}

/// Returns the snapshots that do not count: those that a session announced. Their backups still run,
/// or did not succeed.
///
/// The caller lists the snapshots before.
pub fn announced(backend: &dyn Backend) -> Result<HashSet<SnapshotId>> {
    // Unknown names are the concern of writers.
    let (sessions, _) = list_known(backend)?;
    Ok(sessions.into_values().flat_map(|session| session.announced).collect())
}

/// Returns the host of a session, for messages, and the state of its process.
pub fn life(backend: &dyn Backend, local: Option<&Local>, id: &str) -> Result<(String, Life)> {
    let name = marker_name(id, FIRST);
    let writer = presence::read::<Writer>(backend, &name)?;
    let unknown = || ("an unknown host".to_owned(), Life::Unknown);
    Ok(writer.map_or_else(unknown, |writer| {
        let life = writer.life(&name, local);
        (writer.host, life)
    }))
}

/// Fences a session: its backup fails unless it has checked for a fence already.
pub fn fence(backend: &dyn Backend, id: &str) -> Result<()> {
    let name = fence_name(id);
    crate::backend::write_all(backend, &name, b"").map_err(Error::store_write(name))
}

/// Deletes the fence of a session without markers, which counts as fenced.
pub fn remove_fence(backend: &dyn Backend, id: &str) -> Result<()> {
    presence::remove(backend, &fence_name(id))
}

/// Deletes an announcement. The snapshot counts from then on, if its record exists.
pub fn remove_announcement(backend: &dyn Backend, id: &str, snapshot: &SnapshotId) -> Result<()> {
    presence::remove(backend, &announcement_name(id, snapshot))
}

/// Deletes the markers of a session that is fenced or has ended, and then its fence. Announcements
/// stay.
pub fn clear(backend: &dyn Backend, id: &str, session: &Listed) -> Result<()> {
    if !is_kept(Rule::MarkerBeforeFence) {
        presence::remove(backend, &fence_name(id))?;
    }
    session
        .markers
        .iter()
        .try_for_each(|number| presence::remove(backend, &marker_name(id, *number)))?;
    presence::remove(backend, &fence_name(id))
}

/// The session of a running backup.
pub struct Session {
    id: String,
    backend: Arc<dyn Backend>,
    /// Segments that a condemnation named when the session began.
    condemned: HashSet<SegmentId>,
    /// True if there was any condemnation.
    has_condemned: bool,
    /// Segments that were seen to exist since then.
    present: RwLock<HashSet<SegmentId>>,
    /// True once a snapshot was announced.
    is_announced: AtomicBool,
    beat: Mutex<Option<Beat>>,
    _held: Option<File>,
}

/// State of a segment for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reliance {
    /// It stays at least until the session ends.
    Safe,
    /// A prune may delete it.
    Condemned,
    /// It does not exist.
    Gone,
}

impl Session {
    /// Begins a session. `host` is the name of this machine; `local` is the store if this machine's
    /// file system holds it.
    pub fn begin(backend: Arc<dyn Backend>, local: Option<&Local>, host: &str) -> Result<Session> {
        let id = presence::new_id()?;
        let writer = Writer::here(host, local);
        let held = match is_kept(Rule::Marker) {
            true => presence::write(&*backend, local, &marker_name(&id, FIRST), &writer)?,
            false => None,
        };
        // From here on, dropping the session deletes its markers.
        let mut session = Session {
            id,
            backend,
            condemned: HashSet::new(),
            has_condemned: false,
            present: RwLock::default(),
            is_announced: AtomicBool::new(false),
            beat: Mutex::default(),
            _held: held,
        };
        let condemnations = match is_kept(Rule::CondemnedFirst) {
            true => condemned::list(&*session.backend, local)?,
            false => Vec::new(),
        };
        session.has_condemned = !condemnations.is_empty();
        session.condemned = condemned::named(&condemnations);
        // Without its markers, prunes elsewhere may fence the session, and the backup fails.
        *session.beat.lock() =
            Beat::start(Arc::clone(&session.backend), session.id.clone(), writer).ok();
        Ok(session)
    }

    /// Returns the segments that condemnations named when the session began.
    pub fn condemned(&self) -> &HashSet<SegmentId> {
        &self.condemned
    }

    /// Notes segments that were listed after the session began.
    pub fn note_listed(&self, segments: impl IntoIterator<Item = SegmentId>) {
        self.present.write().extend(segments);
    }

    /// Returns whether the backup may rely on a segment.
    pub fn reliance(&self, id: &SegmentId) -> Reliance {
        if self.condemned.contains(id) {
            return Reliance::Condemned;
        }
        if self.present.read().contains(id) || !is_kept(Rule::Existence) {
            return Reliance::Safe;
        }
        match self.backend.len(&segment::file_name(id)) {
            Ok(_) => {
                self.present.write().insert(*id);
                Reliance::Safe
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Reliance::Gone,
            // Its chunks are stored again.
            Err(_) => Reliance::Condemned,
        }
    }

    /// Returns true if all chunks of a snapshot that was whole, and that the caller listed after the
    /// session began, stay until the session ends.
    pub fn may_rely_on_whole(&self) -> bool {
        // Condemned segments may hold its chunks, if it was forgotten meanwhile.
        !(self.has_condemned && is_kept(Rule::LookUpWhenCondemned))
    }

    /// Announces a snapshot before its record is written.
    pub fn announce(&self, snapshot: &SnapshotId) -> Result<()> {
        self.is_announced.store(true, Ordering::Relaxed);
        if !is_kept(Rule::AnnounceFirst) {
            return Ok(());
        }
        let name = announcement_name(&self.id, snapshot);
        crate::backend::write_all(&*self.backend, &name, b"").map_err(Error::store_write(name))
    }

    /// Ends the session after the record of the announced snapshot was written. Fails if a prune
    /// fenced the session; the snapshot does not count then.
    pub fn end(&self, snapshot: &SnapshotId) -> Result<()> {
        self.stop_beating();
        // In this order: a prune deletes the markers of a fenced session before the fence.
        let is_early = is_kept(Rule::FenceBeforeMarker);
        let early = is_early.then(|| fences(&*self.backend)).transpose()?;
        let listed = list(&*self.backend)?.remove(&self.id).unwrap_or_default();
        let fences = early.map_or_else(|| fences(&*self.backend), Ok)?;
        let is_fenced = fences.contains(&self.id) && is_kept(Rule::FenceCheck);
        let is_gone = !listed.is_open() && is_kept(Rule::Marker) && is_kept(Rule::MarkerCheck);
        if is_fenced || is_gone {
            return Err(Error::Fenced);
        }
        remove_announcement(&*self.backend, &self.id, snapshot)?;
        // A prune deletes what is left.
        let _ = clear(&*self.backend, &self.id, &listed);
        Ok(())
    }

    fn stop_beating(&self) {
        if let Some(beat) = self.beat.lock().take() {
            beat.stop();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_beating();
        if self.is_announced.load(Ordering::Relaxed) {
            // The record may exist. Only a prune can decide about it.
            return;
        }
        let sessions = list(&*self.backend).unwrap_or_default();
        if let Some(listed) = sessions.get(&self.id) {
            // Best effort: a prune deletes what is left.
            for number in &listed.markers {
                let _ = presence::remove(&*self.backend, &marker_name(&self.id, *number));
            }
        }
    }
}

/// The thread that writes the markers of a session.
struct Beat {
    is_over: Arc<(Mutex<bool>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Beat {
    fn start(backend: Arc<dyn Backend>, id: String, writer: Writer) -> Result<Beat> {
        let is_over = Arc::new((Mutex::new(false), Condvar::new()));
        let state = Arc::clone(&is_over);
        let thread = threads::spawn(move || {
            let (is_over, changed) = &*state;
            let mut number = FIRST;
            let mut over = is_over.lock();
            while !*over {
                if !changed.wait_for(&mut over, BEAT).timed_out() || *over {
                    continue;
                }
                parking_lot::MutexGuard::unlocked(&mut over, || {
                    // A later marker may succeed.
                    let name = marker_name(&id, number + 1);
                    if presence::write(&*backend, None, &name, &writer).is_ok() {
                        if number > FIRST {
                            let _ = presence::remove(&*backend, &marker_name(&id, number));
                        }
                        number += 1;
                    }
                });
            }
        })?;
        Ok(Beat { is_over, thread })
    }

    fn stop(self) {
        let (is_over, changed) = &*self.is_over;
        *is_over.lock() = true;
        changed.notify_all();
        let _ = self.thread.join();
    }
}
