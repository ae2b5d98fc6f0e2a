//! A GitLab in a container of the official image, as far as a backup sees it.
//!
//! The host has the directories of the tests' package elsewhere. A compose file names them, and a
//! `docker` enters a mount namespace.

use super::accounts::Account;
use super::gitlab::{Builder, Gitlab, layout};
use serde_json::json;
use std::path::Path;

/// The compose file, below the root.
pub const COMPOSE: &str = "srv/forge/docker-compose.yml";

/// Name of the container.
pub const NAME: &str = "forge-gitlab-1";

/// Directories of the host for the volumes of the container.
const VOLUMES: [(&str, &str); 4] = [
    ("srv/gitlab/config", "etc/gitlab"),
    ("srv/gitlab/data", "var/opt/gitlab"),
    ("srv/gitlab/logs", "var/log/gitlab"),
    ("mnt/disk", "mnt/storage2"),
];

/// An instance that runs until it is dropped, and leaves nothing.
pub struct GitlabContainer {
    /// Directory that stands for the container.
    pub inside: Gitlab,
}

impl GitlabContainer {
    /// Makes one, which only root can; puma and sidekiq write all the time.
    pub fn start(builder: Builder) -> GitlabContainer {
        let inside = builder.writers().build();
        let root = inside.root().to_owned();
        for (host, seen) in VOLUMES {
            let host = root.join(host);
            std::fs::create_dir_all(host.parent().expect("below the root")).expect("directories");
            // Servers that run already know their paths; a later one finds the same directory.
            std::fs::rename(root.join(seen), &host).expect("moves");
            layout::link(&host, &root.join(seen));
        }
        layout::directory(&root.join("srv/forge"), Account::root(), 0o700);
        let compose = include_str!("gitlab_container/docker-compose.yml");
        layout::file(&root.join(COMPOSE), Account::root(), 0o600, compose);
        let env = "SMTP_PASSWORD=of-mail\n";
        layout::file(&root.join("srv/forge/mail.env"), Account::root(), 0o600, env);
        let text = root.to_str().expect("a readable root");
        let docker = include_str!("gitlab_container/docker").replace("{{root}}", text);
        layout::file(&root.join("docker"), Account::root(), 0o755, docker);
        layout::file(&root.join("inspect.json"), Account::root(), 0o600, inspected(&root));
        GitlabContainer { inside }
    }

    /// Directory that stands for `/` of the host.
    pub fn root(&self) -> &Path {
        self.inside.root()
    }

    /// Calls of docker so far, a line each.
    pub fn asked(&self) -> String {
        std::fs::read_to_string(self.root().join("docker.log")).unwrap_or_default()
    }
}

/// Output of `docker inspect`.
fn inspected(root: &Path) -> String {
    let mounts = VOLUMES.map(|(host, seen)| {
        json!({"Type": "bind", "Source": root.join(host), "Destination": format!("/{seen}")})
    });
    json!([{
        "Id": "0123abcd",
        "Name": format!("/{NAME}"),
        "State": {"Running": true},
        "Config": {
            "Image": "gitlab/gitlab-ce:17.8.2-ce.0",
            "Env": ["PATH=/opt/gitlab/embedded/bin:/usr/bin", "LANG=C.UTF-8"],
            "Labels": {"com.docker.compose.project.config_files": format!("/{COMPOSE}")},
        },
        "Mounts": mounts,
    }])
    .to_string()
}
