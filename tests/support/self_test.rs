//! The support itself: servers start, do what they are for, and are gone afterwards.

use super::gitlab::{Builder, assert_rows_have_files, fsck_all, short_dir};
use super::postgres::{Options, Postgres};
use super::sandbox::is_root;
use super::server::{Signal, wait_until};
use std::time::{Duration, Instant};

#[test]
fn a_database_server_crashes_starts_late_and_goes() {
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
fn an_instance_is_whole() {
    if !is_root() {
        return;
    }
    let start = Instant::now();
    let gitlab = Builder::new().build();
    eprintln!("{:?}", start.elapsed());
    assert_eq!(fsck_all(gitlab.root()), gitlab.repositories.len());
    assert!(assert_rows_have_files(&gitlab.postgres, gitlab.root()) > 20);
    let root = gitlab.root().to_owned();
    drop(gitlab);
    assert!(!root.exists());
}
