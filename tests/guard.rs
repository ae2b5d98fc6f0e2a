//! Sources and stores that are not mounted, and sources that lost most of their files.

use crate::support::sandbox::{Sandbox, need_root};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

/// Writes files of one byte, or other content.
fn fill(sandbox: &Sandbox, dir: &str, files: usize) {
    for at in 0..files {
        sandbox.write(&format!("{dir}/{at}"), "x");
    }
}

/// Returns the lines of `snapshots`, oldest first.
fn snapshots(sandbox: &Sandbox) -> Vec<Value> {
    sandbox.run(["snapshots", "--json"]).ok().json()
}

/// Returns the causes of the losses of each snapshot, oldest first.
fn causes(sandbox: &Sandbox) -> Vec<Vec<String>> {
    let of = |line: &Value| {
        let emptied = line["emptied"].as_array().expect("a list");
        emptied.iter().map(|of| of["cause"].as_str().expect("a word").to_owned()).collect()
    };
    snapshots(sandbox).iter().map(of).collect()
}

/// Returns the ids and parents of the snapshots, oldest first.
fn parents(sandbox: &Sandbox) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let lines = snapshots(sandbox);
    lines.iter().map(|line| (text(&line["id"]).expect("an id"), text(&line["parent"]))).collect()
}

#[test]
fn a_backup_of_an_emptied_directory_is_no_parent_and_never_the_latest() {
    let sandbox = Sandbox::with_store();
    sandbox.write("disk/dir/1", "1");
    sandbox.write("disk/2", "2");
    sandbox.run(["backup", "disk"]).ok();
    std::fs::rename(sandbox.path("disk"), sandbox.path("away")).expect("moves");
    std::fs::create_dir(sandbox.path("disk")).expect("makes");
    for _ in 0..2 {
        let outcome = sandbox.run(["backup", "disk"]).ends_with(3);
        let loud = format!("{} has no files, and had 2 files, 2 B in", sandbox.text("disk"));
        assert!(outcome.stderr.contains(&loud), "{}", outcome.all_output());
        assert!(outcome.stderr.contains("--allow-loss"), "{}", outcome.all_output());
    }
    let all = parents(&sandbox);
    assert_eq!(causes(&sandbox), [vec![], vec!["empty".to_owned()], vec!["empty".to_owned()]]);
    assert!(all[1..].iter().all(|(_, parent)| parent.as_ref() == Some(&all[0].0)), "{all:?}");
    // The good one is restored.
    let place = sandbox.at("latest", "disk");
    let outcome = sandbox.run(["restore", &place, "--target", "out"]).ok();
    assert!(outcome.stderr.contains("latest ignores snapshot"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("and 1 other before it"), "{}", outcome.stderr);
    sandbox.tool("diff").args(["-r", "away", "out"]).run().ok();
    let place = sandbox.at(&all[2].0, "disk");
    let outcome = sandbox.run(["restore", &place, "--target", "empty"]).ok();
    assert!(outcome.stderr.contains("has an EMPTIED source"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("is the last complete one"), "{}", outcome.stderr);
    sandbox.run(["restore", &place, "--target", "out", "--delete"]).fails(1, &["lost files"]);
    let listed = sandbox.run(["snapshots"]).ok().stdout;
    assert_eq!(listed.matches("(EMPTIED: ").count(), 2, "{listed}");
    // The disk is back.
    sandbox.remove("disk");
    std::fs::rename(sandbox.path("away"), sandbox.path("disk")).expect("moves");
    sandbox.run(["backup", "disk"]).ok();
    let last = parents(&sandbox).pop().expect("a snapshot");
    assert_eq!(last.1.as_ref(), Some(&all[0].0));
    let outcome = sandbox.run(["ls", "latest"]).ok();
    assert!(!outcome.stderr.contains("ignores"), "{}", outcome.stderr);
}

#[test]
fn a_loss_of_more_than_half_of_a_hundred_files_or_their_bytes_is_noticed() {
    let sandbox = Sandbox::with_store();
    fill(&sandbox, "few", 99);
    fill(&sandbox, "half", 100);
    fill(&sandbox, "files", 100);
    fill(&sandbox, "bytes", 100);
    sandbox.write("bytes/large", "x".repeat(200));
    sandbox.write("few/large", "x".repeat(1000));
    sandbox.remove("few/0");
    let sources = ["backup", "few", "half", "files", "bytes", "--json"];
    sandbox.run(sources).ok();
    for at in 0..51 {
        if at < 50 {
            sandbox.remove(format!("half/{at}"));
        }
        sandbox.remove(format!("files/{at}"));
    }
    for at in 1..98 {
        sandbox.remove(format!("few/{at}"));
    }
    sandbox.remove("few/large");
    sandbox.write("bytes/large", "x");
    let lines = sandbox.run(sources).ends_with(3).json();
    let record = lines.iter().find(|line| line["message_type"] == "summary").expect("a summary");
    let emptied = record["emptied"].as_array().expect("a list");
    let of = |name: &str| {
        let found = emptied.iter().find(|of| of["path"] == sandbox.text(name));
        found.map(|of| ["files_then", "files", "bytes_then", "bytes"].map(|key| of[key].clone()))
    };
    assert_eq!(of("few"), None);
    assert_eq!(of("half"), None);
    assert_eq!(of("files"), Some([100, 49, 100, 49].map(Value::from)));
    assert_eq!(of("bytes"), Some([101, 101, 300, 101].map(Value::from)));
    assert_eq!(emptied.len(), 2, "{record}");
    let message = record["message"].as_str().expect("a message");
    assert!(message.contains("files lost most of its data"), "{message}");
    assert_eq!(record["result"], "partial");
    // It is meant, and the new base.
    sandbox.forgekeep(sources).args(["--allow-loss"]).run().ok();
    sandbox.run(sources).ok();
    assert_eq!(causes(&sandbox).iter().map(Vec::len).collect::<Vec<_>>(), [0, 2, 0, 0]);
    let all = parents(&sandbox);
    assert_eq!(all[2].1.as_ref(), Some(&all[0].0));
    assert_eq!(all[3].1.as_ref(), Some(&all[2].0));
}

#[test]
fn housekeeping_of_git_is_no_loss() {
    let sandbox = Sandbox::with_store();
    let create = "git init -q -b main s; cd s
        for n in $(seq 60); do git commit -q --allow-empty -m $n; git branch b$n; done
        for n in $(seq 60); do echo $n | git hash-object -w --stdin >x; done";
    sandbox.tool("sh").args(["-ec", create]).run().ok();
    sandbox.run(["backup", "s"]).ok();
    sandbox.tool("sh").args(["-ec", "git -C s gc -q --prune=now"]).run().ok();
    sandbox.run(["backup", "s"]).ok();
}

#[test]
fn a_source_that_is_gone_is_marked_and_skipped_files_are_not_lost() {
    let sandbox = Sandbox::with_store();
    fill(&sandbox, "gone", 3);
    fill(&sandbox, "other/a", 60);
    fill(&sandbox, "other/b", 60);
    let sources = ["backup", "gone", "other"];
    sandbox.run(sources).ok();
    sandbox.forgekeep(sources).args(["--exclude", "other/a", "--exclude", "b/1?"]).run().ok();
    sandbox.run(sources).ok();
    sandbox.remove("gone");
    sandbox.run(sources).ends_with(3);
    let causes = causes(&sandbox);
    assert!(causes[..3].iter().all(Vec::is_empty), "{causes:?}");
    assert_eq!(causes[3], ["gone"]);
}

#[test]
fn slow_losses_are_compared_with_the_last_complete_snapshot() {
    let sandbox = Sandbox::with_store();
    fill(&sandbox, "source", 200);
    sandbox.run(["backup", "source", "later"]).ends_with(3);
    sandbox.write("later/1", "1");
    sandbox.run(["backup", "source", "later"]).ok();
    for at in 0..80 {
        sandbox.remove(format!("source/{at}"));
    }
    // Incomplete, so that it says little about the usual state.
    sandbox.remove("later");
    sandbox.run(["backup", "source", "later"]).ends_with(3);
    for at in 80..120 {
        sandbox.remove(format!("source/{at}"));
    }
    sandbox.write("later/1", "1");
    let outcome = sandbox.run(["backup", "source", "later"]).ends_with(3);
    assert!(outcome.stderr.contains("source lost most of its data"), "{}", outcome.all_output());
}

/// Gives the sandbox to another account, and makes one file of `source` unreadable for it.
fn with_unreadable_file(sandbox: &Sandbox) {
    need_root();
    sandbox.give_to_nobody("store");
    sandbox.give_to_nobody("source");
    std::fs::set_permissions(sandbox.path("source/0"), PermissionsExt::from_mode(0o000))
        .expect("changes");
}

#[test]
fn losses_since_an_incomplete_snapshot_are_noticed() {
    let sandbox = Sandbox::with_store();
    fill(&sandbox, "source", 60);
    sandbox.run(["backup", "source"]).ok();
    fill(&sandbox, "source", 400);
    with_unreadable_file(&sandbox);
    sandbox.as_nobody(["backup", "source"]).run().ends_with(3);
    std::fs::rename(sandbox.path("source"), sandbox.path("away")).expect("moves");
    fill(&sandbox, "source", 55);
    sandbox.give_to_nobody("source");
    sandbox.as_nobody(["backup", "source"]).run().ends_with(3);
    assert_eq!(causes(&sandbox), [vec![], vec![], vec!["shrunk".to_owned()]]);
    sandbox.as_nobody(["forget", "--keep-last", "5"]).run().ok();
    assert_eq!(snapshots(&sandbox).len(), 3);
}

#[test]
fn an_allowed_loss_is_not_reported_again_after_an_incomplete_snapshot() {
    let sandbox = Sandbox::with_store();
    fill(&sandbox, "source", 150);
    fill(&sandbox, "gone", 150);
    sandbox.run(["backup", "source", "gone"]).ok();
    sandbox.remove("gone");
    sandbox.run(["backup", "source", "gone", "--allow-loss"]).ends_with(3);
    sandbox.run(["backup", "source", "gone"]).ends_with(3);
    assert_eq!(causes(&sandbox), [[""; 0]; 3]);
}

#[test]
fn an_emptied_source_does_not_hide_what_others_got_since() {
    let sandbox = Sandbox::with_store();
    fill(&sandbox, "a", 60);
    fill(&sandbox, "b", 1);
    sandbox.run(["backup", "a", "b"]).ok();
    sandbox.remove("b");
    fill(&sandbox, "a", 400);
    for _ in 0..2 {
        sandbox.run(["backup", "a", "b"]).ends_with(3);
    }
    sandbox.remove("a");
    fill(&sandbox, "a", 50);
    fill(&sandbox, "b", 1);
    // The second of these backups must not be compared with the first, whose source is emptied.
    for _ in 0..2 {
        sandbox.run(["backup", "a", "b"]).ends_with(3);
    }
    let (gone, shrunk) = (vec!["gone".to_owned()], vec!["shrunk".to_owned()]);
    assert_eq!(causes(&sandbox), [vec![], gone.clone(), gone, shrunk.clone(), shrunk]);
    sandbox.run(["forget", "--keep-last", "5"]).ok();
    assert_eq!(snapshots(&sandbox).len(), 5);
}

#[test]
fn lost_repositories_are_noticed_though_their_objects_do_not_count() {
    let sandbox = Sandbox::with_store();
    let create = "mkdir s; cd s; for r in $(seq 12); do
            git init -q --bare --template= $r; cd $r
            for n in $(seq 10); do seq $n $((n + 3000)) | git hash-object -w --stdin >../x; done
            cd ..; done; rm x";
    sandbox.tool("sh").args(["-ec", create]).run().ok();
    sandbox.run(["backup", "s"]).ok();
    for repository in 4..=12 {
        sandbox.remove(format!("s/{repository}"));
    }
    sandbox.run(["backup", "s"]).ends_with(3);
    assert_eq!(causes(&sandbox), [vec![], vec!["shrunk".to_owned()]]);
}

#[test]
fn thirty_emptied_nights_never_push_out_the_good_ones() {
    let sandbox = Sandbox::with_store();
    fill(&sandbox, "source", 5);
    for _ in 0..3 {
        sandbox.run(["backup", "source"]).ok();
    }
    let good = sandbox.snapshot_ids();
    sandbox.remove("source");
    std::fs::create_dir(sandbox.path("source")).expect("makes");
    for _ in 0..30 {
        sandbox.run(["backup", "source"]).ends_with(3);
        sandbox.run(["forget", "--keep-last", "3"]).ok();
    }
    let left = sandbox.snapshot_ids();
    assert!(good.iter().all(|id| left.contains(id)), "{left:?}");
    let explained = sandbox.run(["forget", "--keep-last", "3", "--explain", "-n"]).ok().stdout;
    assert_eq!(explained.matches("its source was emptied").count(), 30, "{explained}");
    // The last good one cannot be deleted by name either.
    let [first, second, third] = &good[..] else { panic!("three") };
    sandbox.run(["forget", first, second, third]).fails(1, &["the last complete one"]);
    // Once a good one is newer, the emptied ones go.
    fill(&sandbox, "source", 5);
    sandbox.run(["backup", "source"]).ok();
    sandbox.run(["forget", "--keep-last", "3"]).ok();
    let left = sandbox.snapshot_ids();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(good.contains(&left[0]) || good.contains(&left[1]) || good.contains(&left[2]));
}

#[test]
fn a_source_whose_disk_is_not_mounted_is_noticed_even_if_files_are_below() {
    need_root();
    let sandbox = Sandbox::with_store();
    // What was there before the disk came.
    fill(&sandbox, "srv/data/dir", 3);
    let backup = |more: &str, code: i32| {
        let script = format!("{more}\nexec $FK --store store backup srv/data/dir");
        sandbox.in_mount_namespace(&script).run().ends_with(code)
    };
    let mount = |kind: &str| {
        format!("mount -t {kind} none srv/data && mkdir srv/data/dir && touch srv/data/dir/1")
    };
    backup(&mount("tmpfs"), 0);
    // Another device, as after every boot.
    backup(&mount("tmpfs"), 0);
    let outcome = backup("true", 3);
    assert!(outcome.stderr.contains("srv/data/dir is not mounted"), "{}", outcome.all_output());
    let outcome = backup(&mount("ramfs"), 3);
    assert!(outcome.stderr.contains("of another type"), "{}", outcome.all_output());
    backup(&mount("tmpfs"), 0);
    let all: Vec<String> = causes(&sandbox).concat();
    assert_eq!(all, ["unmounted", "other-file-system"]);
    // A bind mount, such as a service has, is no other disk.
    backup(&(mount("tmpfs") + " && mount --bind srv/data/dir srv/data/dir"), 0);
    backup(&mount("tmpfs"), 0);
}

#[test]
fn parts_of_an_instance_have_limits_in_the_configuration() {
    let sandbox = Sandbox::with_store();
    let configure = |all: &str, own: &str| {
        let names = ["state", "store", "part", "two"];
        let [state, store, part, two] = names.map(|name| sandbox.text(name));
        let text = format!(
            "state = '{state}'\n[stores.main]\npath = '{store}'\n[instances.i]\nkind = 'plain'\n\
             {all}\n[instances.i.parts.one]\npath = '{part}'\n{own}\n\
             [instances.i.parts.two]\npath = '{two}'\n"
        );
        sandbox.write("forgekeep.toml", text);
    };
    let backup = |code| {
        let arguments = ["backup", "--config", "forgekeep.toml", "--instance", "i", "--json"];
        let lines = sandbox.run(arguments).ends_with(code).json();
        let is_summary = |line: &&Value| line["message_type"] == "summary";
        let summary = lines.iter().find(is_summary).expect("a summary").clone();
        summary["emptied"].as_array().expect("a list").len()
    };
    configure("", "");
    fill(&sandbox, "part", 200);
    fill(&sandbox, "two", 2);
    assert_eq!(backup(0), 0);
    for at in 0..150 {
        sandbox.remove(format!("part/{at}"));
    }
    assert_eq!(backup(3), 1);
    for (all, own) in [("max-loss = '74%'", ""), ("max-loss = '90%'", "max-loss = '74%'")] {
        configure(all, own);
        assert_eq!(backup(3), 1, "{all} {own}");
    }
    configure("max-loss = '75%'", "");
    assert_eq!(backup(0), 0);
    // From 50 files to none. A limit of everything is one for nothing, too.
    sandbox.remove("part");
    std::fs::create_dir(sandbox.path("part")).expect("makes");
    assert_eq!(backup(3), 1);
    configure("max-loss = '10%'", "max-loss = '100%'");
    assert_eq!(backup(0), 0);
    configure("max-loss = '101%'", "");
    let arguments = ["backup", "--config", "forgekeep.toml", "--instance", "i"];
    let outcome = sandbox.run(arguments).ends_with(1);
    assert!(outcome.stderr.contains("`101%` is not a share"), "{}", outcome.stderr);
}

#[test]
fn sources_below_each_other_are_compared_with_what_lay_there() {
    let sandbox = Sandbox::with_store();
    fill(&sandbox, "srv", 2);
    fill(&sandbox, "srv/git", 240);
    fill(&sandbox, "srv/up", 120);
    let backup = |sources: &[&str], code| {
        sandbox.run([&["backup"], sources].concat()).ends_with(code);
        causes(&sandbox).pop().expect("a snapshot")
    };
    let remove = |dir: &str, files: std::ops::Range<usize>| {
        files.for_each(|at| sandbox.remove(format!("{dir}/{at}")));
    };
    // All are there, whichever of them are named.
    let all = ["srv", "srv/git", "srv/up"];
    for sources in [&["srv"][..], &["srv", "srv/git"], &all, &["srv/git", "srv"], &["srv"]] {
        assert!(backup(sources, 0).is_empty(), "{sources:?}");
    }
    // A move from one into another.
    assert!(backup(&all[..2], 0).is_empty());
    sandbox.tool("mv").args(["srv/up", "srv/git/up"]).run().ok();
    assert!(backup(&all[..2], 0).is_empty());
    sandbox.tool("mv").args(["srv/git/up", "srv/up"]).run().ok();
    assert!(backup(&all[..2], 0).is_empty());
    // A loss in the new one, and in one that is no longer named.
    remove("srv/git", 0..130);
    assert_eq!(backup(&["srv", "srv/git"], 3), ["shrunk"]);
    assert!(backup(&["srv", "srv/git", "--allow-loss"], 0).is_empty());
    sandbox.remove("srv/git");
    sandbox.remove("srv/up");
    assert_eq!(backup(&["srv"], 3), ["shrunk"]);
    assert_eq!(backup(&["srv", "srv/up"], 3), ["shrunk", "gone"]);
}

/// Runs a script in a mount namespace with a configuration of a store in `disk`. It names no
/// store beside it.
fn with_configured_store(
    sandbox: &Sandbox,
    keys: &str,
    script: &str,
) -> crate::support::sandbox::Run {
    let [state, store, part] = ["state", "disk/store", "part"].map(|name| sandbox.text(name));
    sandbox.write(
        "forgekeep.toml",
        format!(
            "state = '{state}'\n[stores.main]\npath = '{store}'\n{keys}\n[instances.i]\nkind = 'plain'\n\
             keep = {{ last = 1 }}\n[instances.i.parts.one]\npath = '{part}'\n"
        ),
    );
    sandbox.in_mount_namespace(script).without_env("FORGEKEEP_STORE")
}

/// Commands that open the store of the configuration.
const OPENING: [&str; 9] = [
    "init",
    "backup part",
    "backup --init --instance i",
    "snapshots",
    "check",
    "prune",
    "forget",
    "index rebuild",
    "drill i",
];

#[test]
fn an_unmounted_store_is_refused_and_nothing_is_left_there() {
    need_root();
    let sandbox = Sandbox::new();
    fill(&sandbox, "part", 3);
    std::fs::create_dir(sandbox.path("disk")).expect("makes");
    let device = |path: &std::path::Path| {
        std::os::unix::fs::MetadataExt::dev(&path.metadata().expect("a directory"))
    };
    assert_eq!(device(sandbox.root()), device("/".as_ref()), "the test needs the root file system");
    for command in OPENING {
        let script = format!("exec $FK {command} --config forgekeep.toml");
        let outcome = with_configured_store(&sandbox, "mounted = true", &script).run();
        let outcome = outcome.fails(10, &["is not mounted: it is on the root file system"]);
        assert!(outcome.stderr.contains("mount the disk"), "{command}: {}", outcome.stderr);
        let left = std::fs::read_dir(sandbox.path("disk")).expect("lists").count();
        assert_eq!(left, 0, "{command}");
    }
    let script = "mount -t tmpfs none disk && $FK init --config forgekeep.toml && \
                  $FK backup --config forgekeep.toml --instance i && \
                  $FK check --config forgekeep.toml";
    with_configured_store(&sandbox, "mounted = true", script).run().ok();
}

#[test]
fn another_store_than_the_configured_one_is_refused() {
    need_root();
    let sandbox = Sandbox::new();
    fill(&sandbox, "part", 3);
    std::fs::create_dir(sandbox.path("disk")).expect("makes");
    let wanted = "id = '0123456789abcdef'";
    for command in OPENING {
        let script = format!("exec $FK {command} --config forgekeep.toml");
        let outcome = with_configured_store(&sandbox, wanted, &script).run();
        outcome.fails(10, &["the configuration expects store 0123456789abcdef", "remove its `id`"]);
        assert_eq!(std::fs::read_dir(sandbox.path("disk")).expect("lists").count(), 0);
    }
    let lines = sandbox.run(["init", "--store", "disk/store", "--json"]).ok().json();
    let id = lines[0]["id"].as_str().expect("an id").to_owned();
    for command in &OPENING[1..] {
        let script = format!("exec $FK {command} --config forgekeep.toml");
        let outcome = with_configured_store(&sandbox, wanted, &script).run();
        outcome.fails(10, &[&format!("has store {}", &id[..16]), "mount the right disk"]);
    }
    for right in [&id[..], &id[..8]] {
        let script = "$FK backup --config forgekeep.toml --instance i && \
                      exec $FK snapshots --config forgekeep.toml";
        with_configured_store(&sandbox, &format!("id = '{right}'"), script).run().ok();
    }
}

#[test]
fn a_store_that_is_unmounted_during_a_backup_leaves_nothing_in_its_mount_point() {
    need_root();
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("store")).expect("makes");
    let script = "mount -t tmpfs none store && $FK init --store store && \
                  exec $FK backup --store store --stdin-name x --stdin-command sh -c \
                  'umount -l store; head -c 1000000 /dev/urandom'";
    sandbox.in_mount_namespace(script).run().ends_with(1);
    let left: Vec<_> = std::fs::read_dir(sandbox.path("store")).expect("lists").collect();
    assert!(left.is_empty(), "{left:?}");
}
