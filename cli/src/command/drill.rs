use super::Global;
use super::instance;
use super::projects::{self, Places};
use crate::config::Config;
use crate::examination::{self, Examination};
use crate::exit::{Failure, other, with_hint};
use crate::json::{DrillSummary, DrilledRepository};
use crate::losses;
use crate::notifications;
use crate::report::{count, local_time, size, utc_time};
use crate::select::{self, Filter, Found};
use crate::selector::{Selector, of_instance};
use crate::ui::{Ui, Watch};
use clap::Args;
use forge::catalogue::Project;
use forge::check::{Check, Verdict};
use forge::drill::Scratch;
use forge::drill::contents;
use forge::drill::databases::{self, Installed, ScratchServer};
use forge::drill::git::{Finding, Git};
use forge::kind::gitlab::repositories::reference_names;
use forge::manifest::{self, Dumped, Manifest};
use forge::plan::Phase;
use forge::view::View;
use std::collections::{BTreeSet, HashSet};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::backup::tree_path;
use store::check_record::{CheckKind, CheckLevel, CheckRecord, CheckResult, ExaminedPart};
use store::entry::{Displayed, Entry, EntryKind, display_path, is_within, path_cmp};
use store::glob::Globs;
use store::id::ChunkId;
use store::observe::Event;
use store::owner_map::{OwnerMap, SystemAccounts, Unmatched};
use store::restore::Options;
use store::skipped::Spared;
use store::store::{Purpose, Store};
use store::tree::TreeReader;

/// Space for an empty cluster and its write-ahead log, in bytes.
const CLUSTER_BYTES: u64 = 400 << 20;
/// Projects of a sample for each other repository in it: that of a snippet or a group wiki.
const OTHERS_SHARE: usize = 4;
/// Space that a file or directory takes besides its content, in bytes.
const ENTRY_BYTES: u64 = 4096;

/// Prove that a snapshot of an instance can be restored
///
/// A drill restores a random sample of projects with their wikis, designs and pools, and of snippets
/// and group wikis, into scratch space, and removes it at the end. `git fsck` checks all objects of each repository. The references of
/// each are compared with those in the snapshot. Of an instance without projects, the drill restores a
/// random sample of files and compares each with the snapshot.
///
/// All database dumps are loaded into a PostgreSQL server in the scratch space, and the rows of each
/// table are compared with the number that the backup counted. The drill uses the newest installed
/// server. Without one of the snapshot's version or newer, it does not examine the databases.
///
/// The keys of the snapshot are tried on encrypted values of the loaded databases. Mattermost's sign-on
/// is compared with GitLab's applications. The uploads, LFS objects, artifacts and other files that
/// rows of the restored projects name must be in the snapshot, with the right size.
///
/// A random sample of the other files is read, and all of them with --whole: uploads, artifacts,
/// packages, configuration. A fault stays with the snapshot until a drill with --whole passes.
///
/// Without SNAPSHOT, and if several machines have snapshots of the instance, the drill takes those of
/// this machine.
///
/// Each drill leaves a record in the store, and `snapshots` shows which snapshots are checked. A user
/// without write permission drills without a record.
///
/// As root, git and PostgreSQL run as user nobody. The drill needs no running instance, and changes
/// neither the instance nor its snapshots. The exit code is 3 if something has a fault or could not
/// be examined. A fault that the instance itself had, such as the lost file of an upload, is only a
/// warning.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  forgekeep drill gitlab
  forgekeep drill gitlab latest~1 --sample 100 --scratch /mnt/scratch
  forgekeep drill gitlab --whole --time-limit 12h")]
pub struct Drill {
    /// Name of the instance, also with a snapshot (`gitlab@2026-11-20`)
    #[arg(value_name = "NAME")]
    instance: String,
    /// Snapshot, such as `latest` or `2026-11-20` (`forgekeep --help` lists all forms) [default:
    /// latest]
    snapshot: Option<String>,
    /// Number of projects or files to restore, taken at random
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    sample: usize,
    /// Restore all projects, or all files of an instance without projects
    #[arg(long, conflicts_with = "sample")]
    whole: bool,
    /// Directory for restored data; needs space for the sample
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
    /// Longest duration, such as 30m or 2h; the rest of the sample is skipped
    #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = duration)]
    time_limit: Duration,
    #[command(flatten)]
    filter: Filter,
}

impl Drill {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let (instance, snapshot) = of_instance(&self.instance, self.snapshot.as_deref())?;
        Drill { instance, snapshot, ..self.clone() }.begin(global, ui)
    }

    fn begin(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let selector = Selector::read(self.snapshot.as_deref().unwrap_or("latest"))?;
        let examination = Examination::begin(CheckKind::Drill)?;
        // A machine that only tests snapshots may have no configuration.
        let config = match &global.store {
            Some(_) => global.config.read_if_any().unwrap_or_else(|failure| {
                let (reason, _) = failure.words().unwrap_or_default();
                ui.warn(&format!("sending no notification: {reason}"));
                None
            }),
            None => Some(global.config.read()?),
        };
        let mut record = CheckRecord {
            instance: Some(self.instance.clone()),
            ..examination.record(if self.whole { CheckLevel::Whole } else { CheckLevel::Sample })
        };
        let (store, done) = match self.open(global, config.as_ref(), ui) {
            Ok((store, watch)) => {
                record.outweighs = store.faulty_runs().unwrap_or_default();
                let done = self.examine(&store, &selector, &examination, &mut record);
                watch.end();
                (Some(store), done)
            }
            Err(failure) => (None, Err(failure)),
        };
        let mut is_recorded = false;
        if let Some(record) = recorded(record, &examination, done.as_ref()) {
            is_recorded = store.as_ref().is_some_and(|store| examination::keep(store, &record, ui));
            if let Some(config) = &config {
                notifications::examined(ui, config, &self.instance, examination.run(), &record);
            }
        }
        let place = store.map_or_else(String::new, |store| store.place());
        self.show(ui, &done?, &place, is_recorded)
    }

    fn open(
        &self,
        global: &Global,
        config: Option<&Config>,
        ui: &Ui,
    ) -> Result<(Store, Arc<Watch>), Failure> {
        let place = match (&global.store, config) {
            (None, Some(config)) => instance::place_of(config, &self.instance, global)?,
            _ => global.place()?,
        };
        let opened = super::open(&place, ui, Purpose::Read, "drill")?;
        // A second signal must not leave scratch data behind.
        ui.hold();
        Ok(opened)
    }

    /// Drills the chosen snapshot, and puts it into the record.
    fn examine(
        &self,
        store: &Store,
        selector: &Selector,
        examination: &Examination,
        record: &mut CheckRecord,
    ) -> Result<Done, Failure> {
        let found = self.find(store, selector)?;
        record.snapshots = vec![found.id];
        record.rpo_seconds = Some(examination.age_of(found.snapshot.start));
        self.drill(store, &found, examination)
    }

    /// Returns the chosen snapshot. Without a choice, and if several machines have some, it is the
    /// latest of this machine: a schedule goes on after the instance has moved to another one.
    fn find(&self, store: &Store, selector: &Selector) -> Result<Found, Failure> {
        let of =
            |filter: &Filter| select::find_of_instance(store, selector, &self.instance, filter);
        match of(&self.filter) {
            Err(ambiguous @ Failure::Usage { .. }) if self.snapshot.is_none() => {
                let host = instance::host();
                let found = self.filter.of_host(&host).and_then(|filter| of(&filter).ok());
                let found = found.ok_or(ambiguous)?;
                let text = format!(
                    "several machines have snapshots of {}; this is one of {host}; choose with --host",
                    self.instance
                );
                store.observer().event(Event::Note(text));
                Ok(found)
            }
            found => found,
        }
    }

    fn drill(
        &self,
        store: &Store,
        found: &Found,
        examination: &Examination,
    ) -> Result<Done, Failure> {
        let Found { id, snapshot, is_sure } = found;
        for lack in losses::lacks(snapshot) {
            let text =
                format!("snapshot {} {lack}; the drill examines only its content", id.short());
            store.observer().event(Event::Warning(text));
        }
        let catalogue = projects::catalogue(store, id, snapshot)?;
        let has_projects = catalogue.is_some();
        let projects = catalogue.unwrap_or_default();
        let places = Places::read(store, id, snapshot)?;
        let total = projects.len();
        let copied: Vec<Project> =
            projects.into_iter().filter(|project| project.is_copied).collect();
        let absent = total - copied.len();
        let others = projects::others(store, id, snapshot)?;
        let others: Vec<_> = others.into_iter().filter(|other| other.is_copied).collect();
        let total_others = others.len();
        let mut dice = Dice::random()?;
        let (projects, others) = match self.whole {
            true => (copied, others),
            false => (
                sample(copied, self.sample, &mut dice),
                sample(others, self.sample.div_ceil(OTHERS_SHARE), &mut dice),
            ),
        };
        let root = snapshot.root.chunk();
        let progress = store.observer().progress();
        let scratch = Scratch::make(&self.scratch, progress)?;
        let git = Git::find(&scratch, progress);
        if git.is_none() && !(projects.is_empty() && others.is_empty()) {
            let message = "git is not installed, so no repository can be examined";
            return Err(with_hint(message, "install git"));
        }
        let deadline = Instant::now() + self.time_limit.saturating_sub(examination.elapsed());
        let dumps = Dumps::of(instance::manifest(store, id, snapshot)?);
        let mut work = Work {
            store,
            root,
            scratch: &scratch,
            git,
            options: options(&scratch)?,
            deadline,
            repositories: repositories(&projects, &others, &places),
            bytes_restored: 0,
        };
        self.check_space(&mut work, &dumps)?;
        let restoring = Instant::now();
        work.restore()?;
        let ids = projects.iter().map(|project| project.id).collect();
        let (mut checks, took) = work.load(&dumps, (!self.whole).then_some(ids))?;
        // Comparing is not a part of a restore.
        let mut rto = restoring.elapsed().saturating_sub(took);
        work.examine()?;
        let file_counts = if has_projects {
            let examined = [(projects.len(), total), (others.len(), total_others)];
            checks.insert(0, check(&work.repositories, examined));
            let files = self.other_files(&mut work, dumps.manifest.as_ref(), &mut dice)?;
            let counts = [files.same, files.faulty, files.total];
            checks.insert(1, files.check());
            counts
        } else {
            let number = (!self.whole).then_some(self.sample);
            let mut files = Files::new(&mut work, Way::Restored);
            files.examine(number, &mut dice, vec![TreeReader::new(&root, store)], &|_| false)?;
            rto += files.restoring;
            let counts = [files.same, files.faulty, files.total];
            checks.insert(0, files.check());
            counts
        };
        let (repositories, bytes_restored) = (work.repositories, work.bytes_restored);
        Ok(Done {
            snapshot: id.to_string(),
            snapshot_time: snapshot.start.into(),
            is_sure: *is_sure,
            projects: projects.len(),
            total,
            absent,
            checks,
            file_counts,
            databases: dumps.databases.len(),
            repositories,
            bytes_restored,
            age: Duration::from_secs(examination.age_of(snapshot.start)),
            rto,
            elapsed: examination.elapsed(),
        })
    }

    /// Reads files outside of the repositories: a sample of those in the parts of the instance, or else
    /// everything that was not restored.
    fn other_files<'w, 'b>(
        &self,
        work: &'w mut Work<'b>,
        manifest: Option<&Manifest>,
        dice: &mut Dice,
    ) -> Result<Files<'w, 'b>, Failure> {
        let (store, root) = (work.store, work.root);
        let restored: HashSet<Vec<u8>> =
            work.repositories.iter().map(Repository::tree_path).collect();
        let is_restored = |path: &[u8]| {
            let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            slashes.map(|(at, _)| &path[..at]).any(|above| restored.contains(above))
        };
        if self.whole {
            let mut files = Files::new(work, Way::Read);
            files.examine(None, dice, vec![TreeReader::new(&root, store)], &is_restored)?;
            return Ok(files);
        }
        let parts = manifest.into_iter().flat_map(|manifest| &manifest.parts);
        let parts = parts
            .filter(|part| !matches!(part.phase, Phase::Logs | Phase::Repositories | Phase::Pools));
        let mut paths: Vec<Vec<u8>> =
            parts.flat_map(|part| &part.paths).map(|path| tree_path(path)).collect();
        paths.sort_unstable_by(|a, b| path_cmp(a, b));
        // A part may be within another one.
        paths.dedup_by(|later, earlier| is_within(later, earlier));
        let readers = paths.iter().map(|path| TreeReader::within(&root, path, store)).collect();
        let mut files = Files::new(work, Way::Read);
        files.examine(Some(self.sample), dice, readers, &is_restored)?;
        Ok(files)
    }

    /// Fails if the sample does not fit into the scratch space.
    fn check_space(&self, work: &mut Work<'_>, dumps: &Dumps) -> Result<(), Failure> {
        let mut needed = dumps.space();
        for repository in &mut work.repositories {
            for entry in TreeReader::within(&work.root, &repository.tree_path(), work.store) {
                work.store.observer().progress().check()?;
                if entry.as_ref().is_ok_and(is_device) {
                    repository.finding = Some(Finding::Faulty(DEVICE.into()));
                }
                // A lost part of the tree needs no space; the restore reports it.
                let size = entry.map_or(0, |entry| entry.size);
                needed = needed.saturating_add(size).saturating_add(ENTRY_BYTES);
            }
        }
        let free = work.scratch.free_bytes()?;
        if needed <= free {
            return Ok(());
        }
        let message = format!(
            "the sample needs {} of scratch space, and {} has {}",
            size(needed),
            self.scratch.displayed(),
            size(free)
        );
        Err(with_hint(message, "give a directory with more space (--scratch), or a lower --sample"))
    }

    fn show(&self, ui: &Ui, done: &Done, place: &str, is_recorded: bool) -> Result<(), Failure> {
        let shown = self.print(ui, done, place, is_recorded);
        // The exit code must be right even if printing the result failed.
        let is_good = done.result() == CheckResult::Good;
        if is_good && done.is_sure { shown } else { Err(Failure::Partial) }
    }

    fn print(&self, ui: &Ui, done: &Done, place: &str, is_recorded: bool) -> Result<(), Failure> {
        let counts = Counts::of(&done.repositories);
        let [files_ok, files_failed, total_files] = done.file_counts;
        for repository in &done.repositories {
            let (verdict, reason) = match &repository.finding {
                Some(Finding::Sound(_)) => continue,
                Some(Finding::Faulty(reason)) => (Verdict::Failed, &reason[..]),
                Some(Finding::Unknown(reason)) => (Verdict::Unknown, &reason[..]),
                None => (Verdict::Unknown, OUT_OF_TIME),
            };
            let Repository { project, path, .. } = repository;
            ui.json(&DrilledRepository { project, path, verdict, reason })?;
            let word = if verdict == Verdict::Failed { "faulty" } else { "not examined" };
            ui.line(format!("{word}: {project}: {path}: {reason}"))?;
        }
        instance::show_findings(ui, &[], &done.checks)?;
        if done.absent > 0 {
            let projects = count(done.absent as u64, "project");
            ui.remark(format!("{projects} without a repository in the snapshot were left out"))?;
        }
        ui.json(&DrillSummary {
            store: place,
            instance: &self.instance,
            snapshot: done.snapshot.clone(),
            snapshot_time: utc_time(done.snapshot_time),
            verdict: done.verdict(),
            result: done.result(),
            projects: done.projects as u64,
            total_projects: done.total as u64,
            repositories_ok: counts.sound,
            repositories_failed: counts.faulty,
            repositories_unknown: counts.unknown,
            references: counts.references,
            files_ok,
            files_failed,
            total_files,
            databases: done.databases as u64,
            bytes_restored: done.bytes_restored,
            rpo_seconds: done.age.as_secs(),
            rto_seconds: done.rto.as_secs_f64(),
            seconds_elapsed: done.elapsed.as_secs_f64(),
            recorded: is_recorded,
        })?;
        ui.remark(format!(
            "restored {} in {:.1} s; the snapshot of {} was {} old; drill took {:.1} s",
            size(done.bytes_restored),
            done.rto.as_secs_f64(),
            local_time(done.snapshot_time),
            age(done.age),
            done.elapsed.as_secs_f64()
        ))?;
        let short = &done.snapshot[..8];
        let end = match done.result() {
            CheckResult::Good => "passed",
            CheckResult::Incomplete => "is NOT COMPLETE",
            CheckResult::Faulty | CheckResult::Failed => "FAILED",
        };
        ui.line(format!("{}: drill of snapshot {short} in {place} {end}", self.instance))
    }
}

/// Reason for a repository that was not reached.
const OUT_OF_TIME: &str = "the time limit was reached";

/// A repository of the sample.
struct Repository {
    /// Project that needs it.
    project: String,
    /// Absolute path in the snapshot.
    path: String,
    is_restored: bool,
    /// `None` if it was not examined.
    finding: Option<Finding>,
}

impl Repository {
    fn tree_path(&self) -> Vec<u8> {
        tree_path(Path::new(&self.path))
    }
}

/// A drill at work.
struct Work<'a> {
    store: &'a Store,
    root: ChunkId,
    scratch: &'a Scratch,
    /// `None` if git is not installed, which only a sample without repositories allows.
    git: Option<Git<'a>>,
    options: Options,
    deadline: Instant,
    repositories: Vec<Repository>,
    bytes_restored: u64,
}

impl Work<'_> {
    /// Restores the sample.
    fn restore(&mut self) -> Result<(), Failure> {
        for repository in &mut self.repositories {
            if Instant::now() >= self.deadline {
                break;
            }
            if repository.finding.is_some() {
                continue;
            }
            let (from, target) = (repository.tree_path(), self.scratch.place(&repository.path));
            let restored =
                store::restore::restore(self.store, &self.root, &from, &target, &self.options);
            repository.finding = match restored {
                Err(error) if is_damage(&error) => Some(Finding::Faulty(error.to_string())),
                Err(error) => return Err(error.into()),
                Ok(report) => {
                    self.bytes_restored += report.bytes_restored;
                    let denied = self.scratch.user().map_or(0, |_| report.owner_denied);
                    if report.selected == 0 {
                        Some(Finding::Faulty("it is not in the snapshot".into()))
                    } else if report.failed > 0 {
                        let paths = count(report.failed, "path");
                        Some(Finding::Faulty(format!("{paths} could not be restored")))
                    } else if denied > 0 {
                        let reason = "the scratch directory does not keep owners";
                        Some(Finding::Unknown(reason.into()))
                    } else {
                        None
                    }
                }
            };
            repository.is_restored = true;
        }
        Ok(())
    }

    /// Restores the dumps and loads them into a server. Then compares their rows, of some projects
    /// or of all, with the files of the snapshot; returns the time that this took.
    fn load(
        &mut self,
        dumps: &Dumps,
        projects: Option<BTreeSet<u64>>,
    ) -> Result<(Vec<Check>, Duration), Failure> {
        let one = |check| Ok((vec![check], Duration::ZERO));
        let (Some(manifest), false) = (&dumps.manifest, dumps.databases.is_empty()) else {
            return Ok((Vec::new(), Duration::ZERO));
        };
        let unknown = |text: String| one(Check::new("databases", Verdict::Unknown, text));
        let Some(installed) = &dumps.installed else {
            let version = dumps.version.as_deref().and_then(databases::major);
            let version =
                version.map_or_else(String::new, |version| format!(" {version} or newer"));
            return unknown(format!(
                "no PostgreSQL server{version} is installed, so the dumps were not loaded; \
                 install the package of the server"
            ));
        };
        if self.left().is_zero() {
            return unknown(OUT_OF_TIME.into());
        }
        let (from, target) =
            (format!("{}/{}", manifest::DIR, Dumps::DIR), self.scratch.path().join(Dumps::DIR));
        for entry in TreeReader::within(&self.root, from.as_bytes(), self.store) {
            if entry.as_ref().is_ok_and(is_device) {
                return one(Check::new("databases", Verdict::Failed, DEVICE));
            }
        }
        let restored = store::restore::restore(
            self.store,
            &self.root,
            from.as_bytes(),
            &target,
            &self.options,
        );
        match restored {
            Err(error) if is_damage(&error) => {
                return one(Check::new("databases", Verdict::Failed, error.to_string()));
            }
            Err(error) => return Err(error.into()),
            Ok(report) => self.bytes_restored += report.bytes_restored,
        }
        let progress = self.store.observer().progress();
        let mut server = match ScratchServer::start(installed, self.scratch, progress) {
            Err(error) if error.is_interrupted() => return Err(error.into()),
            Err(error) => return unknown(format!("no server could be started: {error}")),
            Ok(server) => server,
        };
        let mut checks = Vec::new();
        match server.load_globals(&target.join("globals.sql"), self.left()) {
            Ok(errors) if errors.is_empty() => {}
            Ok(errors) => {
                let text = format!("{} during loading", count(errors.len() as u64, "error"));
                checks.push(Check::new("roles", Verdict::Failed, text).with_examples(errors));
            }
            Err(error) => checks.push(not_loaded("roles", error)?),
        }
        for dumped in &dumps.databases {
            let left = self.left();
            let name = format!("database-{}", dumped.name);
            if left.is_zero() {
                checks.push(Check::new(&name, Verdict::Unknown, OUT_OF_TIME));
                continue;
            }
            let Some(file) = Path::new(&dumped.path).file_name() else { continue };
            let loaded = server.load(dumped, &target.join(file), left);
            checks.push(loaded.or_else(|error| not_loaded(&name, error))?);
        }
        let comparing = Instant::now();
        if self.left().is_zero() {
            checks.push(Check::new("contents", Verdict::Unknown, OUT_OF_TIME));
        } else {
            let tree = View::Tree { store: self.store, root: self.root };
            match contents::examine(&server, manifest, &tree, projects, self.left()) {
                Ok(more) => checks.extend(more),
                Err(error) if error.is_interrupted() => return Err(error.into()),
                Err(error) => {
                    let text = format!("cannot compare the databases with the files: {error}");
                    checks.push(Check::new("contents", Verdict::Unknown, text));
                }
            }
        }
        Ok((checks, comparing.elapsed()))
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Examines the restored repositories.
    fn examine(&mut self) -> Result<(), Failure> {
        let view = View::Tree { store: self.store, root: self.root };
        for repository in &mut self.repositories {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if !repository.is_restored || repository.finding.is_some() {
                continue;
            }
            let wanted = reference_names::read(&view, Path::new(&repository.path))?;
            let dir = self.scratch.place(&repository.path);
            if let Some(git) = &self.git {
                repository.finding = Some(git.examine(&dir, wanted.as_ref(), left)?);
            }
        }
        Ok(())
    }
}

/// Fault of restored data with a device, which would belong to the user who examines the data.
const DEVICE: &str = "it contains a device, which a drill does not restore";

fn is_device(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::BlockDevice | EntryKind::CharDevice)
}

/// How files are examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Restored and compared, one after the other, so that it needs space for one.
    Restored,
    /// Read from the store, which verifies each byte.
    Read,
}

/// Examination of files.
struct Files<'a, 'b> {
    work: &'a mut Work<'b>,
    way: Way,
    /// Number of files in the snapshot.
    total: u64,
    same: u64,
    bytes: u64,
    /// Number of files that were not reached.
    left_out: u64,
    faulty: u64,
    /// First faults.
    faults: Vec<String>,
    /// Duration of the restores.
    restoring: Duration,
}

impl<'a, 'b> Files<'a, 'b> {
    fn new(work: &'a mut Work<'b>, way: Way) -> Files<'a, 'b> {
        let (faults, restoring) = (Vec::new(), Duration::ZERO);
        Files { work, way, total: 0, same: 0, bytes: 0, left_out: 0, faulty: 0, faults, restoring }
    }

    /// Examines a number of files at random, or else all, of the readers' entries but those that
    /// something else examines.
    fn examine(
        &mut self,
        number: Option<usize>,
        dice: &mut Dice,
        readers: Vec<TreeReader<'b>>,
        is_left: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), Failure> {
        let store = self.work.store;
        let own = manifest::DIR.as_bytes();
        let mut taken: Vec<Entry> = Vec::new();
        for entry in readers.into_iter().flatten() {
            store.observer().progress().check()?;
            match entry {
                Err(lost) => self.fault(format!("a part of the tree is lost: {}", lost.error)),
                Ok(entry) if entry.kind != EntryKind::File || is_within(&entry.path, own) => {}
                Ok(entry) if is_left(&entry.path) => {}
                Ok(entry) => {
                    self.total += 1;
                    match number {
                        None => self.examine_one(&entry)?,
                        Some(number) if taken.len() < number => taken.push(entry),
                        // Every file so far is in the sample with the same probability.
                        Some(number) => {
                            let at = (dice.roll() % self.total) as usize;
                            if at < number {
                                taken[at] = entry;
                            }
                        }
                    }
                }
            }
        }
        taken.iter().try_for_each(|entry| self.examine_one(entry))
    }

    fn examine_one(&mut self, entry: &Entry) -> Result<(), Failure> {
        if self.work.left().is_zero() {
            self.left_out += 1;
            return Ok(());
        }
        let fault = match self.way {
            Way::Restored => self.restored(entry)?,
            Way::Read => match store::dump::dump(self.work.store, entry, &mut std::io::sink()) {
                Err(error) if is_damage(&error) => Some(error.to_string()),
                read => {
                    let _written = read?;
                    None
                }
            },
        };
        match fault {
            None => {
                self.same += 1;
                self.bytes += entry.size;
            }
            Some(fault) => self.fault(format!("/{}: {fault}", display_path(&entry.path))),
        }
        Ok(())
    }

    /// Restores a file and compares it. Returns its fault, if there is one.
    fn restored(&mut self, entry: &Entry) -> Result<Option<String>, Failure> {
        let Work { store, root, scratch, options, .. } = &*self.work;
        let target = scratch.path().join("file");
        let free = scratch.free_bytes()?;
        if entry.size > free {
            let message = format!(
                "/{} needs {} of scratch space, and {} is free",
                display_path(&entry.path),
                size(entry.size),
                size(free)
            );
            return Err(with_hint(message, "give a directory with more space (--scratch)"));
        }
        let started = Instant::now();
        let restored = store::restore::restore(store, root, &entry.path, &target, options);
        self.restoring += started.elapsed();
        let fault = match restored {
            Err(error) if is_damage(&error) => Some(error.to_string()),
            Err(error) => return Err(error.into()),
            Ok(report) if report.failed > 0 || report.selected == 0 => {
                Some("it could not be restored".into())
            }
            Ok(_) => {
                let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                difference(store, entry, &target.join(std::ffi::OsStr::from_bytes(name)))?
            }
        };
        // A failure would show in the next restore.
        let _ = std::fs::remove_dir_all(&target);
        if fault.is_none() {
            self.work.bytes_restored += entry.size;
        }
        Ok(fault)
    }

    fn fault(&mut self, fault: String) {
        self.faulty += 1;
        if self.faults.len() < forge::check::EXAMPLES {
            self.faults.push(fault);
        }
    }

    fn check(self) -> Check {
        let (name, what) = match self.way {
            Way::Restored => ("files", ""),
            Way::Read => ("other-files", " outside of repositories"),
        };
        let (total, same) = (count(self.total, "file"), size(self.bytes));
        let mut text = format!("{} of {total}{what} without fault, {same}", self.same);
        if self.faulty > 0 {
            text += &format!("; {} faulty", self.faulty);
        }
        if self.left_out > 0 {
            text += &format!("; {} not examined: {OUT_OF_TIME}", self.left_out);
        }
        let verdict = match (self.faulty, self.left_out, self.same) {
            (1.., _, _) => Verdict::Failed,
            (0, 1.., _) => Verdict::Unknown,
            (0, 0, 0) if self.total > 0 => Verdict::Unknown,
            _ => Verdict::Ok,
        };
        Check::new(name, verdict, text).with_examples(self.faults)
    }
}

/// Compares a restored file with its entry. Returns the difference, if there is one.
fn difference(store: &Store, entry: &Entry, file: &Path) -> Result<Option<String>, Failure> {
    let open = match std::fs::File::open(file) {
        Ok(open) => open,
        Err(error) => return Ok(Some(format!("cannot be read: {error}"))),
    };
    let mut comparison = Comparison { restored: std::io::BufReader::new(open) };
    let compared = store::dump::dump(store, entry, &mut comparison)?;
    let at_end = |()| comparison.restored.read(&mut [0]).map(|read| read == 0);
    Ok(match compared.and_then(at_end) {
        Ok(true) => None,
        Ok(false) => Some("it is longer than in the snapshot".into()),
        Err(error) => Some(format!("it differs from the snapshot: {error}")),
    })
}

/// Compares what is written with a restored file.
struct Comparison<R> {
    restored: R,
}

impl<R: Read> Write for Comparison<R> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut restored = vec![0; bytes.len()];
        self.restored.read_exact(&mut restored)?;
        match restored == bytes {
            true => Ok(bytes.len()),
            false => Err(std::io::Error::other("other content")),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Converts an error of loading, such as the end of the server: the other results still count.
fn not_loaded(name: &str, error: forge::Error) -> Result<Check, Failure> {
    if error.is_interrupted() {
        return Err(error.into());
    }
    if matches!(error, forge::Error::TooSlow { .. }) {
        return Ok(Check::new(name, Verdict::Unknown, OUT_OF_TIME));
    }
    Ok(Check::new(name, Verdict::Failed, format!("loading failed: {error}")))
}

/// Returns true if an error of a restore is the fault of the snapshot.
fn is_damage(error: &store::Error) -> bool {
    use store::Error as E;
    matches!(
        error,
        E::SegmentDamaged { .. }
            | E::ChunkDamaged { .. }
            | E::ChunkMissing(_)
            | E::Malformed { .. }
            | E::Unfit { .. }
    )
}

/// Result of a drill.
struct Done {
    snapshot: String,
    snapshot_time: store::entry::Time,
    is_sure: bool,
    /// Number of projects in the sample.
    projects: usize,
    /// Number of projects in the snapshot.
    total: usize,
    /// Number of projects without a repository in the snapshot.
    absent: usize,
    checks: Vec<Check>,
    /// Numbers of files as in the snapshot, of faulty ones, and of all.
    file_counts: [u64; 3],
    /// Number of databases in the snapshot.
    databases: usize,
    repositories: Vec<Repository>,
    bytes_restored: u64,
    /// Age of the snapshot.
    age: Duration,
    rto: Duration,
    elapsed: Duration,
}

impl Done {
    /// Returns the worst verdict of all checks.
    fn verdict(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Unknown)
    }

    /// Returns the result of the drill.
    fn result(&self) -> CheckResult {
        let results = self.checks.iter().map(|check| result(check.verdict));
        results.max().unwrap_or(CheckResult::Incomplete)
    }
}

/// Returns the result of a part. A warning is about the instance, which the snapshot matches.
fn result(verdict: Verdict) -> CheckResult {
    match verdict {
        Verdict::Ok | Verdict::Warning => CheckResult::Good,
        Verdict::Unknown => CheckResult::Incomplete,
        Verdict::Failed => CheckResult::Faulty,
    }
}

/// Completes the record of a drill; `None` if it was interrupted.
fn recorded(
    mut record: CheckRecord,
    examination: &Examination,
    done: Result<&Done, &Failure>,
) -> Option<CheckRecord> {
    record.seconds = examination.elapsed().as_secs_f64();
    let done = match done {
        Err(failure) if failure.is_interrupted() => return None,
        Err(failure) => {
            let (message, _) = failure.words().unwrap_or_default();
            let is_fault = matches!(failure, Failure::Store(error) if is_damage(error));
            let mut record = examination::failed(record, message);
            if is_fault && !record.snapshots.is_empty() {
                (record.result, record.faults) = (CheckResult::Faulty, 1);
                record.faulty.clone_from(&record.snapshots);
            }
            return Some(record);
        }
        Ok(done) => done,
    };
    record.result = done.result();
    record.bytes = done.bytes_restored;
    record.rto_seconds = Some(done.rto.as_secs_f64());
    let of = |wanted| done.checks.iter().filter(move |check| result(check.verdict) == wanted);
    record.faults = of(CheckResult::Faulty).count() as u64;
    record.unknown = of(CheckResult::Incomplete).count() as u64;
    if record.result == CheckResult::Faulty {
        record.faulty.clone_from(&record.snapshots);
    }
    let bad = of(CheckResult::Faulty).chain(of(CheckResult::Incomplete));
    let lines: Vec<String> = bad.map(|check| format!("{}: {}", check.name, check.text)).collect();
    record.message = (!lines.is_empty()).then(|| lines.join("\n"));
    let parts = done.checks.iter().map(|check| ExaminedPart {
        name: check.name.clone(),
        result: result(check.verdict),
        text: check.text.clone(),
    });
    record.parts = parts.collect();
    Some(record)
}

/// Database dumps of a snapshot.
struct Dumps {
    manifest: Option<Manifest>,
    databases: Vec<Dumped>,
    /// Version of the server that made them.
    version: Option<String>,
    /// Server of this machine that can load them.
    installed: Option<Installed>,
}

impl Dumps {
    /// Path of the dumps in the tree of a snapshot.
    const DIR: &str = "databases";

    fn of(manifest: Option<Manifest>) -> Dumps {
        let (databases, version) =
            manifest.clone().map(|of| (of.databases, of.postgres)).unwrap_or_default();
        let major = version.as_deref().and_then(databases::major).unwrap_or_default();
        Dumps { manifest, databases, version, installed: Installed::newest(major) }
    }

    /// Returns the space that the dumps and the databases need, in bytes.
    fn space(&self) -> u64 {
        if self.databases.is_empty() || self.installed.is_none() {
            return 0;
        }
        let dumps = self.databases.iter().map(|dumped| dumped.bytes);
        dumps.fold(CLUSTER_BYTES, |sum, bytes| sum.saturating_add(bytes.saturating_mul(3)))
    }
}

/// Numbers of repositories by finding.
#[derive(Default)]
struct Counts {
    sound: u64,
    faulty: u64,
    unknown: u64,
    /// References of sound repositories.
    references: u64,
}

impl Counts {
    fn of(repositories: &[Repository]) -> Counts {
        let mut counts = Counts::default();
        for repository in repositories {
            match &repository.finding {
                Some(Finding::Sound(references)) => {
                    counts.sound += 1;
                    counts.references += references;
                }
                Some(Finding::Faulty(_)) => counts.faulty += 1,
                Some(Finding::Unknown(_)) | None => counts.unknown += 1,
            }
        }
        counts
    }
}

/// Sums up the repositories of a sample.
///
/// Takes the number of projects in the sample and that of all, and the same of other repositories.
fn check(repositories: &[Repository], examined: [(usize, usize); 2]) -> Check {
    let Counts { sound, faulty, unknown, references } = Counts::of(repositories);
    let [(projects, total), (others, total_others)] = examined;
    let others = match total_others {
        0 => String::new(),
        all => format!(", {others} of {all} snippets and group wikis"),
    };
    let mut text = format!(
        "{projects} of {}{others}: {} without fault, {}",
        count(total as u64, "project"),
        count(sound, "repository"),
        count(references, "reference")
    );
    if faulty > 0 {
        text += &format!("; {faulty} faulty");
    }
    if unknown > 0 {
        text += &format!("; {unknown} not examined");
    }
    let verdict = match (faulty, unknown, sound) {
        (1.., _, _) => Verdict::Failed,
        (0, 1.., _) | (0, 0, 0) => Verdict::Unknown,
        _ => Verdict::Ok,
    };
    Check::new("repositories", verdict, text)
}

/// Returns the repositories of projects, each once. Pools come first, because others borrow from
/// them.
fn repositories(
    projects: &[Project],
    of_no_project: &[forge::catalogue::Repository],
    places: &Places,
) -> Vec<Repository> {
    let (mut pools, mut others, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
    for project in projects {
        let own = places.of(project).unwrap_or_else(|| project.repository.clone());
        let below = |path: &String| places.below(project, path);
        let more = [&project.wiki, &project.design].map(|path| path.as_ref().and_then(below));
        let pool = project.pool.as_ref().and_then(below);
        let mut add = |list: &mut Vec<Repository>, path: String| {
            if known.insert(path.clone()) {
                let project = project.name().into_owned();
                list.push(Repository { project, path, is_restored: false, finding: None });
            }
        };
        pool.into_iter().for_each(|path| add(&mut pools, path));
        add(&mut others, own);
        more.into_iter().flatten().for_each(|path| add(&mut others, path));
    }
    for other in of_no_project {
        let path = places.within(&other.storage, &other.repository);
        let path = path.unwrap_or_else(|| other.repository.clone());
        if known.insert(path.clone()) {
            let project = other.to_string();
            others.push(Repository { project, path, is_restored: false, finding: None });
        }
    }
    pools.append(&mut others);
    pools
}

/// Returns the options of a restore whose result belongs to the user of the scratch space.
fn options(scratch: &Scratch) -> Result<Options, Failure> {
    let mut owners = OwnerMap::new(Unmatched::Unchanged, Box::new(SystemAccounts));
    if let Some(owner) = scratch.owner() {
        owners.add_owner("drill", owner.as_bytes())?;
    }
    // git must read everything, and the end of the drill removes it.
    owners.add_mode("drill", b"u+rwX")?;
    Ok(Options {
        include: Globs::new([])?,
        include_each: Vec::new(),
        exclude: Globs::new([])?,
        delete: false,
        sources: Vec::new(),
        keep: Spared::default(),
        owners: Arc::new(owners),
        owner_record: None,
        ends_at_write_errors: false,
        is_dry: false,
    })
}

/// Pseudorandom numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn random() -> Result<Dice, Failure> {
        let seed = store::random::bytes()
            .map_err(|error| other(format!("cannot get random numbers: {error}")))?;
        Ok(Dice(u64::from_le_bytes(seed)))
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut roll = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        roll = (roll ^ (roll >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        roll ^ (roll >> 31)
    }
}

/// Returns `number` items at random, in their order.
fn sample<T>(all: Vec<T>, number: usize, dice: &mut Dice) -> Vec<T> {
    let (mut left, mut wanted) = (all.len() as u64, number.min(all.len()) as u64);
    let mut taken = Vec::with_capacity(number.min(all.len()));
    for item in all {
        if dice.roll() % left < wanted {
            taken.push(item);
            wanted -= 1;
        }
        left -= 1;
    }
    taken
}

/// Parses a duration of the command line.
fn duration(text: &str) -> Result<Duration, String> {
    let limit = forge::settings::Limit::parse(text);
    limit.map(|limit| limit.0).map_err(|error| error.to_string())
}

/// Formats the age of a snapshot.
fn age(age: Duration) -> String {
    match age.as_secs() / 60 {
        minutes @ 0..120 => count(minutes, "minute"),
        minutes @ 120..2880 => count(minutes / 60, "hour"),
        minutes => count(minutes / 1440, "day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_number_of_different_items() {
        let mut dice = Dice::random().expect("random numbers");
        for (all, number) in [(0, 3), (3, 0), (3, 3), (3, 9), (100, 20)] {
            let mut taken = sample((0..all).collect(), number, &mut dice);
            assert_eq!(taken.len(), number.min(all), "{number} of {all}");
            taken.dedup();
            assert_eq!(taken.len(), number.min(all));
        }
        // Every item is taken sooner or later.
        let mut seen = BTreeSet::new();
        for _ in 0..1000 {
            seen.extend(sample((0..4).collect(), 1, &mut dice));
        }
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn a_restored_file_is_compared_to_its_end() {
        let of = |restored: &[u8], stored: &[u8]| Comparison { restored }.write_all(stored).is_ok();
        assert!(of(b"same", b"same") && of(b"longer", b"long"));
        assert!(!of(b"other", b"otter") && !of(b"short", b"shorter"));
    }

    #[test]
    fn only_a_drill_that_examined_everything_passes() {
        let of = |findings: &[Option<Finding>]| {
            let findings = findings.iter().cloned();
            let repositories: Vec<Repository> = findings
                .map(|finding| Repository {
                    project: "p".into(),
                    path: "/p".into(),
                    is_restored: true,
                    finding,
                })
                .collect();
            check(&repositories, [(1, 1), (0, 0)]).verdict
        };
        let (sound, faulty) = (Some(Finding::Sound(1)), Some(Finding::Faulty("x".into())));
        assert_eq!(of(&[sound.clone(), sound.clone()]), Verdict::Ok);
        assert_eq!(of(&[sound.clone(), None]), Verdict::Unknown);
        assert_eq!(of(&[sound, None, faulty]), Verdict::Failed);
        assert_eq!(of(&[]), Verdict::Unknown);
    }
}
