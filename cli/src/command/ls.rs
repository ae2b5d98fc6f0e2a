use super::Global;
use crate::exit::Failure;
use crate::json::{LsSummary, Node};
use crate::report::{count, local_time, mode, owner};
use crate::select::{self, Filter};
use crate::selector::Place;
use crate::ui::Ui;
use clap::Args;
use std::ffi::OsString;
use store::entry::{Entry, EntryKind, display_path};
use store::id::{ChunkId, SnapshotId};
use store::observe::Event;
use store::store::Store;
use store::tree::TreeReader;

/// List the content of a snapshot
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep ls latest
  forgekeep ls gitlab@2026-11-20:/var/opt/gitlab/git-data -l
  forgekeep ls latest --path /srv/git")]
pub struct Ls {
    /// Snapshot, such as `latest` or `gitlab@latest` (`forgekeep --help` lists all forms); with a
    /// path, only that part
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    place: OsString,
    /// Show mode, owner, size and time, too
    #[arg(long, short)]
    long: bool,
    #[command(flatten)]
    filter: Filter,
}

impl Ls {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let place = Place::parse(&self.place)?;
        let (store, watch) = global.open_for(place.selector.instance.as_deref(), ui, "ls")?;
        watch.hush();
        let found = select::find(&store, &place.selector, &self.filter)?;
        // Standard output has nothing but paths.
        ui.aside(&found.shown(&store));
        let (id, snapshot, is_sure) = (found.id, found.snapshot, found.is_sure);
        let mut entries = 0;
        let listed = each_entry(&store, &id, &snapshot.root.chunk(), &place.path, &mut |entry| {
            entries += 1;
            ui.json(&Node::from(&entry))?;
            if self.long {
                ui.line(long(&entry))
            } else {
                ui.line(format!("/{}", display_path(&entry.path)))
            }
        });
        if matches!(listed, Ok(()) | Err(Failure::Partial)) {
            ui.json(&LsSummary { store: store.place(), snapshot: id.to_string(), entries })?;
        }
        listed?;
        select::answered(is_sure)
    }
}

/// Calls `each` for the entry at `path` and all entries below. Fails if there are none, or if some
/// cannot be read.
pub fn each_entry(
    store: &Store,
    id: &SnapshotId,
    root: &ChunkId,
    path: &[u8],
    each: &mut dyn FnMut(Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut found, mut lost_parts) = (false, 0u64);
    for item in TreeReader::within(root, path, store) {
        store.observer().progress().check()?;
        found = true;
        match item {
            Ok(entry) => each(entry)?,
            Err(lost) => {
                lost_parts += 1;
                let entries = lost.entries.map_or("entries".into(), |n| count(n, "entry"));
                let text = format!("{entries} of {} cannot be read: {}", lost.span, lost.error);
                store.observer().event(Event::Warning(text));
            }
        }
    }
    match lost_parts {
        0 if found || path.is_empty() => Ok(()),
        0 => Err(select::no_path(store, id, root, path)),
        _ => Err(Failure::Partial),
    }
}

fn long(entry: &Entry) -> String {
    let (user, group) = owner(entry);
    let size = match entry.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => entry.size.to_string(),
    };
    let time = entry.mtime.map_or_else(|| "-".into(), local_time);
    let target = match entry.kind {
        EntryKind::Symlink => format!(" -> {}", display_path(&entry.target)),
        _ => String::new(),
    };
    let path = display_path(&entry.path);
    format!("{} {user:>8} {group:>8} {size:>12} {time:>19} /{path}{target}", mode(entry))
}
