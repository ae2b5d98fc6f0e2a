//! Checks of repositories: those of all projects, others named by rows, and the pools they borrow
//! from. Each must be one that git accepts as a repository.

mod whole;

use crate::catalogue::{Catalogue, Project, Repository};
use crate::check::{Check, Verdict};
use crate::coverage::{Gaps, Where};
use crate::error::Result;
use crate::links::lexically;
use crate::plan::{Phase, Plan};
use crate::view::{Seen, View, shown};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use whole::{State, examine, has_references};

/// Directories of storages by name.
type Storages<'a> = BTreeMap<&'a str, &'a Path>;

/// Checks that the copy has the repositories in the catalogue, and marks those that it has.
pub fn check(plan: &Plan, catalogue: &mut Catalogue, view: &View<'_>) -> Result<[Check; 3]> {
    let storages = storages(plan);
    Ok([
        check_repositories(plan, &storages, &mut catalogue.projects, view)?,
        check_others(plan, &storages, &mut catalogue.repositories, view)?,
        check_pools(plan, &storages, &catalogue.projects, view)?,
    ])
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
fn on_machine(place: &Path) -> Result<Where> {
    let state = examine(&View::Live, &[place.to_owned()])?.pop();
    Ok(match state {
        Some(State::Whole) => Where::Here,
        Some(State::Damaged(_)) => Where::Otherwise,
        Some(State::Absent) | None => Where::Nowhere,
    })
}

/// Records a repository that is missing or damaged in the copy.
fn add(gaps: &mut Gaps<'_>, storage: &str, name: &str, place: &Path, state: &State) -> Result<()> {
    let text = match state {
        State::Damaged(fault) => format!("{name}: {} {fault}", shown(place)),
        State::Whole | State::Absent => format!("{name}: {}", shown(place)),
    };
    gaps.add(&part(storage), text, on_machine(place)?);
    Ok(())
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
    if dir.is_none() {
        let part = part(storage);
        let text = format!("{name}: its storage {storage} is not a part");
        // Unless its loss is excused, the storage must be somewhere else.
        let found = if plan.excused.has(&part) { Where::Nowhere } else { Where::Elsewhere };
        gaps.add(&part, text, found);
    }
    dir
}

fn check_repositories(
    plan: &Plan,
    storages: &Storages<'_>,
    projects: &mut [Project],
    view: &View<'_>,
) -> Result<Check> {
    let (mut gaps, count) = (Gaps::new(plan, view), projects.len());
    let (mut known, mut dirs, mut pending) = (Vec::new(), Vec::new(), 0);
    for project in projects {
        let part = part(&project.storage);
        let dir = storages.get(project.storage.as_str());
        gaps.look(&part, || format!("projects of storage {}", project.storage), dir.copied());
        let dir = storage_dir(&mut gaps, plan, storages, &project.storage, &project.path);
        let Some(dir) = dir else { continue };
        let [wiki, design] = project.others();
        dirs.extend([&project.repository, &wiki, &design].map(|path| dir.join(path)));
        known.push((project, [wiki, design]));
    }
    let states = examine(view, &dirs)?;
    for (((project, [wiki, design]), dirs), states) in
        known.into_iter().zip(dirs.chunks_exact(3)).zip(states.chunks_exact(3))
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
        let names = [String::new(), " (wiki)".into(), " (designs)".into()];
        for (at, (state, what)) in states.iter().zip(names).enumerate() {
            let is_fault = match state {
                State::Whole => false,
                State::Absent => at == 0 || (at == 2 && project.has_designs),
                State::Damaged(_) => true,
            };
            if is_fault {
                let name = format!("{}{what}", project.path);
                add(&mut gaps, &project.storage, &name, &view.place(&dirs[at]), state)?;
            }
        }
    }
    let mut check = gaps.check("repositories", "projects", count);
    if pending > 0 {
        check.text += &format!("; {pending} without a repository are being deleted");
    }
    Ok(check)
}

/// Checks the repositories of snippets and group wikis.
fn check_others(
    plan: &Plan,
    storages: &Storages<'_>,
    repositories: &mut [Repository],
    view: &View<'_>,
) -> Result<Check> {
    let (mut gaps, count) = (Gaps::new(plan, view), repositories.len());
    let (mut known, mut dirs) = (Vec::new(), Vec::new());
    for repository in repositories {
        let (storage, name) = (repository.storage.clone(), repository.to_string());
        let place = storages.get(storage.as_str()).copied();
        gaps.look(&part(&storage), || format!("other repositories of storage {storage}"), place);
        let dir = storage_dir(&mut gaps, plan, storages, &storage, &name);
        let Some(dir) = dir else { continue };
        dirs.push(dir.join(&repository.repository));
        known.push(repository);
    }
    let states = examine(view, &dirs)?;
    for ((repository, dir), state) in known.into_iter().zip(&dirs).zip(states) {
        repository.is_copied = state != State::Absent;
        if state != State::Whole {
            let name = repository.to_string();
            add(&mut gaps, &repository.storage, &name, &view.place(dir), &state)?;
        }
    }
    Ok(gaps.check("other-repositories", "repositories of snippets and group wikis", count))
}

/// Compares repositories with those of an earlier copy. A repository that had references then must
/// have some now, unless its project is being deleted.
pub fn compare(
    plan: &Plan,
    catalogue: &Catalogue,
    view: &View<'_>,
    before: &View<'_>,
) -> Result<Option<Check>> {
    let storages = storages(plan);
    let mut all = Vec::new();
    for project in &catalogue.projects {
        let Some(dir) = storages.get(project.storage.as_str()) else { continue };
        let [wiki, design] = project.others();
        let paths = [(&project.repository, ""), (&wiki, " (wiki)"), (&design, " (designs)")];
        all.extend(paths.map(|(path, what)| {
            let name = format!("{}{what}", project.path);
            (dir.join(path), name, &project.storage, project.is_pending_deletion)
        }));
    }
    for repository in &catalogue.repositories {
        let Some(dir) = storages.get(repository.storage.as_str()) else { continue };
        let path = dir.join(&repository.repository);
        all.push((path, repository.to_string(), &repository.storage, false));
    }
    let dirs: Vec<PathBuf> = all.iter().map(|(dir, ..)| dir.clone()).collect();
    let now = has_references(view, &dirs)?;
    all = all.into_iter().zip(now).filter(|(_, has)| !has).map(|(one, _)| one).collect();
    let dirs: Vec<PathBuf> = all.iter().map(|(dir, ..)| dir.clone()).collect();
    let had = has_references(before, &dirs)?;
    let lost = all.into_iter().zip(had).filter(|(_, had)| *had).map(|(one, _)| one);
    let (pending, lost): (Vec<_>, Vec<_>) = lost.partition(|(.., is_pending)| *is_pending);
    if pending.is_empty() && lost.is_empty() {
        return Ok(None);
    }
    let is_excused = lost.iter().all(|(_, _, storage, _)| plan.excused.has(&part(storage)));
    let mut text = format!(
        "{} repositories had references in an earlier snapshot and have none now",
        lost.len() + pending.len()
    );
    if !pending.is_empty() {
        text += &format!("; projects of {} of them are being deleted", pending.len());
    }
    let verdict = match lost.is_empty() {
        true => Verdict::Ok,
        false if is_excused => Verdict::Warning,
        false => Verdict::Failed,
    };
    // What this machine has lost as well, another copy would not find.
    let dirs: Vec<PathBuf> = lost.iter().map(|(dir, ..)| dir.clone()).collect();
    let machine = View::machine(&plan.mounts);
    let is_settled = !has_references(&machine, &dirs)?.contains(&true);
    let lost =
        lost.into_iter().map(|(dir, name, ..)| format!("{name}: {}", shown(&view.place(&dir))));
    let mut check = Check::new("references", verdict, text).with_examples(lost);
    check.is_settled = is_settled;
    let hint = "restore them from that snapshot; if they are empty on purpose, \
                `lost = \"ok\"` in the instance's `checks` makes this a warning";
    Ok(Some(if verdict == Verdict::Ok { check } else { check.with_hint(hint) }))
}

/// Checks the pools that projects borrow objects from. Without its pool, a member loses objects.
fn check_pools(
    plan: &Plan,
    storages: &Storages<'_>,
    projects: &[Project],
    view: &View<'_>,
) -> Result<Check> {
    let members: Vec<(&Project, &Path)> = projects
        .iter()
        .filter_map(|project| Some((project, *storages.get(project.storage.as_str())?)))
        .collect();
    let objects = |project: &Project, dir: &Path| dir.join(&project.repository).join("objects");
    let files: Vec<PathBuf> = members
        .iter()
        .map(|(project, dir)| objects(project, dir).join("info/alternates"))
        .collect();
    let mut borrowed: Vec<(&Project, &PathBuf, PathBuf)> = Vec::new();
    let mut odd = Vec::new();
    let seen = view.read(&files)?;
    for (((project, dir), file), seen) in members.iter().zip(&files).zip(seen) {
        let lines = alternates(seen.as_ref());
        if lines.is_empty() && project.pool.is_some() {
            continue; // linked by the next housekeeping; until then it has its own objects
        }
        for line in lines {
            let pool = lexically(&objects(project, dir).join(line));
            let named = project.pool.as_ref().map(|named| dir.join(named));
            match &named {
                None => odd.push(format!(
                    "{}: it borrows objects, but its row does not name a pool",
                    project.path
                )),
                Some(named) if pool != named.join("objects") => odd.push(format!(
                    "{}: it borrows objects from {}, but its row names {}",
                    project.path,
                    shown(pool.parent().unwrap_or(&pool)),
                    shown(named)
                )),
                Some(_) => {}
            }
            borrowed.push((project, file, pool));
        }
    }
    let pools: Vec<PathBuf> = borrowed.iter().map(|(.., pool)| pool.clone()).collect();
    let repositories: Vec<PathBuf> =
        pools.iter().filter_map(|pool| pool.parent()).map(Path::to_owned).collect();
    let states = examine(view, &repositories)?;
    let mut gaps = Gaps::new(plan, view);
    for ((project, file, pool), state) in borrowed.iter().zip(states) {
        let part = part(&project.storage);
        let place = storages.get(project.storage.as_str()).map(|dir| dir.join("@pools"));
        let what = || format!("pools that projects of storage {} borrow from", project.storage);
        // Without its pool a member has lost objects, so even a single missing pool is a failure.
        gaps.look_strictly(&part, what, place.as_deref());
        if state != State::Whole {
            let (pool, file) = (&view.place(pool), &view.place(file));
            // If the alternates file is gone by now, the project has left its pool and no longer
            // borrows.
            let found = if file.exists() {
                on_machine(pool.parent().unwrap_or(pool))?
            } else {
                Where::Here
            };
            // A damaged pool has lost objects, too.
            let found = if found == Where::Otherwise { Where::Nowhere } else { found };
            let fault = if let State::Damaged(fault) = state { fault } else { "" };
            gaps.add(&part, format!("{}: {} {fault}", project.path, shown(pool)), found);
        }
    }
    let mut check = gaps.check("pools", "members of pools", borrowed.len());
    if !odd.is_empty() {
        check.verdict = check.verdict.max(Verdict::Warning);
        check.text += &format!("; rows and disk disagree about {} of them", odd.len());
        let examples = std::mem::take(&mut check.examples).into_iter().chain(odd);
        check = check.with_examples(examples);
    }
    Ok(check)
}

/// Returns the paths in an alternates file.
fn alternates(seen: Option<&Seen>) -> Vec<String> {
    let content = seen.and_then(|seen| seen.content.as_deref()).unwrap_or_default();
    let text = String::from_utf8_lossy(content).into_owned();
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
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
            has_designs: false,
        };
        let check = |plan: &Plan, projects: &[Project]| {
            check_pools(plan, &storages(plan), projects, &View::Live).expect("looks")
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
        assert!(failed.text.contains("borrow from are not at"), "{failed:?}");
        assert_eq!(check(&excused, &lost).verdict, Verdict::Warning);
        // Without an alternates file, the project has its own objects.
        std::fs::remove_file(storage.join("@hashed/three.git/objects/info/alternates"))
            .expect("removes");
        assert_eq!(check(&strict, &lost).verdict, Verdict::Ok);
    }

    #[test]
    fn alternates_are_resolved_like_in_git() {
        let seen = Seen {
            is_dir: false,
            size: 0,
            content: Some(b"# pool\n../../../@pools/a.git/objects\n\n".to_vec()),
        };
        assert_eq!(alternates(Some(&seen)), ["../../../@pools/a.git/objects"]);
        let objects = Path::new("/s/@hashed/6b/86.git/objects/../../../@pools/a.git/objects");
        assert_eq!(lexically(objects), Path::new("/s/@hashed/@pools/a.git/objects"));
        assert!(alternates(None).is_empty());
    }
}
