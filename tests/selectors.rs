//! Choice of snapshots: forms of SNAPSHOT, filters, ambiguity, days, and the store of a configuration.

use crate::support::sandbox::{FORGEKEEP, Sandbox};
use std::collections::{BTreeMap, BTreeSet};
use store::backend::Local;
use store::codec::Codec;
use store::entry::Time;
use store::id::SnapshotId;
use store::snapshot::{Instance, Snapshot};

/// A snapshot to write.
struct Wanted {
    /// Start, as `2025-11-20T02:00:00Z`.
    at: &'static str,
    host: &'static str,
    /// Source paths, unless it is an instance.
    paths: &'static [&'static str],
    instance: Option<&'static str>,
    tags: &'static [&'static str],
}

const PLAIN: Wanted =
    Wanted { at: "", host: "web", paths: &["/srv/git"], instance: None, tags: &[] };
const GITLAB: Wanted = Wanted { paths: &["/etc/gitlab"], instance: Some("gitlab"), ..PLAIN };

/// Creates a store with the record of a backup, and returns it as a template. The store has no
/// snapshot yet.
fn template(sandbox: &Sandbox) -> Snapshot {
    sandbox.write("source/file", "content");
    sandbox.write("source/other", "content");
    sandbox.backup(["source"]);
    let id = &sandbox.snapshot_ids()[0];
    let id = SnapshotId::from_hex(id).expect("an id");
    let (backend, codec) = (Local::new(sandbox.path("store")), Codec::new(3));
    let (record, _) = Snapshot::read(&backend, codec, &id).expect("reads");
    sandbox.remove(format!("store/snapshots/{id}"));
    record
}

/// Writes a snapshot and returns its id.
fn write(sandbox: &Sandbox, template: &Snapshot, wanted: &Wanted) -> String {
    let at: jiff::Timestamp = wanted.at.parse().expect("a time");
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let record = Snapshot {
        start: Time { seconds: at.as_second(), nanoseconds: 0 }.into(),
        host: wanted.host.into(),
        paths: wanted.paths.iter().map(|path| path.as_bytes().to_vec().into()).collect(),
        tags: texts(wanted.tags),
        instance: wanted.instance.map(|name| Instance {
            name: name.into(),
            kind: "plain".into(),
            is_complete: true,
        }),
        ..template.clone()
    };
    let backend = Local::new(sandbox.path("store"));
    record.write(&backend, Codec::new(3)).expect("writes").to_string()
}

/// Returns the id of the snapshot that `ls` with these arguments shows.
fn chosen(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let lines = sandbox.json(["ls"].iter().chain(arguments));
    let summary = lines.last().expect("a summary");
    assert_eq!((&summary["message_type"], &summary["store"]), (&"summary".into(), &"store".into()));
    summary["snapshot"].as_str().expect("an id").to_owned()
}

#[test]
fn one_source_needs_no_choice() {
    let sandbox = Sandbox::with_store();
    let template = template(&sandbox);
    let ids = ["2025-11-18T02:00:00Z", "2025-11-20T02:00:00Z", "2025-11-20T22:30:00Z"]
        .map(|at| write(&sandbox, &template, &Wanted { at, ..GITLAB }));
    for (arguments, wanted) in [
        (&["latest"][..], 2),
        (&["latest~1"], 1),
        (&["latest~2"], 0),
        (&["gitlab@latest"], 2),
        (&["gitlab@latest~2"], 0),
        (&["2025-11-20"], 2),
        (&["gitlab@2025-11-18"], 0),
        (&["latest", "--host", "web"], 2),
        (&["latest", "--path", "/etc"], 2),
        (&[&ids[1][..10]], 1),
        (&[&ids[1].to_uppercase()], 1),
        (&[&format!("gitlab@{}", &ids[1][..10])], 1),
    ] {
        assert_eq!(chosen(&sandbox, arguments), ids[wanted], "{arguments:?}");
    }
    // An instance stays the same if its paths change.
    let paths = &["/etc/gitlab", "/srv/data"];
    let moved = Wanted { at: "2025-11-21T02:00:00Z", paths, ..GITLAB };
    let moved = write(&sandbox, &template, &moved);
    assert_eq!(chosen(&sandbox, &["latest"]), moved);
    assert_eq!(chosen(&sandbox, &["latest~1"]), ids[2]);
    assert_eq!(chosen(&sandbox, &["latest", "--path", "/srv/data"]), moved);
}

#[test]
fn latest_of_several_sources_is_refused_with_the_choices() {
    let sandbox = Sandbox::with_store();
    let template = template(&sandbox);
    let at = |day: &'static str, of: Wanted| Wanted { at: day, ..of };
    let both = &["/srv/git", "/etc/cgit"];
    let ids: BTreeMap<&str, String> = [
        ("gitlab", at("2025-11-20T02:00:00Z", GITLAB)),
        ("gitlab db", at("2025-11-20T03:00:00Z", Wanted { host: "db", ..GITLAB })),
        ("mail", at("2025-11-20T04:00:00Z", Wanted { instance: Some("mail"), ..GITLAB })),
        ("git", at("2025-11-20T05:00:00Z", PLAIN)),
        ("git db", at("2025-11-20T06:00:00Z", Wanted { host: "db", ..PLAIN })),
        ("both", at("2025-11-20T07:00:00Z", Wanted { paths: both, ..PLAIN })),
        ("quoted", at("2025-11-20T08:00:00Z", Wanted { paths: &["/srv/it's"], ..PLAIN })),
    ]
    .into_iter()
    .map(|(name, wanted)| (name, write(&sandbox, &template, &wanted)))
    .collect();
    for which in ["latest", "2025-11-20", "latest~0"] {
        let refused = sandbox.run(["ls", which]).ends_with(2);
        let which = which.trim_end_matches("~0");
        assert_eq!(refused.stdout, "");
        let lines: Vec<&str> = refused.stderr.lines().collect();
        let message = format!(
            "forgekeep: {which} is ambiguous: there are snapshots of 2 instances and 3 sets of \
             paths on 2 machines"
        );
        assert_eq!(lines[..2], [&message, "  write one of these:"]);
        assert_eq!(lines.len(), 9);
        // Each choice works as it is written, the newest source first.
        let names = ["quoted", "both", "git db", "git", "mail", "gitlab db", "gitlab"];
        for (line, name) in lines[2..].iter().zip(names) {
            let (choice, rest) = line.trim().split_once("  ").expect("two columns");
            assert!(rest.contains("1 snapshot, the newest of 2025-11-20 0"), "{line}");
            let script = format!("\"$FK\" ls {choice} --json | tail -n 1");
            let run = sandbox.tool("sh").args(["-c", &script]).env("FK", FORGEKEEP).run().ok();
            assert_eq!(run.json()[0]["snapshot"], ids[name], "{choice}");
        }
    }
    for (arguments, name) in [
        (&["mail@latest"][..], "mail"),
        (&["gitlab@latest", "--host", "web"], "gitlab"),
        (&["latest", "--path", "/srv/git", "--host", "web"], "git"),
        (&["latest", "--path", "/etc/cgit"], "both"),
        (&["latest", "--path", "/etc/cgit", "--path", "/srv/git/"], "both"),
    ] {
        assert_eq!(chosen(&sandbox, arguments), ids[name], "{arguments:?}");
    }
    let hosts = ["1 instance on 2 machines", "gitlab@latest --host db", "gitlab@latest --host web"];
    sandbox.run(["ls", "gitlab@latest"]).fails(2, &hosts);
    // The choices repeat the given options.
    let web = ["    mail@latest --host web  ", "    gitlab@latest --host web  "];
    sandbox.run(["ls", "latest", "--host", "web"]).fails(2, &web);
    // Every command that takes a snapshot asks.
    for command in [
        &["restore", "latest", "--target", "out"][..],
        &["dump", "latest:/x"],
        &["diff", "latest~1", "latest"],
        &["projects", "latest"],
        &["find", "x", "--snapshot", "latest"],
        &["check", "latest"],
        &["inspect", "--instance", "gitlab", "latest"],
    ] {
        sandbox.run(command).fails(2, &["is ambiguous", "write one of these"]);
    }
    assert!(!sandbox.has("out"));
    let json = sandbox.run(["ls", "latest", "--json"]).ends_with(2).json();
    assert!(json[0]["hint"].as_str().is_some_and(|hint| hint.contains("\n  mail@latest")));
}

#[test]
fn arguments_that_name_no_snapshot_get_the_next_step() {
    let sandbox = Sandbox::with_store();
    let template = template(&sandbox);
    sandbox.run(["ls", "latest"]).fails(1, &["the store at store has no snapshots yet"]);
    sandbox.run(["ls", "gitlab@latest"]).fails(1, &["--instance gitlab"]);
    let at = ["2025-11-18T02:00:00Z", "2025-11-20T02:00:00Z", "2025-11-20T22:30:00Z"];
    let ids = at.map(|at| write(&sandbox, &template, &Wanted { at, tags: &["nightly"], ..GITLAB }));
    let mail = Wanted { at: "2025-11-19T02:00:00Z", instance: Some("mail"), ..GITLAB };
    let mail = write(&sandbox, &template, &mail);
    let short = ids.clone().map(|id| id[..8].to_owned());
    for (arguments, code, words) in [
        (
            &["gitlab@latest~9"][..],
            1,
            &["no snapshot gitlab@latest~9 among 3 snapshots", "the oldest is gitlab@latest~2"][..],
        ),
        (
            &["mail@latest~1"],
            1,
            &["among 1 snapshot of instance mail", "the only one is mail@latest"],
        ),
        (&["gitlba@latest"], 1, &["no snapshots of instance gitlba", "did you mean `gitlab`?"]),
        (
            &["x@latest"],
            1,
            &["no snapshots of instance x", "instances with snapshots: gitlab, mail"],
        ),
        (
            &["gitlab@2025-11-19"],
            1,
            &[
                "no snapshot of instance gitlab began on 2025-11-19 (time zone UTC)",
                &format!("before is {} of 2025-11-18 02:00:00", short[0]),
                &format!("after is {} of 2025-11-20 02:00:00", short[1]),
            ],
        ),
        (&["gitlab@2025-11-17"], 1, &[&format!("the first one after is {}", short[0])]),
        (&["gitlab@2025-11-21"], 1, &[&format!("the last one before is {}", short[2])]),
        (&["gitlab@2025-11-31"], 2, &["`gitlab@2025-11-31` does not name", "YYYY-MM-DD"]),
        (&["2025-11"], 2, &["YYYY-MM-DD"]),
        (&["gitlab"], 2, &["`gitlab` does not name a snapshot", "is gitlab@latest"]),
        (&["gitlab@lastest"], 2, &["did you mean `gitlab@latest`?"]),
        (&["@latest"], 2, &["the name of the instance before @ is empty"]),
        (&[""], 2, &["it is empty", "a variable may be unset"]),
        (&["latest~"], 2, &["a number must follow latest~"]),
        (&["fffffffff"], 1, &["no snapshot fffffffff among 4 snapshots", "lists them"]),
        (
            &[&format!("gitlab@{mail}")],
            1,
            &["does not belong to instance gitlab", "belongs to instance mail"],
        ),
        (&[&mail, "--host", "x"], 1, &["does not match --host x"]),
        (&["latest", "--tag", "a b"], 1, &["no snapshot matches --tag 'a b'"]),
        (&["mail@latest", "--tag", "nightly"], 1, &["no snapshot of instance mail matches --tag"]),
    ] {
        sandbox.run(["ls"].iter().chain(arguments)).fails(code, words);
    }
    assert_eq!(chosen(&sandbox, &["latest", "--tag", "nightly"]), ids[2]);
    let inspect = ["inspect", "--instance", "gitlab"];
    let other = sandbox.forgekeep(inspect).args(["mail@latest"]).run();
    other.fails(2, &["mail@latest is of instance mail", "write latest"]);
}

#[test]
fn a_day_begins_at_local_midnight() {
    let sandbox = Sandbox::with_store();
    let template = template(&sandbox);
    let at = ["2025-11-19T23:30:00Z", "2025-11-20T01:00:00Z", "2025-11-20T22:30:00Z"];
    let ids = at.map(|at| write(&sandbox, &template, &Wanted { at, ..PLAIN }));
    // The clock goes back on 2025-10-26 and forward on 2025-03-30 in Berlin.
    let long = write(&sandbox, &template, &Wanted { at: "2025-10-26T22:59:59Z", ..PLAIN });
    let after = write(&sandbox, &template, &Wanted { at: "2025-10-26T23:00:00Z", ..PLAIN });
    for (zone, day, wanted) in [
        ("UTC", "2025-11-19", &ids[0]),
        ("UTC", "2025-11-20", &ids[2]),
        ("Europe/Berlin", "2025-11-20", &ids[2]),
        ("Asia/Tokyo", "2025-11-20", &ids[1]),
        ("Asia/Tokyo", "2025-11-21", &ids[2]),
        ("America/New_York", "2025-11-19", &ids[1]),
        ("Europe/Berlin", "2025-10-26", &long),
        ("Europe/Berlin", "2025-10-27", &after),
    ] {
        let run = sandbox.forgekeep(["ls", day, "--json"]).env("TZ", zone).run().ok().json();
        assert_eq!(run.last().expect("a summary")["snapshot"], **wanted, "{day} in {zone}");
    }
    let none = sandbox.forgekeep(["ls", "2025-11-19"]).env("TZ", "Europe/Berlin").run();
    none.fails(1, &["time zone Europe/Berlin", "of 2025-10-27 00:00:00", "of 2025-11-20 00:30:00"]);
}

#[test]
fn unreadable_and_future_records_count_only_where_they_may_be_meant() {
    let sandbox = Sandbox::with_store();
    let template = template(&sandbox);
    let at = ["2025-11-18T02:00:00Z", "2025-11-20T02:00:00Z", "2025-11-20T22:30:00Z"];
    let ids = at.map(|at| write(&sandbox, &template, &Wanted { at, ..GITLAB }));
    let mail = Wanted { at: "2025-11-19T02:00:00Z", instance: Some("mail"), ..GITLAB };
    let mail = write(&sandbox, &template, &mail);
    let summary = |run: &[serde_json::Value]| run.last().expect("a summary")["snapshot"].clone();
    // By now, the index knows all of them.
    assert_eq!(chosen(&sandbox, &["mail@latest"]), mail);
    sandbox.write(&format!("store/snapshots/{}", ids[2]), "damaged");
    assert_eq!(chosen(&sandbox, &["mail@latest"]), mail);
    assert_eq!(chosen(&sandbox, &["gitlab@2025-11-18"]), ids[0]);
    for selector in ["gitlab@latest", "gitlab@2025-11-20"] {
        let run = sandbox.run(["ls", selector, "--json"]).ends_with(3).json();
        assert_eq!(run[0]["message_type"], "warning");
        assert_eq!(summary(&run), ids[1]);
    }
    let future = Wanted { at: "2999-11-20T02:00:00Z", ..GITLAB };
    let future = write(&sandbox, &template, &future);
    assert_eq!(chosen(&sandbox, &["mail@latest"]), mail);
    let run = sandbox.run(["ls", "gitlab@latest", "--json"]).ends_with(3).json();
    assert_eq!(summary(&run), ids[1]);
    assert_eq!(chosen(&sandbox, &["gitlab@2025-11-18"]), ids[0]);
    let run = sandbox.run(["ls", "gitlab@2999-11-20", "--json"]).ends_with(3).json();
    assert_eq!(summary(&run), future);
    // A record that was never readable may be of any instance.
    sandbox.write(&format!("store/snapshots/{}", "ab".repeat(32)), "damaged");
    let run = sandbox.run(["ls", "mail@latest", "--json"]).ends_with(3).json();
    assert_eq!(summary(&run), mail);
    sandbox.run(["ls", "other@latest"]).fails(1, &["no readable snapshot other@latest"]);
}

#[test]
fn lists_searches_and_checks_are_narrowed_down() {
    let sandbox = Sandbox::with_store();
    let template = template(&sandbox);
    let gitlab = write(&sandbox, &template, &Wanted { at: "2025-11-20T02:00:00Z", ..GITLAB });
    let plain = Wanted { at: "2025-11-20T03:00:00Z", tags: &["nightly"], ..PLAIN };
    let plain = write(&sandbox, &template, &plain);
    let number = |command: &str, options: &[&str]| {
        let arguments = [command].into_iter().chain(options.iter().copied());
        let arguments = arguments.chain((command == "find").then_some("file"));
        let lines = sandbox.json(arguments);
        let last = lines.last().expect("a line").clone();
        assert_eq!(last["store"], "store");
        match command {
            "snapshots" => lines.len() as u64,
            "stats" => last["snapshots_count"].as_u64().expect("a number"),
            _ => last["snapshots"].as_u64().expect("a number"),
        }
    };
    for (options, wanted) in [
        (&[][..], 2),
        (&["--instance", "gitlab"], 1),
        (&["--instance", "gitlab", "--instance", "x"], 1),
        (&["--tag", "nightly"], 1),
        (&["--path", "/etc"], 1),
        (&["--host", "web"], 2),
        (&["--host", "web", "--path", "/etc"], 1),
    ] {
        for command in ["snapshots", "find", "check", "stats"] {
            assert_eq!(number(command, options), wanted, "{command} {options:?}");
        }
    }
    assert_eq!(number("find", &["--snapshot", "gitlab@latest"]), 1);
    assert_eq!(number("find", &["--snapshot", "latest", "--instance", "gitlab"]), 1);
    assert_eq!(number("check", &["gitlab@latest", &plain]), 2);
    assert_eq!(number("check", &["gitlab@2025-11-20"]), 1);
    // A check of nothing must not look like a good one.
    sandbox.run(["check", "--host", "x"]).fails(1, &["nothing checked"]);
    let diff = sandbox.json(["diff", "gitlab@latest", &plain]);
    let diff = diff.last().expect("a summary");
    assert_eq!(
        (&diff["first_snapshot"], &diff["second_snapshot"]),
        (&gitlab.into(), &plain.into())
    );
    assert_eq!(diff["store"], "store");
    // Damage in a snapshot that is not checked does not make a segment superfluous.
    for segment in sandbox.tool("find").args(["store/segments", "-type", "f"]).run().stdout.lines()
    {
        sandbox.write(segment, "damaged");
    }
    let check = sandbox.run(["check", "gitlab@latest"]).ends_with(1);
    assert!(!check.all_output().contains("no snapshot needs it"), "{}", check.all_output());
}

#[test]
fn a_configuration_with_one_store_needs_no_option() {
    let sandbox = Sandbox::new();
    sandbox.write("data/file", "content");
    let instance = |store: &str| {
        let data = sandbox.text("data");
        format!("[instances.wiki]\nkind = 'plain'\nparts.a.path = '{data}'\n{store}\n")
    };
    let (state, main) = (sandbox.text("state"), sandbox.text("main store"));
    let one = format!("state = '{state}'\n[stores.main]\npath = '{main}'\n");
    sandbox.write("forgekeep.toml", format!("{one}{}", instance("")));
    let run = |arguments: &[&str]| {
        let config = sandbox.text("forgekeep.toml");
        let run = sandbox.forgekeep(arguments).without_env("FORGEKEEP_STORE");
        run.env("FORGEKEEP_CONFIG", config).run()
    };
    let created = run(&["init"]).ok();
    assert!(created.stdout.contains(&main), "{}", created.stdout);
    run(&["backup", "--instance", "wiki"]).ok();
    let saved = run(&["backup", "data"]).ok();
    assert!(saved.stdout.ends_with(&format!(" saved in {main}\n")), "{}", saved.stdout);
    // Every result names its store.
    let target = sandbox.text("out");
    for command in [
        &["snapshots"][..],
        &["find", "file"],
        &["diff", "wiki@latest", "wiki@latest"],
        &["restore", "wiki@latest", "--target", &target],
        &["check"],
        &["index", "rebuild"],
        &["stats"],
        &["inspect", "--instance", "wiki", "latest"],
        &["backup", "data"],
        &["backup", "--instance", "wiki"],
    ] {
        let printed = run(command).ok();
        assert!(printed.stdout.contains(&main), "{}", printed.all_output());
        let json = run(&[command, &["--json"]].concat()).ok().json();
        assert_eq!(json.last().expect("a line")["store"], main, "{command:?}");
    }
    let json = run(&["ls", "wiki@latest", "--json"]).ok().json();
    assert_eq!(json.last().expect("a line")["store"], main);
    assert_eq!(
        run(&["dump", &format!("wiki@{}", sandbox.at("latest", "data/file"))]).ok().stdout,
        "content"
    );

    // Of several stores, an instance knows its own.
    let two = format!("{one}[stores.usb]\npath = '/mnt/usb'\n");
    sandbox.write("forgekeep.toml", format!("{two}{}", instance("store = 'main'")));
    run(&["ls", "wiki@latest"]).ok();
    run(&["snapshots", "--instance", "wiki"]).ok();
    run(&["find", "file", "--snapshot", "wiki@latest"]).ok();
    let words = ["no store given, and ", "has 2", "main  --store '", "usb   --store /mnt/usb"];
    run(&["snapshots"]).fails(2, &words);
    run(&["ls", "latest"]).fails(2, &words);
    run(&["backup", "data"]).fails(2, &words);
    run(&["snapshots", "--store", &main]).ok();

    sandbox.write("forgekeep.toml", format!("state = '{state}'\n"));
    run(&["snapshots"]).fails(1, &["no store given, and ", "has none", "[stores.main]"]);
    let missing = sandbox.forgekeep(["snapshots", "--config", "nowhere"]);
    missing
        .without_env("FORGEKEEP_STORE")
        .run()
        .fails(1, &["cannot read the configuration nowhere"]);
}

#[test]
fn a_choice_among_thousands_reads_few_records() {
    let sandbox = Sandbox::in_memory();
    sandbox.run(["init"]).ok();
    let template = template(&sandbox);
    let mut ids = BTreeSet::new();
    let first: jiff::Timestamp = "2019-01-01T02:00:00Z".parse().expect("a time");
    for n in 0..3_000 {
        let at = first + jiff::SignedDuration::from_hours(n);
        let at: &'static str = at.to_string().leak();
        let of = match n % 3 {
            0 => Wanted { at, ..GITLAB },
            1 => Wanted { at, instance: Some("mail"), ..GITLAB },
            _ => Wanted { at, tags: &["weekly"], ..PLAIN },
        };
        // Some were not made for a while.
        if n < 1_000 || n % 3 > 0 {
            ids.insert(write(&sandbox, &template, &of));
        }
    }
    // Each record is read once to find its place.
    sandbox.run(["ls", "gitlab@latest"]).ok();
    let strace = ["-f", "-o", "trace", "-e", "trace=?open,openat,openat2"];
    for (arguments, code, most) in [
        (&["ls", "gitlab@latest"][..], 0, 1),
        (&["ls", "mail@latest~3"], 0, 4),
        (&["ls", "latest", "--tag", "weekly"], 0, 1),
        (&["ls", "gitlab@2019-01-20"], 0, 1),
        (&["ls", "latest", "--path", "/srv/git"], 0, 1),
        (&["ls", "latest"], 2, 0),
        (&["ls", "other@latest"], 1, 0),
        (&["ls", "gitlab@2020-01-20"], 1, 0),
        (&["diff", "mail@latest~1", "mail@latest"], 0, 2),
        (&["snapshots", "--path", "/nowhere"], 0, 0),
    ] {
        let run = sandbox.tool("strace").args(strace).args([FORGEKEEP]).args(arguments).run();
        assert_eq!(run.code(), Some(code), "{}", run.all_output());
        let trace = String::from_utf8_lossy(&sandbox.read("trace")).into_owned();
        // Names of records are opened below their directory, which is only listed otherwise.
        let name = |line: &str| Some(line.split('"').nth(1)?.rsplit('/').next()?.to_owned());
        let opened: Vec<String> =
            trace.lines().filter_map(name).filter(|name| ids.contains(name)).collect();
        assert_eq!(opened.len(), most, "{arguments:?}: {opened:?}");
    }
}

#[test]
fn an_old_snapshot_of_exactly_the_path_is_not_taken_for_the_latest() {
    let sandbox = Sandbox::with_store();
    let template = template(&sandbox);
    let both = &["/srv/git", "/etc/cgit"];
    let write = |wanted: Wanted| write(&sandbox, &template, &wanted);
    let old = write(Wanted { at: "2024-01-01T02:00:00Z", ..PLAIN });
    let new = write(Wanted { at: "2025-11-20T02:00:00Z", paths: both, ..PLAIN });
    let path = ["--path", "/srv/git"];
    let refused = sandbox.run(["ls", "latest"].iter().chain(&path)).ends_with(2).stderr;
    for words in [&old[..8], "the newest of 2024-01-01", "latest --path /etc/cgit --path /srv/git"]
    {
        assert!(refused.contains(words), "{words}: {refused}");
    }
    assert_eq!(chosen(&sandbox, &["latest", path[0], path[1], "--path", "/etc/cgit"]), new);
    assert_eq!(chosen(&sandbox, &["2024-01-01", path[0], path[1]]), old);
    // Several backups of a night are no reason to ask.
    let recent = write(Wanted { at: "2025-11-20T01:00:00Z", ..PLAIN });
    assert_eq!(chosen(&sandbox, &["latest", path[0], path[1]]), recent);
}
