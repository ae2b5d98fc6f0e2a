//! Mattermost, beside GitLab in its Linux package or alone.

pub mod single_sign_on;

use super::{Draft, Kind, Site, below, runit};
use crate::error::Result;
use crate::plan::{Database, Product};
use crate::service::postgres::Server;
use std::path::Path;

/// Mattermost on its own.
pub struct Mattermost;

/// Its database in GitLab's package, and usually elsewhere.
const DATABASE: &str = "mattermost";
const DATABASE_BESIDE_GITLAB: &str = "mattermost_production";

impl Kind for Mattermost {
    fn name(&self) -> &'static str {
        "mattermost"
    }

    fn title(&self) -> &'static str {
        "Mattermost on its own"
    }

    fn detect(&self, root: &Path) -> Option<String> {
        let config = below(root, Path::new("/opt/mattermost/config/config.json"));
        config.exists().then(|| config.display().to_string())
    }

    fn draft(&self, site: &Site<'_>, draft: &mut Draft) -> Result<()> {
        draft.product = Product { name: "Mattermost".into(), ..Product::default() };
        let home = site.at("/opt/mattermost");
        draft.needs("config", "its configuration, with secrets", home.join("config"));
        let data = draft.needs("data", "files that users sent", home.join("data"));
        data.owner = Some("mattermost");
        draft.takes("plugins", "plugins", home.join("plugins"));
        draft.takes("client-plugins", "plugins for browsers", home.join("client/plugins"));
        draft.leaves(home.join("logs"), "logs");
        draft.postgres = Some(Server::default());
        let (name, purpose) = (DATABASE.into(), "mattermost".into());
        draft.databases.push(Database { name, purpose, is_required: true });
        draft.supervisor = Some(runit(vec!["sv".into()], &["mattermost"]));
        Ok(())
    }
}

/// Adds Mattermost to a GitLab whose package brought it along.
pub fn beside_gitlab(site: &Site<'_>, draft: &mut Draft) {
    let home = site.at("/var/opt/gitlab/mattermost");
    if !home.exists() {
        return;
    }
    draft.needs(
        "mattermost-config",
        "configuration of Mattermost, with secrets",
        home.join("config.json"),
    );
    let part = draft.needs("mattermost", "Mattermost's files and plugins", home);
    part.owner = Some("mattermost");
    draft.takes(
        "mattermost-environment",
        "settings that go before its configuration",
        site.at("/opt/gitlab/etc/mattermost/env"),
    );
    let (name, purpose) = (DATABASE_BESIDE_GITLAB.into(), "mattermost".into());
    draft.databases.push(Database { name, purpose, is_required: true });
}
