//! Compares a copy with the files and repositories that the databases name.
//!
//! If a thing is missing from both the copy and the machine, the instance has lost it. Single
//! losses are warnings. If much of one place is missing, the place is probably not mounted or is
//! the wrong one, and the check fails.

use crate::catalogue::{Catalogue, FileRow};
use crate::check::{Check, Verdict};
use crate::error::Result;
use crate::links::lexically;
use crate::plan::Plan;
use crate::view::{Seen, View, shown};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Advice for a place with too many losses.
const HINT: &str = "mount the missing files, or set the `path` of the part; if the instance has \
                    lost them for good, `lost = \"ok\"` in its `checks` makes this a warning";

/// Missing things: from the copy alone, or from this machine as well.
pub struct Gaps<'a> {
    plan: &'a Plan,
    is_live: bool,
    of_copy: Vec<String>,
    of_instance: Vec<String>,
    /// Further faults of things that are counted already.
    further: Vec<String>,
    /// True if the copy lacks one of those.
    copy_lacks_further: bool,
    /// True if another copy may contain more than this one.
    may_come: bool,
    /// Number of things in places that the settings excuse, by name of the place.
    excused: BTreeMap<String, usize>,
    /// Counts by name of the part.
    groups: BTreeMap<String, Group>,
}

/// Things that are expected in one place.
struct Group {
    /// Kind of the things, such as `rows of uploads`.
    what: String,
    /// Expected directory.
    place: String,
    looked_at: usize,
    nowhere: usize,
    /// True if a single loss is too much.
    is_strict: bool,
}

/// State, on this machine, of a thing that the copy lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// Present on this machine.
    Here,
    /// In a place that this machine cannot reach.
    Elsewhere,
    /// Present on this machine, but not in the expected form.
    Otherwise,
    /// Missing from this machine as well.
    Nowhere,
}

impl<'a> Gaps<'a> {
    /// Starts with no gaps.
    pub fn new(plan: &'a Plan, view: &View<'_>) -> Gaps<'a> {
        let is_live = view.is_live();
        let (of_copy, of_instance) = (Vec::new(), Vec::new());
        let (groups, excused) = (BTreeMap::new(), BTreeMap::new());
        Gaps {
            plan,
            is_live,
            of_copy,
            of_instance,
            further: Vec::new(),
            copy_lacks_further: false,
            may_come: false,
            excused,
            groups,
        }
    }

    /// Counts a thing of kind `what` that is expected in the place of a part.
    pub fn look(&mut self, part: &str, what: impl FnOnce() -> String, place: Option<&Path>) {
        self.group(part, what, place).looked_at += 1;
    }

    /// Like [`Gaps::look`], for things of which a single loss is too much.
    pub fn look_strictly(
        &mut self,
        part: &str,
        what: impl FnOnce() -> String,
        place: Option<&Path>,
    ) {
        let group = self.group(part, what, place);
        group.looked_at += 1;
        group.is_strict = true;
    }

    /// Counts a thing in a place of that name that the backup does without.
    pub fn excuse(&mut self, place: &str) {
        *self.excused.entry(place.to_owned()).or_default() += 1;
    }

    fn group(
        &mut self,
        part: &str,
        what: impl FnOnce() -> String,
        place: Option<&Path>,
    ) -> &mut Group {
        self.groups.entry(part.to_owned()).or_insert_with(|| Group {
            what: what(),
            place: place.map_or_else(|| "any known place".into(), shown),
            looked_at: 0,
            nowhere: 0,
            is_strict: false,
        })
    }

    /// Adds one expected thing that the copy lacks.
    pub fn add(&mut self, part: &str, text: String, found: Where) {
        self.add_incomplete(text, found);
        if let (Some(group), Where::Nowhere) = (self.groups.get_mut(part), found) {
            group.nowhere += 1;
        }
    }

    /// Adds one expected thing of which the copy lacks only a piece.
    pub fn add_incomplete(&mut self, text: String, found: Where) {
        self.may_come |= found == Where::Here;
        match found {
            Where::Here | Where::Elsewhere => self.of_copy.push(text),
            Where::Otherwise | Where::Nowhere => self.of_instance.push(text),
        }
    }

    /// Adds a further fault of the thing that was added last.
    pub fn add_further(&mut self, text: String, found: Where) {
        self.may_come |= found == Where::Here;
        self.copy_lacks_further |= matches!(found, Where::Here | Where::Elsewhere);
        self.further.push(text);
    }

    /// Returns the check of `count` expected things.
    pub fn check(self, name: &str, what: &str, count: usize) -> Check {
        let all = self.of_copy.len() + self.of_instance.len();
        let excused: Vec<String> = self
            .excused
            .iter()
            .map(|(place, count)| format!("; not checked: {count} of {place}, which is not a part"))
            .collect();
        let (excused, count) = (excused.concat(), count - self.excused.values().sum::<usize>());
        if all == 0 {
            let text = format!("checked {count} {what}; all are present{excused}");
            return Check::ok(name, text);
        }
        let mut text = format!("{all} of {count} {what} are missing or damaged");
        if !self.is_live {
            text += " in the copy";
            text += &match self.of_instance.len() {
                0 => String::new(),
                own if own == all => ", and on this machine as well".into(),
                own => format!(", {own} of them on this machine as well"),
            };
        }
        let mut verdict = Verdict::Warning;
        let mut hint = None;
        for (part, group) in &self.groups {
            if group.is_much() && !self.plan.excused.has(part) {
                (verdict, hint) = (Verdict::Failed, Some(HINT));
                text += &group.text();
            }
        }
        if !self.of_copy.is_empty() || self.copy_lacks_further {
            verdict = Verdict::Failed;
        }
        text += &excused;
        let examples = self.of_copy.into_iter().chain(self.of_instance).chain(self.further);
        let mut check = Check::new(name, verdict, text).with_examples(examples);
        check.is_settled = !self.may_come;
        match hint {
            Some(hint) => check.with_hint(hint),
            None => check,
        }
    }
}

impl Group {
    /// Returns true if so much is missing that it is probably somewhere else: at least half, or one
    /// thing if strict.
    fn is_much(&self) -> bool {
        let least = if self.is_strict { 1 } else { self.looked_at.div_ceil(2).max(1) };
        self.nowhere >= least
    }

    fn text(&self) -> String {
        let Group { what, place, looked_at, nowhere, .. } = self;
        if nowhere == looked_at {
            format!("; all {looked_at} {what} are missing at {place}; check its mount")
        } else {
            format!(
                "; {nowhere} of the {looked_at} {what} are missing at {place}; check all mounts \
                 below it"
            )
        }
    }
}

/// Kinds of file that GitLab encrypts, so that they are never empty.
const ENCRYPTED: [&str; 2] = ["terraform-state", "ci-secure-files"];

/// Returns the fault of an object in place of a row's file.
fn fault(row: &FileRow, seen: &Seen) -> Option<String> {
    if seen.is_dir {
        return Some("is a directory".into());
    }
    if seen.target.is_some() {
        return Some("is a link to a place that has no such file".into());
    }
    match row.size {
        Some(wanted) if wanted != seen.size => {
            Some(format!("has {} bytes instead of {wanted}", seen.size))
        }
        None if seen.size == 0 && ENCRYPTED.contains(&row.what) => Some("is empty".into()),
        _ => None,
    }
}

/// Replaces each link in place of a row's file by its target, if that exists.
fn through_links(row: &FileRow, found: Vec<Seen>, view: &View<'_>) -> Result<Vec<Seen>> {
    if found.iter().all(|seen| seen.target.is_none()) {
        return Ok(found);
    }
    let dirs: Vec<&Path> = row.paths.iter().filter_map(|path| path.parent()).collect();
    let mut all = Vec::new();
    for seen in found {
        let targets = seen
            .target
            .iter()
            .flat_map(|target| dirs.iter().map(move |dir| lexically(&dir.join(target))));
        let targets: Vec<PathBuf> = targets.collect();
        let end = view.look(&targets)?.into_iter().flatten().next();
        all.push(end.unwrap_or(seen));
    }
    Ok(all)
}

/// Checks that the copy contains the files that rows refer to.
pub fn check_files(plan: &Plan, catalogue: &Catalogue, view: &View<'_>) -> Result<Check> {
    let rows = &catalogue.files;
    let paths: Vec<PathBuf> = rows.iter().flat_map(|row| row.paths.clone()).collect();
    let mut seen = view.look(&paths)?.into_iter();
    let mut gaps = Gaps::new(plan, view);
    for row in rows {
        let what = || format!("rows of {}", row.what);
        gaps.look(row.part, what, plan.place(row.part).as_deref());
        let found: Vec<Seen> = seen.by_ref().take(row.paths.len()).flatten().collect();
        let found = through_links(row, found, view)?;
        let faults: Vec<Option<String>> = found.iter().map(|seen| fault(row, seen)).collect();
        if faults.iter().any(Option::is_none) {
            continue;
        }
        let is_link = found.iter().any(|seen| seen.target.is_some());
        let path = shown(&view.place(&row.paths[0]));
        let text = match faults.into_iter().flatten().next() {
            Some(fault) => format!("{} row {}: {path} {fault}", row.what, row.id),
            None => format!("{} row {}: {path}", row.what, row.id),
        };
        let on_machine: Vec<PathBuf> = row.paths.iter().map(|path| view.place(path)).collect();
        let on_machine = View::Live.look(&on_machine)?.into_iter().flatten().collect();
        let on_machine: Vec<Seen> = through_links(row, on_machine, &View::Live)?;
        let is_on_machine = on_machine.iter().any(|seen| fault(row, seen).is_none());
        if is_link && is_on_machine {
            // Another copy would not follow the link either.
            let text = format!(
                "{} row {}: {path} is a link to a place that was not copied",
                row.what, row.id
            );
            gaps.add(row.part, text, Where::Elsewhere);
            continue;
        }
        let found = match on_machine.as_slice() {
            [] => Where::Nowhere,
            _ if is_on_machine => Where::Here,
            _ => Where::Otherwise,
        };
        gaps.add(row.part, text, found);
    }
    let mut check = gaps.check("files", "rows with files", rows.len());
    let remote = catalogue.remote.iter().filter(|(_, count)| **count > 0);
    if rows.is_empty() {
        let remote = remote.map(|(what, count)| format!("{count} rows of {what}"));
        let remote: Vec<String> = remote.collect();
        check.text = match remote.is_empty() {
            true => "no rows name files on this machine".into(),
            false => format!(
                "not checked: {} are in an object store, which is not copied",
                remote.join(", ")
            ),
        };
        return Ok(check);
    }
    for (what, count) in remote {
        check.text +=
            &format!("; {count} more rows of {what} are in an object store, which is not copied");
    }
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn plan(more: &str) -> Plan {
        let settings: Settings =
            toml::from_str(&format!("kind = 'gitlab'\n{more}")).expect("reads");
        Plan::new("forge", "gitlab", &settings)
    }

    /// Checks rows of uploads and of LFS; each pair is the number of rows and of missing files.
    fn check(plan: &Plan, uploads: (usize, usize), lfs: (usize, usize)) -> Check {
        let mut gaps = Gaps::new(plan, &View::Live);
        for (part, (count, nowhere)) in [("uploads", uploads), ("lfs", lfs)] {
            for at in 0..count {
                gaps.look(part, || format!("rows of {part}"), Some(Path::new("/mnt/place")));
                if at < nowhere {
                    gaps.add(part, format!("row {at}"), Where::Nowhere);
                }
            }
        }
        gaps.check("files", "rows", uploads.0 + lfs.0)
    }

    #[test]
    fn missing_files_fail_the_check_unless_few_or_allowed() {
        let strict = plan("");
        assert_eq!(check(&strict, (9, 0), (1, 0)).verdict, Verdict::Ok);
        assert_eq!(check(&strict, (9, 4), (1, 0)).verdict, Verdict::Warning);
        // Each kind of row is judged by itself: one of one is all.
        for (uploads, lfs, words) in [
            ((9, 0), (1, 1), "; all 1 rows of lfs are missing at /mnt/place; check its mount"),
            ((8, 4), (1, 0), "; 4 of the 8 rows of uploads are missing at /mnt/place; check all"),
        ] {
            let failed = check(&strict, uploads, lfs);
            assert_eq!(failed.verdict, Verdict::Failed);
            assert!(failed.text.contains(words), "{}", failed.text);
            assert!(failed.hint.expect("a way out").contains("lost = \"ok\""));
        }
        let lost = plan("checks = { lost = 'ok' }");
        assert_eq!(check(&lost, (8, 8), (1, 1)).verdict, Verdict::Warning);
        let excused = plan("parts.lfs = { missing = 'ok' }");
        assert_eq!(check(&excused, (9, 0), (1, 1)).verdict, Verdict::Warning);
        assert_eq!(check(&excused, (9, 9), (1, 1)).verdict, Verdict::Failed);
    }

    #[test]
    fn pieces_of_things_are_not_counted_as_things() {
        let plan = plan("");
        let mut gaps = Gaps::new(&plan, &View::Live);
        for at in 0..4 {
            gaps.look("repositories", || "projects".into(), Some(Path::new("/mnt/place")));
            match at {
                0 => {
                    gaps.add("repositories", "one".into(), Where::Nowhere);
                    gaps.add_further("one (designs)".into(), Where::Nowhere);
                }
                1 => gaps.add_incomplete("two (designs)".into(), Where::Nowhere),
                _ => {}
            }
        }
        let check = gaps.check("repositories", "projects", 4);
        assert_eq!(check.verdict, Verdict::Warning, "{check:?}");
        assert_eq!(check.text, "2 of 4 projects are missing or damaged");
        assert_eq!(check.examples, ["one", "two (designs)", "one (designs)"]);
        let mut gaps = Gaps::new(&plan, &View::Live);
        gaps.add_further("one (designs)".into(), Where::Here);
        gaps.add_incomplete("one".into(), Where::Nowhere);
        assert_eq!(gaps.check("repositories", "projects", 4).verdict, Verdict::Failed);
    }

    #[test]
    fn only_a_file_counts_as_the_file_of_a_row() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        let plan = plan("");
        let verdict = |what: &'static str| {
            let (id, paths) = ("1".into(), vec![path.clone()]);
            let row = FileRow { what, part: what, id, paths, size: None };
            let catalogue = Catalogue { files: vec![row], ..Catalogue::default() };
            check_files(&plan, &catalogue, &View::Live).expect("looks").verdict
        };
        std::fs::write(&path, "").expect("writes");
        assert_eq!(verdict("external-diffs"), Verdict::Ok);
        assert_eq!(verdict("terraform-state"), Verdict::Warning);
        std::fs::write(&path, "state").expect("writes");
        assert_eq!(verdict("terraform-state"), Verdict::Ok);
        std::fs::rename(&path, dir.path().join("moved")).expect("moves");
        std::os::unix::fs::symlink("moved", &path).expect("links");
        assert_eq!(verdict("terraform-state"), Verdict::Ok);
        std::fs::remove_file(dir.path().join("moved")).expect("removes");
        assert_eq!(verdict("external-diffs"), Verdict::Warning);
        std::fs::remove_file(&path).expect("removes");
        std::fs::create_dir(&path).expect("a directory");
        assert_eq!(verdict("external-diffs"), Verdict::Warning);
    }

    #[test]
    fn things_in_excused_places_are_not_missing() {
        let plan = plan("");
        let mut gaps = Gaps::new(&plan, &View::Live);
        gaps.excuse("storage far");
        let text = "checked 2 projects; all are present; not checked: 1 of storage far, which is \
                    not a part";
        assert_eq!(gaps.check("repositories", "projects", 3), Check::ok("repositories", text));
    }

    #[test]
    fn a_file_with_a_wrong_size_is_only_a_warning() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "text").expect("writes");
        let plan = plan("");
        let check = |size| {
            let (id, paths) = ("1".into(), vec![path.clone()]);
            let row = FileRow { what: "uploads", part: "uploads", id, paths, size: Some(size) };
            let remote = [("lfs", 3)].into();
            let catalogue = Catalogue { files: vec![row], remote, ..Catalogue::default() };
            check_files(&plan, &catalogue, &View::Live).expect("looks")
        };
        let all = "checked 1 rows with files; all are present; 3 more rows of lfs are in an object \
                   store, which is not copied";
        assert_eq!(check(4), Check::ok("files", all));
        let none = |remote| {
            let catalogue = Catalogue { remote, ..Catalogue::default() };
            check_files(&plan, &catalogue, &View::Live).expect("looks")
        };
        let nothing = "not checked: 3 rows of lfs are in an object store, which is not copied";
        assert_eq!(none([("lfs", 3)].into()), Check::ok("files", nothing));
        assert_eq!(none([].into()), Check::ok("files", "no rows name files on this machine"));
        let other = check(5);
        assert_eq!(other.verdict, Verdict::Warning);
        assert!(other.examples[0].ends_with("file has 4 bytes instead of 5"), "{other:?}");
    }
}
