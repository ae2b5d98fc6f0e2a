//! Sources that lost most of their files, or their mount: texts for people, fields for programs.

use crate::report::{count, path_text, size};
use schemars::JsonSchema;
use serde::Serialize;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use store::entry::display_path;
use store::snapshot::{Amount, Cause, Emptied, Snapshot};

/// Describes a source that lost most of its files, or its mount.
pub fn text(emptied: &Emptied) -> String {
    let Emptied { path, cause, then, now, since } = emptied;
    let path = display_path(path);
    let amount = |of: &Amount| format!("{}, {}", count(of.files, "file"), size(of.bytes));
    let had = match since {
        Some(id) => format!("{} in snapshot {}", amount(then), id.snapshot().short()),
        None => amount(then),
    };
    match cause {
        Cause::Gone => format!("{path} is gone, and had {had}"),
        Cause::Empty => format!("{path} has no files, and had {had}"),
        Cause::Unmounted => format!(
            "the file system of {path} is not mounted; it had {had}, and has {} now",
            amount(now)
        ),
        Cause::OtherFileSystem => format!(
            "a file system of another type is mounted at {path}; it had {had}, and has {} now",
            amount(now)
        ),
        Cause::Shrunk | Cause::Unknown => {
            format!("{path} lost most of its data: it had {had}, and has {} now", amount(now))
        }
    }
}

/// Returns why a snapshot is not sound.
pub fn lacks(snapshot: &Snapshot) -> Vec<String> {
    let incomplete = (!snapshot.is_complete()).then(|| "is NOT COMPLETE".to_owned());
    let emptied = snapshot.emptied.first().map(|first| {
        let more = match snapshot.emptied.len() - 1 {
            0 => String::new(),
            more => format!(", and {}", count(more as u64, "other loss")),
        };
        format!("has an EMPTIED source: {}{more}", text(first))
    });
    incomplete.into_iter().chain(emptied).collect()
}

/// A source that had lost most of its files, or its mount.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct EmptiedSource {
    /// Path of the source, or of a directory in it. Bytes that are not UTF-8 are escaped.
    pub path: String,
    /// Kind of the loss: `gone`, `empty`, `shrunk`, `unmounted`, `other-file-system`, or `unknown`
    /// if a newer version of the program recorded it.
    pub cause: &'static str,
    /// Number of files that it had.
    pub files_then: u64,
    /// Number of files that it has.
    pub files: u64,
    /// Bytes that it had.
    pub bytes_then: u64,
    /// Bytes that it has.
    pub bytes: u64,
    /// Snapshot with which it was compared.
    pub since: Option<String>,
}

impl EmptiedSource {
    /// Describes a source of a record.
    pub fn of(emptied: &Emptied) -> EmptiedSource {
        EmptiedSource {
            path: path_text(Path::new(OsStr::from_bytes(&emptied.path))),
            cause: emptied.cause.name(),
            files_then: emptied.then.files,
            files: emptied.now.files,
            bytes_then: emptied.then.bytes,
            bytes: emptied.now.bytes,
            since: emptied.since.map(|id| id.snapshot().to_string()),
        }
    }
}
