//! Parts of a directory without a configured instance, such as a copy or a restored tree.

use crate::error::{Error, Result};
use crate::plan::{Part, Phase, Plan};
use crate::view::shown;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A kind by name, and the numbers of its main account if the machine does not know it.
#[derive(Debug, Clone)]
pub struct OwnersAs {
    product: &'static Product,
    /// User and group.
    pub numbers: Option<(u32, u32)>,
}

/// A directory of a product.
#[derive(Debug)]
struct Row {
    name: &'static str,
    /// Path below the directory of all data.
    path: &'static str,
    /// Account of the package; the main one if it is empty.
    user: &'static str,
}

const fn row(name: &'static str, path: &'static str, user: &'static str) -> Row {
    Row { name, path, user }
}

/// Configuration of the package, below the root of a machine.
const CONFIG: &str = "etc/gitlab";

/// Kind without repositories.
const MATTERMOST_KIND: &str = "mattermost";

/// Owner of host keys and of the configuration, in containers, too.
const ROOT: &str = "root";

/// Storage of the repositories, in the package's data and in that of the image.
const STORAGES: [&str; 2] = ["git-data/repositories", "repositories"];

/// Data of GitLab in the package's directory `/var/opt/gitlab`.
const PACKAGE: [Row; 8] = [
    row("uploads", "gitlab-rails/uploads", ""),
    row("shared", "gitlab-rails/shared", ""),
    row("registry", "gitlab-rails/shared/registry", "registry"),
    row("builds", "gitlab-ci/builds", ""),
    row("backups", "backups", ""),
    row("ssh", ".ssh", ""),
    row("redis", "redis", "gitlab-redis"),
    row("mattermost-data", "mattermost/data", "mattermost"),
];

/// Data of GitLab in the volume of the image.
const IMAGE: [Row; 7] = [
    row("uploads", "uploads", ""),
    row("shared", "shared", ""),
    row("builds", "builds", ""),
    row("backups", "backups", ""),
    row("tmp", "tmp", ""),
    row("ssh", ".ssh", ""),
    row("ssh-host-keys", "ssh", ROOT),
];

/// Data of Mattermost.
const MATTERMOST: [Row; 3] = [
    row("data", "data", ""),
    row("plugins", "plugins", ""),
    row("client-plugins", "client/plugins", ""),
];

/// Parts of which each GitLab has one.
const OF_GITLAB: &[&str] = &["repositories", "uploads"];

/// A product whose owners are known.
#[derive(Debug)]
struct Product {
    kind: &'static str,
    /// Directory of all data below the root of a machine, if it is always the same.
    data: Option<&'static str>,
    /// Main account: a name, or numbers.
    account: &'static str,
    rows: &'static [Row],
    /// Parts without which a directory is something else.
    evidence: &'static [&'static str],
}

static PRODUCTS: [Product; 4] = [
    Product {
        kind: "gitlab",
        data: Some("var/opt/gitlab"),
        account: "git",
        rows: &PACKAGE,
        evidence: OF_GITLAB,
    },
    Product {
        kind: "gitlab-container",
        data: Some("var/opt/gitlab"),
        account: "998:998",
        rows: &PACKAGE,
        evidence: OF_GITLAB,
    },
    Product {
        kind: "docker-gitlab",
        data: None,
        account: "1000:1000",
        rows: &IMAGE,
        evidence: OF_GITLAB,
    },
    Product {
        kind: MATTERMOST_KIND,
        data: Some("opt/mattermost"),
        account: "mattermost",
        rows: &MATTERMOST,
        evidence: &["plugins", "client-plugins"],
    },
];

impl FromStr for OwnersAs {
    type Err = Error;

    /// Parses `KIND` or `KIND=UID:GID`.
    fn from_str(text: &str) -> Result<OwnersAs> {
        let (kind, numbers) = match text.split_once('=') {
            Some((kind, numbers)) => (kind, Some(numbers)),
            None => (text, None),
        };
        let wrong = |reason: String| Error::OwnersAs { text: text.into(), reason };
        let known = || PRODUCTS.each_ref().map(|product| product.kind).join(", ");
        let product = PRODUCTS.iter().find(|product| product.kind == kind);
        let product = product.ok_or_else(|| wrong(format!("known kinds are {}", known())))?;
        let parsed = numbers.map(|numbers| {
            let (uid, gid) = numbers.split_once(':')?;
            // The largest number means no account.
            let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
            Some((number(uid)?, number(gid)?))
        });
        match parsed {
            Some(None) => Err(wrong("numbers have the form KIND=UID:GID".into())),
            parsed => Ok(OwnersAs { product, numbers: parsed.flatten() }),
        }
    }
}

impl OwnersAs {
    /// Returns the name of the kind.
    pub fn kind(&self) -> &'static str {
        self.product.kind
    }

    /// Returns a plan of the parts below a directory of this machine.
    pub fn plan(&self, dir: &Path) -> Result<Plan> {
        let dir = dir.canonicalize().map_err(|error| Error::OwnersAs {
            text: shown(dir),
            reason: format!("cannot open it: {error}"),
        })?;
        let settings = serde_json::json!({ "kind": self.kind(), "root": &dir });
        let settings = serde_json::from_value(settings)
            .map_err(|error| Error::OwnersAs { text: shown(&dir), reason: error.to_string() })?;
        let mut plan = Plan::new(self.kind(), self.kind(), &settings);
        // A service may have put a link into its directory.
        let has_no_link = |path: &Path| {
            let above = path.ancestors().take_while(|path| **path != *dir);
            above.filter_map(|path| path.symlink_metadata().ok()).all(|found| !found.is_symlink())
        };
        plan.parts = self.parts(&dir, &|path| path.exists() && has_no_link(path));
        let linked = self.all_parts(&dir, &|path| path.exists() && !has_no_link(path));
        plan.notes.extend(
            linked.iter().flat_map(|part| &part.paths).map(|path| {
                format!("{} is a link, or behind one, and is not looked at", shown(path))
            }),
        );
        if plan.parts.is_empty() {
            let reason =
                format!("it has no data of {}; give its root or data directory", self.kind());
            return Err(Error::OwnersAs { text: shown(&dir), reason });
        }
        Ok(plan)
    }

    /// Returns the parts with known owners below a directory: the root of a machine, or the
    /// directory of all data. `exists` tells which paths are there. Empty if it is neither.
    pub fn parts(&self, dir: &Path, exists: &dyn Fn(&Path) -> bool) -> Vec<Part> {
        let parts = self.all_parts(dir, exists);
        let is_evidence = |part: &Part| self.product.evidence.contains(&&*part.name);
        if parts.iter().any(is_evidence) { parts } else { Vec::new() }
    }

    fn all_parts(&self, dir: &Path, exists: &dyn Fn(&Path) -> bool) -> Vec<Part> {
        let product = self.product;
        let below = product.data.map(|data| dir.join(data)).filter(|data| exists(data));
        let data = below.unwrap_or_else(|| dir.to_owned());
        let main = match self.numbers {
            Some((uid, gid)) => format!("{uid}:{gid}"),
            None => product.account.to_owned(),
        };
        let mut parts = Vec::new();
        let mut add = |name: &str, path: PathBuf, owner: Option<&str>, phase| {
            if exists(&path) {
                parts.push(Part {
                    name: name.into(),
                    about: String::new(),
                    paths: vec![path],
                    links: Vec::new(),
                    phase,
                    is_required: false,
                    needs_all: false,
                    owner: owner.map(str::to_owned),
                    exclude: Vec::new(),
                });
            }
        };
        if product.kind != MATTERMOST_KIND {
            add("config", dir.join(CONFIG), Some(ROOT), Phase::Files);
            add("secrets", dir.join(CONFIG).join("gitlab-secrets.json"), Some(ROOT), Phase::Files);
            for storage in STORAGES {
                add("repositories", data.join(storage), Some(&main), Phase::Repositories);
                add(
                    "repositories-pools",
                    data.join(storage).join("@pools"),
                    Some(&main),
                    Phase::Pools,
                );
            }
        }
        for row in product.rows {
            let owner = match row.user {
                "" => Some(&*main),
                // The other accounts of a container are unknown outside.
                user => (user == ROOT || product.account == "git").then_some(user),
            };
            add(row.name, data.join(row.path), owner, Phase::Files);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_may_have_numbers() {
        let parsed: OwnersAs = "docker-gitlab=1005:1006".parse().expect("a kind");
        assert_eq!((parsed.kind(), parsed.numbers), ("docker-gitlab", Some((1005, 1006))));
        assert_eq!("gitlab".parse::<OwnersAs>().expect("a kind").numbers, None);
        for text in ["plain", "gitlab=", "gitlab=git:git", "gitlab=1", ""] {
            assert!(text.parse::<OwnersAs>().is_err(), "{text}");
        }
    }

    #[test]
    fn parts_are_found_below_a_root_and_in_the_data() {
        let as_gitlab: OwnersAs = "gitlab".parse().expect("a kind");
        let under = |dir: &str| {
            let all = |_: &Path| true;
            let parts = as_gitlab.parts(Path::new(dir), &all);
            parts.iter().find(|part| part.name == "registry").expect("a part").clone()
        };
        let registry = "/mnt/var/opt/gitlab/gitlab-rails/shared/registry";
        assert_eq!(under("/mnt").paths, [PathBuf::from(registry)]);
        assert_eq!(under("/mnt").owner.as_deref(), Some("registry"));
        let data = |path: &Path| !path.ends_with("var/opt/gitlab");
        let parts = as_gitlab.parts(Path::new("/srv"), &data);
        assert!(parts.iter().any(|part| part.paths == [PathBuf::from("/srv/backups")]));
        assert!(as_gitlab.parts(Path::new("/"), &|_| false).is_empty());
    }
}
