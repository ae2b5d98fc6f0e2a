use super::{Global, projects};
use crate::config::Config;
use crate::exit::{Failure, usage, with_hint};
use crate::json::{self, ForgetDecision, ForgetSummary, KeepReason};
use crate::report::{civil_time, count, local_time, now, shown, size, utc_time};
use crate::select::{self, ListFilter};
use crate::selector::Selector;
use crate::ui::Ui;
use clap::{Args, ValueEnum};
use forge::catalogue::Project;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use store::annotations::Annotations;
use store::entry::{Displayed, Time};
use store::forget::Permitted;
use store::id::SnapshotId;
use store::observe::Event;
use store::prune::{self, Freed};
use store::retention::{self, Candidate, Decision, Number, Period, Reason, Rules, Soundness};
use store::snapshot::{Snapshot, SnapshotSource};
use store::store::{Purpose, Store};

/// Heading of the options with rules, in help texts.
const HEADING: &str = "Rules";

/// Delete snapshots by rules, or those that are named
///
/// The rules keep snapshots, and all others go. They apply to each group of snapshots by itself: to
/// those of one instance and machine, or of one set of paths and machine. Each rule looks at the
/// newest snapshot first. --keep-daily 14 keeps the newest snapshot of each of the last 14 days that
/// have one, in the time zone of this machine. A snapshot stays if any rule keeps it. If a rule has
/// places left, the oldest snapshot stays as well.
///
/// Only complete snapshots count for rules, and only if no source had lost most of its files. Others
/// stay until one that counts is newer. One that is dated in the future always stays, with a warning.
/// The newest complete snapshot of each instance or set of paths always stays, and so do pinned
/// snapshots (`forgekeep pin`).
///
/// Without rules on the command line, the key `keep` of each instance in the configuration applies, or
/// that of --instance only. Without any rule, nothing is deleted.
///
/// With SNAPSHOT, exactly these snapshots go. Pinned ones are refused, and so is the last complete one
/// of an instance or of a set of paths without --allow-last. An id also names a snapshot whose record
/// is damaged.
///
/// The space of the deleted snapshots stays in use until `forgekeep prune`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep forget --keep-daily 14 --keep-weekly 8 --keep-monthly 24 --dry-run --explain
  forgekeep forget --keep-within 30d --keep-tag release --host forge
  forgekeep forget --instance gitlab            by the key `keep` of the instance
  forgekeep forget                              the same for all instances
  forgekeep forget 3f2a0b12 gitlab@2026-11-20   exactly these two
  forgekeep forget 3f2a0b12 --allow-last        the last one of a machine that is gone

In the configuration:
  [instances.gitlab]
  keep = { last = 7, daily = 14, weekly = 8, monthly = 24, within = \"7d\", tags = [\"release\"] }")]
pub struct Forget {
    /// Delete these snapshots (`forgekeep --help` lists all forms)
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    #[command(flatten)]
    keep: Keep,
    /// Properties that tell groups apart, separated by commas
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "instance,host,paths",
        help_heading = HEADING
    )]
    group_by: Vec<Property>,
    /// Print for each snapshot whether it stays, and why; for those that go also the bytes that only they need, and the projects that no other snapshot has. Reads all trees
    #[arg(long)]
    explain: bool,
    /// Print what would be deleted, and delete nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Delete the last complete snapshot of an instance or of a set of paths, too
    #[arg(long, requires = "snapshots")]
    allow_last: bool,
    #[command(flatten)]
    filter: ListFilter,
}

/// Rules on the command line.
#[derive(Debug, Args)]
struct Keep {
    /// Keep the N newest snapshots; N can be `unlimited` here and below
    #[arg(long, value_name = "N", help_heading = HEADING)]
    keep_last: Option<Number>,
    /// Keep the newest snapshot of each of the last N hours with snapshots
    #[arg(long, value_name = "N", help_heading = HEADING)]
    keep_hourly: Option<Number>,
    /// The same for days
    #[arg(long, value_name = "N", help_heading = HEADING)]
    keep_daily: Option<Number>,
    /// The same for weeks, which begin on Monday
    #[arg(long, value_name = "N", help_heading = HEADING)]
    keep_weekly: Option<Number>,
    /// The same for months
    #[arg(long, value_name = "N", help_heading = HEADING)]
    keep_monthly: Option<Number>,
    /// The same for years
    #[arg(long, value_name = "N", help_heading = HEADING)]
    keep_yearly: Option<Number>,
    /// Keep all snapshots of this period before the newest complete one, such as 30d, 12h or 1y6m
    #[arg(long, value_name = "PERIOD", help_heading = HEADING)]
    keep_within: Option<Period>,
    /// Keep snapshots with this tag (can be repeated: any of them)
    #[arg(long, value_name = "TAG", help_heading = HEADING, value_parser = crate::select::word)]
    keep_tag: Vec<String>,
}

impl Keep {
    fn rules(&self) -> Rules {
        Rules {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
            tags: self.keep_tag.clone(),
        }
    }
}

/// A property that tells groups of snapshots apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Property {
    /// Name of the instance
    Instance,
    /// Name of the machine
    Host,
    /// Source paths; those of an instance do not count beside its name
    Paths,
}

/// Rules for some snapshots of a store.
struct Task {
    rules: Rules,
    filter: ListFilter,
}

impl Forget {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let rules = self.keep.rules();
        if !self.snapshots.is_empty() {
            if rules != Rules::default() {
                let message = "SNAPSHOT and rules exclude each other";
                return Err(usage(message, "name snapshots, or give rules with --keep-…"));
            }
            return self.named(global, ui);
        }
        let mut tasks = BTreeMap::<PathBuf, Vec<Task>>::new();
        if rules != Rules::default() {
            if rules.is_empty() {
                return Err(usage("these rules keep nothing", "give a number above 0"));
            }
            let place = global.place_for(self.filter.only_instance())?;
            tasks.entry(place).or_default().push(Task { rules, filter: self.filter.clone() });
        } else {
            self.configured(global, &mut tasks)?;
        }
        let mut is_sure = true;
        for (place, tasks) in tasks {
            is_sure &= self.by_rules(&place, &tasks, ui)?;
        }
        select::answered(is_sure)
    }

    /// Deletes the named snapshots.
    fn named(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let wanted = self.snapshots.iter().map(|text| Selector::read(text));
        let wanted: Vec<Selector> = wanted.collect::<Result<_, _>>()?;
        let place = global.place_for(select::instance_of(&wanted, &self.filter))?;
        let (store, watch) = super::open_to_change(&place, ui, self.purpose(), "forget")?;
        let work = || -> Result<_, Failure> {
            let (selection, damaged) = select::with_damaged(&store, wanted, &self.filter)?;
            let (annotations, is_known) = select::annotations(&store)?;
            let mut ids: Vec<SnapshotId> = selection.snapshots.iter().map(|(id, _)| *id).collect();
            ids.extend(&damaged);
            store.may_forget(&ids, self.permitted(), now())?;
            Ok((selection, damaged, ids, annotations, is_known))
        };
        let (selection, damaged, ids, annotations, is_known) =
            work().inspect_err(|_| watch.end())?;
        // Signals still work while the result is printed.
        watch.hush();
        let place = store.place();
        let going: Vec<(SnapshotId, &Snapshot)> =
            selection.snapshots.iter().map(|(id, snapshot)| (*id, snapshot)).collect();
        let effects = self.effects(&store, &going).inspect_err(|_| watch.end())?;
        for (id, snapshot) in &going {
            let tags = annotations.tags(id, &snapshot.tags);
            let counts = soundness(snapshot, None, now()) == Soundness::Sound;
            let line = decision(&place, id, snapshot, &tags, counts, &[]);
            ui.json(&effects.added_to(id, line))?;
            let time = local_time(snapshot.start.into());
            let of = store::forget::shown(&snapshot.source().series());
            let text = format!("{}  {time}  {of}{}", id.short(), effects.text(id));
            if self.explain { ui.line(text)? } else { ui.remark(text)? }
        }
        for id in damaged {
            let text = format!("snapshot {}: its record is damaged", id.short());
            if self.explain { ui.line(text)? } else { ui.remark(text)? }
        }
        let deleted = self.delete(&store, &ids, ids.len(), &effects, ui);
        watch.end();
        deleted?;
        select::answered(selection.is_sure && is_known)
    }

    fn permitted(&self) -> Permitted {
        Permitted { last: self.allow_last, damaged: !self.snapshots.is_empty() }
    }

    fn purpose(&self) -> Purpose {
        if self.dry_run { Purpose::Read } else { Purpose::Delete }
    }

    /// Collects the rules of the configuration, by store.
    fn configured(
        &self,
        global: &Global,
        tasks: &mut BTreeMap<PathBuf, Vec<Task>>,
    ) -> Result<(), Failure> {
        let shown = global.config.path().displayed();
        let without_rules = |message: String| {
            let hint = format!(
                "give rules such as --keep-daily 14, or add keep = {{ daily = 14 }} to the instance \
                 in {shown}"
            );
            with_hint(message, hint)
        };
        let Some(config) = global.config.read_if_any()? else {
            return Err(without_rules("no rules given: nothing is deleted".into()));
        };
        let names: BTreeSet<&String> = match self.filter.instance.is_empty() {
            true => config.instances.keys().collect(),
            false => self.filter.instance.iter().collect(),
        };
        let mut has_other = false;
        for name in names {
            let rules = match rules_of(&config, name) {
                Some(rules) => rules,
                None if self.filter.instance.is_empty() => continue,
                None => {
                    let text = match config.instances.contains_key(name) {
                        true => format!("instance {name} has no rules: nothing is deleted"),
                        false => format!(
                            "no rules given, and no instance {name} is configured: nothing is deleted"
                        ),
                    };
                    return Err(without_rules(text));
                }
            };
            let place = global.place_for(Some(name))?;
            if let Some(other) = other_store(&config, name, &place)? {
                // Each store has its own rules: an archive may keep more.
                if self.filter.instance.is_empty() {
                    has_other = true;
                    continue;
                }
                let message = format!(
                    "the rules of instance {name} are for its own store, {}: nothing is deleted",
                    other.displayed()
                );
                return Err(with_hint(message, "give rules with --keep-…"));
            }
            let filter = ListFilter { instance: vec![name.clone()], ..self.filter.clone() };
            tasks.entry(place).or_default().push(Task { rules: rules.clone(), filter });
        }
        if tasks.is_empty() {
            let of_store = if has_other { " of this store" } else { "" };
            return Err(without_rules(format!(
                "no rules given, and no instance{of_store} has some: nothing is deleted"
            )));
        }
        Ok(())
    }

    /// Decides about the snapshots of a store by rules, and deletes those that go. Returns false if
    /// another snapshot might change the decisions.
    fn by_rules(&self, place: &Path, tasks: &[Task], ui: &Ui) -> Result<bool, Failure> {
        let (store, watch) = super::open_to_change(place, ui, self.purpose(), "forget")?;
        let read = || -> Result<_, Failure> {
            let (annotations, mut is_sure) = select::annotations(&store)?;
            let mut selections = Vec::new();
            for task in tasks {
                let selection = select::annotated(&store, &task.filter, &annotations)?;
                is_sure &= selection.is_sure;
                selections.push((task, selection.snapshots));
            }
            Ok((annotations, selections, is_sure))
        };
        let (annotations, selections, mut is_sure) = read().inspect_err(|_| watch.end())?;
        // Signals still work while the result is printed.
        watch.hush();
        let (mut plans, mut considered) = (Vec::new(), 0);
        for (task, snapshots) in &selections {
            considered += snapshots.len();
            let judged = judged(snapshots);
            is_sure &= judged.iter().all(|soundness| *soundness != Soundness::Future);
            warn_of_times(snapshots, &judged, ui);
            for group in self.groups(snapshots) {
                plans.push(Plan::new(group, &task.rules, snapshots, &judged, &annotations));
            }
        }
        let going: Vec<(SnapshotId, &Snapshot)> = plans.iter().flat_map(Plan::going).collect();
        let effects = self.effects(&store, &going).inspect_err(|_| watch.end())?;
        for plan in &plans {
            plan.print(&store, self.explain, &effects, ui)?;
        }
        let ids: Vec<SnapshotId> = going.iter().map(|(id, _)| *id).collect();
        let deleted = self.delete(&store, &ids, considered, &effects, ui);
        watch.end();
        deleted.map(|()| is_sure)
    }

    /// Returns the snapshots of each group, as indices.
    fn groups(&self, snapshots: &[(SnapshotId, Snapshot)]) -> Vec<Vec<usize>> {
        let has = |property| self.group_by.contains(&property);
        let mut groups = BTreeMap::<SnapshotSource, Vec<usize>>::new();
        for (at, (_, snapshot)) in snapshots.iter().enumerate() {
            let source = snapshot.source();
            // The paths of an instance may change.
            let mut key = if has(Property::Instance) { source.series() } else { source };
            if !has(Property::Instance) {
                key.instance = None;
            }
            if !has(Property::Host) {
                key.host = String::new();
            }
            if !has(Property::Paths) {
                key.paths = Vec::new();
            }
            groups.entry(key).or_default().push(at);
        }
        groups.into_values().collect()
    }

    /// Returns the effects of deleting these snapshots, if they are to be explained. Warns if they
    /// cannot be found.
    fn effects(
        &self,
        store: &Store,
        going: &[(SnapshotId, &Snapshot)],
    ) -> Result<Effects, Failure> {
        if !self.explain {
            return Ok(Effects::default());
        }
        match Effects::of(store, going) {
            Err(failure) if !failure.is_interrupted() => {
                let reason = failure.words().map(|(message, _)| message).unwrap_or_default();
                let text = format!("cannot tell what the deletion frees and loses: {reason}");
                store.observer().event(Event::Warning(text));
                Ok(Effects::default())
            }
            found => found,
        }
    }

    /// Deletes snapshots unless it is a dry run, and prints the result.
    fn delete(
        &self,
        store: &Store,
        ids: &[SnapshotId],
        considered: usize,
        effects: &Effects,
        ui: &Ui,
    ) -> Result<(), Failure> {
        let forgotten = if self.dry_run {
            store.may_forget(ids, self.permitted(), now())?;
            ids.len() as u64
        } else {
            store.remove_stale_annotations()?;
            store.forget(ids, self.permitted(), now(), |_| {})?
        };
        let place = store.place();
        let stay = considered - ids.len();
        ui.json(&ForgetSummary {
            store: &place,
            dry_run: self.dry_run,
            snapshots: considered,
            stay,
            forgotten,
            bytes_freed: effects.freed.as_ref().map(|freed| freed.total),
        })?;
        let what = count(forgotten, "snapshot");
        let rest = if self.snapshots.is_empty() { format!(", {stay} stay") } else { String::new() };
        if let Some(freed) = effects.freed.as_ref().filter(|_| !ids.is_empty()) {
            ui.line(format!("a prune can free {}", size(freed.total)))?;
        }
        ui.line(match self.dry_run {
            true => format!("would delete {what} of {place}{rest}"),
            false => format!("deleted {what} of {place}{rest}"),
        })
    }
}

/// Returns the configured store of an instance if it is another one than that at `place`.
fn other_store<'a>(
    config: &'a Config,
    name: &str,
    place: &Path,
) -> Result<Option<&'a Path>, Failure> {
    let Some(settings) = config.instances.get(name) else { return Ok(None) };
    let Some(configured) = config.store_of(name, settings)? else { return Ok(None) };
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let is_other = real(&configured.path) != real(place);
    Ok(is_other.then_some(configured.path.as_path()))
}

/// Returns the rules of an instance, if it has some.
fn rules_of<'a>(config: &'a Config, name: &str) -> Option<&'a Rules> {
    let rules = config.instances.get(name)?.keep.as_ref()?;
    (!rules.is_empty()).then_some(rules)
}

/// Returns the reason why a snapshot counts for rules, or not.
fn soundness(snapshot: &Snapshot, parent: Option<&Snapshot>, now: Time) -> Soundness {
    if snapshot.is_from_future(now) {
        Soundness::Future
    } else if retention::has_wrong_time(snapshot, parent) {
        Soundness::WrongTime
    } else if snapshot.is_emptied() {
        Soundness::Emptied
    } else if !snapshot.is_complete() {
        Soundness::Incomplete
    } else {
        Soundness::Sound
    }
}

/// Returns for each snapshot why it counts for rules, or not.
fn judged(snapshots: &[(SnapshotId, Snapshot)]) -> Vec<Soundness> {
    let by_id: HashMap<SnapshotId, &Snapshot> =
        snapshots.iter().map(|(id, snapshot)| (*id, snapshot)).collect();
    let now = now();
    let judge = |(_, snapshot): &(SnapshotId, Snapshot)| {
        let parent = snapshot.parent.and_then(|id| by_id.get(&id.snapshot()));
        soundness(snapshot, parent.copied(), now)
    };
    snapshots.iter().map(judge).collect()
}

/// Warns of snapshots with a wrong time.
fn warn_of_times(snapshots: &[(SnapshotId, Snapshot)], judged: &[Soundness], ui: &Ui) {
    for ((id, snapshot), soundness) in snapshots.iter().zip(judged) {
        let (id, time) = (id.short(), local_time(snapshot.start.into()));
        match soundness {
            Soundness::Future => ui.warn(&format!(
                "snapshot {id} is dated in the future, {time}; it stays; check this machine's \
                 clock, or delete it with `forgekeep forget {id}`"
            )),
            Soundness::WrongTime => ui.warn(&format!(
                "the clock was set back during snapshot {id} of {time}, or before it; it stays; \
                 `forgekeep forget {id}` deletes it"
            )),
            _ => {}
        }
    }
}

/// Decisions about the snapshots of a group.
struct Plan<'a> {
    /// Newest first.
    decisions: Vec<Decision>,
    candidates: Vec<Candidate>,
    /// Snapshots of the candidates.
    snapshots: Vec<&'a Snapshot>,
}

impl<'a> Plan<'a> {
    fn new(
        group: Vec<usize>,
        rules: &Rules,
        all: &'a [(SnapshotId, Snapshot)],
        judged: &[Soundness],
        annotations: &Annotations,
    ) -> Plan<'a> {
        let mut series = BTreeMap::new();
        let candidate = |at: &usize| {
            let (id, snapshot) = &all[*at];
            let next = series.len();
            let series = series.entry(snapshot.source().series()).or_insert(next);
            Candidate {
                id: *id,
                series: *series,
                start: snapshot.start,
                civil: civil_time(snapshot.start.into()),
                soundness: judged[*at],
                tags: annotations.tags(id, &snapshot.tags).into_owned(),
                has_unknown_tags: annotations.has_unknown_tags(id),
                is_pinned: annotations.is_pinned(id),
            }
        };
        let candidates: Vec<Candidate> = group.iter().map(candidate).collect();
        let decisions = retention::decide(rules, &candidates);
        let snapshots = group.iter().map(|at| &all[*at].1).collect();
        Plan { decisions, candidates, snapshots }
    }

    /// Returns the snapshots that go, oldest first.
    fn going(&self) -> impl Iterator<Item = (SnapshotId, &'a Snapshot)> {
        let going = self.decisions.iter().rev().filter(|decision| !decision.stays());
        going.map(|of| (self.candidates[of.candidate].id, self.snapshots[of.candidate]))
    }

    fn print(
        &self,
        store: &Store,
        is_explained: bool,
        effects: &Effects,
        ui: &Ui,
    ) -> Result<(), Failure> {
        let stay = self.decisions.iter().filter(|decision| decision.stays()).count();
        let (all, go) = (self.decisions.len(), self.decisions.len() - stay);
        let mut shown: Vec<String> = self
            .snapshots
            .iter()
            .map(|snapshot| store::forget::shown(&snapshot.source().series()))
            .collect();
        shown.sort_unstable();
        shown.dedup();
        let of = match &shown[..] {
            [only] => only.clone(),
            several => format!("{} sources", several.len()),
        };
        let heading = format!("{of}: {}, {stay} stay, {go} go", count(all as u64, "snapshot"));
        if is_explained {
            ui.line(heading)?
        } else {
            ui.remark(heading)?
        }
        let mut month = String::new();
        for Decision { candidate, reasons } in &self.decisions {
            let (candidate, snapshot) = (&self.candidates[*candidate], self.snapshots[*candidate]);
            let counts = candidate.soundness == Soundness::Sound;
            let (place, tags) = (store.place(), &candidate.tags);
            let line = decision(&place, &candidate.id, snapshot, tags, counts, reasons);
            ui.json(&effects.added_to(&candidate.id, line))?;
            if !is_explained {
                continue;
            }
            let of_month = candidate.civil.strftime("%Y-%m").to_string();
            if month != of_month {
                ui.line(format!("  {of_month}"))?;
                month = of_month;
            }
            let day = candidate.civil.strftime("%d %a  %H:%M:%S");
            let verb = if reasons.is_empty() { "goes " } else { "stays" };
            let id = candidate.id.short();
            let (why, more) = (why(candidate.soundness, reasons), effects.text(&candidate.id));
            ui.line(format!("    {day}  {id}  {verb}  {why}{more}"))?;
        }
        Ok(())
    }
}

/// Maximum number of lost projects that a line for people names.
const PROJECTS_MAX: usize = 10;

/// Bytes that the deleted snapshots free, and projects that are lost with them.
#[derive(Default)]
struct Effects {
    freed: Option<Freed>,
    /// Paths of the projects of each snapshot that no snapshot has that stays.
    projects: HashMap<SnapshotId, Vec<String>>,
}

impl Effects {
    fn of(store: &Store, going: &[(SnapshotId, &Snapshot)]) -> Result<Effects, Failure> {
        let ids: Vec<SnapshotId> = going.iter().map(|(id, _)| *id).collect();
        let freed = Some(prune::freed(store, &ids)?);
        Ok(Effects { freed, projects: lost_projects(store, going)? })
    }

    /// Describes the effects of one of the snapshots.
    fn text(&self, id: &SnapshotId) -> String {
        let mut text = String::new();
        let own = self.freed.as_ref().and_then(|freed| freed.own.get(id));
        if let Some(own) = own.filter(|own| **own > 0) {
            text += &format!("; {} of its own", size(*own));
        }
        let lost = self.projects.get(id).map(Vec::as_slice).unwrap_or_default();
        if !lost.is_empty() {
            let named: Vec<_> = lost.iter().take(PROJECTS_MAX).map(|of| shown(of)).collect();
            let more = match lost.len().saturating_sub(PROJECTS_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            text += &format!("; in no other snapshot: {}{more}", named.join(", "));
        }
        text
    }

    /// Adds the effects to the line of a snapshot.
    fn added_to<'a>(&self, id: &SnapshotId, line: ForgetDecision<'a>) -> ForgetDecision<'a> {
        let bytes_own = self.freed.as_ref().and_then(|freed| freed.own.get(id)).copied();
        let projects_lost = bytes_own.map(|_| self.projects.get(id).cloned().unwrap_or_default());
        ForgetDecision { bytes_own, projects_lost, ..line }
    }
}

/// Returns the paths of the projects that are in no snapshot of their instance that stays, by
/// snapshot.
fn lost_projects(
    store: &Store,
    going: &[(SnapshotId, &Snapshot)],
) -> Result<HashMap<SnapshotId, Vec<String>>, Failure> {
    let name = |snapshot: &Snapshot| Some(snapshot.instance.as_ref()?.name.clone());
    let names: BTreeSet<String> = going.iter().filter_map(|(_, of)| name(of)).collect();
    let mut lost = HashMap::new();
    if names.is_empty() {
        return Ok(lost);
    }
    let is_going: BTreeSet<SnapshotId> = going.iter().map(|(id, _)| *id).collect();
    let mut records = store.records()?;
    records.retain(|header| {
        let instance = header.source.instance.as_ref();
        instance.is_some_and(|name| names.contains(name)) && !is_going.contains(&header.position.id)
    });
    let mut left = BTreeMap::<String, BTreeSet<u64>>::new();
    for record in records {
        store.observer().progress().check()?;
        let (id, snapshot) = record?;
        let projects = projects::catalogue(store, &id, &snapshot)?.unwrap_or_default();
        let copied = projects.iter().filter(|project| project.is_copied);
        left.entry(name(&snapshot).unwrap_or_default()).or_default().extend(copied.map(|of| of.id));
    }
    for (id, snapshot) in going {
        let Some(left) = name(snapshot).map(|name| left.get(&name)) else { continue };
        let projects = projects::catalogue(store, id, snapshot)?.unwrap_or_default();
        let is_left = |id: &u64| left.is_some_and(|left| left.contains(id));
        let gone = projects.into_iter().filter(|of| of.is_copied && !is_left(&of.id));
        let title = |project: Project| match project.path.is_empty() {
            true => project.repository,
            false => project.path,
        };
        lost.insert(*id, gone.map(title).collect());
    }
    Ok(lost)
}

/// Describes why a snapshot stays or goes.
fn why(soundness: Soundness, reasons: &[Reason]) -> String {
    let mut words: Vec<String> = reasons.iter().map(text).collect();
    match soundness {
        Soundness::Incomplete => words.insert(0, "incomplete".into()),
        Soundness::Emptied => words.insert(0, "its source was emptied".into()),
        _ => {}
    }
    if words.is_empty() { "no rule keeps it".into() } else { words.join(", ") }
}

/// Describes a reason why a snapshot stays.
fn text(reason: &Reason) -> String {
    match reason {
        Reason::Rule { rule, place, of, is_oldest } => {
            let oldest = if *is_oldest { ", the oldest" } else { "" };
            match of {
                Number::Of(of) => format!("{} {place} of {of}{oldest}", rule.name()),
                Number::Unlimited => format!("{} {place}{oldest}", rule.name()),
            }
        }
        Reason::Within(period) => format!("within {period}"),
        Reason::WithinSecond(period) => format!("within {period} of the second newest"),
        Reason::Tag(tag) => format!("tag {tag}"),
        Reason::UnknownTags => "a tag of it is unreadable".into(),
        Reason::Pinned => "pinned".into(),
        Reason::Newest => "newest complete one".into(),
        Reason::NothingNewer => "no complete one is newer".into(),
        Reason::Future => "dated in the future".into(),
        Reason::WrongTime => "the clock was set back".into(),
        Reason::NoRules => "no rules".into(),
    }
}

fn reason(reason: &Reason) -> KeepReason {
    let (mut at, mut number) = (None, None);
    let name = match reason {
        Reason::Rule { rule, place, of, .. } => {
            at = Some(*place);
            number = match of {
                Number::Of(of) => Some(*of),
                Number::Unlimited => None,
            };
            rule.name()
        }
        Reason::Within(_) | Reason::WithinSecond(_) => "within",
        Reason::Tag(_) => "tag",
        Reason::UnknownTags => "unknown-tags",
        Reason::Pinned => "pinned",
        Reason::Newest => "newest",
        Reason::NothingNewer => "nothing-newer",
        Reason::Future => "future",
        Reason::WrongTime => "wrong-time",
        Reason::NoRules => "no-rules",
    };
    KeepReason { reason: name, place: at, of: number, text: text(reason) }
}

fn decision<'a>(
    store: &'a str,
    id: &SnapshotId,
    snapshot: &'a Snapshot,
    tags: &'a [String],
    counts: bool,
    reasons: &[Reason],
) -> ForgetDecision<'a> {
    ForgetDecision {
        store,
        id: id.to_string(),
        short_id: id.short(),
        time: utc_time(snapshot.start.into()),
        day: civil_time(snapshot.start.into()).date().to_string(),
        hostname: &snapshot.host,
        instance: snapshot.instance.as_ref().map(|instance| instance.name.as_str()),
        paths: snapshot.paths.iter().map(|source| json::path(source).0).collect(),
        tags,
        counts,
        stays: !reasons.is_empty(),
        reasons: reasons.iter().map(reason).collect(),
        bytes_own: None,
        projects_lost: None,
    }
}
