use super::instance;
use super::{Global, init};
use crate::exit::{Failure, usage, with_hint};
use crate::losses;
use crate::notifications::Notifications;
use crate::report::{self, count, now, size, skipped_records};
use crate::run_id::RunId;
use crate::run_record::{Frame, RunRecord};
use crate::stream::Stream;
use crate::ui::{Ui, Watch};
use clap::{Args, ValueEnum};
use forge::recovery::Record;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use store::Error;
use store::backup::{self, About, BackupOptions, Guard, Likeness, Report, Sources};
use store::entry::Displayed;
use store::glob::Globs;
use store::observe::Event;
use store::store::{Purpose, Store};

/// Walk threads per core. More threads than cores, because a cold disk serves parallel requests.
const WALK_THREADS_PER_CORE: usize = 4;

/// Back up directories and files, one stream, or a whole instance
///
/// Files that did not change since the last snapshot of the same paths are not read again. Bare git
/// repositories are copied consistently while users push and git repacks. An instance is an
/// application of the configuration with everything that belongs to it: databases, repositories,
/// files, secrets.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep backup /var/opt/gitlab /etc/gitlab
  forgekeep backup --tag nightly --exclude '*.tmp' /srv
  pg_dump -Fc -Z0 gitlab | forgekeep backup --stdin-name gitlab.dump
  forgekeep backup --stdin-name gitlab.sql --stdin-command pg_dump gitlab
  forgekeep backup --instance gitlab")]
pub struct Backup {
    /// Directories and files to back up
    #[arg(
        value_name = "PATH",
        required_unless_present_any = ["stdin_name", "stdin_command", "instance"],
        conflicts_with_all = ["stdin_name", "instance"]
    )]
    paths: Vec<PathBuf>,
    /// Back up this instance of the configuration
    #[arg(long, value_name = "NAME", conflicts_with = "stdin_name")]
    instance: Option<String>,
    /// Create the store if there is none. Leave this out of nightly backups: if the disk is not mounted, a new store would begin in its place
    #[arg(long)]
    init: bool,
    /// Label the snapshot with this tag (can be repeated)
    #[arg(long, value_name = "TAG", value_parser = crate::select::word)]
    tag: Vec<String>,
    /// Skip paths that match (can be repeated). A pattern without / matches a name at any depth; one that begins with ./ matches from the current directory
    #[arg(long, value_name = "GLOB", conflicts_with = "stdin_name")]
    exclude: Vec<OsString>,
    /// Skip paths that match a line of this file (can be repeated). Empty lines and lines that begin with # are ignored
    #[arg(long, value_name = "FILE", conflicts_with = "stdin_name")]
    exclude_file: Vec<PathBuf>,
    /// Skip the content of directories with a CACHEDIR.TAG, except the tag
    #[arg(long)]
    exclude_caches: bool,
    /// Keep or skip files that git can recreate: commit-graphs, bitmaps, .rev files and multi-pack indexes
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = GitCaches::Keep)]
    git_caches: GitCaches,
    /// Stay on the file systems of the given paths. Mount points that are given themselves, and mounted files, are backed up
    #[arg(long, short = 'x')]
    one_file_system: bool,
    /// Accept that sources are gone, empty, or lost most of their files or their mount since the last good snapshot
    #[arg(long)]
    allow_loss: bool,
    /// Print the result without storing it
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Read all files again, even if they look unchanged
    #[arg(long)]
    force: bool,
    /// Ignore change times when looking for changed files (for file systems that do not keep them);
    /// then changes of extended attributes and access lists alone are not noticed
    #[arg(long)]
    ignore_ctime: bool,
    /// Ignore inode numbers when looking for changed files (for network file systems)
    #[arg(long)]
    ignore_inode: bool,
    /// Name of this machine in the snapshot [default: its host name]
    #[arg(long, value_name = "HOST", value_parser = crate::select::word)]
    host: Option<String>,
    /// Back up standard input as one file of this name
    #[arg(long, value_name = "NAME")]
    stdin_name: Option<OsString>,
    /// With --stdin-name: accept an empty stream instead of refusing it
    #[arg(long, requires = "stdin_name")]
    allow_empty: bool,
    /// With --stdin-name: back up this command's output; if it fails, the backup fails. It has no terminal
    #[arg(
        long,
        value_name = "COMMAND",
        requires = "stdin_name",
        num_args = 1..,
        allow_hyphen_values = true
    )]
    stdin_command: Vec<OsString>,
    /// Print why files were stored again without comparing them with their previous copies
    #[arg(id = "verbose", long = "verbose", short = 'v', conflicts_with = "quiet")]
    _verbose: bool,
}

/// Choice about files that git can recreate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GitCaches {
    /// Back them up: a restored repository is complete at once
    Keep,
    /// Skip them for smaller backups: git recreates them at its next maintenance
    Skip,
}

impl Backup {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        if let Some(name) = &self.instance {
            return self.instance(name, global, ui);
        }
        self.refuse_odd_usage()?;
        let place = &global.place()?;
        let (run, started) = (RunId::random()?, now());
        let options = self.options(run)?;
        self.init(place, ui)?;
        let (store, watch) = self.open(place, ui)?;
        let result = match &self.stdin_name {
            Some(name) => self.stream(&store, name, &options, ui),
            None => self.paths(&store, &options),
        };
        watch.end();
        let report = result?;
        warn_of_losses(&report, ui);
        if report.is_empty {
            ui.warn(
                "nothing to back up: the directories are empty, or everything in them is excluded",
            );
        }
        let (elapsed, warnings) = (watch.elapsed(), ui.warnings());
        let store = Some(report::path_text(place));
        let frame = Frame { run, store, started, ended: now(), elapsed, warnings };
        let record = RunRecord::of_paths(frame, &report);
        let shown = saved_all_the_same(show(ui, &record, &report), &report);
        // The exit code must be right even if printing the result failed.
        if let Some(warning) = skipped_records(report.skipped_records) {
            ui.explain(&warning);
        }
        explain_losses(&report, None, ui);
        if record.is_good() { shown } else { Err(Failure::Partial) }
    }

    /// Refuses arguments that make no sense together, such as those of unset variables.
    fn refuse_odd_usage(&self) -> Result<(), Failure> {
        if self.paths.iter().any(|path| path.as_os_str() == "-") && !Path::new("-").exists() {
            return Err(usage(
                "- is not a path",
                "`forgekeep backup --stdin-name NAME` backs up standard input",
            ));
        }
        let Some(name) = &self.stdin_name else {
            // A path excludes --stdin-name, and clap then accepts the options that need it.
            return match self.allow_empty {
                true => Err(usage(
                    "--allow-empty concerns a stream only",
                    "leave it out, or give --stdin-name NAME",
                )),
                false => Ok(()),
            };
        };
        if name.is_empty() {
            return Err(usage(
                "--stdin-name is empty; the variable may be unset",
                "give a name such as db.sql",
            ));
        }
        let path = store::backup::tree_path(Path::new(name));
        if !store::entry::is_valid_path(&path) {
            return Err(usage(
                format!("{} is not a valid file name for a snapshot", name.displayed()),
                "give a name such as db.sql, or a path without . and ..",
            ));
        }
        match self.stdin_command.first() {
            Some(program) if program.is_empty() => Err(usage(
                "--stdin-command is empty; the variable may be unset",
                "give the command and its arguments",
            )),
            Some(program) if program == "--" => Err(usage(
                "--stdin-command takes the command itself, without --",
                "leave out the -- before the command",
            )),
            _ => Ok(()),
        }
    }

    /// Creates the store if `--init` is given and none exists. A dry run creates none.
    fn init(&self, place: &Path, ui: &Ui) -> Result<(), Failure> {
        if !self.init || self.dry_run {
            return Ok(());
        }
        match init::init(place, ui) {
            Err(Failure::Store(Error::StoreExists(_))) => Ok(()),
            made => {
                made?;
                // An unmounted disk leaves an empty mount point, where the store used to be.
                ui.warn(&format!(
                    "created a new store at {}; if a store existed there before, check that its disk is mounted",
                    place.displayed()
                ));
                Ok(())
            }
        }
    }

    /// Opens the store. A dry run with `--init` uses an empty one in memory if there is none.
    fn open(&self, place: &Path, ui: &Ui) -> Result<(Store, Arc<Watch>), Failure> {
        match super::open(place, ui, Purpose::Write, "backup") {
            Err(Failure::Store(Error::NoStore(_) | Error::NotAStore { .. }))
                if self.init && self.dry_run =>
            {
                let watch = ui.watch("backup");
                let opened = init::open_dry(place, ui, Arc::clone(&watch));
                Ok((opened.inspect_err(|_| watch.end())?, watch))
            }
            // A dry run needs an index, which it can also build elsewhere.
            Err(Failure::Store(error)) if self.dry_run && error.is_write_denied() => {
                super::open(place, ui, Purpose::Read, "backup")
            }
            opened => opened,
        }
    }

    /// Backs up an instance of the configuration and sends notifications.
    fn instance(&self, name: &str, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let config = global.config.read()?;
        let settings = config.instance(name)?;
        let run = RunId::random()?;
        let mut options = self.options(run)?;
        options.about.tags.extend(settings.tags.iter().cloned());
        let host = options.about.host.clone();
        let notifications = Notifications::new(ui, &config, name, &host, run);
        // After any signal, stopped services are started again before the program ends.
        ui.hold();
        let record = Record::open(&config.state, name);
        if let Err(busy @ forge::Error::Busy(_)) = record {
            // The other run sends its own notifications.
            return Err(busy.into());
        }
        if let Some(reason) = record.as_ref().ok().and_then(Record::no_lock) {
            ui.warn(&format!(
                "cannot lock files in {}: {reason}; let only one backup of {name} run at a time",
                config.state.displayed()
            ));
        }
        if !self.dry_run {
            notifications.started();
        }
        let (started, clock) = (now(), Instant::now());
        let place = instance::place_of(&config, name, global);
        let store = place.as_ref().ok().map(|place| report::path_text(place));
        let work = |record: &mut Record| {
            if !self.dry_run {
                instance::expect_no_rebuild(&config.state, name)?;
            }
            // Services must run again even if the store is missing.
            let left =
                if self.dry_run { None } else { instance::work_off(record, &notifications, ui) };
            let place = place?;
            self.init(&place, ui)?;
            let (store, watch) = self.open(&place, ui)?;
            let result = instance::backup(settings, record, &notifications, &store, options);
            watch.end();
            let mut outcome = result?;
            warn_of_losses(&outcome.report, ui);
            outcome.failures.extend(left);
            Ok(outcome)
        };
        let (result, mut record) = match record {
            Ok(mut record) => (work(&mut record), Some(record)),
            Err(error) => (Err(error.into()), None),
        };
        // Taken before notifications, which may be slow.
        let (ended, elapsed) = (now(), clock.elapsed());
        if let (Some(record), false) = (&mut record, self.dry_run) {
            notifications.end_silences(record);
        }
        let frame = Frame { run, store, started, ended, elapsed, warnings: ui.warnings() };
        let record = match &result {
            Ok(outcome) => RunRecord::of_instance(frame, outcome),
            Err(failure) => RunRecord::failed(frame, failure),
        };
        if !self.dry_run {
            notifications.ended(&record);
        }
        instance::show(ui, &record, &result?)
    }

    fn options(&self, run: RunId) -> Result<BackupOptions, Failure> {
        let mut excludes: Vec<Vec<u8>> =
            self.exclude.iter().map(|glob| glob.as_bytes().to_vec()).collect();
        Globs::new(excludes.iter().map(Vec::as_slice))?;
        for file in &self.exclude_file {
            let text = std::fs::read(file).map_err(|error| {
                let message = format!("cannot read {}: {error}", file.displayed());
                with_hint(message, "--exclude-file needs a readable file of patterns")
            })?;
            for (number, glob) in store::glob::lines(&text) {
                Globs::new([glob]).map_err(|error| in_line(file, number, error))?;
                excludes.push(glob.to_vec());
            }
        }
        for glob in &mut excludes {
            if let Some(absolute) = below_current_dir(glob) {
                *glob = absolute;
            }
        }
        let resolved: Vec<_> = excludes.iter().filter_map(|glob| through_links(glob)).collect();
        excludes.extend(resolved);
        let host = match &self.host {
            Some(host) => host.clone(),
            None => instance::host(),
        };
        let uid = rustix::process::geteuid().as_raw();
        let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Ok(BackupOptions {
            excludes,
            one_file_system: self.one_file_system,
            exclude_caches: self.exclude_caches,
            git_caches: self.git_caches == GitCaches::Keep,
            ignore_ctime: self.ignore_ctime,
            ignore_inode: self.ignore_inode,
            force: self.force,
            is_dry: self.dry_run,
            walk_threads: cores * WALK_THREADS_PER_CORE,
            guard: Guard { allow_loss: self.allow_loss, ..Guard::default() },
            about: About {
                host,
                user: user.map_or_else(|| uid.to_string(), |user| user.name),
                tags: self.tag.clone(),
                program: env!("CARGO_PKG_VERSION").into(),
                run: Some(run.bytes()),
                clock: now,
            },
        })
    }

    /// Backs up the paths. A missing path is passed on to the backup, which reports it and marks
    /// its snapshot as incomplete.
    fn paths(&self, store: &Store, options: &BackupOptions) -> Result<Report, Failure> {
        let (mut paths, mut missing) = (Vec::new(), Vec::new());
        for path in &self.paths {
            match std::fs::canonicalize(path) {
                Ok(real) => {
                    if passes_link(path) {
                        let text = format!(
                            "{} leads through a symbolic link; backing up {}",
                            path.displayed(),
                            real.displayed()
                        );
                        store.observer().event(Event::Note(text));
                    }
                    paths.push(real);
                }
                Err(error) => {
                    paths.push(std::path::absolute(path).unwrap_or(path.clone()));
                    missing.push((path.clone(), (&error).into()));
                }
            }
        }
        if missing.len() == self.paths.len() {
            for (path, reason) in missing {
                store.observer().event(Event::Unreadable { path, reason });
            }
            return Err(with_hint(
                "none of the paths can be read",
                "nothing was backed up; check the paths",
            ));
        }
        let mut backup = backup::Backup::begin(store, options, Likeness::of_paths(&paths))?;
        backup.paths(&Sources { paths, ..Sources::default() })?;
        Ok(backup.finish(None)?)
    }

    fn stream(
        &self,
        store: &Store,
        name: &OsString,
        options: &BackupOptions,
        ui: &Ui,
    ) -> Result<Report, Failure> {
        let path = store::backup::tree_path(Path::new(name));
        let (command, may_be_empty) = (&self.stdin_command[..], self.allow_empty);
        if let Some(program) = command.first().filter(|program| !is_there(program)) {
            return Err(with_hint(
                format!("cannot start {}: program not found", program.displayed()),
                "no snapshot was created; check the name and PATH",
            ));
        }
        Stream { path: &path, command, may_be_empty }.backup(store, options, ui)
    }
}

/// Adds file and line to an error about a pattern.
fn in_line(file: &Path, number: usize, error: Error) -> Error {
    match error {
        Error::Pattern { pattern, reason } => {
            let reason = format!("{reason} ({}, line {number})", file.displayed());
            Error::Pattern { pattern, reason }
        }
        error => error,
    }
}

/// Returns a pattern that begins with `./` as one for the current directory. Returns `None` for any
/// other.
fn below_current_dir(pattern: &[u8]) -> Option<Vec<u8>> {
    let inner = pattern.strip_prefix(b"./").filter(|inner| !inner.is_empty())?;
    let dir = std::env::current_dir().ok()?;
    Some([&store::glob::escape(&dir), &b"/"[..], inner].concat())
}

/// Resolves symbolic links in the literal prefix of a pattern, because source paths are resolved in
/// the same way. A relative pattern may begin in the current directory. Returns `None` if nothing
/// changes.
fn through_links(pattern: &[u8]) -> Option<Vec<u8>> {
    let Some(inner) = pattern.strip_prefix(b"/") else {
        let has_dir = pattern.contains(&b'/') && !pattern.starts_with(b"**");
        let dir = std::env::current_dir().ok().filter(|_| has_dir)?;
        let dir = dir.as_os_str().as_bytes();
        // A directory with special characters would be taken for a pattern.
        let is_plain = store::glob::escape(Path::new(OsStr::from_bytes(dir))) == dir;
        let absolute = [dir.strip_suffix(b"/").unwrap_or(dir), b"/", pattern].concat();
        return is_plain.then(|| through_links(&absolute)).flatten();
    };
    let is_literal = |part: &&[u8]| !part.iter().any(|byte| b"?*[]{}\\".contains(byte));
    let parts: Vec<&[u8]> = inner.split(|byte| *byte == b'/').collect();
    let literal = parts.iter().copied().take_while(is_literal).count();
    // The last part may be a link that is itself excluded.
    (1..=literal.min(parts.len() - 1)).rev().find_map(|n| {
        let dir = [b"/", &parts[..n].join(&b'/')[..]].concat();
        let real = std::fs::canonicalize(OsStr::from_bytes(&dir)).ok()?;
        let resolved = [store::glob::escape(&real), parts[n..].join(&b'/')].join(&b'/');
        Some((real.as_os_str().as_bytes() != dir).then_some(resolved))
    })?
}

/// Returns true if a path leads through a symbolic link, and not only through `..`.
fn passes_link(path: &Path) -> bool {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().any(Path::is_symlink)
}

/// Returns true if a shell would find this program.
#[expect(clippy::disallowed_methods, reason = "the command is the user's own")]
fn is_there(program: &OsString) -> bool {
    if program.as_encoded_bytes().contains(&b'/') {
        return Path::new(program).exists();
    }
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(program).is_file())
}

fn show(ui: &Ui, record: &RunRecord, report: &Report) -> Result<(), Failure> {
    ui.json(record)?;
    remarks(ui, record, report)
}

/// If printing the result failed, adds to the failure that the snapshot was saved.
pub fn saved_all_the_same(shown: Result<(), Failure>, report: &Report) -> Result<(), Failure> {
    shown.map_err(|failure| match (failure, report.snapshot) {
        (Failure::Other { message, .. }, Some(id)) => {
            with_hint(message, format!("snapshot {} was saved", id.short()))
        }
        (failure, _) => failure,
    })
}

/// Warns of sources that lost most of their files, or their mount.
fn warn_of_losses(report: &Report, ui: &Ui) {
    report.emptied.iter().for_each(|emptied| ui.warn(&losses::text(emptied)));
}

/// Explains the consequences of such losses, and the way out.
pub fn explain_losses(report: &Report, instance: Option<&str>, ui: &Ui) {
    if report.emptied.is_empty() {
        return;
    }
    let key = match instance {
        Some(name) => format!(
            "; `max-loss` of instance {name} or of the part sets the share that it may lose each time"
        ),
        None => String::new(),
    };
    ui.explain(&format!(
        "retention rules ignore the snapshot, and later backups build on the last good one; mount the \
         disk or restore the files, then run the backup again; if the loss is meant, run it once with \
         --allow-loss{key}"
    ));
}

/// Prints the figures of a backup.
pub fn remarks(ui: &Ui, record: &RunRecord, report: &Report) -> Result<(), Failure> {
    let statistics = &report.statistics;
    let removed = report.removed.unwrap_or_default();
    let removed = match (removed.files, removed.dirs) {
        (0, 0) => String::new(),
        (files, 0) => format!(", {files} removed"),
        (0, dirs) => format!(", {} removed", count(dirs, "directory")),
        (files, dirs) => format!(", {files} and {} removed", count(dirs, "directory")),
    };
    ui.remark(format!(
        "files: {} new, {} changed, {} unmodified{removed}; {} in {}",
        statistics.files_new,
        statistics.files_changed,
        statistics.files_unmodified,
        size(statistics.bytes),
        count(statistics.entries, "entry")
    ))?;
    ui.remark(format!(
        "added {} ({} stored) in {:.1} s",
        size(statistics.added_bytes),
        size(statistics.added_stored_bytes),
        record.total_duration
    ))?;
    if let Some(saved) = report::reuse(statistics) {
        ui.remark(saved)?;
    }
    for (reason, files) in &report.stored_plainly {
        ui.detail(format!(
            "stored without comparing: {} ({})",
            count(*files, "file"),
            reason.replace('_', " ")
        ))?;
    }
    if report.unreadable_count > 0 {
        ui.explain(&format!(
            "missing from the snapshot: {} could not be read",
            count(report.unreadable_count, "path")
        ));
    }
    if report.statistics.metadata_unreadable > 0 {
        let paths = count(report.statistics.metadata_unreadable, "path");
        ui.explain(&format!("cannot read metadata of {paths}; content is in the snapshot"));
    }
    match report.snapshot {
        Some(id) => {
            let store = record.store.as_deref().map_or_else(String::new, |at| format!(" in {at}"));
            ui.line(format!("snapshot {} saved{store}", id.short()))
        }
        None => ui.line("dry run: nothing was stored"),
    }
}
