//! Promised costs: listings, reads and requests of common runs, as counts.

use crate::support::sandbox::{FORGEKEEP, Sandbox};
use crate::support::stores::restore_options;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use store::backend::Local;
use store::backend::faulty::{Faulty, Operation};
use store::glob::Globs;
use store::observe::Silent;
use store::restore::Options;
use store::store::{Purpose, Store};

/// Calls that read content.
const READS: &str = "read,pread64,readv,preadv,preadv2,mmap,sendfile,copy_file_range,splice";

/// Returns the paths below `source` of all calls in a trace, with the number of calls.
fn calls(trace: &str, names: &str, source: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in trace.lines() {
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
        let Some((name, rest)) = call.split_once('(') else { continue };
        let path = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        if let Some((path, _)) = path.filter(|_| names.split(',').any(|wanted| wanted == name))
            && (path == source || path.starts_with(&format!("{source}/")))
        {
            *found.entry(path.to_owned()).or_default() += 1;
        }
    }
    found
}

#[test]
fn an_unchanged_night_lists_each_directory_once_and_reads_no_file() {
    let sandbox = Sandbox::with_store();
    for n in 0..20 {
        for file in 0..4 {
            sandbox.write(&format!("source/{n}/sub/{file}"), format!("{n} {file}"));
        }
    }
    sandbox.tool("git").args(["init", "-q", "--bare", "source/r.git"]).run().ok();
    // A file that was written in the tick of a run is read again in the next one.
    std::thread::sleep(std::time::Duration::from_millis(50));
    sandbox.backup(["source"]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    sandbox.backup(["source"]);
    let segments = sandbox.tool("find").args(["store/segments", "-type", "f"]).run().ok().stdout;
    let strace = ["-f", "-y", "-o", "trace", "-e"];
    let calls_traced = format!("trace=getdents64,{READS}");
    let backup = [&calls_traced, FORGEKEEP, "backup", "source"];
    sandbox.tool("strace").args(strace).args(backup).run().ok();
    let trace = std::fs::read_to_string(sandbox.path("trace")).expect("a trace");
    let source = sandbox.path("source").canonicalize().expect("is there");
    let source = source.to_str().expect("readable");

    // A listing of a small directory takes one call for the names and one for the end.
    let listed = calls(&trace, "getdents64", source);
    assert_eq!(listed.keys().filter(|path| path.contains("/sub")).count(), 20, "{listed:#?}");
    for (path, count) in listed {
        // One listing finds a git directory, and others show that it did not change meanwhile.
        let most = if path.contains("r.git") { 6 } else { 2 };
        assert!(count <= most, "{path}: {count} calls");
    }
    // The beginning of `HEAD` shows that a directory is a git directory.
    let mut read = calls(&trace, READS, source);
    read.remove(&format!("{source}/r.git/HEAD"));
    assert_eq!(read, BTreeMap::new());
    let now = sandbox.tool("find").args(["store/segments", "-type", "f"]).run().ok().stdout;
    assert_eq!(now, segments);
}

#[test]
fn one_new_reference_among_many_costs_a_listing() {
    let sandbox = Sandbox::with_store();
    sandbox.tool("git").args(["init", "-q", "--bare", "source/r.git"]).run().ok();
    // The programs under test hold only few entries in memory.
    for n in 0..500 {
        sandbox.write(&format!("source/r.git/refs/heads/{n}"), format!("{n:040x}\n"));
        let object = format!("{:02x}/{n:038x}", n % 4);
        sandbox.write(&format!("source/r.git/objects/{object}"), format!("{n}"));
    }
    let pause = || std::thread::sleep(std::time::Duration::from_millis(50));
    pause();
    sandbox.backup(["source"]);
    sandbox.write("source/r.git/refs/heads/new", format!("{:040x}\n", 77));
    pause();
    let strace = ["-f", "-y", "-o", "trace", "-e", "trace=openat,openat2,getdents64"];
    sandbox.tool("strace").args(strace).args([FORGEKEEP, "backup", "source"]).run().ok();
    let trace = std::fs::read_to_string(sandbox.path("trace")).expect("a trace");
    let source = sandbox.path("source").canonicalize().expect("is there");
    let source = source.to_str().expect("readable");
    // The result of a call that opened a file names it.
    let opened = |line: &&str| line.contains("open") && line.contains(&format!("<{source}/"));
    let path = |line: &str| {
        let (_, path) = line.rsplit_once('<').expect("a path");
        path.trim_end_matches(['>', ')']).to_owned()
    };
    let opened = trace.lines().filter(opened).map(path);
    let files: BTreeSet<String> =
        opened.filter(|path| std::path::Path::new(path).is_file()).collect();
    let wanted = ["HEAD", "config", "refs/heads/new"].map(|name| format!("{source}/r.git/{name}"));
    assert_eq!(files, BTreeSet::from(wanted));
    // Names are read ahead, for the phase itself, and to find what changed meanwhile.
    let listed = calls(&trace, "getdents64", source);
    let calls: usize = listed.values().sum();
    assert!(calls < 100, "{listed:#?}");
}

/// Counts reads of segments, and of snapshot records.
#[derive(Default)]
struct Reads {
    segments: AtomicUsize,
    snapshots: AtomicUsize,
}

/// Opens the store for reading and counts the reads from here on.
fn counted(sandbox: &Sandbox) -> (Store, Arc<Reads>) {
    let reads = Arc::<Reads>::default();
    let counts = Arc::clone(&reads);
    let count = move |operation: Operation, name: &str| {
        let count = match name.split('/').next() {
            Some("segments") => &counts.segments,
            _ => &counts.snapshots,
        };
        count.fetch_add(usize::from(operation == Operation::Read), Relaxed);
        Ok(())
    };
    let backend = Faulty::new(Local::new(sandbox.path("store")), Arc::new(count));
    let (workspaces, observer) = (sandbox.path("workspaces"), Arc::new(Silent::default()));
    let store = Store::open_backend(Arc::new(backend), &workspaces, Purpose::Read, observer);
    (store.expect("opens"), reads)
}

#[test]
fn a_restore_of_one_directory_reads_few_pages_of_a_large_tree() {
    reads_few_pages(|_| restore_options(), |wanted| wanted);
}

#[test]
fn a_restore_of_an_anchored_pattern_reads_few_pages_of_a_large_tree() {
    let included = |wanted: &[u8]| {
        let pattern = [b"/", wanted].concat();
        let include = Globs::new([&pattern[..]]).expect("a pattern");
        Options { include, ..restore_options() }
    };
    reads_few_pages(included, |_| b"");
}

/// Asserts that a restore of one directory of a large tree reads few pages. Both functions get the
/// path of the directory in the tree.
fn reads_few_pages(options: impl Fn(&[u8]) -> Options, from: impl Fn(&[u8]) -> &[u8]) {
    let mut counts = Vec::new();
    for files in [500, 20_000] {
        let sandbox = Sandbox::with_store();
        for n in 0..files {
            sandbox.write(&format!("source/{:03}/{n}", n / 100), format!("{n}"));
        }
        sandbox.write("source/wanted/file", "wanted");
        sandbox.backup(["source"]);
        let (store, reads) = counted(&sandbox);
        let id = store.snapshot_ids().expect("lists")[0];
        let root = store.snapshot(&id).expect("reads").root.chunk();
        let wanted = store::backup::tree_path(&sandbox.path("source/wanted"));
        let (before, target) = (reads.segments.load(Relaxed), sandbox.path("restored"));
        let (from, options) = (from(&wanted), options(&wanted));
        let report = store::restore::restore(&store, &root, from, &target, &options);
        assert_eq!(report.expect("restores").files_restored, 1);
        counts.push(reads.segments.load(Relaxed) - before);
    }
    // The hashes of random paths decide where pages begin. The large tree has some 160 pages.
    assert!(counts[1] <= counts[0] + 20 && counts[1] < 40, "{counts:?} reads of segments");
}

#[test]
fn the_newest_snapshot_is_found_without_reading_the_others() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/file", "content");
    let backups = |count| (0..count).for_each(|_| drop(sandbox.backup(["source"])));
    backups(20);
    // `store.json` and the files that name features.
    let few = 6;
    let (store, reads) = counted(&sandbox);
    let count = || reads.snapshots.swap(0, Relaxed);
    let newest =
        |store: &Store| store.records().expect("lists").next().expect("one").expect("reads");
    assert!(count() < few);
    // Each record is read once to find its place. A read asks for the length first.
    newest(&store);
    assert_eq!(count(), 2 * 21);
    newest(&store);
    assert_eq!(count(), 2);
    backups(1);
    newest(&store);
    assert_eq!(count(), 2 * 2);
    drop(store);
    let (store, reads) = counted(&sandbox);
    newest(&store);
    assert!(reads.snapshots.load(Relaxed) < few + 2);
    drop(store);
}
