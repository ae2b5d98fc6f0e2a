//! Servers and databases with unusual settings.

use crate::support::accounts::Account;
use crate::support::gitlab::Builder;
use crate::support::instance::{self, backup, configured, lines, summary};
use crate::support::postgres::{Options, Postgres};
use crate::support::sandbox::{Sandbox, need_root};
use crate::support::server::{Server, Signal, wait_until};
use std::path::Path;

/// Returns a cluster in the sandbox.
fn cluster(sandbox: &Sandbox) -> Postgres {
    Postgres::start(Options::within(&sandbox.path("cluster")))
}

/// Writes a configuration for an instance that consists of databases.
fn configure(sandbox: &Sandbox, host: &Path, more: &str) {
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'plain'\n\
         [instances.forge.postgres]\nhost = '{}'\nuser = 'gitlab-psql'\nrole = 'gitlab-psql'\n{more}\n",
        sandbox.text("state"),
        sandbox.text("store"),
        host.display(),
    );
    sandbox.write("forgekeep.toml", text);
}

#[test]
fn server_timeouts_do_not_interrupt_dumps() {
    need_root();
    let sandbox = Sandbox::new();
    let postgres = cluster(&sandbox);
    for database in ["one", "two"] {
        postgres.sql("postgres", format!("create database {database}"));
        postgres.sql(
            database,
            "create table t as select n, repeat(md5(n::text), 10) as text from generate_series(1, 100000) n",
        );
    }
    // GitLab's package sets both to a minute. Its dumps take many minutes.
    postgres.sql("postgres", "alter system set idle_in_transaction_session_timeout = '50ms'");
    postgres.sql("postgres", "alter system set lock_timeout = '1ms'");
    postgres.sql("postgres", "select pg_reload_conf()");
    postgres.sql("postgres", "alter role \"gitlab-psql\" set statement_timeout = '1ms'");
    configure(&sandbox, postgres.socket_dir(), "");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["databases"], 2);
    assert_eq!(summary(&all)["is_complete"], true);
}

#[test]
fn inaccessible_databases_are_reported_and_skipped() {
    need_root();
    let sandbox = Sandbox::new();
    let postgres = cluster(&sandbox);
    for database in ["own", "rdsadmin", "closed", "theirs"] {
        postgres.sql("postgres", format!("create database {database}"));
        postgres.sql(database, "create table t as select 1 as n");
    }
    postgres.sql(
        "postgres",
        "create role plain login; alter database own owner to plain;
         revoke connect on database closed from public; create database noconn;
         alter database noconn allow_connections false;
         create database pattern owner plain is_template true; create database half;
         update pg_database set datconnlimit = -2 where datname = 'half';",
    );
    postgres.sql("own", "alter table t owner to plain");
    // A role may connect to them, but the server refuses.
    let rules = sandbox.path("cluster/data/pg_hba.conf");
    let text = std::fs::read_to_string(&rules).expect("reads");
    std::fs::write(&rules, format!("local rdsadmin all reject\n{text}")).expect("writes");
    postgres.sql("postgres", "select pg_reload_conf()");
    configure(&sandbox, postgres.socket_dir(), "");
    let text = String::from_utf8(sandbox.read("forgekeep.toml")).expect("text");
    sandbox.write("forgekeep.toml", text.replace("role = 'gitlab-psql'", "role = 'plain'"));
    let outcome = backup(&sandbox).run().ok();
    let all = outcome.json();
    assert_eq!(summary(&all)["is_complete"], true, "{}", outcome.all_output());
    assert_eq!(summary(&all)["databases"], 2, "{}", outcome.all_output());
    for words in [
        "database rdsadmin is not dumped: ",
        "database noconn is not dumped: it allows no connections",
        "database closed is not dumped: the role of the backup may not connect to it; \
         to dump it, grant CONNECT",
        "database theirs is not dumped: the role of the backup may not read 1 of its tables; \
         to dump it, grant SELECT",
        "database half is not dumped: an interrupted `drop database` has left it invalid; \
         it cannot be dumped: drop it",
    ] {
        assert!(outcome.all_output().contains(words), "`{words}`: {}", outcome.all_output());
    }
    let checked = configured(&sandbox, ["config", "check"]).run().ok().all_output();
    for words in
        ["also dumped  own\n", "also dumped  pattern\n", ", 2 databases", "database noconn"]
    {
        assert!(checked.contains(words), "`{words}`: {checked}");
    }
    // A requested database must be dumped.
    configure(&sandbox, postgres.socket_dir(), "databases = ['own', 'rdsadmin']");
    backup(&sandbox).run().fails(1, &["rdsadmin"]);
    configure(&sandbox, postgres.socket_dir(), "databases = ['own', 'half']");
    let printed = backup(&sandbox).run().ends_with(3).all_output();
    assert!(printed.contains("database half is not dumped"), "{printed}");
}

#[test]
fn databases_of_any_name_are_dumped_and_named_ones_must_exist() {
    need_root();
    let sandbox = Sandbox::new();
    let postgres = cluster(&sandbox);
    let names =
        ["a=b", "postgresql://x", "sl/ash", "sl%2Fash", "it's", "back\\slash", "Upper", " "];
    for name in names {
        postgres.sql("postgres", format!("create database \"{name}\""));
    }
    postgres
        .sql("postgres", "create database ascii encoding sql_ascii locale 'C' template template0");
    postgres.sql("ascii", "set client_encoding = sql_ascii; do $$ begin execute 'create table \"' || convert_from('\\xff'::bytea, 'sql_ascii') || '\" (n int)'; end $$");
    postgres
        .sql("postgres", "create database closed; alter database closed allow_connections false");
    configure(&sandbox, postgres.socket_dir(), "");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["databases"], names.len() + 1, "{all:?}");
    sandbox.restore("latest", "restored");
    let dumps = sandbox.path("restored/.forgekeep/databases");
    let dumps = std::fs::read_dir(dumps).expect("dumps").count();
    assert_eq!(dumps, names.len() + 2, "a dump each, and the globals");

    // The first accepts connections; the others make the backup incomplete.
    for missing in ["nowhere", "closed"] {
        configure(&sandbox, postgres.socket_dir(), &format!("databases = ['Upper', '{missing}']"));
        let all = backup(&sandbox).run().ends_with(3).json();
        assert_eq!(lines(&all, "missing_part")[0]["part"], format!("database-{missing}"));
        assert_eq!(summary(&all)["is_complete"], false);
    }
    configure(
        &sandbox,
        postgres.socket_dir(),
        "databases = ['Upper', 'ascii']\n[instances.forge.parts.database-ascii]\nskip = true",
    );
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["databases"], 1, "one is skipped on purpose");
    postgres.sql("postgres", "revoke connect on database postgres from public");
    postgres.sql("postgres", "create role backup superuser login");
    configure(&sandbox, postgres.socket_dir(), "databases = ['Upper', 'postgres']");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["databases"], 2, "the one to connect to may be wanted as well");
}

#[test]
fn a_database_that_vanished_since_the_last_snapshot_is_a_failure() {
    need_root();
    let sandbox = Sandbox::new();
    let postgres = cluster(&sandbox);
    postgres.sql("postgres", "create database one");
    postgres.sql("postgres", "create database two");
    configure(&sandbox, postgres.socket_dir(), "");
    backup(&sandbox).run().ok();
    postgres.sql("postgres", "drop database two");
    for _ in 0..2 {
        // Also the second time: an incomplete snapshot does not count as the previous one.
        let all = backup(&sandbox).run().ends_with(3).json();
        assert_eq!(summary(&all)["is_complete"], false);
        let check = lines(&all, "check").into_iter().find(|check| check["name"] == "databases");
        let text = check.expect("a check")["text"].to_string();
        assert!(text.contains("this backup lacks: two"), "{text}");
    }
    let inspected = configured(&sandbox, ["inspect", "--instance", "forge"]).run().ends_with(3);
    assert!(inspected.all_output().contains("lacks: two"), "{}", inspected.all_output());
    // The settings accept the loss, either for one backup or by a list.
    configure(&sandbox, postgres.socket_dir(), "databases = ['one']");
    backup(&sandbox).run().ok();
    configure(&sandbox, postgres.socket_dir(), "");
    backup(&sandbox).run().ok();
    postgres.sql("postgres", "alter database one rename to three");
    let accepted = "[instances.forge.checks]\nlost = 'ok'";
    configure(&sandbox, postgres.socket_dir(), accepted);
    backup(&sandbox).run().ok();
    configure(&sandbox, postgres.socket_dir(), "");
    backup(&sandbox).run().ok();
}

#[test]
fn a_missing_role_fails_the_backup_at_once() {
    need_root();
    let sandbox = Sandbox::new();
    let postgres = cluster(&sandbox);
    configure(&sandbox, postgres.socket_dir(), "wait = '1h'");
    let text = String::from_utf8(sandbox.read("forgekeep.toml")).expect("text");
    sandbox.write("forgekeep.toml", text.replace("role = 'gitlab-psql'", "role = 'nobody'"));
    backup(&sandbox).run().fails(1, &["role \"nobody\" does not exist"]);
}

#[test]
fn a_backup_waits_for_a_starting_server() {
    need_root();
    let sandbox = Sandbox::new();
    let mut postgres = cluster(&sandbox);
    postgres.sql("postgres", "create database one");
    configure(&sandbox, postgres.socket_dir(), "");
    for _ in 0..5 {
        // The server must recover and accepts no connections meanwhile.
        postgres.signal(Signal::QUIT);
        postgres.wait_for_end();
        postgres.start_after(std::time::Duration::from_millis(300));
        backup(&sandbox).run().ok();
    }
}

#[test]
fn a_backup_waits_for_a_free_connection() {
    need_root();
    let sandbox = Sandbox::new();
    let mut postgres = cluster(&sandbox);
    postgres.sql("postgres", "create database one");
    for setting in ["max_connections = 4", "superuser_reserved_connections = 0"] {
        postgres.sql("postgres", format!("alter system set {setting}"));
    }
    postgres.signal(Signal::INT);
    postgres.wait_for_end();
    postgres.start_again();
    // With one free connection, the backup reaches the database, and its dump has to wait.
    for taken in [4, 3] {
        configure(&sandbox, postgres.socket_dir(), "");
        let others: Vec<_> = (0..taken)
            .map(|_| {
                let sleep = ["-qc", "select pg_sleep(4)", "postgres"];
                postgres.tool("psql").args(sleep).start()
            })
            .collect();
        std::thread::sleep(std::time::Duration::from_secs(1));
        let started = std::time::Instant::now();
        backup(&sandbox).run().ok();
        assert!(started.elapsed().as_secs() >= 2, "it waited");
        others.into_iter().for_each(|other| drop(other.wait().ok()));
    }
    let others = (0..4)
        .map(|_| postgres.tool("psql").args(["-qc", "select pg_sleep(600)", "postgres"]).start());
    let others: Vec<_> = others.collect();
    std::thread::sleep(std::time::Duration::from_secs(1));
    configure(&sandbox, postgres.socket_dir(), "wait = '1s'");
    backup(&sandbox).run().fails(1, &["too many clients"]);
    postgres.signal(Signal::INT);
    postgres.wait_for_end();
    others.into_iter().for_each(|other| drop(other.wait()));
}

#[test]
fn a_pooler_is_refused_as_the_database_server() {
    need_root();
    let sandbox = Sandbox::new();
    let postgres = cluster(&sandbox);
    postgres.sql("postgres", "create database one");
    let dir = sandbox.path("pooler");
    std::fs::create_dir(&dir).expect("a directory");
    let account = Account::named("gitlab-psql");
    account.own(&dir);
    // The server's port in another directory; and one that ignores unknown parameters.
    for more in ["", "ignore_startup_parameters = options, extra_float_digits\n"] {
        let settings = format!(
            "[databases]\n* = host={} user=gitlab-psql\n[pgbouncer]\nlisten_addr =\nlisten_port = 5432\n\
             unix_socket_dir = {}\nauth_type = any\npool_mode = transaction\n{more}",
            postgres.socket_dir().display(),
            dir.display()
        );
        sandbox.write("pgbouncer.ini", settings);
        let file = sandbox.text("pgbouncer.ini");
        let log = sandbox.path("pgbouncer.log");
        let server = Server::start(account, &["/usr/sbin/pgbouncer", &file], &log, &[Signal::INT]);
        wait_until("the pooler listens", || dir.join(".s.PGSQL.5432").exists());
        configure(&sandbox, &dir, "databases = ['one']\nwait = '5s'");
        let outcome = backup(&sandbox).run();
        drop(server);
        outcome.fails(1, &["a pooler such as PgBouncer", "to those of the server itself"]);
    }
    configure(&sandbox, postgres.socket_dir(), "databases = ['one']");
    configured(&sandbox, ["backup", "--instance", "forge", "--init"]).run().ok();
}

/// Removes the file of a table, as a failed disk does.
fn damage(postgres: &Postgres, data: &Path, database: &str) {
    postgres.sql("postgres", format!("create database {database}"));
    postgres.sql(database, "create table t as select generate_series(1, 1000) as n");
    postgres.sql(database, "checkpoint");
    let file = postgres.query(database, "select pg_relation_filepath('t')");
    std::fs::remove_file(data.join(file.trim())).expect("removes");
}

#[test]
fn a_damaged_database_of_somebody_else_does_not_end_the_backup() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    instance::configure(&sandbox, &gitlab, "");
    backup(&sandbox).run().ok();
    damage(&gitlab.postgres, &gitlab.path("var/opt/gitlab/postgresql/data"), "a_metrics");
    for _ in 0..2 {
        let outcome = backup(&sandbox).run().ends_with(3);
        let all = outcome.json();
        assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
        assert_eq!(summary(&all)["databases"], 2, "{all:?}");
        let failures = summary(&all)["failures"].to_string();
        assert!(failures.contains("database a_metrics is not dumped: "), "{failures}");
    }
    // No half of a dump is left.
    let listed = sandbox.run(["ls", "latest:.forgekeep/databases"]).ok().stdout;
    assert!(listed.contains("gitlabhq_production.dump"), "{listed}");
    assert!(!listed.contains("metrics"), "{listed}");
    // The settings may demand it.
    let names = "postgres.databases = ['gitlabhq_production', 'a_metrics']";
    instance::configure(&sandbox, &gitlab, names);
    backup(&sandbox).run().fails(1, &["pg_dump", "t"]);
}

#[test]
fn a_damaged_database_of_a_plain_instance_makes_it_incomplete() {
    need_root();
    let sandbox = Sandbox::new();
    let postgres = cluster(&sandbox);
    postgres.sql("postgres", "create database whole");
    configure(&sandbox, postgres.socket_dir(), "");
    damage(&postgres, &sandbox.path("cluster/data"), "broken");
    let all = backup(&sandbox).run().ends_with(3).json();
    assert_eq!(summary(&all)["is_complete"], false);
    assert_eq!(summary(&all)["databases"], 1, "{all:?}");
    assert_eq!(lines(&all, "missing_part")[0]["part"], "database-broken");
}
