//! Whether a copy has the repositories of all projects, and the pools that they borrow from.

use crate::catalogue::{Catalogue, Project};
use crate::check::{Check, Verdict};
use crate::copy::{Copy, Seen, shown};
use crate::error::Result;
use crate::fit::Gaps;
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
        check_repositories(&storages, &mut catalogue.projects, copy)?,
        check_pools(&storages, &catalogue.projects, copy)?,
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
    storages: &Storages<'_>,
    projects: &mut [Project],
    copy: &Copy<'_>,
) -> Result<Check> {
    let (mut gaps, count) = (Gaps::new(copy), projects.len());
    let (mut known, mut paths) = (Vec::new(), Vec::new());
    for project in projects {
        let Some(dir) = storages.get(project.storage.as_str()) else {
            let text = format!("{}: its storage {} is not a part", project.path, project.storage);
            gaps.add(text, true);
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
        project.is_copied = seen[0].is_some();
        // Not every project has them.
        project.wiki = seen[1].is_some().then_some(wiki);
        project.design = seen[2].is_some().then_some(design);
        if !project.is_copied {
            gaps.add(format!("{}: {}", project.path, shown(&paths[0])), paths[0].exists());
        }
    }
    Ok(gaps.check("repositories", "projects", count))
}

/// Every pool that a member borrows from has to be there, or its objects are lost.
fn check_pools(storages: &Storages<'_>, projects: &[Project], copy: &Copy<'_>) -> Result<Check> {
    let members: Vec<(&Project, PathBuf)> = projects
        .iter()
        .filter_map(|project| {
            let dir = storages.get(project.storage.as_str())?;
            Some((project, dir.join(&project.repository).join("objects")))
        })
        .collect();
    let files: Vec<PathBuf> = members.iter().map(|(_, dir)| dir.join("info/alternates")).collect();
    let mut borrowed: Vec<(&Project, &PathBuf, PathBuf)> = Vec::new();
    let mut odd = Vec::new();
    let seen = copy.read(&files)?;
    for (((project, objects), file), seen) in members.iter().zip(&files).zip(seen) {
        let lines = alternates(seen.as_ref());
        if lines.is_empty() && project.pool.is_some() {
            continue; // linked by the next housekeeping; until then it has its own objects
        }
        if !lines.is_empty() && project.pool.is_none() {
            odd.push(format!("{}: it borrows objects, though its row names no pool", project.path));
        }
        for line in lines {
            let pool = lexically(&objects.join(line));
            borrowed.push((project, file, pool));
        }
    }
    let pools: Vec<PathBuf> = borrowed.iter().map(|(.., pool)| pool.clone()).collect();
    let mut gaps = Gaps::new(copy);
    for ((project, file, pool), seen) in borrowed.iter().zip(copy.look(&pools)?) {
        if seen.is_none() {
            // A member of a pool that was given up meanwhile does not borrow any more.
            let has_moved = !pool.exists() && !file.exists();
            gaps.add(format!("{}: {}", project.path, shown(pool)), pool.exists() || has_moved);
        }
    }
    let check = gaps.check("pools", "members of pools", borrowed.len());
    if check.verdict == Verdict::Ok && !odd.is_empty() {
        let text = format!("{}; rows and disk disagree about {}", check.text, odd.len());
        return Ok(Check::new("pools", Verdict::Warning, text).with_examples(odd));
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

/// Without `..`, as git reads alternates.
fn lexically(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(clean.pop()),
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

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
