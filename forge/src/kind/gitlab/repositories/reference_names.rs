//! All references of a repository, read from its files.

use super::config;
use super::reftable;
use super::whole::{id_of, is_id};
use crate::error::Result;
use crate::manifest::BYTES_MAX;
use crate::view::View;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use super::reftable::Value;

/// References by name, such as `refs/heads/main`. `HEAD` is not among them.
pub type Names = BTreeMap<Vec<u8>, Value>;

/// Reads the references of the repository in a directory. Returns `None` if a file is damaged, or
/// too large to be read.
pub fn read(view: &View<'_>, dir: &Path) -> Result<Option<Names>> {
    let settings = match content(view, &dir.join("config"))? {
        Content::Absent => Some(config::Config::default()),
        Content::Unreadable => None,
        Content::Read(text) => config::parse(&text),
    };
    match settings {
        None => Ok(None),
        Some(settings) if settings.is_reftable => of_reftable(view, dir),
        Some(_) => of_files(view, dir),
    }
}

/// Reads the references in the `packed-refs` of the repository in a directory. Returns `None` if the
/// file is damaged or too large to be read.
pub fn packed(view: &View<'_>, dir: &Path) -> Result<Option<Names>> {
    Ok(match content(view, &dir.join("packed-refs"))? {
        Content::Absent => Some(Names::new()),
        Content::Unreadable => None,
        Content::Read(text) => of_packed(&text),
    })
}

enum Content {
    Absent,
    Unreadable,
    Read(Vec<u8>),
}

fn content(view: &View<'_>, path: &Path) -> Result<Content> {
    let Some(seen) = view.file(path)? else { return Ok(Content::Absent) };
    let content = match seen.content {
        None => view.content(path, BYTES_MAX)?,
        content => content,
    };
    Ok(content.map_or(Content::Unreadable, Content::Read))
}

fn of_reftable(view: &View<'_>, dir: &Path) -> Result<Option<Names>> {
    let dir = dir.join("reftable");
    let list = match content(view, &dir.join("tables.list"))? {
        Content::Absent => return Ok(Some(Names::new())),
        Content::Unreadable => return Ok(None),
        Content::Read(list) => list,
    };
    let mut names = reftable::Names::new();
    for table in String::from_utf8_lossy(&list).lines().filter(|line| !line.is_empty()) {
        let is_name = !table.contains(['/', '\0']);
        let table = if is_name { content(view, &dir.join(table))? } else { Content::Unreadable };
        let Content::Read(table) = table else { return Ok(None) };
        if reftable::apply(&table, &mut names).is_none() {
            return Ok(None);
        }
    }
    let there = names.into_iter().filter_map(|(name, value)| Some((name, value?)));
    Ok(Some(there.filter(|(name, _)| name.starts_with(b"refs/")).collect()))
}

fn of_files(view: &View<'_>, dir: &Path) -> Result<Option<Names>> {
    let Some(mut names) = packed(view, dir)? else { return Ok(None) };
    let mut loose = Vec::new();
    view.files_below(&dir.join("refs"), &mut |file| {
        loose.extend(is_reference(file.path).then(|| file.path.to_owned()));
        ControlFlow::Continue(())
    })?;
    let paths: Vec<_> = loose.iter().map(|path| dir.join("refs").join(path)).collect();
    for (path, seen) in loose.iter().zip(view.read(&paths)?) {
        let text = seen.and_then(|seen| seen.content);
        let Some(value) = text.and_then(|text| value(&text)) else { return Ok(None) };
        names.insert([b"refs/", path.as_os_str().as_bytes()].concat(), value);
    }
    Ok(Some(names))
}

/// Returns true if git takes a file below `refs` for a reference.
fn is_reference(path: &Path) -> bool {
    path.iter().all(|name| !name.as_bytes().starts_with(b"."))
        && !path.as_os_str().as_bytes().ends_with(b".lock")
}

/// Parses the content of a reference's file.
fn value(text: &[u8]) -> Option<Value> {
    match text.strip_prefix(b"ref:") {
        Some(name) => Some(Value::Name(name.trim_ascii().to_vec())),
        None => id_of(text).and_then(|id| unhex(id.as_bytes())).map(Value::Id),
    }
}

fn of_packed(text: &[u8]) -> Option<Names> {
    let mut names = Names::new();
    for line in text.split(|byte| *byte == b'\n') {
        if line.is_empty() || line.starts_with(b"#") || line.starts_with(b"^") {
            continue;
        }
        let at = line.iter().position(|byte| *byte == b' ')?;
        let id = unhex(line.get(..at).filter(|id| is_id(id))?)?;
        names.insert(line[at + 1..].to_vec(), Value::Id(id));
    }
    Some(names)
}

fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::super::git::git;
    use super::*;

    #[test]
    fn the_references_are_those_that_git_lists() {
        for format in ["files", "reftable"] {
            let scratch = tempfile::tempdir().expect("a directory");
            let dir = scratch.path();
            let run = |arguments: &[&str], input: &str| {
                git(dir, arguments, input).unwrap_or_else(|| panic!("{arguments:?}"))
            };
            run(&["init", "-q", "--bare", &format!("--ref-format={format}")], "");
            let tree = run(&["write-tree"], "");
            let commit = |text: &str| run(&["commit-tree", "-m", text, &tree], "");
            let (one, two) = (commit("one"), commit("two"));
            let packed = format!("create refs/heads/a {one}\ncreate refs/tags/b {one}\n");
            run(&["update-ref", "--stdin"], &packed);
            run(&["tag", "-a", "-m", "x", "annotated", "refs/heads/a"], "");
            run(&["pack-refs", "--all"], "");
            // A loose reference hides a packed one.
            run(&["update-ref", "refs/heads/a", &two], "");
            run(&["update-ref", "refs/heads/deep/er", &two], "");
            run(&["symbolic-ref", "refs/remotes/origin/HEAD", "refs/heads/a"], "");
            run(&["update-ref", "-d", "refs/tags/b"], "");
            if format == "files" {
                std::fs::write(dir.join("refs/heads/x.lock"), "").expect("writes");
                std::fs::write(dir.join("refs/heads/.tmp"), "").expect("writes");
            }
            let names = read(&View::Live, dir).expect("reads").expect("is whole");
            let shown = names.iter().map(|(name, value)| {
                let name = String::from_utf8_lossy(name).into_owned();
                match value {
                    Value::Id(id) => {
                        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
                        format!("{name}  {id}")
                    }
                    Value::Name(target) => format!("{name} {}", String::from_utf8_lossy(target)),
                }
            });
            let list = run(&["for-each-ref", "--format=%(refname) %(symref) %(objectname)"], "");
            let listed: Vec<String> = list
                .lines()
                .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
                    [name, "", id] => format!("{name}  {id}"),
                    [name, target, _] => format!("{name} {target}"),
                    _ => panic!("{line}"),
                })
                .collect();
            assert_eq!(shown.collect::<Vec<_>>(), listed, "{format}");
            assert_eq!(listed.len(), 4);
        }
    }

    #[test]
    fn damaged_references_are_unreadable() {
        assert!(of_packed(b"# pack-refs\nxyz refs/heads/a\n").is_none());
        assert!(of_packed(b"truncated").is_none());
        assert_eq!(value(b""), None);
        assert_eq!(value(b"ref: refs/heads/a\n"), Some(Value::Name(b"refs/heads/a".to_vec())));
    }
}
