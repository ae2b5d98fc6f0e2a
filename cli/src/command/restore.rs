use super::Global;
use super::in_place::InPlace;
use super::owner_options::{self, OwnerOptions};
use crate::exit::{Failure, with_hint};
use crate::json::RestoreSummary;
use crate::losses;
use crate::report::{count, size};
use crate::select::{self, Filter, Found, tree_path};
use crate::selector::Place;
use crate::ui::Ui;
use clap::Args;
use forge::owners::{Above, Files, OwnersAs};
use forge::plan::Part;
use forge::process::quoted_path;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::entry::{Displayed, EntryKind, display_path};
use store::glob::Globs;
use store::id::SnapshotId;
use store::index::Header;
use store::observe::Event;
use store::owner_map::Usage;
use store::restore::{Borrowers, Options, Report};
use store::skipped::Spared;
use store::snapshot::Snapshot;
use store::store::Store;
use store::tree::{Lookup, TreeReader};

/// Restore a snapshot, or a part of it, into a directory
///
/// Without a path, the paths of the snapshot are recreated below the directory. With a path, its
/// content is put into the directory. Files that are already up to date are left alone, others are
/// replaced. Only root can set owners.
///
/// A snapshot of an instance is restored over the files of this machine only with --yes. Below the
/// directory of sshd such a restore writes only host keys, and writes or removes settings only where
/// --include gives their path without wildcards.
#[derive(Debug, Args)]
#[command(after_long_help = format!("{}\n\n{EXAMPLES}", owner_options::HELP))]
pub struct Restore {
    /// Snapshot, such as `latest` or `gitlab@latest` (`forgekeep --help` lists all forms); with a
    /// path, only that part
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    place: OsString,
    /// Directory to restore into; created if it does not exist
    #[arg(long, short, value_name = "DIR")]
    target: PathBuf,
    /// Restore only paths that match, with everything below (can be repeated)
    #[arg(long, value_name = "GLOB")]
    include: Vec<OsString>,
    /// Skip paths that match, with everything below (can be repeated)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<OsString>,
    /// Remove files that the snapshot lacks from the restored directories, except files that the backup skipped
    #[arg(long)]
    delete: bool,
    /// Print the result without changing anything
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Restore an instance over the files of this machine. Stop its services first
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    owners: OwnerOptions,
}

/// Largest configuration of a product that is read, in bytes.
const SETTINGS_BYTES_MAX: u64 = 4 << 20;

const EXAMPLES: &str = "\
Examples:
  forgekeep restore latest --target /mnt/restored
  forgekeep restore gitlab@latest:/etc/gitlab --target ./etc-gitlab
  forgekeep restore 3f2a --target / --include '/etc/gitlab' --dry-run
  forgekeep restore latest --target /srv/new --usermap git:998 --groupmap git:998";

impl Restore {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let place = Place::parse(&self.place)?;
        let globs = |patterns: &[OsString]| Globs::new(patterns.iter().map(|glob| glob.as_bytes()));
        let (include, mut exclude) = (globs(&self.include)?, globs(&self.exclude)?);
        raise_open_files();
        let owner_map = self.owners.read()?;
        let (store, watch) = global.open_for(place.selector.instance.as_deref(), ui, "restore")?;
        let Found { id, snapshot, is_sure } = select::find(&store, &place.selector, &self.filter)?;
        if !snapshot.is_sound() {
            let other = last_complete(&store, &snapshot)?;
            let other = other.map_or_else(
                || "no complete snapshot of its source exists".into(),
                |other| format!("{} is the last complete one", other.short()),
            );
            for lack in losses::lacks(&snapshot) {
                let text = format!("snapshot {} {lack}; {other}", id.short());
                store.observer().event(Event::Warning(text));
            }
        }
        let incomplete = snapshot.statistics.metadata_unreadable;
        if incomplete > 0 {
            let text = format!(
                "snapshot {} has {} without some metadata that the backup could not read",
                id.short(),
                count(incomplete, "entry")
            );
            store.observer().event(Event::Warning(text));
        }
        if self.delete
            && let Some(reason) = why_not_delete(&snapshot)
        {
            watch.end();
            return Err(with_hint(
                format!("snapshot {} {reason}", id.short()),
                "restore without --delete, or use another snapshot",
            ));
        }
        let in_place = InPlace {
            store: &store,
            id: &id,
            snapshot: &snapshot,
            from: &place.path,
            target: &self.target,
            include: &include,
            patterns: &self.include,
            exclude: &exclude,
            is_delete: self.delete,
        };
        let left = in_place.look(self.yes || self.dry_run, ui).inspect_err(|_| watch.end())?;
        if !left.is_empty() {
            let own = self.exclude.iter().map(|glob| glob.as_bytes());
            exclude = Globs::new(own.chain(left.iter().map(Vec::as_slice)))?;
        }
        let root = snapshot.root.chunk();
        let of_product = |kind: &OwnersAs| rules_as(kind, &store, &id, &snapshot, &place.path);
        let owners = self.owners.map(&snapshot, owner_map.as_deref(), of_product);
        let owners = owners.inspect_err(|_| watch.end())?;
        let owners = Arc::new(owners);
        let owner_record = self.owners.record(self.dry_run).inspect_err(|_| watch.end())?;
        let sources = snapshot.paths.iter().map(|path| tree_path(path)).collect();
        let each = |pattern: &OsString| {
            Ok((pattern.to_string_lossy().into_owned(), globs(std::slice::from_ref(pattern))?))
        };
        let include_each = self.include.iter().map(each).collect::<Result<_, store::Error>>()?;
        let keep = match self.delete {
            false => Spared::default(),
            true => {
                let named = snapshot.paths.iter().map(|path| tree_path(path));
                Spared::of(&snapshot.excludes, &snapshot.skipped, named)?
            }
        };
        let options = Options {
            include,
            include_each,
            exclude,
            delete: self.delete,
            sources,
            keep,
            owners: Arc::clone(&owners),
            owner_record,
            ends_at_write_errors: false,
            is_dry: self.dry_run,
        };
        if !place.path.is_empty() {
            let first = TreeReader::within(&root, &place.path, &store).next();
            if first.is_none() {
                watch.end();
                return Err(select::no_path(&store, &id, &root, &place.path));
            }
            let is_file = matches!(&first, Some(Ok(entry))
                if entry.path == place.path && entry.kind != EntryKind::Directory);
            if self.delete && is_file {
                watch.end();
                return Err(with_hint(
                    "--delete needs a directory",
                    "omit --delete to restore one file",
                ));
            }
        }
        if let Some((link, leads_to)) = store::tree::link_on(&root, &place.path, &store)
            && link == place.path
            && TreeReader::within(&root, &leads_to, &store).next().is_some()
        {
            let (link, leads_to) = (display_path(&link), display_path(&leads_to));
            ui.warn(&format!(
                "/{link} is a symbolic link, and only the link is restored; what it leads to is \
                 {}:/{leads_to}",
                id.short()
            ));
        }
        let report = store::restore::restore(&store, &root, &place.path, &self.target, &options);
        watch.end();
        let report = report?;
        warn_of_borrowers(&report.borrowers, &id, &self.target, ui);
        if report.selected == 0 {
            ui.warn("nothing restored: no path of the snapshot was selected; `forgekeep ls` lists its paths");
        }
        let usage = owners.usage();
        let seconds = watch.elapsed().as_secs_f64();
        let shown = self.show(ui, (&store, &id), (&report, &usage), seconds);
        let owners_lost = if is_root() { report.owner_denied } else { 0 };
        let is_partial = report.failed + report.not_deleted + report.metadata_refused + owners_lost
            > 0
            || report.selected == 0;
        // The exit code must be right even if printing the result failed.
        if is_partial || !is_sure { Err(Failure::Partial) } else { shown }
    }

    fn show(
        &self,
        ui: &Ui,
        (store, id): (&Store, &SnapshotId),
        (report, usage): (&Report, &Usage),
        seconds: f64,
    ) -> Result<(), Failure> {
        owner_options::show(ui, usage, self.dry_run)?;
        ui.json(&RestoreSummary {
            store: store.place(),
            snapshot: id.to_string(),
            files_restored: report.files_restored,
            bytes_restored: report.bytes_restored,
            files_unchanged: report.files_unchanged,
            dirs: report.dirs,
            others: report.others,
            files_deleted: report.deleted,
            owners_to_set: report.owners_to_set,
            modes_to_set: report.modes_to_set,
            xattrs_to_set: report.xattrs_to_set,
            files_hidden: report.files_hidden,
            errors: report.failed,
            not_deleted: report.not_deleted,
            metadata_refused: report.metadata_refused,
            owner_denied: report.owner_denied,
            xattr_denied: report.xattr_denied,
            owner_rules: owner_options::rules(usage),
            renumbered: owner_options::renumbered(usage),
            dry_run: self.dry_run,
            seconds_elapsed: seconds,
        })?;
        let verb = if self.dry_run { "would restore" } else { "restored" };
        let mut text = format!(
            "{verb} {} ({}), {}, {}",
            count(report.files_restored, "file"),
            size(report.bytes_restored),
            count(report.dirs, "directory"),
            match report.others {
                1 => "1 link or special file".to_owned(),
                others => format!("{others} links and special files"),
            }
        );
        if report.files_unchanged > 0 {
            text += &format!("; {} already up to date", count(report.files_unchanged, "file"));
        }
        if report.files_hidden > 0 {
            text += &format!("; {} not compared", count(report.files_hidden, "file"));
        }
        if report.owners_to_set + report.modes_to_set > 0 {
            text += &format!(
                "; {} and {} to be set",
                count(report.owners_to_set, "owner"),
                count(report.modes_to_set, "mode")
            );
        }
        if report.xattrs_to_set > 0 {
            text += &format!(
                "; extended attributes of {} to be set",
                count(report.xattrs_to_set, "path")
            );
        }
        if report.deleted > 0 {
            let deleted = if self.dry_run { "to be deleted" } else { "deleted" };
            text += &format!("; {} {deleted}", count(report.deleted, "path"));
        }
        if !self.dry_run {
            text += &format!(" in {seconds:.1} s");
        }
        ui.remark(format!("{text}, from snapshot {} in {}", id.short(), store.place()))?;
        let could_not = if self.dry_run { "would not" } else { "could not" };
        if report.owner_denied > 0 {
            let next = if is_root() {
                "this file system, or the rights of this container, do not permit it".to_owned()
            } else {
                let command = owner_options::command_for_root();
                format!("only root can: {command}")
            };
            let paths = count(report.owner_denied, "path");
            ui.explain(&format!("{could_not} set the owner of {paths}; {next}"));
        }
        if report.xattr_denied > 0 {
            ui.explain(&format!(
                "{could_not} set {} extended attributes (not root, or the file system does not support them)",
                report.xattr_denied
            ));
        }
        if report.metadata_refused > 0 {
            let paths = count(report.metadata_refused, "path");
            let restored = if self.dry_run { "would be restored" } else { "restored" };
            ui.explain(&format!("{paths} {restored} without all metadata; see above"));
        }
        if report.failed > 0 {
            let at_least = if report.has_uncounted { "at least " } else { "" };
            ui.explain(&format!("{at_least}{} not restored", count(report.failed, "path")));
        }
        if report.not_deleted > 0 {
            ui.explain(&format!("{} not deleted", count(report.not_deleted, "path")));
        }
        Ok(())
    }
}

/// Returns the rules for the parts that a snapshot has of a kind, and for the directories above them;
/// `None` if it has no part.
fn rules_as(
    kind: &OwnersAs,
    store: &Store,
    id: &SnapshotId,
    snapshot: &Snapshot,
    from: &[u8],
) -> Result<Option<Vec<u8>>, Failure> {
    let root = snapshot.root.chunk();
    let entry = |path: &Path| {
        let path = tree_path(path.as_os_str().as_bytes());
        Lookup::new(&root, store).at(&path).ok().flatten()
    };
    let manifest = super::instance::manifest(store, id, snapshot)?;
    if let Some(manifest) = manifest.filter(|manifest| manifest.kind == kind.kind()) {
        let mut parts = manifest.parts;
        if let Some((uid, gid)) = kind.numbers {
            let main = forge::owners::main_account(&parts);
            for part in parts.iter_mut().filter(|part| part.owner.is_some() && part.owner == main) {
                part.owner = Some(format!("{uid}:{gid}"));
            }
        }
        // The account of a container does not enter the directories above its volumes.
        let is_container = owner_options::CONTAINER_KINDS.contains(&kind.kind());
        let top = Some(Path::new("/")).filter(|_| !is_container);
        let rules = forge::owners::rules(&parts, &Above { top, entry: &entry });
        return Ok((!parts.is_empty()).then_some(rules));
    }
    let exists = |path: &Path| {
        TreeReader::within(&root, &tree_path(path.as_os_str().as_bytes()), store).next().is_some()
    };
    let read = |path: &Path| {
        let entry = entry(path).filter(|entry| entry.size <= SETTINGS_BYTES_MAX)?;
        let mut content = Vec::new();
        store::dump::dump(store, &entry, &mut content).ok()?.ok().map(|()| content)
    };
    let files = Files { exists: &exists, read: &read };
    let named = [Path::new("/").join(OsStr::from_bytes(from))];
    let sources = snapshot.paths.iter().map(|path| PathBuf::from(OsStr::from_bytes(path)));
    let mut found = named.into_iter().chain(sources).map(|dir| (kind.parts(&dir, &files), dir));
    let found = found.find(|(parts, _)| !parts.is_empty());
    let rules = |(parts, top): (Vec<Part>, PathBuf)| {
        forge::owners::rules(&parts, &Above { top: Some(&top), entry: &entry })
    };
    Ok(found.map(rules))
}

/// Maximum number of pools that are named.
const POOLS_MAX: usize = 10;

/// Warns of repositories that git cannot read without another one, with the command that restores
/// it.
fn warn_of_borrowers(all: &[Borrowers], id: &SnapshotId, target: &Path, ui: &Ui) {
    let id = id.short();
    let in_place = |borrowers: &Borrowers| {
        borrowers.first_in_target.as_os_str().as_bytes() == [b"/", &borrowers.first[..]].concat()
    };
    for borrowers in all.iter().take(POOLS_MAX) {
        let Borrowers { first_in_target, count: many, wanted, pool, is_relative, .. } = borrowers;
        let others = match many - 1 {
            0 => String::new(),
            others => format!(" ({} more do so, too)", count(others, "repository")),
        };
        let next = match pool {
            None => "the snapshot does not have it".to_owned(),
            Some(pool) => {
                let is_near = std::path::absolute(target).is_ok_and(|dir| wanted.starts_with(dir));
                let tree_path =
                    |path: &[u8]| PathBuf::from(OsStr::from_bytes(&[b"/", path].concat()));
                let shown = quoted_path(&tree_path(pool));
                if *is_relative && !is_near && !in_place(borrowers) {
                    let first = quoted_path(&tree_path(&borrowers.first));
                    format!(
                        "restore both below one directory: forgekeep restore {id} --target DIR \
                         --include {first} --include {shown}"
                    )
                } else {
                    let wanted = quoted_path(wanted);
                    format!("restore it, too: forgekeep restore {id}:{shown} --target {wanted}")
                }
            }
        };
        ui.warn(&format!(
            "{}: git cannot read it without the pool that it borrows objects from, {}{others}; {next}",
            first_in_target.displayed(),
            wanted.displayed(),
        ));
    }
    let more = all.len().saturating_sub(POOLS_MAX);
    if more > 0 {
        ui.warn(&format!("{more} more pools of restored repositories are missing"));
    }
}

/// Returns the reason why `--delete` must not be used with this snapshot, if there is one.
fn why_not_delete(snapshot: &Snapshot) -> Option<String> {
    if snapshot.unreadable_count > 0 {
        let paths = count(snapshot.unreadable_count, "path");
        return Some(format!("lacks {paths} that could not be read; --delete would remove them"));
    }
    if let Some(instance) = snapshot.instance.as_ref().filter(|instance| !instance.is_complete) {
        let name = &instance.name;
        return Some(format!("lacks a part of instance {name}; --delete would remove it"));
    }
    if let Some(emptied) = snapshot.emptied.first() {
        let loss = losses::text(emptied);
        return Some(format!("lacks lost files, which --delete would remove: {loss}"));
    }
    let text =
        "does not list all paths that its backup skipped; --delete could remove some of them";
    snapshot.skipped.is_cut.then(|| text.into())
}

/// Returns the newest complete snapshot of the same machine with the same instance or paths.
fn last_complete(store: &Store, like: &Snapshot) -> Result<Option<SnapshotId>, Failure> {
    let source = like.source();
    let mut records = store.records()?;
    // Records of other sources are not read. The paths of an instance may change.
    records.retain(|Header { source: other, .. }| {
        let is_same = other.instance.is_some() || other.paths == source.paths;
        (&other.host, &other.instance) == (&source.host, &source.instance) && is_same
    });
    let mut readable = records.filter_map(Result::ok);
    let found = readable.find(|(_, other)| other.is_sound());
    Ok(found.map(|(id, _)| id))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Raises the limit on open files, because several files are written at once. The usual limit of
/// 1024 is meant for old programs.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // A restore works with the old limit, too.
    let _ = setrlimit(Resource::Nofile, limit);
}
