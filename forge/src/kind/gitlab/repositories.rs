//! Checks of repositories: those of all projects, others named by rows, and the pools they borrow
//! from. Each must be one that git accepts as a repository.

mod config;
#[cfg(test)]
mod git;
mod loose;
mod objects;
pub mod reference_names;
mod reftable;
mod whole;

use crate::catalogue::{Catalogue, Project, Repository};
use crate::check::{Check, Verdict};
use crate::coverage::{Gaps, Where};
use crate::earlier::Earlier;
use crate::error::Result;
use crate::links::{self, lexically};
use crate::plan::{Phase, Plan};
use crate::view::{Seen, View, shown};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use whole::{Examined, Examiner, OUTSIDE, OUTSIDE_PARTS, References, State};

/// Directories of storages by name.
type Storages<'a> = BTreeMap<&'a str, &'a Path>;

/// Results of examining repositories, by their directories.
type Known = BTreeMap<PathBuf, Examined>;

/// Checks that the copy has the repositories in the catalogue, and marks those that it has. Compares
/// them with those of an earlier copy, if there is one.
pub fn check(
    plan: &Plan,
    catalogue: &mut Catalogue,
    view: &View<'_>,
    earlier: Option<&Earlier<'_>>,
) -> Result<Vec<Check>> {
    let (storages, mut known) = (storages(plan), Known::new());
    let mut checks = vec![
        check_repositories(plan, &storages, &mut catalogue.projects, view, &mut known)?,
        check_others(plan, &storages, &mut catalogue.repositories, view, &mut known)?,
        check_pools(plan, &storages, catalogue, view, &mut known)?,
    ];
    if let Some(earlier) = earlier {
        match compare(plan, catalogue, view, &known, earlier) {
            Err(error) if error.is_interrupted() => return Err(error),
            // An unreadable earlier snapshot does not fail this backup.
            Err(error) => {
                let snapshot = earlier.id.short();
                let text = format!("cannot compare repositories with snapshot {snapshot}: {error}");
                checks.push(Check::new("references", Verdict::Unknown, text));
            }
            Ok(check) => checks.extend(check),
        }
    }
    Ok(checks)
}

/// Examines repositories of a copy, or of this machine.
fn examine(plan: &Plan, view: &View<'_>, dirs: &[PathBuf]) -> Result<Vec<Examined>> {
    Examiner { root: &plan.root, view, is_current: true }.examine(dirs)
}

/// Returns the name of a storage's part.
pub fn part(storage: &str) -> String {
    if storage == "default" { "repositories".into() } else { format!("repositories-{storage}") }
}

fn storages(plan: &Plan) -> Storages<'_> {
    let repositories = plan.parts.iter().filter(|part| part.phase == Phase::Repositories);
    repositories
        .filter_map(|part| {
            let name = part.name.strip_prefix("repositories-").unwrap_or("default");
            Some((name, part.paths.first()?.as_path()))
        })
        .collect()
}

/// Looks on this machine for a repository that is missing or damaged in the copy.
fn on_machine(plan: &Plan, place: &Path) -> Result<Where> {
    let examined = examine(plan, &View::Live, &[place.to_owned()])?.pop();
    Ok(match examined.map(|examined| examined.state) {
        Some(State::Whole) => Where::Here,
        Some(State::Damaged(_)) => Where::Otherwise,
        Some(State::Absent) | None => Where::Nowhere,
    })
}

/// Looks for a repository that is missing or damaged in the copy.
fn found_of(plan: &Plan, place: &Path, state: State) -> Result<Where> {
    match state {
        // Another copy would not follow the link either.
        State::Damaged(OUTSIDE) => Ok(Where::Elsewhere),
        _ => on_machine(plan, place),
    }
}

/// Names a repository, its place and its fault.
fn described(name: &str, place: &Path, state: State) -> String {
    match state {
        State::Damaged(fault) => format!("{name}: {} {fault}", shown(place)),
        State::Whole | State::Absent => format!("{name}: {}", shown(place)),
    }
}

/// Returns the directory of a storage. If the storage is not a part, records that for the
/// repository `name`.
fn storage_dir<'a>(
    gaps: &mut Gaps<'_>,
    plan: &Plan,
    storages: &Storages<'a>,
    storage: &str,
    name: &str,
) -> Option<&'a Path> {
    let dir = storages.get(storage).copied();
    let part = part(storage);
    if dir.is_none() && plan.excused.has(&part) {
        gaps.excuse(&format!("storage {storage}"));
    } else if dir.is_none() {
        // The storage must be somewhere else.
        let text = format!("{name}: its storage {storage} is not a part");
        gaps.add(&part, text, Where::Elsewhere);
    }
    dir
}

fn check_repositories(
    plan: &Plan,
    storages: &Storages<'_>,
    projects: &mut [Project],
    view: &View<'_>,
    known: &mut Known,
) -> Result<Check> {
    let (mut gaps, count) = (Gaps::new(plan, view), projects.len());
    let (mut found, mut dirs) = (Vec::new(), Vec::new());
    let (mut pending, mut failed, mut importing) = (0, 0, Vec::new());
    let tracked = tracked_elsewhere(plan, storages, projects, view)?;
    let drifted = drifted(projects);
    for project in projects {
        let part = part(&project.storage);
        let dir = storages.get(project.storage.as_str());
        gaps.look(&part, || format!("projects of storage {}", project.storage), dir.copied());
        let dir = storage_dir(&mut gaps, plan, storages, &project.storage, &project.name());
        let Some(dir) = dir else { continue };
        let [wiki, design] = project.others();
        dirs.extend([&project.repository, &wiki, &design].map(|path| dir.join(path)));
        found.push((project, [wiki, design]));
    }
    let examined = examine(plan, view, &dirs)?;
    known.extend(dirs.iter().cloned().zip(examined.iter().copied()));
    let states: Vec<State> = examined.iter().map(|examined| examined.state).collect();
    for (((project, [wiki, design]), dirs), states) in
        found.into_iter().zip(dirs.chunks_exact(3)).zip(states.chunks_exact(3))
    {
        let place = view.place(&dirs[0]);
        project.place = (place != dirs[0]).then(|| shown(&place));
        project.is_copied = states[0] != State::Absent;
        // Wikis and designs are optional.
        project.wiki = (states[1] != State::Absent).then_some(wiki);
        project.design = (states[2] != State::Absent).then_some(design);
        if states[0] == State::Absent && project.is_pending_deletion {
            pending += 1;
            continue;
        }
        if states[0] == State::Absent && project.has_failed_import {
            failed += 1;
            continue;
        }
        let is_fault = |at: usize| match states[at] {
            State::Whole => false,
            State::Absent => at == 0 || (at == 2 && project.has_designs),
            State::Damaged(_) => true,
        };
        if project.is_importing && (0..3).any(is_fault) {
            importing.push(project.name().into_owned());
            continue;
        }
        let names = ["", " (wiki)", " (designs)"];
        let mut is_first = true;
        for (at, (&state, what)) in states.iter().zip(names).enumerate() {
            if is_fault(at) {
                let place = view.place(&dirs[at]);
                let mut name = format!("{}{what}", project.name());
                if let Some(other) = tracked.get(&project.id).filter(|_| at == 0) {
                    let other = shown(other);
                    name += &format!(" (`project_repositories` names {other}, and one is there)");
                }
                let (text, found) =
                    (described(&name, &place, state), found_of(plan, &place, state)?);
                match (is_first, at) {
                    (false, _) => gaps.add_further(text, found),
                    (true, 0) => gaps.add(&part(&project.storage), text, found),
                    // The project itself is there.
                    (true, _) => gaps.add_incomplete(text, found),
                }
                is_first = false;
            }
        }
    }
    let mut check = with_pending(gaps.check("repositories", "projects", count), pending);
    if failed > 0 {
        check.text += &format!("; {failed} without a repository have a failed import");
    }
    if let Some(names) = some_of(&importing) {
        check.text += &format!("; {IMPORTING}: {names}");
    }
    check.text += &drifted;
    Ok(check)
}

/// Finds the repositories that are in the place that `project_repositories` names, and not where
/// GitLab looks, by numbers of projects.
fn tracked_elsewhere(
    plan: &Plan,
    storages: &Storages<'_>,
    projects: &[Project],
    view: &View<'_>,
) -> Result<BTreeMap<u64, PathBuf>> {
    let place = |project: &Project| {
        let (storage, path) = project.tracked.as_ref()?;
        let dir = storages.get(storage.as_str())?;
        Some((project.id, dir.join(path)))
    };
    let places: Vec<(u64, PathBuf)> = projects.iter().filter_map(place).collect();
    let dirs: Vec<PathBuf> = places.iter().map(|(_, dir)| dir.clone()).collect();
    let examined = examine(plan, view, &dirs)?;
    let all = places.into_iter().zip(examined);
    let found = all.filter(|(_, examined)| examined.state != State::Absent);
    Ok(found.map(|((id, dir), _)| (id, view.place(&dir))).collect())
}

/// Names projects whose row of `project_repositories` disagrees with their own.
fn drifted(projects: &[Project]) -> String {
    let all = projects.iter().filter(|project| project.tracked.is_some());
    let all: Vec<String> = all.map(|project| project.name().into_owned()).collect();
    some_of(&all).map_or_else(String::new, |names| {
        format!(
            "; `project_repositories` names another place than the row of {names}, which GitLab uses"
        )
    })
}

/// Introduces projects that may be incomplete.
const IMPORTING: &str = "incomplete because their first import has not finished";

/// Maximum number of things that a text names.
const NAMED_MAX: usize = 3;

/// Names some of these things and counts the others. `None` without any.
fn some_of(names: &[String]) -> Option<String> {
    let named = names.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        all if all > NAMED_MAX => Some(format!("{named} and {} more", all - NAMED_MAX)),
        _ => Some(named),
    }
}

/// Adds the number of absent repositories whose owner is marked for deletion.
fn with_pending(mut check: Check, pending: usize) -> Check {
    if pending > 0 {
        check.text += &format!("; {pending} without a repository are being deleted");
    }
    check
}

/// Checks the repositories of snippets and group wikis.
fn check_others(
    plan: &Plan,
    storages: &Storages<'_>,
    repositories: &mut [Repository],
    view: &View<'_>,
    known: &mut Known,
) -> Result<Check> {
    let (mut gaps, count) = (Gaps::new(plan, view), repositories.len());
    let (mut found, mut dirs) = (Vec::new(), Vec::new());
    for repository in repositories {
        let (storage, name) = (repository.storage.clone(), repository.to_string());
        let place = storages.get(storage.as_str()).copied();
        gaps.look(&part(&storage), || format!("other repositories of storage {storage}"), place);
        let dir = storage_dir(&mut gaps, plan, storages, &storage, &name);
        let Some(dir) = dir else { continue };
        dirs.push(dir.join(&repository.repository));
        found.push(repository);
    }
    let examined = examine(plan, view, &dirs)?;
    known.extend(dirs.iter().cloned().zip(examined.iter().copied()));
    let mut pending = 0;
    for ((repository, dir), Examined { state, .. }) in found.into_iter().zip(&dirs).zip(examined) {
        repository.is_copied = state != State::Absent;
        if state == State::Absent && repository.is_pending_deletion {
            pending += 1;
            continue;
        }
        if state != State::Whole {
            let name = repository.to_string();
            let place = view.place(dir);
            let found = found_of(plan, &place, state)?;
            gaps.add(&part(&repository.storage), described(&name, &place, state), found);
        }
    }
    let check = gaps.check("other-repositories", "repositories of snippets and group wikis", count);
    Ok(with_pending(check, pending))
}

/// A repository of a project or of another owner, at its place of today.
struct Owned<'a> {
    /// Name for people.
    name: String,
    storage: &'a str,
    dir: PathBuf,
    /// Place in the earlier copy.
    earlier_dir: PathBuf,
    is_pending_deletion: bool,
    is_importing: bool,
    /// True if its project has had the same pool all the time.
    is_member: bool,
    /// Group of repositories that the check of the copy counts together.
    group: Group,
}

/// A group of repositories of one storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Projects,
    Others,
    Pools,
}

/// Returns the groups of each storage of which at least half is missing. A mount is missing then, and
/// their check reports it.
fn unmounted<'a>(
    catalogue: &'a Catalogue,
    storages: &Storages<'_>,
    known: &Known,
) -> BTreeSet<(&'a str, Group)> {
    let projects = catalogue.projects.iter();
    let projects = projects.map(|one| (&one.storage, &one.repository, Group::Projects));
    let others = catalogue.repositories.iter();
    let others = others.map(|one| (&one.storage, &one.repository, Group::Others));
    let pools = catalogue.projects.iter();
    let pools = pools.filter_map(|one| Some((&one.storage, one.pool.as_ref()?, Group::Pools)));
    let mut counts: BTreeMap<(&str, Group), (usize, usize)> = BTreeMap::new();
    for (storage, repository, group) in projects.chain(others).chain(pools) {
        let Some(dir) = storages.get(storage.as_str()) else { continue };
        let Some(examined) = known.get(&dir.join(repository)) else { continue };
        let (all, absent) = counts.entry((storage, group)).or_default();
        *all += 1;
        *absent += usize::from(examined.state == State::Absent);
    }
    let much = counts.into_iter().filter(|(_, (all, absent))| *absent >= all.div_ceil(2).max(1));
    much.map(|(group, _)| group).collect()
}

impl Owned<'_> {
    /// Returns true if the repository is damaged now, or lacks something that it had.
    fn is_lost(&self, now: &Examined, then: &Examined) -> bool {
        now.is_lost_since(then) || self.has_left_pool(now, then)
    }

    /// Returns true if only the branch of HEAD is gone. In a mirror, the other side may have renamed
    /// it.
    fn lost_only_head(&self, now: &Examined, then: &Examined) -> bool {
        let is_grave = now.references.lack_all(then.references)
            || now.lost_packs(then)
            || now.lost_packed_references(then)
            || self.has_left_pool(now, then);
        now.state == State::Whole && !is_grave
    }

    /// Returns true if it lost the file that names its pool, although its row still names it.
    fn has_left_pool(&self, now: &Examined, then: &Examined) -> bool {
        self.is_member && then.borrows && !now.borrows
    }
}

/// Finds each repository of the catalogue in an earlier copy, by the number of its owner: the
/// repository may have been moved since.
fn paired<'a>(
    storages: &Storages<'a>,
    catalogue: &'a Catalogue,
    earlier: &Earlier<'_>,
) -> Vec<Owned<'a>> {
    let dir_then =
        |storage: &str, today: &Path| earlier.place(&part(storage)).unwrap_or(today).to_owned();
    let projects: BTreeMap<u64, &Project> =
        earlier.projects.iter().map(|project| (project.id, project)).collect();
    let mut all = Vec::new();
    for project in &catalogue.projects {
        let Some(dir) = storages.get(project.storage.as_str()) else { continue };
        // Without a list of projects, the earlier copy can only be compared by path.
        let then = match projects.get(&project.id) {
            Some(then) => *then,
            None if projects.is_empty() => project,
            None => continue,
        };
        let earlier_dir = dir_then(&then.storage, dir);
        let ([wiki, design], [wiki_then, design_then]) = (project.others(), then.others());
        for (path, path_then, what) in [
            (&project.repository, &then.repository, ""),
            (&wiki, &wiki_then, " (wiki)"),
            (&design, &design_then, " (designs)"),
        ] {
            all.push(Owned {
                name: format!("{}{what}", project.name()),
                storage: &project.storage,
                dir: dir.join(path),
                earlier_dir: earlier_dir.join(path_then),
                is_pending_deletion: project.is_pending_deletion,
                is_importing: project.is_importing,
                is_member: what.is_empty() && project.pool.is_some() && project.pool == then.pool,
                group: Group::Projects,
            });
        }
    }
    let repositories: BTreeMap<(&str, u64), &Repository> = earlier
        .repositories
        .iter()
        .map(|repository| ((repository.of.as_str(), repository.id), repository))
        .collect();
    for repository in &catalogue.repositories {
        let Some(dir) = storages.get(repository.storage.as_str()) else { continue };
        let then = match repositories.get(&(repository.of.as_str(), repository.id)) {
            Some(then) => *then,
            None if repositories.is_empty() => repository,
            None => continue,
        };
        all.push(Owned {
            name: repository.to_string(),
            storage: &repository.storage,
            dir: dir.join(&repository.repository),
            earlier_dir: dir_then(&then.storage, dir).join(&then.repository),
            is_pending_deletion: repository.is_pending_deletion,
            is_importing: false,
            is_member: false,
            group: Group::Others,
        });
    }
    all
}

/// Finds pools in an earlier copy, by their paths.
fn paired_pools<'a>(
    storages: &Storages<'a>,
    catalogue: &'a Catalogue,
    known: &Known,
    earlier: &Earlier<'_>,
) -> Vec<Owned<'a>> {
    let mut pools: BTreeMap<PathBuf, Owned<'a>> = BTreeMap::new();
    for project in &catalogue.projects {
        let Some(dir) = storages.get(project.storage.as_str()) else { continue };
        let Some(pool) = &project.pool else { continue };
        let path = dir.join(pool);
        // A pool that nobody borrows from is about to be removed.
        if !known.contains_key(&path) {
            continue;
        }
        let earlier_dir = earlier.place(&part(&project.storage)).unwrap_or(dir).join(pool);
        pools.entry(path.clone()).or_insert_with(|| Owned {
            name: format!("pool of {}", project.name()),
            storage: &project.storage,
            dir: path,
            earlier_dir,
            is_pending_deletion: false,
            is_importing: false,
            is_member: false,
            group: Group::Pools,
        });
    }
    pools.into_values().collect()
}

/// A repository that has lost something since an earlier copy.
struct Compared<'a> {
    one: Owned<'a>,
    now: Examined,
    then: Examined,
    /// Packed references that are gone, for people.
    gone: Option<String>,
}

/// References that GitLab deletes by itself.
const DELETED_BY_GITLAB: [&[u8]; 3] = [b"refs/pipelines/", b"refs/keep-around/", b"refs/tmp/"];

/// Describes the references of an earlier `packed-refs` that a repository without this file does not
/// have in any other form. `None` if there are none, or if that is unknown.
fn gone(view: &View<'_>, view_then: &View<'_>, one: &Owned<'_>) -> Result<Option<String>> {
    let has_refs = view.look(&[one.dir.join("refs")])?;
    if !has_refs.iter().flatten().any(|seen| seen.is_dir) {
        // The repository is behind a link.
        return Ok(None);
    }
    let then = reference_names::packed(view_then, &one.earlier_dir)?;
    let Some((then, now)) = then.zip(reference_names::read(view, &one.dir)?) else {
        return Ok(None);
    };
    let is_kept = |name: &Vec<u8>| !DELETED_BY_GITLAB.iter().any(|start| name.starts_with(start));
    let gone = then.keys().filter(|name| is_kept(name) && !now.contains_key(*name));
    let gone: Vec<&Vec<u8>> = gone.collect();
    let branch = gone.iter().find(|name| name.starts_with(b"refs/heads/"));
    Ok(branch.or(gone.first()).map(|first| {
        let name = store::entry::display_path(first);
        format!("its packed-refs, with {} of {} references, such as {name}", gone.len(), then.len())
    }))
}

/// Compares repositories with those of an earlier copy. A repository that had references then must
/// be whole and have some now, unless its project is being deleted, or imported again.
fn compare(
    plan: &Plan,
    catalogue: &Catalogue,
    view: &View<'_>,
    known: &Known,
    earlier: &Earlier<'_>,
) -> Result<Option<Check>> {
    let storages = storages(plan);
    let mut all = paired(&storages, catalogue, earlier);
    all.extend(paired_pools(&storages, catalogue, known, earlier));
    let unmounted = unmounted(catalogue, &storages, known);
    let may_be_lost = |one: &Owned<'_>| {
        let now = known.get(&one.dir)?;
        if now.state == State::Absent && unmounted.contains(&(one.storage, one.group)) {
            return None;
        }
        let is_less = now.state != State::Whole
            || now.references.lack(References::ALL)
            || !now.packs_references
            || now.has_objects && !now.has_packs;
        (is_less || one.is_member && !now.borrows).then_some(*now)
    };
    let all: Vec<(Owned<'_>, Examined)> =
        all.into_iter().filter_map(|one| may_be_lost(&one).map(|now| (one, now))).collect();
    let dirs: Vec<PathBuf> = all.iter().map(|(one, _)| one.earlier_dir.clone()).collect();
    let view_then = earlier.view();
    let then = Examiner { root: &plan.root, view: &view_then, is_current: false }.examine(&dirs)?;
    let mut lost = Vec::new();
    for ((one, mut now), then) in all.into_iter().zip(then) {
        // New repositories, and those whose packs were unpacked, have only loose objects.
        now.has_packs |= now.lost_packs(&then) && loose::is_complete(&view.place(&one.dir));
        let is_suspect = now.state == State::Whole && now.lost_packed_references(&then);
        let gone = if is_suspect { gone(view, &view_then, &one)? } else { None };
        // A new repository in the same place may have all of them as loose ones.
        now.packs_references |= gone.is_none();
        if one.is_lost(&now, &then) {
            lost.push(Compared { one, now, then, gone });
        }
    }
    let (pending, lost): (Vec<_>, Vec<_>) =
        lost.into_iter().partition(|lost| lost.one.is_pending_deletion);
    // A second try of an import removes the repository of the first one.
    let (importing, lost): (Vec<_>, Vec<_>) =
        lost.into_iter().partition(|lost| lost.one.is_importing);
    if pending.is_empty() && importing.is_empty() && lost.is_empty() {
        return Ok(None);
    }
    let is_excused = lost.iter().all(|lost| plan.excused.has(&part(lost.one.storage)));
    let is_grave = |lost: &Compared<'_>| !lost.one.lost_only_head(&lost.now, &lost.then);
    let is_excused = is_excused || !lost.iter().any(is_grave);
    let mut text = format!(
        "{} repositories had references in snapshot {} that are lost or unreadable now",
        lost.len() + pending.len() + importing.len(),
        earlier.id.short()
    );
    if !pending.is_empty() {
        text += &format!("; projects of {} of them are being deleted", pending.len());
    }
    let importing: Vec<String> = importing.into_iter().map(|lost| lost.one.name).collect();
    if let Some(names) = some_of(&importing) {
        text += &format!("; {IMPORTING}: {names}");
    }
    let verdict = match lost.is_empty() {
        true => Verdict::Ok,
        false if is_excused => Verdict::Warning,
        false => Verdict::Failed,
    };
    // Another copy would not find repositories that this machine has lost as well.
    let dirs: Vec<PathBuf> = lost.iter().map(|lost| lost.one.dir.clone()).collect();
    let machine = examine(plan, &View::machine(&plan.mounts), &dirs)?;
    let is_settled = lost.iter().zip(machine).all(|(lost, mut machine)| {
        machine.packs_references |= lost.gone.is_none();
        lost.one.is_lost(&machine, &lost.then)
    });
    let lost = lost.into_iter().map(|Compared { one, now, then, gone }| {
        let text = described(&one.name, &view.place(&one.dir), now.state);
        if now.state != State::Whole {
            text
        } else if let Some(gone) = gone {
            format!("{text} lacks {gone}")
        } else if one.lost_only_head(&now, &then) {
            format!("{text} lacks the branch of its HEAD")
        } else if one.has_left_pool(&now, &then) {
            format!("{text} no longer borrows from its pool")
        } else if now.lost_packs(&then) {
            format!("{text} has no packs any more")
        } else {
            text
        }
    });
    let mut check = Check::new("references", verdict, text).with_examples(lost);
    check.is_settled = is_settled;
    let hint = "restore them from that snapshot; if they are empty on purpose, \
                `lost = \"ok\"` in the instance's `checks` makes this a warning";
    Ok(Some(if verdict == Verdict::Ok { check } else { check.with_hint(hint) }))
}

/// A repository that may borrow objects.
#[derive(Clone)]
struct Borrower<'a> {
    /// Name for people.
    name: String,
    storage: &'a str,
    dir: PathBuf,
    /// The project, if it is the repository of one.
    project: Option<&'a Project>,
}

/// Objects that a repository borrows.
struct Loan<'a> {
    borrower: Borrower<'a>,
    /// File that names the lender.
    file: PathBuf,
    /// Repository with the objects.
    lender: PathBuf,
}

impl Loan<'_> {
    /// Name of the lender for people.
    fn name(&self) -> String {
        match self.borrower.project {
            Some(project) => format!("pool of {}", project.name()),
            None => format!("repository that {} borrows from", self.borrower.name),
        }
    }
}

/// Returns all repositories of a catalogue, whose copies were examined.
fn borrowers<'a>(storages: &Storages<'_>, catalogue: &'a Catalogue) -> Vec<Borrower<'a>> {
    let mut all = Vec::new();
    for project in &catalogue.projects {
        let storage = project.storage.as_str();
        let Some(dir) = storages.get(storage) else { continue };
        let (wiki, design) = (project.wiki.as_ref(), project.design.as_ref());
        for (path, what, project_of) in [
            (Some(&project.repository), "", Some(project)),
            (wiki, " (wiki)", None),
            (design, " (designs)", None),
        ] {
            let name = format!("{}{what}", project.name());
            let borrower = |path: &String| Borrower {
                name,
                storage,
                dir: dir.join(path),
                project: project_of,
            };
            all.extend(path.map(borrower));
        }
    }
    for repository in &catalogue.repositories {
        let storage = repository.storage.as_str();
        let Some(dir) = storages.get(storage) else { continue };
        let (name, dir) = (repository.to_string(), dir.join(&repository.repository));
        all.push(Borrower { name, storage, dir, project: None });
    }
    all
}

/// Finds what repositories borrow, and what their lenders borrow themselves. Adds descriptions of
/// projects whose row names another pool to `odd`.
fn loans<'a>(
    storages: &Storages<'_>,
    catalogue: &'a Catalogue,
    view: &View<'_>,
    odd: &mut Vec<String>,
) -> Result<Vec<Loan<'a>>> {
    let mut loans = Vec::new();
    let mut next = borrowers(storages, catalogue);
    let mut known: BTreeSet<PathBuf> = next.iter().map(|one| one.dir.clone()).collect();
    while !next.is_empty() {
        let files: Vec<PathBuf> =
            next.iter().map(|one| one.dir.join("objects/info/alternates")).collect();
        let mut lenders = Vec::new();
        for ((borrower, file), seen) in next.iter().zip(&files).zip(view.read(&files)?) {
            // A project without lines is linked to its pool by the next housekeeping; until then it
            // has its own objects.
            for line in alternates(seen.as_ref()) {
                let objects = lexically(&borrower.dir.join("objects").join(line));
                let lender = objects.parent().unwrap_or(&objects).to_owned();
                let storage = storages.get(borrower.storage).copied();
                odd.extend(
                    borrower
                        .project
                        .zip(storage)
                        .and_then(|(project, dir)| odd_pool(project, dir, &lender, &objects)),
                );
                let loan = Loan { borrower: borrower.clone(), file: file.clone(), lender };
                if known.insert(loan.lender.clone()) {
                    let (name, dir) = (loan.name(), loan.lender.clone());
                    lenders.push(Borrower { name, dir, project: None, ..*borrower });
                }
                loans.push(loan);
            }
        }
        next = lenders;
    }
    Ok(loans)
}

/// Describes a project that borrows from another place than its row names.
fn odd_pool(project: &Project, storage: &Path, lender: &Path, objects: &Path) -> Option<String> {
    match project.pool.as_ref().map(|named| storage.join(named)) {
        None => Some(format!(
            "{}: it borrows objects, but its row does not name a pool",
            project.name()
        )),
        Some(named) if objects != named.join("objects") => Some(format!(
            "{}: it borrows objects from {}, but its row names {}",
            project.name(),
            shown(lender),
            shown(&named)
        )),
        Some(_) => None,
    }
}

/// Returns true if a directory of this machine is in no part, so that no copy has it.
fn is_outside(plan: &Plan, dir: &Path) -> bool {
    let real = links::real(dir);
    let holds = |path: &PathBuf| real.starts_with(links::real(path));
    let is_skipped = plan.skipped.iter().any(|left| holds(&left.path));
    is_skipped || !plan.parts.iter().any(|part| part.paths.iter().any(holds))
}

/// Checks the pools that projects borrow objects from, and all other lenders. Without its lender, a
/// repository loses objects.
fn check_pools(
    plan: &Plan,
    storages: &Storages<'_>,
    catalogue: &Catalogue,
    view: &View<'_>,
    known: &mut Known,
) -> Result<Check> {
    let mut odd = Vec::new();
    let loans = loans(storages, catalogue, view, &mut odd)?;
    let lenders: Vec<PathBuf> = loans.iter().map(|loan| loan.lender.clone()).collect();
    let examined = examine(plan, view, &lenders)?;
    let mut gaps = Gaps::new(plan, view);
    for (loan, lender_now) in loans.iter().zip(examined) {
        let Loan { borrower, file, lender } = loan;
        known.insert(lender.clone(), lender_now);
        let is_needed = known.get(&borrower.dir).is_none_or(|borrower| {
            // A member whose pool is empty is damaged.
            borrower.references.any || matches!(borrower.state, State::Damaged(_))
        });
        let state = match lender_now.state {
            // Members with references have left their objects to it.
            State::Whole if !lender_now.has_objects && is_needed => {
                State::Damaged("has no objects")
            }
            state => state,
        };
        let part = part(borrower.storage);
        let pools = storages.get(borrower.storage).map(|dir| dir.join("@pools"));
        let what = || format!("pools that projects of storage {} borrow from", borrower.storage);
        // Without its pool a member has lost objects, so even a single missing pool is a failure.
        gaps.look_strictly(&part, what, pools.as_deref());
        let place = view.place(lender);
        let is_whole = state == State::Whole;
        if (view.is_live() || !is_whole) && place.exists() && is_outside(plan, &place) {
            let text = described(&loan.name(), &place, State::Damaged(OUTSIDE_PARTS));
            gaps.add(&part, text, Where::Elsewhere);
        } else if !is_whole {
            // If the alternates file is gone by now, the project has left its pool and no longer
            // borrows.
            let found = match view.place(file).exists() {
                true => on_machine(plan, &place)?,
                false => Where::Here,
            };
            // A damaged pool has lost objects, too.
            let is_empty = state != lender_now.state && found == Where::Here;
            let found = match found {
                Where::Otherwise => Where::Nowhere,
                Where::Here if is_empty && !has_objects(plan, &place)? => Where::Nowhere,
                found => found,
            };
            gaps.add(&part, described(&loan.name(), &place, state), found);
        }
    }
    let is_of_project = |loan: &Loan<'_>| loan.borrower.project.is_some();
    let what = match loans.iter().all(is_of_project) {
        true => "members of pools",
        false => "repositories that borrow objects",
    };
    let mut check = gaps.check("pools", what, loans.len());
    if !odd.is_empty() {
        check.verdict = check.verdict.max(Verdict::Warning);
        check.text += &format!("; rows and disk disagree about {} of them", odd.len());
        let examples = std::mem::take(&mut check.examples).into_iter().chain(odd);
        check = check.with_examples(examples);
    }
    Ok(check)
}

/// Returns true if a repository on this machine has objects.
fn has_objects(plan: &Plan, place: &Path) -> Result<bool> {
    let examined = examine(plan, &View::Live, &[place.to_owned()])?;
    Ok(examined.iter().any(|examined| examined.has_objects))
}

/// Returns the paths in an alternates file.
fn alternates(seen: Option<&Seen>) -> Vec<PathBuf> {
    let content = seen.and_then(|seen| seen.content.as_deref()).unwrap_or_default();
    let lines = store::git::alternates(content);
    lines.map(|line| PathBuf::from(OsStr::from_bytes(&line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_pools_on_disk_are_compared() {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = dir.path();
        let text = "kind = 'gitlab'\nchecks = { lost = 'ok' }";
        let excused: crate::settings::Settings = toml::from_str(text).expect("settings");
        let strict = toml::from_str("kind = 'gitlab'").expect("settings");
        let [excused, strict] = [excused, strict].map(|settings| {
            let mut plan = Plan::new("forge", "gitlab", &settings);
            plan.storage("repositories", storage, None);
            plan
        });
        for (name, pool) in [("one", "a"), ("two", "b"), ("three", "gone")] {
            let info = storage.join(format!("@hashed/{name}.git/objects/info"));
            std::fs::create_dir_all(&info).expect("directories");
            let line = format!("../../../@pools/{pool}.git/objects\n");
            std::fs::write(info.join("alternates"), line).expect("writes");
        }
        for pool in ["a", "b"] {
            whole::make(&storage.join(format!("@pools/{pool}.git")));
        }
        let project = |name: &str, pool: Option<&str>| Project {
            id: 1,
            path: format!("group/{name}"),
            storage: "default".into(),
            repository: format!("@hashed/{name}.git"),
            place: None,
            wiki: None,
            design: None,
            pool: pool.map(|pool| format!("@pools/{pool}.git")),
            forked_from: None,
            is_copied: false,
            is_pending_deletion: false,
            is_importing: false,
            has_designs: false,
            tracked: None,
            has_failed_import: false,
        };
        let check = |plan: &Plan, projects: &[Project]| {
            let mut known = Known::new();
            let catalogue = Catalogue { projects: projects.to_vec(), ..Catalogue::default() };
            check_pools(plan, &storages(plan), &catalogue, &View::Live, &mut known).expect("looks")
        };
        let present = [project("one", Some("a")), project("two", Some("b"))];
        assert_eq!(check(&strict, &present).verdict, Verdict::Ok);
        let odd = check(&strict, &[project("one", Some("b")), project("two", None)]);
        assert_eq!(odd.verdict, Verdict::Warning);
        assert!(odd.examples[0].contains("@pools/a.git, but"), "{odd:?}");
        assert!(odd.examples[0].ends_with("@pools/b.git"), "{odd:?}");
        assert!(odd.examples[1].ends_with("does not name a pool"), "{odd:?}");
        // One missing pool among several is a failure.
        let lost = [&present[..], &[project("three", Some("gone"))]].concat();
        let failed = check(&strict, &lost);
        assert_eq!(failed.verdict, Verdict::Failed, "{failed:?}");
        assert!(failed.text.contains("borrow from are missing at"), "{failed:?}");
        assert_eq!(check(&excused, &lost).verdict, Verdict::Warning);
        // Without an alternates file, the project has its own objects.
        std::fs::remove_file(storage.join("@hashed/three.git/objects/info/alternates"))
            .expect("removes");
        assert_eq!(check(&strict, &lost).verdict, Verdict::Ok);
    }

    #[test]
    fn lenders_outside_all_parts_are_failures_for_every_kind_of_repository() {
        let dir = tempfile::tempdir().expect("a directory");
        let (storage, outside) = (dir.path().join("storage"), dir.path().join("outside/base.git"));
        let settings = toml::from_str("kind = 'gitlab'").expect("settings");
        let mut plan = Plan::new("forge", "gitlab", &settings);
        plan.storage("repositories", &storage, None);
        whole::make(&outside);
        let lend = |path: &str, lender: &Path| {
            let file = storage.join(path).join("objects/info/alternates");
            std::fs::create_dir_all(file.parent().expect("below")).expect("directories");
            std::fs::write(file, format!("{}/objects\n", lender.display())).expect("writes");
        };
        let project = Project {
            id: 1,
            path: "group/one".into(),
            storage: "default".into(),
            repository: "one.git".into(),
            place: None,
            wiki: Some("one.wiki.git".into()),
            design: Some("one.design.git".into()),
            pool: Some("@pools/a.git".into()),
            forked_from: None,
            is_copied: true,
            is_pending_deletion: false,
            is_importing: false,
            has_designs: true,
            tracked: None,
            has_failed_import: false,
        };
        let of = |of: &str| Repository {
            of: of.into(),
            id: 1,
            storage: "default".into(),
            repository: format!("{}.git", &of[..2]),
            is_copied: true,
            is_pending_deletion: false,
        };
        let catalogue = Catalogue {
            projects: vec![project],
            repositories: vec![of("snippet"), of("wiki of group")],
            ..Catalogue::default()
        };
        let check = || {
            let mut known = Known::new();
            check_pools(&plan, &storages(&plan), &catalogue, &View::Live, &mut known)
                .expect("looks")
        };
        whole::make(&storage.join("@pools/a.git"));
        lend("one.git", &storage.join("@pools/a.git"));
        assert_eq!(check(), Check::ok("pools", "checked 1 members of pools; all are present"));
        for (path, name) in [
            ("one.git", "pool of group/one"),
            ("one.wiki.git", "repository that group/one (wiki) borrows from"),
            ("one.design.git", "repository that group/one (designs) borrows from"),
            ("sn.git", "repository that snippet 1 borrows from"),
            ("wi.git", "repository that wiki of group 1 borrows from"),
            ("@pools/a.git", "repository that pool of group/one borrows from"),
        ] {
            lend(path, &outside);
            let failed = check();
            assert_eq!(failed.verdict, Verdict::Failed, "{path}: {failed:?}");
            let example = format!("{name}: {} is not in a part", outside.display());
            assert!(failed.examples[0].starts_with(&example), "{path}: {failed:?}");
            let file = storage.join(path).join("objects/info/alternates");
            std::fs::remove_file(file).expect("removes");
            lend("one.git", &storage.join("@pools/a.git"));
        }
        // As a part, the lender is copied.
        lend("one.wiki.git", &outside);
        plan.takes("base", "", outside.clone());
        let mut known = Known::new();
        let check = check_pools(&plan, &storages(&plan), &catalogue, &View::Live, &mut known);
        assert_eq!(check.expect("looks").verdict, Verdict::Ok);
    }

    #[test]
    fn alternates_are_resolved_like_in_git() {
        let seen = Seen {
            is_dir: false,
            size: 0,
            target: None,
            content: Some(b"# pool\n../../../@pools/a.git/objects\n\n".to_vec()),
        };
        assert_eq!(alternates(Some(&seen)), [Path::new("../../../@pools/a.git/objects")]);
        let objects = Path::new("/s/@hashed/6b/86.git/objects/../../../@pools/a.git/objects");
        assert_eq!(lexically(objects), Path::new("/s/@hashed/@pools/a.git/objects"));
        assert!(alternates(None).is_empty());
    }
}
