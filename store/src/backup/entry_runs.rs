//! Entries that are read in another order than the tree's, kept until all are known.
//!
//! Each phase of a git directory gives a run of entries in path order. The tree needs the runs
//! merged. The runs of a large git directory wait in an unnamed scratch file.

use crate::acl::{AclNames, encode_row};
use crate::entry::{Content, Entry, Owner, path_cmp};
use crate::error::{Error, Result};
use crate::reuse::{scratch, scratch_full};
use crate::workspace::Workspace;
use minicbor::{Decoder, Encoder};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::iter::Peekable;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Maximum bytes of a run's entries in memory. Debug builds have a small limit, so that tests of
/// small directories reach all of the code.
const HELD_BYTES_MAX: usize = if cfg!(debug_assertions) { 16 << 10 } else { 4 << 20 };
/// Bytes that are written to or read from the scratch file at once.
const SCRATCH_BYTES: usize = 256 << 10;
/// Maximum number of entries of merged runs that are sent at once.
const SENT_ENTRIES: usize = 1024;

/// Runs of entries. Entries are added to the last one.
pub struct EntryRuns<'a> {
    workspace: Option<&'a Workspace>,
    file: Option<File>,
    file_bytes: u64,
    owners: Owners,
    runs: Vec<EntryRun>,
}

/// Owners of entries in the scratch file.
#[derive(Default)]
struct Owners {
    rows: HashMap<Arc<Owner>, u32>,
    order: Vec<Option<Arc<Owner>>>,
}

/// Entries in path order: those in a part of the scratch file, then those in memory.
#[derive(Default)]
struct EntryRun {
    from: u64,
    to: u64,
    held: Vec<Entry>,
    held_bytes: usize,
}

impl<'a> EntryRuns<'a> {
    /// Creates an empty set of runs. A scratch file is created in the workspace, or else in the
    /// directory of temporary files.
    pub fn new(workspace: Option<&'a Workspace>) -> EntryRuns<'a> {
        EntryRuns {
            workspace,
            file: None,
            file_bytes: 0,
            owners: Owners::default(),
            runs: Vec::new(),
        }
    }

    /// Begins a run.
    pub fn begin(&mut self) {
        let at = self.file_bytes;
        self.runs.push(EntryRun { from: at, to: at, ..EntryRun::default() });
    }

    /// Adds an entry to the last run, whose entries it must follow.
    pub fn push(&mut self, entry: Entry) -> Result<()> {
        let Some(run) = self.runs.last_mut() else {
            self.begin();
            return self.push(entry);
        };
        run.held_bytes += bytes_of(&entry);
        run.held.push(entry);
        if run.held_bytes > HELD_BYTES_MAX { self.spill().map_err(scratch_full()) } else { Ok(()) }
    }

    /// Moves the entries of the last run from memory to the scratch file.
    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(scratch(self.workspace)?),
        };
        let Some(run) = self.runs.last_mut() else { return Ok(()) };
        let mut bytes = Vec::new();
        for entry in run.held.drain(..) {
            encode(&entry, self.owners.row(&entry.owner), &mut bytes);
            if bytes.len() >= SCRATCH_BYTES {
                file.write_all_at(&bytes, self.file_bytes)?;
                self.file_bytes += bytes.len() as u64;
                bytes.clear();
            }
        }
        file.write_all_at(&bytes, self.file_bytes)?;
        self.file_bytes += bytes.len() as u64;
        (run.to, run.held_bytes) = (self.file_bytes, 0);
        Ok(())
    }

    /// Passes all entries and `others` to `send` in path order, in parts, until it returns false.
    pub fn merge(
        self,
        others: impl Iterator<Item = Entry>,
        mut send: impl FnMut(Vec<Entry>) -> bool,
    ) -> Result<()> {
        let EntryRuns { file, owners, runs, .. } = self;
        let Some(file) = &file else {
            let mut entries: Vec<Entry> =
                runs.into_iter().flat_map(|run| run.held).chain(others).collect();
            entries.sort_unstable_by(|a, b| path_cmp(&a.path, &b.path));
            send(entries);
            return Ok(());
        };
        let mut others: Vec<Entry> = others.collect();
        others.sort_unstable_by(|a, b| path_cmp(&a.path, &b.path));
        let mut inputs: Vec<Peekable<Input<'_>>> = Vec::new();
        for EntryRun { from, to, held, .. } in runs {
            let section = Section { file, at: from, to };
            let scratch = BufReader::with_capacity(SCRATCH_BYTES, section);
            inputs.push(
                Input { scratch: Some(scratch), owners: &owners.order, held: held.into_iter() }
                    .peekable(),
            );
        }
        inputs.push(Input { scratch: None, owners: &[], held: others.into_iter() }.peekable());
        let mut entries = Vec::new();
        while let Some(entry) = next(&mut inputs) {
            entries.push(entry?);
            if entries.len() == SENT_ENTRIES && !send(std::mem::take(&mut entries)) {
                return Ok(());
            }
        }
        send(entries);
        Ok(())
    }
}

/// Returns the next entry of several inputs. An error comes before all entries.
fn next(inputs: &mut [Peekable<Input<'_>>]) -> Option<Result<Entry>> {
    let order = |a: &Result<Entry>, b: &Result<Entry>| match (a, b) {
        (Ok(a), Ok(b)) => path_cmp(&a.path, &b.path),
        (a, b) => a.is_ok().cmp(&b.is_ok()),
    };
    let mut first: Option<usize> = None;
    for at in 0..inputs.len() {
        let (before, rest) = inputs.split_at_mut(at);
        let Some(item) = rest[0].peek() else { continue };
        let known = first.and_then(|first| before[first].peek());
        if known.is_none_or(|known| order(item, known) == Ordering::Less) {
            first = Some(at);
        }
    }
    inputs[first?].next()
}

impl Owners {
    fn row(&mut self, owner: &Arc<Owner>) -> u32 {
        if let Some(row) = self.rows.get(owner) {
            return *row;
        }
        let row = self.order.len() as u32;
        self.rows.insert(Arc::clone(owner), row);
        self.order.push(Some(Arc::clone(owner)));
        row
    }
}

/// Returns the approximate bytes of an entry in memory.
fn bytes_of(entry: &Entry) -> usize {
    let content = match &entry.content {
        Content::Empty => 0,
        Content::Inline(bytes) => bytes.len(),
        Content::Recipe(recipe) => size_of_val(&recipe.extents[..]),
    };
    let xattrs = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len() + 64;
    let xattrs: usize = entry.xattrs.iter().map(xattrs).sum();
    let names = entry.acl_names.as_ref().map_or(0, |names| names.bytes());
    size_of::<Entry>() + entry.path.len() + entry.target.len() + content + xattrs + names
}

/// Appends an entry in the encoding of the scratch file: the lengths of path and rest, then the path,
/// the fields as in a page, and the names in its ACLs.
fn encode(entry: &Entry, owner: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&entry.path);
    let fields = out.len();
    entry.encode(&entry.path, owner, out);
    if let Some(names) = &entry.acl_names {
        let mut out = Encoder::new(&mut *out);
        let written = out.array(names.iter().count() as u64).map(drop).and_then(|()| {
            names.iter().try_for_each(|(subject, name)| encode_row(subject, name, &mut out))
        });
        written.expect("writing to memory cannot fail");
    }
    let rest = out.len() - fields;
    out[start..start + 4].copy_from_slice(&(entry.path.len() as u32).to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&(rest as u32).to_le_bytes());
}

/// Part of a file, read from its begin to its end.
struct Section<'f> {
    file: &'f File,
    at: u64,
    to: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min((self.to - self.at) as usize);
        let read = self.file.read_at(&mut buffer[..len], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Entries of a run.
struct Input<'f> {
    /// Entries in the scratch file. `None` at their end.
    scratch: Option<BufReader<Section<'f>>>,
    owners: &'f [Option<Arc<Owner>>],
    held: std::vec::IntoIter<Entry>,
}

impl Input<'_> {
    /// Returns the next entry in the scratch file.
    fn read(&mut self) -> Option<Result<Entry>> {
        let scratch = self.scratch.as_mut()?;
        if scratch.buffer().is_empty() && scratch.get_ref().at == scratch.get_ref().to {
            self.scratch = None;
            return None;
        }
        let mut lens = [0; 8];
        let mut bytes = Vec::new();
        let read = scratch.read_exact(&mut lens).and_then(|()| {
            let len =
                |at: usize| u32::from_le_bytes(lens[at..at + 4].try_into().expect("4")) as usize;
            bytes.resize(len(0) + len(4), 0);
            scratch.read_exact(&mut bytes)?;
            Ok(len(0))
        });
        Some(read.map_err(scratch_full()).and_then(|path_len| {
            let (path, fields) = bytes.split_at(path_len);
            let mut input = Decoder::new(fields);
            let mut entry = Entry::decode_own(path, self.owners, &mut input).map_err(|fault| {
                let what = "an entry in scratch space in tmp".to_owned();
                Error::Malformed { what, reason: fault.to_string() }
            })?;
            if input.position() < fields.len() {
                entry.acl_names = Some(Arc::new(AclNames::decode(&mut input)));
            }
            Ok(entry)
        }))
    }
}

impl Iterator for Input<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        self.read().or_else(|| self.held.next().map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, entry};
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    /// Returns the merged entries of these runs, and the number of parts.
    fn merged(runs: &[Vec<Entry>], others: Vec<Entry>) -> (Vec<Entry>, usize) {
        let mut all = EntryRuns::new(None);
        for run in runs {
            all.begin();
            run.iter().for_each(|entry| all.push(entry.clone()).expect("scratch space"));
        }
        let (mut merged, mut parts) = (Vec::new(), 0);
        let send = |part: Vec<Entry>| {
            merged.extend(part);
            parts += 1;
            true
        };
        all.merge(others.into_iter(), send).expect("reads");
        (merged, parts)
    }

    fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
        entries.sort_by(|a, b| path_cmp(&a.path, &b.path));
        entries
    }

    proptest! {
        #![proptest_config(cases(100))]

        #[test]
        fn runs_are_merged_in_path_order(
            entries in btree_map("[ab]{1,3}(/[ab.-]{1,3}){0,2}", (entry(), 0..4usize), 0..60),
            is_large in any::<bool>(),
        ) {
            let mut runs = vec![Vec::new(); 4];
            for (path, (entry, run)) in entries {
                // An entry that no page may hold is kept unchanged, because the gate reports it.
                let target = if is_large { vec![b't'; 5000] } else { entry.target.clone() };
                runs[run].push(Entry { path: path.into_bytes(), target, ..entry });
            }
            let runs: Vec<Vec<Entry>> = runs.into_iter().map(sorted).collect();
            let (found, _) = merged(&runs[..3], runs[3].clone());
            prop_assert_eq!(found, sorted(runs.concat()));
        }
    }

    #[test]
    fn a_large_run_is_sent_in_parts() {
        let file = |n: usize| {
            Entry::new(format!("{n:05}").into_bytes(), crate::entry::EntryKind::File, 0o644)
        };
        let run: Vec<Entry> = (0..40_000).map(file).collect();
        let (found, parts) = merged(std::slice::from_ref(&run), Vec::new());
        assert!(found == run);
        assert_eq!(parts, 40_000usize.div_ceil(SENT_ENTRIES));
    }
}
