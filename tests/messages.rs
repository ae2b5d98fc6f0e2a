//! The whole text of common errors: the object, the fault and the next step.

use crate::support::sandbox::{Sandbox, need_root};

/// Text on standard error, with exit code, of each command in [`ERRORS`].
struct Expected {
    arguments: &'static [&'static str],
    code: i32,
    text: &'static str,
}

/// `ID` stands for the short id of the latest snapshot, `HERE` for the working directory.
const ERRORS: &[Expected] = &[
    Expected {
        arguments: &["snapshots", "--store", "missing"],
        code: 10,
        text: "forgekeep: no store at missing\n  \
               the path is wrong, or its disk is not mounted; `forgekeep config check` prints \
               the paths of configured stores\n",
    },
    Expected {
        arguments: &["backup", "--store", "missing", "."],
        code: 10,
        text: "forgekeep: no store at missing\n  \
               create it with `forgekeep init --store missing`, or check the path and mounts\n",
    },
    Expected {
        arguments: &["snapshots", "--store", "other"],
        code: 1,
        text: "forgekeep: other is not a store: the directory is not empty and has no store.json\n  \
               check the path and mounts; a new store needs an empty directory\n",
    },
    Expected {
        arguments: &["snapshots", "--store", "file"],
        code: 1,
        text: "forgekeep: file is not a store: it is not a directory\n  \
               check the path and mounts; a new store needs an empty directory\n",
    },
    Expected {
        arguments: &["init"],
        code: 1,
        text: "forgekeep: a store already exists at store\n  \
               use this store; `forgekeep snapshots` lists its content\n",
    },
    Expected {
        arguments: &["init", "--store", "other"],
        code: 1,
        text: "forgekeep: other is not empty\n  \
               give a directory that is empty or does not exist yet\n",
    },
    Expected {
        arguments: &["ls", "latest", "--store", "empty"],
        code: 1,
        text: "forgekeep: the store at empty has no snapshots yet\n  \
               run `forgekeep backup`, or check --store\n",
    },
    Expected {
        arguments: &["check", "--read-data-subset", "0/3"],
        code: 2,
        text: "forgekeep: 0/3 is not a part\n  write N/M with N from 1 to M, or a share like 5%\n",
    },
    Expected {
        arguments: &["backup", "--stdin-name", ""],
        code: 2,
        text: "forgekeep: --stdin-name is empty; the variable may be unset\n  \
               give a name such as db.sql\n",
    },
    Expected {
        arguments: &["backup", "-"],
        code: 2,
        text: "forgekeep: - is not a path\n  \
               `forgekeep backup --stdin-name NAME` backs up standard input\n",
    },
    Expected {
        arguments: &["backup", "--stdin-name", "x", "--stdin-command", "--", "true"],
        code: 2,
        text: "forgekeep: --stdin-command takes the command itself, without --\n  \
               leave out the -- before the command\n",
    },
    Expected {
        arguments: &["backup", "--allow-empty", "source"],
        code: 2,
        text: "forgekeep: --allow-empty concerns a stream only\n  \
               leave it out, or give --stdin-name NAME\n",
    },
    Expected {
        arguments: &["ls", "lastest"],
        code: 2,
        text: "forgekeep: `lastest` does not name a snapshot: it is not an id, a date or latest\n  \
               did you mean `latest`?\n",
    },
    Expected {
        arguments: &["ls", "zzzz"],
        code: 2,
        text: "forgekeep: `zzzz` does not name a snapshot: it is not an id, a date or latest\n  \
               write an id, latest, latest~1 or a date such as 2026-11-20; the latest snapshot of \
               an instance is zzzz@latest\n",
    },
    Expected {
        arguments: &["ls", "0123456789abcdef0"],
        code: 1,
        text: "forgekeep: no snapshot 0123456789abcdef0 among 1 snapshot\n  \
               `forgekeep snapshots` lists them\n",
    },
    Expected {
        arguments: &["ls", "latest:/readme"],
        code: 1,
        text: "forgekeep: snapshot ID has no /readme\n  \
               did you mean HERE/source/readme? `forgekeep ls ID` lists its paths\n",
    },
    Expected {
        arguments: &["ls", "latest:a/../b"],
        code: 1,
        text: "forgekeep: a/../b is not a valid path in a snapshot\n  \
               write an absolute path without . and ..\n",
    },
    Expected {
        arguments: &["dump", "latest"],
        code: 1,
        text: "forgekeep: no path in snapshot latest given\n  \
               write SNAPSHOT:PATH; `forgekeep ls` lists the paths\n",
    },
    Expected {
        arguments: &["dump", "latest:HERE/source"],
        code: 1,
        text: "forgekeep: HERE/source is a directory, not a file\n  \
               use `forgekeep restore` for directories\n",
    },
    Expected {
        arguments: &["restore", "latest", "--target", "file"],
        code: 1,
        text: "forgekeep: cannot write to file: File exists (os error 17)\n  \
               the target must be a directory; for one file use \
               `forgekeep dump SNAPSHOT:PATH > FILE`\n",
    },
    Expected {
        arguments: &["backup", "nowhere"],
        code: 1,
        text: "cannot read nowhere: No such file or directory (os error 2)\n\
               forgekeep: none of the paths can be read\n  \
               nothing was backed up; check the paths\n",
    },
    Expected {
        arguments: &["backup", "store"],
        code: 1,
        text: "forgekeep: HERE/store is the store or inside the store\n  \
               nothing was backed up; give other paths, or copy the store with another program\n",
    },
    Expected {
        arguments: &["backup", "source", "--exclude", ""],
        code: 2,
        text: "forgekeep: bad pattern \"\": it is empty; check for an unset variable\n  \
               put the pattern in quotes; escape [ ] { } and a leading ! with \\\n",
    },
    Expected {
        arguments: &["backup", "--stdin-name", "x"],
        code: 1,
        text: "forgekeep: standard input is empty\n  \
               no snapshot was created; check the command, or give --allow-empty for an empty \
               file\n",
    },
    Expected {
        arguments: &["config", "check", "--config", "missing.toml"],
        code: 1,
        text: "forgekeep: cannot read the configuration missing.toml: \
               No such file or directory (os error 2)\n  \
               give --config FILE; `forgekeep detect` proposes a configuration\n",
    },
    Expected {
        arguments: &["config", "check", "--config", "misspelt.toml"],
        code: 1,
        text: "forgekeep: misspelt.toml, line 4, key `kind`: unknown kind `gitlb`\n  \
               did you mean `gitlab`?\n",
    },
    Expected {
        arguments: &["backup", "--instance", "forg", "--config", "forgekeep.toml"],
        code: 1,
        text: "forgekeep: no instance `forg` is configured\n  did you mean `forge`?\n",
    },
    Expected {
        arguments: &["snapshots", "--store", "sftp://host/path"],
        code: 2,
        text: "error: invalid value 'sftp://host/path' for '--store <DIR>': \
               remote stores are not supported yet; \
               for a directory of that name write ./sftp://host/path\n\n\
               For more information, try '--help'.\n",
    },
];

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("source/readme", "read me\n");
    sandbox.write("other/file", "not a store\n");
    sandbox.write("file", "not a directory\n");
    let config = |kind: &str| {
        format!(
            "[stores.main]\npath = '{}'\n[instances.forge]\nkind = '{kind}'\n\
             [instances.forge.parts.data]\npath = '/srv'\n",
            sandbox.text("store")
        )
    };
    sandbox.write("forgekeep.toml", config("plain"));
    sandbox.write("misspelt.toml", config("gitlb"));
    sandbox.run(["init"]).ok();
    sandbox.run(["init", "--store", "empty"]).ok();
    sandbox.run(["backup", "source"]).ok();
    sandbox
}

#[test]
fn common_errors_name_object_fault_and_next_step() {
    let sandbox = sandbox();
    let (id, here) = (sandbox.snapshot_ids()[0][..8].to_owned(), sandbox.text("."));
    let here = here.trim_end_matches("/.");
    for Expected { arguments, code, text } in ERRORS {
        let real = |text: &str| text.replace("ID", &id).replace("HERE", here);
        let arguments: Vec<String> = arguments.iter().map(|argument| real(argument)).collect();
        let outcome = sandbox.run(&arguments).ends_with(*code);
        assert_eq!(outcome.stderr, real(text), "forgekeep {}", arguments.join(" "));
        assert_eq!(outcome.stdout, "");
    }
}

#[test]
fn a_locked_store_names_its_fault_and_the_next_step() {
    let sandbox = sandbox();
    let script = "exec 9<store/lock && flock -x 9 && exec \"$FK\" backup source";
    let run =
        sandbox.tool("bash").args(["-c", script]).env("FK", crate::support::sandbox::FORGEKEEP);
    assert_eq!(
        run.run().ends_with(11).stderr,
        "forgekeep: the store at store is locked: another process holds an exclusive lock\n  \
         wait for the other process to end and try again\n"
    );
}

#[test]
fn usage_errors_are_json_lines_where_the_caller_wants_json() {
    let sandbox = Sandbox::with_store();
    let usage: [&[&str]; 4] = [
        &["backup", "--json"],
        &["--json", "restore", "latest"],
        &["check", "--json", "--read-data-subset", "0/3"],
        &["no-such-command", "--json"],
    ];
    for arguments in usage {
        let outcome = sandbox.run(arguments).ends_with(2);
        let lines = outcome.json();
        assert_eq!(lines.len(), 1, "{arguments:?}: {}", outcome.all_output());
        assert_eq!(lines[0]["message_type"], "exit_error", "{arguments:?}");
        assert_eq!(lines[0]["code"], 2, "{arguments:?}");
        assert!(lines[0]["message"].as_str().is_some_and(|text| !text.is_empty()));
    }
    // The first is the name of a path, the second the content of a file.
    for arguments in [&["restore", "--", "--json"][..], &["dump", "--json"]] {
        let outcome = sandbox.run(arguments).ends_with(2);
        assert_eq!(outcome.stdout, "", "{arguments:?}");
        assert_ne!(outcome.stderr, "");
    }
}

#[test]
fn an_unknown_instance_cannot_be_recovered() {
    let sandbox = Sandbox::new();
    let state = sandbox.path("state");
    sandbox.write(
        "forgekeep.toml",
        format!(
            "state = {state:?}\n[stores.main]\npath = '/store'\n[instances.files]\nkind = 'plain'\n\
             [instances.files.parts.all]\npath = '/srv'\n"
        ),
    );
    for more in [&[][..], &["--forget"]] {
        let recover = ["recover", "--config", "forgekeep.toml", "--instance", "filse"];
        let outcome = sandbox.forgekeep(recover).args(more).run();
        let outcome = outcome.fails(1, &["filse", "did you mean", "files"]);
        assert_eq!(outcome.stdout, "");
    }
    assert!(!state.join("filse").exists());
}

#[test]
fn one_cause_of_many_paths_is_printed_for_five_of_them() {
    need_root();
    let sandbox = Sandbox::with_store();
    for n in 0..20 {
        sandbox.write(&format!("source/{n}"), "content");
        sandbox.write(&format!("source/dir/{n}"), "content");
    }
    sandbox.backup(["source"]);
    sandbox.tool("chmod").args(["-R", "a+rX", "store"]).run().ok();
    sandbox.tool("mkdir").args(["target"]).run().ok();
    let place = sandbox.at("latest", "source");
    for dry in [&["--dry-run"][..], &[]] {
        let restore = ["restore", &place, "--target", "target"];
        let outcome = sandbox.as_nobody(restore.iter().chain(dry)).run().ends_with(3);
        let of = |words: &str| outcome.stderr.lines().filter(|line| line.contains(words)).count();
        assert_eq!(of("not restored: target/"), 5, "{}", outcome.stderr);
        assert_eq!(of("more paths for such a reason"), 1, "{}", outcome.stderr);
        assert_eq!(of("41 paths not restored"), 1, "{}", outcome.stderr);
        // Programs get each path.
        let json = sandbox.as_nobody(restore.iter().chain(dry).chain(&["--json"])).run();
        let errors = json.json().iter().filter(|line| line["message_type"] == "error").count();
        assert_eq!(errors, 41);
    }
}

#[test]
fn a_comparison_warns_of_unreadable_records_once() {
    let sandbox = Sandbox::with_store();
    let mut older = Vec::new();
    for content in ["one", "two", "three"] {
        older = sandbox.snapshot_ids();
        sandbox.write("source/a", content);
        sandbox.backup(["source"]);
    }
    let ids = sandbox.snapshot_ids();
    let damaged = ids.iter().find(|id| !older.contains(id)).expect("the newest");
    sandbox.write(&format!("store/snapshots/{damaged}"), "damaged");
    let outcome = sandbox.run(["diff", "latest~1", "latest"]).ends_with(3);
    let warnings = outcome.stderr.lines().filter(|line| line.contains("is damaged")).count();
    assert_eq!(warnings, 1, "{}", outcome.all_output());
}

#[test]
fn bytes_of_names_are_printed_in_one_way() {
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::with_store();
    sandbox.tool("git").args(["init", "-q", "--bare", "r.git"]).run().ok();
    let name = |bytes: &[u8]| std::ffi::OsStr::from_bytes(bytes).to_owned();
    std::fs::write(sandbox.path(name(b"r.git/refs/heads/\xfe")), "").expect("writes");
    let ends = |arguments: &[std::ffi::OsString], wanted: &str| {
        let output = sandbox.run(arguments).all_output();
        assert!(output.contains(wanted), "{wanted}: {output}");
    };
    ends(&["backup".into(), "r.git".into()], r"refs/heads/\xfe: empty ref");
    ends(&["ls".into(), name(b"la\xfe")], r"`la\xfe` does not name a snapshot");
    ends(&["check".into(), "--store".into(), name(b"x\xff")], r"no store at x\xff");
    let stream = ["backup", "--stdin-name", "x", "--stdin-command"].map(Into::into);
    ends(&[&stream[..], &[name(b"p\xff")]].concat(), r"cannot start p\xff:");
    ends(&["backup".into(), "--json".into(), "r.git".into()], r"refs/heads/\\xfe: empty ref");
    ends(&["backup".into(), name(b"n\xff")], r"n\xff");
}
