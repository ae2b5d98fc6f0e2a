//! Drills: restores into scratch space that prove a snapshot.

use crate::check_records::records;
use crate::keys;
use crate::support::gitlab::database::{CI, MAIN};
use crate::support::gitlab::{self, Builder, Gitlab};
use crate::support::instance::{backup, configure, configured, lines, summary};
use crate::support::sandbox::{Dice, FORGEKEEP, Outcome, Run, Running, Sandbox, need_root};
use crate::support::server::wait_until;
use std::fs::Permissions;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An instance with a snapshot, and a directory for scratch data.
struct Bench {
    gitlab: Gitlab,
    sandbox: Sandbox,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        need_root();
        let gitlab = Builder::new().projects(8).build();
        let sandbox = Sandbox::new();
        configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
        Bench { gitlab, sandbox, scratch: gitlab::short_dir() }
    }

    fn drill(&self, arguments: &[&str]) -> Run {
        let scratch = self.scratch.path().to_str().expect("text");
        configured(&self.sandbox, ["drill", "forge", "--scratch", scratch]).args(arguments)
    }

    /// Runs a drill over all projects, which must leave no scratch data.
    #[track_caller]
    fn whole(&self, code: i32) -> Outcome {
        let outcome = self.drill(&["--whole", "--json"]).run().ends_with(code);
        self.assert_no_scratch();
        outcome
    }

    #[track_caller]
    fn assert_no_scratch(&self) {
        assert_eq!(count(self.scratch.path()), 0, "scratch data is left");
    }

    fn repository(&self, project: u64) -> PathBuf {
        let mut all = self.gitlab.repositories.iter();
        all.find(|known| known.project == Some(project)).expect("is known").dir.clone()
    }
}

fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).expect("lists").count()
}

/// Changes a byte in the middle of a file.
fn spoil(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).expect("opens");
    let at = file.metadata().expect("its length").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 0xff], at).expect("writes");
}

/// Returns the only file below a directory with this extension.
fn file_of(dir: &Path, extension: &str) -> PathBuf {
    let mut all = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("is").path());
    all.find(|path| path.extension().is_some_and(|end| end == extension)).expect("is there")
}

#[test]
fn a_healthy_snapshot_passes_and_leaves_nothing_behind() {
    let bench = Bench::new();
    backup(&bench.sandbox).run().ok();
    let all = bench.whole(0).json();
    let summary = summary(&all);
    assert_eq!(summary["verdict"], "ok", "{summary}");
    assert_eq!(summary["projects"], 8);
    assert_eq!(summary["total_projects"], 8);
    // Wikis, designs and pools are examined as well.
    assert!(summary["repositories_ok"].as_u64() > Some(8), "{summary}");
    assert!(summary["references"].as_u64() > summary["repositories_ok"].as_u64(), "{summary}");
    assert!(summary["bytes_restored"].as_u64() > Some(0), "{summary}");
    assert!(lines(&all, "repository").is_empty(), "{all:?}");
    assert_eq!(summary["databases"], 2);
    let checks = lines(&all, "check");
    let names: Vec<_> = checks.iter().map(|check| check["name"].as_str().expect("text")).collect();
    let [main, ci] = [MAIN, CI].map(|name| format!("database-{name}"));
    let wanted = ["repositories", "other-files", &main, &ci, "secrets", "files"];
    assert_eq!(names, wanted, "{checks:?}");
    let words = [
        "snippets and group wikis: ",
        " files outside of repositories without fault, ",
        " rows loaded",
        " rows loaded",
        "",
        "all are present",
    ];
    for (check, words) in checks.iter().zip(words) {
        assert_eq!(check["verdict"], "ok", "{check}");
        assert!(check["text"].as_str().expect("text").contains(words), "{check}");
    }
    assert_eq!(processes(&bench), 0);
    assert_eq!((&summary["result"], &summary["recorded"]), (&"good".into(), &true.into()));
    let record = &records(&bench.sandbox)[0];
    assert_eq!((&record["kind"], &record["level"]), (&"drill".into(), &"whole".into()));
    assert_eq!((&record["instance"], &record["result"]), (&"forge".into(), &"good".into()));
    assert_eq!(record["snapshots"], serde_json::json!([summary["snapshot"]]));
    assert_eq!(record["rpo_seconds"], summary["rpo_seconds"]);
    assert_eq!(record["parts"].as_array().expect("parts").len(), lines(&all, "check").len());
    let listed = configured(&bench.sandbox, ["snapshots", "--json"]).run().ok().json();
    assert_eq!(listed[0]["checked"]["standing"], "checked", "{listed:?}");

    let scratch = bench.scratch.path().to_str().expect("text");
    let named = ["drill", "forge@latest", "--scratch", scratch, "--sample", "1"];
    configured(&bench.sandbox, named).run().ok();
    let outcome = bench.drill(&["latest", "--sample", "2"]).run().ok();
    bench.assert_no_scratch();
    let text = outcome.all_output();
    assert!(text.contains("repositories: 2 of 8 projects, 1 of "), "{text}");
    assert!(text.contains("forge: drill of snapshot ") && text.contains(" passed\n"), "{text}");

    // Without time, nothing is proven.
    let outcome = bench.drill(&["--time-limit", "1ns", "--json"]).run().ends_with(3);
    assert_eq!(verdict(&outcome), "unknown");
    assert_eq!(records(&bench.sandbox)[0]["result"], "incomplete");
    bench.drill(&["--time-limit", "soon"]).run().ends_with(2);
}

fn verdict(outcome: &Outcome) -> String {
    summary(&outcome.json())["verdict"].as_str().expect("a word").to_owned()
}

#[test]
fn a_broken_repository_in_a_snapshot_is_named() {
    let bench = Bench::new();
    let (broken, renamed) = (bench.repository(1), bench.repository(2));
    // A backup looks only at the ends of packs.
    spoil(&file_of(&broken.join("objects/pack"), "pack"));
    // git ignores references with such names.
    let packed = renamed.join("packed-refs");
    let mut text = std::fs::read_to_string(&packed).expect("reads");
    let id = text.lines().last().expect("a line").trim_start_matches('^')[..40].to_owned();
    text += &format!("{id} refs/heads/with..dots\n");
    std::fs::write(&packed, text).expect("writes");
    // A disk that the user of the scratch data could read.
    let device = bench.repository(3);
    Run::limited("mknod").args([device.join("disk")]).args(["b", "7", "99"]).run().ok();
    backup(&bench.sandbox).run().ok();
    let outcome = bench.whole(3);
    let all = outcome.json();
    assert_eq!(summary(&all)["verdict"], "failed", "{all:?}");
    let faults = lines(&all, "repository");
    assert_eq!(faults.len(), 3, "{faults:?}");
    for (dir, words) in
        [(&broken, "git fsck: "), (&renamed, "with..dots"), (&device, "contains a device")]
    {
        let fault = faults.iter().find(|fault| fault["path"] == dir.to_str().expect("text"));
        let fault = fault.unwrap_or_else(|| panic!("{}: {faults:?}", dir.display()));
        assert_eq!(fault["verdict"], "failed");
        assert!(fault["reason"].as_str().expect("text").contains(words), "{fault}");
    }
    let text = bench.drill(&["--whole"]).run().ends_with(3).all_output();
    assert!(!text.contains("NOT COMPLETE"), "{text}");
    assert!(text.contains("faulty: ") && text.contains(" FAILED\n"), "{text}");
    let record = &records(&bench.sandbox)[0];
    assert_eq!((&record["result"], &record["faulty"]), (&"faulty".into(), &record["snapshots"]));
    let reason = record["message"].as_str().expect("a reason");
    assert!(reason.starts_with("repositories: 8 of 8 projects, "), "{record}");
    let shown = configured(&bench.sandbox, ["snapshots"]).run().ok().stdout;
    assert!(shown.contains("  FAULTY  "), "{shown}");
    let shown = configured(&bench.sandbox, ["inspect", "--instance", "forge", "latest"]).run();
    assert!(shown.ok().stdout.contains(": whole, faulty\n"));
    // All bytes are as they were stored, but only a drill looks into them.
    configured(&bench.sandbox, ["check", "--read-data"]).run().ok();
    let shown = configured(&bench.sandbox, ["snapshots"]).run().ok().stdout;
    assert!(shown.contains("  FAULTY  "), "{shown}");
}

/// Returns the verdict and the words of the check of this name.
#[track_caller]
fn check(outcome: &Outcome, name: &str) -> (String, String) {
    let all = outcome.json();
    let found = lines(&all, "check").into_iter().find(|check| check["name"] == name);
    let found = found.unwrap_or_else(|| panic!("{name}: {all:?}"));
    (found["verdict"].as_str().expect("a word").to_owned(), found.to_string())
}

#[test]
fn keys_and_sign_on_of_the_snapshot_fit_its_databases() {
    need_root();
    let gitlab = Builder::new().mattermost().build();
    keys::encrypt(&gitlab);
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let bench = Bench { gitlab, sandbox, scratch: gitlab::short_dir() };
    backup(&bench.sandbox).run().ok();
    let outcome = bench.whole(0);
    let (verdict, text) = check(&outcome, "secrets");
    assert!(verdict == "ok" && text.contains("9 encrypted values tried"), "{text}");
    let (verdict, text) = check(&outcome, "single-sign-on");
    assert!(verdict == "ok" && text.contains("GitLab has the id and the secret"), "{text}");

    // The instance itself has lost its sign-on; its snapshot is as good as it is.
    let uid = "update oauth_applications set uid = 'another'";
    bench.gitlab.postgres.sql(MAIN, uid);
    backup(&bench.sandbox).run().ok();
    let outcome = bench.whole(0);
    assert_eq!(check(&outcome, "single-sign-on").0, "warning");
    assert_eq!(summary(&outcome.json())["result"], "good");

    keys::change_secrets(&bench.gitlab, |rails| rails["db_key_base"] = "another".into());
    backup(&bench.sandbox).run().ends_with(3);
    let outcome = bench.whole(3);
    let (verdict, text) = check(&outcome, "secrets");
    assert!(verdict == "failed" && text.contains("do not decrypt the database"), "{text}");
    assert!(records(&bench.sandbox)[0]["message"].to_string().contains("secrets: the keys of"));
}

#[test]
fn files_that_rows_of_the_sample_name_must_be_in_the_snapshot() {
    need_root();
    let gitlab = Builder::new().build();
    let uploads = gitlab.path("var/opt/gitlab/gitlab-rails/uploads/@hashed");
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "exclude = ['**/uploads/@hashed/**']");
    let bench = Bench { gitlab, sandbox, scratch: gitlab::short_dir() };
    backup(&bench.sandbox).run().ends_with(3);
    let (verdict, text) = check(&bench.whole(3), "files");
    assert!(verdict == "failed" && text.contains("uploads row"), "{text}");

    // A single file that the instance itself has lost is a warning.
    configure(&bench.sandbox, &bench.gitlab, "");
    let found = bench.sandbox.tool("find").args([&uploads]).args(["-type", "f"]).run().ok();
    std::fs::remove_file(found.stdout.lines().next().expect("an upload")).expect("removes");
    backup(&bench.sandbox).run().ok();
    let outcome = bench.whole(0);
    let (verdict, text) = check(&outcome, "files");
    assert!(verdict == "warning" && text.contains("uploads row"), "{text}");

    // Only the rows of sampled projects are compared.
    let rows = |more: &[&str]| {
        let outcome = bench.drill(&["--json"]).args(more).run().ok();
        let (_, text) = check(&outcome, "files");
        let words: Vec<&str> = text.split([' ', '"']).collect();
        let at = words.iter().position(|word| *word == "rows").unwrap_or_else(|| panic!("{text}"));
        words[at - 1].parse::<u64>().unwrap_or_else(|_| panic!("{text}"))
    };
    let all = rows(&["--whole"]);
    let one = rows(&["--sample", "1"]);
    assert!(one < all, "{one} of {all}");
}

/// Returns the segments of the store.
fn segments(sandbox: &Sandbox) -> Vec<PathBuf> {
    let files = |dir: &Path| {
        let all = std::fs::read_dir(dir).expect("lists");
        all.map(|file| file.expect("is there").path()).collect::<Vec<_>>()
    };
    files(&sandbox.path("store/segments")).iter().flat_map(|shard| files(shard)).collect()
}

/// Changes bytes everywhere in a file.
fn spoil_all(path: &Path) {
    let mut bytes = std::fs::read(path).expect("reads");
    bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 1);
    std::fs::write(path, bytes).expect("writes");
}

#[test]
fn damage_of_the_store_is_found() {
    let bench = Bench::new();
    backup(&bench.sandbox).run().ok();
    // The largest segment has the data; every chunk of it gets a fault.
    let length = |path: &PathBuf| path.metadata().expect("its length").len();
    spoil_all(&segments(&bench.sandbox).into_iter().max_by_key(length).expect("a segment"));
    let all = bench.whole(3).json();
    let faults = lines(&all, "repository");
    assert!(!faults.is_empty(), "{all:?}");
    let is_named = |fault: &&serde_json::Value| {
        fault["reason"].as_str().is_some_and(|reason| reason.contains("could not be restored"))
    };
    assert!(faults.iter().any(is_named), "{faults:?}");
}

/// Starts a drill and waits until it has made something in its scratch space, or has ended.
fn start_until(bench: &Bench, name: &str) -> Running {
    let mut running = bench.drill(&["--whole"]).start();
    let is_made = || {
        let dirs = std::fs::read_dir(bench.scratch.path()).expect("lists").flatten();
        dirs.map(|dir| dir.path().join("work").join(name)).any(|path| path.exists())
    };
    while !is_made() && !running.has_ended() {
        std::thread::sleep(Duration::from_millis(1));
    }
    running
}

/// Returns the number of processes that use this scratch space.
fn processes(bench: &Bench) -> usize {
    let place = bench.scratch.path().to_str().expect("text").as_bytes().to_vec();
    let all = std::fs::read_dir("/proc").expect("lists").flatten();
    let lines = all.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| line.windows(place.len()).any(|part| part == place)).count()
}

#[test]
fn an_interrupted_drill_leaves_neither_data_nor_processes() {
    let bench = Bench::new();
    backup(&bench.sandbox).run().ok();
    for name in ["", "databases", "cluster/postmaster.pid"] {
        let running = start_until(&bench, name);
        running.interrupt();
        let outcome = running.wait();
        assert_eq!(outcome.code(), Some(130), "{name}: {}", outcome.all_output());
        assert!(records(&bench.sandbox).is_empty());
        bench.assert_no_scratch();
        assert_eq!(processes(&bench), 0, "{name}");
    }
    // A killed one leaves data for the next one to remove.
    let mut running = start_until(&bench, "cluster/postmaster.pid");
    running.kill();
    running.wait();
    assert_eq!(count(bench.scratch.path()), 1);
    wait_until("its server ends", || processes(&bench) == 0);
    bench.drill(&["--sample", "1"]).run().ok();
    bench.assert_no_scratch();
}

#[test]
fn a_drill_warns_of_an_incomplete_snapshot() {
    let bench = Bench::new();
    backup(&bench.sandbox).run().ok();
    std::fs::remove_dir_all(bench.repository(1)).expect("removes");
    backup(&bench.sandbox).run().ends_with(3);
    let text = bench.drill(&[]).run().ok().all_output();
    assert!(text.contains(" is NOT COMPLETE; the drill examines"), "{text}");
    assert!(text.contains("1 project without a repository in the snapshot"), "{text}");
}

#[test]
fn a_scratch_directory_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    backup(&bench.sandbox).run().ok();
    let scratch = bench.scratch.path();
    std::fs::set_permissions(scratch, Permissions::from_mode(0o700)).expect("its mode");
    bench.drill(&[]).run().fails(1, &["user nobody may not enter"]);
    bench.assert_no_scratch();
    std::fs::set_permissions(scratch, Permissions::from_mode(0o711)).expect("its mode");
    let mount = |arguments: &[&str]| {
        Run::limited(arguments[0]).args(&arguments[1..]).args([scratch]).run().ok();
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=64k,mode=711", "none"]);
    let outcome = bench.drill(&["--whole"]).run();
    mount(&["umount"]);
    outcome.fails(1, &["the sample needs", "of scratch space"]);
    let record = &records(&bench.sandbox)[0];
    assert_eq!(record["result"], "failed");
    assert!(record["message"].as_str().expect("a reason").contains("of scratch space"), "{record}");
}

#[test]
fn files_of_an_instance_without_projects_are_compared() {
    let sandbox = Sandbox::new();
    for number in 0..30 {
        sandbox.write(&format!("data/{number}"), format!("{number}").repeat(5000));
    }
    sandbox.write(
        "forgekeep.toml",
        format!(
            "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'plain'\n\
             parts.data.path = '{}'\n",
            sandbox.text("state"),
            sandbox.text("store"),
            sandbox.text("data")
        ),
    );
    backup(&sandbox).run().ok();
    let scratch = gitlab::short_dir();
    let drill = |more: &[&str]| {
        let place = scratch.path().to_str().expect("text");
        configured(&sandbox, ["drill", "forge", "--json", "--scratch", place]).args(more).run()
    };
    for (arguments, words) in [(&[][..], "20 of 30 files "), (&["--whole"], "30 of 30 files ")] {
        let outcome = drill(arguments).ok();
        assert_eq!(verdict(&outcome), "ok");
        let all = outcome.json();
        assert_eq!(summary(&all)["total_files"], 30);
        assert_eq!(summary(&all)["files_failed"], 0);
        let text = lines(&all, "check")[0]["text"].as_str().expect("text");
        assert!(text.starts_with(words), "{text}");
        assert_eq!(count(scratch.path()), 0);
    }
    for segment in segments(&sandbox) {
        spoil_all(&segment);
    }
    let outcome = drill(&["--whole"]);
    assert_ne!(outcome.code(), Some(0), "{}", outcome.all_output());
    assert_eq!(count(scratch.path()), 0);
    let record = &records(&sandbox)[0];
    assert_eq!(record["result"], "faulty", "{record}");
    assert_eq!(record["faulty"], record["snapshots"]);
}

#[test]
fn a_fault_of_a_file_outside_of_repositories_is_found_and_stays() {
    let bench = Bench::new();
    let file = bench.gitlab.root().join("var/opt/gitlab/gitlab-rails/uploads/large");
    let bytes = Dice::new(3).bytes(300_000);
    std::fs::write(&file, &bytes).expect("writes");
    backup(&bench.sandbox).run().ok();
    let standing = || {
        let listed = configured(&bench.sandbox, ["snapshots", "--json"]).run().ok().json();
        listed[0]["checked"]["standing"].clone()
    };
    bench.whole(0);
    assert_eq!(standing(), "checked");
    let place =
        |bytes_of: &[u8]| bytes_of.windows(32).position(|found| *found == bytes[1000..1032]);
    let damaged = segments(&bench.sandbox).into_iter().any(|segment| {
        let mut stored = std::fs::read(&segment).expect("reads");
        let Some(at) = place(&stored) else { return false };
        stored[at] ^= 1;
        std::fs::write(&segment, stored).expect("writes");
        true
    });
    assert!(damaged);
    let all = bench.whole(3).json();
    let checks = lines(&all, "check");
    let other = checks.iter().find(|check| check["name"] == "other-files").expect("examined");
    assert_eq!(other["verdict"], "failed");
    assert!(other["examples"].to_string().contains("uploads/large"), "{other}");
    assert_eq!(standing(), "faulty");
    // A sample without this file proves nothing about it.
    let mut samples = (0..50).map(|_| bench.drill(&["--sample", "1"]).run());
    samples.find(|outcome| outcome.code() == Some(0)).expect("passes once");
    assert_eq!(standing(), "faulty");
}

#[test]
fn a_drill_takes_snapshots_of_its_own_machine_if_several_have_some() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.write("data/a", "a");
    let text = sandbox.text("");
    let config = format!(
        "state = '{text}state'\n[stores.main]\npath = '{text}store'\n[instances.forge]\n\
         kind = 'plain'\nparts.data.path = '{text}data'\n"
    );
    sandbox.write("forgekeep.toml", config);
    let on = |host: &str, arguments: &[&str]| {
        let config = sandbox.text("forgekeep.toml");
        let script = "hostname $0; exec \"$@\"";
        let words = ["--uts", "sh", "-c", script, host, FORGEKEEP, "--config", &config];
        sandbox.tool("unshare").args(words).args(arguments).run()
    };
    for host in ["old", "new"] {
        on(host, &["backup", "--init", "--instance", "forge"]).ok();
    }
    let scratch = gitlab::short_dir();
    let drill = ["drill", "forge", "--scratch", scratch.path().to_str().expect("text")];
    let said = on("new", &drill).ok();
    assert!(said.stderr.contains("this is one of new"), "{}", said.all_output());
    on("third", &drill).ends_with(2);
    on("third", &[&drill[..], &["--host", "old"]].concat()).ok();
    on("new", &["drill", "forge", "latest", drill[2], drill[3]]).ends_with(2);
}
