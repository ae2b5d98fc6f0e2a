//! A backend whose callers take turns: exactly one actor runs at a time, and a seed decides which.

use crate::backend::{Backend, Listed, Pending};
use crate::codec::Codec;
use crate::id::{ChunkId, SnapshotId};
use crate::protocol::{Actor, Rule};
use crate::segment::{self, Row, TRAILER_LEN, Table, Trailer};
use crate::sessions;
use crate::snapshot;
use crate::{condemned, store};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Number of seconds without a step after which actors wait for each other. They are counted one by
/// one: the whole machine may stand still for longer.
const STILL_MAX: u32 = 60;

/// Questions about a silent session after which it counts as dead.
const QUESTIONS_MAX: u32 = 40;

/// Line of a script: the actor is killed.
pub const KILL: &str = "kill";

/// Random numbers: SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Returns true once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Choice of the actor that runs next.
#[derive(Debug, Clone)]
pub enum Order {
    /// Any of them; the same one again, except once in so many steps.
    Random(usize),
    /// The one with the highest priority. At these steps, it gets the lowest.
    Priorities(Vec<u64>),
    /// Each actor in turn until just before its next step with this text, or to its end.
    Script(Vec<(usize, &'static str)>),
}

/// Parameters of a schedule.
#[derive(Debug, Clone)]
pub struct Parameters {
    pub order: Order,
    /// Numbers of actors and of those of their steps at which they are killed.
    pub kills: Vec<(usize, u64)>,
    /// True if a process sees whether another one of its machine still runs. Otherwise an operation
    /// of a killed process may take effect later.
    pub has_locks: bool,
    /// A silent session counts as dead once in so many questions.
    pub patience: usize,
    pub without: Option<Rule>,
}

/// The panic by which an actor is killed.
pub struct Killed;

/// State of an actor.
#[derive(Debug)]
struct State {
    machine: usize,
    steps: u64,
    priority: i64,
    is_over: bool,
    is_killed: bool,
    /// True until another actor changes something.
    is_waiting: bool,
    random: Random,
}

/// Something that must not happen.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "the texts are shown by `Debug`")]
pub enum Fault {
    /// Data of a snapshot whose backup succeeded is lost or wrong.
    Loss(String),
    /// An operation failed without a reason, or left something behind.
    Failure(String),
}

/// An operation of a killed process that takes effect later.
#[derive(Debug)]
enum Late {
    Put(String, Vec<u8>),
    Remove(String),
}

/// A snapshot whose backup succeeded.
#[derive(Debug, Clone)]
pub struct Reported {
    pub root: ChunkId,
    /// Chunks that it needs.
    pub needs: Arc<BTreeSet<ChunkId>>,
}

/// Files of a store, with the rows of its segments.
#[derive(Clone, Default)]
pub struct Files {
    pub files: BTreeMap<String, Arc<Vec<u8>>>,
    rows: HashMap<String, Arc<Vec<Row>>>,
    /// Number of segments that have a chunk.
    copies: HashMap<ChunkId, usize>,
}

impl Files {
    fn put(&mut self, name: &str, bytes: Vec<u8>) {
        if name.starts_with(store::SEGMENTS_DIR) {
            let rows = rows(&bytes);
            self.forget_rows(name);
            for row in &rows {
                *self.copies.entry(row.id).or_default() += 1;
            }
            self.rows.insert(name.to_owned(), Arc::new(rows));
        }
        self.files.insert(name.to_owned(), Arc::new(bytes));
    }

    pub fn remove(&mut self, name: &str) -> bool {
        self.forget_rows(name);
        self.files.remove(name).is_some()
    }

    fn forget_rows(&mut self, name: &str) {
        for row in self.rows.remove(name).iter().flat_map(|rows| rows.iter()) {
            *self.copies.get_mut(&row.id).expect("was counted") -= 1;
        }
    }

    fn has(&self, id: &ChunkId) -> bool {
        self.copies.get(id).is_some_and(|count| *count > 0)
    }

    /// Reads a chunk from any segment.
    pub fn chunk(&self, id: &ChunkId, codec: Codec, plain: &mut Vec<u8>) -> Option<()> {
        let (name, row) = self
            .rows
            .iter()
            .find_map(|(name, rows)| Some((name, rows.iter().find(|row| row.id == *id)?)))?;
        let bytes = &self.files[name][row.offset as usize..row.end() as usize];
        codec.decode(id, bytes, row.plain_len as usize, plain).ok()
    }

    /// Returns the segments without one of these chunks.
    pub fn garbage(&self, needs: &BTreeSet<ChunkId>) -> usize {
        let is_garbage = |rows: &&Arc<Vec<Row>>| rows.iter().all(|row| !needs.contains(&row.id));
        self.rows.values().filter(is_garbage).count()
    }

    /// Returns the names below a directory.
    pub fn names(&self, dir: &str) -> Vec<&str> {
        let names = self.files.range(dir.to_owned()..).map(|(name, _)| &name[..]);
        names.take_while(|name| name.starts_with(dir)).collect()
    }
}

/// Returns the table of a segment.
fn rows(bytes: &[u8]) -> Vec<Row> {
    let end = bytes.len() - TRAILER_LEN;
    let trailer = Trailer::read(&bytes[end..], bytes.len() as u64).expect("a trailer");
    let header = segment::skippable_len(bytes).expect("a header");
    let table = &bytes[trailer.table_offset as usize..end];
    Table::read(&bytes[..header], table, &trailer).expect("a table").rows
}

struct Inner {
    files: Files,
    turn: Option<usize>,
    actors: Vec<State>,
    random: Random,
    parameters: Parameters,
    steps: u64,
    lowest: i64,
    /// Position in the script.
    line: usize,
    questions: u32,
    /// Numbers of the actors that wrote objects.
    writers: HashMap<String, usize>,
    late: Vec<Late>,
    /// Snapshots that must stay.
    reported: BTreeMap<SnapshotId, Reported>,
    newest: Option<SnapshotId>,
    /// What the snapshots that count need.
    needs: HashMap<SnapshotId, Reported>,
    faults: Vec<Fault>,
    /// Steps in words.
    trace: Option<String>,
    /// True while nothing is scheduled.
    is_free: bool,
}

/// A store, and the actors that use it.
pub struct World {
    inner: Mutex<Inner>,
    /// One for each actor, and one for the test.
    wakes: Vec<Condvar>,
}

impl World {
    /// Returns a world with an actor on each of these machines.
    pub fn new(
        files: Files,
        reported: BTreeMap<SnapshotId, Reported>,
        machines: &[usize],
        parameters: Parameters,
        mut random: Random,
        is_traced: bool,
    ) -> Arc<World> {
        let state = |machine: &usize| State {
            machine: *machine,
            steps: 0,
            priority: (random.next() >> 8) as i64,
            is_over: false,
            is_killed: false,
            is_waiting: false,
            random: Random(random.next()),
        };
        let actors: Vec<State> = machines.iter().map(state).collect();
        let wakes = (0..=actors.len()).map(|_| Condvar::new()).collect();
        let inner = Inner {
            files,
            turn: None,
            actors,
            random,
            parameters,
            steps: 0,
            lowest: 0,
            line: 0,
            questions: 0,
            writers: HashMap::new(),
            late: Vec::new(),
            needs: reported.clone().into_iter().collect(),
            reported,
            newest: None,
            faults: Vec::new(),
            trace: is_traced.then(String::new),
            is_free: true,
        };
        Arc::new(World { inner: Mutex::new(inner), wakes })
    }

    /// Gives access to the files.
    pub fn with_files<T>(&self, look: impl FnOnce(&Files) -> T) -> T {
        look(&self.inner.lock().files)
    }

    /// Returns the snapshots that must stay.
    pub fn reported(&self) -> BTreeMap<SnapshotId, Reported> {
        self.inner.lock().reported.clone()
    }

    /// Notes a snapshot that must stay from now on.
    pub fn report(&self, id: SnapshotId, reported: Reported) {
        let mut inner = self.inner.lock();
        inner.say(|| format!("reports snapshot {}", id.short()));
        inner.reported.insert(id, reported);
        inner.newest = Some(id);
        inner.examine();
    }

    /// Returns the snapshot that was reported last, if it must stay.
    pub fn newest(&self) -> Option<SnapshotId> {
        let inner = self.inner.lock();
        inner.newest.filter(|id| inner.reported.contains_key(id))
    }

    /// Notes that a snapshot need not stay.
    pub fn forgets(&self, id: &SnapshotId) {
        let mut inner = self.inner.lock();
        inner.say(|| format!("forgets snapshot {}", id.short()));
        inner.reported.remove(id);
    }

    pub fn fault(&self, what: String) {
        self.note(Fault::Failure(what));
    }

    pub fn loss(&self, what: String) {
        self.note(Fault::Loss(what));
    }

    fn note(&self, fault: Fault) {
        let mut inner = self.inner.lock();
        inner.say(|| format!("{fault:?}"));
        inner.faults.push(fault);
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        self.inner.lock().say(what);
    }

    /// Returns what went wrong, the number of steps, and the steps in words.
    pub fn result(&self) -> (Vec<Fault>, u64, String) {
        let inner = self.inner.lock();
        (inner.faults.clone(), inner.steps, inner.trace.clone().unwrap_or_default())
    }

    /// Returns true if an actor was killed.
    pub fn is_killed(&self, actor: usize) -> bool {
        self.inner.lock().actors[actor].is_killed
    }

    /// Lets the actors take turns until all are over.
    pub fn run(&self) {
        let mut inner = self.inner.lock();
        inner.is_free = false;
        inner.turn = inner.choose();
        if let Some(first) = inner.turn {
            self.wakes[first].notify_all();
        }
        let mut still = 0;
        while inner.turn.is_some() {
            let before = inner.steps;
            let wake = &self.wakes[self.wakes.len() - 1];
            let is_over = wake.wait_for(&mut inner, Duration::from_secs(1)).timed_out();
            still = if is_over && inner.steps == before { still + 1 } else { 0 };
            if still == STILL_MAX {
                let trace = inner.trace.take().unwrap_or_default();
                panic!("actor {:?} stands still: {:?}\n{trace}", inner.turn, inner.actors);
            }
        }
        inner.is_free = true;
        while !inner.late.is_empty() {
            inner.deliver();
        }
    }

    /// Waits for the first turn of an actor.
    pub fn begin(&self, actor: usize) {
        let mut inner = self.inner.lock();
        while inner.turn != Some(actor) {
            self.wakes[actor].wait(&mut inner);
        }
    }

    /// Ends an actor.
    pub fn end(&self, actor: usize) {
        let mut inner = self.inner.lock();
        inner.actors[actor].is_over = true;
        inner.awake();
        inner.turn = inner.choose();
        self.wakes[inner.turn.unwrap_or(self.wakes.len() - 1)].notify_all();
    }

    /// Lets others run before the next step of an actor. `late` is the operation that this step is.
    fn step(&self, actor: usize, what: impl Fn() -> String, late: Option<&dyn Fn() -> Late>) {
        let mut inner = self.inner.lock();
        if inner.is_free {
            return;
        }
        if inner.actors[actor].is_killed {
            drop(inner);
            return die();
        }
        inner.steps += 1;
        inner.actors[actor].steps += 1;
        let own = (actor, inner.actors[actor].steps);
        if inner.parameters.kills.contains(&own) {
            inner.actors[actor].is_killed = true;
            if let Some(late) = late.filter(|_| !inner.parameters.has_locks)
                && inner.random.once_in(3)
            {
                inner.late.push(late());
            }
            inner.say(|| format!("{actor}: KILLED before {}", what()));
            drop(inner);
            self.wakes[actor].notify_all();
            return die();
        }
        if let Order::Script(lines) = &inner.parameters.order
            && lines.get(inner.line) == Some(&(actor, KILL))
        {
            inner.line += 1;
            inner.actors[actor].is_killed = true;
            drop(inner);
            return die();
        }
        if let Order::Script(lines) = &inner.parameters.order
            && let Some((who, until)) = lines.get(inner.line)
            && (*who, until.is_empty()) == (actor, false)
            && format!("{actor}: {}", what()).starts_with(until)
        {
            inner.line += 1;
        }
        inner.turn = inner.choose_after(actor);
        if inner.turn != Some(actor) {
            self.wakes[inner.turn.expect("this one can run")].notify_all();
            while inner.turn != Some(actor) && !inner.actors[actor].is_killed {
                self.wakes[actor].wait(&mut inner);
            }
            if inner.actors[actor].is_killed {
                drop(inner);
                return die();
            }
        }
        inner.say(|| format!("{actor}: {}", what()));
    }
}

/// Stops the thread of a killed process.
fn die() {
    if !std::thread::panicking() {
        std::panic::resume_unwind(Box::new(Killed));
    }
}

impl Inner {
    fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{}", what());
        }
    }

    /// Lets those run again that waited for a change.
    fn awake(&mut self) {
        self.actors.iter_mut().for_each(|actor| actor.is_waiting = false);
    }

    fn runnable(&self) -> Vec<usize> {
        let can_run = |actor: &usize| !self.actors[*actor].is_over;
        let all: Vec<usize> = (0..self.actors.len()).filter(can_run).collect();
        let busy: Vec<usize> =
            all.iter().copied().filter(|actor| !self.actors[*actor].is_waiting).collect();
        if busy.is_empty() { all } else { busy }
    }

    /// Chooses the actor that runs next, if any is left.
    fn choose(&mut self) -> Option<usize> {
        let runnable = self.runnable();
        if runnable.is_empty() {
            return None;
        }
        match self.parameters.order {
            Order::Random(_) => Some(self.random.choose(&runnable)),
            Order::Priorities(_) => {
                runnable.into_iter().max_by_key(|actor| self.actors[*actor].priority)
            }
            Order::Script(ref lines) => {
                let is_over = |(actor, _): &(usize, &str)| self.actors[*actor].is_over;
                while lines.get(self.line).is_some_and(is_over) {
                    self.line += 1;
                }
                lines.get(self.line).map(|(actor, _)| *actor).or(runnable.first().copied())
            }
        }
    }

    /// Chooses the actor that runs after a step of `last`.
    fn choose_after(&mut self, last: usize) -> Option<usize> {
        if !self.late.is_empty() && self.random.once_in(20) {
            self.deliver();
        }
        let is_waiting = self.actors[last].is_waiting;
        match &self.parameters.order {
            Order::Random(times) => {
                let times = *times;
                if !is_waiting && !self.random.once_in(times) {
                    return Some(last);
                }
            }
            Order::Priorities(changes) => {
                if changes.contains(&self.steps) {
                    self.lowest -= 1;
                    self.actors[last].priority = self.lowest;
                }
            }
            Order::Script(_) => {}
        }
        self.choose()
    }

    /// Lets an operation of a killed process take effect, or drops it.
    fn deliver(&mut self) {
        let at = self.random.below(self.late.len());
        let late = self.late.swap_remove(at);
        if self.random.once_in(4) {
            return;
        }
        self.say(|| match &late {
            Late::Put(name, _) => format!("late: PUT {name}"),
            Late::Remove(name) => format!("late: DELETE {name}"),
        });
        match late {
            Late::Put(name, bytes) => self.files.put(&name, bytes),
            Late::Remove(name) => drop(self.files.remove(&name)),
        }
        self.awake();
        self.examine();
    }

    /// Looks whether all snapshots that must stay are there, and whether all that count are whole.
    fn examine(&mut self) {
        if !self.faults.is_empty() {
            return;
        }
        let mut faults = Vec::new();
        let names = self.files.names(snapshot::DIR);
        let ids: Vec<SnapshotId> = names
            .into_iter()
            .filter_map(|name| SnapshotId::from_hex(name.rsplit('/').next()?).ok())
            .collect();
        for id in self.reported.keys().filter(|id| !ids.contains(id)) {
            faults.push(Fault::Loss(format!("snapshot {} is gone", id.short())));
        }
        let announced: Vec<String> =
            self.files.names(sessions::DIR).iter().map(|name| name.to_string()).collect();
        for id in ids {
            let text = id.to_string();
            if announced.iter().any(|name| name.ends_with(&text)) {
                if self.reported.contains_key(&id) {
                    faults.push(Fault::Loss(format!("snapshot {} is announced", id.short())));
                }
                continue;
            }
            let known = self.needs.get(&id).cloned().map(Ok);
            match known.unwrap_or_else(|| super::needs(&self.files, &id)) {
                Err(error) => {
                    faults.push(Fault::Loss(format!("snapshot {}: {error}", id.short())));
                }
                Ok(reported) => {
                    if let Some(chunk) = reported.needs.iter().find(|id| !self.files.has(id)) {
                        let what = format!("snapshot {} has lost chunk {chunk}", id.short());
                        faults.push(Fault::Loss(what));
                    }
                    self.needs.insert(id, reported);
                }
            }
        }
        if !faults.is_empty() {
            self.say(|| format!("{faults:?}"));
            self.faults = faults;
        }
    }
}

/// An actor's view of the store.
#[derive(Clone)]
pub struct View {
    pub world: Arc<World>,
    pub actor: usize,
}

impl View {
    fn step(&self, what: &str, name: &str) {
        self.world.step(self.actor, || format!("{what} {name}"), None);
    }

    fn changed(&self, inner: &mut Inner) {
        inner.awake();
        inner.examine();
    }
}

/// Returns true if a listing of this directory is a step. The 256 directories of segments are listed
/// one after the other, with a few steps between them.
fn is_step(dir: &str) -> bool {
    let shard = dir.strip_prefix(store::SEGMENTS_DIR).and_then(|rest| rest.strip_prefix('/'));
    shard.is_none_or(|shard| ["00", "55", "aa"].contains(&shard))
}

impl Backend for View {
    fn place(&self) -> String {
        "a scheduled store".into()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Listed>> {
        if is_step(dir) {
            self.step("LIST", dir);
        }
        let prefix = format!("{dir}/");
        let inner = self.world.inner.lock();
        let below = inner.files.files.range(prefix.clone()..);
        let mut listed = Vec::new();
        for (name, bytes) in below.take_while(|(name, _)| name.starts_with(&prefix)) {
            let name = &name[prefix.len()..];
            if !name.contains('/') {
                listed.push(Listed { name: name.to_owned(), len: bytes.len() as u64 });
            }
        }
        Ok(listed)
    }

    fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset == 0 || self.world.inner.lock().steps.is_multiple_of(4) {
            self.step("GET", name);
        }
        let inner = self.world.inner.lock();
        let bytes = inner.files.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let part = bytes.get(offset as usize..).and_then(|part| part.get(..out.len()));
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.step("HEAD", name);
        let inner = self.world.inner.lock();
        let bytes = inner.files.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(bytes.len() as u64)
    }

    fn create(&self) -> io::Result<Box<dyn Pending>> {
        Ok(Box::new(PendingFile { view: self.clone(), bytes: Vec::new() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let late = || Late::Remove(name.to_owned());
        self.world.step(self.actor, || format!("DELETE {name}"), Some(&late));
        let is_removed = {
            let mut inner = self.world.inner.lock();
            let is_removed = inner.files.remove(name);
            self.changed(&mut inner);
            is_removed
        };
        self.step("deleted", name);
        if is_removed { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn settle(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

struct PendingFile {
    view: View,
    bytes: Vec<u8>,
}

impl Pending for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn publish(self: Box<Self>, name: &str) -> io::Result<()> {
        let PendingFile { view, bytes } = *self;
        let late = || Late::Put(name.to_owned(), bytes.clone());
        view.world.step(view.actor, || format!("PUT {name}"), Some(&late));
        {
            let mut inner = view.world.inner.lock();
            let actor = view.actor;
            inner.writers.insert(name.to_owned(), actor);
            inner.files.put(name, bytes);
            view.changed(&mut inner);
        }
        view.step("put", name);
        Ok(())
    }
}

impl Actor for View {
    fn is_kept(&self, rule: Rule) -> bool {
        self.world.inner.lock().parameters.without != Some(rule)
    }

    fn fill(&self, bytes: &mut [u8]) {
        let random = &mut self.world.inner.lock().actors[self.actor].random;
        bytes.fill_with(|| random.next() as u8);
    }

    fn presumes_dead(&self) -> bool {
        let mut inner = self.world.inner.lock();
        inner.questions += 1;
        let patience = inner.parameters.patience;
        let others = inner.actors.iter().enumerate().filter(|(at, _)| *at != self.actor);
        let are_over = others.clone().all(|(_, actor)| actor.is_over || actor.is_waiting);
        let is_dead = inner.is_free
            || are_over
            || inner.questions > QUESTIONS_MAX
            || inner.random.once_in(patience);
        if !is_dead {
            inner.actors[self.actor].is_waiting = true;
        }
        inner.say(|| format!("{}: a silent session is dead: {is_dead}", self.actor));
        is_dead
    }

    fn runs(&self, name: &str) -> Option<bool> {
        let mut inner = self.world.inner.lock();
        let writer = *inner.writers.get(name)?;
        let machine = |actor: usize| inner.actors[actor].machine;
        let is_known = inner.parameters.has_locks && machine(writer) == machine(self.actor);
        let runs = !inner.actors[writer].is_over && !inner.actors[writer].is_killed;
        if is_known && runs {
            // It may wait for that process.
            let me = &mut inner.actors[self.actor];
            me.is_waiting = name.starts_with(sessions::DIR);
        }
        is_known.then_some(runs)
    }
}

/// Names of objects that belong to running processes.
pub const PROCESS_DIRS: [&str; 3] = [sessions::DIR, sessions::FENCE_DIR, condemned::DIR];
