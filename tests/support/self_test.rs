//! Tests of the support itself: servers start, work, and are gone afterwards.

use super::accounts::Account;
use super::gitlab::{
    Builder, DATA, assert_pushes_are_there, assert_rows_have_files, fsck_all, short_dir,
};
use super::postgres::{Options, Postgres};
use super::redis::Redis;
use super::runit::{Runit, write_service};
use super::sandbox::{Run, need_root};
use super::server::{Signal, comes_true, wait_until};
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn a_database_server_can_crash_start_late_and_end() {
    let dir = short_dir();
    let sockets = dir.path().join("var/opt/gitlab/postgresql");
    let options = Options { sockets: sockets.clone(), ..Options::within(dir.path()) };
    let mut postgres = Postgres::start(options);
    postgres.sql("postgres", "create table t (a int); insert into t values (1), (2)");
    assert_eq!(postgres.query("postgres", "select a, a + 1 from t order by a"), "1|2\n2|3");
    assert!(postgres.psql("postgres", "select nonsense").code() != Some(0));
    assert!(sockets.join(".s.PGSQL.5432").exists());

    postgres.signal(Signal::QUIT);
    postgres.wait_for_end();
    assert!(!postgres.is_ready());

    let start = Instant::now();
    postgres.start_after(Duration::from_secs(1));
    wait_until("it answers", || postgres.is_ready());
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(postgres.query("postgres", "select count(*) from t"), "2");

    postgres.signal(Signal::STOP);
    drop(postgres);
    assert!(!sockets.join(".s.PGSQL.5432").exists(), "the server was stopped in good order");
}

#[test]
fn redis_saves_can_fail_and_be_slow() {
    let dir = short_dir();
    Account::named("gitlab-redis").own(dir.path());
    let redis = Redis::start(dir.path(), &dir.path().join("log"), "gitlab-redis", true);
    redis.fill(1000);
    redis.break_saving();
    redis.ask(&["BGSAVE"]);
    wait_until("a save failed", || redis.persistence("rdb_last_bgsave_status") == "err");
    redis.repair_saving();
    redis.ask(&["BGSAVE"]);
    wait_until("a save succeeded", || redis.persistence("rdb_last_bgsave_status") == "ok");
    assert!(dir.path().join("dump.rdb").is_file());
    assert!(dir.path().join("appendonlydir/appendonly.aof.manifest").is_file());
    redis.slow_saving(100_000);
    redis.ask(&["BGSAVE"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(redis.persistence("rdb_bgsave_in_progress"), "1");
}

#[test]
fn services_stop_and_stubborn_ones_are_killed() {
    let dir = short_dir();
    let services = dir.path().join("service");
    write_service(&services.join("kind"), "#!/bin/sh\nexec sleep infinity\n");
    write_service(
        &services.join("stubborn"),
        "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n",
    );
    let runit = Runit::start(&services, &dir.path().join("log"));
    runit.wait_until_up();
    runit.sv(&["stop"], "kind").ok();
    assert!(runit.status("kind").starts_with("down: "));
    runit.sv(&["-w", "1", "stop"], "stubborn").ends_with(1);
    assert!(runit.is_up("stubborn"));
    drop(runit);
    assert_nothing_runs_in(dir.path());
}

#[test]
fn an_instance_is_whole_and_ends_with_its_test() {
    need_root();
    let gitlab = Builder::new().mattermost().build();
    let root = gitlab.root().to_owned();
    // Five projects, three wikis, a design, a pool, two snippets, the wiki of a group.
    assert_eq!(gitlab.repositories.len(), 13);
    assert_eq!(fsck_all(&root), gitlab.repositories.len());
    assert!(assert_rows_have_files(&gitlab.postgres, &root) > 20);
    let ask = Run::limited(root.join("usr/bin/gitlab-psql"));
    let answer = ask.args(["-At", "-c", "select count(*) from projects"]).run().ok();
    assert_eq!(answer.stdout, "5\n");
    let status = gitlab.ctl(["status"]).ok().stdout;
    for service in ["gitaly", "mattermost", "postgresql", "puma", "redis", "sidekiq"] {
        assert!(status.contains(&format!("run: {service}: (pid ")), "{status}");
    }
    let fork = gitlab.repositories.iter().find(|repository| repository.pool.is_some());
    let alternates = fork.expect("a fork").dir.join("objects/info/alternates");
    std::fs::remove_file(alternates).expect("is there");
    assert!(panics(|| _ = fsck_all(&root)), "a fork without its pool was taken for whole");
    std::fs::write(
        root.join(DATA).join("gitlab-rails/uploads/-/system/user/avatar/1/avatar.png"),
        "other content",
    )
    .expect("writes");
    assert!(panics(|| _ = assert_rows_have_files(&gitlab.postgres, &root)));

    assert!(!processes_with(&root).is_empty());
    drop(gitlab);
    assert!(!root.exists());
    assert_nothing_runs_in(&root);
}

#[test]
fn the_writers_of_an_instance_write_until_they_are_stopped() {
    need_root();
    let gitlab = Builder::new().version("12.10.14-ee.0").web("unicorn").writers().build();
    let [pushes, uploads, artifacts] = gitlab.written();
    wait_until("all kinds are written", || {
        let now = gitlab.written();
        now[0] > pushes + 3 && now[1] > uploads && now[2] > artifacts + 1
    });
    gitlab.ctl(["stop", "unicorn"]).ok();
    gitlab.ctl(["stop", "sidekiq"]).ok();
    // An init script reports a stopped service with 3.
    assert!(gitlab.ctl(["status", "unicorn"]).ends_with(3).stdout.starts_with("down: unicorn"));
    let stopped = gitlab.written();
    assert_eq!(fsck_all(gitlab.root()), gitlab.repositories.len());
    assert!(assert_pushes_are_there(&gitlab.postgres, gitlab.root()) > 3);
    assert_rows_have_files(&gitlab.postgres, gitlab.root());
    assert_eq!(gitlab.written(), stopped);
    gitlab.ctl(["start", "unicorn"]).ok();
    wait_until("it writes again", || gitlab.written()[0] > stopped[0]);
    let root = gitlab.root().to_owned();
    drop(gitlab);
    assert_nothing_runs_in(&root);
}

fn panics(check: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err()
}

/// Killed processes take a moment to end.
fn assert_nothing_runs_in(dir: &Path) {
    let is_gone = comes_true(Duration::from_secs(1), || processes_with(dir).is_empty());
    assert!(is_gone, "{:?}", processes_with(dir));
}

/// Returns the command lines of all processes that mention a directory or run in it.
fn processes_with(dir: &Path) -> Vec<String> {
    let text = dir.to_str().expect("a readable path");
    let processes = std::fs::read_dir("/proc").expect("processes");
    processes
        .filter_map(|entry| {
            let process = entry.ok()?.path();
            let words = std::fs::read(process.join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            let at = std::fs::read_link(process.join("cwd")).ok()?;
            (words.contains(text) || at.starts_with(dir)).then_some(words)
        })
        .collect()
}
