//! Mattermost: next to GitLab, with sign-on by GitLab, and alone.

use crate::support::gitlab::mattermost::{MATTERMOST, OAUTH_ID, OAUTH_SECRET, OAUTH_SECRET_PBKDF2};
use crate::support::gitlab::{Builder, database::MAIN, short_dir};
use crate::support::instance::{backup, configure, configured, lines, load_databases, summary};
use crate::support::postgres::{Options, Postgres};
use crate::support::sandbox::{Outcome, Sandbox, need_root};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Id of another installation.
const OTHER_ID: &str = "0123456789abcdef";
const OTHER_SECRET: &str = "the secret of another installation";

/// Inspects the instance, for people and for programs. Returns the output for programs.
fn inspect(sandbox: &Sandbox, code: i32) -> Vec<Value> {
    let arguments = ["inspect", "--instance", "forge"];
    let shown = without_secrets(configured(sandbox, arguments).run().ends_with(code));
    let outcome = configured(sandbox, arguments).args(["--json"]).run().ends_with(code);
    let all = without_secrets(outcome).json();
    for hint in lines(&all, "check").iter().filter_map(|check| check["hint"].as_str()) {
        assert!(shown.stderr.contains(hint), "{}", shown.all_output());
    }
    all
}

/// Asserts that the output contains no secret that only the two may share.
fn without_secrets(outcome: Outcome) -> Outcome {
    for secret in [OAUTH_SECRET, OTHER_SECRET, OAUTH_SECRET_PBKDF2, PASSWORD] {
        assert!(!outcome.all_output().contains(secret), "{}", outcome.all_output());
    }
    outcome
}

/// Returns the verdict on single sign-on, and its text with the hint.
fn single_sign_on(all: &[Value]) -> (String, String) {
    let checks = lines(all, "check");
    let check = checks.iter().find(|check| check["name"] == "single-sign-on").expect("a check");
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), format!("{} {}", text("text"), text("hint")))
}

/// Changes a JSON file.
fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("JSON");
    change(&mut value);
    std::fs::write(path, value.to_string()).expect("writes");
}

#[test]
fn lost_images_of_emoji_are_reported() {
    need_root();
    let gitlab = Builder::new().mattermost().build();
    let sandbox = Sandbox::new();
    let table = "create table emoji (id varchar(26), createat bigint, deleteat bigint);
                 insert into emoji values ('wave', 1, 0), ('gone', 2, 3);";
    gitlab.postgres.sql(MATTERMOST, table);
    configure(&sandbox, &gitlab, "");
    let text = format!("{:?}", backup(&sandbox).run().json());
    assert!(text.contains("emoji row wave") && !text.contains("emoji row gone"), "{text}");
    let image = gitlab.path("var/opt/gitlab/mattermost/data/emoji/wave/image");
    std::fs::create_dir_all(image.parent().expect("below")).expect("directories");
    std::fs::write(&image, "image").expect("writes");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
}

#[test]
fn lost_images_of_users_and_teams_are_reported() {
    need_root();
    let gitlab = Builder::new().mattermost().build();
    let sandbox = Sandbox::new();
    let tables = "drop table if exists users, teams;
         create table users (id varchar(26), createat bigint, deleteat bigint, lastpictureupdate bigint);
         insert into users values ('ann', 1, 0, 5), ('left', 1, 9, 5), ('plain', 1, 0, 0), ('new', 1, 0, -7);
         create table teams (id varchar(26), deleteat bigint, lastteamiconupdate bigint);
         insert into teams values ('crew', 0, 5), ('bare', 0, 0);";
    gitlab.postgres.sql(MATTERMOST, tables);
    configure(&sandbox, &gitlab, "");
    let text = format!("{:?}", backup(&sandbox).run().json());
    for words in ["profile images row ann", "team icons row crew"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // Mattermost makes the others on demand, and needs none of a deleted user.
    for words in ["row left", "row plain", "row new", "row bare"] {
        assert!(!text.contains(words), "{words}: {text}");
    }
    for image in ["users/ann/profile.png", "teams/crew/teamIcon.png"] {
        let image = gitlab.path("var/opt/gitlab/mattermost/data").join(image);
        std::fs::create_dir_all(image.parent().expect("below")).expect("directories");
        std::fs::write(&image, "image").expect("writes");
    }
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
}

#[test]
fn sign_on_needs_more_than_a_restored_database() {
    need_root();
    let gitlab = Builder::new().mattermost().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let all = without_secrets(backup(&sandbox).run().ok()).json();
    assert_eq!(single_sign_on(&all).0, "ok", "{all:?}");

    let inspected = configured(&sandbox, ["inspect", "--instance", "forge", "latest"]).run().ok();
    for word in ["GitLab 17.8.2 ce", "gitlabhq_production: ", "mattermost", ", complete"] {
        assert!(inspected.stdout.contains(word), "{}", inspected.all_output());
    }
    // Each line ends with a path that `restore --include` accepts.
    for path in ["mnt/storage2/repositories", "var/opt/gitlab/gitlab-rails/uploads"] {
        let path = gitlab.path(path).display().to_string();
        let has_path = inspected.stdout.lines().any(|line| line.ends_with(&path));
        assert!(has_path, "{path}: {}", inspected.all_output());
    }
    let inspected = configured(&sandbox, ["inspect", "--instance", "forge", "latest", "--json"]);
    let inspected = without_secrets(inspected.run().ok()).json();
    assert_eq!(inspected[0]["message_type"], "instance");
    assert_eq!(inspected[0]["product"]["version"], "17.8.2");
    let none = configured(&sandbox, ["inspect", "--instance", "other", "latest"]);
    none.run().fails(1, &["no instance `other`"]);

    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored");
    let root = restored.join(gitlab.root().strip_prefix("/").expect("absolute"));
    let postgres = load_databases(&sandbox, &restored);
    // Files that installing the package and its first reconfigure recreate.
    for path in [
        "opt/gitlab/version-manifest.txt",
        "var/opt/gitlab/gitaly/config.toml",
        "var/opt/gitlab/gitlab-rails/etc/gitlab.yml",
        "var/opt/gitlab/gitlab-rails/etc/database.yml",
    ] {
        let made = root.join(path);
        std::fs::create_dir_all(made.parent().expect("a directory")).expect("directories");
        std::fs::copy(gitlab.path(path), made).expect("copies");
    }
    drop(gitlab);
    let text = format!(
        "[instances.forge]\nkind = 'gitlab'\nroot = '{}'\n\
         [instances.forge.postgres]\nhost = '{}'\nrole = '{}'\n",
        root.display(),
        postgres.socket_dir().display(),
        postgres.superuser(),
    );
    sandbox.write("forgekeep.toml", text);
    let all = inspect(&sandbox, 0);
    assert_eq!(single_sign_on(&all).0, "ok", "{all:?}");
    assert_eq!(summary(&all)["is_right"], true);

    // The other format, of about GitLab 15 and 16.
    let keep = |secret: &str| {
        let update = format!("update oauth_applications set secret = '{secret}'");
        postgres.sql(MAIN, update);
    };
    keep(OAUTH_SECRET_PBKDF2);
    assert_eq!(single_sign_on(&inspect(&sandbox, 0)).0, "ok");

    // Only the database comes from the snapshot.
    let environment = root.join("opt/gitlab/etc/mattermost/env");
    let secrets = root.join("etc/gitlab/gitlab-secrets.json");
    std::fs::write(environment.join("MM_GITLABSETTINGS_ID"), OTHER_ID).expect("writes");
    std::fs::write(environment.join("MM_GITLABSETTINGS_SECRET"), OTHER_SECRET).expect("writes");
    change(&secrets, |value| {
        value["mattermost"]["gitlab_id"] = OTHER_ID.into();
        value["mattermost"]["gitlab_secret"] = OTHER_SECRET.into();
    });
    let (verdict, printed) = single_sign_on(&inspect(&sandbox, 3));
    assert_eq!(verdict, "warning", "{printed}");
    for word in ["users cannot sign in", "mattermost.gitlab_secret in", OAUTH_ID, "only a hash"] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    keep(OAUTH_SECRET);
    let (verdict, printed) = single_sign_on(&inspect(&sandbox, 3));
    assert_eq!(verdict, "warning", "{printed}");
    let query = format!("select secret from oauth_applications where uid = '{OAUTH_ID}'");
    assert!(printed.contains(&query), "{printed}");
    // The command does what the hint says, except the reconfigure; and it changes nothing else.
    let repair = |more: &[&str]| {
        let command = configured(&sandbox, ["repair", "single-sign-on", "--instance", "forge"]);
        without_secrets(command.args(more).run())
    };
    sandbox.tool("chown").args(["12345:23456"]).args([&secrets]).run().ok();
    sandbox.tool("chmod").args(["640"]).args([&secrets]).run().ok();
    let read = || std::fs::read_to_string(&secrets).expect("reads");
    let before = read();
    assert!(repair(&["--dry-run"]).ok().stdout.contains("would write"));
    assert_eq!(read(), before);
    keep(OAUTH_SECRET_PBKDF2);
    repair(&[]).fails(1, &["only a hash", "forgekeep dump SNAPSHOT:"]);
    assert_eq!(read(), before);
    keep(OAUTH_SECRET);
    assert!(repair(&[]).ok().stdout.contains("now run `gitlab-ctl reconfigure`"));
    let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let mut expected = parsed(&before);
    expected["mattermost"]["gitlab_id"] = OAUTH_ID.into();
    expected["mattermost"]["gitlab_secret"] = OAUTH_SECRET.into();
    assert_eq!(parsed(&read()), expected);
    let metadata = std::fs::metadata(&secrets).expect("is there");
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12345, 23456, 0o640));
    let (_, printed) = single_sign_on(&inspect(&sandbox, 3));
    assert!(printed.contains("`gitlab-ctl reconfigure` writes the id and secret of"), "{printed}");
    std::fs::remove_dir_all(&environment).expect("removes");
    // Whose it is, inspect looks at as well.
    sandbox.tool("chown").args(["root:root"]).args([&secrets]).run().ok();
    sandbox.tool("chmod").args(["600"]).args([&secrets]).run().ok();
    assert_eq!(single_sign_on(&inspect(&sandbox, 0)).0, "ok");
}

#[test]
fn old_packages_use_the_configuration_of_mattermost() {
    need_root();
    let version = "10.5.5-ce.0";
    let gitlab = Builder::new().version(version).web("unicorn").mattermost().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    assert_eq!(single_sign_on(&inspect(&sandbox, 0)).0, "ok");
    let config = gitlab.path("var/opt/gitlab/mattermost/config.json");
    change(&config, |value| {
        value["GitLabSettings"] = json!({ "Enable": true, "Id": OTHER_ID, "Secret": OTHER_SECRET });
    });
    change(&gitlab.path("etc/gitlab/gitlab-secrets.json"), |value| {
        value["mattermost"] = Value::Null;
    });
    let (verdict, printed) = single_sign_on(&inspect(&sandbox, 3));
    assert_eq!(verdict, "warning", "{printed}");
    let query = format!("select secret from oauth_applications where uid = '{OAUTH_ID}'");
    for word in ["GitLabSettings.Id", &query, "gitlab-ctl restart mattermost"] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    let command = ["repair", "single-sign-on", "--instance", "forge"];
    let repaired = without_secrets(configured(&sandbox, command).run().ok());
    assert!(repaired.stdout.contains("gitlab-ctl restart mattermost"), "{}", repaired.stdout);
    let repaired = configured(&sandbox, command).run().ok();
    assert!(repaired.stdout.contains("nothing to repair"), "{}", repaired.stdout);
    assert_eq!(single_sign_on(&inspect(&sandbox, 0)).0, "ok");
}

/// Password of Mattermost's role.
const PASSWORD: &str = "it's a pass/word@home";

/// Creates a Mattermost of its own below a root, and its database server, which requires the
/// password.
pub fn alone(root: &Path) -> Postgres {
    let sockets = root.join("run/postgresql");
    let postgres = Postgres::start(Options::within(&sockets));
    let sql = include_str!("support/gitlab/mattermost.sql");
    let quoted = PASSWORD.replace('\'', "''");
    postgres.sql(
        "postgres",
        format!(
            "create role mmuser login password '{quoted}';\ncreate database chat owner mmuser;\n\
             create database other;"
        ),
    );
    postgres.sql("chat", format!("create extension pg_trgm;\nset role mmuser;\n{sql}"));
    let access = sockets.join("data/pg_hba.conf");
    let rest = std::fs::read_to_string(&access).expect("reads");
    std::fs::write(&access, format!("local all mmuser scram-sha-256\n{rest}")).expect("writes");
    postgres.query("postgres", "select pg_reload_conf()");
    let home = root.join("opt/mattermost");
    for dir in ["config", "plugins/one", "client/plugins"] {
        std::fs::create_dir_all(home.join(dir)).expect("directories");
    }
    let config = json!({
        "SqlSettings": { "DriverName": "postgres", "DataSource": "postgres://nobody:wrong@/none" },
        "FileSettings": { "DriverName": "local", "Directory": "./files/" },
    });
    std::fs::write(home.join("config/config.json"), config.to_string()).expect("writes");
    let unit = root.join("etc/systemd/system/mattermost.service");
    std::fs::create_dir_all(unit.parent().expect("a directory")).expect("directories");
    let variables = "EnvironmentFile=/opt/mattermost/config/mattermost.environment\n";
    std::fs::write(unit, format!("[Service]\n{variables}")).expect("writes");
    let source = "postgres://mmuser:it%27s%20a%20pass%2Fword%40home@/chat?host=/run/postgresql";
    std::fs::write(
        home.join("config/mattermost.environment"),
        format!("MM_SQLSETTINGS_DATASOURCE='{source}&sslmode=disable'\n"),
    )
    .expect("writes");
    let files = "select path, repeat(md5('file' || right(createat::text, 1)), 50) from fileinfo";
    for row in postgres.query("chat", files).lines() {
        let (path, content) = row.split_once('|').expect("two columns");
        let path = home.join("files").join(path);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        std::fs::write(path, content).expect("writes");
    }
    postgres
}

#[test]
fn a_standalone_mattermost_is_backed_up_and_restored() {
    need_root();
    let dir = short_dir();
    let postgres = alone(dir.path());
    let sandbox = Sandbox::new();
    let configure = |root: &Path, more: &str| {
        let text = format!(
            "state = '{}'\n[stores.main]\npath = '{}'\n\
             [instances.forge]\nkind = 'mattermost'\nroot = '{}'\n{more}",
            sandbox.text("state"),
            sandbox.text("store"),
            root.display(),
        );
        sandbox.write("forgekeep.toml", text);
    };
    configure(dir.path(), "");
    let printed = configured(&sandbox, ["config", "check", "--offline"]).run().ok();
    assert!(printed.stdout.contains("opt/mattermost/files  "), "{}", printed.all_output());
    let all = without_secrets(backup(&sandbox).run().ok()).json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    assert_eq!(summary(&all)["databases"], 1, "{all:?}");
    let inspected = configured(&sandbox, ["inspect", "--instance", "forge", "latest"]).run().ok();
    for word in ["Mattermost 10.2.0", "chat: ", "lacks the passwords of database roles"] {
        assert!(inspected.stdout.contains(word), "{}", inspected.all_output());
    }
    drop(postgres);

    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored");
    let inspected =
        std::fs::read_to_string(restored.join(".forgekeep/instance.json")).expect("reads");
    assert!(!inspected.contains(PASSWORD));
    let root = restored.join(dir.path().strip_prefix("/").expect("absolute"));
    let postgres = load_databases(&sandbox, &restored);
    let host =
        format!("[instances.forge.postgres]\nhost = '{}'\n", postgres.socket_dir().display());
    configure(&root, &host);
    let all = inspect(&sandbox, 0);
    assert_eq!(summary(&all)["product"]["version"], "10.2.0");
    let files = lines(&all, "check")[0].clone();
    assert_eq!(files["text"], "checked 4 rows with files; all are present");
    let path = postgres.query("chat", "select path from fileinfo order by createat limit 1");
    std::fs::remove_file(root.join("opt/mattermost/files").join(path)).expect("removes");
    let files = lines(&inspect(&sandbox, 3), "check")[0].clone();
    assert_eq!(files["text"], "1 of 4 rows with files are missing or damaged");

    let settings = root.join("opt/mattermost/config/config.json");
    change(&settings, |value| value["FileSettings"]["DriverName"] = "amazons3".into());
    let files = lines(&inspect(&sandbox, 0), "check")[0].clone();
    let text = "not checked: 4 rows of fileinfo are in an object store, which is not copied";
    assert_eq!(files["text"], text);

    std::fs::remove_file(root.join("etc/systemd/system/mattermost.service")).expect("removes");
    change(&root.join("opt/mattermost/config/config.json"), |value| {
        value["SqlSettings"]["DriverName"] = "mysql".into();
    });
    let refused = configured(&sandbox, ["inspect", "--instance", "forge"]).run();
    without_secrets(refused.fails(1, &["is MySQL", "--stdin-name"]));
}

#[test]
fn settings_in_the_database_locate_the_files() {
    need_root();
    let dir = short_dir();
    let postgres = alone(dir.path());
    let sandbox = Sandbox::new();
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n\
         [instances.forge]\nkind = 'mattermost'\nroot = '{}'\nchecks = {{ sample = 'all' }}\n",
        sandbox.text("state"),
        sandbox.text("store"),
        dir.path().display(),
    );
    sandbox.write("forgekeep.toml", text);
    let source = "postgres://mmuser:it%27s%20a%20pass%2Fword%40home@/chat?host=/run/postgresql";
    let home = dir.path().join("opt/mattermost");
    let environment = home.join("config/mattermost.environment");
    let variables = |more: &str| {
        std::fs::write(&environment, format!("MM_CONFIG='{source}&sslmode=disable'\n{more}"))
            .expect("writes");
    };
    variables("");
    std::fs::remove_file(home.join("config/config.json")).expect("removes");
    std::fs::rename(home.join("files"), dir.path().join("srv")).expect("moves");
    let settings = |directory: &str, source: &str| {
        let value = json!({
            "FileSettings": { "DriverName": "local", "Directory": directory },
            "SqlSettings": { "DriverName": "postgres", "DataSource": source },
        });
        let value = value.to_string().replace('\'', "''");
        postgres.sql(
            "chat",
            format!(
                "set role mmuser; create table if not exists configurations (id varchar(26) \
                 primary key, value text not null, createat bigint, active boolean unique, sha char(64)); \
                 delete from configurations; insert into configurations values \
                 ('a', '{{}}', 1, null, ''), ('b', '{value}', 2, true, '');"
            ),
        );
    };
    // Without a table nobody knows where files are: both say so.
    for arguments in [["config", "check"].as_slice(), &["backup", "--instance", "forge", "--init"]]
    {
        let run = arguments.iter().fold(configured(&sandbox, []), |run, word| run.args([*word]));
        let printed = without_secrets(run.run().ends_with(3)).all_output();
        assert!(
            printed.contains("mattermost-settings") && printed.contains("table does not exist"),
            "{printed}"
        );
    }
    settings("/srv/", &format!("{source}&sslmode=disable"));
    let printed = without_secrets(configured(&sandbox, ["config", "check"]).run().ok());
    assert!(printed.stdout.contains(" srv  — uploaded files"), "{}", printed.all_output());
    let all = without_secrets(backup(&sandbox).run().ok()).json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    assert_eq!(lines(&all, "check")[0]["text"], "checked 4 rows with files; all are present");
    // A message names variables that take precedence over settings.
    variables("MM_FILESETTINGS_DIRECTORY=/elsewhere\n");
    let words = "MM_FILESETTINGS_DIRECTORY in its environment overrides FileSettings.Directory";
    let printed = without_secrets(configured(&sandbox, ["config", "check"]).run().ends_with(3));
    assert!(
        printed.stdout.contains(words) && printed.stdout.contains("elsewhere"),
        "{}",
        printed.all_output()
    );
    let printed = without_secrets(backup(&sandbox).run().ends_with(3)).all_output();
    assert!(printed.contains(words), "{printed}");
    // Settings that are elsewhere than the rest are a database of their own.
    variables("");
    settings("/srv/", "postgres://mmuser@/other?host=/run/postgresql");
    let printed = without_secrets(configured(&sandbox, ["config", "check", "--offline"]).run());
    assert!(printed.stdout.contains("are not read offline"), "{}", printed.all_output());
    let printed = without_secrets(configured(&sandbox, ["config", "check"]).run());
    assert!(
        printed.stdout.contains("database-mattermost-settings  chat"),
        "{}",
        printed.all_output()
    );
}
