//! Whether a copy has what databases name.

use crate::catalogue::FileRow;
use crate::check::{Check, Verdict};
use crate::copy::{Copy, Seen, shown};
use crate::error::Result;
use std::path::PathBuf;

/// What is missing: in the copy alone, or on this machine as well.
pub struct Gaps {
    is_live: bool,
    of_copy: Vec<String>,
    of_instance: Vec<String>,
}

impl Gaps {
    /// None so far in this copy.
    pub fn new(copy: &Copy<'_>) -> Gaps {
        let is_live = copy.is_live();
        Gaps { is_live, of_copy: Vec::new(), of_instance: Vec::new() }
    }

    /// Adds one, which may be on the machine even so.
    pub fn add(&mut self, text: String, is_on_machine: bool) {
        if is_on_machine { &mut self.of_copy } else { &mut self.of_instance }.push(text);
    }

    /// The verdict on `count` things that were looked at.
    pub fn check(self, name: &str, what: &str, count: usize) -> Check {
        let all = self.of_copy.len() + self.of_instance.len();
        if all == 0 {
            return Check::ok(name, format!("{count} {what} looked at; all are there"));
        }
        let verdict = if self.of_copy.is_empty() { Verdict::Warning } else { Verdict::Failed };
        let text = if self.is_live {
            format!("{all} of {count} {what} are not there")
        } else {
            format!(
                "{all} of {count} {what} are not in the copy; {} of them are not on this machine either",
                self.of_instance.len()
            )
        };
        Check::new(name, verdict, text)
            .with_examples(self.of_copy.into_iter().chain(self.of_instance))
    }
}

/// Looks whether the copy has the files that rows stand for.
pub fn check_files(rows: &[FileRow], copy: &Copy<'_>) -> Result<Check> {
    let paths: Vec<PathBuf> = rows.iter().flat_map(|row| row.paths.clone()).collect();
    let mut seen = copy.look(&paths)?.into_iter();
    let mut gaps = Gaps::new(copy);
    for row in rows {
        let found: Vec<Seen> = seen.by_ref().take(row.paths.len()).flatten().collect();
        let fits = |seen: &Seen| row.size.is_none_or(|size| size == seen.size);
        if found.iter().any(fits) {
            continue;
        }
        let path = &copy.place(&row.paths[0]);
        let text = match found.first() {
            Some(seen) => format!(
                "{} row {}: {} has {} bytes instead of {}",
                row.what,
                row.id,
                shown(path),
                seen.size,
                row.size.unwrap_or_default()
            ),
            None => format!("{} row {}: {}", row.what, row.id, shown(path)),
        };
        let is_on_machine = |path: &PathBuf| {
            let metadata = copy.place(path).symlink_metadata();
            metadata.is_ok_and(|metadata| row.size.is_none_or(|size| size == metadata.len()))
        };
        gaps.add(text, row.paths.iter().any(is_on_machine));
    }
    Ok(gaps.check("files", "rows with files", rows.len()))
}
