use super::Global;
use crate::exit::Failure;
use crate::json::{FindSummary, Match, Node};
use crate::report::{count, local_time, size, utc_time};
use crate::select::{self, Filter};
use crate::ui::Ui;
use clap::Args;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use store::entry::{Entry, display_path};
use store::glob::Globs;
use store::id::ChunkId;
use store::store::Purpose;
use store::tree::{self, Lost, OutlinePart, TreeReader};

/// Find which snapshots contain a path
///
/// A pattern without / matches a name at any depth. A pattern with / matches the end of a path, or
/// the whole path if it begins with /. Different versions are listed separately.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep find --store S 'gitlab-secrets.json'
  forgekeep find --store S '/var/opt/gitlab/**/d4735e3a*.git'")]
pub struct Find {
    /// Pattern of names or paths
    #[arg(value_name = "GLOB", required = true)]
    patterns: Vec<OsString>,
    #[command(flatten)]
    filter: Filter,
}

impl Find {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let globs = Globs::new(self.patterns.iter().map(|pattern| pattern.as_bytes()))?;
        let (store, watch) = global.open(ui, Purpose::Read, "find")?;
        let snapshots = select::snapshots(&store, &self.filter)?;
        // Many snapshots share leaves without a match. Each such leaf is read once.
        let mut empty: HashSet<ChunkId> = HashSet::new();
        let mut found: BTreeMap<Vec<u8>, Vec<(usize, Entry)>> = BTreeMap::new();
        let mut lost_parts = 0u64;
        for (number, (id, snapshot)) in snapshots.iter().enumerate() {
            let mut lost = |lost: &Lost| {
                lost_parts += 1;
                let (id, span, error) = (id.short(), &lost.span, &lost.error);
                ui.warn(&format!("cannot search {span} in snapshot {id}: {error}"));
            };
            let root = snapshot.root.chunk();
            for (place, part) in tree::outline(&root, &store, &|_| false, &mut |_| {}) {
                store.observer().progress().check()?;
                let page = place.child.page;
                if let OutlinePart::Lost(error) = part {
                    lost(&place.lost(error));
                    continue;
                }
                if empty.contains(&page) {
                    continue;
                }
                let mut is_empty = true;
                for item in TreeReader::at(place, &store) {
                    match item {
                        Ok(entry) if globs.matches(&entry.path) => {
                            is_empty = false;
                            found.entry(entry.path.clone()).or_default().push((number, entry));
                        }
                        Ok(_) => {}
                        Err(part) => {
                            is_empty = false;
                            lost(&part);
                        }
                    }
                }
                if is_empty {
                    empty.insert(page);
                }
            }
        }
        // Signals still work while the result is printed.
        watch.hush();
        for (path, versions) in &found {
            ui.line(format!("/{}", display_path(path)))?;
            for (number, entry) in versions {
                let (id, snapshot) = &snapshots[*number];
                let mtime = entry.mtime.map_or_else(|| "-".into(), local_time);
                let (start, bytes) = (local_time(snapshot.start.into()), size(entry.size));
                ui.line(format!("  {}  {start}  {bytes:>10}  modified {mtime}", id.short()))?;
                ui.json(&Match {
                    node: Node::from(entry),
                    snapshot: id.to_string(),
                    snapshot_time: utc_time(snapshot.start.into()),
                })?;
            }
        }
        ui.json(&FindSummary { paths: found.len(), snapshots: snapshots.len() })?;
        ui.remark(format!(
            "{} in {}",
            count(found.len() as u64, "path"),
            count(snapshots.len() as u64, "snapshot")
        ))?;
        watch.end();
        if lost_parts > 0 { Err(Failure::Partial) } else { Ok(()) }
    }
}
