//! The Mattermost of the package: its database, its files, and the three places that must agree for
//! sign-on by GitLab.

use super::DATA;
use super::database::MAIN;
use super::layout::{directory, file};
use crate::support::accounts::Account;
use crate::support::postgres::Postgres;
use serde_json::json;
use std::path::Path;

/// Database of Mattermost.
pub const MATTERMOST: &str = "mattermost_production";

/// Mattermost's OAuth application id in GitLab.
pub const OAUTH_ID: &str = "aa11bb22cc33dd44ee55ff66aa11bb22cc33dd44ee55ff66aa11bb22cc33dd44";

/// Mattermost's OAuth secret.
pub const OAUTH_SECRET: &str = "0f1e2d3c4b5a69780f1e2d3c4b5a69780f1e2d3c4b5a69780f1e2d3c4b5a6978";

/// The hashed form of the secret that GitLab 15 and 16 store.
pub const OAUTH_SECRET_PBKDF2: &str = "$pbkdf2-sha512$20000$$fKZcdglCMuEitDbfm2AcE45Jpkpg0mvqHphGnJ5rOR1NXsgjAZBEZAQO8k47U9irKTqFr0JFJFiyXtIvqGTwGA";

/// Returns its section of `gitlab-secrets.json`.
pub fn secrets() -> serde_json::Value {
    json!({
        "email_invite_salt": "7a".repeat(16),
        "file_public_link_salt": "8b".repeat(16),
        "sql_at_rest_encrypt_key": "9c".repeat(16),
        "register_as_oauth_app": true,
        "gitlab_enable": true,
        "gitlab_id": OAUTH_ID,
        "gitlab_secret": OAUTH_SECRET,
    })
}

/// Creates all of it for a major version of GitLab. From version 15 on, GitLab stores only a hash
/// of the secret.
pub fn make(postgres: &Postgres, root: &Path, major: u32) {
    let secret = match major {
        ..15 => format!("'{OAUTH_SECRET}'"),
        15..17 => format!("'{OAUTH_SECRET_PBKDF2}'"),
        17.. => format!("encode(sha512('{OAUTH_SECRET}'), 'hex')"),
    };
    postgres.sql(
        MAIN,
        format!(
            "insert into oauth_applications (name, uid, secret, redirect_uri, scopes, trusted) values
             ('GitLab Mattermost', '{OAUTH_ID}', {secret},
              E'https://mattermost.example.com/signup/gitlab/complete\\r\\n'
              'https://mattermost.example.com/login/gitlab/complete', '', true)"
        ),
    );
    postgres.sql(
        "postgres",
        format!(
            "create role gitlab_mattermost login;\n\
             create database {MATTERMOST} owner gitlab_mattermost;"
        ),
    );
    let tables = include_str!("mattermost.sql");
    postgres.sql(
        MATTERMOST,
        format!("create extension pg_trgm;\nset role gitlab_mattermost;\n{tables}"),
    );
    files(postgres, root, major);
}

fn files(postgres: &Postgres, root: &Path, major: u32) {
    let owner = Account::named("mattermost");
    let home = root.join(DATA).join("mattermost");
    for name in ["", "data", "plugins", "client-plugins", "plugins/com.example.plugin"] {
        directory(&home.join(name), owner, 0o755);
    }
    file(&home.join("VERSION"), Account::root(), 0o644, "10.2.0\n");
    file(
        &home.join("plugins/com.example.plugin/plugin.json"),
        owner,
        0o644,
        "{\"id\":\"com.example.plugin\"}",
    );
    // Since package 11.0 this file is only created if missing; the environment has the effective
    // values.
    let has_environment = major >= 11;
    let gitlab = if has_environment {
        json!({ "Enable": false, "Secret": "", "Id": "", "Scope": "" })
    } else {
        json!({ "Enable": true, "Secret": OAUTH_SECRET, "Id": OAUTH_ID, "Scope": "" })
    };
    let config = json!({
        "ServiceSettings": { "SiteURL": "https://mattermost.example.com" },
        "SqlSettings": { "DriverName": "postgres", "AtRestEncryptKey": "9c".repeat(16) },
        "FileSettings": {
            "DriverName": "local",
            "Directory": "/var/opt/gitlab/mattermost/data",
            "PublicLinkSalt": "8b".repeat(16),
        },
        "PluginSettings": {
            "Directory": "/var/opt/gitlab/mattermost/plugins",
            "ClientDirectory": "/var/opt/gitlab/mattermost/client-plugins",
        },
        "GitLabSettings": gitlab,
    });
    let config = serde_json::to_string_pretty(&config).expect("is JSON");
    file(&home.join("config.json"), owner, 0o600, config);
    let paths = "select path, repeat(md5('file' || right(createat::text, 1)), 50) from fileinfo";
    for row in postgres.query(MATTERMOST, paths).lines() {
        let (path, content) = row.split_once('|').expect("two columns");
        super::files::below(&home.join("data"), path, owner, 0o640, content);
    }
    if !has_environment {
        return;
    }
    let environment = root.join("opt/gitlab/etc/mattermost/env");
    directory(&environment, Account::root(), 0o755);
    for (name, value) in [
        ("MM_CONFIG", "/var/opt/gitlab/mattermost/config.json"),
        ("MM_GITLABSETTINGS_ENABLE", "true"),
        ("MM_GITLABSETTINGS_ID", OAUTH_ID),
        ("MM_GITLABSETTINGS_SECRET", OAUTH_SECRET),
        (
            "MM_SQLSETTINGS_DATASOURCE",
            "user=gitlab_mattermost host=/var/opt/gitlab/postgresql port=5432 dbname=mattermost_production",
        ),
        ("MM_SQLSETTINGS_ATRESTENCRYPTKEY", &"9c".repeat(16)),
        ("MM_FILESETTINGS_DIRECTORY", "/var/opt/gitlab/mattermost/data"),
        ("MM_FILESETTINGS_PUBLICLINKSALT", &"8b".repeat(16)),
    ] {
        file(&environment.join(name), Account::root(), 0o640, value);
    }
}
