//! Retention: rules, named snapshots, pins and tags.

use crate::support::gitlab::{Builder, database};
use crate::support::instance::{backup, configure, configured};
use crate::support::sandbox::{Dice, Sandbox, need_root};
use crate::support::stores;
use serde_json::Value;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use store::backend::Local;
use store::backend::faulty::{Faulty, Operation};
use store::backup::{Backup, Likeness, Sources};
use store::codec::Codec;
use store::entry::Time;
use store::forget::Permitted;
use store::id::SnapshotId;
use store::observe::Silent;
use store::snapshot::{Instance, Snapshot};
use store::store::{Purpose, Store};

/// A store with records of real backups at chosen times.
struct History {
    sandbox: Sandbox,
    template: Snapshot,
}

impl History {
    /// Makes a store without snapshots, and with the data of one.
    fn new() -> History {
        let sandbox = Sandbox::with_store();
        sandbox.write("source/file", "content".repeat(100));
        sandbox.write("source/other", "other");
        sandbox.backup(["source"]);
        let id = &sandbox.snapshot_ids()[0];
        let id = SnapshotId::from_hex(id).expect("an id");
        let (template, _) =
            Snapshot::read(&Local::new(sandbox.path("store")), Codec::new(3), &id).expect("reads");
        sandbox.remove(format!("store/snapshots/{id}"));
        History { sandbox, template }
    }

    /// Adds a snapshot that began at this time, such as `2026-03-01T02:00:00Z`. Returns its id.
    fn add(&self, at: &str, change: impl FnOnce(&mut Snapshot)) -> String {
        let at: jiff::Timestamp = at.parse().expect("a time");
        let time = |more| Time { seconds: at.as_second() + more, nanoseconds: 0 };
        let mut record = self.template.clone();
        (record.start, record.end) = (time(0).into(), time(60).into());
        change(&mut record);
        let backend = Local::new(self.sandbox.path("store"));
        record.write(&backend, Codec::new(3)).expect("writes").to_string()
    }

    /// Adds a snapshot at 2 o'clock of each of these days of March 2026, and returns their ids.
    fn nights(&self, days: std::ops::RangeInclusive<u32>) -> Vec<String> {
        days.map(|day| self.add(&format!("2026-03-{day:02}T02:00:00Z"), |_| {})).collect()
    }

    /// Returns the days in March of all snapshots, oldest first.
    fn days(&self) -> Vec<u32> {
        let day =
            |line: &Value| line["time"].as_str().expect("a time")[8..10].parse().expect("a day");
        self.sandbox.json(["snapshots"]).iter().map(day).collect()
    }

    /// Checks all data, and restores the newest snapshot.
    fn is_intact(&self) {
        self.sandbox.assert_clean();
        self.restores("latest");
    }

    fn restores(&self, snapshot: &str) {
        let place = self.sandbox.at(snapshot, "source");
        self.sandbox.restore(&place, "out");
        self.sandbox.tool("diff").args(["-r", "source", "out"]).run().ok();
        self.sandbox.remove("out");
    }
}

fn of_instance(name: &str) -> impl FnOnce(&mut Snapshot) {
    let name = name.to_owned();
    |snapshot| snapshot.instance = Some(Instance { name, kind: "plain".into(), is_complete: true })
}

fn incomplete(snapshot: &mut Snapshot) {
    snapshot.unreadable_count = 1;
}

#[test]
fn rules_delete_the_others_and_say_why() {
    let history = History::new();
    let ids = history.nights(1..=31);
    let sandbox = &history.sandbox;
    // 30 March 2026 is a Monday.
    let rules = ["--keep-daily", "3", "--keep-weekly", "3", "--keep-monthly", "1"];
    let forget = |more: &[&str]| {
        let run = sandbox.run(["forget"].iter().chain(&rules).chain(more));
        run.ok()
    };
    let dry = forget(&["--explain", "--dry-run"]).stdout;
    let lines: Vec<&str> = dry.lines().collect();
    assert!(lines[0].ends_with(": 31 snapshots, 4 stay, 27 go"), "{dry}");
    assert_eq!(lines[1], "  2026-03");
    for (line, day, id, why) in [
        (2, "31 Tue", &ids[30], "stays  daily 1 of 3, weekly 1 of 3, monthly 1 of 1"),
        (3, "30 Mon", &ids[29], "stays  daily 2 of 3"),
        (4, "29 Sun", &ids[28], "stays  daily 3 of 3, weekly 2 of 3"),
        (5, "28 Sat", &ids[27], "goes   no rule keeps it"),
        (11, "22 Sun", &ids[21], "stays  weekly 3 of 3"),
    ] {
        assert_eq!(lines[line], format!("    {day}  02:00:00  {}  {why}", &id[..8]), "{dry}");
    }
    let last = lines.last().expect("a result");
    assert_eq!(*last, "would delete 27 snapshots of store, 4 stay");
    assert_eq!(history.days().len(), 31);

    let done = forget(&[]).stdout;
    assert!(done.ends_with("deleted 27 snapshots of store, 4 stay\n"), "{done}");
    assert_eq!(history.days(), [22, 29, 30, 31]);
    assert_eq!(sandbox.newest(), ids[30]);
    history.is_intact();
    // Once more changes nothing.
    assert!(forget(&["--quiet"]).stdout.starts_with("deleted 0 snapshots"));
    sandbox.run(["ls", &ids[0][..12]]).fails(1, &["no snapshot"]);
    // The chunks are used by the next backup.
    let record = sandbox.backup(["source"]);
    assert_eq!(record["data_added"], 0, "{record}");
}

#[test]
fn json_has_a_decision_for_each_snapshot() {
    let history = History::new();
    let ids = history.nights(1..=3);
    let arguments =
        ["forget", "--keep-last", "1", "--keep-yearly", "unlimited", "--keep-within", "24h"];
    let lines = history.sandbox.json(arguments.iter().chain(&["--dry-run"]));
    let found: Vec<(&str, bool)> = lines[..3]
        .iter()
        .map(|line| (line["id"].as_str().expect("an id"), line["stays"] == true))
        .collect();
    // The period of the newest has no other snapshot.
    assert_eq!(found, [(&*ids[2], true), (&ids[1], true), (&ids[0], true)]);
    let of = |line: &Value| -> Vec<String> {
        let reasons = line["reasons"].as_array().expect("reasons");
        reasons.iter().map(|of| format!("{} {} {}", of["reason"], of["place"], of["of"])).collect()
    };
    let wanted = ["\"last\" 1 1", "\"yearly\" 1 null", "\"within\" null null"];
    assert_eq!(of(&lines[0]), wanted);
    assert_eq!(of(&lines[2]), ["\"yearly\" 2 null"]);
    assert_eq!((&lines[0]["day"], &lines[0]["counts"]), (&"2026-03-03".into(), &true.into()));
    let summary = &lines[3];
    assert_eq!((&summary["forgotten"], &summary["dry_run"]), (&0.into(), &true.into()));
    let lines = history.sandbox.json(["forget", "--keep-last", "1"]);
    assert_eq!((&lines[3]["forgotten"], &lines[3]["stay"]), (&2.into(), &1.into()));
    assert_eq!(lines[2]["reasons"], serde_json::json!([]));
}

#[test]
fn days_are_those_of_this_machine() {
    let history = History::new();
    for at in ["2026-03-01T22:30:00Z", "2026-03-01T23:30:00Z", "2026-03-02T22:30:00Z"] {
        history.add(at, |_| {});
    }
    for (zone, stay) in [("UTC", [false, true, true]), ("Europe/Berlin", [true, false, true])] {
        let run = history.sandbox.forgekeep(["forget", "--keep-daily", "2", "-n", "--json"]);
        let mut lines = run.env("TZ", zone).run().ok().json();
        lines.truncate(3);
        lines.reverse();
        let stays: Vec<bool> = lines.iter().map(|line| line["stays"] == true).collect();
        assert_eq!(stays, stay, "{zone}");
    }
}

#[test]
fn incomplete_and_future_snapshots_push_nothing_out() {
    let history = History::new();
    let old = history.nights(1..=3);
    let broken = history.add("2026-03-02T12:00:00Z", incomplete);
    let newest = history.add("2026-03-04T02:00:00Z", incomplete);
    let sandbox = &history.sandbox;
    let run = sandbox.run(["forget", "--keep-last", "2", "--explain"]).ok();
    assert!(run.stdout.contains("stays  incomplete, no complete one is newer"), "{}", run.stdout);
    assert!(run.stdout.contains("goes   incomplete\n"), "{}", run.stdout);
    assert_eq!(sandbox.snapshot_ids(), [&*old[1], &old[2], &newest]);
    assert!(!sandbox.has(format!("store/snapshots/{broken}")));
    let future = history.add("2130-01-01T00:00:00Z", |_| {});
    let words = ["is dated in the future", &format!("`forgekeep forget {}`", &future[..8])];
    let run = sandbox.run(["forget", "--keep-last", "1"]).ends_with(3);
    assert!(words.iter().all(|word| run.stderr.contains(word)), "{}", run.stderr);
    assert_eq!(sandbox.snapshot_ids(), [&*old[2], &newest, &future]);
    sandbox.run(["forget", &future]).ok();
    assert_eq!(sandbox.snapshot_ids(), [&*old[2], &newest]);
    // An unreadable record may be anything.
    sandbox.write(&format!("store/snapshots/{}", "0".repeat(64)), "damaged");
    sandbox.run(["forget", "--keep-last", "1"]).ends_with(3);
}

#[test]
fn a_clock_that_was_set_back_deletes_nothing() {
    let history = History::new();
    let ids = history.nights(1..=3);
    let parent = SnapshotId::from_hex(&ids[2]).expect("an id");
    // It began an hour before its parent ended.
    history.add("2026-03-03T01:00:00Z", |snapshot| {
        snapshot.parent = Some(store::snapshot::Id(*parent.as_bytes()));
    });
    let run = history.sandbox.run(["forget", "--keep-last", "1", "--explain"]).ok();
    assert!(run.stderr.contains("the clock was set back during snapshot"), "{}", run.stderr);
    assert!(run.stdout.contains("stays  the clock was set back"), "{}", run.stdout);
    assert_eq!(history.days(), [3, 3]);
}

#[test]
fn named_snapshots_go_except_the_last_and_pinned_ones() {
    let history = History::new();
    let sandbox = &history.sandbox;
    let plain = history.nights(1..=4);
    let of_gitlab = history.add("2026-03-05T02:00:00Z", of_instance("gitlab"));
    sandbox.run(["pin", &plain[0], &plain[1]]).ok();
    let refused = sandbox.run(["forget", &plain[0], &plain[2]]);
    refused.fails(1, &["is pinned", &format!("`forgekeep unpin {}`", &plain[0][..8])]);
    let words = ["is the last complete one of instance gitlab on ", "make another backup first"];
    sandbox.run(["forget", "gitlab@latest", &plain[2]]).fails(1, &words);
    sandbox.run(["forget", "gitlab@latest", "--dry-run"]).fails(1, &words);
    assert_eq!(sandbox.snapshot_ids().len(), 5);
    let dry = sandbox.run(["forget", &plain[2], "--dry-run"]).ok();
    assert!(dry.stdout.ends_with("would delete 1 snapshot of store\n"), "{}", dry.stdout);
    let done = sandbox.run(["forget", &plain[2], &plain[3]]).ok();
    assert!(done.stdout.ends_with("deleted 2 snapshots of store\n"), "{}", done.stdout);
    assert_eq!(history.days(), [1, 2, 5]);
    // Pins hold against rules, too.
    sandbox.run(["forget", "--keep-last", "1"]).ok();
    assert_eq!(history.days(), [1, 2, 5]);
    sandbox.run(["unpin", &plain[0], &plain[1]]).ok();
    sandbox.run(["forget", "--keep-last", "1"]).ok();
    assert_eq!(sandbox.snapshot_ids(), [&*plain[1], &of_gitlab]);
    assert_eq!(std::fs::read_dir(sandbox.path("store/pins")).expect("lists").count(), 2);
    history.sandbox.run(["check"]).ok();
}

#[test]
fn what_stops_a_prune_can_be_deleted_by_its_id() {
    let history = History::new();
    let sandbox = &history.sandbox;
    let plain = history.nights(1..=3);
    let of_gitlab = history.add("2026-03-05T02:00:00Z", of_instance("gitlab"));
    sandbox.write(&format!("store/snapshots/{}", plain[1]), "damage");
    sandbox.run(["prune"]).fails(1, &["no copy of its record is intact", "forgekeep forget"]);
    // Rules leave it.
    sandbox.run(["forget", "--keep-last", "9"]).ends_with(3);
    let short = &plain[1][..8];
    let dry = sandbox.run(["forget", short, "--dry-run", "--explain"]).ok();
    assert!(dry.stdout.contains("its record is damaged"), "{}", dry.stdout);
    assert!(sandbox.has(format!("store/snapshots/{}", plain[1])));
    let done = sandbox.run(["forget", &plain[1], &plain[0]]).ok();
    assert!(done.stdout.ends_with("deleted 2 snapshots of store\n"), "{}", done.stdout);
    sandbox.run(["prune"]).ok();
    let words = ["is the last complete one of instance gitlab on ", "--allow-last"];
    sandbox.run(["forget", &of_gitlab]).fails(1, &words);
    sandbox.run(["forget", &of_gitlab, "--allow-last"]).ok();
    sandbox.run(["forget", "--allow-last", "--keep-last", "1"]).ends_with(2);
    sandbox.run(["prune"]).ok();
    assert_eq!(sandbox.snapshot_ids(), [&*plain[2]]);
    history.is_intact();
}

#[test]
fn groups_are_decided_by_themselves() {
    let history = History::new();
    let sandbox = &history.sandbox;
    history.nights(1..=2);
    for (day, host) in [(3, "db"), (4, "db"), (5, "web")] {
        let at = format!("2026-03-{day:02}T02:00:00Z");
        history.add(&at, |snapshot| {
            snapshot.host = host.into();
            of_instance("gitlab")(snapshot);
        });
    }
    history.add("2026-03-06T02:00:00Z", |snapshot| {
        snapshot.host = "db".into();
        // The paths of an instance may change.
        snapshot.paths = vec![b"/elsewhere".to_vec().into()];
        of_instance("gitlab")(snapshot);
    });
    let stay = |more: &[&str]| -> Vec<String> {
        let arguments = ["forget", "--keep-last", "1", "--dry-run", "--json"];
        let lines = sandbox.run(arguments.iter().chain(more)).ok().json();
        let staying = lines.iter().filter(|line| line["stays"] == true);
        let mut days: Vec<String> =
            staying.map(|line| line["day"].as_str().expect("a day")[8..].to_owned()).collect();
        days.sort_unstable();
        days
    };
    assert_eq!(stay(&[]), ["02", "05", "06"]);
    assert_eq!(stay(&["--instance", "gitlab", "--host", "db"]), ["06"]);
    assert_eq!(stay(&["--host", "web"]), ["05"]);
    // Each source keeps its newest snapshot in a wider group.
    assert_eq!(stay(&["--group-by", "instance"]), ["02", "05", "06"]);
    let run =
        sandbox.run(["forget", "--keep-last", "1", "-n", "--explain", "--group-by", "instance"]);
    assert!(run.ok().stdout.contains("stays  newest complete one"));
    sandbox.run(["forget", "--keep-last", "1", "--group-by", "day"]).ends_with(2);
}

#[test]
fn the_configuration_has_rules_for_each_instance() {
    let history = History::new();
    let sandbox = &history.sandbox;
    for day in 1..=4 {
        for name in ["a", "b", "c"] {
            history.add(&format!("2026-03-{day:02}T02:00:00Z"), of_instance(name));
        }
    }
    history.nights(1..=2);
    let configure = |keep: &str| {
        let instance = |name: &str| format!("[instances.{name}]\nkind = 'plain'\nroot = '/srv'\n");
        let store = format!("[stores.main]\npath = '{}'\n", sandbox.text("store"));
        let text = [store, instance("a"), keep.into(), "\n".into(), instance("b")].concat();
        sandbox.write("forgekeep.toml", text);
    };
    let forget = |arguments: &[&str]| {
        let config = ["forget", "--config", "forgekeep.toml"];
        sandbox.run(config.iter().chain(arguments))
    };
    configure("");
    forget(&[]).fails(1, &["no instance has some: nothing is deleted", "keep = { daily = 14 }"]);
    sandbox.run(["forget"]).fails(1, &["no rules given: nothing is deleted", "--keep-daily 14"]);
    configure("keep = { last = 1, daily = 2, within = '1h', tags = ['x'] }");
    let none = ["instance b has no rules: nothing is deleted", "--keep-daily 14"];
    forget(&["--instance", "b"]).fails(1, &none);
    forget(&["--instance", "c"]).fails(1, &["no instance c is configured"]);
    let done = forget(&[]).ok().stdout;
    assert!(done.ends_with("deleted 2 snapshots of store, 2 stay\n"), "{done}");
    assert_eq!(history.sandbox.json(["snapshots", "--instance", "a"]).len(), 2);
    assert_eq!(history.sandbox.json(["snapshots"]).len(), 12);
    let done = forget(&["--instance", "a", "--keep-last", "1"]).ok().stdout;
    assert!(done.ends_with("deleted 1 snapshot of store, 1 stay\n"), "{done}");
    for (keep, words) in [
        ("keep = { dayly = 2 }", "did you mean `daily`?"),
        ("keep = { daily = -2 }", "expected a number of snapshots or \"unlimited\""),
        ("keep = { within = 7 }", "key `keep`"),
        ("keep = { within = '7w' }", "`7w` is not a period such as 30d"),
    ] {
        configure(keep);
        let run = forget(&[]).ends_with(1);
        assert!(run.stderr.contains(words), "{}", run.stderr);
    }
}

#[test]
fn rules_of_the_configuration_hold_for_the_store_of_the_instance() {
    let history = History::new();
    let sandbox = &history.sandbox;
    for day in 1..=3 {
        history.add(&format!("2026-03-{day:02}T02:00:00Z"), of_instance("a"));
    }
    let root = sandbox.root().display();
    let text = format!(
        "[stores.main]\npath = '{root}/main'\n[stores.archive]\npath = '{root}/store'\n\
         [instances.a]\nkind = 'plain'\nroot = '/srv'\nstore = 'main'\nkeep = {{ last = 1 }}\n"
    );
    sandbox.write("forgekeep.toml", text);
    let forget = ["forget", "--config", "forgekeep.toml"];
    sandbox.run(forget).fails(1, &["no instance of this store has some", "--keep-daily"]);
    let named = sandbox.forgekeep(forget).args(["--instance", "a"]).run();
    named.fails(1, &["the rules of instance a are for its own store", "--keep-"]);
    assert_eq!(history.days(), [1, 2, 3]);
    let text = String::from_utf8(sandbox.read("forgekeep.toml")).expect("text");
    sandbox.write("forgekeep.toml", text.replace("store = 'main'", "store = 'archive'"));
    sandbox.run(forget).ok();
    assert_eq!(history.days(), [3]);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let history = History::new();
    let ids = history.nights(1..=2);
    for (arguments, words) in [
        (&["--keep-last", "0"][..], "these rules keep nothing"),
        (&["--keep-last", "x"], "`x` is not a number of snapshots; write 7 or unlimited"),
        (&["--keep-within", "7"], "`7` is not a period such as 30d"),
        (&[&ids[0], "--keep-last", "1"], "SNAPSHOT and rules exclude each other"),
        (&["yesterday"], "does not name a snapshot"),
        (&["--keep-tag", ""], "it is empty; omit the option"),
        (&["--keep-last", "1", "--host", ""], "it is empty; omit the option"),
        (&["--keep-last", "1", "--tag", ""], "it is empty; omit the option"),
        (&["--keep-last", "1", "--instance", ""], "it is empty; omit the option"),
    ] {
        let run = history.sandbox.run(["forget"].iter().chain(arguments)).ends_with(2);
        assert!(run.stderr.contains(words), "{}", run.stderr);
    }
    history.sandbox.run(["forget", "ffffffff"]).fails(1, &["no snapshot ffffffff"]);
    history.sandbox.run(["tag", "latest"]).ends_with(2);
    let control = history.sandbox.run(["tag", "latest", "--add", "a\u{1b}"]).ends_with(2);
    assert!(control.stderr.contains("it contains control characters"), "{}", control.stderr);
    let both = ["tag", "latest", "--add", "a", "--remove", "a"];
    history.sandbox.run(both).fails(2, &["tag a is added and removed"]);
    history.sandbox.remove("store");
    history.sandbox.run(["forget", "--keep-last", "1"]).fails(10, &["no store at"]);
    assert!(!history.sandbox.has("store"));
}

#[test]
fn tags_and_pins_are_seen_by_all_commands() {
    let history = History::new();
    let sandbox = &history.sandbox;
    let tagged = |snapshot: &mut Snapshot| snapshot.tags = vec!["nightly".into()];
    let ids: Vec<String> =
        (1..=3).map(|day| history.add(&format!("2026-03-0{day}T02:00:00Z"), tagged)).collect();
    let record = sandbox.read(format!("store/snapshots/{}", ids[0]));
    let done = sandbox.run(["tag", &ids[0], "--add", "release", "--remove", "nightly"]).ok();
    let time = "2026-03-01 02:00:00";
    assert_eq!(done.stdout, format!("changed: {} of {time}  [release]\n", &ids[0][..8]));
    let again = sandbox.json(["tag", &ids[0], "--add", "release"]);
    assert_eq!(again[0]["changed"], false);
    assert_eq!(again[0]["tags"], serde_json::json!(["release"]));
    assert_eq!(sandbox.read(format!("store/snapshots/{}", ids[0])), record);
    assert_eq!(sandbox.json(["pin", "latest~2"])[0]["is_pinned"], true);

    let shown = sandbox.run(["snapshots"]).ok().stdout;
    let line = shown.lines().find(|line| line.starts_with(&ids[0][..8])).expect("is listed");
    assert!(line.ends_with("  [release]  (pinned)"), "{line}");
    let lines = sandbox.json(["snapshots", "--tag", "release"]);
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["id"], &lines[0]["is_pinned"]), (&(*ids[0]).into(), &true.into()));
    assert_eq!(sandbox.json(["snapshots", "--tag", "nightly"]).len(), 2);
    let chosen = |tag: &str| {
        let lines = sandbox.json(["ls", "latest", "--tag", tag]);
        lines.last().expect("a summary")["snapshot"].as_str().expect("an id").to_owned()
    };
    assert_eq!([chosen("release"), chosen("nightly")], [&*ids[0], &ids[2]]);
    sandbox.run(["ls", &ids[0], "--tag", "release"]).ok();
    sandbox.run(["ls", &ids[0], "--tag", "nightly"]).fails(1, &["does not match --tag nightly"]);
    sandbox.run(["unpin", &ids[0]]).ok();
    sandbox.run(["forget", "--keep-last", "1", "--keep-tag", "release"]).ok();
    assert_eq!(history.days(), [1, 3]);
    history.is_intact();

    // A tag that cannot be read protects the snapshot from rules about tags.
    let dir = sandbox.path("store/tags");
    let names = std::fs::read_dir(dir).expect("lists").map(|name| name.expect("a name").path());
    let added = names.filter(|path| !path.to_string_lossy().ends_with("-removed"));
    added.for_each(|path| std::fs::write(path, "damaged").expect("writes"));
    let run = sandbox.run(["forget", "--keep-last", "1", "--keep-tag", "x"]).ends_with(3);
    assert!(run.stderr.contains("a snapshot may lack a tag"), "{}", run.stderr);
    assert!(sandbox.has(format!("store/snapshots/{}", ids[0])));
    sandbox.run(["snapshots"]).ends_with(3);
    sandbox.run(["forget", "--keep-last", "1"]).ends_with(3);
    assert_eq!(history.days(), [3]);
    for dir in ["store/tags", "store/pins"] {
        assert_eq!(std::fs::read_dir(sandbox.path(dir)).expect("lists").count(), 0, "{dir}");
    }
}

#[test]
fn unreadable_tags_and_pins_hide_no_snapshot_and_stop_a_deletion() {
    for dir in ["tags", "pins"] {
        let history = History::new();
        let sandbox = &history.sandbox;
        let ids = history.nights(1..=2);
        // A file instead of the directory.
        sandbox.write(&format!("store/{dir}"), "");
        let shown = sandbox.run(["snapshots"]).ends_with(3);
        assert!(shown.stderr.contains("tags and pins are unknown"), "{}", shown.stderr);
        assert!(ids.iter().all(|id| shown.stdout.contains(&id[..8])), "{}", shown.stdout);
        sandbox.run(["ls", "latest"]).ok();
        let words = format!("cannot read {dir} of the store");
        sandbox.run(["forget", "--keep-last", "1"]).fails(1, &[&words, "check the disk"]);
        sandbox.run(["forget", &ids[0]]).fails(1, &[&words]);
        sandbox.remove(format!("store/{dir}"));
        assert_eq!(sandbox.snapshot_ids(), [&*ids[0], &ids[1]]);
    }
}

#[test]
fn a_killed_forget_leaves_snapshots_that_restore() {
    for fail_at in 0.. {
        let history = History::new();
        let sandbox = &history.sandbox;
        let ids = history.nights(1..=3);
        for id in &ids {
            sandbox.run(["tag", id, "--add", "x"]).ok();
        }
        let count = AtomicUsize::new(0);
        let fault = move |operation: Operation, _: &str| {
            let is_now = operation == Operation::Remove && count.fetch_add(1, Relaxed) >= fail_at;
            if is_now { Err(io::Error::other("killed")) } else { Ok(()) }
        };
        let backend = Faulty::new(Local::new(sandbox.path("store")), Arc::new(fault));
        let workspaces = sandbox.path("workspaces");
        let observer = Arc::new(Silent::default());
        let store = Store::open_backend(Arc::new(backend), &workspaces, Purpose::Write, observer);
        let wanted: Vec<SnapshotId> =
            ids[..2].iter().map(|id| SnapshotId::from_hex(id).expect("an id")).collect();
        let now = Time { seconds: 4_000_000_000, nanoseconds: 0 };
        let result = store.expect("opens").forget(&wanted, Permitted::default(), now, |_| {});
        for id in sandbox.snapshot_ids() {
            history.restores(&id);
        }
        history.is_intact();
        sandbox.run(["forget", "--keep-last", "1"]).ok();
        assert_eq!(sandbox.snapshot_ids(), [&*ids[2]], "{fail_at}");
        let tags = std::fs::read_dir(sandbox.path("store/tags")).expect("lists").count();
        assert_eq!(tags, 1, "{fail_at}");
        if result.is_ok() {
            assert_eq!(fail_at, 4);
            return;
        }
    }
}

#[test]
fn a_backup_whose_parent_is_deleted_loses_nothing() {
    let sandbox = Sandbox::with_store();
    for number in 0..40 {
        sandbox.write(&format!("source/{number}"), format!("{number} ").repeat(2000));
    }
    sandbox.backup(["source"]);
    sandbox.write("source/0", "changed ".repeat(2000));
    sandbox.backup(["source"]);
    let parent = sandbox.newest();
    sandbox.write("source/1", "changed, too ".repeat(2000));
    let store = stores::open(&sandbox.path("store"), Purpose::Write);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut options = stores::backup_options();
    options.about.host = host;
    let paths = vec![sandbox.path("source")];
    let mut backup = Backup::begin(&store, &options, Likeness::of_paths(&paths)).expect("begins");
    sandbox.run(["forget", &parent]).ok();
    backup.paths(&Sources { paths, ..Sources::default() }).expect("reads");
    let report = backup.finish(None).expect("finishes");
    let id = report.snapshot.expect("a snapshot").to_string();
    assert_eq!(report.parent.map(|id| id.to_string()), Some(parent));
    assert!(report.statistics.files_unmodified >= 38, "{:?}", report.statistics);
    sandbox.restore(&sandbox.at(&id, "source"), "out");
    sandbox.tool("diff").args(["-r", "source", "out"]).run().ok();
    // The parent was not whole any more, so the next backup looks up every chunk.
    let id = SnapshotId::from_hex(&id).expect("an id");
    assert!(!store.index().is_whole(&id).expect("asks"));
    let next = stores::back_up(&store, &[&sandbox.path("source")], &options).expect("succeeds");
    assert_eq!((next.parent, next.statistics.files_unmodified), (Some(id), 40));
    assert_eq!(next.statistics.chunks_new, 0);
    assert!(store.index().is_whole(&next.snapshot.expect("a snapshot")).expect("asks"));
}

#[test]
fn an_explanation_has_the_bytes_that_a_prune_frees_and_nothing_else_needs() {
    let sandbox = Sandbox::with_store();
    let mut dice = Dice::new(18);
    let noise: Vec<Vec<u8>> =
        [300_000, 500_000, 700_000, 200_000].map(|len| dice.bytes(len)).into();
    // Two snapshots that go share a file, and one has a file of its own.
    sandbox.write("source/stays", &noise[3]);
    sandbox.write("source/shared", &noise[0]);
    sandbox.write("source/first", &noise[1]);
    sandbox.backup(["source"]);
    sandbox.remove("source/first");
    sandbox.write("source/second", &noise[2]);
    sandbox.backup(["source"]);
    sandbox.remove("source/shared");
    sandbox.remove("source/second");
    sandbox.backup(["source"]);
    let disk = || {
        let lines = sandbox.run(["prune", "--dry-run", "--json"]).ok().json();
        lines.iter().find_map(|line| line["segments"]["bytes"].as_u64()).expect("bytes")
    };
    let before = disk();
    let rules = ["forget", "--keep-last", "1", "--explain"];
    let lines = sandbox.forgekeep(rules).args(["--dry-run", "--json"]).run().ok().json();
    let own: Vec<Option<u64>> = lines
        .iter()
        .filter(|line| line["message_type"] == "decision")
        .map(|line| line["bytes_own"].as_u64())
        .collect();
    let [None, Some(second), Some(first)] = own[..] else { panic!("{lines:?}") };
    assert!((700_000..710_000).contains(&second) && (500_000..510_000).contains(&first), "{own:?}");
    let total = lines.iter().find_map(|line| line["bytes_freed"].as_u64()).expect("a total");
    assert!((1_500_000..1_520_000).contains(&total), "{total}");
    // Without --explain, nothing is computed.
    let plain = sandbox.run(["forget", "--keep-last", "1", "--dry-run", "--json"]).ok().json();
    assert!(plain.iter().all(|line| line["bytes_freed"].is_null()), "{plain:?}");
    let text = sandbox.run(rules).ok().stdout;
    assert!(text.contains("a prune can free 1.4 MiB") && text.contains(" of its own"), "{text}");
    sandbox.run(["prune"]).ok();
    let freed = before - disk();
    assert!(freed.abs_diff(total) < 20_000, "{freed} {total}");
}

#[test]
fn an_explanation_names_the_projects_that_no_snapshot_has_any_more() {
    need_root();
    let gitlab = Builder::new().projects(4).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    backup(&sandbox).run().ok();
    // Without the rows that name it.
    let tables = ["project_repositories", "project_wiki_repositories", "fork_network_members"];
    let rows = tables.map(|table| format!("delete from {table} where project_id = 4;")).concat();
    let sql = format!(
        "set session_replication_role = replica; {rows} delete from projects where id = 4;"
    );
    gitlab.postgres.sql(database::MAIN, &sql);
    for _ in 0..2 {
        backup(&sandbox).run().ok();
    }
    let rules = ["forget", "--instance", "forge", "--keep-last", "1", "--explain", "--dry-run"];
    let lines = configured(&sandbox, rules).args(["--json"]).run().ok().json();
    let lost: Vec<&Value> = lines
        .iter()
        .filter(|line| line["message_type"] == "decision")
        .map(|line| &line["projects_lost"])
        .collect();
    let [stays, second, first] = lost[..] else { panic!("{lines:?}") };
    assert!(stays.is_null() && *second == Value::Array(Vec::new()), "{lines:?}");
    let [path] = &first.as_array().expect("a list")[..] else { panic!("{first}") };
    let text = configured(&sandbox, rules).run().ok().stdout;
    let named = format!("in no other snapshot: {}\n", path.as_str().expect("a path"));
    assert!(text.contains(&named), "{text}");
}
