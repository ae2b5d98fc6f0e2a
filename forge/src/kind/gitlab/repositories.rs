//! Whether a copy has the repositories of all projects, and the pools that they borrow from.

use crate::catalogue::{Catalogue, Project};
use crate::check::{Check, Verdict};
use crate::copy::{Copy, Seen, shown};
use crate::error::Result;
use crate::fit::{Gaps, Where};
use crate::links::lexically;
use crate::plan::{Phase, Plan};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Directories of storages by name.
type Storages<'a> = BTreeMap<&'a str, &'a Path>;

/// Looks whether the copy has the repositories that the catalogue names, and marks those that
/// it has.
pub fn check(plan: &Plan, catalogue: &mut Catalogue, copy: &Copy<'_>) -> Result<[Check; 2]> {
    let storages = storages(plan);
    Ok([
        check_repositories(plan, &storages, &mut catalogue.projects, copy)?,
        check_pools(plan, &storages, &catalogue.projects, copy)?,
    ])
}

/// The name of the part of a storage.
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

fn check_repositories(
    plan: &Plan,
    storages: &Storages<'_>,
    projects: &mut [Project],
    copy: &Copy<'_>,
) -> Result<Check> {
    let (mut gaps, count) = (Gaps::new(plan, copy), projects.len());
    let (mut known, mut paths) = (Vec::new(), Vec::new());
    for project in projects {
        let part = part(&project.storage);
        let dir = storages.get(project.storage.as_str());
        gaps.look(&part, || format!("projects of storage {}", project.storage), dir.copied());
        let Some(dir) = dir else {
            let text = format!("{}: its storage {} is not a part", project.path, project.storage);
            // One that nobody has excused is somewhere.
            let found = if plan.excused.has(&part) { Where::Nowhere } else { Where::Here };
            gaps.add(&part, text, found);
            continue;
        };
        let stem = project.repository.trim_end_matches(".git");
        let others = ["wiki", "design"].map(|what| format!("{stem}.{what}.git"));
        paths.push(dir.join(&project.repository));
        paths.extend(others.iter().map(|path| dir.join(path)));
        known.push((project, others));
    }
    let seen = copy.look(&paths)?;
    for (((project, [wiki, design]), paths), seen) in
        known.into_iter().zip(paths.chunks_exact(3)).zip(seen.chunks_exact(3))
    {
        let place = copy.place(&paths[0]);
        project.place = (place != paths[0]).then(|| shown(&place));
        project.is_copied = seen[0].is_some();
        // Not every project has them.
        project.wiki = seen[1].is_some().then_some(wiki);
        project.design = seen[2].is_some().then_some(design);
        if !project.is_copied {
            let found = if place.exists() { Where::Here } else { Where::Nowhere };
            let text = format!("{}: {}", project.path, shown(&place));
            gaps.add(&part(&project.storage), text, found);
        }
    }
    Ok(gaps.check("repositories", "projects", count))
}

/// Every pool that a member borrows from has to be there, or its objects are lost.
fn check_pools(
    plan: &Plan,
    storages: &Storages<'_>,
    projects: &[Project],
    copy: &Copy<'_>,
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
    let seen = copy.read(&files)?;
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
                    "{}: it borrows objects, though its row names no pool",
                    project.path
                )),
                Some(named) if pool != named.join("objects") => odd.push(format!(
                    "{}: it borrows objects from {}, though its row names {}",
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
    let mut gaps = Gaps::new(plan, copy);
    for ((project, file, pool), seen) in borrowed.iter().zip(copy.look(&pools)?) {
        let part = part(&project.storage);
        let place = storages.get(project.storage.as_str()).map(|dir| dir.join("@pools"));
        let what = || format!("pools that projects of storage {} borrow from", project.storage);
        // Without its pool a member has lost objects, however few such members there are.
        gaps.look_strictly(&part, what, place.as_deref());
        if seen.is_none() {
            let (pool, file) = (&copy.place(pool), &copy.place(file));
            // A member of a pool that was given up meanwhile does not borrow any more.
            let is_here = pool.exists() || !file.exists();
            let found = if is_here { Where::Here } else { Where::Nowhere };
            gaps.add(&part, format!("{}: {}", project.path, shown(pool)), found);
        }
    }
    let mut check = gaps.check("pools", "members of pools", borrowed.len());
    if !odd.is_empty() {
        check.verdict = check.verdict.max(Verdict::Warning);
        check.text += &format!("; rows and disk disagree about {}", odd.len());
        let examples = std::mem::take(&mut check.examples).into_iter().chain(odd);
        check = check.with_examples(examples);
    }
    Ok(check)
}

/// The paths in a file of alternates.
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
            let objects = storage.join(format!("@pools/{pool}.git/objects"));
            std::fs::create_dir_all(objects).expect("directories");
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
        };
        let check = |plan: &Plan, projects: &[Project]| {
            check_pools(plan, &storages(plan), projects, &Copy::Live).expect("looks")
        };
        let fits = [project("one", Some("a")), project("two", Some("b"))];
        assert_eq!(check(&strict, &fits).verdict, Verdict::Ok);
        let odd = check(&strict, &[project("one", Some("b")), project("two", None)]);
        assert_eq!(odd.verdict, Verdict::Warning);
        assert!(odd.examples[0].contains("@pools/a.git, though"), "{odd:?}");
        assert!(odd.examples[0].ends_with("@pools/b.git"), "{odd:?}");
        assert!(odd.examples[1].ends_with("names no pool"), "{odd:?}");
        // One of many is enough.
        let lost = [&fits[..], &[project("three", Some("gone"))]].concat();
        let failed = check(&strict, &lost);
        assert_eq!(failed.verdict, Verdict::Failed, "{failed:?}");
        assert!(failed.text.contains("borrow from are not at"), "{failed:?}");
        assert_eq!(check(&excused, &lost).verdict, Verdict::Warning);
        // Without alternates it has its own objects.
        std::fs::remove_file(storage.join("@hashed/three.git/objects/info/alternates"))
            .expect("removes");
        assert_eq!(check(&strict, &lost).verdict, Verdict::Ok);
    }

    #[test]
    fn alternates_are_followed_as_git_does() {
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
