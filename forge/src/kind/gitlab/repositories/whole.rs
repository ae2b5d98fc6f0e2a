//! Checks that git would accept a directory as a repository.

use crate::error::Result;
use crate::view::{Seen, View};
use std::path::PathBuf;

/// State of a repository's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has a HEAD, objects and references.
    Whole,
    /// It does not exist.
    Absent,
    /// It exists, but git would not accept it as a repository; the reason.
    Damaged(&'static str),
}

/// Examines directories. Returns their states in the same order.
pub fn examine(view: &View<'_>, dirs: &[PathBuf]) -> Result<Vec<State>> {
    let within = |name: &str| dirs.iter().map(|dir| dir.join(name)).collect::<Vec<_>>();
    let there = view.look(dirs)?;
    let heads = view.read(&within("HEAD"))?;
    let objects = view.look(&within("objects"))?;
    let references = view.look(&within("refs"))?;
    let tables = view.look(&within("reftable/tables.list"))?;
    let mut states = Vec::with_capacity(dirs.len());
    for (at, dir) in dirs.iter().enumerate() {
        let is_dir = |seen: &Option<Seen>| seen.as_ref().is_some_and(|seen| seen.is_dir);
        let is_filled = |seen: &Option<Seen>| seen.as_ref().is_some_and(|seen| seen.size > 0);
        states.push(match &there[at] {
            None => State::Absent,
            // A link may lead to data that this machine has and the copy lacks.
            Some(seen) if !seen.is_dir && !view.is_live() => State::Damaged("is not a directory"),
            Some(_) if !heads[at].as_ref().is_some_and(is_head) => {
                State::Damaged("has no readable HEAD")
            }
            Some(_) if !is_dir(&objects[at]) => State::Damaged("has no objects"),
            Some(_) if !is_dir(&references[at]) && !is_filled(&tables[at]) => {
                State::Damaged("has no references")
            }
            // A file of alternates below `objects` counts, too. Reftables are not checked: that of
            // a new repository refers to no object, and only git can read it.
            Some(_)
                if !is_filled(&tables[at])
                    && !view.has_file_below(&dir.join("objects"))?
                    && has_references(view, std::slice::from_ref(dir))?[0] =>
            {
                State::Damaged("has references but no objects")
            }
            Some(_) => State::Whole,
        });
    }
    Ok(states)
}

/// Returns true if git would read this as a HEAD: the name of a reference, or a commit id.
fn is_head(seen: &Seen) -> bool {
    let content = seen.content.as_deref().unwrap_or_default().trim_ascii();
    let is_id = [40, 64].contains(&content.len()) && content.iter().all(u8::is_ascii_hexdigit);
    is_id
        || content
            .strip_prefix(b"ref:")
            .is_some_and(|name| name.trim_ascii_start().starts_with(b"refs/"))
}

/// Returns for each repository, in the same order, whether it has references besides HEAD.
/// Reftables cannot be read here and count as having some.
pub fn has_references(view: &View<'_>, dirs: &[PathBuf]) -> Result<Vec<bool>> {
    let within = |name: &str| dirs.iter().map(|dir| dir.join(name)).collect::<Vec<_>>();
    let packed = view.read(&within("packed-refs"))?;
    let tables = view.look(&within("reftable/tables.list"))?;
    let mut has = Vec::with_capacity(dirs.len());
    for (at, dir) in dirs.iter().enumerate() {
        let is_table = tables[at].as_ref().is_some_and(|seen| seen.size > 0);
        let is_packed = packed[at].as_ref().is_some_and(has_packed);
        has.push(is_table || is_packed || view.has_file_below(&dir.join("refs"))?);
    }
    Ok(has)
}

fn has_packed(seen: &Seen) -> bool {
    // A file too large to be read has many references.
    let Some(content) = &seen.content else { return seen.size > 0 && !seen.is_dir };
    let mut lines = content.split(|byte| *byte == b'\n');
    lines.any(|line| line.first().is_some_and(u8::is_ascii_hexdigit))
}

/// Makes a repository with one object and one reference.
#[cfg(test)]
pub fn make(dir: &std::path::Path) {
    for (name, text) in [
        ("HEAD", "ref: refs/heads/main\n"),
        ("objects/aa/object", "object"),
        ("refs/heads/main", "aaaa\n"),
    ] {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("below")).expect("directories");
        std::fs::write(path, text).expect("writes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn state(dir: &Path) -> State {
        examine(&View::Live, &[dir.to_owned()]).expect("looks").remove(0)
    }

    fn is_filled(dir: &Path) -> bool {
        has_references(&View::Live, &[dir.to_owned()]).expect("looks").remove(0)
    }

    #[test]
    fn only_repositories_that_git_accepts_are_whole() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("one.git");
        assert_eq!(state(&dir), State::Absent);
        make(&dir);
        assert_eq!(state(&dir), State::Whole);
        for head in ["ref: refs/heads/.invalid\n", &"a1".repeat(20), &"a1".repeat(32)] {
            std::fs::write(dir.join("HEAD"), head).expect("writes");
            assert_eq!(state(&dir), State::Whole, "{head}");
        }
        for head in ["", "ref: ", "ref: heads/main", "xyz", &"a1".repeat(19), "\0\0\0"] {
            std::fs::write(dir.join("HEAD"), head).expect("writes");
            assert_eq!(state(&dir), State::Damaged("has no readable HEAD"), "{head}");
        }
        std::fs::write(dir.join("HEAD"), "ref: refs/heads/main").expect("writes");
        std::fs::write(dir.join("packed-refs"), "# pack-refs with: sorted \n").expect("writes");
        std::fs::remove_file(dir.join("objects/aa/object")).expect("removes");
        assert_eq!(state(&dir), State::Damaged("has references but no objects"));
        std::fs::remove_dir_all(dir.join("objects")).expect("removes");
        assert_eq!(state(&dir), State::Damaged("has no objects"));
        std::fs::create_dir(dir.join("objects")).expect("makes");
        std::fs::remove_file(dir.join("packed-refs")).expect("removes");
        std::fs::remove_file(dir.join("refs/heads/main")).expect("removes");
        assert_eq!(state(&dir), State::Whole, "a new one has neither");
        std::fs::remove_dir_all(dir.join("refs")).expect("removes");
        assert_eq!(state(&dir), State::Damaged("has no references"));
        std::fs::create_dir(dir.join("reftable")).expect("makes");
        std::fs::write(dir.join("reftable/tables.list"), "0x1.ref\n").expect("writes");
        assert_eq!(state(&dir), State::Whole);
    }

    #[test]
    fn loose_and_packed_references_are_found() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("one.git");
        make(&dir);
        assert!(is_filled(&dir));
        std::fs::remove_file(dir.join("refs/heads/main")).expect("removes");
        assert!(!is_filled(&dir), "directories are left behind");
        let header = "# pack-refs with: peeled fully-peeled sorted \n";
        std::fs::write(dir.join("packed-refs"), header).expect("writes");
        assert!(!is_filled(&dir));
        let line = format!("{header}{} refs/heads/main\n", "a1".repeat(20));
        std::fs::write(dir.join("packed-refs"), line).expect("writes");
        assert!(is_filled(&dir));
    }
}
