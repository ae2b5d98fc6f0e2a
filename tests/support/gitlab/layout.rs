//! Directories, generated configuration and programs.

use super::{Builder, STORAGES, mattermost};
use crate::support::accounts::Account;
use crate::support::postgres::programs;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Directories below the root, with their owners and modes, as the package creates them.
const DIRECTORIES: &[(&str, &str, u32)] = &[
    ("etc/gitlab", "root", 0o775),
    ("etc/gitlab/ssl", "root", 0o755),
    ("etc/gitlab/trusted-certs", "root", 0o755),
    ("mnt/storage2/repositories", "git", 0o2770),
    ("opt/gitlab/bin", "root", 0o755),
    ("opt/gitlab/embedded/bin", "root", 0o755),
    ("opt/gitlab/embedded/service/gitlab-rails/public", "root", 0o755),
    ("opt/gitlab/etc", "root", 0o755),
    ("usr/bin", "root", 0o755),
    ("var/log/gitlab/redis", "gitlab-redis", 0o700),
    ("var/log/gitlab/postgresql", "gitlab-psql", 0o700),
    ("var/opt/gitlab", "root", 0o755),
    ("var/opt/gitlab/.ssh", "git", 0o700),
    ("var/opt/gitlab/backups", "git", 0o700),
    ("var/opt/gitlab/git-data", "git", 0o700),
    ("var/opt/gitlab/git-data/repositories", "git", 0o2770),
    ("var/opt/gitlab/gitaly", "git", 0o700),
    ("var/opt/gitlab/gitlab-ci", "git", 0o700),
    ("var/opt/gitlab/gitlab-ci/builds", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails", "git", 0o755),
    ("var/opt/gitlab/gitlab-rails/etc", "git", 0o755),
    ("var/opt/gitlab/gitlab-rails/shared", "git", 0o751),
    ("var/opt/gitlab/gitlab-rails/shared/artifacts", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/cache", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/ci_secure_files", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/dependency_proxy", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/encrypted_settings", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/external-diffs", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/lfs-objects", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/packages", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/pages", "git", 0o750),
    ("var/opt/gitlab/gitlab-rails/shared/registry", "registry", 0o770),
    ("var/opt/gitlab/gitlab-rails/shared/terraform_state", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/shared/tmp", "git", 0o700),
    ("var/opt/gitlab/gitlab-rails/uploads", "git", 0o700),
    ("var/opt/gitlab/gitlab-shell", "git", 0o700),
    ("var/opt/gitlab/gitlab-workhorse", "git", 0o750),
    ("var/opt/gitlab/nginx", "root", 0o750),
    ("var/opt/gitlab/postgresql", "gitlab-psql", 0o755),
    ("var/opt/gitlab/redis", "gitlab-redis", 0o750),
];

/// Creates everything that requires neither a server nor rows.
pub fn make(root: &Path, builder: &Builder) {
    for (path, owner, mode) in DIRECTORIES {
        directory(&root.join(path), Account::named(owner), *mode);
    }
    // Both have a group of GitLab's.
    for (path, owner) in [("gitlab-rails/shared/registry", "registry"), ("redis", "gitlab-redis")] {
        let owner = Account { gid: super::git().gid, ..Account::named(owner) };
        owner.own(&root.join(super::DATA).join(path));
    }
    configuration(root, builder);
    versions(root, &builder.version);
    programs_and_wrappers(root);
}

fn configuration(root: &Path, builder: &Builder) {
    let anyone = |path: &str, text: &str| file(&root.join(path), Account::root(), 0o644, text);
    file(
        &root.join("etc/gitlab/gitlab.rb"),
        Account::root(),
        0o600,
        "external_url 'https://gitlab.example.com'\n\
         gitaly['configuration'] = {\n  storage: [\n    \
         { name: 'default', path: '/var/opt/gitlab/git-data/repositories' },\n    \
         { name: 'storage2', path: '/mnt/storage2/repositories' },\n  ],\n}\n",
    );
    let mut secrets = json!({
        "gitlab_workhorse": { "secret_token": "d29ya2hvcnNl" },
        "gitlab_shell": { "secret_token": "4a".repeat(64) },
        "gitlab_rails": {
            "secret_key_base": "1b".repeat(64),
            "db_key_base": "2c".repeat(64),
            "otp_key_base": "3d".repeat(64),
            "encrypted_settings_key_base": "5e".repeat(64),
            "openid_connect_signing_key": "-----BEGIN RSA PRIVATE KEY-----\n",
            "active_record_encryption_primary_key": ["p".repeat(32)],
            "active_record_encryption_deterministic_key": ["d".repeat(32)],
            "active_record_encryption_key_derivation_salt": "s".repeat(32),
        },
        "gitlab_pages": { "gitlab_id": null, "gitlab_secret": null },
        "gitlab_kas": { "api_secret_key": "a2Fz" },
        "registry": { "http_secret": "6f".repeat(32), "internal_certificate": "", "internal_key": "" },
        "postgresql": { "internal_certificate": "", "internal_key": "" },
    });
    if builder.mattermost {
        secrets["mattermost"] = mattermost::secrets();
    }
    let secrets = serde_json::to_string_pretty(&secrets).expect("is JSON");
    file(&root.join("etc/gitlab/gitlab-secrets.json"), Account::root(), 0o600, secrets);
    anyone("etc/gitlab/ssl/gitlab.example.com.crt", "-----BEGIN CERTIFICATE-----\n");
    let key = root.join("etc/gitlab/ssl/gitlab.example.com.key");
    file(&key, Account::root(), 0o400, "-----BEGIN PRIVATE KEY-----\n");
    anyone("etc/gitlab/trusted-certs/ca.crt", "-----BEGIN CERTIFICATE-----\n");

    let rails = "var/opt/gitlab/gitlab-rails/etc";
    let storages: serde_json::Map<_, _> = STORAGES
        .iter()
        .map(|(name, path)| {
            let gitaly = "unix:/var/opt/gitlab/gitaly/gitaly.socket";
            ((*name).to_owned(), json!({ "path": path, "gitaly_address": gitaly }))
        })
        .collect();
    let storages = serde_json::Value::Object(storages).to_string();
    anyone(
        &format!("{rails}/gitlab.yml"),
        &include_str!("gitlab.yml").replace("{{storages}}", &storages),
    );
    let database = root.join(rails).join("database.yml");
    file(&database, super::git(), 0o640, include_str!("database.yml"));
    let mut gitaly = include_str!("gitaly.toml").to_owned();
    for (name, path) in STORAGES {
        gitaly += &format!("\n[[storage]]\nname = '{name}'\npath = '{path}'\n");
    }
    let mode = 0o640;
    file(&root.join("var/opt/gitlab/gitaly/config.toml"), super::git(), mode, gitaly);
    let keys = root.join("var/opt/gitlab/.ssh/authorized_keys");
    file(&keys, super::git(), 0o600, "command=\"gitlab-shell key-1\" ssh-ed25519 AAAA a@b\n");
    let append_only = if builder.redis_append_only { "yes" } else { "no" };
    let redis = include_str!("redis.conf").replace("{{append-only}}", append_only);
    let owner = Account::named("gitlab-redis");
    file(&root.join("var/opt/gitlab/redis/redis.conf"), owner, 0o644, redis);
    // GitLab's public uploads are a link to the real ones.
    let public = root.join("opt/gitlab/embedded/service/gitlab-rails/public/uploads");
    link(Path::new("/var/opt/gitlab/gitlab-rails/uploads"), &public);
    anyone(
        "opt/gitlab/etc/gitlab-psql-rc",
        "psql_user='gitlab-psql'\npsql_group='gitlab-psql'\n\
         psql_host='/var/opt/gitlab/postgresql'\npsql_port='5432'\n\
         psql_dbname='gitlabhq_production'\n",
    );
}

fn versions(root: &Path, package: &str) {
    // 17.8.2-ce.0: version, edition and build of the package.
    let (version, build) = package.split_once('-').expect("a version of a package");
    let edition = build.split('.').next().expect("an edition");
    let anyone = |path: &str, text: String| file(&root.join(path), Account::root(), 0o644, text);
    anyone(
        "opt/gitlab/version-manifest.txt",
        format!(
            "gitlab-{edition} {version}\n\n\
             Component              Installed Version                          Version GUID\n\
             ------------------------------------------------------------------------------\n\
             gitlab-rails           v{version}                                 git:0123abcd\n\
             postgresql             14.15                                      md5:4567ef01\n"
        ),
    );
    let manifest = json!({
        "manifest_format": 2,
        "software": { "gitlab-rails": { "locked_version": "0123abcd" } },
        "build_version": version,
        "license": "MIT",
    });
    anyone("opt/gitlab/version-manifest.json", manifest.to_string());
    let suffix = if edition == "ee" { "-ee" } else { "" };
    let rails = "opt/gitlab/embedded/service/gitlab-rails/VERSION";
    anyone(rails, format!("{version}{suffix}\n"));
}

fn programs_and_wrappers(root: &Path) {
    let embedded = root.join("opt/gitlab/embedded/bin");
    for name in ["pg_dump", "pg_dumpall", "pg_restore", "psql"] {
        link(&programs().join(name), &embedded.join(name));
    }
    for name in ["chpst", "sv", "redis-cli", "redis-server"] {
        link(&Path::new("/usr/bin").join(name), &embedded.join(name));
    }
    let wrappers =
        [("gitlab-ctl", include_str!("gitlab-ctl")), ("gitlab-psql", include_str!("gitlab-psql"))];
    for (name, script) in wrappers {
        let script = script.replace("{{root}}", root.to_str().expect("a readable root"));
        file(&root.join("opt/gitlab/bin").join(name), Account::root(), 0o755, script);
        let beside = Path::new("../../opt/gitlab/bin").join(name);
        link(&beside, &root.join("usr/bin").join(name));
    }
}

/// Creates a directory and those above it, which root owns.
pub fn directory(path: &Path, owner: Account, mode: u32) {
    std::fs::create_dir_all(path).expect("a directory");
    owner.own(path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
}

/// Writes a file.
pub fn file(path: &Path, owner: Account, mode: u32, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    owner.own(path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
}

/// Creates a symbolic link.
pub fn link(target: &Path, path: &Path) {
    std::os::unix::fs::symlink(target, path).expect("a link");
}
