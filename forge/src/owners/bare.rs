//! Parts of a directory without a configured instance, such as a copy or a restored tree.

use super::GENERATED;
use super::named_places::{NamedPlace, named_places};
use crate::error::{Error, Result};
use crate::file;
use crate::plan::{Part, Phase, Plan, Volume};
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

/// Accounts of the official image with their numbers, which never change.
const OF_IMAGE: [(&str, u32); 4] =
    [("registry", 993), ("mattermost", 994), ("gitlab-psql", 996), ("gitlab-redis", 997)];

/// Number of the main account of the official image.
const MAIN_OF_IMAGE: u32 = 998;

/// Smallest shift of numbers by a user namespace. Other numbers are set in the configuration, and
/// only for the main account.
const SHIFT_MIN: u32 = 1000;

/// Directory of all data, as the package sees it.
const PACKAGE_DATA: &str = "/var/opt/gitlab";

/// Configuration of the package, below the root of a machine.
const CONFIG: &str = "etc/gitlab";

/// Kind without repositories.
const MATTERMOST_KIND: &str = "mattermost";

/// Owner of host keys and of the configuration, in containers, too.
const ROOT: &str = "root";

/// Storage of the repositories, in the package's data and in that of the image.
const STORAGES: [&str; 2] = ["git-data/repositories", "repositories"];

/// Data of GitLab in the package's directory `/var/opt/gitlab`.
const PACKAGE: [Row; 12] = [
    row("uploads", "gitlab-rails/uploads", ""),
    row("shared", "gitlab-rails/shared", ""),
    row("registry", "gitlab-rails/shared/registry", "registry"),
    row("builds", "gitlab-ci/builds", ""),
    row("backups", "backups", ""),
    row("ssh", ".ssh", ""),
    row("redis", "redis", "gitlab-redis"),
    row("postgresql", "postgresql/data", "gitlab-psql"),
    row("mattermost-data", "mattermost/data", "mattermost"),
    row("mattermost-config", "mattermost/config.json", "mattermost"),
    row("mattermost-plugins", "mattermost/plugins", "mattermost"),
    row("mattermost-client-plugins", "mattermost/client-plugins", "mattermost"),
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
const MATTERMOST: [Row; 4] = [
    row("config", "config", ""),
    row("data", "data", ""),
    row("plugins", "plugins", ""),
    row("client-plugins", "client/plugins", ""),
];

/// Generated configuration of the package, which GitLab reads.
const GENERATED_PATHS: [&str; 2] = ["gitlab-rails/etc", "gitaly/config.toml"];

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
    /// True if the data contains the generated configuration of GitLab's package.
    is_package: bool,
    /// Parts without which a directory is something else.
    evidence: &'static [&'static str],
}

static PRODUCTS: [Product; 4] = [
    Product {
        kind: "gitlab",
        data: Some("var/opt/gitlab"),
        account: "git",
        rows: &PACKAGE,
        is_package: true,
        evidence: OF_GITLAB,
    },
    Product {
        kind: "gitlab-container",
        data: Some("var/opt/gitlab"),
        account: "998:998",
        rows: &PACKAGE,
        is_package: true,
        evidence: OF_GITLAB,
    },
    Product {
        kind: "docker-gitlab",
        data: None,
        account: "1000:1000",
        rows: &IMAGE,
        is_package: false,
        evidence: OF_GITLAB,
    },
    Product {
        kind: MATTERMOST_KIND,
        data: Some("opt/mattermost"),
        account: "mattermost",
        rows: &MATTERMOST,
        is_package: false,
        evidence: &["plugins", "client-plugins"],
    },
];

/// Files of a directory of this machine, or of a snapshot.
pub struct Files<'a> {
    /// Tells whether a path exists.
    pub exists: &'a dyn Fn(&Path) -> bool,
    /// Returns the content of a small file.
    pub read: &'a dyn Fn(&Path) -> Option<Vec<u8>>,
}

/// Parts of a directory.
#[derive(Default)]
struct Found {
    parts: Vec<Part>,
    /// Paths in the directory that belong to the product and are not in the parts, with the reasons.
    unknown: Vec<(PathBuf, String)>,
    /// Descriptions of data in other directories.
    elsewhere: Vec<String>,
}

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

    /// Returns a plan of the parts below a directory of this machine. Its notes name paths that belong
    /// to the product and are not looked at. Also describes data in other directories.
    pub fn plan(&self, dir: &Path) -> Result<(Plan, Vec<String>)> {
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
        let read = |path: &Path| file::bytes(path).ok().flatten();
        let exists = |path: &Path| path.exists() && has_no_link(path);
        let Found { parts, unknown, elsewhere } =
            self.found(&dir, &Files { exists: &exists, read: &read });
        let is_product = self.is_product(&parts);
        let is_linked = |path: &Path| path.exists() && !has_no_link(path);
        let linked = self.found(&dir, &Files { exists: &is_linked, read: &read }).parts;
        let linked: Vec<&PathBuf> = linked.iter().flat_map(|part| &part.paths).collect();
        let note = |path: &&PathBuf| {
            format!("{} is a link, or behind one, and is not looked at", shown(path))
        };
        plan.notes.extend(linked.iter().map(note));
        let unknown = unknown.into_iter().filter(|(path, _)| !linked.contains(&path));
        plan.notes.extend(unknown.map(|(_, text)| text));
        // The account of a container passes the directories above its data.
        plan.is_root_entered = !self.product.data.is_some_and(|data| dir.join(data).exists());
        plan.volumes.push(Volume { service: None, target: dir.clone(), path: dir.clone() });
        plan.parts = if is_product { parts } else { Vec::new() };
        if plan.parts.is_empty() {
            let reason =
                format!("it has no data of {}; give its root or data directory", self.kind());
            return Err(Error::OwnersAs { text: shown(&dir), reason });
        }
        Ok((plan, elsewhere))
    }

    /// Returns the parts with known owners below a directory: the root of a machine, or the
    /// directory of all data. Empty if it is neither.
    pub fn parts(&self, dir: &Path, files: &Files<'_>) -> Vec<Part> {
        let parts = self.found(dir, files).parts;
        if self.is_product(&parts) { parts } else { Vec::new() }
    }

    fn is_product(&self, parts: &[Part]) -> bool {
        parts.iter().any(|part| self.product.evidence.contains(&&*part.name))
    }

    /// Returns the owner of the parts of an account, as a name or numbers; `None` if it is unknown.
    fn owner(&self, user: &str) -> Option<String> {
        match (user, self.numbers) {
            ("", Some((uid, gid))) => Some(format!("{uid}:{gid}")),
            ("", None) => Some(self.product.account.to_owned()),
            (ROOT, _) => Some(ROOT.to_owned()),
            // The machine has the accounts of an installed package.
            (user, _) if self.product.account == "git" => Some(user.to_owned()),
            (user, numbers) => {
                let (_, number) = OF_IMAGE.iter().find(|(name, _)| *name == user)?;
                let (uid, gid) = numbers.unwrap_or((MAIN_OF_IMAGE, MAIN_OF_IMAGE));
                let shift = uid.checked_sub(MAIN_OF_IMAGE).filter(|_| uid == gid)?;
                let is_known = shift == 0 || shift >= SHIFT_MIN;
                is_known.then(|| format!("{0}:{0}", number + shift))
            }
        }
    }

    fn found(&self, dir: &Path, files: &Files<'_>) -> Found {
        let product = self.product;
        let below = product.data.map(|data| dir.join(data)).filter(|data| (files.exists)(data));
        let is_root = below.is_some();
        let data = below.unwrap_or_else(|| dir.to_owned());
        let mut found = Found::default();
        let (main, root) = (self.owner(""), Some(ROOT.to_owned()));
        if product.kind != MATTERMOST_KIND {
            found.add(files, "config", dir.join(CONFIG), root.clone(), Phase::Files);
            let secrets = dir.join(CONFIG).join("gitlab-secrets.json");
            found.add(files, "secrets", secrets, root, Phase::Files);
            for path in STORAGES {
                found.add_storage(files, "repositories", &data.join(path), main.as_ref());
            }
        }
        for row in product.rows {
            let (path, owner) = (data.join(row.path), self.owner(row.user));
            if owner.is_none() && (files.exists)(&path) {
                let text = format!(
                    "{} belongs to account {} of the container, whose number is unknown, and is \
                     not looked at",
                    shown(&path),
                    row.user
                );
                found.unknown.push((path.clone(), text));
            }
            found.add(files, row.name, path, owner, Phase::Files);
        }
        if product.is_package {
            for path in GENERATED_PATHS {
                found.add(files, GENERATED, data.join(path), None, Phase::Files);
            }
            self.add_named(&mut found, dir, &data, is_root, files);
        }
        found
    }

    /// Adds the places that the configuration in the directory names, as the package sees them.
    fn add_named(
        &self,
        found: &mut Found,
        dir: &Path,
        data: &Path,
        is_root: bool,
        files: &Files<'_>,
    ) {
        let read = |path: &str| {
            let path = data.join(path);
            if (files.exists)(&path) { (files.read)(&path) } else { None }
        };
        for NamedPlace { name, path, is_storage } in named_places(&read) {
            let place = match path.strip_prefix(PACKAGE_DATA) {
                Ok(inner) => Some(data.join(inner)),
                Err(_) if is_root => path.strip_prefix("/").ok().map(|inner| dir.join(inner)),
                Err(_) => None,
            };
            let mut known = found.parts.iter().flat_map(|part| &part.paths);
            let is_known =
                |place: &PathBuf| known.any(|known| place.starts_with(known) || **place == *dir);
            if place.as_ref().is_some_and(is_known) {
                continue;
            }
            match &place {
                Some(place) if (files.exists)(place) && is_storage => {
                    let main = self.owner("");
                    found.add_storage(files, &name, place, main.as_ref());
                }
                Some(place) if (files.exists)(place) => {
                    let user = if name == "registry" { "registry" } else { "" };
                    found.add(files, &name, place.clone(), self.owner(user), Phase::Files);
                }
                // An unused directory is created when it is needed.
                Some(_) if !is_storage => {}
                Some(place) => {
                    let text = format!("{name} is missing at {}", shown(place));
                    found.unknown.push((place.clone(), text));
                }
                None => found.elsewhere.push(format!(
                    "{name} at {} is not in this directory, and is not looked at",
                    shown(&path)
                )),
            }
        }
    }
}

impl Found {
    fn add(
        &mut self,
        files: &Files<'_>,
        name: &str,
        path: PathBuf,
        owner: Option<String>,
        phase: Phase,
    ) {
        if !(files.exists)(&path) {
            return;
        }
        self.parts.push(Part {
            name: name.into(),
            about: String::new(),
            paths: vec![path],
            links: Vec::new(),
            phase,
            is_required: false,
            needs_all: false,
            owner,
            exclude: Vec::new(),
        });
    }

    /// Adds a storage and its pools.
    fn add_storage(&mut self, files: &Files<'_>, name: &str, dir: &Path, owner: Option<&String>) {
        let pools = format!("{name}-pools");
        self.add(files, name, dir.to_owned(), owner.cloned(), Phase::Repositories);
        self.add(files, &pools, dir.join("@pools"), owner.cloned(), Phase::Pools);
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
        fn files(exists: &dyn Fn(&Path) -> bool) -> Files<'_> {
            Files { exists, read: &|_| None }
        }
        let under = |dir: &str| {
            let parts = as_gitlab.parts(Path::new(dir), &files(&|_| true));
            parts.iter().find(|part| part.name == "registry").expect("a part").clone()
        };
        let registry = "/mnt/var/opt/gitlab/gitlab-rails/shared/registry";
        assert_eq!(under("/mnt").paths, [PathBuf::from(registry)]);
        assert_eq!(under("/mnt").owner.as_deref(), Some("registry"));
        let data = |path: &Path| !path.ends_with("var/opt/gitlab");
        let parts = as_gitlab.parts(Path::new("/srv"), &files(&data));
        assert!(parts.iter().any(|part| part.paths == [PathBuf::from("/srv/backups")]));
        assert!(as_gitlab.parts(Path::new("/"), &files(&|_| false)).is_empty());
    }

    #[test]
    fn numbers_of_the_image_are_known_unless_the_configuration_moves_them() {
        let owner = |text: &str| text.parse::<OwnersAs>().expect("a kind").owner("registry");
        assert_eq!(owner("gitlab-container").as_deref(), Some("993:993"));
        assert_eq!(owner("gitlab-container=100998:100998").as_deref(), Some("100993:100993"));
        for text in ["gitlab-container=1000:1000", "gitlab-container=998:100"] {
            assert_eq!(owner(text), None, "{text}");
        }
        assert_eq!(owner("gitlab=998:998").as_deref(), Some("registry"));
    }

    #[test]
    fn storages_of_the_configuration_are_parts_or_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("is there");
        let data = root.join("var/opt/gitlab");
        for path in ["gitaly", "gitlab-rails/uploads", "gitlab-rails/etc", "registry"] {
            std::fs::create_dir_all(data.join(path)).expect("directories");
        }
        std::fs::create_dir_all(root.join("mnt/two/@pools")).expect("directories");
        std::fs::create_dir_all(root.join("mnt/images")).expect("directories");
        let toml = "[[storage]]\nname = 'two'\npath = '/mnt/two'\n\
                    [[storage]]\nname = 'three'\npath = '/mnt/three'\n";
        std::fs::write(data.join("gitaly/config.toml"), toml).expect("writes");
        let yml = "storage:\n  filesystem:\n    rootdirectory: /mnt/images\n";
        std::fs::write(data.join("registry/config.yml"), yml).expect("writes");
        let of = |kind: &str, dir: &Path| {
            kind.parse::<OwnersAs>().expect("a kind").plan(dir).expect("a plan")
        };
        let (plan, elsewhere) = of("gitlab", &root);
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
        let owner = |path: &str| {
            let mut parts = plan.parts.iter();
            parts.find(|part| part.paths == [root.join(path)]).and_then(|part| part.owner.clone())
        };
        assert_eq!(owner("mnt/two").as_deref(), Some("git"));
        assert_eq!(owner("mnt/two/@pools").as_deref(), Some("git"));
        assert_eq!(owner("mnt/images").as_deref(), Some("registry"));
        assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
        assert!(plan.notes[0].starts_with("repositories-three is missing at "), "{:?}", plan.notes);
        // The data of a container does not contain other volumes.
        let (plan, elsewhere) = of("gitlab-container", &data);
        assert!(plan.notes.is_empty(), "{:?}", plan.notes);
        assert_eq!(elsewhere.len(), 3, "{elsewhere:?}");
    }
}
