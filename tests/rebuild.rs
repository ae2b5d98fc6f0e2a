//! Rebuilds of whole instances, with real servers and services.

use crate::support::docker_gitlab::{self, DockerGitlab};
use crate::support::gitlab::database::{CI, MAIN};
use crate::support::gitlab::{Builder, DATA, Gitlab, assert_rows_have_files, fsck_all, short_dir};
use crate::support::gitlab_container::{self, GitlabContainer};
use crate::support::instance::{backup, configure, configured, lines, summary};
use crate::support::postgres::{Options, Postgres};
use crate::support::sandbox::{Dice, FORGEKEEP, Run, Sandbox, need_root};
use crate::support::server::{Signal, wait_until};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

/// Directories with data, below the root.
const DATA_DIRS: [&str; 5] = [
    "var/opt/gitlab/git-data/repositories",
    "mnt/storage2/repositories",
    "var/opt/gitlab/gitlab-rails/uploads",
    "var/opt/gitlab/gitlab-rails/shared/artifacts",
    "var/opt/gitlab/.ssh",
];

/// An instance with a snapshot.
struct Bench {
    gitlab: Gitlab,
    sandbox: Sandbox,
}

impl Bench {
    fn new(builder: Builder) -> Bench {
        need_root();
        let gitlab = builder.build();
        let sandbox = Sandbox::new();
        configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
        let bench = Bench { gitlab, sandbox };
        backup(&bench.sandbox).run().ok();
        bench
    }

    fn rebuild(&self, arguments: &[&str]) -> Run {
        let scratch = self.sandbox.text("scratch");
        std::fs::create_dir_all(&scratch).expect("a directory");
        let pass = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(&scratch, pass).expect("its mode");
        configured(&self.sandbox, ["rebuild", "forge", "--scratch", &scratch]).args(arguments)
    }

    /// Makes the instance look like a new machine, on which the package was just installed: all data
    /// and the secrets are new, and the databases are empty.
    fn make_new(&self) {
        for dir in DATA_DIRS {
            let dir = self.gitlab.path(dir);
            for entry in std::fs::read_dir(&dir).expect("lists") {
                let path = entry.expect("an entry").path();
                let removed = match path.is_dir() {
                    true => std::fs::remove_dir_all(&path),
                    false => std::fs::remove_file(&path),
                };
                removed.expect("removes");
            }
        }
        self.gitlab.postgres.sql("postgres", format!("drop database {MAIN}; drop database {CI}"));
        for name in [MAIN, CI] {
            let sql = format!("create database {name} owner gitlab");
            self.gitlab.postgres.sql("postgres", sql);
        }
        self.gitlab.postgres.sql(MAIN, "create table fresh (id int)");
        let secrets = self.gitlab.path("etc/gitlab/gitlab-secrets.json");
        std::fs::write(secrets, "{\"gitlab_rails\": {\"db_key_base\": \"new\"}}").expect("writes");
    }

    fn secrets(&self) -> String {
        std::fs::read_to_string(self.gitlab.path("etc/gitlab/gitlab-secrets.json")).expect("reads")
    }

    /// Asserts that everything is as it was in the snapshot.
    #[track_caller]
    fn assert_rebuilt(&self, repositories: usize) {
        assert_eq!(fsck_all(self.gitlab.root()), repositories);
        assert!(assert_rows_have_files(&self.gitlab.postgres, self.gitlab.root()) > 0);
        assert!(self.secrets().contains(&"2c".repeat(64)));
        let storage = self.gitlab.path(DATA_DIRS[0]).metadata().expect("is there");
        assert_eq!(storage.mode() & 0o7777, 0o2770);
        let git = crate::support::gitlab::git();
        assert_eq!((storage.uid(), storage.gid()), (git.uid, git.gid));
        let status = self.gitlab.ctl(["status"]);
        assert!(!status.stdout.contains("down: "), "{}", status.stdout);
        configured(&self.sandbox, ["inspect", "--instance", "forge"]).run().ok();
    }
}

/// Prepares a run of a shell script that reads the sandbox's configuration, in a mount namespace.
fn in_namespace(sandbox: &Sandbox, script: &str) -> Run {
    sandbox
        .in_mount_namespace(script)
        .env("FORGEKEEP_CONFIG", sandbox.text("forgekeep.toml"))
        .without_env("FORGEKEEP_STORE")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry"));
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_new_machine_becomes_the_instance_of_the_snapshot() {
    let bench = Bench::new(Builder::new());
    let repositories = fsck_all(bench.gitlab.root());
    bench.make_new();
    let fresh = bench.secrets();

    // A dry run changes nothing, and data of this machine needs consent.
    let outcome = bench.rebuild(&["--dry-run"]).run().ok();
    for part in
        ["would move", "would run", "would stop", "rename the one here", "nothing was changed"]
    {
        assert!(outcome.stdout.contains(part), "{part}: {}", outcome.stdout);
    }
    let refused = bench.rebuild(&[]).run().ends_with(1);
    assert!(refused.stderr.contains("give --yes"), "{}", refused.stderr);
    assert_eq!(bench.secrets(), fresh);
    assert_eq!(bench.gitlab.postgres.query(MAIN, "select count(*) from fresh"), "0");

    let all = bench.rebuild(&["--yes", "--json"]).run().ok().json();
    let summary = summary(&all);
    assert_eq!(summary["is_good"], true, "{all:#?}");
    assert!(summary["left"].to_string().contains("gitlab:check SANITIZE=true"), "{summary}");
    bench.assert_rebuilt(repositories);
    for check in lines(&all, "check") {
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    let checked = |name: &str| lines(&all, "check").iter().any(|check| check["name"] == name);
    for name in ["fsck", "write", "secrets", "owners", &format!("database-{MAIN}")] {
        assert!(checked(name), "{name}");
    }

    // Everything that was there before is kept.
    let moved = lines(&all, "moved");
    let place = |from: &str| {
        let line = moved.iter().find(|line| line["from"] == from);
        line.unwrap_or_else(|| panic!("{from}: {moved:?}"))["to"].as_str().expect("text").to_owned()
    };
    let old = place(bench.gitlab.path("etc/gitlab").to_str().expect("text"));
    let old = std::fs::read_to_string(Path::new(&old).join("gitlab-secrets.json")).expect("reads");
    assert_eq!(old, fresh);
    let database = place(&format!("database {MAIN}"));
    let database = database.strip_prefix("database ").expect("a database");
    assert_eq!(bench.gitlab.postgres.query(database, "select count(*) from fresh"), "0");
    // The configuration was applied with the secrets of the snapshot only.
    let log = std::fs::read_to_string(bench.gitlab.path("var/log/gitlab/reconfigure"));
    let log = log.expect("was run");
    let sums: Vec<&str> = log.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{log}");
    // Jobs of the new machine would act on the old databases.
    assert_eq!(bench.gitlab.redis.ask(&["DBSIZE"]).trim(), "0");
    let dump = place(bench.gitlab.path("var/opt/gitlab/redis/dump.rdb").to_str().expect("text"));
    assert!(Path::new(&dump).metadata().expect("is kept").len() > 1000, "{dump}");

    // The instance works: it can be backed up.
    backup(&bench.sandbox).run().ok();
    assert!(names(&bench.sandbox.path("state/rebuild")).is_empty());
}

/// Starts a command and kills it once it has printed some lines. Returns these lines.
fn kill_after(mut run: Run, lines: usize) -> Vec<String> {
    let command = run.command().stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let printed = output.lines().take(lines).map(|line| line.expect("text")).collect();
    child.kill().expect("kills");
    child.wait().expect("ends");
    printed
}

/// Kills a command when it prints a line that begins with these words.
fn kill_at(run: &mut Run, words: &str) {
    let command = run.command().stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let found = output.lines().any(|line| line.expect("text").starts_with(words));
    child.kill().expect("kills");
    child.wait().expect("ends");
    assert!(found, "{words}");
}

#[test]
fn a_killed_rebuild_continues_at_every_line() {
    let bench = Bench::new(Builder::new().projects(2));
    let repositories = fsck_all(bench.gitlab.root());
    bench.make_new();
    let fresh = bench.secrets();
    let (mut kills, mut has_begun) = (0, false);
    // Each call gets one line further than the one before, and is killed there.
    for line in 1.. {
        let printed = kill_after(bench.rebuild(&["--yes"]), line);
        let unfinished = bench.sandbox.path("state/rebuild/forge.json").exists();
        let is_over = printed.last().is_some_and(|last| last.starts_with("9/9"));
        if is_over || (has_begun && !unfinished) {
            break;
        }
        kills += 1;
        has_begun = unfinished;
        if unfinished {
            // An unfinished instance must not become the latest snapshot.
            let refused = backup(&bench.sandbox).run().ends_with(1);
            assert!(refused.all_output().contains("is not finished"), "{}", refused.all_output());
        }
    }
    assert!(kills > 8, "{kills}");
    if bench.sandbox.path("state/rebuild/forge.json").exists() {
        bench.rebuild(&[]).run().ok();
    }
    // A restart of the machine in the middle starts all services.
    let mut running = bench.rebuild(&["--yes"]);
    kill_at(&mut running, "5/9");
    bench.gitlab.ctl(["start"]);
    let continued = bench.rebuild(&[]).run().ok();
    let stopped = continued.stdout.lines().find(|line| line.starts_with("4/9")).expect("a line");
    assert!(stopped.contains("stopped") && stopped.contains("puma"), "{}", continued.stdout);
    let moved = names(&bench.gitlab.path("etc"));
    for name in moved.iter().filter(|name| name.starts_with("gitlab.before")).skip(1) {
        std::fs::remove_dir_all(bench.gitlab.path("etc").join(name)).expect("removes");
    }
    for name in [MAIN, CI] {
        let newest = format!(
            "select max(datname) from pg_database where datname like '{name}_before_rebuild%'"
        );
        let newest = bench.gitlab.postgres.query("postgres", newest);
        bench.gitlab.postgres.sql("postgres", format!("drop database \"{newest}\""));
    }
    bench.assert_rebuilt(repositories);
    // Only the data of the new machine was moved, and only once.
    let moved = names(&bench.gitlab.path("etc"));
    let moved: Vec<_> = moved.iter().filter(|name| name.starts_with("gitlab.before")).collect();
    assert_eq!(moved.len(), 1, "{moved:?}");
    let old = bench.gitlab.path("etc").join(moved[0]).join("gitlab-secrets.json");
    assert_eq!(std::fs::read_to_string(old).expect("reads"), fresh);
    let databases = "select count(*) from pg_database where datname like '%before_rebuild%'";
    assert_eq!(bench.gitlab.postgres.query("postgres", databases), "2");
    backup(&bench.sandbox).run().ok();
}

#[test]
fn links_of_the_new_machine_are_kept() {
    let bench = Bench::new(Builder::new().projects(2));
    let repositories = fsck_all(bench.gitlab.root());
    bench.make_new();
    // The administrator has prepared a larger disk.
    let [seen, disk] = [DATA_DIRS[0], "mnt/disk/repositories"].map(|dir| bench.gitlab.path(dir));
    std::fs::create_dir_all(&disk).expect("directories");
    std::fs::write(disk.join("old"), "old").expect("writes");
    std::fs::remove_dir_all(&seen).expect("removes");
    std::os::unix::fs::symlink("../../../../mnt/disk/repositories", &seen).expect("links");
    // A link that a service made could lead anywhere.
    let uploads = bench.gitlab.path(DATA_DIRS[2]);
    std::fs::remove_dir_all(&uploads).expect("removes");
    let victim = bench.gitlab.path("mnt/victim");
    std::fs::create_dir_all(victim.join("inner")).expect("directories");
    std::fs::write(victim.join("inner/file"), "precious").expect("writes");
    std::os::unix::fs::symlink("/mnt/victim", &uploads).expect("links");
    let git = crate::support::gitlab::git();
    std::os::unix::fs::lchown(&uploads, Some(git.uid), Some(git.gid)).expect("gives");
    bench.rebuild(&["--yes"]).run().fails(1, &["leads to", "make the link as root"]);
    std::fs::remove_file(&uploads).expect("removes");

    bench.rebuild(&["--yes"]).run().ok();
    assert!(seen.is_symlink() && disk.join("@hashed").is_dir());
    assert_eq!(std::fs::read_to_string(victim.join("inner/file")).expect("reads"), "precious");
    let kept = names(disk.parent().expect("a directory"));
    assert!(kept[1].starts_with("repositories.before-rebuild-"), "{kept:?}");
    bench.assert_rebuilt(repositories);
}

#[test]
fn a_stopped_redis_gets_the_queue_of_the_same_moment() {
    let bench = Bench::new(Builder::new().projects(1));
    let dump = bench.gitlab.path(DATA).join("redis/dump.rdb");
    let saved = std::fs::read(&dump).expect("was saved by the backup");
    // `gitlab-ctl stop` would end it.
    bench.gitlab.redis.signal(Signal::KILL);
    wait_until("it is gone", || !is_answering(&bench.gitlab));
    std::fs::write(&dump, "of the new machine").expect("writes");
    // Redis would load it instead of the restored file.
    std::fs::write(dump.with_file_name("appendonly.aof"), "newer").expect("writes");
    let outcome = bench.rebuild(&["--yes"]).run().ok();
    assert_eq!(std::fs::read(&dump).expect("is restored"), saved, "{}", outcome.stdout);
    let owner = crate::support::accounts::Account::named("gitlab-redis");
    assert_eq!(dump.metadata().expect("is there").uid(), owner.uid);
    let kept = names(dump.parent().expect("a directory"));
    assert!(!kept.contains(&"appendonly.aof".to_owned()), "{kept:?}");
    assert!(kept.iter().any(|name| name.starts_with("appendonly.aof.before")), "{kept:?}");
    let kept = kept.iter().find(|name| name.starts_with("dump.rdb.before-rebuild-"));
    let kept = dump.with_file_name(kept.expect("the file of the new machine"));
    assert_eq!(std::fs::read_to_string(kept).expect("reads"), "of the new machine");
}

/// The configuration reads files of the system, which those of another machine must not replace.
#[test]
fn files_of_the_machine_stay() {
    let bench = Bench::new(Builder::new().projects(1));
    let [name, disks, settings] =
        ["etc/hostname", "etc/fstab", "etc/gitlab/gitlab.rb"].map(|path| bench.gitlab.path(path));
    let mut text = std::fs::read_to_string(&settings).expect("reads");
    text += "external_url File.read('/etc/hostname')\nbackups = File.read('/etc/fstab')\n";
    std::fs::write(&settings, text).expect("writes");
    for file in [&name, &disks] {
        std::fs::write(file, "of the old machine").expect("writes");
    }
    backup(&bench.sandbox).run().ok();
    std::fs::write(&name, "of this machine").expect("writes");
    std::fs::remove_file(&disks).expect("removes");
    let outcome = bench.rebuild(&["--yes"]).run().ok();
    assert_eq!(std::fs::read_to_string(&name).expect("reads"), "of this machine");
    assert!(!disks.exists());
    let left = format!("with those of the snapshot: {}, {}\n", disks.display(), name.display());
    assert!(outcome.stdout.contains(&left), "{}", outcome.stdout);
}

fn is_answering(gitlab: &Gitlab) -> bool {
    let socket = gitlab.redis.socket();
    Run::limited("redis-cli").args(["-s"]).args([socket]).args(["PING"]).run().code() == Some(0)
}

#[test]
fn another_version_is_refused_before_anything_changes() {
    let bench = Bench::new(Builder::new().projects(1));
    let manifest = bench.gitlab.path("opt/gitlab/version-manifest.txt");
    let text = std::fs::read_to_string(&manifest).expect("reads");
    for (old, new) in [("17.8.2", "17.9.0"), ("gitlab-ce", "gitlab-ee")] {
        std::fs::write(&manifest, text.replace(old, new)).expect("writes");
        let refused = bench.rebuild(&["--yes"]).run().ends_with(1);
        assert!(
            refused.stderr.contains("the snapshot is of GitLab 17.8.2 ce"),
            "{}",
            refused.stderr
        );
        assert!(refused.stderr.contains("install exactly"), "{}", refused.stderr);
    }
    std::fs::write(&manifest, text).expect("writes");
    assert_eq!(names(&bench.gitlab.path("etc")), ["gitlab"]);
    assert!(!bench.gitlab.path("var/log/gitlab/reconfigure").exists());
    let unknown = bench.rebuild(&["2019-01-01", "--yes"]).run();
    assert_ne!(unknown.code(), Some(0));
    // A store within the data would move with it.
    let store = bench.gitlab.path(DATA).join("gitlab-rails/uploads/store");
    let copied = Run::limited("cp").args(["-a"]).args([bench.sandbox.path("store"), store.clone()]);
    copied.run().ok();
    let refused = bench.rebuild(&["--yes", "--store", store.to_str().expect("text")]).run();
    assert!(refused.ends_with(1).stderr.contains("the store"), "the store would move");
}

/// Writes a configuration for an instance of any kind.
fn configure_kind(sandbox: &Sandbox, kind: &str, root: &Path, more: &str) {
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = '{kind}'\nroot = '{}'\n\
         {more}\n",
        sandbox.text("state"),
        sandbox.text("store"),
        root.display(),
    );
    sandbox.write("forgekeep.toml", text);
}

#[test]
fn directories_and_a_database_of_no_product_are_rebuilt() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = Postgres::start(Options::within(&dir.path().join("pg")));
    let rows = "create table t (id int); insert into t select generate_series(1, 500)";
    postgres.sql("postgres", "create role app login; create database shop owner app");
    postgres.sql("shop", format!("set role app; {rows}"));
    let data = dir.path().join("srv/data");
    std::fs::create_dir_all(data.join("inner")).expect("directories");
    std::fs::write(data.join("inner/file"), "content").expect("writes");
    let log = sandbox.text("services.log");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n\
         [instances.forge.postgres]\nhost = '{}'\nuser = 'postgres'\nrole = '{}'\nwait = '2s'\n\
         [instances.forge.services]\n\
         stop = [{{ command = ['sh', '-c', 'echo stop >> {log}'] }}]\n\
         start = [{{ command = ['sh', '-c', 'echo start >> {log}'] }}]\n",
        data.display(),
        postgres.socket_dir().display(),
        postgres.superuser(),
    );
    configure_kind(&sandbox, "plain", dir.path(), &more);
    backup(&sandbox).run().ok();

    // On a machine without any of it, nothing has to move, and no consent is needed.
    std::fs::remove_dir_all(dir.path().join("srv")).expect("removes");
    postgres.sql("postgres", "drop database shop; drop role app");
    let scratch = dir.path().to_str().expect("text");
    let rebuild = |arguments: &[&str]| {
        configured(&sandbox, ["rebuild", "forge", "--scratch", scratch]).args(arguments).run()
    };
    let outcome = rebuild(&[]).ok();
    assert!(!outcome.stdout.contains("kept:"), "{}", outcome.stdout);
    assert_eq!(std::fs::read_to_string(data.join("inner/file")).expect("reads"), "content");
    assert_eq!(postgres.query("shop", "select count(*), max(id) from t"), "500|500");
    let owner = "select pg_get_userbyid(datdba) from pg_database where datname = 'shop'";
    assert_eq!(postgres.query("postgres", owner), "app");
    assert_eq!(String::from_utf8_lossy(&sandbox.read("services.log")), "stop\nstart\n");

    // A newer database is kept under another name.
    postgres.sql("shop", "drop table t; create extension pg_trgm; create table t (name text)");
    postgres.sql("shop", "create index on t using gin (name gin_trgm_ops)");
    backup(&sandbox).run().ok();
    postgres.sql("shop", "insert into t values ('newer')");
    rebuild(&["--yes"]).ok();
    assert_eq!(postgres.query("shop", "select count(*) from t"), "0");
    let kept = "select datname from pg_database where datname like 'shop_before%'";
    let kept = postgres.query("postgres", kept);
    assert_eq!(postgres.query(&kept, "select name from t"), "newer");

    // It is not dumped, and the next rebuild does not load it. `config check` names it.
    backup(&sandbox).run().ok();
    let inspected = configured(&sandbox, ["config", "check"]).run().ok();
    assert!(inspected.stdout.contains(&format!("{kept} is not dumped")), "{}", inspected.stdout);
    let listed = sandbox.forgekeep(["ls", "forge@latest"]).run().ok();
    assert!(!listed.stdout.contains("before"), "{}", listed.stdout);

    // Extensions and the server are examined before anything moves.
    postgres.sql(
        "shop",
        "set allow_system_table_mods = on; update pg_extension set extname = 'absent_one' \
         where extname = 'pg_trgm'",
    );
    backup(&sandbox).run().ok();
    let before = names(&dir.path().join("srv"));
    for arguments in [&["--dry-run"][..], &["--yes"]] {
        let refused = rebuild(arguments).ends_with(1);
        assert!(refused.stderr.contains("does not have: absent_one"), "{}", refused.all_output());
    }
    drop(postgres);
    let refused = rebuild(&["--yes"]).ends_with(1);
    assert!(refused.stderr.contains("run the command again"), "{}", refused.all_output());
    assert_eq!(names(&dir.path().join("srv")), before);
}

/// A call cannot make the database, so the admin makes one, and it is used. Roles of other
/// applications and the role that connects stay as they are.
#[test]
fn databases_and_roles_of_others_stay() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = Postgres::start(Options::within(&dir.path().join("pg")));
    let space = dir.path().join("space");
    let make_space = || {
        std::fs::create_dir(&space).expect("a directory");
        let owner = dir.path().join("pg/data").metadata().expect("is there");
        std::os::unix::fs::chown(&space, Some(owner.uid()), Some(owner.gid())).expect("gives");
    };
    make_space();
    postgres.sql("postgres", format!("create tablespace space location '{}'", space.display()));
    postgres.sql("postgres", "create role app login password 'then'");
    postgres.sql("postgres", "create role other login password 'then'");
    postgres.sql("postgres", "create database shop owner app tablespace space");
    postgres.sql("shop", "set role app; create table t (id int); insert into t values (1)");
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).expect("directories");
    std::fs::write(data.join("file"), "content").expect("writes");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n\
         [instances.forge.postgres]\nhost = '{}'\nuser = 'postgres'\nrole = '{}'\n",
        data.display(),
        postgres.socket_dir().display(),
        postgres.superuser(),
    );
    configure_kind(&sandbox, "plain", dir.path(), &more);
    backup(&sandbox).run().ok();

    let secrets = "select rolname, rolsuper, rolpassword from pg_authid where rolname in \
                   ('other', current_user) order by 1";
    postgres.sql("postgres", "alter role other superuser password 'now'");
    postgres.sql("postgres", "alter role app password 'now'");
    postgres.sql("postgres", "alter role current_user password 'now'");
    let of_others = postgres.query("postgres", secrets);
    let of_app = "select rolpassword from pg_authid where rolname = 'app'";
    let own = postgres.query("postgres", of_app);
    postgres.sql("postgres", "drop database shop");
    postgres.sql("postgres", "drop tablespace space");
    std::fs::remove_dir_all(&space).expect("removes");
    let scratch = dir.path().to_str().expect("text");
    let rebuild = |arguments: &[&str]| {
        configured(&sandbox, ["rebuild", "forge", "--scratch", scratch]).args(arguments).run()
    };
    let refused = rebuild(&["--yes"]).ends_with(1);
    let reason = "PostgreSQL cannot create database shop: ";
    assert!(refused.stderr.contains(reason), "{}", refused.all_output());
    assert!(refused.stderr.contains("tablespace"), "{}", refused.all_output());
    assert_eq!(postgres.query("postgres", secrets), of_others);
    assert_ne!(postgres.query("postgres", of_app), own);

    // Somebody helps himself before the cause is mended.
    postgres.sql("postgres", "create database shop");
    postgres.sql("shop", "create table t (id int); insert into t values (-9)");
    make_space();
    let outcome = rebuild(&["--yes"]).ok();
    assert!(outcome.stdout.contains("roles: stay as they are here: "));
    assert_eq!(postgres.query("shop", "select id from t"), "1");
    let kept = "select datname from pg_database where datname like 'shop_before%'";
    let kept = postgres.query("postgres", kept);
    assert_eq!(postgres.query(&kept, "select id from t"), "-9");
    assert!(outcome.stdout.contains(&kept), "{}", outcome.stdout);
    assert_eq!(postgres.query("postgres", secrets), of_others);
}

/// Settings of databases hold while their dumps are loaded, and for counting rows.
#[test]
fn databases_with_settings_of_their_own_are_rebuilt() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = Postgres::start(Options::within(&dir.path().join("pg")));
    postgres.sql("postgres", "create database shop");
    postgres.sql("postgres", "create database archive");
    postgres.sql("shop", "create schema app; create table app.item (id int)");
    postgres.sql("shop", "insert into app.item values (1)");
    postgres.sql("archive", "create table t (id int); insert into t values (1)");
    postgres.sql("postgres", "alter database shop set search_path = app");
    postgres.sql("postgres", "alter database archive set default_transaction_read_only = on");
    let data = dir.path().join("srv/data");
    std::fs::create_dir_all(&data).expect("directories");
    std::fs::write(data.join("file"), "content").expect("writes");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n\
         [instances.forge.postgres]\nhost = '{}'\nuser = 'postgres'\nrole = '{}'\n\
         databases = ['archive', 'shop']\n",
        data.display(),
        postgres.socket_dir().display(),
        postgres.superuser(),
    );
    configure_kind(&sandbox, "plain", dir.path(), &more);
    backup(&sandbox).run().ok();
    let scratch = dir.path().to_str().expect("text");
    configured(&sandbox, ["drill", "forge", "--scratch", scratch]).run().ok();
    configured(&sandbox, ["rebuild", "forge", "--yes", "--scratch", scratch]).run().ok();
    assert_eq!(postgres.query("archive", "select count(*) from t"), "1");
    assert_eq!(postgres.query("shop", "select count(*) from item"), "1");

    // A role that may not create databases is known before anything changes.
    postgres.sql("postgres", "create role weak login");
    let weak = more.replace(postgres.superuser(), "weak");
    configure_kind(&sandbox, "plain", dir.path(), &weak);
    let refused = configured(&sandbox, ["rebuild", "forge", "--yes", "--scratch", scratch]);
    refused.run().fails(1, &["role weak may not create databases", "nothing was changed"]);
}

/// A Redis that the backup asks for its files, and that the commands of the configuration stop.
#[test]
fn a_redis_without_a_part_gets_its_saved_queue() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let redis = dir.path().join("redis");
    std::fs::create_dir_all(&redis).expect("directories");
    std::fs::create_dir_all(dir.path().join("data")).expect("directories");
    std::fs::write(dir.path().join("data/f"), "content").expect("writes");
    let at = redis.to_str().expect("text");
    sandbox.write("redis.conf", format!("unixsocket {at}/s\nport 0\ndir {at}\ndaemonize yes\n"));
    let client = |words: &[&str]| {
        let socket = format!("{at}/s");
        let run = sandbox.tool("redis-cli").args(["-s", &socket]).args(words).run();
        run.ok().stdout.trim().to_owned()
    };
    sandbox.write(
        "control",
        format!(
            "case $1 in\nstop) redis-cli -s {at}/s shutdown save || true ;;\n\
             start) redis-server {}; until redis-cli -s {at}/s ping; do sleep 0.1; done ;;\nesac\n",
            sandbox.text("redis.conf")
        ),
    );
    let control = sandbox.text("control");
    sandbox.tool("sh").args([&control, "start"]).run().ok();
    client(&["set", "job", "of the snapshot"]);
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n[instances.forge.redis]\nsocket = '{at}/s'\n\
         [instances.forge.services]\nstop = [{{ command = ['sh', '{control}', 'stop'] }}]\n\
         start = [{{ command = ['sh', '{control}', 'start'] }}]\n",
        dir.path().join("data").display(),
    );
    configure_kind(&sandbox, "plain", dir.path(), &more);
    backup(&sandbox).run().ok();
    client(&["set", "job", "later"]);
    client(&["set", "other", "later"]);
    configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ok();
    let found = (client(&["get", "job"]), client(&["get", "other"]));
    assert_eq!(found, ("of the snapshot".into(), String::new()));

    // A server with its files at another place, whose file has another name.
    sandbox.tool("sh").args([&control, "stop"]).run().ok();
    let other = dir.path().join("other");
    std::fs::create_dir_all(&other).expect("directories");
    for (name, log) in [("dump.rdb", ""), ("queue.rdb", ""), ("q.rdb", "appendonly yes\n")] {
        let config = format!(
            "unixsocket {at}/s\nport 0\ndir {}\ndbfilename {name}\n{log}appenddirname logs\n\
             daemonize yes\n",
            other.display()
        );
        sandbox.write("redis.conf", config);
        sandbox.tool("sh").args([&control, "start"]).run().ok();
        client(&["set", "job", "later"]);
        client(&["set", "other", "later"]);
        let planned = configured(&sandbox, ["rebuild", "forge", "--dry-run"]).run().ok();
        let place = format!("as {}", other.join(name).display());
        assert!(planned.stdout.contains(&place), "{}", planned.stdout);
        let outcome = configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ok();
        let found = (client(&["get", "job"]), client(&["get", "other"]));
        let expected = ("of the snapshot".to_owned(), String::new());
        assert_eq!(found, expected, "{}", outcome.all_output());
        sandbox.tool("sh").args([&control, "stop"]).run().ok();
    }

    // A server that tells its place only after the start.
    sandbox.write(
        "redis.conf",
        format!("unixsocket {at}/s\nport 0\ndir {}\ndaemonize yes\n", other.display()),
    );
    let outcome = configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ends_with(3);
    let text = "and the saved queue was restored to";
    assert!(outcome.all_output().contains(text), "{}", outcome.all_output());

    // A server that nothing stops is emptied, if the admin agrees and it can be.
    let without = more.split("[instances.forge.services]").next().expect("the start");
    configure_kind(&sandbox, "plain", dir.path(), without);
    client(&["set", "other", "later"]);
    let kept = dir.path().join("data");
    std::fs::rename(&kept, dir.path().join("away")).expect("moves");
    let refused = configured(&sandbox, ["rebuild", "forge"]).run();
    refused.fails(1, &[&format!("Redis {at}/s has"), "keys", "give --yes"]);
    assert_eq!(client(&["get", "other"]), "later");
    client(&["replicaof", "127.0.0.1", "9"]);
    let planned = configured(&sandbox, ["rebuild", "forge", "--dry-run"]).run().ok();
    assert!(planned.stdout.contains("so it would stay as it is"), "{}", planned.stdout);
    let outcome = configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ends_with(3);
    let text = "could not be emptied: Redis: it is a replica of 127.0.0.1:9";
    assert!(outcome.all_output().contains(text), "{}", outcome.all_output());
    client(&["replicaof", "no", "one"]);
    client(&["acl", "setuser", "default", "-flushall"]);
    let planned = configured(&sandbox, ["rebuild", "forge", "--dry-run"]).run().ok();
    assert!(planned.stdout.contains("cannot be emptied"), "{}", planned.stdout);
    configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ends_with(3);
    client(&["acl", "setuser", "default", "+flushall"]);
    assert_eq!(client(&["get", "other"]), "later");
    let planned = configured(&sandbox, ["rebuild", "forge", "--dry-run"]).run().ok();
    assert!(planned.stdout.contains("would be emptied"), "{}", planned.stdout);
    let outcome = configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ok();
    assert!(outcome.stdout.contains("/s emptied"), "{}", outcome.stdout);
    assert_eq!(client(&["get", "other"]), "");
    configure_kind(&sandbox, "plain", dir.path(), &more);

    // A server that writes a log by now, and would start empty without one.
    sandbox.tool("sh").args([&control, "stop"]).run().ok();
    let config = format!("unixsocket {at}/s\nport 0\ndir {at}\ndaemonize yes\nappendonly yes\n");
    sandbox.write("redis.conf", &config);
    sandbox.tool("sh").args([&control, "start"]).run().ok();
    client(&["set", "other", "later"]);
    let outcome = configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ok();
    let found = (client(&["get", "job"]), client(&["get", "other"]));
    let expected = ("of the snapshot".to_owned(), String::new());
    assert_eq!(found, expected, "{}", outcome.all_output());

    // A log of another name than that of the snapshot.
    backup(&sandbox).run().ok();
    sandbox.tool("sh").args([&control, "stop"]).run().ok();
    sandbox.write("redis.conf", format!("{config}appendfilename other.aof\n"));
    sandbox.tool("sh").args([&control, "start"]).run().ok();
    client(&["set", "other", "later"]);
    let outcome = configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ok();
    let found = (client(&["get", "job"]), client(&["get", "other"]));
    client(&["shutdown", "nosave"]);
    assert_eq!(found, expected, "{}", outcome.all_output());
}

/// The configuration of the snapshot names the server of the old machine, and this machine has
/// another one, or none.
#[test]
fn only_the_expected_database_server_is_changed() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let old = crate::mattermost::alone(dir.path());
    sandbox.write("services/state", "active\n");
    configure_kind(&sandbox, "mattermost", dir.path(), "");
    old.sql("postgres", "alter role mmuser createdb");
    with_systemctl(&sandbox, &["backup", "--instance", "forge", "--init"]).run().ok();
    old.sql("chat", "create table since (a int)");
    let new = Postgres::start(Options::within(&dir.path().join("run/new")));
    new.sql("postgres", "create role mmuser login createdb");

    let scratch = dir.path().to_str().expect("text");
    let rebuild = |arguments: &[&str]| {
        let all = [&["rebuild", "forge", "--scratch", scratch], arguments].concat();
        with_systemctl(&sandbox, &all).run()
    };
    let settings = dir.path().join("opt/mattermost/config");
    let environment = settings.join("mattermost.environment");
    let text = std::fs::read_to_string(&environment).expect("reads");
    std::fs::write(&environment, text.replace("/run/postgresql", "/run/new")).expect("writes");
    let address = format!("{}:5432", old.socket_dir().display());
    let here = format!("{}:5432", new.socket_dir().display());
    for arguments in [&["--dry-run"][..], &["--yes"]] {
        let words = [&format!("names the database server {address}")[..], &here];
        rebuild(arguments).fails(1, &words).stderr.contains(&format!("--server {address}"));
    }

    // The other database is looked at even if nothing here names a server.
    let home = dir.path().join("opt/mattermost");
    for name in ["config", "files", "plugins"] {
        std::fs::rename(home.join(name), home.join(format!("{name}.away"))).expect("moves");
    }
    let units = dir.path().join("etc/systemd/system");
    std::fs::remove_dir_all(&units).expect("removes");
    let words = [&format!("{address} has a database chat with content")[..], "give --yes"];
    rebuild(&[]).fails(1, &words);
    let planned = rebuild(&["--dry-run"]).ok();
    let text = format!("6/9 databases     server {address}, PostgreSQL");
    assert!(planned.stdout.contains(&text), "{}", planned.stdout);
    assert!(planned.stdout.contains("--yes will be needed"), "{}", planned.stdout);
    assert_eq!(old.query("chat", "select count(*) from since"), "0");

    // The rebuild would restore the old password.
    old.sql("postgres", "alter role mmuser password 'new'");
    rebuild(&["--yes"]).fails(1, &["does not take the login", "nothing was changed"]);
    assert!(!home.join("config").exists() && !home.join("files").exists());
    let leftover = names(dir.path()).into_iter().find(|name| name.contains("rebuild"));
    assert_eq!(leftover, None);
    old.sql("postgres", "alter role mmuser password 'it''s a pass/word@home'");

    std::fs::rename(home.join("config.away"), home.join("config")).expect("moves");
    rebuild(&["--yes", "--server", &address]).ok();
    assert_eq!(old.query("chat", "select count(*) from pg_class where relname = 'since'"), "0");
    let databases = "select count(*) from pg_database where datname like 'chat%'";
    assert_eq!(old.query("postgres", databases), "2");
    assert_eq!(new.query("postgres", databases), "0");
}

/// The package brings a configuration with a server that no admin has chosen.
#[test]
fn the_configuration_of_a_package_names_no_server() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = crate::mattermost::alone(dir.path());
    sandbox.write("services/state", "active\n");
    // Nothing listens at the address in the other configuration.
    let more = "[instances.forge.postgres]\nwait = '1s'\n";
    configure_kind(&sandbox, "mattermost", dir.path(), more);
    postgres.sql("postgres", "alter role mmuser createdb");
    with_systemctl(&sandbox, &["backup", "--instance", "forge", "--init"]).run().ok();
    let config = dir.path().join("opt/mattermost/config");
    std::fs::remove_file(config.join("mattermost.environment")).expect("removes");
    let set = |source: &str| {
        let text = format!(
            r#"{{"SqlSettings": {{"DriverName": "postgres", "DataSource": "{source}"}},
               "FileSettings": {{"DriverName": "local", "Directory": "./files/"}}}}"#
        );
        std::fs::write(config.join("config.json"), text).expect("writes");
    };
    let scratch = dir.path().to_str().expect("text");
    let rebuild = |arguments: &[&str]| {
        let all = [&["rebuild", "forge", "--scratch", scratch], arguments].concat();
        with_systemctl(&sandbox, &all).run()
    };
    let usual = "postgres://mmuser:mostest@localhost/mattermost_test?sslmode=disable";
    set(&usual.replace("mostest", "chosen"));
    rebuild(&["--dry-run"]).fails(1, &["and that of this machine names localhost:5432"]);
    set(usual);
    let planned = rebuild(&["--dry-run"]).ok().stdout;
    assert!(planned.contains("--yes will be needed"), "{planned}");
    rebuild(&["--yes"]).ok();
    assert_eq!(postgres.query("chat", "select count(*) > 0 from fileinfo"), "t");
}

/// The rebuild replaces a file with which it logs in.
#[test]
fn passwords_of_the_snapshot_may_be_older_than_the_servers() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = Postgres::start(Options::within(&dir.path().join("pg")));
    let roles = "create role app superuser login password 'old'; create role shop; \
                 create database shop owner shop";
    postgres.sql("postgres", roles);
    postgres.sql("shop", "set role shop; create table t as select generate_series(1, 500)");
    let access = dir.path().join("pg/data/pg_hba.conf");
    let rest = std::fs::read_to_string(&access).expect("reads");
    std::fs::write(&access, format!("local all app scram-sha-256\n{rest}")).expect("writes");
    postgres.query("postgres", "select pg_reload_conf()");
    let file = dir.path().join("data/login");
    std::fs::create_dir_all(dir.path().join("data")).expect("directories");
    let private = std::fs::Permissions::from_mode(0o600);
    let scratch = dir.path().to_str().expect("text");
    for setting in ["password = { file = 'FILE' }", "passfile = 'FILE'"] {
        let write = |password: &str| {
            let text = if setting.contains("passfile") { "*:*:*:*:" } else { "" };
            std::fs::write(&file, format!("{text}{password}\n")).expect("writes");
            std::fs::set_permissions(&file, private.clone()).expect("its mode");
        };
        let more = format!(
            "[instances.forge.parts.data]\npath = '{0}/data'\n\
             [instances.forge.postgres]\nhost = '{1}'\nrole = 'app'\n{2}\n\
             [instances.forge.services]\nstop = [{{ command = ['true'] }}]\n\
             start = [{{ command = ['test', '-e', '{0}/starts'] }}]\n",
            dir.path().display(),
            postgres.socket_dir().display(),
            setting.replace("FILE", &file.display().to_string()),
        );
        configure_kind(&sandbox, "plain", dir.path(), &more);
        postgres.sql("postgres", "alter role app password 'old'");
        write("old");
        backup(&sandbox).run().ok();
        postgres.sql("postgres", "alter role app password 'new'; drop database shop");
        write("new");
        let rebuild = |arguments: &[&str]| {
            configured(&sandbox, ["rebuild", "forge", "--scratch", scratch]).args(arguments).run()
        };
        // What a killed call leaves.
        let left = dir.path().join("forgekeep-rebuild-killed");
        std::fs::create_dir_all(left.join("in")).expect("directories");
        rebuild(&["--yes"]).ends_with(1);
        assert!(!left.exists());
        assert!(std::fs::read_to_string(&file).expect("reads").ends_with("old\n"));
        std::fs::write(dir.path().join("starts"), "").expect("writes");
        let outcome = rebuild(&[]).ok();
        assert_eq!(postgres.query("shop", "select count(*) from t"), "500");
        let words = format!("give {} the password that the server accepts", file.display());
        assert!(outcome.stdout.contains(&words), "{}", outcome.all_output());
        std::fs::remove_file(dir.path().join("starts")).expect("removes");
    }
}

#[test]
fn passwords_that_only_the_snapshot_has_are_used() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = Postgres::start(Options::within(&dir.path().join("pg")));
    let roles = "create role app superuser login password 'hush-hush'; create database shop";
    postgres.sql("postgres", roles);
    postgres.sql("shop", "create table t as select generate_series(1, 500)");
    let access = dir.path().join("pg/data/pg_hba.conf");
    let rest = std::fs::read_to_string(&access).expect("reads");
    std::fs::write(&access, format!("local all app scram-sha-256\n{rest}")).expect("writes");
    postgres.query("postgres", "select pg_reload_conf()");
    let file = dir.path().join("data/login");
    for (setting, text, words) in [
        (
            "password = { command = ['sh', '-c', 'cat FILE'] }",
            "hush-hush\n",
            "prints its password and needs files of part `data`, so it is asked once they are restored",
        ),
        ("passfile = 'FILE'", "*:*:*:*:hush-hush\n", "PostgreSQL 1"),
    ] {
        std::fs::create_dir_all(dir.path().join("data")).expect("directories");
        std::fs::write(&file, text).expect("writes");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&file, private).expect("its mode");
        let more = format!(
            "[instances.forge.parts.data]\npath = '{0}/data'\n\
             [instances.forge.postgres]\nhost = '{1}'\nrole = 'app'\n{2}\n\
             [instances.forge.services]\nstop = [{{ command = ['true'] }}]\n\
             start = [{{ command = ['test', '-e', '{0}/starts'] }}]\n",
            dir.path().display(),
            postgres.socket_dir().display(),
            setting.replace("FILE", &file.display().to_string()),
        );
        configure_kind(&sandbox, "plain", dir.path(), &more);
        backup(&sandbox).run().ok();
        std::fs::remove_dir_all(dir.path().join("data")).expect("removes");
        postgres.sql("postgres", "drop database shop");
        let rebuild = |scratch: &str, arguments: &[&str]| {
            let scratch = dir.path().join(scratch);
            std::fs::create_dir_all(&scratch).expect("a directory");
            let rebuild = ["rebuild", "forge", "--scratch", scratch.to_str().expect("text")];
            configured(&sandbox, rebuild).args(arguments).run()
        };
        let planned = rebuild("one", &["--dry-run"]).ok();
        assert!(planned.stdout.contains(words), "{}", planned.all_output());
        let failed = rebuild("one", &[]).ends_with(1);
        assert!(!failed.all_output().contains("hush-hush"), "{}", failed.all_output());
        // What a killed call left is removed, whatever directory the next one uses.
        let left = dir.path().join("one/forgekeep-rebuild-killed");
        let leave = || {
            std::fs::create_dir_all(&left).expect("directories");
            std::fs::write(left.join("dump"), "dump").expect("writes");
        };
        leave();
        std::fs::write(dir.path().join("starts"), "").expect("writes");
        rebuild("two", &[]).ok();
        assert!(!left.exists());
        assert_eq!(postgres.query("shop", "select count(*) from t"), "500");
        std::fs::remove_file(dir.path().join("starts")).expect("removes");
        rebuild("one", &["--yes"]).ends_with(1);
        leave();
        configured(&sandbox, ["rebuild", "forge", "--forget"]).run().ok();
        assert!(!left.exists());
        for scratch in ["one", "two"] {
            assert_eq!(names(&dir.path().join(scratch)), [""; 0]);
        }
    }
}

/// A server goes on in a directory that was renamed.
#[test]
fn directories_of_running_servers_do_not_move() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("pages")).expect("directories");
    std::fs::write(data.join("pages/f"), "content").expect("writes");
    let mut postgres = Postgres::start(Options::within(&data.join("pg")));
    let part = format!("[instances.forge.parts.data]\npath = '{}'\n", data.display());
    configure_kind(&sandbox, "plain", dir.path(), &part);
    backup(&sandbox).run().ok();
    let rebuild = || configured(&sandbox, ["rebuild", "forge", "--yes"]).run();
    rebuild().fails(1, &["postgres (process ", "data/pg/data, which is in", "(`exclude`)"]);
    assert!(postgres.is_ready() && data.join("pages/f").exists());
    // Without the directory, all others move.
    configure_kind(&sandbox, "plain", dir.path(), &format!("{part}exclude = ['pg', '*.tmp']\n"));
    std::fs::write(data.join("pages/f.tmp"), "excluded").expect("writes");
    backup(&sandbox).run().ok();
    let outcome = rebuild().ok();
    assert!(postgres.is_ready());
    // Excluded files move with their directories.
    let text = format!("are needed back: {}\n", data.join("pages/f.tmp").display());
    let (stages, left) = outcome.stdout.split_once("left to do:").expect("something is left");
    assert!(stages.contains(&text) && left.contains(&text), "{}", outcome.stdout);
    configure_kind(&sandbox, "plain", dir.path(), &part);
    postgres.stop();
    rebuild().ok();
}

/// Between two calls, the world may change.
#[test]
fn a_continued_rebuild_looks_again_at_what_earlier_calls_did() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = Postgres::start(Options::within(&dir.path().join("pg")));
    postgres.sql("postgres", "create database shop");
    postgres.sql("shop", "create table t as select generate_series(1, 500)");
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).expect("directories");
    std::fs::write(data.join("f"), "content").expect("writes");
    let configuration = |postgres: &Postgres| {
        let more = format!(
            "[instances.forge.parts.data]\npath = '{}'\n\
             [instances.forge.postgres]\nhost = '{}'\nuser = 'postgres'\nrole = '{}'\n\
             [instances.forge.services]\nstop = [{{ command = ['true'] }}]\n\
             start = [{{ command = ['test', '-e', '{}'] }}]\n",
            data.display(),
            postgres.socket_dir().display(),
            postgres.superuser(),
            sandbox.text("starts"),
        );
        configure_kind(&sandbox, "plain", dir.path(), &more);
    };
    configuration(&postgres);
    sandbox.write("starts", "");
    backup(&sandbox).run().ok();
    std::fs::remove_file(sandbox.path("starts")).expect("removes");
    let scratch = dir.path().to_str().expect("text");
    let rebuild = |arguments: &[&str]| {
        configured(&sandbox, ["rebuild", "forge", "--scratch", scratch]).args(arguments).run()
    };
    rebuild(&["--yes"]).ends_with(1);

    // The old data is in use again.
    let kept = names(dir.path()).into_iter().find(|name| name.starts_with("data.before"));
    let kept = dir.path().join(kept.expect("is kept"));
    std::fs::rename(&data, dir.path().join("restored")).expect("moves");
    std::fs::rename(&kept, &data).expect("moves");
    std::fs::write(data.join("f"), "newer").expect("writes");
    rebuild(&["--yes"]).fails(1, &["changed since the rebuild began", "--forget"]);
    assert_eq!(std::fs::read_to_string(data.join("f")).expect("reads"), "newer");
    std::fs::rename(&data, &kept).expect("moves");
    rebuild(&["--yes"]).fails(1, &["changed since the rebuild began"]);
    std::fs::rename(dir.path().join("restored"), &data).expect("moves");

    // Another server, and another database of the same name.
    let other = Postgres::start(Options::within(&dir.path().join("other")));
    other.sql("postgres", "create database shop");
    configuration(&other);
    rebuild(&[]).fails(1, &["is not the one with which the rebuild began", "--server"]);
    configuration(&postgres);
    postgres.sql("postgres", "drop database shop; create database shop");
    rebuild(&[]).ends_with(1);
    assert_eq!(postgres.query("shop", "select count(*) from t"), "500");
    sandbox.write("starts", "");
    configuration(&other);
    rebuild(&["--server", &format!("{}:5432", other.socket_dir().display())]).ok();
    assert_eq!(other.query("shop", "select count(*) from t"), "500");
}

/// Configures a part `data`, and services that the scripts `stop` and `start` of the sandbox control.
fn configure_data_with_scripts(sandbox: &Sandbox) {
    let more = format!(
        "[instances.forge.parts.data]\npath = '{0}/data'\n[instances.forge.services]\n\
         stop = [{{ command = ['sh', '{0}/stop'] }}]\nstart = [{{ command = ['sh', '{0}/start'] }}]\n",
        sandbox.text("").trim_end_matches('/'),
    );
    configure_kind(sandbox, "plain", Path::new("/"), &more);
}

#[test]
fn mounts_follow_neither_the_kept_data_nor_the_services() {
    need_root();
    let sandbox = Sandbox::new();
    configure_data_with_scripts(&sandbox);
    let script = "set -e
        no() { if \"$@\"; then exit 9; fi; }
        mkdir -p data/inner/deep chroot inner
        echo content > data/f; echo content > data/inner/f
        echo true > stop; echo true > start
        mount --bind data/inner chroot
        $FK backup --instance forge --init
        echo newer > data/inner/f
        $FK rebuild forge --yes
        grep content chroot/f
        umount chroot
        # The stop command unmounts a directory, and the start command fails at first.
        echo \"umount -q $PWD/data/inner || true\" > stop
        echo \"test -e $PWD/starts && mount --bind $PWD/inner $PWD/data/inner\" > start
        mount --bind inner data/inner
        echo newest > inner/f
        no $FK rebuild forge --yes
        no $FK rebuild forge --yes 2> refused
        no grep 'since the rebuild began' refused
        touch starts
        $FK rebuild forge --yes > faults 2>&1 || test $? = 3
        cat faults
        grep 'unmounted by the commands that stop services: [^ ,]*/data/inner;' faults
        # What belongs there is restored once it is mounted again.
        grep content data/inner/f
        grep content inner/f
        # Another file system at the same place.
        rm starts; umount data/inner; echo true > stop; echo \"test -e $PWD/starts\" > start
        mount -t tmpfs none data
        no $FK rebuild forge --yes
        umount data; mount -t tmpfs none data; echo live > data/f
        no $FK rebuild forge --yes 2> refused
        grep 'since the rebuild began: [^ ,]*/data$' refused
        grep live data/f";
    in_namespace(&sandbox, script).run().ok();
}

/// The commands of the services mount disks at parts, and make links in place of them.
#[test]
fn files_that_the_start_of_services_hides_are_reported() {
    need_root();
    let sandbox = Sandbox::new();
    configure_data_with_scripts(&sandbox);
    let script = "set -e
        no() { if \"$@\"; then exit 9; fi; }
        hidden() {
            if $FK rebuild forge --yes > faults 2>&1; then exit 8; else test $? = 3; fi
            cat faults
            grep \"hidden since services started, by other data that came to $PWD/$1\" faults
        }
        mkdir -p data/inner disk
        echo content > data/f; echo content > data/inner/f; echo old > disk/f
        echo true > stop; echo true > start
        $FK backup --instance forge --init
        # A service that is down already: only its start mounts the disk.
        echo \"mount --bind $PWD/disk $PWD/data\" > start
        hidden data
        umount data
        echo \"mount -t tmpfs none $PWD/data/inner\" > start
        hidden data/inner
        umount data/inner
        echo \"mv $PWD/data $PWD/moved; ln -s $PWD/disk $PWD/data\" > start
        hidden disk
        rm data; mv moved data
        # Nothing is hidden where the snapshot has no files.
        echo \"mkdir $PWD/data/new; mount -t tmpfs none $PWD/data/new\" > start
        $FK rebuild forge --yes
        umount data/new
        # The commands unmount the disk that the part itself is.
        rm -r data/*; mount --bind disk data; echo content > data/f
        $FK backup --instance forge
        echo newer > data/f
        echo \"umount -q $PWD/data || true\" > stop
        echo \"mount --bind $PWD/disk $PWD/data\" > start
        if $FK rebuild forge --yes > faults 2>&1; then exit 8; else test $? = 3; fi
        cat faults
        grep \"unmounted by the commands that stop services: $PWD/data; what\" faults
        no grep 'hidden since' faults
        grep content disk/f; grep content data/f
        umount data
        no test -e data/f";
    in_namespace(&sandbox, script).run().ok();
}

#[test]
fn a_gitlab_of_containers_is_rebuilt() {
    need_root();
    let (sandbox, gitlab) = (Sandbox::new(), DockerGitlab::start());
    let more = format!(
        "compose = '{}'\ndocker = ['{}']\nchecks = {{ sample = 'all' }}",
        gitlab.path(docker_gitlab::COMPOSE).display(),
        gitlab.path("docker").display()
    );
    configure_kind(&sandbox, "docker-gitlab", gitlab.root(), &more);
    backup(&sandbox).run().ok();
    let data = gitlab.path(docker_gitlab::DATA);
    let key = data.join("ssh/ssh_host_ed25519_key");
    let before = std::fs::read(&key).expect("reads");
    std::fs::write(&key, "new").expect("writes");
    std::fs::write(gitlab.path("srv/forge/secrets.env"), "NEW=1").expect("writes");

    // The servers of the snapshot are known before anything changes.
    let compose = gitlab.path(docker_gitlab::COMPOSE);
    let text = std::fs::read_to_string(&compose).expect("reads");
    let other = "postgresql:14\n    container_name: other-postgresql";
    std::fs::write(&compose, text.replace("postgresql:14", other)).expect("writes");
    let words = [
        "names the database server forge-postgresql-1:socket:5432",
        "--server forge-postgresql-1:socket:5432",
    ];
    for argument in ["--yes", "--dry-run"] {
        configured(&sandbox, ["rebuild", "forge", argument]).run().fails(1, &words);
    }
    assert_eq!(std::fs::read(&key).expect("reads"), b"new");
    for name in [docker_gitlab::COMPOSE, "srv/forge/secrets.env", "srv/forge/.env"] {
        std::fs::remove_file(gitlab.path(name)).expect("removes");
    }
    let planned = configured(&sandbox, ["rebuild", "forge", "--dry-run"]).run().ok().stdout;
    for words in [
        "--yes will be needed: the database server forge-postgresql-1:socket:5432 has a database",
        "--yes will be needed: Redis forge-redis-1:127.0.0.1:6379 has 1000 keys",
        "6/9 databases     server forge-postgresql-1:socket:5432, PostgreSQL",
    ] {
        assert!(planned.contains(words), "{words}: {planned}");
    }
    assert_eq!(std::fs::read(&key).expect("reads"), b"new");
    let outcome = configured(&sandbox, ["rebuild", "forge", "--yes", "--sample", "3"]).run().ok();
    assert_eq!(std::fs::read(&key).expect("reads"), before);
    let secrets = std::fs::read_to_string(gitlab.path("srv/forge/secrets.env")).expect("reads");
    assert!(secrets.contains("GITLAB_SECRETS_OTP_KEY_BASE"), "{secrets}");
    assert!(gitlab.is_up(), "{}", outcome.all_output());
    let asked = gitlab.asked();
    assert!(asked.contains("stop -t") && asked.contains("start forge-gitlab-1"), "{asked}");
    let at = |words: &str| asked.find(words).unwrap_or_else(|| panic!("{words}: {asked}"));
    let held = at("update --restart=no forge-gitlab-1");
    assert!(held < at("stop -t") && held < at("update --restart=always forge-gitlab-1"), "{asked}");
    assert!(outcome.stdout.contains("app:rake gitlab:check"), "{}", outcome.stdout);
}

#[test]
fn a_gitlab_in_its_official_container_is_rebuilt() {
    need_root();
    let (sandbox, gitlab) = (Sandbox::new(), GitlabContainer::start(Builder::new()));
    let more = format!(
        "docker = ['{}']\nchecks = {{ sample = 'all' }}\npostgres.wait = '3s'",
        gitlab.root().join("docker").display()
    );
    configure_kind(&sandbox, "gitlab-container", gitlab.root(), &more);
    backup(&sandbox).run().ok();
    let secrets = gitlab.root().join("srv/gitlab/config/gitlab-secrets.json");
    std::fs::write(&secrets, "{}").expect("writes");
    let inode = secrets.parent().expect("a directory").metadata().expect("is there").ino();

    // The snapshot's configuration names another server than that of this machine.
    let generated = "srv/gitlab/data/gitlab-rails/etc/database.yml";
    let generated = gitlab.root().join(generated);
    let text = std::fs::read_to_string(&generated).expect("reads");
    let elsewhere = text.replace("/var/opt/gitlab/postgresql", "db.example.com");
    assert_ne!(text, elsewhere);
    std::fs::write(&generated, elsewhere).expect("writes");
    let target = "forge-gitlab-1:/var/opt/gitlab/postgresql:5432";
    let words = [&*format!("database server {target}"), "forge-gitlab-1:db.example.com:5432"];
    for argument in ["--yes", "--dry-run"] {
        configured(&sandbox, ["rebuild", "forge", argument]).run().fails(1, &words);
    }
    assert_eq!(std::fs::read_to_string(&secrets).expect("reads"), "{}");
    std::fs::write(&generated, text).expect("writes");

    let outcome = configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ok();
    let text = std::fs::read_to_string(&secrets).expect("reads");
    assert!(text.contains("db_key_base"), "{text}");
    // The mount of a container follows a directory that is renamed.
    let config = gitlab.root().join("srv/gitlab/config");
    assert_eq!(config.metadata().expect("is there").ino(), inode);
    assert!(names(&config).iter().any(|name| name.starts_with(".before-rebuild-")));
    let asked = gitlab.asked();
    for words in ["gitlab-ctl reconfigure", "gitlab-ctl stop sidekiq", "pg_restore --create"] {
        assert!(asked.contains(words), "{words}: {asked}");
    }
    let rake = "/opt/gitlab/bin/gitlab-rake gitlab:check SANITIZE=true";
    assert!(outcome.stdout.contains(rake), "{}", outcome.stdout);
}

/// Asserts that a rebuild refuses before it changes anything, also as a dry run.
#[track_caller]
fn assert_other_places(sandbox: &Sandbox, root: &Path, words: &[&str]) {
    for argument in ["--yes", "--dry-run"] {
        let words: Vec<&str> = words.iter().copied().chain(["nothing was changed"]).collect();
        let rebuild = ["rebuild", "forge", "--scratch", &sandbox.text(""), argument];
        configured(sandbox, rebuild).run().fails(1, &words);
    }
    let moved = Run::limited("find").args([root]).args(["-name", "*before-rebuild*"]).run().ok();
    assert_eq!(moved.stdout, "");
    assert!(!sandbox.path("state/rebuild/forge.json").exists());
}

#[test]
fn parts_that_moved_in_the_configuration_are_refused() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let [old, new] = ["srv/old/data", "mnt/new/data"].map(|name| dir.path().join(name));
    let configure = |path: &Path| {
        let more = format!("[instances.forge.parts.data]\npath = '{}'\n", path.display());
        configure_kind(&sandbox, "plain", dir.path(), &more);
    };
    std::fs::create_dir_all(&old).expect("directories");
    std::fs::write(old.join("file"), "content").expect("writes");
    configure(&old);
    backup(&sandbox).run().ok();
    std::fs::remove_dir_all(dir.path().join("srv")).expect("removes");
    std::fs::create_dir_all(&new).expect("directories");
    std::fs::write(new.join("file"), "newer").expect("writes");
    configure(&new);
    let moved = format!(
        "part `data` is at {} in the snapshot, and at {} on this machine",
        old.display(),
        new.display()
    );
    let link = format!("ln -sr {} {}", new.display(), old.display());
    assert_other_places(&sandbox, dir.path(), &[&moved, &link]);
    // The printed link leads the files to the new place.
    std::fs::create_dir_all(old.parent().expect("it has one")).expect("directories");
    Run::limited("ln").args(["-sr"]).args([&new, &old]).run().ok();
    configured(&sandbox, ["rebuild", "forge", "--yes"]).run().ok();
    assert_eq!(std::fs::read_to_string(new.join("file")).expect("reads"), "content");

    // A part that the configuration lacks is named.
    let more = format!("[instances.forge.parts.other]\npath = '{}'\n", sandbox.text("other"));
    configure_kind(&sandbox, "plain", dir.path(), &more);
    let planned = configured(&sandbox, ["rebuild", "forge", "--dry-run"]).run().ok();
    let words = "part `data` is not in the configuration of this machine";
    assert!(planned.stdout.contains(words), "{}", planned.all_output());
}

#[test]
fn parts_of_a_package_that_moved_are_refused() {
    let bench = Bench::new(Builder::new());
    let root = bench.gitlab.root();
    for (part, then, here) in [
        ("config", "etc/gitlab", "mnt/etc"),
        ("uploads", "var/opt/gitlab/gitlab-rails/uploads", "mnt/uploads"),
    ] {
        std::fs::create_dir_all(root.join(here)).expect("directories");
        let more = format!("parts.{part}.path = '{}'", root.join(here).display());
        configure(&bench.sandbox, &bench.gitlab, &more);
        let moved = format!(
            "part `{part}` is at {} in the snapshot, and at {} on this machine",
            root.join(then).display(),
            root.join(here).display()
        );
        assert_other_places(&bench.sandbox, &root.join("etc"), &[&moved]);
    }
}

#[test]
fn volumes_that_moved_are_refused() {
    need_root();
    let (sandbox, gitlab) = (Sandbox::new(), GitlabContainer::start(Builder::new()));
    let root = gitlab.root();
    let more = format!("docker = ['{}']\npostgres.wait = '3s'", root.join("docker").display());
    configure_kind(&sandbox, "gitlab-container", root, &more);
    backup(&sandbox).run().ok();
    let change = |file: &str, old: &str, new: &str| {
        let text = std::fs::read_to_string(root.join(file)).expect("reads");
        std::fs::write(root.join(file), text.replace(old, new)).expect("writes");
    };
    // The container on this machine has other directories, and perhaps its compose file, too.
    let [compose, inspected] = [gitlab_container::COMPOSE, "inspect.json"];
    let moved = |name: &str, old: &str| {
        format!(
            "{name} is at {} in the snapshot, and at {} on this machine",
            root.join(old).display(),
            root.join(format!("mnt/new/{old}")).display()
        )
    };
    let all = ["srv/gitlab/config", "srv/gitlab/data", "srv/gitlab/logs", "mnt/disk"];
    for of_all in [&all[..], &all[3..]] {
        for old in of_all {
            let new = root.join(format!("mnt/new/{old}"));
            std::fs::create_dir_all(&new).expect("directories");
            change(inspected, &root.join(old).display().to_string(), &new.display().to_string());
        }
        for compose_too in [false, true] {
            if compose_too {
                for old in of_all {
                    change(compose, &format!("/{old}:"), &format!("/mnt/new/{old}:"));
                }
            }
            let disk = moved("volume /mnt/storage2", "mnt/disk");
            let mut words = vec![disk];
            if of_all.len() > 1 {
                words.push(moved("volume /etc/gitlab", "srv/gitlab/config"));
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            assert_other_places(&sandbox, &root.join("srv"), &words);
        }
        for old in of_all {
            let new = root.join(format!("mnt/new/{old}"));
            change(inspected, &new.display().to_string(), &root.join(old).display().to_string());
            change(compose, &format!("/mnt/new/{old}:"), &format!("/{old}:"));
        }
    }
    // A compose file elsewhere, which names the same directories.
    std::fs::create_dir_all(root.join("mnt/compose")).expect("directories");
    let new = root.join("mnt/compose/docker-compose.yml");
    std::fs::rename(root.join(compose), &new).expect("moves");
    std::fs::rename(root.join("srv/forge/mail.env"), new.with_file_name("mail.env"))
        .expect("moves");
    configure_kind(
        &sandbox,
        "gitlab-container",
        root,
        &format!("compose = '{}'\n{more}", new.display()),
    );
    assert_other_places(&sandbox, &root.join("srv"), &["part `compose` is at", "mnt/compose"]);
}

#[test]
fn volumes_of_other_containers_that_moved_are_refused() {
    need_root();
    let (sandbox, gitlab) = (Sandbox::new(), DockerGitlab::start());
    let configure = |compose: &Path| {
        let docker = gitlab.path("docker");
        let more = format!("compose = '{}'\ndocker = ['{}']", compose.display(), docker.display());
        configure_kind(&sandbox, "docker-gitlab", gitlab.root(), &more);
    };
    let compose = gitlab.path(docker_gitlab::COMPOSE);
    configure(&compose);
    backup(&sandbox).run().ok();
    let text = std::fs::read_to_string(&compose).expect("reads");
    for (old, new, words) in [
        ("/srv/gitlab/data:", "/mnt/new/data:", "volume /home/git/data is at"),
        // It would start empty once its container is made again.
        (
            "/srv/gitlab/postgresql:",
            "/mnt/new/pg:",
            "volume /var/lib/postgresql of postgresql is at",
        ),
    ] {
        std::fs::write(&compose, text.replace(old, new)).expect("writes");
        assert_other_places(&sandbox, &gitlab.path("srv"), &[words, "mnt/new"]);
    }
    // A compose file elsewhere with other directories, whether it is there yet or not.
    let new = gitlab.path("mnt/compose/docker-compose.yml");
    configure(&new);
    let moved = format!("in the snapshot, and at {} on this machine", new.display());
    assert_other_places(&sandbox, &gitlab.path("srv"), &[&moved]);
    std::fs::create_dir_all(new.parent().expect("it has one")).expect("directories");
    for name in ["secrets.env", ".env"] {
        let old = gitlab.path("srv/forge").join(name);
        std::fs::rename(old, new.with_file_name(name)).expect("moves");
    }
    std::fs::remove_file(&compose).expect("removes");
    std::fs::write(&new, text.replace("/srv/gitlab/data:", "/mnt/new/data:")).expect("writes");
    assert_other_places(&sandbox, &gitlab.path("srv"), &[&moved]);
}

/// Runs commands in a mount namespace that has the instance at its real paths, and nothing else of
/// the machine that a rebuild might change.
const AT_REAL_PATHS: &str = "\
set -e
mount -t tmpfs -o mode=755 none /var/lib
for dir in opt var/opt mnt; do mount -t tmpfs -o mode=755 none /$dir; done
mkdir /opt/gitlab /var/opt/gitlab /mnt/storage2 $1/etc.new
mount --bind $1/opt/gitlab /opt/gitlab
mount --bind $1/var/opt/gitlab /var/opt/gitlab
mount --bind $1/mnt/storage2 /mnt/storage2
cp -a /etc/passwd /etc/group /etc/nsswitch.conf $1/etc.new
cp -a $1/etc/gitlab $1/etc.new/gitlab
mkdir $1/etc.new/ssh
touch $1/etc.new/ssh/ssh_host_ed25519_key $1/etc.new/ssh/sshd_config
mount --bind $1/etc.new /etc
eval \"$2\"
";

/// Runs the program with a `systemctl` of one service, whose state is in the directory `services`.
fn with_systemctl(sandbox: &Sandbox, arguments: &[&str]) -> Run {
    let script = r#"set -e
        mount -t tmpfs none /usr/local/sbin
        cat > /usr/local/sbin/systemctl <<END
#!/bin/sh
cd '$PWD/services'
echo "\$@" >> log
case \$1 in
show) echo LoadState=loaded; echo ActiveState=\$(cat state); echo MainPID=0 ;;
start) echo active > state; if test -e start; then sh start; fi ;;
stop) echo inactive > state ;;
esac
END
        chmod 755 /usr/local/sbin/systemctl
        exec "$@""#;
    in_namespace(sandbox, script).args(["sh", FORGEKEEP]).args(arguments)
}

/// Creates a Mattermost of its own below a root, which runs, and its configuration.
fn configure_mattermost(sandbox: &Sandbox, root: &Path) -> Postgres {
    let postgres = crate::mattermost::alone(root);
    sandbox.write("services/state", "active\n");
    let connection = format!(
        "[instances.forge.postgres]\nhost = '{}'\nuser = 'postgres'\nrole = '{}'\n",
        postgres.socket_dir().display(),
        postgres.superuser()
    );
    configure_kind(sandbox, "mattermost", root, &connection);
    postgres
}

#[test]
fn a_mattermost_of_its_own_is_rebuilt() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = configure_mattermost(&sandbox, dir.path());
    with_systemctl(&sandbox, &["backup", "--instance", "forge", "--init"]).run().ok();

    let home = dir.path().join("opt/mattermost");
    let rows = postgres.query("chat", "select count(*) from fileinfo");
    let new = ["config", "files", "plugins"].map(|name| home.join(name));
    let make_new = || {
        new.iter().for_each(|dir| std::fs::remove_dir_all(dir).expect("removes"));
        postgres.sql("postgres", "drop database chat");
        postgres.sql("postgres", "drop role mmuser");
        let _ = std::fs::remove_file(sandbox.path("services/log"));
    };
    make_new();
    let scratch = dir.path().to_str().expect("text");
    let rebuild = || with_systemctl(&sandbox, &["rebuild", "forge", "--scratch", scratch, "--yes"]);
    let outcome = rebuild().run().ok();
    assert_eq!(postgres.query("chat", "select count(*) from fileinfo"), rows);
    assert!(outcome.stdout.contains("4 rows with files; all"), "{}", outcome.all_output());
    let log = String::from_utf8(sandbox.read("services/log")).expect("text");
    let done: Vec<&str> = log.lines().filter(|line| !line.starts_with("show")).collect();
    assert_eq!(done, ["daemon-reload", "stop mattermost", "start mattermost", "daemon-reload"]);

    // A newer program changes the version in the database when it starts.
    let newer = format!(
        "psql -h '{}' -U '{}' -d chat -c \"update systems set value = '10.5.0' where name = 'Version'\"",
        postgres.socket_dir().display(),
        postgres.superuser()
    );
    sandbox.write("services/start", newer);
    make_new();
    let outcome = rebuild().run().ends_with(3);
    let text = "the snapshot is of Mattermost 10.2.0, and Mattermost 10.5.0 is installed here";
    assert!(outcome.stderr.contains(text), "{}", outcome.all_output());
}

#[test]
fn a_mattermost_with_settings_in_its_database_is_rebuilt() {
    rebuild_mattermost_with_settings_in_its_database(false);
}

#[test]
fn a_mattermost_without_a_configuration_file_is_rebuilt() {
    rebuild_mattermost_with_settings_in_its_database(true);
}

/// The address of the settings is in the unit, or in a file of the directory `config`.
fn rebuild_mattermost_with_settings_in_its_database(is_in_unit: bool) {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = configure_mattermost(&sandbox, dir.path());
    let home = dir.path().join("opt/mattermost");
    let environment = home.join("config/mattermost.environment");
    let source = "postgres://mmuser:it%27s%20a%20pass%2Fword%40home@/chat?host=/run/postgresql";
    let unit = dir.path().join("etc/systemd/system/mattermost.service");
    let config = home.join("config/config.json");
    let of_package = std::fs::read(&config).expect("reads");
    std::fs::remove_file(&config).expect("removes");
    if is_in_unit {
        let source = source.replace('%', "%%");
        let text = format!("[Service]\nEnvironment=\"MM_CONFIG={source}&sslmode=disable\"\n");
        std::fs::write(&unit, text).expect("writes");
        std::fs::remove_dir_all(home.join("config")).expect("removes");
    } else {
        std::fs::write(&environment, format!("MM_CONFIG='{source}&sslmode=disable'\n"))
            .expect("writes");
    }
    let settings = format!(
        r#"{{"FileSettings": {{"DriverName": "local", "Directory": "./files/"}}, "SqlSettings":
           {{"DriverName": "postgres", "DataSource": "{}&sslmode=disable"}}}}"#,
        source.replace('\'', "''")
    );
    postgres.sql(
        "chat",
        format!(
            "set role mmuser; create table configurations (id varchar(26) primary key, value text \
             not null, createat bigint, active boolean unique, sha char(64)); \
             insert into configurations values ('b', '{settings}', 2, true, '')"
        ),
    );
    with_systemctl(&sandbox, &["backup", "--instance", "forge", "--init"]).run().ok();

    for dir in ["config", "files", "plugins"] {
        let _ = std::fs::remove_dir_all(home.join(dir));
    }
    if is_in_unit {
        // What the package brings.
        std::fs::remove_file(&unit).expect("removes");
        std::fs::create_dir_all(home.join("config")).expect("directories");
        std::fs::write(&config, of_package).expect("writes");
    }
    postgres.sql("postgres", "drop database chat");
    postgres.sql("postgres", "drop role mmuser");
    let scratch = dir.path().to_str().expect("text");
    let rebuild = ["rebuild", "forge", "--scratch", scratch, "--yes"];
    let outcome = with_systemctl(&sandbox, &rebuild).run().ok();
    assert!(outcome.stdout.contains("4 rows with files; all"), "{}", outcome.all_output());
}

/// Asserts that the lines which docs/restore.md shows below the commands of a rebuild are those of a
/// run, but for numbers, ids and times. The page shows some of the lines.
#[track_caller]
fn assert_documented(printed: &str) {
    let stable = |line: &str| {
        let mut words = Vec::new();
        for word in line.split(' ') {
            let is_id = words.last().is_some_and(|last| last == "snapshot");
            let mut text = String::new();
            for c in word.chars().filter(|_| !is_id) {
                match c.is_ascii_digit() {
                    true if text.ends_with('0') => {}
                    true => text.push('0'),
                    false => text.push(c),
                }
            }
            words.push(text);
        }
        words.join(" ")
    };
    let page = include_str!("../docs/restore.md");
    let (dry, real) = printed.split_once("nothing was changed\n").expect("both runs");
    let dry = format!("{dry}nothing was changed");
    let mut absent = Vec::new();
    for (command, printed) in [("--dry-run", &*dry), ("--yes", real)] {
        let command = format!("   # forgekeep rebuild gitlab {command}\n");
        let (_, shown) = page.split_once(&command).expect("the page has the command");
        let (shown, _) = shown.split_once("   ```").expect("its block ends");
        let printed: Vec<String> = printed.lines().map(stable).collect();
        let mut next = 0;
        for line in shown.lines().map(|line| line.strip_prefix("   ").unwrap_or(line)) {
            // The Redis of the tests is not a service of the package, which stops it.
            if line.starts_with("7/9 redis") {
                continue;
            }
            match printed[next..].iter().position(|printed| *printed == stable(line)) {
                Some(at) => next += at + 1,
                None => absent.push(line),
            }
        }
    }
    assert!(absent.is_empty(), "not printed, or in another order: {absent:#?}\n{printed}");
}

#[test]
fn a_machine_without_a_configuration_is_rebuilt_at_the_real_paths() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    let at_real_paths = |commands: &str| {
        let root = gitlab.root().to_str().expect("text");
        let words = ["--mount", "--propagation", "private", "sh", "-c", AT_REAL_PATHS, "sh"];
        let run = Run::limited("unshare").args(words).args([root, commands]);
        run.env("FORGEKEEP_STORE", sandbox.text("store")).env("FK", FORGEKEEP).run()
    };
    let outcome = at_real_paths(
        "printf \"[instances.gitlab]\\nkind = 'gitlab'\\nchecks = { sample = 'all' }\\n\" > /etc/forgekeep.toml
        $FK backup --instance gitlab --init --store $FORGEKEEP_STORE
        rm /etc/forgekeep.toml
        rm -r /var/opt/gitlab/git-data/repositories/* /var/opt/gitlab/gitlab-rails/uploads/*
        echo 'external_url' > /etc/gitlab/gitlab.rb
        echo '{}' > /etc/gitlab/gitlab-secrets.json
        echo new > /etc/ssh/ssh_host_ed25519_key
        echo new > /etc/ssh/sshd_config
        $FK rebuild gitlab --dry-run
        $FK rebuild gitlab --yes
        grep -q db_key_base /etc/gitlab/gitlab-secrets.json
        test ! -s /etc/ssh/ssh_host_ed25519_key
        grep -q new /etc/ssh/sshd_config
        ls /etc/ssh/ssh_host_ed25519_key.before-rebuild-*",
    );
    let outcome = outcome.ok();
    assert_documented(&outcome.stdout.replace(&sandbox.text("store"), "/mnt/backup/forge"));
    assert!(outcome.all_output().contains("is not configured here"), "{}", outcome.all_output());
    assert!(outcome.stdout.contains("gitlab: rebuilt, no problems found"), "{}", outcome.stdout);
    fsck_all(gitlab.root());
}

#[test]
fn mount_points_stay_and_get_the_restored_files() {
    need_root();
    let sandbox = Sandbox::new();
    let data = sandbox.path("data");
    std::fs::create_dir_all(data.join("a b/disk")).expect("directories");
    let more = format!("[instances.forge.parts.data]\npath = '{}'", data.display());
    configure_kind(&sandbox, "plain", Path::new("/"), &more);
    let script = "set -e
        no() { if \"$@\"; then exit 9; fi; }
        mount -t tmpfs none data
        mkdir -p 'data/a b/disk' data/c
        mount -t tmpfs none 'data/a b/disk'
        echo right > 'data/a b/disk/f'; echo right > data/c/f
        $FK backup --instance forge --init
        echo wrong > 'data/a b/disk/f'; echo wrong > data/c/f
        $FK rebuild forge --yes
        mountpoint data; mountpoint 'data/a b/disk'
        grep right 'data/a b/disk/f' data/c/f
        grep wrong data/.before-rebuild-*/c/f
        grep wrong 'data/a b/disk'/.before-rebuild-*/f
        test ! -e data/.before-rebuild-*/a*
        $FK backup --instance forge
        $FK ls forge@latest > listed
        no grep before-rebuild listed
        $FK config check --instance forge | grep 'set it aside'
        $FK rebuild forge --yes
        find data -path '*before-rebuild*/*before-rebuild*' > twice
        no grep . twice
        mount -o remount,ro 'data/a b/disk'
        no $FK rebuild forge --yes 2> refused
        cat refused
        grep 'data/a b/disk cannot be written to: Read-only' refused
        test $(ls -d data/.before-rebuild-* | wc -l) = 2";
    in_namespace(&sandbox, script).run().ok();
}

#[test]
fn bind_mounted_files_and_layers_of_overlayfs_are_rebuilt() {
    need_root();
    let sandbox = Sandbox::new();
    for dir in ["data", "lower/pages/deep/er", "upper", "tmp"] {
        std::fs::create_dir_all(sandbox.path(dir)).expect("directories");
    }
    let more = format!(
        "[instances.forge.parts.data]\npath = '{data}/pages'\nexclude = ['pgdata/**']\n\
         [instances.forge.services]\nstop = [{{ command = ['touch', '{stopped}'] }}]\n\
         start = [{{ command = ['true'] }}]\n",
        data = sandbox.text("data"),
        stopped = sandbox.text("stopped"),
    );
    configure_kind(&sandbox, "plain", Path::new("/"), &more);
    let script = "set -e
        no() { if \"$@\"; then exit 9; fi; }
        echo right > lower/pages/deep/er/f
        echo right > lower/pages/f
        chown 1234 lower/pages/deep
        mkdir lower/pages/pgdata; echo 15 > lower/pages/pgdata/PG_VERSION
        mount -t tmpfs none tmp; mkdir tmp/upper tmp/work
        mount -t overlay overlay -o lowerdir=$PWD/lower,upperdir=tmp/upper,workdir=tmp/work data
        $FK backup --instance forge --init
        echo wrong > data/pages/f
        $FK rebuild forge --yes
        grep right data/pages/f data/pages/deep/er/f
        grep wrong data/pages/.before-rebuild-*/f
        test $(stat -c %u data/pages/.before-rebuild-*/deep) = 1234
        grep 15 data/pages/pgdata/PG_VERSION
        rm -r data/pages/pgdata stopped
        $FK rebuild forge --yes
        grep right data/pages.before-rebuild-*/deep/er/f
        rm stopped
        echo right > tmp/bound
        mount --bind tmp/bound data/pages/deep/er/f
        $FK rebuild forge --yes
        grep right data/pages/deep/er/f
        rm stopped
        echo wrong > tmp/bound
        no $FK rebuild forge --dry-run 2> planned
        no $FK rebuild forge --yes 2> refused
        cat refused
        grep 'deep/er/f is a mount point' planned refused
        test ! -e stopped";
    in_namespace(&sandbox, script).run().ok();
}

#[test]
fn holes_and_further_names_need_no_space() {
    need_root();
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("data")).expect("directories");
    let more = format!("[instances.forge.parts.data]\npath = '{}'\n", sandbox.text("data"));
    configure_kind(&sandbox, "plain", Path::new("/"), &more);
    let script = "set -e
        no() { if \"$@\"; then exit 9; fi; }
        mount -t tmpfs -o size=32m none data
        mkdir data/disk
        mount -t tmpfs -o size=64m none data/disk
        head -c 7M /dev/urandom > data/a
        for i in 1 2 3 4 5 6; do ln data/a data/a$i; done
        truncate -s 300G data/sparse
        echo end >> data/sparse
        head -c 30M /dev/urandom > data/disk/large
        $FK backup --instance forge --init
        $FK rebuild forge --dry-run > planned
        cat planned
        grep -E ' (7|8)\\.[0-9] MiB needed' planned
        grep -E ' 30\\.[0-9] MiB needed' planned
        head -c 20M /dev/urandom > data/b
        no $FK rebuild forge --dry-run 2> refused
        cat refused
        grep 'the files need' refused";
    in_namespace(&sandbox, script).run().ok();
}

#[test]
fn a_rebuild_does_not_continue_on_another_disk() {
    need_root();
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("data")).expect("directories");
    std::fs::write(sandbox.path("data/f"), "content").expect("writes");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n[instances.forge.services]\n\
         stop = [{{ command = ['true'] }}]\nstart = [{{ command = ['test', '-e', '{}'] }}]\n",
        sandbox.text("data"),
        sandbox.text("starts")
    );
    configure_kind(&sandbox, "plain", Path::new("/"), &more);
    let script = "set -e
        no() { if \"$@\"; then exit 9; fi; }
        $FK backup --instance forge --init
        no $FK rebuild forge --yes
        mount -t tmpfs none data
        touch starts
        no $FK rebuild forge --yes 2> refused
        cat refused
        grep 'since the rebuild began: [^ ,]*/data$' refused
        umount data
        $FK rebuild forge --yes
        grep content data/f";
    in_namespace(&sandbox, script).run().ok();
}

/// Settings of sshd could lock the admin out, and a number can belong to somebody else.
#[test]
fn settings_of_sshd_stay_and_foreign_accounts_are_named() {
    need_root();
    let sandbox = Sandbox::new();
    let root = sandbox.path("");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{0}data'\n\
         [instances.forge.parts.ssh]\npath = '{0}etc/ssh'\n",
        sandbox.text("")
    );
    configure_kind(&sandbox, "plain", &root, &more);
    let script = "set -e
        no() { if \"$@\"; then exit 9; fi; }
        names() { grep -v :6450 passwd > new; printf '%s\\n' \"$@\" >> new; cat new > passwd; }
        cp /etc/passwd passwd; mount --bind passwd /etc/passwd
        mkdir -p etc/ssh data; echo 1 > data/f; chown 64501:0 data/f
        echo old > etc/ssh/sshd_config; echo oldkey > etc/ssh/ssh_host_rsa_key
        names wiki:x:64501:0::/:/bin/sh
        $FK backup --instance forge --init
        names other:x:64501:0::/:/bin/sh
        echo new > etc/ssh/sshd_config; echo newkey > etc/ssh/ssh_host_rsa_key
        $FK rebuild forge --dry-run | grep 'wiki is missing here, and its number 64501 belongs to other'
        no $FK rebuild forge --yes > said 2>&1
        grep 'other accounts of this machine own restored files' said
        grep new etc/ssh/sshd_config
        grep oldkey etc/ssh/ssh_host_rsa_key
        names wiki:x:64501:0::/:/bin/sh
        $FK rebuild forge --yes";
    in_namespace(&sandbox, script).run().ok();
}

#[test]
fn settings_of_sshd_behind_a_link_stay() {
    need_root();
    let sandbox = Sandbox::new();
    let root = sandbox.path("");
    let more = format!("[instances.forge.parts.ssh]\npath = '{0}etc/ssh'\n", sandbox.text(""));
    configure_kind(&sandbox, "plain", &root, &more);
    let script = "set -e
        mkdir -p etc cfg; ln -s ../cfg etc/ssh
        echo old > cfg/sshd_config; echo oldkey > cfg/ssh_host_rsa_key
        $FK backup --instance forge --init
        echo new > cfg/sshd_config; echo newkey > cfg/ssh_host_rsa_key
        $FK restore forge@latest --target / --include \"$PWD/cfg/**\" --yes
        grep new cfg/sshd_config; grep oldkey cfg/ssh_host_rsa_key
        echo newkey > cfg/ssh_host_rsa_key
        $FK rebuild forge --yes
        grep new cfg/sshd_config; grep oldkey cfg/ssh_host_rsa_key; test -L etc/ssh";
    in_namespace(&sandbox, script).run().ok();
}

#[test]
fn a_store_behind_another_mount_stays() {
    need_root();
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("data/pages")).expect("directories");
    std::fs::create_dir_all(sandbox.path("other")).expect("a directory");
    let more = format!("[instances.forge.parts.data]\npath = '{}'\n", sandbox.text("data/pages"));
    configure_kind(&sandbox, "plain", Path::new("/"), &format!("{more}exclude = ['st']"));
    let script = "set -e
        no() { if \"$@\"; then exit 9; fi; }
        mount --bind $BOUND other
        echo one > data/pages/f
        sed -i \"s|^path = .*/store'|path = '$PWD/other/$INNER'|\" forgekeep.toml
        $FK backup --instance forge --init
        no $FK rebuild forge --yes 2> refused
        cat refused
        grep 'which the rebuild would move' refused
        test -e data/pages/f
        umount other";
    let config = std::fs::read_to_string(sandbox.path("forgekeep.toml")).expect("reads");
    for (bound, inner) in [("data", "pages/st"), ("data/pages", "st")] {
        std::fs::write(sandbox.path("forgekeep.toml"), &config).expect("writes");
        in_namespace(&sandbox, script).env("BOUND", bound).env("INNER", inner).run().ok();
        std::fs::remove_dir_all(sandbox.path("data/pages/st")).expect("removes");
    }
}

#[test]
fn a_full_disk_ends_the_rebuild_before_services_start() {
    need_root();
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("data")).expect("directories");
    let log = sandbox.text("started");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n[instances.forge.services]\n\
         stop = [{{ command = ['true'] }}]\nstart = [{{ command = ['touch', '{log}'] }}]\n",
        sandbox.text("data")
    );
    configure_kind(&sandbox, "plain", Path::new("/"), &more);
    // The disk is not that of the root, to which all parts are restored at once.
    let script = "set -e
        mount -t tmpfs -o nr_inodes=60 none data
        for i in $(seq 40); do echo $i > data/f$i; done
        $FK backup --instance forge --init
        if $FK rebuild forge --yes > first 2>&1; then exit 9; fi
        cat first
        grep -q 'No space left' first
        grep -q 'run the same command again: it continues' first
        test ! -e started
        test $(ls data | wc -l) -lt 40
        mount -o remount,nr_inodes=200 data
        $FK rebuild forge --yes > second 2>&1
        cat second
        grep 'continuing the rebuild' second
        test $(ls data | wc -l) = 40
        test $(ls -d data/.before-rebuild-* | wc -l) = 1
        test -e started";
    in_namespace(&sandbox, script).run().ok();
}

#[test]
fn a_continued_rebuild_knows_the_faults_of_earlier_calls() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = Postgres::start(Options::within(&dir.path().join("pg")));
    postgres.sql("postgres", "create database shop");
    postgres.sql("shop", "create table t (id int); insert into t values (1)");
    // Its query does not find the table while the dump is loaded.
    postgres.sql(
        "shop",
        "create function n() returns bigint language sql as 'select count(*) from t'; \
         create materialized view counted as select n()",
    );
    std::fs::create_dir_all(dir.path().join("data")).expect("directories");
    std::fs::write(dir.path().join("data/f"), "content").expect("writes");
    sandbox.write("start", "exit 1");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n\
         [instances.forge.postgres]\nhost = '{}'\nuser = 'postgres'\nrole = '{}'\n\
         [instances.forge.services]\nstop = [{{ command = ['true'] }}]\n\
         start = [{{ command = ['sh', '{}'] }}]\n",
        dir.path().join("data").display(),
        postgres.socket_dir().display(),
        postgres.superuser(),
        sandbox.text("start"),
    );
    configure_kind(&sandbox, "plain", dir.path(), &more);
    backup(&sandbox).run().ok();
    let scratch = dir.path().to_str().expect("text");
    let rebuild = || configured(&sandbox, ["rebuild", "forge", "--yes", "--scratch", scratch]);
    rebuild().run().ends_with(1);
    sandbox.write("start", "exit 0");
    let continued = rebuild().run().ends_with(3);
    assert!(continued.all_output().contains("6/9 databases     done"), "{}", continued.stdout);
    let lines = continued.all_output();
    let fault = "relation \"t\" does not exist";
    assert!(lines.contains("database-shop: 1 tables") && lines.contains(fault), "{lines}");
}

#[test]
fn a_rebuild_names_what_an_incomplete_snapshot_lacks() {
    need_root();
    let (sandbox, dir) = (Sandbox::new(), short_dir());
    let postgres = Postgres::start(Options::within(&dir.path().join("pg")));
    postgres.sql("postgres", "create database shop allow_connections false");
    std::fs::create_dir_all(dir.path().join("data")).expect("directories");
    std::fs::write(dir.path().join("data/f"), "content").expect("writes");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n\
         [instances.forge.postgres]\nhost = '{}'\nuser = 'postgres'\nrole = '{}'\n\
         databases = ['shop']\n",
        dir.path().join("data").display(),
        postgres.socket_dir().display(),
        postgres.superuser(),
    );
    configure_kind(&sandbox, "plain", dir.path(), &more);
    backup(&sandbox).run().ends_with(3);
    let rebuild =
        |arguments: &[&str]| configured(&sandbox, ["rebuild", "forge"]).args(arguments).run();
    for arguments in [["--dry-run"], ["--yes"]] {
        let refused = rebuild(&arguments).ends_with(1);
        assert!(refused.stderr.contains("NOT COMPLETE: database-shop"), "{}", refused.stderr);
    }
    let planned = rebuild(&["--dry-run", "--incomplete"]).ends_with(3);
    assert!(planned.stdout.contains("is not complete: database-shop"), "{}", planned.stdout);
    let outcome = rebuild(&["--yes", "--incomplete"]).ends_with(3);
    assert!(outcome.stdout.contains("is not complete: database-shop"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("rebuilt; problems found"), "{}", outcome.stdout);
}

/// Data that was on another disk, behind a link.
#[test]
fn links_to_the_data_of_parts_are_restored() {
    need_root();
    let sandbox = Sandbox::new();
    let path = |name: &str| sandbox.path("root").join(name);
    for dir in ["app", "disk/real", "disk/app", "srv"] {
        std::fs::create_dir_all(path(dir)).expect("directories");
    }
    std::fs::write(path("disk/real/f"), "content").expect("writes");
    std::fs::write(path("disk/app/f"), "content").expect("writes");
    let link = |text: &str, name: &str| {
        std::os::unix::fs::symlink(text, path(name)).expect("links");
    };
    link("/disk/real", "app/data");
    link("../disk", "srv/outer");
    let more = format!(
        "[instances.forge.parts.data]\npath = '{}'\n[instances.forge.parts.more]\npath = '{}'\n",
        path("app/data").display(),
        path("srv/outer/app").display()
    );
    configure_kind(&sandbox, "plain", &sandbox.path("root"), &more);
    backup(&sandbox).run().ok();
    let rebuild = |arguments: &[&str]| {
        configured(&sandbox, ["rebuild", "forge", "--yes"]).args(arguments).run()
    };
    let clear = || {
        for dir in ["app", "disk", "srv"] {
            std::fs::remove_dir_all(path(dir)).expect("removes");
        }
        for dir in ["app", "srv"] {
            std::fs::create_dir(path(dir)).expect("a directory");
        }
    };
    let assert_rebuilt = |outcome: &crate::support::sandbox::Outcome| {
        let read = |name: &str| std::fs::read_to_string(path(name)).expect("reads");
        let both = (read("disk/real/f"), read("disk/app/f"));
        assert_eq!(both, ("content".into(), "content".into()), "{}", outcome.all_output());
        let text = |name: &str| std::fs::read_link(path(name)).expect("a link");
        assert_eq!(text("app/data"), Path::new("/disk/real"), "{}", outcome.all_output());
        assert_eq!(text("srv/outer"), Path::new("../disk"), "{}", outcome.all_output());
    };
    // Nothing is there.
    clear();
    assert_rebuilt(&rebuild(&[]).ok());
    // Directories, as a package makes them.
    clear();
    std::fs::create_dir_all(path("app/data/new/empty")).expect("directories");
    std::fs::create_dir_all(path("srv/outer/app")).expect("directories");
    let planned = rebuild(&["--dry-run"]).ok();
    let named =
        planned.stdout.contains("would restore the link") && planned.stdout.contains("would move");
    assert!(named, "{}", planned.stdout);
    let outcome = rebuild(&[]).ok();
    assert_rebuilt(&outcome);
    assert!(outcome.stdout.contains("restored the link"), "{}", outcome.stdout);
    // Data, and a link that leads elsewhere.
    clear();
    std::fs::create_dir_all(path("app/data")).expect("directories");
    std::fs::write(path("app/data/new"), "new").expect("writes");
    std::fs::create_dir(path("disk")).expect("a directory");
    link("../gone", "srv/outer");
    assert_rebuilt(&rebuild(&[]).ok());
    let kept = names(&path("app"));
    assert!(kept[1].starts_with("data.before-rebuild-"), "{kept:?}");
    // A link to the same place stays.
    std::fs::remove_file(path("app/data")).expect("removes");
    link("../disk/real", "app/data");
    rebuild(&[]).ok();
    assert_eq!(std::fs::read_link(path("app/data")).expect("a link"), Path::new("../disk/real"));
    // More than the data of the part is in place of the link.
    clear();
    std::fs::create_dir_all(path("srv/outer")).expect("directories");
    std::fs::write(path("srv/outer/other"), "other").expect("writes");
    let refused = rebuild(&[]).ends_with(1);
    assert!(
        refused.stderr.contains("led to") && refused.stderr.contains("ln -s"),
        "{}",
        refused.stderr
    );
    assert_eq!(names(&path("app")), [""; 0]);
}

/// Changes a byte in the first chunk of the largest file below a directory.
fn spoil_largest(dir: &Path) {
    let shards =
        std::fs::read_dir(dir).expect("lists").map(|shard| shard.expect("an entry").path());
    let files = shards.flat_map(|shard| std::fs::read_dir(shard).expect("lists"));
    let files = files.map(|file| file.expect("an entry"));
    let largest = files.max_by_key(|file| file.metadata().expect("its size").len());
    let path = largest.expect("a segment").path();
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[100_000] ^= 0xff;
    std::fs::remove_file(&path).expect("removes");
    std::fs::write(&path, bytes).expect("writes");
}

#[test]
fn a_damaged_file_does_not_keep_the_rest_back() {
    need_root();
    // The files of a directory, or parts themselves.
    for paths in [&["data"][..], &["data/lost", "data/kept"]] {
        rebuild_with_a_damaged_file(paths);
    }
}

fn rebuild_with_a_damaged_file(paths: &[&str]) {
    let sandbox = Sandbox::new();
    let data = sandbox.path("data");
    std::fs::create_dir_all(&data).expect("directories");
    let mut dice = Dice::new(7);
    for name in ["lost", "kept"] {
        std::fs::write(data.join(name), dice.bytes(300_000)).expect("writes");
    }
    let log = sandbox.text("services.log");
    let more = format!(
        "[instances.forge.parts.data]\npaths = {:?}\n[instances.forge.services]\n\
         stop = [{{ command = ['true'] }}]\nstart = [{{ command = ['touch', '{log}'] }}]\n",
        paths.iter().map(|path| sandbox.text(path)).collect::<Vec<_>>()
    );
    configure_kind(&sandbox, "plain", Path::new("/"), &more);
    backup(&sandbox).run().ok();
    spoil_largest(&sandbox.path("store/segments"));
    std::fs::remove_dir_all(&data).expect("removes");
    let rebuild =
        |arguments: &[&str]| configured(&sandbox, ["rebuild", "forge"]).args(arguments).run();
    let outcome = rebuild(&[]).ends_with(3);
    assert!(
        outcome.stderr.contains("could not be restored completely"),
        "{}",
        outcome.all_output()
    );
    assert_eq!(names(&data).len(), 1, "{:?}", names(&data));
    assert!(sandbox.path("services.log").exists());
    // The same words continue, or begin again.
    rebuild(&["latest", "--yes"]).ends_with(3);
}
