//! Changed files are stored as their new bytes.
//!
//! git makes the packs, from generated histories; dumps are text with rows.

use crate::support::sandbox::{Dice, Sandbox};
use crate::support::{stores, tree};
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use store::entry::Content;
use store::recipe::{Extent, Extents};
use store::store::Purpose;
use store::tree::TreeReader;

/// Rows of a file in the histories.
const ROWS: u64 = 160;

fn git(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let run = sandbox.tool("git").args(["--git-dir", "source/forge.git"]).args(arguments);
    run.run().ok().stdout.trim().to_owned()
}

/// Creates an empty repository in `source`.
fn repository(object_format: &str) -> Sandbox {
    let sandbox = Sandbox::with_store();
    std::fs::create_dir(sandbox.path("source")).expect("a directory");
    let format = format!("--object-format={object_format}");
    let init = ["init", "--quiet", "--bare", "--initial-branch=main", &format];
    sandbox.tool("git").args(init).args(["source/forge.git"]).run().ok();
    for setting in ["gc.auto", "receive.unpackLimit", "fastimport.unpackLimit"] {
        git(&sandbox, &["config", setting, "1"]);
    }
    git(&sandbox, &["config", "gc.auto", "0"]);
    sandbox
}

/// Adds commits `from..to` as one pack, like a push. Each changes a row of a file.
fn push(sandbox: &Sandbox, branch: &str, from: u64, to: u64) {
    let mut stream = Vec::new();
    let mut write = |text: String| stream.extend(text.into_bytes());
    for n in from..to {
        let text = if n == 0 { file(0, 0) } else { file(n % 20, n) };
        write(format!(
            "commit refs/heads/{branch}\ncommitter A <a@b.c> {} +0000\n",
            1_700_000_000 + n
        ));
        write("data 7\nchange\n\n".to_owned());
        if n == from && n > 0 {
            write(format!("from refs/heads/{branch}^0\n"));
        }
        write(format!(
            "M 100644 inline dir{}/file{}\ndata {}\n{text}\n",
            n % 4,
            n % 20,
            text.len()
        ));
    }
    sandbox
        .tool("git")
        .args(["--git-dir", "source/forge.git", "fast-import", "--quiet"])
        .input(stream)
        .run()
        .ok();
}

/// Returns the content of a file at a commit: unique rows, one in five of them changed since.
fn file(number: u64, commit: u64) -> String {
    let row = |row: u64| {
        let changed = if row % 20 < commit / 20 % 20 { commit / 40 } else { 0 };
        let mut dice = Dice::new(number * 1_000_003 + row * 7 + changed * 131);
        format!("{row} {:016x}{:016x}\n", dice.roll(), dice.roll())
    };
    (0..ROWS).map(row).collect()
}

fn packs(sandbox: &Sandbox) -> Vec<PathBuf> {
    let dir = sandbox.path("source/forge.git/objects/pack");
    let entries = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("lists").path());
    let is_pack =
        |path: &PathBuf| path.extension().is_some_and(|end| end == "pack" || end == "idx");
    entries.filter(is_pack).collect()
}

fn number(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_else(|| panic!("{name} in {summary}"))
}

/// Restores the last snapshot, compares it with the source and removes it.
fn assert_restored(sandbox: &Sandbox) {
    let source = sandbox.text("source");
    sandbox.restore(&format!("{}:{source}", sandbox.newest()), "restored");
    let differences = tree::compare(Path::new(&source), &sandbox.path("restored"));
    assert!(differences.is_empty(), "{differences:?}");
    sandbox.remove("restored");
}

#[test]
fn housekeeping_adds_little_and_is_restored() {
    for object_format in ["sha1", "sha256"] {
        let sandbox = repository(object_format);
        push(&sandbox, "main", 0, 300);
        git(&sandbox, &["repack", "-adq"]);
        sandbox.backup(["source"]);
        for n in 0..4 {
            push(&sandbox, "main", 300 + 25 * n, 325 + 25 * n);
        }
        push(&sandbox, "old", 0, 40);
        sandbox.backup(["source"]);
        let housekeeping: [&[&str]; 6] = [
            &["repack", "-dq", "--geometric=2"],
            &["repack", "-adq"],
            &["gc", "--quiet"],
            &["repack", "-adfq"],
            &["update-ref", "-d", "refs/heads/old"],
            &["repack", "--cruft", "-dq"],
        ];
        for arguments in housekeeping {
            let before = packs(&sandbox);
            git(&sandbox, arguments);
            let summary = sandbox.backup(["source"]);
            let is_new = |path: &&PathBuf| !before.contains(path);
            let new: u64 = packs(&sandbox)
                .iter()
                .filter(is_new)
                .map(|path| path.metadata().expect("is there").len())
                .sum();
            let found = number(&summary, "bytes_found_by_extent");
            // git computes new deltas when it merges packs, most of them with -f.
            let least = if arguments.contains(&"-adfq") { new / 3 } else { new * 3 / 4 };
            assert!(found >= least, "{object_format} {arguments:?}: {found} of {new}: {summary}");
            assert!(summary["files_stored_plainly"].as_object().is_some_and(|map| map.is_empty()));
            assert_restored(&sandbox);
        }
        sandbox.assert_clean();
    }
}

#[test]
fn a_pack_that_joins_very_many_packs_is_found_again() {
    let sandbox = repository("sha1");
    // Each pack has objects that no other has.
    for n in 0..150 {
        sandbox.write("source/blob", Dice::new(1000 + n).bytes(12_000));
        let blob = git(&sandbox, &["hash-object", "-w", "source/blob"]);
        git(&sandbox, &["update-ref", &format!("refs/keep/{n}"), &blob]);
        git(&sandbox, &["repack", "-dq"]);
    }
    sandbox.remove("source/blob");
    assert_eq!(packs(&sandbox).len(), 2 * 150, "packs and their indexes");
    sandbox.backup(["source"]);
    git(&sandbox, &["repack", "-adq"]);
    let summary = sandbox.backup(["source"]);
    let found = number(&summary, "bytes_found_by_extent");
    assert!(found * 100 >= number(&summary, "bytes_read") * 95, "{summary:#}");
    assert_restored(&sandbox);
}

#[test]
fn touched_files_add_almost_nothing() {
    let sandbox = repository("sha1");
    push(&sandbox, "main", 0, 200);
    sandbox.backup(["source"]);
    push(&sandbox, "main", 200, 260);
    git(&sandbox, &["repack", "-adq"]);
    sandbox.write("source/dump.sql", dump(5000, |_| 0));
    sandbox.backup(["source"]);
    sandbox.write("source/dump.sql", dump(5000, |row| u64::from(row % 1000 < 30)));
    sandbox.backup(["source"]);
    // git does this to packs when it gets an object that they contain.
    for path in packs(&sandbox).iter().chain([&sandbox.path("source/dump.sql")]) {
        sandbox.tool("touch").args([path]).run().ok();
    }
    let summary = sandbox.backup(["source"]);
    assert!(number(&summary, "files_changed") >= 3, "{summary}");
    assert!(number(&summary, "data_added") < 20_000, "{summary}");
    assert_restored(&sandbox);
}

/// Returns a dump of this many rows; `version` returns the current version of a row.
fn dump(rows: u64, version: impl Fn(u64) -> u64) -> String {
    let mut text =
        "--\n-- PostgreSQL database dump\n--\n\nCOPY public.notes (id, note) FROM stdin;\n"
            .to_owned();
    for row in 0..rows {
        let mut dice = Dice::new(row * 31 + version(row) * 1_000_000_007);
        let words: String = (0..8).map(|_| format!("{:x} ", dice.below(1 << 40))).collect();
        text += &format!("{row}\t{words}\t2026-01-01\n");
    }
    text + "\\.\n\n-- dump complete\n"
}

#[test]
fn dumps_add_only_their_changed_rows() {
    let sandbox = Sandbox::with_store();
    let rows = 40_000;
    type Version = fn(u64) -> u64;
    let versions: [(&str, Version, u64); 4] = [
        ("the first", |_| 0, rows),
        ("clusters", |row| u64::from(row % 8000 < 400), rows / 20),
        ("evenly", |row| u64::from(row % 8000 < 400) + u64::from(row % 77 == 5), rows / 77),
        ("nothing", |row| u64::from(row % 8000 < 400) + u64::from(row % 77 == 5), 0),
    ];
    for (name, version, changed) in versions {
        let text = dump(rows, version);
        let share = text.len() as u64 * changed / rows;
        let most = share * 3 / 2 + text.len() as u64 / 100;
        let is_first = changed == rows;
        sandbox.write("source/dump.sql", &text);
        let summary = sandbox.backup(["source"]);
        let added = number(&summary, "data_added");
        assert!(is_first || added <= most, "{name} as a file: {added} of {share}: {summary}");
        assert_restored(&sandbox);
        let stream = ["--stdin-name", "db/main.sql"];
        let run = sandbox.forgekeep(["backup", "--json"]).args(stream).input(text.as_bytes());
        let summary = run.run().ok().json().pop().expect("a summary");
        let added = number(&summary, "data_added");
        assert!(is_first || added <= most, "{name} as a stream: {added} of {share}: {summary}");
        let dump = ["dump", "latest:db/main.sql", "--path", "db/main.sql"];
        let dumped = sandbox.run(dump).ok();
        assert!(dumped.stdout == text, "{name}");
    }
    sandbox.assert_clean();
}

#[test]
fn files_with_a_damaged_reference_are_stored_again() {
    let sandbox = repository("sha1");
    push(&sandbox, "main", 0, 300);
    sandbox.write("source/dump.sql", dump(20_000, |_| 0));
    sandbox.backup(["source"]);
    // The middle of every data segment: some chunk of a pack and of the dump.
    let mut hurt = 0;
    for entry in walk(&sandbox.path("store/segments")) {
        let mut bytes = std::fs::read(&entry).expect("reads");
        if bytes.len() > 100_000 {
            for part in 1..8 {
                let at = bytes.len() * part / 8;
                bytes[at] ^= 0x10;
            }
            std::fs::write(&entry, bytes).expect("writes");
            hurt += 1;
        }
    }
    assert!(hurt > 0);
    push(&sandbox, "main", 300, 330);
    git(&sandbox, &["repack", "-adq"]);
    sandbox.write("source/dump.sql", dump(20_000, |row| u64::from(row % 100 == 0)));
    let run = sandbox.forgekeep(["backup", "source"]).run().ok();
    assert!(run.stderr.contains("run `forgekeep check`"), "{}", run.stderr);
    assert_restored(&sandbox);
    sandbox.run(["check", "--read-data"]).ends_with(1);
}

/// A stream cannot be read again when damage is found after a part of it was compared.
#[test]
fn a_stream_survives_damage_in_its_reference() {
    let sandbox = Sandbox::with_store();
    let back_up = |text: &str| {
        let backup = ["backup", "--stdin-name", "dump.sql"];
        let run = sandbox.forgekeep(backup).input(text).run().ok();
        let dumped = sandbox.run(["dump", "latest:dump.sql"]).ok();
        assert!(dumped.stdout == text);
        run
    };
    back_up(&dump(20_000, |_| 0));
    let segments = walk(&sandbox.path("store/segments"));
    let len = |path: &PathBuf| std::fs::metadata(path).expect("is there").len();
    let largest = segments.into_iter().max_by_key(len).expect("a segment");
    let mut bytes = std::fs::read(&largest).expect("reads");
    let at = bytes.len() * 3 / 4;
    bytes[at] ^= 0x10;
    std::fs::write(&largest, bytes).expect("writes");
    let changed = dump(20_000, |row| u64::from(row % 100 == 0));
    let run = back_up(&changed);
    assert!(run.stderr.contains("run `forgekeep check`"), "{}", run.stderr);
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).expect("lists") {
        let path = entry.expect("lists").path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn malformed_packs_are_stored_plainly_and_counted() {
    let sandbox = repository("sha1");
    push(&sandbox, "main", 0, 200);
    git(&sandbox, &["repack", "-adq"]);
    sandbox.backup(["source"]);
    push(&sandbox, "main", 200, 240);
    git(&sandbox, &["repack", "-adq"]);
    let real = packs(&sandbox);
    let edit = |end: &str, name: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        let path = real.iter().find(|path| path.to_string_lossy().ends_with(end));
        let mut bytes = std::fs::read(path.expect("a pack")).expect("reads");
        edit(&mut bytes);
        std::fs::write(sandbox.path("source/forge.git/objects/pack").join(name), bytes)
            .expect("writes");
    };
    let keep = |_: &mut Vec<u8>| {};
    edit("pack", "pack-a.pack", &|bytes| bytes[7] = 4);
    edit("idx", "pack-a.idx", &keep);
    edit("pack", "pack-b.pack", &|bytes| bytes.truncate(bytes.len() - 1000));
    edit("idx", "pack-b.idx", &|bytes| bytes.extend(b"more"));
    let run = sandbox.run(["backup", "--verbose", "--dry-run", "source"]).ok();
    for words in
        ["has an unknown version", "is longer than its header states", "stored without comparing"]
    {
        assert!(run.all_output().contains(words), "{words}: {}", run.all_output());
    }
    let reasons = sandbox.backup(["source"])["files_stored_plainly"].clone();
    assert_eq!((&reasons["version"], &reasons["trailing"]), (&1.into(), &2.into()), "{reasons}");
    assert_restored(&sandbox);
}

#[test]
fn linked_and_false_packs_are_restored_unchanged() {
    let sandbox = repository("sha1");
    push(&sandbox, "main", 0, 100);
    git(&sandbox, &["repack", "-adq"]);
    let dir = sandbox.path("source/forge.git/objects/pack");
    std::fs::create_dir(sandbox.path("source/elsewhere")).expect("a directory");
    for path in packs(&sandbox) {
        let name = path.file_name().expect("a name");
        std::fs::rename(&path, sandbox.path("source/elsewhere").join(name)).expect("moves");
        let target = Path::new("../../../elsewhere").join(name);
        std::os::unix::fs::symlink(target, &path).expect("links");
    }
    for name in ["pack-a.pack", "pack-b.idx"] {
        std::fs::create_dir(dir.join(name)).expect("a directory");
    }
    for name in ["pack-a.idx", "pack-b.pack"] {
        std::fs::write(dir.join(name), vec![7; 10_000]).expect("writes");
    }
    for _ in 0..2 {
        sandbox.backup(["source"]);
        assert_restored(&sandbox);
    }
    sandbox.assert_clean();
}

#[test]
fn a_repository_without_its_caches_is_whole() {
    let sandbox = repository("sha1");
    push(&sandbox, "main", 0, 200);
    git(&sandbox, &["gc", "--quiet"]);
    git(&sandbox, &["repack", "-adq", "--write-bitmap-index", "--write-midx"]);
    git(&sandbox, &["commit-graph", "write", "--reachable"]);
    sandbox.backup(["source", "--git-caches", "skip"]);
    let source = sandbox.text("source");
    sandbox.restore(&format!("latest:{source}"), "without");
    let caches = ["commit-graph", "multi-pack-index", ".bitmap", ".rev"];
    let is_cache = |path: &PathBuf| caches.iter().any(|end| path.to_string_lossy().ends_with(end));
    assert!(walk(&sandbox.path("source")).iter().any(is_cache));
    assert!(!walk(&sandbox.path("without")).iter().any(is_cache));
    sandbox.tool("git").args(["--git-dir", "without/forge.git", "fsck", "--full"]).run().ok();
    sandbox.tool("git").args(["clone", "--quiet", "without/forge.git", "clone"]).run().ok();
    let head = |dir: &str| {
        sandbox.tool("git").args(["--git-dir", dir, "rev-parse", "main"]).run().ok().stdout
    };
    assert_eq!(head("clone/.git"), head("source/forge.git"));
    // By default they are kept.
    sandbox.backup(["source"]);
    assert_restored(&sandbox);
}

#[test]
fn thirty_nights_do_not_fragment_a_store() {
    let sandbox = repository("sha1");
    push(&sandbox, "main", 0, 200);
    git(&sandbox, &["repack", "-adq"]);
    let rows = 12_000;
    let version = |night: u64| {
        move |row: u64| {
            (0..=night).rev().find(|n| (row * 7 + n * 13).is_multiple_of(97)).unwrap_or(0)
        }
    };
    let mut added = Vec::new();
    for night in 0..=30 {
        if night > 0 {
            push(&sandbox, "main", 190 + 10 * night, 200 + 10 * night);
        }
        if night % 5 == 4 {
            git(&sandbox, &["gc", "--quiet"]);
        }
        sandbox.write("source/dump.sql", dump(rows, version(night)));
        let summary = sandbox.backup(["source", "--git-caches", "skip"]);
        added.push(number(&summary, "data_added_packed"));
    }
    let source = sandbox.text("source");
    sandbox.restore(&format!("latest:{source}"), "restored");
    assert_eq!(sandbox.read("restored/dump.sql"), sandbox.read("source/dump.sql"));
    for pack in packs(&sandbox) {
        let name = pack.strip_prefix(sandbox.path("source")).expect("in the source");
        assert!(sandbox.read(&pack) == sandbox.read(Path::new("restored").join(name)), "{name:?}");
    }
    sandbox.assert_clean();
    let Fragmentation { files, chunks, dump_pieces, dump_bytes } = fragmentation(&sandbox);
    assert!(chunks * 10 <= files * 13, "chunks of {chunks} bytes hold files of {files}");
    assert!(dump_pieces <= dump_bytes / 400, "{dump_pieces} of {dump_bytes}");
    // Nights cost the new bytes, and later those copied forward so that old chunks can be dropped.
    let sum = |nights: &[u64]| nights.iter().sum::<u64>();
    let (early, late) = (sum(&added[6..16]), sum(&added[21..31]));
    assert!(late < 3 * early, "{early}, later {late}: {added:?}");
    assert!(late / 10 < added[0] / 7, "{added:?}");
}

/// Fragmentation of the last snapshot.
struct Fragmentation {
    /// Bytes of files in chunks, and of all chunks that they reference.
    files: u64,
    chunks: u64,
    /// Number of pieces of the dump.
    dump_pieces: u64,
    dump_bytes: u64,
}

fn fragmentation(sandbox: &Sandbox) -> Fragmentation {
    let store = stores::open(&sandbox.path("store"), Purpose::Read);
    let (snapshots, _) = store.snapshots().expect("reads");
    let (_, last) = snapshots.last().expect("thirty of them");
    let mut seen = HashSet::new();
    let mut fragmentation = Fragmentation { files: 0, chunks: 0, dump_pieces: 0, dump_bytes: 0 };
    for entry in TreeReader::new(&last.root.chunk(), &store) {
        let entry = entry.expect("reads");
        let Content::Recipe(recipe) = &entry.content else { continue };
        fragmentation.files += entry.size;
        for extent in Extents::new(recipe, &store) {
            let Extent::Slice { chunk, .. } = extent.expect("reads") else { continue };
            if entry.path.ends_with(b"dump.sql") {
                fragmentation.dump_pieces += 1;
                fragmentation.dump_bytes = entry.size;
            }
            if seen.insert(chunk) {
                fragmentation.chunks +=
                    u64::from(store.locate(&chunk).expect("is there").plain_len);
            }
        }
    }
    fragmentation
}
