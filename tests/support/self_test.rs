//! The support itself: servers start, do what they are for, and are gone afterwards.

use super::postgres::{Options, Postgres};
use super::server::{Signal, wait_until};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// A directory with a short name that servers of other accounts may pass.
fn short_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("fk").rand_bytes(4).tempdir_in("/tmp");
    let dir = dir.expect("a temporary directory");
    let pass = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(dir.path(), pass).expect("its mode");
    dir
}

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
