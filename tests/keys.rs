//! Keys are tried on values that the database holds encrypted.

use crate::support::gitlab::{Builder, Gitlab, database};
use crate::support::instance::{backup, configure, configured, lines, summary};
use crate::support::sandbox::{Sandbox, need_root};
use serde_json::Value;

/// Values of Ruby's OpenSSL, and the keys that they were made with.
fn values() -> Value {
    serde_json::from_str(include_str!("../forge/src/encrypted/values.json")).expect("JSON")
}

/// Changes `gitlab-secrets.json`.
pub fn change_secrets(gitlab: &Gitlab, change: impl FnOnce(&mut Value)) {
    let path = gitlab.path("etc/gitlab/gitlab-secrets.json");
    let text = std::fs::read_to_string(&path).expect("reads");
    let mut secrets: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut secrets["gitlab_rails"]);
    std::fs::write(&path, secrets.to_string()).expect("writes");
}

/// An instance with encrypted values of all forms and the keys that decrypt them.
fn encrypted() -> Gitlab {
    let gitlab = Builder::new().build();
    encrypt(&gitlab);
    gitlab
}

/// Gives an instance encrypted values of all forms and the keys that decrypt them.
pub fn encrypt(gitlab: &Gitlab) {
    let values = values();
    change_secrets(gitlab, |rails| {
        for (name, key) in values["keys"].as_object().expect("keys") {
            rails[name] = key.clone();
        }
    });
    let sql = |text: String| gitlab.postgres.sql(database::MAIN, text);
    sql("alter table application_settings add encrypted_ci_jwt_signing_key text, \
         add encrypted_ci_jwt_signing_key_iv text, add signing_key_encrypted bytea, \
         add runners_registration_token_encrypted varchar; \
         create table ci_variables (id bigserial primary key, key varchar, encrypted_value text, \
         encrypted_value_iv varchar, encrypted_value_salt varchar); \
         create table cloud_connector_keys (id bigserial primary key, secret_key jsonb); \
         create table odd (encrypted_nothing text, encrypted_nothing_iv text); \
         alter table projects add runners_token_encrypted varchar"
        .into());
    let text = |of: &Value, name: &str| {
        of[name].as_str().map_or("null".into(), |text| format!("'{}'", text.replace('\'', "''")))
    };
    let gcm = &values["attributes"]["gcm"];
    let shared = text(&values["tokens"], "shared_nonce");
    sql(format!(
        "update application_settings set encrypted_ci_jwt_signing_key = {}, \
         encrypted_ci_jwt_signing_key_iv = {}, runners_registration_token_encrypted = {shared}; \
         update projects set runners_token_encrypted = {}",
        text(gcm, "value"),
        text(gcm, "iv"),
        text(&values["tokens"], "own_nonce"),
    ));
    for name in ["salted", "salted_object"] {
        let value = &values["attributes"][name];
        sql(format!(
            "insert into ci_variables (key, encrypted_value, encrypted_value_iv, encrypted_value_salt) \
             values ('A', {}, {}, {})",
            text(value, "value"),
            text(value, "iv"),
            text(value, "salt"),
        ));
    }
    let record = &values["records"]["sha256"];
    sql(format!("insert into cloud_connector_keys (secret_key) values ('{record}')"));
}

/// Verdict and words of the check of this name.
#[track_caller]
fn check(all: &[Value], name: &str) -> (String, String) {
    let found = lines(all, "check").into_iter().find(|check| check["name"] == name);
    let found = found.unwrap_or_else(|| panic!("{name}: {all:?}"));
    (found["verdict"].as_str().expect("a word").to_owned(), found.to_string())
}

#[test]
fn backups_and_inspections_try_the_keys() {
    need_root();
    let gitlab = encrypted();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    let decrypts = "the keys of gitlab-secrets.json decrypt the database: ";
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "secrets");
    assert!(verdict == "ok" && text.contains(decrypts), "{text}");
    // A setting and two tokens of GCM, four of projects, two of CBC, a record.
    assert!(text.contains("9 encrypted values tried"), "{text}");
    assert!(text.contains("present, not tried: secret_key_base, otp_key_base, "), "{text}");
    assert!(!text.contains("not tried: active_record"), "{text}");
    let looked = inspect().ok();
    assert!(check(&looked.json(), "secrets").1.contains(decrypts));
    let checked = configured(&sandbox, ["config", "check"]).run().ok();
    assert!(checked.all_output().contains(decrypts), "{}", checked.all_output());
    let offline = configured(&sandbox, ["config", "check", "--offline"]).run().ok();
    assert!(!offline.all_output().contains(decrypts), "{}", offline.all_output());

    // GitLab still reads the file that was generated from the old one.
    let keys = &values()["keys"];
    let generated = gitlab.path("var/opt/gitlab/gitlab-rails/etc/secrets.yml");
    std::fs::write(&generated, format!("production: {keys}\n")).expect("writes");
    change_secrets(&gitlab, |rails| rails["db_key_base"] = "another".into());
    let wrong = "the keys of gitlab-secrets.json do not decrypt the database; \
                 values that failed: db_key_base: 8 of 8";
    let checked = configured(&sandbox, ["config", "check"]).run().ends_with(3);
    assert!(checked.all_output().contains(wrong), "{}", checked.all_output());
    let inspected = inspect().ends_with(3).json();
    let (verdict, text) = check(&inspected, "secrets");
    assert!(verdict == "failed" && text.contains(wrong), "{text}");
    assert!(text.contains("ci_variables.encrypted_value"), "{text}");
    assert!(
        text.contains("the keys of gitlab-rails/etc/secrets.yml decrypt the database"),
        "{text}"
    );
    assert!(check(&inspected, "keys").1.contains("db_key_base changed since snapshot"));
    let outcome = backup(&sandbox).run().ends_with(3);
    assert!(!outcome.all_output().contains("copying again"), "{}", outcome.all_output());
    let all = outcome.json();
    assert_eq!(summary(&all)["is_complete"], false);
    assert_eq!(check(&all, "secrets").0, "failed");
    std::fs::remove_file(&generated).expect("removes");
    let text = check(&backup(&sandbox).run().ends_with(3).json(), "secrets").1;
    assert!(text.contains("restore gitlab-secrets.json"), "{text}");

    // A rotation adds a key.
    change_secrets(&gitlab, |rails| rails["db_key_base"] = keys["db_key_base"].clone());
    backup(&sandbox).run().ok();
    change_secrets(&gitlab, |rails| {
        rails["db_key_base"] = serde_json::json!([keys["db_key_base"], "newer"]);
    });
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(check(&all, "secrets").0, "ok");
    assert!(lines(&all, "check").iter().all(|check| check["name"] != "keys"), "{all:?}");
    change_secrets(&gitlab, |rails| rails["db_key_base"] = keys["db_key_base"].clone());
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "keys");
    assert!(verdict == "warning" && text.contains("db_key_base (1 of 2 keys removed)"), "{text}");
    change_secrets(&gitlab, |rails| {
        drop(rails.as_object_mut().expect("keys").remove("otp_key_base"))
    });
    let outcome = backup(&sandbox).run().ends_with(3);
    assert!(outcome.all_output().contains("lacks otp_key_base"), "{}", outcome.all_output());
    assert!(!outcome.all_output().contains("copying again"), "{}", outcome.all_output());
    change_secrets(&gitlab, |rails| {
        rails["otp_key_base"] = keys["otp_key_base"].clone();
        rails["db_key_base"] = "another".into();
    });

    configure(&sandbox, &gitlab, "keys = { changed = 'ok' }");
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "secrets");
    assert!(verdict == "warning" && text.contains(wrong), "{text}");
}

#[test]
fn keys_that_are_back_are_not_said_to_fail() {
    need_root();
    let gitlab = encrypted();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    backup(&sandbox).run().ok();
    let key = values()["keys"]["db_key_base"].clone();
    change_secrets(&gitlab, |rails| rails["db_key_base"] = "another".into());
    configure(&sandbox, &gitlab, "keys = { changed = 'ok' }");
    backup(&sandbox).run().ok();
    change_secrets(&gitlab, |rails| rails["db_key_base"] = key);
    configure(&sandbox, &gitlab, "");
    let looked = configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    for all in [looked.json(), backup(&sandbox).run().ok().json()] {
        let (verdict, text) = check(&all, "keys");
        let words = "the keys of today decrypt all values that were tried";
        assert!(verdict == "ok" && text.contains(words), "{text}");
    }
    // A key that no value has tried.
    change_secrets(&gitlab, |rails| rails["otp_key_base"] = "another".into());
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "keys");
    assert!(verdict == "warning" && text.contains("only the old keys decrypt"), "{text}");
}

#[test]
fn undecryptable_values_cause_a_warning() {
    need_root();
    let gitlab = encrypted();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    gitlab.postgres.sql(
        database::MAIN,
        "update ci_variables set encrypted_value = encode(sha256('x'), 'base64')",
    );
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "secrets");
    assert!(verdict == "warning" && text.contains("ci_variables.encrypted_value"), "{text}");
    // Values of an unknown form do not count against the keys.
    gitlab.postgres.sql(
        database::MAIN,
        "delete from ci_variables; delete from cloud_connector_keys; \
         update projects set runners_token_encrypted = 'plain'; \
         update application_settings set encrypted_ci_jwt_signing_key_iv = 'x', \
         runners_registration_token_encrypted = null",
    );
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "secrets");
    assert!(verdict == "unknown" && text.contains("could not be tried: "), "{text}");
    assert!(text.contains("present, not tried: db_key_base, secret_key_base, "), "{text}");
}

#[test]
fn a_check_without_servers_reads_the_secrets() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let check = || configured(&sandbox, ["config", "check", "--offline"]).run();
    check().ok();
    let path = gitlab.path("etc/gitlab/gitlab-secrets.json");
    for (text, reason) in [
        ("", "gitlab-secrets.json is empty"),
        ("{\"gitlab_rails\": {", "gitlab-secrets.json is invalid JSON at line 1"),
        ("{}", "gitlab-secrets.json lacks db_key_base"),
        ("[]", "gitlab-secrets.json lacks db_key_base"),
    ] {
        std::fs::write(&path, text).expect("writes");
        let outcome = check().ends_with(3);
        assert!(outcome.all_output().contains(reason), "{}", outcome.all_output());
    }
}

#[test]
fn keys_in_the_configuration_are_tried() {
    need_root();
    let gitlab = encrypted();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let mut keys = values()["keys"].clone();
    keys["secret_key_base"] = "of cookies".into();
    let generated = gitlab.path("var/opt/gitlab/gitlab-rails/etc/secrets.yml");
    std::fs::write(&generated, format!("production: {keys}\n")).expect("writes");
    std::fs::remove_file(gitlab.path("etc/gitlab/gitlab-secrets.json")).expect("removes");
    let settings = gitlab.path("etc/gitlab/gitlab.rb");
    let text = std::fs::read_to_string(&settings).expect("reads");
    // A comment does not keep the package from writing the file.
    let off = "package['generate_secrets_json_file'] = false";
    std::fs::write(&settings, format!("{text}# {off}\n")).expect("writes");
    let outcome = backup(&sandbox).run().ends_with(3);
    let words = "gitlab-secrets.json is not in the copy";
    assert!(outcome.all_output().contains(words), "{}", outcome.all_output());
    std::fs::write(&settings, format!("{text}{off} # keys are below\n")).expect("writes");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    let (verdict, text) = check(&all, "secrets");
    let decrypts = "the keys of gitlab-rails/etc/secrets.yml decrypt the database: 9 ";
    assert!(verdict == "ok" && text.contains(decrypts), "{text}");
    // Changed and damaged keys are noticed there as well.
    let other = format!("production: {keys}\n")
        .replace(keys["db_key_base"].as_str().expect("a key"), "other");
    std::fs::write(&generated, other).expect("writes");
    let all = backup(&sandbox).run().ends_with(3).json();
    assert_eq!(check(&all, "secrets").0, "failed");
    assert!(check(&all, "keys").1.contains("db_key_base changed"), "{all:?}");
    for (text, reason) in [
        ("", "gitlab-rails/etc/secrets.yml is empty"),
        ("production: [", "gitlab-rails/etc/secrets.yml is invalid YAML"),
        ("production: {}", "gitlab-rails/etc/secrets.yml lacks db_key_base"),
    ] {
        std::fs::write(&generated, text).expect("writes");
        let inspected = configured(&sandbox, ["inspect", "--instance", "forge"]).run();
        let printed = inspected.ends_with(3).all_output();
        assert!(printed.contains(reason), "{reason}: {printed}");
    }
}

#[test]
fn old_values_of_another_database_are_not_tried() {
    need_root();
    let gitlab = encrypted();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    // A copy of the main database, and a copy from before the keys were changed.
    let sql = |database: &str, text: &str| gitlab.postgres.sql(database, text);
    sql("postgres", "create database before template gitlabhq_production");
    for database in [database::CI, "before"] {
        sql(
            database,
            "alter table application_settings add if not exists signing_token_encrypted varchar;
             insert into application_settings (signing_token_encrypted)
             select encode(sha256(n::text::bytea), 'base64') from generate_series(1, 9) n;",
        );
    }
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "secrets");
    assert!(verdict == "ok" && text.contains("9 encrypted values tried"), "{text}");
    let checked = configured(&sandbox, ["config", "check"]).run().ok();
    assert!(checked.all_output().contains("9 encrypted values"), "{}", checked.all_output());
}
