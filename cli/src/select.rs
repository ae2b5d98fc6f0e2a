//! Selects the snapshots that a command works on.

use crate::exit::{Failure, usage, with_hint};
use crate::report::{self, count, local_time, shown};
use crate::selector::{Selector, Which};
use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};
use jiff::civil::Date;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use store::annotations::Annotations;
use store::entry::{Time, display_path, is_within};
use store::id::{ChunkId, SnapshotId};
use store::index::{Header, Position};
use store::observe::Event;
use store::snapshot::{Snapshot, SnapshotSource, is_future};
use store::store::Store;
use store::tree::TreeReader;

/// Heading of the options that narrow down snapshots, in help texts.
const HEADING: &str = "Choice of snapshots";

/// Narrows down snapshots by the properties that every snapshot has.
#[derive(Debug, Clone, Default, Args)]
pub struct Filter {
    /// Only snapshots with this tag (can be repeated: any of them)
    #[arg(long, value_name = "TAG", help_heading = HEADING, value_parser = word)]
    tag: Vec<String>,
    /// Only snapshots with this source path or one below or above it (can be repeated: any of
    /// them). Where one snapshot is chosen, those of exactly these paths come first; if others are
    /// more than a day newer, `latest` is ambiguous
    #[arg(
        long,
        value_name = "PATH",
        help_heading = HEADING,
        value_parser = PathBufValueParser::new().map(SourcePath::new)
    )]
    path: Vec<SourcePath>,
    /// Only snapshots of this machine (can be repeated: any of them)
    #[arg(long, value_name = "HOST", help_heading = HEADING, value_parser = word)]
    host: Vec<String>,
}

impl Filter {
    /// Returns the same filter for one machine; `None` if machines were chosen.
    pub fn of_host(&self, host: &str) -> Option<Filter> {
        self.host.is_empty().then(|| Filter { host: vec![host.to_owned()], ..self.clone() })
    }
}

/// A source path of snapshots, as a user writes it.
#[derive(Debug, Clone)]
struct SourcePath {
    given: PathBuf,
    /// Paths in the tree that it may mean: the name of a stream, or a path from the current
    /// directory.
    spellings: Vec<Vec<u8>>,
}

impl SourcePath {
    fn new(given: PathBuf) -> SourcePath {
        // A backup resolves links in its paths. They may be gone by now.
        let [real, absolute] = [given.canonicalize(), std::path::absolute(&given)].map(Result::ok);
        let paths = [Some(&given), absolute.as_ref(), real.as_ref()].into_iter().flatten();
        let spellings = paths.map(|path| store::backup::tree_path(path)).collect();
        SourcePath { given, spellings }
    }
}

/// Narrows down snapshots, for commands that take several.
#[derive(Debug, Clone, Default, Args)]
pub struct ListFilter {
    /// Only snapshots of this instance (can be repeated: any of them)
    #[arg(long, value_name = "NAME", help_heading = HEADING, value_parser = word)]
    pub instance: Vec<String>,
    #[command(flatten)]
    pub others: Filter,
}

impl Filter {
    /// Returns true if it selects all snapshots.
    pub fn is_empty(&self) -> bool {
        self.tag.is_empty() && self.path.is_empty() && self.host.is_empty()
    }

    fn matches(&self, source: &SnapshotSource, tags: &[String]) -> bool {
        let is_any = |wanted: &SourcePath| {
            wanted.spellings.iter().any(|wanted| {
                source.paths.iter().any(|path| {
                    let path = tree_path(path);
                    is_within(&path, wanted) || is_within(wanted, &path)
                })
            })
        };
        (self.tag.is_empty() || self.tag.iter().any(|tag| tags.contains(tag)))
            && (self.host.is_empty() || self.host.contains(&source.host))
            && (self.path.is_empty() || self.path.iter().any(is_any))
    }

    fn has(&self, header: &Header, annotations: &Annotations) -> bool {
        let tags = annotations.tags(&header.position.id, &header.tags);
        self.matches(&header.source, &tags)
    }

    /// Returns true if its paths are exactly the source paths.
    fn names_exactly(&self, group: &Group) -> bool {
        let Group::Paths(source) = group else { return false };
        let wanted: Vec<_> = self.path.iter().map(|path| &path.spellings).collect();
        let paths: Vec<_> = source.paths.iter().map(|path| tree_path(path)).collect();
        paths.iter().all(|path| wanted.iter().any(|wanted| wanted.contains(path)))
            && wanted.iter().all(|wanted| wanted.iter().any(|path| paths.contains(path)))
    }

    /// Returns the options as they were given, for messages.
    fn shown(&self) -> String {
        let all = [self.shown_tags(), self.shown_paths(), self.shown_hosts()].concat();
        all.trim_start().to_owned()
    }

    fn shown_tags(&self) -> String {
        self.tag.iter().map(|tag| option("tag", tag)).collect()
    }

    fn shown_paths(&self) -> String {
        self.path.iter().map(|path| option("path", &path.given.display().to_string())).collect()
    }

    fn shown_hosts(&self) -> String {
        self.host.iter().map(|host| option("host", host)).collect()
    }
}

/// Returns an option with its value, after a space.
fn option(name: &str, value: &str) -> String {
    format!(" --{name} {}", quoted(value))
}

impl ListFilter {
    /// Returns true if it selects all snapshots.
    pub fn is_empty(&self) -> bool {
        self.instance.is_empty() && self.others.is_empty()
    }

    /// Returns the instance, if exactly one is given.
    pub fn only_instance(&self) -> Option<&str> {
        match &self.instance[..] {
            [name] => Some(name),
            _ => None,
        }
    }

    fn has(&self, header: &Header, annotations: &Annotations) -> bool {
        let is_named = |name: &String| header.source.instance.as_ref() == Some(name);
        (self.instance.is_empty() || self.instance.iter().any(is_named))
            && self.others.has(header, annotations)
    }
}

/// Quotes a word for a shell and escapes control characters.
fn quoted(text: &str) -> String {
    forge::process::quoted_shown(&display_path(text.as_bytes()))
}

/// Converts a source path of a snapshot record to a path in its tree.
pub fn tree_path(path: &[u8]) -> Vec<u8> {
    store::backup::tree_path(Path::new(OsStr::from_bytes(path)))
}

/// Snapshots that match a filter.
pub struct Selection {
    /// Readable snapshots, oldest first.
    pub snapshots: Vec<(SnapshotId, Snapshot)>,
    /// True if every record could be read. Otherwise others may match, and a warning was printed.
    pub is_sure: bool,
}

/// Returns the tags and pins of all snapshots, and true if all of them could be read. Warns of the
/// others.
pub fn annotations(store: &Store) -> Result<(Annotations, bool), Failure> {
    let (annotations, errors) = store.annotations()?;
    for error in &errors {
        store.observer().event(Event::Warning(format!("{error}; a snapshot may lack a tag")));
    }
    Ok((annotations, errors.is_empty()))
}

/// Like [`annotations`], for commands that only show them. Without access to them, snapshots have the
/// tags of their backups.
pub fn shown_annotations(store: &Store) -> Result<(Annotations, bool), Failure> {
    match annotations(store) {
        Err(Failure::Store(error)) if !matches!(error, store::Error::Interrupted) => {
            let text = format!("{error}; tags and pins are unknown");
            store.observer().event(Event::Warning(text));
            Ok((Annotations::default(), false))
        }
        read => read,
    }
}

/// Returns all readable snapshots that match. Warns about damaged ones.
pub fn snapshots(store: &Store, filter: &ListFilter) -> Result<Selection, Failure> {
    let (annotations, is_sure) = match filter.others.tag.is_empty() {
        true => (Annotations::default(), true),
        false => shown_annotations(store)?,
    };
    let mut selection = annotated(store, filter, &annotations)?;
    selection.is_sure &= is_sure;
    Ok(selection)
}

/// Like [`snapshots`], with tags that were read before.
pub fn annotated(
    store: &Store,
    filter: &ListFilter,
    annotations: &Annotations,
) -> Result<Selection, Failure> {
    let mut records = store.records()?;
    records.retain(|header| filter.has(header, annotations));
    let (mut snapshots, mut is_sure) = (Vec::new(), true);
    for record in records {
        match record {
            Ok(named) => snapshots.push(named),
            Err(error) => {
                is_sure = false;
                store.observer().event(Event::Warning(error.to_string()));
            }
        }
    }
    snapshots.reverse();
    Ok(Selection { snapshots, is_sure })
}

/// Returns the end of a command that answered from the readable records: `Partial` if another
/// record might change the answer.
pub fn answered(is_sure: bool) -> Result<(), Failure> {
    if is_sure { Ok(()) } else { Err(Failure::Partial) }
}

/// Checks a tag, or the name of a machine or instance, which snapshots keep as a printable line of text.
pub fn word(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("it is empty; omit the option".into());
    }
    if text.contains(store::entry::is_deceptive) {
        return Err("it contains control characters; use letters, digits and punctuation".into());
    }
    Ok(text.to_owned())
}

/// A snapshot that was found.
pub struct Found {
    pub id: SnapshotId,
    pub snapshot: Snapshot,
    /// True if it is certainly the wanted one. Otherwise other records are unreadable or from the
    /// future, and a warning was printed.
    pub is_sure: bool,
}

impl Found {
    /// Describes the snapshot for people: id, time and store.
    pub fn shown(&self, store: &Store) -> String {
        let time = local_time(self.snapshot.start.into());
        format!("snapshot {} of {time} in {}", self.id.short(), store.place())
    }
}

/// Returns the snapshot that a selector names, among those that match the filter.
pub fn find(store: &Store, selector: &Selector, filter: &Filter) -> Result<Found, Failure> {
    Finder::new(store, filter)?.find(selector)
}

/// Like [`find`], for two snapshots. Reads the records and warns of them once.
pub fn find_both(
    store: &Store,
    [first, second]: &[Selector; 2],
    filter: &Filter,
) -> Result<[Found; 2], Failure> {
    let mut finder = Finder::new(store, filter)?;
    Ok([finder.find(first)?, finder.find(second)?])
}

/// Returns the snapshots that the selectors name, or else all readable ones that match the filter.
pub fn some(store: &Store, wanted: &[Selector], filter: &ListFilter) -> Result<Selection, Failure> {
    if wanted.is_empty() {
        return snapshots(store, filter);
    }
    let (mut finder, mut is_sure) = (Finder::new(store, &filter.others)?, true);
    let mut found = BTreeMap::new();
    for selector in wanted {
        let mut selector = selector.clone();
        if selector.instance.is_none() {
            selector.instance = filter.only_instance().map(str::to_owned);
        }
        let Found { id, snapshot, is_sure: is_right } = finder.find(&selector)?;
        found.insert((snapshot.start, id), snapshot);
        is_sure &= is_right;
    }
    let snapshots = found.into_iter().map(|((_, id), snapshot)| (id, snapshot)).collect();
    Ok(Selection { snapshots, is_sure })
}

/// Like [`some`], for commands that also change snapshots whose records are damaged. Returns the ids
/// of these as well.
pub fn with_damaged(
    store: &Store,
    wanted: Vec<Selector>,
    filter: &ListFilter,
) -> Result<(Selection, Vec<SnapshotId>), Failure> {
    let (damaged, readable) = damaged(store, wanted)?;
    let selection = match readable.is_empty() {
        true => Selection { snapshots: Vec::new(), is_sure: true },
        false => some(store, &readable, filter)?,
    };
    Ok((selection, damaged))
}

/// Separates the snapshots whose records are damaged, and which can only be named by an id.
fn damaged(
    store: &Store,
    wanted: Vec<Selector>,
) -> Result<(Vec<SnapshotId>, Vec<Selector>), Failure> {
    let (listed, mut damaged, mut readable) = (store.snapshot_ids()?, Vec::new(), Vec::new());
    for selector in wanted {
        let digits = match &selector {
            Selector { instance: None, which: Which::Id(digits) } => Some(digits),
            _ => None,
        };
        let is_named =
            |id: &&SnapshotId| digits.is_some_and(|digits| id.to_string().starts_with(digits));
        let mut named = listed.iter().filter(is_named);
        match (named.next(), named.next()) {
            (Some(id), None)
                if matches!(store.snapshot(id), Err(store::Error::SnapshotDamaged { .. })) =>
            {
                damaged.push(*id);
            }
            _ => readable.push(selector),
        }
    }
    damaged.sort_unstable();
    damaged.dedup();
    Ok((damaged, readable))
}

/// Returns the instance whose store is wanted: the only one that the arguments name.
pub fn instance_of<'a>(wanted: &'a [Selector], filter: &'a ListFilter) -> Option<&'a str> {
    filter.only_instance().or_else(|| wanted.iter().find_map(|of| of.instance.as_deref()))
}

/// Returns the snapshot of an instance that `wanted` names. `latest` is the latest of this
/// instance.
pub fn find_of_instance(
    store: &Store,
    wanted: &Selector,
    instance: &str,
    filter: &Filter,
) -> Result<Found, Failure> {
    if let Some(other) = wanted.instance.as_ref().filter(|name| *name != instance) {
        let message = format!("{wanted} is of instance {other}, and --instance is {instance}");
        return Err(usage(message, format!("write {}", wanted.which)));
    }
    let selector = Selector { instance: Some(instance.to_owned()), which: wanted.which.clone() };
    find(store, &selector, filter)
}

/// Snapshots that `latest` takes for the same thing, made again and again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Group<'a> {
    /// An instance on a machine. Its paths may change.
    Instance { name: &'a str, host: &'a str },
    /// Paths of a machine.
    Paths(&'a SnapshotSource),
}

impl<'a> Group<'a> {
    fn of(source: &'a SnapshotSource) -> Group<'a> {
        match &source.instance {
            Some(name) => Group::Instance { name, host: &source.host },
            None => Group::Paths(source),
        }
    }

    fn host(&self) -> &'a str {
        match self {
            Group::Instance { host, .. } => host,
            Group::Paths(source) => &source.host,
        }
    }

    /// Returns true if only the machines differ.
    fn differs_by_host(&self, other: &Group) -> bool {
        self != other
            && match (self, other) {
                (Group::Instance { name, .. }, Group::Instance { name: other, .. }) => {
                    name == other
                }
                (Group::Paths(source), Group::Paths(other)) => source.paths == other.paths,
                _ => false,
            }
    }

    /// Returns the arguments that choose this group among others, beside the given options.
    fn spelled(&self, which: &Which, filter: &Filter, others: &BTreeMap<Group, Members>) -> String {
        let mut text = match self {
            Group::Instance { name, .. } => {
                let instance = Some((*name).to_owned());
                quoted(&Selector { instance, which: which.clone() }.to_string())
            }
            Group::Paths(_) => which.to_string(),
        };
        let is_other = |other: &&Group| *other != self && !self.differs_by_host(other);
        if let Group::Paths(source) = self
            && others.keys().any(|other| is_other(&other))
        {
            for path in source.paths.iter().take(SHOWN_PATHS) {
                text += &format!(" --path {}", forge::process::quoted_shown(&display_path(path)));
            }
            if source.paths.len() > SHOWN_PATHS {
                text += " --path …";
            }
        } else {
            text += &filter.shown_paths();
        }
        if others.keys().any(|other| self.differs_by_host(other)) {
            text += &option("host", self.host());
        } else {
            text += &filter.shown_hosts();
        }
        text + &filter.shown_tags()
    }
}

/// Snapshots of a group.
#[derive(Debug, Clone, Copy)]
struct Members {
    count: u64,
    newest: Position,
}

/// Seconds of a day. Several backups of a path may run each night.
const DAY: i64 = 24 * 3600;
/// Maximum number of ids listed for an ambiguous prefix.
const SHOWN_IDS: usize = 4;
/// Maximum number of groups or instances listed.
const SHOWN_CHOICES: usize = 12;
/// Maximum number of source paths listed for a group.
const SHOWN_PATHS: usize = 4;

/// Searches snapshots. Reads the headers once, and each record at most once.
struct Finder<'a> {
    store: &'a Store,
    filter: &'a Filter,
    /// Tags of the snapshots, if the filter asks for some.
    annotations: Annotations,
    /// True if all of these tags could be read.
    knows_tags: bool,
    /// Headers of all snapshots, once a selector needs them.
    list: Option<List>,
    /// Records read so far; `None` for an unreadable one, of which the user was warned.
    read: HashMap<SnapshotId, Option<Snapshot>>,
}

/// Headers of the snapshots of a store.
struct List {
    /// Oldest first.
    headers: Vec<Header>,
    /// Number of records that were never readable.
    unreadable: u64,
    /// True if the user was warned of snapshots from the future.
    has_warned: bool,
}

impl<'a> Finder<'a> {
    fn new(store: &'a Store, filter: &'a Filter) -> Result<Finder<'a>, Failure> {
        let (annotations, knows_tags) = match filter.tag.is_empty() {
            true => (Annotations::default(), true),
            false => shown_annotations(store)?,
        };
        let read = HashMap::new();
        Ok(Finder { store, filter, annotations, knows_tags, list: None, read })
    }

    fn find(&mut self, selector: &Selector) -> Result<Found, Failure> {
        let found = self.search(selector)?;
        Ok(Found { is_sure: found.is_sure && self.knows_tags, ..found })
    }

    fn search(&mut self, selector: &Selector) -> Result<Found, Failure> {
        if let Which::Id(prefix) = &selector.which {
            return self.by_id(selector, prefix);
        }
        let mut list = match self.list.take() {
            Some(list) => list,
            None => self.list()?,
        };
        let found = self.by_time(selector, &mut list);
        self.list = Some(list);
        found
    }

    /// Reads the headers, and warns about unreadable records.
    fn list(&self) -> Result<List, Failure> {
        let mut records = self.store.records()?;
        let errors = records.take_errors();
        for error in &errors {
            self.warn(format!("{error}; searching the other snapshots"));
        }
        let headers = records.headers().to_vec();
        Ok(List { headers, unreadable: errors.len() as u64, has_warned: false })
    }

    fn warn(&self, text: String) {
        self.store.observer().event(Event::Warning(text));
    }

    fn by_id(&self, selector: &Selector, prefix: &str) -> Result<Found, Failure> {
        let ids = self.store.snapshot_ids()?;
        let matching: Vec<&SnapshotId> =
            ids.iter().filter(|id| id.to_string().starts_with(prefix)).collect();
        let id = match matching[..] {
            [id] => *id,
            [] if ids.is_empty() => return Err(self.empty()),
            [] => {
                let among = count(ids.len() as u64, "snapshot");
                let message = format!("no snapshot {prefix} among {among}");
                return Err(with_hint(message, "`forgekeep snapshots` lists them"));
            }
            _ => {
                let ids = matching.iter().take(SHOWN_IDS).map(|id| id.to_string()[..12].to_owned());
                let ids = ids.collect::<Vec<_>>().join(", ");
                let more = if matching.len() > SHOWN_IDS { ", …" } else { "" };
                let message =
                    format!("{prefix} is ambiguous: {} snapshots ({ids}{more})", matching.len());
                return Err(with_hint(message, "give more digits of the id"));
            }
        };
        let snapshot = self.store.snapshot(&id)?;
        let source = snapshot.source();
        if let Some(wanted) = selector.instance.as_ref()
            && source.instance.as_ref() != Some(wanted)
        {
            let message = format!("snapshot {} does not belong to instance {wanted}", id.short());
            let hint = match &source.instance {
                Some(name) => format!("it belongs to instance {name}"),
                None => "it belongs to no instance; `forgekeep snapshots` shows the instance of \
                         each snapshot"
                    .into(),
            };
            return Err(with_hint(message, hint));
        }
        let tags = self.annotations.tags(&id, &snapshot.tags);
        if !self.filter.matches(&source, &tags) {
            let message = format!("snapshot {} does not match {}", id.short(), self.filter.shown());
            return Err(with_hint(message, "omit these options, or give another id"));
        }
        Ok(Found { id, snapshot, is_sure: true })
    }

    fn by_time(&mut self, selector: &Selector, list: &mut List) -> Result<Found, Failure> {
        let List { headers, unreadable, .. } = &*list;
        let of_instance = |header: &&Header| {
            selector.instance.is_none() || header.source.instance == selector.instance
        };
        let named: Vec<&Header> = headers.iter().filter(of_instance).collect();
        let matching: Vec<&Header> = named
            .iter()
            .copied()
            .filter(|header| self.filter.has(header, &self.annotations))
            .collect();
        if matching.is_empty() {
            return Err(match (&selector.instance, unreadable) {
                (_, 1..) => no_readable(selector, *unreadable),
                _ if headers.is_empty() && selector.instance.is_none() => self.empty(),
                (Some(name), _) if named.is_empty() => self.no_instance(name, headers),
                (name, _) => self.none_match(name.as_deref()),
            });
        }
        let now = report::now();
        let (future, known): (Vec<&Header>, Vec<&Header>) =
            matching.iter().partition(|header| is_future(header.position.seconds, now));
        let pool = if known.is_empty() { &future } else { &known };
        let group = self.only_group(selector, pool)?;
        let of_group = |header: &&&Header| Group::of(&header.source) == group;
        let found = match &selector.which {
            Which::Day(day) => {
                let candidates = matching.iter().filter(of_group);
                self.of_day(selector, *day, &candidates.copied().collect::<Vec<_>>(), *unreadable)
            }
            Which::Latest(back) => {
                let pool: Vec<&Header> = pool.iter().filter(of_group).copied().collect();
                let mut found = self.latest(selector, *back, &pool, *unreadable);
                if let Ok(found) = &mut found {
                    found.is_sure &= future.is_empty();
                }
                if !list.has_warned {
                    self.warn_of_future(&future, known.is_empty());
                }
                found
            }
            Which::Id(_) => unreachable!("ids are searched without headers"),
        };
        list.has_warned |= matches!(selector.which, Which::Latest(_));
        found
    }

    /// Returns the group of the snapshots. Fails if there are several.
    fn only_group<'b>(
        &self,
        selector: &Selector,
        pool: &[&'b Header],
    ) -> Result<Group<'b>, Failure> {
        let mut groups = BTreeMap::<Group, Members>::new();
        for header in pool {
            let newest = header.position;
            let group = groups.entry(Group::of(&header.source));
            // The headers come oldest first.
            let group = group.or_insert(Members { count: 0, newest });
            *group = Members { count: group.count + 1, newest };
        }
        let is_exact = |group: &Group| self.filter.names_exactly(group);
        let exact = groups.iter().filter(|(group, _)| is_exact(group));
        if let Some(newest) = exact.map(|(_, members)| members.newest.seconds).max() {
            let is_latest = matches!(selector.which, Which::Latest(_));
            groups.retain(|group, members| {
                let is_newer = members.newest.seconds.saturating_sub(newest) > DAY;
                is_exact(group) || is_latest && is_newer
            });
        }
        match groups.pop_first() {
            Some((only, _)) if groups.is_empty() => Ok(only),
            Some((first, members)) => {
                groups.insert(first, members);
                Err(ambiguous(selector, self.filter, &groups))
            }
            None => unreachable!("each snapshot has a group"),
        }
    }

    /// Returns the newest of the snapshots, or the one `back` places before it. Does not count
    /// unreadable records, and warns about them. Uses snapshots with emptied sources only without
    /// any others.
    fn latest(
        &mut self,
        selector: &Selector,
        back: usize,
        pool: &[&Header],
        mut unreadable: u64,
    ) -> Result<Found, Failure> {
        let (mut readable, mut emptied) = (0, Vec::new());
        for header in pool.iter().rev() {
            let Some(snapshot) = self.read(header) else {
                unreadable += 1;
                continue;
            };
            if snapshot.is_emptied() {
                emptied.push(*header);
                continue;
            }
            if readable == back {
                let snapshot = snapshot.clone();
                let is_sure = unreadable == 0;
                self.warn_of_emptied(&emptied);
                return Ok(Found { id: header.position.id, snapshot, is_sure });
            }
            readable += 1;
        }
        if readable == 0
            && let Some(header) = emptied.get(back)
            && let Some(snapshot) = self.read(header)
        {
            let (snapshot, is_sure) = (snapshot.clone(), unreadable == 0);
            return Ok(Found { id: header.position.id, snapshot, is_sure });
        }
        // The wanted one may be among the unreadable ones.
        if unreadable > 0 {
            return Err(no_readable(selector, unreadable));
        }
        let of = of_instance(selector.instance.as_deref());
        let among = count(readable as u64, "snapshot");
        let oldest =
            Selector { which: Which::Latest(readable.saturating_sub(1)), ..selector.clone() };
        Err(with_hint(
            format!("no snapshot {selector} among {among}{of}"),
            match readable {
                1 => format!("the only one is {oldest}"),
                _ => format!("the oldest is {oldest}; `forgekeep snapshots` lists them"),
            },
        ))
    }

    /// Returns the last readable snapshot of a day. Its neighbours help if there is none.
    fn of_day(
        &mut self,
        selector: &Selector,
        day: Date,
        candidates: &[&Header],
        mut unreadable: u64,
    ) -> Result<Found, Failure> {
        let seconds = report::seconds_of_day(day);
        let first = candidates.partition_point(|header| header.position.seconds < seconds.start);
        let end = candidates.partition_point(|header| header.position.seconds < seconds.end);
        let mut chosen = None;
        for header in candidates[first..end].iter().rev() {
            match self.read(header).map(Snapshot::is_emptied) {
                Some(false) => {
                    chosen = Some(*header);
                    break;
                }
                // Used only without a sound one.
                Some(true) => drop(chosen.get_or_insert(*header)),
                None => unreadable += 1,
            }
        }
        if let Some(header) = chosen
            && let Some(snapshot) = self.read(header)
        {
            let (id, snapshot) = (header.position.id, snapshot.clone());
            let is_future = snapshot.is_from_future(report::now());
            if is_future {
                self.warn_of_future(&[header], false);
            }
            return Ok(Found { id, snapshot, is_sure: unreadable == 0 && !is_future });
        }
        if unreadable > 0 {
            return Err(no_readable(selector, unreadable));
        }
        let neighbour = |header: &&Header| {
            let Position { seconds, nanoseconds, id } = header.position;
            format!("{} of {}", id.short(), local_time(Time { seconds, nanoseconds }))
        };
        let before = first.checked_sub(1).map(|at| neighbour(&candidates[at]));
        let after = candidates.get(end).map(neighbour);
        let hint = match (before, after) {
            (Some(before), Some(after)) => {
                format!("the one before is {before}, and the one after is {after}")
            }
            (Some(before), None) => format!("the last one before is {before}"),
            (None, Some(after)) => format!("the first one after is {after}"),
            (None, None) => "`forgekeep snapshots` lists the others".into(),
        };
        let of = of_instance(selector.instance.as_deref());
        let zone = report::zone();
        Err(with_hint(format!("no snapshot{of} began on {day} (time zone {zone})"), hint))
    }

    /// Reads a record, once. Warns if it is unreadable.
    fn read(&mut self, header: &Header) -> Option<&Snapshot> {
        let id = header.position.id;
        if !self.read.contains_key(&id) {
            let read = match self.store.snapshot_of(header) {
                Ok(snapshot) => Some(snapshot),
                Err(error) => {
                    self.warn(format!("{error}; searching the other snapshots"));
                    None
                }
            };
            self.read.insert(id, read);
        }
        self.read[&id].as_ref()
    }

    /// Warns of snapshots that `latest` passes over. The newest come first.
    fn warn_of_emptied(&self, emptied: &[&Header]) {
        let Some(newest) = emptied.first() else { return };
        let Position { seconds, nanoseconds, id } = newest.position;
        let time = local_time(Time { seconds, nanoseconds });
        let (id, more) = (id.short(), emptied.len() - 1);
        let and = match more {
            0 => String::new(),
            more => format!(", and {} before it", count(more as u64, "other")),
        };
        self.warn(format!(
            "latest ignores snapshot {id} of {time}{and}: a source had lost most of its files, or its \
             mount; name the id to use it"
        ));
    }

    fn warn_of_future(&self, future: &[&Header], is_only: bool) {
        let what = if is_only { "no other exists" } else { "latest ignores it" };
        for Header { position: Position { seconds, nanoseconds, id }, .. } in future.iter().rev() {
            let time = local_time(Time { seconds: *seconds, nanoseconds: *nanoseconds });
            self.warn(format!(
                "snapshot {} is dated in the future, {time}; {what}; check this machine's clock",
                id.short()
            ));
        }
    }

    fn empty(&self) -> Failure {
        let hint = "run `forgekeep backup`, or check --store";
        with_hint(format!("the store at {} has no snapshots yet", self.store.place()), hint)
    }

    fn no_instance(&self, name: &str, headers: &[Header]) -> Failure {
        let names = headers.iter().filter_map(|header| header.source.instance.as_deref());
        let names: BTreeSet<&str> = names.collect();
        let mut hint = match forge::suggest::closest(name, names.iter().copied()) {
            Some(known) => format!("did you mean `{}`? ", shown(known)),
            None => String::new(),
        };
        hint += &if names.is_empty() {
            format!("run `forgekeep backup --instance {name}`, or check --store")
        } else {
            let more = if names.len() > SHOWN_CHOICES { ", …" } else { "" };
            let names: Vec<&str> = names.into_iter().take(SHOWN_CHOICES).collect();
            format!("instances with snapshots: {}{more}", shown(&names.join(", ")))
        };
        let place = self.store.place();
        with_hint(format!("the store at {place} has no snapshots of instance {name}"), hint)
    }

    fn none_match(&self, instance: Option<&str>) -> Failure {
        let of = of_instance(instance);
        with_hint(
            format!("no snapshot{of} matches {}", self.filter.shown()),
            "`forgekeep snapshots --json` shows the tags, paths and machines of all snapshots",
        )
    }
}

/// Names the instance after the word "snapshot", if one is given.
fn of_instance(instance: Option<&str>) -> String {
    instance.map_or_else(String::new, |name| format!(" of instance {name}"))
}

fn no_readable(selector: &Selector, unreadable: u64) -> Failure {
    let records = count(unreadable, "record");
    let message = format!("no readable snapshot {selector}: {records} cannot be read");
    with_hint(message, "`forgekeep check` lists the damage")
}

/// Returns the failure that a selector fits snapshots of several groups, and how to write each.
fn ambiguous(selector: &Selector, filter: &Filter, groups: &BTreeMap<Group, Members>) -> Failure {
    let mut sorted: Vec<(&Group, &Members)> = groups.iter().collect();
    sorted.sort_by_key(|(_, members)| std::cmp::Reverse(members.newest));
    let choices: Vec<(String, &Members)> = sorted
        .iter()
        .take(SHOWN_CHOICES)
        .map(|(group, members)| {
            // The same options would be ambiguous again.
            let choice = match filter.names_exactly(group) {
                true => members.newest.id.short(),
                false => group.spelled(&selector.which, filter, groups),
            };
            (choice, *members)
        })
        .collect();
    let width = choices.iter().map(|(choice, _)| choice.chars().count()).max().unwrap_or_default();
    let mut lines = vec!["write one of these:".to_owned()];
    for (choice, Members { count: number, newest }) in choices {
        let Position { seconds, nanoseconds, .. } = *newest;
        let time = local_time(Time { seconds, nanoseconds });
        let number = count(*number, "snapshot");
        lines.push(format!("  {choice:width$}  {number}, the newest of {time}"));
    }
    if groups.len() > SHOWN_CHOICES {
        lines.push(format!("  and {} more", groups.len() - SHOWN_CHOICES));
    }
    let what = described(groups);
    usage(format!("{selector} is ambiguous: there are snapshots of {what}"), lines.join("\n"))
}

/// Counts what the groups differ by.
fn described(groups: &BTreeMap<Group, Members>) -> String {
    let (mut names, mut sets, mut hosts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for group in groups.keys() {
        hosts.insert(group.host());
        match group {
            Group::Instance { name, .. } => drop(names.insert(name)),
            Group::Paths(source) => drop(sets.insert(&source.paths)),
        }
    }
    let mut what = Vec::new();
    if !names.is_empty() {
        what.push(count(names.len() as u64, "instance"));
    }
    match sets.len() {
        0 => {}
        1 => what.push("1 set of paths".into()),
        sets => what.push(format!("{sets} sets of paths")),
    }
    let mut what = what.join(" and ");
    if hosts.len() > 1 {
        what += &format!(" on {} machines", hosts.len());
    }
    what
}

/// Maximum number of entries read to suggest a path.
const LOOKED_AT: usize = 50_000;

/// Returns the failure that a snapshot lacks a path, with a suggestion.
pub fn no_path(store: &Store, id: &SnapshotId, root: &ChunkId, path: &[u8]) -> Failure {
    let message = format!("snapshot {} has no /{}", id.short(), display_path(path));
    let lists = format!("`forgekeep ls {}` lists its paths", id.short());
    if let Some((link, leads_to)) = store::tree::link_on(root, path, store) {
        let (link, leads_to) = (display_path(&link), display_path(&leads_to));
        return with_hint(
            message,
            format!("/{link} is a symbolic link there; ask for /{leads_to}"),
        );
    }
    let hint = match likely(store, root, path) {
        Some(likely) => format!("did you mean /{}? {lists}", display_path(&likely)),
        None => format!("{lists}; `forgekeep find NAME` searches all snapshots"),
    };
    with_hint(message, hint)
}

/// Returns a path that ends with this one, or else the path most like it in the same directory.
fn likely(store: &Store, root: &ChunkId, path: &[u8]) -> Option<Vec<u8>> {
    let entries = TreeReader::new(root, store).take(LOOKED_AT).filter_map(Result::ok);
    let end = [b"/", path].concat();
    let (parent, name) = split(path);
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        if entry.path.ends_with(&end) {
            return Some(entry.path);
        }
        let (dir, own) = split(&entry.path);
        if dir == parent {
            names.extend(String::from_utf8(own.to_vec()).ok());
        }
    }
    let name = std::str::from_utf8(name).ok()?;
    let closest = forge::suggest::closest(name, names.iter().map(String::as_str))?;
    let mut likely = parent.to_vec();
    if !likely.is_empty() {
        likely.push(b'/');
    }
    likely.extend(closest.as_bytes());
    Some(likely)
}

/// Splits a path into its directory and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
