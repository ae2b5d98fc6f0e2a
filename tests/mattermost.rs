//! Mattermost: beside GitLab, where people sign in by GitLab, and alone.

use crate::support::gitlab::mattermost::{OAUTH_ID, OAUTH_SECRET, OAUTH_SECRET_PBKDF2};
use crate::support::gitlab::{Builder, database::MAIN};
use crate::support::instance::{backup, configure, configured, lines, load_databases, summary};
use crate::support::sandbox::{Outcome, Sandbox, is_root};
use serde_json::{Value, json};
use std::path::Path;

/// What another installation has.
const OTHER_ID: &str = "0123456789abcdef";
const OTHER_SECRET: &str = "the secret of another installation";

/// Looks at the instance, both for people and for programs; returns what a program reads.
fn inspect(sandbox: &Sandbox, code: i32) -> Vec<Value> {
    let arguments = ["inspect", "--instance", "forge"];
    let shown = without_secrets(configured(sandbox, arguments).run().ends_with(code));
    let outcome = configured(sandbox, arguments).args(["--json"]).run().ends_with(code);
    let all = without_secrets(outcome).json();
    for hint in lines(&all, "check").iter().filter_map(|check| check["hint"].as_str()) {
        assert!(shown.stderr.contains(hint), "{}", shown.told());
    }
    all
}

/// Asserts that nothing was told that only the two may know.
fn without_secrets(outcome: Outcome) -> Outcome {
    for secret in [OAUTH_SECRET, OTHER_SECRET, OAUTH_SECRET_PBKDF2] {
        assert!(!outcome.told().contains(secret), "{}", outcome.told());
    }
    outcome
}

/// What was found of single sign-on: the verdict, and the text with its hint.
fn single_sign_on(all: &[Value]) -> (String, String) {
    let checks = lines(all, "check");
    let check = checks.iter().find(|check| check["name"] == "single-sign-on").expect("a check");
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), format!("{} {}", text("text"), text("hint")))
}

/// Changes a file of JSON.
fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("JSON");
    change(&mut value);
    std::fs::write(path, value.to_string()).expect("writes");
}

#[test]
fn sign_on_works_after_a_whole_restore_and_not_after_that_of_the_database_alone() {
    if !is_root() {
        return;
    }
    let gitlab = Builder::new().mattermost().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let all = without_secrets(backup(&sandbox).run().ok()).json();
    assert_eq!(single_sign_on(&all).0, "ok", "{all:?}");

    let facts = configured(&sandbox, ["inspect", "--instance", "forge", "latest"]).run().ok();
    for word in ["GitLab 17.8.2 ce", "gitlabhq_production: ", "mattermost", ", complete"] {
        assert!(facts.stdout.contains(word), "{}", facts.told());
    }
    let facts = configured(&sandbox, ["inspect", "--instance", "forge", "latest", "--json"]);
    let facts = without_secrets(facts.run().ok()).json();
    assert_eq!(facts[0]["message_type"], "instance");
    assert_eq!(facts[0]["product"]["version"], "17.8.2");
    let none = configured(&sandbox, ["inspect", "--instance", "other", "latest"]);
    none.run().fails(1, &["no instance `other`"]);

    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored");
    let root = restored.join(gitlab.root().strip_prefix("/").expect("absolute"));
    let postgres = load_databases(&sandbox, &restored);
    // What installing the package and its first reconfigure make again.
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

    // The other form of about GitLab 15 and 16.
    let keep = |secret: &str| {
        let update = format!("update oauth_applications set secret = '{secret}'");
        postgres.sql(MAIN, update);
    };
    keep(OAUTH_SECRET_PBKDF2);
    assert_eq!(single_sign_on(&inspect(&sandbox, 0)).0, "ok");

    // Only the database is that of the snapshot.
    let environment = root.join("opt/gitlab/etc/mattermost/env");
    let secrets = root.join("etc/gitlab/gitlab-secrets.json");
    std::fs::write(environment.join("MM_GITLABSETTINGS_ID"), OTHER_ID).expect("writes");
    std::fs::write(environment.join("MM_GITLABSETTINGS_SECRET"), OTHER_SECRET).expect("writes");
    change(&secrets, |value| {
        value["mattermost"]["gitlab_id"] = OTHER_ID.into();
        value["mattermost"]["gitlab_secret"] = OTHER_SECRET.into();
    });
    let (verdict, told) = single_sign_on(&inspect(&sandbox, 3));
    assert_eq!(verdict, "warning", "{told}");
    for word in ["users cannot sign in", "mattermost.gitlab_secret in", OAUTH_ID, "only a hash"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    keep(OAUTH_SECRET);
    let (verdict, told) = single_sign_on(&inspect(&sandbox, 3));
    assert_eq!(verdict, "warning", "{told}");
    let query = format!("select secret from oauth_applications where uid = '{OAUTH_ID}'");
    assert!(told.contains(&query), "{told}");
    // Done as told, but for the reconfigure.
    change(&secrets, |value| {
        value["mattermost"]["gitlab_id"] = OAUTH_ID.into();
        value["mattermost"]["gitlab_secret"] = postgres.query(MAIN, &query).into();
    });
    let (_, told) = single_sign_on(&inspect(&sandbox, 3));
    assert!(told.contains("`gitlab-ctl reconfigure` writes what"), "{told}");
    std::fs::remove_dir_all(&environment).expect("removes");
    assert_eq!(single_sign_on(&inspect(&sandbox, 0)).0, "ok");
}

#[test]
fn in_old_packages_the_configuration_of_mattermost_counts() {
    if !is_root() {
        return;
    }
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
    let (verdict, told) = single_sign_on(&inspect(&sandbox, 3));
    assert_eq!(verdict, "warning", "{told}");
    let query = format!("select secret from oauth_applications where uid = '{OAUTH_ID}'");
    for word in ["GitLabSettings.Id", &query, "gitlab-ctl restart mattermost"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    change(&config, |value| {
        value["GitLabSettings"]["Id"] = OAUTH_ID.into();
        value["GitLabSettings"]["Secret"] = gitlab.postgres.query(MAIN, &query).into();
    });
    assert_eq!(single_sign_on(&inspect(&sandbox, 0)).0, "ok");
}
