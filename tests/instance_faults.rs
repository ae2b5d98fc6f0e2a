//! Instances whose parts fail during a backup: the right exit code and message, restarted services,
//! and no snapshot that claims to be complete.

use crate::support::gitlab::{Builder, Gitlab, short_dir};
use crate::support::instance::{backup, configure, configured, lines, summary};
use crate::support::redis::Redis;
use crate::support::sandbox::{Dice, Outcome, Run, Sandbox, need_root};
use crate::support::server::Signal;
use std::time::{Duration, Instant};

const MAINTENANCE: &str = "mode = 'maintenance'";

/// Asserts that a run failed with these words, left no new snapshot, and that all services run.
fn assert_failed(sandbox: &Sandbox, gitlab: &Gitlab, outcome: &Outcome, words: &str) {
    let printed = &outcome.stderr;
    assert!(printed.contains(words), "`{words}` is not in: {printed}");
    gitlab.services.wait_until_up();
    assert!(!sandbox.has("state/recovery/forge.json"), "something is left to undo");
    if sandbox.has("store") {
        let all = configured(sandbox, ["snapshots", "--json"])
            .env("FORGEKEEP_STORE", sandbox.text("store"));
        let all = all.run().ok().json();
        for snapshot in lines(&all, "snapshot") {
            assert_eq!(snapshot["instance"]["is_complete"], false, "{snapshot}");
        }
    }
}

#[test]
fn an_aborted_dump_fails_the_backup() {
    need_root();
    let mut gitlab = Builder::new().build();
    // Dumping this table takes a while, because the dump waits for its reader.
    gitlab.postgres.sql(
        crate::support::gitlab::database::MAIN,
        "create table large as select n, repeat(md5(n::text), 30) as text from generate_series(1, 400000) n",
    );
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, MAINTENANCE);
    let running = backup(&sandbox).start();
    let dumping = "select pid from pg_stat_activity where query like 'COPY public.large %'";
    let started = Instant::now();
    let pid = loop {
        let pid = gitlab.postgres.query("postgres", dumping);
        if let Some(pid) = pid.lines().next() {
            break pid.to_owned();
        }
        assert!(started.elapsed() < Duration::from_secs(60), "it never dumped");
    };
    std::thread::sleep(Duration::from_millis(100));
    gitlab.postgres.query("postgres", format!("select pg_terminate_backend({pid})"));
    let outcome = running.wait().ends_with(1);
    assert_failed(&sandbox, &gitlab, &outcome, "pg_dump");
    gitlab.postgres.stop();
}

#[test]
fn a_failed_redis_save_fails_the_backup() {
    need_root();
    let gitlab = Builder::new().build();
    gitlab.redis.break_saving();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, MAINTENANCE);
    let outcome = backup(&sandbox).run().ends_with(1);
    assert_failed(&sandbox, &gitlab, &outcome, "Redis: its save ended with status `err`");
    gitlab.redis.repair_saving();
    gitlab.redis.slow_saving(20_000);
    configure(&sandbox, &gitlab, "mode = 'maintenance'\nredis = { limit = '1s' }");
    let outcome = backup(&sandbox).run().ends_with(1);
    assert_failed(&sandbox, &gitlab, &outcome, "did not end within 1 seconds");
}

#[test]
fn a_service_that_does_not_stop_fails_the_backup() {
    need_root();
    let gitlab = Builder::new().writers().build();
    let stubborn = "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n";
    gitlab.services.add("unicorn", stubborn);
    let init = std::fs::read_link(gitlab.path("opt/gitlab/init/puma")).expect("a link to sv");
    std::os::unix::fs::symlink(init, gitlab.path("opt/gitlab/init/unicorn")).expect("links");
    gitlab.services.wait_until_up();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, &format!("{MAINTENANCE}\nservices = {{ limit = '9s' }}"));
    let outcome = backup(&sandbox).run().ends_with(1);
    let words = "unicorn: it is still running 9 seconds after the stop command";
    assert_failed(&sandbox, &gitlab, &outcome, words);
    assert!(gitlab.services.is_up("puma") && gitlab.services.is_up("sidekiq"));
}

#[test]
fn a_backup_waits_for_a_slowly_stopping_service() {
    need_root();
    let gitlab = Builder::new().build();
    let slow = "#!/bin/sh\ntrap 'sleep 10; exit' TERM\nwhile :; do sleep 0.1; done\n";
    gitlab.services.add("unicorn", slow);
    let init = std::fs::read_link(gitlab.path("opt/gitlab/init/puma")).expect("a link to sv");
    std::os::unix::fs::symlink(init, gitlab.path("opt/gitlab/init/unicorn")).expect("links");
    gitlab.services.wait_until_up();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, MAINTENANCE);
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true);
    let down = summary(&all)["seconds_down"].as_f64().expect("seconds");
    assert!(down >= 10.0, "{down}");
    gitlab.services.wait_until_up();
}

#[test]
fn a_service_that_always_ends_at_once_does_not_fail_the_copy() {
    need_root();
    let gitlab = Builder::new().build();
    gitlab.services.add("unicorn", "#!/bin/sh\nsleep 0.2\nexit 1\n");
    let init = std::fs::read_link(gitlab.path("opt/gitlab/init/puma")).expect("a link to sv");
    std::os::unix::fs::symlink(init, gitlab.path("opt/gitlab/init/unicorn")).expect("links");
    std::thread::sleep(Duration::from_secs(6));
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, MAINTENANCE);
    let outcome = backup(&sandbox).run();
    let printed = outcome.all_output();
    assert!(!printed.contains("another program"), "{printed}");
    // It runs for a moment after each start.
    assert_eq!(summary(&outcome.json())["is_complete"], true, "{printed}");
    assert!(gitlab.services.is_up("puma") && gitlab.services.is_up("sidekiq"));
}

#[test]
fn a_service_started_during_maintenance_is_reported() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    // Redis is asked to save while services are down.
    let cli = gitlab.path("opt/gitlab/embedded/bin/redis-cli");
    let real = std::fs::read_link(&cli).expect("a link");
    std::fs::remove_file(&cli).expect("removes");
    let script = |how: &str| {
        format!(
            "#!/bin/sh\ncase $* in *BGSAVE*) {how} '{}' start puma >/dev/null;; esac\nexec {} \"$@\"\n",
            gitlab.path("opt/gitlab/bin/gitlab-ctl").display(),
            real.display()
        )
    };
    let install = |how: &str| {
        std::fs::write(&cli, script(how)).expect("writes");
        sandbox.tool("chmod").args(["755"]).args([&cli]).run().ok();
    };
    install(&format!("test ! -e {0} && touch {0} &&", sandbox.text("once")));
    configure(&sandbox, &gitlab, MAINTENANCE);
    let outcome = backup(&sandbox).run().ok();
    assert!(
        outcome.all_output().contains("started puma, which must stay stopped"),
        "{}",
        outcome.all_output()
    );
    assert_eq!(summary(&outcome.json())["is_complete"], true);
    gitlab.services.wait_until_up();

    sandbox.remove("store");
    install("");
    let outcome = backup(&sandbox).run().ends_with(1);
    assert_failed(&sandbox, &gitlab, &outcome, "started puma, which must stay stopped");
}

#[test]
fn a_service_started_while_it_stops_is_stopped_again() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    // Another program starts it once while it still drains: `sv` gives up, and it comes back.
    let service = gitlab.path("opt/gitlab/service/unicorn");
    let drains = format!(
        "#!/bin/sh\ntrap 'test -e {once} || {{ touch {once}; sleep 1; sv start {service}; }}\n\
         sleep 1; exit' TERM\nwhile :; do sleep 0.1; done\n",
        once = sandbox.text("once"),
        service = service.display()
    );
    gitlab.services.add("unicorn", &drains);
    let init = std::fs::read_link(gitlab.path("opt/gitlab/init/puma")).expect("a link to sv");
    std::os::unix::fs::symlink(init, gitlab.path("opt/gitlab/init/unicorn")).expect("links");
    gitlab.services.wait_until_up();
    configure(&sandbox, &gitlab, MAINTENANCE);
    let outcome = backup(&sandbox).run().ok();
    let output = outcome.all_output();
    assert!(output.contains("started unicorn, which must stay stopped"), "{output}");
    assert_eq!(summary(&outcome.json())["is_complete"], true);
    gitlab.services.wait_until_up();
}

#[test]
fn a_service_that_was_down_and_starts_during_the_copy_is_reported() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    gitlab.services.sv(&["down"], "sidekiq").ok();
    let cli = gitlab.path("opt/gitlab/embedded/bin/redis-cli");
    let real = std::fs::read_link(&cli).expect("a link");
    std::fs::remove_file(&cli).expect("removes");
    let script = format!(
        "#!/bin/sh\ncase $* in *BGSAVE*) test -e {once} || {{ touch {once}; {} start sidekiq; }} \
         >/dev/null;; esac\nexec {} \"$@\"\n",
        gitlab.path("opt/gitlab/bin/gitlab-ctl").display(),
        real.display(),
        once = sandbox.text("once"),
    );
    std::fs::write(&cli, script).expect("writes");
    sandbox.tool("chmod").args(["755"]).args([&cli]).run().ok();
    configure(&sandbox, &gitlab, MAINTENANCE);
    let outcome = backup(&sandbox).run().ok();
    let output = outcome.all_output();
    assert!(output.contains("started sidekiq, which must stay stopped"), "{output}");
    assert_eq!(summary(&outcome.json())["is_complete"], true);
}

#[test]
fn a_full_disk_of_the_store_fails_the_backup() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, MAINTENANCE);
    std::fs::create_dir(sandbox.path("small")).expect("a directory");
    let small = sandbox.text("small");
    let large = gitlab.path("var/opt/gitlab/gitlab-rails/uploads/large");
    std::fs::write(large, Dice::new(1).bytes(40 << 20)).expect("writes");
    let store = format!("{small}/store");
    for (size, words) in [("24m", "No space left on device"), ("1m", "too few for a backup")] {
        let size = format!("size={size}");
        sandbox.tool("mount").args(["-t", "tmpfs", "-o", &size, "none", &small]).run().ok();
        let outcome = backup(&sandbox).args(["--store", &store]).run();
        sandbox.tool("umount").args([&small]).run().ok();
        let outcome = outcome.ends_with(1);
        assert_failed(&sandbox, &gitlab, &outcome, words);
    }
}

/// Kills a run as soon as services are stopped.
fn kill_while_stopped(sandbox: &Sandbox, gitlab: &Gitlab, signal: &str) -> Outcome {
    let running = backup(sandbox).start();
    let started = Instant::now();
    while gitlab.services.is_up("puma") {
        assert!(started.elapsed() < Duration::from_secs(60), "it never stopped puma");
        std::thread::sleep(Duration::from_millis(2));
    }
    sandbox.tool("kill").args([signal, &running.id().to_string()]).run().ok();
    running.wait()
}

#[test]
fn services_of_a_killed_run_are_restarted() {
    need_root();
    let gitlab = Builder::new().projects(20).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, MAINTENANCE);
    kill_while_stopped(&sandbox, &gitlab, "-KILL");
    assert!(sandbox.has("state/recovery/forge.json"));
    assert!(!gitlab.services.is_up("puma"));
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge"]).run();
    let printed = inspect().ends_with(3).all_output();
    assert!(printed.contains("not running: puma"), "{printed}");
    assert!(printed.contains("a killed run has not done this: start "), "{printed}");
    assert!(printed.contains("`forgekeep recover --instance forge`"), "{printed}");
    let recovered = configured(&sandbox, ["recover"]).run().ok();
    assert!(recovered.stderr.contains("start puma"), "{}", recovered.stderr);
    gitlab.services.wait_until_up();
    inspect().ok();

    // The next run restarts them before anything else, here even without a store.
    kill_while_stopped(&sandbox, &gitlab, "-KILL");
    configured(&sandbox, ["backup", "--instance", "forge", "--store", "nowhere"])
        .run()
        .ends_with(10);
    gitlab.services.wait_until_up();
    kill_while_stopped(&sandbox, &gitlab, "-KILL");
    let outcome = backup(&sandbox).run().ok();
    assert!(summary(&outcome.json())["is_complete"] == true);
    gitlab.services.wait_until_up();
    assert!(!sandbox.has("state/recovery/forge.json"));
}

#[test]
fn an_inspection_names_stopped_services_and_the_commands_that_start_them() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    let services = |code: i32| {
        let all = inspect().ends_with(code).json();
        let found = lines(&all, "check").into_iter().find(|check| check["name"] == "services");
        found.cloned()
    };
    assert_eq!(services(0), None);
    gitlab.ctl(["stop", "sidekiq"]).ok();
    let found = services(3).expect("a check");
    assert_eq!(found["text"], "not running: sidekiq");
    let hint = found["hint"].as_str().expect("a hint");
    let command = hint.strip_prefix("to start them: `").and_then(|rest| rest.strip_suffix('`'));
    Run::limited("sh").args(["-c", command.expect("a command")]).run().ok();
    gitlab.services.wait_until_up();
    assert_eq!(services(0), None);
    // An administrator switched it off.
    let off = gitlab.path("opt/gitlab/sv/sidekiq/down");
    std::fs::write(&off, "").expect("writes");
    gitlab.ctl(["stop", "sidekiq"]).ok();
    assert_eq!(services(0), None);
    // A backup that runs stops them for a moment.
    std::fs::remove_file(&off).expect("removes");
    let dir = sandbox.path("state/recovery");
    std::fs::create_dir_all(&dir).expect("directories");
    std::fs::write(dir.join("forge.json"), "[]").expect("writes");
    let lock = std::fs::File::create(dir.join("forge.lock")).expect("a file");
    lock.lock().expect("locks");
    assert_eq!(services(0), None);
    drop(lock);
    assert!(services(3).is_some());
}

#[test]
fn services_are_restarted_without_a_valid_configuration() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    for is_gone in [true, false] {
        configure(&sandbox, &gitlab, MAINTENANCE);
        kill_while_stopped(&sandbox, &gitlab, "-KILL");
        let text = std::fs::read_to_string(sandbox.path("forgekeep.toml")).expect("reads");
        let text = match is_gone {
            // Only the directory of the records is known.
            true => text.lines().next().expect("a line").to_owned(),
            false => text + "\n[instances.other]\nkind = 'gitlba'\n",
        };
        let text = if is_gone { text + "\n[instances.x" } else { text };
        std::fs::write(sandbox.path("forgekeep.toml"), text).expect("writes");
        let printed = configured(&sandbox, ["recover"]).run().ok().all_output();
        assert!(printed.contains("; recovering without it"), "{printed}");
        gitlab.services.wait_until_up();
        // Without a record, the mistake is the result.
        configured(&sandbox, ["recover"]).run().ends_with(1);
    }
}

#[test]
fn signals_restart_the_stopped_services() {
    need_root();
    let gitlab = Builder::new().projects(20).build();
    // The run waits for this save, so that even a late signal comes before its end.
    gitlab.redis.fill(150);
    gitlab.redis.slow_saving(20_000);
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, MAINTENANCE);
    for signal in ["-INT", "-TERM", "-HUP"] {
        let outcome = kill_while_stopped(&sandbox, &gitlab, signal).ends_with(130);
        assert_failed(&sandbox, &gitlab, &outcome, "interrupted");
    }
}

#[test]
fn missing_parts_make_a_backup_incomplete_unless_allowed() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    std::fs::remove_file(gitlab.path("etc/gitlab/gitlab-secrets.json")).expect("removes");
    std::fs::rename(gitlab.path("mnt/storage2"), gitlab.path("mnt/elsewhere")).expect("moves");
    gitlab.postgres.sql("postgres", "drop database gitlabhq_production_ci");
    configure(&sandbox, &gitlab, "");
    let outcome = backup(&sandbox).run().ends_with(3);
    let all = outcome.json();
    let mut missing: Vec<&str> = lines(&all, "missing_part")
        .into_iter()
        .filter(|line| line["is_required"] == true)
        .map(|line| line["part"].as_str().expect("a name"))
        .collect();
    missing.sort_unstable();
    assert_eq!(missing, ["database-ci", "repositories-storage2", "secrets"]);
    assert_eq!(summary(&all)["is_complete"], false);
    assert_failed(&sandbox, &gitlab, &outcome, "");
    let check = configured(&sandbox, ["config", "check"]).run().ends_with(3);
    assert!(check.stdout.contains("MISSING"), "{}", check.stdout);

    let ok = |part: &str| format!("[instances.forge.parts.{part}]\nmissing = 'ok'\n");
    let parts = ["database-ci", "repositories-storage2", "secrets"].map(ok).concat();
    configure(&sandbox, &gitlab, &parts);
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true);
    // Rows that name objects of the storage are still reported.
    let repositories = lines(&all, "check").into_iter().find(|line| line["name"] == "repositories");
    assert_eq!(repositories.expect("a check")["verdict"], "warning", "{all:?}");
}

#[test]
fn unmounted_data_makes_a_backup_incomplete_unless_allowed() {
    need_root();
    let gitlab = Builder::new().projects(10).build();
    let sandbox = Sandbox::new();
    let run = |more: &str, code: i32| {
        configure(&sandbox, &gitlab, more);
        backup(&sandbox).run().ends_with(code).json()
    };
    let check = |all: &[serde_json::Value], name: &str| {
        let check = lines(all, "check").into_iter().find(|line| line["name"] == name);
        let check = check.unwrap_or_else(|| panic!("{name}: {all:?}")).clone();
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        (text("verdict"), text("text"))
    };
    // Content once it is mounted, and an empty directory until then.
    let unmount = |path: &str| {
        let path = gitlab.path(path);
        std::fs::rename(&path, path.with_extension("away")).expect("moves");
        std::fs::create_dir(&path).expect("a directory");
    };
    unmount("mnt/storage2/repositories");
    let all = run("", 3);
    assert_eq!(summary(&all)["is_complete"], false);
    let (verdict, text) = check(&all, "repositories");
    assert_eq!(verdict, "failed", "{text}");
    assert!(text.contains("projects of storage storage2 are missing at"), "{text}");
    assert!(text.ends_with("mnt/storage2/repositories; check its mount"), "{text}");
    unmount("var/opt/gitlab/gitlab-rails/uploads");
    let (verdict, text) = check(&run("", 3), "files");
    assert_eq!(verdict, "failed", "{text}");
    assert!(text.contains("rows of uploads are missing at"), "{text}");
    // A pool of the first storage; its members exist.
    unmount("var/opt/gitlab/git-data/repositories/@pools");
    let (verdict, text) = check(&run("", 3), "pools");
    assert_eq!(verdict, "failed", "{text}");

    let all = run("checks = { lost = 'ok' }", 0);
    assert_eq!(summary(&all)["is_complete"], true);
    for name in ["repositories", "files", "pools"] {
        assert_eq!(check(&all, name).0, "warning", "{all:?}");
    }
}

#[test]
fn a_second_run_of_an_instance_is_refused() {
    need_root();
    let gitlab = Builder::new().projects(20).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "before = [{ command = ['sleep', '3'] }]");
    let first = backup(&sandbox).start();
    let started = Instant::now();
    while !sandbox.has("state/recovery/forge.lock") {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    let second = backup(&sandbox).run().ends_with(11);
    assert!(second.stderr.contains("another run"), "{}", second.stderr);
    first.wait().ok();
}

#[test]
fn a_failed_restart_of_a_service_is_a_failure() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    let lame = "[[instances.forge.services.stop]]\ncommand = ['true']\n\
                [[instances.forge.services.start]]\ncommand = ['sh', '-c', 'echo no luck; exit 7']\n";
    configure(&sandbox, &gitlab, &format!("{MAINTENANCE}\n{lame}"));
    // The snapshot exists and is whole, but must not count as a success.
    for _ in 0..2 {
        let outcome = backup(&sandbox).run().ends_with(3);
        let all = outcome.json();
        assert_eq!(summary(&all)["is_complete"], true);
        let failures = summary(&all)["failures"].to_string();
        assert!(failures.contains("cannot start") && failures.contains("no luck"), "{failures}");
        assert!(sandbox.has("state/recovery/forge.json"));
    }
    configured(&sandbox, ["recover"]).run().fails(1, &["no luck"]);
}

#[test]
fn after_commands_run_after_any_end_of_a_backup() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    let steps = |before: &str| {
        let log = sandbox.text("log");
        format!(
            "before = [{{ command = ['sh', '-c', 'echo before >> {log}; {before}'], limit = '1h' }}]\n\
             after = [{{ command = ['sh', '-c', 'echo after >> {log}'] }}]\n"
        )
    };
    let log = || String::from_utf8(sandbox.read("log")).expect("text");
    configure(&sandbox, &gitlab, &steps("exit 4"));
    backup(&sandbox).run().fails(1, &["exit code 4"]);
    assert_eq!(log(), "before\nafter\n");

    configure(&sandbox, &gitlab, &steps("exec sleep 600"));
    for signal in ["-TERM", "-KILL"] {
        sandbox.remove("log");
        let running = backup(&sandbox).start();
        let started = Instant::now();
        while !sandbox.has("log") {
            assert!(started.elapsed() < Duration::from_secs(60), "it never began");
            std::thread::sleep(Duration::from_millis(5));
        }
        sandbox.tool("kill").args([signal, &running.id().to_string()]).run().ok();
        running.wait();
        if signal == "-KILL" {
            assert_eq!(log(), "before\n");
            configured(&sandbox, ["recover"]).run().ok();
        }
        assert_eq!(log(), "before\nafter\n", "{signal}");
        assert!(!sandbox.has("state/recovery/forge.json"));
    }

    // The snapshot exists. The later failure is reported, and the remaining steps run.
    let after = format!(
        "after = [{{ command = ['sh', '-c', 'echo no lock; exit 9'] }}, {{ command = ['touch', '{}'] }}]",
        sandbox.text("rest")
    );
    configure(&sandbox, &gitlab, &after);
    let all = backup(&sandbox).run().ends_with(3).json();
    assert!(sandbox.has("rest"));
    assert_eq!(summary(&all)["is_complete"], true);
    assert!(summary(&all)["failures"].to_string().contains("no lock"), "{all:?}");
}

#[test]
fn a_dry_run_does_not_change_the_instance() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, MAINTENANCE);
    kill_while_stopped(&sandbox, &gitlab, "-KILL");
    let saves = || gitlab.redis.persistence("rdb_saves");
    let before = saves();
    backup(&sandbox).args(["--dry-run"]).run().ok();
    assert_eq!(saves(), before);
    assert!(!gitlab.services.is_up("puma") && sandbox.has("state/recovery/forge.json"));
    configured(&sandbox, ["recover"]).run().ok();
}

#[test]
fn redis_may_rename_its_file_but_must_not_crash() {
    need_root();
    let mut gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    gitlab.redis.ask(&["CONFIG", "SET", "dbfilename", "other.rdb"]);
    backup(&sandbox).run().ok();
    let dir = gitlab.path("var/opt/gitlab/redis");
    let found = configured(&sandbox, ["find", "--store", &sandbox.text("store"), "other.rdb"]);
    assert!(found.run().ok().stdout.contains("other.rdb"));

    gitlab.redis.slow_saving(10_000);
    let running = backup(&sandbox).start();
    let started = Instant::now();
    while gitlab.redis.persistence("rdb_bgsave_in_progress") == "0" {
        assert!(started.elapsed() < Duration::from_secs(60), "it never saved");
        std::thread::sleep(Duration::from_millis(5));
    }
    let log = sandbox.path("redis.log");
    gitlab.redis.signal(Signal::KILL);
    std::thread::sleep(Duration::from_millis(100));
    std::fs::remove_file(gitlab.redis.socket()).expect("removes");
    gitlab.redis = Redis::start(&dir, &log, "gitlab-redis", false);
    let outcome = running.wait().ends_with(1);
    assert!(
        outcome.stderr.contains("Redis") || outcome.stderr.contains("redis-cli"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_redis_that_refuses_saves_is_a_missing_part() {
    need_root();
    let gitlab = Builder::new().build();
    gitlab.redis.ask(&["ACL", "SETUSER", "default", "-bgsave"]);
    let sandbox = Sandbox::new();
    for mode in ["", MAINTENANCE] {
        configure(&sandbox, &gitlab, mode);
        let outcome = backup(&sandbox).run().ends_with(3);
        let all = outcome.json();
        assert_eq!(summary(&all)["is_complete"], false, "{all:?}");
        assert_eq!(summary(&all)["databases"], 2, "{all:?}");
        assert!(format!("{all:?}").to_lowercase().contains("bgsave"), "{all:?}");
    }
    gitlab.services.wait_until_up();
}

#[test]
fn a_rewritten_append_only_log_is_copied_whole() {
    need_root();
    let gitlab = Builder::new().redis_append_only().build();
    gitlab.redis.fill(2000);
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let mut running = backup(&sandbox).start();
    let mut rewrites = 0;
    while !running.has_ended() {
        // Refused while the last one is still running.
        rewrites += usize::from(gitlab.redis.starts_rewrite());
        std::thread::sleep(Duration::from_millis(100));
    }
    running.wait().ok();
    assert!(rewrites > 3, "{rewrites} rewrites during the backup");

    let dir = short_dir();
    let data = format!("latest:{}", gitlab.path("var/opt/gitlab/redis").display());
    let target = dir.path().join("redis");
    configured(&sandbox, ["restore", &data, "--store", &sandbox.text("store"), "--target"])
        .args([&target])
        .run()
        .ok();
    let restored = Redis::start(&target, &sandbox.path("log"), "gitlab-redis", true);
    assert_eq!(restored.ask(&["DBSIZE"]), "2000");
}

#[test]
fn a_redis_with_a_password_is_backed_up() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    gitlab.redis.ask(&["CONFIG", "SET", "requirepass", "hush hush"]);
    let outcome = backup(&sandbox).run().ends_with(1);
    let words = "it requires a password, and none was found (NOAUTH Authentication required.); \
                 set `redis.password` of the instance";
    assert_failed(&sandbox, &gitlab, &outcome, words);
    let check = || configured(&sandbox, ["config", "check"]).run();
    let checked = check().ends_with(3);
    assert!(checked.stderr.contains("cannot query Redis: Redis: it requires a password"));
    configured(&sandbox, ["config", "check", "--offline"]).run().ok();
    let conf = gitlab.path("var/opt/gitlab/redis/redis.conf");
    let mut text = std::fs::read_to_string(&conf).expect("reads");
    text += "requirepass \"hush \\x68ush\"\n";
    std::fs::write(&conf, &text).expect("writes");
    check().ok();
    sandbox.write("wrong", "bad");
    sandbox.tool("chmod").args(["600", &sandbox.text("wrong")]).run().ok();
    let own = format!("redis = {{ password = {{ file = '{}' }} }}", sandbox.text("wrong"));
    configure(&sandbox, &gitlab, &own);
    let outcome = backup(&sandbox).run().ends_with(1);
    let words = "wrong password in `redis.password` of the instance (NOAUTH";
    assert_failed(&sandbox, &gitlab, &outcome, words);
    configure(&sandbox, &gitlab, "");
    let resque = gitlab.path("var/opt/gitlab/gitlab-rails/etc/resque.yml");
    // A password of earlier days does not hide the right one.
    std::fs::write(&resque, "production:\n  password: hush\n").expect("writes");
    backup(&sandbox).run().ok();
    std::fs::write(&conf, text.replace("requirepass \"hush", "requirepass \"tush"))
        .expect("writes");
    let outcome = backup(&sandbox).run().ends_with(1);
    let all = outcome.all_output();
    assert!(all.contains("resque.yml and ") && all.contains("redis.conf (NOAUTH"), "{all}");
    std::fs::write(&resque, "production:\n  url: 'redis://:hush%20hush@localhost'\n")
        .expect("writes");
    let outcome = backup(&sandbox).run().ok();
    assert_eq!(summary(&outcome.json())["is_complete"], true);
    assert!(!outcome.all_output().contains("hush"), "{}", outcome.all_output());
}

#[test]
fn changed_keys_cause_a_warning_until_accepted() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let keys = |all: &[serde_json::Value]| {
        lines(all, "check").into_iter().find(|check| check["name"] == "keys").cloned()
    };
    let first = backup(&sandbox).run().ok().json();
    assert_eq!(keys(&first), None);
    let secrets = gitlab.path("etc/gitlab/gitlab-secrets.json");
    let text = std::fs::read_to_string(&secrets).expect("reads");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    value["gitlab_rails"]["db_key_base"] = "another key".into();
    std::fs::write(&secrets, value.to_string()).expect("writes");
    let outcome = backup(&sandbox).run().ok();
    assert!(!outcome.all_output().contains("another key"), "{}", outcome.all_output());
    let check = keys(&outcome.json()).expect("a check");
    assert_eq!(check["verdict"], "warning");
    let printed = check.to_string();
    let id = summary(&first)["snapshot_id"].as_str().expect("an id");
    assert!(printed.contains("db_key_base changed") && printed.contains(&id[..8]), "{printed}");
    // Reported every time, until someone confirms that it was intended.
    let again = keys(&backup(&sandbox).run().ok().json()).expect("a check");
    assert_eq!(again["text"], check["text"]);
    configure(&sandbox, &gitlab, "keys = { changed = 'ok' }");
    let accepted = keys(&backup(&sandbox).run().ok().json()).expect("a check");
    assert_eq!(accepted["verdict"], "ok", "{accepted}");
    configure(&sandbox, &gitlab, "");
    assert_eq!(keys(&backup(&sandbox).run().ok().json()), None);
}

#[test]
fn unreadable_secrets_make_a_backup_incomplete() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    // Root can read everything, so another user runs the backup, who can read all but the secrets.
    let own = "postgres = { user = 'nobody' }";
    configure(&sandbox, &gitlab, own);
    let tree = gitlab.root();
    sandbox.tool("chmod").args(["-R", "a+rX"]).args([tree]).run().ok();
    let secrets = gitlab.path("etc/gitlab/gitlab-secrets.json");
    sandbox.tool("chmod").args(["600"]).args([&secrets]).run().ok();
    let command = ["--config", &sandbox.text("forgekeep.toml"), "--init", "--json"];
    let run = || sandbox.as_nobody(["backup", "--instance", "forge"]).args(command);
    let outcome = run().run().ends_with(3);
    let all = outcome.json();
    assert_eq!(summary(&all)["is_complete"], false);
    let check = lines(&all, "check").into_iter().find(|line| line["name"] == "secrets");
    assert_eq!(check.expect("a check")["verdict"], "failed", "{all:?}");
    assert_failed(&sandbox, &gitlab, &outcome, "");
    sandbox.tool("chmod").args(["644"]).args([&secrets]).run().ok();
    assert_eq!(summary(&run().run().ok().json())["is_complete"], true);
}
