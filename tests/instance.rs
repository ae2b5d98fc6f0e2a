//! Whole instances: databases, repositories, files, services, secrets.

use crate::support::gitlab::{self, Builder};
use crate::support::instance::{backup, configure, configured, lines, load_databases, summary};
use crate::support::sandbox::{Dice, Run, Sandbox, need_root};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[test]
fn a_busy_instance_is_copied_whole() {
    check_copy_of_busy_instance(40);
}

#[test]
#[ignore = "minutes: a thousand repositories"]
fn a_large_busy_instance_is_copied_whole() {
    check_copy_of_busy_instance(500);
}

fn check_copy_of_busy_instance(projects: u32) {
    need_root();
    let gitlab = Builder::new().projects(projects).mattermost().writers().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let lines_of = |run: Run| run.run().ok().json();
    let first = lines_of(backup(&sandbox));
    let before = gitlab.written();
    let second = lines_of(backup(&sandbox));
    let after = gitlab.written();
    assert!(after > before, "{before:?} {after:?}");
    for all in [&first, &second] {
        let summary = summary(all);
        assert_eq!(summary["is_complete"], true, "{all:?}");
        assert_eq!(summary["databases"], 3, "{summary}");
        assert_eq!(summary["errors"], 0);
        assert!(summary["seconds_down"].is_null());
        for check in lines(all, "check") {
            assert_eq!(check["verdict"], "ok", "{check}");
        }
    }
    assert!(gitlab.services.is_up("puma") && gitlab.services.is_up("sidekiq"));
    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored");
    let root = restored.join(gitlab.root().strip_prefix("/").expect("absolute"));
    assert!(gitlab::fsck_all(&root) >= projects as usize);
    let postgres = load_databases(&sandbox, &restored);
    assert!(gitlab::assert_rows_have_files(&postgres, &root) > 0);
    assert!(gitlab::assert_pushes_are_there(&postgres, &root) > 0);
}

#[test]
fn maintenance_copies_the_state_of_stopped_writers() {
    need_root();
    let gitlab = Builder::new().projects(20).writers().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "mode = 'maintenance'\nchecks = { sample = 'all' }");
    backup(&sandbox).run().ok();
    let processes = || ["puma", "sidekiq"].map(|name| gitlab.services.process(name));
    let before = processes();
    let all = backup(&sandbox).run().ok().json();
    let summary = summary(&all);
    assert_eq!(summary["is_complete"], true, "{all:?}");
    let (down, whole) = (&summary["seconds_down"], &summary["total_duration"]);
    let [down, whole] = [down, whole].map(|seconds| seconds.as_f64().expect("seconds"));
    assert!(0.0 < down && down < whole, "{down} of {whole}");
    // Both run, and both are new processes.
    gitlab.services.wait_until_up();
    let after = processes();
    for (before, after) in before.iter().zip(after) {
        assert!(before.is_some() && after.is_some() && *before != after, "{before:?} {after:?}");
    }
    // Nothing was written between the snapshot of the database and the copy of the files: every row
    // has its file, and every file its row.
    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored");
    let root = restored.join(gitlab.root().strip_prefix("/").expect("absolute"));
    let postgres = load_databases(&sandbox, &restored);
    let rows =
        postgres.query(gitlab::database::MAIN, "select count(*) from uploads where store = 1");
    let files = Run::program("find").args([root.join("var/opt/gitlab/gitlab-rails/uploads")]);
    let files = files.args(["-type", "f"]).run().ok();
    assert_eq!(rows, files.stdout.lines().count().to_string());
    assert!(gitlab::assert_pushes_are_there(&postgres, &root) > 0);
}

#[test]
fn unexpected_rows_and_tables_do_not_fail_a_backup() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    gitlab.postgres.sql(
        gitlab::database::MAIN,
        "update uploads set size = -1 where id = 1;
         update uploads set store = 2 where id = 2;
         alter table uploads drop column model_type;
         drop table routes cascade;
         drop table shards cascade;
         alter table lfs_objects rename to of_lfs;
         create view lfs_objects as select id, oid, size / 0 as size, file, file_store from of_lfs;",
    );
    // The oldest are in other directories, and days are in UTC in every time zone of the server.
    let month = "select to_char(created_at at time zone 'UTC', 'YYYY_MM') from ci_job_artifacts where id = 1";
    let month = gitlab.postgres.query(gitlab::database::CI, month);
    let script = format!(
        "mkdir -p {month}/99/1001; mv */*/*/*/1001/1/a* {month}/99/1001",
        month = month.trim()
    );
    let artifacts = gitlab.path("var/opt/gitlab/gitlab-rails/shared/artifacts");
    Run::program("sh").args(["-c", &script]).within(&artifacts).run().ok();
    gitlab.postgres.sql(
        gitlab::database::CI,
        "update ci_job_artifacts set file_location = 1, project_id = 99 where id = 1;
         alter database gitlabhq_production_ci set timezone to '<+40>-40';",
    );
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    assert_eq!(summary(&all)["databases"], 2, "{all:?}");
    let check = |name: &str| {
        let check = lines(&all, "check").into_iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("{name}: {all:?}"));
        (check["verdict"].as_str().expect("a word"), check["text"].as_str().expect("a text"))
    };
    let (verdict, text) = check("lfs");
    assert_eq!(verdict, "unknown");
    assert!(text.starts_with("cannot query lfs: division by zero"), "{text}");
    let files = "checked 23 rows with files; all are present; 1 more rows of uploads are in an \
                 object store, which is not copied";
    assert_eq!(check("files"), ("ok", files));
    assert_eq!(check("repositories"), ("ok", "checked 5 projects; all are present"));
}

#[test]
fn directories_moved_to_another_disk_are_copied() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    // Links are as in the instance, where its root is `/`.
    for (path, name) in [
        ("mnt/storage2/repositories/@hashed", "hashed"),
        ("var/opt/gitlab/git-data/repositories/@pools", "pools"),
        ("var/opt/gitlab/gitlab-rails/uploads/@hashed", "uploads"),
        ("var/opt/gitlab/gitlab-rails/shared/artifacts", "artifacts"),
    ] {
        let target = std::path::Path::new("mnt/disk").join(name);
        std::fs::create_dir_all(gitlab.path("mnt/disk")).expect("directories");
        std::fs::rename(gitlab.path(path), gitlab.path(&target)).expect("moves");
        std::os::unix::fs::symlink(std::path::Path::new("/").join(target), gitlab.path(path))
            .expect("links");
    }
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    for check in lines(&all, "check") {
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    sandbox.restore("latest", "restored");
    let root = sandbox.path("restored").join(gitlab.root().strip_prefix("/").expect("absolute"));
    for name in ["hashed", "pools", "uploads", "artifacts"] {
        let dir = root.join("mnt/disk").join(name);
        assert!(std::fs::read_dir(&dir).expect("was copied").count() > 0, "{name}");
    }
    let link = root.join("mnt/storage2/repositories/@hashed");
    assert!(link.symlink_metadata().expect("was copied").is_symlink());
}

#[test]
fn systemd_and_cron_accept_the_schedule() {
    let sandbox = Sandbox::new();
    let instances = "[instances.'my.forge']\nkind = 'gitlab'\n[instances.own]\nkind = 'plain'\n\
                     parts.a.path = '/etc'\nbefore = [{ command = ['true'] }]\n";
    sandbox.write("forgekeep.toml", instances);
    // A unit that fails every night is worse than none.
    configured(&sandbox, ["schedule", "--instance", "own"]).run().fails(1, &["no store"]);
    let odd = std::ffi::OsStr::from_bytes(b"/srv/\xff");
    let refused = configured(&sandbox, ["schedule", "--instance", "own", "--store"]).args([odd]);
    refused.run().fails(1, &["/srv/\\xff is not UTF-8"]);
    let named = ["schedule", "--instance", "own", "--store", "/srv/a b$c%d"];
    let named = configured(&sandbox, named).run().ok();
    assert!(named.stdout.contains("--store \"/srv/a b$$c%%d\"\n"), "{}", named.stdout);

    sandbox.write("forgekeep.toml", format!("[stores.main]\npath = '/srv/backup'\n{instances}"));
    std::fs::create_dir(sandbox.path("units")).expect("a directory");
    let write = ["--write", "units"];
    for (instance, exposure) in [("my.forge", 60), ("own", 95)] {
        configured(&sandbox, ["schedule", "--instance", instance]).args(write).run().ok();
        let names = [
            format!("forgekeep-{instance}.service"),
            format!("forgekeep-{instance}.timer"),
            format!("forgekeep_recover-{instance}.service"),
        ];
        let units = names.map(|name| sandbox.path(format!("units/{name}")));
        // It checks more than the syntax: missing programs and unknown keys.
        let verify = Run::program("systemd-analyze").args(["verify", "--man=no"]).args(&units);
        let verified = verify.run().ok();
        assert!(!verified.stderr.contains(instance), "{}", verified.all_output());
        let threshold = format!("--threshold={exposure}");
        let security = ["security", "--offline=true", &threshold];
        let services = [&units[0], &units[2]];
        Run::program("systemd-analyze").args(security).args(services).run().ok();
    }
    let recover =
        String::from_utf8(sandbox.read("units/forgekeep_recover-own.service")).expect("text");
    assert!(recover.contains("WantedBy=multi-user.target\n"), "{recover}");
    // The supervisor of GitLab's package waits for the target that wants both.
    let supervisor = "[Unit]\nAfter=multi-user.target\n[Service]\nExecStart=/bin/true\n\
                      [Install]\nWantedBy=multi-user.target\n";
    sandbox.write("units/gitlab-runsvdir.service", supervisor);
    let both = ["gitlab-runsvdir.service", "forgekeep_recover-own.service"];
    std::fs::create_dir(sandbox.path("units/multi-user.target.wants")).expect("a directory");
    for name in both {
        let link = sandbox.path(format!("units/multi-user.target.wants/{name}"));
        std::os::unix::fs::symlink(sandbox.path(format!("units/{name}")), link).expect("links");
    }
    let booted = Run::program("systemd-analyze")
        .args(["verify", "--man=no", "multi-user.target"])
        .args(both.map(|name| sandbox.path(format!("units/{name}"))))
        .run();
    assert!(!booted.all_output().contains("ordering c"), "{}", booted.all_output());

    let cron = ["schedule", "--instance", "my.forge", "--for", "cron", "--at", "03:05"];
    configured(&sandbox, cron).args(write).run().ok();
    // Cron ignores files with a dot in their name.
    let lines = String::from_utf8(sandbox.read("units/forgekeep-my_dot_forge")).expect("text");
    assert!(
        lines.contains("\n5 3 * * * root /") && lines.contains("\n@reboot root sleep 60 && /"),
        "{lines}"
    );
    configured(&sandbox, ["schedule", "--instance", "other"])
        .run()
        .fails(1, &["no instance `other`"]);

    // Drills, beside the backups of an instance with a similar name.
    for instance in ["my.forge", "own"] {
        let drill = ["schedule", "--instance", instance, "--drill", "--on", "sat"];
        configured(&sandbox, drill).args(write).args(["--scratch", "scratch"]).run().ok();
        let names = ["service", "timer"].map(|end| format!("forgekeep_drill-{instance}.{end}"));
        let units = names.map(|name| sandbox.path(format!("units/{name}")));
        let verify = Run::program("systemd-analyze").args(["verify", "--man=no"]).args(&units);
        let verified = verify.run().ok();
        assert!(!verified.stderr.contains(instance), "{}", verified.all_output());
        let security = ["security", "--offline=true", "--threshold=60"];
        Run::program("systemd-analyze").args(security).args(&units[..1]).run().ok();
    }
    let service =
        String::from_utf8(sandbox.read("units/forgekeep_drill-own.service")).expect("text");
    let scratch = sandbox.text("scratch");
    assert!(service.contains(" drill own --config ") && service.contains(&scratch), "{service}");
    // Repositories have directories with the setgid bit.
    assert!(!service.contains("RestrictSUIDSGID"), "{service}");
    let timer = String::from_utf8(sandbox.read("units/forgekeep_drill-own.timer")).expect("text");
    assert!(timer.contains("\nOnCalendar=Sat *-*-* 06:00:00\n"), "{timer}");
    let cron = ["schedule", "--instance", "my.forge", "--for", "cron", "--drill"];
    configured(&sandbox, cron).args(write).run().ok();
    let line = String::from_utf8(sandbox.read("units/forgekeep_drill-my_dot_forge")).expect("text");
    assert!(line.contains("\n0 6 * * 0 root /") && line.contains(" drill my.forge "), "{line}");
    configured(&sandbox, ["schedule", "--instance", "own", "--on", "mon"]).run().ends_with(2);
    // A machine of drills, whose store has snapshots of several others.
    let drill = ["schedule", "--instance", "own", "--drill", "--host", "old", "--host", "new"];
    let printed = configured(&sandbox, drill).run().ok().stdout;
    assert!(printed.contains(" drill own --host old --host new --config "), "{printed}");
    configured(&sandbox, ["schedule", "--instance", "own", "--host", "old"]).run().ends_with(2);
    for host in ["", "old\nExecStartPre=/bin/false", "old\u{1b}[1m"] {
        for runner in ["systemd", "cron"] {
            let drill =
                ["schedule", "--instance", "own", "--drill", "--for", runner, "--host", host];
            configured(&sandbox, drill).run().ends_with(2);
        }
    }
    for scratch in ["/mnt/a\nb", "/mnt/a\tb"] {
        let drill = ["schedule", "--instance", "own", "--drill", "--scratch", scratch];
        configured(&sandbox, drill).run().fails(1, &["control characters"]);
    }
}

#[test]
fn detect_proposes_a_valid_configuration() {
    let sandbox = Sandbox::new();
    sandbox.write("root/opt/gitlab/version-manifest.txt", "gitlab-ce 17.8.2\n");
    let found = sandbox.run(["detect", "--root", &sandbox.text("root")]).ok();
    assert!(found.stdout.contains("kind = \"gitlab\""), "{}", found.stdout);
    sandbox.write("forgekeep.toml", &found.stdout);
    let check = configured(&sandbox, ["config", "check"]).run().ends_with(3);
    assert!(check.stdout.contains("GitLab, Linux package, 17.8.2 ce"), "{}", check.stdout);
    let none = sandbox.run(["detect", "--root", &sandbox.text("nothing")]).ok();
    sandbox.write("forgekeep.toml", &none.stdout);
    configured(&sandbox, ["config", "check"]).run().fails(1, &["has no instance"]);
}

#[test]
#[ignore = "minutes: a thousand repositories and two gigabytes of packages"]
fn maintenance_takes_at_most_a_tenth_of_the_run() {
    need_root();
    let gitlab = Builder::new().projects(500).writers().build();
    let mut dice = Dice::new(1);
    for number in 0..2048 {
        let path =
            gitlab.path(format!("var/opt/gitlab/gitlab-rails/shared/packages/large-{number}"));
        std::fs::write(path, dice.bytes(1 << 20)).expect("writes");
    }
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "mode = 'maintenance'");
    let all = backup(&sandbox).run().ok().json();
    let seconds = |key: &str| summary(&all)[key].as_f64().expect("seconds");
    let (down, whole) = (seconds("seconds_down"), seconds("total_duration"));
    let is_restart_note = |line: &&Value| {
        line["message"].as_str().is_some_and(|text| text.contains("restarted after"))
    };
    let note = all.iter().find(is_restart_note);
    assert!(down <= whole / 10.0, "down for {down} of {whole}: {note:?}");
}

#[test]
fn the_write_ahead_log_of_gitaly_is_copied_in_one_state() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    let runtime = gitlab.path("var/opt/gitlab/git-data/repositories/+gitaly");
    let entry = "partitions/aa/bb/1/wal/0000000000001/MANIFEST";
    let script = format!(
        "mkdir -p $(dirname {entry}) database; echo entry >{entry}; echo db >database/1.vlog; \
         chown -R --reference=. partitions database"
    );
    Run::program("sh").args(["-c", &script]).within(&runtime).run().ok();
    configure(&sandbox, &gitlab, "");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored").join(runtime.strip_prefix("/").expect("absolute"));
    assert!(restored.join(entry).exists() && restored.join("database/1.vlog").exists());
    assert!(!restored.join("tmp").exists(), "only the log is needed");
    configured(&sandbox, ["inspect", "--instance", "forge"]).run().ok();

    // Files of different moments do not belong together.
    let is_over = AtomicBool::new(false);
    let missing = std::thread::scope(|scope| {
        scope.spawn(|| {
            let path = runtime.join("database/1.vlog");
            let mut file = File::options().append(true).open(path).expect("opens");
            while !is_over.load(Relaxed) {
                file.write_all(b"more").expect("writes");
            }
        });
        let outcome = backup(&sandbox).run();
        is_over.store(true, Relaxed);
        outcome.ends_with(3).json()
    });
    let missing = format!("{missing:?}");
    assert!(missing.contains("repositories-log"), "{missing}");
    assert!(missing.contains("a consistent copy of"), "{missing}");
}
