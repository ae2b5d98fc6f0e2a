//! Every command, end to end.

use crate::support::sandbox::{Dice, FORGEKEEP, Sandbox, need_root};
use std::os::unix::fs::PermissionsExt;

/// Creates two snapshots of a small tree.
fn small() -> Sandbox {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/readme", "hello\n");
    sandbox.write("source/dir/inner", "inner\n");
    sandbox.write("source/dir/large", Dice::new(1).bytes(100_000));
    sandbox.write("source/dir/deep/er", "deep\n");
    std::os::unix::fs::symlink("readme", sandbox.path("source/link")).expect("links");
    sandbox.backup(["source", "--tag", "first"]);
    sandbox.write("source/readme", "hello again\n");
    sandbox.write("source/new", "new\n");
    sandbox.remove("source/dir/inner");
    sandbox.backup(["source", "--tag", "second"]);
    sandbox
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn failures_have_exit_codes_and_helpful_errors() {
    let sandbox = Sandbox::new();
    sandbox.run(["snapshots"]).fails(10, &["no store at store", "the path is wrong"]);
    let none = sandbox.forgekeep(["snapshots"]).without_env("FORGEKEEP_STORE").run();
    none.fails(1, &["no store given", "--store", "FORGEKEEP_STORE"]);
    sandbox.write("full/of", "something else");
    sandbox.run(["init", "--store", "full"]).fails(1, &["full is not empty"]);
    sandbox.run(["init"]).ok();
    sandbox.run(["init"]).fails(1, &["a store already exists at store"]);
    for wrong in [&["backup"][..], &["frobnicate"], &["snapshots", "--wrong"], &["restore", "x"]] {
        let outcome = sandbox.run(wrong).ends_with(2);
        assert!(outcome.stderr.contains("Usage"), "{}", outcome.all_output());
    }
    sandbox.write("source/a", "a");
    sandbox.run(["backup", "nowhere"]).fails(1, &["nowhere", "none of the paths"]);
    let partial = sandbox.run(["backup", "source", "nowhere"]).ends_with(3);
    assert!(partial.stderr.contains("nowhere") && partial.stderr.contains("1 path"));
    for (place, words) in [
        ("latest~1", "no snapshot latest~1"),
        ("ffff", "no snapshot ffff"),
        ("latest:/nowhere", "has no /nowhere"),
    ] {
        sandbox.run(["ls", place]).fails(1, &[words]);
        sandbox.run(["restore", place, "-t", "restored"]).fails(1, &[words]);
        let file = if place.contains(':') { place.into() } else { format!("{place}:/x") };
        sandbox.run(["dump", &file]).fails(1, &[words]);
        assert!(!sandbox.has("restored"));
    }
    sandbox.run(["ls", "latest:/a/../b"]).ends_with(1);
    sandbox.run(["find", "["]).fails(2, &["bad pattern"]);
    sandbox.run(["check", "--read-data-subset", "8/7"]).ends_with(2);
    sandbox.run(["--version"]).ok();
    sandbox.run(["--help"]).ok();
    let json = sandbox.run(["snapshots", "--store", "elsewhere", "--json"]).ends_with(10).json();
    assert_eq!((&json[0]["message_type"], &json[0]["code"]), (&"exit_error".into(), &10.into()));
}

#[test]
fn a_backup_prints_a_summary_and_a_repeat_adds_nothing() {
    let sandbox = small();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let summary = sandbox.backup(["source"]);
    assert_eq!(summary["message_type"], "summary");
    for field in [
        "files_new",
        "files_changed",
        "files_unmodified",
        "total_files_processed",
        "total_bytes_processed",
        "data_added",
        "data_added_packed",
        "total_duration",
    ] {
        assert!(summary[field].is_number(), "{field} in {summary}");
    }
    assert_eq!(summary["snapshot_id"].as_str().map(str::len), Some(64));
    let again = sandbox.backup(["source"]);
    assert_eq!((&again["data_added"], &again["data_added_packed"]), (&0.into(), &0.into()));
    assert_eq!((&again["files_new"], &again["files_changed"]), (&0.into(), &0.into()));
    assert_eq!(again["files_unmodified"], 4);
    let snapshots = sandbox.json(["snapshots"]);
    assert_eq!(snapshots[2]["tree"], snapshots[3]["tree"]);
    assert_eq!(snapshots[3]["parent"], snapshots[2]["id"]);
    assert_eq!(sandbox.json(["diff", "latest~1", "latest"]).len(), 1);

    let quiet = sandbox.run(["backup", "source", "--quiet"]).ok();
    assert_eq!((lines(&quiet.stdout).len(), quiet.stderr.as_str()), (1, ""));
    let dry = sandbox.run(["backup", "source", "--dry-run"]).ok();
    assert!(dry.stdout.contains("nothing was stored"), "{}", dry.all_output());
    assert_eq!(sandbox.snapshot_ids().len(), 5);
    let there = sandbox.forgekeep(["backup", "source", "--init", "--store", "there"]);
    there.without_env("FORGEKEEP_STORE").run().ok();
    assert!(sandbox.has("there/store.json"));
}

#[test]
fn snapshots_are_selected_by_age_and_by_id_prefix() {
    let sandbox = small();
    let ids = sandbox.snapshot_ids();
    let listed = |snapshot: &str| sandbox.run(["ls", snapshot]).ok().stdout;
    assert_eq!(listed("latest"), listed(&ids[1]));
    assert_eq!(listed("latest~1"), listed(&ids[0]));
    assert_eq!(listed(&ids[0][..12]), listed(&ids[0]));
    sandbox.run(["ls", "latest~2"]).fails(1, &["no snapshot latest~2"]);
    for bad in ["latest~", "latest~x", "latestx", "", "zz"] {
        sandbox.run(["ls", bad]).fails(2, &["does not name a snapshot"]);
    }
    // Of seventeen ids, two begin with the same digit.
    while sandbox.snapshot_ids().len() < 17 {
        sandbox.backup(["source"]);
    }
    let ids = sandbox.snapshot_ids();
    let shared = ids.iter().find(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1);
    let digit = &shared.expect("seventeen ids, sixteen digits")[..1];
    sandbox.run(["ls", digit]).fails(1, &["is ambiguous: ", "more digits"]);

    let tagged = sandbox.json(["snapshots", "--tag", "first"]);
    assert_eq!(tagged.len(), 1);
    assert_eq!(sandbox.json(["snapshots", "--host", "nobody's"]).len(), 0);
    assert_eq!(sandbox.json(["snapshots", "--path", "/nowhere"]).len(), 0);
    for path in [&sandbox.text("source")[..], "source", "./source/dir/..", "source/dir"] {
        assert_eq!(sandbox.json(["snapshots", "--path", path]).len(), 17, "{path}");
    }
}

#[test]
fn contents_of_snapshots_can_be_inspected() {
    let sandbox = small();
    let source = sandbox.text("source");
    let listed = sandbox.run(["ls", &sandbox.at("latest", "source/dir")]).ok();
    let expected = ["dir", "dir/deep", "dir/deep/er", "dir/large"].map(|p| format!("{source}/{p}"));
    assert_eq!(lines(&listed.stdout), expected);
    let long = sandbox.run(["ls", "-l", &sandbox.at("latest", "source")]).ok();
    assert!(long.stdout.contains("lrwxrwxrwx") && long.stdout.contains("link -> readme"));
    let nodes = sandbox.json(["ls", &sandbox.at("latest", "source")]);
    let (summary, nodes) = nodes.split_last().expect("a summary");
    assert!(nodes.iter().all(|node| node["message_type"] == "node" && node["type"].is_string()));
    assert_eq!(summary["entries"], nodes.len());

    let diff = sandbox.run(["diff", "latest~1", "latest"]).ok();
    for line in ["- {}/dir/inner", "+ {}/new", "M {}/readme"] {
        let line = line.replace("{}", &source);
        assert!(lines(&diff.stdout).contains(&&*line), "{line}: {}", diff.all_output());
    }
    let statistics = sandbox.json(["diff", "latest~1", "latest"]);
    let statistics = statistics.last().expect("statistics");
    assert_eq!((&statistics["added"], &statistics["removed"]), (&1.into(), &1.into()));

    let found = sandbox.json(["find", "inner"]);
    assert_eq!(found.iter().filter(|line| line["message_type"] == "match").count(), 1);
    let found = sandbox.json(["find", "read*"]);
    assert_eq!(found.iter().filter(|line| line["message_type"] == "match").count(), 2);
    let both = sandbox.json(["find", "/**/dir/large"]);
    assert_eq!(both[0]["snapshots"], 2, "{both:?}");

    let dumped = sandbox.run(["dump", &sandbox.at("latest~1", "source/readme")]).ok();
    assert_eq!(dumped.bytes, b"hello\n");
    let dumped = sandbox.run(["dump", &sandbox.at("latest", "source/dir/large")]).ok();
    assert_eq!(dumped.bytes, sandbox.read("source/dir/large"));
    sandbox.run(["dump", &sandbox.at("latest", "source/dir")]).ends_with(1);

    assert_eq!(sandbox.json(["stats"])[0]["snapshots_count"], 2);
    sandbox.run(["stats"]).ok();
    sandbox.run(["index", "rebuild"]).ok();
    sandbox.remove("store/index.sqlite");
    assert_eq!(sandbox.snapshot_ids().len(), 2);
    for part in
        [&["--read-data"][..], &["--read-data-subset", "1/2"], &["--read-data-subset", "50%"]]
    {
        let check = sandbox.forgekeep(["check", "--json"]).args(part).run().ok().json();
        assert_eq!(check.last().expect("a summary")["clean"], true);
    }
}

#[test]
fn restore_writes_to_the_requested_target() {
    let sandbox = small();
    sandbox.restore(&sandbox.at("latest", "source"), "content");
    assert_eq!(sandbox.read("content/readme"), b"hello again\n");
    sandbox.restore("latest", "whole");
    let below = sandbox.text("whole") + &sandbox.text("source/new");
    assert_eq!(sandbox.read(below), b"new\n");
    sandbox.restore(&sandbox.at("latest~1", "source/dir/inner"), "one");
    assert_eq!(sandbox.read("one/inner"), b"inner\n");

    let place = sandbox.at("latest", "source");
    sandbox.run(["restore", &place, "-t", "some", "--include", "*er"]).ok();
    assert!(sandbox.has("some/dir/deep/er") && !sandbox.has("some/readme"));
    sandbox.run(["restore", &place, "-t", "most", "--exclude", "dir"]).ok();
    assert!(!sandbox.has("most/dir") && sandbox.has("most/readme"));

    sandbox.write("content/extra/file", "x");
    sandbox.write("content/readme", "damaged");
    let before = sandbox.run(["restore", &place, "-t", "content", "--delete", "--dry-run"]).ok();
    assert!(before.stdout.contains("2 paths to be deleted"), "{}", before.all_output());
    assert!(sandbox.has("content/extra/file"));
    assert_eq!(sandbox.read("content/readme"), b"damaged");
    sandbox.run(["restore", &place, "-t", "never", "--dry-run"]).ok();
    assert!(!sandbox.has("never"));
    sandbox.run(["restore", &place, "-t", "content"]).ok();
    assert!(sandbox.has("content/extra/file"), "nothing is removed unasked");
    let json = sandbox.json(["restore", &place, "-t", "content", "--delete"]);
    assert!(json.last().expect("a summary")["files_deleted"].as_u64() > Some(0));
    assert!(!sandbox.has("content/extra"));
    assert_eq!(sandbox.read("content/readme"), b"hello again\n");
}

#[test]
fn delete_keeps_paths_that_the_backup_did_not_cover() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/kept", "kept");
    sandbox.write("source/cache.tmp", "not backed up");
    sandbox.backup(["source", "--exclude", "*.tmp"]);
    sandbox.write("target/beside", "outside of the paths of the snapshot");
    let restored = "target".to_owned() + &sandbox.text("source");
    sandbox.write(&format!("{restored}/old.tmp"), "excluded by the backup");
    sandbox.write(&format!("{restored}/old"), "in nobody's way");
    sandbox.run(["restore", "latest", "-t", "target", "--delete"]).ok();
    assert!(sandbox.has("target/beside") && sandbox.has(format!("{restored}/old.tmp")));
    assert!(!sandbox.has(format!("{restored}/old")));
    assert_eq!(sandbox.read(format!("{restored}/kept")), b"kept");
}

#[test]
fn a_lookalike_of_a_git_directory_is_backed_up_whole() {
    let sandbox = Sandbox::with_store();
    for name in ["HEAD", "objects/a.lock", "refs/b", "Cargo.lock", "sub/yarn.lock"] {
        sandbox.write(&format!("source/project/{name}"), "content of its own");
    }
    sandbox.write("source/bare/objects/x", "");
    sandbox.write("source/bare/refs/x", "");
    sandbox.write("source/bare/HEAD", "ref: refs/heads/main\n");
    for name in ["Cargo.lock", "HEAD.lock", "refs/heads/main.lock"] {
        sandbox.write(&format!("source/bare/{name}"), "lock");
    }
    sandbox.backup(["source"]);
    sandbox.restore(&sandbox.at("latest", "source"), "back");
    for name in ["HEAD", "objects/a.lock", "refs/b", "Cargo.lock", "sub/yarn.lock"] {
        assert!(sandbox.has(format!("back/project/{name}")), "{name}");
    }
    assert!(sandbox.has("back/bare/Cargo.lock") && sandbox.has("back/bare/HEAD"));
    assert!(!sandbox.has("back/bare/HEAD.lock") && !sandbox.has("back/bare/refs/heads/main.lock"));
}

#[test]
fn git_directories_with_links_are_restored() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/main.git/objects/x", "x");
    sandbox.write("source/main.git/refs/x", "x");
    sandbox.write("source/work.git/HEAD", "ref: refs/heads/main\n");
    for name in ["objects", "refs"] {
        let link = format!("../main.git/{name}");
        sandbox.tool("ln").args(["-s", &link, &format!("source/work.git/{name}")]).run().ok();
    }
    sandbox.backup(["source"]);
    sandbox.restore(&sandbox.at("latest", "source"), "back");
    assert_eq!(sandbox.read("back/work.git/objects/x"), b"x");
}

#[test]
fn a_closed_pipe_does_not_hide_a_failure() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a".repeat(100_000));
    sandbox.backup(["source"]);
    let list = sandbox.tool("find").args(["store/segments", "-type", "f"]).run().ok();
    for segment in list.stdout.lines() {
        let mut bytes = sandbox.read(segment);
        bytes[500] ^= 1;
        std::fs::write(sandbox.path(segment), bytes).expect("damages");
    }
    let code = |command: &str| {
        let script = format!("{{ sleep 0.2; \"$0\" {command}; echo $? > code; }} | true");
        sandbox.tool("sh").args(["-c", &script, FORGEKEEP]).run().ok();
        String::from_utf8_lossy(&sandbox.read("code")).trim().to_owned()
    };
    assert_eq!(code("check --read-data"), "1");
    assert_eq!(code("check --json"), "1");
    assert_eq!(code("backup --json source nowhere"), "3");
}

#[test]
fn a_damaged_snapshot_record_is_reported() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "one");
    sandbox.backup(["source"]);
    let ids = sandbox.snapshot_ids();
    sandbox.write("source/a", "two");
    sandbox.backup(["source"]);
    let newest = sandbox.snapshot_ids().pop().expect("two");
    std::fs::write(sandbox.path(format!("store/snapshots/{newest}")), [0; 300]).expect("damages");
    for command in [
        &["snapshots"][..],
        &["stats"],
        &["find", "a"],
        &["ls", "latest"],
        &["diff", "latest", "latest"],
        &["restore", "latest", "-t", "to"],
        &["backup", "source"],
    ] {
        let warned = sandbox.run(command).ends_with(3);
        assert!(warned.stderr.contains(&newest[..8]), "{}", warned.all_output());
    }
    let file = sandbox.text("to/") + &sandbox.text("source/a");
    assert_eq!(std::fs::read(file).expect("restored"), b"one");
    sandbox.run(["restore", "--quiet", &ids[0], "-t", "to"]).ok();
    let check = sandbox.run(["check"]).ends_with(1);
    assert!(check.stdout.contains(&newest[..8]), "{}", check.all_output());
}

#[test]
fn a_user_with_read_access_can_use_a_store() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a".repeat(100_000));
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "go=rX", "store"]).run().ok();
    for command in
        [&["snapshots"][..], &["check", "--read-data"], &["restore", "latest", "-t", "mine"]]
    {
        let done = sandbox.as_nobody(command).run().ok();
        assert!(!done.stderr.contains("index"), "{}", done.all_output());
    }
}

#[test]
fn too_many_patterns_are_refused_before_a_backup() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.write("patterns", "a-rather-long-name-of-a-file-that-is-not-there\n".repeat(50_000));
    let backup = ["backup", "source", "--exclude-file", "patterns"];
    sandbox.run(backup).fails(1, &["patterns take", "the maximum is"]);
    assert_eq!(sandbox.snapshot_ids().len(), 0);
}

#[test]
fn excluded_paths_are_skipped() {
    let sandbox = Sandbox::with_store();
    for name in ["a.tmp", "keep", "dir/b.tmp", "dir/keep", "cache/x", "build/out", "dir/build/in"] {
        sandbox.write(&format!("source/{name}"), name);
    }
    sandbox.write("source/cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n");
    sandbox.write("rules", "# a comment\n\n  build  \n");
    let listed = |arguments: &[&str]| {
        sandbox.forgekeep(["backup", "source"]).args(arguments).run().ok();
        let prefix = sandbox.text("source/");
        let all = sandbox.run(["ls", "latest"]).ok().stdout;
        all.lines().filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned)).collect()
    };
    let left: Vec<String> = listed(&["--exclude", "*.tmp", "--exclude-file", "rules"]);
    assert_eq!(left, ["cache", "cache/CACHEDIR.TAG", "cache/x", "dir", "dir/keep", "keep"]);
    let left: Vec<String> = listed(&["--exclude-caches", "--exclude", "dir/b*"]);
    assert!(!left.iter().any(|p| p.starts_with("cache/x") || p == "dir/b.tmp" || p == "dir/build"));
    assert!(left.iter().any(|path| path == "build/out"));
    sandbox.run(["backup", "source", "--exclude-file", "none"]).ends_with(1);
}

#[test]
fn only_successful_streams_are_backed_up() {
    let sandbox = Sandbox::with_store();
    let content = Dice::new(9).bytes(3_000_000);
    sandbox.forgekeep(["backup", "--stdin-name", "dump.sql"]).input(content.clone()).run().ok();
    assert_eq!(sandbox.run(["dump", "latest:dump.sql"]).ok().bytes, content);
    let command = ["backup", "--stdin-name", "said", "--stdin-command", "printf", "%s", "--hi"];
    sandbox.run(command).ok();
    assert_eq!(sandbox.run(["dump", "latest:/said", "--path", "said"]).ok().bytes, b"--hi");
    let failing =
        ["backup", "--stdin-name", "x", "--stdin-command", "sh", "-c", "echo half; exit 3"];
    sandbox.run(failing).fails(1, &["sh failed", "no snapshot was created"]);
    sandbox.run(["backup", "--stdin-name", "x", "--stdin-command", "no-such-command"]).ends_with(1);
    sandbox.run(["backup", "--stdin-name", ".."]).ends_with(2);
    sandbox.run(["backup", "--stdin-name", "x", "source"]).ends_with(2);
    assert_eq!(sandbox.snapshot_ids().len(), 2);
    sandbox.assert_clean();
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let sandbox = small();
    for n in 0..3000 {
        sandbox.write(&format!("source/many/{n}-with-a-name-that-fills-the-pipe"), "");
    }
    sandbox.backup(["source"]);
    let program = crate::support::sandbox::FORGEKEEP;
    for command in ["ls latest", "ls latest --json", "diff latest~1 latest", "find '*'"] {
        let script = format!("{program} {command} | head -n 1; echo ${{PIPESTATUS[0]}}");
        let outcome = sandbox.tool("bash").args(["-c", &script]).run().ok();
        assert_eq!(outcome.stdout.lines().last(), Some("0"), "{}", outcome.all_output());
        assert_eq!(outcome.stderr, "", "{command}");
    }
}

#[test]
fn the_program_documents_itself() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(sandbox.run(["completions", shell]).ok().stdout.contains("forgekeep"));
    }
    let reference = sandbox.run(["reference"]).ok().stdout;
    let written = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
    let written = std::fs::read_to_string(written).expect("docs/cli.md is there");
    assert!(reference == written, "run `forgekeep reference > docs/cli.md`");
    let reference = sandbox.run(["reference", "json"]).ok().stdout;
    let written = include_str!("../docs/json.md");
    assert!(reference == written, "run `forgekeep reference json > docs/json.md`");
}

/// A reader looks for the options of the command first.
#[test]
fn help_shows_the_options_of_every_command_last() {
    let sandbox = Sandbox::new();
    for command in ["init", "backup", "restore", "check", "schedule", "inspect"] {
        for flag in ["-h", "--help"] {
            let help = sandbox.run([command, flag]).ok().stdout;
            let (own, global) = help.split_once("\nGlobal options:\n").expect("a heading");
            assert!(own.contains("\nOptions:\n"), "{help}");
            for option in ["--store", "--json", "-q, --quiet", "-h, --help"] {
                let is_in = |text: &str| text.lines().any(|l| l.trim_start().starts_with(option));
                assert!(!is_in(own) && is_in(global), "{option} in {help}");
            }
            assert_eq!(help.contains("--verbose"), command == "backup", "{help}");
        }
    }
    // The option is accepted everywhere, though few commands have details to print.
    sandbox.run(["init", "--verbose"]).ok();
}

#[test]
fn manual_pages_have_the_sections_of_a_manual() {
    let sandbox = Sandbox::new();
    sandbox.run(["man", "pages/man1"]).ok();
    let pages = std::fs::read_dir(sandbox.path("pages/man1")).expect("lists").count();
    assert!(pages > 20, "{pages} pages");
    let page = |name: &str| {
        let path = sandbox.path(format!("pages/man1/{name}.1"));
        std::fs::read_to_string(path).expect("the page is there").replace('\\', "")
    };
    let backup = page("forgekeep-backup");
    let title = backup.lines().find(|line| line.starts_with(".TH")).expect("a title");
    let has_date = title.split(' ').any(|word| {
        let word: Vec<&str> = word.trim_matches('"').split('-').collect();
        word.len() == 3 && word.iter().all(|part| part.parse::<u32>().is_ok())
    });
    assert!(has_date, "{title}");
    for (section, words) in [
        ("NAME", &["Back up directories and files"][..]),
        ("SYNOPSIS", &["--tag", "TAG", "]...", "GLOBAL OPTIONS", "[PATH]..."]),
        ("DESCRIPTION", &["Bare git repositories"]),
        ("OPTIONS", &["--exclude-caches"]),
        ("GLOBAL OPTIONS", &["--store"]),
        ("EXAMPLES", &["forgekeep backup --instance gitlab"]),
        ("ENVIRONMENT", &["FORGEKEEP_STORE", "FORGEKEEP_CONFIG"]),
        ("FILES", &["/etc/forgekeep.toml", "STORE/segments"]),
        ("EXIT STATUS", &["130", "interrupted"]),
        ("SEE ALSO", &["forgekeep-restore"]),
    ] {
        let heads = [format!("\n.SH {section}\n"), format!("\n.SH \"{section}\"\n")];
        let start = heads.iter().find_map(|head| Some(backup.find(head)? + head.len()));
        let start = start.unwrap_or_else(|| panic!("no section {section} in {backup}"));
        let end = backup[start..].find("\n.SH ").map_or(backup.len(), |end| start + end);
        for word in words {
            assert!(backup[start..end].contains(word), "{word}: {}", &backup[start..end]);
        }
    }
    assert!(page("forgekeep").contains("forgekeep-restore"));
    assert!(page("forgekeep-ls").contains("forgekeep.toml"), "the configuration names the store");
    assert!(page("forgekeep").contains("gitlab@latest"), "the forms of SNAPSHOT");
    for entry in std::fs::read_dir(sandbox.path("pages/man1")).expect("lists") {
        let path = entry.expect("lists").path();
        let page = std::fs::read_to_string(&path).expect("reads");
        for section in ["SYNOPSIS", "EXAMPLES", "ENVIRONMENT", "FILES", "SEE ALSO"] {
            let text = page.replace('"', "");
            let (_, text) = text.split_once(&format!("\n.SH {section}\n")).expect(section);
            let text = text.split("\n.SH ").next().expect("a first part");
            assert!(
                ["forgekeep", "TMPDIR", "STORE"].iter().any(|word| text.contains(word)),
                "{path:?}: {section}"
            );
        }
        assert!(page.lines().any(|line| line.starts_with(".TH") && line.contains("forgekeep 0.")));
    }
}

/// Runs `config check` on this configuration.
fn check(sandbox: &Sandbox, config: &str) -> crate::support::sandbox::Run {
    sandbox.write("forgekeep.toml", config);
    crate::support::instance::configured(sandbox, ["config", "check", "--offline"])
}

#[test]
fn config_check_covers_the_whole_configuration() {
    let sandbox = Sandbox::new();
    sandbox.write("data/file", "content");
    sandbox.write("data/a-part-with-a-long-name/file", "content");
    let store = format!("[stores.main]\npath = '{}'\n", sandbox.text("store"));
    let instance = |name: &str, more: &str| {
        format!(
            "[instances.{name}]\nkind = 'plain'\nroot = '{}'\ntags = ['nightly']\nexclude = ['*.tmp']\n\
             parts.a-part-with-a-long-name.path = '{}'\n{more}\n",
            sandbox.root().display(),
            sandbox.text("data/a-part-with-a-long-name"),
        )
    };
    let keep = "keep = { daily = 14, yearly = 'unlimited', within = '3d' }";
    let good = check(&sandbox, &format!("{store}{}", instance("good", keep))).run().ok();
    for words in [
        "  files\n    a-part-with-a-long-name  data/a-part-with-a-long-name  — ",
        "tags        nightly\n",
        "keep        daily 14, yearly unlimited, within 3d\n",
        "  skipped\n    *.tmp  excluded\n",
        "does not exist yet",
        "checks      files of 1000 rows per table\n",
    ] {
        assert!(good.stdout.contains(words), "{words}: {}", good.all_output());
    }
    assert!(good.stdout.ends_with("  complete: 1 part\n"), "{}", good.all_output());

    let bad = instance(
        "bad",
        "keep = { last = 0 }\nparts.gone.path = '/nowhere/at all'\nbefore = [{ command = ['no-such-program'] }]\n\
         after = [{ command = ['true'], user = 'no-such-user' }]\n\
         services.stop = [{ command = ['/nowhere/stop'] }]\nservices.start = [{ command = ['true'] }]\n\
         parts.data.path = '/etc'\nparts.data.exclude = ['[']\n\
         postgres.host = '/run'\npostgres.password = { file = '/nowhere/password' }\n",
    );
    let ping = "[[notify]]\nkind = 'ping'\nurl = 'https://ping.example/s3cret'\n";
    let config = format!("{store}{}{bad}{ping}", instance("good", keep));
    let all = check(&sandbox, &config).run().ends_with(3);
    for words in [
        "key `keep` has no rule that keeps a snapshot; write keep = { daily = 14 }",
        "program no-such-program not found in /usr/local/sbin",
        "user no-such-user does not exist",
        "services.stop: program /nowhere/stop not found",
        "exclude: ",
        "cannot read the secret file /nowhere/password",
        "all users can read",
    ] {
        assert!(all.stderr.contains(words), "{words}: {}", all.all_output());
    }
    assert!(all.stdout.contains("gone") && all.stdout.contains("MISSING  /nowhere/at all"));
    assert!(all.stdout.contains("not complete, missing: gone; "), "{}", all.all_output());
    assert!(!all.all_output().contains("s3cret"), "{}", all.all_output());

    let lines = check(&sandbox, &config).args(["--json"]).run().ends_with(3).json();
    let instances: Vec<_> =
        lines.iter().filter(|line| line["message_type"] == "instance").collect();
    assert_eq!(instances.len(), 2);
    assert_eq!(instances[0]["missing"][0]["part"], "gone");
    assert!(instances[0]["problems"].as_array().expect("a list").len() >= 5, "{}", instances[0]);
    assert_eq!(instances[1]["is_right"], true, "{}", instances[1]);
    let keep = &instances[1]["keep"];
    assert_eq!((&keep["daily"], &keep["yearly"]), (&14.into(), &"unlimited".into()));
    assert_eq!((&keep["within"], &keep["last"]), (&"3d".into(), &serde_json::Value::Null));
    assert_eq!(instances[1]["parts"][0]["is_there"], true);
}

#[test]
fn config_check_reports_every_instance_and_a_missing_store() {
    let sandbox = Sandbox::new();
    let good = "[instances.good]\nkind = 'plain'\nparts.a.path = '/etc'\n";
    let printed = check(&sandbox, good).run().ends_with(3);
    assert!(printed.stderr.contains("no store is configured"), "{}", printed.all_output());
    let store = format!("[stores.main]\npath = '{}'\n", sandbox.text("store"));
    for (wrong, word) in [
        ("", "it has no parts"),
        ("parts.a.path = '/etc'\nservices.stop = [{ command = ['true'] }]\n", "would stay down"),
        ("parts.a.path = '/etc'\nservices.start = [{ command = ['true'] }]\n", "services.stop"),
        (
            "parts.a.path = '/etc'\nservices.writers = ['web']\n",
            "the program that stops them is unknown",
        ),
    ] {
        let config = format!("{store}[instances.bad]\nkind = 'plain'\n{wrong}{good}");
        let printed = check(&sandbox, &config).run().fails(1, &[word]);
        assert!(printed.stdout.contains("good: ") && printed.stdout.contains("complete: 1 part"));
    }
    check(&sandbox, &store).run().fails(1, &["has no instance", "forgekeep detect"]);
}

#[test]
fn a_snapshot_of_an_instance_is_listed_with_its_name() {
    let sandbox = Sandbox::new();
    sandbox.write("data/file", "content");
    let config = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.wiki]\nkind = 'plain'\nparts.a.path = '{}'\n",
        sandbox.text("state"),
        sandbox.text("store"),
        sandbox.text("data")
    );
    sandbox.write("forgekeep.toml", config);
    let run = |arguments: &[&str]| {
        crate::support::instance::configured(&sandbox, []).args(arguments).run().ok()
    };
    run(&["backup", "--instance", "wiki", "--init"]);
    let listed = run(&["snapshots", "--store", &sandbox.text("store")]);
    assert!(listed.stdout.contains("plain wiki, complete\n"), "{}", listed.stdout);
    assert!(!listed.stdout.contains("data"), "{}", listed.stdout);
    let inspected = run(&["inspect", "--instance", "wiki", "latest"]);
    assert_eq!(run(&["inspect", "wiki@latest"]).stdout, inspected.stdout);
    let unknown = crate::support::instance::configured(&sandbox, ["inspect", "latest"]).run();
    assert!(unknown.ends_with(2).stderr.contains("write NAME@latest"));
    crate::support::instance::configured(&sandbox, ["inspect"]).run().ends_with(2);
    assert!(inspected.stdout.contains("  files of      20"), "{}", inspected.stdout);
}

#[test]
fn control_characters_never_reach_the_terminal() {
    let sandbox = Sandbox::with_store();
    let bad = "x\u{1b}[31m";
    sandbox.write(&format!("source/{bad}"), "a");
    for refused in [["--tag", bad], ["--host", "h\nfake"], ["--tag", ""]] {
        let refused = sandbox.forgekeep(["backup", "source"]).args(refused).run().ends_with(2);
        assert!(!refused.stderr.contains('\u{1b}'), "{}", refused.all_output());
    }
    assert_eq!(sandbox.snapshot_ids().len(), 0);
    sandbox.backup(["source"]);
    for arguments in [
        &["ls", "latest"][..],
        &["ls", "latest", "-l"],
        &["find", "x*"],
        &["restore", "latest", "--target", bad],
        &["backup", bad],
        &["dump", &format!("latest:/{bad}")],
        &["restore", bad, "--target", "t"],
        &["snapshots", "--store", bad],
        &["init", "--store", &format!("source/{bad}")],
        &[bad],
        &["--store", &format!("{bad}:x"), "snapshots"],
        &["inspect", "--instance", bad, "--config", "source"],
    ] {
        let outcome = sandbox.run(arguments);
        let printed = [&outcome.stdout[..], &outcome.stderr[..]].concat();
        assert!(!printed.contains('\u{1b}'), "{arguments:?}: {printed:?}");
    }
}

#[test]
fn a_remote_store_is_refused_and_not_created() {
    let sandbox = Sandbox::new();
    for place in ["sftp:host:/x", "s3:bucket", "user@host:/x", "rest:http://h/"] {
        let words = "remote stores are not supported yet";
        let spelled = format!("./{place}");
        for command in ["init", "snapshots"] {
            let given = sandbox.run([command, "--store", place]);
            let named = sandbox.forgekeep([command]).env("FORGEKEEP_STORE", place).run();
            for refused in [given, named] {
                let refused = refused.ends_with(2);
                let is_told = [words, &spelled].iter().all(|word| refused.stderr.contains(word));
                assert!(is_told, "{}", refused.all_output());
            }
        }
        let text = format!("[stores.main]\npath = '{place}'\n[instances.a]\nkind = 'plain'\n");
        sandbox.write("forgekeep.toml", text);
        let command = ["backup", "--instance", "a", "--init", "--config", "forgekeep.toml"];
        let run = sandbox.forgekeep(command).without_env("FORGEKEEP_STORE").run();
        run.fails(2, &["stores.main.path", words]);
    }
    let text = "[stores.main]\npath = '/s'\n[instances.a]\nkind = 'plain'\ntags = [\"a\\u001b\"]\n";
    sandbox.write("forgekeep.toml", text);
    sandbox.run(["config", "check", "--config", "forgekeep.toml"]).fails(2, &["control char"]);
    let left = std::fs::read_dir(sandbox.root()).expect("lists").count();
    assert_eq!(left, 1, "only the configuration");
    sandbox.run(["init", "--store", "./sftp:x"]).ok();
    sandbox.run(["snapshots", "--store", &format!("file://{}", sandbox.text("sftp:x"))]).ok();
}

#[test]
fn only_a_missing_or_empty_path_counts_as_no_store() {
    let sandbox = Sandbox::with_store();
    sandbox.write("file", "");
    sandbox.write("full/of", "something else");
    std::fs::create_dir(sandbox.path("empty")).expect("makes");
    std::os::unix::fs::symlink("nowhere", sandbox.path("dangling")).expect("links");
    std::os::unix::fs::symlink("loop", sandbox.path("loop")).expect("links");
    for (place, code, words) in [
        ("nowhere", 10, &["no store at nowhere", "the path is wrong"][..]),
        ("empty", 10, &["no store at empty"]),
        ("file", 1, &["file is not a store", "not a directory"]),
        ("file/below", 1, &["file/below is not a store", "a part of the path"]),
        ("full", 1, &["full is not a store", "is not empty", "empty directory"]),
        ("dangling", 1, &["dangling is not a store", "link to a missing path"]),
        ("loop", 1, &["cannot access the store at loop", "mount"]),
    ] {
        sandbox.run(["snapshots", "--store", place]).fails(code, words);
    }
    for (place, words) in [
        ("file", "file is not a store"),
        ("file/below", "a part of the path"),
        ("full", "full is not empty"),
        ("loop", "cannot access"),
    ] {
        sandbox.run(["init", "--store", place]).fails(1, &[words]);
    }
}

#[test]
fn a_store_of_another_user_is_not_called_missing() {
    need_root();
    let sandbox = Sandbox::with_store();
    let closed = |path: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(sandbox.path(path), mode).expect("chmod");
    };
    std::fs::create_dir(sandbox.path("private")).expect("makes");
    std::fs::rename(sandbox.path("store"), sandbox.path("private/store")).expect("moves");
    for (path, mode) in [("private", 0o700), ("private/store", 0o700)] {
        closed("private", 0o755);
        closed(path, mode);
        let run = sandbox.as_nobody(["init", "--store", "/no-such/x"]).run();
        run.fails(1, &["cannot create a store at /no-such/x", "may write there"]);
        let run = sandbox.as_nobody(["snapshots", "--store", "private/store"]).run();
        run.fails(1, &["cannot access the store", "Permission denied", "who may read"]);
    }
}

#[test]
fn an_empty_stream_is_refused() {
    let sandbox = Sandbox::with_store();
    let backup = ["backup", "--stdin-name", "db.sql"];
    sandbox.run(backup).fails(1, &["standard input is empty", "--allow-empty"]);
    let silent = ["--stdin-command", "true"];
    sandbox.forgekeep(backup).args(silent).run().fails(1, &["true printed nothing"]);
    assert_eq!(sandbox.snapshot_ids().len(), 0);
    sandbox.forgekeep(backup).args(["--allow-empty"]).run().ok();
    assert_eq!(sandbox.run(["dump", "latest:db.sql"]).ok().bytes, b"");
    assert_eq!(sandbox.snapshot_ids().len(), 1);
}

#[test]
fn a_signal_stops_a_backup_of_a_silent_stream() {
    let sandbox = Sandbox::with_store();
    let script = "for what in '' '--stdin-command sh -c'; do \
         set -- ${what:+\"sleep 31.4159; true\"}; \
         sleep 30 | { \"$FK\" backup --stdin-name a $what \"$@\" & p=$!; sleep .5; kill -TERM $p; \
         s=$(date +%s%N); wait $p; echo $? $(( ($(date +%s%N) - s) / 1000000000 )); \
         pkill -9 -P $$ -x sleep; }; done; pgrep -f 'sleep 31.415[9]'";
    let run = sandbox.tool("bash").args(["-c", script]).env("FK", FORGEKEEP).run();
    assert_eq!(lines(&run.stdout), ["130 0", "130 0"], "{}", run.all_output());
}

#[test]
fn a_killed_backup_also_ends_its_command() {
    let sandbox = Sandbox::with_store();
    let command = ["backup", "--stdin-name", "a", "--stdin-command", "sleep", "27.18281"];
    let mut running = sandbox.forgekeep(command).start();
    let runs = || sandbox.tool("pgrep").args(["-f", "^sleep 27.18281"]).run().code() == Some(0);
    crate::support::server::wait_until("the command runs", runs);
    running.kill();
    running.wait();
    crate::support::server::wait_until("it is gone", || !runs());
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let sandbox = Sandbox::with_store();
    let script = "trap '' HUP; (sleep 1; echo a) | \"$FK\" backup --stdin-name a & \
         sleep .5; kill -HUP $(pgrep -P $$ -f stdin-name); wait";
    sandbox.tool("bash").args(["-c", script]).env("FK", FORGEKEEP).run();
    assert_eq!(sandbox.snapshot_ids().len(), 1);
}

#[test]
fn a_dry_run_of_a_first_backup_creates_no_store() {
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a");
    sandbox.write("source/dir/b", Dice::new(1).bytes(100_000));
    let listing = || sandbox.tool("find").args([".", "-printf", "%p %i %C@\\n"]).run().ok().stdout;
    let backup = ["backup", "source", "--init"];
    let dry = |place: &str| sandbox.forgekeep(backup).args(["--dry-run", "--store", place]).run();
    let before = listing();
    let planned = dry("store").ok().stdout;
    assert!(planned.contains("a new store would be created at store"), "{planned}");
    // Without --init, there is still no store.
    sandbox.run(["backup", "source", "--dry-run"]).ends_with(10);
    // The same errors as without --dry-run.
    for place in ["source", "source/a", "source/a/store"] {
        let real = sandbox.forgekeep(backup).args(["--store", place]).run();
        let dry = dry(place);
        assert_eq!((dry.code(), &dry.stderr), (real.code(), &real.stderr), "{place}");
        assert_eq!(dry.code(), Some(1), "{place}");
    }
    assert_eq!(listing(), before);
    let done = sandbox.run(backup).ok().stdout;
    let files =
        |text: &str| text.lines().find(|line| line.starts_with("files: ")).map(str::to_owned);
    assert_eq!(files(&planned), files(&done));
    assert!(files(&done).is_some_and(|line| line.contains("2 new")), "{done}");
    // The store exists now.
    let next = sandbox.forgekeep(backup).args(["--dry-run"]).run().ok().stdout;
    assert!(next.contains("2 unmodified"), "{next}");
}

#[test]
fn a_new_store_is_announced() {
    let sandbox = Sandbox::new();
    sandbox.write("source/a", "a");
    let first = sandbox.run(["backup", "--quiet", "source", "--init"]).ok();
    assert!(first.stderr.contains("created a new store at store"), "{}", first.all_output());
    assert!(first.stderr.contains("mounted"), "{}", first.all_output());
    let second = sandbox.run(["backup", "--quiet", "source", "--init"]).ok();
    assert_eq!(second.stderr, "");
}

#[test]
fn a_snapshot_from_the_future_is_not_the_latest() {
    use store::entry::Time;
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "one");
    sandbox.backup(["source"]);
    let file = sandbox.at("latest", "source/a");
    // The same snapshot, dated by a clock that is years ahead.
    let backend = store::backend::Local::new(sandbox.path("store"));
    let of = |id: &str| store::id::SnapshotId::from_hex(id).expect("an id");
    let codec = store::codec::Codec::new(3);
    let (mut record, _) =
        store::snapshot::Snapshot::read(&backend, codec, &of(&sandbox.snapshot_ids()[0]))
            .expect("reads");
    record.start = Time { seconds: record.start.seconds + 400 * 24 * 3600, nanoseconds: 0 }.into();
    record.tags = vec!["future".into(), "\u{1b}[31m".into()];
    let future = record.write(&backend, codec).expect("writes");
    let short = future.short().to_string();
    sandbox.write("source/a", "two");
    let listed = sandbox.run(["snapshots"]).ok();
    assert!(listed.stdout.contains("dated in the future"), "{}", listed.all_output());
    assert!(!listed.stdout.contains('\u{1b}'), "{}", listed.all_output());
    let backup = sandbox.run(["backup", "source"]).ends_with(3);
    assert!(backup.stderr.contains(&short), "{}", backup.all_output());
    let listed = sandbox.json(["snapshots"]);
    assert_eq!(listed[1]["parent"], listed[0]["id"]);
    for (command, out) in [
        (&["dump", &file][..], "two"),
        (&["restore", "latest", "-t", "to"], ""),
        (&["ls", "latest"], "source/a"),
        (&["diff", "latest~1", "latest"], "source/a"),
    ] {
        let warned = sandbox.run(command).ends_with(3);
        assert!(warned.stderr.contains(&short), "{}", warned.all_output());
        assert!(warned.stdout.contains(out), "{}", warned.all_output());
    }
    let check = sandbox.run(["check"]).ends_with(3);
    assert!(check.stderr.contains(&short), "{}", check.all_output());
    // A snapshot given by id is used.
    let named = sandbox.run(["dump", &file.replace("latest", &short)]).ok();
    assert_eq!((&named.stdout[..], &named.stderr[..]), ("one", ""));
    // Without another snapshot, it is the newest.
    for id in sandbox.snapshot_ids().iter().filter(|id| !id.starts_with(&short)) {
        sandbox.remove(format!("store/snapshots/{id}"));
    }
    let only = sandbox.run(["dump", &file]).ends_with(3);
    assert!(
        only.stdout == "one" && only.stderr.contains("no other exists"),
        "{}",
        only.all_output()
    );
}

#[test]
fn removed_files_are_counted() {
    let sandbox = small();
    let none = sandbox.backup(["source"]);
    assert_eq!((&none["files_removed"], &none["dirs_removed"]), (&0.into(), &0.into()));
    sandbox.remove("source/readme");
    sandbox.remove("source/dir/deep");
    sandbox.remove("source/link");
    let some = sandbox.run(["backup", "source"]).ok();
    assert!(some.stdout.contains(", 2 and 1 directory removed; "), "{}", some.all_output());
    sandbox.remove("source/new");
    std::fs::create_dir(sandbox.path("source/new")).expect("makes");
    let other = sandbox.backup(["source"]);
    assert_eq!((&other["files_removed"], &other["dirs_removed"]), (&1.into(), &0.into()));
    // Paths that this backup does not look at are not gone.
    sandbox.write("another/file", "a");
    sandbox.backup(["source", "another"]);
    assert_eq!(sandbox.backup(["another"])["files_removed"], 0);
    sandbox.backup(["source", "another"]);
    let excluded = sandbox.backup(["source", "another", "--exclude", "file"]);
    assert_eq!(excluded["files_removed"], 0);
    let first = Sandbox::with_store();
    first.write("source/a", "a");
    assert!(first.backup(["source"])["files_removed"].is_null());
}

#[test]
fn a_dump_prints_only_content() {
    let sandbox = small();
    sandbox.remove("store/index.sqlite");
    let place = sandbox.at("latest", "source/readme");
    let dumped = sandbox.run(["--json", "dump", &place]).ok();
    assert_eq!(dumped.stdout.as_bytes(), sandbox.read("source/readme"));
    assert!(dumped.stderr.contains("building the index"), "{}", dumped.all_output());
}

#[test]
fn a_full_output_device_does_not_hide_a_saved_snapshot() {
    let sandbox = small();
    let script = "\"$FK\" backup source >/dev/full";
    let run = sandbox.tool("sh").args(["-c", script]).env("FK", FORGEKEEP).run();
    assert_eq!(run.code(), Some(1));
    assert!(run.stderr.contains("was saved"), "{}", run.all_output());
}

#[test]
fn a_share_of_a_small_store_is_read() {
    let sandbox = small();
    let checked = sandbox.run(["check", "--read-data-subset", "1%", "--json"]).ok().json();
    let summary = checked.last().expect("a summary");
    assert_eq!(summary["segments_read"], 1);
    assert!(summary["bytes_read"].as_u64() > Some(0), "{summary}");
    let printed = sandbox.run(["check", "--read-data-subset", "1%"]).ok().stdout;
    assert!(printed.contains("1 of ") && printed.contains(" segments read, "), "{printed}");
}

#[test]
fn a_signal_stops_output_to_a_blocked_pipe() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", Dice::new(5).bytes(1_000_000));
    sandbox.backup(["source"]);
    let script = "mkfifo pipe; exec 3<>pipe; \"$FK\" dump \"$PLACE\" >pipe & p=$!; sleep .5; \
         kill -TERM $p; wait $p; echo $?";
    let place = sandbox.at("latest", "source/a");
    let run = sandbox.tool("bash").args(["-c", script]).env("FK", FORGEKEEP).env("PLACE", place);
    assert_eq!(run.run().stdout.trim(), "130");
    for n in 0..3000 {
        sandbox.write(&format!("source/{n:0100}"), "");
    }
    sandbox.backup(["source"]);
    let script = "exec 3<>pipe; \"$FK\" ls latest >pipe & p=$!; sleep .5; \
         kill -TERM $p; wait $p; echo $?";
    let run = sandbox.tool("bash").args(["-c", script]).env("FK", FORGEKEEP);
    assert_eq!(run.run().stdout.trim(), "130");
}

#[test]
fn a_difference_between_names_of_one_file_is_shown() {
    let sandbox = Sandbox::with_store();
    for name in ["a", "c", "alone"] {
        sandbox.write(&format!("source/{name}"), "x");
    }
    let make = |script: &str| {
        let all =
            format!("cd source; {script}; touch -d @1000 *; touch -d @900 .; ln -f alone ../out");
        sandbox.tool("sh").args(["-c", &all]).run().ok();
        sandbox.backup(["source"]);
    };
    let changed = |first: &str| -> Vec<String> {
        let lines = sandbox.run(["diff", first, "latest", "--json"]).ok().json();
        let paths = lines.iter().filter(|line| line["message_type"] == "change");
        paths.map(|line| line["path"].as_str().expect("a path").to_owned()).collect()
    };
    let all = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| sandbox.text(&format!("source/{name}"))).collect()
    };
    make("ln a b; ln c d");
    // Another inode, and names outside, change no restore.
    make("cp -p alone new; mv new alone");
    assert_eq!(changed("latest~1"), all(&[]));
    make("rm b; cp -p a b");
    assert_eq!(changed("latest~1"), all(&["b"]));
    make("ln -f a b");
    assert_eq!(changed("latest~1"), all(&["b"]));
    make("ln -f a d; ln -f c b");
    assert_eq!(changed("latest~1"), all(&["b", "d"]));
    assert_eq!(changed("latest~3"), all(&["b", "d"]));
}

#[test]
fn a_signal_stops_work_whose_messages_nobody_reads() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/kept", "");
    sandbox.backup(["source"]);
    for n in 0..3000 {
        sandbox.write(&format!("target/{n:0100}"), "");
    }
    let place = sandbox.at("latest", "source");
    for output in [">pipe 2>&1", "2>pipe >&2", "--json >pipe"] {
        let script = format!(
            "rm -f pipe; mkfifo pipe; exec 3<>pipe; \"$FK\" restore \"$PLACE\" -t target --delete \
             --dry-run {output} & p=$!; sleep .7; kill -TERM $p; \
             for i in $(seq 30); do kill -0 $p || break; sleep .1; done; \
             kill -KILL $p 2>/dev/null && echo killed; wait $p; echo $?"
        );
        let run = sandbox.tool("bash").args(["-c", &script]).env("FK", FORGEKEEP);
        assert_eq!(run.env("PLACE", &place).run().stdout.trim(), "130", "{output}");
    }
}

#[test]
fn a_signal_ends_the_wait_for_rules_and_configurations_from_a_silent_pipe() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "1");
    sandbox.backup(["source"]);
    for arguments in [
        "backup source --exclude-file pipe",
        "config check --config pipe",
        "backup --instance a --config pipe",
        "restore latest -t out --owner-map pipe",
        "repair owners --as docker-gitlab source --owner-map pipe",
        "repair owners --instance a --config pipe",
        "notify test --config pipe",
        "recover --instance a --config pipe",
    ] {
        let script = format!(
            "rm -f pipe; mkfifo pipe; exec 3<>pipe; \"$FK\" {arguments} & p=$!; sleep .3; \
             kill -TERM $p; for i in $(seq 30); do kill -0 $p 2>/dev/null || break; sleep .1; done; \
             kill -KILL $p 2>/dev/null && echo killed; wait $p; echo $?"
        );
        let outcome = sandbox.tool("bash").args(["-c", &script]).env("FK", FORGEKEEP).run();
        assert_eq!(outcome.stdout.trim(), "130", "{arguments}: {}", outcome.stderr);
    }
}

#[test]
fn messages_name_the_thing_the_fault_and_the_next_step() {
    let sandbox = small();
    sandbox.write("file", "");
    let latest = sandbox.snapshot_ids()[1][..8].to_owned();
    let source = sandbox.text("source");
    sandbox.run(["init", "--store", "empty"]).ok();
    for (arguments, words) in [
        (
            &["ls", "latest", "--store", "empty"][..],
            &["the store at empty has no snapshots yet", "backup"][..],
        ),
        (&["ls", "latest~9"], &["no snapshot latest~9 among 2 snapshots", "lists them"]),
        (&["ls", "latest:/readme"], &[&latest, "has no /readme", "did you mean", &source]),
        (
            &["dump", &sandbox.at("latest", "source/raedme")],
            &["has no", "did you mean", "source/readme"],
        ),
        (&["dump", "latest"], &["no path in snapshot latest", "SNAPSHOT:PATH"]),
        (&["dump", &sandbox.at("latest", "source/dir")], &["not a file", "forgekeep restore"]),
        (&["ls", "latest:a/../b"], &["not a valid path", "an absolute path"]),
        (&["restore", "latest", "-t", "file"], &["file", "must be a directory", "forgekeep dump"]),
        (
            &["backup", "--stdin-name", "z", "--stdin-command", "no-such"],
            &["cannot start no-such", "PATH"],
        ),
        (&["backup", "source", "--exclude-file", "nope"], &["cannot read nope", "--exclude-file"]),
        (&["config", "check", "--config", "source"], &["cannot read the", "needs a file"]),
        (&["config", "check", "--config", "nope"], &["cannot read the", "forgekeep detect"]),
    ] {
        sandbox.run(arguments).fails(1, words);
    }
    for wrong in ["lastest", "Latest"] {
        let words = [&format!("`{wrong}` does not name a snapshot"), "did you mean `latest`?"];
        sandbox.run(["ls", wrong]).fails(2, &words);
    }
    let words = ["../z is not a valid file name", "such as db.sql"];
    sandbox.run(["backup", "--stdin-name", "../z"]).fails(2, &words);
    let config = "[stores.main]\npath = '/s'\n[instances.a]\nkind = 'plain'\n\
                  [instances.a.parts.data]\npath = '/nowhere'\n";
    sandbox.write("c.toml", config);
    let schedule = ["schedule", "--instance", "a", "--config", "c.toml", "--write", "missing"];
    sandbox.run(schedule).fails(1, &["cannot write into missing", "create it first"]);
    let repair = ["repair", "single-sign-on", "--instance", "a", "--config", "c.toml"];
    sandbox
        .run(repair)
        .fails(1, &["no Mattermost is installed beside GitLab", "nothing was changed"]);
    let dotted = sandbox.run(["backup", "source/../source"]).ok();
    assert!(!dotted.stderr.contains("symbolic link"), "{}", dotted.all_output());
    std::os::unix::fs::symlink("source", sandbox.path("way")).expect("links");
    let linked = sandbox.run(["backup", "way"]).ok();
    assert!(linked.stderr.contains("symbolic link"), "{}", linked.all_output());
    let stats = sandbox.run(["stats"]).ok().stdout;
    assert!(stats.contains("saved         ") && !stats.contains("0.0 x"), "{stats}");
}

#[test]
fn content_that_is_only_stored_differently_is_not_reported_as_changed() {
    let sandbox = Sandbox::with_store();
    let hole = |len: u64| {
        let file = std::fs::File::create(sandbox.path("source/hole")).expect("creates");
        file.set_len(len).expect("grows");
    };
    let row = |n: u64| format!("{n} {}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(3);
    let rows: Vec<String> = (0..40_000).map(row).collect();
    let moved = [&rows[30_000..], &rows[..30_000]].concat();
    for (rows, zeros) in [(&rows, false), (&moved, true), (&rows, true)] {
        sandbox.write("source/dump", rows.concat());
        if zeros {
            sandbox.write("source/hole", vec![0; 1 << 20]);
        } else {
            hole(1 << 20);
        }
        sandbox.backup(["source"]);
    }
    let changes = |first: &str| {
        let output = sandbox.run(["diff", first, "latest"]).ok().stdout;
        let changed = |line: &&str| line.starts_with("M ");
        let names =
            output.lines().filter(changed).map(|line| line.rsplit('/').next().unwrap_or(""));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(changes("latest~2"), [""; 0]);
    assert_eq!(changes("latest~1"), ["dump"]);
    let mut other = vec![0; 1 << 20];
    other[(1 << 20) - 1] = 1;
    sandbox.write("source/hole", other);
    sandbox.backup(["source"]);
    assert_eq!(changes("latest~3"), ["hole"]);
    assert_eq!(changes("latest~1"), ["hole"]);
}

#[test]
fn content_that_is_only_stored_differently_is_one_version() {
    let sandbox = Sandbox::with_store();
    for is_hole in [true, false, true] {
        sandbox.write("source/file", vec![0; if is_hole { 0 } else { 1 << 20 }]);
        let file = std::fs::File::options().write(true).open(sandbox.path("source/file"));
        file.expect("opens").set_len(1 << 20).expect("grows");
        sandbox.tool("touch").args(["-d", "2020-01-01", "source/file"]).run().ok();
        sandbox.backup(["source"]);
    }
    let lines = sandbox.json(["find", "file"]);
    assert_eq!(lines[0]["snapshots"], 3, "{lines:?}");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let sandbox = small();
    let commands = [
        "--help",
        "--version",
        "backup --help",
        "snapshots",
        "ls latest",
        "find readme",
        "diff latest latest~0",
        "stats",
        "check",
        "index rebuild",
        "restore latest --target out",
        "backup source",
        "init --store other",
        "completions bash",
        "reference",
        "reference json",
        "dump latest:$PWD/source/readme",
    ];
    for command in commands {
        for output in [">/dev/full", ">&-"] {
            // A reference has no lines for programs.
            let forms = if command.starts_with("reference") { &[""][..] } else { &["", " --json"] };
            for json in forms {
                let line = format!("{FORGEKEEP} {command}{json} {output}");
                let run = sandbox.tool("sh").args(["-c", &line]);
                let outcome = run.env("FORGEKEEP_STORE", sandbox.text("store")).run();
                let words = format!("{line}: {}", outcome.all_output());
                assert!(![Some(0), None].contains(&outcome.code()), "{words}");
                assert!(outcome.stderr.contains("cannot write to standard output"), "{words}");
                let _ = std::fs::remove_dir_all(sandbox.path("other"));
            }
        }
    }
}

#[test]
fn sums_of_sparse_files_do_not_wrap() {
    let sandbox = Sandbox::in_memory();
    sandbox.run(["init"]).ok();
    std::fs::create_dir(sandbox.path("source")).expect("a directory");
    for name in ["a", "b", "c"] {
        let file = std::fs::File::create(sandbox.path("source").join(name)).expect("creates");
        file.set_len(i64::MAX as u64).expect("a large file");
    }
    sandbox.backup(["source"]);
    let stats = sandbox.json(["stats"]);
    assert_eq!(stats.last().expect("a line")["total_restore_size"], u64::MAX);
}

#[test]
fn long_names_of_instances_are_refused() {
    let sandbox = Sandbox::new();
    let name = "n".repeat(300);
    let text = format!("[stores.main]\npath = '/srv/s'\n[instances.{name}]\nkind = 'plain'\n");
    sandbox.write("forgekeep.toml", text);
    let run = sandbox.forgekeep(["config", "check"]);
    let outcome = run.env("FORGEKEEP_CONFIG", sandbox.text("forgekeep.toml")).run();
    let output = outcome.all_output();
    assert!(outcome.code() != Some(0) && output.contains("is 300 bytes long"), "{output}");
}

#[test]
fn a_dry_run_needs_no_writable_store() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.backup(["source"]);
    sandbox.remove("store/index.sqlite");
    std::fs::create_dir(sandbox.path("mount")).expect("a directory");
    let mount = "mount --bind store mount && mount -o remount,bind,ro mount";
    sandbox.tool("sh").args(["-c", mount]).run().ok();
    let run = sandbox.run(["backup", "--store", "mount", "source", "--dry-run"]);
    let real = sandbox.run(["backup", "--store", "mount", "source"]);
    sandbox.tool("umount").args(["-l", "mount"]).run().ok();
    let output = run.ok().all_output();
    assert!(output.contains("1 unmodified"), "{output}");
    real.fails(1, &["read-only"]);
}
