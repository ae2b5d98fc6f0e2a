//! The files that rows name, and some that no row names.

use super::database::{CI, FUNCTIONS, MAIN};
use super::layout;
use super::{DATA, git};
use crate::support::accounts::Account;
use crate::support::postgres::Postgres;
use std::path::Path;

/// Creates `files`, a view that lives as long as the session.
pub const FILES: &str = include_str!("files.sql");

/// Creates every file.
pub fn make(postgres: &Postgres, root: &Path) {
    for database in [MAIN, CI] {
        let query = format!("{FUNCTIONS}{FILES}select path, pg_temp.content(kind, id) from files");
        for row in postgres.query(database, query).lines() {
            let (path, content) = row.split_once('|').expect("two columns");
            below(&root.join(DATA), path, git(), 0o644, content);
        }
    }
    let data = root.join(DATA);
    below(&data, "gitlab-ci/builds/2024_05/1/1001.log", git(), 0o644, "$ make test\nok\n");
    let encrypted = "gitlab-rails/shared/encrypted_settings/smtp.yaml.enc";
    below(&data, encrypted, git(), 0o600, "MTIzNA==");
    registry(&data);
}

/// Creates one image in the container registry.
fn registry(data: &Path) {
    let owner = Account { gid: git().gid, ..Account::named("registry") };
    let base = "gitlab-rails/shared/registry/docker/registry/v2";
    let digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
    let blob = format!("{base}/blobs/sha256/2c/{digest}/data");
    below(data, &blob, owner, 0o744, "foo");
    let image = format!("{base}/repositories/group1/project3");
    let link = format!("sha256:{digest}");
    for place in ["_layers", "_manifests/revisions"] {
        below(data, &format!("{image}/{place}/sha256/{digest}/link"), owner, 0o744, &link);
    }
    let tag = format!("{image}/_manifests/tags/latest/current/link");
    below(data, &tag, owner, 0o744, &link);
}

/// Writes a file and gives the directories above it to its owner.
pub fn below(data: &Path, path: &str, owner: Account, mode: u32, content: &str) {
    let path = data.join(path);
    let missing: Vec<_> =
        path.ancestors().skip(1).take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
    for dir in missing.iter().rev() {
        layout::directory(dir, owner, 0o755);
    }
    layout::file(&path, owner, mode, content);
}
